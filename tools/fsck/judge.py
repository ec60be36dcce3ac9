"""What the files of an index say by themselves and about each other, as findings."""

from __future__ import annotations

import contextlib

from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import Checkpoint
from xtree.persistence.files.data_files import read_header
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.filenames import MANIFEST, SUPERBLOCK
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.superblock import COPIES, Superblock
from xtree.persistence.store.catalog import Catalog
from xtree.roots import KIND, tree_state_of
from xtree.tools.fsck.files import READ_ERRORS, Directory, Log
from xtree.tools.fsck.report import DAMAGE, NOTE, ORPHAN, Report

__all__ = ["judge_files", "judge_leftovers", "orphans"]

_EPOCHS = ("epoch", "durable_epoch", "epoch_ceiling")


def judge_files(directory: Directory, report: Report) -> None:
    """All that can be said before the state of the index is known."""
    _judge_superblock(directory, report)
    _judge_manifest(directory, report)
    _judge_listed_files(directory, report)
    for number, found in directory.checkpoints.items():
        _judge_checkpoint(directory, number, found, report)
    _judge_logs(directory, report)
    _judge_data_files(directory, report)
    report.figures["files"] = len(directory.names)
    report.figures["checkpoints"] = len(directory.good_checkpoints)
    report.figures["logs"] = len(directory.logs)
    report.figures["frames"] = sum(log.frames for log in directory.logs.values())


def _judge_superblock(directory: Directory, report: Report) -> None:
    readable = [copy for copy in directory.copies if isinstance(copy, Superblock)]
    # A crash may have cut off the write of one copy; after a clean close both are on the disk.
    severity = NOTE if len(readable) == 1 and not directory.clean else DAMAGE
    for number, copy in enumerate(directory.copies):
        if not isinstance(copy, Superblock):
            expected = f"copy {number} of the superblock"
            report.add_error(severity, "superblock", copy, expected, file=SUPERBLOCK, offset=number * HEADER_BYTES)
    size = directory.size(SUPERBLOCK)
    if size is not None and size != COPIES * HEADER_BYTES:
        report.add(DAMAGE, "superblock", f"{COPIES * HEADER_BYTES} bytes", f"{size}", file=SUPERBLOCK)
    if len(readable) < COPIES:
        return
    older, newer = sorted(readable, key=lambda copy: copy.generation)
    if older.uuid != newer.uuid:
        found = f"{older.uuid.hex()} and {newer.uuid.hex()}"
        report.add(DAMAGE, "superblock", "two copies of one index", found, file=SUPERBLOCK)
    if older.generation == newer.generation and older != newer:
        found = f"generation {newer.generation} in both, with other values"
        report.add(DAMAGE, "superblock", "two generations", found, file=SUPERBLOCK)
    for name in _EPOCHS:
        if getattr(newer, name) < getattr(older, name):
            found = f"{getattr(newer, name)} in generation {newer.generation}"
            expected = f"{name} {getattr(older, name)} or more, as in generation {older.generation}"
            report.add(DAMAGE, "superblock", expected, found, file=SUPERBLOCK)


def _judge_manifest(directory: Directory, report: Report) -> None:
    if directory.manifest_error is not None:
        report.add_error(DAMAGE, "manifest", directory.manifest_error, "a manifest", file=MANIFEST)
        return
    assert directory.manifest is not None
    value = directory.superblock
    if value is not None and directory.manifest.uuid != value.uuid:
        expected = f"the manifest of index {value.uuid.hex()}"
        report.add(DAMAGE, "manifest", expected, f"that of {directory.manifest.uuid.hex()}", file=MANIFEST)


def _judge_listed_files(directory: Directory, report: Report) -> None:
    """Every file that the manifest lists is there, and as long as it must be."""
    manifest = directory.manifest
    if manifest is None or directory.manifest_error is not None:
        return
    for data in manifest.data_files:
        name = filenames.data_name(data.size_class, data.number)
        size = directory.size(name)
        if size is None:
            _missing(report, name)
        elif size > manifest.config["window_bytes"]:
            expected = f"at most {manifest.config['window_bytes']} bytes, by the manifest"
            report.add(DAMAGE, "directory", expected, f"{size}", file=name)
        elif size < data.synced_bytes:
            expected = f"at least {data.synced_bytes} bytes, by the manifest"
            severity = DAMAGE if directory.clean else NOTE  # after a crash the file is made that long first
            report.add(severity, "directory", expected, f"{size}", file=name)
    for log in manifest.logs:
        name = filenames.log_name(log.number)
        size = directory.size(name)
        if size is None:
            _missing(report, name)
        elif log.closed is not None and size < log.closed.end_offset:
            expected = f"at least {log.closed.end_offset} bytes, by the manifest"
            report.add(DAMAGE, "directory", expected, f"{size}", file=name)
    for entry in manifest.checkpoints:
        if directory.size(filenames.checkpoint_name(entry.number)) is None:
            _missing(report, filenames.checkpoint_name(entry.number))


