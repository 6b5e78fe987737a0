"""Run of a promoted update: network, replay memory and record."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgetl.core.metrics import evaluate
from edgetl.core.tasks import DecisionRule, OutputDecoding
from edgetl.errors import ConfigError
from edgetl.train.artifacts.memory import FOLDER_NAME, Memory, Remembered, copy_images, join, measure_statistics, write_tensors
from edgetl.train.artifacts.record import BackboneRecord, RunRecord
from edgetl.train.artifacts.run import Run
from edgetl.train.artifacts.seen_images import SeenImages, perceptual_hashes, prefixes
from edgetl.train.artifacts.splits_record import SplitsRecord, record_splits
from edgetl.train.artifacts.writer import Results, RunContents, provenance, write_run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.update.options import UpdateConfig
from edgetl.train.config.update.result import MemoryKind, UpdateRecord
from edgetl.train.heads.modules import head_of
from edgetl.train.workflows.update.candidate import Candidate
from edgetl.train.workflows.update.head import PENALTY
from edgetl.train.workflows.update.recall import MOST_MEASURED, typical

# Validation images of each class that the run keeps, for later updates and for the accuracy gate of exports.
KEPT_VALIDATION = 50
REASON = "edgetl update fits the head"
UNCALIBRATED = "the scores are not calibrated, although those of the previous run are. Calibrate them: edgetl calibrate RUN."


def memory_kind(run: Run, config: UpdateConfig) -> MemoryKind:
    """Return the kind of the replay memory to write: that of ``config``, or that of the run.

    Raises:
        ConfigError: images are requested, but the run has only features.
    """
    has_images = run.record.update is None or run.record.update.memory == "images"
    if config.keep == "images" and not has_images:
        raise ConfigError(f"--keep images: {run.path} has features of its images only. Add --keep features, or update an earlier run.")
    return config.keep or ("images" if has_images else "features")


def write_update(folder: Path, run: Run, candidate: Candidate, config: UpdateConfig, *, started: float) -> None:
    """Write the run of a promoted update into ``folder``. ``started`` is the start of the update (``time.monotonic``).

    Raises:
        StorageError: the disk is full.
    """
    backbone, new, record = candidate.backbone, candidate.splits, run.record
    kind = memory_kind(run, config)
    memory = _new_memory(candidate, config)
    splits = _keep(folder, kind, memory, candidate)
    results = _evaluate(candidate, memory.val, shown=memory.val if kind == "images" else candidate.new.val)
    seen = run.seen_images() | SeenImages(prefixes(new.train), prefixes(new.val), perceptual_hashes((*new.train, *new.val)))
    options = {"backbone": str(run.path), "strategy": "probe", "augmented_views": 1, "val": config.val, "test": 0.0, "seed": config.seed}
    fitted = len(candidate.previous.train.labels) + len(new.train)
    write_run(
        folder,
        RunContents(backbone, splits, seen, results),
        lambda files: RunRecord(
            **provenance(folder.name, started),
            labels=new.folder.labels,
            config=TrainConfig.from_options(**options),
            given=tuple(options),
            backbone=BackboneRecord.of(backbone),
            head=head_of(backbone.model),
            preprocess=record.preprocess,
            plan=record.plan.model_copy(update={"strategy": "probe", "reason": REASON, "images": fitted, "steps": 0}),
            alarms=(UNCALIBRATED,) if record.calibration else (),
            head_penalty=PENALTY,
            forgetting=candidate.promotion.previous.forgetting,
            update=_record(record, candidate, config, kind),
            images={"train": fitted, "val": results.validation.accuracy.n, "test": 0},
            data_fingerprint=hashlib.sha256(f"{record.data_fingerprint} {new.folder.fingerprint()}".encode()).hexdigest(),
            notes=new.notes,
            validation=results.validation,
            test=None,
            files=files,
        ),
    )


def _record(previous: RunRecord, candidate: Candidate, config: UpdateConfig, kind: MemoryKind) -> UpdateRecord:
    folder, last = candidate.splits.folder, previous.update
    return UpdateRecord(
        model=last.model if last else previous.name,
        release=config.release or (last.release if last else 1) + 1,
        memory=kind,
        replayed=len(candidate.previous.train.labels),
        new_images=len(folder.samples),
        new_classes=folder.labels[len(previous.labels) :],
        promotion=candidate.promotion,
    )


def _new_memory(candidate: Candidate, config: UpdateConfig) -> Memory:
    """Return the memory of the new run: the most typical of the replayed and new images, validation images and statistics of each class."""
    previous, new, classes = candidate.previous, candidate.new, len(candidate.splits.folder.labels)
    rng = np.random.default_rng(config.seed)
    val = join(previous.val, new.val)
    order = rng.permutation(len(val.labels))
    kept = [order[val.labels[order] == label][:KEPT_VALIDATION] for label in np.unique(val.labels)]
    # The statistics of a known class with new images are those of both.
    drawn = previous.statistics.draw(np.minimum(previous.statistics.counts, MOST_MEASURED), rng)
    return Memory(
        typical(join(previous.train, new.train), config.replay_per_class),
        val.rows(np.concatenate(kept)),
        measure_statistics(join(drawn, replace(new.train, samples=())), classes),
    )


def _keep(folder: Path, kind: MemoryKind, memory: Memory, candidate: Candidate) -> SplitsRecord:
    """Write the replay memory, and return the splits of the run: the kept images, or the new images if only features are kept."""
    write_tensors(folder, memory, features=kind == "features")
    if kind == "features":
        return record_splits(candidate.splits)
    entries = copy_images(folder, memory)
    samples = (*memory.train.samples, *memory.val.samples)
    fingerprint = replace(candidate.splits.folder, samples=samples).fingerprint()
    return SplitsRecord(root=FOLDER_NAME, fingerprint=fingerprint, entries=entries, broken=(), conflicts=())


def _evaluate(candidate: Candidate, val: Remembered, *, shown: Remembered) -> Results:
    """Evaluate the updated head on the validation images ``val``. The table of predictions has the images ``shown``."""
    decoding = OutputDecoding("classification", candidate.splits.folder.labels, DecisionRule())
    head = candidate.backbone.head
    with torch.no_grad():
        outputs, predicted = (head(torch.from_numpy(images.features)).numpy() for images in (val, shown))
    return Results(decoding, evaluate(decoding, val.labels, outputs), None, shown.labels, predicted)
