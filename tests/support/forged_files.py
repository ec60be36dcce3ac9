"""Files of an index changed so that every CRC is right: only a look at what they say can tell.

A file is its bytes here, and an index a dict of them by name. After a part was changed, the function for the whole
(`seal_log`, `seal_checkpoint`) makes the CRCs right again, also where other files repeat them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from crc32c import crc32c

from xtree.persistence.files import checkpoint, filenames, manifest
from xtree.persistence.files.file_header import CRC_OFFSET, HEADER_BYTES
from xtree.persistence.files.frame import (
    FRAME_CRC_OFFSET,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    LINK,
    SECTOR_BYTES,
    FrameHeader,
    aligned,
    frame_crc,
)
from xtree.persistence.pages.page_checksum import page_crc_of

Files = dict[str, bytes]
U32 = struct.Struct("<I")
PAGE_CRC_OFFSET = 4
PREVIOUS_CRC_OFFSET = 40
NO_CRC = b"00000000"


def keeping_its_crc(page: bytes, changes: dict[int, bytes], free: int) -> bytes:
    """The page with bytes replaced, by offset, and with the 4 bytes at `free` such that its CRC stays what it was.

    A CRC is linear: each of the 32 bits at `free` flips a fixed set of its bits, whatever else the page holds.
    """
    changed = bytearray(page)
    for at, new in changes.items():
        changed[at:at + len(new)] = new
    changed[free:free + 4] = bytes(4)
    blank = page_crc_of(bytes(changed))
    columns = []
    for bit in range(32):
        changed[free:free + 4] = (1 << bit).to_bytes(4, "little")
        columns.append(page_crc_of(bytes(changed)) ^ blank)
    changed[free:free + 4] = solve(columns, blank ^ page_crc_of(page)).to_bytes(4, "little")
    assert page_crc_of(bytes(changed)) == page_crc_of(page)
    return bytes(changed)


def solve(columns: list[int], wanted: int) -> int:
    """The columns, as a bit set, whose exclusive or is `wanted`."""
    matrix = np.array([[column >> row & 1 for column in columns] + [wanted >> row & 1] for row in range(32)], np.uint8)
    for pivot in range(32):
        row = pivot + int(np.argmax(matrix[pivot:, pivot]))
        assert matrix[row, pivot]
        matrix[[pivot, row]] = matrix[[row, pivot]]
        others = (matrix[:, pivot] == 1) & (np.arange(32) != pivot)
        matrix[others] ^= matrix[pivot]
    return sum(int(bit) << row for row, bit in enumerate(matrix[:, 32]))


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    """The bytes with some of them replaced."""
    return data[:at] + new + data[at + len(new):]


def logs_of(files: Files) -> list[str]:
    """The names of the logs, oldest first."""
    return sorted(name for name in files if filenames.parse_log(name) is not None)


def checkpoints_of(files: Files) -> list[str]:
    """The names of the checkpoints, oldest first."""
    return sorted(name for name in files if filenames.parse_checkpoint(name) is not None)


def data_files_of(files: Files) -> list[str]:
    """The names of the data files."""
    return sorted(name for name in files if filenames.parse_data(name) is not None)


# Headers and the manifest.


def sealed_header(data: bytes, at: int = 0) -> bytes:
    """The file with the CRC of the header page at an offset made right."""
    page = bytearray(data[at:at + HEADER_BYTES])
    page[CRC_OFFSET:CRC_OFFSET + 4] = bytes(4)
    return replaced(data, at + CRC_OFFSET, U32.pack(crc32c(page)))


def manifest_of(files: Files) -> dict[str, Any]:
    """The values of the manifest."""
    values: dict[str, Any] = json.loads(files[filenames.MANIFEST])["body"]
    return values


def manifest_with(body: bytes, file_format: int = manifest.FORMAT) -> bytes:
    """A manifest of any body, with its CRC."""
    data = b'{"format": %d, "crc32c": "%s", "body":\n' % (file_format, NO_CRC) + body + b"}\n"
    return data.replace(NO_CRC, b"%08x" % crc32c(data), 1)


def with_manifest(files: Files, edit: Callable[[dict[str, Any]], object]) -> Files:
    """The manifest after an edit of its values."""
    values = manifest_of(files)
    edit(values)
    return {filenames.MANIFEST: manifest_with(json.dumps(values, indent=1).encode())}


# Checkpoints.


def rows_of(data: bytes) -> np.ndarray:
    """A copy of a checkpoint's rows of live pages."""
    count = checkpoint.BODY.unpack_from(data, checkpoint.PREFIX.size)[2]
    return np.frombuffer(data, checkpoint.ROW, count, HEADER_BYTES).copy()


