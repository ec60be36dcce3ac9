"""Scripted workloads through the public API, short enough to crash at every moment, and what the index holds after each
of their steps.

A step is a tuple: what to do, and to which tree or structure. What it does is a pure function of its number and the
tuple, so that `replay` does the same to a model as `perform` to an index. Each makes one commit at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

import xtree
from support import brute_force
from support.stack_writer import PageStack, StackState, item, push
from support.text_pages import ManualClock, by_request, settle
from xtree.forest import _clear
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import open_store

Step = tuple
Model = dict[str, "Counter | tuple"]  # by name: how often each record is there, or a stack's items

INDEX, COPY = "index", "copy"  # the directories of an index and of its backup

TINY = {
    "data_file_first_bytes": 8 << 10,
    "data_file_bytes": 64 << 10,
    "max_payload_in_wal": 8 << 10,
    "bulk_payload_limit": 40 << 10,
    "wal_fill_bytes": 8 << 10,
    "wal_fill_limit_bytes": 16 << 10,
    "wal_segment_bytes": 32 << 10,
    "wal_rotate_bytes": 64 << 10,
    "epoch_stride": 6,
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """Steps, and fields of Config by which what is to be tested happens often."""

    steps: tuple[Step, ...]
    settings: dict[str, object] = dataclasses.field(default_factory=dict)

    def config(self, mode: str) -> xtree.Config:
        """The settings in a durability mode."""
        return by_request(mode, **{**TINY, **self.settings})


def _steps(*steps: Step | list[Step]) -> tuple[Step, ...]:
    return tuple(step for some in steps for step in (some if isinstance(some, list) else [some]))


WORKLOADS = {
    "creation": Workload(
        _steps(("make", "a", 2), ("insert", "a", 3), ("make", "b", 3), ("reopen",), ("insert", "b", 2), ("wait",))
    ),
    "inserts with splits": Workload(
        _steps(("make", "a", 2), [("insert", "a", 70)] * 4, [("insert", "a", 70), ("wait",)] * 3, ("insert", "a", 1))
    ),
    "supernodes": Workload(
        _steps(("make", "deep", 14), [("insert", "deep", 130)] * 4, ("wait",), [("insert", "deep", 130)] * 2),
        {
            "page_bytes": 8192, "max_overlap": 0.0, "min_fanout": 0.5,
            "wal_rotate_bytes": 1 << 20, "wal_fill_limit_bytes": 64 << 10,
        },
    ),
    "deletes": Workload(
        _steps(
            ("make", "a", 2), [("insert", "a", 90)] * 4, ("delete", "a", 1), ("delete", "a", 2), ("wait",),
            ("delete", "a", 3), ("insert", "a", 20), ("delete", "a", 4),
        )
    ),
    "bulk load": Workload(
        _steps(
            ("make", "a", 2), ("bulk", "a", 150), ("insert", "a", 10), ("bulk", "a", 1200), ("wait",),
            ("insert", "a", 10), ("checkpoint",), ("bulk", "a", 900), ("insert", "a", 5),
        )
    ),
    "several trees": Workload(
        _steps(
            ("make", "a", 2), ("make", "b", 3), ("make", "stack", 0),
            ("together", ("insert", "a", 60), ("insert", "b", 60)), ("wait",),
            ("together", ("insert", "a", 60), ("delete", "b", 3), ("push", "stack", 2)),
            ("together", ("delete", "a", 3), ("insert", "b", 5), ("push", "stack", 1), ("pop", "stack")),
            ("together", ("insert", "a", 5), ("insert", "b", 5)),
        )
    ),
    "snapshot": Workload(
        _steps(
            ("make", "a", 2), ("insert", "a", 150), ("hold",), ("insert", "a", 30), ("delete", "a", 1), ("wait",),
            ("insert", "a", 30), ("checkpoint",), ("delete", "a", 3), ("compare",), ("insert", "a", 60), ("wait",),
            [("insert", "a", 8)] * 3,
        )
    ),
    "checkpoints": Workload(
        _steps(
            ("make", "a", 2), [("insert", "a", 40)] * 2, ("checkpoint",), ("insert", "a", 80), ("delete", "a", 1),
            ("checkpoint",), ("insert", "a", 10), ("wait",), ("checkpoint",), ("insert", "a", 10),
        )
    ),
    "trees made in transactions": Workload(
        _steps(
            ("make", "a", 2), ("insert", "a", 60),
            ("together", ("make", "b", 3), ("insert", "b", 60), ("insert", "a", 9)), ("wait",), ("insert", "b", 20),
            ("together", ("make", "c", 2), ("insert", "c", 90), ("drop", "b")),
            ("together", ("make", "b", 2), ("drop", "a")), ("insert", "b", 5), ("checkpoint",), ("insert", "c", 5),
        )
    ),
    "rotation": Workload(
        _steps(
            ("make", "a", 2), [("insert", "a", 30)] * 4, ("checkpoint",), [("insert", "a", 30)] * 3, ("delete", "a", 1),
            ("checkpoint",), ("wait",), [("insert", "a", 20)] * 3, ("checkpoint",), ("insert", "a", 4),
        ),
        {"wal_rotate_bytes": 12 << 10, "wal_segment_bytes": 12 << 10},
    ),
    "drop": Workload(
        _steps(
            ("make", "a", 2), ("bulk", "a", 800), ("make", "b", 2), ("insert", "b", 100), ("drop", "a"), ("wait",),
            ("make", "a", 3), ("insert", "a", 90), ("drop", "b"), ("insert", "a", 30),
        )
    ),
    "close and reopen": Workload(
        _steps(
            ("make", "a", 2), ("insert", "a", 60), ("reopen",), ("reopen",), ("insert", "a", 60), ("delete", "a", 1),
            ("reopen",), ("insert", "a", 5),
        )
    ),
    "changing modes": Workload(
        _steps(
            ("make", "a", 2), ("insert", "a", 50), ("reopen", "strict"), [("insert", "a", 40)] * 2,
            ("reopen", "eventual"), [("insert", "a", 40)] * 2, ("reopen", "balanced"), ("delete", "a", 1),
            ("insert", "a", 5),
        )
    ),
    "backup": Workload(
        _steps(("make", "a", 2), ("insert", "a", 150), ("make", "stack", 0), ("push", "stack", 3), ("backup",),
               ("insert", "a", 9))
    ),
    "structure": Workload(
        _steps(("make", "stack", 0), [("push", "stack", 4)] * 3, ("pop", "stack"), ("wait",), ("checkpoint",),
               [("push", "stack", 3)] * 2, [("pop", "stack")] * 2, ("drop", "stack"), ("make", "stack", 0),
               ("push", "stack", 1))
    ),
}  # fmt: skip


def records(number: int, dims: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The records of a step."""
    low = np.random.default_rng([number, dims]).random((n, dims))
    return np.arange(n) + 10_000 * number, np.hstack([low, low + 0.01])


