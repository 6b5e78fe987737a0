"""Fine-tuning with few labeled images: validation split, all images, or a number of steps that k-fold cross-validation chooses.

``python -m bench.accuracy.few_labels_partial --work FOLDER``. Sets and samples are those of ``bench.accuracy.few_labels``, at 128 pixels.
The strategies are ``probe`` (cross-validated, on all images) and ``partial``. A training of ``partial`` on all images is validated on the
test images. The row "last step" is the network that ``edgetl train`` writes. The training ``cross-validated`` is the complete one, and also
records whether the test accuracy is in the interval of its cross-validated accuracy. The row "3 folds" has the accuracy after the number of
steps with the lowest mean loss in three trainings on two thirds of the images, which are validated on the other third. The row "best steps"
chooses the number of steps on the test images: it is an upper bound of any such choice. Results are kept in FOLDER, and a second call
continues.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from bench.accuracy.few_labels import MOST, SETS, draw
from bench.accuracy.strategies import BACKBONE
from bench.paths import SHARED
from bench.peers.results import Results
from edgetl.core.system.host import fingerprint, versions
from edgetl.data.folder import ImageFolder, Sample, scan
from edgetl.data.loading import labels_of, stratified
from edgetl.data.split import Splits, split
from edgetl.train.artifacts.record import RunRecord
from edgetl.train.config.options import TrainConfig
from edgetl.train.loop.validation import VALIDATIONS
from edgetl.train.workflows.finetune import fine_tune

SIDE, FOLDS = 128, 3
BACKBONES = {"mobilenetv2": BACKBONE, "embedded": "edgetl_small"}
# Steps, loss and accuracy of each validation.
Curve = list[tuple[int, float, float]]


@dataclass(frozen=True)
class Trial:
    """Backbone and seed of a training."""

    backbone: str
    seed: int


def main() -> None:
    """Run the missing trainings, and print one row for each method."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.few_labels_partial", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the results")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--trainings", default=",".join(TRAININGS))
    parser.add_argument("--backbone", choices=BACKBONES, default="mobilenetv2")
    given = parser.parse_args()
    host, sets, trainings = fingerprint(), given.sets.split(","), given.trainings.split(",")
    print(f"{host['cpu']}, {host['flags']}; {given.seeds} seeds, {SIDE} px; torch {versions()['torch']}")
    results = Results(given.work / f"few_labels_partial-{given.backbone}.jsonl")
    for name in sets:
        keys = {(seed, training): f"{name}, {given.per_class}, seed {seed}" for seed in range(given.seeds) for training in trainings}
        missing = [item for item, key in keys.items() if (item[1], key) not in results]
        folder = scan(SHARED / "data" / name) if missing else None
        for seed, training in missing:
            assert folder is not None
            begin = time.process_time()
            found = TRAININGS[training](*sample(folder, given.per_class, seed), Trial(BACKBONES[given.backbone], seed))
            spent = round(time.process_time() - begin)
            results.add(training, keys[seed, training], **found, cpu_s=spent)
            estimate = (
                f", estimate {found['estimate']:.4f}, {'in' if found['inside'] else 'out of'} its interval" if "estimate" in found else ""
            )
            print(f"<!-- {keys[seed, training]}, {training}: {spent} CPU s{estimate} -->", flush=True)
    columns = "images per class", "method", *sets, "mean", "worst difference to the probe"
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    kept = [
        [{kind: results.get(kind, f"{name}, {given.per_class}, seed {seed}") for kind in TRAININGS} for seed in range(given.seeds)]
        for name in sets
    ]
    reference = np.full(len(sets), np.nan)
    for method, (needed, accuracy) in METHODS.items():
        if needed <= set(trainings):
            rows = np.array([np.mean([accuracy(item) for item in row]) for row in kept])
            reference = rows if method == "probe" else reference
            figures = " | ".join(f"{value:.4f}" for value in (*rows, rows.mean()))
            print(f"| {given.per_class} | {method} | {figures} | {100 * (rows - reference).min():+.1f} |")


def sample(folder: ImageFolder, count: int, seed: int) -> tuple[ImageFolder, list[Sample]]:
    """Return a folder of ``count`` images of each class, and the test images."""
    samples = stratified(folder.samples, MOST * len(folder.labels))
    train, test = ([samples[row] for row in rows] for rows in draw(labels_of(samples), count, seed))
    return replace(folder, samples=tuple(sorted(train, key=lambda item: item.path))), test


def cross_validated_probe(folder: ImageFolder, test: Sequence[Sample], trial: Trial) -> dict[str, Any]:
    """Fit a cross-validated head on all images."""
    splits = Splits(folder, folder.samples, (), tuple(test), cross_validated=True)
    return {"accuracy": _train(splits, trial, "probe")[0]}


