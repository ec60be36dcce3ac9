"""Files that are open only while somebody needs them, and how many of them stay open.

A LazyFile is opened at its first use and stays open while it is in use. Afterwards it may be closed, the least recently
used first, as soon as more files are open than the budget says. One that was written to stays open until the sync that
covers the write: the system reports a failed write-back to descriptors that were open when it happened.

Locks: one lock guards all tables. It is held for moments and is reentrant, since garbage collection may run anything
anywhere. So a whole use of any file, even of the same one, may come between two steps: a user is counted before the
file is looked at, and a file among the idle may be closed already. Files are opened and closed outside of the lock.
"""

from __future__ import annotations

import contextlib
import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator

from xtree.persistence.base.lock_ranks import OPEN_FILES, RankedLock
from xtree.persistence.files.platform_fs import File


class LazyFile:
    """A file of an OpenFiles. Any thread may use it; a descriptor is valid inside `opened` only."""

    def __init__(self, files: OpenFiles, path: str, open_: Callable[[], File], file: File | None = None) -> None:
        self.path = path
        self._files = files
        self.open_ = open_  # opens and verifies it
        self.file: File | None = None
        self.users = 0
        self.kept = False  # must stay open until end_sync
        self.kept_again = False  # kept since begin_sync
        if file is not None:
            files.take_over(self, file)

    def __repr__(self) -> str:
        return f"<LazyFile {self.path}>"

    @contextlib.contextmanager
    def opened(self) -> Iterator[File]:
        """The open file, for a with block. Raises OSError, and what `open_` raises."""
        file = self._files.borrow(self)
        try:
            yield file
        finally:
            self._files.give_back(self)

    def keep(self) -> None:
        """Opens the file and keeps it open until a sync that begins after this has succeeded."""
        self._files.keep(self)

    def begin_sync(self) -> None:
        """Notes that a sync begins: `keep` from now on is for the next one."""
        self.kept_again = False

    def end_sync(self) -> None:
        """Notes that the sync has succeeded: the file may be closed, unless it was written to meanwhile."""
        self._files.let_go(self)


class OpenFiles:
    """Those of a set of LazyFiles that are open. `budget`: with more files open than that, unused ones are closed."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.opened = 0
        self.closed = 0
        self.peak = 0
        self._lock = RankedLock(OPEN_FILES, reentrant=True)
        self._open: set[LazyFile] = set()
        self._kept: OrderedDict[LazyFile, None] = OrderedDict()  # in the order in which they were first kept
        self._idle: OrderedDict[LazyFile, None] = OrderedDict()  # open and needed by nobody, longest unused first
        self._ended = False

    @property
    def kept(self) -> list[LazyFile]:
        """Files that wait for a sync, longest first."""
        with self._lock:
            return list(self._kept)

    @property
    def kept_count(self) -> int:
        """How many files wait for a sync."""
        return len(self._kept)

    def borrow(self, lazy: LazyFile) -> File:
        """The open file, which isn't closed before give_back."""
        with self._lock:
            lazy.users += 1  # nobody closes it from here on
            self._idle.pop(lazy, None)
            file = lazy.file
        if file is not None:
            return file
        try:
            file = self._open_for(lazy)
        except BaseException:
            self.give_back(lazy)
            raise
        self._keep_to_budget()
        return file

    def give_back(self, lazy: LazyFile) -> None:
        """Ends a use."""
        with self._lock:
            lazy.users -= 1
            self._settle(lazy)
        self._keep_to_budget()

    def keep(self, lazy: LazyFile) -> None:
        """Keeps a file open for its next sync, which covers what was written until now."""
        if lazy.kept_again and lazy.file is not None:
            return
        self.borrow(lazy)
        with self._lock:
            lazy.kept = lazy.kept_again = True
            self._kept.setdefault(lazy)
        self.give_back(lazy)

    def let_go(self, lazy: LazyFile) -> None:
        """Ends a sync: the file may be closed, unless it was kept again meanwhile."""
        with self._lock:
            if not lazy.kept_again:
                lazy.kept = False
                self._kept.pop(lazy, None)
                self._settle(lazy)
        self._keep_to_budget()

    def take_over(self, lazy: LazyFile, file: File) -> None:
        """Makes an open file that of a LazyFile."""
        with self._lock:
            self._install(lazy, file)
            self._settle(lazy)
        self._keep_to_budget()

    def close(self) -> None:
        """Closes every file; none is opened again."""
        with self._lock:
            self._ended = True
            files = [lazy.file for lazy in self._open if lazy.file is not None]
            for lazy in self._open:
                lazy.file = None
            self._open.clear()
            self._kept.clear()
            self._idle.clear()
            self.closed += len(files)
        for file in files:
            file.close()

    def stats(self) -> dict[str, int]:
        """Open files, the budget, files that wait for a sync, the most open at once, and how often one was opened and
        closed."""
        with self._lock:
            return {
                "open": len(self._open),
                "budget": self.budget,
                "kept": len(self._kept),
                "open_peak": self.peak,
                "opened": self.opened,
                "closed": self.closed,
            }

    def _open_for(self, lazy: LazyFile) -> File:
        """The open file, for a user who is counted already."""
        if self._ended:
            raise ValueError(f"{lazy.path} is closed")
        opened = self._open_now(lazy)
        with self._lock:
            if lazy.file is None and not self._ended:
                self._install(lazy, opened)
            file = lazy.file
        if file is not opened:  # another thread was faster, or the end came
            opened.close()
        if file is None:
            raise ValueError(f"{lazy.path} is closed")
        return file

    def _open_now(self, lazy: LazyFile) -> File:
        try:
            return lazy.open_()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._close_idle(0):
                raise
        return lazy.open_()

    def _install(self, lazy: LazyFile, file: File) -> None:
        lazy.file = file
        self._open.add(lazy)
        self.opened += 1
        self.peak = max(self.peak, len(self._open))

    def _settle(self, lazy: LazyFile) -> None:
        """Notes whether a file may be closed. The lock is held."""
        self._idle.pop(lazy, None)
        if lazy.file is not None and not lazy.users and not lazy.kept:
            self._idle[lazy] = None

    def _longest_idle(self) -> LazyFile | None:
        while True:
            try:
                return next(iter(self._idle), None)
            except RuntimeError:  # changed in the middle, by a use in a signal handler or finalizer: look again
                pass

    def _keep_to_budget(self) -> None:
        if len(self._open) > self.budget:
            self._close_idle(self.budget)

    def _close_idle(self, budget: int) -> int:
        """Closes files that nobody needs until no more than `budget` are open; returns how many."""
        files = []
        with self._lock:
            while (idle := self._longest_idle()) is not None and len(self._open) > budget:
                self._idle.pop(idle, None)
                self._open.discard(idle)
                file, idle.file = idle.file, None  # last: until then a use in between finds it open
                if file is not None:
                    files.append(file)
            self.closed += len(files)
        for file in files:
            file.close()
        return len(files)
