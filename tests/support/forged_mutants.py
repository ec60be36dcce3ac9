"""Mutants whose CRCs are all right: files made by an attacker who knows the format."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from support.accidental_mutants import PAGE_HEADER_BYTES, Mutant, pages_in_use
from support.forged_files import (
    checkpoints_of,
    data_files_of,
    frames_of,
    logs_of,
    manifest_of,
    manifest_with,
    parts_of,
    replaced,
    rows_of,
    seal_checkpoint,
    seal_log,
    sealed_header,
    with_manifest,
    with_page,
    with_rows,
)
from support.sample_indexes import Files, Index
from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import DELTA, DELTA_BYTES, FRAME_HEADER_BYTES, PAYLOAD_RANGES, FrameHeader, aligned
from xtree.persistence.store.catalog import RECORD

EXTREMES = (0, 1, 2, 7, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
FORMAT_FIELD = (12, 2)
Field = tuple[int, int]  # offset, bytes

SUPERBLOCK_FIELDS = [FORMAT_FIELD, (32, 8), (40, 8), (48, 8), (56, 8), (64, 1)]
CHECKPOINT_FIELDS = [FORMAT_FIELD, (32, 8), (40, 8), (48, 8), (56, 8), (64, 4), (72, 8), (80, 8), (88, 8), (96, 8),
                     (104, 4), (112, 8), (120, 8), (616, 8)]
LOG_FIELDS = [FORMAT_FIELD, (32, 8)]
DATA_FIELDS = [FORMAT_FIELD, (32, 8), (40, 8), (48, 1)]
FRAME_FIELDS = [(8, 8), (32, 8), (44, 1), (45, 1), (46, 2), (48, 8), (56, 8), (64, 8), (72, 4), (76, 4), (80, 8),
                (88, 8), (96, 8), (104, 8)]
LINK_FIELDS = [(0, 8), (8, 8), (16, 8), (24, 4)]
RECORD_FIELDS = [(0, 1), (1, 1), (2, 2), (4, 4), (8, 8)]
STATE_FIELDS = [(0, 2), (2, 2), (4, 2), (6, 1), (7, 1), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)]
PAGE_FIELDS = [(0, 4), (8, 8), (16, 1), (17, 1), (18, 2), (20, 4), (24, 2), (26, 2), (28, 4), (32, 2)]
PAYLOAD_RANGE_FIELDS = [(0, 2), (2, 2)]


def forgeries(index: Index, rng: random.Random) -> list[Mutant]:
    """All forged mutants of an index."""
    return [
        *of_superblock(index.files),
        *of_manifest(index.files),
        *of_data_headers(index.files),
        *of_checkpoints(index.files, rng),
        *of_logs(index.files, rng),
        *of_pages(index.files, rng),
    ]


def values_of(data: bytes, at: int, size: int) -> Iterator[bytes]:
    """The values that a field is given: extremes, and the neighbours of its own value."""
    says = int.from_bytes(data[at:at + size], "little")
    for value in sorted({*EXTREMES, says + 1, says - 1, says * 2, says ^ 1 << (8 * size - 1)}):
        if value != says and 0 <= value < 1 << 8 * size:
            yield value.to_bytes(size, "little")


def edits(data: bytes, fields: Iterable[Field], base: int = 0) -> Iterator[tuple[str, bytes]]:
    """(what was done, the changed bytes) for each value of each field."""
    for at, size in fields:
        for new in values_of(data, base + at, size):
            yield f"{size} bytes at {base + at} say {int.from_bytes(new, 'little'):#x}", replaced(data, base + at, new)


def of_superblock(files: Files) -> Iterator[Mutant]:
    """Fields of the newer copy, and of both."""
    name, data = filenames.SUPERBLOCK, files[filenames.SUPERBLOCK]
    newer = max((0, HEADER_BYTES), key=lambda at: struct.unpack_from("<Q", data, at + 32))
    for what, changed in edits(data, SUPERBLOCK_FIELDS, newer):
        one = sealed_header(changed, newer)
        both = one[newer:newer + HEADER_BYTES] * 2
        yield Mutant(f"{name}: {what}", lambda one=one: {name: one}, forged=True)
        yield Mutant(f"{name}: {what}, both copies", lambda both=both: {name: both}, forged=True)


def of_data_headers(files: Files) -> Iterator[Mutant]:
    """Fields of data files' headers; also another size of windows, on which manifest and data files agree."""
    for name in data_files_of(files):
        for what, changed in edits(files[name], DATA_FIELDS):
            sealed = sealed_header(changed)
            yield Mutant(f"{name}: {what}", lambda name=name, sealed=sealed: {name: sealed}, forged=True)
    for window_bytes in (1 << 21, 1 << 28):
        changed_files = {
            name: sealed_header(replaced(files[name], 40, struct.pack("<Q", window_bytes)))
            for name in data_files_of(files)
        }

        def edit(values: dict[str, Any], window_bytes: int = window_bytes) -> None:
            values["config"]["window_bytes"] = window_bytes

        yield Mutant(
            f"windows of {window_bytes} bytes everywhere",
            lambda changed_files=changed_files, edit=edit: {**changed_files, **with_manifest(files, edit)},
            forged=True,
        )


