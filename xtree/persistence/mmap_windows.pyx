"""Windows: large mappings of data files, or of anonymous memory, behind small logical ids. docs: mmap_windows.pxd.

A file's window spans the address space that the file may grow into; only bytes below the file's end may be
touched. A file is mapped at the first use of its window, so that opening an index with many files maps none.
The descriptor is needed for that moment only.
"""

import heapq
import logging
import os
import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.string cimport memcpy

from xtree.persistence.atomics cimport store_relaxed, store_release, store_seq
from xtree.persistence.memory cimport allocate_zeroed, release

from xtree.errors import CapacityError

cdef extern from "platform_map.h" nogil:
    size_t xt_granularity() noexcept
    int xt_map_file(int fd, uint64_t bytes, int writable, void **base) noexcept
    int xt_map_anonymous(uint64_t bytes, void **base) noexcept
    int xt_unmap(void *base, uint64_t bytes) noexcept
    int xt_flush_map(void *base, uint64_t bytes) noexcept
    bint XT_SYNC_COVERS_UNMAPPED

if sys.byteorder != "little":
    raise ImportError("xtree stores little-endian pages and runs on little-endian machines only")

log = logging.getLogger("xtree")

cdef uint64_t MAX_WINDOW_BYTES = min(<uint64_t>1 << OFFSET_BITS, <uint64_t>sys.maxsize)
cdef uint64_t ANONYMOUS = UINT64_MAX    # in `touched`
DEFAULT_BUDGET = 64


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
    windows.touched[window] = ANONYMOUS if file is None else 0
    windows.announced[window] = file is None
    windows.mappings[window] = <uint64_t>base
    store_release(&windows.bases[window], <uint64_t>base)
    windows.count += 1
    return window


# Makes a mapping visible and notes that it is in use.
cdef inline char *_show(Windows windows, uint32_t window) noexcept:
    windows.tick += 1
    store_relaxed(&windows.touched[window], windows.tick)
    store_seq(&windows.bases[window], windows.mappings[window])
    return <char *>windows.mappings[window]


# Maps a file's window, unless another thread was here while the file was being opened.
cdef char *_map_file(Windows windows, uint32_t window, object file) except NULL:
    cdef void *base = NULL
    cdef int code, fd
    fd = file.fileno()
    _check_window(windows, window)
    if windows.mappings[window]:
        return _show(windows, window)
    code = xt_map_file(fd, windows.bytes[window], windows.writable, &base)
    if code:
        raise _system_error(code, f"mapping {windows.bytes[window]} bytes of {windows.files[window]!r}")
    windows.mappings[window] = <uint64_t>base
    windows.mapped_files += 1
    windows.mapped_peak = max(windows.mapped_peak, windows.mapped_files)
    windows.over_budget += windows.mapped_files > windows.budget
    return _show(windows, window)


