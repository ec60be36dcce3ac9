"""Forked processes: trees in memory are the child's own, durable ones are read there; the parent notices nothing.

Promises (One writer, many readers):

- a tree in memory is a forked child's own, whichever thread was committing, forking or gone:
  test_a_tree_in_memory_can_be_written_whichever_thread_was_committing,
  test_trees_that_other_threads_make_and_forget_are_whole_in_the_child,
  test_calls_of_threads_that_are_gone_hold_nothing_in_the_child,
  test_a_fork_by_the_garbage_collector_in_the_middle_of_a_commit_is_survived,
  test_no_fork_waits_for_long_and_two_threads_may_fork_at_once.
- a durable handle reads in a forked child and never writes; a child that goes on in the middle of a call reaches no
  file of its parent's:
  test_a_durable_handle_reads_in_the_child_and_never_writes,
  test_a_writers_handle_reads_in_the_child_once_nobody_writes,
  test_a_fork_in_the_middle_of_a_durable_load_changes_nothing_of_the_parents.
- what was open at a fork is the parent's:
  test_a_transaction_that_was_open_is_the_parents, test_a_transaction_of_another_thread_holds_no_lock_in_the_child,
  test_a_childs_end_leaves_the_parents_index_alone.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.handles import BOX, make
from support.stack_writer import PageStack, StackState

import xtree
from xtree.persistence import sharing
from xtree.persistence.session import share_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROWS = np.random.default_rng(1).random((3000, 2))


def in_child(work: Callable[[], object]) -> None:
    """Runs work() in a forked child, and asserts that it returns there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


@contextlib.contextmanager
def beside(work: Callable[[], object]):
    """Other threads run work() over and over during the block."""
    stop, wrong = threading.Event(), []

    def loop():
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "index")


def use_all(tree: xtree.XTree, records: int) -> None:
    """Reads, writes and checks a tree in memory with so many records."""
    assert len(tree) == records
    tree.check()
    tree.insert_many(np.arange(500), ROWS[:500])
    with tree.transaction() as tx:
        tx.insert(-1, BOX)
        assert len(tx) == records + 501
    with tree.snapshot() as snapshot:
        assert tree.delete(-1, BOX) and len(snapshot) == records + 501
    assert tree.delete_many(np.arange(500), ROWS[:500]) == 500
    assert len(tree.query([BOX] * 20, threads=2)[0]) == 20 * records
    tree.bulk_load(np.arange(2000), ROWS[:2000], threads=2)
    tree.check()
    assert len(tree) == records + 2000
    tree.close()


def test_a_tree_in_memory_is_the_childs_own_copy():
    tree = xtree.XTree.from_points(ROWS)
    in_child(lambda: use_all(tree, 3000))
    tree.insert(1, BOX)
    use_all(tree, 3001)


def test_a_childs_child_has_a_copy_too():
    tree = xtree.XTree.from_points(ROWS)

    def child():
        tree.insert(1, BOX)
        in_child(lambda: use_all(tree, 3001))
        use_all(tree, 3001)

    in_child(child)


def test_a_pool_takes_a_closure_over_a_tree():
    tree = xtree.XTree.from_points(ROWS)
    global _asked
    _asked = lambda window: (os.getpid(), tree.count(window))  # noqa: E731
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(_ask, [[0, 0, 0.5, 0.5]] * 20)
    assert {count for _, count in found} == {tree.count([0, 0, 0.5, 0.5])} and os.getpid() not in dict(found)


def _ask(window):
    return _asked(window)


def test_a_tree_in_memory_can_be_written_whichever_thread_was_committing():
    tree = xtree.XTree.from_points(ROWS)

    def commit():
        with tree.transaction() as tx:
            tx.insert(5, BOX)
            tx.insert_many(np.arange(200), ROWS[:200])
            tx.delete_many(np.arange(200), ROWS[:200])
            tx.delete(5, BOX)
        tree.count([BOX] * 300, threads=2)

    with beside(commit):
        for _ in range(60):
            in_child(lambda: use_all(tree, 3000))
    assert tree._store.stats()["object_table"]["reserved"] == 0
    use_all(tree, 3000)


