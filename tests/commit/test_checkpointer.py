"""Checkpoints while commits go on: what they hold, who waits for them, what fails, how they end.

Promises (Nothing acknowledged is lost):

- the same while checkpoints are written and logs change under several writers:
  test_a_kill_while_checkpoints_rotations_and_commits_go_on_loses_no_acknowledged_commit,
  test_a_power_loss_while_checkpoints_and_commits_go_on_loses_no_acknowledged_commit.
- a checkpoint holds the epoch it began with, whatever is committed and reused meanwhile:
  test_commits_go_on_while_a_checkpoint_is_written_and_it_holds_the_epoch_it_began_with,
  test_slots_of_a_checkpoint_are_reused_while_it_is_written_and_the_logs_make_up_for_it.
- a failing checkpoint or log made ahead loses nothing, and poisons only if a sync failed:
  test_an_error_at_any_call_of_a_background_checkpoint_poisons_only_if_a_sync_failed,
  test_rotation.py::test_a_log_that_cannot_be_made_ahead_stops_nobody_unless_a_sync_failed,
  test_rotation.py::test_an_error_at_any_call_of_a_rotation_is_clean_or_poisons_and_loses_nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import shutil
import sys
import threading

import pytest
from support.faulty_fs import PATIENCE_S, FaultyFileSystem
from support.forgetful_fs import ForgetfulFileSystem
from support.text_pages import (
    MODES,
    SMALL,
    ManualClock,
    SteppingClock,
    by_request,
    check_after_a_power_loss,
    put,
    run_and_die,
    settle,
    small,
    texts_of,
)

import xtree
from xtree.errors import StoreFailedError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.files import filenames
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem, SyncFailedError
from xtree.persistence.files.superblock import SuperblockFile
from xtree.persistence.opening import open_store

every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def no_hook():
    yield
    set_hook(None)


def coordinator(store):
    return store.stats()["coordinator"]


def reopened(path, mode="balanced"):
    store = open_store(path, config=by_request(mode))
    texts = texts_of(store)
    store.check()
    store.close()
    return texts


class Hold:
    """A hook that stops the checkpointer at a crash point until it is let go."""

    def __init__(self, point):
        self.point, self.there, self.go, self.armed = point, threading.Event(), threading.Event(), True

    def __call__(self, name):
        if name == self.point and self.armed and threading.current_thread().name == "xtree-checkpointer":
            self.armed = False
            self.there.set()
            assert self.go.wait(PATIENCE_S)


def in_thread(function, *arguments):
    """Runs a function in another thread: (thread, list that gets its result or error)."""
    outcome = []

    def run():
        try:
            outcome.append(function(*arguments))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


SECOND_HALF = tuple(f"checkpoint.{name}" for name in ("data_synced", "written", "manifest_saved", "superblock_synced"))


@every_mode
@pytest.mark.parametrize("point", SECOND_HALF)
def test_commits_go_on_while_a_checkpoint_is_written_and_it_holds_the_epoch_it_began_with(tmp_path, mode, point):
    path = tmp_path / "index"
    store = open_store(path, config=by_request(mode))
    began = put(store, {"a": "before", "large": "before"}, size_class=3)
    hold = Hold(point)
    set_hook(hold)
    thread, outcome = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    for i in range(30):
        put(store, {"a": f"{i}", f"new {i}": "x"}, size_class=i % 2)
    assert texts_of(store)["a"] == "29"
    assert thread.is_alive()
    hold.go.set()
    thread.join()
    assert outcome == [None]
    assert [entry.epoch for entry in Manifest.load(FileSystem(), str(path)).checkpoints] == [began]
    assert coordinator(store)["checkpoints"] == 1
    store.check()
    copy = tmp_path / "copy"
    if mode != "eventual":
        settle(store)  # nothing in the directory changes while it is copied
        shutil.copytree(path, copy)
        assert reopened(copy, mode)["a"] == "29"
    store.close()
    assert reopened(path, mode)["a"] == "29"


def test_slots_of_a_checkpoint_are_reused_while_it_is_written_and_the_logs_make_up_for_it(tmp_path):
    path = tmp_path / "index"

    def work(store, acknowledge):
        put(store, {f"n{i}": "old" for i in range(8)})
        hold = Hold("checkpoint.data_synced")
        set_hook(hold)
        in_thread(store.checkpoint)
        assert hold.there.wait(PATIENCE_S)
        for round_ in range(20):
            put(store, {f"n{i}": f"{round_}" for i in range(8)})
        hold.go.set()
        settle(store)
        os._exit(42)

    run_and_die(str(path), work, "nowhere", 1, by_request())
    assert reopened(path) == {f"n{i}": "19" for i in range(8)}


def test_requests_that_wait_share_a_checkpoint_that_begins_after_them(tmp_path):
    store = open_store(tmp_path / "index", config=by_request())
    put(store, {"a": "1"})
    hold = Hold("checkpoint.written")
    set_hook(hold)
    first, _ = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    epoch = put(store, {"a": "2"})
    others = [in_thread(store.checkpoint) for _ in range(5)]
    while store._coordinator.checkpointer._queue.waiting < 6:
        threading.Event().wait(0)
    hold.go.set()
    for thread, outcome in others:
        thread.join()
        assert outcome == [None]
    first.join()
    assert coordinator(store)["checkpoints"] == 2
    assert store.index_files.checkpoint_epoch == epoch
    store.close()


@pytest.mark.parametrize(("idle", "reason"), [(1000.0, "steady"), (45.0, "idle")])
def test_a_change_gets_its_checkpoint_in_time_without_another_commit(tmp_path, idle, reason):
    clock = ManualClock()
    config = small("balanced", checkpoint_interval_s=90.0, checkpoint_idle_s=idle)
    store = open_store(tmp_path / "index", config=config, clock=clock)
    put(store, {"a": "1"})
    settle(store)
    clock.advance(store, min(idle, 90.0) - 1.0)
    assert coordinator(store)["checkpoints"] == 0
    clock.advance(store, 2.0)
    stats = coordinator(store)
    assert stats["checkpoint_reason"] == reason
    assert stats["log_bytes_since_checkpoint"] == stats["commits_since_checkpoint"] == 0
    clock.advance(store, 5000.0)
    assert coordinator(store)["checkpoints"] == 1
    store.close()


def test_a_long_log_gets_its_checkpoint_and_the_counters_begin_anew(tmp_path):
    store = open_store(tmp_path / "index", config=small("balanced"))
    for i in range(80):
        put(store, {f"n{i % 7}": f"{i}", f"fresh {i}": "x"})
        settle(store)
    stats = coordinator(store)
    assert stats["checkpoints"] >= 1 and stats["checkpoint_reason"] == "burst"
    assert stats["log_bytes_since_checkpoint"] < SMALL.checkpoint_log_bytes
    assert 0 < stats["checkpoint_seconds_last"] <= stats["checkpoint_seconds_max"] <= stats["checkpoint_seconds"]
    store.close()


def test_after_recovery_the_counters_are_those_of_the_checkpoint_that_ended_it(tmp_path):
    path = tmp_path / "index"
    run_and_die(str(path), lambda store, said: ([put(store, {"a": f"{i}"}) for i in range(30)], os._exit(42)), "no", 1,
                by_request())
    store = open_store(path, config=by_request())
    stats = coordinator(store)
    assert stats["checkpoint_reason"] == "recovery" and stats["log_bytes_since_checkpoint"] == 0
    store.close()


BACKGROUND_ERRORS = (errno.EIO, errno.ENOSPC)


@pytest.mark.parametrize("number", BACKGROUND_ERRORS)
@every_mode
def test_an_error_at_any_call_of_a_background_checkpoint_poisons_only_if_a_sync_failed(tmp_path, mode, number):
    n, poisoned, failed = 0, 0, 1
    while failed:
        n += 1
        path = tmp_path / f"{n}"
        fs, told, clock = FaultyFileSystem(), [], ManualClock()
        store = open_store(path, config=by_request(mode), fs=fs, clock=clock, on_error=told.append)
        put(store, {"a": "1", "large": "1"}, size_class=3)
        put(store, {"a": "2"})
        store.checkpoint()
        put(store, {"a": "3", "b": "3"})
        left = n
        asked = []

        def judge(call, path, asked=asked):
            nonlocal left
            if threading.current_thread().name == "xtree-checkpointer":
                left -= 1
                if left == 0:
                    asked.append(call)
                    return number
            return None

        fs.judge = judge
        store._coordinator.checkpointer._demand()
        settle(store)
        failed = len(asked)
        assert (store.state == "poisoned") == (asked == ["sync"]), (n, asked)
        assert len(told) == coordinator(store)["checkpoint_failures"] == failed
        if store.state == "poisoned":
            poisoned += 1
            fs.heal()
            before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
            store.close()
            assert {name: (path / name).read_bytes() for name in before} == before
        else:
            put(store, {"b": "4"})
            assert texts_of(store)["b"] == "4"
            if failed:
                assert coordinator(store)["last_checkpoint_error"] == str(told[0])
            clock.advance(store, 2.0)  # the demand is still there
            assert coordinator(store)["checkpoints"] == 2
            store.check()
            store.close()
        found = reopened(path, mode)
        assert found in ({"a": "3", "b": "3", "large": "1"}, {"a": "3", "b": "4", "large": "1"})
        shutil.rmtree(path)
    assert n > 10 and poisoned > 3


def test_who_waits_for_a_checkpoint_that_fails_gets_its_error_and_the_next_one_works(tmp_path):
    fs, told = FaultyFileSystem(), []
    store = open_store(tmp_path / "index", config=by_request(), fs=fs, on_error=told.append)
    put(store, {"a": "1"})
    fs.fail("pwritev", ".ckpt.tmp", errno.EIO)
    with pytest.raises(OSError) as raised:
        store.checkpoint()
    assert raised.value.errno == errno.EIO and told == [raised.value]
    assert coordinator(store)["checkpoint_failures"] == 1
    store.checkpoint()
    assert coordinator(store)["checkpoints"] == 1
    store.close()


def test_the_callbacks_own_errors_change_nothing_and_it_may_close_the_store(tmp_path, caplog):
    fs = FaultyFileSystem()

    def told(error):
        with pytest.raises(RuntimeError, match="can't wait"):
            store.checkpoint()
        store.wait_for_room(0.0)
        store.close()
        raise ValueError("of the user")

    store = open_store(tmp_path / "index", config=by_request(), fs=fs, on_error=told)
    put(store, {"a": "1"})
    fs.fail("create", ".ckpt.tmp")
    with pytest.raises(OSError):
        store.checkpoint()
    store.close()  # waits for the thread that closes it
    assert store.state == "closed"
    assert "the callback for failures" in caplog.text
    assert reopened(tmp_path / "index") == {"a": "1"}


@every_mode
def test_close_waits_for_the_checkpoint_under_way_and_leaves_a_clean_index(tmp_path, mode):
    path = tmp_path / "index"
    store = open_store(path, config=by_request(mode))
    put(store, {"a": "1"})
    hold = Hold("checkpoint.written")
    set_hook(hold)
    store._coordinator.checkpointer._demand()
    assert hold.there.wait(PATIENCE_S)
    put(store, {"a": "2"})
    closing, outcome = in_thread(store.close)
    hold.go.set()
    closing.join()
    assert outcome == [None]
    assert [name for name in os.listdir(path) if filenames.parse_log(name)] == []
    store = open_store(path, config=by_request(mode))
    assert store.recovery.clean and texts_of(store) == {"a": "2"}
    store.close()


def test_a_store_that_is_poisoned_during_a_checkpoint_writes_nothing_more(tmp_path):
    path = tmp_path / "index"
    fs = FaultyFileSystem()
    store = open_store(path, config=by_request(), fs=fs)
    put(store, {"a": "1"})
    hold = Hold("checkpoint.written")
    set_hook(hold)
    waiting, outcome = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    fs.fail("sync", ".log")
    with pytest.raises(OSError):
        put(store, {"a": "2"})
    fs.heal()
    before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
    hold.go.set()
    waiting.join()
    assert isinstance(outcome[0], StoreFailedError)
    store.close()
    assert {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK} == before
    assert reopened(path) in ({"a": "1"}, {"a": "2"})


def test_on_a_full_disk_the_leader_waits_for_the_checkpoint_under_way_and_takes_its_own(tmp_path):
    class Full(FaultyFileSystem):
        """There is no room for another log, until one is deleted."""

        room, full = 0, False

        def ask(self, call, path):
            super().ask(call, path)
            if self.full and path.endswith(".log") and call == "create":
                if not self.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
                self.room -= 1

        def unlink(self, path):
            super().unlink(path)
            self.room += path.endswith(".log")

    fs = Full()
    path = tmp_path / "index"
    store = open_store(path, config=by_request(), fs=fs)
    put(store, {"a": "1"})
    hold = Hold("checkpoint.written")
    set_hook(hold)
    waiting, outcome = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    fs.full = True
    writing, written = in_thread(put, store, {"a": "2"})
    hold.go.set()
    writing.join(PATIENCE_S)
    waiting.join(PATIENCE_S)
    assert not writing.is_alive() and isinstance(written[0], int), written
    assert outcome == [None]
    assert coordinator(store)["checkpoints"] == 1 + SMALL.checkpoints_kept
    fs.full = False
    store.close()
    assert reopened(path) == {"a": "2"}


def test_the_superblocks_epochs_never_fall_while_commits_publish_beside_a_checkpoint(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=by_request("strict"))
    put(store, {"a": "0"})
    hold = Hold("checkpoint.manifest_saved")
    set_hook(hold)
    waiting, _ = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    last = [put(store, {"a": f"{i}"}) for i in range(5)][-1]
    hold.go.set()
    waiting.join()
    with contextlib.closing(SuperblockFile.open(FileSystem(), str(path), writable=False)) as file:
        assert (file.value.epoch, file.value.durable_epoch) == (last, last)
    store.close()


def test_a_new_data_file_and_a_checkpoint_see_each_other_in_the_manifest(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=by_request())
    put(store, {"a": "1"})
    hold = Hold("checkpoint.written")
    set_hook(hold)
    waiting, _ = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    put(store, {"b": "1"}, size_class=2)
    during = Manifest.load(FileSystem(), str(path))
    assert {file.size_class for file in during.data_files} == {0, 2} and during.checkpoints == ()
    hold.go.set()
    waiting.join()
    after = Manifest.load(FileSystem(), str(path))
    assert {file.size_class for file in after.data_files} == {0, 2} and len(after.checkpoints) == 1
    assert after.generation > during.generation
    store.close()


def test_garbage_collection_spares_a_log_that_is_just_being_made(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=by_request())
    put(store, {"a": "1"})
    hold = Hold("checkpoint.superblock_synced")
    at_log = threading.Event()
    made = threading.Event()

    def hook(name):
        hold(name)
        if name == "wal.filled" and threading.current_thread().name == "xtree-leader" and not made.is_set():
            at_log.set()
            assert made.wait(PATIENCE_S)

    set_hook(hook)
    waiting, outcome = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    writing, written = in_thread(put, store, {"a": "2"})
    assert at_log.wait(PATIENCE_S)
    hold.go.set()
    waiting.join()
    assert outcome == [None]
    made.set()
    writing.join()
    assert isinstance(written[0], int)
    settle(store)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert reopened(copy) == {"a": "2"}
    store.close()


def test_a_child_forked_during_a_checkpoint_holds_nothing_up(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=by_request())
    put(store, {"a": "1"})
    hold = Hold("checkpoint.written")
    set_hook(hold)
    waiting, outcome = in_thread(store.checkpoint)
    assert hold.there.wait(PATIENCE_S)
    pid = os.fork()
    if pid == 0:
        store.close()
        os._exit(0 if store.state == "forked" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    hold.go.set()
    waiting.join()
    assert outcome == [None]
    store.close()
    assert reopened(path) == {"a": "1"}


def write_and_checkpoint(store, threads, commits, acknowledge, checkpoints=True):
    """Runs threads that each count upwards under two names of their own, beside a thread that takes checkpoints."""
    ended = threading.Event()

    def write(thread):
        for i in range(commits):
            put(store, {f"{thread} a": f"{i}", f"{thread} b": f"{i}"}, size_class=(0, 1, 0, 3)[i % 4])
            acknowledge(thread, i)

    def keep_asking():
        while not ended.is_set():
            store.checkpoint()

    asking = threading.Thread(target=keep_asking)
    if checkpoints:
        asking.start()
    writers = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    ended.set()
    if checkpoints:
        asking.join()


def judge(texts, least, most=None):
    """Asserts that each thread's pair is whole, not older than what it was told, and not newer than what it began."""
    for thread, said in enumerate(least):
        found = {name: int(text) for name, text in texts.items() if name.startswith(f"{thread} ")}
        assert len(set(found.values())) <= 1, found
        last = found.get(f"{thread} a", -1)
        assert said <= last, (thread, said, last)
        if most is not None:
            assert last <= most[thread] + 1, (thread, last, most)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")
