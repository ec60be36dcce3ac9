"""Backup: a copy of an index that no process has open for writing."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import xtree
from xtree.persistence.base.progress import Progress

__all__ = ["backup_index"]


def backup_index(path: Path, target: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Copies the index at `path` into the new directory `target` and says what was done.

    Opens it read-only: a writing process makes its own backup by `Runtime.backup`. Raises what that does, LockedError.
    """
    started = perf_counter()
    with xtree.Runtime(path, mode="r") as runtime:
        runtime.backup(target, progress)
        trees = runtime.trees()
    return {
        "path": str(path),
        "target": str(target),
        "trees": trees,
        "bytes": sum(file.stat().st_size for file in target.iterdir()),
        "seconds": perf_counter() - started,
    }
