"""Log garbage: a log is deleted when no kept checkpoint needs it and the manifest that says so is durable, not before.

Promises (What is on the disk before what):

- a log is deleted once no checkpoint kept needs it and the manifest that says so is durable:
  test_rotation_manifest_gc.
"""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest
from support.text_pages import SMALL, ManualClock, put, run_and_die, settle, small, texts_of

from xtree.config import Config
from xtree.errors import CorruptionError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.commit.log_gc import LogGarbage, oldest_epoch
from xtree.persistence.files import filenames
from xtree.persistence.files.manifest import CheckpointEntry, ClosedLog, LogEntry, Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import open_store


@pytest.fixture(autouse=True)
def no_hook():
    yield
    set_hook(None)


def checkpoint(epoch, number=1):
    return CheckpointEntry(number, epoch, 100, 0)


def logs(*last_epochs, open_ones=1):
    closed = [LogEntry(10 + i, ClosedLog(8192, epoch, 0)) for i, epoch in enumerate(last_epochs)]
    return (*closed, *(LogEntry(50 + i) for i in range(open_ones)))


def going(config, checkpoints, found, now=0.0, **options):
    return LogGarbage(config, checkpoints, found).going(checkpoints, found, now, **options)


def test_a_log_goes_only_when_the_oldest_checkpoint_kept_covers_it():
    found = logs(10, 20, 30)
    assert oldest_epoch(Config(), [checkpoint(20), checkpoint(30)]) == 20
    assert going(Config(), [checkpoint(20), checkpoint(30)], found) == {10, 11}
    assert going(Config(), [checkpoint(19), checkpoint(30)], found) == {10}


def test_while_there_are_fewer_checkpoints_than_are_kept_no_log_goes():
    assert going(Config(), [checkpoint(30)], logs(10, 20, 30)) == set()
    assert going(Config(checkpoints_kept=1), [checkpoint(30)], logs(10, 20, 30)) == {10, 11, 12}


def test_an_open_log_never_goes():
    assert going(Config(), [checkpoint(90), checkpoint(99)], logs(open_ones=2), hold_back=False) == set()


def test_so_many_closed_logs_stay_as_are_to_be_kept():
    covered = [checkpoint(90), checkpoint(99)]
    assert going(Config(gc_keep_logs=2), covered, logs(10, 20, 30)) == {10}
    assert going(Config(gc_keep_logs=5), covered, logs(10, 20, 30)) == set()
    assert going(Config(gc_keep_logs=5), covered, logs(10, 20, 30), hold_back=False) == {10, 11, 12}


def test_a_log_stays_for_the_least_age_after_it_was_first_seen_closed():
    covered = [checkpoint(90), checkpoint(99)]
    garbage = LogGarbage(Config(gc_min_age_s=60), covered, logs(10))
    assert garbage.going(covered, logs(10), 100.0) == set()
    assert garbage.going(covered, logs(10, 20), 159.0) == set()
    assert garbage.going(covered, logs(10, 20), 160.0) == {10}
    assert garbage.going(covered, logs(10, 20), 219.0) == {10, 11}


def test_a_log_outlives_as_many_further_checkpoints_as_the_lag_says():
    config = Config(gc_lag_checkpoints=3)
    found = logs(10)
    garbage = LogGarbage(config, (), found)
    kept = [checkpoint(5, 1)]
    for number in range(2, 6):
        kept = [*kept, checkpoint(10 * number - 10, number)][-2:]  # the first one of its last epoch
        garbage.count_checkpoint(kept[-1], found)
        assert garbage.going(kept, found, 0.0) == (set() if number < 5 else {10})


@pytest.mark.parametrize(
    "fields",
    [
        {"gc_lag_checkpoints": 0},
        {"gc_lag_checkpoints": 3, "checkpoints_kept": 5},
        {"gc_on_checkpoint": False, "gc_on_rotate": False},
        {"gc_keep_logs": -1},
        {"gc_min_age_s": -1.0},
    ],
)
def test_a_config_that_would_delete_a_log_too_early_or_never_is_refused(fields):
    with pytest.raises(ValueError, match="gc_"):
        Config(**fields)


def test_a_lag_of_none_is_that_of_the_checkpoints_kept():
    Config(gc_lag_checkpoints=None, checkpoints_kept=1000)
    Config(gc_lag_checkpoints=0, checkpoints_kept=1)
    with pytest.raises(TypeError, match="gc_on_rotate"):
        Config(gc_on_rotate=1)


