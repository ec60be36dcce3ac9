"""Finalizers, weakref callbacks and signal handlers make any call at any moment: it answers or is refused, and never
waits for its own thread.

Promises (One writer, many readers):

- every public method, called from `__del__`, from a weakref's callback or from a signal handler, at every named
  point, before every line and with a collection at every allocation, in whatever thread: it answers or raises
  `TransactionError`, never waits for itself, and what it did is there:
  all of it, which runs `reentrance.py` in processes that a watchdog ends.
- a finalizer that writes stops no leader, one that drops a tree no registry:
  test_finalizers_that_write_stop_no_leader.
- a file is used in the middle of each step of its own opening and closing:
  test_a_file_is_borrowed_in_the_middle_of_each_step_of_borrowing_it.
- a finalizer at the end of the process waits for no thread that can no longer run:
  test_a_finalizer_at_the_end_of_the_process_is_answered_without_threads.
- a handler in the middle of a commit reads, and is refused to write:
  test_a_handler_in_the_middle_of_a_commit_reads_and_is_refused_to_write.
- `close()` at every named point, in the thread that stands there, returns, and the index is closed cleanly:
  test_close_at_every_named_point_returns_and_the_index_is_closed_cleanly.
- locks are waited for in the order of their ranks, and only tried out of it:
  test_a_lock_is_waited_for_in_the_order_of_ranks_and_only_tried_out_of_it.
"""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
from support.places import TESTS
from support.reentrance_world import CALLS
from support.text_pages import settle

import xtree
import xtree.persistence.files.open_files as open_files
from xtree.errors import TransactionError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.base.lock_ranks import (
    FREE,
    IN_THREAD,
    OPEN_FILES,
    STORE_LOCK,
    SYNCING,
    RankedLock,
    Worker,
    rank_held,
    require_nothing_held,
)
from xtree.persistence.base.outcome import in_new_thread, outcome_of
from xtree.persistence.files.open_files import LazyFile, OpenFiles
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import open_store
from xtree.reading import Reader
from xtree.structure import StructureHandle
from xtree.transaction import RuntimeTransaction
from xtree.writing import Writer

PROGRAM = TESTS / "support" / "reentrance.py"
MODES = ("strict", "balanced", "eventual")
needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")


def run(scenario: str, mode: str, path: Path, **settings: object) -> str:
    """What a scenario has printed. If the process had to be stopped, fails with its stacks."""
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}, "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
    command = [sys.executable, str(PROGRAM), scenario, mode, str(path), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and done.stdout.endswith("fine\n"), f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_call_at_every_named_point_answers_or_is_refused(tmp_path, mode):
    said = run("points", mode, tmp_path)
    for point in ("commit.appended", "commit.published", "checkpoint.copied", "log.spare_filled", "data.extended"):
        assert point in said


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["balanced", pytest.param("eventual", marks=pytest.mark.slow)])
def test_some_calls_before_every_line_of_ours_answer_or_are_refused(tmp_path, mode):
    run("lines", mode, tmp_path)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
def test_every_call_before_every_line_of_ours_answers_or_is_refused(tmp_path, mode):
    run("lines", mode, tmp_path, XTREE_CALLS_A_LINE=200, XTREE_ROUNDS=400, XTREE_PATIENCE_S=3000)


@pytest.mark.parametrize("mode", ["balanced", "eventual"])
def test_finalizers_and_weakref_callbacks_call_anything_while_the_collector_runs_at_every_allocation(tmp_path, mode):
    run("collector", mode, tmp_path)


