"""Commands on runs: ``edgetl calibrate``, ``edgetl prune``, ``edgetl share`` and ``edgetl report``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from rich.markup import escape

from edgetl.cli.commands.train import show_figures
from edgetl.cli.options import build, given, need_extra, options_of, part
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, err, out, print_json, working
from edgetl.cli.tables import with_interval
from edgetl.core.bundle import check_run_folder, is_run, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.output.folders import check_output, check_output_file
from edgetl.core.progress import Progress
from edgetl.core.tasks import SCORE_NAMES
from edgetl.data.folder import check_folder
from edgetl.installation import install_command
from edgetl.report.config import ReportConfig
from edgetl.train.config.options import CalibrationConfig

if TYPE_CHECKING:
    from edgetl.report.models import RunFacts
    from edgetl.report.summary import ReportSummary


class CalibrateConfig(StrictModel):
    """Options of ``edgetl calibrate`` that are not part of the training configuration."""

    data: Path | None = Field(default=None, description="Folder of the images that the run was trained on. Default: its original path.")


@options_of(CalibrateConfig)
@options_of(CalibrationConfig, without=("calibrate",))
def calibrate_command(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run: the folder that `edgetl train` wrote. Its record is changed.")],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Calibrate the scores of a run on its validation images (temperature scaling).

    The labels stay the same. --target-precision and --reject-below also set a threshold of unknown images. Each call replaces the earlier
    calibration.
    """
    data = build(CalibrateConfig, **given(CalibrateConfig, context, part(CalibrateConfig, options))).data
    config = build(CalibrationConfig, calibrate=True, **given(CalibrationConfig, context, part(CalibrationConfig, options)))
    need_extra("train")
    check_run_folder(run)
    if data is not None:
        check_folder(data, option="--data")
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.runs.calibrate import calibrate_run

        record = calibrate_run(run, config, data=data, progress=progress).record
    if json_output:
        print_json(record)
        return
    show_figures(record)
    out.print(f"next: edgetl export {escape(str(run))} --out BUNDLE", soft_wrap=True)


class PruneConfig(StrictModel):
    """Options of ``edgetl prune``."""

    ratio: float = Field(default=0.3, description="Pruning ratio: fraction of the channels to remove, 0..1.")
    data: Path | None = Field(default=None, description="Folder of the images that the run was trained on. Default: its original path.")


@options_of(PruneConfig)
def prune_command(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run: the folder that `edgetl train` wrote.")],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Run folder to write.")],
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Remove channels from the network of a run (structured pruning).

    The pruned network is smaller and faster in every inference engine. Fine-tune it afterwards to recover the accuracy.
    """
    config = build(PruneConfig, **given(PruneConfig, context, options))
    need_extra("train")
    _check(out_, run, config.data, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.runs.prune import prune_run

        pruned = prune_run(run, out_, ratio=config.ratio, data=config.data, overwrite=overwrite, progress=progress)
    record = pruned.run.record
    if json_output:
        print_json({"before": pruned.before.model_dump(), "after": pruned.after.model_dump(), "run": record.model_dump(mode="json")})
        return
    before, after = pruned.before, pruned.after
    out.print(
        f"{before.params_m:g} million parameters to {after.params_m:g}, {before.mmacs:g} million multiply-accumulates to {after.mmacs:g}; "
        f"validation before fine-tuning: {with_interval(record.validation.score)}",
        soft_wrap=True,
    )
    out.print(f"written to {escape(str(out_))}", soft_wrap=True)
    out.print("next: fine-tune it with the original run as teacher:")
    out.print(
        f"edgetl train {escape(str(config.data or pruned.run.splits().root))} --out TUNED --backbone {escape(str(out_))} --strategy full "
        f"--teacher {escape(str(run))}{'' if record.task == 'classification' else ' with the --labels and --task of the original run'}",
        soft_wrap=True,
    )


def share_command(
    run: Annotated[Path, typer.Argument(help="Run: the folder that `edgetl train` wrote.")],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Hugging Face folder to write.")],
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a run as a folder for timm, transformers and the Hugging Face hub.

    Nothing is uploaded.
    """
    need_extra("train")
    _check(out_, run, None, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose):
        from edgetl.export.to_hub import share_run

        files = share_run(run, out_, overwrite=overwrite)
    if json_output:
        print_json({"files": [str(path) for path in files]})
        return
    for path in files:
        out.print(f"{escape(str(path))}  {path.stat().st_size / 1e6:.2f} MB", soft_wrap=True)
    out.print(f"next: read {escape(str(files[-1]))}, then: hf upload OWNER/NAME {escape(str(out_))}", soft_wrap=True)


