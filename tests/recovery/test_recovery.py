"""Recovery: whatever a process was doing when it died, the state is a prefix with every acknowledged commit.

Promises (Nothing acknowledged is lost):

- the same at every named step of commit, checkpoint and creation:
  test_every_named_crash_point_is_known_and_survived.
- recovery may crash and start again:
  test_a_crash_inside_recovery_is_recovered_from.
- pages come back from the log when their data file holds nothing of them:
  test_logged_pages_are_recovered_with_their_data_file_bytes_zeroed.
- small pages from the log, large ones from their data file, in one commit:
  test_payload_split.
- a torn tail is cut off, damage before it is reported:
  test_torn_tail_is_dropped, test_damage_before_a_later_frame_is_told_from_a_torn_tail.
- a damaged checkpoint, superblock copy or manifest is answered from what is stored twice:
  test_a_damaged_newest_checkpoint_falls_back_to_the_one_before, test_one_superblock_copy_is_enough,
  test_an_unreadable_manifest_is_replaced_by_a_scan.
- damaged pages are detected:
  test_a_damaged_flushed_page_is_detected, test_cli.py::test_check_finds_damage_and_exits_with_1.

Promises (What is on the disk before what):

- a log that is missing, or doesn't follow the one before, is damage; one without a first frame is unused:
  test_a_missing_log_is_detected, test_wal.py::test_the_expected_link_must_be_there,
  test_wal.py::test_a_log_without_a_link_frame_is_unused.
- recovery says what it did and how far it is; what the progress callback raises ends the open cleanly:
  test_recovery_reports_what_it_read_and_wrote, test_progress_rises_to_the_end,
  test_what_progress_raises_ends_the_open_and_changes_nothing.
- a directory without a superblock is made afresh, one that is no index left alone:
  test_an_unborn_directory_is_made_afresh, test_a_directory_that_is_no_index_is_left_alone,
  test_kill.py::test_a_kill_during_creation_leaves_a_directory_that_opens.

Promises (One writer, many readers):

- a read-only open after a crash writes nothing:
  test_a_read_only_open_after_a_crash_rebuilds_pages_in_memory_and_writes_nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from support.text_pages import (
    KIND,
    ONE_LONG_LOG,
    SMALL,
    after,
    history,
    put,
    random_changes,
    run_and_die,
    settle,
    small,
    texts_of,
    write_steps,
)

import xtree
from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.base.crash_points import CRASH_POINTS, set_hook
from xtree.persistence.files import filenames, frame, wal_reader
from xtree.persistence.files.frame import LOG_MAGIC
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import open_store
from xtree.persistence.pages import node_id
from xtree.persistence.pages.page_checksum import page_crc
from xtree.persistence.recovery.recovery import recover
from xtree.persistence.store.catalog import CatalogEntry, encode_changes
from xtree.persistence.store.write_set import begin

STEPS = 40
ONE_LOG = dataclasses.replace(SMALL, **ONE_LONG_LOG)


def work(store, acknowledge):
    write_steps(store, seed=1, first=0, steps=STEPS, acknowledge=acknowledge)


def reopened(path, damaged: str | None = None) -> tuple[dict[str, str], int]:
    """The texts and epoch after recovery, which is checked; a second open must find the same.

    damaged: what check() has to say of a file that recovery could do without.
    """
    store = open_store(path, config=SMALL)
    texts, epoch = texts_of(store), store.published.epoch
    with contextlib.nullcontext() if damaged is None else pytest.raises(CorruptionError, match=damaged):
        store.check()
    begin(store).abort()
    assert set(files(path, filenames.parse_data)) == {f.path for f in listed_files(store)}
    store.close()
    store = open_store(path, mode="r+", config=SMALL)
    assert (texts_of(store), store.published.epoch) == (texts, epoch)
    assert store.recovery.clean
    store.close()
    return texts, epoch


def listed_files(store):
    """The data files that the store knows."""
    return [data_file.file for data_file in store.index_files.data_files._files.values()]


def files(path, parse) -> list[str]:
    return sorted(str(path / name) for name in os.listdir(path) if parse(name) is not None)


def reached_points(path) -> dict[str, int]:
    """How often the workload reaches each crash point."""
    counts: dict[str, int] = {}
    set_hook(lambda name: counts.__setitem__(name, counts.get(name, 0) + 1))
    try:
        store = open_store(path, config=SMALL)
        work(store, lambda step: None)
        store.close()
    finally:
        set_hook(None)
    return counts


@pytest.mark.slow
def test_every_named_crash_point_is_known_and_survived(tmp_path):
    counts = reached_points(tmp_path / "count")
    assert set(counts) <= set(CRASH_POINTS)
    states = history(1, STEPS)
    for point, times in counts.items():
        for nth in sorted({1, (times + 1) // 2, times}):
            path = tmp_path / f"{point}-{nth}"
            acknowledged, crashed = run_and_die(str(path), work, point, nth)
            assert crashed or nth > times // 2, (point, nth)  # a thread in the background may have been faster
            texts, _ = reopened(path)
            assert texts in states[acknowledged + 1 : acknowledged + 3], (point, nth, acknowledged)
            shutil.rmtree(path)


@pytest.mark.slow
def test_a_crash_inside_recovery_is_recovered_from(tmp_path):
    path = tmp_path / "index"
    states = history(1, STEPS)
    acknowledged, _ = run_and_die(str(path), work, "commit.synced", 35)
    nth = 0
    crashed = True
    while crashed:
        nth += 1
        copy = tmp_path / f"copy-{nth}"
        shutil.copytree(path, copy)
        _, crashed = run_and_die(str(copy), lambda store, acknowledge: None, None, nth)
        assert reopened(copy)[0] in states[acknowledged + 1 : acknowledged + 3], nth
        shutil.rmtree(copy)
    assert nth > 20


def test_epochs_go_on_growing_after_a_crash(tmp_path):
    path = tmp_path / "index"
    run_and_die(str(path), work, "commit.appended", 30)
    store = open_store(path, config=SMALL)
    before = store.published.epoch
    assert put(store, {"a": "after"}) > max(before, 30)
    store.close()


def crashed_index(tmp_path, commits=10, config=ONE_LOG):
    """An index whose process ended after so many commits; up to 22 are in one log and in no checkpoint."""
    path = tmp_path / "index"

    def some(store, acknowledge):
        write_steps(store, seed=2, first=0, steps=commits, acknowledge=acknowledge)
        os._exit(42)

    run_and_die(str(path), some, "nowhere", 1, config)
    return path, history(2, commits)[-1]


def overwrite(name: str, offset: int, data: bytes) -> None:
    with open(name, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_logged_pages_are_recovered_with_their_data_file_bytes_zeroed(tmp_path):
    path, texts = crashed_index(tmp_path)
    for name in files(path, filenames.parse_data):
        if filenames.parse_data(os.path.basename(name))[0] < 3:  # larger pages are flushed before their frame
            overwrite(name, 4096, bytes(os.path.getsize(name) - 4096))
    assert reopened(path)[0] == texts


def test_payload_split(tmp_path):
    path = tmp_path / "index"

    def two_pages(store, acknowledge):
        write_set = begin(store)
        small = write_set.add_page(KIND, 0, b"in the log")
        large = write_set.add_page(KIND, 3, b"flushed first")
        write_set.commit({"small": CatalogEntry("small", "text", small, b""),
                          "large": CatalogEntry("large", "text", large, b"")})
        os._exit(42)

    run_and_die(str(path), two_pages, "nowhere", 1)
    small = files(path, lambda name: filenames.parse_data(name) if "-c0-" in name else None)
    overwrite(small[0], 4096, b"\xaa" * 4096)
    assert reopened(path)[0] == {"small": "in the log", "large": "flushed first"}


def test_a_damaged_flushed_page_is_detected(tmp_path):
    path = tmp_path / "index"

    def one_large_page(store, acknowledge):
        put(store, {"large": "flushed first"}, size_class=3)
        os._exit(42)

    run_and_die(str(path), one_large_page, "nowhere", 1)
    large = [name for name in files(path, filenames.parse_data) if "-c3-" in name]
    overwrite(large[0], 4096 + 100, b"\xaa")
    with pytest.raises(CorruptionError, match=r"-c3-.*offset 4096.*CRC"):
        open_store(path, config=SMALL)


def test_torn_tail_is_dropped(tmp_path):
    path, _ = crashed_index(tmp_path)
    log = files(path, filenames.parse_log)[-1]
    data = Path(log).read_bytes()
    end = max(i for i in range(0, len(data), 4096) if data[i : i + 4] == b"XTFR")
    overwrite(log, end + 200, b"\xff" * 8)
    texts, _ = reopened(path)
    assert texts == history(2, 10)[-2]


def test_damage_before_a_later_frame_is_told_from_a_torn_tail(tmp_path):
    path, _ = crashed_index(tmp_path)
    log = files(path, filenames.parse_log)[-1]
    data = Path(log).read_bytes()
    frames = [i for i in range(0, len(data), 4096) if data[i : i + 4] == b"XTFR"]
    overwrite(log, frames[3] + 200, b"\xff" * 8)
    before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
    with pytest.raises(CorruptionError, match="damaged at offset"):
        open_store(path, config=SMALL)
    assert {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK} == before


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    path = tmp_path / "index"

    def two_checkpoints(store, acknowledge):
        write_steps(store, seed=3, first=0, steps=50, acknowledge=acknowledge)
        os._exit(42)

    run_and_die(str(path), two_checkpoints, "nowhere", 1)
    newest = files(path, filenames.parse_checkpoint)[-1]
    overwrite(newest, 5000, b"\xff" * 16)
    texts, _ = reopened(path, damaged=os.path.basename(newest))
    assert texts == history(3, 50)[-1]


def test_a_clean_close_leaves_no_log_and_two_checkpoints_either_of_which_is_enough(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    write_steps(store, 4, 0, 30, lambda step: None)
    store.close()
    assert files(path, filenames.parse_log) == []
    newest = files(path, filenames.parse_checkpoint)
    assert len(newest) == 2
    overwrite(newest[-1], 5000, b"\xff" * 16)
    store = open_store(path, config=SMALL)
    assert texts_of(store) == history(4, 30)[-1]
    store.close()


def test_a_clean_open_writes_nothing(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    write_steps(store, 4, 0, 30, lambda step: None)
    store.close()
    before = {name: os.stat(path / name).st_mtime_ns for name in os.listdir(path) if name != filenames.LOCK}
    for mode in ("r", "a"):
        store = open_store(path, mode=mode, config=SMALL)
        texts_of(store)
        store.close()
    assert {name: os.stat(path / name).st_mtime_ns for name in os.listdir(path) if name != filenames.LOCK} == before


def test_a_read_only_open_after_a_crash_rebuilds_pages_in_memory_and_writes_nothing(tmp_path):
    path, texts = crashed_index(tmp_path)
    before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
    store = open_store(path, mode="r", config=SMALL)
    assert texts_of(store) == texts
    store.close()
    assert {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK} == before
    assert reopened(path)[0] == texts


@pytest.mark.parametrize("copy", [0, 1])
def test_one_superblock_copy_is_enough(tmp_path, copy):
    path, texts = crashed_index(tmp_path)
    overwrite(str(path / filenames.SUPERBLOCK), copy * 4096 + 50, b"\xff" * 8)
    assert reopened(path)[0] == texts


def test_pages_go_unchecked_only_where_none_is_written(tmp_path):
    path, _ = crashed_index(tmp_path)
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    with pytest.raises(ValueError, match="only written where all have been checked"):
        recover(FileSystem(), str(path), SMALL, writable=True, check_pages=False)
    assert before == {name: (path / name).read_bytes() for name in os.listdir(path)}


def test_without_a_superblock_copy_the_index_is_refused(tmp_path):
    path, _ = crashed_index(tmp_path)
    overwrite(str(path / filenames.SUPERBLOCK), 50, b"\xff" * 4096)
    for mode in ("r", "r+", "a", "x"):
        with pytest.raises(CorruptionError):
            open_store(path, mode=mode, config=SMALL)


@pytest.mark.parametrize("damage", ["removed", "overwritten"])
@pytest.mark.parametrize("clean", [False, True])
def test_an_unreadable_manifest_is_replaced_by_a_scan(tmp_path, damage, clean):
    path, texts = crashed_index(tmp_path, commits=50)
    if clean:
        reopened(path)
    if damage == "removed":
        os.unlink(path / filenames.MANIFEST)
    else:
        overwrite(str(path / filenames.MANIFEST), 60, b"#####")
    assert reopened(path, damaged=filenames.MANIFEST if clean else None)[0] == texts


def test_a_missing_log_is_detected(tmp_path):
    path, _ = crashed_index(tmp_path)
    os.unlink(files(path, filenames.parse_log)[-1])
    with pytest.raises(CorruptionError, match="isn't there"):
        open_store(path, config=SMALL)


def test_files_of_another_index_are_refused(tmp_path):
    path, _ = crashed_index(tmp_path)
    (tmp_path / "two").mkdir()
    other, _ = crashed_index(tmp_path / "two")
    shutil.copy(other / filenames.MANIFEST, path / filenames.MANIFEST)
    with pytest.raises(CorruptionError, match="index"):
        open_store(path, config=SMALL)


def test_another_format_version_is_refused_with_both_versions(tmp_path):
    path, _ = crashed_index(tmp_path)
    manifest = (path / filenames.MANIFEST).read_bytes()
    assert manifest.startswith(b'{"format": 1')
    from xtree.persistence.files import manifest as module

    encoded = Manifest.load(FileSystem(), str(path)).encode()
    assert module.FORMAT == 1
    changed = encoded.replace(b'"format": 1', b'"format": 7', 1)
    zeroed = changed[: changed.index(b'"crc32c": "') + 11] + b"00000000" + changed[changed.index(b'"crc32c": "') + 19 :]
    from crc32c import crc32c

    (path / filenames.MANIFEST).write_bytes(zeroed.replace(b"00000000", b"%08x" % crc32c(zeroed), 1))
    with pytest.raises(FormatVersionError, match=r"1.*7"):
        open_store(path, config=SMALL)


def test_an_unborn_directory_is_made_afresh(tmp_path):
    path = tmp_path / "index"
    _, crashed = run_and_die(str(path), lambda store, acknowledge: None, "superblock.before_write", 1)
    assert crashed
    with pytest.raises(FileNotFoundError):
        open_store(path, mode="r+", config=SMALL)
    store = open_store(path, mode="x", config=SMALL)
    put(store, {"a": "1"})
    store.close()
    assert reopened(path)[0] == {"a": "1"}


def test_a_directory_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for mode in ("r", "r+", "a", "x"):
        with pytest.raises(CorruptionError, match=r"notes\.txt"):
            open_store(tmp_path, mode=mode)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_commits_go_on_after_recovery_and_survive_the_next_crash(tmp_path):
    path = tmp_path / "index"
    states = history(5, 90)
    done = 0
    for nth in (7, 40, 3, 25, 60):
        first = done

        def more(store, acknowledge, first=first):
            write_steps(store, seed=5, first=first, steps=15, acknowledge=acknowledge)

        acknowledged, _ = run_and_die(str(path), more, None, 20 * nth)
        done = max(done, acknowledged + 1)
        texts, _ = reopened(path)
        if texts == states[done]:
            continue
        assert texts == states[done + 1]
        done += 1


def test_log_garbage_is_bounded_by_checkpoints(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    texts: dict[str, str] = {}
    import random

    for step in range(400):
        changes = random_changes(random.Random(step), step)
        put(store, changes)
        settle(store)
        texts = after(texts, changes)
    assert store.stats()["coordinator"]["checkpoints"] >= 3
    assert sum(map(os.path.getsize, files(path, filenames.parse_log))) < 4 * SMALL.checkpoint_log_bytes
    assert len(files(path, filenames.parse_checkpoint)) <= 2
    assert texts_of(store) == texts
    store.close()
    assert LOG_MAGIC == b"XTREELOG"


def test_pages_made_and_removed_until_their_tags_wrap_are_logged_once(tmp_path):
    path = tmp_path / "index"

    def churn(store, acknowledge):
        write_set = begin(store)
        for _ in range(600):
            write_set.remove_page(write_set.add_page(KIND, 0, b"gone"))
        node = write_set.add_page(KIND, 0, b"kept")
        write_set.commit({"a": CatalogEntry("a", "text", node, b"")})
        os._exit(42)

    run_and_die(str(path), churn, "nowhere", 1)
    assert reopened(path)[0] == {"a": "kept"}


def log_changed_words(store, name: str, texts: list[str], damage: bool = False) -> None:
    """Appends a frame for each text. It gives a page this text by changed words, in turns under two handles."""
    index_files, entry = store.index_files, store.published.catalog.get(name)
    row, node, epoch = store.table.describe(entry.root), entry.root, store.published.epoch
    page = bytearray(struct.pack("<IIQBBHI", 0x47505458, row["crc"], node, KIND, 0, 1, 0) + store.read_page(node))
    names = [node + (100 << 8), node]
    for i, text in enumerate(texts):
        base, words, epoch = struct.unpack_from("<I", page, 4)[0], text.encode().ljust(64, b"\0"), epoch + 1
        new = names[i % 2] + i // 2 + i % 2  # each life has the next tag
        page[24:88] = words
        struct.pack_into("<Q", page, 8, new)
        struct.pack_into("<I", page, 4, page_crc(page))
        payload = struct.pack("<HH", 3, 8) + words
        delta = np.zeros(1, frame.DELTA)
        for field, value in {
            "node_id": new,
            "epoch": epoch,
            "op": frame.OP_BIRTH,
            "kind": KIND,
            "payload_form": frame.PAYLOAD_RANGES,
            "file_number": index_files.data_files.file_of_window[row["window"]],
            "offset": row["offset"] + 4096 * (8 + i),
            "page_crc": struct.unpack_from("<I", page, 4)[0] ^ damage,
            "page_bytes": 4096,
            "payload_bytes": len(payload),
            "base_crc": base,
            "replaces": node,
        }.items():
            delta[field] = value
        catalog = encode_changes({name: CatalogEntry(name, "text", new, b"")})
        index_files.log.reserve(frame.frame_bytes(1, len(catalog), len(payload)))
        index_files.log.append(epoch, epoch, epoch - 1, [delta.tobytes()], catalog, 1, [payload])
        index_files.log.sync()
        node = new


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_pages_whose_changed_words_were_logged_are_rebuilt(tmp_path, mode):
    path = tmp_path / "index"

    def work(store, acknowledge):
        put(store, {"a": "whole", "b": "beside it"})
        log_changed_words(store, "a", [f"version {i}" for i in range(7)])
        os._exit(42)

    run_and_die(str(path), work, "nowhere", 1)
    store = open_store(path, mode=mode, config=SMALL)
    assert texts_of(store) == {"a": "version 6", "b": "beside it"}
    assert (store.recovery.frames, store.recovery.deltas, store.recovery.images_written) == (8, 9, 2)
    store.check()
    store.close()
    assert reopened(path)[0] == {"a": "version 6", "b": "beside it"}


def test_a_rebuilt_page_with_another_crc_than_its_row_is_refused(tmp_path):
    path = tmp_path / "index"

    def work(store, acknowledge):
        put(store, {"a": "whole"})
        log_changed_words(store, "a", ["changed"], damage=True)
        os._exit(42)

    run_and_die(str(path), work, "nowhere", 1)
    for mode in ("r", "a"):
        with pytest.raises(CorruptionError, match=r"data-c0-.*offset \d+: page of node .* it has CRC"):
            open_store(path, mode=mode, config=SMALL)


def test_recovery_reports_what_it_read_and_wrote(tmp_path):
    path, texts = crashed_index(tmp_path, commits=60)
    log = files(path, filenames.parse_log)[-1]
    store = open_store(path, mode="r", config=SMALL)
    epoch, report = store.published.epoch, store.recovery
    assert (report.clean, report.checkpointed, report.tail_bytes, report.notes) == (False, False, 0, [])
    store.close()
    end = max(i for i in range(0, os.path.getsize(log), 4096) if Path(log).read_bytes()[i : i + 4] == b"XTFR")
    overwrite(log, end + 200, b"\xff" * 8)
    store = open_store(path, config=SMALL)
    report = store.recovery
    assert report.epoch == store.published.epoch == epoch - 1
    assert 0 < report.checkpoint_epoch < report.epoch and report.checkpointed and not report.clean
    assert report.frames == report.epoch - report.checkpoint_epoch
    assert report.deltas > report.frames and report.images_written > 0 and report.bytes_read > 4096 * report.frames
    assert report.tail_bytes > 0 and report.unexposed_frames == 0 and report.seconds > 0
    assert "torn tail" in report.notes[0] and "bad CRC" in report.notes[0] and log in report.notes[0]
    assert store.stats()["recovery"] == report.as_dict()
    store.close()
    store = open_store(path, config=SMALL)
    report = store.recovery
    assert (report.clean, report.checkpointed, report.frames, report.images_written) == (True, False, 0, 0)
    assert report.checkpoint_epoch == report.epoch == epoch - 1
    store.close()


def test_recovery_reports_frames_that_were_no_commits_yet(tmp_path):
    path = tmp_path / "index"
    run_and_die(str(path), work, "commit.synced", 20, small("strict"))
    store = open_store(path, config=small("strict"))
    assert store.recovery.unexposed_frames == 1 and store.recovery.tail_bytes > 0
    assert "1 frames that were no commits yet" in store.recovery.notes[0]
    store.close()


@pytest.mark.parametrize("mode", ["r", "a"])
def test_progress_rises_to_the_end(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(wal_reader, "CHUNK_BYTES", 16 << 10)
    path, texts = crashed_index(tmp_path, commits=60)
    calls = []
    store = open_store(path, mode=mode, config=SMALL, progress=lambda *numbers: calls.append(numbers))
    assert texts_of(store) == texts
    store.close()
    done, totals = zip(*calls, strict=True)
    assert len(calls) > 5 and len(set(totals)) == 1
    assert list(done) == sorted(done) and done[0] > 0 and done[-1] == totals[0] > 4096


def test_what_progress_raises_ends_the_open_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(wal_reader, "CHUNK_BYTES", 16 << 10)
    path, texts = crashed_index(tmp_path, commits=60)
    before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
    for nth in range(1, 8):
        left = nth

        def enough(done, total):
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            open_store(path, config=SMALL, progress=enough)
        assert {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK} == before
    assert reopened(path)[0] == texts


def test_a_progress_that_cannot_be_called_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(TypeError, match="progress must be callable or None, not 3"):
        xtree.Runtime(tmp_path / "index", progress=3)
    assert not (tmp_path / "index").exists()


def test_progress_of_an_open_tree_and_runtime(tmp_path):
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(1, (0, 0, 1, 1))
    for opened in (xtree.open, xtree.Runtime):
        calls = []
        opened(tmp_path / "index", progress=lambda *numbers, calls=calls: calls.append(numbers)).close()
        assert calls[-1][0] == calls[-1][1] > 4096


def test_pages_in_many_shards_survive_a_crash_and_a_clean_close(tmp_path):
    config = small("balanced", shard_rows=3)
    path = tmp_path / "index"

    def many(store, acknowledge):
        for i in range(40):
            put(store, {f"name-{i}": f"text {i}", f"name-{i // 2}": f"again {i}"})
            if i == 25:
                store.checkpoint()
        os._exit(42)

    run_and_die(str(path), many, "nowhere", 1, config)
    texts = None
    for _ in range(3):
        store = open_store(path, config=config)
        assert len(store.table.stats()["shards"]) > 8
        live = (node_id.unpack(row["node"])[0] for row in store.table.rows() if row["state"] == "live")
        assert len(set(live)) > 8
        store.check()
        assert texts in (None, texts_of(store)) and len(texts_of(store)) == 40
        put(store, {"last": "one more"})
        put(store, {"last": None})
        texts = texts_of(store)
        store.close()


def test_a_tree_whose_pages_are_in_many_shards_is_right(tmp_path):
    boxes = np.random.default_rng(3).random((3000, 2)).repeat(2, axis=1)[:, [0, 2, 1, 3]]
    config = xtree.Config(shard_rows=5)
    with xtree.open(tmp_path / "index", dims=2, config=config) as tree:
        for first in range(0, 3000, 100):
            tree.insert_many(np.arange(first, first + 100), boxes[first : first + 100])
        tree.check()
    with xtree.open(tmp_path / "index", config=config) as tree:
        assert len(tree.runtime.stats()["object_table"]["shards"]) > 8
        tree.check()
        assert tree.count((0, 0, 1, 1)) == 3000
        assert sorted(tree.query((0, 0, 0.5, 1))) == np.flatnonzero(boxes[:, 0] <= 0.5).tolist()
