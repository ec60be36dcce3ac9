"""Reading the write-ahead log: follows the chain of frames and tells whether it ends in a torn tail or in damage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from crc32c import crc32c

from xtree.errors import CorruptionError
from xtree.persistence.files.file_header import HEADER_BYTES, header_crc, unpack_header
from xtree.persistence.files.frame import (
    ALIGNMENT,
    FRAME_GROUP,
    FRAME_HEADER_BYTES,
    FRAME_LINK,
    FRAME_MAGIC,
    LINK_BYTES,
    LOG_BODY,
    LOG_FORMAT,
    LOG_MAGIC,
    Frame,
    FrameHeader,
    LogLink,
    frame_crc,
)
from xtree.persistence.files.frame_run import FrameChain, FrameRun
from xtree.persistence.files.platform_fs import File, FileSystem, Path

CHUNK_BYTES = 4 << 20

ALL_EPOCHS = 2**64 - 1
ALL_FRAMES = 2**63 - 1


class Admits(Protocol):
    """Which frames of strict mode are commits: those of epochs up to `through`, and those that a call admits."""

    through: int

    def __call__(self, frame: Frame) -> bool: ...


class LogReader:
    """The verified group frames of a log, in order, until the chain ends.

    `link` is what the first frame says about the log before; None when there is no valid first frame, and then there
    are no others either. When iteration has ended, `stopped_because` says why: nothing but zeros follow ("zeros"),
    the file ended ("end of file"), the recorded end was reached ("recorded end"), the bytes there aren't a frame of
    this chain ("no frame", "unlinked", "bad length", "bad CRC"), or `admits`, which is asked about the frames of
    strict mode in order, turned this one down ("not exposed").
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
        self._chunk = b""
        self._chunk_at = 0
        header = file.pread(HEADER_BYTES, 0)
        _, (found,) = unpack_header(header, LOG_MAGIC, LOG_FORMAT, LOG_BODY, self.path, uuid)
        if found != number:
            raise CorruptionError(f"{self.path}: expected log {number}, found log {found}")
        self._chain = FrameChain(str(self.path), uuid, number, HEADER_BYTES, header_crc(header), 0)
        self.link: LogLink | None = None
        run = self._next(FRAME_LINK, 1)
        if run is not None:
            first = _frame(run)
            if first.payloads.nbytes != LINK_BYTES or first.delta_count or first.catalog:
                raise CorruptionError(f"{self.path}: at offset {first.offset}: expected a link, found other content")
            self.link = LogLink.decode(first.payloads)
            self._chain = self._chain_from(self.link.last_epoch)

    def runs(self) -> Iterator[FrameRun]:
        """Yields the group frames: each run holds those of one chunk that was read from the file."""
        while self.link is not None:
            run = self._next(FRAME_GROUP, ALL_FRAMES)
            if run is None:
                return
            yield run

    def __iter__(self) -> Iterator[Frame]:
        while self.link is not None:
            run = self._next(FRAME_GROUP, 1)
            if run is None:
                return
            yield _frame(run)

    @property
    def end_offset(self) -> int:
        """Where the frames read so far end."""
        return self._chain.end_offset

    @property
    def last_epoch(self) -> int:
        """The last epoch read so far."""
        return self._chain.last_epoch

    @property
    def end(self) -> LogLink:
        """How the log ends, as far as it was read."""
        return LogLink(self.number, self.last_epoch, self.end_offset, self._chain.last_crc)

    @property
    def tail_bytes(self) -> int:
        """Bytes from the end of the last frame read to the last byte of the file that isn't zero."""
        last = self.end_offset
        for at in range(self.end_offset, self.file_bytes, CHUNK_BYTES):
            used = self._file.pread(min(CHUNK_BYTES, self.file_bytes - at), at).rstrip(b"\0")
            if used:
                last = at + len(used)
        return last - self.end_offset

    def stray_byte(self, end: int, run: FrameRun) -> int | None:
        """The offset of the first byte between the frames of a run that isn't zero; None when there is none.

        `end` is where the frame before the run ends. A frame that doesn't begin where the last one ends begins on the
        next boundary, in a file that was all zeros.
        """
        first = run.offset - run.place(0)[0]
        for i in range(len(run)):
            place, length = run.place(i)
            gap = self._file.pread(first + place - end, end).lstrip(b"\0") if first + place > end else b""
            if gap:
                return first + place - len(gap)
            end = first + place + length
        return None

    def count_unexposed(self) -> int:
        """How many more frames link to the last one read."""
        before = self._chain, self._admits, self.stopped_because
        self._chain, self._admits = self._chain_from(self.last_epoch), None
        try:
            return sum(len(run) for run in self.runs())
        finally:
            self._chain, self._admits, self.stopped_because = before

    def close(self) -> None:
        """Closes the file. Frames that were read stay usable."""
        self._file.close()

    def _next(self, kind: int, most: int) -> FrameRun | None:
        """The next frames, at least one, as far as the chunk reaches; None at the end of the chain."""
        limit = self.file_bytes if self._recorded_end is None else min(self.file_bytes, self._recorded_end)
        through = ALL_EPOCHS if self._admits is None or kind == FRAME_LINK else self._admits.through
        while True:
            if self.end_offset == self._recorded_end:
                self.stopped_because = "recorded end"
                return None
            run = self._chain.follow(self._chunk, self._chunk_at, limit, kind, most, through)
            if run.count:
                return run
            if self._chain.problem == "more":
                self._read(self._chain.wanted_at, self._chain.wanted_bytes)
            elif self._chain.problem == "ask":
                return self._ask(limit, kind)
            else:
                self.stopped_because = self._chain.problem
                return None

    def _ask(self, limit: int, kind: int) -> FrameRun | None:
        """The next frame alone, if it is a commit; else None."""
        before = self._chain
        self._chain = self._chain_from(before.last_epoch)
        run = self._chain.follow(self._chunk, self._chunk_at, limit, kind, 1, ALL_EPOCHS)
        assert self._admits is not None
        if self._admits(_frame(run)):
            return run
        self._chain = before
        self.stopped_because = "not exposed"
        return None

    def _chain_from(self, last_epoch: int) -> FrameChain:
        """The chain as it stands, to go on after a given epoch."""
        end = self._chain
        return FrameChain(str(self.path), self.uuid, self.number, end.end_offset, end.last_crc, last_epoch)

    def _read(self, at: int, n: int) -> None:
        """Reads the chunk that begins at an offset; `n` bytes are known to lie inside the file."""
        size = min(max(n, CHUNK_BYTES), self.file_bytes - at)
        self._chunk = self._file.pread(size, at)
        self._chunk_at = at
        if len(self._chunk) < size:
            raise CorruptionError(f"{self.path}: expected {self.file_bytes} bytes, found that it became shorter")


