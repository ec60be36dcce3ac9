"""Writing the write-ahead log: frames (frame.py) one after the other in files filled with zeros in advance.

A log file is a header page (file_header.py; the body is the log's number), a link frame at 4096 that names the end of
the log before, then group frames. A frame starts on the next 4 KiB boundary after a sync, so that no write touches a
sector that holds synced bytes, and right after its predecessor otherwise.

Order in the life of a log:

1. `LogWriter.create`, and `fill_ahead` in the background: header and zeros, synced, directory synced. No frame yet.
2. The manifest that lists the log is made durable.
3. `follow`, once the log before is synced and has ended; `write_link`: the link frame, synced. From now on any group
   frame in this file proves that the link was on the disk.
4. `reserve`, `write` and `sync` for each group, whose frame is planned for this log's end (log_frame.pxd).
5. The end (`LogWriter.end`) goes into the next log's link, the manifest and the next checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from xtree.persistence.base.crash_points import reach
from xtree.persistence.files.disk_reserve import require_space
from xtree.persistence.files.file_header import HEADER_BYTES, header_crc, pack_header
from xtree.persistence.files.filenames import log_name
from xtree.persistence.files.frame import (
    FRAME_GROUP,
    FRAME_LINK,
    LOG_BODY,
    LOG_FORMAT,
    LOG_MAGIC,
    SECTOR_BYTES,
    LogLink,
    aligned,
)
from xtree.persistence.files.log_frame import LogFrame, LogTail, frame_of
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import Buffer, File, FileSystem, Path, SyncFailedError
from xtree.persistence.files.superblock import MODES


class Ground:
    """The space of a log file that its next frames will take: allocated on the disk in advance, and read as zeros.

    With `filled` the zeros are on the disk.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        file: File,
        fill_bytes: int,
        fill_limit_bytes: int,
        keep_free: int,
        filled: bool,
    ) -> None:
        self.end = HEADER_BYTES
        self._fs = fs
        self._directory = directory
        self._file = file
        self._fill_bytes = fill_bytes
        self._fill_limit_bytes = fill_limit_bytes
        self._keep_free = keep_free
        self._filled = filled

    def cover(self, used: int, end: int) -> None:
        """Extends the ground of a file that uses its first `used` bytes to `end`, and further ahead. Raises OSError."""
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

    def extend(self, end: int) -> None:
        """Extends the ground to `end`, or to the next boundary after it. Raises OSError."""
        end = aligned(end, SECTOR_BYTES)
        while self.end < end:
            self._fill(self.end, min(end, self.end + self._fill_limit_bytes))

    def _fill(self, start: int, end: int) -> None:
        require_space(self._fs, self._directory, end - start, self._keep_free)
        if self._filled:
            self._file.fill(start, end)
            self._file.sync()
        else:
            self._file.reserve(end)
        self.end = end


