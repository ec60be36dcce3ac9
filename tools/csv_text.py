"""CSV text: the lines of a file, compressed or not, in any encoding, and how its columns are separated."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from xtree.persistence.base.progress import Progress
from xtree.tools.table_error import TableError

__all__ = ["CsvText"]

SEPARATORS = ",;\t|"
LINES_A_LOOK = 4096  # between two reports of progress
MARKS = ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

class CsvText:
    """The text of a CSV file, as a context manager. The first line is read at once.

    encoding: None for UTF-8, with or without a mark. Raises TableError for bytes of another encoding, OSError.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self.encoding = encoding or "utf-8-sig"
        self._file = path.open("rb")
        try:
            packed = path.suffix.lower() == ".gz"
            self._bytes = gzip.GzipFile(fileobj=self._file) if packed else self._file
            with self._naming_file():
                self._text = io.TextIOWrapper(self._bytes, encoding=self.encoding, newline="")
                if encoding is None:
                    self._require_no_mark()
            first = next(self._lines(), "")
            self.separator = _separator(first, path)
            self.header = next(csv.reader([first], delimiter=self.separator), [])
        except BaseException:
            self._file.close()
            raise

    def lines(self, progress: Progress | None = None) -> Iterator[str]:
        """The lines that are left. progress: called with (bytes read, bytes of the file) now and then."""
        if progress is None:
            yield from self._lines()
            return
        size = os.fstat(self._file.fileno()).st_size
        for number, line in enumerate(self._lines()):
            if number % LINES_A_LOOK == 0:
                progress(self._file.tell(), size)
            yield line
        progress(size, size)

    def _lines(self) -> Iterator[str]:
        with self._naming_file():
            while line := self._text.readline():  # `yield from` closes the file together with this generator
                yield line

    @contextlib.contextmanager
    def _naming_file(self) -> Iterator[None]:
        """Turns errors about the content of the file into a TableError that names the file."""
        try:
            yield
        except UnicodeError as error:
            raise TableError(f"{self.path}: {self._not_in_encoding(error)}") from error
        except LookupError as error:
            raise TableError(f"{self.path}: {error}") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TableError(f"{self.path}: not a whole gzip file: {error}") from error

    def _require_no_mark(self) -> None:
        start = self._bytes.read(2)
        for mark, encoding in MARKS:
            if start == mark:
                raise TableError(f"{self.path}: written in UTF-16; say --encoding {encoding}")
        self._bytes.seek(0)

    def _not_in_encoding(self, error: UnicodeError) -> str:
        if not isinstance(error, UnicodeDecodeError):
            return f"not written in {self.encoding}: {error}"
        byte = error.object[error.start]
        name = "UTF-8" if self.encoding == "utf-8-sig" else self.encoding
        return f"not written in {name}: it has a byte 0x{byte:02x}; say in what, as with --encoding latin-1"

    def __enter__(self) -> CsvText:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _separator(first: str, path: Path) -> str:
    """What separates the columns of this first line: the separator that makes the most columns of it."""
    names = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if names.suffix.lower() == ".tsv":
        return "\t"
    return max(SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one), [])))
