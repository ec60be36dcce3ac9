"""Orders queries by the Hilbert key of their centres."""

from cpython.buffer cimport PyBuffer_Release
from libc.string cimport memcpy

from xtree.arrays cimport borrow, data_of, raise_no_memory
from xtree.persistence.memory cimport allocate, release
from xtree.radix cimport LARGE_DIGIT, SORT_COUNTS, sort_words

import numpy as np

cdef enum:
    CELL_BITS = LARGE_DIGIT         # an axis: both fit the two digits of one radix sort
    CELLS = 2048


cdef inline uint32_t _cell(double low, double high, double least, double most) noexcept nogil:
    """The cell of an interval's centre, clipped to the bounds; whatever the extents, and for infinite ends too."""
    cdef double centre, extent
    low = low if low > least else least
    high = high if high < most else most
    centre = 0.25 * low + 0.25 * high - 0.5 * least     # at half size, as is the extent
    extent = 0.5 * most - 0.5 * least
    centre = centre / extent * CELLS if extent > 0 else 0.0
    return <uint32_t>(centre if centre > 0 else 0.0) if centre < CELLS else CELLS - 1


cdef uint64_t *order_queries(const double *queries, uint64_t m, int dims, bint boxed,
                             const double *bounds) except NULL nogil:
    cdef uint64_t *order = <uint64_t *>allocate((2 * m + SORT_COUNTS) * sizeof(uint64_t))
    cdef int width = 2 * dims if boxed else dims
    cdef int to_high = dims if boxed else 0
    cdef const double *query
    cdef uint64_t i
    cdef uint32_t x, y
    if order == NULL:
        raise_no_memory()
    for i in range(m):
        query = queries + i * width
        x = _cell(query[0], query[to_high], bounds[0], bounds[dims])
        y = _cell(query[1], query[1 + to_high], bounds[1], bounds[dims + 1]) if dims > 1 else 0
        order[i] = i << 2 * CELL_BITS | hilbert_key(x << 16 - CELL_BITS, y << 16 - CELL_BITS) >> 2 * (16 - CELL_BITS)
    sort_words(order, order + m, m, 0, LARGE_DIGIT, order + 2 * m)
    for i in range(m):
        order[i] >>= 2 * CELL_BITS
    return order


cdef void counts_to_starts(int64_t *counts, int64_t m) noexcept nogil:
    cdef int64_t i, n, total = 0
    for i in range(m):
        n = counts[i]
        counts[i] = total
        total += n
    counts[m] = total


cdef void restore_offsets(const int64_t *starts, const uint64_t *order, int64_t m, int64_t *offsets) noexcept nogil:
    cdef int64_t i
    for i in range(m):
        offsets[order[i]] = starts[i + 1] - starts[i]
    counts_to_starts(offsets, m)


cdef void restore_words(const uint64_t *found, const int64_t *starts, const uint64_t *order, int64_t m,
                        const int64_t *offsets, uint64_t *restored) noexcept nogil:
    cdef int64_t i
    for i in range(m):
        if starts[i + 1] > starts[i]:
            memcpy(restored + offsets[order[i]], found + starts[i], (starts[i + 1] - starts[i]) * sizeof(uint64_t))


def hilbert_order(boxes, int dims, bounds) -> np.ndarray:
    """The row numbers of boxes, float64 (m, 2 * dims), along the curve within `bounds`, float64 (2 * dims,)."""
    cdef Py_buffer rows, frame
    cdef uint64_t *order = NULL
    cdef uint64_t m = borrow(boxes, &rows, 2 * dims * sizeof(double))
    try:
        borrow(bounds, &frame, 2 * dims * sizeof(double))
        try:
            numbers = np.empty(m, dtype=np.int64)
            order = order_queries(<const double *>rows.buf, m, dims, True, <const double *>frame.buf)
            for i in range(m):
                (<uint64_t *>data_of(numbers))[i] = order[i]
            return numbers
        finally:
            release(order)
            PyBuffer_Release(&frame)
    finally:
        PyBuffer_Release(&rows)
