"""Comparison of groups: rate of false alarms, balanced training on a constructed spurious correlation, and groups of faces.

``python -m bench.accuracy.groups [alarms|balance|faces …]``. ``alarms`` simulates models with equal and with unequal accuracy, and counts
alarms by three rules. ``balance`` trains on digits (0 to 4, or 5 to 9) with a colored border that matches the class in 95 % of the training
and validation images, and evaluates on test images with an independent border. ``faces`` trains on the gender labels of half of 540 faces,
exports int8, and compares the age groups of the other half for the backbone probe, the trained model and each variant. It needs the
reference images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from bench.paths import SHARED
from edgetl.core.group_metrics import LARGE_GAP, LEAST_RATIO, Compared, ModelGroups, compare_columns, outcomes_of
from edgetl.core.system.host import fingerprint, versions
from edgetl.core.tasks import OutputDecoding
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.runtime.evaluation import EvaluationConfig
from edgetl.train.config.options import TrainConfig
from edgetl.train.workflows.runs.evaluate import TRAINED, evaluate_run
from edgetl.train.workflows.train import train

PARTS = ("alarms", "balance", "faces")
SIMULATED = 300
CLASSES, BORDERS = ("high", "low"), ((220, 40, 40), (40, 160, 60))
MATCHING = 0.95
FACE_SIDE = 128
IMAGES = {"train": 1000, "val": 200, "test": 597}
SETTINGS = {
    "probe": {"strategy": "probe"},
    "probe, --balance sampler": {"strategy": "probe", "balance": "sampler"},
    "partial": {"strategy": "partial"},
    "partial, --balance sampler": {"strategy": "partial", "balance": "sampler"},
    "partial, --balance head": {"strategy": "partial", "balance": "head"},
}


def main() -> None:
    """Print the tables of the chosen parts."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.groups", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    parts, seeds = given.parts or PARTS, [int(seed) for seed in given.seeds.split(",")]
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    if "alarms" in parts:
        print_alarms()
    if "balance" in parts:
        print_balance(seeds)
    if "faces" in parts:
        for seed in seeds:
            print_faces(seed)


def print_alarms() -> None:
    """Print the rate of alarms by three rules for models with equal accuracy, and with a lower accuracy in one group."""
    print(f"\nrate of alarms of {SIMULATED} simulated models with two classes and an accuracy of 0.8\n")
    columns = "groups", "images per group", "accuracy of one group", f"gap of {100 * LARGE_GAP:.0f} points", f"ratio below {LEAST_RATIO}"
    print(f"| {' | '.join((*columns, 'alarm of `evaluate --by`'))} |\n|---|---|---|---|---|---|")
    for groups, images in ((2, 50), (2, 300), (9, 30), (9, 100), (9, 300)):
        for accuracy in (0.8, 0.65):
            found = [_simulate(np.random.default_rng(seed), groups, images, accuracy) for seed in range(SIMULATED)]
            gap = np.mean([model.gap is not None and model.gap.value >= LARGE_GAP for model in found])
            ratio = np.mean([model.ratio is not None and model.ratio < LEAST_RATIO for model in found])
            alarm = np.mean([model.finding == "alarm" for model in found])
            print(f"| {groups} | {images} | {accuracy} | {gap:.2f} | {ratio:.2f} | {alarm:.3f} |", flush=True)


def _simulate(random: np.random.Generator, groups: int, images: int, accuracy: float) -> ModelGroups:
    """Compare the groups of a model whose first group has another accuracy than 0.8."""
    values = np.repeat(np.arange(groups), images)
    truth = random.integers(0, 2, len(values))
    correct = random.random(len(values)) < np.where(values == 0, accuracy, 0.8)
    outputs = np.eye(2, dtype=np.float32)[np.where(correct, truth, 1 - truth)]
    model = outcomes_of("model", OutputDecoding("classification", CLASSES), truth, outputs)
    (table,) = compare_columns({"group": [f"g{value}" for value in values]}, Compared((model,), "model"))
    return table.models[0]


