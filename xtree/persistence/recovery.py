"""Recovery: from the files of a directory to the state of the last exposed commit.

`recover` reads top to bottom: superblock, manifest, newest good checkpoint, logs in link order into memory, every image
checked against its row, only then images written. Writing them as frames are read would overwrite slots that a later
transaction, flushed before its frame, has used again. It may stop anywhere and run again: until the checkpoint that
ends it (Coordinator.end_recovery) nothing is replaced, only pages of the final state go to their final places.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence import checkpoint as checkpoints
from xtree.persistence import filenames
from xtree.persistence.catalog import Catalog
from xtree.persistence.checkpoint import ROW
from xtree.persistence.config import Config
from xtree.persistence.crash_points import reach
from xtree.persistence.data_files import IN_MEMORY, DataFiles
from xtree.persistence.file_header import HEADER_BYTES
from xtree.persistence.frame import Frame, LogLink
from xtree.persistence.journal import FileNumbers, Journal, closed_log
from xtree.persistence.manifest import LogEntry, Manifest
from xtree.persistence.mmap_windows import Windows
from xtree.persistence.object_table import ObjectTable
from xtree.persistence.page_checksum import page_crc
from xtree.persistence.platform_fs import FileSystem
from xtree.persistence.replay import LIVE, Replay, require_places
from xtree.persistence.scan import scan_directory
from xtree.persistence.superblock import COPIES, MODES, SuperblockFile
from xtree.persistence.wal_reader import LogReader, find_later_link, read_log


@dataclass
class RecoveryReport:
    """What recovery did."""

    clean: bool = True
    epoch: int = 0
    checkpoint_epoch: int = 0
    logs: int = 0
    frames: int = 0
    deltas: int = 0
    images_written: int = 0
    tail_bytes: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as a dict."""
        return dataclasses.asdict(self)


@dataclass
class Recovered:
    """What the store is assembled from."""

    journal: Journal
    table: ObjectTable
    catalog: Catalog
    epoch: int
    following_epoch: int
    needs_checkpoint: bool
    report: RecoveryReport


class Exposure:
    """Which groups of the open log are commits, by the mode that each frame carries.

    A frame is the commit point of its group except in `strict`, where the superblock is: it names the last epoch. When
    one of its copies can't be read, that one may have named the group that follows the other copy's epoch, which is
    then a commit as well; a later one can't be, since a copy is only overwritten once the other is on the disk.
    """

    def __init__(self, superblock: SuperblockFile) -> None:
        self._epoch = superblock.value.epoch
        self._unreadable = COPIES - superblock.copies_readable

    def __call__(self, frame: Frame) -> bool:
        if frame.mode != MODES["strict"] or frame.last_epoch <= self._epoch:
            return True
        if self._unreadable:
            self._unreadable -= 1
            return True
        return False


def recover(fs: FileSystem, directory: str, config: Config, writable: bool) -> Recovered:
    """Brings the directory's last exposed state into memory; with `writable` also its pages into their places.

    The caller holds the lock. Raises CorruptionError, FormatVersionError, OSError; nothing was changed then, except
    that pages of the recovered state may have been written again.
    """
    started = time.perf_counter()
    report = RecoveryReport()
    superblock = SuperblockFile.open(fs, directory, writable)
    try:
        manifest = _load_manifest(fs, directory, superblock.value.uuid, report)
        config = config.with_stored(manifest.config)
        base, last_log = _newest_checkpoint(fs, directory, manifest, report)
        windows = Windows(writable=writable)
        numbers = FileNumbers(_following_number(fs, directory, manifest))
        data_files = DataFiles(fs, directory, manifest.uuid, windows, config, writable, numbers.take)
    except BaseException:
        superblock.close()
        raise
    journal = Journal(fs, directory, config, manifest, superblock, data_files, numbers, last_log)
    try:
        for entry in manifest.data_files:
            data_files.attach(entry)
        report.clean = not manifest.logs
        replay = _start(base, manifest, config, data_files)
        _replay_logs(journal, replay, report)
        _require_durable(replay.epoch, superblock, manifest)
        _place_images(replay, data_files, writable, report)
        table = ObjectTable()
        table.restore(replay.rows.view(np.uint8).data, data_files.windows_by_number())
    except BaseException:
        windows.unmap_all()
        journal.close()
        raise
    report.epoch = replay.epoch
    report.frames, report.deltas = replay.frames, replay.deltas
    report.seconds = time.perf_counter() - started
    return Recovered(
        journal,
        table,
        replay.catalog,
        replay.epoch,
        _following_epoch(replay.epoch, superblock, report, config),
        not report.clean,
        report,
    )


def holds_data(fs: FileSystem, directory: str, names: Iterable[str]) -> bool:
    """Whether a directory without a superblock holds anything of an index: a checkpoint, log or data file."""
    for name in names:
        kept = filenames.parse_checkpoint(name) or filenames.parse_log(name) or filenames.parse_data(name)
        if kept and fs.size(os.path.join(directory, name)) > 0:
            return True
    return False


