"""Window queries: ids of the records whose boxes intersect, lie within or contain a query box.

A page's entries are tested in one pass over its columns. A directory entry inside the window of an "intersects" or
"within" query needs no more tests: its subtree is taken whole. Many small windows are answered along a Hilbert curve,
which keeps the pages they share in the cache, and handed back in the caller's order.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from xtree.arrays cimport Arena, borrow, data_of, raise_no_memory
from xtree.box cimport MAX_DIMS, boxes_equal
from xtree.bucket cimport HEADER_BYTES, Bucket, get_box, lower, refs, stride, upper
from xtree.kernels cimport SLACK, WindowTest, divide, select
from xtree.persistence.atomics cimport load_acquire, load_relaxed
from xtree.persistence.memory cimport allocate, reallocate, release
from xtree.persistence.node_id cimport NodeID, handle_of
from xtree.persistence.object_table cimport Row
from xtree.persistence.store cimport Store
from xtree.query_order cimport LEAST_ORDERED, order_queries, restore_offsets, restore_words
from xtree.tree_state cimport TreeState, resolve_bucket

import numpy as np

from xtree.errors import CorruptionError

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define xt_prefetch(p) __builtin_prefetch(p)
    #else
    #define xt_prefetch(p) ((void)(p))
    #endif
    """
    void prefetch "xt_prefetch"(const void *p) noexcept nogil

cdef enum:
    FIRST_STACK = 512               # entries
    AHEAD = 4                       # pages asked for before they are needed
    MOST_BYTES_AHEAD = 1024         # of a column of each of them
    MOST_ORDERED_HITS = 1000        # a query: above, putting the results in order costs more than it saves
    MOST_EXPECTED = 1 << 28         # bytes of results: room asked for before the first is known
    SAMPLE = 64                     # queries that tell how large a batch's windows are

cdef object _int64 = np.dtype(np.int64)
cdef object _float64 = np.dtype(np.float64)
cdef object _empty = np.empty


cdef int open_walk(Walk *walk, Store store, TreeState state, Predicate predicate) except -1 nogil:
    walk.dims = state.g.dims
    walk.levels = state.levels
    walk.predicate = predicate
    walk.most_visits = load_acquire(&store.table.high_water)
    walk.room = FIRST_STACK
    walk.stack = <NodeID *>allocate(FIRST_STACK * sizeof(NodeID))
    if walk.stack == NULL:
        raise_no_memory()
    return 0


cdef void close_walk(Walk *walk) noexcept nogil:
    release(walk.stack)
    walk.stack = NULL


cdef void start_walk(Walk *walk, TreeState state, const double *query) noexcept nogil:
    cdef int top = walk.levels - 1
    walk.query = query
    walk.visits = 0
    walk.level = max(top, 0)
    if top >= 0:
        walk.stack[0] = state.root
        walk.next[top] = 0
        walk.end[top] = 1
        walk.inside[top] = 1 if query != NULL else 0


cdef void window_test(const Walk *walk, TreeState state, Bucket *b, WindowTest *test) noexcept nogil:
    cdef const double *mins = walk.query
    cdef const double *maxs = walk.query + walk.dims
    test.stride = stride(&state.g, b)
    test.first = lower(&state.g, b, 0)
    test.second = upper(&state.g, b, 0)
    test.most, test.least = maxs, mins
    if walk.predicate == Predicate.CONTAINS:
        test.most, test.least = mins, maxs
    elif walk.predicate == Predicate.WITHIN and b.level == 0:
        test.first, test.second = test.second, test.first


cdef int next_leaf(Walk *walk, Store store, TreeState state, Bucket **leaf, bint *inside) except -1 nogil:
    cdef int64_t child
    cdef Bucket *b
    leaf[0] = NULL
    while walk.level < walk.levels:
        child = walk.next[walk.level]
        if child == walk.end[walk.level]:
            walk.level += 1
            continue
        walk.next[walk.level] = child + 1
        if child + AHEAD < walk.end[walk.level]:
            _prefetch_page(store, state, walk.stack[child + AHEAD], walk.level,
                           child + AHEAD >= walk.inside[walk.level])
        walk.visits += 1
        if walk.visits > walk.most_visits:
            _raise_visits(walk.visits)
        b = resolve_bucket(store, state, walk.stack[child], walk.level)
        inside[0] = child >= walk.inside[walk.level]
        if walk.level == 0:
            leaf[0] = b
            return 0
        _push_children(walk, store, state, b, inside[0])
    return 0


