"""The X-tree's split (Berchtold, Keim, Kriegel, VLDB 1996, section 3) over the R*-tree's (SIGMOD 1990, section 4.2)."""

from libc.math cimport INFINITY, ceil
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from xtree.algorithms.kernels.box cimport MAX_DIMS, make_unit_space, to_unit
from xtree.algorithms.bucket cimport KIND_DIRECTORY, history, lower, make_geometry, refs, stride
from xtree.algorithms.kernels.key_sort cimport SortKey, sort, sort_scattered
from xtree.persistence.base.memory cimport allocate, release
from xtree.algorithms.kernels.radix cimport SORT_COUNTS

cdef enum:
    LEAST_ROOM = 128
    # Arrays of a sweep. Index k stands for the cut after k entries of an order: k of them on the left.
    LEFT_LOWER = 0
    LEFT_UPPER = 1
    RIGHT_LOWER = 2
    RIGHT_UPPER = 3
    MARGINS = 4                     # of both sides together
    LEFT_VOLUME = 5
    RIGHT_VOLUME = 6
    SHARED_VOLUME = 7
    SWEEP_ARRAYS = 8

cdef Cut NO_CUT = Cut(first=0, overlap=INFINITY, volume=INFINITY)


cdef class Splitter:

    def __cinit__(self):
        self.block = NULL
        self.room = 0
        self.dims = 0

    def __dealloc__(self):
        release(self.block)

    cdef int make_room(self, int dims, int count) except -1 nogil:
        cdef size_t room = LEAST_ROOM
        cdef char *block
        if count <= self.room and dims == self.dims:
            return 0
        while room < <size_t>count:
            room *= 2
        block = <char *>allocate(room * ((4 * dims + SWEEP_ARRAYS) * sizeof(double) + 2 * sizeof(uint64_t)
                                         + 2 * sizeof(SortKey) + 3 * sizeof(int) + 2 * sizeof(uint64_t))
                                 + SORT_COUNTS * sizeof(uint64_t))
        if block == NULL:
            with gil:
                raise MemoryError(f"no memory to split a page of {count} entries")
        release(self.block)
        self.block = block
        self.room = <int>room
        self.dims = dims
        self.columns = <double *>block
        self.units = self.columns + 2 * dims * room
        self.work = self.units + 2 * dims * room
        self.refs = <uint64_t *>(self.work + SWEEP_ARRAYS * room)
        self.history = self.refs + room
        self.sort_words = self.history + room
        self.keys = <SortKey *>(self.sort_words + 2 * room + SORT_COUNTS)
        self.spare_keys = self.keys + room
        self.order = <int *>(self.spare_keys + room)
        self.axis_order = self.order + room
        self.candidate = self.axis_order + room
        return 0

    cdef int gather(self, const Geometry *g, Bucket *b, int position, const double *box, uint64_t ref,
                    uint64_t split_history) except -1 nogil:
        cdef int count = b.count
        cdef int i
        self.make_room(g.dims, count + 1)
        self.count = count + 1
        for i in range(2 * g.dims):
            copy_around(self.columns + i * self.room, lower(g, b, i), count, position)
            self.columns[i * self.room + position] = box[i]
        copy_around(<double *>self.refs, <const double *>refs(g, b), count, position)
        self.refs[position] = ref
        if b.kind == KIND_DIRECTORY:
            copy_around(<double *>self.history, <const double *>history(g, b), count, position)
            self.history[position] = split_history
        self.measure()
        return 0

    cdef void measure(self) noexcept nogil:
        """Sets the unit space from the columns, and the columns' image in it."""
        cdef int axis, i, column
        cdef double region[2 * MAX_DIMS]
        for axis in range(self.dims):
            region[axis] = least_of(self.columns + axis * self.room, self.count)
            region[self.dims + axis] = most_of(self.columns + (self.dims + axis) * self.room, self.count)
        make_unit_space(&self.space, self.dims, region)
        for column in range(2 * self.dims):
            axis = column % self.dims
            for i in range(self.count):
                self.units[column * self.room + i] = to_unit(&self.space, axis, self.columns[column * self.room + i])

    cdef Decision plan(self, const Geometry *g, bint may_stay) noexcept nogil:
        self.plan_topological(g.min_fill)
        if may_stay and self.overlap > g.max_overlap and not self.plan_by_history(g.min_fanout, g.max_overlap):
            return SPLIT_BY_POSITION if self.plan_equal() else STAY_WHOLE
        return SPLIT_BY_POSITION if self.all_equal() else SPLIT_ON_AXIS

    cdef void plan_topological(self, double min_fill) noexcept nogil:
        """Plans the cut of least overlap, then of least volume, on the axis with the least sum of margins."""
        cdef int axis, by_upper
        cdef int least = smaller_side(self.count, min_fill)
        cdef double margins, least_margins = INFINITY
        cdef double overlap = 0.0
        cdef Cut cut, best
        self.first = 0
        for axis in range(self.dims):
            margins = 0.0
            best = NO_CUT
            for by_upper in range(2):
                self.sort_along(axis, by_upper)
                self.sweep()
                margins += sum_of_margins(self.work + MARGINS * self.room, self.count, least)
                cut = least_shared_cut(self.work, self.room, self.count, least)
                if is_better(&cut, &best, self.count):
                    best = cut
                    overlap = overlap_at(self.work, self.room, cut.first)
                    self.axis_order, self.candidate = self.candidate, self.axis_order
            if self.first == 0 or margins < least_margins:
                least_margins = margins
                self.axis = axis
                self.first = best.first
                self.overlap = overlap
                self.order, self.axis_order = self.axis_order, self.order

    cdef bint plan_by_history(self, double min_fanout, double max_overlap) noexcept nogil:
        """Plans the balanced cut of least overlap along the axes on which every entry has been split before.

        Only balanced ones are compared: a single entry cut off shares next to no volume with the rest. A history is
        inherited, so an axis in it may have separated this page from others rather than its entries from each other;
        the cut must therefore keep to max_overlap too. Leaves the plan alone when it returns False.
        """
        cdef int axis
        cdef int best_axis = 0
        cdef int least = smaller_side(self.count, min_fanout)
        cdef uint64_t common = self.common_history()
        cdef Cut cut, best
        best = NO_CUT
        for axis in range(self.dims):
            if common >> axis & 1 and self.space.scale[axis] > 0.0:
                self.sort_along(axis, False)
                self.sweep()
                cut = least_overlap_cut(self.work, self.room, self.count, least)
                if is_better(&cut, &best, self.count):
                    best = cut
                    best_axis = axis
                    self.axis_order, self.candidate = self.candidate, self.axis_order
        if best.first == 0 or best.overlap > max_overlap:
            return False
        self.axis = best_axis
        self.first = best.first
        self.overlap = best.overlap
        self.order, self.axis_order = self.axis_order, self.order
        return True

    cdef bint plan_equal(self) noexcept nogil:
        """Where at least half of the boxes are equal, plans half of the entries, equal ones only, as the second group.

        A query that needs one of these needs them all, so it reads no more than it would of a supernode, and an insert
        reads half. Leaves the plan alone when it returns False.
        """
        cdef int i, entry
        cdef int half = self.count // 2
        cdef int others = 0
        cdef int equal = self.count
        cdef int model = self.order[half]
        for i in range(self.count - 1, -1, -1):
            entry = self.order[i]
            if self.are_equal(entry, model):
                equal -= 1
                self.candidate[equal] = entry
            else:
                self.candidate[others] = entry
                others += 1
        if others > self.count - half:
            return False
        self.sweep()
        self.first = self.count - half
        self.overlap = overlap_at(self.work, self.room, self.first)
        self.order, self.candidate = self.candidate, self.order
        return True

    cdef void order_ids(self, const Geometry *g) noexcept nogil:
        """Divides equal boxes around the cut by their ids, so that each side gets a range of ids of its own.

        If all are equal, and the newest id is the last or the first, more are expected there, and the cut leaves them
        room.
        """
        cdef int start = self.first
        cdef int end = self.first
        cdef int least = smaller_side(self.count, g.min_fill)
        cdef int i
        cdef int64_t id
        while start > 0 and self.are_equal(self.order[start - 1], self.order[self.first]):
            start -= 1
        if start == self.first:
            return
        while end < self.count and self.are_equal(self.order[end], self.order[start]):
            end += 1
        for i in range(start, end):
            id = <int64_t>self.refs[self.order[i]]
            self.keys[i].key = <double>(id >> 32)
            self.keys[i].tie = <double><uint32_t>id
            self.keys[i].entry = self.order[i]
        self.sorted_keys = sort(self.keys + start, self.spare_keys + start, end - start)
        for i in range(start, end):
            self.order[i] = self.sorted_keys[i - start].entry
        if end - start == self.count:
            if self.order[self.count - 1] == self.count - 1:
                self.first = self.count - least
            elif self.order[0] == self.count - 1:
                self.first = least

    cdef uint64_t common_history(self) noexcept nogil:
        cdef int i
        cdef uint64_t common = self.history[0]
        for i in range(1, self.count):
            common &= self.history[i]
        return common

    cdef void sort_along(self, int axis, bint by_upper) noexcept nogil:
        """Sorts the entries into `candidate`, by one bound on the axis, then by the other, then as they came.

        A call by upper bounds must come right after the one by lower bounds: it starts from that order, which is nearly
        the one wanted.
        """
        cdef int i, entry
        cdef const double *key = self.columns + (axis + (self.dims if by_upper else 0)) * self.room
        cdef const double *tie = self.columns + (axis + (0 if by_upper else self.dims)) * self.room
        for i in range(self.count):
            entry = self.sorted_keys[i].entry if by_upper else i
            self.keys[i].key = key[entry]
            self.keys[i].tie = tie[entry]
            self.keys[i].entry = entry
        if by_upper:
            self.sorted_keys = sort(self.keys, self.spare_keys, self.count)
        else:
            self.sorted_keys = sort_scattered(self.keys, self.spare_keys, self.count, self.sort_words)
        for i in range(self.count):
            self.candidate[i] = self.sorted_keys[i].entry

    cdef void sweep(self) noexcept nogil:
        """Fills the work arrays for every cut of `candidate`."""
        cdef int axis, k
        cdef int n = self.count
        cdef int room = self.room
        cdef double *work = self.work
        for k in range(1, n):
            work[MARGINS * room + k] = 0.0
            work[LEFT_VOLUME * room + k] = 1.0
            work[RIGHT_VOLUME * room + k] = 1.0
            work[SHARED_VOLUME * room + k] = 1.0
        for axis in range(self.dims):
            if self.space.scale[axis] > 0.0:
                run_bounds(self.units + axis * room, self.units + (self.dims + axis) * room, self.candidate, n, work,
                           room)
                accumulate(work, room, n, self.space.weight[axis])

    cdef bint all_equal(self) noexcept nogil:
        cdef int i
        for i in range(1, self.count):
            if not self.are_equal(i, 0):
                return False
        return True

    cdef bint are_equal(self, int entry, int other) noexcept nogil:
        cdef int column
        for column in range(2 * self.dims):
            if self.columns[column * self.room + entry] != self.columns[column * self.room + other]:
                return False
        return True

    cdef void write_group(self, const Geometry *g, int group, Bucket *target) noexcept nogil:
        cdef int i
        cdef int step = stride(g, target)
        cdef int count = self.first if group == 0 else self.count - self.first
        cdef const int *entries = self.order if group == 0 else self.order + self.first
        cdef double *to_column = lower(g, target, 0)
        cdef const double *from_column = self.columns
        for _ in range(2 * g.dims):
            for i in range(count):
                to_column[i] = from_column[entries[i]]
            memset(to_column + count, 0, (step - count) * sizeof(double))
            to_column += step
            from_column += self.room
        write_words(refs(g, target), self.refs, entries, count, step)
        if target.kind == KIND_DIRECTORY:
            write_words(history(g, target), self.history, entries, count, step)
        target.count = count


