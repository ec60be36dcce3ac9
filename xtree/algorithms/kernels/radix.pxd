"""Radix sort of 64-bit words by some of their bits: stable, least significant digit first."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from xtree.persistence.base.breath cimport Breath, spend

cdef enum:
    SMALL_DIGIT = 8                 # bits: its tables cost little, which counts below a few thousand words
    LARGE_DIGIT = 11
    SORT_COUNTS = 4096              # words of the tables of both digits
    WORDS_AT_ONCE = 32768           # at least so many between two breaths


cdef inline uint64_t blocks_of(uint64_t n) noexcept nogil:
    """How many blocks of WORDS_AT_ONCE words hold n words; the last one may have fewer."""
    return (n + WORDS_AT_ONCE - 1) // WORDS_AT_ONCE


cdef inline int digit_bits(uint64_t n) noexcept nogil:
    """Bits of a digit for sorting n words; a sort is by two digits."""
    return LARGE_DIGIT if n > 4096 else SMALL_DIGIT


cdef inline void count_digits(const uint64_t *words, uint64_t n, int shift, int bits, uint64_t *counts) noexcept nogil:
    """Adds up how many of n words have each value of the low digit and of the high one."""
    cdef uint64_t values = <uint64_t>1 << bits
    cdef uint64_t *high = counts + values
    cdef uint64_t i
    for i in range(n):
        counts[(words[i] >> shift) & (values - 1)] += 1
        high[(words[i] >> (shift + bits)) & (values - 1)] += 1


cdef inline void counts_to_places(uint64_t *counts, int bits) noexcept nogil:
    """Turns the number of words with each value of a digit into the place of the first of them."""
    cdef uint64_t i, n, start = 0
    for i in range(<uint64_t>1 << bits):
        n = counts[i]
        counts[i] = start
        start += n


cdef inline void move_by_digit(const uint64_t *source, uint64_t *target, uint64_t n, int shift, int bits,
                               uint64_t *places) noexcept nogil:
    """Moves n words, each to the next place for its value of a digit."""
    cdef uint64_t values = <uint64_t>1 << bits
    cdef uint64_t i, digit
    for i in range(n):
        digit = (source[i] >> shift) & (values - 1)
        target[places[digit]] = source[i]
        places[digit] += 1


cdef inline void sort_words(uint64_t *words, uint64_t *scratch, uint64_t n, int shift, int bits,
                            uint64_t *counts) noexcept nogil:
    """Sorts n words by two digits of `bits` bits from `shift` on.

    `scratch` has room for n words, `counts` for SORT_COUNTS.
    """
    cdef uint64_t *high = counts + (<uint64_t>1 << bits)
    memset(counts, 0, 2 * sizeof(uint64_t) << bits)
    count_digits(words, n, shift, bits, counts)
    counts_to_places(counts, bits)
    counts_to_places(high, bits)
    move_by_digit(words, scratch, n, shift, bits, counts)
    move_by_digit(scratch, words, n, shift + bits, bits, high)


cdef inline int sort_many_words(uint64_t *words, uint64_t *scratch, uint64_t n, int shift, int bits, uint64_t *counts,
                                Breath *breath) except -1 nogil:
    """As sort_words, for any number of words, with breaths in between. Raises what a breath does."""
    cdef uint64_t *high = counts + (<uint64_t>1 << bits)
    cdef uint64_t block, start
    memset(counts, 0, 2 * sizeof(uint64_t) << bits)
    for block in range(blocks_of(n)):
        start = block * WORDS_AT_ONCE
        count_digits(words + start, min(n - start, <uint64_t>WORDS_AT_ONCE), shift, bits, counts)
        spend(breath, 2 * WORDS_AT_ONCE)
    counts_to_places(counts, bits)
    counts_to_places(high, bits)
    for block in range(blocks_of(n)):
        start = block * WORDS_AT_ONCE
        move_by_digit(words + start, scratch, min(n - start, <uint64_t>WORDS_AT_ONCE), shift, bits, counts)
        spend(breath, 4 * WORDS_AT_ONCE)
    for block in range(blocks_of(n)):
        start = block * WORDS_AT_ONCE
        move_by_digit(scratch + start, words, min(n - start, <uint64_t>WORDS_AT_ONCE), shift + bits, bits, high)
        spend(breath, 4 * WORDS_AT_ONCE)
    return 0
