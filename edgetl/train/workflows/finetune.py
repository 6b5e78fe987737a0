"""Fine-tuning: load the backbone, fit the head, train, evaluate and write the run."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgetl.core.bundle import is_run
from edgetl.core.group_metrics import GroupTable
from edgetl.core.licenses import check_policy
from edgetl.core.output.folders import check_side_folder
from edgetl.core.output.ownership import CHECKPOINTS_SUFFIX
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation, Forgetting
from edgetl.core.system.host import versions
from edgetl.data.groups import count_groups, crossing_alarm
from edgetl.data.loading import truth_of
from edgetl.data.split import Splits
from edgetl.errors import ConfigError
from edgetl.train.artifacts.loading.catalogue import embedded_names
from edgetl.train.artifacts.loading.lineage import pretraining_alarms, seen_by_ancestors, without_seen
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.record import BackboneRecord, RunRecord
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.seen_images import SeenImages, perceptual_hashes, prefixes
from edgetl.train.artifacts.splits_record import record_splits
from edgetl.train.artifacts.writer import Results, RunContents, provenance, write_run
from edgetl.train.config.calibration import CalibrationRecord, calibrate
from edgetl.train.config.options import BackboneConfig, Features, TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.plan import NetworkFacts, Plan, TrainingJob, describe_plan, make_plan
from edgetl.train.config.resolve import resolve
from edgetl.train.config.tasks import chance_alarm, choose_decoding
from edgetl.train.config.weights_dir import LITE0
from edgetl.train.continual.previous_task import find_previous_task, measure_forgetting
from edgetl.train.continual.progressive import OPTION, add_column
from edgetl.train.continual.teacher import with_teacher
from edgetl.train.heads.fit import with_head_modules
from edgetl.train.heads.modules import HeadSpec, head_of
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.checkpoints import Checkpoints
from edgetl.train.loop.processes import Execution, launch, rank, results_folder, wait_for_processes, world_size
from edgetl.train.loop.resume import PLAN, PREPROCESSING, Job, resume_command
from edgetl.train.networks.backbone import Backbone, with_intensity
from edgetl.train.networks.stages import choose_stages, find_stages
from edgetl.train.networks.stochastic_depth import drop_path_layers
from edgetl.train.workflows.balancing import compare_balancing
from edgetl.train.workflows.few_labels.fit import fit_few_labels
from edgetl.train.workflows.few_labels.folds import fine_tune_few
from edgetl.train.workflows.optimization import FitResult, Training, fit_network, prepare_training, set_text_head
from edgetl.train.workflows.sharded.probe import fit_sharded_probe

_log = logging.getLogger(__name__)

# Training accuracy minus validation accuracy, above which overfitting is reported. Good runs on small data sets reach 0.15.
LARGEST_GAP = 0.25
LARGER_BACKBONE = (
    "The embedded backbone is small. A larger backbone can be more accurate: compare backbones with `edgetl rank DATA`, and choose one "
    "with --backbone."
)
# Version of the saved states. Increase it when their meaning changes.
STATE_FORMAT = "4"


def fine_tune(
    splits: Splits, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent
) -> Run:
    """Fine-tune a backbone and write the run folder ``out``.

    ``splits.train`` trains, ``splits.val`` selects the weights, ``splits.test`` is only reported. During the training the state is saved
    in ``<out>.checkpoints``. With ``resume`` a stopped training continues from there. It ends with the same weights as an uninterrupted
    training, bit for bit on a CPU with the same libraries.

    Args:
        splits: images of the training.
        config: training options.
        out: run folder to write.
        overwrite: replace ``out`` and the state of a stopped training.
        resume: continue a stopped training.
        progress: called for each step of long operations.

    Raises:
        EdgetlError: an error that ``edgetl.train.train`` lists.
    """
    teacher, scratch = config.distillation.teacher, config.optim.strategy == "scratch"
    ancestors = seen_by_ancestors(config.backbone, teacher, scratch=scratch)
    splits = without_seen(splits, ancestors)
    job = resolve(config, splits)
    started = time.monotonic()
    device = choose_device(config.run.device)
    launch(device)
    with results_folder(out, inputs=training_inputs(splits.source, config), overwrite=overwrite) as folder:
        backbone, plan = prepare(splits, job)
        _log_start(job.config.backbone, backbone, plan, splits)
        execution = Execution(device, folder, progress, config.run.seed, config.optim.batch_size)
        training = Training(backbone, splits, job.config, plan, execution)
        checkpoints = _open_checkpoints(out, training, config.given(), resume=resume, overwrite=overwrite)
        training, fitted = _fit(prepare_training(replace(training, checkpoints=checkpoints)))
        call = {"config": config, "given": tuple(config.given())}
        _write(training, fitted, ancestors, lambda: {**provenance(out.name, started), **call})
    if rank() == 0:
        checkpoints.remove()  # not before the run is complete
    return open_run(out)


def _fit(training: Training) -> tuple[Training, FitResult]:
    """Train the network. With cross-validation, the backbone of the returned training has the features that it chose."""
    if training.config.head.kind == "text":
        return training, set_text_head(training)
    if training.splits.shards and training.plan.strategy == "probe":
        return training, fit_sharded_probe(training)
    if not training.splits.cross_validated:
        return training, fit_network(training)
    if training.plan.strategy == "partial":
        return training, fine_tune_few(training)
    backbone, fitted = fit_few_labels(training)
    return replace(training, backbone=backbone), fitted


def _log_start(config: BackboneConfig, backbone: Backbone, plan: Plan, splits: Splits) -> None:
    reason = f" (the default, because the extra {LITE0} is {'' if config.name == LITE0 else 'not '}installed)"
    chosen = backbone.name if "name" in config.model_fields_set else backbone.name + reason
    _log.info("backbone %s, license of the weights: %s", chosen, backbone.license or "not stated")
    _log.info("%s", describe_plan(plan))
    if high_bit := sum(sample.levels is not None for sample in splits.train):
        _log.info("%d training images have more than 8 bits: %s (--intensity)", high_bit, backbone.spec.intensity.describe())


def _write(training: Training, fitted: FitResult, ancestors: SeenImages, call: Callable[[], dict[str, Any]]) -> None:
    """Evaluate the trained network and write its run. ``call`` returns the record's fields about this call, including its duration."""
    backbone, splits = training.backbone, training.splits
    results, calibration, balancing = _measure(training, fitted)
    trained = (*splits.train, *training.continual.replay)
    seen = ancestors | SeenImages(prefixes(trained), prefixes(splits.val), perceptual_hashes((*trained, *splits.val)))
    contents = RunContents(
        backbone, record_splits(splits, fitted.unreadable), seen, results, fitted.rows, training.continual.fisher, splits.cross_validated
    )
    origin = with_teacher(backbone, training.teacher) if training.teacher else backbone

    def record(files: dict[str, str]) -> RunRecord:
        return RunRecord(
            **call(),
            task=splits.folder.task,
            decision_rule=results.decoding.decision_rule,
            labels=splits.folder.labels,
            backbone=BackboneRecord.of(origin),
            head=head_of(backbone.model),
            preprocess=backbone.spec,
            leaked_test_images=len(splits.leaked),
            high_bit_images=sum(sample.levels is not None for sample in splits.train),
            plan=training.plan,
            alarms=_alarms(training, fitted, results.validation),
            head_penalty=fitted.head_penalty,
            interpolation_weight=fitted.interpolation_weight,
            calibration=calibration,
            balancing=balancing,
            forgetting=_forgetting(training, seen),
            images=splits.counts,
            data_fingerprint=splits.fingerprint,
            grouping=count_groups(splits),
            notes=splits.notes,
            folds=fitted.out_of_fold.folds if fitted.out_of_fold else 0,
            validation=results.validation,
            test=results.test,
            files=files,
        )

    write_run(training.execution.folder, contents, record)