def _load_manifest(fs: FileSystem, directory: str, uuid: bytes, report: RecoveryReport) -> Manifest:
    try:
        manifest = Manifest.load(fs, directory)
    except (CorruptionError, FileNotFoundError) as error:
        report.notes.append(f"manifest unreadable, directory scanned instead: {error}")
        return scan_directory(fs, directory, uuid)
    if manifest.uuid != uuid:
        raise CorruptionError(f"{directory}: superblock of index {uuid.hex()}, manifest of {manifest.uuid.hex()}")
    return manifest


def _newest_checkpoint(
    fs: FileSystem, directory: str, manifest: Manifest, report: RecoveryReport
) -> tuple[checkpoints.Checkpoint | None, LogLink]:
    """The newest checkpoint that can be read, or None for the empty state that every index begins with."""
    failures: list[Exception] = []
    for entry in sorted(manifest.checkpoints, key=lambda entry: (entry.epoch, entry.number), reverse=True):
        try:
            found = checkpoints.read(fs, directory, entry, manifest.uuid)
        except FormatVersionError:
            raise
        except (CorruptionError, FileNotFoundError) as error:
            failures.append(error)
            report.notes.append(f"checkpoint {entry.number} passed over: {error}")
            continue
        report.checkpoint_epoch = found.epoch
        return found, found.last_log
    if failures and len(manifest.checkpoints) > 1:
        raise CorruptionError(f"no checkpoint of {directory} can be read: {failures[0]}") from failures[0]
    if failures and (not manifest.logs or not _starts_at_nothing(fs, directory, manifest)):
        raise CorruptionError(f"the only checkpoint of {directory} can't be read: {failures[0]}") from failures[0]
    return None, LogLink()


def _starts_at_nothing(fs: FileSystem, directory: str, manifest: Manifest) -> bool:
    """Whether the logs kept reach back to the empty index."""
    first = manifest.logs[0]
    path = os.path.join(directory, filenames.log_name(first.number))
    return read_log(fs, path, manifest.uuid, first.number).link == LogLink()


def _start(base: checkpoints.Checkpoint | None, manifest: Manifest, config: Config, data_files: DataFiles) -> Replay:
    classes = {entry.number: entry.size_class for entry in manifest.data_files}
    if base is None:
        return Replay(np.zeros(1, dtype=ROW), Catalog(), 0, classes, config.window_bytes)
    rows = np.frombuffer(base.rows, dtype=ROW)
    replay = Replay(
        rows if not manifest.logs else rows.copy(),
        Catalog.decode(base.catalog, f"checkpoint {base.number}", base.catalog_offset),
        base.epoch,
        classes,
        config.window_bytes,
    )
    live = rows["state"] == LIVE
    require_places(
        rows["file_number"][live],
        rows["size_class"][live],
        rows["offset"][live],
        replay._classes,
        config.window_bytes,
        f"checkpoint of epoch {base.epoch}",
    )
    return replay


def _replay_logs(journal: Journal, replay: Replay, report: RecoveryReport) -> None:
    """Every frame after the checkpoint, in link order. Records how each log ended."""
    ended = journal.last_log
    logs = []
    for entry in _ends_by_links(journal, ended):
        if entry.number <= ended.number or (entry.closed is not None and entry.closed.last_epoch <= replay.epoch):
            logs.append(entry)
            continue
        ended, closed = _replay_log(journal, entry, ended, replay, report)
        logs += closed
        report.logs += 1
    journal.last_log = ended
    journal.manifest = dataclasses.replace(journal.manifest, logs=tuple(logs))


def _ends_by_links(journal: Journal, checkpointed: LogLink) -> list[LogEntry]:
    """The logs of the manifest, oldest first; where it records no end, the one that the next log's link names.

    What has no end then is the last log that was written to, or was made ahead of need and never used.
    """
    entries: list[LogEntry] = []
    following: LogLink | None = None
    known = journal.manifest.logs
    for i in range(len(known) - 1, -1, -1):
        entry = known[i]
        link = None
        if entry.closed is None or (i and known[i - 1].closed is None):
            with contextlib.closing(_open_log(journal, entry)) as reader:
                link = reader.link
        if entry.closed is None and following is not None:
            if link is None:
                continue  # never used
            if following.number != entry.number:
                raise CorruptionError(
                    f"{_log_path(journal, entry)}: expected the next log to follow log {entry.number}, found that it "
                    f"follows log {following.number}"
                )
            entry = LogEntry(number=entry.number, closed=closed_log(following))
        elif entry.closed is None and entry.number == checkpointed.number:
            entry = LogEntry(number=entry.number, closed=closed_log(checkpointed))
        elif entry.closed is None and link is None and entry.number < checkpointed.number:
            continue
        entries.append(entry)
        following = link or following
    return entries[::-1]


def _log_path(journal: Journal, entry: LogEntry) -> str:
    return os.path.join(journal.directory, filenames.log_name(entry.number))


