"""Whatever becomes of the directory of an open index, what is at its path now is left alone, and nothing that was
acknowledged is lost from files that still exist.

An index is open and has commits that no checkpoint holds. Its directory is removed, moved or replaced, and another
index is made at the path. Then the old handle does all that a handle may do, up to its end. The new index holds what
was put into it, and so does the old one if it still exists.

Promises (One writer, many readers):

- a directory that is removed, moved, replaced, exchanged or mounted over while its index is open: what stands at the
  path now is unharmed, whatever the old handle does then, and what was moved has every commit:
  test_an_old_handle_leaves_the_index_alone_that_stands_at_its_path_now,
  test_exchanged_directories_keep_what_each_holds, test_another_file_system_mounted_there_is_left_alone,
  test_an_index_that_was_moved_opens_at_its_new_place_with_every_commit.
- so it is at whatever moment that happens, and when nobody closes the handle:
  test_at_whatever_moment_a_directory_is_replaced_the_new_index_is_unharmed,
  test_a_handle_let_go_at_the_end_of_the_interpreter_harms_nothing.
- a turned link changes nothing for who has the index open:
  test_a_turned_link_changes_nothing_for_who_has_the_index_open.
- a read-only handle reads its own files or none; a backup's directory may be lost too:
  test_a_read_only_handle_reads_its_own_files_or_none,
  test_a_backup_whose_directory_is_moved_or_replaced_fails_and_leaves_both_alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.faulty_fs import FaultyFileSystem
from support.forgetful_fs import Image, read_image
from support.moved_indexes import CONFIG, NEW, OLD, make_new, open_old, require_whole
from support.places import TESTS
from support.text_pages import MODES, by_request, put, settle, small, texts_of

import xtree
from xtree.errors import CorruptionError, LockedError, StoreFailedError
from xtree.persistence.backup import write_backup
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.files import open_directory
from xtree.persistence.files.filenames import LOCK
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import open_store
from xtree.tools.fsck import fsck

PERSISTENCE = Path(open_directory.__file__).parent.parent

Paths = tuple[Path, Path]  # of the index that is open, and of one that may take its place


@pytest.fixture(params=["by descriptor", "by path"])
def lookup(request, monkeypatch):
    """How names are looked up: as on this system, and as on one that has no descriptors of directories."""
    if request.param == "by path":
        monkeypatch.setattr(open_directory, "BY_DESCRIPTOR", False)
    elif not open_directory.BY_DESCRIPTOR:
        pytest.skip("needs descriptors of directories")
    return request.param


# What becomes of a directory. Each leaves no directory at the path, or an empty one, and returns where the old one is.


def removed(path: Path) -> Path | None:
    shutil.rmtree(path)
    return None


def emptied(path: Path) -> Path | None:
    for file in path.iterdir():
        file.unlink()
    return None


def moved(path: Path) -> Path | None:
    return Path(path.rename(path.with_name("moved")))


def renamed_over(path: Path) -> Path | None:
    other = path.with_name("empty")
    other.mkdir()
    emptied(path)
    os.replace(other, path)
    return None


def parent_moved(path: Path) -> Path | None:
    parent = path.parent
    there = parent.rename(parent.with_name("moved-parent"))
    parent.mkdir()
    return there / path.name


LOSSES = [removed, emptied, moved, renamed_over, parent_moved]


# What the old handle does then. Each of these ends the handle.


def close(store) -> None:
    with pytest.raises(StoreFailedError, match="while the index was open"):
        store.close()
    assert store.state == "closed"


def insert(store) -> None:
    with pytest.raises(StoreFailedError, match="while the index was open"):
        put(store, {"more": "3"})
    assert store.state == "poisoned"
    with pytest.raises(StoreFailedError, match="reopen it"):
        put(store, {"more": "4"})
    store.close()


def insert_large(store) -> None:
    """The size class has no file yet, so making the file notices the loss before the commit does."""
    with pytest.raises(StoreFailedError, match="while the index was open"):
        put(store, {"large": "3"}, size_class=4)
    assert store.state == "poisoned"
    store.close()


def checkpoint(store) -> None:
    with pytest.raises(StoreFailedError, match="while the index was open"):
        store.checkpoint()
    assert store.state == "poisoned"
    store.close()


def checkpoint_in_background(store) -> None:
    checkpointer = store._coordinator.checkpointer
    checkpointer.call(lambda: checkpointer._take("test", []))
    assert store.state == "poisoned" and isinstance(checkpointer.last_error, StoreFailedError)
    store.close()


def make_log_ahead(store) -> None:
    with pytest.raises(StoreFailedError, match="while the index was open"):
        store._coordinator.between_groups(store.index_files.make_spare)
    assert store.state == "poisoned"
    store.close()


def sync_in_background(store) -> None:
    store._coordinator._sync_in_background()
    assert store.state == "poisoned"
    store.close()


def end_of_last_handle(store) -> None:
    """What the finalizer of a Runtime does, which may not raise."""
    with contextlib.suppress(StoreFailedError):
        store.close()
    assert store.state == "closed"


USES = [
    close, insert, insert_large, checkpoint, checkpoint_in_background, make_log_ahead, sync_in_background,
    end_of_last_handle,
]  # fmt: skip


def image_of(path: Path) -> Image | None:
    """What is at a path."""
    return read_image(path) if path.exists() else None


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
@pytest.mark.parametrize("when", ["closed before", "open meanwhile", "made afterwards"])
def test_an_old_handle_leaves_the_index_alone_that_stands_at_its_path_now(tmp_path, lookup, lose, use, when):
    path = tmp_path / "parent" / "index"
    path.parent.mkdir()
    old = open_old(path)
    there = lose(path)
    new = None
    if when != "made afterwards":
        new = make_new(path)
        if when == "closed before":
            new.close()
    before = image_of(path)
    if there is not None or (lookup == "by descriptor" and lose is removed):
        assert texts_of(old) == OLD
    use(old)
    assert image_of(path) == before, "something was written at the path"
    if when == "made afterwards":
        new = make_new(path)
    if new.state == "open":
        assert texts_of(new) == NEW
        put(new, {"new": "2"})
        new.close()
    require_whole(path, NEW)
    if there is not None:
        require_whole(there, OLD)


def exchange(one: Path, other: Path) -> None:
    """Makes two directories swap their names."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def exchange_at_once(one: Path, other: Path) -> None:
    """The same in one step, where the system has such a call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename is None or rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), flag):
        pytest.skip("needs renameat2")


@pytest.mark.parametrize("swap", [exchange, exchange_at_once], ids=lambda swap: swap.__name__)
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("other_is", ["closed", "open"])
def test_exchanged_directories_keep_what_each_holds(tmp_path, lookup, swap, use, other_is):
    path, other = tmp_path / "index", tmp_path / "other"
    old, new = open_old(path), make_new(other)
    if other_is == "closed":
        new.close()
    swap(path, other)
    before = image_of(path)
    use(old)
    assert image_of(path) == before
    if other_is == "open":
        insert(new)  # that directory was moved too
    require_whole(path, NEW)
    require_whole(other, OLD)


def test_a_directory_that_came_back_takes_no_more_writes_from_the_handle_that_missed_it(tmp_path, lookup):
    path = tmp_path / "index"
    old = open_old(path)
    path.rename(tmp_path / "moved")
    with pytest.raises(StoreFailedError):
        put(old, {"more": "3"})
    (tmp_path / "moved").rename(path)
    with pytest.raises(StoreFailedError):
        put(old, {"more": "3"})
    old.close()
    require_whole(path, OLD)


@pytest.mark.parametrize("mode", MODES)
def test_a_turned_link_changes_nothing_for_who_has_the_index_open(tmp_path, lookup, mode):
    """Each directory is written to by its own handle, at the same time, up to a clean close."""
    link, blue, green = (tmp_path / name for name in ("current", "v1", "v2"))
    blue.mkdir()
    link.symlink_to("v1")
    old = open_store(link, config=small(mode))
    for name, text in OLD.items():
        put(old, {name: text})
    green.mkdir()
    link.unlink()
    link.symlink_to("v2")
    new = open_store(link, config=small(mode))
    for n in range(60):
        put(old, {"both": f"old {n}"}, size_class=n % 5)
        put(new, {"both": f"new {n}"}, size_class=n % 5)
        if n % 20 == 10:
            old.checkpoint()
            new.checkpoint()
    assert str(old.path) == str(blue) and str(new.path) == str(green)
    write_backup(old, tmp_path / "copy")
    new.close()
    old.close()
    require_whole(blue, {"old": "1", "both": "old 59"})
    require_whole(tmp_path / "copy", {"old": "1", "both": "old 59"})
    require_whole(green, {"both": "new 59"})


def test_a_link_above_the_directory_may_be_turned_too(tmp_path, lookup):
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
    (tmp_path / "current").symlink_to("v1")
    old = open_old(tmp_path / "current" / "index")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v2")
    new = make_new(tmp_path / "current" / "index")
    put(old, {"more": "3"})
    old.checkpoint()
    old.close()
    new.close()
    require_whole(tmp_path / "v1" / "index", {**OLD, "more": "3"})
    require_whole(tmp_path / "v2" / "index", NEW)


def test_a_relative_path_is_that_of_the_moment_when_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("index", config=CONFIG)
    put(store, OLD)
    monkeypatch.chdir("/")
    put(store, {"more": "3"})
    store.close()
    require_whole(tmp_path / "index", {**OLD, "more": "3"})


def test_an_index_that_was_moved_opens_at_its_new_place_with_every_commit(tmp_path, lookup):
    path, there = tmp_path / "index", tmp_path / "moved"
    old = open_old(path)
    path.rename(there)
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):  # its writer still has it
        open_store(there, config=CONFIG)
    with pytest.raises(StoreFailedError, match="moved away"):
        put(old, {"more": "3"})
    assert texts_of(old) == OLD, "reads go on"
    write_backup(old, tmp_path / "copy")
    old.close()
    require_whole(there, OLD)
    require_whole(tmp_path / "copy", OLD)


@pytest.mark.parametrize(
    "lose, what",
    [
        (removed, "the directory was removed"),
        (emptied, "its file LOCK was removed"),
        (moved, "the directory was moved away"),
        (lambda path: (removed(path), path.mkdir()), "something else was put in its place"),
        (lambda path: (removed(path), make_new(path).close()), "another index was put in its place"),
        (lambda path: (emptied(path), make_new(path).close()), "its file LOCK was replaced"),
    ],
)
def test_the_error_says_which_directory_and_what_became_of_it(tmp_path, lose, what):
    path = tmp_path / "index"
    old = open_old(path)
    lose(path)
    with pytest.raises(StoreFailedError, match=f"{path}: {what}"):
        put(old, {"more": "3"})
    with pytest.raises(StoreFailedError, match=what):  # later writes say so too
        put(old, {"more": "4"})
    old.close()


@pytest.mark.skipif(not open_directory.BY_DESCRIPTOR, reason="needs descriptors of directories")
@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_read_only_handle_reads_its_own_files_or_none(tmp_path, lose):
    """A data file is opened when a page in it is first read, after the directory was lost."""
    path = tmp_path / "parent" / "index"
    path.parent.mkdir()
    open_old(path).close()
    reader = open_store(path, mode="r", config=CONFIG)
    there = lose(path)
    make_new(path).close()
    if there is None:
        with pytest.raises((CorruptionError, FileNotFoundError)):
            texts_of(reader)
    else:
        assert texts_of(reader) == OLD
        reader.check()
    reader.close()
    require_whole(path, NEW)


# At any moment.


class Loser:
    """A hook for crash points that loses a directory at the n-th of them."""

    def __init__(self, nth: int, lose: Callable[[], object]) -> None:
        self.left, self.lose = nth, lose
        self.name: str | None = None

    def __call__(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            set_hook(None)
            self.name = name
            with ThreadPoolExecutor(1) as somebody_else:
                somebody_else.submit(self.lose).result()


def write_to_the_end(path: Path, acknowledged: list[int]) -> None:
    """Makes commits of all kinds, checkpoints, new files and logs, up to a clean close."""
    store = open_store(path, config=small("balanced", wal_rotate_bytes=64 << 10))
    try:
        for n in range(8):
            put(store, {"both": str(n)}, size_class=n % 4)
            acknowledged.append(n)
            settle(store)
            if n % 5 == 4:
                store.checkpoint()
    finally:
        store.close()


def lose_at(path: Path, nth: int, lose: Callable[[Path], Path | None]) -> bool:
    """Replaces an index that is being written to at its n-th crash point. Returns whether there were so many."""
    there: list[Path | None] = []
    acknowledged: list[int] = []

    def replace() -> None:
        there.append(lose(path))
        make_new(path).close()

    loser = Loser(nth, replace)
    set_hook(loser)
    try:
        write_to_the_end(path, acknowledged)
    except (StoreFailedError, FileNotFoundError) as error:
        assert there, error
    finally:
        set_hook(None)
    if there:
        require_whole(path, NEW)
        if there[0] is not None:
            with contextlib.closing(open_store(there[0], config=CONFIG)) as store:
                found = int(texts_of(store).get("both", -1))
                last = acknowledged[-1] if acknowledged else -1
                assert found in (last, last + 1), f"lost at {loser.name}"  # the one under way may be there
                store.check()
    return bool(there)


@pytest.mark.slow
@pytest.mark.parametrize("lose", [moved, emptied, removed], ids=lambda lose: lose.__name__)
def test_at_whatever_moment_a_directory_is_replaced_the_new_index_is_unharmed(tmp_path, lookup, lose, tally):
    for nth in itertools.count(1):
        base = tmp_path / str(nth)
        base.mkdir()
        found = lose_at(base / "index", nth, lose)
        shutil.rmtree(base)
        if not found:
            break
    tally("moments at which a directory was replaced", nth - 1)
    assert nth > 100


# Handles that nobody closes.


AT_THE_END = """
import gc, os, shutil, sys
import xtree
path, how, lose = sys.argv[1:]
old = xtree.open(path, dims=2)
old.insert(1, (0, 0, 1, 1))
old.insert(2, (0, 0, 1, 1))
if lose == "removed":
    shutil.rmtree(path)
