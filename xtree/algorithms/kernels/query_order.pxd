"""Query order: sorts a batch along a Hilbert curve, so that neighbours in the batch read the same pages.

The curve has 2048 by 2048 cells over the tree's first two axes; a query outside them belongs to the nearest cell.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from xtree.persistence.base.breath cimport Breath

cdef enum:
    LEAST_ORDERED = 64              # queries: for fewer, the given order is as good


cdef inline uint32_t hilbert_key(uint32_t x, uint32_t y) noexcept nogil:
    """Position of a cell on the Hilbert curve of 2**16 by 2**16 cells.

    Works on all 16 levels at once. Each level has one of four rotations, and the product of the rotations above it
    is a prefix sum in their group; four doubling steps compute it in four bit sets.
    """
    cdef uint32_t a = x ^ y
    cdef uint32_t b = 0xFFFF ^ a
    cdef uint32_t c = 0xFFFF ^ (x | y)
    cdef uint32_t d = x & (y ^ 0xFFFF)
    cdef uint32_t next_a = a | (b >> 1)
    cdef uint32_t next_b = (a >> 1) ^ a
    cdef uint32_t next_c = ((c >> 1) ^ (b & (d >> 1))) ^ c
    cdef uint32_t next_d = ((a & (c >> 1)) ^ (d >> 1)) ^ d
    cdef int step = 2
    while step < 16:
        a, b, c, d = next_a, next_b, next_c, next_d
        next_a = (a & (a >> step)) ^ (b & (b >> step))
        next_b = (a & (b >> step)) ^ (b & ((a ^ b) >> step))
        next_c = c ^ (a & (c >> step)) ^ (b & (d >> step))
        next_d = d ^ (b & (c >> step)) ^ ((a ^ b) & (d >> step))
        step *= 2
    a = next_c ^ (next_c >> 1)
    b = next_d ^ (next_d >> 1)
    c = x ^ y
    d = b | (0xFFFF ^ (c | a))
    return spread_bits(d) << 1 | spread_bits(c)


cdef inline uint32_t spread_bits(uint32_t x) noexcept nogil:
    """The low 16 bits, with a zero bit put between each two."""
    x = (x | x << 8) & 0x00FF00FF
    x = (x | x << 4) & 0x0F0F0F0F
    x = (x | x << 2) & 0x33333333
    return (x | x << 1) & 0x55555555


# Sets the numbers of m boxes (or points, when `boxed` is false) of `dims` axes, in curve order within `bounds`. The
# caller must release the memory, after an error too. Raises MemoryError, and what a breath does.
cdef int order_queries(const double *queries, uint64_t m, int dims, bint boxed, const double *bounds,
                       uint64_t **numbers, Breath *breath) except -1 nogil

# Turns the numbers of results of m queries into m + 1 places: where the results of each start, and where all end.
cdef void counts_to_starts(int64_t *counts, int64_t m) noexcept nogil

# The way back to the order of the caller. Query order[i] was answered as the i-th, and its results are at starts[i] to
# starts[i + 1]. restore_offsets sets the m + 1 offsets of the results in the order of the caller; with these,
# restore_words copies the results themselves, words of 8 bytes. Both raise what a breath does.
cdef int restore_offsets(const int64_t *starts, const uint64_t *order, int64_t m, int64_t *offsets,
                         Breath *breath) except -1 nogil
cdef int restore_words(const uint64_t *found, const int64_t *starts, const uint64_t *order, int64_t m,
                       const int64_t *offsets, uint64_t *restored, Breath *breath) except -1 nogil
