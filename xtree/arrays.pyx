"""Borrowed input and growing output of the reading modules."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from xtree.persistence.breath cimport Breath, copy_block, first_breath, spend
from xtree.persistence.memory cimport allocate, reallocate, release

import numpy as np

cdef extern from "persistence/platform_map.h" nogil:
    void ask_for_huge_pages "xt_ask_for_huge_pages"(void *base, uint64_t bytes) noexcept

cdef enum:
    FIRST_BYTES = 1024              # as much as an allocator has at hand
    COPIED_BYTES = 65536            # up to here a copy is cheaper than handing the memory over
    LARGE_BYTES = 4194304           # from here on memory is touched in huge pages where the system has them

cdef object _int64 = np.dtype(np.int64)
cdef object _empty = np.empty
cdef object _frombuffer = np.frombuffer


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
        if room < LARGE_BYTES:
            data = <char *>reallocate(self.data, room)
            if data == NULL:
                raise_no_memory()
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


cdef int raise_no_memory() except -1 with gil:
    raise MemoryError
