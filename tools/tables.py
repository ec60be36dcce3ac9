"""Tables: ids and boxes from CSV, .npy and .npz files."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xtree.arguments import as_dims
from xtree.input.conversion import stored_boxes
from xtree.persistence.base.progress import Progress
from xtree.tools.csv_columns import Columns, Wanted
from xtree.tools.csv_file import csv_records, read_csv
from xtree.tools.table_error import TableError
from xtree.writing import matching_ids

__all__ = ["Table", "read_table"]

BY_RULES = Wanted()
CSV = (".csv", ".tsv")


class Table(NamedTuple):
    """Ids (n,) int64 and boxes (n, 2*d) float64 of a file, and of a CSV file the columns that they stood in."""

    ids: np.ndarray
    boxes: np.ndarray
    columns: Columns | None


def read_table(
    path: Path,
    points: bool = False,
    wanted: Wanted = BY_RULES,
    encoding: str | None = None,
    progress: Progress | None = None,
) -> Table:
    """The records of a file; ids are 0..n-1 when it has none.

    .csv and .tsv, also with .gz after it: the first line names the columns (`csv_columns`); `wanted` chooses those that
    the rules shouldn't. .npy: boxes (n, 2*d). .npz: arrays `boxes` and, if there are ids, `ids`. With `points` arrays
    hold points (n, d). progress: called with (bytes read, bytes of the file). Raises TableError, OSError.
    """
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    kind, columns = name.suffix.lower(), None
    if kind in CSV:
        ids, rows, columns = read_csv(path, wanted, encoding, progress)
        points = columns.points
    elif kind in (".npy", ".npz") and name is path:
        if wanted != BY_RULES or encoding is not None:
            raise TableError(f"{path}: columns and encodings are chosen in CSV files only")
        ids, rows = _arrays(path)
    else:
        raise TableError(
            f"{path}: expected a name that ends in .csv, .tsv, .csv.gz, .tsv.gz, .npy or .npz, "
            f"got {''.join(path.suffixes[-2:]) or 'no ending'}"
        )
    if points and rows.ndim == 2:
        rows = np.hstack([rows, rows])
    if rows.ndim != 2 or rows.shape[1] % 2 or rows.shape[1] == 0:
        raise TableError(f"{path}: expected boxes of shape (n, 2*d), got {rows.shape}; for points say --points")
    try:
        boxes = stored_boxes(rows, as_dims(rows.shape[1] // 2))
        return Table(np.arange(len(boxes)) if ids is None else matching_ids(ids, len(boxes)), boxes, columns)
    except (ValueError, TypeError, OverflowError) as error:
        message = str(error) if columns is None else _in_lines(str(error), path, encoding)
        raise TableError(f"{path}: {message}") from error


def _arrays(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """Ids, if there are any, and boxes or points of a numpy file."""
    if path.suffix.lower() == ".npy":
        return None, _load(path)
    with _load(path) as arrays:
        if "boxes" not in arrays:
            raise TableError(f"{path}: expected an array named boxes, got {', '.join(arrays) or 'nothing'}")
        try:
            return arrays.get("ids"), arrays["boxes"]
        except (ValueError, EOFError) as error:
            raise TableError(f"{path}: an array in it is damaged, or holds Python objects") from error


def _load(path: Path):
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise TableError(f"{path}: not a numpy file, or one that holds Python objects") from error


def _in_lines(message: str, path: Path, encoding: str | None) -> str:
    """An error message with lines of a CSV file in place of rows."""
    row = re.search(r"\brow ([0-9]+)", message)
    if row is None:
        return message
    line = next(islice(csv_records(path, encoding), int(row.group(1)), None), None)
    return message if line is None else f"{message[: row.start()]}line {line[0]}{message[row.end() :]}"
