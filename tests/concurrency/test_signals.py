"""Signals: whenever a KeyboardInterrupt arrives, a commit is whole or not at all, and its status says which.

Promises (Nothing acknowledged is lost):

- interrupts, exceptions of signal handlers and of the caller poison nothing:
  test_an_interrupt_of_a_commit_in_an_except_block_is_no_failure,
  test_an_exception_of_a_signal_handler_is_passed_on_once_the_commit_is_done.
- an interrupt tears no commit:
  test_thousands_of_interrupts_tear_no_commit.
- an interrupt during a flush, while a data file is made or the allocator rebuilt leaves the index writable:
  test_an_interrupt_during_the_flush_of_large_pages_is_passed_on_after_it,
  test_an_interrupt_while_a_data_file_is_made_leaves_the_index_writable,
  test_an_interrupt_while_the_allocator_is_rebuilt_leaves_the_index_writable.
"""

from __future__ import annotations

import random
import signal
import sys
import threading

import pytest
from support.faulty_fs import FaultyFileSystem
from support.text_pages import KIND, MODES, SMALL, put, small, texts_of

from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files.data_files import DataFiles
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")


@pytest.fixture(autouse=True)
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


SIGNALS = 3000
under_fire = False


def interrupt(number, frame):
    """A signal that another thread took may come late, when the commit it was meant for is over."""
    if under_fire:
        raise KeyboardInterrupt


def commit_under_fire(store, texts: dict[str, str], name: str, text: str, delay_s: float) -> bool:
    """Makes one commit with a signal on its way. Returns whether the signal arrived before the outcome was checked."""
    global under_fire
    write_set = None
    arrived = False
    try:
        under_fire = True
        signal.setitimer(signal.ITIMER_REAL, delay_s)
        write_set = begin(store)
        entry = write_set.base.catalog.get(name)
        content = text.encode().ljust(64, b"\0")
        root = write_set.add_page(KIND, 0, content) if entry is None else write_set.replace_page(entry.root, content)
        write_set.commit({name: CatalogEntry(name, "text", root, b"")})
    except KeyboardInterrupt:
        arrived = True
    under_fire = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    if write_set is not None:
        assert write_set.status in ("open", "committed", "aborted")
        if write_set.status == "committed":
            texts[name] = text
        write_set.abort()
    return arrived


@pytest.mark.parametrize("kind", ["memory", *MODES])
def test_thousands_of_interrupts_tear_no_commit(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", [].append)  # some land in callbacks of the garbage collector
    global under_fire
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    store = MemoryStore() if kind == "memory" else open_store(tmp_path / "index", config=small(kind))
    texts: dict[str, str] = {}
    arrived = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(SIGNALS):
            name = f"n{rng.randrange(6)}"
            longest = 30e-6 if kind == "memory" else 300e-6
            try:
                arrived += commit_under_fire(store, texts, name, f"{name} {i}", rng.uniform(1e-6, longest))
            except KeyboardInterrupt:  # between two statements of the test itself: the outcome can't be known
                under_fire = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                arrived += 1
                texts.clear()
                texts.update(texts_of(store))
            assert texts_of(store) == texts, i
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert arrived > SIGNALS // 20
    stats = store.table.stats()
    assert stats["reserved"] == 0
    store.check()
    store.close()
    if kind != "memory":
        store = open_store(tmp_path / "index", config=SMALL)
        assert texts_of(store) == texts
        store.close()


def test_the_leader_thread_is_gone_after_close(tmp_path):
    import threading

    before = threading.enumerate()  # another test's store may be waiting for the garbage collector
    store = open_store(tmp_path / "index", config=SMALL)
    begin(store).abort()
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "xtree-leader" and thread not in before]


