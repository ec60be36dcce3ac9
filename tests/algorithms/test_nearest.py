"""Nearest neighbours against the distances to every record."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import brute_force, tree_data
from support.packed_trees import load

from xtree.algorithms.queries.nearest import nearest
from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.memory_store import MemoryStore

TINY, MOST = tree_data.TINIEST, tree_data.MOST


def exact_distances(boxes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Distances by the rules of the tree: squares added axis by axis, scaled where they would overflow or vanish."""
    dims = len(point)
    with np.errstate(over="ignore", under="ignore"):
        gaps = np.maximum(np.maximum(boxes[:, :dims] - point, point - boxes[:, dims:]), 0.0)
        plain = np.zeros(len(boxes))
        for axis in range(dims):
            plain += gaps[:, axis] * gaps[:, axis]
        plain = np.sqrt(plain)
    rough = ~((plain >= 1e-140) & (plain <= 1e150))
    for i in np.flatnonzero(rough):
        plain[i] = scaled_distance(boxes[i], point)
    return plain


def scaled_distance(box: np.ndarray, point: np.ndarray) -> float:
    dims = len(point)
    half = max(np.abs(box).max(), np.abs(point).max()) > 1e307
    unit = 0.5 if half else 1.0
    gaps = np.maximum(np.maximum(box[:dims] * unit - point * unit, point * unit - box[dims:] * unit), 0.0).tolist()
    largest = max(gaps)
    if largest == 0.0:
        return 0.0
    exponent = math.frexp(largest)[1]
    total = 0.0
    for gap in gaps:
        scaled = math.ldexp(gap, -exponent)
        total += scaled * scaled  # ** 2 is sometimes off by one bit
    try:
        return math.ldexp(math.sqrt(total), exponent) / unit
    except OverflowError:
        return math.inf


def expected(ids, boxes, point, k, max_distance=np.inf) -> list[tuple[float, int]]:
    away = exact_distances(boxes, point)
    rows = sorted(zip(away.tolist(), ids.tolist(), strict=True))
    return [row for row in rows if row[0] <= max_distance][:k]


def assert_nearest(store, state, ids, boxes, points, k, max_distance=np.inf) -> None:
    points = np.ascontiguousarray(points)
    offsets, found, away = nearest(store, state, points, k, max_distance)
    assert (offsets.dtype, found.dtype, away.dtype) == (np.int64, np.int64, np.float64)
    assert len(offsets) == len(points) + 1
    assert offsets[-1] == len(found) == len(away)
    for i, point in enumerate(points):
        own = slice(offsets[i], offsets[i + 1])
        rows = list(zip(away[own].tolist(), found[own].tolist(), strict=True))
        assert rows == expected(ids, boxes, point, k, max_distance)


@pytest.mark.parametrize("dims", [1, 2, 3, 8, 17, 64])
def test_the_nearest_are_those_a_look_at_every_record_finds(store, random, dims):
    boxes = brute_force.random_boxes(random, 3000, dims, side=0.2)
    ids, state = load(store, boxes, random.integers(-(2**63), 2**63, 3000))
    for k in (1, 2, 10, 300):
        assert_nearest(store, state, ids, boxes, random.random((5, dims)) * 1.4 - 0.2, k)


@pytest.mark.parametrize("dims", [1, 2, 5])
@pytest.mark.parametrize("shape", tree_data.ALL)
def test_the_nearest_are_exact_on_awkward_data(shape, dims, random):
    store = MemoryStore()
    boxes = tree_data.ALL[shape](random, 700, dims)
    ids, state = load(store, boxes, random.permutation(700))
    points = np.vstack([boxes[:4, :dims], np.zeros((1, dims)), random.random((3, dims))])
    for k in (1, 7, 699, 1000):
        assert_nearest(store, state, ids, boxes, points, k)


def test_equal_distances_are_told_apart_by_id_also_at_the_cut(random):
    store = MemoryStore()
    grid = np.stack(np.meshgrid(np.arange(60.0), np.arange(60.0)), axis=-1).reshape(-1, 2)
    boxes = np.hstack([grid, grid])
    ids, state = load(store, boxes, random.permutation(3600))
    points = np.array([[30.0, 30.0], [29.5, 29.5], [0.0, 0.0], [-5.0, 30.0]])
    for k in (1, 2, 3, 4, 5, 6, 9, 13, 37, 200):
        assert_nearest(store, state, ids, boxes, points, k)


def test_records_stored_twice_are_found_twice(random):
    store = MemoryStore()
    boxes = np.repeat(brute_force.random_boxes(random, 200, 2), 3, axis=0)
    ids, state = load(store, boxes, np.repeat(np.arange(200), 3))
    assert_nearest(store, state, ids, boxes, random.random((10, 2)), 8)


