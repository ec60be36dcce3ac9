"""Batches in several threads: each answers a part of the rows, the results are put together in the caller's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtree.persistence.store import Store
from xtree.tree_state import TreeState

__all__ = ["in_threads"]

LEAST_ROWS = 64  # a thread: with fewer, starting it takes longer than answering them


def in_threads(
    store: Store, state: TreeState, threads: int, function: Callable[..., Any], rows: NDArray[np.float64], *more: Any
) -> Any:
    """function(store, state, rows, *more), computed by up to `threads` threads, this one among them.

    The function answers rows without the interpreter's lock. It returns an array with one element a row, or (offsets
    (m + 1,), values …) in which row i has values[offsets[i]:offsets[i + 1]]. The caller keeps the state from changing.
    Raises what the function raises, in whichever thread, once all have ended; RuntimeError when no thread can be
    started.
    """
    parts = min(threads, len(rows) // LEAST_ROWS)
    if parts < 2:
        return function(store, state, rows, *more)
    bounds = [len(rows) * part // parts for part in range(parts + 1)]

    def answer(part: int) -> Any:
        return function(store, state, rows[bounds[part] : bounds[part + 1]], *more)

    def answer_in_flight(part: int) -> Any:  # as the caller is already
        with store.in_flight():
            return answer(part)

    with ThreadPoolExecutor(parts - 1, "xtree-query") as pool:
        others = [pool.submit(answer_in_flight, part) for part in range(1, parts)]
        found = [answer(0), *[other.result() for other in others]]
        if not isinstance(found[0], tuple):
            return np.concatenate(found)
        offsets, *values = zip(*found)
        return _joined_offsets(offsets), *[_joined(pool, arrays) for arrays in values]


def _joined_offsets(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The offsets of all rows, given those of each part."""
    ends = np.cumsum([offsets[-1] for offsets in parts])
    shifted = [offsets[1:] + before for offsets, before in zip(parts[1:], ends)]
    return np.concatenate([parts[0], *shifted])


def _joined(pool: ThreadPoolExecutor, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The parts in one array. They are copied side by side, since most of it is to touch new memory."""
    whole = np.empty(sum(map(len, parts)), parts[0].dtype)
    places = np.split(whole, np.cumsum([len(part) for part in parts[:-1]]))
    list(pool.map(np.copyto, places, parts))
    return whole
