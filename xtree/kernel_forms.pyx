"""Every form of the kernels by its name, on columns from numpy, so that each can be held against the others.

`first`, `second`, `lower` and `upper` are float64 (dims, stride) with a stride that is a multiple of 8; `count` of a
column's values are entries, what stands behind them is never part of an answer. All functions raise ValueError for a
form that this processor can't run and for arrays that don't fit together.
"""

from libc.stdint cimport int64_t, uint64_t

from xtree.kernels cimport SLACK, Distances, Divide, Select, Span, WindowTest

import numpy as np

from xtree.kernels import available

cdef extern from "distance_kernels.h" nogil:
    Select select_portable "xt_select_portable", select_avx2 "xt_select_avx2", select_avx512 "xt_select_avx512"
    Divide divide_portable "xt_divide_portable", divide_avx2 "xt_divide_avx2", divide_avx512 "xt_divide_avx512"
    Span span_portable "xt_span_portable", span_avx2 "xt_span_avx2", span_avx512 "xt_span_avx512"
    Distances distances_portable "xt_distances_portable", distances_avx2 "xt_distances_avx2"
    Distances distances_avx512 "xt_distances_avx512"


cdef int _require(str form, const double[:, ::1] first, const double[:, ::1] second, int64_t count, Py_ssize_t bounds,
                  Py_ssize_t more, int lead, Py_ssize_t refs) except -1:
    if form not in available():
        raise ValueError(f"{form!r} is no form that this processor runs: {', '.join(available())}")
    if first.shape[0] != second.shape[0] or first.shape[1] != second.shape[1] or first.shape[1] % 8:
        raise ValueError("two arrays of equally many columns, with a stride that is a multiple of 8, are needed")
    if not 0 <= count <= first.shape[1] == refs or not bounds == more == first.shape[0] > lead >= 0:
        raise ValueError("count, refs, bounds and columns don't fit together")
    return 0


cdef WindowTest _test(const double[:, ::1] first, const double[:, ::1] second, const double[::1] most,
                      const double[::1] least, int lead):
    cdef WindowTest test
    test.first, test.second, test.stride = &first[0, 0], &second[0, 0], first.shape[1]
    test.most, test.least, test.lead = &most[0], &least[0], lead
    return test


def select(str form, const double[:, ::1] first, const double[:, ::1] second, const double[::1] most,
           const double[::1] least, int lead, int64_t count, const uint64_t[::1] refs):
    """The refs, of uint64 (stride,), of the entries that pass, and what stands in the room behind them afterwards."""
    _require(form, first, second, count, most.shape[0], least.shape[0], lead, refs.shape[0])
    cdef WindowTest test = _test(first, second, most, least, lead)
    cdef Select chosen = select_portable
    if form == "avx512":
        chosen = select_avx512
    elif form == "avx2":
        chosen = select_avx2
    room = np.zeros(first.shape[1] + 2 * SLACK, np.uint64)
    cdef uint64_t[::1] hits = room
    cdef int64_t n = chosen(&test, <int>first.shape[0], count, &refs[0], &hits[0])
    return room[:n], room[n:]


def divide(str form, const double[:, ::1] first, const double[:, ::1] second, const double[::1] most,
           const double[::1] least, int lead, int64_t count, const uint64_t[::1] refs):
    """The refs of the entries that cross the window, and of those inside it."""
    _require(form, first, second, count, most.shape[0], least.shape[0], lead, refs.shape[0])
    cdef WindowTest test = _test(first, second, most, least, lead)
    cdef Divide chosen = divide_portable
    cdef int64_t n = 0, m = 0
    if form == "avx512":
        chosen = divide_avx512
    elif form == "avx2":
        chosen = divide_avx2
    outer = np.zeros(first.shape[1] + 2 * SLACK, np.uint64)
    inner = np.zeros(first.shape[1] + 2 * SLACK, np.uint64)
    cdef uint64_t[::1] crossing = outer
    cdef uint64_t[::1] inside = inner
    chosen(&test, <int>first.shape[0], count, &refs[0], &crossing[0], &n, &inside[0], &m)
    return outer[:n], inner[:m]


def span(str form, const double[:, ::1] first, const double[:, ::1] second, const double[::1] most,
         const double[::1] least, int lead, int64_t count):
    """(first, behind the last) of the entries that pass on the axis `lead`; begins at a multiple of 8."""
    _require(form, first, second, count, most.shape[0], least.shape[0], lead, first.shape[1])
    cdef WindowTest test = _test(first, second, most, least, lead)
    cdef Span chosen = span_portable
    cdef int64_t begin = 0, end = 0
    if form == "avx512":
        chosen = span_avx512
    elif form == "avx2":
        chosen = span_avx2
    chosen(&test, count, &begin, &end)
    return begin, end


def distances(str form, const double[:, ::1] lower, const double[:, ::1] upper, const double[::1] point, int64_t count):
    """The distance of a point to each box, float64 (count,)."""
    _require(form, lower, upper, count, point.shape[0], point.shape[0], 0, lower.shape[1])
    cdef Distances chosen = distances_portable
    if form == "avx512":
        chosen = distances_avx512
    elif form == "avx2":
        chosen = distances_avx2
    out = np.zeros(lower.shape[1])
    cdef double[::1] found = out
    chosen(&lower[0, 0], &upper[0, 0], lower.shape[1], <int>lower.shape[0], count, &point[0], &found[0])
    return out[:count]