@pytest.mark.slow
def test_trees_are_whole_in_the_child_though_other_threads_were_taking_and_giving_back_pages():
    trees = [xtree.XTree.from_points(ROWS[:500]) for _ in range(3)]
    mine = threading.local()

    def load():
        if not hasattr(mine, "tree"):
            mine.tree = trees.pop()
            kept.append(mine.tree)
        with contextlib.suppress(ZeroDivisionError), mine.tree.transaction() as tx:
            tx.insert_many(np.arange(3000), ROWS)
            raise ZeroDivisionError  # all of its pages go back

    def child():
        for tree in kept:
            tree.insert_many(np.arange(500), ROWS[:500])
            tree.check()
            assert len(tree) == 1000
            tree._store.check()

    kept = []
    with beside(load):
        while len(kept) < 3:
            time.sleep(0.001)
        for _ in range(150):
            in_child(child)


def test_trees_that_other_threads_make_and_forget_are_whole_in_the_child():
    kept = [xtree.XTree.from_points(ROWS[:200]) for _ in range(15)]

    def make():
        tree = xtree.XTree(2)
        tree.insert_many(np.arange(100), ROWS[:100])
        tree.close()
        kept.append(xtree.XTree.from_points(ROWS[:100]))
        del kept[15:]

    def child():
        for tree in list(kept):
            tree.insert(1, BOX)
            tree.check()

    with beside(make):
        for _ in range(60):
            in_child(child)


def test_snapshots_stay_valid_in_the_child_and_keep_their_pages():
    tree = xtree.XTree.from_points(ROWS)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(tree.snapshot()))  # a thread that doesn't exist in the child
    thread.start()
    thread.join()
    tree.delete_many(np.arange(1000), ROWS[:1000])
    tree.insert_many(np.arange(1000), ROWS[:1000])
    snapshot = tree.snapshot()
    tree.delete_many(np.arange(1000), ROWS[:1000])

    def child():
        for i in range(20):
            tree.insert_many(np.arange(100) + i, ROWS[:100])
        for kept in (snapshot, taken[0]):
            assert len(kept) == 3000
            kept.check()
            kept.close()
        for _ in range(40):  # each reclaims some pages
            tree.insert(1, BOX)
        stats = tree._store.stats()
        assert stats["epochs"]["pins"] == 0 and stats["object_table"]["retired"] < 5

    in_child(child)
    assert len(snapshot) == len(taken[0]) == 3000


def test_calls_of_threads_that_are_gone_hold_nothing_in_the_child():
    tree = xtree.XTree.from_points(np.random.default_rng(2).random((200_000, 2)))
    windows = np.tile(BOX, (300, 1))
    thread = threading.Thread(target=tree.count, args=(windows,))
    thread.start()
    pinned = 0
    while thread.is_alive() and not pinned:
        pinned = tree._store.stats()["epochs"]["pins"]

    def child():
        assert tree._store.stats()["epochs"]["pins"] == 0
        tree.close()  # waits for no call

    in_child(child)
    thread.join()
    assert len(tree) == 200_000


@pytest.mark.parametrize("kind", ["memory", "durable"])
def test_a_transaction_that_was_open_is_the_parents(kind, path):
    tree = xtree.XTree(2) if kind == "memory" else xtree.open(path)
    records = len(tree)
    with tree.transaction() as tx:
        tx.insert_many(np.arange(99), ROWS[:99])
        tx.insert(99, ROWS[99])
        assert tx.update(99, ROWS[99], BOX)

        def child():
            for use in (lambda: tx.insert(1, BOX), lambda: tx.count(BOX), tx.commit):
                with pytest.raises(xtree.TransactionError, match="forked"):
                    use()
            tx.abort()
            if kind == "memory":
                assert tree._store.stats()["epochs"]["pins"] == 0
                tree.insert(7, BOX)
                tree.check()
                assert len(tree) == records + 1

        in_child(child)

        def leaves_the_block():
            with pytest.raises(xtree.TransactionError, match="forked"):
                tx.__exit__(None, None, None)
            tx.__exit__(None, None, None)

        in_child(leaves_the_block)
        in_child(lambda: tx.__exit__(ValueError, ValueError(), None))
        in_child(lambda: gc.collect())
        tx.insert(1, BOX)
    assert len(tree) == records + 101
    tree.check()
    tree.close()


def test_a_transaction_of_another_thread_holds_no_lock_in_the_child():
    tree = xtree.XTree(2)
    begun, go_on = threading.Event(), threading.Event()

    def work():
        with tree.transaction() as tx:
            tx.insert(1, BOX)
            begun.set()
            go_on.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    in_child(lambda: use_all(tree, 0))
    go_on.set()
    thread.join()
    assert len(tree) == 1


