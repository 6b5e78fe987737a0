"""Domain adaptation of a run (``edgetl adapt``): compare its network with adapted ones on unlabeled target images, and write the best."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.core.files.names import printable
from edgetl.core.metrics import evaluate
from edgetl.core.output.folders import new_folder
from edgetl.core.output_decoding import softmax
from edgetl.core.progress import Progress, silent
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Part, Sample, scan_unlabeled
from edgetl.data.loading import truth_of
from edgetl.errors import ConfigError, DataError
from edgetl.runtime.evaluation import EvaluationConfig, images_to_evaluate
from edgetl.train.adaptation.batchnorm import adapt_batchnorm, has_batchnorm
from edgetl.train.adaptation.pseudo_labels import pseudo_labels
from edgetl.train.adaptation.scores import COLLAPSED_BELOW, diversity, information
from edgetl.train.adaptation.training import TargetTraining, train_on_target
from edgetl.train.artifacts.record import OUT_OF_FOLD_NAME, SPLITS_NAME, BackboneRecord, RunRecord
from edgetl.train.artifacts.run import Run, open_run
from edgetl.train.artifacts.seen_images import SeenImages, perceptual_hashes, prefixes
from edgetl.train.artifacts.writer import Results, RunContents, hash_files, provenance, write_model, write_record, write_run
from edgetl.train.config.adaptation.options import (
    MIN_LABELED,
    MIN_TARGET,
    SOURCE_FREE,
    SOURCE_ONLY,
    AdaptationConfig,
    AdaptationRecord,
    Candidate,
    Method,
    default_steps,
)
from edgetl.train.inputs.features import features_of
from edgetl.train.loop.processes import Execution
from edgetl.train.networks.backbone import Backbone
from edgetl.train.workflows.finetune import choose_device

_log = logging.getLogger(__name__)

# Method in place of ``auto`` if the images of the run are missing.
WITHOUT_SOURCE: Method = "shot"
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class DomainImages:
    """Images of an adaptation.

    Attributes:
        target: unlabeled target images. The label of each is its position.
        labeled: labeled target images, which select the result.
        train: training images of the run. Empty for a source-free method.
        val: validation images of the run. Empty for a source-free method.
        test: test images of the run. Empty for a source-free method.
    """

    target: tuple[Sample, ...]
    labeled: tuple[Sample, ...] = ()
    train: tuple[Sample, ...] = ()
    val: tuple[Sample, ...] = ()
    test: tuple[Sample, ...] = ()

    @property
    def measured(self) -> tuple[Sample, ...]:
        """Images that measure a network: target, labeled target, validation and test images, in this order."""
        return (*self.target, *self.labeled, *self.val, *self.test)


@dataclass(frozen=True)
class Network:
    """Network with its features and outputs for ``DomainImages.measured``.

    Attributes:
        backbone: the network.
        features: float32 ``[n, width]``, inputs of the head.
        outputs: float32 ``[n, classes]``.
    """

    backbone: Backbone
    features: NDArray[np.float32]
    outputs: NDArray[np.float32]


def adapt_run(
    path: Path, unlabeled: Path, out: Path, config: AdaptationConfig | None = None, *, overwrite: bool = False, progress: Progress = silent
) -> Run:
    """Adapt the network of a run to unlabeled images of another domain, and write the result as a new run.

    The network of the run, the network with the BatchNorm statistics of the target images (AdaBN), and the network that the method trains
    are compared on the target images. With ``auto`` the best of them is written, which may be the network of the run.

    Args:
        path: run folder.
        unlabeled: folder of target images in any arrangement.
        out: run folder to write.
        config: adaptation options.
        overwrite: replace ``out``.
        progress: called for each batch and step.

    Returns:
        The new run. ``Run.record.adaptation`` has the compared networks.

    Raises:
        RunError: ``path`` is not a run.
        ConfigError: the method does not fit the network or the task, or ``out`` exists.
        DataError: there are too few target images, or the images of the run are missing and the method needs them.
        TrainingError: the training diverged.
    """
    config, run, started = config or AdaptationConfig(), open_run(path), time.monotonic()
    _check_network(run, config.method)
    inputs = {"the run": path, "the target images": unlabeled, **({"--data": config.data} if config.data else {})}
    with new_folder(out, inputs=inputs, overwrite=overwrite) as folder:
        images = _read_images(run, unlabeled, config, progress)
        execution = Execution(choose_device(config.device), folder, progress, config.seed, config.batch_size)
        networks = _adapt(run, images, config, execution)
        candidates = tuple(_compare(run, networks, images))
        chosen = choose_candidate(candidates, config.method)
        record = _record(config, unlabeled, images, candidates, chosen)
        found = {"adaptation": record, "alarms": find_alarms(chosen, candidates, run, measured=bool(images.val))}
        _write(folder, run, networks[chosen.name], images, lambda: {**provenance(out.name, started), **found})
    return open_run(out)


def _check_network(run: Run, method: Method) -> None:
    """Raise a ``ConfigError`` if the run has no network that can be adapted with ``method``."""
    record = run.record
    if record.task != "classification" or record.backbone.columns is not None or not record.head.plain:
        raise ConfigError(
            f"{run.path} cannot be adapted (task {record.task}, head {record.head.describe()}). Give a run for classification with one "
            f"network and a linear head on its last features, such as that of --features last."
        )
    if method == "adabn" and not has_batchnorm(run.load_model()):
        raise ConfigError(
            f"--method {method} needs BatchNorm layers, which {record.backbone.architecture} does not have. Use --method mcc."
        )


def _read_images(run: Run, unlabeled: Path, config: AdaptationConfig, progress: Progress) -> DomainImages:
    """Read the target images, and the images of the run if the method needs them."""
    found = scan_unlabeled(unlabeled, progress=progress)
    distinct = {sample.content: sample for sample in found}.values()
    if len(distinct) < MIN_TARGET:
        raise DataError(f"{unlabeled} has {len(distinct)} different images. An adaptation needs at least {MIN_TARGET}. Add images.")
    target = tuple(replace(sample, label=position) for position, sample in enumerate(distinct))
    labeled = read_labeled(run, unlabeled, config.target_labels, progress=progress) if config.target_labels else ()
    if config.method in SOURCE_FREE:
        return DomainImages(target, labeled)
    try:
        train, val, test = (tuple(run.samples(part, config.data)) for part in PARTS)
        return DomainImages(target, labeled, train, val, test)
    except DataError as error:
        if config.method != "auto" or config.data is not None:
            raise
        _log.warning("the images of the run are not used, and the method is %s: %s", WITHOUT_SOURCE, error)
        return DomainImages(target, labeled)


def read_labeled(run: Run, unlabeled: Path, labels: Path, *, every_image: bool = False, progress: Progress = silent) -> tuple[Sample, ...]:
    """Read labeled target images.

    Args:
        run: run with the labels.
        unlabeled: folder of the target images.
        labels: folder of class folders, or table of images in ``unlabeled``.
        every_image: read also images that trained or selected the run.
        progress: called after each decoded file.

    Raises:
        DataError: the images cannot be read, or are too few.
    """
    data, table = (labels, None) if labels.is_dir() else (unlabeled, labels)
    config = EvaluationConfig(labels=table, every_image=every_image)
    found = images_to_evaluate(data, config, run.record.decoding, run.seen_images().all, progress=progress)
    if len(found.samples) < MIN_LABELED:
        raise DataError(
            f"{labels} has {len(found.samples)} labeled target images. At least {MIN_LABELED} are needed. Add images, or adapt without "
            f"--target-labels."
        )
    return found.samples


def _adapt(run: Run, images: DomainImages, config: AdaptationConfig, execution: Execution) -> dict[str, Network]:
    """Return the networks to compare by name: the network of the run, AdaBN, and the network that the method trains."""
    source = _measure(run.backbone(), images, execution)
    networks, start = {SOURCE_ONLY: source}, source
    if has_batchnorm(source.backbone.model):
        adapted = adapt_batchnorm(source.backbone, images.target, execution, source=source.backbone.model)
        networks["adabn"] = start = _measure(adapted, images, execution)
    else:
        _log.info("AdaBN is left out, because %s has no BatchNorm layers", source.backbone.architecture)
    if config.method == "adabn":
        return networks
    method: Method = config.method if config.method != "auto" else "mcc" if images.train else WITHOUT_SOURCE
    count = len(images.target)
    training = TargetTraining(
        method=method,
        labels=run.record.labels,
        run=source.backbone,
        start=start.backbone,
        target=images.target,
        source=images.train,
        pseudo_labels=torch.from_numpy(pseudo_labels(start.features[:count], softmax(start.outputs[:count]))),
        plan=run.record.plan,
        steps=_steps(images, config),
        config=config,
        execution=execution,
    )
    trained = replace(start.backbone, model=train_on_target(training))
    adapted = adapt_batchnorm(trained, images.target, execution, source=source.backbone.model)
    networks[method] = _measure(adapted, images, execution)
    return networks


def _steps(images: DomainImages, config: AdaptationConfig) -> int:
    return config.steps or default_steps(len(images.target), config.batch_size)


def _measure(backbone: Backbone, images: DomainImages, execution: Execution) -> Network:
    """Compute the features and outputs of a network for all images that measure it."""
    samples = images.measured
    extract = features_of(backbone, execution.batch_size, device=execution.device, images=len(samples))
    features = extract(samples, progress=execution.progress)
    with torch.no_grad():
        return Network(backbone, features, backbone.head.cpu()(torch.from_numpy(features)).numpy())


def _compare(run: Run, networks: dict[str, Network], images: DomainImages) -> Iterator[Candidate]:
    """Yield the validation of each network. The network of the run is the first."""
    decoding = OutputDecoding("classification", run.record.labels)
    parts = np.cumsum([len(images.target), len(images.labeled), len(images.val)])
    before = networks[SOURCE_ONLY].outputs[: parts[0]].argmax(axis=1)
    for name, network in networks.items():
        target, labeled, val, _ = np.split(network.outputs, parts)
        scores = softmax(target)
        yield Candidate(
            name=name,
            information=information(scores),
            diversity=diversity(scores),
            collapsed=diversity(scores) < COLLAPSED_BELOW,
            changed=float((target.argmax(axis=1) != before).mean()),
            source=evaluate(decoding, truth_of(images.val), val).accuracy if images.val else None,
            labeled=evaluate(decoding, truth_of(images.labeled), labeled).accuracy if images.labeled else None,
        )


def choose_candidate(candidates: Sequence[Candidate], method: Method) -> Candidate:
    """Return the network to write: that of ``method``, or with ``auto`` the one with the highest validation score.

    The score is the accuracy on labeled target images, if there are any, otherwise the information. A collapsed network is not chosen
    unless all are.
    """
    if method != "auto":
        return next(item for item in candidates if item.name == method)
    # Of equal networks, max returns the first, which is less adapted.
    return max(candidates, key=lambda item: (not item.collapsed, validation_score(item)))


def validation_score(item: Candidate) -> float:
    """Return the accuracy on labeled target images if there are any, otherwise the information."""
    return item.labeled.value if item.labeled else item.information


def find_alarms(chosen: Candidate, candidates: Sequence[Candidate], run: Run, *, measured: bool) -> tuple[str, ...]:
    """Return warnings about an adapted network, as sentences.

    Args:
        chosen: network of the new run.
        candidates: compared networks, the network of the run first.
        run: run that was adapted.
        measured: true if the network was measured on the validation and test images of the run.
    """
    alarms = []
    if chosen.collapsed:
        alarms.append(
            f"collapsed predictions: the network predicts few classes of the target images (diversity {chosen.diversity:.2f}, below "
            f"{COLLAPSED_BELOW:g}). Check that the target images have all classes, or use another --method."
        )
    if validation_score(chosen) < validation_score(candidates[0]):
        alarms.append(
            f"the validation score of {chosen.name} ({validation_score(chosen):.3f}) is below that of the network before the adaptation "
            f"({validation_score(candidates[0]):.3f}). Use --method auto."
        )
    if not measured:
        reason = "the run was cross-validated and has no validation images" if run.record.folds else "the images of the run were not read"
        alarms.append(
            f"the validation and test metrics are those before the adaptation, because {reason}. Measure the network on labeled images: "
            f"edgetl evaluate RUN LABELED."
        )
    if run.record.calibration is not None:
        alarms.append("the calibration of the scores is not kept, because it holds for the images of the run.")
    return tuple(alarms)


def _record(
    config: AdaptationConfig, unlabeled: Path, images: DomainImages, candidates: tuple[Candidate, ...], chosen: Candidate
) -> AdaptationRecord:
    contents = sorted(sample.content for sample in images.target)
    return AdaptationRecord(
        requested=config.method,
        chosen=chosen.name,
        selected_by="method" if config.method != "auto" else "labels" if images.labeled else "score",
        target=printable(unlabeled.absolute()),
        labels=printable(config.target_labels.absolute()) if config.target_labels else None,
        images=len(images.target),
        fingerprint=hashlib.sha256("\n".join(contents).encode()).hexdigest(),
        steps=_steps(images, config) if candidates[-1].name not in (SOURCE_ONLY, "adabn") else 0,
        candidates=candidates,
    )


def _write(folder: Path, run: Run, network: Network, images: DomainImages, call: Callable[[], dict[str, Any]]) -> None:
    """Write the run of the chosen network. ``call`` returns the record's fields about this call."""
    adapted = replace(network.backbone, parents=(*network.backbone.parents, run.as_parent()))
    decoding, seen = OutputDecoding("classification", run.record.labels), run.seen_images() | _seen(images)
    backbone = BackboneRecord.of(adapted).model_copy(update={"pretrained": run.record.backbone.pretrained})
    changes: dict[str, Any] = {"backbone": backbone, "decision_rule": decoding.decision_rule, "calibration": None}
    changes |= {"compared": (), "forgetting": None}

    def record(files: dict[str, str]) -> RunRecord:
        return run.record.model_copy(update={**changes, **call(), "files": files})

    if images.val:
        samples = (*images.val, *images.test)
        results = Results.of(decoding, truth_of(samples), network.outputs[-len(samples) :], validation=len(images.val))
        changes |= {"validation": results.validation, "test": results.test}
        write_run(folder, RunContents(adapted, run.splits(), seen, results), record)
        return
    write_model(folder, adapted, run.record.labels)
    for name in (SPLITS_NAME, *([OUT_OF_FOLD_NAME] if run.record.folds else [])):
        (folder / name).write_bytes(run.read(name))
    seen.write(folder)
    write_record(folder, record(hash_files(folder)))


def _seen(images: DomainImages) -> SeenImages:
    """Return the target images as images that trained or selected the network."""
    return SeenImages(prefixes(images.target), prefixes(images.labeled), perceptual_hashes((*images.target, *images.labeled)))
