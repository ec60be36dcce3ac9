"""Pages in the log: whole the first time in each log, and after that only what has changed.

Promises (Nothing acknowledged is lost):

- a page's first version in a log is whole, later ones are differences from a page in the same log, and all come back
  from the log alone:
  all of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets

import numpy as np
import pytest
from support.text_pages import KIND, SMALL, by_request, run_and_die, small

import xtree
from xtree.persistence.files import filenames
from xtree.persistence.files.frame import OP_BIRTH, PAYLOAD_RANGES, PAYLOAD_WHOLE
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.wal_reader import read_log
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin

CONTENT_BYTES = 4096 - 24


def logs_of(store):
    """For each log that the manifest lists, oldest first, its frames."""
    directory = str(store.path)
    found = []
    for entry in Manifest.load(FileSystem(), directory).logs:
        path = os.path.join(directory, filenames.log_name(entry.number))
        with contextlib.closing(read_log(FileSystem(), path, store.uuid, entry.number)) as reader:
            found.append(list(reader))
    return [frames for frames in found if frames]


def scribble(rng: random.Random, content: bytearray) -> None:
    """Changes a few stretches of a page, now and then all of it."""
    if rng.random() < 0.1:
        content[:] = rng.randbytes(len(content))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(content))
        piece = rng.randbytes(rng.choice((1, 1, 8, 50, 700)))[: len(content) - at]
        content[at : at + len(piece)] = piece


def test_a_small_insert_into_a_page_touched_before_logs_a_few_hundred_bytes(tmp_path):
    rng = np.random.default_rng(1)
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert_many(np.arange(2000), rng.random((2000, 2)))
        for i in range(300):  # so that every page has been touched
            tree.insert(i, rng.random(2))
        before = tree.runtime.stats()["coordinator"]["wal_bytes"]
        spot = rng.random(2)
        for i in range(10):
            tree.insert(i, spot)
        logged = tree.runtime.stats()["coordinator"]["wal_bytes"] - before
    assert logged < 10 * 1000 + 2 * 4096  # one split may be among them


def test_every_difference_has_its_base_in_the_same_log_and_the_first_version_there_is_whole(tmp_path):
    store = open_store(tmp_path / "index", config=small("balanced"))
    seen = set()
    for turn in range(3):
        for _ in range(5):
            write_set = begin(store)
            entry = write_set.base.catalog.get("page")
            content = bytes([turn]) * 100
            root = write_set.replace_page(entry.root, content) if entry else write_set.add_page(KIND, 0, content)
            write_set.commit({"page": CatalogEntry("page", "text", root, b"")})
        for frames in logs_of(store):
            logged: set[int] = set()
            for frame in frames:
                for delta in frame.deltas:
                    assert delta["op"] == OP_BIRTH
                    form = int(delta["payload_form"])
                    assert form == (PAYLOAD_RANGES if logged else PAYLOAD_WHOLE)
                    assert form == PAYLOAD_WHOLE or int(delta["replaces"]) in logged
                    logged.add(int(delta["node_id"]))
                    seen.add(form)
        store.checkpoint()
    assert seen == {PAYLOAD_WHOLE, PAYLOAD_RANGES}
    store.close()


@pytest.mark.parametrize("mode", ["balanced", "eventual"])
def test_pages_come_back_from_their_differences_with_their_data_files_zeroed(tmp_path, mode):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    path = tmp_path / "index"
    contents: dict[str, bytearray] = {}

    def work(store, acknowledge):
        rng = random.Random(seed)
        for step in range(120):
            write_set = begin(store)
            changes: dict[str, CatalogEntry | None] = {}
            for name in {f"page {rng.randrange(6)}" for _ in range(rng.randint(1, 3))}:
                entry = write_set.base.catalog.get(name)
                if entry is None:
                    contents[name] = bytearray(rng.randbytes(CONTENT_BYTES))
                    root = write_set.add_page(KIND, 0, contents[name])
                elif rng.random() < 0.1:
                    write_set.remove_page(entry.root)
                    changes[name] = None
                    del contents[name]
                    continue
                else:
                    scribble(rng, contents[name])
                    root = write_set.replace_page(entry.root, contents[name])
                    scribble(rng, contents[name])
                    root = write_set.replace_page(root, contents[name])
                changes[name] = CatalogEntry(name, "text", root, b"")
            write_set.commit(changes)
            if step == 60:
                store.checkpoint()

    def work_and_die(store, acknowledge):
        work(store, acknowledge)
        assert any(
            form == PAYLOAD_RANGES for frames in logs_of(store) for f in frames for form in f.deltas["payload_form"]
        )
        os._exit(42)

    run_and_die(str(path), work_and_die, "nowhere", 1, by_request(mode))
    other = open_store(tmp_path / "other", config=SMALL)
    work(other, lambda step: None)
    other.close()
    for name in os.listdir(path):
        if filenames.parse_data(name) is not None:
            with open(path / name, "r+b") as file:
                size = file.seek(0, 2)
                file.seek(4096)
                file.write(bytes(size - 4096))
    # The checkpoint's pages were zeroed too, and are only there again where the log has replaced them since.
    store = open_store(path, config=small(mode))
    found = {entry.name: entry for entry in store.published.catalog}
    assert set(found) == set(contents)
    for name, entry in found.items():
        assert store.read_page(entry.root) == bytes(contents[name]), name
    store.check()
    store.close()
