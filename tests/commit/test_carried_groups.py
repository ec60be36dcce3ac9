"""A thread that commits in eventual mode carries what others have queued, and its own commit behind that.

Promises (Nothing acknowledged is lost):

- commits that are carried by another thread are published in the order of the queue, before its own, or by the leader
  when that thread can't: test_a_commit_carries_all_that_is_queued_before_it,
  test_what_a_thread_could_not_carry_is_carried_by_the_leader_in_order,
  test_a_commit_that_builds_on_a_queued_one_is_carried_behind_it,
  test_a_crash_while_a_thread_carries_others_commits_leaves_all_or_none.
"""

from __future__ import annotations

import threading

import pytest
from support.text_pages import by_request, eventually, put, run_and_die, settle, texts_of

import xtree
from xtree.persistence.opening import open_store

PATIENCE_S = 60
EVENTUAL = by_request("eventual")


class Parked:
    """A store in eventual mode whose leader is held up before it looks at the queue, until `let_go`."""

    def __init__(self, store) -> None:
        self.store = store
        put(self.store, {"first": "put by the leader, which opens the log"})
        settle(self.store)
        self.coordinator = self.store._coordinator
        self.queue = self.coordinator._queue
        self.let_go = threading.Event()
        self.outcomes: dict[str, int | BaseException] = {}
        self._threads: list[threading.Thread] = []
        gather = self.coordinator._gather

        def parked(requests) -> None:
            self.let_go.wait(PATIENCE_S)
            gather(requests)

        self.coordinator._gather = parked
        self.coordinator.between_groups(lambda: None)

    def queue_commit(self, name: str) -> None:
        """A thread commits while the turn is taken: returns once the commit is queued."""
        queued = self.queue.count

        def commit() -> None:
            try:
                self.outcomes[name] = put(self.store, {name: name})
            except BaseException as error:
                self.outcomes[name] = error

        thread = threading.Thread(target=commit)
        with self.coordinator.turn_lock:
            thread.start()
            eventually(lambda: self.queue.count == queued + 1)
        self._threads.append(thread)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def close(self) -> None:
        self.let_go.set()
        self.join()
        self.store.close()


@pytest.fixture
def parked(tmp_path):
    made = Parked(open_store(tmp_path / "index", config=EVENTUAL))
    yield made
    made.close()


def test_a_commit_carries_all_that_is_queued_before_it(parked):
    parked.queue_commit("a")
    parked.queue_commit("b")
    groups = parked.coordinator.counters.groups
    epoch = put(parked.store, {"mine": "mine"})
    parked.join()  # the leader is still held up
    assert (parked.outcomes, epoch) == ({"a": epoch - 2, "b": epoch - 1}, parked.store.published.epoch)
    assert parked.coordinator.counters.groups == groups + 1 and parked.queue.count == 0
    assert {"a", "b", "mine"} < set(texts_of(parked.store))


class Interrupted(Exception):
    """What a signal handler may raise."""


@pytest.mark.parametrize("arrived", [None, MemoryError(), OSError(28, "full"), KeyboardInterrupt(), Interrupted()])
def test_what_a_thread_could_not_carry_is_carried_by_the_leader_in_order(parked, arrived):
    parked.queue_commit("a")
    parked.queue_commit("b")
    plan = parked.coordinator.plan

    def hindered(requests):
        assert len(requests) == 3
        parked.coordinator.plan = plan
        parked.let_go.set()
        if arrived is not None:
            raise arrived

    parked.coordinator.plan = hindered
    if arrived is None or isinstance(arrived, (MemoryError, OSError)):
        epoch = put(parked.store, {"mine": "mine"})
        parked.join()
        assert parked.outcomes == {"a": epoch - 2, "b": epoch - 1}
    else:
        with pytest.raises(type(arrived)):
            put(parked.store, {"mine": "mine"})
        parked.join()
        epoch = parked.store.published.epoch
        assert parked.outcomes == {"a": epoch - 1, "b": epoch}
        assert "mine" not in texts_of(parked.store)
    parked.store.check()


def test_other_work_that_is_queued_is_the_leaders(parked):
    called: list[int] = []
    caller = threading.Thread(
        target=parked.coordinator.between_groups, args=(lambda: called.append(parked.store.published.epoch),)
    )
    caller.start()
    eventually(lambda: parked.queue.count == 1)
    parked.queue_commit("a")
    mine = threading.Thread(target=put, args=(parked.store, {"mine": "mine"}))
    mine.start()
    eventually(lambda: parked.queue.count == 3)
    parked.let_go.set()
    for thread in (caller, mine):
        thread.join(PATIENCE_S)
    parked.join()
    assert called == [parked.store.published.epoch] and parked.outcomes == {"a": called[0] - 1}


def test_a_commit_that_builds_on_a_queued_one_is_carried_behind_it(tmp_path):
    """The writer lock of a tree goes on once its commit is queued: the next one builds on it."""
    path = tmp_path / "index"
    with xtree.Runtime(path, durability="eventual") as runtime:
        tree = runtime.tree("t", dims=1)
        tree.insert(0, (0, 0))
        coordinator = runtime._store._coordinator
        settle(runtime._store)
        let_go, gather = threading.Event(), coordinator._gather
        coordinator._gather = lambda requests: (let_go.wait(PATIENCE_S), gather(requests))
        coordinator.between_groups(lambda: None)
        threads = [threading.Thread(target=tree.insert, args=(i, (i, i))) for i in (1, 2, 3)]
        with coordinator.turn_lock:
            for queued, thread in enumerate(threads, 1):
                thread.start()
                eventually(lambda queued=queued: coordinator._queue.count == queued)
        tree.insert(4, (4, 4))
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        let_go.set()
        assert sorted(tree.query((0, 9)).tolist()) == [0, 1, 2, 3, 4]
        tree.check()


@pytest.mark.parametrize("point", ["prepared", "before_append", "appended", "published"])
def test_a_crash_while_a_thread_carries_others_commits_leaves_all_or_none(tmp_path, point):
    path = str(tmp_path / "index")

    def work(store, acknowledge) -> None:
        parked = Parked(store)
        acknowledge(0)
        parked.queue_commit("a")
        put(store, {"mine": "mine"})
        acknowledge(1)

    assert run_and_die(path, work, f"commit.{point}", 2, EVENTUAL) == (0, True)  # the second group is the carried one
    with_them = {"first", "a", "mine"} if point in ("appended", "published") else {"first"}
    store = open_store(path, config=EVENTUAL)
    assert set(texts_of(store)) == with_them
    store.close()
