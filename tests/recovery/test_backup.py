"""Backups: each is an index with a snapshot's content, taken beside writers; it is whole, or not there.

Promises (Nothing acknowledged is lost):

- a backup is the state of one moment, beside writers; after a crash at any step, a power loss or an error it is whole
  or not there:
  test_a_backup_holds_the_epoch_at_which_it_began_whatever_is_committed_meanwhile,
  test_backups_beside_a_writing_thread_are_whole_commits, test_a_crash_at_any_step_leaves_a_whole_backup_or_none,
  test_a_power_loss_at_any_step_leaves_a_whole_backup_or_none,
  test_an_error_at_any_call_leaves_nothing_and_the_index_as_it_was.

Promises (What people touch):

- a power loss as soon as `backup()` has returned leaves the backup whole; without any one of its syncs (a data
  file's, a checkpoint's, the manifest's, the superblock's, its directory's, the directory's above) the test fails:
  test_a_power_loss_as_soon_as_a_backup_has_returned_leaves_it_whole,
  test_a_backup_without_any_one_of_its_syncs_is_seen_to_break.
"""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support import brute_force
from support.faulty_fs import FaultyFileSystem
from support.forgetful_fs import SECTORS, ForgetfulFileSystem, PowerLoss, WatchedFile, digest, write_image
from support.text_pages import KIND, MODES, ONE_LONG_LOG, SMALL, check_after_a_power_loss, put, small, texts_of

import xtree
from xtree.persistence.backup import write_backup
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import ROW
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import exists, open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin

CONFIG = xtree.Config(window_bytes=1 << 20, data_file_first_bytes=64 << 10, checkpoint_log_bytes=1 << 20)


def opened(path: Path, after_a_power_loss: bool = False) -> tuple[dict[str, str], int]:
    """The texts and the epoch of a backup, which is clean, sound, and takes writes."""
    with_texts = open_store(path, mode="r+", config=SMALL)
    assert with_texts.recovery.clean and not with_texts.recovery.notes
    check_after_a_power_loss(with_texts, with_texts) if after_a_power_loss else with_texts.check()
    texts, epoch = texts_of(with_texts), with_texts.published.epoch
    put(with_texts, {"new": "page"})
    put(with_texts, {"new": None})
    with_texts.check()
    with_texts.close()
    return texts, epoch


def contents(tree) -> tuple[list, list]:
    ids, boxes = tree.items()
    order = np.lexsort((*boxes.T, ids))
    return ids[order].tolist(), boxes[order].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_a_backup_is_an_index_of_its_own_with_all_size_classes_in_several_files(tmp_path, mode):
    store = open_store(tmp_path / "index", config=small(mode))
    texts = {f"{size_class}-{i}": f"text {i}" for size_class in range(7) for i in range(9)}
    for size_class in range(7):
        put(store, {name: text for name, text in texts.items() if name[0] == str(size_class)}, size_class=size_class)
    write_backup(store, tmp_path / "copy")
    epoch, uuid, pages = store.published.epoch, store.uuid, pages_of(store)
    assert texts_of(store) == texts
    store.close()
    copy = open_store(tmp_path / "copy", mode="r", config=SMALL)
    assert copy.uuid != uuid and copy.config.window_bytes == SMALL.window_bytes
    assert pages_of(copy) == pages
    sizes = [entry.size_class for entry in Manifest.load(FileSystem(), tmp_path / "copy").data_files]
    assert set(sizes) == set(range(7)) and len(sizes) > 7
    copy.close()
    assert opened(tmp_path / "copy") == (texts, epoch)


def pages_of(store) -> list[tuple]:
    """NodeID, birth, kind, class and content of every page."""
    rows = np.frombuffer(store.snapshot_rows(store.published.epoch, list(range(len(store.windows))))[2], ROW)
    found = []
    for entry in store.published.catalog:
        row = rows[rows["node_id"] == entry.root][0]
        found.append((entry.root, int(row["birth"]), int(row["kind"]), int(row["size_class"]), int(row["crc"]),
                      store.read_page(entry.root)))
    return sorted(found)