@pytest.mark.parametrize("mode", ["strict", "balanced"])
@pytest.mark.parametrize("seed", [1, secrets.randbits(32)], ids=["one", "random"])
def test_a_power_loss_while_checkpoints_and_commits_go_on_loses_no_acknowledged_commit(tmp_path, mode, seed):
    print("seed", seed)
    path = tmp_path / "index"
    rng, fs = random.Random(seed), ForgetfulFileSystem(path)
    said, left = [-1, -1, -1], []

    def lose(point):
        with fs.busy:
            if rng.random() < 0.05:
                target = tmp_path / f"left-{len(left)}"
                before = list(said)
                fs.power_loss(target, rng)
                left.append((target, before, list(said), point))

    store = open_store(path, config=small(mode), fs=fs)
    set_hook(lose)
    write_and_checkpoint(store, 3, 40, lambda thread, i: said.__setitem__(thread, i))
    set_hook(None)
    assert coordinator(store)["checkpoints"] >= 2
    store.close()
    assert len(left) > 5
    for target, before, after, point in left:
        if not (target / filenames.SUPERBLOCK).exists():
            continue
        store = open_store(target, config=small(mode))
        judge(texts_of(store), before, after)
        check_after_a_power_loss(store, store)
        put(store, {"more": point})
        store.close()
        assert reopened(target, mode)["more"] == point
        shutil.rmtree(target)


