"""Joins give the same pairs as a comparison of all records, each once.

Promises (Right answers):

- joins find the pairs that a look at all pairs finds, of trees of any height, snapshots and transactions; two trees
  of a runtime at one epoch:
  all of it.
"""

from collections import Counter

import numpy as np
import pytest
from support.brute_force import matches, random_boxes

import xtree
from xtree.errors import ClosedError, DimensionError

PREDICATES = ("intersects", "contains", "covers", "within", "covered_by", None)


def expected_pairs(mine, its, predicate):
    """Pairs of rows of `mine` and `its`, both (n, 2*d), by comparing each: the first is the subject."""
    named = predicate or "intersects"
    return Counter((i, j) for i, box in enumerate(mine) for j in np.flatnonzero(matches(its, box, named)).tolist())


def found_pairs(pairs):
    """The columns of what join returned."""
    assert pairs.dtype == np.int64 and pairs.shape[0] == 2
    return Counter(map(tuple, pairs.T.tolist()))


def assert_joins(left, mine, right, its):
    """Both trees, whose ids are the rows of the boxes, give all pairs in both directions."""
    for predicate in PREDICATES:
        assert found_pairs(left.join(right, predicate)) == expected_pairs(mine, its, predicate)
        assert found_pairs(right.join(left, predicate)) == expected_pairs(its, mine, predicate)


@pytest.mark.parametrize("dims", [1, 2, 3, 8])
def test_a_join_of_grown_and_packed_trees_agrees_with_a_look_at_all_pairs(make_tree, random, dims):
    side = {1: 0.01, 2: 0.1, 3: 0.3, 8: 0.9}[dims]
    mine, its = random_boxes(random, 900, dims, side), random_boxes(random, 700, dims, side)
    its[::7] = mine[: len(its[::7])]
    left, right = make_tree(dims), xtree.XTree.from_boxes(its, dims=dims)
    left.insert_many(np.arange(900), mine)
    assert_joins(left, mine, right, its)


@pytest.mark.slow
@pytest.mark.parametrize("few", [1, 3, 40])
def test_trees_of_different_heights_are_joined(make_tree, random, few):
    config = xtree.Config(page_bytes=4096)
    mine, its = random_boxes(random, 15_000, 2, 0.01), random_boxes(random, few, 2, 0.4)
    left, right = make_tree(2, config), make_tree(2, config)
    left.bulk_load(np.arange(len(mine)), mine)
    right.insert_many(np.arange(few), its)
    assert left.height == right.height + 2
    assert_joins(left, mine, right, its)


def test_a_tree_joined_with_itself_has_each_record_with_itself_and_each_pair_twice(make_tree, random):
    boxes = random_boxes(random, 1500, 2, 0.05)
    tree = make_tree()
    tree.insert_many(np.arange(1500), boxes)
    pairs = found_pairs(tree.join(tree))
    assert pairs == expected_pairs(boxes, boxes, "intersects")
    assert all(pairs[(i, i)] == 1 for i in range(1500))
    assert all((j, i) in pairs for i, j in pairs)


