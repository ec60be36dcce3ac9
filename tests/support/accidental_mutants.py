"""Mutants: an index's files with something wrong in them, as after an accident. forged_mutants.py has forged ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

from support.forged_files import checkpoints_of, data_files_of, frames_of, logs_of, parts_of, replaced, rows_of
from support.sample_indexes import Files, Index
from xtree.persistence.files import checkpoint, filenames
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import DELTA_BYTES, FRAME_HEADER_BYTES

PAGE_HEADER_BYTES = 64
CLASS_BYTES = [4096 << size_class for size_class in range(filenames.SIZE_CLASSES)]
FIELDS = 128  # bytes at the beginning of a file header that hold all fields, except in a checkpoint


@dataclass(frozen=True)
class Mutant:
    """What was done, in words, and a function that gives the changed files: None for one that is gone."""

    what: str
    files: Callable[[], dict[str, bytes | None]]
    forged: bool = False  # CRCs are right
    harmless: bool = False  # if forged: a writer may have written the same


def flipped(files: Files, name: str, at: int, bit: int) -> Mutant:
    """One bit of a file is flipped."""
    byte = bytes([files[name][at] ^ 1 << bit])
    return Mutant(f"{name}: bit {bit} of byte {at} flipped", lambda: {name: replaced(files[name], at, byte)})


def content(files: Files, name: str, data: bytes, what: str) -> Mutant:
    """A file has other content."""
    return Mutant(f"{name}: {what}", lambda: {name: data})


# Records, every byte of which must be looked at.


def records(files: Files) -> dict[str, list[tuple[int, int]]]:
    """(begin, end) of the fields of superblock copies, headers, frame headers, footers and page headers."""
    found: dict[str, list[tuple[int, int]]] = {}
    for name, data in files.items():
        if name == filenames.SUPERBLOCK:
            found[name] = [(0, FIELDS), (HEADER_BYTES, HEADER_BYTES + FIELDS)]
        elif name == filenames.MANIFEST:
            found[name] = [(0, len(data))]
        elif filenames.parse_checkpoint(name) is not None:
            fields_end = checkpoint.COUNTS_OFFSET + checkpoint.COUNTS.size
            found[name] = [(0, fields_end), (len(data) - checkpoint.FOOTER_BYTES, len(data))]
        elif filenames.parse_log(name) is not None:
            headers = [(at, at + FRAME_HEADER_BYTES) for at, _ in frames_of(data)]
            found[name] = [(0, FIELDS), *headers]
        else:
            found[name] = [(0, FIELDS)]
    for name, offset, _ in pages_in_use(files):
        found[name].append((offset, offset + PAGE_HEADER_BYTES))
    return found


def pages_in_use(files: Files) -> list[tuple[str, int, int]]:
    """(data file, offset, bytes) of the pages that the newest checkpoint names."""
    names = {filenames.parse_data(name)[1]: name for name in data_files_of(files)}
    found = []
    for name in checkpoints_of(files)[-1:]:
        for row in rows_of(files[name]):
            offset = checkpoint.OFFSET_UNIT * int(row["offset_4k"])
            found.append((names[int(row["file_number"])], offset, CLASS_BYTES[row["size_class"]]))
    return found


def flips_of_records(index: Index, rng: random.Random) -> Iterator[Mutant]:
    """A bit of every byte of every record's header."""
    for name, places in records(index.files).items():
        for begin, end in places:
            for at in range(begin, end):
                yield flipped(index.files, name, at, rng.randrange(8))


def flips_of_header_pages(index: Index, rng: random.Random, step: int) -> Iterator[Mutant]:
    """A bit of every `step`-th byte after the fields of header pages."""
    for name, data in index.files.items():
        pages = 2 if name == filenames.SUPERBLOCK else name != filenames.MANIFEST
        for page in range(pages):
            begin, end = page * HEADER_BYTES, min((page + 1) * HEADER_BYTES, len(data))
            for at in range(begin + FIELDS + rng.randrange(step), end, step):
                yield flipped(index.files, name, at, rng.randrange(8))


