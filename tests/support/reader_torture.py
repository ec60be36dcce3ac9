"""Histories of trees under torture: what each version of a tree holds, and readers that compare snapshots with it.

Every version of a tree holds one record far from all others, whose id is the version's number. So a snapshot says
which version it shows, and the model knows its content. The writer notes a version before its commit, and its
acknowledgement afterwards: a snapshot shows no version that was out of date when it was taken, and none that had not
begun.
"""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass, field

import numpy as np

import xtree
from support import brute_force

DIMS = 2
SIGN = np.array([-90.0, -90.0, -90.0, -90.0])  # the box of the record that names the version
SIGNS = 1 << 40  # its id minus the version
NOTHING = (np.empty(0, np.int64), np.empty((0, 2 * DIMS)))
PREDICATES = ("intersects", "contains", "within")

Batch = tuple[np.ndarray, np.ndarray]  # ids and boxes


@dataclass
class History:
    """The versions of one tree. A thread that commits to the tree holds `lock`."""

    name: str
    versions: list[tuple[Batch, ...]] = field(default_factory=list)
    acknowledged: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_id: int = 0

    @property
    def now(self) -> tuple[Batch, ...]:
        """The batches of the newest version, without its sign."""
        return self.versions[-1][1:] if self.versions else ()

    def begin(self, batches: tuple[Batch, ...]) -> tuple[Batch, Batch | None]:
        """Notes a version that is about to be committed; returns its sign, and that of the version before."""
        before = self.versions[-1][0] if self.versions and self.versions[-1] else None
        sign = (np.array([SIGNS + len(self.versions)]), SIGN[None, :])
        self.versions.append((sign, *batches))
        return sign, before

    def begin_empty(self) -> None:
        """Notes a version without any record, and so without a sign, of a tree that has just been made."""
        self.versions.append(())

    def acknowledge(self) -> None:
        """Notes that the newest version's commit has returned."""
        self.acknowledged = len(self.versions) - 1

    def batch(self, random: np.random.Generator) -> Batch:
        """Some new records."""
        n = int(random.integers(1, 60))
        self.next_id += n
        return np.arange(self.next_id - n, self.next_id), brute_force.random_boxes(random, n, DIMS, 0.05)


class WrongAnswerError(AssertionError):
    """A snapshot's answer differs from the model's."""


class Held:
    """A snapshot, and what it must answer for as long as it is open."""

    def __init__(self, history: History, tree: xtree.XTree, bounds: tuple[int, int] | None = None) -> None:
        """bounds: the first and the last version that the tree may show, if they aren't the present ones."""
        least = history.acknowledged
        self.snapshot = tree.snapshot()
        most = len(history.versions) - 1
        if bounds is not None:
            least, most = bounds
        found = self.snapshot.query(SIGN).tolist()
        if found:
            self.version = found[0] - SIGNS
            fits = len(found) == 1 and least <= self.version <= most
        else:
            empty = [i for i in range(max(least, 0), most + 1) if not history.versions[i]]
            self.version = empty[-1] if empty else -1
            fits = bool(empty)
        self.what = f"tree {history.name}, epoch {self.snapshot.epoch}, version {self.version}"
        if not fits:
            raise WrongAnswerError(f"{self.what}: signs {found}, expected a version from {least} to {most}")
        batches = history.versions[self.version]
        self.ids, self.boxes = (np.concatenate(parts) for parts in zip(NOTHING, *batches, strict=True))
        self.looks = 0

    def compare(self, random: np.random.Generator, tried: collections.Counter[str]) -> None:
        """Asks the snapshot something and compares the answer."""
        ask = ("query", "queries", "counts", "nearest", "items", "len")[random.integers(6)]
        getattr(self, "_" + ask)(random)
        self.looks += 1
        tried[f"answers of snapshots compared, {ask}"] += 1

    def _windows(self, random: np.random.Generator, n: int) -> np.ndarray:
        return brute_force.random_boxes(random, n, DIMS, float(random.choice([0.02, 0.2, 1.0])))

    def _same(self, found, expected, asked: str) -> None:
        if found != expected:
            raise WrongAnswerError(f"{self.what}, look {self.looks}: {asked}: {found}, expected {expected}")

    def _query(self, random: np.random.Generator) -> None:
        window, predicate = self._windows(random, 1)[0], PREDICATES[random.integers(3)]
        found = sorted(self.snapshot.query(window, predicate).tolist())
        self._same(found, brute_force.query(self.ids, self.boxes, window, predicate), f"{predicate} {window.tolist()}")

    def _queries(self, random: np.random.Generator) -> None:
        windows = self._windows(random, 80)
        offsets, hits = self.snapshot.query(windows, output="csr")
        found = [sorted(part.tolist()) for part in np.split(hits, offsets[1:-1])]
        expected = [brute_force.query(self.ids, self.boxes, window) for window in windows]
        self._same(found, expected, f"{windows.tolist()}")

    def _counts(self, random: np.random.Generator) -> None:
        windows = self._windows(random, 80)
        expected = [int(brute_force.matches(self.boxes, window).sum()) for window in windows]
        self._same(self.snapshot.count(windows).tolist(), expected, f"counts of {windows.tolist()}")

    def _nearest(self, random: np.random.Generator) -> None:
        point, k = random.random(DIMS), int(random.integers(1, 9))
        expected = brute_force.nearest(self.ids, self.boxes, point, k)[0]
        self._same(self.snapshot.nearest(point, k).tolist(), expected, f"{k} nearest to {point.tolist()}")

    def _items(self, random: np.random.Generator) -> None:
        found = brute_force.records(*self.snapshot.items())
        self._same(found, brute_force.records(self.ids, self.boxes), "all items")

    def _len(self, random: np.random.Generator) -> None:
        self._same(len(self.snapshot), len(self.ids), "how many")
