"""Removal as in the R-tree (Guttman, SIGMOD 1984, section 3.3), with the R*-tree's fill and shrinking supernodes."""

from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.kernels.arrays cimport read_box
from xtree.algorithms.kernels.box cimport MAX_DIMS, boxes_equal, copy_box
from xtree.algorithms.bucket cimport (
    KIND_DIRECTORY, Geometry, bounding_box, column_capacity, get_box, history, refs, remove_entry, set_entry,
)
from xtree.algorithms.updates.insertion cimport make_writable
from xtree.algorithms.kernels.key_sort cimport SortKey
from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.base.breath cimport spend
from xtree.persistence.base.pythread cimport let_gil_go
from xtree.persistence.base.right_of_way cimport got_gil, want_gil
from xtree.persistence.base.memory cimport reallocate, release
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.pages.page cimport class_bytes
from xtree.algorithms.tree_state cimport resolve_bucket

from xtree.errors import CorruptionError

cdef enum:
    # Words of an orphan before its box.
    ORPHAN_LEVEL = 0                # of the page it stood in
    ORPHAN_REF = 1
    ORPHAN_HISTORY = 2
    ORPHAN_WORDS = 3
    LONG_SEARCH = 256               # pages

cdef double SHRINK_AT = 0.9         # a supernode shrinks when its entries fill at most this share of one block fewer


