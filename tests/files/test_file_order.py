"""New files, and their names, are on the disk before anything depends on them; old ones stay until nothing does.

Promises (What is on the disk before what):

- a log is filled, synced and named on the disk, and the durable manifest lists it, before its first frame; the
  manifest lists nothing sooner:
  test_a_log_is_filled_synced_named_and_listed_before_its_first_frame.
- every file carries the index's UUID, and a number that no other has had:
  test_every_file_of_an_index_carries_its_uuid, test_numbers_of_files_are_never_used_again.
- both superblock copies are there from the beginning:
  test_both_copies_of_a_superblock_are_there_before_the_index_is_born.
- a data file is never cut while it is mapped:
  test_a_data_file_is_never_shorter_than_what_is_mapped_of_it.
- a page is finished before its epoch is known:
  test_a_page_is_finished_before_its_epoch_is_known.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.faulty_fs import FaultyFileSystem
from support.forgetful_fs import ForgetfulFileSystem, WatchedFile
from support.listed_files import unlisted
from support.text_pages import MODES, SMALL, put, random_changes, small, texts_of

import xtree
from xtree.persistence.files import filenames
from xtree.persistence.files.frame import FRAME_MAGIC
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import SuperblockFile
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin


class OrderWatchingFileSystem(ForgetfulFileSystem):
    """Notes, before the first frame of each log, what a power loss at that moment would leave for sure."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.seen: dict[str, dict[str, bool]] = {}
        self.listed_too_early: set[str] = set()

    def open(self, path, mode):
        file = super().open(path, mode)
        return LookingFile(file.path, os.dup(file.fileno()), file.inode, self)

    def replace(self, source, target):
        if os.path.basename(target) == filenames.MANIFEST:
            manifest = Manifest.decode(Path(source).read_bytes(), source)
            listed = {filenames.log_name(log.number) for log in manifest.logs}
            listed |= {filenames.data_name(data.size_class, data.number) for data in manifest.data_files}
            listed |= {filenames.checkpoint_name(checkpoint.number) for checkpoint in manifest.checkpoints}
            self.listed_too_early |= listed - set(self.durable_names)
        super().replace(source, target)

    def look(self, file: WatchedFile, offset: int) -> None:
        """Called before a frame is written."""
        if file.name in self.seen:
            return
        manifest = self.durable_names.get(filenames.MANIFEST)
        listed = set() if manifest is None else {
            filenames.log_name(log.number) for log in Manifest.decode(manifest.durable, "the durable manifest").logs
        }
        self.seen[file.name] = {
            "its name is durable": file.name in self.durable_names,
            "its header is durable": file.inode.durable[:8] == b"XTREELOG",
            "the ground of the frame is durable": len(file.inode.durable) > offset,
            "the durable manifest lists it": file.name in listed,
        }


class LookingFile(WatchedFile):
    __slots__ = ()

    def pwritev(self, buffers, offset):
        start = bytes(memoryview(buffers[0]).cast("B")[:4]) if buffers else b""
        if filenames.parse_log(self.name) is not None and start == FRAME_MAGIC:
            self.fs.look(self, offset)
        super().pwritev(buffers, offset)


def churn(store, commits: int) -> dict[str, str]:
    """Commits until several logs, data files and checkpoints were made and deleted. Returns the texts at the end."""
    import random

    for step in range(commits):
        put(store, random_changes(random.Random(step), step), size_class=(0, 0, 1, 3)[step % 4])
    return texts_of(store)


@pytest.mark.parametrize("mode", ["strict", "balanced"])
def test_a_log_is_filled_synced_named_and_listed_before_its_first_frame(tmp_path, mode):
    path = tmp_path / "index"
    path.mkdir()
    fs = OrderWatchingFileSystem(path)
    store = open_store(path, config=small(mode), fs=fs)
    for _ in range(4):
        churn(store, 10)
        store.checkpoint()
    store.close()
    assert len(fs.seen) >= 4
    for name, facts in fs.seen.items():
        assert all(facts.values()), (name, facts)
    assert not fs.listed_too_early


