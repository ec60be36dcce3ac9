"""Sorting entries of a page by a key, then by another: stable, without allocations. docs: key_sort.pxd."""

from libc.float cimport DBL_MAX
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from xtree.algorithms.kernels.radix cimport digit_bits, sort_words

cdef enum:
    RUN = 12                        # entries sorted by insertion, before runs are merged
    ENTRY_BITS = 32                 # low bits of a word of the first, coarse sort: the number of an entry


cdef inline bint precedes(const SortKey *a, const SortKey *b) noexcept nogil:
    return a.key < b.key or (a.key == b.key and a.tie < b.tie)


cdef const SortKey *sort(SortKey *keys, SortKey *spare, int n) noexcept nogil:
    # Sorts runs by insertion, then merges them from array to array.
    cdef int start = 0
    cdef int width = RUN
    cdef SortKey *source = keys
    cdef SortKey *target = spare
    while start < n:
        insertion_sort(keys + start, min(width, n - start))
        start += width
    while width < n:
        start = 0
        while start < n:
            merge(source, target, start, min(start + width, n), min(start + 2 * width, n))
            start += 2 * width
        source, target = target, source
        width *= 2
    return source


cdef const SortKey *sort_scattered(SortKey *keys, SortKey *spare, int n, uint64_t *words) noexcept nogil:
    # First sorts by the cell of a grid from the least to the greatest key: a radix sort has no branches to mispredict.
    cdef double least = DBL_MAX
    cdef double most = -DBL_MAX
    cdef double scale
    cdef int bits = digit_bits(n)
    cdef uint64_t cells = <uint64_t>1 << 2 * bits
    cdef uint64_t cell
    cdef int i
    for i in range(n):
        least = keys[i].key if keys[i].key < least else least
        most = keys[i].key if keys[i].key > most else most
    if not most > least:
        return sort(keys, spare, n)
    scale = min(cells / (0.5 * most - 0.5 * least), DBL_MAX)    # halves, so that no difference overflows
    for i in range(n):
        cell = <uint64_t>((0.5 * keys[i].key - 0.5 * least) * scale)
        words[i] = min(cell, cells - 1) << ENTRY_BITS | <uint64_t>i
    sort_words(words, words + n, n, ENTRY_BITS, bits, words + 2 * n)
    for i in range(n):
        spare[i] = keys[<uint32_t>words[i]]
    return sort(spare, keys, n)


cdef void insertion_sort(SortKey *keys, int n) noexcept nogil:
    cdef int i, j
    cdef SortKey moving
    for i in range(1, n):
        moving = keys[i]
        j = i
        while j > 0 and precedes(&moving, &keys[j - 1]):
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = moving


cdef void merge(const SortKey *source, SortKey *target, int start, int middle, int stop) noexcept nogil:
    cdef int left = start
    cdef int right = middle
    cdef int i
    if middle == stop or not precedes(&source[middle], &source[middle - 1]):
        memcpy(target + start, source + start, (stop - start) * sizeof(SortKey))
        return
    for i in range(start, stop):
        if left < middle and (right >= stop or not precedes(&source[right], &source[left])):
            target[i] = source[left]
            left += 1
        else:
            target[i] = source[right]
            right += 1
