"""Commands that diagnose a transfer: ``edgetl diagnose``, ``distance`` and ``curve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.options import build, given, need_extra, options_of, part
from edgetl.cli.session import JsonOption, VerboseOption, out, print_json, print_notes, working
from edgetl.cli.tables import plain_table
from edgetl.core.config import Model
from edgetl.core.output.folders import check_chart
from edgetl.core.results import Forgetting
from edgetl.data.folder import check_folder
from edgetl.train.config.diagnosis.curve import CurveConfig, CurveReport, Point
from edgetl.train.config.diagnosis.distance import DistanceConfig, DistanceReport
from edgetl.train.config.diagnosis.transfer import TRAINING, TransferConfig, TransferReport
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs

# Training options of all three commands, and those of the commands that train.
BACKBONE = ("backbone", "weights", "weights_dir", "license", "license_policy", "input_size", "crop_pct", "batch_size", "device", "seed")
IMAGES = ("labels", "columns", "group", "val", "test", "include", "exclude")
DataArgument = Annotated[Path, typer.Argument(help="Folder with one folder of images per class, or the folder of the images in --labels.")]
PlotOption = Annotated[Path | None, typer.Option(metavar="PATH", help="Chart to write (PNG): accuracy over the number of labels.")]
WEAK_CONTROL = "Probes do not train the random weights: --fine-tune measures the factor for trained networks."
# Classes with shifted scores in the table.
MOST_SHIFTS = 10


@options_of(TrainConfig, only=(*BACKBONE, *IMAGES, *TRAINING))
@options_of(TransferConfig)
def diagnose_command(
    context: typer.Context, data: DataArgument, json_output: JsonOption = False, verbose: VerboseOption = False, **options: Any
) -> None:
    """Check whether pretraining helps on your images (positive or negative transfer).

    Compares pretrained with random weights and with a linear probe on pixels, on the same test images. The differences have 95 % intervals.
    """
    need_extra("train")
    own, config = _configs(TransferConfig, context, options)
    training_inputs(data, config)
    if own.source is not None:
        check_folder(Path(own.source), option="--source")
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.diagnosis.transfer import diagnose

        report = diagnose(data, config, own, progress=progress)
    print_json(report) if json_output else _show_transfer(report)


@options_of(TrainConfig, only=BACKBONE)
@options_of(DistanceConfig)
def distance_command(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(help="Folder of images, or a run, which stands for the images that it was trained for.")],
    b: Annotated[Path, typer.Argument(help="Folder of images to compare, or a run.")],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Measure the domain distance between two folders of images, or between a run and a folder.

    Tests for a shift of the features (MMD) and of a classifier's scores for each class (black-box shift detection).
    """
    need_extra("train")
    own, config = _configs(DistanceConfig, context, options)
    for path in (a, b):
        check_folder(path, holds="images, or a run")
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.diagnosis.distance import distance

        report = distance(a, b, config, own, progress=progress)
    print_json(report) if json_output else _show_distance(report)


