"""A file system that knows what a power loss may leave of a directory: all that was synced, and any of the rest.

It models the machine, not what runs on it:

- Content, size and disk space of a file are on the disk once the file is synced; a name that was made, replaced or
  removed once its directory is. Nothing else is, in whatever order it was done.
- What changed since the last sync, through a call or a mapping, is found by comparing the file with its image of then,
  sector by sector. Sectors that were written with the content that they had count as well.
- Of each such sector a power loss leaves the new content, the old one, or garbage. A sector of 512 bytes may also be
  torn in two, one of 4096 bytes is written as a whole. Sizes and changes of names survive or don't, whatever becomes
  of the content; a change of a name survives only with the earlier changes of that name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xtree.persistence.files.filenames import LOCK
from xtree.persistence.files.platform_fs import File, FileSystem

SECTORS = (512, 4096)
DIRECTORY = "directory"  # in place of a file's content

Image = dict[str, "bytes | None"]  # a directory's files and their content, by path inside it; None for directories


class Inode:
    """A file apart from its names: what of it is on the disk, and what was done to it since its last sync."""

    def __init__(self, path: str | os.PathLike[str], durable: bytes = b"") -> None:
        self.fd = os.open(path, os.O_RDONLY)  # stays open, also when no name leads to the file any more
        self.durable = durable
        self.sizes = {len(durable)}  # all sizes since the last sync
        self.written: set[tuple[int, int]] = set()  # (start, end) of each write since then
        self._last: FileState | None = None

    def __del__(self) -> None:
        os.close(self.fd)

    @classmethod
    def resumed(cls, path: Path, state: FileState) -> Inode:
        """The file in a state from before."""
        inode = cls(path, state.durable)
        inode.sizes, inode.written = set(state.sizes), set(state.written)
        return inode

    def read(self) -> bytes:
        """The content."""
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)

    def synced(self, content: bytes) -> None:
        """Notes that a sync has ended, and that the file had this content when it began."""
        self.durable = content
        self.sizes = {len(content)}
        self.written.clear()

    def state(self) -> FileState:
        """The file as it is now; the same object as long as nothing changes."""
        last, current = self._last, self.read()
        sizes, written = frozenset(self.sizes | {len(current)}), frozenset(self.written)
        if last is not None and last.durable is self.durable and last.current == current:
            if (last.sizes, last.written) == (sizes, written):
                return last
            current = last.current
        if current == self.durable:
            current = self.durable
        self._last = FileState(self.durable, current, sizes, written)
        return self._last


@dataclasses.dataclass(frozen=True, eq=False)
class FileState:
    """A file at one moment, as an Inode knows it."""

    durable: bytes
    current: bytes
    sizes: frozenset[int]
    written: frozenset[tuple[int, int]]

    def unsynced(self, sector_bytes: int) -> list[int]:
        """The offsets of the sectors that were changed or written since the last sync."""
        end = max(len(self.durable), len(self.current))
        found: set[int] = set()
        if self.current is not self.durable:
            found.update(
                at
                for at in range(0, end, sector_bytes)
                if self.durable[at : at + sector_bytes] != self.current[at : at + sector_bytes]
            )
        for start, stop in self.written:
            found.update(range(start - start % sector_bytes, min(stop, end), sector_bytes))
        return sorted(found)

    def after(self, loss: PowerLoss) -> bytes:
        """What a power loss leaves."""
        sector_bytes = loss.sector_bytes
        unsynced = self.unsynced(sector_bytes)
        if not unsynced and len(self.sizes) == 1:
            return self.durable
        loss.next_file()
        size = loss.size_of(self)
        left = bytearray(self.durable.ljust(size, b"\0"))
        for at in unsynced:
            if at < size:
                old = self.durable[at : at + sector_bytes].ljust(sector_bytes, b"\0")
                new = self.current[at : at + sector_bytes].ljust(sector_bytes, b"\0")
                left[at : at + sector_bytes] = loss.sector(old, new)
        return bytes(left[:size])


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of names since the last sync of their directory: what each leads to afterwards, None for nothing."""

    directory: str
    effect: tuple[tuple[str, object], ...]

    def apply(self, names: dict[str, object]) -> None:
        """Makes the change."""
        for name, leads_to in self.effect:
            if leads_to is None:
                names.pop(name, None)
            else:
                names[name] = leads_to