else:
    os.rename(path, path + "-moved")
new = xtree.open(path, dims=2)
for n in range(10, 15):
    new.insert(n, (0, 0, 1, 1))
if how != "exit with both":
    new.close()
if how == "forgotten":
    del old
    gc.collect()
"""


@pytest.mark.slow
@pytest.mark.parametrize("lose", ["removed", "moved"])
@pytest.mark.parametrize("how", ["forgotten", "exit", "exit with both"])
def test_a_handle_let_go_at_the_end_of_the_interpreter_harms_nothing(tmp_path, how, lose):
    path = str(tmp_path / "index")
    command = [sys.executable, "-c", AT_THE_END, path, how, lose]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stderr == ""
    for at, ids in ((path, [10, 11, 12, 13, 14]), (f"{path}-moved", [1, 2])):
        if os.path.exists(at):
            assert fsck(at).ok
            with xtree.open(at) as tree:
                assert sorted(tree.items()[0].tolist()) == ids
                tree.check()


def test_an_index_in_a_notebook_is_removed_and_built_anew_as_often_as_one_likes(tmp_path):
    """The old object is released when the name gets the new one."""
    path = tmp_path / "index"
    for n in range(1, 6):
        tree = xtree.open(path, dims=2)
        for i in range(n):
            tree.insert(i, (0, 0, 1, 1))
        assert len(tree) == n
        shutil.rmtree(path)
        again = xtree.open(path, dims=2)
        again.insert(100 + n, (0, 0, 1, 1))
        del tree
        gc.collect()
        again.close()
        with xtree.open(path) as tree:
            assert tree.items()[0].tolist() == [100 + n]
            tree.check()
        del tree, again
        shutil.rmtree(path)


# Other file systems.


MOUNTED_OVER = """
import subprocess, sys
sys.path.insert(0, sys.argv[2])
from support.moved_indexes import NEW, OLD, make_new, open_old, require_whole
from support.text_pages import put
from pathlib import Path
import pytest
from xtree.errors import StoreFailedError
path, other = Path(sys.argv[1]) / "index", Path(sys.argv[1]) / "other"
old = open_old(path)
make_new(other).close()
subprocess.run(["mount", "--bind", other, path], check=True)
with pytest.raises(StoreFailedError, match="another index was put in its place"):
    put(old, {"more": "3"})
