"""Locks on directories: an advisory lock, shared or exclusive, on a file in each.

The system's lock belongs to the open file: another handle of the same process can't take it either, and closing another
descriptor doesn't release it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
import weakref

from xtree.persistence.files.open_directory import OpenDirectory, Path, PathIn

WINDOWS = sys.platform == "win32"
if WINDOWS:
    import portalocker
else:
    import fcntl

BYTE_LOCKS = not WINDOWS and hasattr(fcntl, "F_OFD_SETLK")
OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)

_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_locks_in_child() -> None:
    """After a fork, even one in the middle of an open: a child that lives on must not hold its parent's locks."""
    for lock in list(_locks):
        lock.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks_in_child)


class Lock:
    """A lock on a directory, held or about to be. The kernel releases it when the process ends, however it ends.

    A lock on a path from `path_in` owns the open directory, which is closed with it.
    """

    directory: OpenDirectory | None = None
    _fd = -1

    def __init__(self, path: Path, fd: int, shared: bool) -> None:
        self._fd = fd
        self.path = os.fspath(path)
        self.directory = path.directory if isinstance(path, PathIn) else None
        self.shared = shared
        self.held = False  # until it has been taken
        self._pid = os.getpid()
        _locks.add(self)

    def make_exclusive(self) -> bool:
        """Makes this shared lock an exclusive one, without waiting; returns whether it could.

        If not, the lock may be lost: `make_shared` tells. The system releases the shared lock before it grants the
        exclusive one, so another process may have held the lock in between. Where the system has locks of bytes that
        belong to open files (Linux), that can't be a process which does the same.
        """
        if not _lock_byte(self._fd, True):
            return False
        try:
            if not try_lock(self._fd, False):
                try_lock(self._fd, True)
                return False
        finally:
            _lock_byte(self._fd, False)
        self.shared = False
        note_owner(self._fd)
        return True

    def make_shared(self) -> bool:
        """Makes the lock a shared one, or keeps it so; returns whether it could."""
        if not self.shared:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
        self.shared = True
        return try_lock(self._fd, True)

    @property
    def owner(self) -> str:
        """Who else holds the lock, as far as is known."""
        return owner_of(self._fd, self)

    def release(self) -> None:
        """Releases the lock. Releasing twice does nothing; in a forked child only the descriptor is closed."""
        if self._fd >= 0 and os.getpid() == self._pid:
            if not self.shared:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, 0)
            _unlock(self._fd)
        self.close_in_child()

    def __del__(self) -> None:
        self.close_in_child()  # after an open that an interrupt has ended at a bad moment

    def is_on(self, fd: int) -> bool:
        """Whether this lock is held, and on the file of this descriptor."""
        held = self._fd
        if held < 0 or not self.held:
            return False
        try:
            return os.path.samestat(os.fstat(held), os.fstat(fd))
        except OSError:  # released meanwhile by another thread
            return False

    def close_in_child(self) -> None:
        """Closes the descriptor without unlocking: after a fork the lock stays with the parent, for its whole life."""
        if self.directory is not None:
            self.directory.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def open_lock(path: Path, shared: bool, directory: int | None) -> int:
    """Opens the lock file and returns its descriptor; -1 when a shared lock must do without.

    The file is opened for writing if possible: a shared lock may become an exclusive one.
    """
    flags = os.O_RDWR | OPEN_FLAGS
    try:
        return os.open(path, flags | os.O_CREAT, 0o666, dir_fd=directory)
    except OSError as error:
        if not shared or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    try:
        return os.open(path, os.O_RDONLY | OPEN_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return -1


def try_lock(fd: int, shared: bool) -> bool:
    """Takes the lock if that is possible at once; returns whether it was."""
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


def _lock_byte(fd: int, taken: bool) -> bool:
    """Locks the first byte of a lock file, or unlocks it; returns False when somebody else has it."""
    if not BYTE_LOCKS:
        return True
    kind = fcntl.F_WRLCK if taken else fcntl.F_UNLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0))
    except BlockingIOError:
        return False
    except OSError:  # opened to read, or on a file system that has no such locks
        return True
    return True


def _unlock(fd: int) -> None:
    if WINDOWS:
        portalocker.unlock(fd)
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)


def note_owner(fd: int) -> None:
    """Leaves this process's id in the file of a lock that it holds exclusively."""
    with contextlib.suppress(OSError):  # on a full disk the lock holds without it
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0) if hasattr(os, "pwrite") else os.write(fd, b"%d\n" % os.getpid())


def owner_of(fd: int, besides: Lock | None = None) -> str:
    """Who holds the lock, as far as the file says: a writer leaves its id there, readers leave nothing."""
    for lock in list(_locks):
        if lock is not besides and lock.is_on(fd):
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
