"""Command ``edgetl evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.commands.evaluation.group_tables import show_groups
from edgetl.cli.options import build, given, need_extra, options_of
from edgetl.cli.session import JsonOption, VerboseOption, err, out, print_json, print_notes, working
from edgetl.cli.tables import classes_table, figures_line, reliability_lines
from edgetl.core.bundle import is_run
from edgetl.core.output.folders import check_output_file
from edgetl.data.folder import check_folder
from edgetl.data.predictions import is_predictions_file
from edgetl.errors import ConfigError, DataError, GroupGapError
from edgetl.runtime.evaluation import EvaluationConfig, EvaluationReport, evaluate_bundle
from edgetl.train.config.paths import check_file


@options_of(EvaluationConfig)
def evaluate_command(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Folder of a run or a bundle.")],
    data: Annotated[Path, typer.Argument(help="Folder with one folder per class, or the folder of the images in --labels.")],
    fail_on_gap: Annotated[
        bool, typer.Option("--fail-on-gap", help="Exit with code 29 if --by finds a large and significant gap between groups.")
    ] = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Evaluate a run or a bundle on labeled images, and compare groups of images.

    The metrics follow from the task: accuracy, average precision, or errors. Images of the training and validation splits are left out.
    """
    config = build(EvaluationConfig, **given(EvaluationConfig, context, options))
    if fail_on_gap and config.by is None:
        raise ConfigError("--fail-on-gap needs --by COLUMN, the columns whose values are compared.")
    check_folder(data)
    check_file(config.labels, "--labels", DataError, "Give a table of labels.")
    check_file(config.groups, "--groups", DataError, "Give a table with a column `file`.")
    if config.save is not None:
        check_output_file(config.save, "--save", is_own=is_predictions_file, inputs={"the model": model, "the folder of images": data})
    with working(json_output=json_output, verbose=verbose) as progress:
        if is_run(model):
            need_extra("train")
            from edgetl.train.workflows.runs.evaluate import evaluate_run

            report = evaluate_run(model, data, config, progress=progress)
        else:
            report = evaluate_bundle(model, data, config, progress=progress)
    if json_output:
        print_json(report)
    else:
        _show_evaluation(report)
        show_groups(report, config.positive)
        if config.save is not None:
            out.print(f"predictions written to {escape(str(config.save))}", soft_wrap=True)
    if fail_on_gap:
        _exit_on_gap(report)


def _show_evaluation(report: EvaluationReport) -> None:
    name = f"{report.model} {report.variant or '(trained model)'}"
    if report.result.classes:
        out.print(classes_table(report.result, escape(name)))
    for line in (figures_line(report.result), *reliability_lines(report.result)):
        out.print(line, soft_wrap=True)
    if report.left_out:
        out.print(f"{report.left_out} images left out: the model was trained or selected on them. --all includes them.", soft_wrap=True)
    if report.seen:
        out.print(
            f"[yellow]warning:[/] the model was trained or selected on {report.seen} of these {report.result.accuracy.n} images, so the "
            f"figures are too good. Omit --all to leave these images out.",
            soft_wrap=True,
        )
    if report.broken:
        out.print(f"{report.broken} images left out: they cannot be decoded.", soft_wrap=True)
    print_notes(report.notes)


def _exit_on_gap(report: EvaluationReport) -> None:
    """Exit with the code of ``GroupGapError`` if a comparison of groups raised an alarm.

    The report is on the standard output already. Therefore the error is only a message here, also with ``--json``.
    """
    found = [
        f"{model.model}, by {table.by}: {model.reason}" for table in report.groups for model in table.models if model.finding == "alarm"
    ]
    if found:
        err.print(f"[bold red]error:[/] {escape(found[0])}. {len(found)} comparisons have a gap (--fail-on-gap).", soft_wrap=True)
        raise typer.Exit(GroupGapError.exit_code)
