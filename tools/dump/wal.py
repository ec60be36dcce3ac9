"""Dump of logs: every frame of the chain, and what stands after its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import (
    FRAME_GROUP,
    FRAME_HEADER_BYTES,
    FRAME_LINK,
    FRAME_MAGIC,
    OP_BIRTH,
    OP_RELOCATE,
    OP_RETIRE,
    PAYLOAD_NONE,
    PAYLOAD_RANGES,
    PAYLOAD_WHOLE,
    Frame,
    FrameHeader,
    frame_crc,
)
from xtree.persistence.files.platform_fs import File
from xtree.persistence.files.superblock import MODE_NAMES
from xtree.persistence.files.wal_reader import read_log
from xtree.tools.fsck.files import READ_ERRORS, Directory, Log

__all__ = ["dump_logs"]

KINDS = {FRAME_LINK: "link", FRAME_GROUP: "group"}
OPS = {OP_BIRTH: "birth", OP_RETIRE: "retire", OP_RELOCATE: "relocate"}
FORMS = {PAYLOAD_NONE: "none", PAYLOAD_WHOLE: "whole", PAYLOAD_RANGES: "ranges"}
CHUNK_BYTES = 4 << 20


def dump_logs(directory: Directory, frames: bool, deltas: bool, problems: list[str]) -> list[dict[str, Any]]:
    """Every log in the directory, listed or not; with `frames` each frame, with `deltas` what it did to each page."""
    listed = directory.listed()
    dumped = []
    for log in directory.logs.values():
        one: dict[str, Any] = {
            "file": log.name,
            "number": log.number,
            "listed": log.name in listed,
            "bytes": directory.size(log.name),
            "follows": None if log.link is None else log.link.number,
            "ends": None if log.end is None else log.end.end_offset,
            "last_epoch": None if log.end is None else log.end.last_epoch,
            "stopped_because": log.stopped_because,
            "tail_bytes": log.tail_bytes,
            "groups": log.frames,
            "error": _error(log),
        }
        if one["error"] is not None:
            problems.append(f"{log.name}: {one['error']}")
        if frames:
            one["frames"] = list(_frames(directory, log, deltas))
        dumped.append(one)
    return dumped


def _error(log: Log) -> str | None:
    if log.damage is not None:
        return " ".join(str(log.damage).split())
    if log.evidence is not None and log.end is not None:
        return f"at offset {log.end.end_offset}: expected a frame, found {log.stopped_because}, though {log.evidence}"
    return None


def _frames(directory: Directory, log: Log, deltas: bool) -> Iterator[dict[str, Any]]:
    """The chain, frame by frame, then whatever else looks like a frame of this log."""
    path = directory.place(log.name)
    assert directory.uuid is not None
    if directory.size(log.name) is None:
        return
    behind = HEADER_BYTES
    with contextlib.suppress(*READ_ERRORS):
        recorded = None if log.recorded is None else log.recorded.end_offset
        reader = read_log(directory.fs, path, directory.uuid, log.number, recorded_end=recorded)
        with contextlib.closing(reader), contextlib.closing(directory.fs.open(path, "r")) as file:
            if reader.link is not None:
                yield {**_header(_read(file, HEADER_BYTES)), "linked": True, "link": reader.link.number}
                behind = reader.end_offset
            for frame in reader:
                yield {**_described(frame), **({"deltas_listed": _deltas(frame)} if deltas else {})}
                behind = frame.end_offset
    with contextlib.closing(directory.fs.open(path, "r")) as file:
        for offset in _magics(file, behind):
            header = FrameHeader(file.pread(FRAME_HEADER_BYTES, offset))
            if header.belongs(directory.uuid, log.number, offset):
                yield {**_header(_read(file, offset)), "linked": False}


def _read(file: File, offset: int) -> bytes:
    """A frame, as long as it says it is; its header alone when it can't be that long."""
    header = FrameHeader(file.pread(FRAME_HEADER_BYTES, offset))
    fits = header.consistent and header.length <= file.size() - offset
    return file.pread(header.length if fits else FRAME_HEADER_BYTES, offset)


def _header(data: bytes) -> dict[str, Any]:
    """What a frame says of itself, whether its CRC is right or not."""
    header = FrameHeader(data[:FRAME_HEADER_BYTES])
    kind, mode, _, first, last, durable, delta_count, catalog_count, _, payload_bytes, _, time_ns = header.fields
    return {
        "offset": header.offset,
        "bytes": header.length,
        "kind": KINDS.get(kind, str(kind)),
        "mode": MODE_NAMES.get(mode, str(mode)),
        "first_epoch": first,
        "last_epoch": last,
        "durable_through": durable,
        "deltas": delta_count,
        "catalog": catalog_count,
        "payload_bytes": payload_bytes,
        "time_ns": time_ns,
        "crc_right": len(data) == header.length and frame_crc(data) == header.crc,
    }


def _described(frame: Frame) -> dict[str, Any]:
    """A frame that the reader has verified."""
    return {
        "offset": frame.offset,
        "bytes": frame.end_offset - frame.offset,
        "kind": KINDS.get(frame.kind, str(frame.kind)),
        "mode": MODE_NAMES.get(frame.mode, str(frame.mode)),
        "first_epoch": frame.first_epoch,
        "last_epoch": frame.last_epoch,
        "durable_through": frame.durable_through,
        "deltas": frame.delta_count,
        "catalog": frame.catalog_count,
        "payload_bytes": frame.payloads.nbytes,
        "time_ns": frame.time_ns,
        "crc_right": True,
        "linked": True,
    }


def _deltas(frame: Frame) -> list[dict[str, Any]]:
    dumped = []
    for delta in frame.deltas:
        one: dict[str, Any] = {
            "op": OPS.get(int(delta["op"]), str(delta["op"])),
            "node": int(delta["node_id"]),
            "epoch": int(delta["epoch"]),
            "kind": int(delta["kind"]),
            "size_class": int(delta["size_class"]),
        }
        if delta["op"] != OP_RETIRE:
            one |= {
                "file": filenames.data_name(int(delta["size_class"]), int(delta["file_number"])),
                "offset": int(delta["offset"]),
                "crc": int(delta["page_crc"]),
                "replaces": int(delta["replaces"]),
                "payload": FORMS.get(int(delta["payload_form"]), str(delta["payload_form"])),
                "payload_bytes": int(delta["payload_bytes"]),
            }
        dumped.append(one)
    return dumped


def _magics(file: File, start: int) -> Iterator[int]:
    """Where a frame might begin, from an offset on."""
    size = file.size()
    for at in range(start, size, CHUNK_BYTES):
        data = file.pread(min(CHUNK_BYTES + len(FRAME_MAGIC) - 1, size - at), at)
        found = data.find(FRAME_MAGIC)
        while found >= 0:
            if (at + found) % 8 == 0 and at + found + FRAME_HEADER_BYTES <= size:
                yield at + found
            found = data.find(FRAME_MAGIC, found + 1)


