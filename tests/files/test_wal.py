"""The log: what was appended is read back, what doesn't link isn't a frame, and damage is told from a torn tail.

Promises (Nothing acknowledged is lost):

- every flipped byte of a record is noticed:
  test_every_flipped_byte_of_the_last_frame_ends_the_chain_before_it,
  test_superblock.py::test_every_flipped_byte_of_a_copy_is_noticed,
  test_manifest.py::test_every_flipped_bit_is_noticed, test_checkpoint.py::test_every_flipped_byte_is_noticed.

Promises (What is on the disk before what):

- the disk space of a frame is taken before it is begun:
  test_a_full_disk_is_reported_before_anything_is_appended,
  test_faults.py::test_no_room_in_the_log_fails_the_commit_cleanly.
- the first frame after a sync starts on a boundary, on ground that is filled and synced:
  test_a_frame_after_a_sync_starts_on_a_boundary_and_others_do_not,
  test_a_frame_lands_on_ground_that_is_filled_and_synced.
- what doesn't link is no frame: stale ones, moved ones, images of frames in pages:
  test_a_stale_frame_of_an_earlier_file_is_no_frame, test_a_frame_at_another_offset_is_no_frame,
  test_a_frame_image_inside_a_payload_is_not_taken_for_a_frame.
"""

import errno
import os
import random
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.files import frame as frames
from xtree.persistence.files import wal_reader
from xtree.persistence.files.file_header import HEADER_BYTES, pack_header
from xtree.persistence.files.frame import (
    DELTA,
    FRAME_GROUP,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    SECTOR_BYTES,
    FrameHeader,
    LogLink,
    aligned,
    frame_crc,
)
from xtree.persistence.files.platform_fs import File, FileSystem
from xtree.persistence.files.wal import LogWriter
from xtree.persistence.files.wal_reader import find_later_link, read_log

UUID = bytes(range(16))
LINK = LogLink(3, 40, 123456, 0xABCDEF01)
GROUPS = st.tuples(st.integers(0, 5), st.binary(max_size=40), st.integers(0, 9000), st.booleans())


@pytest.fixture
def fs():
    return FileSystem()


def births(epoch, n, page_bytes=4096):
    """Deltas of n pages that were born with a payload, and their payloads."""
    deltas = np.zeros(n, DELTA)
    deltas["node_id"] = np.arange(1, n + 1) << 8 | 1
    deltas["epoch"] = epoch
    deltas["op"] = frames.OP_BIRTH
    deltas["kind"] = 1
    deltas["payload_form"] = frames.PAYLOAD_WHOLE
    deltas["file_number"] = 1
    deltas["offset"] = HEADER_BYTES + np.arange(n) * page_bytes
    deltas["page_bytes"] = deltas["payload_bytes"] = page_bytes
    deltas["payload_offset"] = np.arange(n) * page_bytes
    return deltas, [bytes([epoch % 256]) * page_bytes for _ in range(n)]


def append(log, epoch, n=2, catalog=b"catalog", durable=None, sync=True):
    deltas, payloads = births(epoch, n)
    durable = epoch - 1 if durable is None else durable
    log.reserve(frames.frame_bytes(n, len(catalog), sum(map(len, payloads))))
    size = log.append(epoch, epoch, durable, [deltas.tobytes()], catalog, 1, payloads)
    if sync:
        log.sync()
    return size


@pytest.fixture
def log(fs, tmp_path):
    made = LogWriter.create(fs, tmp_path, UUID, 7, LINK, 64 << 10)
    made.write_link(LINK.last_epoch)
    yield made
    made.close()


@pytest.fixture
def written(log):
    """A log of five groups, epochs 41 to 45, each synced; its `offsets` are those of the frames."""
    offsets = []
    for epoch in range(41, 46):
        append(log, epoch)
        offsets.append(aligned(log.end_offset, SECTOR_BYTES))
    log.offsets = [2 * SECTOR_BYTES, *offsets[:-1]]
    return log


def epochs_of(path, **options):
    """(epochs of the frames that link, the reader's end: link, end_offset, last_epoch, stopped_because, tail_bytes)"""
    reader = read_log(FileSystem(), path, UUID, 7, **options)
    found = [frame.last_epoch for frame in reader]
    names = ("link", "end_offset", "last_epoch", "stopped_because", "tail_bytes")
    ended = SimpleNamespace(**{name: getattr(reader, name) for name in names})
    reader.close()
    return found, ended