def test_max_distance_is_inclusive():
    store = MemoryStore()
    boxes = np.repeat(np.arange(10.0)[:, None], 2, axis=1)
    _, state = load(store, boxes)
    _, found, away = nearest(store, state, np.array([[0.0]]), 10, 3.0)
    assert found.tolist() == [0, 1, 2, 3]
    assert away.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert nearest(store, state, np.array([[0.0]]), 10, float(np.nextafter(3.0, 0.0)))[1].tolist() == [0, 1, 2]
    assert nearest(store, state, np.array([[0.0]]), 2, 3.0)[1].tolist() == [0, 1]
    assert nearest(store, state, np.array([[-1.0]]), 2, 0.5)[0].tolist() == [0, 0]


def test_max_distance_cuts_as_the_distances_do(random):
    store = MemoryStore()
    boxes = brute_force.random_boxes(random, 5000, 2, side=0.01)
    ids, state = load(store, boxes)
    for point in random.random((20, 2)):
        cut = expected(ids, boxes, point, 50)[random.integers(0, 50)][0]
        assert_nearest(store, state, ids, boxes, point[None, :], 40, cut)
        assert_nearest(store, state, ids, boxes, point[None, :], 10_000, cut)


def test_huge_coordinates_have_finite_distances_where_these_are_finite():
    store = MemoryStore()
    boxes = np.array([[x, 0.0, x, 0.0] for x in (MOST, -MOST, 1e300, -1e300, 1e160, 1.0)])
    _, state = load(store, boxes)
    _, found, away = nearest(store, state, np.array([[0.0, 0.0]]), 6)
    assert found.tolist() == [5, 4, 2, 3, 0, 1]
    assert away.tolist() == [1.0, 1e160, 1e300, 1e300, MOST, MOST]
    _, found, away = nearest(store, state, np.array([[MOST, 0.0]]), 6)
    assert found.tolist() == [0, 2, 4, 5, 1, 3]
    assert away[0] == 0.0
    assert np.isfinite(away).tolist() == [True] * 4 + [False] * 2


def test_tiny_distances_do_not_vanish():
    store = MemoryStore()
    boxes = np.array([[x, x, x, x] for x in (3 * TINY, 1e-200, 1e-170, 2e-170, 0.0, 1.0)])
    _, state = load(store, boxes)
    _, found, away = nearest(store, state, np.array([[0.0, 0.0]]), 6)
    assert found.tolist() == [4, 0, 1, 2, 3, 5]
    assert away[1] == 4 * TINY
    assert np.allclose(away[2:5], np.sqrt(2.0) * np.array([1e-200, 1e-170, 2e-170]), rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("exponents", [(-170, -110), (-141, -139), (140, 160), (149, 151)], ids=str)
def test_distances_at_the_ends_of_the_safe_range_keep_their_order(exponents, random):
    store = MemoryStore()
    sides = 10.0 ** random.uniform(*exponents, (3000, 2))
    ids, state = load(store, np.hstack([sides, sides]))
    for k in (1, 5, 40):
        assert_nearest(store, state, ids, np.hstack([sides, sides]), np.zeros((1, 2)), k)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 130])
@pytest.mark.parametrize("order", ["near first", "far first", "mixed", "alternating"])
def test_any_order_of_the_records_in_a_page_gives_any_number_of_the_nearest(n, order, random):
    store = MemoryStore()
    away = np.sort(random.random(n))
    if order == "far first":
        away = away[::-1]
    elif order == "mixed":
        away = random.permutation(away)
    elif order == "alternating":
        away = np.where(np.arange(n) % 2, away, 9.0 + away)
    boxes = np.column_stack([away, np.zeros(n), away, np.zeros(n)])
    ids, state = load(store, boxes)
    for k in (1, 2, n // 2, n // 2 + 1, n, 63, 64, 65):
        for most in (np.inf, 0.5, 0.0):
            assert_nearest(store, state, ids, boxes, np.zeros((1, 2)), max(k, 1), most)


def test_a_large_batch_comes_back_in_the_order_it_was_asked(random):
    store = MemoryStore()
    boxes = brute_force.random_boxes(random, 5000, 2, side=0.01)
    ids, state = load(store, boxes)
    points = random.random((200, 2))
    assert_nearest(store, state, ids, boxes, points, 3)
    assert_nearest(store, state, ids, boxes, points, 30, 0.02)


def test_an_empty_tree_and_no_points_have_no_neighbours(store, random):
    empty = TreeState.create(2)
    offsets, found, away = nearest(store, empty, random.random((3, 2)), 5)
    assert (offsets.tolist(), found.tolist(), away.tolist()) == ([0, 0, 0, 0], [], [])
    assert nearest(store, empty, random.random((100, 2)), 5)[0].tolist() == [0] * 101
    _, state = load(store, brute_force.random_boxes(random, 100, 2))
    assert nearest(store, state, np.empty((0, 2)), 5)[0].tolist() == [0]


def test_k_below_one_and_points_of_another_size_are_refused(random):
    store = MemoryStore()
    _, state = load(store, brute_force.random_boxes(random, 100, 2))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        nearest(store, state, np.zeros((1, 2)), 0)
    with pytest.raises(ValueError, match="expected rows of 16 bytes"):
        nearest(store, state, np.zeros(3), 1)
