"""The hand-off from a committing thread to the leader: queue, then wait until the outcome is known.

It is compiled so that no Python-level signal handler runs between its steps: a KeyboardInterrupt can only arrive
inside the wait, where it is kept and raised once the outcome is known.
"""

import queue
import threading
from _thread import start_new_thread

cimport cython


cdef object wait_for(object lock):
    """Waits for a lock; returns the exception of a signal that arrived meanwhile."""
    interrupt = None
    while True:
        try:
            lock.acquire()
            return interrupt
        except BaseException as arrived:
            interrupt = arrived


def uninterrupted(function, *arguments):
    """function(*arguments), in a thread where no signal handler runs; an interrupt is raised once it has ended."""
    request = Request("call")

    def run():
        try:
            result = function(*arguments)
        except BaseException as error:  # handed to the thread that asked
            request.finish(error=error)
        else:
            request.finish(result=result)

    try:
        start_new_thread(run, ())
    except RuntimeError:                # the interpreter is about to end, or there are too many
        run()
    return outcome_of(request)


cdef object outcome_of(Request request):
    """Waits until a request is finished; returns its result or raises its error, or an interrupt."""
    interrupt = wait_for(request.done)
    if interrupt is not None:
        raise interrupt from request.error
    if request.error is not None:
        raise request.error
    return request.result


@cython.final
cdef class Request:
    """Something for the leader to do, and its outcome. The leader calls finish() exactly once.

    what: "commit", "checkpoint", "close" or "call"; write_set, changes: of a commit.
    """

    cdef readonly str what
    cdef readonly object write_set
    cdef readonly object changes
    cdef object done                # a lock, held until the outcome is known
    cdef object result
    cdef object error

    def __init__(self, str what, write_set=None, changes=None):
        self.what = what
        self.write_set = write_set
        self.changes = changes
        self.done = threading.Lock()
        self.done.acquire()

    def finish(self, result=None, error=None):
        """Sets the outcome, and wakes the waiting thread."""
        self.result = result
        self.error = error
        self.done.release()


@cython.final
cdef class CommitQueue:
    """Requests on their way to the leader, first in, first out."""

    cdef object queue
    cdef object clock
    cdef readonly Py_ssize_t waiting    # threads in submit

    def __init__(self, clock):
        self.queue = queue.SimpleQueue()
        self.clock = clock

    def submit(self, Request request):
        """Queues a request, waits for its outcome, and returns its result or raises its error."""
        if request.write_set is not None:
            request.write_set._queue()
        self.waiting += 1
        self.queue.put(request)
        try:
            return outcome_of(request)
        finally:
            self.waiting -= 1

    def wake(self):
        """Ends a wait in `take`: there may be something to do that is no request."""
        self.queue.put(None)

    def take(self, timeout=None):
        """The requests that are queued now; when there are none, waits up to `timeout` seconds for one, or for wake().

        None as timeout waits for ever. May return an empty list before the time has passed.
        """
        ready = [self.clock.get(self.queue, timeout)]
        while not self.queue.empty():
            ready.append(self.queue.get())
        return [request for request in ready if request is not None]
