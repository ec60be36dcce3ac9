"""Making an index: of several attempts at the same path one succeeds, and an attempt that fails leaves nothing.

Promises (One writer, many readers):

- a creation that fails or is interrupted anywhere leaves nothing:
  test_a_creation_in_which_any_call_fails_leaves_nothing, test_a_creation_that_is_interrupted_anywhere_leaves_nothing,
  test_a_build_that_fails_leaves_nothing.
- of several that make an index at one path at once one does, and none removes another's:
  test_of_threads_that_make_an_index_at_once_one_does_and_the_others_say_so,
  test_of_builds_to_one_new_path_at_once_one_wins_and_the_others_say_so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.faulty_fs import FaultyFileSystem
from support.text_pages import by_request, put, texts_of

import xtree
from xtree.errors import CorruptionError, LockedError
from xtree.persistence.backup import write_backup
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.files import open_directory, platform_fs
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import exists, open_store
from xtree.tools.build import build_index
from xtree.tools.fsck import fsck
from xtree.tools.salvage import salvage_index

CONFIG = by_request()
ROUNDS = 12
AT_ONCE = 4


def require_nothing(path: Path, existed: bool) -> None:
    """Asserts that a creation left nothing, or the empty directory that there was, and that the next one works."""
    assert path.exists() == existed
    assert not existed or os.listdir(path) == []
    store = open_store(path, mode="x", config=CONFIG)
    put(store, {"a": "1"})
    store.close()
    assert fsck(path).ok


@pytest.fixture(params=["a missing directory", "an empty directory"])
def place(request, tmp_path) -> tuple[Path, bool]:
    """The path at which an index is to be made, and whether there is a directory."""
    existed = request.param == "an empty directory"
    if existed:
        (tmp_path / "index").mkdir()
    return tmp_path / "index", existed


# What fails.


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("mode", ["a", "x"])
def test_a_creation_in_which_any_call_fails_leaves_nothing(place, mode, number, tally):
    path, existed = place
    for nth in range(1, 1000):
        fs = FaultyFileSystem(reading=True)
        fs.fail_nth(nth, number)
        try:
            open_store(path, mode=mode, config=CONFIG, fs=fs).close()
            break
        except OSError as error:
            assert error.errno == number
        assert path.exists() == existed, f"call {nth}"
        assert not existed or os.listdir(path) == [], f"call {nth}"
    assert nth > 15
    tally("calls of a creation that failed", nth - 1)


@pytest.mark.parametrize("removed", range(4))
def test_what_a_failed_creation_could_not_remove_opens_or_is_made_afresh(tmp_path, removed):
    fs = FaultyFileSystem()
    left = removed

    def judge(call: str, path: str) -> int | None:
        nonlocal left
        if call == "unlink":
            left -= 1
        return errno.EIO if left < 0 else None

    def fail(name: str) -> None:
        if name == "create.superblock_synced":
            fs.judge = judge
            raise MemoryError

    set_hook(fail)
    with pytest.raises(MemoryError):
        open_store(tmp_path / "index", config=CONFIG, fs=fs)
    set_hook(None)
    assert exists(tmp_path / "index") == (removed == 0)
    with contextlib.closing(open_store(tmp_path / "index", config=CONFIG)) as store:
        put(store, {"a": "1"})


class InterruptingFileSystem(FaultyFileSystem):
    """A file system in which an interrupt arrives before the n-th call."""

    def __init__(self, nth: int) -> None:
        super().__init__(reading=True)
        self.left = nth

    def ask(self, call, path):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().ask(call, path)


def test_a_creation_that_is_interrupted_anywhere_leaves_nothing(place):
    path, existed = place
    for nth in range(1, 1000):
        try:
            open_store(path, config=CONFIG, fs=InterruptingFileSystem(nth)).close()
            break
        except KeyboardInterrupt:
            assert path.exists() == existed, f"call {nth}"
            assert not existed or os.listdir(path) == [], f"call {nth}"
    assert nth > 15


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_a_creation_that_ends_at_any_named_point_leaves_nothing(place, kind):
    path, existed = place
    reached = []
    for nth in range(1, 1000):
        left = nth

        def hook(name):
            nonlocal left
            left -= 1
            if left == 0:
                reached.append(name)
                raise kind

        set_hook(hook)
        try:
            store = open_store(path, config=CONFIG)
        except kind:
            set_hook(None)
            assert path.exists() == existed, reached[-1]
            assert not existed or os.listdir(path) == [], reached[-1]
        else:
            set_hook(None)
            store.close()
            break
        finally:
            set_hook(None)
    assert "create.superblock_synced" in reached


def test_what_a_killed_creation_has_left_goes_with_one_that_fails(tmp_path):
    path = tmp_path / "index"
    path.mkdir()
    for name in ("LOCK", "manifest.json", "manifest.json.tmp"):
        (path / name).write_bytes(b"")
    fs = FaultyFileSystem()
    fs.fail("create", "superblock.bin", errno.ENOSPC)
    with pytest.raises(OSError):
        open_store(path, config=CONFIG, fs=fs)
    require_nothing(path, True)


def test_an_index_that_was_there_stays_whatever_fails(tmp_path):
    path = tmp_path / "index"
    with contextlib.closing(open_store(path, config=CONFIG)) as store:
        put(store, {"a": "1"})
    lock = (path / "LOCK").stat().st_ino
    for mode in ("r", "r+", "a", "x"):
        for nth in range(1, 1000):
            fs = FaultyFileSystem(reading=True)
            fs.fail_nth(nth)
            try:
                store = open_store(path, mode=mode, config=CONFIG, fs=fs)
                store.discard()
                break
            except FileExistsError:
                break
            except OSError:
                pass
            assert (path / "LOCK").stat().st_ino == lock, "others may wait for that one"
            with contextlib.closing(open_store(path, mode="r", config=CONFIG)) as store:
                assert texts_of(store) == {"a": "1"}
    with contextlib.closing(open_store(path, mode="r+", config=CONFIG)) as store:
        assert texts_of(store) == {"a": "1"}


def test_a_directory_with_somebody_elses_files_is_left_alone(tmp_path):
    (tmp_path / "theirs").write_text("x")
    with pytest.raises(CorruptionError):
        open_store(tmp_path, config=CONFIG)
    assert os.listdir(tmp_path) == ["theirs"]


# What makes an index on the way: `open` with its tree, `from_boxes`, `xtree build`, a salvage.


def interrupt(done: int, total: int) -> None:
    """A progress callback that doesn't let the work end."""
    raise KeyboardInterrupt


