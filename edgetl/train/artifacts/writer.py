"""Writer of run folders: weights, record, splits, metrics and plots, with the same files for every run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from edgetl.core.bundle import RUN_RECORD_NAME
from edgetl.core.metrics import evaluate
from edgetl.core.results import Evaluation
from edgetl.core.system.host import fingerprint, versions
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Part
from edgetl.data.predictions import PREDICTIONS_NAME, LabeledFile, predicted_files, predictions_csv
from edgetl.train.artifacts.plots import class_table, draw_curves, draw_predictions
from edgetl.train.artifacts.record import (
    FISHER_NAME,
    METRICS_NAME,
    OUT_OF_FOLD_NAME,
    SPLITS_NAME,
    TIMM_CONFIG_NAME,
    WEIGHTS_NAME,
    RunRecord,
)
from edgetl.train.artifacts.seen_images import SeenImages
from edgetl.train.artifacts.splits_record import SplitsRecord
from edgetl.train.networks.backbone import Backbone
from edgetl.train.networks.pruned import PRUNED


@dataclass(frozen=True)
class Results:
    """Scores and outputs of a network on validation and test images.

    Attributes:
        decoding: decoding of the outputs.
        validation: scores on the validation images.
        test: scores on the test images. ``None`` without test images.
        truth: true classes, labels or values of the validation images, then of the test images.
        outputs: float32 ``[n, outputs]`` for the same images.
    """

    decoding: OutputDecoding
    validation: Evaluation
    test: Evaluation | None
    truth: NDArray[Any]
    outputs: NDArray[np.float32]

    @classmethod
    def of(cls, decoding: OutputDecoding, truth: NDArray[Any], outputs: NDArray[np.float32], *, validation: int) -> Results:
        """Evaluate ``outputs``. The first ``validation`` rows belong to validation images, the others to test images."""
        test = evaluate(decoding, truth[validation:], outputs[validation:]) if len(truth) > validation else None
        return cls(decoding, evaluate(decoding, truth[:validation], outputs[:validation]), test, truth, outputs)


@dataclass(frozen=True)
class RunContents:
    """Contents of a run folder, without ``run.json``.

    Attributes:
        backbone: the trained network.
        splits: images of the run.
        seen: images that trained or selected the network or an ancestor.
        results: scores and outputs.
        rows: metrics of each validation during the training.
        fisher: Fisher information by weight name, for elastic weight consolidation (EWC) in the next run of a chain.
        cross_validated: true if the validation outputs of ``results`` are the out-of-fold outputs for the training images.
    """

    backbone: Backbone
    splits: SplitsRecord
    seen: SeenImages
    results: Results
    rows: Sequence[Mapping[str, float]] = ()
    fisher: Mapping[str, torch.Tensor] = field(default_factory=dict)
    cross_validated: bool = False


def write_run(folder: Path, contents: RunContents, record: Callable[[dict[str, str]], RunRecord]) -> None:
    """Write all files of a run into ``folder``, ``run.json`` last.

    Args:
        folder: existing folder.
        contents: network, images and results to write.
        record: function that returns the run record for the SHA-256 of each other file, by name.
    """
    results = contents.results
    write_model(folder, contents.backbone, results.decoding.labels)
    (folder / SPLITS_NAME).write_text(contents.splits.model_dump_json(indent=1), "utf-8", newline="\n")
    contents.seen.write(folder)
    _write_tensors(folder, contents)
    last = {"val_accuracy": results.validation.accuracy.value, "val_macro_f1": results.validation.macro_f1}
    (folder / METRICS_NAME).write_text("".join(json.dumps(row) + "\n" for row in [*contents.rows, last]), "utf-8", newline="\n")
    if contents.rows:
        draw_curves(contents.rows, folder / "curves.png")
    validated = "cross-validation" if contents.cross_validated else "validation"
    shown, name = (results.test, "test") if results.test else (results.validation, validated)
    rows = slice(-shown.accuracy.n, None)  # the test images are the last
    draw_predictions(results.decoding, shown, results.truth[rows], results.outputs[rows], name=name, folder=folder)
    if shown.classes:
        (folder / "classes.csv").write_text(class_table(shown), "utf-8", newline="\n")
    write_predictions(folder, contents.splits, results, "train" if contents.cross_validated else "val")
    write_record(folder, record(hash_files(folder)))


def _write_tensors(folder: Path, contents: RunContents) -> None:
    """Write the Fisher information and the out-of-fold outputs, if there are any."""
    results = contents.results
    if contents.fisher:
        tensors = {name: value.contiguous() for name, value in contents.fisher.items()}
        (folder / FISHER_NAME).write_bytes(safetensors.torch.save(tensors))
    if contents.cross_validated:
        outputs = torch.from_numpy(results.outputs[: results.validation.accuracy.n]).contiguous()
        (folder / OUT_OF_FOLD_NAME).write_bytes(safetensors.torch.save({"outputs": outputs}))


def write_predictions(folder: Path, splits: SplitsRecord, results: Results, validated: Part) -> None:
    """Write the table of predictions on validation and test images, ``predictions.csv``, in ``folder``.

    With cross-validation, ``validated`` is ``train``, and the predictions on the training images are out-of-fold. Otherwise training images
    are left out: their predictions would need another pass over the images, and are better than those on new images.
    """
    entries = [entry for part in (validated, "test") for entry in splits.entries if entry.part == part]
    files = [LabeledFile(entry.path, entry.part, entry.label, entry.targets) for entry in entries]
    text = predictions_csv(predicted_files(results.decoding, files, results.outputs))
    (folder / PREDICTIONS_NAME).write_text(text, "utf-8", newline="\n")


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``record`` to ``run.json`` in ``folder``."""
    (folder / RUN_RECORD_NAME).write_text(record.model_dump_json(indent=1), "utf-8", newline="\n")


def provenance(name: str, started: float) -> dict[str, Any]:
    """Return record fields that describe the call: name, time, seconds since ``started`` (``time.monotonic``), versions and host."""
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(),
        "host": fingerprint(),
    }


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file in ``folder``, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()}


def write_model(folder: Path, backbone: Backbone, labels: tuple[str, ...]) -> None:
    """Write the weights, and for timm architectures ``config.json``, with which timm loads the folder as ``local-dir:``.

    Progressive columns, heads other than the architecture's own, and pruned networks get no ``config.json``, because timm cannot build
    them.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    (folder / WEIGHTS_NAME).write_bytes(safetensors.torch.save(state, {"format": "pt"}))
    if hasattr(backbone.model, "pretrained_cfg") and PRUNED not in backbone.model_args:
        (folder / TIMM_CONFIG_NAME).write_text(json.dumps(published_config(backbone, labels), indent=2) + "\n", "utf-8", newline="\n")


def published_config(backbone: Backbone, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return timm's ``config.json`` for the weights of ``backbone``. Without ``labels`` they have no head."""
    spec = backbone.spec
    old = dict(getattr(backbone.model, "pretrained_cfg", {}))
    kept = {key: old[key] for key in ("pool_size", "first_conv", "classifier", "fixed_input_size") if key in old}
    if backbone.license:
        kept["license"] = backbone.license
    return {
        "architecture": backbone.architecture,
        "num_classes": len(labels),
        "num_features": backbone.head.in_features,
        "label_names": list(labels),
        "model_args": backbone.model_args,
        "pretrained_cfg": {
            **kept,
            "tag": "edgetl",
            "custom_load": False,
            "input_size": [3, *spec.input_size],
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(labels),
        },
    }
