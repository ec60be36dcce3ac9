"""Changes of one record: the same as a batch of one, in whatever form they are given.

Promises (Right answers):

- a change of one record does, accepts and refuses what a batch of one does, in a transaction and by itself:
  test_every_form_of_a_record_is_the_same_record, test_bad_arguments_are_refused_alike_everywhere,
  test_random_changes_of_one_record_among_batches_give_what_a_model_has.
"""

from __future__ import annotations

import collections
import gc
import random as random_module
import threading
import weakref

import numpy as np
import pytest
from support import brute_force

import xtree
from xtree.algorithms.updates import removal
from xtree.algorithms.updates.one_record import RecordWriter

NAN, INF = float("nan"), float("inf")
UNIT = (0.0, 0.0, 1.0, 1.0)
FAR = (9.0, 9.0, 9.5, 9.5)
CENTRE = (-1e-9, -1e-9, 1e-9, 1e-9)


class Whole:
    """An integer that isn't an int."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __index__(self) -> object:
        return self.value


FORMS = {
    "tuple": (1.0, 2.0, 3.0, 4.0),
    "list": [1.0, 2.0, 3.0, 4.0],
    "ints": (1, 2, 3, 4),
    "mixed": [1, 2.0, np.float64(3), np.int32(4)],
    "float64": np.array([1.0, 2.0, 3.0, 4.0]),
    "every other": np.array([1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0])[::2],
    "backwards": np.array([4.0, 3.0, 2.0, 1.0])[::-1],
    "float32": np.array([1, 2, 3, 4], np.float32),
    "int16": np.array([1, 2, 3, 4], np.int16),
    "big-endian": np.array([1.0, 2.0, 3.0, 4.0], ">f8"),
    "unaligned": np.frombuffer(b"-" + np.array([1.0, 2.0, 3.0, 4.0]).tobytes(), np.float64, 4, 1),
    "subclass": np.ma.masked_array([1.0, 2.0, 3.0, 4.0]),
    "memory": memoryview(np.array([1.0, 2.0, 3.0, 4.0])),
}
IDS = [5, np.int8(5), np.uint64(5), Whole(5), np.array(5)]
BAD_IDS = [1.0, "1", None, True, np.bool_(True), 1 << 63, -(1 << 63) - 1, Whole(1 << 80), Whole("x"), [1], np.arange(3)]
BAD_BOXES = [
    (), [], (1.0,), (0, 0, 1), (0, 0, 1, 1, 1), [[0, 0, 1, 1]], np.zeros((2, 4)), np.zeros((0, 4)), np.float64(3),
    (NAN, 0, 1, 1), (0, 0, 1, NAN), (2, 0, 1, 1), (0, 1, 1, 0), (0, 0, INF, 1), (-INF, 0, 1, 1), (INF, 0),
    np.full(4, NAN), np.array([0.0, 0.0, INF, 1.0]), np.array([2.0, 0.0, 1.0, 1.0], np.float32),
    (0, 0, 1, (1 << 60) + 1), (0, 0, 1, 1 << 2000),
    "abcd", b"abcd", None, 5, (None, 0, 1, 1), (1j, 0, 1, 1), ("0", 0, 1, 1), {0, 1}, {"a": 1}, np.array(["a"] * 4),
    np.ma.masked_array([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 0]), np.zeros(4, complex), [True, 0, 1, "1"],
]  # fmt: skip


@pytest.fixture(params=["tree", "transaction", "part"])
def writer(request, tmp_path):
    """A tree, a transaction on one, and a tree inside a transaction on several."""
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree = runtime.tree("boxes", 2)
        tree.insert_many([1, 2], [UNIT, FAR])
        if request.param == "tree":
            yield tree
        elif request.param == "transaction":
            with tree.transaction() as tx:
                yield tx
        else:
            with runtime.transaction(trees=["boxes"]) as tx:
                yield tx.tree("boxes")
        runtime.check()


def test_every_form_of_a_record_is_the_same_record(writer):
    for box in FORMS.values():
        for id in IDS:
            writer.insert(id, box)
            assert (5, FORMS["tuple"]) in writer and len(writer) == 3
            assert writer.update(id, box, FAR) is True
            assert writer.update(id, FAR, box) is True
            assert writer.delete(id, box) is True
            assert writer.delete(id, box) is False and len(writer) == 2
    for point in ((3.0, 4), [3, 4.0], np.array([3.0, 4.0]), np.array([3, 4], np.int8)):
        writer.insert(7, point)
        assert writer.delete(7, (3, 4, 3, 4))


def refusal(call):
    with pytest.raises((TypeError, ValueError, OverflowError)) as refused:
        call()
    return type(refused.value), str(refused.value)


def test_bad_arguments_are_refused_alike_everywhere(writer, tmp_path):
    records = brute_force.records(*writer.items())
    twin = xtree.XTree(2)
    for id, box in [(id, UNIT) for id in BAD_IDS] + [(1, box) for box in BAD_BOXES]:
        kind, message = refusal(lambda: writer.insert(id, box))  # noqa: B023
        for call in (writer.delete, twin.insert, twin.delete):
            assert refusal(lambda: call(id, box)) == (kind, message)  # noqa: B023
        if box is UNIT:
            assert refusal(lambda: writer.update(id, box, FAR)) == (kind, message)  # noqa: B023
        else:
            assert refusal(lambda: writer.update(1, box, FAR)) == (kind, message)  # noqa: B023
            assert refusal(lambda: writer.update(1, UNIT, box)) == (kind, message)  # noqa: B023
            rows = box if isinstance(box, np.ndarray) and box.ndim == 2 else [box]
            if len(rows) == 1 and np.ndim(box) == 1 and not isinstance(box, np.ma.MaskedArray):
                assert refusal(lambda: writer.insert_many([1], rows))[0] is kind  # noqa: B023
    # The id is looked at before the box, the old box before the new one.
    assert "ids must be" in refusal(lambda: writer.insert(1.5, "box"))[1]
    assert "invalid box: axis 1" in refusal(lambda: writer.update(1, (0, 1, 1, 0), (2, 0, 1, 1)))[1]
    assert brute_force.records(*writer.items()) == records
    twin.close()


@pytest.mark.parametrize(("dims", "overlap"), [(1, 0.2), (2, 0.2), (3, 0.0), (16, 0.0)])
def test_random_changes_of_one_record_among_batches_give_what_a_model_has(make_tree, dims, overlap):
    seed = random_module.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    tree = make_tree(dims, xtree.Config(max_overlap=overlap))
    model: list[tuple[int, tuple[float, ...]]] = []

    def some_box() -> tuple[float, ...]:
        low = rng.integers(0, 30, dims) / 8
        return (*low.tolist(), *(low + rng.integers(0, 3, dims) / 8).tolist())

    for part in range(4):
        with tree.transaction() as tx:
            for step in range(400):
                what = rng.random()
                id = int(rng.integers(-50, 50))
                if what < (0.7, 0.6, 0.3, 0.1)[part]:
                    model.append((id, some_box()))
                    tx.insert(*model[-1])
                elif what < 0.8 and model:
                    at = int(rng.integers(len(model)))
                    before, model[at] = model[at], (model[at][0], some_box())
                    assert tx.update(*before, model[at][1])
                elif what < 0.99 and model:
                    assert tx.delete(*model.pop(int(rng.integers(len(model)))))
                elif what >= 0.99:
                    rows = [(int(i), some_box()) for i in rng.integers(-50, 50, 20)]
                    model += rows
                    (tx.insert_many if step % 2 else tx.bulk_load)([i for i, _ in rows], [box for _, box in rows])
                absent = (99, some_box())
                assert not tx.delete(*absent) and not tx.update(*absent, absent[1])
                if step % 40 == 0:
                    tx.check()
                    assert len(tx) == len(model)
            assert brute_force.records(*tx.items()) == collections.Counter(model)
            if model:
                boxes = np.array([box for _, box in model])
                assert tx.bounds.tolist() == [*boxes[:, :dims].min(axis=0), *boxes[:, dims:].max(axis=0)]
        tree.check()


def test_a_transaction_that_is_emptied_and_filled_record_by_record_is_whole(make_tree):
    tree = make_tree(2)
    boxes = np.random.default_rng(7).random((1500, 2))
    with tree.transaction() as tx:
        for _ in range(2):
            for i, point in enumerate(boxes.tolist()):
                tx.insert(i, point)
            assert len(tx) == 1500
            for i, point in enumerate(boxes.tolist()):
                assert tx.delete(i, point)
            assert len(tx) == 0 and tx.bounds is None
            tx.check()


def ways_of_changing_records() -> int:
    return sum(type(thing) is RecordWriter for thing in gc.get_objects())


@pytest.mark.parametrize("end", ["commit", "abort", "error", "forget", "close", "doom"])
def test_what_a_scope_has_kept_is_freed_at_its_end_without_the_collector(make_tree, end):
    tree = make_tree(2)
    gc.collect()
    before = ways_of_changing_records()
    gc.disable()
    try:
        tx = tree.transaction()
        tx.__enter__()
        tx.insert(1, UNIT)
        tx.delete(1, UNIT)
        write_set = weakref.ref(tx._write_tree("default", lambda write_set, state: write_set))
        assert ways_of_changing_records() == before + 1
        if end == "doom":
            with pytest.raises(ZeroDivisionError):
                tx._write_tree("default", lambda write_set, state: 1 / 0)
            tx.abort()
        elif end == "error":
            tx.__exit__(ValueError, ValueError(), None)
        elif end == "forget":
            tx = None
        else:
            (tree.close if end == "close" else getattr(tx, end))()
        assert ways_of_changing_records() == before and write_set() is None
        if end != "close":
            tree.insert(1, UNIT)
            assert tree.delete(1, UNIT)
            assert ways_of_changing_records() == before
    finally:
        gc.enable()


def test_a_change_that_waits_for_the_lock_of_the_store_lets_other_threads_run(monkeypatch):
    tree = xtree.XTree(2)
    inside, begun = threading.Event(), threading.Event()

    def check_slots():  # with the store's lock
        inside.set()
        assert begun.wait(30)
        for _ in range(100_000):
            pass

    monkeypatch.setattr(tree._store, "_check_slots", check_slots, raising=False)
    with tree.transaction() as tx:
        thread = threading.Thread(target=tree._store.check)
        thread.start()
        assert inside.wait(30)
        begun.set()
        tx.insert(1, UNIT)  # takes a page
        thread.join()
        monkeypatch.undo()
    assert list(tree.query(UNIT)) == [1]


def test_threads_change_records_of_their_own_trees_at_the_same_time(tmp_path):
    with xtree.Runtime(tmp_path / "index", durability="eventual") as runtime:
        names = [f"t{i}" for i in range(4)]
        boxes = np.random.default_rng(3).random((1500, 2)).tolist()

        def write(name):
            tree = runtime.tree(name, 2)
            with tree.transaction() as tx:
                for i, point in enumerate(boxes):
                    tx.insert(i, point)
            for i, point in enumerate(boxes[:200]):
                assert tree.delete(i, point)
                tree.insert(-i, point)

        threads = [threading.Thread(target=write, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(runtime.tree(name)) for name in names] == [1500] * 4
        runtime.check()


def overlapping(tree) -> None:
    """Fills a tree with boxes that all hold the centre, so that a search for a record there visits many pages."""
    reach = np.random.default_rng(5).random((40_000, 4)) + 0.1
    ids = np.random.default_rng(6).permutation(40_000) * 2
    tree.insert_many(ids, reach * [-1, -1, 1, 1])


def test_a_long_search_for_a_record_ends_as_a_short_one_does(make_tree):
    tree = make_tree(2, xtree.Config(max_overlap=1.0))  # no supernodes
    overlapping(tree)
    with tree.transaction() as tx:
        pages = tx._write_tree("default", removal.visits, np.array([20_001]), np.array([CENTRE]))
        assert pages > 500  # removal.pyx LONG_SEARCH is 256
        for _ in range(3):
            assert not tx.delete(20_001, CENTRE)
            assert not tx.update(20_001, CENTRE, UNIT)
            tx.insert(20_001, CENTRE)
            assert tx.delete(20_001, CENTRE)
    assert len(tree) == 40_000


def test_a_long_search_without_memory_is_an_error_as_any_other(make_tree):
    from xtree.persistence.base.memory import allocation_count, fail_allocation, watch_allocations

    tree = make_tree(2, xtree.Config(max_overlap=1.0))  # no supernodes
    overlapping(tree)
    watch_allocations(True)
    try:
        before = allocation_count()
        assert not tree.delete(20_001, CENTRE)
        needed = allocation_count() - before
        assert needed > 10
        for n in (needed - 1, needed):  # in the middle of the search, from where it goes on without the GIL
            fail_allocation(n)
            with pytest.raises(MemoryError):
                tree.delete(20_001, CENTRE)
            assert fail_allocation(0) == 0
            assert len(tree) == 40_000 and not tree.delete(20_001, CENTRE)
    finally:
        watch_allocations(False)
