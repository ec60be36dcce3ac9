"""One epoch of an open store: its rows, their slots, every page, and every tree page by page.

Each check goes on after what it finds. The library's own checks do the work, called page by page; a page that they
refuse is looked at once more, to say what stands there instead.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xtree.algorithms.bucket import describe, header_of, parse
from xtree.algorithms.queries.inspection import check_page
from xtree.algorithms.tree_state import TreeState
from xtree.errors import CorruptionError
from xtree.persistence.base.config import PAGE_BYTES
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.pages.segment_allocator import SegmentAllocator
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.page_copy import copy_pages
from xtree.persistence.store.store import Pin
from xtree.roots import KIND, decode_state, is_known, tree_state_of
from xtree.tools.fsck.files import READ_ERRORS
from xtree.tools.fsck.report import DAMAGE, NOTE, Report

__all__ = ["PageCheck", "TREE_KINDS"]

TREE_KINDS = {1: "leaf", 2: "directory"}
CHUNK_BYTES = 1 << 20
PAGES_A_CALL = 256  # of a tree: neither close() nor the unmapping of windows waits for all of them


class PageCheck:
    """Checks the epoch of a pin, which the caller holds, and notes what it finds in a report.

    behind: later commits can't be read, and their pages may stand in slots of this epoch.
    """

    def __init__(
        self,
        store: DurableStore,
        pin: Pin,
        report: Report,
        advance: Callable[[float], object] = lambda share: None,
        behind: bool = False,
    ) -> None:
        self.store = store
        self.files = store.index_files.data_files
        self.report = report
        self.catalog = pin.published.catalog
        self.rows = store.table.visible(pin.epoch)
        self._behind = behind
        self.bad: set[int] = set()  # NodeIDs of pages that can't be read
        self._advance = advance
        self._owner: dict[int, str] = {}  # of each tree page that was reached: the tree's name
        self._all_walked = True

    def run(self) -> None:
        """Checks everything, each thing after those that it relies on."""
        self.check_slots()
        self.check_pages()
        for entry in sorted(self.catalog, key=lambda entry: entry.name):
            if entry.kind == KIND:
                self.check_tree(entry)
            elif is_known(entry.kind):
                self.reach_structure(entry)
        self.check_reached()

    # Rows and slots.

    def check_slots(self) -> None:
        """Every row has a slot of its class, inside its file, and no two rows have the same one."""
        allocator = SegmentAllocator(self.files)
        for window, size_class, usable, limit in self.files.attached():
            allocator.attach(window, size_class, HEADER_BYTES, max(usable, HEADER_BYTES), max(limit, HEADER_BYTES))
        in_files = self.rows[~np.isin(self.rows["window"], self.files.in_memory_only())]
        for i, (address, size_class) in enumerate(zip(in_files["address"].tolist(), in_files["size_class"].tolist())):
            try:
                allocator.occupy_slot(size_class, address)
            except CorruptionError as error:
                found = str(error).rsplit("found ", 1)[-1]
                owners = in_files[:i][in_files["address"][:i] == address]
                if len(owners):
                    found = f"that node {int(owners['node'][0]):#x} has the same one"
                self._add("slot", f"a slot of {PAGE_BYTES[size_class]} bytes of its own", found, in_files[i])
                self.bad.add(int(in_files["node"][i]))
        try:
            allocator.check()
        except CorruptionError as error:
            self.report.add_error(DAMAGE, "slot", error, "bitmaps that agree")
        totals = allocator.stats().values()
        self.report.figures["slots"] = {
            name: sum(int(of_class[name]) for of_class in totals) for name in ("slots", "used", "free")
        }

    # Pages.

    def check_pages(self) -> None:
        """Every page's CRC, in page and row, its NodeID, kind, class, dims and count."""
        order = np.lexsort((self.rows["offset"], self.rows["window"], self.rows["size_class"]))
        rows = self.rows[order]
        for chunk in _chunks(rows):
            size_class = int(chunk["size_class"][0])
            buffer = bytearray(len(chunk) * PAGE_BYTES[size_class])
            nodes = np.ascontiguousarray(chunk["node"])
            with self.store.call():
                try:
                    copy_pages(self.store, nodes, size_class, buffer)
                except READ_ERRORS:
                    self._check_one_by_one(chunk, buffer)
            self._advance(len(chunk) / len(rows) / 2)
        kinds = Counter(self.rows["kind"].tolist())
        self.report.figures["pages"] = {
            "live": len(self.rows),
            "bytes": int(sum(PAGE_BYTES[c] * n for c, n in Counter(self.rows["size_class"].tolist()).items())),
            "unreadable": len(self.bad),
            "by_kind": {TREE_KINDS.get(kind, f"kind {kind}"): n for kind, n in sorted(kinds.items())},
        }

    def _check_one_by_one(self, chunk: Any, buffer: bytearray) -> None:
        for row in chunk:
            node = int(row["node"])
            try:
                copy_pages(self.store, np.array([node], np.uint64), int(row["size_class"]), buffer)
            except READ_ERRORS as error:
                if node not in self.bad:  # else there is a finding about its slot
                    self._judge(row, error)
                self.bad.add(node)

    def _judge(self, row: Any, error: Exception) -> None:
        """Says what stands in the place of a page that was refused."""
        node, size = int(row["node"]), PAGE_BYTES[row["size_class"]]
        data = self.raw_page(row)
        if data is None:
            self.report.add_error(DAMAGE, "page", error, "the page of its row", **self._place(row))
            return
        if len(data) < size:
            self._add("page", f"a page of {size} bytes", f"{len(data)} up to the end of the file", row)
            return
        header = header_of(data)
        expected = f"the page of its row, with CRC {row['crc']:#010x}"
        if header["computed_crc"] == row["crc"] == header["crc"] and header["node"] == node:
            if self._file_is_bad(row):
                return  # the page is whole; its file's header has a finding
            self.report.add_error(DAMAGE, "page", error, expected, **self._place(row))
        elif not any(data):
            self._add("page", expected, "zeros", row)
        elif header["computed_crc"] != header["crc"]:
            found = f"bytes with CRC {header['computed_crc']:#010x}, {header['crc']:#010x} in their header"
            self._add("page", expected, found, row)
        elif header["node"] != node and self._behind:
            found = f"the page of node {header['node']:#x}, whole, maybe of a commit that can't be read"
            self._add("page", expected, found, row, NOTE)
        elif header["node"] != node:
            self._add("page", expected, f"the page of node {header['node']:#x}, whole", row)
        else:
            self._add("page", expected, f"another page of the same node, whole, with CRC {header['crc']:#010x}", row)

    def raw_page(self, row: Any) -> bytes | None:
        """The bytes in a row's slot as the file has them, fewer at its end; None when they aren't in a file."""
        window = int(row["window"])
        if window in self.files.in_memory_only():
            return None
        try:
            with contextlib.closing(self.store.index_files.fs.open(self.files.path_of(window), "r")) as file:
                return file.pread(PAGE_BYTES[row["size_class"]], int(row["offset"]))
        except OSError:
            return None

    def _file_is_bad(self, row: Any) -> bool:
        """Whether the file of a row can't be opened as one of this index."""
        try:
            self.files.verify_header(int(row["window"]))
        except READ_ERRORS:
            return True
        return False

    # Trees.

    def check_tree(self, entry: CatalogEntry) -> None:
        """A tree from its root on: containment, levels, counts, no page twice; then the number of its records."""
        before = len(self.report.of(DAMAGE))
        figures: dict[str, Any] = {"records": None, "found": 0, "pages": 0, "ok": False}
        self.report.trees[entry.name] = figures
        try:
            state = tree_state_of(entry)
        except READ_ERRORS as error:
            self.report.add_error(DAMAGE, "tree", error, "the state of a tree", tree=entry.name)
            self._all_walked = False
            return
        figures |= {"records": state.count, "dims": state.dims, "height": state.height}
        whole = self._walk(entry.name, state, figures)
        self._all_walked &= whole
        if whole and figures["found"] != state.count:
            found = f"{figures['found']} in its leaves"
            self.report.add(DAMAGE, "tree", f"{state.count} records", found, tree=entry.name)
        elif not whole:
            found = f"{figures['found']} in the leaves that can be reached"
            self.report.add(NOTE, "tree", f"{state.count} records", found, tree=entry.name)
        figures["ok"] = whole and len(self.report.of(DAMAGE)) == before

    def _walk(self, name: str, state: TreeState, figures: dict[str, Any]) -> bool:
        """Checks page after page; returns whether all below the root could be reached."""
        whole = True
        pending = [(state.root, state.height - 1, np.asarray(state.bounds), False, None)] if state.root else []
        with contextlib.ExitStack() as call:
            call.enter_context(self.store.call())
            while pending:
                node, level, box, siblings, ids = pending.pop()
                if node in self._owner:
                    found = f"that it is reached again, from tree {self._owner[node]!r} before"
                    self.report.add(DAMAGE, "tree", "every page once", found, node=node, tree=name)
                    continue
                self._owner[node] = name
                if node in self.bad:
                    whole = False
                    continue
                figures["pages"] += 1
                if figures["pages"] % PAGES_A_CALL == 0:
                    call.close()
                    call.enter_context(self.store.call())
                    self._advance(PAGES_A_CALL / max(len(self.rows), 1) / 2)
                entries, right = self._check_page(name, state, node, level, box, siblings, ids, figures)
                whole &= right
                pending += entries
        return whole

    def _check_page(
        self, name: str, state: TreeState, node: int, level: int, box: Any, siblings: bool, ids: Any,
        figures: dict[str, Any],
    ) -> tuple[list[tuple[int, int, Any, bool, Any]], bool]:
        """One page; returns its children, to be checked next, and whether those are all."""
        try:
            count = check_page(self.store, state, node, level, box, siblings, ids)
            if level == 0:
                figures["found"] += count
                return [], True
            page = describe(self.store, node)
        except READ_ERRORS as error:
            self.report.add_error(DAMAGE, "tree", error, "a right page", **self._place_of(node), tree=name)
            try:
                page = describe(self.store, node)
            except (*READ_ERRORS, ValueError):
                return [], False
        if page["dims"] != state.dims or (page["kind"] == "directory") != (level > 0):
            return [], False
        if level == 0:
            figures["found"] += page["count"]
            return [], True
        several = page["count"] > 1
        return [
            (child, level - 1, below, several, page["ids"])
            for child, below in zip(page["refs"].tolist(), page["boxes"], strict=True)
        ], True

    def reach_structure(self, entry: CatalogEntry) -> None:
        """The pages of a structure that is no tree, as it names them itself."""
        try:
            for node in decode_state(entry).pages(self.store):
                if node in self._owner:
                    found = f"that it is reached again, from {self._owner[node]!r} before"
                    self.report.add(DAMAGE, "tree", "every page once", found, node=node, tree=entry.name)
                self._owner[node] = entry.name
        except Exception as error:  # whatever the structure makes of damaged pages
            self.report.add_error(DAMAGE, "tree", error, "a structure's pages", tree=entry.name)
            self._all_walked = False

    def check_reached(self) -> None:
        """Every page is reached from a tree or structure; with a structure of an unknown kind, every page of a tree."""
        unknown = sorted({entry.kind for entry in self.catalog if not is_known(entry.kind)})
        rows = self.rows[np.isin(self.rows["kind"], list(TREE_KINDS))] if unknown else self.rows
        missed = rows[~np.isin(rows["node"], np.fromiter(self._owner, np.uint64))]
        self.report.figures["unreached_pages"] = len(missed)
        self.report.figures["unknown_kinds"] = unknown  # of structures whose pages nobody here can tell
        if len(missed) and not self._all_walked:
            found = f"{len(missed)} pages that are reached from none, below what is damaged"
            self.report.add(NOTE, "tree", "every page in a tree", found)
            return
        for row in missed:
            kind = TREE_KINDS.get(int(row["kind"]))
            found = f"a live {kind} page that no tree reaches"
            if kind is None:
                found = f"a live page of kind {row['kind']} that no structure reaches"
            self._add("tree", "every page in a tree", found, row)

    def parsed(self, row: Any) -> dict[str, Any] | None:
        """A page of a tree, from wherever it can still be read; None when it can't."""
        node = int(row["node"])
        try:
            with self.store.call():
                return {"node": node, **describe(self.store, node)}
        except (*READ_ERRORS, ValueError):
            data = self.raw_page(row)
        with contextlib.suppress(*READ_ERRORS, ValueError):
            if data is not None and header_of(data)["computed_crc"] == row["crc"]:
                page = parse(data)
                return page if page["node"] == node else None
        return None

    def _place_of(self, node: int) -> dict[str, Any]:
        rows = self.rows[self.rows["node"] == node]
        return self._place(rows[0]) if len(rows) else {"node": node}

    def _place(self, row: Any) -> dict[str, Any]:
        window = int(row["window"])
        file = None if window in self.files.in_memory_only() else os.path.basename(self.files.path_of(window))
        return {"node": int(row["node"]), "file": file, "offset": None if file is None else int(row["offset"])}

    def _add(self, part: str, expected: str, found: str, row: Any, severity: str = DAMAGE) -> None:
        self.report.add(severity, part, expected, found, **self._place(row))


def _chunks(rows: Any) -> Iterator[Any]:
    """Rows of one class, about a megabyte of pages at a time."""
    for size_class in range(len(PAGE_BYTES)):
        of_class = rows[rows["size_class"] == size_class]
        step = max(CHUNK_BYTES // PAGE_BYTES[size_class], 1)
        for start in range(0, len(of_class), step):
            yield of_class[start : start + step]