def parts_of(data: bytes) -> tuple[int, int, int]:
    """Where the list of data files, the tags and the catalog of a checkpoint begin."""
    _, _, rows, _, data_files, _ = checkpoint.BODY.unpack_from(data, checkpoint.PREFIX.size)
    files_at = HEADER_BYTES + checkpoint.ROW_BYTES * rows
    tags_at = files_at + checkpoint.DATA_FILE_BYTES * data_files
    handles = sum(checkpoint.COUNTS.unpack_from(data, checkpoint.COUNTS_OFFSET))
    return files_at, tags_at, tags_at + aligned(handles)


def with_rows(data: bytes, rows: np.ndarray) -> bytes:
    """The checkpoint with other rows, of the same number."""
    return replaced(data, HEADER_BYTES, rows.tobytes())


def seal_checkpoint(files: Files, name: str, data: bytes) -> Files:
    """The files with a changed checkpoint and its right CRCs, also in the manifest."""
    data = sealed_header(data)
    crc = U32.unpack_from(data, len(data) - checkpoint.FOOTER_BYTES + checkpoint.FOOTER_CRC_OFFSET)[0]
    if len(data) >= HEADER_BYTES + checkpoint.FOOTER_BYTES:
        at = len(data) - checkpoint.FOOTER_BYTES + checkpoint.FOOTER_CRC_OFFSET
        crc = crc32c(replaced(data, at, bytes(4)))
        data = replaced(data, at, U32.pack(crc))
    epoch = checkpoint.BODY.unpack_from(data, checkpoint.PREFIX.size)[1]

    def edit(values: dict[str, Any]) -> None:
        for entry in values["checkpoints"]:
            if entry["number"] == filenames.parse_checkpoint(name):
                entry.update(crc=crc, epoch=epoch, bytes=len(data))

    return {name: data, **with_manifest(files, edit)}


# Logs.


def frames_of(data: bytes) -> list[tuple[int, int]]:
    """(offset, length) of the frames of a healthy log."""
    found = []
    at = HEADER_BYTES
    while at + FRAME_HEADER_BYTES <= len(data):
        if data[at:at + 4] == FRAME_MAGIC:
            length = FrameHeader(data[at:at + FRAME_HEADER_BYTES]).length
            if length < FRAME_HEADER_BYTES:  # a forged length
                break
            found.append((at, length))
            at += length
        elif at % SECTOR_BYTES:
            at = aligned(at, SECTOR_BYTES)
        else:
            break
    return found


def seal_log(files: Files, name: str, data: bytes, frames: list[tuple[int, int]]) -> Files:
    """The files with a changed log and right CRCs: the next frame repeats each, and other files the last one."""
    data = sealed_header(data)
    previous = U32.unpack_from(data, CRC_OFFSET)[0]
    changed = bytearray(data)
    before = None
    for at, length in frames:
        before = U32.unpack_from(changed, at + FRAME_CRC_OFFSET)[0]
        changed[at + PREVIOUS_CRC_OFFSET:at + PREVIOUS_CRC_OFFSET + 4] = U32.pack(previous)
        previous = frame_crc(bytes(changed[at:at + length]))
        changed[at + FRAME_CRC_OFFSET:at + FRAME_CRC_OFFSET + 4] = U32.pack(previous)
    sealed = {name: bytes(changed)}
    if before is None or before == previous:
        return sealed
    number = filenames.parse_log(name)

    def edit(values: dict[str, Any]) -> None:
        for entry in values["logs"]:
            if entry["number"] == number and entry["closed"] is not None:
                entry["closed"]["last_crc"] = previous

    sealed |= with_manifest(files, edit)
    for other in logs_of(files):
        following = frames_of(files[other])
        if not following or other == name:
            continue
        at = following[0][0] + FRAME_HEADER_BYTES
        link = LINK.unpack_from(files[other], at)
        if link[0] == number and link[3] == before:
            link_now = LINK.pack(*link[:3], previous, 0)
            sealed |= seal_log({**files, **sealed}, other, replaced(files[other], at, link_now), following)
    return sealed


# Pages.


def with_page(files: Files, data_name: str, offset: int, page: bytes) -> Files:
    """The files with a page replaced. Its CRC is in the page, and in the rows of all checkpoints with the old one."""
    page = replaced(page, PAGE_CRC_OFFSET, U32.pack(page_crc_of(page)))
    old = files[data_name][offset:offset + len(page)]
    number = filenames.parse_data(data_name)[1]
    changed = {data_name: replaced(files[data_name], offset, page)}
    for name in checkpoints_of(files):
        rows = rows_of(files[name])
        here = (rows["file_number"] == number) & (rows["offset_4k"] == offset // checkpoint.OFFSET_UNIT)
        same = here & (rows["crc"] == page_crc_of(old))
        if same.any():
            rows["crc"][same] = page_crc_of(page)
            changed |= seal_checkpoint({**files, **changed}, name, with_rows(files[name], rows))
    return changed
