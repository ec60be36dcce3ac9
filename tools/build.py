"""Build: a durable index out of a table file, packed, in one commit."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import xtree
from xtree.persistence.base.progress import Progress
from xtree.runtime import discard
from xtree.tools.csv_columns import Wanted
from xtree.tools.table_error import TableError
from xtree.tools.tables import BY_RULES, read_table

__all__ = ["build_index"]


def build_index(
    source: Path,
    path: Path,
    *,
    tree: str = "default",
    points: bool = False,
    append: bool = False,
    wanted: Wanted = BY_RULES,
    encoding: str | None = None,
    reading: Progress | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Loads the table `source` into the index at `path` and says what was done.

    Without `append` the index must not exist; one that couldn't be filled is removed again. With it, the tree gets
    the table's records on top of its own. wanted, encoding: as in `read_table`. reading, progress: called with (done,
    total) now and then, in bytes of the file while it is read, in records while they are loaded. Raises TableError,
    also when the tree has other dimensions, OSError and the errors of xtree.
    """
    started = perf_counter()
    ids, boxes, columns = read_table(source, points, wanted, encoding, reading)
    read = perf_counter()
    runtime = xtree.Runtime(path, mode="a" if append else "x")
    try:
        try:
            target = runtime.tree(tree, dims=boxes.shape[1] // 2)
        except xtree.DimensionError as error:
            raise TableError(f"{source}: {error}") from error
        target.bulk_load(ids, boxes, progress=progress)
        total = len(target)
        runtime.checkpoint()  # which may find the disk full
    except BaseException:
        discard(runtime)
        raise
    runtime.close()
    return {
        "path": str(path),
        "tree": tree,
        "loaded": len(ids),
        "records": total,
        "dims": boxes.shape[1] // 2,
        "columns": None if columns is None else columns.names(),
        "points": points if columns is None else columns.points,
        "id_column": None if columns is None or columns.id is None else columns.header[columns.id],
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
        "read_seconds": read - started,
        "load_seconds": perf_counter() - read,
    }
