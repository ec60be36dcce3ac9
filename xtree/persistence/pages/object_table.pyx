"""The object table: where each page is, which life of its handle it belongs to, and when it was visible.

Invariants (check() verifies them, while nobody changes the table):

1. every row below a shard's mark stands in a slab; slabs never move and are freed with the table;
2. a shard's free list holds exactly its free rows, its retired list the retired ones, by rising retire epoch;
3. a row that isn't free has a tag from 1 to 255;
4. a reserved row has an infinite birth, a live row an infinite retire epoch;
5. shards that aren't active have no rows.

A new handle is taken where it is cheapest: one freed in the calling thread's shard, else one freed in another shard,
else one of the thread's shard that was never used. The next shard opens when the active ones have `shard_rows` rows
each, or are full.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

import numpy as np

from xtree.persistence.base.atomics cimport (
    compare_exchange, fetch_add, load_acquire, load_relaxed, spin_lock, spin_unlock, store_relaxed, store_release,
)
from xtree.persistence.base.memory cimport allocate_lines, allocate_zeroed, release, release_lines
from xtree.persistence.pages.mmap_windows cimport offset_of, window_of
from xtree.persistence.pages.node_id cimport (
    MAX_SHARDS, NodeID, handle_of, make_handle, make_node_id, next_tag, shard_of, slot_of, tag_of,
)
from xtree.persistence.pages.page cimport SIZE_CLASSES
from xtree.persistence.pages.row cimport (
    STATE_FREE, STATE_LIVE, STATE_RESERVED, STATE_RETIRED, WORD_TAG, WORD_VERIFIED, Row, class_of, kind_of, make_word,
    state_of, with_state,
)

from xtree.errors import CapacityError, CorruptionError

cdef extern from "<assert.h>" nogil:
    void c_assert "assert"(bint condition) noexcept     # in the checked build only

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident() noexcept

cdef enum:
    LAST_KIND = 255
    LINES_A_SHARD = 2
    LEAST_DIRECTORY = 16            # entries
    DEFAULT_SHARD_ROWS = 1048576
    # Why a shard gave no handle.
    FULL = 1
    NO_MEMORY = 2

cdef packed struct VisibleRow:       # for Python, as VISIBLE_ROW
    NodeID node
    uint64_t birth
    uint64_t retire                 # 2**64 - 1 until it is retired
    uint64_t address
    uint64_t offset
    uint32_t window
    uint32_t crc
    uint8_t kind
    uint8_t size_class
    uint16_t unused

VISIBLE_ROW = np.dtype([
    ("node", "<u8"), ("birth", "<u8"), ("retire", "<u8"), ("address", "<u8"), ("offset", "<u8"), ("window", "<u4"),
    ("crc", "<u4"), ("kind", "u1"), ("size_class", "u1"), ("unused", "<u2"),
])
assert VISIBLE_ROW.itemsize == sizeof(VisibleRow)

STATE_NAMES = ("free", "reserved", "live", "retired")
assert sizeof(Row) == 64 and sizeof(Shard) == LINES_A_SHARD * 64


cdef inline bint _is(const Row *row, NodeID node, int state) noexcept nogil:
    cdef uint64_t word = load_relaxed(&row.word)
    return (word & WORD_TAG) == tag_of(node) and state_of(word) == state


# Errors, raised from code without the GIL.


cdef int _no_memory() except -1 with gil:
    raise MemoryError("no memory for more rows of the object table")


cdef int _no_handle(ObjectTable t) except -1 with gil:
    raise CapacityError(f"all {t.max_shards * (t.shard_slots - 1)} handles of the object table are in use")


cdef int bad_row(uint64_t handle, const char *why) except -1 with gil:
    shard = f" of shard {shard_of(handle)}" if shard_of(handle) else ""
    raise CorruptionError(f"row {slot_of(handle)}{shard} of the object table: {why.decode()}")


# Rows and lists. The shard's lock is held where a list is touched.


cdef inline Row *_row_at(ObjectTable t, uint64_t handle) noexcept nogil:
    cdef uint64_t slot = slot_of(handle)
    cdef uint64_t *directory = <uint64_t *>load_acquire(&t.slabs[shard_of(handle)])
    return <Row *>load_acquire(&directory[slot >> BLOCK_BITS]) + (slot & (BLOCK_ROWS - 1))


# How many rows the slab that begins at slot `first` has: each is as large as all before it together, up to SLAB_ROWS.
cdef inline uint64_t _rows_of_slab(uint64_t first) noexcept nogil:
    return min(max(first, <uint64_t>BLOCK_ROWS), <uint64_t>SLAB_ROWS)


# Makes sure that a shard's directory has so many entries; before them stand its room and the directory it replaces.
cdef bint _make_directory(ObjectTable t, uint64_t shard, uint64_t entries) noexcept nogil:
    cdef uint64_t *old = <uint64_t *>t.slabs[shard]
    cdef uint64_t room = LEAST_DIRECTORY, i
    cdef uint64_t *directory
    if old != NULL and old[-1] >= entries:
        return True
    while room < entries:
        room *= 2
    directory = <uint64_t *>allocate_zeroed(room + 2, sizeof(uint64_t))
    if directory == NULL:
        return False
    directory += 2
    directory[-1], directory[-2] = room, <uint64_t>old
    if old != NULL:
        for i in range(old[-1]):
            directory[i] = old[i]
    store_release(&t.slabs[shard], <uint64_t>directory)
    return True


# Makes sure that the slab of a slot exists; those before it do already. False when there is no memory for it.
cdef bint _make_slab(ObjectTable t, uint64_t shard, uint64_t slot) noexcept nogil:
    cdef uint64_t *directory = <uint64_t *>t.slabs[shard]
    cdef uint64_t block = slot >> BLOCK_BITS, blocks, i
    cdef Row *slab
    if directory != NULL and block < directory[-1] and directory[block]:
        return True
    blocks = _rows_of_slab(slot & ~<uint64_t>(BLOCK_ROWS - 1)) >> BLOCK_BITS
    if not _make_directory(t, shard, block + blocks):
        return False
    slab = <Row *>allocate_lines(blocks << BLOCK_BITS)
    if slab == NULL:
        return False
    directory = <uint64_t *>t.slabs[shard]
    for i in range(blocks):
        store_release(&directory[block + i], <uint64_t>(slab + (i << BLOCK_BITS)))
    return True


cdef void _release_slabs(uint64_t *directory) noexcept nogil:
    cdef uint64_t first = 0
    cdef uint64_t *before
    if directory != NULL:
        while first >> BLOCK_BITS < directory[-1] and directory[first >> BLOCK_BITS]:
            release_lines(<void *>directory[first >> BLOCK_BITS])
            first += _rows_of_slab(first)
    while directory != NULL:
        before = <uint64_t *>directory[-2]
        release(directory - 2)
        directory = before


cdef inline void _append(ObjectTable t, uint64_t *head, uint64_t *tail, uint64_t handle, Row *row) noexcept nogil:
    row.next = 0
    if tail[0]:
        _row_at(t, tail[0]).next = handle
    else:
        store_relaxed(head, handle)
    tail[0] = handle


cdef inline Row *_take_first(ObjectTable t, uint64_t *head, uint64_t *tail) noexcept nogil:
    cdef Row *row = _row_at(t, head[0])
    store_relaxed(head, row.next)
    if head[0] == 0:
        tail[0] = 0
    return row


# Frees a row that is on no list: its word keeps only the tag.
cdef inline void _free_row(ObjectTable t, Shard *shard, uint64_t handle, Row *row) noexcept nogil:
    store_release(&row.word, load_relaxed(&row.word) & WORD_TAG)
    _append(t, &shard.free_head, &shard.free_tail, handle, row)
    shard.free_count += 1


# How many rows of a shard are in a state, between two changes.
cdef uint64_t _count(ObjectTable t, uint64_t which, int state) noexcept nogil:
    cdef Shard *shard = &t.shards[which]
    cdef uint64_t count
    spin_lock(&shard.lock)
    if state == STATE_LIVE:
        count = shard.live_count
    elif state == STATE_RETIRED:
        count = shard.retired_count
    elif state == STATE_RESERVED:
        count = shard.reserved_count
    else:
        count = shard.free_count
    spin_unlock(&shard.lock)
    return count


# Reserving.


# Where a thread begins to look for a handle: threads spread over the active shards.
cdef inline uint64_t _home_shard(uint64_t active) noexcept nogil:
    cdef uint64_t thread
    if active == 1:
        return 0
    thread = <uint64_t>PyThread_get_thread_ident()
    return (thread * <uint64_t>0x9E3779B97F4A7C15 >> 32) % active


# Reserves a free handle of a shard, or with `fresh` one that was never used; 0 when there is none, `why` says why.
cdef NodeID _reserve_in(ObjectTable t, uint64_t which, bint fresh, uint64_t word, uint64_t address,
                        int *why) noexcept nogil:
    cdef Shard *shard = &t.shards[which]
    cdef uint64_t handle
    cdef uint8_t tag
    cdef Row *row
    spin_lock(&shard.lock)
    if fresh:
        handle = make_handle(which, t.marks[which])
        why[0] = FULL if slot_of(handle) >= t.shard_slots else 0
        if not why[0] and not _make_slab(t, which, slot_of(handle)):
            why[0] = NO_MEMORY
        if why[0]:
            spin_unlock(&shard.lock)
            return 0
        row = _row_at(t, handle)
    else:
        handle = shard.free_head
        if handle == 0:
            spin_unlock(&shard.lock)
            return 0
        row = _take_first(t, &shard.free_head, &shard.free_tail)
        shard.free_count -= 1
    tag = next_tag(<uint8_t>(load_relaxed(&row.word) & WORD_TAG))
    store_release(&row.birth, UINT64_MAX)
    store_release(&row.retire, UINT64_MAX)
    store_relaxed(&row.address, address)
    row.next = 0
    row.crc = 0
    row.log_number = 0
    store_relaxed(&row.claimed, 0)
    store_release(&row.word, word | tag)
    if fresh:
        store_release(&t.marks[which], slot_of(handle) + 1)
        fetch_add(&t.high_water, 1)
    shard.reserved_count += 1
    spin_unlock(&shard.lock)
    return make_node_id(handle, tag)


# The same when the home shard has no freed handle: one freed in another shard, else a fresh one of any active shard,
# else a fresh one of a shard that opens now.
cdef NodeID _reserve_elsewhere(ObjectTable t, uint64_t home, uint64_t word, uint64_t address, int *why) noexcept nogil:
    cdef uint64_t active = load_acquire(&t.active), i, which
    cdef NodeID node
    for i in range(1, active):
        which = (home + i) % active
        if load_relaxed(&t.shards[which].free_head):
            node = _reserve_in(t, which, False, word, address, why)
            if node:
                return node
    if load_relaxed(&t.high_water) - 1 >= active * t.shard_rows:
        if active < t.max_shards and compare_exchange(&t.active, active, active + 1):
            home = active
        active = load_acquire(&t.active)
    while True:
        for i in range(active):
            node = _reserve_in(t, (home + i) % active, True, word, address, why)
            if node or why[0] != FULL:
                return node
        if active == t.max_shards:
            return 0
        compare_exchange(&t.active, active, active + 1)
        home = active
        active = load_acquire(&t.active)


cdef class ObjectTable:
    """The rows of one store: up to `max_shards` shards of up to `slabs_per_shard` times 65,536 rows.

    A further shard opens when those before have `shard_rows` rows each. Any thread may change rows, but only one thread
    at a time the same row; check() is for moments when nobody changes any.
    """

    def __cinit__(self, uint64_t shard_rows=DEFAULT_SHARD_ROWS, uint64_t max_shards=MAX_SHARDS,
                  uint64_t slabs_per_shard=MAX_SLABS):
        cdef uint64_t shard
        self.shards = NULL
        for shard in range(MAX_SHARDS):
            self.slabs[shard] = 0
            self.marks[shard] = 1
        self.high_water = 1
        self.active = 1
        if not 1 <= max_shards <= MAX_SHARDS or not 1 <= slabs_per_shard <= MAX_SLABS or not shard_rows:
            raise ValueError(f"{max_shards} shards of {slabs_per_shard} slabs and {shard_rows} rows: expected up to "
                             f"{MAX_SHARDS} of {MAX_SLABS}, and 1 row at least")
        self.max_shards = max_shards
        self.shard_slots = slabs_per_shard << SLAB_BITS
        self.shard_rows = shard_rows
        self.shards = <Shard *>allocate_lines(MAX_SHARDS * LINES_A_SHARD)
        if self.shards == NULL:
            raise MemoryError("no memory for the object table's shards")

    def __dealloc__(self):
        cdef uint64_t shard
        for shard in range(MAX_SHARDS):
            _release_slabs(<uint64_t *>self.slabs[shard])
        release_lines(self.shards)

    cdef Row *row_of_shard(self, uint64_t handle) noexcept nogil:
        if slot_of(handle) - 1 >= load_acquire(&self.marks[shard_of(handle)]) - 1:
            return NULL
        return _row_at(self, handle)

    cdef uint64_t next_handle(self, uint64_t handle) noexcept nogil:
        cdef uint64_t shard = shard_of(handle), slot = slot_of(handle) + 1
        while shard < MAX_SHARDS:
            if slot < load_acquire(&self.marks[shard]):
                return make_handle(shard, slot)
            shard += 1
            slot = 1
        return 0

    cdef void number_handles(self, uint64_t *before) noexcept nogil:
        cdef uint64_t shard
        before[0] = 0
        for shard in range(MAX_SHARDS):
            before[shard + 1] = before[shard] + load_acquire(&self.marks[shard]) - 1

    cdef NodeID reserve(self, int kind, int size_class, uint64_t address) except 0 nogil:
        cdef uint64_t word = make_word(STATE_RESERVED, 0, kind, size_class) | WORD_VERIFIED
        cdef uint64_t home = _home_shard(load_acquire(&self.active))
        cdef int why = 0
        cdef NodeID node = _reserve_in(self, home, False, word, address, &why)
        if node == 0:
            node = _reserve_elsewhere(self, home, word, address, &why)
        if node == 0:
            if why == NO_MEMORY:
                _no_memory()
            _no_handle(self)
        return node

    cdef void seal(self, NodeID node, uint32_t crc) noexcept nogil:
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_RESERVED))
        row.crc = crc

    cdef void publish(self, NodeID node, uint64_t epoch) noexcept nogil:
        cdef Shard *shard = &self.shards[shard_of(handle_of(node))]
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_RESERVED))
        store_release(&row.birth, epoch)
        store_release(&row.word, with_state(load_relaxed(&row.word), STATE_LIVE))
        spin_lock(&shard.lock)
        shard.reserved_count -= 1
        shard.live_count += 1
        spin_unlock(&shard.lock)

    cdef void retire(self, NodeID node, uint64_t epoch) noexcept nogil:
        cdef uint64_t handle = handle_of(node)
        cdef Shard *shard = &self.shards[shard_of(handle)]
        cdef Row *row = _row_at(self, handle)
        c_assert(_is(row, node, STATE_LIVE))
        store_release(&row.retire, epoch)
        store_release(&row.word, with_state(load_relaxed(&row.word), STATE_RETIRED))
        spin_lock(&shard.lock)
        _append(self, &shard.retired_head, &shard.retired_tail, handle, row)
        shard.retired_count += 1
        shard.live_count -= 1
        spin_unlock(&shard.lock)

    cdef void abandon(self, NodeID node) noexcept nogil:
        cdef uint64_t handle = handle_of(node)
        cdef Shard *shard = &self.shards[shard_of(handle)]
        cdef Row *row = _row_at(self, handle)
        c_assert(_is(row, node, STATE_RESERVED))
        spin_lock(&shard.lock)
        shard.reserved_count -= 1
        _free_row(self, shard, handle, row)
        spin_unlock(&shard.lock)

    cdef bint reclaim_one(self, uint64_t horizon, uint64_t *address, int *size_class) noexcept nogil:
        cdef uint64_t which, handle
        cdef Shard *shard
        cdef Row *row
        for which in range(load_acquire(&self.active)):
            shard = &self.shards[which]
            if load_relaxed(&shard.retired_head) == 0:
                continue
            spin_lock(&shard.lock)
            handle = shard.retired_head
            if handle and _row_at(self, handle).retire <= horizon:
                row = _take_first(self, &shard.retired_head, &shard.retired_tail)
                shard.retired_count -= 1
                address[0] = row.address
                size_class[0] = class_of(load_relaxed(&row.word))
                _free_row(self, shard, handle, row)
                spin_unlock(&shard.lock)
                return True
            spin_unlock(&shard.lock)
        return False

    cdef void mark_verified(self, NodeID node) noexcept nogil:
        # An exchange of the whole word, not a fetch_or: a row that was freed meanwhile must stay as it is.
        cdef Row *row = self.row(handle_of(node))
        cdef uint64_t word
        if row == NULL:
            return
        word = load_acquire(&row.word)
        while (word & (WORD_TAG | WORD_VERIFIED)) == tag_of(node) and state_of(word) != STATE_FREE:
            if compare_exchange(&row.word, word, word | WORD_VERIFIED):
                return
            word = load_acquire(&row.word)

    # Recovery.

    cdef int cover(self, uint64_t shard, uint64_t mark) except -1 nogil:
        cdef uint64_t slot
        if mark <= self.marks[shard]:
            return 0
        if mark > self.shard_slots or shard >= self.max_shards:
            return _no_handle(self)
        slot = self.marks[shard]
        while slot < mark:
            if not _make_slab(self, shard, slot):
                return _no_memory()
            slot = (slot | (BLOCK_ROWS - 1)) + 1
        fetch_add(&self.high_water, mark - self.marks[shard])
        store_release(&self.marks[shard], mark)
        if shard >= self.active:
            store_release(&self.active, shard + 1)
        return 0

    cdef void free_row(self, uint64_t handle, Row *row) noexcept nogil:
        _free_row(self, &self.shards[shard_of(handle)], handle, row)

    cdef void rebuild_lists(self) noexcept nogil:
        cdef uint64_t handle = self.next_handle(0), which
        cdef Row *row
        for which in range(MAX_SHARDS):
            memset(&self.shards[which], 0, sizeof(Shard))
        while handle:
            row = _row_at(self, handle)
            if state_of(row.word) == STATE_FREE:
                self.free_row(handle, row)
            else:
                self.shards[shard_of(handle)].live_count += 1
            handle = self.next_handle(handle)

    cdef void let_claims_go(self) noexcept nogil:
        cdef uint64_t handle = self.next_handle(0)
        while handle:
            store_relaxed(&_row_at(self, handle).claimed, 0)
            handle = self.next_handle(handle)

    # For people, tests and tools.

    def visible(self, uint64_t epoch):
        """The rows visible at a pinned epoch as an array of VISIBLE_ROW, in the order of their handles."""
        cdef uint64_t handle = self.next_handle(0), word, birth, retire
        cdef Py_ssize_t room = self.high_water, used = 0
        cdef bytearray found = PyByteArray_FromStringAndSize(NULL, room * sizeof(VisibleRow))
        cdef VisibleRow *out = <VisibleRow *>PyByteArray_AS_STRING(found)
        cdef Row *row
        with nogil:
            while handle and used < room:
                row = self.row(handle)
                word = load_acquire(&row.word)
                retire = load_acquire(&row.retire)      # before birth, as in is_visible
                birth = load_acquire(&row.birth)
                if state_of(word) >= STATE_LIVE and birth <= epoch < retire:
                    out[used].node = make_node_id(handle, word & WORD_TAG)
                    out[used].birth, out[used].retire = birth, retire
                    out[used].address = load_relaxed(&row.address)
                    out[used].offset = offset_of(out[used].address)
                    out[used].window = window_of(out[used].address)
                    out[used].crc = row.crc
                    out[used].kind, out[used].size_class = kind_of(word), class_of(word)
                    out[used].unused = 0
                    used += 1
                handle = self.next_handle(handle)
        return np.frombuffer(found, VISIBLE_ROW, used)

    def reserve_node(self, int kind, int size_class, uint64_t address):
        """Reserves a handle for a page at an address; returns its NodeID. Raises MemoryError, CapacityError."""
        if not 0 < kind <= LAST_KIND or not 0 <= size_class < SIZE_CLASSES:
            raise ValueError(f"kind {kind}, size class {size_class}: expected 1 to {LAST_KIND} and "
                             f"0 to {SIZE_CLASSES - 1}")
        return self.reserve(kind, size_class, address)

    def seal_node(self, NodeID node, uint32_t crc):
        """Records the CRC of a reserved page that is finished."""
        _require_state(self, node, STATE_RESERVED)
        self.seal(node, crc)

    def publish_node(self, NodeID node, uint64_t epoch):
        """Makes a reserved page visible from an epoch on."""
        _require_state(self, node, STATE_RESERVED)
        self.publish(node, epoch)

    def retire_node(self, NodeID node, uint64_t epoch):
        """Makes a live page invisible from an epoch on; epochs of successive calls must not fall."""
        cdef uint64_t last = self.shards[shard_of(handle_of(node))].retired_tail
        _require_state(self, node, STATE_LIVE)
        if last and _row_at(self, last).retire > epoch:
            raise ValueError(f"epoch {epoch} comes before that of the last page retired")
        self.retire(node, epoch)

    def abandon_node(self, NodeID node):
        """Gives a reserved handle back."""
        _require_state(self, node, STATE_RESERVED)
        self.abandon(node)

    def reclaim(self, uint64_t horizon):
        """Frees a handle that was retired up to `horizon`; returns (address, size class) of its page, or None."""
        cdef uint64_t address = 0
        cdef int size_class = 0
        return (address, size_class) if self.reclaim_one(horizon, &address, &size_class) else None

    def verify_node(self, NodeID node):
        """Marks a node's page as verified."""
        self.mark_verified(node)

    def resolves(self, NodeID node):
        """Whether a NodeID belongs to the present life of its handle."""
        cdef Row *row = self.row(handle_of(node))
        cdef uint64_t word
        if row == NULL:
            return False
        word = load_acquire(&row.word)
        return (word & WORD_TAG) == tag_of(node) and state_of(word) != STATE_FREE

    def describe(self, NodeID node):
        """The row of a NodeID's handle, whichever life it is in. Raises KeyError for one that was never given out."""
        cdef Row *row = self.row(handle_of(node))
        cdef uint64_t word, address
        if row == NULL:
            raise KeyError(f"handle {handle_of(node)} was never given out")
        word = load_acquire(&row.word)
        address = load_relaxed(&row.address)
        return dict(node=make_node_id(handle_of(node), word & WORD_TAG), handle=handle_of(node), tag=word & WORD_TAG,
                    state=STATE_NAMES[state_of(word)], verified=bool(word & WORD_VERIFIED), kind=kind_of(word),
                    size_class=class_of(word), window=window_of(address), offset=offset_of(address),
                    birth=load_acquire(&row.birth), retire=load_acquire(&row.retire), crc=row.crc)

    def rows(self):
        """describe() of every handle that was ever given out, in order."""
        cdef uint64_t handle = self.next_handle(0)
        found = []
        while handle:
            found.append(self.describe(make_node_id(handle, 0)))
            handle = self.next_handle(handle)
        return found

    def exercise(self, Py_ssize_t times, uint64_t base):
        """Reserves, publishes and retires `times` pages, abandons every third, reclaims as it goes, without the GIL.

        For tests and benchmarks of threads that share a table. Every page is published and retired at the epoch `base`.
        """
        cdef Py_ssize_t i
        cdef uint64_t address = 0
        cdef int size_class = 0
        cdef NodeID node
        with nogil:
            for i in range(times):
                node = self.reserve(1, 0, 0)
                if i % 3 == 0:
                    self.abandon(node)
                    continue
                self.seal(node, <uint32_t>i)
                self.publish(node, base)
                self.mark_verified(node)
                self.retire(node, base)
                if i % 3 == 1:
                    self.reclaim_one(base, &address, &size_class)

    def __len__(self):
        return sum([_count(self, shard, STATE_LIVE) for shard in range(load_acquire(&self.active))])

    @property
    def retired(self):
        """Retired pages that haven't been freed yet."""
        cdef uint64_t shard, count = 0
        for shard in range(load_acquire(&self.active)):
            count += _count(self, shard, STATE_RETIRED)
        return count

    def stats(self):
        """Handles by state, and how many were ever given out: in all, and for each of the active `shards`."""
        shards = [dict(live=_count(self, i, STATE_LIVE), reserved=_count(self, i, STATE_RESERVED),
                       retired=_count(self, i, STATE_RETIRED), free=_count(self, i, STATE_FREE),
                       handles=load_acquire(&self.marks[i]) - 1)
                  for i in range(load_acquire(&self.active))]
        totals = {name: sum([shard[name] for shard in shards]) for name in shards[0]}
        return {**totals, "shards": shards}

    def check(self):
        """Verifies the invariants at the top of this file. Raises CorruptionError."""
        cdef uint64_t shard
        for shard in range(MAX_SHARDS):
            _check_shard(self, shard)
        if load_acquire(&self.high_water) - 1 != sum([self.marks[shard] - 1 for shard in range(MAX_SHARDS)]):
            raise CorruptionError(f"object table: {load_acquire(&self.high_water) - 1} handles given out, expected "
                                  f"the sum of its shards")


