"""Files, syncs and renames: the only caller of the operating system besides open_directory.py and lock_file.py.

A `FileSystem` is passed to everything that touches a disk, so that a test can pass one that fails, or tears or forgets
writes. The name of a path from `path_in` is looked up in the open directory, and is made, replaced or removed only
while that directory is the one at its path. All reads and writes name their position; a `File` has no other state than
its descriptor and may be used from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from xtree.errors import ClosedError, LockedError
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.forks import fork_count
from xtree.persistence.base.lock_ranks import POSITION, RankedLock
from xtree.persistence.files.commit_calls import AVAILABLE, sync_data, write_at
from xtree.persistence.files.filenames import LOCK, temporary_name
from xtree.persistence.files.lock_file import OPEN_FLAGS, WINDOWS, Lock, note_owner, open_lock, owner_of, try_lock
from xtree.persistence.files.open_directory import DirectoryLostError, OpenDirectory, Path, PathIn, path_in

SYNC_COVERS_MAPPINGS = sys.platform.startswith("linux")  # elsewhere a mapping must be flushed before its file is synced
if not WINDOWS:
    import fcntl

Buffer = Any  # bytes, bytearray, memoryview, numpy array: anything contiguous

_FLAGS = {"r": os.O_RDONLY, "rw": os.O_RDWR, "create": os.O_RDWR | os.O_CREAT | os.O_EXCL}
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None) if not WINDOWS else None
_MOST_BUFFERS = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names else 16
_MOST_HELD_BYTES = 64 << 10 if AVAILABLE else -1
_ZEROS = memoryview(bytes(1 << 20))
_POLL_S = 0.02
_MOST_REPLACED = 1000  # how often a directory may turn out to be replaced once its lock has been taken


class SyncFailedError(OSError):
    """Raised when a sync fails: what was written before may be on the disk or not, and another sync won't tell."""


def _name(error: OSError, path: str) -> None:
    """Adds the path to the error of a call on a descriptor, which doesn't name the file itself."""
    if error.filename is None:
        error.filename = path


def _in_use(owner: str, directory: str) -> LockedError:
    return LockedError(
        errno.EWOULDBLOCK,
        f"the index is in use by {owner}: close it there, or give timeout= to wait until it is closed",
        directory,
    )


