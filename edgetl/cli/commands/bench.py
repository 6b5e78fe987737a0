"""Command ``edgetl bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.charts import draw_latency, need_matplotlib
from edgetl.cli.options import build, given, options_of
from edgetl.cli.session import JsonOption, VerboseOption, err, out, print_json, working
from edgetl.cli.tables import bench_lines, cold_table, latency_table
from edgetl.core.output.folders import check_chart
from edgetl.data.listing import find_images
from edgetl.errors import ImageError
from edgetl.measure.scenarios import BenchConfig, LatencyReport, measure_bundle


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
    percentiles are of whole.
    """
    config = build(BenchConfig, **given(BenchConfig, context, options))
    if plot is not None:
        need_matplotlib()
        check_chart(plot, "--plot", inputs={"the bundle": bundle, **({"--images": images} if images else {})})
    with working(json_output=json_output, verbose=verbose) as progress:
        files = [] if images is None else find_images(images) if images.is_dir() else [images]
        if images is not None and not files:
            raise ImageError(f"--images {images} contains no JPEG, PNG, WebP, BMP or TIFF file.")
        report = measure_bundle(bundle, config, images=files, progress=progress)
    if plot is not None:
        draw_latency(report, plot)
    warnings = bench_lines(report, verbose=verbose)
    if json_output:
        print_json(report)
        for line in warnings:
            err.print(f"[yellow]warning:[/] {escape(line)}", soft_wrap=True)
        return
    show_report(report)
    for line in warnings:
        out.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    if plot is not None:
        out.print(f"chart written to {escape(str(plot))}", soft_wrap=True)


def show_report(report: LatencyReport) -> None:
    """Print the tables, the host, and the variants without an installed engine."""
    out.print(latency_table(report))
    out.print(cold_table(report))
    host = report.host
    out.print(
        f"{host['cpu']}, {host['cores']} cores, {host['flags']}, governor {host['governor']}, load {report.load_average:.2f}",
        soft_wrap=True,
    )
    for name in report.skipped:
        out.print(f"[yellow]{name}: not measured, because its inference engine is not installed[/]", soft_wrap=True)