def _open_log(journal: Journal, entry: LogEntry, admits: Exposure | None = None) -> LogReader:
    """A log that the manifest lists, up to its end if that is known."""
    path = _log_path(journal, entry)
    end = None if entry.closed is None else entry.closed.end_offset
    try:
        return read_log(journal.fs, path, journal.manifest.uuid, entry.number, recorded_end=end, admits=admits)
    except FileNotFoundError:
        raise CorruptionError(f"{path}: the manifest lists this log; it isn't there") from None


def _replay_log(
    journal: Journal, entry: LogEntry, before: LogLink, replay: Replay, report: RecoveryReport
) -> tuple[LogLink, list[LogEntry]]:
    """One log; returns how the chain ends now, and the log's entry, if it is part of the chain."""
    path = _log_path(journal, entry)
    admits = Exposure(journal.superblock) if entry.closed is None else None  # up to a known end all was exposed
    with contextlib.closing(_open_log(journal, entry, admits)) as reader:
        if reader.link is not None:
            if reader.link != before and reader.link.last_epoch > replay.epoch:
                raise CorruptionError(
                    f"{path}: at offset {HEADER_BYTES}: expected a link to {before}, found {reader.link}"
                )
            for frame in reader:
                replay.apply(frame)
                reach("recovery.frame_applied")
        if entry.closed is not None:
            if entry.closed != closed_log(reader.end):
                raise CorruptionError(
                    f"{path}: expected it to end as {entry.closed}, found {reader.end}, {reader.stopped_because}"
                )
        else:
            _judge_tail(journal, reader, replay, report)
        if reader.link is None:
            return before, []  # made, but nothing was ever committed to it
        return reader.end, [LogEntry(number=entry.number, closed=closed_log(reader.end))]


def _judge_tail(journal: Journal, reader: LogReader, replay: Replay, report: RecoveryReport) -> None:
    """What stands behind the last good frame of the open log: nothing, a torn tail, or damage."""
    if not reader.tail_bytes:
        return
    known = None if reader.link is None else replay.epoch
    evidence = find_later_link(journal.fs, reader.path, reader.uuid, reader.number, reader.end_offset, known)
    if evidence is not None:
        raise CorruptionError(
            f"{reader.path}: damaged at offset {reader.end_offset}: expected a frame, found {reader.stopped_because}; "
            f"the frame at offset {evidence.offset} says that epoch {evidence.durable_through} was on the disk"
        )
    report.tail_bytes += reader.tail_bytes
    report.notes.append(
        f"{reader.path}: a torn tail of {reader.tail_bytes} bytes at offset {reader.end_offset} dropped: "
        f"{reader.stopped_because}"
    )


def _require_durable(epoch: int, superblock: SuperblockFile, manifest: Manifest) -> None:
    """What is known to have been durable must be there."""
    known = max([superblock.value.durable_epoch, *(entry.epoch for entry in manifest.checkpoints)])
    if epoch < known:
        raise CorruptionError(f"recovered up to epoch {epoch}, but epoch {known} was on the disk: a log is damaged")


def _place_images(replay: Replay, data_files: DataFiles, writable: bool, report: RecoveryReport) -> None:
    """Checks every page that a log brought in, then puts the images of live ones where their rows say."""
    rows = replay.rows
    for node in replay.born:
        row = rows[node >> 8]
        image = replay.images.get(node)
        number, offset = int(row["file_number"]), int(row["offset"])
        if image is None:
            image = data_files.read(number, offset, 4096 << int(row["size_class"]))
        crc = page_crc(image)
        if crc != int(row["crc"]):
            raise CorruptionError(
                f"{data_files.path_of_number(number)}, offset {offset}: page of node {node:#x} has CRC "
                f"{crc:#010x}, expected {int(row['crc']):#010x}"
            )
    reach("recovery.images_checked")
    if not replay.images:
        return
    report.images_written = len(replay.images)
    if writable:
        for node, image in replay.images.items():
            row = rows[node >> 8]
            data_files.write(int(row["file_number"]), int(row["offset"]), image)
            reach("recovery.image_written")
    else:
        place = data_files.in_memory(replay.images.values())
        replay.rows = rows = rows.copy()
        for node, offset in zip(replay.images, place):
            rows["file_number"][node >> 8] = IN_MEMORY
            rows["offset"][node >> 8] = offset


def _following_epoch(epoch: int, superblock: SuperblockFile, report: RecoveryReport, config: Config) -> int:
    """The first epoch to hand out: never one that an unexposed frame may carry with other content."""
    following = epoch + 1
    if not report.clean:
        following = max(following, superblock.value.epoch_ceiling)
    if superblock.copies_readable < 2:
        following = max(following, superblock.value.epoch_ceiling) + config.epoch_stride
    return following


def _following_number(fs: FileSystem, directory: str, manifest: Manifest) -> int:
    """The first file number to hand out: above every file that is there, listed or not."""
    found = [manifest.next_number - 1]
    for name in fs.listdir(directory):
        data = filenames.parse_data(name)
        found.append(filenames.parse_checkpoint(name) or filenames.parse_log(name) or (data[1] if data else 0))
    return max(found) + 1
