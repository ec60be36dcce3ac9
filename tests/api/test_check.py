"""A check finds a changed byte anywhere, except in bytes that mean nothing; also while a writer has the files open.

Promises (What people touch):

- a changed byte is found wherever it stands, by `xtree check`, fsck and, under its writer, by an open Runtime, but
  for bytes that mean nothing; files that a writer replaces meanwhile are no damage:
  test_a_changed_byte_is_found_in_any_file, test_every_changed_byte_is_found_in_every_file (`make torture`),
  test_an_open_runtime_finds_a_changed_byte_in_the_files_under_it,
  test_files_that_are_written_and_replaced_meanwhile_are_no_damage.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.damaged_indexes import files, flip, in_a_killed_process
from support.text_pages import by_request, eventually, settle

import xtree
from xtree.persistence.base.config import PAGE_BYTES
from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.tools.check import check_index
from xtree.tools.cli import main
from xtree.tools.fsck import fsck

SAMPLE = 40  # bytes of each file, besides those at its ends
HARM = (0xFF, 0x01, 0x20, 0x80)  # XORed into a byte: all bits, or one


def write(path: Path, durability: str = "balanced") -> xtree.Runtime:
    """A small index with two checkpoints, a log that has ended and one with frames apart and frames in one sector."""
    rng = np.random.default_rng(9)
    small = {"wal_fill_bytes": 4096, "wal_fill_limit_bytes": 4096, "wal_segment_bytes": 16 << 10}
    config = by_request(durability, **small, data_file_first_bytes=16 << 10)
    runtime = xtree.Runtime(path, config=config)
    flat = runtime.tree("flat", dims=2)
    flat.insert_many(np.arange(300), rng.random((300, 2)))
    runtime.checkpoint()
    flat.insert_many(np.arange(100), rng.random((100, 2)))
    runtime.checkpoint()
    runtime.tree("deep", dims=5).insert_many(np.arange(60), rng.random((60, 5)))
    flat.insert(1000, (0.5, 0.5))
    flat.insert(1001, (0.5, 0.5))
    return runtime


@pytest.fixture(scope="module", params=["closed", "killed"])
def index(request, tmp_path_factory) -> Path:
    """An index that was closed, or whose process was killed. A test leaves it as it was."""
    path = tmp_path_factory.mktemp("check") / request.param

    def work() -> xtree.Runtime:
        runtime = write(path)
        if request.param == "closed":
            runtime.close()
        else:
            settle(runtime._store)  # a log that is half made when the process is killed belongs to nothing yet
        return runtime

    in_a_killed_process(work)
    return path


@contextlib.contextmanager
def changed(file: Path, at: int, by: int) -> Iterator[None]:
    """A byte of a file, changed for as long as the block lasts."""
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ by]))
        opened.flush()
        try:
            yield
        finally:
            opened.seek(at)
            opened.write(bytes([byte]))


def used(path: Path) -> dict[str, np.ndarray]:
    """Which bytes of every file mean something; docs/tools.md names those that don't."""
    found = {file.name: np.ones(file.stat().st_size, bool) for file in path.iterdir()}
    found[filenames.LOCK][:] = False
    with xtree.Runtime(path, mode="r") as runtime:
        store = runtime._store
        data_files = store.index_files.data_files
        for file in files(path, "data"):
            found[file.name][HEADER_BYTES:] = False
        for row in store.table.visible(store.published.epoch):
            if int(row["window"]) not in data_files.in_memory_only():
                name = Path(data_files.path_of(int(row["window"]))).name
                start = int(row["offset"])
                found[name][start : start + PAGE_BYTES[row["size_class"]]] = True
    return found


def places(path: Path, rng: np.random.Generator, most: int | None) -> Iterator[tuple[str, int, bool]]:
    """(file, offset, whether it means something) of every byte, or of some bytes of each file: random, first, last."""
    for name, means in sorted(used(path).items()):
        for offsets in (np.flatnonzero(means), np.flatnonzero(~means)):
            if most is not None and len(offsets) > most:
                offsets = np.unique([offsets[0], offsets[-1], *rng.choice(offsets, most)])
            yield from ((name, int(at), bool(means[at])) for at in offsets)


def require_found(index: Path, random: np.random.Generator, tally, most: int | None) -> None:
    """Asserts that each change is found, with its file: as damage or, after a kill, as what a crash may have left."""
    assert fsck(index).ok and not fsck(index).of("damage")
    before = [str(finding) for finding in fsck(index).findings]
    killed = bool(files(index, "log"))
    for name, at, means_something in places(index, random, most):
        with changed(index / name, at, int(random.choice(HARM))):
            report = fsck(index)
            if not means_something:
                assert report.ok and [str(finding) for finding in report.findings] == before, (name, at)
                tally("changed bytes that mean nothing")
                continue
            new = [finding for finding in report.findings if str(finding) not in before]
            assert any(finding.file == name for finding in new), (name, at)
            left_by_a_crash = killed and (name == filenames.SUPERBLOCK or filenames.parse_log(name) is not None)
            assert not report.ok or left_by_a_crash, (name, at)
            tally("changed bytes that fsck found")
    assert [str(finding) for finding in fsck(index).findings] == before