def fail_commits(monkeypatch) -> None:
    """Makes every creation of a log fail from now on."""

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("xtree.persistence.files.wal.LogWriter.create", full)


def test_an_open_that_cannot_make_its_tree_leaves_nothing(place, monkeypatch):
    path, existed = place
    with monkeypatch.context() as failing:
        fail_commits(failing)
        with pytest.raises(OSError):
            xtree.open(path, dims=2)
    require_nothing(path, existed)


def test_from_boxes_whose_load_fails_leaves_nothing(place):
    path, existed = place
    with pytest.raises(KeyboardInterrupt):
        xtree.XTree.from_boxes(np.zeros((20_000, 4)), path=path, progress=interrupt)
    require_nothing(path, existed)


@pytest.mark.parametrize("append", [False, True])
def test_a_build_that_fails_leaves_nothing(place, append):
    path, existed = place
    source = path.with_name("boxes.npy")
    np.save(source, np.zeros((20_000, 4)))
    with pytest.raises(KeyboardInterrupt):
        build_index(source, path, append=append, progress=interrupt)
    source.unlink()
    require_nothing(path, existed)


def test_a_build_that_appends_and_fails_leaves_the_index_as_it_was(tmp_path):
    path, source = tmp_path / "index", tmp_path / "boxes.npy"
    np.save(source, np.zeros((20_000, 4)))
    with xtree.open(path, dims=2) as tree:
        tree.insert(7, (0, 0, 1, 1))
    with pytest.raises(KeyboardInterrupt):
        build_index(source, path, append=True, progress=interrupt)
    with xtree.open(path) as tree:
        assert tree.items()[0].tolist() == [7]


def test_a_salvage_that_cannot_write_leaves_nothing(place, monkeypatch):
    path, existed = place
    source = path.with_name("source")
    with xtree.Runtime(source) as runtime:
        for name in ("one", "two"):
            runtime.tree(name, dims=2).insert(1, (0, 0, 1, 1))
    loads = []

    def fail_second(self, *arguments, **named):
        loads.append(self.name)
        if len(loads) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return load(self, *arguments, **named)

    load = xtree.XTree.bulk_load
    with monkeypatch.context() as failing:
        failing.setattr(xtree.XTree, "bulk_load", fail_second)
        with pytest.raises(OSError):
            salvage_index(source, path)
    require_nothing(path, existed)


