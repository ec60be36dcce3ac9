"""Packed trees for the tests that read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from xtree.algorithms.bucket import entry_limits
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk
from xtree.persistence.store.write_set import begin


def load(store, boxes: np.ndarray, ids: np.ndarray | None = None, **parameters: Any) -> tuple[np.ndarray, TreeState]:
    """A bulk-loaded, committed tree of boxes (n, 2 * dims), and its ids: 0 to n - 1 unless given."""
    state = TreeState.create(boxes.shape[1] // 2, **parameters)
    ids = np.arange(len(boxes), dtype=np.int64) if ids is None else ids
    ws = begin(store)
    with store.call():  # the load has pointers to pages while their files grow
        bulk.load(ws, state, ids, np.ascontiguousarray(boxes))
    ws.commit({})
    return ids, state


def sizes_at_the_limits(dims: int) -> list[int]:
    """Numbers of records around those that fill a leaf, two leaves, and a tree of two and three levels."""
    leaf, block = entry_limits(dims)
    full = [1, 2, leaf, 2 * leaf, leaf * block]
    return [0, *sorted({n + d for n in full for d in (-1, 0, 1)} - {0})]
