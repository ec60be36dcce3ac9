"""Packed trees: correct at every size and for any data, with full pages, and ready for changes.

Promises (Right answers):

- a load that is small against the tree copies paths, not the tree:
  test_a_load_that_is_small_against_the_tree_copies_paths_and_not_the_tree.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from support import brute_force, tree_data, tree_walks
from support.packed_trees import load, sizes_at_the_limits

from xtree.algorithms.bucket import describe, entry_limits
from xtree.algorithms.queries import inspection
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk, insertion, removal
from xtree.persistence.base import memory
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin
from xtree.writing import _rebuild

pytestmark = pytest.mark.usefixtures("in_flight")


def leaves(store, state: TreeState) -> list[dict]:
    return [page for page in tree_walks.pages(store, state) if page["level"] == 0]


def assert_packed(store, state: TreeState, ids: np.ndarray, boxes: np.ndarray) -> None:
    """Asserts a correct tree of exactly these records."""
    inspection.check(store, state)
    assert tree_walks.records(store, state, least_fill=0.4) == brute_force.records(ids, boxes)


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 8, 17, 64])
def test_every_size_around_a_full_page_makes_a_right_tree(random, dims):
    for n in [n for n in sizes_at_the_limits(dims) if n < 12_000]:
        store = MemoryStore()
        boxes = brute_force.random_boxes(random, n, dims)
        ids, state = load(store, boxes, random.integers(-(2**63), 2**63, n))
        assert_packed(store, state, ids, boxes)


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", tree_data.ALL)
def test_awkward_data_makes_a_right_tree(random, shape, dims):
    store = MemoryStore()
    boxes = tree_data.ALL[shape](random, 2500, dims)
    ids, state = load(store, boxes)
    assert_packed(store, state, ids, boxes)


@pytest.mark.parametrize("dims", [2, 8])
@pytest.mark.parametrize("fill", [0.8, 0.9, 1.0])
def test_leaves_are_filled_as_asked_and_evenly(random, dims, fill):
    leaf_limit, _ = entry_limits(dims)
    for n in (leaf_limit, leaf_limit + 1, 5000, 5001):
        store = MemoryStore()
        _, state = load(store, brute_force.random_boxes(random, n, dims), leaf_fill=fill)
        counts = [page["count"] for page in leaves(store, state)]
        assert max(counts) - min(counts) <= 1
        most = int(fill * leaf_limit)
        assert len(counts) in (-(-n // most), max(-(-n // most) - 1, 1))
        if n >= 5000:
            assert max(counts) <= most


def test_a_leaf_fill_too_low_for_the_least_fill_gives_way_to_it(random):
    leaf_limit, _ = entry_limits(2)
    for n in range(1, 5 * leaf_limit, 7):
        store = MemoryStore()
        boxes = brute_force.random_boxes(random, n, 2)
        ids, state = load(store, boxes, leaf_fill=0.8)
        assert_packed(store, state, ids, boxes)


@pytest.mark.parametrize("dims", [2, 3])
def test_tiles_are_about_square_and_hardly_overlap(random, dims):
    store = MemoryStore()
    stretch = np.array([4.0, 1.0, 0.5])[:dims]
    lower = random.random((30_000, dims)) * stretch
    _, state = load(store, np.hstack([lower, lower]))
    boxes = np.array([tree_walks.bounds_of(page["boxes"]) for page in leaves(store, state)])
    sides = boxes[:, dims:] - boxes[:, :dims]
    ratios = sides.max(axis=1) / sides.min(axis=1)
    assert np.median(ratios) < 2.5
    stats = inspection.stats(store, state)
    assert max(level["overlap"] for level in stats["levels"]) < 0.001


def test_an_axis_without_spread_takes_no_cuts(random):
    store = MemoryStore()
    lower = np.column_stack([np.zeros(5000), random.random(5000), np.ones(5000)])
    _, state = load(store, np.hstack([lower, lower]))
    spans = sorted((page["boxes"][:, 1].min(), page["boxes"][:, 4].max()) for page in leaves(store, state))
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_an_outlier_does_not_spoil_the_tiles(random):
    store = MemoryStore()
    lower = random.random((20_000, 2))
    lower[77] = [1e308, -1e308]
    _, state = load(store, np.hstack([lower, lower]))
    boxes = np.array([tree_walks.bounds_of(page["boxes"]) for page in leaves(store, state)])
    sides = boxes[:, 2:] - boxes[:, :2]
    near = (np.abs(boxes) < 2.0).all(axis=1)
    assert near.sum() >= len(boxes) - 1
    assert np.median(sides[near].max(axis=1)) < 0.2


@pytest.mark.parametrize("dims", [2, 3, 8, 17])
def test_histories_name_an_axis_that_all_entries_of_a_page_were_cut_along(random, dims):
    store = MemoryStore()
    lower = random.random((20_000, dims))
    _, state = load(store, np.hstack([lower, lower]))
    for page in tree_walks.pages(store, state):
        if page["kind"] == "leaf":
            continue
        shared = int(np.bitwise_and.reduce(page["history"]))
        assert 0 < shared < 1 << dims
        cuts = []
        for axis in [a for a in range(dims) if shared >> a & 1]:
            ends = page["boxes"][np.argsort(page["boxes"][:, axis])]
            before = np.maximum.accumulate(ends[:, dims + axis])[:-1]
            after = np.minimum.accumulate(ends[::-1, axis])[::-1][1:]
            cuts.append((before <= after).any())
        assert any(cuts)


def test_two_loads_of_the_same_records_make_the_same_tree(random):
    boxes = brute_force.random_boxes(random, 5000, 2)
    store, other = MemoryStore(), MemoryStore()
    pages, others = (tree_walks.pages(s, load(s, boxes)[1]) for s in (store, other))
    for page, same in zip(pages, others, strict=True):
        assert np.array_equal(page["boxes"], same["boxes"])
        if page["kind"] == "leaf":
            assert np.array_equal(page["refs"], same["refs"])


@pytest.mark.parametrize("dims", [2, 8])
def test_a_packed_tree_takes_inserts_and_deletes_at_once(store, random, dims):
    boxes = brute_force.random_boxes(random, 6000, dims)
    _, state = load(store, boxes[:4000], np.arange(4000))
    write_set = begin(store)
    insertion.insert(write_set, state, np.arange(4000, 6000), np.ascontiguousarray(boxes[4000:]))
    gone = random.permutation(6000)[:3000]
    assert removal.delete(write_set, state, gone, np.ascontiguousarray(boxes[gone])) == 3000
    tree_walks.commit(write_set, state)
    kept = np.setdiff1d(np.arange(6000), gone)
    inspection.check(store, state)
    assert tree_walks.records(store, state) == brute_force.records(kept, boxes[kept])


def test_a_load_within_a_transaction_can_be_changed_in_it_and_aborted(store, random):
    boxes = brute_force.random_boxes(random, 3000, 2)
    state = TreeState.create(2)
    write_set = begin(store)
    bulk.load(write_set, state, np.arange(3000), boxes)
    insertion.insert(write_set, state, np.arange(3000, 3100), boxes[:100])
    inspection.check(store, state)
    assert state.count == 3100
    write_set.abort()
    store.check()


def test_clear_retires_every_page(store, random):
    boxes = brute_force.random_boxes(random, 20_000, 2)
    ids, state = load(store, boxes)
    before = state.copy()
    write_set = begin(store)
    bulk.clear(write_set, state)
    assert (state.height, state.count, state.root, state.bounds) == (0, 0, 0, None)
    inspection.check(store, before)
    bulk.load(write_set, state, ids[:100], boxes[:100])
    bulk.clear(write_set, state)
    bulk.clear(write_set, state)
    insertion.insert(write_set, state, ids[:10], boxes[:10])
    tree_walks.commit(write_set, state)
    assert tree_walks.records(store, state) == brute_force.records(ids[:10], boxes[:10])
    write_set = begin(store)
    bulk.clear(write_set, state)
    tree_walks.commit(write_set, state)
    assert store.stats()["object_table"]["live"] == 0


def test_only_an_empty_tree_can_be_loaded(random):
    store = MemoryStore()
    boxes = brute_force.random_boxes(random, 10, 2)
    ids, state = load(store, boxes)
    write_set = begin(store)
    with pytest.raises(ValueError, match="tree of 10 records, expected an empty one"):
        bulk.load(write_set, state, ids, boxes)
    with pytest.raises(ValueError, match="9 ids for another number of boxes"):
        bulk.load(write_set, TreeState.create(2), ids[:9], boxes)
    write_set.abort()


def test_nothing_loads_into_an_empty_tree(store):
    state = TreeState.create(2)
    write_set = begin(store)
    bulk.load(write_set, state, np.empty(0, np.int64), np.empty((0, 4)))
    assert (state.height, state.count, state.root) == (0, 0, 0)
    write_set.commit({})


def test_progress_is_told_up_to_the_end(random):
    store = MemoryStore()
    calls: list[tuple[int, int]] = []
    write_set = begin(store)
    boxes = brute_force.random_boxes(random, 50_000, 2)
    bulk.load(write_set, TreeState.create(2), np.arange(50_000), boxes, lambda done, total: calls.append((done, total)))
    write_set.abort()
    assert 50 <= len(calls) <= 102
    done = [number for number, _ in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (50_000, 50_000)
    assert {total for _, total in calls} == {50_000}


def test_what_progress_raises_ends_the_load_and_leaves_the_state(store, random):
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    state = TreeState.create(2)
    boxes = brute_force.random_boxes(random, 20_000, 2)
    write_set = begin(store)
    with pytest.raises(KeyboardInterrupt):
        bulk.load(write_set, state, np.arange(20_000), boxes, stop)
    write_set.abort()
    assert (state.height, state.count, state.root) == (0, 0, 0)
    store.check()


def test_a_failed_allocation_is_a_memory_error_and_leaves_the_state(random):
    boxes = brute_force.random_boxes(random, 3000, 2)
    store = MemoryStore()
    state = TreeState.create(2)
    failures = 0
    for n in range(1, 40):
        write_set = begin(store)
        memory.fail_allocation(n)
        try:
            bulk.load(write_set, state, np.arange(3000), boxes)
        except MemoryError:
            failures += 1
            assert state.root == 0
        else:
            state = TreeState.create(2)
        finally:
            memory.fail_allocation(0)
        write_set.abort()
        store.check()
    assert failures >= 3


def test_a_page_of_the_tree_describes_itself(random):
    store = MemoryStore()
    _, state = load(store, brute_force.random_boxes(random, 1000, 3))
    root = describe(store, state.root)
    assert (root["kind"], root["level"], root["dims"], root["blocks"]) == ("directory", state.height - 1, 3, 1)


@pytest.mark.parametrize(("loaded", "by_insertion"), [(1, True), (312, True), (313, False)])
def test_a_load_that_is_small_against_the_tree_copies_paths_and_not_the_tree(store, random, loaded, by_insertion):
    """313 is the least load that is more than a 64th of 20,000 records."""
    boxes = brute_force.random_boxes(random, 20_000 + loaded, 2, side=0.01)
    ids = np.arange(len(boxes))
    _, state = load(store, boxes[:20_000])
    before = {page["node"] for page in tree_walks.pages(store, state)}
    write_set = begin(store)
    _rebuild(write_set, state, ids[20_000:], boxes[20_000:], None, 1)
    inspection.check(store, state)
    assert tree_walks.records(store, state, least_fill=0.4) == brute_force.records(ids, boxes)
    after = {page["node"] for page in tree_walks.pages(store, state)}
    assert bool(before & after) == by_insertion
    if by_insertion:
        assert len(after - before) <= min(loaded * 2, len(before)) + state.height
    write_set.abort()
    store.check()


def test_progress_and_what_it_raises_are_the_same_for_a_small_load(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 5000, 2)
    tree.bulk_load(np.arange(4950), boxes[:4950])
    calls: list[tuple[int, int]] = []
    tree.bulk_load(np.arange(4950, 4975), boxes[4950:4975], lambda done, total: calls.append((done, total)), threads=2)
    assert calls == [(25, 25)]

    def stop(done: int, total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        tree.bulk_load(np.arange(4975, 5000), boxes[4975:], stop)
    brute_force.assert_same(tree, np.arange(4975), boxes[:4975], boxes[:5])