old.close()
require_whole(path, NEW)
subprocess.run(["umount", path], check=True)
require_whole(path, OLD)
again = open_old(path)
subprocess.run(["mount", "--bind", path, path], check=True)
put(again, {"more": "3"})  # the same directory, mounted once more
again.close()
require_whole(path, {**OLD, "more": "3", "later": "5"})
"""


def test_another_file_system_mounted_there_is_left_alone(tmp_path):
    mounts = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*mounts, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace")
    command = [*mounts, sys.executable, "-c", MOUNTED_OVER, tmp_path, str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_lock_file_of_another_device_is_another_one(tmp_path):
    """As after a mount, which a test can't make: the same inode number on another device."""
    old = open_old(tmp_path / "index")
    device, inode = old.path.identity
    old.path.identity = device + 1, inode
    insert(old)
    require_whole(tmp_path / "index", OLD)


# Errors and descriptors.


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_where_nobody_can_say_what_is_at_the_path_a_write_fails_cleanly(tmp_path, number):
    fs = FaultyFileSystem(reading=True)
    store = open_store(tmp_path / "index", config=CONFIG, fs=fs)
    put(store, OLD)
    for write in (lambda: put(store, {"more": "3"}), store.checkpoint):
        fs.fail("stat", LOCK, number, times=100)
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.errno == number and store.state == "open"
        fs.heal()
    put(store, {"later": "4"})
    store.close()
    require_whole(tmp_path / "index", {**OLD, "later": "4"})


