"""Opening a directory: whether there is an index, who holds its lock, and how it becomes a store."""

from __future__ import annotations

import contextlib
import errno
import os

from xtree.errors import CorruptionError, LockedError
from xtree.persistence.base.clock import Clock
from xtree.persistence.base.config import StoreConfig
from xtree.persistence.base.lock_ranks import require_nothing_held
from xtree.persistence.base.progress import Progress
from xtree.persistence.commit.checkpointer import OnError
from xtree.persistence.creation import Creation
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files import filenames
from xtree.persistence.files.lock_file import Lock
from xtree.persistence.files.open_directory import OpenDirectory, path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import SuperblockFile
from xtree.persistence.recovery.recovery import holds_data, recover

MODES = ("r", "r+", "a", "x")
MOST_ATTEMPTS = 100  # at a directory that is removed between its making and its locking


def exists(path: str | os.PathLike[str], fs: FileSystem | None = None) -> bool:
    """Whether there is an index at `path`: it is there ("born") once it has a superblock of which a copy can be read.

    Raises CorruptionError for another directory that holds data of an index or anything that isn't xtree's, and
    NotADirectoryError for a file.
    """
    fs = fs or FileSystem()
    directory = path if isinstance(path, OpenDirectory) else os.path.abspath(os.fspath(path))
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
    config: StoreConfig | None = None,
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
    background. It is called in the thread where that failed, and may read and close, not write. Raises
    FileNotFoundError, FileExistsError, NotADirectoryError, LockedError, CorruptionError, FormatVersionError, OSError,
    ValueError.
    """
    require_nothing_held("opening an index")
    require_mode(mode)
    fs = fs or FileSystem()
    config = config or StoreConfig()
    given = os.path.abspath(os.fspath(path))
    read_only = mode == "r"
    _require_born(given, mode, exists(given, fs))
    lock, creation = _claim(fs, given, mode, timeout)
    try:
        born = exists(creation.directory, fs)
        _require_born(creation.directory, mode, born)
        if not born:
            creation.create(config)
        store = open_recovered(fs, creation.directory, config, lock, read_only, clock, progress, on_error)
    except BaseException:
        creation.undo()
        raise
    store.creation = creation
    return store


def open_for_writing(
    reader: DurableStore, config: StoreConfig, progress: Progress | None = None, on_error: OnError | None = None
) -> DurableStore | None:
    """A store that writes, for a directory that `reader` has open for reading only; the two share its lock.

    The reader goes on showing what it shows, even when this fails. But it is closed, and None is returned, when another
    process may have written to the index in the middle of this. Raises LockedError when other processes have it open
    too, and what `open_store` raises.
    """
    require_nothing_held("opening an index")
    fs, lock = reader.index_files.fs, reader.directory_lock
    assert lock is not None and lock.directory is not None, "it has given its lock away"
    directory = lock.directory
    before = _stamp(fs, directory)
    try:
        fs.make_exclusive(directory, lock)
        if _stamp(fs, directory) == before:
            return open_recovered(fs, directory, config, lock, False, progress=progress, on_error=on_error)
    except BaseException:
        if not lock.make_shared() or _stamp(fs, directory) != before:
            reader.close()
        raise
    reader.close()
    return None


def _stamp(fs: FileSystem, directory: OpenDirectory) -> list[bytes]:
    """Superblock and manifest, to tell whether anybody has written to the index: no commit leaves both as they were."""
    paths = [path_in(directory, name) for name in (filenames.SUPERBLOCK, filenames.MANIFEST)]
    return [fs.read_file(path) for path in paths if fs.exists(path)]


def _claim(fs: FileSystem, path: str, mode: str, timeout: float | None) -> tuple[Lock, Creation]:
    """Takes the lock of the directory, which is made if missing; returns it and what was made of an index so far.

    A process that makes an index holds the lock meanwhile; if that fails, it removes the directory, and another process
    may begin.
    """
    for attempt in range(MOST_ATTEMPTS):
        made = mode in ("a", "x") and not fs.exists(path)
        try:
            if made:
                made = _make_directory(fs, path)
            directory, lock = fs.lock_directory(path, shared=mode == "r", timeout=timeout)
            return lock, Creation(fs, directory, lock, made)
        except BaseException as error:
            if made:
                with contextlib.suppress(OSError):  # with anything in it, it is somebody else's now
                    fs.remove_directory(path)
            if isinstance(error, LockedError) and mode == "x":
                raise FileExistsError(errno.EEXIST, f"an index is being made there: {error.strerror}", path) from error
            vanished = isinstance(error, FileNotFoundError) and fs.exists(os.path.dirname(path))
            if not vanished or mode not in ("a", "x") or attempt == MOST_ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _make_directory(fs: FileSystem, path: str) -> bool:
    """Makes a directory; returns False when another process has just done so."""
    try:
        fs.mkdir(path)
    except FileExistsError:
        return False
    return True


def open_recovered(
    fs: FileSystem,
    directory: str,
    config: StoreConfig,
    lock: Lock,
    read_only: bool,
    clock: Clock | None = None,
    progress: Progress | None = None,
    on_error: OnError | None = None,
    check_pages: bool = True,
) -> DurableStore:
    """The store of what recovery finds in a directory whose lock is held. Raises what `recover` does, OSError."""
    recovered = recover(fs, directory, config, not read_only, progress, check_pages)
    try:
        return DurableStore(recovered, lock, read_only, clock or Clock(), on_error)
    except BaseException:
        with contextlib.suppress(OSError):  # the files have to be closed all the same
            recovered.index_files.data_files.windows.unmap_all()
        recovered.index_files.close()
        raise


def require_mode(mode: str) -> str:
    """The mode, if it is one. Raises ValueError."""
    if mode not in MODES:
        raise ValueError(f"mode must be {' or '.join(map(repr, MODES))}, not {mode!r}")
    return mode


def _require_born(directory: str, mode: str, born: bool) -> None:
    if born and mode == "x":
        raise FileExistsError(errno.EEXIST, "there is an index already", directory)
    if not born and mode in ("r", "r+"):
        raise FileNotFoundError(errno.ENOENT, "no index", directory)
