"""Which slots of which windows are free: three-level bitmaps, one extent for each window.

Invariants, for an extent of `slots` usable slots (check() verifies them):

1. bits of slots that aren't usable yet are clear;
2. `used` is the number of usable slots whose bit is clear;
3. a summary bit is set exactly when the word below it isn't zero;
4. no extent of a class before its open one has a free slot.

Where room comes from is not known here: `growth` makes new windows and extends the files behind them.
    growth.new_window(size_class, spends_reserve) -> (window, first_offset, usable_bytes, limit_bytes)
    growth.extend(window, wanted_bytes, spends_reserve) -> usable_bytes    # of windows that may still grow
Bytes count from the window's beginning; slot i stands at first_offset + i * class_bytes.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from xtree.persistence.base.memory cimport allocate_zeroed, reallocate, release
from xtree.persistence.pages.mmap_windows cimport MAX_WINDOWS, make_address, offset_of, window_of
from xtree.persistence.pages.page cimport class_bytes

from xtree.errors import CorruptionError

cdef extern from "bits.h" nogil:
    int xt_lowest_bit(uint64_t word) noexcept
    int xt_highest_bit(uint64_t word) noexcept
    int xt_count_bits(uint64_t word) noexcept

cdef enum:
    LEAST_STEP = 65536              # bytes by which a file grows at least, and at most
    LARGEST_STEP = 16777216


# Bitmaps: kernels on one extent.


cdef inline uint64_t _words(uint64_t bits) noexcept nogil:
    return (bits + 63) >> 6


cdef inline bint _is_free(const Extent *e, uint64_t slot) noexcept nogil:
    return e.free_words[slot >> 6] >> (slot & 63) & 1


cdef inline void _set_free(Extent *e, uint64_t slot) noexcept nogil:
    e.free_words[slot >> 6] |= <uint64_t>1 << (slot & 63)
    e.free_segments[slot >> 12] |= <uint64_t>1 << (slot >> 6 & 63)
    e.free_groups[slot >> 18] |= <uint64_t>1 << (slot >> 12 & 63)


cdef inline void _set_used(Extent *e, uint64_t slot) noexcept nogil:
    e.free_words[slot >> 6] &= ~(<uint64_t>1 << (slot & 63))
    if e.free_words[slot >> 6] == 0:
        e.free_segments[slot >> 12] &= ~(<uint64_t>1 << (slot >> 6 & 63))
        if e.free_segments[slot >> 12] == 0:
            e.free_groups[slot >> 18] &= ~(<uint64_t>1 << (slot >> 12 & 63))


# The lowest free slot of an extent that has one.
cdef inline uint64_t _lowest_free(const Extent *e) noexcept nogil:
    cdef uint64_t at = 0
    while e.free_groups[at] == 0:
        at += 1
    at = at << 6 | xt_lowest_bit(e.free_groups[at])
    at = at << 6 | xt_lowest_bit(e.free_segments[at])
    return at << 6 | xt_lowest_bit(e.free_words[at])


# Makes the slots up to `slots` usable and free.
cdef void _open_slots(Extent *e, uint64_t slots) noexcept nogil:
    cdef uint64_t slot
    for slot in range(e.slots, slots):
        _set_free(e, slot)
    e.slots = slots


# One above the highest slot in use, 0 when none is.
cdef uint64_t _top(const Extent *e) noexcept nogil:
    cdef uint64_t word, used, valid
    if e.used == 0:
        return 0
    word = _words(e.slots)
    while word > 0:
        word -= 1
        valid = e.slots - (word << 6)
        used = ~e.free_words[word]
        if valid < 64:
            used &= (<uint64_t>1 << valid) - 1
        if used:
            return (word << 6) + xt_highest_bit(used) + 1
    return 0


# How many runs of free slots there are, and how long the longest is.
cdef uint64_t _free_runs(const Extent *e, uint64_t *longest) noexcept nogil:
    cdef uint64_t slot = 0, start, runs = 0
    longest[0] = 0
    while slot < e.slots:
        if not _is_free(e, slot):
            slot = _next_of(e, slot, True)
            continue
        start = slot
        slot = _next_of(e, slot, False)
        runs += 1
        longest[0] = max(longest[0], slot - start)
    return runs


# The first slot from `slot` on that is free, or with `free` false one that is used; `slots` when there is none.
cdef uint64_t _next_of(const Extent *e, uint64_t slot, bint free) noexcept nogil:
    cdef uint64_t word
    while slot < e.slots:
        word = e.free_words[slot >> 6]
        word = (word if free else ~word) >> (slot & 63)
        if word:
            return min(slot + xt_lowest_bit(word), e.slots)
        slot = (slot | 63) + 1
    return e.slots


# Errors, raised from code without the GIL.


cdef int _not_in_use(uint64_t address) except -1 with gil:
    raise RuntimeError(f"no slot in use at window {window_of(address)}, offset {offset_of(address)}")


cdef int _corrupt(uint64_t address, int size_class, str why) except -1 with gil:
    raise CorruptionError(f"window {window_of(address)}, offset {offset_of(address)}: expected a free slot of "
                          f"size class {size_class}, found {why}")


# The extents of an allocator.


cdef int _make_room(SegmentAllocator a) except -1:
    cdef uint32_t room = a.extent_room * 2 if a.extent_room else 8
    cdef void *extents
    if a.extent_count == a.extent_room:
        extents = reallocate(a.extents, room * sizeof(Extent))
        if extents == NULL:
            raise MemoryError("no memory for one more window's slots")
        a.extents = <Extent *>extents
        a.extent_room = room
    return 0


cdef void _link(SegmentAllocator a, uint32_t index) noexcept:
    cdef int size_class = a.extents[index].size_class
    if a.first_extents[size_class] == NO_EXTENT:
        a.first_extents[size_class] = index
    else:
        a.extents[a.last_extents[size_class]].next = index
    a.last_extents[size_class] = index
    a.open_extents[size_class] = min(a.open_extents[size_class], index)
    a.extent_of_window[a.extents[index].window] = index + 1
    a.extent_count += 1


# 1 + the index of a window's extent, 0 for a window that isn't known.
cdef inline uint32_t _extent_of(SegmentAllocator a, uint32_t window) noexcept nogil:
    return a.extent_of_window[window] if window < a.window_room else 0


cdef int _make_window_room(SegmentAllocator a, uint32_t window) except -1:
    cdef uint32_t room = max(a.window_room, <uint32_t>8)
    cdef void *larger
    while room <= window:
        room *= 2
    if room > a.window_room:
        larger = reallocate(a.extent_of_window, room * sizeof(uint32_t))
        if larger == NULL:
            raise MemoryError("no memory for the allocator's table of windows")
        a.extent_of_window = <uint32_t *>larger
        memset(a.extent_of_window + a.window_room, 0, (room - a.window_room) * sizeof(uint32_t))
        a.window_room = room
    return 0


# Makes room in a full class and returns the extent that has it.
cdef uint32_t _grow(SegmentAllocator a, int size_class, bint spends_reserve) except? NO_EXTENT with gil:
    cdef uint32_t i = a.first_extents[size_class]
    while i != NO_EXTENT and a.extents[i].slots == a.extents[i].limit:
        i = a.extents[i].next
    if i != NO_EXTENT:
        _extend(a, i, spends_reserve)
        return i
    offer = a.offers.pop(size_class, None) or a.growth.new_window(size_class, spends_reserve)
    try:
        window, first_offset, usable_bytes, limit_bytes = offer
        a.attach(window, size_class, first_offset, usable_bytes, limit_bytes)
    except MemoryError:
        a.offers[size_class] = offer
        raise
    i = a.last_extents[size_class]
    if a.extents[i].slots == 0:
        _extend(a, i, spends_reserve)
    return i


cdef int _extend(SegmentAllocator a, uint32_t index, bint spends_reserve) except -1:
    cdef Extent *e = &a.extents[index]
    cdef uint64_t bytes = class_bytes(e.size_class)
    cdef uint64_t current = e.first_offset + e.slots * bytes
    cdef uint64_t step = min(max(current // 8, <uint64_t>LEAST_STEP), <uint64_t>LARGEST_STEP)
    cdef uint64_t wanted = min(e.slots + max(step // bytes, <uint64_t>1), e.limit)
    cdef uint64_t usable = a.growth.extend(e.window, e.first_offset + wanted * bytes, spends_reserve)
    if e.slots == e.limit or usable < current + bytes:
        raise RuntimeError(f"window {e.window} has no room to grow: {usable} bytes usable, {current} before, "
                           f"at most {e.limit} slots")
    _open_slots(e, min((usable - e.first_offset) // bytes, e.limit))
    return 0


# The extent and slot of an address; NULL when it isn't the beginning of a usable slot.
cdef Extent *_find(SegmentAllocator a, uint64_t address, uint64_t *slot) noexcept nogil:
    cdef uint32_t index = _extent_of(a, window_of(address))
    cdef Extent *e
    if index == 0:
        return NULL
    e = &a.extents[index - 1]
    slot[0] = (offset_of(address) - e.first_offset) // class_bytes(e.size_class)
    if (offset_of(address) < e.first_offset or slot[0] >= e.slots
            or e.first_offset + slot[0] * class_bytes(e.size_class) != offset_of(address)):
        return NULL
    return e


cdef class SegmentAllocator:
    """The slots of one store.

    Not thread-safe by itself: the store's lock guards every method, stats() and check() too. `growth` is called under
    that lock.
    """

    def __cinit__(self, growth):
        self.extents = NULL
        self.extent_of_window = NULL
        self.extent_count = self.extent_room = self.window_room = 0
        memset(self.first_extents, 0xFF, sizeof(self.first_extents))
        memset(self.last_extents, 0xFF, sizeof(self.last_extents))
        memset(self.open_extents, 0xFF, sizeof(self.open_extents))
        self.offers = {}
        self.growth = growth

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.extent_count):
            release(self.extents[i].free_words)
        release(self.extents)
        release(self.extent_of_window)

    def attach(self, uint32_t window, int size_class, uint64_t first_offset, uint64_t usable_bytes,
               uint64_t limit_bytes):
        """Takes over a window whose slots are all free. Raises ValueError when it can't be attached, MemoryError."""
        cdef Extent *e
        cdef uint64_t slots, limit, words, segments
        if not 0 <= size_class < SIZE_CLASSES:
            raise ValueError(f"size class {size_class}: expected 0 to {SIZE_CLASSES - 1}")
        if window >= MAX_WINDOWS or _extent_of(self, window):
            raise ValueError(f"window {window} can't be attached, or was before")
        if not first_offset <= usable_bytes <= limit_bytes:
            raise ValueError(f"window {window}: first slot at {first_offset}, usable bytes {usable_bytes}, "
                             f"limit {limit_bytes}: expected them in ascending order")
        slots = (usable_bytes - first_offset) // class_bytes(size_class)
        limit = (limit_bytes - first_offset) // class_bytes(size_class)
        _make_room(self)
        _make_window_room(self, window)
        words = _words(limit) + 1
        segments = _words(words)
        e = &self.extents[self.extent_count]
        memset(e, 0, sizeof(Extent))
        e.free_words = <uint64_t *>allocate_zeroed(words + segments + _words(segments), sizeof(uint64_t))
        if e.free_words == NULL:
            raise MemoryError(f"no memory for the bitmaps of window {window}")
        e.free_segments = e.free_words + words
        e.free_groups = e.free_segments + segments
        e.window, e.size_class, e.first_offset, e.limit = window, size_class, first_offset, limit
        e.next = NO_EXTENT
        _open_slots(e, slots)
        _link(self, self.extent_count)

    cdef int allocate(self, int size_class, bint spends_reserve, uint64_t *address) except -1 nogil:
        cdef uint32_t i = self.open_extents[size_class]
        cdef uint64_t slot
        cdef Extent *e
        while i != NO_EXTENT and self.extents[i].used == self.extents[i].slots:
            i = self.extents[i].next
        if i == NO_EXTENT:
            i = _grow(self, size_class, spends_reserve)
        self.open_extents[size_class] = i
        e = &self.extents[i]
        slot = _lowest_free(e)
        _set_used(e, slot)
        e.used += 1
        address[0] = make_address(e.window, e.first_offset + slot * class_bytes(size_class))
        return 0

    cdef int free(self, uint64_t address) except -1 nogil:
        cdef uint64_t slot
        cdef uint32_t index
        cdef Extent *e = _find(self, address, &slot)
        if e == NULL or _is_free(e, slot):
            return _not_in_use(address)
        _set_free(e, slot)
        e.used -= 1
        index = self.extent_of_window[e.window] - 1
        if index < self.open_extents[e.size_class]:
            self.open_extents[e.size_class] = index
        return 0

    cdef int occupy(self, int size_class, uint64_t address) except -1 nogil:
        cdef uint64_t slot
        cdef Extent *e = _find(self, address, &slot)
        if e == NULL:
            return _corrupt(address, size_class, "an address that is misaligned or outside its file")
        if e.size_class != size_class:
            return _corrupt(address, size_class, "a window of another class")
        if not _is_free(e, slot):
            return _corrupt(address, size_class, "a slot already in use")
        _set_used(e, slot)
        e.used += 1
        return 0

    def allocate_slot(self, int size_class):
        """Takes the lowest free slot of the class into use; returns its address."""
        cdef uint64_t address
        if not 0 <= size_class < SIZE_CLASSES:
            raise ValueError(f"size class {size_class}: expected 0 to {SIZE_CLASSES - 1}")
        self.allocate(size_class, False, &address)
        return address

    def free_slot(self, uint64_t address):
        """Gives a slot back. Raises RuntimeError for one that isn't in use."""
        self.free(address)

    def occupy_slot(self, int size_class, uint64_t address):
        """Marks a slot as used. Raises CorruptionError when it can't be a free slot of the class."""
        self.occupy(size_class, address)

    def is_used(self, uint64_t address):
        """Whether an address is that of a slot in use."""
        cdef uint64_t slot
        cdef Extent *e = _find(self, address, &slot)
        return e != NULL and not _is_free(e, slot)

    def top_bytes(self, uint32_t window):
        """Bytes of a window up to the end of its highest slot in use, 0 when it isn't attached: what a file keeps."""
        cdef Extent *e
        if _extent_of(self, window) == 0:
            return 0
        e = &self.extents[_extent_of(self, window) - 1]
        return e.first_offset + _top(e) * class_bytes(e.size_class)

    @property
    def slots_used(self):
        """Slots in use, of all classes."""
        return sum([self.extents[i].used for i in range(self.extent_count)])

    def stats(self):
        """For each size class: windows, slots, how many are used and free, the bytes of all its slots, the share that
        is used (0.0 without slots), the number of runs of free slots and the length of the longest, in slots."""
        cdef uint32_t i
        cdef uint64_t longest = 0
        cdef Extent *e
        result = {
            c: dict(windows=0, slots=0, used=0, free=0, bytes=0, fill=0.0, free_runs=0, longest_free_run=0)
            for c in range(SIZE_CLASSES)
        }
        for i in range(self.extent_count):
            e = &self.extents[i]
            of_class = result[e.size_class]
            of_class["windows"] += 1
            of_class["slots"] += e.slots
            of_class["used"] += e.used
            of_class["free"] += e.slots - e.used
            of_class["bytes"] += e.slots * class_bytes(e.size_class)
            of_class["free_runs"] += _free_runs(e, &longest)
            of_class["longest_free_run"] = max(of_class["longest_free_run"], longest)
            of_class["fill"] = of_class["used"] / of_class["slots"] if of_class["slots"] else 0.0
        return result

    def exercise(self, int size_class, Py_ssize_t n):
        """Allocates n slots and frees them, in the order in which they were given.

        For benchmarks, without the cost of n calls. Afterwards everything is as before, except for room that was made.
        Raises what making room raises.
        """
        cdef Py_ssize_t i, taken = 0
        cdef uint64_t *addresses
        if not 0 <= size_class < SIZE_CLASSES or n < 0:
            raise ValueError(f"{n} slots of size class {size_class} can't be allocated")
        addresses = <uint64_t *>allocate_zeroed(n, sizeof(uint64_t))
        if addresses == NULL:
            raise MemoryError("no memory for a list of slots")
        try:
            with nogil:
                try:
                    for i in range(n):
                        self.allocate(size_class, False, &addresses[i])
                        taken = i + 1
                finally:
                    for i in range(taken):
                        self.free(addresses[i])
        finally:
            release(addresses)

    def check(self):
        """Verifies the invariants at the top of this file. Raises CorruptionError."""
        cdef uint32_t i
        for i in range(self.extent_count):
            _check_extent(&self.extents[i])
            if self.extents[i].used < self.extents[i].slots and i < self.open_extents[self.extents[i].size_class]:
                raise CorruptionError(f"window {self.extents[i].window}: free slots before the open extent")


cdef int _check_extent(const Extent *e) except -1:
    cdef uint64_t i, free_slots = 0, words = _words(e.limit) + 1
    for i in range(words):
        free_slots += xt_count_bits(e.free_words[i])
        if (e.free_segments[i >> 6] >> (i & 63) & 1) != (e.free_words[i] != 0):
            raise CorruptionError(f"window {e.window}: summary of segment {i} is wrong")
    for i in range(_words(words)):
        if (e.free_groups[i >> 6] >> (i & 63) & 1) != (e.free_segments[i] != 0):
            raise CorruptionError(f"window {e.window}: summary of group {i} is wrong")
    for i in range(e.slots, words << 6):
        if _is_free(e, i):
            raise CorruptionError(f"window {e.window}: slot {i} is free beyond the {e.slots} usable ones")
    if free_slots != e.slots - e.used:
        raise CorruptionError(f"window {e.window}: {free_slots} free slots, expected {e.slots - e.used}")
    return 0
