"""Data files: space is reserved before it is mapped, sizes count once synced, none is shorter than the manifest says.

Promises (What is on the disk before what):

- sizes in the manifest are synced ones; trimming records the smaller size first:
  test_an_extension_counts_as_durable_only_after_a_sync, test_trimming_makes_the_smaller_size_known_before_it_cuts.
- a failed sync is never repeated, of a new file it stops writing too, and a store that failed writes nothing more:
  test_a_failed_sync_is_never_repeated, test_faults.py::test_a_failed_sync_of_a_new_data_file_or_its_name_poisons,
  test_faults.py::test_a_failed_sync_of_the_log_poisons.

Promises (One writer, many readers):

- a file that was written to stays open until the sync that covers it:
  test_a_file_stays_open_from_its_first_write_to_the_sync_that_covers_it.
"""

import errno
import os
import threading

import pytest
from support import text_pages

from xtree.config import Config
from xtree.errors import CorruptionError, FormatVersionError, StoreFailedError
from xtree.persistence.base.config import MIB
from xtree.persistence.files import data_files as module
from xtree.persistence.files.data_files import FIRST_SLOT, IN_MEMORY, DataFiles
from xtree.persistence.files.file_header import HEADER_BYTES, pack_header
from xtree.persistence.files.filenames import data_name
from xtree.persistence.files.manifest import DataFileEntry
from xtree.persistence.files.platform_fs import File, FileSystem, SyncFailedError
from xtree.persistence.opening import open_store
from xtree.persistence.pages.mmap_windows import Windows
from xtree.persistence.pages.segment_allocator import SegmentAllocator

UUID = bytes(range(16))
CONFIG = Config(window_bytes=4 * MIB, reserve_bytes=0)


def make(directory, fs=None, config=CONFIG, writable=True):
    numbers = iter(range(3, 1000))
    return DataFiles(
        fs or FileSystem(), directory, UUID, Windows(writable=writable), config, writable, lambda: next(numbers)
    )


@pytest.fixture
def files(tmp_path):
    made = make(tmp_path)
    yield made
    made.windows.unmap_all()
    made.close()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_file_is_small_whole_and_waits_for_its_manifest(files, tmp_path):
    assert not files.manifest_needed
    window, first, usable, limit = files.new_window(0)
    assert (window, first, usable, limit) == (0, FIRST_SLOT, 64 << 10, 4 * MIB)
    assert files.manifest_needed
    assert files.entries() == [DataFileEntry(3, 0, 64 << 10)]
    assert files.file_of_window == [3] and files.windows_by_number() == {3: 0}
    assert files.path_of(0) == str(tmp_path / data_name(0, 3))
    assert os.stat(files.path_of(0)).st_blocks * 512 >= 64 << 10


@pytest.mark.parametrize("size_class", range(7))
def test_a_new_file_has_room_for_some_slots_of_its_class(files, size_class):
    _, first, usable, limit = files.new_window(size_class)
    assert usable - first >= 4 * (4096 << size_class) or usable == limit


def test_an_extension_counts_as_durable_only_after_a_sync(files):
    window, _, usable, _ = files.new_window(0)
    assert files.extend(window, usable + 4096) == usable + 4096
    assert os.path.getsize(files.path_of(window)) == usable + 4096
    assert files.entries()[0].synced_bytes == usable
    assert files.sync() == [window]
    assert files.entries()[0].synced_bytes == usable + 4096
    assert files.extend(window, 100) == usable + 4096
    assert files.extend(window, 1 << 40) == CONFIG.window_bytes


def test_only_changed_files_are_synced(files, monkeypatch):
    windows = [files.new_window(size_class)[0] for size_class in (0, 1, 2)]
    assert files.sync() == []
    files.mark_dirty(windows[0])
    files.mark_dirty(windows[2])
    assert files.sync([windows[0], windows[1]]) == [windows[0]]
    assert files.sync() == [windows[2]]
    assert files.sync() == []


def test_a_change_during_a_sync_is_left_for_the_next(files, monkeypatch):
    window = files.new_window(0)[0]
    real = File.sync

    def change_meanwhile(self):
        real(self)
        files.mark_dirty(window)

    files.mark_dirty(window)
    monkeypatch.setattr(File, "sync", change_meanwhile)
    assert files.sync() == [window]
    monkeypatch.undo()
    assert files.sync() == [window]


