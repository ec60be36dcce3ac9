"""The index files: those that say what the current state is, and how one state of them becomes the next.

They are the manifest, the superblock, the open log and the one made ahead, the data files, and the counter of file
numbers. The leader opens and ends logs, between two groups; the checkpointer makes them ahead, keeps checkpoints and
collects garbage; both save the manifest, under a lock. Threads that build a transaction use the data files and the
counter.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial

from xtree.errors import CapacityError, CorruptionError, FormatVersionError
from xtree.persistence.base.config import MAX_EPOCH, StoreConfig
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.lock_ranks import MANIFEST, NUMBERS, RankedLock
from xtree.persistence.commit.log_gc import LogGarbage
from xtree.persistence.files import filenames
from xtree.persistence.files.data_files import DataFiles
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.manifest import CheckpointEntry, ClosedLog, LogEntry, Manifest
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem, SyncFailedError
from xtree.persistence.files.superblock import SuperblockFile
from xtree.persistence.files.wal import LogWriter


class FileNumbers:
    """Hands out file numbers, each once. Any thread may take one."""

    def __init__(self, following: int) -> None:
        self._lock = RankedLock(NUMBERS)
        self._following = following

    @property
    def following(self) -> int:
        """The number that the next call of take() gives."""
        return self._following

    def take(self) -> int:
        """A number that no file of this directory has had. Raises CapacityError when there is none left."""
        with self._lock:
            number = self._following
            if number > filenames.MAX_NUMBER:
                raise CapacityError(f"all {filenames.MAX_NUMBER} file numbers of the index are used up")
            self._following += 1
            return number


class IndexFiles:
    """Manifest, superblock, logs and data files of one directory, and the steps that change them."""

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        config: StoreConfig,
        manifest: Manifest,
        superblock: SuperblockFile,
        data_files: DataFiles,
        numbers: FileNumbers,
        last_log: LogLink,
    ) -> None:
        self.fs = fs
        self.directory = directory
        # Raises DirectoryLostError when another directory, or none, is at the index's path now.
        self.require_own: Callable[[], None] = partial(fs.require_own, directory)
        self.config = config
        self.superblock = superblock
        self.data_files = data_files
        self.numbers = numbers
        # last_log, log, rotations: written by the holder of the turn, between two groups. The checkpointer may read an
        # old value, and then looks once more. log_aged: set by the checkpointer, cleared when the log is closed.
        self.last_log = last_log  # how the log before the next one ended
        self.log: LogWriter | None = None
        self.spare: LogWriter | None = None  # made ahead and in the durable manifest, no frame in it yet
        self.log_aged = False  # the open log is to be followed by the next one, however short it is
        self.rotations = 0
        self.logs_collected = 0
        # Guards manifest and _closed_bytes, from reading the old manifest until the new one is durable.
        self._manifest_lock = RankedLock(MANIFEST, reentrant=True)  # held while the manifest is changed or saved
        # A number is in this set from before its file exists until a manifest lists it; `remove_unlisted` leaves such
        # files alone. Read and written with the GIL.
        self._making: set[int] = set()  # numbers of logs that are being made, which no manifest lists yet
        self._garbage: LogGarbage | None = None
        self._closed_bytes = 0
        self.manifest = manifest

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is on the disk, except for what has become known of logs since then."""
        return self._manifest

    @manifest.setter
    def manifest(self, manifest: Manifest) -> None:
        self._manifest = manifest
        covered = self.checkpoint_epoch
        self._closed_bytes = sum(
            log.closed.end_offset - HEADER_BYTES
            for log in manifest.logs
            if log.closed is not None and log.closed.last_epoch > covered
        )

    @property
    def checkpoint_epoch(self) -> int:
        """The epoch of the newest checkpoint, 0 when there is none."""
        return max((entry.epoch for entry in self._manifest.checkpoints), default=0)

    @property
    def uncovered_bytes(self) -> int:
        """Bytes of all logs that no checkpoint holds."""
        log = self.log
        return self._closed_bytes if log is None else self._closed_bytes + log.end_offset - HEADER_BYTES

    def save_manifest(
        self, checkpoints: tuple[CheckpointEntry, ...] | None = None, logs: tuple[LogEntry, ...] | None = None
    ) -> None:
        """Replaces the manifest by one with these checkpoints and logs, and the data files' current sizes."""
        with self._manifest_lock:
            manifest = dataclasses.replace(
                self.manifest,
                generation=self.manifest.generation + 1,
                checkpoints=self.manifest.checkpoints if checkpoints is None else checkpoints,
                logs=self.manifest.logs if logs is None else logs,
                data_files=tuple(self.data_files.entries()),
                next_number=self.numbers.following,
            )
            manifest.save(self.fs, self.directory)
            self.manifest = manifest
            self.data_files.listed = len(manifest.data_files)

    def verify_manifest(self) -> None:
        """Reads the manifest once more, as it is on the disk. Raises CorruptionError, FormatVersionError, OSError."""
        with self._manifest_lock:
            known = self.manifest
            try:
                found = Manifest.load(self.fs, self.directory)
            except FileNotFoundError as error:
                raise CorruptionError(f"{error.filename}: expected the manifest, found none") from None
            if found.uuid != known.uuid or found.generation < known.generation:  # a failed save may have succeeded
                raise CorruptionError(
                    f"{path_in(self.directory, filenames.MANIFEST)}: expected generation {known.generation} of "
                    f"index {known.uuid.hex()}, found generation {found.generation} of {found.uuid.hex()}"
                )

    def publish_superblock(self, sync: bool, **epochs: int) -> None:
        """Writes these epochs, and the mode in force, to the superblock."""
        self.require_own()
        self.superblock.publish(sync=sync, mode=self.config.durability, **epochs)

    def raise_ceiling(self, epoch: int) -> None:
        """Makes sure that the superblock reserves `epoch`: durably, before the epoch is handed out.

        The older copy's ceiling is then at most one stride lower: if a crash leaves only that copy, epochs of up to one
        stride above it may have been handed out. Raises CapacityError when there are no more epochs.
        """
        if epoch > MAX_EPOCH:
            raise CapacityError(f"all epochs of the index up to {MAX_EPOCH} are used up")
        if epoch > self.superblock.value.epoch_ceiling:
            self.publish_superblock(sync=True, epoch_ceiling=epoch)
        if epoch == self.superblock.value.epoch_ceiling:
            self.publish_superblock(sync=True, epoch_ceiling=epoch + self.config.epoch_stride)

    # Logs. Only the leader, between two groups, opens, rotates and closes them; only the checkpointer makes them ahead.

    def log_for(self, size: int, durable_through: int) -> LogWriter:
        """The log for a group whose frame has `size` bytes: the open one, or the next one when that is ready and due.

        `durable_through` is the last epoch that is known to be on the disk. Raises OSError before a frame is written.
        """
        log = self.log
        if log is None:
            return self._open_log(durable_through)
        spare = self.spare
        if spare is not None and (self.rotation_due or (not log.has_room(size) and spare.has_room(size))):
            return self._rotate(log, durable_through)
        return log

    @property
    def rotation_due(self) -> bool:
        """Whether the open log is large or old enough, and the next one is ready."""
        log = self.log
        if self.spare is None or log is None:
            return False
        return self.log_aged or log.bytes_since_start >= self.config.wal_rotate_bytes

    @property
    def spare_wanted(self) -> bool:
        """Whether a log should be made ahead: the open one is half used, or its time is up, and there is none."""
        log = self.log
        if self.spare is not None or log is None:
            return False
        half = min(log.ground_end, HEADER_BYTES + self.config.wal_rotate_bytes) // 2
        return self.log_aged or log.end_offset >= half

    def make_spare(self) -> bool:
        """Makes the next log: file, zeros and name on the disk, then the manifest that lists it.

        Returns False when the leader has needed a log meanwhile and made a later one. Raises OSError. A file that is of
        no use is deleted with the next garbage.
        """
        before = self.log
        size = 0 if before is None else 2 * before.ground_end
        spare = self._create_log(self.config.reserve_bytes)
        try:
            spare.fill_ahead(max(min(size, self.config.wal_segment_bytes), spare.ground_end))
            reach("log.spare_filled")
            with self._manifest_lock:
                logs = self.manifest.logs
                overtaken = bool(logs) and logs[-1].number > spare.number
                if not overtaken:
                    self.save_manifest(logs=(*logs, LogEntry(number=spare.number)))
        except BaseException as error:
            spare.close()
            self._making.discard(spare.number)
            if not isinstance(error, SyncFailedError):
                self.discard(filenames.log_name(spare.number))
            raise
        try:
            if not overtaken:
                reach("log.spare_listed")
        finally:  # from the moment it is listed it is the next log
            if overtaken:
                spare.close()
            else:
                self.spare = spare
            self._making.discard(spare.number)
        return not overtaken

    def sync_last_log(self) -> None:
        """Puts on the disk what recovery has found in the last log. Raises OSError, SyncFailedError."""
        number = self.last_log.number
        if any(entry.number == number for entry in self.manifest.logs):
            file = self.fs.open(path_in(self.directory, filenames.log_name(number)), "rw")
            try:
                file.sync()
            finally:
                file.close()

    def close_log(self) -> None:
        """Ends the open log between two groups, once it is synced: its end is known from here on."""
        if self.log is None:
            return
        log, self.log = self.log, None
        self.log_aged = False
        self.last_log = log.end
        log.close()
        closed = LogEntry(number=log.number, closed=closed_log(self.last_log))
        with self._manifest_lock:
            logs = tuple(closed if entry.number == log.number else entry for entry in self.manifest.logs)
            self.manifest = dataclasses.replace(self.manifest, logs=logs)

    def drop_spare(self) -> bool:
        """Drops the log made ahead, if there is one; its file can be deleted once a manifest without it is saved."""
        spare, self.spare = self.spare, None
        if spare is None:
            return False
        spare.close()
        self._forget_log(spare.number)
        return True

    def _rotate(self, log: LogWriter, durable_through: int) -> LogWriter:
        if not log.synced:
            log.sync()
            durable_through = log.last_epoch
        self.close_log()
        reach("log.closed")
        self._open_log(durable_through)
        self.rotations += 1
        assert self.log is not None
        return self.log

    def _open_log(self, durable_through: int) -> LogWriter:
        """The log made ahead, or one made now, with its link. If that can't be written, the log is forgotten."""
        log, self.spare = self.spare, None
        if log is None:
            log = self._create_log(self.config.reserve_bytes // 2)
        try:
            with self._manifest_lock:
                if all(entry.number != log.number for entry in self.manifest.logs):
                    self.save_manifest(logs=(*self.manifest.logs, LogEntry(number=log.number)))
            log.follow(self.last_log)
            log.write_link(durable_through)
        except BaseException as error:
            log.close()
            self._forget_log(log.number)
            if not isinstance(error, SyncFailedError):
                self.discard(filenames.log_name(log.number))
            raise
        finally:
            self._making.discard(log.number)
        self.log = log
        reach("log.opened")
        return log

    def _create_log(self, keep_free: int) -> LogWriter:
        number = self.numbers.take()
        self._making.add(number)
        try:
            return LogWriter.create(
                self.fs,
                self.directory,
                self.manifest.uuid,
                number,
                LogLink(),
                self.config.wal_fill_bytes,
                self.config.wal_fill_limit_bytes,
                keep_free,
                self.config.durability,
            )
        except BaseException:
            self._making.discard(number)
            raise

    def _forget_log(self, number: int) -> None:
        """Drops a log that nothing was ever committed to; its file can be deleted once the manifest on the disk doesn't
        list it."""
        with self._manifest_lock:
            logs = tuple(entry for entry in self.manifest.logs if entry.number != number)
            self.manifest = dataclasses.replace(self.manifest, logs=logs)

    # Checkpoints and garbage. For the checkpointer, or a thread that acts in its place.

    def keep(self, entry: CheckpointEntry, now: float, hold_back: bool = True, collect: bool = True) -> None:
        """Adds a written checkpoint to the manifest, and drops logs that the oldest checkpoint kept makes useless.

        Without `hold_back` the fields of StoreConfig that let logs stay longer don't count; without `collect` all stay.
        """
        garbage = self._log_garbage
        with self._manifest_lock:
            checkpoints = (*self.manifest.checkpoints, entry)[-self.config.checkpoints_kept :]
            logs = self.manifest.logs
            garbage.count_checkpoint(entry, logs)
            going: frozenset[int] = frozenset()
            if collect and (self.config.gc_on_checkpoint or not hold_back):
                going = garbage.going(checkpoints, logs, now, hold_back)
            self.save_manifest(checkpoints, tuple(log for log in logs if log.number not in going))
        self._gone(going)

    def discard(self, name: str) -> None:
        """Deletes a file whose listing has failed, unless the manifest on the disk lists it all the same.

        A file that can't be deleted now goes with the next garbage. Not called after a failed sync, which poisons.
        """
        with self._manifest_lock, contextlib.suppress(OSError, CorruptionError, FormatVersionError):
            if name not in _numbered(Manifest.load(self.fs, self.directory)):
                self.fs.unlink(path_in(self.directory, name))

    def collect_logs(self, now: float) -> None:
        """Drops logs that may go from the manifest, makes that durable, and deletes their files."""
        with self._manifest_lock:
            logs = self.manifest.logs
            going = self._log_garbage.going(self.manifest.checkpoints, logs, now)
            if not going:
                return
            self.save_manifest(logs=tuple(log for log in logs if log.number not in going))
        self._gone(going)
        self.remove_unlisted()

    @property
    def _log_garbage(self) -> LogGarbage:
        if self._garbage is None:  # at the first need, when recovery has found every log's end
            self._garbage = LogGarbage(self.config, self.manifest.checkpoints, self.manifest.logs)
        return self._garbage

    def _gone(self, numbers: frozenset[int]) -> None:
        self._log_garbage.forget(numbers)
        self.logs_collected += len(numbers)

    def remove_unlisted(self) -> None:
        """Deletes checkpoints, logs and temporary files that the manifest doesn't list and nobody is making."""
        names = self.fs.listdir(self.directory)  # before the lists: what is made from here on isn't looked at
        with self._manifest_lock:
            listed = _numbered(self.manifest) | {filenames.log_name(number) for number in self._making.copy()}
            for name in names:
                if filenames.is_temporary(name) and self.fs.exists(path_in(self.directory, name)):
                    self.fs.unlink(path_in(self.directory, name))
        for name in names:
            numbered = filenames.parse_checkpoint(name) is not None or filenames.parse_log(name) is not None
            if numbered and name not in listed:
                with contextlib.suppress(FileNotFoundError):  # a log that couldn't be made
                    self.fs.unlink(path_in(self.directory, name))

    def remove_leftovers(self) -> None:
        """Deletes every file that the manifest doesn't list: its making failed, or was cut off, before it was listed.

        Only called before the first write after an open, while no transaction and no checkpoint can be making a file.
        """
        self.remove_unlisted()
        listed = {filenames.data_name(entry.size_class, entry.number) for entry in self.manifest.data_files}
        for name in self.fs.listdir(self.directory):
            if filenames.parse_data(name) is not None and name not in listed:
                self.fs.unlink(path_in(self.directory, name))

    def close(self) -> None:
        """Closes every descriptor; writes nothing."""
        for log in (self.log, self.spare):
            if log is not None:
                log.close()
        self.log = self.spare = None
        self.data_files.close()
        self.superblock.close()


def _numbered(manifest: Manifest) -> set[str]:
    """The names of the checkpoints and logs that a manifest lists."""
    names = {filenames.checkpoint_name(entry.number) for entry in manifest.checkpoints}
    return names | {filenames.log_name(entry.number) for entry in manifest.logs}


def closed_log(link: LogLink) -> ClosedLog:
    """A log's end as the manifest records it."""
    return ClosedLog(end_offset=link.end_offset, last_epoch=link.last_epoch, last_crc=link.last_crc)
