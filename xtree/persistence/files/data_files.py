"""Data files: where pages live. Each file is one window; its slots are of one size class, the first at 4096.

DataFiles is the `growth` of a SegmentAllocator: it makes files and extends them, always with disk space for every byte
that may be mapped, and knows which have changed since their last sync. A file is in the durable manifest before a row
in it commits (`manifest_needed` says that one isn't yet), and `entries` gives only sizes that have been synced.

A file is opened at its first use, and its header is verified then. It stays open from its first write after a sync to
the sync that covers that write. The first write is taken to be when a page in it is given out, as far as that is known,
and at the latest when such a page commits. Other files stay open only as far as StoreConfig.descriptor_budget allows.

Locks: `_lock` guards the tables and is held for moments. Each file has a lock that is held while it is synced, so that
a thread that asks for a sync which another has begun waits for its end. A failed sync is never repeated. `extend` and
`new_window` are called under the store's lock, which guards the sizes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any

from xtree.errors import CorruptionError, StoreFailedError
from xtree.persistence.base.config import MAX_WINDOW_BYTES, MIB, StoreConfig
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.lock_ranks import FILE_TABLE, SYNCING, RankedLock
from xtree.persistence.files.disk_reserve import require_space
from xtree.persistence.files.file_header import HEADER_BYTES, pack_header, unpack_header
from xtree.persistence.files.filenames import data_name
from xtree.persistence.files.manifest import DataFileEntry
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.open_files import LazyFile, OpenFiles
from xtree.persistence.files.platform_fs import SYNC_COVERS_MAPPINGS, Buffer, File, FileSystem, Path, SyncFailedError
from xtree.persistence.pages.mmap_windows import Windows

MAGIC = b"XTREEDAT"
FORMAT = 1
BODY = Struct("<QQB7x")  # number, window bytes, size class
assert BODY.size == 24
FIRST_SLOT = HEADER_BYTES
SMALLEST_PAGE = 4096
LEAST_SLOTS = 4  # of a new file
IN_MEMORY = 0  # the file number of anonymous memory
LEAST_KEPT = 256  # files that may wait for a sync before a commit syncs some of them early


class DataFile:
    """One data file and what is known of it."""

    def __init__(self, file: LazyFile, number: int, size_class: int, bytes_: int, synced_bytes: int) -> None:
        self.file = file
        self.number = number
        self.size_class = size_class
        # bytes is set by extend, under the store's lock; synced_bytes and sync_failed by a sync, under sync_lock.
        # changed is set with the GIL: pages are written before it is set, and a sync clears it before it begins, so it
        # is set again for what the sync might miss.
        self.bytes = bytes_  # its size: every byte below has disk space
        self.synced_bytes = synced_bytes  # these are known to survive a power loss
        self.changed = False  # pages were written since the last sync began
        self.sync_failed = False
        self.sync_lock = RankedLock(SYNCING)


def read_header(file: File, uuid: bytes) -> tuple[int, int, int]:
    """(number, window bytes, size class) from a file's header. Raises CorruptionError, FormatVersionError."""
    page = file.pread(HEADER_BYTES, 0)
    number, window_bytes, size_class = unpack_header(page, MAGIC, FORMAT, BODY, file.path, uuid)[1]
    if not MIB <= window_bytes <= MAX_WINDOW_BYTES or window_bytes % MIB:
        raise CorruptionError(f"{file.path}: at offset 40: expected a window of whole MiB, found {window_bytes} bytes")
    return number, window_bytes, size_class


