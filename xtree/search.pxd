"""Search: the walk from a root to the leaves that a window may reach."""

from libc.stdint cimport int64_t, uint64_t

from xtree.bucket cimport Bucket
from xtree.kernels cimport WindowTest
from xtree.persistence.node_id cimport NodeID
from xtree.persistence.store cimport Store
from xtree.tree_state cimport MAX_LEVELS, TreeState

cdef enum Predicate:                # of a record's box and the query box
    INTERSECTS = 0                  # closed: touching counts
    WITHIN = 1                      # the record's box lies inside the query box
    CONTAINS = 2                    # the record's box contains the query box


# A descent in progress. The stack holds, for the level being looked at and each one above it, the children of one page
# that are still to be visited; a level's children stand behind those of the level above. Of a level's children those
# from `inside` on lie inside the window, so that nothing below them needs a test.
cdef struct Walk:
    int dims
    int levels
    Predicate predicate
    const double *query             # [mins, maxs]; borrowed
    NodeID *stack
    int64_t room                    # entries of the stack
    int level                       # being looked at
    int64_t next[MAX_LEVELS]        # per level: the child to visit next
    int64_t inside[MAX_LEVELS]      # per level: the first child inside the window
    int64_t end[MAX_LEVELS]         # per level: behind the last child
    uint64_t visits
    uint64_t most_visits            # as many as there are handles: more means that a page is reached twice


# Prepares a walk over a tree; `walk.stack` may be kept from an earlier one. Raises MemoryError.
cdef int open_walk(Walk *walk, Store store, TreeState state, Predicate predicate) except -1 nogil
cdef void close_walk(Walk *walk) noexcept nogil
# Starts over, with a query box; NULL reaches every leaf.
cdef void start_walk(Walk *walk, TreeState state, const double *query) noexcept nogil
# The next leaf, in tree order, and whether all of its records qualify; NULL in `leaf` at the end.
# Raises CorruptionError, MemoryError.
cdef int next_leaf(Walk *walk, Store store, TreeState state, Bucket **leaf, bint *inside) except -1 nogil
# The test of a page's entries against the walk's query: of a record, or of a directory entry that may lead to one.
cdef void window_test(const Walk *walk, TreeState state, Bucket *b, WindowTest *test) noexcept nogil