cdef int _push_children(Walk *walk, Store store, TreeState state, Bucket *b, bint inside) except -1 nogil:
    """Puts the children of a page that the walk has to visit on the stack, and goes one level down."""
    cdef int64_t start = walk.end[walk.level]
    cdef int64_t crossing = 0
    cdef int64_t whole = 0
    cdef int64_t i
    cdef WindowTest test
    cdef NodeID *out
    if walk.room < start + 2 * <int64_t>b.count + 2 * SLACK:
        _grow_stack(walk, start + 2 * <int64_t>b.count + 2 * SLACK)
    out = walk.stack + start
    if inside:
        whole = b.count
        memcpy(out, refs(&state.g, b), whole * sizeof(NodeID))
    else:
        window_test(walk, state, b, &test)
        if walk.predicate == Predicate.CONTAINS:
            crossing = select(&test, walk.dims, b.count, refs(&state.g, b), out)
        else:
            divide(&test, walk.dims, b.count, refs(&state.g, b), out, &crossing, out + b.count + SLACK, &whole)
            for i in range(whole):
                out[crossing + i] = out[b.count + SLACK + i]
    walk.level -= 1
    walk.next[walk.level] = start
    walk.inside[walk.level] = start + crossing
    walk.end[walk.level] = start + crossing + whole
    for i in range(min(crossing + whole, <int64_t>AHEAD)):
        _prefetch_page(store, state, out[i], walk.level, i >= crossing)
    return 0


cdef int _grow_stack(Walk *walk, int64_t room) except -1 nogil:
    cdef NodeID *stack = <NodeID *>reallocate(walk.stack, 2 * room * sizeof(NodeID))
    if stack == NULL:
        raise_no_memory()
    walk.stack = stack
    walk.room = 2 * room
    return 0


cdef inline void _prefetch_page(Store store, TreeState state, NodeID node, int level, bint inside) noexcept nogil:
    """Asks for what the walk reads first of a page, wherever its row says it is."""
    cdef Row *row = store.table.row(handle_of(node))
    cdef Py_ssize_t column_bytes = sizeof(double) * (state.g.block_capacity if level else state.g.leaf_capacity)
    cdef Py_ssize_t offset, first, columns
    cdef char *page = NULL
    if row != NULL:
        page = store.windows.pointer(load_relaxed(&row.address))
    if page == NULL:
        return
    prefetch(page)
    if inside:                      # its refs
        first, columns = HEADER_BYTES + 2 * state.g.dims * column_bytes, 0
    else:                           # bounds of the last axis
        first, columns = HEADER_BYTES + (state.g.dims - 1) * column_bytes, state.g.dims * column_bytes
    for offset in range(first, first + min(column_bytes, <Py_ssize_t>MOST_BYTES_AHEAD), 64):
        prefetch(page + offset)
        prefetch(page + offset + columns)


cdef int _raise_visits(uint64_t visits) except -1 with gil:
    raise CorruptionError(f"a query visited {visits} pages, more than there are: a page is reached twice")


cdef int _collect(Walk *walk, Store store, TreeState state, const double *query, Arena out) except -1 nogil:
    """Appends the ids of the records that qualify."""
    cdef Bucket *leaf
    cdef bint inside
    cdef WindowTest test
    cdef uint64_t *ids
    start_walk(walk, state, query)
    while True:
        next_leaf(walk, store, state, &leaf, &inside)
        if leaf == NULL:
            return 0
        out.need((<Py_ssize_t>leaf.count + SLACK) * sizeof(uint64_t))
        ids = <uint64_t *>(out.data + out.used)
        if inside:
            memcpy(ids, refs(&state.g, leaf), leaf.count * sizeof(uint64_t))
            out.used += leaf.count * sizeof(uint64_t)
        else:
            window_test(walk, state, leaf, &test)
            out.used += select(&test, walk.dims, leaf.count, refs(&state.g, leaf), ids) * sizeof(uint64_t)