def whole_file(path):
    return Path(path).read_bytes()


def patch(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def refresh_crc(path, offset, length=None):
    """Makes the CRC of a changed frame right again, as a forger would."""
    data = whole_file(path)[offset:]
    length = length or FrameHeader(data[:FRAME_HEADER_BYTES]).length
    patch(path, offset + frames.FRAME_CRC_OFFSET, struct.pack("<I", frame_crc(data[:length])))


# What was written is read back.


def test_frames_come_back_as_they_were_appended(log, fs):
    deltas, payloads = births(41, 3)
    log.append(41, 42, 40, [deltas[:1].tobytes(), deltas[1:].tobytes()], b"changes!?", 2, payloads)
    log.append(43, 43, 40, [], b"", 0, [])
    log.sync()
    reader = read_log(fs, log.path, UUID, 7, expected_link=LINK)
    first, second = reader
    assert (first.kind, first.mode, first.first_epoch, first.last_epoch) == (FRAME_GROUP, 2, 41, 42)
    assert (first.durable_through, first.delta_count, first.catalog_count, first.log_number) == (40, 3, 2, 7)
    assert first.deltas.tolist() == deltas.tolist()
    assert first.catalog == b"changes!?"
    assert bytes(first.payloads) == b"".join(payloads)
    assert (second.first_epoch, second.delta_count, second.catalog, second.payloads.nbytes) == (43, 0, b"", 0)
    assert reader.link == LINK
    assert reader.end == log.end
    assert (reader.stopped_because, reader.tail_bytes) == ("zeros", 0)
    reader.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(GROUPS, min_size=1, max_size=12))
def test_any_sequence_of_groups_is_read_back(tmp_path_factory, groups):
    fs = FileSystem()
    log = LogWriter.create(fs, tmp_path_factory.mktemp("log"), UUID, 7, LogLink(), 4096, 16384)
    log.write_link(0)
    written = []
    for epoch, (n, catalog, payload_bytes, sync) in enumerate(groups, 1):
        deltas = births(epoch, n)[0]
        deltas["payload_form"] = frames.PAYLOAD_NONE
        deltas = deltas.tobytes()
        payload = bytes([epoch]) * payload_bytes
        log.reserve(frames.frame_bytes(n, len(catalog), payload_bytes))
        log.append(epoch, epoch, 0, [deltas], catalog, 1, [payload])
        written.append((epoch, deltas, catalog, payload))
        if sync:
            log.sync()
    reader = read_log(fs, log.path, UUID, 7)
    read = [(f.last_epoch, bytes(f.delta_bytes), f.catalog, bytes(f.payloads)) for f in reader]
    assert read == written
    assert reader.end == log.end
    reader.close()
    log.close()


def test_a_log_without_a_link_frame_is_unused(fs, tmp_path):
    log = LogWriter.create(fs, tmp_path, UUID, 7, LINK, 4096)
    found, reader = epochs_of(log.path)
    assert reader.link is None and found == [] and reader.stopped_because == "zeros"
    log.close()


def test_the_expected_link_must_be_there(written, fs):
    assert epochs_of(written.path, expected_link=LINK)[0] == [41, 42, 43, 44, 45]
    with pytest.raises(CorruptionError, match="at offset 4096: expected a link"):
        read_log(fs, written.path, UUID, 7, expected_link=LogLink(3, 40, 123456, 1))


def test_reading_stops_at_the_recorded_end(written):
    found, reader = epochs_of(written.path, recorded_end=written.end_offset)
    assert found == [41, 42, 43, 44, 45] and reader.stopped_because == "recorded end"
    found, _ = epochs_of(written.path, recorded_end=written.offsets[2] + 1000)
    assert found == [41, 42]


# Where frames stand.


def test_a_frame_after_a_sync_starts_on_a_boundary_and_others_do_not(log, fs):
    append(log, 41, sync=False)
    middle = log.end_offset
    append(log, 42, sync=True)
    append(log, 43, sync=True)
    reader = read_log(fs, log.path, UUID, 7)
    offsets = [frame.offset for frame in reader]
    assert offsets == [2 * SECTOR_BYTES, middle, aligned(reader.end_offset - 8, SECTOR_BYTES) - 3 * SECTOR_BYTES]
    assert offsets[2] % SECTOR_BYTES == 0
    reader.close()


