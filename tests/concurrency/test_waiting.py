"""Who waits for whom: nobody for a large flush, no reader for a lock, a queued commit for its outcome.

Promises (One writer, many readers):

- statistics walk no list that a writer may move:
  test_statistics_wait_for_who_changes_the_slots_and_never_for_their_own_thread.
- all trees of a commit change together for every reader:
  test_all_names_of_a_commit_change_together_for_every_reader.
- an open transaction keeps what it builds on; a queued one refuses everything, and an interrupt waits for its
  outcome:
  test_an_open_write_set_pins_what_it_builds_on, test_a_queued_write_set_refuses_everything_and_ends_committed,
  test_a_transaction_that_is_being_committed_refuses_reads_and_writes,
  test_an_interrupt_while_queued_is_raised_once_the_outcome_is_known.
- queries wait for no lock of a writer, and nobody for the flush of a large transaction:
  test_queries_take_no_lock_that_a_writer_holds_while_a_file_grows,
  test_nobody_waits_for_the_flush_of_a_large_transaction.
- a writer beside one that never pauses gets its turn, in memory and in every mode:
  test_a_writer_gets_its_turn_beside_one_that_never_pauses.
- an index on read-only media is read, after a kill too:
  test_an_index_on_read_only_media_is_read.
"""

from __future__ import annotations

import errno
import os
import signal
import threading

import numpy as np
import pytest
from support.faulty_fs import PATIENCE_S, FaultyFileSystem, queued
from support.text_pages import KIND, SMALL, put, run_and_die, small, texts_of

import xtree
from xtree.errors import ReadOnlyError, TransactionError
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin

MOST_AT_TURN = 2  # of commit_queue.pyx


class HoldingFileSystem(FaultyFileSystem):
    """Makes calls of one kind, on files with one ending, wait until they are let go, while `hold` is set."""

    def __init__(self, call: str, ending: str) -> None:
        super().__init__()
        self.call, self.ending = call, ending
        self.hold, self.held, self.let_go = False, threading.Event(), threading.Event()

    def ask(self, call, path):
        if self.hold and call == self.call and path.endswith(self.ending):
            self.held.set()
            assert self.let_go.wait(PATIENCE_S)
        super().ask(call, path)