cdef class Windows:
    """The mappings of one store. `writable=False` maps files read-only."""

    def __cinit__(self, bint writable=True):
        self.bases = self.mappings = self.bytes = self.announced = self.touched = NULL
        self.busy = NULL
        self.count = 0
        self.files = []
        self.writable = writable
        self.budget = DEFAULT_BUDGET
        self.bases = <uint64_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint64_t))
        self.mappings = <uint64_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint64_t))
        self.bytes = <uint64_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint64_t))
        self.announced = <uint64_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint64_t))
        self.touched = <uint64_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint64_t))
        self.busy = <uint32_t *>allocate_zeroed(MAX_WINDOWS, sizeof(uint32_t))
        if (self.bases == NULL or self.mappings == NULL or self.bytes == NULL or self.announced == NULL
                or self.touched == NULL or self.busy == NULL):
            raise MemoryError("no memory for the table of windows")

    def __dealloc__(self):
        cdef uint32_t window
        for window in range(self.count):        # 0 unless every table is there
            if self.mappings[window]:
                xt_unmap(<void *>self.mappings[window], self.bytes[window])
        release(self.bases)
        release(self.mappings)
        release(self.bytes)
        release(self.announced)
        release(self.touched)
        release(self.busy)

    def set_budget(self, uint32_t budget):
        """How many files may be mapped before the recycler is asked to unmap some."""
        self.budget = budget

    def set_recycler(self, recycler):
        """What to tell of too many mappings: an object with wake() and stop(), neither of which maps anything."""
        self.recycler = recycler

    def add_file(self, file, uint64_t bytes):
        """A window of `bytes` bytes over a file; returns its id. Maps nothing yet.

        Of the file `opened()` is used, a context manager that gives an object with fileno(), and `keep()`, which
        is called before the first write through a mapping, and again before the first one after `expect_writes`.
        """
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

    # Mapping, and the sampling of use: whoever meets a hidden base shows it again.

    cdef char *map_window(self, uint32_t window) except NULL:
        cdef char *base
        _check_window(self, window)
        if self.bases[window]:
            return <char *>self.bases[window]
        if self.mappings[window]:
            self.revived += 1
            return _show(self, window)
        with self.files[window].opened() as file:
            base = _map_file(self, window, file)
        if self.mapped_files > self.budget and self.recycler is not None:
            self.recycler.wake()
        return base

    def map(self, uint32_t window):
        """Map a window now rather than at its first use, or show it again. Mapping it twice is fine."""
        self.map_window(window)

    cdef int announce(self, uint32_t window) except -1:
        _check_window(self, window)
        store_release(&self.announced[window], 1)
        try:
            self.files[window].keep()
        except BaseException:
            store_release(&self.announced[window], 0)
            raise
        return 0

    def expect_writes(self, uint32_t window):
        """Have the next write to a window told to its file; called as a sync of the file begins."""
        _check_window(self, window)
        if not self.is_anonymous(window):
            store_release(&self.announced[window], 0)

    # Recycling.

    cdef list hide(self, Py_ssize_t n):
        cdef uint32_t window
        candidates = []
        for window in range(self.count):
            if self.mappings[window] and not self.is_anonymous(window) and not self.busy[window]:
                if XT_SYNC_COVERS_UNMAPPED or not self.writable or not self.announced[window]:
                    candidates.append((self.touched[window], window))
        chosen = [found[1] for found in heapq.nsmallest(n, candidates)]
        for window in chosen:
            if window < self.count:
                store_seq(&self.bases[window], 0)
        return chosen

    cdef int drop(self, list windows) except -1:
        cdef uint32_t window
        cdef uint64_t base, size
        cdef int code, dropped = 0
        for window in windows:
            if self.mapped_files <= self.budget:
                break
            if window >= self.count or self.bases[window] or not self.mappings[window] or self.busy[window]:
                continue
            base, size = self.mappings[window], self.bytes[window]
            self.mappings[window] = 0           # from here on a call maps it anew
            self.mapped_files -= 1
            with nogil:
                code = xt_unmap(<void *>base, size)
            if code:
                self.unmap_failures += 1
                log.warning("xtree: %s", _system_error(code, f"unmapping {size} bytes"))
            self.recycled += 1
            dropped += 1
        return dropped

    def hide_windows(self, Py_ssize_t n):
        """Hide up to n windows of files, those longest untouched; returns which. For tests and the recycler."""
        return self.hide(n)

    def drop_hidden(self, list windows):
        """Unmap those of the windows that are still hidden, until the budget is kept; returns how many."""
        return self.drop(windows)

    # Contents.

    def is_mapped(self, uint32_t window):
        """Whether a window is mapped."""
        _check_window(self, window)
        return self.mappings[window] != 0

    def is_hidden(self, uint32_t window):
        """Whether a window is mapped, but has to be shown again before its next use."""
        _check_window(self, window)
        return self.mappings[window] != 0 and self.bases[window] == 0

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

        On Linux a sync of the descriptor covers them too; macOS and Windows need this before it. A window that was
        unmapped since it was written is mapped again, for its pages may still be on their way.
        """
        cdef uint64_t start, base
        cdef int code
        _check_window(self, window)
        if length > self.bytes[window] or offset > self.bytes[window] - length:
            raise ValueError(f"bytes {offset} to {offset + length} aren't inside window {window} "
                             f"of {self.bytes[window]} bytes")
        if length == 0 or self.touched[window] == 0:
            return
        self.busy[window] += 1
        try:
            base = self.mappings[window] or <uint64_t>self.map_window(window)
            start = offset - offset % xt_granularity()
            with nogil:
                code = xt_flush_map(<void *>(base + start), offset + length - start)
        finally:
            self.busy[window] -= 1
        if code:
            raise _system_error(code, f"flushing {length} bytes of {self.files[window]!r}")

    cpdef int unmap_all(self) except -1:
        """Unmap and forget every window, and end the recycler. Nothing may read through a pointer any more."""
        cdef uint32_t window, count
        cdef uint64_t base
        cdef int code, failure = 0
        recycler, self.recycler = self.recycler, None
        if recycler is not None:
            recycler.stop()
        count, self.count = self.count, 0
        for window in range(count):
            base = self.mappings[window]
            self.mappings[window] = 0
            store_seq(&self.bases[window], 0)
            if base:
                code = xt_unmap(<void *>base, self.bytes[window])
                failure = failure or code
            self.bytes[window] = 0
        self.files = []
        self.mapped_files = 0
        if failure:
            raise _system_error(failure, "unmapping")
        return 0

    @property
    def mapped(self):
        """How many windows are mapped, those of memory included."""
        return sum([1 for window in range(self.count) if self.mappings[window]])

    @property
    def reserved_bytes(self):
        """Address space of all windows that are mapped, in bytes."""
        return sum([self.bytes[window] for window in range(self.count) if self.mappings[window]])

    def stats(self):
        """Windows, and how many files are mapped now, may be, and were at most; how often a mapping was recycled, shown
        again before that, made beyond the budget, and couldn't be unmapped; address space reserved, in bytes."""
        return dict(windows=self.count, mapped=self.mapped_files, budget=self.budget, mapped_peak=self.mapped_peak,
                    recycled=self.recycled, revived=self.revived, over_budget=self.over_budget,
                    unmap_failures=self.unmap_failures, reserved_bytes=self.reserved_bytes)

    def __len__(self):
        return self.count

    def __repr__(self):
        return f"<Windows: {self.count}, {self.mapped} mapped>"