cdef void copy_around(double *target, const double *source, int count, int position) noexcept nogil:
    """Copies words of 8 bytes, leaving one free at a position."""
    memcpy(target, source, position * sizeof(double))
    memcpy(target + position + 1, source + position, (count - position) * sizeof(double))


cdef void write_words(uint64_t *target, const uint64_t *source, const int *entries, int count, int step) noexcept nogil:
    cdef int i
    for i in range(count):
        target[i] = source[entries[i]]
    memset(target + count, 0, (step - count) * sizeof(uint64_t))


cdef double least_of(const double *values, int n) noexcept nogil:
    cdef int i
    cdef double least = values[0]
    for i in range(1, n):
        least = values[i] if values[i] < least else least
    return least


cdef double most_of(const double *values, int n) noexcept nogil:
    cdef int i
    cdef double most = values[0]
    for i in range(1, n):
        most = values[i] if values[i] > most else most
    return most


cdef int smaller_side(int n, double share) noexcept nogil:
    """The least number of entries that makes up `share` of n; at least 1, at most half."""
    cdef int least = <int>ceil(share * n)
    if least > n // 2:
        least = n // 2
    return least if least > 1 else 1


cdef void run_bounds(const double *low, const double *high, const int *order, int n, double *work,
                     int room) noexcept nogil:
    """The bounds on one axis of both sides of every cut."""
    cdef int k
    cdef double least = INFINITY
    cdef double most = -INFINITY
    for k in range(1, n):
        least = low[order[k - 1]] if low[order[k - 1]] < least else least
        most = high[order[k - 1]] if high[order[k - 1]] > most else most
        work[LEFT_LOWER * room + k] = least
        work[LEFT_UPPER * room + k] = most
    least = INFINITY
    most = -INFINITY
    for k in range(n - 1, 0, -1):
        least = low[order[k]] if low[order[k]] < least else least
        most = high[order[k]] if high[order[k]] > most else most
        work[RIGHT_LOWER * room + k] = least
        work[RIGHT_UPPER * room + k] = most


