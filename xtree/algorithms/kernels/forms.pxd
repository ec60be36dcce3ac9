"""Kernels: the tight loops over a page's columns, as function pointers to the form this processor runs best.

The form is chosen once, at import, and never changes; all forms give the same bits (window_kernels.h,
distance_kernels.h).
"""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "window_kernels.h" nogil:
    enum:
        SLACK "XT_SLACK"            # words past the last result that a kernel may overwrite

    # An entry passes when first[a] <= most[a] and second[a] >= least[a] on every axis a.
    ctypedef struct WindowTest "xt_test":
        const double *first         # columns, `stride` doubles apart
        const double *second
        int64_t stride
        const double *most
        const double *least
        int lead                    # the axis to test first: one that the entries are sorted along, if there is one

    ctypedef int64_t (*Select "xt_select")(const WindowTest *test, int dims, int64_t count, const uint64_t *refs,
                                           uint64_t *hits) noexcept nogil
    ctypedef void (*Divide "xt_divide")(const WindowTest *test, int dims, int64_t count, const uint64_t *refs,
                                        uint64_t *crossing, int64_t *crossing_count, uint64_t *inside,
                                        int64_t *inside_count) noexcept nogil
    ctypedef void (*Span "xt_span")(const WindowTest *test, int64_t count, int64_t *first,
                                    int64_t *end) noexcept nogil


cdef extern from "distance_kernels.h" nogil:
    double SAFE_LEAST "XT_SAFE_LEAST"
    double SAFE_MOST "XT_SAFE_MOST"

    ctypedef void (*Distances "xt_distances")(const double *lower, const double *upper, int64_t stride, int dims,
                                              int64_t count, const double *point, double *out) noexcept nogil
    # For a distance outside [SAFE_LEAST, SAFE_MOST]: without overflow or underflow on the way.
    double scaled_distance "xt_scaled_distance"(const double *lower, const double *upper, int64_t stride, int dims,
                                                const double *point) noexcept


# The kernels of one instruction set.
cdef struct Form:
    Select select
    Divide divide
    Span span
    Distances distances


# A form by its name. Raises ValueError for one that this processor can't run.
cdef Form form_of(str name) except *

cdef Select select                  # refs of the entries that pass, compressed and in order; returns how many
cdef Divide divide                  # the same in two lists: entries that cross the window, entries inside it
cdef Span span                      # from the first to past the last entry that passes on the leading axis
cdef Distances distances            # Euclidean distance of a point to every box
