"""Windows: large mappings of data files, or of anonymous memory, each with a small logical id. docs: mmap_windows.pxd.

A file's window maps what the file has, and some of what it may grow into; only bytes below the file's end may be
touched. A file is mapped at the first use of its window, so that opening an index with many files maps none; it is
mapped again when it has outgrown its mapping. The descriptor is needed for these moments only.
"""

import heapq
import logging
import os
import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.weakref cimport PyWeakref_NewRef
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.string cimport memcpy

from xtree.persistence.base.atomics cimport store_relaxed, store_release, store_seq
from xtree.persistence.base.memory cimport allocate_lines, allocate_zeroed, reallocate, release, release_lines

from xtree.errors import CapacityError

cdef extern from "platform_map.h" nogil:
    size_t xt_granularity() noexcept
    int xt_map_file(int fd, uint64_t bytes, int writable, void **base) noexcept
    int xt_map_anonymous(uint64_t bytes, void **base) noexcept
    int xt_unmap(void *base, uint64_t bytes) noexcept
    int xt_cover(void *base, uint64_t bytes) noexcept
    int xt_flush_map(void *base, uint64_t bytes) noexcept
    bint XT_SYNC_COVERS_UNMAPPED

if sys.byteorder != "little":
    raise ImportError("xtree stores little-endian pages and runs on little-endian machines only")

log = logging.getLogger("xtree")

cdef set _of_files = set()          # weak references to those that map files


def _cover_files_in_child():
    cdef Windows windows
    for reference in list(_of_files):
        windows = reference()
        if windows is not None:
            windows.cover_files()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cover_files_in_child)

cdef uint64_t MAX_WINDOW_BYTES = min(<uint64_t>1 << OFFSET_BITS, <uint64_t>sys.maxsize)
cdef uint64_t ANONYMOUS = UINT64_MAX    # in `touched`
DEFAULT_BUDGET = 64

cdef enum:
    LEAST_ROOM = 8                  # windows in the first tables
    LINE_BYTES = 64
    WINDOWS_A_LINE = 8              # bases that take the place of one entry
    LEAST_LENGTH = 1 << 20          # how much is mapped of a file that may grow
    LEAST_MAPPED = 1 << 16          # smaller windows of memory are blocks of the heap

assert sizeof(Window) == WINDOWS_A_LINE * sizeof(uint64_t)


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


