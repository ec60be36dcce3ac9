"""Inspection: whether a tree is what an X-tree must be, and what it is made of. Both read every page."""

from libc.math cimport isfinite
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from xtree.algorithms.kernels.box cimport MAX_DIMS, UnitSpace, box_overlap, make_unit_space
from xtree.algorithms.bucket cimport Bucket, bounding_box, entry_limit, get_box, history, lower, refs, upper
from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.base.breath cimport Breath, first_breath, spend
from xtree.persistence.pages.node_id cimport NodeID, handle_of
from xtree.persistence.pages.object_table cimport STATE_RESERVED, Row, state_of
from xtree.persistence.pages.page cimport class_bytes
from xtree.persistence.pages.page_checksum cimport page_crc
from xtree.persistence.store.reached_pages cimport ReachedPages
from xtree.persistence.store.store cimport Store
from xtree.algorithms.updates.removal cimport least_entries
from xtree.algorithms.tree_state cimport MAX_LEVELS, TreeState, resolve_bucket

from xtree.errors import CorruptionError

cdef enum:
    ALL_PAIRS = 128                 # siblings whose overlaps are all measured; if there are more, so many for each
    BLOCK_WORK = 1024               # to check a page of the smallest class


# What has been seen so far of a tree.
cdef struct Census:
    uint64_t records
    Breath breath


cdef struct LevelFigures:
    uint64_t nodes
    uint64_t supernodes
    uint64_t entries
    uint64_t limit                  # entries that all nodes together may hold
    uint64_t blocks
    uint64_t supernode_entries
    uint64_t supernode_limit
    uint64_t bytes
    uint64_t parents
    double overlap                  # summed over the parents


def check(Store store not None, TreeState state not None, ReachedPages reached=None) -> None:
    """Verifies page by page that a tree is a valid X-tree. Raises CorruptionError at the first violation.

    reached: pages of other trees of the epoch, to which those of this tree are added.

    Every page is reached exactly once, has the level, kind, dims and size that its place asks for and its row's CRC,
    holds neither too many nor too few entries, all finite and in order; every entry's box is the exact bounding box of
    its child, the tree's bounds are that of the root; no id is outside the bounds in a page above it; the leaves hold
    as many records as the tree says.
    """
    cdef Census census
    if reached is None:
        reached = ReachedPages(store)
    census.records = 0
    first_breath(&census.breath, None)
    with nogil:
        if state.levels > 0:
            _check_page(&census, reached, store, state, state.root, state.levels - 1, state.box, False, INT64_MIN,
                        INT64_MAX)
    if census.records != state.records:
        raise CorruptionError(f"tree of {state.records} records, its leaves hold {census.records}")


def check_page(Store store not None, TreeState state not None, NodeID node, int level, const double[::1] box not None,
               bint siblings, tuple ids=None) -> int:
    """Verifies one page of a tree and nothing below it; returns how many entries it has.

    level: the one that its place asks for. box: (2 * dims,) float64, from its parent's entry; for a root the tree's
    bounds. siblings: whether the parent has other entries. ids: the parent's bounds of ids; None for a root. The caller
    must be in flight, and must have pinned an epoch of the state. Raises CorruptionError, as `check` does.
    """
    cdef Bucket *b
    cdef int64_t least_id = INT64_MIN if ids is None else ids[0]
    cdef int64_t most_id = INT64_MAX if ids is None else ids[1]
    if box.shape[0] != 2 * state.g.dims:
        raise ValueError(f"a box of {box.shape[0]} numbers in a tree of {state.g.dims} dims")
    with nogil:
        b = resolve_bucket(store, state, node, level)
        _check_content(store.path is not None, store, state, node, b, &box[0], siblings, least_id, most_id)
    return b.count


cdef int _check_page(Census *census, ReachedPages reached, Store store, TreeState state, NodeID node, int level,
                     const double *box, bint siblings, int64_t least_id, int64_t most_id) except -1 nogil:
    """Checks a page and all below it. Its parent says that it has this box, and ids within these bounds."""
    cdef double child_box[2 * MAX_DIMS]
    cdef Bucket *b = resolve_bucket(store, state, node, level)
    cdef uint32_t i
    spend(&census.breath, (<int64_t>1 << b.size_class) * BLOCK_WORK)
    if reached.reach(node):
        _raise_wrong(node, level, "number of times reached", 1, 2)
    _check_content(store.path is not None, store, state, node, b, box, siblings, least_id, most_id)
    if level == 0:
        census.records += b.count
        return 0
    for i in range(b.count):
        get_box(&state.g, b, i, child_box)
        _check_page(census, reached, store, state, refs(&state.g, b)[i], level - 1, child_box, b.count > 1, b.least_id,
                    b.most_id)
    return 0