cdef void accumulate(double *work, int room, int n, double weight) noexcept nogil:
    """Includes one axis in the margins and volumes of every cut."""
    cdef int k
    cdef const double *left_lower = work + LEFT_LOWER * room
    cdef const double *left_upper = work + LEFT_UPPER * room
    cdef const double *right_lower = work + RIGHT_LOWER * room
    cdef const double *right_upper = work + RIGHT_UPPER * room
    cdef double left, right, shared
    for k in range(1, n):
        left = left_upper[k] - left_lower[k]
        right = right_upper[k] - right_lower[k]
        shared = ((left_upper[k] if left_upper[k] < right_upper[k] else right_upper[k])
                  - (left_lower[k] if left_lower[k] > right_lower[k] else right_lower[k]))
        shared = shared if shared > 0.0 else 0.0
        work[MARGINS * room + k] += (left + right) * weight
        work[LEFT_VOLUME * room + k] *= left
        work[RIGHT_VOLUME * room + k] *= right
        work[SHARED_VOLUME * room + k] *= shared


cdef double sum_of_margins(const double *margins, int n, int least) noexcept nogil:
    cdef int k
    cdef double total = 0.0
    for k in range(least, n - least + 1):
        total += margins[k]
    return total


cdef double overlap_at(const double *work, int room, int k) noexcept nogil:
    """The X-tree's overlap of the two sides: shared volume over covered volume; 0 when they cover none."""
    cdef double shared = work[SHARED_VOLUME * room + k]
    cdef double covered = work[LEFT_VOLUME * room + k] + work[RIGHT_VOLUME * room + k] - shared
    return shared / covered if covered > 0.0 else 0.0


