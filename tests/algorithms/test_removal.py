"""Removal: exactly what was asked for is removed, and the tree condenses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support import brute_force
from support.tree_data import ALL, all_equal, nested, uniform
from support.tree_walks import assert_no_page_left, commit, grown, pages, records

from xtree.algorithms.bucket import describe, entry_limits
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates.insertion import insert
from xtree.algorithms.updates.removal import delete
from xtree.persistence.base.memory import allocation_count, fail_allocation
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

DIMS = [1, 2, 3, 8, 17]


def delete_rows(ws, state: TreeState, rows: np.ndarray, boxes: np.ndarray) -> int:
    return delete(ws, state, np.ascontiguousarray(rows), np.ascontiguousarray(boxes[rows]))


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("shape", ALL)
def test_what_is_deleted_goes_and_nothing_else(ws, random, shape, dims):
    boxes = ALL[shape](random, 700, dims)
    state = grown(ws, boxes, page_bytes=4096)
    order = random.permutation(700)
    for done in range(100, 701, 100):
        assert delete_rows(ws, state, order[done - 100 : done], boxes) == 100
        left = order[done:]
        assert records(ws.store, state, least_fill=0.35) == brute_force.records(left, boxes[left])
    assert (state.root, state.height, state.count, state.bounds, len(ws)) == (0, 0, 0, None, 0)
    assert_no_page_left(ws.store)


@pytest.mark.slow
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("shape", ["uniform", "few_places", "flat_segments", "huge"])
def test_the_tree_holds_what_a_multiset_holds(ws, random, shape, dims):
    places = ALL[shape](random, 400, dims)
    state = TreeState.create(dims, page_bytes=4096)
    model: Counter[int] = Counter()
    for step in range(60):
        rows = random.integers(0, 400, random.integers(1, 60))
        if random.random() < (0.7 if step < 30 else 0.3):
            insert(ws, state, np.ascontiguousarray(rows), np.ascontiguousarray(places[rows]))
            model.update(rows.tolist())
        else:
            expected = sum((model & Counter(rows.tolist())).values())
            assert delete_rows(ws, state, rows, places) == expected
            model -= Counter(rows.tolist())
        held = np.array(sorted(model.elements()), np.int64)
        assert records(ws.store, state, least_fill=0.35) == brute_force.records(held, places[held])


def test_an_absent_record_is_not_deleted(ws, random):
    boxes = uniform(random, 500, 2)
    state = grown(ws, boxes)
    other_boxes = np.nextafter(boxes, 2.0)
    assert delete(ws, state, np.arange(500), other_boxes) == 0
    assert delete(ws, state, np.arange(500, 1000), boxes) == 0
    assert delete(ws, state, np.arange(500), boxes - 5.0) == 0
    assert records(ws.store, state) == brute_force.records(np.arange(500), boxes)


def test_deleting_from_an_empty_tree_finds_nothing(ws, random):
    state = TreeState.create(2)
    assert delete(ws, state, np.arange(5), uniform(random, 5, 2)) == 0
    assert delete(ws, state, np.empty(0, np.int64), np.empty((0, 4))) == 0


def test_a_search_for_an_absent_record_copies_nothing(random):
    store = MemoryStore()
    boxes = uniform(random, 3000, 2)
    first = begin(store)
    state = grown(first, boxes)
    commit(first, state)
    second = begin(store)
    assert delete(second, state, np.arange(3000), boxes + 1e-9) == 0
    assert len(second) == 0
    second.abort()
    store.close()


def test_each_row_removes_one_copy(ws, random):
    boxes = all_equal(random, 300, 2)
    state = TreeState.create(2)
    insert(ws, state, np.zeros(300, np.int64), boxes)
    assert delete(ws, state, np.zeros(40, np.int64), boxes[:40]) == 40
    assert state.count == 260
    assert delete(ws, state, np.zeros(300, np.int64), boxes) == 260
    assert state.root == 0
    assert_no_page_left(ws.store)


def test_a_record_is_found_below_any_entry_of_a_large_supernode(ws, random):
    """The smallest box lies in all others, so it is looked for below nearly every entry, and nothing else is found."""
    boxes = nested(random, 20_000, 2)
    state = grown(ws, boxes)
    assert max(len(page["refs"]) for page in pages(ws.store, state) if page["level"] == 1) > 128
    assert delete(ws, state, np.arange(20_000), boxes / 2**20) == 0
    order = np.argsort(boxes[:, 2])
    for part in (order[:100], random.permutation(order[100:])[:2000]):
        assert delete(ws, state, part, boxes[part]) == len(part)
        assert delete(ws, state, part, boxes[part]) == 0
    assert state.count == 17_900


def test_zeros_of_either_sign_are_equal(ws):
    state = TreeState.create(2)
    insert(ws, state, np.array([1, 2]), np.array([[0.0, -0.0, 0.0, 1.0], [-0.0, 0.0, -0.0, 1.0]]))
    assert delete(ws, state, np.array([1, 2]), np.array([[-0.0, 0.0, -0.0, 1.0], [0.0, -0.0, 0.0, 1.0]])) == 2
    assert_no_page_left(ws.store)


@pytest.mark.parametrize("dims", DIMS)
def test_bounds_shrink_with_the_records(ws, random, dims):
    boxes = uniform(random, 400, dims)
    order = np.argsort(boxes[:, 0])
    state = grown(ws, boxes)
    for done in range(0, 400, 50):
        left = order[done:]
        least, most = boxes[left, :dims].min(axis=0), boxes[left, dims:].max(axis=0)
        assert state.bounds.tolist() == [*least, *most]
        delete_rows(ws, state, order[done : done + 50], boxes)
    assert state.bounds is None
    assert_no_page_left(ws.store)


def test_a_page_below_the_least_fill_is_dissolved(ws, random):
    boxes = uniform(random, 20_000, 2)
    state = grown(ws, boxes)
    order = random.permutation(20_000)
    delete_rows(ws, state, order[:19_000], boxes)
    leaf_limit, _ = entry_limits(2)
    leaves = [page for page in pages(ws.store, state) if page["level"] == 0]
    assert min(page["count"] for page in leaves) >= 0.4 * leaf_limit
    assert len(ws) == len(pages(ws.store, state))


def test_the_height_falls_as_records_go(ws, random):
    boxes = uniform(random, 20_000, 2)
    state = grown(ws, boxes)
    heights = [state.height]
    for rows in np.array_split(random.permutation(20_000), 400):
        delete_rows(ws, state, rows, boxes)
        heights.append(state.height)
    assert heights[0] == 3
    assert heights == sorted(heights, reverse=True)
    assert set(heights) == {0, 1, 2, 3}


def test_supernodes_shrink_as_entries_go(ws, random):
    lower = random.random((4000, 16)) * 0.5
    boxes = np.ascontiguousarray(np.hstack([lower, lower + random.random((4000, 16)) * 0.5]))
    state = grown(ws, boxes, page_bytes=8192)
    _, block_limit = entry_limits(16, 8192)
    most = [max(page["blocks"] for page in pages(ws.store, state))]
    order = random.permutation(4000)
    for done in range(250, 4001, 250):
        delete_rows(ws, state, order[done - 250 : done], boxes)
        left = order[done:]
        assert records(ws.store, state, least_fill=0.35) == brute_force.records(left, boxes[left])
        supernodes = [page for page in pages(ws.store, state) if page["blocks"] > 1]
        for page in supernodes:
            assert page["count"] > 0.85 * (page["blocks"] - 1) * block_limit
        most.append(max((page["blocks"] for page in supernodes), default=1))
    assert most[0] > 2
    assert most[-1] == 1
    assert_no_page_left(ws.store)


def test_a_published_tree_stays_as_it_was(random):
    store = MemoryStore()
    boxes = uniform(random, 2000, 3)
    first = begin(store)
    old = grown(first, boxes)
    commit(first, old)
    second = begin(store)
    new = old.copy()
    delete_rows(second, new, np.arange(0, 2000, 2), boxes)
    assert records(store, old) == brute_force.records(np.arange(2000), boxes)
    assert records(store, new, least_fill=0.35) == brute_force.records(np.arange(1, 2000, 2), boxes[1::2])
    second.abort()
    assert records(store, old) == brute_force.records(np.arange(2000), boxes)
    store.check()
    store.close()


def test_a_deletion_copies_one_path(random):
    store = MemoryStore()
    boxes = uniform(random, 5000, 2)
    first = begin(store)
    state = grown(first, boxes)
    commit(first, state)
    second = begin(store)
    assert delete(second, state, np.array([17]), boxes[17:18]) == 1
    assert len(second) <= state.height + 45
    second.abort()
    store.close()


def test_any_failed_allocation_is_a_memory_error_that_undoes_cleanly(random):
    boxes = uniform(random, 400, 40)
    for n in range(1, 60):
        store = MemoryStore()
        first = begin(store)
        state = grown(first, boxes)
        commit(first, state)
        second = begin(store)
        copy = state.copy()
        before = allocation_count()
        fail_allocation(n)
        try:
            delete(second, copy, np.arange(400), boxes)
        except MemoryError:
            pass
        else:
            assert allocation_count() - before < n
            break
        finally:
            fail_allocation(0)
            second.abort()
        assert records(store, state) == brute_force.records(np.arange(400), boxes)
        store.check()
        store.close()
    else:
        pytest.fail("a deletion of 400 records allocates more than 60 times")


def test_insertion_goes_on_in_a_condensed_tree(ws, random):
    boxes = uniform(random, 6000, 2)
    state = grown(ws, boxes[:3000])
    delete_rows(ws, state, np.arange(0, 2900), boxes)
    insert(ws, state, np.arange(3000, 6000), boxes[3000:])
    left = np.arange(2900, 6000)
    assert records(ws.store, state, least_fill=0.35) == brute_force.records(left, boxes[left])


def test_arrays_that_do_not_fit_are_refused(ws, random):
    state = grown(ws, uniform(random, 10, 2))
    with pytest.raises(ValueError, match=r"expected \(10, 4\)"):
        delete(ws, state, np.arange(10), uniform(random, 10, 3))
    assert describe(ws.store, state.root)["count"] == 10