@pytest.mark.slow
@every_mode
def test_a_kill_while_checkpoints_rotations_and_commits_go_on_loses_no_acknowledged_commit(tmp_path, mode):
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    for round_ in range(10):
        path = tmp_path / f"{round_}"
        acknowledged: list[int] = []

        def work(store, acknowledge, asking=round_ % 2 == 0):
            write_and_checkpoint(store, 3, 1 << 14, lambda thread, i: acknowledge(thread << 24 | i), asking)

        _, crashed = run_and_die(
            str(path), work, None, rng.randint(100, 2500), small(mode), SteppingClock(0.02), acknowledged
        )
        assert crashed
        least = [-1, -1, -1]
        for one in acknowledged:
            least[one >> 24] = one & 0xFFFFFF
        judge(reopened(path, mode), least, least)
        shutil.rmtree(path)


def test_a_runtime_tells_its_callback_of_a_checkpoint_that_failed(tmp_path, monkeypatch):
    told = []
    with pytest.raises(TypeError, match="on_error"):
        xtree.Runtime(tmp_path / "index", on_error="no function")
    with xtree.open(tmp_path / "index", dims=2, on_error=told.append) as tree:
        tree.insert(1, [0, 0, 1, 1])
        with monkeypatch.context() as failing:
            failing.setattr(FileSystem, "replace", lambda self, source, target: os.replace(source, source + "/none"))
            with pytest.raises(OSError):
                tree.runtime.checkpoint()
        assert len(told) == 1 and isinstance(told[0], OSError)
        assert tree.runtime.stats()["coordinator"]["checkpoint_failures"] == 1
        tree.runtime.checkpoint()
        assert tree.runtime.stats()["coordinator"]["checkpoint_reason"] == "request"


def test_what_is_to_happen_between_two_groups_gives_its_result_or_error_and_a_failed_sync_in_it_poisons(tmp_path):
    store = open_store(tmp_path / "index", config=by_request())
    leader = store._coordinator
    assert leader.between_groups(lambda: threading.current_thread().name) == "xtree-leader"
    assert leader.between_groups(lambda: leader.between_groups(lambda: "inside")) == "inside"
    with pytest.raises(ZeroDivisionError):
        leader.between_groups(lambda: 1 // 0)
    put(store, {"a": "1"})

    def fail():
        raise SyncFailedError(errno.EIO, "lost", "file")

    with pytest.raises(SyncFailedError):
        leader.between_groups(fail)
    assert store.state == "poisoned"
    with pytest.raises(StoreFailedError):
        leader.between_groups(lambda: None)
    store.close()
