"""Other spatial indexes as contestants of `bench index`, each used in the way that its own manual recommends.

Each takes what it works on in its own form, made beforehand and not timed: geometries for shapely, columns for
geoindex-rs, tuples for SQLite. Answers stay in the form in which they come.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from xtree.tools.bench.answers import counted, from_lists, from_pairs
from xtree.tools.bench.report import Report, require
from xtree.tools.bench.size import allocated_bytes
from xtree.tools.bench.trees import BATCH, Contestant, Trial

__all__ = ["GEOINDEX", "RTREE", "RTREE_DISK", "SHAPELY", "SQLITE", "SQLITE_DISK", "disk_peers", "memory_peers"]

GEOINDEX, SHAPELY = "geoindex-rs", "shapely STRtree"
RTREE, RTREE_DISK = "rtree", "rtree on disk"
SQLITE, SQLITE_DISK = "SQLite R*Tree", "SQLite R*Tree on disk"


def memory_peers(report: Report) -> list[Contestant]:
    """Those that are installed; the others are skipped in the report, with the reason."""
    return _installed(report, {GEOINDEX: Geoindex, SHAPELY: Shapely, RTREE: Rtree, SQLITE: Sqlite})


def disk_peers(report: Report, directory: Path) -> list[Contestant]:
    """The same of those that write files, into a directory."""
    makers = {
        RTREE_DISK: lambda: Rtree(directory / "peer-rtree"),
        SQLITE_DISK: lambda: Sqlite(directory / "peer.sqlite"),
    }
    return _installed(report, makers)


def _installed(report: Report, makers: dict[str, Callable[[], Contestant]]) -> list[Contestant]:
    found = []
    for name, make in makers.items():
        try:
            found.append(make())
        except (ImportError, OSError) as error:  # rtree: OSError when its library is missing
            report.skip(name, f"{error}; pip install 'xtree-index[bench]'")
        except sqlite3.OperationalError as error:
            report.skip(name, str(error))
    return found


class Geoindex(Contestant):
    """A packed Hilbert R-tree; one window or point a call. Raises ImportError when geoindex-rs isn't installed."""

    name = GEOINDEX

    def __init__(self) -> None:
        from geoindex_rs import rtree

        self._module: Any = rtree
        self._index: Any = None

    def build(self, boxes: np.ndarray) -> Trial | None:
        self.close()
        if not len(boxes):
            return None
        columns = np.ascontiguousarray(boxes.T)

        def run() -> None:
            builder = self._module.RTreeBuilder(len(boxes))
            builder.add(*columns)
            self._index = builder.finish()

        return Trial(run)

    def search(self, windows: np.ndarray) -> Trial:
        return self.search_each(windows)

    def search_each(self, windows: np.ndarray) -> Trial:
        search, index, rows = self._module.search, self._index, windows.tolist()
        return Trial(lambda: [search(index, x0, y0, x1, y1) for x0, y0, x1, y1 in rows], from_lists)

    def nearest_each(self, points: np.ndarray, k: int) -> Trial:
        neighbors, index, rows = self._module.neighbors, self._index, points.tolist()
        return Trial(lambda: [neighbors(index, x, y, max_results=k) for x, y in rows], from_lists)

    def join(self, boxes: np.ndarray) -> Trial:
        def answer(found: Any) -> Any:
            left, right = (np.asarray(found[column]).astype(np.int64) for column in ("left", "right"))
            return from_pairs(left, right, len(boxes))

        return Trial(lambda: self._module.tree_join(self._index, self._index), answer)

    def records(self) -> int:
        return int(self._index.metadata.num_items)

    def close(self) -> None:
        self._index = None


class Shapely(Contestant):
    """A sort-tile-recursive tree of geometries. Raises ImportError when shapely isn't installed."""

    name = SHAPELY

    def __init__(self) -> None:
        import shapely

        self._shapely = shapely
        self._index: Any = None

    def build(self, boxes: np.ndarray) -> Trial:
        self.close()
        geometries = self._shapely.box(*boxes.T)
        first = geometries[:1]

        def run() -> None:
            self._index = self._shapely.STRtree(geometries)
            self._index.query(first)  # it is built at the first query

        return Trial(run)

    def search(self, windows: np.ndarray) -> Trial:
        geometries, query = self._shapely.box(*windows.T), self._index.query
        return Trial(lambda: query(geometries), lambda found: from_pairs(*found, len(windows)))

    def search_each(self, windows: np.ndarray) -> Trial:
        geometries, query = list(self._shapely.box(*windows.T)), self._index.query
        return Trial(lambda: [query(geometry) for geometry in geometries], from_lists)

    def nearest(self, points: np.ndarray, k: int) -> Trial | None:
        if k != 1:
            return None
        geometries, nearest = self._shapely.points(points), self._index.query_nearest
        return Trial(lambda: nearest(geometries), lambda found: from_pairs(*found, len(points)))

    def join(self, boxes: np.ndarray) -> Trial:
        query, geometries = self._index.query, self._index.geometries
        return Trial(lambda: query(geometries), lambda found: from_pairs(*found, len(boxes)))

    def records(self) -> int:
        return len(self._index)

    def close(self) -> None:
        self._index = None


