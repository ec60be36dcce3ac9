"""Dump of pages and trees: of the furthest state that can be put together, or of what stands in the data files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from xtree.algorithms.bucket import header_of, parse
from xtree.algorithms.queries.inspection import stats
from xtree.persistence.base.config import PAGE_BYTES
from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.store.catalog import CatalogEntry
from xtree.roots import KIND, tree_state_of
from xtree.tools.fsck.files import READ_ERRORS, Directory
from xtree.tools.fsck.open import open_remains
from xtree.tools.fsck.pages import PageCheck
from xtree.tools.fsck.report import Report

__all__ = ["dump_page", "dump_trees"]

NODE_OFFSET = 8  # in a page


@contextlib.contextmanager
def _state(directory: Directory) -> Iterator[PageCheck | None]:
    """The pages of the furthest state, None when there is none."""
    remains = open_remains(directory)
    if remains is None:
        yield None
        return
    with contextlib.closing(remains.store) as store:
        pin = store.pin()
        try:
            yield PageCheck(store, pin, Report(directory.path, "directory"))
        finally:
            pin.release()


# One page.


def dump_page(directory: Directory, node: int, entries: int, problems: list[str]) -> list[dict[str, Any]]:
    """Every place where a page of this NodeID stands: first the one that its row names, then copies in other slots."""
    found = []
    row_place = None
    with _state(directory) as pages:
        if pages is not None:
            rows = pages.rows[pages.rows["node"] == node]
            for row in rows:
                dumped = _dump_live(pages, row, entries)
                row_place = (dumped["file"], dumped["offset"])
                found.append(dumped)
                if dumped["error"] is not None:
                    problems.append(f"{dumped['file']}, offset {dumped['offset']}: {dumped['error']}")
    for name, offset, data in _slots_of(directory, node):
        if (name, offset) != row_place:
            found.append({"file": name, "offset": offset, "live": False, "row": None, **_dump_bytes(data, entries)})
    if not found:
        raise ValueError(f"no row and no slot has node {node:#x}")
    return found


def _dump_live(pages: PageCheck, row: Any, entries: int) -> dict[str, Any]:
    """The page of a row."""
    values = {name: int(row[name]) for name in ("birth", "retire", "crc", "kind", "size_class", "offset")}
    name = os.path.basename(pages.files.path_of(int(row["window"])))
    dumped: dict[str, Any] = {"file": name, "offset": int(row["offset"]), "live": True, "row": values}
    data = pages.raw_page(row)
    if data is None:  # rebuilt from a log, in memory, or in a file that isn't there
        page = pages.parsed(row)
        error = "can't be read" if page is None else None
        return {**dumped, "file": None, "offset": None, "header": None, "error": error, **_shown(page, entries)}
    dumped |= _dump_bytes(data, entries)
    if dumped["error"] is None and dumped["header"]["crc"] != row["crc"]:
        dumped["error"] = f"expected the CRC {row['crc']:#010x} by its row, found {dumped['header']['crc']:#010x}"
    return dumped


def _dump_bytes(data: bytes, entries: int) -> dict[str, Any]:
    """A page's header, whatever it says, and what the page holds, if it can be read."""
    header = header_of(data) if len(data) >= 64 else None
    try:
        return {"header": header, "error": None, **_shown(parse(data), entries)}
    except (*READ_ERRORS, ValueError) as error:
        return {"header": header, "error": str(error), **_shown(None, entries)}


def _shown(page: dict[str, Any] | None, entries: int) -> dict[str, Any]:
    """The first entries of a page."""
    if page is None:
        return {"page": None}
    shown = {name: page[name] for name in ("kind", "level", "dims", "count", "blocks", "size_class", "ids")}
    shown |= {name: page[name][:entries].tolist() for name in ("boxes", "refs", "history") if name in page}
    return {"page": shown}


