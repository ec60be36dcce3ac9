"""The frame: one group commit in the write-ahead log, and the link frame that begins a log.

A frame is a header of 128 bytes, deltas of 64 bytes (what happened to each page), catalog records (catalog.pyx), zeros
up to a multiple of 8, payloads (page images), zeros up to a multiple of 8. Its CRC covers all of that, with the CRC
field as zero. It carries the index's UUID, its log's number, its own offset and the CRC of the frame before it: bytes
that don't link aren't a frame, whether they are stale, zeros, or the image of a frame inside a payload. docs/format.md
has the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

import numpy as np
from crc32c import crc32c

from xtree.persistence.files.platform_fs import Buffer

LOG_MAGIC = b"XTREELOG"
LOG_FORMAT = 1
LOG_BODY = Struct("<Q")  # number

FRAME_MAGIC = b"XTFR"
FRAME_FORMAT = 2
FRAME_HEADER = Struct("<4sIQ16sQIBBHQQQIIQQQQ16x")
FRAME_HEADER_BYTES = 128
assert FRAME_HEADER.size == FRAME_HEADER_BYTES
FRAME_CRC_OFFSET = 4
FRAME_LINK = 1  # kinds of frame: never renumber
FRAME_GROUP = 2
ALIGNMENT = 8
SECTOR_BYTES = 4096  # what a disk writes at once

OP_BIRTH = 1  # never renumber
OP_RETIRE = 2
OP_RELOCATE = 3
PAYLOAD_NONE = 0  # the page was flushed to its data file before
PAYLOAD_WHOLE = 1
PAYLOAD_RANGES = 2  # changed words of the page that is replaced, whose CRC is base_crc
DELTA_BYTES = 64
DELTA = np.dtype(
    [
        ("node_id", "<u8"),
        ("epoch", "<u8"),
        ("op", "u1"),
        ("kind", "u1"),
        ("size_class", "u1"),
        ("payload_form", "u1"),
        ("file_number", "<u4"),
        ("offset", "<u8"),
        ("page_crc", "<u4"),
        ("page_bytes", "<u4"),
        ("payload_offset", "<u8"),
        ("payload_bytes", "<u4"),
        ("base_crc", "<u4"),
        ("replaces", "<u8"),  # of a birth: the page that it retires, 0 for none
    ]
)
assert DELTA.itemsize == DELTA_BYTES

LINK = Struct("<QQQII")  # number, last_epoch, end_offset, last_crc, zero
LINK_BYTES = 32
assert LINK.size == LINK_BYTES
CRC = Struct("<I")
_ZERO_CRC = bytes(CRC.size)


@dataclass(frozen=True)
class LogLink:
    """How a log ended: its number, last epoch, the offset after its last frame, and that frame's CRC.

    All zeros when there was no log before.
    """

    number: int = 0
    last_epoch: int = 0
    end_offset: int = 0
    last_crc: int = 0

    def encode(self) -> bytes:
        """The 32 bytes of a link."""
        return LINK.pack(self.number, self.last_epoch, self.end_offset, self.last_crc, 0)

    @classmethod
    def decode(cls, data: Buffer) -> LogLink:
        """The link in 32 bytes whose CRC was verified."""
        number, last_epoch, end_offset, last_crc, _ = LINK.unpack(data)
        return cls(number, last_epoch, end_offset, last_crc)


def aligned(n: int, alignment: int = ALIGNMENT) -> int:
    """The least multiple of `alignment` that isn't below `n`."""
    return n + -n % alignment


def frame_bytes(delta_count: int, catalog_bytes: int, payload_bytes: int) -> int:
    """The length of a frame with these parts."""
    padding = -catalog_bytes % ALIGNMENT + -payload_bytes % ALIGNMENT
    return FRAME_HEADER_BYTES + DELTA_BYTES * delta_count + catalog_bytes + payload_bytes + padding


class Frame:
    """A verified frame for Python: its fields, and views of the reader's memory, which they keep alive."""

    __slots__ = (
        "path",
        "offset",
        "end_offset",
        "crc",
        "kind",
        "mode",
        "first_epoch",
        "last_epoch",
        "durable_through",
        "delta_count",
        "catalog_count",
        "log_number",
        "time_ns",
        "delta_bytes",
        "catalog",
        "payloads",
    )

    path: str
    offset: int
    end_offset: int
    crc: int
    kind: int
    mode: int
    first_epoch: int
    last_epoch: int
    durable_through: int
    delta_count: int
    catalog_count: int
    log_number: int
    time_ns: int
    delta_bytes: memoryview
    catalog: bytes
    payloads: memoryview

    def __init__(self, data: memoryview, path: str) -> None:
        header = FrameHeader(data[:FRAME_HEADER_BYTES])
        self.path = path
        self.offset = header.offset
        self.end_offset = header.offset + header.length
        self.crc = header.crc
        (
            self.kind,
            self.mode,
            _,
            self.first_epoch,
            self.last_epoch,
            self.durable_through,
            self.delta_count,
            self.catalog_count,
            catalog_bytes,
            payload_bytes,
            self.log_number,
            self.time_ns,
        ) = header.fields
        catalog_at = FRAME_HEADER_BYTES + DELTA_BYTES * self.delta_count
        payload_at = catalog_at + aligned(catalog_bytes)
        self.delta_bytes = data[FRAME_HEADER_BYTES:catalog_at]
        self.catalog = bytes(data[catalog_at : catalog_at + catalog_bytes])
        self.payloads = data[payload_at : payload_at + payload_bytes]

    @property
    def deltas(self) -> np.ndarray:
        """The deltas as an array of DELTA."""
        return np.frombuffer(self.delta_bytes, DELTA)


class FrameHeader:
    """The fields of a frame header whose magic is right; nothing else in it is verified yet."""

    __slots__ = ("length", "crc", "uuid", "offset", "previous_crc", "fields")

    def __init__(self, data: Buffer) -> None:
        _, self.crc, self.length, self.uuid, self.offset, self.previous_crc, *self.fields = FRAME_HEADER.unpack(data)

    def belongs(self, uuid: bytes, number: int, offset: int) -> bool:
        """Whether it says that it is a frame at `offset` of log `number` of this index."""
        return self.uuid == uuid and self.offset == offset and self.fields[_LOG_NUMBER] == number

    @property
    def consistent(self) -> bool:
        """Whether its length is that of its parts."""
        fields = self.fields
        return bool(self.length == frame_bytes(fields[_DELTA_COUNT], fields[_CATALOG_BYTES], fields[_PAYLOAD_BYTES]))

    @property
    def last_epoch(self) -> int:
        """The last epoch of the frame."""
        return int(self.fields[_LAST_EPOCH])

    @property
    def durable_through(self) -> int:
        """The last epoch that was on the disk before the frame was written."""
        return int(self.fields[_DURABLE_THROUGH])


# Places in FrameHeader.fields.
_LAST_EPOCH, _DURABLE_THROUGH, _DELTA_COUNT = 4, 5, 6
_CATALOG_BYTES, _PAYLOAD_BYTES, _LOG_NUMBER = 8, 9, 10


def frame_crc(data: Buffer) -> int:
    """The CRC that a whole frame must carry."""
    view = memoryview(data)
    crc = crc32c(view[:FRAME_CRC_OFFSET])
    crc = crc32c(_ZERO_CRC, crc)
    return crc32c(view[FRAME_CRC_OFFSET + CRC.size :], crc)