def test_a_backup_that_fails_leaves_nothing(place):
    path, existed = place
    with contextlib.closing(open_store(path.with_name("source"), config=CONFIG)) as store:
        put(store, {"a": "1"})
        with pytest.raises(KeyboardInterrupt):
            write_backup(store, path, interrupt)
    require_nothing(path, existed)


# Several at once.


class Meeting:
    """A place where threads wait until each of the others has come too, or has left."""

    def __init__(self, n: int) -> None:
        self._awaited = n
        self._changed = threading.Condition()

    def leave(self) -> None:
        with self._changed:
            self._awaited -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._awaited -= 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._awaited <= 0, 60)


class MeetingFileSystem(FileSystem):
    """A file system on which all threads that make an index meet at one step, if each comes to it."""

    def __init__(self, step: str, meeting: Meeting) -> None:
        self.step, self.meeting = step, meeting

    def _meet(self, step: str) -> None:
        if step == self.step:
            self.step = ""
            self.meeting.wait()

    def leave(self) -> None:
        """Is to be called at the end, so that the others don't wait for this thread any more."""
        if self.step:
            self.step = ""
            self.meeting.leave()

    def mkdir(self, path):
        self._meet("mkdir")
        super().mkdir(path)
        self._meet("made")

    def open_directory(self, path):
        self._meet("open")
        return super().open_directory(path)

    def lock(self, path, shared, timeout=0):
        self._meet("lock")
        return super().lock(path, shared, timeout)


def at_once(path: Path, mode: str, timeout: float, fs_of: Callable[[], FileSystem | None], n: int = AT_ONCE) -> list:
    """Makes an index in n threads. Each that succeeds puts a text, and keeps the index open until all have tried."""
    results: list[object] = [None] * n
    done = threading.Barrier(n)

    def work(i: int) -> None:
        store, fs = None, fs_of()
        try:
            store = open_store(path, mode=mode, config=CONFIG, timeout=timeout, fs=fs)
            put(store, {f"{i}": "made"})
            results[i] = "made"
        except Exception as error:
            results[i] = error
        if isinstance(fs, MeetingFileSystem):
            fs.leave()
        if not timeout:
            done.wait(60)
        if store is not None:
            store.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("step", ["mkdir", "made", "open", "lock", "nowhere"])
@pytest.mark.parametrize("mode, refusal", [("x", FileExistsError), ("a", LockedError)])
def test_of_threads_that_make_an_index_at_once_one_does_and_the_others_say_so(tmp_path, mode, refusal, step):
    for number in range(3):
        path, meeting = tmp_path / str(number), Meeting(AT_ONCE)
        results = at_once(path, mode, 0, lambda meeting=meeting: MeetingFileSystem(step, meeting))
        assert results.count("made") == 1, results
        assert all(isinstance(result, refusal) for result in results if result != "made"), results
        with contextlib.closing(open_store(path, config=CONFIG)) as store:
            assert texts_of(store) == {str(results.index("made")): "made"}
        assert fsck(path).ok


def test_those_that_wait_open_what_the_first_has_made(tmp_path):
    results = at_once(tmp_path / "index", "a", 60, lambda: None)
    assert results == ["made"] * AT_ONCE
    with contextlib.closing(open_store(tmp_path / "index", config=CONFIG)) as store:
        assert texts_of(store) == {str(i): "made" for i in range(AT_ONCE)}


def test_those_that_wait_to_make_a_new_one_find_that_there_is_one(tmp_path):
    results = at_once(tmp_path / "index", "x", 60, lambda: None)
    assert results.count("made") == 1
    assert all(isinstance(result, FileExistsError) for result in results if result != "made"), results


def test_where_the_first_fails_the_next_makes_it(tmp_path):
    """The thread that fails removes the directory in which another one waits for the lock."""
    path = tmp_path / "index"
    waiting = threading.Event()
    results = []

    class Failing(FaultyFileSystem):
        def ask(self, call, path):
            if call == "create" and path.endswith("superblock.bin"):
                second.start()
                assert waiting.wait(60)
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return super().ask(call, path)

    class Waiting(FileSystem):
        def lock(self, path, shared, timeout=0):
            try:
                return super().lock(path, shared, timeout)
            except LockedError:
                waiting.set()
                raise

    def work() -> None:
        store = open_store(path, mode="x", config=CONFIG, timeout=60, fs=Waiting())
        results.append(put(store, {"a": "1"}))
        store.close()

    second = threading.Thread(target=work)
    with pytest.raises(OSError):
        open_store(path, mode="x", config=CONFIG, fs=Failing())
    second.join()
    assert results and fsck(path).ok


