"""Points, tables and geometries are read as what they are, or refused with an error that names them."""

from __future__ import annotations

from collections import namedtuple

import geopandas
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import shapely
from support import brute_force

import xtree

N = 200
NAMES = [
    "minx miny maxx maxy", "xmin ymin xmax ymax", "x_min y_min x_max y_max", "min_x min_y max_x max_y",
    "left bottom right top", "west south east north", "minlon minlat maxlon maxlat", "MinX MinY MaxX MaxY",
    "min0 min1 max0 max1", "min_1 min_2 max_1 max_2",
]  # fmt: skip
FRAMES = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow": pa.table,
    "batch": pa.RecordBatch.from_pydict,
    "nullable": lambda columns: pd.DataFrame(columns).convert_dtypes(),
    "arrow-backed": lambda columns: pd.DataFrame(columns).convert_dtypes(dtype_backend="pyarrow"),
}


@pytest.fixture
def boxes(random):
    return brute_force.random_boxes(random, N, 2)


@pytest.fixture(params=FRAMES)
def frame(request):
    """A way to make a table of a dict of columns."""
    return lambda columns: FRAMES[request.param]({name: list(column) for name, column in columns.items()})


def assert_holds(tree, boxes):
    """Asserts that the tree has these boxes, with ids 0 .. n-1."""
    tree.check()
    assert brute_force.records(*tree.items()) == brute_force.records(np.arange(len(boxes)), boxes)


@pytest.mark.parametrize("names", NAMES)
def test_columns_with_names_of_bounds_are_read_by_name_in_any_order(frame, names, boxes, random):
    columns = dict(zip(names.split(), boxes.T, strict=True)) | {"name": ["road"] * N, "lanes": range(N)}
    for _ in range(3):
        table = frame({name: columns[name] for name in random.permutation(list(columns))})
        assert_holds(xtree.XTree.from_boxes(table), boxes)
        tree = xtree.XTree(2)
        tree.insert_many(np.arange(N), table)
        assert_holds(tree, boxes)
        offsets, ids = tree.query(table, output="csr")
        assert offsets.tolist() == tree.query(boxes, output="csr")[0].tolist()
        assert tree.count(table).tolist() == tree.count(boxes).tolist()
        assert tree.delete_many(np.arange(N), table) == N


@pytest.mark.parametrize("names", ["x y", "lon lat", "lng lat", "longitude latitude", "X Y", "long lat"])
def test_points_are_read_by_name_in_any_order(frame, names, random):
    points = random.random((N, 2))
    columns = dict(zip(names.split(), points.T, strict=True)) | {"id": range(N)}
    for order in (list(columns), list(columns)[::-1]):
        table = frame({name: columns[name] for name in order})
        for tree in (xtree.XTree.from_points(table), xtree.XTree.from_boxes(table, dims=2)):
            assert_holds(tree, np.hstack([points, points]))
            assert tree.nearest(table).tolist() == [list(range(N)), list(range(N))]
            assert tree.count(table).tolist() == [1] * N
        with pytest.raises(xtree.DimensionError, match="from_points"):
            xtree.XTree.from_boxes(table)


def test_points_in_three_dimensions_have_x_y_and_z(frame):
    table = frame({"z": [3.0], "x": [1.0], "y": [2.0]})
    assert xtree.XTree.from_points(table).bounds.tolist() == [1, 2, 3, 1, 2, 3]
    with pytest.raises(xtree.DimensionError, match="have 3 axes, expected 2"):
        xtree.XTree(2).insert_many([1], table)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("minx miny maxx maxy xmin", "'minx' and 'xmin' are both the minimum of one axis"),
        ("minx maxx minlon maxlon", "both the minimum of one axis"),
        ("minx miny maxx", "'minx', 'miny', 'maxx' are not the minima and maxima of the same axes"),
        ("minx maxlon", "not the minima and maxima of the same axes"),
        ("miny maxy", "leave out the minimum of an axis"),
        ("minx min0 maxx max0", "both the minimum of one axis"),
        ("min1 max0 min2 max1", "not the minima and maxima of the same axes"),
        ("x lon", "both the coordinate of one axis"),
        ("x z", "leave out the coordinate of an axis"),
    ],
)
def test_names_that_contradict_each_other_are_refused(frame, names, said):
    table = frame({name: [1.0, 2.0] for name in names.split()})
    for take in (lambda: xtree.XTree.from_boxes(table), lambda: xtree.XTree(2).query(table)):
        with pytest.raises(xtree.DimensionError, match=said):
            take()