def test_a_frame_lands_on_ground_that_is_filled_and_synced(log, fs, monkeypatch):
    sizes = []
    real = File.pwritev

    def watch(self, buffers, offset):
        sizes.append((offset, sum(memoryview(b).nbytes for b in buffers), self.size()))
        real(self, buffers, offset)

    monkeypatch.setattr(File, "pwritev", watch)
    for epoch in range(41, 141):
        append(log, epoch)
    assert len(sizes) == 100
    assert all(offset + length <= size for offset, length, size in sizes)
    assert os.path.getsize(log.path) < 3 * log.end_offset


def test_a_frame_longer_than_the_fill_limit_gets_space_beforehand(fs, tmp_path):
    log = LogWriter.create(fs, tmp_path, UUID, 7, LogLink(), 4096, 8192)
    log.write_link(0)
    append(log, 1, n=20)
    append(log, 2, n=1)
    assert epochs_of(log.path)[0] == [1, 2]
    log.close()


def test_a_full_disk_is_reported_before_anything_is_appended(written, fs, monkeypatch):
    before = whole_file(written.path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(File, "pwrite", full)
    monkeypatch.setattr(File, "_allocate", full)
    for n in (1 << 20, 64 << 20):
        with pytest.raises(OSError) as caught:
            written.reserve(n)
        assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert whole_file(written.path) == before
    append(written, 46)
    assert epochs_of(written.path)[0] == [41, 42, 43, 44, 45, 46]


def test_a_log_is_filled_less_far_ahead_on_a_disk_that_is_nearly_full(fs, tmp_path, monkeypatch):
    monkeypatch.setattr(fs, "free_space", lambda path: 100_000)
    log = LogWriter.create(fs, tmp_path, UUID, 7, LINK, 1 << 20, 8 << 20, keep_free=50_000)
    log.write_link(40)
    append(log, 41, n=5)
    with pytest.raises(OSError, match="stay in reserve") as caught:
        append(log, 42, n=20)
    assert caught.value.errno == errno.ENOSPC
    append(log, 42, n=5)
    assert epochs_of(log.path)[0] == [41, 42]
    log.close()


def test_a_log_that_cannot_be_made_leaves_no_file(fs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(File, "pwrite", full)
    with pytest.raises(OSError):
        LogWriter.create(fs, tmp_path, UUID, 7, LINK, 4096)
    assert fs.listdir(tmp_path) == []


def test_a_part_of_a_delta_is_refused_before_it_is_written(log):
    deltas, _ = births(41, 2)
    with pytest.raises(ValueError, match="deltas"):
        log.append(41, 41, 40, [deltas.tobytes()[:-1]], b"", 0, [])
    assert epochs_of(log.path)[0] == []


# Damage.


def test_every_flipped_byte_of_the_last_frame_ends_the_chain_before_it(written):
    start, end = written.offsets[-1], written.end_offset
    whole = whole_file(written.path)
    positions = [*range(start, start + 400), *random.Random(1).sample(range(start + 400, end), 300), end - 1]
    for i in positions:
        patch(written.path, i, bytes([whole[i] ^ 0x10]))
        found, reader = epochs_of(written.path)
        assert found == [41, 42, 43, 44], i
        assert reader.stopped_because in ("no frame", "unlinked", "bad length", "bad CRC")
        assert reader.tail_bytes > 0
        patch(written.path, i, whole[i : i + 1])
    assert epochs_of(written.path)[0] == [41, 42, 43, 44, 45]


def test_every_flipped_byte_of_the_header_page_is_noticed(written, fs):
    whole = whole_file(written.path)[:HEADER_BYTES]
    for i in range(HEADER_BYTES):
        patch(written.path, i, bytes([whole[i] ^ 0x01]))
        with pytest.raises(CorruptionError):
            read_log(fs, written.path, UUID, 7)
        patch(written.path, i, whole[i : i + 1])


def test_every_truncation_is_a_prefix_of_the_frames(written):
    whole = whole_file(written.path)
    length = written.end_offset - written.offsets[-1]
    for size in random.Random(2).sample(range(HEADER_BYTES, len(whole)), 200):
        os.truncate(written.path, size)
        expected = [41 + i for i, offset in enumerate(written.offsets) if offset + length <= size]
        assert epochs_of(written.path)[0] == expected
        Path(written.path).write_bytes(whole)


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1])
def test_a_log_without_a_whole_header_page_is_corruption(written, fs, size):
    os.truncate(written.path, size)
    with pytest.raises(CorruptionError, match="expected a header"):
        read_log(fs, written.path, UUID, 7)


