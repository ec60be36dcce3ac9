"""The object table: where each page is, which life of its handle it belongs to, and when it was visible.

Invariants (check() verifies them, while nobody changes the table):

1. every row below a shard's mark stands in a slab; slabs never move and are freed with the table;
2. the free list holds exactly the free rows, the retired list the retired ones, by rising retire epoch;
3. a row that isn't free has a tag from 1 to 255;
4. a reserved row has an infinite birth, a live row an infinite retire epoch.

A new handle is the one that was freed first, else one that was never used, of the shard whose turn it is.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

import numpy as np

from xtree.persistence.base.atomics cimport compare_exchange, load_acquire, load_relaxed, store_relaxed, store_release
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

cdef enum:
    LAST_KIND = 255
    LEAST_DIRECTORY = 16            # entries

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
assert sizeof(Row) == 64


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


# Rows and lists.


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


cdef inline void _append(ObjectTable t, RowList *rows, uint64_t handle, Row *row) noexcept nogil:
    row.next = 0
    if rows.tail:
        _row_at(t, rows.tail).next = handle
    else:
        rows.head = handle
    rows.tail = handle
    store_relaxed(&rows.count, rows.count + 1)


cdef inline Row *_take_first(ObjectTable t, RowList *rows) noexcept nogil:
    cdef Row *row = _row_at(t, rows.head)
    rows.head = row.next
    if rows.head == 0:
        rows.tail = 0
    store_relaxed(&rows.count, rows.count - 1)
    return row


# Reserving.


# A handle that was never given out; its row is there, but nobody finds it before _give_out. Shards take turns, each
# with shard_rows rows; a full one is left out.
cdef uint64_t _fresh_handle(ObjectTable t) except 0 nogil:
    cdef uint64_t turn = (t.high_water - 1) // t.shard_rows % t.max_shards, i, shard
    for i in range(t.max_shards):
        shard = (turn + i) % t.max_shards
        if t.marks[shard] < t.shard_slots:
            if not _make_slab(t, shard, t.marks[shard]):
                _no_memory()
            return make_handle(shard, t.marks[shard])
    _no_handle(t)
    return 0


cdef inline void _give_out(ObjectTable t, uint64_t handle) noexcept nogil:
    store_release(&t.marks[shard_of(handle)], slot_of(handle) + 1)
    store_release(&t.high_water, t.high_water + 1)


cdef class ObjectTable:
    """The rows of one store: up to `max_shards` shards of up to `slabs_per_shard` times 65,536 rows.

    shard_rows: rows that a shard gets before the next one's turn. The store's lock guards every change; check() is for
    moments when nobody changes anything.
    """

    def __cinit__(self, uint64_t shard_rows=<uint64_t>MAX_SLABS << SLAB_BITS, uint64_t max_shards=MAX_SHARDS,
                  uint64_t slabs_per_shard=MAX_SLABS):
        cdef uint64_t shard
        for shard in range(MAX_SHARDS):
            self.slabs[shard] = 0
            self.marks[shard] = 1
        self.high_water = 1
        if not 1 <= max_shards <= MAX_SHARDS or not 1 <= slabs_per_shard <= MAX_SLABS or not shard_rows:
            raise ValueError(f"{max_shards} shards of {slabs_per_shard} slabs and {shard_rows} rows: expected up to "
                             f"{MAX_SHARDS} of {MAX_SLABS}, and 1 row at least")
        self.max_shards = max_shards
        self.shard_slots = slabs_per_shard << SLAB_BITS
        self.shard_rows = shard_rows

    def __dealloc__(self):
        cdef uint64_t shard
        for shard in range(MAX_SHARDS):
            _release_slabs(<uint64_t *>self.slabs[shard])

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
        cdef bint fresh = self.free.head == 0
        cdef uint64_t handle = _fresh_handle(self) if fresh else self.free.head
        cdef Row *row = _row_at(self, handle) if fresh else _take_first(self, &self.free)
        cdef uint8_t tag = next_tag(<uint8_t>(load_relaxed(&row.word) & WORD_TAG))
        store_release(&row.birth, UINT64_MAX)
        store_release(&row.retire, UINT64_MAX)
        store_relaxed(&row.address, address)
        row.next = 0
        row.crc = 0
        row.log_number = 0
        store_relaxed(&row.claimed, 0)
        store_release(&row.word, make_word(STATE_RESERVED, tag, kind, size_class) | WORD_VERIFIED)
        if fresh:
            _give_out(self, handle)
        store_relaxed(&self.reserved_count, self.reserved_count + 1)
        return make_node_id(handle, tag)

    cdef void seal(self, NodeID node, uint32_t crc) noexcept nogil:
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_RESERVED))
        row.crc = crc

    cdef void publish(self, NodeID node, uint64_t epoch) noexcept nogil:
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_RESERVED))
        store_release(&row.birth, epoch)
        store_release(&row.word, with_state(load_relaxed(&row.word), STATE_LIVE))
        store_relaxed(&self.reserved_count, self.reserved_count - 1)
        store_relaxed(&self.live_count, self.live_count + 1)

    cdef void retire(self, NodeID node, uint64_t epoch) noexcept nogil:
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_LIVE))
        store_release(&row.retire, epoch)
        store_release(&row.word, with_state(load_relaxed(&row.word), STATE_RETIRED))
        _append(self, &self.retired_rows, handle_of(node), row)
        store_relaxed(&self.live_count, self.live_count - 1)

    cdef void abandon(self, NodeID node) noexcept nogil:
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_RESERVED))
        self.free_row(handle_of(node), row)
        store_relaxed(&self.reserved_count, self.reserved_count - 1)

    cdef bint reclaim_one(self, uint64_t horizon, uint64_t *address, int *size_class) noexcept nogil:
        cdef uint64_t handle = self.retired_rows.head
        cdef Row *row
        if handle == 0 or _row_at(self, handle).retire > horizon:
            return False
        row = _take_first(self, &self.retired_rows)
        address[0] = row.address
        size_class[0] = class_of(load_relaxed(&row.word))
        self.free_row(handle, row)
        return True

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
        store_release(&self.high_water, self.high_water + mark - self.marks[shard])
        store_release(&self.marks[shard], mark)
        return 0

    cdef void free_row(self, uint64_t handle, Row *row) noexcept nogil:
        store_release(&row.word, load_relaxed(&row.word) & WORD_TAG)
        _append(self, &self.free, handle, row)

    cdef void rebuild_lists(self) noexcept nogil:
        cdef uint64_t handle = self.next_handle(0)
        cdef Row *row
        memset(&self.free, 0, sizeof(RowList))
        memset(&self.retired_rows, 0, sizeof(RowList))
        self.live_count = self.reserved_count = 0
        while handle:
            row = _row_at(self, handle)
            if state_of(row.word) == STATE_FREE:
                self.free_row(handle, row)
            else:
                self.live_count += 1
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
        cdef uint64_t last = self.retired_rows.tail
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

    def __len__(self):
        return load_relaxed(&self.live_count)

    @property
    def retired(self):
        """Retired pages that haven't been freed yet."""
        return load_relaxed(&self.retired_rows.count)

    def stats(self):
        """Handles by state, and how many were ever given out: in all, and in each of the `shards` up to the last used.

        Each number is right by itself; while others write they may be of different moments.
        """
        cdef Py_ssize_t used = MAX_SHARDS
        while used > 1 and load_acquire(&self.marks[used - 1]) == 1:
            used -= 1
        handles = [load_acquire(&self.marks[shard]) - 1 for shard in range(used)]
        return dict(live=load_relaxed(&self.live_count), reserved=load_relaxed(&self.reserved_count),
                    retired=load_relaxed(&self.retired_rows.count), free=load_relaxed(&self.free.count),
                    handles=sum(handles), shards=[dict(handles=count) for count in handles])

    def check(self):
        """Verifies the invariants at the top of this file. Raises CorruptionError."""
        cdef uint64_t counts[4]
        cdef uint64_t handle = self.next_handle(0)
        memset(counts, 0, sizeof(counts))
        while handle:
            counts[_check_row(self.row(handle), handle)] += 1
            handle = self.next_handle(handle)
        found = tuple(counts)
        expected = (self.free.count, self.reserved_count, self.live_count, self.retired_rows.count)
        if found != expected:
            raise CorruptionError(f"object table: rows by state {found}, expected {expected}")
        if self.high_water - 1 != sum(found):
            raise CorruptionError(f"object table: {self.high_water - 1} handles given out, expected {sum(found)}")
        _check_list(self, &self.free, STATE_FREE)
        _check_list(self, &self.retired_rows, STATE_RETIRED)