def test_a_table_without_such_names_goes_by_position_only_when_it_is_as_wide_as_asked_for(frame, boxes):
    plain = frame(dict(zip("abcd", boxes.T, strict=True)))
    tree = xtree.XTree.from_boxes(plain, dims=2)
    assert_holds(tree, boxes)
    points = frame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    assert tree.count(points).tolist() == [0, 0]
    with pytest.raises(xtree.DimensionError, match=r"'a', 'b', 'c', 'd' don't say which"):
        xtree.XTree.from_boxes(plain)
    for table in (frame(dict(zip("abcde", boxes.T[[0, 1, 2, 3, 3]], strict=True))), frame({"price": [1.0]})):
        for take in (tree.query, tree.count, lambda given: tree.insert_many(np.arange(N), given)):
            with pytest.raises(xtree.DimensionError, match="'a', 'b'|'price'"):
                take(table)
    with pytest.raises(xtree.DimensionError, match="don't say which"):
        tree.nearest(plain)
    unnamed = pd.DataFrame(boxes)
    assert_holds(xtree.XTree.from_boxes(unnamed), boxes)


def test_a_frames_index_is_never_taken_as_ids(boxes):
    table = pd.DataFrame(boxes, columns=NAMES[0].split(), index=np.arange(N) + 1000)
    assert_holds(xtree.XTree.from_boxes(table), boxes)


def test_ids_are_columns_of_any_kind(frame, boxes):
    table = frame({"id": [2**62 + i for i in range(N)], **dict(zip(NAMES[0].split(), boxes.T, strict=True))})
    tree = xtree.XTree.from_boxes(table, ids=table["id"])
    assert sorted(tree.items()[0].tolist()) == [2**62 + i for i in range(N)]
    with_gap = frame({"id": [1, None, 3]})["id"]
    with pytest.raises((ValueError, TypeError), match="index 1|integers"):
        tree.insert_many(with_gap, boxes[:3])


def test_whole_numbers_are_exact_or_refused_also_beside_missing_ones(frame):
    table = frame({"x": [2**53, None], "y": [1, 2]})
    tree = xtree.XTree.from_points(frame({"x": [2**53], "y": [1]}))
    assert tree.bounds.tolist() == [2**53, 1, 2**53, 1]
    with pytest.raises(xtree.InvalidBoxError, match="row 1, axis 0 has NaN"):
        xtree.XTree.from_points(table)
    with pytest.raises(xtree.InvalidBoxError, match="column 'x': .* no exact value"):
        xtree.XTree.from_points(frame({"x": [2**53 + 1], "y": [1]}))


@pytest.mark.parametrize("values", [["1.0", "2.0"], [True, False], [1j, 2j], pd.to_datetime(["2020-01-01"] * 2)])
def test_columns_of_anything_but_real_numbers_are_refused_with_their_name(values):
    table = pd.DataFrame({"x": values, "y": [1.0, 2.0]})
    with pytest.raises(TypeError, match="column 'x'"):
        xtree.XTree.from_points(table)


def test_rows_without_any_value_are_missing(frame):
    low, high = [0.0, None, 2.0], [1.0, None, 3.0]
    table = frame({"minx": low, "miny": low, "maxx": high, "maxy": high})
    with pytest.raises(xtree.InvalidBoxError, match="row 1 is missing or empty; skip_empty=True"):
        xtree.XTree.from_boxes(table)
    tree = xtree.XTree.from_boxes(table, skip_empty=True)
    assert sorted(tree.items()[0].tolist()) == [0, 2]
    assert tree.count(table).tolist() == [1, 0, 1]


ROW = namedtuple("ROW", "maxx minx maxy miny")


def test_rows_of_a_table_are_read_by_name_too(boxes):
    tree = xtree.XTree.from_boxes(boxes)
    table = pd.DataFrame(boxes[:, [0, 2, 1, 3]], columns=["minx", "maxx", "miny", "maxy"])
    table["name"] = "road"
    for i in range(5):
        assert sorted(tree.query(table.iloc[i])) == sorted(tree.query(boxes[i]))
        row = ROW(boxes[i, 2], boxes[i, 0], boxes[i, 3], boxes[i, 1])
        assert sorted(tree.query(row)) == sorted(tree.query(boxes[i]))
        assert (i, row) in tree
    rows = [ROW(*box[[2, 0, 3, 1]]) for box in boxes]
    assert_holds(xtree.XTree.from_boxes(rows), boxes)
    assert tree.count(list(table.itertuples(index=False))).tolist() == tree.count(boxes).tolist()
    for other in (tuple(boxes[0]), namedtuple("Other", "minx miny maxx maxy")(*boxes[0])):
        with pytest.raises(xtree.DimensionError, match="row 2 is a (tuple|Other), row 0 a ROW"):
            tree.query([rows[0], rows[1], other])
    with pytest.raises(xtree.DimensionError, match="'maxx', 'maxy'|leave out"):
        tree.query(table.drop(columns="minx").iloc[0])


