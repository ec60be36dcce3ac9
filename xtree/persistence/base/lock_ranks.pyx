"""Lock ranks: what a thread may wait for, and what it is refused where it would wait for itself. docs: lock_ranks.pxd.

All of it is compiled, so no signal handler runs between taking a lock and noting its rank; and since nothing here
allocates objects that the garbage collector tracks, no finalizer does either.
"""

import os
import threading
from _thread import allocate_lock

cimport cython
from cpython.pythread cimport NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_type_lock
from libc.stdint cimport uint64_t

from xtree.persistence.base.monotonic cimport xt_monotonic_ns
from xtree.persistence.base.pythread cimport PyThread_acquire_lock_timed, PyThread_get_thread_ident

from xtree.errors import TransactionError

cdef extern from "thread_rank.h" nogil:
    int xt_thread_rank

cdef enum:
    REST_US = 100

cdef PyThread_type_lock never = PyThread_allocate_lock()    # nobody gives it back
PyThread_acquire_lock(never, NOWAIT_LOCK)

cdef tuple PLACES = (
    "", "a thread of the index", "the start of the index's threads", "a commit", "the first write after an open",
    "a change of the manifest", "a write of the superblock", "a sync", "the allocation of a page",
    "the table of data files", "a file number", "a wait for room in the log", "the table of open files",
    "a read or write of a file",
)


cdef void rest() noexcept nogil:
    PyThread_acquire_lock_timed(never, REST_US, 0)


cdef int held() noexcept nogil:
    return xt_thread_rank


cdef int hold(int rank) noexcept nogil:
    global xt_thread_rank
    cdef int before = xt_thread_rank
    if rank > before:
        xt_thread_rank = rank
    return before


cdef void resume(int before) noexcept nogil:
    global xt_thread_rank
    xt_thread_rank = before


cdef object refusal(str doing):
    return TransactionError(f"{doing} can't wait here, where it could wait for itself: it was called in the middle of "
                            f"{PLACES[held()]}, by a finalizer, a signal handler or a callback")


cdef int require_free(str doing) except -1:
    if held() != FREE:
        raise refusal(doing)
    return 0


def require_nothing_held(str doing not None):
    """Raises TransactionError when the calling thread holds anything that others may wait for."""
    require_free(doing)


def rank_held():
    """The highest rank of what the calling thread holds, FREE when that is nothing."""
    return held()


def _forked():
    """In a forked child: what its thread held belongs to the parent."""
    resume(FREE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@cython.final
cdef class RankedLock:
    """A lock with a rank. Threads wait for it in the order of ranks; out of order it is only tried, and a call that
    finds it taken is refused.

    reentrant: its owner may take it again, and what it guards allows for that.
    """

    def __init__(self, int rank, bint reentrant=False):
        self.rank = rank
        self.reentrant = reentrant
        self.lock = allocate_lock()
        self.owner = 0
        self.depth = 0
        self.before = FREE

    cdef bint take(self, bint blocking, double timeout) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.owner == me and self.reentrant:
            self.depth += 1
            return True
        if not self.lock.acquire(False):
            if not blocking:
                return False
            if self.owner == me or held() >= self.rank:
                raise refusal("this call")
            if not self.lock.acquire(True, timeout):
                return False
        self.owner = me
        self.depth = 1
        self.before = hold(self.rank)
        return True

    cdef bint take_silently(self, uint64_t until_ns) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.owner == me:
            return False
        while not self.lock.acquire(False):
            if xt_monotonic_ns() >= until_ns:
                return False
            with nogil:
                rest()
        self.owner = me
        self.depth = 1
        self.before = hold(self.rank)
        return True

    cdef int give_back(self) except -1:
        if self.owner != PyThread_get_thread_ident():
            raise RuntimeError("a lock is given back by the thread that took it")
        self.depth -= 1
        if self.depth == 0:
            self.owner = 0
            resume(self.before)
            self.lock.release()
        return 0

    def acquire(self, bint blocking=True, double timeout=-1.0):
        """Takes the lock; returns whether it did. Raises TransactionError where it could wait for ever."""
        return self.take(blocking, timeout)

    def release(self):
        """Gives it back."""
        self.give_back()

    def locked(self):
        """Whether a thread has it."""
        return self.owner != 0

    def __enter__(self):
        self.take(True, -1.0)
        return self

    def __exit__(self, *exception):
        self.give_back()

    # What threading.Condition asks for.

    def _is_owned(self):
        return self.owner == PyThread_get_thread_ident()

    def _release_save(self):
        self.give_back()

    def _acquire_restore(self, saved):
        interrupt = None
        while True:
            try:
                self.take(True, -1.0)
                break
            except BaseException as arrived:    # a signal handler's; the waiting thread gives the lock back after this
                interrupt = arrived
        if interrupt is not None:
            raise interrupt


class Worker(threading.Thread):
    """A daemon thread that others wait for: from its first instruction on it waits for nothing that they may hold."""

    def __init__(self, target, str name):
        super().__init__(target=target, name=name, daemon=True)

    def _bootstrap(self):
        # `threading` itself allocates before run(), and the thread that starts this one waits for that.
        hold(IN_THREAD)
        super()._bootstrap()

    def run(self):
        """Runs the target."""
        hold(IN_THREAD)
        super().run()
