"""Several threads that work on one call: each answers a part of a batch, or loads a part of a tree.

It is compiled so that no signal handler runs between two statements here. Handlers run only inside the parts, when
these take breaths, and while this thread waits for them. Whatever happens, even a second interrupt, a call ends after
all of its threads.
"""

from functools import partial

from xtree.persistence.base.breath cimport Team

import numpy as np

from xtree.algorithms.kernels.arrays import copy_array
from xtree.persistence.base.breath import Stopped
from xtree.persistence.base.outcome import in_new_thread, outcome_of

LEAST_ROWS = 64                     # per thread: starting one takes longer than answering fewer rows


def together(Team team not None, works):
    """Calls the first of some functions in this thread and each of the others in a new one; returns their results.

    Returns, or raises what one of them raised, when all have ended. One that fails stops the team, and so does an
    interrupt that arrives while this thread waits for the others. If no threads can be had, this one does it all.
    """
    cdef Py_ssize_t i, n = len(works)
    cdef list requests = [None] * n
    cdef list results = [None] * n
    error = None
    try:
        for i in range(1, n):
            requests[i] = in_new_thread(_do, team, works[i])
        results[0] = _do(team, works[0])
    except BaseException as raised:
        team.stop()
        error = raised
    for i in range(1, n):
        try:
            if requests[i] is not None:
                results[i] = outcome_of(requests[i], team.stop)
        except BaseException as raised:
            if error is None or isinstance(error, Stopped):
                error = raised
    if error is not None:
        raise error
    return results


def _do(team, work):
    try:
        return work()
    except BaseException:
        team.stop()
        raise


def in_threads(store, state, threads, function, rows, *more):
    """function(store, state, rows, *more, team), computed by up to `threads` threads, this one among them.

    The function answers rows without the GIL and breathes as one of the team, which is None when it is alone. It
    returns an array with one element a row, or (offsets (m + 1,), values …) in which row i has
    values[offsets[i]:offsets[i + 1]]. The caller keeps the state from changing. Raises what the function raises, in
    any of the threads, once all have ended.
    """
    parts = min(threads, len(rows) // LEAST_ROWS)
    if parts < 2:
        return function(store, state, rows, *more, None)
    team = Team()
    bounds = [len(rows) * part // parts for part in range(parts + 1)]

    def answer(part):
        return function(store, state, rows[bounds[part] : bounds[part + 1]], *more, team)

    def answer_in_flight(part):     # as the caller is already
        with store.in_flight():
            return answer(part)

    found = together(team, [partial(answer_in_flight if part else answer, part) for part in range(parts)])
    if not isinstance(found[0], tuple):
        return np.concatenate(found)
    offsets, *values = zip(*found)
    return (_joined_offsets(offsets), *[_joined(team, arrays) for arrays in values])


def _joined_offsets(parts):
    """The offsets of all rows, given those of each part."""
    ends = np.cumsum([offsets[len(offsets) - 1] for offsets in parts])
    shifted = [offsets[1:] + before for offsets, before in zip(parts[1:], ends)]
    return np.concatenate([parts[0], *shifted])


def _joined(team, parts):
    """The parts in one array. Threads copy them side by side, since most of the work is touching new memory."""
    whole = np.empty(sum(map(len, parts)), parts[0].dtype)
    places = np.split(whole, np.cumsum([len(part) for part in parts[: len(parts) - 1]]))
    together(team, [partial(copy_array, place, part, team) for place, part in zip(places, parts)])
    return whole
