"""Whatever becomes of the directory of an open index: what is at its path now is left alone, and nothing that was
acknowledged is lost where the files still are.

An index is open and has commits that no checkpoint holds; its directory is removed, moved, replaced; another one is
made at the path; then the old handle does whatever a handle may do, to its end. The new index holds what was put into
it, and so does the old one where it still is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

import pytest
from faults import Image, read_image
from pages import MODES, by_request, put, settle, small, texts_of

from xtree.errors import CorruptionError, LockedError, StoreFailedError
from xtree.persistence import open_directory
from xtree.persistence.runtime import open_store
from xtree.tools.fsck import fsck

CONFIG = by_request()
OLD = {"old": "1", "both": "old"}
NEW = {"new": "2", "both": "new"}
PERSISTENCE = Path(open_directory.__file__).parent

Paths = tuple[Path, Path]  # of the index that is open, and of one that may take its place


@pytest.fixture(params=["by descriptor", "by path"])
def lookup(request, monkeypatch):
    """How names are looked up: as this system does, and as one that has no descriptors of directories."""
    if request.param == "by path":
        monkeypatch.setattr(open_directory, "BY_DESCRIPTOR", False)
    elif not open_directory.BY_DESCRIPTOR:
        pytest.skip("needs descriptors of directories")
    return request.param


# What becomes of a directory. Each leaves none at the path, or an empty one; returns where the old one is then.


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


# What the old handle does then. Each ends it.


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
    """Of a size class that has no file yet: making one finds it out before the commit does."""
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
        store._coordinator.between_groups(store._journal.make_spare)
    assert store.state == "poisoned"
    store.close()


def sync_in_background(store) -> None:
    store._coordinator._sync_in_background()
    assert store.state == "poisoned"
    store.close()


def end_of_last_handle(store) -> None:
    """What the finalizer of a Runtime does, which may not raise."""
    with contextlib.suppress(StoreFailedError):
        type(store).close(store)


USES = [
    close, insert, insert_large, checkpoint, checkpoint_in_background, make_log_ahead, sync_in_background,
    end_of_last_handle,
]  # fmt: skip


def open_old(path: Path):
    """An open index with commits in no checkpoint, and of which nothing of a later one is known."""
    store = open_store(path, config=CONFIG)
    for name, text in OLD.items():
        put(store, {name: text})
    settle(store)
    return store


def make_new(path: Path):
    store = open_store(path, config=CONFIG)
    for name, text in NEW.items():
        put(store, {name: text})
    settle(store)
    return store


def image_of(path: Path) -> Image | None:
    """What is at a path."""
    return read_image(path) if path.exists() else None


def require_whole(path: Path, texts: dict[str, str]) -> None:
    """The index opens, holds just that, and fsck finds nothing wrong with it."""
    report = fsck(path)
    assert report.ok, [str(finding) for finding in report.findings]
    store = open_store(path, mode="r+", config=CONFIG)
    assert texts_of(store) == texts
    store.check()
    put(store, {"later": "5"})
    store.close()
    assert fsck(path).ok


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
    """Two directories swap their names."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def exchange_at_once(one: Path, other: Path) -> None:
    """The same as one step, where the system has it."""
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
        insert(new)  # it was moved too
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
    """Blue and green: each is written to by its own handle, all at the same time, to its clean end."""
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
    old.backup(tmp_path / "copy")
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
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):  # its writer has it still
        open_store(there, config=CONFIG)
    with pytest.raises(StoreFailedError, match="moved away"):
        put(old, {"more": "3"})
    assert texts_of(old) == OLD, "reads go on"
    old.backup(tmp_path / "copy")
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
    with pytest.raises(StoreFailedError, match=what):  # later ones say so too
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