def test_a_fork_in_the_middle_of_a_load_leaves_both_processes_well():
    """A callback forks, and returns in both processes."""
    tree = xtree.XTree(2)
    mine, pids = os.getpid(), []

    def progress(done, total):
        if not pids:
            pids.append(os.fork())

    try:
        tree.bulk_load(np.arange(50_000), np.random.default_rng(1).random((50_000, 2)), progress)
    except xtree.TransactionError as error:
        os._exit(0 if os.getpid() != mine and "forked" in str(error) and len(tree) == 0 else 1)
    finally:
        if os.getpid() != mine:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert len(tree) == 50_000
    tree.check()


def test_a_fork_in_the_middle_of_a_durable_load_changes_nothing_of_the_parents(tmp_path):
    tree = xtree.open(tmp_path / "index", dims=2)
    tree.insert_many(np.arange(3000), ROWS)
    mine, pids = os.getpid(), []
    rows = np.random.default_rng(1).random((100_000, 2))

    def progress(done, total):
        if not pids:
            pids.append(os.fork())
            if pids[0]:
                time.sleep(0.3)

    try:
        tree.bulk_load(np.arange(100_000), rows, progress)
    finally:
        if os.getpid() != mine:
            os._exit(3)
    assert os.waitpid(pids[0], 0)[1] != 0
    assert len(tree) == 103_000
    tree.check()
    tree.close()
    with xtree.open(tmp_path / "index") as again:
        again.check()
        assert len(again) == 103_000


def test_a_child_that_goes_on_in_the_middle_of_a_load_writes_to_no_file_of_the_parents(tmp_path):
    """The parent aborts, and puts other pages where the child believes that its own are."""
    tree = xtree.open(tmp_path / "index", dims=2)
    mine, pids = os.getpid(), []
    (said, say), rows = os.pipe(), np.random.default_rng(1).random((100_000, 2))

    def progress(done, total):
        if not pids and done > total // 3:
            pids.append(os.fork())
            if pids[0]:
                raise ZeroDivisionError
            os.read(said, 1)

    try:
        with contextlib.suppress(ZeroDivisionError):
            tree.bulk_load(np.arange(100_000), rows, progress)
    finally:
        if os.getpid() != mine:
            os._exit(3)
    tree.bulk_load(np.arange(100_000), 1.0 - rows)
    os.write(say, b"x")
    assert os.waitpid(pids[0], 0)[1] != 0
    os.close(said)
    os.close(say)
    tree.close()
    with xtree.open(tmp_path / "index") as again:
        again.check()
        assert len(again) == 100_000


def test_a_file_of_the_parents_is_not_used_in_the_child(tmp_path):
    with contextlib.closing(sharing.FileSystem().open(tmp_path / "file", "create")) as file:
        file.pwrite(b"parent", 0)

        def child():
            for use in (
                lambda: file.pwrite(b"child", 0), lambda: file.pread(6, 0), lambda: file.truncate(0), file.sync,
                lambda: file.pwritev([b"child"], 0), lambda: file.reserve(100), file.size,
            ):  # fmt: skip
                with pytest.raises(xtree.ClosedError, match="before a fork"):
                    use()

        in_child(child)
        assert file.pread(6, 0) == b"parent"


