"""The files of an index, each read by itself, whatever state the others are in."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.base.config import StoreConfig
from xtree.persistence.commit.index_files import closed_log
from xtree.persistence.files import checkpoint as checkpoints
from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import Checkpoint
from xtree.persistence.files.file_header import HEADER_BYTES, PREFIX
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.manifest import LogEntry, Manifest
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import COPIES, Superblock
from xtree.persistence.files.wal_reader import LogReader, find_later_link, read_log
from xtree.persistence.pages.file_places import FilePlaces
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.pages.stored_table import restore_table
from xtree.persistence.recovery.manifest_rebuild import rebuild_manifest
from xtree.persistence.recovery.recovery import Exposure

__all__ = ["EVERY_EPOCH", "Directory", "Log", "READ_ERRORS"]

READ_ERRORS = (CorruptionError, FormatVersionError, OSError)
EVERY_EPOCH = 2**64 - 2  # what is visible at this epoch is all that there is
Copy = Superblock | Exception


@dataclass
class Log:
    """A log as far as its chain goes, and what ends it.

    `end` is where its own frames end, None when not even its header can be read. `recorded` is the end that the
    manifest or the next log's link has recorded. `damage` says what is wrong at `end`, `evidence` why it
    is no torn tail.
    """

    number: int
    recorded: LogLink | None = None
    link: LogLink | None = None
    end: LogLink | None = None
    frames: int = 0
    tail_bytes: int = 0
    stopped_because: str = ""
    unexposed: int = 0
    damage: Exception | None = None
    stray_at: int | None = None  # offset of the first byte between two frames that isn't zero
    evidence: str | None = None  # why a bad frame is damage, not the beginning of a torn tail
    known_epoch: int = 0  # of a commit that was in it once

    @property
    def name(self) -> str:
        """The name of its file."""
        return filenames.log_name(self.number)

    @property
    def whole(self) -> bool:
        """Whether it ends where it should, or in a tail that may be cut off."""
        return self.end is not None and self.damage is None and self.evidence is None

    @property
    def holds_commits(self) -> bool:
        """Whether there is a group frame in it."""
        return self.frames > 0


class Directory:
    """What can be read of the files in a directory: superblock copies, manifest, checkpoints, logs.

    In place of a value that can't be read stands the exception that says so. `uuid` is that of the superblock, or else
    of the manifest, or else of most files; None when there is none.
    """

    def __init__(self, fs: FileSystem, path: str, advance: Callable[[int], object] = lambda n: None) -> None:
        self.fs = fs
        self.path = path
        self._advance = advance
        self.names = fs.listdir(path)
        self.copies: list[Copy] = self._read_copies()
        self.manifest_error: Exception | None = None
        self.manifest = self._load_manifest()
        self.uuid = self._find_uuid()
        if self.manifest is None and self.uuid is not None:
            with contextlib.suppress(*READ_ERRORS):
                self.manifest = rebuild_manifest(fs, path, self.uuid)
        self.checkpoints: dict[int, Checkpoint | Exception] = {}
        self.logs: dict[int, Log] = {}
        if self.uuid is not None:
            self._read_checkpoints(self.uuid)
            self._read_logs(self.uuid)

    @property
    def unborn(self) -> bool:
        """Whether the making of an index began here and never ended."""
        readable = any(isinstance(copy, Superblock) for copy in self.copies)
        return not readable and not any(
            self.fs.size(self.place(name)) for name in self.names
            if filenames.parse_checkpoint(name) or filenames.parse_log(name) or filenames.parse_data(name)
        )  # fmt: skip

    @property
    def superblock(self) -> Superblock | None:
        """The copy that counts."""
        readable = [copy for copy in self.copies if isinstance(copy, Superblock)]
        return max(readable, key=lambda copy: copy.generation, default=None)

    @property
    def clean(self) -> bool:
        """Whether the index was closed: a manifest without logs says so."""
        return self.manifest is not None and not self.manifest.logs

    @property
    def good_checkpoints(self) -> list[Checkpoint]:
        """Those that the manifest lists and that can be read, newest first."""
        listed = () if self.manifest is None else self.manifest.checkpoints
        found = [self.checkpoints.get(entry.number) for entry in listed]
        readable = [one for one in found if isinstance(one, Checkpoint)]
        return sorted(readable, key=lambda one: (one.epoch, one.number), reverse=True)

    @property
    def known_epoch(self) -> int:
        """The last epoch that the files say was committed."""
        epochs = [log.known_epoch for log in self.logs.values()]
        if self.superblock is not None:
            epochs.append(self.superblock.durable_epoch)
        if self.manifest is not None:
            epochs += [entry.epoch for entry in self.manifest.checkpoints]
        return max(epochs, default=0)

    def place(self, name: str) -> str:
        """The path of a file."""
        return path_in(self.path, name)

    def size(self, name: str) -> int | None:
        """The size of a file, None when there is none."""
        try:
            return self.fs.size(self.place(name))
        except FileNotFoundError:
            return None

    @property
    def stored(self) -> dict[str, int]:
        """The settings fixed at creation."""
        return StoreConfig().to_stored() if self.manifest is None else self.manifest.config

    def table_of(self, checkpoint: Checkpoint) -> ObjectTable:
        """The rows of a checkpoint. Raises CorruptionError."""
        files = {entry.number: (i, entry.size_class) for i, entry in enumerate(checkpoint.data_files)}
        table = ObjectTable()
        restore_table(table, checkpoint.epoch, *checkpoint.table, FilePlaces(files, self.stored["window_bytes"]))
        return table

    def listed(self) -> set[str]:
        """The names that the manifest knows."""
        if self.manifest is None:
            return set()
        return (
            {filenames.checkpoint_name(entry.number) for entry in self.manifest.checkpoints}
            | {filenames.log_name(entry.number) for entry in self.manifest.logs}
            | {filenames.data_name(entry.size_class, entry.number) for entry in self.manifest.data_files}
        )

    def _read_copies(self) -> list[Copy]:
        path = self.place(filenames.SUPERBLOCK)
        try:
            data = self.fs.read_file(path)
        except OSError as error:
            return [error] * COPIES
        return [_copy(data, offset, path) for offset in range(0, COPIES * HEADER_BYTES, HEADER_BYTES)]

    def _load_manifest(self) -> Manifest | None:
        try:
            return Manifest.load(self.fs, self.path)
        except READ_ERRORS as error:
            self.manifest_error = error
            return None

    def _find_uuid(self) -> bytes | None:
        if self.superblock is not None:
            return self.superblock.uuid
        if self.manifest is not None:
            return self.manifest.uuid
        seen: Counter[bytes] = Counter()
        for name in self.names:
            if not re.search(r"\.(ckpt|log|xd)$", name):
                continue
            with (
                contextlib.suppress(OSError),
                contextlib.closing(self.fs.open(self.place(name), "r")) as file,
            ):
                head = file.pread(PREFIX.size, 0)
                if len(head) == PREFIX.size and any(head):
                    seen[PREFIX.unpack(head)[4]] += 1
        return seen.most_common(1)[0][0] if seen else None

    def _read_checkpoints(self, uuid: bytes) -> None:
        entries = {} if self.manifest is None else {entry.number: entry for entry in self.manifest.checkpoints}
        found = {filenames.parse_checkpoint(name) for name in self.names} - {None}
        for number in sorted({*entries, *(number for number in found if number is not None)}):
            try:
                self.checkpoints[number] = checkpoints.read(self.fs, self.path, entries.get(number, number), uuid)
            except READ_ERRORS as error:
                self.checkpoints[number] = error
            self._advance(self.size(filenames.checkpoint_name(number)) or 0)

    # Logs. A log's end is known from the manifest, the next log's link or a checkpoint; then frames must reach it.

    def _read_logs(self, uuid: bytes) -> None:
        entries = [] if self.manifest is None else list(self.manifest.logs)
        listed = {entry.number for entry in entries}
        found = (filenames.parse_log(name) for name in self.names)
        entries += [LogEntry(number) for number in found if number is not None and number not in listed]
        following: LogLink | None = None
        for entry in sorted(entries, key=lambda entry: entry.number, reverse=True):
            recorded = self._recorded_end(entry, following)
            log = self.logs[entry.number] = self._read_log(uuid, entry.number, recorded, listed)
            following = log.link or following
            self._advance(self.size(log.name) or 0)
        self.logs = dict(sorted(self.logs.items()))

    def _recorded_end(self, entry: LogEntry, following: LogLink | None) -> LogLink | None:
        if entry.closed is not None:
            end = entry.closed
            return LogLink(entry.number, end.last_epoch, end.end_offset, end.last_crc)
        ends = [following, *(one.last_log for one in self.checkpoints.values() if isinstance(one, Checkpoint))]
        return next((end for end in ends if end is not None and end.number == entry.number), None)

    def _read_log(self, uuid: bytes, number: int, recorded: LogLink | None, listed: set[int]) -> Log:
        log = Log(number, recorded)
        path = self.place(log.name)
        admits = self._exposure() if recorded is None and number in listed else None
        try:
            reader = read_log(
                self.fs, path, uuid, number,
                recorded_end=None if recorded is None else recorded.end_offset, admits=admits,
            )  # fmt: skip
        except READ_ERRORS as error:
            log.damage = error
            return log
        with contextlib.closing(reader):
            try:
                self._follow(reader, log)
            except READ_ERRORS as error:
                log.end, log.damage = reader.end, error
        return log

    def _follow(self, reader: LogReader, log: Log) -> None:
        log.link = reader.link
        end = reader.end_offset
        for run in reader.runs():
            log.frames += len(run)
            if log.stray_at is None:
                log.stray_at = reader.stray_byte(end, run)
            end = run.end_offset
        log.end, log.stopped_because, log.tail_bytes = reader.end, reader.stopped_because, reader.tail_bytes
        if log.recorded is not None:
            if closed_log(log.recorded) != closed_log(reader.end):
                log.evidence = f"log {log.number} ends at offset {log.recorded.end_offset} by what is recorded of it"
                log.known_epoch = log.recorded.last_epoch
            return
        if log.tail_bytes:
            known = None if reader.link is None else reader.last_epoch
            later = find_later_link(self.fs, reader.path, reader.uuid, log.number, reader.end_offset, known)
            if later is not None:
                log.evidence = (
                    f"the frame at offset {later.offset} says that epoch {later.durable_through} was on the disk"
                )
                log.known_epoch = later.last_epoch
            if log.stopped_because == "not exposed":
                log.unexposed = reader.count_unexposed()

    def _exposure(self) -> Any:
        value = self.superblock
        if value is None:
            return None
        readable = sum(isinstance(copy, Superblock) for copy in self.copies)
        return Exposure(SimpleNamespace(value=value, copies_readable=readable))  # type: ignore[arg-type]


def _copy(data: bytes, offset: int, path: str) -> Copy:
    try:
        return Superblock.decode(data[offset : offset + HEADER_BYTES], path, offset)
    except (CorruptionError, FormatVersionError) as error:
        return error

