"""Benchmark of commits into trees of different sizes that grew alike, and of what one puts into the log."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

import xtree
from xtree.tools.bench.commits import boxes_of
from xtree.tools.bench.report import Report, require

if TYPE_CHECKING:
    from xtree.tools.bench.substrate import Scale

__all__ = ["measure_growth"]

SMALLER = 100  # times smaller than the other
BATCH = 10_000  # records of a commit, as the trees grow
COMMITS = 50  # of one insert, in each round
MANY = 1000
MOST = 1.5  # times as long as in the smaller tree


class GrownTree:
    """A tree of a directory of its own, which grew by inserts."""

    def __init__(self, path: Path, records: int) -> None:
        self._runtime = xtree.Runtime(path, mode="x")
        self._tree = self._runtime.tree("t", dims=2)
        boxes = boxes_of(1, records)
        for first in range(0, records, BATCH):
            self._tree.insert_many(np.arange(first, min(first + BATCH, records)), boxes[first : first + BATCH])
        self._records = records
        self._runtime.checkpoint()

    def commit_singly(self, boxes: np.ndarray) -> float:
        """Milliseconds that a commit of one insert takes, in the middle."""
        taken = []
        for box in boxes:
            started = perf_counter()
            self._tree.insert(self._records, box)
            taken.append(perf_counter() - started)
            self._records += 1
        return float(np.median(taken)) * 1e3

    def commit_at_once(self, boxes: np.ndarray) -> tuple[float, int]:
        """Milliseconds that one commit of all these inserts takes, and the bytes that it adds to the log."""
        self._runtime.checkpoint()
        before = self._log_bytes()
        started = perf_counter()
        self._tree.insert_many(np.arange(len(boxes)) + self._records, boxes)
        elapsed = perf_counter() - started
        self._records += len(boxes)
        return elapsed * 1e3, self._log_bytes() - before

    def close(self) -> None:
        found = len(self._tree.items()[0])
        self._runtime.close()
        require(found == self._records, f"{found} records, {self._records} were committed")

    def _log_bytes(self) -> int:
        return int(self._runtime.stats()["coordinator"]["log_bytes_since_checkpoint"])


def measure_growth(report: Report, scale: Scale, directory: Path) -> None:
    """Commits of one insert into both trees in turns, and a thousand inserts anywhere in the larger one."""
    sizes = (max(scale.grown_records // SMALLER, 1), scale.grown_records)
    report.section("commits into trees that grew by inserts, balanced")
    trees = [GrownTree(directory / f"grown {size}", size) for size in sizes]
    singly: list[list[float]] = [[], []]
    at_once: list[tuple[float, int]] = []
    try:
        for round_ in range(scale.rounds):
            boxes = boxes_of(100 + round_, COMMITS)
            for tree, samples in zip(trees, singly):
                samples.append(tree.commit_singly(boxes))
            at_once.append(trees[1].commit_at_once(boxes_of(200 + round_, MANY)))
    finally:
        for tree in trees:
            tree.close()
    for size in sizes:
        shutil.rmtree(directory / f"grown {size}")
    names = [f"one insert into {size:,} records" for size in sizes]
    small = report.add("growth", names[0], "ms", singly[0])
    report.add("growth", names[1], "ms", singly[1], against=[small], targets={small.name: MOST})
    name = f"{MANY:,} inserts anywhere into {sizes[1]:,} records"
    report.add("growth", name, "ms", [elapsed for elapsed, _ in at_once])
    report.add("growth", f"{name}, log", "MB", [logged / 1e6 for _, logged in at_once])
