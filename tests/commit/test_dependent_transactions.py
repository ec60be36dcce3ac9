"""Transactions that build on queued ones: a tree's writer lock is free while its last commit is still being synced.

Promises (Nothing acknowledged is lost):

- the next transaction on a tree builds on one that is queued; if that fails, so do all that build on it, and
  everything comes back:
  all of it.
- a commit that can't go with its group goes alone; only what fails by itself fails:
  test_a_commit_that_fails_alone_takes_no_other_trees_commit_with_it.
"""

from __future__ import annotations

import errno
import threading

import numpy as np
import pytest
from support.faulty_fs import PATIENCE_S, HeldFileSystem, queued
from support.text_pages import small

import xtree
import xtree.runtime
from xtree.errors import StoreFailedError, TransactionError
from xtree.persistence.commit import checkpoint_coordinator
from xtree.persistence.commit.index_files import IndexFiles
from xtree.persistence.opening import open_store
from xtree.persistence.store.write_set import begin

LOG_BYTES = 64 << 10
MANY = 30_000  # their deltas alone are more than the log has room for
BOX = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture
def fs():
    return HeldFileSystem()


@pytest.fixture(params=["balanced", "strict"])
def runtime(request, tmp_path, fs, monkeypatch):
    """Two trees "a" and "b", in a directory whose log syncs can be held."""
    monkeypatch.setattr(
        "xtree.persistence.sharing.open_store", lambda *args, **kw: open_store(*args, **kw, fs=fs)
    )
    one_log = {"wal_fill_bytes": LOG_BYTES, "wal_fill_limit_bytes": LOG_BYTES, "checkpoint_log_bytes": 16 << 20}
    monkeypatch.setattr(IndexFiles, "spare_wanted", False)
    config = small(request.param, **one_log)
    with xtree.Runtime(tmp_path / "index", config=config) as runtime:
        for name in ("a", "b"):
            runtime.tree(name, dims=2).insert(0, BOX)
        yield runtime
        fs.release()


class Doing(threading.Thread):
    """A call in a thread of its own, whose error is kept."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self.call, self.error = (function, arguments), None
        self.start()

    def run(self):
        try:
            self.call[0](*self.call[1])
        except Exception as error:
            self.error = error

    def outcome(self):
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.error


def hold_a_commit(runtime, fs) -> Doing:
    """A commit to tree "b" whose sync doesn't end before fs.release()."""
    fs.hold = True
    held = Doing(runtime.tree("b").insert, 1, BOX)
    assert fs.held.wait(PATIENCE_S)
    return held


def fail_the_log(fs):
    """Makes sure that no log gets any longer, and that no new one is made."""
    full = ("write_zeros", "reserve", "create")
    fs.judge = lambda call, path: errno.ENOSPC if call in full and ".log" in path else None


def fill_the_log(runtime) -> None:
    """Leaves room for a few small frames in the log."""
    writer = runtime._store._coordinator.index_files.log
    tree = runtime.tree("b")
    while writer._ground.end - writer.end_offset > 3 * 4096:
        tree.insert(9, BOX)


def test_the_next_transaction_on_a_tree_begins_while_the_last_one_is_being_synced(runtime, fs):
    held = hold_a_commit(runtime, fs)
    tree = runtime.tree("b")
    second = Doing(tree.insert, 2, BOX)
    queued(runtime._store, 2)
    with tree.transaction() as tx:
        assert sorted(tx.query(BOX)) == [0, 1, 2]
        assert sorted(tree.query(BOX)) == [0]
        tx.delete(1, BOX)
        fs.release()
    assert held.outcome() is None and second.outcome() is None
    assert sorted(tree.query(BOX)) == [0, 2]
    runtime.check()


def test_what_many_threads_commit_to_one_tree_shares_syncs_and_is_all_there(runtime, fs, tmp_path):
    held = hold_a_commit(runtime, fs)
    tree = runtime.tree("b")
    others = [Doing(tree.insert, i, (i, i)) for i in range(2, 12)]
    queued(runtime._store, 11)
    before = runtime.stats()["coordinator"]["groups"]
    fs.release()
    assert held.outcome() is None and all(other.outcome() is None for other in others)
    assert runtime.stats()["coordinator"]["groups"] == before + 2  # the one that was held, and one for all others
    assert sorted(tree.items()[0]) == list(range(12))
    runtime.check()


def test_a_transaction_over_two_trees_builds_on_what_is_queued_for_either(runtime, fs):
    held = hold_a_commit(runtime, fs)
    second = Doing(runtime.tree("a").insert, 5, BOX)
    queued(runtime._store, 2)
    with runtime.transaction(trees=["a", "b"]) as tx:
        assert sorted(tx.tree("a").query(BOX)) == [0, 5]
        assert sorted(tx.tree("b").query(BOX)) == [0, 1]
        tx.tree("a").insert(6, BOX)
        tx.tree("b").insert(6, BOX)
        fs.release()
    assert held.outcome() is None and second.outcome() is None
    assert sorted(runtime.tree("a").query(BOX)) == [0, 5, 6]
    assert sorted(runtime.tree("b").query(BOX)) == [0, 1, 6]


