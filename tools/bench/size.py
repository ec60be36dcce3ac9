"""Benchmark of space: bytes on the disk a record, after a clean close."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import xtree
from xtree.tools.bench.commits import boxes_of
from xtree.tools.bench.report import Report, require

if TYPE_CHECKING:
    from xtree.tools.bench.substrate import Scale

__all__ = ["allocated_bytes", "measure_size"]

BATCH = 1000
SMALL = 1000


def allocated_bytes(files: Iterable[Path]) -> int:
    """Disk space that files take; their sizes when the system doesn't tell it."""
    return sum(getattr(file.stat(), "st_blocks", -(-file.stat().st_size // 512)) * 512 for file in files)


def measure_size(report: Report, scale: Scale, directory: Path) -> None:
    """A packed index, one grown by inserts in random order, and a small one."""
    report.section("bytes on the disk a record, 2-D, all files, after a clean close")
    _measure(report, directory / "index", f"packed, {scale.grown_records:,} records", scale.grown_records, True)
    _measure(report, directory / "index", f"grown, {scale.grown_records:,} records", scale.grown_records, False)
    _measure(report, directory / "index", f"grown, {SMALL:,} records", SMALL, False)


def _measure(report: Report, path: Path, name: str, records: int, packed: bool) -> None:
    boxes = boxes_of(3, records)
    with xtree.open(path, dims=2, mode="x") as tree:
        if packed:
            tree.bulk_load(np.arange(records), boxes)
        else:
            for start in range(0, records, BATCH):
                rows = np.arange(start, min(start + BATCH, records))
                tree.insert_many(rows, boxes[rows])
    with xtree.open(path, mode="r") as tree:
        require(len(tree.items()[0]) == records, f"{name}: {len(tree)} records")
    report.add("size", name, "bytes", [allocated_bytes(path.iterdir()) / records])
    shutil.rmtree(path)
