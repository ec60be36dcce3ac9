"""Batches whose neighbouring queries share a descent, against the same queries one by one.

Promises (Right answers):

- queries of a batch that share a descent find what each finds alone; a group reaches as many leaves as the limit, one
  fewer, one more:
  all of it, test_a_group_may_reach_as_many_leaves_as_the_limit_and_not_one_more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support import brute_force, tree_walks
from support.packed_trees import load
from support.tree_data import nested, uniform

import xtree
from xtree.algorithms.bucket import entry_limits
from xtree.algorithms.kernels import query_order
from xtree.algorithms.queries import leaf_group, search
from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.memory_store import MemoryStore

PREDICATES = ("intersects", "contains", "within")
LIMITS = leaf_group.limits()
MOST = LIMITS["most_leaves"]
A_QUERY = LIMITS["leaves_a_query"]
FIRST = LIMITS["first_size"]


def packed(boxes: np.ndarray) -> xtree.XTree:
    return xtree.XTree.from_boxes(boxes, dims=boxes.shape[1] // 2)


def grown(boxes: np.ndarray) -> xtree.XTree:
    tree = xtree.XTree(boxes.shape[1] // 2)
    tree.insert_many(np.arange(len(boxes)), boxes)
    return tree


def windows_in(random: np.random.Generator, boxes: np.ndarray, count: int, side: float) -> np.ndarray:
    """Windows with centres anywhere among the boxes, of up to `side` of their extent."""
    dims = boxes.shape[1] // 2
    least, extent = boxes[:, :dims].min(axis=0), np.ptp(boxes, axis=0)[:dims]
    low = least + random.random((count, dims)) * extent
    return np.ascontiguousarray(np.hstack([low, low + random.random((count, dims)) * side * extent]))


def assert_as_alone(tree: xtree.XTree, windows: np.ndarray) -> None:
    for predicate in PREDICATES:
        offsets, ids = tree.query(windows, predicate=predicate, output="csr")
        assert tree.count(windows, predicate=predicate).tolist() == np.diff(offsets).tolist()
        for window, first, end in zip(windows, offsets, offsets[1:]):
            assert sorted(ids[first:end]) == sorted(tree.query(window, predicate=predicate))


@pytest.mark.parametrize("make", [packed, grown])
@pytest.mark.parametrize("count", [64, 300, 3000])
@pytest.mark.parametrize("side", [0.0, 0.003, 0.05, 1.0])
def test_a_batch_of_any_density_is_answered_as_its_queries_are_alone(random, make, count, side):
    boxes = uniform(random, 20_000, 2)
    assert_as_alone(make(boxes), windows_in(random, boxes, count if side < 1.0 else 64, side))


@pytest.mark.parametrize("dims", [1, 3, 8])
def test_queries_share_descents_in_any_dimension(random, dims):
    boxes = uniform(random, 20_000, dims)
    assert_as_alone(packed(boxes), windows_in(random, boxes, 1000, 0.1))


@pytest.mark.slow
def test_large_windows_among_small_ones_send_their_group_down_alone(random):
    boxes = uniform(random, 20_000, 2)
    windows = windows_in(random, boxes, 1000, 0.001)
    windows[::9] = (0.1, 0.1, 0.9, 0.9)
    windows[1::99] = (-np.inf, -np.inf, np.inf, np.inf)
    windows[2::99] = (-np.inf, 0.4, 0.4, np.inf)
    assert_as_alone(packed(boxes), windows)


def test_no_group_has_few_leaves_where_all_boxes_overlap(random):
    boxes = nested(random, 20_000, 2)
    assert_as_alone(grown(boxes), windows_in(random, boxes, 200, 0.001))


@pytest.mark.parametrize("n", [0, 1, 50, 101, 8400])
def test_trees_of_few_levels_are_asked_the_same_way(random, n):
    boxes = uniform(random, n, 2)
    windows = windows_in(random, uniform(random, 100, 2), 500, 0.01)
    assert_as_alone(packed(boxes), windows)


# Groups at their limits: trees whose leaves stand in a row, and windows that reach a chosen number of them.


class Row:
    """Leaves side by side on the first axis, and a batch of windows whose groups are known."""

    def __init__(self, leaves: int, dims: int = 1, page_bytes: int | None = None) -> None:
        self.store = MemoryStore()
        capacity = entry_limits(dims, page_bytes)[0]
        low = np.arange(leaves * capacity, dtype=float)
        tall = [np.zeros_like(low), np.ones_like(low)] if dims == 2 else [low[:0], low[:0]]
        columns = [low, tall[0], low + 0.5, tall[1]]
        self.boxes = np.ascontiguousarray(np.column_stack([column for column in columns if len(column)]))
        self.dims = dims
        self.ids, self.state = load(self.store, self.boxes, page_bytes=page_bytes, leaf_fill=1.0)
        self.nodes, self.ends = leaves_of(self.store, self.state)
        assert len(self.nodes) == leaves and (np.diff(self.ends[:, 0]) > 0).all()
        self.windows: list[list[float]] = []

    def add(self, count: int, first: int, leaves: int, how: str = "ends") -> None:
        """Adds windows that together reach `leaves` leaves, from number `first` on.

        Each "ends" in the first and the last one, covers all of them ("inside"), reaches all without covering any
        ("crossing"), or lies in one of them ("spread").
        """
        left, right = self.ends[first], self.ends[first + leaves - 1]
        for i in range(count):
            step = i / 1024
            across = (0.25, 0.75 + step / 100) if how in ("crossing", "spread") else (0.0, 1.0)
            if how == "spread":
                at = np.floor(left[0] + (right[self.dims] - left[0]) * i / max(count - 1, 1))
                along = (at + 0.125, at + 0.375)
            elif how == "inside":
                along = (left[0] - 0.25 + step, right[self.dims] + step)
            else:
                along = (left[0] + 3 + step, right[self.dims] - 3 + step)
            self.windows.append([along[0], *across[:1] * (self.dims - 1), along[1], *across[1:] * (self.dims - 1)])

    def finish(self, more: int = 64) -> np.ndarray:
        """All windows, and `more` in the last leaf, so that there are enough for the batch to be put in order."""
        self.add(more, len(self.nodes) - 1, 1, "spread")
        return np.array(self.windows)


def leaves_of(store, state: TreeState) -> tuple[list[int], np.ndarray]:
    """The leaves of a tree and their boxes, by their lower bounds."""
    leaves = [page for page in tree_walks.pages(store, state) if page["level"] == 0]
    leaves.sort(key=lambda page: page["boxes"][:, 0].min())
    return [page["node"] for page in leaves], np.array([tree_walks.bounds_of(page["boxes"]) for page in leaves])


def groups_by_definition(store, state: TreeState, windows: np.ndarray) -> Iterator[tuple[list[int], set[int] | None]]:
    """What leaf_group.plan_groups should return, found by looking at all leaves."""
    nodes, ends = leaves_of(store, state)
    order = query_order.hilbert_order(windows, state.dims, state.bounds).tolist()
    first, size = 0, LIMITS["first_size"]
    while first < len(order):
        rows = order[first : first + size]
        touched = brute_force.matches(ends, np.array(tree_walks.bounds_of(windows[rows])))
        together = touched.sum() <= min(A_QUERY * len(rows), MOST)
        if not together and size == LIMITS["least_size"]:
            rows = order[first : first + LIMITS["alone"]]
        elif not together:
            size //= 2
        elif touched.sum() <= LIMITS["few_leaves"] and size < LIMITS["most_size"]:
            size *= 2
        yield rows, {nodes[i] for i in np.flatnonzero(touched)} if together else None
        first += len(rows)


def groups_that_fit(store, state: TreeState, windows: np.ndarray) -> list[tuple[list[int], list[int] | None]]:
    """(queries, leaves or None) of each group. Asserts that they are those of the definition."""
    groups = leaf_group.plan_groups(store, state, windows)
    as_sets = [(rows, None if leaves is None else set(leaves)) for rows, leaves in groups]
    assert as_sets == [*groups_by_definition(store, state, windows)]
    return groups


def planned(row: Row, windows: np.ndarray) -> list[tuple[int, int | None]]:
    """(queries, leaves or None) of each group. Asserts that it fits the definition, and that all answers are right."""
    groups = groups_that_fit(row.store, row.state, windows)
    assert all(leaves is None or len(set(leaves)) == len(leaves) for _, leaves in groups)
    for number, predicate in enumerate(PREDICATES):
        expected = [brute_force.query(row.ids, row.boxes, window, predicate) for window in windows]
        offsets, found = search.query(row.store, row.state, windows, number)
        assert [sorted(hits.tolist()) for hits in np.split(found, offsets[1:-1])] == expected
        assert search.count(row.store, row.state, windows, number).tolist() == [len(hits) for hits in expected]
    return [(len(rows), None if leaves is None else len(leaves)) for rows, leaves in groups]


@pytest.mark.parametrize("how", ["ends", "inside", "spread"])
@pytest.mark.parametrize("leaves", [1, 2, MOST - 1, MOST, MOST + 1])
@pytest.mark.parametrize("first", [0, 1, 63, 64, 100, 119])
def test_a_group_may_reach_as_many_leaves_as_the_limit_and_not_one_more(how, leaves, first):
    """On one directory page and across two, from the first entry of a kernel's portion of it and from a later one."""
    row = Row(240)
    row.add(FIRST, first, leaves, how)
    assert planned(row, row.finish())[0] == (FIRST, leaves if leaves <= MOST else None)