class DataFiles:
    """The data files of one directory, by window."""

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        uuid: bytes,
        windows: Windows,
        config: StoreConfig,
        writable: bool,
        take_number: Callable[[], int],
    ) -> None:
        self.windows = windows
        self.listed = 0  # how many files the durable manifest lists
        self.report_failed_sync: Callable[[BaseException], None] = lambda error: None
        self.file_of_window: list[int] = []  # the number of each window's file; IN_MEMORY for none
        self._fs = fs
        self._directory = os.fspath(directory)
        self._uuid = uuid
        self._config = config
        self._writable = writable
        self._take_number = take_number
        self._files: dict[int, DataFile] = {}  # by window
        self._open_files = OpenFiles(config.descriptor_budget)
        self._lock = RankedLock(FILE_TABLE)
        windows.set_budget(config.mapping_budget)

    # Opening.

    def attach(self, entry: DataFileEntry, extend: bool = True) -> int:
        """Adds a file that the manifest lists and returns its window. It opens the file only to lengthen it.

        With `extend`, a file that has become shorter is lengthened again if it may be written to; without `extend` that
        is corruption. Raises CorruptionError, also when the file is missing or too long, and OSError.
        """
        path = path_in(self._directory, data_name(entry.size_class, entry.number))
        try:
            found = self._fs.size(path)
        except FileNotFoundError:
            raise CorruptionError(f"{path}: expected a data file that the manifest lists, found none") from None
        largest = max(found, entry.synced_bytes)
        if largest > self._config.window_bytes:
            raise CorruptionError(f"{path}: expected at most {self._config.window_bytes} bytes, found {largest}")
        if found < entry.synced_bytes and not extend:
            raise CorruptionError(f"{path}: expected at least {entry.synced_bytes} bytes, found {found}")
        file = self._lazy(path, entry.number, entry.size_class)
        data_file = DataFile(file, entry.number, entry.size_class, found, min(found, entry.synced_bytes))
        if self._writable and found < entry.synced_bytes:
            self._lengthen(data_file, entry.synced_bytes)
        self.listed += 1
        return self._add(data_file)

    def in_memory(self, pages: Iterable[Buffer]) -> list[int]:
        """Puts pages into anonymous memory, as the file IN_MEMORY, and returns their offsets. For read-only opens."""
        views = [memoryview(page).cast("B") for page in pages]
        offsets = []
        end = FIRST_SLOT
        for view in views:
            offsets.append(end)
            end += view.nbytes + -view.nbytes % SMALLEST_PAGE
        window = self.windows.add_anonymous(end)
        for offset, view in zip(offsets, views, strict=True):
            self.windows.write(window, offset, view)
        with self._lock:
            self.file_of_window.append(IN_MEMORY)
        return offsets

    # What the allocator asks for.

    def new_window(self, size_class: int, spends_reserve: bool = False) -> tuple[int, int, int, int]:
        """Makes a file: (window, offset of its first slot, usable bytes, bytes at most), the bytes from offset 0.

        The file and its name are on the disk when this returns. Raises OSError, and then leaves no file.
        """
        page = SMALLEST_PAGE << size_class
        limit = max(self._config.data_file_limit, FIRST_SLOT + page)
        first = min(max(self._config.data_file_first_bytes, FIRST_SLOT + LEAST_SLOTS * page), limit)
        self._require_space(first, spends_reserve)
        number = self._take_number()
        path = path_in(self._directory, data_name(size_class, number))
        file = self._fs.open(path, "create")
        try:
            reach("data.created")
            file.reserve(first)
            body = BODY.pack(number, self._config.window_bytes, size_class)
            file.pwrite(pack_header(MAGIC, FORMAT, self._uuid, body), 0)
            file.sync()
            self._fs.sync_directory(self._directory)
            reach("data.header_synced")
            lazy = self._lazy(path, number, size_class, file)
            window = self._add(DataFile(lazy, number, size_class, first, first))
        except (OSError, MemoryError) as error:
            file.close()
            with contextlib.suppress(OSError):
                self._fs.unlink(path)
            if isinstance(error, SyncFailedError):
                self.report_failed_sync(error)
            raise
        return window, FIRST_SLOT, first, limit

    def extend(self, window: int, wanted_bytes: int, spends_reserve: bool = False) -> int:
        """Gives a file disk space up to `wanted_bytes` from its beginning; returns how many it has. Raises OSError."""
        data_file = self._files[window]
        wanted = min(wanted_bytes, self._limit_of(data_file))
        if wanted > data_file.bytes:
            self._require_space(wanted - data_file.bytes, spends_reserve)
            self._lengthen(data_file, wanted)
            reach("data.extended")
        self.windows.grow(window, data_file.bytes)  # also when that failed the last time
        return data_file.bytes

    # Reading and writing past the windows, for recovery.

    def read(self, number: int, offset: int, n: int) -> bytes:
        """Bytes of a file; fewer than asked for at its end."""
        with self._file_of(number).file.opened() as file:
            return file.pread(n, offset)

    def write(self, number: int, offset: int, data: Buffer) -> None:
        """Writes bytes to a file, which is lengthened if need be."""
        window = self.windows_by_number()[number]
        data_file = self._files[window]
        end = offset + memoryview(data).nbytes
        if end > data_file.bytes:
            self._lengthen(data_file, end)
            self.windows.grow(window, end)
        with data_file.file.opened() as file:
            data_file.file.keep()
            file.pwrite(data, offset)
        data_file.changed = True
        if overdue := self.overdue():
            self.sync(overdue)

    # Syncing.

    def mark_dirty(self, window: int) -> bool:
        """Notes that pages of a window were written, before the sync that must cover them. Raises OSError.

        Returns whether that is news: then there may be `overdue` windows.
        """
        data_file = self._files[window]
        if data_file.changed:  # a sync that begins from now on clears the mark before it begins
            return False
        data_file.file.keep()
        data_file.changed = True
        return True

    def overdue(self) -> set[int]:
        """The windows to sync early: when very many files wait for a sync, those of the files that wait longest."""
        kept = self._open_files.kept_count
        if kept <= LEAST_KEPT or kept <= self._config.descriptor_budget:
            return set()
        longest = set(self._open_files.kept[: LEAST_KEPT // 2])
        return {window for window, data_file in list(self._files.items()) if data_file.file in longest}

    def sync(self, windows: Iterable[int] | None = None) -> list[int]:
        """Puts all that was written to these windows (None: to any) on the disk; returns those that needed a sync.

        Raises OSError, and from then on StoreFailedError for a file whose sync has failed.
        """
        with self._lock:
            chosen = list(self._files) if windows is None else sorted(windows)
        synced = [window for window in chosen if self._sync(window, self._files[window])]
        if synced:
            reach("data.synced")
        return synced

    # What others want to know.

    @property
    def manifest_needed(self) -> bool:
        """Whether there is a file that no durable manifest lists."""
        return len(self._files) > self.listed

    def entries(self) -> list[DataFileEntry]:
        """The files for the manifest, by number, with sizes that are on the disk."""
        with self._lock:
            files = sorted(self._files.values(), key=lambda data_file: data_file.number)
        return [DataFileEntry(f.number, f.size_class, f.synced_bytes) for f in files]

    def attached(self) -> Iterator[tuple[int, int, int, int]]:
        """(window, size class, usable bytes, bytes at most) of each file."""
        for window, data_file in list(self._files.items()):
            yield window, data_file.size_class, data_file.bytes, self._limit_of(data_file)

    def windows_by_number(self) -> dict[int, int]:
        """The window of each file number."""
        return {number: window for window, number in enumerate(self.file_of_window)}

    def in_memory_only(self) -> list[int]:
        """The windows that have no file."""
        return [window for window in range(len(self.file_of_window)) if window not in self._files]

    def path_of(self, window: int) -> str:
        """The path of a window's file, for messages."""
        data_file = self._files.get(window)
        return f"{self._directory} (rebuilt page)" if data_file is None else data_file.file.path

    def verify_headers(self) -> None:
        """Reads the header of every file anew. Raises CorruptionError, FormatVersionError, OSError."""
        for window in list(self._files):
            self.verify_header(window)

    def verify_header(self, window: int) -> None:
        """Reads the header of a window's file anew; raises what `verify_headers` does."""
        data_file = self._files[window]
        with data_file.file.opened() as file:
            self._verify_header(file, data_file.number, data_file.size_class)

    def stats(self) -> dict[str, Any]:
        """Files and their bytes, in all and by size class, and the descriptors open for them."""
        by_class: dict[int, dict[str, int]] = {}
        for _, size_class, size, _ in self.attached():
            one = by_class.setdefault(size_class, {"files": 0, "bytes": 0})
            one["files"] += 1
            one["bytes"] += size
        return {
            "files": sum(one["files"] for one in by_class.values()),
            "bytes": sum(one["bytes"] for one in by_class.values()),
            "by_class": by_class,
            "descriptors": self._open_files.stats(),
        }

    # Closing.

    def trim(self, top_bytes: Callable[[int], int]) -> list[int]:
        """Before a clean close, lets `entries` give no more than each file's used slots; returns which will shrink.

        `top_bytes(window)` is where the highest used slot ends. The caller saves the manifest, unmaps the windows and
        then calls `cut`: if a file were cut first, a crash would leave it shorter than the manifest says.
        """
        shrinking = []
        for window, data_file in self._files.items():
            top = max(top_bytes(window), FIRST_SLOT)
            if top < data_file.bytes and top <= data_file.synced_bytes and not data_file.changed:
                data_file.synced_bytes = top
                shrinking.append(window)
        return shrinking

    def cut(self, windows: Iterable[int]) -> None:
        """Shortens files to the sizes that `trim` has set. No process may have them mapped beyond that."""
        for window in windows:
            data_file = self._files[window]
            with data_file.file.opened() as file:
                file.truncate(data_file.synced_bytes)
            data_file.bytes = data_file.synced_bytes
        reach("data.truncated")

    def close(self) -> None:
        """Closes every descriptor; nothing is written."""
        self._open_files.close()

    def _lazy(self, path: str, number: int, size_class: int, file: File | None = None) -> LazyFile:
        def open_() -> File:
            opened = self._fs.open(path, "rw" if self._writable else "r")
            try:
                self._verify_header(opened, number, size_class)
            except BaseException:
                opened.close()
                raise
            return opened

        return LazyFile(self._open_files, path, open_, file)

    def _limit_of(self, data_file: DataFile) -> int:
        """How long a file may get. One that is longer already than files may get now stays as it is."""
        return max(data_file.bytes, self._config.data_file_limit)

    def _lengthen(self, data_file: DataFile, n: int) -> None:
        """Gives a file disk space up to `n` bytes, which the next sync makes durable."""
        with data_file.file.opened() as file:
            data_file.file.keep()
            file.reserve(n)
        data_file.bytes = n
        data_file.changed = True

    def _add(self, data_file: DataFile) -> int:
        with self._lock:
            window: int = self.windows.add_file(data_file.file, self._config.window_bytes, data_file.bytes)
            # An interrupt between these lines leaves a window that nobody uses.
            self.file_of_window.extend([IN_MEMORY] * (window - len(self.file_of_window)))
            self.file_of_window.append(data_file.number)
            self._files[window] = data_file
        return window

    def _sync(self, window: int, data_file: DataFile) -> bool:
        with data_file.sync_lock:
            if data_file.sync_failed:
                raise StoreFailedError(f"{data_file.file.path}: an earlier sync of it failed")
            if not data_file.changed:
                if data_file.file.kept:  # for a transaction that was undone, or will call mark_dirty when it commits
                    self._begin_sync(window, data_file)
                    data_file.file.end_sync()
                return False
            with data_file.file.opened() as file:
                self._begin_sync(window, data_file)
                size = data_file.bytes
                try:
                    if not SYNC_COVERS_MAPPINGS:
                        self._flush(window, data_file)
                    file.sync()
                except BaseException as error:
                    data_file.sync_failed = True
                    self.report_failed_sync(error)
                    raise
            data_file.synced_bytes = size
            data_file.file.end_sync()
        return True

    def _begin_sync(self, window: int, data_file: DataFile) -> None:
        """Pages written from here on count for the next sync."""
        data_file.file.begin_sync()
        self.windows.expect_writes(window)
        data_file.changed = False

    def _flush(self, window: int, data_file: DataFile) -> None:
        try:
            self.windows.flush(window, 0, data_file.bytes)
        except OSError as error:
            raise SyncFailedError(error.errno, error.strerror, data_file.file.path) from error

    def _file_of(self, number: int) -> DataFile:
        return self._files[self.windows_by_number()[number]]

    def _verify_header(self, file: File, number: int, size_class: int) -> None:
        found = read_header(file, self._uuid)
        expected = (number, self._config.window_bytes, size_class)
        if found != expected:
            raise CorruptionError(
                f"{file.path}: at offset 32: expected number, window bytes and size class {expected}, found {found}"
            )

    def _require_space(self, n: int, spends_reserve: bool) -> None:
        reserve_bytes = self._config.reserve_bytes
        require_space(self._fs, self._directory, n, reserve_bytes // 2 if spends_reserve else reserve_bytes)
