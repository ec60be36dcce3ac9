"""Contestants of `bench index`: what an index is asked to do, and xtree's own trees that do it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import xtree
from xtree.tools.bench.answers import Answer, counted, from_lists, from_pairs
from xtree.tools.bench.report import require
from xtree.tools.bench.size import allocated_bytes

__all__ = ["BATCH", "Contestant", "DurableTree", "MemoryTree", "PairsOf", "RawWrite", "Trial", "batches"]

BATCH = 10_000  # records in one call of insert_many, or in one transaction of a peer
EVERYWHERE = (-np.inf, -np.inf, np.inf, np.inf)


def _no_answer(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Trial:
    """Something that an index does.

    run: does it; only this is timed. answer: makes an Answer of what run returned, or None if it is no question.
    """

    run: Callable[[], Any]
    answer: Callable[[Any], Answer | None] = _no_answer

    def found(self) -> Answer | None:
        return self.answer(self.run())


class Contestant:
    """An index. Its methods return a Trial, which has all input in the form that the index takes; None if it can't.

    Records have the ids 0 .. n-1 in the order in which they come. Boxes and windows are (n, 4), points (n, 2).
    """

    name = ""
    ours = False
    slow = False  # does everything once, not once a round

    def build(self, boxes: np.ndarray) -> Trial | None:
        """All records at once, into a new index."""
        return None

    def grow(self, boxes: np.ndarray) -> Trial | None:
        """A new index, and all records inserted into it, so many at a time, without a bulk load."""
        return None

    def grow_singly(self, boxes: np.ndarray) -> Trial | None:
        """A new index, and all records inserted into it, each a commit of its own where there are commits."""
        return None

    def insert_many(self, first_id: int, boxes: np.ndarray) -> Trial | None:
        return None

    def insert_each(self, first_id: int, boxes: np.ndarray) -> Trial | None:
        """One record a call, all in one transaction where there are transactions."""
        return None

    def delete(self, ids: np.ndarray, boxes: np.ndarray) -> Trial | None:
        return None

    def search(self, windows: np.ndarray) -> Trial | None:
        """Many windows in one call, where there is such a call."""
        return None

    def search_each(self, windows: np.ndarray) -> Trial | None:
        return None

    def count(self, windows: np.ndarray) -> Trial | None:
        return None

    def nearest(self, points: np.ndarray, k: int) -> Trial | None:
        """Many points in one call, where there is such a call."""
        return None

    def nearest_each(self, points: np.ndarray, k: int) -> Trial | None:
        return None

    def join(self, boxes: np.ndarray) -> Trial | None:
        """Pairs of records whose boxes touch, of an index that holds these boxes, with itself."""
        return None

    def records(self) -> int | None:
        """How many there are, counted where it can be."""
        return None

    def disk_bytes(self) -> int | None:
        """Bytes on the disk after a clean close; the index is open again afterwards."""
        return None

    def close(self) -> None:
        """Gives everything back. May be called more than once."""


def batches(first_id: int, boxes: np.ndarray, size: int = BATCH) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and boxes, so many at a time."""
    for start in range(0, len(boxes), size):
        some = boxes[start : start + size]
        yield np.arange(len(some)) + first_id + start, some


