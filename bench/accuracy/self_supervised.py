"""Self-supervised continued pretraining on the unlabeled images of a set, beside the unchanged backbone and AdaBN.

``python -m bench.accuracy.self_supervised``. The training images of a set continue the pretraining of a backbone, without their labels, by
``edgetl pretrain --ssl``. Probes are fitted before and after it on 5, 10 and 20 images of each class (the head of ``edgetl train`` for few
labels) and on all training images, and tested on the other quarter of the images.

``--methods adabn,vicreg,dino,simsiam`` compares other methods. AdaBN replaces only the BatchNorm statistics by those of the unlabeled
images. The losses, heads and views of the others are those of lightly, which ``pip install lightly`` adds. All options but ``--methods``,
``--sets``, ``--backbones``, ``--seeds`` and ``--probe-side`` belong to them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import StratifiedShuffleSplit
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bench.accuracy.pretraining import BACKBONES, CLIP_NORM, SETS, WARM_UP, read_images
from bench.accuracy.self_supervised_losses import METHODS, SMALLEST_SPREAD, Dino, Objective, Start
from bench.paths import SHARED
from edgetl.core.preprocess import Side
from edgetl.core.system.host import fingerprint, versions
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import labels_of
from edgetl.pretrain.options import SelfSupervisedConfig
from edgetl.pretrain.unlabeled.self_supervised import pretrain_self_supervised
from edgetl.train.adaptation.batchnorm import adapt_batchnorm
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.config.options import TrainConfig
from edgetl.train.heads.linear import fit_logistic
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import FeatureFunction, choose_engine, features_of
from edgetl.train.loop.optimizer import warm_cosine
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone, feature_extractor
from edgetl.train.networks.stages import choose_stages, find_stages, set_trainable
from edgetl.train.workflows.few_labels.discriminant import fit_mixture

COUNTS = (5, 10, 20)
# Different samples of labeled images. Their accuracies are averaged.
DRAWS = 5
BATCH = 64
# Number of images to report to `choose_engine`: large, because converting a frozen network to a faster engine always pays off.
MANY = 10**6


@dataclass(frozen=True)
class Options:
    """Options of a continued pretraining.

    Attributes:
        steps: number of optimizer steps.
        head_steps: steps before them, in which only the new layers train.
        side: height and width of a training image, px.
        lr: highest learning rate of AdamW for the backbone. That of the new layers is ``head_lr``.
        head_lr: highest learning rate of the new layers.
        unfreeze: stages that train, in the words of ``edgetl train --unfreeze``, or ``norm``: scales and offsets of BatchNorm alone.
        batchnorm: ``frozen`` statistics of BatchNorm, or those of each ``batch``.
        anchor: weight of the distance to the features before the training.
        colors: strength of the random colors.
        smallest: smallest area of a random crop, relative to the image.
        views_side: side of the images from which the targets of ``views`` are computed, px.
        seed: seed of the split, the views and the new layers.
    """

    steps: int
    head_steps: int
    side: int
    lr: float
    head_lr: float
    unfreeze: str
    batchnorm: str
    anchor: float
    colors: float
    smallest: float
    views_side: int
    seed: int


class Row(NamedTuple):
    """Test accuracies of the probes for ``COUNTS`` and for all training images, and the CPU time of the training, s."""

    method: str
    accuracies: list[float]
    seconds: float


def main() -> None:
    """Print one row for each set, backbone, seed and method."""
    given = _parse()
    host = fingerprint()
    print(f"{vars(given)}\n{host['cpu']}, {host['flags']}; torch {versions()['torch']}, timm {versions()['timm']}")
    columns = "set", "backbone", "seed", "method", *(f"{count} per class" for count in COUNTS), "all labels", "CPU s"
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    wanted = itertools.product(given.sets.split(","), given.backbones.split(","), map(int, given.seeds.split(",")))
    names = ("steps", "head_steps", "side", "lr", "head_lr", "unfreeze", "batchnorm", "anchor", "colors", "smallest", "views_side")
    for name, backbone, seed in wanted:
        options = Options(**{key: getattr(given, key) for key in names}, seed=seed)
        size = (given.probe_side, given.probe_side)
        for row in measure(name, backbone, size, given.methods.split(","), options):
            figures = " | ".join(f"{value:.4f}" for value in row.accuracies)
            print(f"| {name} | {backbone} | {seed} | {row.method} | {figures} | {row.seconds:.0f} |", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.self_supervised", description=__doc__)
    parser.add_argument("--methods", default="edgetl", help="changes of options may follow: vicreg:lr=3e-4:anchor=0")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="embedded, mobilenetv2, or both with a comma")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--head-steps", type=int, default=30, help="steps before, in which only the new layers train")
    parser.add_argument("--side", type=int, default=80, help="height and width of a training image, px")
    parser.add_argument("--probe-side", type=int, default=128, help="height and width of the input of the probes, px")
    parser.add_argument("--lr", type=float, default=1e-4, help="highest learning rate of AdamW for the backbone")
    parser.add_argument("--head-lr", type=float, default=1e-3, help="highest learning rate of AdamW for the new layers")
    parser.add_argument("--unfreeze", default="0.5", help="stages that train (edgetl train --unfreeze), or norm")
    parser.add_argument("--batchnorm", default="frozen", choices=("frozen", "batch"))
    parser.add_argument("--anchor", type=float, default=1.0, help="weight of the distance to the features before the training")
    parser.add_argument("--colors", type=float, default=0.5)
    parser.add_argument("--smallest", type=float, default=0.3, help="smallest area of a random crop")
    parser.add_argument("--views-side", type=int, default=160, help="side of the images of the targets of --methods views, px")
    given = parser.parse_args()
    if not (SHARED / "data").is_dir():
        parser.exit(0, f"nothing was measured: the reference images are not at {SHARED}. Set EDGETL_SHARED to their folder.\n")
    return given


def measure(name: str, start: str, size: tuple[Side, Side], methods: list[str], options: Options) -> Iterator[Row]:
    """Yield the test accuracies of the probes of a backbone, with AdaBN, and after its continued pretraining with each method."""
    folder = scan(SHARED / "data" / name)
    labels = labels_of(folder.samples)
    ((train, test),) = StratifiedShuffleSplit(1, test_size=0.25, random_state=options.seed).split(labels, labels)
    unlabeled = [folder.samples[index] for index in train]
    backbone = load_backbone(TrainConfig.from_options(backbone=BACKBONES[start], input_size=size).backbone, 2)

    def row(method: str, changed: Backbone, seconds: float) -> Row:
        features = features_of(changed, device="cpu", images=len(labels))(folder.samples)
        return Row(method, test_probes(features, labels, train, test), seconds)

    yield row("none", backbone, 0.0)
    images = read_images(unlabeled, max(160, options.views_side))
    for method in methods:
        begin = time.process_time()
        torch.manual_seed(options.seed)
        key, *changes = method.split(":")
        if key == "edgetl":
            changed = pretrain_with_edgetl(backbone, unlabeled, options.seed)
        elif key == "adabn":
            changed = adapt_batchnorm(backbone, unlabeled, Execution("cpu", Path(), seed=options.seed), source=backbone.model)
        else:
            changed = replace(backbone, model=copy.deepcopy(backbone.model))
            pretrain(changed, METHODS[key], images, unlabeled, changed_options(options, changes))
        yield row(method, changed, time.process_time() - begin)


def pretrain_with_edgetl(backbone: Backbone, samples: Sequence[Sample], seed: int) -> Backbone:
    """Return the result of ``edgetl pretrain --ssl`` on the images of ``samples``, at the input size of ``backbone``."""
    config = TrainConfig.from_options(backbone=backbone.name, input_size=backbone.spec.input_size, seed=seed, device="cpu")
    with TemporaryDirectory() as work:
        (images := Path(work, "images")).mkdir()
        for index, sample in enumerate(samples):
            shutil.copy(sample.path, images / f"{index}{sample.path.suffix}")
        record = pretrain_self_supervised(images, Path(work, "out"), config, SelfSupervisedConfig())
        print(f"  matched views: {record.matched_before:.3f} before, {record.matched:.3f} after", flush=True)
        return load_backbone(TrainConfig.from_options(backbone=f"local-dir:{work}/out").backbone, 2)


def changed_options(options: Options, changes: list[str]) -> Options:
    """Return ``options`` with changes, each ``NAME=VALUE``."""
    pairs = dict(change.split("=") for change in changes)
    return replace(options, **{key: type(getattr(options, key))(value) for key, value in pairs.items()})


def test_probes(features: NDArray[np.float32], labels: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]) -> list[float]:
    """Return the test accuracies with 5, 10 and 20 labeled images per class and with all training images."""
    classes = int(labels.max()) + 1

    def accuracy(rows: NDArray[np.int64], fit: Callable[..., Any], seed: int) -> float:
        head = fit(LabeledFeatures(features[rows], labels[rows]), classes, seed=seed)
        return float(((features[test] @ head.weight.T + head.bias).argmax(axis=1) == labels[test]).mean())

    few = [float(np.mean([accuracy(draw_few(labels, train, count, draw), fit_mixture, draw) for draw in range(DRAWS)])) for count in COUNTS]
    return [*few, accuracy(train, fit_logistic, 0)]


def draw_few(labels: NDArray[np.int64], train: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw ``count`` of the training images of each class."""
    order = np.random.default_rng(seed).permutation(train)
    return np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])


