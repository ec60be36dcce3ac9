"""Window queries: ids of the records whose boxes intersect a query box, lie inside it or around it.

Many small windows are answered along a Hilbert curve, which keeps the pages they share in the cache and lets neighbours
share a descent. The results are returned in the caller's order.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from xtree.algorithms.kernels.arrays cimport Arena, borrow, data_of, keep_arena, require_memory, take_arena
from xtree.algorithms.kernels.box cimport MAX_DIMS, boxes_equal
from xtree.algorithms.bucket cimport HEADER_BYTES, Bucket, get_box, lower, refs, upper
from xtree.algorithms.kernels.forms cimport SLACK, WindowTest, select, span
from xtree.algorithms.queries.leaf_group cimport LeafGroup, close_group, leaves_of, next_group, open_group
from xtree.persistence.base.atomics cimport load_relaxed
from xtree.persistence.base.breath cimport Breath, Team, begin_with_gil, end_with_gil, first_breath, spend
from xtree.persistence.base.memory cimport allocate, release
from xtree.persistence.pages.node_id cimport NodeID, handle_of
from xtree.persistence.pages.object_table cimport Row
from xtree.persistence.store.store cimport Store, breathe
from xtree.algorithms.kernels.query_order cimport (
    LEAST_ORDERED, counts_to_starts, order_queries, restore_offsets, restore_words,
)
from xtree.algorithms.tree_state cimport TreeState, resolve_bucket
from xtree.algorithms.queries.walk cimport Predicate, Walk, close_walk, next_page, open_walk, start_walk, window_test

import numpy as np

cdef extern from *:
    """
    /* Into the second cache, which has room for more requests at a time than the first. */
    #if defined(__GNUC__) || defined(__clang__)
    #define xt_prefetch(p) __builtin_prefetch(p, 0, 2)
    #else
    #define xt_prefetch(p) ((void)(p))
    #endif
    """
    void prefetch "xt_prefetch"(const void *p) noexcept nogil

cdef enum:
    QUERIES_AHEAD = 64              # prefetched before they are needed: the next group, however large
    MOST_BYTES_AHEAD = 1024         # of a column of a leaf
    MOST_ORDERED_HITS = 1000        # per query: with more, putting the results in order costs more than it saves
    MOST_EXPECTED = 1 << 25         # bytes of results: the most room made before the first is known
    SAMPLE = 64                     # queries that tell how large a batch's windows are
    FEW_HITS = 400                  # found in less time than it takes to give the GIL away and get it back
    A_BREATH = 64                   # queries of a batch, or leaves of a scan, between two looks at the mappings

cdef object _int64 = np.dtype(np.int64)
cdef object _float64 = np.dtype(np.float64)
cdef object _empty = np.empty


cdef inline void _prefetch_range(const char *start, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t offset
    for offset in range(0, min(n, <Py_ssize_t>MOST_BYTES_AHEAD), 64):
        prefetch(start + offset)


cdef inline void _ask_for_leaf(Store store, TreeState state, FoundLeaf *leaf) noexcept nogil:
    """Prefetches the header and what will be read first, from where the row says the page is."""
    cdef Row *row = store.table.row(handle_of(leaf.node))
    cdef Py_ssize_t column_bytes = sizeof(double) * state.g.leaf_capacity
    cdef char *page = NULL
    if row != NULL:
        page = store.windows.pointer(load_relaxed(&row.address))
    if page == NULL:
        return
    prefetch(page)
    if leaf.inside:                 # its refs
        _prefetch_range(page + HEADER_BYTES + 2 * state.g.dims * column_bytes, column_bytes)
    else:                           # bounds of the leading axis
        _prefetch_range(page + HEADER_BYTES + (state.g.dims - 1) * column_bytes, column_bytes)
        _prefetch_range(page + HEADER_BYTES + (2 * state.g.dims - 1) * column_bytes, column_bytes)


cdef inline int _look_at_leaf(Store store, TreeState state, Predicate predicate, FoundLeaf *leaf) except -1 nogil:
    """Finds the records that pass on the leading axis, and prefetches their bounds on the next axis and their ids."""
    cdef WindowTest test
    cdef Py_ssize_t n
    leaf.page = resolve_bucket(store, state, leaf.node, 0)
    leaf.first, leaf.end = 0, leaf.page.count
    if not leaf.inside:
        window_test(state, leaf.page, predicate, leaf.query, &test)
        span(&test, leaf.page.count, &leaf.first, &leaf.end)
        n = (leaf.end - leaf.first) * sizeof(double)
        _prefetch_range(<const char *>(lower(&state.g, leaf.page, 0) + leaf.first), n)
        _prefetch_range(<const char *>(upper(&state.g, leaf.page, 0) + leaf.first), n)
        _prefetch_range(<const char *>(refs(&state.g, leaf.page) + leaf.first), n)
    return 0


cdef int _take_leaf(TreeState state, Predicate predicate, const FoundLeaf *leaf, bint keep, Arena found,
                    int64_t *counts) except -1 nogil:
    """Counts the records of a leaf that qualify for its query and, with `keep`, adds their ids to those found."""
    cdef WindowTest test
    cdef uint64_t *ids
    cdef const uint64_t *leaf_ids = refs(&state.g, leaf.page) + leaf.first
    cdef int64_t n = leaf.end - leaf.first
    found.need((n + SLACK) * sizeof(uint64_t))
    ids = <uint64_t *>(found.data + found.used)
    if not leaf.inside:
        window_test(state, leaf.page, predicate, leaf.query, &test)
        test.first += leaf.first
        test.second += leaf.first
        n = select(&test, state.g.dims, n, leaf_ids, ids)
    elif keep:
        memcpy(ids, leaf_ids, n * sizeof(uint64_t))
    counts[leaf.number] += n
    if keep:
        found.used += n * sizeof(uint64_t)
    return 0


cdef int _answer(Store store, TreeState state, const double *queries, int64_t m, Predicate predicate,
                 const uint64_t *order, bint keep, Arena found, int64_t *counts, Breath *breath) except -1 nogil:
    """Answers the queries in an order (NULL: as they stand).

    counts[i] is how many records the i-th one answered has found; with `keep` their ids are left in `found`.
    """
    cdef Walk walk
    cdef LeafGroup group
    cdef FoundLeaf pipeline[PIPELINE]
    cdef FoundLeaf *leaf
    cdef const double *query
    cdef int64_t i
    cdef int64_t k = 0, reached = 0, crossing = 0, group_end = 0, leaves = 0
    cdef uint64_t generation = 0
    open_walk(&walk, store, state, predicate, 0, breath)
    open_group(&group, store, state, predicate, breath)
    try:
        for i in range(m):
            counts[i] = 0
            if i and i % A_BREATH == 0 and store.flights.current_epoch() != generation:
                _drain_pipeline(store, state, predicate, pipeline, leaves, keep, found, counts)
                leaves = 0
                breathe(store, &generation)
            if order != NULL and i + QUERIES_AHEAD < m:
                prefetch(queries + 2 * state.g.dims * order[i + QUERIES_AHEAD])
            if i == group_end:
                group_end = next_group(&group, store, state, queries, order, i, m)
            query = queries + 2 * state.g.dims * (order[i] if order != NULL else i)
            if group.together:
                k, reached = 0, leaves_of(&group, query, &crossing)
                spend(breath, walk.leaf_work * (1 + reached))
            else:
                start_walk(&walk, state, query)
            while True:
                leaf = &pipeline[leaves % PIPELINE]
                if not group.together:
                    if not next_page(&walk, store, state, &leaf.node, &leaf.inside):
                        break
                elif k == reached:
                    break
                else:
                    leaf.node, leaf.inside = group.reached[k], k >= crossing
                    k += 1
                leaf.query, leaf.number = query, i
                leaves += 1
                _move_pipeline(store, state, predicate, pipeline, leaves, leaves, keep, found, counts)
        _drain_pipeline(store, state, predicate, pipeline, leaves, keep, found, counts)
    finally:
        close_group(&group)
        close_walk(&walk)
    return 0


cdef int _drain_pipeline(Store store, TreeState state, Predicate predicate, FoundLeaf *pipeline, int64_t leaves,
                         bint keep, Arena found, int64_t *counts) except -1 nogil:
    """Takes every leaf found so far, so that no pointer to a page is left."""
    cdef int64_t step
    for step in range(leaves + 1, leaves + TAKEN + 1):
        _move_pipeline(store, state, predicate, pipeline, step, leaves, keep, found, counts)
    return 0


cdef inline int _move_pipeline(Store store, TreeState state, Predicate predicate, FoundLeaf *pipeline, int64_t step,
                               int64_t leaves, bint keep, Arena found, int64_t *counts) except -1 nogil:
    """Does a step of the pipeline, with those of the leaves found so far that are due."""
    if step <= leaves:
        prefetch(store.table.row(handle_of(pipeline[(step - 1) % PIPELINE].node)))
    if 0 <= step - ASKED < leaves:
        _ask_for_leaf(store, state, &pipeline[(step - ASKED) % PIPELINE])
    if 0 <= step - LOOKED < leaves:
        _look_at_leaf(store, state, predicate, &pipeline[(step - LOOKED) % PIPELINE])
    if 0 <= step - TAKEN < leaves:
        _take_leaf(state, predicate, &pipeline[(step - TAKEN) % PIPELINE], keep, found, counts)
    return 0


cdef int _require_predicate(int predicate) except -1:
    if not Predicate.INTERSECTS <= predicate <= Predicate.AROUND:
        raise ValueError(f"no such predicate: {predicate}")
    return 0


cdef double _expected_hits(TreeState state, const double *queries, int64_t m) noexcept nogil:
    """An estimate of the mean number of hits of a query: from a sample's share of the tree's bounds on two axes."""
    cdef int dims = state.g.dims
    cdef int axis
    cdef int64_t i
    cdef int64_t n = min(m, <int64_t>SAMPLE)
    cdef double share, extent, hits = 0.0
    cdef const double *q
    for i in range(n):
        q = queries + i * (m // n) * 2 * dims
        share = 1.0
        for axis in range(min(dims, 2)):
            extent = 0.5 * state.box[dims + axis] - 0.5 * state.box[axis]
            if extent > 0:
                share *= min(max((0.5 * q[dims + axis] - 0.5 * q[axis]) / extent, 0.0), 1.0)
        hits += share * state.records / n
    return hits if hits > 0.0 else 0.0          # 0.0 for NaN, too, of windows that are being changed


def query(Store store not None, TreeState state not None, boxes, int predicate, Team team=None):
    """Ids of the records that qualify for each query box: (offsets (m + 1,) int64, ids (n,) int64).

    `boxes` is float64 (m, 2 * dims), C-contiguous, without NaN; bounds may be infinite. The ids of query i are
    ids[offsets[i]:offsets[i + 1]], in no particular order. Raises CorruptionError, MemoryError, and what a breath does.
    """
    cdef Py_buffer view
    cdef Breath breath
    cdef Arena found
    cdef int64_t m = borrow(boxes, &view, 2 * state.g.dims * sizeof(double))
    cdef const double *queries = <const double *>view.buf
    cdef uint64_t *order = NULL
    cdef int64_t *starts = NULL
    cdef int64_t *offsets
    cdef uint64_t *ids
    cdef double hits
    cdef Py_ssize_t expected
    first_breath(&breath, team)
    try:
        _require_predicate(predicate)
        offset_array = _empty(m + 1, _int64)
        offsets = <int64_t *>data_of(offset_array)
        hits = _expected_hits(state, queries, m)
        expected = <Py_ssize_t>min(1.1 * hits * m * sizeof(int64_t), <double>MOST_EXPECTED)
        if m < LEAST_ORDERED or hits > MOST_ORDERED_HITS:
            found = Arena()
            with nogil:
                found.need(expected)
                _answer(store, state, queries, m, <Predicate>predicate, NULL, True, found, offsets, &breath)
                counts_to_starts(offsets, m)
            return offset_array, found.to_array(_int64)
        starts = <int64_t *>allocate((m + 1) * sizeof(int64_t))
        if starts == NULL:
            raise MemoryError
        found = take_arena()
        with nogil:
            found.need(expected)
            order_queries(queries, m, state.g.dims, True, state.box, &order, &breath)
            _answer(store, state, queries, m, <Predicate>predicate, order, True, found, starts, &breath)
            counts_to_starts(starts, m)
        require_memory(found.used)
        id_array = _empty(found.used // <Py_ssize_t>sizeof(int64_t), _int64)
        ids = <uint64_t *>data_of(id_array)
        with nogil:
            restore_offsets(starts, order, m, offsets, &breath)
            restore_words(<const uint64_t *>found.data, starts, order, m, offsets, ids, &breath)
        keep_arena(found)
        return offset_array, id_array
    finally:
        release(order)
        release(starts)
        PyBuffer_Release(&view)


def query_one(Store store not None, TreeState state not None, box, int predicate):
    """Ids of the records that qualify for one query box, float64 (2 * dims,): (n,) int64.

    Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    _require_predicate(predicate)
    _borrow_box(box, &view, state)
    try:
        return ids_of_one(store, state, <const double *>view.buf, <Predicate>predicate)
    finally:
        PyBuffer_Release(&view)


