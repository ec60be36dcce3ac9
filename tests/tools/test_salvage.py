"""What is intact in a broken index is saved exactly, and what is lost is counted.

Promises (What people touch):

- what is intact in a broken index is saved exactly, and the losses counted:
  all of it.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.damaged_indexes import (
    Pages,
    bytes_of,
    contents,
    cut,
    files,
    flip,
    in_a_killed_process,
    log_damaged_in_the_middle,
)
from support.text_pages import by_request, put

import xtree
from xtree.algorithms.bucket import parse
from xtree.persistence.files import filenames
from xtree.persistence.opening import open_store
from xtree.tools.cli import main
from xtree.tools.fsck import fsck
from xtree.tools.salvage import salvage_index


def leaf_records(pages: Pages, node: int) -> Counter:
    """The records of a leaf, read before it is damaged."""
    page = parse(pages.read(node))
    return Counter(zip(page["refs"].tolist(), map(tuple, page["boxes"].tolist()), strict=True))


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_whole_index_comes_back_whole_and_is_not_touched(request, made, tmp_path, state):
    path: Path = request.getfixturevalue(state)
    before = bytes_of(path)
    result = salvage_index(path, tmp_path / "out")
    assert contents(tmp_path / "out") == made[state][1]
    assert result["complete"] and result["certain"] and result["lost"] == 0
    assert bytes_of(path) == before


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_without_superblock_and_manifest_everything_comes_back_under_its_name(request, made, tmp_path, state):
    path: Path = request.getfixturevalue(state)
    (path / filenames.SUPERBLOCK).unlink()
    (path / filenames.MANIFEST).unlink()
    result = salvage_index(path, tmp_path / "out")
    assert contents(tmp_path / "out") == made[state][1]
    assert result["complete"] and not result["notes"]
    assert not fsck(tmp_path / "out").findings


def test_below_a_lost_root_every_record_comes_back_to_its_tree(made, closed, tmp_path):
    pages = Pages(closed)
    for name in ("flat", "deep"):
        pages.spoil(pages.levels[name][-1][0])
    result = salvage_index(closed, tmp_path / "out")
    assert contents(tmp_path / "out") == made["closed"][1]
    assert result["pages"]["unreadable"] == 2 and result["lost"] == 0
    assert not result["complete"]


def test_lost_leaves_are_counted_and_all_other_records_come_back(made, closed, tmp_path):
    pages = Pages(closed)
    gone = [*pages.levels["flat"][0][3:6], pages.levels["flat"][1][0]]
    lost = sum((leaf_records(pages, node) for node in gone[:3]), Counter())
    for node in gone:
        pages.spoil(node)
    result = salvage_index(closed, tmp_path / "out")
    expected = made["closed"][1]
    assert contents(tmp_path / "out") == {**expected, "flat": expected["flat"] - lost}
    assert result["trees"]["flat"] == {
        "dims": 2, "expected": 9048, "saved": 9048 - lost.total(), "lost": lost.total(),
    }  # fmt: skip
    assert result["lost"] == lost.total() and result["pages"]["unreadable"] == 4


def test_pages_that_a_log_still_holds_are_taken_from_there(made, killed, tmp_path):
    for file in files(killed, "data"):
        content = bytearray(file.read_bytes())
        content[4096:] = bytes(len(content) - 4096)
        file.write_bytes(content)
    result = salvage_index(killed, tmp_path / "out")
    found, expected = contents(tmp_path / "out"), made["killed"][1]
    assert result["lost"] == sum(records.total() for records in expected.values()) - sum(
        records.total() for records in found.values()
    )
    assert all(not found[name] - expected[name] for name in found)
    assert 0 < found["flat"].total() < expected["flat"].total()


def test_behind_damage_in_a_log_pages_of_later_commits_stand_in_for_those_they_overwrote(made, killed, tmp_path):
    log_damaged_in_the_middle(killed)
    result = salvage_index(killed, tmp_path / "out")
    found, expected = contents(tmp_path / "out"), made["killed"][1]
    for name, records in expected.items():
        assert not found[name] - records
        assert not Counter({record: n for record, n in records.items() if 0 < record[0] < 9000}) - found[name]
    assert result["lost_epochs"] > 0 and not result["complete"]
    assert [note for note in result["notes"] if "are lost" in note]


def test_a_flushed_page_that_recovery_refuses_is_named_and_the_rest_is_saved(tmp_path):
    path = tmp_path / "index"
    boxes = np.random.default_rng(3).random((5000, 2))

    def load() -> xtree.Runtime:
        runtime = xtree.Runtime(path, config=by_request())
        runtime.tree("flat", dims=2).bulk_load(np.arange(5000), boxes)
        return runtime

    in_a_killed_process(load)
    pages = Pages(path)
    node = pages.levels["flat"][0][7]
    lost = leaf_records(pages, node)
    pages.spoil(node)
    with pytest.raises(xtree.CorruptionError):
        xtree.Runtime(path, mode="r")
    report = fsck(path)
    assert not report.opens and [finding.node for finding in report.of("damage") if finding.part == "page"] == [node]
    assert report.trees["flat"]["found"] == 5000 - lost.total()
    result = salvage_index(path, tmp_path / "out")
    assert result["lost"] == lost.total() and not contents(tmp_path / "out")["flat"] & lost
    assert contents(tmp_path / "out")["flat"].total() == 5000 - lost.total()


def test_a_damaged_header_of_a_data_file_costs_no_page(made, closed, tmp_path):
    flip(files(closed, "data")[0], 200)
    salvage_index(closed, tmp_path / "out")
    assert contents(tmp_path / "out") == made["closed"][1]


def test_a_file_cut_short_costs_what_was_behind(made, closed, tmp_path):
    pages = Pages(closed)
    file = max(files(closed, "data"), key=lambda file: file.stat().st_size)
    size = file.stat().st_size - 100_000
    cut(file, size)
    behind = [node for node in pages.rows if pages.files[node] == file and pages.offset(node) + 4096 > size]
    result = salvage_index(closed, tmp_path / "out")
    assert result["pages"]["unreadable"] == len(behind) > 10
    found, expected = contents(tmp_path / "out"), made["closed"][1]
    assert all(not found[name] - expected[name] for name in found)
    assert result["lost"] == sum((expected[name] - found[name]).total() for name in expected)


def only_data_files(path: Path) -> None:
    for file in path.iterdir():
        if filenames.parse_data(file.name) is None:
            file.unlink()


def test_from_data_files_alone_come_all_records_of_a_loaded_tree(tmp_path):
    rng = np.random.default_rng(5)
    low = rng.random((4000, 2))
    boxes = np.hstack([low, low + 0.01])
    boxes[10] = boxes[11]
    ids = np.arange(4000)
    ids[10] = ids[11]  # the same record twice
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.tree("flat", dims=2).bulk_load(ids, boxes)
        runtime.tree("deep", dims=3).bulk_load(np.arange(500), rng.random((500, 3)))
    expected = contents(tmp_path / "index")
    only_data_files(tmp_path / "index")
    result = salvage_index(tmp_path / "index", tmp_path / "out")
    assert contents(tmp_path / "out") == {"salvaged-2d": expected["flat"], "salvaged-3d": expected["deep"]}
    assert not result["certain"] and result["lost"] is None and not result["complete"]
    assert any("it isn't known which pages are live" in note for note in result["notes"])


def test_from_data_files_alone_no_current_record_is_missing_and_none_is_there_twice(made, closed, tmp_path):
    only_data_files(closed)
    salvage_index(closed, tmp_path / "out")
    found, expected = contents(tmp_path / "out"), made["closed"][1]
    assert not expected["flat"] - found["salvaged-2d"]
    assert not expected["deep"] - found["salvaged-3d"]
    assert max(found["salvaged-2d"].values()) == max(expected["flat"].values()) == 1


def test_leaves_of_trees_that_cannot_be_told_apart_go_into_one_of_their_own(tmp_path):
    rng = np.random.default_rng(5)
    with xtree.Runtime(tmp_path / "index") as runtime:
        for name in ("one", "two"):
            runtime.tree(name, dims=2).bulk_load(np.arange(3000), rng.random((3000, 2)))
    expected = contents(tmp_path / "index")
    pages = Pages(tmp_path / "index")
    for name in ("one", "two"):
        pages.spoil(pages.levels[name][-1][0])
    result = salvage_index(tmp_path / "index", tmp_path / "out")
    assert contents(tmp_path / "out") == {
        "one": Counter(), "two": Counter(), "salvaged-2d": expected["one"] + expected["two"],
    }  # fmt: skip
    assert result["lost"] == 0 and any("'salvaged-2d'" in note for note in result["notes"])


def test_trees_keep_their_parameters_and_what_is_no_tree_is_named(tmp_path):
    with xtree.Runtime(tmp_path / "index", config=xtree.Config(page_bytes=8192)) as runtime:
        runtime.tree("large pages", dims=2).insert(1, (0, 0, 1, 1))
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.tree("empty", dims=5)
    store = open_store(tmp_path / "index", config=by_request())
    put(store, {"a text": "abc"})
    store.close()
    result = salvage_index(tmp_path / "index", tmp_path / "out")
    assert result["skipped"] == ["a text"]
    with xtree.Runtime(tmp_path / "out", mode="r") as runtime:
        states = {entry.name: entry for entry in runtime._store.published.catalog}
        assert set(states) == {"large pages", "empty"}
        assert runtime.tree("empty").dims == 5
        assert runtime.tree("large pages").stats()["levels"][0]["nodes"] == 1
        assert runtime.tree("large pages").stats()["bytes"] == 8192


def test_the_command_counts_what_is_lost_and_exits_with_1(closed, tmp_path):
    whole = CliRunner().invoke(main, ["fsck", str(closed), "--salvage", str(tmp_path / "whole")])
    assert whole.exit_code == 0
    assert "tree 'flat': 9,048 of 9,048 records" in whole.stdout and "nothing is lost" in whole.stdout
    pages = Pages(closed)
    pages.spoil(pages.levels["deep"][0][1])
    broken = CliRunner().invoke(main, ["fsck", str(closed), "--salvage", str(tmp_path / "out"), "--json"])
    assert broken.exit_code == 1
    said = json.loads(broken.stdout)
    assert said["lost"] == said["trees"]["deep"]["lost"] > 0
    assert said["pages"]["unreadable"] == 1


def test_a_target_that_is_in_use_or_inside_is_refused_and_nothing_left_is_an_error(closed, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    for target, error in ((tmp_path / "full", FileExistsError), (closed / "inside", ValueError)):
        with pytest.raises(error):
            salvage_index(closed, target)
    with pytest.raises(FileNotFoundError):
        salvage_index(tmp_path / "nowhere", tmp_path / "out")
    for file in files(closed, "data"):
        cut(file, 4096)
    only_data_files(closed)
    with pytest.raises(xtree.CorruptionError, match="no page of a tree can be read"):
        salvage_index(closed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whatever_pages_are_damaged_no_record_comes_that_was_not_there_and_the_count_is_right(made, tmp_path, tally):
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    expected = made["closed"][1]
    for number in range(5):
        path = Path(shutil.copytree(made["closed"][0], tmp_path / str(number)))
        pages = Pages(path)
        nodes = list(pages.rows)
        for node in rng.choice(nodes, rng.integers(1, len(nodes) // 2), replace=False).tolist():
            pages.spoil(node)
        result = salvage_index(path, tmp_path / f"out-{number}")
        found = contents(tmp_path / f"out-{number}")
        assert all(not found[name] - expected[name] for name in expected)
        assert result["lost"] == sum((expected[name] - found[name]).total() for name in expected)
        tally("broken indexes that were salvaged")
