"""The command line: build, query, info, check; text and JSON; exit status 0, 1, 2, 130.

Promises (Right answers):

- an interrupted command exits with 130 and leaves no index that wasn't there:
  test_an_interrupted_build_exits_with_130_and_leaves_no_index_or_the_one_there_was,
  test_an_interrupted_command_exits_with_130_without_a_traceback, test_every_command_turns_an_interrupt_into_130.

Promises (What people touch):

- numbers of 2^63 and beyond on the command line, negative ones and floats where none may be: kept to the last digit,
  or refused with file and line, and nothing is built:
  test_ids_and_coordinates_beyond_what_is_stored_are_refused_with_file_and_line,
  test_ids_of_arrays_beyond_what_is_stored_are_refused_with_the_file,
  test_the_largest_and_least_ids_are_kept_to_the_last_digit_by_every_door,
  test_numbers_that_cannot_be_are_refused_with_status_2.
"""

import contextlib
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import xtree
from xtree.data import cities
from xtree.persistence.base import breath
from xtree.persistence.files.platform_fs import FileSystem
from xtree.tools.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_json(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def boxes():
    low = np.random.default_rng(5).random((500, 2))
    return np.hstack([low, low + 0.05])


@pytest.fixture
def index(tmp_path, boxes):
    np.save(tmp_path / "boxes.npy", boxes)
    assert run("build", tmp_path / "boxes.npy", tmp_path / "index").exit_code == 0
    return tmp_path / "index"


def expected(boxes, window):
    hits = (boxes[:, :2] <= window[2:]).all(axis=1) & (boxes[:, 2:] >= window[:2]).all(axis=1)
    return np.flatnonzero(hits).tolist()


def test_build_from_npy_numbers_the_records(index, boxes):
    assert run_json("query", index, 0.2, 0.2, 0.4, 0.4)["count"] == len(expected(boxes, [0.2, 0.2, 0.4, 0.4]))


def test_build_says_what_it_did(tmp_path, boxes):
    np.savez(tmp_path / "b.npz", boxes=boxes, ids=np.arange(500) * 10)
    result = run_json("build", tmp_path / "b.npz", tmp_path / "index")
    assert (result["loaded"], result["records"], result["dims"]) == (500, 500, 2)
    assert result["bytes"] > 500 * 40
    assert all(i % 10 == 0 for i in run_json("query", tmp_path / "index", 0, 0, 0.5, 0.5)["ids"])


def test_build_from_csv_boxes_takes_ids_and_passes_over_other_columns(tmp_path):
    (tmp_path / "b.csv").write_text('name,id,minx,miny,maxx,maxy\n"a, b",7,0,0,1,1\nc,-8,5,5,6,6\n', encoding="utf-8")
    assert run_json("build", tmp_path / "b.csv", tmp_path / "index")["records"] == 2
    assert run_json("query", tmp_path / "index", 1, 1, 2, 2)["ids"] == [7]
    assert run_json("query", tmp_path / "index", "-inf", "-inf", "inf", "inf")["count"] == 2


@pytest.mark.parametrize("columns", ["lon,lat", "x,y", "Longitude,Latitude"])
def test_build_from_csv_points(tmp_path, columns):
    (tmp_path / "p.csv").write_text(f"{columns}\n-1.5,2.5\n3,4\n", encoding="utf-8")
    run_json("build", tmp_path / "p.csv", tmp_path / "index")
    assert run_json("query", tmp_path / "index", -2, 2, -1, 3)["ids"] == [0]


def test_build_from_an_array_of_points(tmp_path):
    np.save(tmp_path / "p.npy", np.random.default_rng(1).random((50, 3)))
    assert run_json("build", tmp_path / "p.npy", tmp_path / "index", "--points")["dims"] == 3


def test_build_refuses_an_existing_index_unless_told_to_append(tmp_path, index):
    again = run("build", tmp_path / "boxes.npy", index)
    assert again.exit_code == 2
    assert again.stderr.startswith("xtree: ")
    assert run_json("build", tmp_path / "boxes.npy", index, "--append")["records"] == 1000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_columns.csv", "1,2,3,4\n"),
        ("short_row.csv", "minx,miny,maxx,maxy\n1,2,3\n"),
        ("word.csv", "minx,miny,maxx,maxy\n1,2,3,four\n"),
        ("float_id.csv", "id,x,y\n1.5,2,3\n"),
        ("upside_down.csv", "minx,miny,maxx,maxy\n1,1,0,0\n"),
        ("nan.csv", "x,y\nnan,0\n"),
        ("no_array.npy", "this is no array"),
        ("no_archive.npz", "this is no archive"),
        ("what.txt", "1 2 3 4"),
    ],
)
def test_build_refuses_what_is_no_table_in_one_line_and_leaves_no_index(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    done = run("build", tmp_path / name, tmp_path / "index")
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.output
    assert not (tmp_path / "index").exists()


def test_an_empty_csv_makes_an_empty_index(tmp_path):
    (tmp_path / "e.csv").write_text("minx,miny,maxx,maxy\n", encoding="utf-8")
    assert run_json("build", tmp_path / "e.csv", tmp_path / "index")["records"] == 0
    assert run_json("query", tmp_path / "index", 0, 0, 1, 1) | {"seconds": 0} == {"ids": [], "count": 0, "seconds": 0}


def test_query_prints_one_id_a_line(index, boxes):
    done = run("query", index, 0.2, 0.2, 0.4, 0.4)
    assert sorted(map(int, done.stdout.split())) == expected(boxes, [0.2, 0.2, 0.4, 0.4])


def test_query_takes_negative_coordinates_predicates_and_count(index, boxes):
    assert run("query", index, "-1", "-1e0", "2", "2", "--count").stdout == "500\n"
    inside = run_json("query", index, -0.5, -0.5, 0.5, 0.5, "--predicate", "contains")["ids"]
    assert sorted(inside) == np.flatnonzero((boxes <= 0.5).all(axis=1)).tolist()
    low = boxes[17, :2] + 0.01
    assert 17 in run_json("query", index, *low, *(low + 0.01), "--predicate", "within")["ids"]


def test_query_nearest_prints_ids_and_distances(index, boxes):
    result = run_json("query", index, "--nearest", 5, 0.5, 0.5)
    gap = np.maximum(np.maximum(boxes[:, :2] - 0.5, 0.5 - boxes[:, 2:]), 0)
    assert result["distances"] == pytest.approx(np.sort(np.hypot(*gap.T))[:5].tolist())
    lines = run("query", index, "--nearest", 5, 0.5, 0.5).stdout.splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == result["ids"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("INDEX", "0", "0", "1"),
        ("INDEX", "a", "0", "1", "1"),
        ("INDEX",),
        ("INDEX", "0", "0", "1", "1", "--predicate", "touches"),
        ("INDEX", "0", "0", "1", "1", "--tree", "absent"),
        ("INDEX", "nan", "0", "1", "1"),
        ("INDEX", "0", "0", "--nearest", "0"),
        ("INDEX", "0", "0", "--nearest", "3", "--count"),
        ("NOWHERE", "0", "0", "1", "1"),
    ],
)
def test_query_refuses_wrong_usage_with_status_2_and_changes_nothing(tmp_path, index, arguments):
    names = {"INDEX": str(index), "NOWHERE": str(tmp_path / "nowhere")}
    done = run("query", *(names.get(argument, argument) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "nowhere").exists()


def test_info_describes_trees_files_and_runtime(index):
    found = run_json("info", index)
    assert found["trees"]["default"]["records"] == 500
    assert found["trees"]["default"]["dims"] == 2
    assert len(found["trees"]["default"]["bounds"]) == 4
    assert found["bytes"] == sum(found["files"].values()) > 0
    assert "500 records in 2 dimensions" in run("info", index).stdout


def test_info_and_query_write_nothing(index):
    def state():
        files = [file for file in index.iterdir() if file.name != "LOCK"]
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = state()
    run_json("info", index)
    run_json("check", index)
    run_json("query", index, 0, 0, 1, 1)
    assert state() == before


def test_check_is_fine_with_a_sound_index(index):
    result = run_json("check", index)
    assert result["ok"]
    assert result["trees"]["default"] == {"records": 500, "error": None}
    assert "fine" in run("check", index).stdout


def test_check_finds_damage_and_exits_with_1(index):
    data = max(index.glob("data-*"), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    for position in range(4096 + 512, len(content), 4096):
        content[position] ^= 0xFF
    data.write_bytes(content)
    done = run("check", index, "--json")
    assert done.exit_code == 1
    assert not json.loads(done.stdout)["ok"]
    text = run("check", index)
    assert text.exit_code == 1
    assert "DAMAGED" in text.stdout
    query = run("query", index, 0, 0, 1, 1)
    assert query.exit_code == 1
    assert len(query.stderr.splitlines()) == 1


def test_check_of_what_is_no_index_exits_with_1_or_2_and_leaves_it_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("milk", encoding="utf-8")
    done = run("check", tmp_path / "notes")
    assert done.exit_code in (1, 2)
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["todo.txt"]
    assert run("check", tmp_path / "nowhere").exit_code == 2


@contextlib.contextmanager
def held(path):
    """Holds the lock of an index, as somebody whose store this process can't share."""
    _, lock = FileSystem().lock_directory(path, shared=False)
    try:
        yield
    finally:
        lock.release()


def test_an_index_that_is_open_elsewhere_is_refused_with_status_2(index):
    with held(index):
        done = run("info", index)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


def test_trees_have_names(tmp_path):
    towns = cities()
    np.savez(tmp_path / "towns.npz", ids=towns.ids, boxes=towns.boxes)
    run_json("build", tmp_path / "towns.npz", tmp_path / "index", "--tree", "cities")
    assert list(run_json("info", tmp_path / "index")["trees"]) == ["cities"]
    assert run_json("query", tmp_path / "index", -180, -90, 180, 90, "--tree", "cities")["count"] == len(towns.ids)


@pytest.mark.parametrize(
    "command", ["build", "query", "info", "check", "demo"]
)
def test_help_documents_the_json_keys(command):
    done = run(*command.split(), "--help")
    assert done.exit_code == 0
    assert "JSON keys" in done.stdout


def test_the_installed_command_is_the_same():
    done = subprocess.run([sys.executable, "-m", "xtree.tools.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert xtree.__version__ in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minx,miny,maxx,maxy\n0,0,1,1\n\n2,2,3,3\n1,2,3,four\n", "line 5, column 4: expected a number, found 'four'"),
        ("minx,miny,maxx,maxy\n0,0,1,1\n1,2,3\n", "line 3: expected at least 4 columns, found 3"),
        ("id,x,y\n\n\n1.5,2,3\n", "line 4, column 1: expected a whole number from -2**63 to 2**63 - 1, found '1.5'"),
        ("id,x,y\n9223372036854775808,2,3\n", "line 2, column 1: expected a whole number"),
        ('name,x,y\n"a\nb",1,2\n\nc,nan,0\n', "line 5, axis 0 has NaN"),
        ("minx,miny,maxx,maxy\n0,0,1,1\n1,1,0,2\n", "line 3, axis 0 has min 1.0 above max 0.0"),
        ("x,y\n1,2\ninf,2\n", "line 3, axis 0 is infinite"),
    ],
)
def test_build_names_the_file_and_the_line_of_it_that_is_wrong(tmp_path, text, said):
    (tmp_path / "b.csv").write_text(text, encoding="utf-8")
    done = run("build", tmp_path / "b.csv", tmp_path / "index")
    assert done.exit_code == 2
    assert f"{tmp_path / 'b.csv'}: " in done.stderr and said in done.stderr
    assert not (tmp_path / "index").exists()


BEYOND = 2**63
WHOLE = r"expected a whole number from -2\*\*63 to 2\*\*63 - 1, found"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"id,x,y\n1,2,3\n{BEYOND},2,3\n", f"line 3, column 1: {WHOLE} '{BEYOND}'"),
        (f"id,x,y\n1,2,3\n\n{-BEYOND - 1},2,3\n", f"line 4, column 1: {WHOLE} '{-BEYOND - 1}'"),
        (f"id,x,y\n{2**64 - 1},2,3\n", f"line 2, column 1: {WHOLE} '{2**64 - 1}'"),
        ("id,x,y\n1e3,2,3\n", f"line 2, column 1: {WHOLE} '1e3'"),
        ("id,x,y\n7.0,2,3\n", f"line 2, column 1: {WHOLE} '7.0'"),
        ("id,x,y\nnan,2,3\n", f"line 2, column 1: {WHOLE} 'nan'"),
        ("id,x,y\n0x7,2,3\n", f"line 2, column 1: {WHOLE} '0x7'"),
        ("id,x,y\n,2,3\n", f"line 2, column 1: {WHOLE} ''"),
        ("x,y\n1,2\n1e400,2\n", "line 3, axis 0 is infinite"),
        ("x,y\n1,2\n1,-1e400\n", "line 3, axis 1 is infinite"),
    ],
)
def test_ids_and_coordinates_beyond_what_is_stored_are_refused_with_file_and_line(tmp_path, text, said):
    (tmp_path / "b.csv").write_text(text, encoding="utf-8")
    done = run("build", tmp_path / "b.csv", tmp_path / "index")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert f"{tmp_path / 'b.csv'}: " in done.stderr and re.search(said, done.stderr), done.stderr
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.array([1, BEYOND, 3], np.uint64), f"id {BEYOND} at index 1 is outside int64"),
        (np.array([1, 2, 2**64 - 1], np.uint64), f"id {2**64 - 1} at index 2 is outside int64"),
        (np.array([1.0, 2.0, 3.0]), "ids must be integers, got an array of float64"),
        (np.array([1.0, 2.0**63, 3.0]), "ids must be integers, got an array of float64"),
        (np.array([True, False, True]), "ids must be integers, got an array of bool"),
        (np.array([1, 2, BEYOND], object), "holds Python objects"),
        (np.array([1, 2]), "2 ids for 3"),
    ],
)
def test_ids_of_arrays_beyond_what_is_stored_are_refused_with_the_file(tmp_path, index, ids, said):
    np.savez(tmp_path / "b.npz", boxes=np.zeros((3, 4)), ids=ids)
    for target in (tmp_path / "new", index):
        done = run("build", tmp_path / "b.npz", target, "--append")
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
        assert f"{tmp_path / 'b.npz'}: " in done.stderr and said in done.stderr
    assert not (tmp_path / "new").exists() and run_json("info", index)["trees"]["default"]["records"] == 500