cdef int64_t _tally(Walk *walk, Store store, TreeState state, const double *query, Arena scratch) except -1 nogil:
    """How many records qualify."""
    cdef Bucket *leaf
    cdef bint inside
    cdef WindowTest test
    cdef int64_t n = 0
    start_walk(walk, state, query)
    while True:
        next_leaf(walk, store, state, &leaf, &inside)
        if leaf == NULL:
            return n
        if inside:
            n += leaf.count
        else:
            scratch.need((<Py_ssize_t>leaf.count + SLACK) * sizeof(uint64_t))
            window_test(walk, state, leaf, &test)
            n += select(&test, walk.dims, leaf.count, refs(&state.g, leaf), <uint64_t *>scratch.data)


cdef int _require_predicate(int predicate) except -1:
    if not Predicate.INTERSECTS <= predicate <= Predicate.CONTAINS:
        raise ValueError(f"no such predicate: {predicate}")
    return 0


cdef double _expected_hits(TreeState state, const double *queries, int64_t m) noexcept nogil:
    """The mean number of hits of a query, going by a sample's share of the tree's bounds on two axes."""
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
    return hits


def query(Store store not None, TreeState state not None, boxes, int predicate):
    """Ids of the records that qualify for each query box: (offsets (m + 1,) int64, ids (n,) int64).

    `boxes` is float64 (m, 2 * dims), C-contiguous, without NaN; bounds may be infinite. The ids of query i are
    ids[offsets[i]:offsets[i + 1]], in no particular order. Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef Arena found = Arena()
    cdef int64_t m = borrow(boxes, &view, 2 * state.g.dims * sizeof(double))
    cdef const double *queries = <const double *>view.buf
    cdef uint64_t *order = NULL
    cdef int64_t *starts = NULL
    cdef int64_t *offsets
    cdef uint64_t *ids
    cdef double hits
    try:
        _require_predicate(predicate)
        offset_array = _empty(m + 1, _int64)
        offsets = <int64_t *>data_of(offset_array)
        hits = _expected_hits(state, queries, m)
        if m < LEAST_ORDERED or hits > MOST_ORDERED_HITS:
            with nogil:
                found.need(<Py_ssize_t>min(1.1 * hits * m * sizeof(int64_t), <double>MOST_EXPECTED))
                _query_in_order(store, state, queries, m, <Predicate>predicate, NULL, found, offsets)
            return offset_array, found.to_array(_int64)
        starts = <int64_t *>allocate((m + 1) * sizeof(int64_t))
        if starts == NULL:
            raise MemoryError
        with nogil:
            order = order_queries(queries, m, state.g.dims, True, state.box)
            _query_in_order(store, state, queries, m, <Predicate>predicate, order, found, starts)
        id_array = _empty(found.used // <Py_ssize_t>sizeof(int64_t), _int64)
        ids = <uint64_t *>data_of(id_array)
        with nogil:
            restore_offsets(starts, order, m, offsets)
            restore_words(<const uint64_t *>found.data, starts, order, m, offsets, ids)
        return offset_array, id_array
    finally:
        release(order)
        release(starts)
        PyBuffer_Release(&view)


cdef int _query_in_order(Store store, TreeState state, const double *queries, int64_t m, Predicate predicate,
                         const uint64_t *order, Arena found, int64_t *offsets) except -1 nogil:
    """Answers the queries in an order (NULL: as they stand); offsets[i] is where the i-th one answered starts."""
    cdef Walk walk
    cdef int64_t i
    open_walk(&walk, store, state, predicate)
    try:
        for i in range(m):
            offsets[i] = found.used // <Py_ssize_t>sizeof(int64_t)
            _collect(&walk, store, state, queries + 2 * state.g.dims * (order[i] if order != NULL else i), found)
        offsets[m] = found.used // <Py_ssize_t>sizeof(int64_t)
    finally:
        close_walk(&walk)
    return 0


def query_one(Store store not None, TreeState state not None, box, int predicate):
    """Ids of the records that qualify for one query box, float64 (2 * dims,): (n,) int64.

    Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef Arena found = Arena()
    cdef int64_t offsets[2]
    _require_predicate(predicate)
    _borrow_box(box, &view, state)
    try:
        with nogil:
            _query_in_order(store, state, <const double *>view.buf, 1, <Predicate>predicate, NULL, found, offsets)
        return found.to_array(_int64)
    finally:
        PyBuffer_Release(&view)


