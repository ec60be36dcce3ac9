"""The reclaimer: bounded steps, never past a pin or the durable epoch, and without waiting for the next commit.

Promises (What is on the disk before what):

- a commit that leaves nothing behind wakes no other thread: what may go is freed before the checkpointer is told:
  test_commits_that_leave_nothing_to_free_do_not_wake_the_checkpointer.
"""

from __future__ import annotations

import collections
import threading

import pytest
from support.text_pages import KIND, ONE_LONG_LOG, ManualClock, by_request, put, settle, small

from xtree.persistence.base.clock import Clock
from xtree.persistence.commit.checkpointer import RECLAIM_INTERVAL_S
from xtree.persistence.commit.reclaimer import FRESH_PAGES, LEAST_PAGES, STEP_PAGES, Reclaimer
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin


class Garbage:
    """Stands for a store with so many pages to free."""

    def __init__(self, pages):
        self.pages, self.limits = pages, []

    def reclaim(self, durable_epoch, limit):
        self.limits.append(limit)
        done = min(self.pages, limit)
        self.pages -= done
        return done


def test_a_run_frees_a_bounded_number_of_pages_in_bounded_steps():
    store = Garbage(100_000)
    reclaimer = Reclaimer(store)
    assert reclaimer.run(5) == LEAST_PAGES
    assert max(store.limits) <= STEP_PAGES and reclaimer.steps == LEAST_PAGES // STEP_PAGES
    assert reclaimer.run(5, 10_000) == LEAST_PAGES + 20_000
    assert reclaimer.reclaimed == 100_000 - store.pages


def test_a_run_ends_when_nothing_more_may_go():
    store = Garbage(10)
    reclaimer = Reclaimer(store)
    assert reclaimer.run(5) == 10 and reclaimer.run(5) == 0
    assert reclaimer.steps == 2


def test_commits_look_for_garbage_when_the_durable_epoch_moves_and_else_once_in_many_pages():
    reclaimer = Reclaimer(Garbage(10_000))
    reclaimer.committed(1, 5)
    assert reclaimer.steps > 0
    steps = reclaimer.steps
    for _ in range(FRESH_PAGES - 1):
        reclaimer.committed(1, 5)
    assert reclaimer.steps == steps
    reclaimer.committed(1, 5)
    assert reclaimer.steps > steps
    steps = reclaimer.steps
    reclaimer.committed(1, 6)
    assert reclaimer.steps > steps


def test_nothing_goes_that_a_pin_sees_or_that_is_not_durable():
    store = MemoryStore()
    reclaimer = Reclaimer(store)
    write_set = begin(store)
    node = write_set.add_page(KIND, 0, b"x")
    write_set.commit({"a": CatalogEntry("a", "text", node, b"")})
    pin = store.pin()
    write_set = begin(store)
    write_set.remove_page(node)
    epoch = write_set.commit({"a": None})
    held = reclaimer.backlog
    assert held == 1 and reclaimer.run(epoch) == 0 and reclaimer.stats()["reclaim_lag"] == 1
    pin.release()
    assert reclaimer.run(epoch - 1) == 0
    assert reclaimer.run(epoch) == 1 and reclaimer.backlog == 0
    assert reclaimer.stats() == {"reclaimed": 1, "reclaim_steps": 3, "reclaim_backlog": 0, "reclaim_lag": 0}
    store.close()


def test_what_a_pin_held_back_is_freed_after_it_though_nobody_commits(tmp_path):
    clock = ManualClock()
    store = open_store(tmp_path / "index", config=small("balanced", checkpoint_idle_s=1e8), clock=clock)
    put(store, {"a": "0"})
    pin = store.pin()
    for i in range(20):
        put(store, {"a": f"{i}"})
    settle(store)
    clock.advance(store, 2 * RECLAIM_INTERVAL_S)
    stats = store.stats()["coordinator"]
    assert stats["reclaim_backlog"] == 20 and stats["reclaim_lag"] == 20
    assert store._coordinator.checkpointer._seconds_to_wait() <= RECLAIM_INTERVAL_S
    pin.release()
    clock.advance(store, RECLAIM_INTERVAL_S)
    stats = store.stats()["coordinator"]
    assert stats["reclaim_backlog"] == 0 and stats["reclaimed"] == 20
    store.check()
    store.close()


LONG = {**ONE_LONG_LOG, "wal_rotate_bytes": 1 << 30, "checkpoint_log_bytes": 1 << 30}


class Waits(Clock):
    """Counts how often a thread waited for something to do."""

    def __init__(self):
        self.by_thread = collections.Counter()

    def get(self, items, timeout):
        self.by_thread[threading.current_thread().name] += 1
        return super().get(items, timeout)


@pytest.mark.parametrize("mode", ["balanced", "strict"])
def test_commits_that_leave_nothing_to_free_do_not_wake_the_checkpointer(tmp_path, mode):
    clock = Waits()
    store = open_store(tmp_path / "index", config=by_request(mode, **LONG), clock=clock)
    put(store, {"a": "0"})
    settle(store)
    before = clock.by_thread["xtree-checkpointer"]
    for i in range(1000):
        put(store, {"a": f"{i}"})
    settle(store)
    waits = clock.by_thread["xtree-checkpointer"] - before
    assert waits < 20, waits
    store.close()
