"""Short histories of an index through the public API, each a list of steps, and a model that takes the same steps.

A step is one commit, or a checkpoint. Together they change pages, logs and files in every way that there is. With SMALL
windows, files and logs a history makes so few system calls that each of them can be made to fail.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from support import brute_force
from support.text_pages import NO_CHECKPOINTS

Contents = dict[str, Counter]  # tree -> how often it holds each record; trees without records count as absent

SETTINGS = {
    **NO_CHECKPOINTS,
    "wal_fill_bytes": 16 << 10,
    "wal_fill_limit_bytes": 16 << 10,
    "wal_segment_bytes": 32 << 10,
    "max_payload_in_wal": 4 << 10,
    "bulk_payload_limit": 48 << 10,
}


class ModelTree:
    """A tree as a multiset of records."""

    def __init__(self) -> None:
        self.records: Counter = Counter()

    def insert_many(self, ids: np.ndarray, boxes: np.ndarray) -> None:
        self.records.update(brute_force.records(ids, boxes))

    bulk_load = insert_many

    def delete_many(self, ids: np.ndarray, boxes: np.ndarray) -> None:
        self.records -= brute_force.records(ids, boxes)

    def update(self, id: int, old_box: np.ndarray, new_box: np.ndarray) -> None:
        old = brute_force.records(np.array([id]), old_box[None, :])
        if old <= self.records:
            self.records -= old
            self.insert_many(np.array([id]), new_box[None, :])


class Model:
    """Takes the steps that a Runtime takes."""

    def __init__(self, contents: Contents | None = None) -> None:
        self.trees = {}
        for name, records in (contents or {}).items():
            self.tree(name).records = Counter(records)

    def tree(self, name: str, dims: int | None = None) -> ModelTree:
        return self.trees.setdefault(name, ModelTree())

    def drop(self, name: str) -> None:
        self.trees.pop(name, None)

    @contextlib.contextmanager
    def transaction(self, trees: list[str]) -> Iterator[Model]:
        yield self

    def checkpoint(self) -> None:
        pass

    def contents(self) -> Contents:
        """A copy of what the trees hold."""
        return {name: Counter(tree.records) for name, tree in self.trees.items() if tree.records}


@dataclass(frozen=True)
class Step:
    """One commit to trees, which are made first if they are missing. `act` takes a Runtime or a Model."""

    trees: dict[str, int]  # name: dims
    act: Callable[[Any], object]

    def make_trees(self, rt: Any) -> None:
        """Makes missing trees, in a commit each."""
        for name, dims in self.trees.items():
            rt.tree(name, dims)


@dataclass(frozen=True)
class Script:
    """`before`: the steps that have been taken when the index is opened; `crashed`: it wasn't closed after them."""

    name: str
    steps: tuple[Step, ...]
    before: tuple[Step, ...] = ()
    crashed: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    snapshot_before: int | None = None  # before this step a snapshot of every tree is taken, to the end

    @property
    def config(self) -> dict[str, Any]:
        """The fields of Config that differ from SMALL."""
        return {**SETTINGS, **self.settings}


def after(steps: tuple[Step, ...]) -> Contents:
    """What the trees hold after these steps."""
    model = Model()
    take(model, steps)
    return model.contents()


def take(rt: Any, steps: tuple[Step, ...]) -> None:
    """Takes steps on a Runtime or a Model."""
    for step in steps:
        step.make_trees(rt)
        step.act(rt)


@lru_cache(maxsize=64)
def records(first: int, n: int, dims: int, side: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """n records with ids from `first` on, the same at each call."""
    random = np.random.default_rng([first, n, dims])
    return np.arange(first, first + n), brute_force.random_boxes(random, n, dims, side)


def change(method: str, first: int, n: int, tree: str = "a", dims: int = 2) -> Step:
    """insert_many, delete_many or bulk_load of `records`."""
    return Step({tree: dims}, lambda rt: getattr(rt.tree(tree, dims), method)(*records(first, n, dims)))


def moved(id: int, tree: str = "a", dims: int = 2) -> Step:
    """update of one of the records 0 to 99."""
    ids, boxes = records(0, 100, dims)
    return Step({tree: dims}, lambda rt: rt.tree(tree, dims).update(id, boxes[id], boxes[id] + 1.0))


CHECKPOINT = Step({}, lambda rt: rt.checkpoint())


def _two_trees(rt: Any) -> None:
    with rt.transaction(trees=["a", "b"]) as tx:
        tx.tree("a").insert_many(*records(1000, 60, 2))
        tx.tree("b").insert_many(*records(0, 60, 3))
        tx.tree("a").delete_many(*records(0, 30, 2))


def _drop(rt: Any) -> None:
    with contextlib.suppress(KeyError):
        rt.drop("b")


TWO_TREES = Step({"a": 2, "b": 3}, _two_trees)
DROP = Step({}, _drop)

SCRIPTS = {
    script.name: script
    for script in (
        Script("create", (change("insert_many", 0, 1), change("insert_many", 10, 1))),
        Script("inserts that split", tuple(change("insert_many", 200 * i, 130) for i in range(3))),
        Script(
            "supernodes that grow and shrink",
            (change("insert_many", 1000, 160, dims=16), change("delete_many", 0, 330, dims=16)),
            before=(change("insert_many", 0, 330, dims=16),),
            settings={"max_overlap": 0.0, "page_bytes": 8192},
        ),
        Script(
            "deletes that condense",
            (moved(50), change("delete_many", 0, 100), change("delete_many", 100, 250)),
            before=(change("insert_many", 0, 100), change("insert_many", 100, 250)),
        ),
        Script(
            "bulk load",
            (change("bulk_load", 1000, 1500), change("bulk_load", 5000, 300), change("insert_many", 0, 5)),
            before=(change("insert_many", 100, 40),),
        ),
        Script(
            "several trees",
            (TWO_TREES, DROP, change("insert_many", 300, 20)),
            before=(change("insert_many", 0, 100), change("insert_many", 500, 20, "b", 3)),
        ),
        Script(
            "snapshot",
            (moved(1), change("delete_many", 0, 100), change("insert_many", 600, 100)),
            before=(change("insert_many", 0, 100), change("insert_many", 100, 100)),
            snapshot_before=0,
        ),
        Script(
            "checkpoints, rotation and garbage",
            tuple(
                step
                for i in range(5)
                for step in (change("insert_many", 200 * i, 40), moved(i), *([CHECKPOINT] if i % 2 else []))
            ),
            settings={"wal_rotate_bytes": 24 << 10, "wal_segment_bytes": 16 << 10},
        ),
        Script(
            "recovery",
            (change("insert_many", 900, 5),),
            before=(
                change("bulk_load", 0, 300),
                CHECKPOINT,
                change("insert_many", 300, 100),
                TWO_TREES,
                change("delete_many", 100, 80),
            ),
            crashed=True,
        ),
    )
}
