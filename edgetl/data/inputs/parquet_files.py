"""Parquet files with a column of images: ``struct{bytes, path}`` of Hugging Face data sets, or binary. Only this module imports pyarrow."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from edgetl.core.files.names import printable
from edgetl.core.images.decode import MAX_FILE_BYTES
from edgetl.data.inputs.item import MAX_NAME, Item, Wanted, reading_error
from edgetl.errors import DataError, MissingExtraError

# Rows in memory at the same time.
_ROWS = 16
_BUFFER_BYTES = 1 << 20
_USUAL = ("image", "img", "jpg", "png", "bytes")


def load_pyarrow() -> tuple[Any, Any]:
    """Return the modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet")
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")


def read_parquet(path: Path, wanted: Wanted, column: str | None = None) -> Iterator[Item]:
    """Yield the images of a Parquet file, one per row. A damaged file yields the images before the damage, and then an error.

    Args:
        path: Parquet file.
        wanted: selection of rows whose content is used.
        column: column of the images. None chooses the only possible one, or one with a usual name such as ``image``.

    Raises:
        DataError: there is no such column, or several are possible.
        MissingExtraError: pyarrow is not installed.
        StorageError: the file cannot be opened, or the storage does not deliver it.
    """
    pa, pq = load_pyarrow()
    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            name = _image_column(pa, file.schema_arrow, column, path)
            rows = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[name]):
                for value in batch.column(0):
                    yield _item(number, value, wanted(number), (number + 1) / rows)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        # pyarrow raises OSError for damage, too: without a number, or with EINVAL for a wrong offset.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise reading_error(path, error) from error
        reason = str(error).splitlines()[0]
        yield Item(number, error=f"the Parquet file is damaged or truncated: {reason}. Its following images are missing. Copy it again.")


def _image_column(pa: Any, schema: Any, column: str | None, path: Path) -> str:
    names = [field.name for field in schema if _holds_images(pa, field.type)]
    if column is not None:
        if column not in names:
            raise DataError(f"{path} has no image column {column!r}. Columns that can have images: {', '.join(names) or 'none'}.")
        return column
    chosen = names if len(names) == 1 else [name for name in _USUAL if name in names][:1]
    if not chosen:
        problem = (
            f"several columns that can have images: {', '.join(names)}" if names else "no column with images (binary, or struct with bytes)"
        )
        raise DataError(f"{path} has {problem}. Choose one with --image-column.")
    return chosen[0]


def _holds_images(pa: Any, kind: Any) -> bool:
    types = pa.types
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(pa, field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _item(number: int, value: Any, wanted: bool, read: float) -> Item:
    """Return the item of a cell."""
    if not wanted:
        return Item(number, read=read)
    plain = value.as_py()
    name = plain.get("path") if isinstance(plain, dict) else None
    data = plain.get("bytes") if isinstance(plain, dict) else plain
    if isinstance(name, str) and len(name) > MAX_NAME:
        return Item(number, error=f"the name of row {number} has {len(name)} characters. The limit is {MAX_NAME}.", read=read)
    key = printable(str(PurePosixPath(name).with_suffix(""))) if isinstance(name, str) and PurePosixPath(name).name else None
    if not data:
        return Item(number, key, error=f"row {number} has no image.", read=read)
    if len(data) > MAX_FILE_BYTES:
        return Item(number, key, error=f"row {number} has {len(data)} bytes. The limit is {MAX_FILE_BYTES}.", read=read)
    return Item(number, key, data, read=read)
