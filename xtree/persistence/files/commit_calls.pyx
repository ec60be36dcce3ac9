"""The system calls of a commit.

A thread that gives the GIL away in the middle of a commit, while others want it, has to wait for it again: up to the
switch interval of 5 ms, with the turn held. So calls that take about a microsecond, as long as it takes to give the GIL
away, keep it, and after a sync queries give way.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint64_t

import os

from xtree.persistence.base.right_of_way cimport begin_sync, end_sync, got_gil, want_gil

cdef extern from "commit_calls.h" nogil:
    bint XT_HAS_COMMIT_CALLS
    int xt_write_at(int fd, const void *data, size_t n, uint64_t offset, size_t *written) noexcept
    int xt_sync_data(int fd) noexcept
    int xt_identity(const char *path, uint64_t *device, uint64_t *inode) noexcept

AVAILABLE = bool(XT_HAS_COMMIT_CALLS)


def write_at(int fd, data, uint64_t offset):
    """Writes a contiguous buffer, or the beginning of it, at an offset; returns how many bytes. Raises OSError."""
    cdef Py_buffer view
    cdef size_t written = 0
    cdef int code
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    code = xt_write_at(fd, view.buf, view.len, offset, &written)
    PyBuffer_Release(&view)
    if code:
        raise OSError(code, os.strerror(code))
    return written


def sync_data(int fd):
    """Returns when the data of a file are on the disk. Raises OSError. Signals wait."""
    cdef int code
    with nogil:
        begin_sync()
        code = xt_sync_data(fd)
        end_sync()
        want_gil()
    got_gil()
    if code:
        raise OSError(code, os.strerror(code))


def identity_of(bytes path not None):
    """(device, inode) of what a path leads to. Raises OSError."""
    cdef uint64_t device = 0, inode = 0
    cdef int code = xt_identity(PyBytes_AS_STRING(path), &device, &inode)
    if code:
        raise OSError(code, os.strerror(code), path)
    return device, inode
