"""The object table: where each page is, which life of its handle it belongs to, and when it was visible.

Invariants (check() verifies them):

1. every row below the high-water mark stands in a slab; slabs never move and are freed with the table;
2. the free list holds exactly the free rows, the retired list exactly the retired ones, by rising retire epoch;
3. a row that isn't free has a tag from 1 to 255;
4. a reserved row has an infinite birth, a live row an infinite retire epoch.

A row in a checkpoint is 48 bytes, little-endian, in the order of handles, the first (handle 0) all zero:

    offset  size  field
    0       1     state: 0 free, 2 live; never renumber
    1       1     tag, of the handle's last life; 0 when it had none
    2       1     kind of page
    3       1     size class
    4       4     number of the data file
    8       8     offset in it
    16      8     birth epoch
    24      8     retire epoch: 2**64 - 1
    32      4     CRC32C of the page
    36      12    reserved, 0

All but the tag is 0 in a free row.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from xtree.persistence.atomics cimport compare_exchange, load_acquire, load_relaxed, store_relaxed, store_release
from xtree.persistence.memory cimport allocate, allocate_lines, allocate_zeroed, release, release_lines
from xtree.persistence.mmap_windows cimport OFFSET_BITS, make_address, offset_of, window_of
from xtree.persistence.node_id cimport NodeID, handle_of, make_node_id, next_tag, tag_of
from xtree.persistence.page cimport SIZE_CLASSES

from xtree.errors import CapacityError, CorruptionError

cdef extern from "<assert.h>" nogil:
    void c_assert "assert"(bint condition) noexcept     # in the checked build only

cdef enum:
    LAST_KIND = 255

cdef uint64_t MAX_HANDLES = <uint64_t>MAX_SLABS << SLAB_BITS

STATE_NAMES = ("free", "reserved", "live", "retired")


cdef struct StoredRow:
    uint8_t state
    uint8_t tag
    uint8_t kind
    uint8_t size_class
    uint32_t file_number
    uint64_t offset
    uint64_t birth
    uint64_t retire
    uint32_t crc
    uint32_t reserved_32
    uint64_t reserved_64


cdef struct FileWindow:
    uint32_t file_number
    uint32_t window


ROW_BYTES = sizeof(StoredRow)
assert ROW_BYTES == 48 and sizeof(Row) == 64


cdef inline uint64_t _word(int state, int tag, int kind, int size_class) noexcept nogil:
    return (<uint64_t>state << STATE_SHIFT | <uint64_t>tag | <uint64_t>kind << KIND_SHIFT
            | <uint64_t>size_class << CLASS_SHIFT)


cdef inline uint64_t _with_state(uint64_t word, int state) noexcept nogil:
    return (word & ~<uint64_t>STATE_MASK) | <uint64_t>state << STATE_SHIFT


cdef inline bint _is(const Row *row, NodeID node, int state) noexcept nogil:
    cdef uint64_t word = load_relaxed(&row.word)
    return (word & WORD_TAG) == tag_of(node) and state_of(word) == state


# Errors, raised from code without the GIL.


cdef int _no_memory() except -1 with gil:
    raise MemoryError("no memory for more rows of the object table")


cdef int _no_handle() except -1 with gil:
    raise CapacityError(f"all {MAX_HANDLES - 1} handles of the object table are in use")


cdef int _bad_row(uint64_t handle, str why) except -1 with gil:
    raise CorruptionError(f"row {handle} of the object table: {why}")


# Makes sure that the slab of a handle exists.
cdef int _make_slab(ObjectTable t, uint64_t handle) except -1 nogil:
    cdef void *slab
    if handle >= MAX_HANDLES:
        return _no_handle()
    if load_relaxed(&t.slabs[handle >> SLAB_BITS]) == 0:
        slab = allocate_lines(SLAB_ROWS)
        if slab == NULL:
            return _no_memory()
        store_release(&t.slabs[handle >> SLAB_BITS], <uint64_t>slab)
    return 0


cdef inline Row *_row_at(ObjectTable t, uint64_t handle) noexcept nogil:
    return <Row *>t.slabs[handle >> SLAB_BITS] + (handle & (SLAB_ROWS - 1))


# Frees a row that is on no list: its word keeps the tag only.
cdef inline void _free_row(ObjectTable t, uint64_t handle, Row *row) noexcept nogil:
    row.next = 0
    store_release(&row.word, load_relaxed(&row.word) & WORD_TAG)
    if t.free_tail:
        _row_at(t, t.free_tail).next = handle
    else:
        t.free_head = handle
    t.free_tail = handle
    t.free_count += 1


cdef class ObjectTable:
    """The rows of one store. The store's lock guards every method but the readers' row()."""

    def __cinit__(self):
        self.slabs = NULL
        self.high_water = 1
        self.slabs = <uint64_t *>allocate_zeroed(MAX_SLABS, sizeof(uint64_t))
        if self.slabs == NULL:
            raise MemoryError("no memory for the object table's directory")

    def __dealloc__(self):
        cdef uint64_t slab
        if self.slabs != NULL:
            for slab in range(MAX_SLABS):
                if self.slabs[slab] == 0:
                    break
                release_lines(<void *>self.slabs[slab])
        release(self.slabs)

    cdef NodeID reserve(self, int kind, int size_class, uint64_t address) except 0 nogil:
        cdef uint64_t handle = self.free_head
        cdef Row *row
        cdef uint8_t tag
        if handle:
            row = _row_at(self, handle)
            self.free_head = row.next
            if self.free_head == 0:
                self.free_tail = 0
            self.free_count -= 1
        else:
            handle = self.high_water
            _make_slab(self, handle)
            row = _row_at(self, handle)
        tag = next_tag(<uint8_t>(load_relaxed(&row.word) & WORD_TAG))
        store_release(&row.birth, UINT64_MAX)
        store_release(&row.retire, UINT64_MAX)
        store_relaxed(&row.address, address)
        row.next = 0
        row.crc = 0
        row.log_number = 0
        store_relaxed(&row.claimed, 0)
        store_release(&row.word, _word(STATE_RESERVED, tag, kind, size_class) | WORD_VERIFIED)
        if handle == self.high_water:
            store_release(&self.high_water, handle + 1)
        self.reserved_count += 1
        return make_node_id(handle, tag)

    cdef void seal(self, NodeID node, uint32_t crc) noexcept nogil:
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_RESERVED))
        row.crc = crc

    cdef void publish(self, NodeID node, uint64_t epoch) noexcept nogil:
        cdef Row *row = _row_at(self, handle_of(node))
        c_assert(_is(row, node, STATE_RESERVED))
        store_release(&row.birth, epoch)
        store_release(&row.word, _with_state(load_relaxed(&row.word), STATE_LIVE))
        self.reserved_count -= 1
        self.live_count += 1

    cdef void retire(self, NodeID node, uint64_t epoch) noexcept nogil:
        cdef uint64_t handle = handle_of(node)
        cdef Row *row = _row_at(self, handle)
        c_assert(_is(row, node, STATE_LIVE))
        store_release(&row.retire, epoch)
        store_release(&row.word, _with_state(load_relaxed(&row.word), STATE_RETIRED))
        row.next = 0
        if self.retired_tail:
            _row_at(self, self.retired_tail).next = handle
        else:
            self.retired_head = handle
        self.retired_tail = handle
        self.retired_count += 1
        self.live_count -= 1

    cdef void abandon(self, NodeID node) noexcept nogil:
        cdef uint64_t handle = handle_of(node)
        cdef Row *row = _row_at(self, handle)
        c_assert(_is(row, node, STATE_RESERVED))
        self.reserved_count -= 1
        _free_row(self, handle, row)

    cdef bint reclaim_one(self, uint64_t horizon, uint64_t *address, int *size_class) noexcept nogil:
        cdef uint64_t handle = self.retired_head
        cdef Row *row
        if handle == 0:
            return False
        row = _row_at(self, handle)
        if row.retire > horizon:
            return False
        self.retired_head = row.next
        if self.retired_head == 0:
            self.retired_tail = 0
        self.retired_count -= 1
        address[0] = row.address
        size_class[0] = class_of(load_relaxed(&row.word))
        _free_row(self, handle, row)
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

    # Recovery and checkpoints.

    def restore(self, rows, dict window_of_file):
        """Load the rows of a checkpoint, a buffer, into an empty table. `window_of_file` gives each data file's window.

        Raises CorruptionError for rows that can't be right, MemoryError; the table is then of no use.
        """
        cdef Py_buffer view
        cdef Py_ssize_t files = len(window_of_file)
        cdef FileWindow *windows
        if self.high_water != 1:
            raise RuntimeError("rows can be restored into an empty table only")
        PyObject_GetBuffer(rows, &view, PyBUF_SIMPLE)
        windows = <FileWindow *>allocate(files * sizeof(FileWindow))
        try:
            if windows == NULL:
                raise MemoryError("no memory for the table of data files")
            if view.len % ROW_BYTES:
                raise CorruptionError(f"rows of a checkpoint: {view.len} bytes, expected a multiple of {ROW_BYTES}")
            for i, (file_number, window) in enumerate(sorted(window_of_file.items())):
                windows[i].file_number = file_number
                windows[i].window = window
            with nogil:
                _restore(self, <const StoredRow *>view.buf, view.len // sizeof(StoredRow), windows, files)
        finally:
            release(windows)
            PyBuffer_Release(&view)

    def snapshot(self, uint64_t epoch, list file_of_window):
        """The rows of a checkpoint: those visible at an epoch are live, all others free with their tag.

        `file_of_window` gives the number of each window's data file.
        """
        cdef uint32_t windows = len(file_of_window)
        cdef bytearray rows = PyByteArray_FromStringAndSize(NULL, self.high_water * sizeof(StoredRow))
        cdef StoredRow *out = <StoredRow *>PyByteArray_AS_STRING(rows)
        cdef uint32_t *files = <uint32_t *>allocate(windows * sizeof(uint32_t))
        if files == NULL:
            raise MemoryError("no memory for the table of data files")
        try:
            for window, file_number in enumerate(file_of_window):
                files[window] = file_number
            with nogil:
                _snapshot(self, epoch, out, files, windows)
        finally:
            release(files)
        return rows

    # For people, tests and tools.

    def reserve_node(self, int kind, int size_class, uint64_t address):
        """Reserve a handle for a page at an address; returns its NodeID. Raises MemoryError, CapacityError."""
        if not 0 < kind <= LAST_KIND or not 0 <= size_class < SIZE_CLASSES:
            raise ValueError(f"kind {kind}, size class {size_class}: expected 1 to {LAST_KIND} and "
                             f"0 to {SIZE_CLASSES - 1}")
        return self.reserve(kind, size_class, address)

    def seal_node(self, NodeID node, uint32_t crc):
        """Record the CRC of a reserved page that is finished."""
        _require_state(self, node, STATE_RESERVED)
        self.seal(node, crc)

    def publish_node(self, NodeID node, uint64_t epoch):
        """Make a reserved page visible from an epoch on."""
        _require_state(self, node, STATE_RESERVED)
        self.publish(node, epoch)

    def retire_node(self, NodeID node, uint64_t epoch):
        """Make a live page invisible from an epoch on; epochs of successive calls must not fall."""
        _require_state(self, node, STATE_LIVE)
        if self.retired_tail and _row_at(self, self.retired_tail).retire > epoch:
            raise ValueError(f"epoch {epoch} comes before that of the last page retired")
        self.retire(node, epoch)

    def abandon_node(self, NodeID node):
        """Give a reserved handle back."""
        _require_state(self, node, STATE_RESERVED)
        self.abandon(node)

    def reclaim(self, uint64_t horizon):
        """Free the first handle that was retired at or before `horizon`: (address, size class) of its page, or None."""
        cdef uint64_t address = 0
        cdef int size_class = 0
        return (address, size_class) if self.reclaim_one(horizon, &address, &size_class) else None

    def verify_node(self, NodeID node):
        """Mark a node's page as verified."""
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
        cdef uint64_t word
        if row == NULL:
            raise KeyError(f"handle {handle_of(node)} was never given out")
        word = load_acquire(&row.word)
        return dict(node=make_node_id(handle_of(node), word & WORD_TAG), handle=handle_of(node), tag=word & WORD_TAG,
                    state=STATE_NAMES[state_of(word)], verified=bool(word & WORD_VERIFIED), kind=kind_of(word),
                    size_class=class_of(word), window=window_of(row.address), offset=offset_of(row.address),
                    birth=row.birth, retire=row.retire, crc=row.crc)

    def rows(self):
        """describe() of every handle that was ever given out, in order."""
        return [self.describe(make_node_id(handle, 0)) for handle in range(1, self.high_water)]

    def __len__(self):
        return self.live_count

    def stats(self):
        """Handles by state, and how many were ever given out."""
        return dict(live=self.live_count, reserved=self.reserved_count, retired=self.retired_count,
                    free=self.free_count, handles=self.high_water - 1)

    def check(self):
        """Verify the invariants at the top of this file. Raises CorruptionError."""
        cdef uint64_t counts[4]
        cdef uint64_t handle
        cdef Row *row
        memset(counts, 0, sizeof(counts))
        for handle in range(1, self.high_water):
            row = self.row(handle)
            counts[state_of(row.word)] += 1
            if state_of(row.word) != STATE_FREE and row.word & WORD_TAG == 0:
                _bad_row(handle, "in use without a tag")
            if state_of(row.word) == STATE_RESERVED and row.birth != UINT64_MAX:
                _bad_row(handle, "reserved with a birth epoch")
            if state_of(row.word) == STATE_LIVE and row.retire != UINT64_MAX:
                _bad_row(handle, "live with a retire epoch")
        found = tuple(counts)
        expected = (self.free_count, self.reserved_count, self.live_count, self.retired_count)
        if found != expected:
            raise CorruptionError(f"object table: rows by state {found}, expected {expected}")
        _check_list(self, self.free_head, self.free_tail, self.free_count, STATE_FREE)
        _check_list(self, self.retired_head, self.retired_tail, self.retired_count, STATE_RETIRED)


