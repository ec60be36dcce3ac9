"""No thread can be started: a call that needs one says so and has lost nothing, any other call works without.

Promises (What people touch):

- where no thread can be started a commit is undone with an OSError, and batches and loads do without:
  test_a_first_commit_without_its_threads_is_undone_and_works_once_there_are_some,
  test_a_batch_is_answered_by_the_threads_that_there_are,
  test_a_bulk_load_does_the_work_of_threads_that_it_does_not_get.
"""

from __future__ import annotations

import errno
import threading

import numpy as np
import pytest
from support.damaged_indexes import contents

import xtree
from xtree.persistence.base import outcome, threads
from xtree.persistence.base.threads import start_detached, start_worker


@pytest.fixture
def no_threads(monkeypatch):
    """no_threads(after=0) lets so many more threads start, then none; -1 lets all start. `refused` counts refusals."""
    left = [-1]

    def limited(start):
        def start_or_refuse(*arguments):
            if left[0] == 0:
                limit.refused += 1
                raise RuntimeError("can't start new thread")
            left[0] -= left[0] > 0
            return start(*arguments)

        return start_or_refuse

    monkeypatch.setattr(threading.Thread, "start", limited(threading.Thread.start))
    for module in (outcome, threads):
        monkeypatch.setattr(module, "start_new_thread", limited(module.start_new_thread))

    def limit(after: int = 0) -> None:
        left[0] = after

    limit.refused = 0
    return limit


def held(tree) -> dict[str, int]:
    table = tree._store.stats()["object_table"]
    return {state: table[state] for state in ("live", "reserved")}


def test_a_thread_that_cannot_be_started_is_an_os_error(no_threads):
    no_threads()
    for start in (lambda: start_worker(print, "xtree-test"), lambda: start_detached("xtree-test", print)):
        with pytest.raises(OSError, match="xtree-test") as caught:
            start()
        assert caught.value.errno == errno.EAGAIN
    no_threads(-1)
    start_worker(lambda: None, "xtree-test").join()


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("durability", ["strict", "balanced", "eventual"])
def test_a_first_commit_without_its_threads_is_undone_and_works_once_there_are_some(
    tmp_path, no_threads, durability, after
):
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(0, (0, 0))
    tree = xtree.open(tmp_path / "index", durability=durability)
    before = held(tree)
    no_threads(after)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            tree.insert_many(np.arange(1, 500), np.zeros((499, 2)))
        assert caught.value.errno == errno.EAGAIN
        no_threads(0)
        with pytest.raises(OSError), tree.transaction() as tx:
            tx.insert(1, (1, 1))
        assert tx.status == "aborted" and len(tree) == 1 and held(tree) == before
        tree._store.check()
    no_threads(-1)
    tree.insert(2, (1, 1))
    tree.check()
    tree.close()
    with xtree.open(tmp_path / "index") as tree:
        assert sorted(tree.items()[0].tolist()) == [0, 2]


def test_a_close_that_must_write_and_gets_no_thread_says_so_and_loses_nothing(killed, no_threads, made):
    runtime = xtree.Runtime(killed)
    no_threads()
    with pytest.raises(OSError) as caught:
        runtime.close()
    assert caught.value.errno == errno.EAGAIN and runtime.closed
    no_threads(-1)
    assert contents(killed) == made["killed"][1]
    with xtree.Runtime(killed) as runtime:
        runtime.check()


def test_a_close_that_has_its_threads_or_nothing_to_write_needs_none(tmp_path, no_threads):
    tree = xtree.open(tmp_path / "index", dims=2)
    tree.insert(0, (0, 0))
    no_threads()
    tree.close()  # its threads are there already
    tree = xtree.open(tmp_path / "index")
    tree.close()  # it has nothing to do for a thread
    assert tree.closed
    with xtree.open(tmp_path / "index", mode="r") as tree:
        assert tree.items()[0].tolist() == [0]


def test_a_close_from_inside_a_call_needs_a_thread_and_can_be_repeated(tmp_path, no_threads):
    tree = xtree.open(tmp_path / "index", dims=2)
    tree.insert(0, (0, 0))
    with tree._store.call():
        no_threads()
        with pytest.raises(OSError) as caught:
            tree.close()
        no_threads(-1)
    assert caught.value.errno == errno.EAGAIN and tree._store.state == "open"
    tree._store.check()
    tree._store.close()
    with xtree.open(tmp_path / "index") as tree:
        assert len(tree) == 1


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_batch_is_answered_by_the_threads_that_there_are(no_threads, random, after):
    boxes = random.random((5000, 2))
    tree = xtree.XTree.from_boxes(boxes, dims=2)
    windows = np.hstack([boxes[:1000] - 0.01, boxes[:1000] + 0.01])
    expected = tree.query(windows), tree.count(windows), tree.nearest(boxes[:1000], k=3)
    no_threads(after)
    found = [tree.query(windows, threads=4), tree.count(windows, threads=4), tree.nearest(boxes[:1000], k=3, threads=4)]
    no_threads(-1)
    assert no_threads.refused
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    tree.check()


@pytest.mark.parametrize("durable", [False, True])
def test_a_bulk_load_does_the_work_of_threads_that_it_does_not_get(tmp_path, no_threads, random, durable):
    tree = xtree.open(tmp_path / "index", dims=2) if durable else xtree.XTree(2)
    tree.insert(0, (0, 0))
    tree.delete(0, (0, 0))
    no_threads()
    boxes = random.random((30_000, 2))
    tree.bulk_load(np.arange(30_000), boxes, threads=4)
    no_threads(-1)
    assert len(tree) == 30_000
    tree.check()
    tree.close()
