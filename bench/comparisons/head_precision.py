"""Linear head of many images in float32 and in float64: accuracy on held-out images, time of the CPU, and iterations.

``python -m bench.comparisons.head_precision --work DIR``. Features of the embedded backbone, 64 pixels, of two views (evaluation and random
crop) of the 60,000 images of CIFAR-10. For each seed, 40,000 images (80,000 rows) are for training, and 20,000 for the accuracy. The
features are kept in DIR. One thread.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from bench.paths import SHARED
from edgetl.core.files.byte_ranges import ByteRange, range_path
from edgetl.core.progress import silent
from edgetl.core.system.host import describe_host, versions
from edgetl.data.folder import Sample
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import BackboneConfig
from edgetl.train.heads.linear import coefficients, fit_penalized, hold_out_penalty, make_folds, spread
from edgetl.train.inputs.features import features_of

SIDE, VIEWS, CLASSES, TRAINED = 64, 2, 10, 40_000


def main() -> None:
    """Print a row for each seed and precision."""
    parser = argparse.ArgumentParser(prog="python -m bench.comparisons.head_precision", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the features")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=TRAINED, help="training images")
    given = parser.parse_args()
    archive = SHARED / "data/cifar10.tar"
    if not archive.is_file():
        parser.exit(2, f"Nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    print(describe_host())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    features, labels = _features(archive, given.work)
    print(f"{features.shape[2]} features, {VIEWS * given.images:,} rows, {len(labels) - given.images:,} held-out images")
    print("| seed | precision | penalty | iterations of the last fit | CPU s | accuracy | log loss | difference (standard error) |")
    print("|---|---|---|---|---|---|---|---|")
    with threadpool_limits(1):
        for seed in range(given.seeds):
            order = np.random.default_rng(seed).permutation(len(labels))
            compare(features, labels, order[: given.images], order[given.images :], seed)


def compare(features: NDArray[np.float32], labels: NDArray[np.int64], train: NDArray[np.int64], held: NDArray[np.int64], seed: int) -> None:
    """Print a row for each precision. The difference of the accuracy is that to float64."""
    views, reference = [view[train] for view in features], None
    for precision in ("float64", "float32"):
        begun = time.process_time()
        weight, bias, penalty, iterations = fit(views, labels[train], seed, precision)
        seconds = time.process_time() - begun
        outputs = features[0][held] @ weight.T + bias
        right = outputs.argmax(axis=1) == labels[held]
        loss = float((logsumexp(outputs, axis=1) - outputs[np.arange(len(held)), labels[held]]).mean())
        reference = right if reference is None else reference
        change = right.astype(float) - reference
        difference = f"{change.mean():+.4f} ({change.std() / len(held) ** 0.5:.4f})"
        print(
            f"| {seed} | {precision} | {penalty:g} | {iterations} | {seconds:.0f} | {right.mean():.4f} | {loss:.4f} | {difference} |",
            flush=True,
        )


def fit(
    views: list[NDArray[np.float32]], labels: NDArray[np.int64], seed: int, precision: DTypeLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, int]:
    """Fit the head as ``fit_logistic`` does for many rows. Return weight, bias, penalty, and the iterations of the last fit."""
    mean, std = views[0].mean(axis=0), spread(views[0])
    scaled = [((view - mean) / std).astype(precision) for view in views]
    ones, folds = np.ones(len(labels), np.float32), make_folds(labels, None, len(views), seed=seed)
    penalty = hold_out_penalty(scaled, labels, folds[0], silent, weights=ones).penalty
    fitted = fit_penalized(np.concatenate(scaled), np.tile(labels, len(views)), penalty, weights=np.tile(ones, len(views)))
    rows, offsets = coefficients(fitted, CLASSES)
    weight = rows / std
    return weight, offsets - weight @ mean, penalty, int(np.max(fitted.n_iter_))


def _features(archive: Path, work: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the features ``[views, n, width]`` and labels ``[n]`` of all images, computed or read."""
    path, samples = work / f"cifar10-{SIDE}.npy", list(_samples(archive))
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        backbone = load_backbone(BackboneConfig(name="edgetl_small", input_size=(SIDE, SIDE)), CLASSES)
        extract = features_of(backbone, 64, device="cpu", images=VIEWS * len(samples))
        np.save(path, np.stack([extract(samples), *extract.views(samples, VIEWS, seed=0)]))
    return np.load(path), np.array([sample.label for sample in samples])


def _samples(archive: Path) -> Iterator[Sample]:
    """Yield the images of the archive, ``cifar10/SPLIT/CLASS/NAME.jpg``."""
    with tarfile.open(archive) as opened:
        members = [member for member in opened if member.name.endswith(".jpg")]
    classes = sorted({Path(member.name).parent.name for member in members})
    for member in members:
        path = range_path(ByteRange(archive, member.offset_data, member.size), member.name)
        yield Sample(path, classes.index(Path(member.name).parent.name), hashlib.sha256(member.name.encode()).hexdigest())


if __name__ == "__main__":
    main()
