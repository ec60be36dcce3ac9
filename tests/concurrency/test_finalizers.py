"""Finalizers: garbage collection ends forgotten objects in any thread, in the middle of anything.

Promises (One writer, many readers):

- garbage collection may end anything anywhere:
  all of it.
"""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from support.text_pages import KIND, SMALL, put, texts_of

from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.opening import open_store
from xtree.persistence.store.write_set import begin


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {"a": "1"})
    yield store
    set_hook(None)
    store.close()


def once_at(point: str, action) -> None:
    """Runs an action when a crash point is reached for the first time."""

    def hook(name: str) -> None:
        if name == point:
            set_hook(None)
            action()

    set_hook(hook)


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self, held) -> None:
        self.held = held
        self.itself = self


@pytest.mark.parametrize(
    ("point", "size_class"), [("data.created", 2), ("data.header_synced", 2), ("data.extended", 0)]
)
def test_a_write_set_collected_while_its_thread_allocates_gives_its_pages_back(store, point, size_class):
    forgotten = begin(store)
    forgotten.add_page(KIND, 0, b"x")
    forgotten.replace_page(store.published.catalog.get("a").root, b"never")
    Cycle(forgotten)
    del forgotten
    collected = []
    once_at(point, lambda: collected.append(gc.collect()))
    write_set = begin(store)
    while not collected:
        write_set.add_page(KIND, size_class, b"x")
    write_set.abort()
    put(store, {"a": "2"})
    assert store.table.stats()["reserved"] == 0
    assert texts_of(store) == {"a": "2"}
    store.check()


def test_a_write_set_collected_while_a_checkpoint_copies_the_rows_is_no_part_of_it(store):
    forgotten = begin(store)
    forgotten.add_page(KIND, 0, b"x")
    Cycle(forgotten)
    del forgotten
    once_at("checkpoint.copied", gc.collect)
    store.checkpoint()
    put(store, {"a": "2"})
    store.check()
    assert store.table.stats()["reserved"] == 0


def test_an_index_closed_by_a_finalizer_in_its_leader_is_closed_cleanly(store, tmp_path):
    once_at("commit.published", store.close)
    assert put(store, {"a": "2"}) > 0
    store.close()  # waits for the thread that closes it
    reopened = open_store(tmp_path / "index", config=SMALL)
    assert reopened.recovery.clean
    assert texts_of(reopened) == {"a": "2"}
    reopened.close()


@pytest.mark.parametrize("kind", ["memory", "durable"])
def test_pins_that_are_collected_together_with_their_store_let_go_of_it(tmp_path, kind):
    program = """
import gc, sys, xtree
from xtree.persistence.store.write_set import begin
gc.disable()
for i in range(20):
    tree = xtree.XTree(2) if sys.argv[2] == "memory" else xtree.open(sys.argv[1] + str(i), dims=2)
    tree.insert(1, (0, 0))
    cycle = [tree.snapshot(), tree._store.pin(), begin(tree._store) if i % 2 else None]
    cycle.append(cycle)
    del tree, cycle
    gc.collect()
print("fine")
"""
    command = [sys.executable, "-c", program, str(tmp_path / "index"), kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
