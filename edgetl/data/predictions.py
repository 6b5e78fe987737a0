"""Table of predictions (``predictions.csv``): file, split, true label, prediction and score of each image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.files.regular import open_plain
from edgetl.core.output_decoding import describe_truth, is_anomaly, nearest_levels, present_labels, scores_of
from edgetl.core.tasks import OutputDecoding

PREDICTIONS_NAME = "predictions.csv"


@dataclass(frozen=True)
class LabeledFile:
    """Labeled image file.

    Attributes:
        file: path relative to the image folder, printable.
        split: ``train``, ``val`` or ``test`` in a run. In an evaluation ``unseen``, or ``seen`` if the model was trained or selected on it.
        label: index of the true class. Unused for other tasks.
        targets: true labels (0 or 1 each) or the true number. Empty for classification and anomaly detection.
    """

    file: str
    split: str
    label: int
    targets: tuple[float, ...]


@dataclass(frozen=True)
class PredictedFile:
    """Row of the table: an image file with its prediction.

    Attributes:
        file, split: as in ``LabeledFile``.
        label: true class, labels joined by commas, or number.
        prediction: predicted class, labels joined by commas (``none`` without labels), number (regression) or nearest level (ordinal).
        score: score of the predicted class. Multi-label: the highest score. Anomaly detection: score of the anomaly. Regression and
            ordinal: output of the network. NaN if the network returned NaN.
    """

    file: str
    split: str
    label: str
    prediction: str
    score: float


COLUMNS = tuple(field.name for field in fields(PredictedFile))
_HEADER = ",".join(COLUMNS)


def predicted_files(decoding: OutputDecoding, files: Sequence[LabeledFile], outputs: NDArray[np.float32]) -> list[PredictedFile]:
    """Return the row of each file for the network's outputs float32 ``[n, labels]``, in the same order."""
    scores = scores_of(decoding, outputs)
    best = scores.argmax(axis=1)
    match decoding.task:
        case "classification":
            predictions = [decoding.labels[index] for index in best]
        case "anomaly":
            predictions, best = [decoding.labels[int(above)] for above in is_anomaly(decoding, scores)], np.ones_like(best)
        case "multi-label":
            present = present_labels(decoding, scores).astype(float)
            predictions = [describe_truth(decoding, 0, row.tolist()) for row in present]
        case "regression":
            predictions = [str(value) for value in outputs[:, 0]]
        case "ordinal":
            predictions = [str(level) for level in nearest_levels(decoding, outputs[:, 0])]
        case _:
            assert_never(decoding.task)
    # The shortest text of a float32 that is read back without a change.
    shown = (float(str(score)) for score in scores[np.arange(len(best)), best])
    return [
        PredictedFile(item.file, item.split, describe_truth(decoding, item.label, item.targets), prediction, score)
        for item, prediction, score in zip(files, predictions, shown, strict=True)
    ]


def predictions_csv(rows: Sequence[PredictedFile]) -> str:
    """Return the table as CSV text with a header, in the order of ``rows``."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([COLUMNS, *map(astuple, rows)])
    return text.getvalue()


def parse_predictions(text: str) -> list[PredictedFile]:
    """Return the rows of a table that ``predictions_csv`` wrote.

    Raises:
        ValueError: the header, the number of cells or a score is wrong. The message has the line.
    """
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[PredictedFile] = []
    try:
        if next(table, None) != list(COLUMNS):
            raise ValueError(f"line 1 is not {_HEADER}")
        for cells in table:
            if len(cells) != len(COLUMNS):
                raise ValueError(f"line {table.line_num} has {len(cells)} cells instead of {len(COLUMNS)}")
            file, split, label, prediction, score = cells
            rows.append(PredictedFile(file, split, label, prediction, _number(score, table.line_num)))
    except csv.Error as error:
        raise ValueError(f"line {table.line_num}: {error}") from error
    return rows


def _number(text: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"line {line}: the score {text[:20]!r} is not a number") from error
    if math.isinf(value):
        raise ValueError(f"line {line}: the score is infinite")
    return value


def is_predictions_file(path: Path) -> bool:
    """Return true if a file starts with the header of the table."""
    try:
        with open_plain(path, follow_links=False) as file:
            return file.read(len(_HEADER) + 1) == f"{_HEADER}\n".encode()
    except OSError:
        return False
