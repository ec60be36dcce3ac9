"""Compares xtree with shapely's STRtree and with rtree, where they are installed: python examples/compare.py [records]

Uniform small boxes in the unit square. All contenders run in turn, each measurement several times; the table shows
medians, with the spread in brackets, and how many times as long as xtree each takes. Answers are checked against
each other. On two busy cores read the ratios, not the times.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

import xtree

ROUNDS = 5
QUERIES = {"small": (10, 20_000), "medium": (100, 5_000), "large": (10_000, 100)}  # hits, windows
SINGLE = 500
INSERTS = 2_000


def boxes_of(records: int, rng: np.random.Generator) -> np.ndarray:
    low = rng.random((records, 2))
    return np.hstack([low, low + rng.random((records, 2)) * 0.5 / np.sqrt(records)])


def windows_of(hits: int, count: int, records: int, rng: np.random.Generator) -> np.ndarray:
    low = rng.random((count, 2))
    return np.hstack([low, low + np.sqrt(min(hits / records, 0.5))])


class XTreeSide:
    name = "xtree"

    def build(self, boxes: np.ndarray) -> None:
        self.tree = xtree.XTree.from_boxes(boxes)

    def batch(self, windows: np.ndarray) -> int:
        return len(self.tree.query(windows, output="csr")[1])

    def single(self, windows: list[list[float]]) -> int:
        return sum(len(self.tree.query(window)) for window in windows)

    def nearest(self, points: list[list[float]]) -> int:
        return sum(len(self.tree.nearest(point, k=10)) for point in points)

    def insert(self, boxes: np.ndarray) -> None:
        ids = np.arange(len(boxes))
        tree = xtree.XTree(dims=2)
        with tree.transaction() as tx:
            for i, box in zip(ids.tolist(), boxes.tolist()):
                tx.insert(i, box)


class ShapelySide:
    name = "shapely"

    def __init__(self) -> None:
        import shapely

        self.shapely = shapely

    def build(self, boxes: np.ndarray) -> None:
        geometries = self.shapely.box(*boxes.T)
        started = time.perf_counter()
        self.tree = self.shapely.STRtree(geometries)
        self.tree.query(geometries[0])  # it is built at the first query
        self.build_seconds = time.perf_counter() - started

    def batch(self, windows: np.ndarray) -> int:
        return self.tree.query(self.shapely.box(*windows.T)).shape[1]

    def single(self, windows: list[list[float]]) -> int:
        return sum(len(self.tree.query(self.shapely.box(*window))) for window in windows)


class RtreeSide:
    name = "rtree"

    def __init__(self) -> None:
        from rtree import index

        self.index = index

    def build(self, boxes: np.ndarray) -> None:
        ids = np.arange(len(boxes))
        self.tree = self.index.Index((ids, boxes[:, :2].copy(), boxes[:, 2:].copy()))

    def batch(self, windows: np.ndarray) -> int:
        return len(self.tree.intersection_v(windows[:, :2].copy(), windows[:, 2:].copy())[0])

    def single(self, windows: list[list[float]]) -> int:
        return sum(len(list(self.tree.intersection(window))) for window in windows)

    def nearest(self, points: list[list[float]]) -> int:
        return sum(len(list(self.tree.nearest(point, 10))) for point in points)

    def insert(self, boxes: np.ndarray) -> None:
        tree = self.index.Index()
        for i, box in enumerate(boxes.tolist()):
            tree.insert(i, box)


def sides() -> list:
    """The contenders that are installed, xtree first."""
    found: list = [XTreeSide()]
    for side in (ShapelySide, RtreeSide):
        try:
            found.append(side())
        except ImportError as error:
            print(f"without {side.name}: {error}")
    return found


def seconds(side, work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    answer = work()
    took = time.perf_counter() - started
    return getattr(side, "build_seconds", took) if answer is None else took, answer


def row(what: str, contenders: list, work: Callable, per: int, unit: float, rounds: int = ROUNDS) -> None:
    """One line of the table: every contender in turn, `rounds` times."""
    times: dict[str, list[float]] = {side.name: [] for side in contenders}
    answers: dict[str, object] = {}
    for _ in range(rounds):
        for side in contenders:
            took, answers[side.name] = seconds(side, lambda side=side: work(side))
            times[side.name].append(took / per * unit)
    counts = {answer for answer in answers.values() if answer is not None}
    assert len(counts) <= 1, f"{what}: different answers: {answers}"
    ours = statistics.median(times["xtree"])
    cells = []
    for name, found in times.items():
        median = statistics.median(found)
        ratio = "" if name == "xtree" else f" = {median / ours:.1f}×"
        cells.append(f"{name} {median:.4g} [{min(found):.3g}, {max(found):.3g}]{ratio}")
    print(f"{what:32}", "   ".join(cells), flush=True)


def main(records: int = 100_000) -> None:
    rng = np.random.default_rng(7)
    boxes = boxes_of(records, rng)
    contenders = sides()
    print(f"{records:,} boxes; medians of {ROUNDS} [least, most]")
    row("build, s", contenders, lambda side: side.build(boxes), 1, 1.0)
    for size, (hits, count) in QUERIES.items():
        windows = windows_of(hits, count, records, rng)
        row(f"{size} windows in a batch, µs", contenders, lambda side, w=windows: side.batch(w), count, 1e6)
    for size, (hits, count) in QUERIES.items():
        windows = windows_of(hits, min(SINGLE, count), records, rng).tolist()
        row(f"{size} windows one by one, µs", contenders, lambda side, w=windows: side.single(w), len(windows), 1e6)
    points = rng.random((SINGLE, 2)).tolist()
    with_nearest = [side for side in contenders if hasattr(side, "nearest")]
    row("10 nearest, one by one, µs", with_nearest, lambda side: side.nearest(points), SINGLE, 1e6)
    some = boxes[: min(INSERTS, records)]
    with_insert = [side for side in contenders if hasattr(side, "insert")]
    row("inserts one by one, µs", with_insert, lambda side: side.insert(some), len(some), 1e6)


if __name__ == "__main__":
    main(*(int(argument.replace("_", "")) for argument in sys.argv[1:2]))
