"""fsck finds every kind of damage, says where, what was expected and what was found, and repairs what is safe to.

Promises (What people touch):

- fsck finds every kind of damage and says where, what was expected and what was found; docs/tools.md has the words:
  test_damage_is_found_with_its_place_and_what_was_expected_and_found, test_all_damage_is_found_not_only_the_first.
- what kills and power losses leave is no damage to fsck, and what it repairs is whole afterwards:
  test_what_a_kill_leaves_is_no_damage_and_is_repaired, test_what_a_power_loss_leaves_is_no_damage,
  test_what_can_be_repaired_is_whole_and_clean_afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.crash_runs import torn_at_the_close
from support.damaged_indexes import (
    Pages,
    bytes_of,
    change_copy,
    change_manifest,
    change_store,
    contents,
    copies_of,
    cut,
    damage,
    files,
    flip,
    log_damaged_in_the_middle,
    lose_a_page,
    lose_the_root,
    manifest_of,
    miscount,
    newest_copy,
    number_in,
    overlap,
    rewrite_checkpoints,
    with_own_crc,
)
from support.faulty_fs import FaultyFileSystem
from support.power_losses import STEPS, written_with_losses
from support.text_pages import MODES, history, run_and_die, small, write_steps

import xtree
from xtree.persistence.base.crash_points import CRASH_POINTS
from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import pack_header
from xtree.persistence.files.frame import FRAME_HEADER, FRAME_MAGIC, LOG_BODY, LOG_FORMAT, LOG_MAGIC
from xtree.persistence.files.manifest import LogEntry
from xtree.persistence.opening import exists
from xtree.tools.cli import main
from xtree.tools.fsck import fsck
from xtree.tools.fsck.repair import repair

COUNT, LEVEL = 28, 24  # offsets in a page


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# The kinds of damage. Each function takes the path, and what else it needs; the words are those of one finding.


def superblock_copy_flipped(path: Path) -> None:
    flip(path / filenames.SUPERBLOCK, 4096 + 50)


def both_superblock_copies_flipped(path: Path) -> None:
    flip(path / filenames.SUPERBLOCK, 50)
    flip(path / filenames.SUPERBLOCK, 4096 + 50)


def superblock_epoch_regressed(path: Path) -> None:
    change_copy(path, 1 - newest_copy(path), epoch_ceiling=1 << 40)


def durable_epoch_that_is_not_there(path: Path) -> None:
    change_copy(path, newest_copy(path), epoch=99, durable_epoch=99)


def manifest_of_another_index(path: Path) -> None:
    change_manifest(path, uuid=bytes(range(16)))


def checkpoints_older_than_their_rows(path: Path) -> None:
    rewrite_checkpoints(path, epoch=1)


def catalog_that_is_none(path: Path) -> None:
    rewrite_checkpoints(path, catalog=b"no catalog record at all")


def root_that_is_not_there(path: Path) -> None:
    change_store(path, lose_the_root)


def superblock_missing(path: Path) -> None:
    (path / filenames.SUPERBLOCK).unlink()


def manifest_truncated(path: Path) -> None:
    cut(path / filenames.MANIFEST, 100)


def listed_data_file_missing(path: Path) -> None:
    files(path, "data")[0].unlink()


def listed_checkpoint_missing(path: Path) -> None:
    files(path, "checkpoint")[0].unlink()


def newest_checkpoint_flipped(path: Path) -> None:
    flip(files(path, "checkpoint")[-1], 5000)


def checkpoint_is_another_one(path: Path) -> None:
    older, newer = files(path, "checkpoint")
    shutil.copyfile(older, newer)


def log_header_flipped(path: Path) -> None:
    flip(files(path, "log")[-1], 100)


def log_missing(path: Path) -> None:
    files(path, "log")[-1].unlink()


def log_not_listed(path: Path) -> None:
    change_manifest(path, logs=())


def data_file_truncated(path: Path) -> None:
    file = max(files(path, "data"), key=lambda file: file.stat().st_size)
    cut(file, file.stat().st_size - 10_000)


def data_file_header_flipped(path: Path) -> None:
    flip(files(path, "data")[0], 200)


def page_flipped(path: Path) -> None:
    pages = Pages(path)
    pages.spoil(pages.levels["flat"][0][5])


def page_zeroed(path: Path) -> None:
    pages = Pages(path)
    node = pages.levels["flat"][0][5]
    pages.write(node, bytes(pages.size(node)))


def page_swapped(path: Path) -> None:
    pages = Pages(path)
    one, two = pages.levels["flat"][0][5:7]
    pages.write(one, pages.read(two))


def stale_page_put_back(path: Path) -> None:
    pages = Pages(path)
    node = pages.levels["flat"][0][5]
    page = bytearray(pages.read(node))
    page[64:72] = np.float64(0.5).tobytes()
    pages.write(node, with_own_crc(bytes(page)))


def entry_box_shrunk(path: Path) -> None:
    pages = Pages(path)
    parent = pages.levels["flat"][1][0]
    page = pages.read(parent)
    upper = 64 + 2 * 8 * ((len(page) - 64) // 48 & ~7)  # of axis 0, after two columns of lower bounds
    shrunk = np.frombuffer(page, np.float64, 1, upper)[0] - 1e-3
    pages.forge(parent, {upper: np.float64(shrunk).tobytes()})


def wrong_level(path: Path) -> None:
    pages = Pages(path)
    pages.forge(pages.levels["flat"][1][0], {LEVEL: (7).to_bytes(2, "little")})


def too_few_entries(path: Path) -> None:
    pages = Pages(path)
    pages.forge(pages.levels["flat"][0][5], {COUNT: (1).to_bytes(4, "little")})


def page_reached_twice(path: Path) -> None:
    pages = Pages(path)
    parent = pages.levels["flat"][1][0]
    page = pages.read(parent)
    refs = 64 + 4 * 8 * ((len(page) - 64) // 48 & ~7)
    pages.forge(parent, {refs + 8: page[refs:refs + 8]})


def wrong_count_in_catalog(path: Path) -> None:
    change_store(path, miscount)


def two_rows_overlap(path: Path) -> None:
    change_store(path, overlap)


def page_that_no_tree_reaches(path: Path) -> None:
    change_store(path, lose_a_page)


Damage = Callable[[Path], None]
ROW, ANY_CRC = "the page of its row, with CRC 0x.*", "the CRC 0x.*"
CLOSED: dict[Damage, tuple[str, str, str, str]] = {  # part, place, expected, found
    superblock_copy_flipped: ("superblock", "superblock.bin, offset 4096", ANY_CRC, "0x.*"),
    both_superblock_copies_flipped: ("superblock", "superblock.bin, offset 0", ANY_CRC, "0x.*"),
    superblock_epoch_regressed: ("superblock", "superblock.bin", "epoch_ceiling 1099511627776 .*", ".* in gen.*"),
    superblock_missing: ("superblock", "superblock.bin, offset 0", "copy 0 of the superblock", "No such file.*"),
    manifest_of_another_index: ("manifest", "manifest.json", "the manifest of index .*", "that of 0001.*"),
    checkpoints_older_than_their_rows: ("row", "checkpoint-.*", "a row that can be", "row [0-9]+ .*birth epoch"),
    catalog_that_is_none: ("checkpoint", "checkpoint-.*, offset [0-9]+", "a catalog record .*", "one of .*"),
    root_that_is_not_there: ("row", "checkpoint-.*, tree 'flat', node .*", "a row of the root", "none: .*"),
    manifest_truncated: ("manifest", "manifest.json, offset 0", "the first line of a manifest", ".*"),
    listed_data_file_missing: ("directory", "data-c0-.*", "a file that the manifest lists", "none"),
    listed_checkpoint_missing: ("directory", "checkpoint-.*", "a file that the manifest lists", "none"),
    newest_checkpoint_flipped: ("checkpoint", "checkpoint-.*", "a footer with the CRC 0x.*", "b.XTCKPEND.*"),
    checkpoint_is_another_one: ("checkpoint", "checkpoint-.*", "checkpoint [0-9]+.*", "checkpoint [0-9]+.*"),
    data_file_truncated: ("directory", "data-c0-.*", "at least [0-9]+ bytes, by the manifest", "[0-9]+"),
    data_file_header_flipped: ("data file", "data-c0-.*, offset 0", ANY_CRC, "0x.*"),
    page_flipped: ("page", "data-c0-.*, offset .*, node .*", ROW, "bytes with CRC 0x.*, 0x.* in their header"),
    page_zeroed: ("page", "data-c0-.*, offset .*, node .*", ROW, "zeros"),
    page_swapped: ("page", "data-c0-.*, offset .*, node .*", ROW, "the page of node 0x.*, whole"),
    stale_page_put_back: ("page", "data-c0-.*, node .*", ROW, "another page of the same node, whole.*"),
    entry_box_shrunk: ("tree", "data-.*, tree 'flat', node .*", "upper bound .* by its parent", ".* by its entries"),
    wrong_level: ("tree", "data-c0-.*, tree 'flat', node .*", "kind 2, level 1, 2 dims", "kind 2, level 7, 2 dims"),
    too_few_entries: ("tree", "data-c0-.*, tree 'flat', node .*", "least entries 38", "1"),
    page_reached_twice: ("tree", "tree 'flat', node .*", "every page once", "that it is reached again, .*"),
    wrong_count_in_catalog: ("tree", "tree 'flat'", "9049 records", "9048 in its leaves"),
    two_rows_overlap: ("slot", "data-c0-.*", "a slot of 4096 bytes of its own", "that node 0x.* has the same one"),
    page_that_no_tree_reaches: ("tree", "data-c0-.*", "every page in a tree", "a live leaf page that no tree reaches"),
}  # fmt: skip
KILLED: dict[Damage, tuple[str, str, str, str]] = {
    log_damaged_in_the_middle: ("log", "wal-.*, offset [0-9]+", "a frame", "bad CRC, though the frame at offset .*"),
    log_header_flipped: ("log", "wal-.*, offset 0", ANY_CRC, "0x.*"),
    durable_epoch_that_is_not_there: ("log", "wal-.*, offset .*", "commits up to epoch 99, .*", "none after epoch .*"),
    log_missing: ("directory", "wal-.*", "a file that the manifest lists", "none"),
    log_not_listed: ("directory", "wal-.*", "a file that the manifest lists", "one that it doesn't, with commits .*"),
}


@pytest.mark.parametrize("harm", [*CLOSED, *KILLED], ids=lambda harm: harm.__name__)
def test_damage_is_found_with_its_place_and_what_was_expected_and_found(request, tally, harm):
    path: Path = request.getfixturevalue("closed" if harm in CLOSED else "killed")
    part, place, expected, found = {**CLOSED, **KILLED}[harm]
    harm(path)
    before = bytes_of(path)
    report = fsck(path)
    assert bytes_of(path) == before
    assert not report.ok
    matching = [
        finding for finding in report.of("damage")
        if finding.part == part and re.match(place.replace(", ", ".*, "), str(finding))
        and re.fullmatch(expected, finding.expected, re.DOTALL) and re.fullmatch(found, finding.found, re.DOTALL)
    ]  # fmt: skip
    assert matching, "\n".join(f"{finding.part}: {finding}" for finding in report.findings)
    done = run("fsck", path, "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said["counts"]["damage"] == len(report.of("damage")) and not said["ok"]
    assert [finding["message"] for finding in said["findings"]] == [str(finding) for finding in report.findings]
    tally("kinds of damage that fsck found")


def test_a_file_of_another_index_is_found(made, closed):
    stranger = files(made["other"][0], "data")[0]
    own = files(closed, "data")[0]
    shutil.copyfile(stranger, own)
    report = fsck(closed)
    header = next(finding for finding in report.of("damage") if finding.part == "data file")
    assert (header.file, header.offset) == (own.name, 0)
    assert header.expected.startswith("a file of index ") and header.found.startswith("one of ")


def test_all_damage_is_found_not_only_the_first(closed):
    pages = Pages(closed)
    leaves = pages.levels["flat"][0]
    for node in (leaves[3], leaves[40], pages.levels["deep"][0][2]):
        pages.spoil(node)
    entry_box_shrunk(closed)
    superblock_copy_flipped(closed)
    report = fsck(closed)
    assert {finding.node for finding in report.of("damage") if finding.part == "page"} == {
        leaves[3], leaves[40], pages.levels["deep"][0][2],
    }  # fmt: skip
    assert {finding.part for finding in report.of("damage")} == {"superblock", "page", "tree"}
    assert not report.trees["flat"]["ok"] and not report.trees["deep"]["ok"]
    assert report.opens and report.figures["pages"]["unreadable"] == 3


def test_a_page_without_a_slot_has_one_finding(closed):
    data_file_truncated(closed)
    report = fsck(closed)
    nodes = [finding.node for finding in report.of("damage") if finding.node is not None]
    assert len(nodes) == len(set(nodes)) == report.figures["pages"]["unreadable"] > 0
    assert {finding.found for finding in report.of("damage") if finding.part == "slot"} == {
        "an address that is misaligned or outside its file"
    }


def test_a_whole_index_has_no_findings(closed, made):
    report = fsck(closed)
    assert report.ok and report.opens and not report.findings
    assert {name: tree["found"] for name, tree in report.trees.items()} == {
        name: records.total() for name, records in made["closed"][1].items()
    }
    assert report.figures["pages"]["live"] == report.figures["slots"]["used"] == sum(
        tree["pages"] for tree in report.trees.values()
    )
    done = run("fsck", closed)
    assert done.exit_code == 0
    assert re.search(r"tree 'flat': 9,048 records in \d+ pages\n", done.stdout)
    assert re.search(r": fine at epoch \d+ \(", done.stdout)


def test_a_backup_has_no_findings_and_progress_rises_to_the_end(closed, tmp_path):
    with xtree.Runtime(closed, mode="r") as runtime:
        runtime.backup(tmp_path / "copy")
    seen: list[tuple[int, int]] = []
    assert not fsck(tmp_path / "copy", lambda done, total: seen.append((done, total))).findings
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]


def test_what_progress_raises_ends_it_and_lets_the_index_go(closed):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for check in (fsck, lambda path, progress: repair(path, progress=progress)):
        with pytest.raises(KeyboardInterrupt):
            check(closed, stop)
    assert fsck(closed).ok and not repair(closed).actions


def test_a_torn_tail_is_a_note_with_its_place_and_length(killed):
    log = files(killed, "log")[-1]
    last = log.read_bytes().rindex(b"XTFR")
    flip(log, last + 200)
    report = fsck(killed)
    assert report.ok
    (torn,) = [finding for finding in report.findings if finding.part == "log"]
    assert (torn.severity, torn.file) == ("note", log.name)
    assert 0 < last - torn.offset < 4096
    length = len(log.read_bytes().rstrip(b"\0")) - torn.offset
    assert torn.found == f"a torn tail of {length} bytes (bad CRC); the next open drops it"
    assert run("fsck", killed).exit_code == 0


def test_leftovers_are_orphans_and_no_damage(closed):
    (closed / "manifest.json.tmp").write_bytes(b"{")
    shutil.copyfile(files(closed, "data")[0], closed / filenames.data_name(2, 900))
    shutil.copyfile(files(closed, "checkpoint")[0], closed / filenames.checkpoint_name(901))
    (closed / "notes.txt").write_text("milk", encoding="utf-8")
    report = fsck(closed)
    assert report.ok
    orphans = [finding.file for finding in report.of("orphan") if finding.part == "directory"]
    assert sorted(orphans) == sorted(
        ["manifest.json.tmp", filenames.data_name(2, 900), filenames.checkpoint_name(901)]
    )
    assert [finding.file for finding in report.of("note")] == ["notes.txt"]


def test_an_open_runtime_is_checked_beside_its_own_writes(tmp_path):
    rng = np.random.default_rng(3)
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree = runtime.tree("flat", dims=2)
        tree.bulk_load(np.arange(5000), rng.random((5000, 2)))
        seen: list[tuple[int, int]] = []

        def write(done: int, total: int) -> None:
            seen.append((done, total))
            tree.insert_many(np.arange(50), rng.random((50, 2)))

        report = fsck(runtime, write)
        assert report.ok and not report.findings and report.scope == "snapshot"
        assert 5000 <= report.trees["flat"]["found"] == report.trees["flat"]["records"] < len(tree)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1]
        tree.insert_many(np.arange(50), rng.random((50, 2)))
        assert fsck(runtime).trees["flat"]["found"] == len(tree)


def test_damage_is_found_from_inside_the_writing_process(closed):
    pages = Pages(closed)
    node = pages.levels["flat"][0][5]
    with xtree.Runtime(closed, mode="r+") as runtime:
        pages.spoil(node)
        report = fsck(runtime)
    assert [finding.node for finding in report.of("damage")] == [node]


def test_an_index_in_use_is_locked_and_what_is_none_is_refused(closed, tmp_path):
    with xtree.Runtime(closed, mode="r"):
        assert fsck(closed).ok
        assert run("fsck", closed, "--repair").exit_code == 2
    with xtree.Runtime(closed):
        locked = run("fsck", closed)
    assert locked.exit_code == 2 and "in use by process" in locked.stderr
    assert run("fsck", tmp_path / "nowhere").exit_code == 2
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("milk", encoding="utf-8")
    assert run("fsck", tmp_path / "notes").exit_code == 1
    assert os.listdir(tmp_path / "notes") == ["todo.txt"]
    assert run("fsck", closed, "--dry-run").exit_code == 2
    assert run("fsck", closed, "--repair", "--salvage", tmp_path / "out").exit_code == 2


# What crashes leave isn't damage.


def crashed(path: Path, mode: str, points: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Makes an index in `path` for each crash point, and yields the points that were reached."""
    for point, nth in points:
        shutil.rmtree(path, ignore_errors=True)
        run_and_die(str(path), lambda store, said: write_steps(store, 5, 0, 40, said), point, nth, small(mode))
        if path.exists() and os.listdir(path):
            yield point, nth


