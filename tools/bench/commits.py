"""Benchmark of commits: how many a second, in each durability mode, beside the disk itself and other engines.

All contestants take turns within each round, so that a ratio compares what the disk did in the same seconds. The raw
probe comes before and after every mode.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

import xtree
from xtree.tools.bench.peers import Lmdb, Peer, RawAppend, Sqlite
from xtree.tools.bench.report import Figure, Report, require

if TYPE_CHECKING:
    from xtree.tools.bench.substrate import Scale

__all__ = ["Forest", "boxes_of", "measure_commits"]

MODES = ("strict", "balanced", "eventual")
THREADS = (1, 8, 32)
EXTENDING, OVERWRITING = "raw append, extending", "raw append, overwriting"
LMDB, LMDB_RANDOM = "LMDB, ascending ids", "LMDB, random ids"
LMDB_NOSYNC, LMDB_NOSYNC_RANDOM = "LMDB without sync, ascending ids", "LMDB without sync, random ids"
SQLITE, SQLITE_RTREE = "SQLite", "SQLite R*Tree"
SYNCED = (EXTENDING, OVERWRITING, LMDB, LMDB_RANDOM, SQLITE)
UNSYNCED = (LMDB_NOSYNC, LMDB_NOSYNC_RANDOM)
PEERS = (*SYNCED, SQLITE_RTREE, *UNSYNCED)
FILLED_BLOCKS = 4096
FEW = 10  # inserts of a commit, where commits are counted
BATCH = 1000
BATCHES = 10  # commits of so many inserts at each turn

Boxes = np.ndarray


def boxes_of(seed: int, n: int) -> Boxes:
    """Small boxes all over the unit square."""
    rng = np.random.default_rng(seed)
    low = rng.random((n, 2))
    return np.hstack([low, low + rng.random((n, 2)) * 0.5 / np.sqrt(max(n, 1))])


def _time_batches(commit: Callable[[np.ndarray, Boxes], object], first_id: int) -> float:
    elapsed = 0.0
    for first in range(first_id, first_id + BATCHES * BATCH, BATCH):
        boxes = boxes_of(first, BATCH)
        started = perf_counter()
        commit(np.arange(BATCH) + first, boxes)
        elapsed += perf_counter() - started
    return elapsed / BATCHES * 1e3


class Forest:
    """A runtime with a tree for each thread, and how many records each should hold."""

    def __init__(self, path: Path, mode: str, trees: int, records: int) -> None:
        self._path = path
        self._runtime = xtree.Runtime(path, mode="x", durability=mode)
        self._boxes = boxes_of(99, 1 << 16)
        self.trees = [self._runtime.tree(f"tree {i:02}", dims=2) for i in range(trees)]
        for number, tree in enumerate(self.trees):
            tree.bulk_load(np.arange(records), boxes_of(number, records))
        self._expected = [records] * trees
        self._next_id = records
        self._runtime.checkpoint()

    def commit_for(self, seconds: float, threads: int, shared: bool, inserts: int = 1) -> float:
        """Commits a second of so many inserts each, by so many threads: each in its own tree, or all in the first."""
        counts = [0] * threads
        go = threading.Barrier(threads + 1)
        deadline = [0.0]

        def write(thread: int) -> None:
            tree = self.trees[0 if shared else thread]
            row = thread * 1009
            go.wait()
            while counts[thread] == 0 or perf_counter() < deadline[0]:
                first, place = self._next_id + counts[thread], (row + counts[thread]) % (len(self._boxes) - FEW)
                if inserts == 1:
                    tree.insert(first, self._boxes[place])
                else:
                    tree.insert_many(np.arange(first, first + inserts), self._boxes[place : place + inserts])
                counts[thread] += inserts

        workers = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        started = perf_counter()
        deadline[0] = started + seconds
        go.wait()
        for worker in workers:
            worker.join()
        elapsed = perf_counter() - started
        for thread, count in enumerate(counts):
            self._expected[0 if shared else thread] += count
        self._next_id += max(counts)
        return sum(counts) / inserts / elapsed

    def commit_batches(self) -> float:
        """Milliseconds that a commit of a thousand inserts takes, on average."""
        milliseconds = _time_batches(self.trees[0].insert_many, self._next_id)
        self._expected[0] += BATCHES * BATCH
        self._next_id += BATCHES * BATCH
        return milliseconds

    def close(self) -> None:
        """Closes, opens again, and compares every tree with what was acknowledged."""
        self._runtime.close()
        with xtree.Runtime(self._path, mode="r") as runtime:
            for number, expected in enumerate(self._expected):
                tree = runtime.tree(f"tree {number:02}")
                found = len(tree.items()[0])
                require(found == expected, f"{tree.name} holds {found} records, {expected} were committed")


class Committer:
    """A peer, one thread, and how many records it should hold."""

    def __init__(self, peer: Peer, records: int) -> None:
        self._peer = peer
        self._boxes = boxes_of(99, 1 << 16)
        self._counts_records = not isinstance(peer, RawAppend)
        self._expected = 0
        if self._counts_records and records:
            peer.commit(np.arange(records), boxes_of(0, records))
            self._expected = records

    def commit_for(self, seconds: float) -> float:
        """Commits a second of one record each."""
        started = perf_counter()
        count = 0
        while (elapsed := perf_counter() - started) < seconds:
            row = count & 0xFFFF
            self._peer.commit(np.array([self._expected + count]), self._boxes[row : row + 1])
            count += 1
        self._expected += count
        return count / elapsed

    def commit_batches(self) -> float:
        """Milliseconds that a commit of a thousand records takes, on average."""
        milliseconds = _time_batches(self._peer.commit, self._expected)
        self._expected += BATCHES * (BATCH if self._counts_records else 1)
        return milliseconds

    def close(self) -> None:
        self._peer.close(self._expected)


def measure_commits(report: Report, scale: Scale, directory: Path) -> None:
    """Commits of one insert by 1, 8 and 32 threads, and of a thousand inserts, with the peers in the same rounds."""
    report.section(f"commits of one insert into a tree of {scale.tree_records:,} records")
    forests = {}
    with ExitStack() as stack:  # all are closed, also when one of them finds that records are missing
        peers = _make_peers(report, directory, scale.tree_records)
        for peer in peers.values():
            stack.callback(peer.close)
        for mode in MODES:
            stack.callback(shutil.rmtree, directory / mode, ignore_errors=True)
            forests[mode] = Forest(directory / mode, mode, max(scale.threads), scale.tree_records)
            stack.callback(forests[mode].close)
        rates, batches = _take_turns(forests, peers, scale)
    _report(report, rates, batches)


def _make_peers(report: Report, directory: Path, records: int) -> dict[str, Committer]:
    makers: dict[str, Callable[[], Peer]] = {
        EXTENDING: lambda: RawAppend(directory / "extending"),
        OVERWRITING: lambda: RawAppend(directory / "overwriting", filled=FILLED_BLOCKS),
        LMDB: lambda: Lmdb(directory / "lmdb", sync=True, scattered=False),
        LMDB_RANDOM: lambda: Lmdb(directory / "lmdb-random", sync=True, scattered=True),
        LMDB_NOSYNC: lambda: Lmdb(directory / "lmdb-nosync", sync=False, scattered=False),
        LMDB_NOSYNC_RANDOM: lambda: Lmdb(directory / "lmdb-nosync-random", sync=False, scattered=True),
        SQLITE: lambda: Sqlite(directory / "plain.sqlite", spatial=False),
        SQLITE_RTREE: lambda: Sqlite(directory / "rtree.sqlite", spatial=True),
    }
    peers = {}
    for name, make in makers.items():
        try:
            peers[name] = Committer(make(), records)
        except ImportError as error:
            report.skip(name, f"{error}; pip install 'xtree-index[bench]'")
        except sqlite3.OperationalError as error:
            report.skip(name, str(error))
    return peers


def _take_turns(
    forests: dict[str, Forest], peers: dict[str, Committer], scale: Scale
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Samples of every contestant, by name: commits a second, and milliseconds for a thousand inserts."""
    rates: dict[str, list[float]] = {}
    batches: dict[str, list[float]] = {}
    for _ in range(scale.rounds):
        for name, peer in peers.items():
            if not name.startswith("raw"):
                rates.setdefault(name, []).append(peer.commit_for(scale.commit_seconds))
                batches.setdefault(name, []).append(peer.commit_batches())
        probes: dict[str, list[float]] = {EXTENDING: [], OVERWRITING: []}
        for mode, forest in forests.items():
            for probe, samples in probes.items():
                samples.append(peers[probe].commit_for(scale.commit_seconds))
            for threads, shared in _arrangements(scale):
                rate = forest.commit_for(scale.commit_seconds, threads, shared)
                rates.setdefault(_name(mode, threads, shared), []).append(rate)
            rate = forest.commit_for(scale.commit_seconds, 1, False, FEW)
            rates.setdefault(_name_of_few(mode), []).append(rate)
            batches.setdefault(mode, []).append(forest.commit_batches())
        for probe, samples in probes.items():
            samples.append(peers[probe].commit_for(scale.commit_seconds))
            rates.setdefault(probe, []).append(float(np.median(samples)))
    return rates, batches