def test_a_log_of_another_index_number_or_version_is_refused(written, fs):
    with pytest.raises(CorruptionError, match="expected a file of index"):
        read_log(fs, written.path, bytes(16), 7)
    with pytest.raises(CorruptionError, match="expected log 8"):
        read_log(fs, written.path, UUID, 8)
    patch(written.path, 0, pack_header(frames.LOG_MAGIC, 2, UUID, frames.LOG_BODY.pack(7)))
    with pytest.raises(FormatVersionError):
        read_log(fs, written.path, UUID, 7)


@pytest.mark.parametrize("length", [0, 8, 127, 128, 2**31, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("forged", [False, True])
def test_a_length_is_never_trusted(written, length, forged):
    patch(written.path, written.offsets[3] + 8, struct.pack("<Q", length))
    if forged:
        refresh_crc(written.path, written.offsets[3], 128)
    found, reader = epochs_of(written.path)
    assert found == [41, 42, 43]
    assert reader.stopped_because == "bad length"


@pytest.mark.parametrize("count", ["deltas", "catalog_bytes", "payload_bytes"])
def test_counts_that_do_not_add_up_end_the_chain(written, count):
    forge(written.path, written.offsets[3], **{count: 2**31})
    found, reader = epochs_of(written.path)
    assert found == [41, 42, 43] and reader.stopped_because == "bad length"


# What doesn't link isn't a frame.


def test_a_stale_frame_of_an_earlier_file_is_no_frame(written, fs, tmp_path):
    other = LogWriter.create(fs, tmp_path, UUID, 8, LINK, 64 << 10)
    other.write_link(40)
    for epoch in range(41, 46):
        append(other, epoch)
    stale = whole_file(other.path)
    other.close()
    start = written.offsets[4]
    patch(written.path, start, stale[start : start + 9000])
    found, reader = epochs_of(written.path)
    assert found == [41, 42, 43, 44] and reader.stopped_because == "unlinked"


def test_a_frame_at_another_offset_is_no_frame(written):
    whole = whole_file(written.path)
    start, end = written.offsets[4], written.end_offset
    patch(written.path, aligned(end, SECTOR_BYTES), whole[start:end])
    found, reader = epochs_of(written.path)
    assert found == [41, 42, 43, 44, 45] and reader.stopped_because == "unlinked"


def test_a_frame_whose_predecessor_was_replaced_does_not_link(log):
    append(log, 41)
    second = aligned(log.end_offset, SECTOR_BYTES)
    append(log, 42)
    patch(log.path, 2 * SECTOR_BYTES + 104, struct.pack("<Q", 12345))  # another time: still a valid frame
    refresh_crc(log.path, 2 * SECTOR_BYTES)
    found, reader = epochs_of(log.path)
    assert found == [41] and reader.stopped_because == "unlinked"
    assert second % SECTOR_BYTES == 0


def test_a_frame_image_inside_a_payload_is_not_taken_for_a_frame(written, fs, tmp_path):
    image = whole_file(written.path)[written.offsets[0] : written.end_offset]
    log = LogWriter.create(fs, tmp_path, UUID, 9, LINK, 64 << 10)
    log.write_link(40)
    deltas, _ = births(41, 0)
    payload = bytes(SECTOR_BYTES - FRAME_HEADER_BYTES) + image
    log.append(41, 41, 40, [deltas.tobytes()], b"", 0, [payload])
    log.sync()
    end = log.end_offset
    reader = read_log(fs, log.path, UUID, 9)
    assert [frame.last_epoch for frame in reader] == [41]
    reader.close()
    patch(log.path, 2 * SECTOR_BYTES + 50, b"x")  # now the frame is bad, and its payload is searched for evidence
    assert find_later_link(fs, log.path, UUID, 9, 2 * SECTOR_BYTES, 40) is None
    assert find_later_link(fs, log.path, UUID, 9, 2 * SECTOR_BYTES, None) is None
    assert end == log.end_offset
    log.close()


# Torn tail or damage.


def test_a_bad_frame_with_a_later_frame_is_damage_and_a_bad_tail_is_torn(written, fs):
    for i, epoch in enumerate(range(41, 46)):
        whole = whole_file(written.path)
        patch(written.path, written.offsets[i] + 300, b"damage")
        found, reader = epochs_of(written.path)
        assert found == list(range(41, epoch))
        evidence = find_later_link(fs, written.path, UUID, 7, reader.end_offset, reader.last_epoch)
        if epoch == 45:
            assert evidence is None
        else:
            assert evidence.offset == written.offsets[i + 1]
            assert evidence.durable_through == epoch
        patch(written.path, 0, whole)


def test_frames_that_were_never_synced_are_no_evidence_for_each_other(log, fs):
    start = log.end_offset
    for epoch in (41, 42, 43):
        append(log, epoch, durable=40, sync=False)
    patch(log.path, aligned(start, SECTOR_BYTES) + 300, b"damage")
    _, reader = epochs_of(log.path)
    assert find_later_link(fs, log.path, UUID, 7, reader.end_offset, reader.last_epoch) is None


def test_any_group_frame_shows_that_a_damaged_link_was_there(log, fs):
    patch(log.path, HEADER_BYTES + 20, b"damage")
    _, reader = epochs_of(log.path)
    assert reader.link is None
    assert find_later_link(fs, log.path, UUID, 7, reader.end_offset, None) is None
    append(log, 41)
    assert epochs_of(log.path)[0] == []
    assert find_later_link(fs, log.path, UUID, 7, reader.end_offset, None).last_epoch == 41


def test_zeroed_sectors_before_a_later_frame_are_damage(written, fs):
    patch(written.path, written.offsets[1], bytes(3 * SECTOR_BYTES))
    found, reader = epochs_of(written.path)
    assert found == [41] and reader.stopped_because == "zeros" and reader.tail_bytes > 0
    assert find_later_link(fs, written.path, UUID, 7, reader.end_offset, 41).durable_through == 42


def test_looking_for_evidence_takes_bounded_time_in_a_forged_log(written, fs):
    size = 1 << 20
    os.truncate(written.path, size)
    start = aligned(written.end_offset, 8)
    with open(written.path, "r+b") as file:
        file.seek(start)
        for offset in range(start, size - 1000, 128):
            length = size - offset
            rest = (UUID, offset, 0, FRAME_GROUP, 2, 1, 50, 50, 49, 0, 0, 0, length - FRAME_HEADER_BYTES, 7, 0)
            file.write(FRAME_HEADER.pack(frames.FRAME_MAGIC, 0, length, *rest))
    with pytest.raises(CorruptionError, match="overlapping"):
        find_later_link(fs, written.path, UUID, 7, written.end_offset, 45)


# Forged frames: CRCs are right, contents are not.


def forge(path, offset, **fields):
    with open(path, "rb") as file:
        file.seek(offset)
        values = list(FRAME_HEADER.unpack(file.read(FRAME_HEADER_BYTES)))
    names = ["magic", "crc", "length", "uuid", "offset", "previous", "kind", "mode", "format", "first", "last"]
    names += ["durable", "deltas", "catalog", "catalog_bytes", "payload_bytes"]
    for name, value in fields.items():
        values[names.index(name)] = value
    patch(path, offset, FRAME_HEADER.pack(*values))
    refresh_crc(path, offset)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 1},
        {"kind": 0},
        {"kind": 9},
        {"mode": 0},
        {"mode": 4},
        {"first": 45},
        {"first": 1, "durable": 0},
        {"last": 40},
        {"durable": 45},
        {"durable": 2**64 - 1},
    ],
)
def test_fields_that_cannot_be_right_are_corruption(written, fields):
    forge(written.path, written.offsets[3], **fields)
    with pytest.raises(CorruptionError, match=f"at offset {written.offsets[3]}"):
        epochs_of(written.path)


