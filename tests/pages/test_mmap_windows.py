"""Windows are mapped lazily, and stay in place once mapped, over files that grow and over memory.

Promises (Nothing acknowledged is lost):

- a file that grows is mapped anew a few times only, and the old mapping goes when nobody uses it:
  test_a_file_is_mapped_as_far_as_it_goes_and_anew_when_it_has_outgrown_that,
  test_a_growing_file_is_mapped_a_few_times_only,
  test_recycler.py::test_an_outgrown_mapping_stays_until_flights_that_began_before_have_ended.
"""

import contextlib
import ctypes
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from xtree.errors import CapacityError
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.pages.mmap_windows import Windows
from xtree.tools.probes.loops import pages_at

PAGE = 4096


class Sparse:
    """A sparse file that counts how often its descriptor is asked for."""

    def __init__(self, file):
        self.file = file
        self.asked = 0
        self.kept = 0

    def keep(self):
        self.kept += 1

    @contextlib.contextmanager
    def opened(self):
        self.asked += 1
        yield self.file


@pytest.fixture
def sparse(tmp_path):
    with contextlib.ExitStack() as opened:

        def make(name="data", mode="w+b"):
            file = opened.enter_context(open(tmp_path / name, mode))
            if "w" in mode:
                file.truncate(PAGE)
            return Sparse(file)

        yield make


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


