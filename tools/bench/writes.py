"""Benchmark of changes: inserts in many orders, into grown and packed trees, deletes, questions after most are gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xtree.tools.bench.answers import WindowJudge
from xtree.tools.bench.build import checking_windows, report_sizes
from xtree.tools.bench.contest import JudgeOf, Row, asking, hold
from xtree.tools.bench.data import Data, boxes_in_order, more_of, windows_of
from xtree.tools.bench.queries import SIZES
from xtree.tools.bench.report import Report
from xtree.tools.bench.tree_peers import RTREE, SQLITE, memory_peers
from xtree.tools.bench.trees import BATCH, Contestant, DurableTree, MemoryTree, Trial

if TYPE_CHECKING:
    from xtree.tools.bench.index import IndexScale

__all__ = ["measure_deletes", "measure_growth", "measure_losses", "measure_orders", "measure_packed_growth"]

ORDERS = ("given", "shuffled", "sorted", "reversed", "duplicates")
MOST_BYTES_GROWN = 100.0  # a record, on the disk
SMALL = 1000
WINDOWS_OF_ORDERS = 10  # each of which may hit all
SYNCED = (DurableTree.name,)  # which the peers in memory don't do
MOST_AFTER_LOSSES = 1.5  # times as long as a fresh tree


def measure_growth(
    report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant], directory: Path
) -> None:
    """Indexes that grow by inserts alone, and then by records one by one; every contestant is left with its index."""
    boxes = data.boxes[: scale.grown_records]
    windows = checking_windows(data)
    title = f"{len(boxes):,} inserts into an empty index, many a call (durable: 10,000 a commit)"
    row = Row("inserts", title, "µs", len(boxes), {RTREE: 1 / 4}, without_targets=SYNCED)
    _grow_in_turns(report, row, scale.rounds, contestants, boxes, windows)
    report.section("bytes on the disk a record after inserts, all files, after a clean close")
    report_sizes(report, f"{len(boxes):,} inserts", len(boxes), contestants, MOST_BYTES_GROWN)
    _measure_small(report, data, directory)
    _measure_one_by_one(report, scale, data, contestants, boxes)


def _measure_one_by_one(
    report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant], boxes: np.ndarray
) -> None:
    more = _more(scale, data)
    number = len(more[0])
    windows = checking_windows(data)
    row = Row("inserts, one a call", f"{number:,} more inserts, one a call, in a transaction", "µs", number)

    def insert(contestant: Contestant, round_: int) -> Trial | None:
        trial = contestant.insert_each(len(boxes) + round_ * number, more[round_])
        return asking(contestant, trial, windows)

    hold(report, row, scale.rounds, contestants, insert, _judges_of_more(boxes, more, windows))


def measure_packed_growth(report: Report, scale: IndexScale, data: Data, directory: Path) -> None:
    """The same inserts into a packed tree and into one that grew, of the same records."""
    boxes = data.boxes[: scale.grown_records]
    more = _more(scale, data)
    number = len(more[0])
    windows = checking_windows(data)
    for kind, packed, grown in _pairs_of_trees(directory, "packed", "grown"):
        try:
            for trial in (packed.build(boxes), grown.grow(boxes)):
                trial.run()
            title = f"{number:,} inserts, many a call, into {len(boxes):,} records, {kind}"
            name = f"inserts into packed, {kind}"
            row = Row(name, title, "µs", number, {grown.name: 1 / 0.7}, (grown.name,))

            def insert(contestant: Contestant, round_: int) -> Trial | None:
                trial = contestant.insert_many(len(boxes) + round_ * number, more[round_])
                return asking(contestant, trial, windows)

            hold(report, row, scale.rounds, [packed, grown], insert, _judges_of_more(boxes, more, windows))
        finally:
            packed.close()
            grown.close()


def measure_orders(report: Report, scale: IndexScale, data: Data, directory: Path) -> None:
    """A few records inserted as they come, shuffled, sorted, reversed, one box again and again; and each a commit."""
    peers = [peer for peer in memory_peers(Report(lambda _: None)) if peer.name in (RTREE, SQLITE)]
    contestants = [MemoryTree(), DurableTree(directory / "ordered"), *peers]
    some = data.boxes[: scale.ordered_records]
    try:
        for order in ORDERS:
            boxes = boxes_in_order(some, order)
            row = Row(f"inserts, {order}", f"{len(boxes):,} inserts into an empty index, {order}", "µs", len(boxes))
            windows = checking_windows(Data(order, boxes))[:WINDOWS_OF_ORDERS]
            _grow_in_turns(report, row, scale.rounds, contestants, boxes, windows)
        _measure_single_commits(report, scale, contestants, some)
    finally:
        for contestant in contestants:
            contestant.close()


def _measure_single_commits(
    report: Report, scale: IndexScale, contestants: Sequence[Contestant], boxes: np.ndarray
) -> None:
    windows = checking_windows(Data("singly", boxes))
    title = f"{len(boxes):,} inserts into an empty index, each a commit, in memory"
    row = Row("inserts, one a commit", title, "µs", len(boxes))

    def grow(contestant: Contestant, _: int) -> Trial | None:
        return asking(contestant, contestant.grow_singly(boxes), windows)

    hold(report, row, scale.rounds, contestants, grow, WindowJudge(boxes, windows))


def measure_deletes(report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant]) -> None:
    """Records anywhere deleted from packed indexes of all the data; every contestant is left without them."""
    order = np.random.default_rng(13).permutation(len(data.boxes))
    number = max(min(scale.deletes, len(order) // (2 * scale.rounds)), 1)
    windows = checking_windows(data)
    title = f"{number:,} deletes from {len(order):,} records, many a call"
    row = Row("deletes", title, "µs", number, {SQLITE: 1 / 5, RTREE: 1 / 200}, without_targets=SYNCED)

    def delete(contestant: Contestant, round_: int) -> Trial | None:
        rows = order[round_ * number : (round_ + 1) * number]
        return asking(contestant, contestant.delete(rows, data.boxes[rows]), windows)

    def judge_of(round_: int) -> WindowJudge:
        left = order[(round_ + 1) * number :]
        return WindowJudge(data.boxes[left], windows, left)

    hold(report, row, scale.rounds, contestants, delete, judge_of)


def measure_losses(report: Report, scale: IndexScale, data: Data, directory: Path) -> None:
    """Questions to a tree that lost nine records of ten, and to a packed one of those that are left."""
    order = np.random.default_rng(14).permutation(len(data.boxes))
    left = np.sort(order[: max(len(order) // 10, 1)])
    lost = order[len(left) :]
    rest = Data(data.name, data.boxes[left], data.uniform)
    for kind, thinned, fresh in _pairs_of_trees(directory, "after losing 90 %", "fresh"):
        try:
            thinned.build(data.boxes).run()
            for start in range(0, len(lost), BATCH):
                some = lost[start : start + BATCH]
                thinned.delete(some, data.boxes[some]).run()
            fresh.build(rest.boxes, left).run()
            _ask_both(report, scale, rest, left, kind, thinned, fresh)
        finally:
            thinned.close()
            fresh.close()


def _measure_small(report: Report, data: Data, directory: Path) -> None:
    """What a small index that grew by inserts takes on the disk."""
    boxes = data.boxes[:SMALL]
    tree = DurableTree(directory / "small")
    try:
        tree.grow(boxes).run()
        report_sizes(report, f"{len(boxes):,} inserts", len(boxes), [tree], MOST_BYTES_GROWN)
    finally:
        tree.close()


def _ask_both(
    report: Report, scale: IndexScale, rest: Data, ids: np.ndarray, kind: str, thinned: MemoryTree, fresh: MemoryTree
) -> None:
    for size, number in zip(SIZES, scale.windows):
        hits = min(size.hits, max(len(ids) // 4, 1))
        windows = windows_of(rest, hits, number, seed=hits)
        title = f"{size.name} windows, about {hits:,} hits, after most records were deleted, {kind}"
        name = f"after losses, {size.name}, {kind}"
        row = Row(name, title, "µs", number, {fresh.name: MOST_AFTER_LOSSES}, (fresh.name,))
        _search_in_turns(report, row, scale.rounds, [thinned, fresh], windows, WindowJudge(rest.boxes, windows, ids))


def _search_in_turns(
    report: Report, row: Row, rounds: int, trees: Sequence[MemoryTree], windows: np.ndarray, judge: WindowJudge
) -> None:
    hold(report, row, rounds, trees, lambda c, _: c.search(windows), judge)


def _grow_in_turns(
    report: Report, row: Row, rounds: int, contestants: Sequence[Contestant], boxes: np.ndarray, windows: np.ndarray
) -> None:
    judge = WindowJudge(boxes, windows)
    hold(report, row, rounds, contestants, lambda c, _: asking(c, c.grow(boxes), windows), judge)


def _pairs_of_trees(directory: Path, first: str, second: str) -> Iterator[tuple[str, MemoryTree, MemoryTree]]:
    """Two trees of those names in memory, then two on the disk, each pair with its kind."""
    for kind in ("memory", "durable"):
        trees = [DurableTree(directory / name) if kind == "durable" else MemoryTree() for name in ("one", "other")]
        for tree, name in zip(trees, (first, second)):
            tree.name = f"{tree.name}, {name}"
        yield kind, trees[0], trees[1]


def _more(scale: IndexScale, data: Data) -> list[np.ndarray]:
    """For each round, records to insert into an index that has the data."""
    number = max(min(scale.more_inserts, len(data.boxes) // 10), 1)
    return [more_of(data, number, seed=20 + round_) for round_ in range(scale.rounds)]


def _judges_of_more(boxes: np.ndarray, more: Sequence[np.ndarray], windows: np.ndarray) -> JudgeOf:
    """The judge of each round, in which one more of `more` has been inserted."""
    return lambda round_: WindowJudge(np.vstack([boxes, *more[: round_ + 1]]), windows)