@options_of(TrainConfig, only=(*BACKBONE, *IMAGES, *TRAINING))
@options_of(CurveConfig)
def curve_command(
    context: typer.Context,
    data: DataArgument,
    plot: PlotOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Measure the accuracy over the number of labels, and extrapolate it (learning curve).

    Shows how much more labels would help, and how many labels pretraining replaces.
    """
    need_extra("train")
    own, config = _configs(CurveConfig, context, options)
    inputs = training_inputs(data, config)
    if plot is not None:
        check_chart(plot, "--plot", inputs=inputs)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.diagnosis.curve import learning_curve

        report = learning_curve(data, config, own, progress=progress)
    print_json(report) if json_output else _show_curve(report, plot)
    if plot is not None:
        from edgetl.cli.charts import draw_curve

        draw_curve(report, plot)


def _configs(model: type[Model], context: typer.Context, options: dict[str, Any]) -> tuple[Model, TrainConfig]:
    """Return the options of the command, and its training options."""
    own = build(model, **given(model, context, part(model, options)))
    return own, build(TrainConfig, **given(TrainConfig, context, part(TrainConfig, options)))


def _show_transfer(report: TransferReport) -> None:
    title = f"{report.backbone}: {report.train_images} training images, {report.held_out} held-out images, {report.seconds:.0f} s"
    table = plain_table(escape(title), "model", "pretrained", "steps", "repeats", "accuracy (95 % interval)")
    for arm in report.arms:
        shown = f"{arm.accuracy.value:.3f} ({arm.accuracy.low:.3f} to {arm.accuracy.high:.3f})"
        table.add_row(arm.name, "yes" if arm.pretrained else "no", str(arm.steps), str(arm.repeats), shown)
    out.print(table)
    for comparison in report.comparisons:
        out.print(comparison.describe(), soft_wrap=True)
    print_notes(report.notes)
    if report.forgetting:
        _show_forgetting(report.forgetting)
    elif report.arms[0].steps:
        out.print(f"forgetting of the source task: not measured: {escape(report.forgetting_note)}", soft_wrap=True)
    color = {"positive": "green", "negative": "red", "undecided": "yellow"}[report.transfer]
    out.print(f"[bold {color}]{report.transfer} transfer[/]: {escape(report.reason)}", soft_wrap=True)
    following = {
        "positive": f"edgetl train {report.data} --out RUN --backbone {report.backbone}",
        "negative": f"edgetl rank {report.data} compares other backbones; --strategy scratch trains without pretraining",
        "undecided": "add images, raise --repeats, or add --fine-tune",
    }[report.transfer]
    out.print(f"next: {escape(following)}", soft_wrap=True)


def _show_forgetting(found: Forgetting) -> None:
    out.print(
        f"source task of {escape(found.parent)} ({found.through}): accuracy {found.before:.3f} before, {found.after:.3f} after, "
        f"drop {found.drop:+.3f} ({found.low:+.3f} to {found.high:+.3f}), n = {found.images}",
        soft_wrap=True,
    )


def _show_distance(report: DistanceReport) -> None:
    title = f"{report.a} and {report.b}: {report.images} images each, features of {report.backbone}, {report.seconds:.0f} s"
    table = plain_table(escape(title), "measure", "value", "p")
    table.add_row("proxy-A distance (0 to 2)", f"{report.domains.proxy_a:.2f}", "")
    table.add_row(
        "domain classifier: error (0.5: equal)",
        f"{report.domains.error.value:.3f} ({report.domains.error.low:.3f} to {report.domains.error.high:.3f})",
        "",
    )
    table.add_row("domain classifier: AUC (0.5: equal)", f"{report.domains.auc:.3f}", "")
    table.add_row("MMD² (limit of equal domains)", f"{report.mmd.mmd2:.4f} ({report.mmd.limit:.4f})", f"{report.mmd.p:.3g}")
    if report.scores:
        count = sum(item.shifted for item in report.scores.classes)
        table.add_row("classes with shifted scores", f"{count} of {len(report.scores.classes)}", f"{report.scores.p:.3g}")
    out.print(table)
    if report.scores:
        shown = plain_table(f"scores of {escape(report.scores.classifier)}", "class", "KS distance", "p", "mean A", "mean B", "shifted")
        for item in report.scores.classes[:MOST_SHIFTS]:
            cells = (f"{item.distance:.3f}", f"{item.p:.2g}", f"{item.mean_a:.3f}", f"{item.mean_b:.3f}", "yes" if item.shifted else "no")
            shown.add_row(escape(item.label), *cells)
        out.print(shown)
        if (hidden := len(report.scores.classes) - MOST_SHIFTS) > 0:
            out.print(f"{hidden} classes with larger p-values are only in --json")
    else:
        out.print(f"scores were not compared: {escape(report.scores_note)}", soft_wrap=True)
    if report.common:
        out.print(f"[yellow]{report.common} images are in both domains[/]", soft_wrap=True)
    detected = "[bold yellow]shift detected[/]" if report.shift else "[bold green]no shift detected[/]"
    out.print(f"{detected} (significance level {report.alpha:g}, half of it for each test)", soft_wrap=True)


def _show_curve(report: CurveReport, plot: Path | None) -> None:
    how = "linear probes on frozen features" if report.method == "probe" else f"trainings of {report.steps} steps"
    title = f"{report.backbone}: {how}, {report.held_out} held-out images, 95 % intervals, {report.seconds:.0f} s"
    table = plain_table(escape(title), "labels", "of all", "pretrained", "random weights")
    random = {point.labels: point for point in report.random}
    for point in report.pretrained:
        table.add_row(str(point.labels), f"{point.fraction:.0%}", _accuracy(point), _accuracy(random.get(point.labels)))
    for forecast in report.forecasts:
        cell = f"{forecast.accuracy:.3f} ({forecast.low:.3f} to {forecast.high:.3f})"
        table.add_row(str(forecast.labels), "extrapolated", cell, "")
    out.print(table)
    check = report.backtest
    out.print(
        f"check: the points with at most half of the labels predict {check.forecast.accuracy:.3f} ({check.forecast.low:.3f} to "
        f"{check.forecast.high:.3f}) with all labels; measured {check.measured:.3f}, "
        f"{'inside' if check.inside else '[yellow]outside[/]'} the interval",
        soft_wrap=True,
    )
    same = report.equivalence
    bound, limits = (f"{same.bound} ", "") if same.bound != "equal" else ("", f" ({same.low:.1f} to {same.high:.1f})")
    out.print(
        f"pretraining replaces {bound}{same.factor:.1f} times the labels{limits}: the accuracy "
        f"{same.accuracy:.3f} needs {same.labels_pretrained:.0f} labels with it and {same.labels_random:.0f} without. "
        f"{WEAK_CONTROL if report.method == 'probe' else ''}".rstrip(),
        soft_wrap=True,
    )
    print_notes(report.notes)
    if plot is not None:
        out.print(f"chart written to {escape(str(plot))}", soft_wrap=True)


def _accuracy(point: Point | None) -> str:
    return f"{point.accuracy.value:.3f} ({point.accuracy.low:.3f} to {point.accuracy.high:.3f})" if point else ""
