"""Epochs and pins: readers say which epoch they look at, the reclaimer frees only what none of them can see.

A reader takes a slot by putting the current epoch in it, then checks whether the current epoch moved meanwhile; if so,
it stores the new one. The reclaimer looks at the current epoch first and at the slots afterwards. All of these are
sequentially consistent, so one of the two sees the other: either the scan finds the pin, or the reader found an epoch
that is no older than the one the scan began with. Weaker orders would let a reader's load pass its own store, and then
neither might see the other. Only the end of a pin is a plain release: what was read under it comes before.

A pin of an older epoch checks the horizon instead, which the reclaimer publishes between two scans: either the second
scan finds the pin, or the pin finds the horizon and is refused when its epoch is below.
"""

from libc.stdint cimport UINT64_MAX, uint64_t
from libc.string cimport memset

from xtree.persistence.base.monotonic cimport xt_monotonic_ns
from xtree.persistence.base.pythread cimport PyThread_get_thread_ident
from xtree.persistence.base.atomics cimport (
    compare_exchange,
    load_relaxed,
    load_seq,
    store_relaxed,
    store_release,
    store_seq,
)
from xtree.persistence.base.memory cimport allocate_lines, allocate_zeroed, release, release_lines

from xtree.errors import CapacityError

cdef extern from "<assert.h>" nogil:
    void c_assert "assert"(bint condition) noexcept     # in the checked build only

assert sizeof(PinSlot) == 64


cdef int _no_memory() except -1 with gil:
    raise MemoryError("no memory for more pins")


cdef int _no_slot() except -1 with gil:
    raise CapacityError(f"all {SLOTS_OF_FIRST + (MAX_BLOCKS - 1) * SLOTS_PER_BLOCK} pins are in use")


cdef int _refused(uint64_t epoch, uint64_t horizon, uint64_t current) except -1 with gil:
    raise ValueError(f"epoch {epoch} can't be pinned: expected {horizon} to {current}")


# The place of the pointer to a block. For a block beyond the near ones it exists once the block is counted, or is being
# added.
cdef inline uint64_t *_place_of(Epochs e, int block) noexcept nogil:
    if block < NEAR_BLOCKS:
        return &e.near[block]
    return <uint64_t *>load_seq(&e.far) + (block - NEAR_BLOCKS)


cdef inline int _slots_of(int block) noexcept nogil:
    return SLOTS_PER_BLOCK if block else SLOTS_OF_FIRST


