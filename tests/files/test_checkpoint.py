"""Checkpoints: read back whole or not at all."""

import errno
import os
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.files import checkpoint
from xtree.persistence.files.checkpoint import FOOTER_BYTES, ROW, ROW_BYTES
from xtree.persistence.files.file_header import HEADER_BYTES, pack_header
from xtree.persistence.files.filenames import checkpoint_name
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.manifest import CheckpointEntry, DataFileEntry
from xtree.persistence.files.platform_fs import File, FileSystem

UUID = bytes(range(16))
LINK = LogLink(3, 40, 123456, 0xABCDEF01)
DATA_FILES = (DataFileEntry(1, 0, 65536), DataFileEntry(5, 6, 1 << 30))


def a_table(handles, live):
    """(handles of each shard, tags, rows): the handles are in three shards, some have a row."""
    rows = np.zeros(live, ROW)
    rows["offset_4k"] = np.arange(live)
    rows["crc"] = np.arange(live)
    return [handles - handles // 2 - handles // 3, 0, handles // 2, handles // 3], bytes(range(handles)), rows


def padded(counts):
    return (*counts, *[0] * (64 - len(counts)))


@pytest.fixture
def fs():
    return FileSystem()


@pytest.fixture
def entry(fs, tmp_path):
    return checkpoint.write(fs, tmp_path, 9, UUID, 77, a_table(100, 60), b"catalog bytes", DATA_FILES, LINK)


def path_in(directory):
    return directory / checkpoint_name(9)


def forge(path, offset, data):
    """Replaces bytes and makes the CRCs of header and footer right again."""
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(data)] = data
    body = bytes(whole[32:HEADER_BYTES])
    whole[:HEADER_BYTES] = pack_header(checkpoint.MAGIC, checkpoint.FORMAT, UUID, body)
    crc_at = len(whole) - FOOTER_BYTES + 8
    whole[crc_at : crc_at + 4] = bytes(4)
    whole[crc_at : crc_at + 4] = struct.pack("<I", crc32c(bytes(whole)))
    path.write_bytes(whole)


def test_a_checkpoint_is_read_back(fs, tmp_path, entry):
    assert entry.number == 9 and entry.epoch == 77 and entry.bytes == path_in(tmp_path).stat().st_size
    for by in (entry, 9):
        found = checkpoint.read(fs, tmp_path, by, UUID)
        assert (found.number, found.epoch, found.catalog, found.last_log) == (9, 77, b"catalog bytes", LINK)
        assert found.data_files == DATA_FILES
        assert found.entry == entry
        handles, tags, rows = a_table(100, 60)
        assert found.table[0] == padded(handles) and found.table[1] == tags
        assert np.frombuffer(found.table[2], ROW).tolist() == rows.tolist()
        assert path_in(tmp_path).read_bytes()[found.catalog_offset :].startswith(b"catalog bytes")
    assert fs.listdir(tmp_path) == [checkpoint_name(9)]


@pytest.mark.parametrize(("handles", "live"), [(0, 0), (1, 0), (1, 1), (8, 3), (9, 9)])
@pytest.mark.parametrize("catalog", [b"", b"12345678", b"123456789"])
def test_checkpoints_of_any_size_are_read_back(fs, tmp_path, handles, live, catalog):
    counts, tags, rows = a_table(handles, live)
    given = (counts, bytearray(tags), memoryview(bytearray(rows.tobytes())))
    entry = checkpoint.write(fs, tmp_path, 9, UUID, 0, given, catalog, (), LogLink())
    found = checkpoint.read(fs, tmp_path, entry, UUID)
    assert found.table == (padded(counts), tags, rows.tobytes())
    assert found.catalog == catalog and found.data_files == ()


def test_a_handle_costs_one_byte_and_a_live_page_a_row(fs, tmp_path):
    sizes = {}
    for handles, live in ((0, 0), (100_000, 0), (100_000, 3000)):
        table = ([handles], bytes(handles), bytes(ROW_BYTES * live))
        sizes[handles, live] = checkpoint.write(fs, tmp_path, 9, UUID, 77, table, b"", (), LINK).bytes
    assert sizes == {
        (0, 0): HEADER_BYTES + FOOTER_BYTES,
        (100_000, 0): HEADER_BYTES + FOOTER_BYTES + 100_000,
        (100_000, 3000): HEADER_BYTES + FOOTER_BYTES + 100_000 + 3000 * 32,
    }


def test_every_flipped_byte_is_noticed(fs, tmp_path, entry):
    whole = path_in(tmp_path).read_bytes()
    tail = range(HEADER_BYTES + 55 * ROW_BYTES, len(whole))
    for i in [*range(200), *random.Random(3).sample(range(200, len(whole)), 300), *tail]:
        damaged = bytearray(whole)
        damaged[i] ^= 0x40
        path_in(tmp_path).write_bytes(damaged)
        for by in (entry, 9):
            with pytest.raises(CorruptionError, match="checkpoint-0000000009"):
                checkpoint.read(fs, tmp_path, by, UUID)


