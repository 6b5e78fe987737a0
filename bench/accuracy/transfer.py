"""Transfer learning with the embedded backbone: accuracy on image sets that its pretraining has not used.

``python -m bench.accuracy.transfer`` compares pretrained with random weights, for a linear probe on all images (mean of 5 seeds, 75/25) and
for LP-FT on 200 images. ``--strategies`` and ``--continual`` measure fine-tuning with ImageNet weights instead. The image sets are in the
reference folder (``EDGETL_SHARED``, default ``../shared``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedShuffleSplit

from bench.accuracy.strategies import CONTINUAL, compare_continual, compare_strategies
from bench.paths import SHARED
from edgetl.core.preprocess import Side
from edgetl.data.folder import ImageFolder, Sample, scan
from edgetl.data.loading import labels_of, stratified
from edgetl.data.split import Splits
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import make_plan
from edgetl.train.config.resolve import resolve
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import FrozenFeatures
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone, feature_extractor
from edgetl.train.workflows.finetune import network_facts
from edgetl.train.workflows.optimization import Training, optimize

SETS = {"trashnet": "trashnet", "sign-digits": "sign-digits", "pacs/photo": "pacs/photo"}
SEEDS = range(5)
FEW = 200


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.transfer", description=__doc__)
    parser.add_argument("--backbone", default=EMBEDDED_BACKBONE)
    parser.add_argument("--weights", help="weights file for --backbone, which must be a timm name")
    parser.add_argument("--side", type=int, help="input height and width [default: the backbone's]")
    parser.add_argument("--probe-only", action="store_true")
    parser.add_argument("--few-only", action="store_true")
    parser.add_argument("--images", choices=list(SETS), action="append", help="image set; may be repeated [default: all]")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--strategies", help="compare these strategies instead, such as probe,auto")
    parser.add_argument(
        "--continual", nargs="?", const=",".join(CONTINUAL), help="compare these methods of continual learning instead [default: all]"
    )
    parser.add_argument("--epochs", type=int, help="epochs of --continual [default: by the number of images]")
    return parser.parse_args()


def main() -> None:
    given = _options()
    if given.strategies:
        compare_strategies(given.images or ["trashnet", "sign-digits"], given.strategies.split(","), given.seeds, given.side)
        return
    if given.continual:
        compare_continual(given.seeds, given.side or 128, given.continual.split(","), epochs=given.epochs)
        return
    size: tuple[Side, Side] | None = (given.side, given.side) if given.side else None
    config = TrainConfig.from_options(backbone=given.backbone, weights=given.weights, input_size=size)
    print(f"{given.backbone}, mean of {given.seeds} seeds (standard deviation), 75/25")
    probes, few = not given.few_only, not given.probe_only
    columns = [
        "images",
        "n",
        *(["linear probe", "linear probe, random weights"] if probes else []),
        *(["LP-FT on 200", "scratch on 200"] if few else []),
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, path in SETS.items():
        if given.images and name not in given.images:
            continue
        begin = time.monotonic()
        folder = scan(SHARED / "data" / path)
        cells = []
        if probes:
            random = config.with_options(pretrained=False, weights=None)
            cells += [probe(folder, wanted, given.seeds) for wanted in (config, random)]
        if few:
            cells += [_few(folder, config, given.seeds, pretrained=pretrained) for pretrained in (True, False)]
        shown = " | ".join(f"{np.mean(cell):.3f} ({np.std(cell):.3f})" for cell in cells)
        print(f"| {name} | {len(folder.samples)} | {shown} |  <!-- {time.monotonic() - begin:.0f} s -->", flush=True)


def _divide(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    (parts,) = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed).split(labels, labels)
    return parts


def probe(folder: ImageFolder, config: TrainConfig, seeds: int) -> list[float]:
    """Return the test accuracies of a linear probe on frozen features, one for each seed."""
    torch.manual_seed(0)
    backbone = load_backbone(config.backbone, len(folder.labels))
    features, labels = _features(backbone, folder.samples), labels_of(folder.samples)
    found = []
    for seed in range(seeds):
        train, test = _divide(labels, seed)
        head = fit_logistic(LabeledFeatures(features[train], labels[train]), len(folder.labels), seed=seed)
        found.append(float(((features[test] @ head.weight.T + head.bias).argmax(axis=1) == labels[test]).mean()))
    return found


def _few(folder: ImageFolder, config: TrainConfig, seeds: int, *, pretrained: bool) -> list[float]:
    """Return the test accuracies of LP-FT, or of training from random weights, on 200 labeled images. 40 of them select the epoch."""
    labels = labels_of(folder.samples)
    found = []
    for seed in range(seeds):
        train, test = _divide(labels, seed)
        few = stratified([folder.samples[index] for index in np.random.default_rng(seed).permutation(train)[: 3 * FEW]], FEW)
        tested = [folder.samples[index] for index in test]
        val = stratified(few, FEW // 5)
        chosen = {id(sample) for sample in val}
        splits = Splits(folder, tuple(item for item in few if id(item) not in chosen), tuple(val), tuple(tested))
        changes = {
            "pretrained": pretrained,
            "strategy": "full" if pretrained else "scratch",
            "seed": seed,
            **({} if pretrained else {"weights": None}),
        }
        wanted = config.with_options(**changes)
        torch.manual_seed(seed)
        backbone = load_backbone(wanted.backbone, len(folder.labels))
        if pretrained:
            head = fit_logistic(LabeledFeatures(_features(backbone, splits.train), labels_of(splits.train)), len(folder.labels), seed=seed)
            with torch.no_grad():
                backbone.head.weight.copy_(torch.from_numpy(head.weight))
                backbone.head.bias.copy_(torch.from_numpy(head.bias))
        plan = make_plan(resolve(wanted, splits), network_facts(backbone.model, backbone.head_name))
        with tempfile.TemporaryDirectory() as work:
            optimize(Training(backbone, splits, wanted, plan, Execution("cpu", Path(work))))
        with torch.no_grad():
            logits = backbone.head(torch.from_numpy(_features(backbone, tested)))
        found.append(float((logits.argmax(dim=1).numpy() == labels[test]).mean()))
    return found


def _features(backbone: Backbone, samples: Sequence[Sample]) -> NDArray[np.float32]:
    extract = FrozenFeatures(feature_extractor(backbone.model, backbone.head_name), backbone.spec, images=len(samples))
    return extract(samples)


if __name__ == "__main__":
    with torch.random.fork_rng(devices=[]):
        main()
