"""The manifest: JSON whose every byte is checked, and no impossible value is accepted."""

import copy

import pytest
import rapidjson
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from xtree.config import Config
from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.files.filenames import MANIFEST
from xtree.persistence.files.manifest import CheckpointEntry, ClosedLog, DataFileEntry, LogEntry, Manifest
from xtree.persistence.files.platform_fs import FileSystem

MANIFEST_VALUE = Manifest(
    uuid=b"12345678" * 2,
    config=Config().to_stored(),
    generation=7,
    checkpoints=(CheckpointEntry(3, 100, 5000, 0xDEADBEEF), CheckpointEntry(6, 200, 6000, 1)),
    logs=(LogEntry(4, ClosedLog(8192, 150, 77)), LogEntry(7)),
    data_files=(DataFileEntry(1, 0, 65536), DataFileEntry(2, 6, 1 << 30)),
    next_number=8,
)


def forged(body, version=b"1"):
    """A manifest with this body and a right CRC."""
    data = b'{"format": %s, "crc32c": "00000000", "body":\n%s}\n' % (version, body)
    return data.replace(b"00000000", b"%08x" % crc32c(data), 1)


def values():
    return rapidjson.loads(MANIFEST_VALUE.encode())["body"]


def test_a_manifest_is_read_back_and_is_json():
    assert Manifest.decode(MANIFEST_VALUE.encode()) == MANIFEST_VALUE
    parsed = rapidjson.loads(MANIFEST_VALUE.encode())
    assert parsed["format"] == 1
    assert parsed["body"]["uuid"] == MANIFEST_VALUE.uuid.hex()


def test_a_manifest_is_saved_and_loaded(tmp_path):
    fs = FileSystem()
    MANIFEST_VALUE.save(fs, tmp_path)
    assert Manifest.load(fs, tmp_path) == MANIFEST_VALUE
    assert fs.listdir(tmp_path) == [MANIFEST]
    with pytest.raises(FileNotFoundError):
        Manifest.load(fs, tmp_path / "nothing")


@pytest.mark.parametrize("uuid", [b"\x11" * 16, bytes(16), b"\xff" * 16, b"\x12\x34\x56\x78\x90" * 3 + b"\x12"])
def test_any_uuid_is_kept(uuid):
    manifest = Manifest(uuid, Config().to_stored())
    assert Manifest.decode(manifest.encode()) == manifest


def test_every_flipped_bit_is_noticed():
    data = MANIFEST_VALUE.encode()
    for i in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[i] ^= 1 << bit
            with pytest.raises(CorruptionError):
                Manifest.decode(bytes(damaged))


def test_every_truncation_and_every_addition_is_noticed():
    data = MANIFEST_VALUE.encode()
    for n in range(len(data)):
        with pytest.raises(CorruptionError):
            Manifest.decode(data[:n])
    with pytest.raises(CorruptionError):
        Manifest.decode(data + b"\n")


def test_another_format_version_is_told_from_damage():
    with pytest.raises(FormatVersionError, match="expected format version 1, found 2"):
        Manifest.decode(forged(b"{}", b"2"))


def change(where, value):
    """The body with one value replaced, added, or (with KeyError) removed."""
    body = values()
    at = body
    for step in where[:-1]:
        at = at[step]
    if value is KeyError:
        del at[where[-1]]
    else:
        at[where[-1]] = value
    return rapidjson.dumps(body, allow_nan=True).encode()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("uuid",), "12"),
        (("uuid",), "Z" * 32),
        (("uuid",), 5),
        (("uuid",), KeyError),
        (("extra",), 1),
        (("generation",), 0),
        (("generation",), -1),
        (("generation",), 2**64),
        (("generation",), 1.0),
        (("generation",), True),
        (("generation",), float("nan")),
        (("generation",), float("inf")),
        (("generation",), "1"),
        (("generation",), None),
        (("config",), {}),
        (("config",), []),
        (("config", "window_bytes"), 12345),
        (("config", "window_bytes"), "1"),
        (("config", "other"), 1),
        (("checkpoints",), {}),
        (("checkpoints",), None),
        (("checkpoints", 0), 5),
        (("checkpoints", 0, "number"), 0),
        (("checkpoints", 0, "number"), 2**32),
        (("checkpoints", 0, "number"), "../../etc/passwd"),
        (("checkpoints", 0, "number"), 6),
        (("checkpoints", 0, "epoch"), -1),
        (("checkpoints", 0, "crc"), 2**32),
        (("checkpoints", 0, "path"), "/etc/passwd"),
        (("checkpoints", 0, "bytes"), KeyError),
        (("logs", 0, "number"), 7),
        (("logs", 1, "number"), 8),
        (("logs", 0, "closed"), []),
        (("logs", 0, "closed"), {}),
        (("logs", 0, "closed", "end_offset"), -8),
        (("logs", 0, "closed", "last_crc"), 1e300),
        (("data_files", 0, "size_class"), 7),
        (("data_files", 0, "size_class"), -1),
        (("data_files", 0, "number"), 2),
        (("data_files", 0, "synced_bytes"), 2**63),
        (("next_number",), 7),
        (("next_number",), 2**40),
    ],
)
def test_values_that_cannot_be_right_are_corruption_even_with_a_right_crc(where, value):
    with pytest.raises(CorruptionError, match=r"manifest\.json"):
        Manifest.decode(forged(change(where, value)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{",
        b"{}}",
        b"\xff\xfe",
        b"{'uuid': 1}",
        b"[" * 1_000_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"9" * 5_000_000,
        b'{"generation": 1e999999999}',
        b"NaN",
    ],
)
def test_forged_bodies_neither_crash_nor_hang(body):
    with pytest.raises(CorruptionError):
        Manifest.decode(forged(body))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    for candidate in (data, forged(data)):
        with pytest.raises((CorruptionError, FormatVersionError)):
            Manifest.decode(candidate)


def test_decoding_changes_nothing():
    data = MANIFEST_VALUE.encode()
    kept = copy.copy(data)
    Manifest.decode(data)
    assert data == kept