cdef class Remover:
    """One transaction's way of taking records out of one tree."""

    def __cinit__(self, WriteSet ws not None, TreeState state not None, Inserter inserter=None):
        self.orphans = NULL
        self.orphan_room = 0
        self.orphan_count = 0
        self.visits = 0
        self.ws = ws
        self.store = ws.store
        self.state = state
        self.inserter = Inserter(ws, state) if inserter is None else inserter

    def __dealloc__(self):
        release(self.orphans)

    cdef int remove(self, const double *box, uint64_t ref) except -1 nogil:
        cdef Bucket *leaf
        if self.state.root == 0 or not self.find(box, ref):
            return 0
        self.make_path_writable()
        leaf = resolve_bucket(self.store, self.state, self.inserter.path[0], 0)
        remove_entry(&self.state.g, leaf, self.inserter.chosen[0])
        self.condense(box)
        self.reinsert_orphans()
        self.lower_root()
        self.state.records -= 1
        if (self.state.root == 0) != (self.state.records == 0):
            raise_miscounted(self.state)
        return 1

    cdef int find(self, const double *box, uint64_t ref) except -1 nogil:
        """Finds a record below entries that contain its box, and sets the path to it. Returns 0 if there is none."""
        cdef int top = self.state.levels - 1
        self.most_visits = self.visits + load_acquire(&self.store.table.high_water)
        self.long_from = self.visits + LONG_SEARCH
        self.inserter.path[top] = self.state.root
        return self.find_below(top, box, ref)

    cdef int find_below(self, int level, const double *box, uint64_t ref) except -1 nogil:
        """Finds a record in the page of the path at a level, or below it.

        Looks first where it would be inserted now, which is where it is most of the time.
        """
        cdef const Geometry *g = &self.state.g
        cdef Bucket *b = resolve_bucket(self.store, self.state, self.inserter.path[level], level)
        cdef double region[2 * MAX_DIMS]
        cdef int hit_count, entry
        self.visits += 1
        self.inserter.breath.left -= <int64_t>g.leaf_capacity * g.dims
        if self.visits > self.most_visits:
            raise_endless(self.state.root)
        if self.visits == self.long_from:
            let_gil_go(&self.ws.gil)
        if not b.least_id <= <int64_t>ref <= b.most_id:
            return 0
        if level == 0:
            self.inserter.chosen[0] = find_record(g, b, box, ref)
            return self.inserter.chosen[0] >= 0
        hit_count = self.inserter.chooser.find_containing(b, box)
        if hit_count == 0:
            return 0
        if hit_count == 1:
            return self.find_in(b, <int>self.inserter.chooser.hits[0], box, ref)
        self.get_region(level, region)
        entry = self.inserter.chooser.choose_containing(b, hit_count, <int64_t>ref, region)
        return self.find_in(b, entry, box, ref) or self.find_elsewhere(b, entry, box, ref, region)

    cdef int find_in(self, Bucket *b, int entry, const double *box, uint64_t ref) except -1 nogil:
        """Finds a record below an entry."""
        self.inserter.chosen[b.level] = entry
        self.inserter.path[b.level - 1] = refs(&self.state.g, b)[entry]
        return self.find_below(b.level - 1, box, ref)

    cdef int find_elsewhere(self, Bucket *b, int tried, const double *box, uint64_t ref,
                            const double *region) except -1 nogil:
        """Finds a record below an entry other than the one tried; looks below the smallest first."""
        cdef int count = 0
        cdef int i
        cdef SortKey *others = self.inserter.chooser.order_containing(b, box, region, &count)
        try:
            for i in range(count):
                if others[i].entry != tried and self.find_in(b, others[i].entry, box, ref):
                    return 1
            return 0
        finally:
            release(others)

    cdef int get_region(self, int level, double *region) except -1 nogil:
        """The box of the page of the path at a level, as its parent has it."""
        cdef const Geometry *g = &self.state.g
        cdef Bucket *parent
        if level == self.state.levels - 1:
            copy_box(region, self.state.box, g.dims)
        else:
            parent = resolve_bucket(self.store, self.state, self.inserter.path[level + 1], level + 1)
            get_box(g, parent, self.inserter.chosen[level + 1], region)
        return 0

    cdef int make_path_writable(self) except -1 nogil:
        cdef int level
        cdef NodeID node
        for level in range(self.state.levels - 1, -1, -1):
            node = self.inserter.path[level]
            make_writable(self.ws, self.state, &node, level)
            self.inserter.repoint(level, node)
        return 0

    cdef int condense(self, const double *removed) except -1 nogil:
        """From the leaf up: dissolves pages with too few entries, shrinks supernodes, tightens boxes.

        Ends at the first page whose box stays the same, since nothing above it changes.
        """
        cdef const Geometry *g = &self.state.g
        cdef int level
        cdef Bucket *b
        cdef Bucket *parent
        cdef NodeID *path = self.inserter.path
        cdef int *chosen = self.inserter.chosen
        cdef double gone[2 * MAX_DIMS]
        cdef double loose[2 * MAX_DIMS]
        cdef double tight[2 * MAX_DIMS]
        copy_box(gone, removed, g.dims)
        for level in range(self.state.levels):
            b = resolve_bucket(self.store, self.state, path[level], level)
            if level == self.state.levels - 1:
                return self.inserter.resize(b, b.blocks - 1) if may_shrink(g, b) else 0
            parent = resolve_bucket(self.store, self.state, path[level + 1], level + 1)
            get_box(g, parent, chosen[level + 1], loose)
            if b.count == 0 or (b.count < least_entries(g, b) and parent.count > 1):
                self.keep_orphans(b)
                remove_entry(g, parent, chosen[level + 1])
                self.ws.retire(path[level])
            else:
                if may_shrink(g, b):
                    self.inserter.resize(b, b.blocks - 1)
                if not touches_side(loose, gone, g.dims):
                    return 0
                b = resolve_bucket(self.store, self.state, path[level], level)
                bounding_box(g, b, tight)
                if boxes_equal(loose, tight, g.dims):
                    return 0
                set_entry(g, parent, chosen[level + 1], tight, path[level],
                          history(g, parent)[chosen[level + 1]])
            copy_box(gone, loose, g.dims)
        return 0

    cdef int keep_orphans(self, Bucket *b) except -1 nogil:
        """Copies the entries of a page that is about to be dissolved."""
        cdef const Geometry *g = &self.state.g
        cdef size_t words = ORPHAN_WORDS + 2 * g.dims
        cdef Py_ssize_t wanted = self.orphan_count + b.count
        cdef uint64_t *orphan
        cdef int entry
        if wanted > self.orphan_room:
            orphan = <uint64_t *>reallocate(self.orphans, 2 * wanted * words * sizeof(uint64_t))
            if orphan == NULL:
                with gil:
                    raise MemoryError(f"no memory for {wanted} entries to be inserted again")
            self.orphans = orphan
            self.orphan_room = 2 * wanted
        for entry in range(<int>b.count):
            orphan = self.orphans + self.orphan_count * words
            orphan[ORPHAN_LEVEL] = b.level
            orphan[ORPHAN_REF] = refs(g, b)[entry]
            orphan[ORPHAN_HISTORY] = history(g, b)[entry] if b.kind == KIND_DIRECTORY else 0
            get_box(g, b, entry, <double *>(orphan + ORPHAN_WORDS))
            self.orphan_count += 1
        return 0

    cdef int reinsert_orphans(self) except -1 nogil:
        """Inserts the orphans again, each into a page of its level, subtrees before records."""
        cdef size_t words = ORPHAN_WORDS + 2 * self.state.g.dims
        cdef const uint64_t *orphan
        while self.orphan_count > 0:
            self.orphan_count -= 1
            orphan = self.orphans + self.orphan_count * words
            self.inserter.insert(<const double *>(orphan + ORPHAN_WORDS), orphan[ORPHAN_REF], orphan[ORPHAN_HISTORY],
                                 <int>orphan[ORPHAN_LEVEL])
        return 0

    cdef int lower_root(self) except -1 nogil:
        """Replaces a root of one child by the child, and removes an empty one."""
        cdef Bucket *root
        cdef NodeID old
        while self.state.root != 0:
            old = self.state.root
            root = resolve_bucket(self.store, self.state, old, self.state.levels - 1)
            if root.count > 1 or (root.count == 1 and root.level == 0):
                break
            self.state.root = refs(&self.state.g, root)[0] if root.count == 1 else 0
            self.state.levels = self.state.levels - 1 if root.count == 1 else 0
            self.ws.retire(old)
        return 0


