"""Nearest neighbours by best-first search (Hjaltason, Samet: Distance browsing in spatial databases, TODS 1999).

Pages wait in a heap by the distance of their boxes; the k nearest records so far in another. A page farther than the
k-th record ends the search. Distances are Euclidean, from the point to the nearest place of the box; equal ones are
ordered by id, so pages at exactly the distance of the k-th record are still read.

The first descent goes straight to the nearest leaf and fills the heap of records, before any other page is put into
the heap of pages: most of them are then known to be too far.

In floating point as in geometry a box is never farther than one it contains, up to the rounding of a sum of squares;
NEARER makes up for that.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.queries.explain cimport LevelAccesses, count_page
from xtree.algorithms.kernels.arrays cimport (
    Arena, borrow, data_of, keep_arena, raise_no_memory, read_once, require_memory, take_arena,
)
from xtree.algorithms.bucket cimport Bucket, lower, refs, stride, upper
from xtree.algorithms.kernels.forms cimport SAFE_LEAST, SAFE_MOST, distances, scaled_distance
from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.base.breath cimport Breath, Team, begin_with_gil, end_with_gil, first_breath, spend
from xtree.persistence.base.memory cimport allocate, reallocate, release
from xtree.persistence.store.store cimport Store, breathe
from xtree.algorithms.kernels.query_order cimport LEAST_ORDERED, order_queries, restore_offsets, restore_words
from xtree.algorithms.tree_state cimport TreeState, resolve_bucket

import numpy as np

from xtree.errors import CorruptionError

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    A_BREATH = 64                   # points of a batch between two looks at the mappings
    FIRST_PAGES = 40                # room in the heap
    EMITTED_AT_ONCE = 256           # results of a point: at least so many between two breaths
    LANES = 8                       # minima that are taken side by side
    MOST_GROUPS = 64
    BYTES_A_RESULT = 32             # id and distance, in the order answered and in the order asked for
    FEW = 100                       # results found in less time than it takes to give the GIL away and get it back

cdef double NEARER = 1.0 - 2.0 ** -48

cdef object _int64 = np.dtype(np.int64)
cdef object _float64 = np.dtype(np.float64)


cdef inline bint _farther(const Neighbour *a, const Neighbour *b) noexcept nogil:
    return a.distance > b.distance or (a.distance == b.distance and a.id > b.id)


cdef inline void _sink(Neighbour *heap, int64_t n, Neighbour item) noexcept nogil:
    """Puts an item into the place of the farthest of n neighbours."""
    cdef int64_t place = 0
    cdef int64_t child = 1
    while child < n:
        if child + 1 < n and _farther(&heap[child + 1], &heap[child]):
            child += 1
        if not _farther(&heap[child], &item):
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = item


cdef inline void _offer(Search *s, double distance, int64_t id) noexcept nogil:
    """Keeps a record, whose distance isn't above the limit, if it is among the k best so far."""
    cdef Neighbour item
    cdef int64_t place, parent
    item.distance, item.id = distance, id
    if s.best_count == s.k:
        if _farther(&s.best[0], &item):
            _sink(s.best, s.k, item)
            s.limit = s.best[0].distance
        return
    place = s.best_count
    s.best_count += 1
    while place > 0:
        parent = (place - 1) // 2
        if not _farther(&item, &s.best[parent]):
            break
        s.best[place] = s.best[parent]
        place = parent
    s.best[place] = item
    if s.best_count == s.k:
        s.limit = s.best[0].distance


cdef int _push_page(Search *s, double distance, NodeID node, int level) except -1 nogil:
    cdef int64_t place = s.page_count
    cdef int64_t parent
    cdef int64_t room = 2 * place + FIRST_PAGES
    cdef Page *pages
    if place == s.page_room:
        pages = <Page *>reallocate(s.pages, room * sizeof(Page))
        if pages == NULL:
            raise_no_memory()
        s.pages = pages
        s.page_room = room
    s.page_count += 1
    while place > 0:
        parent = (place - 1) // 2
        if s.pages[parent].distance <= distance:
            break
        s.pages[place] = s.pages[parent]
        place = parent
    s.pages[place].distance = distance
    s.pages[place].node = node
    s.pages[place].level = level
    return 0


cdef Page _pop_page(Search *s) noexcept nogil:
    cdef Page nearest = s.pages[0]
    cdef Page item
    cdef int64_t place = 0
    cdef int64_t child = 1
    s.page_count -= 1
    item = s.pages[s.page_count]
    while child < s.page_count:
        if child + 1 < s.page_count and s.pages[child + 1].distance < s.pages[child].distance:
            child += 1
        if item.distance <= s.pages[child].distance:
            break
        s.pages[place] = s.pages[child]
        place, child = child, 2 * child + 1
    s.pages[place] = item
    return nearest


