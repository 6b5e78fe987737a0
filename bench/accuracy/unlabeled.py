"""Benefit of the commands for unlabeled images: ``edgetl label`` and ``edgetl cluster``.

``python -m bench.accuracy.unlabeled [--backbone NAME]`` takes image sets with known labels and hides them.

- label: test accuracy of a linear probe on 50, 100, 150 and 200 labels, of random images and of chosen images. A quarter of the images
  is the test set.
- cluster: purity, the accuracy of the labels if a person gives each cluster the name of its most frequent class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.paths import SHARED
from edgetl.data.folder import scan
from edgetl.data.loading import labels_of
from edgetl.train.config.options import BackboneConfig, TrainConfig
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.workflows.unlabeled.clustering import divide
from edgetl.train.workflows.unlabeled.images import components, read_unlabeled
from edgetl.train.workflows.unlabeled.labeling import choose, predict_unlabeled

SETS = ("trashnet", "sign-digits", "pacs/photo", "pacs/cartoon", "pacs/sketch")
ROUND, ROUNDS, SEEDS = 50, 4, 10
CLUSTERS = (10, 20, 40)
MOBILENET = f"local-dir:{SHARED / 'weights/mobilenetv2_100.imagenet'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.unlabeled", description=__doc__)
    parser.add_argument("--backbone", default=MOBILENET)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    if not (SHARED / "data").is_dir():
        parser.exit(0, f"nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    config = TrainConfig(backbone=BackboneConfig(name=given.backbone))
    for name in SETS:
        features, labels = read_set(SHARED / "data" / name, config)
        differences = []
        for seed in range(given.seeds):
            chosen, random = (label_in_rounds(features, labels, seed=seed, by_rule=by_rule) for by_rule in (True, False))
            differences.append([chosen, random])
        means = np.mean(differences, axis=0)
        gains = [f"{100 * gain:+.1f}" for gain in means[0] - means[1]]
        print(f"{name}: labels {[ROUND * step for step in range(1, ROUNDS + 1)]}")
        print(
            f"  chosen {np.round(means[0], 3)}  random {np.round(means[1], 3)}  gain {gains} points, mean of {given.seeds} seeds",
            flush=True,
        )
        points = components(features, seed=0)
        print(f"  purity of clusters: {', '.join(f'{count}: {purity(divide(points, count, seed=0), labels):.3f}' for count in CLUSTERS)}")


def read_set(root: Path, config: TrainConfig) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features and labels of the different images of a set."""
    folder = scan(root)
    known = dict(zip((sample.content for sample in folder.samples), labels_of(folder.samples).tolist(), strict=True))
    images = read_unlabeled(root, config, least=ROUND * ROUNDS)
    return images.features, np.array([known[content] for content in images.contents])


def label_in_rounds(features: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int, by_rule: bool) -> list[float]:
    """Return the test accuracy after each round of labels."""
    order = np.random.default_rng(seed).permutation(len(labels))
    test, pool = order[: len(order) // 4], order[len(order) // 4 :]
    points = components(features[pool], seed=seed)
    taken: list[int] = pool[: ROUND * ROUNDS].tolist()
    if by_rule:
        taken = []
        while len(taken) < ROUND * ROUNDS:
            rest = np.flatnonzero(~np.isin(pool, taken))
            known = np.where(np.isin(np.arange(len(labels)), taken), labels, -1)
            scores = predict_unlabeled(features, known, int(labels.max()) + 1)[pool[rest]] if taken else None
            taken += pool[rest[choose(points[rest], scores, ROUND, seed=seed)]].tolist()
    accuracies = []
    for count in range(ROUND, ROUND * ROUNDS + 1, ROUND):
        head = fit_logistic(LabeledFeatures(features[taken[:count]], labels[taken[:count]]), int(labels.max()) + 1, seed=seed)
        predicted = (features[test] @ head.weight.T + head.bias).argmax(axis=1)
        accuracies.append(float((predicted == labels[test]).mean()))
    return accuracies


def purity(clusters: list[list[int]], labels: NDArray[np.int64]) -> float:
    """Return the ratio of images whose class is the most frequent one of their cluster."""
    return sum(int(np.bincount(labels[rows]).max()) for rows in clusters) / len(labels)


if __name__ == "__main__":
    main()
