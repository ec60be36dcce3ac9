"""A file system whose calls can be made to fail: the n-th one, or those of one kind."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable

from xtree.persistence.platform_fs import File, FileSystem, SyncFailedError

PATIENCE_S = 20  # before a test that waits for a thread fails
WRITES = ("pwrite", "pwritev", "write_zeros", "truncate", "reserve", "sync")


class FaultyFileSystem(FileSystem):
    """`judge(call, path)` is asked before every changing call; a number that it returns is the errno to fail with."""

    def __init__(self) -> None:
        super().__init__()
        self.judge: Callable[[str, str], int | None] = lambda call, path: None
        self.calls = 0

    def open(self, path: str, mode: str) -> File:
        if mode == "create":
            self.ask("create", path)
        opened = super().open(path, mode)
        faulty = FaultyFile(path, os.dup(opened.fileno()), self)
        opened.close()
        return faulty

    def replace(self, source: str, target: str) -> None:
        self.ask("replace", target)
        super().replace(source, target)

    def sync_directory(self, path: str) -> None:
        self.ask("sync", path)
        super().sync_directory(path)

    def fail(self, call: str, ending: str = "", number: int = errno.EIO, times: int = 1) -> None:
        """Makes the next calls of a kind, on files whose name ends so, fail."""
        left = times

        def judge(asked: str, path: str) -> int | None:
            nonlocal left
            if asked == call and path.endswith(ending) and left:
                left -= 1
                return number
            return None

        self.judge = judge

    def fail_nth(self, n: int, number: int = errno.EIO) -> None:
        """Makes the n-th changing call from now on fail, once."""
        last = self.calls + n
        self.judge = lambda call, path: number if self.calls == last else None

    def heal(self) -> None:
        """Lets everything succeed again."""
        self.judge = lambda call, path: None

    def ask(self, call: str, path: str) -> None:
        self.calls += 1
        number = self.judge(call, path)
        if number is not None:
            kind = SyncFailedError if call == "sync" else OSError
            raise kind(number, os.strerror(number), path)


class FaultyFile(File):
    """A file that asks its file system before it changes anything."""

    __slots__ = ("fs",)

    def __init__(self, path: str, fd: int, fs: FaultyFileSystem) -> None:
        super().__init__(path, fd)
        self.fs = fs


def _asking(name: str) -> Callable[..., object]:
    original = getattr(File, name)

    def call(self: FaultyFile, *args: object) -> object:
        self.fs.ask(name, self.path)
        return original(self, *args)

    return call


for _name in WRITES:
    setattr(FaultyFile, _name, _asking(_name))


class CountingFileSystem(FaultyFileSystem):
    """Counts syncs by the ending of the file's name."""

    def __init__(self):
        super().__init__()
        self.syncs = []

    def ask(self, call, path):
        super().ask(call, path)
        if call == "sync":
            self.syncs.append(os.path.splitext(path)[1])

    def taken(self):
        syncs, self.syncs = self.syncs, []
        return syncs


class HeldFileSystem(CountingFileSystem):
    """Syncs of logs wait until they are let go, when that is asked for."""

    def __init__(self):
        super().__init__()
        self.hold, self.held, self.let_go = False, threading.Event(), threading.Event()

    def ask(self, call, path):
        if self.hold and call == "sync" and path.endswith(".log"):
            self.held.set()
            assert self.let_go.wait(PATIENCE_S)
        super().ask(call, path)

    def release(self):
        """Lets the syncs go on, and holds no more."""
        self.hold = False
        self.let_go.set()


def queued(store, n):
    """Returns when n threads have handed something to the leader, and wait."""
    deadline = time.monotonic() + PATIENCE_S
    while store.stats()["coordinator"]["waiting"] < n:
        assert time.monotonic() < deadline
        time.sleep(0)