def check_crashes(path: Path, mode: str, points: list[tuple[str, int]], tally) -> None:
    for point, nth in crashed(path, mode, points):
        report = fsck(path)
        assert report.ok, (point, nth, [str(finding) for finding in report.findings])
        after = repair(path)
        left = [] if after.epoch is None else after.findings  # None: the crash came while it was made
        assert not left, (point, nth, [str(finding) for finding in left])
        tally("states after a crash in which fsck finds no damage")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_what_a_kill_leaves_is_no_damage_and_is_repaired(tmp_path, tally, mode):
    seed = secrets.randbits(32)
    print("seed", seed)
    chosen = random.Random(seed).sample(CRASH_POINTS, 12)
    check_crashes(tmp_path / "index", mode, [(point, 1) for point in chosen], tally)


@pytest.mark.torture
@pytest.mark.parametrize("mode", MODES)
def test_what_a_kill_at_any_point_leaves_is_no_damage(tmp_path, tally, mode):
    check_crashes(tmp_path / "index", mode, [(point, nth) for point in CRASH_POINTS for nth in (1, 2, 5)], tally)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads unlinked files through /proc")
def test_what_a_power_loss_leaves_is_no_damage(tmp_path, tally):
    seed = secrets.randbits(32)
    print("seed", seed)
    states = history(seed, STEPS)
    for path, point, _ in written_with_losses(tmp_path / "index", seed, states):
        if not exists(path):  # the crash came before it was made
            continue
        report = fsck(path)
        damaged = [str(finding) for finding in report.of("damage") if not torn_at_the_close(finding)]
        assert report.opens and not damaged, (point, damaged)
        tally("states after a power loss in which fsck finds no damage")


