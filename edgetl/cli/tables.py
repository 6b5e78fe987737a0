"""Tables and summary lines of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from rich import box
from rich.markup import escape
from rich.table import Table

from edgetl.core.contract import Contract, Outcome
from edgetl.core.manifest import Manifest, Precision, Rejected, Variant
from edgetl.core.metrics import RELIABILITY_BINS, images_for_bound
from edgetl.core.reference import LEAST_IMAGES
from edgetl.core.results import Attempt, Evaluation, Proportion, Reliability, validation_name
from edgetl.core.system.execution import Tuning
from edgetl.core.system.host_load import HostLoad
from edgetl.measure.report import LatencyReport

if TYPE_CHECKING:
    from edgetl.device.signature import SignatureState

# Fixed limit of the warning about too few validation images: an accuracy drop of 3 points.
UNCERTAIN_DROP = 0.03
# Methods of the variants of reduced precision without a quantization search.
_WITHOUT_SEARCH: dict[Precision, str] = {"fp16": "half precision, no search", "int8-weights": "8-bit weights only, no search"}


def with_interval(value: Proportion) -> str:
    """Format a metric with its 95 % interval and its number of images."""
    if not value.n:
        return "none (no images)"
    return f"{value.value:.4f} ({value.low:.3f} to {value.high:.3f}, n = {value.n})"


def plain_table(title: str, first: str, *others: str) -> Table:
    """Return a table with a text column and number columns. On a narrow terminal the text is folded; the numbers are not wrapped."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def facts_grid() -> Table:
    """Return a grid for rows of a name and a value. Long paths and words are folded."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def signature_text(state: SignatureState, *, check: str = "verify BUNDLE") -> str:
    """Format the state of a signature in one line. ``check`` is the command that checks it."""
    match state.state:
        case "valid":
            return f"valid, by the key {state.key} ({state.key_id}), fingerprint {state.fingerprint}"
        case "unchecked":
            return f"by the key {state.key_id}, not checked. Check it: edgetl {check} --key KEY.pub"
        case "unsigned":
            return "none"
        case _:
            assert_never(state.state)


def classes_table(evaluation: Evaluation, title: str) -> Table:
    """Return a table with one row per class. For multi-label tasks: per label, with average precision (AP) and threshold."""
    figures = evaluation.multi_label
    table = plain_table(title, "label" if figures else "class", "n", "precision", "recall", "F1", *(["AP", "threshold"] if figures else []))
    for index, score in enumerate(evaluation.classes):
        cells = [f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}"]
        if figures:
            precision = figures.average_precision[index]
            cells += ["none" if precision is None else f"{precision:.3f}", f"{figures.thresholds[index]:.3f}"]
        table.add_row(escape(score.label), str(score.n), *cells)
    return table


def figures_line(evaluation: Evaluation) -> str:
    """Format the metrics of an evaluation in one line."""
    if (labels := evaluation.multi_label) is not None:
        return (
            f"mean average precision {with_interval(labels.mean_average_precision)}, "
            f"exact match {with_interval(evaluation.accuracy)}, "
            f"label accuracy {labels.label_accuracy:.4f}, macro F1 {evaluation.macro_f1:.4f}"
        )
    if (found := evaluation.anomaly) is not None:
        kind = "synthetic defects" if found.synthetic else "anomalies"
        ranked = f"AUROC {with_interval(found.auroc)}" if found.auroc else "AUROC none (it needs normal images and anomalies)"
        return f"{ranked}, false alarms {with_interval(found.false_alarms)}, detected {kind} {with_interval(found.detected)}"
    if (values := evaluation.regression) is None:
        return f"accuracy {with_interval(evaluation.accuracy)}, macro F1 {evaluation.macro_f1:.4f}"
    errors = f"MAE {values.mae:.4g}, RMSE {values.rmse:.4g}, R² {with_interval(values.r2)}"
    if values.kappa is None:
        return f"{errors}, within {values.tolerance:.4g}: {with_interval(evaluation.accuracy)}"
    return f"accuracy {with_interval(evaluation.accuracy)}, quadratic-weighted kappa {values.kappa:.4f}, {errors}"


def reliability_lines(evaluation: Evaluation, *, before: Reliability | None = None) -> list[str]:
    """Return lines with the calibration of the scores and the rejection of unknown images, if the task has them.

    ``before`` has the figures of the uncalibrated scores.
    """
    found, rejection, lines = evaluation.reliability, evaluation.rejection, []
    if found is not None:
        old = [f"{value:.4f} to " for value in (before.ece, before.nll, before.brier)] if before else [""] * 3
        lines.append(
            f"expected calibration error {old[0]}{found.ece:.4f} ({RELIABILITY_BINS} bins of equal width, n = {found.n}), "
            f"log loss {old[1]}{found.nll:.4f}, Brier score {old[2]}{found.brier:.4f}"
        )
    if rejection is not None:
        lines.append(
            f"unknown below a score of {rejection.below:.4f}: coverage {with_interval(rejection.coverage)}, "
            f"precision {with_interval(rejection.precision)}"
        )
    return lines


def variants_table(manifest: Manifest) -> Table:
    """Return a table with one row per variant, in the order of the bundle."""
    source = validation_name(manifest.folds) if manifest.target is None else manifest.gate_images
    title = f"{manifest.name}: trained model {manifest.score_name} {with_interval(manifest.trained)} on {source}"
    if manifest.score_name == "agreement":
        title = f"{manifest.name}: agreement with the trained model on {manifest.trained.n} {source}"
    figure = "expected\ndrop" if manifest.score_name == "agreement" else "validation" if manifest.target is None else manifest.score_name
    table = plain_table(title, "variant", "MB", figure, "test", "agreement", "confident", "network\nms")
    for variant in manifest.variants:
        table.add_row(
            variant.name,
            f"{variant.size_bytes / 1e6:.2f}",
            f"{manifest.drop_of(variant) if manifest.score_name == 'agreement' else variant.validation.value:.4f}",
            f"{variant.test.value:.4f}" if variant.test else "none",
            f"{variant.agreement.top1_agreement:.3f}",
            f"{variant.agreement.confident_agreement:.3f}",
            f"{variant.median_ms:.2f}{'*' if variant.load else ''}",
        )
    return table


def outcomes_table(rows: Sequence[Outcome], contract: Contract | None = None) -> Table:
    """Return a table of attempted variants, input sizes and thread counts, each with its result.

    ``contract`` decides the heading of the latency: of the whole prediction, or of the network.
    """
    latency = "p90 ms" if contract is None else f"{'whole' if contract.latency_of == 'whole' else 'network'}\np90 ms"
    table = plain_table("attempted variants", "variant", "px", "threads", latency, "MB")
    if contract is None and any(row.offer for row in rows):
        table.caption_justify = "left"
        table.caption = "p90 ms: 90th percentile of the whole prediction, or of the network with --latency-of infer"
    table.add_column("result", overflow="fold")
    for row in rows:
        offer = row.offer
        figures = ["", "", ""]
        if offer is not None:
            figures = [str(offer.threads), f"{offer.latency_ms:.2f}{'*' if offer.busy else ''}", f"{offer.size_mb:.2f}"]
        table.add_row(
            f"{row.backbone} {row.variant}".strip(),
            str(row.side),
            *figures,
            escape(f"{row.title}: {row.reason}" if row.reason else row.title),
        )
    return table


def busy_lines(manifest: Manifest, *, verbose: bool = False) -> list[str]:
    """Return warnings if the host, or the device of a profile, was busy while the variants were timed."""
    host = [variant.load for variant in manifest.variants if variant.load]
    device = [row.offer.load for row in manifest.outcomes if row.offer and row.offer.load and row.offer.busy]
    if manifest.contract is None or manifest.contract.source == "measured":
        host, device = host + device, []
    order = f"The variants are sorted by {manifest.score_name}, not by latency. " if manifest.sorted_by == "accuracy" else ""
    lines = [f"{_busy(host, verbose=verbose)} {order}Repeat on an idle host."] if host else []
    if device:
        lines.append(f"Profile of the device: {_busy(device, verbose=verbose)} Repeat `edgetl bench` on the idle device.")
    return lines


def bench_lines(report: LatencyReport, *, verbose: bool = False) -> list[str]:
    """Return the reasons why figures of a latency measurement are not valid, and a warning if the host was busy before it."""
    found = [*(row.load for row in report.variants), *(row.host.load for row in report.scenarios)]
    loads = [load for load in found if load is not None and load.busy]
    lines = [f"{_busy(loads, verbose=verbose)} Repeat on an idle host."] if loads else []
    busy = {load.describe() for load in loads}
    lines += [f"invalid: {reason}." for reason in report.invalid if not any(reason.endswith(cause) for cause in busy)]
    if lines:
        return lines
    if report.load_average > int(report.host["cores"]) / 4:
        return [
            f"The host was busy before the measurement: its load average was {report.load_average:.2f}, above a quarter of its "
            f"{report.host['cores']} cores. Latencies may be too high. Repeat on an idle host."
        ]
    return []


def _busy(loads: Sequence[HostLoad], *, verbose: bool) -> str:
    """Return a sentence about the highest of several loads."""
    worst = max(loads, key=lambda load: load.total)
    cause = worst.describe()
    details = f" ({worst.details()})" if verbose else ""
    return f"{cause[0].upper()}{cause[1:]}, so latencies marked * are too high{details}."


def attempt_lines(manifest: Manifest) -> list[str]:
    """Return a line for each attempt of the quantization search, and for each variant of reduced precision without a search."""
    items: list[Variant | Rejected] = [*manifest.variants, *manifest.rejected]
    figure = manifest.score_name
    lines = [f"{item.name}: {attempt.method}: {_measured(attempt, figure)}" for item in items for attempt in item.attempts]
    return lines + [
        f"{item.name}: {method}: {_measured(_single_attempt(item, manifest), figure)}"
        for item in manifest.variants
        if (method := _WITHOUT_SEARCH.get(item.precision))
    ]


def _single_attempt(item: Variant, manifest: Manifest) -> Attempt:
    return Attempt(
        method="",
        accuracy=item.validation.value,
        drop=manifest.drop_of(item),
        confident_agreement=item.agreement.confident_agreement,
        passed=True,
    )


def failed_attempt_lines(rows: Sequence[Outcome]) -> list[str]:
    """Return a line for each attempt of the quantization search of a failed export, with its metrics and result."""
    sides = {row.side for row in rows}
    lines = []
    for row in rows:
        name = f"{row.backbone} {row.variant}".strip() + (f" at {row.side} px" if len(sides) > 1 else "")
        for attempt in row.attempts:
            figure = "accuracy" if attempt.accuracy_drop else "score"
            lines.append(f"{name}: {attempt.method}: {_measured(attempt, figure)}")
    return lines


def _measured(attempt: Attempt, figure: str) -> str:
    if attempt.accuracy is None or attempt.drop is None or attempt.confident_agreement is None:
        return f"failed: {attempt.reason}"
    result = "passed" if attempt.passed else f"rejected: {attempt.reason}" if attempt.reason else "rejected"
    return f"{figure} {attempt.accuracy:.4f} (drop {attempt.drop:+.4f}), confident agreement {attempt.confident_agreement:.3f}: {result}"


def setting_lines(manifest: Manifest) -> list[str]:
    """Return a line for each execution setting besides the default: its metrics and the result of the accuracy gate."""
    figure, lines = manifest.score_name, []
    for variant in manifest.variants:
        for item in variant.settings:
            result = "kept" if item.kept else f"rejected: {item.reason.rstrip('.')}"
            measured = ""
            if item.validation is not None and item.agreement is not None:
                agreement = "" if figure == "agreement" else f", agreement {item.agreement.top1_agreement:.3f}"
                measured = f"{figure} {item.validation.value:.4f}{agreement}: "
            lines.append(f"{variant.name}: setting {item.setting.describe()}: {measured}{result}")
    return lines


def tuning_table(tuning: Tuning) -> Table:
    """Return a table with one row per timed choice, the fastest first."""
    title = f"{tuning.name}: time from the encoded image to the prediction, ms (median)"
    table = plain_table(title, "variant", "threads", "whole\nms", "load\nms", "memory\nMB", "golden\ndifference")
    table.add_column("setting", overflow="fold")
    for item in tuning.timings:
        table.add_row(
            item.variant,
            str(item.threads),
            f"{item.whole_ms:.2f}{'*' if tuning.busy else ''}",
            "" if item.load_ms is None else f"{item.load_ms:.0f}",
            "" if item.peak_rss_mb is None else f"{item.peak_rss_mb:.0f}",
            f"{item.golden_difference:.1e}",
            f"{item.setting.describe()}{' (chosen)' if item.choice == tuning.chosen else ''}",
        )
    return table


def sensitive_lines(manifest: Manifest) -> list[str]:
    """Return a line for each variant with sensitivities: the three operations that are most sensitive to quantization."""
    items: list[Variant | Rejected] = [*manifest.variants, *manifest.rejected]
    return [
        f"{item.name}: most sensitive operations (divergence in nats): "
        + ", ".join(f"{found.title} {found.divergence:+.4f}" for found in worst)
        for item in items
        if (worst := item.sensitivities[:3])
    ]


def input_size_lines(manifest: Manifest) -> list[str]:
    """Return a line if the bundle's input size differs from the run's: both sizes, and the scores of the trained model at them."""
    before, (height, width) = manifest.trained_at_run_size, manifest.preprocess.input_size
    if before is None:
        return []
    score, side = manifest.score_name, max((row.side for row in manifest.outcomes), default=height)
    scores = f"from {before.value:.4f} to {manifest.trained.value:.4f} (trained model, n = {before.n})"
    images = "Validation" if manifest.target is None else "Target"
    if side == height:
        return [f"input size: {height} x {width} (--input-size) instead of the size of the run. {images} {score}: {scores}."]
    return [
        f"input size: reduced from {side} x {side} to {height} x {width} to keep the latency limit. {images} {score}: {scores}. To keep "
        f"the size, set --input-size {side} and raise --max-latency-ms."
    ]


def reference_lines(manifest: Manifest) -> list[str]:
    """Return a line if the bundle has no monitoring reference, and the reason."""
    if manifest.reference is not None:
        return []
    counted = f"{manifest.target.n if manifest.target else manifest.trained.n} {manifest.monitored_images}"
    return [f"no drift detection (--drift of serve and run): {counted}, fewer than {LEAST_IMAGES}."]


def target_lines(manifest: Manifest) -> list[str]:
    """Return lines about the images of the target domain of an adapted run; none for other runs."""
    found, calibration = manifest.target, manifest.calibration
    if found is None:
        return []
    calibrating = calibration.n if calibration else 0
    lines = [f"target domain: {found.n} images, of which {found.adapted} adapted the network; {calibrating} calibrate int8."]
    if found.labeled:
        return [*lines, f"accuracy gate: accuracy on {manifest.trained.n} labeled target images."]
    return [
        *lines,
        f"accuracy gate: agreement with the trained model on {manifest.trained.n} target images without labels. The accuracy in the target "
        f"domain is not measured. To decide by accuracy, run `edgetl adapt` with --target-labels.",
    ]


def slower_lines(manifest: Manifest) -> list[str]:
    """Return a line for each variant that is slower than the fp32 variant of the same format."""
    plain = {item.format: item for item in manifest.variants if item.precision == "fp32"}
    return [
        f"{item.name} is slower than {plain[item.format].name} on this host ({item.median_ms:.2f} and "
        f"{plain[item.format].median_ms:.2f} ms), but {plain[item.format].size_bytes / item.size_bytes:.1f} times smaller."
        for item in manifest.variants
        if item.precision != "fp32"
        and item.format in plain
        and item.median_ms > plain[item.format].median_ms
        and not (item.load or plain[item.format].load)
    ]


def agreement_lines(manifest: Manifest) -> list[str]:
    """Return a line for each reduced-precision variant: its agreement with the trained model, without labels."""
    lines = []
    for item in manifest.variants:
        found = item.unlabeled
        if found is None:
            continue
        line = f"{item.name}: {round((1 - found.top1_agreement) * found.n)} of {found.n} predictions change on {found.images}"
        if manifest.task == "multi-label":
            line = f"{item.name}: label agreement {found.top1_agreement:.4f} on {found.images}"
        if found.expected_drop is not None and found.beyond_half_margin is not None and found.relative_error is not None:
            line += (
                f" (expected accuracy drop {found.expected_drop:.4f}). The logit error exceeds half the margin on "
                f"{found.beyond_half_margin:.0%} of the images; its median is {found.relative_error:.2f} of the median margin"
            )
        lines.append(f"{line}.")
    return lines


def certainty_lines(manifest: Manifest) -> list[str]:
    """Return the number of images that may change, and a warning if they are too few to bound the accuracy drop."""
    lines = []
    n, allowed = manifest.trained.n, manifest.max_changed
    if allowed is not None:
        lines.append(f"{allowed} of {n} {manifest.gate_images} may change (--max-drop {manifest.max_drop:g}).")
        if 0 < n * manifest.max_drop < 1:
            lines[0] += (
                f" One image changes the accuracy by {1 / n:.4f}, so {n} images cannot resolve this limit. Predictions on random crops of "
                f"images, or on images of --unlabeled, are compared as well."
            )
    unsure = [
        item for item in manifest.variants if item.precision != "fp32" and item.accuracy_drop and item.accuracy_drop.bound > UNCERTAIN_DROP
    ]
    if not unsure:
        return lines
    shown = ", ".join(f"{item.name} {item.accuracy_drop.bound:.4f}" for item in unsure if item.accuracy_drop)
    n = max(item.accuracy_drop.n for item in unsure if item.accuracy_drop)
    return [
        *lines,
        f"{n} {manifest.gate_images} are too few to exclude an accuracy drop above {UNCERTAIN_DROP:g} (fixed limit of "
        f"this warning). One-sided 95 % bounds of the drop: {shown}. At least {images_for_bound(UNCERTAIN_DROP)} images are "
        f"needed. With --strict, the limit of the bound is --max-drop.",
    ]


def order_line(manifest: Manifest) -> str:
    """Return a sentence about the order of the variants in the bundle."""
    last = "file size, because the host was busy" if manifest.sorted_by == "accuracy" else "latency"
    keys = f"{'validation ' if manifest.target is None else ''}{manifest.score_name}, then {last}"
    if manifest.contract is None and manifest.sorted_by == "time":
        keys = "network ms, the fastest first"
    return f"order of the variants: {keys}. `edgetl predict` uses the first variant with an installed engine."
