"""Files, syncs, renames and locks: the only Python module that calls the operating system.

A `FileSystem` is passed to everything that touches a disk, so that a test can put one in its place that fails, tears
or forgets. All reads and writes name their position; a `File` has no other state than its descriptor and may be used
from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Union

from xtree.errors import LockedError
from xtree.persistence.crash_points import reach
from xtree.persistence.filenames import temporary_name

WINDOWS = sys.platform == "win32"
SYNC_COVERS_MAPPINGS = sys.platform.startswith("linux")  # elsewhere a mapping must be flushed before its file is synced
if WINDOWS:
    import portalocker
else:
    import fcntl

Path = Union[str, "os.PathLike[str]"]
Buffer = Any  # bytes, bytearray, memoryview, numpy array: anything contiguous

_ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
_FLAGS = {"r": os.O_RDONLY, "rw": os.O_RDWR, "create": os.O_RDWR | os.O_CREAT | os.O_EXCL}
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None) if not WINDOWS else None
_MOST_BUFFERS = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names else 16
_ZEROS = memoryview(bytes(1 << 20))
_POLL_S = 0.02


class SyncFailedError(OSError):
    """Raised when a sync fails: what was written before may be on the disk or not, and asking again won't tell."""


class File:
    """An open file with positional reads and writes."""

    __slots__ = ("path", "_fd", "_position_lock")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = os.fspath(path)
        self._fd = fd
        self._position_lock = None if hasattr(os, "pread") else threading.Lock()

    @property
    def name(self) -> str:
        """The bare name of the file."""
        return os.path.basename(self.path)

    def fileno(self) -> int:
        """The descriptor. Raises ValueError when the file is closed."""
        if self._fd < 0:
            raise ValueError(f"{self.path} is closed")
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
        """Write all of `data` at `offset`."""
        done = self._write_once(data, offset)
        if done < memoryview(data).nbytes:
            view = memoryview(data).cast("B")
            while done < view.nbytes:
                done += self._write_once(view[done:], offset + done)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write buffers one behind the other, from `offset` on, without joining them."""
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
        """The first `n` bytes, mapped to be read; nothing is copied. Unmapped with the last reference to them.

        For a file that nobody shortens meanwhile.
        """
        if n == 0:
            return b""
        if not hasattr(mmap, "MAP_POPULATE"):
            return mmap.mmap(self.fileno(), n, access=mmap.ACCESS_READ)
        return mmap.mmap(self.fileno(), n, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)

    def write_zeros(self, offset: int, n: int) -> None:
        """Write `n` zero bytes at `offset`, as blocks on the disk, not as a hole."""
        while n > 0:
            step = min(n, _ZEROS.nbytes)
            self.pwrite(_ZEROS[:step], offset)
            offset += step
            n -= step

    def sync(self) -> None:
        """Return when everything written before, and the size, is on the disk. Never call it again after it failed.

        Raises SyncFailedError.
        """
        fd = self.fileno()
        try:
            if _FULL_SYNC is not None:
                fcntl.fcntl(fd, _FULL_SYNC)
            elif hasattr(os, "fdatasync"):
                os.fdatasync(fd)
            else:
                os.fsync(fd)
        except OSError as error:
            raise SyncFailedError(error.errno, error.strerror, self.path) from error

    def size(self) -> int:
        """The size in bytes."""
        return os.fstat(self.fileno()).st_size

    def truncate(self, n: int) -> None:
        """Make the file exactly `n` bytes long."""
        os.ftruncate(self.fileno(), n)

    def reserve(self, n: int) -> None:
        """Make the file at least `n` bytes long, with disk space behind every byte added.

        When there isn't enough space the file is left as long as it was, and OSError is raised.
        """
        size = self.size()
        if n <= size:
            return
        with self._as_long_as_before(size):
            if not self._allocate(size, n - size):
                self.write_zeros(size, n - size)

    def fill(self, start: int, end: int) -> None:
        """Write zeros from `start`, the end of the file or before it, to `end`; fails as cleanly as `reserve`."""
        with self._as_long_as_before(self.size()):
            self.write_zeros(start, end - start)

    def close(self) -> None:
        """Close the descriptor. Closing twice does nothing."""
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
        if self._position_lock is None:
            return os.pread(self.fileno(), n, offset)
        with self._position_lock:
            os.lseek(self.fileno(), offset, os.SEEK_SET)
            return os.read(self.fileno(), n)

    def _write_rest(self, buffers: Sequence[Buffer], done: int, offset: int) -> None:
        """Write what comes behind the first `done` bytes of buffers that belong at `offset`."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            if done < view.nbytes:
                self.pwrite(view[done:], offset + done)
            done = max(0, done - view.nbytes)
            offset += view.nbytes

    def _write_once(self, view: Buffer, offset: int) -> int:
        if self._position_lock is None:
            return os.pwrite(self.fileno(), view, offset)
        with self._position_lock:
            os.lseek(self.fileno(), offset, os.SEEK_SET)
            return os.write(self.fileno(), view)

    def _writev_once(self, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(self.fileno(), buffers, offset)

    def _allocate(self, offset: int, n: int) -> bool:
        """Ask the file system for blocks; False when it doesn't know how."""
        if not hasattr(os, "posix_fallocate"):
            return False
        try:
            os.posix_fallocate(self.fileno(), offset, n)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return False
            raise
        return True


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_locks_in_child() -> None:
    """After a fork, also one in the middle of an open: a child that lives on must not hold its parent's locks."""
    for lock in list(_locks):
        lock.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks_in_child)


