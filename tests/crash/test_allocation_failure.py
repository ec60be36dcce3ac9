"""No memory, at every single allocation of the compiled code: a MemoryError, and everything as it was before the call.

The first allocation of a call fails, then the second, and so on until the call succeeds. Nothing may then be allocated
that wasn't before; the allocator itself counts that.

Promises (Nothing acknowledged is lost):

- no memory at any allocation of compiled code: MemoryError, everything as before the call, every block given back:
  all of it, test_memory.py::test_no_other_module_allocates_by_itself.
- no memory between any two steps of a commit, checkpoint or open: aborted before the first byte of the frame,
  poisoned after it, committed once published; nobody waits for ever:
  test_no_memory_between_some_steps_is_a_clean_failure_or_poisons,
  test_no_memory_between_any_two_steps_is_a_clean_failure_or_poisons,
  test_faults.py::test_no_memory_behind_the_publication_is_no_failure_of_the_commit,
  test_faults.py::test_a_leader_that_finds_no_memory_between_two_groups_poisons_and_keeps_nobody_waiting.
"""

from __future__ import annotations

import _thread
import gc
import os
import random as random_module
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import brute_force
from support.faulty_fs import PATIENCE_S
from support.faulty_histories import NO_MEMORY, Fault, attempt, make_template
from support.short_histories import SCRIPTS, records
from support.text_pages import MODES, NO_CHECKPOINTS, settle, small

import xtree
from xtree.algorithms.kernels.arrays import forget_spares
from xtree.persistence.base.memory import fail_allocation, live_allocations, watch_allocations

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="looks for what is left in /proc")
PREDICATES = ("intersects", "contains", "within")
THREADS = _thread._count()  # without a store that is open
MOST_ALLOCATIONS = 2000  # of one call
MAY_TAKE_NONE = ("bounds", "stats", "holds")
ROOM = {**NO_CHECKPOINTS, "bulk_payload_limit": 256 << 10}


