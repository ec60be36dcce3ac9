"""Recovery: from the files of a directory to the state of the last exposed commit.

`recover` reads top to bottom: superblock, manifest, newest good checkpoint, logs in link order into memory; then every
image is checked against its row, and only then are the images written. Writing them as frames are read would overwrite
slots that a later transaction, flushed before its frame, has used again. Recovery may stop anywhere and run again:
until the checkpoint that ends it (Coordinator.end_recovery) nothing is replaced; only pages of the final state are
written, to their final places.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.base.config import StoreConfig
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.progress import Progress
from xtree.persistence.commit.index_files import FileNumbers, IndexFiles, closed_log
from xtree.persistence.files import checkpoint as checkpoints
from xtree.persistence.files import filenames
from xtree.persistence.files.data_files import IN_MEMORY, DataFiles
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import Frame, LogLink
from xtree.persistence.files.manifest import LogEntry, Manifest
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import COPIES, MODES, SuperblockFile
from xtree.persistence.files.wal_reader import LogReader, find_later_link, read_log
from xtree.persistence.pages.file_places import FilePlaces
from xtree.persistence.pages.mmap_windows import Windows
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.pages.stored_table import restore_table
from xtree.persistence.recovery.manifest_rebuild import rebuild_manifest
from xtree.persistence.recovery.replay import Replay
from xtree.persistence.store.catalog import Catalog


@dataclass
class RecoveryReport:
    """What recovery found and did.

    `clean`: the index had been closed. `checkpoint_epoch`, `epoch`: where recovery began and where it ended.
    `bytes_read`: of the checkpoint and of frames. `tail_bytes`: dropped after the end of the last log;
    `unexposed_frames`: how many whole frames, not yet commits, are among them; `notes` say why. `checkpointed`: a
    checkpoint of that epoch followed.
    """

    clean: bool = True
    epoch: int = 0
    checkpoint_epoch: int = 0
    logs: int = 0
    frames: int = 0
    deltas: int = 0
    bytes_read: int = 0
    images_written: int = 0
    tail_bytes: int = 0
    unexposed_frames: int = 0
    checkpointed: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._progress: Progress = lambda done, total: None
        self._total = 0

    def watch(self, progress: Progress | None, total: int) -> None:
        """Calls `progress` from now on whenever something was read; `total`: bytes to read in all."""
        self._total = total
        if progress is not None:
            self._progress = progress

    def advance(self, n: int) -> None:
        """Notes that `n` more bytes were read."""
        self.bytes_read += n
        self._progress(min(self.bytes_read, self._total), self._total)

    def end(self) -> None:
        """Notes that all is read; bytes that weren't there to be read count as well."""
        self._progress(self._total, self._total)

    def as_dict(self) -> dict[str, Any]:
        """The report as a dict."""
        return dataclasses.asdict(self)


@dataclass
class Recovered:
    """What the store is assembled from."""

    index_files: IndexFiles
    table: ObjectTable
    catalog: Catalog
    epoch: int
    following_epoch: int
    needs_checkpoint: bool
    report: RecoveryReport


class Exposure:
    """Which groups of the open log are commits, by the mode that each frame carries.

    A frame is the commit point of its group except in `strict`, where the superblock is: it names the last epoch. A
    copy of it that can't be read may have named the group that follows the other copy's epoch, so that group is a
    commit as well. A later group can't be one, since a copy is only overwritten once the other is on the disk.
    """

    def __init__(self, superblock: SuperblockFile) -> None:
        self.through = superblock.value.epoch
        self._unreadable = COPIES - superblock.copies_readable

    def __call__(self, frame: Frame) -> bool:
        if frame.mode != MODES["strict"] or frame.last_epoch <= self.through:
            return True
        if self._unreadable:
            self._unreadable -= 1
            return True
        return False


