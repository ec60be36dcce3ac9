"""Salvage: the records of all leaf pages that can still be read, put into a new index.

The furthest state that can be put together (fsck/open.py) says which pages are live, and whose; it is made of a
checkpoint's rows and what the logs changed. Trees are walked from their roots; leaves below a page that is lost are
told by their dims. When that state isn't the last one, pages of later commits may have overwritten some of its pages;
they are taken too. When there are no rows, every page in the data files that is whole by itself is taken: then nobody
knows which are outdated, and records that were deleted may come back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xtree
from xtree.algorithms.bucket import header_of, parse
from xtree.errors import CorruptionError
from xtree.persistence.base.config import PAGE_BYTES
from xtree.persistence.base.progress import Progress
from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import PAYLOAD_WHOLE, Frame
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.wal_reader import read_log
from xtree.persistence.pages.node_id import unpack
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.store.catalog import CatalogEntry
from xtree.roots import KIND, tree_state_of
from xtree.runtime import discard, make_tree
from xtree.tools.fsck import require_index
from xtree.tools.fsck.files import READ_ERRORS, Directory
from xtree.tools.fsck.open import Remains, open_remains
from xtree.tools.fsck.pages import PageCheck
from xtree.tools.fsck.report import Report

__all__ = ["salvage_index"]

LEAF, DIRECTORY = 1, 2  # kinds of pages, as rows have them
TAGS = 255
Page = dict[str, Any]


@dataclass
class Saved:
    """The records of one tree of the new index. expected: how many the catalog says, None when it says nothing."""

    dims: int
    expected: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    leaves: list[Page] = field(default_factory=list)
    whole: bool = True  # every page from the root on could be read

    @property
    def count(self) -> int:
        """Records so far."""
        return sum(leaf["count"] for leaf in self.leaves)

    def records(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and boxes of all leaves."""
        if not self.leaves:
            return np.empty(0, np.int64), np.empty((0, 2 * self.dims))
        ids = np.concatenate([leaf["refs"] for leaf in self.leaves])
        return ids, np.vstack([leaf["boxes"] for leaf in self.leaves])


@dataclass
class Harvest:
    """What was found: trees by name, and what became of the pages."""

    source: str
    certain: bool  # whether it is known which pages are live
    epoch: int | None = None
    trees: dict[str, Saved] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    unreadable: int = 0
    stale: int = 0  # whole leaves that were left out, since no page refers to them
    lost_epochs: int = 0  # commits, or gaps between them, that were on the disk once


def salvage_index(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress | None = None,
    fs: FileSystem | None = None,
) -> dict[str, Any]:
    """Puts what can be read of the trees of the index at `path` into a new index at `target`.

    Changes nothing at `path`. target: missing or an empty directory, not inside of `path`. Returns what was saved and
    what is lost: `lost` is the number of records that the catalog knows of and that weren't found, None when it isn't
    known; `complete` says that nothing is lost. Raises LockedError, FileNotFoundError, FileExistsError, ValueError,
    OSError, CorruptionError when nothing at all is left.
    """
    started = time.perf_counter()
    fs = fs or FileSystem()
    source, goal = os.path.abspath(os.fspath(path)), os.path.abspath(os.fspath(target))
    require_index(fs, source)
    if Path(os.path.realpath(goal)).is_relative_to(os.path.realpath(source)):
        raise ValueError(f"{goal} is inside the index that is to be salvaged")
    if fs.exists(goal) and (not fs.is_directory(goal) or fs.listdir(goal)):
        raise FileExistsError(f"{goal}: salvage needs a missing or empty directory")
    opened, lock = fs.lock_directory(source, shared=True)
    try:
        directory = Directory(fs, opened)
        harvest = _from_state(directory, progress) or _from_pages(directory, progress)
    finally:
        lock.release()
    if not harvest.trees:
        raise CorruptionError(f"{source}: no page of a tree can be read")
    _write(harvest, goal)
    trees = {
        name: {
            "dims": saved.dims,
            "expected": saved.expected,
            "saved": saved.count,
            "lost": None if saved.expected is None or not harvest.certain else max(0, saved.expected - saved.count),
        }
        for name, saved in harvest.trees.items()
    }
    lost = None
    if harvest.certain:
        expected = sum(saved.expected or 0 for saved in harvest.trees.values())
        lost = max(0, expected - sum(saved.count for saved in harvest.trees.values()))
    return {
        "path": os.fspath(path),
        "target": os.fspath(target),
        "source": harvest.source,
        "epoch": harvest.epoch,
        "certain": harvest.certain,
        "trees": trees,
        "pages": {"read": harvest.read, "unreadable": harvest.unreadable, "stale": harvest.stale},
        "lost": lost,
        "lost_epochs": harvest.lost_epochs,
        "complete": lost == harvest.lost_epochs == harvest.unreadable == 0,
        "skipped": harvest.skipped,
        "notes": harvest.notes,
        "seconds": time.perf_counter() - started,
    }


