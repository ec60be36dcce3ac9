"""Several handles of one process at the same time: opens, closes and interrupts in the middle of each other.

Promises (One writer, many readers):

- opening waits for another thread's open and close, never for itself, and an interrupt ends the wait:
  test_threads_that_open_a_directory_at_once_share_what_one_of_them_opens,
  test_opening_waits_for_the_close_that_is_under_way,
  test_a_thread_in_the_middle_of_opening_never_waits_for_another_one,
  test_an_interrupt_ends_the_wait_for_another_threads_open,
  test_a_thread_that_waits_for_another_process_keeps_no_other_thread_waiting.
- an open that is interrupted before any of its lines leaves no lock, and readers as they were:
  test_an_interrupt_before_any_line_of_an_open_leaves_no_lock_behind,
  test_an_interrupt_before_any_line_of_an_open_to_write_beside_a_reader_leaves_it_well.
- processes that all want to write keep their readers:
  test_processes_that_all_want_to_write_keep_their_readers.
"""

from __future__ import annotations

import contextlib
import gc
import linecache
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from unittest import mock

import numpy as np
import pytest
from support.handles import BOX, elsewhere, held_elsewhere, leave_unclean, make

import xtree
from xtree.persistence import sharing
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files import lock_file

SOURCES = str(Path(xtree.__file__).parent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "index")


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
        with held_elsewhere(path, "r"):
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
    make = xtree.persistence.files.lock_file.Lock.make_exclusive

    def late(lock):
        lock._unlocked = True
        xtree.persistence.files.lock_file._unlock(lock._fd)
        code = "import sys, xtree\nwith xtree.open(sys.argv[1]) as tree: tree.insert(7, [0, 0, 1, 1])"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        return make(lock)

    reader = xtree.open(path, mode="r")
    snapshot = reader.snapshot()
    monkeypatch.setattr(xtree.persistence.files.lock_file.Lock, "make_exclusive", late)
    with xtree.open(path) as writer:
        assert sorted(writer.query(BOX)) == [1, 7]
        with pytest.raises(xtree.ClosedError):
            snapshot.count(BOX)
    with pytest.raises(xtree.ClosedError):
        len(reader)


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


def test_threads_that_open_and_close_over_and_over_meet_no_lock_of_their_own(path):
    wrong, stop = [], threading.Event()

    def work():
        try:
            while not stop.is_set():
                with xtree.open(path, mode="r+") as tree:
                    assert tree.dims == 2
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        stop.wait(1.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not wrong, wrong[0]


def test_opening_inside_a_call_that_keeps_the_index_open_does_not_wait_for_its_end(path):
    tree = xtree.open(path)
    refused = []

    def progress(done, total):
        tree.close()
        if not refused:
            with pytest.raises(xtree.TransactionError, match="in the middle of one of its own calls"):
                xtree.open(path, timeout=None)
            refused.append(done)

    with pytest.raises(xtree.ClosedError):
        tree.bulk_load(np.arange(50_000), np.random.default_rng(1).random((50_000, 2)), progress)
    assert refused and elsewhere(path) == "1"


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
    """Two threads would wait for each other, so one gets an error at once."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        xtree.open(path, dims=2).close()
    meet = threading.Barrier(2)
    for path in paths:  # a clean open reads nothing, and calls nothing
        leave_unclean(path)
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
    leave_unclean(path)
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
from xtree.persistence.base.crash_points import set_hook
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
    leave_unclean(path)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["interrupted", "2"], done.stderr


def is_free(path: Path) -> bool:
    """Whether no process, this one included, holds the lock of an index."""
    try:
        _, lock = sharing.FileSystem().lock_directory(path, shared=False)
    except xtree.LockedError:
        return False
    lock.release()
    return True


def is_let_go(path: Path) -> bool:
    """Whether it is free, if need be after garbage was collected."""
    return is_free(path) or (gc.collect() >= 0 and is_free(path))


def in_finalizer(frame: FrameType | None) -> bool:
    """Whether a frame is that of a finalizer, or called by one: what they raise is lost."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def interrupted_at(nth: int) -> Iterator[list[str]]:
    """Raises KeyboardInterrupt before the n-th line or call in the library; the list names it, if there were so many.

    Not before lines with `with`. They are traced again at the end of the block, where nothing could interrupt before
    the __exit__ of something compiled.
    """
    where: list[str] = []
    left = nth

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(SOURCES) or in_finalizer(frame):
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "call" or (event == "line" and not line.lstrip().startswith("with ")):
            left -= 1
            if left == 0:
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                raise KeyboardInterrupt
        return trace

    gc.disable()  # an interrupt in what the collector calls would reach nobody
    sys.settrace(trace)
    try:
        yield where
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
        gc.enable()


keeps_locks = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="an interrupt as a with block begins leaves its lock taken (README, Limits)"
)


