"""From a network's outputs to scores, answers and figures, task by task: NumPy only, so that bench and device answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.results import Evaluation, Prediction
from edgetl.core.scoring import evaluate_labels, evaluate_predictions, evaluate_values, quadratic_kappa, sigmoid, softmax
from edgetl.core.tasks import OutputDecoding


def scores_of(decoding: OutputDecoding, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores float32 ``[n, labels]``: of classes they sum to 1, of a multi-label model each is 0..1, numbers stay as they are."""
    match decoding.task:
        case "classification":
            return softmax(outputs)
        case "multi-label":
            return sigmoid(outputs)
        case "regression" | "ordinal":
            return outputs
        case _:
            assert_never(decoding.task)


def predictions(decoding: OutputDecoding, outputs: NDArray[np.float32]) -> list[Prediction]:
    """The answers to outputs ``[n, labels]``, one for each image."""
    scores = scores_of(decoding, outputs)
    best = scores.argmax(axis=1).tolist()
    plain = [
        (decoding.labels[index], float(row[index]), tuple(float(value) for value in row)) for row, index in zip(scores, best, strict=True)
    ]
    match decoding.task:
        case "classification":
            return [Prediction(*answer) for answer in plain]
        case "multi-label":
            named = [
                tuple(label for label, held in zip(decoding.labels, row, strict=True) if held) for row in held_labels(decoding, scores)
            ]
            return [Prediction(*answer, labels=labels) for answer, labels in zip(plain, named, strict=True)]
        case "regression":
            return [Prediction(*answer, value=answer[1]) for answer in plain]
        case "ordinal":
            grades = nearest_levels(decoding, outputs[:, 0])
            return [Prediction(*answer, value=float(grade)) for answer, grade in zip(plain, grades, strict=True)]
        case _:
            assert_never(decoding.task)


def describe(decoding: OutputDecoding, answer: Prediction) -> dict[str, object]:
    """An answer as JSON shows it: the class and its score, the labels that are held, or the number; and every score."""
    said: dict[str, object] = {"label": answer.label, "score": answer.score}
    if decoding.task == "multi-label":
        said = {"labels": list(answer.labels)}
    elif answer.value is not None:
        said = {"value": answer.value}
    return {**said, "scores": dict(zip(decoding.labels, answer.scores, strict=True))}


def held_labels(decoding: OutputDecoding, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Bool ``[n, labels]``: where a score reaches its label's threshold."""
    held: NDArray[np.bool_] = scores >= np.array(decoding.decision_rule.thresholds, np.float32)
    return held


def nearest_levels(decoding: OutputDecoding, values: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The grades int64 ``[n]`` nearest to ``values`` ``[n]``; half way goes up, and what is no number to the lowest."""
    least, most = decoding.decision_rule.ordinal_levels or (0, 0)
    return np.floor(np.clip(np.nan_to_num(values.astype(np.float64), nan=least), least, most) + 0.5).astype(np.int64)


def evaluate(decoding: OutputDecoding, truth: NDArray[Any], outputs: NDArray[np.float32]) -> Evaluation:
    """The figures of ``outputs`` ``[n, labels]``.

    Args:
        reading: what was asked, and how the outputs are read.
        truth: class indices int64 ``[n]``, or float64 ``[n, labels]``: 0 or 1 for each label, or the number.
        outputs: the network's.
    """
    decision_rule = decoding.decision_rule
    match decoding.task:
        case "classification":
            return evaluate_predictions(truth, outputs.argmax(axis=1), decoding.labels)
        case "multi-label":
            scores = sigmoid(outputs)
            return evaluate_labels(truth > 0, scores, held_labels(decoding, scores), decoding.labels, decision_rule.thresholds)
        case "regression":
            return evaluate_values(truth[:, 0], outputs[:, 0], decision_rule.tolerance)
        case "ordinal":
            grades, names, least = (
                nearest_levels(decoding, outputs[:, 0]),
                decoding.level_names,
                (decision_rule.ordinal_levels or (0, 0))[0],
            )
            known = np.clip(np.rint(truth[:, 0]), least, least + len(names) - 1).astype(np.int64)
            result = evaluate_predictions(known - least, grades - least, names)
            figures = evaluate_values(truth[:, 0], outputs[:, 0], decision_rule.tolerance).regression
            assert figures is not None
            kappa = quadratic_kappa(np.array(result.confusion))
            return result.model_copy(update={"regression": figures.model_copy(update={"kappa": kappa})})
        case _:
            assert_never(decoding.task)


def describe_truth(decoding: OutputDecoding, label: int, targets: Sequence[float]) -> str:
    """A labelled image's truth for people: its class, its labels joined by a comma, or its number."""
    match decoding.task:
        case "classification":
            return decoding.labels[label]
        case "multi-label":
            return ", ".join(name for name, value in zip(decoding.labels, targets, strict=True) if value > 0) or "none"
        case "regression" | "ordinal":
            return f"{targets[0]:.15g}"
        case _:
            assert_never(decoding.task)