cdef int _borrow_box(object box, Py_buffer *view, TreeState state) except -1:
    cdef Py_ssize_t rows = borrow(box, view, 2 * state.g.dims * sizeof(double))
    if rows != 1:
        PyBuffer_Release(view)
        raise ValueError(f"{rows} boxes, expected one")
    return 0


def count(Store store not None, TreeState state not None, boxes, int predicate):
    """How many records qualify for each query box, float64 (m, 2 * dims): (m,) int64.

    Raises CorruptionError, MemoryError.
    """
    cdef Py_buffer view
    cdef int64_t m = borrow(boxes, &view, 2 * state.g.dims * sizeof(double))
    cdef const double *queries = <const double *>view.buf
    cdef uint64_t *order = NULL
    cdef Arena scratch = Arena()
    cdef int64_t *out
    try:
        _require_predicate(predicate)
        counts = _empty(m, _int64)
        out = <int64_t *>data_of(counts)
        with nogil:
            if m >= LEAST_ORDERED:
                order = order_queries(queries, m, state.g.dims, True, state.box)
            _count_in_order(store, state, queries, m, <Predicate>predicate, order, scratch, out)
        return counts
    finally:
        release(order)
        PyBuffer_Release(&view)


cdef int _count_in_order(Store store, TreeState state, const double *queries, int64_t m, Predicate predicate,
                         const uint64_t *order, Arena scratch, int64_t *counts) except -1 nogil:
    cdef Walk walk
    cdef int64_t i, q
    open_walk(&walk, store, state, predicate)
    try:
        for i in range(m):
            q = order[i] if order != NULL else i
            counts[q] = _tally(&walk, store, state, queries + 2 * state.g.dims * q, scratch)
    finally:
        close_walk(&walk)
    return 0


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
    cdef Bucket *leaf
    cdef bint inside
    cdef double other[2 * MAX_DIMS]
    cdef uint32_t i
    open_walk(&walk, store, state, Predicate.CONTAINS)
    try:
        start_walk(&walk, state, box)
        while True:
            next_leaf(&walk, store, state, &leaf, &inside)
            if leaf == NULL:
                return 0
            for i in range(leaf.count):
                if <int64_t>refs(&state.g, leaf)[i] == id:
                    get_box(&state.g, leaf, i, other)
                    if boxes_equal(other, box, state.g.dims):
                        return 1
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
    cdef Bucket *leaf
    cdef bint inside
    cdef Py_ssize_t box_bytes = 2 * state.g.dims * sizeof(double)
    cdef uint32_t i
    open_walk(&walk, store, state, Predicate.INTERSECTS)
    try:
        start_walk(&walk, state, NULL)
        while True:
            next_leaf(&walk, store, state, &leaf, &inside)
            if leaf == NULL:
                return 0
            ids.need(<Py_ssize_t>leaf.count * sizeof(uint64_t))
            boxes.need(leaf.count * box_bytes)
            memcpy(ids.data + ids.used, refs(&state.g, leaf), leaf.count * sizeof(uint64_t))
            ids.used += leaf.count * sizeof(uint64_t)
            for i in range(leaf.count):
                get_box(&state.g, leaf, i, <double *>(boxes.data + boxes.used))
                boxes.used += box_bytes
    finally:
        close_walk(&walk)