@pytest.mark.slow
@needs_timers
@pytest.mark.parametrize("mode", ["balanced", "eventual"])
def test_signal_handlers_call_anything_at_random_moments(tmp_path, mode):
    run("signals", mode, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_close_at_every_named_point_returns_and_the_index_is_closed_cleanly(tmp_path, mode):
    run("closing", mode, tmp_path)


def public(of: type) -> set[str]:
    """The names of a class's public methods and properties."""
    return {name for name, _ in inspect.getmembers(of) if not name.startswith("_")}


def test_every_public_method_is_among_the_calls():
    called = " ".join(CALLS)
    reading = public(Reader)
    for of, name in (
        (xtree.Runtime, "Runtime"), (xtree.XTree, "XTree"), (xtree.Snapshot, "Snapshot"),
        (StructureHandle, "StructureHandle"), (xtree.Transaction, "Transaction"),
    ):  # fmt: skip
        for method in public(of) - {"close", "commit", "from_boxes", "let_others_begin"}:
            shared = name in ("Snapshot", "Transaction") and method in reading | public(Writer)
            assert f"{name}.{method}" in called or shared or method in ("delete_many", "update"), method
    assert public(RuntimeTransaction) <= {
        "make", "tree", "structure", "abort", "commit", "status", "let_others_begin",
    }  # over_several() calls them  # fmt: skip


# The three failures that were seen first.

FOUR_WRITERS = """
import faulthandler, gc, sys, threading, xtree
faulthandler.dump_traceback_later(100, exit=True)
outcomes = []
class Garbage:
    def __init__(self):
        self.itself = self
    def __del__(self):
        try:
            trees[0].insert(-1, (0, 0))
            outcomes.append(1)
        except xtree.TransactionError:
            outcomes.append(0)
def write(tree):
    for i in range(150):
        tree.insert(i, (i, i))
        Garbage()
with xtree.Runtime(sys.argv[1]) as runtime:
    trees = [runtime.tree(f"t{i}", dims=2) for i in range(4)]
    gc.set_threshold(30)
    threads = [threading.Thread(target=write, args=(tree,)) for tree in trees]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    gc.set_threshold(700)
    gc.collect()
    assert [len(tree) for tree in trees] == [150 + sum(outcomes), 150, 150, 150]
    assert len(outcomes) == 600
    runtime.check()
print("fine")
"""

TEMPORARY_TREES = """
import faulthandler, gc, sys, threading, xtree
faulthandler.dump_traceback_later(100, exit=True)
refused = []
class Temporary:
    def __init__(self, name):
        self.name, self.itself = name, self
        runtime.tree(name, dims=2).insert(1, (0, 0))
    def __del__(self):
        try:
            runtime.drop(self.name)
        except xtree.TransactionError:
            refused.append(self.name)
def make(which):
    for i in range(60):
        try:
            Temporary(f"{which} {i}")
        except xtree.TransactionError:  # its name is taken, in the middle of something, by a finalizer
            pass
with xtree.Runtime(sys.argv[1]) as runtime:
    gc.set_threshold(30)
    threads = [threading.Thread(target=make, args=(which,)) for which in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    gc.set_threshold(700)
    gc.collect()
    assert set(runtime.trees()) <= set(refused), (runtime.trees(), refused)
    runtime.check()
print("fine")
"""


@pytest.mark.parametrize("program", [FOUR_WRITERS, TEMPORARY_TREES], ids=["an insert", "a drop"])
def test_finalizers_that_write_stop_no_leader(tmp_path, program):
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "index")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr[-8000:]