def _missing(report: Report, name: str) -> None:
    report.add(DAMAGE, "directory", "a file that the manifest lists", "none", file=name)


def _judge_checkpoint(directory: Directory, number: int, found: Checkpoint | Exception, report: Report) -> None:
    name = filenames.checkpoint_name(number)
    listed = name in directory.listed()
    if isinstance(found, FileNotFoundError):
        return
    if isinstance(found, Exception):
        severity = DAMAGE if listed else ORPHAN
        report.add_error(severity, "checkpoint", found, "a checkpoint", file=name)
        return
    try:
        table = directory.table_of(found)
    except READ_ERRORS as error:
        report.add_error(DAMAGE, "row", error, "a row that can be", file=name)
        return
    try:
        catalog = Catalog.decode(found.catalog, name, found.catalog_offset)
    except READ_ERRORS as error:
        report.add_error(DAMAGE, "checkpoint", error, "a catalog", file=name)
        return
    for entry in catalog:
        try:
            if entry.kind == KIND:
                tree_state_of(entry)
        except READ_ERRORS as error:
            report.add_error(DAMAGE, "checkpoint", error, "the state of a tree", file=name, tree=entry.name)
        if entry.root and not table.resolves(entry.root):
            found_root = "none: its handle has another tag, or was never given out"
            report.add(DAMAGE, "row", "a row of the root", found_root, file=name, tree=entry.name, node=entry.root)


# Logs.


def _judge_logs(directory: Directory, report: Report) -> None:
    manifest = directory.manifest
    listed = set() if manifest is None else {entry.number for entry in manifest.logs}
    before: LogLink | None = None
    for log in directory.logs.values():
        if log.number not in listed or isinstance(log.damage, FileNotFoundError):
            continue
        _judge_log(log, report)
        _judge_link(directory, log, before, report)
        _judge_ceiling(directory, log, report)
        before = log.end if log.link is not None else before
    _judge_reach(directory, listed, report)


def _judge_log(log: Log, report: Report) -> None:
    """A log by itself: its header, its frames, its end."""
    if log.damage is not None:
        report.add_error(DAMAGE, "log", log.damage, "a log", file=log.name)
        return
    assert log.end is not None
    if log.stray_at is not None:
        report.add(DAMAGE, "log", "zeros between two frames", "another byte", file=log.name, offset=log.stray_at)
    if log.evidence is not None:
        found = f"{log.stopped_because}, though {log.evidence}"
        report.add(DAMAGE, "log", "a frame", found, file=log.name, offset=log.end.end_offset)
    elif log.tail_bytes:
        found = f"a torn tail of {log.tail_bytes} bytes ({log.stopped_because}); the next open drops it"
        if log.recorded is not None:
            found = f"{log.tail_bytes} bytes behind its recorded end, which count for nothing"
        elif log.stopped_because == "not exposed":
            found = f"{log.unexposed} frames of {log.tail_bytes} bytes, no commits yet; the next open drops them"
        report.add(NOTE, "log", "the end of the frames", found, file=log.name, offset=log.end.end_offset)


def _judge_link(directory: Directory, log: Log, before: LogLink | None, report: Report) -> None:
    """A log follows the one before it, or the checkpoint that made that one superfluous."""
    if log.link is None or before is None or log.link == before:
        return
    if any(log.link == one.last_log for one in directory.good_checkpoints):
        return
    report.add(DAMAGE, "log", f"a link to {before}", f"{log.link}", file=log.name, offset=HEADER_BYTES)


