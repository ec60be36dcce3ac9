"""The hand-off from a committing thread to the leader: queue, then wait until the outcome is known.

It is compiled so that no Python-level signal handler runs between its steps: a KeyboardInterrupt can only arrive
inside the wait, where it is kept and raised once the outcome is known.
"""

import sys

cimport cython

from xtree.persistence.base.bell cimport Bell
from xtree.persistence.base.outcome cimport Outcome, finish_together, outcome_of
from xtree.persistence.pages.mvcc cimport Epochs
from xtree.persistence.store.write_set cimport WriteSet

from xtree.errors import XTreeError

cdef enum:
    MOST_INTERRUPTS = 100       # of one commit; if there are more, they are an error of the code


@cython.final
cdef class Request(Outcome):
    """Something for the leader to do, and its outcome. The leader calls finish() exactly once.

    what: "commit", "close", "call" or, for the checkpointer, "checkpoint". changes: entries of a commit, or what
    is to be called. on_queued: called by the thread that submits the request, once it has its place in the queue.
    """

    def __init__(self, str what, WriteSet write_set=None, changes=None, Py_ssize_t largest_payload=0, on_queued=None):
        self.what = what
        self.write_set = write_set
        self.changes = changes
        self.largest_payload = largest_payload
        self.on_queued = on_queued


def carry(carrier, CommitQueue queue, Request request):
    """Carries a commit to disk in the calling thread, behind all that are queued, and returns whether it did.

    carrier: the coordinator, as carrier.Carrier describes it. Its turn is held meanwhile. Nobody waits for it here: who
    gets a lock while another thread runs Python has it until the GIL comes too, and each commit would be handed over
    like that. `plan` makes everything ready, has changed nothing when it raises, and returns None when something is for
    the leader; what was queued is his then. After that an interrupt waits until the group is finished: `write_group`
    may be begun again, since it writes the same bytes to the same place.
    """
    cdef int arrivals = 0, flight = -1
    cdef Epochs flights
    cdef list others
    interrupt = group = None
    handled = sys.exc_info()[1]     # the caller may be in an except block: whatever arrives has that as context
    if not carrier.turn_lock.acquire(False):
        return False
    flights = carrier.store.flights
    try:
        flight = flights.pin()      # as long as there are pointers to pages
        others = queue.take_now()
        try:
            if all_commits(others):
                group = carrier.plan([*others, request])
        except Exception as error:
            if not others or not is_failure(error, False):
                raise
        finally:
            if group is None:       # the leader finds out which of them can be carried
                queue.put_back(others)
        if group is None:
            return False
        queue.carried = 1
        request.write_set.queue()
        interrupt = tell_queued(request)
        awaited = carrier.sync_at is not None
        while True:
            try:
                carrier.write_group(group)
                break
            except BaseException as arrived:
                arrivals += 1
                if hides_failure(arrived, handled, arrivals > MOST_INTERRUPTS):
                    if carrier.has_published(group):    # it was raised later, for lack of memory, say: no matter
                        break
                    fail(carrier, group, arrived)
                    return True
                interrupt = arrived
        if not awaited and carrier.sync_at is not None:
            queue.wake()
        carrier.finish_group(group)
    finally:
        if flight >= 0:
            flights.unpin(flight)
        queue.carried = 0
        carrier.turn_lock.release()
    if interrupt is not None:
        raise interrupt
    return True


def finish_commits(list requests not None, unsigned long long first_epoch):
    """Finishes commits whose epochs follow one another, and wakes their threads."""
    finish_together(requests, first_epoch)


cdef bint all_commits(list requests):
    cdef Request request
    for request in requests:
        if request.what != "commit":
            return False
    return True


cdef object tell_queued(Request request):
    """Calls on_queued; returns what it raises, to be raised once the outcome is known: there is no way back."""
    try:
        if request.on_queued is not None:
            request.on_queued()
    except BaseException as arrived:
        return arrived


cdef bint hides_failure(object arrived, object handled, bint any_error):
    """Whether it is an error of a write or sync, or an interrupt that has such an error, on its way, as its context.

    handled: the exception that was being handled before; it doesn't count. any_error: every Exception counts, even one
    that a signal handler may have raised.
    """
    while arrived is not None and arrived is not handled:
        if is_failure(arrived, any_error):
            return True
        arrived = arrived.__context__
    return False


