"""Borrowed input and growing output of the reading modules."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY

from xtree.persistence.base.breath cimport Breath, Team, copy_block, first_breath, spend
from xtree.persistence.base.memory cimport allocate, reallocate, release

import numpy as np

from xtree.errors import InvalidBoxError
from xtree.persistence.files import platform_fs

cdef extern from "platform_map.h" nogil:
    void ask_for_huge_pages "xt_ask_for_huge_pages"(void *base, uint64_t bytes) noexcept

cdef enum:
    FIRST_BYTES = 1024              # as much as an allocator has at hand
    COPIED_BYTES = 65536            # up to here a copy is cheaper than handing the memory over
    LARGE_BYTES = 4194304           # from here on memory is touched in huge pages where the system has them
    MAPPED_BYTES = 1 << 26          # from here on an allocator maps memory, and moves it without copying
    MOST_SPARE_BYTES = 1 << 23
    MOST_SPARES = 2                 # as many as one call uses

cdef object _int64 = np.dtype(np.int64)
cdef object _empty = np.empty
cdef object _frombuffer = np.frombuffer
cdef list _spares = []              # arenas; guarded by the GIL


cdef Py_ssize_t borrow(object array, Py_buffer *view, Py_ssize_t row_bytes) except -1:
    cdef Py_ssize_t rows
    PyObject_GetBuffer(array, view, PyBUF_SIMPLE)
    rows = view.len // row_bytes
    if rows * row_bytes != view.len:
        size = view.len
        PyBuffer_Release(view)
        raise ValueError(f"array of {size} bytes, expected rows of {row_bytes} bytes")
    return rows


cdef char *data_of(object array) except NULL:
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    cdef char *data = <char *>view.buf
    PyBuffer_Release(&view)
    return data


cdef bint read_box(const double *shared, int dims, double *box) noexcept nogil:
    cdef int axis
    cdef bint fine = True
    for axis in range(2 * dims):
        box[axis] = read_once(shared + axis)
    for axis in range(dims):
        fine &= (box[axis] <= box[dims + axis]) & (box[axis] > -INFINITY) & (box[dims + axis] < INFINITY)
    return fine


cdef int raise_changed(int64_t row) except -1 with gil:
    raise InvalidBoxError(f"invalid box: row {row} was changed during the call, and is none any more")


def copy_array(target, source, Team team=None) -> None:
    """Copies a contiguous array into another one of as many bytes. Raises what a breath does."""
    cdef Py_buffer view
    cdef Breath breath
    cdef char *place = data_of(target)
    cdef Py_ssize_t n = borrow(source, &view, 1)
    first_breath(&breath, team)
    try:
        with nogil:
            copy_block(place, <const char *>view.buf, n, &breath)
    finally:
        PyBuffer_Release(&view)


def as_pairs(offsets, values):
    """The rows values[offsets[i]:offsets[i + 1]] as pairs: int64 (2, n), the row of each value, and the value.

    `offsets` is int64 (m + 1,), from 0 to n, `values` int64 (n,). Raises MemoryError, and what a breath does.
    """
    cdef Py_buffer starts, found
    cdef const int64_t *start
    cdef int64_t *rows
    cdef int64_t i, place
    cdef int64_t m = borrow(offsets, &starts, sizeof(int64_t)) - 1
    cdef int64_t n
    cdef Breath breath
    first_breath(&breath, None)
    try:
        n = borrow(values, &found, sizeof(int64_t))
        try:
            require_memory(2.0 * n * sizeof(int64_t))
            pairs = _empty((2, n), _int64)
            rows = <int64_t *>data_of(pairs)
            start = <const int64_t *>starts.buf
            with nogil:
                for i in range(m):
                    for place in range(start[i], start[i + 1]):
                        rows[place] = i
                    spend(&breath, 4 + start[i + 1] - start[i])
                copy_block(<char *>(rows + n), <const char *>found.buf, n * sizeof(int64_t), &breath)
            return pairs
        finally:
            PyBuffer_Release(&found)
    finally:
        PyBuffer_Release(&starts)


@cython.freelist(8)
cdef class Arena:

    def __cinit__(self):
        self.data = NULL
        self.used = 0
        self.room = 0

    def __dealloc__(self):
        release(self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.used, False, flags)

    cdef int grow(self, Py_ssize_t more) except -1 nogil:
        cdef Py_ssize_t room = max(2 * self.room, self.used + more, FIRST_BYTES)
        cdef char *data
        if room >= MAPPED_BYTES:
            room = _affordable(self.used, self.used + more, room)
        if room < LARGE_BYTES or self.room >= MAPPED_BYTES:
            data = <char *>reallocate(self.data, room)
            if data == NULL:
                raise_no_memory()
            if room >= LARGE_BYTES:
                ask_for_huge_pages(data, room)
        else:                       # moved here and not by reallocate, which would touch it in small pages
            data = <char *>allocate(room)
            if data == NULL:
                raise_no_memory()
            ask_for_huge_pages(data, room)
            if self.used > 0:
                memcpy(data, self.data, self.used)
            release(self.data)
        self.data = data
        self.room = room
        return 0

    cdef object to_array(self, object dtype):
        cdef char *data
        if self.used <= COPIED_BYTES:
            array = _empty(self.used // dtype.itemsize, dtype)
            if self.used:
                memcpy(data_of(array), self.data, self.used)
            return array
        data = <char *>reallocate(self.data, self.used)
        if data != NULL:            # else the memory stays larger than it need be
            self.data = data
            self.room = self.used
        return _frombuffer(self, dtype)


cdef Py_ssize_t _affordable(Py_ssize_t used, Py_ssize_t wanted, Py_ssize_t room) except -1 with gil:
    """As many of `room` bytes as the system has, besides those used; at least `wanted`. Raises MemoryError."""
    free = platform_fs.available_memory()
    if free is None:
        return room
    if wanted - used > free - free // 8:        # not to the last byte: other processes need memory, too
        raise MemoryError(f"no memory for results of more than {used} bytes: the system has {free} left")
    return min(room, used + free - free // 8)


cdef int require_memory(double size) except -1:
    if size < MAPPED_BYTES:
        return 0
    free = platform_fs.available_memory()
    if free is not None and size > free:
        raise MemoryError(f"no memory for results of {size:.0f} bytes: the system has {free} left")
    return 0


cdef Arena take_arena():
    return _spares.pop() if _spares else Arena()


cdef int keep_arena(Arena arena) except -1:
    if arena.room <= MOST_SPARE_BYTES and len(_spares) < MOST_SPARES:
        arena.used = 0
        _spares.append(arena)
    return 0


def forget_spares() -> None:
    """Gives back the memory that is kept for the next calls; 16 MiB at most."""
    _spares.clear()


cdef int raise_no_memory() except -1 with gil:
    raise MemoryError