def _judge_ceiling(directory: Directory, log: Log, report: Report) -> None:
    """No epoch is handed out before the superblock reserves it."""
    copies = [copy for copy in directory.copies if isinstance(copy, Superblock)]
    if len(copies) < COPIES or log.end is None or not log.holds_commits:
        return
    ceiling = max(copy.epoch_ceiling for copy in copies)
    if log.end.last_epoch >= ceiling:
        expected = f"epochs below {ceiling}, the superblock's ceiling"
        report.add(DAMAGE, "log", expected, f"epoch {log.end.last_epoch}", file=log.name, offset=log.end.end_offset)


def _judge_reach(directory: Directory, listed: set[int], report: Report) -> None:
    """The logs reach the last epoch that is known to have been on the disk."""
    known = directory.known_epoch
    logs = [log for log in directory.logs.values() if log.number in listed and log.end is not None]
    ends = [log.end.last_epoch for log in logs if log.end is not None]
    reached = max([0, *ends, *(one.epoch for one in directory.good_checkpoints)])
    if reached < known and all(log.whole for log in logs):
        used = [log for log in logs if log.link is not None]
        end = used[-1].end if used else None
        name, offset = (used[-1].name, end.end_offset) if end is not None else (None, None)
        expected = f"commits up to epoch {known}, which was on the disk"
        report.add(DAMAGE, "log", expected, f"none after epoch {reached}", file=name, offset=offset)


# Data files, and what doesn't belong.


def _judge_data_files(directory: Directory, report: Report) -> None:
    if directory.uuid is None:
        return
    for name in sorted(directory.listed()):
        parsed = filenames.parse_data(name)
        if parsed is None or directory.size(name) is None:
            continue
        try:
            with contextlib.closing(directory.fs.open(directory.place(name), "r")) as file:
                number, window_bytes, size_class = read_header(file, directory.uuid)
        except READ_ERRORS as error:
            report.add_error(DAMAGE, "data file", error, "a data file's header", file=name, offset=0)
            continue
        expected = (parsed[1], directory.stored["window_bytes"], parsed[0])
        if (number, window_bytes, size_class) != expected:
            wanted = f"number, window bytes and size class {expected}"
            report.add(
                DAMAGE, "data file", wanted, f"{(number, window_bytes, size_class)}", file=name, offset=32
            )


def orphans(directory: Directory, epoch: int | None) -> list[str]:
    """Temporary files, and files that the manifest doesn't list and that hold no commit after the state reached.

    When the manifest had to be made from the files that can be read, those that can't be read are not among them.
    """
    listed = directory.listed()
    found = []
    for name in directory.names:
        if name in listed or name in (filenames.LOCK, SUPERBLOCK, MANIFEST) or not filenames.is_ours(name):
            continue
        if filenames.is_temporary(name) or not _holds_later(directory, name, epoch):
            found.append(name)
    return found


def _holds_later(directory: Directory, name: str, epoch: int | None) -> bool:
    """Whether an unlisted file holds, or may hold, commits after the epoch of the state; None: there is no state."""
    if epoch is None:
        return True
    scanned = directory.manifest_error is not None
    number = filenames.parse_log(name)
    if number is not None:
        log = directory.logs[number]
        if log.end is None or not log.whole:
            return scanned
        return log.holds_commits and log.end.last_epoch > epoch
    number = filenames.parse_checkpoint(name)
    if number is not None:
        found = directory.checkpoints[number]
        return found.epoch > epoch if isinstance(found, Checkpoint) else scanned
    return scanned


def judge_leftovers(directory: Directory, epoch: int | None, report: Report) -> None:
    """Files that nothing lists, and names that are none of ours."""
    harmless = set(orphans(directory, epoch))
    for name in directory.names:
        if not filenames.is_ours(name):
            report.add(NOTE, "directory", "a file of an index", "one of another name", file=name)
        elif name in harmless:
            expected = "nothing unfinished" if filenames.is_temporary(name) else "a file that the manifest lists"
            what = "a temporary file" if filenames.is_temporary(name) else "one that it doesn't"
            report.add(ORPHAN, "directory", expected, what, file=name)
        elif name not in {*directory.listed(), filenames.LOCK, SUPERBLOCK, MANIFEST} and epoch is not None:
            found = f"one that it doesn't, with commits after epoch {epoch}"
            if directory.manifest_error is not None:
                found = "one that can't be read, and might belong to the index"
            report.add(DAMAGE, "directory", "a file that the manifest lists", found, file=name)

