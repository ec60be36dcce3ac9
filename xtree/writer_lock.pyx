"""Writer locks: which thread is writing to a tree, and what the next one builds on. docs: writer_lock.pxd.

It is compiled: no signal handler runs between two statements, only inside the Python code that they call.
"""

cimport cython

import threading
import time

from cpython.exc cimport PyErr_CheckSignals
from cpython.weakref cimport PyWeakref_NewRef

from xtree.persistence.base.forks cimport forks_seen
from xtree.persistence.base.lock_ranks cimport rest
from xtree.persistence.base.pythread cimport PyThread_get_thread_ident
from xtree.persistence.session cimport Session

from xtree.errors import ClosedError, TransactionError

cdef enum:
    TRIES = 30                      # with the GIL, before a thread waits in a writer lock itself

cdef object monotonic = time.monotonic
cdef double LONGEST_WAIT_S = threading.TIMEOUT_MAX


cdef class Handle:

    cdef int need_open(self) except -1:
        return 0

    cdef bint was_closed(self) noexcept:
        return self.closed


@cython.final
@cython.no_gc
cdef class Tip:
    """What a scope has queued; the next writer of one of its trees builds on it. Empty once the scope has ended."""

    def __cinit__(self, write_set, dict changes):
        self.write_set = write_set
        self.changes = changes


@cython.final
cdef class WriterLock:
    """Lets one writer at a time change a tree, and knows which thread that is."""

    def __init__(self, WriterLocks locks not None, str name not None):
        self.name = name
        self.table = PyWeakref_NewRef(locks, None)
        self.holding = locks.holding
        self.lock = threading.Lock()
        self.forks = forks_seen()

    # Compiled, so that two threads that ask for a tree at the same time get one handle without a lock.

    def get_handle(self, Session session not None):
        """The handle of the tree in a session, as long as somebody holds it; else None."""
        for reference in self.references():
            handle = reference()
            if handle is not None and handle._session is session:
                return handle
        return None

    def set_handle(self, handle not None, before):
        """Makes `handle` its session's handle in place of `before`, unless there is another; returns the one in use."""
        present = self.get_handle(handle._session)
        if present is not None and present is not before:
            return present
        reference = PyWeakref_NewRef(handle, None)
        others = [other for other in self.references() if other() is not None and other() is not present]
        self.handles = (reference, *others) if others else reference
        return handle

    cdef tuple references(self):
        if self.handles is None:
            return ()
        return self.handles if isinstance(self.handles, tuple) else (self.handles,)

    cdef int refresh(self) except -1:
        cdef WriterLocks table
        if self.forks != forks_seen():
            table = self.table()
            if table is not None and table.forks != forks_seen():
                table.forks = forks_seen()
                table.holding.clear()
            self.lock = threading.Lock()
            self.holder = self.tip = None
            self.forks = forks_seen()
        return 0

    cdef bint holds_another(self) except -1:
        return PyThread_get_thread_ident() in self.holding

    cdef int take(self, object deadline, bint wait, bint queueing) except -1:
        cdef object me = PyThread_get_thread_ident()
        self.refresh()
        if not self.lock.acquire(False):
            if self.holder == me:
                raise TransactionError(f"this thread is in a transaction on tree {self.name!r} already: use that one, "
                                       "or end it first")
            if not wait:
                raise TransactionError(f"tree {self.name!r} is being written by another thread, and waiting inside a "
                                       "transaction could last for ever: use Runtime.transaction(trees=[...])")
            if (queueing or not self.try_again(deadline)) and not self.lock.acquire(True, left_until(deadline)):
                raise TimeoutError(f"tree {self.name!r} is still being written by another transaction")
        try:
            self.holding[me] = self.holding.get(me, 0) + 1
        except BaseException:
            self.lock.release()
            raise
        self.holder = me
        if self.dropped:
            self.give_back()
            raise ClosedError(f"tree {self.name!r} was dropped")
        return 0

    cdef bint try_again(self, object deadline) except -1:
        for _ in range(TRIES):
            if deadline is not None and monotonic() >= deadline:
                return False
            PyErr_CheckSignals()
            with nogil:
                rest()
            if self.lock.acquire(False):
                return True
        return False

    cdef int give_back(self) except -1:
        holder = self.holder
        self.holder = None
        if self.holding[holder] == 1:
            del self.holding[holder]
        else:
            self.holding[holder] -= 1
        self.lock.release()
        return 0

    cdef int retire(self) except -1:
        cdef WriterLocks table = self.table()
        self.dropped = True
        if table is not None and table.by_name.get(self.name) is self:
            del table.by_name[self.name]
        return 0


@cython.final
cdef class WriterLocks:
    """The writer locks of a store: of trees that exist, and of those that are being made.

    `holding` counts for each thread how many of these locks it holds: one that begins with some waits for no more, and
    one scope takes its locks in the order of their names, so that no two threads can wait for each other.
    """

    def __init__(self):
        self.by_name = {}
        self.holding = {}
        self.forks = forks_seen()

    def of(self, str name not None):
        """The lock of a name; one is made if need be."""
        lock = self.by_name.get(name)
        return self.by_name.setdefault(name, WriterLock(self, name)) if lock is None else lock

    def __len__(self):
        return len(self.by_name)

    def held_here(self, str name not None):
        """Whether the calling thread has the lock of a name."""
        cdef WriterLock lock = self.by_name.get(name)
        if lock is not None:
            lock.refresh()
        return lock is not None and lock.holder == PyThread_get_thread_ident()


cdef double left_until(object deadline) except? -1.0:
    """Seconds until a deadline, as Lock.acquire takes them: -1 is for ever."""
    if deadline is None:
        return -1.0
    return min(max(deadline - monotonic(), 0.0), LONGEST_WAIT_S)
