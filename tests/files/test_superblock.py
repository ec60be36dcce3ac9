"""The superblock: of its two copies one is always whole on the disk; its epochs never go back.

Promises (What is on the disk before what):

- of the two superblock copies one is always whole; its epochs never regress:
  test_a_power_loss_at_any_moment_leaves_the_last_synced_values,
  test_the_only_copy_that_can_be_read_is_not_written_before_there_is_another, test_an_epoch_never_regresses,
  test_checkpointer.py::test_the_superblocks_epochs_never_fall_while_commits_publish_beside_a_checkpoint.
"""

import contextlib
import dataclasses
import errno
import os
import random

import pytest
from support.forgetful_fs import SECTORS, ForgetfulFileSystem, PowerLoss

from xtree.errors import CorruptionError, FormatVersionError, StoreFailedError
from xtree.persistence.base import crash_points
from xtree.persistence.files import superblock
from xtree.persistence.files.file_header import HEADER_BYTES, pack_header
from xtree.persistence.files.filenames import SUPERBLOCK
from xtree.persistence.files.platform_fs import File, FileSystem, SyncFailedError
from xtree.persistence.files.superblock import Superblock, SuperblockFile

UUID = bytes(range(16))
VALUE = Superblock(UUID, epoch=5, durable_epoch=4, epoch_ceiling=100)


@pytest.fixture
def fs():
    return FileSystem()


@pytest.fixture
def path(fs, tmp_path):
    SuperblockFile.create(fs, tmp_path, VALUE).close()
    return tmp_path / SUPERBLOCK


def reopened(path):
    file = SuperblockFile.open(FileSystem(), path.parent, writable=False)
    file.close()
    return file


def test_a_new_superblock_has_two_copies_of_its_values(path):
    file = reopened(path)
    assert dataclasses.replace(file.value, generation=1) == VALUE
    assert file.copies_readable == 2
    assert path.stat().st_size == 2 * HEADER_BYTES


def test_what_is_published_is_read_back(fs, path):
    file = SuperblockFile.open(fs, path.parent, writable=True)
    for i in range(10):
        value = file.publish(sync=i % 3 == 0, epoch=10 + i, durable_epoch=9 + i)
        assert reopened(path).value == value == file.value
    file.close()


def test_every_flipped_byte_of_a_copy_is_noticed(path):
    whole = path.read_bytes()
    for copy in (0, 1):
        offset = copy * HEADER_BYTES
        for i in range(HEADER_BYTES):
            data = bytearray(whole[offset : offset + HEADER_BYTES])
            data[i] ^= 1 << random.Random(i).randrange(8)
            with pytest.raises(CorruptionError, match=f"at offset {offset}"):
                Superblock.decode(bytes(data), "superblock.bin", offset)


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_copy_is_answered_from_the_other(path, copy):
    data = bytearray(path.read_bytes())
    data[copy * HEADER_BYTES + 40] ^= 1
    path.write_bytes(data)
    file = reopened(path)
    assert file.copies_readable == 1
    assert file.value.epoch == 5
    assert file.value.generation == 2 - copy


def test_two_damaged_copies_are_corruption_that_names_both(path):
    path.write_bytes(b"\0" * 2 * HEADER_BYTES)
    with pytest.raises(CorruptionError, match=r"at offset 0.*at offset 4096"):
        reopened(path)


@pytest.mark.parametrize("size", [0, 100, HEADER_BYTES - 1, HEADER_BYTES, 2 * HEADER_BYTES - 1])
def test_a_truncated_file_never_gives_unverified_values(path, size):
    path.write_bytes(path.read_bytes()[:size])
    if size < HEADER_BYTES:
        with pytest.raises(CorruptionError):
            reopened(path)
    else:
        assert reopened(path).value.generation == 1


def test_another_format_version_is_told_from_damage(path):
    body = path.read_bytes()[32:72]
    path.write_bytes(pack_header(superblock.MAGIC, 2, UUID, body) * 2)
    with pytest.raises(FormatVersionError, match="expected format version 1, found 2"):
        reopened(path)


def test_copies_of_two_indexes_are_corruption(path):
    other = dataclasses.replace(VALUE, uuid=bytes(16)).encode()
    path.write_bytes(VALUE.encode() + other)
    with pytest.raises(CorruptionError, match="two copies of one index"):
        reopened(path)


@pytest.mark.parametrize("body", [(1, 5, 6, 100, 2), (1, 5, 4, 3, 2), (1, 5, 4, 100, 9), (1, 5, 4, 100, 0)])
def test_values_that_cannot_be_right_are_corruption_even_with_a_right_crc(body):
    page = pack_header(superblock.MAGIC, superblock.FORMAT, UUID, superblock.BODY.pack(*body))
    with pytest.raises(CorruptionError):
        Superblock.decode(page, "superblock.bin")