@pytest.mark.slow
def test_a_changed_byte_is_found_in_any_file(index, random, tally):
    require_found(index, random, tally, SAMPLE)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_every_changed_byte_is_found_in_every_file(index, random, tally):
    require_found(index, random, tally, None)


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_check_says_what_fsck_finds_with_status_0_1_and_2(index, tmp_path):
    fine = run("check", index)
    assert fine.exit_code == 0 and re.search(r": fine \(", fine.stdout)
    said = json.loads(run("check", index, "--json").stdout)
    assert said | {"seconds": 0} == {
        "path": str(index), "ok": True, "seconds": 0, "error": None, "damage": 0, "orphans": 0,
        "trees": {"flat": {"records": 402, "error": None}, "deep": {"records": 60, "error": None}},
    }  # fmt: skip
    for kind in ("checkpoint", "data"):
        with changed(files(index, kind)[0], 100, 0xFF):
            damaged = run("check", index)
            assert damaged.exit_code == 1 and f"DAMAGED: {files(index, kind)[0].name}" in damaged.stdout
            said = json.loads(run("check", index, "--json").stdout)
            assert (said["ok"], said["error"]) == (False, str(fsck(index).of("damage")[0]))
    with changed(index / filenames.MANIFEST, 100, 0xFF):
        assert run("check", index).exit_code == run("fsck", index).exit_code == 1
    for command in ("check", "fsck"):
        assert run(command, tmp_path / "nowhere").exit_code == 2
        assert run(command, index, "--no-such-option").exit_code == 2
        with xtree.Runtime(tmp_path / "open"):
            assert run(command, tmp_path / "open").exit_code == 2


def test_a_tree_says_what_is_wrong_with_it_and_the_other_that_nothing_is(closed):
    from support.damaged_indexes import Pages

    pages = Pages(closed)
    pages.spoil(pages.levels["flat"][0][5])
    found = check_index(closed)
    assert found["trees"]["deep"]["error"] is None and found["trees"]["flat"]["error"] is not None
    assert f"node {pages.levels['flat'][0][5]:#x}" in found["error"]


@pytest.mark.parametrize("durability", ["strict", "balanced", "eventual"])
def test_an_open_runtime_finds_a_changed_byte_in_the_files_under_it(tmp_path, random, tally, durability):
    path = tmp_path / "index"
    with write(path, durability) as runtime:
        eventually(lambda: runtime.stats()["durable_lag"] == 0)
        settle(runtime._store)  # from now on no file is written
        runtime.check()
        assert not fsck(runtime).findings
        index_files = runtime._store.index_files
        closed = [entry for entry in index_files.manifest.logs if entry.closed]
        ends = {filenames.log_name(entry.number): entry.closed.end_offset for entry in closed}
        ends[filenames.log_name(index_files.log.number)] = index_files.log.end_offset
        assert len(ends) >= 2
        sound = [filenames.SUPERBLOCK, filenames.MANIFEST, *(file.name for file in files(path, "checkpoint")), *ends]
        for name in sound:
            end = ends.get(name, (path / name).stat().st_size)
            for at in (0, end - 1, *random.integers(0, end, SAMPLE).tolist()):
                with changed(path / name, at, int(random.choice(HARM))):
                    with pytest.raises(xtree.CorruptionError, match=re.escape(name)):
                        runtime.check()
                    assert name in {finding.file for finding in fsck(runtime).of("damage")}
                tally("changed bytes that an open runtime found")
        runtime.check()
        for name in sound[1:]:
            content = (path / name).read_bytes()
            (path / name).unlink()
            with pytest.raises(xtree.CorruptionError, match=re.escape(name)):
                runtime.check()
            (path / name).write_bytes(content)
        runtime.check()


def test_a_tree_opened_by_itself_finds_it_too(tmp_path):
    with xtree.open(tmp_path / "index", dims=2) as tree:
        tree.insert(1, (0, 0))
        tree.check()
        flip(tmp_path / "index" / filenames.MANIFEST, 60)
        with pytest.raises(xtree.CorruptionError, match="manifest.json"):
            tree.check()
    with xtree.open(tmp_path / "index") as tree:
        tree.check()


@pytest.mark.parametrize("durability", ["strict", "balanced", "eventual"])
def test_files_that_are_written_and_replaced_meanwhile_are_no_damage(tmp_path, durability):
    config = by_request(durability, wal_rotate_bytes=64 << 10, wal_fill_bytes=16 << 10, sync_interval_ms=1)
    with xtree.Runtime(tmp_path / "index", config=config) as runtime:
        tree = runtime.tree("flat", dims=2)

        def commit() -> None:
            rng = np.random.default_rng(1)
            for i in range(900):
                tree.insert_many(np.arange(30), rng.random((30, 2)))
                tree.delete_many(*tree.items())
                if i % 90 == 0:
                    runtime.checkpoint()

        writer = threading.Thread(target=commit)
        writer.start()
        try:
            while writer.is_alive():
                runtime.check()
                assert not fsck(runtime).findings
        finally:
            writer.join()
        done = runtime.stats()["coordinator"]
        assert done["checkpoints"] >= 10 and done["logs_rotated"] > 10
