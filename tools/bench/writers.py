"""Benchmark of writers side by side: what a second thread adds, and what queries beside a writer take from it.

What two processes do, which share nothing but the machine, is the most that two threads can. Each of them is

    python -m xtree.tools.bench.writers PATH KIND RECORDS

which prints "done" when its tree is there, and after every "insert" or "remove" that it reads and has carried out.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

import xtree
from xtree.tools.bench.commits import Forest, boxes_of
from xtree.tools.bench.report import Report, require

if TYPE_CHECKING:
    from xtree.tools.bench.substrate import Scale

__all__ = ["measure_writers"]

KINDS = ("memory", "durable")
WRITERS = 2
READERS = 8
CHILD = [sys.executable, "-m", "xtree.tools.bench.writers"]


class Grower:
    """A tree, and records that it takes in and gives up again, so that every round finds the same."""

    def __init__(self, tree: xtree.XTree, seed: int, records: int) -> None:
        self._tree = tree
        self._records = records
        self._ids = np.arange(records, 2 * records)
        self._boxes = boxes_of(seed + 1, records)
        tree.bulk_load(np.arange(records), boxes_of(seed, records))

    def insert(self) -> None:
        """As many records as the tree has, by one call."""
        self._tree.insert_many(self._ids, self._boxes)

    def remove(self) -> None:
        """The same again. Raises WrongAnswerError when they weren't there."""
        deleted = self._tree.delete_many(self._ids, self._boxes)
        require(deleted == self._records == len(self._tree), f"{deleted} of {self._records} records were there")


@contextmanager
def own_trees(kind: str, path: Path, number: int) -> Iterator[list[xtree.XTree]]:
    """So many trees, in memory or in one directory."""
    if kind == "durable":
        with xtree.Runtime(path, mode="x") as runtime:
            yield [runtime.tree(f"tree {i}", dims=2) for i in range(number)]
    else:
        yield [xtree.XTree(dims=2) for _ in range(number)]


class Child:
    """A Grower in a process of its own."""

    def __init__(self, kind: str, path: Path, records: int) -> None:
        arguments = [*CHILD, str(path), kind, str(records)]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._listen()

    def insert(self) -> None:
        """What the Grower does."""
        self._tell("insert")

    def remove(self) -> None:
        """What the Grower does."""
        self._tell("remove")

    def close(self) -> None:
        """Ends it. Raises WrongAnswerError when it has found something wrong."""
        self._process.communicate()
        require(self._process.returncode == 0, f"{self._process.args!r}: status {self._process.returncode}")

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        self._listen()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        require(self._process.stdout.readline() == "done\n", "a process that inserts has ended")


def obey(path: str, kind: str, records: str) -> None:
    """What a Child does in its process."""
    with own_trees(kind, Path(path), 1) as trees:
        grower = Grower(trees[0], 0, int(records))
        print("done", flush=True)
        for line in sys.stdin:
            {"insert": grower.insert, "remove": grower.remove}[line.strip()]()
            print("done", flush=True)


def measure_writers(report: Report, scale: Scale, directory: Path) -> None:
    """insert_many by two threads and by two processes beside one of each, and a writer beside queries."""
    records = scale.writer_records
    report.section(f"insert_many of {records:,} records into a tree of as many, each writer into its own")
    for kind in KINDS:
        _measure_pair(report, kind, scale, directory / "writers")
    report.section(f"commits of one insert into {scale.tree_records:,} records beside {READERS} threads of queries")
    _measure_beside_queries(report, scale, directory / "beside")


def _measure_pair(report: Report, kind: str, scale: Scale, directory: Path) -> None:
    directory.mkdir()
    records = scale.writer_records
    with ExitStack() as stack:
        trees = stack.enter_context(own_trees(kind, directory / "threads", WRITERS))
        pool = stack.enter_context(ThreadPoolExecutor(WRITERS))
        threads = [Grower(tree, 2 * i, records) for i, tree in enumerate(trees)]
        processes = []
        for i in range(WRITERS):
            processes.append(Child(kind, directory / f"process {i}", records))
            stack.callback(processes[-1].close)
        teams: dict[str, Sequence[Grower | Child]] = {"threads": threads, "processes": processes}
        alone: list[float] = []
        gains: dict[str, list[float]] = {team: [] for team in teams}
        for round_ in range(scale.rounds + 1):
            for team, writers in teams.items():
                one, all_ = (_insert_together(pool, some) * records for some in (writers[:1], writers))
                if round_ == 0:  # which makes room for what the others write
                    continue
                gains[team].append(all_ / one)
                if team == "threads":
                    alone.append(one)
    shutil.rmtree(directory)
    name = f"insert_many, own trees, {kind}"
    report.add("writers", f"{name}, 1 thread", "records/s", alone)
    ceiling = report.add("writers", f"{name}, {WRITERS} processes ÷ 1", "×", gains["processes"])
    report.add("writers", f"{name}, {WRITERS} threads ÷ 1", "×", gains["threads"], against=[ceiling])


def _insert_together(pool: ThreadPoolExecutor, writers: Sequence[Grower | Child]) -> float:
    """Calls a second, when each of them makes one at the same time; they are as before in the end."""
    started = perf_counter()
    _wait_for([pool.submit(writer.insert) for writer in writers])
    elapsed = perf_counter() - started
    _wait_for([pool.submit(writer.remove) for writer in writers])
    return len(writers) / elapsed


def _wait_for(calls: Iterable[Future[None]]) -> None:
    for call in calls:
        call.result()


def _measure_beside_queries(report: Report, scale: Scale, path: Path) -> None:
    for mode in ("balanced", "eventual"):
        forest = Forest(path, mode, 1, scale.tree_records)
        alone, beside = [], []
        try:
            for _ in range(scale.rounds):
                alone.append(forest.commit_for(scale.commit_seconds, 1, False))
                with _queries(forest.trees[0]):
                    beside.append(forest.commit_for(scale.commit_seconds, 1, False))
        finally:
            forest.close()
            shutil.rmtree(path)
        figure = report.add("writers", f"{mode}, no queries beside it", "/s", alone)
        report.add("writers", f"{mode}, {READERS} threads of queries beside it", "/s", beside, against=[figure])


@contextmanager
def _queries(tree: xtree.XTree) -> Iterator[None]:
    """Threads that ask for one small window after the other, as long as this lasts."""
    ended = threading.Event()
    windows = [tuple(window) for window in boxes_of(77, 1000).tolist()]

    def ask(first: int) -> int:
        asked = first
        while not ended.is_set():
            tree.query(windows[asked % len(windows)])
            asked += 1
        return asked - first

    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(ask, 100 * i) for i in range(READERS)]
        try:
            yield
        finally:
            ended.set()
        require(all(reader.result() for reader in readers), "a thread of queries asked nothing")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent ends this process
    obey(*sys.argv[1:])
