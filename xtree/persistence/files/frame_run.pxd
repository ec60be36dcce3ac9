"""Verified frames of a log, which link: magic, UUID, place, previous CRC, length, CRC, fields and deltas are right."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t


@cython.final
cdef class FrameRun:
    """Verified frames of one chunk of a log, which it keeps alive."""

    cdef readonly str path
    cdef readonly Py_ssize_t count
    cdef readonly uint64_t start    # of the chunk, in the file
    cdef Py_buffer view             # of the chunk
    cdef uint64_t *places           # of each frame, in the chunk
    cdef Py_ssize_t room

    # The bytes of a frame, which are as long as its header says.
    cdef const char *frame(self, Py_ssize_t i) noexcept nogil
    # Adds a frame. Raises MemoryError.
    cdef int add(self, uint64_t place) except -1 nogil


@cython.final
cdef class FrameChain:
    """Where the chain of a log's frames ends, as far as it was followed. For one thread."""

    cdef readonly str path
    cdef uint8_t uuid[16]
    cdef readonly uint64_t number
    cdef readonly uint64_t end_offset
    cdef readonly uint64_t last_epoch
    cdef readonly uint32_t last_crc
    cdef readonly str problem       # why the last step led no further
    cdef readonly uint64_t wanted_at, wanted_bytes   # with the problem "more": the bytes to go on with
