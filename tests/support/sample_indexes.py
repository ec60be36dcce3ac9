"""Healthy index directories of many kinds, each with the answers it gives at every epoch it may be recovered to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import xtree
from support.places import EXAMPLES
from support.text_pages import by_request, settle
from xtree.persistence.files import filenames

sys.path.insert(0, str(EXAMPLES))
from page_stack import PageStack, StackState

Files = dict[str, bytes]
Answers = dict[str, list[Any]]
CONFIG = by_request()
K = 5  # nearest neighbours asked for


@dataclass
class Index:
    """The files of a healthy directory, older versions of some of them, and its answers by epoch."""

    kind: str
    files: Files
    older: list[Files]
    history: dict[int, Answers]

    @property
    def last_epoch(self) -> int:
        """The epoch that recovery comes to."""
        return max(self.history)


def read_files(path: Path) -> Files:
    """The content of a directory's files, by name."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != filenames.LOCK}


def lay_out(path: Path, files: Files) -> None:
    """Makes a directory of these files, in place of what is there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)


def answers(runtime: xtree.Runtime) -> Answers:
    """What every structure answers, as JSON has it: windows, counts, nearest neighbours, all records."""
    found: Answers = {name: answers_of(runtime.tree(name)) for name in runtime.trees()}
    return found | {name: answers_of_stack(runtime, name) for name in runtime.structures()}


def answers_of_stack(runtime: xtree.Runtime, name: str) -> list[str]:
    """What one stack holds, from the top."""
    return [hashlib.sha256(item).hexdigest() for item in PageStack(runtime.structure(name, StackState))]


def answers_of(tree: xtree.XTree) -> list[Any]:
    """What one tree answers."""
    ids, boxes = tree.items()
    order = np.lexsort((*boxes.T, ids))
    digest = hashlib.sha256(ids[order].tobytes() + boxes[order].tobytes()).hexdigest()
    windows = windows_of(tree.dims)
    places, found = tree.query(windows)
    hits = [sorted(found[places == i].tolist()) for i in range(len(windows))]
    near = tree.nearest(np.full(tree.dims, 0.4), k=K)
    bounds = None if tree.bounds is None else tree.bounds.tolist()
    return [tree.dims, len(tree), bounds, digest, hits, tree.count(windows).tolist(), sorted(near.tolist())]


def windows_of(dims: int) -> np.ndarray:
    """A few windows: parts of the unit cube, and all of space."""
    ends = ((0.1, 0.6), (0.5, 0.9), (-np.inf, np.inf))
    return np.array([[low] * dims + [high] * dims for low, high in ends])


def by_brute_force(ids: np.ndarray, boxes: np.ndarray) -> list[list[int]]:
    """The records that meet each of the windows."""
    dims = boxes.shape[1] // 2
    windows = windows_of(dims)
    return [
        sorted(ids[(boxes[:, :dims] <= w[dims:]).all(axis=1) & (boxes[:, dims:] >= w[:dims]).all(axis=1)].tolist())
        for w in windows
    ]


class Builder:
    """Fills an index, notes what it answers after each commit, and keeps older versions of its files."""

    def __init__(self, path: Path, **fields: Any) -> None:
        self.path = path
        self.rng = np.random.default_rng(0)
        self.history: dict[int, Answers] = {}
        self.older: list[Files] = []
        self.runtime = self.open(**fields)
        self.next_id = 0
        self.note()

    def open(self, **fields: Any) -> xtree.Runtime:
        """Opens the index, for the first time or again."""
        self.runtime = xtree.Runtime(self.path, config=dataclasses.replace(CONFIG, **fields))
        return self.runtime

    def boxes(self, n: int, dims: int, side: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        """n records with new ids."""
        low = self.rng.random((n, dims))
        self.next_id += n
        return np.arange(self.next_id - n, self.next_id), np.hstack([low, low + self.rng.random((n, dims)) * side])

    def insert(self, name: str, n: int, dims: int = 2, side: float = 0.05) -> None:
        """Inserts new records in one commit, after another that makes the tree if need be."""
        tree = self.runtime.tree(name, dims=dims)
        self.note()
        tree.insert_many(*self.boxes(n, dims, side))
        self.note()

    def delete(self, name: str, n: int) -> None:
        """Deletes some records in one commit."""
        tree = self.runtime.tree(name)
        ids, boxes = tree.items()
        tree.delete_many(ids[:n], boxes[:n])
        self.note()

    def note(self) -> None:
        """Notes the present answers as those of the present epoch."""
        for name in self.runtime.trees():
            tree = self.runtime.tree(name)
            assert answers_of(tree)[4] == by_brute_force(*tree.items())
        self.history[self.runtime.stats()["epoch"]] = answers(self.runtime)
        settle(self.runtime._store)

    def keep(self) -> None:
        """Keeps the present files as an older version."""
        self.older.append(read_files(self.path))


def closed(b: Builder) -> None:
    """Two cleanly closed sessions: nothing but checkpoints and pages."""
    b.insert("flat", 150)
    b.runtime.close()
    b.keep()
    b.open()
    b.insert("flat", 40)
    b.delete("flat", 20)
    b.runtime.close()


def killed(b: Builder) -> None:
    """A log to replay, whose frames hold whole pages and changes of pages."""
    b.insert("flat", 120)
    b.runtime.checkpoint()
    b.keep()
    for _ in range(5):
        b.insert("flat", 2)
    b.keep()
    b.delete("flat", 3)
    b.insert("flat", 1)


def never_checkpointed(b: Builder) -> None:
    """A log from the very beginning and nothing else."""
    b.insert("flat", 60)
    b.keep()
    b.insert("flat", 3)


def two_checkpoints(b: Builder) -> None:
    """Two checkpoints, the older of which would do, and a log after them."""
    b.insert("flat", 100)
    b.runtime.checkpoint()
    b.insert("flat", 5)
    b.keep()
    b.runtime.checkpoint()
    b.insert("flat", 5)


def many_trees(b: Builder) -> None:
    """Many trees, one of them dropped, several changed in one commit."""
    for i in range(9):
        b.insert(f"tree-{i}", 1 + i % 3 * 20, dims=1 + i % 4)
    b.runtime.checkpoint()
    b.keep()
    b.runtime.drop("tree-5")
    b.note()
    with b.runtime.transaction(trees=["tree-1", "tree-2", "tree-3"]) as tx:
        for i in (1, 2, 3):
            tx.tree(f"tree-{i}").insert_many(*b.boxes(3, 1 + i % 4))
    b.note()


def structure(b: Builder) -> None:
    """A structure of pages that isn't a tree, beside a tree."""
    b.runtime.tree("flat", dims=2)
    b.note()
    b.runtime.structure("stack", StackState)
    b.note()
    for i in range(8):
        with b.runtime.transaction(trees=["flat", "stack"]) as tx:
            tx.tree("flat").insert_many(*b.boxes(5, 2))
            PageStack(tx.structure("stack")).push(b"%d " % i + b"x" * 900)
        b.note()
        if i == 5:
            b.runtime.checkpoint()
            b.keep()


