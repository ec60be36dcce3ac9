"""A file system whose calls can be made to fail: the n-th one, or those of one kind."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence

from xtree.persistence.files.filenames import LOCK
from xtree.persistence.files.lock_file import Lock
from xtree.persistence.files.open_directory import OpenDirectory
from xtree.persistence.files.platform_fs import Buffer, File, FileSystem, SyncFailedError

PATIENCE_S = 60  # how long a test waits for a thread before it fails
WRITES = ("pwrite", "pwritev", "write_zeros", "truncate", "reserve", "sync")
READS = ("pread", "size", "map")
LOOKS = ("listdir", "size", "free_space")  # calls of the file system
SHORT = -1  # in place of an errno: the system call does only a part of what it was asked for, and says so


class FaultyFileSystem(FileSystem):
    """`judge(call, path)` is asked before every changing call; a number that it returns is the errno to fail with.

    With `reading` it is asked before every other call too, except `exists` and `is_directory`, which can't fail. SHORT
    in place of a number makes the first system call of a write or `pread` a short one. Python itself repeats calls that
    a signal has interrupted (PEP 475), so an EINTR that still arrives is an error like any other.
    """

    def __init__(self, reading: bool = False) -> None:
        super().__init__()
        self.judge: Callable[[str, str], int | None] = lambda call, path: None
        self.calls = 0
        self.reading = reading

    def open(self, path: str, mode: str) -> File:
        if mode == "create":
            self.ask("create", path)
        else:
            self.ask_reading("open", path)
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

    def unlink(self, path: str) -> None:
        self.ask("unlink", path)
        super().unlink(path)

    def mkdir(self, path: str) -> None:
        self.ask("mkdir", path)
        super().mkdir(path)

    def remove_directory(self, path: str) -> None:
        self.ask("rmdir", path)
        super().remove_directory(path)

    def open_directory(self, path: str) -> OpenDirectory:
        self.ask_reading("open", os.fspath(path))
        return super().open_directory(path)

    def require_own(self, directory: str) -> None:
        self.ask_reading("stat", os.path.join(directory, LOCK))
        super().require_own(directory)

    def lock(self, path: str, shared: bool, timeout: float | None = 0) -> Lock:
        self.ask_reading("lock", path)
        return super().lock(path, shared, timeout)

    def fail(self, call: str, ending: str = "", number: int = errno.EIO, times: int = 1) -> None:
        """Makes the next `times` calls of a kind fail, on files whose names end in `ending`."""
        left = times

        def judge(asked: str, path: str) -> int | None:
            nonlocal left
            if asked == call and path.endswith(ending) and left:
                left -= 1
                return number
            return None

        self.judge = judge

    def fail_nth(self, n: int, number: int = errno.EIO, for_good: bool = False) -> None:
        """Makes the n-th call from now on fail, alone or with all that follow it."""
        last = self.calls + n
        self.judge = lambda call, path: number if self.calls == last or (for_good and self.calls > last) else None

    def heal(self) -> None:
        """Lets everything succeed again."""
        self.judge = lambda call, path: None

    def ask(self, call: str, path: str) -> bool:
        """Returns whether the call is to be a short one; raises the error with which it is to fail."""
        self.calls += 1
        number = self.judge(call, path)
        if number is not None and number != SHORT:
            self.failing(call, path)
            kind = SyncFailedError if call == "sync" else OSError
            raise kind(number, os.strerror(number), path)
        return number is not None

    def ask_reading(self, call: str, path: str) -> bool:
        """The same before a call that changes nothing."""
        return self.reading and self.ask(call, path)

    def failing(self, call: str, path: str) -> None:
        """Called before a call fails."""


class FaultyFile(File):
    """A file that asks its file system first."""

    __slots__ = ("fs", "cut")

    def __init__(self, path: str, fd: int, fs: FaultyFileSystem) -> None:
        super().__init__(path, fd)
        self.fs = fs
        self.cut = False  # the next system call is a short one

    def _read_once(self, n: int, offset: int) -> bytes:
        return super()._read_once(self._shortened(n), offset)

    def _write_once(self, data: Buffer, offset: int) -> int:
        view = memoryview(data).cast("B")
        return super()._write_once(view[: self._shortened(view.nbytes)], offset)

    def _writev_once(self, buffers: Sequence[Buffer], offset: int) -> int:
        if not self.cut:
            return super()._writev_once(buffers, offset)
        joined = b"".join(buffers)
        return super()._writev_once([joined[: self._shortened(len(joined))]], offset)

    def _shortened(self, n: int) -> int:
        cut, self.cut = self.cut, False
        return (n + 1) // 2 if cut else n


def _asking(name: str) -> Callable[..., object]:
    original = getattr(File, name)

    def call(self: FaultyFile, *args: object) -> object:
        asked = self.fs.ask if name in WRITES else self.fs.ask_reading
        if asked(name, self.path):
            self.cut = name in ("pwrite", "pwritev", "pread")
        return original(self, *args)

    return call


def _looking(name: str) -> Callable[..., object]:
    original = getattr(FileSystem, name)

    def call(self: FaultyFileSystem, path: str) -> object:
        self.ask_reading(name, path)
        return original(self, path)

    return call


for _name in WRITES + READS:
    setattr(FaultyFile, _name, _asking(_name))
for _name in LOOKS:
    setattr(FaultyFileSystem, _name, _looking(_name))


class CountingFileSystem(FaultyFileSystem):
    """Counts syncs by the ending of the file's name."""

    def __init__(self):
        super().__init__()
        self.syncs = []

    def ask(self, call, path):
        short = super().ask(call, path)
        if call == "sync":
            self.syncs.append(os.path.splitext(path)[1])
        return short

    def taken(self):
        syncs, self.syncs = self.syncs, []
        return syncs


class HeldFileSystem(CountingFileSystem):
    """Makes syncs of logs wait until they are released, if that is asked for."""

    def __init__(self):
        super().__init__()
        self.hold, self.held, self.let_go = False, threading.Event(), threading.Event()

    def ask(self, call, path):
        if self.hold and call == "sync" and path.endswith(".log"):
            self.held.set()
            assert self.let_go.wait(PATIENCE_S)
        return super().ask(call, path)

    def release(self):
        """Lets the syncs go on, and holds no more."""
        self.hold = False
        self.let_go.set()


def queued(store, n):
    """Waits until n threads have handed something to the leader and wait for it."""
    deadline = time.monotonic() + PATIENCE_S
    while store.stats()["coordinator"]["waiting"] < n:
        assert time.monotonic() < deadline
        time.sleep(0)
