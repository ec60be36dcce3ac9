"""A small index, closed or killed, and ways to damage it on purpose: files, frames, pages, rows."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

import xtree
from support.forged_files import keeping_its_crc
from support.text_pages import ONE_LONG_LOG, by_request
from xtree.algorithms.bucket import describe
from xtree.algorithms.tree_state import TreeState
from xtree.persistence.files import checkpoint as checkpoints
from xtree.persistence.files import filenames
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import Superblock
from xtree.persistence.pages.page_checksum import page_crc_of
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin

FREE = 56  # offset in a page of bytes that mean nothing
Records = dict[str, Counter]


def records_of(runtime) -> Records:
    """The records of each tree."""
    found = {}
    for name in runtime.trees():
        ids, boxes = runtime.tree(name).items()
        found[name] = Counter(zip(ids.tolist(), map(tuple, boxes.tolist()), strict=True))
    return found


def contents(path: Path) -> Records:
    """What an index holds; check() has to find nothing."""
    with xtree.Runtime(path, mode="r") as runtime:
        runtime.check()
        return records_of(runtime)


def in_a_killed_process(work: Callable[[], object]) -> None:
    """Runs something in a child process, which then ends without closing what it returns."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            left = work()
            status = 0 if left is not None else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def build(path: Path, close: bool) -> Records:
    """Makes two trees in a child process by a bulk load, a checkpoint and commits; it closes the index or is killed.

    Returns what the trees hold.
    """

    def work() -> xtree.Runtime:
        rng = np.random.default_rng(7)
        runtime = xtree.Runtime(path, config=by_request(**ONE_LONG_LOG))
        low = rng.random((9000, 2))
        runtime.tree("flat", dims=2).bulk_load(np.arange(9000), np.hstack([low, low + 0.01]))
        runtime.tree("deep", dims=3).insert_many(np.arange(700), rng.random((700, 3)))
        runtime.checkpoint()
        for i in range(6):
            low = rng.random((8, 2))
            runtime.tree("flat").insert_many(np.arange(8) + 100_000 * i, np.hstack([low, low + 0.01]))
            runtime.tree("deep").insert(-i, rng.random(3))
        if close:
            runtime.close()
        return runtime

    in_a_killed_process(work)
    assert close == (not files(path, "log"))
    copy = path.with_name(path.name + "-opened")
    shutil.copytree(path, copy)
    with xtree.Runtime(copy, mode="r") as runtime:
        return records_of(runtime)


# Files.


def files(path: Path, kind: str) -> list[Path]:
    """The checkpoints, logs or data files, by number."""
    parse = {"checkpoint": filenames.parse_checkpoint, "log": filenames.parse_log, "data": filenames.parse_data}[kind]
    return [path / name for name in sorted(os.listdir(path)) if parse(name) is not None]


def flip(file: Path, at: int) -> None:
    """Changes a byte."""
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 0xFF]))


def cut(file: Path, size: int) -> None:
    """Makes a file shorter."""
    os.truncate(file, size)


def manifest_of(path: Path) -> Manifest:
    return Manifest.load(FileSystem(), path)


def change_manifest(path: Path, **changes) -> None:
    """Saves a changed manifest with a right CRC."""
    dataclasses.replace(manifest_of(path), **changes).save(FileSystem(), path)


def copies_of(path: Path) -> list[Superblock]:
    """Both copies of the superblock."""
    data = (path / filenames.SUPERBLOCK).read_bytes()
    return [Superblock.decode(data[at:at + 4096], "superblock", at) for at in (0, 4096)]


def newest_copy(path: Path) -> int:
    """The number of the copy that counts."""
    copies = copies_of(path)
    return copies.index(max(copies, key=lambda copy: copy.generation))


def change_copy(path: Path, number: int, **changes) -> None:
    """Writes other values into a copy of the superblock, with a right CRC."""
    with open(path / filenames.SUPERBLOCK, "r+b") as file:
        file.seek(4096 * number)
        copy = Superblock.decode(file.read(4096), "superblock")
        file.seek(4096 * number)
        file.write(dataclasses.replace(copy, **changes).encode())


def rewrite_checkpoints(path: Path, **changes) -> None:
    """Writes every checkpoint anew with other values, with right CRCs and manifest."""
    manifest, fs = manifest_of(path), FileSystem()
    entries = []
    for entry in manifest.checkpoints:
        found = checkpoints.read(fs, path, entry, manifest.uuid)
        values = {
            "epoch": found.epoch, "table": found.table, "catalog": found.catalog, "data_files": found.data_files,
            "last_log": found.last_log, **changes,
        }  # fmt: skip
        entries.append(checkpoints.write(fs, path, found.number, manifest.uuid, **values))
    change_manifest(path, checkpoints=tuple(entries))


