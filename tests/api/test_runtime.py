"""Runtime and open: modes, several trees in one directory, commits over all of them.

Promises (One writer, many readers):

- after `close()` the lock is free, whichever thread's call it was:
  test_a_second_close_waits_for_the_first_and_then_the_lock_is_free.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import brute_force
from support.places import ROOT

import xtree
from xtree.persistence.base.crash_points import set_hook

UNIT = [0.0, 0.0, 1.0, 1.0]


@pytest.fixture
def runtime(tmp_path):
    """A runtime with the trees "cities" (2-D) and "roads" (3-D)."""
    with xtree.Runtime(tmp_path / "shard") as made:
        made.tree("roads", dims=3)
        made.tree("cities", dims=2)
        yield made
        if not made.closed:
            made.check()


def test_a_tree_asked_for_twice_is_the_same_object(runtime):
    roads = runtime.tree("roads")
    assert runtime.tree("roads", dims=3) is roads
    assert roads.dims == 3 and roads.name == "roads" and roads.runtime is runtime
    assert runtime.trees() == ["cities", "roads"]
    assert "shard" in repr(runtime) and "trees=2" in repr(runtime)


def test_trees_keep_apart_and_come_back(tmp_path, random):
    path = tmp_path / "shard"
    names = [f"tree {i:02} é" for i in range(40)]
    boxes = {name: brute_force.random_boxes(random, 20 + i, 1 + i % 5) for i, name in enumerate(names)}
    with xtree.Runtime(path) as runtime:
        for name in names:
            runtime.tree(name, dims=boxes[name].shape[1] // 2).insert_many(np.arange(len(boxes[name])), boxes[name])
    with xtree.Runtime(path, mode="r") as runtime:
        assert runtime.trees() == sorted(names)
        for name in names:
            brute_force.assert_same(runtime.tree(name), np.arange(len(boxes[name])), boxes[name], boxes[name][:3])
        runtime.check()


def test_a_missing_tree_needs_dims_and_another_number_is_refused(runtime):
    with pytest.raises(ValueError, match="no tree 'rivers'"):
        runtime.tree("rivers")
    with pytest.raises(xtree.DimensionError, match="has 3 dims, not 2"):
        runtime.tree("roads", dims=2)
    for name in (5, None, b"roads"):
        with pytest.raises(TypeError, match="name must be a str"):
            runtime.tree(name, dims=2)
    for name in ("", "x" * 2000, "\ud800"):
        with pytest.raises(ValueError):
            runtime.tree(name, dims=2)
    assert runtime.trees() == ["cities", "roads"]


def test_one_transaction_commits_over_several_trees(runtime):
    roads, cities = runtime.tree("roads"), runtime.tree("cities")
    cities.insert(7, UNIT)
    before = runtime.stats()["epoch"]
    with runtime.transaction(trees=["roads", "cities"]) as tx:
        tx.tree("roads").insert(1, [0, 0, 0])
        assert tx.tree("cities").delete(7, UNIT)
        assert len(tx.tree("roads")) == 1 and len(tx.tree("cities")) == 0
        assert len(roads) == 0 and len(cities) == 1
    assert len(roads) == 1 and len(cities) == 0
    assert runtime.stats()["epoch"] == before + 1


def test_an_exception_aborts_the_changes_of_all_trees(runtime):
    with pytest.raises(KeyError), runtime.transaction(trees=["roads", "cities"]) as tx:
        tx.tree("roads").insert(1, [0, 0, 0])
        tx.tree("cities").insert(1, [0, 0])
        raise KeyError
    assert len(runtime.tree("roads")) == 0 and len(runtime.tree("cities")) == 0
    assert tx.status == "aborted" and "aborted" in repr(tx)
    with pytest.raises(xtree.TransactionError):
        tx.tree("roads")


def test_a_tree_not_listed_is_added_when_nobody_writes_to_it(runtime):
    with runtime.transaction() as tx:
        runtime.tree("rivers", dims=1).insert(1, [0.0])  # a commit after the transaction began
        tx.tree("cities").insert(1, UNIT)
        tx.tree("rivers").insert(2, [1.0])
        assert len(tx.tree("rivers")) == 2
    assert len(runtime.tree("rivers")) == 2 and len(runtime.tree("cities")) == 1


def test_a_tree_not_listed_is_never_waited_for(runtime):
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        with runtime.tree("roads").transaction() as tx:
            tx.insert(1, [0, 0, 0])
            inside.set()
            go_on.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    with runtime.transaction(trees=["cities"]) as tx:
        with pytest.raises(xtree.TransactionError, match="could last for ever"):
            tx.tree("roads")
        with pytest.raises(xtree.TransactionError, match="could last for ever"):
            runtime.tree("roads").insert(1, [0, 0, 0])
        tx.tree("cities").insert(1, UNIT)
    go_on.set()
    thread.join()
    assert len(runtime.tree("cities")) == 1 and len(runtime.tree("roads")) == 1


def test_transactions_over_the_same_trees_in_any_order_do_not_deadlock(runtime):
    def work(names, start):
        for i in range(start, start + 15):
            with runtime.transaction(trees=names) as tx:
                tx.tree("roads").insert(i, [0, 0, 0])
                tx.tree("cities").insert(i, [0, 0])

    orders = [["roads", "cities"], ["cities", "roads"], ["cities", "roads", "cities"]]
    threads = [threading.Thread(target=work, args=(names, 15 * i)) for i, names in enumerate(orders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("roads", "cities"):
        assert sorted(runtime.tree(name).items()[0].tolist()) == list(range(45))


def test_missing_trees_of_a_transaction_are_key_errors(runtime):
    with pytest.raises(KeyError, match="rivers"):
        runtime.transaction(trees=["roads", "rivers"])
    with runtime.transaction() as tx, pytest.raises(KeyError, match="rivers"):
        tx.tree("rivers")
    with pytest.raises(TypeError, match="list of names"):
        runtime.transaction(trees="roads")


def test_the_timeout_of_a_transaction_counts_for_all_its_trees(runtime):
    errors: list = []

    def wait():
        try:
            runtime.transaction(trees=["roads", "cities"], timeout=0.01).__enter__()
        except TimeoutError as error:
            errors.append(error)

    with runtime.tree("roads").transaction():
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        runtime.tree("cities").insert(1, UNIT)  # the lock that had been taken first is free again
    assert len(errors) == 1


def test_drop_removes_a_tree_and_ends_its_handles(runtime, random):
    roads = runtime.tree("roads")
    roads.bulk_load(np.arange(3000), random.random((3000, 3)))
    runtime.drop("roads")
    assert runtime.trees() == ["cities"] and roads.closed and "closed" in repr(roads)
    for call in (lambda: roads.query([0] * 6), lambda: roads.insert(1, [0, 0, 0]), roads.snapshot, lambda: len(roads)):
        with pytest.raises(xtree.ClosedError, match="dropped"):
            call()
    for name in ("roads", "never"):
        with pytest.raises(KeyError, match=name):
            runtime.drop(name)
    again = runtime.tree("roads", dims=1)
    again.insert(1, [0.5])
    assert again is not roads and len(again) == 1
    with pytest.raises(xtree.ClosedError, match="dropped"):
        roads.insert(1, [0, 0, 0])
    runtime.check()


def test_drop_inside_a_transaction_on_the_tree_is_refused(runtime):
    with runtime.tree("roads").transaction() as tx:
        tx.insert(1, [0, 0, 0])
        with pytest.raises(xtree.TransactionError):
            runtime.drop("roads")
        runtime.drop("cities")
    assert len(runtime.tree("roads")) == 1 and runtime.trees() == ["roads"]


def test_a_writer_that_waited_for_a_dropped_tree_gets_a_closed_error(runtime):
    roads = runtime.tree("roads")
    errors: list = []

    def write():
        try:
            for i in range(100_000):
                roads.insert(i, [0, 0, 0])
        except xtree.ClosedError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    runtime.drop("roads")
    for thread in threads:
        thread.join()
    assert len(errors) == 3 and all("dropped" in error for error in errors)
    assert runtime.trees() == ["cities"]


def test_drop_returns_the_pages(tmp_path, random):
    boxes = brute_force.random_boxes(random, 20000, 2)
    with xtree.Runtime(tmp_path / "index") as runtime:
        sizes = []
        for _ in range(4):
            runtime.tree("a", dims=2).bulk_load(np.arange(20000), boxes)
            runtime.drop("a")
            assert runtime.stats()["object_table"]["live"] == 0
            runtime.checkpoint()
            sizes.append(sum(file.stat().st_size for file in Path(runtime.path).glob("data-*")))
        assert sizes[-1] <= 2 * sizes[0]


def test_closing_a_tree_of_a_runtime_closes_only_that_handle(runtime):
    roads = runtime.tree("roads")
    snapshot = roads.snapshot()
    roads.close()
    for call in (lambda: len(roads), lambda: roads.insert(1, [0, 0, 0]), lambda: len(snapshot)):
        with pytest.raises(xtree.ClosedError, match="closed"):
            call()
    again = runtime.tree("roads")
    assert again is not roads
    again.insert(1, [0, 0, 0])
    assert len(again) == 1


def test_a_closed_runtime_raises_closed_errors(runtime):
    roads = runtime.tree("roads")
    runtime.close()
    runtime.close()
    calls = [runtime.trees, lambda: runtime.tree("roads"), lambda: runtime.drop("roads"), runtime.stats,
             runtime.checkpoint,
             runtime.__enter__, lambda: runtime.transaction(trees=["roads"]), lambda: runtime.transaction().__enter__(),
             lambda: len(roads), lambda: roads.insert(1, [0, 0, 0]), runtime.check]  # fmt: skip
    for call in calls:
        with pytest.raises(xtree.ClosedError):
            call()
    assert runtime.closed and "closed" in repr(runtime)


def test_modes_are_those_of_files(tmp_path):
    path = tmp_path / "index"
    for mode in ("r", "r+"):
        with pytest.raises(FileNotFoundError):
            xtree.open(path, dims=2, mode=mode)
        with pytest.raises(FileNotFoundError):
            xtree.Runtime(path, mode=mode)
    with xtree.open(path, dims=2, mode="x") as tree:
        tree.insert(1, UNIT)
    for call in (lambda: xtree.open(path, mode="x"), lambda: xtree.open(path, dims=2, mode="x"),
                 lambda: xtree.Runtime(path, mode="x"), lambda: xtree.XTree.from_boxes([UNIT], path=path)):  # fmt: skip
        with pytest.raises(FileExistsError):
            call()
    for mode in ("r", "r+", "a"):
        with xtree.open(os.fspath(path), mode=mode) as tree:
            assert len(tree) == 1 and tree.dims == 2
    for mode in ("w", "", None, "rb"):
        with pytest.raises(ValueError, match="mode must be"):
            xtree.open(path, mode=mode)


def test_a_new_path_without_dims_makes_nothing(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (tmp_path / "new", empty):
        for mode in ("a", "x"):
            with pytest.raises(ValueError, match="give dims="):
                xtree.open(path, mode=mode)
    for dims in (0, 65, 2.5):
        with pytest.raises((ValueError, TypeError)):
            xtree.open(tmp_path / "new", dims=dims)
    with pytest.raises(TypeError, match="xtree.Config"):
        xtree.open(tmp_path / "new", dims=2, config={})
    assert sorted(os.listdir(tmp_path)) == ["empty"] and os.listdir(empty) == []


def test_other_dims_than_stored_are_refused_and_the_index_is_free_again(tmp_path):
    path = tmp_path / "index"
    xtree.open(path, dims=3).close()
    with pytest.raises(xtree.DimensionError, match="has 3 dims, not 2"):
        xtree.open(path, dims=2)
    with xtree.open(path, dims=3) as tree:
        assert tree.dims == 3


def test_a_runtime_without_the_default_tree_opens_only_with_dims(tmp_path):
    path = tmp_path / "index"
    with xtree.Runtime(path) as runtime:
        runtime.tree("roads", dims=3)
    with pytest.raises(ValueError, match="give dims="):
        xtree.open(path)
    with xtree.open(path, dims=2) as tree:
        assert tree.dims == 2 and tree.runtime.trees() == ["default", "roads"]


@pytest.mark.parametrize("durability", ["fast", "Strict", "", 1])
def test_a_durability_that_does_not_exist_is_refused_and_the_three_are_named(tmp_path, durability):
    three = "'strict' or 'balanced' or 'eventual'"
    with pytest.raises(ValueError, match=three):
        xtree.open(tmp_path / "index", dims=2, durability=durability)
    with pytest.raises(ValueError, match=three):
        xtree.Runtime(tmp_path / "index", durability=durability)
    assert not (tmp_path / "index").exists()


def test_an_index_changes_its_durability_at_any_open(tmp_path):
    path = tmp_path / "index"
    for i, durability in enumerate(["eventual", "strict", "balanced", None, "strict", "eventual"]):
        with xtree.open(path, dims=2, durability=durability) as tree:
            assert tree.runtime.stats()["durability"] == (durability or "balanced")
            tree.insert(i, (i, i, i + 1, i + 1))
            assert len(tree) == i + 1
    with xtree.Runtime(path, mode="r", durability="strict") as runtime:
        assert sorted(runtime.tree("default").items()[0].tolist()) == list(range(6))


def test_parameters_of_a_tree_are_stored_with_it(tmp_path):
    path = tmp_path / "index"
    with xtree.open(path, dims=2, config=xtree.Config(page_bytes=16384)) as tree:
        tree.bulk_load(np.arange(500), np.zeros((500, 4)))
        nodes = tree.stats()["nodes"]
    with xtree.open(path) as tree:
        tree.bulk_load([500], [UNIT])
        assert tree.stats()["nodes"] == nodes


def test_a_directory_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for mode in ("a", "x", "r", "r+"):
        with pytest.raises(xtree.CorruptionError):
            xtree.open(tmp_path, dims=2, mode=mode)
    assert os.listdir(tmp_path) == ["notes.txt"]
    with pytest.raises(OSError, match="not a directory"):
        xtree.open(tmp_path / "notes.txt", dims=2)
    for path in (5.0, None, ["x"]):
        with pytest.raises(TypeError):
            xtree.open(path, dims=2)


def test_another_process_is_told_who_holds_the_index(tmp_path):
    path = tmp_path / "index"
    with xtree.open(path, dims=2):
        program = "import sys, xtree\ntry: xtree.open(sys.argv[1])\nexcept xtree.LockedError as error: print(error)"
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        assert str(os.getpid()) in done.stdout and done.stderr == ""


def test_stats_of_a_runtime_are_figures(runtime):
    stats = runtime.stats()
    assert stats["epoch"] >= 2 and {"object_table", "allocator", "recovery"} <= set(stats)


def test_the_version_is_that_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{xtree.__version__}"\n' in text


def test_everything_at_once_ends_in_a_clean_close(tmp_path, random):
    """Threads make all kinds of calls until the runtime is closed; what was committed is whole."""
    names = ["a", "b", "c"]
    config = xtree.Config(checkpoint_log_bytes=256 << 10, window_bytes=1 << 20, wal_fill_bytes=64 << 10)
    runtime = xtree.Runtime(tmp_path / "index", config=config)
    enough = threading.Semaphore(0)
    odd: list = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while True:
                act(runtime, str(rng.choice(names)), int(rng.integers(8)), rng)
                enough.release()
        except xtree.ClosedError:
            if not runtime.closed:
                odd.append("closed early")
        except BaseException as error:
            odd.append(error)

    threads = [threading.Thread(target=work, args=(int(seed),)) for seed in random.integers(0, 2**32, 5)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        assert enough.acquire(timeout=60)
    runtime.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert odd == []
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.check()
        assert set(runtime.trees()) <= set(names)


def act(runtime: xtree.Runtime, name: str, choice: int, rng: np.random.Generator) -> None:
    """Makes one call that a thread may make. Only the runtime's ClosedError comes out."""
    try:
        tree = runtime.tree(name, dims=2)
        if choice == 0:
            tree.insert_many(np.arange(40), rng.random((40, 2)))
        elif choice == 1:
            with tree.snapshot() as snapshot:
                assert len(snapshot) == len(snapshot.items()[0]) == snapshot.count([-1, -1, 2, 2])
                snapshot.check()
        elif choice == 2:
            with tree.transaction(timeout=0.01) as tx:
                tx.insert(1, rng.random(2))
                tx.delete_many(*tx.items())
                tx.bulk_load(np.arange(30), rng.random((30, 2)))
        elif choice == 3:
            with runtime.transaction(trees=["b", "a"]) as tx:
                tx.tree("a").insert(1, [0.5, 0.5])
                tx.tree(name).insert(2, [0.5, 0.5])
        elif choice == 4:
            ids, boxes = tree.items()
            tree.delete_many(ids[::2], boxes[::2])
        elif choice == 5 and rng.random() < 0.2:
            runtime.drop(name)
        elif choice == 6 and rng.random() < 0.2:
            runtime.checkpoint()
        else:
            assert tree.nearest([0.5, 0.5], k=3).shape <= (3,)
    except (TimeoutError, KeyError, xtree.TransactionError) as error:
        assert error.args  # another thread had the tree, or has dropped it
    except xtree.ClosedError:
        if runtime.closed:
            raise