def of_manifest(files: Files) -> Iterator[Mutant]:
    """Values of other types and sizes, paths, nesting, names twice, entries gone or twice."""
    body = files[filenames.MANIFEST].split(b"\n", 1)[1][:-2]

    def mutant(what: str, new: bytes) -> Mutant:
        return Mutant(f"manifest: {what}", lambda: {filenames.MANIFEST: manifest_with(new)}, forged=True)

    bad = [None, True, -1, 0.5, 2**32, 2**53 + 1, 2**63, 2**64, 1e308, "1", "../../etc/passwd", "/etc/passwd",
           "a\0b", "..\\x", [], {}, [[]], {"number": 1}]
    for path, value in leaves_of(manifest_of(files)):
        for new in bad:
            if new != value:
                yield mutant(f"{path} says {new!r}", json.dumps(with_value(manifest_of(files), path, new)).encode())
    for literal in (b"NaN", b"Infinity", b"1" * 40, b"9" * 100_000, b"1e400", b"-0", b"[" * 100_000,
                    b'{"a":' * 50_000, b'"' + b"x" * 1_000_000 + b'"', b'"\\ud800"', b'"\xff"', b"/* */ 1", b""):
        changed = json.dumps(with_value(manifest_of(files), ("generation",), "HERE")).encode()
        yield mutant(f"generation says {literal[:20]!r}", changed.replace(b'"HERE"', literal))
    yield mutant("nothing", b"")
    yield mutant("a list", b"[]")
    yield mutant("a name twice", body.replace(b'"generation"', b'"generation": 1, "generation"', 1))
    yield mutant("another name", body.replace(b'"generation"', b'"path": "/etc/passwd", "generation"', 1))
    yield mutant("text behind its end", body + b" {}")
    for kind in ("checkpoints", "logs", "data_files"):
        entries = manifest_of(files)[kind]
        for i in range(len(entries)):
            for what, rest in (
                ("gone", entries[:i] + entries[i + 1:]),
                ("twice", [*entries, entries[i]]),
                ("first", [entries[i], *entries[:i], *entries[i + 1:]]),
                ("of another number", [*entries[:i], {**entries[i], "number": 2**32 - 1}, *entries[i + 1:]]),
            ):
                values = {**manifest_of(files), kind: rest}
                if rest != entries:
                    yield mutant(f"{kind}: entry {i} {what}", json.dumps(values).encode())
        many = [{**entry, "number": n} for entry in entries[:1] for n in range(10_000)]
        yield mutant(f"{kind}: very many", json.dumps({**manifest_of(files), kind: many}).encode())


def leaves_of(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, value) of everything in a JSON value."""
    if path:
        yield path, values
    if isinstance(values, dict | list):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield from leaves_of(values[key], (*path, key))


def with_value(values: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The JSON value with another one at a path."""
    at = values
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return values


# Checkpoints.


def of_checkpoints(files: Files, rng: random.Random) -> Iterator[Mutant]:
    """Header, rows, data file entries, catalog, of the newest checkpoint."""
    for name in checkpoints_of(files)[-1:]:
        data = files[name]
        files_at, tags_at, catalog_at = parts_of(data)
        changes = list(edits(data, CHECKPOINT_FIELDS))
        changes += edits(data, [(0, 4), (4, 1), (8, 8)], files_at)
        changes += edits(data, [(rng.randrange(catalog_at - tags_at), 1) for _ in range(3)], tags_at)
        for what, changed in changes + list(edits_of_rows(data, rows_of(data), rng)):
            yield Mutant(f"{name}: {what}",
                         lambda name=name, changed=changed: seal_checkpoint(files, name, changed), forged=True)
        for what, changed, harmless in edits_of_catalog(data, catalog_at, struct.unpack_from("<Q", data, 56)[0]):
            yield Mutant(f"{name}: {what}",
                         lambda name=name, changed=changed: seal_checkpoint(files, name, changed),
                         forged=True, harmless=harmless)


