"""Repair: what is safe to put right about an index, because everything that was committed is there.

Its steps are first planned from a report and then done in this order: manifest and checkpoints are made whole again,
each step durable before the next; recovery, as in any open after a crash, ends what a crash has left; then the
superblock is made whole; leftovers go last.
Nothing that holds commits is ever removed, and nothing at all is done to an index that doesn't open. Each step may fail
or be cut off anywhere; repair can be run again after that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable

from xtree.persistence.base.config import StoreConfig
from xtree.persistence.base.progress import Progress
from xtree.persistence.files import checkpoint as checkpoints
from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import Checkpoint
from xtree.persistence.files.filenames import MANIFEST, SUPERBLOCK
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import COPIES, Superblock, SuperblockFile
from xtree.persistence.opening import open_recovered
from xtree.persistence.recovery.manifest_rebuild import rebuild_manifest
from xtree.tools.fsck import check_directory, require_index
from xtree.tools.fsck.files import Directory
from xtree.tools.fsck.judge import orphans
from xtree.tools.fsck.open import BorrowedLock
from xtree.tools.fsck.report import DAMAGE, Action, Report

__all__ = ["plan", "repair"]

_OF_PAGES = ("data file", "row", "slot", "page", "tree")  # parts of an index that only salvage can do something about


def repair(
    path: str | os.PathLike[str],
    dry_run: bool = False,
    announce: Callable[[Report], object] = lambda report: None,
    progress: Progress | None = None,
    fs: FileSystem | None = None,
) -> Report:
    """Repairs what is safe to repair in an index that no process has open; returns what fsck says afterwards.

    announce: called with the first report before anything is done; its `actions` are what will be done. With `dry_run`
    that is all, and the first report is returned. Raises LockedError and what fsck raises, OSError.
    """
    started = time.perf_counter()
    fs = fs or FileSystem()
    require_index(fs, os.path.abspath(os.fspath(path)))
    directory, lock = fs.lock_directory(path, shared=False)
    try:
        report, files = check_directory(fs, directory, progress)
        report.path = os.fspath(path)
        report.actions = plan(report, files)
        report.seconds = time.perf_counter() - started
        announce(report)
        if dry_run or not report.actions:
            return report
        for action in report.actions:
            _STEPS[action.kind](fs, directory, action.file)
        after, _ = check_directory(fs, directory, progress)
    finally:
        lock.release()
    after.path, after.actions, after.repaired = report.path, report.actions, True
    after.seconds = time.perf_counter() - started
    return after


def plan(report: Report, directory: Directory) -> list[Action]:
    """The steps that make an index whole again, in their order; none when it can't be opened.

    When pages are damaged, no log is removed: an older version, or the page itself, may stand there for salvage.
    """
    if directory.unborn or not report.opens or report.epoch is None:
        return []
    broken = any(finding.part in _OF_PAGES for finding in report.of(DAMAGE))
    if broken and not directory.clean:
        return []
    actions = []
    if directory.manifest_error is not None:
        actions.append(Action("manifest", MANIFEST, "written anew from a scan of the directory"))
    actions += _plan_checkpoints(directory)
    if not directory.clean:
        newest = directory.manifest.logs[-1].number if directory.manifest is not None else 0
        actions.append(Action("recover", filenames.log_name(newest), _recovery(directory)))
    readable = sum(isinstance(copy, Superblock) for copy in directory.copies)
    if readable < COPIES:
        actions.append(Action("superblock", SUPERBLOCK, "the unreadable copy written anew from the other one"))
    for name in orphans(directory, report.epoch):
        if broken and not filenames.is_temporary(name):
            continue
        actions.append(Action("remove", name, f"removed: {directory.size(name) or 0} bytes that nothing refers to"))
    return actions


def _plan_checkpoints(directory: Directory) -> list[Action]:
    """A closed index goes on with the checkpoints that can be read; otherwise recovery writes fresh ones."""
    assert directory.manifest is not None
    if not directory.clean:
        return []
    good = directory.good_checkpoints
    return [
        Action(
            "checkpoint",
            filenames.checkpoint_name(entry.number),
            f"dropped, and {filenames.checkpoint_name(good[0].number)} written once more in its place",
        )
        for entry in directory.manifest.checkpoints
        if good and not isinstance(directory.checkpoints[entry.number], Checkpoint)
    ]


def _recovery(directory: Directory) -> str:
    """What a recovering open and a clean close will do to the logs."""
    cut = [
        f"cuts off {log.tail_bytes} bytes at offset {log.end.end_offset} of {log.name}"
        for log in directory.logs.values()
        if log.tail_bytes and log.recorded is None and log.end is not None and log.damage is None
    ]
    replays = f"the index opened and closed, which replays {len(directory.logs)} logs"
    return ", ".join([replays, *cut, "writes checkpoints and lets the logs go"])


# The steps. Each finds the directory as the one before left it, and stays valid if no other follows.


def _rewrite_manifest(fs: FileSystem, directory: str, name: str) -> None:
    """Syncs data files first: the scan takes files as they are, but a manifest says only what is on the disk."""
    manifest = rebuild_manifest(fs, directory, _superblock(fs, directory).uuid)
    for entry in manifest.data_files:
        path = path_in(directory, filenames.data_name(entry.size_class, entry.number))
        with contextlib.closing(fs.open(path, "rw")) as file:
            file.sync()
    manifest.save(fs, directory)


def _replace_checkpoint(fs: FileSystem, directory: str, name: str) -> None:
    """Writes another copy of the newest good checkpoint in place of a damaged one, and removes that."""
    files = Directory(fs, directory)
    assert files.manifest is not None
    manifest, good = files.manifest, files.good_checkpoints[0]
    number = max(manifest.next_number, *(_number(file) + 1 for file in files.names))
    entry = checkpoints.write(
        fs, directory, number, manifest.uuid, good.epoch, good.table, good.catalog, good.data_files, good.last_log
    )
    kept = [one for one in manifest.checkpoints if filenames.checkpoint_name(one.number) != name]
    _save(fs, directory, manifest, checkpoints=(*kept, entry), next_number=number + 1)
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(path_in(directory, name))


def _recover(fs: FileSystem, directory: str, name: str) -> None:
    """Opens the index as after a crash, and closes it."""
    config = StoreConfig(durability=_superblock(fs, directory).mode)
    open_recovered(fs, directory, config, BorrowedLock(directory), read_only=False).close()


def _rewrite_superblock(fs: FileSystem, directory: str, name: str) -> None:
    """Writes the next generation over the lost copy, which may have reserved epochs; they stay reserved."""
    file = SuperblockFile.open(fs, directory, writable=True)
    try:
        file.publish(sync=True, epoch_ceiling=file.value.epoch_ceiling + StoreConfig().epoch_stride)
    finally:
        file.close()


def _remove(fs: FileSystem, directory: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # recovery removes leftovers too
        fs.unlink(path_in(directory, name))
        fs.sync_directory(directory)


_STEPS: dict[str, Callable[[FileSystem, str, str], None]] = {
    "manifest": _rewrite_manifest,
    "checkpoint": _replace_checkpoint,
    "recover": _recover,
    "superblock": _rewrite_superblock,
    "remove": _remove,
}


def _save(fs: FileSystem, directory: str, manifest: Manifest, **changes: object) -> None:
    dataclasses.replace(manifest, generation=manifest.generation + 1, **changes).save(fs, directory)  # type: ignore


def _superblock(fs: FileSystem, directory: str) -> Superblock:
    file = SuperblockFile.open(fs, directory, writable=False)
    file.close()
    return file.value


def _number(name: str) -> int:
    """The sequence number in a name, 0 when there is none."""
    data = filenames.parse_data(name)
    return filenames.parse_checkpoint(name) or filenames.parse_log(name) or (data[1] if data else 0)
