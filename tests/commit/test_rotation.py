"""Logs made ahead and taken into use between two groups: what each step leaves to recovery, whatever fails.

Promises (What is on the disk before what):

- a log made ahead is on the disk and listed before its first frame; the old one ends where the new one's link says:
  test_a_log_is_on_the_disk_and_listed_before_its_first_frame_and_its_predecessor_ends,
  test_logs_without_a_recorded_end_are_replayed_by_their_links,
  test_a_log_that_ends_before_the_next_ones_link_is_damage, test_a_rotation_saves_no_manifest_and_makes_no_file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import shutil
import threading

import pytest
from support.faulty_fs import FaultyFileSystem
from support.text_pages import (
    MODES,
    NO_CHECKPOINTS,
    ONE_LONG_LOG,
    ManualClock,
    by_request,
    put,
    run_and_die,
    settle,
    texts_of,
)

from xtree.config import Config
from xtree.errors import CorruptionError, StoreFailedError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.files import filenames
from xtree.persistence.files.frame import PAYLOAD_RANGES, PAYLOAD_WHOLE
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.wal_reader import read_log
from xtree.persistence.opening import open_store

every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def no_hook():
    yield
    set_hook(None)


def coordinator(store):
    return store.stats()["coordinator"]


def fill(store, first, count, size_class=1):
    for i in range(first, first + count):
        put(store, {"a": f"{i}"}, size_class=size_class)
        settle(store)


def until_spare(store):
    """Makes commits until the next log is there."""
    while store.index_files.spare is None:
        fill(store, 1000, 1)


def until_full(store):
    """Makes commits until one more would go to the next log, which is there."""
    until_spare(store)
    while store.index_files.log.has_room(256):
        put(store, {"a": "full"}, size_class=1)


def manifest_of(path):
    return Manifest.load(FileSystem(), str(path))


def log_path(path, number):
    return str(path / filenames.log_name(number))


def links(path):
    """(number, link or None) of each log that the manifest lists."""
    manifest = manifest_of(path)
    found = []
    for entry in manifest.logs:
        log = read_log(FileSystem(), log_path(path, entry.number), manifest.uuid, entry.number)
        found.append((entry.number, log.link))
        log.close()
    return found


def crashed(path, mode="balanced", spare=False):
    """An index of several logs, the last two of which have no recorded end; its process was killed.

    With `spare` the last one was made ahead and not used, otherwise it follows the one before.
    """

    def work(store, acknowledge):
        while coordinator(store)["logs_rotated"] < 3:
            fill(store, 0, 1)
        if spare:
            until_spare(store)
        put(store, {"a": "last"}, size_class=1)
        os._exit(42)

    run_and_die(str(path), work, "nowhere", 1, by_request(mode))
    assert [log.closed is None for log in manifest_of(path).logs][-3:] == [False, True, True]
    return path


def reopened(path, mode="balanced"):
    store = open_store(path, config=by_request(mode))
    texts = texts_of(store)
    store.check()
    put(store, {"later": "commit"})
    store.close()
    assert [name for name in os.listdir(path) if filenames.parse_log(name)] == []
    return texts


@every_mode
@pytest.mark.parametrize("spare", [False, True])
def test_logs_without_a_recorded_end_are_replayed_by_their_links(tmp_path, mode, spare):
    path = crashed(tmp_path / "index", mode, spare)
    found = links(path)
    assert [number for number, _ in found] == sorted(number for number, _ in found)
    for (number, _), (_, link) in itertools.pairwise(found):
        assert link is None or link.number == number
    assert (found[-1][1] is None) == spare
    assert reopened(path, mode) == {"a": "last"}


@pytest.mark.parametrize("spare", [False, True])
def test_without_a_manifest_the_scan_finds_the_same_chain(tmp_path, spare):
    path = crashed(tmp_path / "index", spare=spare)
    os.unlink(path / filenames.MANIFEST)
    assert reopened(path) == {"a": "last"}


def test_a_log_that_ends_before_the_next_ones_link_is_damage(tmp_path):
    path = crashed(tmp_path / "index")
    (first, _), (_, link) = links(path)[-2:]
    assert link.number == first
    with open(log_path(path, first), "r+b") as file:
        file.seek(link.end_offset - 100)
        file.write(b"\xff" * 8)
    with pytest.raises(CorruptionError, match=rf"wal-0*{first}\.log: expected it to end"):
        open_store(path, config=by_request())


def test_frames_beyond_the_next_ones_link_never_existed(tmp_path):
    path = crashed(tmp_path / "index")
    (first, _), (_, link) = links(path)[-2:]
    with open(log_path(path, first), "r+b") as file:
        file.seek(link.end_offset)
        file.write(b"XTFR" + b"\xee" * 4092)
    assert reopened(path) == {"a": "last"}


def test_a_log_that_is_missing_in_the_middle_is_damage(tmp_path):
    path = crashed(tmp_path / "index")
    os.unlink(log_path(path, links(path)[1][0]))
    with pytest.raises(CorruptionError, match="isn't there"):
        open_store(path, config=by_request())


def test_a_link_to_another_log_is_damage(tmp_path):
    path = crashed(tmp_path / "index")
    manifest = manifest_of(path)
    *_, third, second, last = manifest.logs
    logs = (dataclasses.replace(third, closed=None), last)
    dataclasses.replace(manifest, logs=logs).save(FileSystem(), str(path))
    with pytest.raises(CorruptionError, match=f"found that it follows log {second.number}"):
        open_store(path, config=by_request())
    manifest.save(FileSystem(), str(path))
    assert reopened(path) == {"a": "last"}


def test_a_log_is_on_the_disk_and_listed_before_its_first_frame_and_its_predecessor_ends(tmp_path):
    path = tmp_path / "index"
    seen = []

    def look(name):
        if name == "log.closed":
            spare = manifest_of(path).logs[-1]
            size = os.path.getsize(log_path(path, spare.number))
            seen.append((spare.closed, size))

    store = open_store(path, config=by_request())
    set_hook(look)
    fill(store, 0, 20)
    assert len(seen) == coordinator(store)["logs_rotated"] >= 2
    assert all(closed is None and size >= 32 << 10 for closed, size in seen)
    store.close()


def test_a_rotation_saves_no_manifest_and_makes_no_file(tmp_path):
    fs = FaultyFileSystem()
    asked = []
    store = open_store(tmp_path / "index", config=by_request(), fs=fs)
    until_full(store)
    fs.judge = lambda call, path: asked.append((call, os.path.splitext(path)[1]))
    rotated = coordinator(store)["logs_rotated"]
    put(store, {"a": "after"}, size_class=1)
    assert coordinator(store)["logs_rotated"] == rotated + 1
    before_frame = asked[: [i for i, one in enumerate(asked) if one == ("sync", ".log")][1] + 1]
    # In the new log: the link, its sync, the frame, its sync. The old log was synced already.
    assert before_frame == [("pwritev", ".log"), ("sync", ".log")] * 2
    fs.heal()
    store.close()


def test_logs_grow_by_doubling_up_to_the_segment(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=by_request(wal_segment_bytes=256 << 10))
    fill(store, 0, 130)
    sizes = [os.path.getsize(log_path(path, entry.number)) for entry in manifest_of(path).logs]
    assert sizes == sorted(sizes)
    assert sizes[0] <= 80 << 10 and sizes[-1] == 256 << 10
    store.close()


def test_a_log_is_followed_by_the_next_one_when_it_is_large(tmp_path):
    long = {**ONE_LONG_LOG, **NO_CHECKPOINTS}
    store = open_store(tmp_path / "index", config=by_request(**long, wal_rotate_bytes=64 << 10))
    fill(store, 0, 60)
    assert coordinator(store)["logs_rotated"] >= 3
    store.close()


def test_a_log_is_followed_by_the_next_one_when_it_is_old(tmp_path):
    clock = ManualClock()
    long = {**ONE_LONG_LOG, **NO_CHECKPOINTS}
    store = open_store(tmp_path / "index", config=by_request(**long, wal_rotate_age_s=60), clock=clock)
    fill(store, 0, 2)
    clock.advance(store, 59)
    fill(store, 2, 1)
    assert coordinator(store)["logs_rotated"] == coordinator(store)["spares_made"] == 0
    clock.advance(store, 2)
    assert coordinator(store)["spares_made"] == 1
    fill(store, 3, 2)
    assert coordinator(store)["logs_rotated"] == 1
    store.close()


def test_a_commit_never_waits_for_the_next_log(tmp_path):
    class Held(FaultyFileSystem):
        def ask(self, call, path):
            super().ask(call, path)
            if threading.current_thread().name == "xtree-checkpointer" and held.is_set():
                reached.set()
                assert let_go.wait(20)

    held, reached, let_go = threading.Event(), threading.Event(), threading.Event()
    store = open_store(tmp_path / "index", config=by_request(), fs=Held())
    held.set()
    for i in range(40):
        put(store, {"a": f"{i}"}, size_class=1)
    assert reached.wait(20)
    assert coordinator(store)["logs_rotated"] == 0
    held.clear()
    let_go.set()
    settle(store)
    assert coordinator(store)["spares_made"] == 1
    store.close()
    assert reopened(tmp_path / "index") == {"a": "39"}


def test_an_index_of_a_few_commits_has_one_small_log_and_none_ahead(tmp_path):
    store = open_store(tmp_path / "index", config=Config())
    for i in range(5):
        put(store, {"a": f"{i}"})
        settle(store)
    logs = [name for name in os.listdir(tmp_path / "index") if filenames.parse_log(name)]
    assert len(logs) == 1
    assert os.path.getsize(tmp_path / "index" / logs[0]) <= 4096 + Config().wal_fill_bytes
    store.close()


def test_the_log_made_ahead_goes_at_close_though_nothing_else_is_to_do(tmp_path):
    store = open_store(tmp_path / "index", config=by_request(checkpoints_kept=1))
    until_spare(store)
    store.checkpoint()
    assert store.index_files.manifest.logs == (store.index_files.manifest.logs[-1],)
    store.close()
    assert [name for name in os.listdir(tmp_path / "index") if filenames.parse_log(name)] == []
    assert manifest_of(tmp_path / "index").logs == ()


@every_mode
def test_an_error_at_any_call_of_a_rotation_is_clean_or_poisons_and_loses_nothing(tmp_path, mode):
    for number in (errno.EIO, errno.ENOSPC):
        n = 0
        while n < 60:
            n += 1
            path = tmp_path / f"{number}-{n}"
            fs = FaultyFileSystem()
            store = open_store(path, config=by_request(mode), fs=fs)
            until_full(store)
            last = fs.calls + n
            failed = []

            def judge(call, name, last=last, fs=fs, failed=failed, number=number):
                if fs.calls == last:
                    failed.append(call)
                    return number
                return None

            fs.judge = judge
            texts = texts_of(store)
            outcomes = [texts]
            rotated = coordinator(store)["logs_rotated"]
            for i in range(8):
                change = {"a": f"{100 + i}"}
                try:
                    put(store, change, size_class=1)
                except (OSError, StoreFailedError):
                    if store.state == "poisoned":
                        outcomes = [texts, change]
                        break
                else:
                    texts = change
                    outcomes = [texts]
            done = coordinator(store)["logs_rotated"] > rotated
            poisoned = store.state == "poisoned"
            if failed and poisoned:
                assert failed[0] in ("sync", "pwritev", "pwrite"), (n, failed)
            fs.heal()
            with contextlib.suppress(OSError, StoreFailedError):
                store.close()
            store = open_store(path, config=by_request())
            assert texts_of(store) in outcomes, (n, failed)
            store.check()
            store.close()
            shutil.rmtree(path)
            if not failed:
                assert done
                break
        assert n > 5


@pytest.mark.parametrize("call", ["create", "pwrite", "write_zeros", "reserve", "sync"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_log_that_cannot_be_made_ahead_stops_nobody_unless_a_sync_failed(tmp_path, call, number):
    clock, fs, told = ManualClock(), FaultyFileSystem(), []
    store = open_store(tmp_path / "index", config=by_request(), fs=fs, clock=clock, on_error=told.append)

    def judge(asked, path):
        if threading.current_thread().name == "xtree-checkpointer" and asked == call:
            return number
        return None

    fs.judge = judge
    done = 0
    with contextlib.suppress(StoreFailedError):
        for done in range(30):
            fill(store, done, 1)
    assert (store.state == "poisoned") == (call == "sync"), told
    if call == "sync":
        fs.heal()
        store.close()
        assert int(reopened(tmp_path / "index")["a"]) in (done - 1, done)
        return
    assert texts_of(store) == {"a": "29"}
    if coordinator(store)["spare_failures"] == 0:
        assert call in ("reserve", "pwrite", "write_zeros")  # this system doesn't use the call to make a log
    else:
        assert {error.errno for error in told} == {number}
        assert coordinator(store)["spares_made"] == 0
        fs.heal()
        clock.advance(store, 1000)
        assert coordinator(store)["spares_made"] == 1
    fs.heal()
    store.close()
    assert reopened(tmp_path / "index") == {"a": "29"}


def test_a_link_that_could_not_be_written_ends_the_old_log_all_the_same(tmp_path):
    fs = FaultyFileSystem()
    path = tmp_path / "index"
    store = open_store(path, config=by_request(), fs=fs)
    until_full(store)
    old, spare = store.index_files.log, store.index_files.spare
    fs.fail("pwritev", os.path.basename(spare.path))
    with pytest.raises(OSError):
        put(store, {"a": "lost"}, size_class=1)
    assert store.state == "open" and texts_of(store) == {"a": "full"}
    end = old.end_offset
    put(store, {"a": "next"}, size_class=1)
    assert old.end_offset == end and store.index_files.log.number not in (old.number, spare.number)
    assert spare.number not in {entry.number for entry in manifest_of(path).logs}
    fs.heal()
    settle(store)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert reopened(copy) == {"a": "next"}
    store.close()


def test_a_log_that_is_taken_into_use_while_its_making_ends_is_listed_once(tmp_path):
    class Making(set):
        def discard(self, number):  # called by the checkpointer, when the log is already the next one
            spare = store.index_files.spare
            if spare is not None and spare.number == number and not taken:
                taken.append(number)
                store.index_files.log_aged = True
                writer = threading.Thread(target=lambda: put(store, {"a": "rotates"}, size_class=1))
                writer.start()
                writer.join()
            super().discard(number)

    taken = []
    path = tmp_path / "index"
    store = open_store(path, config=by_request("strict"))
    store.index_files._making = Making()
    while not taken:
        fill(store, 0, 1)
    assert store.index_files.log.number == taken[0]
    store.index_files.save_manifest()
    numbers = [entry.number for entry in manifest_of(path).logs]
    assert numbers.count(taken[0]) == 1 and numbers == sorted(set(numbers))
    store.close()
    assert reopened(path)["a"] in ("rotates", "0")


@pytest.mark.parametrize("point", ["log.spare_filled", "log.spare_listed"])
def test_a_full_disk_while_the_next_log_is_made_leaves_the_logs_in_link_order(tmp_path, point):
    made, go, done = threading.Event(), threading.Event(), threading.Event()
    fs = FaultyFileSystem()
    settings = by_request(wal_fill_bytes=4096, wal_fill_limit_bytes=16384, wal_rotate_bytes=1 << 20)
    store = open_store(tmp_path / "index", config=settings, fs=fs)

    def hook(name):
        if name == point and not made.is_set():
            made.set()
            assert go.wait(20)

    def write_until_room_was_made():
        while store.stats()["coordinator"]["checkpoints"] == 0:
            put(store, {"a": "room"})
        done.set()

    set_hook(hook)
    while not made.is_set():
        put(store, {"a": "1"})
    full = store.index_files.log.path
    fs.judge = lambda call, path: errno.ENOSPC if call in ("reserve", "write_zeros") and path == full else None
    writer = threading.Thread(target=write_until_room_was_made)
    writer.start()
    done.wait(1)  # if the leader doesn't wait for the next log, it has made a later one by then
    go.set()
    writer.join(20)
    assert done.is_set()
    store._coordinator.checkpointer.call(lambda: None)
    store.index_files.log_aged = True  # so that a log made ahead is taken into use
    put(store, {"b": "2"})
    put(store, {"c": "3"})
    numbers = [entry.number for entry in store.index_files.manifest.logs]
    assert numbers == sorted(numbers) and numbers[-1] == store.index_files.log.number
    settle(store)
    shutil.copytree(tmp_path / "index", tmp_path / "crashed")
    store.close()
    store = open_store(tmp_path / "crashed", config=settings)
    assert texts_of(store) == {"a": "room", "b": "2", "c": "3"}
    store.check()
    store.close()


def test_a_log_made_ahead_that_a_later_one_has_overtaken_is_not_used(tmp_path):
    store = open_store(tmp_path / "index", config=by_request())
    put(store, {"a": "1"})
    settle(store)
    index_files = store.index_files

    def overtake(name):
        if name == "log.spare_filled":
            set_hook(None)
            store._coordinator.between_groups(index_files.close_log)
            put(store, {"a": "2"})

    set_hook(overtake)
    assert not index_files.make_spare()
    numbers = [entry.number for entry in index_files.manifest.logs]
    assert index_files.spare is None
    assert numbers == sorted(numbers) and numbers[-1] == index_files.log.number
    shutil.copytree(tmp_path / "index", tmp_path / "crashed")
    store.close()
    store = open_store(tmp_path / "crashed", config=by_request())
    assert texts_of(store) == {"a": "2"}
    store.close()


@pytest.mark.parametrize("mode", ["balanced", "eventual"])
def test_the_first_version_of_a_page_in_a_log_is_whole_also_where_its_commit_takes_that_log(tmp_path, mode):
    """The commit is planned for the log that is open, and then finds no room in it."""
    store = open_store(tmp_path / "index", config=by_request(mode))
    until_full(store)
    full = store.index_files.log.number
    put(store, {"a": "next"}, size_class=1)
    taken = store.index_files.log.number
    assert taken != full
    forms = {}
    for number in (full, taken):
        path = log_path(tmp_path / "index", number)
        with contextlib.closing(read_log(FileSystem(), path, store.uuid, number)) as log:
            forms[number] = [int(form) for frame in log for form in frame.deltas["payload_form"]]
    assert PAYLOAD_RANGES in forms[full]
    assert forms[taken][0] == PAYLOAD_WHOLE and PAYLOAD_RANGES not in forms[taken]
    store.close()


def test_what_a_log_held_is_durable_once_the_next_one_is_taken(tmp_path):
    """In eventual, where the sync in the background is an hour away."""
    store = open_store(tmp_path / "index", config=by_request("eventual", sync_interval_ms=3_600_000))
    until_full(store)
    before = store.published.epoch
    put(store, {"a": "next"}, size_class=1)
    assert store.stats()["coordinator"]["durable_epoch"] == before
    store.close()