@pytest.fixture(autouse=True)
def nothing_stays_allocated(caplog):
    """Whatever failed in a test, all blocks are given back when its trees are closed and forgotten."""
    wait_for(lambda: _thread._count() <= THREADS)
    forget_spares()
    watch_allocations(True)
    before = live_allocations()
    yield
    fail_allocation(0)
    caplog.get_records("call").clear()  # the records hold exceptions, and so their frames
    forget_spares()
    wait_for(lambda: live_allocations() == before)
    assert live_allocations() == before
    watch_allocations(False)


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits: a thread that has ended a close may hold the store a moment longer than the caller of close() waits."""
    deadline = time.monotonic() + PATIENCE_S
    gc.collect()
    while not condition() and time.monotonic() < deadline:
        gc.collect()


class Failures:
    """Makes a call again and again, with the n-th allocation failing, for n = 1, 2, ..., until it succeeds."""

    def __init__(self) -> None:
        self.raised = 0
        self.made_up_for = 0  # failures that the call got over

    def until_it_works(self, call: Callable[[], Any], unchanged: Callable[[], None] = lambda: None) -> Any:
        """Returns what the call returns at last; `unchanged` is called after every failure."""
        for n in range(1, MOST_ALLOCATIONS):
            fail_allocation(n)
            try:
                answer = call()
            except MemoryError:
                pass
            else:
                self.made_up_for += not fail_allocation(0)
                return answer
            assert fail_allocation(0) == 0
            self.raised += 1
            unchanged()  # not in the except block: an exception keeps what its frames hold
        raise AssertionError(f"more than {MOST_ALLOCATIONS} allocations in one call")


@pytest.fixture
def failures(tally):
    counted = Failures()
    yield counted
    tally("failed allocations", counted.raised + counted.made_up_for)


def same(answer: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return len(answer) == len(expected) and all(map(same, answer, expected))
    return np.array_equal(answer, expected) if isinstance(expected, np.ndarray) else bool(answer == expected)


def every_question(tree, random) -> dict[str, Callable[[], Any]]:
    """Every way of reading, by name. The first box is one that is stored, so that every predicate finds a leaf."""
    dims = tree.dims
    few = np.concatenate([tree.items()[1][:1], brute_force.random_boxes(random, 4, dims, 0.5)])
    many = brute_force.random_boxes(random, 300, dims, 0.2)
    points = random.random((300, dims))
    whole = np.tile(np.r_[np.full(dims, -1.0), np.full(dims, 2.0)], (60, 1))
    questions: dict[str, Callable[[], Any]] = {
        "nearest": lambda: tree.nearest(points[0], 10, return_distance=True),
        "all, by distance": lambda: tree.nearest(points[0], len(tree)),
        "nearest of a batch": lambda: tree.nearest(points, 3, max_distance=0.5, return_distance=True),
        "everything, many times": lambda: tree.query(whole, output="csr"),
        "items": tree.items,
        "holds": lambda: (7, few[0]) in tree,
        "stats": tree.stats,
        "check": tree.check,
        "bounds": lambda: tree.bounds,
        "plain box": lambda: tree.query(tuple(few[0].tolist())),
    }
    for predicate in PREDICATES:
        questions |= {
            f"query, {predicate}": lambda p=predicate: tree.query(few[0], p),
            f"pairs, {predicate}": lambda p=predicate: tree.query(few, p),
            f"ordered pairs, {predicate}": lambda p=predicate: tree.query(many, p),
            f"csr, {predicate}": lambda p=predicate: tree.query(many, p, output="csr"),
            f"count, {predicate}": lambda p=predicate: tree.count(few[0], p),
            f"counts, {predicate}": lambda p=predicate: tree.count(few, p),
            f"ordered counts, {predicate}": lambda p=predicate: tree.count(many, p),
        }
    return questions


@pytest.mark.parametrize(("dims", "n"), [(2, 12_000), (16, 1500)])
def test_every_question_fails_cleanly_or_is_answered_right(make_tree, random, failures, dims, n):
    tree = make_tree(dims)
    tree.insert_many(*records(n, 300, dims))
    tree.bulk_load(*records(0, n, dims))
    if tree.runtime is not None:
        settle(tree._store)
    with tree.snapshot() as snapshot:
        for reader in (tree, snapshot):
            for name, ask in every_question(reader, random).items():
                expected = ask()
                forget_spares()
                live = live_allocations()

                def unchanged(name=name, live=live):
                    forget_spares()
                    assert live_allocations() == live, name

                asked = failures.raised
                answer = failures.until_it_works(ask, unchanged)
                assert same(answer, expected), name
                assert failures.raised > asked or name in MAY_TAKE_NONE, name
                del answer, expected
                gc.collect()


def test_a_snapshot_or_the_handle_of_a_tree_fails_cleanly(make_tree, failures):
    tree = make_tree(2)
    tree.insert(1, (0, 0))
    held = []
    for _ in range(600):  # more than one block of pins
        held.append(failures.until_it_works(tree.snapshot))
    assert [len(snapshot) for snapshot in held] == [1] * 600
    assert failures.raised
    for snapshot in held:
        snapshot.close()
    tree.insert(2, (0, 0))


def require_unchanged(tree, expected) -> None:
    assert brute_force.records(*tree.items()) == expected
    tree.check()
    tree._store.check()
    assert tree._store.stats()["object_table"]["reserved"] == 0


WRITES: dict[str, tuple[int, Callable[[Any], object]]] = {
    "insert": (2, lambda tree: tree.insert(5000, np.full(2 * tree.dims, 0.5))),
    "splits": (2, lambda tree: tree.insert_many(*records(2000, 400, 2))),
    "supernodes": (24, lambda tree: tree.insert_many(*records(2000, 250, 24))),
    "delete": (2, lambda tree: tree.delete(*(part[3] for part in records(0, 600, 2)))),
    "condense": (2, lambda tree: tree.delete_many(*(part[:550] for part in records(0, 600, 2)))),
    "condense supernodes": (24, lambda tree: tree.delete_many(*(part[:550] for part in records(0, 600, 24)))),
    "delete all": (3, lambda tree: tree.delete_many(*records(0, 600, 3))),
    "update": (2, lambda tree: tree.update(7, records(0, 600, 2)[1][7], records(0, 600, 2)[1][7] + 1)),
    "bulk load": (2, lambda tree: tree.bulk_load(*records(2000, 3000, 2))),
    "bulk load in 16-D": (16, lambda tree: tree.bulk_load(*records(2000, 900, 16))),
}


@pytest.mark.parametrize("name", WRITES)
def test_every_change_fails_cleanly_and_then_works(make_tree, failures, name):
    dims, change = WRITES[name]
    tree = make_tree(dims, xtree.Config(**ROOM, max_overlap=0.0))
    model = brute_force.records(*records(0, 600, dims))
    tree.insert_many(*records(0, 600, dims))
    failures.until_it_works(lambda: change(tree), lambda: require_unchanged(tree, model))
    twin = xtree.XTree(dims, xtree.Config(max_overlap=0.0))
    twin.insert_many(*records(0, 600, dims))
    change(twin)
    require_unchanged(tree, brute_force.records(*twin.items()))
    twin.close()
    assert failures.raised > 1


@pytest.mark.parametrize("dims", [2, 16])
def test_the_first_records_of_a_tree_fail_cleanly_and_then_work(make_tree, failures, dims):
    for method in ("insert_many", "bulk_load"):
        tree = make_tree(dims)
        change = getattr(tree, method)
        failures.until_it_works(lambda change=change: change(*records(0, 1000, dims)), tree.check)
        require_unchanged(tree, brute_force.records(*records(0, 1000, dims)))


def test_a_transaction_that_met_no_memory_is_doomed_and_leaves_nothing(make_tree, failures):
    tree = make_tree(2)
    tree.insert_many(*records(0, 600, 2))
    held = brute_force.records(*tree.items())

    def change_all():
        with tree.transaction() as tx:
            try:
                tx.insert_many(*records(1000, 200, 2))
                tx.delete_many(*records(0, 600, 2))
                tx.query((0, 0, 1, 1))
                tx.bulk_load(*records(2000, 500, 2))
            except MemoryError:
                for further in (lambda: tx.insert(1, (0, 0)), lambda: len(tx), tx.commit):
                    with pytest.raises(xtree.TransactionError, match="failed"):
                        further()
                raise

    failures.until_it_works(change_all, lambda: require_unchanged(tree, held))
    require_unchanged(tree, brute_force.records(*records(1000, 200, 2)) + brute_force.records(*records(2000, 500, 2)))


def test_changes_of_one_record_after_another_fail_cleanly_and_then_work(make_tree, failures):
    tree = make_tree(2, xtree.Config(**ROOM, max_overlap=0.0))
    ids, boxes = records(0, 600, 2)
    tree.insert_many(ids, boxes)
    held = brute_force.records(*tree.items())
    more = [(id, tuple(box)) for id, box in zip(*map(np.ndarray.tolist, records(1000, 150, 2)), strict=True)]

    def change_all():
        with tree.transaction() as tx:
            for record in more:
                tx.insert(*record)
            for id, box in zip(ids.tolist(), boxes.tolist(), strict=True):
                assert tx.delete(id, box)
            for id, box in more:
                assert tx.update(id, box, box)

    failures.until_it_works(change_all, lambda: require_unchanged(tree, held))
    require_unchanged(tree, brute_force.records(*records(1000, 150, 2)))
    assert failures.raised > 10


def test_changes_of_several_trees_fail_together(tmp_path, failures):
    with xtree.Runtime(tmp_path / "index", config=xtree.Config(**ROOM)) as runtime:
        a, b = runtime.tree("a", 2), runtime.tree("b", 3)
        a.insert_many(*records(0, 300, 2))

        def change_both():
            with runtime.transaction(trees=["a", "b"]) as tx:
                tx.tree("a").delete_many(*records(0, 300, 2))
                tx.tree("b").insert_many(*records(0, 300, 3))

        def unchanged():
            assert (len(a), len(b)) == (300, 0)
            runtime.check()
            assert runtime.stats()["object_table"]["reserved"] == 0

        failures.until_it_works(change_both, unchanged)
        assert (len(a), len(b)) == (0, 300)
        failures.until_it_works(lambda: runtime.tree("c", 5), runtime.check)
        failures.until_it_works(lambda: runtime.drop("b"), runtime.check)
        assert runtime.trees() == ["a", "c"]
    assert failures.raised > 5


@pytest.fixture(scope="module", params=["strict", "balanced", "eventual"])
def crashed(request, tmp_path_factory):
    """What a killed process leaves: a checkpoint, and a log with pages that are whole, as changes, and flushed."""
    path = tmp_path_factory.mktemp("crashed")
    config = small(request.param, **NO_CHECKPOINTS, bulk_payload_limit=256 << 10)
    with xtree.Runtime(path / "running", config=config) as runtime:
        a = runtime.tree("a", 2)
        a.insert_many(*records(0, 300, 2))
        runtime.checkpoint()
        a.insert_many(*records(300, 100, 2))
        a.delete_many(*records(0, 300, 2))
        runtime.tree("b", 3).bulk_load(*records(0, 8000, 3))
        for i in range(30):
            a.insert(i, (i, i))
        settle(runtime._store)
        shutil.copytree(path / "running", path / "index")
    return path / "index", config


def require_recovered(runtime) -> None:
    assert len(runtime.tree("a")) == 130
    assert brute_force.records(*runtime.tree("b").items()) == brute_force.records(*records(0, 8000, 3))
    runtime.check()


def try_points(script, mode, tmp_path, share, tally) -> None:
    """Runs a history once for each named point, or for a random share of them, with no memory at that point."""
    seed = random_module.SystemRandom().randrange(1 << 32)
    rng = random_module.Random(seed)
    template, path = make_template(script, mode, tmp_path / "template"), tmp_path / "index"
    whole = attempt(script, template, path, mode)
    for n in range(1, whole.points + 1):
        for lasting in ("once", "for good"):
            if rng.random() < share:
                print(f"{script.name!r}, {mode}, point {n} of {whole.points}, {lasting}; seed {seed}")
                attempt(script, template, path, mode, Fault(n, NO_MEMORY, lasting))
                tally("named points without memory")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=lambda script: script.name)
def test_no_memory_between_some_steps_is_a_clean_failure_or_poisons(script, mode, tmp_path, tally):
    try_points(script, mode, tmp_path, 0.03, tally)


@needs_proc
@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=lambda script: script.name)
def test_no_memory_between_any_two_steps_is_a_clean_failure_or_poisons(script, mode, tmp_path, tally):
    try_points(script, mode, tmp_path, 1.0, tally)


@pytest.mark.parametrize("mode", ["a", "r"])
def test_an_open_without_memory_lets_go_of_everything_and_the_next_one_recovers(crashed, tmp_path, failures, mode):
    template, config = crashed
    shutil.copytree(template, tmp_path / "index")
    live = live_allocations()

    def nothing_is_held():
        wait_for(lambda: live_allocations() == live)
        assert live_allocations() == live
        if os.path.isdir("/proc/self/fd"):
            held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
            assert not [path for path in held if path.startswith(str(tmp_path / "index"))]

    runtime = failures.until_it_works(
        lambda: xtree.Runtime(tmp_path / "index", mode=mode, config=config), nothing_is_held
    )
    require_recovered(runtime)
    runtime.close()
    assert failures.raised > 10


def test_checkpoints_backups_and_closing_lose_nothing(crashed, tmp_path, failures):
    template, config = crashed
    shutil.copytree(template, tmp_path / "index")
    runtime = xtree.Runtime(tmp_path / "index", config=config)
    runtime.tree("a").insert(1000, (0, 0))
    runtime.tree("a").delete(1000, (0, 0))
    failures.until_it_works(runtime.checkpoint, runtime.check)
    targets = iter(range(10_000))

    def back_up():
        path = tmp_path / f"copy {next(targets)}"
        try:
            runtime.backup(path)
        except MemoryError:
            assert not path.exists()
            raise
        return path

    copy = failures.until_it_works(back_up, runtime.check)
    with xtree.Runtime(copy) as copied:
        require_recovered(copied)
    assert failures.raised >= 2
    closes = failures.raised
    while True:
        runtime.tree("a").insert(1000, (0, 0))
        runtime.tree("a").delete(1000, (0, 0))
        fail_allocation(failures.raised - closes + 1)
        try:
            runtime.close()
        except MemoryError:
            failures.raised += 1
        else:
            if fail_allocation(0):
                break
            failures.made_up_for += 1
            closes -= 1
        fail_allocation(0)
        assert runtime.closed
        runtime = xtree.Runtime(tmp_path / "index", config=config)
        require_recovered(runtime)
