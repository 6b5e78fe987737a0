"""Command ``edgetl bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgetl.cli.charts import draw_latency, need_matplotlib
from edgetl.cli.options import build, given, options_of
from edgetl.cli.session import JsonOption, VerboseOption, err, out, print_json, working
from edgetl.cli.tables import bench_lines, plain_table
from edgetl.core.config import read_json
from edgetl.core.output.folders import check_chart
from edgetl.core.progress import Progress
from edgetl.data.listing import find_images
from edgetl.errors import ConfigError, ImageError, MeasurementError, RegressionError
from edgetl.measure.comparison import compare_reports, measure_in_turn, setting_text
from edgetl.measure.config import BenchConfig
from edgetl.measure.latency import MIN_CALLS, Percentiles
from edgetl.measure.report import MAX_REPORT_BYTES, Comparison, LatencyReport, ScenarioReport
from edgetl.measure.scenarios.measurement import measure_scenarios
from edgetl.measure.stages import measure_bundle

# Percentiles of the table of scenarios. The report also has the 95th and the 97th.
_RANKS = (50.0, 90.0, 99.0, 99.9)


@options_of(BenchConfig)
def bench_command(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="Bundle: the folder that `edgetl export` wrote.")],
    images: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Image or folder of images to predict. Default: the golden images of the bundle.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Chart to write (PNG): time of each stage for each variant.")] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Measure latency, throughput, cold start and memory of a bundle on this host.

    Latencies are of one image: decode, preprocess, infer (the network), and whole (from the encoded image to the scores). The 90th and 99th
    percentiles are of whole. --scenario measures the scenarios of MLPerf instead. --against compares two variants or bundles.
    """
    config = build(BenchConfig, **given(BenchConfig, context, options))
    if plot is not None:
        if config.scenarios or config.against is not None:
            raise ConfigError("--plot draws the stages. It cannot be combined with --scenario or --against.")
        need_matplotlib()
        check_chart(plot, "--plot", inputs={"the bundle": bundle, **({"--images": images} if images else {})})
    # Read before the measurement, which takes minutes.
    earlier = None if config.compare is None else read_json(config.compare, LatencyReport, ConfigError, max_bytes=MAX_REPORT_BYTES)
    with working(json_output=json_output, verbose=verbose) as progress:
        files = [] if images is None else find_images(images) if images.is_dir() else [images]
        if images is not None and not files:
            raise ImageError(f"--images {images} contains no JPEG, PNG, WebP, BMP or TIFF file.")
        report = _measure(bundle, config, files, progress)
    if earlier is not None:
        report = report.model_copy(update={"comparison": compare_reports(report, earlier, name=str(config.compare))})
    if plot is not None:
        draw_latency(report, plot)
    _print(report, plot, json_output=json_output, verbose=verbose)
    if earlier is not None and report.comparison is not None:
        exit_on_regression(report.comparison)


def _measure(bundle: Path, config: BenchConfig, files: Sequence[Path], progress: Progress) -> LatencyReport:
    if config.against is not None:
        return measure_in_turn(bundle, config, images=files, progress=progress)
    if config.scenarios:
        return measure_scenarios(bundle, config, images=files, progress=progress)
    return measure_bundle(bundle, config, images=files, progress=progress)


def _print(report: LatencyReport, plot: Path | None, *, json_output: bool, verbose: bool) -> None:
    if json_output:
        print_json(report)
        for line in bench_lines(report, verbose=verbose):
            err.print(f"[yellow]warning:[/] {escape(line)}", soft_wrap=True)
        return
    show_report(report, verbose=verbose)
    if plot is not None:
        out.print(f"chart written to {escape(str(plot))}", soft_wrap=True)