cdef Bucket *_read_page(Search *s, Store store, TreeState state, NodeID node, int level) except NULL nogil:
    """Resolves a page and works out the distances of its entries; out of the safe range they are still rough."""
    cdef Bucket *b = resolve_bucket(store, state, node, level)
    cdef double *room
    if s.distance_room < <int64_t>b.count:
        room = <double *>reallocate(s.distances, b.count * sizeof(double))
        if room == NULL:
            raise_no_memory()
        s.distances = room
        s.distance_room = b.count
    distances(lower(&state.g, b, 0), upper(&state.g, b, 0), stride(&state.g, b), s.dims, b.count, s.point,
              s.distances)
    return b


cdef inline Bucket *_visit_page(Search *s, Store store, TreeState state, NodeID node, int level) except NULL nogil:
    """Reads a page for the first time in a search."""
    cdef Bucket *b = _read_page(s, store, state, node, level)
    s.visits += 1
    spend(s.breath, 1 + b.count * s.entry_work)
    if s.accesses != NULL:
        count_page(s.accesses, b, True)
    return b


cdef inline double _exact(Search *s, TreeState state, Bucket *b, int64_t entry) noexcept nogil:
    """The distance of an entry of the page just read."""
    cdef double distance = s.distances[entry]
    if SAFE_LEAST <= distance <= SAFE_MOST:
        return distance
    return scaled_distance(lower(&state.g, b, 0) + entry, upper(&state.g, b, 0) + entry, stride(&state.g, b), s.dims,
                           s.point)


cdef inline void _least_by_lane(const double *values, int64_t n, double *least, int64_t lanes) noexcept nogil:
    """least[j] is the least of the values j, j + lanes, j + 2 * lanes …; there are at least as many as lanes."""
    cdef int64_t start = lanes
    cdef int64_t j
    for j in range(lanes):
        least[j] = values[j]
    while start + lanes <= n:
        for j in range(lanes):
            least[j] = values[start + j] if values[start + j] < least[j] else least[j]
        start += lanes
    for j in range(n - start):
        least[j] = values[start + j] if values[start + j] < least[j] else least[j]


cdef int64_t _nearest_entry(Search *s, int64_t n) noexcept nogil:
    """The first of the nearest of n entries."""
    cdef double by_lane[LANES]
    cdef double least
    cdef int64_t lanes = min(n, <int64_t>LANES)
    cdef int64_t i
    _least_by_lane(s.distances, n, by_lane, lanes)
    least = by_lane[0]
    for i in range(1, lanes):
        least = by_lane[i] if by_lane[i] < least else least
    i = 0
    while s.distances[i] != least:
        i += 1
    return i


cdef void _lower_limit(Search *s, int64_t n) noexcept nogil:
    """Lowers the limit to a distance within which k of the n records measured lie: the nearest of each of k groups.

    So only a few of them go through the heap, whatever their order.
    """
    cdef double by_group[MOST_GROUPS]
    cdef double limit
    cdef int64_t j
    if s.k > MOST_GROUPS or 2 * s.k > n:
        return
    _least_by_lane(s.distances, n, by_group, s.k)
    limit = by_group[0]
    for j in range(1, s.k):
        limit = by_group[j] if by_group[j] > limit else limit
    if 2 * SAFE_LEAST <= limit <= SAFE_MOST and limit < s.limit:    # what lies below the safe range is nearer, too
        s.limit = limit


cdef void _take_records(Search *s, TreeState state, Bucket *leaf) noexcept nogil:
    cdef int64_t i
    cdef double distance
    if s.best_count == 0:
        _lower_limit(s, leaf.count)
    for i in range(<int64_t>leaf.count):
        # A rough distance above the safe range may be far too large, but the true one is not below such a limit.
        if s.distances[i] > s.limit and s.limit <= SAFE_MOST:
            continue
        distance = _exact(s, state, leaf, i)
        if distance <= s.limit:
            _offer(s, distance, <int64_t>refs(&state.g, leaf)[i])


cdef int _take_children(Search *s, TreeState state, Bucket *b, int64_t taken) except -1 nogil:
    """Puts the children that may hold results into the heap of pages, but for the one already taken."""
    cdef int64_t i
    cdef double distance
    for i in range(<int64_t>b.count):
        if i == taken or (s.distances[i] * NEARER > s.limit and s.limit <= SAFE_MOST):
            continue
        distance = _exact(s, state, b, i)
        if distance * NEARER <= s.limit:
            _push_page(s, distance, refs(&state.g, b)[i], b.level - 1)
    return 0


