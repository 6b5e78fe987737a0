"""Command ``edgetl merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgetl.cli.session import JsonOption, VerboseOption, out, print_json, working
from edgetl.errors import ImageError
from edgetl.scoring.merge import merge


def merge_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of `edgetl predict --out`.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File to write. Default: predictions.jsonl, .csv or .parquet in DIR. Replaces an earlier one.",
        ),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check that all parts of `edgetl predict --out` are complete, and merge them into one file.

    The rows are in the order of the input. The exit code is 5 if images could not be read.
    """
    with working(json_output=json_output, verbose=verbose):
        report = merge(folder, to)
    if json_output:
        print_json(report)
    else:
        counts = report.counts
        out.print(f"{counts.images:,} predictions and {counts.errors:,} errors written to {escape(report.path)}", soft_wrap=True)
    if report.counts.errors:
        raise typer.Exit(ImageError.exit_code)