@pytest.mark.parametrize("mode", MODES)
def test_numbers_of_files_are_never_used_again(tmp_path, mode):
    path = tmp_path / "index"
    made: list[str] = []

    class NamingFileSystem(FaultyFileSystem):
        def ask(self, call, path):
            if call == "create":
                made.append(os.path.basename(path).removesuffix(".tmp"))
            super().ask(call, path)

    for round_ in range(4):
        store = open_store(path, config=small(mode), fs=NamingFileSystem())
        texts = churn(store, 30)
        store.checkpoint()
        if round_ == 2:
            store.poison()
        store.close()
        assert texts
    numbers = [filenames.parse_log(name) or filenames.parse_checkpoint(name) or data_number(name) for name in made]
    numbers = [number for number in numbers if number]
    assert len(numbers) > 12
    assert len(set(numbers)) == len(numbers)


def data_number(name: str) -> int:
    return (filenames.parse_data(name) or (0, 0))[1]


def test_a_data_file_is_never_shorter_than_what_is_mapped_of_it(tmp_path):
    path = tmp_path / "index"
    cut: list[bool] = []

    class CutWatchingFileSystem(FaultyFileSystem):
        def ask(self, call, path):
            if call == "truncate" and path.endswith(".xd"):
                with open("/proc/self/maps") as maps:
                    cut.append(path in maps.read())
            super().ask(call, path)

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    store = open_store(path, config=SMALL, fs=CutWatchingFileSystem())
    for _ in range(3):
        write_set = begin(store)
        for _ in range(100):
            write_set.add_page(200, 0, b"x")
        write_set.abort()
    put(store, {"a": "1"})
    store.close()
    assert cut and not any(cut)


def test_both_copies_of_a_superblock_are_there_before_the_index_is_born(tmp_path):
    path = tmp_path / "index"
    open_store(path, config=SMALL).close()
    copies = [(path / filenames.SUPERBLOCK).read_bytes()[at:at + 4096] for at in (0, 4096)]
    for at, copy in enumerate(copies):
        other = tmp_path / f"only copy {at}"
        other.mkdir()
        for name in os.listdir(path):
            (other / name).write_bytes((path / name).read_bytes())
        (other / filenames.SUPERBLOCK).write_bytes(bytes(4096 * at) + copy + bytes(4096 * (1 - at)))
        file = SuperblockFile.open(FileSystem(), str(other), writable=False)
        assert file.value.uuid == open_uuid(path)
        file.close()


def open_uuid(path: Path) -> bytes:
    return Manifest.load(FileSystem(), str(path)).uuid


def test_every_file_of_an_index_carries_its_uuid(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    churn(store, 30)
    store.checkpoint()
    churn(store, 3)
    uuid = store.uuid
    with store.index_files._manifest_lock:  # no listed file goes, and none is listed half made
        names = set(os.listdir(path)) - unlisted(path) - {filenames.LOCK}
        assert len(names) > 4
        for name in names:
            content = (path / name).read_bytes()
            assert uuid in content[:8192] or uuid.hex().encode() in content, name
    store.close()


def test_a_page_is_finished_before_its_epoch_is_known(tmp_path):
    with xtree.open(tmp_path / "index", dims=2, config=xtree.Config(durability="strict")) as tree:
        boxes = np.random.default_rng(1).random((50, 2))
        tree.insert_many(np.arange(50), boxes)
        store = tree._store
        write_set = begin(store)
        entry = write_set.base.catalog.get("default")
        node = write_set.replace_page(entry.root, store.read_page(entry.root))
        write_set.seal()
        row = store.table.describe(node)
        place = (store._file_name(row["window"]), row["offset"])
        assert row["birth"] == 2**64 - 1

        def on_disk() -> bytes:
            with open(place[0], "rb") as file:
                file.seek(place[1])
                return file.read(4096)

        before = on_disk()
        write_set.commit({"default": CatalogEntry("default", entry.kind, node, entry.state)})
        assert store.table.describe(node)["birth"] == store.published.epoch
        assert on_disk() == before