def test_a_fork_by_the_garbage_collector_in_the_middle_of_a_commit_is_survived():
    code = """
import gc, os, sys, numpy as np, xtree
rows = np.random.default_rng(1).random((200, 2))
tree, other = xtree.XTree(2), xtree.XTree.from_points(rows)
class Forks:
    def __init__(self):
        self.itself = self
    def __del__(self):
        global forked
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                try:
                    other.insert(1, rows[0])
                    other.check()
                except xtree.ClosedError:
                    pass
                try:
                    tree.insert(1, rows[0])
                    tree.check()
                except (xtree.ClosedError, xtree.TransactionError):
                    pass
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        forked += 1
forked = 0
gc.set_threshold(1)
for i in range(60):
    Forks()
    tree.insert(i, rows[i])
    with tree.transaction() as tx:
        tx.insert(i, rows[i])
    Forks()
    pid = os.fork()         # and in the middle of a fork
    if pid == 0:
        gc.disable()
        code = 1
        try:
            for one in (tree, other):
                try:
                    one.insert(1, rows[0])
                    one.check()
                except xtree.ClosedError:
                    pass
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    other.delete(-1, rows[0])   # which waits for nobody
gc.set_threshold(700)
assert len(tree) == 120 and len(other) == 200 and forked > 20, forked
tree.check()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_durable_handle_reads_in_the_child_and_never_writes(path):
    reader = xtree.open(path, mode="r")
    runtime, tree, snapshot = reader.runtime, reader, reader.snapshot()

    def child():
        assert not tree.closed and not runtime.closed and "records" not in repr(tree)
        assert repr(runtime) and tree._repr_html_() and runtime._repr_html_()
        assert tree.query(BOX) == [1] and runtime.trees() == ["default"] and runtime.tree("default").count(BOX) == 1
        tree.check()
        runtime.stats()
        with tree.snapshot() as mine:
            assert len(mine) == 1
        with pytest.raises(xtree.ReadOnlyError, match="before a fork"):
            tree.insert(2, BOX)
        with pytest.raises(xtree.ReadOnlyError, match="before a fork"):
            tree.transaction().__enter__()
        with pytest.raises(xtree.ClosedError, match="fork"):
            snapshot.count(BOX)
        assert tree.join(runtime.tree("default")).tolist() == [[1], [1]]
        with pytest.raises(xtree.LockedError):  # the parent reads
            xtree.open(path)
        tree.close()
        with pytest.raises(xtree.ClosedError):
            len(tree)

    in_child(child)
    assert snapshot.query(BOX) == [1] and len(tree) == 1
    tree.close()


def test_a_writers_handle_reads_in_the_child_once_nobody_writes(path):
    writer = xtree.open(path)
    writer.insert(2, BOX)

    def child():
        with pytest.raises(xtree.LockedError, match="opened before a fork.*while no other process writes"):
            len(writer)
        with pytest.raises(xtree.ReadOnlyError, match="before a fork"):
            writer.insert(3, BOX)

    in_child(child)
    reader, other = os.pipe()

    def later():
        os.close(other)
        os.read(reader, 1)  # the parent has closed it
        assert len(writer) == 3
        with pytest.raises(xtree.ReadOnlyError):
            writer.delete(1, BOX)
        with xtree.open(path) as again:
            again.insert(4, BOX)
            assert len(writer) == 4
            with pytest.raises(xtree.ReadOnlyError):
                writer.delete(1, BOX)

    pid = os.fork()
    if not pid:
        status = 1
        try:
            later()
            status = 0
        finally:
            os._exit(status)
    os.close(reader)
    writer.insert(3, BOX)
    writer.close()
    os.write(other, b"x")
    os.close(other)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with xtree.open(path) as tree:
        assert len(tree) == 4
        tree.check()


def test_structures_are_read_in_the_child_too(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        PageStack(runtime.structure("stack", StackState)).push(b"first")
    runtime = xtree.Runtime(tmp_path / "index", mode="r")
    handle = runtime.structure("stack", StackState)
    in_child(lambda: handle.read(lambda store, state: list(state.pages(store))))
    runtime.close()


def test_another_index_in_its_place_is_not_taken_for_the_parents(path, tmp_path):
    reader = xtree.open(path, mode="r")
    path.rename(tmp_path / "elsewhere")
    xtree.open(path, dims=2).close()

    def child():
        with pytest.raises(xtree.ClosedError, match="another index was put in its place"):
            len(reader)

    in_child(child)
    reader.close()


def test_threads_of_a_child_reopen_a_handle_once(path):
    reader = xtree.open(path, mode="r")

    def child():
        got = []
        threads = [threading.Thread(target=lambda: got.append(len(reader))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [1] * 8 and reader._session.share.joined == 1

    in_child(child)
    reader.close()


def test_a_childs_end_leaves_the_parents_index_alone(path):
    """The child ends with finalizers and atexit, not by os._exit."""
    code = """
