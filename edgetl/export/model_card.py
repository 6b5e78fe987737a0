"""Model card of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from edgetl.core.contract import Outcome
from edgetl.core.manifest import Manifest, describe_parent
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import Evaluation, Proportion
from edgetl.core.tasks import SCORE_NAMES
from edgetl.data.groups import describe_grouping
from edgetl.train.artifacts.record import RunRecord


def write_card(manifest: Manifest, record: RunRecord) -> str:
    """Model card as Markdown."""
    task, *facts = run_lines(record, manifest.preprocess, manifest.trained)
    pixels = any(variant.input_form == "uint8" for variant in manifest.variants)
    calibration = manifest.calibration
    lines = [
        f"# {manifest.name}",
        "",
        task,
        "",
        *facts,
        *(["- Files take pixels: uint8 [batch, height, width, 3], RGB, resized and cropped, and normalize them"] if pixels else []),
        f"- Calibration: {f'{calibration.n} training images' if calibration else 'none (no int8 variant)'}",
        "",
        "| variant | size | validation | test | agreement | confident agreement | 1 image, 1 thread | how |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in manifest.variants:
        agreement = variant.agreement
        how = variant.attempts[-1].method if variant.attempts else ""
        lines.append(
            f"| {variant.name} | {variant.size_bytes / 1e6:.2f} MB | {_share(variant.validation)} | "
            f"{_share(variant.test) if variant.test else 'none'} | {agreement.top1_agreement:.3f} | {agreement.confident_agreement:.3f} | "
            f"{variant.median_ms:.1f} ms{' (busy host)' if variant.load else ''} | {how} |"
        )
    if record.backbone.parents:
        lines += ["", "Made from, the oldest first:", ""]
        lines += [f"- {describe_parent(parent)}" for parent in record.backbone.parents]
    lines += [f"\nNot in the bundle: {item.name}: {item.reason}." for item in manifest.rejected]
    lines += _attempted(manifest.outcomes)
    of = "Intervals are Wilson's, 95 %." if record.task in ("classification", "ordinal") else "Intervals are by bootstrap, 95 %."
    lines += ["", f"{of} Latency is of the machine that exported; measure yours with `edgetl bench`.", ""]
    return "\n".join(lines)


def _attempted(outcomes: Sequence[Outcome]) -> list[str]:
    """A Markdown table of all attempted variants of an export under a contract."""
    if not outcomes:
        return []
    lines = ["", "| attempted variant | input | threads | 90th percentile | result |", "|---|---|---|---|---|"]
    for row in outcomes:
        offer = row.offer
        time = f"{offer.threads} | {offer.latency_ms:.2f} ms{' (busy host)' if offer.busy else ''}" if offer else "|"
        lines.append(f"| {row.variant} | {row.side} px | {time} | {row.title}{': ' if row.reason else ''}{row.reason} |")
    return lines


def run_lines(record: RunRecord, spec: PreprocessSpec, trained: Proportion) -> list[str]:
    """Task and labels in a sentence, then a Markdown list about the training; ``trained`` is the figure of the model with ``spec``."""
    backbone = record.backbone
    return [
        _task(record),
        f"- Backbone: {backbone.architecture} ({'pretrained' if backbone.pretrained else 'random weights'}), "
        f"license of the weights: {backbone.license or 'not stated'}",
        f"- Strategy: {record.plan.strategy}{_head(record)}, seed {record.config.run.seed}, trained in {record.seconds:.0f} s",
        f"- Images: {record.images['train']} train, {record.images['val']} validation, {record.images['test']} test",
        f"- Groups: {describe_grouping(record.grouping)}",
        f"- Input: {spec.input_size[0]} x {spec.input_size[1]} RGB, {spec.crop_mode} crop, "
        f"{spec.interpolation}, {spec.resize} resize{_other_size(record, spec)}",
        *(
            [f"- Intensity: {spec.intensity.describe()}; {wide} training images have more than 8 bits"]
            if (wide := record.high_bit_images)
            else []
        ),
        f"- Trained model on the validation images: {_figure(trained, record)}",
        f"- Trained model on the test images: {_figure(record.test.score, record) if record.test else 'no test images'}",
        *(_details(record.test) if record.test else []),
    ]


def _other_size(record: RunRecord, spec: PreprocessSpec) -> str:
    trained = record.preprocess.input_size
    return "" if spec.input_size == trained else f" (trained at {trained[0]} x {trained[1]})"


def _head(record: RunRecord) -> str:
    return "" if record.head.plain else f" with head {record.head.describe()}"


def _task(record: RunRecord) -> str:
    """Task and labels, in a sentence."""
    labels = f"{', '.join(record.labels[:30])}{' …' if len(record.labels) > 30 else ''}"
    match record.task:
        case "classification":
            return f"Image classification, {len(record.labels)} classes: {labels}."
        case "multi-label":
            pairs = zip(record.labels[:30], record.decision_rule.thresholds, strict=False)
            limits = ", ".join(f"{label} {threshold:.3f}" for label, threshold in pairs)
            return f"Any of {len(record.labels)} labels: {labels}. Thresholds, chosen on validation images: {limits}."
        case "regression":
            return f"One number: {labels}. A prediction within {record.decision_rule.tolerance:.4g} counts as right."
        case "ordinal":
            return f"A grade from {record.decoding.level_names[0]} to {record.decoding.level_names[-1]}: {labels}."
        case _:
            assert_never(record.task)


def _figure(value: Proportion, record: RunRecord) -> str:
    name = "" if record.task == "classification" else f"{SCORE_NAMES[record.task]} "
    return f"{name}{_share(value)}"


def _details(test: Evaluation) -> list[str]:
    """Further figures on the test images, where there are some."""
    if test.multi_label is not None:
        return [
            f"- Of the test images, every label is right on {_share(test.accuracy)}; right decisions {test.multi_label.label_accuracy:.3f}"
        ]
    if (values := test.regression) is not None:
        kappa = "" if values.kappa is None else f", quadratic-weighted kappa {values.kappa:.3f}"
        return [f"- On the test images: MAE {values.mae:.4g}, RMSE {values.rmse:.4g}, R² {values.r2.value:.3f}{kappa}"]
    return []


def _share(value: Proportion) -> str:
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f}, n = {value.n})"
