"""Evaluation of a bundle's variant on labeled images that training and selection have not used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.core.bundle import Bundle, hash_prefix, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable
from edgetl.core.group_metrics import Compared, GroupTable, Outcomes, compare_columns, outcomes_of
from edgetl.core.metrics import evaluate
from edgetl.core.options import METAVAR, OPTION
from edgetl.core.output.folders import write_file
from edgetl.core.preprocess import InputForm, PreprocessSpec
from edgetl.core.progress import Progress, silent
from edgetl.core.results import Evaluation
from edgetl.core.tasks import CLASS_TASKS, OutputDecoding
from edgetl.data.anomalies.layout import find_normal
from edgetl.data.folder import ImageFolder, Sample, scan, scan_anomalies
from edgetl.data.loading import batches, pixel_batches, truth_of
from edgetl.data.predictions import LabeledFile, predicted_files, predictions_csv
from edgetl.data.scan_notes import ScanNote
from edgetl.data.selection import Selection
from edgetl.data.shards.names import refuse_shards
from edgetl.data.table.attributes import read_attributes
from edgetl.data.table.rows import Table
from edgetl.data.table.scan import scan_table
from edgetl.errors import ConfigError, DataError
from edgetl.runtime.engine import installed
from edgetl.runtime.predictor import Predictor, load


class EvaluationConfig(StrictModel):
    """Configuration of an evaluation."""

    labels: Path | None = Field(
        default=None,
        description="Label table (CSV) instead of class folders, with the column `file` and the label columns of the training.",
    )
    variant: str | None = Field(
        default=None, description="Variant of a bundle, such as openvino-int8. Default: the first with an installed engine."
    )
    every_image: bool = Field(
        default=False, description="Include images of the training and validation splits.", json_schema_extra={OPTION: "all"}
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="Glob pattern of files to use that the scan leaves out (masks, thumbnails, hidden files). May be repeated.",
        json_schema_extra={METAVAR: "PATTERN"},
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="Glob pattern of files or folders to leave out, such as '*_mask.png'. May be repeated.",
        json_schema_extra={METAVAR: "PATTERN"},
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads per inference. Default: as in the contract of the bundle, or all cores."
    )
    save: Path | None = Field(
        default=None,
        description="Table to write (CSV): file, split (seen or unseen), label, prediction and score of each evaluated image.",
        json_schema_extra={METAVAR: "FILE"},
    )
    groups: Path | None = Field(
        default=None,
        description="Table (CSV) with a column `file` and columns that define groups of images, such as age. Default: the table of "
        "--labels.",
        json_schema_extra={METAVAR: "FILE"},
    )
    by: str | None = Field(
        default=None,
        description="Columns of --groups, separated by commas, such as age,gender. Compares the accuracy of the groups for every variant "
        "of a bundle, or one with --variant. age:gender compares the combinations of two columns.",
        json_schema_extra={METAVAR: "COLUMNS"},
    )
    positive: str | None = Field(
        default=None,
        description="Class or label whose true-positive and false-positive rates (TPR, FPR) the table of --by shows. Default: the second "
        "of two classes.",
        json_schema_extra={METAVAR: "LABEL"},
    )
    bundle: Path | None = Field(
        default=None,
        description="Bundle that was exported from the run. --by compares the groups for its variants, too.",
        json_schema_extra={METAVAR: "PATH"},
    )


class EvaluationReport(StrictModel):
    """Result of an evaluation.

    Attributes:
        model: folder of the run or bundle.
        variant: variant of the bundle. None for a run.
        run_sha256: SHA-256 of ``run.json`` of the run, or of the run that the bundle was exported from.
        left_out: number of images left out because the model was trained or selected on them.
        seen: number of evaluated images that the model was trained or selected on (``every_image``). They make the metrics optimistic.
        broken: number of images left out because they cannot be decoded.
        result: metrics.
        notes: notes of the scan about files that were left out or read in an unusual way.
        groups: comparison of groups for each column of ``EvaluationConfig.by``.
        not_compared: models that ``groups`` does not have, each with the reason.
    """

    model: str
    variant: str | None
    run_sha256: str
    left_out: int
    seen: int = 0
    broken: int
    result: Evaluation
    notes: tuple[ScanNote, ...] = ()
    groups: tuple[GroupTable, ...] = ()
    not_compared: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluatedModel:
    """Model of an evaluation.

    Attributes:
        path: folder of the run or bundle.
        variant: variant of the bundle. None for a run.
        run_sha256: SHA-256 of ``run.json``, as in ``EvaluationReport``.
        decoding: output decoding.
    """

    path: Path
    variant: str | None
    run_sha256: str
    decoding: OutputDecoding


@dataclass(frozen=True)
class EvaluatedImages:
    """Images of an evaluation.

    Attributes:
        folder: scanned folder.
        samples: images of the folder to evaluate.
        seen: hash prefixes of the images on which the model was trained or selected.
    """

    folder: ImageFolder
    samples: tuple[Sample, ...]
    seen: frozenset[int]

    def was_seen(self, sample: Sample) -> bool:
        """Return true if the model was trained or selected on an image."""
        return hash_prefix(sample.content) in self.seen


def evaluate_bundle(
    path: Path | Bundle, data: Path, config: EvaluationConfig | None = None, *, progress: Progress = silent
) -> EvaluationReport:
    """Evaluate one variant of a bundle on labeled images. With ``config.by``, compare groups of images for every variant.

    Args:
        path: folder of the bundle, or an opened bundle.
        data: folder with a subfolder for each label of the bundle, or with the images that ``config.labels`` lists.
        config: label table, variant, selection of images, groups, and threads.
        progress: called after each batch.

    Returns:
        the metrics, and the numbers of images that were left out.

    Raises:
        ConfigError: ``config.labels`` is missing, or its columns do not match the model; or a column of ``config.by`` is missing.
        DataError: the folder has other classes, or the model has seen all images.
        StorageError: ``config.save`` cannot be written.
    """
    config, bundle = config or EvaluationConfig(), path if isinstance(path, Bundle) else open_bundle(path)
    if config.bundle is not None:
        raise ConfigError(f"{bundle.path} is a bundle. --bundle is for the evaluation of a run. Remove it.")
    predictor = load(bundle, variant=config.variant, threads=config.threads)
    images = images_to_evaluate(data, config, predictor.decoding, _seen_images(bundle, predictor), progress=progress)
    attributes = attributes_of(images, config)
    outputs = compute_outputs(predictor.logits, images.samples, predictor.spec, form=predictor.input_form, progress=progress)
    name = predictor.variant.name if predictor.variant else None
    model = EvaluatedModel(bundle.path, name, bundle.manifest.lineage.run_sha256, predictor.decoding)
    found = report(model, images, outputs, save=config.save)
    if not attributes:
        return found
    models = [outcomes_of(str(name), predictor.decoding, truth_of(images.samples), outputs)]
    missing: list[str] = []
    if config.variant is None:
        others, missing = variant_outcomes(bundle, images, config, without=name, progress=progress)
        models += others
    reference = next((variant.name for variant in bundle.manifest.variants if variant.precision == "fp32"), None)
    return with_groups(found, attributes, Compared(tuple(models), main=str(name), reference=reference), missing)


def _seen_images(bundle: Bundle, predictor: Predictor) -> frozenset[int]:
    """Return the hash prefixes of the images of the training and of the gallery."""
    added = predictor.gallery.gallery.images if predictor.gallery else ()
    return bundle.seen_images() | {hash_prefix(image.content) for image in added}


def attributes_of(images: EvaluatedImages, config: EvaluationConfig) -> dict[str, tuple[str, ...]]:
    """Return the values of the images in each column of ``config.by``. Empty without ``config.by``.

    Raises:
        ConfigError: there is no table, it does not have a column, or the model does not have the label ``config.positive``.
        DataError: the table cannot be read, or has none of the images.
    """
    if config.by is None:
        if unused := [name for name in ("groups", "positive", "bundle") if getattr(config, name) is not None]:
            raise ConfigError(f"--{unused[0]} needs --by COLUMN, the columns whose values are compared.")
        return {}
    labels = images.folder.labels
    if config.positive is not None and config.positive not in labels:
        raise ConfigError(f"--positive {config.positive}: the model has no such label. It has {', '.join(labels[:10])}.")
    table, option = (config.groups, "--groups") if config.groups else (config.labels, "--labels")
    if table is None:
        raise ConfigError(f"--by {config.by} needs --groups FILE.csv, a table with the columns `file` and {config.by}.")
    return read_attributes(table, config.by, images.folder.root, images.samples, option=option)


def variant_outcomes(
    bundle: Bundle, images: EvaluatedImages, config: EvaluationConfig, *, without: str | None = None, progress: Progress = silent
) -> tuple[list[Outcomes], list[str]]:
    """Return the predictions of the variants of a bundle, and a sentence for each variant whose engine is not installed.

    ``without`` is a variant to leave out.
    """
    truth, found, missing = truth_of(images.samples), [], []
    for variant in bundle.manifest.variants:
        if not installed(variant.format):
            missing.append(f"{variant.name}: its inference engine is not installed")
        elif variant.name != without:
            predictor = load(bundle, variant=variant.name, threads=config.threads)
            outputs = compute_outputs(predictor.logits, images.samples, predictor.spec, form=predictor.input_form, progress=progress)
            found.append(outcomes_of(variant.name, predictor.decoding, truth, outputs))
    return found, missing


def with_groups(
    found: EvaluationReport, attributes: Mapping[str, Sequence[str]], compared: Compared, missing: Sequence[str]
) -> EvaluationReport:
    """Return the report with a comparison of groups for each column. ``missing`` names models that cannot be compared, with reasons."""
    return found.model_copy(update={"groups": compare_columns(attributes, compared), "not_compared": tuple(missing)})


def images_to_evaluate(
    data: Path, config: EvaluationConfig, decoding: OutputDecoding, seen: frozenset[int], *, progress: Progress = silent
) -> EvaluatedImages:
    """Scan ``data``, and return its readable images that are not in ``seen``. ``config.every_image`` returns all images.

    Raises:
        ConfigError: ``config.labels`` is missing, or its columns do not match the model.
        DataError: the folder has other classes, or the model has seen all images; or ``data`` are shards.
    """
    refuse_shards(data)
    labels, selection = config.labels, Selection(config.include, config.exclude)
    if labels is None and decoding.task not in CLASS_TASKS:
        wanted = ", ".join(("file", *decoding.labels[:5]))
        raise ConfigError(f"this is a {decoding.task} model. Set the labels of the images with --labels FILE.csv (columns {wanted}).")
    if labels is not None and selection.include:
        raise ConfigError("--include cannot be combined with --labels: the table lists the files. Add rows to the table instead.")
    if labels is None and decoding.task == "anomaly":
        folder = scan_anomalies(data, find_normal, selection=selection, progress=progress)
    elif labels is None:
        folder = scan(data, known_labels=decoding.labels, selection=selection, progress=progress)
    elif decoding.task in CLASS_TASKS:
        folder = scan_table(
            data, Table(labels, "classification", classes=decoding.labels, selection=selection), known=True, progress=progress
        )
    else:
        folder = scan_table(data, Table(labels, decoding.task, decoding.labels, selection=selection), known=True, progress=progress)
    samples = [sample for sample in folder.samples if config.every_image or hash_prefix(sample.content) not in seen]
    if not samples:
        raise DataError(
            f"the model was trained or selected on all {len(folder.samples)} images of {data}. "
            f"Use other images, or include these with --all."
        )
    return EvaluatedImages(folder, tuple(samples), seen)


def compute_outputs(
    logits: Callable[[Any], NDArray[np.float32]],
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    *,
    form: InputForm = "float",
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """Return the outputs float32 ``[n, labels]`` of ``logits``, a function from batches (in the given form, see ``to_batch``)."""
    outputs: list[NDArray[np.float32]] = []
    done = 0
    for batch in batches(samples, spec) if form == "float" else pixel_batches(samples, spec):
        outputs.append(logits(batch))
        done += len(batch)
        progress("evaluating", done, len(samples))
    return np.concatenate(outputs)


def report(model: EvaluatedModel, images: EvaluatedImages, outputs: NDArray[np.float32], *, save: Path | None = None) -> EvaluationReport:
    """Return the report for the outputs float32 ``[n, labels]``, and write the table of predictions to ``save``.

    Raises:
        StorageError: ``save`` cannot be written.
    """
    folder, samples = images.folder, images.samples
    if save is not None:
        files = [
            LabeledFile(
                printable(sample.path.relative_to(folder.root)),
                "seen" if images.was_seen(sample) else "unseen",
                sample.label,
                sample.targets,
            )
            for sample in samples
        ]
        write_file(save, predictions_csv(predicted_files(model.decoding, files, outputs)).encode())
    return EvaluationReport(
        model=printable(model.path),
        variant=model.variant,
        run_sha256=model.run_sha256,
        left_out=len(folder.samples) - len(samples),
        seen=sum(map(images.was_seen, samples)),
        broken=len(folder.broken),
        result=evaluate(model.decoding, truth_of(samples), outputs),
        notes=folder.notes,
    )
