"""Breaths: how a long call is interrupted. docs: breath.pxd."""

import os
import threading

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetInterrupt
from libc.string cimport memcpy

from xtree.persistence.base.atomics cimport fetch_add, load_relaxed, store_relaxed
from xtree.persistence.base.monotonic cimport xt_monotonic_ns
from xtree.persistence.base.pythread cimport PyThread_get_thread_ident, get_gil_back, let_gil_go
from xtree.persistence.base.right_of_way cimport got_gil_for_query, syncing, want_gil_for_query

cdef enum:
    A_BREATH = 1 << 17              # work
    COPIED_AT_ONCE = 1 << 18        # bytes: about 100 microseconds where memory is touched for the first time
    WITH_GIL = 1 << 12              # work: about three microseconds
    AFTER_SLOW = 256                # queries that give the GIL away after a slow one
    LOOK_EVERY_NS = 30000000        # a part of the 200 ms within which an interrupt ends a call

cdef uint64_t main_thread = 0
cdef uint64_t watched = 0
cdef uint64_t countdown = 0         # breaths of the main thread until one is interrupted; 0: no interrupt is planned
cdef uint64_t breaths = 0
cdef int slow_calls = 0             # queries that are to give the GIL away


def _note_main_thread():
    store_relaxed(&main_thread, <uint64_t>threading.main_thread().ident)


_note_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_main_thread)


class Stopped(Exception):
    """Another thread of the team has failed, or was interrupted; the error to report is the one that it raised."""


cdef class Team:

    def stop(self):
        """Makes every thread of the team raise Stopped at its next breath."""
        store_relaxed(&self.stopped, 1)

    @property
    def is_stopped(self):
        """Whether it was stopped."""
        return load_relaxed(&self.stopped) != 0


cdef bint in_main_thread() noexcept nogil:
    return PyThread_get_thread_ident() == load_relaxed(&main_thread)


cdef void first_breath(Breath *breath, Team team) noexcept nogil:
    breath.left = 0 if load_relaxed(&watched) else A_BREATH
    breath.looked_at_ns = 0
    breath.stopped = NULL if team is None else &team.stopped
    breath.is_main = in_main_thread()
    breath.gil.held = False
    breath.gil.thread = NULL


cdef void begin_with_gil(Breath *breath, bint short) noexcept nogil:
    global slow_calls
    breath.gil.held = True
    breath.began_ns = xt_monotonic_ns()
    breath.left = min(breath.left, <int64_t>WITH_GIL)
    if not short or slow_calls > 0 or load_relaxed(&syncing):
        slow_calls -= slow_calls > 0
        give_gil_away(breath)


cdef void end_with_gil(Breath *breath) noexcept nogil:
    global slow_calls
    if not breath.gil.held:
        want_gil_for_query()
        get_gil_back(&breath.gil)
        got_gil_for_query()
    elif xt_monotonic_ns() != breath.began_ns:      # by chance, or because it took a good part of a tick
        slow_calls = AFTER_SLOW


cdef void give_gil_away(Breath *breath) noexcept nogil:
    let_gil_go(&breath.gil)
    breath.left = 0 if load_relaxed(&watched) else A_BREATH


cdef int look_up(Breath *breath) except -1 nogil:
    cdef uint64_t now
    if breath.gil.held:             # it is early for a breath
        give_gil_away(breath)
        return 0
    breath.left = A_BREATH
    if load_relaxed(&watched):
        breath.left = 0
        interrupt_if_due(breath)
    if breath.stopped != NULL and load_relaxed(breath.stopped):
        raise_stopped()
    if not breath.is_main:
        return 0
    now = xt_monotonic_ns()
    if breath.looked_at_ns == 0:
        breath.looked_at_ns = now
    elif now - breath.looked_at_ns >= LOOK_EVERY_NS:
        breath.looked_at_ns = now
        handle_signals()
    return 0


cdef int copy_block(char *target, const char *source, size_t n, Breath *breath) except -1 nogil:
    cdef size_t done = 0, part
    while done < n:
        part = min(n - done, <size_t>COPIED_AT_ONCE)
        memcpy(target + done, source + done, part)
        done += part
        spend(breath, COPIED_AT_ONCE)
    return 0


cdef int handle_signals() except -1 with gil:
    return PyErr_CheckSignals()


cdef int raise_stopped() except -1 with gil:
    raise Stopped


cdef int interrupt_if_due(Breath *breath) except -1 nogil:
    """For tests: counts breaths of the main thread, and makes SIGINT arrive at the one that was asked for."""
    if not breath.is_main:
        return 0
    fetch_add(&breaths, 1)
    if load_relaxed(&countdown) and fetch_add(&countdown, <uint64_t>-1) == 1:
        with gil:
            PyErr_SetInterrupt()
        handle_signals()
    return 0


def watch_breaths(bint on):
    """Turns the counting of the main thread's breaths on or off. While it is on, each piece of work takes a breath."""
    store_relaxed(&countdown, 0)
    store_relaxed(&breaths, 0)
    store_relaxed(&watched, on)


def interrupt_breath(uint64_t n):
    """Makes SIGINT arrive at the n-th breath of the main thread from now on, and turns counting on. 0 cancels that.

    Returns how many breaths were left until the interrupt that was asked for before; 0 when it has come.
    """
    cdef uint64_t left = load_relaxed(&countdown)
    if n:
        store_relaxed(&watched, 1)
    store_relaxed(&countdown, n)
    return left


def breath_count():
    """Breaths of the main thread since counting began."""
    return load_relaxed(&breaths)
