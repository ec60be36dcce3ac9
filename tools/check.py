"""Check: full verification of every tree of an index, read-only."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import xtree

__all__ = ["check_index"]


def check_index(path: Path) -> dict[str, Any]:
    """Verifies every page of every tree: CRCs, containment, levels, counts, reachability.

    Returns {"path", "ok", "seconds", "error", "trees"}, where `error` is what kept the index from opening, or None,
    and `trees` says for each tree its records and its own `error`. Errors other than CorruptionError are passed on.
    """
    started = perf_counter()
    trees: dict[str, dict[str, Any]] = {}
    damage = None
    try:
        with xtree.Runtime(path, mode="r") as runtime:
            for name in runtime.trees():
                trees[name] = _check_tree(runtime, name)
    except xtree.CorruptionError as error:
        damage = str(error)
    return {
        "path": str(path),
        "ok": damage is None and all(tree["error"] is None for tree in trees.values()),
        "seconds": perf_counter() - started,
        "error": damage,
        "trees": trees,
    }


def _check_tree(runtime: xtree.Runtime, name: str) -> dict[str, Any]:
    try:
        tree = runtime.tree(name)
        tree.check()
        return {"records": len(tree), "error": None}
    except xtree.CorruptionError as error:
        return {"records": None, "error": str(error)}
