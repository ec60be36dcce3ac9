"""Bulk load: a packed tree, cut top-down from all records and written page by page."""

from libc.stdint cimport int64_t, uint64_t

from xtree.bucket cimport Bucket
from xtree.persistence.node_id cimport NodeID
from xtree.persistence.write_set cimport WriteSet
from xtree.tree_state cimport MAX_LEVELS, TreeState


cdef class PackedBuild:
    """One bulk load: what is to be loaded, how many pages each level gets, and the order of the records so far."""

    cdef WriteSet ws
    cdef TreeState state
    cdef object progress
    cdef const int64_t *ids         # borrowed, as are the boxes
    cdef const double *boxes
    cdef uint64_t records, done, reported
    cdef int levels
    cdef uint64_t pages[MAX_LEVELS]
    cdef uint64_t *order            # per record: sort key << 32 | number in the input
    cdef uint64_t *scratch          # as large as `order`
    cdef uint64_t *counts           # of the radix sort

    cdef int plan(self) except -1
    cdef uint64_t first_child(self, int level, uint64_t page) noexcept nogil
    cdef uint64_t first_record(self, int level, uint64_t page) noexcept nogil
    cdef NodeID write_page(self, int level, uint64_t page, double *box) except 0 nogil
    cdef NodeID write_leaf(self, uint64_t first, uint64_t last, double *box) except 0 nogil
    cdef int write_children(self, Bucket *parent, int level, uint64_t first, uint64_t last, int axis,
                            uint64_t history) except -1 nogil
    cdef int pick_cut(self, int level, uint64_t first, uint64_t last, int axis, uint64_t *parts) noexcept nogil
    cdef void cut(self, int level, uint64_t first, uint64_t last, int axis, uint64_t parts) noexcept nogil
    cdef void settle(self, uint64_t position, uint64_t first, uint64_t last, int axis) noexcept nogil
    cdef bint sort_centres(self, uint64_t first, uint64_t last, int axis) noexcept nogil
    cdef void sample_spreads(self, uint64_t first, uint64_t last, double *spreads) noexcept nogil
    cdef int report(self) except -1 nogil
