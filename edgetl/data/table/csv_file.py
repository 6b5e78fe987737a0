"""CSV files of spreadsheets and data sets: encoding, separator, lines."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edgetl.core.files.regular import open_plain, read_up_to
from edgetl.errors import DataError

MAX_CSV_BYTES = 200_000_000
SEPARATORS = (",", ";", "\t", "|")
# Number of rows for the detection of the separator.
_SAMPLE_ROWS = 50
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@dataclass(frozen=True)
class CsvFile:
    """Content of a CSV file. Cells are in Unicode normal form C, without outer spaces.

    Attributes:
        path: CSV file.
        header: names of the columns.
        rows: line number and cells of each row. Every row has as many cells as the header.
        separator: character between cells.
        encoding: encoding of the file; ``cp1252`` if it is not valid Unicode.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    separator: str
    encoding: str

    def column(self, index: int) -> list[str]:
        """Return the cells of a column."""
        return [cells[index] for _, cells in self.rows]


def read_csv(path: Path, *, option: str = "--labels") -> CsvFile:
    """Read a CSV file in UTF-8, UTF-16 with a byte order mark, or Windows-1252.

    Commas, semicolons, tabs or bars separate the cells. The chosen separator gives the first rows as many cells as the header. A first
    line ``sep=;`` (Excel) takes precedence.

    Args:
        path: CSV file.
        option: option that gave the file, for error messages.

    Raises:
        DataError: the file is not regular, too large or not text, or a row has another number of cells than the header.
    """
    try:
        with open_plain(path) as file:
            data = read_up_to(file, MAX_CSV_BYTES)
    except OSError as error:
        raise DataError(f"{option} {path} cannot be read: {error.strerror}. Give a CSV file with a column `file`.") from error
    if len(data) > MAX_CSV_BYTES:
        raise DataError(f"{option} {path} has more than {MAX_CSV_BYTES:,} bytes. Give a smaller table.")
    text, encoding = _decode(f"{option} {path}", data)
    first, _, rest = text.partition("\n")
    named = re.fullmatch(r'"?sep=(.)"?\r?', first)
    skipped = 1 if named else 0
    separator = named[1] if named else _separator(text)
    try:
        lines = [(line + skipped, cells) for line, cells in _parse(rest if named else text, separator)]
    except csv.Error as error:
        raise DataError(f"{option} {path} is not a CSV file: {error}. Save it again as CSV.") from error
    header = tuple(lines[0][1]) if lines else ()
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise DataError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}. Correct the line.")
    return CsvFile(path, header, tuple((line, tuple(cells)) for line, cells in lines[1:]), separator, encoding)


def _decode(name: str, data: bytes) -> tuple[str, str]:
    if data.startswith(_WORKBOOKS):
        raise DataError(f"{name} is a spreadsheet, not a CSV file. Save it as CSV UTF-8.")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            if encoding != "utf-8":
                raise
            text, encoding = data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not text in UTF-8, UTF-16 or Windows-1252: {error}. Save it as CSV UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{name} is not text in UTF-8, UTF-16 or Windows-1252: it has zero bytes. Save it as CSV UTF-8.")
    return text, encoding


def _parse(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, [unicodedata.normalize("NFC", cell.strip()) for cell in row]


def _separator(text: str) -> str:
    """Detect the separator.

    It gives the largest ratio of the first rows as many cells as the header, at least two. Among equals, the one with most cells wins.
    """
    best, highest = SEPARATORS[0], (0.0, 0)
    for separator in SEPARATORS:
        try:
            rows = [cells for _, cells in islice(_parse(text, separator), _SAMPLE_ROWS)]
        except csv.Error:
            continue
        columns = len(rows[0]) if rows else 0
        score = (sum(len(cells) == columns for cells in rows) / len(rows), columns) if columns > 1 else (0.0, 0)
        if score > highest:
            best, highest = separator, score
    return best
