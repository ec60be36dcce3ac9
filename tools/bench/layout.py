"""`bench layout`: what the size of a page costs and saves, by dimension.

The trees of one dimension hold the same points and take turns; their answers are compared with each other, and a sample
of them with a look at every point. The ratios are to the size that `Config.page_bytes=None` picks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

import xtree
from xtree.algorithms.bucket import entry_limits
from xtree.persistence.base.config import PAGE_BYTES
from xtree.tools.bench.report import Report, require

__all__ = ["FULL", "QUICK", "LayoutScale", "bench_layout"]

JUDGED = 20  # questions whose answers are compared with a look at every point
UNITS = {"build": "ms", "window": "µs", "nearest ten": "µs", "insert": "µs"}


@dataclass(frozen=True)
class LayoutScale:
    """How much is measured. records: up to three dimensions, and in more."""

    rounds: int = 5
    dims: tuple[int, ...] = (2, 3, 8, 16, 32)
    page_bytes: tuple[int, ...] = (4096, 8192, 16384, 32768)
    records: tuple[int, int] = (1_000_000, 100_000)
    questions: int = 2000
    inserts: int = 10_000
    hits: int = 100


FULL = LayoutScale()
QUICK = LayoutScale(3, (2, 8), (4096, 8192), records=(50_000, 20_000), questions=200, inserts=2000)


def bench_layout(scale: LayoutScale = FULL, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures every size of page in every dimension and returns it as JSON holds it; prints each figure as it comes.

    Raises WrongAnswerError when trees don't agree with each other or with a look at every point.
    """
    report = Report(say)
    started = perf_counter()
    for dims in scale.dims:
        _measure(report, scale, dims)
    return report.as_dict(benchmark="layout", scale=asdict(scale), seconds=perf_counter() - started)


def _measure(report: Report, scale: LayoutScale, dims: int) -> None:
    """The tables of one dimension."""
    rng = np.random.default_rng(dims)
    records = scale.records[dims > 3]
    points = rng.random((records, dims))
    more = rng.random((scale.rounds, scale.inserts, dims))
    # Each window is a cube around a record, with as much of the volume as holds `hits` records.
    half = 0.5 * (scale.hits / records) ** (1 / dims)
    centres = points[rng.integers(0, records, scale.questions)]
    windows = np.hstack([centres - half, centres + half])
    usual = _usual(dims)
    sizes = [usual, *(size for size in scale.page_bytes if size != usual and 2 * size >= usual)]
    samples: dict[str, list[list[float]]] = {what: [[] for _ in sizes] for what in UNITS}
    pages = [0.0] * len(sizes)
    for round_ in range(scale.rounds):
        answers = []
        for turn in range(len(sizes)):
            i = (turn + round_) % len(sizes)
            tree = xtree.XTree(dims, config=xtree.Config(page_bytes=sizes[i]))
            taken = [samples[what][i] for what in UNITS]
            answers.append(_take_turn(tree, points, windows, centres, more[round_], taken))
            pages[i] = tree.explain(windows)["pages"] / len(windows)
        for other in answers[1:]:
            require(all(map(np.array_equal, answers[0], other)), f"trees of {dims} dimensions answer alike")
        _judge(points, windows, centres, answers[0])
    report.section(f"{records:,} points in {dims} dimensions, windows of about {scale.hits} hits")
    for what, unit in UNITS.items():
        first = None
        for size, measured, read in zip(sizes, samples[what], pages):
            leaf, block = entry_limits(dims, size)
            note = f"{leaf} records, {block} entries a page; {read:.1f} pages" if what == "window" else ""
            name = f"{what}, pages of {size >> 10} KiB"
            figure = report.add(f"{dims}-D, {what}", name, unit, measured, [first], note)
            first = first or figure


def _usual(dims: int) -> int:
    """The page size that is picked for a dimension."""
    usual = entry_limits(dims)
    return next(size for size in reversed(PAGE_BYTES) if entry_limits(dims, size) == usual)  # the smallest hold too few


def _take_turn(
    tree: xtree.XTree,
    points: np.ndarray,
    windows: np.ndarray,
    centres: np.ndarray,
    more: np.ndarray,
    samples: Sequence[list[float]],
) -> tuple[np.ndarray, ...]:
    """Builds, asks and inserts, each a sample; returns (records in each window, neighbours of the points)."""
    moments = [perf_counter()]
    tree.bulk_load(np.arange(len(points)), points)
    moments.append(perf_counter())
    offsets, _ = tree.query(windows, output="csr")
    moments.append(perf_counter())
    found = tree.nearest(centres, 10)
    moments.append(perf_counter())
    tree.insert_many(np.arange(len(more)) - len(more), more)
    moments.append(perf_counter())
    for taken, seconds, per in zip(samples, np.diff(moments), (1, len(windows), len(centres), len(more))):
        taken.append(float(seconds) * (1e3 if per == 1 else 1e6 / per))
    return np.diff(offsets), found[1]


def _judge(points: np.ndarray, windows: np.ndarray, centres: np.ndarray, answers: tuple[np.ndarray, ...]) -> None:
    dims = points.shape[1]
    counts, neighbours = answers
    for i in range(min(JUDGED, len(windows))):
        inside = ((points >= windows[i, :dims]) & (points <= windows[i, dims:])).all(axis=1)
        require(int(inside.sum()) == counts[i], "a window has the records that a look at every point finds")
        distances = ((points - centres[i]) ** 2).sum(axis=1)
        nearest = np.lexsort((np.arange(len(points)), distances))[:10]
        require(
            np.allclose(distances[nearest], distances[neighbours.reshape(-1, 10)[i]]),
            "the nearest records are those that a look at every point finds",
        )
