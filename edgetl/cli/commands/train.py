"""Commands ``edgetl train`` and ``edgetl plan``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgetl.cli.commands.evaluation.group_tables import show_balancing
from edgetl.cli.options import build, given, need_extra, options_of, part
from edgetl.cli.session import (
    Interrupted,
    JsonOption,
    OverwriteOption,
    VerboseOption,
    is_first_process,
    out,
    print_json,
    print_notes,
    working,
)
from edgetl.cli.tables import classes_table, figures_line, plain_table, reliability_lines, with_interval
from edgetl.core.bundle import is_run
from edgetl.core.config import StrictModel
from edgetl.core.lineage import describe_parent
from edgetl.core.options import COMMON, option_field, options
from edgetl.core.output.folders import check_chart, check_output
from edgetl.core.results import validation_images
from edgetl.core.system.child_process import child_environment, trusted_path
from edgetl.data.groups import describe_grouping
from edgetl.errors import ConfigError
from edgetl.executors.tasks import TaskConfig, tasks_of
from edgetl.train.config.options import CalibrationConfig, TrainConfig
from edgetl.train.config.paths import training_inputs

if TYPE_CHECKING:
    from edgetl.core.results import Forgetting
    from edgetl.train.artifacts.record import RunRecord
    from edgetl.train.artifacts.run import Run
    from edgetl.train.workflows.estimate import Estimates


class Launch(StrictModel):
    """Options of ``edgetl train`` that are not part of the training configuration."""

    resume: bool = option_field(False, "Resume the interrupted training of --out. Its other options are restored.", panel=COMMON)
    preview: str | None = option_field(
        None,
        "Chart to write (PNG): augmented training images. Nothing is trained.",
        panel="Augmentation and class balance",
        metavar="PATH",
    )
    random_weights: bool = option_field(
        False, "Start from random instead of pretrained weights, for comparison.", panel="Backbone and preprocessing"
    )
    devices: int = option_field(
        1, "Processes on this host, started with torchrun: one per GPU, or several on a CPU.", panel="Distributed training", ge=1
    )
    num_nodes: int = option_field(
        1,
        "Hosts of the training. The environment variables of torchrun (PET_RDZV_ENDPOINT and others) set the meeting point.",
        panel="Distributed training",
        ge=1,
    )


@options_of(TaskConfig)
@options_of(Launch)
@options_of(TrainConfig, without=("pretrained",))
def train_command(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder with one folder of images per class, or with train/, val/ and test/ folders of them, or the folder of the images "
            "in --labels. Or shards: a folder of `edgetl pack`, or a pattern such as 'shards/{00000..00999}.tar'. Optional with --resume."
        ),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", "-o", metavar="PATH", help="Run folder to write.")] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Fine-tune a backbone on a folder of labeled images."""
    need_extra("train")
    launch = build(Launch, **given(Launch, context, part(Launch, options)))
    division = build(TaskConfig, **given(TaskConfig, context, part(TaskConfig, options)))
    data, config = _requested(data, out_, launch, given(TrainConfig, context, part(TrainConfig, options)))
    inputs = training_inputs(data, config)
    if launch.preview is not None:
        check_chart(Path(launch.preview), "--preview", inputs=inputs)
        _draw_preview(data, config, Path(launch.preview), json_output=json_output, verbose=verbose)
        return
    if out_ is None:
        raise ConfigError("--out is missing. Add the folder for the run: --out RUN.")
    if not (launch.resume and not overwrite and is_run(out_)):
        if is_first_process():
            check_output(out_, inputs=inputs, overwrite=overwrite)
        _become_many(launch.devices, launch.num_nodes)
    with working(json_output=json_output, verbose=verbose) as progress, _saved_work(out_):
        from edgetl.train.workflows.train import train, train_in_tasks

        if tasks := tasks_of(division, progress):
            run = train_in_tasks(data, config, out_, tasks, overwrite=overwrite, resume=launch.resume)
        else:
            run = train(data, config, out_, overwrite=overwrite, resume=launch.resume, progress=progress)
    if is_first_process():
        print_json(run.record) if json_output else show_run(run)


