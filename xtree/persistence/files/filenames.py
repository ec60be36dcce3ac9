"""The names of the files in an index's directory: the only place that spells or parses one.

Numbers are sequence numbers of 10 decimal digits, 1 to 2**32 - 1, never reused within a directory; those of data
files are unique over all size classes. 0 stands for "no file".
"""

from __future__ import annotations

import re

LOCK = "LOCK"
SUPERBLOCK = "superblock.bin"
MANIFEST = "manifest.json"

MAX_NUMBER = 2**32 - 1
SIZE_CLASSES = 7

_TEMPORARY = ".tmp"
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{10})\.ckpt")
_LOG = re.compile(r"wal-([0-9]{10})\.log")
_DATA = re.compile(r"data-c([0-6])-([0-9]{10})\.xd")


def checkpoint_name(number: int) -> str:
    """The name of checkpoint `number`."""
    return f"checkpoint-{_checked(number):010d}.ckpt"


def log_name(number: int) -> str:
    """The name of log `number`."""
    return f"wal-{_checked(number):010d}.log"


def data_name(size_class: int, number: int) -> str:
    """The name of data file `number`, whose slots are all of one size class."""
    if not 0 <= size_class < SIZE_CLASSES:
        raise ValueError(f"size class {size_class} is not in 0 .. {SIZE_CLASSES - 1}")
    return f"data-c{size_class}-{_checked(number):010d}.xd"


def temporary_name(name: str) -> str:
    """The name under which a file is written before it replaces `name`."""
    return name + _TEMPORARY


def parse_checkpoint(name: str) -> int | None:
    """The number of a checkpoint's name, None for any other string."""
    return _number(_CHECKPOINT.fullmatch(name), 1)


def parse_log(name: str) -> int | None:
    """The number of a log's name, None for any other string."""
    return _number(_LOG.fullmatch(name), 1)


def parse_data(name: str) -> tuple[int, int] | None:
    """(size class, number) of a data file's name, None for any other string."""
    match = _DATA.fullmatch(name)
    number = _number(match, 2)
    return None if match is None or number is None else (int(match.group(1)), number)


def is_temporary(name: str) -> bool:
    """Whether `name` is that of a half-written replacement, which no reader looks at."""
    if not name.endswith(_TEMPORARY):
        return False
    final = name[: -len(_TEMPORARY)]
    return final == MANIFEST or parse_checkpoint(final) is not None


def is_ours(name: str) -> bool:
    """Whether a bare file name is one that an index may have in its directory."""
    return (
        name in (LOCK, SUPERBLOCK, MANIFEST)
        or parse_checkpoint(name) is not None
        or parse_log(name) is not None
        or parse_data(name) is not None
        or is_temporary(name)
    )


def _checked(number: int) -> int:
    if not 1 <= number <= MAX_NUMBER:
        raise ValueError(f"file number {number} is not in 1 .. {MAX_NUMBER}")
    return number


def _number(match: re.Match[str] | None, group: int) -> int | None:
    if match is None:
        return None
    number = int(match.group(group))
    return number if 1 <= number <= MAX_NUMBER else None
