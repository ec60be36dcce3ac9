"""Check: full verification of an index, read-only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import xtree

__all__ = ["check_index"]


def check_index(path: Path) -> dict[str, Any]:
    """Verifies the store and every page of every tree: CRCs, containment, levels, counts, reachability.

    Returns {"path", "ok", "seconds", "error", "trees"}, where `error` is the first thing found to be wrong, or None,
    and `trees` says for each tree its records and what is wrong with it. Errors other than CorruptionError are passed
    on.
    """
    started = perf_counter()
    trees: dict[str, dict[str, Any]] = {}
    try:
        with xtree.Runtime(path, mode="r") as runtime:
            damage = _damage(runtime.check)
            for name in runtime.trees():
                tree = runtime.tree(name)
                trees[name] = {"records": len(tree), "error": _damage(tree.check) if damage else None}
    except xtree.CorruptionError as error:
        damage = str(error)
    return {
        "path": str(path),
        "ok": damage is None,
        "seconds": perf_counter() - started,
        "error": damage,
        "trees": trees,
    }


def _damage(verify: Callable[[], None]) -> str | None:
    """What a verification finds wrong, None when it finds nothing."""
    try:
        verify()
    except xtree.CorruptionError as error:
        return str(error)
    return None
