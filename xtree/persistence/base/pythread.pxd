"""What the interpreter offers to threads, and Cython doesn't declare; and HeldGil.

A HeldGil says where the GIL is in a call that keeps it while it is short. Such a call runs code that is `nogil`, which
doesn't use the GIL, may take it once more, and may give it away for the rest of the call. It belongs to one thread.
"""

from cpython.pystate cimport PyThreadState
from cpython.pythread cimport PyThread_type_lock


cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident() noexcept
    # Waits for a lock, at most so many microseconds, -1: for ever; where it is interruptible, until a signal arrives.
    const int ACQUIRED "PY_LOCK_ACQUIRED"       # it has the lock
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible) noexcept

cdef extern from "Python.h" nogil:
    PyThreadState *PyEval_SaveThread() noexcept
    void PyEval_RestoreThread(PyThreadState *thread) noexcept


cdef struct HeldGil:
    bint held                       # False, too, in a call that never had it
    PyThreadState *thread           # that has given it away; else NULL


cdef inline void let_gil_go(HeldGil *gil) noexcept nogil:
    """Gives the GIL away, if the call holds it."""
    if gil.held:
        gil.held = False
        gil.thread = PyEval_SaveThread()


cdef inline void get_gil_back(HeldGil *gil) noexcept nogil:
    """Waits for the GIL after it was given away."""
    PyEval_RestoreThread(gil.thread)
    gil.thread = NULL
    gil.held = True
