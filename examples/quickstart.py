"""Ten lines: make an index on disk, put boxes in, ask for a window and for the nearest, open it again."""

import tempfile
from pathlib import Path

import xtree

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "places.xtree"

    with xtree.open(path, dims=2) as tree:                      # durable: a directory, made if missing
        tree.insert(1, (2.25, 48.81, 2.42, 48.90))              # id and box: minx, miny, maxx, maxy
        tree.insert_many([2, 3], [(12.35, 41.80, 12.62, 41.99), (16.18, 48.12, 16.58, 48.32)])

    with xtree.open(path) as tree:                              # everything is still there
        print("records:", len(tree))
        print("in the window:", tree.query((0.0, 45.0, 20.0, 50.0)).tolist())
        print("nearest to (14, 50):", tree.nearest((14.0, 50.0), k=2).tolist())
        assert sorted(tree.query((0.0, 45.0, 20.0, 50.0)).tolist()) == [1, 3]
        assert tree.nearest((14.0, 50.0), k=1).tolist() == [3]
