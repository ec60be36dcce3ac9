"""Groups of neighbouring queries, as large as possible while their leaves are few."""

from cpython.buffer cimport PyBuffer_Release
from libc.string cimport memcpy

from xtree.algorithms.kernels.arrays cimport borrow, raise_no_memory
from xtree.algorithms.kernels.box cimport copy_box, extend_box
from xtree.algorithms.bucket cimport Bucket, lower, refs, stride
from xtree.algorithms.kernels.forms cimport WindowTest, divide, select
from xtree.persistence.base.breath cimport Breath, first_breath
from xtree.persistence.base.memory cimport allocate, release
from xtree.algorithms.kernels.query_order cimport order_queries
from xtree.algorithms.tree_state cimport resolve_bucket
from xtree.algorithms.queries.walk cimport close_walk, next_page, open_walk, start_walk, window_test

cdef enum:
    FIRST_SIZE = 8                  # queries
    LEAST_SIZE = 2
    MOST_SIZE = 64
    WORTH_A_QUERY = 8               # leaves: finding more per query costs what it saves
    ALONE = 128                     # queries that walk alone when even the smallest group reaches too many leaves
    FEW_LEAVES = 12                 # with no more than these the next group is larger

cdef uint64_t[MOST_LEAVES] _numbers
for _number in range(MOST_LEAVES):
    _numbers[_number] = _number


cdef void open_group(LeafGroup *group, Store store, TreeState state, Predicate predicate,
                     Breath *breath) noexcept nogil:
    group.together = False
    group.dims = state.g.dims
    group.predicate = predicate
    group.size = FIRST_SIZE
    group.columns = NULL
    open_walk(&group.walk, store, state, Predicate.INTERSECTS, 1, breath)


cdef void close_group(LeafGroup *group) noexcept nogil:
    release(group.columns)
    close_walk(&group.walk)


cdef int64_t next_group(LeafGroup *group, Store store, TreeState state, const double *queries, const uint64_t *order,
                        int64_t first, int64_t m) except -1 nogil:
    cdef int64_t end = min(first + group.size, m)
    group.together = False
    if order == NULL or state.levels < 2:
        return m
    if group.columns == NULL:
        group.columns = <double *>allocate(2 * group.dims * MOST_LEAVES * sizeof(double))
        if group.columns == NULL:
            raise_no_memory()
    group.together = _find_leaves(group, store, state, queries, order + first, end - first)
    if not group.together and group.size == LEAST_SIZE:
        return min(first + ALONE, m)
    if not group.together:
        group.size //= 2
    elif group.count <= FEW_LEAVES and group.size < MOST_SIZE:
        group.size *= 2
    return end


cdef int _find_leaves(LeafGroup *group, Store store, TreeState state, const double *queries, const uint64_t *order,
                      int64_t n) except -1 nogil:
    """Gathers the leaves that n queries may reach; returns whether they are few enough."""
    cdef int width = 2 * group.dims
    cdef int64_t i, base, hits
    cdef int64_t most = min(WORTH_A_QUERY * n, <int64_t>MOST_LEAVES)
    cdef uint64_t passed[MOST_LEAVES + SLACK]
    cdef NodeID node = 0
    cdef bint inside = False
    cdef WindowTest test
    cdef Bucket *b
    group.count = 0
    copy_box(group.region, queries + width * order[0], group.dims)
    for i in range(1, n):
        extend_box(group.region, queries + width * order[i], group.dims)
    start_walk(&group.walk, state, group.region)
    while next_page(&group.walk, store, state, &node, &inside):
        b = resolve_bucket(store, state, node, 1)
        window_test(state, b, Predicate.INTERSECTS, group.region, &test)
        base = 0
        while base < b.count:
            hits = select(&test, group.dims, min(<int64_t>b.count - base, <int64_t>MOST_LEAVES), _numbers, passed)
            if group.count + hits > most:
                return False
            for i in range(hits):
                _add_leaf(group, state, b, base + passed[i])
            test.first += MOST_LEAVES
            test.second += MOST_LEAVES
            base += MOST_LEAVES
    return True


cdef inline void _add_leaf(LeafGroup *group, TreeState state, Bucket *b, int64_t entry) noexcept nogil:
    cdef int column
    cdef const double *bound = lower(&state.g, b, 0) + entry
    for column in range(2 * group.dims):
        group.columns[column * MOST_LEAVES + group.count] = bound[0]
        bound += stride(&state.g, b)
    group.nodes[group.count] = refs(&state.g, b)[entry]
    group.count += 1


cdef int64_t leaves_of(LeafGroup *group, const double *query, int64_t *crossing) noexcept nogil:
    cdef int64_t whole = 0
    cdef NodeID *inside = group.reached + MOST_LEAVES + SLACK
    cdef WindowTest test
    test.stride = MOST_LEAVES
    test.first = group.columns
    test.second = group.columns + group.dims * MOST_LEAVES
    test.most, test.least = query + group.dims, query
    test.lead = 0
    crossing[0] = 0
    if group.predicate == Predicate.AROUND:
        test.most, test.least = query, query + group.dims
        crossing[0] = select(&test, group.dims, group.count, group.nodes, group.reached)
        return crossing[0]
    divide(&test, group.dims, group.count, group.nodes, group.reached, crossing, inside, &whole)
    memcpy(group.reached + crossing[0], inside, whole * sizeof(NodeID))
    return crossing[0] + whole


def limits() -> dict[str, int]:
    """The limits of groups.

    These are the queries of the first, the smallest and the largest group; the leaves in all and per query; how few
    leaves let the next group grow; and how many queries walk alone when even the smallest group has too many leaves.
    """
    return {
        "first_size": FIRST_SIZE,
        "least_size": LEAST_SIZE,
        "most_size": MOST_SIZE,
        "most_leaves": MOST_LEAVES,
        "leaves_a_query": WORTH_A_QUERY,
        "few_leaves": FEW_LEAVES,
        "alone": ALONE,
    }


def plan_groups(Store store not None, TreeState state not None, boxes) -> list[tuple[list[int], list[int] | None]]:
    """How a batch of windows, float64 (m, 2 * dims), falls into groups, in the order in which they are answered.

    Each group has the rows of its windows, and the NodeIDs of its leaves or None where each window walks alone.
    Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef LeafGroup group
    cdef Breath breath
    cdef int64_t m = borrow(boxes, &view, 2 * state.g.dims * sizeof(double))
    cdef const double *queries = <const double *>view.buf
    cdef uint64_t *order = NULL
    cdef int64_t i, first = 0, end
    found = []
    first_breath(&breath, None)
    open_group(&group, store, state, Predicate.INTERSECTS, &breath)
    try:
        order_queries(queries, m, state.g.dims, True, state.box, &order, &breath)
        while first < m:
            end = next_group(&group, store, state, queries, order, first, m)
            leaves = [group.nodes[i] for i in range(group.count)] if group.together else None
            found.append(([order[i] for i in range(first, end)], leaves))
            first = end
        return found
    finally:
        close_group(&group)
        release(order)
        PyBuffer_Release(&view)
