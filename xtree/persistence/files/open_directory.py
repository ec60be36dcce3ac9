"""An open directory: the names in it, wherever its path leads by now.

A path comes to lead elsewhere: a link is turned, a directory moved, removed, put in the place of another. An index
works in the directory that it has opened, by the descriptor, and finds out by the lock file that it holds whether that
directory is still the one at its path. If not, nothing is made, replaced or removed there any more, nor committed.

Where the system can't look names up in an open directory (Windows), they are looked up by the path.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Union

from xtree.errors import StoreFailedError
from xtree.persistence.files.filenames import LOCK

Path = Union[str, "os.PathLike[str]"]

BY_DESCRIPTOR = {os.open, os.stat, os.unlink, os.rename} <= os.supports_dir_fd and os.listdir in os.supports_fd

_open: weakref.WeakValueDictionary[int, OpenDirectory] = weakref.WeakValueDictionary()


class DirectoryLostError(StoreFailedError):
    """Raised when a directory that is locked isn't what its path leads to any more: nothing may be changed."""


class OpenDirectory(str):
    """A directory that is open; as a string its real path, resolved once. `path_in` gives the paths of its names.

    `identity`: device and inode of its lock file, once that is held: the number isn't given to another file as long as
    the descriptor is open. `report_lost` is called once, with the error, by who finds that it was lost.
    """

    identity: tuple[int, int] | None
    report_lost: Callable[[DirectoryLostError], object]
    _fd: int | None = None
    _closed = False
    # Set once, with the GIL, and never cleared; two threads that find it may both report it.
    _lost: str | None = None  # what became of it
    _lock_path: str

    def __new__(cls, path: Path) -> OpenDirectory:
        """Open the directory at `path`. Raises OSError."""
        directory = super().__new__(cls, os.path.realpath(path))
        directory.identity = None
        directory.report_lost = lambda error: None
        directory._lock_path = os.path.join(directory, LOCK)
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
        """Raise DirectoryLostError unless the path leads here, and to the lock that is held; OSError if nobody knows.

        Once lost, it stays so.
        """
        if self.identity is None:
            return
        found = None
        if self._lost is None:
            try:
                found = os.stat(self._lock_path)
            except (FileNotFoundError, NotADirectoryError):
                pass
            if found is not None and (found.st_dev, found.st_ino) == self.identity:
                return
        self._lose(found)

    def is_at_path(self) -> bool:
        """Whether the path leads to this directory, whatever became of the lock file."""
        return self.is_at(self)

    def is_at(self, path: str) -> bool:
        """Whether a path leads to this directory; not to one that is closed."""
        try:
            fd = self.fileno()
            return fd is None or os.path.samestat(os.fstat(fd), os.stat(path))
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Close the descriptor. Closing twice does nothing."""
        self._closed = True
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _lose(self, found: os.stat_result | None) -> None:
        """Raise the error; the first time also report it."""
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

    def _became(self, found: os.stat_result | None) -> str:
        """What became of the directory."""
        if not os.path.lexists(self):
            removed = self._fd is not None and os.fstat(self._fd).st_nlink == 0
            return "the directory was removed" if removed else "the directory was moved away, or removed"
        if self.is_at_path():
            return f"its file {LOCK} was {'removed' if found is None else 'replaced'}"
        return f"{'something else' if found is None else 'another index'} was put in its place"


class PathIn(str):
    """The path of a name in an open directory. A FileSystem takes the two from here, the string is for messages."""

    __slots__ = ("directory", "name")

    directory: OpenDirectory
    name: str

    def __new__(cls, directory: OpenDirectory, name: str) -> PathIn:
        path = super().__new__(cls, os.path.join(directory, name))
        path.directory = directory
        path.name = name
        return path


def path_in(directory: Path, name: str) -> str:
    """The path of a name in a directory: in that one, if it is open, whatever its own path leads to."""
    return PathIn(directory, name) if isinstance(directory, OpenDirectory) else os.path.join(directory, name)


def _close_in_child() -> None:
    """After a fork: a child that lives on must not keep its parent's directories."""
    for directory in list(_open.values()):
        directory.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
