"""A full disk: what it refuses is an OSError, and the way back stays open.

Promises (What is on the disk before what):

- on a full disk an index is opened, read, deleted from and checkpointed:
  test_an_index_on_a_full_disk_is_opened_read_deleted_from_and_checkpointed.
"""

import contextlib
import errno
import os

import numpy as np
import pytest

import xtree
from xtree import writing
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import insertion
from xtree.persistence.files.data_files import DataFiles
from xtree.persistence.files.disk_reserve import require_space
from xtree.persistence.files.platform_fs import File, FileSystem
from xtree.persistence.opening import open_store
from xtree.persistence.store.write_set import begin
from xtree.roots import entry_of

DISK_BYTES = 6 << 20
RESERVE_BYTES = 2 << 20


@pytest.fixture
def small_disk(monkeypatch, tmp_path):
    """A disk of 6 MiB that holds nothing but the index."""

    def used():
        total = 0
        for entry in os.scandir(tmp_path / "index"):
            with contextlib.suppress(FileNotFoundError):  # renamed or deleted meanwhile, by a thread in the background
                total += entry.stat().st_blocks * 512
        return total

    def checked(method, needed):
        def wrapped(self, *arguments):
            grown = max(0, needed(*arguments) - self.size())
            if str(tmp_path) in self.path and used() + grown > DISK_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            return method(self, *arguments)

        return wrapped

    def end_of(buffers, offset):
        return offset + sum(memoryview(buffer).nbytes for buffer in buffers)

    monkeypatch.setattr(FileSystem, "free_space", lambda self, path: max(0, DISK_BYTES - used()))
    monkeypatch.setattr(File, "reserve", checked(File.reserve, lambda n: n))
    monkeypatch.setattr(File, "fill", checked(File.fill, lambda start, end: end))
    monkeypatch.setattr(File, "pwritev", checked(File.pwritev, end_of))
    return tmp_path / "index"


def test_an_index_on_a_full_disk_is_opened_read_deleted_from_and_checkpointed(small_disk):
    random = np.random.default_rng(5)
    low = random.random((200_000, 2))
    boxes = np.hstack([low, low + 0.001])
    config = xtree.Config(reserve_bytes=RESERVE_BYTES)
    tree = xtree.open(small_disk, dims=2, config=config)
    with pytest.raises(OSError) as caught:
        for start in range(0, len(boxes), 1000):
            tree.insert_many(np.arange(start, start + 1000), boxes[start : start + 1000])
    assert caught.value.errno == errno.ENOSPC
    kept = len(tree)
    assert kept > 5_000
    tree.close()

    tree = xtree.open(small_disk, config=config)
    assert len(tree) == kept == tree.count([0, 0, 2, 2])
    assert tree.delete(0, boxes[0])
    for start in range(1000, kept, 1000):
        assert tree.delete_many(np.arange(start, start + 300), boxes[start : start + 300]) == 300
    tree.runtime.checkpoint()
    tree.check()
    tree.insert_many(np.arange(1000, 1300), boxes[1000:1300])
    tree.close()
    with xtree.open(small_disk, mode="r") as tree:
        assert len(tree) == kept - 1 - 300 * (kept // 1000 - 1) + 300
        tree.check()


def test_only_what_gives_space_back_may_use_the_reserve(tmp_path, monkeypatch):
    fs = FileSystem()
    monkeypatch.setattr(fs, "free_space", lambda path: 1000)
    require_space(fs, tmp_path, 600, 400)
    with pytest.raises(OSError, match="stay in reserve") as caught:
        require_space(fs, tmp_path, 600, 800)
    assert caught.value.errno == errno.ENOSPC
    require_space(fs, tmp_path, 10**9, 0)


def test_a_deletion_spends_the_reserve_and_what_follows_it_in_its_transaction_does_not(tmp_path, monkeypatch):
    asked, pins = [], []
    monkeypatch.setattr(DataFiles, "_require_space", lambda files, n, spends_reserve: asked.append(spends_reserve))
    store = open_store(tmp_path / "index")
    write_set = begin(store)
    tree_state = TreeState.create(2)
    ids, boxes = np.arange(500), np.random.default_rng(1).random((500, 4))
    boxes[:, 2:] += boxes[:, :2]
    insertion.insert(write_set, tree_state, ids, boxes)
    assert asked and not any(asked)
    asked.clear()
    while not asked:  # until a file has to grow for the pages that a commit copies
        write_set.commit({"flat": entry_of("flat", tree_state)})
        pins.append(store.pin())  # so that the pages it replaces aren't used again
        write_set = begin(store)
        tree_state = tree_state.copy()
        assert writing._delete(write_set, tree_state, ids[:1], boxes[:1]) == 1
        ids, boxes = ids[1:], boxes[1:]
        assert not write_set.spends_reserve
    assert all(asked)
    write_set.abort()
    for pin in pins:
        pin.release()
    assert not begin(store).spends_reserve
    store.close()
