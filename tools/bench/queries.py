"""Benchmark of questions: windows in a batch and one a call, counts, nearest records, joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xtree.tools.bench.answers import NearestJudge, WindowJudge
from xtree.tools.bench.contest import Row, hold
from xtree.tools.bench.data import Data, points_of, windows_of
from xtree.tools.bench.report import Report
from xtree.tools.bench.tree_peers import GEOINDEX, RTREE, SHAPELY
from xtree.tools.bench.trees import Contestant, MemoryTree, PairsOf

if TYPE_CHECKING:
    from xtree.tools.bench.index import IndexScale

__all__ = ["SIZES", "Size", "measure_empty", "measure_join", "measure_nearest", "measure_windows"]

NEIGHBOURS = 10


class Size(NamedTuple):
    """Windows of one size: about how many records they hit, and how much faster than shapely they should be found."""

    name: str
    hits: int
    batched: float
    single: float


SIZES = (Size("small", 10, 3.5, 3.0), Size("medium", 100, 4.5, 3.0), Size("large", 10_000, 6.0, 3.0))


def measure_windows(report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant]) -> None:
    """Windows of three sizes: all in one call, one a call, and only counted."""
    for size, number in zip(SIZES, scale.windows):
        hits = min(size.hits, max(len(data.boxes) // 4, 1))
        windows = windows_of(data, hits, number, seed=hits)
        _measure_size(report, scale, data, contestants, size._replace(hits=hits), windows)
    _measure_many(report, scale, data, contestants, SIZES[0])


def _measure_size(
    report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant], size: Size, windows: np.ndarray
) -> None:
    about = f"{size.name} windows, about {size.hits:,} hits"
    judge = WindowJudge(data.boxes, windows)
    pairs = [PairsOf(contestant) for contestant in contestants if isinstance(contestant, MemoryTree)]
    row = Row(f"windows, {size.name}", f"{about}, a batch", "µs", len(windows), {SHAPELY: 1 / size.batched})
    hold(report, row, scale.rounds, [*contestants, *pairs], lambda c, _: c.search(windows), judge)
    row = Row(f"counts, {size.name}", f"{about}, only counted", "µs", len(windows))
    hold(report, row, scale.rounds, contestants, lambda c, _: c.count(windows), judge)
    some = windows[: scale.single_windows]
    judge = WindowJudge(data.boxes, some)
    row = Row(f"one window, {size.name}", f"{about}, one a call", "µs", len(some), {SHAPELY: 1 / size.single})
    hold(report, row, scale.rounds, contestants, lambda c, _: c.search_each(some), judge)


def _measure_many(
    report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant], size: Size
) -> None:
    """So many windows in one call that neighbours lie close together, for indexes that take batches fast enough."""
    windows = windows_of(data, min(size.hits, max(len(data.boxes) // 4, 1)), scale.many_windows, seed=11)
    able = [contestant for contestant in contestants if contestant.ours or contestant.name == SHAPELY]
    title = f"{len(windows):,} {size.name} windows, about {size.hits:,} hits, a batch"
    row = Row(f"windows, {size.name}, many", title, "µs", len(windows), {SHAPELY: 1 / size.batched})
    hold(report, row, scale.rounds, able, lambda c, _: c.search(windows), WindowJudge(data.boxes, windows))


def measure_empty(report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant]) -> None:
    """One window a call, asked of indexes without records, which they are left with."""
    nothing = data.boxes[:0]
    windows = windows_of(data, min(10, len(data.boxes)), scale.single_windows, seed=10)
    judge = WindowJudge(nothing, windows)
    able = []
    for contestant in contestants:
        trial = contestant.build(nothing)
        if trial is not None:
            trial.run()
            able.append(contestant)
    row = Row("one window, empty", "a window asked of an empty index, one a call", "µs", len(windows))
    hold(report, row, scale.rounds, able, lambda c, _: c.search_each(windows), judge)


def measure_nearest(report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant]) -> None:
    """The ten nearest records, one point a call and many, and the one nearest, which is all that shapely finds."""
    points = points_of(data, scale.points, seed=12)
    each = points[: scale.single_windows]
    k = NEIGHBOURS
    row = Row("nearest, one a call", f"{k} nearest records, one point a call", "µs", len(each), {GEOINDEX: 1 / 1.6})
    judge = NearestJudge(data.boxes, each, k)
    hold(report, row, scale.rounds, contestants, lambda c, _: c.nearest_each(each, k), judge)
    row = Row("nearest, batch", f"{k} nearest records, a batch of points", "µs", len(points), {RTREE: 1 / 10})
    some = [contestant for contestant in contestants if contestant.name != SHAPELY]
    hold(report, row, scale.rounds, some, lambda c, _: c.nearest(points, k), NearestJudge(data.boxes, points, k))
    row = Row("nearest one, batch", "the nearest record, a batch of points", "µs", len(points))
    hold(report, row, scale.rounds, contestants, lambda c, _: c.nearest(points, 1), NearestJudge(data.boxes, points, 1))


def measure_join(report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant]) -> None:
    """All pairs of records that touch each other, in both directions, and each with itself."""
    row = Row("join", f"join of {len(data.boxes):,} records with themselves", "ms")
    judge = WindowJudge(data.boxes, data.boxes)
    hold(report, row, scale.rounds, contestants, lambda c, _: c.join(data.boxes), judge)