def pretrain(backbone: Backbone, method: type[Objective], images: list[Image.Image], samples: Sequence[Sample], options: Options) -> None:
    """Continue the pretraining of ``backbone``, whose weights change."""
    network = feature_extractor(backbone.model, backbone.head_name).to(memory_format=torch.channels_last)
    side = options.views_side
    spec = backbone.spec.model_copy(update={"input_size": (side, side)})
    features = features_of(replace(backbone, spec=spec), device="cpu", images=len(samples))(samples)
    frozen = choose_engine(copy.deepcopy(network), np.zeros((2, 3, options.side, options.side), np.float32), MANY, "cpu")
    objective = method(network, Start(backbone.head.in_features, features))
    view = make_view(backbone, options)
    for steps, trained in ((options.head_steps, False), (options.steps, True)):
        batches = draw_batches(images, view, options, steps, objective.views)
        _descend(objective, backbone, batches, options, steps=steps, frozen=frozen if trained else None)
    state = objective.result().state_dict()
    missing = backbone.model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys


def _descend(
    objective: Objective,
    backbone: Backbone,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    options: Options,
    *,
    steps: int,
    frozen: FeatureFunction | None,
) -> None:
    """Train ``steps`` steps by AdamW. Without ``frozen``, the features before the training, only the new layers train."""
    network, spread = objective.network, None
    new = nn.ModuleList([module for name, module in objective.named_children() if name not in ("network", "teacher")])
    objective.train()
    freeze(objective, backbone, options, trained=frozen is not None)
    groups = [
        {**group, "lr": lr}
        for module, lr in ((network, options.lr), (new, options.head_lr))
        for group in param_groups_weight_decay(module, 0.02)
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    schedule = LambdaLR(optimizer, lambda step: warm_cosine(step, steps, WARM_UP))
    total = 0.0
    for step, (views, rows) in enumerate(batches):
        features = network(views)
        loss = objective(features, views, rows)
        if options.anchor and frozen is not None:
            before = torch.from_numpy(frozen(views.contiguous().numpy()))
            spread = before.std(dim=0) + SMALLEST_SPREAD if spread is None else spread
            loss = loss + options.anchor * F.smooth_l1_loss(features / spread, before / spread)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        objective.after()
        total += loss.item()
        if step % 50 == 49:
            print(f"  step {step + 1}: loss {total / 50:.4f}", flush=True)
            total = 0.0


def freeze(objective: Objective, backbone: Backbone, options: Options, *, trained: bool) -> None:
    """Freeze the parameters that do not train."""
    network = objective.network
    if not trained:
        network.requires_grad_(False).eval()
    elif options.unfreeze == "norm":
        network.requires_grad_(False)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(True).train(options.batchnorm == "batch")
    else:
        stages = choose_stages(find_stages(backbone.model, backbone.head_name), options.unfreeze)
        set_trainable(network, stages, freeze_batchnorm=options.batchnorm == "frozen")
    if isinstance(objective, Dino):
        objective.teacher[0].train(options.batchnorm == "batch" and trained)


def draw_batches(
    images: list[Image.Image], view: Callable[[Image.Image], Any], options: Options, steps: int, views: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ``steps`` batches: views float32 ``[views * batch, 3, side, side]`` and the indices of the images, ``[batch]``."""
    rng = np.random.default_rng(options.seed)
    order = np.concatenate([rng.permutation(len(images)) for _ in range(1 + steps * BATCH // len(images))])
    for start in range(0, steps * BATCH, BATCH):
        rows = order[start : start + BATCH]
        stacked = torch.stack([view(images[index]) for _ in range(views) for index in rows])
        yield stacked.contiguous(memory_format=torch.channels_last), torch.from_numpy(rows)


def make_view(backbone: Backbone, options: Options) -> Callable[[Image.Image], Any]:
    """Return lightly's random view of SimSiam with weaker colors, at the size of the training images."""
    from lightly.transforms.simsiam_transform import SimSiamViewTransform

    view: Callable[[Image.Image], Any] = SimSiamViewTransform(
        input_size=options.side,
        cj_strength=options.colors,
        cj_hue=0.05,
        min_scale=options.smallest,
        random_gray_scale=0.0,
        gaussian_blur=0.2,
        normalize={"mean": list(backbone.spec.mean), "std": list(backbone.spec.std)},
    )
    return view


if __name__ == "__main__":
    main()
