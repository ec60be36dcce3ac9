"""Replay: object table, catalog and page images, brought forward by the frames of the logs.

Rows are changed in the table itself. Page images stay in memory until the last frame is read: a range of words is put
into the image it changes, which then belongs to the page that replaces the old one, and the image of a page that is
retired is dropped. So memory is bounded by the pages that are live and by the log.

Invariant, until finish(): a live row that a log has brought in has `made_at` = 1 + its place in `born`; others have 0.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from xtree.persistence.base.atomics cimport store_release
from xtree.persistence.pages.file_places cimport FilePlaces
from xtree.persistence.files.frame_layout cimport (
    FRAME_ALIGNMENT, OP_BIRTH, OP_RETIRE, PAYLOAD_NONE, PAYLOAD_RANGES, PAYLOAD_WHOLE, WORD_BYTES, Delta, FrameHeader,
    Range, aligned,
)
from xtree.persistence.files.frame_run cimport FrameRun
from xtree.persistence.base.memory cimport allocate, reallocate, release
from xtree.persistence.pages.mmap_windows cimport make_address, offset_of, window_of
from xtree.persistence.pages.node_id cimport handle_of, shard_of, slot_of, tag_of
from xtree.persistence.pages.object_table cimport ObjectTable
from xtree.persistence.pages.page cimport PagePrefix, class_bytes
from xtree.persistence.pages.page_checksum cimport page_crc
from xtree.persistence.pages.row cimport STATE_FREE, STATE_LIVE, WORD_TAG, Row, class_of, make_word, state_of

from xtree.errors import CorruptionError
from xtree.persistence.store.catalog import decode_changes

cdef enum:
    SLACK_ROWS = 65536              # more handles than slots there can be: of threads that looked at the same moment


cdef struct Born:                   # a live page that a log has brought in
    uint64_t node
    uint64_t address                # known from finish() on
    char *image                     # NULL: it was flushed before its frame was written


cdef packed struct RecordHeader:    # of a catalog record: catalog.pyx
    uint8_t op
    uint8_t kind_bytes
    uint16_t name_bytes
    uint32_t state_bytes
    uint64_t root


cdef int _by_address(const void *a, const void *b) noexcept nogil:
    cdef uint64_t x = (<const Born *>a).address, y = (<const Born *>b).address
    return (x > y) - (x < y)


@cython.final
cdef class Replay:
    """The state that recovery brings forward, from `epoch` on. Every error names the log and the offset of the frame.

    The table isn't shared yet; its lists are right again after finish(), after which no frame may follow.
    """

    cdef readonly ObjectTable table
    cdef readonly uint64_t epoch
    cdef readonly uint64_t frames, deltas
    cdef readonly Py_ssize_t image_count
    cdef FilePlaces places
    cdef uint64_t most_handles      # a handle is only ever given out together with a slot
    cdef Born *born
    cdef Py_ssize_t born_count, born_room
    cdef object base_catalog
    cdef dict changed               # name as bytes -> (last catalog record, path, offset)

    def __cinit__(self, ObjectTable table not None, FilePlaces places not None, catalog, uint64_t epoch):
        self.born = NULL
        self.table = table
        self.places = places
        self.base_catalog = catalog
        self.changed = {}
        self.epoch = epoch
        self.most_handles = table.high_water + places.slots + SLACK_ROWS

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.born_count):
            release(self.born[i].image)
        release(self.born)

    # Frames.

    def apply(self, FrameRun run not None):
        """Applies the frames of a run in order: of each the deltas, then the catalog. Raises CorruptionError."""
        cdef Py_ssize_t i
        for i in range(run.count):
            self._apply_frame(run, <const FrameHeader *>run.frame(i))

    cdef int _apply_frame(self, FrameRun run, const FrameHeader *frame) except -1:
        cdef const Delta *deltas = <const Delta *>(<const char *>frame + sizeof(FrameHeader))
        cdef const char *catalog = <const char *>(deltas + frame.delta_count)
        cdef const char *payloads = catalog + aligned(frame.catalog_bytes, FRAME_ALIGNMENT)
        cdef const char *wrong = NULL
        cdef uint32_t i
        if frame.first_epoch <= self.epoch:
            raise CorruptionError(f"{run.path}: at offset {frame.offset}: expected an epoch after {self.epoch}, "
                                  f"found {frame.first_epoch}")
        with nogil:
            for i in range(frame.delta_count):
                _apply_delta(self, &deltas[i], payloads, &wrong)
                if wrong != NULL:
                    _refuse(run, frame, deltas, i, wrong)
        if frame.catalog_bytes:
            self._note_catalog(run, frame, catalog)
        self.epoch = frame.last_epoch
        self.frames += 1
        self.deltas += frame.delta_count
        return 0

    # The last record of each name is kept; decoding one for every commit would take longer than all the rest.
    cdef int _note_catalog(self, FrameRun run, const FrameHeader *frame, const char *data) except -1:
        cdef uint64_t at = 0, n = frame.catalog_bytes, size
        cdef uint64_t offset = frame.offset + sizeof(FrameHeader) + frame.delta_count * sizeof(Delta)
        cdef RecordHeader record
        while at < n:
            size = n - at
            if size >= sizeof(RecordHeader):
                memcpy(&record, data + at, sizeof(RecordHeader))
                size = sizeof(RecordHeader) + aligned(<uint64_t>record.kind_bytes + record.name_bytes
                                                      + record.state_bytes, 8)
            if size < sizeof(RecordHeader) or size > n - at:
                decode_changes(PyBytes_FromStringAndSize(data + at, n - at), run.path, offset + at)
                raise CorruptionError(f"{run.path}: at offset {offset + at}: expected a catalog record")
            name = PyBytes_FromStringAndSize(data + at + sizeof(RecordHeader) + record.kind_bytes, record.name_bytes)
            self.changed[name] = (PyBytes_FromStringAndSize(data + at, size), run.path, offset + at)
            at += size
        return 0

    @property
    def catalog(self):
        """The catalog after the frames applied so far. Raises CorruptionError."""
        changes = {}
        for record, path, offset in self.changed.values():
            changes.update(decode_changes(record, path, offset))
        self.base_catalog = self.base_catalog.with_changes(changes)
        self.changed = {}
        return self.base_catalog

    # The end.

    def finish(self):
        """Makes the table's lists, once no frame follows."""
        cdef Py_ssize_t i
        cdef Row *row
        with nogil:
            for i in range(self.born_count):
                row = self.table.row(handle_of(self.born[i].node))
                row.made_at = 0
                self.born[i].address = row.address
            if self.born_count:             # else there is no array
                qsort(self.born, self.born_count, sizeof(Born), _by_address)
            self.table.rebuild_lists()

    def check_pages(self, read, path_of, Py_ssize_t most_bytes=1 << 20):
        """Verifies that each page a log has brought in, as an image or flushed, has the CRC of its row.
        `read(window, offset, n)` gives bytes of a data file, `path_of(window)` its path. Raises CorruptionError.
        """
        cdef Py_ssize_t first = 0, behind, i
        cdef bytes data
        cdef char *at
        while first < self.born_count:
            behind = self._neighbours(first, most_bytes)
            if self.born[first].image == NULL:
                data = read(window_of(self.born[first].address), offset_of(self.born[first].address),
                            self._bytes_between(first, behind))
                if PyBytes_GET_SIZE(data) < self._bytes_between(first, behind):
                    self._refuse_page(first, path_of, "it ends behind the end of its file")
            at = PyBytes_AS_STRING(data) if self.born[first].image == NULL else NULL
            for i in range(first, behind):
                self._check_page(i, self.born[i].image if at == NULL else at, path_of)
                if at != NULL:
                    at += self._size_of(i)
            first = behind

    def image_runs(self, Py_ssize_t most_bytes=1 << 20):
        """Yields (window, offset, bytes) of the images; adjacent ones are joined."""
        cdef Py_ssize_t first = 0, behind, i
        cdef bytearray joined
        cdef char *out
        while first < self.born_count:
            behind = self._neighbours(first, most_bytes)
            if self.born[first].image != NULL:
                joined = PyByteArray_FromStringAndSize(NULL, self._bytes_between(first, behind))
                out = PyByteArray_AS_STRING(joined)
                for i in range(first, behind):
                    memcpy(out, self.born[i].image, self._size_of(i))
                    out += self._size_of(i)
                yield window_of(self.born[first].address), offset_of(self.born[first].address), joined
            first = behind

    def images(self):
        """The images, as views that are valid as long as this object."""
        return [PyMemoryView_FromMemory(self.born[i].image, self._size_of(i), PyBUF_READ)
                for i in range(self.born_count) if self.born[i].image != NULL]

    def place_images(self, uint32_t window, list offsets):
        """Sets the rows of the pages with images, in the order of images(), to these offsets of this window."""
        cdef Py_ssize_t i, n = 0
        for i in range(self.born_count):
            if self.born[i].image != NULL:
                self.table.row(handle_of(self.born[i].node)).address = make_address(window, offsets[n])
                n += 1

    cdef uint64_t _size_of(self, Py_ssize_t i) noexcept:
        return class_bytes(class_of(self.table.row(handle_of(self.born[i].node)).word))

    cdef uint64_t _bytes_between(self, Py_ssize_t first, Py_ssize_t behind) noexcept:
        return self.born[behind - 1].address + self._size_of(behind - 1) - self.born[first].address

    # The end of the run of adjacent pages from `first` on that all have images, or all have none.
    cdef Py_ssize_t _neighbours(self, Py_ssize_t first, Py_ssize_t most_bytes) noexcept:
        cdef Py_ssize_t i = first + 1
        while (i < self.born_count and (self.born[i].image == NULL) == (self.born[first].image == NULL)
               and self.born[i].address == self.born[i - 1].address + self._size_of(i - 1)
               and self._bytes_between(first, i + 1) <= <uint64_t>most_bytes):
            i += 1
        return i

    cdef int _check_page(self, Py_ssize_t i, const char *page, path_of) except -1:
        cdef uint32_t expected = self.table.row(handle_of(self.born[i].node)).crc, found
        cdef uint64_t size = self._size_of(i)
        with nogil:
            found = page_crc(page, size)
        if found != expected:
            self._refuse_page(i, path_of, f"it has CRC {found:#010x}, expected {expected:#010x}")
        return 0

    cdef int _refuse_page(self, Py_ssize_t i, path_of, str why) except -1:
        raise CorruptionError(f"{path_of(window_of(self.born[i].address))}, offset "
                              f"{offset_of(self.born[i].address)}: page of node {self.born[i].node:#x}: {why}")