def test_a_second_close_waits_for_the_first_and_then_the_lock_is_free(tmp_path):
    path = tmp_path / "index"
    runtime = xtree.Runtime(path)
    runtime.tree("a", dims=2).insert(1, UNIT)
    inside, go_on, outcome = threading.Event(), threading.Event(), []

    def hook(point):
        if point == "close.trimmed":
            inside.set()
            go_on.wait(30)

    def second():
        runtime.close()
        try:
            with xtree.Runtime(path) as again:
                outcome.append(len(again.tree("a")))
        except xtree.LockedError as error:
            outcome.append(error)

    first, other = threading.Thread(target=runtime.close), threading.Thread(target=second)
    set_hook(hook)
    try:
        first.start()
        assert inside.wait(30)
        other.start()
        other.join(0.1)
        go_on.set()
    finally:
        go_on.set()
        set_hook(None)
    first.join(30)
    other.join(30)
    assert outcome == [1]


def test_a_close_that_fails_lets_the_second_one_go_on(tmp_path, monkeypatch):
    runtime = xtree.Runtime(tmp_path / "index")
    runtime.tree("a", dims=2).insert(1, UNIT)

    def fail(point):
        if point == "checkpoint.copied":
            raise OSError(5, "a disk that is gone")

    set_hook(fail)
    try:
        with pytest.raises(OSError, match="gone"):
            runtime.close()
    finally:
        set_hook(None)
    thread = threading.Thread(target=runtime.close)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and runtime.closed
    with xtree.Runtime(tmp_path / "index") as again:
        assert len(again.tree("a")) == 1


def test_notebooks_show_runtimes_and_snapshots(runtime, tmp_path):
    tree = runtime.tree("cities")
    tree.insert(1, UNIT)
    shown = runtime._repr_html_()
    assert "Runtime" in shown and "2: cities, roads" in shown and "balanced" in shown
    with tree.snapshot() as snapshot:
        tree.insert(2, UNIT)
        assert "Snapshot" in snapshot._repr_html_() and "<th>records</th><td>1</td>" in snapshot._repr_html_()
        assert str(snapshot.epoch) in snapshot._repr_html_()
    assert "closed" in snapshot._repr_html_() and "closed" not in shown
    with xtree.Runtime(tmp_path / "<b>") as odd:
        assert "<b>" not in odd._repr_html_() and "&lt;b&gt;" in odd._repr_html_() and "none" in odd._repr_html_()
    assert "closed" in odd._repr_html_()
