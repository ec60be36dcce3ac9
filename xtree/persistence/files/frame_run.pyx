"""Following the chain of a log's frames through chunks of its file, without the GIL. docs: frame_run.pxd.

Bytes that don't link end the chain, and `problem` says why. A frame that links but can't be right was forged or written
by another version, and raises. It is for others to decide whether the end of a chain is a torn tail or damage, and
whether a frame of strict mode is a commit.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from xtree.persistence.files.frame_layout cimport (
    FIRST_WORD, FRAME_ALIGNMENT, FRAME_FORMAT, FRAME_MAGIC, LAST_MODE, MODE_STRICT, OP_BIRTH, OP_RELOCATE, OP_RETIRE,
    PAYLOAD_NONE, PAYLOAD_RANGES, PAYLOAD_WHOLE, SECTOR_BYTES, WORD_BYTES, Delta, FrameHeader, Range, aligned,
)
from xtree.persistence.base.memory cimport reallocate, release
from xtree.persistence.pages.node_id cimport handle_of, slot_of, tag_of
from xtree.persistence.pages.page cimport SIZE_CLASSES, class_bytes
from xtree.persistence.pages.page_checksum cimport crc32c

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.base.config import MAX_EPOCH as _MAX_EPOCH

cdef enum:                          # what is found at an offset
    GOOD
    MORE
    END_OF_FILE
    ZEROS
    NO_FRAME
    UNLINKED
    BAD_LENGTH
    BAD_CRC
    ASK

PROBLEMS = ("", "more", "end of file", "zeros", "no frame", "unlinked", "bad length", "bad CRC", "ask")

cdef uint64_t MAX_EPOCH = _MAX_EPOCH
assert sizeof(FrameHeader) == 128 and sizeof(Delta) == 64 and sizeof(Range) == 4


cdef class FrameRun:
    def __cinit__(self, str path, chunk, uint64_t start):
        self.places = NULL
        self.path = path
        self.start = start
        PyObject_GetBuffer(chunk, &self.view, PyBUF_SIMPLE)

    def __dealloc__(self):
        release(self.places)
        PyBuffer_Release(&self.view)       # does nothing when there was no chunk

    cdef const char *frame(self, Py_ssize_t i) noexcept nogil:
        return <const char *>self.view.buf + self.places[i]

    cdef int add(self, uint64_t place) except -1 nogil:
        cdef void *larger
        cdef Py_ssize_t wanted
        if self.count == self.room:
            wanted = 2 * self.room + 8
            larger = reallocate(self.places, wanted * sizeof(uint64_t))
            if larger == NULL:
                with gil:
                    raise MemoryError("no memory for the places of frames")
            self.places = <uint64_t *>larger
            self.room = wanted
        self.places[self.count] = place
        self.count += 1
        return 0

    def __len__(self):
        return self.count

    @property
    def chunk(self):
        """The bytes it was made of."""
        return self.view.obj

    def place(self, Py_ssize_t i):
        """(offset in the chunk, length) of a frame."""
        if not 0 <= i < self.count:
            raise IndexError(f"frame {i} of {self.count}")
        return self.places[i], (<const FrameHeader *>self.frame(i)).length

    @property
    def offset(self):
        """Where in the file the first frame begins."""
        return self.start + self.places[0]

    @property
    def end_offset(self):
        """Where in the file the last frame ends."""
        place, length = self.place(self.count - 1)
        return self.start + place + length


cdef class FrameChain:
    def __cinit__(self, str path, bytes uuid, uint64_t number, uint64_t end_offset, uint32_t last_crc,
                  uint64_t last_epoch):
        if len(uuid) != sizeof(self.uuid):
            raise ValueError(f"a UUID has {sizeof(self.uuid)} bytes, not {len(uuid)}")
        memcpy(self.uuid, <const char *>uuid, sizeof(self.uuid))
        self.path = path
        self.number = number
        self.end_offset = end_offset
        self.last_crc = last_crc
        self.last_epoch = last_epoch
        self.problem = ""

    def follow(self, chunk, uint64_t start, uint64_t limit, int kind, Py_ssize_t most, uint64_t exposed_through):
        """The next frames of one kind, as a FrameRun: up to `most`, in a chunk that was read at `start`.

        Frames must end at `limit` at the latest. A frame of strict mode with epochs above `exposed_through` isn't
        taken, and `problem` is "ask" then; it is "" when the run is full. Raises CorruptionError, FormatVersionError,
        MemoryError.
        """
        cdef FrameRun run = FrameRun(self.path, chunk, start)
        cdef int found = GOOD
        with nogil:
            while run.count < most and found == GOOD:
                found = _take_next(self, run, limit, kind, exposed_through)
        self.problem = PROBLEMS[found]
        return run


# Adds the next frame to the run. It begins right after the last one or on the next boundary.
cdef int _take_next(FrameChain chain, FrameRun run, uint64_t limit, int kind, uint64_t exposed_through) except -1 nogil:
    cdef uint64_t at = chain.end_offset, boundary = aligned(at, SECTOR_BYTES)
    cdef int found = _look_at(chain, run, at, limit), there
    cdef const FrameHeader *header
    if found != GOOD and found != MORE and boundary != at:
        there = _look_at(chain, run, boundary, limit)
        if there == GOOD or there == MORE or found == ZEROS or found == NO_FRAME:
            found = there
        at = boundary
    if found != GOOD:
        return found
    header = <const FrameHeader *>(<const char *>run.view.buf + (at - run.start))
    _require_right(chain, run, header, at, kind)
    if header.mode == MODE_STRICT and header.last_epoch > exposed_through:
        return ASK
    run.add(at - run.start)
    chain.end_offset = at + header.length
    chain.last_crc = header.crc
    chain.last_epoch = header.last_epoch
    return GOOD


# Whether the next frame begins at an offset.
cdef int _look_at(FrameChain chain, FrameRun run, uint64_t at, uint64_t limit) noexcept nogil:
    cdef uint64_t have = 0
    cdef const char *data = NULL
    cdef const FrameHeader *header
    if at > limit or limit - at < sizeof(FrameHeader):
        return END_OF_FILE
    if run.start <= at < run.start + run.view.len:
        data = <const char *>run.view.buf + (at - run.start)
        have = run.view.len - (at - run.start)
    if have < sizeof(FrameHeader):
        return _want(chain, at, sizeof(FrameHeader))
    header = <const FrameHeader *>data
    if header.magic != FRAME_MAGIC:
        return ZEROS if _all_zero(data) else NO_FRAME
    if (header.previous_crc != chain.last_crc or header.offset != at or header.log_number != chain.number
            or memcmp(header.uuid, chain.uuid, sizeof(chain.uuid))):
        return UNLINKED
    if header.length > limit - at or not _adds_up(header):
        return BAD_LENGTH
    if have < header.length:
        return _want(chain, at, header.length)
    if _frame_crc(data, header.length) != header.crc:
        return BAD_CRC
    return GOOD


cdef int _want(FrameChain chain, uint64_t at, uint64_t n) noexcept nogil:
    chain.wanted_at = chain.end_offset      # from where the next step begins to look
    chain.wanted_bytes = at - chain.end_offset + n
    return MORE


cdef bint _all_zero(const char *header) noexcept nogil:
    cdef size_t i
    for i in range(sizeof(FrameHeader)):
        if header[i]:
            return False
    return True


# Whether the length is the sum of the parts, none of which is longer than the whole.
cdef bint _adds_up(const FrameHeader *header) noexcept nogil:
    if header.catalog_bytes > header.length or header.payload_bytes > header.length:
        return False
    return header.length == (sizeof(FrameHeader) + <uint64_t>header.delta_count * sizeof(Delta)
                             + aligned(header.catalog_bytes, FRAME_ALIGNMENT)
                             + aligned(header.payload_bytes, FRAME_ALIGNMENT))


cdef uint32_t _frame_crc(const char *data, uint64_t length) noexcept nogil:
    cdef char head[8]
    memcpy(head, data, 4)
    memset(head + 4, 0, 4)
    return crc32c(data + 8, length - 8, crc32c(head, 8, 0))


# Checks the fields of a frame whose CRC is right: it may be forged all the same.


cdef int _require_right(FrameChain chain, FrameRun run, const FrameHeader *header, uint64_t at,
                        int kind) except -1 nogil:
    cdef bint group = header.kind != 1
    if header.format != FRAME_FORMAT:
        with gil:
            raise FormatVersionError(f"{chain.path}: at offset {at}: expected frame format {FRAME_FORMAT}, "
                                     f"found {header.format}")
    if header.kind != kind or not 1 <= header.mode <= LAST_MODE:
        with gil:
            raise CorruptionError(f"{chain.path}: at offset {at}: expected a frame of kind {kind} and a mode, found "
                                  f"kind {header.kind}, mode {header.mode}")
    if (not header.durable_through <= header.first_epoch <= header.last_epoch or header.last_epoch > MAX_EPOCH
            or header.first_epoch < chain.last_epoch + group):
        with gil:
            raise CorruptionError(f"{chain.path}: at offset {at}: expected epochs in order and after "
                                  f"{chain.last_epoch}, found {header.durable_through}, {header.first_epoch}, "
                                  f"{header.last_epoch}")
    return _require_right_deltas(chain, header, at)


cdef int _require_right_deltas(FrameChain chain, const FrameHeader *header, uint64_t at) except -1 nogil:
    cdef const Delta *deltas = <const Delta *>(<const char *>header + sizeof(FrameHeader))
    cdef const char *payloads = (<const char *>header + header.length
                                 - aligned(header.payload_bytes, FRAME_ALIGNMENT))
    cdef const char *wrong
    cdef uint32_t i
    for i in range(header.delta_count):
        wrong = _flaw(header, &deltas[i], payloads)
        if wrong != NULL:
            with gil:
                raise CorruptionError(f"{chain.path}: at offset {at + sizeof(FrameHeader) + i * sizeof(Delta)}: "
                                      f"expected a delta of epochs {header.first_epoch} to {header.last_epoch}, found "
                                      f"{wrong.decode()}: {deltas[i]}")
    return 0


cdef const char *_flaw(const FrameHeader *header, const Delta *delta, const char *payloads) noexcept nogil:
    """What is wrong with a delta, as far as the frame alone tells; NULL when a writer may have written it."""
    if not _is_node(delta.node_id):
        return "no page"
    if not header.first_epoch <= delta.epoch <= header.last_epoch:
        return "an epoch of another group"
    if delta.size_class >= SIZE_CLASSES:
        return "no size class"
    if delta.op == OP_RETIRE:
        if delta.payload_form != PAYLOAD_NONE or delta.replaces:
            return "a retirement with a page"
        return NULL
    if delta.op != OP_BIRTH and delta.op != OP_RELOCATE:
        return "no operation"
    if delta.kind == 0:
        return "a page of no kind"
    if delta.page_bytes != class_bytes(delta.size_class):
        return "a page of another size than its class"
    if delta.replaces and (delta.op != OP_BIRTH or not _is_node(delta.replaces)
                           or handle_of(delta.replaces) == handle_of(delta.node_id)):
        return "a page that replaces none there can be"
    if delta.payload_form == PAYLOAD_NONE:
        return NULL
    if delta.payload_offset > header.payload_bytes or delta.payload_bytes > header.payload_bytes - delta.payload_offset:
        return "a payload outside the frame"
    if delta.payload_form == PAYLOAD_WHOLE:
        if delta.payload_bytes != delta.page_bytes:
            return "a payload that isn't the page"
        return NULL
    if delta.payload_form != PAYLOAD_RANGES:
        return "no form of payload"
    if delta.replaces == 0:
        return "changes of no page"
    return _flaw_of_ranges(payloads + delta.payload_offset, delta.payload_bytes, delta.page_bytes // WORD_BYTES)


cdef inline bint _is_node(uint64_t node) noexcept nogil:
    return slot_of(handle_of(node)) != 0 and tag_of(node) != 0


cdef const char *_flaw_of_ranges(const char *payload, uint64_t n, uint64_t page_words) noexcept nogil:
    cdef uint64_t at = 0, word = FIRST_WORD
    cdef Range one
    while at < n:
        if n - at < sizeof(Range):
            return "a range cut short"
        memcpy(&one, payload + at, sizeof(Range))
        at += sizeof(Range)
        if one.word_count == 0 or one.first_word < word or <uint64_t>one.first_word + one.word_count > page_words:
            return "a range out of order or outside the page"
        if <uint64_t>one.word_count * WORD_BYTES > n - at:
            return "a range cut short"
        word = <uint64_t>one.first_word + one.word_count
        at += <uint64_t>one.word_count * WORD_BYTES
    return NULL
