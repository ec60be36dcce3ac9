"""Fork hooks: what a fork does to the stores of the process.

A fork copies memory as it is at one moment, and of the threads only the one that forks. A durable store, with its
threads, its lock and its files, belongs to the parent alone: in the child it is at its end. A store in memory is held
still before the fork: while nobody commits or allocates in it, it is whole, and the child goes on with its copy.

The locks of commits are taken before any store's own lock, since a thread that has a lock of commits may wait for that
one (lock_ranks.pxd). A fork by garbage collection, in the middle of what others wait for, waits for nothing. No fork
waits for long: another library's hook may hold up the threads that have the locks. A store that can't be held still is
lost to the child.
"""

import os

from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
)
from cpython.weakref cimport PyWeakref_NewRef
from libc.stdint cimport uint64_t

from xtree.persistence.base.lock_ranks cimport FREE, held, resume
from xtree.persistence.base.monotonic cimport xt_monotonic_ns
from xtree.persistence.base.pythread cimport ACQUIRED, PyThread_acquire_lock_timed, PyThread_get_thread_ident
from xtree.persistence.store.store cimport CLOSED, FORKED, Store, drop_lock, holds_lock, note_holder

cdef uint64_t LONGEST_WAIT_NS = 2000000000
cdef set _stores = set()            # weak references to all
cdef PyThread_type_lock _forking = PyThread_allocate_lock()     # taken by the thread that forks
cdef unsigned long _forker = 0      # that thread; 0: none
cdef dict _still = {}               # Store -> None: those whose lock of commits it has
cdef list _locked = []              # stores whose own lock it has as well
cdef int _nested = 0                # forks by garbage collection in the middle of that


def watch_forks(Store store not None):
    """Makes the hooks below look after a store from now on; called for every store as it is made."""
    _stores.add(PyWeakref_NewRef(store, _stores.discard))


def _hold_still():
    """Before a fork. Waits without handling signals: what a handler raised would be lost."""
    global _forker, _nested
    cdef Store store
    cdef uint64_t until_ns = xt_monotonic_ns() + LONGEST_WAIT_NS if held() == FREE else 0
    if _forker == PyThread_get_thread_ident():
        _nested += 1
        return
    if not take_until(_forking, until_ns):
        return
    _forker = PyThread_get_thread_ident()
    while True:
        while _stop_commits(until_ns):
            pass
        for store in _still:
            if not holds_lock(store) and take_until(store.lock, until_ns):
                note_holder(store)
                _locked.append(store)
        if xt_monotonic_ns() >= until_ns or not _moving():
            return
        _unlock_all()               # while it waited for one store, another one was made


cdef bint take_until(PyThread_type_lock lock, uint64_t until_ns) noexcept:
    """Takes a lock, waiting without the GIL up to a moment of the monotonic clock."""
    cdef uint64_t now = xt_monotonic_ns()
    cdef long long left = 0 if now >= until_ns else (until_ns - now) // 1000
    cdef bint taken = PyThread_acquire_lock(lock, NOWAIT_LOCK)
    if not taken and left:
        with nogil:
            taken = PyThread_acquire_lock_timed(lock, left, 0) == ACQUIRED
    return taken


def _moving():
    """The open stores in memory whose commits aren't stopped."""
    cdef Store store
    found = []
    for reference in list(_stores):
        store = reference()
        if store is not None and store.path is None and store.status < CLOSED and store not in _still:
            found.append(store)
    return found


def _stop_commits(uint64_t until_ns):
    """Takes the lock of commits of each store that `_moving` finds; returns whether it could take one."""
    taken = False
    for store in _moving():
        if store.stop_commits(until_ns):
            _still[store] = None
            taken = True
    return taken


cdef int _unlock_all() except -1:
    cdef Store store
    while _locked:
        store = _locked.pop()
        drop_lock(store)
    return 0


def _go_on():
    """After a fork, in the parent, and in the child when all is well there."""
    global _forker, _nested
    if _forker == PyThread_get_thread_ident():
        if _nested:
            _nested -= 1
            return
        _unlock_all()
        while _still:
            _still.popitem()[0].let_commit()   # the last one first
        _forker = 0
        PyThread_release_lock(_forking)


def _forked():
    """In a forked child."""
    global _forking, _forker, _nested
    cdef Store store
    if _forker != PyThread_get_thread_ident():
        _still.clear()
        _locked.clear()
        _forker = 0
        _forking = PyThread_allocate_lock()
    whole = set(_locked)
    for reference in list(_stores):
        store = reference()
        if store is None:
            continue
        if store in whole and store.status < CLOSED:
            store.go_on_in_child()
            continue
        store.status = FORKED
        if store.windows.recycler is not None:
            store.windows.recycler.forget_thread()
    _nested = 0
    _go_on()
    resume(FREE)                    # what its thread held is its parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_still, after_in_parent=_go_on, after_in_child=_forked)