import os, sys, numpy as np, xtree
tree, memory = xtree.open(sys.argv[1]), xtree.XTree(2)
snapshot = tree.snapshot()
tx = tree.transaction()
tx.__enter__()
tx.insert(9, [0, 0, 1, 1])
forgotten = memory.transaction()
forgotten.__enter__()
forgotten.insert(9, [0, 0])
pid = os.fork()
if pid == 0:
    memory.insert(1, [0, 0])
    del forgotten
    memory.insert(1, [0, 0])
    assert len(memory) == 2
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
tx.commit()
tree.insert_many(np.arange(100), np.zeros((100, 2)))
tree.check()
assert snapshot.query([0, 0, 1, 1]) == [1]
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    with xtree.open(path) as tree:
        assert len(tree) == 102 and tree.runtime.stats()["recovery"]["clean"]


@pytest.mark.slow
def test_no_fork_waits_for_long_and_two_threads_may_fork_at_once():
    tree = xtree.XTree.from_points(ROWS)
    wrong = []

    def fork():
        try:
            for _ in range(20):
                in_child(lambda: tree.insert(1, BOX))
        except BaseException as error:
            wrong.append(error)

    with beside(lambda: tree.update(1, ROWS[1], ROWS[1])):
        threads = [threading.Thread(target=fork) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    tree.check()


def test_a_failed_fork_lets_everything_go_on(monkeypatch):
    resource = pytest.importorskip("resource")
    tree = xtree.XTree.from_points(ROWS)
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    code = """
import os, resource, xtree
tree = xtree.XTree(2)
os.setuid(65534) if os.geteuid() == 0 else None
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for _ in range(3):
    try:
        os.fork()
        raise SystemExit("it forked")
    except OSError:
        tree.insert(1, [0, 0])
print(len(tree))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert before == resource.getrlimit(resource.RLIMIT_NPROC) and len(tree) == 3000
    if "it forked" in done.stderr:
        pytest.skip("the system doesn't limit processes here")
    assert done.stdout.split() == ["3"], done.stderr


def test_a_tree_that_was_dropped_or_made_anew_is_not_taken_for_the_parents(path):
    with xtree.Runtime(path) as runtime:
        for name in ("dropped", "other dims", "dropped here"):
            runtime.tree(name, 2).insert(1, BOX)
    runtime = xtree.Runtime(path, mode="r")
    trees = {name: runtime.tree(name) for name in ("default", "dropped", "other dims", "dropped here")}
    go, waits = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(waits)
            os.read(go, 1)
            assert trees["default"].query(BOX) == [1]
            for name in ("dropped", "other dims"):
                for use in (lambda: trees[name].count(BOX), lambda: trees[name].query([BOX]), trees[name].items):  # noqa: B023
                    with pytest.raises(xtree.ClosedError, match="dropped"):
                        use()
            assert trees["dropped here"].count(BOX) == 1
            with xtree.Runtime(path) as writer:
                writer.drop("dropped here")
                writer.tree("dropped here", 2)
            with pytest.raises(xtree.ClosedError, match="dropped"):
                trees["dropped here"].count(BOX)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(go)
    runtime.close()
    with xtree.Runtime(path) as writer:
        writer.drop("dropped")
        writer.drop("other dims")
        writer.tree("other dims", 3).insert(1, [0, 0, 0, 1, 1, 1])
    os.close(waits)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_lock_of_the_programs_that_is_held_around_writes_may_be_taken_before_forks():
    """A hook that is registered after xtree was imported takes it, so that all threads take the locks in one order."""
    code = """
import os, threading
import xtree
from xtree.persistence import sharing
from xtree.persistence.session import share_of
lock = threading.Lock()
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
tree = xtree.XTree(2)
stop = threading.Event()
def write():
    while not stop.is_set():
        with lock:
            for i in range(20):
                tree.insert(1, [0, 0])
                tree.delete(1, [0, 0])
thread = threading.Thread(target=write, daemon=True)
thread.start()
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        tree.insert(1, [0, 0])
        tree.check()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
thread.join(60)
assert not thread.is_alive()
tree.check()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr


def test_a_handle_closed_while_it_is_reopened_in_a_child_stays_closed_and_keeps_nothing_open(path, monkeypatch):
    reader = xtree.open(path, mode="r")

    def child():
        opened = sharing.open_store

        def close_meanwhile(*arguments, **settings):
            reader.close()
            return opened(*arguments, **settings)

        monkeypatch.setattr(sharing, "open_store", close_meanwhile)
        with pytest.raises(xtree.ClosedError):
            len(reader)
        assert reader.closed and share_of(sharing.FileSystem().lock_identity(str(path))) is None

    in_child(child)
    reader.close()
