"""Exported variants: accuracy, size and latency (Pareto front), quantization, and rejected variants with their reasons."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.core.manifest import Manifest, Variant
from edgetl.core.tasks import SCORE_NAMES
from edgetl.report.charts import Bubble, bubble_chart
from edgetl.report.elements import Child, element, facts, figure, items, number, paragraph, table, with_interval


def variants_section(manifest: Manifest) -> list[Child]:
    """Return the content of the section about the variants of a bundle."""
    best = pareto_front(manifest.variants)
    metric, cpu = _metric(manifest), manifest.host.get("cpu", "the exporting host")
    bubbles = [
        Bubble(index, item.median_ms, item.validation, float(item.size_bytes), 0 if item.format == "onnx" else 1, item.name in best)
        for index, item in enumerate(manifest.variants, start=1)
    ]
    label = f"{metric.capitalize()} over latency of {len(bubbles)} variants. The table below has the numbers."
    caption = (
        f"{metric.capitalize()} with 95 % interval over the latency of one image (network only, one thread of {cpu}). The area of a circle "
        f"is the file size. Filled: on the Pareto front, that is, no other variant is at least as good in all three and better in one. "
        f"Blue: ONNX. Orange: OpenVINO."
    )
    rows = [_row(index, item, item.name in best) for index, item in enumerate(manifest.variants, start=1)]
    head = ("variant", "Pareto front", "size", "latency", metric, f"test {SCORE_NAMES[manifest.task]}", "accuracy drop", "same prediction")
    images = manifest.gate_images
    busy = any(item.load for item in manifest.variants)
    return [
        facts(_facts(manifest)),
        paragraph("The exporting host was busy. Times marked with * are too high.", class_="warning") if busy else None,
        figure(bubble_chart("latency, ms", metric, bubbles, label=label), caption),
        table("Variants, in the order of the bundle", head, rows, text_columns=2),
        paragraph(
            f"The accuracy drop is against the trained model, on {images}. The column same prediction is the ratio of {images} with the "
            f"same prediction as the trained model.",
            class_="note",
        ),
        _rejected(manifest),
    ]


def _metric(manifest: Manifest) -> str:
    """Return the name of the metric on the images of the accuracy gate."""
    return f"{'validation ' if manifest.target is None else ''}{manifest.score_name}"


def pareto_front(variants: Sequence[Variant]) -> frozenset[str]:
    """Return the names of the variants on the Pareto front of validation metric, latency and file size."""
    costs = {item.name: (-item.validation.value, item.median_ms, float(item.size_bytes)) for item in variants}

    def dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
        return first != second and all(one <= two for one, two in zip(first, second, strict=True))

    return frozenset(name for name, cost in costs.items() if not any(dominates(other, cost) for other in costs.values()))


def _facts(manifest: Manifest) -> list[tuple[str, Child]]:
    calibration = manifest.calibration.describe(manifest.task) if manifest.calibration else "none, because there is no int8 variant"
    contract = manifest.contract.chosen.clauses if manifest.contract else ()
    return [
        ("Bundle", f"{manifest.name}, release {manifest.release}, {manifest.created}"),
        ("Accuracy gate", f"{manifest.score_name} on {manifest.trained.n} {manifest.gate_images}"),
        ("Allowed accuracy drop", number(manifest.max_drop)),
        ("Calibration of int8", calibration),
        *([("Contract", ", ".join(clause.describe() for clause in contract))] if contract else []),
    ]


def _row(index: int, item: Variant, best: bool) -> list[Child]:
    drop = item.accuracy_drop
    return [
        f"{index}  {item.name}",
        "yes" if best else "no",
        f"{item.size_bytes / 1e6:.2f} MB",
        f"{item.median_ms:.2f} ms{'*' if item.load else ''}",
        with_interval(item.validation),
        with_interval(item.test) if item.test else "–",
        [f"{drop.value:+.3f} ", element("span", f"({drop.low:+.3f} to {drop.high:+.3f})", class_="interval")] if drop else "–",
        number(item.agreement.top1_agreement),
    ]


def _rejected(manifest: Manifest) -> list[Child]:
    """Return the rejected variants, the outcomes under a contract, and the rejected execution settings, each with the reason."""
    outcomes = [row for row in manifest.outcomes if row.result not in ("kept", "passed")]
    found: list[Child] = [[element("strong", item.name), f": {item.reason}"] for item in manifest.rejected]
    found += [[element("strong", row.variant), f" at {row.side} px, {row.title}: {row.reason}"] for row in outcomes]
    settings: list[Child] = [
        f"{variant.name}, {item.setting.describe()}: {item.reason}"
        for variant in manifest.variants
        for item in variant.settings
        if not item.kept
    ]
    return [
        element("h4", "Rejected variants"),
        items(found) if found else paragraph("None: every requested variant passed the accuracy gate."),
        element("details", element("summary", f"Rejected execution settings ({len(settings)})"), items(settings)) if settings else None,
    ]
