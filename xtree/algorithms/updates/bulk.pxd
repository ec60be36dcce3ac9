"""Bulk load: a packed tree, cut top-down from all records and written page by page, in one thread or several.

What the threads of one load share; no two of them cut the same records or write the same pages:

    field                      written by                              read by             order
    what plan() makes          plan(), before there are other threads  all                 starting a thread
    order, scratch             the thread that has these records       the same thread     starting and joining threads
    pages, entries of parents  the thread that writes these children   its starter         joining threads
    done                       all                                     all                 atomic
    team                       breath.pxd
    reported                   the calling thread                      the calling thread  -
"""

from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.bucket cimport Bucket
from xtree.persistence.base.breath cimport Breath, Team
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.write_set cimport WriteSet
from xtree.algorithms.tree_state cimport MAX_LEVELS, TreeState


cdef struct Worker:                 # a thread
    uint64_t *counts                # of the radix sort
    Breath breath
    bint calls                      # whether it is the calling thread, which reports


cdef struct Cut:                    # how some children of a page, and their records, are cut apart
    Bucket *parent
    uint64_t eldest                 # the number of the parent's first child
    int level                       # of the children
    uint64_t first, last            # the children
    uint64_t parts
    int axis                        # the next one to cut slabs along
    uint64_t history                # the axes cut so far below the parent


cdef class PackedBuild:
    """One bulk load: what is to be loaded, the pages of each level, and the order of the records so far."""

    cdef WriteSet ws
    cdef TreeState state
    cdef object progress
    cdef Team team                  # all threads of the load
    cdef const int64_t *ids         # borrowed, as are the boxes
    cdef const double *boxes
    cdef uint64_t records, done, reported
    cdef int levels
    cdef uint64_t pages[MAX_LEVELS]
    cdef uint64_t before[MAX_LEVELS]    # pages of the levels below
    cdef NodeID *nodes              # of all pages, level by level from the leaves up
    cdef char **places              # where each is written
    cdef uint64_t *order            # per record: sort key << 32 | number in the input
    cdef uint64_t *scratch          # as large as `order`

    cdef int plan(self) except -1
    cdef uint64_t first_child(self, int level, uint64_t page) noexcept nogil
    cdef uint64_t first_record(self, int level, uint64_t page) noexcept nogil
    cdef int take_pages(self, int level, uint64_t page, Breath *breath) except -1 nogil
    cdef Bucket *empty_page(self, int level, uint64_t page) noexcept nogil
    cdef int write_root(self, double *box, int threads) except -1 nogil
    cdef int write_page(self, int level, uint64_t page, double *box, Worker *worker, int threads) except -1 nogil
    cdef int write_leaf(self, uint64_t page, double *box, Worker *worker) except -1 nogil
    cdef int write_children(self, Cut c, Worker *worker, int threads) except -1 nogil
    cdef int write_parts(self, const Cut *c, uint64_t part, uint64_t end, Worker *worker, int threads) except -1 nogil
    cdef int write_in_threads(self, const Cut *c, Worker *worker, int threads) except -1
    cdef int pick_cut(self, Cut *c, Breath *breath) except -1 nogil
    cdef int cut(self, const Cut *c, int along, Worker *worker) except -1 nogil
    cdef int settle(self, uint64_t position, uint64_t first, uint64_t last, int axis, int ties,
                    Worker *worker) except -1 nogil
    cdef int sort_ties(self, uint64_t first, uint64_t last, int axis, int ties, Worker *worker) except -2 nogil
    cdef int sort_by(self, uint64_t first, uint64_t last, int key, Worker *worker) except -1 nogil
    cdef int are_equal(self, uint64_t first, uint64_t last, Breath *breath) except -1 nogil
    cdef int take_keys(self, uint64_t first, uint64_t last, int key, double *keys, double *least, double *most,
                       Breath *breath) except -1 nogil
    cdef int take_places(self, uint64_t first, uint64_t last, int axis, bint centres, double factor, double *keys,
                         double *least, double *most, Breath *breath) except -1 nogil
    cdef int are_tiny(self, uint64_t first, uint64_t last, int axis, Breath *breath) except -1 nogil
    cdef int measure_spreads(self, uint64_t first, uint64_t last, double *spreads, Breath *breath) except -1 nogil
    cdef void sample_spreads(self, uint64_t first, uint64_t last, double factor, double *spreads) noexcept nogil
    cdef int report(self) except -1 nogil
