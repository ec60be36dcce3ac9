"""A notebook user's first hour, cell by cell: cells are run twice, names are forgotten, workers get the tree."""

import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np

import xtree

Out = []  # a notebook keeps what its cells return


def cell_that_opens(path: Path) -> xtree.XTree:
    """`tree = xtree.open(path, dims=2)`, run as often as you like: every handle is on the same store."""
    tree = xtree.open(path, dims=2)
    Out.append(tree)
    return tree


def main(path: Path) -> None:
    tree = cell_that_opens(path)
    rng = np.random.default_rng(7)
    points = rng.random((10_000, 2))
    tree.bulk_load(np.arange(len(points)), points)
    tree = cell_that_opens(path)  # the cell once more
    print(tree)
    del tree
    tree = cell_that_opens(path)  # and after `del tree`
    assert len(tree) == len(points)

    # A list of points is points; one window is one flat row, not its two corners.
    assert len(tree.query([0.1, 0.1, 0.2, 0.2])) == tree.count([[0.1, 0.1, 0.2, 0.2]])[0] > 0
    assert tree.query([[0.1, 0.1], [0.2, 0.2]]).shape == (2, 0), "two points, each with the records at it"

    # Numbers as they come, and errors that say what is wrong.
    found = tree.query(np.array([0, 0, 1, 1]))
    print(f"{len(found):,} in the unit square, of type {found.dtype}")
    for wrong in ([0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.6], ["a", "b", "c", "d"]):
        try:
            tree.query(wrong)
        except (ValueError, TypeError) as error:
            print(f"{type(error).__name__}: {error}")

    # A snapshot that stays as it is while the next cell changes things; and a change that is undone.
    with tree.snapshot() as before:
        tree.delete_many(np.arange(100), points[:100])
        assert len(before) == len(tree) + 100
    try:
        with tree.transaction() as tx:
            tx.delete_many(np.arange(100, 200), points[100:200])
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        print("after an interrupt inside a transaction:", f"{len(tree):,} records, as before")
    assert len(tree) == len(points) - 100

    # A tree in memory goes along into workers, by fork or by pickle.
    memory = xtree.XTree.from_points(points)
    assert len(pickle.loads(pickle.dumps(memory))) == len(points)
    if hasattr(os, "fork"):
        global work
        work = lambda window: memory.count(window)  # noqa: E731
        with multiprocessing.get_context("fork").Pool(2) as pool:
            counts = pool.map(_work, [[i / 10, 0, (i + 1) / 10, 1] for i in range(10)])
        print("counted by a pool:", counts)
        assert sum(counts) == len(points)
    for handle in Out:
        handle.close()


def _work(window):
    return work(window)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary) / "points.xtree")
