"""Batches in several threads give the same answers as in one thread, of one epoch, in the caller's order.

Promises (Right answers):

- several threads answer a batch as one does, from one epoch:
  all of it.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support import brute_force

import xtree
from xtree.algorithms.kernels.parallel import LEAST_ROWS, in_threads
from xtree.persistence.base import outcome

pytestmark = pytest.mark.threads

PREDICATES = ("intersects", "contains", "within")


@pytest.fixture
def tree(make_tree):
    rng = np.random.default_rng(1)
    tree = make_tree()
    tree.bulk_load(np.arange(5000), brute_force.random_boxes(rng, 5000, 2, 0.02))
    return tree


@pytest.fixture(params=["tree", "snapshot", "transaction"])
def reader(request, tree):
    """Everything that has the reading methods; the transaction reads what it has written."""
    if request.param == "tree":
        yield tree
    elif request.param == "snapshot":
        with tree.snapshot() as snapshot:
            tree.insert(-1, (0.0, 0.0))
            yield snapshot
    else:
        with tree.transaction() as tx:
            tx.insert_many(np.arange(5000, 9000), brute_force.random_boxes(np.random.default_rng(2), 4000, 2, 0.02))
            yield tx


@pytest.mark.parametrize("m", [0, 1, 2 * LEAST_ROWS - 1, 2 * LEAST_ROWS, 3 * LEAST_ROWS, 1001])
@pytest.mark.parametrize("threads", [2, 3, 7, None])
def test_answers_are_those_of_one_thread(reader, m, threads):
    rng = np.random.default_rng(m)
    windows = brute_force.random_boxes(rng, m, 2, 0.1).reshape(m, 4)
    for predicate in PREDICATES:
        for output in ("pairs", "csr"):
            one = reader.query(windows, predicate, output)
            several = reader.query(windows, predicate, output, threads=threads)
            for a, b in zip(one, several, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(
            reader.count(windows, predicate), reader.count(windows, predicate, threads=threads)
        )
    points = rng.random((m, 2))
    for limit in (None, 0.01):
        one = reader.nearest(points, 5, limit, return_distance=True)
        several = reader.nearest(points, 5, limit, return_distance=True, threads=threads)
        for a, b in zip(one, several, strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_box_or_point_takes_threads_too(tree):
    box = (0.2, 0.2, 0.4, 0.4)
    assert tree.query(box, threads=4).tolist() == tree.query(box).tolist()
    assert tree.count(box, threads=4) == tree.count(box)
    assert tree.nearest((0.5, 0.5), 3, threads=4).tolist() == tree.nearest((0.5, 0.5), 3).tolist()


def load_more(points, threads):
    xtree.XTree(2).bulk_load(np.arange(len(points)), points, threads=threads)


def tree_of(points, threads):
    xtree.XTree.from_boxes(points, dims=2, threads=threads)


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_refused(tree, threads):
    for call in (tree.query, tree.count, tree.nearest, load_more, tree_of):
        with pytest.raises(ValueError, match="threads must be at least 1"):
            call(np.zeros((200, 2)), threads=threads)


@pytest.mark.parametrize("threads", [1.0, "2", True])
def test_threads_that_are_no_integer_are_refused(tree, threads):
    for call in (tree.query, tree.count, tree.nearest, load_more, tree_of):
        with pytest.raises(TypeError, match="threads must be an integer"):
            call(np.zeros((200, 2)), threads=threads)


def test_the_rows_are_shared_out_among_as_many_threads_as_were_asked_for(tree):
    rows = np.arange(10 * LEAST_ROWS, dtype=float)
    met = threading.Barrier(4)
    seen = []

    def answer(store, state, part, team):
        met.wait(60)
        seen.append((threading.get_ident(), len(part)))
        return part + 1

    found = tree._read(in_threads, 4, answer, rows)
    np.testing.assert_array_equal(found, rows + 1)
    assert len({ident for ident, _ in seen}) == 4 and sum(n for _, n in seen) == len(rows)
    assert threading.get_ident() in {ident for ident, _ in seen}


def test_a_batch_without_threads_to_be_had_takes_this_one(tree, monkeypatch):
    def refuse(function, arguments):
        raise RuntimeError("can't start new thread")

    windows = brute_force.random_boxes(np.random.default_rng(3), 500, 2, 0.1)
    expected = tree.query(windows)
    monkeypatch.setattr(outcome, "start_new_thread", refuse)
    np.testing.assert_array_equal(tree.query(windows, threads=4), expected)


def test_an_error_in_any_thread_is_raised_once_all_have_ended(tree):
    running = []

    def answer(store, state, part, team):
        running.append(1)
        if part[0] > 0:
            raise xtree.CorruptionError("damaged")
        return part

    with pytest.raises(xtree.CorruptionError, match="damaged"):
        tree._read(in_threads, 4, answer, np.arange(4.0 * LEAST_ROWS))
    assert len(running) == 4


def test_all_parts_are_of_one_epoch_beside_a_writer(tree):
    everywhere = np.tile((-1.0, -1.0, 2.0, 2.0), (4 * LEAST_ROWS, 1))
    ended = threading.Event()

    def write():
        while not ended.wait(0.0001):
            tree.insert(1, (0.5, 0.5))

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        while len(seen) < 20:
            counts = set(tree.count(everywhere, threads=4).tolist())
            assert len(counts) == 1
            seen |= counts
    finally:
        ended.set()
        writer.join()


def test_a_close_meanwhile_waits_for_the_threads(tmp_path):
    tree = xtree.open(tmp_path / "index", dims=2)
    tree.insert(1, (0.0, 0.0))
    inside, go_on = threading.Barrier(3), threading.Event()

    def answer(store, state, part, team):
        inside.wait(60)
        assert go_on.wait(60)
        return part

    answers = []
    rows = np.arange(2.0 * LEAST_ROWS)
    reading = threading.Thread(target=lambda: answers.append(tree._read(in_threads, 2, answer, rows)))
    reading.start()
    inside.wait(60)
    closing = threading.Thread(target=tree.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    go_on.set()
    reading.join(60)
    closing.join(60)
    np.testing.assert_array_equal(answers[0], rows)
    assert tree.closed
