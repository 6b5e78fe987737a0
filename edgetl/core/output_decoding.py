"""Output decoding: scores and predictions from a network's outputs, for each task. NumPy only, for export and device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from edgetl.core.results import Prediction
from edgetl.core.tasks import ANOMALY_LABELS, OutputDecoding

# Number of positions of a heat map whose mean is the anomaly of the image.
HIGHEST = 5


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax of logits ``[…, classes]``: scores that sum to 1 along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sigmoid of each logit, 0..1, in the shape and type of ``logits``."""
    small = np.exp(-np.abs(logits))
    result: NDArray[np.float32] = np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(logits.dtype)
    return result


def scores_of(decoding: OutputDecoding, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert outputs ``[n, outputs]`` to scores float32 ``[n, labels]``.

    Classification: softmax of the outputs divided by the temperature. Multi-label: sigmoid of the same. Regression and ordinal: the
    outputs, unchanged. Anomaly detection: sigmoid of the anomaly (``anomaly_outputs``), and 1 minus it.
    """
    match decoding.task:
        case "classification":
            return softmax(outputs / decoding.decision_rule.temperature)
        case "multi-label":
            return sigmoid(outputs / decoding.decision_rule.temperature)
        case "regression" | "ordinal":
            return outputs
        case "anomaly":
            found = anomaly_outputs(outputs)
            return sigmoid(np.stack([-found, found], axis=1))
        case _:
            assert_never(decoding.task)


def anomaly_outputs(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the output of each image, ``[n]``, for heat maps ``[n, positions]``: the mean of its ``HIGHEST`` largest values.

    One extreme position of a normal image has less weight than in the maximum.
    """
    highest: NDArray[np.float32] = np.sort(outputs, axis=1)[:, -HIGHEST:].mean(axis=1)
    return highest


def decode(decoding: OutputDecoding, outputs: NDArray[np.float32]) -> list[Prediction]:
    """Decode outputs ``[n, outputs]`` to one prediction per image."""
    scores = scores_of(decoding, outputs)
    best = scores.argmax(axis=1)
    plain = [Prediction(decoding.labels[index], float(row[index]), tuple(row.tolist())) for row, index in zip(scores, best, strict=True)]
    match decoding.task:
        case "classification":
            least = decoding.decision_rule.reject_below
            return [replace(item, label=None) if item.score < least else item for item in plain]
        case "multi-label":
            present = [tuple(itertools.compress(decoding.labels, row)) for row in present_labels(decoding, scores)]
            return [replace(item, labels=labels) for item, labels in zip(plain, present, strict=True)]
        case "regression":
            return [replace(item, value=item.score) for item in plain]
        case "ordinal":
            levels = nearest_levels(decoding, outputs[:, 0])
            return [replace(item, value=float(level)) for item, level in zip(plain, levels, strict=True)]
        case "anomaly":
            maps = sigmoid(outputs).reshape(len(outputs), *(decoding.decision_rule.heat_map or (1, -1)))
            found = zip(scores[:, 1], is_anomaly(decoding, scores), maps.tolist(), strict=True)
            return [
                Prediction(ANOMALY_LABELS[int(above)], float(score), (1 - float(score), float(score)), heat_map=tuple(map(tuple, rows)))
                for score, above, rows in found
            ]
        case _:
            assert_never(decoding.task)


def prediction_json(decoding: OutputDecoding, prediction: Prediction) -> dict[str, object]:
    """Convert a prediction to a JSON object: the class (none if unknown) and its score, the present labels, or the number; all scores.

    Anomaly detection: also the heat map, a list of rows, with 4 decimals.
    """
    heat = {"heat_map": [[round(value, 4) for value in row] for row in prediction.heat_map]} if prediction.heat_map else {}
    return {**answer_json(decoding, prediction), "scores": scores_json(decoding, prediction), **heat}


def answer_json(decoding: OutputDecoding, prediction: Prediction) -> dict[str, object]:
    """Convert a prediction to a JSON object without the scores: the class and its score, the present labels, or the number."""
    if decoding.task == "multi-label":
        return {"labels": list(prediction.labels)}
    if prediction.value is not None:
        return {"value": prediction.value}
    return {"label": prediction.label, "score": prediction.score}


def scores_json(decoding: OutputDecoding, prediction: Prediction) -> dict[str, float]:
    """Return the score of each label."""
    return dict(zip(decoding.labels, prediction.scores, strict=True))


def present_labels(decoding: OutputDecoding, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return bool ``[n, labels]``: true where a score reaches the threshold of its label."""
    present: NDArray[np.bool_] = scores >= np.array(decoding.decision_rule.thresholds, np.float32)
    return present


def is_anomaly(decoding: OutputDecoding, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return bool ``[n]``: true where the anomaly score of ``scores`` ``[n, 2]`` reaches the threshold."""
    found: NDArray[np.bool_] = scores[:, 1] >= np.float32(decoding.decision_rule.thresholds[0])
    return found


def nearest_levels(decoding: OutputDecoding, values: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the nearest ordinal levels, int64 ``[n]``, of ``values`` ``[n]``. Halves round up. NaN becomes the lowest level."""
    low, high = decoding.decision_rule.ordinal_levels or (0, 0)
    return np.floor(np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high) + 0.5).astype(np.int64)


def describe_truth(decoding: OutputDecoding, label: int, targets: Sequence[float]) -> str:
    """Return the true label of an image as text: its class, its labels joined by commas, or its number."""
    match decoding.task:
        case "classification" | "anomaly":
            return decoding.labels[label]
        case "multi-label":
            return ", ".join(name for name, value in zip(decoding.labels, targets, strict=True) if value > 0) or "none"
        case "regression" | "ordinal":
            return f"{targets[0]:.15g}"
        case _:
            assert_never(decoding.task)
