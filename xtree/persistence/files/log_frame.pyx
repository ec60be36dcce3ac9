"""LogTail and LogFrame: where a log's next frame begins, and a frame as it is built. docs: log_frame.pxd."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from xtree.persistence.base.memory cimport reallocate, release
from xtree.persistence.files.frame_layout cimport (
    FRAME_ALIGNMENT, FRAME_FORMAT, FRAME_MAGIC, SECTOR_BYTES, Delta, FrameHeader, aligned,
)
from xtree.persistence.pages.page_checksum cimport crc32c

from time import time_ns

cdef enum:
    LEAST_ROOM = 2048
    CHECKED_WITH_GIL = 1 << 17      # bytes: giving the GIL away for fewer costs more than it gives others


cdef class LogTail:
    """Where and how the next frame of a log begins."""

    def __init__(self, bytes uuid not None, uint64_t number, int mode, uint64_t end_offset, uint64_t last_epoch,
                 uint32_t last_crc):
        if len(uuid) != sizeof(self.uuid):
            raise ValueError(f"a UUID has {sizeof(self.uuid)} bytes, not {len(uuid)}")
        memcpy(self.uuid, PyBytes_AS_STRING(uuid), sizeof(self.uuid))
        self.number = number
        self.mode = mode
        self.end_offset = self.boundary = end_offset
        self.last_epoch = last_epoch
        self.last_crc = last_crc

    cdef uint64_t next_offset(self) noexcept:
        return aligned(self.end_offset, SECTOR_BYTES) if self.end_offset == self.boundary else self.end_offset

    @property
    def next_frame(self):
        """The offset of the next frame."""
        return self.next_offset()


@cython.final
cdef class LogFrame:
    """A frame that is built for a place in the log; `memoryview(frame)` has its bytes."""

    def __cinit__(self):
        self.data = NULL
        self.more(sizeof(FrameHeader))

    def __dealloc__(self):
        release(self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.used, 1, flags)

    def __len__(self):
        return self.used

    cdef char *more(self, size_t n) except NULL nogil:
        cdef size_t room = self.room
        cdef void *larger
        if n > room - self.used:
            room = max(2 * room, self.used + n, <size_t>LEAST_ROOM)
            larger = reallocate(self.data, room)
            if larger == NULL:
                with gil:
                    raise MemoryError(f"no memory for a log frame of {self.used + n} bytes")
            self.data = <char *>larger
            self.room = room
        self.used += n
        return self.data + self.used - n

    cdef char *at(self, size_t place) noexcept nogil:
        return self.data + place

    cdef int pad(self) except -1:
        """Adds zeros up to the next multiple of 8."""
        cdef size_t n = aligned(self.used, FRAME_ALIGNMENT) - self.used
        memset(self.more(n), 0, n)
        return 0

    cdef int add_catalog(self, bytes records, Py_ssize_t count) except -1:
        cdef Py_ssize_t n = PyBytes_GET_SIZE(records)
        self.catalog_at = self.used
        self.catalog_count = count
        memcpy(self.more(n), PyBytes_AS_STRING(records), n)
        self.catalog_bytes = n
        self.pad()
        self.payload_at = self.used
        return 0

    cdef int finish(self, LogTail tail, int kind, uint64_t first_epoch, uint64_t last_epoch,
                    uint64_t durable_through) except -1:
        cdef FrameHeader *header
        cdef uint64_t payload_bytes = self.used - self.payload_at
        cdef uint32_t crc
        self.pad()
        self.offset = tail.next_offset()
        self.end_offset = self.offset + self.used
        self.first_epoch, self.last_epoch = first_epoch, last_epoch
        header = <FrameHeader *>self.data
        memset(header, 0, sizeof(FrameHeader))
        header.magic = FRAME_MAGIC
        header.length = self.used
        memcpy(header.uuid, tail.uuid, sizeof(header.uuid))
        header.offset = self.offset
        header.previous_crc = tail.last_crc
        header.kind, header.mode, header.format = kind, tail.mode, FRAME_FORMAT
        header.first_epoch, header.last_epoch, header.durable_through = first_epoch, last_epoch, durable_through
        header.delta_count = (self.catalog_at - sizeof(FrameHeader)) // sizeof(Delta)
        header.catalog_count, header.catalog_bytes = self.catalog_count, self.catalog_bytes
        header.payload_bytes = payload_bytes
        header.log_number = tail.number
        header.time_ns = time_ns()
        if self.used <= CHECKED_WITH_GIL:
            crc = crc32c(self.data, self.used, 0)
        else:
            with nogil:
                crc = crc32c(self.data, self.used, 0)
        header.crc = self.crc = crc
        return 0


def frame_of(LogTail tail not None, int kind, uint64_t first_epoch, uint64_t last_epoch, uint64_t durable_through,
             deltas not None, bytes catalog not None, uint64_t catalog_count, payloads not None):
    """The frame of these deltas (buffers of whole ones), catalog records and payloads, for the place after the tail.

    Raises ValueError for a part of a delta.
    """
    cdef LogFrame frame = LogFrame()
    for part in deltas:
        add_bytes(frame, bytes(part))
    if (frame.used - sizeof(FrameHeader)) % sizeof(Delta):
        raise ValueError(f"deltas have {sizeof(Delta)} bytes each; got {frame.used - sizeof(FrameHeader)} bytes")
    frame.add_catalog(catalog, catalog_count)
    for part in payloads:
        add_bytes(frame, bytes(part))
    frame.finish(tail, kind, first_epoch, last_epoch, durable_through)
    return frame


cdef int add_bytes(LogFrame frame, bytes part) except -1:
    memcpy(frame.more(PyBytes_GET_SIZE(part)), PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
    return 0
