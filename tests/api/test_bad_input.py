"""Bad input, in arguments and through handles: a clear error, and nothing changed.

Promises (Right answers):

- bad input is a clear error and changes nothing:
  all of it.
"""

from __future__ import annotations

import datetime
import decimal
import os
import signal

import numpy as np
import pytest
from support import brute_force

import xtree

NAN, INF = float("nan"), float("inf")
UNIT = [0.0, 0.0, 1.0, 1.0]
GOOD = [[float(i), 0.0, float(i) + 1, 1.0] for i in range(5)]


@pytest.fixture
def tree(make_tree):
    """Two records in the plane."""
    made = make_tree(2)
    made.insert_many([1, 2], [UNIT, [2, 2, 3, 3]])
    return made


@pytest.fixture(params=["insert_many", "bulk_load", "delete_many", "transaction"])
def take_many(request, tree):
    """A way to pass many records; the tree must be the same afterwards."""
    before = brute_force.records(*tree.items())
    epoch = tree.stats()["epoch"]
    if request.param == "transaction":
        transaction = tree.transaction()
        transaction.__enter__()
        yield transaction.insert_many
        transaction.__exit__(None, None, None)
    else:
        yield getattr(tree, request.param)
    assert brute_force.records(*tree.items()) == before
    assert tree.stats()["epoch"] == epoch


def replaced(row: int, box: list[float]) -> list[list[float]]:
    return [*GOOD[:row], box, *GOOD[row + 1 :]]


@pytest.mark.parametrize(
    ("box", "axis"),
    [([NAN, 0, 1, 1], 0), ([0, 0, 1, NAN], 1), ([2, 0, 1, 1], 0), ([0, 1, 1, 0], 1), ([NAN] * 4, 0), ([0, NAN], 1)],
)
def test_nan_or_min_above_max_names_row_and_axis(tree, take_many, box, axis):
    rows = GOOD if len(box) == 4 else [row[:2] for row in GOOD]
    with pytest.raises(xtree.InvalidBoxError, match=f"row 3, axis {axis} "):
        take_many(range(5), [*rows[:3], box, rows[4]])
    with pytest.raises(xtree.InvalidBoxError, match=f"axis {axis} "):
        tree.query(box)
    with pytest.raises(xtree.InvalidBoxError, match=f"row 0, axis {axis} "):
        tree.count([box])
    for refuse in (tree.insert, tree.delete):
        with pytest.raises(ValueError, match=f"axis {axis} "):
            refuse(1, box)
    with pytest.raises(xtree.InvalidBoxError, match=f"axis {axis} "):
        tree.update(1, UNIT, box)


@pytest.mark.parametrize("box", [[0, 0, INF, 1], [-INF, 0, 1, 1], [INF, INF, INF, INF], [-INF, -INF, INF, INF]])
def test_infinite_bounds_are_refused_in_stored_boxes_only(tree, take_many, box):
    with pytest.raises(xtree.InvalidBoxError, match=r"row 2, axis \d is infinite"):
        take_many(range(5), replaced(2, box))
    with pytest.raises(xtree.InvalidBoxError, match="infinite"):
        tree.insert(1, box)
    assert tree.query(box).dtype == np.int64
    assert (1, box) not in tree


@pytest.mark.parametrize(
    "boxes",
    [
        5.0, [1.0], [0, 0, 1], [0] * 5, [[0, 0, 1]], np.zeros((2, 5)), np.zeros((2, 2, 4)), np.zeros((0, 3)), [[]],
        [[0, 0, 1, 1], [0, 0, 1]], [[0, 0, 1, 1], [0, 0]], [[[0, 0, 1, 1]]], [[0, 0, 1, 1], 5], [5, [0, 0, 1, 1]],
        np.float64(1),
    ],
)  # fmt: skip
def test_wrong_shapes_say_got_and_expected(tree, take_many, boxes):
    for refuse in (lambda: take_many([1], boxes), lambda: tree.query(boxes), lambda: tree.insert(1, boxes)):
        with pytest.raises(xtree.DimensionError):
            refuse()
    with pytest.raises(xtree.DimensionError, match=r"shape \(3,\), expected \(4,\)"):
        tree.query([0, 0, 1])


