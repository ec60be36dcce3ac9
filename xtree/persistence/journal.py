"""The journal: the files that say what the current state is, and how one state of them becomes the next.

Manifest, superblock, the open log, the data files and the counter that numbers them. The leader owns it; only
`take_number` and the data files are also used by threads that build a transaction.
"""

from __future__ import annotations

import dataclasses
import os
import threading

from xtree.persistence import filenames
from xtree.persistence.config import Config
from xtree.persistence.crash_points import reach
from xtree.persistence.data_files import DataFiles
from xtree.persistence.frame import LogLink
from xtree.persistence.manifest import CheckpointEntry, ClosedLog, LogEntry, Manifest
from xtree.persistence.platform_fs import FileSystem
from xtree.persistence.superblock import SuperblockFile
from xtree.persistence.wal import LogWriter


class FileNumbers:
    """Hands out file numbers, each once. Any thread may take one."""

    def __init__(self, following: int) -> None:
        self._lock = threading.Lock()
        self._following = following

    @property
    def following(self) -> int:
        """The number that the next call of take() gives."""
        return self._following

    def take(self) -> int:
        """A number that no file of this directory has had."""
        with self._lock:
            number = self._following
            self._following += 1
            return number


class Journal:
    """Manifest, superblock, open log and data files of one directory, and the steps that change them."""

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        config: Config,
        manifest: Manifest,
        superblock: SuperblockFile,
        data_files: DataFiles,
        numbers: FileNumbers,
        last_log: LogLink,
    ) -> None:
        self.fs = fs
        self.directory = directory
        self.config = config
        self.manifest = manifest
        self.superblock = superblock
        self.data_files = data_files
        self.numbers = numbers
        self.last_log = last_log  # how the log before the next one ended
        self.log: LogWriter | None = None

    @property
    def checkpoint_epoch(self) -> int:
        """The epoch of the newest checkpoint, 0 when there is none."""
        return max((entry.epoch for entry in self.manifest.checkpoints), default=0)

    def save_manifest(
        self, checkpoints: tuple[CheckpointEntry, ...] | None = None, logs: tuple[LogEntry, ...] | None = None
    ) -> None:
        """Replaces the manifest by one with these checkpoints and logs, and the data files' sizes of now."""
        self.data_files.manifest_needed = False
        manifest = dataclasses.replace(
            self.manifest,
            generation=self.manifest.generation + 1,
            checkpoints=self.manifest.checkpoints if checkpoints is None else checkpoints,
            logs=self.manifest.logs if logs is None else logs,
            data_files=tuple(self.data_files.entries()),
            next_number=self.numbers.following,
        )
        try:
            manifest.save(self.fs, self.directory)
        except BaseException:
            self.data_files.manifest_needed = True
            raise
        self.manifest = manifest

    def publish_superblock(self, sync: bool, **epochs: int) -> None:
        """Writes these epochs, and the mode in force, to the superblock."""
        self.superblock.publish(sync=sync, mode=self.config.durability, **epochs)

    def raise_ceiling(self, epoch: int) -> None:
        """Makes sure that the superblock reserves `epoch`: durably, before the epoch is handed out."""
        if epoch >= self.superblock.value.epoch_ceiling:
            self.publish_superblock(sync=True, epoch_ceiling=epoch + self.config.epoch_stride)

    def open_log(self, durable_through: int) -> LogWriter:
        """The open log; if there is none, one is made, listed in the durable manifest and linked to its predecessor."""
        if self.log is None:
            number = self.numbers.take()
            log = LogWriter.create(
                self.fs,
                self.directory,
                self.manifest.uuid,
                number,
                self.last_log,
                self.config.wal_fill_bytes,
                self.config.wal_fill_limit_bytes,
                self.config.reserve_bytes // 2,
                self.config.durability,
            )
            try:
                self.save_manifest(logs=(*self.manifest.logs, LogEntry(number=number, closed=None)))
                log.write_link(durable_through)
            except BaseException:
                log.close()
                self._forget_log(number)
                raise
            self.log = log
            reach("journal.log_opened")
        return self.log

    def _forget_log(self, number: int) -> None:
        """Drops a log that nothing was ever committed to; its file goes with the next garbage."""
        logs = tuple(entry for entry in self.manifest.logs if entry.number != number)
        self.manifest = dataclasses.replace(self.manifest, logs=logs)

    def close_log(self) -> None:
        """Ends the open log between two groups, once it is synced: its end is known from here on."""
        if self.log is None:
            return
        log, self.log = self.log, None
        self.last_log = log.end
        log.close()
        closed = LogEntry(number=log.number, closed=closed_log(self.last_log))
        logs = tuple(closed if entry.number == log.number else entry for entry in self.manifest.logs)
        self.manifest = dataclasses.replace(self.manifest, logs=logs)

    def keep(self, entry: CheckpointEntry) -> None:
        """Makes a written checkpoint part of the manifest, and drops what the oldest one kept makes useless."""
        checkpoints = (*self.manifest.checkpoints, entry)[-self.config.checkpoints_kept :]
        genesis = len(checkpoints) < self.config.checkpoints_kept
        covered = 0 if genesis else min(kept.epoch for kept in checkpoints)
        logs = tuple(log for log in self.manifest.logs if log.closed is None or log.closed.last_epoch > covered)
        self.save_manifest(checkpoints=checkpoints, logs=logs)

    def remove_unlisted(self) -> None:
        """Deletes checkpoints, logs and temporary files that the manifest doesn't list."""
        listed = {filenames.checkpoint_name(entry.number) for entry in self.manifest.checkpoints}
        listed |= {filenames.log_name(entry.number) for entry in self.manifest.logs}
        for name in self.fs.listdir(self.directory):
            numbered = filenames.parse_checkpoint(name) is not None or filenames.parse_log(name) is not None
            if (numbered and name not in listed) or filenames.is_temporary(name):
                self.fs.unlink(os.path.join(self.directory, name))

    def remove_unlisted_data(self) -> None:
        """Deletes data files that the manifest doesn't list: a crash came before any page in them was committed.

        Only before the first write after an open, while no transaction can be making a file.
        """
        listed = {filenames.data_name(entry.size_class, entry.number) for entry in self.manifest.data_files}
        for name in self.fs.listdir(self.directory):
            if filenames.parse_data(name) is not None and name not in listed:
                self.fs.unlink(os.path.join(self.directory, name))

    def close(self) -> None:
        """Closes every descriptor; writes nothing."""
        if self.log is not None:
            self.log.close()
            self.log = None
        self.data_files.close()
        self.superblock.close()


def closed_log(link: LogLink) -> ClosedLog:
    """A log's end as the manifest records it."""
    return ClosedLog(end_offset=link.end_offset, last_epoch=link.last_epoch, last_crc=link.last_crc)