def print_balance(seeds: list[int]) -> None:
    """Print the accuracy of the worst combination of class and border for each training."""
    print(f"\ndigits with a border that matches the class in {MATCHING:.0%} of the training images, n = {IMAGES['test']} test images\n")
    print(
        "| training | seed | accuracy | worst class and border | equalized-odds difference | finding by border |\n|---|---|---|---|---|---|"
    )
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            data = Path(name, "digits")
            write_bordered_digits(data, seed)
            for title, options in SETTINGS.items():
                balanced = {"balance_by": "border", "groups": str(data / "metadata.csv")} if "balance" in options else {}
                config = TrainConfig.from_options(**options, **balanced, input_size=(64, 64), crop_pct=1.0, flip=False, seed=seed)
                run = train(data, config, Path(name, title.replace(" ", "")))
                groups = EvaluationConfig(groups=data / "metadata.csv", by="border,cell")
                border, cell = (
                    next(model for model in table.models if model.model == TRAINED) for table in evaluate_run(run.path, data, groups).groups
                )
                worst = min((group.accuracy for group in cell.groups), key=lambda accuracy: accuracy.value)
                assert run.record.test and border.equalized_odds
                print(
                    f"| {title} | {seed} | {run.record.test.accuracy.value:.3f} | {worst.value:.3f} ({worst.low:.3f} to {worst.high:.3f}, "
                    f"n = {worst.n}) | {border.equalized_odds.value:.3f} | {border.finding} |",
                    flush=True,
                )


def write_bordered_digits(root: Path, seed: int) -> None:
    """Write ready-made splits of the digits, and ``metadata.csv`` with the columns ``file``, ``border`` and ``cell``."""
    images, digits = load_digits(return_X_y=True)
    random = np.random.default_rng(seed)
    parts = [part for part, count in IMAGES.items() for _ in range(count)]
    rows = ["file,border,cell"]
    for part, index in zip(parts, random.permutation(len(digits)), strict=True):
        label = int(digits[index] < 5)
        matches = random.random() < (0.5 if part == "test" else MATCHING)
        border = label if matches else 1 - label
        pixels = Image.fromarray(np.round(images[index].reshape(8, 8) * 255 / 16).astype(np.uint8)).resize((32, 32)).convert("RGB")
        path = root / part / CLASSES[label] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.expand(pixels, 8, BORDERS[border]).save(path)
        rows.append(f"{path.relative_to(root)},{('red', 'green')[border]},{CLASSES[label]} {('red', 'green')[border]}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def print_faces(seed: int) -> None:
    """Print the accuracy of each age group, its error rates and the finding, for the probe, the trained model and each variant."""
    data = SHARED / "data/fairface-540"
    labels = str(data / "metadata.csv")
    backbone = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
    with tempfile.TemporaryDirectory() as name:
        config = TrainConfig.from_options(
            backbone=backbone,
            labels=labels,
            task="classification",
            columns="gender",
            strategy="partial",
            input_size=(FACE_SIDE, FACE_SIDE),
            val=0.2,
            test=0.5,
            seed=seed,
        )
        run = train(data, config, Path(name, "run"))
        bundle = export_bundle(run.path, ExportConfig(max_drop=0.05, allow_missing=True), Path(name, "bundle"))
        groups = EvaluationConfig(labels=Path(labels), by="age", bundle=bundle.path)
        found = evaluate_run(run.path, data, groups)
    (table,) = found.groups
    print(f"\nfaces, seed {seed}: gender by age, n = {table.images} test images\n")
    names = [group.group for group in table.models[0].groups]
    print(f"| model | all | {' | '.join(names)} | largest gap (p) | ratio | equalized odds (p) | finding |")
    print(f"|---|---|{'---|' * len(names)}---|---|---|---|")
    for model in table.models:
        cells = [f"{group.accuracy.value:.2f} of {group.accuracy.n}" for group in model.groups]
        correct = sum(group.accuracy.value * group.accuracy.n for group in model.groups) / table.images
        ratio = "" if model.ratio is None else f"{model.ratio:.2f}"
        gaps = [f"{gap.value:.2f} ({gap.p:.2f})" if gap else "" for gap in (model.gap, model.equalized_odds)]
        print(f"| {model.model} | {correct:.3f} | {' | '.join(cells)} | {gaps[0]} | {ratio} | {gaps[1]} | {model.finding} |", flush=True)


if __name__ == "__main__":
    main()