# With rows: the pages of one epoch.


def _from_state(directory: Directory, progress: Progress | None) -> Harvest | None:
    """What is found by the furthest state that can be put together; None when there is none."""
    remains = open_remains(directory, oldest=True)
    if remains is None:
        return None
    with contextlib.closing(remains.store) as store:
        pin = store.pin()
        try:
            return _Walk(directory, remains, PageCheck(store, pin, Report(directory.path, "directory"))).run(progress)
        finally:
            pin.release()


class _Walk:
    """Reads the pages of one epoch, tree by tree."""

    def __init__(self, directory: Directory, remains: Remains, pages: PageCheck) -> None:
        base = "the empty index" if remains.checkpoint is None else filenames.checkpoint_name(remains.checkpoint)
        epoch = remains.store.published.epoch
        self.directory = directory
        self.harvest = Harvest(f"{base} and {len(remains.logs)} logs, epoch {epoch}", True, epoch)
        self.pages = pages
        self.rows = {int(row["node"]): row for row in pages.rows if row["kind"] in (LEAF, DIRECTORY)}
        self.reached: set[int] = set()
        self.images = _Images(directory)
        known = directory.known_epoch
        if epoch < known:
            self.harvest.lost_epochs = known - epoch
            self.harvest.notes.append(f"commits after epoch {epoch} are lost; epoch {known} was there once")

    def run(self, progress: Progress | None) -> Harvest:
        """Reads trees first, from their roots on, then the leaves that no root leads to any more."""
        harvest = self.harvest
        for entry in sorted(self.pages.catalog, key=lambda entry: entry.name):
            if entry.kind == KIND:
                self._read_tree(entry)
            else:
                harvest.skipped.append(entry.name)
            if progress is not None:
                progress(len(self.reached), max(len(self.rows), 1))
        self._assign_strays()
        if harvest.lost_epochs and harvest.unreadable:
            self._add_later()
        if progress is not None:
            progress(max(len(self.rows), 1), max(len(self.rows), 1))
        return harvest

    def _read_tree(self, entry: CatalogEntry) -> None:
        try:
            state = tree_state_of(entry)
        except READ_ERRORS as error:
            self.harvest.notes.append(f"tree {entry.name!r}: {error}")
            return
        saved = self.harvest.trees[entry.name] = Saved(state.dims, state.count, state.parameters)
        pending = [state.root] if state.root else []
        while pending:
            node = pending.pop()
            if node in self.reached:
                continue
            self.reached.add(node)
            page = self._read(node)
            if page is None or page["dims"] != state.dims:
                saved.whole = False
            elif page["kind"] == "directory":
                pending += page["refs"].tolist()
            else:
                saved.leaves.append(page)

    def _read(self, node: int) -> Page | None:
        """A page from its file, or from a log that still holds it."""
        row = self.rows.get(node)
        page = None if row is None else self.pages.parsed(row) or self.images.find(row)
        self.harvest.read += page is not None
        self.harvest.unreadable += page is None
        return page

    def _assign_strays(self) -> None:
        """Puts leaves below lost pages into the only tree of their dims that has lost pages, or else into one apart."""
        for node, row in self.rows.items():
            if node in self.reached or row["kind"] != LEAF:
                continue
            page = self._read(node)
            if page is None:
                continue
            self._tree_of(page, True).leaves.append(page)

    def _tree_of(self, page: Page, only_losers: bool) -> Saved:
        """The tree that a leaf must be of, since no other has its dims; or one for leaves whose tree isn't known."""
        trees = self.harvest.trees
        possible = [
            name for name, saved in trees.items()
            if saved.dims == page["dims"] and saved.expected is not None and not (only_losers and saved.whole)
        ]  # fmt: skip
        name = possible[0] if len(possible) == 1 else f"salvaged-{page['dims']}d"
        if name not in trees:
            trees[name] = Saved(page["dims"])
            self.harvest.notes.append(f"leaves whose tree isn't known are in {name!r}")
        return trees[name]

    def _add_later(self) -> None:
        """Adds leaves of lost commits, which may stand where pages that those commits replaced had been."""
        harvest, table = self.harvest, self.pages.store.table
        touched: dict[int, Saved] = {}
        for page in _whole_pages(self.directory, Harvest("", False), None):
            if page["kind"] == "leaf" and page["node"] not in self.rows and _is_later(table, page["node"]):
                saved = self._tree_of(page, False)
                saved.leaves.append(page)
                touched[id(saved)] = saved
                harvest.read += 1
        if touched:
            harvest.certain = False
            harvest.notes.append("leaves of lost commits were taken too: records of several moments are mixed")
        for saved in touched.values():
            _deduplicate(saved)