class Rtree(Contestant):
    """An R*-tree of libspatialindex, in memory or in two files that it doesn't sync.

    Raises ImportError when rtree isn't installed.
    """

    name = RTREE
    slow = True

    def __init__(self, path: Path | None = None) -> None:
        from rtree import index

        self._module = index
        self._path = path
        self._index: Any = None
        if path is not None:
            self.name = RTREE_DISK

    def build(self, boxes: np.ndarray) -> Trial:
        self.close()
        columns = self._columns(boxes)
        stream = (np.arange(len(boxes)), *columns)

        def run() -> None:
            where = () if self._path is None else (str(self._path),)
            self._index = self._module.Index(*where, *([stream] if len(boxes) else []))
            if self._path is not None:
                self._index.flush()

        return Trial(run)

    def grow(self, boxes: np.ndarray) -> Trial:
        self.close()
        rows = boxes.tolist()

        def run() -> None:
            self._index = self._module.Index()
            for id_, box in enumerate(rows):
                self._index.insert(id_, box)

        return Trial(run)

    grow_singly = grow

    def insert_many(self, first_id: int, boxes: np.ndarray) -> Trial:
        insert, rows = self._index.insert, list(enumerate(boxes.tolist(), first_id))
        return Trial(lambda: [insert(id_, box) for id_, box in rows])

    insert_each = insert_many

    def delete(self, ids: np.ndarray, boxes: np.ndarray) -> Trial:
        delete, rows = self._index.delete, list(zip(ids.tolist(), boxes.tolist()))
        return Trial(lambda: [delete(id_, box) for id_, box in rows])

    def search(self, windows: np.ndarray) -> Trial:
        search, columns = self._index.intersection_v, self._columns(windows)
        return Trial(lambda: search(*columns), self._by_counts)

    def search_each(self, windows: np.ndarray) -> Trial:
        search, rows = self._index.intersection, windows.tolist()
        return Trial(lambda: [list(search(row)) for row in rows], from_lists)

    def count(self, windows: np.ndarray) -> Trial:
        count, rows = self._index.count, windows.tolist()
        return Trial(lambda: [count(row) for row in rows], counted)

    def nearest(self, points: np.ndarray, k: int) -> Trial:
        nearest, places = self._index.nearest_v, np.ascontiguousarray(points)
        return Trial(lambda: nearest(places, places, num_results=k), self._by_counts)

    def nearest_each(self, points: np.ndarray, k: int) -> Trial:
        nearest, rows = self._index.nearest, points.tolist()
        return Trial(lambda: [list(nearest(row, k)) for row in rows], from_lists)

    def records(self) -> int:
        return len(self._index)

    def disk_bytes(self) -> int | None:
        return None if self._path is None else allocated_bytes(self._files())

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None
        for file in self._files():
            file.unlink()

    def _files(self) -> list[Path]:
        return [] if self._path is None else [*self._path.parent.glob(f"{self._path.name}.*")]

    @staticmethod
    def _columns(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ascontiguousarray(boxes[:, :2]), np.ascontiguousarray(boxes[:, 2:])

    @staticmethod
    def _by_counts(found: tuple[np.ndarray, np.ndarray]) -> Any:
        ids, counts = found
        return counted(counts)._replace(ids=ids)


class Sqlite(Contestant):
    """An R*Tree table, in memory or in a file whose commits are synced; its coordinates are float32, rounded outwards.

    Raises sqlite3.OperationalError when this SQLite has no R*Tree.
    """

    name = SQLITE
    slow = True
    TOUCHING = "t.x0 <= ? AND t.x1 >= ? AND t.y0 <= ? AND t.y1 >= ?"

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        if path is not None:
            self.name = SQLITE_DISK
        with closing(sqlite3.connect(":memory:")) as database:
            self._make_table(database)

    def build(self, boxes: np.ndarray) -> Trial:
        self._open()
        rows = self._rows(0, boxes)
        return Trial(lambda: self._insert(rows))

    def grow(self, boxes: np.ndarray) -> Trial:
        self._open()
        rows = self._rows(0, boxes)

        def run() -> None:
            for start in range(0, len(rows), BATCH):
                self._insert(rows[start : start + BATCH])

        return Trial(run)

    def grow_singly(self, boxes: np.ndarray) -> Trial:
        self._open()
        rows = self._rows(0, boxes)
        return Trial(lambda: [self._ask("INSERT INTO t VALUES (?, ?, ?, ?, ?)", row) for row in rows])

    def insert_many(self, first_id: int, boxes: np.ndarray) -> Trial:
        rows = self._rows(first_id, boxes)
        return Trial(lambda: self._insert(rows))

    def insert_each(self, first_id: int, boxes: np.ndarray) -> Trial:
        rows = self._rows(first_id, boxes)

        def run() -> None:
            self._ask("BEGIN")
            for row in rows:
                self._ask("INSERT INTO t VALUES (?, ?, ?, ?, ?)", row)
            self._ask("COMMIT")

        return Trial(run)

    def delete(self, ids: np.ndarray, boxes: np.ndarray) -> Trial:
        rows = [(id_,) for id_ in ids.tolist()]

        def run() -> None:
            self._ask("BEGIN")
            self._connection.executemany("DELETE FROM t WHERE id = ?", rows)
            self._ask("COMMIT")

        return Trial(run)

    def search(self, windows: np.ndarray) -> Trial:
        self._ask("DROP TABLE IF EXISTS temp.w")
        self._ask("CREATE TEMP TABLE w (n INTEGER PRIMARY KEY, x0, x1, y0, y1)")
        self._connection.executemany("INSERT INTO w VALUES (?, ?, ?, ?, ?)", self._rows(0, windows))
        question = (
            "SELECT w.n, t.id FROM w CROSS JOIN t WHERE t.x0 <= w.x1 AND t.x1 >= w.x0 AND t.y0 <= w.y1 AND t.y1 >= w.y0"
        )

        def answer(found: list[tuple[int, int]]) -> Any:
            pairs = np.array(found, np.int64).reshape(-1, 2)
            return from_pairs(pairs[:, 0], pairs[:, 1], len(windows), loose=True)

        return Trial(lambda: self._ask(question).fetchall(), answer)

    def search_each(self, windows: np.ndarray) -> Trial:
        ask, question = self._ask, f"SELECT t.id FROM t WHERE {self.TOUCHING}"
        rows = self._bounds(windows)

        def answer(found: list[list[tuple[int]]]) -> Any:
            return from_lists([[id_ for (id_,) in hits] for hits in found], loose=True)

        return Trial(lambda: [ask(question, row).fetchall() for row in rows], answer)

    def count(self, windows: np.ndarray) -> Trial:
        ask, question = self._ask, f"SELECT count(*) FROM t WHERE {self.TOUCHING}"
        rows = self._bounds(windows)
        return Trial(
            lambda: [ask(question, row).fetchone()[0] for row in rows], lambda found: counted(found, loose=True)
        )

    def records(self) -> int:
        return int(self._ask("SELECT count(*) FROM t").fetchone()[0])

    def disk_bytes(self) -> int | None:
        if self._path is None:
            return None
        self._ask("PRAGMA wal_checkpoint(TRUNCATE)")
        return allocated_bytes([self._path])

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._path is not None:
            for file in self._path.parent.glob(f"{self._path.name}*"):
                file.unlink()

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._database is not None
        return self._database

    def _ask(self, question: str, values: tuple[float, ...] = ()) -> sqlite3.Cursor:
        return self._connection.execute(question, values)

    def _open(self) -> None:
        self.close()
        self._database = sqlite3.connect(":memory:" if self._path is None else self._path, isolation_level=None)
        if self._path is not None:
            mode = self._ask("PRAGMA journal_mode=WAL").fetchone()[0]
            self._ask("PRAGMA synchronous=FULL")
            require(mode == "wal", f"SQLite writes a log, not {mode}")
        self._make_table(self._database)

    def _insert(self, rows: list[tuple[float, ...]]) -> None:
        self._ask("BEGIN")
        self._connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
        self._ask("COMMIT")

    @staticmethod
    def _make_table(database: sqlite3.Connection) -> None:
        database.execute("CREATE VIRTUAL TABLE t USING rtree(id, x0, x1, y0, y1)")

    @staticmethod
    def _rows(first_id: int, boxes: np.ndarray) -> list[tuple[float, ...]]:
        return [(i, x0, x1, y0, y1) for i, (x0, y0, x1, y1) in enumerate(boxes.tolist(), first_id)]

    @staticmethod
    def _bounds(windows: np.ndarray) -> list[tuple[float, ...]]:
        """What TOUCHING compares with."""
        return [(x1, x0, y1, y0) for x0, y0, x1, y1 in windows.tolist()]
