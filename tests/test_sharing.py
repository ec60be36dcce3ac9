"""Several handles of one process on one directory: one store, however many open it, and whatever they do to each other.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import linecache
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import xtree
from xtree.persistence import sharing
from xtree.persistence.crash_points import set_hook
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.session import share_of

BOX = [0.0, 0.0, 1.0, 1.0]
SOURCES = str(Path(xtree.__file__).parent)

in_another_process = """
import sys, xtree
try:
    with xtree.open(sys.argv[1], mode=sys.argv[2]) as tree:
        print(len(tree))
except xtree.LockedError as error:
    print(error)
"""


def elsewhere(path: Path, mode: str = "a") -> str:
    """What another process says that opens the index."""
    command = [sys.executable, "-c", in_another_process, str(path), mode]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def another_reader(path: Path):
    """Another process has the index open to read."""
    code = "import sys, xtree\ntree = xtree.open(sys.argv[1], mode='r')\nprint('open', flush=True)\nsys.stdin.read()"
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None and reader.stdout.readline() == "open\n"
    try:
        yield
    finally:
        reader.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "index"
    with xtree.open(path, dims=2) as tree:
        tree.insert(1, BOX)
    return path


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


def test_queries_of_readers_go_on_while_a_writer_is_opened(path):
    with xtree.open(path) as tree:
        tree.insert_many(np.arange(2, 2000), np.random.default_rng(1).random((1998, 2)))
    for _ in range(10):
        reader, stop, wrong, counted = xtree.open(path, mode="r"), threading.Event(), [], []

        def ask(reader=reader, stop=stop, wrong=wrong, counted=counted):
            try:
                while not stop.is_set():
                    counted.append(reader.count(BOX))
                    counted.append(int(reader.count([BOX, BOX], threads=2)[0]))
                    with reader.snapshot() as snapshot:
                        counted.append(len(snapshot))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        with xtree.open(path) as writer:
            writer.update(1, BOX, BOX)
            stop.set()
            for thread in threads:
                thread.join()
        reader.close()
        assert not wrong and set(counted) == {1999}


def test_another_process_that_reads_keeps_a_writer_out_and_the_reader_goes_on(path):
    with xtree.open(path, mode="r") as reader:
        with another_reader(path):
            with pytest.raises(xtree.LockedError, match="another process that reads it: close it there, or give time"):
                xtree.open(path)
            with pytest.raises(xtree.LockedError):
                xtree.open(path, timeout=0.1)
            assert len(reader) == 1
        assert "in use" in elsewhere(path), "its lock is there still"
        with xtree.open(path, timeout=60) as writer:
            writer.insert(2, BOX)
            assert len(reader) == 2


def test_another_process_that_wrote_in_between_is_noticed(path, monkeypatch):
    make = xtree.persistence.lock_file.Lock.make_exclusive

    def late(lock):
        lock._unlocked = True
        xtree.persistence.lock_file._unlock(lock._fd)
        code = "import sys, xtree\nwith xtree.open(sys.argv[1]) as tree: tree.insert(7, [0, 0, 1, 1])"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        return make(lock)

    reader = xtree.open(path, mode="r")
    snapshot = reader.snapshot()
    monkeypatch.setattr(xtree.persistence.lock_file.Lock, "make_exclusive", late)
    with xtree.open(path) as writer:
        assert sorted(writer.query(BOX)) == [1, 7]
        with pytest.raises(xtree.ClosedError):
            snapshot.count(BOX)
    with pytest.raises(xtree.ClosedError):
        len(reader)


def test_config_and_durability_are_those_in_force_or_not_given(path):
    with xtree.open(path, durability="eventual", config=xtree.Config(slow_reader_s=5)) as tree:
        for given in ({}, {"durability": "eventual"}, {"config": xtree.Config(slow_reader_s=5, durability="eventual")}):
            with xtree.open(path, **given) as other:
                assert other.runtime.stats()["durability"] == "eventual"
        with xtree.open(path, config=xtree.Config(slow_reader_s=5, durability="eventual", window_bytes=1 << 20)):
            pass  # what was fixed at creation never counts
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
    with xtree.open(path, durability="eventual") as writer:  # the first that writes sets them
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
    store._poison()
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


def test_threads_that_open_a_directory_at_once_share_what_one_of_them_opens(tmp_path):
    for i in range(20):
        path, barrier, got = tmp_path / str(i), threading.Barrier(8), []

        def work(path=path, barrier=barrier, got=got):
            barrier.wait()
            with xtree.open(path, dims=2) as tree:
                tree.insert(1, BOX)
                got.append(len(tree))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(got) == 8 and elsewhere(path) == "8"
        if i == 4:
            break


def test_opening_waits_for_the_close_that_is_under_way(path):
    first = xtree.open(path)
    first.insert(2, BOX)
    inside, go_on, got = threading.Event(), threading.Event(), []

    def hook(point):
        if point == "close.trimmed":
            inside.set()
            go_on.wait(30)

    def again():
        with xtree.open(path) as tree:
            got.append(len(tree))

    closer, opener = threading.Thread(target=first.close), threading.Thread(target=again)
    set_hook(hook)
    try:
        closer.start()
        assert inside.wait(30)
        opener.start()
        opener.join(0.2)
        assert opener.is_alive()
    finally:
        go_on.set()
        set_hook(None)
    closer.join(30)
    opener.join(30)
    assert got == [2]


def test_a_thread_in_the_middle_of_opening_never_waits_for_another_one(tmp_path):
    """Two threads could wait for each other: one is told so at once."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        xtree.open(path, dims=2).close()
    meet = threading.Barrier(2)
    for path in paths:  # a clean open reads nothing, and calls nothing
        child = os.fork()
        if not child:
            tree = xtree.open(path)
            tree.insert(1, BOX)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    called = []

    def once(mine, its):
        inner = threading.local()

        def progress(done, total):
            if not getattr(inner, "done", False):
                inner.done = True
                meet.wait(30)
                try:
                    xtree.open(its).close()
                    called.append("opened")
                except xtree.TransactionError:
                    called.append("refused")
                meet.wait(30)

        xtree.open(mine, progress=progress).close()

    threads = [threading.Thread(target=once, args=(paths[i], paths[1 - i]), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert called == ["refused", "refused"]


def test_an_open_inside_the_same_open_is_refused_and_the_outer_one_goes_on(path):
    child = os.fork()
    if not child:
        tree = xtree.open(path)
        tree.insert(2, BOX)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    refused = []

    def progress(done, total):
        with pytest.raises(xtree.TransactionError, match="in the middle of opening"):
            xtree.open(path)
        refused.append(done)

    with xtree.open(path, progress=progress) as tree:
        assert refused and len(tree) == 2


def test_an_interrupt_ends_the_wait_for_another_threads_open(path):
    code = """
import os, signal, sys, threading, time, xtree
from xtree.persistence.crash_points import set_hook
from xtree.persistence.durable_store import DurableStore
inside, go_on = threading.Event(), threading.Event()
def slow(done, total):
    inside.set()
    go_on.wait(60)
other = threading.Thread(target=lambda: xtree.open(sys.argv[1], progress=slow), daemon=True)
other.start()
assert inside.wait(30)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
started = time.monotonic()
try:
    xtree.open(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted" if time.monotonic() - started < 20 else "late")
go_on.set()
other.join()
print(len(xtree.open(sys.argv[1])))
"""
    child = os.fork()
    if not child:
        tree = xtree.open(path)
        tree.insert(2, BOX)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["interrupted", "2"], done.stderr


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


def is_free(path: Path) -> bool:
    """Whether nobody, in this process either, holds the lock of an index."""
    try:
        _, lock = sharing.FileSystem().lock_directory(path, shared=False)
    except xtree.LockedError:
        return False
    lock.release()
    return True


@contextlib.contextmanager
def interrupted_at(nth: int) -> Iterator[list[str]]:
    """KeyboardInterrupt before the n-th line or call of the library's; the list names it, if there were so many.

    Not before lines with `with`, which are met again at the end of the block: nothing is interrupted between that and
    the __exit__ of something compiled.
    """
    where: list[str] = []
    left = nth

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(SOURCES) or frame.f_code.co_name == "__del__":
            return None  # what a finalizer raises is lost
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "call" or (event == "line" and not line.lstrip().startswith("with ")):
            left -= 1
            if left == 0:
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield where
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("mode", ["a", "r"])
def test_an_interrupt_before_any_line_of_an_open_leaves_no_lock_behind(path, mode):
    nth, step = 1, 0
    while True:
        tree = None
        with interrupted_at(nth) as where:
            tree = xtree.open(path, mode=mode)
        if not where:
            tree.close()
            break
        assert tree is None, where
        gc.collect()
        assert is_free(path), where
        step = step % 11 + 1
        nth += step
    assert nth > 200 and elsewhere(path) == "1"


def test_an_interrupt_before_any_line_of_an_open_to_write_beside_a_reader_leaves_it_well(path):
    nth, step = 1, 0
    while True:
        reader, writer = xtree.open(path, mode="r"), None
        with interrupted_at(nth) as where:
            writer = xtree.open(path)
        assert len(reader) == 1, where
        if where:
            assert writer is None
            gc.collect()
            assert reader._session.share.store is reader._store, where
            assert reader._store.read_only == reader._store._lock.shared, where
            if nth % 4 == 0:
                with xtree.open(path) as again:
                    again.update(1, BOX, BOX)
        else:
            writer.close()
        reader.close()
        gc.collect()
        assert is_free(path), where
        if not where:
            break
        step = step % 13 + 1
        nth += step
    assert nth > 200 and elsewhere(path) == "1"


def test_a_thread_that_waits_for_another_process_keeps_no_other_thread_waiting(path):
    code = "import sys, xtree\ntree = xtree.open(sys.argv[1])\nprint('open', flush=True)\nsys.stdin.read()"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdout.readline() == "open\n"
    got = []
    waiting = threading.Thread(target=lambda: got.append(xtree.open(path, timeout=None)))
    waiting.start()
    try:
        waiting.join(0.2)
        for mode in ("a", "r"):
            with pytest.raises(xtree.LockedError):
                xtree.open(path, mode=mode)
    finally:
        writer.communicate()
        waiting.join(60)
    assert len(got[0]) == 1
    got[0].close()


def test_two_paths_to_one_directory_never_lead_to_two_stores_that_write(path):
    """As with a directory that is mounted twice: another thread is in the middle of opening it by the other path."""
    reader = xtree.open(path, mode="r")
    share = reader._session.share
    told = []

    def open_slowly(store, on_error):
        with pytest.raises(xtree.LockedError, match="another thread is opening"):
            share.make_writable(told.append)
        return None

    assert share.make_writable(open_slowly) is False and told == []
    with xtree.open(path) as writer:
        assert share.make_writable(told.append) is True and told == []
        writer.insert(2, BOX)
        assert len(reader) == 2
    reader.close()


def test_a_copy_with_linked_files_is_not_taken_for_the_original(path, tmp_path):
    shutil.copytree(path, tmp_path / "copy", copy_function=os.link)
    with xtree.open(path) as tree:
        for mode in ("a", "r", "x"):
            with pytest.raises(xtree.LockedError, match="its lock file is a link to that of"):
                xtree.open(tmp_path / "copy", mode=mode, dims=2)
        tree.insert(2, BOX)


def test_processes_that_all_want_to_write_keep_their_readers(path):
    code = """
import sys, xtree
reader = xtree.open(sys.argv[1], mode="r")
print("open", flush=True)
sys.stdin.readline()
try:
    xtree.open(sys.argv[1], timeout=1.5)
    print("got it", flush=True)
except xtree.LockedError:
    print("refused", len(reader), flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", code, str(path)]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]  # fmt: skip
    try:
        for reader in readers:
            assert reader.stdout.readline() == "open\n"
        for reader in readers:
            reader.stdin.write("go\n")
            reader.stdin.flush()
        assert [reader.stdout.readline() for reader in readers] == ["refused 1\n"] * 3
    finally:
        for reader in readers:
            reader.communicate()
    assert elsewhere(path) == "1"


def test_a_failed_open_to_write_gives_the_reader_its_lock_back_or_closes_it(path, monkeypatch):
    reader = xtree.open(path, mode="r")
    with monkeypatch.context() as patch:
        patch.setattr("xtree.persistence.runtime.recover", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            xtree.open(path)
        assert len(reader) == 1 and "reads it" in elsewhere(path)
        patch.setattr(xtree.persistence.lock_file.Lock, "make_shared", lambda lock: False)
        with pytest.raises(ZeroDivisionError):
            xtree.open(path)
    with pytest.raises(xtree.ClosedError):
        len(reader)
    assert elsewhere(path) == "1"


def test_a_failed_store_is_still_read_by_who_opens_it_to_read(path):
    failed = xtree.open(path)
    failed._store._poison()
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


def test_a_handle_shows_itself_at_any_moment_of_its_close(path):
    for of in (xtree.open, xtree.Runtime):
        handle = of(path)
        stop, wrong = threading.Event(), []

        def show(handle=handle, stop=stop, wrong=wrong):
            while not stop.is_set():
                try:
                    repr(handle), handle._repr_html_()
                except BaseException as error:
                    wrong.append(error)

        thread = threading.Thread(target=show)
        thread.start()
        handle.close()
        stop.set()
        thread.join()
        assert not wrong


def test_a_check_beside_one_that_opens_to_write_finds_nothing_wrong(path):
    reader = xtree.open(path, mode="r")
    checked = DurableStore.check
    writers = []

    def check_late(store):
        if not writers:
            writers.append(xtree.open(path))
            writers[0].insert(2, BOX)
            writers[0].runtime.checkpoint()
            writers[0].insert(3, BOX)
            writers[0].runtime.checkpoint()
        return checked(store)

    with mock.patch.object(DurableStore, "check", check_late):
        reader.check()
        reader.runtime.check()
    writers[0].close()
    reader.close()
