"""dump shows what the files say, also of what is damaged, and changes nothing.

Promises (What people touch):

- dump shows what the files say, damaged ones too, and changes nothing:
  all of it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.damaged_indexes import (
    Pages,
    bytes_of,
    copies_of,
    cut,
    files,
    flip,
    log_damaged_in_the_middle,
    manifest_of,
    newest_copy,
)

import xtree
from xtree.algorithms.bucket import parse
from xtree.persistence.files import filenames
from xtree.tools.cli import main
from xtree.tools.dump import WHAT, dump_index


def run(*arguments):
    return CliRunner().invoke(main, ["dump", *(str(argument) for argument in arguments)])


def lines(*arguments) -> list[str]:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_everything_can_be_dumped_as_text_and_as_json_and_nothing_is_changed(request, state):
    path: Path = request.getfixturevalue(state)
    before = bytes_of(path)
    for what in WHAT:
        which = [Pages(path).levels["flat"][-1][0]] if what == "page" else []
        assert lines(path, what, *which)
        said = json.loads(run(path, what, *which, "--json").stdout)
        assert said["problems"] == [] and said["path"] == str(path)
    assert {"superblock", "manifest", "checkpoints", "logs", "trees"} < set(json.loads(run(path, "--json").stdout))
    assert bytes_of(path) == before


def test_the_superblock_is_shown_copy_by_copy(closed):
    said = dump_index(closed, "superblock")["superblock"]["copies"]
    for shown, copy in zip(said, copies_of(closed), strict=True):
        assert {name: shown[name] for name in ("generation", "epoch", "durable_epoch", "epoch_ceiling", "mode")} == {
            name: getattr(copy, name) for name in ("generation", "epoch", "durable_epoch", "epoch_ceiling", "mode")
        }
    assert [shown["counts"] for shown in said] == [number == newest_copy(closed) for number in (0, 1)]
    flip(closed / filenames.SUPERBLOCK, 50)
    done = run(closed, "superblock")
    assert done.exit_code == 1
    assert re.search(r"copy 0 at 0: .*superblock\.bin: at offset 0: expected the CRC 0x\w+, found 0x\w+", done.stdout)
    assert f"copy 1 at 4096: generation {said[1]['generation']}, the one that counts" in done.stdout


def test_a_manifest_that_cannot_be_read_is_shown_as_the_directory_has_it(closed):
    manifest = manifest_of(closed)
    whole = dump_index(closed, "manifest")["manifest"]
    assert whole["from"] == "file" and whole["next_number"] == manifest.next_number
    assert [entry["number"] for entry in whole["checkpoints"]] == [entry.number for entry in manifest.checkpoints]
    (closed / filenames.checkpoint_name(900)).write_bytes(b"")
    assert dump_index(closed, "manifest")["manifest"]["unlisted"] == [filenames.checkpoint_name(900)]
    cut(closed / filenames.MANIFEST, 50)
    broken = dump_index(closed, "manifest")
    assert broken["manifest"]["from"] == "scan" and "first line of a manifest" in broken["manifest"]["error"]
    assert broken["manifest"]["data_files"] == whole["data_files"]
    assert len(broken["problems"]) == 1


def test_checkpoints_show_their_rows_and_catalog(made, closed):
    shown = dump_index(closed, "checkpoint")["checkpoints"]
    pages = Pages(closed)
    assert [one["file"] for one in shown] == [file.name for file in files(closed, "checkpoint")]
    for one in shown:
        assert one["rows"]["live"] == len(pages.rows)
        assert one["rows"]["by_kind"] == {
            "leaf": sum(len(levels[0]) for levels in pages.levels.values()),
            "directory": sum(len(level) for levels in pages.levels.values() for level in levels[1:]),
        }
        assert {entry["name"]: entry["records"] for entry in one["catalog"]} == {
            name: records.total() for name, records in made["closed"][1].items()
        }
    flip(files(closed, "checkpoint")[-1], 5000)
    broken = run(closed, "checkpoint")
    assert broken.exit_code == 1
    assert "expected a footer with the CRC" in broken.stdout and f"epoch {shown[0]['epoch']}, " in broken.stdout


def test_a_log_is_shown_frame_by_frame_with_its_deltas(killed):
    (log,) = [log for log in dump_index(killed, "wal", deltas=True)["logs"] if log["groups"] and log["follows"]]
    link, *groups = log["frames"]
    assert link["kind"] == "link" and link["offset"] == 4096 and link["link"] == log["follows"]
    assert len(groups) == log["groups"] and all(frame["kind"] == "group" for frame in groups)
    assert all(frame["crc_right"] and frame["linked"] for frame in log["frames"])
    epochs = [frame["last_epoch"] for frame in groups]
    assert epochs == sorted(epochs) and epochs[-1] == log["last_epoch"]
    assert groups[-1]["offset"] + groups[-1]["bytes"] == log["ends"]
    for frame in groups:
        assert len(frame["deltas_listed"]) == frame["deltas"]
        assert all(delta["epoch"] == frame["last_epoch"] for delta in frame["deltas_listed"])
    births = [delta for frame in groups for delta in frame["deltas_listed"] if delta["op"] == "birth"]
    assert "whole" in {delta["payload"] for delta in births}
    assert all(delta["file"].endswith(".xd") for delta in births)
    text = lines(killed, "wal", "--deltas")
    assert sum(line.strip().startswith(("birth", "retire")) for line in text) >= len(births)
    without = [line for line in lines(killed, "wal") if re.match(r" +\d+  (link|group)", line)]
    assert len(without) == sum(len(log["frames"]) for log in dump_index(killed, "wal")["logs"])


def test_frames_behind_damage_are_shown_as_not_linked(killed):
    log_damaged_in_the_middle(killed)
    said = dump_index(killed, "wal")
    frames = [frame for log in said["logs"] for frame in log["frames"]]
    assert [frame["linked"] for frame in frames if not frame["crc_right"]] == [False]
    assert [frame for frame in frames if frame["crc_right"] and not frame["linked"]]
    assert any("though the frame at offset" in problem for problem in said["problems"])
    done = run(killed, "wal")
    assert done.exit_code == 1
    assert "CRC WRONG, not linked" in done.stdout and "PROBLEM: wal-" in done.stdout


def test_a_page_is_shown_with_header_row_and_first_entries(closed):
    pages = Pages(closed)
    for node in (pages.levels["flat"][0][3], pages.levels["flat"][1][0]):
        (shown,) = dump_index(closed, "page", hex(node), entries=3)["pages"]
        page = parse(pages.read(node))
        assert (shown["file"], shown["offset"]) == (pages.files[node].name, pages.offset(node))
        assert shown["live"] and shown["error"] is None
        assert shown["row"]["crc"] == shown["header"]["crc"] == shown["header"]["computed_crc"]
        assert shown["page"]["boxes"] == page["boxes"][:3].tolist()
        assert shown["page"]["refs"] == page["refs"][:3].tolist()
        assert shown["page"]["count"] == page["count"]
    text = "\n".join(lines(closed, "page", str(pages.levels["flat"][0][3])))
    assert "the live page" in text and "leaf of level 0, 2 dims" in text and "    4: id " in text


def test_a_damaged_page_is_shown_as_far_as_it_can_be_and_a_copy_elsewhere_too(closed):
    pages = Pages(closed)
    one, two = pages.levels["flat"][0][3:5]
    pages.write(two, pages.read(one))
    shown = dump_index(closed, "page", str(one))["pages"]
    assert [(page["offset"], page["live"]) for page in shown] == [(pages.offset(one), True), (pages.offset(two), False)]
    said = dump_index(closed, "page", str(two))
    assert said["pages"][0]["header"]["node"] == one and "by its row" in said["pages"][0]["error"]
    pages.spoil(one)
    done = run(closed, "page", one)
    assert done.exit_code == 1
    assert re.search(r"CRC 0x\w+ \(WRONG, 0x\w+ computed\)", done.stdout)


def test_a_tree_is_shown_level_by_level_with_an_outline(made, closed):
    (tree,) = dump_index(closed, "tree", "flat", depth=2)["trees"].values()
    with xtree.Runtime(closed, mode="r") as runtime:
        stats = runtime.tree("flat").stats()
        bounds = runtime.tree("flat").bounds
    pages = Pages(closed)
    assert tree["levels"] == stats["levels"] and tree["records"] == made["closed"][1]["flat"].total()
    assert tree["bounds"] == bounds.tolist() == tree["outline"]["box"]
    assert [child["node"] for child in tree["outline"]["children"]] == pages.levels["flat"][-2]
    assert all(not child["children"] for child in tree["outline"]["children"])
    text = lines(closed, "tree", "flat", "--depth", 2)
    assert len([line for line in text if line.startswith("    0x")]) == len(pages.levels["flat"][-2])
    assert len([line for line in text if line.startswith("  level ")]) == stats["height"]
    assert set(dump_index(closed, "tree")["trees"]) == {"flat", "deep"}


def test_a_tree_with_lost_pages_is_counted_as_far_as_it_can_be_read(closed):
    pages = Pages(closed)
    pages.spoil(pages.levels["flat"][0][3])
    said = dump_index(closed, "tree", "flat", depth=9)
    leaves = said["trees"]["flat"]["levels"][0]
    assert (leaves["nodes"], leaves["unreadable"]) == (len(pages.levels["flat"][0]) - 1, 1)
    assert said["problems"]
    done = run(closed, "tree", "flat", "--depth", 9)
    assert done.exit_code == 1
    assert "1 UNREADABLE" in done.stdout and f"{pages.levels['flat'][0][3]:#x} [" in done.stdout
    assert "can't be read" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["page"], "page takes a NodeID"),
        (["page", "abc"], "not 'abc'"),
        (["page", "0"], "isn't 0"),
        (["page", "0xffffffffff01"], "no row and no slot has node 0xffffffffff01"),
        (["tree", "streets"], "there is no tree 'streets', only 'deep', 'flat'"),
        (["superblock", "x"], "takes no further argument"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_status_2(closed, arguments, said):
    done = run(closed, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_unknown_part_or_index_or_one_in_use_is_refused_with_status_2(closed, tmp_path):
    assert run(closed, "everything").exit_code == 2
    assert run(tmp_path / "nowhere").exit_code == 2
    with xtree.Runtime(closed):
        assert run(closed).exit_code == 2


def test_whatever_file_is_missing_the_others_are_shown(killed, tmp_path):
    for file in sorted(killed.iterdir()):
        path = Path(shutil.copytree(killed, tmp_path / file.name))
        (path / file.name).unlink()
        said = dump_index(path, "all")
        assert file.name == filenames.LOCK or said["problems"], file.name
        assert {"superblock", "manifest", "checkpoints", "logs", "trees"} < set(said)


def test_numbers_in_json_are_those_of_python(closed):
    text = run(closed, "page", Pages(closed).levels["flat"][0][0], "--json").stdout
    assert np.isfinite(json.loads(text)["pages"][0]["page"]["boxes"]).all()
