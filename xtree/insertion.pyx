"""Insertion as in the R*-tree (Beckmann et al., SIGMOD 1990, section 4.1), with the X-tree's splits and supernodes.

No forced reinsertion: under copy-on-write every entry reinserted would copy another path.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint16_t, uint64_t

from xtree.box cimport MAX_DIMS, box_contains, copy_box, extend_box, make_frame
from xtree.bucket cimport (
    KIND_DIRECTORY, KIND_LEAF, append_entry, bounding_box, column_capacity, copy_entries, entry_limit, get_box,
    history, init_bucket, lower, refs, set_entry, stride, upper,
)
from xtree.persistence.memory cimport allocate, release
from xtree.persistence.page cimport SIZE_CLASSES, class_bytes
from xtree.split cimport SPLIT_ON_AXIS, STAY_WHOLE
from xtree.tree_state cimport resolve_bucket

from xtree.errors import CapacityError, CorruptionError

cdef enum:
    CANDIDATES = 32                 # entries whose overlap enlargement is worked out at a leaf parent
    ROWS_BETWEEN_SIGNALS = 2048
    # Arrays of measures, one value an entry, in the frame of the page.
    VOLUME = 0
    ENLARGEMENT = 1                 # of the volume
    GROWTH = 2                      # of the margin; 0 if the entry contains the box
    SHARED = 3                      # overlap with one candidate as it is
    SHARED_GROWN = 4                # overlap with that candidate when it has taken the box in
    MEASURES = 5


cdef class Inserter:
    """One transaction's way of putting entries into one tree."""

    def __cinit__(self, WriteSet ws not None, TreeState state not None):
        self.measures = NULL
        self.room = 0
        self.ws = ws
        self.store = ws.store
        self.state = state
        self.splitter = Splitter()

    def __dealloc__(self):
        release(self.measures)

    cdef int insert(self, const double *box, uint64_t ref, uint64_t split_history, int level) except -1 nogil:
        if self.state.root == 0:
            return self.plant(box, ref)
        extend_box(self.state.box, box, self.state.g.dims)
        self.descend(box, level)
        return self.place(box, ref, split_history, level)

    cdef int plant(self, const double *box, uint64_t ref) except -1 nogil:
        """The first record of an empty tree."""
        cdef Bucket *leaf = self.new_page(0, 1)
        append_entry(&self.state.g, leaf, box, ref, 0)
        copy_box(self.state.box, box, self.state.g.dims)
        self.state.root = leaf.node_id
        self.state.levels = 1
        return 0

    cdef int descend(self, const double *box, int level) except -1 nogil:
        """Chooses a path from the root to a page of `level`, makes it writable, and enlarges the entries along it."""
        cdef const Geometry *g = &self.state.g
        cdef int depth = self.state.levels - 1
        cdef int entry
        cdef Bucket *b
        cdef NodeID node = self.state.root
        cdef double region[2 * MAX_DIMS]
        copy_box(region, self.state.box, g.dims)
        resolve_bucket(self.store, self.state, node, depth)
        b = <Bucket *>self.ws.writable(&node)
        self.state.root = node
        self.path[depth] = node
        while depth > level:
            entry = self.choose(b, box, region)
            node = refs(g, b)[entry]
            resolve_bucket(self.store, self.state, node, depth - 1)
            get_box(g, b, entry, region)
            if not box_contains(region, box, g.dims):
                extend_box(region, box, g.dims)
                set_entry(g, b, entry, region, node, history(g, b)[entry])
            self.chosen[depth] = entry
            b = <Bucket *>self.ws.writable(&node)
            depth -= 1
            self.path[depth] = node
            self.repoint(depth, node)
        return 0

    cdef int place(self, const double *box, uint64_t ref, uint64_t split_history, int level) except -1 nogil:
        """Puts an entry into the page at the end of the path, and splits upwards from there as far as it must."""
        cdef const Geometry *g = &self.state.g
        cdef double overflowing[2 * MAX_DIMS]
        cdef int decision
        cdef Bucket *b
        cdef bint done = False
        copy_box(overflowing, box, g.dims)
        while not done:
            b = resolve_bucket(self.store, self.state, self.path[level], level)
            if <int>b.count < entry_limit(g, b):
                append_entry(g, b, overflowing, ref, split_history)
                return 0
            self.splitter.gather(g, b, overflowing, ref, split_history)
            decision = self.splitter.plan(g, level > 0 and b.blocks < most_blocks(g))
            if decision == STAY_WHOLE:
                self.grow(b)
            else:
                done = self.split(b, decision == SPLIT_ON_AXIS, overflowing, &ref, &split_history)
                level += 1
        return 0

    cdef int grow(self, Bucket *b) except -1 nogil:
        """Gives a supernode, or one to be, one more block."""
        cdef const Geometry *g = &self.state.g
        cdef int blocks = b.blocks + 1
        cdef NodeID old = b.node_id
        cdef NodeID node = 0
        cdef Bucket *larger
        if class_of_blocks(g, blocks) == b.size_class:
            b.blocks = <uint16_t>blocks
            return 0
        larger = <Bucket *>self.ws.reserve(KIND_DIRECTORY, class_of_blocks(g, blocks), &node)
        init_bucket(g, larger, b.level, blocks)
        copy_entries(g, b, larger)
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
        """Puts a new root over two pages. What has split all their entries counts as having split them."""
        cdef const Geometry *g = &self.state.g
        cdef Bucket *root
        if self.state.levels == MAX_LEVELS:
            with gil:
                raise CapacityError(f"a tree has at most {MAX_LEVELS} levels")
        root = self.new_page(self.state.levels, 2)
        append_entry(g, root, box, node, split_history)
        append_entry(g, root, other_box, other, split_history)
        self.state.root = root.node_id
        self.state.levels += 1
        return 0

    cdef Bucket *new_page(self, int level, int count) except NULL nogil:
        """An empty page with room for so many entries."""
        cdef const Geometry *g = &self.state.g
        cdef int blocks = blocks_for(g, count) if level > 0 else 1
        cdef NodeID node = 0
        cdef Bucket *b = <Bucket *>self.ws.reserve(KIND_DIRECTORY if level > 0 else KIND_LEAF,
                                                   class_of_blocks(g, blocks), &node)
        init_bucket(g, b, level, blocks)
        return b

    cdef int repoint(self, int level, NodeID node) except -1 nogil:
        """Makes `node` the page of the path at a level."""
        cdef Bucket *parent
        if level == self.state.levels - 1:
            self.state.root = node
        else:
            parent = resolve_bucket(self.store, self.state, self.path[level + 1], level + 1)
            refs(&self.state.g, parent)[self.chosen[level + 1]] = node
        self.path[level] = node
        return 0

    cdef int choose(self, Bucket *b, const double *box, const double *region) except -1 nogil:
        """The entry of a directory page under which a box belongs. `region` holds the page's boxes and the box."""
        cdef const Geometry *g = &self.state.g
        if b.count == 0:
            return raise_empty_directory(b.node_id)
        self.make_room(b.count)
        make_frame(&self.frame, g.dims, region)
        measure_entries(&self.frame, lower(g, b, 0), stride(g, b), b.count, box, self.measures, self.room)
        return self.choose_leaf(b, box) if b.level == 1 else self.cheapest(b)

    cdef int cheapest(self, Bucket *b) except -2 nogil:
        """The entry of least enlargement, then least growth of margin, least volume, fewest entries below.

        Where something is enlarged in volume that is the R*-tree's order. Flat boxes are often enlarged by no volume:
        then an entry that contains the box goes before one that grows in length.
        """
        cdef int entry, order
        cdef int best = 0
        cdef int best_count = -1
        for entry in range(1, <int>b.count):
            order = compare_costs(self.measures, self.room, entry, best)
            if order == 0 and self.measures[ENLARGEMENT * self.room + entry] < INFINITY:
                if best_count < 0:
                    best_count = self.count_below(b, best)
                if self.count_below(b, entry) < best_count:
                    order = -1
            if order < 0:
                best = entry
                best_count = -1
        return best

    cdef int choose_leaf(self, Bucket *b, const double *box) except -1 nogil:
        """At a leaf parent: the entry whose overlap with the others grows least, of those enlarged least.

        An entry that contains the box grows no overlap at all, so the search ends there, as it does at the first
        candidate that grows none. Taken candidates are marked by an infinite enlargement.
        """
        cdef double *enlargement = self.measures + ENLARGEMENT * self.room
        cdef double overlap
        cdef double least_overlap = INFINITY
        cdef int best = -1
        cdef int entry
        cdef int candidate
        for candidate in range(CANDIDATES if b.count > CANDIDATES else b.count):
            entry = self.cheapest(b)
            if self.measures[GROWTH * self.room + entry] == 0.0 and candidate == 0:
                return entry
            overlap = overlap_growth(&self.state.g, &self.frame, b, entry, box, self.measures, self.room)
            if best < 0 or overlap < least_overlap:
                best = entry
                least_overlap = overlap
            if overlap <= 0.0:
                break
            enlargement[entry] = INFINITY
        return best

    cdef int count_below(self, Bucket *b, int entry) except -1 nogil:
        return resolve_bucket(self.store, self.state, refs(&self.state.g, b)[entry], b.level - 1).count

    cdef int make_room(self, int count) except -1 nogil:
        cdef size_t room = 128
        cdef double *measures
        if count <= self.room:
            return 0
        while room < <size_t>count:
            room *= 2
        measures = <double *>allocate(room * MEASURES * sizeof(double))
        if measures == NULL:
            with gil:
                raise MemoryError(f"no memory to compare {count} entries")
        release(self.measures)
        self.measures = measures
        self.room = <int>room
        return 0