def test_a_backup_holds_the_epoch_at_which_it_began_whatever_is_committed_meanwhile(tmp_path):
    config = small("balanced", checkpoint_log_bytes=64 << 10)
    store = open_store(tmp_path / "index", config=config)
    put(store, {f"name {i}": f"text {i}" for i in range(400)})
    put(store, {f"name {i}": None for i in range(0, 400, 3)})
    before, epoch = texts_of(store), store.published.epoch
    steps = []

    def change_everything(done, total):
        put(store, {f"name {i}": f"changed {len(steps)}" for i in range(400)})
        put(store, {f"name {i}": None for i in range(len(steps), 400, 7)})
        store.checkpoint()
        steps.append((done, total))

    write_backup(store, tmp_path / "copy", change_everything)
    assert len(steps) > 1 and steps == sorted(steps)
    assert steps[-1] == (4096 * len(before), 4096 * len(before))
    assert texts_of(store) != before
    store.close()
    assert opened(tmp_path / "copy") == (before, epoch)


def test_a_backup_reaches_pages_in_files_that_have_grown_since_the_open(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {"first": "page"})
    store.close()
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {f"name {i}": f"text {i}" for i in range(100)})
    before, epoch = texts_of(store), store.published.epoch
    write_backup(store, tmp_path / "copy")
    store.close()
    assert opened(tmp_path / "copy") == (before, epoch)


def test_backups_beside_a_writing_thread_are_whole_commits(tmp_path, random):
    stop = threading.Event()
    with xtree.Runtime(tmp_path / "index", config=CONFIG) as runtime:
        runtime.tree("flat", dims=2)
        runtime.tree("deep", dims=3)

        def write():
            number = 0
            while not stop.is_set():
                with runtime.transaction(trees=["flat", "deep"]) as tx:
                    ids = np.arange(number * 50, number * 50 + 50)
                    tx.tree("flat").insert_many(ids, random.random((50, 2)))
                    tx.tree("deep").insert_many(ids, random.random((50, 3)))
                    if number % 5 == 4:
                        for name in ("flat", "deep"):
                            old, boxes = tx.tree(name).items()
                            gone = old < number * 25
                            tx.tree(name).delete_many(old[gone], boxes[gone])
                number += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            seen = []
            for i in range(6):
                begun = runtime.stats()["epoch"]
                while runtime.stats()["epoch"] < begun + 20:
                    time.sleep(0.001)
                runtime.backup(tmp_path / f"copy {i}")
        finally:
            stop.set()
            thread.join()
        runtime.check()
    for i in range(6):
        with xtree.Runtime(tmp_path / f"copy {i}", mode="r+") as copy:
            copy.check()
            flat, deep = copy.tree("flat"), copy.tree("deep")
            assert sorted(flat.items()[0].tolist()) == sorted(deep.items()[0].tolist())
            seen.append(copy.stats()["epoch"])
            flat.insert_many([1], [[5.0, 5.0]])
            copy.check()
    assert seen == sorted(set(seen))


