"""Bucket pages: capacities, the layout of the columns, and when a page is refused."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from support.tree_data import uniform
from support.tree_walks import commit, pages

from xtree.algorithms.bucket import describe, entry_limits, header_of, parse, size_class_of
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates.insertion import insert
from xtree.algorithms.updates.removal import delete
from xtree.errors import CorruptionError
from xtree.persistence.opening import open_store
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

PREFIX_BYTES = 24
HEADER = struct.Struct("<HHIH30x")  # level, dims, count, blocks, after the page's prefix


@pytest.fixture
def store():
    made = MemoryStore()
    yield made
    made.check()
    made.close()


@pytest.mark.parametrize("dims", range(1, 65))
def test_a_page_of_the_size_picked_holds_at_least_48_entries(dims):
    page_bytes = TreeState.create(dims).page_bytes
    leaf_limit, block_limit = entry_limits(dims)
    assert 48 <= block_limit <= leaf_limit
    assert leaf_limit % 8 == block_limit % 8 == 0
    assert 64 + leaf_limit * (16 * dims + 8) <= page_bytes
    assert 64 + block_limit * (16 * dims + 16) <= page_bytes
    if page_bytes > 4096:
        assert (page_bytes // 2 - 64) // (16 * dims + 16) // 8 * 8 < 48


def test_two_dims_take_pages_of_4096_bytes():
    assert TreeState.create(2).page_bytes == 4096
    assert entry_limits(2) == (96, 80)


def test_page_sizes_are_those_of_the_classes():
    assert [size_class_of(4096 << k) for k in range(7)] == list(range(7))
    assert size_class_of(None) == -1
    for wrong in (0, 4095, 4097, 1 << 19, -4096):
        with pytest.raises(ValueError, match="page_bytes must be one of 4096, "):
            size_class_of(wrong)


def test_a_page_too_small_for_its_entries_is_refused():
    with pytest.raises(ValueError, match="pages of 4096 bytes are too small for 64 dims"):
        entry_limits(64, 4096)


def test_columns_are_where_the_layout_says(store, random):
    boxes = uniform(random, 5, 3)
    ws = begin(store)
    state = TreeState.create(3)
    insert(ws, state, np.arange(10, 15), boxes)
    content = store.read_page(state.root)
    assert HEADER.unpack_from(content) == (0, 3, 5, 1)
    leaf_limit, _ = entry_limits(3)
    start = HEADER.size
    assert start + PREFIX_BYTES == 64
    for column in [*boxes.T.view(np.int64), np.arange(10, 15)]:
        assert np.frombuffer(content, np.int64, 5, start).tolist() == column.tolist()
        start += 8 * leaf_limit
    ws.abort()


def test_a_directory_keeps_a_history_behind_its_refs(store, random):
    ws = begin(store)
    state = TreeState.create(2)
    insert(ws, state, np.arange(1000), uniform(random, 1000, 2))
    page = describe(store, state.root)
    content = store.read_page(state.root)
    _, block_limit = entry_limits(2)
    refs_at = HEADER.size + 4 * 8 * block_limit
    assert np.frombuffer(content, np.uint64, page["count"], refs_at).tolist() == page["refs"].tolist()
    history_at = refs_at + 8 * block_limit
    assert np.frombuffer(content, np.uint64, page["count"], history_at).tolist() == page["history"].tolist()
    ws.abort()


def test_a_page_behind_its_count_is_zero(store, random):
    ws = begin(store)
    state = TreeState.create(2)
    insert(ws, state, np.arange(2000), uniform(random, 2000, 2))
    leaf_limit, _ = entry_limits(2)
    nodes = describe(store, state.root)["refs"].tolist()
    for node in nodes:
        count = describe(store, node)["count"]
        columns = np.frombuffer(store.read_page(node), np.uint64, 5 * leaf_limit, HEADER.size).reshape(5, leaf_limit)
        assert not columns[:, count:].any()
        assert columns[4, :count].any()
    ws.abort()


def test_describe_refuses_a_page_that_is_no_bucket(store):
    ws = begin(store)
    node = ws.add_page(200, 0, b"something else")
    with pytest.raises(ValueError, match="of kind 200"):
        describe(store, node)
    ws.abort()


@pytest.mark.parametrize("node", [1, 0xFF01, 2**64 - 1])
def test_describe_refuses_a_node_that_is_not_there(store, node):
    with pytest.raises(CorruptionError):
        describe(store, node)


def test_a_page_of_another_level_or_tree_is_corruption(store, random):
    ws = begin(store)
    state = TreeState.create(2)
    insert(ws, state, np.arange(1000), uniform(random, 1000, 2))
    leaf = describe(store, state.root)["refs"].tolist()[0]
    wrong_level = TreeState.decode(state.encode(), leaf)
    with pytest.raises(CorruptionError, match=r"has kind 1, level 0, 2 dims; expected kind 2, level 1, 2 dims"):
        insert(ws, wrong_level, np.arange(1), uniform(random, 1, 2))
    other = TreeState.create(3)
    insert(ws, other, np.arange(1000), uniform(random, 1000, 3))
    wrong_dims = TreeState.decode(other.encode(), state.root)
    with pytest.raises(CorruptionError, match=r"2 dims; expected kind 2, level 1, 3 dims"):
        insert(ws, wrong_dims, np.arange(1), uniform(random, 1, 3))
    ws.abort()


FORGERIES = {
    "dims 0": ("dims outside", 0, 0, 4, 1),
    "dims 65": ("dims outside", 0, 65, 4, 1),
    "level of a directory": ("level does not fit", 1, 2, 4, 1),
    "no blocks": ("more blocks", 0, 2, 4, 0),
    "blocks of a supernode": ("more blocks", 0, 2, 4, 2),
    "too many entries": ("more entries", 0, 2, 97, 1),
    "count of 2**32 - 1": ("more entries", 0, 2, 2**32 - 1, 1),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_header_is_found_at_the_first_touch(tmp_path, random, forgery):
    message, *header = FORGERIES[forgery]
    store = open_store(tmp_path / "index", mode="x")
    ws = begin(store)
    state = TreeState.create(2)
    insert(ws, state, np.arange(4), uniform(random, 4, 2))
    root = ws.replace_page(state.root, HEADER.pack(*header))
    commit(ws, TreeState.decode(state.encode(), root))
    store.close()
    store = open_store(tmp_path / "index", mode="r")
    with pytest.raises(CorruptionError, match=message):
        describe(store, root)
    store.close()


@pytest.mark.parametrize(
    ("kind", "size_class", "header"),
    [
        (1, 1, (0, 2, 97, 1)), (1, 0, (0, 2, 97, 1)), (2, 1, (1, 2, 80, 1)), (2, 1, (1, 2, 80, 128)),
        (2, 3, (1, 2, 80, 4)),
    ],
)  # fmt: skip
def test_a_page_of_the_wrong_size_is_not_written_to(store, random, kind, size_class, header):
    ws = begin(store)
    state = TreeState.create(2)
    insert(ws, state, np.arange(100 if kind == 2 else 4), uniform(random, 100 if kind == 2 else 4, 2))
    forged = TreeState.decode(state.encode(), ws.add_page(kind, size_class, HEADER.pack(*header)))
    with pytest.raises(CorruptionError, match="has size class"):
        insert(ws, forged, np.arange(1), uniform(random, 1, 2))
    ws.abort()


def forge(random: np.random.Generator, content: bytes) -> bytes:
    """A page's content with some of its words replaced: bounds, NodeIDs, the header."""
    words = np.frombuffer(content, np.uint64).copy()
    wild = np.array([0, 1, 2**64 - 1, 0x101, 0x201, 0x301], np.uint64)
    wild = np.append(wild, np.array([np.nan, np.inf, -np.inf, 1e308, -1e308]).view(np.uint64))
    first = 0 if random.random() < 0.3 else 5
    rows = random.integers(first, len(words) if random.random() < 0.5 else 60, random.integers(1, 20))
    words[rows] = random.choice(np.append(wild, random.choice(words, len(wild))), len(rows))
    return words.tobytes()


