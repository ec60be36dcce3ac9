"""Many named trees, whose records depend on their numbers."""

from __future__ import annotations

import numpy as np

import xtree


def name_of(i: int) -> str:
    return f"tree {i:04} é"


def make(runtime: xtree.Runtime, n: int) -> None:
    """Makes trees of 1 to 4 dimensions, with up to 30 records each."""
    for i in range(n):
        runtime.tree(name_of(i), dims=1 + i % 4).insert_many(*records(i))


def records(i: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(i % 31), np.random.default_rng(i).random((i % 31, 1 + i % 4))


def change(runtime: xtree.Runtime, n: int) -> None:
    """Every third tree grows, every fifth is dropped, and all that remain change in commits over ten trees each."""
    for i in range(0, n, 3):
        runtime.tree(name_of(i)).insert(1000 + i, [2.0] * (1 + i % 4))
    for i in range(0, n, 5):
        runtime.drop(name_of(i))
    kept = [i for i in range(n) if i % 5]
    for start in range(0, len(kept), 10):
        with runtime.transaction(trees=[name_of(i) for i in kept[start : start + 10]]) as tx:
            for i in kept[start : start + 10]:
                tx.tree(name_of(i)).insert(-i, [3.0] * (1 + i % 4))
