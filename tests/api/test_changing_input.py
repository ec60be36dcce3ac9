"""Input that changes during a call: only checked values are stored, queries come to no harm, and every call ends.

Promises (Right answers):

- input that a callback or another thread changes during a call is stored as it was judged, or refused, and harms no
  query:
  all of it.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support import brute_force

import xtree
from xtree.algorithms.queries import nearest
from xtree.algorithms.updates import insertion, removal

N = 20_000
SPOILT = {
    "nan": lambda boxes: boxes.fill(np.nan),
    "infinite": lambda boxes: boxes.fill(np.inf),
    "swapped": lambda boxes: boxes.__setitem__(slice(None), -boxes),
    "min nan": lambda boxes: boxes[:, 0].fill(np.nan),
    "minus infinity": lambda boxes: boxes[:, 0].fill(-np.inf),
}


def spoil_at(report, spoil):
    """A progress callback that calls `spoil` at report number `report`."""
    reports = []

    def progress(done, total):
        reports.append(done)
        if len(reports) == report:
            spoil()

    return progress


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "report"), [(1, 30), (2, 1), (2, 60), (3, 40), (5, 30)])
@pytest.mark.parametrize("how", SPOILT)
def test_a_load_whose_callback_spoils_the_boxes_is_refused_or_right(make_tree, random, how, report, dims):
    boxes = brute_force.random_boxes(random, N, dims) + 1.0
    given = boxes.copy()
    tree = make_tree(dims)
    with pytest.raises(xtree.InvalidBoxError, match=r"row \d+ was changed during the call"):
        tree.bulk_load(np.arange(N), given, progress=spoil_at(report, lambda: SPOILT[how](given)))
    assert len(tree) == 0
    tree.check()
    tree.bulk_load(np.arange(N), boxes)
    assert brute_force.records(*tree.items()) == brute_force.records(np.arange(N), boxes)


def test_what_a_callback_changes_into_other_boxes_is_stored_as_it_is_read(make_tree, random):
    """Each record is the old box or the new one; the tree is right for what it holds."""
    old = brute_force.random_boxes(random, N, 2)
    new = brute_force.random_boxes(random, N, 2) + 3.0
    given, ids = old.copy(), np.arange(N)
    tree = make_tree(2)

    def change():
        given[:] = new
        ids[:] = -5 - ids

    tree.bulk_load(ids, given, progress=spoil_at(40, change))
    tree.check()
    found = brute_force.records(*tree.items())
    assert sum(found.values()) == N
    possible = brute_force.records(np.arange(N), old) | brute_force.records(-5 - np.arange(N), new)
    assert not found - possible and found & brute_force.records(-5 - np.arange(N), new)


def test_input_cannot_be_resized_under_a_load(make_tree, random):
    boxes, ids = brute_force.random_boxes(random, N, 2), np.arange(N)
    refused = []

    def resize():
        for array in (boxes, ids):
            with pytest.raises(ValueError, match="resize"):
                array.resize((4, 4) if array is boxes else (4,))
            refused.append(array)

    tree = make_tree(2)
    tree.bulk_load(ids, boxes, progress=spoil_at(10, resize))
    assert len(refused) == 2 and len(tree) == N


def test_input_in_memory_that_is_used_again_is_stored_as_it_was_judged(make_tree, random):
    """The arrays are over a buffer that the callback refills."""
    boxes = brute_force.random_boxes(random, N, 2)
    memory = bytearray(boxes.tobytes())

    class Lent:
        def __init__(self):
            self.__array_interface__ = {"shape": boxes.shape, "typestr": "<f8", "data": memory, "version": 3}

    def refill():
        memory[:] = b"\xff" * len(memory)

    tree = make_tree(2)
    with pytest.raises(xtree.InvalidBoxError):
        tree.bulk_load(np.arange(N), Lent(), progress=spoil_at(20, refill))
    tree.check()


class Hammer:
    """A thread that writes nonsense into an array and then the old values, over and over, until the block ends."""

    def __init__(self, array: np.ndarray, nonsense: list[np.ndarray]) -> None:
        self.array, self.right, self.nonsense = array, array.copy(), nonsense
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.ended.is_set():
            for other in self.nonsense:
                np.copyto(self.array, other)
                np.copyto(self.array, self.right)

    def __enter__(self) -> Hammer:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()


def nonsense_for(boxes: np.ndarray) -> list[np.ndarray]:
    return [-boxes, boxes * 1e300, *(np.full_like(boxes, number) for number in (np.nan, -np.inf, np.inf))]


@pytest.mark.parametrize("dims", [2, 5])
def test_writing_calls_beside_a_thread_that_writes_to_their_input_leave_right_trees(make_tree, random, dims):
    boxes = brute_force.random_boxes(random, 5000, dims) + 0.5
    ids = np.arange(len(boxes))
    tree = make_tree(dims)
    given = boxes.copy()
    calls = [
        lambda: tree.insert_many(ids, given),
        lambda: tree.bulk_load(ids, given),
        lambda: tree.bulk_load(ids, given, threads=3),
        lambda: tree.delete_many(ids, given),
    ]
    with Hammer(given, nonsense_for(boxes)):
        for i in range(32):
            try:
                calls[i % 4]()
            except xtree.InvalidBoxError:
                pass
            tree.check()
            if len(tree) > 20_000:
                tree.delete_many(*tree.items())
    tree.delete_many(*tree.items())
    assert len(tree) == 0


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -np.inf])
def test_rows_that_are_spoilt_behind_their_check_are_refused(make_tree, random, nonsense):
    """Calls the compiled functions themselves, as if the array had changed after its check."""
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 500, 2)
    tree.insert_many(np.arange(500), boxes)
    spoilt = boxes.copy()
    spoilt[321, 2] = nonsense
    with pytest.raises(xtree.InvalidBoxError, match="row 321 was changed"):
        tree._write(insertion.insert, np.arange(500), spoilt)
    assert tree._write(removal.delete, np.arange(500), spoilt) == 499
    assert tree.items()[0].tolist() == [321]


@pytest.mark.parametrize("threads", [1, 2])
def test_queries_beside_a_thread_that_writes_to_their_windows_end_and_harm_nothing(make_tree, random, threads):
    boxes = brute_force.random_boxes(random, 20_000, 2, 0.01)
    tree = make_tree(2)
    tree.bulk_load(np.arange(len(boxes)), boxes)
    windows = brute_force.random_boxes(random, 2000, 2, 0.03) + 0.001
    points = random.random((2000, 2)) + 0.1
    for given, calls in (
        (windows.copy(), [
            lambda given: tree.query(given, threads=threads),
            lambda given: tree.query(given, "contains", "csr", threads=threads),
            lambda given: tree.count(given, "within", threads=threads),
            lambda given: tree.query(given[:20]),
            lambda given: tree.query(given[0]),
            lambda given: tree.explain(given),
        ]),
        (points.copy(), [
            lambda given: tree.nearest(given, 5, threads=threads),
            lambda given: tree.nearest(given, 5, 0.1, threads=threads),
            lambda given: tree.nearest(given[:20], 5),
            lambda given: tree.explain_nearest(given, 2),
        ]),
    ):
        with Hammer(given, nonsense_for(given)):
            for _ in range(4):
                for call in calls:
                    try:
                        call(given)
                    except (xtree.InvalidBoxError, ValueError):
                        pass
    assert len(tree.query(windows[0])) == len(brute_force.query(np.arange(len(boxes)), boxes, windows[0]))
    tree.check()


def test_a_point_that_is_spoilt_behind_its_check_is_refused(make_tree, random):
    tree = make_tree(2)
    tree.insert_many(np.arange(500), random.random((500, 2)))
    points = random.random((200, 2))
    points[77, 1] = np.nan
    for first, end in ((0, 200), (70, 100)):  # a batch that is put in order, and one too small for that
        with pytest.raises(ValueError, match=f"row {77 - first} was changed"):
            tree._read(nearest.nearest, points[first:end], 3)
