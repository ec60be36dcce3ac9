"""check() finds what is wrong with a tree, and stats() says what it is made of.

Promises (Right answers):

- `check()` finds what is wrong, and says on which page:
  test_check_names_page_level_and_what_is_wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support import brute_force, tree_data, tree_walks
from support.packed_trees import load, sizes_at_the_limits

from xtree.algorithms.bucket import describe, entry_limits
from xtree.algorithms.queries import explain, inspection, nearest, search
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk, insertion, removal
from xtree.errors import CorruptionError
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

PREFIX_BYTES, HEADER_BYTES = 24, 64
LEVEL, DIMS, COUNT, BLOCKS = slice(24, 26), slice(26, 28), slice(28, 32), slice(32, 34)
LEAST_ID, MOST_ID = slice(40, 48), slice(48, 56)
LEAF, DIRECTORY = 1, 2


pytestmark = pytest.mark.usefixtures("in_flight")


class Page:
    """A page's bytes, to be changed. `words` holds its columns of 8 bytes: 2 * dims of bounds, refs, history."""

    def __init__(self, store, node: int):
        self.info = describe(store, node)
        self.bytes = np.frombuffer(bytes(PREFIX_BYTES) + store.read_page(node), np.uint8).copy()
        self.words = self.bytes[HEADER_BYTES:].view(np.uint64)
        dims, directory = self.info["dims"], self.info["kind"] == "directory"
        self.stride = len(self.words) // (2 * dims + (2 if directory else 1)) & ~7

    def column(self, number: int) -> np.ndarray:
        return self.words[number * self.stride:(number + 1) * self.stride]

    def bounds(self, number: int) -> np.ndarray:
        return self.column(number).view(np.float64)

    def refs(self) -> np.ndarray:
        return self.column(2 * self.info["dims"])

    def set_header(self, field: slice, value: int) -> None:
        data = value.to_bytes(field.stop - field.start, "little", signed=value < 0)
        self.bytes[field] = np.frombuffer(data, np.uint8)

    def add(self, write_set) -> int:
        kind = DIRECTORY if self.info["kind"] == "directory" else LEAF
        return write_set.add_page(kind, self.info["size_class"], self.bytes[PREFIX_BYTES:])


def forge(store, state: TreeState, level: int, change: Callable[[Page], None]) -> TreeState:
    """The tree with a change to its first page on a level, in new pages on the path to it."""
    write_set = begin(store)

    def rewrite(node: int, page_level: int) -> int:
        page = Page(store, node)
        if page_level == level:
            change(page)
        else:
            page.refs()[0] = rewrite(int(page.refs()[0]), page_level - 1)
        return page.add(write_set)

    forged = TreeState.decode(state.encode(), rewrite(state.root, state.height - 1))
    write_set.commit({})
    return forged


@pytest.fixture
def loaded(store, random):
    boxes = brute_force.random_boxes(random, 20_000, 2, side=0.01)
    _, state = load(store, boxes)
    assert state.height == 3
    inspection.check(store, state)
    return store, state


def set_first(column: int, value: float) -> Callable[[Page], None]:
    def change(page: Page) -> None:
        page.bounds(column)[0] = value
    return change


def set_count(count: int) -> Callable[[Page], None]:
    return lambda page: page.set_header(COUNT, count)


def repeat_child(page: Page) -> None:
    page.refs()[1] = page.refs()[0]


def set_history(page: Page) -> None:
    page.column(2 * page.info["dims"] + 1)[0] = 1 << 63


@pytest.mark.parametrize(
    ("level", "change", "complaint"),
    [
        (0, set_first(0, np.nan), "level 0: entry 0 spans nan .* on axis 0, expected finite and ascending"),
        (0, set_first(3, np.inf), "level 0: entry 0 spans .* to inf on axis 1"),
        (0, set_first(2, -5.0), "level 0: entry 0 spans .* to -5.0 on axis 0"),
        (0, set_first(0, -7.0), "level 0: lower bound on axis 0: expected .* by its parent, found -7.0"),
        (1, set_first(3, 7.0), "level 1: upper bound on axis 1: expected .* by its parent, found 7.0"),
        (2, set_first(3, 7.0), "level 2: upper bound on axis 1: expected .* by its parent, found 7.0"),
        (0, set_count(3), "level 0: least entries: expected 38, found 3"),
        (0, set_count(0), "level 0: least entries: expected 38, found 0"),
        (1, set_count(2), "level 1: least entries: expected 28, found 2"),
        (2, set_count(1), "level 2: least entries: expected 2, found 1"),
        (0, lambda page: page.set_header(LEVEL, 1), "kind 1, level 1, 2 dims; expected kind 1, level 0, 2 dims"),
        (1, lambda page: page.set_header(DIMS, 3), "level 1, 3 dims; expected kind 2, level 1, 2 dims"),
        (1, lambda page: page.set_header(BLOCKS, 9), "level 1: number of blocks: expected 1, found 9"),
        (1, repeat_child, "level 0: number of times reached: expected 1, found 2"),
        (1, set_history, "level 1: split history: expected 3"),
        (0, lambda page: page.set_header(LEAST_ID, 19_999), "level 0: expected ids from .* to .*, found 19999 to "),
        (1, lambda page: page.set_header(MOST_ID, -1), "level 1: expected ids from .* to .*, found .* to -1"),
        (2, lambda page: page.set_header(LEAST_ID, 10_000), "level 1: expected ids from 10000 to 19999, found "),
    ],
)  # fmt: skip
def test_check_names_page_level_and_what_is_wrong(random, level, change, complaint):
    store = MemoryStore()
    _, state = load(store, brute_force.random_boxes(random, 20_000, 2, side=0.01))
    assert state.height == 3
    with pytest.raises(CorruptionError, match=complaint):
        inspection.check(store, forge(store, state, level, change))
    inspection.check(store, state)


