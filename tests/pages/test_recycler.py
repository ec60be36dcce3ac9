"""The recycler unmaps when there are too many mappings and nobody can be reading them, and never before.

Promises (One writer, many readers):

- no mapping goes while a call may read from it, and calls that began later hold none of them up:
  test_a_flight_that_began_before_keeps_every_mapping_until_its_end,
  test_a_flight_that_began_after_the_bases_were_hidden_holds_nothing_up.
- every page read is right while hardly any file may stay mapped or open, beside a writer and checks:
  test_every_page_is_right_while_hardly_any_may_stay_mapped,
  test_long_calls.py::test_answers_are_right_in_many_threads_while_one_window_may_stay_mapped.
- a thousand files need few mappings and descriptors:
  test_a_thousand_files_are_read_and_written_with_few_mappings_and_descriptors.
- the recycler ends with its store, and is no hindrance to forks and the end of the process:
  test_the_end_waits_for_the_thread_and_not_for_flights, test_a_child_of_a_process_with_a_recycler_at_work_ends,
  test_a_process_ends_while_its_recycler_waits.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from support.opened_file import Opened
from support.places import TESTS
from support.text_pages import KIND, eventually, small

import xtree
from xtree.persistence.opening import open_store
from xtree.persistence.pages import mmap_windows, recycler
from xtree.persistence.pages.mmap_windows import Windows
from xtree.persistence.pages.mvcc import Epochs
from xtree.persistence.pages.recycler import Recycler
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

pytestmark = pytest.mark.threads

PAGE = 4096
TINY = {"data_file_first_bytes": 64 << 10, "data_file_bytes": 64 << 10, "checkpoint_log_bytes": 1 << 20}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def windows(tmp_path):
    """Ten windows of files, with a budget of three and a recycler."""
    made = Windows()
    made.set_budget(3)
    with contextlib.ExitStack() as opened:
        for i in range(10):
            file = opened.enter_context(open(tmp_path / f"file{i}", "w+b"))
            file.truncate(PAGE)
            made.add_file(Opened(file), PAGE)
        yield made
        made.unmap_all()


@pytest.fixture
def flights(windows):
    made = Epochs(timed=False)
    windows.set_recycler(Recycler(windows, made))
    return made


def map_all(windows) -> None:
    for window in range(len(windows)):
        windows.map(window)


def test_mappings_beyond_the_budget_go_when_nobody_uses_them(windows, flights):
    map_all(windows)
    eventually(lambda: windows.mapped_files <= 3)
    assert windows.mapped_files == windows.mapped == 3
    assert windows.stats()["recycled"] == 7 and windows.stats()["mapped_peak"] == 10
    assert flights.stats()["current"] >= 1


def test_within_the_budget_there_is_no_thread(windows, flights):
    for window in (0, 1, 2):
        windows.map(window)
    assert not windows.recycler.is_running and flights.stats()["current"] == 0


def test_a_flight_that_began_before_keeps_every_mapping_until_its_end(windows, flights):
    flight = flights.pin_epoch()
    map_all(windows)
    eventually(lambda: windows.recycler.passes == 1)
    later = flights.pin_epoch()
    assert flights.epoch_of(later) == 1
    gone = threading.Event()
    assert not gone.wait(0.1)
    assert windows.mapped_files == 10
    flights.release(flight)
    eventually(lambda: windows.stats()["recycled"] > 0)
    flights.release(later)
    eventually(lambda: windows.mapped_files <= 3)


def test_an_outgrown_mapping_stays_until_flights_that_began_before_have_ended(windows, flights, tmp_path):
    with open(tmp_path / "growing", "w+b") as file:
        file.truncate(PAGE)
        window = windows.add_file(Opened(file), 1 << 30, PAGE)
        windows.map(window)
        before = flights.pin_epoch()
        windows.grow(window, 1 << 22)
        eventually(lambda: windows.recycler.passes == 1)
        after = flights.pin_epoch()
        gone = threading.Event()
        assert not gone.wait(0.1)
        assert windows.stats()["outgrown"] == 1 and windows.mapped_bytes(window) == 1 << 22
        flights.release(before)
        eventually(lambda: windows.stats()["outgrown"] == 0)
        assert flights.epoch_of(after) == 1 and not windows.is_hidden(window)
        flights.release(after)
        assert (windows.mapped_files, windows.reserved_bytes) == (1, 1 << 22)


def test_a_tree_that_grows_keeps_no_outgrown_mapping(tmp_path):
    rng = np.random.default_rng(5)
    with xtree.open(tmp_path / "index", dims=2, durability="eventual") as tree:
        for i in range(12):
            tree.insert_many(np.arange(10_000) + 10_000 * i, rng.random((10_000, 2)))
        windows = tree._store.windows
        assert windows.mapped_bytes(0) > 4 << 20
        eventually(lambda: windows.stats()["outgrown"] == 0)
        assert windows.reserved_bytes < 4 * tree.runtime.stats()["data_files"]["bytes"]
        assert len(tree) == tree.count([-1.0, -1.0, 2.0, 2.0]) == 120_000


def test_a_flight_that_began_after_the_bases_were_hidden_holds_nothing_up(windows, flights):
    before = flights.pin_epoch()
    map_all(windows)
    eventually(lambda: windows.recycler.passes == 1)
    after = flights.pin_epoch()
    flights.release(before)
    eventually(lambda: windows.stats()["recycled"] > 0)
    assert flights.epoch_of(after) == 1
    flights.release(after)


def test_windows_used_again_meanwhile_stay_mapped(windows, flights):
    flight = flights.pin_epoch()
    map_all(windows)
    eventually(lambda: windows.recycler.passes == 1)
    assert windows.is_hidden(0) and windows.is_hidden(1)
    windows.map(0)
    windows.map(1)
    flights.release(flight)
    eventually(lambda: windows.mapped_files <= 3)
    assert windows.stats()["revived"] == 2
    assert windows.is_mapped(0) and windows.is_mapped(1)


def test_a_renewed_flight_lets_the_mappings_go(windows, flights):
    flight = flights.pin_epoch()
    map_all(windows)
    eventually(lambda: windows.recycler.passes == 1)
    flights.renew_own()
    eventually(lambda: windows.stats()["recycled"] > 0)
    flights.release(flight)


def test_the_thread_ends_when_there_is_nothing_to_do_and_begins_again_at_need(windows, flights, monkeypatch):
    monkeypatch.setattr(recycler, "LINGER_S", 0.001)
    for _ in range(20):
        map_all(windows)
        eventually(lambda: windows.mapped_files <= 3 and not windows.recycler.is_running)
    assert windows.stats()["recycled"] >= 20 * 7


def test_the_end_waits_for_the_thread_and_not_for_flights(windows, flights):
    flight = flights.pin_epoch()
    thread = windows.recycler
    map_all(windows)
    eventually(lambda: thread.passes == 1)
    windows.unmap_all()
    assert not thread.is_running and windows.mapped == 0
    thread.wake()
    assert not thread.is_running
    flights.release(flight)


def test_a_forgotten_store_takes_its_mappings_along(windows, flights, monkeypatch):
    monkeypatch.setattr(recycler, "LINGER_S", 0.001)
    map_all(windows)
    eventually(lambda: not windows.recycler.is_running)
    made = Windows()
    made.set_recycler(Recycler(made, Epochs(timed=False)))
    gone = threading.Event()

    class Watched:
        def __del__(self):
            gone.set()

    watched = Opened(None)
    watched.watched = Watched()
    made.add_file(watched, PAGE)
    del made, watched
    gc.collect()
    assert gone.is_set()


@forks
def test_a_forked_child_forgets_the_thread(windows, flights):
    flight = flights.pin_epoch()
    map_all(windows)
    eventually(lambda: windows.recycler.passes == 1)
    pid = os.fork()
    if pid == 0:
        windows.recycler.forget_thread()
        windows.unmap_all()
        os._exit(7 if windows.mapped == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    flights.release(flight)
    eventually(lambda: windows.mapped_files <= 3)


def test_a_process_ends_while_its_recycler_waits(tmp_path):
    program = """
        import sys
        from xtree.persistence.pages.mmap_windows import Windows
        from xtree.persistence.pages.mvcc import Epochs
        from xtree.persistence.pages.recycler import Recycler
        sys.path.insert(0, sys.argv[2])
        from support.opened_file import Opened
        windows, flights = Windows(), Epochs(timed=False)
        windows.set_budget(1)
        windows.set_recycler(Recycler(windows, flights))
        flights.pin_epoch()
        for i in range(5):
            file = open(f"{sys.argv[1]}/{i}", "w+b")
            file.truncate(4096)
            windows.map(windows.add_file(Opened(file), 4096))
        assert windows.recycler.is_running
        print("ended")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(TESTS)],
        capture_output=True, text=True, timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