# Points.


def test_arrays_of_points_need_from_points_or_dims(random):
    """Two columns without dims= could be intervals on one axis."""
    points = random.random((N, 2))
    for given in (points, points.tolist(), points[0]):
        with pytest.raises(xtree.DimensionError, match="from_points"):
            xtree.XTree.from_boxes(given)
    assert_holds(xtree.XTree.from_points(points), np.hstack([points, points]))
    assert_holds(xtree.XTree.from_boxes(points, dims=2), np.hstack([points, points]))
    intervals = np.sort(points, axis=1)
    assert_holds(xtree.XTree.from_boxes(intervals, dims=1), intervals)


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 64])
def test_from_points_has_as_many_dimensions_as_the_points(tmp_path, random, dims):
    points = random.random((50, dims))
    with xtree.XTree.from_points(points, ids=np.arange(50) * 2, path=tmp_path / "index", threads=2) as tree:
        assert tree.dims == dims and sorted(tree.items()[0].tolist()) == list(range(0, 100, 2))
        assert tree.nearest(points).tolist() == [list(range(50)), list(range(0, 100, 2))]
    with xtree.open(tmp_path / "index") as tree:
        assert len(tree) == 50
    assert len(xtree.XTree.from_points(np.empty((0, dims)))) == 0


def test_from_points_refuses_what_are_none(boxes):
    for given in ([], np.zeros((2, 2, 2)), np.zeros((3, 65)), 5.0):
        with pytest.raises(xtree.DimensionError):
            xtree.XTree.from_points(given)
    with pytest.raises(xtree.DimensionError, match="expected points"):
        xtree.XTree.from_points(pd.DataFrame(boxes, columns=NAMES[0].split()))
    with pytest.raises(xtree.DimensionError, match="expected points, row 0 is a Polygon"):
        xtree.XTree.from_points(shapely.box(*boxes.T))
    with pytest.raises(xtree.InvalidBoxError, match="row 1"):
        xtree.XTree.from_points([[0, 0], [np.nan, 1]])


# Geometries.


GEOMETRIES = {
    "array": lambda given: given,
    "list": list,
    "tuple": tuple,
    "GeoSeries": geopandas.GeoSeries,
    "GeometryArray": lambda given: geopandas.GeoSeries(given).array,
    "GeoDataFrame": lambda given: geopandas.GeoDataFrame({"minx": 7.0, "name": "road", "geometry": given}),
    "Series": lambda given: pd.Series(given, dtype=object),
}


@pytest.fixture(params=GEOMETRIES)
def as_given(request):
    """A way to pass an array of geometries."""
    return GEOMETRIES[request.param]


def test_geometries_are_taken_by_their_bounds(as_given, boxes):
    geometries = as_given(shapely.box(*boxes.T))
    tree = xtree.XTree.from_boxes(geometries)
    assert_holds(tree, boxes)
    assert tree.count(geometries).tolist() == tree.count(boxes).tolist()
    assert tree.query(geometries, "covers").shape == tree.query(boxes, "covers").shape
    other = xtree.XTree(2)
    other.insert_many(np.arange(N), geometries)
    other.bulk_load(np.arange(N), geometries)
    assert other.delete_many(np.arange(N), geometries) == N
    assert_holds(other, boxes)


def test_one_geometry_is_one_box(boxes):
    tree = xtree.XTree(2)
    road = shapely.LineString([(0, 0), (3, 1), (2, 5)])
    tree.insert(1, road)
    assert tree.bounds.tolist() == [0, 0, 3, 5] and (1, road) in tree
    assert tree.query(road).tolist() == [1] and tree.count(road) == 1
    assert tree.nearest(shapely.Point(9, 9)).tolist() == [1]
    with pytest.raises(xtree.DimensionError, match="got a LineString"):
        tree.nearest(road)
    assert tree.update(1, road, shapely.Point(1, 1)) and tree.delete(1, shapely.Point(1, 1, 7))
    with pytest.raises(xtree.DimensionError):
        xtree.XTree(3).query(road)


def test_points_of_geometries_are_points(as_given, random):
    points = random.random((N, 2))
    tree = xtree.XTree.from_points(as_given(shapely.points(points)))
    assert_holds(tree, np.hstack([points, points]))
    assert tree.nearest(as_given(shapely.points(points))).tolist() == [list(range(N)), list(range(N))]