def test_a_handler_in_the_middle_of_a_commit_reads_and_is_refused_to_write(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree = runtime.tree("a", dims=2)
        runtime.tree("b", dims=2).insert(1, (0, 0))
        settle(runtime._store)
        with runtime._store._coordinator.turn_lock:  # once it is free, this thread carries its next commit
            pass
        done = []

        def handle(number, frame) -> None:
            assert runtime.stats()["coordinator"]["commits"] and runtime.tree("b").query((0, 0)).tolist() == [1]
            for write in (
                lambda: runtime.tree("b").insert(2, (0, 0)), lambda: runtime.tree("c", dims=2), runtime.checkpoint,
                lambda: runtime.drop("b"), lambda: runtime.backup(tmp_path / "copy"), runtime.transaction().__enter__,
                lambda: xtree.open(tmp_path / "another", dims=2),
            ):  # fmt: skip
                with pytest.raises(TransactionError, match="can't wait here"):
                    write()
            done.append(number)

        def hook(point: str) -> None:
            if point == "commit.appended":
                set_hook(None)
                assert threading.current_thread() is threading.main_thread()
                signal.raise_signal(signal.SIGINT)

        before = signal.signal(signal.SIGINT, handle)
        set_hook(hook)
        try:
            tree.insert(1, (0, 0))
        finally:
            set_hook(None)
            signal.signal(signal.SIGINT, before)
        assert done == [signal.SIGINT] and len(tree) == 1 and runtime.trees() == ["a", "b"]
        assert not (tmp_path / "copy").exists() and not (tmp_path / "another").exists()
        runtime.check()


def test_a_transaction_forgotten_in_the_middle_of_a_commit_gives_everything_back(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree, other = runtime.tree("a", dims=2), runtime.tree("b", dims=2)
        tx = [runtime.transaction(trees=["b"])]
        tx[0].__enter__()
        tx[0].tree("b").insert(1, (0, 0))
        tx[0].make("c", dims=2).insert(1, (0, 0))
        tree.insert(0, (0, 0))

        def hook(point: str) -> None:
            if point == "commit.appended":
                tx.clear()

        set_hook(hook)
        tree.insert(2, (0, 0))
        set_hook(None)
        assert not tx
        other.insert(2, (0, 0))
        assert runtime.tree("c", dims=3).dims == 3
        assert runtime.stats()["object_table"]["reserved"] == 0
        runtime.check()


def test_a_file_is_borrowed_in_the_middle_of_each_step_of_borrowing_it(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    fs, files = FileSystem(), OpenFiles(1)
    a, b, c = (LazyFile(files, path, partial(fs.open, path, "r")) for path in map(str, map(tmp_path.joinpath, "abc")))

    def read(*lazies: LazyFile) -> None:
        for lazy in lazies:
            with lazy.opened() as file:
                assert file.pread(1, 0).decode() == lazy.path[-1]

    for n in range(1, 1000):  # before the n-th line that is run
        left = n

        def trace(frame, event, argument):
            nonlocal left
            if frame.f_code.co_filename != open_files.__file__:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    read(b, a, c)
            return trace

        sys.settrace(trace)
        try:
            read(a, b)
            a.keep()
            read(c, b)
            a.begin_sync()
            a.end_sync()
            read(a, c)
        finally:
            sys.settrace(None)
        assert [lazy.users for lazy in (a, b, c)] == [0, 0, 0] and files.stats()["open"] <= 1
        assert {lazy for lazy in (a, b, c) if lazy.file is not None} == files._open
        if left > 0:
            break
    else:
        raise AssertionError("more lines than that")
    assert n > 100
    files.close()


def test_the_file_longest_unused_is_looked_for_again_when_another_use_comes_between(tmp_path):
    """The other use comes between the two steps of finding the file, which stand in one line."""
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    fs, files = FileSystem(), OpenFiles(2)
    a, b, c = (LazyFile(files, path, partial(fs.open, path, "r")) for path in map(str, map(tmp_path.joinpath, "abc")))

    def use(lazy):
        with lazy.opened() as file:
            assert file.pread(1, 0).decode() == lazy.path[-1]

    class Interrupted(OrderedDict):
        between = 0

        def __iter__(self):
            found = super().__iter__()
            if self.between:
                self.between -= 1
                use(b)
            return found

    use(a)
    use(b)
    files._idle = Interrupted(files._idle)
    files._idle.between = 1
    use(c)
    assert not files._idle.between and files.stats()["open"] == 2 and a.file is None
    files.close()


AT_THE_END = """
import numpy as np, xtree
class Late:
    tree = xtree.XTree.from_boxes(np.random.default_rng(1).random((500, 4)) + [0, 0, 1, 1])
    def __del__(self, windows=np.zeros((500, 4))):
        print(len(self.tree.query(windows + 1, threads=2)[0]) > 0)
late = Late()
late.itself = late
"""


def test_a_finalizer_at_the_end_of_the_process_is_answered_without_threads():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# Ranks.


def test_a_check_in_the_middle_of_a_read_does_not_wait_for_a_save_that_may_wait_for_the_read(tmp_path):
    saving, let_go = threading.Event(), threading.Event()

    def save_meanwhile() -> None:
        with store.index_files._manifest_lock:
            saving.set()
            let_go.wait(20)

    store = open_store(tmp_path / "index")
    thread = threading.Thread(target=save_meanwhile)
    thread.start()
    saving.wait()
    with RankedLock(OPEN_FILES), pytest.raises(TransactionError, match="table of open files"):
        store.check()
    let_go.set()
    thread.join()
    store.check()
    store.close()


def test_a_lock_is_waited_for_in_the_order_of_ranks_and_only_tried_out_of_it():
    low, high = RankedLock(SYNCING), RankedLock(STORE_LOCK)
    taken, let_go = threading.Event(), threading.Event()

    def hold_both() -> None:
        with low, high:
            assert rank_held() == STORE_LOCK
            taken.set()
            let_go.wait()
        assert rank_held() == FREE

    thread = threading.Thread(target=hold_both)
    thread.start()
    taken.wait()
    with RankedLock(OPEN_FILES):
        for lock in (low, high):
            with pytest.raises(TransactionError, match="table of open files"), lock:
                pass
            assert not lock.acquire(False)
        assert rank_held() == OPEN_FILES
    let_go.set()
    thread.join()
    with RankedLock(OPEN_FILES), low:  # `low` is free
        assert rank_held() == OPEN_FILES
    with low, pytest.raises(TransactionError), low:
        pass
    assert rank_held() == FREE and not low.locked()


def test_a_reentrant_lock_is_taken_again_by_its_owner_and_given_back_by_nobody_else():
    lock = RankedLock(OPEN_FILES, reentrant=True)
    with lock, lock:
        assert lock.locked()
        refused = in_new_thread(lock.release)
        with pytest.raises(RuntimeError):
            outcome_of(refused)
    assert not lock.locked() and rank_held() == FREE


def test_a_condition_lets_its_lock_and_its_rank_go_while_it_waits():
    condition = threading.Condition(RankedLock(STORE_LOCK))
    ranks = []

    def wait() -> bool:
        ranks.append(rank_held())
        return len(ranks) > 1

    def wake() -> None:
        while len(ranks) < 2:
            with condition:
                condition.notify_all()

    thread = threading.Thread(target=wake)
    with condition:
        thread.start()
        assert condition.wait_for(wait, 60)
        assert rank_held() == STORE_LOCK
    thread.join()
    assert rank_held() == FREE and ranks[0] == STORE_LOCK


def test_threads_that_others_wait_for_hold_something_from_the_first_moment():
    seen = []
    thread = Worker(lambda: seen.append(rank_held()), "worker")
    original = thread._set_ident
    thread._set_ident = lambda: (seen.append(rank_held()), original())  # type: ignore[method-assign]
    thread.start()
    thread.join()
    assert seen == [IN_THREAD, IN_THREAD]
    assert outcome_of(in_new_thread(rank_held)) == IN_THREAD
    assert outcome_of(in_new_thread(lambda: None)) is None and rank_held() == FREE
    with RankedLock(SYNCING), pytest.raises(TransactionError, match="a sync"):
        require_nothing_held("this")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_holds_nothing_of_its_parents():
    with RankedLock(SYNCING):
        child = os.fork()
        if not child:
            os._exit(0 if rank_held() == FREE else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert rank_held() == SYNCING