def mapping_of(path):
    """The kernel's list of this process's mappings of a file: (start, length, permissions)."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip().endswith(str(path)):
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                found.append((start, end - start, line.split()[1]))
    return found


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")


def test_a_files_window_is_mapped_at_its_first_use_only(sparse):
    windows, file = Windows(), sparse()
    window = windows.add_file(file, 1 << 20)
    assert (windows.count, windows.mapped, file.asked) == (1, 0, 0)
    assert not windows.is_mapped(window)
    windows.map(window)
    windows.map(window)
    assert (windows.mapped, windows.reserved_bytes, file.asked) == (1, 1 << 20, 1)


@linux
def test_a_window_spans_its_reserved_bytes_and_follows_the_file_as_it_grows(sparse):
    windows, file = Windows(), sparse()
    window = windows.add_file(file, 1 << 22)
    windows.map(window)
    ((start, length, permissions),) = mapping_of(file.file.name)
    assert length == 1 << 22 and permissions.startswith("rw") and permissions.endswith("s")
    file.file.truncate(4 * PAGE)
    ctypes.memset(start + 3 * PAGE, 0x41, PAGE)
    windows.flush(window, 3 * PAGE + 100, 50)
    file.file.seek(3 * PAGE)
    assert file.file.read() == b"A" * PAGE


@linux
def test_a_mapping_outlives_its_descriptor(sparse):
    windows, file = Windows(), sparse()
    path = file.file.name
    windows.map(windows.add_file(file, PAGE))
    file.file.close()
    ((start, _, _),) = mapping_of(path)
    ctypes.memset(start, 0x42, 3)
    with open(path, "rb") as again:
        assert again.read(3) == b"BBB"


@linux
def test_a_read_only_store_maps_read_only(sparse, tmp_path):
    sparse("data").file.close()
    windows, file = Windows(writable=False), sparse("data", mode="rb")
    windows.map(windows.add_file(file, 1 << 20))
    ((_, _, permissions),) = mapping_of(tmp_path / "data")
    assert permissions.startswith("r-")
    assert not windows.writable


@linux
def test_unmapping_leaves_no_mapping_and_no_window(sparse):
    windows, file = Windows(), sparse()
    windows.map(windows.add_file(file, 1 << 20))
    windows.add_anonymous(1 << 20)
    windows.unmap_all()
    windows.unmap_all()
    assert mapping_of(file.file.name) == []
    assert (len(windows), windows.mapped, windows.reserved_bytes) == (0, 0, 0)
    with pytest.raises(ValueError, match="no window 0"):
        windows.map(0)


@linux
def test_a_forgotten_object_unmaps_its_windows(sparse):
    windows, file = Windows(), sparse()
    windows.map(windows.add_file(file, 1 << 20))
    del windows
    assert mapping_of(file.file.name) == []


def test_memory_is_mapped_at_once():
    windows = Windows()
    for size in (1, PAGE, 1 << 20, 1 << 30):
        window = windows.add_anonymous(size)
        assert windows.is_mapped(window) and windows.bytes_of(window) == size
    windows.flush(0, 0, 0)
    assert windows.mapped == 4


@pytest.mark.parametrize("size", [0, 2**48 + 1])
def test_a_size_that_no_window_can_have_is_refused(sparse, size):
    windows = Windows()
    with pytest.raises(ValueError, match="a window has 1 to"):
        windows.add_anonymous(size)
    with pytest.raises(ValueError, match="a window has 1 to"):
        windows.add_file(sparse(), size)
    assert windows.count == 0


def test_more_memory_than_there_is_address_space_is_an_os_error():
    windows = Windows()
    with pytest.raises(OSError) as failure:
        for _ in range(2):
            windows.add_anonymous(2**47)
    assert failure.value.errno
    assert windows.count == 0


def test_a_file_that_cannot_be_mapped_is_an_os_error_and_can_be_tried_again(tmp_path):
    windows = Windows()

    class Closed:
        descriptor = -1

        @contextlib.contextmanager
        def opened(self):
            yield self

        def fileno(self):
            return self.descriptor

    file = Closed()
    window = windows.add_file(file, PAGE)
    with pytest.raises(OSError) as failure:
        windows.map(window)
    assert failure.value.errno
    with open(tmp_path / "data", "w+b") as opened:
        opened.truncate(PAGE)
        file.descriptor = opened.fileno()
        windows.map(window)
    assert windows.is_mapped(window)


def test_there_are_65536_windows_and_no_more(sparse):
    windows, file = Windows(), sparse()
    for _ in range(65536):
        windows.add_file(file, PAGE)
    for add in (lambda: windows.add_file(file, PAGE), lambda: windows.add_anonymous(PAGE)):
        with pytest.raises(CapacityError, match="all 65536 windows"):
            add()
    windows.map(65535)
    assert (windows.count, windows.mapped) == (65536, 1)


def test_flushing_outside_a_window_is_refused(sparse):
    windows = Windows()
    window = windows.add_file(sparse(), PAGE)
    windows.flush(window, 0, PAGE)
    for offset, length in [(0, PAGE + 1), (PAGE, 1), (2**63, 2**63)]:
        with pytest.raises(ValueError, match="aren't inside window"):
            windows.flush(window, offset, length)


def test_many_threads_may_map_the_same_window(sparse):
    windows, file = Windows(), sparse()
    window = windows.add_file(file, 1 << 20)
    ready = threading.Barrier(8)

    def map_it():
        ready.wait()
        windows.map(window)

    threads = [threading.Thread(target=map_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert windows.mapped == 1
    if sys.platform == "linux":
        assert len(mapping_of(file.file.name)) == 1


def test_a_window_is_mapped_once_even_if_asking_for_the_descriptor_maps_it(sparse):
    windows, inner = Windows(), sparse()

    class Reentrant:
        calls = 0

        @contextlib.contextmanager
        def opened(self):
            self.calls += 1
            if self.calls == 1:
                windows.map(window)
            yield inner.file

    window = windows.add_file(Reentrant(), 1 << 20)
    windows.map(window)
    if sys.platform == "linux":
        assert len(mapping_of(inner.file.name)) == 1


def test_a_table_that_gets_no_memory_is_a_memory_error(sparse):
    fail_allocation(1)
    with pytest.raises(MemoryError):
        Windows()
    windows, file = Windows(), sparse()
    for _ in range(8):
        windows.map(windows.add_file(file, PAGE))
    for add in (lambda: windows.add_file(file, PAGE), lambda: windows.add_anonymous(PAGE)):
        fail_allocation(1)
        with pytest.raises(MemoryError):
            add()
    assert (windows.count, windows.mapped) == (8, 8)
    assert windows.add_anonymous(PAGE) == 8


def test_windows_stay_where_they_are_while_their_tables_grow():
    windows = Windows()
    for i in range(3000):
        assert windows.add_anonymous(PAGE if i % 2 else 1 << 16) == i
        windows.write(i, 0, i.to_bytes(8, "little"))
    addresses = np.arange(3000, dtype=np.uint64) << np.uint64(48)
    pages = np.zeros(3000, dtype=np.uint64)
    pages_at(windows, addresses, pages)
    assert [ctypes.c_uint64.from_address(int(page)).value for page in pages] == list(range(3000))


@linux
def test_small_windows_of_memory_are_no_mappings():
    windows = Windows()
    before = Path("/proc/self/maps").read_text().count("\n")
    for _ in range(1000):
        windows.add_anonymous(4 * PAGE)
    assert Path("/proc/self/maps").read_text().count("\n") - before < 100
    assert windows.mapped == 1000 and windows.reserved_bytes == 1000 * 4 * PAGE


@linux
def test_a_file_is_mapped_as_far_as_it_goes_and_anew_when_it_has_outgrown_that(sparse):
    mib = 1 << 20
    windows, file = Windows(), sparse()
    window = windows.add_file(file, 1 << 30, 3 * mib // 2)
    windows.map(window)
    assert windows.mapped_bytes(window) == 2 * mib and windows.end(window) == 3 * mib // 2
    windows.grow(window, 2 * mib)
    assert (windows.mapped_bytes(window), windows.outgrown_mappings(), file.asked) == (2 * mib, [], 1)
    windows.grow(window, 2 * mib + PAGE)
    assert (windows.mapped_bytes(window), windows.end(window)) == (4 * mib, 2 * mib + PAGE)
    (old,) = windows.outgrown_mappings()
    assert windows.reserved_bytes == 6 * mib and windows.stats()["outgrown"] == 1
    ctypes.memset(old, 0x41, PAGE)  # both mappings are of the same page
    windows.flush(window, 0, PAGE)
    pages = np.zeros(1, dtype=np.uint64)
    pages_at(windows, np.array([window << 48], dtype=np.uint64), pages)
    assert ctypes.string_at(int(pages[0]), PAGE) == b"A" * PAGE
    assert windows.drop_mappings([old, 12345]) == 1
    assert len(mapping_of(file.file.name)) == 1 and windows.reserved_bytes == 4 * mib
    windows.grow(window, 1 << 30)
    assert windows.mapped_bytes(window) == 1 << 30
    with pytest.raises(ValueError, match="has 1073741824 bytes"):
        windows.grow(window, (1 << 30) + 1)
    windows.unmap_all()
    assert mapping_of(file.file.name) == []


@linux
def test_a_growing_file_is_mapped_a_few_times_only(sparse):
    windows, file = Windows(), sparse()
    window = windows.add_file(file, 1 << 30, PAGE)
    windows.map(window)
    for end in range(1 << 16, (1 << 30) + 1, 1 << 16):
        windows.grow(window, end)
    assert file.asked == 1 + 10 and windows.mapped_bytes(window) == 1 << 30


@linux
def test_a_hidden_window_that_grows_stays_hidden(sparse):
    windows, file = Windows(), sparse()
    window = windows.add_file(file, 1 << 30, PAGE)
    windows.map(window)
    windows.set_budget(0)
    assert windows.hide_windows(1) == [window]
    windows.grow(window, 1 << 22)
    assert windows.is_hidden(window) and len(windows.outgrown_mappings()) == 1
    assert windows.drop_hidden([window]) == 1
    assert not windows.is_mapped(window)
    windows.grow(window, 1 << 23)
    assert len(windows.outgrown_mappings()) == 1  # nothing was mapped, so nothing more is outgrown
    windows.map(window)
    assert windows.mapped_bytes(window) == 1 << 23


@linux
def test_a_forgotten_object_unmaps_outgrown_mappings_too(sparse):
    windows, file = Windows(), sparse()
    window = windows.add_file(file, 1 << 30, PAGE)
    windows.map(window)
    windows.grow(window, 1 << 24)
    assert len(mapping_of(file.file.name)) == 2
    del windows
    assert mapping_of(file.file.name) == []


@linux
def test_one_that_only_reads_maps_what_the_file_has(sparse):
    sparse("data").file.close()
    windows, file = Windows(writable=False), sparse("data", mode="rb")
    window = windows.add_file(file, 1 << 30, 3 * PAGE - 5)
    windows.map(window)
    assert windows.mapped_bytes(window) == 3 * PAGE


def test_mapped_files_hold_no_descriptor_of_their_own(sparse):
    windows = Windows()
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc/self/fd")
    files = [sparse(f"data{i}") for i in range(20)]
    before = len(os.listdir("/proc/self/fd"))
    for file in files:
        windows.map(windows.add_file(file, 1 << 20))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def many(sparse):
    """Six windows of files, all mapped, under a budget of two."""
    windows = Windows()
    windows.set_budget(2)
    files = [sparse(f"data{i}") for i in range(6)]
    for file in files:
        windows.map(windows.add_file(file, PAGE))
    return windows, files


def test_those_longest_untouched_are_hidden_and_memory_never(many):
    windows, _ = many
    memory = windows.add_anonymous(PAGE)
    assert windows.hide_windows(3) == [0, 1, 2]
    windows.map(1)
    assert [windows.is_hidden(window) for window in range(7)] == [True, False, True, False, False, False, False]
    assert windows.hide_windows(100) == [0, 2, 3, 4, 5, 1]
    assert windows.is_mapped(memory) and not windows.is_hidden(memory)


@linux
def test_a_hidden_window_that_is_used_again_keeps_its_mapping(many):
    windows, files = many
    before = [mapping_of(file.file.name) for file in files]
    hidden = windows.hide_windows(6)
    for window in (1, 2, 3):
        windows.map(window)
    assert windows.drop_hidden(hidden) == 3
    assert [mapping_of(files[i].file.name) == before[i] for i in range(6)] == [False, True, True, True, False, False]
    assert [windows.is_mapped(i) for i in range(6)] == [False, True, True, True, False, False]
    stats = windows.stats()
    assert (stats["mapped"], stats["mapped_peak"], stats["recycled"], stats["revived"]) == (3, 6, 3, 3)
    assert (stats["over_budget"], stats["unmap_failures"], stats["reserved_bytes"]) == (4, 0, 3 * PAGE)


def test_no_more_mappings_are_dropped_than_the_budget_asks_for(many):
    windows, files = many
    assert windows.drop_hidden(windows.hide_windows(6)) == 4
    assert [windows.is_mapped(i) for i in range(6)] == [False, False, False, False, True, True]
    windows.map(0)
    assert (files[0].asked, files[4].asked) == (2, 1)
    windows.map(4)
    assert files[4].asked == 1


def test_a_dropped_window_shows_what_was_written_to_it(sparse):
    windows, file = Windows(), sparse()
    window = windows.add_file(file, PAGE)
    for i in range(5):
        file.file.seek(0)
        file.file.write(bytes([i]) * 8)
        file.file.flush()
        windows.map(window)
        if sys.platform == "linux":
            ((start, _, _),) = mapping_of(file.file.name)
            assert ctypes.string_at(start, 8) == bytes([i]) * 8
            ctypes.memset(start + 100, 0x50 + i, 4)
        windows.set_budget(0)
        assert windows.drop_hidden(windows.hide_windows(1)) == 1
        if sys.platform == "linux":
            file.file.seek(100)
            assert file.file.read(4) == bytes([0x50 + i]) * 4


def test_a_budget_that_is_passed_wakes_the_recycler_and_nothing_else_does(sparse):
    class Recycler:
        woken = stopped = 0

        def wake(self):
            self.woken += 1

        def stop(self):
            self.stopped += 1

    windows, recycler = Windows(), Recycler()
    windows.set_budget(2)
    windows.set_recycler(recycler)
    for i in range(2):
        windows.map(windows.add_file(sparse(f"data{i}"), PAGE))
    windows.add_anonymous(PAGE)
    windows.map(1)
    assert recycler.woken == 0
    windows.map(windows.add_file(sparse("data3"), PAGE))
    assert recycler.woken == 1
    windows.map(0)
    assert recycler.woken == 1
    windows.unmap_all()
    windows.unmap_all()
    assert recycler.stopped == 1


def test_a_window_is_flushed_by_its_mapping_even_when_it_is_hidden_or_gone(many):
    windows, files = many
    windows.hide_windows(6)
    windows.flush(0, 0, PAGE)
    assert windows.is_hidden(0)
    windows.drop_hidden([1])
    windows.flush(1, 0, PAGE)
    assert windows.is_mapped(1) and files[1].asked == 2