class File:
    """An open file with positional reads and writes.

    of_commits: whether it is written in the middle of commits: a short `pwritev` of one buffer keeps the GIL then, and
    queries give way after a sync (commit_calls).
    """

    __slots__ = ("of_commits", "path", "_fd", "_forks", "_position_lock")

    def __init__(self, path: Path, fd: int) -> None:
        self.of_commits = False
        self.path = os.fspath(path)
        self._fd = fd
        self._forks = fork_count()
        self._position_lock = None if hasattr(os, "pread") else RankedLock(POSITION)

    @property
    def name(self) -> str:
        """The bare name of the file."""
        return os.path.basename(self.path)

    def fileno(self) -> int:
        """The descriptor. Raises ValueError when the file is closed, ClosedError when it's that of a parent process."""
        if self._fd < 0:
            raise ValueError(f"{self.path} is closed")
        if self._forks != fork_count():  # in the middle of a call that the parent has begun
            raise ClosedError(f"{self.path} was opened before a fork")
        return self._fd

    def pread(self, n: int, offset: int) -> bytes:
        """The `n` bytes at `offset`; fewer only at the end of the file."""
        data = self._read_once(n, offset)
        if len(data) == n or not data:
            return data
        parts = [data]
        got = len(data)
        while got < n:
            data = self._read_once(n - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Writes all of `data` at `offset`."""
        done = self._write_once(data, offset)
        if done < memoryview(data).nbytes:
            view = memoryview(data).cast("B")
            while done < view.nbytes:
                done += self._write_once(view[done:], offset + done)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Writes buffers one after the other, from `offset` on, without joining them."""
        if self.of_commits and len(buffers) == 1 and len(buffers[0]) <= _MOST_HELD_BYTES:
            fd = self._fd if self._forks == fork_count() else -1
            try:
                done = write_at(fd if fd >= 0 else self.fileno(), buffers[0], offset)
            except OSError as error:
                _name(error, self.path)
                raise
            if done < len(buffers[0]):
                self._write_rest(buffers, done, offset)
            return
        if not hasattr(os, "pwritev"):
            self._write_rest(buffers, 0, offset)
            return
        for start in range(0, len(buffers), _MOST_BUFFERS):
            some = buffers[start : start + _MOST_BUFFERS]
            done = self._writev_once(some, offset)
            size = 0
            for buffer in some:
                size += memoryview(buffer).nbytes
            if done < size:
                self._write_rest(some, done, offset)
            offset += size

    def map(self, n: int) -> Buffer:
        """The first `n` bytes, mapped to be read; nothing is copied. They are unmapped with the last reference to them.

        Only for a file that nobody shortens meanwhile.
        """
        if n == 0:
            return b""
        try:
            if not hasattr(mmap, "MAP_POPULATE"):
                return mmap.mmap(self.fileno(), n, access=mmap.ACCESS_READ)
            return mmap.mmap(self.fileno(), n, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        except OSError as error:
            _name(error, self.path)
            raise

    def write_zeros(self, offset: int, n: int) -> None:
        """Writes `n` zero bytes at `offset`, as blocks on the disk, not as a hole."""
        while n > 0:
            step = min(n, _ZEROS.nbytes)
            self.pwrite(_ZEROS[:step], offset)
            offset += step
            n -= step

    def sync(self) -> None:
        """Returns when everything written before, and the size, is on the disk. Raises SyncFailedError.

        After a failure it must not be called again.
        """
        fd = self.fileno()
        try:
            if self.of_commits and AVAILABLE:
                sync_data(fd)
            elif _FULL_SYNC is not None:
                fcntl.fcntl(fd, _FULL_SYNC)
            elif hasattr(os, "fdatasync"):
                os.fdatasync(fd)
            else:
                os.fsync(fd)
        except OSError as error:
            raise SyncFailedError(error.errno, error.strerror, self.path) from error

    def size(self) -> int:
        """The size in bytes."""
        try:
            return os.fstat(self.fileno()).st_size
        except OSError as error:
            _name(error, self.path)
            raise

    def truncate(self, n: int) -> None:
        """Makes the file exactly `n` bytes long."""
        try:
            os.ftruncate(self.fileno(), n)
        except OSError as error:
            _name(error, self.path)
            raise

    def reserve(self, n: int) -> None:
        """Makes the file at least `n` bytes long, with disk space for every byte added.

        When there isn't enough space the file is left as long as it was, and OSError is raised.
        """
        size = self.size()
        if n <= size:
            return
        with self._as_long_as_before(size):
            if not self._allocate(size, n - size):
                self.write_zeros(size, n - size)

    def fill(self, start: int, end: int) -> None:
        """Writes zeros from `start`, the end of the file or before it, to `end`; fails as cleanly as `reserve`."""
        with self._as_long_as_before(self.size()):
            self.write_zeros(start, end - start)

    def close(self) -> None:
        """Closes the descriptor. Closing twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            with contextlib.suppress(OSError):
                self.close()

    @contextlib.contextmanager
    def _as_long_as_before(self, size: int) -> Iterator[None]:
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                self.truncate(size)
            raise

    def _read_once(self, n: int, offset: int) -> bytes:
        try:
            if self._position_lock is None:
                return os.pread(self.fileno(), n, offset)
            with self._position_lock:
                os.lseek(self.fileno(), offset, os.SEEK_SET)
                return os.read(self.fileno(), n)
        except OSError as error:
            _name(error, self.path)
            raise

    def _write_rest(self, buffers: Sequence[Buffer], done: int, offset: int) -> None:
        """Writes what follows the first `done` bytes of buffers that belong at `offset`."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            if done < view.nbytes:
                self.pwrite(view[done:], offset + done)
            done = max(0, done - view.nbytes)
            offset += view.nbytes

    def _write_once(self, view: Buffer, offset: int) -> int:
        try:
            if self._position_lock is None:
                return os.pwrite(self.fileno(), view, offset)
            with self._position_lock:
                os.lseek(self.fileno(), offset, os.SEEK_SET)
                return os.write(self.fileno(), view)
        except OSError as error:
            _name(error, self.path)
            raise

    def _writev_once(self, buffers: Sequence[Buffer], offset: int) -> int:
        try:
            return os.pwritev(self.fileno(), buffers, offset)
        except OSError as error:
            _name(error, self.path)
            raise

    def _allocate(self, offset: int, n: int) -> bool:
        """Asks the file system for blocks; returns False when it doesn't know how."""
        if not hasattr(os, "posix_fallocate"):
            return False
        try:
            os.posix_fallocate(self.fileno(), offset, n)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return False
            _name(error, self.path)
            raise
        return True


class FileSystem:
    """The operating system's file system."""

    def open(self, path: Path, mode: str) -> File:
        """Opens a file: "r" to read, "rw" to read and write, "create" to make one that must not exist yet."""
        with self._named(path, mode == "create") as (name, directory):
            return File(path, os.open(name, _FLAGS[mode] | OPEN_FLAGS, 0o666, dir_fd=directory))

    def sync_directory(self, path: Path) -> None:
        """Returns when the names in a directory are on the disk. Raises SyncFailedError."""
        if WINDOWS:  # has no such call; the journal of NTFS keeps the order of renames
            return
        with self._descriptor(path) as fd:
            try:
                os.fsync(fd)
            except OSError as error:
                raise SyncFailedError(error.errno, error.strerror, os.fspath(path)) from error

    def replace(self, source: Path, target: Path) -> None:
        """Renames `source` to `target`, atomically, in the place of what had that name."""
        with self._named(target, True) as (new, target_directory), self._named(source, False) as (old, directory):
            os.replace(old, new, src_dir_fd=directory, dst_dir_fd=target_directory)

    def unlink(self, path: Path) -> None:
        """Removes a file."""
        with self._named(path, True) as (name, directory):
            os.unlink(name, dir_fd=directory)

    def mkdir(self, path: Path) -> None:
        """Makes a directory."""
        os.mkdir(path)

    def remove_directory(self, path: Path) -> None:
        """Removes an empty directory; an open one only if it is still the one at its path."""
        if not isinstance(path, OpenDirectory) or path.is_at_path():
            os.rmdir(path)

    def listdir(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        if not isinstance(path, OpenDirectory) or path.fileno() is None:
            return sorted(os.listdir(path))
        fd = os.open(".", os.O_RDONLY, dir_fd=path.fileno())  # with a position of its own
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def exists(self, path: Path) -> bool:
        """Whether there is anything at `path`."""
        try:
            with self._named(path, False) as (name, directory):
                os.stat(name, dir_fd=directory, follow_symlinks=False)
        except (OSError, ValueError):
            return False
        return True

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory at `path`."""
        return os.path.isdir(path)

    def size(self, path: Path) -> int:
        """The size of a file in bytes."""
        with self._named(path, False) as (name, directory):
            return os.stat(name, dir_fd=directory).st_size

    def free_space(self, path: Path) -> int:
        """How many bytes a process may still write to the disk that holds `path`."""
        if hasattr(os, "statvfs"):
            fd = path.fileno() if isinstance(path, OpenDirectory) else None
            info = os.statvfs(path if fd is None else fd)
            return info.f_bavail * info.f_frsize
        return shutil.disk_usage(path).free

    def open_directory(self, path: Path) -> OpenDirectory:
        """Opens a directory, to be used with `path_in`. Raises OSError."""
        return OpenDirectory(path)

    def require_own(self, directory: Path) -> None:
        """Raises DirectoryLostError when a locked directory isn't the one at its path any more, OSError if unknown."""
        if isinstance(directory, OpenDirectory):
            directory.require_own()

    def read_file(self, path: Path) -> bytes:
        """The content of a file."""
        file = self.open(path, "r")
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()

    def write_atomically(self, path: Path, *parts: Buffer) -> None:
        """Replaces the file at `path` by one made of the parts: whole and on the disk, or not at all."""
        directory = path.directory if isinstance(path, PathIn) else os.path.dirname(path)
        temporary = path_in(directory, temporary_name(os.path.basename(path)))
        if self.exists(temporary):
            self.unlink(temporary)
        reach("atomic.before_write")
        file = self.open(temporary, "create")
        try:
            file.pwritev(parts, 0)
            reach("atomic.written")
            file.sync()
            file.close()
            reach("atomic.synced")
            self.replace(temporary, path)
        except (OSError, MemoryError):
            file.close()
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        finally:
            file.close()
        reach("atomic.replaced")
        self.sync_directory(directory)
        reach("atomic.directory_synced")

    def lock(self, path: Path, shared: bool, timeout: float | None = 0) -> Lock:
        """Takes the lock at `path`, made if missing; waits up to `timeout` seconds (None: as long as it takes).

        A shared lock admits other shared ones and writes nothing. Where no lock file can be opened or made, as on
        read-only media, it holds nothing. An exclusive one leaves the process's id in the file. Raises LockedError.
        """
        with self._named(path, False) as (name, directory):
            fd = open_lock(name, shared, directory)
        lock = Lock(path, fd, shared)
        if fd < 0:
            return lock
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not try_lock(fd, shared):
                if deadline is not None and time.monotonic() >= deadline:
                    raise _in_use(owner_of(fd, lock), os.path.dirname(path))
                time.sleep(_POLL_S)
            lock.held = True
            if not shared:
                note_owner(fd)
            if isinstance(path, PathIn):
                held = os.fstat(fd)
                path.directory.identity = held.st_dev, held.st_ino
        except BaseException as error:
            lock.close_in_child()
            if isinstance(error, OSError):
                _name(error, os.fspath(path))
            raise
        return lock

    def lock_directory(self, path: Path, shared: bool, timeout: float | None = 0) -> tuple[OpenDirectory, Lock]:
        """Opens the directory at `path` and takes its lock, as `lock` does. The directory is closed with the lock.

        It is the one that `path` led to when the lock was taken, not one that was removed or replaced meanwhile. Raises
        FileNotFoundError, LockedError, OSError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        replaced = 0
        while True:
            directory = self.open_directory(path)
            try:
                lock = self.lock(path_in(directory, LOCK), shared)
            except BaseException as error:
                directory.close()
                if not isinstance(error, LockedError) or (deadline is not None and time.monotonic() >= deadline):
                    raise
                time.sleep(_POLL_S)
                continue
            try:
                self.require_own(directory)
                return directory, lock
            except BaseException as error:
                self.give_up(directory, lock, False)
                replaced += 1
                if not isinstance(error, DirectoryLostError) or replaced == _MOST_REPLACED:
                    raise

    def make_exclusive(self, directory: OpenDirectory, lock: Lock) -> None:
        """Makes the shared lock of a directory an exclusive one, without waiting. Raises LockedError.

        Another process may have held it in between, and after a failure may still hold it (`Lock.make_shared`).
        """
        if not lock.make_exclusive():
            raise _in_use(lock.owner, directory)

    def real_path(self, path: Path) -> str:
        """The absolute path without links."""
        return os.path.realpath(os.fspath(path))

    def lock_identity(self, path: Path) -> tuple[int, int] | None:
        """Device and inode of the lock file in the directory at `path`; None when there is none."""
        try:
            found = os.stat(os.path.join(path, LOCK))
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def give_up(self, directory: OpenDirectory, lock: Lock, made: bool) -> None:
        """Releases a lock; removes an exclusive one's file if nothing else is there and, if `made`, the directory."""
        with contextlib.suppress(OSError, DirectoryLostError):
            if not lock.shared and self.listdir(directory) == [LOCK]:
                if WINDOWS:  # which removes no file and no directory that is open
                    lock.release()
                self.unlink(str(lock.path) if WINDOWS else lock.path)
                if made:
                    self.remove_directory(str(directory) if WINDOWS else directory)
        lock.release()

    @contextlib.contextmanager
    def _named(self, path: Path, changes: bool) -> Iterator[tuple[Path, int | None]]:
        """For a block with one call: yields a name and the descriptor of its directory, or a path and None.

        changes: the call makes, replaces or removes what has the name. Errors name the whole path.
        """
        if not isinstance(path, PathIn):
            yield path, None
            return
        if changes:
            self.require_own(path.directory)
        fd = path.directory.fileno()
        try:
            yield (path, None) if fd is None else (path.name, fd)
        except OSError as error:
            if error.filename == path.name:
                error.filename = str(path)
            if error.filename2 == path.name:
                error.filename2 = str(path)
            raise

    @contextlib.contextmanager
    def _descriptor(self, path: Path) -> Iterator[int]:
        """A descriptor of a directory, for a block."""
        fd = path.fileno() if isinstance(path, OpenDirectory) else None
        if fd is not None:
            yield fd
            return
        fd = os.open(path, os.O_RDONLY | OPEN_FLAGS)
        try:
            yield fd
        finally:
            os.close(fd)


def available_memory() -> int | None:
    """Bytes that this process could take, as the system tells, before it would end a process for lack of memory.

    None where the system doesn't tell, or refuses by itself to give more than there is.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as said:
            fields = dict(line.split(":") for line in said)
        free = 1024 * sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError):
        if WINDOWS or "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        with contextlib.suppress(OSError, ValueError), open(f"/sys/fs/cgroup/{name}", encoding="ascii") as limit:
            free = min(free, int(limit.read()))
    return free