cdef int find_record(const Geometry *g, Bucket *b, const double *box, uint64_t ref) noexcept nogil:
    """The entry of a leaf that is this record, -1 if there is none. Boxes compare by value."""
    cdef double stored[2 * MAX_DIMS]
    cdef const uint64_t *ids = refs(g, b)
    cdef int entry
    for entry in range(<int>b.count):
        if ids[entry] == ref:
            get_box(g, b, entry, stored)
            if boxes_equal(stored, box, g.dims):
                return entry
    return -1


cdef bint touches_side(const double *box, const double *inner, int dims) noexcept nogil:
    cdef int i
    for i in range(2 * dims):
        if box[i] == inner[i]:
            return True
    return False


cdef double least_entries(const Geometry *g, const Bucket *b) noexcept nogil:
    """A page with fewer entries is dissolved. A directory may stem from either split, so the lesser share counts."""
    if b.kind == KIND_DIRECTORY:
        return min(g.min_fill, g.min_fanout) * g.block_capacity
    return g.min_fill * g.leaf_capacity


cdef bint may_shrink(const Geometry *g, const Bucket *b) noexcept nogil:
    """Whether a supernode would do with one block fewer."""
    cdef uint64_t bytes_fewer = (b.blocks - 1) * class_bytes(g.base_class)
    return b.blocks > 1 and b.count <= SHRINK_AT * column_capacity(g.dims, bytes_fewer, True)


cdef int raise_endless(NodeID root) except -1 with gil:
    raise CorruptionError(f"the tree under page {root:#x} has more paths than there are pages")


cdef int raise_miscounted(TreeState state) except -1 with gil:
    raise CorruptionError(f"the tree with root {state.root:#x} counts {state.records} records, but holds others")


def delete(WriteSet ws not None, TreeState state not None, const int64_t[::1] ids not None,
           const double[:, ::1] boxes not None) -> int:
    """Removes records from the tree of a transaction, one copy for each row of (ids, boxes); returns how many.

    ids is (n,) int64, boxes (n, 2 * dims) float64. A record is removed if its id and its box equal those of the row, by
    value: 0.0 equals -0.0.
    Breathes between rows. After any exception the transaction must be aborted.
    """
    cdef Remover remover
    cdef Py_ssize_t n = ids.shape[0]
    cdef uint64_t before = state.records
    if boxes.shape[0] != n or boxes.shape[1] != 2 * state.g.dims:
        raise ValueError(f"got boxes of shape ({boxes.shape[0]}, {boxes.shape[1]}), expected ({n}, {2 * state.g.dims})")
    if n == 0 or state.root == 0:
        return 0
    remover = Remover(ws, state)
    with nogil:
        remove_rows(remover, state, &ids[0], &boxes[0, 0], n)
        want_gil()
    got_gil()
    state.refresh_bounds(ws.store)
    return before - state.records


cdef int remove_rows(Remover remover, TreeState state, const int64_t *ids, const double *boxes,
                     Py_ssize_t n) except -1 nogil:
    cdef Py_ssize_t i
    cdef int dims = state.g.dims
    cdef double box[2 * MAX_DIMS]
    for i in range(n):
        read_box(boxes + i * 2 * dims, dims, box)       # an invalid one is the box of no record
        remover.remove(box, <uint64_t>ids[i])
        spend(&remover.inserter.breath, 64)
    return 0


def visits(WriteSet ws not None, TreeState state not None, const int64_t[::1] ids not None,
           const double[:, ::1] boxes not None) -> int:
    """How many pages `delete` would look at to find each of these records, all taken together; it removes none."""
    cdef Remover remover = Remover(ws, state)
    cdef Py_ssize_t i
    for i in range(ids.shape[0]):
        if state.root != 0:
            remover.find(&boxes[i, 0], <uint64_t>ids[i])
    return remover.visits + remover.inserter.chooser.probes