def test_another_frame_format_is_told_from_damage(written):
    forge(written.path, written.offsets[3], format=1)
    with pytest.raises(FormatVersionError, match="expected frame format 2, found 1"):
        epochs_of(written.path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", 0),
        ("node_id", 5 << 8),  # no tag
        ("node_id", 3 << 58 | 1),  # slot 0 of a shard
        ("kind", 0),
        ("replaces", 1 << 8),
        ("replaces", 7),
        ("replaces", 2 << 8 | 9),  # its own handle
        ("epoch", 40),
        ("epoch", 42),
        ("op", 0),
        ("op", 4),
        ("size_class", 7),
        ("payload_form", 2),
        ("payload_form", 255),
        ("page_bytes", 8192),
        ("payload_bytes", 100),
        ("payload_bytes", 2**32 - 1),
        ("payload_offset", 4097),
        ("payload_offset", 2**64 - 1),
    ],
)
def test_deltas_that_cannot_be_right_are_corruption(log, fs, field, value):
    deltas, payloads = births(41, 2)
    deltas[field][1] = value
    log.append(41, 41, 40, [deltas.tobytes()], b"", 0, payloads)
    log.sync()
    for read in (list, lambda reader: list(reader.runs())):
        reader = read_log(fs, log.path, UUID, 7)
        offset = 2 * SECTOR_BYTES + FRAME_HEADER_BYTES + 64
        with pytest.raises(CorruptionError, match=f"at offset {offset}: expected a"):
            read(reader)
        reader.close()