def test_an_interrupt_during_the_flush_of_large_pages_is_passed_on_after_it(tmp_path):
    fs = FaultyFileSystem()
    store = open_store(tmp_path / "index", config=SMALL, fs=fs)
    put(store, {"large": "1"}, size_class=4)

    def interrupt_main(call: str, path: str) -> None:
        if call == "sync" and path.endswith(".xd"):
            fs.heal()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    fs.judge = interrupt_main
    with pytest.raises(KeyboardInterrupt):
        put(store, {"large": "2"}, size_class=4)
    assert store.state == "open"
    assert texts_of(store) == {"large": "1"}
    put(store, {"large": "3"}, size_class=4)
    store.checkpoint()
    store.check()
    store.close()


def test_an_interrupt_while_the_allocator_is_rebuilt_leaves_the_index_writable(tmp_path, monkeypatch):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {"a": "1"})
    store.close()
    original = DurableStore._occupy_live_slots

    def interrupted(self, allocator):
        original(self, allocator)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(DurableStore, "_occupy_live_slots", interrupted)
    store = open_store(tmp_path / "index", config=SMALL)
    with pytest.raises(KeyboardInterrupt):
        begin(store)
    put(store, {"a": "2"})
    store.check()
    store.close()
    store = open_store(tmp_path / "index", config=SMALL)
    assert texts_of(store) == {"a": "2"}
    store.close()


@pytest.mark.parametrize("moment", ["data.created", "data.header_synced", "added"])
def test_an_interrupt_while_a_data_file_is_made_leaves_the_index_writable(tmp_path, monkeypatch, moment):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {"a": "1"})
    original = DataFiles._add

    def interrupted(self, data_file):
        original(self, data_file)
        raise KeyboardInterrupt

    def hook(name):
        if name == moment:
            raise KeyboardInterrupt

    if moment == "added":
        monkeypatch.setattr(DataFiles, "_add", interrupted)
    else:
        set_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        put(store, {"large": "1"}, size_class=5)
    set_hook(None)
    monkeypatch.undo()
    put(store, {"large": "2"}, size_class=5)
    store.checkpoint()
    store.check()
    store.close()
    store = open_store(tmp_path / "index", config=SMALL)
    assert store.recovery.clean
    assert texts_of(store) == {"a": "1", "large": "2"}
    store.close()


def test_an_interrupt_while_the_leader_starts_leaves_one_leader_and_no_commit_waiting(tmp_path, monkeypatch):
    store = open_store(tmp_path / "index", config=SMALL)
    original = threading.Thread.start
    started = []

    def interrupting(thread):
        original(thread)
        if thread.name == "xtree-leader":
            started.append(thread)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", interrupting)
    with pytest.raises(KeyboardInterrupt):
        put(store, {"a": "1"})
    put(store, {"a": "2"})
    assert len(started) == 1
    assert texts_of(store) == {"a": "2"}
    store.close()
    assert not started[0].is_alive()


@pytest.mark.parametrize("point", ["commit.before_append", "commit.appended", "commit.synced"])
def test_an_interrupt_of_a_commit_in_an_except_block_is_no_failure(tmp_path, point):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {"a": "1"})

    def hook(name):
        if name == point:
            set_hook(None)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        try:
            raise KeyError("something of the caller's own")
        except KeyError:
            set_hook(hook)
            put(store, {"a": "2"})
    assert store.state == "open"
    assert texts_of(store) == {"a": "2"}
    store.close()


@pytest.mark.parametrize("error", [TimeoutError("too long"), RuntimeError("enough")], ids=["timeout", "other"])
@pytest.mark.parametrize("mode", ["balanced", "eventual"])
def test_an_exception_of_a_signal_handler_is_passed_on_once_the_commit_is_done(tmp_path, mode, error):
    store = open_store(tmp_path / "index", config=small(mode))
    put(store, {"a": "1"})

    def handle(number, frame):
        raise error

    def hook(name):
        if name == "commit.appended":
            set_hook(None)
            signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        set_hook(hook)
        with pytest.raises(type(error), match=str(error)):
            put(store, {"a": "2"})
    finally:
        set_hook(None)
        signal.signal(signal.SIGALRM, before)
    assert store.state == "open"
    assert texts_of(store) == {"a": "2"}
    store.close()
