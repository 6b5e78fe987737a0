"""Commands for backbones: ``edgetl models``, ``rank`` and ``pretrain``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from rich.markup import escape

from edgetl.cli.options import build, given, need_extra, options_of, part
from edgetl.cli.session import Interrupted, JsonOption, VerboseOption, out, print_json, print_notes, working
from edgetl.cli.tables import facts_grid, plain_table
from edgetl.core.config import StrictModel
from edgetl.core.licenses import Policy
from edgetl.core.output.folders import check_chart
from edgetl.core.progress import Progress
from edgetl.data.folder import check_folder
from edgetl.errors import ConfigError
from edgetl.executors.tasks import TaskConfig, tasks_of
from edgetl.pretrain.options import DistillConfig, SelfSupervisedConfig
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import check_file
from edgetl.train.config.ranking import RankConfig
from edgetl.train.config.weights_dir import check_weights_dir

if TYPE_CHECKING:
    from edgetl.train.artifacts.continued import ContinuedRecord
    from edgetl.train.artifacts.loading.catalogue import Catalogue, Listed, Pretrained
    from edgetl.train.config.ranking import Ranking
# Width of the columns beside the names, in characters.
FIGURES_WIDTH, RANKING_WIDTH = 50, 54


class ModelsConfig(StrictModel):
    """Options of ``edgetl models``."""

    max_params: float | None = Field(default=None, description="Largest number of parameters of a backbone, millions.")
    max_macs: float | None = Field(default=None, description="Largest number of multiply-accumulates (MACs) for one image, millions.")
    license: str | None = Field(default=None, description="License of the weights, such as apache. The start of its name is enough.")
    license_policy: Policy = Field(
        default="any", description="License policy. commercial leaves out weights that forbid commercial use or state no license."
    )
    offline: bool = Field(default=False, description="List only backbones with weights on this host.")
    weights_dir: Path | None = Field(default=None, description="Local folder with weight files. It is searched before the network is used.")


class PretrainConfig(StrictModel):
    """Options of ``edgetl pretrain`` that choose its images."""

    ssl: Path | None = Field(
        default=None,
        description="Folder of unlabeled images for self-supervised continued pretraining of --backbone, in place of a recipe. "
        "Folders in it have no meaning.",
    )
    data: Path | None = Field(default=None, description="Folder with the images that the recipe names.")


@options_of(ModelsConfig)
def models_command(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name of a backbone to show. Without it, all are listed.")] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """List the available backbones, or show one.

    The list contains the embedded and the tested backbones. Every other timm or torchvision name works in `edgetl train` as well.
    """
    need_extra("train")
    from edgetl.train.artifacts.loading.catalogue import list_backbones, show_backbone

    config = build(ModelsConfig, **given(ModelsConfig, context, options))
    with working(json_output=True, verbose=verbose):
        if name is not None:
            found = show_backbone(name, weights_dir=config.weights_dir)
            print_json(found) if json_output else _show_one(found)
            return
        catalogue = list_backbones(
            weights_dir=config.weights_dir,
            max_params_m=config.max_params,
            max_mmacs=config.max_macs,
            policy=config.license_policy,
            license=config.license,
            offline=config.offline,
        )
    print_json(catalogue) if json_output else _show_catalogue(catalogue)


@options_of(TaskConfig)
@options_of(RankConfig)
def rank_command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with one folder of images per class.")],
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Chart to write (PNG): score against latency.")] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Rank backbones on your images by their frozen features, without training.

    With --confirm, the best ones are also fine-tuned briefly.
    """
    need_extra("train")
    config = build(RankConfig, **given(RankConfig, context, part(RankConfig, options)))
    division = build(TaskConfig, **given(TaskConfig, context, part(TaskConfig, options)))
    check_folder(data)
    if config.weights_dir:
        check_weights_dir(Path(config.weights_dir))
    if plot is not None:
        check_chart(plot, "--plot", inputs={"the folder of images": data})
    from edgetl.train.workflows.rank import rank

    with working(json_output=json_output, verbose=verbose) as progress:
        ranking = rank(data, config, tasks=tasks_of(division, progress), progress=progress)
    print_json(ranking) if json_output else _show_ranking(ranking, plot)
    if plot is not None:
        from edgetl.cli.charts import draw_ranking

        draw_ranking(ranking, plot)