@pytest.mark.parametrize("field", ["payload_form", "replaces"])
def test_a_retirement_with_a_page_is_corruption(log, fs, field):
    deltas, payloads = births(41, 1)
    deltas["op"] = frames.OP_RETIRE
    deltas["payload_form"] = deltas["replaces"] = 0
    deltas[field] = 1 if field == "payload_form" else 5 << 8 | 1
    log.append(41, 41, 40, [deltas.tobytes()], b"", 0, payloads)
    with pytest.raises(CorruptionError, match="a retirement with a page"):
        epochs_of(log.path)


def ranges(*pieces):
    """A payload of changed words: (first word, words) each."""
    return b"".join(struct.pack("<HH", first, len(words) // 8) + words for first, words in pieces)


def changed(epoch, payload, **fields):
    """The delta of a page that replaces another one by changed words."""
    deltas, _ = births(epoch, 1)
    deltas["payload_form"] = frames.PAYLOAD_RANGES
    deltas["payload_bytes"] = len(payload)
    deltas["replaces"] = 9 << 8 | 1
    for name, value in fields.items():
        deltas[name] = value
    return deltas


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        ranges((2, bytes(8))),
        ranges((2, bytes(16)), (4, bytes(8)), (511, bytes(8))),
        ranges((2, bytes(510 * 8))),
    ],
)
def test_changed_words_are_read(log, payload):
    log.append(41, 41, 40, [changed(41, payload).tobytes()], b"", 0, [payload])
    assert epochs_of(log.path)[0] == [41]


@pytest.mark.parametrize(
    "payload",
    [
        ranges((1, bytes(8))),
        ranges((2, b"")),
        ranges((511, bytes(16))),
        ranges((512, bytes(8))),
        ranges((65535, bytes(8))),
        ranges((4, bytes(8)), (2, bytes(8))),
        ranges((4, bytes(16)), (5, bytes(8))),
        ranges((2, bytes(8)))[:-1],
        ranges((2, bytes(8))) + b"\0\0",
        ranges((2, bytes(8))) + struct.pack("<HH", 5, 400) + bytes(399 * 8),
    ],
)
def test_changed_words_that_cannot_be_are_corruption(log, payload):
    log.append(41, 41, 40, [changed(41, payload).tobytes()], b"", 0, [payload])
    with pytest.raises(CorruptionError, match="range"):
        epochs_of(log.path)


