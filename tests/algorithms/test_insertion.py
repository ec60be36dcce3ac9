"""Insertion: what goes in is there, and the tree it goes into is an X-tree."""

from __future__ import annotations

import numpy as np
import pytest
from support import brute_force
from support.tree_data import ALL, all_equal, one_point, uniform
from support.tree_walks import bounds_of, commit, grown, pages, records

import xtree
from xtree.algorithms.bucket import describe, entry_limits
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates.insertion import insert
from xtree.persistence.base.memory import allocation_count, fail_allocation
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

DIMS = [1, 2, 3, 8, 17]


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("shape", ALL)
def test_every_record_is_there_in_a_sound_tree(ws, random, shape, dims):
    boxes = ALL[shape](random, 900, dims)
    state = grown(ws, boxes, page_bytes=4096)
    assert records(ws.store, state, least_fill=0.35) == brute_force.records(np.arange(900), boxes)


@pytest.mark.parametrize("dims", [2, 17, 64])
def test_the_tree_is_sound_after_every_insert(ws, random, dims):
    boxes = uniform(random, 300, dims)
    state = TreeState.create(dims)
    for row in range(300):
        insert(ws, state, np.array([row]), boxes[row : row + 1])
        if row % 7 == 0 or row > 280:
            expected = brute_force.records(np.arange(row + 1), boxes[: row + 1])
            assert records(ws.store, state, least_fill=0.35) == expected


def test_nothing_inserted_changes_nothing(ws):
    state = TreeState.create(2)
    insert(ws, state, np.empty(0, np.int64), np.empty((0, 4)))
    assert (state.root, state.height, state.count, state.bounds, len(ws)) == (0, 0, 0, None, 0)


