"""Sorting the entries of a page along an axis."""


cdef struct SortKey:
    double key
    double tie
    int entry


# Sorts n entries by (key, tie), stably; returns which of the two arrays holds the result.
cdef const SortKey *sort(SortKey *keys, SortKey *spare, int n) noexcept nogil
