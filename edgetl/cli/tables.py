"""Results as tables for people."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from edgetl.core.manifest import Manifest
from edgetl.core.results import Evaluation, Proportion
from edgetl.measure.latency import MIN_CALLS, Percentiles
from edgetl.measure.scenarios import LatencyReport


def share(value: Proportion) -> str:
    """A share with its interval and n."""
    return f"{value.value:.4f} ({value.low:.3f} to {value.high:.3f}, n = {value.n})"


def plain_table(title: str, first: str, *others: str) -> Table:
    """A table whose first column is text and never wrapped, and whose others are numbers; narrow enough for 80 columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def classes_table(evaluation: Evaluation, title: str) -> Table:
    """One row a class."""
    table = plain_table(title, "class", "n", "precision", "recall", "F1")
    for score in evaluation.classes:
        table.add_row(escape(score.label), str(score.n), f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}")
    return table


def variants_table(manifest: Manifest) -> Table:
    """One row a variant, the fastest on the bench first."""
    title = f"{manifest.name}: trained model {share(manifest.trained)} on validation"
    table = plain_table(title, "variant", "MB", "validation", "test", "agrees", "confident", "ms")
    for variant in manifest.variants:
        table.add_row(
            variant.name,
            f"{variant.size_bytes / 1e6:.2f}",
            f"{variant.validation.value:.4f}",
            f"{variant.test.value:.4f}" if variant.test else "none",
            f"{variant.agreement.top1:.3f}",
            f"{variant.agreement.confident_top1:.3f}",
            f"{variant.median_ms:.2f}",
        )
    return table


def ladder_lines(manifest: Manifest) -> list[str]:
    """For each int8 variant, the quantization steps tried and what each measured."""
    ladders = [*((item.name, item.ladder) for item in manifest.variants), *((item.name, item.ladder) for item in manifest.rejected)]
    return [
        f"{name}: {rung.method}: accuracy {rung.accuracy:.4f} (drop {rung.drop:+.4f}), confident agreement {rung.confident_top1:.3f}: "
        f"{'passed' if rung.passed else 'not enough'}"
        for name, rungs in ladders
        for rung in rungs
    ]


def latency_table(report: LatencyReport) -> Table:
    """One row a variant; milliseconds of one image, after warm-up."""
    title = f"{report.bundle}: one image, {report.threads} thread(s), p50 in ms"
    table = plain_table(title, "variant", "decode", "prepare", "infer", "whole", "p90", "p99", "images/s")
    for row in report.variants:
        stages = [percentile(values, 50) for values in (row.decode, row.preprocess, row.infer, row.whole)]
        table.add_row(row.variant, *stages, percentile(row.whole, 90), percentile(row.whole, 99), f"{1000 / row.whole.mean_ms:.0f}")
    return table


def cold_table(report: LatencyReport) -> Table:
    """One row a variant; a fresh process from its start to its first answer."""
    table = plain_table("fresh process", "variant", "file MB", "load ms", "first answer ms", "peak memory MB")
    for row in report.variants:
        cold = row.cold
        table.add_row(
            row.variant, f"{row.size_bytes / 1e6:.2f}", f"{cold.load_ms:.0f}", f"{cold.first_prediction_ms:.0f}", f"{cold.peak_rss_mb:.0f}"
        )
    return table


def percentile(values: Percentiles, rank: int) -> str:
    """One percentile, or how many calls it would need."""
    found = {50: values.p50_ms, 90: values.p90_ms, 99: values.p99_ms}[rank]
    return f"{found:.2f}" if found is not None else f"n<{MIN_CALLS[rank]}"
