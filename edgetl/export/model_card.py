"""Model card of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from edgetl.core.contract import ContractRecord, Outcome
from edgetl.core.lineage import describe_parent
from edgetl.core.manifest import Manifest, Precision, Variant
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.reference import LEAST_IMAGES
from edgetl.core.results import Evaluation, Proportion, validation_images
from edgetl.core.tasks import SCORE_NAMES
from edgetl.data.groups import describe_grouping
from edgetl.train.artifacts.record import RunRecord

# Quantization of a variant without a quantization search.
_METHODS: dict[Precision, str] = {"fp32": "none", "fp16": "none (half precision)", "int8-weights": "8-bit weights only", "int8": ""}

_CROSS_VALIDATED = (
    "- Validation: cross-validated ({} folds). Validation figures are out-of-fold figures of the training images. The head of the bundle "
    "is fitted on all of them."
)
_ADAPTED = (
    "- Domain adaptation: {0.chosen}, to {0.images} unlabeled images of another domain, chosen by {0.chosen_by}. The validation and test "
    "images are of the domain of the training"
)


def write_card(manifest: Manifest, record: RunRecord, *, signed_by: str | None = None) -> str:
    """Return the model card of a bundle as Markdown. ``signed_by`` is the fingerprint of the key that signs the bundle."""
    task, *facts = _facts(manifest, record)
    pixels = any(variant.input_form == "uint8" for variant in manifest.variants)
    calibration = manifest.calibration
    lines = [
        f"# {manifest.name}",
        "",
        task,
        "",
        *facts,
        *(["- Input of the files: uint8 [batch, height, width, 3], RGB, resized and cropped. The files normalize it."] if pixels else []),
        f"- Calibration of int8: {calibration.describe(manifest.task) if calibration else 'none, because no int8 variant was requested'}",
        f"- Monitoring reference: {_reference(manifest)}",
        *([f"- Signed by the key with the fingerprint (SHA-256) {signed_by}"] if signed_by else []),
        "",
        "## Variants",
        "",
        f"| variant | size | {_score_column(manifest)} | test | agreement | confident agreement | network latency | quantization |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in manifest.variants:
        agreement = variant.agreement
        method = variant.attempts[-1].method if variant.attempts else _METHODS[variant.precision]
        lines.append(
            f"| {variant.name} | {variant.size_bytes / 1e6:.2f} MB | {_score_of(manifest, variant)} | "
            f"{_with_interval(variant.test) if variant.test else 'none'} | {agreement.top1_agreement:.3f} | "
            f"{agreement.confident_agreement:.3f} | {variant.median_ms:.1f} ms{' (busy host)' if variant.load else ''} | {method} |"
        )
    lines += ["", *_columns(manifest, record), *_settings(manifest)]
    if manifest.rejected:
        lines += ["", "## Rejected variants", "", "These variants were requested and are not in the bundle:", ""]
        lines += [f"- {item.name}: {item.reason.rstrip('.')}." for item in manifest.rejected]
    lines += _attempted(manifest.outcomes, manifest.contract)
    if record.backbone.parents:
        lines += ["", "## Lineage", "", "Origin of the weights, the oldest first:", ""]
        lines += [f"- {describe_parent(parent)}" for parent in record.backbone.parents]
    return "\n".join([*lines, ""])


def _facts(manifest: Manifest, record: RunRecord) -> list[str]:
    """Return ``run_lines`` of the run, and lines about the target images of an adapted run, whose ``trained`` score is on them."""
    if manifest.target is None:
        return run_lines(record, manifest.preprocess, manifest.trained, at_run_size=manifest.trained_at_run_size)
    return [*run_lines(record, manifest.preprocess, record.validation.score), *_target(manifest, record)]


def _target(manifest: Manifest, record: RunRecord) -> list[str]:
    """Return lines about the images of the target domain of an adapted run: their numbers, and the decision of the accuracy gate."""
    found = manifest.target
    if found is None:
        return []
    score = f"{SCORE_NAMES[record.task]} of the trained model {_with_interval(manifest.trained)}"
    decided = f"by {score}" if found.labeled else f"by the agreement with the trained model on {manifest.trained.n} images"
    return [
        f"- Target domain: {found.n} unlabeled images, of which {found.adapted} adapted the network",
        f"- Accuracy gate: {manifest.gate_images}, {decided}. It did not use images of the training, which are of another domain",
        *([] if found.labeled else ["- Accuracy in the target domain: not measured, because the target images have no labels"]),
    ]


def _score_column(manifest: Manifest) -> str:
    """Return the heading of the figures by which the accuracy gate decided."""
    return "expected drop" if manifest.score_name == "agreement" else "validation" if manifest.target is None else manifest.score_name


def _score_of(manifest: Manifest, variant: Variant) -> str:
    """Return this figure of a variant: its score with the interval, or its expected drop without labels."""
    return f"{manifest.drop_of(variant):.4f}" if manifest.score_name == "agreement" else _with_interval(variant.validation)


def _reference(manifest: Manifest) -> str:
    """Return the images of the monitoring reference as text."""
    images = "of the validation" if manifest.target is None else "of the target domain"
    return f"{f'{manifest.reference.n} images' if manifest.reference else f'none, fewer than {LEAST_IMAGES} images'} {images}"


def _columns(manifest: Manifest, record: RunRecord) -> list[str]:
    """Return a Markdown list that explains the columns of the table of variants."""
    images = manifest.gate_images
    interval = "Wilson interval" if record.task in ("classification", "ordinal") else "bootstrap interval"
    unit = "decisions" if record.task == "multi-label" else "images"
    first = (
        f"- validation, test: {SCORE_NAMES[record.task]} with its 95 % {interval}. {images.capitalize()} selected the variants. Results on "
        f"test images are reported only."
    )
    if manifest.target is not None:
        first = f"- accuracy: with its 95 % {interval}, on {images}, which selected the variants."
    if manifest.score_name == "agreement":
        first = f"- expected drop: accuracy drop by the scores of the trained model, on {images}, which selected the variants, and crops."
    return [
        first,
        f"- agreement: ratio of {images.replace('images', unit)} with the same prediction as the trained model.",
        f"- confident agreement: the same ratio for the {unit} with a confident prediction of the trained model.",
        f"- network latency: median of one image on one thread of {manifest.host.get('cpu', 'the exporting host')}, without decoding and "
        f"resizing. Measure your device with `edgetl bench`.",
    ]


def _settings(manifest: Manifest) -> list[str]:
    """Return a section with a Markdown table of the execution settings besides the default."""
    rows = [
        f"| {variant.name} | {item.setting.describe()} | {_with_interval(item.validation) if item.validation else 'not measured'} | "
        f"{_with_interval(item.test) if item.test else 'none'} | {f'{item.agreement.top1_agreement:.3f}' if item.agreement else ''} | "
        f"{'kept' if item.kept else f'rejected: {item.reason}'} |"
        for variant in manifest.variants
        for item in variant.settings
    ]
    if not rows:
        return []
    metric = "validation" if manifest.target is None else manifest.score_name
    head = [f"| variant | setting | {metric} | test | agreement | accuracy gate |", "|---|---|---|---|---|---|"]
    text = "A device may use the settings that the accuracy gate kept. `edgetl tune` checks the golden images and chooses the fastest."
    return ["", "## Execution settings", "", text, "", *head, *rows]


def _attempted(outcomes: Sequence[Outcome], contract: ContractRecord | None) -> list[str]:
    """Return a section with a Markdown table of all attempted variants of an export under a contract."""
    if not outcomes:
        return []
    latency = "network latency" if contract is not None and contract.contract.latency_of == "infer" else "latency of the whole prediction"
    lines = [
        "",
        "## Attempted variants",
        "",
        f"| variant | input | threads | {latency}, 90th percentile | result |",
        "|---|---|---|---|---|",
    ]
    for row in outcomes:
        offer = row.offer
        time = f"{offer.threads} | {offer.latency_ms:.2f} ms{' (busy host)' if offer.busy else ''}" if offer else "|"
        lines.append(f"| {row.variant} | {row.side} px | {time} | {row.title}{': ' if row.reason else ''}{row.reason} |")
    return lines


def run_lines(record: RunRecord, spec: PreprocessSpec, trained: Proportion, *, at_run_size: Proportion | None = None) -> list[str]:
    """Return a sentence about task and labels, followed by a Markdown list about the training.

    ``trained`` is the score of the trained model on the validation images, preprocessed by ``spec``. ``at_run_size`` is the score at the
    input size of the run, if that of ``spec`` differs.
    """
    backbone = record.backbone
    return [
        _task(record),
        f"- Backbone: {backbone.architecture} ({'pretrained' if backbone.pretrained else 'random weights'}), "
        f"license of the weights: {backbone.license or 'not stated'}",
        f"- Training: strategy {record.plan.strategy}{_head(record)}, seed {record.config.run.seed}, {record.seconds:.0f} s",
        *([_ADAPTED.format(record.adaptation)] if record.adaptation else []),
        f"- Images: {record.images['train']} train, {record.images['val']} validation, {record.images['test']} test",
        *([_CROSS_VALIDATED.format(record.folds)] if record.folds else []),
        f"- Groups: {describe_grouping(record.grouping, record.task)}",
        *([f"- Leakage: {leaked} test images are copies of training images"] if (leaked := record.leaked_test_images) else []),
        f"- Input: {spec.describe()}{_other_size(record, spec)}",
        *(
            [f"- Intensity: {spec.intensity.describe()}. {wide} training images have more than 8 bits per channel"]
            if (wide := record.high_bit_images)
            else []
        ),
        f"- Trained model on the {validation_images(record.folds)}: {_score(trained, record)}{_at(record, at_run_size)}",
        f"- Trained model on the test images: {_score(record.test.score, record) if record.test else 'no test images'}",
        *(_details(record.test) if record.test else []),
        *_calibration(record),
    ]


def _other_size(record: RunRecord, spec: PreprocessSpec) -> str:
    trained = record.preprocess.input_size
    return "" if spec.input_size == trained else f" (trained at {trained[0]} x {trained[1]})"


def _at(record: RunRecord, at_run_size: Proportion | None) -> str:
    height, width = record.preprocess.input_size
    return "" if at_run_size is None else f"; at {height} x {width}: {_with_interval(at_run_size)}"


def _head(record: RunRecord) -> str:
    return "" if record.head.plain else f" with head {record.head.describe()}"


def _task(record: RunRecord) -> str:
    """Return a sentence about task and labels."""
    labels = f"{', '.join(record.labels[:30])}{' …' if len(record.labels) > 30 else ''}"
    match record.task:
        case "classification":
            return f"Image classification, {len(record.labels)} classes: {labels}."
        case "anomaly":
            rate = record.expected_false_alarms or 0.0
            return (
                f"Anomaly detection, trained on normal images only. An image is an anomaly from a score of "
                f"{record.decision_rule.thresholds[0]:g}. Expected rate of false alarms on normal images: {rate:.3f}."
            )
        case "multi-label":
            pairs = zip(record.labels[:30], record.decision_rule.thresholds, strict=False)
            limits = ", ".join(f"{label} {threshold:.3f}" for label, threshold in pairs)
            return (
                f"Multi-label image classification, {len(record.labels)} labels: {labels}. "
                f"Score thresholds, selected on {validation_images(record.folds)}: {limits}."
            )
        case "regression":
            tolerance = record.decision_rule.tolerance
            return f"Image regression of {labels}. A prediction counts as correct within {tolerance:.4g} of the true value."
        case "ordinal":
            return f"Ordinal image regression of {labels}, levels {record.decoding.level_names[0]} to {record.decoding.level_names[-1]}."
        case _:
            assert_never(record.task)


def _score(value: Proportion, record: RunRecord) -> str:
    return f"{SCORE_NAMES[record.task]} {_with_interval(value)}"


def _details(test: Evaluation) -> list[str]:
    """Return lines with more metrics on the test images, for tasks that have them."""
    if test.multi_label is not None:
        return [
            f"- On the test images: all labels correct on {_with_interval(test.accuracy)}, ratio of correct decisions "
            f"{test.multi_label.label_accuracy:.3f}"
        ]
    if (found := test.anomaly) is not None:
        kind = f"{found.synthetic} images with synthetic defects" if found.synthetic else "labeled anomalies"
        return [
            f"- On the test images: false alarms {_with_interval(found.false_alarms)}, detected {_with_interval(found.detected)} of {kind}"
        ]
    if (values := test.regression) is not None:
        kappa = "" if values.kappa is None else f", quadratic-weighted kappa {values.kappa:.3f}"
        return [f"- On the test images: MAE {values.mae:.4g}, RMSE {values.rmse:.4g}, R² {values.r2.value:.3f}{kappa}"]
    return []


def _calibration(record: RunRecord) -> list[str]:
    """Return lines about the temperature of the scores and the threshold of unknown images, if they are set."""
    rule, lines = record.decision_rule, []
    images, shown = ("test images", record.test) if record.test else (validation_images(record.folds), record.validation)
    if rule.temperature != 1 and shown.reliability:
        before = record.calibration and (record.calibration.test_before or record.calibration.validation_before)
        change = f" ({before.ece:.3f} with uncalibrated scores)" if before else ""
        lines.append(
            f"- Scores: the logits are divided by the temperature {rule.temperature:.4g}, chosen on {validation_images(record.folds)}. "
            f"Expected calibration error on the {images}: {shown.reliability.ece:.3f}{change}"
        )
    if shown.rejection:
        lines.append(
            f"- Unknown images: highest score below {rule.reject_below:.4g}. On the {images}: coverage "
            f"{_with_interval(shown.rejection.coverage)}, precision {_with_interval(shown.rejection.precision)}"
        )
    return lines


def _with_interval(value: Proportion) -> str:
    if not value.n:
        return "none (no images)"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f}, n = {value.n})"