class PowerLoss:
    """One outcome of a power loss: a seed decides what becomes of everything that isn't synced.

    Seeds 0, 1 and 2 are the extremes: nothing of it survives, all of it, all names and sizes with garbage as content.
    """

    def __init__(self, seed: int, sector_bytes: int) -> None:
        self.sector_bytes = sector_bytes
        self._seed = seed
        self._rng = random.Random(f"{seed} {sector_bytes}")
        self._ordered = self._rng.random() < 0.5  # a prefix of the changes of names survives
        self._kept = (0.0, 1.0, 1.0)[seed] if seed < 3 else self._rng.choice((0.2, 0.5, 0.8, 1.0))
        self.next_file()

    def next_file(self) -> None:
        """Draws the chances of the next file's sectors to survive."""
        kept, garbage, torn = ((0, 0, 0), (1, 0, 0), (0, 1, 0), *_CHANCES)[
            self._seed if self._seed < 3 else 3 + self._rng.randrange(len(_CHANCES))
        ]
        self._chances = (kept, kept + garbage, kept + garbage + torn)

    def survivors(self, changes: tuple[Change, ...]) -> Iterable[Change]:
        """The changes of names that survive, in their order."""
        through = self._rng.randint(0, len(changes)) if self._ordered and self._seed > 2 else None
        lost: set[str] = set()
        for i, change in enumerate(changes):
            names = {name for name, _ in change.effect}
            survives = i < through if through is not None else self._rng.random() < self._kept
            if survives and not names & lost:
                yield change
            else:
                lost |= names

    def size_of(self, file: FileState) -> int:
        """The size that a file has afterwards."""
        if self._seed < 3:
            return len(file.durable) if self._seed == 0 else len(file.current)
        return self._rng.choice(sorted(file.sizes))

    def sector(self, old: bytes, new: bytes) -> bytes:
        """The content that a sector has afterwards."""
        chance = self._rng.random()
        kept, garbage, torn = self._chances
        if chance < kept:
            return new
        if chance < garbage:
            return self._rng.choice((bytes(len(new)), b"\xff" * len(new), self._rng.randbytes(len(new))))
        if chance < torn and self.sector_bytes == min(SECTORS):
            cut = self._rng.randrange(1, len(new))
            return self._rng.choice((new[:cut] + old[cut:], old[:cut] + new[cut:]))
        return old


_CHANCES = ((0.0, 0.0, 0.2), (0.3, 0.1, 0.1), (0.7, 0.1, 0.1), (0.9, 0.0, 0.1), (1.0, 0.0, 0.0), (0.0, 0.5, 0.0))


@dataclasses.dataclass(frozen=True)
class DiskState:
    """A directory at one moment: names and files on the disk, what was changed since, and what there is now."""

    durable_names: dict[str, object]  # FileState, or DIRECTORY
    changes: tuple[Change, ...]
    names: dict[str, object]

    def after(self, loss: PowerLoss) -> Image:
        """What a power loss leaves."""
        left = dict(self.durable_names)
        for change in loss.survivors(self.changes):
            change.apply(left)
        return _image(left, lambda file: file.after(loss))

    def after_kill(self) -> Image:
        """What the death of the process leaves: all that the operating system was told."""
        return _image(self.names, lambda file: file.current)


def _image(names: dict[str, object], content: Callable[[FileState], bytes]) -> Image:
    image: Image = {}
    for name in sorted(names):
        if os.path.dirname(name) in image or not os.path.dirname(name):
            found = names[name]
            image[name] = content(found) if isinstance(found, FileState) else None
    return image


def digest(image: Image) -> bytes:
    """A digest of an image."""
    found = hashlib.blake2b(digest_size=16)
    for name, content in image.items():
        found.update(b"%s\0%d\0" % (name.encode(), -1 if content is None else len(content)))
        found.update(content or b"")
    return found.digest()


def write_image(image: Image, target: Path) -> None:
    """Makes a directory with the content of an image."""
    target.mkdir()
    for name, content in image.items():
        if content is None:
            (target / name).mkdir()
        else:
            (target / name).write_bytes(content)


def read_image(root: Path) -> Image:
    """The image of a directory, without locks."""
    paths = {os.path.relpath(path, root): path for path in root.rglob("*") if path.name != LOCK}
    return {name: None if path.is_dir() else path.read_bytes() for name, path in sorted(paths.items())}


