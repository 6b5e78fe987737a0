"""Content of a run for the report: metrics, wrong predictions, images and saliency maps. Needs the training libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import nn

from edgetl.core.images.decode import content_hash, examine
from edgetl.core.output_decoding import decode, describe_truth
from edgetl.core.preprocess import decode_image, preprocess, to_pixels
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import DecisionRule, OutputDecoding, Task
from edgetl.data.folder import Sample
from edgetl.data.loading import stratified
from edgetl.data.predictions import PREDICTIONS_NAME, PredictedFile, parse_predictions
from edgetl.errors import ImageError, RunError
from edgetl.report.config import ReportConfig
from edgetl.report.images import heat_overlay, saliency_overlay, thumbnail
from edgetl.report.models import RunFacts, ShownImage
from edgetl.train.artifacts.record import METRICS_NAME
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.splits_record import SplitEntry

# Function from a network and normalized images float32 ``[n, 3, H, W]`` to saliency maps float32 ``[n, H, W]``.
SaliencyFunction: TypeAlias = Callable[..., NDArray[np.float32]]

# Largest number of training images to show, for each class and in total.
SAMPLES_PER_CLASS, MOST_SAMPLES = 4, 48
SAMPLE_SIDE = 112
_ROW = TypeAdapter(dict[str, float])
NO_CAPTUM = "Saliency maps: captum is not installed. It is in the extra `report`."


def read_run(path: Path, config: ReportConfig, saliency: SaliencyFunction | None, *, progress: Progress = silent) -> RunFacts:
    """Read a run, select its worst predictions, and encode their images.

    Args:
        path: run folder.
        config: number of images, and their folder.
        saliency: computes the saliency maps. None leaves them out, and ``missing`` reports it.
        progress: called for each saliency map.

    Raises:
        RunError: ``path`` is not a run, or one of its files is damaged.
    """
    run = open_run(path)
    splits, missing = run.splits(), []
    predictions = _predictions(run)
    wrong = worst_predictions(predictions, run.record.task, run.record.decision_rule)
    if not predictions:
        missing.append(
            f"Wrong predictions: the run has no {PREDICTIONS_NAME}, because an earlier version of edgetl trained it, or its "
            f"images were not read in an adaptation. Evaluate it with `edgetl evaluate`."
        )
    if run.record.validation.reliability is None and run.record.task in ("classification", "multi-label"):
        missing.append("Calibration: an earlier version of edgetl trained the run. Train again, or measure it with `edgetl evaluate`.")
    gallery: tuple[ShownImage, ...] = ()
    samples: tuple[ShownImage, ...] = ()
    if config.images:
        images = _Images(run, config.data or Path(splits.root), {entry.path: entry for entry in splits.entries})
        samples = images.samples()
        gallery = images.gallery(wrong[: config.images], saliency, progress)
        if saliency is None and gallery and not run.record.decision_rule.heat_map:
            missing.append(NO_CAPTUM)
        if images.lost:
            missing.append(
                f"{len(images.lost)} images are missing or changed since the training, for example {images.lost[0]}. Give the folder of "
                f"the images with --data."
            )
    return RunFacts(run.record, run.digest(), splits, _curves(run), predictions, wrong, gallery, samples, tuple(missing))


def worst_predictions(rows: Sequence[PredictedFile], task: Task, rule: DecisionRule) -> tuple[PredictedFile, ...]:
    """Return the wrong predictions, the worst first.

    The order is by score (classification), by the number of wrong labels (multi-label), or by the error (regression and ordinal). A
    prediction of a number is wrong if its error exceeds ``DecisionRule.tolerance``. A row without a finite score is the worst.
    """
    match task:
        case "classification":
            wrong = [(row.score, row) for row in rows if row.prediction != row.label]
        case "anomaly":
            # False alarms by descending, missed anomalies by ascending score.
            wrong = [(abs(row.score - rule.thresholds[0]), row) for row in rows if row.prediction != row.label]
        case "multi-label":
            wrong = [(_changed_labels(row), row) for row in rows if row.prediction != row.label]
        case "regression":
            errors = [(abs(row.score - float(row.label)), row) for row in rows]
            wrong = [(error, row) for error, row in errors if not error <= rule.tolerance]
        case "ordinal":
            wrong = [(abs(row.score - float(row.label)), row) for row in rows if float(row.prediction) != float(row.label)]
        case _:
            assert_never(task)
    return tuple(row for _, row in sorted(wrong, key=lambda item: (-item[0] if math.isfinite(item[0]) else -math.inf, item[1].file)))


def _changed_labels(row: PredictedFile) -> float:
    true, predicted = (set(text.split(", ")) - {"none"} for text in (row.label, row.prediction))
    return len(true ^ predicted) + row.score / 2  # of equal numbers, the surest first


def _predictions(run: Run) -> tuple[PredictedFile, ...]:
    """Return the predictions on the test images, or on the validation images of a run without test images."""
    if PREDICTIONS_NAME not in run.record.files:
        return ()
    try:
        rows = parse_predictions(run.read(PREDICTIONS_NAME).decode())
    except ValueError as error:
        raise RunError(f"{run.path / PREDICTIONS_NAME}: {error}. The run is damaged; train again.") from error
    wanted = "test" if run.record.test else run.record.selection_part
    return tuple(row for row in rows if row.split == wanted)


def _curves(run: Run) -> tuple[dict[str, float], ...]:
    """Return the metrics of each validation, without the last line, which has no step."""
    if METRICS_NAME not in run.record.files:
        return ()
    try:
        rows = [_ROW.validate_json(line) for line in run.read(METRICS_NAME).splitlines()]
    except ValidationError as error:
        raise RunError(f"{run.path / METRICS_NAME} is not a list of metrics. The run is damaged; train again.") from error
    return tuple(row for row in rows if "step" in row)


class _Images:
    """Images of a run. Images that are missing or changed are collected in ``lost``."""

    def __init__(self, run: Run, root: Path, entries: dict[str, SplitEntry]) -> None:
        self.lost: list[str] = []
        self._run = run
        self._root = root
        self._entries = entries

    def samples(self) -> tuple[ShownImage, ...]:
        """Return training images of each class."""
        train = {Path(entry.file): entry for entry in self._entries.values() if entry.part == "train"}
        drawn = [Sample(path, entry.label, entry.content) for path, entry in train.items()]
        classes = len({sample.label for sample in drawn})
        chosen = stratified(drawn, min(MOST_SAMPLES, SAMPLES_PER_CLASS * classes))
        images = []
        for entry in (train[sample.path] for sample in sorted(chosen, key=lambda sample: sample.label)):
            if (image := self._open(entry)) is not None:
                text = describe_truth(self._run.record.decoding, entry.label, entry.targets)
                images.append(ShownImage((text,), thumbnail(image, side=SAMPLE_SIDE)))
        return tuple(images)

    def gallery(self, rows: Sequence[PredictedFile], saliency: SaliencyFunction | None, progress: Progress) -> tuple[ShownImage, ...]:
        """Return the images of predictions as the network sees them, with saliency maps."""
        spec = self._run.record.preprocess
        opened = [(row, image) for row in rows if (image := self._open(self._entries.get(row.file))) is not None]
        pixels = [np.asarray(to_pixels(image, spec)) for _, image in opened]
        maps: list[bytes | None] = [None] * len(opened)
        if opened and (saliency is not None or self._run.record.decision_rule.heat_map):
            network: nn.Module = self._run.load_model()
            batch = np.stack([preprocess(image, spec) for _, image in opened])
            if self._run.record.decision_rule.heat_map:
                maps = [heat_overlay(*pair) for pair in zip(pixels, _heat_maps(self._run.record.decoding, network, batch), strict=True)]
            elif saliency is not None:
                maps = [saliency_overlay(*pair) for pair in zip(pixels, saliency(network, batch, progress=progress), strict=True)]
        return tuple(
            ShownImage(_caption(row, self._run.record.task), thumbnail(Image.fromarray(view)), saliency_map)
            for (row, _), view, saliency_map in zip(opened, pixels, maps, strict=True)
        )

    def _open(self, entry: SplitEntry | None) -> Image.Image | None:
        """Return the upright RGB image of an entry; none if it is missing or changed."""
        if entry is None:
            return None
        path = self._root / entry.file
        try:
            if content_hash(examine(path).image) == entry.content:
                return decode_image(path, self._run.record.preprocess)
        except ImageError:
            pass
        self.lost.append(entry.path)
        return None


def _heat_maps(decoding: OutputDecoding, network: nn.Module, images: NDArray[np.float32]) -> list[tuple[tuple[float, ...], ...]]:
    """Return the heat map of each image that an anomaly detector computes."""
    with torch.inference_mode():
        outputs: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
    return [prediction.heat_map for prediction in decode(decoding, outputs)]


def _caption(row: PredictedFile, task: Task) -> tuple[str, ...]:
    score = f" ({row.score:.3f})" if task in ("classification", "ordinal", "anomaly") else ""
    return f"label {row.label}", f"predicted {row.prediction}{score}", row.file