def recover(
    fs: FileSystem,
    directory: str,
    config: StoreConfig,
    writable: bool,
    progress: Progress | None = None,
    check_pages: bool = True,
) -> Recovered:
    """Brings the directory's last exposed state into memory; with `writable` also its pages into their places.

    `progress(bytes read, bytes to read)` is called between reads; what it raises ends the recovery. Without
    `check_pages`, which is for looking at what is left of a damaged index, a page that doesn't match its row is noticed
    only when it is touched. The caller holds the lock. Raises CorruptionError, FormatVersionError, OSError; nothing was
    changed then, except that pages of the recovered state may have been written again.
    """
    if writable and not check_pages:
        raise ValueError("pages are only written where all have been checked")
    started = time.perf_counter()
    report = RecoveryReport()
    superblock = SuperblockFile.open(fs, directory, writable)
    try:
        if writable:
            superblock.confirm_creation(fs, directory)
        manifest = _load_manifest(fs, directory, superblock.value.uuid, report)
        config = config.with_stored(manifest.config)
        base, last_log = _newest_checkpoint(fs, directory, manifest, report)
        windows = Windows(writable=writable)
        numbers = FileNumbers(_following_number(fs, directory, manifest))
        data_files = DataFiles(fs, directory, manifest.uuid, windows, config, writable, numbers.take)
    except BaseException:
        superblock.close()
        raise
    index_files = IndexFiles(fs, directory, config, manifest, superblock, data_files, numbers, last_log)
    try:
        report.clean = not manifest.logs
        files = {
            entry.number: (data_files.attach(entry, extend=not report.clean), entry.size_class)
            for entry in manifest.data_files
        }
        report.watch(progress, _bytes_to_read(fs, directory, manifest, base))
        replay = _start(directory, base, config, files, report)
        del base  # and the mapping of its file
        _replay_logs(index_files, replay, report)
        _require_durable(replay.epoch, index_files, superblock, manifest)
        _place_images(replay, data_files, writable, check_pages, report)
        catalog = replay.catalog
        report.end()
    except BaseException:
        windows.unmap_all()
        index_files.close()
        raise
    report.epoch = replay.epoch
    report.frames, report.deltas = replay.frames, replay.deltas
    report.seconds = time.perf_counter() - started
    return Recovered(
        index_files,
        replay.table,
        catalog,
        replay.epoch,
        _following_epoch(replay.epoch, superblock, report, config),
        not report.clean,
        report,
    )


def holds_data(fs: FileSystem, directory: str, names: Iterable[str]) -> bool:
    """Whether a directory without a superblock holds anything of an index: a checkpoint, log or data file."""
    for name in names:
        kept = filenames.parse_checkpoint(name) or filenames.parse_log(name) or filenames.parse_data(name)
        if kept and fs.size(path_in(directory, name)) > 0:
            return True
    return False


def _load_manifest(fs: FileSystem, directory: str, uuid: bytes, report: RecoveryReport) -> Manifest:
    path = path_in(directory, filenames.MANIFEST)
    try:
        manifest = Manifest.load(fs, directory)
    except (CorruptionError, FileNotFoundError) as error:
        report.notes.append(f"manifest unreadable, directory scanned instead: {error}")
        return rebuild_manifest(fs, directory, uuid)
    if manifest.uuid != uuid:
        raise CorruptionError(
            f"{path}: expected a manifest of index {uuid.hex()}, as {filenames.SUPERBLOCK} says, "
            f"found one of {manifest.uuid.hex()}"
        )
    newer = _log_after(fs, directory, manifest)
    if newer is not None:
        report.notes.append(f"{path}: older than {newer}, directory scanned instead")
        return rebuild_manifest(fs, directory, uuid)
    return manifest


def _log_after(fs: FileSystem, directory: str, manifest: Manifest) -> str | None:
    """A log with frames that the manifest is too old to list: logs are listed before their first frame."""
    for name in fs.listdir(directory):
        number = filenames.parse_log(name)
        if number is not None and number >= manifest.next_number:
            with contextlib.suppress(CorruptionError):
                reader = read_log(fs, path_in(directory, name), manifest.uuid, number)
                reader.close()
                if reader.link is not None:
                    return name
    return None


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
    path = path_in(directory, filenames.log_name(first.number))
    return read_log(fs, path, manifest.uuid, first.number).link == LogLink()