cdef int raise_empty_directory(NodeID node) except -1 with gil:
    raise CorruptionError(f"directory page {node:#x} has no entries")


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


cdef int compare_costs(const double *measures, int room, int entry, int other) noexcept nogil:
    """Negative if an entry takes the box in more cheaply than another, 0 if they can't be told apart."""
    cdef int i
    cdef double cost, other_cost
    cdef int[3] by = [ENLARGEMENT, GROWTH, VOLUME]
    for i in range(3):
        cost = measures[by[i] * room + entry]
        other_cost = measures[by[i] * room + other]
        if cost != other_cost:
            return -1 if cost < other_cost else 1
    return 0


cdef void measure_entries(const Frame *frame, const double *columns, int step, int count, const double *box,
                          double *measures, int room) noexcept nogil:
    """Volume, enlargement and growth of every entry of a page."""
    cdef int axis, i
    cdef int dims = frame.dims
    cdef double shift, scale, weight, box_lower, box_upper, extent, below, above
    cdef double *volume = measures + VOLUME * room
    cdef double *enlarged = measures + ENLARGEMENT * room
    cdef double *growth = measures + GROWTH * room
    cdef const double *low
    cdef const double *high
    for i in range(count):
        volume[i] = 1.0
        enlarged[i] = 1.0
        growth[i] = 0.0
    for axis in range(dims):
        if frame.scale[axis] == 0.0:
            continue
        shift = frame.shift[axis]
        scale = frame.scale[axis]
        weight = frame.weight[axis]
        box_lower = box[axis] * shift
        box_upper = box[dims + axis] * shift
        low = columns + axis * step
        high = columns + (dims + axis) * step
        for i in range(count):
            below = low[i] * shift - box_lower
            above = box_upper - high[i] * shift
            below = below if below > 0.0 else 0.0
            above = above if above > 0.0 else 0.0
            extent = (high[i] * shift - low[i] * shift) * scale
            below = (below + above) * scale
            volume[i] *= extent
            enlarged[i] *= extent + below
            growth[i] += below * weight
    for i in range(count):
        enlarged[i] -= volume[i]


