"""Recovery: whatever a process was doing when it ended, the state is a prefix that holds every acknowledged commit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pages import KIND, SMALL, after, history, put, random_changes, run_and_die, texts_of, write_steps

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence import filenames
from xtree.persistence.catalog import CatalogEntry
from xtree.persistence.crash_points import CRASH_POINTS, set_hook
from xtree.persistence.frame import LOG_MAGIC
from xtree.persistence.manifest import Manifest
from xtree.persistence.platform_fs import FileSystem
from xtree.persistence.runtime import open_store

STEPS = 40


def work(store, acknowledge):
    write_steps(store, seed=1, first=0, steps=STEPS, acknowledge=acknowledge)


def reopened(path) -> tuple[dict[str, str], int]:
    """The texts after recovery, checked; and again after a second open, which must find the same."""
    store = open_store(path, config=SMALL)
    texts, epoch = texts_of(store), store.published.epoch
    store.check()
    store.begin().abort()
    assert set(files(path, filenames.parse_data)) == {f.path for f in listed_files(store)}
    store.close()
    store = open_store(path, mode="r+", config=SMALL)
    assert (texts_of(store), store.published.epoch) == (texts, epoch)
    assert store.recovery.clean
    store.close()
    return texts, epoch


def listed_files(store):
    """The data files that the store knows."""
    return [data_file.file for data_file in store._journal.data_files._files.values()]


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


def test_every_named_crash_point_is_known_and_survived(tmp_path):
    counts = reached_points(tmp_path / "count")
    assert set(counts) <= set(CRASH_POINTS)
    states = history(1, STEPS)
    for point, times in counts.items():
        for nth in sorted({1, (times + 1) // 2, times}):
            path = tmp_path / f"{point}-{nth}"
            acknowledged, crashed = run_and_die(str(path), work, point, nth)
            assert crashed, (point, nth)
            texts, _ = reopened(path)
            assert texts in states[acknowledged + 1 : acknowledged + 3], (point, nth, acknowledged)
            shutil.rmtree(path)


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


def crashed_index(tmp_path, commits=10):
    """An index whose process ended after so many commits, with one log and no checkpoint of them."""
    path = tmp_path / "index"

    def some(store, acknowledge):
        write_steps(store, seed=2, first=0, steps=commits, acknowledge=acknowledge)
        os._exit(42)

    run_and_die(str(path), some, "nowhere", 1)
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
        write_set = store.begin()
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
    texts, _ = reopened(path)
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
    assert reopened(path)[0] == texts


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
    from xtree.persistence import manifest as module

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
        texts = after(texts, changes)
    assert store.stats()["coordinator"]["checkpoints"] >= 3
    assert len(files(path, filenames.parse_log)) <= 3
    assert len(files(path, filenames.parse_checkpoint)) <= 2
    assert texts_of(store) == texts
    store.close()
    assert LOG_MAGIC == b"XTREELOG"


def test_pages_made_and_removed_until_their_tags_wrap_are_logged_once(tmp_path):
    path = tmp_path / "index"

    def churn(store, acknowledge):
        write_set = store.begin()
        for _ in range(600):
            write_set.remove_page(write_set.add_page(KIND, 0, b"gone"))
        node = write_set.add_page(KIND, 0, b"kept")
        write_set.commit({"a": CatalogEntry("a", "text", node, b"")})
        os._exit(42)

    run_and_die(str(path), churn, "nowhere", 1)
    assert reopened(path)[0] == {"a": "kept"}