def _requested(data: Path | None, out_: Path | None, launch: Launch, options: dict[str, Any]) -> tuple[Path, TrainConfig]:
    """Return the folder and the options of the training. With ``--resume``, missing ones are those of the saved state."""
    from edgetl.train.loop.resume import find_job

    if launch.random_weights:
        options["pretrained"] = False
    if launch.resume and out_ is not None and (job := find_job(out_)):
        data, options = data or Path(job.data), {**job.options, **options}
    if data is None:
        raise ConfigError(
            "the folder of images is missing. Use: edgetl train DATA --out RUN. Only --resume with a saved state works without DATA."
        )
    return data, build(TrainConfig, **options)


def _draw_preview(data: Path, config: TrainConfig, chart: Path, *, json_output: bool, verbose: bool) -> None:
    """Draw augmented training images, and print the path of the chart."""
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.preview import draw_preview

        draw_preview(data, config, chart, progress=progress)
    print_json({"preview": str(chart)}) if json_output else out.print(f"chart written to {escape(str(chart))}", soft_wrap=True)


@contextmanager
def _saved_work(out_: Path) -> Iterator[None]:
    """Add the saved state to the message if a signal interrupts the block."""
    from edgetl.train.loop.resume import describe_saved

    try:
        yield
    except Interrupted as stopped:
        stopped.saved = describe_saved(out_)
        raise


def _become_many(devices: int, num_nodes: int) -> None:
    """Replace this process by ``torchrun`` with the same command, unless one process is enough or torchrun started it."""
    if devices * num_nodes == 1 or "RANK" in os.environ:
        return
    place = ["--standalone"] if num_nodes == 1 else ["--nnodes", str(num_nodes)]
    launch = ["-P", "-m", "torch.distributed.run", *place, "--nproc-per-node", str(devices), "-m", "edgetl.cli.app"]
    environment = child_environment(PYTHONPATH=os.pathsep.join(trusted_path()))
    os.execve(sys.executable, [sys.executable, *launch, *sys.argv[1:]], environment)


@options_of(
    TrainConfig,
    without=("pretrained", "strategy", "head", "features", "unfreeze", "checkpoint_s", "allow_leakage", *options(CalibrationConfig)),
)
def plan_command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with one folder of images per class, or of the images in --labels.")],
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
    **options: Any,
) -> None:
    """Estimate steps, time and memory of each fine-tuning strategy on this host.

    The strategy that `edgetl train` chooses by default is marked with *. `edgetl plan predict` is a command of its own: it estimates batch
    scoring. A folder with the name predict is ./predict here.
    """
    need_extra("train")
    config = build(TrainConfig, **given(TrainConfig, context, options))
    training_inputs(data, config)
    with working(json_output=json_output, verbose=verbose) as progress:
        from edgetl.train.workflows.estimate import estimate

        estimates = estimate(data, config, progress=progress)
    print_json(estimates) if json_output else _show_estimates(estimates)


def _show_estimates(found: Estimates) -> None:
    title = f"{found.images} distinct training images, {found.backbone}, {found.device}"
    table = plain_table(escape(title), "strategy", "steps", "minutes", "memory MB", "trained M", "layers", "validation")
    for item in found.strategies:
        name = f"{item.plan.strategy} *" if item.chosen else item.plan.strategy
        tuned = item.plan.unfreeze if item.plan.steps else "head"
        validation = f"{item.validation_images} images" if item.validation_images else "cross-validation"
        figures = str(item.plan.steps), f"{item.minutes:.1f}", f"{item.memory_mb:.0f}", f"{item.trained_m:.2f}"
        table.add_row(name, *figures, tuned, validation)
    out.print(table)
    print_notes(found.notes)
    out.print("* default strategy (auto). trained M: million trained parameters. layers: see --unfreeze.")
    out.print("Times are estimates from a few batches. Early stopping shortens them.")
    out.print(f"next: edgetl train {escape(found.data)} --out RUN", soft_wrap=True)