cdef int64_t _answer_one(Store store, TreeState state, const double *box, Predicate predicate, bint keep,
                         Arena found) except -1 nogil:
    """How many records one query has found. Called with the GIL, which it gives away when it takes long."""
    cdef Breath breath
    cdef int64_t hits = 0
    first_breath(&breath, None)
    begin_with_gil(&breath, _expected_hits(state, box, 1) < FEW_HITS)
    try:
        _answer(store, state, box, 1, predicate, NULL, keep, found, &hits, &breath)
    finally:
        end_with_gil(&breath)
    return hits


cdef object ids_of_one(Store store, TreeState state, const double *box, Predicate predicate):
    cdef Arena found = Arena()
    _answer_one(store, state, box, predicate, True, found)
    return found.to_array(_int64)


cdef int64_t count_of_one(Store store, TreeState state, const double *box, Predicate predicate) except -1:
    cdef Arena scratch = Arena()
    return _answer_one(store, state, box, predicate, False, scratch)


cdef int _borrow_box(object box, Py_buffer *view, TreeState state) except -1:
    cdef Py_ssize_t rows = borrow(box, view, 2 * state.g.dims * sizeof(double))
    if rows != 1:
        PyBuffer_Release(view)
        raise ValueError(f"{rows} boxes, expected one")
    return 0