def test_check_accepts_a_page_rewritten_as_it_was(loaded):
    store, state = loaded
    for level in range(3):
        inspection.check(store, forge(store, state, level, lambda page: None))


def test_check_counts_the_records(loaded):
    store, state = loaded
    encoded = bytearray(state.encode())
    encoded[8:16] = (12345).to_bytes(8, "little")
    with pytest.raises(CorruptionError, match="tree of 12345 records, its leaves hold 20000"):
        inspection.check(store, TreeState.decode(bytes(encoded), state.root))


def test_check_holds_the_bounds_against_the_root(loaded):
    store, state = loaded
    encoded = bytearray(state.encode())
    encoded[48:56] = np.array([-1.0]).tobytes()
    with pytest.raises(CorruptionError, match=r"level 2: lower bound on axis 0: expected -1\.0 by its parent"):
        inspection.check(store, TreeState.decode(bytes(encoded), state.root))


def test_check_finds_a_child_that_is_not_there(random):
    store = MemoryStore()
    _, state = load(store, brute_force.random_boxes(random, 5000, 2))

    def lose(page: Page) -> None:
        page.refs()[0] = (1 << 50) | 1

    with pytest.raises(CorruptionError):
        inspection.check(store, forge(store, state, 1, lose))


def test_a_tree_whose_pages_are_all_the_same_ends_in_an_error_not_in_a_long_walk(random):
    store = MemoryStore()
    _, state = load(store, brute_force.random_boxes(random, 20_000, 2))
    levels = 12

    def chain() -> TreeState:
        """Directory pages, each full of entries for one and the same child; the lowest child is a real leaf."""
        write_set = begin(store)
        directory = Page(store, state.root)
        child = int(describe(store, int(directory.refs()[0]))["refs"][0])
        for level in range(1, levels):
            for column in range(4):
                directory.bounds(column)[:] = [-1.0, -1.0, 2.0, 2.0][column]
            directory.refs()[:] = child
            directory.set_header(LEVEL, level)
            directory.set_header(COUNT, directory.stride)
            child = directory.add(write_set)
        write_set.commit({})
        encoded = bytearray(state.encode())
        encoded[4:6] = levels.to_bytes(2, "little")
        return TreeState.decode(bytes(encoded), child)

    forged = chain()
    everything, place = np.array([-np.inf, -np.inf, np.inf, np.inf]), np.array([[0.5, 0.5]])
    middle = np.array([0.5, 0.5, 0.5, 0.5])
    for predicate in (0, 1):
        with pytest.raises(CorruptionError, match="a page is reached twice"):
            search.query_one(store, forged, everything, predicate)
        with pytest.raises(CorruptionError, match="a page is reached twice"):
            explain.of_windows(store, forged, everything[None], predicate)
    with pytest.raises(CorruptionError, match="a page is reached twice"):
        search.count(store, forged, middle[None, :], 2)
    with pytest.raises(CorruptionError, match="a page is reached twice"):
        search.holds(store, forged, 1, middle)
    with pytest.raises(CorruptionError, match="a page is reached twice"):
        search.items(store, forged)
    with pytest.raises(CorruptionError, match="a page is reached twice"):
        nearest.nearest(store, forged, place, 20_000)
    with pytest.raises(CorruptionError, match="a page is reached twice"):
        explain.of_nearest(store, forged, place, 20_000, np.inf)
    with pytest.raises(CorruptionError):
        inspection.check(store, forged)
    with pytest.raises(CorruptionError, match="a page is reached twice"):
        inspection.stats(store, forged)
    write_set = begin(store)
    with pytest.raises(CorruptionError):
        bulk.clear(write_set, forged)
    write_set.abort()


@pytest.mark.parametrize("dims", [1, 2, 3, 8, 17, 64])
def test_every_bulk_loaded_tree_is_a_right_one(random, dims):
    sizes = sizes_at_the_limits(dims) if dims < 3 else [1, 100, 3000]
    for n in sizes:
        store = MemoryStore()
        _, state = load(store, brute_force.random_boxes(random, n, dims))
        inspection.check(store, state)
        assert inspection.stats(store, state)["records"] == n