def _bytes_to_read(
    fs: FileSystem, directory: str, manifest: Manifest, base: checkpoints.Checkpoint | None
) -> int:
    """The size of the checkpoint and of the logs after it, as far as frames may reach."""
    total, epoch = (0, 0) if base is None else (base.entry.bytes, base.epoch)
    for entry in manifest.logs:
        if entry.closed is None:
            with contextlib.suppress(FileNotFoundError):  # a missing log is judged when it is needed
                total += fs.size(path_in(directory, filenames.log_name(entry.number)))
        elif entry.closed.last_epoch > epoch:
            total += entry.closed.end_offset
    return total


def _start(
    directory: str,
    base: checkpoints.Checkpoint | None,
    config: StoreConfig,
    files: dict[int, tuple[int, int]],
    report: RecoveryReport,
) -> Replay:
    """The state of a checkpoint, or the empty one; `files` gives window and size class of each data file."""
    table = ObjectTable(config.shard_rows)
    places = FilePlaces(files, config.window_bytes)
    if base is None:
        return Replay(table, places, Catalog(), 0)
    path = path_in(directory, filenames.checkpoint_name(base.number))
    try:
        restore_table(table, base.epoch, *base.table, places)
    except CorruptionError as error:
        raise CorruptionError(f"{path}: {error}") from None
    catalog = Catalog.decode(base.catalog, path, base.catalog_offset)
    report.advance(base.entry.bytes)
    return Replay(table, places, catalog, base.epoch)


def _replay_logs(index_files: IndexFiles, replay: Replay, report: RecoveryReport) -> None:
    """Applies every frame after the checkpoint, in link order, and records how each log ended."""
    ended = index_files.last_log
    logs = []
    for entry in _ends_by_links(index_files, ended):
        if entry.number <= ended.number or (entry.closed is not None and entry.closed.last_epoch <= replay.epoch):
            logs.append(entry)
            continue
        ended, closed = _replay_log(index_files, entry, ended, replay, report)
        logs += closed
        report.logs += 1
    index_files.last_log = ended
    index_files.manifest = dataclasses.replace(index_files.manifest, logs=tuple(logs))


def _ends_by_links(index_files: IndexFiles, checkpointed: LogLink) -> list[LogEntry]:
    """The logs of the manifest, oldest first; an end that it doesn't record is taken from the next log's link.

    A log that has no end even then is the last one that was written to, or was made ahead and never used.
    """
    entries: list[LogEntry] = []
    following: LogLink | None = None
    known = index_files.manifest.logs
    for i in range(len(known) - 1, -1, -1):
        entry = known[i]
        link = None
        if entry.closed is None or (i and known[i - 1].closed is None):
            with contextlib.closing(_open_log(index_files, entry)) as reader:
                link = reader.link
        if entry.closed is None and following is not None:
            if link is None:
                continue  # never used
            if following.number != entry.number:
                raise CorruptionError(
                    f"{_log_path(index_files, entry)}: expected the next log to follow log {entry.number}, "
                    f"found that it follows log {following.number}"
                )
            entry = LogEntry(number=entry.number, closed=closed_log(following))
        elif entry.closed is None and entry.number == checkpointed.number:
            entry = LogEntry(number=entry.number, closed=closed_log(checkpointed))
        elif entry.closed is None and link is None and entry.number < checkpointed.number:
            continue
        entries.append(entry)
        following = link or following
    return entries[::-1]


def _log_path(index_files: IndexFiles, entry: LogEntry) -> str:
    return path_in(index_files.directory, filenames.log_name(entry.number))


def _open_log(index_files: IndexFiles, entry: LogEntry, admits: Exposure | None = None) -> LogReader:
    """A log that the manifest lists, up to its end if that is known."""
    path = _log_path(index_files, entry)
    end = None if entry.closed is None else entry.closed.end_offset
    try:
        return read_log(index_files.fs, path, index_files.manifest.uuid, entry.number, recorded_end=end, admits=admits)
    except FileNotFoundError:
        raise CorruptionError(f"{path}: the manifest lists this log; it isn't there") from None