cdef int _require_state(ObjectTable t, NodeID node, int state) except -1:
    cdef Row *row = t.row(handle_of(node))
    if row == NULL or not _is(row, node, state):
        raise RuntimeError(f"node {node:#x} isn't {STATE_NAMES[state]}")
    return 0


# The state of a row, which must be one that it can have.
cdef int _check_row(Row *row, uint64_t handle) except -1:
    cdef uint64_t word = load_acquire(&row.word)    # readers may mark it as verified meanwhile
    cdef int state = state_of(word)
    if state != STATE_FREE and word & WORD_TAG == 0:
        return bad_row(handle, "in use without a tag")
    if state == STATE_RESERVED and row.birth != UINT64_MAX:
        return bad_row(handle, "reserved with a birth epoch")
    if state == STATE_LIVE and row.retire != UINT64_MAX:
        return bad_row(handle, "live with a retire epoch")
    return state


# A list that has as many rows as are in its state, and ends where it should, holds each of them once.
cdef int _check_list(ObjectTable t, const RowList *rows, int state) except -1:
    cdef uint64_t handle = rows.head, last = 0, seen = 0
    cdef Row *row
    while handle and seen <= rows.count:
        row = t.row(handle)
        if row == NULL or state_of(load_acquire(&row.word)) != state:
            return bad_row(handle, "on the list of another state")
        if last and state == STATE_RETIRED and row.retire < _row_at(t, last).retire:
            return bad_row(handle, "retired before the row that stands before it")
        last = handle
        seen += 1
        handle = row.next
    if handle or seen != rows.count or last != rows.tail:
        raise CorruptionError(f"object table: list of {STATE_NAMES[state]} rows: {seen} rows up to {last}, expected "
                              f"{rows.count} up to {rows.tail}")
    return 0