def _changed(workload: Workload, name: str, number: int) -> tuple[int, int]:
    """How many records step `number` put into a tree, and the tree's dims then."""
    dims = dims_at(workload, name, number)
    step = workload.steps[number]
    parts = step[1:] if step[0] == "together" else [step]
    return next(part[2] for part in parts if part[:2] in (("insert", name), ("bulk", name))), dims


def dims_at(workload: Workload, name: str, number: int) -> int:
    """The dims of a tree at a step."""
    parts = [part for step in workload.steps[: number + 1] for part in (step[1:] if step[0] == "together" else [step])]
    return next(part[2] for part in reversed(parts) if part[:2] == ("make", name))


def models(workload: Workload) -> list[Model]:
    """What the index holds before the first step, and after each."""
    found: list[Model] = [{}]
    for number in range(len(workload.steps)):
        found.append(replay(workload, found[-1], number))
    return found


def replay(workload: Workload, model: Model, number: int) -> Model:
    """The model after a step."""
    step = workload.steps[number]
    after = dict(model)
    for what, *arguments in step[1:] if step[0] == "together" else [step]:
        if what == "make":
            name, dims = arguments
            after[name] = Counter() if dims else ()
        elif what == "drop":
            del after[arguments[0]]
        elif what == "push":
            name, n = arguments
            after[name] = (*after[name], *(item(number * 100 + i) for i in range(n)))
        elif what == "pop":
            after[arguments[0]] = after[arguments[0]][:-1]
        elif what in ("insert", "bulk"):
            name, n = arguments
            after[name] = after[name] + brute_force.records(*records(number, dims_at(workload, name, number), n))
        elif what == "delete":
            name, of = arguments
            n, dims = _changed(workload, name, of)
            after[name] = after[name] - brute_force.records(*records(of, dims, n))
    return after