@options_of(TrainConfig, only=("backbone", "weights", "weights_dir", "input_size", "device", "seed", "workers"))
@options_of(SelfSupervisedConfig)
@options_of(PretrainConfig)
def pretrain_command(
    context: typer.Context,
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Folder to write: weights and checkpoint.")],
    recipe: Annotated[Path | None, typer.Argument(help="Recipe file, such as models/edgetl_small.toml.")] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Pretrain a backbone on unlabeled images of your domain (--ssl), or from a recipe.

    --ssl continues the pretraining of a backbone without labels and without a larger network (VICReg). After an interruption, the same
    command resumes from the last checkpoint.
    """
    need_extra("train")
    images = build(PretrainConfig, **given(PretrainConfig, context, part(PretrainConfig, options)))
    of_start, of_training = (given(model, context, part(model, options)) for model in (TrainConfig, SelfSupervisedConfig))
    _check_origin(recipe, images, [*of_start, *of_training])
    config, own = build(TrainConfig, **of_start), build(SelfSupervisedConfig, **of_training)
    if config.backbone.weights_dir:
        check_weights_dir(Path(config.backbone.weights_dir))
    if images.ssl is not None:
        check_folder(images.ssl, option="--ssl", holds="images, in any arrangement")
        with working(json_output=json_output, verbose=verbose) as progress, _saved_checkpoint(out_):
            from edgetl.pretrain.unlabeled.self_supervised import pretrain_self_supervised

            continued = pretrain_self_supervised(images.ssl, out_, config, own, progress=progress)
        print_json(continued) if json_output else _show_continued(continued, out_)
        return
    assert recipe is not None
    with working(json_output=json_output, verbose=verbose) as progress, _saved_checkpoint(out_):
        record = _pretrain_from_recipe(recipe, out_, config, images.data, progress)
    print_json(record) if json_output else _show_pretrained(record, out_)


@contextmanager
def _saved_checkpoint(folder: Path) -> Iterator[None]:
    """Add the checkpoint in ``folder`` to the message if a signal interrupts the block."""
    try:
        yield
    except Interrupted as stopped:
        from edgetl.pretrain.loop import CHECKPOINT_NAME  # imports torch, so not before a wrong path is reported

        if (folder / CHECKPOINT_NAME).is_file():
            stopped.saved = f"A checkpoint is in {folder}. Repeat the command to continue."
        raise


def _pretrain_from_recipe(recipe: Path, out: Path, config: TrainConfig, data: Path | None, progress: Progress) -> Pretrained:
    remedy = (
        f"Give the folder of unlabeled images as --ssl {recipe}." if recipe.is_dir() else "Give a recipe, such as models/edgetl_small.toml."
    )
    check_file(recipe, "the recipe", ConfigError, remedy)
    if data is not None:
        check_folder(data)
    from edgetl.pretrain.pretrain import Folders, pretrain
    from edgetl.pretrain.recipe import read_recipe
    from edgetl.train.workflows.finetune import choose_device

    weights = Path(config.backbone.weights_dir) if config.backbone.weights_dir else None
    places = Folders(out=out, data=data, weights=weights, recipes=recipe.parent)
    return pretrain(read_recipe(recipe), places, device=choose_device(config.run.device), progress=progress)


def _check_origin(recipe: Path | None, images: PretrainConfig, others: list[str]) -> None:
    """Check that there is a recipe or ``--ssl``, and that the options ``others`` belong to it."""
    if images.ssl is not None:
        if recipe is not None or images.data is not None:
            other = "--data, which names the images of a recipe" if recipe is None else f"the recipe {recipe}"
            raise ConfigError(f"--ssl {images.ssl} conflicts with {other}. Give one of them.")
        return
    if recipe is None:
        raise ConfigError("there is neither a folder of images nor a recipe. Give unlabeled images with --ssl, or a recipe.")
    if names := [f"--{name.replace('_', '-')}" for name in others if name not in ("weights_dir", "device")]:
        raise ConfigError(
            f"options of --ssl, which a recipe sets itself: {', '.join(names)}. Remove them, or give --ssl in place of the recipe."
        )


@options_of(TrainConfig, only=("backbone", "weights", "weights_dir", "device", "seed", "workers"))
@options_of(DistillConfig)
def distill_command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of images. Folders in it have no meaning, and labels are not used.")],
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Folder to write: a backbone in timm's format.")],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Distill a larger network into a backbone on unlabeled images of your domain.

    The backbone learns to predict the features of the teacher. After an interruption, the same command resumes from the last checkpoint.
    """
    need_extra("train")
    own = build(DistillConfig, **given(DistillConfig, context, part(DistillConfig, options)))
    config = build(TrainConfig, **given(TrainConfig, context, part(TrainConfig, options)))
    check_folder(data, holds="images, in any arrangement")
    if config.backbone.weights_dir:
        check_weights_dir(Path(config.backbone.weights_dir))
    with working(json_output=json_output, verbose=verbose) as progress, _saved_checkpoint(out_):
        from edgetl.pretrain.unlabeled.distillation import distill_unlabeled

        record = distill_unlabeled(data, out_, config, own, progress=progress)
    print_json(record) if json_output else _show_continued(record, out_)


def _show_catalogue(catalogue: Catalogue) -> None:
    if not catalogue.backbones:
        raise ConfigError("no backbone fits these options. Raise --max-params or --max-macs, or remove --license or --offline.")
    table = plain_table("backbones", "name", "M par.", "MMACs", "px", "top-1", "int8", "license")
    table.padding = (0, 0, 0, 1)
    for item in catalogue.backbones:
        entry = item.entry
        name = f"{entry.name} *" if item.offline else entry.name
        cost = (f"{entry.params_m:.2f}", f"{entry.mmacs:.0f}", str(entry.input))
        top1 = f"{entry.top1:.1f}" if entry.top1 else ""
        table.add_row(_folded(name, FIGURES_WIDTH), *cost, top1, entry.quantizes.removeprefix("with "), _short(entry.license))
    out.print(table)
    out.print("* weights are on this host. M par.: million parameters. MMACs: million multiply-accumulates. px: input size.")
    out.print("top-1: ImageNet accuracy, %. int8: suitability for quantization. Details: edgetl models NAME")


def _folded(name: str, others: int) -> str:
    """Return the name of a backbone, on two lines if the other columns (``others`` characters) leave too little space."""
    return escape(name.replace(".", "\n  .", 1) if len(name) > out.width - others else name)


def _short(license: str) -> str:
    return license.partition("-clause")[0].removesuffix("-license")


def _show_one(item: Listed) -> None:
    entry = item.entry
    facts = facts_grid()
    for title, value in (
        ("name", entry.name),
        ("source", ", ".join(dict.fromkeys((item.source, entry.tag)))),
        ("size", f"{entry.params_m:g} million parameters, {entry.mmacs:g} MMACs at {entry.input} x {entry.input}"),
        ("crop", f"{entry.crop_pct:g} of the resized image (default of --crop-pct)"),
        ("ImageNet top-1", f"{entry.top1:g} %" if entry.top1 else "not trained on ImageNet labels"),
        ("license", entry.license),
        ("int8", f"{entry.quantizes}: {entry.note}"),
        ("weights", item.path or "not on this host; downloaded at the first use"),
        ("use", f"edgetl train DATA --out RUN --backbone {entry.name}"),
    ):
        facts.add_row(title, escape(value))
    out.print(facts)


def _show_ranking(ranking: Ranking, plot: Path | None) -> None:
    title = f"{ranking.images} images of {ranking.classes} classes, {ranking.seconds:.0f} s"
    tuned = any(item.confirmed for item in ranking.ranked)
    table = plain_table(title, "backbone", "#", "kNN", "ridge", "LogME", "top-1", *(["tuned"] if tuned else []), "ms", "M par.", "license")
    table.padding = (0, 0, 0, 1)
    for item in ranking.ranked:
        confirmed = [f"{item.confirmed.value:.3f}" if item.confirmed else ""] if tuned else []
        name, top1 = _folded(item.name, RANKING_WIDTH + 6 * tuned), f"{item.top1:.1f}" if item.top1 else ""
        scores = (f"{item.knn:.3f}", f"{item.ridge:.3f}", f"{item.logme:.3f}", top1, *confirmed)
        cost = (f"{item.latency_ms:.1f}", f"{item.params_m:.2f}", escape(_short(item.license or "?")))
        table.add_row(name, str(item.place), *scores, *cost)
    out.print(table)
    out.print(
        "#: place; equal places differ by less than one bootstrap standard error. top-1: ImageNet accuracy, %. "
        "ms: one image in torch on one thread."
    )
    print_notes(ranking.notes)
    small = [item.name for item in ranking.ranked if item.stage == "small"]
    if small:
        out.print(f"compared only on small images: {escape(', '.join(small))}", soft_wrap=True)
    missing = [item for item in ranking.left_out if item.reason.endswith("not on this machine")]
    if missing:
        out.print(f"left out: {len(missing)} backbones of `edgetl models` without weights on this host", soft_wrap=True)
    for left in ranking.left_out:
        if left not in missing:
            out.print(f"left out: {escape(left.name)}: {escape(left.reason)}", soft_wrap=True)
    if plot is not None:
        out.print(f"chart written to {escape(str(plot))}", soft_wrap=True)
    out.print(f"next: edgetl train {escape(ranking.data)} --out RUN --backbone {escape(ranking.ranked[0].name)}", soft_wrap=True)


def _show_continued(record: ContinuedRecord, folder: Path) -> None:
    facts = facts_grid()
    teacher = [("teacher", record.teacher)] if record.teacher else []
    if record.method == "distillation":
        measured = ("explained variance", f"{record.explained_before:.3f} of the teacher's features before, {record.explained:.3f} after")
    else:
        measured = ("matched views", f"{record.matched_before:.3f} before, {record.matched:.3f} after")
    for title, value in (
        ("backbone", f"{record.backbone} ({record.architecture})"),
        *teacher,
        ("images", f"{record.images}, {record.steps} steps, {record.seconds:.0f} s"),
        measured,
        ("license", record.license or "not stated"),
    ):
        facts.add_row(title, escape(value))
    out.print(facts)
    out.print(
        f"written to {escape(str(folder))}. Next: edgetl train DATA --backbone local-dir:{escape(str(folder))} --out RUN", soft_wrap=True
    )


def _show_pretrained(record: Pretrained, folder: Path) -> None:
    out.print(
        f"{record.name}: {record.architecture}, {record.params_m:g} million parameters, {record.mmacs:g} MMACs at "
        f"{record.preprocess.input_size[0]} px, {record.steps} steps in {record.seconds / 60:.0f} min; written to {escape(str(folder))}",
        soft_wrap=True,
    )
