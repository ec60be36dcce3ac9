"""Describe: what an index consists of, read from outside without changing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import xtree

__all__ = ["describe_index", "plain"]


def describe_index(path: Path) -> dict[str, Any]:
    """The trees of an index with their statistics, the runtime's own, and the bytes of its files. Opens read-only."""
    with xtree.Runtime(path, mode="r") as runtime:
        trees = {}
        for name in runtime.trees():
            tree = runtime.tree(name)
            trees[name] = {"dims": tree.dims, "bounds": tree.bounds, **tree.stats()}
        statistics = runtime.stats()
    files = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    total = sum(files.values())
    return plain({"path": str(path), "trees": trees, "runtime": statistics, "files": files, "bytes": total})


def plain(value: Any) -> Any:
    """The value in the types that JSON knows: dict, list, str, int, float, bool, None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
