"""Transactions: all or nothing, one writer at a time, and no way to leave a lock behind.

Promises (One writer, many readers):

- transactions are all or nothing, also over several trees:
  test_an_exception_aborts, test_runtime.py::test_an_exception_aborts_the_changes_of_all_trees.
- one thread at a time is inside a transaction; trees are locked in name order or only tried:
  test_two_threads_never_use_one_transaction_at_once,
  test_runtime.py::test_transactions_over_the_same_trees_in_any_order_do_not_deadlock,
  test_runtime.py::test_a_tree_not_listed_is_never_waited_for.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading

import numpy as np
import pytest
from support import brute_force

import xtree

UNIT = [0.0, 0.0, 1.0, 1.0]
FAR = [9.0, 9.0, 9.5, 9.5]


def in_thread(call):
    """Runs call() in another thread; returns (thread, list that gets its result or exception)."""
    outcome: list = []

    def run():
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def result_of(call):
    thread, outcome = in_thread(call)
    thread.join()
    return outcome[0]


def test_a_transaction_commits_at_the_end_of_its_block(make_tree):
    tree = make_tree(2)
    with tree.transaction() as tx:
        tx.insert(1, UNIT)
        tx.insert_many([2, 3], [UNIT, FAR])
        assert tx.update(3, FAR, UNIT)
        assert tx.delete(2, UNIT)
        assert len(tree) == 0 and tree.query(UNIT).tolist() == []
    assert sorted(tree.query(UNIT).tolist()) == [1, 3]
    assert tx.status == "committed"


def test_a_transaction_sees_its_own_writes_and_reads_like_a_tree(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 300, 2)
    tree.insert_many(np.arange(100), boxes[:100])
    with tree.transaction() as tx:
        tx.insert_many(np.arange(100, 300), boxes[100:])
        brute_force.assert_same(tx, np.arange(300), boxes, boxes[::30])
        brute_force.assert_same(tree, np.arange(100), boxes[:100], boxes[::30])
        tx.delete_many(np.arange(50), boxes[:50])
        brute_force.assert_same(tx, np.arange(50, 300), boxes[50:], boxes[::30])
        nearest, _ = brute_force.nearest(np.arange(50, 300), boxes[50:], boxes[60, :2], 3)
        assert tx.nearest(boxes[60, :2], k=3).tolist() == nearest
        assert (60, boxes[60]) in tx and (0, boxes[0]) not in tx
        tx.check()
        assert tx.stats()["records"] == 250
    brute_force.assert_same(tree, np.arange(50, 300), boxes[50:], boxes[::30])


def test_a_bulk_load_inside_a_transaction_is_the_union(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 600, 2)
    tree.insert_many(np.arange(200), boxes[:200])
    with tree.transaction() as tx:
        tx.delete_many(np.arange(100), boxes[:100])
        tx.bulk_load(np.arange(200, 600), boxes[200:])
        tx.insert(600, UNIT)
        tx.delete(600, UNIT)
    brute_force.assert_same(tree, np.arange(100, 600), boxes[100:], boxes[::60])


def test_an_exception_aborts(make_tree):
    tree = make_tree(2)
    with pytest.raises(KeyError), tree.transaction() as tx:
        tx.insert(1, UNIT)
        raise KeyError
    assert tx.status == "aborted" and len(tree) == 0
    tree.insert(2, UNIT)


def test_abort_forgets_everything_and_frees_the_tree_at_once(make_tree):
    tree = make_tree(2)
    with tree.transaction() as tx:
        tx.insert(1, UNIT)
        tx.abort()
        tree.insert(2, UNIT)
    assert tree.query(UNIT).tolist() == [2]


def test_commit_may_come_before_the_end_of_the_block(make_tree):
    tree = make_tree(2)
    with tree.transaction() as tx:
        tx.insert(1, UNIT)
        tx.commit()
        assert tree.query(UNIT).tolist() == [1]
        tree.insert(2, UNIT)
    assert len(tree) == 2


def test_nothing_changed_is_nothing_committed(make_tree):
    tree = make_tree(2)
    tree.insert(1, UNIT)
    epoch = tree.stats()["epoch"]
    with tree.transaction() as tx:
        assert not tx.delete(5, UNIT)
        tx.insert_many([], [])
    assert tx.status == "committed"
    tree.delete_many([], [])
    tree.bulk_load([], [])
    assert tree.stats()["epoch"] == epoch


def test_writes_and_transactions_of_the_same_thread_are_refused_inside(make_tree):
    tree = make_tree(2)
    with tree.transaction() as tx:
        for call in (lambda: tree.insert(1, UNIT), lambda: tree.delete(1, UNIT), tree.transaction().__enter__):
            with pytest.raises(xtree.TransactionError, match="this thread is in a transaction"):
                call()
        tx.insert(2, UNIT)
    assert tree.query(UNIT).tolist() == [2]


def test_another_threads_write_waits(make_tree):
    tree = make_tree(2)
    with tree.transaction() as tx:
        tx.insert(1, UNIT)
        thread, outcome = in_thread(lambda: tree.insert(2, UNIT))
        assert result_of(lambda: tree.transaction(timeout=0.01).__enter__()).__class__ is TimeoutError
        assert outcome == []
    thread.join()
    assert outcome == [None] and sorted(tree.query(UNIT).tolist()) == [1, 2]


@pytest.mark.parametrize("timeout", [0, 0.01, np.float32(0.01)])
def test_expiry_is_a_timeout_error(make_tree, timeout):
    tree = make_tree(2)
    with tree.transaction():
        error = result_of(tree.transaction(timeout=timeout).__enter__)
        assert isinstance(error, TimeoutError) and "default" in str(error)
    tree.insert(1, UNIT)


def test_a_timeout_must_be_a_time(make_tree):
    tree = make_tree(2)
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            tree.transaction(timeout=timeout)
    for timeout in ("1", True, [1]):
        with pytest.raises(TypeError, match="timeout"):
            tree.transaction(timeout=timeout)
    with tree.transaction(timeout=float("inf")) as tx:
        tx.insert(1, UNIT)


def test_refused_input_leaves_a_transaction_usable(make_tree):
    tree = make_tree(2)
    with tree.transaction() as tx:
        tx.insert(1, UNIT)
        for call in (
            lambda: tx.insert(2, [float("nan")] * 4), lambda: tx.insert(2, [0]), lambda: tx.insert(2.5, UNIT),
            lambda: tx.insert_many([1], [UNIT, UNIT]), lambda: tx.query("x"), lambda: tx.query(UNIT, "x"),
            lambda: tx.nearest([0, 0], k=0), lambda: tx.bulk_load([1], [UNIT], progress=5),
        ):  # fmt: skip
            with pytest.raises((ValueError, TypeError)):
                call()
        tx.insert(3, UNIT)
    assert sorted(tree.query(UNIT).tolist()) == [1, 3]


@pytest.mark.parametrize("error", [OSError(28, "disk full"), MemoryError(), RuntimeError("odd"), KeyboardInterrupt()])
def test_an_error_while_writing_dooms_the_transaction(make_tree, error):
    tree = make_tree(2)

    def fail(done, total):
        raise error

    with pytest.raises(xtree.TransactionError, match="was aborted"), tree.transaction() as tx:
        tx.insert(1, UNIT)
        with pytest.raises(type(error)):
            tx.bulk_load([2], [UNIT], progress=fail)
        for call in (lambda: tx.insert(3, UNIT), lambda: tx.query(UNIT), tx.items):
            with pytest.raises(xtree.TransactionError, match="can only be aborted"):
                call()
    assert tx.status == "aborted" and len(tree) == 0
    tree.insert(4, UNIT)


def test_a_doomed_transaction_passes_the_exception_of_its_block_on(make_tree):
    tree = make_tree(2)
    with pytest.raises(OSError, match="disk full"), tree.transaction() as tx:
        tx.bulk_load([2], [UNIT], progress=lambda done, total: (_ for _ in ()).throw(OSError(28, "disk full")))
    tree.insert(4, UNIT)
    assert len(tree) == 1


def test_a_call_from_inside_a_call_is_refused(make_tree):
    tree = make_tree(2)
    refused = []

    def progress(done, total):
        for call in (lambda: tx.query(UNIT), lambda: tx.insert(9, UNIT), tx.abort, tx.commit):
            with pytest.raises(xtree.TransactionError):
                call()
            refused.append(call)

    with tree.transaction() as tx:
        tx.bulk_load([1], [UNIT], progress=progress)
    assert refused and tree.query(UNIT).tolist() == [1]


def test_two_threads_never_use_one_transaction_at_once(make_tree):
    tree = make_tree(2)
    inside, go_on = threading.Event(), threading.Event()

    def progress(done, total):
        inside.set()
        go_on.wait(30)

    with tree.transaction() as tx:
        thread, outcome = in_thread(lambda: tx.bulk_load([1], [UNIT], progress=progress))
        assert inside.wait(30)
        for call in (lambda: tx.query(UNIT), lambda: tx.insert(2, UNIT)):
            with pytest.raises(xtree.TransactionError, match="one thread at a time"):
                call()
        go_on.set()
    thread.join()
    assert outcome == [None] and tree.query(UNIT).tolist() == [1]


def test_the_end_waits_for_a_call_of_another_thread(make_tree):
    tree = make_tree(2)
    inside, go_on = threading.Event(), threading.Event()

    def progress(done, total):
        inside.set()
        go_on.wait(30)

    transaction = tree.transaction()
    transaction.__enter__()
    loader, loaded = in_thread(lambda: transaction.bulk_load([1], [UNIT], progress=progress))
    assert inside.wait(30)
    ender, ended = in_thread(lambda: transaction.__exit__(None, None, None))
    assert ended == []
    go_on.set()
    loader.join()
    ender.join()
    assert loaded == [None] and ended == [None] and tree.query(UNIT).tolist() == [1]


def test_a_transaction_may_be_handed_to_another_thread(make_tree):
    tree = make_tree(2)
    with tree.transaction() as tx:
        assert result_of(lambda: tx.insert(1, UNIT)) is None
        assert result_of(lambda: tx.query(UNIT)).tolist() == [1]
    assert len(tree) == 1


def test_a_forgotten_transaction_aborts_and_frees_the_tree(make_tree):
    tree = make_tree(2)
    forgotten = tree.transaction()
    forgotten.__enter__()
    forgotten.insert(1, UNIT)
    del forgotten
    gc.collect()
    with tree.transaction(timeout=0) as tx:
        tx.insert(2, UNIT)
    assert tree.query(UNIT).tolist() == [2]


def test_a_forgotten_transaction_in_a_cycle_frees_the_tree_too(make_tree):
    tree = make_tree(2)
    forgotten = tree.transaction()
    forgotten.__enter__()
    forgotten.itself = forgotten
    forgotten.insert(1, UNIT)
    del forgotten
    gc.collect()
    with tree.transaction(timeout=0) as tx:
        assert len(tx) == 0


def test_close_aborts_an_open_transaction(make_tree):
    tree = make_tree(2)
    with pytest.raises(xtree.ClosedError, match="closed"), tree.transaction() as tx:
        tx.insert(1, UNIT)
        tree.close()
        with pytest.raises(xtree.ClosedError):
            tx.insert(2, UNIT)
    assert tx.status == "aborted"


def test_closing_leaves_only_what_was_committed(tmp_path):
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(1, UNIT)
        transaction = tree.transaction()
        transaction.__enter__()
        transaction.insert(2, UNIT)
    transaction.abort()
    with xtree.open(tmp_path / "index") as tree:
        assert tree.query(UNIT).tolist() == [1]


def test_concurrent_writers_lose_nothing(make_tree):
    tree = make_tree(2)

    def write(start):
        for i in range(start, start + 40):
            if i % 3:
                tree.insert(i, UNIT)
            else:
                with tree.transaction() as tx:
                    tx.insert(i, FAR)
                    assert tx.update(i, FAR, UNIT)

    threads = [threading.Thread(target=write, args=(start,)) for start in range(0, 160, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tree.query(UNIT).tolist()) == list(range(160))


class Interrupt(BaseException):
    """What the signal handler raises."""


def interrupt_loop(step, rounds: int) -> int:
    """Calls step() while a thread fires signals at this, the main thread; returns how many interrupted it."""
    stop = threading.Event()

    def fire():
        rng = np.random.default_rng()
        while not stop.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            stop.wait(rng.random() * 3e-4)

    def handle(*_):
        if armed[0]:
            armed[0] = False  # a second one would land in the handling of the first, below
            raise Interrupt

    armed = [False]
    interrupted = 0
    previous = signal.signal(signal.SIGUSR1, handle)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # a step doesn't give the GIL away, and may be over before the other thread gets it
    thread = threading.Thread(target=fire)
    thread.start()
    try:
        for _ in range(rounds):
            try:
                armed[0] = True
                step()
                armed[0] = False
            except Interrupt:
                interrupted += 1
    finally:
        armed[0] = False
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, previous)
    return interrupted


def test_no_interrupt_leaves_the_tree_locked_or_half_changed(make_tree, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", [].append)  # some land in weak references' callbacks
    tree = make_tree(2)
    transactions = []

    def step():
        transactions.append(tree.transaction(timeout=0))
        with transactions[-1] as tx:
            tx.insert(len(transactions), UNIT)
            tx.insert(-len(transactions), FAR)

    interrupted = 0
    for _ in range(10):
        interrupted += interrupt_loop(step, 200)
        with tree.transaction(timeout=0) as tx:
            assert len(tx) % 2 == 0
    committed = [i for i, tx in enumerate(transactions, 1) if tx.status == "committed"]
    assert interrupted > 0 and {tx.status for tx in transactions} <= {"new", "committed", "aborted"}
    assert sorted(tree.query(UNIT).tolist()) == committed
    assert sorted((-tree.query(FAR)).tolist()) == committed
