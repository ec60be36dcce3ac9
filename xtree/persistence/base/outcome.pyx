"""Outcome: the result of what another thread does for this one, and the wait for it. docs: outcome.pxd."""

import sys
import threading
from _thread import allocate_lock, start_new_thread

from cpython.exc cimport PyErr_CheckSignals

from xtree.persistence.base.lock_ranks cimport IN_THREAD, hold, resume


cdef class Outcome:

    cdef int expect(self) except -1:
        done = allocate_lock()
        done.acquire()
        self.done = done
        return 0

    def finish(self, result=None, error=None):
        """Sets the outcome, and wakes the waiting thread."""
        self.result = result
        self.error = error
        if self.done is not None:
            self.done.release()

    @property
    def finished(self):
        """Whether another thread was to finish it, and has."""
        return self.done is not None and not self.done.locked()


cdef object wait_for(object lock, object on_interrupt=None):
    """Waits for a lock; returns the exception of a signal that arrived meanwhile, after calling on_interrupt().

    Signals are checked first: one that came before the wait would otherwise be seen only at its end.
    """
    interrupt = None
    while True:
        try:
            PyErr_CheckSignals()
            lock.acquire()
            return interrupt
        except BaseException as arrived:
            interrupt = arrived
            if on_interrupt is not None:
                on_interrupt()


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
    interrupt = None if outcome.done is None else wait_for(outcome.done, on_interrupt)
    if interrupt is not None:
        raise interrupt from outcome.error
    if outcome.error is not None:
        raise outcome.error
    return outcome.result
