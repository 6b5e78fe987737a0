from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.tasks import DecisionRule, OutputDecoding
from edgetl.data.predictions import (
    COLUMNS,
    LabeledFile,
    PredictedFile,
    is_predictions_file,
    parse_predictions,
    predicted_files,
    predictions_csv,
)

ODD_NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


def test_table_has_the_predicted_class_and_its_score() -> None:
    decoding = OutputDecoding("classification", ("cat", "dog"))
    files = [LabeledFile("a.png", "val", 0, ()), LabeledFile("b/c.png", "test", 1, ())]
    rows = predicted_files(decoding, files, np.array([[0.0, 2.0], [-1.0, 1.0]], np.float32))
    assert [(row.file, row.split, row.label, row.prediction) for row in rows] == [
        ("a.png", "val", "cat", "dog"),
        ("b/c.png", "test", "dog", "dog"),
    ]
    assert [row.score for row in rows] == pytest.approx([1 / (1 + np.exp(-2))] * 2)


@pytest.mark.parametrize(
    ("decoding", "targets", "outputs", "expected"),
    [
        (OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.4))), (1.0, 0.0), (3.0, 0.0), ("a", "a, b")),
        (OutputDecoding("multi-label", ("a", "b"), DecisionRule(thresholds=(0.5, 0.5))), (0.0, 0.0), (-3.0, -1.0), ("none", "none")),
        (OutputDecoding("regression", ("mm",), DecisionRule(tolerance=0.5)), (2.5,), (2.25,), ("2.5", "2.25")),
        (OutputDecoding("ordinal", ("grade",), DecisionRule(ordinal_levels=(0, 3))), (2.0,), (2.6,), ("2", "3")),
    ],
)
def test_table_describes_the_predictions_of_other_tasks(
    decoding: OutputDecoding, targets: tuple[float, ...], outputs: tuple[float, ...], expected: tuple[str, str]
) -> None:
    (row,) = predicted_files(decoding, [LabeledFile("a.png", "test", 0, targets)], np.array([outputs], np.float32))
    assert (row.label, row.prediction) == expected
    best = max(outputs)
    assert row.score == pytest.approx(1 / (1 + np.exp(-best)) if decoding.task == "multi-label" else best)


@given(st.lists(st.tuples(ODD_NAMES, ODD_NAMES, ODD_NAMES, st.floats(0, 1, width=32)), max_size=5))
def test_table_with_any_names_is_read_without_a_change(cells: list[tuple[str, str, str, float]]) -> None:
    rows = [PredictedFile(file, "test", label, prediction, score) for file, label, prediction, score in cells]
    text = predictions_csv(rows)
    assert parse_predictions(text) == rows
    assert next(csv.reader(io.StringIO(text, newline=""))) == list(COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 is not file,split,label,prediction,score"),
        ("file,label\n", "line 1 is not"),
        ("file,split,label,prediction,score\na,test,b\n", "line 2 has 3 cells instead of 5"),
        ("file,split,label,prediction,score\na,test,b,c,high\n", "line 2: the score 'high' is not a number"),
        ("file,split,label,prediction,score\na,test,b,c,inf\n", "line 2: the score is infinite"),
        ('file,split,label,prediction,score\n"a,test\n', "line 2: unexpected end of data"),
    ],
)
def test_a_damaged_table_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_predictions(text)


def test_only_a_file_with_the_header_is_a_table_of_predictions(tmp_path: Path) -> None:
    own, other = tmp_path / "own.csv", tmp_path / "other.csv"
    own.write_text(predictions_csv([]))
    other.write_text("file,split,label,prediction,score,note\n")
    assert is_predictions_file(own)
    assert not is_predictions_file(other) and not is_predictions_file(tmp_path / "missing.csv") and not is_predictions_file(tmp_path)
