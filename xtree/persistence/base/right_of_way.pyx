"""Right of way: who gets the GIL, between commits and queries. docs: right_of_way.pxd."""

import os

from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
)
from libc.stdint cimport UINT64_MAX, uint64_t

from xtree.persistence.base.atomics cimport compare_exchange, fetch_add, load_relaxed, store_relaxed, store_seq
from xtree.persistence.base.monotonic cimport xt_fine_ns
from xtree.persistence.base.pythread cimport ACQUIRED, PyThread_acquire_lock_timed

cdef enum:
    LONGEST_STOP_US = 20000
    SLICE_US = 500              # of the writers
    PAUSE_US = 200              # of the queries then

cdef uint64_t closed = 0
cdef PyThread_type_lock gate = NULL
cdef uint64_t slice_began = 0   # a moment of the monotonic clock
cdef PyThread_type_lock never = PyThread_allocate_lock()    # nobody gives it back


def _begin():
    """At import, and in a forked child. There the lock of the parent is left as it is: nobody knows who had it."""
    global gate
    cdef PyThread_type_lock made = PyThread_allocate_lock()
    store_relaxed(&wanting, 0)
    store_relaxed(&closed, 0)
    store_relaxed(&returning, 0)
    store_relaxed(&syncing, 0)
    if made == NULL:
        raise MemoryError("no memory for a lock")
    gate = made


PyThread_acquire_lock(never, NOWAIT_LOCK)
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


cdef void want_gil_for_query() noexcept nogil:
    fetch_add(&returning, 1)


cdef void got_gil_for_query() noexcept nogil:
    fetch_add(&returning, UINT64_MAX)


cdef void begin_sync() noexcept nogil:
    fetch_add(&syncing, 1)


cdef void end_sync() noexcept nogil:
    fetch_add(&syncing, UINT64_MAX)


cdef void wait_at_gate() noexcept:
    cdef int status
    with nogil:
        status = PyThread_acquire_lock_timed(gate, LONGEST_STOP_US, 0)
        want_gil_for_query()
    got_gil_for_query()
    if status != ACQUIRED:
        return
    if load_relaxed(&wanting):      # since then, when the gate couldn't be closed; they need the GIL to want it no more
        store_seq(&closed, 1)
    else:
        PyThread_release_lock(gate)


cdef void wait_for_slice() noexcept:
    global slice_began
    if xt_fine_ns() - slice_began < 1000 * SLICE_US:
        return
    with nogil:
        PyThread_acquire_lock_timed(never, PAUSE_US, 0)
        want_gil()
    got_gil()
    slice_began = xt_fine_ns()


def waiting():
    """How many threads want the GIL for a commit."""
    return load_relaxed(&wanting)