class MemoryTree(Contestant):
    """An XTree in memory."""

    name = "xtree, memory"
    ours = True
    tree: xtree.XTree | None = None

    def build(self, boxes: np.ndarray, ids: np.ndarray | None = None) -> Trial:
        self.close()
        return Trial(lambda: self._take(self._built(boxes, ids)))

    def grow(self, boxes: np.ndarray) -> Trial:
        self.close()

        def run() -> None:
            self._take(self._empty())
            self.insert_many(0, boxes).run()

        return Trial(run)

    def grow_singly(self, boxes: np.ndarray) -> Trial | None:
        self.close()
        rows = boxes.tolist()

        def run() -> None:
            self._take(self._empty())
            insert = self._tree.insert
            for id_, box in enumerate(rows):
                insert(id_, box)

        return Trial(run)

    def insert_many(self, first_id: int, boxes: np.ndarray) -> Trial:
        def run() -> None:
            for ids, some in batches(first_id, boxes):
                self._tree.insert_many(ids, some)

        return Trial(run)

    def insert_each(self, first_id: int, boxes: np.ndarray) -> Trial:
        rows = list(enumerate(boxes.tolist(), first_id))

        def run() -> None:
            with self._tree.transaction() as tx:
                for id_, box in rows:
                    tx.insert(id_, box)

        return Trial(run)

    def delete(self, ids: np.ndarray, boxes: np.ndarray) -> Trial:
        def run() -> None:
            deleted = self._tree.delete_many(ids, boxes)
            require(deleted == len(ids), f"{self.name} deleted {deleted} records of {len(ids)}")

        return Trial(run)

    def search(self, windows: np.ndarray) -> Trial:
        return Trial(lambda: self._tree.query(windows, output="csr"), lambda found: Answer(*found))

    def search_each(self, windows: np.ndarray) -> Trial:
        query, rows = self._tree.query, list(map(tuple, windows.tolist()))
        return Trial(lambda: [query(row) for row in rows], from_lists)

    def count(self, windows: np.ndarray) -> Trial:
        return Trial(lambda: self._tree.count(windows), counted)

    def nearest(self, points: np.ndarray, k: int) -> Trial:
        return Trial(lambda: self._tree.nearest(points, k=k), lambda found: from_pairs(*found, len(points)))

    def nearest_each(self, points: np.ndarray, k: int) -> Trial:
        nearest, rows = self._tree.nearest, list(map(tuple, points.tolist()))
        return Trial(lambda: [nearest(row, k=k) for row in rows], from_lists)

    def join(self, boxes: np.ndarray) -> Trial:
        return Trial(lambda: self._tree.join(self._tree), lambda found: from_pairs(*found, len(boxes)))

    def records(self) -> int:
        return int(self._tree.count(EVERYWHERE))

    def close(self) -> None:
        if self.tree is not None:
            self.tree.close()
            self.tree = None

    @property
    def _tree(self) -> xtree.XTree:
        assert self.tree is not None
        return self.tree

    def _take(self, tree: xtree.XTree) -> None:
        self.tree = tree

    def _built(self, boxes: np.ndarray, ids: np.ndarray | None) -> xtree.XTree:
        return xtree.XTree.from_boxes(boxes, ids)

    def _empty(self) -> xtree.XTree:
        return xtree.XTree(dims=2)


class DurableTree(MemoryTree):
    """An XTree in a directory of its own, every call a commit that is on the disk when it returns (`balanced`)."""

    name = "xtree, durable"

    def __init__(self, path: Path) -> None:
        self._path = path

    def grow_singly(self, boxes: np.ndarray) -> None:
        return None  # `bench substrate` measures commits

    def disk_bytes(self) -> int:
        self._tree.close()
        size = allocated_bytes(self._path.iterdir())
        self._take(xtree.open(self._path))
        return size

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._path, ignore_errors=True)

    def _built(self, boxes: np.ndarray, ids: np.ndarray | None) -> xtree.XTree:
        return xtree.XTree.from_boxes(boxes, ids, path=self._path)

    def _empty(self) -> xtree.XTree:
        return xtree.open(self._path, dims=2, mode="x")


class PairsOf(Contestant):
    """A tree that gives its answers in the default form, as pairs."""

    ours = True

    def __init__(self, tree: MemoryTree) -> None:
        self._of = tree
        self.name = f"{tree.name}, pairs"

    def search(self, windows: np.ndarray) -> Trial:
        assert self._of.tree is not None
        query = self._of.tree.query
        return Trial(lambda: query(windows), lambda found: from_pairs(*found, len(windows)))


class RawWrite(Contestant):
    """As many bytes as an index takes on the disk, written to one file and synced."""

    name = "writing as many bytes"

    def __init__(self, path: Path, size: Callable[[], int]) -> None:
        self._path = path
        self._size = size

    def build(self, boxes: np.ndarray) -> Trial:
        self.close()
        size = self._size()
        block = bytes(range(256)) * 4096

        def run() -> None:
            with open(self._path, "wb", buffering=0) as file:
                for start in range(0, size, len(block)):
                    file.write(block[: size - start])
                getattr(os, "fdatasync", os.fsync)(file.fileno())

        def written(_: Any) -> None:
            require(self._path.stat().st_size == size, f"{self._path.stat().st_size} bytes written, not {size}")

        return Trial(run, written)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
