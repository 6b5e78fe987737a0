"""From splits to a run: load the backbone, fit or tune, measure, write."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.atomic import new_folder
from edgetl.core.bundle import RUN_RECORD_NAME
from edgetl.core.host import fingerprint, versions
from edgetl.core.licences import check_policy
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.scoring import evaluate_predictions
from edgetl.data.folder import Sample, scan
from edgetl.data.loading import labels_of
from edgetl.data.split import Splits, split
from edgetl.errors import ConfigError, DataError
from edgetl.train.activations import Workplace
from edgetl.train.backbones import Backbone, make_trunk
from edgetl.train.budget import Plan, describe_plan, make_plan
from edgetl.train.checkpoints import Checkpoints
from edgetl.train.config import TrainConfig
from edgetl.train.dataset import random_crop
from edgetl.train.features import FeatureExtractor
from edgetl.train.loggers import check_loggers
from edgetl.train.lr_sweep import choose_rate, with_sweep
from edgetl.train.probe import LinearHead, fit_head
from edgetl.train.report import draw_curves, draw_sweep, write_result
from edgetl.train.run import (
    METRICS_NAME,
    SPLITS_NAME,
    BackboneRecord,
    Run,
    RunRecord,
    hash_files,
    open_run,
    record_splits,
    write_model,
)
from edgetl.train.sources import load_backbone
from edgetl.train.tuning import tune
from edgetl.train.tuning_recipe import with_recipe

_log = logging.getLogger(__name__)

# Of the accuracy on training over that on validation images; good runs on small sets show up to 0.15.
LARGEST_GAP = 0.25
# Changes when a saved state means something else.
STATE_FORMAT = "1"


def train(data: Path, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Run:
    """Scan and split ``data``, then ``fine_tune``: all that ``edgetl train`` does, in one call."""
    folder = scan(data, progress=progress)
    splits = split(folder, seed=config.seed, val=config.val, test=config.test)
    return fine_tune(splits, config, out, overwrite=overwrite, resume=resume, progress=progress)


def fine_tune(
    splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> Run:
    """Train on ``splits.train``, choose on ``splits.val``, report ``splits.test``, and write the run folder ``out``.

    While it trains, its state is saved beside ``out``, in ``<out>.checkpoints``; with ``resume`` a stopped training goes on from there and
    ends with the weights that it would have had, bit for bit on a CPU with the same libraries.

    Raises:
        BackboneError: the backbone cannot be found or used.
        LicenceError: the licence of its weights does not fit ``config.license_policy``.
        ConfigError: ``out`` exists, the device is not there, or a stopped training is in the way.
        DataError: no image is left to train or to choose on.
        TrainingError: training diverged.
        StoppedError: the process was asked to end; the state is saved.
        MissingExtraError: a logger's package is not installed.
        StorageError: the run cannot be written.
    """
    _check_parts(splits)
    check_loggers(config)
    started = time.monotonic()
    device = choose_device(config.device)
    with new_folder(out, overwrite=overwrite) as folder:
        backbone, plan = prepare(splits, config)
        _log.info("backbone %s, licence of the weights: %s", backbone.name, backbone.licence or "not stated")
        _log.info("%s", describe_plan(plan))
        checkpoints = _checkpoints(out, splits, config, plan, backbone, resume=resume, overwrite=overwrite)
        place = Workplace(device, folder, progress)
        taught = _teach(backbone, splits, config, plan, place, checkpoints)
        plan = with_sweep(plan, taught.sweep, config)
        extract = _extractor(backbone, config, device, len(splits.val) + len(splits.test))
        validation, test = _measure(extract, backbone, splits, progress)
        last = {"val_accuracy": validation.accuracy.value, "val_macro_f1": validation.macro_f1}
        (folder / METRICS_NAME).write_text("".join(json.dumps(row) + "\n" for row in [*taught.rows, last]), "utf-8")
        write_model(folder, backbone, splits.folder.labels)
        (folder / SPLITS_NAME).write_text(record_splits(splits).model_dump_json(indent=1), "utf-8")
        _write_pictures(folder, validation, test, taught)
        alarms = find_alarms(taught.train_accuracy, validation, splits)
        outcome = Outcome(plan, taught, alarms, validation, test, round(time.monotonic() - started, 1))
        record = _record(out.name, splits, config, backbone, outcome, hash_files(folder))
        (folder / RUN_RECORD_NAME).write_text(record.model_dump_json(indent=1), "utf-8")
    checkpoints.remove()
    return open_run(out)


@dataclass(frozen=True)
class Taught:
    """What happened while the network learned.

    Attributes:
        head_penalty: of the probe that fitted the head; none for random weights.
        rows: figures of each validation.
        train_accuracy: on training images, as they were shown last.
        tuned_share: of the tuned weights in the result.
        sweep: learning rates and losses of the range test (``--lr auto``).
    """

    head_penalty: float | None
    rows: list[dict[str, float]]
    train_accuracy: float
    tuned_share: float = 1.0
    sweep: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a training came to, for its record; ``seconds`` are of this call."""

    plan: Plan
    taught: Taught
    alarms: tuple[str, ...]
    validation: Evaluation
    test: Evaluation | None
    seconds: float