# Repair.


def log_torn(path: Path) -> None:
    """Writes the beginning of another frame after the last one."""
    log = files(path, "log")[-1]
    content = bytearray(log.read_bytes())
    at = content.rindex(FRAME_MAGIC)
    end = at + FRAME_HEADER.unpack_from(content, at)[2]
    content[end:end + 9] = b"XTFR torn"
    log.write_bytes(content)


def leftovers(path: Path) -> None:
    (path / "manifest.json.tmp").write_bytes(b"{")
    shutil.copyfile(files(path, "data")[0], path / filenames.data_name(2, 900))
    shutil.copyfile(files(path, "checkpoint")[0], path / filenames.checkpoint_name(901))


REPAIRS: dict[Damage, list[str]] = {
    superblock_copy_flipped: ["superblock"],
    manifest_truncated: ["manifest"],
    newest_checkpoint_flipped: ["checkpoint"],
    listed_checkpoint_missing: ["checkpoint"],
    leftovers: ["remove", "remove", "remove"],
}
REPAIRS_OF_KILLED: dict[Damage, list[str]] = {
    superblock_copy_flipped: ["recover", "superblock"],
    manifest_truncated: ["manifest", "recover"],
    newest_checkpoint_flipped: ["recover"],
    log_torn: ["recover"],
    leftovers: ["recover", "remove", "remove", "remove"],
}