cdef bint is_failure(object error, bint any_error):
    """Whether it is an error of our own or the system's, not one that a signal handler has raised."""
    if isinstance(error, OSError):
        return any_error or error.errno is not None or error.filename is not None
    return isinstance(error, (MemoryError, XTreeError)) or (any_error and isinstance(error, Exception))


cdef int fail(object carrier, object group, object error) except -1:
    """Poisons the store, whatever interrupts arrive meanwhile."""
    while True:
        try:
            carrier.fail(group, error)
            return 0
        except BaseException as arrived:
            if isinstance(arrived, Exception):
                raise


@cython.final
cdef class CommitQueue:
    """Requests on their way to the leader, first in, first out."""

    cdef Request first, last
    cdef readonly Py_ssize_t count
    cdef Bell bell
    cdef object clock
    # All are read and written with the GIL, which nothing between a look and what is done upon it gives away. waiting
    # counts a request from before it is queued until its outcome: a writer that builds on a queued commit finds it
    # counted, because it took its lock later. wanted and rung are the leader's: what it finds in the queue or has to
    # look for was there before it looks, or rings.
    cdef readonly Py_ssize_t waiting    # threads in submit
    cdef readonly Py_ssize_t carried    # commits that their own thread carries to disk
    cdef Py_ssize_t wanted              # the leader sleeps until so many are queued; 0: it is awake
    cdef bint rung                      # gather was woken: take doesn't sleep
    cdef bint woken                     # by wake_once, and take has not ended since

    def __init__(self, clock):
        self.bell = Bell()
        self.clock = clock

    def submit(self, Request request):
        """Queues a request, waits for its outcome, and returns its result or raises its error."""
        request.expect()
        self.waiting += 1
        try:
            self.enqueue(request)
            interrupt = tell_queued(request)
            result = outcome_of(request)
        finally:
            self.waiting -= 1
        if interrupt is not None:
            raise interrupt
        return result

    cdef int enqueue(self, Request request) except -1:
        """Puts a request into the queue. This can't fail, unless the write set has ended: it is linked, not copied."""
        if request.write_set is not None:
            request.write_set.queue()
        if self.last is None:
            self.first = request
        else:
            self.last.following = request
        self.last = request
        self.count += 1
        if 0 < self.wanted <= self.count:
            self.bell.ring()
        return 0

    def wake(self):
        """Ends a wait in `take`: there may be something to do that is no request."""
        self.bell.ring()

    def wake_once(self):
        """Ends a wait in `take`, once until the wait has ended: cheap enough to be called after every commit."""
        if not self.woken:
            self.woken = True
            self.bell.ring()

    def take_now(self):
        """The requests that are queued now."""
        cdef list requests = []
        cdef Request request = self.first
        while request is not None:
            requests.append(request)
            request = request.following
        self.first = self.last = None
        self.count = 0
        for request in requests:
            request.following = None
        return requests

    cdef int put_back(self, list requests) except -1:
        """Undoes take_now, and wakes the leader. This can't fail: it needs no memory."""
        cdef Request request
        cdef Py_ssize_t i
        for i in range(len(requests) - 1, -1, -1):
            request = requests[i]
            request.following = self.first
            self.first = request
            if self.last is None:
                self.last = request
        self.count += len(requests)
        if requests:
            self.bell.ring()
        return 0

    def wait(self, timeout=None):
        """Waits until something is queued, or for wake(), up to `timeout` seconds; with None for ever."""
        if not self.count and not self.rung:
            self.wanted = 1
            try:
                self.clock.get(self.bell, timeout)
            finally:
                self.wanted = 0
        self.rung = self.woken = False
        self.bell.silence()             # in one step with that: who finds `woken` set relies on a look after this

    def take(self, timeout=None):
        """Waits, then takes what is queued; that may be nothing."""
        self.wait(timeout)
        return self.take_now()

    def gather(self, Py_ssize_t expected, double quiet):
        """Waits until so many requests are queued, but no longer than `quiet` seconds for the next one of them."""
        cdef Py_ssize_t seen = -1
        while seen < self.count < expected and not self.rung:
            seen = self.count
            self.wanted = expected
            self.rung = self.bell.get(quiet)
            self.wanted = 0
