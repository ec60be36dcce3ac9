"""Right of way for the threads that carry commits. docs: right_of_way.pxd."""

import os

from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
)
from libc.stdint cimport UINT64_MAX, uint64_t

from xtree.persistence.base.atomics cimport compare_exchange, fetch_add, load_relaxed, store_relaxed, store_seq

cdef extern from "pythread.h" nogil:
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible) noexcept

cdef enum:
    ACQUIRED = 1
    LONGEST_STOP_US = 20000

cdef uint64_t closed = 0
cdef PyThread_type_lock gate = NULL


def _begin():
    """At import, and in a forked child. There the lock of the parent is left as it is: nobody knows who had it."""
    global gate
    cdef PyThread_type_lock made = PyThread_allocate_lock()
    if made == NULL:
        raise MemoryError("no memory for a lock")
    gate = made
    store_relaxed(&wanting, 0)
    store_relaxed(&closed, 0)


_begin()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)


cdef void want_gil() noexcept nogil:
    fetch_add(&wanting, 1)
    if not load_relaxed(&closed) and PyThread_acquire_lock(gate, NOWAIT_LOCK):
        store_seq(&closed, 1)


cdef void got_gil() noexcept nogil:
    if fetch_add(&wanting, UINT64_MAX) == 1 and compare_exchange(&closed, 1, 0):    # minus one
        PyThread_release_lock(gate)


cdef void let_them_pass() noexcept:
    cdef int status
    with nogil:
        status = PyThread_acquire_lock_timed(gate, LONGEST_STOP_US, 0)
    if status == ACQUIRED:
        PyThread_release_lock(gate)
