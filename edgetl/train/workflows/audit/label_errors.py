"""Label errors: out-of-sample probabilities of linear probes, and confident learning."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedGroupKFold

from edgetl.core.progress import Progress, silent
from edgetl.train.heads.linear import choose_penalty, fit_penalized, spread

FOLDS = 5
# Least number of images of a class, and of classes.
LEAST_IMAGES, LEAST_CLASSES = 10, 2
# Principal components of the features, and images for the choice of the penalty. Both bound the time.
COMPONENTS, CHOOSING_IMAGES = 256, 3000


def out_of_sample(
    features: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64], *, seed: int = 0, progress: Progress = silent
) -> NDArray[np.float64]:
    """Predict each image by a linear probe that was fitted without its fold (5 folds, logistic regression).

    Args:
        features: float32 ``[n, width]``.
        labels: classes 0..classes-1, each with at least ``LEAST_IMAGES`` images.
        groups: set of each image. Images of a set are in one fold, because a copy in the training images would reveal the given label.
        seed: random seed of the folds.
        progress: callback, called after each fold.

    Returns:
        Probabilities, ``[n, classes]``.
    """
    scaled = (features - features.mean(axis=0)) / spread(features)
    kept = min(COMPONENTS, *scaled.shape)
    rows = PCA(kept, svd_solver="covariance_eigh").fit_transform(scaled.astype(np.float64))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(rows, labels, groups))
    train, held_out = (part[:CHOOSING_IMAGES] for part in map(np.random.default_rng(seed).permutation, folds[0]))
    penalty = choose_penalty([rows], labels, [(train, held_out)], silent).penalty
    found = np.full((len(labels), int(labels.max()) + 1), 1e-9)
    for done, (train, held_out) in enumerate(folds, start=1):
        model = fit_penalized(rows[train], labels[train], penalty)
        found[np.ix_(held_out, model.classes_)] = model.predict_proba(rows[held_out])
        progress("searching label errors", done, len(folds))
    return found


def self_confidence(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of the given label, ``[n]``. Low values indicate label errors.

    With 8 % changed labels it finds more errors than the margin to the largest other probability (``bench/accuracy/audit.py``).
    """
    return probabilities[np.arange(len(labels)), labels]


def find_label_errors(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of probable label errors by confident learning, the most probable first.

    An image is confidently in a class if its probability is at least the mean probability of this class over the images with its label. An
    image that is confidently in another class than its label is a probable error (Northcutt et al. 2021, arXiv:1911.00068).
    """
    thresholds = np.array([probabilities[labels == label, label].mean() for label in range(probabilities.shape[1])])
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    flagged = np.flatnonzero((confident.max(axis=1) > 0) & (confident.argmax(axis=1) != labels))
    return flagged[np.argsort(self_confidence(probabilities, labels)[flagged], kind="stable")]
