"""Radix sort of 64-bit words by some of their bits: stable, least significant digit first."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

cdef enum:
    SMALL_DIGIT = 8                 # bits: its tables cost little, which counts below a few thousand words
    LARGE_DIGIT = 11
    SORT_COUNTS = 4096              # words of the tables of both digits


cdef inline int digit_bits(uint64_t n) noexcept nogil:
    """Bits of a digit for sorting n words; a sort is by two digits."""
    return LARGE_DIGIT if n > 4096 else SMALL_DIGIT


cdef inline void sort_by_digit(const uint64_t *source, uint64_t *target, uint64_t n, int shift, int bits,
                               uint64_t *counts) noexcept nogil:
    """Moves n words into the order of one digit, given how many words have each value of it."""
    cdef uint64_t values = <uint64_t>1 << bits
    cdef uint64_t i, place, start = 0
    for i in range(values):
        place = counts[i]
        counts[i] = start
        start += place
    for i in range(n):
        place = (source[i] >> shift) & (values - 1)
        target[counts[place]] = source[i]
        counts[place] += 1


cdef inline void sort_words(uint64_t *words, uint64_t *scratch, uint64_t n, int shift, int bits,
                            uint64_t *counts) noexcept nogil:
    """Sorts n words by two digits of `bits` bits from `shift` on.

    `scratch` has room for n words, `counts` for SORT_COUNTS.
    """
    cdef uint64_t values = <uint64_t>1 << bits
    cdef uint64_t *high = counts + values
    cdef uint64_t i
    memset(counts, 0, 2 * values * sizeof(uint64_t))
    for i in range(n):
        counts[(words[i] >> shift) & (values - 1)] += 1
        high[(words[i] >> (shift + bits)) & (values - 1)] += 1
    sort_by_digit(words, scratch, n, shift, bits, counts)
    sort_by_digit(scratch, words, n, shift + bits, bits, high)