def prepare(splits: Splits, job: TrainingJob) -> tuple[Backbone, Plan]:
    """Load the backbone, check its license, complete the plan, and add the head or progressive column of the job.

    Raises:
        BackboneError: the backbone cannot be found or loaded.
        ConfigError: the progressive column cannot be added.
        LicenseError: the license of the weights does not fit ``license_policy``.
    """
    config = job.config
    torch.manual_seed(config.run.seed)  # for random weights, and for the head before it is fitted
    backbone = load_backbone(config.backbone, len(splits.folder.labels))
    backbone = with_intensity(backbone, config.data.intensity, splits.train)
    if backbone.parents:  # random weights have no license
        check_policy(backbone.license, config.backbone.license_policy, name=backbone.name)
    plan = make_plan(job, network_facts(backbone.model, backbone.head_name))
    if config.continual.forgetting == "progressive":
        if plan.strategy == "probe":
            _log.info("%s has no effect, because the strategy probe trains only the head", OPTION)
        else:
            backbone = add_column(backbone, plan.unfreeze, config.backbone)
    # With few images, cross-validation decides about "auto" later.
    features: Features = "layers" if config.head.features == "layers" else "last"
    return with_head_modules(backbone, HeadSpec(kind=config.head.kind, features=features)), plan


def network_facts(model: nn.Module, head_name: str) -> NetworkFacts:
    """Return the structure of ``model`` that its plan depends on. ``head_name`` is its linear head."""
    stages = find_stages(model, head_name)
    batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return NetworkFacts(
        family="batchnorm" if batchnorm else "layernorm",
        count_trained=lambda unfreeze: len(choose_stages(stages, unfreeze)) - 1,
        has_drop_path=bool(drop_path_layers(model)),
    )


