"""Query order: a batch along a Hilbert curve, so that neighbours in the batch read the same pages.

A curve of 2048 by 2048 cells over the tree's first two axes; queries outside are taken to the nearest cell.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    LEAST_ORDERED = 64              # queries: below, the order given is as good


cdef inline uint32_t hilbert_key(uint32_t x, uint32_t y) noexcept nogil:
    """Position of a cell on the Hilbert curve of 2**16 by 2**16 cells.

    Works on all 16 levels at once: a level's rotation is one of four, and the product of the rotations above it is
    a prefix sum in their group, here in four bit sets doubled four times.
    """
    cdef uint32_t a, b, c, d, p, q, i, j
    a = x ^ y
    b = 0xFFFF ^ a
    c = 0xFFFF ^ (x | y)
    d = x & (y ^ 0xFFFF)
    p, q = a | (b >> 1), (a >> 1) ^ a
    c, d = ((c >> 1) ^ (b & (d >> 1))) ^ c, ((a & (c >> 1)) ^ (d >> 1)) ^ d
    a, b = p, q
    p, q = (a & (a >> 2)) ^ (b & (b >> 2)), (a & (b >> 2)) ^ (b & ((a ^ b) >> 2))
    c, d = c ^ ((a & (c >> 2)) ^ (b & (d >> 2))), d ^ ((b & (c >> 2)) ^ ((a ^ b) & (d >> 2)))
    a, b = p, q
    p, q = (a & (a >> 4)) ^ (b & (b >> 4)), (a & (b >> 4)) ^ (b & ((a ^ b) >> 4))
    c, d = c ^ ((a & (c >> 4)) ^ (b & (d >> 4))), d ^ ((b & (c >> 4)) ^ ((a ^ b) & (d >> 4)))
    a, b = p, q
    c, d = c ^ ((a & (c >> 8)) ^ (b & (d >> 8))), d ^ ((b & (c >> 8)) ^ ((a ^ b) & (d >> 8)))
    a, b = c ^ (c >> 1), d ^ (d >> 1)
    i = x ^ y
    j = b | (0xFFFF ^ (i | a))
    return spread_bits(j) << 1 | spread_bits(i)


cdef inline uint32_t spread_bits(uint32_t x) noexcept nogil:
    """A zero bit between each two of 16 bits."""
    x = (x | x << 8) & 0x00FF00FF
    x = (x | x << 4) & 0x0F0F0F0F
    x = (x | x << 2) & 0x33333333
    return (x | x << 1) & 0x55555555


# The numbers of m boxes (or points, when `boxed` is false) of `dims` axes, in curve order within `bounds`. The memory
# is the caller's to release. Raises MemoryError.
cdef uint64_t *order_queries(const double *queries, uint64_t m, int dims, bint boxed, const double *bounds) except NULL nogil
