"""Pickles and copies: trees are sent to other processes, and arrive as they were or not at all.

Promises (One writer, many readers):

- trees, snapshots and runtimes arrive in other processes as they were, or say why not:
  all of it.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.handles import BOX
from support.stack_writer import StackState

import xtree
from xtree.persistence.files.platform_fs import FileSystem

ROWS = np.random.default_rng(1).random((3000, 2))
WAYS = {"pickle": lambda it: pickle.loads(pickle.dumps(it)), "deepcopy": copy.deepcopy, "copy": copy.copy}


class Named(xtree.XTree):
    """A subclass of a user's."""

    def __init__(self, dims: int, label: str) -> None:
        super().__init__(dims)
        self.label = label


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "index"
    with xtree.Runtime(path) as runtime:
        runtime.tree("default", 2).insert(1, BOX)
        runtime.tree("roads", 3).insert(2, [0, 0, 0])
    return path


def records(tree: xtree.XTree) -> list[object]:
    """All records, sorted."""
    ids, boxes = tree.items()
    return sorted(zip(ids.tolist(), map(tuple, boxes.tolist())))


def elsewhere(it: object, code: str) -> str:
    """What another process prints last when it unpickles `it` and runs code on it."""
    program = f"import pickle, sys, xtree\nit = pickle.load(sys.stdin.buffer)\n{code}"
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(it), capture_output=True)
    return (done.stdout or done.stderr).decode().strip().split("\n")[-1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_tree_in_memory_arrives_with_its_records_and_parameters(way, protocol):
    tree = xtree.XTree.from_points(ROWS, config=xtree.Config(leaf_fill=0.9, page_bytes=4096))
    tree.insert(5, [0.5, 0.5, 0.7, 0.9])
    tree.insert(5, [0.5, 0.5, 0.7, 0.9])
    made = pickle.loads(pickle.dumps(tree, protocol)) if way == "pickle" else WAYS[way](tree)
    assert records(made) == records(tree) and type(made) is xtree.XTree
    parameters = made._read(lambda store, state: state.parameters)
    assert parameters == tree._read(lambda store, state: state.parameters) and parameters["leaf_fill"] == 0.9
    made.check()
    made.insert(7, BOX)
    assert len(made) == len(tree) + 1
    made.close()
    assert not tree.closed


@pytest.mark.parametrize("dims", [1, 2, 64])
def test_an_empty_tree_arrives_empty(dims):
    made = pickle.loads(pickle.dumps(xtree.XTree(dims)))
    assert (len(made), made.dims) == (0, dims)
    made.insert(1, [0.0] * dims)


@pytest.mark.parametrize("way", WAYS)
def test_a_users_own_kind_of_tree_stays_one_with_what_it_has(way):
    tree = Named(2, "roads")
    tree.insert(1, BOX)
    made = WAYS[way](tree)
    assert type(made) is Named and made.label == "roads" and len(made) == 1
    made.insert(2, BOX)
    assert len(tree) == 1


def test_a_tree_made_anew_with_other_dims_is_not_taken_for_the_one_pickled(path):
    with xtree.Runtime(path) as runtime:
        sent = pickle.dumps(runtime.tree("roads"))
        runtime.drop("roads")
        runtime.tree("roads", 2)
    made = pickle.loads(sent)
    with pytest.raises(xtree.ClosedError, match="dropped, and made anew with 2"):
        made.count([0, 0, 0])
    made.runtime.close()


def test_inside_a_transaction_it_is_the_last_commit():
    tree = xtree.XTree.from_points(ROWS)
    with tree.transaction() as tx:
        tx.insert(1, BOX)
        assert len(pickle.loads(pickle.dumps(tree))) == 3000
        with pytest.raises(TypeError, match="Transaction can't be pickled"):
            pickle.dumps(tx)


def test_a_snapshot_of_a_tree_in_memory_arrives_as_a_tree_of_its_records():
    tree = xtree.XTree.from_points(ROWS)
    with tree.snapshot() as snapshot:
        tree.delete_many(np.arange(3000), ROWS)
        made = pickle.loads(pickle.dumps(snapshot))
        assert isinstance(made, xtree.XTree) and records(made) == records(snapshot) and len(made) == 3000
        assert records(copy.deepcopy(snapshot)) == records(snapshot)


@pytest.mark.parametrize("way", WAYS)
def test_a_durable_tree_is_another_handle_to_read_in_its_own_process(way, path):
    with xtree.open(path) as tree, WAYS[way](tree) as made:
        assert made is not tree and made.runtime is not tree.runtime
        tree.insert(3, BOX)
        assert records(made) == records(tree) and len(made) == 2
        with pytest.raises(xtree.ReadOnlyError):
            made.insert(4, BOX)
        made.close()
        assert made.closed and made.runtime.closed and not tree.closed


def test_a_durable_tree_arrives_by_its_path_and_reads_the_newest_commit(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with xtree.open("index") as tree:
        sent = pickle.dumps(tree)
        tree.insert(3, BOX)
    arrived = "print(len(it), it.runtime.path, it.name)"
    assert elsewhere(pickle.loads(sent), arrived) == f"2 {path} default"
    with xtree.Runtime(path, mode="r") as runtime:
        assert elsewhere(runtime.tree("roads"), "print(it.name, it.query([0, 0, 0]), it.runtime.trees())") == (
            "roads [2] ['default', 'roads']"
        )
        assert elsewhere(runtime, "print(it.trees(), it)") == (
            f"['default', 'roads'] Runtime({str(path)!r}, mode='r', trees=2)"
        )


def test_beside_a_writer_it_says_why_it_cannot_be_opened(path):
    with xtree.open(path) as tree:
        said = elsewhere(tree, "len(it)")
        assert "LockedError" in said and "no other process writes to it" in said and str(os.getpid()) in said


def test_another_index_an_older_copy_or_none_at_its_path_is_told(path, tmp_path):
    shutil.copytree(path, tmp_path / "copy")
    with xtree.open(path) as tree:
        tree.insert(3, BOX)
        sent = pickle.dumps(tree)
    shutil.rmtree(path)
    made = pickle.loads(sent)
    with pytest.raises(FileNotFoundError):
        len(made)
    xtree.open(path, dims=2).close()
    with pytest.raises(ValueError, match="found another one in its place"):
        made.query(BOX)
    assert made.closed
    shutil.rmtree(path)
    (tmp_path / "copy").rename(path)
    with pytest.raises(ValueError, match="an older copy of the index"):
        pickle.loads(sent).snapshot()
    with xtree.open(path) as tree:  # none of the handles above has it open
        assert len(tree) == 1


def test_a_snapshot_of_a_durable_tree_arrives_at_its_epoch_or_not_at_all(path):
    with xtree.open(path) as tree, tree.snapshot() as snapshot:
        made = pickle.loads(pickle.dumps(snapshot))
        assert isinstance(made, xtree.Snapshot) and made.epoch == snapshot.epoch and records(made) == records(snapshot)
        tree.insert(3, BOX)
        assert len(made) == 1
        sent = pickle.dumps(snapshot)
        late = pickle.loads(sent)
        assert str(snapshot.epoch) in repr(late) and "epoch" in late._repr_html_()
        with pytest.raises(ValueError, match=f"of epoch {snapshot.epoch}, which is gone: .* is at {tree.epoch}"):
            len(late)
        with pytest.raises(xtree.ClosedError):
            len(late)
        made.close()
    with pytest.raises(xtree.ClosedError):
        pickle.dumps(snapshot)


def test_what_belongs_to_its_process_is_refused(path):
    with xtree.Runtime(path) as runtime:
        several = runtime.transaction(trees=["default"])
        with several as tx:
            for it in (tx, tx.tree("default"), runtime.tree("default").transaction()):
                for way in WAYS.values():
                    with pytest.raises(TypeError, match="can't be pickled"):
                        way(it)
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(runtime.structure("stack", StackState))
    for closed in (runtime, runtime.transaction):
        with pytest.raises(xtree.ClosedError):
            pickle.dumps(closed)


def test_a_closed_tree_is_refused(path):
    memory, durable = xtree.XTree(2), xtree.open(path)
    for tree in (memory, durable):
        tree.close()
        with pytest.raises(xtree.ClosedError):
            pickle.dumps(tree)


def count_in(tree: xtree.XTree, window: list[float]) -> int:
    return tree.count(window)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_of_every_kind_take_trees(method, path):
    memory = xtree.XTree.from_points(ROWS)
    with xtree.open(path, mode="r") as durable, multiprocessing.get_context(method).Pool(2) as pool:
        asked = [(memory, [0, 0, 0.5, 0.5]), (durable, BOX), (memory.snapshot(), BOX)]
        assert pool.starmap(count_in, asked) == [memory.count([0, 0, 0.5, 0.5]), 1, 3000]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_pool_is_told_why_a_tree_cannot_be_opened_there_and_goes_on(method, path):
    with xtree.open(path) as tree, multiprocessing.get_context(method).Pool(1) as pool:
        for asked in (tree, tree.snapshot()):
            with pytest.raises(xtree.LockedError, match=f"no other process writes to it.*process {os.getpid()}"):
                pool.apply_async(count_in, (asked, BOX)).get(60)
        with pytest.raises(xtree.LockedError):
            pool.apply_async(trees_of, (tree.runtime,)).get(60)
        assert pool.apply_async(count_in, (xtree.XTree.from_points(ROWS), BOX)).get(60) == 3000


def test_a_worker_may_hand_a_durable_tree_back(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        made = pool.apply_async(built_in_worker, (str(tmp_path / "index"),)).get(60)
    with made:
        assert len(made) == 3000 and made.runtime.trees() == ["default"]


def test_an_executor_is_told_too(path):
    with xtree.open(path) as tree, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        with pytest.raises(xtree.LockedError):
            executor.submit(count_in, tree, BOX).result(60)
        assert executor.submit(count_in, xtree.XTree.from_points(ROWS), BOX).result(60) == 3000


def test_one_that_arrives_is_shown_closed_and_dropped_like_any_other(path):
    with xtree.Runtime(path) as runtime:
        sent = pickle.dumps([runtime, runtime.tree("default"), runtime.tree("default").snapshot()])
        for it in pickle.loads(sent):
            assert "closed" not in repr(it) and it._repr_html_()
            it.close()
            assert "closed" in repr(it)
        made, tree, snapshot = pickle.loads(sent)
        assert not made.closed and not tree.closed and tree.name == "default" and tree.runtime.path == str(path)
        for use in (lambda: tree.insert(1, BOX), lambda: made.tree("new", 2), made.checkpoint):
            with pytest.raises(xtree.ReadOnlyError, match="was pickled"):
                use()
        assert len(snapshot) == len(tree) == 1 and made.trees() == ["default", "roads"]
        assert made.tree("default") is made.tree("default")
        tree.label = "kept"
        assert copy.copy(tree).label == "kept"
        runtime.drop("default")
        for use in (lambda: tree.count(BOX), lambda: len(tree)):
            with pytest.raises(xtree.ClosedError, match="dropped"):
                use()
        assert tree.closed and len(snapshot) == 1


def test_a_snapshot_that_came_too_late_keeps_nothing_open(path):
    with xtree.Runtime(path) as runtime:
        sent = pickle.dumps(runtime.tree("roads").snapshot())
        runtime.tree("default").insert(2, BOX)
    late = pickle.loads(sent)
    with pytest.raises(ValueError, match="which is gone"):
        len(late)
    _, lock = FileSystem().lock_directory(path, shared=False)
    lock.release()


def built_in_worker(path: str) -> xtree.XTree:
    global built
    built = xtree.XTree.from_points(ROWS, path=path)
    return built


def trees_of(runtime: xtree.Runtime) -> list[str]:
    return runtime.trees()


def test_joblib_takes_trees(path):
    joblib = pytest.importorskip("joblib")
    memory = xtree.XTree.from_points(ROWS)
    with xtree.open(path, mode="r") as durable:
        for backend in ("loky", "threading"):
            work = (joblib.delayed(count_in)(tree, BOX) for tree in (memory, durable))
            assert joblib.Parallel(n_jobs=2, backend=backend)(work) == [3000, 1]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_takes_trees(scheduler, path):
    dask = pytest.importorskip("dask")
    memory = xtree.XTree.from_points(ROWS)
    with xtree.open(path, mode="r") as durable:
        work = [dask.delayed(count_in)(tree, BOX) for tree in (memory, durable)]
        work.append(dask.delayed(lambda window: memory.count(window))(BOX))
        assert dask.compute(*work, scheduler=scheduler, num_workers=2) == (3000, 1, 3000)


def test_cloudpickle_takes_a_closure_over_a_tree():
    cloudpickle = pytest.importorskip("cloudpickle")
    tree = xtree.XTree.from_points(ROWS)
    assert pickle.loads(cloudpickle.dumps(lambda window: tree.count(window)))(BOX) == 3000
