"""Insertion as in the R*-tree (Beckmann et al., SIGMOD 1990, section 4.1), with the X-tree's splits and supernodes.

No forced reinsertion: under copy-on-write every entry reinserted would copy another path.

Records that come in an order, sorted or along a path through space, leave split pages that are never filled again, and
stretch the boxes of the pages ahead of them. A batch is therefore inserted in an order that is spread over its rows. A
batch for a tree at least as large is inserted along a Hilbert curve, so that one record's pages are in the cache for
the next; such a tree has its pages already.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint16_t, uint64_t

from xtree.algorithms.kernels.arrays cimport raise_changed, raise_no_memory, read_box
from xtree.algorithms.kernels.box cimport MAX_DIMS, box_contains, copy_box, extend_box
from xtree.algorithms.bucket cimport (
    KIND_DIRECTORY, KIND_LEAF, append_entry, bounding_box, column_capacity, copy_entries, entry_limit, get_box,
    history, init_bucket, insert_entry, refs, set_entry, widen_ids,
)
from xtree.persistence.base.breath cimport Breath, first_breath, spend
from xtree.persistence.base.right_of_way cimport got_gil, want_gil
from xtree.persistence.base.memory cimport allocate, release
from xtree.persistence.pages.page cimport SIZE_CLASSES, class_bytes
from xtree.algorithms.kernels.query_order cimport order_queries
from xtree.algorithms.updates.split cimport SPLIT_ON_AXIS, STAY_WHOLE
from xtree.algorithms.tree_state cimport resolve_bucket

from xtree.errors import CapacityError, CorruptionError

cdef enum:
    PAGE_WORK = 256                 # to copy a page on a path, or to find it writable already
    SPLIT_WORK = 64                 # per entry and axis
    ROWS_BETWEEN_REPORTS = 1024     # of progress
    LEAST_SPREAD = 16               # rows
    SPREAD_ROWS = 65536             # at a time, so that they and their pages stay in the cache
    LEAST_SORTED = 8192             # rows: fewer find little in the cache that an earlier one left there
    MOST_SORTED_DIMS = 3            # the curve is one of two axes

cdef double GOLDEN_SECTION = 0.6180339887498949


cdef class Inserter:
    """One transaction's way of putting entries into one tree."""

    def __cinit__(self, WriteSet ws not None, TreeState state not None):
        self.ws = ws
        self.store = ws.store
        self.state = state
        self.chooser = SubtreeChooser(ws.store, state)
        first_breath(&self.breath, None)

    cdef int insert(self, const double *box, uint64_t ref, uint64_t split_history, int level) except -1 nogil:
        cdef Bucket *child
        if self.state.root == 0:
            return self.plant(box, ref)
        extend_box(self.state.box, box, self.state.g.dims)
        if level == 0:
            self.descend(box, <int64_t>ref, <int64_t>ref, 0)
        else:
            child = resolve_bucket(self.store, self.state, ref, level - 1)
            self.descend(box, child.least_id, child.most_id, level)
        return self.place(box, ref, split_history, level)

    cdef int plant(self, const double *box, uint64_t ref) except -1 nogil:
        """Inserts the first record of an empty tree."""
        cdef Bucket *leaf = self.new_page(0, 1)
        append_entry(&self.state.g, leaf, box, ref, 0)
        widen_ids(leaf, <int64_t>ref, <int64_t>ref)
        copy_box(self.state.box, box, self.state.g.dims)
        self.state.root = leaf.node_id
        self.state.levels = 1
        return 0

    cdef int descend(self, const double *box, int64_t least_id, int64_t most_id, int level) except -1 nogil:
        """Chooses a path from the root to a page of `level`, makes it writable, and enlarges the entries along it."""
        cdef const Geometry *g = &self.state.g
        cdef int depth = self.state.levels - 1
        cdef int entry
        cdef Bucket *b
        cdef NodeID node = self.state.root
        cdef double region[2 * MAX_DIMS]
        copy_box(region, self.state.box, g.dims)
        b = make_writable(self.ws, self.state, &node, depth)
        self.repoint(depth, node)
        self.breath.left -= PAGE_WORK
        widen_ids(b, least_id, most_id)
        while depth > level:
            self.breath.left -= PAGE_WORK + <int64_t>b.count * g.dims
            entry = self.chooser.choose(b, box, least_id, region)
            node = refs(g, b)[entry]
            get_box(g, b, entry, region)
            if not box_contains(region, box, g.dims):
                extend_box(region, box, g.dims)
                set_entry(g, b, entry, region, node, history(g, b)[entry])
            self.chosen[depth] = entry
            depth -= 1
            b = make_writable(self.ws, self.state, &node, depth)
            self.repoint(depth, node)
            widen_ids(b, least_id, most_id)
        return 0

    cdef int place(self, const double *box, uint64_t ref, uint64_t split_history, int level) except -1 nogil:
        """Puts an entry into the page at the end of the path, and splits upwards from there as far as it must."""
        cdef const Geometry *g = &self.state.g
        cdef double overflowing[2 * MAX_DIMS]
        cdef int decision
        cdef int position
        cdef Bucket *b
        cdef bint done = False
        copy_box(overflowing, box, g.dims)
        while not done:
            b = resolve_bucket(self.store, self.state, self.path[level], level)
            position = b.count if level == 0 else self.place_of(b, overflowing, ref)
            if <int>b.count < entry_limit(g, b):
                insert_entry(g, b, position, overflowing, ref, split_history)
                return 0
            if self.splitter is None:
                with gil:
                    self.splitter = Splitter()
            self.breath.left -= <int64_t>b.count * g.dims * SPLIT_WORK
            self.splitter.gather(g, b, position, overflowing, ref, split_history)
            decision = self.splitter.plan(g, level > 0 and b.blocks < most_blocks(g))
            if level == 0:
                self.splitter.order_ids(g)
            if decision == STAY_WHOLE:
                self.resize(b, b.blocks + 1)
            else:
                done = self.split(b, decision == SPLIT_ON_AXIS, overflowing, &ref, &split_history)
                level += 1
        return 0

    cdef int place_of(self, Bucket *b, const double *box, NodeID child) except -1 nogil:
        return self.chooser.place_of(b, box, resolve_bucket(self.store, self.state, child, b.level - 1).least_id)

    cdef int resize(self, Bucket *b, int blocks) except -1 nogil:
        cdef const Geometry *g = &self.state.g
        cdef NodeID old = b.node_id
        cdef NodeID node = 0
        cdef Bucket *resized
        if class_of_blocks(g, blocks) == b.size_class:
            b.blocks = <uint16_t>blocks
            return 0
        resized = <Bucket *>self.ws.reserve(KIND_DIRECTORY, class_of_blocks(g, blocks), &node)
        init_bucket(g, resized, b.level, blocks)
        copy_entries(g, b, resized)
        self.repoint(b.level, node)
        return self.ws.retire(old)

    cdef int split(self, Bucket *b, bint on_axis, double *box, uint64_t *ref, uint64_t *split_history) except -1 nogil:
        """Carries out the splitter's plan for a page.

        Returns 1 when the tree got a new root over the two halves. Otherwise 0: then the first half has the page's
        entry in the parent, and the second is handed back as the entry to be placed there.
        """
        cdef const Geometry *g = &self.state.g
        cdef int level = b.level
        cdef int in_first = self.splitter.first
        cdef uint64_t axis_bit = <uint64_t>1 << self.splitter.axis if on_axis else 0
        cdef double first_box[2 * MAX_DIMS]
        cdef NodeID old = b.node_id
        cdef Bucket *parent
        cdef Bucket *first = b
        cdef Bucket *second = self.new_page(level, self.splitter.count - in_first)
        if level > 0 and class_of_blocks(g, blocks_for(g, in_first)) != b.size_class:
            first = self.new_page(level, in_first)
            self.repoint(level, first.node_id)
            self.ws.retire(old)
        elif level > 0:
            b.blocks = <uint16_t>blocks_for(g, in_first)
        self.splitter.write_group(g, 0, first)
        self.splitter.write_group(g, 1, second)
        self.bound_ids(first)
        self.bound_ids(second)
        bounding_box(g, first, first_box)
        bounding_box(g, second, box)
        ref[0] = second.node_id
        if level == self.state.levels - 1:
            split_history[0] = axis_bit | (self.splitter.common_history() if level > 0 else 0)
            self.raise_root(first_box, first.node_id, box, second.node_id, split_history[0])
            return 1
        parent = resolve_bucket(self.store, self.state, self.path[level + 1], level + 1)
        split_history[0] = history(g, parent)[self.chosen[level + 1]] | axis_bit
        set_entry(g, parent, self.chosen[level + 1], first_box, first.node_id, split_history[0])
        return 0

    cdef int raise_root(self, const double *box, NodeID node, const double *other_box, NodeID other,
                        uint64_t split_history) except -1 nogil:
        """Puts a new root over two pages. An axis that has split all their entries counts as having split them."""
        cdef const Geometry *g = &self.state.g
        cdef Bucket *root
        if self.state.levels == MAX_LEVELS:
            with gil:
                raise CapacityError(f"a tree has at most {MAX_LEVELS} levels")
        root = self.new_page(self.state.levels, 2)
        append_entry(g, root, box, node, split_history)
        append_entry(g, root, other_box, other, split_history)
        self.bound_ids(root)
        self.state.root = root.node_id
        self.state.levels += 1
        return 0

    cdef Bucket *new_page(self, int level, int count) except NULL nogil:
        """An empty page with room for `count` entries."""
        cdef const Geometry *g = &self.state.g
        cdef int blocks = blocks_for(g, count) if level > 0 else 1
        cdef NodeID node = 0
        cdef Bucket *b = <Bucket *>self.ws.reserve(KIND_DIRECTORY if level > 0 else KIND_LEAF,
                                                   class_of_blocks(g, blocks), &node)
        init_bucket(g, b, level, blocks)
        return b

    cdef int bound_ids(self, Bucket *b) except -1 nogil:
        """Sets the bounds of a page's ids from its entries."""
        cdef const uint64_t *entries = refs(&self.state.g, b)
        cdef Bucket *child
        cdef int i
        b.least_id = INT64_MAX
        b.most_id = INT64_MIN
        for i in range(<int>b.count):
            if b.level == 0:
                widen_ids(b, <int64_t>entries[i], <int64_t>entries[i])
            else:
                child = resolve_bucket(self.store, self.state, entries[i], b.level - 1)
                widen_ids(b, child.least_id, child.most_id)
        return 0

    cdef int repoint(self, int level, NodeID node) except -1 nogil:
        cdef Bucket *parent
        if level == self.state.levels - 1:
            self.state.root = node
        else:
            parent = resolve_bucket(self.store, self.state, self.path[level + 1], level + 1)
            refs(&self.state.g, parent)[self.chosen[level + 1]] = node
        self.path[level] = node
        return 0


