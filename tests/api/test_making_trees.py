"""Making and dropping trees: ordinary commits, which share syncs, may be part of a transaction, and hold only the
lock of the name.

Promises (One writer, many readers):

- trees are made in transactions, there for all with the commit or never; sixteen threads that make or drop trees
  share syncs; a name is free again at once:
  all of it.
- `Runtime.check()` beside threads that make and drop trees checks those that were there:
  test_check_beside_a_thread_that_makes_and_drops_trees_checks_those_that_are_there.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from support.faulty_fs import PATIENCE_S, HeldFileSystem, queued
from support.text_pages import small

import xtree
import xtree.runtime
from xtree.errors import ClosedError, DimensionError, TransactionError
from xtree.persistence.commit import checkpoint_coordinator
from xtree.persistence.opening import open_store

BOX = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture
def fs():
    return HeldFileSystem()


@pytest.fixture
def runtime(tmp_path, fs, monkeypatch):
    """A runtime with a tree "a", in a directory whose log syncs can be held."""
    monkeypatch.setattr(
        "xtree.persistence.sharing.open_store", lambda *args, **kw: open_store(*args, **kw, fs=fs)
    )
    with xtree.Runtime(tmp_path / "index", config=small("balanced")) as runtime:
        runtime.tree("a", dims=2).insert(0, BOX)
        yield runtime
        fs.release()


class Doing(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function, *arguments, **named):
        super().__init__(daemon=True)
        self.call, self.error, self.found = (function, arguments, named), None, None
        self.start()

    def run(self):
        function, arguments, named = self.call
        try:
            self.found = function(*arguments, **named)
        except Exception as error:
            self.error = error

    def outcome(self):
        """Returns what the call returned, or raises what it raised."""
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.found


def hold_a_commit(runtime, fs) -> Doing:
    fs.hold = True
    held = Doing(runtime.tree("a").insert, 1, BOX)
    assert fs.held.wait(PATIENCE_S)
    return held


def test_a_tree_made_in_a_transaction_is_there_for_it_at_once_and_for_others_with_its_commit(runtime, tmp_path):
    with runtime.transaction(trees=["a"]) as tx:
        made = tx.make("b", dims=3)
        assert (made.dims, len(made), made.bounds) == (3, 0, None)
        made.insert_many(np.arange(500), np.random.default_rng(1).random((500, 3)))
        tx.tree("b").insert(7, (2.0, 2.0, 2.0))
        assert tx.tree("b").query((2.0, 2.0, 2.0)).tolist() == [7]
        tx.tree("a").insert(1, BOX)
        assert runtime.trees() == ["a"] and len(runtime.tree("a")) == 1
        before = runtime.stats()["epoch"]
    assert runtime.stats()["epoch"] == before + 1
    assert runtime.trees() == ["a", "b"]
    assert len(runtime.tree("b", dims=3)) == 501 and len(runtime.tree("a")) == 2
    runtime.tree("b").insert(8, (2.0, 2.0, 2.0))
    runtime.check()
    runtime.close()
    with xtree.Runtime(tmp_path / "index") as again:
        assert sorted(again.tree("b").query((2.0, 2.0, 2.0))) == [7, 8]


def test_an_empty_tree_made_in_a_transaction_is_there(runtime):
    with runtime.transaction() as tx:
        tx.make("b", dims=2)
    assert len(runtime.tree("b")) == 0 and runtime.tree("b").dims == 2


def test_a_tree_made_in_a_transaction_that_is_aborted_never_was_and_leaves_its_name_free(runtime):
    with pytest.raises(KeyError, match="enough"), runtime.transaction(trees=["a"]) as tx:
        tx.make("b", dims=3).insert(1, (0.0, 0.0, 0.0))
        tx.tree("a").insert(1, BOX)
        raise KeyError("enough")
    assert runtime.trees() == ["a"] and len(runtime.tree("a")) == 1
    with pytest.raises(ValueError, match="no tree 'b'"):
        runtime.tree("b")
    assert runtime.tree("b", dims=2).dims == 2
    assert runtime.stats()["object_table"]["reserved"] == 0
    runtime.check()


def test_making_what_is_there_or_cannot_be_is_refused_and_loses_nothing(runtime):
    with runtime.transaction(trees=["a"]) as tx:
        tx.tree("a").insert(1, BOX)
        tx.make("b", dims=2)
        for name in ("a", "b"):
            with pytest.raises(ValueError, match="already"):
                tx.make(name, dims=2)
        for bad in (0, 65):
            with pytest.raises(ValueError):
                tx.make("c", dims=bad)
        for name, dims in ((5, 2), ("c", "2"), ("c", 2.0)):
            with pytest.raises(TypeError):
                tx.make(name, dims=dims)
        with pytest.raises(ValueError):
            tx.make("", dims=2)
        with pytest.raises(ValueError, match="is a tree"):
            tx.structure("b")
    with pytest.raises(TransactionError):
        tx.make("d", dims=2)
    with pytest.raises(TransactionError):
        runtime.transaction().make("d", dims=2)
    assert runtime.trees() == ["a", "b"] and len(runtime.tree("a")) == 2
    assert len(runtime._forest._locks) == 2


def test_a_tree_that_another_thread_has_made_meanwhile_is_a_clear_error_and_loses_nothing(runtime, fs):
    with runtime.transaction(trees=["a"]) as tx:
        tx.tree("a").insert(1, BOX)
        Doing(runtime.tree, "b", dims=2).outcome()
        with pytest.raises(ValueError, match="already"):
            tx.make("b", dims=2)
    assert len(runtime.tree("a")) == 2
    held = hold_a_commit(runtime, fs)
    making = Doing(runtime.tree, "c", dims=2)
    queued(runtime._store, 2)
    with runtime.transaction() as tx, pytest.raises(TransactionError, match="another thread"):
        tx.make("c", dims=2)
    fs.release()
    held.outcome()
    assert making.outcome() is runtime.tree("c")


def test_a_tree_that_this_threads_transaction_makes_is_reached_through_that_alone(runtime):
    with runtime.transaction() as tx:
        tx.make("b", dims=2).insert(1, BOX)
        for reach in (
            lambda: runtime.tree("b"), lambda: runtime.tree("b", dims=2), lambda: runtime.drop("b"),
            lambda: runtime.transaction(trees=["b"]),
        ):  # fmt: skip
            with pytest.raises(TransactionError):
                reach()
        with pytest.raises(ValueError, match="no tree 'b'"):
            Doing(runtime.tree, "b").outcome()
        waiting, other = Doing(runtime.tree, "b", dims=2), Doing(runtime.tree, "b", dims=3)
        assert tx.tree("b").query(BOX).tolist() == [1]
    assert waiting.outcome() is runtime.tree("b")
    with pytest.raises(DimensionError):
        other.outcome()
    assert runtime.tree("b").query(BOX).tolist() == [1]


def test_sixteen_threads_that_make_trees_share_syncs_as_inserts_do(runtime, fs):
    held = hold_a_commit(runtime, fs)
    making = [Doing(runtime.tree, f"t{i}", dims=2) for i in range(16)]
    queued(runtime._store, 17)
    before = runtime.stats()["coordinator"]
    fs.release()
    held.outcome()
    assert [thread.outcome().name for thread in making] == [f"t{i}" for i in range(16)]
    after = runtime.stats()["coordinator"]
    assert after["groups"] == before["groups"] + 2  # the one that was held, and one for all others
    fs.let_go.clear()
    fs.held.clear()
    held = hold_a_commit(runtime, fs)
    dropping = [Doing(runtime.drop, f"t{i}") for i in range(16)]
    queued(runtime._store, 17)
    fs.release()
    held.outcome()
    assert [thread.outcome() for thread in dropping] == [None] * 16
    assert runtime.stats()["coordinator"]["groups"] == after["groups"] + 2
    assert runtime.trees() == ["a"] and len(runtime._forest._locks) == 1


def test_of_two_threads_that_make_one_tree_one_makes_it_and_both_get_it(runtime, fs):
    held = hold_a_commit(runtime, fs)
    before = runtime.stats()["epoch"]
    making = [Doing(runtime.tree, "b", dims=2) for _ in range(6)]
    queued(runtime._store, 2)
    fs.release()
    held.outcome()
    assert {id(thread.outcome()) for thread in making} == {id(runtime.tree("b"))}
    assert runtime.stats()["epoch"] == before + 2


def test_a_tree_is_dropped_and_made_anew_at_once_by_many_threads(runtime):
    old, ends = runtime.tree("b", dims=1), threading.Event()
    old.insert(1, (0.0,))
    wrong, made = [], itertools.count()

    def read():
        while not ends.is_set():
            try:
                assert 1 in old.query((0.0, 1.0)).tolist()
            except ClosedError:
                pass
            except Exception as error:
                wrong.append(error)

    def churn(dims):
        for _ in range(40):
            try:
                tree = runtime.tree("b", dims=dims)
                tree.insert(5, (0.0,) * dims)
                next(made)
                runtime.drop("b")
            except (ClosedError, DimensionError, KeyError, ValueError):
                pass

    reader = Doing(read)
    for thread in [Doing(churn, dims) for dims in (1, 2, 3, 2)]:
        thread.outcome()
    ends.set()
    reader.outcome()
    assert not wrong and next(made) > 10
    with pytest.raises(ClosedError):
        old.insert(2, (0.0,))
    if "b" in runtime.trees():
        runtime.drop("b")
    assert runtime.tree("b", dims=4).dims == 4
    runtime.check()


def fail_commits_of(monkeypatch, pages: int) -> None:
    original = checkpoint_coordinator.plan_group

    def plan_group(store, requests, *arguments):
        if any(request.write_set.bytes_made >= pages * 4096 for request in requests):
            raise MemoryError("no memory for so many")
        return original(store, requests, *arguments)

    monkeypatch.setattr(checkpoint_coordinator, "plan_group", plan_group)


def test_what_builds_on_a_transaction_that_makes_a_tree_and_fails_fails_with_it(runtime, fs, monkeypatch):
    def make_much():
        with runtime.transaction(trees=["b"]) as tx:
            tx.make("c", dims=2).insert_many(np.arange(5000), np.random.default_rng(1).random((5000, 2)))
            tx.tree("b").insert(5, BOX)

    runtime.tree("b", dims=2)
    held = hold_a_commit(runtime, fs)
    fails = Doing(make_much)
    queued(runtime._store, 2)
    depends = Doing(runtime.tree("b").insert, 6, BOX)
    queued(runtime._store, 3)
    waiting = Doing(runtime.tree, "c", dims=3)
    fail_commits_of(monkeypatch, 20)
    fs.release()
    held.outcome()
    with pytest.raises(MemoryError):
        fails.outcome()
    with pytest.raises(TransactionError, match="builds on one that failed"):
        depends.outcome()
    assert waiting.outcome().dims == 3 and len(runtime.tree("b")) == 0
    runtime.check()


def test_a_drop_that_fails_leaves_the_tree_and_its_handles(runtime, monkeypatch):
    tree = runtime.tree("b", dims=2)
    tree.insert(1, BOX)
    with monkeypatch.context() as patched:
        fail_commits_of(patched, 0)
        with pytest.raises(MemoryError):
            runtime.drop("b")
    assert tree.query(BOX).tolist() == [1] and runtime.tree("b") is tree
    tree.insert(2, BOX)
    runtime.drop("b")
    with pytest.raises(ClosedError):
        tree.query(BOX)
    runtime.check()


def test_check_beside_a_thread_that_makes_and_drops_trees_checks_those_that_are_there(runtime):
    ends = threading.Event()

    def churn():
        for i in itertools.count():
            if ends.is_set():
                return
            runtime.tree(f"t{i % 5}", dims=2).insert_many(np.arange(100), np.random.default_rng(i).random((100, 2)))
            runtime.drop(f"t{i % 5}")

    churning = Doing(churn)
    for _ in range(60):
        runtime.check()
    ends.set()
    churning.outcome()
