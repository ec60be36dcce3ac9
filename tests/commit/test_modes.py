"""Durability modes: what each promises, at every crash point, after every power loss, from one mode to another.

Promises (Nothing acknowledged is lost):

- in each durability mode, what it promises to a killed process at every named step, and after a power loss:
  test_every_crash_point_keeps_what_its_mode_promises_to_a_killed_process,
  test_what_a_power_loss_leaves_is_a_prefix_as_long_as_its_mode_promises.
- a directory changes its mode at any open:
  test_commits_in_changing_modes_survive_kill_after_kill.
- `strict`: a crash after the sync of the log and before the superblock doesn't expose the epoch:
  test_superblock_order, test_an_unreadable_superblock_copy_exposes_the_next_strict_group_and_no_more.
- `eventual`: a lost frame before a kept one ends the log; one that was synced is damage:
  test_a_frame_lost_before_one_that_was_kept_ends_the_log_in_eventual,
  test_a_frame_that_was_synced_is_damage_in_eventual.
- `eventual`: epochs are durable, and slots reused, only after the sync in the background:
  test_an_eventual_commit_is_durable_after_the_interval_and_its_slots_come_back_then.
- what queues during a sync shares the next one; one sync a window:
  test_group_commit, test_with_a_window_there_is_one_sync_a_window.
"""

import contextlib
import dataclasses
import os
import random
import secrets
import shutil
import sys
import threading

import pytest
from support.faulty_fs import PATIENCE_S, CountingFileSystem, FaultyFileSystem, HeldFileSystem, queued
from support.forgetful_fs import ForgetfulFileSystem
from support.text_pages import (
    MODES,
    ONE_LONG_LOG,
    SMALL,
    SteppingClock,
    after,
    by_request,
    check_after_a_power_loss,
    history,
    put,
    random_changes,
    run_and_die,
    small,
    texts_of,
    write_steps,
)

from xtree.errors import CorruptionError, StoreFailedError
from xtree.persistence.base.clock import Clock
from xtree.persistence.base.crash_points import CRASH_POINTS, set_hook
from xtree.persistence.files import filenames
from xtree.persistence.files.frame import PAYLOAD_NONE, PAYLOAD_WHOLE
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import MODE_NAMES, SuperblockFile
from xtree.persistence.files.wal_reader import read_log
from xtree.persistence.opening import open_store

STEPS = 32
every_mode = pytest.mark.parametrize("mode", MODES)


def work(store, acknowledge):
    write_steps(store, seed=1, first=0, steps=STEPS, acknowledge=acknowledge)


def clock():
    """A clock on which every look takes a fifth of the interval between eventual's syncs."""
    return SteppingClock(SMALL.sync_interval_ms / 5000)


def reopened(path, mode):
    """The texts after recovery, which is checked; another open finds the same."""
    store = open_store(path, config=small(mode))
    texts = texts_of(store)
    store.check()
    store.close()
    store = open_store(path, mode="r", config=small(mode))
    assert store.recovery.clean and texts_of(store) == texts
    store.close()
    return texts


def frames(path):
    """Every group frame in the logs of a directory, in order, without logs that aren't listed yet."""
    manifest = Manifest.load(FileSystem(), str(path))
    found = []
    for entry in manifest.logs:
        with contextlib.closing(
            read_log(FileSystem(), str(path / filenames.log_name(entry.number)), manifest.uuid, entry.number)
        ) as reader:
            found += list(reader)
    return found


def overwrite(name, offset, data):
    with open(name, "r+b") as file:
        file.seek(offset)
        file.write(data)


def superblock_epochs(path):
    """The epoch in each copy of the superblock."""
    data = (path / filenames.SUPERBLOCK).read_bytes()
    return [int.from_bytes(data[at + 40 : at + 48], "little") for at in (0, 4096)]


# Killed at every named point.


