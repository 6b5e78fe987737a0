"""Command ``edgetl predict``."""

from __future__ import annotations

import glob
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field
from rich.markup import escape

from edgetl.cli.options import build, given, options_of, part
from edgetl.cli.session import Interrupted, JsonOption, VerboseOption, err, out, print_json, working
from edgetl.core.config import StrictModel
from edgetl.core.files.names import printable
from edgetl.core.images.heat_map import draw_heat_map
from edgetl.core.options import METAVAR, option_field
from edgetl.core.output.folders import new_folder
from edgetl.core.output_decoding import prediction_json
from edgetl.core.preprocess import to_pixels
from edgetl.core.system.host import available_cores
from edgetl.data.inputs.blocks import Shard, parse_shard
from edgetl.data.listing import find_images
from edgetl.errors import ConfigError, ImageError
from edgetl.executors.choice import LOCAL, executor_on
from edgetl.runtime.predictor import Predictor, load
from edgetl.scoring.config import MANY_IMAGES, ScoringConfig, ScoringModel
from edgetl.scoring.job import ScoringReport, score
from edgetl.scoring.score import PartTask

_INPUTS = (
    "Image files, or folders with images. With --out also .tar shards, .parquet files, .txt lists of paths, and patterns such as "
    "'shards/{00000..00063}.tar'."
)


# Largest number of shards: each is a process and three files.
MOST_SHARDS = 100_000


class PredictConfig(StrictModel):
    """Options of ``edgetl predict``."""

    variant: str | None = Field(
        default=None, description="Variant to run, such as openvino-int8. Default: the first with an installed engine."
    )
    top: int = Field(default=3, ge=1, description="Number of classes to show for each image, the most probable first.")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads per inference; with --out, of each process. Default: as in the contract of the bundle, or all cores.",
    )
    tuning: Path | None = Field(
        default=None,
        description="Result of `edgetl tune` on this host. Its variant, threads and execution setting are used.",
        json_schema_extra={METAVAR: "FILE"},
    )
    trial: bool = Field(
        default=False,
        description="Trial run: first predict one image in a separate process with memory and time limits. Takes about a second.",
    )
    heat_maps: Path | None = Field(
        default=None,
        description="Folder to write (PNG): each image with its heat map. For bundles of anomaly detection.",
        json_schema_extra={METAVAR: "PATH"},
    )


class ManyConfig(StrictModel):
    """Options of ``edgetl predict --out`` that divide the work."""

    out: Path | None = option_field(
        None,
        "Folder to write: one file and one record for each shard. A repeated command continues an interrupted one.",
        panel=MANY_IMAGES,
        metavar="DIR",
    )
    shard: str | None = option_field(
        None, "Shard to predict, such as 0/64: I from 0 to N - 1. Start one command for each I.", panel=MANY_IMAGES, metavar="I/N"
    )
    processes: int | None = option_field(
        None,
        "Predict all shards on this host, with this number of processes. At most one for each core runs at the same time.",
        panel=MANY_IMAGES,
        ge=1,
        le=MOST_SHARDS,
    )
    on: str = option_field(
        LOCAL,
        "Executor of all shards. ray: on this host. ray:HOST:PORT: on a Ray cluster whose hosts have the same file system; needs the extra "
        "`ray`.",
        panel=MANY_IMAGES,
        metavar="local|ray[:ADDRESS]",
    )
    shards: int | None = option_field(
        None,
        "Number of shards of --processes or --on ray. Default: --processes. For a cluster, four times its number of CPUs is typical.",
        panel=MANY_IMAGES,
        ge=1,
        le=MOST_SHARDS,
    )