def log_numbers(path):
    return sorted(n for n in map(filenames.parse_log, os.listdir(path)) if n is not None)


def fill(store, first, count):
    """Makes commits of several frames' worth of log each, and lets the background settle after each."""
    for i in range(first, first + count):
        put(store, {"a": f"{i}", f"b{i % 3}": f"{i}"}, size_class=1)
        settle(store)


NO_AUTOMATIC = {"checkpoint_log_bytes": 1 << 30, "checkpoint_burst_log_bytes": 1 << 30}


def test_rotation_manifest_gc(tmp_path):
    path = tmp_path / "index"
    config = small("balanced", **NO_AUTOMATIC)
    early: list[str] = []

    def look(name):
        """No log that a durable manifest lists is gone, and none that a kept checkpoint needs is unlisted."""
        manifest = Manifest.load(FileSystem(), str(path))
        missing = {log.number for log in manifest.logs} - set(log_numbers(path))
        if missing:
            early.append(f"{name}: {missing}")

    def work(store, acknowledge):
        set_hook(look)
        fill(store, 0, 12)
        rotated = store.stats()["coordinator"]["logs_rotated"]
        assert rotated >= 2
        first = log_numbers(path)
        store.checkpoint()  # one checkpoint, and the empty index before it
        assert set(first) <= set(log_numbers(path))
        fill(store, 12, 12)
        second = log_numbers(path)
        store.checkpoint()  # now the first one is the oldest kept
        manifest = Manifest.load(FileSystem(), str(path))
        oldest = min(entry.epoch for entry in manifest.checkpoints)
        assert all(log.closed is None or log.closed.last_epoch > oldest for log in manifest.logs)
        assert not set(log_numbers(path)) & set(first[: rotated + 1])
        assert set(log_numbers(path)) & set(second)
        assert log_numbers(path) == [log.number for log in manifest.logs]
        fill(store, 24, 5)
        assert early == []
        os._exit(42)

    run_and_die(str(path), work, "nowhere", 1, config)
    expected = {"a": "28", **{f"b{i % 3}": f"{i}" for i in (26, 27, 28)}}
    for damaged in (False, True):
        copy = tmp_path / f"copy-{damaged}"
        shutil.copytree(path, copy)
        if damaged:
            newest = sorted(name for name in os.listdir(copy) if filenames.parse_checkpoint(name))[-1]
            with open(copy / newest, "r+b") as file:
                file.seek(5000)
                file.write(b"\xff" * 16)
        store = open_store(copy, config=config)
        assert texts_of(store) == expected
        assert store.recovery.frames == (5 if not damaged else 17)  # those after the checkpoint used
        with pytest.raises(CorruptionError, match=newest) if damaged else contextlib.nullcontext():
            store.check()
        store.close()


def test_logs_that_are_kept_for_a_while_go_at_a_rotation_once_their_time_is_over(tmp_path):
    clock = ManualClock()
    config = small("balanced", **NO_AUTOMATIC, gc_min_age_s=100, checkpoint_interval_s=1e8, checkpoint_idle_s=1e8)
    store = open_store(tmp_path / "index", config=config, clock=clock)
    for round_ in range(2):
        fill(store, 12 * round_, 12)
        store.checkpoint()
    held = log_numbers(tmp_path / "index")
    assert store.stats()["coordinator"]["logs_collected"] == 0
    clock.advance(store, 101)
    rotations = store.stats()["coordinator"]["logs_rotated"]
    fill(store, 24, 12)
    assert store.stats()["coordinator"]["logs_rotated"] > rotations
    assert store.stats()["coordinator"]["logs_collected"] > 0
    assert held[0] not in log_numbers(tmp_path / "index")
    assert log_numbers(tmp_path / "index") == [
        log.number for log in Manifest.load(FileSystem(), str(tmp_path / "index")).logs
    ]
    store.close()
    assert log_numbers(tmp_path / "index") == []


def test_a_clean_close_leaves_no_log_whatever_the_knobs_say(tmp_path):
    config = small("balanced", gc_keep_logs=100, gc_min_age_s=1e6, gc_lag_checkpoints=50)
    store = open_store(tmp_path / "index", config=config)
    fill(store, 0, 20)
    store.checkpoint()
    fill(store, 20, 20)
    store.close()
    assert log_numbers(tmp_path / "index") == []
    store = open_store(tmp_path / "index", mode="r", config=SMALL)
    assert texts_of(store)["a"] == "39"
    store.close()