def test_one_record_is_not_many(tree):
    for boxes in ([UNIT], [UNIT, UNIT], np.empty((0, 4)), []):
        with pytest.raises(xtree.DimensionError):
            tree.insert(1, boxes)
        with pytest.raises(xtree.DimensionError):
            (1, boxes) in tree  # noqa: B015
    with pytest.raises(xtree.DimensionError, match="many boxes"):
        tree.query(UNIT, output="csr")


@pytest.mark.parametrize(
    "boxes",
    [
        None, "0011", b"0011", ["0", "0", "1", "1"], [None] * 4, np.zeros(4, complex), [1j, 0, 1, 1],
        np.zeros(4, "M8[s]"), [datetime.date(2020, 1, 1)] * 4, np.array(UNIT, object), [decimal.Decimal(0)] * 4,
        np.zeros(4, bool), [True, False, True, True], {0.0, 1.0}, iter(UNIT), np.zeros(4, "m8[s]"), object(),
    ],
)  # fmt: skip
def test_boxes_of_anything_but_real_numbers_are_type_errors(tree, take_many, boxes):
    for refuse in (lambda: take_many([1], boxes), lambda: tree.query(boxes), lambda: tree.insert(1, boxes)):
        with pytest.raises(TypeError):
            refuse()
    with pytest.raises(TypeError):
        tree.nearest(boxes)


@pytest.mark.parametrize(
    "box",
    [
        [2**53 + 1, 0, 2**60, 1], [0, 0, 10**400, 1], np.array([2**53 + 1, 0, 2**60, 1]), [0, -(2**63) + 1, 1, 1],
        np.array([2**64 - 1] * 4, np.uint64), [0.5, 0, 2**63 - 1, 1], np.longdouble([1, 1, 1, 1]) / 3,
    ],
)  # fmt: skip
def test_numbers_that_float64_cannot_hold_are_refused(tree, take_many, box):
    if isinstance(box, np.ndarray) and (box == box.astype(float)).all() and box.dtype.kind == "f":
        return  # a platform whose long double is a double
    for refuse in (lambda: take_many([1], [box]), lambda: tree.query(box), lambda: tree.insert(1, box)):
        with pytest.raises(xtree.InvalidBoxError, match="no exact value in float64"):
            refuse()


def test_a_list_says_where_its_bad_number_is(tree, take_many):
    for bad, error in ((2**53 + 1, xtree.InvalidBoxError), (np.int64(2**53 + 1), ValueError), (None, TypeError)):
        with pytest.raises(error, match="at row 1, column 2"):
            take_many([1, 2], [UNIT, [0, 0, bad, 2**54]])
        with pytest.raises(error, match="at index 3"):
            tree.query((0, 0, 1, bad))
    for boxes, name in ((None, "NoneType"), ({1, 2}, "set"), ("0011", "str"), (np.array(UNIT, object), "objects")):
        with pytest.raises(TypeError, match=name):
            take_many([1], boxes)


def test_a_masked_value_is_no_value(tree, take_many):
    masked = np.ma.array([UNIT, UNIT], mask=[[0] * 4, [0, 0, 1, 0]])
    for boxes in (masked, list(masked), [UNIT, [0, 0, np.ma.masked, 1]]):
        with pytest.raises(xtree.InvalidBoxError, match="masked"):
            take_many([1, 2], boxes)
    with pytest.raises(ValueError, match="index 1 is masked"):
        take_many(np.ma.array([1, 2], mask=[0, 1]), GOOD[:2])
    assert tree.query(np.ma.array(UNIT)).tolist() == [1]


NO_INTEGERS = [
    True, np.True_, 1.0, np.float32(1), "1", None, 1j, decimal.Decimal(1), [1], np.array([1, 2]), np.array(1.0),
]  # fmt: skip


@pytest.mark.parametrize("id", NO_INTEGERS)
def test_ids_that_are_no_integers_are_type_errors(tree, take_many, id):
    with pytest.raises(TypeError, match="ids must be integers, got a "):
        tree.insert(id, UNIT)
    with pytest.raises(TypeError):
        tree.delete(id, UNIT)
    with pytest.raises((TypeError, xtree.DimensionError)):
        take_many([1, id], GOOD[:2])
    with pytest.raises(TypeError):
        (id, UNIT) in tree  # noqa: B015


@pytest.mark.parametrize("id", [2**63, -(2**63) - 1, 10**4000, np.uint64(2**63)])
def test_ids_outside_int64_overflow(tree, take_many, id):
    with pytest.raises(OverflowError, match="outside int64"):
        tree.insert(id, UNIT)
    with pytest.raises(OverflowError, match="at index 1 is outside int64"):
        take_many([1, id], GOOD[:2])