@options_of(ReportConfig)
def report_command(
    context: typer.Context,
    models: Annotated[
        list[Path], typer.Argument(help="Folders of runs and bundles. A bundle is shown with the run that it was exported from.")
    ],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="HTML file to write.")],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Write an HTML page about runs and bundles: data, results, wrong predictions, variants.

    It also has training curves, calibration, lineage, licenses and drift events. The page is one file of at most 5 MB without scripts and
    network access. An earlier report is replaced.
    """
    from edgetl.device.monitoring.events import read_events
    from edgetl.device.transport import unpacked
    from edgetl.report.models import group_models, with_evaluations
    from edgetl.report.page import is_own_report, write_report

    config = build(ReportConfig, **given(ReportConfig, context, options))
    images = {"--data": check_folder(config.data, option="--data")} if config.data else {}
    check_output_file(out_, "--out", is_own=is_own_report, inputs={**{f"the model {path}": path for path in models}, **images})
    runs = [path for path in models if is_run(path)]
    with working(json_output=json_output, verbose=verbose) as progress, ExitStack() as stack:
        events = read_events(config.events) if config.events else None
        found = _read_runs(runs, config, progress) if runs else []
        bundles = [open_bundle(stack.enter_context(unpacked(path))) for path in models if path not in runs]
        reported = with_evaluations(group_models(found, bundles), config.evaluation)
        summary = write_report(reported, out_, events=events)
    print_json(summary) if json_output else _show_report(summary)
    if runs and config.images and find_spec("captum") is None:
        err.print(f"saliency maps need captum. Install it with: {escape(install_command('report'))}", soft_wrap=True)


def _read_runs(paths: Sequence[Path], config: ReportConfig, progress: Progress) -> list[RunFacts]:
    """Read runs with the training libraries. Saliency maps are computed if captum is installed."""
    need_extra("train")
    from edgetl.report.run_facts import SaliencyFunction, read_run

    saliency: SaliencyFunction | None = None
    if config.images and find_spec("captum") is not None:
        from edgetl.report.saliency import occlusion_maps

        saliency = occlusion_maps
    return [read_run(path, config, saliency, progress=progress) for path in paths]


def _show_report(summary: ReportSummary) -> None:
    for model in summary.models:
        score = model.test.score if model.test else None
        figures = [f"test {SCORE_NAMES[model.task]} {with_interval(score)}"] if score else []
        figures += [f"{model.wrong} wrong predictions, {model.shown} shown"] if model.wrong is not None else []
        figures += [f"groups by {escape(table.by)}: {table.main_groups.finding}" for table in model.groups]
        figures += [f"{len(model.variants)} variants"] if model.variants else []
        out.print(f"{escape(model.name)} ({model.kind}): {'; '.join(figures)}", soft_wrap=True)
    for model in summary.models:
        for line in model.missing:
            out.print(f"[yellow]{escape(model.name)}:[/] {escape(line)}", soft_wrap=True)
    if summary.left_out:
        out.print(f"[yellow]{summary.left_out} images were left out, because the page would exceed 5 MB.[/]", soft_wrap=True)
    out.print(f"written to {escape(summary.report)} ({summary.size_bytes / 1e6:.2f} MB)", soft_wrap=True)


def _check(out: Path, run: Path, data: Path | None, *, overwrite: bool) -> None:
    """Check the run, the images and the output before any work.

    Raises:
        EdgetlError: a path is missing or of the wrong kind.
    """
    inputs = {"the run": check_run_folder(run), **({"--data": check_folder(data, option="--data")} if data else {})}
    check_output(out, inputs=inputs, overwrite=overwrite)