def test_who_asks_for_a_sync_that_is_under_way_waits_for_its_end(files, monkeypatch):
    window = files.new_window(0)[0]
    begun, finish, done = threading.Event(), threading.Event(), []
    real = File.sync

    def slow(self):
        begun.set()
        finish.wait()
        real(self)
        done.append("sync")

    files.mark_dirty(window)
    monkeypatch.setattr(File, "sync", slow)
    first = threading.Thread(target=files.sync)
    first.start()
    begun.wait()
    second = threading.Thread(target=lambda: (files.sync([window]), done.append("second")))
    second.start()
    finish.set()
    first.join()
    second.join()
    assert done == ["sync", "second"]


def test_a_failed_sync_is_never_repeated(files, monkeypatch):
    window = files.new_window(0)[0]

    def fail(self):
        raise SyncFailedError(errno.EIO, "Input/output error", self.path)

    files.mark_dirty(window)
    monkeypatch.setattr(File, "sync", fail)
    with pytest.raises(SyncFailedError):
        files.sync()
    monkeypatch.undo()
    with pytest.raises(StoreFailedError, match="earlier sync"):
        files.sync()


def test_a_full_disk_is_an_error_that_changes_nothing(files, tmp_path, monkeypatch):
    window, _, usable, _ = files.new_window(0)
    files.listed = len(files.entries())
    monkeypatch.setattr(File, "_allocate", full)
    monkeypatch.setattr(File, "_write_once", full)
    for grow in (lambda: files.extend(window, usable + 4096), lambda: files.new_window(1)):
        with pytest.raises(OSError) as caught:
            grow()
        assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert not files.manifest_needed
    assert os.listdir(tmp_path) == [data_name(0, 3)]
    assert os.path.getsize(files.path_of(window)) == usable
    assert files.extend(window, usable + 4096) == usable + 4096


def test_data_files_leave_the_reserve_of_the_disk_alone(tmp_path):
    class SmallDisk(FileSystem):
        def free_space(self, path):
            return 1 * MIB

    files = make(tmp_path, SmallDisk(), Config(window_bytes=4 * MIB, reserve_bytes=512 << 10))
    window, _, usable, _ = files.new_window(0)
    with pytest.raises(OSError, match="stay in reserve") as caught:
        files.extend(window, usable + 600 * 1024)
    assert caught.value.errno == errno.ENOSPC
    assert files.extend(window, usable + 600 * 1024, spends_reserve=True) == usable + 600 * 1024
    with pytest.raises(OSError, match="stay in reserve"):
        files.extend(window, usable + (600 + 800) * 1024, spends_reserve=True)
    with pytest.raises(OSError, match="stay in reserve"):
        files.extend(window, usable + (600 + 600) * 1024)
    files.close()


def test_files_are_attached_as_the_manifest_lists_them(files, tmp_path):
    files.new_window(0)
    files.new_window(2)
    again = make(tmp_path)
    windows = [again.attach(entry) for entry in files.entries()]
    assert windows == [0, 1]
    assert again.file_of_window == [3, 4]
    assert list(again.attached()) == [(0, 0, 64 << 10, 4 * MIB), (1, 2, 68 << 10, 4 * MIB)]
    assert not again.manifest_needed
    again.close()


def test_a_file_that_lost_its_end_is_made_as_long_as_it_was(files, tmp_path):
    files.new_window(0)
    (entry,) = files.entries()
    os.truncate(files.path_of(0), 8192)
    reader = make(tmp_path, writable=False)
    reader.attach(entry)
    assert reader.windows.end(0) == 8192
    writer = make(tmp_path)
    writer.attach(entry)
    assert writer.windows.end(0) == 64 << 10
    assert writer.entries() == [DataFileEntry(3, 0, 8192)]
    assert writer.sync() == [0]
    assert writer.entries() == [entry]
    reader.close()
    writer.close()


def test_bytes_beyond_the_recorded_size_are_usable_but_not_durable(files, tmp_path):
    files.new_window(0)
    (entry,) = files.entries()
    os.truncate(files.path_of(0), 128 << 10)
    again = make(tmp_path)
    again.attach(entry)
    assert again.windows.end(0) == 128 << 10
    assert again.entries() == [entry]
    again.close()