def count(Store store not None, TreeState state not None, boxes, int predicate, Team team=None):
    """How many records qualify for each query box, float64 (m, 2 * dims): (m,) int64.

    Raises CorruptionError, MemoryError, and what a breath does.
    """
    cdef Py_buffer view
    cdef Breath breath
    cdef int64_t m = borrow(boxes, &view, 2 * state.g.dims * sizeof(double))
    cdef const double *queries = <const double *>view.buf
    cdef uint64_t *order = NULL
    cdef Arena scratch = Arena()
    cdef Arena counted = Arena()
    cdef int64_t *counts
    cdef int64_t *out
    cdef int64_t i
    first_breath(&breath, team)
    try:
        _require_predicate(predicate)
        out_array = _empty(m, _int64)
        out = <int64_t *>data_of(out_array)
        with nogil:
            if m < LEAST_ORDERED:
                _answer(store, state, queries, m, <Predicate>predicate, NULL, False, scratch, out, &breath)
            else:
                counted.need(m * sizeof(int64_t))
                counts = <int64_t *>counted.data
                order_queries(queries, m, state.g.dims, True, state.box, &order, &breath)
                _answer(store, state, queries, m, <Predicate>predicate, order, False, scratch, counts, &breath)
                for i in range(m):
                    out[order[i]] = counts[i]
        return out_array
    finally:
        release(order)
        PyBuffer_Release(&view)