@pytest.mark.slow
@keeps_locks
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
        assert is_let_go(path), where
        step = step % 11 + 1
        nth += step
    assert nth > 200 and elsewhere(path) == "1"


@pytest.mark.slow
@keeps_locks
def test_an_interrupt_before_any_line_of_an_open_to_write_beside_a_reader_leaves_it_well(path):
    nth, step = 1, 0
    while True:
        reader, writer = xtree.open(path, mode="r"), None
        with interrupted_at(nth) as where:
            writer = xtree.open(path)
        assert len(reader) == 1, where
        if where:
            assert writer is None
            assert reader._session.share.store is reader._store, where
            assert reader._store.read_only == reader._store.directory_lock.shared, where
            if nth % 4 == 0:
                with xtree.open(path) as again:
                    again.update(1, BOX, BOX)
        else:
            writer.close()
        reader.close()
        assert is_let_go(path), where
        if not where:
            break
        step = step % 13 + 1
        nth += step
    assert nth > 200 and elsewhere(path) == "1"


@pytest.mark.slow
def test_a_process_that_dies_at_any_named_point_of_opening_to_write_beside_its_reader_loses_nothing(tmp_path):
    left, nth, died = tmp_path / "left", 0, True
    leave_unclean(left, 300)
    while died:
        nth += 1
        path = tmp_path / str(nth)
        shutil.copytree(left, path)
        child = os.fork()
        if not child:
            status = 1
            try:
                reader = xtree.open(path, mode="r")
                with reader.snapshot() as snapshot:
                    reached = []
                    set_hook(lambda name: (reached.append(name), os._exit(42) if len(reached) == nth else None))  # noqa: B023
                    writer = xtree.open(path)
                    set_hook(None)
                    status = 0 if len(snapshot) == len(reader) == len(writer) == 300 else 2
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 42), (nth, code)
        died = code == 42
        with xtree.open(path) as tree:
            assert len(tree) == 300
            tree.check()
    assert nth > 8


def test_a_thread_that_waits_for_another_process_keeps_no_other_thread_waiting(path):
    got = []
    waiting = threading.Thread(target=lambda: got.append(xtree.open(path, timeout=None)))
    with held_elsewhere(path, "a"):
        waiting.start()
        waiting.join(0.2)
        for mode in ("a", "r"):
            with pytest.raises(xtree.LockedError):
                xtree.open(path, mode=mode)
    waiting.join(60)
    assert len(got[0]) == 1
    got[0].close()


def test_one_that_waits_to_make_a_new_index_makes_it_when_another_process_gives_up(tmp_path):
    path = tmp_path / "index"
    path.mkdir()
    _, lock = sharing.FileSystem().lock_directory(path, shared=False)
    with pytest.raises(FileExistsError, match="is being made there"):
        xtree.open(path, dims=2, mode="x")
    made = []
    thread = threading.Thread(target=lambda: made.append(xtree.open(path, dims=2, mode="x", timeout=60)))
    thread.start()
    thread.join(0.2)
    assert not made
    lock.release()
    thread.join(60)
    made[0].insert(1, BOX)
    made[0].close()
    assert elsewhere(path) == "1"


def test_two_paths_to_one_directory_never_lead_to_two_stores_that_write(path):
    """As if the directory were mounted twice: another thread is in the middle of opening it by the other path."""
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


@pytest.mark.skipif(not lock_file.BYTE_LOCKS, reason="needs locks of bytes that belong to open files")
def test_a_lock_is_not_let_go_to_try_for_more_while_another_process_tries(path):
    _, lock = sharing.FileSystem().lock_directory(path, shared=True)
    other = os.open(path / "LOCK", os.O_RDWR)
    assert lock_file._lock_byte(other, True)
    assert not lock.make_exclusive() and lock.shared
    assert lock_file._lock_byte(other, False)
    assert lock.make_exclusive() and not lock.shared
    assert lock.make_shared() and lock.shared
    lock.release()
    os.close(other)


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
        patch.setattr("xtree.persistence.opening.recover", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            xtree.open(path)
        assert len(reader) == 1 and "reads it" in elsewhere(path)
        patch.setattr(xtree.persistence.files.lock_file.Lock, "make_shared", lambda lock: False)
        with pytest.raises(ZeroDivisionError):
            xtree.open(path)
    with pytest.raises(xtree.ClosedError):
        len(reader)
    assert elsewhere(path) == "1"


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
