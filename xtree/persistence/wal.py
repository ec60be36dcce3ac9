"""The write-ahead log: frames (frame.py) one behind the other in files that are filled with zeros ahead of need.

A log file is a header page (file_header.py; the body is the log's number), a link frame at 4096 that names the end of
the log before, then group frames. A frame starts on the next 4 KiB boundary after a sync, so that no write touches a
sector that holds synced bytes, and right behind its predecessor otherwise.

Order in the life of a log:

1. `LogWriter.create`: header and zeros, synced, directory synced. No frame yet.
2. The manifest that lists the log is made durable.
3. `write_link`: the link frame, synced. From now on any group frame in this file proves that the link was on the disk.
4. `reserve`, `append`, `sync` for each group.
5. The end (`LogWriter.end`) goes into the next log's link, the manifest and the next checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crc32c import crc32c

from xtree.errors import CorruptionError
from xtree.persistence.crash_points import reach
from xtree.persistence.disk_reserve import require_space
from xtree.persistence.file_header import HEADER_BYTES, header_crc, pack_header, unpack_header
from xtree.persistence.filenames import log_name
from xtree.persistence.frame import (
    ALIGNMENT,
    CRC,
    DELTA,
    DELTA_BYTES,
    FRAME_CRC_OFFSET,
    FRAME_FORMAT,
    FRAME_GROUP,
    FRAME_HEADER,
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
    frame_bytes,
    frame_crc,
    verified_frame,
)
from xtree.persistence.platform_fs import Buffer, File, FileSystem, Path, SyncFailedError
from xtree.persistence.superblock import MODES

__all__ = [
    "DELTA",
    "MODE_BALANCED",
    "Frame",
    "FrameEvidence",
    "LogLink",
    "LogReader",
    "LogWriter",
    "find_later_link",
    "read_log",
]

MODE_BALANCED = MODES["balanced"]
CHUNK_BYTES = 4 << 20
_PADDING = [bytes(n) for n in range(ALIGNMENT)]


class Ground:
    """The space of a log file that its next frames will take: given by the disk before, and reading as zeros."""

    def __init__(
        self, fs: FileSystem, directory: Path, file: File, fill_bytes: int, fill_limit_bytes: int, keep_free: int
    ) -> None:
        self.end = HEADER_BYTES
        self._fs = fs
        self._directory = directory
        self._file = file
        self._fill_bytes = fill_bytes
        self._fill_limit_bytes = fill_limit_bytes
        self._keep_free = keep_free

    def cover(self, used: int, end: int) -> None:
        """Give a file whose first `used` bytes hold something ground up to `end`, and more ahead. Raises OSError."""
        if end <= self.end:
            return
        start = max(self.end, used)
        if end - start > self._fill_limit_bytes:
            require_space(self._fs, self._directory, end - start, self._keep_free)
            self._file.reserve(end)
            self.end = end
            return
        fill = self._fill_bytes
        while fill < start and fill < self._fill_limit_bytes:
            fill *= 2
        ahead = aligned(max(end, start + min(fill, self._fill_limit_bytes)), SECTOR_BYTES)
        try:
            self._fill(start, ahead)
        except SyncFailedError:
            raise
        except OSError:  # not that far, then
            self._fill(start, aligned(end, SECTOR_BYTES))

    def _fill(self, start: int, end: int) -> None:
        require_space(self._fs, self._directory, end - start, self._keep_free)
        self._file.fill(start, end)
        self._file.sync()
        self.end = end


class LogWriter:
    """Appends frames to one new log. For one thread at a time."""

    def __init__(self, file: File, uuid: bytes, number: int, link: LogLink, header: bytes, ground: Ground) -> None:
        self.number = number
        self.path = file.path
        self.last_epoch = link.last_epoch
        self.last_crc = header_crc(header)
        self.end_offset = HEADER_BYTES
        self._link = link
        self._file = file
        self._uuid = uuid
        self._synced_end = HEADER_BYTES
        self._ground = ground

    @classmethod
    def create(
        cls,
        fs: FileSystem,
        directory: Path,
        uuid: bytes,
        number: int,
        link: LogLink,
        fill_bytes: int,
        fill_limit_bytes: int = 8 << 20,
        keep_free: int = 0,
    ) -> LogWriter:
        """Make a log file: header and zeros, synced, its name too. Raises OSError, leaving no file behind.

        The first `fill_bytes` are filled with zeros now, then twice as many each time, up to `fill_limit_bytes`. The
        log doesn't grow into the last `keep_free` bytes of the disk.
        """
        path = os.path.join(directory, log_name(number))
        header = pack_header(LOG_MAGIC, LOG_FORMAT, uuid, LOG_BODY.pack(number))
        file = fs.open(path, "create")
        try:
            reach("wal.created")
            file.pwrite(header, 0)
            ground = Ground(fs, directory, file, fill_bytes, fill_limit_bytes, keep_free)
            ground.cover(HEADER_BYTES, 2 * SECTOR_BYTES)
            fs.sync_directory(directory)
            reach("wal.filled")
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                with contextlib.suppress(OSError):
                    fs.unlink(path)
            raise
        return cls(file, uuid, number, link, header, ground)

    def write_link(self, durable_through: int) -> None:
        """Write and sync the first frame, once the manifest that lists this log is durable."""
        epoch = self._link.last_epoch
        payload = self._link.encode()
        self._append(FRAME_LINK, epoch, epoch, durable_through, 0, [], b"", 0, [payload], LINK_BYTES)
        self.sync()
        reach("wal.linked")

    def frame_bytes_for(self, delta_count: int, catalog_bytes: int, payload_bytes: int) -> int:
        """The length of a frame with these parts."""
        return frame_bytes(delta_count, catalog_bytes, payload_bytes)

    def reserve(self, n: int) -> None:
        """Make sure that appending a frame of `n` bytes can't fail for lack of space. Raises OSError.

        Small frames get ground that is filled with zeros and synced, which makes their own sync cheap; one longer than
        the most that is filled at a time gets disk space.
        """
        self._ground.cover(self.end_offset, self._next_offset() + n)

    def append(
        self,
        first_epoch: int,
        last_epoch: int,
        durable_through: int,
        deltas: Sequence[Buffer],
        catalog: bytes,
        catalog_count: int,
        payloads: Sequence[Buffer],
        delta_count: int,
    ) -> int:
        """Write the frame of a group behind the last one and return its length; `sync` makes it durable.

        `deltas` and `payloads` are buffers whose contents follow one another. After an OSError nothing more may be
        appended: part of the frame may be there.
        """
        if _bytes_of(deltas) != DELTA_BYTES * delta_count:
            raise ValueError(f"{delta_count} deltas have {DELTA_BYTES} bytes each, not {_bytes_of(deltas)} in all")
        payload_bytes = _bytes_of(payloads)
        reach("wal.before_append")
        length = self._append(
            FRAME_GROUP,
            first_epoch,
            last_epoch,
            durable_through,
            delta_count,
            deltas,
            catalog,
            catalog_count,
            payloads,
            payload_bytes,
        )
        reach("wal.appended")
        return length

    def sync(self) -> None:
        """Return when every appended frame is on the disk. After an OSError, never call it again."""
        self._file.sync()
        self._synced_end = self.end_offset
        reach("wal.synced")

    def close(self) -> None:
        """Close the descriptor; nothing is written."""
        self._file.close()

    @property
    def bytes_since_start(self) -> int:
        """Bytes of frames in this log, the gaps before boundaries included."""
        return self.end_offset - HEADER_BYTES

    @property
    def filled_bytes(self) -> int:
        """Bytes of filled ground that are left for frames."""
        return max(0, self._ground.end - self._next_offset())

    @property
    def end(self) -> LogLink:
        """How the log ends now, as the next one's link and the manifest record it."""
        return LogLink(self.number, self.last_epoch, self.end_offset, self.last_crc)

    def _next_offset(self) -> int:
        return aligned(self.end_offset, SECTOR_BYTES) if self._synced_end == self.end_offset else self.end_offset

    def _append(
        self,
        kind: int,
        first_epoch: int,
        last_epoch: int,
        durable_through: int,
        delta_count: int,
        deltas: Sequence[Buffer],
        catalog: bytes,
        catalog_count: int,
        payloads: Sequence[Buffer],
        payload_bytes: int,
    ) -> int:
        length = frame_bytes(delta_count, len(catalog), payload_bytes)
        offset = self._next_offset()
        header = bytearray(FRAME_HEADER_BYTES)
        FRAME_HEADER.pack_into(
            header,
            0,
            FRAME_MAGIC,
            0,
            length,
            self._uuid,
            offset,
            self.last_crc,
            kind,
            MODE_BALANCED,
            FRAME_FORMAT,
            first_epoch,
            last_epoch,
            durable_through,
            delta_count,
            catalog_count,
            len(catalog),
            payload_bytes,
            self.number,
            time.time_ns(),
        )
        parts = [header, *deltas, catalog, _PADDING[-len(catalog) % 8], *payloads, _PADDING[-payload_bytes % 8]]
        crc = 0
        for part in parts:
            crc = crc32c(part, crc)
        CRC.pack_into(header, FRAME_CRC_OFFSET, crc)
        self._file.pwritev(parts, offset)
        self.end_offset = offset + length
        self.last_crc = crc
        self.last_epoch = last_epoch
        return length


def _bytes_of(buffers: Sequence[Buffer]) -> int:
    return sum([memoryview(buffer).nbytes for buffer in buffers])


class LogReader:
    """The verified group frames of a log, in order, until the chain ends.

    `link` is what the first frame says about the log before; None when there is no valid first frame, and then there
    are no others either. When iteration has ended, `stopped_because` says why: nothing but zeros follow ("zeros"),
    the file ended ("end of file"), the recorded end was reached ("recorded end"), or what stands there is no frame of
    this chain ("no frame", "unlinked", "bad length", "bad CRC").
    """

    def __init__(self, file: File, uuid: bytes, number: int, recorded_end: int | None = None) -> None:
        self.path = file.path
        self.uuid = uuid
        self.number = number
        self.file_bytes = file.size()
        self.stopped_because = ""
        self._file = file
        self._recorded_end = recorded_end
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
) -> LogReader:
    """Open a log to read it; with `recorded_end` no further than that offset.

    Raises CorruptionError when the header page is damaged or another log's, or the link isn't the expected one;
    FormatVersionError; OSError.
    """
    file = fs.open(path, "r")
    try:
        reader = LogReader(file, uuid, number, recorded_end)
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
