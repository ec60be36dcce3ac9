"""The manifest: which checkpoints, logs and data files make up an index, as JSON.

One line that this module writes and reads byte by byte, then the body, which any JSON reader understands:

    {"format": 1, "crc32c": "0123abcd", "body":
    { ... }}

The CRC covers the whole file with its eight digits as zeros. The manifest is saved by atomic replacement, and only with
names and sizes of what has been synced before: whatever it lists is on the disk.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import Any

import rapidjson
from crc32c import crc32c

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.base.config import MAX_WINDOW_BYTES, StoreConfig
from xtree.persistence.files.file_header import UUID_BYTES
from xtree.persistence.files.filenames import MANIFEST, MAX_NUMBER, SIZE_CLASSES
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.platform_fs import FileSystem

FORMAT = 1
_HEXADECIMAL = frozenset("0123456789abcdef")
_HEAD = re.compile(rb'\{"format": ([0-9]{1,9}), "crc32c": "([0-9a-f]{8})", "body":\n')
_NO_CRC = b"00000000"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NUMBERS_TOO_LONG = re.compile(rb"[0-9]{33}")  # longer than any number, or UUID, that is written
_MOST_BRACKETS = 6  # how deep the body may nest; the parser is recursive
_U32 = 2**32 - 1
_U64 = 2**64 - 1


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint: its file's number, size and CRC, and the epoch it holds."""

    number: int
    epoch: int
    bytes: int
    crc: int


@dataclass(frozen=True)
class ClosedLog:
    """How a log ended: whatever its file holds beyond this doesn't count."""

    end_offset: int
    last_epoch: int
    last_crc: int


@dataclass(frozen=True)
class LogEntry:
    """A log of the chain; `closed` is None while it may still grow."""

    number: int
    closed: ClosedLog | None = None


@dataclass(frozen=True)
class DataFileEntry:
    """A data file and how many of its bytes are known to be on the disk as part of the file."""

    number: int
    size_class: int
    synced_bytes: int


@dataclass(frozen=True)
class Manifest:
    """The values of a manifest."""

    uuid: bytes
    config: dict[str, int]  # StoreConfig.to_stored()
    generation: int = 1
    checkpoints: tuple[CheckpointEntry, ...] = ()  # oldest first
    logs: tuple[LogEntry, ...] = ()  # oldest first
    data_files: tuple[DataFileEntry, ...] = ()
    next_number: int = 1  # no file has or had a number as high as this

    def encode(self) -> bytes:
        """The bytes of the file."""
        values = {**dataclasses.asdict(self), "uuid": self.uuid.hex()}
        body = rapidjson.dumps(values, indent=1).encode()
        head = b'{"format": %d, "crc32c": "%s", "body":\n' % (FORMAT, _NO_CRC)
        data = head + body + b"}\n"
        return data.replace(_NO_CRC, b"%08x" % crc32c(data), 1)

    @classmethod
    def decode(cls, data: bytes, path: str | os.PathLike[str] = MANIFEST) -> Manifest:
        """The values of a file's bytes. Raises CorruptionError, FormatVersionError."""
        path = os.fspath(path)
        body = _verified_body(data, path)
        try:
            values = rapidjson.loads(body, number_mode=rapidjson.NM_NATIVE)
            return _Reader(path).manifest(values)
        except CorruptionError:
            raise
        except ValueError as error:
            raise CorruptionError(f"{path}: expected a JSON body, found {error}") from None

    def save(self, fs: FileSystem, directory: str | os.PathLike[str]) -> None:
        """Replaces the directory's manifest by this one, durably."""
        fs.write_atomically(path_in(directory, MANIFEST), self.encode())

    @classmethod
    def load(cls, fs: FileSystem, directory: str | os.PathLike[str]) -> Manifest:
        """The directory's manifest. Raises FileNotFoundError, CorruptionError, FormatVersionError."""
        path = path_in(directory, MANIFEST)
        return cls.decode(fs.read_file(path), path)


def _verified_body(data: bytes, path: str) -> str:
    """The JSON text of the body, once its CRC is verified and it is known to be harmless to parse."""
    head = _HEAD.match(data)
    if head is None or not data.endswith(b"}\n"):
        raise CorruptionError(f"{path}: at offset 0: expected the first line of a manifest, found {data[:60]!r}")
    zeroed = data[: head.start(2)] + _NO_CRC + data[head.end(2) :]
    found, expected = int(head.group(2), 16), crc32c(zeroed)
    if found != expected:
        raise CorruptionError(f"{path}: expected the CRC {expected:#010x}, found {found:#010x}")
    if int(head.group(1)) != FORMAT:
        raise FormatVersionError(f"{path}: expected format version {FORMAT}, found {int(head.group(1))}")
    body = data[head.end() : -2]
    depth = 0
    for bracket in body.translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > _MOST_BRACKETS:
            raise CorruptionError(f"{path}: expected at most {_MOST_BRACKETS} levels of brackets, found more")
    if _NUMBERS_TOO_LONG.search(body):
        raise CorruptionError(f"{path}: expected numbers of at most 64 bits, found a longer one")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise CorruptionError(f"{path}: expected UTF-8, found {error}") from None


