"""Predictions in Parquet files, with pyarrow (extra ``parquet``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgetl.data.inputs.parquet_files import load_pyarrow
from edgetl.errors import DataError

# Values of a row group: a Python object for each is in memory. Without scores, a group has 50,000 rows or more.
_GROUP_VALUES = 400_000
# Values in memory for each part that is merged.
_READ_VALUES = 7000


class _Pieces:
    """File object that keeps the written bytes until they are taken."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Keep a copy of ``data``."""
        self._pieces.append(bytes(data))
        self._position += len(data)
        return len(data)

    def take(self) -> bytes:
        """Return the bytes since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken

    def tell(self) -> int:
        """Return the number of written bytes."""
        return self._position

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Mark the file as closed."""
        self.closed = True


def parquet_chunks(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the bytes of a Parquet file. Scores and values are float32, as the network computes them.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = load_pyarrow()
    kinds = {"item": pa.int64(), "labels": pa.list_(pa.string()), "score": pa.float32(), "value": pa.float32()}
    schema = pa.schema([(name, pa.float32() if name.startswith("score:") else kinds.get(name, pa.string())) for name in columns])
    pieces, following = _Pieces(), iter(rows)
    with pq.ParquetWriter(pieces, schema) as writer:
        while group := list(islice(following, max(1, _GROUP_VALUES // len(columns)))):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            yield pieces.take()
    yield pieces.take()


def read_parquet_table(path: Path) -> tuple[tuple[str, ...], Iterator[dict[str, Any]]]:
    """Return the columns and the rows of a Parquet file. The rows are read one after another.

    Raises:
        DataError: the file is missing or damaged.
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = load_pyarrow()
    try:
        columns = tuple(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}. Delete its .done file, and predict the part again.") from error
    return columns, _rows(path, max(1, _READ_VALUES // len(columns)))


def _rows(path: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file. ``count`` of them are in memory."""
    _, pq = load_pyarrow()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=count):
            yield from batch.to_pylist()
