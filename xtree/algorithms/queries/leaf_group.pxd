"""Leaves that neighbouring queries share: one descent finds those that a group of queries may reach.

Each query then tests the boxes of those few leaves rather than the directory pages above its own.
"""

from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.kernels.box cimport MAX_DIMS
from xtree.algorithms.kernels.forms cimport SLACK
from xtree.persistence.base.breath cimport Breath
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store
from xtree.algorithms.tree_state cimport TreeState
from xtree.algorithms.queries.walk cimport Predicate, Walk

cdef enum:
    MOST_LEAVES = 64                # as many as the kernels take at a time


cdef struct LeafGroup:
    bint together                   # whether the queries of the group share its leaves; else each walks alone
    int dims
    Predicate predicate
    int64_t size                    # queries of the next group
    int64_t count                   # leaves
    NodeID nodes[MOST_LEAVES + SLACK]
    double *columns                 # their boxes: 2 * dims columns of MOST_LEAVES; NULL until there is a group
    double region[2 * MAX_DIMS]     # around the queries
    NodeID reached[2 * (MOST_LEAVES + SLACK)]       # by the query that leaves_of was last called for
    Walk walk                       # to the pages above the leaves


# `group` has to stay where it is until close_group.
cdef void open_group(LeafGroup *group, Store store, TreeState state, Predicate predicate,
                     Breath *breath) noexcept nogil
cdef void close_group(LeafGroup *group) noexcept nogil
# Prepares the group of queries, [mins, maxs], that begins with number `first` of an order of m (NULL: no order);
# returns the number past its last. Raises CorruptionError, MemoryError, and what a breath does.
cdef int64_t next_group(LeafGroup *group, Store store, TreeState state, const double *queries, const uint64_t *order,
                        int64_t first, int64_t m) except -1 nogil
# Puts the leaves that a query of the group reaches into `reached`; returns how many. Those from `crossing` on lie
# inside the window, so that all of their records qualify.
cdef int64_t leaves_of(LeafGroup *group, const double *query, int64_t *crossing) noexcept nogil
