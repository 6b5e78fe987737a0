"""Accuracy of a k-NN bundle after a class was added on the device, and latency with a gallery.

``python -m bench.accuracy.gallery --cache FOLDER``. A run with a k-NN head on the ImageNet MobileNetV2 is trained without the last class
of a set, and exported in fp32 and int8. The features of all images are computed once with each variant, as a device does, and kept in
FOLDER. For each class and seed, the k-NN head is fitted on three quarters of the images of the other classes. Then 5, 10, 20 or 50 images
of the class are added to a gallery, whose votes have the weight of ``new_class_weight``, or equal weights. The other quarter of all classes
is the test. ``joint`` is a k-NN head that was fitted with all classes. The precisions are those of the variant that predicts and of the
variant that computed the vectors of the gallery.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bench.paths import SHARED
from edgetl.core.manifest import Precision
from edgetl.core.system.host import fingerprint, versions
from edgetl.core.tasks import KnnHead
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import labels_of, stratified
from edgetl.device.gallery.place import open_place
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.measure.latency import time_calls
from edgetl.runtime.gallery.file import GalleryImage
from edgetl.runtime.gallery.votes import combined_logits, new_class_weight
from edgetl.runtime.predictor import load
from edgetl.train.config.options import TrainConfig
from edgetl.train.heads.knn import choose_votes
from edgetl.train.heads.modules import HeadSpec, KnnVotes
from edgetl.train.workflows.train import train

SETS = ("trashnet", "pacs/photo")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
# Predicting variant and variant of the gallery's vectors.
PAIRS = (("fp32", "fp32"), ("int8", "int8"), ("int8", "fp32"), ("fp32", "int8"))
# Largest number of images of a class, and the fraction of the test.
MOST, TEST = 150, 0.25
COUNTS = (5, 10, 20, 50)
Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Split:
    """Rows of one class and seed: stored images of the other classes, images of the new class, and test images."""

    stored: NDArray[np.int64]
    added: NDArray[np.int64]
    tested: NDArray[np.int64]


def main() -> None:
    """Print one row for each set, pair of precisions and number of added images, and the latencies."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.gallery", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the bundles and features")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; {given.seeds} seeds; {', '.join(f'{k} {v}' for k, v in versions().items())}")
    columns = (
        "set",
        "predicts",
        "vectors",
        "added",
        "new class",
        "others",
        "all",
        "equal votes: new class",
        "others",
        "all",
        "joint: new class",
        "all",
    )
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    for name in SETS:
        folder = given.cache / name.replace("/", "-")
        samples = stratified(scan(SHARED / "data" / name).samples, MOST * len(scan(SHARED / "data" / name).labels))
        bundle = _bundle(SHARED / "data" / name, folder)
        labels = labels_of(samples)
        features: Features = {item: _features(bundle, item, samples, folder) for item in PRECISIONS}
        for predicts, vectors in PAIRS:
            rows = [_figures(features, labels, (predicts, vectors), new, split) for new, split in _splits(labels, given.seeds)]
            for index, count in enumerate((0, *COUNTS)):
                figures = " | ".join(f"{value:.3f}" for value in np.mean([row[index] for row in rows], axis=0))
                print(f"| {name} | {predicts} | {vectors} | {count} | {figures} |", flush=True)
    _latencies(_bundle(SHARED / "data" / SETS[0], given.cache / SETS[0]), SHARED / "data" / SETS[0])


def _bundle(data: Path, folder: Path) -> Path:
    """Return the bundle of a run without the last class, from the cache or after a training."""
    if not (folder / "bundle").is_dir():
        with tempfile.TemporaryDirectory() as work:
            for kept in sorted(path for path in data.iterdir() if path.is_dir())[:-1]:
                (Path(work) / kept.name).symlink_to(kept)
            backbone = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
            train(Path(work), TrainConfig.from_options(backbone=backbone, strategy="probe", head="knn"), folder / "run")
            config = ExportConfig(formats=("onnx",), precisions=PRECISIONS, gate_images=300, calibration_images=100, max_drop=0.05)
            export_bundle(folder / "run", config, folder / "bundle")
    return folder / "bundle"


