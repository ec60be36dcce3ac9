"""The walk from a tree's root to the pages that a query box may reach, one after the other.

A page's entries are tested in one pass over its columns. A directory entry inside the window of an "intersects" or
"contains" query needs no more tests: its subtree is taken whole.
"""

from libc.string cimport memcpy

from xtree.algorithms.queries.explain cimport count_page
from xtree.algorithms.kernels.arrays cimport raise_no_memory
from xtree.algorithms.bucket cimport lower, refs, stride, upper
from xtree.algorithms.kernels.forms cimport SLACK, divide, select
from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.base.breath cimport spend
from xtree.persistence.base.memory cimport allocate, release
from xtree.algorithms.tree_state cimport resolve_bucket

from xtree.errors import CorruptionError


cdef void open_walk(Walk *walk, Store store, TreeState state, Predicate predicate, int bottom,
                    Breath *breath) noexcept nogil:
    walk.dims = state.g.dims
    walk.levels = state.levels
    walk.bottom = bottom
    walk.predicate = predicate
    walk.most_visits = load_acquire(&store.table.high_water)
    walk.leaf_work = <int64_t>state.g.leaf_capacity * state.g.dims
    walk.accesses = NULL
    walk.breath = breath
    walk.room = FIRST_STACK
    walk.stack = walk.first_stack


cdef void close_walk(Walk *walk) noexcept nogil:
    if walk.stack != walk.first_stack:
        release(walk.stack)


cdef void start_walk(Walk *walk, TreeState state, const double *query) noexcept nogil:
    cdef int top = walk.levels - 1
    walk.query = query
    walk.visits = 0
    walk.level = max(top, walk.bottom)
    if top >= 0:
        walk.stack[0] = state.root
        walk.next[top] = 0
        walk.end[top] = 1
        walk.inside[top] = 1 if query != NULL else 0


cdef void window_test(TreeState state, Bucket *b, Predicate predicate, const double *query,
                      WindowTest *test) noexcept nogil:
    cdef const double *mins = query
    cdef const double *maxs = query + state.g.dims
    test.stride = stride(&state.g, b)
    test.first = lower(&state.g, b, 0)
    test.second = upper(&state.g, b, 0)
    test.most, test.least = maxs, mins
    test.lead = 0 if b.level else state.g.dims - 1      # the order in which bulk load leaves entries, up to three dims
    if predicate == Predicate.AROUND:
        test.most, test.least = mins, maxs
    elif predicate == Predicate.INSIDE and b.level == 0:
        test.first, test.second = test.second, test.first


cdef int next_page(Walk *walk, Store store, TreeState state, NodeID *page, bint *inside) except -1 nogil:
    cdef int64_t child
    while walk.level < walk.levels:
        child = walk.next[walk.level]
        if child == walk.end[walk.level]:
            walk.level += 1
            continue
        walk.next[walk.level] = child + 1
        walk.visits += 1
        if walk.visits > walk.most_visits:
            _raise_visits(walk.visits)
        page[0] = walk.stack[child]
        inside[0] = child >= walk.inside[walk.level]
        spend(walk.breath, walk.leaf_work)
        if walk.level == walk.bottom:
            return 1
        _push_children(walk, store, state, resolve_bucket(store, state, page[0], walk.level), inside[0])
    return 0


cdef int _push_children(Walk *walk, Store store, TreeState state, Bucket *b, bint inside) except -1 nogil:
    """Puts the children of a page that the walk has to visit on the stack, and goes one level down."""
    cdef int64_t start = walk.end[walk.level]
    cdef int64_t crossing = 0
    cdef int64_t whole = 0
    cdef int64_t i
    cdef WindowTest test
    cdef NodeID *out
    walk.breath.left -= <int64_t>b.count * walk.dims
    if walk.accesses != NULL:
        count_page(walk.accesses, b, not inside)
    if walk.room < start + 2 * <int64_t>b.count + 2 * SLACK:
        _grow_stack(walk, start + 2 * <int64_t>b.count + 2 * SLACK)
    out = walk.stack + start
    if inside:
        whole = b.count
        memcpy(out, refs(&state.g, b), whole * sizeof(NodeID))
    else:
        window_test(state, b, walk.predicate, walk.query, &test)
        if walk.predicate == Predicate.AROUND:
            crossing = select(&test, walk.dims, b.count, refs(&state.g, b), out)
        else:
            divide(&test, walk.dims, b.count, refs(&state.g, b), out, &crossing, out + b.count + SLACK, &whole)
            for i in range(whole):
                out[crossing + i] = out[b.count + SLACK + i]
    walk.level -= 1
    walk.next[walk.level] = start
    walk.inside[walk.level] = start + crossing
    walk.end[walk.level] = start + crossing + whole
    return 0


cdef int _grow_stack(Walk *walk, int64_t room) except -1 nogil:
    cdef NodeID *stack = <NodeID *>allocate(2 * room * sizeof(NodeID))
    if stack == NULL:
        raise_no_memory()
    memcpy(stack, walk.stack, walk.room * sizeof(NodeID))
    close_walk(walk)
    walk.stack = stack
    walk.room = 2 * room
    return 0


cdef int _raise_visits(uint64_t visits) except -1 with gil:
    raise CorruptionError(f"a query visited {visits} pages, more than there are: a page is reached twice")
