"""LogTail and LogFrame: where a log's next frame begins, and a frame as it is built, byte by byte as it is written.

A frame's parts follow one another in one block of memory: room for the header, deltas, catalog records, payloads. It
is finished with the header and the CRC, which link it to the place that the tail names.

    field             written by                                    read by                      order
    LogTail           the holder of the turn; `boundary` also a     the holder of the turn, and  the GIL
                      sync that begins with the turn                any thread for figures
    LogFrame          the thread that builds it                     the same                     -
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t


cdef class LogTail:
    cdef readonly uint64_t number
    cdef readonly int mode              # of its frames, as stored
    cdef unsigned char uuid[16]
    cdef public uint64_t end_offset     # of the last frame
    cdef public uint64_t boundary       # the end when the last sync began: the next frame doesn't share its sector
    cdef public uint64_t last_epoch
    cdef public uint32_t last_crc

    cdef uint64_t next_offset(self) noexcept


@cython.final
cdef class LogFrame:
    cdef char *data
    cdef size_t used, room
    cdef Py_ssize_t catalog_count
    cdef size_t catalog_at, payload_at, catalog_bytes
    cdef readonly uint64_t offset, end_offset, first_epoch, last_epoch
    cdef readonly uint32_t crc

    # Room for n more bytes, whatever is in them. What an earlier call has returned may have moved. Raises MemoryError.
    cdef char *more(self, size_t n) except NULL nogil
    # The place of a part.
    cdef char *at(self, size_t place) noexcept nogil
    cdef int pad(self) except -1
    # After the deltas: the catalog records; payloads follow.
    cdef int add_catalog(self, bytes records, Py_ssize_t count) except -1
    # Finishes the frame for the place after the tail. Payloads have been added.
    cdef int finish(self, LogTail tail, int kind, uint64_t first_epoch, uint64_t last_epoch,
                    uint64_t durable_through) except -1