@options_of(ScoringConfig)
@options_of(ManyConfig)
@options_of(PredictConfig)
def predict_command(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="Bundle: the folder that `edgetl export` wrote.")],
    images: Annotated[list[Path], typer.Argument(metavar="INPUTS...", help=_INPUTS)],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Predict labels and scores of images.

    An unreadable image is reported, and the other images are predicted. The exit code is then 5. With --out, the predictions are written to
    files, and `edgetl merge` joins the files of several processes.
    """
    config = build(PredictConfig, **given(PredictConfig, context, part(PredictConfig, options)))
    many = build(ManyConfig, **given(ManyConfig, context, part(ManyConfig, options)))
    table = given(ScoringConfig, context, part(ScoringConfig, options))
    if many.out is not None:
        if unused := sorted({"heat_maps", "top"} & config.model_fields_set):
            raise ConfigError(f"--{unused[0].replace('_', '-')} cannot be combined with --out. Remove one of them.")
        shard, processes = _division(many)
        with working(json_output=json_output, verbose=verbose) as progress:
            local = processes if many.on == LOCAL else None
            executor = executor_on(many.on, local) if shard.count > 1 and many.shard is None else None
            threads = config.threads or (1 if many.on != LOCAL else max(1, available_cores() // processes))
            model = ScoringModel(bundle=bundle, variant=config.variant, tuning=config.tuning, trial=config.trial)
            task = PartTask(model, tuple(map(str, images)), many.out, shard, build(ScoringConfig, **table), threads)
            try:
                report = score(task, executor=executor, progress=progress)
            except Interrupted as stopped:
                stopped.saved = "The finished rows are saved. Repeat the command to continue."
                raise
        print_json(report) if json_output else _show_report(report)
        failed = report.counts.errors
    else:
        divided = [name for name in ("shard", "processes", "on", "shards") if name in many.model_fields_set]
        if unused := divided + list(table):
            raise ConfigError(f"--{unused[0].replace('_', '-')} needs --out DIR, the folder of the predictions.")
        failed = _predict_and_print(bundle, images, config, json_output=json_output, verbose=verbose)
    if failed:
        raise typer.Exit(ImageError.exit_code)


def _division(many: ManyConfig) -> tuple[Shard, int]:
    """Return the shard, or the first one of all shards, and the number of processes on this host.

    Raises:
        ConfigError: ``--shard`` is not I/N; options contradict each other; or ``--shards`` is missing.
    """
    if many.shard is not None:
        if many.processes is not None or many.shards is not None or many.on != LOCAL:
            raise ConfigError("--shard predicts one shard; --processes, --shards and --on predict all of them. Give one of them.")
        return parse_shard(many.shard), 1
    if many.on != LOCAL:
        if many.processes is not None:
            raise ConfigError("--processes is the number of processes on this host, but --on ray uses the CPUs of the cluster. Remove it.")
        if many.shards is None:
            raise ConfigError("--on ray needs --shards N, the number of tasks. Four times the number of CPUs of the cluster is typical.")
    processes = many.processes or 1
    return Shard(0, many.shards or processes), processes


def _show_report(report: ScoringReport) -> None:
    counts = report.counts
    for item in report.parts:
        name = f"part-{item.part}-of-{item.job.shards}.{item.job.format}"
        state = " (finished earlier)" if item.part in report.skipped else ""
        out.print(f"{name}{state}: {item.counts.images:,} predictions, {item.counts.errors:,} errors", soft_wrap=True)
    out.print(
        f"{counts.images:,} predictions by {report.parts[0].job.variant}, {report.images_per_s:,.0f} images/s per process, "
        f"{report.bytes_per_image / 1000:,.1f} kB per image",
        soft_wrap=True,
    )
    if counts.left_out:
        shown = ", ".join(f"{number:,} {suffix}" for suffix, number in counts.left_out.items())
        out.print(f"not predicted: files in tar shards that are no images: {escape(shown)}", soft_wrap=True)
    if counts.errors:
        err.print(
            f"[bold red]error:[/] {counts.errors:,} images or shards could not be predicted. Their rows have the reason.", soft_wrap=True
        )
    out.print(f"next: edgetl merge {escape(report.out)}", soft_wrap=True)


def _predict_and_print(bundle: Path, images: list[Path], config: PredictConfig, *, json_output: bool, verbose: bool) -> int:
    """Predict and print images one after another, and return the number of unreadable images."""
    with working(json_output=True, verbose=verbose), ExitStack() as stack:
        predictor = load(bundle, variant=config.variant, threads=config.threads, trial=config.trial, tuning=config.tuning)
        maps = stack.enter_context(_heat_map_folder(config.heat_maps, predictor, bundle)) if config.heat_maps else None
        failed, rows = 0, []
        name = predictor.variant.name if predictor.variant else None
        if not json_output:
            err.print(f"variant: {name}")
        for path in _files(images):
            row = _predict(predictor, path, maps)
            failed += "error" in row
            if json_output:
                rows.append(row)
            else:
                _show_prediction(row, config.top)
    if json_output:
        gallery = {"gallery": predictor.gallery.sha256} if predictor.gallery else {}
        print_json({"bundle": str(bundle), "variant": name, **gallery, "labels": list(predictor.labels), "predictions": rows})
    return failed


def _files(paths: list[Path]) -> list[Path]:
    """Return the files. A folder is replaced by the images in it."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = find_images(path)
            if not inside:
                raise ImageError(f"{path} contains no JPEG, PNG, WebP, BMP or TIFF file.")
            found += inside
        else:
            found.append(path)
    return found


def _heat_map_folder(folder: Path, predictor: Predictor, bundle: Path) -> AbstractContextManager[Path]:
    """Return the context of the new folder for heat maps.

    Raises:
        ConfigError: the bundle has no heat maps, or the folder exists.
    """
    if predictor.decoding.decision_rule.heat_map is None:
        raise ConfigError(f"--heat-maps: {bundle} is a bundle for {predictor.decoding.task}, which has no heat maps. Remove the option.")
    return new_folder(folder, inputs={"the bundle": bundle})


def _predict(predictor: Predictor, path: Path, maps: Path | None) -> dict[str, object]:
    """Predict an image, and write its heat map into the folder ``maps``. A later image of the same name gets a number."""
    try:
        image = predictor.read(path)
        prediction = predictor.predict(image)
    except ImageError as error:
        return {"image": str(path), "error": str(error)}
    if maps is not None:
        copies = len([*maps.glob(f"{glob.escape(path.stem)}*.png")])
        drawn = draw_heat_map(to_pixels(image, predictor.spec), prediction.heat_map)
        drawn.save(maps / f"{path.stem}{f'-{copies + 1}' if copies else ''}.png")
    return {"image": str(path), **prediction_json(predictor.decoding, prediction)}


def _show_prediction(row: dict[str, object], top: int) -> None:
    if "error" in row:
        err.print(f"[bold red]error:[/] {escape(printable(str(row['error'])))}", soft_wrap=True)
        return
    scores = row["scores"]
    assert isinstance(scores, dict)
    best = sorted(scores.items(), key=lambda item: -item[1])[:top]
    shown = ", ".join(f"{label} {score:.3f}" for label, score in best)
    if "labels" in row:
        present = row["labels"]
        assert isinstance(present, list)
        shown = f"{', '.join(present) or 'no label'} ({shown})"
    elif "heat_map" in row:
        shown = f"{row['label']} (score {row['score']:.3f})"
    elif row.get("label", "") is None:
        shown = f"unknown ({shown})"
    elif "value" in row:
        ((column, output),) = scores.items()
        shown = f"{column} {row['value']:g}" + ("" if output == row["value"] else f" ({output:.3f})")
    out.print(f"{escape(printable(str(row['image'])))}: {escape(shown)}", soft_wrap=True)