def _features(bundle: Path, precision: str, samples: list[Sample], folder: Path) -> NDArray[np.float32]:
    """Return the features of one variant, float32 ``[images, width]``, from the cache or the network."""
    path = folder / f"{precision}.npy"
    if not path.is_file():
        predictor = load(bundle, variant=f"onnx-{precision}", threads=1, gallery=False)
        np.save(path, np.concatenate([predictor.features(predictor.prepare(predictor.read(sample.path))) for sample in samples]))
    found: NDArray[np.float32] = np.load(path)
    return found


def _splits(labels: NDArray[np.int64], seeds: int) -> Iterator[tuple[int, Split]]:
    """Yield each class as the new one, with a split of the images, for each seed."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        parts = [np.split(rows, [round(TEST * len(rows))]) for rows in shuffled]
        tested = np.concatenate([test for test, _ in parts])
        for new, (_, added) in enumerate(parts):
            stored = np.concatenate([rows for other, (_, rows) in enumerate(parts) if other != new])
            yield new, Split(stored, added, tested)


def _figures(features: Features, labels: NDArray[np.int64], pair: tuple[str, str], new: int, split: Split) -> NDArray[np.float64]:
    """Return a row for each number of added images: accuracy on the new class, the others and all; joint: on the new class and all."""
    predicts, vectors = pair
    classes, queries, truth = int(labels.max()) + 1, features[predicts][split.tested], labels[split.tested]
    every = np.concatenate([split.stored, split.added])
    joint = _adapter(features["fp32"][every], labels[every], classes)
    with torch.no_grad():
        correct = joint(torch.from_numpy(queries)).argmax(dim=1).numpy() == truth
        adapter = _adapter(features["fp32"][split.stored], labels[split.stored], classes)
        outputs = tuple(item.numpy() for item in adapter.nearest(torch.from_numpy(queries)))
    head = KnnHead(
        width=queries.shape[1], neighbors=adapter.neighbors, temperature=adapter.temperature, scale=1.0, weights=(1.0,) * classes
    )
    rows = []
    for count in (0, *COUNTS):
        gallery = features[vectors][split.added[:count]]
        equal = np.eye(classes, dtype=np.float32)[np.full(len(gallery), new)]
        row = []
        for weight in (new_class_weight(len(split.stored) / (classes - 1), count) if count else 1.0, 1.0):
            found = combined_logits(head, (outputs[0], outputs[1], outputs[2]), gallery, weight * equal).argmax(axis=1) == truth
            row += [found[truth == new].mean(), found[truth != new].mean(), found.mean()]
        rows.append([*row, correct[truth == new].mean(), correct.mean()])
    return np.array(rows)


def _adapter(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> KnnVotes:
    """Fit a k-NN head on features of length 1, as ``edgetl.train.heads.knn.fit_knn`` does."""
    bank, votes = torch.from_numpy(features), F.one_hot(torch.from_numpy(labels), classes).float()
    neighbors, temperature, _ = choose_votes(bank, votes)
    spec = HeadSpec(kind="knn", bank=len(bank), neighbors=neighbors, temperature=temperature)
    adapter = KnnVotes(bank.shape[1], classes, spec)
    adapter.bank.copy_(bank)
    adapter.votes.copy_(votes)
    return adapter.eval()


def _latencies(bundle: Path, data: Path) -> None:
    """Print the shortest latency of the network and the votes on one thread, ms, with galleries of random vectors."""
    image = next(path for folder in sorted(data.iterdir()) for path in folder.glob("*"))
    place, rng, now = open_place(bundle), np.random.default_rng(0), "2026-01-01T00:00:00+00:00"
    assert place.bundle.manifest.knn is not None
    print("\n| gallery images | fp32, ms | int8, ms | file, MB |\n|---|---|---|---|")
    for count in (0, 50, 500, 4000):
        vectors = rng.normal(size=(count, place.bundle.manifest.knn.width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        entries = [GalleryImage(content=f"{index:064x}", label="new", added=now, variant="onnx-fp32") for index in range(count)]
        with place.locked():
            place.write(entries, vectors)
        shortest = []
        for precision in PRECISIONS:
            predictor = load(bundle, variant=f"onnx-{precision}", threads=1)
            times = time_calls(partial(predictor.logits, predictor.prepare(predictor.read(image))), runs=200)
            shortest.append(f"{times.min():.2f}")
        print(f"| {count} | {' | '.join(shortest)} | {place.file.stat().st_size / 1e6 if place.file else 0.0:.2f} |", flush=True)
    place.delete()


if __name__ == "__main__":
    main()