def test_a_lock_counts_only_while_its_file_is_at_the_path(place, monkeypatch):
    """A thread opens the lock file; the maker fails and removes the file; the thread then has a removed file's lock."""
    path, existed = place
    opened, gone = threading.Event(), threading.Event()
    results = []

    class Failing(FaultyFileSystem):
        def ask(self, call, path):
            if call == "create" and path.endswith("superblock.bin"):
                second.start()
                assert opened.wait(60)
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return super().ask(call, path)

    def late(fd, shared):
        if threading.current_thread() is second and not opened.is_set():
            opened.set()
            assert gone.wait(60)
        return try_lock(fd, shared)

    def work() -> None:
        store = open_store(path, config=CONFIG, timeout=60)
        results.append(store.path.is_at_path() and "LOCK" in os.listdir(path))
        put(store, {"a": "1"})
        store.close()

    try_lock = platform_fs.try_lock
    monkeypatch.setattr(platform_fs, "try_lock", late)
    second = threading.Thread(target=work)
    with pytest.raises(OSError):
        open_store(path, config=CONFIG, fs=Failing())
    assert path.exists() == existed
    gone.set()
    second.join()
    assert results == [True] and fsck(path).ok


def test_one_that_waits_for_a_lock_takes_the_index_that_was_put_there_meanwhile(tmp_path):
    """The old handle stays open; its index isn't at the path any more."""
    path, other = tmp_path / "index", tmp_path / "other"
    open_store(other, config=CONFIG).close()
    old = open_store(path, config=CONFIG)
    refused = threading.Event()
    got = []

    class Waiting(FileSystem):
        def lock(self, path, shared, timeout=0):
            try:
                return super().lock(path, shared, timeout)
            except LockedError:
                refused.set()
                raise

    def work() -> None:
        store = open_store(path, mode="r+", config=CONFIG, timeout=60, fs=Waiting())
        got.append(put(store, {"a": "1"}))
        store.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert refused.wait(60)
    path.rename(tmp_path / "aside")
    other.rename(path)
    thread.join()
    assert got and old.state == "open"
    old.close()
    assert fsck(path).ok and fsck(tmp_path / "aside").ok


BUILDER = """
import contextlib, io, json, sys
from xtree.tools.cli import main
print("ready", flush=True)
for path in map(str.strip, sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(["build", sys.argv[1], path, *sys.argv[2:]])
        except SystemExit as end:
            status = end.code or 0
    print(json.dumps([status, said.getvalue()]), flush=True)
"""


@pytest.mark.parametrize("how", ["x", "append"])
def test_of_builds_to_one_new_path_at_once_one_wins_and_the_others_say_so(tmp_path, how):
    """Two processes build at the same paths, one path after the other."""
    source = tmp_path / "boxes.npy"
    np.save(source, np.arange(4000.0).reshape(1000, 4))
    command = [sys.executable, "-c", BUILDER, str(source), *(["--append"] if how == "append" else [])]
    builders = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert [builder.stdout.readline() for builder in builders] == ["ready\n"] * 2
        for number in range(ROUNDS):
            path = tmp_path / str(number)
            for builder in builders:
                builder.stdin.write(f"{path}\n")
                builder.stdin.flush()
            said = [json.loads(builder.stdout.readline()) for builder in builders]
            won = sum(status == 0 for status, _ in said)
            assert won >= 1 and (won == 1 or how == "append"), said
            for status, text in said:
                assert status == 0 or ("index" in text and "Errno" in text), text
            with xtree.open(path) as tree:
                assert len(tree) == 1000 * won
                tree.check()
            assert fsck(path).ok
    finally:
        for builder in builders:
            builder.communicate()
    assert [builder.returncode for builder in builders] == [0, 0]


def test_a_killed_creation_is_followed_by_another(tmp_path):
    path = tmp_path / "index"
    for nth in range(1, 40):
        child = os.fork()
        if child == 0:
            left = nth

            def hook(name):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            set_hook(hook)
            with contextlib.suppress(BaseException):
                open_store(path, config=CONFIG)
            os._exit(0)
        os.waitpid(child, 0)
        if exists(path):
            break
        assert nth < 39
    open_store(path, config=CONFIG).close()
    assert fsck(path).ok


def test_making_works_where_names_are_looked_up_by_path(place, monkeypatch):
    monkeypatch.setattr(open_directory, "BY_DESCRIPTOR", False)
    path, existed = place
    fs = FaultyFileSystem()
    fs.fail("create", "superblock.bin")
    with pytest.raises(OSError):
        open_store(path, config=CONFIG, fs=fs)
    require_nothing(path, existed)
