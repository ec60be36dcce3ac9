"""Errors of the operating system: clean before the first byte of a frame, poison after it, and never a loss.

Promises (Nothing acknowledged is lost):

- a commit that failed before its frame is never there; after that it is whole or not at all:
  test_an_error_at_any_call_is_clean_or_poisons_and_never_loses_a_commit.
- a failed sync or append poisons the store:
  test_a_failed_sync_of_the_log_poisons, test_a_failed_append_poisons.
- a write that isn't a sync, and that only follows a commit, poisons nothing:
  test_a_failed_write_of_the_superblock_behind_eventual_commits_costs_nothing.
- a full disk is a clean error, and the way back stays open:
  test_no_room_for_pages_fails_the_write_and_leaves_the_index_usable,
  test_disk_reserve.py::test_an_index_on_a_full_disk_is_opened_read_deleted_from_and_checkpointed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import time
import weakref

import pytest
from support.faulty_fs import PATIENCE_S, FaultyFileSystem, queued
from support.text_pages import MODES, SMALL, ManualClock, SteppingClock, by_request, put, settle, small, texts_of

import xtree
from xtree.errors import StoreFailedError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.files import filenames
from xtree.persistence.files.data_files import DataFiles
from xtree.persistence.files.superblock import SuperblockFile
from xtree.persistence.opening import open_store
from xtree.persistence.store.write_set import begin


@pytest.fixture
def fs():
    return FaultyFileSystem()


@pytest.fixture
def store(tmp_path, fs):
    store = open_store(tmp_path / "index", config=SMALL, fs=fs)
    put(store, {"a": "1"})
    yield store
    fs.heal()
    store.close()


def reopened_texts(path) -> dict[str, str]:
    store = open_store(path, config=SMALL)
    store.check()
    texts = texts_of(store)
    put(store, {"later": "commit"})
    store.close()
    return texts


def directory_bytes(path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in os.listdir(path) if name != "LOCK"}


def test_a_failed_sync_of_the_log_poisons(store, fs, tmp_path):
    fs.fail("sync", ".log")
    with pytest.raises(OSError) as raised:
        put(store, {"a": "2"})
    assert raised.value.errno == errno.EIO
    assert store.state == "poisoned"
    with pytest.raises(StoreFailedError, match="reopen"):
        begin(store)
    assert texts_of(store) == {"a": "1"}
    before = directory_bytes(tmp_path / "index")
    store.close()
    assert directory_bytes(tmp_path / "index") == before
    assert reopened_texts(tmp_path / "index") in ({"a": "1"}, {"a": "2"})


def test_a_failed_write_of_the_superblock_behind_eventual_commits_costs_nothing(tmp_path, fs):
    clock = ManualClock()
    store = open_store(tmp_path / "index", config=small("eventual"), fs=fs, clock=clock)
    put(store, {"a": "1"})
    fs.fail("pwrite", filenames.SUPERBLOCK)
    clock.advance(store, 10.0)
    assert store.state == "open" and store.stats()["durable_lag"] == 0
    put(store, {"a": "2"})
    clock.advance(store, 10.0)
    assert SuperblockFile.open(fs, store.path, writable=False).value.durable_epoch == store.published.epoch
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "2"}


def test_a_failed_append_poisons(store, fs, tmp_path):
    fs.fail("pwritev", ".log")
    with pytest.raises(OSError):
        put(store, {"a": "2"})
    assert store.state == "poisoned"
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "1"}


def test_a_failed_sync_of_flushed_pages_poisons_and_the_commit_never_happened(store, fs, tmp_path):
    put(store, {"large": "1"}, size_class=4)
    fs.fail("sync", ".xd")
    with pytest.raises(OSError):
        put(store, {"large": "2"}, size_class=4)
    assert store.state == "poisoned"
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "1", "large": "1"}


def test_no_room_in_the_log_fails_the_commit_cleanly(store, fs):
    fs.judge = lambda call, path: errno.ENOSPC if call in ("reserve", "write_zeros") and path.endswith(".log") else None
    done = 0
    with pytest.raises(OSError) as raised:
        for i in range(1000):
            put(store, {"a": f"{i}"})
            done = i
    assert raised.value.errno == errno.ENOSPC
    assert store.state == "open"
    assert texts_of(store) == {"a": f"{done}"}
    fs.heal()
    put(store, {"a": "room again"})
    assert texts_of(store) == {"a": "room again"}


def test_no_room_for_pages_fails_the_write_and_leaves_the_index_usable(store, fs):
    fs.judge = lambda call, path: errno.ENOSPC if call == "reserve" and path.endswith(".xd") else None
    write_set = begin(store)
    with pytest.raises(OSError) as raised:
        for _ in range(1000):
            write_set.add_page(200, 0, b"x")
    assert raised.value.errno == errno.ENOSPC
    write_set.abort()
    put(store, {"a": "in a free slot"})
    assert texts_of(store) == {"a": "in a free slot"}


@pytest.mark.parametrize(("call", "ending"), [("create", ".ckpt.tmp"), ("pwritev", ".ckpt.tmp"), ("replace", ".ckpt")])
def test_a_checkpoint_that_fails_loses_nothing(store, fs, tmp_path, call, ending):
    fs.fail(call, ending)
    put(store, {"b": "before"})
    with pytest.raises(OSError):
        store.checkpoint()
    assert store.state == "open"
    put(store, {"b": "after"})
    store.checkpoint()
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "1", "b": "after"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_error_at_any_call_is_clean_or_poisons_and_never_loses_a_commit(tmp_path, mode):
    n = 0
    outcomes = set()
    while True:
        n += 1
        path = tmp_path / f"{n}"
        fs = FaultyFileSystem()
        texts = put_until_it_fails(path, fs, n, mode)
        if texts is None:
            break
        outcomes.add(len(texts))
        found = reopened_texts(path) if (path / "superblock.bin").exists() else {}
        assert found in texts, (n, found, texts)
    assert n > 100
    assert len(outcomes) == 2


def put_until_it_fails(path, fs: FaultyFileSystem, n: int, mode: str) -> list[dict[str, str]] | None:
    """Runs a short history whose n-th call fails. Returns the texts that may be there then, None if nothing failed."""
    texts: dict[str, str] = {}
    fs.fail_nth(n)
    failed = False
    try:
        store = open_store(path, config=small(mode), fs=fs, clock=SteppingClock(0.02))
    except OSError:
        return [{}]
    for i in range(12):
        change = {f"n{i % 5}": f"text {i}"}
        try:
            put(store, change, size_class=(0, 0, 3, 1)[i % 4])
        except (OSError, StoreFailedError):
            failed = True
            assert store.state in ("open", "poisoned")
            if store.state == "poisoned":
                store.close()
                return [texts, {**texts, **change}]
            assert texts_of(store) == texts
        else:
            texts = {**texts, **change}
        if i == 6:
            try:
                store.checkpoint()
            except (OSError, StoreFailedError):
                failed = True
                if store.state == "poisoned":
                    break
    try:
        store.close()
    except (OSError, StoreFailedError):
        failed = True
    return [texts] if failed or fs.calls >= n else None


@pytest.mark.parametrize("ending", [".xd", "index"])
def test_a_failed_sync_of_a_new_data_file_or_its_name_poisons(store, fs, tmp_path, ending):
    write_set = begin(store)
    fs.fail("sync", ending)
    with pytest.raises(OSError):
        write_set.add_page(200, 5, b"x")
    write_set.abort()
    assert store.state == "poisoned"
    with pytest.raises(StoreFailedError):
        store.checkpoint()
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "1"}


def test_no_memory_for_a_new_windows_slots_leaves_an_index_that_closes_cleanly(store, monkeypatch, tmp_path):
    original = DataFiles.new_window

    def fail_once(self, size_class, spends_reserve):
        original(self, size_class, spends_reserve)
        monkeypatch.undo()
        raise MemoryError("none for the slots")

    monkeypatch.setattr(DataFiles, "new_window", fail_once)
    write_set = begin(store)
    with pytest.raises(MemoryError):
        write_set.add_page(200, 5, b"x")
    write_set.abort()
    put(store, {"b": "2"}, size_class=5)
    store.check()
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "1", "b": "2"}


@pytest.mark.parametrize("mode", MODES)
def test_no_memory_behind_the_publication_is_no_failure_of_the_commit(tmp_path, mode):
    store = open_store(tmp_path / "index", config=small(mode))
    put(store, {"a": "1"})
    with raising("commit.published", MemoryError):
        assert put(store, {"a": "2"}) == store.published.epoch
    assert store.state == "open" and texts_of(store) == {"a": "2"}
    put(store, {"a": "3"})
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "3"}


@pytest.mark.parametrize("mode", MODES)
def test_no_memory_between_a_frame_and_its_publication_poisons(tmp_path, mode):
    store = open_store(tmp_path / "index", config=small(mode))
    put(store, {"a": "1"})
    with raising("commit.appended", MemoryError), pytest.raises(MemoryError):
        put(store, {"a": "2"})
    assert store.state == "poisoned" and texts_of(store) == {"a": "1"}
    store.close()
    assert reopened_texts(tmp_path / "index") in ({"a": "1"}, {"a": "2"})


def test_a_leader_without_memory_for_its_flight_fails_the_commit_cleanly(tmp_path):
    store = open_store(tmp_path / "index", config=small("strict"))
    put(store, {"a": "1"})
    outcome = []

    def commit():
        try:
            put(store, {"a": "2"})
        except MemoryError as error:
            outcome.append(error)

    thread = threading.Thread(target=commit)
    with contextlib.ExitStack() as stack:
        with store._coordinator.turn_lock:
            thread.start()
            queued(store, 1)
            for _ in range(store.flights.stats()["slots"]):  # take all slots that are there
                stack.enter_context(store.in_flight())
            fail_allocation(1)
        thread.join(PATIENCE_S)
        assert fail_allocation(0) == 0
    assert len(outcome) == 1
    assert store.state == "open" and texts_of(store) == {"a": "1"}
    store.check()
    put(store, {"a": "3"})
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "3"}


class ForgetfulClock(SteppingClock):
    """A clock that raises MemoryError where the thread named `thread` waits for something to do."""

    thread = ""

    def get(self, items, timeout):
        found = super().get(items, timeout)
        if threading.current_thread().name == self.thread:
            self.thread = ""
            raise MemoryError
        return found


def test_a_leader_that_finds_no_memory_between_two_groups_poisons_and_keeps_nobody_waiting(tmp_path):
    clock = ForgetfulClock(0.01)
    store = open_store(tmp_path / "index", config=small("strict"), clock=clock)
    put(store, {"a": "1"})
    clock.thread = "xtree-leader"
    store._coordinator._queue.wake()
    while clock.thread:
        time.sleep(0)
    with pytest.raises(StoreFailedError):
        put(store, {"a": "2"})
        put(store, {"a": "3"})
    store.close()
    assert reopened_texts(tmp_path / "index") in ({"a": "1"}, {"a": "2"})


def test_a_checkpointer_that_finds_no_memory_goes_on(tmp_path):
    clock = ForgetfulClock(0.01)
    store = open_store(tmp_path / "index", config=SMALL, clock=clock)
    put(store, {"a": "1"})
    settle(store)
    clock.thread = "xtree-checkpointer"
    store._coordinator.checkpointer._queue.wake()
    while clock.thread:
        time.sleep(0)
    put(store, {"a": "2"})
    store.checkpoint()
    store.close()
    assert reopened_texts(tmp_path / "index") == {"a": "2"}


def test_a_log_made_ahead_is_used_though_an_error_follows_its_listing(tmp_path):
    store = open_store(tmp_path / "index", config=by_request(wal_fill_bytes=4096, wal_fill_limit_bytes=16384))
    with raising("log.spare_listed", MemoryError):
        put(store, {"a": "0"})
        settle(store)
    assert store.index_files.spare is not None
    for i in range(20):
        put(store, {"a": f"{i}"})
    settle(store)
    assert store.stats()["coordinator"]["logs_rotated"] > 0
    store.close()
    assert not [name for name in os.listdir(tmp_path / "index") if name.endswith(".log")]


def test_an_index_that_could_not_be_closed_well_is_forgotten(tmp_path):
    runtime = xtree.Runtime(tmp_path / "index")
    runtime.tree("a", 2).insert(1, (0, 0))
    store = weakref.ref(runtime._store)
    with raising("checkpoint.copied", MemoryError), pytest.raises(MemoryError):
        runtime.close()
    assert runtime.closed
    del runtime
    deadline = time.monotonic() + PATIENCE_S
    while store() is not None and time.monotonic() < deadline:  # a thread that ends may hold it for a moment
        gc.collect()
    assert store() is None


@contextlib.contextmanager
def raising(point: str, kind: type[BaseException]):
    """Makes a named point raise when it is first reached in the block."""

    def hook(name):
        if name == point:
            set_hook(None)
            raise kind(name)

    set_hook(hook)
    try:
        yield
    finally:
        set_hook(None)


def test_a_directory_made_by_another_process_in_the_same_moment_is_opened(tmp_path):
    class Rival(FaultyFileSystem):
        def mkdir(self, path):
            super().mkdir(path)
            super().mkdir(path)

    store = open_store(tmp_path / "new", config=SMALL, fs=Rival())
    put(store, {"a": "1"})
    store.close()
