"""Reported models: a run with its bundles, or a bundle alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgetl.core.bundle import Bundle
from edgetl.core.config import read_json
from edgetl.core.images.decode import load_image
from edgetl.core.lineage import Parent
from edgetl.core.results import Evaluation, Proportion
from edgetl.core.tasks import Task
from edgetl.data.predictions import PredictedFile
from edgetl.errors import ConfigError
from edgetl.report.images import thumbnail
from edgetl.runtime.evaluation import EvaluationReport

if TYPE_CHECKING:
    from edgetl.train.artifacts.record import RunRecord
    from edgetl.train.artifacts.splits_record import SplitsRecord

MOST_GOLDENS = 16


@dataclass(frozen=True)
class ShownImage:
    """Image in the report.

    Attributes:
        caption: lines below the image.
        jpeg: encoded image.
        saliency: encoded saliency map; none if it was not computed.
    """

    caption: tuple[str, ...]
    jpeg: bytes
    saliency: bytes | None = None


@dataclass(frozen=True)
class RunFacts:
    """Content of a run for the report.

    Attributes:
        record: run record.
        digest: SHA-256 of ``run.json``, to which a bundle refers.
        splits: images of the run.
        curves: metrics of each validation.
        predictions: predictions on the images of ``shown``; empty without ``predictions.csv``.
        wrong: wrong predictions among them, the worst first.
        gallery: images of the first of ``wrong``.
        samples: training images.
        missing: parts that the report lacks, each with the reason, as sentences.
    """

    record: RunRecord
    digest: str
    splits: SplitsRecord
    curves: tuple[dict[str, float], ...]
    predictions: tuple[PredictedFile, ...]
    wrong: tuple[PredictedFile, ...]
    gallery: tuple[ShownImage, ...]
    samples: tuple[ShownImage, ...]
    missing: tuple[str, ...]

    @property
    def shown(self) -> Evaluation:
        """Metrics on the test images, or on the validation images of a run without test images."""
        return self.record.test or self.record.validation

    @property
    def shown_split(self) -> str:
        """Name of the images of ``shown``."""
        return "test" if self.record.test else "cross-validated" if self.record.folds else "validation"


@dataclass(frozen=True)
class ReportedModel:
    """Model of the report: a run with its bundles, or a bundle alone. At least one of both exists.

    Attributes:
        run: content of the run; none for a bundle alone.
        bundles: bundles of the run, or the bundle alone.
        goldens: golden images of a bundle alone.
        evaluations: evaluations of the model with comparisons of groups.
    """

    run: RunFacts | None
    bundles: tuple[Bundle, ...] = ()
    goldens: tuple[ShownImage, ...] = field(default=())
    evaluations: tuple[EvaluationReport, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run, or of the bundle."""
        return self.run.record.name if self.run else self.bundles[0].manifest.name

    @property
    def kind(self) -> Literal["run", "bundle", "run and bundle"]:
        """Contents of the model."""
        return "bundle" if self.run is None else "run and bundle" if self.bundles else "run"

    @property
    def task(self) -> Task:
        """Task of the model."""
        return self.run.record.task if self.run else self.bundles[0].manifest.task

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the model."""
        return self.run.record.labels if self.run else self.bundles[0].manifest.labels

    @property
    def validation(self) -> Proportion | None:
        """Task metric of the trained model on the validation images; none for the bundle alone of an adapted run."""
        if self.run:
            return self.run.record.validation.score
        manifest = self.bundles[0].manifest
        return manifest.trained if manifest.target is None else None

    @property
    def folds(self) -> int:
        """Number of folds if ``validation`` is cross-validated, otherwise 0."""
        return self.run.record.folds if self.run else self.bundles[0].manifest.folds

    @property
    def license(self) -> str | None:
        """License of the weights; none if it is not stated."""
        return self.run.record.backbone.license if self.run else self.bundles[0].manifest.lineage.license

    @property
    def parents(self) -> Sequence[Parent]:
        """Origin of the weights, the oldest first."""
        return self.run.record.backbone.parents if self.run else self.bundles[0].manifest.lineage.parents

    @property
    def run_sha256(self) -> str:
        """SHA-256 of ``run.json`` of the run, or of the run that the bundle was exported from."""
        return self.run.digest if self.run else self.bundles[0].manifest.lineage.run_sha256

    @property
    def data_fingerprint(self) -> str:
        """SHA-256 over the content and labels of all images of the training."""
        return self.run.record.data_fingerprint if self.run else self.bundles[0].manifest.lineage.data_fingerprint

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts that the report lacks, each with the reason, as sentences."""
        if self.run is not None:
            exported = () if self.bundles else (f"Exported variants: add a bundle of this run (edgetl report {self.name} BUNDLE).",)
            return (*self.run.missing, *exported)
        return (
            "Images, training curves, results of each class, calibration and wrong predictions: a bundle does not contain them. "
            "Add its run (edgetl report RUN BUNDLE).",
        )


def group_models(runs: Sequence[RunFacts], bundles: Sequence[Bundle]) -> tuple[ReportedModel, ...]:
    """Return one model for each run with the bundles that were exported from it, and one for each other bundle, in the given order."""
    digests = {run.digest for run in runs}
    models = [ReportedModel(run, tuple(bundle for bundle in bundles if bundle.manifest.lineage.run_sha256 == run.digest)) for run in runs]
    alone = [bundle for bundle in bundles if bundle.manifest.lineage.run_sha256 not in digests]
    return (*models, *(ReportedModel(None, (bundle,), golden_images(bundle)) for bundle in alone))


def with_evaluations(models: Sequence[ReportedModel], files: Sequence[Path]) -> tuple[ReportedModel, ...]:
    """Return the models with the evaluations that ``edgetl evaluate --by COLUMNS --json`` printed into ``files``.

    Raises:
        ConfigError: a file is not such an output, or is of another model.
    """
    found = list(models)
    for file in files:
        evaluation = read_json(file, EvaluationReport, ConfigError)
        if not evaluation.groups:
            raise ConfigError(f"--evaluation {file} has no comparison of groups. Add --groups FILE.csv --by COLUMNS to `edgetl evaluate`.")
        places = [index for index, model in enumerate(found) if model.run_sha256 == evaluation.run_sha256]
        if not places:
            names = ", ".join(model.name for model in models)
            raise ConfigError(
                f"--evaluation {file} is the evaluation of another model, {evaluation.model}, and not of {names}. Add its folder, or "
                f"evaluate {names}."
            )
        for index in places:
            found[index] = replace(found[index], evaluations=(*found[index].evaluations, evaluation))
    return tuple(found)


def golden_images(bundle: Bundle) -> tuple[ShownImage, ...]:
    """Return the golden images of a bundle, each with its label and the class with the highest score of the first variant.

    Raises:
        IntegrityError: an image differs from the manifest.
        ImageError: an image cannot be decoded.
    """
    manifest, images = bundle.manifest, []
    known = "trained model" if manifest.score_name == "agreement" else "label"
    for golden in manifest.golden[:MOST_GOLDENS]:
        image = load_image(bundle.read(golden.image), intensity=manifest.preprocess.intensity)
        scores = golden.scores[manifest.variants[0].name]
        best = max(range(len(scores)), key=scores.__getitem__)
        images.append(ShownImage((f"{known} {golden.label}", f"{manifest.labels[best]} {scores[best]:.3f}"), thumbnail(image)))
    return tuple(images)
