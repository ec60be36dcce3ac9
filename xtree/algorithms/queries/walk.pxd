"""The walk from a tree's root to the pages that a query box may reach."""

from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.queries.explain cimport LevelAccesses
from xtree.algorithms.bucket cimport Bucket
from xtree.algorithms.kernels.forms cimport WindowTest
from xtree.persistence.base.breath cimport Breath
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store
from xtree.algorithms.tree_state cimport MAX_LEVELS, TreeState

cdef enum:
    FIRST_STACK = 512               # entries

cdef enum Predicate:                # of a record's box and the query box
    INTERSECTS = 0                  # closed: touching counts
    INSIDE = 1                      # the record's box lies inside the query box
    AROUND = 2                      # the record's box contains the query box


# A descent in progress. The stack holds, for the level being looked at and each one above it, the children of one page
# that are still to be visited; the children of a level come after those of the level above. Those of a level from
# `inside` on lie inside the window, so that nothing below them needs a test.
cdef struct Walk:
    int dims
    int levels
    int bottom                      # level of the pages that the walk returns
    Predicate predicate
    const double *query             # [mins, maxs]; borrowed
    NodeID *stack
    int64_t room                    # entries of the stack
    NodeID first_stack[FIRST_STACK]     # which is this one, unless it has grown
    int level                       # being looked at
    int64_t next[MAX_LEVELS]        # per level: the child to visit next
    int64_t inside[MAX_LEVELS]      # per level: the first child inside the window
    int64_t end[MAX_LEVELS]         # per level: past the last child
    uint64_t visits
    LevelAccesses *accesses         # borrowed; NULL: nobody counts the directory pages
    Breath *breath                  # borrowed
    int64_t leaf_work
    uint64_t most_visits            # as many as there are handles: more means that a page is reached twice


# Prepares walks over a tree to its pages of the level `bottom`. `walk` has to stay where it is until close_walk.
cdef void open_walk(Walk *walk, Store store, TreeState state, Predicate predicate, int bottom,
                    Breath *breath) noexcept nogil
cdef void close_walk(Walk *walk) noexcept nogil
# Starts over, with a query box; NULL reaches every page.
cdef void start_walk(Walk *walk, TreeState state, const double *query) noexcept nogil
# Returns whether there is another page; sets which, and whether all below it qualifies. The caller resolves it. Raises
# CorruptionError, MemoryError, and what a breath does.
cdef int next_page(Walk *walk, Store store, TreeState state, NodeID *page, bint *inside) except -1 nogil
# The test of a page's entries against a query: of records, or of directory entries that may lead to one.
cdef void window_test(TreeState state, Bucket *b, Predicate predicate, const double *query,
                      WindowTest *test) noexcept nogil