@pytest.mark.parametrize("changes", [{"epoch": 4}, {"durable_epoch": 3}, {"epoch_ceiling": 99}])
def test_an_epoch_never_regresses(fs, path, changes):
    with contextlib.closing(SuperblockFile.open(fs, path.parent, writable=True)) as file:
        before = file.value
        file.publish(sync=True, **changes)
    with contextlib.closing(SuperblockFile.open(fs, path.parent, writable=False)) as file:
        assert file.value == dataclasses.replace(before, generation=before.generation + 1)


def test_epochs_out_of_order_are_refused_and_nothing_is_written(fs, path):
    before = path.read_bytes()
    with contextlib.closing(SuperblockFile.open(fs, path.parent, writable=True)) as file, pytest.raises(ValueError):
        file.publish(sync=True, durable_epoch=file.value.epoch + 1)
    assert path.read_bytes() == before


def test_after_a_failed_sync_the_superblock_is_not_written_again(fs, path, monkeypatch):
    def fail(self):
        raise SyncFailedError(errno.EIO, "lost", self.path)

    with contextlib.closing(SuperblockFile.open(fs, path.parent, writable=True)) as file:
        ceiling = file.value.epoch_ceiling
        with monkeypatch.context() as failing:
            failing.setattr(File, "sync", fail)
            with pytest.raises(SyncFailedError):
                file.publish(sync=True, epoch_ceiling=ceiling + 1)
        before = path.read_bytes()
        with pytest.raises(StoreFailedError):
            file.publish(sync=True, epoch_ceiling=ceiling + 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("lost", [0, 1])
def test_the_only_copy_that_can_be_read_is_not_written_before_there_is_another(path, lost):
    written = []

    class Watching(FileSystem):
        def open(self, path, mode):
            file = super().open(path, mode)
            return WatchedWrites(file.path, os.dup(file.fileno()), written)

    data = bytearray(path.read_bytes())
    data[lost * HEADER_BYTES + 40] ^= 1
    path.write_bytes(data)
    file = SuperblockFile.open(Watching(), path.parent, writable=True)
    for epoch in range(6, 9):
        file.publish(sync=True, epoch=epoch)
    file.close()
    assert written == [lost * HEADER_BYTES, (1 - lost) * HEADER_BYTES, lost * HEADER_BYTES]


class WatchedWrites(File):
    """A file that notes the offsets of writes."""

    __slots__ = ("written",)

    def __init__(self, path, fd, written):
        super().__init__(path, fd)
        self.written = written

    def pwrite(self, data, offset):
        self.written.append(offset)
        super().pwrite(data, offset)


def test_a_directory_without_a_superblock_has_none(fs, tmp_path):
    with pytest.raises(FileNotFoundError):
        SuperblockFile.open(fs, tmp_path, writable=False)


@pytest.mark.parametrize("seed", range(20))
def test_a_power_loss_at_any_moment_leaves_the_last_synced_values(path, tmp_path_factory, seed):
    print("seed", seed)
    random_ = random.Random(seed)
    disk = ForgetfulFileSystem(path.parent)
    left = tmp_path_factory.mktemp("left") / SUPERBLOCK
    synced_epoch = 5
    file = SuperblockFile.open(disk, path.parent, writable=True)
    checked = []

    def lose_power(name):
        for how in (PowerLoss(2, 512), PowerLoss(random_.randrange(1 << 32), random_.choice(SECTORS))):
            left.write_bytes(disk.state().after(how)[SUPERBLOCK])
            assert reopened(left).value.epoch >= synced_epoch
        checked.append(name)

    crash_points.set_hook(lose_power)
    try:
        for epoch in range(6, 40):
            sync = random_.random() < 0.4
            file.publish(sync=sync, epoch=epoch)
            synced_epoch = epoch if sync else synced_epoch
            if random_.random() < 0.2:
                file.close()
                file = SuperblockFile.open(disk, path.parent, writable=True)
    finally:
        crash_points.set_hook(None)
        file.close()
    assert len(checked) > 60


def test_a_failed_sync_is_reported_and_leaves_the_value_as_it_was(fs, path, monkeypatch):
    file = SuperblockFile.open(fs, path.parent, writable=True)

    def fail(self):
        raise SyncFailedError(5, "Input/output error", self.path)

    monkeypatch.setattr(File, "sync", fail)
    with pytest.raises(SyncFailedError):
        file.publish(sync=True, epoch=6)
    assert file.value.epoch == 5
    file.close()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_values_written_after_a_publication_that_met_no_memory_are_the_newest(fs, path, times):
    file = SuperblockFile.open(fs, path.parent, writable=True)
    for _ in range(times):
        epoch = file.value.epoch + 1
        file.publish(sync=True, epoch=epoch, durable_epoch=epoch)

        def hook(name):
            if name == "superblock.synced":
                raise MemoryError

        crash_points.set_hook(hook)
        try:
            with pytest.raises(MemoryError):
                file.publish(sync=True, epoch_ceiling=1000)
        finally:
            crash_points.set_hook(None)
        value = file.publish(sync=True, epoch=epoch + 1, durable_epoch=epoch + 1)
        assert reopened(path).value == value
    file.close()
