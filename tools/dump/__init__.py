"""Dump: what the files of an index say, as dicts, as far as they can be read; the rest is listed as problems."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from typing import Any

from xtree.errors import CorruptionError
from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import Checkpoint
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.filenames import MANIFEST, SUPERBLOCK
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import Superblock
from xtree.persistence.store.catalog import Catalog, CatalogEntry
from xtree.roots import KIND, tree_state_of
from xtree.tools.dump.pages import dump_page, dump_trees
from xtree.tools.dump.wal import dump_logs
from xtree.tools.fsck import require_index
from xtree.tools.fsck.files import EVERY_EPOCH, READ_ERRORS, Directory
from xtree.tools.fsck.pages import TREE_KINDS

__all__ = ["WHAT", "dump_index"]

WHAT = ("all", "superblock", "manifest", "wal", "checkpoint", "page", "tree")


def dump_index(
    path: str | os.PathLike[str],
    what: str = "all",
    which: str | None = None,
    *,
    deltas: bool = False,
    depth: int = 1,
    entries: int = 5,
    fs: FileSystem | None = None,
) -> dict[str, Any]:
    """What the index at `path` consists of, or one part of it; reads only.

    which: a NodeID for "page", decimal or hexadecimal with 0x; the name of a tree for "tree", None for all. deltas:
    lists those of frames one by one. depth: levels of a tree's outline. entries: how many of a page are shown. Returns
    a dict with path, problems, and the parts. Raises LockedError, ValueError for a NodeID or a tree that doesn't exist,
    FileNotFoundError, CorruptionError for a directory that never was an index, OSError.
    """
    if which is not None and what not in ("page", "tree"):
        raise ValueError(f"{what!r} takes no further argument, got {which!r}")
    node = _node(which) if what == "page" else 0
    fs = fs or FileSystem()
    require_index(fs, os.path.abspath(os.fspath(path)))
    opened, lock = fs.lock_directory(path, shared=True)
    try:
        directory = Directory(fs, opened)
        found: dict[str, Any] = {"path": os.fspath(path), "problems": []}
        problems: list[str] = found["problems"]
        if what in ("all", "superblock"):
            found["superblock"] = _dump_superblock(directory, problems)
        if what in ("all", "manifest"):
            found["manifest"] = _dump_manifest(directory, problems)
        if what in ("all", "checkpoint"):
            found["checkpoints"] = [
                _dump_checkpoint(directory, number, one, problems) for number, one in directory.checkpoints.items()
            ]
        if what in ("all", "wal"):
            found["logs"] = dump_logs(directory, frames=what == "wal", deltas=deltas, problems=problems)
        if what == "page":
            found["pages"] = dump_page(directory, node, entries, problems)
        if what in ("all", "tree"):
            found["trees"] = dump_trees(directory, which, depth if what == "tree" else 0, problems)
        return found
    finally:
        lock.release()


def _node(which: str | None) -> int:
    if which is None:
        raise ValueError("page takes a NodeID")
    try:
        node = int(which, 0)
    except ValueError:
        raise ValueError(f"a NodeID is a whole number, decimal or 0x…, not {which!r}") from None
    if not 0 < node < 1 << 64:
        raise ValueError(f"a NodeID has up to 64 bits and isn't 0, got {which}")
    return node


def _dump_superblock(directory: Directory, problems: list[str]) -> dict[str, Any]:
    counts = directory.superblock
    copies = []
    for number, copy in enumerate(directory.copies):
        offset = number * HEADER_BYTES
        if isinstance(copy, Superblock):
            values = {**dataclasses.asdict(copy), "uuid": copy.uuid.hex()}
            copies.append({"offset": offset, "readable": True, "counts": copy is counts, **values})
        else:
            copies.append({"offset": offset, "readable": False, "counts": False, "error": _said(copy)})
            problems.append(f"{SUPERBLOCK}: {_said(copy)}")
    return {"file": SUPERBLOCK, "copies": copies}


def _dump_manifest(directory: Directory, problems: list[str]) -> dict[str, Any]:
    """The manifest; when it can't be read, what the directory says in its place."""
    error = directory.manifest_error
    if error is not None:
        problems.append(f"{MANIFEST}: {_said(error)}")
    dumped: dict[str, Any] = {
        "file": MANIFEST,
        "readable": error is None,
        "error": None if error is None else _said(error),
        "from": "file" if error is None else "scan",
    }
    manifest = directory.manifest
    if manifest is not None:
        dumped |= {**dataclasses.asdict(manifest), "uuid": manifest.uuid.hex()}
    dumped["unlisted"] = sorted(
        name for name in directory.names
        if name not in {*directory.listed(), filenames.LOCK, SUPERBLOCK, MANIFEST}
    )  # fmt: skip
    return dumped


def _dump_checkpoint(
    directory: Directory, number: int, found: Checkpoint | Exception, problems: list[str]
) -> dict[str, Any]:
    name = filenames.checkpoint_name(number)
    dumped: dict[str, Any] = {"file": name, "number": number, "listed": name in directory.listed()}
    if isinstance(found, Exception):
        problems.append(f"{name}: {_said(found)}")
        return {**dumped, "readable": False, "error": _said(found)}
    dumped |= {
        "readable": True,
        "epoch": found.epoch,
        "bytes": found.entry.bytes,
        "crc": found.entry.crc,
        "last_log": dataclasses.asdict(found.last_log),
        "data_files": [dataclasses.asdict(entry) for entry in found.data_files],
    }
    try:
        dumped["rows"] = _dump_rows(directory, found)
    except READ_ERRORS as error:
        problems.append(f"{name}: {_said(error)}")
        dumped["rows"] = {"error": _said(error)}
    try:
        catalog = Catalog.decode(found.catalog, name, found.catalog_offset)
        dumped["catalog"] = [_dump_entry(entry) for entry in sorted(catalog, key=lambda entry: entry.name)]
    except READ_ERRORS as error:
        problems.append(f"{name}: {_said(error)}")
        dumped["catalog"] = []
    return dumped


def _dump_rows(directory: Directory, found: Checkpoint) -> dict[str, Any]:
    """How many rows there are, and of what kinds."""
    table = directory.table_of(found)
    rows = table.visible(EVERY_EPOCH)
    kinds = Counter(rows["kind"].tolist())
    births = {} if not len(rows) else {"first_birth": int(rows["birth"].min()), "last_birth": int(rows["birth"].max())}
    return {
        "handles": table.stats()["handles"],
        "live": len(rows),
        "by_kind": {TREE_KINDS.get(kind, f"kind {kind}"): n for kind, n in sorted(kinds.items())},
        "by_size_class": {str(c): n for c, n in sorted(Counter(rows["size_class"].tolist()).items())},
        **births,
    }


def _dump_entry(entry: CatalogEntry) -> dict[str, Any]:
    dumped: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "root": entry.root, "bytes": len(entry.state)}
    if entry.kind == KIND:
        with contextlib.suppress(CorruptionError):
            state = tree_state_of(entry)
            dumped |= {"dims": state.dims, "records": state.count, "height": state.height}
    return dumped


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())
