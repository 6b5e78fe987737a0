"""Results: metrics, per-class table with intervals, confusion matrix, and chart of predicted numbers."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from edgetl.core.results import ClassScore, Evaluation, wilson
from edgetl.core.tasks import SCORE_NAMES, Task
from edgetl.data.predictions import PredictedFile
from edgetl.report.charts import value_chart
from edgetl.report.elements import Child, element, facts, figure, number, paragraph, scrollable, table, with_interval
from edgetl.report.models import RunFacts

# Largest confusion matrix in the page. With more classes, only the most frequent confusions are listed.
MOST_CLASSES = 30
MOST_CONFUSIONS = 10
# Longest name of an upright column title.
MOST_UPRIGHT = 3


def results_section(run: RunFacts) -> list[Child]:
    """Return the content of the section about the metrics of a run."""
    evaluation = run.shown
    note = None
    if run.record.test is None and run.record.folds:
        note = paragraph(
            f"The run has no test images. The figures are cross-validated ({run.record.folds} folds): each training image is predicted by "
            f"a head that was fitted without it."
        )
    elif run.record.test is None:
        note = paragraph(
            "The run has no test images. The validation images selected the network, so the figures on them are too good.", class_="warning"
        )
    return [
        note,
        facts(_metrics(run)),
        element("div", _class_table(evaluation), element("div", _confusions(evaluation)), class_="pair"),
        _values(run.predictions, run.record.task, run.record.labels[0]),
    ]


def _metrics(run: RunFacts) -> list[tuple[str, Child]]:
    shown, validation = run.shown, run.record.validation
    rows: list[tuple[str, Child]] = []
    if shown.score is not shown.accuracy:
        name = SCORE_NAMES[run.record.task]
        rows.append((f"{name[0].upper()}{name[1:]}", with_interval(shown.score)))
    rows.append(("All labels correct" if shown.multi_label else "Accuracy", [with_interval(shown.accuracy), f", n = {shown.accuracy.n}"]))
    if shown.classes:
        rows.append(("Macro F1", number(shown.macro_f1)))
    if shown.multi_label is not None:
        rows.append(("Correct decisions", number(shown.multi_label.label_accuracy)))
    if (found := shown.anomaly) is not None:
        kind = "synthetic defects" if found.synthetic else "anomalies"
        rows += [("False alarms", with_interval(found.false_alarms)), (f"Detected {kind}", with_interval(found.detected))]
    if (values := shown.regression) is not None:
        rows += [("MAE", f"{values.mae:.4g}"), ("RMSE", f"{values.rmse:.4g}"), ("R²", with_interval(values.r2))]
        rows += [("Quadratic-weighted kappa", number(values.kappa))] if values.kappa is not None else []
        rows.append(("Correct within", f"{values.tolerance:.4g}"))
    if run.record.test is not None:
        synthetic = " with synthetic defects" if validation.anomaly else ""
        rows.append(
            (f"{run.record.validation_name.capitalize()}{synthetic}", [with_interval(validation.score), f", n = {validation.score.n}"])
        )
    return rows


def _class_table(evaluation: Evaluation) -> Element | None:
    """Return precision, recall and F1 of each class, with Wilson intervals."""
    if not evaluation.classes:
        return None
    predicted = [sum(row[index] for row in evaluation.confusion) for index in range(len(evaluation.confusion))]
    rows = [_class_row(item, predicted[index] if predicted else None) for index, item in enumerate(evaluation.classes)]
    head, title = ["label", "images", "recall", "precision", "F1"], "Results of each class"
    if (labels := evaluation.multi_label) is not None:
        head, title = [*head, "average precision", "threshold"], "Results of each label"
        for row, precision, threshold in zip(rows, labels.average_precision, labels.thresholds, strict=True):
            row += ["–" if precision is None else number(precision), number(threshold)]
    note = paragraph("Recall is the ratio of a label's images that are predicted as it. Intervals: 95 %, Wilson.", class_="note")
    return element("div", table(title, head, rows), note)


def _class_row(item: ClassScore, predicted: int | None) -> list[Child]:
    recall = with_interval(wilson(round(item.recall * item.n), item.n)) if item.n else ["–"]
    precision: Child = number(item.precision)
    if predicted is not None:
        precision = with_interval(wilson(round(item.precision * predicted), predicted)) if predicted else "–"
    return [item.label, str(item.n), recall, precision, number(item.f1)]


def _confusions(evaluation: Evaluation) -> list[Child]:
    """Return the confusion matrix, and the most frequent confusions."""
    if not evaluation.confusion:
        return []
    names = [item.label for item in evaluation.classes]
    pairs = sorted(
        ((count, true, predicted) for true, row in enumerate(evaluation.confusion) for predicted, count in enumerate(row)),
        key=lambda item: -item[0],
    )
    wrong = [pair for pair in pairs if pair[1] != pair[2] and pair[0]][:MOST_CONFUSIONS]
    rows: list[list[Child]] = [
        [names[true], names[predicted], str(count), f"{count / evaluation.classes[true].n:.0%}"] for count, true, predicted in wrong
    ]
    matrix = _matrix(evaluation, names) if len(names) <= MOST_CLASSES else None
    frequent = (
        table("Most frequent confusions", ("label", "predicted as", "images", "of the label"), rows, text_columns=2) if rows else None
    )
    return [matrix, frequent]


def _matrix(evaluation: Evaluation, names: Sequence[str]) -> Element:
    """Return the confusion matrix. Long names of columns are rotated."""
    turned = "up" if max(map(len, names)) > MOST_UPRIGHT else None
    head = element(
        "tr",
        element("td", element("span", "label / predicted as", class_="hidden")),
        [element("th", element("span", name), scope="col", class_=turned) for name in names],
    )
    body = []
    for index, (name, row) in enumerate(zip(names, evaluation.confusion, strict=True)):
        total = max(1, sum(row))
        shades = [_shade(count / total, correct=column == index) for column, count in enumerate(row)]
        cells = [element("td", str(count) if count else "·", class_=shade) for count, shade in zip(row, shades, strict=True)]
        body.append(element("tr", element("th", name, scope="row"), cells))
    matrix = element("table", element("caption", "Confusion matrix"), element("thead", head), element("tbody", body), class_="matrix")
    note = paragraph("A row is a label, a column a prediction. The shade is the ratio of the row.", class_="note")
    return element("div", scrollable(matrix, "Confusion matrix"), note)


def _shade(ratio: float, *, correct: bool) -> str | None:
    """Return the style class of a cell: ``right`` or ``wrong``, and a shade from 1 to 5."""
    if ratio == 0:
        return None
    return f"{'right' if correct else 'wrong'} shade{min(5, 1 + int(5 * ratio))}"


def _values(rows: Sequence[PredictedFile], task: Task, name: str) -> Element | None:
    """Return a chart of predicted over true numbers."""
    if task not in ("regression", "ordinal") or not rows:
        return None
    pairs = [(float(row.label), row.score) for row in rows]
    chart = value_chart(name, pairs, label=f"Predicted over true {name} of {len(pairs)} images")
    return figure(chart, "Predicted over true numbers. On the dashed line they are equal.")
