"""Reading the write-ahead log: the frames that link, and whether what ends their chain is a torn tail or damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crc32c import crc32c

from xtree.errors import CorruptionError
from xtree.persistence.file_header import HEADER_BYTES, header_crc, unpack_header
from xtree.persistence.frame import (
    ALIGNMENT,
    FRAME_GROUP,
    FRAME_HEADER_BYTES,
    FRAME_LINK,
    FRAME_MAGIC,
    LINK_BYTES,
    LOG_BODY,
    LOG_FORMAT,
    LOG_MAGIC,
    SECTOR_BYTES,
    Frame,
    FrameHeader,
    LogLink,
    aligned,
    frame_crc,
    verified_frame,
)
from xtree.persistence.platform_fs import File, FileSystem, Path

CHUNK_BYTES = 4 << 20

Admits = Callable[[Frame], bool]


class LogReader:
    """The verified group frames of a log, in order, until the chain ends.

    `link` is what the first frame says about the log before; None when there is no valid first frame, and then there
    are no others either. When iteration has ended, `stopped_because` says why: nothing but zeros follow ("zeros"),
    the file ended ("end of file"), the recorded end was reached ("recorded end"), what stands there is no frame of
    this chain ("no frame", "unlinked", "bad length", "bad CRC"), or it is one that `admits`, asked about each group in
    order, turned down ("not exposed").
    """

    def __init__(
        self, file: File, uuid: bytes, number: int, recorded_end: int | None = None, admits: Admits | None = None
    ) -> None:
        self.path = file.path
        self.uuid = uuid
        self.number = number
        self.file_bytes = file.size()
        self.stopped_because = ""
        self._file = file
        self._recorded_end = recorded_end
        self._admits = admits
        self._chunk = memoryview(b"")
        self._chunk_at = 0
        header = file.pread(HEADER_BYTES, 0)
        _, (found,) = unpack_header(header, LOG_MAGIC, LOG_FORMAT, LOG_BODY, self.path, uuid)
        if found != number:
            raise CorruptionError(f"{self.path}: expected log {number}, found log {found}")
        self.end_offset = HEADER_BYTES
        self.last_crc = header_crc(header)
        self.last_epoch = 0
        self.link: LogLink | None = None
        first = self._next(FRAME_LINK)
        if first is not None:
            if first.payloads.nbytes != LINK_BYTES or first.delta_count or first.catalog:
                raise CorruptionError(f"{self.path}: at offset {first.offset}: expected a link, found other content")
            self.link = LogLink.decode(first.payloads)
            self.last_epoch = self.link.last_epoch

    def __iter__(self) -> Iterator[Frame]:
        while self.link is not None:
            frame = self._next(FRAME_GROUP)
            if frame is None:
                return
            yield frame

    @property
    def end(self) -> LogLink:
        """Where the frames read so far end."""
        return LogLink(self.number, self.last_epoch, self.end_offset, self.last_crc)

    @property
    def tail_bytes(self) -> int:
        """Bytes from the end of the last frame read to the last byte of the file that isn't zero."""
        last = self.end_offset
        for at in range(self.end_offset, self.file_bytes, CHUNK_BYTES):
            used = self._file.pread(min(CHUNK_BYTES, self.file_bytes - at), at).rstrip(b"\0")
            if used:
                last = at + len(used)
        return last - self.end_offset

    def close(self) -> None:
        """Close the file. Frames that were read stay usable."""
        self._file.close()

    def _next(self, kind: int) -> Frame | None:
        """The frame that follows, right behind the last one or on the next boundary; None at the end of the chain."""
        end = self.end_offset
        if end == self._recorded_end:
            self.stopped_because = "recorded end"
            return None
        boundary = aligned(end, SECTOR_BYTES)
        frame, problem = self._frame_at(end)
        if frame is None and boundary != end:
            frame, problem_there = self._frame_at(boundary)
            problem = problem_there if problem in ("zeros", "no frame") else problem
        if frame is None:
            self.stopped_because = problem
            return None
        if frame.kind != kind or frame.first_epoch < self.last_epoch + (kind == FRAME_GROUP):
            raise CorruptionError(
                f"{self.path}: at offset {frame.offset}: expected a frame of kind {kind} and epochs after "
                f"{self.last_epoch}, found kind {frame.kind}, epoch {frame.first_epoch}"
            )
        if kind == FRAME_GROUP and self._admits is not None and not self._admits(frame):
            self.stopped_because = "not exposed"
            return None
        self.end_offset = frame.end_offset
        self.last_crc = frame.crc
        self.last_epoch = frame.last_epoch
        return frame

    def _frame_at(self, offset: int) -> tuple[Frame | None, str]:
        limit = self.file_bytes if self._recorded_end is None else min(self.file_bytes, self._recorded_end)
        if offset + FRAME_HEADER_BYTES > limit:
            return None, "end of file"
        data = self._bytes(offset, FRAME_HEADER_BYTES)
        if data[:4] != FRAME_MAGIC:
            return None, "no frame" if any(data) else "zeros"
        header = FrameHeader(data)
        if header.previous_crc != self.last_crc or not header.belongs(self.uuid, self.number, offset):
            return None, "unlinked"
        if not header.consistent or header.length > limit - offset:
            return None, "bad length"
        data = self._bytes(offset, header.length)
        if frame_crc(data) != header.crc:
            return None, "bad CRC"
        return verified_frame(data, header, self.path), ""

    def _bytes(self, offset: int, n: int) -> memoryview:
        """Bytes that are known to lie inside the file, read in chunks."""
        at = offset - self._chunk_at
        if at < 0 or at + n > self._chunk.nbytes:
            size = min(max(n, CHUNK_BYTES), self.file_bytes - offset)
            self._chunk = memoryview(self._file.pread(size, offset))
            self._chunk_at = offset
            at = 0
            if self._chunk.nbytes < size:
                raise CorruptionError(f"{self.path}: expected {self.file_bytes} bytes, found that it became shorter")
        return self._chunk[at : at + n]


