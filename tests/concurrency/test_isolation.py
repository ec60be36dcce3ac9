"""Isolation: runtimes in one process share nothing, and a read-only one changes nothing.

Promises (One writer, many readers):

- a read-only open makes no call that changes anything, and works where nothing can be written:
  test_a_read_only_open_makes_no_changing_call, test_a_directory_that_cannot_be_written_is_read.
- runtimes in one process share nothing:
  test_runtimes_with_the_same_tree_names_keep_apart_under_threads,
  test_a_failed_or_closed_runtime_does_not_touch_another.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import xtree
from xtree.persistence.files.platform_fs import File, FileSystem, SyncFailedError


def rows(tree) -> list[int]:
    return sorted(tree.items()[0].tolist())


def test_runtimes_with_the_same_tree_names_keep_apart_under_threads(tmp_path):
    settings = [
        xtree.Config(durability="strict", window_bytes=1 << 20, page_bytes=4096),
        xtree.Config(durability="eventual", window_bytes=4 << 20, page_bytes=8192, sync_interval_ms=5),
        xtree.Config(checkpoint_log_bytes=128 << 10),
    ]
    runtimes = [xtree.Runtime(tmp_path / str(i), config=config) for i, config in enumerate(settings)]
    errors: list = []

    def work(number: int, part: int) -> None:
        try:
            runtime = runtimes[number]
            for i in range(40):
                with runtime.transaction(trees=["a", "b"]) as tx:
                    tx.tree("a").insert(1000 * number + 100 * part + i, (number, part))
                    tx.tree("b").insert(1000 * number + 100 * part + i, (number, part, i))
                assert all(record // 1000 == number for record in rows(runtime.tree("b")))
        except BaseException as error:
            errors.append(error)

    for runtime in runtimes:
        runtime.tree("a", dims=2), runtime.tree("b", dims=3)
    threads = [threading.Thread(target=work, args=(number, part)) for number in range(3) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with pytest.raises(xtree.TransactionError), runtimes[0].tree("a").transaction():
        runtimes[1].tree("a").insert(5, (0, 0))  # another runtime's tree of the same name is another tree
        runtimes[0].tree("a").insert(5, (0, 0))
    for number, runtime in enumerate(runtimes):
        expected = [1000 * number + 100 * part + i for part in range(2) for i in range(40)]
        assert rows(runtime.tree("b")) == expected
        runtime.check()
        runtime.close()
        assert all(not later.closed for later in runtimes[number + 1 :])


def test_a_failed_or_closed_runtime_does_not_touch_another(tmp_path, monkeypatch):
    bad, good, third = (xtree.Runtime(tmp_path / name) for name in ("bad", "good", "third"))
    trees = [runtime.tree("a", dims=2) for runtime in (bad, good, third)]
    snapshot = trees[1].snapshot()
    sync = File.sync

    def failing(self):
        if f"{os.sep}bad{os.sep}" in self.path:
            raise SyncFailedError(5, "a disk that is gone", self.path)
        sync(self)

    monkeypatch.setattr(File, "sync", failing)
    with pytest.raises(OSError):
        trees[0].insert(1, (0, 0))
    with pytest.raises(xtree.StoreFailedError):
        trees[0].insert(2, (0, 0))
    assert bad.stats()["state"] == "poisoned" and good.stats()["state"] == third.stats()["state"] == "open"
    trees[1].insert(1, (0, 0))
    third.close()
    bad.close()
    trees[1].insert(2, (0, 0))
    good.checkpoint()
    assert len(trees[1]) == 2 and len(snapshot) == 0
    with pytest.raises(xtree.ClosedError, match="third"):
        len(trees[2])
    good.check()
    good.close()
    monkeypatch.undo()
    with xtree.Runtime(tmp_path / "bad") as reopened:
        reopened.check()
        assert len(reopened.tree("a")) <= 1


CRASHED = """
import os, sys, numpy as np, xtree
rt = xtree.Runtime(sys.argv[1])
rt.tree("a", dims=2).insert_many(np.arange(2000), np.random.default_rng(1).random((2000, 2)))
rt.tree("b", dims=3).insert(1, (0, 0, 0))
rt.close() if sys.argv[2] == "clean" else os._exit(0)
"""


@pytest.fixture(params=["clean", "crashed"])
def left(request, tmp_path):
    """A directory that a process has left behind."""
    subprocess.run([sys.executable, "-c", CRASHED, str(tmp_path / "index"), request.param], check=True)
    return tmp_path / "index"


def state_of(path: Path) -> dict[str, tuple]:
    """Names, content, and times of change."""
    found = {file.name: (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in path.iterdir()}
    return {**found, ".": (path.stat().st_mtime_ns,)}


def read_everything(path: Path) -> None:
    """Makes every call that a read-only open answers, and every call that it refuses."""
    with xtree.Runtime(path, mode="r") as runtime:
        assert runtime.trees() == ["a", "b"]
        tree = runtime.tree("a")
        with tree.snapshot() as snapshot:
            assert len(snapshot.query([0, 0, 1, 1])) == len(tree) == 2000
        assert tree.nearest([0.5, 0.5], k=5).shape == (5,)
        refused = [
            lambda: tree.insert(1, (0, 0)),
            lambda: tree.delete(1, (0, 0)),
            lambda: tree.bulk_load([1], [[0.0, 0.0]]),
            lambda: runtime.tree("c", dims=2),
            lambda: runtime.drop("a"),
            runtime.checkpoint,
            lambda: tree.transaction().__enter__(),
            lambda: runtime.transaction(trees=["a"]).__enter__(),
        ]
        for call in refused:
            with pytest.raises(xtree.ReadOnlyError):
                call()
        runtime.stats(), repr(runtime), runtime._repr_html_(), tree.stats()
        runtime.check()
    with pytest.raises(ValueError, match="no tree 'default'"):
        xtree.open(path, mode="r")


def test_a_read_only_open_makes_no_changing_call(left, monkeypatch):
    before = state_of(left)

    def refuse(self, *arguments):
        raise AssertionError(f"a changing call with {arguments}")

    for name in ("pwrite", "pwritev", "write_zeros", "truncate", "reserve", "fill", "sync"):
        monkeypatch.setattr(File, name, refuse)
    for name in ("sync_directory", "replace", "unlink", "mkdir", "remove_directory", "write_atomically"):
        monkeypatch.setattr(FileSystem, name, refuse)
    opened = FileSystem.open

    def reading(self, path, mode):
        assert mode == "r", f"{path} opened with {mode!r}"
        return opened(self, path, mode)

    monkeypatch.setattr(FileSystem, "open", reading)
    read_everything(left)
    assert state_of(left) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions of files")
@pytest.mark.parametrize("with_lock_file", [True, False])
def test_a_directory_that_cannot_be_written_is_read(left, with_lock_file):
    """As an unprivileged user. If the tests run as root, this is a child process that has given that up."""
    folder = Path(tempfile.mkdtemp(prefix="xtree-read-only-"))
    try:
        path = folder / "index"
        shutil.copytree(left, path)
        if not with_lock_file:
            (path / "LOCK").unlink()
        before = state_of(path)
        for place in (*path.iterdir(), path, folder):
            place.chmod(0o555 if place.is_dir() else 0o444)
        if os.geteuid():
            read_everything(path)
        else:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.setgid(65534)
                    os.setuid(65534)
                    with pytest.raises(PermissionError):
                        (path / "probe").write_text("this disk isn't read-only")
                    read_everything(path)
                    with pytest.raises(PermissionError):
                        xtree.Runtime(path, mode="r+")
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert state_of(path) == before
    finally:
        for place in (folder, folder / "index"):
            place.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)


def test_nothing_is_printed_unless_a_program_asks_for_the_log():
    program = """
import sys, tempfile, logging, xtree
from xtree.persistence.files.platform_fs import File, SyncFailedError
if sys.argv[1] == "ask":
    logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
tree = xtree.open(tempfile.mkdtemp(), dims=2)
tree.insert(1, (0, 0))
def fail(self):
    raise SyncFailedError(5, "a disk that is gone", self.path)
File.sync = fail
try:
    tree.insert(2, (0, 0))
except OSError:
    pass
tree.close()
"""
    for ask in ("no", "ask"):
        done = subprocess.run([sys.executable, "-c", program, ask], capture_output=True, text=True, check=True)
        assert done.stdout == ""
        assert ("xtree ERROR" in done.stderr) if ask == "ask" else not done.stderr