def supernodes(b: Builder) -> None:
    """Sixteen dimensions, boxes that overlap everywhere: directory pages of several blocks."""
    b.insert("deep", 800, dims=16, side=1.0)
    assert b.runtime.tree("deep").stats()["supernodes"]
    b.runtime.checkpoint()
    b.keep()
    b.insert("deep", 2, dims=16, side=1.0)


def eventual(b: Builder) -> None:
    """Frames that aren't known to be on the disk, after some that are."""
    b.insert("flat", 50)
    b.runtime.checkpoint()
    b.keep()
    for _ in range(5):
        b.insert("flat", 3)


def strict(b: Builder) -> None:
    """Frames without pages, exposed by the superblock."""
    b.insert("flat", 50)
    b.runtime.checkpoint()
    b.keep()
    for _ in range(3):
        b.insert("flat", 3)
    b.keep()
    b.insert("flat", 3)


def rotated(b: Builder) -> None:
    """A chain of several logs."""
    for _ in range(7):
        b.insert("flat", 25)
        if len(b.history) == 5:
            b.keep()


KINDS: dict[Callable[[Builder], None], dict[str, Any]] = {
    closed: {},
    killed: {"epoch_stride": 3},
    never_checkpointed: {},
    two_checkpoints: {},
    many_trees: {},
    structure: {},
    supernodes: {"bulk_payload_limit": 16 << 20, "max_payload_in_wal": 1 << 20, "page_bytes": 8192},
    eventual: {"durability": "eventual", "sync_interval_ms": 3_600_000},
    strict: {"durability": "strict"},
    rotated: {"wal_rotate_bytes": 16 << 10, "wal_segment_bytes": 32 << 10},
}
BY_NAME = {make.__name__: make for make in KINDS}


def build(kind: str, path: Path) -> Index:
    """Makes an index in a child process, which ends without closing what it has open."""
    told = path.with_suffix(".json")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            make = BY_NAME[kind]
            builder = Builder(path, **KINDS[make])
            make(builder)
            for i, files in enumerate(builder.older):
                lay_out(path.with_name(f"{path.name}-older-{i}"), files)
            told.write_text(json.dumps(builder.history))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, result = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(result) == 0, f"no {kind} index was made"
    history = {int(epoch): answered for epoch, answered in json.loads(told.read_text()).items()}
    older = [read_files(old) for old in sorted(path.parent.glob(f"{path.name}-older-*"))]
    return Index(kind, read_files(path), older, history)
