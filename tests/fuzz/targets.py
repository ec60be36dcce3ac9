"""What the fuzzers feed: each parser, and a whole directory, with any bytes whose CRCs were made right.

A target is a function of bytes. Anything that it raises except CorruptionError and FormatVersionError is a finding;
what it returns doesn't matter. `TARGETS` gives each with the bytes to begin with. They run without a fuzzer too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from crc32c import crc32c
from support.accidental_mutants import pages_in_use
from support.forged_files import (
    Files,
    checkpoints_of,
    data_files_of,
    frames_of,
    logs_of,
    manifest_with,
    parts_of,
    replaced,
    seal_checkpoint,
    seal_log,
    sealed_header,
    with_page,
)
from support.sample_indexes import CONFIG, answers_of, build, lay_out

import xtree
from xtree.algorithms.tree_state import TreeState
from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.files import checkpoint, filenames
from xtree.persistence.files.file_header import CRC_OFFSET, HEADER_BYTES
from xtree.persistence.files.frame import FRAME_CRC_OFFSET, FRAME_HEADER_BYTES, FRAME_MAGIC, frame_crc
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import Superblock
from xtree.persistence.files.wal_reader import find_later_link, read_log
from xtree.persistence.pages.file_places import FilePlaces
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.pages.stored_table import restore_table
from xtree.persistence.recovery.replay import Replay
from xtree.persistence.store.catalog import Catalog, decode_changes

REFUSALS = (CorruptionError, FormatVersionError)
UUID = bytes(range(16))
EDIT = struct.Struct("<BIB")  # which part, where in it, how many bytes follow
U32 = struct.Struct("<I")


class Workplace:
    """A directory of its own, and the healthy indexes from which seeds and directories are made."""

    def __init__(self) -> None:
        base = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.folder = Path(tempfile.mkdtemp(prefix="xtree-fuzz-", dir=base))
        self.indexes = {kind: build(kind, self.folder / kind).files for kind in ("closed", "killed", "structure")}
        self.uuid = self.indexes["killed"][filenames.SUPERBLOCK][16:32]
        self.fs = FileSystem()

    def put(self, name: str, data: bytes) -> Path:
        """Writes a file with this content."""
        path = self.folder / name
        path.write_bytes(data)
        return path

    def remove(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self.folder, ignore_errors=True)


# The parsers, one by one.


def superblock(place: Workplace, data: bytes) -> None:
    """One copy, its CRC made right."""
    page = data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    value = Superblock.decode(sealed_header(page), "superblock")
    assert Superblock.decode(value.encode(), "superblock") == value


def manifest(place: Workplace, data: bytes) -> None:
    """A body, with the first line and CRC that it must have; and bytes as they are."""
    with contextlib.suppress(*REFUSALS):
        Manifest.decode(data)
    value = Manifest.decode(manifest_with(data))
    assert Manifest.decode(value.encode()) == value


def checkpoint_file(place: Workplace, data: bytes) -> None:
    """A file with both its CRCs right; its rows and catalog are restored too."""
    data = data[:1 << 16]
    header = data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    rest = data[HEADER_BYTES:].ljust(checkpoint.FOOTER_BYTES, b"\0")
    header = replaced(header, 72, struct.pack("<Q", len(header) + len(rest)))  # otherwise hardly anything gets further
    whole = sealed_header(header) + rest
    at = len(whole) - checkpoint.FOOTER_BYTES
    whole = replaced(whole, at, checkpoint.FOOTER_MAGIC + bytes(8) + struct.pack("<Q", len(whole)))
    whole = replaced(whole, at + 8, U32.pack(crc32c(whole)))
    number = struct.unpack_from("<Q", whole, 32)[0]
    if not 1 <= number <= filenames.MAX_NUMBER:
        return
    path = place.put(filenames.checkpoint_name(number), whole)
    try:
        found = checkpoint.read(place.fs, str(place.folder), number, whole[16:32])
        files = {entry.number: (i, entry.size_class) for i, entry in enumerate(found.data_files)}
        with contextlib.suppress(*REFUSALS):
            restore_table(ObjectTable(), found.epoch, *found.table, FilePlaces(files, 1 << 20))
        for entry in Catalog.decode(found.catalog):
            with contextlib.suppress(*REFUSALS):
                TreeState.decode(entry.state, entry.root)
    finally:
        path.unlink()


def log(place: Workplace, data: bytes) -> None:
    """A log whose frames have the CRCs they must have, read and replayed."""
    data = sealed_frames(data[:1 << 16].ljust(HEADER_BYTES, b"\0"))
    path = place.put("fuzzed.log", data)
    uuid = data[16:32]
    number = struct.unpack_from("<Q", data, 32)[0]
    with contextlib.closing(read_log(place.fs, path, uuid, number)) as reader:
        table = ObjectTable()
        replay = Replay(table, FilePlaces({2: (0, 0), 3: (1, 1)}, 1 << 20), Catalog(), 0)
        try:
            for run in reader.runs():
                replay.apply(run)
            assert replay.catalog is not None
            replay.finish()
            table.check()
            with contextlib.suppress(*REFUSALS):
                replay.check_pages(lambda window, offset, n: bytes(n), str)
            for _ in replay.image_runs():
                pass
        finally:
            find_later_link(place.fs, path, uuid, number, reader.end_offset, reader.last_epoch)


def sealed_frames(data: bytes) -> bytes:
    """The log with its frames linked and sealed, as far as each length leads to a next frame."""
    data = sealed_header(data)
    previous = U32.unpack_from(data, CRC_OFFSET)[0]
    changed, at = bytearray(data), HEADER_BYTES
    while at + FRAME_HEADER_BYTES <= len(data):
        length = struct.unpack_from("<Q", data, at + 8)[0]
        if not FRAME_HEADER_BYTES <= length <= len(data) - at:
            break
        changed[at:at + 4] = FRAME_MAGIC
        changed[at + 16:at + 32] = data[16:32]
        struct.pack_into("<QI", changed, at + 32, at, previous)
        changed[at + 96:at + 104] = data[32:40]
        previous = frame_crc(bytes(changed[at:at + length]))
        changed[at + FRAME_CRC_OFFSET:at + FRAME_CRC_OFFSET + 4] = U32.pack(previous)
        at += length
        if at % HEADER_BYTES and data[at:at + 4] != FRAME_MAGIC:
            at += -at % HEADER_BYTES
    return bytes(changed)


def catalog(place: Workplace, data: bytes) -> None:
    """Records of a checkpoint or a frame, and the states of trees in them."""
    with contextlib.suppress(*REFUSALS):
        changes = decode_changes(data)
        for entry in changes.values():
            if entry is not None:
                with contextlib.suppress(*REFUSALS):
                    TreeState.decode(entry.state, entry.root)
    value = Catalog.decode(data)
    assert Catalog.decode(value.encode()) == value


# A whole directory.


def directory(place: Workplace, data: bytes) -> None:
    """A small index with edits, which `data` lists; opened, questioned, checked and closed."""
    kinds = list(place.indexes)
    files = edited(place.indexes[kinds[data[0] % len(kinds)]] if data else place.indexes["killed"], data[1:])
    lay_out(place.folder / "index", files)
    mode = "a" if data[:1] >= b"\x80" else "r"
    with xtree.Runtime(place.folder / "index", mode, config=CONFIG) as runtime:
        for name in runtime.trees():
            with contextlib.suppress(*REFUSALS):
                answers_of(runtime.tree(name))
        with contextlib.suppress(*REFUSALS):
            runtime.check()


def edited(files: Files, data: bytes) -> Files:
    """The files after some edits, each of a part of one of them, all CRCs right."""
    files = dict(files)
    parts = [*sorted(files), *pages_in_use(files)]
    edits = []
    at = 0
    for _ in range(8):
        if at + EDIT.size > len(data):
            break
        which, where, n = EDIT.unpack_from(data, at)
        new = data[at + EDIT.size:at + EDIT.size + n % 64]
        at += EDIT.size + n % 64
        if new:
            edits.append((parts[which % len(parts)], where, new))
    for part, where, new in sorted(edits, key=lambda edit: turn_of(edit[0])):
        files |= edit_of(files, part, where, new)
    return files


def turn_of(part: str | tuple[str, int, int]) -> int:
    """When a part is edited: before the parts that are read to make its CRCs right, since these may become nonsense."""
    if isinstance(part, tuple):
        return 0
    return 2 if part == filenames.MANIFEST else 1


def edit_of(files: Files, part: str | tuple[str, int, int], where: int, new: bytes) -> Files:
    """One edit, and the CRCs that go with it."""
    if isinstance(part, tuple):
        name, offset, size = part
        page = files[name][offset:offset + size]
        where %= size - len(new) + 1
        return with_page(files, name, offset, replaced(page, where, new))
    data = files[part]
    if part == filenames.MANIFEST:
        body = data.split(b"\n", 1)[1][:-2]
        return {part: manifest_with(replaced(body, where % len(body), new))}
    parts = [(0, min(HEADER_BYTES, len(data)))]
    frames = frames_of(data) if part in logs_of(files) else []
    parts += frames or [(0, len(data))]
    begin, length = parts[(where >> 20) % len(parts)]
    at = begin + (where & 0xFFFFF) % max(1, length - len(new) + 1)
    changed = replaced(data, at, new)[:len(data)]
    if frames:
        return seal_log(files, part, changed, frames)
    if part in checkpoints_of(files):
        return seal_checkpoint(files, part, changed)
    if part in data_files_of(files) or len(data) < 2 * HEADER_BYTES:
        return {part: sealed_header(changed)}
    return {part: sealed_header(sealed_header(changed), HEADER_BYTES)}


# Seeds.


def seeds(place: Workplace) -> dict[str, list[bytes]]:
    """Real files, or parts of them, for each target to begin with."""
    found: dict[str, list[bytes]] = {name: [] for name in TARGETS}
    for files in place.indexes.values():
        found["superblock"].append(files[filenames.SUPERBLOCK][:HEADER_BYTES][:80])
        found["manifest"].append(files[filenames.MANIFEST].split(b"\n", 1)[1][:-2])
        for name in checkpoints_of(files):
            data = files[name]
            at = parts_of(data)[2]
            found["checkpoint"].append(data)
            found["catalog"].append(data[at:at + struct.unpack_from("<Q", data, 56)[0]])
        for name in logs_of(files):
            frames = frames_of(files[name])
            if frames:
                found["log"].append(files[name][:sum(frames[-1])])
    found["directory"] = [bytes([i]) + EDIT.pack(i, 1 << 20 | 40, 8) + bytes(8) for i in range(12)]
    return found


TARGETS: dict[str, Callable[[Workplace, bytes], None]] = {
    "superblock": superblock,
    "manifest": manifest,
    "checkpoint": checkpoint_file,
    "log": log,
    "catalog": catalog,
    "directory": directory,
}


def run(place: Workplace, name: str, data: bytes) -> bool:
    """Feeds a target, and returns whether it took the bytes. What it raises besides the two refusals is a finding."""
    try:
        TARGETS[name](place, data)
    except REFUSALS:
        return False
    return True
