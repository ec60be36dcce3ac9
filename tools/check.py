"""Check: what fsck verifies, told as a verdict and the first thing that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xtree.tools.fsck import fsck
from xtree.tools.fsck.report import DAMAGE, ORPHAN, Report

__all__ = ["check_index"]


def check_index(path: Path) -> dict[str, Any]:
    """Verifies an index read-only, as fsck does: every file, every page of every tree, and what they say of each other.

    Returns {"path", "ok", "seconds", "error", "damage", "orphans", "trees"}: `damage` counts the things found to be
    wrong; `error` is the first of them, or why the index doesn't open, or None; `orphans` counts leftovers; `trees`
    says for each tree how many records it has, None when that isn't known, and what is wrong with it. Raises what fsck
    does.
    """
    report = fsck(path)
    damage = report.of(DAMAGE)
    return {
        "path": str(path),
        "ok": report.ok,
        "seconds": report.seconds,
        "error": str(damage[0]) if damage else report.error,
        "damage": len(damage),
        "orphans": len(report.of(ORPHAN)),
        "trees": {
            name: {"records": tree["records"], "error": None if tree["ok"] else _wrong_with(name, report)}
            for name, tree in report.trees.items()
        },
    }


def _wrong_with(name: str, report: Report) -> str:
    """The first thing that is wrong with a tree; below a page that can't be read nothing more is known of it."""
    own = (str(finding) for finding in report.of(DAMAGE) if finding.tree == name)
    return next(own, "pages of it can't be read")
