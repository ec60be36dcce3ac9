"""Backup: the current epoch of a store as an index of its own, copied while writers go on.

A pin keeps the epoch's pages. They are copied as they are, densely, with their NodeIDs, births and checksums. Files and
offsets are new, and so is the UUID: no log, data file or checkpoint of one index can be taken for the other's.

`_write` reads top to bottom: data files, checkpoints, manifest, each synced before the next, then the superblock,
without which a directory doesn't open. So a crash at any moment leaves a whole backup or none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xtree.persistence.base.config import PAGE_BYTES
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.lock_ranks import require_nothing_held
from xtree.persistence.base.progress import Progress
from xtree.persistence.creation import Creation
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files import checkpoint, filenames
from xtree.persistence.files.checkpoint import OFFSET_UNIT, ROW
from xtree.persistence.files.data_files import BODY, FIRST_SLOT, FORMAT, MAGIC
from xtree.persistence.files.file_header import pack_header
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.manifest import DataFileEntry, Manifest
from xtree.persistence.files.open_directory import OpenDirectory, path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import Superblock, SuperblockFile
from xtree.persistence.store.page_copy import copy_pages
from xtree.persistence.store.store import Pin

CHUNK_BYTES = 1 << 20


@dataclass
class Pages:
    """The pages of one epoch."""

    table: checkpoint.Table
    rows: NDArray[np.void]  # those of the table as an array: files and offsets are changed in place


@dataclass
class NewFile:
    """A data file to be written. chosen: the rows whose pages it gets, in their order."""

    number: int
    size_class: int
    chosen: NDArray[np.intp]

    @property
    def bytes(self) -> int:
        """Its size."""
        return FIRST_SLOT + len(self.chosen) * PAGE_BYTES[self.size_class]


def write_backup(
    store: DurableStore, path: str | os.PathLike[str], progress: Progress | None = None, fs: FileSystem | None = None
) -> None:
    """Copies the store's current epoch into the directory `path`, which must be missing or empty.

    progress: called with (bytes copied, bytes in all) now and then; what it raises ends the backup. fs: the file system
    to write with; None for the store's. Raises FileExistsError, ValueError for a path inside the store's own,
    CorruptionError, ClosedError, OSError; whatever was written is removed then.
    """
    require_nothing_held("a backup")
    fs = fs or store.fs
    target = os.path.abspath(os.fspath(path))
    pin = store.pin()
    try:
        with _new_directory(fs, str(store.path), target) as directory:
            _write(store, pin, fs, directory, progress)
    finally:
        pin.release()


@contextlib.contextmanager
def _new_directory(fs: FileSystem, source: str, target: str) -> Iterator[OpenDirectory]:
    """The target directory for a block, open and locked; made if missing, and emptied again when the block fails."""
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise ValueError(f"{target} is inside the index that is to be copied")
    made = not fs.exists(target)
    if made:
        fs.mkdir(target)
    elif not fs.is_directory(target) or fs.listdir(target):
        raise FileExistsError(errno.EEXIST, "a backup needs a missing or empty directory", target)
    try:
        directory, lock = fs.lock_directory(target, shared=False)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                fs.remove_directory(target)
        raise
    creation = Creation(fs, directory, lock, made)
    try:
        if fs.listdir(directory) != [filenames.LOCK]:
            raise FileExistsError(errno.EEXIST, "somebody else has just filled the directory", target)
        creation.begun = True
        fs.sync_directory(os.path.dirname(directory))
        yield directory
    except BaseException:
        creation.undo()
        raise
    finally:
        lock.release()


def _write(store: DurableStore, pin: Pin, fs: FileSystem, target: OpenDirectory, progress: Progress | None) -> None:
    """Writes and syncs every file of the backup, the superblock last."""
    identity = uuid.uuid4().bytes
    pages = _pages_at(store, pin.epoch)
    files = _place(pages.rows, store.config.window_bytes)
    _require_space(fs, target, sum(file.bytes for file in files))
    done, total = 0, sum(file.bytes - FIRST_SLOT for file in files)
    for file in files:
        for copied in _write_file(store, pages, file, fs, target, identity):
            done += copied
            if progress is not None:
                progress(done, total)
    fs.sync_directory(target)
    reach("backup.data_synced")
    entries = [DataFileEntry(file.number, file.size_class, file.bytes) for file in files]
    first = len(files) + 1
    catalog = pin.published.catalog.encode()
    # No log precedes the backup; but one that follows it must not be taken for the beginning of everything.
    before = LogLink(last_epoch=pin.epoch)
    checkpoints = tuple(
        checkpoint.write(fs, target, number, identity, pin.epoch, pages.table, catalog, entries, before)
        for number in range(first, first + store.config.checkpoints_kept)  # as a clean close leaves them
    )
    reach("backup.checkpoints_written")
    Manifest(
        uuid=identity,
        config=store.config.to_stored(),
        checkpoints=checkpoints,
        data_files=tuple(entries),
        next_number=first + len(checkpoints),
    ).save(fs, target)
    reach("backup.manifest_saved")
    ceiling = pin.epoch + store.config.epoch_stride
    values = Superblock(identity, 1, pin.epoch, pin.epoch, ceiling, store.config.durability)
    SuperblockFile.create(fs, target, values).close()
    reach("backup.superblock_synced")


def _pages_at(store: DurableStore, epoch: int) -> Pages:
    """The rows visible at an epoch that is pinned; their file numbers are those of windows."""
    table = store.snapshot_rows(epoch, list(range(len(store.windows))))
    return Pages(table, np.frombuffer(table[2], ROW))


def _place(rows: NDArray[np.void], window_bytes: int) -> list[NewFile]:
    """Gives every row a place in a new file, class by class, in the order in which the pages lie now."""
    files: list[NewFile] = []
    order = np.lexsort((rows["offset_4k"], rows["file_number"], rows["size_class"]))
    for size_class, size in enumerate(PAGE_BYTES):
        of_class = order[rows["size_class"][order] == size_class]
        most = (window_bytes - FIRST_SLOT) // size
        for start in range(0, len(of_class), most):
            file = NewFile(len(files) + 1, size_class, of_class[start : start + most])
            rows["file_number"][file.chosen] = file.number
            rows["offset_4k"][file.chosen] = (FIRST_SLOT + size * np.arange(len(file.chosen))) // OFFSET_UNIT
            files.append(file)
    return files


def _write_file(
    store: DurableStore, pages: Pages, file: NewFile, fs: FileSystem, target: OpenDirectory, identity: bytes
) -> Iterator[int]:
    """Writes and syncs a data file; yields how many bytes of pages each step has copied."""
    size = PAGE_BYTES[file.size_class]
    step = CHUNK_BYTES // size
    buffer = bytearray(min(step, len(file.chosen)) * size)
    nodes = pages.rows["node_id"][file.chosen]
    out = fs.open(path_in(target, filenames.data_name(file.size_class, file.number)), "create")
    try:
        body = BODY.pack(file.number, store.config.window_bytes, file.size_class)
        out.pwrite(pack_header(MAGIC, FORMAT, identity, body), 0)
        for start in range(0, len(nodes), step):
            some = nodes[start : start + step]
            with store.call():  # one call a step: neither close() nor the unmapping of windows waits for all of them
                copy_pages(store, some, file.size_class, buffer)
            out.pwrite(memoryview(buffer)[: len(some) * size], FIRST_SLOT + start * size)
            yield len(some) * size
        out.sync()
    finally:
        out.close()


def _require_space(fs: FileSystem, target: OpenDirectory, n: int) -> None:
    free = fs.free_space(target)
    if free < n:
        reason = f"{os.strerror(errno.ENOSPC)}: the backup needs {n} bytes, {free} are free"
        raise OSError(errno.ENOSPC, reason, target)