def test_arrays_of_other_ids_are_refused(tree, take_many):
    others = [np.array([1.0, 2.0]), np.array([True, True]), np.array(["1", "2"]), np.array([1, 2], object), "12", None]
    for ids in others:
        with pytest.raises(TypeError):
            take_many(ids, GOOD[:2])
    with pytest.raises(OverflowError, match="at index 1"):
        take_many(np.array([1, 2**63], np.uint64), GOOD[:2])
    for ids in (5, np.arange(4).reshape(2, 2)):
        with pytest.raises(xtree.DimensionError):
            take_many(ids, GOOD[:2])


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3], np.arange(9)])
def test_lengths_that_differ_are_refused(take_many, ids):
    with pytest.raises(ValueError, match=f"got {len(ids)} ids for 2 boxes"):
        take_many(ids, GOOD[:2])


def test_words_that_mean_nothing_are_refused(tree):
    for predicate in ("inside", "", None, 0, ["within"]):
        with pytest.raises(ValueError, match="predicate must be 'intersects' or 'contains' or 'covers' or 'within'"):
            tree.query(UNIT, predicate)
        with pytest.raises(ValueError, match="predicate"):
            tree.count(UNIT, predicate)
    for output in ("tuple", None, 1):
        for boxes in (UNIT, [UNIT]):
            with pytest.raises(ValueError, match="output must be 'pairs' or 'csr'"):
                tree.query(boxes, output=output)


def test_nearest_refuses_what_makes_no_sense(tree):
    for k in (0, -1, -(10**30)):
        with pytest.raises(ValueError, match="k must be at least 1"):
            tree.nearest([0, 0], k=k)
    for k in (1.0, True, "1", None, np.array([1, 2])):
        with pytest.raises(TypeError, match="k must be an integer"):
            tree.nearest([0, 0], k=k)
    for point in ([NAN, 0], [0, INF], [[0, 0], [0, -INF]]):
        with pytest.raises(ValueError, match="not finite"):
            tree.nearest(point)
    for points in ([0], [0, 0, 0], [[0, 0, 0]], np.zeros((1, 1, 2)), np.zeros((0, 3))):
        with pytest.raises(xtree.DimensionError, match="points of shape"):
            tree.nearest(points)
    for distance in (-1, NAN, -INF):
        with pytest.raises(ValueError, match="max_distance"):
            tree.nearest([0, 0], max_distance=distance)
    for distance in ("1", True, [1.0, 2.0], np.array([1.0, 2.0])):
        with pytest.raises(TypeError, match="max_distance must be a number"):
            tree.nearest([0, 0], max_distance=distance)
    assert len(tree.nearest([0, 0], k=2, max_distance=10**400)) == 2


def test_dims_are_1_to_64():
    for dims in (0, -1, 65, 10**30):
        with pytest.raises(ValueError, match=r"dims must be in 1 \.\. 64"):
            xtree.XTree(dims=dims)
    for dims in (2.0, "2", True, None, [2]):
        with pytest.raises(TypeError, match="dims must be an integer"):
            xtree.XTree(dims=dims)
    with pytest.raises(TypeError, match=r"config must be an xtree\.Config, not dict"):
        xtree.XTree(dims=2, config={"page_bytes": 8192})


def test_from_boxes_refuses_what_tells_no_dims(tmp_path):
    path = tmp_path / "index"
    for boxes in (np.zeros((3, 5)), [], np.zeros((0, 0)), np.zeros((1, 2, 4)), 5.0):
        with pytest.raises(xtree.DimensionError):
            xtree.XTree.from_boxes(boxes, path=path)
    with pytest.raises(ValueError, match="got 1 ids for 5 boxes"):
        xtree.XTree.from_boxes(GOOD, ids=[1], path=path)
    with pytest.raises(xtree.InvalidBoxError):
        xtree.XTree.from_boxes(replaced(1, [NAN] * 4), path=path)
    with pytest.raises(xtree.DimensionError):
        xtree.XTree.from_boxes(GOOD, dims=3, path=path)
    assert not path.exists()


def test_deleting_what_is_absent_counts_nothing(tree):
    epoch = tree.stats()["epoch"]
    assert tree.delete(1, [0, 0, 1, 2]) is False
    assert tree.delete(3, UNIT) is False
    assert tree.delete_many([1, 9, 1], [UNIT, UNIT, UNIT]) == 1
    assert tree.update(9, UNIT, UNIT) is False
    assert tree.stats()["epoch"] == epoch + 1