# A store whose pages are spread over many files.


def fill(name: str, version: int) -> bytes:
    """The content of a page: its name and version, over and over."""
    text = f"{name}:{version};".encode()
    return (text * (PAGE // len(text) + 1))[: PAGE - 24]


def write(store, names, version: int) -> None:
    """Commits a new content for the page of each name."""
    write_set = begin(store)
    changes = {}
    for name in names:
        entry = write_set.base.catalog.get(name)
        content = fill(name, version)
        root = write_set.replace_page(entry.root, content) if entry else write_set.add_page(KIND, 0, content)
        changes[name] = CatalogEntry(name, "text", root, b"")
    write_set.commit(changes)


def read(store, name: str) -> int:
    """The version of a page. All of the page is compared."""
    with store.read() as published:
        content = store.read_page(published.catalog.get(name).root)
    version = int(content[: content.index(b";")].split(b":")[1])
    assert content == fill(name, version), f"{name} holds {content[:60]!r}"
    return version


def churn(store, names, seconds: float, readers: int) -> None:
    """Runs readers, a writer and checks at the same time. Every page read is whole, and not older than before."""
    ended, failures = threading.Event(), []

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except BaseException as failure:
            failures.append(failure)
            ended.set()

    def read_on(seed):
        rng, seen = random.Random(seed), dict.fromkeys(names, 0)
        while not ended.is_set():
            start = rng.randrange(len(names))
            for name in rng.choices(names[start : start + 30], k=2000):  # they are in a few files
                if ended.is_set():
                    break
                version = read(store, name)
                assert version >= seen[name], f"{name} went from {seen[name]} to {version}"
                seen[name] = version

    def write_on():
        rng, version = random.Random(1), 1
        while not ended.is_set():
            write(store, rng.sample(names, min(5, len(names))), version)
            version += 1

    def check_on():
        while not ended.is_set():
            store.check()
            ended.wait(0.3)  # a check touches every file, and would keep all in use

    works = [(read_on, seed) for seed in range(readers)] + [(write_on,), (check_on,)]
    threads = [threading.Thread(target=guarded, args=work) for work in works]
    for thread in threads:
        thread.start()
    ended.wait(seconds)
    ended.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def descriptors_of(path) -> int:
    """The number of this process's descriptors for data files of an index."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            found += target.startswith(f"{path}/data-")
    return found


def mappings_of(path) -> int:
    """The number of this process's mappings of data files of an index."""
    with open("/proc/self/maps") as maps:
        return sum(f"{path}/data-" in line for line in maps)


def make_files(path, pages: int, mode="balanced", **fields):
    """A store with `pages` pages of 15 a file, opened anew."""
    config = small(mode, **{**TINY, **fields})
    names = [f"n{i}" for i in range(pages)]
    store = open_store(path, config=config)
    for start in range(0, pages, 3000):
        write(store, names[start : start + 3000], 0)
    store.close()
    return open_store(path, config=config), names


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["balanced", "strict", "eventual"])
@pytest.mark.parametrize("budget", [1, 2])
def test_every_page_is_right_while_hardly_any_may_stay_mapped(tmp_path, mode, budget):
    store, names = make_files(tmp_path / "index", 1500, mode, mapping_budget=budget, descriptor_budget=1)
    churn(store, names, 1.0, readers=3)
    stats = store.stats()
    assert stats["windows"]["recycled"] > 0 and stats["windows"]["unmap_failures"] == 0
    eventually(lambda: store.windows.mapped_files <= budget)
    store.close()
    with contextlib.closing(open_store(tmp_path / "index", config=store.config)) as again:
        again.check()
        assert again.recovery.clean


@pytest.mark.torture
def test_every_page_is_right_for_a_minute(tmp_path):
    store, names = make_files(tmp_path / "index", 1500, mapping_budget=1, descriptor_budget=1)
    churn(store, names, 60.0, readers=8)
    print(store.stats()["windows"])
    assert store.stats()["windows"]["recycled"] > 100
    store.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_files_are_read_and_written_with_few_mappings_and_descriptors(tmp_path):
    path = tmp_path / "index"
    store, names = make_files(path, 15_000, mapping_budget=8, descriptor_budget=8)
    files = store.stats()["data_files"]
    assert files["files"] >= 1000
    assert files["descriptors"]["opened"] == 0 and mappings_of(path) == descriptors_of(path) == 0
    churn(store, names, 2.0, readers=3)
    store.checkpoint()
    eventually(lambda: mappings_of(path) <= 8 and descriptors_of(path) <= 8)
    stats = store.stats()
    assert stats["windows"]["mapped"] <= 8 and stats["data_files"]["descriptors"]["open"] <= 8
    assert stats["windows"]["over_budget"] > 0 and stats["windows"]["mapped_peak"] > 8
    assert {read(store, name) for name in random.Random(2).sample(names, 100)}
    store.close()
    assert mappings_of(path) == descriptors_of(path) == 0


def test_a_store_closed_by_a_finalizer_in_the_recycler_is_closed_cleanly(tmp_path, monkeypatch):
    store, names = make_files(tmp_path / "index", 150, mapping_budget=1)
    write(store, names[:2], 1)
    real, done = mmap_windows.heapq, threading.Event()

    class Closing:
        def nsmallest(self, n, found):
            monkeypatch.setattr(mmap_windows, "heapq", real)
            store.close()
            done.set()
            return real.nsmallest(n, found)

    monkeypatch.setattr(mmap_windows, "heapq", Closing())
    for name in names:
        if not done.is_set() and store.state == "open":
            with contextlib.suppress(Exception):
                read(store, name)
    assert done.wait(60)
    store.close()  # waits for the thread that closes it
    assert store.state == "closed" and store.windows.mapped == 0
    with contextlib.closing(open_store(tmp_path / "index", config=store.config)) as again:
        assert again.recovery.clean and read(again, names[0]) == 1


def test_mappings_in_use_by_the_stores_own_threads_are_kept_without_holding_up_the_end(tmp_path):
    store, names = make_files(tmp_path / "index", 150, mapping_budget=1)
    with store.in_flight():
        for name in names:
            read(store, name)
        eventually(lambda: store.windows.recycler.passes > 0)
        mapped = store.windows.mapped_files
        assert mapped == store.windows.count > 1
        read(store, names[0])
        assert store.windows.mapped_files == mapped
        store.close()
        assert store.state == "closed"


@forks
def test_a_child_of_a_process_with_a_recycler_at_work_ends(tmp_path):
    store, names = make_files(tmp_path / "index", 300, mapping_budget=1)
    with store.in_flight():
        for name in names:
            read(store, name)
        eventually(lambda: store.windows.recycler.passes > 0)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                store.close()
                status = 0 if store.state == "forked" else 2
                store = None
                gc.collect()
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    eventually(lambda: store.windows.mapped_files == 1)
    store.close()


def test_a_store_in_memory_recycles_nothing():
    store = MemoryStore()
    names = [f"n{i}" for i in range(300)]
    write(store, names, 0)
    assert store.windows.recycler is None
    assert all(read(store, name) == 0 for name in names)
    assert store.stats()["windows"]["mapped"] == 0 and store.windows.mapped > 0
    store.close()


def test_pages_rebuilt_for_a_reader_stay_in_memory(tmp_path):
    config = small("balanced", **TINY, mapping_budget=1)
    store = open_store(tmp_path / "index", config=config)
    names = [f"n{i}" for i in range(200)]
    write(store, names, 3)
    store._coordinator.poison(OSError("a failure of this test"))
    store.close()
    with contextlib.closing(open_store(tmp_path / "index", mode="r", config=config)) as reader:
        assert not reader.recovery.clean
        assert all(read(reader, name) == 3 for name in names for _ in range(2))
        reader.check()


def test_a_file_is_kept_open_from_the_first_page_given_out_in_it(tmp_path):
    store, names = make_files(tmp_path / "index", 150, descriptor_budget=1)
    descriptors = lambda: store.stats()["data_files"]["descriptors"]  # noqa: E731
    write_set = begin(store)
    assert (descriptors()["open"], descriptors()["kept"]) == (0, 0)
    write_set.add_page(KIND, 0, b"x")
    assert (descriptors()["open"], descriptors()["kept"]) == (1, 1)
    for name in names:
        read(store, name)
    assert descriptors()["kept"] == 1
    write_set.abort()
    assert descriptors()["kept"] == 1
    write(store, names[:1], 1)
    store.checkpoint()
    assert (descriptors()["open"], descriptors()["kept"]) == (1, 0)
    store.close()
