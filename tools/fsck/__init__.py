"""Fsck: verifies everything that can be verified about an index, and reports all findings, not only the first."""

from __future__ import annotations

import contextlib
import os
import time

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.base.progress import Progress
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files import filenames
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.store.store import Store
from xtree.runtime import Runtime, store_of
from xtree.tools.fsck.files import READ_ERRORS, Directory
from xtree.tools.fsck.judge import judge_files, judge_leftovers
from xtree.tools.fsck.open import open_remains, open_whole
from xtree.tools.fsck.pages import PageCheck
from xtree.tools.fsck.report import DAMAGE, NOTE, Finding, Report

__all__ = ["Finding", "Report", "check_directory", "fsck", "require_index"]


def fsck(
    source: str | os.PathLike[str] | Runtime, progress: Progress | None = None, fs: FileSystem | None = None
) -> Report:
    """Verifies an index and reports all that is wrong with it; changes nothing.

    source: the directory of an index that no process has open for writing, every file of which is verified; or an open
    Runtime, also a writing one, whose files, rows and slots are verified, and the pages and trees of one epoch, while
    others go on. progress: called with (bytes done, bytes in all). Raises LockedError, FileNotFoundError,
    NotADirectoryError, CorruptionError for a directory that never was an index, ClosedError, OSError.
    """
    started = time.perf_counter()
    if isinstance(source, Runtime):
        report = _check_runtime(source, progress)
    else:
        fs = fs or FileSystem()
        require_index(fs, os.path.abspath(os.fspath(source)))
        directory, lock = fs.lock_directory(source, shared=True)
        try:
            report, _ = check_directory(fs, directory, progress)
            report.path = os.fspath(source)
        finally:
            lock.release()
    report.seconds = time.perf_counter() - started
    return report


def require_index(fs: FileSystem, path: str) -> None:
    """Raises unless there is a directory at `path` with files of an index, damaged or not."""
    if not fs.exists(path):
        raise FileNotFoundError(f"no index at {path}")
    if not fs.is_directory(path):
        raise NotADirectoryError(f"{path} is no directory")
    if not any(filenames.is_ours(name) for name in fs.listdir(path)):
        raise CorruptionError(f"{path}: is no index: it has none of the files of one")


def check_directory(fs: FileSystem, path: str, progress: Progress | None = None) -> tuple[Report, Directory]:
    """Does what `fsck` does for a caller that holds the lock of the directory; also returns what was read of files."""
    report = Report(path, "directory")
    meter = _Meter(fs, path, progress)
    directory = Directory(fs, path, meter.add)
    if directory.unborn:
        report.add(NOTE, "directory", "an index", "one whose making was cut off; the next open makes it afresh")
        return report, directory
    judge_files(directory, report)
    store = _open(directory, report)
    if store is not None:
        with contextlib.closing(store):
            report.epoch = store.published.epoch
            meter.data()
            _check_epoch(store, report, meter, store.published.epoch < directory.known_epoch)
    judge_leftovers(directory, report.epoch, report)
    meter.end()
    return report, directory


def _open(directory: Directory, report: Report) -> DurableStore | None:
    """The store as it opens, or what is left of it."""
    try:
        return open_whole(directory)
    except READ_ERRORS as error:
        report.opens = False
        report.error = " ".join(str(error).split())
        if not report.of(DAMAGE):
            report.add_error(DAMAGE, "recovery", error, "an index that opens")
    remains = open_remains(directory)
    if remains is None:
        report.add(NOTE, "recovery", "rows", "no checkpoint that can be read, nor the first log: pages were not judged")
        return None
    base = "the empty index" if remains.checkpoint is None else filenames.checkpoint_name(remains.checkpoint)
    found = f"the one at epoch {remains.store.published.epoch}, from {base} and {len(remains.logs)} logs"
    report.add(NOTE, "recovery", "the last state", f"{found}: its pages were checked")
    return remains.store


def _check_runtime(runtime: Runtime, progress: Progress | None) -> Report:
    """One epoch of an open runtime, and its files."""
    report = Report(runtime.path, "snapshot")
    store = store_of(runtime)
    meter = _Meter(store.index_files.fs, runtime.path, progress)
    with store.call():
        try:
            Store.check(store)  # the lists of the table and the allocator in use, and that they agree
        except CorruptionError as error:
            report.add_error(DAMAGE, "slot", error, "rows and slots that agree")
        try:
            store.index_files.data_files.verify_headers()
        except (CorruptionError, FormatVersionError) as error:
            report.add_error(DAMAGE, "data file", error, "a data file's header")
        for flaw in store.flaws_of_files():
            report.add_error(DAMAGE, flaw.part, flaw.error, "what was written", file=flaw.name)
    meter.data()
    _check_epoch(store, report, meter)
    meter.end()
    return report


def _check_epoch(store: DurableStore, report: Report, meter: _Meter, behind: bool = False) -> None:
    pin = store.pin()
    try:
        report.epoch = pin.epoch
        PageCheck(store, pin, report, meter.share, behind).run()
    finally:
        pin.release()


class _Meter:
    """Tells a progress callback how many bytes have been looked at; data files count as their pages are done."""

    def __init__(self, fs: FileSystem, path: str, progress: Progress | None) -> None:
        self._progress = progress
        sizes = {}
        for name in filter(filenames.is_ours, fs.listdir(path)):
            with contextlib.suppress(FileNotFoundError):  # a writer replaces and deletes files meanwhile
                sizes[name] = fs.size(path_in(path, name))
        self._data = sum(size for name, size in sizes.items() if filenames.parse_data(name))
        self._total = sum(sizes.values())
        self._done = 0.0

    def add(self, n: float) -> None:
        """Counts n more bytes."""
        self._done += n
        if self._progress is not None:
            self._progress(min(int(self._done), self._total), self._total)

    def share(self, share: float) -> None:
        """Counts a share of the data files."""
        self.add(share * self._data)

    def data(self) -> None:
        """Counts everything except the data files as done."""
        self.add(max(0.0, self._total - self._data - self._done))

    def end(self) -> None:
        """Counts everything as done."""
        self.add(self._total - self._done)

