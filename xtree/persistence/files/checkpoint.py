"""The checkpoint: the object table and the whole catalog at one epoch, from which recovery starts.

The file is a header page (file_header.py) with the number of handles of each shard, the rows of live pages (32 bytes
each, by rising handle), the data files that they name, the tags of all handles (a byte each, shard by shard) and zeros
up to a multiple of 8, the catalog and zeros up to a multiple of 8, and a footer. The footer's CRC covers the whole file
with the CRC field as zero. All lengths are in the header; they must add up to the size of the file before anything is
read by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

import numpy as np
from crc32c import crc32c

from xtree.errors import CorruptionError
from xtree.persistence.base.config import MAX_EPOCH
from xtree.persistence.files.file_header import HEADER_BYTES, PREFIX, pack_header, unpack_header
from xtree.persistence.files.filenames import MAX_NUMBER, SIZE_CLASSES, checkpoint_name
from xtree.persistence.files.frame import CRC, LINK_BYTES, LogLink, aligned
from xtree.persistence.files.manifest import CheckpointEntry, DataFileEntry
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import Buffer, FileSystem, Path

MAGIC = b"XTREECKP"
FORMAT = 3
BODY = Struct("<QQQQI4xQ")  # number, epoch, live rows, bytes of catalog, data files, bytes of the file
assert BODY.size == 48
SHARDS = 64
COUNTS = Struct(f"<{SHARDS}Q")  # handles of each shard; after the body and a LogLink
COUNTS_OFFSET = PREFIX.size + BODY.size + LINK_BYTES

Table = tuple[Sequence[int], Buffer, Buffer]  # handles of each shard, their tags, live rows: ObjectTable.snapshot

OFFSET_UNIT = 4096  # bytes: every slot begins at a multiple of it
ROW_BYTES = 32
ROW = np.dtype(
    [
        ("node_id", "<u8"),
        ("birth", "<u8"),
        ("file_number", "<u4"),
        ("offset_4k", "<u4"),  # of the slot, in OFFSET_UNIT
        ("crc", "<u4"),
        ("kind", "u1"),
        ("size_class", "u1"),
        ("reserved", "<u2"),
    ]
)
assert ROW.itemsize == ROW_BYTES

DATA_FILE = Struct("<IB3xQ")  # number, size class, synced bytes
DATA_FILE_BYTES = 16
assert DATA_FILE.size == DATA_FILE_BYTES

FOOTER = Struct("<8sIIQ")  # magic, crc, zero, bytes of the file
FOOTER_BYTES = 24
FOOTER_CRC_OFFSET = 8
FOOTER_MAGIC = b"XTCKPEND"
assert FOOTER.size == FOOTER_BYTES


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose CRC is right; `table` and `catalog` are as they were given to `write`.

    Tags and rows are views of the mapped file, which stays mapped as long as one of them exists.
    """

    number: int
    epoch: int
    table: tuple[tuple[int, ...], memoryview, memoryview]
    catalog: bytes
    data_files: tuple[DataFileEntry, ...]
    last_log: LogLink
    catalog_offset: int  # in the file, for messages
    entry: CheckpointEntry  # as the manifest lists it


def write(
    fs: FileSystem,
    directory: Path,
    number: int,
    uuid: bytes,
    epoch: int,
    table: Table,
    catalog: bytes,
    data_files: Sequence[DataFileEntry],
    last_log: LogLink,
) -> CheckpointEntry:
    """Writes a checkpoint's file, durably, and returns its entry for the manifest. The data files must be synced."""
    handles, tags, rows = list(table[0]), memoryview(table[1]), memoryview(table[2])
    if tags.nbytes != sum(handles) or rows.nbytes % ROW_BYTES:
        raise ValueError(
            f"{sum(handles)} handles have a byte each and rows {ROW_BYTES}, not {tags.nbytes} and {rows.nbytes} in all"
        )
    row_count = rows.nbytes // ROW_BYTES
    files = b"".join(DATA_FILE.pack(entry.number, entry.size_class, entry.synced_bytes) for entry in data_files)
    length = _length(row_count, len(data_files), tags.nbytes, len(catalog))
    body = BODY.pack(number, epoch, row_count, len(catalog), len(data_files), length)
    shards = COUNTS.pack(*handles, *[0] * (SHARDS - len(handles)))
    header = pack_header(MAGIC, FORMAT, uuid, body + last_log.encode() + shards)
    parts: list[Buffer] = [header, rows, files, tags, bytes(-tags.nbytes % 8), catalog, bytes(-len(catalog) % 8)]
    crc = 0
    for part in [*parts, FOOTER.pack(FOOTER_MAGIC, 0, 0, length)]:
        crc = crc32c(part, crc)
    parts.append(FOOTER.pack(FOOTER_MAGIC, crc, 0, length))
    fs.write_atomically(path_in(directory, checkpoint_name(number)), *parts)
    return CheckpointEntry(number, epoch, length, crc)


