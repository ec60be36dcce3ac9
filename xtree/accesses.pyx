"""What a query costs, whatever the machine: pages read, blocks and entries tested, level by level.

A window's pages are those that the walk of `search` reads, found by a plain descent, so that the walk needn't count.
The search for neighbours counts its own pages, since which they are depends on its order. A page that a query comes to
twice counts once.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from xtree.arrays cimport Arena, borrow
from xtree.bucket cimport Bucket, lower, refs, stride, upper
from xtree.nearest cimport search_points
from xtree.persistence.atomics cimport load_acquire
from xtree.persistence.node_id cimport NodeID
from xtree.persistence.store cimport Store, breathe
from xtree.search cimport Predicate
from xtree.tree_state cimport MAX_LEVELS, TreeState, resolve_bucket

from xtree.errors import CorruptionError

cdef enum:
    A_BREATH = 64                   # queries between two looks at the mappings


# The descents of some queries, one after the other.
cdef struct Descent:
    Predicate predicate
    const double *query             # [mins, maxs]; borrowed
    uint64_t visits                 # of this query
    uint64_t most_visits            # as many as there are handles: more means that a page is reached twice
    uint64_t results                # of all queries, as are the levels
    LevelAccesses levels[MAX_LEVELS]


def of_windows(Store store not None, TreeState state not None, boxes, int predicate) -> dict:
    """What the window queries of `search` cost altogether; boxes and predicate are as there.

    A dict of queries, results, pages, blocks, entries, and levels, leaves first, each a dict of level, pages, blocks,
    entries. Raises CorruptionError.
    """
    cdef Py_buffer view
    cdef Descent d
    cdef int64_t m = borrow(boxes, &view, 2 * state.g.dims * sizeof(double))
    cdef uint64_t generation = 0
    cdef int64_t i
    memset(&d, 0, sizeof(Descent))
    d.predicate = <Predicate>predicate
    d.most_visits = load_acquire(&store.table.high_water)
    try:
        with nogil:
            for i in range(m if state.levels > 0 else 0):
                if i and i % A_BREATH == 0:
                    breathe(store, &generation)
                d.query = <const double *>view.buf + i * 2 * state.g.dims
                d.visits = 0
                _descend(&d, store, state, state.root, state.levels - 1, False)
        return _as_dict(state, m, d.results, d.levels)
    finally:
        PyBuffer_Release(&view)


def of_nearest(Store store not None, TreeState state not None, points, long long k, double max_distance) -> dict:
    """What the searches of `nearest` cost altogether; points, k and max_distance are as there.

    The dict is that of `of_windows`. Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef LevelAccesses levels[MAX_LEVELS]
    cdef Arena ids = Arena()
    cdef Arena found = Arena()
    cdef Arena starts = Arena()
    cdef int64_t m = borrow(points, &view, state.g.dims * sizeof(double))
    memset(levels, 0, sizeof(levels))
    try:
        starts.need((m + 1) * sizeof(int64_t))
        with nogil:
            search_points(store, state, <const double *>view.buf, m, k, max_distance, NULL, ids, found,
                          <int64_t *>starts.data, levels)
        return _as_dict(state, m, ids.used // sizeof(int64_t), levels)
    finally:
        PyBuffer_Release(&view)


cdef dict _as_dict(TreeState state, int64_t queries, uint64_t results, LevelAccesses *levels):
    found = [
        {
            "level": level,
            "pages": levels[level].pages,
            "blocks": levels[level].blocks,
            "entries": levels[level].entries,
        }
        for level in range(state.levels)
    ]
    totals = {name: sum([level[name] for level in found]) for name in ("pages", "blocks", "entries")}
    return {"queries": queries, "results": results, **totals, "levels": found}


cdef int _descend(Descent *d, Store store, TreeState state, NodeID node, int level, bint inside) except -1 nogil:
    """Counts a page, and those below it that the query reads; all of them when it lies inside the window."""
    cdef Bucket *b = resolve_bucket(store, state, node, level)
    cdef bint whole = inside
    cdef uint32_t i
    d.visits += 1
    if d.visits > d.most_visits:
        _raise_visits(d.visits)
    count_page(d.levels, b, not inside)
    if level == 0 and inside:
        d.results += b.count
        return 0
    for i in range(b.count):
        if not inside:
            if not _passes(d, state, b, i):
                continue
            whole = level > 0 and d.predicate != Predicate.CONTAINS and _lies_inside(d, state, b, i)
        if level > 0:
            _descend(d, store, state, refs(&state.g, b)[i], level - 1, whole)
        else:
            d.results += 1
    return 0


cdef bint _passes(const Descent *d, TreeState state, Bucket *b, uint32_t i) noexcept nogil:
    """Whether a record qualifies, or one below a directory entry may."""
    cdef int dims = state.g.dims
    cdef int step = stride(&state.g, b)
    cdef const double *low = lower(&state.g, b, 0) + i
    cdef const double *high = upper(&state.g, b, 0) + i
    cdef const double *query = d.query
    cdef int axis
    if d.predicate == Predicate.WITHIN and b.level == 0:
        return _lies_inside(d, state, b, i)
    for axis in range(dims):
        if d.predicate == Predicate.CONTAINS:
            if low[axis * step] > query[axis] or high[axis * step] < query[dims + axis]:
                return False
        elif low[axis * step] > query[dims + axis] or high[axis * step] < query[axis]:
            return False
    return True


cdef bint _lies_inside(const Descent *d, TreeState state, Bucket *b, uint32_t i) noexcept nogil:
    cdef int dims = state.g.dims
    cdef int step = stride(&state.g, b)
    cdef const double *low = lower(&state.g, b, 0) + i
    cdef const double *high = upper(&state.g, b, 0) + i
    cdef int axis
    for axis in range(dims):
        if low[axis * step] < d.query[axis] or high[axis * step] > d.query[dims + axis]:
            return False
    return True


cdef int _raise_visits(uint64_t visits) except -1 with gil:
    raise CorruptionError(f"a query visited {visits} pages, more than there are: a page is reached twice")