def test_touching_boxes_and_points_are_pairs_and_equal_ones_contain_each_other():
    left = xtree.XTree.from_boxes([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    right = xtree.XTree.from_boxes([[1.0, 1.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0], [-0.0, -0.0, 1.0, 1.0]])
    assert found_pairs(left.join(right)) == Counter([(0, 0), (1, 0), (1, 1), (0, 2)])
    assert found_pairs(left.join(right, "within")) == Counter([(1, 0), (1, 1), (0, 2)])
    assert found_pairs(left.join(right, "contains")) == Counter([(1, 1), (0, 2)])


def test_records_stored_twice_come_twice():
    left, right = xtree.XTree(2), xtree.XTree(2)
    left.insert_many([5, 5], [[0, 0, 1, 1]] * 2)
    right.insert_many([7] * 3, [[0, 0, 1, 1]] * 3)
    assert found_pairs(left.join(right)) == Counter({(5, 7): 6})


def test_thousands_of_equal_boxes_and_lines_are_joined(random):
    line = np.zeros((3000, 4))
    line[:, 0] = line[:, 2] = np.arange(3000)
    same = np.full((40, 4), 1500.0)
    same[:, 1] = same[:, 3] = 0.0
    left, right = xtree.XTree.from_boxes(line), xtree.XTree.from_boxes(same)
    assert_joins(left, line, right, same)


def test_huge_and_tiny_coordinates_are_joined_exactly(random):
    lower = random.choice([-1e308, -1.0, -5e-324, 0.0, 5e-324, 1.0, 1e308], (400, 3))
    upper = np.maximum(lower, random.choice([-1e308, 0.0, 5e-324, 1.0, 1e308], (400, 3)))
    boxes = np.hstack([lower, upper])
    left, right = xtree.XTree.from_boxes(boxes), xtree.XTree.from_boxes(boxes[::2])
    assert_joins(left, boxes, right, boxes[::2])


def test_empty_trees_have_no_pairs(make_tree):
    left, right = make_tree(), make_tree()
    right.insert(1, (0, 0, 1, 1))
    for a, b in ((left, right), (right, left), (left, left)):
        assert a.join(b).shape == (2, 0)


def test_snapshots_and_transactions_are_joined_as_they_are(make_tree):
    tree, other = make_tree(), make_tree()
    tree.insert(1, (0, 0, 1, 1))
    other.insert(10, (0, 0, 5, 5))
    with tree.snapshot() as before, tree.transaction() as tx:
        tx.insert(2, (2, 2, 3, 3))
        assert found_pairs(before.join(other)) == Counter([(1, 10)])
        assert found_pairs(tx.join(other)) == Counter([(1, 10), (2, 10)])
        assert found_pairs(other.join(tx)) == Counter([(10, 1), (10, 2)])
        assert found_pairs(tree.join(tx)) == Counter([(1, 1)])
        assert found_pairs(tx.join(tx)) == Counter([(1, 1), (2, 2)])
        assert found_pairs(before.join(tree, "within")) == Counter([(1, 1)])
    assert found_pairs(tree.join(tree)) == Counter([(1, 1), (2, 2)])


def test_trees_inside_a_transaction_are_joined_with_its_changes(tmp_path):
    with xtree.Runtime(tmp_path / "atlas") as runtime:
        roads, cities = runtime.tree("roads", dims=2), runtime.tree("cities", dims=2)
        roads.insert(1, (0, 0, 1, 1))
        with runtime.transaction(trees=["roads", "cities"]) as tx:
            tx.tree("cities").insert(7, (0.5, 0.5))
            assert found_pairs(tx.tree("roads").join(tx.tree("cities"))) == Counter([(1, 7)])
            assert found_pairs(roads.join(cities)) == Counter()
        assert found_pairs(roads.join(cities, "contains")) == Counter([(1, 7)])


def test_two_trees_of_a_runtime_are_joined_at_one_epoch(tmp_path, monkeypatch):
    with xtree.Runtime(tmp_path / "atlas") as runtime:
        trees = [runtime.tree(name, dims=1) for name in ("roads", "cities")]
        for tree in trees:
            tree.insert(0, (0.0,))
        read, places = xtree.XTree._read, iter(range(100))

        def read_after_a_commit(tree, *arguments):
            place = float(next(places))
            with runtime.transaction(trees=["roads", "cities"]) as tx:
                for name in ("roads", "cities"):
                    assert tx.tree(name).update(0, (place,), (place + 1,))
            return read(tree, *arguments)

        monkeypatch.setattr(xtree.XTree, "_read", read_after_a_commit)
        assert trees[0].join(trees[1]).tolist() == [[0], [0]]
        assert trees[0].count((0.0, 100.0)) == 1  # read_after_a_commit did commit
        assert trees[1].join(trees[0]).tolist() == [[0], [0]]


def test_trees_of_two_directories_are_joined(tmp_path, random):
    mine, its = random_boxes(random, 400, 2), random_boxes(random, 300, 2)
    left = xtree.XTree.from_boxes(mine, path=tmp_path / "left")
    with left, xtree.XTree.from_boxes(its, path=tmp_path / "right") as right:
        assert_joins(left, mine, right, its)


def test_what_cannot_be_joined_is_refused():
    tree = xtree.XTree(2)
    with pytest.raises(TypeError, match="not with list"):
        tree.join([(0, 0, 1, 1)])
    with pytest.raises(DimensionError, match="3 dimensions, expected 2"):
        tree.join(xtree.XTree(3))
    with pytest.raises(ValueError, match="predicate"):
        tree.join(tree, "touches")
    other = xtree.XTree(2)
    other.close()
    for a, b in ((tree, other), (other, tree), (other, other)):
        with pytest.raises(ClosedError):
            a.join(b)