def _open_checkpoints(out: Path, training: Training, options: dict[str, Any], *, resume: bool, overwrite: bool) -> Checkpoints:
    """Open the folder of saved states, or refuse the states of a stopped training unless ``resume`` or ``overwrite`` is on."""
    backbone, splits = training.backbone, training.splits
    images = record_splits(splits).model_dump_json(exclude={"root"})
    job = Job(
        data=splits.shards.pattern if splits.shards else str(splits.folder.root.resolve()),
        options=options,
        resolved={
            "edgetl": versions()["edgetl"],
            "format of states": STATE_FORMAT,
            "images": f"{len(splits.folder.samples)} ({hashlib.sha256(images.encode()).hexdigest()[:12]})",
            "backbone": f"{backbone.architecture} {json.dumps(backbone.model_args)}",
            "starting weights": (backbone.weights_sha256 or "random")[:12],
            PREPROCESSING: backbone.spec.model_dump_json(),
            **{f"{PLAN}{name}": str(value) for name, value in training.plan.model_dump(mode="json").items()},
        },
    )
    side = out.with_name(f"{out.name}{CHECKPOINTS_SUFFIX}")
    check_side_folder(side)
    checkpoints = Checkpoints(side, job, interval_s=training.config.run.checkpoint_s)
    for process in range(world_size()):  # one after the other, because they may share a disk
        if process == rank() and overwrite and not resume:
            checkpoints.remove()
        wait_for_processes()
    if checkpoints.newest() is not None and not resume:
        raise ConfigError(
            f"a training of {out} was stopped. Its state is in {checkpoints.folder}. Continue with {resume_command(out)}, or start again "
            f"with --overwrite."
        )
    wait_for_processes()  # before one of them writes a new state there
    return checkpoints


