"""Splitting an overfull page: the R*-tree's topological split, and the X-tree's by split history.

One thread at a time. The entries are gathered first, then planned, then written: the groups written are the
groups that were scored.
"""

cimport cython
from libc.stdint cimport uint64_t

from xtree.algorithms.kernels.box cimport UnitSpace
from xtree.algorithms.bucket cimport Bucket, Geometry
from xtree.algorithms.kernels.key_sort cimport SortKey

cdef enum Decision:
    STAY_WHOLE = 0                  # the page should become a larger supernode
    SPLIT_ON_AXIS = 1
    SPLIT_BY_POSITION = 2           # of equal boxes: no axis tells the groups apart


cdef struct Cut:                    # the first `first` entries of an order against the rest
    int first                       # 0: no cut
    double overlap
    double volume


@cython.final
cdef class Splitter:
    """The entries of one overfull page, and the working space for its split; reused from split to split."""

    cdef UnitSpace space                # of all the entries
    cdef int dims, count
    cdef int room                   # entries there is space for: the stride of the columns below
    cdef void *block                # one allocation for all that follows
    cdef double *columns            # 2 * dims: the entries' boxes as they are
    cdef double *units              # 2 * dims: the same in the unit space
    cdef uint64_t *refs
    cdef uint64_t *history
    cdef double *work               # SWEEP_ARRAYS arrays of `room`, indexed by the size of the first group
    cdef uint64_t *sort_words
    cdef SortKey *keys
    cdef SortKey *spare_keys
    cdef const SortKey *sorted_keys     # one of the two
    cdef int *order                 # of the plan: the first group, then the second
    cdef int *axis_order            # the best found on the axis being tried
    cdef int *candidate             # the order being scored
    # The plan.
    cdef int axis                   # what tells the groups apart, unless they are split by position
    cdef int first                  # entries in the first group
    cdef double overlap             # volume(s1 ∩ s2) / (v1 + v2 - v12), 0 for 0/0

    # Takes the entries of a page, and one more at a position among them.
    cdef int gather(self, const Geometry *g, Bucket *b, int position, const double *box, uint64_t ref,
                    uint64_t split_history) except -1 nogil
    # Where the plan cuts between equal boxes of a leaf, puts their records in the order of their ids.
    cdef void order_ids(self, const Geometry *g) noexcept nogil
    # Plans the split of what was gathered; decides STAY_WHOLE only if `may_stay`.
    cdef Decision plan(self, const Geometry *g, bint may_stay) noexcept nogil
    # Writes the first or the second group of the plan as the only entries of a page of the gathered one's kind.
    cdef void write_group(self, const Geometry *g, int group, Bucket *target) noexcept nogil

    # The axes on which every entry gathered has been split before.
    cdef uint64_t common_history(self) noexcept nogil

    cdef int make_room(self, int dims, int count) except -1 nogil
    cdef void measure(self) noexcept nogil
    cdef void plan_topological(self, double min_fill) noexcept nogil
    cdef bint plan_by_history(self, double min_fanout, double max_overlap) noexcept nogil
    cdef bint plan_equal(self) noexcept nogil
    cdef void sort_along(self, int axis, bint by_upper) noexcept nogil
    cdef void sweep(self) noexcept nogil
    cdef bint all_equal(self) noexcept nogil
    cdef bint are_equal(self, int entry, int other) noexcept nogil
