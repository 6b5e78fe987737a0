"""Label tables with empty cells, which a person fills in."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from edgetl.data.table.columns import find_columns
from edgetl.data.table.csv_file import CsvFile, read_csv


def table_to_fill(files: Sequence[str], labels: Path | None) -> str:
    """Return a CSV table with an empty label for each file, after the labeled rows of an earlier table.

    Args:
        files: paths in the folder of the images.
        labels: earlier table; none for a new one. Its rows without a label are left out.

    Raises:
        DataError: the earlier table cannot be read.
    """
    before = CsvFile(Path(), ("file", "label"), (), ",", "utf-8") if labels is None else read_csv(labels)
    columns = find_columns(before, (), None)
    labeled = [cells for _, cells in before.rows if any(cells[place] for place in columns.labels)]
    rows = [tuple(name if place == columns.file else "" for place in range(len(before.header))) for name in files]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([before.header, *labeled, *rows])
    return text.getvalue()


def table_of_names(named: Sequence[tuple[str, str]]) -> str:
    """Return a CSV table with the columns ``file`` and ``label``."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "label"), *named])
    return text.getvalue()
