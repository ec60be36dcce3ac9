/* Counting and finding bits in 64-bit words. */
#ifndef XTREE_BITS_H
#define XTREE_BITS_H

#include <stdint.h>

#if defined(_MSC_VER)
#include <intrin.h>
static inline int xt_lowest_bit(uint64_t word) {
    unsigned long bit;
    _BitScanForward64(&bit, word);
    return (int)bit;
}
static inline int xt_highest_bit(uint64_t word) {
    unsigned long bit;
    _BitScanReverse64(&bit, word);
    return (int)bit;
}
static inline int xt_count_bits(uint64_t word) {
    int count = 0;
    for (; word; word &= word - 1)
        count++;
    return count;
}
#else
static inline int xt_lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
static inline int xt_highest_bit(uint64_t word) { return 63 - __builtin_clzll(word); }
static inline int xt_count_bits(uint64_t word) { return __builtin_popcountll(word); }
#endif

#endif
