"""The recycler: unmaps the windows that have been unused for longest, when more files are mapped than the budget says.

One pass hides the bases of some windows, moves the generation of the mappings on, and waits until every flight that may
still hold a pointer has ended. Then it drops the mappings that nobody has shown again meanwhile, and those that larger
ones had replaced when the pass began. Calls wait for none of this: a call that meets a hidden base shows it again,
which also tells the recycler that the window is in use. More windows are hidden than have to go, so that those in use
can be distinguished from the others.

It is a thread of its own, which begins at the first need, ends when there was nothing to do for a while, and keeps
neither the process nor the store alive. It holds no lock: what it shares with others is guarded by the GIL.
"""

import logging
import queue
import sys
from _thread import allocate_lock, start_new_thread

cimport cython
from libc.stdint cimport uint64_t

from xtree.persistence.base.pythread cimport PyThread_get_thread_ident
from xtree.persistence.base.lock_ranks cimport IN_THREAD, hold
from xtree.persistence.pages.mmap_windows cimport Windows
from xtree.persistence.pages.mvcc cimport Epochs

log = logging.getLogger("xtree")

SETTLE_S = 0.002                # time for windows in use to be shown again, before the first look at the flights
LONGEST_PAUSE_S = 0.05          # between two looks
LINGER_S = 1.0                  # how long the thread waits for something to do
SPARE_SHARE = 4                 # about budget / SPARE_SHARE windows are hidden besides those that have to go


@cython.final
cdef class Recycler:
    """Keeps the mappings of one store near their budget. wake() and stop() may be called from any thread."""

    cdef Windows windows
    cdef Epochs flights
    cdef object wakes           # a queue whose items say: there may be something to do
    cdef object stopped         # a lock, held until stop()
    cdef object ended           # a lock, held while the thread runs
    cdef unsigned long thread   # its ident while it runs, else 0
    cdef bint running, stopping
    cdef readonly uint64_t passes

    def __init__(self, Windows windows not None, Epochs flights not None):
        self.windows = windows
        self.flights = flights
        self.wakes = queue.SimpleQueue()
        self.stopped = allocate_lock()
        self.stopped.acquire()
        self.ended = allocate_lock()

    # Compiled code, so that neither a signal handler nor another thread comes between a check and what it leads to.

    def wake(self):
        """Makes the thread look at the budget; starts it if need be. Waits for nothing."""
        if self.stopping:
            return
        if self.wakes.empty():
            self.wakes.put(None)
        if not self.running and self.ended.acquire(False):
            self.running = True
            try:
                start_new_thread(self._run, ())
            except RuntimeError:            # too many threads, or the interpreter ends: the budget is only a target
                self.running = False
                self.ended.release()

    def stop(self):
        """Ends the thread, and waits until it has ended, unless called by that thread. Idempotent."""
        cdef object interrupt = None
        if not self.stopping:
            self.stopping = True
            self.stopped.release()
            self.wakes.put(None)
        if self.thread == PyThread_get_thread_ident() or sys.is_finalizing():
            return
        while True:
            try:
                self.ended.acquire()
                break
            except BaseException as arrived:    # a signal handler's
                interrupt = arrived
        self.ended.release()
        if interrupt is not None:
            raise interrupt

    def forget_thread(self):
        """In a forked child, where the thread doesn't exist: nothing is recycled any more, and stop() doesn't wait."""
        self.stopping = True
        self.running = False
        self.thread = 0
        self.wakes = queue.SimpleQueue()
        self.stopped = allocate_lock()
        self.ended = allocate_lock()

    @property
    def is_running(self):
        """Whether there is a thread at present."""
        return bool(self.running)

    # The thread.

    def _run(self):
        cdef double pause = SETTLE_S
        hold(IN_THREAD)
        self.thread = PyThread_get_thread_ident()
        try:
            while not self.stopping:
                if self.windows.mapped_files > self.windows.budget or self.windows.find_outgrown():
                    pause = SETTLE_S if self.one_pass(pause) else min(2 * pause, <double>LONGEST_PAUSE_S)
                elif not self.wait():
                    break
        except BaseException as error:      # nobody waits for it; the next mapping beyond the budget starts it again
            log.error("xtree: recycling of mappings ended: %r", error)
        self.running = False
        self.thread = 0
        self.ended.release()

    cdef bint wait(self) except -1:
        """Waits up to LINGER_S; returns whether there may be something to do, now or soon."""
        try:
            self.wakes.get(True, LINGER_S)
        except queue.Empty:
            return not self.wakes.empty()
        return True

    cdef int one_pass(self, double pause) except -1:
        """Hides, waits, drops; returns how many mappings are gone."""
        cdef uint64_t generation
        cdef list hidden = [], outgrown
        if self.windows.mapped_files > self.windows.budget:
            hidden = self.windows.hide(
                self.windows.mapped_files - self.windows.budget + 1 + self.windows.budget // SPARE_SHARE
            )
        outgrown = self.windows.find_outgrown()
        generation = self.flights.current_epoch() + 1
        self.flights.advance(generation)
        self.passes += 1
        while not self.stopped.acquire(True, pause):
            if self.flights.min_active() >= generation:
                return self.windows.drop(hidden) + self.windows.drop_outgrown(outgrown)
            pause = min(2 * pause, <double>LONGEST_PAUSE_S)
        self.stopped.release()
        return 0