cdef inline PinSlot *_slot_at(Epochs e, int slot) noexcept nogil:
    return <PinSlot *>load_seq(_place_of(e, slot // SLOTS_PER_BLOCK)) + slot % SLOTS_PER_BLOCK


# The slot after a slot; after the last one of a block, the first of the next block. For walks from 0 up to
# block_count * SLOTS_PER_BLOCK.
cdef inline int _following(int slot) noexcept nogil:
    return SLOTS_PER_BLOCK if slot == SLOTS_OF_FIRST - 1 else slot + 1


# Takes a slot of the blocks [begin, end), preferring one that this thread is likely to have had before. One exchange
# both takes it and stores the epoch that it pins. NULL: all are taken.
cdef PinSlot *_take_slot_of(Epochs e, int begin, int end, uint64_t epoch, int *slot) noexcept nogil:
    cdef uint64_t me = PyThread_get_thread_ident()
    cdef unsigned int hint = me * 0x9E3779B97F4A7C15ULL >> 56
    cdef unsigned int i, place, room
    cdef int block
    cdef PinSlot *slots
    cdef PinSlot *at
    for block in range(begin, end):
        slots = <PinSlot *>load_seq(_place_of(e, block))
        room = _slots_of(block)
        for i in range(room):
            place = (hint + i) & (room - 1)
            at = slots + place
            if load_relaxed(&at.epoch) == UINT64_MAX and compare_exchange(&at.epoch, UINT64_MAX, epoch):
                store_relaxed(&at.owner, me)
                slot[0] = block * SLOTS_PER_BLOCK + place
                return at
        if load_relaxed(&e.first_open) == <uint64_t>block:
            store_relaxed(&e.first_open, block + 1)
    return NULL


# Adds the block with this number, unless another thread has done so meanwhile.
cdef int _add_block(Epochs e, int block) except -1 nogil:
    cdef PinSlot *slots
    cdef void *far
    cdef int i
    if block == MAX_BLOCKS:
        return _no_slot()
    if block >= NEAR_BLOCKS and load_seq(&e.far) == 0:
        far = allocate_zeroed(MAX_BLOCKS - NEAR_BLOCKS, sizeof(uint64_t))
        if far == NULL:
            return _no_memory()
        if not compare_exchange(&e.far, 0, <uint64_t>far):
            release(far)
    if load_seq(_place_of(e, block)) == 0:
        slots = <PinSlot *>allocate_lines(_slots_of(block))
        if slots == NULL:
            return _no_memory()
        for i in range(_slots_of(block)):
            slots[i].epoch = slots[i].since_ns = UINT64_MAX
        if not compare_exchange(_place_of(e, block), 0, <uint64_t>slots):
            release_lines(slots)
    compare_exchange(&e.block_count, block, block + 1)
    return 0


cdef PinSlot *_take_slot(Epochs e, uint64_t epoch, int *slot) except NULL nogil:
    cdef int blocks
    cdef PinSlot *at
    while True:
        blocks = <int>load_seq(&e.block_count)
        at = _take_slot_of(e, <int>load_relaxed(&e.first_open), blocks, epoch, slot)
        if at == NULL and blocks == MAX_BLOCKS:
            at = _take_slot_of(e, 0, blocks, epoch, slot)       # the hint may have missed one
        if at != NULL:
            if e.timed:
                store_relaxed(&at.since_ns, xt_monotonic_ns())
            return at
        _add_block(e, blocks)


# Makes a slot of the calling thread, which it has filled with `epoch`, hold the current epoch.
cdef inline void _settle(Epochs e, PinSlot *at, uint64_t epoch) noexcept nogil:
    cdef uint64_t seen = load_seq(&e.current)
    while seen != epoch:
        epoch = seen
        store_seq(&at.epoch, epoch)
        seen = load_seq(&e.current)


cdef class Epochs:
    """The current epoch and the pins of one store; begins at epoch 0.

    timed: pins note when they began, which costs a look at the clock. slow_reader_s: the age in seconds from which
    stats() counts a pin as a slow reader's.
    """

    def __cinit__(self, bint timed=True, double slow_reader_s=60.0):
        self.far = 0
        memset(self.near, 0, sizeof(self.near))
        self.timed = timed
        self.slow_ns = <uint64_t>(slow_reader_s * 1e9)
        self.current = self.horizon = self.block_count = self.first_open = 0
        _add_block(self, 0)

    def __dealloc__(self):
        cdef int block
        for block in range(MAX_BLOCKS if self.far else NEAR_BLOCKS):
            release_lines(<void *>_place_of(self, block)[0])
        release(<void *>self.far)

    cdef int pin(self) except -1 nogil:
        cdef uint64_t epoch = load_seq(&self.current)
        cdef int slot = 0
        cdef PinSlot *at = _take_slot(self, epoch, &slot)
        _settle(self, at, epoch)
        return slot

    cdef int pin_at(self, uint64_t epoch) except -1 nogil:
        cdef int slot = 0
        cdef uint64_t horizon, current
        _take_slot(self, epoch, &slot)
        horizon = load_seq(&self.horizon)
        current = load_seq(&self.current)
        if not horizon <= epoch <= current:
            self.unpin(slot)
            return _refused(epoch, horizon, current)
        return slot

    cdef void unpin(self, int slot) noexcept nogil:
        cdef PinSlot *at = _slot_at(self, slot)
        c_assert(load_seq(&at.epoch) != UINT64_MAX)
        store_relaxed(&at.owner, 0)
        if self.timed:
            store_relaxed(&at.since_ns, UINT64_MAX)
        store_release(&at.epoch, UINT64_MAX)
        if load_relaxed(&self.first_open) > <uint64_t>(slot // SLOTS_PER_BLOCK):
            store_relaxed(&self.first_open, slot // SLOTS_PER_BLOCK)

    cdef void keep(self, int slot, bint kept) noexcept nogil:
        store_relaxed(&_slot_at(self, slot).kept, kept)

    def forget_other_threads(self):
        """In a forked child: ends the pins of calls whose threads don't exist there."""
        cdef uint64_t me = PyThread_get_thread_ident()
        cdef int end = <int>load_seq(&self.block_count) * SLOTS_PER_BLOCK
        cdef int slot = 0
        cdef PinSlot *at
        while slot < end:
            at = _slot_at(self, slot)
            if load_seq(&at.epoch) != UINT64_MAX and load_relaxed(&at.owner) != me and not load_relaxed(&at.kept):
                self.unpin(slot)
            slot = _following(slot)

    cdef void renew(self) noexcept nogil:
        cdef uint64_t me = PyThread_get_thread_ident()
        cdef int end = <int>load_seq(&self.block_count) * SLOTS_PER_BLOCK
        cdef int slot = 0
        cdef PinSlot *own = NULL
        while slot < end:
            if load_relaxed(&_slot_at(self, slot).owner) == me:
                if own != NULL:
                    return
                own = _slot_at(self, slot)
            slot = _following(slot)
        if own != NULL:
            _settle(self, own, load_relaxed(&own.epoch))

    cdef bint is_pinned_here(self) noexcept nogil:
        cdef uint64_t me = PyThread_get_thread_ident()
        cdef int end = <int>load_seq(&self.block_count) * SLOTS_PER_BLOCK
        cdef int slot = 0
        while slot < end:
            if load_relaxed(&_slot_at(self, slot).owner) == me:
                return True
            slot = _following(slot)
        return False

    cdef uint64_t pinned_epoch(self, int slot) noexcept nogil:
        return load_seq(&_slot_at(self, slot).epoch)

    cdef uint64_t current_epoch(self) noexcept nogil:
        return load_seq(&self.current)

    cdef void advance(self, uint64_t epoch) noexcept nogil:
        if epoch > load_seq(&self.current):
            store_seq(&self.current, epoch)

    cdef uint64_t min_active(self) noexcept nogil:
        cdef uint64_t least = load_seq(&self.current)
        cdef int blocks = <int>load_seq(&self.block_count)
        cdef int block, i
        cdef PinSlot *slots
        for block in range(blocks):
            slots = <PinSlot *>load_seq(_place_of(self, block))
            for i in range(_slots_of(block)):
                least = min(least, load_seq(&slots[i].epoch))
        return least

    cdef uint64_t reclaim_horizon(self) noexcept nogil:
        cdef uint64_t least = self.min_active()
        if least > load_seq(&self.horizon):
            store_seq(&self.horizon, least)
        return min(least, self.min_active())

    def pin_epoch(self, epoch=None):
        """Pins the current epoch, or a given one that is still protected; returns the pin's number.

        Raises ValueError for an epoch whose pages may be gone already, or that isn't there yet.
        """
        return self.pin() if epoch is None else self.pin_at(epoch)

    def release(self, int slot):
        """Ends a pin. Raises ValueError when it isn't one."""
        self.epoch_of(slot)
        self.unpin(slot)

    def epoch_of(self, int slot):
        """The epoch of a pin. Raises ValueError when it isn't one."""
        cdef int block = slot // SLOTS_PER_BLOCK
        if (not 0 <= slot < <int>load_seq(&self.block_count) * SLOTS_PER_BLOCK
                or slot % SLOTS_PER_BLOCK >= _slots_of(block) or self.pinned_epoch(slot) == UINT64_MAX):
            raise ValueError(f"no pin {slot}")
        return self.pinned_epoch(slot)

    def advance_to(self, uint64_t epoch):
        """Moves the current epoch on. Raises ValueError for an earlier one."""
        if epoch < self.current_epoch():
            raise ValueError(f"epoch {epoch}: expected {self.current_epoch()} or a later one")
        self.advance(epoch)

    def oldest(self):
        """The smallest pinned epoch, or the current one."""
        return self.min_active()

    def reclaimable(self):
        """The epoch up to which retired pages may be freed; earlier ones can't be pinned any more."""
        return self.reclaim_horizon()

    def renew_own(self):
        """Moves the calling thread's pin to the current epoch, if it has exactly one."""
        self.renew()

    def stats(self):
        """Current epoch, horizon, how many pins and slots, and by how many epochs the oldest pin lags; where pins are
        timed, also the age in seconds of the pin that began first, its epoch (None without pins), and how many pins are
        slow readers'."""
        cdef uint64_t epoch, since, now = xt_monotonic_ns(), oldest_since = now, pins = 0, slots = 0, slow = 0
        cdef int slot = 0, end = <int>load_seq(&self.block_count) * SLOTS_PER_BLOCK
        cdef uint64_t current = self.current_epoch()
        cdef uint64_t least = current
        cdef PinSlot *at
        oldest_epoch = None
        while slot < end:
            at = _slot_at(self, slot)
            slots += 1
            slot = _following(slot)
            epoch = load_seq(&at.epoch)
            if epoch == UINT64_MAX:
                continue
            pins += 1
            least = min(least, epoch)
            since = load_relaxed(&at.since_ns)
            if since <= oldest_since:
                oldest_since, oldest_epoch = since, epoch
            if now > since and now - since > self.slow_ns:
                slow += 1
        counted = dict(current=current, horizon=load_seq(&self.horizon), pins=pins, slots=slots, lag=current - least)
        if self.timed:
            counted.update(slow_pins=slow, oldest_pin_seconds=(now - oldest_since) / 1e9, oldest_pin_epoch=oldest_epoch)
        return counted
