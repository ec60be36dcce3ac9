"""An open directory: names are looked up in it, wherever its path leads by now.

A path may come to lead elsewhere: a link is changed; a directory is moved, removed or replaced by another. An index
works in the directory that it has opened, through the descriptor, and checks by the lock file that it holds whether
that directory is still the one at its path. If not, nothing is made, replaced, removed or committed there any more.

Where the system can't look names up in an open directory (Windows), they are looked up by the path.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Union

from xtree.errors import StoreFailedError
from xtree.persistence.files import commit_calls
from xtree.persistence.files.filenames import LOCK

Path = Union[str, "os.PathLike[str]"]

BY_DESCRIPTOR = {os.open, os.stat, os.unlink, os.rename} <= os.supports_dir_fd and os.listdir in os.supports_fd

_open: weakref.WeakValueDictionary[int, OpenDirectory] = weakref.WeakValueDictionary()


def _identity_by_stat(path: bytes) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


# (device, inode) of what a path leads to. Raises OSError.
identity_of = commit_calls.identity_of if commit_calls.AVAILABLE else _identity_by_stat


class DirectoryLostError(StoreFailedError):
    """Raised when the path of a locked directory doesn't lead to it any more: nothing may be changed."""


class OpenDirectory(str):
    """A directory that is open; as a string it is its real path, resolved once. `path_in` gives the paths of its names.

    `identity`: device and inode of its lock file, once that is held; the inode isn't given to another file as long as
    the descriptor is open. `report_lost` is called with the error, once or twice, when the directory is found to be
    lost.
    """

    identity: tuple[int, int] | None
    report_lost: Callable[[DirectoryLostError], object]
    _fd: int | None = None
    _closed = False
    # Set once, with the GIL, and never cleared; two threads that find it may both report it.
    _lost: str | None = None  # what became of the directory
    _lock_path: bytes

    def __new__(cls, path: Path) -> OpenDirectory:
        """Opens the directory at `path`. Raises OSError."""
        directory = super().__new__(cls, os.path.realpath(path))
        directory.identity = None
        directory.report_lost = lambda error: None
        directory._lock_path = os.fsencode(os.path.join(directory, LOCK))
        if BY_DESCRIPTOR:
            directory._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        _open[id(directory)] = directory
        return directory

    def fileno(self) -> int | None:
        """The descriptor; None where names are looked up by the path. Raises ValueError when it is closed."""
        if self._closed:
            raise ValueError(f"{self} is closed")
        return self._fd

    def require_own(self) -> None:
        """Raises DirectoryLostError unless the path leads here and to the lock that is held; OSError if it can't tell.

        A directory that is lost stays lost.
        """
        if self.identity is None:
            return
        found = None
        if self._lost is None:
            try:
                found = identity_of(self._lock_path)
            except (FileNotFoundError, NotADirectoryError):
                pass
            if found == self.identity:
                return
        self._lose(found)

    def is_at_path(self) -> bool:
        """Whether the path leads to this directory, whatever became of the lock file."""
        return self.is_at(self)

    def is_at(self, path: str) -> bool:
        """Whether a path leads to this directory; False once it is closed."""
        try:
            fd = self.fileno()
            return fd is None or os.path.samestat(os.fstat(fd), os.stat(path))
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Closes the descriptor. Closing twice does nothing."""
        self._closed = True
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _lose(self, found: tuple[int, int] | None) -> None:
        """Raises the error; the first time it also reports it."""
        first = self._lost is None
        if self._lost is None:
            self._lost = (
                f"{self}: {self._became(found)} while the index was open. Nothing more is written; "
                "what was committed is in the files that were there"
            )
        error = DirectoryLostError(self._lost)
        if first:
            self.report_lost(error)
        raise error

    def _became(self, found: tuple[int, int] | None) -> str:
        """What became of the directory."""
        if not os.path.lexists(self):
            removed = self._fd is not None and os.fstat(self._fd).st_nlink == 0
            return "the directory was removed" if removed else "the directory was moved away, or removed"
        if self.is_at_path():
            return f"its file {LOCK} was {'removed' if found is None else 'replaced'}"
        return f"{'something else' if found is None else 'another index'} was put in its place"


class PathIn(str):
    """The path of a name in an open directory. A FileSystem uses `directory` and `name`; the string is for messages."""

    __slots__ = ("directory", "name")

    directory: OpenDirectory
    name: str

    def __new__(cls, directory: OpenDirectory, name: str) -> PathIn:
        path = super().__new__(cls, os.path.join(directory, name))
        path.directory = directory
        path.name = name
        return path


def path_in(directory: Path, name: str) -> str:
    """The path of a name in a directory. In an OpenDirectory the name is found wherever the directory's path leads."""
    return PathIn(directory, name) if isinstance(directory, OpenDirectory) else os.path.join(directory, name)


def _close_in_child() -> None:
    """After a fork: a child that lives on must not keep its parent's directories."""
    for directory in list(_open.values()):
        directory.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