@pytest.mark.parametrize("value", [2**64 - 1, 2**53 + 1, 1j, "a"])
def test_boxes_of_arrays_that_no_float_holds_are_refused_with_the_file(tmp_path, value):
    np.save(tmp_path / "b.npy", np.array([[0, 0, 1, 1], [0, 0, value, 1]], np.uint64 if type(value) is int else None))
    done = run("build", tmp_path / "b.npy", tmp_path / "index")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1 and f"{tmp_path / 'b.npy'}: " in done.stderr
    assert not (tmp_path / "index").exists()


def test_the_largest_and_least_ids_are_kept_to_the_last_digit_by_every_door(tmp_path):
    ids = [BEYOND - 1, -BEYOND, 2**53 + 1, -1, 0]
    lines = "".join(f"{i},{n},0\n" for n, i in enumerate(ids))
    (tmp_path / "ids.csv").write_text("id,x,y\n" + lines, encoding="utf-8")
    np.savez(tmp_path / "ids.npz", boxes=np.zeros((5, 4)), ids=np.array(ids))
    np.savez(tmp_path / "unsigned.npz", boxes=np.zeros((5, 4)), ids=np.array([BEYOND - 1, 0, 1, 2, 3], np.uint64))
    for name, expected in (("ids.csv", ids), ("ids.npz", ids), ("unsigned.npz", [BEYOND - 1, 0, 1, 2, 3])):
        index = tmp_path / f"{name}.xtree"
        run_json("build", tmp_path / name, index)
        window = ("-inf", "-inf", "inf", "inf")
        assert sorted(run_json("query", index, *window)["ids"]) == sorted(expected)
        assert sorted(map(int, run("query", index, *window).stdout.split())) == sorted(expected)
        assert sorted(run_json("query", index, "--nearest", 5, 0, 0)["ids"]) == sorted(expected)


