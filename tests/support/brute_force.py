"""The answers of a tree by a scan of all records; and data to ask about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np


def matches(boxes: np.ndarray, window: np.ndarray, predicate: str = "intersects") -> np.ndarray:
    """A mask (n,) of the boxes (n, 2*d) with which a window (2*d,) fulfils a predicate."""
    dims = boxes.shape[1] // 2
    lower, upper = boxes[:, :dims], boxes[:, dims:]
    least, most = window[:dims], window[dims:]
    if predicate == "intersects":
        return ((lower <= most) & (upper >= least)).all(axis=1)
    if predicate in ("contains", "covers"):
        return ((lower >= least) & (upper <= most)).all(axis=1)
    return ((lower <= least) & (upper >= most)).all(axis=1)


def query(ids: np.ndarray, boxes: np.ndarray, window: np.ndarray, predicate: str = "intersects") -> list[int]:
    """The sorted ids of the records with which a window fulfils a predicate."""
    return sorted(ids[matches(boxes, window, predicate)].tolist())


def distances(boxes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Euclidean distances from a point (d,) to boxes (n, 2*d), scaled so that squares neither vanish nor overflow."""
    dims = boxes.shape[1] // 2
    gaps = np.maximum(np.maximum(boxes[:, :dims] - point, point - boxes[:, dims:]), 0.0)
    largest = gaps.max(axis=1)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)[:, None]
    return scale[:, 0] * np.sqrt(((gaps / scale) ** 2).sum(axis=1))


def nearest(
    ids: np.ndarray, boxes: np.ndarray, point: np.ndarray, k: int, max_distance: float = np.inf
) -> tuple[list[int], list[float]]:
    """The k nearest by (distance, id), and their distances."""
    away = distances(boxes, point)
    order = [i for i in np.lexsort((ids, away)) if away[i] <= max_distance][:k]
    return ids[order].tolist(), away[order].tolist()


def records(ids: np.ndarray, boxes: np.ndarray) -> Counter[tuple[int, tuple[float, ...]]]:
    """How often each record is there; -0.0 counts as 0.0."""
    return Counter(zip(ids.tolist(), map(tuple, (boxes + 0.0).tolist()), strict=True))


def arrays(kept: Iterable[tuple[int, tuple[float, ...]]], dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Records as (ids, boxes)."""
    rows = list(kept)
    ids = np.array([id for id, _ in rows], np.int64)
    return ids, np.array([box for _, box in rows], float).reshape(-1, 2 * dims)


def random_boxes(random: np.random.Generator, n: int, dims: int, side: float = 0.1) -> np.ndarray:
    """n boxes in the unit cube, sides up to `side`."""
    lower = random.random((n, dims))
    return np.hstack([lower, lower + side * random.random((n, dims))])


def assert_same(tree, ids: np.ndarray, boxes: np.ndarray, windows: np.ndarray) -> None:
    """Asserts that the reader `tree` holds exactly these records, and answers windows so, one by one and together."""
    assert len(tree) == len(ids)
    assert records(*tree.items()) == records(ids, boxes)
    if len(ids):
        dims = boxes.shape[1] // 2
        assert tree.bounds.tolist() == [*(boxes[:, :dims].min(axis=0) + 0.0), *(boxes[:, dims:].max(axis=0) + 0.0)]
    else:
        assert tree.bounds is None
        assert tree.height == 0
    for predicate in ("intersects", "contains", "within"):
        expected = [query(ids, boxes, window, predicate) for window in windows]
        offsets, found = tree.query(windows, predicate, output="csr")
        assert [sorted(hits.tolist()) for hits in np.split(found, offsets[1:-1])] == expected
        assert tree.count(windows, predicate).tolist() == [len(hits) for hits in expected]
        for window, hits in list(zip(windows, expected, strict=True))[:3]:
            assert sorted(tree.query(window, predicate).tolist()) == hits
            assert tree.count(window, predicate) == len(hits)