# Pages.


class Pages:
    """The live pages of a closed index, by NodeID: where they stand, and ways to replace their bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.levels: dict[str, list[list[int]]] = {}  # by tree and level: NodeIDs
        with xtree.Runtime(path, mode="r") as runtime:
            store = runtime._store
            self.rows = {int(row["node"]): row for row in store.table.visible(store.published.epoch)}
            self.files = {node: Path(store._file_name(int(row["window"]))) for node, row in self.rows.items()}
            for entry in store.published.catalog:
                state = TreeState.decode(entry.state, entry.root)
                self.levels[entry.name] = self._levels(store, state)

    def _levels(self, store, state) -> list[list[int]]:
        levels = [[state.root]]
        for _ in range(state.height - 1):
            levels.append([child for node in levels[-1] for child in describe(store, node)["refs"].tolist()])
        return levels[::-1]

    def offset(self, node: int) -> int:
        return int(self.rows[node]["offset"])

    def size(self, node: int) -> int:
        return 4096 << int(self.rows[node]["size_class"])

    def read(self, node: int) -> bytes:
        with open(self.files[node], "rb") as file:
            file.seek(self.offset(node))
            return file.read(self.size(node))

    def write(self, node: int, page: bytes) -> None:
        """Puts other bytes into a page's slot."""
        with open(self.files[node], "r+b") as file:
            file.seek(self.offset(node))
            file.write(page)

    def forge(self, node: int, changes: dict[int, bytes]) -> None:
        """Replaces bytes, by offset, so that the CRC in page and row is still right."""
        self.write(node, keeping_its_crc(self.read(node), changes, FREE))

    def spoil(self, node: int) -> None:
        """Changes a byte in the middle of a page."""
        flip(self.files[node], self.offset(node) + 1000)


def with_own_crc(page: bytes) -> bytes:
    """The page with the CRC that its bytes have now."""
    return page[:4] + page_crc_of(page).to_bytes(4, "little") + page[8:]


def change_store(path: Path, change: Callable[[object], None]) -> None:
    """Opens the index, calls change(store), and closes it."""
    with xtree.Runtime(path, mode="r+", config=by_request()) as runtime:
        change(runtime._store)


def overlap(store) -> None:
    """Makes a second live row for a slot that has one."""
    write_set = begin(store)  # this looks for overlaps
    row = store.table.visible(store.published.epoch)[3]
    node = store.table.reserve_node(200, int(row["size_class"]), int(row["address"]))
    store.table.seal_node(node, int(row["crc"]))
    store.table.publish_node(node, store.published.epoch)
    write_set.commit({"new": CatalogEntry("new", "text", 0, b"")})


def miscount(store) -> None:
    """Makes the catalog say that a tree has one record more."""
    entry = store.published.catalog.get("flat")
    state = bytearray(entry.state)
    state[8:16] = (int.from_bytes(state[8:16], "little") + 1).to_bytes(8, "little")
    begin(store).commit({"flat": CatalogEntry("flat", entry.kind, entry.root, bytes(state))})


def lose_the_root(store) -> None:
    """Makes the catalog name a root that was never given out."""
    entry = store.published.catalog.get("flat")
    root = store.table.stats()["handles"] + 1000 << 8 | 1
    begin(store).commit({"flat": CatalogEntry("flat", entry.kind, root, entry.state)})


def lose_a_page(store) -> None:
    """Makes a live leaf that no tree has."""
    leaf = next(row for row in store.table.visible(store.published.epoch) if row["kind"] == 1)
    content = store.read_page(int(leaf["node"]))
    write_set = begin(store)
    write_set.add_page(1, int(leaf["size_class"]), content)
    write_set.commit({"new": CatalogEntry("new", "text", 0, b"")})


def number_in(name: str) -> int:
    """The sequence number in a file's name."""
    return int(re.findall(r"\d{10}", name)[0])


def damage(file: Path, rng: random.Random) -> str:
    """Flips a bit, blanks a sector, or cuts the file; near its beginning half of the time. Says what."""
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content) if rng.random() < 0.5 else min(len(content), 9000))
    how = rng.choice(("flip", "zero", "fill", "cut"))
    if how == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[at:]
    else:
        end = min(len(content), (at | 511) + 1)
        content[at & ~511:end] = (b"\0" if how == "zero" else b"\xa5") * (end - (at & ~511))
    file.write_bytes(content)
    return f"{how} at {at}"


def bytes_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != filenames.LOCK}


def log_damaged_in_the_middle(path: Path) -> None:
    log = files(path, "log")[-1].read_bytes()
    frames = [match.start() for match in re.finditer(b"XTFR", log)]
    flip(files(path, "log")[-1], frames[len(frames) // 2] + 300)
