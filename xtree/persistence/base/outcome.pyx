"""Outcome: the result of what another thread does for this one, and the wait for it. docs: outcome.pxd."""

import sys
import threading
from _thread import start_new_thread

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock,
)

from xtree.persistence.base.breath cimport in_main_thread
from xtree.persistence.base.lock_ranks cimport IN_THREAD, hold, resume
from xtree.persistence.base.pythread cimport ACQUIRED, PyThread_acquire_lock_timed
from xtree.persistence.base.right_of_way cimport got_gil, want_gil


cdef class Outcome:

    def __dealloc__(self):
        if self.done != NULL:
            PyThread_free_lock(self.done)

    cdef int expect(self) except -1:
        cdef PyThread_type_lock done = PyThread_allocate_lock()
        if done == NULL:
            raise MemoryError("no memory for a lock")
        PyThread_acquire_lock(done, NOWAIT_LOCK)
        self.done = done
        self.handles_signals = in_main_thread()
        return 0

    def finish(self, result=None, error=None):
        """Sets the outcome, and wakes the waiting thread."""
        self.result = result
        self.error = error
        self.over = True
        if self.done != NULL:
            PyThread_release_lock(self.done)

    @property
    def finished(self):
        """Whether another thread was to finish it, and has."""
        return self.done != NULL and self.over


cdef int finish_together(list outcomes, unsigned long long first_result) except -1:
    cdef Outcome outcome, first = None, last = None
    cdef unsigned long long result = first_result
    for outcome in outcomes:
        outcome.result = result
        outcome.over = True
        result += 1
        if outcome.done == NULL:
            continue
        if outcome.handles_signals:
            PyThread_release_lock(outcome.done)
        elif last is None:
            first = last = outcome
        else:
            last.next = outcome
            last = outcome
    if first is not None:
        PyThread_release_lock(first.done)
    return 0


cdef object wait_for(Outcome outcome, object on_interrupt=None):
    """Waits until an outcome is known; returns the exception of a signal that arrived meanwhile, after calling
    on_interrupt().

    Signals are checked first: one that came before the wait would otherwise be seen only at its end.
    """
    cdef int status = 0
    interrupt = None
    while status != ACQUIRED:
        try:
            PyErr_CheckSignals()
            with nogil:
                status = PyThread_acquire_lock_timed(outcome.done, -1, 1)
                if status == ACQUIRED and outcome.next is not None:
                    PyThread_release_lock(outcome.next.done)
                want_gil()
            got_gil()
        except BaseException as arrived:
            interrupt = arrived
            if on_interrupt is not None:
                on_interrupt()
    return interrupt


def uninterrupted(function, *arguments):
    """Calls function(*arguments) in a thread where no signal handler runs; raises an interrupt once that has ended."""
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)     # handlers run in the main thread only
    return outcome_of(in_new_thread(function, *arguments))


def in_new_thread(function, *arguments):
    """Calls function(*arguments) in a new thread, or here if none can be started; returns an Outcome to wait for.

    None is started when the interpreter is about to end, where a new thread would never get to run.
    """
    outcome = Outcome()
    outcome.expect()

    def run():
        before = hold(IN_THREAD)        # the caller waits for it
        try:
            result = function(*arguments)
        except BaseException as error:  # handed to the thread that asked
            outcome.finish(error=error)
        else:
            outcome.finish(result=result)
        resume(before)

    try:
        if not sys.is_finalizing():
            start_new_thread(run, ())
            return outcome
    except RuntimeError:                # there are too many
        pass
    run()
    return outcome


cpdef object outcome_of(Outcome outcome, object on_interrupt=None):
    interrupt = None if outcome.done == NULL else wait_for(outcome, on_interrupt)
    if interrupt is not None:
        raise interrupt from outcome.error
    if outcome.error is not None:
        raise outcome.error
    return outcome.result
