"""From splits to a run: load the backbone, fit or tune, measure, write."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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
from edgetl.train.backbones import Backbone, make_trunk
from edgetl.train.config import TrainConfig
from edgetl.train.dataset import random_crop
from edgetl.train.features import FeatureExtractor
from edgetl.train.full import tune_all
from edgetl.train.probe import LinearHead, fit_head
from edgetl.train.report import class_table, draw_confusion
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

_log = logging.getLogger(__name__)


def train(data: Path, config: TrainConfig, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> Run:
    """Scan and split ``data``, then ``fine_tune``: all that ``edgetl train`` does, in one call."""
    folder = scan(data, progress=progress)
    return fine_tune(split(folder, seed=config.seed, val=config.val, test=config.test), config, out, overwrite=overwrite, progress=progress)


def fine_tune(splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> Run:
    """Train on ``splits.train``, choose on ``splits.val``, report ``splits.test``, and write the run folder ``out``.

    Raises:
        BackboneError: the backbone cannot be found or used.
        LicenceError: the licence of its weights does not fit ``config.license_policy``.
        ConfigError: ``out`` exists, or the device is not there.
        DataError: no image is left to train or to choose on.
        TrainingError: training diverged.
        StorageError: the run cannot be written.
    """
    if not splits.train or not splits.val:
        raise DataError(
            f"{splits.folder.root} leaves {len(splits.train)} training and {len(splits.val)} validation images; add images or raise --val."
        )
    trained_on = {sample.label for sample in splits.train}
    if untrained := [label for index, label in enumerate(splits.folder.labels) if index not in trained_on]:
        raise DataError(f"{splits.folder.root} has no training image of {', '.join(untrained[:5])}; add some, or remove the class.")
    started = time.monotonic()
    device = choose_device(config.device)
    torch.manual_seed(config.seed)  # random weights, and the head before it is fitted
    with new_folder(out, overwrite=overwrite) as folder:
        backbone = _allowed_backbone(config, len(splits.folder.labels))
        extract = _extractor(backbone, config, device, config.views * len(splits.train))
        # A head fitted on random features is large and wrong: full training from random weights starts from a random head too.
        fits = config.strategy == "probe" or config.pretrained
        head = _fit_probe(extract, backbone, splits, config, progress) if fits else None
        rows: list[dict[str, float]] = []
        if config.strategy == "full":
            rows = tune_all(backbone, splits, config, device=device, progress=progress).rows
            extract = _extractor(backbone, config, device, len(splits.val) + len(splits.test))
        validation, test = _measure(extract, backbone, splits, progress)
        (folder / METRICS_NAME).write_text("".join(json.dumps(row) + "\n" for row in [*rows, _last_row(validation, head)]), "utf-8")
        write_model(folder, backbone, splits.folder.labels)
        (folder / SPLITS_NAME).write_text(record_splits(splits).model_dump_json(indent=1), "utf-8")
        _write_pictures(folder, validation, test)
        record = _record(out.name, splits, config, backbone, head, (validation, test), time.monotonic() - started, hash_files(folder))
        (folder / RUN_RECORD_NAME).write_text(record.model_dump_json(indent=1), "utf-8")
    return open_run(out)


def _allowed_backbone(config: TrainConfig, classes: int) -> Backbone:
    """The backbone, if its licence may be used; the licence is said before any work is done with it."""
    backbone = load_backbone(config, classes)
    if backbone.parents:  # random weights are nobody's
        check_policy(backbone.licence, config.license_policy, name=backbone.name)
    _log.info("backbone %s, licence of the weights: %s", backbone.name, backbone.licence or "not stated")
    return backbone


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


def _fit_probe(extract: FeatureExtractor, backbone: Backbone, splits: Splits, config: TrainConfig, progress: Progress) -> LinearHead:
    features = extract(splits.train, progress=progress)
    views = [extract(splits.train, prepare=random_crop(config.seed, view), progress=progress) for view in range(1, config.views)]
    head = fit_head(features, labels_of(splits.train), len(splits.folder.labels), seed=config.seed, views=views, progress=progress)
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


def _last_row(validation: Evaluation, head: LinearHead | None) -> dict[str, float]:
    row = {"val_accuracy": validation.accuracy.value, "val_macro_f1": validation.macro_f1}
    return {**row, "head_penalty": head.penalty} if head else row


def _write_pictures(folder: Path, validation: Evaluation, test: Evaluation | None) -> None:
    shown, name = (test, "test") if test else (validation, "validation")
    accuracy = shown.accuracy
    title = f"{name}: accuracy {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}), n = {accuracy.n}"
    draw_confusion(shown, title, folder / "confusion.png")
    (folder / "classes.csv").write_text(class_table(shown), "utf-8")


def _record(
    name: str, splits: Splits, config: TrainConfig, backbone: Backbone, head: LinearHead | None,
    figures: tuple[Evaluation, Evaluation | None], seconds: float, files: dict[str, str],
) -> RunRecord:  # fmt: skip
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
            pretrained=config.pretrained,
            parents=backbone.parents,
        ),
        preprocess=backbone.spec,
        head_penalty=head.penalty if head else None,
        images={"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
        data_fingerprint=splits.folder.fingerprint(),
        validation=figures[0],
        test=figures[1],
        seconds=round(seconds, 1),
        versions=versions(),
        host=fingerprint(),
        files=files,
    )
