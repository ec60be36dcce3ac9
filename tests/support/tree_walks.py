"""Trees made in a write set; and walks in Python over a tree's pages, which verify them.

They are independent of the compiled check.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from xtree.algorithms.bucket import describe, entry_limits
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates.insertion import insert
from xtree.persistence.store.catalog import CatalogEntry

Record = tuple[int, tuple[float, ...]]


def grown(ws, boxes: np.ndarray, **parameters) -> TreeState:
    """A tree of these boxes, with ids from 0 on."""
    state = TreeState.create(boxes.shape[1] // 2, **parameters)
    insert(ws, state, np.arange(len(boxes)), boxes)
    return state


def pages(store, state: TreeState) -> list[dict[str, Any]]:
    """Every page of a tree, parents first, with its NodeID as `node`."""
    nodes = [state.root] if state.root else []
    found = []
    for node in nodes:
        page = {"node": node, **describe(store, node)}
        found.append(page)
        if page["kind"] == "directory":
            nodes += page["refs"].tolist()
    assert len(set(nodes)) == len(nodes)
    return found


def assert_no_page_left(store) -> None:
    """Asserts that a store whose structures are all empty has no page, and after a reclaim no slot in use."""
    store.reclaim()
    held = store.stats()
    table = {state: held["object_table"][state] for state in ("live", "reserved", "retired")}
    assert table == {"live": 0, "reserved": 0, "retired": 0}, table
    assert sum(of_class["used"] for of_class in held["allocator"].values()) == 0


def bounds_of(boxes: np.ndarray) -> list[float]:
    dims = boxes.shape[1] // 2
    return [*boxes[:, :dims].min(axis=0).tolist(), *boxes[:, dims:].max(axis=0).tolist()]


def records(store, state: TreeState, least_fill: float = 0.0) -> Counter[Record]:
    """All records of a tree, -0.0 as 0.0. Asserts levels, kinds, capacities, exact boxes, bounds and counts."""
    leaf_limit, block_limit = entry_limits(state.dims, state.page_bytes)
    found: Counter[Record] = Counter()

    def visit(node: int, level: int) -> list[float]:
        page = describe(store, node)
        is_root = level == state.height - 1
        assert (page["level"], page["dims"]) == (level, state.dims)
        assert page["kind"] == ("directory" if level else "leaf")
        if level == 0:
            assert page["count"] <= leaf_limit
            assert page["count"] >= (1 if is_root else least_fill * leaf_limit)
            found.update(zip(page["refs"].tolist(), map(tuple, (page["boxes"] + 0.0).tolist()), strict=True))
        else:
            assert page["count"] <= page["blocks"] * (block_limit + 8)
            assert page["count"] >= (2 if is_root else least_fill * block_limit)
            for ref, box in zip(page["refs"].tolist(), page["boxes"].tolist(), strict=True):
                assert visit(ref, level - 1) == box
        return bounds_of(page["boxes"])

    if state.root:
        assert visit(state.root, state.height - 1) == state.bounds.tolist()
    else:
        assert (state.height, state.count, state.bounds) == (0, 0, None)
    assert sum(found.values()) == state.count
    return found


def commit(ws, state: TreeState, name: str = "tree") -> int:
    """Commits a write set with a tree's state under a name; returns the epoch."""
    return ws.commit({name: CatalogEntry(name, "xtree", state.root, state.encode())})