def test_every_truncation_is_noticed(fs, tmp_path, entry):
    whole = path_in(tmp_path).read_bytes()
    for size in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, *random.Random(4).sample(range(len(whole)), 50), len(whole) - 1]:
        path_in(tmp_path).write_bytes(whole[:size])
        with pytest.raises(CorruptionError):
            checkpoint.read(fs, tmp_path, 9, UUID)
    path_in(tmp_path).write_bytes(whole + b"\0")
    with pytest.raises(CorruptionError):
        checkpoint.read(fs, tmp_path, 9, UUID)


@pytest.mark.parametrize("field", [16, 24, 32, 40, 80, 80 + 8 * 63])
@pytest.mark.parametrize("value", [2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_a_length_is_never_trusted(fs, tmp_path, entry, field, value):
    data = struct.pack("<Q", value) if field != 32 else struct.pack("<I", value & 0xFFFFFFFF | 0x10000)
    forge(path_in(tmp_path), 32 + field, data)
    with pytest.raises(CorruptionError, match="by its header"):
        checkpoint.read(fs, tmp_path, 9, UUID)


def test_a_checkpoint_that_the_manifest_does_not_mean_is_refused(fs, tmp_path, entry):
    for other in (
        CheckpointEntry(9, 78, entry.bytes, entry.crc),
        CheckpointEntry(9, 77, entry.bytes + 1, entry.crc),
        CheckpointEntry(9, 77, entry.bytes, entry.crc ^ 1),
    ):
        with pytest.raises(CorruptionError, match="by the manifest"):
            checkpoint.read(fs, tmp_path, other, UUID)


def test_a_checkpoint_of_another_index_number_or_version_is_refused(fs, tmp_path, entry):
    with pytest.raises(CorruptionError, match="expected a file of index"):
        checkpoint.read(fs, tmp_path, 9, bytes(16))
    path_in(tmp_path).rename(tmp_path / checkpoint_name(10))
    with pytest.raises(CorruptionError, match="expected checkpoint 10"):
        checkpoint.read(fs, tmp_path, 10, UUID)
    with pytest.raises(FileNotFoundError):
        checkpoint.read(fs, tmp_path, 9, UUID)
    path_in(tmp_path).write_bytes(pack_header(checkpoint.MAGIC, 2, UUID, b""))
    with pytest.raises(FormatVersionError, match="expected format version 3, found 2"):
        checkpoint.read(fs, tmp_path, 9, UUID)


@pytest.mark.parametrize(("number", "size_class"), [(0, 0), (1, 7), (2**32 - 1, 255)])
def test_a_data_file_that_cannot_be_is_corruption(fs, tmp_path, entry, number, size_class):
    forge(path_in(tmp_path), HEADER_BYTES + 60 * ROW_BYTES, struct.pack("<IB", number, size_class))
    with pytest.raises(CorruptionError, match="data file's number"):
        checkpoint.read(fs, tmp_path, 9, UUID)


def test_a_table_that_is_not_whole_is_refused(fs, tmp_path):
    for table in (([1], b"1", bytes(50)), ([1, 1], b"1", bytes(32)), ([], b"1", b""), ([1], b"", bytes(32))):
        with pytest.raises(ValueError, match="a byte each and rows 32"):
            checkpoint.write(fs, tmp_path, 9, UUID, 77, table, b"", (), LINK)


@pytest.mark.parametrize("counts", [[50, 0, 55], [96], [0] * 64, [2**64 - 1] * 64, [2**64 - 100], [100, 2**64 - 8]])
def test_handles_of_shards_that_do_not_add_up_are_corruption(fs, tmp_path, entry, counts):
    forge(path_in(tmp_path), checkpoint.COUNTS_OFFSET, checkpoint.COUNTS.pack(*padded(counts)))
    with pytest.raises(CorruptionError, match="by its header"):
        checkpoint.read(fs, tmp_path, 9, UUID)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_checkpoint_is_unmapped_when_its_rows_are_forgotten(fs, tmp_path, entry):
    found = checkpoint.read(fs, tmp_path, entry, UUID)
    assert checkpoint_name(9) in Path("/proc/self/maps").read_text()
    del found
    assert checkpoint_name(9) not in Path("/proc/self/maps").read_text()


def test_a_full_disk_leaves_no_checkpoint(fs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(File, "pwritev", full)
    with pytest.raises(OSError):
        checkpoint.write(fs, tmp_path, 9, UUID, 77, a_table(10, 10), b"", (), LINK)
    assert fs.listdir(tmp_path) == []