def read_log(
    fs: FileSystem,
    path: Path,
    uuid: bytes,
    number: int,
    expected_link: LogLink | None = None,
    recorded_end: int | None = None,
    admits: Admits | None = None,
) -> LogReader:
    """Open a log to read it; with `recorded_end` no further than that offset, with `admits` up to what it turns down.

    Raises CorruptionError when the header page is damaged or another log's, or the link isn't the expected one;
    FormatVersionError; OSError.
    """
    file = fs.open(path, "r")
    try:
        reader = LogReader(file, uuid, number, recorded_end, admits)
        if reader.link is not None and expected_link is not None and reader.link != expected_link:
            raise CorruptionError(
                f"{reader.path}: at offset {HEADER_BYTES}: expected a link to {expected_link}, found {reader.link}"
            )
    except BaseException:
        file.close()
        raise
    return reader


@dataclass(frozen=True)
class FrameEvidence:
    """A whole frame behind a bad one, which shows that the bad one was on the disk once."""

    offset: int
    last_epoch: int
    durable_through: int


def find_later_link(
    fs: FileSystem, path: Path, uuid: bytes, number: int, start: int, after_epoch: int | None
) -> FrameEvidence | None:
    """A whole frame of this log at or after `start` that says that an epoch later than `after_epoch` was durable.

    Call it with the end of the chain and its last epoch: evidence means that the log is damaged there, none that its
    tail is torn. With None any whole frame is evidence: the link frame was on the disk before any other was written.
    Raises CorruptionError for a file with more overlapping frames than can be judged in reasonable time.
    """
    file = fs.open(path, "r")
    try:
        size = file.size()
        budget = 8 * size  # of bytes to verify; frames that were written don't overlap
        for offset in _magics(file, start, size):
            header = FrameHeader(file.pread(FRAME_HEADER_BYTES, offset))
            if not header.belongs(uuid, number, offset) or not header.consistent or header.length > size - offset:
                continue
            if after_epoch is not None and header.durable_through <= after_epoch:
                continue
            budget -= header.length
            if budget < 0:
                raise CorruptionError(f"{file.path}: expected frames one behind the other, found them overlapping")
            if _crc_of(file, offset, header.length) == header.crc:
                return FrameEvidence(offset, header.last_epoch, header.durable_through)
        return None
    finally:
        file.close()


def _magics(file: File, start: int, size: int) -> Iterator[int]:
    """The aligned offsets from `start` on at which a frame's magic stands and a header would fit."""
    for at in range(start, size, CHUNK_BYTES):
        data = file.pread(min(CHUNK_BYTES + len(FRAME_MAGIC) - 1, size - at), at)
        found = data.find(FRAME_MAGIC)
        while found >= 0:
            if (at + found) % ALIGNMENT == 0 and at + found + FRAME_HEADER_BYTES <= size:
                yield at + found
            found = data.find(FRAME_MAGIC, found + 1)


def _crc_of(file: File, offset: int, length: int) -> int:
    data = file.pread(min(length, CHUNK_BYTES), offset)
    crc = frame_crc(data)
    for at in range(offset + CHUNK_BYTES, offset + length, CHUNK_BYTES):
        crc = crc32c(file.pread(min(CHUNK_BYTES, offset + length - at), at), crc)
    return crc