def edits_of_rows(data: bytes, rows: np.ndarray, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Every field of a few rows, and rows in each other's place."""
    for i in sorted({0, len(rows) - 1, rng.randrange(len(rows))}):
        fields = [(rows.dtype.fields[field][1], rows.dtype[field].itemsize) for field in rows.dtype.names]
        yield from edits(data, fields, HEADER_BYTES + i * rows.dtype.itemsize)
    if len(rows) > 1:
        swapped = rows.copy()
        swapped[[0, 1]] = rows[[1, 0]]
        yield "two rows swapped", with_rows(data, swapped)
        same = rows.copy()
        same[1] = rows[0]
        yield "a row twice", with_rows(data, same)
        for field in ("offset_4k", "file_number"):
            same = rows.copy()
            same[field][0] = rows[field][1] if field == "offset_4k" else 2**32 - 1
            yield f"the {field} of another row", with_rows(data, same)


def edits_of_catalog(data: bytes, at: int, n: int) -> Iterator[tuple[str, bytes, bool]]:
    """The headers of a few catalog records and their states; the last value says whether nobody can tell."""
    end = at + n
    for _ in range(2):
        if at >= end:
            return
        _, kind_bytes, name_bytes, state_bytes, root = RECORD.unpack_from(data, at)
        for what, changed in edits(data, RECORD_FIELDS[:4], at):
            yield f"catalog record: {what}", changed, True  # another name, perhaps
        for what, changed in edits(data, RECORD_FIELDS[4:], at):
            yield f"root: {what}", changed, False
        state_at = at + RECORD.size + kind_bytes + name_bytes
        if data[at + RECORD.size:at + RECORD.size + kind_bytes] == b"xtree":
            for what, changed in edits(data, STATE_FIELDS, state_at):
                yield f"tree state: {what}", changed, False
            for value in (float("nan"), float("inf"), -1.0, 1e308):
                for double in (16, 24, 32, 40, 48, state_bytes - 8):
                    new = replaced(data, state_at + double, struct.pack("<d", value))
                    yield f"tree state: {value} at {double}", new, False
        at += RECORD.size + aligned(kind_bytes + name_bytes + state_bytes)


# Logs.


def of_logs(files: Files, rng: random.Random) -> Iterator[Mutant]:
    """Headers, link, frame headers, deltas, catalog records, ranges of the last logs with frames."""
    for name in [name for name in logs_of(files) if len(frames_of(files[name])) > 1][-2:]:
        data = files[name]
        frames = frames_of(data)
        changes = [(what, changed, False) for what, changed in edits(data, LOG_FIELDS)]
        for at, length in (frames[0], frames[1], frames[-1]):
            changes += [(what, changed, False) for what, changed in edits(data, FRAME_FIELDS, at)]
            changes += edits_of_frame(data, at, length, rng)
        changes += [(what, changed, False)
                    for what, changed in edits(data, LINK_FIELDS, frames[0][0] + FRAME_HEADER_BYTES)]
        for what, changed, harmless in changes:
            yield Mutant(f"{name}: {what}",
                         lambda name=name, changed=changed, frames=frames: seal_log(files, name, changed, frames),
                         forged=True, harmless=harmless)
        for i in range(1, len(frames)):
            yield Mutant(f"{name}: frame {i} left out",
                         lambda name=name, i=i, data=data, frames=frames: without_frame(files, name, data, frames, i),
                         forged=True, harmless=True)


def without_frame(files: Files, name: str, data: bytes, frames: list[tuple[int, int]], i: int) -> Files:
    """The log with frame i replaced by one that does nothing."""
    at, length = frames[i]
    header = FrameHeader(data[at:at + FRAME_HEADER_BYTES])
    assert header.length == length
    blank = replaced(data, at + 72, bytes(24))  # no deltas, no catalog
    blank = replaced(blank, at + 88, struct.pack("<Q", length - FRAME_HEADER_BYTES))
    return seal_log(files, name, blank, frames)


def edits_of_frame(data: bytes, at: int, length: int, rng: random.Random) -> Iterator[tuple[str, bytes, bool]]:
    """The deltas of a frame, its catalog, its ranges; and lengths that agree with each other."""
    delta_count, _, catalog_bytes, payload_bytes = struct.unpack_from("<IIQQ", data, at + 72)
    deltas_at = at + FRAME_HEADER_BYTES
    catalog_at = deltas_at + delta_count * DELTA_BYTES
    payloads_at = catalog_at + aligned(catalog_bytes)
    for huge in (2**32, 2**62, 2**63, 2**64 - 8):
        lengths = struct.pack("<Q", (length + huge - payload_bytes) % 2**64)
        changed = replaced(replaced(data, at + 88, struct.pack("<Q", huge)), at + 8, lengths)
        yield f"payloads of {huge:#x} bytes, and a frame to hold them", changed, False
    fields = [(DELTA.fields[field][1], DELTA[field].itemsize) for field in DELTA.names]
    for i in sorted({0, delta_count - 1, rng.randrange(delta_count)} if delta_count else ()):
        delta_at = deltas_at + i * DELTA_BYTES
        for what, changed in edits(data, fields, delta_at):
            yield f"delta {i}: {what}", changed, False
        delta = np.frombuffer(data, DELTA, 1, delta_at)[0]
        if delta["payload_form"] == PAYLOAD_RANGES:
            for what, changed in edits(data, PAYLOAD_RANGE_FIELDS, payloads_at + int(delta["payload_offset"])):
                yield f"range of delta {i}: {what}", changed, False
    if delta_count > 1:
        first, last = data[deltas_at:deltas_at + DELTA_BYTES], data[catalog_at - DELTA_BYTES:catalog_at]
        changed = replaced(replaced(data, deltas_at, last), catalog_at - DELTA_BYTES, first)
        yield "first and last delta swapped", changed, False
        yield "a delta twice", replaced(data, catalog_at - DELTA_BYTES, first), False
    yield from edits_of_catalog(data, catalog_at, catalog_bytes)


# Pages.


def of_pages(files: Files, rng: random.Random) -> Iterator[Mutant]:
    """Headers and entries of pages of X-trees: the highest directory page, other ones, leaves."""
    pages = {"leaf": [], "directory": [], "other": []}  # type: dict[str, list[tuple[str, int, int]]]
    for name, offset, size in pages_in_use(files):
        kind = files[name][offset + 16]
        pages[{1: "leaf", 2: "directory"}.get(kind, "other")].append((name, offset, size))
    nodes = {place: struct.unpack_from("<Q", files[place[0]], place[1] + 8)[0] for kind in pages.values()
             for place in kind}
    for kind, places in pages.items():
        places.sort(key=lambda place: -struct.unpack_from("<H", files[place[0]], place[1] + 24)[0])
        for name, offset, size in places[:3]:
            page = files[name][offset:offset + size]
            found = [(what, changed, False) for what, changed in edits(page, PAGE_FIELDS)]
            if kind != "other":
                found += edits_of_entries(page, list(nodes.values()), rng)
            for what, changed, harmless in found:
                yield Mutant(
                    f"{name}: {kind} page at {offset}: {what}",
                    lambda name=name, offset=offset, changed=changed: with_page(files, name, offset, changed),
                    forged=True,
                    harmless=harmless,
                )


def edits_of_entries(page: bytes, nodes: list[int], rng: random.Random) -> Iterator[tuple[str, bytes, bool]]:
    """Refs that lead astray, boxes that can't be, counts."""
    level, dims, count = struct.unpack_from("<HHI", page, 24)
    words = 16 * dims + (16 if level else 8)
    stride = (len(page) - PAGE_HEADER_BYTES) // words & ~7
    columns = PAGE_HEADER_BYTES
    refs_at = columns + 2 * dims * stride * 8
    entry = rng.randrange(count)
    for new_count in (0, 1, count - 1, count + 1, stride, stride + 1, 2**31, 2**32 - 1):
        if new_count != count:
            yield f"count {new_count}", replaced(page, 28, struct.pack("<I", new_count)), False
    for value in (float("nan"), float("inf"), -float("inf"), 1e300, -1e300):
        for column in (0, dims, rng.randrange(2 * dims)):
            at = columns + (column * stride + entry) * 8
            yield f"bound {column} of entry {entry} is {value}", replaced(page, at, struct.pack("<d", value)), False
    if level == 0:
        return
    own = struct.unpack_from("<Q", page, 8)[0]
    refs = list(struct.unpack_from(f"<{count}Q", page, refs_at))
    wrong = {
        "itself": own,
        "nothing": 0,
        "a child reached twice": refs[entry - 1],
        "a handle never given out": 1 << 40 | 1,
        "a handle of another shard": 5 << 58 | 1 << 8 | 1,
        "the last handle there can be": 2**64 - 1,
        "another life of the child": refs[entry] & ~0xFF | (refs[entry] & 0xFF) % 255 + 1,
        **{f"node {node:#x}": node for node in rng.sample(nodes, min(6, len(nodes)))},
    }
    for what, node in wrong.items():
        if node != refs[entry]:
            yield f"entry {entry} leads to {what}", replaced(page, refs_at + entry * 8, struct.pack("<Q", node)), False
    everywhere = struct.pack("<Q", refs[0]) * count
    yield "all entries lead to the first child", replaced(page, refs_at, everywhere), False
    history_at = refs_at + stride * 8 + entry * 8
    if dims < 64:
        yield "a split history of all axes", replaced(page, history_at, struct.pack("<Q", 2**64 - 1)), False
