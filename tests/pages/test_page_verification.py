"""What is verified when a page is first touched: it is the page of its node, or nothing is read from it.

Promises (Right answers):

- a page is read only if it is its node's page: CRC in page and row, magic, node, kind, class, level, dims, count:
  test_a_page_whose_crc_is_right_and_which_is_another_is_refused,
  test_a_page_with_a_right_crc_of_its_own_that_is_not_its_rows_is_refused.
- a descent goes down one level at a time, and ends:
  test_a_descent_goes_down_one_level_at_a_time,
  test_inspection.py::test_a_tree_whose_pages_are_all_the_same_ends_in_an_error_not_in_a_long_walk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.forged_files import keeping_its_crc
from support.tree_data import uniform
from support.tree_walks import commit, pages

import xtree
from xtree.algorithms.bucket import describe
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates.insertion import insert
from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.opening import open_store
from xtree.persistence.pages.page_checksum import page_crc_of
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin
from xtree.roots import decode_state

RECORDS = 400  # they make a root and some leaves of 4 KiB
PAGE = 4096
FREE = PAGE - 8  # offset of bytes that no column of these pages reaches

READS: dict[str, Callable[[xtree.XTree], object]] = {
    "query": lambda tree: tree.query([-np.inf, -np.inf, np.inf, np.inf]),
    "count": lambda tree: tree.count([0.01, 0.01, 0.99, 0.99]),
    "nearest": lambda tree: tree.nearest([0.5, 0.5], k=RECORDS),
    "items": lambda tree: tree.items(),
    "check": lambda tree: tree.check(),
    "delete": lambda tree: tree.delete_many(np.arange(RECORDS), uniform(np.random.default_rng(8), RECORDS, 2)),
}

# What is changed in a leaf's header: offset, bytes, the message.
FORGERIES = {
    "magic": (0, b"XTPH", "magic"),
    "another node's": (8, struct.pack("<Q", 0x7701), "found node 0x7701"),
    "another life of the node": (8, None, "found node"),
    "another kind": (16, b"\x02", "has kind 2"),
    "a kind that no structure has": (16, b"\xc8", "has kind 200"),
    "another size class": (17, b"\x01", "size class 1"),
    "level": (24, struct.pack("<H", 1), "level"),
    "dims": (26, struct.pack("<H", 1), "1 dims"),
    "dims beyond all": (26, struct.pack("<H", 65), "dims"),
    "count": (28, struct.pack("<I", 1 << 31), "more entries"),
    "blocks": (32, struct.pack("<H", 9), "more blocks"),
}


@pytest.fixture
def index(tmp_path) -> Path:
    """A small index, closed."""
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert_many(np.arange(RECORDS), uniform(np.random.default_rng(8), RECORDS, 2))
        assert tree.height == 2
    return tmp_path / "index"


def leaf_of(path: Path) -> tuple[str, int, int]:
    """Data file and offset of a leaf, and its NodeID."""
    store = open_store(path, mode="r")
    state = decode_state(store.published.catalog.get("default"))
    node = next(page["node"] for page in pages(store, state) if page["kind"] == "leaf")
    row = store.table.describe(node)
    file = store._file_name(row["window"])
    store.close()
    return file, row["offset"], node


def change(file: str, offset: int, edit: Callable[[bytes], bytes]) -> None:
    with open(file, "r+b") as opened:
        opened.seek(offset)
        page = opened.read(PAGE)
        opened.seek(offset)
        opened.write(edit(page))


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_page_whose_crc_is_right_and_which_is_another_is_refused(index, forgery, read):
    at, new, message = FORGERIES[forgery]
    file, offset, node = leaf_of(index)
    forged = struct.pack("<Q", node + 1) if new is None else new
    change(file, offset, lambda page: keeping_its_crc(page, {at: forged}, FREE))
    with xtree.open(index) as tree:
        with pytest.raises(CorruptionError, match=message):
            READS[read](tree)
        tree.insert(RECORDS, (5.0, 5.0))
        assert tree.query((5.0, 5.0)).tolist() == [RECORDS]


def test_a_page_of_another_format_is_told_from_damage(index):
    file, offset, _ = leaf_of(index)
    change(file, offset, lambda page: keeping_its_crc(page, {18: struct.pack("<H", 9)}, FREE))
    with xtree.open(index) as tree, pytest.raises(FormatVersionError, match=r"page format 9; .* reads 1"):
        tree.items()


@pytest.mark.parametrize("read", READS)
def test_a_page_with_a_right_crc_of_its_own_that_is_not_its_rows_is_refused(index, read):
    file, offset, _ = leaf_of(index)

    def edit(page: bytes) -> bytes:
        changed = bytearray(page)
        changed[200] ^= 1
        changed[4:8] = page_crc_of(bytes(changed)).to_bytes(4, "little")
        return bytes(changed)

    change(file, offset, edit)
    with xtree.open(index) as tree, pytest.raises(CorruptionError, match=f"{os.path.basename(file)}, offset {offset}"):
        READS[read](tree)


def test_every_page_is_compared_with_its_row_by_check_though_it_was_touched_before(index):
    with xtree.open(index) as tree:
        tree.items()
        file, offset = tree._store._file_name(0), PAGE
        store = tree._store
        node = next(row["node"] for row in store.table.rows() if row["state"] == "live" and row["window"] == 0)
        offset = store.table.describe(node)["offset"]
        change(file, offset, lambda page: page[:300] + bytes([page[300] ^ 1]) + page[301:])
        with pytest.raises(CorruptionError, match="CRC"):
            tree.check()
        change(file, offset, lambda page: page[:300] + bytes([page[300] ^ 1]) + page[301:])
        tree.check()


def tall_tree(store) -> TreeState:
    """A tree of three levels, committed."""
    write_set = begin(store)
    state = TreeState.create(2)
    boxes = uniform(np.random.default_rng(1), 12_000, 2)
    insert(write_set, state, np.arange(len(boxes)), boxes)
    assert state.height == 3
    commit(write_set, state)
    return state


@pytest.mark.parametrize("read", sorted(set(READS) - {"check", "delete"}))
@pytest.mark.parametrize("leads", ["to a grandchild", "to the root of another tree"])
def test_a_descent_goes_down_one_level_at_a_time(read, leads):
    tree = xtree.XTree(2)
    store = tree._store
    assert isinstance(store, MemoryStore)
    state = tall_tree(store)
    child = int(describe(store, state.root)["refs"][0])
    other = tall_tree(store)
    wrong = {
        "to a grandchild": int(describe(store, child)["refs"][0]),
        "to the root of another tree": other.root,
    }[leads]
    write_set = begin(store)
    content = store.read_page(state.root)
    assert content.count(child.to_bytes(8, "little")) == 1
    root = write_set.replace_page(state.root, content.replace(child.to_bytes(8, "little"), wrong.to_bytes(8, "little")))
    commit(write_set, TreeState.decode(state.encode(), root), "default")
    with pytest.raises(CorruptionError, match="level"):
        READS[read](tree)
    tree.close()