@pytest.mark.parametrize(
    ("state", "harm"),
    [("closed", harm) for harm in REPAIRS] + [("killed", harm) for harm in REPAIRS_OF_KILLED],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_can_be_repaired_is_whole_and_clean_afterwards(request, made, state, harm):
    path: Path = request.getfixturevalue(state)
    harm(path)
    before = bytes_of(path)
    said = []
    planned = repair(path, dry_run=True, announce=said.append)
    assert bytes_of(path) == before
    steps = [action.kind for action in planned.actions]
    assert steps == (REPAIRS if state == "closed" else REPAIRS_OF_KILLED)[harm]
    assert said == [planned] and not planned.repaired
    report = repair(path, announce=lambda first: said.append(bytes_of(path)))
    assert said[1] == before, "nothing is done before it is announced"
    assert report.repaired and report.actions == planned.actions
    assert not report.findings, [str(finding) for finding in report.findings]
    assert not fsck(path).findings
    assert contents(path) == made[state][1]
    with xtree.Runtime(path) as runtime:
        runtime.tree("flat").insert(5, (0, 0, 1, 1))
    assert not fsck(path).findings


def test_the_command_says_what_it_will_do_before_it_does_it(closed):
    superblock_copy_flipped(closed)
    planned = run("fsck", closed, "--repair", "--dry-run")
    assert planned.exit_code == 1
    assert "to be done:\n  - superblock.bin: the unreadable copy written anew" in planned.stdout
    done = run("fsck", closed, "--repair")
    assert done.exit_code == 0
    assert done.stdout.index("to be done:") < done.stdout.index("  done: superblock.bin:")
    assert run("fsck", closed, "--json").exit_code == 0


def test_a_repaired_superblock_copy_never_gives_back_epochs(closed):
    newest = newest_copy(closed)
    reserved = copies_of(closed)[newest].epoch_ceiling + 100
    change_copy(closed, newest, epoch_ceiling=reserved)
    flip(closed / filenames.SUPERBLOCK, 4096 * newest + 50)
    repair(closed)
    assert max(copy.epoch_ceiling for copy in copies_of(closed)) >= reserved


@pytest.mark.parametrize(
    "harm", [page_flipped, wrong_count_in_catalog, data_file_truncated, log_damaged_in_the_middle],
    ids=lambda harm: harm.__name__,
)  # fmt: skip
def test_what_cannot_be_repaired_is_left_alone(request, harm):
    path: Path = request.getfixturevalue("killed" if harm in KILLED else "closed")
    harm(path)
    before = bytes_of(path)
    report = repair(path)
    assert not report.ok and not report.actions
    assert bytes_of(path) == before


def test_no_log_goes_while_pages_are_damaged(killed):
    pages = Pages(killed)
    pages.spoil(next(node for node in pages.levels["flat"][0] if pages.files[node].exists()))  # not from a log
    log_torn(killed)
    leftovers(killed)
    before = bytes_of(killed)
    report = repair(killed)
    assert report.opens and not report.actions
    assert bytes_of(killed) == before


@pytest.mark.slow
@pytest.mark.parametrize("harm", [*REPAIRS], ids=lambda harm: harm.__name__)
def test_a_repair_that_fails_at_any_call_can_be_run_again(made, tmp_path, tally, harm):
    for n in range(1, 1000):
        path = Path(shutil.copytree(made["closed"][0], tmp_path / str(n)))
        harm(path)
        fs = FaultyFileSystem()
        fs.fail_nth(n)
        with contextlib.suppress(OSError):
            repair(path, fs=fs)
        assert fsck(path).opens
        assert not repair(path).findings
        assert contents(path) == made["closed"][1]
        shutil.rmtree(path)
        tally("repairs that failed and were run again")
        if fs.calls < n:
            break
    assert n > 2


def test_a_log_with_commits_is_never_removed(killed):
    log_not_listed(killed)
    repair(killed)
    assert files(killed, "log")


def test_a_checkpoint_that_cannot_be_read_stays_where_there_is_no_manifest(closed):
    manifest_truncated(closed)
    newest_checkpoint_flipped(closed)
    newest = files(closed, "checkpoint")[-1]
    report = repair(closed)
    assert newest.exists()
    assert newest.name not in [action.file for action in report.actions]


def test_a_listed_log_that_was_never_used_is_no_damage(killed):
    number = max(number_in(name) for name in os.listdir(killed) if re.search(r"\d{10}", name)) + 1
    manifest = manifest_of(killed)
    page = pack_header(LOG_MAGIC, LOG_FORMAT, manifest.uuid, LOG_BODY.pack(number))
    (killed / filenames.log_name(number)).write_bytes(page + bytes(8192))
    change_manifest(killed, logs=(*manifest.logs, LogEntry(number)), next_number=number + 1)
    assert not fsck(killed).findings


@pytest.mark.parametrize("rounds", [20, pytest.param(400, marks=pytest.mark.torture)])
def test_random_damage_never_ends_fsck_and_is_never_called_fine_when_check_finds_it(made, tmp_path, tally, rounds):
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    for number in range(rounds):
        path = Path(shutil.copytree(made[rng.choice(("closed", "killed"))][0], tmp_path / str(number)))
        chosen = [file for file in sorted(path.iterdir()) if file.name != filenames.LOCK]
        done = [(file.name, damage(file, rng)) for file in rng.sample(chosen, rng.choice((1, 1, 2, 3)))]
        report = fsck(path)
        try:
            contents(path)
        except (xtree.CorruptionError, xtree.FormatVersionError):
            assert not report.ok, done
        except FileNotFoundError:
            assert report.epoch is None, done  # the superblock is gone with everything else
        shutil.rmtree(path)
        tally("randomly damaged indexes that fsck judged")