cdef int _refuse(FrameRun run, const FrameHeader *frame, const Delta *deltas, uint32_t i,
                 const char *why) except -1 with gil:
    raise CorruptionError(f"{run.path}: at offset {frame.offset + sizeof(FrameHeader) + i * sizeof(Delta)}: "
                          f"{why.decode()}: {deltas[i]}")


# One delta, whose values the frame alone doesn't contradict. `wrong` says what is, where anything is.
cdef int _apply_delta(Replay r, const Delta *delta, const char *payloads, const char **wrong) except -1 nogil:
    cdef uint64_t address = 0
    cdef char *image = NULL
    cdef Row *row = NULL
    if delta.op == OP_RETIRE:
        wrong[0] = _retire(r, delta.node_id, NULL)
        return 0
    if delta.op != OP_BIRTH:
        wrong[0] = "expected births and retirements, found another operation"
        return 0
    wrong[0] = r.places.locate(delta.file_number, delta.size_class, delta.offset, &address)
    if wrong[0] != NULL:
        return 0
    _find_free_row(r, delta.node_id, &row)
    if row == NULL:
        wrong[0] = "a page is born under a handle that is in use, or can't be"
        return 0
    if delta.replaces:
        wrong[0] = _replace(r, delta, &image)
        if wrong[0] != NULL:
            return 0
    return _bear(r, delta, payloads + delta.payload_offset, row, address, image)


