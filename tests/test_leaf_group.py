"""Batches whose neighbouring queries share a descent, against the same queries each on its own way down."""

from __future__ import annotations

import numpy as np
import pytest
from tree_data import nested, uniform

import xtree

PREDICATES = ("intersects", "within", "contains")


def packed(boxes: np.ndarray) -> xtree.XTree:
    return xtree.XTree.from_boxes(boxes)


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