cdef int _require_state(ObjectTable t, NodeID node, int state) except -1:
    cdef Row *row = t.row(handle_of(node))
    if row == NULL or not _is(row, node, state):
        raise RuntimeError(f"node {node:#x} isn't {STATE_NAMES[state]}")
    return 0


# A list of as many rows as are in its state, which ends where it should, holds each of them once.
cdef int _check_list(ObjectTable t, uint64_t head, uint64_t tail, uint64_t count, int state) except -1:
    cdef uint64_t handle = head, last = 0, seen = 0
    cdef Row *row
    while handle and seen <= count:
        row = t.row(handle)
        if row == NULL or state_of(row.word) != state:
            return _bad_row(handle, "on the list of another state")
        if last and state == STATE_RETIRED and row.retire < _row_at(t, last).retire:
            return _bad_row(handle, "retired before the row that stands before it")
        last = handle
        seen += 1
        handle = row.next
    if handle or seen != count or last != tail:
        raise CorruptionError(f"object table: list of {STATE_NAMES[state]} rows: {seen} rows up to {last}, "
                              f"expected {count} up to {tail}")
    return 0


# The window of a file, by binary search; -1 when there is none.
cdef Py_ssize_t _find_file(const FileWindow *windows, Py_ssize_t files, uint32_t file_number) noexcept nogil:
    cdef Py_ssize_t low = 0, high = files, middle
    while low < high:
        middle = (low + high) // 2
        if windows[middle].file_number < file_number:
            low = middle + 1
        else:
            high = middle
    return low if low < files and windows[low].file_number == file_number else -1


