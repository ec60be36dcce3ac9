"""Several handles of one process on one directory share one store, whatever they do to each other.

Promises (One writer, many readers):

- handles of one process share a store; the last to close closes it; each has a mode, transactions and snapshots of
  its own:
  test_opening_a_directory_once_more_gives_another_handle_on_the_same_store,
  test_the_last_handle_to_close_closes_the_store,
  test_closing_a_handle_ends_its_own_transactions_and_lets_others_write,
  test_closing_a_handle_lets_its_snapshots_go_and_keeps_those_of_others.
- handles that read move to a store that writes, their snapshots stay, and hold nothing back once closed; another
  process in between is noticed:
  test_handles_that_read_move_to_a_store_that_writes_and_their_snapshots_stay,
  test_a_reader_after_a_crash_becomes_a_writer_with_every_commit,
  test_a_store_that_only_read_is_closed_with_its_last_snapshot_and_holds_nothing_back,
  test_sharing_races.py::test_another_process_that_wrote_in_between_is_noticed.
- a failed or moved index is opened anew by opening it once more, a replaced one is another:
  test_a_store_that_failed_is_opened_anew_by_opening_it_once_more,
  test_an_index_that_was_moved_is_opened_at_its_new_place, test_a_directory_removed_and_made_again_is_a_new_store.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from support.handles import BOX, elsewhere, make

import xtree
from xtree.persistence import sharing
from xtree.persistence.session import share_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "index")


def test_opening_a_directory_once_more_gives_another_handle_on_the_same_store(path):
    with xtree.open(path) as one, xtree.open(path) as other:
        assert one is not other and one.runtime is not other.runtime
        one.insert(2, BOX)
        assert sorted(other.query(BOX)) == [1, 2]
        other.delete(1, BOX)
        assert one.query(BOX) == [2]
    assert elsewhere(path) == "1"


def test_a_cell_may_be_run_twice_and_a_forgotten_handle_opened_again(path):
    kept = []  # as a notebook does
    for i in range(5):
        tree = xtree.open(path, dims=2)
        tree.insert(10 + i, BOX)
        kept.append(tree)
        del tree
    assert len(xtree.open(path)) == 6
    kept.clear()
    gc.collect()
    assert elsewhere(path) == "6"


@pytest.mark.filterwarnings("default")  # the notebook machinery has warnings of its own
def test_cells_of_a_real_notebook_may_be_run_twice_and_tree_deleted_and_opened_again(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    opened = "tree = xtree.open('places.xtree', dims=2)\ntree.insert(1, (0, 0, 1, 1))\ntree"
    cells = [
        "import xtree, os, multiprocessing", opened, opened, "del tree", opened, "_ , __",
        "with xtree.Runtime('places.xtree') as runtime:\n    print(runtime.tree('default'))",
        "memory = xtree.XTree.from_points([[0, 0], [1, 1]])\n"
        "def count(window):\n    return memory.count(window)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n    print(pool.map(count, [[0, 0, 1, 1]] * 4))",
        "print('in the end', len(tree))",
    ]  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
    assert "in the end 3" in text and "[2, 2, 2, 2]" in text and "records=3" in text
    assert elsewhere(tmp_path / "places.xtree") == "3"


def test_the_last_handle_to_close_closes_the_store(path):
    handles = [xtree.open(path), xtree.Runtime(path), xtree.open(path, mode="r"), xtree.open(path)]
    for handle in handles[:-1]:
        handle.close()
        assert handle.closed and "in use by process" in elsewhere(path)
    handles[-1].insert(2, BOX)
    handles[-1].close()
    assert elsewhere(path) == "2"
    for handle in handles:
        handle.close()


def test_a_closed_handle_is_closed_though_others_go_on(path):
    one, other = xtree.open(path), xtree.open(path)
    snapshot = one.snapshot()
    one.close()
    runtime = one.runtime
    for use in (
        lambda: len(one), lambda: one.insert(2, BOX), one.snapshot, lambda: one.count(BOX), one.check, one.stats,
        lambda: one.query([BOX]), lambda: one.nearest([0, 0]), lambda: one.join(other), lambda: other.join(one),
        lambda: snapshot.count(BOX), runtime.trees, runtime.stats, runtime.checkpoint, runtime.check, runtime.__enter__,
        lambda: runtime.tree("default"), lambda: one.transaction().__enter__(),
        lambda: runtime.transaction().__enter__(), lambda: runtime.drop("default"),
    ):  # fmt: skip
        with pytest.raises(xtree.ClosedError):
            use()
    assert "closed" in repr(one) and "closed" in repr(runtime) and "closed" in repr(snapshot)
    third = xtree.Runtime(path)
    tree = third.tree("default")
    third.close()
    for use in (lambda: tree.epoch, tree.__enter__, lambda: len(tree), tree.check, tree.transaction().__enter__):
        with pytest.raises(xtree.ClosedError):
            use()
    assert tree.closed
    assert len(other) == 1 and not other.closed
    other.close()


def test_closing_a_handle_ends_its_own_transactions_and_lets_others_write(path):
    one, other = xtree.open(path), xtree.open(path)
    with pytest.raises(xtree.ClosedError, match="closed"), one.transaction() as tx:
        tx.insert(2, BOX)
        one.close()
        with pytest.raises(xtree.ClosedError):
            tx.insert(3, BOX)
        other.insert(4, BOX)
    assert tx.status == "aborted" and sorted(other.query(BOX)) == [1, 4]
    with pytest.raises(xtree.ClosedError), xtree.Runtime(path) as third, third.transaction(["default"]) as several:
        several.tree("default").insert(5, BOX)
        third.close()
    with other.transaction() as mine:
        xtree.open(path).close()
        mine.insert(6, BOX)
    assert sorted(other.query(BOX)) == [1, 4, 6]
    other.close()


def test_closing_a_handle_lets_its_snapshots_go_and_keeps_those_of_others(path):
    one, other = xtree.open(path), xtree.open(path)
    mine, its = one.snapshot(), other.snapshot()
    other.insert(2, BOX)
    assert other.runtime.stats()["epochs"]["pins"] == 2
    one.close()
    assert other.runtime.stats()["epochs"]["pins"] == 1
    with pytest.raises(xtree.ClosedError):
        mine.count(BOX)
    assert its.count(BOX) == 1
    other.close()
    with pytest.raises(xtree.ClosedError):
        its.count(BOX)


def test_a_running_write_of_a_handle_that_is_closed_changes_nothing_and_says_so(path):
    one, other = xtree.open(path), xtree.open(path)
    rows = np.random.default_rng(1).random((100_000, 2))
    with pytest.raises(xtree.ClosedError):
        one.bulk_load(np.arange(100_000), rows, lambda done, total: one.close())
    assert one.closed and len(other) == 1
    other.insert(2, BOX)
    other.check()
    other.close()


def test_a_running_query_of_a_handle_that_is_closed_is_answered(path):
    with xtree.open(path) as other:
        other.bulk_load(np.arange(2, 200_000), np.random.default_rng(1).random((199_998, 2)))
        one = xtree.open(path)
        windows = np.tile(BOX, (60, 1))
        answers = []
        thread = threading.Thread(target=lambda: answers.append(one.count(windows)))
        thread.start()
        one.close()
        thread.join()
        assert not answers or (answers[0] == 199_999).all()


def test_a_write_through_a_second_handle_inside_a_transaction_of_the_thread_is_refused(path):
    with xtree.open(path) as one, xtree.open(path) as other, one.transaction() as tx:
        tx.insert(2, BOX)
        with pytest.raises(xtree.TransactionError, match="this thread is in a transaction"):
            other.insert(3, BOX)
        with pytest.raises(xtree.TransactionError), other.runtime.transaction(trees=["default"]):
            pass
        assert len(other) == 1


def test_writers_of_several_handles_take_turns(path):
    handles = [xtree.open(path) for _ in range(4)]

    def work(tree):
        for _ in range(50):
            with tree.transaction() as tx:
                tx.insert(len(tx) + 100, BOX)

    threads = [threading.Thread(target=work, args=(tree,)) for tree in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(handles[0].query(BOX)) == [1, *range(101, 301)]
    for tree in handles:
        tree.close()


def test_trees_of_two_handles_are_joined_at_one_epoch(path):
    with xtree.open(path) as one, xtree.open(path) as other:
        assert one.join(other).tolist() == [[1], [1]]
        assert one._session.current() is other._session.current()


def test_a_handle_to_read_beside_a_writer_reads_and_never_writes(path):
    with xtree.open(path) as writer, xtree.open(path, mode="r") as reader:
        writer.insert(2, BOX)
        assert len(reader) == 2 and "mode='r'" in repr(reader) and "mode='r'" not in repr(writer)
        calls = (
            lambda: reader.insert(3, BOX), lambda: reader.delete(1, BOX), reader.runtime.checkpoint,
            lambda: reader.runtime.tree("new", 2), lambda: reader.runtime.drop("default"),
            lambda: reader.transaction().__enter__(),
        )  # fmt: skip
        for call in calls:
            with pytest.raises(xtree.ReadOnlyError, match="mode='r'"):
                call()
        with pytest.raises(ValueError, match="there is no tree 'new', only 'default'$"):
            reader.runtime.tree("new")


def test_handles_that_read_move_to_a_store_that_writes_and_their_snapshots_stay(path):
    reader, other = xtree.open(path, mode="r"), xtree.open(path, mode="r")
    assert len(reader) == 1
    with reader.snapshot() as before, reader.runtime.tree("default").snapshot() as too:
        writer = xtree.open(path)
        assert reader._session.current() is other._session.current() is writer._session.current()
        for i in range(300):
            writer.insert(10 + i, [i, i, i + 1, i + 1])
        writer.delete(1, BOX)
        writer.runtime.checkpoint()
        assert len(reader) == len(other) == 300 and reader.count(BOX) == writer.count(BOX)
        assert before.query(BOX).tolist() == too.query(BOX).tolist() == [1]
        before.check()
    for handle in (reader, other):
        with pytest.raises(xtree.ReadOnlyError):
            handle.insert(1, BOX)
    writer.check()
    writer.close()
    assert "in use" in elsewhere(path)  # the readers have it
    reader.close()
    other.close()
    assert elsewhere(path) == "300"


def test_a_store_that_only_read_is_closed_with_its_last_snapshot_and_holds_nothing_back(path):
    reader = xtree.open(path, mode="r")
    former = weakref.ref(reader._store)
    snapshot = reader.snapshot()
    with xtree.open(path) as writer:
        writer.update(1, BOX, [5, 5, 6, 6])
        assert former().state == "open" and snapshot.count(BOX) == 1
        assert writer.runtime.stats()["epochs"]["pins"] == 1
        snapshot.close()
        assert former() is None or former().state == "closed"
        assert writer.runtime.stats()["epochs"]["pins"] == 0
        del snapshot
        gc.collect()
        assert former() is None
        assert len(reader) == 1
    reader.close()


def test_a_reader_after_a_crash_becomes_a_writer_with_every_commit(tmp_path):
    path = tmp_path / "index"
    child = os.fork()
    if not child:
        tree = xtree.open(path, dims=2)
        for i in range(500):
            tree.insert(i, [i, i, i + 1, i + 1])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    reader = xtree.open(path, mode="r")
    snapshot = reader.snapshot()
    assert len(reader) == 500
    with xtree.open(path) as writer:
        writer.insert_many(np.arange(500, 1000), np.random.default_rng(1).random((500, 2)))
        assert len(writer) == len(reader) == 1000 and len(snapshot) == 500
        snapshot.check()
        assert sorted(snapshot.query([0, 0, 500, 500])) == list(range(500))
        writer.check()
    reader.close()
    assert elsewhere(path) == "1000"


def test_config_and_durability_are_those_in_force_or_not_given(path):
    with xtree.open(path, durability="eventual", config=xtree.Config(slow_reader_s=5)) as tree:
        for given in ({}, {"durability": "eventual"}, {"config": xtree.Config(slow_reader_s=5, durability="eventual")}):
            with xtree.open(path, **given) as other:
                assert other.runtime.stats()["durability"] == "eventual"
        with xtree.open(path, config=xtree.Config(slow_reader_s=5, durability="eventual", window_bytes=1 << 20)):
            pass  # settings fixed at creation aren't compared
        for given, named in (
            ({"durability": "strict"}, "durability='eventual', not 'strict'"),
            ({"config": xtree.Config(slow_reader_s=5)}, "durability='eventual', not 'balanced'"),
            ({"config": xtree.Config(), "durability": "eventual"}, "slow_reader_s=5.0, not 60.0"),
            ({"config": xtree.Config(leaf_fill=0.9), "durability": "eventual", "mode": "r"}, "slow_reader_s"),
        ):
            with pytest.raises(ValueError, match=named):
                xtree.open(path, **given)
        assert len(tree) == 1
    readers = [xtree.open(path, mode="r"), xtree.open(path, mode="r", durability="strict")]
    with xtree.open(path, durability="eventual") as writer:  # the first handle that writes sets them
        assert writer.runtime.stats()["durability"] == "eventual"
        with pytest.raises(ValueError, match="durability"):
            xtree.open(path, durability="strict", mode="r")
    for reader in readers:
        reader.close()


def test_new_trees_of_any_handle_get_the_parameters_in_force(tmp_path):
    with xtree.Runtime(tmp_path / "a", config=xtree.Config(leaf_fill=0.9)) as one, xtree.Runtime(tmp_path / "a") as two:
        made = two.tree("made", 2)
        assert made._read(lambda store, state: state.parameters)["leaf_fill"] == 0.9
        assert one.tree("made") is not made and one.tree("made") is one.tree("made") and two.tree("made") is made


def test_modes_mean_what_they_say_while_it_is_open(path):
    with xtree.open(path):
        with pytest.raises(FileExistsError):
            xtree.open(path, mode="x", dims=2)
        with pytest.raises(FileExistsError):
            xtree.XTree.from_boxes([BOX], path=path)
        with pytest.raises(xtree.DimensionError):
            xtree.open(path, dims=3)
        for mode in ("r", "r+", "a"):
            xtree.open(path, mode=mode).close()
        assert "in use" in elsewhere(path)
    assert elsewhere(path) == "1"


def test_a_tree_dropped_through_one_handle_is_gone_for_the_other(path):
    with xtree.Runtime(path) as one, xtree.Runtime(path) as other:
        mine, its = one.tree("default"), other.tree("default")
        one.drop("default")
        for tree in (mine, its):
            assert tree.closed
            with pytest.raises(xtree.ClosedError, match="dropped"):
                len(tree)
        again = other.tree("default", 3)
        assert one.tree("default").dims == 3 and one.tree("default") is not again


def test_a_directory_removed_and_made_again_is_a_new_store(path):
    old = xtree.open(path)
    assert old.query(BOX) == [1]
    shutil.rmtree(path)
    new = xtree.open(path, dims=2)
    new.insert(9, BOX)
    assert old.query(BOX) == [1] and new.query(BOX) == [9]
    with pytest.raises(xtree.StoreFailedError, match="another index was put in its place"):
        old.insert(2, BOX)
    with contextlib.suppress(xtree.StoreFailedError):
        old.close()
    new.close()
    assert elsewhere(path) == "1"


def test_an_index_that_was_moved_is_opened_at_its_new_place(path, tmp_path):
    old = xtree.open(path)
    path.rename(tmp_path / "moved")
    with xtree.open(tmp_path / "moved") as new:
        new.insert(2, BOX)
        with pytest.raises(xtree.ClosedError):
            old.insert(3, BOX)
    assert elsewhere(tmp_path / "moved") == "2"


def test_links_and_relative_paths_lead_to_the_same_store(path, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    with xtree.open(path) as one, xtree.open("index") as two, xtree.open(tmp_path / "link") as three:
        one.insert(2, BOX)
        assert len(two) == len(three) == 2
        assert one.runtime.path == two.runtime.path == three.runtime.path
        with xtree.open(b"index") as four:
            assert len(four) == 2


def test_a_store_that_failed_is_opened_anew_by_opening_it_once_more(path):
    failed = xtree.open(path)
    reader = xtree.open(path, mode="r")

    def fail(point):
        if point == "commit.before_append":
            raise OSError(5, "gone")

    store = failed._store
    store.poison()
    with pytest.raises(xtree.StoreFailedError):
        failed.insert(2, BOX)
    assert len(reader) == 1
    with xtree.open(path) as again:
        again.insert(2, BOX)
        assert len(again) == 2
        for handle in (failed, reader):
            with pytest.raises(xtree.ClosedError):
                len(handle)
    assert elsewhere(path) == "2"


def test_what_is_registered_to_run_at_the_end_of_the_process_finds_its_tree_open(path):
    code = """
