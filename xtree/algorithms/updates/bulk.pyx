"""Bulk load: packed pages, all leaves at one depth, instead of one insert after the other.

The number of pages of each level follows from the number of records; each level's entries are dealt out evenly, so
no page is the odd one that is nearly empty. From the root down the records of a page are cut into those of its
children, and a page is written once its children are:

- up to three dims by sort-tile-recursive (Leutenegger, Edgington, Lopez, ICDE 1997): slabs along one axis, each cut
  along the next, as many as make the tiles about square;
- with more by the median of the widest axis, again and again, as in a kd-tree.

A directory entry's split history holds axes along which it has really been cut from all of its siblings: for slabs
the first axis that was cut, for medians every axis on the way from the page to the child.

Several threads write the parts of a cut side by side. How many records each page gets and where it lies is known before
the first is written, so the tree is the same to the byte for any number of threads.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, fabs, pow, round
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

from xtree.algorithms.kernels.arrays cimport borrow, raise_changed, read_once
from xtree.algorithms.kernels.box cimport MAX_DIMS, SHIFT_UP, TINY_COORDINATE, TINY_EXTENT, boxes_equal, copy_box
from xtree.algorithms.bucket cimport (
    KIND_DIRECTORY, KIND_LEAF, Geometry, bounding_box, init_bucket, lower, refs, set_entry, stride, upper, widen_ids,
)
from xtree.persistence.base.atomics cimport fetch_add, load_acquire, load_relaxed
from xtree.persistence.base.breath cimport Breath, Team, first_breath, spend
from xtree.persistence.base.memory cimport allocate, release
from xtree.persistence.pages.page cimport clear_page
from xtree.algorithms.kernels.radix cimport SORT_COUNTS, WORDS_AT_ONCE, blocks_of, digit_bits, sort_many_words
from xtree.algorithms.tree_state cimport resolve_bucket

from xtree.errors import CapacityError, CorruptionError
from xtree.algorithms.kernels.parallel import together

cdef enum:
    INDEX_BITS = 32                 # of a word of `order`
    MOST_TILED_DIMS = 3             # with more, cuts are by medians
    SAMPLE = 256                    # records that tell how far a page's records spread
    REPORTS = 100                   # about how many calls of `progress` one load makes
    LEAST_SHARED = 20000            # records of a cut: with fewer, starting a thread takes longer than it saves

cdef uint64_t INDEX_MASK = (<uint64_t>1 << INDEX_BITS) - 1


cdef inline uint64_t _pages_for(uint64_t entries, uint64_t most, double least) noexcept nogil:
    """Pages for so many entries: at most `most` in each, and unless there is just one, no fewer than `least`."""
    cdef uint64_t pages = (entries + most - 1) // most
    if pages > 1 and <double>(entries // pages) < least:
        pages = max(<uint64_t>(entries / least), <uint64_t>1)
    return pages


cdef uint64_t first_invalid(const Geometry *g, Bucket *b) noexcept nogil:
    """The first entry of a page whose box is invalid: not finite, or a min above its max. `count` if all are valid."""
    cdef uint64_t count = b.count
    cdef uint64_t i, first = count
    cdef int axis
    cdef bint fine
    cdef const double *low
    cdef const double *high
    for axis in range(g.dims):
        low, high = lower(g, b, axis), upper(g, b, axis)
        fine = True
        for i in range(count):
            fine &= (low[i] <= high[i]) & (low[i] > -INFINITY) & (high[i] < INFINITY)
        if fine:
            continue
        for i in range(first):
            if not (low[i] <= high[i] and low[i] > -INFINITY and high[i] < INFINITY):
                first = i
                break
    return first


cdef class PackedBuild:

    def __cinit__(self):
        self.order = NULL
        self.scratch = NULL
        self.nodes = NULL
        self.places = NULL

    def __dealloc__(self):
        release(self.order)
        release(self.scratch)
        release(self.nodes)
        release(self.places)

    cdef int plan(self) except -1:
        """Sets how many pages each level gets, takes them, and allocates memory for the order of the records."""
        cdef double min_fill = self.state.g.min_fill
        cdef uint64_t leaf_most = max(<uint64_t>(self.state.leaf_fill * self.state.g.leaf_capacity), <uint64_t>1)
        cdef uint64_t i, block, start, all_pages
        cdef Breath breath
        if self.records > INDEX_MASK:
            raise CapacityError(f"{self.records} records in one bulk load, at most {INDEX_MASK}")
        self.pages[0] = all_pages = _pages_for(self.records, leaf_most, min_fill * self.state.g.leaf_capacity)
        self.before[0] = 0
        self.levels = 1
        while self.pages[self.levels - 1] > 1:
            self.pages[self.levels] = _pages_for(self.pages[self.levels - 1], self.state.g.block_capacity,
                                                 min_fill * self.state.g.block_capacity)
            self.before[self.levels] = all_pages
            all_pages += self.pages[self.levels]
            self.levels += 1
        self.order = <uint64_t *>allocate(self.records * sizeof(uint64_t))
        self.scratch = <uint64_t *>allocate(self.records * sizeof(uint64_t))
        self.nodes = <NodeID *>allocate(all_pages * sizeof(NodeID))
        self.places = <char **>allocate(all_pages * sizeof(char *))
        if self.order == NULL or self.scratch == NULL or self.nodes == NULL or self.places == NULL:
            raise MemoryError
        first_breath(&breath, None)
        with nogil:
            for block in range(blocks_of(self.records)):
                start = block * WORDS_AT_ONCE
                for i in range(start, min(start + WORDS_AT_ONCE, self.records)):
                    self.order[i] = i
                spend(&breath, 2 * WORDS_AT_ONCE)
            self.take_pages(self.levels - 1, 0, &breath)
        return 0

    cdef uint64_t first_child(self, int level, uint64_t page) noexcept nogil:
        return page * self.pages[level - 1] // self.pages[level]

    cdef uint64_t first_record(self, int level, uint64_t page) noexcept nogil:
        while level > 0:
            page = self.first_child(level, page)
            level -= 1
        return page * self.records // self.pages[0]

    cdef int take_pages(self, int level, uint64_t page, Breath *breath) except -1 nogil:
        """Takes a NodeID and a place for a page, then for all pages below it."""
        cdef uint64_t i = self.before[level] + page
        cdef uint64_t child
        self.places[i] = self.ws.take(KIND_DIRECTORY if level else KIND_LEAF, self.state.g.base_class, &self.nodes[i])
        spend(breath, 256)
        if level > 0:
            for child in range(self.first_child(level, page), self.first_child(level, page + 1)):
                self.take_pages(level - 1, child, breath)
        return 0

    cdef Bucket *empty_page(self, int level, uint64_t page) noexcept nogil:
        cdef uint64_t i = self.before[level] + page
        clear_page(self.places[i], KIND_DIRECTORY if level else KIND_LEAF, self.state.g.base_class, self.nodes[i])
        init_bucket(&self.state.g, <Bucket *>self.places[i], level, 1)
        return <Bucket *>self.places[i]

    cdef int write_root(self, double *box, int threads) except -1 nogil:
        """Writes the whole tree; sets the box around it."""
        cdef Worker worker
        worker.counts = <uint64_t *>allocate(SORT_COUNTS * sizeof(uint64_t))
        worker.calls = True
        first_breath(&worker.breath, self.team)
        if worker.counts == NULL:
            with gil:
                raise MemoryError
        try:
            self.write_page(self.levels - 1, 0, box, &worker, threads)
        finally:
            release(worker.counts)
        return 0

    cdef int write_page(self, int level, uint64_t page, double *box, Worker *worker, int threads) except -1 nogil:
        """Writes a page and all below it; sets its box."""
        cdef Cut c
        cdef Bucket *b
        cdef uint64_t child
        if level == 0:
            return self.write_leaf(page, box, worker)
        c.parent = self.empty_page(level, page)
        c.level = level - 1
        c.first = c.eldest = self.first_child(level, page)
        c.last = self.first_child(level, page + 1)
        c.axis = 0
        c.history = 0
        self.write_children(c, worker, threads)
        for child in range(c.first, c.last):
            b = <Bucket *>self.places[self.before[c.level] + child]
            widen_ids(c.parent, b.least_id, b.most_id)
        c.parent.count = <uint32_t>(c.last - c.first)
        bounding_box(&self.state.g, c.parent, box)
        return 0

    cdef int write_leaf(self, uint64_t page, double *box, Worker *worker) except -1 nogil:
        cdef Bucket *b = self.empty_page(0, page)
        cdef uint64_t first = self.first_record(0, page)
        cdef uint64_t last = self.first_record(0, page + 1)
        cdef int columns = 2 * self.state.g.dims
        cdef int step = stride(&self.state.g, b)
        cdef double *column = lower(&self.state.g, b, 0)
        cdef uint64_t *ids = refs(&self.state.g, b)
        cdef const double *record
        cdef uint64_t i, number
        cdef int c
        b.count = <uint32_t>(last - first)
        for i in range(last - first):
            number = self.order[first + i] & INDEX_MASK
            record = self.boxes + number * columns
            ids[i] = <uint64_t>self.ids[number]
            widen_ids(b, <int64_t>ids[i], <int64_t>ids[i])
            for c in range(columns):
                column[c * step + i] = read_once(record + c)
        i = first_invalid(&self.state.g, b)
        if i < last - first:        # it was valid when the call began
            raise_changed(self.order[first + i] & INDEX_MASK)
        bounding_box(&self.state.g, b, box)
        fetch_add(&self.done, last - first)
        spend(&worker.breath, 8 * <int64_t>(last - first) * columns)
        return self.report() if worker.calls else 0

    cdef int write_children(self, Cut c, Worker *worker, int threads) except -1 nogil:
        """Cuts apart the records of some children of a page, writes these children, and enters them in the page."""
        cdef double box[2 * MAX_DIMS]
        cdef int along
        if c.last - c.first == 1:
            self.write_page(c.level, c.first, box, worker, threads)
            set_entry(&self.state.g, c.parent, <int>(c.first - c.eldest), box,
                      self.nodes[self.before[c.level] + c.first], c.history)
            return 0
        along = self.pick_cut(&c, &worker.breath)
        if c.parts > 1:
            self.cut(&c, along, worker)
            if c.history == 0 or self.state.g.dims > MOST_TILED_DIMS:
                c.history |= <uint64_t>1 << along
            if threads > 1 and self.first_record(c.level, c.last) - self.first_record(c.level, c.first) >= LEAST_SHARED:
                with gil:
                    return self.write_in_threads(&c, worker, threads)
        return self.write_parts(&c, 0, c.parts, worker, threads)

    cdef int write_parts(self, const Cut *c, uint64_t part, uint64_t end, Worker *worker, int threads) except -1 nogil:
        """Writes the parts from `part` to `end` of a cut."""
        cdef uint64_t children = c.last - c.first
        cdef uint64_t i
        cdef Cut finer = c[0]
        finer.axis = c.axis + 1
        for i in range(part, end):
            finer.first = c.first + children * i // c.parts
            finer.last = c.first + children * (i + 1) // c.parts
            self.write_children(finer, worker, threads)
        return 0

    cdef int write_in_threads(self, const Cut *c, Worker *worker, int threads) except -1:
        """Writes the parts of a cut, some in this thread, the others in new ones, which may start more of their own.

        Whatever happens, an interrupt too, it returns only when all have ended: they write to pages of the transaction.
        """
        cdef int shares = <int>min(<uint64_t>threads, c.parts)
        cdef int i
        cdef list works = []
        cdef Share share
        for i in range(shares):
            share = Share.__new__(Share)
            share.build = self
            share.cut = c
            share.part = c.parts * i // shares
            share.end = c.parts * (i + 1) // shares
            share.threads = threads * (i + 1) // shares - threads * i // shares
            share.worker = worker
            works.append(share.write if i else share.write_here)
        together(self.team, works)
        return 0

    cdef int pick_cut(self, Cut *c, Breath *breath) except -1 nogil:
        """Returns the axis to cut records along; sets the number of parts."""
        cdef int dims = self.state.g.dims
        cdef double spreads[MAX_DIMS]
        cdef double children = <double>(c.last - c.first)
        cdef double slabs
        cdef int a, widest = 0
        if dims <= MOST_TILED_DIMS and c.axis == dims - 1:
            c.parts = c.last - c.first
            return c.axis
        self.measure_spreads(self.first_record(c.level, c.first), self.first_record(c.level, c.last), spreads, breath)
        if dims > MOST_TILED_DIMS:
            for a in range(1, dims):
                widest = a if spreads[a] > spreads[widest] else widest
            c.parts = 2
            return widest
        slabs = pow(children, 1.0 / (dims - c.axis))
        for a in range(c.axis + 1, dims):     # an axis without spread takes no cuts
            slabs *= pow(spreads[c.axis] / spreads[a] if spreads[a] > 0.0 else children, 1.0 / (dims - c.axis))
        slabs = round(slabs)
        c.parts = c.last - c.first
        if not slabs >= children:   # true for NaN, too, which comes of records that are being changed
            c.parts = <uint64_t>slabs if slabs > 1.0 else 1
        return c.axis

    cdef int measure_spreads(self, uint64_t first, uint64_t last, double *spreads, Breath *breath) except -1 nogil:
        """How far the records' centres spread on each axis, in a unit in which all are finite and none is denormal."""
        cdef int a
        self.sample_spreads(first, last, 0.25, spreads)
        for a in range(self.state.g.dims):
            if spreads[a] >= TINY_EXTENT or not self.are_tiny(first, last, a, breath):
                return 0
        self.sample_spreads(first, last, SHIFT_UP, spreads)
        return 0

    cdef void sample_spreads(self, uint64_t first, uint64_t last, double factor, double *spreads) noexcept nogil:
        """The mean deviation of the sums of the records' bounds on each axis, times a factor, from a sample."""
        cdef int dims = self.state.g.dims
        cdef uint64_t n = min(last - first, <uint64_t>SAMPLE)
        cdef uint64_t i
        cdef double mean, deviation
        cdef const double *record
        cdef double centres[SAMPLE]
        cdef int a
        for a in range(dims):
            mean = 0.0
            for i in range(n):
                record = self.boxes + (self.order[first + i * (last - first) // n] & INDEX_MASK) * 2 * dims
                centres[i] = factor * record[a] + factor * record[dims + a]
                mean += centres[i] / n
            deviation = 0.0
            for i in range(n):
                deviation += fabs(centres[i] - mean) / n
            spreads[a] = deviation

    cdef int cut(self, const Cut *c, int along, Worker *worker) except -1 nogil:
        """Sorts the records of some pages along an axis, just far enough that each part of the pages gets its own."""
        cdef uint64_t start = self.first_record(c.level, c.first)
        cdef uint64_t end = self.first_record(c.level, c.last)
        cdef int ties = self.sort_ties(start, end, along, 0, worker)
        cdef uint64_t part
        if ties >= 0:
            for part in range(1, c.parts):
                self.settle(self.first_record(c.level, c.first + (c.last - c.first) * part // c.parts), start, end,
                            along, ties, worker)
        return 0

    cdef int settle(self, uint64_t position, uint64_t first, uint64_t last, int axis, int ties,
                    Worker *worker) except -1 nogil:
        """Sorts again around a cut, while records on both sides of it share a sort key, so that the cut is exact.

        A sort key has a limited number of bits for the range of the records; where an outlier stretches the range,
        nearly all records have the same key.
        """
        cdef uint64_t key = self.order[position] >> INDEX_BITS
        cdef uint64_t start, end
        while ties >= 0 and self.order[position - 1] >> INDEX_BITS == key:
            start = position - 1
            while start > first and self.order[start - 1] >> INDEX_BITS == key:
                start -= 1
            end = position + 1
            while end < last and self.order[end] >> INDEX_BITS == key:
                end += 1
            spend(&worker.breath, 2 * <int64_t>(end - start))
            if end - start == last - first:     # records are being changed
                return 0
            ties = self.sort_ties(start, end, axis, ties, worker)
            first, last = start, end
            key = self.order[position] >> INDEX_BITS
        return 0

    cdef int sort_ties(self, uint64_t first, uint64_t last, int axis, int ties, Worker *worker) except -2 nogil:
        """Sorts a range of records, which agree in the first `ties` keys, by the first key in which they differ.

        Returns how many keys come before that one, -1 if they agree in all. First comes the centre on the axis, then
        those on the other axes, the extents, and the id. So leaves of boxes about one centre, and leaves of equal
        boxes, still differ in what removal searches by.
        """
        cdef int dims = self.state.g.dims
        cdef int key
        while ties <= 2 * dims:
            if ties < dims:
                key = (axis + ties) % dims
            else:
                key = ties
            if self.sort_by(first, last, key, worker):
                return ties
            ties = 2 * dims if ties == 0 and self.are_equal(first, last, &worker.breath) else ties + 1
        return -1

    cdef int are_equal(self, uint64_t first, uint64_t last, Breath *breath) except -1 nogil:
        """Whether a range of records all have the same box."""
        cdef int dims = self.state.g.dims
        cdef const double *box = self.boxes + (self.order[first] & INDEX_MASK) * 2 * dims
        cdef uint64_t i
        for i in range(first + 1, last):
            if not boxes_equal(box, self.boxes + (self.order[i] & INDEX_MASK) * 2 * dims, dims):
                return 0
            spend(breath, 2 * dims)
        return 1

    cdef int sort_by(self, uint64_t first, uint64_t last, int key, Worker *worker) except -1 nogil:
        """Sorts a range of records by a key, to the precision of a sort key over the range. 0 when all agree."""
        cdef double *keys = <double *>(self.scratch + first)
        cdef uint64_t *order = self.order + first
        cdef uint64_t n = last - first
        cdef uint64_t i, block, start, cell
        cdef int bits = digit_bits(n)
        cdef uint64_t cells = <uint64_t>1 << 2 * bits
        cdef double least, most, scale
        self.take_keys(first, last, key, keys, &least, &most, &worker.breath)
        if not most > least:
            return 0
        scale = min(cells / (most - least), DBL_MAX)
        for block in range(blocks_of(n)):
            start = block * WORDS_AT_ONCE
            for i in range(start, min(start + WORDS_AT_ONCE, n)):
                cell = <uint64_t>((keys[i] - least) * scale)
                order[i] = min(cell, cells - 1) << INDEX_BITS | (order[i] & INDEX_MASK)
            spend(&worker.breath, 4 * min(n, <uint64_t>WORDS_AT_ONCE))
        sort_many_words(order, self.scratch + first, n, INDEX_BITS, bits, worker.counts, &worker.breath)
        return 1

    cdef int take_keys(self, uint64_t first, uint64_t last, int key, double *keys, double *least, double *most,
                       Breath *breath) except -1 nogil:
        """Sets keys of a range of records (centres on an axis, extents, or ids from the least on) and the keys' bounds.

        Centres and extents are taken at a quarter of their size, so that no difference overflows; tiny ones, which that
        would cost bits, are lifted instead.
        """
        cdef int dims = self.state.g.dims
        cdef int axis = key % dims
        cdef int64_t least_id = INT64_MAX
        cdef uint64_t i
        if key < 2 * dims:
            self.take_places(first, last, axis, key < dims, 0.25, keys, least, most, breath)
            if most[0] - least[0] < TINY_EXTENT and self.are_tiny(first, last, axis, breath):
                self.take_places(first, last, axis, key < dims, SHIFT_UP, keys, least, most, breath)
            return 0
        for i in range(first, last):
            least_id = min(least_id, self.ids[self.order[i] & INDEX_MASK])
            spend(breath, 2)
        least[0] = most[0] = 0.0
        for i in range(first, last):
            keys[i - first] = <double>(<uint64_t>self.ids[self.order[i] & INDEX_MASK] - <uint64_t>least_id)
            most[0] = keys[i - first] if keys[i - first] > most[0] else most[0]
            spend(breath, 2)
        return 0

    cdef int take_places(self, uint64_t first, uint64_t last, int axis, bint centres, double factor, double *keys,
                         double *least, double *most, Breath *breath) except -1 nogil:
        cdef int width = 2 * self.state.g.dims
        cdef const double *bounds = self.boxes + axis
        cdef double low_factor = factor if centres else -factor
        cdef double below = DBL_MAX
        cdef double above = -DBL_MAX
        cdef double place
        cdef const uint64_t *order = self.order + first
        cdef uint64_t n = last - first
        cdef uint64_t i, block, start, number
        for block in range(blocks_of(n)):
            start = block * WORDS_AT_ONCE
            for i in range(start, min(start + WORDS_AT_ONCE, n)):
                number = (order[i] & INDEX_MASK) * width
                place = low_factor * bounds[number] + factor * bounds[number + (width >> 1)]
                keys[i] = place
                below = place if place < below else below
                above = place if place > above else above
            spend(breath, 8 * min(n, <uint64_t>WORDS_AT_ONCE))
        least[0] = below
        most[0] = above
        return 0

    cdef int are_tiny(self, uint64_t first, uint64_t last, int axis, Breath *breath) except -1 nogil:
        """Whether all coordinates of a range of records on an axis are small enough to be lifted."""
        cdef int dims = self.state.g.dims
        cdef const double *record
        cdef uint64_t i
        for i in range(first, last):
            record = self.boxes + (self.order[i] & INDEX_MASK) * 2 * dims + axis
            if fabs(record[0]) >= TINY_COORDINATE or fabs(record[dims]) >= TINY_COORDINATE:
                return 0
            spend(breath, 4)
        return 1

    cdef int report(self) except -1 nogil:
        """Calls `progress` when a hundredth of the records has been written since the last time."""
        cdef uint64_t done = load_relaxed(&self.done)
        if done - self.reported > self.records // REPORTS and done < self.records:
            self.reported = done
            with gil:
                if self.progress is not None:
                    self.progress(done, self.records)
        return 0


cdef class Share:
    """Parts of a cut for one thread to write; the cut stays in place until they are written."""

    cdef PackedBuild build
    cdef const Cut *cut
    cdef uint64_t part, end
    cdef int threads
    cdef Worker *worker             # of the thread that cut

    def write_here(self):
        with nogil:
            self.build.write_parts(self.cut, self.part, self.end, self.worker, self.threads)

    def write(self):
        cdef Worker worker
        worker.counts = <uint64_t *>allocate(SORT_COUNTS * sizeof(uint64_t))
        worker.calls = False
        first_breath(&worker.breath, self.build.team)
        if worker.counts == NULL:
            raise MemoryError
        try:
            with self.build.ws.store.in_flight(), nogil:
                self.build.write_parts(self.cut, self.part, self.end, &worker, self.threads)
        finally:
            release(worker.counts)


def load(WriteSet ws not None, TreeState state not None, ids, boxes, progress=None, threads=1) -> None:
    """Builds the packed tree of all records in an empty state, in up to `threads` threads, this one among them.

    `ids` is int64 (n,), `boxes` float64 (n, 2 * dims), both C-contiguous, the boxes finite. `progress(done, total)` is
    called about a hundred times, in this thread; what it raises ends the load, as do OSError, MemoryError,
    CapacityError and what a breath raises; the caller must then abort `ws`. Only a load that succeeds changes the
    state.
    """
    cdef PackedBuild build = PackedBuild()
    cdef Py_buffer id_view, box_view
    cdef double box[2 * MAX_DIMS]
    cdef int most
    if state.root != 0:
        raise ValueError(f"bulk load into a tree of {state.records} records, expected an empty one")
    build.ws = ws
    build.state = state
    build.progress = progress
    build.team = Team()
    build.records = borrow(ids, &id_view, sizeof(int64_t))
    try:
        if build.records != <uint64_t>borrow(boxes, &box_view, 2 * state.g.dims * sizeof(double)):
            PyBuffer_Release(&box_view)
            raise ValueError(f"{build.records} ids for another number of boxes")
        try:
            if build.records == 0:
                return
            build.ids = <const int64_t *>id_view.buf
            build.boxes = <const double *>box_view.buf
            build.plan()
            most = min(threads, build.records // LEAST_SHARED + 1)
            with nogil:
                build.write_root(box, most)
        finally:
            PyBuffer_Release(&box_view)
    finally:
        PyBuffer_Release(&id_view)
    if progress is not None:
        progress(build.records, build.records)
    state.root = build.nodes[build.before[build.levels - 1]]
    state.levels = build.levels
    state.records = build.records
    copy_box(state.box, box, state.g.dims)


def clear(WriteSet ws not None, TreeState state not None) -> None:
    """Retires every page of the tree and makes the state an empty one. Raises CorruptionError, MemoryError."""
    cdef Breath breath
    if state.root == 0:
        return
    first_breath(&breath, None)
    with nogil:
        _retire_pages(ws, state, state.root, state.levels - 1, 0, &breath)
    state.root = 0
    state.levels = 0
    state.records = 0
    state.refresh_bounds(ws.store)


cdef int64_t _retire_pages(WriteSet ws, TreeState state, NodeID node, int level, uint64_t before,
                           Breath *breath) except -1 nogil:
    """Retires a page after all below it; leaves needn't be read for that. Returns `before` plus the pages retired.

    A page is read to its end before it is retired, since one that this transaction made is given back at once.
    """
    cdef uint64_t retired = before
    cdef Bucket *b
    cdef uint32_t i
    if level > 0:
        b = resolve_bucket(ws.store, state, node, level)
        for i in range(b.count):
            retired = _retire_pages(ws, state, refs(&state.g, b)[i], level - 1, retired, breath)
    retired += 1
    spend(breath, 256)
    if retired > load_acquire(&ws.store.table.high_water):
        _raise_pages(retired)
    ws.retire(node)
    return retired


cdef int _raise_pages(uint64_t pages) except -1 with gil:
    raise CorruptionError(f"a tree of {pages} pages, more than there are: a page is reached twice")