def _arrangements(scale: Scale) -> list[tuple[int, bool]]:
    return [(n, shared) for n in scale.threads for shared in (False, True) if n > 1 or not shared]


def _name(mode: str, threads: int, shared: bool) -> str:
    if threads == 1:
        return f"{mode}, 1 thread"
    return f"{mode}, {threads} threads, {'one tree' if shared else 'own trees'}"


def _name_of_few(mode: str) -> str:
    return f"{mode}, 1 thread, {FEW} inserts a commit"


def _report(report: Report, rates: dict[str, list[float]], batches: dict[str, list[float]]) -> None:
    found: dict[str, Figure] = {}
    for name in [peer for peer in PEERS if peer in rates]:
        found[name] = report.add("commits", name, "/s", rates[name])
    alone: Figure | None = None
    for name, samples in rates.items():
        if name in found:
            continue
        mode = name.split(",")[0]
        if name == _name(mode, 1, False):
            rivals = UNSYNCED if mode == "eventual" else SYNCED
            alone = report.add("commits", name, "/s", samples, against=[found.get(rival) for rival in rivals])
        elif name == _name_of_few(mode):
            report.add("commits", name, "/s", samples, against=[alone, found[EXTENDING]])
        else:
            report.add("commits", name, "/s", samples, against=[alone])
    report.section(f"commits of {BATCH:,} inserts")
    slower = [report.add("batches", name, "ms", batches[name]) for name in batches if name not in MODES]
    for mode in MODES:
        report.add("batches", mode, "ms", batches[mode], against=slower)
