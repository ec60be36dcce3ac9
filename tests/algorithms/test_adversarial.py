"""Data made to break trees: inserted in every way of the public API, queried, and deleted again.

Promises (Right answers):

- data made to break trees: equal boxes, points on a line, huge and tiny extents:
  all of it.
"""

from __future__ import annotations

import numpy as np
import pytest
from support import brute_force

TINY = 5e-324  # the smallest double above 0
HUGE = 1e308


def equal_boxes(random, n, dims):
    return np.tile(np.r_[np.zeros(dims), np.ones(dims)], (n, 1))


def equal_points(random, n, dims):
    return np.full((n, 2 * dims), 0.25)


def line(random, n, dims):
    along = random.random((n, 1))
    return np.hstack([np.tile(along, dims), np.tile(along, dims)])


def flat_along_one_axis(random, n, dims):
    boxes = brute_force.random_boxes(random, n, dims)
    boxes[:, dims] = boxes[:, 0]
    return boxes


def segments(random, n, dims):
    boxes = brute_force.random_boxes(random, n, dims)
    keep = random.integers(0, dims, n)
    for axis in range(dims):
        boxes[keep != axis, dims + axis] = boxes[keep != axis, axis]
    return boxes


def ascending(random, n, dims):
    lower = np.tile(np.arange(n, dtype=float)[:, None], dims)
    return np.hstack([lower, lower + 0.5])


def descending(random, n, dims):
    return ascending(random, n, dims)[::-1].copy()


def nested(random, n, dims):
    half = np.arange(1, n + 1, dtype=float)[:, None]
    return np.hstack([np.tile(-half, dims), np.tile(half, dims)])


def huge_extents(random, n, dims):
    return np.hstack([np.full((n, dims), -HUGE) + random.random((n, dims)) * HUGE, np.full((n, dims), HUGE)])


def whole_range(random, n, dims):
    largest = np.finfo(float).max
    corners = random.choice([-largest, -HUGE, -1.0, 0.0, 1.0, HUGE, largest], (n, 2, dims))
    return np.hstack([corners.min(axis=1), corners.max(axis=1)])


def denormals(random, n, dims):
    corners = random.integers(0, 8, (n, 2, dims)) * TINY
    return np.hstack([corners.min(axis=1), corners.max(axis=1)])


def mixed_magnitudes(random, n, dims):
    lower = random.standard_normal((n, dims)) * 10.0 ** random.integers(-300, 300, (n, 1))
    return np.hstack([lower, lower + np.abs(lower) * random.random((n, dims))])


def one_far_away(random, n, dims):
    boxes = brute_force.random_boxes(random, n, dims, 1e-9)
    boxes[n // 2] = np.r_[np.full(dims, 1e200), np.full(dims, 2e200)]
    return boxes


def few_values(random, n, dims):
    corners = random.integers(0, 3, (n, 2, dims)).astype(float)
    return np.hstack([corners.min(axis=1), corners.max(axis=1)])


def signed_zeros(random, n, dims):
    return np.where(random.random((n, 2 * dims)) < 0.5, 0.0, -0.0)


DATA = [
    equal_boxes, equal_points, line, flat_along_one_axis, segments, ascending, descending, nested, huge_extents,
    whole_range, denormals, mixed_magnitudes, one_far_away, few_values, signed_zeros,
]  # fmt: skip


def windows_for(random, boxes, dims):
    """Some of the boxes, their corners, and windows between two of them."""
    some = boxes[random.integers(0, len(boxes), 6)]
    pairs = np.stack([boxes[random.integers(0, len(boxes), 6)], some], axis=1)
    between = np.hstack([pairs[:, :, :dims].min(axis=1), pairs[:, :, dims:].max(axis=1)])
    everything = np.r_[np.full(dims, -np.inf), np.full(dims, np.inf)]
    return np.vstack([some, np.hstack([some[:, :dims]] * 2), between, everything])


@pytest.mark.parametrize("dims", [1, 2, 6, 16])
@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
def test_hard_data_goes_in_by_every_door_and_out_again(make_tree, random, data, dims):
    n = 900
    boxes = data(random, n, dims)
    ids = random.integers(0, n, n)
    windows = windows_for(random, boxes, dims)
    for load in ("insert_many", "bulk_load"):
        tree = make_tree(dims)
        getattr(tree, load)(ids[: n // 2], boxes[: n // 2])
        with tree.transaction() as tx:
            for i in range(n // 2, n // 2 + 50):
                tx.insert(int(ids[i]), boxes[i])
            tx.insert_many(ids[n // 2 + 50 :], boxes[n // 2 + 50 :])
        brute_force.assert_same(tree, ids, boxes, windows)
        tree.check()
        order = random.permutation(n)
        assert tree.delete_many(ids[order[: n // 3]], boxes[order[: n // 3]]) == n // 3
        rest = order[n // 3 :]
        brute_force.assert_same(tree, ids[rest], boxes[rest], windows)
        tree.check()
        assert tree.delete_many(ids[rest], boxes[rest]) == len(rest)
        assert len(tree) == 0 and tree.bounds is None and tree.height == 0


@pytest.mark.parametrize("dims", [1, 2, 6])
@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
def test_nearest_is_right_on_hard_data(make_tree, random, data, dims):
    boxes = data(random, 400, dims)
    ids = np.arange(400)
    tree = make_tree(dims)
    tree.insert_many(ids, boxes)
    with np.errstate(over="ignore", invalid="ignore"):
        for point in boxes[:8, :dims]:
            found, away = tree.nearest(point, k=10, return_distance=True)
            expected = np.sort(brute_force.distances(boxes, point))[:10]
            assert away == pytest.approx(expected, rel=1e-12)
            assert brute_force.distances(boxes[found], point) == pytest.approx(expected, rel=1e-12)


def test_supernodes_appear_in_high_dimensions_and_answer_right(make_tree, random):
    dims = 16
    boxes = brute_force.random_boxes(random, 6000, dims, 0.9)
    ids = np.arange(6000)
    tree = make_tree(dims)
    tree.insert_many(ids, boxes)
    assert tree.stats()["supernodes"] > 0
    brute_force.assert_same(tree, ids, boxes, boxes[::1000])
    tree.delete_many(ids[:5500], boxes[:5500])
    tree.check()
    brute_force.assert_same(tree, ids[5500:], boxes[5500:], boxes[::1000])