def validation_split(folder: ImageFolder, test: Sequence[Sample], trial: Trial) -> dict[str, Any]:
    """Fine-tune on 85 % of the images. The others choose the number of steps."""
    splits = replace(split(folder, seed=trial.seed, test=0.0), test=tuple(test))
    accuracy, curve = _train(splits, trial, "partial")
    return {"accuracy": accuracy, "curve": curve, "images": len(splits.train)}


def all_images(folder: ImageFolder, test: Sequence[Sample], trial: Trial) -> dict[str, Any]:
    """Fine-tune on all images, and validate on the test images."""
    return {"curve": _train(Splits(folder, folder.samples, tuple(test), ()), trial, "partial", patience=VALIDATIONS)[1]}


def folds(folder: ImageFolder, test: Sequence[Sample], trial: Trial) -> dict[str, Any]:
    """Fine-tune on each two thirds of the images, and validate on the others. Test images are not used."""
    del test
    samples, labels, curves = folder.samples, labels_of(folder.samples), []
    for rows, held in StratifiedKFold(FOLDS, shuffle=True, random_state=trial.seed).split(labels, labels):
        splits = Splits(folder, tuple(samples[row] for row in rows), tuple(samples[row] for row in held), ())
        curves.append(_train(splits, trial, "partial", patience=VALIDATIONS)[1])
    return {"curves": curves}


def fine_tuned(folder: ImageFolder, test: Sequence[Sample], trial: Trial) -> dict[str, Any]:
    """Fine-tune on all images as ``edgetl train`` does, with out-of-fold outputs for the validation."""
    splits = Splits(folder, folder.samples, (), tuple(test), cross_validated=True)
    record, _ = _fine_tune(splits, trial, "partial")
    assert record.test
    estimate, accuracy = record.validation.accuracy, record.test.accuracy.value
    return {"accuracy": accuracy, "estimate": estimate.value, "inside": estimate.low <= accuracy <= estimate.high}


def _train(splits: Splits, trial: Trial, strategy: str, **options: Any) -> tuple[float, Curve]:
    """Train, and return the test accuracy (0 without test images) and the curve of the validations."""
    record, rows = _fine_tune(splits, trial, strategy, **options)
    curve = [(row["step"], row["val_loss"], row["val_accuracy"]) for row in rows if "step" in row]
    return record.test.accuracy.value if record.test else 0.0, curve


def _fine_tune(splits: Splits, trial: Trial, strategy: str, **options: Any) -> tuple[RunRecord, list[dict[str, Any]]]:
    """Train, and return the record of the run and its metrics."""
    options = {"backbone": trial.backbone, "input_size": (SIDE, SIDE), "strategy": strategy, "seed": trial.seed, "workers": 0, **options}
    with tempfile.TemporaryDirectory() as work:
        run = fine_tune(splits, TrainConfig.from_options(**options), Path(work) / "run")
        return run.record, [json.loads(line) for line in (run.path / "metrics.jsonl").read_text("utf-8").splitlines()]


def _by_folds(kept: dict[str, Any]) -> float:
    """Return the accuracy on the test images after the number of steps that the folds choose."""
    losses: NDArray[np.float64] = np.mean([[loss for _, loss, _ in curve] for curve in kept["folds"]["curves"]], axis=0)
    return float(kept["all"]["curve"][int(losses.argmin())][2])


TRAININGS: dict[str, Callable[[ImageFolder, Sequence[Sample], Trial], dict[str, Any]]] = {
    "probe": cross_validated_probe,
    "split": validation_split,
    "all": all_images,
    "folds": folds,
    "cross-validated": fine_tuned,
}
# Trainings that a method needs, and its accuracy on the test images.
METHODS: dict[str, tuple[set[str], Callable[[dict[str, Any]], float]]] = {
    "probe": ({"probe"}, lambda kept: float(kept["probe"]["accuracy"])),
    "partial, validation split": ({"split"}, lambda kept: float(kept["split"]["accuracy"])),
    "partial, cross-validated": ({"cross-validated"}, lambda kept: float(kept["cross-validated"]["accuracy"])),
    "partial, 3 folds": ({"all", "folds"}, _by_folds),
    "partial, last step": ({"all"}, lambda kept: float(kept["all"]["curve"][-1][2])),
    "partial, best steps on the test images": ({"all"}, lambda kept: max(accuracy for _, _, accuracy in kept["all"]["curve"])),
}

if __name__ == "__main__":
    main()
