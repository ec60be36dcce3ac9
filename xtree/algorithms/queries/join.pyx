"""Spatial join: the pairs of records of two trees that fulfil a predicate, by synchronised descent.

Brinkhoff, Kriegel, Seeger, "Efficient processing of spatial joins using R-trees", SIGMOD 1993: pairs of pages whose
boxes meet are visited depth first. Only those entries of each page are looked at that reach into the region the two
share; they are sorted along one axis and swept. Where one tree is higher, its pages are opened until the levels agree.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

cimport cython

from xtree.algorithms.kernels.arrays cimport Arena, data_of, raise_no_memory, require_memory
from xtree.algorithms.kernels.box cimport MAX_DIMS, box_contains
from xtree.algorithms.bucket cimport Bucket, bounding_box, get_box, lower, refs, upper
from xtree.algorithms.kernels.forms cimport SLACK, WindowTest, select
from xtree.algorithms.kernels.key_sort cimport SortKey, sort
from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.base.breath cimport Breath, copy_block, first_breath, spend
from xtree.persistence.base.memory cimport allocate, reallocate, release
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store, breathe
from xtree.algorithms.tree_state cimport TreeState, resolve_bucket
from xtree.algorithms.queries.walk cimport AROUND, INSIDE, INTERSECTS, Predicate, window_test

import numpy as np

from xtree.errors import CorruptionError

cdef enum:
    A_BREATH = 64                   # pairs of pages between two looks at the mappings

cdef object _int64 = np.dtype(np.int64)


cdef struct PagePair:
    NodeID left, right
    int left_level, right_level


cdef struct Reaching:               # the entries of a page that reach into a region
    uint64_t *entries               # in the order of the page
    SortKey *keys                   # by lower bound on the axis of the sweep; the tie is the upper bound
    SortKey *spare
    const SortKey *ordered          # one of the two
    int64_t room
    int count


@cython.final
cdef class Joiner:
    """A join in progress, on one thread: the pairs of pages still to be visited, and the pairs of ids found."""

    cdef Store left_store, right_store
    cdef TreeState left, right
    cdef Predicate predicate
    cdef int dims
    cdef PagePair *pending
    cdef int64_t pending_count, pending_room
    cdef Reaching from_left, from_right
    cdef uint64_t *numbers          # 0, 1, 2 ...: given to the kernels as refs, so that they return entries
    cdef int64_t number_count
    cdef Arena left_ids, right_ids
    cdef Breath breath

    def __cinit__(self):
        self.pending = NULL
        self.numbers = NULL
        memset(&self.from_left, 0, sizeof(Reaching))
        memset(&self.from_right, 0, sizeof(Reaching))

    def __dealloc__(self):
        release(self.pending)
        release(self.numbers)
        self.forget(&self.from_left)
        self.forget(&self.from_right)

    def __init__(self, Store left_store, TreeState left, Store right_store, TreeState right, Predicate predicate):
        self.left_store, self.right_store = left_store, right_store
        self.left, self.right = left, right
        self.predicate = predicate
        self.dims = left.g.dims
        self.left_ids, self.right_ids = Arena(), Arena()

    cdef void forget(self, Reaching *reaching) noexcept nogil:
        release(reaching.entries)
        release(reaching.keys)
        release(reaching.spare)
        memset(reaching, 0, sizeof(Reaching))

    cdef int run(self) except -1 nogil:
        """Finds every pair. Raises CorruptionError, MemoryError, OSError, and what a breath does."""
        cdef PagePair pair
        cdef Bucket *a
        cdef Bucket *b
        cdef uint64_t visits = 0, left_generation = 0, right_generation = 0
        cdef double most_visits = (<double>load_acquire(&self.left_store.table.high_water)
                                   * <double>load_acquire(&self.right_store.table.high_water))
        first_breath(&self.breath, None)
        if self.left.levels and self.right.levels:
            self.push(self.left.root, self.left.levels - 1, self.right.root, self.right.levels - 1)
        while self.pending_count:
            self.pending_count -= 1
            pair = self.pending[self.pending_count]
            visits += 1
            if visits > most_visits:
                _raise_visits(visits)
            if visits % A_BREATH == 0:
                breathe(self.left_store, &left_generation)
                breathe(self.right_store, &right_generation)
            a = resolve_bucket(self.left_store, self.left, pair.left, pair.left_level)
            b = resolve_bucket(self.right_store, self.right, pair.right, pair.right_level)
            self.visit(&pair, a, b)
        return 0

    cdef int visit(self, const PagePair *pair, Bucket *a, Bucket *b) except -1 nogil:
        cdef double left_box[2 * MAX_DIMS]
        cdef double right_box[2 * MAX_DIMS]
        cdef int i
        spend(&self.breath, 1 + (<int64_t>a.count + b.count) * self.dims)
        if a.count == 0 or b.count == 0:
            return 0
        bounding_box(&self.left.g, a, left_box)
        bounding_box(&self.right.g, b, right_box)
        if pair.left_level >= pair.right_level:
            self.reach(&self.from_left, self.left, a, right_box)
        if pair.right_level >= pair.left_level:
            self.reach(&self.from_right, self.right, b, left_box)
        if pair.left_level > pair.right_level:
            for i in range(self.from_left.count):
                self.push(refs(&self.left.g, a)[self.from_left.entries[i]], pair.left_level - 1,
                          pair.right, pair.right_level)
            return 0
        if pair.right_level > pair.left_level:
            for i in range(self.from_right.count):
                self.push(pair.left, pair.left_level,
                          refs(&self.right.g, b)[self.from_right.entries[i]], pair.right_level - 1)
            return 0
        return self.sweep(a, b, _longest_shared(left_box, right_box, self.left.box, self.dims))

    cdef int reach(self, Reaching *reaching, TreeState state, Bucket *b, const double *region) except -1 nogil:
        """Lists the entries of a page that meet a region."""
        cdef WindowTest test
        if reaching.room < <int64_t>b.count + SLACK:
            self.make_room(reaching, b.count + SLACK)
        if self.number_count < <int64_t>b.count + SLACK:
            self.number_up_to(b.count + SLACK)
        window_test(state, b, INTERSECTS, region, &test)
        reaching.count = <int>select(&test, self.dims, b.count, self.numbers, reaching.entries)
        return 0

    cdef int make_room(self, Reaching *reaching, int64_t room) except -1 nogil:
        self.forget(reaching)
        reaching.entries = <uint64_t *>allocate(room * sizeof(uint64_t))
        reaching.keys = <SortKey *>allocate(room * sizeof(SortKey))
        reaching.spare = <SortKey *>allocate(room * sizeof(SortKey))
        if reaching.entries == NULL or reaching.keys == NULL or reaching.spare == NULL:
            raise_no_memory()
        reaching.room = room
        return 0

    cdef int number_up_to(self, int64_t count) except -1 nogil:
        cdef int64_t i
        release(self.numbers)
        self.number_count = 0
        self.numbers = <uint64_t *>allocate(count * sizeof(uint64_t))
        if self.numbers == NULL:
            raise_no_memory()
        for i in range(count):
            self.numbers[i] = i
        self.number_count = count
        return 0

    cdef int sweep(self, Bucket *a, Bucket *b, int axis) except -1 nogil:
        """Moves a line along an axis and finds the entries that meet on it.

        An entry that the line reaches is compared with those of the other page that begin before its end.
        """
        cdef const SortKey *left
        cdef const SortKey *right
        cdef int i = 0, j = 0, k
        _order(&self.from_left, lower(&self.left.g, a, axis), upper(&self.left.g, a, axis))
        _order(&self.from_right, lower(&self.right.g, b, axis), upper(&self.right.g, b, axis))
        left, right = self.from_left.ordered, self.from_right.ordered
        while i < self.from_left.count and j < self.from_right.count:
            if left[i].key <= right[j].key:
                k = j
                while k < self.from_right.count and right[k].key <= left[i].tie:
                    self.meet(a, left[i].entry, b, right[k].entry, axis)
                    k += 1
                spend(&self.breath, (k - j + 4) * self.dims)
                i += 1
            else:
                k = i
                while k < self.from_left.count and left[k].key <= right[j].tie:
                    self.meet(a, left[k].entry, b, right[j].entry, axis)
                    k += 1
                spend(&self.breath, (k - i + 4) * self.dims)
                j += 1
        return 0

    cdef inline int meet(self, Bucket *a, int left, Bucket *b, int right, int swept) except -1 nogil:
        """Takes two entries that meet on the axis of the sweep: pushes their pages or adds their ids, if they match."""
        cdef double left_box[2 * MAX_DIMS]
        cdef double right_box[2 * MAX_DIMS]
        cdef int axis
        for axis in range(self.dims):
            if axis != swept and (lower(&self.left.g, a, axis)[left] > upper(&self.right.g, b, axis)[right]
                                  or lower(&self.right.g, b, axis)[right] > upper(&self.left.g, a, axis)[left]):
                return 0
        if a.level:
            return self.push(refs(&self.left.g, a)[left], a.level - 1, refs(&self.right.g, b)[right], b.level - 1)
        if self.predicate != INTERSECTS:
            get_box(&self.left.g, a, left, left_box)
            get_box(&self.right.g, b, right, right_box)
            if self.predicate == INSIDE and not box_contains(right_box, left_box, self.dims):
                return 0
            if self.predicate == AROUND and not box_contains(left_box, right_box, self.dims):
                return 0
        self.left_ids.need(sizeof(uint64_t))
        self.right_ids.need(sizeof(uint64_t))
        (<uint64_t *>(self.left_ids.data + self.left_ids.used))[0] = refs(&self.left.g, a)[left]
        (<uint64_t *>(self.right_ids.data + self.right_ids.used))[0] = refs(&self.right.g, b)[right]
        self.left_ids.used += sizeof(uint64_t)
        self.right_ids.used += sizeof(uint64_t)
        return 0

    cdef int push(self, NodeID left, int left_level, NodeID right, int right_level) except -1 nogil:
        cdef PagePair *larger
        if self.pending_count == self.pending_room:
            larger = <PagePair *>reallocate(self.pending, (2 * self.pending_room + 64) * sizeof(PagePair))
            if larger == NULL:
                raise_no_memory()
            self.pending = larger
            self.pending_room = 2 * self.pending_room + 64
        self.pending[self.pending_count] = PagePair(left=left, right=right, left_level=left_level,
                                                    right_level=right_level)
        self.pending_count += 1
        return 0


cdef int _longest_shared(const double *a, const double *b, const double *whole, int dims) noexcept nogil:
    """The axis on which two boxes share the most, in relation to the whole tree."""
    cdef int axis, longest = 0
    cdef double share, most = -1.0
    for axis in range(dims):
        share = ((min(a[dims + axis], b[dims + axis]) - max(a[axis], b[axis]))
                 / (whole[dims + axis] - whole[axis]))
        if share > most:            # false for the NaN of an axis without extent
            most = share
            longest = axis
    return longest


cdef void _order(Reaching *reaching, const double *lows, const double *highs) noexcept nogil:
    """Sorts the entries by their lower bounds."""
    cdef int i
    for i in range(reaching.count):
        reaching.keys[i].key = lows[reaching.entries[i]]
        reaching.keys[i].tie = highs[reaching.entries[i]]
        reaching.keys[i].entry = <int>reaching.entries[i]
    reaching.ordered = sort(reaching.keys, reaching.spare, reaching.count)


cdef int _raise_visits(uint64_t visits) except -1 with gil:
    raise CorruptionError(f"a join visited {visits} pairs of pages, more than there are: a page is reached twice")


def join(Store left_store not None, TreeState left not None, Store right_store not None, TreeState right not None,
         int predicate):
    """The pairs (id of the left tree, id of the right one) whose left box fulfils a predicate with the right box.

    Returns (2, n) int64, in no particular order. Both trees have the same dims. Raises CorruptionError, MemoryError.
    """
    cdef Joiner joiner
    cdef Py_ssize_t size
    cdef char *out
    if left.g.dims != right.g.dims or not INTERSECTS <= predicate <= AROUND:
        raise ValueError(f"no join of {left.g.dims} with {right.g.dims} dimensions by predicate {predicate}")
    joiner = Joiner(left_store, left, right_store, right, <Predicate>predicate)
    with nogil:
        joiner.run()
    size = joiner.left_ids.used
    require_memory(2.0 * size)
    pairs = np.empty((2, size // <Py_ssize_t>sizeof(int64_t)), _int64)
    if size:
        out = data_of(pairs)
        with nogil:
            copy_block(out, joiner.left_ids.data, size, &joiner.breath)
            copy_block(out + size, joiner.right_ids.data, size, &joiner.breath)
    return pairs
