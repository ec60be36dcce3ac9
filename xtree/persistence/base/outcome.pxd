"""Outcome: the result of what another thread does for this one, and the wait until it is known.

It is compiled so that no Python-level signal handler runs between its steps: a KeyboardInterrupt can only arrive inside
the wait, where it is kept, and raised once the outcome is known.

    field           written by                                              read by                             order
    done            the thread that waits, before another one knows of it   both                                the GIL
    result, error,  the thread that does it, once, before it releases done  the thread that waits, after that   the lock
    next

Outcomes that are known at one moment wake their threads one after the other, each the next one before it asks for the
GIL: so whoever finishes them has one to wake, not all. A thread that handles signals is woken by itself, since a
handler might wait for one of the others.
"""

from cpython.pythread cimport PyThread_type_lock


cdef class Outcome:
    cdef PyThread_type_lock done    # held until the outcome is known; NULL when nobody waits for it
    cdef bint over
    cdef bint handles_signals       # the thread that waits
    cdef object result
    cdef object error
    cdef Outcome next               # its thread is to be woken by that of this one

    # Says that another thread is going to finish it.
    cdef int expect(self) except -1


# Waits until an outcome is known; returns the result or raises the error, or an interrupt. on_interrupt: called in the
# middle of the wait when an interrupt arrives, to make the work end soon.
cpdef object outcome_of(Outcome outcome, object on_interrupt=*)
# Finishes outcomes, with results that count up from the first one, and wakes their threads.
cdef int finish_together(list outcomes, unsigned long long first_result) except -1