import atexit, sys, xtree
atexit.register(lambda: tree.insert(2, [0, 0, 1, 1]))
tree = xtree.open(sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert elsewhere(path) == "2"


def test_a_failed_fill_removes_a_new_index_only_if_nobody_else_uses_it(tmp_path):
    path = tmp_path / "index"
    others = []

    def join_and_fail(done, total):
        others.append(xtree.open(path))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        xtree.XTree.from_points(np.random.default_rng(1).random((50_000, 2)), path=path, progress=join_and_fail)
    others[0].insert(1, BOX)
    others[0].close()
    assert elsewhere(path) == "1"
    with pytest.raises(xtree.DimensionError):
        xtree.open(path, dims=5)
    assert elsewhere(path) == "1"


def test_failures_in_the_background_are_told_to_every_handle_that_asked(path):
    told = []

    def failing(error):
        told.append("first")
        raise RuntimeError("a callback's own")

    with xtree.open(path, on_error=failing) as one, xtree.open(path), xtree.open(path, on_error=told.append):
        share = one._session.share
        with pytest.raises(RuntimeError):
            share.report(OSError(5, "gone"))
    assert len(told) == 2 and "first" in told


def test_closed_handles_keep_no_store(path):
    one, other = xtree.open(path), xtree.open(path)
    transaction, snapshot = one.transaction(), one.snapshot()
    transaction.__enter__()
    store = weakref.ref(other._store)
    one.close()
    other.close()
    del other
    gc.collect()
    assert store() is None or store().state == "closed"
    assert share_of(sharing.FileSystem().lock_identity(str(path))) is None
    assert one.closed and snapshot is not None and transaction.status == "aborted"


def test_handles_that_come_and_go_leave_nothing_behind(path):
    with xtree.open(path) as tree:
        session = tree._session
        for _ in range(200):
            with xtree.open(path) as other, other.snapshot() as snapshot, other.transaction() as tx:
                assert snapshot.count(BOX) == tx.count(BOX) == 1
            tree.snapshot()
            forgotten = tree.transaction()
            forgotten.__enter__()
            del forgotten
        gc.collect()
        assert tree.runtime.stats()["epochs"]["pins"] == 0
        assert len(gc.get_referents(session)) < 20
        assert tree.runtime.stats()["object_table"]["reserved"] == 0


def test_a_copy_with_linked_files_is_not_taken_for_the_original(path, tmp_path):
    shutil.copytree(path, tmp_path / "copy", copy_function=os.link)
    with xtree.open(path) as tree:
        for mode in ("a", "r", "x"):
            with pytest.raises(xtree.LockedError, match="its lock file is a link to that of"):
                xtree.open(tmp_path / "copy", mode=mode, dims=2)
        tree.insert(2, BOX)


def test_a_failed_store_is_still_read_by_who_opens_it_to_read(path):
    failed = xtree.open(path)
    failed._store.poison()
    with copy.copy(failed) as other:
        assert len(other) == 1 and not failed.closed
        with pytest.raises(FileExistsError):
            xtree.open(path, mode="x", dims=2)
        assert len(failed) == 1
    failed.close()


def test_closing_a_tree_of_a_runtime_ends_its_own_transactions_and_snapshots(path):
    with xtree.Runtime(path) as runtime:
        tree, other = runtime.tree("default"), runtime.tree("other", 2)
        mine, its, snapshot = tree.transaction(), other.transaction(), tree.snapshot()
        for tx in (mine, its):
            tx.__enter__()
            tx.insert(5, BOX)
        tree.close()
        assert mine.status == "aborted" and runtime.stats()["epochs"]["pins"] == 1
        with pytest.raises(xtree.ClosedError):
            mine.__exit__(None, None, None)
        with pytest.raises(xtree.ClosedError):
            snapshot.count(BOX)
        runtime.tree("default").insert(6, BOX)
        its.__exit__(None, None, None)
        assert len(other) == 1 and len(runtime.tree("default")) == 2