def test_the_first_record_makes_a_leaf(ws):
    state = grown(ws, np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert (state.height, state.count, state.bounds.tolist()) == (1, 1, [1.0, 2.0, 3.0, 4.0])
    assert describe(ws.store, state.root)["refs"].tolist() == [0]


def test_the_root_splits_when_it_is_full(ws, random):
    leaf_limit, _ = entry_limits(2)
    boxes = uniform(random, leaf_limit + 1, 2)
    state = grown(ws, boxes[:-1])
    assert (state.height, len(ws)) == (1, 1)
    insert(ws, state, np.array([leaf_limit]), boxes[-1:])
    assert (state.height, len(ws)) == (2, 3)


def test_ids_of_all_64_bits_are_kept(ws, random):
    ids = np.array([0, -1, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
    state = TreeState.create(2)
    insert(ws, state, ids, uniform(random, 4, 2))
    assert describe(ws.store, state.root)["refs"].tolist() == ids.tolist()


def test_coordinates_are_kept_bit_for_bit(ws, random):
    boxes = ALL["signed_zeros"](random, 50, 2)
    state = grown(ws, boxes)
    page = describe(ws.store, state.root)
    assert page["boxes"][np.argsort(page["refs"])].tobytes() == boxes.tobytes()


@pytest.mark.parametrize("shape", [all_equal, one_point])
def test_equal_boxes_fill_pages_to_half_and_more(ws, random, shape):
    state = grown(ws, shape(random, 5000, 2))
    leaves = [page for page in pages(ws.store, state) if page["level"] == 0]
    assert all(page["count"] >= 48 for page in leaves)
    assert all(page["blocks"] == 1 for page in pages(ws.store, state))


def test_a_box_inside_an_entry_goes_there(ws, random):
    state = grown(ws, uniform(random, 150, 2))
    root = describe(ws.store, state.root)
    emptiest = min(range(len(root["refs"])), key=lambda row: describe(ws.store, int(root["refs"][row]))["count"])
    inside = np.repeat(root["boxes"][emptiest : emptiest + 1, :2] + 1e-9, 2, axis=0).reshape(1, 4)
    holders = root["boxes"][brute_force.matches(root["boxes"], inside[0], "within")].tolist()
    insert(ws, state, np.array([777]), inside)
    [home] = [row for row, ref in enumerate(root["refs"].tolist()) if 777 in describe(ws.store, ref)["refs"].tolist()]
    assert root["boxes"][home].tolist() in holders
    assert describe(ws.store, state.root)["boxes"].tolist() == root["boxes"].tolist()


def crossing_bars(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    """Boxes that are long on all axes but a few, so that directory pages can't be split without overlap."""
    lower = random.random((n, dims)) * 0.5
    return np.ascontiguousarray(np.hstack([lower, lower + random.random((n, dims)) * 0.5]))


def test_supernodes_stand_where_splits_would_overlap(ws, random):
    state = grown(ws, crossing_bars(random, 4000, 16))
    records(ws.store, state)
    supernodes = [page for page in pages(ws.store, state) if page["blocks"] > 1]
    assert supernodes
    _, block_limit = entry_limits(16)
    for page in supernodes:
        assert page["kind"] == "directory"
        assert page["count"] > (page["blocks"] - 1) * block_limit
        assert 1 << page["size_class"] >= page["blocks"]


def test_overlap_allowed_in_full_makes_no_supernode(ws, random):
    state = grown(ws, crossing_bars(random, 4000, 16), max_overlap=1.0)
    records(ws.store, state)
    assert all(page["blocks"] == 1 for page in pages(ws.store, state))


def test_the_largest_supernode_is_split_in_the_end(ws, random):
    state = grown(ws, crossing_bars(random, 20_000, 8), max_overlap=0.0, page_bytes=65536)
    records(ws.store, state)
    assert max(page["size_class"] for page in pages(ws.store, state)) <= 6


def test_directory_entries_know_the_axes_they_were_split_on(ws, random):
    boxes = uniform(random, 3000, 2)
    boxes[:, [0, 2]] *= 1000.0
    state = grown(ws, boxes)
    for page in pages(ws.store, state):
        if page["kind"] == "directory":
            assert (page["history"] > 0).all()
            assert (page["history"] < 1 << 2).all()
    assert describe(ws.store, state.root)["history"].tolist()[0] & 1


def test_a_published_tree_stays_as_it_was(random):
    store = MemoryStore()
    boxes = uniform(random, 3000, 2)
    first = begin(store)
    old = grown(first, boxes[:1500])
    commit(first, old)
    pin = store.pin()
    second = begin(store)
    new = old.copy()
    insert(second, new, np.arange(1500, 3000), boxes[1500:])
    assert records(store, old) == brute_force.records(np.arange(1500), boxes[:1500])
    commit(second, new)
    assert records(store, old) == brute_force.records(np.arange(1500), boxes[:1500])
    assert records(store, new) == brute_force.records(np.arange(3000), boxes)
    pin.release()
    store.check()
    store.close()


def test_a_page_is_copied_once_in_a_transaction(random):
    store = MemoryStore()
    boxes = uniform(random, 4000, 2)
    first = begin(store)
    state = grown(first, boxes)
    commit(first, state)
    before = len(pages(store, state))
    second = begin(store)
    for _ in range(50):
        insert(second, state, np.array([1]), boxes[:1])
    assert len(second) <= state.height + 2
    insert(second, state, np.arange(2000), uniform(random, 2000, 2))
    after = len(pages(store, state))
    assert len(second) <= after
    assert after <= 2 * before
    second.abort()
    store.check()
    store.close()


def test_an_aborted_insertion_gives_every_page_back(random):
    store = MemoryStore()
    boxes = uniform(random, 2000, 2)
    first = begin(store)
    state = grown(first, boxes)
    commit(first, state)
    copy = state.copy()
    second = begin(store)
    insert(second, copy, np.arange(2000), boxes)
    second.abort()
    assert records(store, state) == brute_force.records(np.arange(2000), boxes)
    store.check()
    store.close()


def test_any_failed_allocation_is_a_memory_error_that_undoes_cleanly(random):
    boxes = uniform(random, 400, 40)
    for n in range(1, 60):
        store = MemoryStore()
        first = begin(store)
        state = grown(first, boxes[:100])
        commit(first, state)
        second = begin(store)
        copy = state.copy()
        before = allocation_count()
        fail_allocation(n)
        try:
            insert(second, copy, np.arange(100, 400), boxes[100:])
        except MemoryError:
            pass
        else:
            assert allocation_count() - before < n
            break
        finally:
            fail_allocation(0)
            second.abort()
        assert records(store, state) == brute_force.records(np.arange(100), boxes[:100])
        store.check()
        store.close()
    else:
        pytest.fail("an insertion of 300 records allocates more than 60 times")


def test_arrays_that_do_not_fit_are_refused(ws, random):
    state = TreeState.create(2)
    with pytest.raises(ValueError, match=r"expected \(3, 4\)"):
        insert(ws, state, np.arange(3), uniform(random, 3, 3))
    with pytest.raises(ValueError, match=r"expected \(2, 4\)"):
        insert(ws, state, np.arange(2), uniform(random, 3, 2))
    assert state.count == 0


@pytest.mark.parametrize("dims", DIMS)
def test_bounds_are_those_of_all_records(ws, random, dims):
    boxes = uniform(random, 500, dims) - 0.5
    state = TreeState.create(dims)
    for start in range(0, 500, 50):
        insert(ws, state, np.arange(50), boxes[start : start + 50])
        assert state.bounds.tolist() == bounds_of(boxes[: start + 50])


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", ["uniform", "all_equal", "few_places", "on_a_line"])
def test_a_batch_as_large_as_the_tree_goes_in_whole_whatever_its_order(ws, random, shape, dims):
    boxes = ALL[shape](random, 20_000, dims)
    state = grown(ws, boxes[:10_000])
    insert(ws, state, np.arange(10_000, 20_000), boxes[10_000:])
    assert records(ws.store, state, least_fill=0.35) == brute_force.records(np.arange(20_000), boxes)


def test_a_batch_far_away_from_the_tree_goes_in_too(ws, random):
    near, far = uniform(random, 9_000, 2), uniform(random, 9_000, 2) * 1e300 - 1e301
    state = grown(ws, near)
    insert(ws, state, np.arange(9_000, 18_000), far)
    assert records(ws.store, state, least_fill=0.35) == brute_force.records(np.arange(18_000), np.vstack([near, far]))


def test_a_sorted_batch_makes_no_worse_tree(random):
    """Compares the pages that windows read after one batch, which is sorted, and after unsorted batches."""
    boxes = uniform(random, 60_000, 2)
    trees = []
    for batch in (30_000, 1000):
        tree = xtree.XTree(2)
        for start in [*range(0, 30_000, 1000), *range(30_000, 60_000, batch)]:
            stop = start + (1000 if start < 30_000 else batch)
            tree.insert_many(np.arange(start, stop), boxes[start:stop])
        trees.append(tree)
    windows = brute_force.random_boxes(random, 500, 2, 0.05)
    pages = [tree.explain(windows)["pages"] for tree in trees]
    assert pages[0] <= 1.05 * pages[1]


@pytest.mark.parametrize("n", [15, 16, 17, 31, 1000, 65_535, 65_536, 65_537, 65_552, 100_000])
def test_every_row_of_a_batch_goes_in_once_whatever_their_number(n):
    points = np.arange(n, dtype=np.float64)[:, None]
    tree = xtree.XTree(1)
    tree.insert_many(np.arange(n), points)
    ids, boxes = tree.items()
    assert np.array_equal(np.sort(ids), np.arange(n)) and np.array_equal(boxes[:, 0], ids)
    tree.check()


@pytest.mark.parametrize("order", ["sorted", "reversed", "along a line"])
def test_rows_in_order_fill_pages_as_rows_in_any_order_do(random, order):
    boxes = uniform(random, 20_000, 2)
    if order == "along a line":
        boxes = np.sort(boxes, axis=0)
        boxes[:, 2:] = boxes[:, :2]
    else:
        boxes = boxes[np.argsort(boxes[:, 0])][:: -1 if order == "reversed" else 1]
    tree = xtree.XTree(2)
    tree.insert_many(np.arange(20_000), boxes)
    assert tree.stats()["levels"][0]["fill"] > 0.63


@pytest.mark.parametrize("order", ["as they come", "shuffled"])
def test_equal_boxes_fill_their_pages_nearly_as_other_boxes_do(random, order):
    tree = xtree.XTree(2)
    ids = np.arange(20_000) if order == "as they come" else random.permutation(20_000)
    tree.insert_many(ids, np.tile((0.0, 0.0, 1.0, 1.0), (20_000, 1)))
    assert tree.stats()["levels"][0]["fill"] > 0.6


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_many_equal_boxes_make_no_supernode_that_each_insert_would_read(share):
    random = np.random.default_rng(1)  # with one seed in forty, the other boxes make a supernode of two blocks
    boxes = uniform(random, 40_000, 2)
    boxes[random.random(40_000) < share] = (0.1, 0.1, 0.2, 0.2)
    tree = xtree.XTree(2)
    tree.insert_many(np.arange(40_000), boxes)
    assert tree.stats()["supernodes"] == 0 and tree.stats()["height"] == 3
    window = np.array((0.15, 0.15, 0.16, 0.16))
    assert tree.count(window) == brute_force.matches(boxes, window).sum()
    tree.check()