@pytest.mark.parametrize("dims", [1, 2, 20])
def test_writing_to_a_tree_of_forged_pages_ends_cleanly(tmp_path, random, dims):
    boxes = uniform(random, 600, dims)
    for attempt in range(12):
        store = open_store(tmp_path / f"index-{attempt}", mode="x")
        ws = begin(store)
        state = TreeState.create(dims)
        insert(ws, state, np.arange(600), boxes)
        for page in pages(store, state)[1:4]:
            ws.replace_page(page["node"], forge(random, store.read_page(page["node"])))
        commit(ws, state)
        store.close()
        store = open_store(tmp_path / f"index-{attempt}")
        for write in (insert, delete):
            ws = begin(store)
            try:
                write(ws, state.copy(), np.arange(600), boxes)
            except CorruptionError:
                pass
            ws.abort()
        store.close()


def test_the_bytes_of_a_page_say_what_its_store_says_of_it(tmp_path, random):
    state = TreeState.create(3)
    with contextlib.closing(open_store(tmp_path / "index")) as durable:
        write_set = begin(durable)
        insert(write_set, state, np.arange(2000), uniform(random, 2000, 3))
        commit(write_set, state)
        expected = {page["node"]: page for page in pages(durable, state)}
    (file,) = (tmp_path / "index").glob("data-*")
    content, size = file.read_bytes()[4096:], 4096 << expected[state.root]["size_class"]
    found = {}
    for at in range(0, len(content), size):
        page = parse(content[at:at + size])
        found[page["node"]] = page
        header = header_of(content[at:at + size])
        assert header["crc"] == header["computed_crc"] and header["node"] == page["node"]
    assert set(found) >= set(expected)
    for node, page in expected.items():
        assert {name: np.asarray(value).tolist() for name, value in page.items()} == {
            name: np.asarray(value).tolist() for name, value in found[node].items()
        }
    changed = bytearray(content[:size])
    changed[100] ^= 1
    with pytest.raises(CorruptionError, match="expected the CRC 0x.* of the page's bytes, found 0x.* in its header"):
        parse(changed)
    with pytest.raises(CorruptionError, match="expected the magic"):
        parse(bytes(size))
    with pytest.raises(ValueError, match="at least 64 bytes, got 3"):
        header_of(b"abc")