def handles(tree):
    """Every call that needs an open tree."""
    return [
        lambda: tree.query(UNIT), lambda: tree.query([UNIT]), lambda: tree.count(UNIT), lambda: tree.nearest([0, 0]),
        lambda: tree.items(), lambda: len(tree), lambda: tree.bounds, lambda: tree.dims, lambda: tree.height,
        lambda: (1, UNIT) in tree, lambda: tree.check(), lambda: tree.stats(),
    ]  # fmt: skip


def writes(tree):
    """Every call that changes a tree."""
    return [
        lambda: tree.insert(1, UNIT), lambda: tree.insert_many([1], [UNIT]), lambda: tree.bulk_load([1], [UNIT]),
        lambda: tree.delete(1, UNIT), lambda: tree.delete_many([1], [UNIT]), lambda: tree.update(1, UNIT, UNIT),
        lambda: tree.insert_many([], []), lambda: tree.bulk_load([], []), lambda: tree.delete_many([], []),
    ]  # fmt: skip


def test_a_closed_tree_raises_closed_error(tree):
    snapshot = tree.snapshot()
    tree.close()
    tree.close()
    assert tree.closed
    calls = [*handles(tree), *writes(tree), *handles(snapshot), tree.snapshot, tree.__enter__, snapshot.__enter__]
    for call in [*calls, tree.transaction().__enter__]:
        with pytest.raises(xtree.ClosedError, match="closed"):
            call()


def test_a_read_only_tree_raises_read_only_error(tmp_path):
    xtree.XTree.from_boxes(GOOD, path=tmp_path / "index").close()
    with xtree.open(tmp_path / "index", mode="r") as tree:
        assert len(tree) == 5
        before = sorted(os.listdir(tmp_path / "index"))
        for call in [*writes(tree), tree.transaction().__enter__]:
            with pytest.raises(xtree.ReadOnlyError, match="mode='r'"):
                call()
        with pytest.raises(xtree.ReadOnlyError):
            tree.runtime.tree("other", dims=2)
        with pytest.raises(xtree.ReadOnlyError):
            tree.runtime.drop("default")
        with pytest.raises(xtree.ReadOnlyError):
            tree.runtime.checkpoint()
        assert "mode='r'" in repr(tree)
    assert sorted(os.listdir(tmp_path / "index")) == before


def test_a_finished_transaction_raises_transaction_error(tree):
    with tree.transaction() as committed:
        committed.insert(3, UNIT)
    with tree.transaction() as aborted:
        aborted.abort()
    for transaction in (committed, aborted):
        for call in [*handles(transaction), *writes(transaction), transaction.__enter__, transaction.commit]:
            with pytest.raises(xtree.TransactionError, match="the transaction is"):
                call()
        transaction.abort()
    with pytest.raises(xtree.TransactionError, match="hasn't begun"):
        tree.transaction().query(UNIT)


def test_every_call_in_a_forked_child_answers_or_says_why_and_the_parent_goes_on(tree):
    snapshot, runtime = tree.snapshot(), tree.runtime
    transaction = tree.transaction()
    transaction.__enter__()
    transaction.insert(5, UNIT)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        status = 1
        try:
            reads = [*handles(tree), tree.snapshot]
            if runtime is None:  # the child's own copy
                ended = all(raises((), call) for call in [*reads, *handles(snapshot), *writes(tree)])
            else:
                reads += [runtime.trees, lambda: runtime.tree("default"), runtime.stats]
                changes = [*writes(tree), lambda: runtime.drop("default"), runtime.checkpoint]
                ended = all(raises(xtree.LockedError, call) for call in reads)
                ended = ended and all(raises((xtree.LockedError, xtree.ReadOnlyError), call) for call in changes)
                ended = ended and all(raises(xtree.ClosedError, call) for call in handles(snapshot))
            status = 0 if ended and raises(xtree.TransactionError, transaction.items) else 2
            tree.close()
            del transaction, snapshot, runtime
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    transaction.__exit__(None, None, None)
    assert len(tree) == 3
    tree.insert(7, UNIT)


def raises(kinds, call) -> bool:
    """Whether the call raises one of these errors, or nothing if none are given."""
    try:
        call()
    except kinds:
        return True
    return not kinds
