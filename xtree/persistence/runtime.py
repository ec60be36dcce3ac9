"""Opening a directory: is there an index, whose is it, and how does it become a store."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from typing import Any

from xtree.errors import CorruptionError
from xtree.persistence import filenames
from xtree.persistence.checkpointer import OnError
from xtree.persistence.clock import Clock
from xtree.persistence.config import Config
from xtree.persistence.crash_points import reach
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.manifest import Manifest
from xtree.persistence.platform_fs import FileSystem
from xtree.persistence.recovery import Progress, holds_data, recover
from xtree.persistence.superblock import Superblock, SuperblockFile

MODES = ("r", "r+", "a", "x")


def exists(path: str | os.PathLike[str], fs: FileSystem | None = None) -> bool:
    """Whether there is an index at `path`: born, that is, with a superblock. A damaged one counts.

    Raises CorruptionError for something else that isn't an empty directory, NotADirectoryError for a file.
    """
    fs = fs or FileSystem()
    directory = os.path.abspath(os.fspath(path))
    if not fs.exists(directory):
        return False
    if not fs.is_directory(directory):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", directory)
    names = fs.listdir(directory)
    foreign = [name for name in names if not filenames.is_ours(name)]
    if filenames.SUPERBLOCK in names:
        try:
            SuperblockFile.open(fs, directory, writable=False).close()
            return True
        except CorruptionError:
            if holds_data(fs, directory, names):
                raise
    elif holds_data(fs, directory, names):
        raise CorruptionError(f"{directory}: has data of an index, but no {filenames.SUPERBLOCK}: half a backup?")
    if foreign:
        raise CorruptionError(f"{directory}: is no index and not empty; it holds {foreign[0]!r}")
    return False


def open_store(
    path: str | os.PathLike[str],
    mode: str = "a",
    config: Config | None = None,
    timeout: float | None = 0,
    fs: FileSystem | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
    on_error: OnError | None = None,
) -> DurableStore:
    """Opens, or makes, the store in a directory.

    mode: "r" read-only, "r+" must exist, "a" made if missing, "x" must not exist. timeout: seconds to wait for the
    directory's lock, None for ever. progress(bytes read, bytes to read) is called while the state is read; what it
    raises ends the open. on_error: called with the exception when a checkpoint, or making the next log, fails in the
    background, in the thread where it failed; it can't wait for a checkpoint. Raises FileNotFoundError,
    FileExistsError, NotADirectoryError, LockedError, CorruptionError, FormatVersionError, OSError, ValueError.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    fs = fs or FileSystem()
    config = config or Config()
    directory = os.path.abspath(os.fspath(path))
    read_only = mode == "r"
    _require_mode(directory, mode, exists(directory, fs))
    made = not fs.exists(directory)
    if made:
        with contextlib.suppress(FileExistsError):  # made by another process in this moment
            fs.mkdir(directory)
    lock = fs.lock(os.path.join(directory, filenames.LOCK), shared=read_only, timeout=timeout)
    try:
        born = exists(directory, fs)
        _require_mode(directory, mode, born)
        if not born:
            _sync_name(fs, directory, made)
            _create(fs, directory, config)
        return _open_locked(fs, directory, config, lock, read_only, clock or Clock(), progress, on_error)
    except BaseException:
        lock.release()
        raise


def _open_locked(
    fs: FileSystem,
    directory: str,
    config: Config,
    lock: Any,
    read_only: bool,
    clock: Clock,
    progress: Progress | None,
    on_error: OnError | None,
) -> DurableStore:
    recovered = recover(fs, directory, config, not read_only, progress)
    try:
        return DurableStore(recovered, lock, read_only, clock, on_error)
    except BaseException:
        recovered.journal.data_files.windows.unmap_all()
        recovered.journal.close()
        raise


def _require_mode(directory: str, mode: str, born: bool) -> None:
    if born and mode == "x":
        raise FileExistsError(errno.EEXIST, "there is an index already", directory)
    if not born and mode in ("r", "r+"):
        raise FileNotFoundError(errno.ENOENT, "no index", directory)


def _sync_name(fs: FileSystem, directory: str, made: bool) -> None:
    """Puts the directory's own name on the disk, also when it was there: its maker may have been killed before that.

    Nobody's, if it was made by somebody else in a directory that may not be read.
    """
    try:
        fs.sync_directory(os.path.dirname(directory))
    except PermissionError:
        if made:
            raise


def _create(fs: FileSystem, directory: str, config: Config) -> None:
    """Makes an empty index. The superblock comes last: without it the directory is unborn, and made afresh."""
    for name in fs.listdir(directory):
        if name != filenames.LOCK and filenames.is_ours(name):
            fs.unlink(os.path.join(directory, name))
    identity = uuid.uuid4().bytes
    reach("create.before_manifest")
    Manifest(uuid=identity, config=config.to_stored()).save(fs, directory)
    reach("create.manifest_saved")
    first = Superblock(identity, epoch_ceiling=config.epoch_stride, mode=config.durability)
    SuperblockFile.create(fs, directory, first).close()
    reach("create.superblock_synced")