def test_a_read_only_open_is_backed_up_after_a_crash_too(tmp_path, random):
    program = (
        "import os, sys, numpy as np, xtree\nrt = xtree.Runtime(sys.argv[1])\n"
        "rt.tree('a', dims=2).insert_many(np.arange(3000), np.random.default_rng(1).random((3000, 2)))\nos._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "index")], check=True)
    with xtree.Runtime(tmp_path / "index", mode="r") as runtime:
        assert not runtime.stats()["recovery"]["clean"]
        runtime.backup(tmp_path / "copy")
        expected = contents(runtime.tree("a"))
    with xtree.Runtime(tmp_path / "copy") as copy:
        copy.check()
        assert contents(copy.tree("a")) == expected and len(expected[0]) == 3000


def test_a_tree_opened_by_itself_is_backed_up_others_say_what_to_do(tmp_path, random):
    boxes = brute_force.random_boxes(random, 500, 2)
    with xtree.XTree.from_boxes(boxes, path=tmp_path / "index") as tree:
        tree.backup(tmp_path / "copy")
        tree.delete(0, boxes[0])
        with xtree.open(tmp_path / "copy") as copy:
            brute_force.assert_same(copy, np.arange(500), boxes, boxes[:3])
    with pytest.raises(ValueError, match="in memory"):
        xtree.XTree(2).backup(tmp_path / "other")
    with xtree.Runtime(tmp_path / "index") as runtime, pytest.raises(ValueError, match=r"runtime\.backup"):
        runtime.tree("default").backup(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_empty_index_and_a_backup_of_a_backup_work(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        (tmp_path / "one").mkdir()
        runtime.backup(tmp_path / "one")
        runtime.tree("a", dims=2).insert(1, (0, 0))
        runtime.backup(tmp_path / "two")
    with xtree.Runtime(tmp_path / "one") as one:
        assert one.trees() == []
        one.tree("b", dims=1).insert(1, (0,))
    with xtree.Runtime(tmp_path / "two") as two:
        two.backup(tmp_path / "three")
        two.drop("a")
    with xtree.Runtime(tmp_path / "three") as three:
        three.check()
        assert three.trees() == ["a"] and len(three.tree("a")) == 1


def test_only_a_missing_or_empty_directory_outside_the_index_is_taken(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(1, (0, 0))
        for target in (full, full / "notes.txt", tmp_path / "index"):
            with pytest.raises((FileExistsError, ValueError)):
                tree.backup(target)
        (tmp_path / "link").symlink_to(tmp_path / "index")
        for target in (tmp_path / "index" / "copy", tmp_path / "link" / "copy", tmp_path / "link"):
            with pytest.raises(ValueError, match="inside the index"):
                tree.backup(target)
        with pytest.raises(FileNotFoundError):
            tree.backup(tmp_path / "no" / "such" / "place")
        with pytest.raises(TypeError, match="callable"):
            tree.backup(tmp_path / "copy", progress=3)
        tree.backup(tmp_path / "copy")
        with pytest.raises(FileExistsError):
            tree.backup(tmp_path / "copy")
        tree.check()
    assert sorted(os.listdir(tmp_path)) == ["copy", "full", "index", "link"] and os.listdir(full) == ["notes.txt"]
    with pytest.raises(xtree.ClosedError):
        tree.backup(tmp_path / "late")
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_of_the_progress_function_ends_the_backup_and_removes_it(tmp_path, error):
    def fail(done, total):
        raise error

    (tmp_path / "empty").mkdir()
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(1, (0, 0))
        for target in (tmp_path / "copy", tmp_path / "empty"):
            with pytest.raises(error):
                tree.backup(target, progress=fail)
        tree.insert(2, (0, 0))
    assert not (tmp_path / "copy").exists() and os.listdir(tmp_path / "empty") == []


def test_closing_the_index_ends_a_backup_and_removes_it(tmp_path):
    tree = xtree.open(tmp_path / "index", dims=2)
    tree.bulk_load(np.arange(100_000), np.random.default_rng(1).random((100_000, 2)))
    with pytest.raises(xtree.ClosedError):
        tree.backup(tmp_path / "copy", progress=lambda done, total: tree.close())
    assert not (tmp_path / "copy").exists()
    with xtree.open(tmp_path / "index") as again:
        assert len(again) == 100_000


def test_the_target_cannot_be_opened_while_it_is_being_written(tmp_path):
    refused = []

    def intrude(done, total):
        with pytest.raises((xtree.LockedError, xtree.CorruptionError)) as caught:
            xtree.open(tmp_path / "copy", dims=2)
        refused.append(caught.type)

    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(1, (0, 0))
        tree.backup(tmp_path / "copy", progress=intrude)
    assert refused
    with xtree.open(tmp_path / "copy") as copy:
        assert len(copy) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_at_any_call_leaves_nothing_and_the_index_as_it_was(tmp_path, number):
    fs = FaultyFileSystem()
    store = open_store(tmp_path / "index", config=small("balanced", **ONE_LONG_LOG), fs=fs)
    for size_class in (0, 3):
        put(store, {f"{size_class} {i}": f"text {i}" for i in range(5)}, size_class=size_class)
    texts = texts_of(store)
    nth, failed = 0, True
    while failed:
        nth += 1
        target = tmp_path / f"copy {nth}"
        fs.fail_nth(nth, number)
        try:
            write_backup(store, target)
            failed = False
        except OSError as error:
            assert error.errno == number
            assert not target.exists()
        fs.heal()
        assert store.state == "open"
        put(store, {"a": f"after {nth}"})
    assert nth > 20
    store.close()
    assert opened(target)[0] == texts | {"a": f"after {nth - 1}"}


def test_a_disk_without_room_is_refused_before_anything_is_copied(tmp_path, monkeypatch):
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.bulk_load(np.arange(10_000), np.random.default_rng(1).random((10_000, 2)))
        monkeypatch.setattr(FileSystem, "free_space", lambda self, path: 100_000)
        with pytest.raises(OSError, match="100000 are free") as caught:
            tree.backup(tmp_path / "copy")
        assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "copy").exists()


def test_a_failed_store_can_still_be_backed_up(tmp_path):
    fs = FaultyFileSystem()
    store = open_store(tmp_path / "index", config=SMALL, fs=fs)
    put(store, {"a": "1"})
    fs.fail("sync", ".log")
    with pytest.raises(OSError):
        put(store, {"a": "2"})
    fs.heal()
    assert store.state == "poisoned"
    write_backup(store, tmp_path / "copy")
    store.close()
    assert opened(tmp_path / "copy")[0] == {"a": "1"}


def test_a_damaged_page_stops_the_backup(tmp_path):
    path = tmp_path / "index"
    xtree.XTree.from_boxes(np.random.default_rng(1).random((5000, 4)) + np.array([0, 0, 1, 1]), path=path).close()
    (data,) = path.glob("data-c0-*")
    with data.open("r+b") as file:
        file.seek(20 * 4096 + 1000)
        file.write(b"\xff\x00damaged")
    with xtree.open(path, mode="r") as tree, pytest.raises(xtree.CorruptionError, match=data.name):
        tree.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_page_damaged_after_its_first_touch_is_not_copied(tmp_path):
    path = tmp_path / "index"
    with xtree.XTree.from_boxes(np.random.default_rng(1).random((5000, 4)) + np.array([0, 0, 1, 1]), path=path) as tree:
        tree.check()
        (data,) = path.glob("data-c0-*")
        with data.open("r+b") as file:
            file.seek(4096 + 2000)
            file.write(b"\xff\x00damaged")
        with pytest.raises(xtree.CorruptionError, match=data.name):
            tree.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def backup_and_die(source: Path, target: Path, nth: int) -> bool:
    """Makes a backup in a child, which dies at the n-th crash point. Returns whether it died."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            store = open_store(source, config=SMALL)
            left = nth

            def hook(name):
                nonlocal left
                left -= 1
                if not left:
                    os._exit(42)

            set_hook(hook)
            write_backup(store, target)
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 42)
    return code == 42


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_crash_at_any_step_leaves_a_whole_backup_or_none(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {f"name {i}": f"text {i}" for i in range(20)})
    texts, epoch = texts_of(store), store.published.epoch
    store.close()
    whole = nth = 0
    while True:
        nth += 1
        target = tmp_path / f"copy {nth}"
        if not backup_and_die(tmp_path / "index", target, nth):
            break
        try:
            born = exists(target)
        except xtree.CorruptionError:
            born = False
            for mode in ("a", "r", "r+", "x"):
                with pytest.raises(xtree.CorruptionError, match="superblock"):
                    open_store(target, mode=mode)
        if born:
            whole += 1
            assert opened(target) == (texts, epoch)
    assert nth > 15 and whole >= 2
    assert opened(tmp_path / "index")[0] == texts


class Losses(ForgetfulFileSystem):
    """Keeps what a power loss might leave, at every crash point and between the removals of a failed backup."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        super().__init__(directory)
        self.rng = rng
        self.left: list[Path] = []

    def lose(self, point: str = "") -> None:
        for _ in range(3):
            self.left.append(Path(f"{self.root}-{len(self.left)}"))
            self.power_loss(self.left[-1], self.rng)

    def unlink(self, path):
        super().unlink(path)
        self.lose()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")
@pytest.mark.parametrize("fails", [False, True])
def test_a_power_loss_at_any_step_leaves_a_whole_backup_or_none(tmp_path, fails):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    store = open_store(tmp_path / "index", config=SMALL)
    for size_class in (0, 2):
        put(store, {f"{size_class} {i}": f"text {i}" for i in range(12)}, size_class=size_class)
    texts, epoch = texts_of(store), store.published.epoch
    losses = Losses(tmp_path / "copy", random.Random(seed))

    def hook(point):
        losses.lose(point)
        if fails and point == "backup.superblock_synced":
            raise OSError(errno.EIO, "a failure with everything on the disk")

    set_hook(hook)
    try:
        write_backup(store, tmp_path / "copy", fs=losses)
    except OSError:
        assert fails
    finally:
        set_hook(None)
    if not fails:
        losses.lose()
    store.close()
    whole = 0
    for path in losses.left:
        try:
            born = exists(path)
        except xtree.CorruptionError:
            born = False
        if born:
            whole += 1
            assert opened(path, after_a_power_loss=True) == (texts, epoch), (path, seed)
    assert len(losses.left) > 30 and whole >= 3
    if not fails:
        assert all(exists(path) for path in losses.left[-3:])


class Forgotten(WatchedFile):
    """A file whose syncs may be left out."""

    __slots__ = ()

    def sync(self):
        if not self.fs.leaves_out(self.name):
            super().sync()


class WithoutSome(ForgetfulFileSystem):
    """Leaves out the syncs of files or directories that a pattern matches: a planted bug."""

    def __init__(self, root: Path, pattern: str) -> None:
        super().__init__(root)
        self.pattern, self.left_out = re.compile(pattern), 0

    def leaves_out(self, name: str) -> bool:
        found = self.pattern.fullmatch(name) is not None
        self.left_out += found
        return found

    def open(self, path, mode):
        opened = super().open(path, mode)
        opened.__class__ = Forgotten
        return opened

    def sync_directory(self, path):
        if not self.leaves_out(f"directory {self._name(path)}"):
            super().sync_directory(path)


def broken_by_power_loss(tmp_path: Path, pattern: str) -> tuple[int, int]:
    """Makes a backup in a new directory, and cuts the power as soon as the call has returned.

    Returns how many syncs a pattern has left out, and how many of the possible power losses leave no whole backup.
    """
    store = open_store(tmp_path / "index", config=SMALL)
    for size_class in (0, 2):
        put(store, {f"{size_class} {i}": f"text {i}" for i in range(4)}, size_class=size_class)
    texts, epoch = texts_of(store), store.published.epoch
    (tmp_path / "disk").mkdir()
    fs = WithoutSome(tmp_path / "disk", pattern)
    write_backup(store, tmp_path / "disk" / "copy", fs=fs)
    store.close()
    state = fs.state()
    images = {digest(image): image for seed in range(40) for sector in SECTORS
              for image in [state.after(PowerLoss(seed, sector))]}  # fmt: skip
    broken = 0
    for i, image in enumerate(images.values()):
        write_image(image, tmp_path / f"left {i}")
        try:
            assert opened(tmp_path / f"left {i}" / "copy") == (texts, epoch)
        except (AssertionError, xtree.XTreeError, OSError):
            broken += 1
    return fs.left_out, broken


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")
def test_a_power_loss_as_soon_as_a_backup_has_returned_leaves_it_whole(tmp_path):
    assert broken_by_power_loss(tmp_path, "nothing") == (0, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")
@pytest.mark.parametrize(
    "pattern",
    [
        r"data-c0-.*", r"data-c2-.*", r"checkpoint-0*3\..*", r"checkpoint-0*4\..*", r"manifest\.json.*",
        r"superblock\.bin", r"directory copy", r"directory ",
    ],
)  # fmt: skip
def test_a_backup_without_any_one_of_its_syncs_is_seen_to_break(tmp_path, pattern):
    left_out, broken = broken_by_power_loss(tmp_path, pattern)
    assert left_out and broken


KILLED = """
import sys, threading, numpy as np, xtree
rt = xtree.Runtime(sys.argv[1])
tree = rt.tree("a", dims=2)
def write():
    rng = np.random.default_rng()
    while True:
        tree.insert_many(np.arange(50), rng.random((50, 2)))
threading.Thread(target=write, daemon=True).start()
for number in range(1000):
    rt.backup(f"{sys.argv[2]} {number}")
    print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_during_a_backup_leaves_the_index_and_whole_backups_only(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.tree("a", dims=2).bulk_load(np.arange(20_000), np.random.default_rng(seed).random((20_000, 2)))
    for attempt in range(4):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "index"), str(tmp_path / f"copy {attempt}")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            reports = [child.stdout.readline() for _ in range(rng.randrange(1, 4))]
            time.sleep(rng.uniform(0, 0.02))
            child.kill()
            reports += child.stdout.readlines()
        acknowledged = int(reports[-1]) + 1
        for number in range(acknowledged + 1):
            target = tmp_path / f"copy {attempt} {number}"
            try:
                born = exists(target)
            except xtree.CorruptionError:
                born = False
            assert born or number == acknowledged
            if born:
                with xtree.Runtime(target) as copy:
                    copy.check()
                    assert len(copy.tree("a")) % 50 == 0
        with xtree.Runtime(tmp_path / "index") as runtime:
            runtime.check()


def test_damage_to_the_checkpoints_of_a_backup_is_never_taken_for_an_empty_index(tmp_path):
    path = tmp_path / "copy"
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.tree("a", dims=2).insert(1, (0, 0))
        runtime.backup(path)
    program = (
        "import os, sys, xtree\nrt = xtree.Runtime(sys.argv[1])\nrt.tree('b', dims=2).insert(2, (0, 0))\nos._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    checkpoints = sorted(path.glob("checkpoint-*"))
    assert len(checkpoints) == 2
    damage(checkpoints[1])
    with xtree.Runtime(path, mode="r") as runtime:
        assert runtime.trees() == ["a", "b"] and len(runtime.tree("a")) == 1
    damage(checkpoints[0])
    for scanned in (False, True):
        if scanned:
            (path / filenames.MANIFEST).unlink()
        with pytest.raises(xtree.CorruptionError):
            xtree.Runtime(path)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_backup_takes_little_memory(tmp_path):
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.bulk_load(np.arange(500_000), np.random.default_rng(1).random((500_000, 2)))
        tracemalloc.start()
        try:
            tree.backup(tmp_path / "copy")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sum(file.stat().st_size for file in (tmp_path / "copy").glob("data-*")) > 20_000_000
    assert peak < 6_000_000


def test_a_backup_after_pages_were_dropped_has_no_holes(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL)
    for i in range(60):
        put(store, {f"name {i}": "x"})
    put(store, {f"name {i}": None for i in range(60) if i % 6})
    write_set = begin(store)  # pages that were never committed aren't copied
    node = write_set.add_page(KIND, 0, b"unseen")
    write_backup(store, tmp_path / "copy")
    write_set.commit({"late": CatalogEntry("late", "text", node, b"")})
    store.close()
    (entry,) = Manifest.load(FileSystem(), tmp_path / "copy").data_files
    assert entry.synced_bytes == 4096 + 10 * 4096
    assert opened(tmp_path / "copy")[0] == {f"name {i}": "x" for i in range(0, 60, 6)}