@pytest.mark.slow
@every_mode
def test_every_crash_point_keeps_what_its_mode_promises_to_a_killed_process(tmp_path, mode):
    counts: dict[str, int] = {}
    set_hook(lambda name: counts.__setitem__(name, counts.get(name, 0) + 1))
    try:
        store = open_store(tmp_path / "count", config=small(mode), clock=clock())
        work(store, lambda step: None)
        store.close()
    finally:
        set_hook(None)
    assert set(counts) <= set(CRASH_POINTS)
    assert ("commit.superblock_synced" in counts) == (mode == "strict")
    assert ("commit.synced" in counts) == (mode != "eventual")
    assert ("sync.synced" in counts) == (mode == "eventual")
    states = history(1, STEPS)
    for point, times in counts.items():
        for nth in sorted({1, (times + 1) // 2, times}):
            path = tmp_path / f"{point}-{nth}"
            acknowledged, crashed = run_and_die(str(path), work, point, nth, small(mode), clock())
            assert crashed or nth > times // 2, (point, nth)  # a thread in the background may have been faster
            other = MODES[(MODES.index(mode) + nth) % 3]
            assert reopened(path, other) in states[acknowledged + 1 : acknowledged + 3], (point, nth, acknowledged)
            shutil.rmtree(path)


@every_mode
def test_commits_in_changing_modes_survive_kill_after_kill(tmp_path, mode):
    path, states, done = tmp_path / "index", history(5, 100), 0
    for turn, nth in enumerate((140, 800, 60, 500, 333)):
        first = done

        def more(store, acknowledge, first=first):
            write_steps(store, seed=5, first=first, steps=15, acknowledge=acknowledge)

        now = MODES[(MODES.index(mode) + turn) % 3]
        acknowledged, _ = run_and_die(str(path), more, None, nth, small(now), clock())
        done = max(done, acknowledged + 1)
        texts = reopened(path, MODES[turn % 3])
        assert texts in states[done : done + 2], (turn, now)
        done += texts != states[done]


@every_mode
def test_every_frame_carries_its_mode(tmp_path, mode):
    path = tmp_path / "index"

    def some(store, acknowledge):
        write_steps(store, seed=2, first=0, steps=8, acknowledge=acknowledge)
        os._exit(42)

    run_and_die(str(path), some, "nowhere", 1, small(mode))
    found = frames(path)
    assert [frame.last_epoch for frame in found] == list(range(1, 9))
    assert {MODE_NAMES[frame.mode] for frame in found} == {mode}
    superblock = SuperblockFile.open(FileSystem(), str(path), writable=False)
    assert superblock.value.mode == mode
    superblock.close()


# Power loss.


class Losses:
    """Keeps, at random crash points, what a power loss would leave, and the states between which that must lie."""

    def __init__(self, path, mode, rng, share):
        self.fs, self.path, self.mode, self.rng, self.share = ForgetfulFileSystem(path), path, mode, rng, share
        self.store, self.promised, self.step_of_epoch, self.durable, self.left = None, 0, {0: 0}, 0, []

    def __call__(self, point):
        with self.fs.busy:
            self.lose(point)

    def lose(self, point):
        if self.rng.random() < self.share:
            promised = self.promised
            least = promised
            if self.mode == "eventual":
                if self.store is not None:
                    self.durable = max(self.durable, self.store._coordinator.durable_epoch)
                least = max(step for epoch, step in self.step_of_epoch.copy().items() if epoch <= self.durable)
            target = self.path.with_name(f"{self.path.name}-{len(self.left)}")
            self.fs.power_loss(target, self.rng)
            self.left.append((target, point, least, promised))

    def run(self, seed, steps, sessions):
        set_hook(self)
        try:
            for start in range(0, steps, steps // sessions):
                config = small(self.mode)
                self.store = open_store(self.path, config=config, fs=self.fs, clock=clock())
                for step in range(start, start + steps // sessions):
                    rng = random.Random(f"{seed}/{step}")
                    epoch = put(self.store, random_changes(rng, step), size_class=rng.choice((0, 0, 0, 1, 3)))
                    self.step_of_epoch[epoch] = self.promised = step + 1
                    if step % 23 == 22:
                        self.store.checkpoint()
                self.store.close()
        finally:
            set_hook(None)
        return self.left


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")
@pytest.mark.parametrize("seed", [1, secrets.randbits(32)], ids=["one", "random"])
@every_mode
def test_what_a_power_loss_leaves_is_a_prefix_as_long_as_its_mode_promises(tmp_path, mode, seed):
    print("seed", seed)
    states = history(seed, 45)
    left = Losses(tmp_path / "index", mode, random.Random(seed), 0.06).run(seed, 45, 3)
    assert len(left) > 5
    for path, point, least, promised in left:
        if (path / filenames.SUPERBLOCK).exists() or least:
            store = open_store(path, config=small("balanced"))
            found = texts_of(store)
            check_after_a_power_loss(store, store)
            assert found in states[least : promised + 2], (path, point, least, promised)
            put(store, {"more": "after"})
            store.close()
            with contextlib.closing(open_store(path, config=small("balanced"))) as again:
                again.check()
            assert reopened(path, mode) == after(found, {"more": "after"})
        shutil.rmtree(path)


def test_the_durable_lag_counts_commits_also_behind_the_gap_that_a_crash_leaves(tmp_path):
    path = tmp_path / "index"
    run_and_die(str(path), lambda store, acknowledge: put(store, {"a": "x"}), "commit.published", 1, small("eventual"))
    config = small("eventual", sync_interval_ms=3_600_000, **ONE_LONG_LOG)
    with contextlib.closing(open_store(path, config=config)) as store:
        assert store.stats()["durable_lag"] == 0
        before = store.published.epoch
        put(store, {"b": "y"})
        assert store.published.epoch > before + 1 and store.stats()["durable_lag"] == 1
        store.checkpoint()
        assert store.stats()["durable_lag"] == 0


def test_a_frame_lost_before_one_that_was_kept_ends_the_log_in_eventual(tmp_path):
    path = tmp_path / "index"

    def some(store, acknowledge):
        write_steps(store, seed=2, first=0, steps=10, acknowledge=acknowledge)
        os._exit(42)

    run_and_die(str(path), some, "nowhere", 1, small("eventual", **ONE_LONG_LOG), SteppingClock(0.0))
    lost = frames(path)[6]
    overwrite(lost.path, lost.offset + 200, b"\xff" * 8)
    store = open_store(path, config=small("eventual"))
    assert texts_of(store) == history(2, 10)[6]
    assert "torn tail" in store.recovery.notes[0]
    store.close()


def test_a_frame_that_was_synced_is_damage_in_eventual(tmp_path):
    path = tmp_path / "index"

    def some(store, acknowledge):
        write_steps(store, seed=2, first=0, steps=10, acknowledge=acknowledge)
        os._exit(42)

    run_and_die(str(path), some, "nowhere", 1, small("eventual", **ONE_LONG_LOG), clock())
    found = frames(path)
    lost = next(i for i, frame in enumerate(found) if frame.last_epoch == found[-1].durable_through)
    overwrite(found[lost].path, found[lost].offset + 200, b"\xff" * 8)
    with pytest.raises(CorruptionError, match=f"damaged at offset {found[lost - 1].end_offset}"):
        open_store(path, config=small("eventual"))


# Strict: the superblock is the commit point.


def killed_in_strict(path, point, commits=6):
    """An index whose process ended at a point of its last commit; the number of acknowledged ones."""

    def some(store, acknowledge):
        for i in range(commits):
            put(store, {"a": f"{i}"})
            acknowledge(i)
        os._exit(42)

    acknowledged, _ = run_and_die(str(path), some, point, commits, small("strict"))
    return acknowledged + 1


def test_superblock_order(tmp_path):
    path = tmp_path / "index"
    done = killed_in_strict(path, "commit.synced")
    last = frames(path)[-1]
    assert done == 5 and last.last_epoch == 6 and superblock_epochs(path) in ([4, 5], [5, 4])
    store = open_store(path, config=small("strict"))
    assert texts_of(store) == {"a": "4"} and store.published.epoch == 5
    assert "not exposed" in store.recovery.notes[0]
    [log] = Manifest.load(FileSystem(), str(path)).logs
    assert (log.closed.end_offset, log.closed.last_epoch) == (frames(path)[-2].end_offset, 5)
    assert put(store, {"b": "after"}) > 6
    store.close()
    assert reopened(path, "strict") == {"a": "4", "b": "after"}


@pytest.mark.parametrize("point", ["superblock.written", "commit.superblock_synced", "commit.published"])
def test_from_the_superblock_on_a_strict_commit_is_there(tmp_path, point):
    path = tmp_path / "index"
    done = killed_in_strict(path, point)
    assert max(superblock_epochs(path)) == done + 1
    assert reopened(path, "balanced") == {"a": f"{done}"}


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("point", ["nowhere", "commit.synced"])
def test_an_unreadable_superblock_copy_exposes_the_next_strict_group_and_no_more(tmp_path, copy, point):
    path = tmp_path / "index"
    done = killed_in_strict(path, point)
    epochs = superblock_epochs(path)
    assert max(epochs) == done
    overwrite(str(path / filenames.SUPERBLOCK), copy * 4096 + 50, b"\xff" * 8)
    expected = min(epochs[1 - copy] + 1, frames(path)[-1].last_epoch)
    assert expected in (done, done + 1)
    assert reopened(path, "strict") == {"a": f"{expected - 1}"}


def test_a_superblock_older_than_what_later_frames_say_was_on_the_disk_is_damage(tmp_path):
    path = tmp_path / "index"
    killed_in_strict(path, "nowhere")
    with contextlib.closing(SuperblockFile.open(FileSystem(), str(path), writable=False)) as file:
        stale = dataclasses.replace(file.value, epoch=2, durable_epoch=2)
    for at in (0, 4096):
        overwrite(str(path / filenames.SUPERBLOCK), at, stale.encode())
    with pytest.raises(CorruptionError, match="not exposed"):
        open_store(path, config=small("strict"))


# What the log carries.


def forms(path):
    """payload_form by size class, of all births in the logs."""
    return {
        (int(d["size_class"]), int(d["payload_form"])) for frame in frames(path) for d in frame.deltas if d["op"] == 1
    }


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("strict", {(0, PAYLOAD_NONE), (3, PAYLOAD_NONE), (6, PAYLOAD_NONE)}),
        ("balanced", {(0, PAYLOAD_WHOLE), (3, PAYLOAD_NONE), (6, PAYLOAD_NONE)}),
        ("eventual", {(0, PAYLOAD_WHOLE), (3, PAYLOAD_WHOLE), (6, PAYLOAD_WHOLE)}),
    ],
)
def test_payload_split_of_each_mode(tmp_path, mode, expected):
    path = tmp_path / "index"

    def three_pages(store, acknowledge):
        put(store, {"small": "1"}, size_class=0)
        put(store, {"large": "2"}, size_class=3)
        put(store, {"largest": "3"}, size_class=6)
        os._exit(42)

    config = small(mode, bulk_payload_limit=1 << 20, checkpoint_log_bytes=1 << 20)
    run_and_die(str(path), three_pages, "nowhere", 1, config)
    assert forms(path) == expected
    for size_class, form in expected:
        if form == PAYLOAD_WHOLE:
            for name in os.listdir(path):
                if (filenames.parse_data(name) or (None,))[0] == size_class:
                    overwrite(str(path / name), 4096, bytes(4096 << size_class))
    assert reopened(path, mode) == {"small": "1", "large": "2", "largest": "3"}


@every_mode
def test_a_transaction_above_the_bulk_limit_is_flushed_first_in_any_mode(tmp_path, mode):
    path = tmp_path / "index"

    def bulk(store, acknowledge):
        put(store, {f"n{i}": f"{i}" for i in range(17)})
        os._exit(42)

    run_and_die(str(path), bulk, "nowhere", 1, small(mode))
    assert forms(path) == {(0, PAYLOAD_NONE)}
    assert reopened(path, mode) == {f"n{i}": f"{i}" for i in range(17)}


@pytest.mark.parametrize(
    ("mode", "small_page", "large_page"),
    [
        ("strict", [".xd", ".log", ".bin"], [".xd", ".log", ".bin"]),
        ("balanced", [".log"], [".xd", ".log"]),
        ("eventual", [], []),
    ],
)
def test_the_syncs_of_a_commit_are_those_of_its_mode_in_that_order(tmp_path, mode, small_page, large_page):
    fs = CountingFileSystem()
    config = small(mode, **ONE_LONG_LOG)
    store = open_store(tmp_path / "index", config=config, fs=fs, clock=SteppingClock(0.0))
    put(store, {"a": "1"})
    put(store, {"b": "1"}, size_class=3)
    fs.taken()
    put(store, {"a": "2"})
    assert fs.taken() == small_page
    put(store, {"b": "2"})
    assert fs.taken() == large_page
    store.close()


# Eventual: the sync comes later.


class LogicalClock(Clock):
    """A clock that a test moves. `advance` wakes the threads that wait, and they look again."""

    def __init__(self):
        self.time = 0.0
        self.lock = threading.Lock()
        self.idle = threading.Event()

    def now(self):
        return self.time

    def get(self, items, timeout):
        leads = threading.current_thread().name == "xtree-leader"
        with self.lock:
            if items.empty() and leads:
                self.idle.set()
        found = items.get() if timeout is None or timeout > 0 or not items.empty() else None
        if leads:
            self.idle.clear()
        return found

    def advance(self, store, seconds):
        """Moves the clock, and returns when the leader has done what is due then, and waits again."""
        assert self.idle.wait(PATIENCE_S)  # otherwise it may be about to wait as long as before
        with self.lock:
            self.time += seconds
            self.idle.clear()
            store._coordinator._queue.wake()
        assert self.idle.wait(PATIENCE_S)


def test_an_eventual_commit_is_durable_after_the_interval_and_its_slots_come_back_then(tmp_path):
    fs, logical = CountingFileSystem(), LogicalClock()
    # Nothing is left to the checkpointer: a test can't say when it finds a checkpoint due or makes the next log.
    config = by_request("eventual", sync_interval_ms=500, **ONE_LONG_LOG)
    store = open_store(tmp_path / "index", config=config, fs=fs, clock=logical)
    coordinator = store._coordinator
    for i in range(10):
        put(store, {"a": f"{i}"})
    fs.taken()
    assert (store.published.epoch, coordinator.durable_epoch) == (10, 0)
    assert store.table.stats()["retired"] == 9
    logical.advance(store, 0.4)
    assert coordinator.durable_epoch == 0 and fs.taken() == []
    logical.advance(store, 0.2)
    assert coordinator.durable_epoch == 10
    assert fs.taken() == [".log", ".bin"]  # the superblock only at the first write after an open
    assert store.table.stats()["retired"] == 0
    assert max(superblock_epochs(tmp_path / "index")) == 10
    logical.advance(store, 100.0)
    assert fs.taken() == []
    put(store, {"a": "more"})
    assert coordinator.durable_epoch == 10
    logical.advance(store, 0.6)
    assert coordinator.durable_epoch == 11 and fs.taken() == [".log"]
    put(store, {"a": "yet more"})
    store.checkpoint()
    assert coordinator.durable_epoch == 12
    store.close()


def test_a_failed_background_sync_poisons_and_the_next_commit_says_so(tmp_path):
    fs, logical = FaultyFileSystem(), LogicalClock()
    store = open_store(tmp_path / "index", config=small("eventual"), fs=fs, clock=logical)
    put(store, {"a": "1"})
    fs.fail("sync", ".log")
    logical.advance(store, 10.0)
    assert store.state == "poisoned" and texts_of(store) == {"a": "1"}
    with pytest.raises(StoreFailedError, match="reopen"):
        put(store, {"a": "2"})
    calls = fs.calls
    logical.advance(store, 10.0)
    store.close()
    assert fs.calls == calls
    assert reopened(tmp_path / "index", "eventual") == {"a": "1"}


def test_a_failed_superblock_sync_poisons_in_strict_and_the_commit_is_whole_or_not_there(tmp_path):
    fs = FaultyFileSystem()
    store = open_store(tmp_path / "index", config=small("strict"), fs=fs)
    put(store, {"a": "1"})
    fs.fail("sync", filenames.SUPERBLOCK)
    with pytest.raises(OSError):
        put(store, {"a": "2"})
    assert store.state == "poisoned" and texts_of(store) == {"a": "1"}
    store.close()
    assert reopened(tmp_path / "index", "strict") in ({"a": "1"}, {"a": "2"})


# Group commit.



@pytest.mark.parametrize("mode", ["strict", "balanced"])
def test_group_commit(tmp_path, mode):
    fs = HeldFileSystem()
    store = open_store(tmp_path / "index", config=small(mode, **ONE_LONG_LOG), fs=fs)
    for i in range(9):
        put(store, {f"n{i}": "before"})
    fs.hold = True
    threads = [threading.Thread(target=put, args=(store, {f"n{i}": "after"})) for i in range(9)]
    threads[0].start()
    assert fs.held.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    queued(store, 9)
    fs.taken()
    fs.hold = False
    assert texts_of(store) == {f"n{i}": "before" for i in range(9)}
    fs.let_go.set()
    for thread in threads:
        thread.join()
    assert fs.taken().count(".log") == 2  # the one that was held, and one for the eight that came meanwhile
    assert texts_of(store) == {f"n{i}": "after" for i in range(9)}
    store.check()
    store.close()


def test_with_a_window_there_is_one_sync_a_window(tmp_path):
    logical, fs = LogicalClock(), CountingFileSystem()
    config = small("balanced", group_window_ms=10, **ONE_LONG_LOG)
    store = open_store(tmp_path / "index", config=config, fs=fs, clock=logical)
    put(store, {f"n{i}": "0" for i in range(4)})
    fs.taken()
    for window in range(20):
        threads = [threading.Thread(target=put, args=(store, {f"n{i}": f"{window}"})) for i in range(4)]
        for thread in threads:
            thread.start()
        queued(store, 4)
        logical.advance(store, 0.005)
        assert fs.taken().count(".log") == 0
        logical.advance(store, 0.006)
        for thread in threads:
            thread.join()
        assert fs.taken().count(".log") == 1
    store.close()


def test_the_first_commit_after_a_pause_and_a_close_wait_for_no_window(tmp_path):
    logical = LogicalClock()
    store = open_store(tmp_path / "index", config=small("balanced", group_window_ms=10), clock=logical)
    put(store, {"a": "1"})
    logical.advance(store, 0.02)
    put(store, {"a": "2"})
    writer = threading.Thread(target=put, args=(store, {"a": "3"}))
    writer.start()
    queued(store, 1)
    store.checkpoint()
    writer.join()
    assert texts_of(store) == {"a": "3"}
    store.close()


@every_mode
def test_commits_of_many_threads_that_were_acknowledged_survive_a_kill(tmp_path, mode):
    path = tmp_path / "index"

    def many(store, acknowledge):
        def one(thread):
            for i in range(10_000):
                put(store, {f"t{thread}": f"{i}"})
                acknowledge(thread << 20 | i)

        threads = [threading.Thread(target=one, args=(thread,)) for thread in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    acknowledged: list[int] = []
    run_and_die(str(path), many, "commit.published", 100, small(mode), acknowledged=acknowledged)
    assert len(acknowledged) >= 99 - 5  # each of the other threads may have been told, and not have said so yet
    last = {step >> 20: step & 0xFFFFF for step in acknowledged}
    texts = reopened(path, mode)
    for thread in range(6):
        said = last.get(thread, -1)
        assert int(texts.get(f"t{thread}", -1)) in (said, said + 1)
