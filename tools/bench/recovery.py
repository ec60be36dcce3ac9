"""Benchmark of opening: after a kill, and after a clean close, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtree.tools.bench.report import Report, require

if TYPE_CHECKING:
    from xtree.tools.bench.substrate import Scale

__all__ = ["measure_recovery"]

CHILD = [sys.executable, "-m", "xtree.tools.bench.child"]


def measure_recovery(report: Report, scale: Scale, directory: Path) -> None:
    """A new process from its first call to its first answer: recovery of a killed writer's index, and a clean open."""
    report.section("from the open to the first answer, in a new process")
    dead, copy = directory / "dead", directory / "copy"

    killed = _write_and_kill("write-commits", dead, scale.tree_records, scale.small_commits)
    opened = [_open_copy(dead, copy, killed) for _ in range(scale.rounds)]
    _report_recovery(report, f"after a kill, {scale.small_commits:,} small commits", killed, opened)
    shutil.rmtree(dead)

    killed = _write_and_kill("write-log", dead, scale.large_records, scale.large_log_bytes)
    opened = [_open_copy(dead, copy, killed) for _ in range(scale.rounds)]
    _report_recovery(report, f"after a kill, {scale.large_records:,} records", killed, opened)
    shutil.rmtree(dead)

    opened = [_open(copy, killed) for _ in range(scale.rounds)]
    shutil.rmtree(copy)
    for said in opened:
        require(said["recovery"]["clean"], "the open after a clean close had something to recover")
    name = f"after a clean close, {scale.large_records:,} records"
    report.add("open", name, "ms", [said["seconds"] * 1e3 for said in opened])
    _report_resources(report, opened)


def _write_and_kill(command: str, path: Path, *numbers: int) -> dict[str, Any]:
    """Has a child write, kills it, and returns what it had been told was committed."""
    arguments = [*CHILD, command, str(path), *map(str, numbers)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
        finally:  # after an interrupt too
            child.kill()
    require(bool(line), f"{' '.join(arguments)} ended with status {child.returncode}")
    said: dict[str, Any] = json.loads(line)
    require(said["checkpoints"] == 1, f"{said['checkpoints']} checkpoints were taken, so the log isn't all there")
    return said


def _open_copy(dead: Path, copy: Path, killed: dict[str, Any]) -> dict[str, Any]:
    """Opens a fresh copy of what a killed process left, all of it on the disk, and leaves the copy closed cleanly."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(dead, copy)
    for file in copy.iterdir():
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())
    return _open(copy, killed)


def _open(path: Path, killed: dict[str, Any]) -> dict[str, Any]:
    """Opens an index in a new process, and compares what that says with what was committed."""
    done = subprocess.run([*CHILD, "open", str(path)], stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    for key in ("records", "hits"):
        require(said[key] == killed[key], f"{said[key]} {key} after the open, {killed[key]} were committed")
    require(said["counted"] == killed["records"], f"{said['counted']} records found, expected {killed['records']}")
    return said


def _report_recovery(report: Report, name: str, killed: dict[str, Any], opened: list[dict[str, Any]]) -> None:
    note = f"{killed['commits']:,} commits, {killed['log_bytes'] / 1e6:,.0f} MB of log"
    report.add("open", name, "s", [said["seconds"] for said in opened], note=note)


def _report_resources(report: Report, opened: list[dict[str, Any]]) -> None:
    """What the open index takes beyond the process without it, after a thousand windows all over it."""
    if not opened[0]["open"]:
        report.skip("descriptors and mappings", "this system has no /proc")
        return
    counts = ("descriptors", "mappings of files", "mappings")
    for what, unit, divisor in (*((count, "", 1.0) for count in counts), ("resident", "MB", 1e6)):
        taken = [(said["open"][what] - said["before"][what]) / divisor for said in opened]
        whole = [said["open"][what] / divisor for said in opened]
        note = f"the whole process: {max(whole):,.0f}"
        report.add("resources", f"{what} of the open index", unit, taken, note=note)