def started(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


@pytest.mark.parametrize("mode", ["strict", "balanced"])
def test_an_interrupt_while_queued_is_raised_once_the_outcome_is_known(tmp_path, mode):
    fs = HoldingFileSystem("sync", ".log")
    store = open_store(tmp_path / "index", config=small(mode), fs=fs)
    put(store, {"a": "1"})
    fs.hold = True
    arrived = threading.Event()

    def interrupt() -> None:
        assert fs.held.wait(PATIENCE_S)
        for _ in range(20 * PATIENCE_S):  # one that comes just before the thread begins to wait is seen only afterwards
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            if arrived.wait(0.05):
                break
        assert arrived.is_set()
        assert texts_of(store) == {"a": "1"}
        fs.let_go.set()

    def handler(number, frame) -> None:
        arrived.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    helper = started(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            put(store, {"a": "2"})
    finally:
        signal.signal(signal.SIGINT, before)
    assert fs.let_go.is_set()
    assert texts_of(store) == {"a": "2"}
    assert ended(helper)
    store.close()


def test_a_queued_write_set_refuses_everything_and_ends_committed(tmp_path):
    fs = HoldingFileSystem("sync", ".log")
    store = open_store(tmp_path / "index", config=SMALL, fs=fs)
    put(store, {"a": "1"})
    write_set = begin(store)
    node = write_set.add_page(KIND, 0, b"queued")
    fs.hold = True
    committing = started(write_set.commit, {"b": CatalogEntry("b", "text", node, b"")})
    assert fs.held.wait(PATIENCE_S)
    for refused in (
        write_set.abort,
        lambda: write_set.add_page(KIND, 0, b"x"),
        lambda: write_set.replace_page(node, b"x"),
        lambda: write_set.remove_page(node),
        lambda: write_set.commit({}),
    ):
        with pytest.raises(TransactionError, match="queued"):
            refused()
    fs.let_go.set()
    assert ended(committing)
    assert write_set.status == "committed"
    assert texts_of(store) == {"a": "1", "b": "queued"}
    store.check()
    store.close()


def test_a_transaction_that_is_being_committed_refuses_reads_and_writes(tmp_path, monkeypatch):
    held, let_go = threading.Event(), threading.Event()

    def hold(self) -> None:
        held.set()
        assert let_go.wait(PATIENCE_S)
        os.fdatasync(self.fileno())

    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(1, (0.0, 0.0))
        tx = tree.transaction()
        tx.__enter__()
        tx.insert(2, (0.0, 0.0))
        monkeypatch.setattr(xtree.persistence.files.platform_fs.File, "sync", hold)
        committing = started(tx.__exit__, None, None, None)
        assert held.wait(PATIENCE_S)
        for refused, arguments in ((tx.insert, (3, (0.0, 0.0))), (tx.query, ((0.0, 0.0),)), (tx.items, ())):
            with pytest.raises(TransactionError):
                refused(*arguments)
        assert tree.query((0.0, 0.0)).tolist() == [1]
        let_go.set()
        assert ended(committing)
        monkeypatch.undo()
        assert sorted(tree.query((0.0, 0.0)).tolist()) == [1, 2]


@pytest.mark.parametrize("mode", ["balanced", "eventual"])  # in strict, the others flush pages too
def test_nobody_waits_for_the_flush_of_a_large_transaction(tmp_path, mode):
    fs = HoldingFileSystem("sync", ".xd")
    store = open_store(tmp_path / "index", config=small(mode), fs=fs)
    put(store, {"a": "1"})
    large = begin(store)
    changes = {f"n{i}": CatalogEntry(f"n{i}", "text", large.add_page(KIND, 0, b"x"), b"") for i in range(40)}
    fs.hold = True
    flushing = started(large.commit, changes)
    assert fs.held.wait(PATIENCE_S)
    put(store, {"a": "2"})
    assert texts_of(store) == {"a": "2"}
    fs.hold = False
    fs.let_go.set()
    assert ended(flushing)
    assert len(texts_of(store)) == 41
    store.close()


def test_many_that_commit_without_waiting_for_a_sync_are_carried_together(tmp_path):
    fs = HoldingFileSystem("pwritev", ".log")
    store = open_store(tmp_path / "index", config=small("eventual"), fs=fs)
    put(store, {"a": "1"})
    before = store.stats()["coordinator"]
    fs.hold = True
    threads = [started(put, store, {"first": "1"})]
    assert fs.held.wait(PATIENCE_S)
    threads += [started(put, store, {f"n{i}": "1"}) for i in range(8)]
    queued(store, 1 + 8 - MOST_AT_TURN)
    fs.hold = False
    fs.let_go.set()
    assert all(ended(thread) for thread in threads)
    after = store.stats()["coordinator"]
    assert after["commits"] - before["commits"] == 9
    assert after["groups"] - before["groups"] <= 2 + MOST_AT_TURN
    assert texts_of(store) == {"a": "1", "first": "1", **{f"n{i}": "1" for i in range(8)}}
    store.close()


def test_queries_take_no_lock_that_a_writer_holds_while_a_file_grows(tmp_path, monkeypatch):
    held, let_go = threading.Event(), threading.Event()
    with xtree.open(tmp_path / "index", dims=2) as tree:
        boxes = np.random.default_rng(1).random((300, 2))
        tree.insert_many(np.arange(300), boxes)
        reserve = xtree.persistence.files.platform_fs.File.reserve

        def hold(self, n: int) -> None:
            if self.path.endswith(".xd"):
                held.set()
                assert let_go.wait(PATIENCE_S)
            reserve(self, n)

        monkeypatch.setattr(xtree.persistence.files.platform_fs.File, "reserve", hold)
        more = np.random.default_rng(2).random((20_000, 2))
        writing = started(tree.insert_many, np.arange(20_000), more)
        assert held.wait(PATIENCE_S)
        everything = (0.0, 0.0, 1.0, 1.0)
        answers: list[object] = []

        def read() -> None:
            answers.extend([len(tree.query(everything)), tree.count(everything), len(tree.nearest((0.5, 0.5), k=7))])
            with tree.snapshot() as snapshot:
                answers.append(len(snapshot.items()[0]))

        reading = started(read)
        assert ended(reading)
        assert answers == [300, 300, 7, 300]
        let_go.set()
        assert ended(writing)
        assert len(tree) == 20_300


def test_statistics_wait_for_who_changes_the_slots_and_never_for_their_own_thread(tmp_path, monkeypatch):
    """The list of windows with slots may move when it grows, so nobody walks it without the store's lock."""
    store = open_store(tmp_path / "index", config=small("balanced"))
    put(store, {"a": "1"})
    reserve = xtree.persistence.files.platform_fs.File.reserve
    asking: list[threading.Thread] = []
    outcomes: list[object] = []

    def ask(self, n: int) -> None:
        if self.path.endswith(".xd") and not asking:
            outcomes.append(store.stats()["allocator"])  # as a finalizer or a signal handler would
            asking.append(started(lambda: outcomes.append(store.stats()["allocator"])))
            asking[0].join(0.3)
            outcomes.append(asking[0].is_alive())
        reserve(self, n)

    monkeypatch.setattr(xtree.persistence.files.platform_fs.File, "reserve", ask)
    put(store, {"b": "2"}, size_class=3)
    assert ended(asking[0])
    store.close()
    before, waits, after = outcomes
    assert waits is True
    assert before[3]["windows"] == 0 and after[3]["windows"] == 1


def test_all_names_of_a_commit_change_together_for_every_reader(tmp_path):
    store = open_store(tmp_path / "index", config=small("eventual"))
    names = ("a", "b", "c")
    put(store, dict.fromkeys(names, "0"))
    apart: list[dict[str, str]] = []
    done = threading.Event()
    looks = [0]

    def look() -> None:
        while not done.is_set():
            with store.read() as published:
                texts = texts_of(store, published)
            looks[0] += 1
            if len(set(texts.values())) != 1:
                apart.append(texts)

    readers = [started(look) for _ in range(3)]
    i = 0
    while i < 300 or looks[0] < 300:
        i += 1
        put(store, dict.fromkeys(names, str(i)))
    done.set()
    assert all(ended(reader) for reader in readers)
    assert not apart
    store.close()


def test_an_open_write_set_pins_what_it_builds_on(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {"a": "1"})
    write_set = begin(store)
    root = write_set.base.catalog.get("a").root
    for i in range(5):
        put(store, {"a": f"later {i}"})
    store.reclaim()
    assert store.read_page(root)[:1] == b"1"
    write_set.abort()
    assert store.reclaim() > 0
    with pytest.raises(xtree.CorruptionError, match="isn't there"):
        store.read_page(root)
    store.close()


class ReadOnlyMedia(FaultyFileSystem):
    """A file system mounted read-only: every call that would change it fails, also for the lock file."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = lambda call, path: errno.EROFS

    def open(self, path, mode):
        if mode != "r":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return FileSystem.open(self, path, mode)


@pytest.mark.parametrize("mode", ["memory", "strict", "balanced", "eventual"])
def test_a_writer_gets_its_turn_beside_one_that_never_pauses(tmp_path, mode):
    with xtree.XTree(dims=1) if mode == "memory" else xtree.open(tmp_path / "idx", dims=1, durability=mode) as tree:
        done = threading.Event()
        counts = [0, 0]

        def write(which: int) -> None:
            while not done.is_set():
                tree.insert(2 * counts[which] + which, [0.0, 1.0])
                counts[which] += 1
                if which and counts[which] == 20:
                    done.set()

        threads = [started(write, which) for which in range(2)]
        try:
            assert done.wait(PATIENCE_S)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert len(tree) == sum(counts)


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_an_index_on_read_only_media_is_read(tmp_path, killed):
    path = tmp_path / "index"

    def work(store, acknowledge):
        put(store, {"a": "1", "b": "2"})
        if killed:
            os._exit(42)

    run_and_die(str(path), work, "nowhere", 1)
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    store = open_store(path, mode="r", config=SMALL, fs=ReadOnlyMedia())
    assert texts_of(store) == {"a": "1", "b": "2"}
    store.check()
    with pytest.raises(ReadOnlyError):
        begin(store)
    store.close()
    assert before == {name: (path / name).read_bytes() for name in os.listdir(path)}
    with pytest.raises(OSError):
        open_store(path, mode="r+", config=SMALL, fs=ReadOnlyMedia())
