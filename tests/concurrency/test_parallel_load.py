"""Bulk load in several threads makes the same tree as in one, in either store; whatever happens, all threads end.

Promises (Right answers):

- several threads load the tree that one does, to the byte, and all have ended when the load has:
  all of it.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support import brute_force, tree_walks

import xtree
from xtree.algorithms.kernels import parallel
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk
from xtree.persistence.base import memory, outcome
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

N = 70_000  # even a third of them is enough to be shared out

pytestmark = [pytest.mark.threads, pytest.mark.usefixtures("in_flight")]


@pytest.fixture
def starts(monkeypatch):
    """Counts the threads that are started."""
    started = []

    def start(function, *arguments):
        started.append(function)
        return original(function, *arguments)

    original = parallel.in_new_thread
    monkeypatch.setattr(parallel, "in_new_thread", start)
    return started


def load(store, boxes, threads, progress=None):
    state = TreeState.create(boxes.shape[1] // 2)
    write_set = begin(store)
    try:
        bulk.load(write_set, state, np.arange(len(boxes)), boxes, progress, threads)
        write_set.commit({})
    finally:
        write_set.abort()
    return state


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3, 8, 10**30])
@pytest.mark.parametrize("dims", [1, 2, 3, 6])
def test_the_tree_is_the_same_to_the_byte(random, starts, dims, threads):
    boxes = brute_force.random_boxes(random, N, dims)
    store, other = MemoryStore(), MemoryStore()
    one, several = load(store, boxes, 1), load(other, boxes, threads)
    assert several.encode() == one.encode()
    assert starts
    pages = tree_walks.pages(store, one)
    for page, same in zip(pages, tree_walks.pages(other, several), strict=True):
        assert page.keys() == same.keys()
        for what, value in page.items():
            np.testing.assert_array_equal(same[what], value)


def test_as_many_threads_are_started_as_were_asked_for(random, starts):
    boxes = brute_force.random_boxes(random, 300_000, 2)
    for threads in (1, 2, 3, 4):
        load(MemoryStore(), boxes, threads)
        assert len(starts) == threads - 1
        starts.clear()


def test_few_records_are_not_shared_out(random, starts):
    load(MemoryStore(), brute_force.random_boxes(random, 15_000, 2), 4)
    assert not starts


def test_a_load_without_threads_to_be_had_takes_this_one(random, monkeypatch):
    def refuse(function, arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(outcome, "start_new_thread", refuse)
    boxes = brute_force.random_boxes(random, N, 2)
    store = MemoryStore()
    state = load(store, boxes, 4)
    assert tree_walks.records(store, state, least_fill=0.4) == brute_force.records(np.arange(N), boxes)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 5, None])
def test_a_tree_loaded_in_threads_answers_right_and_takes_changes(random, make_tree, threads):
    boxes = brute_force.random_boxes(random, N, 2, 0.01)
    tree = make_tree()
    tree.insert_many(np.arange(1000), boxes[:1000])
    tree.bulk_load(np.arange(1000, N), boxes[1000:], threads=threads)
    assert tree.delete_many(np.arange(0, N, 2), boxes[::2]) == N // 2
    tree.insert_many(np.arange(0, N, 2), boxes[::2])
    with tree.transaction() as tx:
        tx.bulk_load([N], [[0.5, 0.5]], threads=threads)
        assert tx.query((0.5, 0.5, 0.5, 0.5)).tolist().count(N) == 1
    windows = brute_force.random_boxes(random, 100, 2, 0.05)
    ids, boxes = np.arange(N + 1), np.vstack([boxes, [[0.5, 0.5, 0.5, 0.5]]])
    offsets, found = tree.query(windows, output="csr")
    for i, window in enumerate(windows):
        assert sorted(found[offsets[i] : offsets[i + 1]].tolist()) == brute_force.query(ids, boxes, window)


def test_from_boxes_takes_threads_too(random, starts, tmp_path):
    boxes = brute_force.random_boxes(random, N, 3)
    for path in (None, tmp_path / "index"):
        with xtree.XTree.from_boxes(boxes, path=path, threads=2) as tree:
            tree.check()
            assert sorted(tree.items()[0].tolist()) == list(range(N))
        assert len(starts) == 1
        starts.clear()


def test_progress_is_told_by_the_thread_that_called(random):
    calls: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        threads.add(threading.get_ident())

    load(MemoryStore(), brute_force.random_boxes(random, N, 2), 3, progress)
    assert threads == {threading.get_ident()}
    done = [number for number, _ in calls]
    assert done == sorted(set(done)) and len(done) > 5
    assert calls[-1] == (N, N)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_progress_raises_ends_the_load_when_all_threads_have_ended(store, random, monkeypatch, error):
    running: list[object] = []

    def start(function, *arguments):
        def run():
            try:
                function(*arguments)
            finally:
                running.remove(run)

        running.append(run)
        return original(run)

    def stop(done: int, total: int) -> None:
        assert running
        raise error("stop")

    original = parallel.in_new_thread
    monkeypatch.setattr(parallel, "in_new_thread", start)
    boxes = brute_force.random_boxes(random, 10 * N, 2)
    state = TreeState.create(2)
    write_set = begin(store)
    with pytest.raises(error, match="stop"):
        bulk.load(write_set, state, np.arange(len(boxes)), boxes, stop, 2)
    assert not running
    write_set.abort()
    assert (state.height, state.count, state.root) == (0, 0, 0)
    store.check()


def test_a_failed_allocation_in_any_thread_is_a_memory_error(random):
    boxes = brute_force.random_boxes(random, N, 2)
    store = MemoryStore()
    outcomes = []
    for n in range(1, 60):
        state = TreeState.create(2)
        write_set = begin(store)
        memory.fail_allocation(n)
        try:
            bulk.load(write_set, state, np.arange(N), boxes, None, 3)
            outcomes.append("loaded")
        except MemoryError:
            outcomes.append("no memory")
            assert state.root == 0
        finally:
            memory.fail_allocation(0)
        write_set.abort()
        store.check()
    assert outcomes.count("no memory") >= 6 and outcomes[-1] == "loaded"


@pytest.mark.parametrize("durable", [False, True])
def test_a_callback_may_close_the_tree_while_others_write(tmp_path, random, durable):
    tree = xtree.open(tmp_path / "index", dims=2) if durable else xtree.XTree(dims=2)
    boxes = brute_force.random_boxes(random, 10 * N, 2)
    with pytest.raises(xtree.ClosedError):
        tree.bulk_load(np.arange(len(boxes)), boxes, progress=lambda done, total: tree.close(), threads=3)
    assert tree.closed
    if durable:
        with xtree.open(tmp_path / "index", timeout=60) as tree:  # the end of a close goes on in the background
            tree.check()
            assert len(tree) == 0
