"""Coordinates times a power of two give the same tree, page by page, from denormal to nearly infinite ones.

Promises (Right answers):

- a tree is the same, page by page, at any scale of its coordinates, denormal and nearly infinite ones too:
  test_a_tree_is_the_same_at_any_scale.
"""

from __future__ import annotations

import numpy as np
import pytest

import xtree

FACTORS = [2.0**-1060, 2.0**-1022, 2.0**-960, 2.0**-500, 2.0**500, 2.0**1000, 2.0**1011]
MOST = 4096  # with the largest factor, the extent from -MOST to MOST is infinite


def scattered(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    lower = random.integers(-MOST, MOST - 64, (n, dims))
    return np.hstack([lower, lower + random.integers(0, 64, (n, dims))])


def points(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    lower = random.integers(-MOST, MOST, (n, dims))
    return np.hstack([lower, lower])


def on_a_grid(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    lower = random.integers(-4, 4, (n, dims)) * (MOST // 4)
    return np.hstack([lower, lower + random.integers(0, 3, (n, dims))])


def around_one_centre(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    half = random.integers(0, MOST, (n, dims))
    return np.hstack([-half, half])


def flat_on_an_axis(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    boxes = scattered(random, n, dims)
    boxes[:, [0, dims]] = 7
    return boxes


SHAPES = {shape.__name__: shape for shape in (scattered, points, on_a_grid, around_one_centre, flat_on_an_axis)}


def made(boxes: np.ndarray, way: str) -> xtree.XTree:
    ids = np.arange(len(boxes))
    if way == "packed":
        return xtree.XTree.from_boxes(boxes, dims=boxes.shape[1] // 2)
    tree = xtree.XTree(boxes.shape[1] // 2)
    third = len(boxes) // 3
    for start in range(0, third, 500):
        tree.insert_many(ids[start : min(start + 500, third)], boxes[start : min(start + 500, third)])
    tree.insert_many(ids[third : 2 * third], boxes[third : 2 * third])
    tree.insert_many(ids[2 * third :], boxes[2 * third :])
    tree.delete_many(ids[::3], boxes[::3])
    return tree


def described(tree: xtree.XTree, windows: np.ndarray) -> tuple:
    """What must be the same: records in the order of the leaves, levels, the costs and results of queries."""
    tree.check()
    ids, _ = tree.items()
    stats = tree.stats()
    levels = [{name: level[name] for name in ("level", "nodes", "entries", "supernodes")} for level in stats["levels"]]
    offsets, found = tree.query(windows, output="csr")
    return ids.tolist(), levels, tree.explain(windows), offsets.tolist(), found.tolist()


@pytest.mark.parametrize("way", ["packed", "grown"])
@pytest.mark.parametrize("dims", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tree_is_the_same_at_any_scale(random, shape, dims, way):
    boxes = SHAPES[shape](random, 3000, dims).astype(np.float64)
    windows = scattered(random, 200, dims).astype(np.float64)
    expected = described(made(boxes, way), windows)
    for factor in FACTORS:
        assert described(made(boxes * factor, way), windows * factor) == expected, factor


@pytest.mark.parametrize("way", ["packed", "grown"])
@pytest.mark.parametrize("factor", FACTORS[:3] + FACTORS[-1:])
def test_an_axis_of_another_scale_changes_no_cell_of_the_others(random, factor, way):
    """The tree differs, since margins weigh the axes; but about as few pages are read to find a point."""
    boxes = points(random, 20_000, 2).astype(np.float64)
    boxes[:, [0, 2]] *= factor
    tree = made(boxes, way)
    tree.check()
    left = boxes[np.arange(len(boxes)) % 3 > 0] if way == "grown" else boxes
    assert tree.explain(left[:500])["pages"] < 500 * 3 * tree.height


def test_a_large_batch_goes_in_along_the_same_curve_at_any_scale(random):
    boxes = points(random, 20_000, 2).astype(np.float64)
    found = []
    for factor in (1.0, *FACTORS):
        tree = xtree.XTree.from_boxes(boxes[:10_000] * factor)
        tree.insert_many(np.arange(10_000, 20_000), boxes[10_000:] * factor)
        found.append(described(tree, boxes[:100] * factor))
    assert all(tree == found[0] for tree in found[1:])
