"""Reports of check, fsck and salvage as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xtree.tools.fsck.report import DAMAGE, NOTE, ORPHAN, Report

__all__ = ["check_lines", "report_lines", "salvage_lines"]

MOST_LINES = 50  # of one severity


def report_lines(report: Report) -> Iterator[str]:
    """Findings, the worst first, then the trees, a line of figures and the verdict."""
    for severity in (DAMAGE, ORPHAN, NOTE):
        found = report.of(severity)
        for finding in found[:MOST_LINES]:
            yield f"  {severity}: {finding}"
        if len(found) > MOST_LINES:
            yield f"  {severity}: and {len(found) - MOST_LINES:,} more (--json lists all)"
    for name, tree in report.trees.items():
        records = "of unknown size" if tree["records"] is None else f"{tree['records']:,} records"
        state = "" if tree["ok"] else f", {tree['found']:,} of them found: DAMAGED"
        yield f"  tree {name!r}: {records} in {tree['pages']:,} pages{state}"
    if report.figures:
        yield "  " + ", ".join(_figures(report.figures))
    if report.actions and not report.repaired:
        yield "to be done:"
    for action in report.actions:
        yield f"  {'done:' if report.repaired else '-'} {action}"
    if report.error is not None:
        yield f"can't be opened: {report.error}"
    yield f"{report.path}: {_verdict(report)} ({report.seconds:.2f} s)"


def _figures(figures: dict[str, Any]) -> Iterator[str]:
    for name in ("files", "checkpoints", "logs", "frames"):
        if name in figures:
            yield f"{figures[name]:,} {name}"
    if "pages" in figures:
        pages = figures["pages"]
        yield f"{pages['live']:,} live pages of {pages['bytes'] / 1e6:,.1f} MB"
    if "slots" in figures:
        yield f"{figures['slots']['used']:,} of {figures['slots']['slots']:,} slots in use"
    if figures.get("unknown_kinds"):
        yield f"pages of unknown structures ({', '.join(figures['unknown_kinds'])}) verified, not looked for"


def _verdict(report: Report) -> str:
    damage, orphans = len(report.of(DAMAGE)), len(report.of(ORPHAN))
    left = f", {orphans} orphan(s)" if orphans else ""
    at = "" if report.epoch is None else f" at epoch {report.epoch}"
    return f"DAMAGED, {damage} finding(s){left}" if not report.ok else f"fine{at}{left}"


def check_lines(result: dict[str, Any]) -> Iterator[str]:
    """The trees, and whether everything is right."""
    for name, tree in result["trees"].items():
        records = "of unknown size" if tree["records"] is None else f"{tree['records']:,} records"
        yield f"  {name}: {records}{', DAMAGED: ' + tree['error'] if tree['error'] else ''}"
    more = f", and {result['damage'] - 1} more (xtree fsck lists them)" if result["damage"] > 1 else ""
    orphans = f", {result['orphans']} orphan(s)" if result["orphans"] else ""
    verdict = f"fine{orphans}" if result["ok"] else f"DAMAGED: {result['error']}{more}"
    yield f"{result['path']}: {verdict} ({result['seconds']:.2f} s)"


def salvage_lines(result: dict[str, Any]) -> Iterator[str]:
    """What was saved of each tree, and what is lost."""
    for note in result["notes"]:
        yield f"  note: {note}"
    for name in result["skipped"]:
        yield f"  skipped: {name!r} is no tree"
    for name, tree in result["trees"].items():
        expected = "an unknown number" if tree["expected"] is None else f"{tree['expected']:,}"
        yield f"  tree {name!r}: {tree['saved']:,} of {expected} records"
    pages = result["pages"]
    yield f"  {pages['read']:,} pages read, {pages['unreadable']:,} unreadable; from {result['source']}"
    lost = "an unknown number of" if result["lost"] is None else f"{result['lost']:,}"
    verdict = "nothing is lost" if result["complete"] else f"{lost} records LOST"
    yield f"{result['target']}: {verdict} ({result['seconds']:.2f} s)"
