"""Command ``edgetl adapt``: unsupervised domain adaptation of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, need_extra, options_of
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, out, print_json, working
from edgetl.cli.tables import plain_table
from edgetl.core.bundle import check_run_folder
from edgetl.core.output.folders import check_output
from edgetl.data.folder import check_folder
from edgetl.errors import DataError
from edgetl.train.config.adaptation.options import MIN_LABELED, AdaptationConfig, AdaptationRecord
from edgetl.train.config.paths import check_file


@options_of(AdaptationConfig)
def adapt_command(
    run: Annotated[Path, typer.Argument(help="Run: the folder that `edgetl train` wrote.")],
    unlabeled: Annotated[Path, typer.Argument(help="Folder of target images in any arrangement. Labels are not used.")],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Run folder to write.")],
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Adapt a run to unlabeled images of another domain (unsupervised domain adaptation).

    Compares the network of the run, the same network with the BatchNorm statistics of the target images (AdaBN), and a network that is
    trained on them.
    """
    config = build(AdaptationConfig, **options)
    need_extra("train")
    inputs = {"the run": check_run_folder(run), "the target images": check_folder(unlabeled, holds="images, in any arrangement")}
    if config.data is not None:
        inputs["--data"] = check_folder(config.data, option="--data")
    if config.target_labels is not None and not config.target_labels.is_dir():
        check_file(config.target_labels, "--target-labels", DataError, "Give a folder with one folder per class, or a table of labels.")
    check_output(out_, inputs=inputs, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.runs.adapt import adapt_run

        record = adapt_run(run, unlabeled, out_, config, overwrite=overwrite, progress=progress).record
    if json_output:
        print_json(record)
        return
    assert record.adaptation is not None
    show_adaptation(record.adaptation)
    for alarm in record.alarms:
        out.print(f"[yellow]warning:[/] {escape(alarm)}", soft_wrap=True)
    out.print(f"written to {escape(str(out_))} in {record.seconds:.0f} s", soft_wrap=True)
    out.print(f"next: edgetl export {escape(str(out_))} --out BUNDLE", soft_wrap=True)


def show_adaptation(record: AdaptationRecord) -> None:
    """Print the compared networks. The chosen one is marked."""
    columns = ("information", "diversity", "changed", "target labels", "run images")
    table = plain_table(escape(f"{record.images} target images of {record.target}"), "network", *columns)
    for item in record.candidates:
        table.add_row(
            f"{item.name} *" if item.name == record.chosen else item.name,
            f"{item.information:.3f}",
            f"{item.diversity:.3f}",
            f"{item.changed:.0%}",
            f"{item.labeled.value:.3f}" if item.labeled else "",
            f"{item.source.value:.3f}" if item.source else "",
        )
    out.print(table)
    for item in record.candidates:
        if item.collapsed:
            out.print(f"[yellow]{item.name}: the predictions collapsed to few classes[/]")
    out.print(f"* chosen by {escape(record.chosen_by)}", soft_wrap=True)
    if record.selected_by == "score":
        out.print(f"This measure is weak. Label {MIN_LABELED} target images or more, and give them with --target-labels.", soft_wrap=True)
