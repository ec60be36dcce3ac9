"""Any byte of any file may be damaged: it is noticed, or what is stored twice answers, or it was of no account."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from pages import SMALL, history, put, run_and_die, texts_of, write_steps

import xtree
from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence import filenames
from xtree.persistence.frame import FRAME_CRC_OFFSET, FRAME_HEADER, FRAME_MAGIC
from xtree.persistence.runtime import open_store

STEPS = 40
SEED = 4
ATTEMPTS = 60
KINDS = {
    "superblock": lambda name: name == filenames.SUPERBLOCK,
    "manifest": lambda name: name == filenames.MANIFEST,
    "log": lambda name: filenames.parse_log(name) is not None,
    "checkpoint": lambda name: filenames.parse_checkpoint(name) is not None,
    "data": lambda name: filenames.parse_data(name) is not None,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """An index whose process was killed after a checkpoint and some commits: every kind of file counts."""
    path = tmp_path_factory.mktemp("killed") / "index"

    def work(store, acknowledge):
        write_steps(store, seed=SEED, first=0, steps=STEPS, acknowledge=acknowledge)
        os._exit(42)

    last, _ = run_and_die(str(path), work, "nowhere", 1)
    assert last == STEPS - 1
    return path


@pytest.fixture(scope="module")
def closed(killed, tmp_path_factory) -> Path:
    """The same after recovery and a clean close."""
    path = tmp_path_factory.mktemp("closed") / "index"
    shutil.copytree(killed, path)
    open_store(path, config=SMALL).close()
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["killed", "closed"])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_damage_anywhere_gives_a_whole_state_or_an_error_that_names_the_file(request, tmp_path, state, kind, mode):
    source: Path = request.getfixturevalue(state)
    files = [name for name in sorted(os.listdir(source)) if KINDS[kind](name)]
    if not files:
        assert (state, kind) == ("closed", "log")
        return
    states = history(SEED, STEPS)
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for attempt in range(ATTEMPTS):
        path = tmp_path / f"{attempt}"
        shutil.copytree(source, path)
        name = rng.choice(files)
        what = damage(path / name, rng)
        try:
            store = open_store(path, mode=mode, config=SMALL)
        except (CorruptionError, FormatVersionError) as error:
            assert str(path) in str(error), f"{name}, {what}: the error doesn't say where"
            continue
        try:
            store.check()
            found = texts_of(store)
        except (CorruptionError, FormatVersionError):
            continue
        finally:
            with contextlib.suppress(CorruptionError):  # a file that nothing was read from is opened to be trimmed
                store.close()
        # The last frame, or all behind a cut, can't be told from frames that were never written.
        possible = states if what.startswith("cut") else states[-2:]
        assert found in (possible if kind == "log" else states[-1:]), f"{name}, {what}"


def damage(file: Path, rng: random.Random) -> str:
    """Flips a bit, blanks a sector, or cuts the file; near its beginning half of the time. Says what."""
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content) if rng.random() < 0.5 else min(len(content), 9000))
    how = rng.choice(("flip", "zero", "fill", "cut"))
    if how == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[at:]
    else:
        end = min(len(content), (at | 511) + 1)
        content[at & ~511:end] = (b"\0" if how == "zero" else b"\xa5") * (end - (at & ~511))
    file.write_bytes(content)
    return f"{how} at {at}"


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_tree_with_damaged_pages_answers_right_or_not_at_all(tmp_path, random, mode):
    low = random.random((5000, 2))
    boxes = np.hstack([low, low + 0.01])
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert_many(np.arange(5000), boxes)
    windows = np.hstack([low[:50], low[:50] + 0.1])
    expected = [
        set(np.flatnonzero((boxes[:, :2] <= w[2:]).all(axis=1) & (boxes[:, 2:] >= w[:2]).all(axis=1))) for w in windows
    ]
    refused = 0
    for attempt in range(10):
        path = tmp_path / f"{attempt}"
        shutil.copytree(tmp_path / "index", path)
        data = next(file for file in path.iterdir() if filenames.parse_data(file.name) is not None)
        content = np.fromfile(data, np.uint8)
        content[random.integers(4096, len(content), 3)] ^= np.uint8(1 << random.integers(0, 8))
        content.tofile(data)
        with xtree.open(path, mode=mode) as tree:
            for window, ids in zip(windows, expected, strict=True):
                try:
                    assert set(tree.query(window).tolist()) == ids
                except CorruptionError:
                    refused += 1
    assert refused


def test_a_logged_page_that_is_not_its_rows_ends_recovery_before_anything_is_written(tmp_path):
    path = tmp_path / "index"
    run_and_die(str(path), lambda store, acknowledge: (put(store, {"a": "1"}), os._exit(42)), "nowhere", 1)
    (log,) = [path / name for name in os.listdir(path) if filenames.parse_log(name) is not None]
    content = bytearray(log.read_bytes())
    start = content.rindex(FRAME_MAGIC)
    length = FRAME_HEADER.unpack_from(content, start)[2]
    content[start + length - 1000] ^= 1
    crc_at = start + FRAME_CRC_OFFSET
    content[crc_at:crc_at + 4] = bytes(4)
    content[crc_at:crc_at + 4] = crc32c(bytes(content[start:start + length])).to_bytes(4, "little")
    log.write_bytes(content)
    before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
    for mode in ("r", "r+"):
        with pytest.raises(CorruptionError, match="CRC"):
            open_store(path, mode=mode, config=SMALL)
    assert before == {name: (path / name).read_bytes() for name in os.listdir(path) if name != filenames.LOCK}