def _forgetting(training: Training, seen: SeenImages) -> Forgetting | None:
    """Measure the accuracy drop on the parent run's task. Return ``None`` if the training did not start from a run."""
    config, splits = training.config.backbone, training.splits
    starts_from_run = is_run(config.name) and splits.folder.task == "classification"
    previous = find_previous_task(config, training.backbone, splits.folder.labels) if starts_from_run else None
    return measure_forgetting(training.backbone, previous, training.execution, seen.all) if previous else None


def _alarms(training: Training, fitted: FitResult, validation: Evaluation) -> tuple[str, ...]:
    embedded = training.backbone.name in embedded_names()
    alarms = find_alarms(fitted.train_accuracy, validation, training.splits, training.plan, embedded=embedded)
    return alarms if training.plan.strategy == "scratch" else (*alarms, *pretraining_alarms(training.splits, training.config.backbone))


def find_alarms(train_accuracy: float, validation: Evaluation, splits: Splits, plan: Plan, *, embedded: bool) -> tuple[str, ...]:
    """Return warnings to read before you use the run, as sentences.

    Args:
        train_accuracy: accuracy on training images, 0..1.
        validation: metrics on validation images.
        splits: splits of the run.
        plan: training plan of the run.
        embedded: true for an embedded backbone. A warning about low accuracy then also suggests a larger backbone.
    """
    alarms = []
    where = "in cross-validation" if splits.cross_validated else "on validation images"
    gap = train_accuracy - validation.accuracy.value
    if gap > LARGEST_GAP:
        # The strategy probe already trains as little as possible.
        remedy = "or add images" if plan.strategy == "probe" else "add images, or train less of the network (--strategy probe)"
        alarms.append(
            f"overfitting: the accuracy is {train_accuracy:.0%} on training images and {validation.accuracy.value:.0%} {where}. "
            f"Look for wrong labels, {remedy}."
        )
    if alarm := chance_alarm(validation, splits.validation, splits.folder.task):
        alarms.append(f"{alarm} Check the labels, or add images.")
    if alarms and embedded:
        alarms.append(LARGER_BACKBONE)
    if alarm := crossing_alarm(splits):
        alarms.append(alarm)
    return tuple(alarms)


def choose_device(wanted: str) -> str:
    """Return the device to train on: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: ``wanted`` is ``cuda``, and torch finds no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU. Use --device cpu or --device auto.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _measure(training: Training, fitted: FitResult) -> tuple[Results, CalibrationRecord | None, GroupTable | None]:
    """Evaluate the network on validation and test images, after the calibration of its scores if it is requested.

    With cross-validation, the out-of-fold outputs for the training images replace the network's outputs for validation images.
    With the head without balancing, the effect of ``--balance`` is measured on the validation images, too.
    """
    splits, execution, optim = training.splits, training.execution, training.config.optim
    samples, count = [*splits.validation, *splits.test], len(splits.validation)
    outputs = fitted.out_of_fold.outputs if fitted.out_of_fold else np.empty((0, len(splits.folder.labels)), np.float32)
    balancing = None
    if new := samples[len(outputs) :]:
        extract = features_of(training.backbone, optim.batch_size, device=execution.device, images=len(new))
        head, plain, rows, plain_rows = training.backbone.head.cpu(), fitted.plain_head, [outputs], []
        for features in extract.blocks(new, progress=execution.progress):
            with torch.no_grad():
                rows.append(head(torch.from_numpy(features)).numpy())
            if plain is not None:
                plain_rows.append(features @ plain.weight.T + plain.bias)
        outputs = np.concatenate(rows)
        if plain is not None:
            balancing = compare_balancing(splits, training.config.data, np.concatenate(plain_rows)[:count], outputs[:count])
    decoding, calibration = choose_decoding(splits, outputs[:count], tolerance=optim.tolerance), None
    if (config := training.config.calibration).requested:
        decoding, calibration = calibrate(decoding, truth_of(samples), outputs, config, validation=count)
    return Results.of(decoding, truth_of(samples), outputs, validation=count), calibration, balancing