def test_a_backup_whose_directory_is_moved_or_replaced_fails_and_leaves_both_alone(tmp_path, lookup):
    store = open_old(tmp_path / "index")
    for n in range(80):
        put(store, {f"{n}": "x"}, size_class=2)
    held = texts_of(store)
    for lose in (moved, emptied, removed):
        target, new = tmp_path / "copy", []

        def replace(done, total, lose=lose, target=target, new=new):
            if not new:
                lose(target)
                new.append(make_new(target))

        with pytest.raises(StoreFailedError, match="copy: "):
            write_backup(store, target, replace)
        assert texts_of(new[0]) == NEW
        new[0].close()
        require_whole(target, NEW)
        assert store.state == "open" and texts_of(store) == held
        shutil.rmtree(target)
        shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    store.close()
    require_whole(tmp_path / "index", held)


def descriptors_on(path: Path) -> list[str]:
    """What this process has open in a directory, itself included."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(os.path.relpath(name, path) for name in found if name.startswith(str(path)))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_the_directory_takes_one_descriptor_which_closing_and_a_fork_give_back(tmp_path):
    path = tmp_path / "index"
    store = open_old(path)
    assert descriptors_on(path).count(".") == 1
    assert not any(os.get_inheritable(fd) for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and same(fd, path))
    child = os.fork()
    if child == 0:
        os._exit(len([name for name in descriptors_on(path) if name in (".", LOCK)]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    put(store, {"more": "3"})
    store.checkpoint()
    store.close()
    assert descriptors_on(path) == []
    for mode in ("r", "r+", "x"):
        with contextlib.suppress(FileExistsError):
            open_store(path, mode=mode, config=CONFIG).close()
    with contextlib.closing(open_store(path, config=CONFIG)), pytest.raises(LockedError):
        open_store(path, config=CONFIG)
    assert descriptors_on(path) == []


def same(fd: int, path: Path) -> bool:
    """Whether a descriptor leads to this directory."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def test_no_name_in_the_directory_of_an_index_is_looked_up_by_its_path():
    """The whole substrate makes paths with path_in; only three modules name files to the system."""
    for source in PERSISTENCE.rglob("*.py*"):
        known = source.name in ("open_directory.py", "platform_fs.py", "lock_file.py")
        if source.suffix in (".py", ".pyx") and not known:
            assert "path.join" not in source.read_text(), source


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_looks_before_its_first_byte_and_leaves_the_log_as_it_was(tmp_path, mode):
    """The leader carries the commit in strict, its own thread in the other modes."""
    path = tmp_path / "index"
    store = open_store(path, config=by_request(mode))
    put(store, OLD)
    settle(store)
    there = moved(path)
    logs = {name: content for name, content in read_image(there).items() if name.endswith(".log")}
    with pytest.raises(StoreFailedError, match="moved away"):
        put(store, {"more": "3"})
    assert store.state == "poisoned"
    assert {name: content for name, content in read_image(there).items() if name.endswith(".log")} == logs
    store.close()
    require_whole(there, OLD)


