"""Head of an update: logistic regression on replayed, drawn and new features, with the Learning-without-Forgetting (LwF) loss."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import StratifiedGroupKFold

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.linear import LinearHead, spread

FOLDS = 5
# Temperature of LwF (Li and Hoiem 2016, arXiv:1606.09282), and weight of its loss.
TEMPERATURE, LWF = 2.0, 1.0
# L2 penalty per image. From 0.01 to 0.1 the accuracy hardly changes.
PENALTY = 0.03
MAX_ITERATIONS = 100
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class UpdateData:
    """Features for the head: those of previous classes first, then those of new images.

    Attributes:
        features: float32 ``[n, width]``.
        labels: int64 ``[n]``, classes of the updated model.
        groups: int64 ``[new images]``, equal for images of one group.
        previous: number of replayed and drawn features.
        classes: number of classes of the updated model.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    previous: int
    classes: int

    def without(self, rows: NDArray[np.int64]) -> UpdateData:
        """Return the data without the new images ``rows``."""
        kept = np.ones(len(self.labels), bool)
        kept[self.previous + rows] = False
        groups = self.groups[kept[self.previous :]]
        return dataclasses.replace(self, features=self.features[kept], labels=self.labels[kept], groups=groups)

    def weights(self) -> NDArray[np.float32]:
        """Return the weight of each row, float32 ``[n]``. All classes have equal weights, and so have old and new rows of a class."""
        cells = 2 * self.labels + (np.arange(len(self.labels)) >= self.previous)
        counts = np.bincount(cells, minlength=2 * self.classes)
        parts = (counts.reshape(-1, 2) > 0).sum(axis=1)
        found: NDArray[np.float32] = (1 / (np.count_nonzero(parts) * parts[self.labels] * counts[cells])).astype(np.float32)
        return found


def fit_head(data: UpdateData, previous: LinearHead) -> LinearHead:
    """Fit the head by L-BFGS, starting from the previous head.

    The LwF loss keeps the outputs for the previous classes: the divergence from the previous head's softened outputs.

    Args:
        data: features and classes.
        previous: head of the previous classes, which are the first.
    """
    mean, std = data.features.mean(axis=0), spread(data.features)
    rows = np.concatenate([(data.features - mean) / std, np.ones((len(data.labels), 1), np.float32)], axis=1)
    weights, known, truth = data.weights()[:, None], len(previous.bias), np.eye(data.classes, dtype=np.float32)[data.labels]
    start = np.zeros((data.classes, rows.shape[1]), np.float32)
    start[:known] = np.column_stack([previous.weight * std, previous.bias + previous.weight @ mean])
    target = softmax(rows @ start[:known].T / TEMPERATURE, axis=1)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        layer = flat.reshape(start.shape).astype(np.float32)
        logits = rows @ layer.T
        scores, softened = log_softmax(logits, axis=1), log_softmax(logits[:, :known] / TEMPERATURE, axis=1)
        loss = -(weights * truth * scores).sum() + PENALTY / 2 * (layer[:, :-1] ** 2).sum()
        loss -= LWF * TEMPERATURE**2 * (target * softened).sum() / len(rows)
        gradient = weights * (np.exp(scores) - truth)
        gradient[:, :known] += LWF * TEMPERATURE * (np.exp(softened) - target) / len(rows)
        total = gradient.T @ rows
        total[:, :-1] += PENALTY * layer[:, :-1]
        return float(loss), total.ravel().astype(np.float64)

    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}).x.reshape(start.shape)
    weight = found[:, :-1] / std
    return LinearHead(weight.astype(np.float32), (found[:, -1] - weight @ mean).astype(np.float32), PENALTY, ())


def out_of_fold(
    data: UpdateData, previous: LinearHead, *, seed: int, doubtful: NDArray[np.int64] = NOTHING, progress: Progress = silent
) -> NDArray[np.float32]:
    """Predict each new image by a head that was fitted without its fold (5 folds). The previous classes are in every fit.

    Images of a group are in one fold, because a copy in the training images would reveal the given label.

    Args:
        data: features and classes.
        previous: head of the previous classes.
        seed: random seed of the folds.
        doubtful: new images that are left out of every fit.
        progress: called after each fold.

    Returns:
        Logits, float32 ``[new images, classes]``.
    """
    labels = data.labels[data.previous :]
    folds = min(FOLDS, len(np.unique(data.groups)))
    logits = np.zeros((len(labels), data.classes), np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, data.groups))
    for done, (_, held_out) in enumerate(parts, start=1):
        head = fit_head(data.without(np.union1d(held_out, doubtful)), previous)
        logits[held_out] = data.features[data.previous + held_out] @ head.weight.T + head.bias
        progress("checking the new labels", done, folds)
    return logits
