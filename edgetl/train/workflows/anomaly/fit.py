"""Anomaly detection workflow (``edgetl train --task anomaly``): fit distances to normal images, evaluate and write the run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.core.files.names import printable
from edgetl.core.metrics import evaluate
from edgetl.core.output.folders import new_folder
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.tasks import ANOMALY_LABELS, DecisionRule, OutputDecoding
from edgetl.data.anomalies.defects import with_defects
from edgetl.data.folder import Sample
from edgetl.data.groups import count_groups, crossing_alarm
from edgetl.data.layout import PARTS
from edgetl.data.loading import batches, truth_of
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, DataError
from edgetl.train.artifacts.loading.lineage import pretraining_alarms, seen_by_ancestors, without_seen
from edgetl.train.artifacts.record import BackboneRecord, RunRecord
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.seen_images import SeenImages, perceptual_hashes, prefixes
from edgetl.train.artifacts.splits_record import record_splits
from edgetl.train.artifacts.writer import Results, RunContents, provenance, write_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.plan import Plan
from edgetl.train.config.resolve import resolve
from edgetl.train.heads.distances.fit import fit_distributions, fit_weights
from edgetl.train.heads.distances.modules import DistanceNetwork, describe_network
from edgetl.train.heads.modules import HEAD_NAME, head_of, without_classifier
from edgetl.train.loop.processes import Execution, world_size
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.finetune import choose_device, prepare

# Fewest normal images. With fewer, neither the distribution nor the threshold means anything.
LEAST_TRAINING, LEAST_VALIDATION = 10, 3
# AUROC of a random order.
CHANCE = 0.5

Output = TypeVar("Output")

_log = logging.getLogger(__name__)


def fit_normal(
    splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> Run:
    """Fit an anomaly detector to the normal training images, and write the run folder ``out``.

    The normal validation images choose the weights of the distances and the threshold. They, and copies of them with synthetic defects,
    measure the validation AUROC. Labeled anomalies are in the test split only, and are only reported.

    Args:
        splits: images of the training.
        config: training options.
        out: run folder to write.
        overwrite: replace ``out``.
        resume: has no effect, because the fit is one pass over the images.
        progress: called for each step of long operations.

    Raises:
        EdgetlError: an error that ``edgetl.train.train`` lists.
    """
    del resume
    if world_size() > 1:
        raise ConfigError("--task anomaly runs in one process. Remove --devices and --num-nodes.")
    ancestors = seen_by_ancestors(config.backbone, None, scratch=False)
    splits = without_seen(splits, ancestors)
    _check_images(splits)
    job, started = resolve(config, splits), time.monotonic()
    with new_folder(out, inputs=training_inputs(splits.folder.root, config), overwrite=overwrite) as folder:
        backbone, plan = prepare(splits, job)
        _log.info("backbone %s, license of the weights: %s", backbone.name, backbone.license or "not stated")
        detector = _detector(backbone, config)
        execution = Execution(choose_device(config.run.device), folder, progress, config.run.seed, config.optim.batch_size)
        expected, results = _fit(detector, splits, config.anomaly.false_alarms, execution)
        seen = ancestors | SeenImages(prefixes(splits.train), prefixes(splits.val), perceptual_hashes((*splits.train, *splits.val)))
        contents = RunContents(detector, record_splits(splits), seen, results)
        facts = {**provenance(out.name, started), **_figures(splits, config, results, expected), **_origin(detector, plan, config)}
        write_run(folder, contents, lambda files: RunRecord(**facts, files=files))
    return open_run(out)


def _check_images(splits: Splits) -> None:
    train, val = (len({sample.content for sample in part}) for part in (splits.train, splits.val))
    if train < LEAST_TRAINING or val < LEAST_VALIDATION:
        raise DataError(
            f"{printable(splits.folder.root)} has {train} different normal training images and {val} different normal validation images. "
            f"Anomaly detection needs at least {LEAST_TRAINING} and {LEAST_VALIDATION}. Add normal images."
        )


def _detector(backbone: Backbone, config: TrainConfig) -> Backbone:
    """Return ``backbone`` with an anomaly head that is not fitted.

    Raises:
        ConfigError: the network does not provide the feature maps of its stages.
    """
    network = without_classifier(backbone.model).eval()
    spec = describe_network(network, backbone.spec.input_size, whole=config.anomaly.anomalies == "all")
    if spec is None:
        raise ConfigError(
            f"--task anomaly: {backbone.name} does not provide the feature maps of its stages (timm's forward_intermediates). Use another "
            f"backbone, such as mobilenetv3_small_100."
        )
    return replace(backbone, model=DistanceNetwork(network, spec).eval(), head_name=HEAD_NAME)


def _fit(detector: Backbone, splits: Splits, false_alarms: float, execution: Execution) -> tuple[float, Results]:
    """Fit the detector, and evaluate it on validation and test images. Return the expected rate of false alarms, and the results."""
    network, spec, size = detector.model, detector.spec, execution.batch_size
    assert isinstance(network, DistanceNetwork)
    network.to(execution.device)

    def run(function: Callable[[torch.Tensor], Output], samples: Sequence[Sample], stage: str) -> Iterator[Output]:
        done = 0
        for batch in batches(samples, spec, batch_size=size):
            with torch.inference_mode():
                yield function(torch.from_numpy(batch).to(execution.device))
            done += len(batch)
            execution.progress(stage, done, len(samples))

    fit_distributions(network, run(network.backbone, splits.train, "fitting to normal images"))
    normal = [network.distances(*features) for features in run(network.backbone, splits.val, "choosing the threshold")]
    expected = fit_weights(network, torch.cat(normal).cpu().numpy(), false_alarms)
    decoding = OutputDecoding("anomaly", ANOMALY_LABELS, DecisionRule(thresholds=(0.5,), heat_map=network.spec.heat_map))
    samples: list[Sample] = []
    outputs: list[NDArray[np.float32]] = []
    evaluations: list[Evaluation] = []
    for part in (splits.val, splits.test):
        shown = with_defects(part)
        if not shown:
            continue
        found = torch.cat([*run(network, shown, "evaluating")]).cpu().numpy()
        result = evaluate(decoding, truth_of(shown), found)
        assert result.anomaly is not None
        figures = result.anomaly.model_copy(update={"synthetic": sum(sample.synthetic is not None for sample in shown)})
        evaluations.append(result.model_copy(update={"anomaly": figures}))
        samples += part
        outputs.append(found[: len(part)])
    network.cpu()
    validation, test = (*evaluations, None)[:2]
    assert validation is not None
    return expected, Results(decoding, validation, test, truth_of(samples), np.concatenate(outputs))


def _origin(detector: Backbone, plan: Plan, config: TrainConfig) -> dict[str, Any]:
    """Return the record's fields about the network and the options."""
    return {
        "config": config,
        "given": tuple(config.given()),
        "backbone": BackboneRecord.of(detector),
        "head": head_of(detector.model),
        "preprocess": detector.spec,
        "plan": plan,
    }


