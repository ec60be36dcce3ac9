"""What users call: shapes, types and values of every method, over both kinds of store."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import shapely
from support import brute_force

import xtree

UNIT = [0.0, 0.0, 1.0, 1.0]
SHAPELYS = {
    "intersects": "intersects",
    "contains": "covers",
    "covers": "covers",
    "within": "covered_by",
    "covered_by": "covered_by",
}  # predicate -> its name in shapely's STRtree


@pytest.fixture
def filled(make_tree, random):
    """(tree, ids, boxes) of a tree of 500 boxes in the plane."""
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 500, 2)
    ids = random.permutation(500).astype(np.int64)
    tree.insert_many(ids, boxes)
    return tree, ids, boxes


def test_an_empty_tree_answers_everything(make_tree):
    tree = make_tree(3)
    box = [0.0] * 3 + [1.0] * 3
    assert len(tree) == 0 and tree.bounds is None and tree.height == 0 and tree.dims == 3
    assert tree.query(box).shape == (0,) and tree.query(box).dtype == np.int64
    assert tree.query([box, box]).shape == (2, 0)
    offsets, ids = tree.query([box, box], output="csr")
    assert offsets.tolist() == [0, 0, 0] and ids.tolist() == []
    assert tree.count(box) == 0 and tree.count([box, box]).tolist() == [0, 0]
    assert tree.nearest([0, 0, 0], k=3).tolist() == []
    ids, boxes = tree.items()
    assert ids.shape == (0,) and boxes.shape == (0, 6)
    assert (1, box) not in tree
    assert tree.stats()["records"] == 0
    tree.check()


def test_empty_arrays_are_zero_boxes(make_tree):
    tree = make_tree(2)
    for empty in ([], np.empty((0, 4)), np.empty((0, 2)), np.empty(0)):
        tree.insert_many([], empty)
        tree.bulk_load(np.empty(0), empty)
        assert tree.delete_many([], empty) == 0
        assert tree.query(empty).shape == (2, 0)
        assert tree.count(empty).shape == (0,)
        offsets, ids = tree.query(empty, output="csr")
        assert offsets.tolist() == [0] and ids.shape == (0,)
    assert tree.nearest([]).shape == (2, 0)
    assert len(tree) == 0


def test_rank_decides_between_one_box_and_many(filled):
    tree, _, _ = filled
    one = tree.query(UNIT)
    assert one.shape == (500,) and one.dtype == np.int64
    many = tree.query([UNIT])
    assert many.shape == (2, 500) and many.dtype == np.int64
    assert many[0].tolist() == [0] * 500
    assert isinstance(tree.count(UNIT), int)
    assert tree.count([UNIT]).shape == (1,) and tree.count([UNIT]).dtype == np.int64
    assert tree.nearest([0.5, 0.5], k=4).shape == (4,)
    assert tree.nearest([[0.5, 0.5]], k=4).shape == (2, 4)


def test_in_one_dimension_two_numbers_are_a_box_and_one_is_a_point(make_tree):
    tree = make_tree(1)
    tree.insert(1, [0.0, 2.0])
    tree.insert(2, [5.0])
    assert tree.query([1.0, 5.0]).tolist() in ([1, 2], [2, 1])
    assert tree.query([1.0]).tolist() == [1]
    assert tree.query([[1.0], [5.0]]).tolist() == [[0, 1], [1, 2]]


def test_answers_are_those_of_brute_force(filled, random):
    tree, ids, boxes = filled
    windows = np.vstack([brute_force.random_boxes(random, 40, 2, 0.3), boxes[:10], boxes[:10, [0, 1, 0, 1]]])
    brute_force.assert_same(tree, ids, boxes, windows)


def test_pairs_are_grouped_by_query_and_match_csr(filled, random):
    tree, _, _ = filled
    windows = brute_force.random_boxes(random, 30, 2, 0.3)
    pairs = tree.query(windows)
    offsets, ids = tree.query(windows, output="csr")
    assert pairs[0].tolist() == np.repeat(np.arange(30), np.diff(offsets)).tolist()
    for i in range(30):
        assert sorted(pairs[1][pairs[0] == i]) == sorted(ids[offsets[i] : offsets[i + 1]])


def test_points_are_boxes_without_extent(make_tree, random):
    tree = make_tree(2)
    points = random.random((50, 2))
    tree.insert_many(np.arange(50), points)
    tree.insert(50, (0.25, 0.75))
    assert sorted(tree.query(UNIT).tolist()) == list(range(51))
    assert tree.query(points[7]).tolist() == [7]
    assert tree.query(points).tolist() == [list(range(50)), list(range(50))]
    assert (50, (0.25, 0.75)) in tree and (50, (0.25, 0.75, 0.25, 0.75)) in tree
    assert tree.delete(50, (0.25, 0.75))


def test_boundaries_belong_to_boxes(make_tree):
    tree = make_tree(2)
    tree.insert(1, [1, 1, 2, 2])
    assert tree.query([2, 2, 3, 3]).tolist() == [1]
    assert tree.query([1, 1, 2, 2], "within").tolist() == [1]
    assert tree.query([1, 1, 2, 2], "contains").tolist() == [1]
    assert tree.query([1.5, 1.5, 1.6, 1.6], "within").tolist() == [1]
    assert tree.query([1.5, 1.5, 1.6, 1.6], "contains").tolist() == []
    assert tree.query([0, 0, 3, 3], "contains").tolist() == [1]
    assert tree.query([0, 0, 3, 3], "within").tolist() == []
    assert tree.query([np.nextafter(2, 3), 2, 3, 3]).tolist() == []


def test_paths_may_be_bytes(tmp_path):
    path = os.fsencode(tmp_path / "index")
    with xtree.open(path, dims=2) as tree:
        tree.insert(1, UNIT)
        tree.backup(os.fsencode(tmp_path / "copy"))
    with xtree.Runtime(path, mode="r") as runtime:
        assert runtime.path == str(tmp_path / "index")
    with xtree.XTree.from_boxes([UNIT], path=os.fsencode(tmp_path / "made")) as tree:
        assert len(tree) == 1
    with pytest.raises(ValueError, match="give dims="):
        xtree.open(os.fsencode(tmp_path / "nothing"))


def test_the_epoch_of_a_tree_grows_with_every_commit(make_tree):
    tree = make_tree(2)
    before = tree.epoch
    tree.insert(1, UNIT)
    assert before < tree.epoch == tree.stats()["epoch"]
    with tree.snapshot() as snapshot, tree.transaction() as tx:
        tx.insert(2, UNIT)
        assert snapshot.epoch == tx.epoch == tree.epoch
    tree.close()
    with pytest.raises(xtree.ClosedError):
        _ = tree.epoch


def test_predicates_are_those_of_shapely_from_the_inputs_side(make_tree, random):
    """Boxes contain their edges, so contains and within here are covers and covered_by in shapely."""
    boxes = brute_force.random_boxes(random, 600, 2, 0.2)
    large, small = (brute_force.random_boxes(random, 100, 2, side) for side in (0.4, 0.01))
    windows = np.vstack([large, boxes[:20], small])
    tree = make_tree(2)
    tree.bulk_load(np.arange(600), boxes)
    peer, asked = shapely.STRtree(shapely.box(*boxes.T)), shapely.box(*windows.T)
    for name, peers_name in SHAPELYS.items():
        expected = sorted(map(tuple, peer.query(asked, predicate=peers_name).T.tolist()))
        assert len(expected) > 20
        assert sorted(map(tuple, tree.query(windows, predicate=name).T.tolist())) == expected, name
        counts = np.bincount([i for i, _ in expected], minlength=len(windows))
        assert tree.count(windows, name).tolist() == counts.tolist()
        assert [tree.count(window, name) for window in windows] == counts.tolist()
        assert [len(tree.query(tuple(window.tolist()), name)) for window in windows] == counts.tolist()
        assert tree.explain(windows, name)["results"] == len(expected)
        joined = xtree.XTree.from_boxes(windows).join(tree, name)
        assert sorted(map(tuple, joined.T.tolist())) == expected, name


def test_windows_may_be_half_open(filled):
    tree, ids, boxes = filled
    window = np.array([0.5, -np.inf, np.inf, np.inf])
    assert sorted(tree.query(window).tolist()) == brute_force.query(ids, boxes, window)
    assert tree.count([-np.inf, -np.inf, np.inf, np.inf], "contains") == 500


def test_nearest_is_ordered_by_distance_and_id(filled, random):
    tree, ids, boxes = filled
    for point in random.random((10, 2)):
        expected, away = brute_force.nearest(ids, boxes, point, 7)
        found, distances = tree.nearest(point, k=7, return_distance=True)
        assert found.tolist() == expected and found.dtype == np.int64
        assert distances == pytest.approx(away) and distances.dtype == np.float64
        assert tree.nearest(point).tolist() == expected[:1]


def test_nearest_breaks_ties_by_id_also_at_the_cut(make_tree):
    tree = make_tree(2)
    tree.insert_many([9, 3, 5, 1], [[1, 0], [0, 1], [-1, 0], [0, -1]])
    assert tree.nearest([0, 0], k=2).tolist() == [1, 3]
    assert tree.nearest([0, 0], k=10).tolist() == [1, 3, 5, 9]


def test_max_distance_is_inclusive(make_tree):
    tree = make_tree(2)
    tree.insert_many([1, 2, 3], [[1, 0], [2, 0], [3, 0]])
    ids, distances = tree.nearest([0, 0], k=9, max_distance=2, return_distance=True)
    assert ids.tolist() == [1, 2] and distances.tolist() == [1.0, 2.0]
    assert tree.nearest([0, 0], k=9, max_distance=0.5).tolist() == []


def test_nearest_of_many_points_comes_in_groups(filled, random):
    tree, ids, boxes = filled
    points = random.random((6, 2))
    pairs, distances = tree.nearest(points, k=3, return_distance=True)
    assert pairs.shape == (2, 18) and distances.shape == (18,)
    assert pairs[0].tolist() == np.repeat(np.arange(6), 3).tolist()
    for i, point in enumerate(points):
        expected, away = brute_force.nearest(ids, boxes, point, 3)
        assert pairs[1][pairs[0] == i].tolist() == expected
        assert distances[pairs[0] == i] == pytest.approx(away)


def test_a_huge_k_gives_everything(filled):
    tree, _, _ = filled
    assert len(tree.nearest([0.5, 0.5], k=10**30)) == 500


def test_the_same_record_may_be_there_twice(make_tree):
    tree = make_tree(2)
    tree.insert(7, UNIT)
    tree.insert(7, UNIT)
    assert tree.query(UNIT).tolist() == [7, 7]
    assert tree.delete(7, UNIT) and len(tree) == 1
    tree.insert(7, UNIT)
    assert tree.delete_many([7, 7, 7], [UNIT] * 3) == 2
    assert len(tree) == 0 and tree.height == 0 and tree.bounds is None


def test_delete_removes_what_is_there_and_says_so(filled):
    tree, ids, boxes = filled
    assert tree.delete(int(ids[0]), boxes[0]) is True
    assert tree.delete(int(ids[0]), boxes[0]) is False
    assert tree.delete(int(ids[1]), boxes[2]) is False
    assert tree.delete_many(ids[:10], boxes[:10]) == 9
    brute_force.assert_same(tree, ids[10:], boxes[10:], boxes[:20])


def test_update_moves_one_copy_or_inserts_nothing(make_tree):
    tree = make_tree(2)
    tree.insert(1, UNIT)
    assert tree.update(1, UNIT, [5, 5, 6, 6]) is True
    assert tree.update(1, UNIT, [7, 7, 8, 8]) is False
    assert len(tree) == 1 and (1, [5, 5, 6, 6]) in tree and (1, UNIT) not in tree


def test_negative_zero_equals_zero(make_tree):
    tree = make_tree(2)
    tree.insert(1, [-0.0, 0.0, 1.0, 1.0])
    assert (1, [0.0, -0.0, 1.0, 1.0]) in tree
    assert tree.delete(1, [0.0, -0.0, 1.0, 1.0])


@pytest.mark.parametrize("id", [-(2**63), 2**63 - 1, -1, 0, np.int8(5), np.uint64(6), np.array(7)])
def test_ids_are_all_of_int64(make_tree, id):
    tree = make_tree(2)
    tree.insert(id, UNIT)
    assert tree.query(UNIT).tolist() == [int(id)]
    assert (id, UNIT) in tree
    assert tree.delete(id, UNIT)


def test_whatever_can_be_converted_exactly_is_accepted(make_tree):
    tree = make_tree(2)
    padded = np.arange(40.0).reshape(2, 20)
    forms = [
        np.float32(UNIT), [0, 0, 1, 1], (0, 0, 1, 1), np.array(UNIT)[::1], np.array([0, 0, 1, 1], np.uint8),
        np.array(UNIT, ">f8"), np.arange(8)[::2] // 4, memoryview(np.array(UNIT)), [np.float16(0), 0, np.int64(1), 1.0],
    ]  # fmt: skip
    for i, form in enumerate(forms):
        tree.insert(i, form)
    tree.insert_many([20, 21], [np.array(UNIT), (0.0, 0, 1, 1)])
    tree.insert_many((22, 23), padded[:, :8:2])
    tree.insert_many(range(24, 26), np.asfortranarray(np.tile(UNIT, (2, 1))))
    assert len(tree) == len(forms) + 6
    assert (23, [20, 22, 24, 26]) in tree
    assert (5, UNIT) in tree


def test_integers_that_float64_holds_are_exact(make_tree):
    tree = make_tree(1)
    tree.insert(1, [2**53 + 2, 2**70])
    assert tree.bounds.tolist() == [float(2**53 + 2), float(2**70)]


def test_bulk_load_into_a_filled_tree_is_the_union(filled, random):
    tree, ids, boxes = filled
    more = brute_force.random_boxes(random, 300, 2)
    calls = []
    tree.bulk_load(np.arange(1000, 1300), more, progress=lambda done, total: calls.append((done, total)))
    assert calls and all(0 <= done <= total for done, total in calls)
    ids, boxes = np.concatenate([ids, np.arange(1000, 1300)]), np.vstack([boxes, more])
    brute_force.assert_same(tree, ids, boxes, boxes[::50])
    tree.delete_many(ids[:400], boxes[:400])
    brute_force.assert_same(tree, ids[400:], boxes[400:], boxes[::50])


def test_what_progress_raises_stops_the_load_and_changes_nothing(filled):
    tree, ids, boxes = filled

    def stop(done, total):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        tree.bulk_load(ids, boxes, progress=stop)
    brute_force.assert_same(tree, ids, boxes, boxes[:5])
    tree.insert(1, UNIT)


def test_results_are_copies(filled):
    tree, ids, boxes = filled
    found, kept = tree.items()
    found[:] = -1
    kept[:] = 99
    tree.bounds[:] = 99
    brute_force.assert_same(tree, ids, boxes, boxes[:5])


def test_input_is_not_changed_nor_kept(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 100, 2)
    ids = np.arange(100)
    before = boxes.copy()
    tree.bulk_load(ids, boxes)
    tree.insert_many(ids + 100, boxes)
    assert (boxes == before).all() and (ids == np.arange(100)).all()
    boxes[:], ids[:] = 7, 7
    brute_force.assert_same(tree, np.arange(200), np.vstack([before, before]), before[:5])


def test_read_only_arrays_are_fine(make_tree, random):
    tree = make_tree(2)
    boxes, ids = brute_force.random_boxes(random, 50, 2), np.arange(50)
    for array in (boxes, ids):
        array.flags.writeable = False
    tree.insert_many(ids, boxes)
    tree.bulk_load(ids, boxes)
    assert tree.query(boxes).shape[0] == 2 and tree.nearest(boxes[:, :2]).shape == (2, 50)
    assert tree.delete_many(ids, boxes) == 50


def test_from_boxes_numbers_its_records(tmp_path, random):
    boxes = brute_force.random_boxes(random, 200, 3)
    for path in (None, tmp_path / "made.xtree"):
        with xtree.XTree.from_boxes(boxes, path=path) as tree:
            assert tree.dims == 3
            brute_force.assert_same(tree, np.arange(200), boxes, boxes[:10])
            tree.check()
    with xtree.open(tmp_path / "made.xtree") as tree:
        brute_force.assert_same(tree, np.arange(200), boxes, boxes[:10])


def test_from_boxes_takes_points_when_it_knows_the_dims():
    points = np.arange(8.0).reshape(4, 2)
    with xtree.XTree.from_boxes(points, ids=[3, 1, 4, 1], dims=2) as tree:
        assert tree.nearest([0, 1]).tolist() == [3]
    with xtree.XTree.from_boxes(np.sort(points, axis=1), dims=1) as tree:
        assert tree.dims == 1
    with xtree.XTree.from_boxes([], dims=5) as tree:
        assert tree.dims == 5 and len(tree) == 0


def test_height_and_bounds_follow_the_records(make_tree, random):
    tree = make_tree(2)
    tree.insert(1, UNIT)
    assert tree.height == 1 and tree.bounds.tolist() == UNIT
    tree.insert_many(np.arange(2000), brute_force.random_boxes(random, 2000, 2))
    assert tree.height >= 2
    assert tree.bounds.shape == (4,) and tree.bounds.dtype == np.float64


def test_stats_say_what_the_tree_is_made_of(filled):
    tree, _, _ = filled
    stats = tree.stats()
    assert stats["records"] == 500 and stats["height"] == tree.height and stats["epoch"] > 0
    assert stats["nodes"] == sum(level["nodes"] for level in stats["levels"])
    assert {"level", "nodes", "entries", "fill", "overlap", "supernodes"} <= set(stats["levels"][0])


def test_repr_says_what_is_known_and_never_raises(make_tree):
    tree = make_tree(2)
    assert "dims=2" in repr(tree) and "records=0" in repr(tree)
    tree.insert(1, UNIT)
    assert "records=1" in repr(tree)
    html = tree._repr_html_()
    assert html.startswith("<table>") and "records" in html
    snapshot = tree.snapshot()
    transaction = tree.transaction()
    assert "Snapshot" in repr(snapshot) and "Transaction" in repr(transaction)
    tree.close()
    assert "closed" in repr(tree) and "closed" in tree._repr_html_()
    assert "closed" in repr(snapshot) and "Transaction" in repr(transaction)


def test_the_html_display_escapes(tmp_path):
    with xtree.open(tmp_path / "a<b>&.xtree", dims=2) as tree:
        assert "a&lt;b&gt;&amp;.xtree" in tree._repr_html_()


def test_every_dimension_works(random):
    for dims in (1, 5, 64):
        boxes = brute_force.random_boxes(random, 60, dims, 0.5)
        with xtree.XTree(dims=dims) as tree:
            tree.insert_many(np.arange(60), boxes)
            brute_force.assert_same(tree, np.arange(60), boxes, boxes[:5])
            tree.check()


def test_the_config_decides_about_pages():
    with xtree.XTree(2, config=xtree.Config(page_bytes=8192)) as large, xtree.XTree(2) as small:
        for tree in (large, small):
            tree.bulk_load(np.arange(2000), np.zeros((2000, 4)))
        assert large.stats()["nodes"] < small.stats()["nodes"]


def test_threads_may_share_a_tree(filled):
    tree, ids, boxes = filled
    wrong = []

    def ask(start):
        for window in boxes[start::4]:
            if sorted(tree.query(window).tolist()) != brute_force.query(ids, boxes, window):
                wrong.append(window)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_index_nobody_holds_any_more_is_closed(tmp_path):
    tree = xtree.open(tmp_path / "index", dims=2)
    tree.insert(1, UNIT)
    del tree
    gc.collect()
    with xtree.open(tmp_path / "index", mode="r+") as tree:
        assert len(tree) == 1


def test_a_snapshot_keeps_its_index_open(tmp_path):
    snapshot = xtree.open(tmp_path / "index", dims=2).snapshot()
    gc.collect()
    assert len(snapshot) == 0


def test_an_unclosed_index_closes_at_exit_without_noise(tmp_path):
    program = (
        "import sys, xtree\n"
        "tree = xtree.open(sys.argv[1], dims=2); tree.insert(1, [0, 0, 1, 1]); memory = xtree.XTree(dims=2)\n"
        "snapshot = tree.snapshot(); other = tree.transaction(); other.__enter__(); other.insert(2, [0, 0, 1, 1])\n"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "index")], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with xtree.open(tmp_path / "index") as tree:
        assert tree.query(UNIT).tolist() == [1, 1]
        assert not list(Path(tmp_path / "index").glob("wal-*"))  # a clean close leaves no log
