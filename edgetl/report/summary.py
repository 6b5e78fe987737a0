"""Summary of a report: the object that ``edgetl report --json`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.group_metrics import GroupTable
from edgetl.core.results import Evaluation, Proportion
from edgetl.core.tasks import Task
from edgetl.report.models import ReportedModel
from edgetl.report.sections.variants import pareto_front


class VariantSummary(StrictModel):
    """Variant of a bundle.

    Attributes:
        bundle: name of the bundle.
        name: name of the variant.
        size_bytes: total size of its files, bytes.
        median_ms: median latency of one image on one thread of the exporting host, ms.
        validation: task metric on the validation images.
        test: the same on the test images; none without test images.
        pareto: true if no other variant of the bundle is at least as good in metric, latency and size, and better in one.
    """

    bundle: str
    name: str
    size_bytes: int
    median_ms: float
    validation: Proportion
    test: Proportion | None
    pareto: bool


class RejectedSummary(StrictModel):
    """Rejected variant: the name of its bundle, its own name, and the reason of the rejection."""

    bundle: str
    name: str
    reason: str


class ModelSummary(StrictModel):
    """Model of a report.

    Attributes:
        name: name of the run, or of the bundle.
        kind: contents: ``run``, ``bundle``, or ``run and bundle``.
        task: task of the model.
        labels: labels of the model.
        license: license of the weights; none if it is not stated.
        validation: metrics of the trained model on the validation images; none without a run.
        test: metrics on the test images, as in ``edgetl evaluate --json``; none without a run or test images.
        wrong: number of wrong predictions on the test images (validation images of a run without them); none without predictions.
        shown: number of wrong predictions with their image in the report.
        groups: comparisons of groups, as in ``edgetl evaluate --by COLUMNS --json``.
        variants: exported variants.
        rejected: variants that were requested and are not in the bundle.
        missing: parts that the report lacks, each with the reason.
    """

    name: str
    kind: Literal["run", "bundle", "run and bundle"]
    task: Task
    labels: tuple[str, ...]
    license: str | None
    validation: Evaluation | None
    test: Evaluation | None
    wrong: int | None
    shown: int
    groups: tuple[GroupTable, ...]
    variants: tuple[VariantSummary, ...]
    rejected: tuple[RejectedSummary, ...]
    missing: tuple[str, ...]


class ReportSummary(StrictModel):
    """Report that was written.

    Attributes:
        report: path of the HTML file.
        size_bytes: its size, bytes.
        left_out: number of images that were left out, because the file would exceed 5 MB.
        models: models of the report.
    """

    report: str
    size_bytes: int
    left_out: int
    models: tuple[ModelSummary, ...]


def summarize(models: Sequence[ReportedModel]) -> tuple[ModelSummary, ...]:
    """Return the summary of each model."""
    return tuple(_summarize(model) for model in models)


def _summarize(model: ReportedModel) -> ModelSummary:
    run, manifests = model.run, [bundle.manifest for bundle in model.bundles]
    variants = [
        VariantSummary(
            bundle=manifest.name,
            name=item.name,
            size_bytes=item.size_bytes,
            median_ms=item.median_ms,
            validation=item.validation,
            test=item.test,
            pareto=item.name in pareto_front(manifest.variants),
        )
        for manifest in manifests
        for item in manifest.variants
    ]
    rejected = [RejectedSummary(bundle=item.name, name=row.name, reason=row.reason) for item in manifests for row in item.rejected]
    return ModelSummary(
        name=model.name,
        kind=model.kind,
        task=model.task,
        labels=model.labels,
        license=model.license,
        validation=run.record.validation if run else None,
        test=run.record.test if run else None,
        wrong=len(run.wrong) if run and run.predictions else None,
        shown=len(run.gallery) if run else 0,
        groups=tuple(table for evaluation in model.evaluations for table in evaluation.groups),
        variants=tuple(variants),
        rejected=tuple(rejected),
        missing=model.missing,
    )
