"""Benchmark of group commit on a disk whose syncs take a given time: what sharing them is worth."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files.platform_fs import File, FileSystem
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin
from xtree.tools.bench.report import Report, require

if TYPE_CHECKING:
    from xtree.persistence.files.platform_fs import Path as AnyPath
    from xtree.tools.bench.substrate import Scale

__all__ = ["measure_groups"]

KIND = 200  # of pages that no tree has
SYNC_MS = (0.1, 1.0)


class SlowFile(File):
    """A file whose sync does nothing but wait."""

    __slots__ = ("seconds",)

    def __init__(self, path: AnyPath, fd: int, seconds: float) -> None:
        super().__init__(path, fd)
        self.seconds = seconds

    def sync(self) -> None:
        sleep(self.seconds)


class SlowDisk(FileSystem):
    """The file system, with syncs of files that take `seconds` instead of reaching a disk."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def open(self, path: AnyPath, mode: str) -> File:
        opened = super().open(path, mode)
        slow = SlowFile(path, os.dup(opened.fileno()), self.seconds)
        opened.close()
        return slow


def measure_groups(report: Report, scale: Scale, directory: Path) -> None:
    """Commits of one page by one thread and by many, each thread with a page of its own."""
    report.section("commits of one page on a disk whose syncs take so long")
    for sync_ms in SYNC_MS:
        path = directory / "groups"
        store = open_store(path, fs=SlowDisk(sync_ms / 1000))
        expected = [0] * max(scale.threads)
        try:
            samples: dict[int, list[float]] = {threads: [] for threads in scale.threads}
            for _ in range(scale.rounds):
                for threads, rates in samples.items():
                    rates.append(_commit_for(store, threads, scale.commit_seconds, expected))
            for thread, count in enumerate(expected):
                found = _counted(store, f"{thread}")
                require(found == count, f"thread {thread} committed {count} times, its page says {found}")
        finally:
            store.close()
        shutil.rmtree(path)
        alone = None
        for threads, rates in samples.items():
            figure = report.add("groups", f"{threads} threads, {sync_ms} ms", "/s", rates, against=[alone])
            alone = alone or figure


def _commit_for(store: DurableStore, threads: int, seconds: float, expected: list[int]) -> float:
    """Commits a second; each thread counts its own on its page."""
    go = threading.Barrier(threads + 1)
    counts = [0] * threads

    def write(thread: int) -> None:
        go.wait()
        deadline = perf_counter() + seconds
        while perf_counter() < deadline:
            _count_up(store, f"{thread}", expected[thread] + 1)
            expected[thread] += 1
            counts[thread] += 1

    workers = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    go.wait()
    started = perf_counter()
    for worker in workers:
        worker.join()
    return sum(counts) / (perf_counter() - started)


def _counted(store: DurableStore, name: str) -> int:
    entry = store.published.catalog.get(name)
    return 0 if entry is None else int(store.read_page(entry.root)[:20])


def _count_up(store: DurableStore, name: str, number: int) -> None:
    write_set = begin(store)
    entry = write_set.base.catalog.get(name)
    content = f"{number:20}".encode()
    root = write_set.add_page(KIND, 0, content) if entry is None else write_set.replace_page(entry.root, content)
    write_set.commit({name: CatalogEntry(name, "counter", root, b"")})