def _replay_log(
    index_files: IndexFiles, entry: LogEntry, before: LogLink, replay: Replay, report: RecoveryReport
) -> tuple[LogLink, list[LogEntry]]:
    """Replays one log; returns how the chain ends now, and the log's entry, if it is part of the chain."""
    path = _log_path(index_files, entry)
    admits = Exposure(index_files.superblock) if entry.closed is None else None  # up to a known end all was exposed
    with contextlib.closing(_open_log(index_files, entry, admits)) as reader:
        if reader.link is not None:
            if reader.link != before and reader.link.last_epoch > replay.epoch:
                raise CorruptionError(
                    f"{path}: at offset {HEADER_BYTES}: expected a link to {before}, found {reader.link}"
                )
            for run in reader.runs():
                replay.apply(run)
                reach("recovery.frame_applied")
                report.advance(run.end_offset - run.offset)
        if entry.closed is not None:
            if entry.closed != closed_log(reader.end):
                raise CorruptionError(
                    f"{path}: expected it to end as {entry.closed}, found {reader.end}, {reader.stopped_because}"
                )
        else:
            _judge_tail(index_files, reader, replay, report)
        if reader.link is None:
            return before, []  # made, but nothing was ever committed to it
        return reader.end, [LogEntry(number=entry.number, closed=closed_log(reader.end))]


def _judge_tail(index_files: IndexFiles, reader: LogReader, replay: Replay, report: RecoveryReport) -> None:
    """Judges what follows the last good frame of the open log: nothing, a torn tail, or damage."""
    if not reader.tail_bytes:
        return
    known = None if reader.link is None else replay.epoch
    evidence = find_later_link(index_files.fs, reader.path, reader.uuid, reader.number, reader.end_offset, known)
    if evidence is not None:
        raise CorruptionError(
            f"{reader.path}: damaged at offset {reader.end_offset}: expected a frame, found {reader.stopped_because}; "
            f"the frame at offset {evidence.offset} says that epoch {evidence.durable_through} was on the disk"
        )
    end, tail_bytes, why = reader.end_offset, reader.tail_bytes, reader.stopped_because
    what = "a torn tail"
    if why == "not exposed":
        unexposed = reader.count_unexposed()
        report.unexposed_frames += unexposed
        what = f"{unexposed} frames that were no commits yet, a tail"
    report.tail_bytes += tail_bytes
    report.notes.append(f"{reader.path}: {what} of {tail_bytes} bytes at offset {end} dropped: {why}")


def _require_durable(epoch: int, index_files: IndexFiles, superblock: SuperblockFile, manifest: Manifest) -> None:
    """Raises CorruptionError unless all that is known to have been durable is there."""
    told = [(superblock.value.durable_epoch, filenames.SUPERBLOCK)]
    told += [(entry.epoch, filenames.MANIFEST) for entry in manifest.checkpoints]
    known, witness = max(told)
    if epoch < known:
        last = index_files.last_log.number
        raise CorruptionError(
            f"{path_in(index_files.directory, witness)}: says that epoch {known} was on the disk; the last one found "
            f"is {epoch}: {filenames.log_name(last) if last else 'a log'} is damaged, or a later one is gone"
        )


def _place_images(
    replay: Replay, data_files: DataFiles, writable: bool, check_pages: bool, report: RecoveryReport
) -> None:
    """Checks every page that a log brought in, then puts the images of live ones where their rows say."""
    if not replay.frames:
        return
    replay.finish()
    number_of = data_files.file_of_window
    if check_pages:
        replay.check_pages(
            lambda window, offset, n: data_files.read(number_of[window], offset, n),
            lambda window: data_files.path_of(window),
        )
    reach("recovery.images_checked")
    if not replay.image_count:
        return
    if writable:
        for window, offset, pages in replay.image_runs():
            data_files.write(number_of[window], offset, pages)
            reach("recovery.image_written")
    else:
        offsets = data_files.in_memory(replay.images())
        replay.place_images(data_files.windows_by_number()[IN_MEMORY], offsets)
    report.images_written = replay.image_count


def _following_epoch(epoch: int, superblock: SuperblockFile, report: RecoveryReport, config: StoreConfig) -> int:
    """The first epoch to hand out: never one that an unexposed frame may carry with other content."""
    following = max(epoch, superblock.value.epoch) + 1
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