@pytest.mark.parametrize("k", [BEYOND - 1, BEYOND, 2**64, 10**30])
def test_more_neighbours_than_a_number_holds_are_all_records(index, k):
    assert len(run_json("query", index, "--nearest", k, 0.5, 0.5)["ids"]) == 500


@pytest.mark.parametrize(
    "arguments",
    [
        ("query", "INDEX", "0", "0", "--nearest", "-1"),
        ("query", "INDEX", "0", "0", "--nearest", str(-BEYOND)),
        ("query", "INDEX", "0", "0", "--nearest", "1.5"),
        ("query", "INDEX", "0", "0", "--nearest", "1e3"),
        ("query", "INDEX", "--nearest", "1", "1e400", "0"),
        ("query", "INDEX", "--nearest", "1", "--", "-1e400", "0"),
        ("query", "INDEX", "--nearest", "1", "0x10", "0"),
        ("query", "INDEX", str(BEYOND), "0", "0", "1"),
        ("dump", "INDEX", "page", str(2**64)),
        ("dump", "INDEX", "page", "-1"),
        ("dump", "INDEX", "page", "1.5"),
        ("dump", "INDEX", "tree", "--depth", "-1"),
        ("dump", "INDEX", "page", "1", "--entries", "-1"),
        ("demo", "--boxes", str(BEYOND)),
        ("demo", "--boxes", "-1"),
    ],
)
def test_numbers_that_cannot_be_are_refused_with_status_2(tmp_path, index, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = run(*(str(index) if argument == "INDEX" else argument for argument in arguments))
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output and not (tmp_path / "demo-output").exists()


def test_coordinates_of_any_size_are_asked_for_as_floats(index):
    huge = str(10**300)
    assert run_json("query", index, f"-{huge}", f"-{BEYOND}", huge, BEYOND, "--count")["count"] == 500
    assert run_json("query", index, "--count", "-1e400", "-1e400", "1e400", "1e400")["count"] == 500
    assert run_json("query", index, "--nearest", 1, BEYOND, BEYOND)["count"] == 1


def test_build_names_the_file_for_arrays_and_other_dimensions_too(tmp_path, index):
    np.savez(tmp_path / "b.npz", boxes=np.zeros((3, 4)), ids=np.arange(2))
    np.savez(tmp_path / "f.npz", boxes=np.zeros((3, 4)), ids=np.arange(3.0))
    np.save(tmp_path / "n.npy", np.array([[0, 0, 1, 1], [0, np.nan, 1, 1.0]]))
    np.save(tmp_path / "d.npy", np.zeros((3, 6)))
    np.save(tmp_path / "w.npy", np.zeros((3, 200)))
    for name, said in (("b.npz", "2 ids for 3"), ("f.npz", "id"), ("n.npy", "row 1, axis 1"), ("w.npy", "64"),
                       ("d.npy", "has 2 dims, not 3")):  # fmt: skip
        done = run("build", tmp_path / name, index, "--append")
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
        assert f"{tmp_path / name}: " in done.stderr and said in done.stderr
    assert run_json("info", index)["trees"]["default"]["records"] == 500


def test_backup_copies_an_index_that_others_read(tmp_path, index):
    with xtree.open(index, mode="r"):
        result = run_json("backup", index, tmp_path / "copy")
    assert result["trees"] == ["default"] and result["bytes"] > 500 * 40
    assert run("check", tmp_path / "copy").exit_code == 0
    assert run_json("info", tmp_path / "copy")["trees"] == run_json("info", index)["trees"]
    assert "1 tree(s)" in run("backup", index, tmp_path / "another").stdout


def test_backup_refuses_a_locked_or_missing_index_and_a_full_target_with_status_2(tmp_path, index):
    with held(index):
        locked = run("backup", index, tmp_path / "copy")
    assert locked.exit_code == 2 and "in use by process" in locked.stderr
    assert run("backup", tmp_path / "nowhere", tmp_path / "copy").exit_code == 2
    assert run("backup", index, index / "inside").exit_code == 2
    assert not (tmp_path / "copy").exists()
    full = run("backup", index, tmp_path)
    assert full.exit_code == 2 and "empty directory" in full.stderr


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    breath.watch_breaths(False)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("moment", [1, 5, 30])
@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_build_exits_with_130_and_leaves_no_index_or_the_one_there_was(
    tmp_path, index, boxes, interrupts, moment, there
):
    target = index if there else tmp_path / "new"
    breath.interrupt_breath(moment)
    done = run("build", tmp_path / "boxes.npy", target, "--append")
    breath.watch_breaths(False)
    assert (done.exit_code, done.stderr) == (130, "\nAborted!\n")
    assert target.exists() == there
    if there:
        assert run_json("check", index)["trees"]["default"]["records"] == len(boxes)


@pytest.mark.parametrize("command", ["query INDEX 0 0 1 1", "query INDEX 0 0 --nearest 3", "info INDEX"])
def test_an_interrupted_command_exits_with_130_without_a_traceback(index, interrupts, command):
    before = {file.name: file.read_bytes() for file in index.iterdir()}
    breath.interrupt_breath(1)
    done = run(*command.replace("INDEX", str(index)).split())
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "\nAborted!\n")
    assert {file.name: file.read_bytes() for file in index.iterdir()} == before


@pytest.mark.parametrize("command", ["build", "query", "info", "check", "fsck", "dump", "backup", "demo"])
def test_every_command_turns_an_interrupt_into_130(monkeypatch, command):
    def interrupt(*arguments, **more):
        raise KeyboardInterrupt

    for given in (main.commands[command], *getattr(main.commands[command], "commands", {}).values()):
        monkeypatch.setattr(given, "callback", interrupt)
    arguments = {"build": [__file__, "x"], "query": ["x", "0", "0"], "demo": [], "backup": ["x", "y"]}
    done = run(command, *arguments.get(command, ["x"]))
    assert (done.exit_code, done.stderr) == (130, "\nAborted!\n")
    assert not isinstance(done.exception, KeyboardInterrupt)
