"""An index with something of every kind, and every public method, which reentrance.py calls in the middle of anything.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
from collections import Counter
from collections.abc import Callable

import numpy as np

import xtree
from support.stack_writer import PageStack, StackState
from support.workloads import TINY
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.base.lock_ranks import FREE, rank_held

BOX = (0.25, 0.25, 0.5, 0.5)
BOXES = np.random.default_rng(1).random((200, 2))
WINDOWS = np.hstack([BOXES, BOXES + 0.1])

CONFIG = {
    **TINY, "wal_fill_bytes": 64 << 10, "wal_fill_limit_bytes": 64 << 10, "wal_segment_bytes": 64 << 10,
    "wal_rotate_bytes": 48 << 10, "checkpoint_log_bytes": 64 << 10, "checkpoint_burst_log_bytes": 64 << 10,
    "checkpoint_min_interval_s": 0.0, "log_limit_bytes": 4 << 20, "reserve_bytes": 0, "mapping_budget": 2,
    "descriptor_budget": 2, "sync_interval_ms": 2,
}  # fmt: skip


class World:
    """An index with something of every kind, and what was done to it by calls in the middle of others."""

    def __init__(self, directory: str, mode: str) -> None:
        self.directory = directory
        self.numbers = itertools.count(1)
        self.runtime = xtree.Runtime(self.new_path(), durability=mode, config=xtree.Config(**CONFIG))
        self.path = self.runtime.path
        self.tree = self.runtime.tree("worked on", dims=2)
        self.other = self.runtime.tree("other", dims=2)
        self.memory = xtree.XTree(dims=2)
        self.stack = self.runtime.structure("stack", StackState)
        for tree in (self.tree, self.other, self.memory):
            tree.insert_many(np.arange(200), WINDOWS)
        PageStack(self.stack).push(b"first")
        self.snapshot = self.other.snapshot()
        self.tx: xtree.Transaction | None = None
        self.scratch = self.runtime.tree("scratch", dims=2)
        self.inserted: list[int] = []
        self.kept: list[object] = []
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def new_path(self) -> str:
        """A path at which nothing exists."""
        return os.path.join(self.directory, f"index-{next(self.numbers)}")

    def call(self, name: str) -> str:
        """Calls a method, and notes how it ended."""
        where = rank_held()
        try:
            CALLS[name](self)
            outcome = "answered"
        except xtree.TransactionError:
            outcome = "refused"
        except xtree.ClosedError as error:
            outcome = "closed"
            if not self.runtime.closed:
                self.wrong.append(f"{name} at rank {where}: {error!r}")
        except Exception as error:
            outcome = "wrong"
            self.wrong.append(f"{name} at rank {where}: {error!r}")
        if outcome == "refused" and where == FREE and name in READS:
            self.wrong.append(f"{name} was refused where nothing is held")
        self.outcomes[f"{outcome} {'inside' if where != FREE else 'outside'}"] += 1
        return outcome

    def insert(self) -> None:
        """Inserts one more record."""
        self.other.insert(1000, BOX)
        self.inserted.append(1)

    def end(self) -> None:
        """Asserts that everything is whole, now and after the next open."""
        set_hook(None)
        self.snapshot.close()
        self.kept.clear()
        self.runtime.check()
        expected = 200 + len(self.inserted)
        assert len(self.other) == expected, (len(self.other), expected)
        assert self.runtime.stats()["object_table"]["reserved"] == 0
        self.runtime.close()
        with xtree.Runtime(self.path) as runtime:
            assert runtime.stats()["recovery"]["clean"]
            assert len(runtime.tree("other")) == expected
            runtime.check()


def in_transaction(world: World) -> None:
    with world.other.transaction(timeout=60) as tx:
        tx.insert(1000, BOX)
    world.inserted.append(1)


def over_several(world: World) -> None:
    name = f"made {next(world.numbers)}"
    with world.runtime.transaction(trees=["other"]) as tx:
        tx.make(name, dims=2).insert(1, BOX)
        tx.tree("other").insert(1000, BOX)
        tx.structure("stack").read(lambda store, state: state.count)
    world.inserted.append(1)
    world.runtime.drop(name)


def abandoned(world: World) -> None:
    """Begins a transaction that only garbage collection ends."""
    tx = world.other.transaction()
    tx.__enter__()
    tx.insert(5, BOX)
    del tx


def change(world: World) -> None:
    world.scratch.insert(1, BOX)
    world.scratch.update(1, BOX, (0, 0, 1, 1))
    world.scratch.delete(1, (0, 0, 1, 1))
    world.scratch.delete_many([1], [BOX])


def back_up(world: World) -> None:
    with contextlib.suppress(ValueError):  # a tree of a Runtime has its own
        world.other.backup(world.new_path())
    world.runtime.backup(world.new_path())


def make_and_drop(world: World) -> None:
    name = f"made {next(world.numbers)}"
    world.runtime.tree(name, dims=3)
    world.runtime.drop(name)


def close_handle(world: World) -> None:
    name = f"made {next(world.numbers)}"
    tree = world.runtime.tree(name, dims=3)
    tree.close()
    world.runtime.drop(name)


def open_another(world: World) -> None:
    with xtree.open(world.new_path(), dims=2) as tree:
        tree.insert(1, BOX)


def open_once_more(world: World) -> None:
    """Opens another handle of the store that is in use."""
    with xtree.Runtime(world.path) as runtime:
        runtime.tree("other").count(BOX)
        runtime.tree("scratch").insert(1, BOX)
        runtime.tree("scratch").delete(1, BOX)


def copy_all(world: World) -> None:
    """What a pickle makes of a tree, and what it becomes."""
    assert len(pickle.loads(pickle.dumps(world.memory)))
    with pickle.loads(pickle.dumps(world.other)) as tree:
        tree.count(BOX)
    pickle.loads(pickle.dumps(world.runtime)).close()


def own_transaction(world: World, do: Callable[[xtree.Transaction], object]) -> None:
    tx = world.tx
    if tx is not None:
        do(tx)


def close_snapshot(world: World) -> None:
    with world.other.snapshot() as snapshot:
        snapshot.count(BOX)


READS: dict[str, Callable[[World], object]] = {
    "Runtime.path": lambda w: w.runtime.path,
    "Runtime.closed": lambda w: w.runtime.closed,
    "Runtime.trees": lambda w: w.runtime.trees(),
    "pickle.dumps": lambda w: [pickle.dumps(it) for it in (w.memory, w.other, w.runtime, w.snapshot)],
    "Runtime.tree": lambda w: w.runtime.tree("other").count(BOX),
    "Runtime.structures": lambda w: w.runtime.structures(),
    "Runtime.structure": lambda w: w.runtime.structure("stack", StackState),
    "Runtime.stats": lambda w: w.runtime.stats(),
    "Runtime.check": lambda w: w.runtime.check(),
    "repr(Runtime)": lambda w: (repr(w.runtime), w.runtime._repr_html_()),
    "StructureHandle.read": lambda w: w.stack.read(lambda store, state: list(state.pages(store))),
    "StructureHandle.name": lambda w: (w.stack.name, repr(w.stack)),
    "Snapshot.close": close_snapshot,
    "Snapshot.epoch": lambda w: w.snapshot.epoch,
    "XTree.snapshot": lambda w: w.kept.append(w.other.snapshot()) if len(w.kept) < 50 else w.kept.clear(),
}
for of, find in {
    "XTree": lambda w: w.other, "Snapshot": lambda w: w.snapshot, "XTree in memory": lambda w: w.memory,
}.items():  # fmt: skip
    READS |= {
        f"{of}.{name}": (lambda w, find=find, do=do: do(find(w)))
        for name, do in {
            "query": lambda tree: (tree.query(BOX), tree.query(WINDOWS, output="csr")),
            "query in threads": lambda tree: tree.query(WINDOWS, threads=2),
            "count": lambda tree: (tree.count(BOX), tree.count(WINDOWS, threads=2)),
            "nearest": lambda tree: (tree.nearest(BOX[:2], k=3), tree.nearest(BOXES, k=2, threads=2)),
            "explain": lambda tree: tree.explain(WINDOWS[:3]),
            "explain_nearest": lambda tree: tree.explain_nearest(BOXES[:3]),
            "join": lambda tree: tree.join(tree),
            "items": lambda tree: tree.items(),
            "len": lambda tree: len(tree),
            "contains": lambda tree: (3, WINDOWS[3]) in tree,
            "bounds": lambda tree: tree.bounds,
            "dims": lambda tree: tree.dims,
            "height": lambda tree: tree.height,
            "check": lambda tree: tree.check(),
            "stats": lambda tree: tree.stats(),
            "repr": lambda tree: (repr(tree), tree._repr_html_()),
        }.items()
    }
READS |= {
    "XTree.epoch": lambda w: w.other.epoch,
    "XTree.name": lambda w: w.other.name,
    "XTree.runtime": lambda w: w.other.runtime,
    "XTree.closed": lambda w: w.other.closed,
}
CALLS: dict[str, Callable[[World], object]] = {
    **READS,
    "XTree.insert": World.insert,
    "XTree.insert_many": lambda w: (w.other.insert_many([1000], [BOX]), w.inserted.append(1)),
    "XTree.delete, delete_many, update": change,
    "XTree.bulk_load": lambda w: w.memory.bulk_load([1, 2], WINDOWS[:2]),
    "XTree.insert in memory": lambda w: w.memory.insert(1, BOX),
    "XTree.transaction": in_transaction,
    "XTree.transaction, forgotten": abandoned,
    "XTree.close": close_handle,
    "XTree.backup": back_up,
    "Transaction.insert": lambda w: own_transaction(w, lambda tx: tx.insert(5, BOX)),
    "Transaction.query": lambda w: own_transaction(w, lambda tx: tx.query(BOX)),
    "Transaction.status": lambda w: own_transaction(w, lambda tx: (tx.status, repr(tx))),
    "Transaction.abort": lambda w: own_transaction(w, lambda tx: tx.abort()),
    "Runtime.transaction": over_several,
    "Runtime.tree, made": make_and_drop,
    "Runtime.drop": make_and_drop,
    "Runtime.checkpoint": lambda w: w.runtime.checkpoint(),
    "Runtime.backup": lambda w: w.runtime.backup(w.new_path()),
    "StructureHandle.write": lambda w: (PageStack(w.stack).push(b"more"), PageStack(w.stack).pop()),
    "open": open_another,
    "Runtime": open_once_more,
    "pickle": copy_all,
    "XTree": lambda w: xtree.XTree(dims=2).insert(1, BOX),
    "XTree.from_boxes": lambda w: xtree.XTree.from_boxes(WINDOWS, threads=2),
    "XTree.from_points": lambda w: xtree.XTree.from_points(WINDOWS[:, :2]),
}
