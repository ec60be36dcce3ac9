"""What commits are compared with: the disk itself, LMDB and SQLite, each with the same records and its own checks."""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xtree.tools.bench.report import require

__all__ = ["Lmdb", "Peer", "RawAppend", "Sqlite"]

RECORD = struct.Struct("<4d")
KEY = struct.Struct(">q")
KEYS = 1 << 63
SCATTER = 0x5851F42D4C957F2D  # odd, so that no two ids get the same key
BLOCK = 4096


class Peer(Protocol):
    """Something that commits records."""

    def commit(self, ids: np.ndarray, boxes: np.ndarray) -> None:
        """Returns once these records are as durable as the peer promises."""

    def close(self, expected: int) -> None:
        """Ends it. Raises WrongAnswerError when it doesn't hold `expected` records."""


class RawAppend:
    """One block of 4 KiB written after the last one and synced: no log can be faster.

    filled: how many blocks of zeros the file holds already, so that a sync writes no metadata; with 0 each block
    extends the file.
    """

    def __init__(self, path: Path, filled: int = 0) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._block = bytes(range(256)) * (BLOCK // 256)
        self._blocks = 0
        self._filled = filled
        for _ in range(filled):
            os.write(self._fd, bytes(BLOCK))
        self._sync()

    def commit(self, ids: np.ndarray, boxes: np.ndarray) -> None:
        place = self._blocks % self._filled if self._filled else self._blocks
        os.pwrite(self._fd, self._block, place * BLOCK)
        self._sync()
        self._blocks += 1

    def close(self, expected: int) -> None:
        last = os.pread(self._fd, BLOCK, (self._blocks - 1) % (self._filled or self._blocks) * BLOCK)
        os.close(self._fd)
        require(self._blocks == expected and last == self._block, f"{self._blocks} blocks written, not {expected}")

    def _sync(self) -> None:
        getattr(os, "fdatasync", os.fsync)(self._fd)


class Lmdb:
    """A key and 32 bytes a record. Raises ImportError when lmdb isn't installed.

    scattered: the keys aren't the ids, which ascend, but as many different numbers that lie anywhere, as the boxes of a
    spatial index do: a commit changes pages all over the tree.
    """

    def __init__(self, path: Path, sync: bool, scattered: bool) -> None:
        import lmdb

        self._database = lmdb.open(str(path), map_size=1 << 32, sync=sync, metasync=sync)
        self._step = SCATTER if scattered else 1

    def commit(self, ids: np.ndarray, boxes: np.ndarray) -> None:
        with self._database.begin(write=True) as transaction:
            for id_, box in zip(ids.tolist(), boxes.tolist()):
                transaction.put(KEY.pack(id_ * self._step % KEYS), RECORD.pack(*box))

    def close(self, expected: int) -> None:
        found = self._database.stat()["entries"]
        self._database.close()
        require(found == expected, f"LMDB holds {found} records, not {expected}")


class Sqlite:
    """A row a record, in a plain table or an R*Tree; write-ahead log, every commit synced.

    Raises sqlite3.OperationalError when this SQLite has no R*Tree.
    """

    def __init__(self, path: Path, spatial: bool) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        mode = self._ask("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        require(mode == "wal" and self._ask("PRAGMA synchronous") == 2, "SQLite syncs every commit")
        columns = "id, minx, maxx, miny, maxy"
        kind = f"VIRTUAL TABLE t USING rtree({columns})" if spatial else "TABLE t (id INTEGER PRIMARY KEY, a, b, c, d)"
        self._database.execute(f"CREATE {kind}")

    def commit(self, ids: np.ndarray, boxes: np.ndarray) -> None:
        rows = [(i, x0, x1, y0, y1) for i, (x0, y0, x1, y1) in zip(ids.tolist(), boxes.tolist())]
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
        self._database.execute("COMMIT")

    def close(self, expected: int) -> None:
        found = self._ask("SELECT count(*) FROM t")
        self._database.close()
        require(found == expected, f"SQLite holds {found} records, not {expected}")

    def _ask(self, question: str) -> Any:
        return self._database.execute(question).fetchone()[0]