def exit_on_regression(comparison: Comparison) -> None:
    """Exit with the code of the error class if the comparison with an earlier report is not valid, or has a regression.

    The report is on the standard output already. Therefore the error is only a message here, also with ``--json``.
    """
    if comparison.invalid:
        message = f"the comparison with {comparison.reference} is not valid: {comparison.invalid[0]}. Repeat on an idle host."
        code = MeasurementError.exit_code
    elif slower := comparison.regressions:
        worst = max(slower, key=lambda ratio: ratio.low)
        message = (
            f"{len(slower)} latencies are higher than in {comparison.reference}, beyond the noise of {100 * comparison.noise:.0f} %: "
            f"{worst.name} by {100 * (worst.ratio - 1):.0f} %. Compare the two bundles in turn: edgetl bench NEW --against OLD."
        )
        code = RegressionError.exit_code
    else:
        return
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def show_report(report: LatencyReport, *, verbose: bool = False) -> None:
    """Print the tables, the host, the variants without an installed engine, and the reasons why figures are not valid."""
    if report.variants:
        out.print(latency_table(report))
        out.print(cold_table(report))
    for name in dict.fromkeys(f"{row.variant}{setting_text(row.setting)}" for row in report.scenarios):
        rows = [row for row in report.scenarios if f"{row.variant}{setting_text(row.setting)}" == name]
        generator = ", LoadGen" if rows[0].generator == "loadgen" else ""
        out.print(_scenario_table(f"{report.bundle}, {name}: latency of a query, ms, {report.threads} thread(s){generator}", rows))
    if report.comparison is not None:
        out.print(_comparison_table(report.comparison))
        if report.comparison.missing:
            out.print(f"not compared: {escape('; '.join(report.comparison.missing))}", soft_wrap=True)
    host = report.host
    out.print(
        f"{host['cpu']}, {host['cores']} cores, {host['flags']}, governor {host['governor']}, load {report.load_average:.2f}",
        soft_wrap=True,
    )
    for name in report.skipped:
        out.print(f"[yellow]{name}: not measured, because its inference engine is not installed[/]", soft_wrap=True)
    for name, energy in report.energy_mj.items():
        out.print(f"{name}: {energy:.1f} mJ per image (all processor packages, RAPL)", soft_wrap=True)
    for line in bench_lines(report, verbose=verbose):
        out.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    for line in report.comparison.invalid if report.comparison is not None else ():
        out.print(f"[yellow]comparison invalid: {escape(line)}.[/]", soft_wrap=True)


def _scenario_table(title: str, rows: Sequence[ScenarioReport]) -> Table:
    """Return a table of one variant, with one row per scenario and part. An invalid result has a star."""
    table = plain_table(title, "scenario", *(f"p{rank:g}" for rank in _RANKS), "queries", "images/s")
    for row in rows:
        mark = "*" if row.invalid else ""
        cells = [f"n<{item.least}" if item.ms is None else f"{item.ms:.2f}{mark}" for item in row.percentiles if item.rank in _RANKS]
        # The offline scenario has one query. Its latency is its duration.
        shown = ["", "", "", "", "1"] if row.scenario == "offline" else [*cells, str(row.queries)]
        rate = "" if row.target_qps is None else f" at {row.target_qps:.1f}/s"
        table.add_row(f"{row.scenario}{rate} {row.part}", *shown, f"{row.images_per_second:.1f}{mark}")
    return table


def _comparison_table(comparison: Comparison) -> Table:
    """Return a table with one row per ratio, and one for the A/A control."""
    title = f"latency compared with {comparison.reference}; differences up to {100 * comparison.noise:.0f} % do not count"
    table = plain_table(title, "median", "reference\nms", "ms", "ratio", "99 % interval", "result")
    for ratio in (*comparison.ratios, *([comparison.control] if comparison.control else [])):
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        result = f"{ratio.result}{'*' if comparison.invalid else ''}"
        table.add_row(ratio.name, f"{ratio.reference_ms:.3f}", f"{ratio.ms:.3f}", f"{ratio.ratio:.3f}", interval, result)
    return table


def latency_table(report: LatencyReport) -> Table:
    """Return a table with one row per variant: latency of one image, ms, after warm-up."""
    title = f"{report.bundle}: latency of one image, ms (median), {report.threads} thread(s)"
    table = plain_table(title, "variant", "decode", "preprocess", "infer", "whole", "whole\np90", "whole\np99", "images/s")
    for row in report.variants:
        mark = "*" if row.busy or row.invalid else ""
        stages = [f"{percentile(values, 50)}{mark}" for values in (row.decode, row.preprocess, row.infer, row.whole)]
        tail = [f"{percentile(row.whole, rank)}{mark}" for rank in (90, 99)]
        table.add_row(f"{row.variant}{setting_text(row.setting)}", *stages, *tail, f"{1000 / row.whole.mean_ms:.0f}")
    return table


def cold_table(report: LatencyReport) -> Table:
    """Return a table of cold starts: a new process for each variant, from its start to its first prediction."""
    table = plain_table("cold start (new process)", "variant", "file MB", "load ms", "first prediction ms", "peak memory MB")
    for row in report.variants:
        cold = row.cold
        table.add_row(
            row.variant, f"{row.size_bytes / 1e6:.2f}", f"{cold.load_ms:.0f}", f"{cold.first_prediction_ms:.0f}", f"{cold.peak_rss_mb:.0f}"
        )
    return table


def percentile(values: Percentiles, rank: int) -> str:
    """Format a percentile, or the number of calls that it needs: ``n<662``."""
    found = {50: values.p50_ms, 90: values.p90_ms, 99: values.p99_ms}[rank]
    return f"{found:.2f}" if found is not None else f"n<{MIN_CALLS[rank]}"
