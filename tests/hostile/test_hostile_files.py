"""Files that are damaged, exchanged or forged: they are refused with the right words, or the answers are right.

There is never another error, a crash, a hang, a large allocation or a wrong answer. mutant_verdicts.py looks for these
in child processes.

Promises (Nothing acknowledged is lost):

- any byte of any file damaged, files cut, extended, lost, exchanged with each other, with another index's, with older
  ones: a right answer, or an error that names a file; of ten kinds of index, all of it in `make torture`:
  test_what_accidents_leave_is_refused_or_answered_right,
  test_all_that_accidents_may_leave_is_refused_or_answered_right,
  test_each_question_to_a_tree_with_damaged_pages_is_answered_right_or_refused.
- files forged with right CRCs crash nothing, hang nothing, take no memory, and what they say that can't be is found
  by `check()`:
  test_what_is_forged_is_refused_or_found_by_a_check_and_never_believed,
  test_all_forgeries_are_refused_or_found_by_a_check_and_never_believed; each parser under a fuzzer: `make fuzz`,
  test_fuzz_targets.py.
- what decides that sees wrong answers, crashes and hangs:
  test_a_flaw_a_crash_and_a_hang_are_seen.
- a manifest older than the logs is not believed:
  test_a_manifest_older_than_a_log_is_not_believed.
- a window size that can't be, in a data file's header, is damage:
  test_a_window_that_cannot_be_is_not_believed_where_only_a_data_file_tells_it.
- an index without file numbers or epochs left can be read:
  test_an_index_that_has_no_numbers_for_files_left_can_be_read_and_not_written,
  test_an_index_that_has_no_epochs_left_can_be_read_and_not_written.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from support.accidental_mutants import Mutant, accidents
from support.forged_files import (
    checkpoints_of,
    data_files_of,
    frames_of,
    logs_of,
    replaced,
    seal_checkpoint,
    seal_log,
    sealed_header,
    with_manifest,
)
from support.forged_mutants import forgeries
from support.mutant_verdicts import try_all
from support.sample_indexes import BY_NAME, Index, answers, build, lay_out
from support.text_pages import SMALL, put, run_and_die

import xtree
from xtree.errors import CapacityError, CorruptionError
from xtree.persistence.base.config import MAX_EPOCH
from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import COUNTS_OFFSET
from xtree.persistence.files.frame import FRAME_CRC_OFFSET, FRAME_HEADER, FRAME_MAGIC, LINK_BYTES
from xtree.persistence.files.superblock import Superblock
from xtree.persistence.opening import open_store

SAMPLE = 30  # mutants of each sort and kind of index that every run tries
FOREIGN = ("closed", "killed")  # kinds of index whose files are put into others


@pytest.fixture(scope="module")
def index_of(tmp_path_factory) -> Callable[[str], Index]:
    """index_of(kind): a healthy index of a kind."""
    return functools.cache(lambda kind: build(kind, tmp_path_factory.mktemp(kind) / "index"))


def all_accidents(index_of: Callable[[str], Index], kind: str, rng: random.Random, elsewhere: int) -> list[Mutant]:
    others = [index_of(other) for other in FOREIGN if other != kind]
    return accidents(index_of(kind), others, rng, elsewhere, step=64)


def require_no_flaws(index: Index, mutants: list[Mutant], path: Path, tally: Callable[..., None], what: str) -> None:
    outcomes, flaws = try_all(index, mutants, path)
    assert sum(outcomes.values()) == len(mutants)
    for outcome, n in outcomes.items():
        tally(f"{what}, {outcome}", n)
    assert not flaws, f"{len(flaws)} of {len(mutants)}:\n" + "\n".join(flaws[:20])


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


@pytest.mark.parametrize("kind", BY_NAME)
def test_what_accidents_leave_is_refused_or_answered_right(index_of, tmp_path, tally, rng, kind):
    mutants = rng.sample(all_accidents(index_of, kind, rng, elsewhere=100), SAMPLE)
    require_no_flaws(index_of(kind), mutants, tmp_path / "trial", tally, "damaged files")


@pytest.mark.slow
@pytest.mark.parametrize("kind", BY_NAME)
def test_what_is_forged_is_refused_or_found_by_a_check_and_never_believed(index_of, tmp_path, tally, rng, kind):
    mutants = rng.sample(forgeries(index_of(kind), rng), SAMPLE)
    require_no_flaws(index_of(kind), mutants, tmp_path / "trial", tally, "forged files")


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", BY_NAME)
def test_all_that_accidents_may_leave_is_refused_or_answered_right(index_of, tmp_path, tally, rng, kind):
    mutants = all_accidents(index_of, kind, rng, elsewhere=500)
    require_no_flaws(index_of(kind), mutants, tmp_path / "trial", tally, "damaged files")


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", BY_NAME)
def test_all_forgeries_are_refused_or_found_by_a_check_and_never_believed(index_of, tmp_path, tally, rng, kind):
    mutants = forgeries(index_of(kind), rng)
    require_no_flaws(index_of(kind), mutants, tmp_path / "trial", tally, "forged files")


def test_a_flaw_a_crash_and_a_hang_are_seen(index_of, tmp_path, monkeypatch):
    index = index_of("closed")
    name = filenames.SUPERBLOCK
    monkeypatch.setattr("support.mutant_verdicts.PATIENCE_S", 0.5)

    def hang() -> dict[str, bytes | None]:
        while True:
            pass

    mutants = [
        Mutant("nothing", dict),
        Mutant("a crash", lambda: os.kill(os.getpid(), signal.SIGKILL)),
        Mutant("a hang", hang),
        Mutant("another history", lambda: {name: index.files[name]}),
        Mutant("no memory", lambda: {name: bytes(8 << 30)}),
    ]
    monkeypatch.setitem(index.history, index.last_epoch, {})
    outcomes, flaws = try_all(index, mutants, tmp_path / "trial")
    assert outcomes == {"flaw": 5}
    for words, flaw in zip(("wrong answers", "ended with -9", "ended with 1", "wrong answers", "MemoryError"), flaws):
        assert words in flaw


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_each_question_to_a_tree_with_damaged_pages_is_answered_right_or_refused(tmp_path, random, mode):
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


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_manifest_older_than_a_log_is_not_believed(index_of, tmp_path, mode):
    index = index_of("rotated")
    lay_out(tmp_path / "index", {**index.files, filenames.MANIFEST: index.older[0][filenames.MANIFEST]})
    with xtree.Runtime(tmp_path / "index", mode) as runtime:
        assert "manifest.json: older than wal-" in runtime.stats()["recovery"]["notes"][0]
        assert answers(runtime) == index.history[index.last_epoch]


@pytest.mark.parametrize("field", [{"generation": 2**64 - 1}, {"epoch_ceiling": 2**64 - 1}])
def test_a_superblock_whose_numbers_leave_no_room_for_more_is_damaged(index_of, tmp_path, field):
    files = index_of("killed").files
    value = dataclasses.replace(Superblock.decode(files[filenames.SUPERBLOCK][:4096], ""), **field)
    lay_out(tmp_path / "index", {**files, filenames.SUPERBLOCK: 2 * value.encode()})
    with pytest.raises(CorruptionError, match=r"superblock\.bin.* a generation, found"):
        xtree.Runtime(tmp_path / "index")


def test_a_frame_whose_epochs_leave_no_room_for_more_is_damaged(index_of, tmp_path):
    files = index_of("killed").files
    log = next(name for name in reversed(logs_of(files)) if len(frames_of(files[name])) > 1)
    frames = frames_of(files[log])
    epochs = replaced(files[log], frames[-1][0] + 56, struct.pack("<Q", MAX_EPOCH + 1))
    lay_out(tmp_path / "index", {**files, **seal_log(files, log, epochs, frames)})
    with pytest.raises(CorruptionError, match=f"{log}.*expected epochs in order"):
        xtree.Runtime(tmp_path / "index")


def test_a_checkpoint_that_follows_a_log_there_cannot_be_is_passed_over(index_of, tmp_path):
    index = index_of("strict")
    files = index.files
    (name,) = checkpoints_of(files)
    link_at = COUNTS_OFFSET - LINK_BYTES
    changes = seal_checkpoint(files, name, replaced(files[name], link_at, struct.pack("<Q", 2**63)))
    lay_out(tmp_path / "index", {**files, **changes})
    with xtree.Runtime(tmp_path / "index") as runtime:
        assert f"{name}: expected the end of a log" in runtime.stats()["recovery"]["notes"][0]
        assert answers(runtime) == index.history[index.last_epoch]


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_data_file_is_not_made_longer_than_it_may_be(index_of, tmp_path, mode):
    files = index_of("killed").files
    changes = with_manifest(files, lambda values: values["data_files"][0].update(synced_bytes=2**32))
    lay_out(tmp_path / "index", {**files, **changes})
    with pytest.raises(CorruptionError, match=r"data-c0-\d+\.xd: expected at most 1048576 bytes, found 4294967296"):
        xtree.Runtime(tmp_path / "index", mode)
    assert all((tmp_path / "index" / name).stat().st_size == len(files[name]) for name in data_files_of(files))


@pytest.mark.parametrize("window_bytes", [0, (1 << 20) + 1, 1 << 41, 2**63])
def test_a_window_that_cannot_be_is_not_believed_where_only_a_data_file_tells_it(index_of, tmp_path, window_bytes):
    files = index_of("killed").files
    forged = {
        name: sealed_header(replaced(files[name], 40, struct.pack("<Q", window_bytes))) for name in data_files_of(files)
    }
    lay_out(tmp_path / "index", {**files, **forged, filenames.MANIFEST: b"?"})
    with pytest.raises(CorruptionError):
        xtree.Runtime(tmp_path / "index")
    one = min(forged)
    lay_out(tmp_path / "index", {**files, one: forged[one], filenames.MANIFEST: b"?"})
    with pytest.raises(CorruptionError, match=r"\.xd|page|file"):
        xtree.Runtime(tmp_path / "index")


def test_an_index_that_has_no_numbers_for_files_left_can_be_read_and_not_written(index_of, tmp_path):
    files = index_of("closed").files
    changes = with_manifest(files, lambda values: values.update(next_number=filenames.MAX_NUMBER + 1))
    lay_out(tmp_path / "index", {**files, **changes})
    with xtree.Runtime(tmp_path / "index") as runtime:
        with pytest.raises(CapacityError, match="file numbers"):
            runtime.tree("flat").insert(1, (0, 0, 1, 1))
        assert answers(runtime) == index_of("closed").history[index_of("closed").last_epoch]


def test_an_index_that_has_no_epochs_left_can_be_read_and_not_written(index_of, tmp_path):
    files = index_of("closed").files
    last = Superblock.decode(files[filenames.SUPERBLOCK][:4096], "")
    value = dataclasses.replace(last, epoch_ceiling=2 * MAX_EPOCH)
    lay_out(tmp_path / "index", {**files, filenames.SUPERBLOCK: value.encode() + bytes(4096)})
    with xtree.Runtime(tmp_path / "index") as runtime:  # without the other copy it goes on after the ceiling
        with pytest.raises(CapacityError, match="epochs"):
            runtime.tree("flat").insert(1, (0, 0, 1, 1))
        assert answers(runtime) == index_of("closed").history[index_of("closed").last_epoch]


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