# The row of a handle under which a page may be born, made if need be; NULL when there is none.
cdef int _find_free_row(Replay r, uint64_t node, Row **row) except -1 nogil:
    cdef uint64_t handle = handle_of(node), shard = shard_of(handle), slot = slot_of(handle)
    if slot >= r.table.marks[shard]:
        if (shard >= r.table.max_shards or slot >= r.table.shard_slots
                or slot - r.table.marks[shard] >= r.most_handles - r.table.high_water):
            return 0
        r.table.cover(shard, slot + 1)
    row[0] = r.table.row(handle)
    if state_of(row[0].word) != STATE_FREE:
        row[0] = NULL
    return 0


# Retires the page that a birth replaces. Its image goes to the new page if that has one too, of the same size.
cdef const char *_replace(Replay r, const Delta *delta, char **image) noexcept nogil:
    cdef Row *row = r.table.row(handle_of(delta.replaces))
    if row == NULL or state_of(row.word) != STATE_LIVE or (row.word & WORD_TAG) != tag_of(delta.replaces):
        return "a page is replaced that isn't live"
    if delta.payload_form == PAYLOAD_RANGES:
        if row.made_at == 0 or r.born[row.made_at - 1].image == NULL:
            return "changes of a page that no log holds"
        if row.crc != delta.base_crc:
            return "changes of another version of the page"
        if class_of(row.word) != delta.size_class:
            return "changes of a page of another size"
    if delta.payload_form != PAYLOAD_NONE and class_of(row.word) == delta.size_class:
        return _retire(r, delta.replaces, image)
    return _retire(r, delta.replaces, NULL)


