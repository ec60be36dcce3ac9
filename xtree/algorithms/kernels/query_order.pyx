"""Orders queries by the Hilbert key of their centres."""

from cpython.buffer cimport PyBuffer_Release
from libc.string cimport memcpy

from xtree.algorithms.kernels.arrays cimport borrow, data_of, raise_no_memory
from xtree.algorithms.kernels.box cimport lift_of
from xtree.persistence.base.breath cimport Breath, first_breath, spend
from xtree.persistence.base.memory cimport allocate, release
from xtree.algorithms.kernels.radix cimport LARGE_DIGIT, SORT_COUNTS, WORDS_AT_ONCE, blocks_of, sort_many_words

import numpy as np

cdef enum:
    CELL_BITS = LARGE_DIGIT         # per axis: two axes fit the two digits of one radix sort
    CELLS = 2048


cdef inline uint32_t _cell(double low, double high, double least, double most, double lift) noexcept nogil:
    """The cell of an interval's centre, clipped to the bounds; right for any extents, and for infinite ends too."""
    cdef double centre, extent
    low = low if low > least else least
    high = high if high < most else most
    centre = 0.25 * lift * low + 0.25 * lift * high - 0.5 * lift * least    # at half size, as is the extent
    extent = 0.5 * lift * most - 0.5 * lift * least
    centre = centre / extent * CELLS if extent > 0 else 0.0
    return <uint32_t>(centre if centre > 0 else 0.0) if centre < CELLS else CELLS - 1


cdef int order_queries(const double *queries, uint64_t m, int dims, bint boxed, const double *bounds,
                       uint64_t **numbers, Breath *breath) except -1 nogil:
    cdef uint64_t *order = <uint64_t *>allocate((2 * m + SORT_COUNTS) * sizeof(uint64_t))
    cdef uint64_t block, start, i
    if order == NULL:
        raise_no_memory()
    numbers[0] = order
    for block in range(blocks_of(m)):
        start = block * WORDS_AT_ONCE
        _find_keys(queries, start, min(start + WORDS_AT_ONCE, m), dims, boxed, bounds, order)
        spend(breath, 16 * WORDS_AT_ONCE)
    sort_many_words(order, order + m, m, 0, LARGE_DIGIT, order + 2 * m, breath)
    for i in range(m):
        order[i] >>= 2 * CELL_BITS
    return 0


cdef void _find_keys(const double *queries, uint64_t first, uint64_t end, int dims, bint boxed, const double *bounds,
                     uint64_t *words) noexcept nogil:
    """Writes words of number and key for the queries from `first` to `end`."""
    cdef int width = 2 * dims if boxed else dims
    cdef int to_high = dims if boxed else 0
    cdef const double *query
    cdef uint64_t i
    cdef uint32_t x, y
    cdef int axis
    cdef double[2] lift
    for axis in range(min(dims, 2)):
        lift[axis] = lift_of(bounds[axis], bounds[dims + axis])
    for i in range(first, end):
        query = queries + i * width
        x = _cell(query[0], query[to_high], bounds[0], bounds[dims], lift[0])
        y = _cell(query[1], query[1 + to_high], bounds[1], bounds[dims + 1], lift[1]) if dims > 1 else 0
        words[i] = i << 2 * CELL_BITS | hilbert_key(x << 16 - CELL_BITS, y << 16 - CELL_BITS) >> 2 * (16 - CELL_BITS)


cdef void counts_to_starts(int64_t *counts, int64_t m) noexcept nogil:
    cdef int64_t i, n, total = 0
    for i in range(m):
        n = counts[i]
        counts[i] = total
        total += n
    counts[m] = total


cdef int restore_offsets(const int64_t *starts, const uint64_t *order, int64_t m, int64_t *offsets,
                         Breath *breath) except -1 nogil:
    cdef uint64_t block
    cdef int64_t start, i
    for block in range(blocks_of(m)):
        start = block * WORDS_AT_ONCE
        for i in range(start, min(start + WORDS_AT_ONCE, m)):
            offsets[order[i]] = starts[i + 1] - starts[i]
        spend(breath, 8 * WORDS_AT_ONCE)
    counts_to_starts(offsets, m)
    return 0


cdef int restore_words(const uint64_t *found, const int64_t *starts, const uint64_t *order, int64_t m,
                       const int64_t *offsets, uint64_t *restored, Breath *breath) except -1 nogil:
    cdef int64_t i
    for i in range(m):
        if starts[i + 1] > starts[i]:
            memcpy(restored + offsets[order[i]], found + starts[i], (starts[i + 1] - starts[i]) * sizeof(uint64_t))
            spend(breath, 8 + starts[i + 1] - starts[i])
    return 0


def hilbert_order(boxes, int dims, bounds) -> np.ndarray:
    """The row numbers of boxes, float64 (m, 2 * dims), along the curve within `bounds`, float64 (2 * dims,)."""
    cdef Py_buffer rows, region
    cdef uint64_t *order = NULL
    cdef Breath breath
    cdef uint64_t m = borrow(boxes, &rows, 2 * dims * sizeof(double))
    first_breath(&breath, None)
    try:
        borrow(bounds, &region, 2 * dims * sizeof(double))
        try:
            numbers = np.empty(m, dtype=np.int64)
            order_queries(<const double *>rows.buf, m, dims, True, <const double *>region.buf, &order, &breath)
            for i in range(m):
                (<uint64_t *>data_of(numbers))[i] = order[i]
            return numbers
        finally:
            release(order)
            PyBuffer_Release(&region)
    finally:
        PyBuffer_Release(&rows)
