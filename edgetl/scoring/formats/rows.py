"""Rows of predictions, and the table formats.

A row has these values. Missing values are left out of JSON lines, and are empty in the other formats.

==========  ====================================================================================
file        path of the image, the tar shard or the Parquet file, as given
item        number of the image in the shard or Parquet file, from 0
key         name of the image in the shard or Parquet file, without the suffix
label       predicted class; none for an unknown image (classification, anomaly detection)
score       its score, 0..1; in anomaly detection the score of the anomaly
labels      present labels (multi-label)
value       predicted number, or nearest level (regression, ordinal)
scores      score of each label; a column ``score:LABEL`` for each in CSV and Parquet
error       reason why there is no prediction
==========  ====================================================================================
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, assert_never

from edgetl.core.tasks import OutputDecoding
from edgetl.errors import DataError
from edgetl.scoring.config import Format
from edgetl.scoring.formats.parquet_table import parquet_chunks, read_parquet_table

Row: TypeAlias = Mapping[str, Any]
SCORE = "score:"
# One encoder for all rows: json.dumps makes a new one for each, which takes longer than the encoding.
_encode = json.JSONEncoder(ensure_ascii=False).encode
# Bytes of a copied piece.
_COPIED = 1 << 20
# Rows of a written piece.
_PIECE = 1000
# Characters of a CSV field. The default of Python, 131,072, is less than a long path in a list.
_MAX_FIELD = 2**31 - 1


class Table(NamedTuple):
    """Table of predictions: names of the columns, and rows. The rows of a CSV file are texts."""

    columns: tuple[str, ...]
    rows: Iterator[Row]


def columns_of(decoding: OutputDecoding, *, scores: bool) -> tuple[str, ...]:
    """Return the columns of CSV and Parquet."""
    match decoding.task:
        case "classification" | "anomaly":
            predicted: tuple[str, ...] = ("label", "score")
        case "multi-label":
            predicted = ("labels",)
        case "regression" | "ordinal":
            predicted = ("value",)
        case _:
            assert_never(decoding.task)
    every = tuple(f"{SCORE}{label}" for label in decoding.labels) if scores else ()
    return ("file", "item", "key", *predicted, *every, "error")


def json_line(row: Row) -> bytes:
    """Return a row as a line of JSON, without missing values."""
    kept = {name: value for name, value in row.items() if value is not None}
    return _encode(kept).encode() + b"\n"


def order_of(row: Row) -> tuple[str, int]:
    """Return the sort key of a row: the order of the input."""
    return str(row["file"]), int(row.get("item") or 0)


def table_chunks(format_: Format, table: Table) -> Iterator[bytes]:
    """Yield the bytes of a table file.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    match format_:
        case "jsonl":
            yield from map(json_line, table.rows)
        case "csv":
            yield from _csv_chunks(table)
        case "parquet":
            yield from parquet_chunks(table.columns, (_flat(row, table.columns) for row in table.rows))
        case _:
            assert_never(format_)


def part_chunks(format_: Format, columns: tuple[str, ...], path: Path) -> Iterator[bytes]:
    """Yield the bytes of a table file with the rows of ``path``, a file of JSON lines. As JSON lines they are copied without parsing.

    Raises:
        DataError: the file is missing or damaged.
        MissingExtraError: pyarrow is not installed.
    """
    if format_ != "jsonl":
        yield from table_chunks(format_, Table(columns, read_lines(path)))
        return
    with path.open("rb") as file:
        while piece := file.read(_COPIED):
            yield piece


def read_table(format_: Format, path: Path) -> Table:
    """Open a table that ``table_chunks`` wrote. The rows are read one after another.

    Raises:
        DataError: the file is missing or damaged.
        MissingExtraError: pyarrow is not installed.
    """
    match format_:
        case "jsonl":
            return Table((), read_lines(path))
        case "csv":
            rows = _csv_rows(path)
            return Table(tuple(next(rows)), rows)
        case "parquet":
            return Table(*read_parquet_table(path))
        case _:
            assert_never(format_)


def _flat(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """Return the values of the columns; the scores are in columns of their own."""
    scores = row.get("scores") or {}
    return {
        name: row[name] if name in row else scores.get(name.removeprefix(SCORE)) if name.startswith(SCORE) else None for name in columns
    }


def _csv_chunks(table: Table) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for number, row in enumerate(table.rows, start=1):
        writer.writerow(map(_cell, _flat(row, table.columns).values()))
        if number % _PIECE == 0:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _cell(value: object) -> object:
    return ", ".join(value) if isinstance(value, list) else value


def read_lines(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines.

    Raises:
        DataError: the file is missing or damaged.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                order_of(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}: line {number} is damaged. Delete the part with its .done file, and predict it again.") from error
            yield row


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the header, then the rows."""
    csv.field_size_limit(_MAX_FIELD)
    with _opened(path) as file:
        reader = csv.DictReader(file)
        yield dict.fromkeys(reader.fieldnames or ())
        yield from reader


def _opened(path: Path) -> io.TextIOWrapper:
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Delete its .done file, and predict the part again.") from error
