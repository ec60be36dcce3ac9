"""A GIS analyst's first hour: GeoDataFrames and CSV files in, windows, joins and nearest places out.

Needs geopandas (pip install geopandas); `xtree build` on the command line needs nothing but xtree.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import geopandas
import numpy as np
import shapely

import xtree
from xtree.data import cities, countries


def main(folder: Path) -> None:
    places, lands = cities(), countries()
    towns = geopandas.GeoDataFrame({"name": places.names}, geometry=shapely.points(places.boxes[:, :2]), crs=4326)
    land = geopandas.GeoDataFrame({"name": lands.names}, geometry=shapely.box(*lands.boxes.T), crs=4326)

    # Geometries go in by their bounds; the ids are the row numbers, as in shapely's STRtree and geopandas' sindex.
    index = xtree.XTree.from_boxes(land)
    window = shapely.box(5, 45, 15, 50)
    print("touch the window:", ", ".join(sorted(land.name[index.query(window)])))
    assert sorted(index.query(window)) == sorted(land.sindex.query(window))

    # Predicates are named from the input's side, as in shapely: the window contains what is found.
    inside = index.query(window, predicate="contains")
    print("lie inside it:", ", ".join(land.name[inside]))
    assert all(window.covers(land.geometry.iloc[i]) for i in inside)

    # All towns at once: (row of the input, id), like geopandas' sindex.query and sjoin.
    pairs = index.query(towns.geometry, predicate="within")
    joined = towns.iloc[pairs[0]].assign(land=land.name.to_numpy()[pairs[1]])
    print(f"{len(joined)} pairs of a town and the box of a country; Bern:", joined.land[joined.name == "Bern"].tolist())
    assert len(joined) == len(geopandas.sjoin(towns, land, predicate="covered_by"))

    # Rows without a geometry are refused by their number, or left out.
    holes = towns.geometry.copy()
    holes.iloc[3] = None
    try:
        xtree.XTree.from_boxes(holes)
    except xtree.InvalidBoxError as error:
        print("a hole:", error)
    assert len(xtree.XTree.from_boxes(holes, skip_empty=True)) == len(holes) - 1

    # A table with lon and lat needs no reordering, and an index on disk opens in milliseconds.
    table = towns.drop(columns="geometry").assign(lat=towns.geometry.y, lon=towns.geometry.x)
    with xtree.XTree.from_points(table[["lat", "lon"]], path=folder / "towns.xtree") as tree:
        near = tree.nearest((8.5, 47.4), k=3)
        print("nearest to 8.5 E, 47.4 N:", ", ".join(table.name[near]))
    table.to_csv(folder / "towns.csv", index_label="fid")
    built = subprocess.run(
        [sys.executable, "-m", "xtree.tools.cli", "build", folder / "towns.csv", folder / "built.xtree"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    print("xtree build says:", built.stdout.strip().splitlines()[0])
    with xtree.open(folder / "towns.xtree") as tree, xtree.open(folder / "built.xtree") as built_tree:
        assert np.array_equal(np.sort(tree.items()[0]), np.sort(built_tree.items()[0]))
        assert np.array_equal(tree.bounds, built_tree.bounds)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
