"""The store interface: one suite over the memory and the durable store.

Promises (What is on the disk before what):

- slots and handles are used again only once no pin sees them and their retirement is durable:
  test_slots_come_back_once_no_pin_needs_them,
  test_commit_order.py::test_nothing_is_reclaimed_that_was_retired_after_the_durable_epoch,
  test_reclaimer.py::test_what_a_pin_held_back_is_freed_after_it_though_nobody_commits.

Promises (One writer, many readers):

- close refuses new calls, waits for running ones and aborts open transactions:
  test_close_waits_for_calls_in_flight, test_close_aborts_open_write_sets.
- `check()` may run beside writers:
  test_check_finds_nothing_wrong_beside_writers.

Promises (Right answers):

- memory and durable stores behave alike:
  all of it.
"""

from __future__ import annotations

import threading

import pytest
from support.text_pages import KIND, SMALL, put, texts_of

from xtree.errors import ClosedError, CorruptionError, TransactionError
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin
from xtree.tools.probes.loops import HeldLock


@pytest.fixture(params=["memory", "durable"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else open_store(tmp_path / "index", config=SMALL)
    yield made
    if made.state == "open":
        made.check()
        made.close()


def held(store) -> dict[str, int]:
    """Rows in use, by state."""
    stats = store.table.stats()
    return {state: stats[state] for state in ("live", "reserved", "retired")}


def test_a_commit_is_visible_after_it_and_not_before(store):
    write_set = begin(store)
    node = write_set.add_page(KIND, 0, b"hello")
    assert store.published.catalog.get("a") is None
    epoch = write_set.commit({"a": CatalogEntry("a", "text", node, b"")})
    assert store.published.epoch == epoch
    assert texts_of(store) == {"a": "hello"}


def test_epochs_grow_with_each_commit(store):
    epochs = [put(store, {"a": str(i)}) for i in range(5)]
    assert epochs == sorted(set(epochs))


def test_a_page_is_copied_once_per_write_set(store):
    put(store, {"a": "0"})
    write_set = begin(store)
    node = store.published.catalog.get("a").root
    first = write_set.replace_page(node, b"1")
    assert first != node
    assert write_set.replace_page(first, b"2") == first
    write_set.abort()


def test_abort_gives_every_slot_and_handle_back(store):
    put(store, {"a": "kept"})
    before = held(store)
    write_set = begin(store)
    for size_class in range(5):
        write_set.add_page(KIND, size_class, b"x")
    write_set.replace_page(store.published.catalog.get("a").root, b"lost")
    write_set.abort()
    assert held(store) == before
    assert texts_of(store) == {"a": "kept"}


def test_a_forgotten_write_set_is_aborted(store):
    write_set = begin(store)
    write_set.add_page(KIND, 0, b"x")
    del write_set
    assert held(store)["reserved"] == 0


def test_a_pin_keeps_its_epoch_readable(store):
    put(store, {"a": "old"})
    pin = store.pin()
    for i in range(20):
        put(store, {"a": f"new {i}"})
        store.reclaim()
    assert texts_of(store, pin.published) == {"a": "old"}
    pin.release()
    assert texts_of(store) == {"a": "new 19"}


def test_slots_come_back_once_no_pin_needs_them(store):
    put(store, {"a": "0"})
    pin = store.pin()
    for i in range(50):
        put(store, {"a": str(i)})
    assert held(store)["retired"] >= 49
    pin.release()
    put(store, {"a": "end"})
    put(store, {"a": "end"})
    assert held(store)["retired"] <= 2


def test_a_retired_node_no_longer_resolves_once_it_is_reclaimed(store):
    put(store, {"a": "0"})
    node = store.published.catalog.get("a").root
    for i in range(3):
        put(store, {"a": str(i)})
    with pytest.raises(CorruptionError, match="isn't there"):
        store.read_page(node)


def test_a_write_set_that_has_ended_refuses_everything(store):
    write_set = begin(store)
    node = write_set.add_page(KIND, 0, b"x")
    write_set.commit({"a": CatalogEntry("a", "text", node, b"")})
    assert write_set.status == "committed"
    with pytest.raises(TransactionError):
        write_set.add_page(KIND, 0, b"x")
    with pytest.raises(TransactionError):
        write_set.commit({})
    write_set.abort()
    assert write_set.status == "committed"


def test_removed_pages_are_retired_at_the_commit(store):
    put(store, {"a": "1", "b": "2"})
    put(store, {"a": None})
    assert texts_of(store) == {"b": "2"}
    store.reclaim()
    assert held(store)["live"] == 1


def test_close_refuses_new_calls_and_is_idempotent(store):
    put(store, {"a": "1"})
    pin = store.pin()
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        begin(store)
    with pytest.raises(ClosedError):
        store.read_page(pin.published.catalog.get("a").root)
    pin.release()


def test_close_waits_for_calls_in_flight(store):
    entered, leave = threading.Event(), threading.Event()

    def read():
        with store.read():
            entered.set()
            leave.wait()

    reader = threading.Thread(target=read)
    reader.start()
    entered.wait()
    closer = threading.Thread(target=store.close)
    closer.start()
    assert closer.is_alive()
    leave.set()
    closer.join()
    reader.join()
    assert store.state == "closed"


def test_close_from_inside_a_call_lets_that_call_end_first(store):
    put(store, {"a": "1"})
    with store.read() as published:
        store.close()
        closing = threading.Thread(target=store.close)
        closing.start()
        with pytest.raises(ClosedError):
            begin(store)
        assert closing.is_alive()
        assert published.catalog.get("a") is not None
    closing.join()
    assert store.state == "closed"
    if store.path is not None:
        open_store(store.path, config=SMALL).close()


def test_close_aborts_open_write_sets(store):
    write_set = begin(store)
    write_set.add_page(KIND, 0, b"x")
    store.close()
    assert write_set.status == "aborted"
    with pytest.raises(TransactionError):
        write_set.commit({})


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_close_in_the_middle_of_an_abort(store):
    write_set = begin(store)
    write_set.add_page(KIND, 0, b"x")
    aborting, closing = threading.Thread(target=write_set.abort), threading.Thread(target=store.close)
    with HeldLock(store):
        aborting.start()
        while write_set.status == "open":
            pass
        closing.start()
        closing.join(0.5)       # as far as it gets while the abort waits for the lock
    aborting.join()
    closing.join()
    assert (write_set.status, store.state) == ("aborted", "closed")


def test_writers_of_different_names_commit_side_by_side(store):
    def write(name):
        for i in range(50):
            put(store, {name: f"{name} {i}"})

    threads = [threading.Thread(target=write, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts_of(store) == {f"t{i}": f"t{i} 49" for i in range(4)}


def test_content_that_does_not_fit_is_refused(store):
    write_set = begin(store)
    with pytest.raises(ValueError, match="don't fit"):
        write_set.add_page(KIND, 0, bytes(5000))
    with pytest.raises(ValueError, match="no such page"):
        write_set.add_page(KIND, 9, b"")
    write_set.abort()


def test_a_handle_reused_until_its_tag_comes_again_is_its_new_owners(store):
    earlier = begin(store)
    node = earlier.add_page(KIND, 0, b"earlier")
    earlier.remove_page(node)
    later = begin(store)
    while (again := later.add_page(KIND, 0, b"later")) != node:
        later.remove_page(again)
    assert len(earlier) == 0
    earlier.abort()
    later.commit({"a": CatalogEntry("a", "text", again, b"")})
    assert texts_of(store) == {"a": "later"}


def test_check_finds_nothing_wrong_beside_writers(store):
    ended = threading.Event()

    def write(name):
        for i in range(300):
            write_set = begin(store)
            for _ in range(20):
                write_set.add_page(KIND, 0, b"x")
            write_set.abort()
            put(store, {f"{name} {i % 30}": str(i)})

    def write_all():
        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()

    writing = threading.Thread(target=write_all)
    writing.start()
    while not ended.is_set():
        store.check()
    writing.join()