cdef int _first_descent(Search *s, Store store, TreeState state) except -1 nogil:
    """Descends to the leaf that looks nearest and takes its records, then on the way back up the other children."""
    cdef int level = s.levels - 1
    cdef NodeID node = state.root
    cdef Bucket *b
    cdef int64_t nearest
    while True:
        b = _visit_page(s, store, state, node, level)
        if level == 0 or b.count == 0:
            break
        nearest = _nearest_entry(s, b.count)
        s.path[level] = node
        s.taken[level] = nearest
        node = refs(&state.g, b)[nearest]
        level -= 1
    if level == 0:
        _take_records(s, state, b)
    while level < s.levels - 1:
        level += 1
        b = _read_page(s, store, state, s.path[level], level)
        _take_children(s, state, b, s.taken[level])
    return 0


cdef int _search(Search *s, Store store, TreeState state, const double *points, int64_t row) except -1 nogil:
    """Fills `best` with the results of one of the points, as a heap.

    Among distances that aren't numbers there is no nearest, so the point is checked once more: its owner may be
    changing it.
    """
    cdef Page page
    cdef Bucket *b
    cdef int axis
    for axis in range(s.dims):
        s.point[axis] = read_once(points + row * s.dims + axis)
        if not isfinite(s.point[axis]):
            _raise_changed(row)
    s.limit = s.max_distance
    s.best_count = 0
    s.page_count = 0
    s.visits = 0
    if s.k == 0:
        return 0
    _first_descent(s, store, state)
    while s.page_count > 0:
        page = _pop_page(s)
        if page.distance * NEARER > s.limit:
            break
        if s.visits >= s.most_visits:
            _raise_visits(s.visits + 1)
        b = _visit_page(s, store, state, page.node, page.level)
        if page.level == 0:
            _take_records(s, state, b)
        else:
            _take_children(s, state, b, -1)
    return 0


cdef int _raise_changed(int64_t row) except -1 with gil:
    raise ValueError(f"point not finite: row {row} was changed during the call")


cdef int _raise_visits(uint64_t visits) except -1 with gil:
    raise CorruptionError(f"a search visited {visits} pages, more than there are: a page is reached twice")


cdef int _emit(Search *s, Arena ids, Arena found) except -1 nogil:
    """Appends the results in ascending order; empties the heap."""
    cdef int64_t n = s.best_count
    cdef int64_t *id_out
    cdef double *distance_out
    ids.need(n * sizeof(int64_t))
    found.need(n * sizeof(double))
    id_out = <int64_t *>(ids.data + ids.used)
    distance_out = <double *>(found.data + found.used)
    ids.used += n * sizeof(int64_t)
    found.used += n * sizeof(double)
    while n > 0:
        if n % EMITTED_AT_ONCE == 0:
            spend(s.breath, EMITTED_AT_ONCE * s.entry_work)
        n -= 1
        id_out[n] = s.best[0].id
        distance_out[n] = s.best[0].distance
        _sink(s.best, n, s.best[n])
    return 0


cdef int64_t _heap_work(int64_t k) noexcept nogil:
    """The work of putting a record into a heap of k: none while k is small, since then few records get there."""
    cdef int64_t work = 0
    while k > MOST_GROUPS:
        work += 4
        k >>= 1
    return work


cdef int search_points(Store store, TreeState state, const double *points, int64_t m, int64_t k, double max_distance,
                       const uint64_t *order, Arena ids, Arena found, int64_t *starts,
                       LevelAccesses *accesses, Breath *breath) except -1 nogil:
    cdef Search s
    cdef int64_t i
    cdef uint64_t generation = 0
    s.dims = state.g.dims
    s.levels = state.levels
    s.max_distance = max_distance
    s.k = min(k, <int64_t>state.records) if state.levels > 0 else 0
    s.most_visits = load_acquire(&store.table.high_water)
    s.accesses = accesses
    s.entry_work = s.dims + _heap_work(s.k)
    s.breath = breath
    s.pages, s.page_room = NULL, 0
    s.distances, s.distance_room = NULL, 0
    s.best = <Neighbour *>allocate(s.k * sizeof(Neighbour))
    if s.best == NULL:
        raise_no_memory()
    try:
        for i in range(m):
            if i and i % A_BREATH == 0:
                breathe(store, &generation)
            starts[i] = ids.used // <Py_ssize_t>sizeof(int64_t)
            _search(&s, store, state, points, order[i] if order != NULL else i)
            _emit(&s, ids, found)
        starts[m] = ids.used // <Py_ssize_t>sizeof(int64_t)
    finally:
        release(s.best)
        release(s.pages)
        release(s.distances)
    return 0