def test_if_one_fails_those_that_build_on_it_fail_and_everything_comes_back(runtime, fs):
    many = (np.arange(MANY), np.random.default_rng(1).random((MANY, 2)))
    fill_the_log(runtime)
    held = hold_a_commit(runtime, fs)
    tree = runtime.tree("a")
    fails = Doing(tree.insert_many, *many)
    queued(runtime._store, 2)
    depends = Doing(tree.insert, 1, BOX)
    queued(runtime._store, 3)
    with pytest.raises(TransactionError, match="builds on one that failed"), tree.transaction() as building:
        assert len(building) == MANY + 2
        fail_the_log(fs)
        fs.release()
        assert held.outcome() is None
        assert fails.outcome().errno == errno.ENOSPC
        assert isinstance(depends.outcome(), TransactionError)
        assert runtime.stats()["object_table"]["reserved"] > 0  # kept: the transaction being built reads them
        assert len(building.query((0, 0, 1, 1))) == MANY + 2
        building.insert(2, BOX)
    assert runtime.stats()["object_table"]["reserved"] == 0
    fs.heal()
    assert sorted(tree.query(BOX)) == [0]
    tree.insert(3, BOX)
    assert sorted(tree.query(BOX)) == [0, 3]
    runtime.check()


def test_a_commit_that_fails_alone_takes_no_other_trees_commit_with_it(runtime, fs, monkeypatch):
    original = checkpoint_coordinator.plan_group

    def plan_group(store, requests, *arguments):
        if any(request.write_set.bytes_made > 100_000 for request in requests):
            raise MemoryError("no memory for so many")
        return original(store, requests, *arguments)

    monkeypatch.setattr(checkpoint_coordinator, "plan_group", plan_group)
    held = hold_a_commit(runtime, fs)
    fails = Doing(runtime.tree("a").insert_many, np.arange(MANY), np.random.default_rng(1).random((MANY, 2)))
    queued(runtime._store, 2)
    beside = Doing(runtime.tree("b").insert, 7, BOX)
    queued(runtime._store, 3)
    fs.release()
    assert held.outcome() is None and beside.outcome() is None
    assert isinstance(fails.outcome(), MemoryError)
    assert sorted(runtime.tree("b").query(BOX)) == [0, 1, 7]
    assert len(runtime.tree("a")) == 1
    runtime.check()


def test_poison_fails_what_is_queued_and_what_builds_on_it(runtime, fs):
    held = hold_a_commit(runtime, fs)
    tree = runtime.tree("b")
    second = Doing(tree.insert, 2, BOX)
    queued(runtime._store, 2)
    with pytest.raises(StoreFailedError), tree.transaction() as building:
        building.insert(3, BOX)
        fs.fail("sync", ".log")
        fs.release()
        assert held.outcome().errno == errno.EIO
        assert isinstance(second.outcome(), StoreFailedError)
    assert sorted(tree.query(BOX)) == [0]


def test_dropping_a_tree_waits_for_what_is_queued_on_it(runtime, fs):
    held = hold_a_commit(runtime, fs)
    dropping = Doing(runtime.drop, "b")
    queued(runtime._store, 2)
    fs.release()
    assert held.outcome() is None and dropping.outcome() is None
    assert runtime.trees() == ["a"]
    runtime.check()


def test_what_an_aborted_write_set_would_have_retired_is_free_while_others_still_build_on_it(tmp_path):
    with_page = open_store(tmp_path / "index", config=small("balanced"))
    first = begin(with_page)
    node = first.add_page(200, 0, b"base")
    first.commit({})
    failing = begin(with_page)
    failing.replace_page(node, b"lost")
    failing.queue()
    dependent = begin(with_page)
    dependent.depend_on(failing)
    failing.end("aborted")
    another = begin(with_page)
    another.replace_page(node, b"kept")
    dependent.abort()  # gives back the failed one's pages, but must not touch the claim of `another`
    third = begin(with_page)
    with pytest.raises(xtree.errors.CorruptionError, match="reached twice"):
        third.replace_page(node, b"twice")
    third.abort()
    another.commit({})
    with_page.check()
    with_page.close()


def test_nothing_builds_on_a_write_set_that_is_going_to_fail(store):
    first, second, third = begin(store), begin(store), begin(store)
    first.queue()
    second.depend_on(first)
    second.queue()
    third.depend_on(second)
    first.end("aborted")
    with pytest.raises(TransactionError, match="builds on one that failed"):
        begin(store).depend_on(second)
    with pytest.raises(TransactionError, match="builds on one that failed"):
        third.commit({})
    second.end("aborted")
    assert (second.status, third.status) == ("aborted", "aborted")