cdef bint is_better(const Cut *a, const Cut *b, int n) noexcept nogil:
    """Less overlap, then less volume, then better balance. Any cut is better than none."""
    cdef int lean_a = 2 * a.first - n
    cdef int lean_b = 2 * b.first - n
    if b.first == 0:
        return True
    if a.overlap != b.overlap:
        return a.overlap < b.overlap
    if a.volume != b.volume:
        return a.volume < b.volume
    return lean_a * lean_a < lean_b * lean_b


cdef Cut least_shared_cut(const double *work, int room, int n, int least) noexcept nogil:
    """The R*-tree's choice of a distribution, by shared volume rather than the X-tree's measure."""
    cdef int k
    cdef Cut cut, best
    best = NO_CUT
    for k in range(least, n - least + 1):
        cut.first = k
        cut.overlap = work[SHARED_VOLUME * room + k]
        cut.volume = work[LEFT_VOLUME * room + k] + work[RIGHT_VOLUME * room + k]
        if is_better(&cut, &best, n):
            best = cut
    return best


cdef Cut least_overlap_cut(const double *work, int room, int n, int least) noexcept nogil:
    """The cut of least overlap, by the X-tree's measure, of those that leave `least` entries on either side."""
    cdef int k
    cdef Cut cut, best
    best = NO_CUT
    cut.volume = 0.0
    for k in range(least, n - least + 1):
        cut.first = k
        cut.overlap = overlap_at(work, room, k)
        if is_better(&cut, &best, n):
            best = cut
    return best


def plan_split(const double[:, ::1] boxes not None, histories=None, *, bint may_stay=False, double max_overlap=0.2,
               double min_fanout=0.35, double min_fill=0.4) -> dict | None:
    """How a page with these boxes, (n, 2 * dims) with n > 1, would be split; None if it would stay whole.

    The dict holds `axis`, `overlap` (of the two groups), `groups` (two arrays of rows) and `by_position` (whether no
    axis tells them apart: all boxes are equal, or half of them, which are the second group). `histories` is (n,): as
    bits, the axes on which each entry has been split.
    """
    cdef Geometry g
    cdef Splitter splitter = Splitter()
    cdef int n = <int>boxes.shape[0]
    cdef int dims = <int>boxes.shape[1] // 2
    cdef int i, column
    cdef Decision decision
    cdef uint64_t[::1] bits = np.zeros(n, np.uint64) if histories is None else np.array(histories, np.uint64)
    cdef int[::1] order_view
    make_geometry(&g, dims, -1, max_overlap, min_fanout, min_fill)
    if n < 2 or bits.shape[0] != n:
        raise ValueError(f"got {n} boxes and {bits.shape[0]} histories, expected as many, at least 2")
    splitter.make_room(dims, n)
    splitter.count = n
    for i in range(n):
        splitter.history[i] = bits[i]
        for column in range(2 * dims):
            splitter.columns[column * splitter.room + i] = boxes[i, column]
    splitter.measure()
    decision = splitter.plan(&g, may_stay)
    if decision == STAY_WHOLE:
        return None
    order = np.empty(n, np.intc)
    order_view = order
    memcpy(&order_view[0], splitter.order, n * sizeof(int))
    return {
        "axis": splitter.axis,
        "overlap": splitter.overlap,
        "groups": (order[:splitter.first], order[splitter.first:]),
        "by_position": decision == SPLIT_BY_POSITION,
    }