class Lock:
    """A held lock on a directory. The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path, fd: int, shared: bool) -> None:
        self.path = os.fspath(path)
        self.shared = shared
        self._fd = fd
        self._pid = os.getpid()
        _locks.add(self)

    def release(self) -> None:
        """Let go of the lock. Releasing twice does nothing; in a forked child only the descriptor is closed."""
        if self._fd < 0:
            return
        if os.getpid() == self._pid:
            if not self.shared:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, 0)
            _unlock(self._fd)
        self.close_in_child()

    def is_on(self, fd: int) -> bool:
        """Whether this lock is held, and on the file behind a descriptor."""
        held = self._fd
        if held < 0:
            return False
        try:
            return os.path.samestat(os.fstat(held), os.fstat(fd))
        except OSError:  # released meanwhile by another thread
            return False

    def close_in_child(self) -> None:
        """Close the descriptor without unlocking: after a fork the lock stays with the parent, for its whole life."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileSystem:
    """The operating system's file system."""

    def open(self, path: Path, mode: str) -> File:
        """Open a file: "r" to read, "rw" to read and write, "create" to make one that must not exist yet."""
        return File(path, os.open(path, _FLAGS[mode] | _ALWAYS, 0o666))

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are on the disk. Raises SyncFailedError."""
        if WINDOWS:  # has no such call; the journal of NTFS keeps the order of renames
            return
        fd = os.open(path, os.O_RDONLY | _ALWAYS)
        try:
            os.fsync(fd)
        except OSError as error:
            raise SyncFailedError(error.errno, error.strerror, os.fspath(path)) from error
        finally:
            os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`, atomically, in the place of what had it."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        os.mkdir(path)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def listdir(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: Path) -> bool:
        """Whether there is anything at `path`."""
        return os.path.lexists(path)

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory at `path`."""
        return os.path.isdir(path)

    def size(self, path: Path) -> int:
        """The size of a file in bytes."""
        return os.stat(path).st_size

    def free_space(self, path: Path) -> int:
        """How many bytes a process may still write to the disk that holds `path`."""
        if hasattr(os, "statvfs"):
            info = os.statvfs(path)
            return info.f_bavail * info.f_frsize
        return shutil.disk_usage(path).free

    def read_file(self, path: Path) -> bytes:
        """All of a file."""
        file = self.open(path, "r")
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()

    def write_atomically(self, path: Path, *parts: Buffer) -> None:
        """Put a file with the parts as its content in the place of `path`: whole and on the disk, or not at all."""
        directory = os.path.dirname(path)
        temporary = os.path.join(directory, temporary_name(os.path.basename(path)))
        if self.exists(temporary):
            self.unlink(temporary)
        reach("atomic.before_write")
        file = self.open(temporary, "create")
        try:
            file.pwritev(parts, 0)
            reach("atomic.written")
            file.sync()
        except OSError:
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        finally:
            file.close()
        reach("atomic.synced")
        self.replace(temporary, path)
        reach("atomic.replaced")
        self.sync_directory(directory)
        reach("atomic.directory_synced")

    def lock(self, path: Path, shared: bool, timeout: float | None = 0) -> Lock:
        """Take the lock at `path`, made if missing, waiting up to `timeout` seconds (None: as long as it takes).

        A shared lock admits other shared ones; it writes nothing, and where a lock file can't be opened or made, on
        read-only media, it holds nothing. An exclusive one leaves the process's id in the file. Raises LockedError.
        """
        fd = _open_lock(path, shared)
        if fd < 0:
            return Lock(path, fd, shared)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not _try_lock(fd, shared):
                if deadline is not None and time.monotonic() >= deadline:
                    raise LockedError(
                        errno.EWOULDBLOCK, f"the index is in use by {_owner(fd)}", os.fspath(os.path.dirname(path))
                    )
                time.sleep(_POLL_S)
            if not shared:
                with contextlib.suppress(OSError):  # on a full disk the lock holds without it
                    os.ftruncate(fd, 0)
                    os.write(fd, b"%d\n" % os.getpid())
        except BaseException:
            os.close(fd)
            raise
        return Lock(path, fd, shared)


def _sync(fd: int) -> None:
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def _open_lock(path: Path, shared: bool) -> int:
    """A descriptor for the lock file; -1 when a shared lock must do without."""
    if not shared:
        return os.open(path, os.O_RDWR | os.O_CREAT | _ALWAYS, 0o666)
    try:
        return os.open(path, os.O_RDONLY | _ALWAYS)
    except FileNotFoundError:
        pass
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | _ALWAYS, 0o666)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return -1
        raise


def _try_lock(fd: int, shared: bool) -> bool:
    if WINDOWS:
        kind = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
        try:
            portalocker.lock(fd, kind | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.LockException:
            return False
        return True
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(fd: int) -> None:
    if WINDOWS:
        portalocker.unlock(fd)
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _owner(fd: int) -> str:
    """Who holds the lock, as far as the file says: a writer leaves its id there, readers leave nothing."""
    for lock in list(_locks):
        if lock.is_on(fd):
            return f"process {os.getpid()}, which is this one: another handle {'reads' if lock.shared else 'holds'} it"
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        pid = int(os.read(fd, 20))
        if not WINDOWS:
            os.kill(pid, 0)
    except PermissionError:  # alive, but another user's
        pass
    except (OSError, ValueError, OverflowError):
        return "another process that reads it"
    return f"process {pid}"