def holds(Store store not None, TreeState state not None, long long id, box):
    """Whether the record (id, box), equal by value, is in the tree; `box` is float64 (2 * dims,).

    Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef bint found
    _borrow_box(box, &view, state)
    try:
        with nogil:
            found = _find(store, state, id, <const double *>view.buf)
        return found
    finally:
        PyBuffer_Release(&view)


cdef int _find(Store store, TreeState state, int64_t id, const double *box) except -1 nogil:
    """1 when the record is there, 0 when it isn't. The pages that may hold it contain its box."""
    cdef Walk walk
    cdef Breath breath
    cdef Bucket *leaf
    cdef NodeID node = 0
    cdef bint inside = False
    cdef double other[2 * MAX_DIMS]
    cdef uint32_t i
    first_breath(&breath, None)
    open_walk(&walk, store, state, Predicate.AROUND, 0, &breath)
    try:
        start_walk(&walk, state, box)
        while next_page(&walk, store, state, &node, &inside):
            leaf = resolve_bucket(store, state, node, 0)
            for i in range(leaf.count):
                if <int64_t>refs(&state.g, leaf)[i] == id:
                    get_box(&state.g, leaf, i, other)
                    if boxes_equal(other, box, state.g.dims):
                        return 1
        return 0
    finally:
        close_walk(&walk)


def items(Store store not None, TreeState state not None):
    """All records in tree order: (ids (n,) int64, boxes (n, 2 * dims) float64). Raises CorruptionError, MemoryError."""
    cdef Arena ids = Arena()
    cdef Arena boxes = Arena()
    with nogil:
        _collect_items(store, state, ids, boxes)
    return ids.to_array(_int64), boxes.to_array(_float64).reshape(-1, 2 * state.g.dims)


cdef int _collect_items(Store store, TreeState state, Arena ids, Arena boxes) except -1 nogil:
    cdef Walk walk
    cdef Breath breath
    cdef Bucket *leaf
    cdef NodeID node = 0
    cdef bint inside = False
    cdef Py_ssize_t box_bytes = 2 * state.g.dims * sizeof(double)
    cdef uint32_t i
    cdef uint64_t generation = 0
    first_breath(&breath, None)
    open_walk(&walk, store, state, Predicate.INTERSECTS, 0, &breath)
    try:
        start_walk(&walk, state, NULL)
        while next_page(&walk, store, state, &node, &inside):
            if walk.visits % A_BREATH == 0:
                breathe(store, &generation)
            leaf = resolve_bucket(store, state, node, 0)
            if leaf.count == 0:             # forged
                continue
            ids.need(<Py_ssize_t>leaf.count * sizeof(uint64_t))
            boxes.need(leaf.count * box_bytes)
            memcpy(ids.data + ids.used, refs(&state.g, leaf), leaf.count * sizeof(uint64_t))
            ids.used += leaf.count * sizeof(uint64_t)
            for i in range(leaf.count):
                get_box(&state.g, leaf, i, <double *>(boxes.data + boxes.used))
                boxes.used += box_bytes
        return 0
    finally:
        close_walk(&walk)
