"""Long calls over many files: answers stay right while mappings come and go, and a batch doesn't keep all of them.

Promises (One writer, many readers):

- a long batch lets mappings go that it has done with:
  test_a_long_batch_lets_mappings_go_that_it_has_done_with.
"""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
from support.text_pages import eventually, small

import xtree

pytestmark = pytest.mark.threads

DIMS = 8
RECORDS = 60_000
CONFIG = small("balanced", data_file_bytes=64 << 10, mapping_budget=1, descriptor_budget=1, page_bytes=4096)


def boxes_of(points, extent=0.02):
    return np.hstack([points, points + extent])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(8)
    ids = np.arange(RECORDS)
    return ids, boxes_of(rng.random((RECORDS, DIMS)))


@pytest.fixture(scope="module")
def filled(tmp_path_factory, data):
    """The path of a tree in more than a hundred files."""
    path = tmp_path_factory.mktemp("filled") / "tree.xtree"
    with xtree.open(path, dims=DIMS, config=CONFIG) as tree:
        tree.insert_many(*data)
    return path


@pytest.fixture
def tree(tmp_path, filled):
    """A copy of that tree. One of its files may stay mapped, and one open."""
    tree = xtree.open(shutil.copytree(filled, tmp_path / "tree.xtree"), config=CONFIG)
    assert tree.runtime.stats()["data_files"]["files"] > 100
    yield tree
    tree.close()


def windows_of(tree):
    return tree.runtime.stats()["windows"]


def brute(data, queries):
    """The ids that each query box meets."""
    ids, boxes = data
    found = []
    for q in queries:
        hit = (boxes[:, :DIMS] <= q[DIMS:]).all(axis=1) & (boxes[:, DIMS:] >= q[:DIMS]).all(axis=1)
        found.append(set(ids[hit].tolist()))
    return found


@pytest.mark.slow
def test_answers_are_right_in_many_threads_while_one_window_may_stay_mapped(tree, data):
    rng = np.random.default_rng(3)
    queries = boxes_of(rng.random((200, DIMS)), 0.3)
    expected = brute(data, queries)
    counts = [len(found) for found in expected]
    points = rng.random((100, DIMS))
    neighbours, distances = tree.nearest(points, 3, return_distance=True)
    ended, failures = threading.Event(), []

    def guarded(work):
        try:
            while not ended.is_set():
                work()
        except BaseException as failure:
            failures.append(failure)
            ended.set()

    def query():
        pairs = tree.query(queries, threads=2)
        for i in rng_of().choice(len(queries), 20):
            assert set(pairs[1][pairs[0] == i].tolist()) == expected[i]

    def count():
        assert tree.count(queries, threads=3).tolist() == counts

    def one():
        i = int(rng_of().integers(len(queries)))
        assert set(tree.query(queries[i]).tolist()) == expected[i]

    def near():
        again, far = tree.nearest(points, 3, return_distance=True)
        assert (again == neighbours).all() and (far == distances).all()

    def everything():
        with tree.snapshot() as snapshot:
            ids, _ = snapshot.items()
        assert set(ids[ids < RECORDS].tolist()) == set(range(RECORDS))
        ended.wait(0.2)

    def write():
        # Far away from what the readers ask for.
        ids = np.arange(RECORDS, RECORDS + 300)
        places = boxes_of(rng_of().random((300, DIMS)) + 50.0)
        tree.insert_many(ids, places)
        tree.delete_many(ids, places)

    works = (query, query, count, one, one, near, everything, write)
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    ended.wait(3.0)
    ended.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert windows_of(tree)["recycled"] > 0 and windows_of(tree)["unmap_failures"] == 0


def rng_of():
    return np.random.default_rng(threading.get_ident() & 0xFFFF)


@pytest.mark.parametrize(("ask", "threads"), [("query", 1), ("query", 2), ("count", 1), ("nearest", 1)])
def test_a_long_batch_lets_mappings_go_that_it_has_done_with(tree, ask, threads):
    rng = np.random.default_rng(4)
    points = rng.random((1_500_000 if ask != "nearest" else 400_000, DIMS))
    eventually(lambda: windows_of(tree)["mapped"] <= 1)
    before = windows_of(tree)["recycled"]
    if ask == "nearest":
        tree.nearest(points, 3, max_distance=0.001)  # reads the pages around a point, not half of the tree
    else:
        getattr(tree, ask)(boxes_of(points, 0.001), threads=threads)
    assert windows_of(tree)["recycled"] > before
