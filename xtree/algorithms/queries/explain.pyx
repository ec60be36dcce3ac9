"""What a query costs on any machine: pages read, blocks and entries tested, level by level.

The walk of `search` and the search for neighbours count their own pages. A page that a search for neighbours
reads twice counts once.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from xtree.algorithms.kernels.arrays cimport Arena, borrow
from xtree.algorithms.queries.nearest cimport search_points
from xtree.persistence.base.breath cimport Breath, first_breath
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store, breathe
from xtree.algorithms.tree_state cimport MAX_LEVELS, TreeState, resolve_bucket
from xtree.algorithms.queries.walk cimport Predicate, Walk, close_walk, next_page, open_walk, start_walk

from xtree.algorithms.queries.nearest import require_room
from xtree.algorithms.queries.search import count

cdef enum:
    A_BREATH = 64                   # queries between two looks at the mappings


def of_windows(Store store not None, TreeState state not None, boxes, int predicate) -> dict:
    """What the window queries of `search` cost altogether; boxes and predicate are as there.

    Returns a dict of queries, results, pages, blocks, entries, and levels, leaves first, each a dict of level, pages,
    blocks, entries. Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef LevelAccesses levels[MAX_LEVELS]
    cdef int64_t m
    results = int(count(store, state, boxes, predicate).sum())
    m = borrow(boxes, &view, 2 * state.g.dims * sizeof(double))
    memset(levels, 0, sizeof(levels))
    try:
        with nogil:
            _walk_all(store, state, <Predicate>predicate, <const double *>view.buf, m, levels)
        return _as_dict(state, m, results, levels)
    finally:
        PyBuffer_Release(&view)


cdef int _walk_all(Store store, TreeState state, Predicate predicate, const double *queries, int64_t m,
                   LevelAccesses *levels) except -1 nogil:
    cdef Walk walk
    cdef NodeID leaf = 0
    cdef bint inside = False
    cdef Breath breath
    cdef uint64_t generation = 0
    cdef int64_t i
    first_breath(&breath, None)
    open_walk(&walk, store, state, predicate, 0, &breath)
    walk.accesses = levels
    try:
        for i in range(m):
            if i and i % A_BREATH == 0:
                breathe(store, &generation)
            start_walk(&walk, state, queries + i * 2 * state.g.dims)
            while next_page(&walk, store, state, &leaf, &inside):
                count_page(levels, resolve_bucket(store, state, leaf, 0), not inside)
        return 0
    finally:
        close_walk(&walk)


def of_nearest(Store store not None, TreeState state not None, points, long long k, double max_distance) -> dict:
    """What the searches of `nearest` cost altogether; points, k and max_distance are as there.

    The dict is that of `of_windows`. Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef LevelAccesses levels[MAX_LEVELS]
    cdef Arena ids = Arena()
    cdef Arena found = Arena()
    cdef Arena starts = Arena()
    cdef Breath breath
    cdef int64_t m = borrow(points, &view, state.g.dims * sizeof(double))
    memset(levels, 0, sizeof(levels))
    first_breath(&breath, None)
    try:
        require_room(state, m, k, max_distance)
        starts.need((m + 1) * sizeof(int64_t))
        with nogil:
            search_points(store, state, <const double *>view.buf, m, k, max_distance, NULL, ids, found,
                          <int64_t *>starts.data, levels, &breath)
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