class Stage:
    """The index on which a workload is performed, in a directory of its own, and a clock that a test moves."""

    def __init__(self, root: Path, workload: Workload, mode: str, fs: FileSystem | None = None) -> None:
        self.root, self.workload, self.mode, self.fs = root, workload, mode, fs
        self.snapshots: list[tuple[xtree.Snapshot, bytes]] = []
        self.runtime: xtree.Runtime | None = None
        self.clock = ManualClock()

    def open(self) -> None:
        """Opens the index."""
        self.clock = ManualClock()
        self.runtime = open_runtime(self.root / INDEX, self.workload.config(self.mode), fs=self.fs, clock=self.clock)

    def perform(self, number: int) -> None:
        """Does a step, and lets the background come to rest."""
        what, *arguments = self.workload.steps[number]
        rt = self.runtime
        if what == "together":
            made = {part[1] for part in arguments if part[0] == "make"}
            with rt.transaction(trees=sorted({part[1] for part in arguments} - made)) as tx:
                for part in arguments:
                    if part[0] == "make":
                        tx.make(part[1], dims=part[2])
                    elif part[0] == "drop":
                        tx._write_tree(part[1], _clear)
                        tx._drop(part[1])
                    else:
                        self._change(tx.structure if part[1] == "stack" else tx.tree, number, *part)
        elif what == "make":
            name, dims = arguments
            rt.tree(name, dims=dims) if dims else rt.structure(name, StackState)
        elif what == "drop":
            rt.drop(arguments[0])
        elif what == "reopen":
            rt.close()
            self.mode = arguments[0] if arguments else self.mode
            self.open()
        elif what == "checkpoint":
            rt.checkpoint()
        elif what == "wait":
            self.clock.advance(rt._store, 1.0)
        elif what == "hold":
            self.snapshots = [(tree.snapshot(), canonical(*tree.items())) for tree in map(rt.tree, rt.trees())]
        elif what == "compare":
            for snapshot, before in self.snapshots:
                assert canonical(*snapshot.items()) == before
                snapshot.close()
        elif what == "backup":
            rt.backup(self.root / COPY)
        else:
            self._change(stack_of(rt) if arguments[0] == "stack" else rt.tree, number, what, *arguments)
        settle(self.runtime._store)

    def _change(self, find, number: int, what: str, name: str, n: int = 0) -> None:
        target = find(name)
        if what == "push":
            target.write(push_all, [item(number * 100 + i) for i in range(n)])
        elif what == "pop":
            PageStack(target).pop()
        elif what == "delete":
            count, dims = _changed(self.workload, name, n)
            target.delete_many(*records(n, dims, count))
        else:
            ids, boxes = records(number, dims_at(self.workload, name, number), n)
            (target.insert_many if what == "insert" else target.bulk_load)(ids, boxes)


def push_all(write_set, state, items: list[bytes]) -> None:
    """Pushes items on a stack in one commit."""
    for one in items:
        push(write_set, state, one)


def stack_of(runtime: xtree.Runtime):
    """A function that finds stacks by name."""
    return partial(runtime.structure, kind=StackState)


def open_runtime(path: Path, config: xtree.Config, mode: str = "a", **how) -> xtree.Runtime:
    """A Runtime on another file system, or with another clock."""
    with contextlib.ExitStack() as stack:
        if how:
            stack.enter_context(mock.patch("xtree.persistence.sharing.open_store", partial(open_store, **how)))
        return xtree.Runtime(path, mode=mode, config=config)


def canonical(ids: np.ndarray, boxes: np.ndarray) -> bytes:
    """Records as bytes, which don't depend on their order."""
    rows = np.column_stack([ids, boxes + 0.0])
    return rows[np.lexsort(rows.T[::-1])].tobytes() if len(rows) else b""