cdef int _restore(ObjectTable t, const StoredRow *rows, uint64_t count, const FileWindow *windows,
                  Py_ssize_t files) except -1 nogil:
    cdef const StoredRow *stored
    cdef uint64_t handle
    cdef Py_ssize_t found = -1
    for handle in range(count):
        stored = &rows[handle]
        if handle == 0:
            if not _is_blank(stored) or stored.tag:
                return _bad_row(handle, "expected all of it to be zero")
            continue
        _make_slab(t, handle)
        if stored.state == STATE_FREE:
            if not _is_blank(stored):
                return _bad_row(handle, "free, with content")
            store_release(&t.high_water, handle + 1)
            _row_at(t, handle).word = stored.tag
            _free_row(t, handle, _row_at(t, handle))
            continue
        if found < 0 or windows[found].file_number != stored.file_number:
            found = _find_file(windows, files, stored.file_number)
        if found < 0:
            return _bad_row(handle, "in a data file that isn't there")
        _restore_live(t, handle, stored, windows[found].window)
    return 0


# Whether a stored row is free and holds nothing but a tag.
cdef inline bint _is_blank(const StoredRow *stored) noexcept nogil:
    return not (stored.state or stored.kind or stored.size_class or stored.file_number or stored.offset
                or stored.birth or stored.retire or stored.crc or stored.reserved_32 or stored.reserved_64)