cdef double overlap_growth(const Geometry *g, const Frame *frame, Bucket *b, int entry, const double *box,
                           double *measures, int room) noexcept nogil:
    """How much more an entry overlaps the others of its page when it takes a box in."""
    cdef int axis, i
    cdef int dims = g.dims
    cdef int count = b.count
    cdef double own[2 * MAX_DIMS]
    cdef double grown[2 * MAX_DIMS]
    cdef double total = 0.0
    cdef double *shared = measures + SHARED * room
    cdef double *shared_grown = measures + SHARED_GROWN * room
    get_box(g, b, entry, own)
    copy_box(grown, own, dims)
    extend_box(grown, box, dims)
    for i in range(count):
        shared[i] = 1.0
        shared_grown[i] = 1.0
    for axis in range(dims):
        if frame.scale[axis] > 0.0:
            share_axis(frame, axis, lower(g, b, axis), upper(g, b, axis), count, own, shared)
            share_axis(frame, axis, lower(g, b, axis), upper(g, b, axis), count, grown, shared_grown)
    shared[entry] = 0.0
    shared_grown[entry] = 0.0
    for i in range(count):
        total += shared_grown[i] - shared[i]
    return total


cdef void share_axis(const Frame *frame, int axis, const double *low, const double *high, int count,
                     const double *box, double *shared) noexcept nogil:
    """Takes one axis into the volumes that entries share with a box."""
    cdef int i
    cdef double shift = frame.shift[axis]
    cdef double scale = frame.scale[axis]
    cdef double box_lower = box[axis] * shift
    cdef double box_upper = box[frame.dims + axis] * shift
    cdef double least, most, extent
    for i in range(count):
        least = low[i] * shift
        most = high[i] * shift
        least = least if least > box_lower else box_lower
        most = most if most < box_upper else box_upper
        extent = (most - least) * scale
        shared[i] *= extent if extent > 0.0 else 0.0


def insert(WriteSet ws not None, TreeState state not None, const int64_t[::1] ids not None,
           const double[:, ::1] boxes not None) -> None:
    """Inserts records into the tree of a transaction: ids (n,) int64, boxes (n, 2 * dims) float64, finite.

    Signals are delivered between chunks of rows. After any exception the transaction must be aborted.
    """
    cdef Inserter inserter
    cdef Py_ssize_t n = ids.shape[0]
    cdef Py_ssize_t start = 0
    cdef Py_ssize_t stop
    if boxes.shape[0] != n or boxes.shape[1] != 2 * state.g.dims:
        raise ValueError(f"got boxes of shape ({boxes.shape[0]}, {boxes.shape[1]}), expected ({n}, {2 * state.g.dims})")
    if n == 0:
        return
    inserter = Inserter(ws, state)
    while start < n:
        stop = min(start + ROWS_BETWEEN_SIGNALS, n)
        with nogil:
            insert_rows(inserter, &ids[start], &boxes[start, 0], stop - start)
        start = stop
        PyErr_CheckSignals()


cdef int insert_rows(Inserter inserter, const int64_t *ids, const double *boxes, Py_ssize_t n) except -1 nogil:
    cdef Py_ssize_t i
    cdef int width = 2 * inserter.state.g.dims
    for i in range(n):
        inserter.insert(boxes + i * width, <uint64_t>ids[i], 0, 0)
        inserter.state.records += 1
    return 0