def test_every_flipped_byte_of_a_header_is_noticed(files, tmp_path):
    files.new_window(0)
    (entry,) = files.entries()
    path = files.path_of(0)
    with open(path, "r+b") as file:
        whole = file.read(HEADER_BYTES)
        for i in range(HEADER_BYTES):
            file.seek(i)
            file.write(bytes([whole[i] ^ 4]))
            file.flush()
            if i < 64 or i % 97 == 0:
                again = make(tmp_path)
                window = again.attach(entry)
                uses = [(again.windows.map, (window,)), (again.read, (3, 0, 1)), (again.verify_headers, ())]
                for use, arguments in uses:
                    with pytest.raises(CorruptionError, match="at offset 0"):
                        use(*arguments)
                assert again.stats()["descriptors"]["open"] == 0
            file.seek(i)
            file.write(whole[i : i + 1])


def test_a_file_that_is_not_what_the_manifest_says_is_refused(files, tmp_path):
    files.new_window(0)
    files.new_window(0)
    path, other = files.path_of(0), files.path_of(1)
    again = make(tmp_path)
    os.replace(other, tmp_path / "aside")
    with pytest.raises(CorruptionError, match="found none"):
        again.attach(DataFileEntry(4, 0, 65536))
    assert again.file_of_window == []
    os.link(path, other)
    with pytest.raises(CorruptionError, match="number, window bytes and size class"):
        again.windows.map(again.attach(DataFileEntry(4, 0, 65536)))
    smaller = make(tmp_path, config=Config(window_bytes=MIB))
    with pytest.raises(CorruptionError, match="number, window bytes and size class"):
        smaller.windows.map(smaller.attach(DataFileEntry(3, 0, 65536)))
    with open(path, "r+b") as file:
        file.write(pack_header(module.MAGIC, 2, UUID, b""))
    with pytest.raises(FormatVersionError):
        again.windows.map(again.attach(DataFileEntry(3, 0, 65536)))


def test_a_file_longer_than_its_window_is_corruption(files, tmp_path):
    files.new_window(0)
    os.truncate(files.path_of(0), CONFIG.window_bytes + 1)
    with pytest.raises(CorruptionError, match="at most"):
        make(tmp_path).attach(DataFileEntry(3, 0, 65536))


def test_recovery_reads_and_writes_by_file_number_and_offset(files):
    files.new_window(0)
    files.write(3, 100 << 10, b"page" * 1024)
    assert files.read(3, 100 << 10, 4096) == b"page" * 1024
    assert os.path.getsize(files.path_of(0)) == 104 << 10
    assert files.sync() == [0]


def test_pages_in_memory_have_addresses_like_those_in_files(tmp_path):
    files = make(tmp_path, writable=False)
    offsets = files.in_memory([b"a" * 4096, b"b" * 8192, b"c" * 4096])
    assert offsets == [4096, 8192, 16384]
    assert files.windows_by_number() == {IN_MEMORY: 0}
    assert files.windows.end(0) == 20480
    assert list(files.attached()) == []
    assert "rebuilt" in files.path_of(0)
    files.windows.unmap_all()


def test_the_allocator_grows_through_data_files(files):
    allocator = SegmentAllocator(files)
    addresses = {allocator.allocate_slot(0) for _ in range(2000)}
    assert len(addresses) == 2000
    assert len(files.file_of_window) > 1  # 4 MiB windows hold 1023 slots of 4 KiB
    for window in range(len(files.windows)):
        end = files.windows.end(window)
        assert os.path.getsize(files.path_of(window)) == end <= CONFIG.window_bytes


def test_trimming_makes_the_smaller_size_known_before_it_cuts(files):
    window, _, usable, _ = files.new_window(0)
    files.new_window(1)
    files.extend(window, usable + 65536)
    files.sync()
    shrinking = files.trim(lambda which: 12288 if which == window else 64 << 10)
    assert shrinking == [window]
    assert files.entries()[0].synced_bytes == 12288
    assert os.path.getsize(files.path_of(window)) == usable + 65536
    files.cut(shrinking)
    assert os.path.getsize(files.path_of(window)) == 12288
    assert os.path.getsize(files.path_of(1)) == 64 << 10


def test_trimming_leaves_what_is_not_synced(files):
    window, _, usable, _ = files.new_window(0)
    files.extend(window, usable + 65536)
    assert files.trim(lambda which: usable + 4096) == []
    files.mark_dirty(window)
    assert files.trim(lambda which: 8192) == []


def test_stats_say_how_many_files_and_bytes_there_are(files):
    files.new_window(0)
    files.new_window(0)
    files.new_window(3)
    assert files.stats()["files"] == 3
    assert files.stats()["by_class"][0] == {"files": 2, "bytes": 128 << 10}