def test_missing_and_empty_geometries_are_refused_with_their_row_or_skipped_and_have_no_hits(as_given, boxes, tmp_path):
    geometries = shapely.box(*boxes.T)
    geometries[[3, 8]] = None, shapely.Polygon()
    present = np.delete(np.arange(N), [3, 8])
    given = as_given(geometries)
    tree = xtree.XTree(2)
    for take in (lambda: xtree.XTree.from_boxes(given), lambda: tree.insert_many(range(N), given)):
        with pytest.raises(xtree.InvalidBoxError, match="row 3 is missing or empty; skip_empty=True leaves"):
            take()
    tree.insert_many(np.arange(N) * 2, given, skip_empty=True)
    assert sorted(tree.items()[0].tolist()) == (present * 2).tolist()
    loaded = xtree.XTree(2)
    loaded.bulk_load(np.arange(N) * 3, given, skip_empty=True)
    assert sorted(loaded.items()[0].tolist()) == (present * 3).tolist()
    made = xtree.XTree.from_boxes(given, path=tmp_path / "index", skip_empty=True)
    assert brute_force.records(*made.items()) == brute_force.records(present, boxes[present])
    for predicate in ("intersects", "contains", "within"):
        counts = made.count(given, predicate)
        assert counts[[3, 8]].tolist() == [0, 0]
        assert counts[present].tolist() == made.count(boxes[present], predicate).tolist()
        pairs = made.query(given, predicate)
        assert not set(pairs[0].tolist()) & {3, 8} and pairs.shape[1] == counts.sum()
    with pytest.raises(xtree.DimensionError, match="got 5 ids for 200 boxes"):
        tree.insert_many(range(5), given, skip_empty=True)
    made.close()


def test_a_missing_or_empty_point_has_no_neighbours(as_given, random):
    points = random.random((20, 2))
    tree = xtree.XTree.from_points(points)
    asked = shapely.points(points)
    asked[[0, 7, 19]] = None, shapely.Point(), shapely.Point()
    pairs, distances = tree.nearest(as_given(asked), k=2, return_distance=True)
    assert pairs[0].tolist() == np.repeat(np.delete(np.arange(20), [0, 7, 19]), 2).tolist()
    assert pairs[1][::2].tolist() == pairs[0][::2].tolist() and (distances[::2] == 0).all()
    assert tree.explain_nearest(as_given(asked))["queries"] == 17
    assert tree.query(shapely.Point()).tolist() == [] and tree.count(shapely.Point()) == 0


def test_one_missing_geometry_has_no_neighbours_and_is_refused_to_be_stored():
    tree = xtree.XTree.from_points([[1.0, 1.0]])
    assert tree.nearest(shapely.Point(), k=3).shape == (0,)
    ids, distances = tree.nearest(shapely.Point(), return_distance=True)
    assert ids.shape == distances.shape == (0,)
    with pytest.raises(xtree.InvalidBoxError, match="missing or empty"):
        tree.insert(1, shapely.Point())
    assert (0, shapely.Point()) not in tree


def test_rows_of_nan_as_shapely_gives_them_may_be_skipped(boxes):
    geometries = shapely.box(*boxes.T)
    geometries[5] = None
    tree = xtree.XTree.from_boxes(shapely.bounds(geometries), skip_empty=True)
    assert 5 not in tree.items()[0] and len(tree) == N - 1
    with pytest.raises(xtree.InvalidBoxError, match="row 5, axis 0 has NaN"):
        xtree.XTree.from_boxes(shapely.bounds(geometries))


class Bounded:
    """An object that has bounds, like a geometry."""

    bounds = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("given", [Bounded(), [Bounded()], np.array([Bounded()], object), [None, None], {"minx": 1}])
def test_other_objects_are_refused_whatever_they_call_their_bounds(given):
    for take in (xtree.XTree(2).query, xtree.XTree.from_boxes, lambda given: xtree.XTree(2).insert_many([1], given)):
        with pytest.raises(TypeError):
            take(given)


def test_an_array_of_geometries_and_other_things_is_refused_with_the_row(boxes):
    mixed = shapely.box(*boxes.T)
    mixed[4] = "POINT (1 1)"
    with pytest.raises(TypeError, match="row 4 is a str, expected a geometry or None"):
        xtree.XTree.from_boxes(mixed)


def test_geometries_without_any_are_boxes_without_any():
    assert len(xtree.XTree.from_boxes(geopandas.GeoSeries([]))) == 0
    assert len(xtree.XTree.from_boxes(pd.DataFrame(columns=NAMES[0].split(), dtype=float))) == 0


def test_a_geodataframe_without_an_active_geometry_is_a_table(boxes):
    table = geopandas.GeoDataFrame(pd.DataFrame(boxes[:, [0, 2, 1, 3]], columns=["minx", "maxx", "miny", "maxy"]))
    assert_holds(xtree.XTree.from_boxes(table), boxes)


def test_a_lazy_frame_says_what_to_do():
    with pytest.raises(TypeError, match="collect"):
        xtree.XTree(2).query(pl.LazyFrame({"x": [1.0], "y": [2.0]}))