cdef int _restore_live(ObjectTable t, uint64_t handle, const StoredRow *stored, uint32_t window) except -1 nogil:
    cdef Row *row = _row_at(t, handle)
    if stored.state != STATE_LIVE:
        return _bad_row(handle, "impossible state")
    if stored.tag == 0 or stored.kind == 0 or stored.size_class >= SIZE_CLASSES:
        return _bad_row(handle, "impossible tag, kind or size class")
    if stored.offset >> OFFSET_BITS or stored.birth == UINT64_MAX or stored.retire != UINT64_MAX:
        return _bad_row(handle, "impossible offset, birth or retire epoch")
    if stored.reserved_32 or stored.reserved_64:
        return _bad_row(handle, "reserved fields in use")
    row.birth = stored.birth
    row.retire = UINT64_MAX
    row.address = make_address(window, stored.offset)
    row.crc = stored.crc
    store_release(&row.word, _word(STATE_LIVE, stored.tag, stored.kind, stored.size_class))
    store_release(&t.high_water, handle + 1)
    t.live_count += 1
    return 0


cdef int _snapshot(ObjectTable t, uint64_t epoch, StoredRow *out, const uint32_t *files,
                   uint32_t windows) except -1 nogil:
    cdef uint64_t handle, word
    cdef const Row *row
    memset(out, 0, t.high_water * sizeof(StoredRow))
    for handle in range(1, t.high_water):
        row = _row_at(t, handle)
        word = load_relaxed(&row.word)
        out[handle].tag = word & WORD_TAG
        if state_of(word) < STATE_LIVE or not row.birth <= epoch < row.retire:
            continue
        if window_of(row.address) >= windows:
            return _bad_row(handle, "in a window without a data file")
        out[handle].state = STATE_LIVE
        out[handle].kind = kind_of(word)
        out[handle].size_class = class_of(word)
        out[handle].file_number = files[window_of(row.address)]
        out[handle].offset = offset_of(row.address)
        out[handle].birth = row.birth
        out[handle].retire = UINT64_MAX
        out[handle].crc = row.crc
    return 0
