"""Snapshots give the same answers for their whole life, beside any writer.

Promises (One writer, many readers):

- snapshots answer the same for their whole life:
  test_a_snapshot_answers_the_same_whatever_is_committed.
- readers see only whole commits:
  test_readers_beside_a_writer_see_only_whole_commits.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support import brute_force

import xtree

pytestmark = pytest.mark.threads

UNIT = [0.0, 0.0, 1.0, 1.0]
EVERYTHING = [-np.inf, -np.inf, np.inf, np.inf]


def test_a_snapshot_answers_the_same_whatever_is_committed(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 2000, 2)
    ids = np.arange(2000)
    kept = []
    for start in range(0, 2000, 250):
        tree.insert_many(ids[start : start + 250], boxes[start : start + 250])
        kept.append((start + 250, tree.snapshot()))
    tree.delete_many(ids[500:], boxes[500:])
    tree.bulk_load(ids[:100] + 5000, boxes[:100] + 3)
    for count, snapshot in kept:
        brute_force.assert_same(snapshot, ids[:count], boxes[:count], boxes[::200])
        snapshot.check()
    assert len(tree) == 600
    for _, snapshot in kept:
        snapshot.close()


def test_a_snapshot_reads_like_a_tree(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 300, 2)
    tree.insert_many(np.arange(300), boxes)
    with tree.snapshot() as snapshot:
        tree.delete_many(np.arange(299), boxes[:299])
        brute_force.assert_same(snapshot, np.arange(300), boxes, boxes[::30])
        expected = brute_force.nearest(np.arange(300), boxes, boxes[5, :2], 4)[0]
        assert snapshot.nearest(boxes[5, :2], k=4).tolist() == expected
        assert (5, boxes[5]) in snapshot and (5, boxes[5]) not in tree
        assert snapshot.dims == 2 and snapshot.height >= 2
        stats = snapshot.stats()
        assert stats["records"] == 300 and stats["epoch"] == snapshot.epoch < tree.stats()["epoch"]
    with pytest.raises(xtree.ClosedError, match="snapshot is closed"):
        snapshot.query(UNIT)
    snapshot.close()
    assert "closed" in repr(snapshot)


def test_a_snapshot_inside_a_transaction_shows_the_last_commit(make_tree):
    tree = make_tree(2)
    tree.insert(1, UNIT)
    with tree.transaction() as tx:
        tx.insert(2, UNIT)
        with tree.snapshot() as snapshot:
            assert snapshot.query(UNIT).tolist() == [1]


def test_pages_return_when_the_last_snapshot_has_gone(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 1000, 2)
    tree.bulk_load(np.arange(1000), boxes)

    def churn() -> int:
        for _ in range(30):
            tree.delete_many(np.arange(500), boxes[:500])
            tree.insert_many(np.arange(500), boxes[:500])
        return tree._store.table.stats()["retired"]

    with tree.snapshot() as snapshot:
        pinned = churn()
        brute_force.assert_same(snapshot, np.arange(1000), boxes, boxes[::100])
    if tree.runtime is not None:
        tree.runtime.checkpoint()
    assert churn() < pinned


def test_closing_a_snapshot_lets_a_running_call_finish(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 3000, 2)
    tree.bulk_load(np.arange(3000), boxes)
    windows = np.tile(EVERYTHING, (200, 1))
    snapshot = tree.snapshot()
    counts: list = []
    started = threading.Event()

    def ask():
        started.set()
        counts.append(snapshot.count(windows))

    thread = threading.Thread(target=ask)
    thread.start()
    started.wait(30)
    snapshot.close()
    tree.delete_many(np.arange(3000), boxes)
    tree.insert_many(np.arange(3000), boxes)
    thread.join()
    # The thread may have come too late to count, but what it counted is right.
    assert all(set(count.tolist()) == {3000} for count in counts)


def test_readers_beside_a_writer_see_only_whole_commits(make_tree, random):
    """Each commit moves everything by one and changes the number of records with it."""
    tree = make_tree(2)
    size = 200
    boxes = brute_force.random_boxes(random, size, 2)
    tree.insert_many(np.zeros(size, np.int64), boxes)
    stop = threading.Event()
    wrong: list = []
    seen: set[int] = set()

    def read():
        while not stop.is_set():
            found = tree.query(EVERYTHING)
            with tree.snapshot() as snapshot:
                generation = set(snapshot.query(EVERYTHING).tolist())
                ids, kept = snapshot.items()
                whole = len(generation) == 1 and set(ids.tolist()) == generation and len(kept) == len(snapshot)
                number = generation.pop()
                seen.add(number)
                expected = boxes[: size - number % 7] + number
                numbers = np.full(len(expected), number)
                if not whole or brute_force.records(ids, kept) != brute_force.records(numbers, expected):
                    wrong.append(number)
            if len(set(found.tolist())) != 1 or len(found) != size - found[0] % 7:
                wrong.append(found)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        with tree.transaction() as tx:
            ids, kept = tx.items()
            assert tx.delete_many(ids, kept) == len(ids)
            moved = boxes[: size - number % 7] + number
            tx.insert_many(np.full(len(moved), number), moved)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and seen


def test_a_snapshot_survives_checkpoints_and_the_drop_of_its_tree(tmp_path, random):
    boxes = brute_force.random_boxes(random, 500, 2)
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree = runtime.tree("a", dims=2)
        tree.bulk_load(np.arange(500), boxes)
        with tree.snapshot() as snapshot:
            runtime.drop("a")
            with pytest.raises(xtree.ClosedError, match="dropped"):
                tree.query(UNIT)
            runtime.tree("a", dims=2).bulk_load(np.arange(500), boxes + 7)
            runtime.checkpoint()
            brute_force.assert_same(snapshot, np.arange(500), boxes, boxes[::50])