@pytest.mark.parametrize(
    "fields", [{"replaces": 0}, {"payload_bytes": 13}, {"payload_offset": 1}, {"payload_offset": 2**64 - 8}]
)
def test_changes_of_no_page_or_outside_the_frame_are_corruption(log, fields):
    payload = ranges((2, bytes(8)))
    log.append(41, 41, 40, [changed(41, payload, **fields).tobytes()], b"", 0, [payload])
    with pytest.raises(CorruptionError, match="changes of no page|outside the frame|range"):
        epochs_of(log.path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_changed_words_are_read_or_refused(tmp_path_factory, payload):
    fs = FileSystem()
    log = LogWriter.create(fs, tmp_path_factory.mktemp("log"), UUID, 7, LINK, 4096, 16384)
    log.write_link(40)
    log.append(41, 41, 40, [changed(41, payload).tobytes()], b"", 0, [payload])
    log.close()
    try:
        assert epochs_of(log.path)[0] == [41]
    except CorruptionError as error:
        assert "range" in str(error)


# Runs of frames.


def test_runs_hold_the_frames_that_iteration_gives(log, fs, monkeypatch):
    monkeypatch.setattr(wal_reader, "CHUNK_BYTES", 40_000)
    rng = random.Random(5)
    for epoch in range(41, 241):
        n = rng.choice((0, 1, 1, 2, 15))  # 15 pages are longer than a chunk
        append(log, epoch, n, catalog=bytes(rng.randrange(60)), sync=rng.random() < 0.5)
    found, ended = epochs_of(log.path)
    assert found == list(range(41, 241))
    reader = read_log(fs, log.path, UUID, 7)
    runs = list(reader.runs())
    assert 1 < len(runs) < 200 and sum(map(len, runs)) == 200
    assert runs[0].offset == 2 * SECTOR_BYTES and runs[-1].end_offset == ended.end_offset
    assert (reader.end_offset, reader.last_epoch, reader.stopped_because) == (ended.end_offset, 240, "zeros")
    frames_read = [FrameHeader(bytes(run.chunk)[at : at + 128]).last_epoch for run in runs for at, _ in places(run)]
    assert frames_read == found
    reader.close()


def places(run):
    return [run.place(i) for i in range(len(run))]


def test_reading_goes_on_at_a_boundary_behind_the_end_of_a_chunk(log, fs, monkeypatch):
    monkeypatch.setattr(wal_reader, "CHUNK_BYTES", 4096)
    for epoch in range(41, 60):
        append(log, epoch, n=epoch % 3, catalog=bytes(8 * epoch))
    assert epochs_of(log.path)[0] == list(range(41, 60))


class UpTo:
    """Admits frames of strict mode up to an epoch, and `more` frames after it."""

    def __init__(self, through, more=0):
        self.through, self.more, self.asked = through, more, []

    def __call__(self, frame):
        self.asked.append(frame.last_epoch)
        self.more -= 1
        return self.more >= 0


@pytest.mark.parametrize("more", [0, 1, 2])
def test_frames_of_strict_mode_are_asked_about_one_by_one(fs, tmp_path, more):
    log = LogWriter.create(fs, tmp_path, UUID, 7, LINK, 64 << 10, mode="strict")
    log.write_link(40)
    for epoch in range(41, 50):
        append(log, epoch)
    admits = UpTo(43, more)
    for read in (lambda r: [f.last_epoch for f in r], lambda r: list(range(41, 41 + sum(map(len, r.runs()))))):
        admits = UpTo(43, more)
        reader = read_log(fs, log.path, UUID, 7, admits=admits)
        assert read(reader) == list(range(41, 44 + more))
        assert admits.asked == list(range(44, 45 + more))
        assert reader.stopped_because == "not exposed" and reader.last_epoch == 43 + more
        end = reader.end
        assert reader.count_unexposed() == 49 - 43 - more
        assert (reader.end, reader.stopped_because) == (end, "not exposed")
        reader.close()
    log.close()


def test_a_retirement_needs_no_place_and_a_relocation_does(log, fs):
    deltas, payloads = births(41, 2)
    deltas["op"] = [frames.OP_RETIRE, frames.OP_RELOCATE]
    deltas["payload_form"][0] = deltas["page_bytes"][0] = 0
    deltas["payload_offset"] = 0
    log.append(41, 41, 40, [deltas.tobytes()], b"", 0, payloads[:1])
    log.sync()
    reader = read_log(fs, log.path, UUID, 7)
    (frame,) = reader
    assert frame.deltas["op"].tolist() == [2, 3]
    reader.close()


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=FRAME_HEADER_BYTES, max_size=FRAME_HEADER_BYTES))
def test_any_header_bytes_are_judged_without_an_error(data):
    header = FrameHeader(data)
    assert header.belongs(UUID, 7, 8192) in (True, False)
    assert header.consistent in (True, False)