class _Reader:
    """Turns parsed JSON into a Manifest; refuses everything that `encode` wouldn't have written."""

    def __init__(self, path: str) -> None:
        self.path = path

    def manifest(self, values: Any) -> Manifest:
        """The manifest of a parsed body."""
        self.keys(values, {field.name for field in dataclasses.fields(Manifest)}, "body")
        uuid = values["uuid"]
        if not isinstance(uuid, str) or len(uuid) != 2 * UUID_BYTES or not _HEXADECIMAL.issuperset(uuid):
            self.refuse("uuid", f"{2 * UUID_BYTES} hexadecimal digits", uuid)
        manifest = Manifest(
            uuid=bytes.fromhex(uuid),
            config=self.config(values["config"]),
            generation=self.whole(values, "generation", 1, _U64),
            checkpoints=tuple(self.checkpoint(v) for v in self.array(values, "checkpoints")),
            logs=tuple(self.log(v) for v in self.array(values, "logs")),
            data_files=tuple(self.data_file(v) for v in self.array(values, "data_files")),
            next_number=self.whole(values, "next_number", 1, MAX_NUMBER + 1),
        )
        self.numbers(manifest)
        return manifest

    def checkpoint(self, values: Any) -> CheckpointEntry:
        self.keys(values, {"number", "epoch", "bytes", "crc"}, "checkpoints")
        return CheckpointEntry(
            self.whole(values, "number", 1, MAX_NUMBER),
            self.whole(values, "epoch", 0, _U64),
            self.whole(values, "bytes", 1, 1 << 50),
            self.whole(values, "crc", 0, _U32),
        )

    def log(self, values: Any) -> LogEntry:
        self.keys(values, {"number", "closed"}, "logs")
        closed = values["closed"]
        if closed is not None:
            self.keys(closed, {"end_offset", "last_epoch", "last_crc"}, "closed")
            closed = ClosedLog(
                self.whole(closed, "end_offset", 0, 1 << 50),
                self.whole(closed, "last_epoch", 0, _U64),
                self.whole(closed, "last_crc", 0, _U32),
            )
        return LogEntry(self.whole(values, "number", 1, MAX_NUMBER), closed)

    def data_file(self, values: Any) -> DataFileEntry:
        self.keys(values, {"number", "size_class", "synced_bytes"}, "data_files")
        return DataFileEntry(
            self.whole(values, "number", 1, MAX_NUMBER),
            self.whole(values, "size_class", 0, SIZE_CLASSES - 1),
            self.whole(values, "synced_bytes", 0, MAX_WINDOW_BYTES),
        )

    def config(self, values: Any) -> dict[str, int]:
        self.keys(values, set(StoreConfig.STORED), "config")
        try:
            return StoreConfig(**values).to_stored()
        except (ValueError, TypeError) as error:
            raise CorruptionError(f"{self.path}: config: {error}") from None

    def numbers(self, manifest: Manifest) -> None:
        for what in (manifest.checkpoints, manifest.logs, manifest.data_files):
            numbers = [entry.number for entry in what]
            if len(set(numbers)) != len(numbers):
                self.refuse("numbers", "every file once", numbers)
            if numbers and max(numbers) >= manifest.next_number:
                self.refuse("next_number", f"more than {max(numbers)}", manifest.next_number)

    def keys(self, values: Any, expected: set[str], where: str) -> None:
        if not isinstance(values, dict) or set(values) != expected:
            found = sorted(values) if isinstance(values, dict) else values
            self.refuse(where, f"an object with {sorted(expected)}", found)

    def array(self, values: dict[str, Any], name: str) -> list[Any]:
        if not isinstance(values[name], list):
            self.refuse(name, "an array", values[name])
        found: list[Any] = values[name]
        return found

    def whole(self, values: dict[str, Any], name: str, least: int, most: int) -> int:
        value = values[name]
        if type(value) is not int or not least <= value <= most:
            self.refuse(name, f"a whole number in {least} .. {most}", value)
        whole: int = value
        return whole

    def refuse(self, where: str, expected: str, found: object) -> None:
        raise CorruptionError(f"{self.path}: {where}: expected {expected}, found {str(found)[:200]}")
