"""The superblock: identity and epochs of an index, in two copies of 4 KiB each.

    offset  size  name           meaning (of a copy; offsets 0 to 31 as in file_header.py)
    32      8     generation     one more with every write; the copy with the higher one counts
    40      8     epoch          last epoch known to be committed when it was written, in strict the last committed; or
                                 passed over at the end of a recovery
    48      8     durable_epoch  everything up to this epoch was on the disk; its loss is damage
    56      8     epoch_ceiling  no epoch at or above it has been handed out
    64      1     mode           durability mode of the writer: 1 strict, 2 balanced, 3 eventual
    65      7     -              zero

Invariants:

1. At every moment at least one copy is on the disk whole: a write goes only to the copy that isn't the last synced
   one. After opening nobody knows which that is, so the first write rewrites the newest copy in place, byte for byte,
   and syncs it. If only one copy can be read, it is synced as it is: a crash could tear it while it is rewritten.
2. Generations grow by one; epochs never regress; durable_epoch <= epoch <= epoch_ceiling.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from struct import Struct
from typing import Any

from xtree.errors import CorruptionError, FormatVersionError, StoreFailedError
from xtree.persistence.base.config import MAX_EPOCH
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.lock_ranks import SUPERBLOCK as SUPERBLOCK_RANK
from xtree.persistence.base.lock_ranks import RankedLock
from xtree.persistence.files.file_header import HEADER_BYTES, pack_header, unpack_header
from xtree.persistence.files.filenames import SUPERBLOCK
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import File, FileSystem, SyncFailedError

MAGIC = b"XTSUPER\0"
FORMAT = 1
BODY = Struct("<QQQQB7x")
assert BODY.size == 40
COPIES = 2
MOST = 2 * MAX_EPOCH  # the most that a generation or a ceiling can have reached
CREATED = 2  # generation of a new index, as long as nothing was published
MODES = {"strict": 1, "balanced": 2, "eventual": 3}  # never renumber
MODE_NAMES = {number: name for name, number in MODES.items()}
_EPOCHS = ("epoch", "durable_epoch", "epoch_ceiling")


@dataclass(frozen=True)
class Superblock:
    """The values of one copy."""

    uuid: bytes
    generation: int = 1
    epoch: int = 0
    durable_epoch: int = 0
    epoch_ceiling: int = 0
    mode: str = "balanced"

    def __post_init__(self) -> None:
        if not 0 <= self.durable_epoch <= self.epoch <= self.epoch_ceiling < 1 << 64:
            raise ValueError(
                f"epochs must be in the order durable {self.durable_epoch}, current {self.epoch}, "
                f"ceiling {self.epoch_ceiling}"
            )

    def encode(self) -> bytes:
        """One copy, as its 4096 bytes."""
        body = BODY.pack(self.generation, self.epoch, self.durable_epoch, self.epoch_ceiling, MODES[self.mode])
        return pack_header(MAGIC, FORMAT, self.uuid, body)

    @classmethod
    def decode(cls, data: bytes, path: str, offset: int = 0) -> Superblock:
        """The values of a copy. Raises CorruptionError, FormatVersionError."""
        uuid, (generation, epoch, durable, ceiling, mode) = unpack_header(
            data, MAGIC, FORMAT, BODY, path, offset=offset
        )
        in_order = durable <= epoch <= min(ceiling, MAX_EPOCH)
        if mode not in MODE_NAMES or not in_order or max(ceiling, generation) > MOST:
            raise CorruptionError(
                f"{path}: at offset {offset}: expected a mode, epochs in order and a generation, "
                f"found {mode}, {durable}, {epoch}, {ceiling}, {generation}"
            )
        return cls(uuid, generation, epoch, durable, ceiling, MODE_NAMES[mode])


class SuperblockFile:
    """The open superblock of a directory. `publish` may be called from any thread."""

    def __init__(self, file: File, value: Superblock, newest: int, readable: int, synced: int | None) -> None:
        # `publish` writes value, _generation, _newest and _synced under the lock. `verify` reads them without it:
        # _generation is raised before a write begins and value is set after it has ended, so wrong bytes count only if
        # neither has changed since before they were read and no write of that copy is under way.
        self.value = value
        self.copies_readable = readable
        self._file = file
        file.of_commits = True
        self._newest = newest
        self._synced = synced  # the last synced copy; None when it isn't known, after opening
        self._generation = value.generation  # the last one that was written, or was about to be
        self._failed = False  # whether a sync has failed
        self._lock = RankedLock(SUPERBLOCK_RANK)

    @classmethod
    def create(cls, fs: FileSystem, directory: str, value: Superblock) -> SuperblockFile:
        """Makes superblock.bin with both copies, generations n and n + 1, and syncs it and the directory."""
        path = path_in(directory, SUPERBLOCK)
        file = fs.open(path, "create")
        try:
            newer = dataclasses.replace(value, generation=value.generation + 1)
            reach("superblock.before_write")
            file.pwritev([value.encode(), newer.encode()], 0)
            reach("superblock.written")
            file.sync()
            reach("superblock.synced")
            fs.sync_directory(directory)
        except BaseException:
            file.close()
            raise
        return cls(file, newer, 1, COPIES, 1)

    @classmethod
    def open(cls, fs: FileSystem, directory: str, writable: bool) -> SuperblockFile:
        """Reads both copies and takes the newer one.

        Raises FileNotFoundError; CorruptionError when neither copy can be read; FormatVersionError when one of them is
        of another version.
        """
        path = path_in(directory, SUPERBLOCK)
        file = fs.open(path, "rw" if writable else "r")
        try:
            value, newest, readable = _read_copies(file)
        except BaseException:
            file.close()
            raise
        return cls(file, value, newest, readable, None)

    def confirm_creation(self, fs: FileSystem, directory: str) -> None:
        """Syncs the file and its directory if nothing was published since it was made: its maker may have been killed.

        Raises SyncFailedError.
        """
        if self.value.generation <= CREATED:
            self._file.sync()
            fs.sync_directory(directory)

    def verify(self, after_crash: bool) -> None:
        """Reads both copies once more, while others may write; after a crash one may be torn until both are written.

        A copy that is being written, or whose write has failed, doesn't count as damaged. Raises CorruptionError,
        FormatVersionError, OSError.
        """
        for copy in range(COPIES):
            if copy == self._newest or self.copies_readable == COPIES or not after_crash:
                self._verify_copy(copy)
        if self._file.size() != COPIES * HEADER_BYTES:
            expected = f"{COPIES} copies of {HEADER_BYTES} bytes"
            raise CorruptionError(f"{self._file.path}: expected {expected}, found {self._file.size()} bytes")

    def _verify_copy(self, copy: int) -> None:
        offset = copy * HEADER_BYTES
        for _ in range(COPIES + 1):  # a write that goes on meanwhile may be read half done: read again
            generation, settled = self._generation, self._newest if self._synced is None else self._synced
            try:
                found = Superblock.decode(self._file.pread(HEADER_BYTES, offset), self._file.path, offset)
                if found.uuid != self.value.uuid:
                    raise CorruptionError(
                        f"{self._file.path}: at offset {offset}: expected a copy of index {self.value.uuid.hex()}, "
                        f"found one of {found.uuid.hex()}"
                    )
                return
            except CorruptionError:
                quiet = generation == self.value.generation or copy == settled
                if quiet and generation == self._generation:
                    raise

    def sync(self) -> None:
        """Puts on the disk what was found in the file: a process that was killed may have left it in the cache only.

        Nothing is written, so no whole copy can be torn. Raises SyncFailedError.
        """
        with self._lock:
            try:
                self._file.sync()
            except SyncFailedError:
                self._failed = True
                raise

    def publish(self, sync: bool, **changes: Any) -> Superblock:
        """Writes the values with these changes, as the next generation, to the copy that may be overwritten.

        An epoch never goes back: several threads may publish what each has reached. Raises ValueError, and writes
        nothing, for values that can't be. After a failed sync nobody knows which copy is on the disk: the file isn't
        written again, and StoreFailedError is raised.
        """
        with self._lock:
            if self._failed:
                raise StoreFailedError(f"{self._file.path}: an earlier sync of it failed")
            before = self.value
            for name in _EPOCHS:
                if name in changes:
                    changes[name] = max(changes[name], getattr(before, name))
            after = dataclasses.replace(before, **changes, generation=self._generation + 1)
            if after.uuid != before.uuid:
                raise ValueError("the UUID of an index never changes")
            self._generation = after.generation
            try:
                self._write(after, sync)
            except SyncFailedError:
                self._failed = True
                raise
            self.value = after
            self.copies_readable = COPIES
            return after

    def _write(self, after: Superblock, sync: bool) -> None:
        if self._synced is None:
            self._settle()
        target = 1 - self._newest if self._newest == self._synced else self._newest
        reach("superblock.before_write")
        self._file.pwrite(after.encode(), target * HEADER_BYTES)
        reach("superblock.written")
        if sync:
            self._file.sync()
            self._synced = target
            reach("superblock.synced")
        self._newest = target

    def close(self) -> None:
        """Closes the file; nothing is written."""
        self._file.close()

    def _settle(self) -> None:
        if self.copies_readable == COPIES:
            self._file.pwrite(self.value.encode(), self._newest * HEADER_BYTES)
        self._file.sync()
        self._synced = self._newest


def _read_copies(file: File) -> tuple[Superblock, int, int]:
    """(newest value, which copy it is, how many could be read)"""
    found: list[tuple[Superblock, int]] = []
    problems: list[str] = []
    for copy in range(COPIES):
        offset = copy * HEADER_BYTES
        try:
            found.append((Superblock.decode(file.pread(HEADER_BYTES, offset), file.path, offset), copy))
        except FormatVersionError:
            raise
        except CorruptionError as error:
            problems.append(str(error))
    if not found:
        raise CorruptionError("no copy of the superblock can be read: " + "; ".join(problems))
    if len(found) == COPIES and found[0][0].uuid != found[1][0].uuid:
        raise CorruptionError(
            f"{file.path}: expected two copies of one index, found {found[0][0].uuid.hex()} and "
            f"{found[1][0].uuid.hex()}"
        )
    value, copy = max(found, key=lambda pair: pair[0].generation)
    return value, copy, len(found)
