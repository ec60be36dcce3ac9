"""Benchmark of building: packed in memory and on the disk, the space it takes there, and the memory on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xtree.tools.bench.answers import WindowJudge
from xtree.tools.bench.contest import Row, asking, table, take_turns
from xtree.tools.bench.data import Data, windows_of
from xtree.tools.bench.report import Report, require
from xtree.tools.bench.tree_peers import GEOINDEX, RTREE, SHAPELY, disk_peers
from xtree.tools.bench.trees import Contestant, DurableTree, MemoryTree, RawWrite

if TYPE_CHECKING:
    from xtree.tools.bench.index import IndexScale

__all__ = ["checking_windows", "measure_builds", "measure_durable_builds", "measure_peaks", "report_sizes"]

CHECKING, CHECKING_HITS = 100, 50  # windows that an index is asked for when it was made or changed, and their hits
ALLOWED = "twice in memory + writing as many bytes"
MOST_BYTES = 45.0  # a record, on the disk
MOST_PEAK = 2.5  # times the input
RECORD_BYTES = 40  # an id and a box of two dimensions
PEAK_CHILD = [sys.executable, "-m", "xtree.tools.bench.peak"]


def checking_windows(data: Data) -> np.ndarray:
    """The windows that an index is asked for, to see that it holds the data."""
    return windows_of(data, CHECKING_HITS, CHECKING, seed=11)


def measure_builds(report: Report, scale: IndexScale, data: Data, contestants: Sequence[Contestant]) -> None:
    """All records at once, in memory; every contestant is left with the index it built last."""
    row = Row("build", f"bulk build of {len(data.boxes):,} records in memory", "s", targets={GEOINDEX: 1.0})
    table(report, row, contestants, _build_in_turns(report, row, scale, data, contestants))


def measure_durable_builds(
    report: Report, scale: IndexScale, data: Data, directory: Path, durable: DurableTree
) -> None:
    """All records at once, synced to the disk, and how many bytes they take there; `durable` keeps its last index."""
    memory = MemoryTree()
    raw = RawWrite(directory / "raw", durable.disk_bytes)
    peers = disk_peers(report, directory)
    title = f"bulk build of {len(data.boxes):,} records on the disk, synced"
    row = Row("durable build", title, "s", targets={ALLOWED: 1.0})
    try:
        samples = _build_in_turns(report, row, scale, data, [memory, durable, raw, *peers])
        in_memory = samples.pop(memory.name)
        samples[ALLOWED] = [2 * building + writing for building, writing in zip(in_memory, samples[raw.name])]
        table(report, row, [durable], samples)
        report.section("bytes on the disk a record, all files, after a clean close")
        report_sizes(report, "bulk load", len(data.boxes), [durable, *peers], MOST_BYTES)
    finally:
        for contestant in (memory, raw, *peers):
            contestant.close()


def report_sizes(report: Report, how: str, records: int, contestants: Sequence[Contestant], most: float | None) -> None:
    """The size of each contestant's index of so many records. most: the target of ours, in bytes a record."""
    for contestant in contestants:
        size = contestant.disk_bytes()
        if size is not None:
            targets = {"": most} if contestant.ours and most is not None else {}
            report.add("size", f"{contestant.name}, {how}", "bytes", [size / records], targets=targets)


def _build_in_turns(
    report: Report, row: Row, scale: IndexScale, data: Data, contestants: Sequence[Contestant]
) -> dict[str, list[float]]:
    windows = checking_windows(data)
    judge = WindowJudge(data.boxes, windows)
    return take_turns(
        report,
        row,
        scale.rounds,
        contestants,
        lambda contestant, _: asking(contestant, contestant.build(data.boxes), windows),
        lambda _: judge,
    )


def measure_peaks(report: Report, scale: IndexScale, data: Data, directory: Path) -> None:
    """The most memory that building takes above the data, each in a new process, in times the data.

    For shapely that includes the geometries, which it can't do without.
    """
    report.section(f"most memory while building {len(data.boxes):,} records, above the ids and boxes given")
    if not Path("/proc/self/status").exists():
        report.skip("peak memory", "this system has no /proc")
        return
    file = directory / "boxes.npy"
    np.save(file, data.boxes)
    try:
        for name in (MemoryTree.name, DurableTree.name, GEOINDEX, SHAPELY, RTREE):
            if not any(name == skipped or skipped.startswith(f"{name}:") for skipped in report.skipped):
                _measure_peak(report, name, scale.rounds, len(data.boxes), file, directory)
    finally:
        file.unlink()


def _measure_peak(report: Report, name: str, rounds: int, records: int, file: Path, directory: Path) -> None:
    ours = name.startswith("xtree")
    samples = []
    for _ in range(rounds if ours else 1):
        command = [*PEAK_CHILD, name, str(file), str(directory / "peak")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        said = json.loads(done.stdout)
        require(said["hits"] == records, f"{name} found {said['hits']} records of {records} in the child")
        samples.append(said["peak"] / (records * RECORD_BYTES))
    note = f"{max(samples) * records * RECORD_BYTES / 1e6:,.1f} MB"
    report.add("peak", name, "× the data", samples, note=note, targets={"": MOST_PEAK} if ours else None)