cdef int _require_state(ObjectTable t, NodeID node, int state) except -1:
    cdef Row *row = t.row(handle_of(node))
    if row == NULL or not _is(row, node, state):
        raise RuntimeError(f"node {node:#x} isn't {STATE_NAMES[state]}")
    return 0


cdef int _check_shard(ObjectTable t, uint64_t which) except -1:
    cdef Shard *shard = &t.shards[which]
    cdef uint64_t counts[4]
    cdef uint64_t slot, handle, word
    cdef Row *row
    memset(counts, 0, sizeof(counts))
    for slot in range(1, t.marks[which]):
        handle = make_handle(which, slot)
        if which >= t.active:
            return bad_row(handle, "in a shard that isn't active")
        row = t.row(handle)
        word = load_acquire(&row.word)          # readers may mark it as verified meanwhile
        counts[state_of(word)] += 1
        if state_of(word) != STATE_FREE and word & WORD_TAG == 0:
            return bad_row(handle, "in use without a tag")
        if state_of(word) == STATE_RESERVED and row.birth != UINT64_MAX:
            return bad_row(handle, "reserved with a birth epoch")
        if state_of(word) == STATE_LIVE and row.retire != UINT64_MAX:
            return bad_row(handle, "live with a retire epoch")
    found = tuple(counts)
    expected = (shard.free_count, shard.reserved_count, shard.live_count, shard.retired_count)
    if found != expected:
        raise CorruptionError(f"object table: rows of shard {which} by state {found}, expected {expected}")
    _check_list(t, shard.free_head, shard.free_tail, shard.free_count, which, STATE_FREE)
    return _check_list(t, shard.retired_head, shard.retired_tail, shard.retired_count, which, STATE_RETIRED)


# A list that has as many rows as are in its state, and ends where it should, holds each of them once.
cdef int _check_list(ObjectTable t, uint64_t head, uint64_t tail, uint64_t count, uint64_t which,
                     int state) except -1:
    cdef uint64_t handle = head, last = 0, seen = 0
    cdef Row *row
    while handle and seen <= count:
        row = t.row(handle)
        if row == NULL or state_of(load_acquire(&row.word)) != state or shard_of(handle) != which:
            return bad_row(handle, "on the list of another state or shard")
        if last and state == STATE_RETIRED and row.retire < _row_at(t, last).retire:
            return bad_row(handle, "retired before the row that stands before it")
        last = handle
        seen += 1
        handle = row.next
    if handle or seen != count or last != tail:
        raise CorruptionError(f"object table: list of {STATE_NAMES[state]} rows of shard {which}: {seen} rows up to "
                              f"{last}, expected {count} up to {tail}")
    return 0
