"""CSV files as people have them: which columns are taken, how they are separated, and how they are encoded."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest
from click.testing import CliRunner

import xtree
from xtree.tools.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def build(tmp_path):
    """build(text, *options) -> (ids, boxes) of the index made of the text, and the printed JSON."""
    number = 0

    def make(text, *options, name="table.csv", encoding="utf-8"):
        nonlocal number
        number += 1
        source, index = tmp_path / f"{number}-{name}", tmp_path / f"{number}.xtree"
        data = text.encode(encoding)
        source.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        done = run("build", source, index, "--json", *options)
        assert done.exit_code == 0, done.output
        with xtree.open(index, mode="r") as tree:
            ids, boxes = tree.items()
        order = np.argsort(ids)
        return ids[order].tolist(), boxes[order].tolist(), json.loads(done.stdout)

    return make


@pytest.fixture
def refused(tmp_path):
    """refused(text, *options) -> the one line that was printed, without the file's name; no index is left."""

    def refuse(text, *options, name="table.csv", encoding="utf-8"):
        source = tmp_path / name
        source.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        done = run("build", source, tmp_path / "refused.xtree", *options)
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.output
        assert not (tmp_path / "refused.xtree").exists()
        assert f"{source}: " in done.stderr
        return done.stderr

    return refuse


@pytest.mark.parametrize(
    "names",
    [
        "minx,miny,maxx,maxy", "xmin,ymin,xmax,ymax", "x_min,y_min,x_max,y_max", "min_x,min_y,max_x,max_y",
        "left,bottom,right,top", "west,south,east,north", "minlon,minlat,maxlon,maxlat", "LonMin,LatMin,LonMax,LatMax",
    ],
)  # fmt: skip
def test_boxes_go_by_the_names_of_their_columns_and_longitude_is_the_first_axis(build, names):
    columns = dict(zip(names.split(","), (1, 2, 3, 4), strict=True))
    for _ in range(3):
        order = random.sample(list(columns), 4)
        text = ",".join(order) + "\n" + ",".join(str(columns[name]) for name in order) + "\n"
        _, boxes, said = build(text)
        assert boxes == [[1, 2, 3, 4]]
        assert said["columns"] == names.split(",") and said["points"] is False and said["id_column"] is None


def test_latitude_first_is_turned_for_boxes_as_for_points_and_the_output_says_so(build, tmp_path):
    assert build("minlat,minlon,maxlat,maxlon\n2,1,4,3\n")[1] == [[1, 2, 3, 4]]
    assert build("lat,lon\n2,1\n")[1] == [[1, 2, 1, 2]]
    (tmp_path / "p.csv").write_text("lat,lon,fid\n2,1,5\n", encoding="utf-8")
    assert "points of lon, lat; ids from fid\n" in run("build", tmp_path / "p.csv", tmp_path / "p").stdout
    (tmp_path / "q.csv").write_text("minlat,minlon,maxlat,maxlon\n2,1,4,3\n", encoding="utf-8")
    said = run("build", tmp_path / "q.csv", tmp_path / "q").stdout
    assert "boxes of minlon, minlat, maxlon, maxlat; numbered from 0\n" in said


@pytest.mark.parametrize("name", ["id", "fid", "FID", "OBJECTID", "gid", "ogc_fid", "osm_id"])
def test_the_usual_columns_of_ids_are_ids(build, name):
    ids, _, said = build(f"x,{name},y\n0,7,0\n1,-3,1\n")
    assert ids == [-3, 7] and said["id_column"] == name


def test_ids_may_be_chosen_or_left_out(build, refused):
    text = "fid,id,x,y,key\n1,2,0,0,9\n"
    assert build(text)[0] == [2]
    assert build(text, "--id", "fid")[0] == [1] and build(text, "--id", "KEY")[0] == [9]
    assert build("id,x,y\nway/7,0,0\n", "--id", "-")[0] == [0]
    assert "line 2, column 1: expected a whole number" in refused("id,x,y\nway/7,0,0\n")
    assert "no column is called 'nr'" in refused(text, "--id", "nr")


def test_columns_that_only_begin_with_min_or_max_are_no_axes(build, refused):
    assert build("minx,miny,maxx,maxy,mintemp,maxtemp,mint,maxt\n1,2,3,4,-5,5,0,1\n")[1] == [[1, 2, 3, 4]]
    assert build("lon,lat,minprice,maxprice,minutes\n1,2,3,4,5\n")[1] == [[1, 2, 1, 2]]
    said = refused("minprice,maxprice,minute,maxim\n1,2,3,4\n")
    assert "'minprice' might be axes or not" in said and "--box MINX,MINY,MAXX,MAXY" in said
    assert build("minprice,maxprice\n1,2\n", "--box", "minprice,maxprice")[1] == [[1, 2]]
    assert "--x NAME --y NAME" in refused("east_m,north_m\n1,2\n")
    assert build("east_m,north_m\n1,2\n", "--x", "east_m", "--y", "north_m")[1] == [[1, 2, 1, 2]]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("minx,miny,maxx", "not the minima and maxima of the same axes"),
        ("minx,miny,maxx,maxy,xmin", "'minx' and 'xmin' are both the minimum of one axis"),
        ("lon,lat,x", "both the coordinate of one axis"),
    ],
)
def test_names_that_contradict_each_other_are_refused_and_may_be_chosen_from(build, refused, names, said):
    values = ",".join("12345"[: names.count(",") + 1])
    heard = refused(f"{names}\n{values}\n")
    assert said in heard and "--box" in heard
    first, second = names.split(",")[:2]
    assert build(f"{names}\n{values}\n", "--x", second, "--y", first)[1] == [[2, 1, 2, 1]]