cdef int _check_content(bint durable, Store store, TreeState state, NodeID node, Bucket *b, const double *box,
                        bint siblings, int64_t least_id, int64_t most_id) except -1 nogil:
    _check_slot(durable, store, state, node, b)
    _check_count(state, node, b, siblings)
    _check_ids(state, node, b, least_id, most_id)
    return _check_entries(state, node, b, box)


cdef int _check_slot(bint durable, Store store, TreeState state, NodeID node, Bucket *b) except -1 nogil:
    """Checks the header against the row and the tree's page size."""
    cdef Row *row = store.table.row(handle_of(node))
    cdef int row_state = state_of(load_acquire(&row.word))
    cdef uint64_t block_bytes = class_bytes(state.g.base_class)
    cdef uint32_t crc
    if b.node_id != node:
        _raise_wrong(node, b.level, "NodeID in the header", node, b.node_id)
    if b.blocks < 1 or b.blocks * block_bytes > class_bytes(b.size_class):
        _raise_wrong(node, b.level, "number of blocks", class_bytes(b.size_class) // block_bytes, b.blocks)
    if b.size_class != state.g.base_class and b.blocks * block_bytes <= class_bytes(b.size_class - 1):
        _raise_wrong(node, b.level, "size class", b.size_class - 1, b.size_class)
    if durable and row_state != STATE_RESERVED:
        crc = page_crc(<const char *>b, class_bytes(b.size_class))
        if crc != row.crc:
            _raise_wrong(node, b.level, "CRC", row.crc, crc)
    return 0


cdef int _check_count(TreeState state, NodeID node, Bucket *b, bint siblings) except -1 nogil:
    """Checks that entries fit and are not so few that removal dissolves the page; a root needs 1, a directory 2."""
    cdef uint64_t most = entry_limit(&state.g, b)
    cdef bint is_root = b.level == state.levels - 1
    cdef double least = 1.0
    if is_root and b.level > 0:
        least = 2.0
    elif not is_root and siblings:
        least = least_entries(&state.g, b)
    if b.count > most:
        _raise_wrong(node, b.level, "most entries", most, b.count)
    if b.count < least:
        _raise_wrong(node, b.level, "least entries", <uint64_t>least, b.count)
    return 0


cdef int _check_ids(TreeState state, NodeID node, Bucket *b, int64_t least_id, int64_t most_id) except -1 nogil:
    """Checks that the page's bounds of ids lie within its parent's, and a leaf's ids within them."""
    cdef const int64_t *ids = <const int64_t *>refs(&state.g, b)
    cdef uint32_t i
    if not least_id <= b.least_id <= b.most_id <= most_id:
        _raise_wrong_ids(node, b.level, least_id, most_id, b.least_id, b.most_id)
    if b.level == 0:
        for i in range(b.count):
            if not b.least_id <= ids[i] <= b.most_id:
                _raise_wrong_ids(node, 0, b.least_id, b.most_id, ids[i], ids[i])
    return 0


cdef int _check_entries(TreeState state, NodeID node, Bucket *b, const double *box) except -1 nogil:
    """Checks for finite boxes in order, histories of axes that exist, and a bounding box that is the parent's entry."""
    cdef int dims = state.g.dims
    cdef uint64_t axes = <uint64_t>-1 >> (64 - dims)
    cdef double bounds[2 * MAX_DIMS]
    cdef const double *low
    cdef const double *high
    cdef uint32_t i
    cdef int axis
    for axis in range(dims):
        low = lower(&state.g, b, axis)
        high = upper(&state.g, b, axis)
        for i in range(b.count):
            if not (isfinite(low[i]) and isfinite(high[i]) and low[i] <= high[i]):
                _raise_wrong_bounds(node, b.level, i, axis, low[i], high[i])
    if b.level > 0:
        for i in range(b.count):
            if history(&state.g, b)[i] & ~axes:
                _raise_wrong(node, b.level, "split history", axes, history(&state.g, b)[i])
    bounding_box(&state.g, b, bounds)
    for axis in range(2 * dims):
        if bounds[axis] != box[axis]:
            _raise_wrong_box(node, b.level, axis % dims, axis >= dims, box[axis], bounds[axis])
    return 0


cdef int _raise_wrong(NodeID node, int level, const char *what, uint64_t expected, uint64_t found) except -1 with gil:
    raise CorruptionError(f"page {node:#x}, level {level}: {what.decode()}: expected {expected}, found {found}")


cdef int _raise_wrong_ids(NodeID node, int level, int64_t least, int64_t most, int64_t found,
                          int64_t found_most) except -1 with gil:
    raise CorruptionError(f"page {node:#x}, level {level}: expected ids from {least} to {most}, found {found} to "
                          f"{found_most}")


cdef int _raise_wrong_bounds(NodeID node, int level, uint32_t entry, int axis, double low,
                             double high) except -1 with gil:
    raise CorruptionError(f"page {node:#x}, level {level}: entry {entry} spans {low} to {high} on axis {axis}, "
                          f"expected finite and ascending")


cdef int _raise_wrong_box(NodeID node, int level, int axis, bint upper_end, double expected,
                          double found) except -1 with gil:
    raise CorruptionError(f"page {node:#x}, level {level}: {'upper' if upper_end else 'lower'} bound on axis {axis}: "
                          f"expected {expected} by its parent, found {found} by its entries")


def stats(Store store not None, TreeState state not None) -> dict:
    """What a tree is made of: records, height, nodes, supernodes, bytes, and levels, leaves first.

    A level is a dict of level, nodes, entries, fill (entries as a share of what its nodes may hold), supernodes, blocks
    (of the tree's page size, in all nodes), page_fill and supernode_fill (fill of the nodes that aren't supernodes, and
    of those that are; 0 where there are none), and overlap: the volumes that its nodes share with their siblings,
    summed over all pairs, as a share of the parent's volume; the average over the parents. Raises CorruptionError.
    """
    cdef LevelFigures figures[MAX_LEVELS]
    cdef Breath breath
    cdef uint64_t nodes = 0
    memset(figures, 0, sizeof(figures))
    first_breath(&breath, None)
    if state.levels > 0:
        with nogil:
            _measure_page(figures, store, state, state.root, state.levels - 1, load_acquire(&store.table.high_water),
                          &breath)
    levels = []
    for level in range(state.levels):
        nodes += figures[level].nodes
        levels.append({
            "level": level,
            "nodes": figures[level].nodes,
            "entries": figures[level].entries,
            "fill": _share(figures[level].entries, figures[level].limit),
            "overlap": figures[level].overlap / figures[level].parents if figures[level].parents else 0.0,
            "supernodes": figures[level].supernodes,
            "blocks": figures[level].blocks,
            "page_fill": _share(figures[level].entries - figures[level].supernode_entries,
                                figures[level].limit - figures[level].supernode_limit),
            "supernode_fill": _share(figures[level].supernode_entries, figures[level].supernode_limit),
        })
    return {
        "records": state.records,
        "height": state.levels,
        "nodes": nodes,
        "supernodes": sum([figures[level].supernodes for level in range(state.levels)]),
        "levels": levels,
        "bytes": sum([figures[level].bytes for level in range(state.levels)]),
    }


cdef double _share(uint64_t part, uint64_t whole) noexcept nogil:
    return part / <double>whole if whole > 0 else 0.0


cdef int _measure_page(LevelFigures *figures, Store store, TreeState state, NodeID node, int level,
                       uint64_t handles, Breath *breath) except -1 nogil:
    cdef Bucket *b = resolve_bucket(store, state, node, level)
    cdef LevelFigures *own = &figures[level]
    cdef uint32_t i
    spend(breath, 256)
    own.nodes += 1
    if own.nodes > handles:
        _raise_nodes(own.nodes, level)
    own.entries += b.count
    own.limit += entry_limit(&state.g, b)
    own.bytes += class_bytes(b.size_class)
    own.blocks += b.blocks
    if b.blocks > 1:
        own.supernodes += 1
        own.supernode_entries += b.count
        own.supernode_limit += entry_limit(&state.g, b)
    if level == 0:
        return 0
    spend(breath, 1 + <int64_t>b.count * min(<int64_t>b.count, <int64_t>ALL_PAIRS) * state.g.dims)
    figures[level - 1].parents += 1
    figures[level - 1].overlap += _shared_volume(state, b)
    for i in range(b.count):
        _measure_page(figures, store, state, refs(&state.g, b)[i], level - 1, handles, breath)
    return 0


cdef double _shared_volume(TreeState state, Bucket *b) noexcept nogil:
    """The volumes that pairs of entries of a page share, summed, as a share of the page's; large pages are sampled."""
    cdef UnitSpace space
    cdef double region[2 * MAX_DIMS]
    cdef double box[2 * MAX_DIMS]
    cdef double other[2 * MAX_DIMS]
    cdef int64_t count = b.count
    cdef int64_t step = max(count // ALL_PAIRS, <int64_t>1)
    cdef int64_t i, j
    cdef double shared = 0.0
    if count < 2:
        return 0.0
    bounding_box(&state.g, b, region)
    make_unit_space(&space, state.g.dims, region)
    for i in range(count):
        get_box(&state.g, b, <int>i, box)
        j = i + 1
        while j < count:
            get_box(&state.g, b, <int>j, other)
            shared += box_overlap(&space, box, other)
            j += step
    return shared * step


cdef int _raise_nodes(uint64_t nodes, int level) except -1 with gil:
    raise CorruptionError(f"{nodes} nodes on level {level}, more than there are: a page is reached twice")
