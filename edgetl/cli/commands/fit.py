"""Command ``edgetl fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.commands.export import show_bundle
from edgetl.cli.options import build, need_extra, options_of, part
from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, out, print_json, print_notes, working
from edgetl.core.contract import Contract
from edgetl.core.output.folders import check_output
from edgetl.data.folder import check_folder
from edgetl.executors.tasks import TaskConfig, tasks_of
from edgetl.export.config import ExportConfig, FitConfig
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.ranking import RankConfig
from edgetl.train.config.weights_dir import check_weights_dir

if TYPE_CHECKING:
    from edgetl.export.backbone_search import FitRecord

# Options of the ranking that the training has too.
SHARED = ("include", "exclude", "weights_dir", "license_policy", "seed")


@options_of(TaskConfig)
@options_of(Contract)
@options_of(TrainConfig, only=("strategy",))
@options_of(ExportConfig, only=("max_drop", "format", "precision"))
@options_of(RankConfig, only=("candidates", *SHARED))
def fit_command(
    data: Annotated[Path, typer.Argument(help="Folder with one folder of images per class.")],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Folder to write: run, bundle and fit.json.")],
    tries: Annotated[int, typer.Option(metavar="INT", min=1, max=20, help="Largest number of backbones to train, 1..20.")] = 3,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **values: Any,
) -> None:
    """Find, train and export a backbone that keeps latency, size and memory limits.

    Backbones are ranked on the images and trained in this order. The first one with a bundle that keeps every limit is chosen.
    """
    need_extra("export")
    shared = {name: values[name] for name in SHARED}
    config = FitConfig(
        rank=build(RankConfig, candidates=values["candidates"], **shared),
        train=build(TrainConfig, strategy=values["strategy"], **shared),
        export=build(ExportConfig, **part(ExportConfig, values)),
        contract=build(Contract, **part(Contract, values)),
        tries=tries,
    )
    division = build(TaskConfig, **part(TaskConfig, values))
    if config.rank.weights_dir is not None:
        check_weights_dir(Path(config.rank.weights_dir))
    check_output(out_, inputs={"the folder of images": check_folder(data)}, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.export.backbone_search import fit

        tasks = tasks_of(division, progress)
        fitted = fit(data, config, out_, overwrite=overwrite, tasks=tasks, progress=progress)
    if json_output:
        print_json(fitted.record)
        return
    show_tried(fitted.record)
    show_bundle(fitted.bundle, verbose=verbose)


def show_tried(record: FitRecord) -> None:
    """Print the scan notes, and the outcome of each backbone."""
    print_notes(record.notes)
    for item in record.tried:
        color = {"left out": "yellow", "refused": "yellow", "chosen": "green"}[item.outcome]
        out.print(f"[{color}]{item.outcome}[/] {escape(item.backbone)}: {escape(item.reason)}", soft_wrap=True)