def _figures(splits: Splits, config: TrainConfig, results: Results, expected: float) -> dict[str, Any]:
    """Return the record's fields about images and results."""
    return {
        "task": "anomaly",
        "decision_rule": results.decoding.decision_rule,
        "labels": ANOMALY_LABELS,
        "expected_false_alarms": expected,
        "leaked_test_images": len(splits.leaked),
        "high_bit_images": sum(sample.levels is not None for sample in splits.train),
        "alarms": _alarms(splits, config, results.validation, expected),
        "head_penalty": None,
        "images": {part: len(splits.part(part)) for part in PARTS},
        "data_fingerprint": splits.folder.fingerprint(),
        "grouping": count_groups(splits),
        "notes": splits.notes,
        "validation": results.validation,
        "test": results.test,
    }


def _alarms(splits: Splits, config: TrainConfig, validation: Evaluation, expected: float) -> tuple[str, ...]:
    alarms, wanted, n = [], config.anomaly.false_alarms, len(splits.val)
    if expected > wanted + 1e-9:
        alarms.append(
            f"{n} normal validation images are too few for --false-alarms {wanted:g} ({math.ceil(1 / wanted - 1)} are needed): the "
            f"threshold is their highest score, and the expected rate of false alarms is {expected:.3f}. Add normal images, raise --val, "
            f"or raise --false-alarms."
        )
    if validation.score.low <= CHANCE:
        alarms.append(
            f"synthetic defects are hardly separated from normal images: AUROC {validation.score.value:.3f}. Check that the folder has "
            f"normal images of one kind only, or try another backbone (--backbone)."
        )
    known = {sample.content for sample in (*splits.train, *splits.val)}
    if copies := [sample for sample in splits.test if sample.label == 1 and sample.content in known]:
        alarms.append(
            f"{len(copies)} anomalies are copies of normal images, such as {printable(copies[0].path.relative_to(splits.folder.root))}. "
            f"Remove one of the copies: the training uses the image as normal, and the test as an anomaly."
        )
    if alarm := crossing_alarm(splits):
        alarms.append(alarm)
    return (*alarms, *pretraining_alarms(splits, config.backbone))
