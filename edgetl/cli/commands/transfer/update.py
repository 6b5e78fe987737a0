"""Command ``edgetl update``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.commands.train import show_figures
from edgetl.cli.options import build, need_extra, options_of
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, err, out, print_json, working
from edgetl.cli.tables import classes_table, plain_table
from edgetl.core.bundle import check_run_folder
from edgetl.core.output.folders import check_output
from edgetl.data.folder import check_folder
from edgetl.errors import DataError, UpdateRejectedError
from edgetl.train.config.paths import check_file
from edgetl.train.config.update.options import UpdateConfig

if TYPE_CHECKING:
    from edgetl.train.artifacts.run import Run
    from edgetl.train.config.update.result import Promotion

_SHOWN = 5


@options_of(UpdateConfig)
def update_command(
    run: Annotated[Path, typer.Argument(help="Run to update: the folder that `edgetl train` or `edgetl update` wrote. It is not changed.")],
    new_data: Annotated[
        Path,
        typer.Argument(
            help="New images: a folder with one folder of images per class, the folder of the images in --labels, or a folder of "
            "`edgetl run --capture` with labels filled in. Classes may be new."
        ),
    ],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Run folder to write.")],
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Update a run with new images and classes, without forgetting the previous ones.

    The head is fitted again on the new images and on typical previous images (replay). A rejected update ends with exit code 30 and writes
    nothing. The reasons are: no gain on the new images, a loss on the previous ones, or labels that look wrong.
    """
    config = build(UpdateConfig, **options)
    need_extra("train")
    inputs = {"the run": check_run_folder(run), "the new images": check_folder(new_data)}
    check_file(config.labels, "--labels", DataError, "Give a table of labels.")
    if config.data is not None:
        inputs["--data"] = check_folder(config.data, option="--data")
    check_output(out_, inputs=inputs, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.update.update import update

        found = update(run, new_data, config, out_, overwrite=overwrite, progress=progress)
    if json_output:
        print_json({"promotion": found.promotion.model_dump(mode="json"), "run": found.run and found.run.record.model_dump(mode="json")})
    else:
        _show_promotion(found.promotion)
    if found.run is None:
        raise _rejected(found.promotion, run)
    if not json_output:
        _show_run(found.run)


def _rejected(promotion: Promotion, run: Path) -> typer.Exit:
    """Print the reasons of a rejection, and return the exit of the command.

    The report is on the standard output already. Therefore the error is only a message here, also with ``--json``.
    """
    reasons = "; ".join(promotion.reasons)
    err.print(f"[bold red]error:[/] the update is rejected: {escape(reasons)}. {escape(str(run))} stays current.", soft_wrap=True)
    return typer.Exit(UpdateRejectedError.exit_code)


def _show_promotion(promotion: Promotion) -> None:
    new, old, labels = promotion.new, promotion.previous.forgetting, promotion.contradicted
    table = plain_table("accuracy of the previous and of the updated model on the same images", "images", "n", "before", "after", "change")
    rows = [
        ("new", new.n, new.before, new.after),
        ("previous", old.images, old.before, old.after),
        ("previous, new classes possible", old.images, old.before, promotion.previous.among_all),
    ]
    for name, n, before, after in rows:
        table.add_row(name, str(n), f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    out.print(table)
    out.print(f"new images: {new.gained} better, {new.lost} worse, p = {new.p:.2g} (McNemar)", soft_wrap=True)
    out.print(f"labels that look wrong: {labels.images} of {new.n} ({labels.rate:.1%})", soft_wrap=True)
    if labels.files:
        out.print(f"for example: {escape(', '.join(labels.files[:_SHOWN]))}", soft_wrap=True)
    if promotion.trigger:
        out.print(f"same small area: {escape(', '.join(promotion.trigger.files[:_SHOWN]))}", soft_wrap=True)
    if worst := old.most_forgotten()[:3]:
        named = ", ".join(f"{escape(item.label)} {item.before:.2f} to {item.after:.2f} (n = {item.n})" for item in worst)
        out.print(f"largest drops: {named}", soft_wrap=True)


def _show_run(run: Run) -> None:
    record = run.record
    assert record.update is not None
    out.print(classes_table(record.validation, "validation images"))
    show_figures(record)
    if record.update.new_classes:
        out.print(f"new classes: {escape(', '.join(record.update.new_classes))}", soft_wrap=True)
    for alarm in record.alarms:
        out.print(f"[yellow]warning:[/] {escape(alarm)}", soft_wrap=True)
    out.print(
        f"[green]promoted[/]: {escape(str(run.path))}, release {record.update.release} of {escape(record.update.model)}", soft_wrap=True
    )
    out.print(f"next: edgetl export {escape(str(run.path))} --out BUNDLE", soft_wrap=True)
