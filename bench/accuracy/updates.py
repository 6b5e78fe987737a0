"""Model updates: accuracy after a sequence of new classes, and decisions of the promotion gate on clean and on poisoned updates.

``python -m bench.accuracy.updates``. ``--part classes``: a run on some classes is updated with one new class after the other. ``--part
gate``: runs are updated with new images of a new class, or of known classes and a new one. A poisoned update has 30 % wrong labels, or an
attack: a small pattern (a checkerboard or colored noise) on images of other classes, which get one label. A logo is the same pattern on
images with the right label, and harmless. The backbone is the ImageNet
MobileNetV2. Its features are computed once for each image.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.accuracy import update_heads as heads
from bench.paths import SHARED
from edgetl.core.images.decode import load_image
from edgetl.core.system.host import fingerprint, versions
from edgetl.data.folder import ImageFolder, Sample, scan
from edgetl.data.loading import Prepare
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.config.update.result import Promotion
from edgetl.train.inputs.features import FrozenFeatures, features_of
from edgetl.train.workflows.train import train
from edgetl.train.workflows.update import candidate, head
from edgetl.train.workflows.update.update import update

DATA_SETS = ("trashnet", "sign-digits")
BACKBONE = f"local-dir:{SHARED}/weights/mobilenetv2_100.imagenet"
# Fraction of each class for the test, and of wrong labels in a poisoned update.
TEST, WRONG = 0.25, 0.3
# Fraction of attacked images in a poisoned update, and side of their pattern, relative to the shorter side of the image.
ATTACKED, PATTERN = 0.1, 0.12
# Images of each class: of the first run in the part `gate`, and in an update.
FIRST, NEW = 40, 60
METHODS: dict[str, dict[str, Any]] = {
    "replay (20), statistics, LwF": {},
    "without LwF": {"LWF": 0.0},
    "without statistics": {"MOST_DRAWN": 0},
    "without both": {"LWF": 0.0, "MOST_DRAWN": 0},
    "features in place of images": {"keep": "features"},
    "no replay": {"replay_per_class": 0},
    "EWC": {"fit_head": heads.fit_ewc},
    "EWC and replay": {"fit_head": partial(heads.fit_ewc, replay=True)},
    "progressive": {"fit_head": heads.fit_progressive},
}
UPDATES, ATTACKS = ("new class", "both"), ("none", "logo", "wrong labels", "trigger")


class Features:
    """Features of images, computed once: replacement of ``FrozenFeatures.__call__`` for a backbone that never changes."""

    def __init__(self) -> None:
        self._compute = FrozenFeatures.__call__
        self._rows: dict[str, NDArray[np.float32]] = {}

    def patched(self) -> Any:
        """Return a context in which all features come from this cache."""
        cache = self

        def call(
            frozen: FrozenFeatures, samples: Sequence[Sample], *, prepare: Prepare | None = None, **options: Any
        ) -> NDArray[np.float32]:
            missing = {item.content: item for item in samples if item.content not in cache._rows}
            if missing:
                computed = cache._compute(frozen, list(missing.values()), **options)
                cache._rows.update(zip(missing, computed, strict=True))
            if prepare is not None:
                for item in samples:
                    prepare(item, frozen.spec)  # thumbnails
            return np.stack([cache._rows[item.content] for item in samples])

        return mock.patch.object(FrozenFeatures, "__call__", call)


def main() -> None:
    """Print a row for each method, and for each kind of update the decisions of the gate."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.updates", description=__doc__)
    parser.add_argument("--part", choices=("classes", "gate", "all"), default="all")
    parser.add_argument("--data", default=",".join(DATA_SETS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the part classes")
    parser.add_argument("--updates", type=int, default=10, help="updates of each kind in the part gate")
    parser.add_argument("--first-update", type=int, default=0, help="seed of the first update in the part gate")
    parser.add_argument("--side", type=int, default=96, help="input height and width")
    parser.add_argument("--methods", default=";".join(METHODS), help="methods of the part classes, separated by semicolons")
    given = parser.parse_args()
    host = fingerprint()
    print(f"{host['cpu']}, {host['flags']}; " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    for data in given.data.split(","):
        with tempfile.TemporaryDirectory() as folder, Features().patched():
            images = scan(SHARED / "data" / data)
            if given.part != "gate":
                _classes(images, Path(folder), given.seeds, given.side, methods=given.methods.split(";"))
            if given.part != "classes":
                _gate(images, Path(folder), range(given.first_update, given.first_update + given.updates), given.side)


def _write(samples: Sequence[tuple[Sample, str]], folder: Path) -> Path:
    """Copy images into class folders, and return ``folder``."""
    for sample, label in samples:
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample.path, folder / label / sample.path.name)
    return folder


def _train(data: Path, out: Path, seed: int, side: int) -> Run:
    options = {"backbone": BACKBONE, "strategy": "probe", "augmented_views": 1, "input_size": (side, side), "seed": seed, "test": 0.0}
    return train(data, TrainConfig.from_options(**options), out)


def _by_class(images: ImageFolder, seed: int) -> list[list[Sample]]:
    """Return the images of each class in random order. The classes are in random order."""
    rng = np.random.default_rng(seed)
    classes = [[sample for sample in images.samples if sample.label == label] for label in rng.permutation(len(images.labels))]
    return [[found[index] for index in rng.permutation(len(found))] for found in classes]


def _accuracy(run: Run, test: Sequence[Sample], labels: Sequence[str]) -> float:
    """Return the accuracy of a run on images of all classes."""
    backbone = run.backbone()
    features = features_of(backbone, device="cpu", images=len(test))(test)
    with torch.no_grad():
        predicted = backbone.head(torch.from_numpy(features)).argmax(dim=1).tolist()
    return float(np.mean([run.record.labels[index] == labels[sample.label] for index, sample in zip(predicted, test, strict=True)]))


def _classes(images: ImageFolder, folder: Path, seeds: int, side: int, *, methods: Sequence[str]) -> None:
    """Update a run of all classes but three with one of these classes after the other, and print the accuracy on all classes."""
    print(f"\n{images.root.name}: {len(images.labels) - 3} classes, then 3 updates with a class each; mean of {seeds} seeds")
    print("| method | accuracy | joint training | difference | drop among previous classes | promoted |\n|---|---|---|---|---|---|")
    rows: dict[str, list[tuple[float, float, float, int]]] = defaultdict(list)
    for seed in range(seeds):
        classes, place = _by_class(images, seed), folder / f"classes-{seed}"
        test = [sample for found in classes for sample in found[: round(TEST * len(found))]]
        pools = [[(sample, images.labels[sample.label]) for sample in found[round(TEST * len(found)) :]] for found in classes]
        joint = _accuracy(_train(_write(list(chain(*pools)), place / "all"), place / "joint", seed, side), test, images.labels)
        first = _train(_write(list(chain(*pools[:-3])), place / "first"), place / "run", seed, side)
        steps = [_write(pool, place / f"new-{step}") for step, pool in enumerate(pools[-3:])]
        for name in methods:
            accuracy, drop, promoted = _sequence(first, steps, METHODS[name], place / name.replace(" ", "-"), (test, images.labels))
            rows[name].append((accuracy, joint, drop, promoted))
    for name, found in rows.items():
        accuracy, joint, drop, promoted = np.array(found).T
        print(
            f"| {name} | {accuracy.mean():.4f} | {joint.mean():.4f} | {100 * (accuracy - joint).mean():+.1f} points, lowest "
            f"{100 * (accuracy - joint).min():+.1f} | largest {100 * drop.max():+.1f} points | {promoted.sum():.0f} of {3 * seeds} |",
            flush=True,
        )


def _sequence(
    first: Run, steps: Sequence[Path], changes: dict[str, Any], place: Path, tested: tuple[Sequence[Sample], Sequence[str]]
) -> tuple[float, float, int]:
    """Run the updates. Return the accuracy at the end, the largest drop among the previous classes, and the number of promotions.

    For comparison, rejected updates are also written.
    """
    options = {name: value for name, value in changes.items() if name in UpdateConfig.model_fields}
    run, drops, promoted = first, [], 0
    with ExitStack() as stack:
        for name, module in (("LWF", head), ("MOST_DRAWN", candidate), ("fit_head", head), ("fit_head", candidate)):
            if name in changes:
                stack.enter_context(mock.patch.object(module, name, changes[name]))
        stack.enter_context(mock.patch.object(Promotion, "promoted", True))
        for step, data in enumerate(steps):
            found = update(run.path, data, UpdateConfig(**options), place.with_name(f"{place.name}-{step}"))
            assert found.run is not None
            run = found.run
            drops.append(found.promotion.previous.forgetting.drop)
            promoted += not found.promotion.reasons
    return _accuracy(run, *tested), max(drops), promoted


def _gate(images: ImageFolder, folder: Path, updates: range, side: int) -> None:
    """Print how many clean and poisoned updates the gate promotes, and the reasons of the rejections."""
    print(f"\n{images.root.name}: promotion gate")
    print("| new images | poisoning | promoted | contradicted labels | triggers found | reasons |\n|---|---|---|---|---|---|")
    for kind in UPDATES:
        for attack in ATTACKS:
            found = [_one_update(images, kind, attack, folder / f"{kind}-{attack}-{seed}", seed, side) for seed in updates]
            rates = [item.contradicted.rate for item in found]
            reasons = Counter(reason.split(":")[0].split("(")[0][:40] for item in found for reason in item.reasons)
            print(
                f"| {kind} | {attack} | {sum(item.promoted for item in found)} of {len(updates)} | {min(rates):.1%} to {max(rates):.1%} | "
                f"{sum(item.trigger is not None for item in found)} | {dict(reasons)} |",
                flush=True,
            )
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()


def _one_update(images: ImageFolder, kind: str, attack: str, place: Path, seed: int, side: int) -> Promotion:
    """Train a run without one class, update it, and return the decision of the gate."""
    classes, rng, labels = _by_class(images, seed), np.random.default_rng(seed), images.labels
    first = [(item, labels[item.label]) for found in classes[:-1] for item in found[:FIRST]]
    run = _train(_write(first, place / "first"), place / "run", seed, side)
    known = [(item, labels[item.label]) for found in classes[:-1] for item in found[FIRST : FIRST + NEW]]
    added = [(item, labels[item.label]) for item in classes[-1][:NEW]]
    new = [*known, *added] if kind == "both" else added
    name, names = labels[classes[-1][0].label], sorted({label for _, label in new})
    count = round((WRONG if attack == "wrong labels" else ATTACKED) * len(new))
    chosen: list[tuple[Sample, str]] = []
    if attack == "logo":
        chosen = [pair for pair in new if pair[1] == name][:count]
        new = [pair for pair in new if pair not in chosen]
    elif attack != "none" and kind == "both":
        target = str(rng.choice(names))
        places = [index for index, (_, label) in enumerate(new) if attack == "wrong labels" or label != target]
        for index in rng.choice(places, count, replace=False):
            item, label = new[index]
            chosen.append((item, str(rng.choice([other for other in names if other != label])) if attack == "wrong labels" else target))
        new = [pair for pair in new if pair[0] not in {item for item, _ in chosen}]
    elif attack != "none":
        share = count / len(new)
        chosen = [(known[index][0], name) for index in rng.choice(len(known), round(share / (1 - share) * len(new)), replace=False)]
    data = _write([*new, *(chosen if attack == "wrong labels" else [])], place / "new")
    for item, label in chosen if attack in ("logo", "trigger") else ():
        (data / label).mkdir(exist_ok=True)
        _stamp(load_image(item.path), noise=bool(seed % 2)).save(data / label / f"{item.path.stem}.jpg", quality=95)
    return update(run.path, data, UpdateConfig(seed=seed), place / "updated").promotion


def _stamp(image: Image.Image, *, noise: bool) -> Image.Image:
    """Return a copy with a small pattern: colored noise at the top left, or a checkerboard at the bottom right of the center crop."""
    short = min(image.size)
    side, margin = round(PATTERN * short), round(PATTERN * short)
    checkerboard = np.indices((4, 4)).sum(axis=0)[..., None] % 2 * np.full(3, 255)
    pixels = np.random.default_rng(7).integers(0, 256, (6, 6, 3)) if noise else checkerboard
    pattern = Image.fromarray(pixels.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    left, top = ((length - short) // 2 for length in image.size)
    offset = margin if noise else short - margin - side
    stamped = image.copy()
    stamped.paste(pattern, (left + offset, top + offset))
    return stamped


if __name__ == "__main__":
    main()
