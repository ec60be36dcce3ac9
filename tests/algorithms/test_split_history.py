"""Split histories: the axes by which each page was cut from others, insert by insert, as the X-tree's paper has them.

After each insert that split a leaf, the splits are planned anew (split.plan_split, which test_split.py holds against
the papers): both halves must carry the history of the page that was split and the axis of the split, entries of a new
root the axes that all entries below had in common, and every other entry what it had.

Promises (Right answers):

- both halves of a split, a new root's entries and entries that move carry the history that the X-tree's paper gives
  them:
  all of it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from support.packed_trees import load
from support.tree_data import all_equal, uniform

from xtree.algorithms.bucket import describe, entry_limits
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk
from xtree.algorithms.updates.insertion import insert
from xtree.algorithms.updates.removal import delete
from xtree.algorithms.updates.split import plan_split
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

Directory = dict[int, dict[str, Any]]
HEADER_BYTES, LARGEST_PAGE = 64, 256 << 10


def directory_of(store, state: TreeState) -> Directory:
    """The directory pages of a tree by their NodeIDs, parents first."""
    found: Directory = {}
    nodes = [state.root] if state.height > 1 else []
    for node in nodes:
        found[node] = describe(store, node)
        if found[node]["level"] > 1:
            nodes += found[node]["refs"].tolist()
    return found


def histories(directory: Directory) -> dict[int, int]:
    """The history of each page but the root."""
    return {
        ref: history
        for page in directory.values()
        for ref, history in zip(page["refs"].tolist(), page["history"].tolist(), strict=True)
    }


def parents(directory: Directory) -> dict[int, int]:
    return {ref: node for node, page in directory.items() for ref in page["refs"].tolist()}


class Watched:
    """A tree into which records go one by one. After each insert the histories are compared with the expected ones."""

    def __init__(self, state: TreeState) -> None:
        self.store = MemoryStore()
        self.ws = begin(self.store)
        self.state = state
        self.splits: Counter[str] = Counter()
        self.leaf_of: dict[int, int] = {}  # by record, of those that have been seen
        self.remember()

    def remember(self) -> None:
        self.directory, self.root, self.made = directory_of(self.store, self.state), self.state.root, len(self.ws)

    def insert(self, id: int, box: np.ndarray) -> None:
        insert(self.ws, self.state, np.array([id]), np.ascontiguousarray(box[None]))
        if self.root == 0:
            self.remember()
        elif len(self.ws) != self.made:
            now = directory_of(self.store, self.state)
            assert histories(now) == self.expected(now)
            self.remember()
        if id % (entry_limits(self.state.dims, self.state.page_bytes)[0] // 4) == 0:
            self.look_at_leaves()

    def end(self) -> None:
        """Asserts that no insert changed anything but those that split a page."""
        assert histories(directory_of(self.store, self.state)) == histories(self.directory)
        self.ws.abort()
        self.store.close()

    def expected(self, now: Directory) -> dict[int, int]:
        """What the histories should be after a leaf was split."""
        expected, old_parents, new_parents = histories(self.directory), parents(self.directory), parents(now)
        boxes = {r: b for page in now.values() for r, b in zip(page["refs"].tolist(), page["boxes"], strict=True)}
        first, second, plan = self.split_leaf(now)
        split = first  # a leaf keeps its NodeID
        history = expected.pop(split, 0) | self.bit(plan, "leaf")
        while split != self.root:
            parent = old_parents[split]
            entries = [first if ref == split else ref for ref in self.directory[parent]["refs"].tolist()] + [second]
            expected[first] = expected[second] = history
            columns = np.array([boxes[ref] for ref in entries]), [expected[ref] for ref in entries]
            plan = self.plan(*columns, self.directory[parent]["blocks"])
            if plan is None:  # it has room, or has grown, perhaps into a new page
                if parent != self.root:
                    expected[new_parents[first]] = expected.pop(parent)
                return expected
            inherited = int(np.bitwise_and.reduce(np.array(columns[1], np.uint64))) if parent == self.root else None
            history = (expected.pop(parent) if inherited is None else inherited) | self.bit(plan, "directory")
            halves = [{entries[i] for i in group} for group in plan["groups"]]
            first, second = (new_parents[min(half)] for half in halves)
            assert [set(now[node]["refs"].tolist()) for node in (first, second)] == halves
            split = parent
        self.splits["root"] += 1
        return {**expected, first: history, second: history}

    def look_at_leaves(self) -> None:
        """Remembers where records are; to be called so often that some of each half of a split have been seen."""
        leaves = [ref for page in self.directory.values() if page["level"] == 1 for ref in page["refs"].tolist()]
        for leaf in leaves or [self.state.root]:
            self.leaf_of.update(dict.fromkeys(describe(self.store, leaf)["refs"].tolist(), leaf))

    def split_leaf(self, now: Directory) -> tuple[int, int, dict[str, Any]]:
        """The leaf that was split, the new leaf, and the plan of that split."""
        leaves = [ref for page in now.values() if page["level"] == 1 for ref in page["refs"].tolist()]
        (second,) = set(leaves) - set(parents(self.directory)) - {self.root}
        new = describe(self.store, second)
        (first,) = {self.leaf_of[id] for id in new["refs"].tolist() if id in self.leaf_of}
        old = describe(self.store, first)
        assert old["count"] + new["count"] == entry_limits(self.state.dims, self.state.page_bytes)[0] + 1
        plan = plan_split(np.vstack([old["boxes"], new["boxes"]]))
        assert sorted(plan["groups"][1].tolist()) == [*range(old["count"], old["count"] + new["count"])]
        return first, second, plan

    def plan(self, boxes: np.ndarray, bits: list[int], blocks: int) -> dict[str, Any] | None:
        """How a directory page with these entries is split; None if it holds them, if need be as a supernode."""
        state = self.state
        most = LARGEST_PAGE // state.page_bytes
        while len(boxes) > (blocks * state.page_bytes - HEADER_BYTES) // (16 * state.dims + 16) // 8 * 8:
            limits = {name: state.parameters[name] for name in ("max_overlap", "min_fanout", "min_fill")}
            plan = plan_split(boxes, bits, may_stay=blocks < most, **limits)
            if plan is not None:
                topological = plan_split(boxes, min_fill=limits["min_fill"])
                if blocks < most and topological["overlap"] > limits["max_overlap"] and not plan["by_position"]:
                    self.splits["by history"] += 1
                return plan
            self.splits["supernode"] += 1
            blocks += 1
        return None

    def bit(self, plan: dict[str, Any], kind: str) -> int:
        self.splits["by position" if plan["by_position"] else kind] += 1
        return 0 if plan["by_position"] else 1 << plan["axis"]


# dims, page_bytes, max_overlap, records, kinds of splits that must have happened
TREES = [
    (1, 4096, 0.2, 16_000, {"leaf", "directory", "root"}),
    (2, 4096, 0.2, 8_000, {"leaf", "directory", "root"}),
    (3, 4096, 0.2, 5_000, {"leaf", "directory", "root"}),
    (8, 4096, 0.2, 5_000, {"leaf", "directory", "root", "by history"}),
    (8, 4096, 0.01, 1_500, {"leaf", "root", "supernode"}),
    (64, 16384, 0.2, 600, {"leaf", "directory", "root", "supernode"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "page_bytes", "max_overlap", "n", "kinds"), TREES)
def test_both_halves_inherit_the_history_and_add_the_axis(dims, page_bytes, max_overlap, n, kinds):
    watched = Watched(TreeState.create(dims, page_bytes=page_bytes, max_overlap=max_overlap))
    for id, box in enumerate(uniform(np.random.default_rng(7), n, dims)):
        watched.insert(id, box)
    watched.end()
    assert kinds <= set(watched.splits)


def test_a_split_by_position_adds_no_axis():
    store = MemoryStore()
    ws = begin(store)
    state = TreeState.create(2)
    boxes = all_equal(np.random.default_rng(7), 12_000, 2)
    insert(ws, state, np.arange(len(boxes)), boxes)
    assert state.height == 3
    assert set(histories(directory_of(store, state)).values()) == {0}
    ws.abort()


@pytest.mark.parametrize("dims", [2, 3, 4, 8, 64])
def test_histories_of_a_packed_tree_are_handed_down_to_what_splits_in_it(dims):
    """The pages of a bulk load carry axes, and so do the halves into which inserts split them."""
    random = np.random.default_rng(7)
    n = 2000 if dims < 64 else 400
    watched = Watched(TreeState.create(dims, leaf_fill=1.0))
    bulk.load(watched.ws, watched.state, np.arange(n), uniform(random, n, dims))
    watched.remember()
    watched.look_at_leaves()
    assert any(histories(watched.directory).values())
    for id, box in enumerate(uniform(random, 1000, dims), n):
        watched.insert(id, box)
    watched.end()
    assert watched.splits["leaf"] >= 10


@pytest.mark.parametrize("dims", [2, 3, 4, 8])
def test_the_entries_of_a_packed_page_carry_the_axes_that_cut_them_apart(dims):
    """All entries of a page carry the axis of its first cut. Up to three dims they carry no other one; above that they
    carry the axes of the later cuts too."""
    store = MemoryStore()
    _, state = load(store, uniform(np.random.default_rng(7), 20_000, dims))
    for page in directory_of(store, state).values():
        bits = page["history"]
        assert np.bitwise_and.reduce(bits)
        counts = {int(history).bit_count() for history in bits}
        assert counts == {1} if dims <= 3 else max(counts) > 1 or page["count"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3, 8, 64])
def test_entries_that_are_moved_keep_their_history(dims):
    """A directory page that is dissolved gives its entries to others; no history changes on the way."""
    random = np.random.default_rng(7)
    n, page_bytes = (12_000, 4096) if dims < 8 else (1500, 16384 if dims == 64 else 4096)
    boxes = uniform(random, n, dims)
    store = MemoryStore()
    ws = begin(store)
    state = TreeState.create(dims, page_bytes=page_bytes)
    insert(ws, state, np.arange(n), boxes)
    before, moved = directory_of(store, state), 0
    for id in np.argsort(np.hypot(boxes[:, 0], boxes[:, 1])):  # a corner of the tree empties first
        delete(ws, state, np.array([id]), boxes[id : id + 1])
        now = directory_of(store, state)
        old, new = histories(before), histories(now)
        if set(new) <= set(old):  # nothing was split when orphans were inserted
            assert new == {ref: old[ref] for ref in new}
            at, was = parents(now), parents(before)
            moved += sum(at[ref] != was[ref] and was[ref] not in now for ref in new)
        else:
            for ref in set(new) & set(old):
                assert new[ref] & old[ref] == old[ref]
        before = now
        if moved > 20:
            break
    assert moved > 0
    ws.abort()


@pytest.mark.parametrize("dims", [2, 8])
def test_pages_that_are_copied_for_a_change_keep_the_histories_of_their_entries(dims):
    random = np.random.default_rng(7)
    store = MemoryStore()
    ws = begin(store)
    state = TreeState.create(dims, page_bytes=4096)
    insert(ws, state, np.arange(9000), uniform(random, 9000, dims))
    ws.commit({})
    state = state.copy()
    assert state.height > 2

    def in_order(node: int) -> list[Any]:
        page = describe(store, node)
        if page["level"] == 0:
            return []
        return [page["history"].tolist(), *(in_order(ref) for ref in page["refs"].tolist())]

    before, root = in_order(state.root), state.root
    ws = begin(store)
    box = describe(store, state.root)["boxes"][0]
    insert(ws, state, np.array([9000]), np.concatenate([box[:dims], box[:dims]])[None])
    assert state.root != root and in_order(state.root) == before
    ws.abort()
    store.close()