cdef int _search_one(Store store, TreeState state, const double *point, int64_t k, double max_distance, Arena ids,
                     Arena found) except -1 nogil:
    """Called with the GIL, which it gives away when it takes long."""
    cdef Breath breath
    cdef int64_t starts[2]
    first_breath(&breath, None)
    begin_with_gil(&breath, k <= FEW)
    try:
        search_points(store, state, point, 1, k, max_distance, NULL, ids, found, starts, NULL, &breath)
    finally:
        end_with_gil(&breath)
    return 0


cdef tuple nearest_of_one(Store store, TreeState state, const double *point, int64_t k, double max_distance):
    cdef Arena ids = Arena()
    cdef Arena found = Arena()
    _search_one(store, state, point, k, max_distance, ids, found)
    return ids.to_array(_int64), found.to_array(_float64)


def require_room(TreeState state not None, long long m, long long k, double max_distance) -> None:
    """Raises MemoryError when the results of m points can't fit, as far as their number is known beforehand."""
    if max_distance == INFINITY:
        require_memory(BYTES_A_RESULT * <double>m * min(k, <int64_t>state.records))


cdef Py_ssize_t _bytes_of(int64_t m, int64_t k) except -1:
    """How many bytes k ids for each of m points take. Raises MemoryError when no address space has so many."""
    if <double>sizeof(int64_t) * m * k >= PY_SSIZE_T_MAX:
        raise MemoryError(f"no memory for {k} neighbours of {m} points")
    return m * k * sizeof(int64_t)


def nearest(Store store not None, TreeState state not None, points, long long k, double max_distance=INFINITY,
            Team team=None):
    """The k nearest records of each point: (offsets (m + 1,) int64, ids (n,) int64, distances (n,) float64).

    `points` is float64 (m, dims), C-contiguous and finite. The results of point i stand at offsets[i] to
    offsets[i + 1], in the order of (distance, id); fewer than k when the tree has fewer within max_distance, which is
    inclusive. Raises CorruptionError, MemoryError, and what a breath does.
    """
    cdef Py_buffer view
    cdef Breath breath
    cdef Arena ids, found
    cdef Py_ssize_t expected = 0
    cdef int64_t m = borrow(points, &view, state.g.dims * sizeof(double))
    cdef const double *coordinates = <const double *>view.buf
    cdef uint64_t *order = NULL
    cdef int64_t *starts = NULL
    cdef int64_t *offsets
    cdef uint64_t *id_out
    cdef uint64_t *distance_out
    first_breath(&breath, team)
    try:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        offset_array = np.empty(m + 1, _int64)
        offsets = <int64_t *>data_of(offset_array)
        if max_distance == INFINITY:
            expected = _bytes_of(m, min(k, <int64_t>state.records))
        if m < LEAST_ORDERED:
            ids, found = Arena(), Arena()
            with nogil:
                ids.need(expected)
                found.need(expected)
                search_points(store, state, coordinates, m, k, max_distance, NULL, ids, found, offsets, NULL,
                              &breath)
            return offset_array, ids.to_array(_int64), found.to_array(_float64)
        starts = <int64_t *>allocate((m + 1) * sizeof(int64_t))
        if starts == NULL:
            raise MemoryError
        ids, found = take_arena(), take_arena()
        with nogil:
            ids.need(expected)
            found.need(expected)
            order_queries(coordinates, m, state.g.dims, False, state.box, &order, &breath)
            search_points(store, state, coordinates, m, k, max_distance, order, ids, found, starts, NULL, &breath)
        require_memory(16.0 * starts[m])
        id_array = np.empty(starts[m], _int64)
        distance_array = np.empty(starts[m], _float64)
        id_out = <uint64_t *>data_of(id_array)
        distance_out = <uint64_t *>data_of(distance_array)
        with nogil:
            restore_offsets(starts, order, m, offsets, &breath)
            restore_words(<const uint64_t *>ids.data, starts, order, m, offsets, id_out, &breath)
            restore_words(<const uint64_t *>found.data, starts, order, m, offsets, distance_out, &breath)
        keep_arena(ids)
        keep_arena(found)
        return offset_array, id_array, distance_array
    finally:
        release(order)
        release(starts)
        PyBuffer_Release(&view)
