"""Opening what is left of an index, read-only: the last state that can be put together from files that can be read.

Recovery itself does it, on a view of the directory whose superblock and manifest name only what is whole: one
checkpoint, and the logs after it that link, each up to where its frames end. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from xtree.persistence.base.config import StoreConfig
from xtree.persistence.commit.index_files import closed_log
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import Checkpoint
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.lock_file import Lock
from xtree.persistence.files.manifest import DataFileEntry, LogEntry, Manifest
from xtree.persistence.files.open_directory import Path
from xtree.persistence.files.platform_fs import File, FileSystem
from xtree.persistence.files.superblock import Superblock
from xtree.persistence.opening import open_recovered
from xtree.tools.fsck.files import READ_ERRORS, Directory

__all__ = ["BorrowedLock", "Remains", "open_remains", "open_whole"]

_NEVER = 2**62  # an epoch above all that there are


class BorrowedLock(Lock):
    """A lock that somebody else holds, and releases."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, -1, shared=True)


class BytesFile(File):
    """A file whose content is in memory."""

    __slots__ = ("_data",)

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(path, -1)
        self._data = data

    def pread(self, n: int, offset: int) -> bytes:
        return self._data[offset : offset + n]

    def size(self) -> int:
        return len(self._data)


class Overlay(FileSystem):
    """A file system in which some files have another content, or another size, than on the disk. For reading."""

    def __init__(self, below: FileSystem, content: dict[str, bytes], sizes: dict[str, int]) -> None:
        self._below = below
        self._content = content
        self._sizes = sizes

    def open(self, path: Path, mode: str) -> File:
        name = os.fspath(path)
        if mode != "r":
            raise PermissionError(f"{name} is only looked at")
        return BytesFile(name, self._content[name]) if name in self._content else self._below.open(path, mode)

    def size(self, path: Path) -> int:
        name = os.fspath(path)
        if name in self._content:
            return len(self._content[name])
        return self._sizes[name] if name in self._sizes else self._below.size(path)

    def listdir(self, path: Path) -> list[str]:
        return self._below.listdir(path)


@dataclass
class Remains:
    """A store of what could be put together, and what it was put together from."""

    store: DurableStore
    checkpoint: int | None  # number of the checkpoint; None: from logs alone, from the empty index on
    logs: list[int]


def open_whole(directory: Directory) -> DurableStore:
    """The store as any read-only open gives it. Raises what that raises."""
    return _store(directory.fs, directory.path, check_pages=True)


def open_remains(directory: Directory, oldest: bool = False) -> Remains | None:
    """The furthest state that can be reached; None when there is no checkpoint and no beginning of the logs.

    It starts from the newest checkpoint that leads there; with `oldest` from the oldest, which takes as many pages as
    possible from the logs, where they are stored a second time.
    """
    if directory.uuid is None:
        return None
    best: Remains | None = None
    for base in [*_bases(directory), None]:
        found = _try(directory, base)
        if found is None:
            continue
        further = best is None or found.store.published.epoch > best.store.published.epoch
        if further or (oldest and best is not None and found.store.published.epoch == best.store.published.epoch):
            if best is not None:
                best.store.close()
            best = found
        else:
            found.store.close()
    return best


def _bases(directory: Directory) -> list[Checkpoint]:
    """Every checkpoint that can be read, listed or not, newest first."""
    found = [one for one in directory.checkpoints.values() if isinstance(one, Checkpoint)]
    return sorted(found, key=lambda one: (one.epoch, one.number), reverse=True)


def _try(directory: Directory, base: Checkpoint | None) -> Remains | None:
    assert directory.uuid is not None
    logs = list(_chain(directory, base))
    if base is None and not logs:
        return None
    data_files = _data_files(directory, base)
    superblock = directory.superblock
    value = Superblock(directory.uuid, 1, _NEVER, 0, _NEVER, "balanced" if superblock is None else superblock.mode)
    manifest = Manifest(
        uuid=directory.uuid,
        config=directory.stored,
        checkpoints=() if base is None else (base.entry,),
        logs=tuple(logs),
        data_files=tuple(data_files),
        next_number=filenames.MAX_NUMBER + 1,
    )
    content = {
        directory.place(filenames.SUPERBLOCK): 2 * value.encode(),
        directory.place(filenames.MANIFEST): manifest.encode(),
    }
    sizes = {}
    for entry in data_files:
        name = filenames.data_name(entry.size_class, entry.number)
        sizes[directory.place(name)] = min(directory.size(name) or HEADER_BYTES, directory.stored["window_bytes"])
    try:
        store = _store(Overlay(directory.fs, content, sizes), directory.path, check_pages=False)
    except READ_ERRORS:
        return None
    return Remains(store, None if base is None else base.number, [entry.number for entry in logs])


def _chain(directory: Directory, base: Checkpoint | None) -> Iterator[LogEntry]:
    """The logs that follow a checkpoint, up to the first that doesn't link or isn't whole."""
    before = LogLink() if base is None else base.last_log
    epoch = 0 if base is None else base.epoch
    for log in directory.logs.values():
        if log.number <= before.number or log.link is None or log.end is None:
            continue
        if log.link != before and (base is None or log.link.last_epoch > epoch):
            return
        if log.end.last_epoch > epoch:
            yield LogEntry(log.number, closed_log(log.end))
            epoch = log.end.last_epoch
        before = log.end
        if not log.whole:
            return


def _data_files(directory: Directory, base: Checkpoint | None) -> list[DataFileEntry]:
    """Every data file that there is, or that a row may name."""
    known = {entry.number: entry.size_class for entry in (() if base is None else base.data_files)}
    if directory.manifest is not None:
        known |= {entry.number: entry.size_class for entry in directory.manifest.data_files}
    for name in directory.names:
        if (parsed := filenames.parse_data(name)) is not None:
            known[parsed[1]] = parsed[0]
    return [DataFileEntry(number, size_class, 0) for number, size_class in sorted(known.items())]


def _store(fs: FileSystem, path: str, check_pages: bool) -> DurableStore:
    return open_recovered(fs, path, StoreConfig(), BorrowedLock(path), read_only=True, check_pages=check_pages)
