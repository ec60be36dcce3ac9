"""The directory scan: a manifest made anew from the files themselves, when the one on disk can't be read.

It trusts only what carries a valid CRC and this index's UUID, and of the logs only one linked chain: the one that ends
in the newest log with a valid first frame.
"""

from __future__ import annotations

import contextlib

from xtree.errors import CorruptionError
from xtree.persistence.base.config import StoreConfig
from xtree.persistence.files import checkpoint as checkpoints
from xtree.persistence.files import filenames
from xtree.persistence.files.data_files import read_header
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.manifest import CheckpointEntry, ClosedLog, DataFileEntry, LogEntry, Manifest
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.wal_reader import read_log


def rebuild_manifest(fs: FileSystem, directory: str, uuid: bytes) -> Manifest:
    """A manifest of what the directory holds of index `uuid`. Raises CorruptionError, FormatVersionError, OSError."""
    names = fs.listdir(directory)
    checkpoints_, ends = _checkpoints(fs, directory, uuid, names)
    data_files, window_bytes = _data_files(fs, directory, uuid, names)
    stored = StoreConfig().to_stored() if window_bytes is None else {"window_bytes": window_bytes}
    logs = _chain(_links(fs, directory, uuid, names), ends)
    numbers = [entry.number for entries in (checkpoints_, logs, data_files) for entry in entries]
    return Manifest(
        uuid=uuid,
        config=stored,
        checkpoints=tuple(checkpoints_),
        logs=tuple(logs),
        data_files=tuple(data_files),
        next_number=max(numbers, default=0) + 1,
    )


def _checkpoints(
    fs: FileSystem, directory: str, uuid: bytes, names: list[str]
) -> tuple[list[CheckpointEntry], dict[int, LogLink]]:
    """The checkpoints that can be read, oldest first, and the log ends that they record, by log number."""
    found: list[CheckpointEntry] = []
    ends: dict[int, LogLink] = {}
    for name in names:
        number = filenames.parse_checkpoint(name)
        if number is None:
            continue
        try:
            one = checkpoints.read(fs, directory, number, uuid)
        except CorruptionError:
            continue  # an older one, or the logs from the beginning, will have to do
        found.append(one.entry)
        ends[one.last_log.number] = one.last_log
    return sorted(found, key=lambda entry: (entry.epoch, entry.number)), ends


def _links(fs: FileSystem, directory: str, uuid: bytes, names: list[str]) -> dict[int, LogLink]:
    """What each log with a valid first frame says about the log before it."""
    links: dict[int, LogLink] = {}
    for name in names:
        number = filenames.parse_log(name)
        if number is None:
            continue
        try:
            reader = read_log(fs, path_in(directory, name), uuid, number)
        except CorruptionError:
            continue  # if the chain needs it, the chain breaks there and its epochs are missed
        reader.close()
        if reader.link is not None:
            links[number] = reader.link
    return links


def _chain(links: dict[int, LogLink], ends: dict[int, LogLink]) -> list[LogEntry]:
    """The chain that ends in the newest log, oldest first, each log closed where its successor says."""
    chain: list[LogEntry] = []
    number = max(links, default=0)
    end = ends.get(number)
    while number in links:
        closed = None if end is None else ClosedLog(end.end_offset, end.last_epoch, end.last_crc)
        chain.append(LogEntry(number, closed))
        end = links[number]
        number = end.number
    return chain[::-1]


def _data_files(
    fs: FileSystem, directory: str, uuid: bytes, names: list[str]
) -> tuple[list[DataFileEntry], int | None]:
    found: list[DataFileEntry] = []
    window_bytes: int | None = None
    for name in names:
        parsed = filenames.parse_data(name)
        if parsed is None:
            continue
        size_class, number = parsed
        with contextlib.closing(fs.open(path_in(directory, name), "r")) as file:
            try:
                header = read_header(file, uuid)
            except CorruptionError:
                continue  # made at the moment of a crash; a row that needs it will say so
            if (header[0], header[2]) == (number, size_class):
                window_bytes = header[1]
                found.append(DataFileEntry(number, size_class, file.size()))
    return sorted(found, key=lambda entry: entry.number), window_bytes