def _frame(run: FrameRun) -> Frame:
    """The first frame of a run."""
    at, length = run.place(0)
    return Frame(memoryview(run.chunk)[at : at + length], run.path)


def read_log(
    fs: FileSystem,
    path: Path,
    uuid: bytes,
    number: int,
    expected_link: LogLink | None = None,
    recorded_end: int | None = None,
    admits: Admits | None = None,
) -> LogReader:
    """Opens a log to read it: with `recorded_end` up to that offset, with `admits` up to the first frame it turns down.

    Raises CorruptionError when the header page is damaged or belongs to another log, or when the link isn't the
    expected one; FormatVersionError; OSError.
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
    """A whole frame after a bad one: it shows that the bad one was on the disk once."""

    offset: int
    last_epoch: int
    durable_through: int


def find_later_link(
    fs: FileSystem, path: Path, uuid: bytes, number: int, start: int, after_epoch: int | None
) -> FrameEvidence | None:
    """A whole frame of this log at or after `start` that says that an epoch later than `after_epoch` was durable.

    `start` and `after_epoch` are the end of the chain and its last epoch. If there is such a frame, the log is damaged
    at `start`; if there is none, its tail is torn. With `after_epoch` None any whole frame counts: the link frame was
    on the disk before any other was written. Raises CorruptionError for a file with more overlapping frames than can
    be judged in reasonable time.
    """
    file = fs.open(path, "r")
    try:
        size = file.size()
        budget = 8 * size  # bytes to verify at most; frames that were written don't overlap
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