class ForgetfulFileSystem(FileSystem):
    """The real file system, watched in one directory and those in it.

    Every changing call and every crash point (with `set_hook(fs.reach)`) is a moment: `observe` is called with what
    comes next, and no other call is under way then. `state()` is the directory as it is then.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.realpath(root)
        self.observe: Callable[[str], object] = lambda what: None
        self.busy = threading.RLock()  # moments come between two calls, whichever threads make them
        self.names: dict[str, object] = {}  # Inode, or DIRECTORY
        self.changes: list[Change] = []
        self._last: DiskState | None = None
        for name, content in read_image(Path(self.root)).items():
            self.names[name] = DIRECTORY if content is None else Inode(os.path.join(self.root, name), content)
        self.durable_names = dict(self.names)

    @classmethod
    def after_kill(cls, state: DiskState, root: Path) -> ForgetfulFileSystem:
        """The directory as the death of a process left it: everything is there, but no more is synced than was then."""
        write_image(state.after_kill(), root)
        fs = cls(root)
        inodes: dict[object, object] = {}
        for name, file in state.names.items():
            inodes[file] = Inode.resumed(root / name, file) if isinstance(file, FileState) else file
        nameless = root.with_name(f"{root.name}.nameless")
        for file in {*state.durable_names.values(), *(file for change in state.changes for _, file in change.effect)}:
            if isinstance(file, FileState) and file not in inodes:
                nameless.write_bytes(file.current)
                inodes[file] = Inode.resumed(nameless, file)
                nameless.unlink()
        inodes |= {DIRECTORY: DIRECTORY, None: None}
        fs.names = {name: inodes[file] for name, file in state.names.items()}
        fs.durable_names = {name: inodes[file] for name, file in state.durable_names.items()}
        fs.changes = [
            Change(change.directory, tuple((name, inodes[file]) for name, file in change.effect))
            for change in state.changes
        ]
        return fs

    def reach(self, what: str) -> None:
        """A moment: something is about to be done, or a crash point is reached."""
        with self.busy:
            self.observe(what)

    def state(self) -> DiskState:
        """Names and files as they are now; the same object as long as nothing changes."""
        with self.busy:
            reached = {*self.names.values(), *self.durable_names.values()}
            reached |= {leads_to for change in self.changes for _, leads_to in change.effect}
            states = {inode: inode.state() if isinstance(inode, Inode) else inode for inode in reached}
            state = DiskState(
                {name: states[inode] for name, inode in self.durable_names.items()},
                tuple(
                    Change(change.directory, tuple((name, states[leads_to]) for name, leads_to in change.effect))
                    for change in self.changes
                ),
                {name: states[inode] for name, inode in self.names.items()},
            )
            if state != self._last:
                self._last = state
            return self._last

    def power_loss(self, target: Path, rng: random.Random) -> None:
        """Makes a directory as it might be found when the power comes back."""
        write_image(self.state().after(PowerLoss(rng.randrange(1 << 32), rng.choice(SECTORS))), target)

    def open(self, path, mode):
        with self.busy:
            name = self._name(path)
            if name is None:
                return super().open(path, mode)
            if mode == "create":
                self.reach(f"create {name}")
            real = super().open(path, mode)
            if mode == "create":
                self._change((name, Inode(path)))
            watched = WatchedFile(real.path, os.dup(real.fileno()), self.names[name], self)
            real.close()
            return watched

    def sync_directory(self, path):
        with self.busy:
            name = self._name(path)
            self.reach(f"sync directory {name}")
            super().sync_directory(path)
            for change in self.changes:
                if change.directory == name:
                    change.apply(self.durable_names)
            self.changes = [change for change in self.changes if change.directory != name]

    def replace(self, source, target):
        with self.busy:
            name, new = self._name(source), self._name(target)
            self.reach(f"replace {new}")
            super().replace(source, target)
            self._change((name, None), (new, self.names[name]))

    def unlink(self, path):
        with self.busy:
            name = self._name(path)
            self.reach(f"unlink {name}")
            super().unlink(path)
            if name in self.names:
                self._change((name, None))

    def mkdir(self, path):
        with self.busy:
            self.reach(f"mkdir {path}")
            super().mkdir(path)
            if self._name(path):
                self._change((self._name(path), DIRECTORY))

    def remove_directory(self, path):
        with self.busy:
            self.reach(f"rmdir {path}")
            super().remove_directory(path)
            if self._name(path):
                self._change((self._name(path), None))

    def _name(self, path) -> str | None:
        """The path relative to the directory: "" for the directory itself, None for a path outside of it."""
        name = os.path.relpath(path, self.root)
        return None if name.startswith(os.pardir) else "" if name == os.curdir else name

    def _change(self, *effect: tuple[str, object]) -> None:
        change = Change(os.path.dirname(effect[0][0]), effect)
        self.changes.append(change)
        change.apply(self.names)


class WatchedFile(File):
    """A file whose writes and syncs are remembered."""

    __slots__ = ("inode", "fs")

    def __init__(self, path: str, fd: int, inode: Inode, fs: ForgetfulFileSystem) -> None:
        super().__init__(path, fd)
        self.inode = inode
        self.fs = fs

    def pwrite(self, data, offset):
        with self._moment("pwrite"):
            self._write(offset, memoryview(data).nbytes)
            super().pwrite(data, offset)
            self._resized()

    def pwritev(self, buffers, offset):
        with self._moment("pwritev"):
            self._write(offset, sum(memoryview(buffer).nbytes for buffer in buffers))
            super().pwritev(buffers, offset)
            self._resized()

    def truncate(self, n):
        with self._moment("truncate"):
            super().truncate(n)
            self._resized()

    def reserve(self, n):
        with self._moment("reserve"):
            super().reserve(n)
            self._resized()

    def sync(self):
        with self._moment("sync"):
            content = self.inode.read()  # the sync may miss what is written through a mapping from here on
            super().sync()
            self.inode.synced(content)

    @contextlib.contextmanager
    def _moment(self, call: str) -> Iterator[None]:
        with self.fs.busy:
            self.fs.reach(f"{call} {self.name}")
            yield

    def _write(self, offset: int, n: int) -> None:
        self.inode.written.add((offset, offset + n))

    def _resized(self) -> None:
        self.inode.sizes.add(self.size())
