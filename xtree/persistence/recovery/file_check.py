"""Checks the files of an open store by reading them once more: superblock, manifest, checkpoints, logs.

What the store needs of these files is in memory, so damage in them would only show at the next open. Writers go on
meanwhile: a file is judged by what was true of it before it was read, and may be replaced or deleted since. The store
itself verifies data files and pages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.commit.index_files import IndexFiles, closed_log
from xtree.persistence.files import checkpoint as checkpoints
from xtree.persistence.files import filenames
from xtree.persistence.files.manifest import LogEntry
from xtree.persistence.files.open_directory import path_in
from xtree.persistence.files.wal_reader import LogReader, read_log


class Flaw(NamedTuple):
    """What is wrong with a file. part: superblock, manifest, checkpoint or log; name: the bare one."""

    part: str
    name: str
    error: CorruptionError | FormatVersionError


def file_flaws(index_files: IndexFiles, after_crash: bool) -> Iterator[Flaw]:
    """What is wrong with the files of an index in use, one after the other.

    after_crash: the open found the index as a crash leaves it, perhaps with one copy of the superblock torn. Raises
    OSError.
    """
    try:
        index_files.superblock.verify(after_crash)
    except (CorruptionError, FormatVersionError) as error:
        yield Flaw("superblock", filenames.SUPERBLOCK, error)
    try:
        index_files.verify_manifest()
    except (CorruptionError, FormatVersionError) as error:
        yield Flaw("manifest", filenames.MANIFEST, error)
    for kept in index_files.manifest.checkpoints:
        name = filenames.checkpoint_name(kept.number)
        try:
            checkpoints.read(index_files.fs, index_files.directory, kept, index_files.manifest.uuid)
        except FileNotFoundError:
            if kept in index_files.manifest.checkpoints:
                yield Flaw("checkpoint", name, _missing(index_files, name))
        except (CorruptionError, FormatVersionError) as error:
            yield Flaw("checkpoint", name, error)
    writer = index_files.log  # before the list: frames written since need not be found, and need no end in the list
    written = (0, 0) if writer is None else (writer.number, writer.end_offset)
    for entry in index_files.manifest.logs:
        name = filenames.log_name(entry.number)
        try:
            _verify_log(index_files, entry, written[1] if entry.number == written[0] else 0)
        except FileNotFoundError:
            if any(log.number == entry.number for log in index_files.manifest.logs):
                yield Flaw("log", name, _missing(index_files, name))
        except (CorruptionError, FormatVersionError) as error:
            yield Flaw("log", name, error)


def _missing(index_files: IndexFiles, name: str) -> CorruptionError:
    path = path_in(index_files.directory, name)
    return CorruptionError(f"{path}: expected a file that the manifest lists, found none")


def _verify_log(index_files: IndexFiles, entry: LogEntry, written: int) -> None:
    """Verifies a log up to its recorded end, or at least as far as it had been written to. Raises CorruptionError."""
    path = path_in(index_files.directory, filenames.log_name(entry.number))
    end = None if entry.closed is None else entry.closed.end_offset
    uuid = index_files.manifest.uuid
    with contextlib.closing(read_log(index_files.fs, path, uuid, entry.number, recorded_end=end)) as log:
        _require_zeros_between(log)
        if entry.closed is not None and closed_log(log.end) != entry.closed:
            raise CorruptionError(
                f"{path}: expected it to end as {entry.closed}, found {log.end}, {log.stopped_because}"
            )
        if log.end_offset < written:
            raise CorruptionError(
                f"{path}: at offset {log.end_offset}: expected frames up to offset {written}, "
                f"found {log.stopped_because}"
            )


def _require_zeros_between(log: LogReader) -> None:
    end = log.end_offset
    for run in log.runs():
        stray = log.stray_byte(end, run)
        if stray is not None:
            raise CorruptionError(f"{log.path}: at offset {stray}: expected zeros between frames, found another byte")
        end = run.end_offset