class LogWriter(LogTail):
    """Appends frames to one new log. For one thread at a time."""

    def __init__(
        self, file: File, uuid: bytes, number: int, link: LogLink, header: bytes, ground: Ground, mode: str
    ) -> None:
        super().__init__(uuid, number, MODES[mode], HEADER_BYTES, link.last_epoch, header_crc(header))
        self.path = file.path
        self._link = link
        self._file = file
        file.of_commits = True
        # begin_sync is called with the turn, finish_sync without: a stale end only means a sync too many.
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
        mode: str = "balanced",
    ) -> LogWriter:
        """Makes a log file with header and zeros, and syncs it and its name. Raises OSError, and then leaves no file.

        The first `fill_bytes` are filled with zeros now, then twice as many each time, up to `fill_limit_bytes`. The
        log doesn't grow into the last `keep_free` bytes of the disk. `mode` is the durability mode of its frames; in
        "eventual", where no commit waits for a sync, ground is given as disk space without zeros and without a sync.
        """
        path = path_in(directory, log_name(number))
        header = pack_header(LOG_MAGIC, LOG_FORMAT, uuid, LOG_BODY.pack(number))
        file = fs.open(path, "create")
        try:
            reach("wal.created")
            file.pwrite(header, 0)
            ground = Ground(fs, directory, file, fill_bytes, fill_limit_bytes, keep_free, mode != "eventual")
            ground.cover(HEADER_BYTES, 2 * SECTOR_BYTES)
            if mode == "eventual":
                file.sync()
            fs.sync_directory(directory)
            reach("wal.filled")
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                with contextlib.suppress(OSError):
                    fs.unlink(path)
            raise
        return cls(file, uuid, number, link, header, ground, mode)

    def fill_ahead(self, end: int) -> None:
        """Extends the log's ground to `end`, step by step, so that no sync takes long. Raises OSError."""
        self._ground.extend(end)

    def follow(self, link: LogLink) -> None:
        """Names the log that this one follows, if that wasn't known when it was made; called before `write_link`."""
        self._link = link
        self.last_epoch = link.last_epoch

    def write_link(self, durable_through: int) -> None:
        """Writes and syncs the first frame, once the manifest that lists this log is durable."""
        epoch = self._link.last_epoch
        self.write(frame_of(self, FRAME_LINK, epoch, epoch, durable_through, [], b"", 0, [self._link.encode()]))
        self.sync()
        reach("wal.linked")

    def reserve(self, n: int) -> None:
        """Makes sure that appending a frame of `n` bytes can't fail for lack of space. Raises OSError.

        Small frames get ground that is filled with zeros and synced, which makes their own sync cheap; one longer than
        the most that is filled at a time gets only disk space.
        """
        self._ground.cover(self.end_offset, self.next_frame + n)

    def has_room(self, n: int) -> bool:
        """Whether a frame of `n` bytes fits the ground there is."""
        return self.next_frame + n <= self._ground.end

    def append(
        self,
        first_epoch: int,
        last_epoch: int,
        durable_through: int,
        deltas: Sequence[Buffer],
        catalog: bytes,
        catalog_count: int,
        payloads: Sequence[Buffer],
    ) -> int:
        """Writes the frame of a group after the last one and returns its length; `sync` makes it durable.

        `deltas` and `payloads` are buffers whose contents follow one another. After an OSError nothing more may be
        appended: part of the frame may be there.
        """
        frame = frame_of(
            self, FRAME_GROUP, first_epoch, last_epoch, durable_through, deltas, catalog, catalog_count, payloads
        )
        self.write(frame)
        return len(frame)

    def write(self, frame: LogFrame) -> None:
        """Writes a frame that was planned for this place. Called again before the next one, it does the same again."""
        reach("wal.before_append")
        self._file.pwritev([frame], frame.offset)
        self.end_offset = frame.end_offset
        self.last_crc = frame.crc
        self.last_epoch = frame.last_epoch
        reach("wal.appended")

    def sync(self) -> None:
        """Returns when every appended frame is on the disk. After an OSError it must not be called again."""
        self.finish_sync(self.begin_sync())

    def begin_sync(self) -> int:
        """Notes how far a sync will reach: a frame appended from now on, even during it, begins in its own sector."""
        self.boundary = self.end_offset
        return self.end_offset

    def finish_sync(self, end: int) -> None:
        """Returns when every frame before `end`, which begin_sync gave, is on the disk; see `sync`."""
        self._file.sync()
        self._synced_end = end
        reach("wal.synced")

    @property
    def synced(self) -> bool:
        """Whether every appended frame is on the disk."""
        return self._synced_end == self.end_offset

    def close(self) -> None:
        """Closes the descriptor; nothing is written."""
        self._file.close()

    @property
    def ground_end(self) -> int:
        """The end of the ground that frames may take at once."""
        return self._ground.end

    @property
    def bytes_since_start(self) -> int:
        """Bytes of frames in this log, the gaps before boundaries included."""
        return self.end_offset - HEADER_BYTES

    @property
    def end(self) -> LogLink:
        """How the log ends now, as the next one's link and the manifest record it."""
        return LogLink(self.number, self.last_epoch, self.end_offset, self.last_crc)
