"""Outcome: the result of what another thread does for this one, and the wait until it is known.

It is compiled so that no Python-level signal handler runs between its steps: a KeyboardInterrupt can only arrive inside
the wait, where it is kept, and raised once the outcome is known.

    field           written by                                              read by                             order
    done            the thread that waits, before another one knows of it   both                                the GIL
    result, error   the thread that does it, once, before it releases done  the thread that waits, after that   the lock
"""


cdef class Outcome:
    cdef object done                # a lock, held until the outcome is known; None when nobody waits for it
    cdef object result
    cdef object error

    # Says that another thread is going to finish it.
    cdef int expect(self) except -1


# Waits until an outcome is known; returns the result or raises the error, or an interrupt. on_interrupt: called in the
# middle of the wait when an interrupt arrives, to make the work end soon.
cpdef object outcome_of(Outcome outcome, object on_interrupt=*)