def _check_parts(splits: Splits) -> None:
    if not splits.train or not splits.val:
        raise DataError(
            f"{splits.folder.root} leaves {len(splits.train)} training and {len(splits.val)} validation images; add images or raise --val."
        )
    trained_on = {sample.label for sample in splits.train}
    if untrained := [label for index, label in enumerate(splits.folder.labels) if index not in trained_on]:
        raise DataError(f"{splits.folder.root} has no training image of {', '.join(untrained[:5])}; add some, or remove the class.")


def prepare(splits: Splits, config: TrainConfig) -> tuple[Backbone, Plan]:
    """Load the backbone, if its licence may be used, and resolve the plan."""
    config, _ = with_recipe(config)
    torch.manual_seed(config.seed)  # random weights, and the head before it is fitted
    given = config.model_copy(update={"pretrained": False, "weights": None}) if config.strategy == "scratch" else config
    backbone = load_backbone(given, len(splits.folder.labels))
    if backbone.parents:  # random weights are nobody's
        check_policy(backbone.licence, config.license_policy, name=backbone.name)
    return backbone, make_plan(given, len({sample.content for sample in splits.train}), backbone.model)


def _checkpoints(
    out: Path, splits: Splits, config: TrainConfig, plan: Plan, backbone: Backbone, *, resume: bool, overwrite: bool
) -> Checkpoints:
    """Where the state of this training is kept; another one's is not overwritten unless that was asked for."""
    choices = config.model_dump_json(exclude={"workers", "checkpoint_s", "license_policy", "licence", "log"})
    parts = (
        versions()["edgetl"],
        STATE_FORMAT,
        choices,
        plan.model_dump_json(),
        record_splits(splits).model_dump_json(exclude={"root"}),
        backbone.weights_sha256 or "",
    )
    checkpoints = Checkpoints(out.with_name(f"{out.name}.checkpoints"), hashlib.sha256("\n".join(parts).encode()).hexdigest())
    if overwrite and not resume:
        checkpoints.remove()
    if checkpoints.newest() is not None and not resume:
        raise ConfigError(
            f"a training of {out} was stopped; its state is in {checkpoints.folder}. Go on with --resume, or begin again with --overwrite."
        )
    return checkpoints


def _teach(backbone: Backbone, splits: Splits, config: TrainConfig, plan: Plan, place: Workplace, checkpoints: Checkpoints) -> Taught:
    """Fit the head, then tune as planned."""
    labels = labels_of(splits.train)
    # A head fitted on random features is large and wrong: training from random weights starts from a random head too.
    fits = plan.strategy == "probe" or (plan.fit_head and config.pretrained and plan.strategy != "scratch" and checkpoints.newest() is None)
    penalty, accuracy = None, 0.0
    if fits:
        extract = _extractor(backbone, config, place.device, config.views * len(splits.train))
        features = extract(splits.train, progress=place.progress)
        head = _fit_probe(extract, features, backbone, splits, config, place.progress)
        penalty, accuracy = head.penalty, float(((features @ head.weight.T + head.bias).argmax(axis=1) == labels).mean())
    elif not plan.fit_head:
        _draw_head(backbone, config.seed)
    if plan.strategy == "probe":
        return Taught(penalty, [], accuracy)
    history = tune(backbone, splits, plan, config, place, checkpoints=checkpoints, head_penalty=penalty)
    return Taught(history.head_penalty, history.rows, history.rows[-1]["train_accuracy"], history.tuned_share, history.sweep)