def show_run(run: Run) -> None:
    """Print the metrics of a run, and the next command."""
    record = run.record
    shown = record.test or record.validation
    if shown.classes:
        out.print(classes_table(shown, "test images" if record.test else validation_images(record.folds)))
    show_figures(record)
    splits = run.splits()
    for title, items in (
        ("cannot be decoded and were left out", splits.broken),
        ("have a copy under another label and are used for training only", splits.conflicts),
        ("of validation and test were left out, because the backbone was trained on them", splits.excluded),
    ):
        if items:
            names = ", ".join(item if isinstance(item, str) else " = ".join(item) for item in items[:3])
            out.print(f"[yellow]{len(items)} images {title}[/]: {escape(names)}{' …' if len(items) > 3 else ''}", soft_wrap=True)
    print_notes(record.notes)
    out.print(f"groups: {escape(describe_grouping(record.grouping, record.task))}", soft_wrap=True)
    if record.leaked_test_images:
        out.print(f"[yellow]leakage:[/] {record.leaked_test_images} test images are copies of training images", soft_wrap=True)
    for tried in record.compared:
        length = f"{tried.steps} steps" if tried.steps else "no steps"
        out.print(f"compared: {tried.strategy:8} validation accuracy {with_interval(tried.validation)}, {length}, {tried.seconds:.0f} s")
    if record.compared:
        out.print(escape(record.plan.reason), soft_wrap=True)
        work = run.path.with_name(f"{run.path.name}.compare")
        kept = f"; all runs are in {escape(str(work))}" if work.is_dir() else ""
        out.print(f"the whole comparison took {record.seconds:.0f} s{kept}", soft_wrap=True)
    _show_effects(record)
    if not record.head.plain:
        out.print(f"head: {record.head.describe()}")
    for alarm in record.alarms:
        out.print(f"[yellow]warning:[/] {escape(alarm)}", soft_wrap=True)
    for parent in record.backbone.parents:
        out.print(f"made from {escape(describe_parent(parent))}", soft_wrap=True)
    license = escape(record.backbone.license or "not stated")
    out.print(f"license of the weights: {license}", soft_wrap=True)
    out.print(f"written to {escape(str(run.path))} in {record.seconds:.0f} s", soft_wrap=True)
    out.print(f"next: edgetl export {escape(str(run.path))} --out BUNDLE", soft_wrap=True)


def show_figures(record: RunRecord) -> None:
    """Print the metrics on validation and test images, and the calibration of the scores."""
    done = record.calibration
    before = (done.validation_before, done.test_before) if done else (None, None)
    for name, old, new in zip((record.validation_name, "test"), before, (record.validation, record.test), strict=True):
        for line in (figures_line(new), *reliability_lines(new, before=old)) if new else ():
            out.print(f"{name} {line}", soft_wrap=True)
    if scores := record.decision_rule.describe_scores():
        out.print(f"scores: {scores}", soft_wrap=True)
    for notice in done.notices if done else ():
        out.print(f"[yellow]scores:[/] {escape(notice)}", soft_wrap=True)


def _show_effects(record: RunRecord) -> None:
    """Print the effect of ``--balance`` on groups, and the effect of the training on the previous task."""
    if record.balancing:
        show_balancing(record.balancing)
    if record.forgetting:
        _show_forgetting(record.forgetting, record.backbone.name)


def _show_forgetting(old: Forgetting, backbone: str) -> None:
    """Print the accuracy drop on the previous task, and the classes with a drop beyond chance."""
    out.print(
        f"previous task, of {escape(old.parent)} ({old.through}): accuracy {old.before:.4f} before, {old.after:.4f} after, "
        f"drop {old.drop:.4f} ({old.low:.4f} to {old.high:.4f}), n = {old.images} unseen images",
        soft_wrap=True,
    )
    if worst := old.most_forgotten()[:3]:
        named = ", ".join(
            f"{escape(item.label)} {item.before:.2f} to {item.after:.2f} (drop {item.low:.2f} to {item.high:.2f}, n = {item.n})"
            for item in worst
        )
        out.print(f"largest drops: {named}. Reduce them with --replay {escape(backbone)} --lwf 1.", soft_wrap=True)
