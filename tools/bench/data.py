"""Boxes to measure trees with, windows that hit as many of them as one likes, and points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import xtree
from xtree.data import cities
from xtree.tools.bench.commits import boxes_of
from xtree.tools.table_error import TableError
from xtree.tools.tables import read_table

__all__ = ["GENERATED", "Data", "boxes_in_order", "data_of", "more_of", "points_of", "windows_of"]

CLUSTERS = 1000
HALVINGS = 24  # of the interval in which the side of a window is looked for

Boxes = np.ndarray


@dataclass(frozen=True)
class Data:
    """Boxes (n, 4), shuffled if they were generated, in the order of their file otherwise."""

    name: str
    boxes: Boxes
    uniform: bool = False


def _uniform(n: int) -> Boxes:
    return boxes_of(1, n)


def _clustered(n: int) -> Boxes:
    """Boxes like the uniform ones around a thousand centres, some clusters a hundred times as large as others."""
    low = _cluster_points(n)
    return np.hstack([low, low + np.random.default_rng(3).random((n, 2)) * 0.5 / np.sqrt(max(n, 1))])


def _clustered_points(n: int) -> Boxes:
    low = _cluster_points(n)
    return np.hstack([low, low])


def _cluster_points(n: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    weights = 1 / (np.arange(CLUSTERS) + 10.0)
    cluster = rng.choice(CLUSTERS, n, p=weights / weights.sum())
    return rng.random((CLUSTERS, 2))[cluster] + rng.normal(0, 0.01, (n, 2))


def _cities(n: int) -> Boxes:
    return cities().boxes


GENERATED = {"uniform": _uniform, "clustered": _clustered, "points": _clustered_points, "cities": _cities}


def data_of(source: str, records: int) -> Data:
    """The boxes named by `source`: generated ones, or those of a .csv, .npy or .npz file, or the cities.

    records: how many are generated; of a file or the cities it takes at most that many, from the beginning. Raises
    TableError for a file that holds no boxes of two dimensions, OSError.
    """
    if source in GENERATED:
        boxes = GENERATED[source](records)
        return Data(source, boxes[:records], uniform=source == "uniform")
    boxes = read_table(Path(source)).boxes
    if boxes.shape[1] != 4 or not len(boxes):
        raise TableError(f"{source}: expected boxes of 2 dimensions, got {len(boxes)} of {boxes.shape[1] // 2}")
    return Data(Path(source).name, boxes[:records])


def boxes_in_order(boxes: Boxes, order: str) -> Boxes:
    """Boxes as they are given, shuffled, sorted by their first minimum, in reverse, or one of them again and again."""
    if order == "given":
        return boxes
    if order == "shuffled":
        return boxes[np.random.default_rng(4).permutation(len(boxes))]
    if order == "duplicates":
        return np.repeat(boxes[:1], len(boxes), axis=0)
    rows = np.argsort(boxes[:, 0], kind="stable")
    return np.ascontiguousarray(boxes[rows if order == "sorted" else rows[::-1]])


def more_of(data: Data, count: int, seed: int) -> Boxes:
    """More boxes like those of the data: uniform ones, or some of its own moved by about the distance between them."""
    n = len(data.boxes)
    if data.uniform:
        return boxes_of(seed, n)[:count]
    rng = np.random.default_rng(seed)
    boxes = data.boxes[rng.integers(0, n, count)]
    span = np.ptp(data.boxes[:, :2], axis=0)
    return boxes + np.tile(rng.normal(0, 0.5 / np.sqrt(n), (count, 2)) * span, 2)


def windows_of(data: Data, hits: int, count: int, seed: int) -> Boxes:
    """Square windows (count, 4) with about so many hits each.

    In uniform data all have the same side and lie anywhere. In other data they are centred on records, and each is as
    wide as it must be.
    """
    rng = np.random.default_rng(seed)
    n = len(data.boxes)
    if data.uniform:
        side = np.sqrt(min(hits / n, 1.0))
        low = rng.random((count, 2)) * (1 - side)
        return np.hstack([low, low + side])
    centres = points_of(data, count, seed)
    tree = xtree.XTree.from_boxes(data.boxes)
    least: np.ndarray = np.zeros(count)
    most: np.ndarray = np.full(count, np.ptp(data.boxes, axis=0).max())
    for _ in range(HALVINGS):
        half = (least + most) / 2
        enough = tree.count(_squares(centres, half)) >= hits
        least, most = np.where(enough, least, half), np.where(enough, half, most)
    tree.close()
    return _squares(centres, most)


def points_of(data: Data, count: int, seed: int) -> np.ndarray:
    """Points (count, 2) to ask about: anywhere in uniform data, else the centres of records."""
    rng = np.random.default_rng(seed)
    if data.uniform:
        return rng.random((count, 2))
    some = data.boxes[rng.integers(0, len(data.boxes), count)]
    return (some[:, :2] + some[:, 2:]) / 2


def _squares(centres: np.ndarray, half: np.ndarray) -> Boxes:
    return np.hstack([centres - half[:, None], centres + half[:, None]])