cdef Bucket *make_writable(WriteSet ws, TreeState state, NodeID *node, int level) except NULL nogil:
    cdef const Geometry *g = &state.g
    cdef Bucket *b = resolve_bucket(ws.store, state, node[0], level)
    if (b.blocks > most_blocks(g) or b.size_class != class_of_blocks(g, b.blocks)
            or <int>b.count > entry_limit(g, b)):
        raise_unfit_page(g, b)
    return <Bucket *>ws.writable(node)


cdef int raise_unfit_page(const Geometry *g, const Bucket *b) except -1 with gil:
    raise CorruptionError(
        f"page {b.node_id:#x} of {b.blocks} blocks has size class {b.size_class} and {b.count} entries; expected class "
        f"{class_of_blocks(g, b.blocks)}, at most {most_blocks(g)} blocks and {entry_limit(g, b)} entries")


cdef int most_blocks(const Geometry *g) noexcept nogil:
    """Blocks of the largest supernode."""
    return 1 << (SIZE_CLASSES - 1 - g.base_class)


cdef int class_of_blocks(const Geometry *g, int blocks) noexcept nogil:
    cdef int size_class = g.base_class
    while 1 << (size_class - g.base_class) < blocks:
        size_class += 1
    return size_class


cdef int blocks_for(const Geometry *g, int count) noexcept nogil:
    cdef int blocks = 1
    if count > g.block_capacity:
        while column_capacity(g.dims, blocks * class_bytes(g.base_class), True) < count:
            blocks += 1
    return blocks


