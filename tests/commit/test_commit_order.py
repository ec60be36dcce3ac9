"""The order of steps: what must be on the disk before what, seen in the middle of a commit or after a crash.

Promises (Nothing acknowledged is lost):

- what several threads were told is committed survives a crash at any step, whichever shared a sync:
  test_what_several_threads_were_told_is_committed_survives_a_crash_at_any_point.

Promises (What is on the disk before what):

- a data file is in the durable manifest before a row in it commits:
  test_a_data_file_is_in_the_durable_manifest_before_a_row_in_it_commits.
- the pages of a large transaction are synced before it queues, and the log carries none of them:
  test_a_large_transaction_logs_what_it_did_and_none_of_its_pages,
  test_faults.py::test_a_failed_sync_of_flushed_pages_poisons_and_the_commit_never_happened.
- what the superblock says was durable must be recovered:
  test_what_the_superblock_says_was_durable_must_be_recovered.
- epochs are never used twice:
  test_every_epoch_is_below_the_ceiling_on_the_disk_when_it_is_logged,
  test_with_one_superblock_copy_lost_epochs_go_on_a_stride_further,
  test_recovery.py::test_epochs_go_on_growing_after_a_crash,
  test_a_superblock_copy_that_reserves_less_than_was_committed_is_enough,
  test_epochs_that_a_crash_has_left_out_stay_so_after_a_clean_close_without_a_commit.
- recovery writes images of live pages only, and only after all are checked:
  test_a_logged_image_never_overwrites_a_slot_that_a_flushed_page_has_taken,
  test_hostile_files.py::test_a_logged_page_that_is_not_its_rows_ends_recovery_before_anything_is_written.
- an unclean open ends with everything durable, a clean one writes nothing:
  test_an_unclean_open_ends_with_everything_durable_before_it_takes_commits,
  test_recovery.py::test_a_clean_open_writes_nothing.
- a checkpoint of nothing new does nothing; two are kept, with the logs that either needs, and no more:
  test_a_checkpoint_of_what_has_not_changed_writes_nothing,
  test_recovery.py::test_a_clean_close_leaves_no_log_and_two_checkpoints_either_of_which_is_enough,
  test_recovery.py::test_log_garbage_is_bounded_by_checkpoints.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
from support.text_pages import KIND, SMALL, SteppingClock, put, run_and_die, settle, small, texts_of

from xtree.errors import CorruptionError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.files import filenames
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import Superblock, SuperblockFile
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin


@pytest.fixture(autouse=True)
def no_hook():
    yield
    set_hook(None)


def superblock_of(path: Path):
    file = SuperblockFile.open(FileSystem(), str(path), writable=False)
    file.close()
    return file.value


def put_nine(store, acknowledge) -> None:
    """Makes nine commits."""
    for i in range(9):
        put(store, {"a": str(i)})


def put_many(store, count: int, text: str) -> int:
    """Commits one transaction of so many pages, more than the log takes."""
    write_set = begin(store)
    changes = {}
    for i in range(count):
        name = f"{text} {i}"
        changes[name] = CatalogEntry(name, "text", write_set.add_page(KIND, 0, name.encode()), b"")
    return write_set.commit(changes)


def test_a_logged_image_never_overwrites_a_slot_that_a_flushed_page_has_taken(tmp_path):
    path = tmp_path / "index"

    def work(store, acknowledge):
        names = [f"logged {i}" for i in range(5)]
        for i in range(3):
            put(store, dict.fromkeys(names, f"text {i}"))
        put(store, dict.fromkeys(names))
        put(store, {"other": "1"})
        put_many(store, 40, "flushed")
        os._exit(42)

    run_and_die(str(path), work, "nowhere", 1)
    store = open_store(path, config=SMALL)
    assert store.recovery.images_written == 1
    assert texts_of(store) == {"other": "1", **{f"flushed {i}": f"flushed {i}" for i in range(40)}}
    store.check()
    store.close()


def test_a_large_transaction_logs_what_it_did_and_none_of_its_pages(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {"a": "1"})
    before = store.stats()["coordinator"]["wal_bytes"]
    put_many(store, 40, "flushed")
    assert store.stats()["coordinator"]["wal_bytes"] - before < 40 * 200
    store.close()


def test_a_data_file_is_in_the_durable_manifest_before_a_row_in_it_commits(tmp_path):
    path = tmp_path / "index"
    missing = []

    def look(name: str) -> None:
        if name == "commit.before_append":
            listed = {f.number for f in Manifest.load(FileSystem(), path).data_files}
            made = {parsed[1] for parsed in map(filenames.parse_data, os.listdir(path)) if parsed}
            missing.append(made - listed)

    store = open_store(path, config=SMALL)
    set_hook(look)
    for size_class in range(5):
        put(store, {f"of class {size_class}": "x"}, size_class=size_class)
    store.close()
    assert missing == [set()] * 5


def test_every_epoch_is_below_the_ceiling_on_the_disk_when_it_is_logged(tmp_path):
    path = tmp_path / "index"
    ceilings = []

    def look(name: str) -> None:
        if name == "commit.before_append":
            ceilings.append(superblock_of(path).epoch_ceiling)

    set_hook(look)
    store = open_store(path, config=SMALL)
    epochs = [put(store, {"a": str(i)}) for i in range(3 * SMALL.epoch_stride)]
    store.close()
    assert len(epochs) == len(ceilings)
    assert all(epoch < ceiling for epoch, ceiling in zip(epochs, ceilings, strict=True))


@pytest.mark.parametrize("copy", [0, 1])
def test_with_one_superblock_copy_lost_epochs_go_on_a_stride_further(tmp_path, copy):
    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    put(store, {"a": "1"})
    store.close()
    ceiling = superblock_of(path).epoch_ceiling
    with open(path / filenames.SUPERBLOCK, "r+b") as file:
        file.seek(4096 * copy + 40)
        file.write(b"\xff\xff")
    store = open_store(path, config=SMALL)
    assert put(store, {"a": "2"}) >= ceiling + SMALL.epoch_stride
    store.close()


def test_a_superblock_copy_that_reserves_less_than_was_committed_is_enough(tmp_path):
    path, config = tmp_path / "index", small("balanced", epoch_stride=3)
    run_and_die(str(path), put_nine, "commit.published", 8, config)
    both = (path / filenames.SUPERBLOCK).read_bytes()
    copies = [Superblock.decode(both[at:at + 4096], "", at) for at in (0, 4096)]
    newest = max((0, 1), key=lambda copy: copies[copy].generation)
    assert copies[1 - newest].epoch_ceiling <= 7
    with open(path / filenames.SUPERBLOCK, "r+b") as file:
        file.seek(4096 * newest + 40)
        file.write(b"\xff\xff")
    store = open_store(path, config=config)
    assert texts_of(store) == {"a": "7"}
    assert put(store, {"a": "8"}) > 8
    store.close()


@pytest.mark.parametrize("kept", [1, 2])
def test_epochs_that_a_crash_has_left_out_stay_so_after_a_clean_close_without_a_commit(tmp_path, kept):
    path, config = tmp_path / "index", small("strict", checkpoints_kept=kept)
    run_and_die(str(path), put_nine, "commit.synced", 3, config)
    for _ in range(2):
        store = open_store(path, config=config)
        assert texts_of(store) == {"a": "1"} and store.published.epoch == 2
        store.close()
    store = open_store(path, config=config)
    assert put(store, {"a": "other"}) > 3  # epoch 3 has been in the log with other content
    store.close()


def test_a_crash_at_the_end_of_recovery_leaves_no_epoch_to_be_used_again(tmp_path):
    path, config = tmp_path / "index", small("strict", checkpoints_kept=1)
    run_and_die(str(path), put_nine, "commit.synced", 3, config)
    for nth in itertools.count(1):
        twin = tmp_path / f"{nth}"
        shutil.copytree(path, twin)
        crashed = run_and_die(str(twin), lambda store, _: None, None, nth, config)[1]
        store = open_store(twin, config=config)
        assert texts_of(store) == {"a": "1"}
        assert put(store, {"a": "other"}) > 3
        store.close()
        if not crashed:
            break
    assert nth > 10


def test_what_the_superblock_says_was_durable_must_be_recovered(tmp_path):
    path = tmp_path / "index"
    run_and_die(str(path), lambda store, acknowledge: (put(store, {"a": "1"}), os._exit(42)), "nowhere", 1)
    file = SuperblockFile.open(FileSystem(), str(path), writable=True)
    file.publish(sync=True, epoch=9, durable_epoch=9)
    file.close()
    before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
    with pytest.raises(CorruptionError, match="epoch 9 was on the disk"):
        open_store(path, config=SMALL)
    assert before == {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}


def test_an_unclean_open_ends_with_everything_durable_before_it_takes_commits(tmp_path):
    path = tmp_path / "index"
    run_and_die(str(path), lambda store, acknowledge: (put(store, {"a": "1"}), os._exit(42)), "nowhere", 1)
    store = open_store(path, config=SMALL)
    manifest = Manifest.load(FileSystem(), path)
    assert manifest.checkpoints[-1].epoch == store.published.epoch == superblock_of(path).durable_epoch
    assert all(log.closed is not None for log in manifest.logs)
    store.close()


def test_a_checkpoint_of_what_has_not_changed_writes_nothing(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    put(store, {"a": "1"})
    store.checkpoint()
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    store.checkpoint()
    assert {name: (path / name).read_bytes() for name in os.listdir(path)} == before
    assert store.stats()["coordinator"]["checkpoints"] == 1
    store.close()


def test_nothing_is_reclaimed_that_was_retired_after_the_durable_epoch(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL, clock=SteppingClock(0.0))
    put(store, {"a": "1"})
    pin = store.pin()
    epoch = put(store, {"a": "2"})
    settle(store)
    pin.release()
    assert store.reclaim(epoch - 1) == 0
    assert store.reclaim(epoch) == 1
    store.close()


def test_what_several_threads_were_told_is_committed_survives_a_crash_at_any_point(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for round_ in range(12):
        path = tmp_path / f"{round_}"
        acknowledged = threads_until_a_crash(str(path), rng.randint(100, 1500))
        store = open_store(path, config=SMALL)
        store.check()
        texts = texts_of(store)
        for thread, last in enumerate(acknowledged):
            found = {name: int(text) for name, text in texts.items() if name.startswith(f"{thread} ")}
            if last >= 0:
                assert len(set(found.values())) == 1, (round_, found)
                assert last <= found[f"{thread} a"] <= last + 1, (round_, thread, last, found)
        store.close()


def threads_until_a_crash(path: str, points: int) -> list[int]:
    """Runs threads in a child that commit, abort and checkpoint until so many crash points are reached.

    Each puts rising numbers under two names of its own. Returns the last acknowledged number of each, or -1.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        left = points

        def hook(name: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                os._exit(42)

        def write(thread: int) -> None:
            for i in range(1 << 16):
                put(store, {f"{thread} a": str(i), f"{thread} b": str(i)}, size_class=(0, 1, 0, 3)[i % 4])
                os.write(writer, bytes((thread,)) + i.to_bytes(4, "little"))
                begin(store).abort()
                if i % 37 == thread:
                    store.checkpoint()

        store = open_store(path, config=SMALL)
        set_hook(hook)
        threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    last = [-1] * 4
    for at in range(0, len(said), 5):
        last[said[at]] = int.from_bytes(said[at + 1 : at + 5], "little")
    return last