@pytest.mark.parametrize("how", ["crossing", "ends"])
@pytest.mark.parametrize("leaves", [MOST - 1, MOST, MOST + 1])
def test_all_leaves_of_a_full_group_may_cross_the_window(how, leaves):
    row = Row(120, dims=2)
    row.add(FIRST, 3, leaves, how)
    assert planned(row, row.finish())[0] == (FIRST, leaves if leaves <= MOST else None)


@pytest.mark.parametrize("entries", [2, MOST - 1, MOST, MOST + 1, 2 * MOST - 1, 2 * MOST, 2 * MOST + 1, 3 * MOST + 5])
@pytest.mark.parametrize("from_end", [0, 1])
def test_every_entry_of_a_directory_page_is_looked_at_whatever_their_number(entries, from_end):
    row = Row(entries, page_bytes=16384)
    assert row.state.height == 2
    leaves = min(MOST, entries - from_end)
    row.add(FIRST, entries - from_end - leaves, leaves)
    assert planned(row, row.finish())[0] == (FIRST, leaves)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_smaller_group_may_reach_fewer_leaves(beyond):
    row = Row(240)
    row.add(FIRST, 0, MOST + 1)
    size, at = FIRST // 2, 40
    while size > LIMITS["least_size"]:
        row.add(size, at, A_QUERY * size + 1)
        size, at = size // 2, at + 20
    row.add(size, at, A_QUERY * size + beyond)
    *larger, smallest = planned(row, row.finish(LIMITS["alone"]))[: (FIRST // size).bit_length()]
    assert [leaves for _, leaves in larger] == [None] * len(larger)
    assert smallest == (size, A_QUERY * size + beyond) if beyond <= 0 else smallest == (LIMITS["alone"], None)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_group_grows_behind_one_of_few_leaves(beyond):
    leaves = LIMITS["few_leaves"] + beyond
    row = Row(240)
    row.add(FIRST, 5, leaves)
    following = 2 * FIRST if beyond <= 0 else FIRST
    assert [size for size, _ in planned(row, row.finish())[:2]] == [FIRST, following]


@pytest.mark.parametrize("leaves", [LIMITS["few_leaves"], MOST - 1, MOST, MOST + 1])
def test_a_group_of_the_most_queries_may_reach_as_many_leaves_as_one_of_few(leaves):
    row = Row(240)
    sizes = [FIRST]
    while sizes[-1] < LIMITS["most_size"]:
        row.add(sizes[-1], 2 * len(sizes), 1)
        sizes.append(2 * sizes[-1])
    row.add(LIMITS["most_size"], 20, leaves)
    groups = planned(row, row.finish())[: len(sizes) + 1]
    assert [size for size, _ in groups[: len(sizes)]] == sizes
    assert groups[len(sizes) - 1][1] == (leaves if leaves <= MOST else None)
    assert groups[len(sizes)][0] == (LIMITS["most_size"] if leaves <= MOST else LIMITS["most_size"] // 2)


@pytest.mark.parametrize("dims", [1, 2, 3, 8])
def test_any_batch_falls_into_the_groups_of_the_definition(random, dims):
    boxes = uniform(random, 20_000, dims)
    store = MemoryStore()
    ids, state = load(store, boxes)
    for side in (0.001, 0.05, 0.3):
        windows = windows_in(random, boxes, 300, side)
        groups_that_fit(store, state, windows)