def insert(WriteSet ws not None, TreeState state not None, const int64_t[::1] ids not None,
           const double[:, ::1] boxes not None, progress=None) -> None:
    """Inserts records into the tree of a transaction: ids (n,) int64, boxes (n, 2 * dims) float64, finite.

    The order is that of the rows, or another that is faster and no worse for queries. Breathes between rows.
    `progress(done, total)` is called now and then, if there is one; what it raises ends the insertion. Raises
    InvalidBoxError for a row that is changed meanwhile and isn't a valid box any more. After any exception the
    transaction must abort.
    """
    cdef Inserter inserter
    cdef Py_ssize_t n = ids.shape[0]
    cdef Py_ssize_t start = 0
    cdef Py_ssize_t stop
    cdef uint64_t *order = NULL
    if boxes.shape[0] != n or boxes.shape[1] != 2 * state.g.dims:
        raise ValueError(f"got boxes of shape ({boxes.shape[0]}, {boxes.shape[1]}), expected ({n}, {2 * state.g.dims})")
    if n == 0:
        return
    inserter = Inserter(ws, state)
    try:
        if n >= LEAST_SPREAD:
            with nogil:
                if LEAST_SORTED <= n <= <Py_ssize_t>state.records and 1 < state.g.dims <= MOST_SORTED_DIMS:
                    order_queries(&boxes[0, 0], n, state.g.dims, True, state.box, &order, &inserter.breath)
                else:
                    spread_rows(n, &order, &inserter.breath)
                want_gil()
            got_gil()
        while start < n:
            stop = n if progress is None else min(start + ROWS_BETWEEN_REPORTS, n)
            with nogil:
                insert_rows(inserter, &ids[0], &boxes[0, 0], order, start, stop)
                want_gil()
            got_gil()
            start = stop
            if progress is not None:
                progress(start, n)
    finally:
        release(order)


