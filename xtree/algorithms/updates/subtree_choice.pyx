"""Choose-subtree of the R*-tree (Beckmann et al., SIGMOD 1990, section 4.1), with flat boxes in mind.

Above leaf parents the entry whose volume is enlarged least takes the box. At leaf parents it is, of the CANDIDATES that
are enlarged least, the one whose overlap with the other entries is enlarged least. Ties, common among boxes without
volume, go to the least growth of margin, then to the least volume, then to the page with the fewest entries.

An entry that contains the box isn't enlarged at all, so a page is first searched for such entries. The smallest of them
takes the box: the one of least volume, and among those without volume the one of least margin. Equal ones divide their
records by id. So removal can tell, most of the time, where a record was put.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from xtree.algorithms.kernels.arrays cimport raise_no_memory
from xtree.algorithms.kernels.box cimport (
    MAX_DIMS, box_margin, box_volume, boxes_equal, copy_box, extend_box, make_unit_space,
)
from xtree.algorithms.bucket cimport Geometry, get_box, lower, refs, stride, upper
from xtree.algorithms.kernels.key_sort cimport SortKey, sort
from xtree.algorithms.kernels.forms cimport SLACK, WindowTest, select
from xtree.persistence.base.memory cimport allocate, release
from xtree.persistence.pages.node_id cimport NodeID
from xtree.algorithms.tree_state cimport resolve_bucket

from xtree.errors import CorruptionError

cdef enum:
    CANDIDATES = 32
    BATCH = 32                      # entries whose overlap is added up before it is looked at
    LEAST_ROOM = 128
    DENSE = 8                       # when more than one in so many entries is a hit, all are measured at once
    # Arrays of measures, taken in the unit space of the page.
    VOLUME = 0
    ENLARGEMENT = 1                 # of the volume
    GROWTH = 2                      # of the margin
    MARGIN = 2                      # instead of the growth, where nothing grows
    MEASURES = 3


cdef class SubtreeChooser:

    def __cinit__(self, Store store not None, TreeState state not None):
        self.block = NULL
        self.room = 0
        self.probes = 0
        self.store = store
        self.state = state

    def __dealloc__(self):
        release(self.block)

    cdef int make_room(self, int count) except -1 nogil:
        cdef size_t room = LEAST_ROOM
        cdef size_t i
        cdef double *block
        if count <= self.room:
            return 0
        while room < <size_t>count:
            room *= 2
        block = <double *>allocate((MEASURES * room + 2 * (room + SLACK)) * sizeof(double))
        if block == NULL:
            with gil:
                raise MemoryError(f"no memory to compare {count} entries")
        release(self.block)
        self.block = block
        self.room = <int>room
        self.measures = block
        self.entries = <uint64_t *>(block + MEASURES * room)
        self.hits = self.entries + room + SLACK
        for i in range(room + SLACK):
            self.entries[i] = i
        return 0

    cdef int choose(self, Bucket *b, const double *box, int64_t id, const double *region) except -1 nogil:
        cdef const Geometry *g = &self.state.g
        cdef int hit_count = self.find_containing(b, box)
        if b.count == 0:
            raise_empty_directory(b.node_id)
        if hit_count > 0:
            return self.choose_containing(b, hit_count, id, region)
        make_unit_space(&self.space, g.dims, region)
        measure_entries(&self.space, lower(g, b, 0), stride(g, b), b.count, box, self.measures, self.room)
        return self.choose_by_overlap(b, box) if b.level == 1 else self.cheapest(b)

    cdef int find_containing(self, Bucket *b, const double *box) except -1 nogil:
        cdef const Geometry *g = &self.state.g
        cdef WindowTest contains
        self.make_room(b.count)
        set_test(&contains, g, b, box, box + g.dims)
        return <int>select(&contains, g.dims, b.count, self.entries, self.hits)

    cdef int choose_containing(self, Bucket *b, int hit_count, int64_t id, const double *region) except -1 nogil:
        cdef const double *volume = self.measures + VOLUME * self.room
        cdef const double *margin = self.measures + MARGIN * self.room
        cdef double least_volume = INFINITY
        cdef double least_margin = INFINITY
        cdef uint64_t entry
        cdef int ties = 0
        cdef int i
        if hit_count == 1:
            return <int>self.hits[0]
        self.measure_hits(b, hit_count, region)
        for i in range(hit_count):
            entry = self.hits[i]
            if volume[entry] < least_volume or (volume[entry] == least_volume and margin[entry] < least_margin):
                least_volume = volume[entry]
                least_margin = margin[entry]
                ties = 0
            if volume[entry] == least_volume and margin[entry] == least_margin:
                self.hits[ties] = entry
                ties += 1
        return <int>self.hits[max(self.count_up_to(b, ties, id) - 1, 0)] if ties > 1 else <int>self.hits[0]

    cdef SortKey *order_containing(self, Bucket *b, const double *box, const double *region,
                                   int *count) except NULL nogil:
        cdef int n = self.find_containing(b, box)
        cdef SortKey *keys = <SortKey *>allocate(2 * <size_t>max(n, 1) * sizeof(SortKey))
        cdef const SortKey *in_order
        cdef int i
        if keys == NULL:
            raise_no_memory()
        self.measure_hits(b, n, region)
        for i in range(n):
            keys[i].entry = <int>self.hits[i]
            keys[i].key = self.measures[VOLUME * self.room + keys[i].entry]
            keys[i].tie = self.measures[MARGIN * self.room + keys[i].entry]
        in_order = sort(keys, keys + n, n)
        if in_order != keys:
            memcpy(keys, in_order, n * sizeof(SortKey))
        count[0] = n
        return keys

    cdef int place_of(self, Bucket *b, const double *box, int64_t least_id) except -1 nogil:
        cdef double entry_box[2 * MAX_DIMS]
        cdef int hit_count = self.find_containing(b, box)
        cdef int equals = 0
        cdef int i, before
        for i in range(hit_count):
            get_box(&self.state.g, b, <int>self.hits[i], entry_box)
            if boxes_equal(entry_box, box, self.state.g.dims):
                self.hits[equals] = self.hits[i]
                equals += 1
        if equals == 0:
            return b.count
        before = self.count_up_to(b, equals, least_id)
        return <int>self.hits[before - 1] + 1 if before > 0 else <int>self.hits[0]

    cdef int count_up_to(self, Bucket *b, int hit_count, int64_t id) except -1 nogil:
        """How many of the hits lead to ids that begin at or before `id`, if the children are in that order."""
        cdef int low = 0
        cdef int high = hit_count
        cdef int middle
        while low < high:
            middle = (low + high) >> 1
            self.probes += 1
            if self.child(b, <int>self.hits[middle]).least_id <= id:
                low = middle + 1
            else:
                high = middle
        return low

    cdef void measure_hits(self, Bucket *b, int hit_count, const double *region) noexcept nogil:
        """Sets the volume of every hit, and the margin of those without; of all entries if more than a few are hits."""
        cdef const Geometry *g = &self.state.g
        cdef double *volume = self.measures + VOLUME * self.room
        cdef double *margin = self.measures + MARGIN * self.room
        cdef double entry_box[2 * MAX_DIMS]
        cdef int entry, i
        make_unit_space(&self.space, g.dims, region)
        if hit_count > <int>b.count // DENSE:
            measure_all(&self.space, lower(g, b, 0), stride(g, b), b.count, volume, margin)
            return
        for i in range(hit_count):
            entry = <int>self.hits[i]
            get_box(g, b, entry, entry_box)
            volume[entry] = box_volume(&self.space, entry_box)
            margin[entry] = box_margin(&self.space, entry_box) if volume[entry] == 0.0 else 0.0

    cdef int choose_by_overlap(self, Bucket *b, const double *box) except -1 nogil:
        """The entry whose overlap with the others grows least, of those enlarged least.

        The candidates come in the order of their costs, so the first whose overlap doesn't grow is the best. Those
        already tried are marked by an infinite enlargement.
        """
        cdef double growth
        cdef double least = INFINITY
        cdef int best = 0
        cdef int entry
        for _ in range(CANDIDATES if b.count > CANDIDATES else b.count):
            entry = self.cheapest(b)
            growth = self.overlap_growth(b, entry, box, least)
            if growth < least:
                best = entry
                least = growth
            if growth <= 0.0:
                break
            self.measures[ENLARGEMENT * self.room + entry] = INFINITY
        return best

    cdef int cheapest(self, Bucket *b) except -2 nogil:
        """The entry of least enlargement, then least growth of margin, least volume, fewest entries below."""
        cdef const double *enlargement = self.measures + ENLARGEMENT * self.room
        cdef int entry, order
        cdef int best = 0
        cdef int best_count = -1
        for entry in range(1, <int>b.count):
            if enlargement[entry] > enlargement[best] or enlargement[entry] == INFINITY:
                continue
            order = compare_costs(self.measures, self.room, entry, best)
            if order == 0:
                best_count = <int>self.child(b, best).count if best_count < 0 else best_count
                order = <int>self.child(b, entry).count - best_count
            if order < 0:
                best = entry
                best_count = -1
        return best

    cdef double overlap_growth(self, Bucket *b, int entry, const double *box, double least) noexcept nogil:
        """How much more volume an entry shares with the others of its page when it takes the box in.

        Stops as soon as the sum reaches `least`, and returns some number that is at least as great.
        """
        cdef const Geometry *g = &self.state.g
        cdef double own[2 * MAX_DIMS]
        cdef double grown[2 * MAX_DIMS]
        cdef double total = 0.0
        cdef WindowTest intersects
        cdef int hit_count
        cdef int start = 0
        get_box(g, b, entry, own)
        copy_box(grown, own, g.dims)
        extend_box(grown, box, g.dims)
        set_test(&intersects, g, b, grown + g.dims, grown)
        hit_count = <int>select(&intersects, g.dims, b.count, self.entries, self.hits)
        while start < hit_count and total < least:
            total += growth_with(&self.space, lower(g, b, 0), stride(g, b), self.hits + start,
                                 min(hit_count - start, <int>BATCH), entry, own, grown)
            start += BATCH
        return total

    cdef Bucket *child(self, Bucket *b, int entry) except NULL nogil:
        return resolve_bucket(self.store, self.state, refs(&self.state.g, b)[entry], b.level - 1)


cdef void set_test(WindowTest *test, const Geometry *g, Bucket *b, const double *most,
                   const double *least) noexcept nogil:
    """Sets a test for entries whose lower bounds are at most `most`, and whose upper bounds are at least `least`."""
    test.first = lower(g, b, 0)
    test.second = upper(g, b, 0)
    test.stride = stride(g, b)
    test.most = most
    test.least = least
    test.lead = 0


cdef int raise_empty_directory(NodeID node) except -1 with gil:
    raise CorruptionError(f"directory page {node:#x} has no entries")


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


cdef void measure_entries(const UnitSpace *space, const double *columns, int step, int count, const double *box,
                          double *measures, int room) noexcept nogil:
    """Volume, enlargement and growth of every entry of a page."""
    cdef int axis, i
    cdef int dims = space.dims
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
        if space.scale[axis] == 0.0:
            continue
        shift = space.shift[axis]
        scale = space.scale[axis]
        weight = space.weight[axis]
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


cdef void measure_all(const UnitSpace *space, const double *columns, int step, int count, double *volume,
                      double *margin) noexcept nogil:
    """Volume of every entry of a page, and the margin of those that have none."""
    cdef int axis, i
    cdef double shift, scale, weight, extent
    cdef const double *low
    cdef const double *high
    for i in range(count):
        volume[i] = 1.0
        margin[i] = 0.0
    for axis in range(space.dims):
        if space.scale[axis] == 0.0:
            continue
        shift = space.shift[axis]
        scale = space.scale[axis]
        weight = space.weight[axis]
        low = columns + axis * step
        high = columns + (space.dims + axis) * step
        for i in range(count):
            extent = (high[i] * shift - low[i] * shift) * scale
            volume[i] *= extent
            margin[i] += extent * weight
    for i in range(count):
        margin[i] = margin[i] if volume[i] == 0.0 else 0.0


cdef double growth_with(const UnitSpace *space, const double *columns, int step, const uint64_t *others, int n,
                        int entry, const double *own, const double *grown) noexcept nogil:
    """The growth of an entry's overlap with up to BATCH others.

    The box grows on few axes; the others' share of the volume is the same before and after.
    """
    cdef double unchanged[BATCH]
    cdef double before[BATCH]
    cdef double after[BATCH]
    cdef double total = 0.0
    cdef int dims = space.dims
    cdef int axis, i
    cdef const double *low
    cdef const double *high
    for i in range(n):
        unchanged[i] = 0.0 if others[i] == <uint64_t>entry else 1.0
        before[i] = 1.0
        after[i] = 1.0
    for axis in range(dims):
        if space.scale[axis] == 0.0:
            continue
        low = columns + axis * step
        high = columns + (dims + axis) * step
        if own[axis] == grown[axis] and own[dims + axis] == grown[dims + axis]:
            share_axis(space, axis, low, high, others, n, own, unchanged)
        else:
            share_axis(space, axis, low, high, others, n, own, before)
            share_axis(space, axis, low, high, others, n, grown, after)
    for i in range(n):
        total += unchanged[i] * (after[i] - before[i])
    return total


cdef void share_axis(const UnitSpace *space, int axis, const double *low, const double *high, const uint64_t *entries,
                     int n, const double *box, double *shared) noexcept nogil:
    """Includes one axis in the volumes that entries share with a box."""
    cdef int i
    cdef double shift = space.shift[axis]
    cdef double scale = space.scale[axis]
    cdef double box_lower = box[axis] * shift
    cdef double box_upper = box[space.dims + axis] * shift
    cdef double least, most, extent
    for i in range(n):
        least = low[entries[i]] * shift
        most = high[entries[i]] * shift
        least = least if least > box_lower else box_lower
        most = most if most < box_upper else box_upper
        extent = (most - least) * scale
        shared[i] *= extent if extent > 0.0 else 0.0