def _draw_head(backbone: Backbone, seed: int) -> None:
    """A random head as fastai draws its own (He et al. 2015, arXiv:1502.01852): some architectures' own are ten times as large."""
    torch.manual_seed(seed)
    nn.init.kaiming_normal_(backbone.head.weight)
    nn.init.zeros_(backbone.head.bias)


def find_alarms(train_accuracy: float, validation: Evaluation, splits: Splits) -> tuple[str, ...]:
    """Sentences on what should be looked at before the run is used."""
    alarms = []
    gap = train_accuracy - validation.accuracy.value
    if gap > LARGEST_GAP:
        alarms.append(
            f"overfitting: {train_accuracy:.0%} of the training images are answered rightly and {validation.accuracy.value:.0%} of the "
            f"validation images. Look for wrong labels, add images, or train less of the network (--strategy probe)."
        )
    common = max(np.bincount(labels_of(splits.val))) / len(splits.val)
    if validation.accuracy.low <= common and len(splits.folder.labels) > 1:
        alarms.append(
            f"on {len(splits.val)} validation images this cannot be told from always answering the most common class ({common:.0%}). "
            f"Check the labels, or add images."
        )
    return tuple(alarms)


def choose_device(wanted: str) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here. Use --device cpu, or auto.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _extractor(backbone: Backbone, config: TrainConfig, device: str, images: int) -> FeatureExtractor:
    trunk = make_trunk(backbone.model, backbone.head_name)
    return FeatureExtractor(trunk, backbone.spec, device=device, batch_size=config.batch_size, images=images)


def _fit_probe(
    extract: FeatureExtractor, features: NDArray[np.float32], backbone: Backbone, splits: Splits, config: TrainConfig, progress: Progress
) -> LinearHead:
    views = [extract(splits.train, prepare=random_crop(config.seed, view), progress=progress) for view in range(1, config.views)]
    head = fit_head(
        features, labels_of(splits.train), len(splits.folder.labels), seed=config.seed, views=views,
        balanced=config.balance != "none", progress=progress,
    )  # fmt: skip
    with torch.no_grad():
        backbone.head.weight.copy_(torch.from_numpy(head.weight))
        backbone.head.bias.copy_(torch.from_numpy(head.bias))
    return head


def _measure(extract: FeatureExtractor, backbone: Backbone, splits: Splits, progress: Progress) -> tuple[Evaluation, Evaluation | None]:
    features = extract([*splits.val, *splits.test], progress=progress)
    with torch.no_grad():
        logits = backbone.head.cpu()(torch.from_numpy(features)).numpy()
    predicted = logits.argmax(axis=1)
    border = len(splits.val)
    labels = splits.folder.labels
    validation = _evaluate(splits.val, predicted[:border], labels)
    return validation, _evaluate(splits.test, predicted[border:], labels) if splits.test else None


def _evaluate(samples: Sequence[Sample], predicted: NDArray[np.int64], labels: tuple[str, ...]) -> Evaluation:
    return evaluate_predictions(labels_of(samples), predicted, labels)


def _write_pictures(folder: Path, validation: Evaluation, test: Evaluation | None, taught: Taught) -> None:
    write_result(folder, validation, test)
    if taught.rows:
        draw_curves(taught.rows, folder / "curves.png")
    if taught.sweep:
        draw_sweep(choose_rate(taught.sweep), folder / "lr.png")


def _record(name: str, splits: Splits, config: TrainConfig, backbone: Backbone, outcome: Outcome, files: dict[str, str]) -> RunRecord:
    return RunRecord(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        labels=splits.folder.labels,
        config=config,
        backbone=BackboneRecord(
            name=backbone.name,
            architecture=backbone.architecture,
            head_name=backbone.head_name,
            model_args=backbone.model_args,
            weights_sha256=backbone.weights_sha256,
            licence=backbone.licence,
            pretrained=bool(backbone.parents),
            parents=backbone.parents,
        ),
        preprocess=backbone.spec,
        plan=outcome.plan,
        alarms=outcome.alarms,
        head_penalty=outcome.taught.head_penalty,
        tuned_share=outcome.taught.tuned_share,
        images={"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
        data_fingerprint=splits.folder.fingerprint(),
        validation=outcome.validation,
        test=outcome.test,
        seconds=outcome.seconds,
        versions=versions(),
        host=fingerprint(),
        files=files,
    )
