"""Windows: large mappings of data files, or of anonymous memory, behind small logical ids.

A file's window spans the address space that the file may grow into; only bytes below the file's end may be
touched. A file is mapped at the first use of its window, so that opening an index with many files maps none.
The descriptor is needed for that moment only.
"""

import os
import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from xtree.persistence.atomics cimport load_acquire, store_release
from xtree.persistence.memory cimport allocate_zeroed, release

from xtree.errors import CapacityError

cdef extern from "platform_map.h" nogil:
    size_t xt_granularity() noexcept
    int xt_map_file(int fd, uint64_t bytes, int writable, void **base) noexcept
    int xt_map_anonymous(uint64_t bytes, void **base) noexcept
    int xt_unmap(void *base, uint64_t bytes) noexcept
    int xt_flush_map(void *base, uint64_t bytes) noexcept

if sys.byteorder != "little":
    raise ImportError("xtree stores little-endian pages and runs on little-endian machines only")

cdef uint64_t MAX_WINDOW_BYTES = min(<uint64_t>1 << OFFSET_BITS, <uint64_t>sys.maxsize)


cdef object _system_error(int code, str doing):
    if sys.platform == "win32":
        return OSError(None, f"{doing}: Windows error {code}", None, code)
    return OSError(code, f"{doing}: {os.strerror(code)}")


cdef int _check_new(Windows windows, uint64_t bytes) except -1:
    if not 0 < bytes <= MAX_WINDOW_BYTES:
        raise ValueError(f"a window has 1 to {MAX_WINDOW_BYTES} bytes, got {bytes}")
    if windows.count == MAX_WINDOWS:
        raise CapacityError(f"all {MAX_WINDOWS} windows are in use")
    return 0


cdef int _check_window(Windows windows, uint32_t window) except -1:
    if window >= windows.count:
        raise ValueError(f"no window {window}: there are {windows.count}")
    return 0


cdef object _append(Windows windows, object file, uint64_t bytes, void *base):
    cdef uint32_t window = windows.count
    windows.files.append(file)
    windows.bytes[window] = bytes
    store_release(&windows.bases[window], <uint64_t>base)
    windows.count += 1
    return window


cdef class Windows:
    """The mappings of one store. `writable=False` maps files read-only."""

    def __cinit__(self, bint writable=True):
        self.bases = NULL
        self.bytes = NULL
        self.count = 0
        self.files = []
        self.writable = writable
        self.bases = <uint64_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint64_t))
        self.bytes = <uint64_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint64_t))
        if self.bases == NULL or self.bytes == NULL:
            raise MemoryError("no memory for the table of windows")

    def __dealloc__(self):
        cdef uint32_t window
        if self.bases != NULL and self.bytes != NULL:
            for window in range(self.count):
                if self.bases[window]:
                    xt_unmap(<void *>self.bases[window], self.bytes[window])
        release(self.bases)
        release(self.bytes)

    def add_file(self, file, uint64_t bytes):
        """A window of `bytes` bytes over a file, an object with `fileno()`; returns its id. Maps nothing yet."""
        _check_new(self, bytes)
        return _append(self, file, bytes, NULL)

    def add_anonymous(self, uint64_t bytes):
        """A window of zeroed memory, mapped at once; returns its id. Memory is used as pages are touched."""
        cdef void *base = NULL
        cdef int code
        _check_new(self, bytes)
        code = xt_map_anonymous(bytes, &base)
        if code:
            raise _system_error(code, f"mapping {bytes} bytes of memory")
        return _append(self, None, bytes, base)

    cdef int map_window(self, uint32_t window) except -1:
        cdef void *base = NULL
        cdef int code, fd
        _check_window(self, window)
        if load_acquire(&self.bases[window]):
            return 0
        fd = self.files[window].fileno()
        if load_acquire(&self.bases[window]):   # another thread was here while fileno() ran
            return 0
        code = xt_map_file(fd, self.bytes[window], self.writable, &base)
        if code:
            raise _system_error(code, f"mapping {self.bytes[window]} bytes of {self.files[window]!r}")
        store_release(&self.bases[window], <uint64_t>base)
        return 0

    def map(self, uint32_t window):
        """Map a window now rather than at its first use. Mapping it twice is fine."""
        self.map_window(window)

    def is_mapped(self, uint32_t window):
        """Whether a window is mapped."""
        _check_window(self, window)
        return load_acquire(&self.bases[window]) != 0

    def bytes_of(self, uint32_t window):
        """How much address space a window spans."""
        _check_window(self, window)
        return self.bytes[window]

    def write(self, uint32_t window, uint64_t offset, data):
        """Copy bytes, a buffer, into a window of anonymous memory."""
        cdef Py_buffer view
        _check_window(self, window)
        if self.files[window] is not None:
            raise ValueError(f"window {window} is of {self.files[window]!r}, not of anonymous memory")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if offset > self.bytes[window] or <uint64_t>view.len > self.bytes[window] - offset:
                raise ValueError(f"bytes {offset} to {offset + view.len} aren't inside window {window} "
                                 f"of {self.bytes[window]} bytes")
            memcpy(<char *>self.bases[window] + offset, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def flush(self, uint32_t window, uint64_t offset, uint64_t length):
        """Write changed bytes of a file's window to its file and wait for it (msync).

        On Linux a sync of the descriptor covers them too; macOS and Windows need this before it.
        """
        cdef uint64_t start, base
        cdef int code
        _check_window(self, window)
        if length > self.bytes[window] or offset > self.bytes[window] - length:
            raise ValueError(f"bytes {offset} to {offset + length} aren't inside window {window} "
                             f"of {self.bytes[window]} bytes")
        base = load_acquire(&self.bases[window])
        if base == 0 or length == 0:
            return
        start = offset - offset % xt_granularity()
        with nogil:
            code = xt_flush_map(<void *>(base + start), offset + length - start)
        if code:
            raise _system_error(code, f"flushing {length} bytes of {self.files[window]!r}")

    cpdef int unmap_all(self) except -1:
        """Unmap and forget every window. Nothing may read through a pointer any more."""
        cdef uint32_t window, count = self.count
        cdef uint64_t base
        cdef int code, failure = 0
        self.count = 0
        for window in range(count):
            base = load_acquire(&self.bases[window])
            store_release(&self.bases[window], 0)
            if base:
                code = xt_unmap(<void *>base, self.bytes[window])
                failure = failure or code
            self.bytes[window] = 0
        self.files = []
        if failure:
            raise _system_error(failure, "unmapping")
        return 0

    @property
    def mapped(self):
        """How many windows are mapped."""
        return sum([1 for window in range(self.count) if self.bases[window]])

    @property
    def reserved_bytes(self):
        """Address space of all windows that are mapped, in bytes."""
        return sum([self.bytes[window] for window in range(self.count) if self.bases[window]])

    def __len__(self):
        return self.count

    def __repr__(self):
        return f"<Windows: {self.count}, {self.mapped} mapped>"
