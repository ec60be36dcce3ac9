"""A file system that knows what a power loss would leave: what was synced for sure, of the rest any part."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

from xtree.persistence.filenames import LOCK
from xtree.persistence.platform_fs import File, FileSystem

SECTOR_BYTES = 512


class Node:
    """A file's content apart from its name."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = durable  # as of its last sync
        self.last: bytes | None = None  # its last content, once no name leads to it

    def after_power_loss(self, current: bytes, rng: random.Random) -> bytes:
        """Each sector as it was synced or as it is now, and one of both lengths; new bytes may also read as zeros."""
        new_share = rng.choice((0.0, 0.3, 0.7, 1.0))
        left = bytearray(max(len(self.durable), len(current)))
        left[: len(self.durable)] = self.durable
        for at in range(0, len(current), SECTOR_BYTES):
            if rng.random() < new_share:
                end = min(at + SECTOR_BYTES, len(current))
                left[at:end] = current[at:end]
        return bytes(left[: rng.choice((len(self.durable), len(current)))])


class ForgetfulFileSystem(FileSystem):
    """The real file system of one directory, watched. `power_loss` writes what might be left of it elsewhere."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        found = [path for path in directory.iterdir() if path.name != LOCK] if directory.exists() else []
        self.names: dict[str, Node] = {path.name: Node(path.read_bytes()) for path in found}
        self.durable_names: dict[str, Node] = dict(self.names)
        self.busy = threading.RLock()  # a power loss comes between two calls, whichever threads make them
        self.pending: list[tuple[str, str, Node | None]] = []  # ("set" | "drop", name, node) since the directory's sync

    def open(self, path, mode):
        with self.busy:
            real = super().open(path, mode)
            name = os.path.basename(path)
            if mode == "create":
                self._record("set", name, Node())
            watched = WatchedFile(real.path, os.dup(real.fileno()), self.names[name], self.busy)
            real.close()
            return watched

    def sync_directory(self, path):
        with self.busy:
            super().sync_directory(path)
            if os.fspath(path) == self.directory:
                self.durable_names = dict(self.names)
                self.pending.clear()

    def replace(self, source, target):
        with self.busy:
            super().replace(source, target)
            node = self.names[os.path.basename(source)]
            self._record("drop", os.path.basename(source), None)
            self._record("set", os.path.basename(target), node)

    def unlink(self, path):
        with self.busy:
            name = os.path.basename(path)
            node = self.names[name]
            node.last = Path(path).read_bytes()
            super().unlink(path)
            self._record("drop", name, None)

    def power_loss(self, target: Path, rng: random.Random) -> None:
        """Make a directory as it might be found when the power comes back."""
        with self.busy:
            self._power_loss(target, rng)

    def _power_loss(self, target: Path, rng: random.Random) -> None:
        left = dict(self.durable_names)
        for what, name, node in self.pending[: rng.randint(0, len(self.pending))]:
            if what == "set":
                left[name] = node
            else:
                left.pop(name, None)
        names = {node: name for name, node in self.names.items()}
        target.mkdir()
        for name, node in left.items():
            if node in names:
                current = Path(self.directory, names[node]).read_bytes()
            else:
                current = node.durable if node.last is None else node.last
            (target / name).write_bytes(node.after_power_loss(current, rng))

    def _record(self, what: str, name: str, node: Node | None) -> None:
        self.pending.append((what, name, node))
        if node is None:
            self.names.pop(name, None)
        else:
            self.names[name] = node


class WatchedFile(File):
    """A file whose syncs are remembered, with all that the mappings of it have changed."""

    __slots__ = ("node", "busy")

    def __init__(self, path: str, fd: int, node: Node, busy: threading.RLock) -> None:
        super().__init__(path, fd)
        self.node = node
        self.busy = busy

    def sync(self):
        with self.busy:
            super().sync()
            self.node.durable = Path(f"/proc/self/fd/{self.fileno()}").read_bytes()


def _locked(name: str) -> Callable[..., object]:
    original = getattr(File, name)

    def call(self: WatchedFile, *args: object) -> object:
        with self.busy:
            return original(self, *args)

    return call


for _name in ("pwrite", "pwritev", "fill", "truncate", "reserve"):
    setattr(WatchedFile, _name, _locked(_name))
