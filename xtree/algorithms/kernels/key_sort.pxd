"""Sorting the entries of a page along an axis."""

from libc.stdint cimport uint64_t


cdef struct SortKey:
    double key
    double tie
    int entry


# Sorts n entries by (key, tie), stably; returns which of the two arrays holds the result. Quick where they are nearly
# in order.
cdef const SortKey *sort(SortKey *keys, SortKey *spare, int n) noexcept nogil

# The same, quick for any order. `words` has room for 2 * n + SORT_COUNTS (radix.pxd).
cdef const SortKey *sort_scattered(SortKey *keys, SortKey *spare, int n, uint64_t *words) noexcept nogil