class CountingFileSystem(FileSystem):
    """Counts how often files are opened."""

    def __init__(self):
        self.opened = 0

    def open(self, path, mode):
        self.opened += 1
        return super().open(path, mode)


def test_files_that_are_attached_are_not_opened_before_their_first_use(files, tmp_path):
    for _ in range(5):
        files.new_window(0)
    fs = CountingFileSystem()
    again = make(tmp_path, fs)
    windows = [again.attach(entry) for entry in files.entries()]
    assert fs.opened == again.stats()["descriptors"]["open"] == 0
    again.windows.map(windows[3])
    again.windows.map(windows[3])
    assert fs.opened == 1
    assert again.read(3, 0, 8) == module.MAGIC
    assert fs.opened == 2
    again.windows.unmap_all()
    again.close()


def test_a_file_shorter_than_its_synced_size_is_corruption_where_nothing_may_extend_it(files, tmp_path):
    files.new_window(0)
    (entry,) = files.entries()
    os.truncate(files.path_of(0), 65535)
    for writable in (True, False):
        with pytest.raises(CorruptionError, match="expected at least 65536 bytes, found 65535"):
            make(tmp_path, writable=writable).attach(entry, extend=False)
    assert os.path.getsize(files.path_of(0)) == 65535


def test_no_more_descriptors_stay_open_than_the_budget_says(tmp_path):
    files = make(tmp_path, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=2))
    for _ in range(6):
        files.new_window(0)
    assert files.stats()["descriptors"] == {
        "open": 2, "budget": 2, "kept": 0, "open_peak": 3, "opened": 6, "closed": 4,
    }
    files.read(3, 0, 1)
    files.read(8, 0, 1)
    files.read(3, 0, 1)
    assert files.stats()["descriptors"]["opened"] == 7
    files.close()
    assert files.stats()["descriptors"]["open"] == 0
    with pytest.raises(ValueError, match="is closed"):
        files.read(3, 0, 1)


def test_a_file_stays_open_from_its_first_write_to_the_sync_that_covers_it(tmp_path):
    files = make(tmp_path, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=1))
    windows = [files.new_window(0)[0] for _ in range(6)]
    for window in windows[:4]:
        files.mark_dirty(window)
    assert files.stats()["descriptors"]["kept"] == 4
    assert files.stats()["descriptors"]["open"] == 4
    files.sync([windows[1]])
    assert files.stats()["descriptors"]["open"] == 3
    files.sync()
    assert files.stats()["descriptors"]["kept"] == 0
    assert files.stats()["descriptors"]["open"] == 1
    files.close()


def test_a_file_that_is_written_to_while_it_is_synced_stays_open(tmp_path, monkeypatch):
    files = make(tmp_path, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=1))
    window, other = files.new_window(0)[0], files.new_window(0)[0]
    real = File.sync

    def write_meanwhile(self):
        real(self)
        monkeypatch.undo()
        files.mark_dirty(window)

    files.mark_dirty(window)
    monkeypatch.setattr(File, "sync", write_meanwhile)
    files.sync()
    files.windows.map(other)
    assert files.stats()["descriptors"]["kept"] == 1
    files.sync()
    assert files.stats()["descriptors"]["kept"] == 0
    files.windows.unmap_all()
    files.close()


def test_a_file_whose_sync_failed_stays_open_and_is_not_synced_again(tmp_path, monkeypatch):
    files = make(tmp_path, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=1))
    window = files.new_window(0)[0]

    def fail(self):
        raise SyncFailedError(errno.EIO, "Input/output error", self.path)

    files.mark_dirty(window)
    monkeypatch.setattr(File, "sync", fail)
    with pytest.raises(SyncFailedError):
        files.sync()
    monkeypatch.undo()
    assert files.stats()["descriptors"]["kept"] == 1
    with pytest.raises(StoreFailedError):
        files.sync()
    files.close()


def test_a_descriptor_in_use_is_not_closed_by_others(tmp_path):
    files = make(tmp_path, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=1))
    for _ in range(4):
        files.new_window(0)
    lazy = files._files[0].file
    with lazy.opened() as file:
        for number in (4, 5, 6):
            files.read(number, 0, 1)
        assert file.pread(8, 0) == module.MAGIC
        with lazy.opened() as again:
            assert again is file
    assert files.stats()["descriptors"]["open"] == 1
    files.close()


