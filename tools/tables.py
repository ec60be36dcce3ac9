"""Tables: ids and boxes out of CSV, .npy and .npz files."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from xtree.arguments import as_dims
from xtree.conversion import stored_boxes
from xtree.writing import matching_ids

__all__ = ["TableError", "read_table"]

POINT_COLUMNS = (("lon", "lat"), ("lng", "lat"), ("longitude", "latitude"), ("x", "y", "z"), ("x", "y"))


class TableError(ValueError):
    """Raised when a file isn't a table of boxes or points; says file, expected and found."""


def read_table(path: Path, points: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) int64 and boxes (n, 2*d) float64 of a file; ids are 0..n-1 where the file has none.

    CSV: a first line that names columns, either min… and max… ones that pair up (minx,miny,maxx,maxy) or those of
    points (lon,lat or x,y[,z]); `id` if there are ids. .npy: boxes (n, 2*d). .npz: arrays `boxes` and, if there
    are ids, `ids`. With `points` arrays hold points (n, d). Raises TableError, OSError.
    """
    readers = {".csv": _read_csv, ".npy": _read_npy, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(f"{path}: expected a name that ends in {', '.join(readers)}, got {path.suffix or 'no ending'}")
    ids, boxes = reader(path)
    if points and path.suffix.lower() != ".csv":
        boxes = np.hstack([boxes, boxes]) if boxes.ndim == 2 else boxes
    if boxes.ndim != 2 or boxes.shape[1] % 2 or boxes.shape[1] == 0:
        raise TableError(f"{path}: expected boxes of shape (n, 2*d), got {boxes.shape}; for points say --points")
    try:
        boxes = stored_boxes(boxes, as_dims(boxes.shape[1] // 2))
        return (np.arange(len(boxes)) if ids is None else matching_ids(ids, len(boxes))), boxes
    except (ValueError, TypeError, OverflowError) as error:
        raise TableError(f"{path}: {_in_lines(str(error), path)}") from error


def _read_npy(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    return None, _load(path)


def _read_npz(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
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


def _read_csv(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = [name.strip().lower() for name in next(csv.reader([file.readline()]), [])]
        columns = _coordinate_columns(path, header)
        with_ids = "id" in header
        used = (["id"] if with_ids else []) + list(columns)
        kinds = [(f"column{i}", np.int64 if name == "id" else np.float64) for i, name in enumerate(used)]
        where = [header.index(name) for name in used]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*input contained no data", category=UserWarning)
                rows = np.loadtxt(
                    file, dtype=kinds, delimiter=",", quotechar='"', comments=None, usecols=where, ndmin=1
                )
        except ValueError as error:
            raise TableError(f"{path}: {_wrong_line(path, where, with_ids) or error}") from error
    first = 1 if with_ids else 0
    boxes = np.column_stack([rows[f"column{i}"] for i in range(first, len(used))])
    return (np.ascontiguousarray(rows["column0"]) if with_ids else None), boxes


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records below the first line, each with the line of the file where it begins; empty lines are none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        next(reader, None)
        line = reader.line_num + 1
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1


def _wrong_line(path: Path, where: Sequence[int], with_ids: bool) -> str | None:
    """What is wrong with the first record that holds no numbers where it should; None when nothing is found."""
    for line, record in _records(path):
        for i, column in enumerate(where):
            if column >= len(record):
                return f"line {line}: expected at least {max(where) + 1} columns, found {len(record)}"
            if not _is_number(record[column], whole=with_ids and i == 0):
                kind = "a whole number from -2**63 to 2**63 - 1" if with_ids and i == 0 else "a number"
                return f"line {line}, column {column + 1}: expected {kind}, found {record[column][:100]!r}"
    return None


def _is_number(text: str, whole: bool) -> bool:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return False
    return "_" not in text and not (whole and not -(2**63) <= number < 2**63)


def _in_lines(message: str, path: Path) -> str:
    """An error message with lines of a CSV file in the place of rows."""
    row = re.search(r"\brow ([0-9]+)", message)
    if row is None or path.suffix.lower() != ".csv":
        return message
    line = next(islice(_records(path), int(row.group(1)), None), None)
    return message if line is None else f"{message[: row.start()]}line {line[0]}{message[row.end() :]}"


def _coordinate_columns(path: Path, header: Sequence[str]) -> list[str]:
    """The columns that make up a box, minima first; those of a point stand twice."""
    lows = [name for name in header if name.startswith("min")]
    highs = ["max" + name[3:] for name in lows]
    if lows and all(name in header for name in highs):
        return lows + highs
    for names in POINT_COLUMNS:
        if all(name in header for name in names):
            return list(names) * 2
    raise TableError(
        f"{path}: expected a first line with columns like minx,miny,maxx,maxy or lon,lat or x,y, got {','.join(header)}"
    )
