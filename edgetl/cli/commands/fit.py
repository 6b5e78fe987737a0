"""``edgetl fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgetl.cli.commands.export import show_bundle
from edgetl.cli.options import build, need_extra
from edgetl.cli.session import (
    ContractThreadsOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    LatencyOfOption,
    LatencyOption,
    MemoryOption,
    OverwriteOption,
    PolicyOption,
    SeedOption,
    SizeOption,
    VerboseOption,
    WeightsDirOption,
    choices,
    out,
    print_json,
    print_notes,
    working,
)
from edgetl.core.contract import Contract
from edgetl.core.output.folders import check_output
from edgetl.data.folder import check_folder
from edgetl.export.convert.formats import check_formats
from edgetl.train.config.weights_dir import check_mirror

if TYPE_CHECKING:
    from edgetl.export.fit import FitRecord


def fit_command(
    data: Annotated[Path, typer.Argument(help="Folder with one folder of images for each class.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The folder to write: run, bundle, fit.json.")],
    max_latency_ms: LatencyOption = None,
    latency_of: LatencyOfOption = "whole",
    max_size_mb: SizeOption = None,
    memory_mb: MemoryOption = None,
    threads: ContractThreadsOption = None,
    max_drop: Annotated[float, typer.Option(help="Largest loss of validation accuracy from the trained model, 0..1.")] = 0.01,
    candidates: Annotated[
        str | None, typer.Option(help="Backbones separated by commas (default: all of `edgetl models --offline`).")
    ] = None,
    tries: Annotated[int, typer.Option(help="Train so many of them at most.")] = 3,
    strategy: Annotated[str, typer.Option(help="Fine-tuning strategy, as in `edgetl train`.")] = "auto",
    format_: Annotated[str, typer.Option("--format", help="onnx, openvino, or both.")] = "onnx,openvino",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8, int8-weights, or several.")] = "fp32,int8",
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    weights_dir: WeightsDirOption = None,
    license_policy: PolicyOption = "any",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Rank backbones, train and export the best that keeps every limit, or say which limit none keeps."""
    contract = build(
        Contract, max_latency_ms=max_latency_ms, latency_of=latency_of, max_size_mb=max_size_mb, memory_mb=memory_mb, threads=threads
    )
    need_extra("export")
    if weights_dir is not None:
        check_mirror(weights_dir)
    check_output(out_, inputs={"the folder of images": check_folder(data)}, overwrite=overwrite)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.export.config import ExportConfig
        from edgetl.export.fit import FitConfig, fit
        from edgetl.train.config.options import TrainConfig
        from edgetl.train.config.ranking import RankConfig

        mirror = str(weights_dir) if weights_dir else None
        chosen = {"include": tuple(include or ()), "exclude": tuple(exclude or ())}
        names = tuple(part.strip() for part in (candidates or "").split(",") if part.strip())
        config = build(
            FitConfig,
            rank=build(RankConfig, candidates=names, weights_dir=mirror, license_policy=license_policy, seed=seed, **chosen),
            train=build(TrainConfig, strategy=strategy, weights_dir=mirror, license_policy=license_policy, seed=seed, **chosen),
            export=build(
                ExportConfig, formats=check_formats(format_),
                precisions=choices(precision, ("fp32", "fp16", "int8", "int8-weights"), "--precision"), max_drop=max_drop, seed=seed,
            ),
            contract=contract, tries=tries,
        )  # fmt: skip
        fitted = fit(data, config, out_, overwrite=overwrite, progress=progress)
    if json_output:
        print_json(fitted.record)
        return
    show_tried(fitted.record)
    show_bundle(fitted.bundle)


def show_tried(record: FitRecord) -> None:
    """Print a line for each reason to leave out files, and for each examined backbone."""
    print_notes(record.notes)
    for item in record.tried:
        colour = {"left out": "yellow", "refused": "yellow", "chosen": "green"}[item.outcome]
        out.print(f"[{colour}]{item.outcome}[/] {escape(item.backbone)}: {escape(item.reason)}", soft_wrap=True)