def _slots_of(directory: Directory, node: int) -> Iterator[tuple[str, int, bytes]]:
    """(file, offset, bytes) of every slot whose page says that it is this node's."""
    wanted = node.to_bytes(8, "little")
    for name in directory.names:
        parsed = filenames.parse_data(name)
        if parsed is None:
            continue
        size = PAGE_BYTES[parsed[0]]
        with contextlib.closing(directory.fs.open(directory.place(name), "r")) as file:
            for offset in range(HEADER_BYTES, file.size() - size + 1, size):
                data = file.pread(size, offset)
                if data[NODE_OFFSET : NODE_OFFSET + 8] == wanted:
                    yield name, offset, data


# Trees.


def dump_trees(directory: Directory, name: str | None, depth: int, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The trees of the furthest state by name, or one of them. Raises ValueError for an unknown name."""
    with _state(directory) as pages:
        if pages is None:
            if not directory.unborn:
                problems.append("no checkpoint can be read, nor the first log: trees aren't known")
            return {}
        entries = sorted((e for e in pages.catalog if e.kind == KIND), key=lambda entry: entry.name)
        if name is not None and name not in {entry.name for entry in entries}:
            raise ValueError(f"there is no tree {name!r}, only {', '.join(repr(entry.name) for entry in entries[:10])}")
        chosen = [entry for entry in entries if name is None or entry.name == name]
        return {entry.name: _dump_tree(pages, entry, depth, problems) for entry in chosen}


def _dump_tree(pages: PageCheck, entry: CatalogEntry, depth: int, problems: list[str]) -> dict[str, Any]:
    state = tree_state_of(entry)
    dumped: dict[str, Any] = {
        "root": state.root,
        "dims": state.dims,
        "records": state.count,
        "height": state.height,
        "bounds": None if state.bounds is None else state.bounds.tolist(),
        "parameters": state.parameters,
    }
    error = None
    try:
        with pages.store.call():
            dumped |= {"levels": stats(pages.store, state)["levels"]}
    except READ_ERRORS as refused:
        error = " ".join(str(refused).split())
        problems.append(f"tree {entry.name!r}: {error}")
        dumped["levels"] = _readable_levels(pages, state.root, state.height)
    outline = _outline(pages, state.root, state.bounds, state.height - 1, depth) if state.root and depth else None
    return {**dumped, "error": error, "outline": outline}


def _readable_levels(pages: PageCheck, root: int, height: int) -> list[dict[str, Any]]:
    """What can still be counted of each level of a tree with pages that can't be read."""
    levels: list[dict[str, Any]] = [
        {"level": level, "nodes": 0, "entries": 0, "fill": None, "overlap": None, "supernodes": 0, "unreadable": 0}
        for level in range(height)
    ]
    rows = {int(row["node"]): row for row in pages.rows}
    pending, seen = [(root, height - 1)], {root}
    while pending:
        node, level = pending.pop()
        row = rows.get(node)
        page = None if row is None else pages.parsed(row)
        if page is None:
            levels[level]["unreadable"] += 1
            continue
        levels[level]["nodes"] += 1
        levels[level]["entries"] += page["count"]
        levels[level]["supernodes"] += page["blocks"] > 1
        if page["kind"] == "directory" and level > 0:
            for child in page["refs"].tolist():
                if child not in seen:
                    seen.add(child)
                    pending.append((child, level - 1))
    return levels


def _outline(pages: PageCheck, node: int, box: Any, level: int, depth: int) -> dict[str, Any]:
    """A page and those below it, `depth` levels in all."""
    rows = pages.rows[pages.rows["node"] == node]
    page = pages.parsed(rows[0]) if len(rows) else None
    dumped: dict[str, Any] = {"node": node, "level": level, "box": box.tolist(), "count": None, "children": []}
    if page is None:
        return {**dumped, "error": "can't be read"}
    dumped |= {"count": page["count"], "blocks": page["blocks"], "error": None}
    if page["kind"] == "directory" and level > 0 and depth > 1:
        dumped["children"] = [
            _outline(pages, child, below, level - 1, depth - 1)
            for child, below in zip(page["refs"].tolist(), page["boxes"], strict=True)
        ]
    return dumped


