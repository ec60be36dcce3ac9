"""Benchmark of checkpoints: how long one takes, and what commits feel of it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

import xtree
from xtree.persistence.files.checkpoint import ROW_BYTES
from xtree.tools.bench.commits import boxes_of
from xtree.tools.bench.report import Report, require

if TYPE_CHECKING:
    from xtree.tools.bench.substrate import Scale

__all__ = ["measure_checkpoints"]


class SteadyWriter:
    """A thread that commits one insert after the other, and notes when each began and ended."""

    def __init__(self, tree: xtree.XTree, first_id: int, boxes: np.ndarray) -> None:
        self._tree = tree
        self._first_id = first_id
        self._boxes = boxes
        self.times: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> SteadyWriter:
        self._thread.start()
        require(self._warm.wait(60), "a hundred commits took a minute")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._stop.is_set():
            n = len(self.times)
            began = perf_counter()
            self._tree.insert(self._first_id + n, self._boxes[n % len(self._boxes)])
            self.times.append((began, perf_counter()))
            if n == 100:
                self._warm.set()


def measure_checkpoints(report: Report, scale: Scale, directory: Path) -> None:
    """A checkpoint with and without commits beside it, and eventual commits over a whole cycle of checkpoints."""
    commits, records = scale.checkpoint_commits, scale.checkpoint_records
    report.section(f"checkpoint of {records:,} records, {commits:,} commits after the last")
    path = directory / "checkpoints"
    _measure_times(report, scale, path)
    shutil.rmtree(path)
    _measure_latency(report, scale, path)
    shutil.rmtree(path)
    _measure_cycle(report, scale, path)
    shutil.rmtree(path)
    _measure_single_inserts(report, scale, path)
    shutil.rmtree(path)


def _measure_times(report: Report, scale: Scale, path: Path) -> None:
    samples = []
    with xtree.Runtime(path, durability="eventual") as runtime:
        tree = _filled(runtime, scale.checkpoint_records)
        boxes = boxes_of(7, scale.checkpoint_commits)
        for round_ in range(scale.rounds):
            for i, box in enumerate(boxes):
                tree.insert(scale.checkpoint_records + round_ * len(boxes) + i, box)
            before = runtime.stats()["coordinator"]["checkpoints"]
            started = perf_counter()
            runtime.checkpoint()
            samples.append((perf_counter() - started) * 1e3)
            require(runtime.stats()["coordinator"]["checkpoints"] == before + 1, "no checkpoint was taken")
        rows = tree.stats()["nodes"]
        size = max(file.stat().st_size for file in path.glob("checkpoint-*"))
        require(size > ROW_BYTES * rows, f"the checkpoint has {size} bytes for {rows} rows")
        report.add("checkpoint", "alone", "ms", samples, note=f"{rows:,} rows, {size:,} bytes")
    expected = scale.checkpoint_records + scale.rounds * scale.checkpoint_commits
    with xtree.Runtime(path, mode="r") as runtime:
        require(len(runtime.tree("t").items()[0]) == expected, "records are missing after the checkpoints")


def _measure_latency(report: Report, scale: Scale, path: Path) -> None:
    durations, worst_within, worst_outside, typical = [], [], [], []
    with xtree.Runtime(path) as runtime:
        tree = _filled(runtime, scale.checkpoint_records)
        next_id = scale.checkpoint_records
        for _ in range(scale.rounds):
            with SteadyWriter(tree, next_id, boxes_of(8, 1000)) as writer:
                began = perf_counter()
                runtime.checkpoint()
                ended = perf_counter()
            next_id += len(writer.times)
            during = [end - start for start, end in writer.times if start < ended and end > began]
            beside = [end - start for start, end in writer.times if end <= began or start >= ended]
            require(bool(during), "no commit ran during the checkpoint")
            durations.append((ended - began) * 1e3)
            worst_within.append(max(during) * 1e3)
            worst_outside.append(max(beside) * 1e3)
            typical.append(float(np.median(beside)) * 1e3)
        require(len(tree.items()[0]) == next_id, "records are missing after commits beside checkpoints")
    usual = report.add("checkpoint", "a commit, no checkpoint beside it, usual", "ms", typical)
    outside = report.add("checkpoint", "a commit, no checkpoint beside it, worst", "ms", worst_outside)
    report.add("checkpoint", "a commit beside a checkpoint, worst", "ms", worst_within, against=[usual, outside])
    report.add("checkpoint", "a checkpoint beside commits", "ms", durations)


def _measure_cycle(report: Report, scale: Scale, path: Path) -> None:
    rates = []
    with xtree.Runtime(path, durability="eventual") as runtime:
        tree = _filled(runtime, scale.tree_records)
        boxes = boxes_of(9, 4 * scale.checkpoint_commits)
        next_id = scale.tree_records
        for _ in range(scale.rounds):
            started = perf_counter()
            for i, box in enumerate(boxes):
                tree.insert(next_id + i, box)
            runtime.checkpoint()
            rates.append(len(boxes) / (perf_counter() - started))
            next_id += len(boxes)
        require(len(tree.items()[0]) == next_id, "records are missing after eventual commits")
    note = f"a checkpoint after {4 * scale.checkpoint_commits:,}, in a tree of {scale.tree_records:,}"
    report.add("checkpoint", "eventual commits, checkpoints included", "/s", rates, note=note)


def _measure_single_inserts(report: Report, scale: Scale, path: Path) -> None:
    """What the first insert after a clean open costs beside the next one, and the checkpoint after it."""
    first: list[float] = []
    second: list[float] = []
    checkpoint: list[float] = []
    with xtree.Runtime(path) as runtime:
        _filled(runtime, scale.checkpoint_records)
    for round_, box in enumerate(boxes_of(10, scale.rounds)):
        with xtree.Runtime(path) as runtime:
            tree = runtime.tree("t")
            for samples in (first, second):
                next_id = len(tree)
                started = perf_counter()
                tree.insert(next_id, box)
                samples.append((perf_counter() - started) * 1e3)
            started = perf_counter()
            runtime.checkpoint()
            checkpoint.append((perf_counter() - started) * 1e3)
            size = max(file.stat().st_size for file in path.glob("checkpoint-*"))
            require(len(tree) == scale.checkpoint_records + 2 * (round_ + 1), "a record is missing after a checkpoint")
    usual = report.add("checkpoint", "the second insert after an open", "ms", second)
    report.add("checkpoint", "the first insert after an open", "ms", first, against=[usual])
    report.add("checkpoint", "after two inserts", "ms", checkpoint, note=f"{size:,} bytes")


def _filled(runtime: xtree.Runtime, records: int) -> xtree.XTree:
    tree = runtime.tree("t", dims=2)
    tree.bulk_load(np.arange(records), boxes_of(1, records))
    runtime.checkpoint()
    return tree