@pytest.mark.parametrize("mode", ["eventual", "balanced"])
def test_a_commit_looks_once(tmp_path, mode):
    fs = FaultyFileSystem(reading=True)
    store = open_store(tmp_path / "index", config=by_request(mode, sync_interval_ms=3_600_000), fs=fs)
    put(store, {"a": "0"})
    settle(store)
    seen = []

    def note(call: str, path: str) -> None:
        if call == "stat" and threading.current_thread() is threading.main_thread():  # not the checkpointer
            seen.append(path)

    fs.judge = note
    for n in range(5):
        put(store, {"a": str(n)})
    assert len(seen) == 5
    fs.heal()
    store.close()


def test_a_directory_once_lost_stays_so(tmp_path):
    fs = FileSystem()
    (tmp_path / "index").mkdir()
    directory, lock = fs.lock_directory(tmp_path / "index", shared=False)
    reported = []
    directory.report_lost = reported.append
    (tmp_path / "index").rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(StoreFailedError, match="moved away"):
            fs.require_own(directory)
    (tmp_path / "moved").rename(tmp_path / "index")
    for change in (lambda: fs.unlink(path_in(directory, LOCK)), lambda: fs.open(path_in(directory, "a"), "create")):
        with pytest.raises(StoreFailedError, match="moved away"):
            change()
    assert len(reported) == 1 and fs.listdir(directory) == [LOCK]
    lock.release()