@pytest.mark.parametrize("dims", [2, 8])
@pytest.mark.parametrize("shape", ["uniform", "all_equal", "flat_segments", "huge", "denormal", "nested"])
def test_a_tree_stays_right_through_inserts_and_deletes(store, random, shape, dims):
    boxes = tree_data.ALL[shape](random, 3000, dims)
    ids = np.arange(3000)
    state = TreeState.create(dims)
    write_set = begin(store)
    insertion.insert(write_set, state, ids, boxes)
    inspection.check(store, state)
    tree_walks.commit(write_set, state)
    inspection.check(store, state)
    write_set = begin(store)
    gone = random.permutation(3000)[:2500]
    assert removal.delete(write_set, state, ids[gone], np.ascontiguousarray(boxes[gone])) == 2500
    inspection.check(store, state)
    tree_walks.commit(write_set, state)
    inspection.check(store, state)
    assert inspection.stats(store, state)["records"] == 500


def test_stats_count_what_is_there(random):
    store = MemoryStore()
    _, state = load(store, brute_force.random_boxes(random, 20_000, 2, side=0.01))
    pages = tree_walks.pages(store, state)
    stats = inspection.stats(store, state)
    leaf_limit, block_limit = entry_limits(2)
    assert (stats["records"], stats["height"], stats["nodes"]) == (20_000, 3, len(pages))
    assert stats["bytes"] == 4096 * len(pages)
    assert stats["supernodes"] == 0
    for level, figures in enumerate(stats["levels"]):
        of_level = [page for page in pages if page["level"] == level]
        entries = sum(page["count"] for page in of_level)
        assert figures["level"] == level
        assert (figures["nodes"], figures["entries"]) == (len(of_level), entries)
        assert figures["fill"] == entries / (len(of_level) * (block_limit if level else leaf_limit))
        assert figures["supernodes"] == 0
        assert 0.0 <= figures["overlap"] < 0.5
    assert stats["levels"][2]["overlap"] == 0.0


def test_stats_of_an_empty_tree_are_zeros(store):
    assert inspection.stats(store, TreeState.create(2)) == {
        "records": 0, "height": 0, "nodes": 0, "supernodes": 0, "levels": [], "bytes": 0,
    }  # fmt: skip
    inspection.check(store, TreeState.create(2))


def test_overlap_is_the_shared_volume_of_siblings():
    store = MemoryStore()
    leaf_limit, _ = entry_limits(1)
    left = np.tile([0.0, 6.0], (leaf_limit, 1))
    right = np.tile([4.0, 10.0], (leaf_limit, 1))
    _, state = load(store, np.vstack([left, right]), leaf_fill=1.0)
    assert inspection.stats(store, state)["levels"][0]["overlap"] == pytest.approx(0.2)


def test_supernodes_are_counted(random):
    store = MemoryStore()
    state = TreeState.create(16)
    write_set = begin(store)
    lower = random.random((6000, 16))
    insertion.insert(write_set, state, np.arange(6000), np.hstack([lower, lower + 0.5]))
    tree_walks.commit(write_set, state)
    stats = inspection.stats(store, state)
    pages = tree_walks.pages(store, state)
    supernodes = sum(page["blocks"] > 1 for page in pages)
    assert stats["supernodes"] == supernodes == sum(level["supernodes"] for level in stats["levels"])
    assert supernodes > 0
    limits = entry_limits(16, state.page_bytes)
    for level in stats["levels"]:
        here = [page for page in pages if page["level"] == level["level"]]
        normal = [page["count"] for page in here if page["blocks"] == 1]
        assert level["blocks"] == sum(page["blocks"] for page in here)
        room = len(normal) * limits[level["level"] > 0]
        assert level["page_fill"] == (pytest.approx(sum(normal) / room) if room else 0.0)
        assert (level["supernode_fill"] > 0.0) == (level["supernodes"] > 0)
        assert min(level["page_fill"] or 1.0, level["supernode_fill"] or 1.0) <= level["fill"] <= 1.0
    inspection.check(store, state)


def test_a_page_is_checked_by_itself_and_gives_its_count(loaded):
    store, state = loaded
    root = describe(store, state.root)
    assert inspection.check_page(store, state, state.root, 2, state.bounds, False) == root["count"]
    child, box = int(root["refs"][0]), root["boxes"][0].copy()
    assert inspection.check_page(store, state, child, 1, box, True) == describe(store, child)["count"]
    box[3] += 1.0
    with pytest.raises(CorruptionError, match="level 1: upper bound on axis 1: expected .* by its parent"):
        inspection.check_page(store, state, child, 1, box, True)
    with pytest.raises(CorruptionError, match="expected kind 1, level 0"):
        inspection.check_page(store, state, child, 0, box, True)
    with pytest.raises(ValueError, match="box of 3 numbers"):
        inspection.check_page(store, state, child, 1, box[:3].copy(), True)