def flips_elsewhere(index: Index, rng: random.Random, n: int) -> Iterator[Mutant]:
    """A bit, a byte, a sector or two sectors anywhere, more often in parts that hold something."""
    parts = [(name, begin, end) for name, data in index.files.items() for begin, end in used_parts(name, data)]
    for _ in range(n):
        name, begin, end = rng.choice(parts)
        data = index.files[name]
        at = rng.randrange(begin, end)
        how = rng.choice(("bit", "bit", "bits", "byte", "zeros", "noise"))
        if how == "bit":
            yield flipped(index.files, name, at, rng.randrange(8))
        elif how == "bits":
            changed = bytearray(data)
            for _ in range(rng.randint(2, 40)):
                changed[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
            yield content(index.files, name, bytes(changed), f"some bits flipped in {begin} to {end}")
        elif how == "byte":
            yield content(index.files, name, replaced(data, at, rng.randbytes(1)), f"byte {at} overwritten")
        else:
            at -= at % 512
            n_bytes = min(rng.choice((512, 1024, 4096)), len(data) - at)
            new = bytes(n_bytes) if how == "zeros" else rng.randbytes(n_bytes)
            yield content(index.files, name, replaced(data, at, new), f"{n_bytes} bytes of {how} at {at}")


def used_parts(name: str, data: bytes) -> list[tuple[int, int]]:
    """The ranges that hold something, and the whole file."""
    if not data:
        return []
    if filenames.parse_log(name) is None:
        return [(0, len(data))]
    return [(0, len(data)), *((at, at + length) for at, length in frames_of(data))]


# Sizes.


def truncations(index: Index, rng: random.Random) -> Iterator[Mutant]:
    """Every file cut at the end of each of its parts, next to it, and elsewhere."""
    for name, data in index.files.items():
        for n in sorted(interesting_lengths(name, data) | {rng.randrange(len(data)) for _ in range(4)}):
            if 0 <= n < len(data):
                yield content(index.files, name, data[:n], f"cut to {n} bytes")


def interesting_lengths(name: str, data: bytes) -> set[int]:
    """Where the parts of a file end, and the offsets next to that."""
    edges = {0, 8, 12, 32, 64, 512, HEADER_BYTES, 2 * HEADER_BYTES, len(data)}
    for at, length in frames_of(data) if filenames.parse_log(name) is not None else ():
        edges |= {at, at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + DELTA_BYTES, at + length}
    if filenames.parse_checkpoint(name) is not None:
        edges |= {HEADER_BYTES + checkpoint.ROW_BYTES, *parts_of(data)}
        edges |= {len(data) - checkpoint.FOOTER_BYTES}
    if filenames.parse_data(name) is not None:
        edges |= set(range(HEADER_BYTES, len(data), 8 * HEADER_BYTES))
    return {n + beside for n in edges for beside in (-1, 0, 1)}


def extensions(index: Index, rng: random.Random) -> Iterator[Mutant]:
    """Every file with something after its end: noise, zeros, itself again."""
    for name, data in index.files.items():
        for n in (1, 8, 24, 4096, 70_001):
            yield content(index.files, name, data + rng.randbytes(n), f"{n} bytes of noise at its end")
        yield content(index.files, name, data + bytes(1 << 20), "a mebibyte of zeros at its end")
        yield content(index.files, name, data + data, "twice the same")
        yield content(index.files, name, rng.randbytes(len(data)), "nothing but noise")
        yield content(index.files, name, bytes(len(data)), "nothing but zeros")


# Whole files.


def losses(index: Index) -> Iterator[Mutant]:
    """Every file gone, and all files of a kind."""
    for name in index.files:
        yield Mutant(f"{name}: gone", lambda name=name: {name: None})
    for kind in (checkpoints_of, logs_of, data_files_of):
        names = kind(index.files)
        if len(names) > 1:
            yield Mutant(f"all of {names} gone", lambda names=names: dict.fromkeys(names))


def swaps(index: Index, others: list[Index]) -> Iterator[Mutant]:
    """Files in each other's place, and files of another index or older versions in their place."""
    files = index.files
    for a, b in combinations(files, 2):
        yield Mutant(f"{a} and {b} swapped", lambda a=a, b=b: {a: files[b], b: files[a]})
        yield Mutant(f"{a} also in the place of {b}", lambda a=a, b=b: {b: files[a]})
        yield Mutant(f"{b} also in the place of {a}", lambda a=a, b=b: {a: files[b]})
    for other in others:
        for name, data in other.files.items():
            if name in files:
                yield content(files, name, data, f"that of a {other.kind} index")
            elif name not in files:
                yield content(files, name, data, f"added from a {other.kind} index")
    for i, older in enumerate(index.older):
        for name, data in older.items():
            if name not in files:
                yield content(files, name, data, f"an older file back again ({i})")
            elif data != files[name]:
                yield content(files, name, data, f"an older version of itself ({i})")
        for name in files.keys() - older.keys():
            yield Mutant(f"{name}: gone, with the manifest from before ({i})",
                         lambda name=name, older=older: {name: None, filenames.MANIFEST: older[filenames.MANIFEST]})


def accidents(index: Index, others: list[Index], rng: random.Random, elsewhere: int, step: int) -> list[Mutant]:
    """All mutants of an index whose CRCs nobody has made right. `step`: see flips_of_header_pages."""
    return [
        *flips_of_records(index, rng),
        *flips_of_header_pages(index, rng, step),
        *flips_elsewhere(index, rng, elsewhere),
        *truncations(index, rng),
        *extensions(index, rng),
        *losses(index),
        *swaps(index, others),
    ]
