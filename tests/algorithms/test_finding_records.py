"""The search for a record to remove reads few pages, also among boxes that are equal or nested.

Promises (Right answers):

- a record to be removed is found by few pages, counted, among equal and nested boxes too, and after any changes:
  test_a_record_is_found_by_few_pages_among_equal_and_nested_boxes,
  test_pages_looked_at_among_equal_boxes_grow_with_the_logarithm_of_their_number.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from support import brute_force
from support.tree_data import all_equal, few_places, from_lower, nested, on_a_line, one_point, uniform
from support.tree_walks import pages, records

from xtree.algorithms.queries.inspection import check
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk
from xtree.algorithms.updates.insertion import insert
from xtree.algorithms.updates.removal import delete, visits

N = 12_000
PROBED = 500


def half_equal(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    boxes = uniform(random, n, dims)
    boxes[random.random(n) < 0.5] = boxes[0]
    return boxes


def half_around_all(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    """Every second box, at random, contains all the others."""
    boxes = uniform(random, n, dims)
    boxes[random.random(n) < 0.5] = [-1.0] * dims + [2.0] * dims
    return boxes


def groups_of_equals(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return np.ascontiguousarray(uniform(random, n // 100, dims)[random.integers(0, n // 100, n)])


def equal_on_all_axes_but_one(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    boxes = np.tile([0.0] * dims + [1.0] * dims, (n, 1))
    boxes[:, -1] += random.random(n)
    return boxes


def nested_pairs(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    inner = uniform(random, n // 2, dims)
    return np.vstack([inner, inner + np.repeat([-1e-3, 1e-3], dims)])


def on_two_lines(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    lower = np.full((n, dims), 0.5)
    axis = random.integers(0, min(dims, 2), n)
    lower[np.arange(n), axis] = random.random(n)
    return from_lower(lower, 0.0)


def nested_down_to_where_volumes_underflow(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    half = 10.0 ** np.repeat(random.permutation(n)[:, None] * (-120.0 / n), dims, axis=1)
    return np.ascontiguousarray(np.hstack([-half, half]))


SHAPES = {
    shape.__name__: shape
    for shape in (
        all_equal, one_point, few_places, half_equal, half_around_all, groups_of_equals, nested, nested_pairs,
        equal_on_all_axes_but_one, on_a_line, on_two_lines, nested_down_to_where_volumes_underflow,
    )
}  # fmt: skip
WAYS = ["grown", "packed", "grown after packed", "changed again and again"]


def made(ws, random: np.random.Generator, ids: np.ndarray, boxes: np.ndarray, way: str) -> TreeState:
    state = TreeState.create(boxes.shape[1] // 2)
    half = len(ids) // 2
    if way == "packed":
        bulk.load(ws, state, ids, boxes)
    elif way == "grown after packed":
        bulk.load(ws, state, ids[:half], boxes[:half])
        insert(ws, state, ids[half:], boxes[half:])
    else:
        for rows in np.array_split(np.arange(len(ids)), 12):
            insert(ws, state, ids[rows], boxes[rows])
    if way == "changed again and again":
        for _ in range(6):
            rows = random.permutation(len(ids))[:half]
            some, their_boxes = np.ascontiguousarray(ids[rows]), np.ascontiguousarray(boxes[rows])
            assert delete(ws, state, some, their_boxes) == half
            insert(ws, state, some, their_boxes)
    return state


def mean_visits(ws, state: TreeState, ids: np.ndarray, boxes: np.ndarray) -> float:
    return visits(ws, state, np.ascontiguousarray(ids), np.ascontiguousarray(boxes)) / len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dims", [1, 2, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_is_found_by_few_pages_among_equal_and_nested_boxes(ws, random, shape, dims, way):
    """The trees have about 180 leaves and 5 directory pages. Among other boxes 3 pages are read, one a level."""
    boxes = SHAPES[shape](random, N, dims)
    ids = random.permutation(len(boxes))
    state = made(ws, random, ids, boxes, way)
    check(ws.store, state)
    some = random.permutation(len(boxes))[:PROBED]
    assert mean_visits(ws, state, ids[some], boxes[some]) <= (
        100 if shape in ("half_equal", "half_around_all") else 16
    )


@pytest.mark.parametrize("way", WAYS)
def test_pages_looked_at_among_equal_boxes_grow_with_the_logarithm_of_their_number(ws, random, way):
    found = []
    for n in (2_000, 8_000, 32_000):
        boxes = all_equal(random, n, 2)
        ids = random.permutation(n)
        state = made(ws, random, ids, boxes, way)
        found.append(mean_visits(ws, state, ids[:PROBED], boxes[:PROBED]))
    assert found[2] - found[1] < 4.0 and found[1] - found[0] < 4.0


def test_a_record_that_is_absent_among_equal_boxes_is_missed_by_few_pages(ws, random):
    boxes = all_equal(random, N, 2)
    state = made(ws, random, 2 * random.permutation(N), boxes, "grown")
    assert mean_visits(ws, state, 2 * np.arange(PROBED) + 1, boxes[:PROBED]) < 100
    assert delete(ws, state, 2 * np.arange(PROBED) + 1, boxes[:PROBED]) == 0


@pytest.mark.parametrize("order", ["random", "in order", "reverse"])
@pytest.mark.parametrize("shape", ["all_equal", "nested", "half_equal", "half_around_all"])
def test_records_stay_easy_to_find_as_others_go(ws, random, shape, order):
    boxes = SHAPES[shape](random, N, 2)
    ids = np.arange(N)
    state = made(ws, random, ids, boxes, "grown")
    rows = {"random": random.permutation(N), "in order": ids, "reverse": ids[::-1]}[order]
    for part in np.array_split(rows, 8)[:-1]:
        assert mean_visits(ws, state, ids[part], boxes[part]) <= 100
        assert delete(ws, state, np.ascontiguousarray(ids[part]), np.ascontiguousarray(boxes[part])) == len(part)
        check(ws.store, state)
    assert state.count == len(np.array_split(rows, 8)[-1])


@pytest.mark.parametrize("shape", ["all_equal", "few_places", "half_around_all"])
def test_ids_that_are_equal_or_extreme_are_found_among_equal_boxes(ws, random, shape):
    boxes = SHAPES[shape](random, 3000, 2)
    extremes = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max, -1, 0, 1, 2**53, 2**53 + 1])
    ids = random.choice(extremes, 3000)
    state = made(ws, random, ids, boxes, "grown")
    assert records(ws.store, state, least_fill=0.35) == brute_force.records(ids, boxes)
    order = random.permutation(3000)
    for part in np.array_split(order, 5):
        assert delete(ws, state, np.ascontiguousarray(ids[part]), np.ascontiguousarray(boxes[part])) == len(part)
    assert state.root == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", ["all_equal", "one_point"])
def test_leaves_of_equal_boxes_hold_ids_of_their_own(ws, random, shape, way):
    boxes = SHAPES[shape](random, 5000, 2)
    state = made(ws, random, random.permutation(5000), boxes, way)
    leaves = [page for page in pages(ws.store, state) if page["level"] == 0]
    ranges = sorted((int(page["refs"].min()), int(page["refs"].max())) for page in leaves)
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize("way", WAYS)
def test_a_page_bounds_the_ids_below_it(ws, random, way):
    boxes = uniform(random, N, 2)
    state = made(ws, random, random.permutation(N) - 5, boxes, way)
    found = {page["node"]: page for page in pages(ws.store, state)}
    for page in found.values():
        least, most = page["ids"]
        if page["level"] == 0:
            assert least <= page["refs"].min() and page["refs"].max() <= most
        else:
            bounds = [found[child]["ids"] for child in page["refs"].tolist()]
            assert least <= min(bounds)[0] and max(most for _, most in bounds) <= most
    assert found[state.root]["ids"][0] >= -5 and found[state.root]["ids"][1] < N


def test_equal_records_that_go_in_in_order_fill_their_pages_more_than_half(ws):
    for step in (1, -1):
        state = TreeState.create(2)
        for i in range(5000):
            insert(ws, state, np.array([step * i]), np.array([[0.0, 0.0, 1.0, 1.0]]))
        counts = [page["count"] for page in pages(ws.store, state) if page["level"] == 0]
        assert np.mean(counts) >= 0.59 * 96