cdef int spread_rows(uint64_t n, uint64_t **numbers, Breath *breath) except -1 nogil:
    """Sets the numbers of n rows, SPREAD_ROWS at a time, each far from those shortly before it.

    They are multiples of a step near the golden section of their number, modulo that number, which leave no large gap
    at any time. The caller must release the memory, after an error too. Raises MemoryError, and what a breath does.
    """
    cdef uint64_t *order = <uint64_t *>allocate(n * sizeof(uint64_t))
    cdef uint64_t start = 0
    cdef uint64_t rows, step, at, i
    if order == NULL:
        raise_no_memory()
    numbers[0] = order
    while start < n:
        rows = min(n - start, <uint64_t>SPREAD_ROWS)
        step = <uint64_t>(GOLDEN_SECTION * rows) | 1
        while greatest_common_divisor(step, rows) != 1:
            step += 1
        at = 0
        for i in range(start, start + rows):
            order[i] = start + at
            at += step
            at -= rows if at >= rows else 0
        start += rows
        spend(breath, 2 * rows)
    return 0


cdef uint64_t greatest_common_divisor(uint64_t a, uint64_t b) noexcept nogil:
    while b:
        a, b = b, a % b
    return a


cdef int insert_rows(Inserter inserter, const int64_t *ids, const double *boxes, const uint64_t *order,
                     Py_ssize_t start, Py_ssize_t stop) except -1 nogil:
    """Inserts the rows from `start` to `stop` of an order, or of the input if it is NULL."""
    cdef Py_ssize_t i, row
    cdef int dims = inserter.state.g.dims
    cdef double box[2 * MAX_DIMS]
    for i in range(start, stop):
        row = order[i] if order != NULL else i
        if not read_box(boxes + row * 2 * dims, dims, box):
            raise_changed(row)
        inserter.insert(box, <uint64_t>ids[row], 0, 0)
        inserter.state.records += 1
        spend(&inserter.breath, 64)
    return 0
