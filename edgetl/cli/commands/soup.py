"""``edgetl soup``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.markup import escape

from edgetl.cli.commands.train import show_run
from edgetl.cli.options import need_extra
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, choices, out, print_json, working
from edgetl.cli.tables import plain_table
from edgetl.core.bundle import check_run_folder
from edgetl.core.output.folders import check_output
from edgetl.data.folder import check_folder

if TYPE_CHECKING:
    from edgetl.train.artifacts.record import SoupRecord


def soup_command(
    runs: Annotated[list[Path], typer.Argument(help="Runs of the same backbone on the same splits.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.")],
    method: Annotated[str, typer.Option(help="greedy: only runs that help on the validation images; or uniform: all of them.")] = "greedy",
    data: Annotated[Path | None, typer.Option(help="Where the runs' images are now (default: where they were).")] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Average the weights of several runs into one: often better than the best of them, at no cost on the device."""
    (chosen,) = choices(method, ("greedy", "uniform"), "--method")
    need_extra("train")
    inputs = {f"the run {run}": check_run_folder(run) for run in runs}
    check_output(out_, inputs={**inputs, **({"--data": check_folder(data, option="--data")} if data else {})}, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.soup import make_soup

        kind = cast(Literal["greedy", "uniform"], chosen)
        run = make_soup(runs, out_, method=kind, data=data, overwrite=overwrite, progress=progress)
    if json_output:
        print_json(run.record)
        return
    if run.record.soup:
        _show_ingredients(run.record.soup)
    show_run(run)


def _show_ingredients(soup: SoupRecord) -> None:
    table = plain_table(f"{soup.method} soup", "run", "validation accuracy", "validation loss", "in the soup")
    for item in soup.ingredients:
        table.add_row(escape(item.name), f"{item.val_accuracy:.4f}", f"{item.val_loss:.4f}", "yes" if item.used else "no")
    out.print(table)