def read(fs: FileSystem, directory: Path, entry: CheckpointEntry | int, uuid: bytes) -> Checkpoint:
    """A checkpoint by its manifest entry, or by number when there is no manifest; all of it verified.

    Raises FileNotFoundError, CorruptionError, FormatVersionError.
    """
    number = entry if isinstance(entry, int) else entry.number
    path = path_in(directory, checkpoint_name(number))
    file = fs.open(path, "r")
    try:
        size = file.size()
        header = file.pread(HEADER_BYTES, 0)
        fields = unpack_header(header, MAGIC, FORMAT, BODY, path, uuid)[1]
        found_number, epoch, row_count, catalog_bytes, data_file_count, length = fields
        handles = COUNTS.unpack_from(header, COUNTS_OFFSET)
        expected = _length(row_count, data_file_count, sum(handles), catalog_bytes)
        if not length == size == expected:
            raise CorruptionError(f"{path}: expected a file of {expected} bytes by its header, found {size}")
        data = memoryview(file.map(size))
    finally:
        file.close()
    crc = _verify(data, path, length)
    if found_number != number or epoch > MAX_EPOCH:
        raise CorruptionError(
            f"{path}: expected checkpoint {number} and an epoch up to {MAX_EPOCH}, found checkpoint {found_number} "
            f"and epoch {epoch}"
        )
    last_log = LogLink.decode(header[COUNTS_OFFSET - LINK_BYTES : COUNTS_OFFSET])
    if last_log.number > MAX_NUMBER:
        raise CorruptionError(f"{path}: expected the end of a log, found {last_log}")
    if isinstance(entry, CheckpointEntry) and (epoch, length, crc) != (entry.epoch, entry.bytes, entry.crc):
        raise CorruptionError(
            f"{path}: expected epoch {entry.epoch}, {entry.bytes} bytes and the CRC {entry.crc:#010x} by the "
            f"manifest, found {epoch}, {length} and {crc:#010x}"
        )
    files_at = HEADER_BYTES + ROW_BYTES * row_count
    tags_at = files_at + DATA_FILE_BYTES * data_file_count
    catalog_at = tags_at + aligned(sum(handles))
    return Checkpoint(
        number=number,
        epoch=epoch,
        table=(handles, data[tags_at : tags_at + sum(handles)], data[HEADER_BYTES:files_at]),
        catalog=bytes(data[catalog_at : catalog_at + catalog_bytes]),
        data_files=_data_files(data[files_at:tags_at], path, files_at),
        last_log=last_log,
        catalog_offset=catalog_at,
        entry=CheckpointEntry(number, epoch, length, crc),
    )


def _length(rows: int, data_files: int, handles: int, catalog_bytes: int) -> int:
    records = ROW_BYTES * rows + DATA_FILE_BYTES * data_files
    return HEADER_BYTES + records + aligned(handles) + aligned(catalog_bytes) + FOOTER_BYTES


def _verify(data: memoryview, path: str, length: int) -> int:
    if data.nbytes != length:
        raise CorruptionError(f"{path}: expected {length} bytes, found {data.nbytes}")
    at = length - FOOTER_BYTES
    magic, found, _, found_length = FOOTER.unpack_from(data, at)
    crc = crc32c(data[: at + FOOTER_CRC_OFFSET])
    crc = crc32c(data[at + FOOTER_CRC_OFFSET + CRC.size :], crc32c(bytes(CRC.size), crc))
    if (magic, found_length, found) != (FOOTER_MAGIC, length, crc):
        raise CorruptionError(
            f"{path}: at offset {at}: expected a footer with the CRC {crc:#010x}, found {bytes(data[at:])!r}"
        )
    return crc


def _data_files(table: memoryview, path: str, offset: int) -> tuple[DataFileEntry, ...]:
    entries = tuple(DataFileEntry(*fields) for fields in DATA_FILE.iter_unpack(table))
    for i, entry in enumerate(entries):
        if not 1 <= entry.number <= MAX_NUMBER or entry.size_class >= SIZE_CLASSES:
            raise CorruptionError(
                f"{path}: at offset {offset + DATA_FILE_BYTES * i}: expected a data file's number and class, "
                f"found {entry.number} and {entry.size_class}"
            )
    return entries
