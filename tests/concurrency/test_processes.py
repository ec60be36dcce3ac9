"""Processes: one writer a directory, readers at the same time, and forks that touch nothing of the parent's.

Promises (One writer, many readers):

- a second writer is refused, a killed one's lock is free, a forked child never takes it away:
  test_a_second_writer_is_refused_with_the_owners_pid,
  test_platform_fs.py::test_the_kernel_releases_the_lock_of_a_killed_process,
  test_a_forked_childs_handles_raise_and_its_exit_changes_nothing.
- a child holds no lock of its parent's, also one forked during an open; what it does with its parent's stores raises:
  test_a_child_forked_while_the_index_is_being_opened_does_not_hold_its_lock,
  test_the_parents_death_frees_the_lock_though_a_child_lives,
  test_a_forked_childs_handles_raise_and_its_exit_changes_nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from support.places import TESTS
from support.text_pages import SMALL, put, texts_of

from xtree.errors import ClosedError, LockedError, ReadOnlyError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.opening import open_store
from xtree.persistence.store.write_set import begin

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    put(store, {"a": "1"})
    store.close()
    return path


def in_child(work) -> int:
    """Runs work() in a forked child. Returns its exit status: 0, or 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_second_writer_is_refused_with_the_owners_pid(path):
    with_lock = open_store(path, config=SMALL)
    with pytest.raises(LockedError, match=str(os.getpid())):
        open_store(path, config=SMALL)
    code = (
        "import sys\nfrom xtree.errors import LockedError\nfrom xtree.persistence.opening import open_store\n"
        "try:\n    open_store(sys.argv[1])\nexcept LockedError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert str(os.getpid()) in said.stdout
    with_lock.close()
    open_store(path, config=SMALL).close()


def test_readers_share_and_exclude_a_writer(path):
    one = open_store(path, mode="r", config=SMALL)
    two = open_store(path, mode="r", config=SMALL)
    with pytest.raises(LockedError):
        open_store(path, config=SMALL)
    assert texts_of(one) == texts_of(two) == {"a": "1"}
    with pytest.raises(ReadOnlyError):
        begin(one)
    one.close()
    two.close()
    writer = open_store(path, config=SMALL)
    with pytest.raises(LockedError):
        open_store(path, mode="r", config=SMALL)
    writer.close()


def test_a_forked_childs_handles_raise_and_its_exit_changes_nothing(path):
    store = open_store(path, config=SMALL)
    put(store, {"b": "2"})
    pin = store.pin()
    write_set = begin(store)
    write_set.add_page(200, 0, b"x")

    def child():
        for use in (
            lambda: begin(store),
            store.pin,
            lambda: store.read().__enter__(),
            lambda: write_set.commit({}),
            store.checkpoint,
        ):
            with pytest.raises(ClosedError, match="fork"):
                use()
        pin.release()
        write_set.abort()
        store.close()

    assert in_child(child) == 0
    write_set.abort()
    with pytest.raises(LockedError):
        open_store(path, config=SMALL)
    put(store, {"c": "3"})
    store.close()
    store = open_store(path, config=SMALL)
    assert store.recovery.clean
    assert texts_of(store) == {"a": "1", "b": "2", "c": "3"}
    store.close()


def test_the_parents_death_frees_the_lock_though_a_child_lives(path):
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        store = open_store(path, config=SMALL)
        put(store, {"b": "2"})
        child = os.fork()
        if child == 0:
            os.close(reader)
            signal.pause()
            os._exit(0)
        os.write(writer, child.to_bytes(8, "little"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    child = int.from_bytes(os.read(reader, 8), "little")
    os.close(reader)
    os.waitpid(parent, 0)
    try:
        store = open_store(path, config=SMALL)
        assert texts_of(store) == {"a": "1", "b": "2"}
        store.close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_forked_while_the_index_is_being_opened_does_not_hold_its_lock(tmp_path):
    children = []

    def fork(name):
        set_hook(None)
        children.append(os.fork())
        if children[-1] == 0:
            signal.pause()
            os._exit(0)

    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        set_hook(fork)
        open_store(tmp_path / "index", config=SMALL)
        os.write(writer, children[0].to_bytes(8, "little"))
        os.kill(os.getpid(), signal.SIGKILL)
    child = int.from_bytes(os.read(reader, 8), "little")
    os.close(reader)
    os.close(writer)
    os.waitpid(parent, 0)
    try:
        open_store(tmp_path / "index", config=SMALL).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_index_opened_in_a_child_is_the_childs_own(path):
    def child():
        store = open_store(path, config=SMALL)
        put(store, {"b": "2"})
        store.close()

    assert in_child(child) == 0
    store = open_store(path, config=SMALL)
    assert texts_of(store) == {"a": "1", "b": "2"}
    store.close()


def test_unclosed_stores_end_without_noise(path):
    code = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nfrom support.text_pages import SMALL, put\n"
        "from xtree.persistence.opening import open_store\n"
        "from xtree.persistence.store.write_set import begin\n"
        "store = open_store(sys.argv[1], config=SMALL)\nput(store, {'b': '2'})\npin = store.pin()\nws = begin(store)\n"
        "ws.add_page(200, 0, b'x')\n"
    )
    tests = str(TESTS)
    said = subprocess.run([sys.executable, "-c", code, str(path), tests], capture_output=True, text=True, check=True)
    assert said.stdout + said.stderr == ""
    store = open_store(path, config=SMALL)
    assert texts_of(store) == {"a": "1", "b": "2"}
    store.close()