# Ends the life of a page. Its image is handed over, or dropped when nobody asks for it.
cdef const char *_retire(Replay r, uint64_t node, char **image) noexcept nogil:
    cdef Row *row = r.table.row(handle_of(node))
    cdef Py_ssize_t i
    if row == NULL or state_of(row.word) != STATE_LIVE or (row.word & WORD_TAG) != tag_of(node):
        return "a page is retired that isn't live"
    if row.made_at:
        i = row.made_at - 1
        if r.born[i].image != NULL:
            r.image_count -= 1
            if image != NULL:
                image[0] = r.born[i].image
            else:
                release(r.born[i].image)
        r.born_count -= 1
        if i != r.born_count:
            r.born[i] = r.born[r.born_count]
            r.table.row(handle_of(r.born[i].node)).made_at = i + 1
        row.made_at = 0
    store_release(&row.word, row.word & WORD_TAG)
    return NULL


# Begins the life of a page in a free row. `image` is that of the page it replaces, NULL for none.
cdef int _bear(Replay r, const Delta *delta, const char *payload, Row *row, uint64_t address,
               char *image) except -1 nogil:
    if delta.payload_form != PAYLOAD_NONE and image == NULL:
        image = <char *>allocate(delta.page_bytes)
        if image == NULL:
            _no_memory()
    if r.born_count == r.born_room:
        _make_room(r, image)
    if delta.payload_form == PAYLOAD_WHOLE:
        memcpy(image, payload, delta.page_bytes)
    elif delta.payload_form == PAYLOAD_RANGES:
        _patch(image, delta, payload)
    r.born[r.born_count].node = delta.node_id
    r.born[r.born_count].image = image
    r.born_count += 1
    r.image_count += image != NULL
    row.made_at = r.born_count
    row.address = address
    row.birth = delta.epoch
    row.retire = UINT64_MAX
    row.crc = delta.page_crc
    row.log_number = 0
    row.claimed = 0
    store_release(&row.word, make_word(STATE_LIVE, tag_of(delta.node_id), delta.kind, delta.size_class))
    return 0


# Writes ranges, whose form is right, into the image of a page; its first words follow from the delta.
cdef void _patch(char *image, const Delta *delta, const char *payload) noexcept nogil:
    cdef PagePrefix *prefix = <PagePrefix *>image
    cdef uint64_t at = 0, n
    cdef Range one
    while at < delta.payload_bytes:
        memcpy(&one, payload + at, sizeof(Range))
        at += sizeof(Range)
        n = <uint64_t>one.word_count * WORD_BYTES
        memcpy(image + <uint64_t>one.first_word * WORD_BYTES, payload + at, n)
        at += n
    prefix.crc = delta.page_crc
    prefix.node_id = delta.node_id


# Makes room for one more page; if there is no memory for it, frees an image that has no place yet.
cdef int _make_room(Replay r, char *image) except -1 nogil:
    cdef Py_ssize_t room = 2 * r.born_room + 64
    cdef void *larger = reallocate(r.born, room * sizeof(Born))
    if larger == NULL:
        release(image)
        _no_memory()
    r.born = <Born *>larger
    r.born_room = room
    return 0


cdef int _no_memory() except -1 with gil:
    raise MemoryError("no memory for the pages of the log")
