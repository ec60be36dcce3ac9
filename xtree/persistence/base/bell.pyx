"""Bell: ends one thread's sleep. docs: bell.pxd."""

cimport cython
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
)

import threading

from xtree.persistence.base.pythread cimport ACQUIRED, PyThread_acquire_lock_timed
from xtree.persistence.base.right_of_way cimport got_gil, want_gil

cdef double LONGEST_S = threading.TIMEOUT_MAX


@cython.final
cdef class Bell:
    """One thread sleeps in `get`; others ring, with the GIL."""

    def __cinit__(self):
        self.silent = PyThread_allocate_lock()
        if self.silent == NULL:
            raise MemoryError("no memory for a lock")
        PyThread_acquire_lock(self.silent, NOWAIT_LOCK)

    def __dealloc__(self):
        if self.silent != NULL:
            PyThread_free_lock(self.silent)

    cdef void ring(self) noexcept:
        PyThread_acquire_lock(self.silent, NOWAIT_LOCK)
        PyThread_release_lock(self.silent)

    cdef void silence(self) noexcept:
        PyThread_acquire_lock(self.silent, NOWAIT_LOCK)

    def get(self, timeout=None):
        """Sleeps until it is rung, at most `timeout` seconds; returns whether it was, and silences it."""
        cdef long long microseconds = -1 if timeout is None else <long long>(1e6 * min(timeout, LONGEST_S))
        cdef int status
        with nogil:
            status = PyThread_acquire_lock_timed(self.silent, microseconds, 0)
            want_gil()
        got_gil()
        return status == ACQUIRED

    def empty(self):
        """Whether it is silent."""
        if PyThread_acquire_lock(self.silent, NOWAIT_LOCK):
            PyThread_release_lock(self.silent)
            return False
        return True