def test_many_threads_use_few_descriptors(tmp_path):
    files = make(tmp_path, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=2))
    for _ in range(12):
        files.new_window(0)
    for number in range(3, 15):
        files.write(number, 8192, bytes([number]) * 4096)
    files.sync()
    wrong = []

    def read(start):
        for i in range(400):
            number = 3 + (start + 5 * i) % 12
            if files.read(number, 8192, 4096) != bytes([number]) * 4096:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    descriptors = files.stats()["descriptors"]
    assert descriptors["open"] <= 2
    assert descriptors["opened"] - descriptors["closed"] == descriptors["open"]
    files.close()


def test_when_the_system_has_no_descriptor_left_idle_ones_are_closed(tmp_path):
    class Exhausted(FileSystem):
        failing = False

        def open(self, path, mode):
            if self.failing and files.stats()["descriptors"]["open"]:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
            return super().open(path, mode)

    fs = Exhausted()
    files = make(tmp_path, fs, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=4))
    for _ in range(6):
        files.new_window(0)
    fs.failing = True
    assert files.read(3, 0, 8) == module.MAGIC
    files.mark_dirty(0)
    with pytest.raises(OSError, match="open files"):
        files.read(8, 0, 8)
    files.close()


def test_files_that_wait_long_for_a_sync_are_synced_early_when_very_many_do(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_KEPT", 8)
    files = make(tmp_path, config=Config(window_bytes=4 * MIB, reserve_bytes=0, descriptor_budget=1))
    windows = [files.new_window(0)[0] for _ in range(10)]
    for window in windows[:8]:
        files.mark_dirty(window)
    assert files.overdue() == set()
    files.mark_dirty(windows[8])
    assert files.overdue() == set(windows[:4])
    files.write(3, 8192, b"x")
    assert files.stats()["descriptors"]["kept"] == 5
    files.close()


def test_a_file_does_not_grow_beyond_the_configured_size(tmp_path):
    config = Config(window_bytes=4 * MIB, data_file_bytes=MIB, reserve_bytes=0)
    files = make(tmp_path, config=config)
    allocator = SegmentAllocator(files)
    for _ in range(600):
        allocator.allocate_slot(0)
    assert len(files.file_of_window) == 3
    assert all(os.path.getsize(files.path_of(window)) <= MIB for window in range(3))
    assert all(files.windows.bytes_of(window) == 4 * MIB for window in range(3))
    files.sync()
    entries = files.entries()
    files.close()
    small = make(tmp_path / "small", config=Config(data_file_bytes=64 << 10, reserve_bytes=0))
    os.mkdir(tmp_path / "small")
    assert small.new_window(6)[2:] == (FIRST_SLOT + (256 << 10), FIRST_SLOT + (256 << 10))
    small.close()
    longer = make(tmp_path)
    for entry in entries:
        longer.attach(entry)
    assert longer.extend(0, 2 * MIB) == 2 * MIB
    longer.sync()
    entries = longer.entries()
    longer.close()
    shorter = make(tmp_path, config=config)
    for entry in entries:
        shorter.attach(entry)
    assert next(iter(shorter.attached())) == (0, 0, 2 * MIB, 2 * MIB)
    assert shorter.extend(0, 3 * MIB) == 2 * MIB
    shorter.close()


@pytest.mark.parametrize("n", [1, 16, 63, 64, 65, 200])
def test_files_of_an_index_that_is_emptied_and_closed_shrink_to_what_is_in_use(n, tmp_path):
    """They shrink to the header, and in each size class to the first slot as long as that is in use."""

    def sizes():
        return sorted(file.stat().st_size for file in (tmp_path / "index").glob("data-*"))

    store = open_store(tmp_path / "index", mode="x", config=text_pages.SMALL)
    for size_class in (0, 2):
        text_pages.put(store, {f"{size_class}/{i}": "text" for i in range(n)}, size_class)
    text_pages.put(store, {f"{size_class}/{i}": None for size_class in (0, 2) for i in range(1, n)})
    store.close()
    assert sizes()[-2:] == [4096 + 4096, 4096 + 16384] and set(sizes()[:-2]) <= {4096}
    store = open_store(tmp_path / "index", config=text_pages.SMALL)
    assert text_pages.texts_of(store) == {"0/0": "text", "2/0": "text"}
    text_pages.put(store, {"0/0": None, "2/0": None})
    store.close()
    assert set(sizes()) == {4096}
