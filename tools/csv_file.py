"""CSV files: ids and boxes of a file with named columns, and what is wrong with the first bad line."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xtree.persistence.base.progress import Progress
from xtree.tools.csv_columns import Columns, Wanted, choose_columns
from xtree.tools.csv_text import CsvText
from xtree.tools.table_error import TableError

__all__ = ["CsvRows", "csv_records", "read_csv"]


class CsvRows(NamedTuple):
    """What a file holds: ids (n,) int64 or None, boxes (n, 2*d) or points (n, d) float64, and their columns."""

    ids: np.ndarray | None
    coordinates: np.ndarray
    columns: Columns


def read_csv(path: Path, wanted: Wanted, encoding: str | None = None, progress: Progress | None = None) -> CsvRows:
    """The ids and boxes or points of a CSV file. Raises TableError that names file, line and column; OSError."""
    with CsvText(path, encoding) as text:
        try:
            columns = choose_columns(text.header, wanted)
        except TableError as error:
            raise TableError(f"{path}: {error}") from error
        where = ([] if columns.id is None else [columns.id]) + columns.coordinates
        first = 0 if columns.id is None else 1
        kinds = [(f"column{i}", np.int64 if i < first else np.float64) for i in range(len(where))]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*input contained no data", category=UserWarning)
                rows = np.loadtxt(
                    text.lines(progress),
                    dtype=kinds,
                    delimiter=text.separator,
                    quotechar='"',
                    comments=None,
                    usecols=where,
                    ndmin=1,
                )
        except TableError:
            raise
        except ValueError as error:
            raise TableError(f"{path}: {_wrong_line(path, encoding, where, columns) or error}") from error
    coordinates = np.column_stack([rows[name] for name, _ in kinds[first:]])
    return CsvRows(np.ascontiguousarray(rows["column0"]) if first else None, coordinates, columns)


def csv_records(path: Path, encoding: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """The records after the first line, each with the line of the file where it begins; empty lines are skipped."""
    with CsvText(path, encoding) as text:
        reader = csv.reader(text.lines(), delimiter=text.separator)
        line = 2
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 2


def _wrong_line(path: Path, encoding: str | None, where: Sequence[int], columns: Columns) -> str | None:
    """What is wrong with the first record that holds no numbers where it should; None when nothing is found."""
    for line, record in csv_records(path, encoding):
        for i, column in enumerate(where):
            is_id = i == 0 and columns.id is not None
            if column >= len(record):
                return f"line {line}: expected at least {max(where) + 1} columns, found {len(record)}"
            if not _is_number(record[column], whole=is_id):
                kind = "a whole number from -2**63 to 2**63 - 1" if is_id else "a number"
                return f"line {line}, column {column + 1}: expected {kind}, found {record[column][:100]!r}"
    return None


def _is_number(text: str, whole: bool) -> bool:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return False
    return "_" not in text and not (whole and not -(2**63) <= number < 2**63)
