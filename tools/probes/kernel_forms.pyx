"""Every form of the kernels by its name, on columns from numpy, so that each can be compared with the others.

`first`, `second`, `lower` and `upper` are float64 (dims, stride) with a stride that is a multiple of 8. The first
`count` values of a column are entries; what stands after them is never part of an answer. All functions raise
ValueError for a form that this processor can't run and for arrays that don't fit together.
"""

from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.kernels.forms cimport SLACK, WindowTest, form_of

import numpy as np


cdef int _require(const double[:, ::1] first, const double[:, ::1] second, int64_t count, Py_ssize_t bounds,
                  Py_ssize_t more, int lead, Py_ssize_t refs) except -1:
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
    """The refs, of uint64 (stride,), of the entries that pass, and what stands in the room after them then."""
    _require(first, second, count, most.shape[0], least.shape[0], lead, refs.shape[0])
    cdef WindowTest test = _test(first, second, most, least, lead)
    room = np.zeros(first.shape[1] + 2 * SLACK, np.uint64)
    cdef uint64_t[::1] hits = room
    cdef int64_t n = form_of(form).select(&test, <int>first.shape[0], count, &refs[0], &hits[0])
    return room[:n], room[n:]


def divide(str form, const double[:, ::1] first, const double[:, ::1] second, const double[::1] most,
           const double[::1] least, int lead, int64_t count, const uint64_t[::1] refs):
    """The refs of the entries that cross the window, and of those inside it."""
    _require(first, second, count, most.shape[0], least.shape[0], lead, refs.shape[0])
    cdef WindowTest test = _test(first, second, most, least, lead)
    cdef int64_t n = 0, m = 0
    outer = np.zeros(first.shape[1] + 2 * SLACK, np.uint64)
    inner = np.zeros(first.shape[1] + 2 * SLACK, np.uint64)
    cdef uint64_t[::1] crossing = outer
    cdef uint64_t[::1] inside = inner
    form_of(form).divide(&test, <int>first.shape[0], count, &refs[0], &crossing[0], &n, &inside[0], &m)
    return outer[:n], inner[:m]


def span(str form, const double[:, ::1] first, const double[:, ::1] second, const double[::1] most,
         const double[::1] least, int lead, int64_t count):
    """(first, one after the last) of the entries that pass on the axis `lead`; begins at a multiple of 8."""
    _require(first, second, count, most.shape[0], least.shape[0], lead, first.shape[1])
    cdef WindowTest test = _test(first, second, most, least, lead)
    cdef int64_t begin = 0, end = 0
    form_of(form).span(&test, count, &begin, &end)
    return begin, end


def distances(str form, const double[:, ::1] lower, const double[:, ::1] upper, const double[::1] point, int64_t count):
    """The distance of a point to each box, float64 (count,)."""
    _require(lower, upper, count, point.shape[0], point.shape[0], 0, lower.shape[1])
    out = np.zeros(lower.shape[1])
    cdef double[::1] found = out
    form_of(form).distances(&lower[0, 0], &upper[0, 0], lower.shape[1], <int>lower.shape[0], count, &point[0],
                            &found[0])
    return out[:count]