def _is_later(table: ObjectTable, node: int) -> bool:
    """Whether a NodeID belongs to a later use of its handle than the table knows; tags wrap around."""
    try:
        known = int(table.describe(node)["tag"])
    except KeyError:
        return True
    return 1 <= (unpack(node)[2] - known) % TAGS <= TAGS // 2


class _Images:
    """Whole pages in the logs, for those that their data file has lost. The logs are read when first needed."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._found: dict[tuple[int, int], Page] | None = None

    def find(self, row: Any) -> Page | None:
        """The page of a row, told by its NodeID and CRC."""
        if self._found is None:
            self._found = {}
            for delta, page in _logged_pages(self._directory):
                with contextlib.suppress(*READ_ERRORS):
                    self._found[int(delta["node_id"]), int(delta["page_crc"])] = parse(page)
        return self._found.get((int(row["node"]), int(row["crc"])))


def _logged_pages(directory: Directory) -> Iterator[tuple[Any, memoryview]]:
    """(delta, page) of every page of a tree that stands whole in a log."""
    assert directory.uuid is not None
    for log in directory.logs.values():
        if log.link is None:
            continue
        with contextlib.suppress(*READ_ERRORS):
            reader = read_log(directory.fs, directory.place(log.name), directory.uuid, log.number)
            with contextlib.closing(reader):
                for frame in reader:
                    yield from _pages_of(frame)


def _pages_of(frame: Frame) -> Iterator[tuple[Any, memoryview]]:
    for delta in frame.deltas:
        if delta["payload_form"] == PAYLOAD_WHOLE and delta["kind"] in (LEAF, DIRECTORY):
            start = int(delta["payload_offset"])
            yield delta, frame.payloads[start : start + int(delta["payload_bytes"])]


# Without rows: every page that is whole by itself.


def _from_pages(directory: Directory, progress: Progress | None) -> Harvest:
    harvest = Harvest("all pages of the data files and logs", False)
    harvest.notes.append(
        "no checkpoint can be read, so it isn't known which pages are live: outdated and deleted records may be among "
        "those saved"
    )
    leaves: dict[int, Page] = {}
    referred: set[int] = set()
    for page in _whole_pages(directory, harvest, progress):
        if page["kind"] == "directory":
            referred.update(page["refs"].tolist())
        else:
            leaves[page["node"]] = page
    if referred:
        harvest.notes.append("only leaves to which a page refers were taken")
    for node, leaf in leaves.items():
        if referred and node not in referred:
            harvest.stale += 1
            continue
        harvest.trees.setdefault(f"salvaged-{leaf['dims']}d", Saved(leaf["dims"])).leaves.append(leaf)
    for saved in harvest.trees.values():
        _deduplicate(saved)
    return harvest


def _whole_pages(directory: Directory, harvest: Harvest, progress: Progress | None) -> Iterator[Page]:
    """The pages of every data file, slot by slot, then those in logs."""
    names = [name for name in directory.names if filenames.parse_data(name)]
    total, done = max(sum(directory.size(name) or 0 for name in names), 1), 0
    for name in names:
        size_class, _ = filenames.parse_data(name) or (0, 0)
        size = PAGE_BYTES[size_class]
        with contextlib.closing(directory.fs.open(directory.place(name), "r")) as file:
            for offset in range(HEADER_BYTES, file.size() - size + 1, size):
                data = file.pread(size, offset)
                with contextlib.suppress(ValueError):
                    page = _parsed(data, harvest)
                    if page is not None:
                        yield page
        done += directory.size(name) or 0
        if progress is not None:
            progress(done, total)
    if directory.uuid is not None:
        for _, image in _logged_pages(directory):
            with contextlib.suppress(*READ_ERRORS):
                yield parse(image)


def _parsed(data: bytes, harvest: Harvest) -> Page | None:
    """A page of a tree; None for a slot that was never written to, or holds a page of another structure."""
    header = header_of(data)
    if not any(data) or (header["crc"] == header["computed_crc"] and header["kind"] not in (LEAF, DIRECTORY)):
        return None
    try:
        page = parse(data)
    except READ_ERRORS:
        harvest.unreadable += 1
        raise
    harvest.read += 1
    return page


def _deduplicate(saved: Saved) -> None:
    """Keeps as many copies of a record as one page holds at the most: other pages may be other versions of that one."""
    if not saved.leaves:
        return
    ids, boxes = saved.records()
    words = np.hstack([ids.view(np.uint64)[:, None], np.ascontiguousarray(boxes).view(np.uint64)])
    records = np.unique(words, axis=0, return_inverse=True)[1].reshape(-1)
    leaves = np.repeat(np.arange(len(saved.leaves)), [leaf["count"] for leaf in saved.leaves])
    order = np.lexsort((records, leaves))
    first = np.ones(len(order), bool)  # of equal records in a leaf
    first[1:] = (np.diff(records[order]) != 0) | (np.diff(leaves[order]) != 0)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    nth = np.empty(len(order), np.int64)
    nth[order] = np.arange(len(order)) - starts
    chosen = np.sort(np.unique(records * (nth.max() + 1) + nth, return_index=True)[1])
    saved.leaves = [{"refs": ids[chosen], "boxes": boxes[chosen], "count": len(chosen)}]


# The new index.


def _write(harvest: Harvest, target: str) -> None:
    """Makes every tree with the parameters that it had. When that fails, nothing is left at `target`."""
    runtime = xtree.Runtime(target, mode="x")
    try:
        for name, saved in harvest.trees.items():
            make_tree(runtime, name, saved.dims, xtree.Config(**saved.parameters))
            ids, boxes = saved.records()
            if len(ids):
                runtime.tree(name).bulk_load(ids, boxes)
        runtime.checkpoint()  # which may find the disk full
    except BaseException:
        discard(runtime)
        raise
    runtime.close()
