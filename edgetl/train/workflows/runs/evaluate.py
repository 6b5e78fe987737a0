"""Evaluation of a run on labeled images with the trained network, and with a linear probe on its untouched backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.group_metrics import Compared, Outcomes, outcomes_of
from edgetl.core.progress import Progress, silent
from edgetl.data.folder import ImageFolder
from edgetl.data.loading import batches, groups_of, truth_of
from edgetl.data.split import Splits
from edgetl.errors import BackboneError, ConfigError, DataError, RunError
from edgetl.runtime.evaluation import (
    EvaluatedImages,
    EvaluatedModel,
    EvaluationConfig,
    EvaluationReport,
    attributes_of,
    compute_outputs,
    images_to_evaluate,
    report,
    variant_outcomes,
    with_groups,
)
from edgetl.train.artifacts.loading.load import load_backbone
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.config.tasks import choose_decoding, value_scale
from edgetl.train.heads.fit import fit_linear_head
from edgetl.train.heads.modules import LabeledFeatures
from edgetl.train.inputs.features import choose_engine, features_of
from edgetl.train.workflows.optimization import head_targets

TRAINED, PROBE = "trained model", "backbone probe"


def evaluate_run(path: Path, data: Path, config: EvaluationConfig | None = None, *, progress: Progress = silent) -> EvaluationReport:
    """Evaluate the run at ``path`` on the labeled images in ``data``.

    Images that trained or selected this run or an ancestor are excluded unless ``config.every_image`` is on. With ``config.by``, groups of
    images are compared for the network, for a probe on its untouched backbone, and for the variants of ``config.bundle``.

    Args:
        path: run folder.
        data: image folder.
        config: evaluation options.
        progress: called for each batch.

    Raises:
        RunError: ``path`` is not a run.
        BundleError: ``config.bundle`` is not a bundle.
        ConfigError: the label table is missing or its columns do not fit, a column of ``config.by`` is missing, the bundle has other
            labels, or a variant is given, which a run does not have.
        DataError: the folder has other classes or no unseen image.
        StorageError: ``config.save`` cannot be written.
    """
    config = config or EvaluationConfig()
    if config.variant is not None:
        raise ConfigError(f"{path} is a run and has no variants. Remove --variant, or give a bundle.")
    run = open_run(path)
    record = run.record
    bundle = None if config.bundle is None else _open_bundle_of(run, config.bundle)
    images = images_to_evaluate(data, config, record.decoding, run.seen_images().all, progress=progress)
    attributes = attributes_of(images, config)
    logits = choose_engine(run.load_model(), next(batches(images.samples, record.preprocess)), len(images.samples), "cpu")
    outputs = compute_outputs(logits, images.samples, record.preprocess, progress=progress)
    found = report(EvaluatedModel(path, None, run.digest(), record.decoding), images, outputs, save=config.save)
    if not attributes:
        return found
    probe, missing = _probe_or_reason(run, images, progress)
    models = [*probe, outcomes_of(TRAINED, record.decoding, truth_of(images.samples), outputs)]
    if bundle is not None:
        variants, without_engine = variant_outcomes(bundle, images, config, progress=progress)
        models, missing = [*models, *variants], [*missing, *without_engine]
    return with_groups(found, attributes, Compared(tuple(models), main=TRAINED, reference=TRAINED), missing)


def _open_bundle_of(run: Run, path: Path) -> Bundle:
    bundle = open_bundle(path)
    if bundle.manifest.labels != run.record.labels:
        raise ConfigError(f"--bundle {path} has other labels than the run {run.path}. Give a bundle that was exported from the run.")
    return bundle


def _probe_or_reason(run: Run, images: EvaluatedImages, progress: Progress) -> tuple[list[Outcomes], list[str]]:
    """Return the predictions of the backbone probe, or the reason why there is none."""
    if not run.record.backbone.pretrained:
        return [], [f"{PROBE}: the training started from random weights"]
    if run.record.plan.strategy == "probe":
        return [], [f"{PROBE}: the trained model is a probe on the untouched backbone"]
    try:
        return [probe_backbone(run, images, progress=progress)], []
    except (BackboneError, DataError, RunError) as error:
        return [], [f"{PROBE}: {str(error).removesuffix('.')}"]


def probe_backbone(run: Run, images: EvaluatedImages, *, progress: Progress = silent) -> Outcomes:
    """Fit a linear probe on the starting weights of a run and its training images, and predict ``images``.

    Raises:
        BackboneError: the starting weights are missing or have changed.
        DataError: the training images are missing or have changed.
        RunError: the parent run is damaged.
    """
    record = run.record
    backbone = replace(load_backbone(record.config.backbone, len(record.labels)), spec=record.preprocess)
    if backbone.weights_sha256 != record.backbone.weights_sha256:
        raise BackboneError(f"the weights of {record.backbone.name} have changed since the training.")
    train, val = tuple(run.samples("train")), tuple(run.samples("val"))
    splits = Splits(ImageFolder(images.folder.root, record.labels, (*train, *val), (), record.task), train, val, ())
    samples = [*train, *val, *images.samples]
    features = features_of(backbone, device="cpu", images=len(samples))(samples, progress=progress)
    fitted = LabeledFeatures(features[: len(train)], head_targets(train, splits), groups_of(train))
    head = fit_linear_head(fitted, record.task, len(record.labels), seed=record.config.run.seed, progress=progress)
    mean, spread = value_scale(splits)
    outputs = (features @ head.weight.T + head.bias) * spread + mean
    known = outputs[len(train) : len(train) + len(val)]
    decoding = choose_decoding(splits, known, tolerance=record.decision_rule.tolerance or None)
    return outcomes_of(PROBE, decoding, truth_of(images.samples), outputs[len(train) + len(val) :])