def test_chosen_columns_are_taken_in_the_order_given(build, refused):
    text = "a,b,c,d,e,f\n1,2,3,4,5,6\n"
    assert build(text, "--box", "b, a,d,c")[1] == [[2, 1, 4, 3]]
    assert build(text, "--box", "a,b,c,d,e,f")[2]["dims"] == 3
    assert build(text, "--x", "c", "--y", "b", "--z", "a", "--id", "f")[:2] == ([6], [[3, 2, 1, 3, 2, 1]])
    assert "an even number" in refused(text, "--box", "a,b,c")
    assert "no column is called 'z'" in refused(text, "--box", "a,b,c,z")
    assert "two columns are called 'A'" in refused("a,a,b\n1,2,3\n", "--x", "A", "--y", "b")
    assert "one of them only" in refused(text, "--box", "a,b,c,d", "--x", "a", "--y", "b")


def test_x_without_y_is_wrong_usage(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    for options in (["--x", "a"], ["--y", "a"], ["--z", "a"], ["--x", "a", "--z", "b"]):
        assert run("build", tmp_path / "t.csv", tmp_path / "i", *options).exit_code == 2


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["table.csv", "table.CSV", "table.csv.gz"])
def test_columns_are_separated_by_commas_semicolons_tabs_or_bars(build, separator, name):
    text = separator.join(["id", '"the, name"', "x", "y"]) + "\n" + separator.join(["4", '"a; b"', "1", "2.5"]) + "\n"
    assert build(text, name=name)[:2] == ([4], [[1, 2.5, 1, 2.5]])


def test_tsv_and_its_gz_have_tabs(build):
    for name in ("table.tsv", "table.tsv.gz"):
        assert build("x\ty, z\ty\n1\t9\t2\n", name=name)[1] == [[1, 2, 1, 2]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_utf_8_with_and_without_a_mark_and_any_end_of_line(build, encoding, end):
    text = end.join(["name,x,y", "Zürich,8.5,47.4", "", "東京,139.7,35.7", ""])
    assert build(text, encoding=encoding)[1] == [[8.5, 47.4, 8.5, 47.4], [139.7, 35.7, 139.7, 35.7]]


def test_other_encodings_are_named_or_refused_with_the_file_and_what_to_say(build, refused):
    text = "name,x,y\nZürich,8.5,47.4\n"
    said = refused(text, encoding="latin-1")
    assert "not written in UTF-8: it has a byte 0xfc" in said and "--encoding latin-1" in said
    assert build(text, "--encoding", "latin-1", encoding="latin-1")[1] == [[8.5, 47.4, 8.5, 47.4]]
    for encoding in ("utf-16", "utf-16-le"):
        marked = ("\ufeff" if encoding == "utf-16-le" else "") + text
        assert "written in UTF-16; say --encoding utf-16" in refused(marked, encoding=encoding)
        assert build(marked, "--encoding", "utf-16", encoding=encoding)[1] == [[8.5, 47.4, 8.5, 47.4]]
    assert "unknown encoding: klingon" in refused(text, "--encoding", "klingon")
    header = "größe,x,y\n1,2,3\n"
    assert "not written in UTF-8" in refused(header, encoding="latin-1")
    assert "not written in" in refused(text, "--encoding", "ascii")


def test_errors_name_the_line_whatever_the_file(refused):
    assert "line 3, column 2: expected a number, found 'two'" in refused("x;y\n1;2\n1;two\n")
    text = gzip.compress(b"x,y\n1,2\n1,two\n")
    assert "line 3, column 2: expected a number, found 'two'" in refused(text, name="t.csv.gz")
    assert "not a whole gzip file" in refused(gzip.compress(b"x,y\n" + b"1,2\n" * 999)[:-20], name="t.csv.gz")
    assert "not a whole gzip file" in refused(b"x,y\n1,2\n", name="t.csv.gz")


def test_what_arrays_do_not_have_cannot_be_chosen(tmp_path):
    np.save(tmp_path / "b.npy", np.zeros((2, 4)))
    for option in (["--id", "id"], ["--box", "a,b"], ["--encoding", "utf-8"]):
        done = run("build", tmp_path / "b.npy", tmp_path / "i", *option)
        assert done.exit_code == 2 and "in CSV files only" in done.stderr


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_reading_says_how_far_it_is(tmp_path, name):
    from xtree.tools.tables import read_table

    data = b"x,y\n" + b"1.5,2.5\n" * 50_000
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    reports = []
    table = read_table(tmp_path / name, progress=lambda *report: reports.append(report))
    size = (tmp_path / name).stat().st_size
    assert len(table.ids) == 50_000 and len(reports) > 10
    assert reports == sorted(reports) and reports[-1] == (size, size) and {total for _, total in reports} == {size}


def test_a_bar_is_shown_while_reading_and_while_loading(tmp_path, monkeypatch):
    import xtree.tools.cli

    bars = []

    class Bar(xtree.tools.cli.tqdm):
        def __init__(self, **options):
            bars.append(options["unit"])
            super().__init__(**options, disable=True)

    monkeypatch.setattr(xtree.tools.cli, "tqdm", Bar)
    monkeypatch.setattr(xtree.tools.cli.sys, "stderr", type("Terminal", (), {"isatty": lambda self: True})())
    (tmp_path / "t.csv").write_text("x,y\n" + "1.5,2.5\n" * 20_000, encoding="utf-8")
    main(["build", str(tmp_path / "t.csv"), str(tmp_path / "i")], standalone_mode=False)
    assert bars == ["B", " records"]