# Makes room in the tables for one more window. They are copied while nobody can change them, and then replaced.
# Outgrown tables stay for whoever is reading them; the address of each is in a word before the table that replaced it.
cdef int _make_room(Windows windows) except -1:
    cdef uint32_t room = max(2 * windows.room, <uint32_t>LEAST_ROOM)
    cdef Window *table
    cdef uint64_t *bases
    if windows.count < windows.room:
        return 0
    table = <Window *>allocate_zeroed(1 + room + room // WINDOWS_A_LINE, sizeof(Window))
    if table == NULL:
        raise MemoryError("no memory for the table of windows")
    table.spare = windows.table
    table += 1
    bases = <uint64_t *>(table + room)
    if windows.room:
        memcpy(table, <void *>windows.table, windows.room * sizeof(Window))
        memcpy(bases, <void *>windows.bases, windows.room * sizeof(uint64_t))
    store_release(&windows.table, <uint64_t>table)
    store_release(&windows.bases, <uint64_t>bases)
    windows.room = room
    return 0


cdef object _append(Windows windows, object file, uint64_t bytes, uint64_t end, void *base):
    cdef uint32_t window = windows.count
    cdef Window *at = windows.at(window)
    windows.files.append(file)
    at.bytes, at.length = bytes, bytes if base != NULL else 0
    at.mapping = <uint64_t>base
    at.busy = 0
    store_release(&at.end, end)
    store_relaxed(&at.touched, ANONYMOUS if file is None else 0)
    store_release(&at.announced, file is None)
    store_release(windows.base_of(window), <uint64_t>base)
    windows.count += 1
    return window


# Whether a window of memory is a block of the heap: many small trees would use up the mappings that a process may have.
cdef inline bint _is_block(const Window *at) noexcept nogil:
    return at.touched == ANONYMOUS and at.bytes < LEAST_MAPPED


cdef int _unmap(const Window *at) noexcept nogil:
    if _is_block(at):
        release_lines(<void *>at.mapping)
        return 0
    return xt_unmap(<void *>at.mapping, at.length)


# Makes a mapping visible and notes that it is in use.
cdef inline char *_show(Windows windows, uint32_t window) noexcept:
    cdef Window *at = windows.at(window)
    windows.tick += 1
    store_relaxed(&at.touched, windows.tick)
    store_seq(windows.base_of(window), at.mapping)
    return <char *>at.mapping


# Maps a file up to its end, `end`, and if possible further, so that it is not mapped anew each time it grows: the
# length doubles each time.
cdef int _map(Windows windows, uint32_t window, object file, uint64_t end, void **base, uint64_t *length) except -1:
    cdef uint64_t needed = min(end + <uint64_t>(-end % xt_granularity()), windows.at(window).bytes)
    cdef uint64_t wanted = needed
    cdef int code, fd = file.fileno()
    if windows.writable:
        wanted = LEAST_LENGTH
        while wanted < needed:
            wanted *= 2
        wanted = min(wanted, windows.at(window).bytes)
    length[0] = wanted
    code = xt_map_file(fd, wanted, windows.writable, base)
    if code and needed < wanted:
        length[0] = needed
        code = xt_map_file(fd, needed, windows.writable, base)
    if code:
        raise _system_error(code, f"mapping {needed} bytes of {windows.files[window]!r}")
    return 0


# Maps a file's window, unless another thread was here while the file was being opened.
cdef char *_map_file(Windows windows, uint32_t window, object file) except NULL:
    cdef void *base = NULL
    cdef uint64_t length = 0
    cdef Window *at
    _check_window(windows, window)
    if not windows.at(window).mapping:
        _map(windows, window, file, windows.at(window).end, &base, &length)
        at = windows.at(window)
        at.mapping, at.length = <uint64_t>base, length
        windows.mapped_files += 1
        windows.mapped_peak = max(windows.mapped_peak, windows.mapped_files)
        windows.over_budget += windows.mapped_files > windows.budget
    return _show(windows, window)


# Replaces the mapping of a window by a larger one, if it is too short; a window that is hidden stays hidden. From the
# check to the end nobody else has the GIL.
cdef int _map_anew(Windows windows, uint32_t window, object file, uint64_t end) except -1:
    cdef void *base = NULL
    cdef void *larger
    cdef uint64_t length = 0
    cdef uint32_t room = 2 * windows.outgrown_room + 8
    cdef Window *at
    _check_window(windows, window)
    at = windows.at(window)
    if at.mapping and at.length < end:
        if windows.outgrown_count == windows.outgrown_room:
            larger = reallocate(windows.outgrown, room * sizeof(Outgrown))
            if larger == NULL:
                raise MemoryError("no memory for one more mapping")
            windows.outgrown = <Outgrown *>larger
            windows.outgrown_room = room
        _map(windows, window, file, end, &base, &length)
        at = windows.at(window)
        windows.outgrown[windows.outgrown_count] = Outgrown(at.mapping, at.length, window)
        windows.outgrown_count += 1
        at.mapping, at.length = <uint64_t>base, length
        if windows.base_of(window)[0]:
            store_seq(windows.base_of(window), at.mapping)
    store_release(&at.end, end)
    return 0


cdef class Windows:
    """The mappings of one store. `writable=False` maps files read-only."""

    def __cinit__(self, bint writable=True):
        self.bases = self.table = 0
        self.outgrown = NULL
        self.count = self.room = self.outgrown_count = self.outgrown_room = 0
        self.files = []
        self.writable = writable
        self.budget = DEFAULT_BUDGET
        _make_room(self)

    def __dealloc__(self):
        cdef uint32_t i
        cdef Window *table = <Window *>self.table
        cdef Window *before
        for i in range(self.count):
            if table[i].mapping:
                _unmap(&table[i])
        for i in range(self.outgrown_count):
            xt_unmap(<void *>self.outgrown[i].mapping, self.outgrown[i].length)
        release(self.outgrown)
        while table != NULL:
            before = <Window *>table[-1].spare
            release(table - 1)
            table = before

    def set_budget(self, uint32_t budget):
        """Sets how many files may be mapped before the recycler is asked to unmap some."""
        self.budget = budget

    def set_recycler(self, recycler):
        """Sets what is told of too many mappings: an object with wake() and stop(), neither of which maps anything."""
        self.recycler = recycler

    def add_file(self, file, uint64_t bytes, end=None):
        """Adds a window of up to `bytes` bytes over a file that goes to `end` (None: to the window's); returns its id.

        Maps nothing yet. `grow` is called when the file grows.

        The file has `opened()`, a context manager that gives an object with fileno(), and `keep()`, which is called
        before the first write through a mapping, and again before the first one after `expect_writes`.
        """
        cdef uint64_t file_end = bytes if end is None else end
        _check_new(self, bytes)
        if file_end > bytes:
            raise ValueError(f"a file of {file_end} bytes doesn't fit into a window of {bytes}")
        _make_room(self)
        if not self.files:
            _of_files.add(PyWeakref_NewRef(self, _of_files.discard))
        return _append(self, file, bytes, file_end, NULL)

    def add_anonymous(self, uint64_t bytes):
        """Adds a window of zeroed memory, mapped at once; returns its id. Memory is used as pages are touched.

        A small one is a block of the heap, aligned to cache lines.
        """
        cdef void *base = NULL
        cdef int code
        _check_new(self, bytes)
        _make_room(self)
        if bytes < LEAST_MAPPED:
            base = allocate_lines((bytes + LINE_BYTES - 1) // LINE_BYTES)
            if base == NULL:
                raise MemoryError(f"no memory for a window of {bytes} bytes")
        else:
            code = xt_map_anonymous(bytes, &base)
            if code:
                raise _system_error(code, f"mapping {bytes} bytes of memory")
        return _append(self, None, bytes, bytes, base)

    def grow(self, uint32_t window, uint64_t end):
        """Says that a window's file goes to `end` now: from here on pages may lie up to there.

        If that is beyond what is mapped, a larger mapping replaces the old one, which the recycler unmaps. Raises
        OSError, with everything as it was, and what opening the file raises.
        """
        _check_window(self, window)
        if end > self.at(window).bytes:
            raise ValueError(f"window {window} has {self.at(window).bytes} bytes, not {end}")
        if not self.at(window).mapping or end <= self.at(window).length:
            store_release(&self.at(window).end, end)
            return
        with self.files[window].opened() as file:
            _map_anew(self, window, file, end)
        if self.recycler is not None:
            self.recycler.wake()

    # Mapping, and the sampling of use: a call that meets a hidden base shows it again.

    cdef char *map_window(self, uint32_t window) except NULL:
        cdef char *base
        _check_window(self, window)
        base = <char *>self.base_of(window)[0]
        if base != NULL:
            return base
        if self.at(window).mapping:
            self.revived += 1
            return _show(self, window)
        with self.files[window].opened() as file:
            base = _map_file(self, window, file)
        if self.mapped_files > self.budget and self.recycler is not None:
            self.recycler.wake()
        return base

    def map(self, uint32_t window):
        """Maps a window now rather than at its first use, or shows it again. Mapping it twice is fine."""
        self.map_window(window)

    cdef int announce(self, uint32_t window) except -1:
        _check_window(self, window)
        store_release(&self.at(window).announced, 1)
        try:
            self.files[window].keep()
        except BaseException:
            store_release(&self.at(window).announced, 0)
            raise
        return 0

    def expect_writes(self, uint32_t window):
        """Makes the next write to a window be told to its file again; called as a sync of the file begins."""
        _check_window(self, window)
        if not self.is_anonymous(window):
            store_release(&self.at(window).announced, 0)

    # Recycling.

    cdef list hide(self, Py_ssize_t n):
        cdef uint32_t window
        candidates = []
        for window in range(self.count):
            if self.at(window).mapping and not self.is_anonymous(window) and self.may_go(window):
                candidates.append((self.at(window).touched, window))
        chosen = [found[1] for found in heapq.nsmallest(n, candidates)]
        for window in chosen:
            if window < self.count:
                store_seq(self.base_of(window), 0)
        return chosen

    cdef bint may_go(self, uint32_t window) noexcept:
        """Whether a window's mappings may go: no flush is using them, and none has to come before they go."""
        return not self.at(window).busy and (
            XT_SYNC_COVERS_UNMAPPED or not self.writable or not self.is_announced(window))

    cdef int drop(self, list windows) except -1:
        cdef uint32_t window
        cdef Window *at
        cdef uint64_t base, size
        cdef int dropped = 0
        for window in windows:
            if self.mapped_files <= self.budget:
                break
            at = self.at(window)
            if window >= self.count or self.base_of(window)[0] or not at.mapping or at.busy:
                continue
            base, size = at.mapping, at.length
            at.mapping = 0                      # from here on a call maps it anew
            self.mapped_files -= 1
            self.unmap(base, size)
            self.recycled += 1
            dropped += 1
        return dropped

    cdef int unmap(self, uint64_t base, uint64_t size) except -1:
        """Unmaps without the GIL; a failure is only counted and logged."""
        cdef int code
        with nogil:
            code = xt_unmap(<void *>base, size)
        if code:
            self.unmap_failures += 1
            log.warning("xtree: %s", _system_error(code, f"unmapping {size} bytes"))
        return 0

    cdef list find_outgrown(self):
        cdef uint32_t i
        return [self.outgrown[i].mapping for i in range(self.outgrown_count) if self.may_go(self.outgrown[i].window)]

    cdef int drop_outgrown(self, list mappings) except -1:
        cdef uint64_t mapping
        cdef Outgrown old
        cdef uint32_t i
        cdef int dropped = 0
        for mapping in mappings:
            for i in range(self.outgrown_count):
                if self.outgrown[i].mapping == mapping and self.may_go(self.outgrown[i].window):
                    old = self.outgrown[i]
                    self.outgrown_count -= 1
                    self.outgrown[i] = self.outgrown[self.outgrown_count]
                    self.unmap(old.mapping, old.length)
                    dropped += 1
                    break
        return dropped

    def hide_windows(self, Py_ssize_t n):
        """Hides up to n windows of files, those longest untouched; returns which. For tests and the recycler."""
        return self.hide(n)

    def drop_hidden(self, list windows):
        """Unmaps those of the windows that are still hidden, until the budget is kept; returns how many."""
        return self.drop(windows)

    def outgrown_mappings(self):
        """The mappings that larger ones have replaced, as numbers, unless a flush must come before they go."""
        return self.find_outgrown()

    def drop_mappings(self, list mappings):
        """Unmaps outgrown mappings, once nobody can have a pointer into them; returns how many."""
        return self.drop_outgrown(mappings)

    # Contents.

    def is_mapped(self, uint32_t window):
        """Whether a window is mapped."""
        _check_window(self, window)
        return self.at(window).mapping != 0

    def is_hidden(self, uint32_t window):
        """Whether a window is mapped, but has to be shown again before its next use."""
        _check_window(self, window)
        return self.at(window).mapping != 0 and self.base_of(window)[0] == 0

    def bytes_of(self, uint32_t window):
        """How large a window may get."""
        _check_window(self, window)
        return self.at(window).bytes

    def end(self, uint32_t window):
        """How far a window's file goes."""
        _check_window(self, window)
        return self.end_of(window)

    def mapped_bytes(self, uint32_t window):
        """How much of a window is mapped: 0 when nothing is."""
        _check_window(self, window)
        return self.at(window).length if self.at(window).mapping else 0

    def write(self, uint32_t window, uint64_t offset, data):
        """Copies bytes, a buffer, into a window of anonymous memory."""
        cdef Py_buffer view
        cdef uint64_t size
        _check_window(self, window)
        if self.files[window] is not None:
            raise ValueError(f"window {window} is of {self.files[window]!r}, not of anonymous memory")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            size = self.at(window).bytes
            if offset > size or <uint64_t>view.len > size - offset:
                raise ValueError(f"bytes {offset} to {offset + view.len} aren't inside window {window} "
                                 f"of {size} bytes")
            memcpy(<char *>self.base_of(window)[0] + offset, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def flush(self, uint32_t window, uint64_t offset, uint64_t length):
        """Writes changed bytes of a file's window to its file and waits for that (msync).

        On Linux a sync of the descriptor covers them too; macOS and Windows need this before it. A window that was
        unmapped since it was written is mapped again, for its pages may still be on their way.
        """
        cdef uint64_t size
        cdef uint32_t i
        _check_window(self, window)
        size = self.at(window).bytes
        if length > size or offset > size - length:
            raise ValueError(f"bytes {offset} to {offset + length} aren't inside window {window} of {size} bytes")
        if length == 0 or self.at(window).touched == 0:
            return
        self.at(window).busy += 1
        try:
            if not self.at(window).mapping:
                self.map_window(window)
            mappings = [(self.outgrown[i].mapping, self.outgrown[i].length)
                        for i in range(self.outgrown_count) if self.outgrown[i].window == window]
            mappings.append((self.at(window).mapping, self.at(window).length))
            for base, size in mappings:
                self.flush_mapping(window, base, offset, min(offset + length, size))
        finally:
            self.at(window).busy -= 1

    cdef int flush_mapping(self, uint32_t window, uint64_t base, uint64_t offset, uint64_t end) except -1:
        cdef uint64_t start = offset - offset % xt_granularity()
        cdef int code = 0
        if start < end:
            with nogil:
                code = xt_flush_map(<void *>(base + start), end - start)
        if code:
            raise _system_error(code, f"flushing {end - start} bytes of {self.files[window]!r}")
        return 0

    cdef int cover_files(self) except -1:
        """In a forked child: puts memory of the child's own in the place of every mapping of a file.

        A call of the parent's that the child goes on with, from its middle, finds zeros there, and writes to no file.
        """
        cdef uint32_t window, i
        for window in range(self.count):
            if self.at(window).mapping and not self.is_anonymous(window):
                xt_cover(<void *>self.at(window).mapping, self.at(window).length)
        for i in range(self.outgrown_count):
            xt_cover(<void *>self.outgrown[i].mapping, self.outgrown[i].length)
        return 0

    cpdef int unmap_all(self) except -1:
        """Unmaps and forgets every window, and ends the recycler. Nothing may read through a pointer any more."""
        cdef uint32_t window, count, i
        cdef Window *at
        cdef int code, failure = 0
        recycler, self.recycler = self.recycler, None
        if recycler is not None:
            recycler.stop()
        count, self.count = self.count, 0
        for window in range(count):
            at = self.at(window)
            store_seq(self.base_of(window), 0)
            if at.mapping:
                code = _unmap(at)
                failure = failure or code
            at.mapping = at.bytes = 0
            store_release(&at.end, 0)
        for i in range(self.outgrown_count):
            code = xt_unmap(<void *>self.outgrown[i].mapping, self.outgrown[i].length)
            failure = failure or code
        self.outgrown_count = 0
        self.files = []
        self.mapped_files = 0
        if failure:
            raise _system_error(failure, "unmapping")
        return 0

    @property
    def mapped(self):
        """How many windows are mapped, those of memory included."""
        return sum([1 for window in range(self.count) if self.at(window).mapping])

    @property
    def reserved_bytes(self):
        """Address space of all mappings, in bytes."""
        cdef uint32_t i
        return (sum([self.at(i).length for i in range(self.count) if self.at(i).mapping])
                + sum([self.outgrown[i].length for i in range(self.outgrown_count)]))

    def stats(self):
        """How many windows there are; how many files are mapped now, may be, and were at most; how many mappings that
        larger ones have replaced aren't gone yet; how often a mapping was recycled, shown again before that, made
        beyond the budget, and couldn't be unmapped; address space reserved, in bytes."""
        return dict(windows=self.count, mapped=self.mapped_files, budget=self.budget, mapped_peak=self.mapped_peak,
                    outgrown=self.outgrown_count, recycled=self.recycled, revived=self.revived,
                    over_budget=self.over_budget,
                    unmap_failures=self.unmap_failures, reserved_bytes=self.reserved_bytes)

    def __len__(self):
        return self.count

    def __repr__(self):
        return f"<Windows: {self.count}, {self.mapped} mapped>"
