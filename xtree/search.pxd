"""Search: the walk from a root to the leaves that a window may reach."""

from libc.stdint cimport int64_t, uint64_t

from xtree.accesses cimport LevelAccesses
from xtree.bucket cimport Bucket
from xtree.kernels cimport WindowTest
from xtree.persistence.node_id cimport NodeID
from xtree.persistence.store cimport Store
from xtree.tree_state cimport MAX_LEVELS, TreeState

cdef enum:
    FIRST_STACK = 512               # entries

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
    NodeID first_stack[FIRST_STACK]     # which is this one, unless it has grown
    int level                       # being looked at
    int64_t next[MAX_LEVELS]        # per level: the child to visit next
    int64_t inside[MAX_LEVELS]      # per level: the first child inside the window
    int64_t end[MAX_LEVELS]         # per level: behind the last child
    uint64_t visits
    LevelAccesses *accesses         # borrowed; NULL: nobody counts the directory pages
    uint64_t most_visits            # as many as there are handles: more means that a page is reached twice


# A leaf that a walk has found, on its way through the pipeline.
cdef struct FoundLeaf:
    NodeID node
    const double *query
    int64_t number                  # of the query in its batch
    bint inside                     # all records qualify
    Bucket *page                    # known, as are the next two, once it has been looked at
    int64_t first                   # records that may qualify
    int64_t end


# Leaves on their way from the walk to the results, across the queries of a batch. Each stage asks the memory for what
# the next one reads, and leaves it the time of a few other leaves to come.
cdef enum:
    PIPELINE = 16                   # places, at least TAKEN
    ASKED = 3                       # leaves found since: its row is at hand, its page is asked for
    LOOKED = 7                      # its leading axis is at hand, the rest of the entries that passed it is asked for
    TAKEN = 11                      # its records go to the results


# query_one on a valid box: an array of ids. Raises CorruptionError, MemoryError.
cdef object ids_of_one(Store store, TreeState state, const double *box, Predicate predicate)
# How many records qualify for a valid box. Raises CorruptionError, MemoryError.
cdef int64_t count_of_one(Store store, TreeState state, const double *box, Predicate predicate) except -1
# Prepares walks over a tree. `walk` has to stay where it is until close_walk.
cdef void open_walk(Walk *walk, Store store, TreeState state, Predicate predicate) noexcept nogil
cdef void close_walk(Walk *walk) noexcept nogil
# Starts over, with a query box; NULL reaches every leaf.
cdef void start_walk(Walk *walk, TreeState state, const double *query) noexcept nogil
# Whether there is another leaf; then which, in tree order, and whether all of its records qualify. The caller resolves
# it. Raises CorruptionError, MemoryError.
cdef int next_leaf(Walk *walk, Store store, TreeState state, NodeID *leaf, bint *inside) except -1 nogil
# The test of a page's entries against a query: of records, or of directory entries that may lead to one.
cdef void window_test(TreeState state, Bucket *b, Predicate predicate, const double *query,
                      WindowTest *test) noexcept nogil
