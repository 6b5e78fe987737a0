"""Resolution of a training: recipe, task, strategy, and every conflict between options, before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from edgetl.core.tasks import Task
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, DataError, MissingExtraError
from edgetl.train.config.options import ContinualConfig, DataConfig, HeadConfig, OptimConfig, Strategy, TrainConfig, logger_names
from edgetl.train.config.plan import TrainingJob, planned_strategy, smooths_labels
from edgetl.train.config.recipe import with_recipe

# Images whose features a k-NN head keeps in the model.
MAX_BANK = 10_000
# Libraries and extra of each logger; MLflow keeps its figures in SQLite, because it refuses to begin new folders of plain files.
_LOGGERS = {"tensorboard": ("log", ("tensorboard",)), "mlflow": ("mlflow", ("mlflow", "sqlalchemy", "alembic"))}


def resolve(config: TrainConfig, splits: Splits) -> TrainingJob:
    """Apply the recipe, choose the strategy, and refuse what cannot be trained.

    Raises:
        ConfigError: options that conflict; the text names all of them.
        DataError: no image is left to train or to choose on, or a class or label has no training image.
        MissingExtraError: the package of a logger is not installed.
    """
    given = config.given()
    config, recipe = with_recipe(config)
    images = len({sample.content for sample in splits.train})
    strategy, reason = planned_strategy(config.optim.strategy, images, pretrained=config.backbone.pretrained)
    _refuse([*conflicts(config, given, splits.folder.task, strategy, images)])
    _check_loggers(config.run.loggers)
    _check_splits(splits)
    if config.optim.strategy == "scratch":
        config = config.with_options(pretrained=False, weights=None)
    return TrainingJob(config, recipe, splits.folder.task, images, strategy, reason)


def check_conflicts(config: TrainConfig) -> None:
    """Refuse conflicts that need no image, before images are scanned; those with the task where the options name it.

    Raises:
        ConfigError: naming all of them.
    """
    given = config.given()
    config, _ = with_recipe(config)
    task: Task | None = config.data.task or (None if config.data.labels else "classification")
    strategy = config.optim.strategy
    _refuse([*_label_conflicts(config.data), *conflicts(config, given, task, None if strategy == "auto" else strategy)])


def _refuse(found: list[str]) -> None:
    if found:
        raise ConfigError("; ".join(found) + ".")


def conflicts(
    config: TrainConfig, given: Mapping[str, Any], task: Task | None, strategy: Strategy | None, images: int = 0
) -> Iterator[str]:
    """Options that conflict with each other, the task, the strategy or the number of images, as far as these are known.

    ``given`` are the options without the recipe's.
    """
    random = not config.backbone.pretrained or config.optim.strategy == "scratch"
    if task is not None:
        yield from _loss_conflicts(config.optim, config.data.balance, task)
        # A recipe's value has no effect on other losses; one that was given is a mistake.
        if given.get("label_smoothing") and not smooths_labels(config.optim, task):
            yield "--label-smoothing is for classes and for --multilabel-loss bce"
        if task != "classification":
            yield from _class_conflicts(config.head, config.continual, config.distillation.teacher, task)
    yield from _head_conflicts(config.head, strategy, images)
    yield from _replay_conflicts(config.continual, config.data, config.distillation.teacher)
    yield from _previous_task_conflicts(config.continual, config.distillation.teacher, random=random)


def _label_conflicts(data: DataConfig) -> Iterator[str]:
    if data.labels is None and data.task not in (None, "classification"):
        yield f"--task {data.task} needs --labels FILE.csv"
    if data.labels is not None and data.include:
        yield "--include adds files to class folders, and --labels names its files; add rows to the table"
    if data.labels is None and data.columns is not None:
        yield "--columns needs --labels FILE.csv"


def _loss_conflicts(optim: OptimConfig, balance: str, task: Task) -> Iterator[str]:
    numbers = task in ("regression", "ordinal")
    if task != "multi-label" and optim.multilabel_loss != "bce":
        yield f"--multilabel-loss does not go with {task}"
    if not numbers and optim.regression_loss != "mse":
        yield f"--regression-loss does not go with {task}"
    if task != "regression" and optim.tolerance is not None:
        yield f"--tolerance is for --task regression, not {task}"
    if numbers and balance != "none":
        yield f"--balance {balance} weighs classes and labels; {task} has none"
    if task == "multi-label" and balance == "sampler":
        yield f"--balance sampler draws classes; use --balance loss for {task}"
    if optim.multilabel_loss == "asymmetric" and balance == "loss":
        yield "--balance loss does not go with --multilabel-loss asymmetric, which weighs by itself"


def _class_conflicts(head: HeadConfig, continual: ContinualConfig, teacher: str | None, task: Task) -> Iterator[str]:
    if head.kind != "linear":
        yield f"--head {head.kind} predicts classes, and {task} has none; use --head linear"
    if continual.lwf or continual.ewc or continual.replay or teacher:
        yield f"--lwf, --ewc, --replay and --teacher work for classification only; the task is {task}"


def _head_conflicts(head: HeadConfig, strategy: Strategy | None, images: int) -> Iterator[str]:
    options = [f"--head {head.kind}"] * (head.kind != "linear") + [f"--features {head.features}"] * (head.features != "last")
    if options and strategy not in (None, "probe"):
        yield f"{' and '.join(options)} is for a probe, and the strategy is {strategy}; add --strategy probe"
    if head.kind == "knn" and images > MAX_BANK:
        yield (
            f"--head knn keeps the features of every training image in the model, and {images:,} are more than {MAX_BANK:,}; use --head "
            f"linear, cosine or mlp, which do not grow"
        )


def _replay_conflicts(continual: ContinualConfig, data: DataConfig, teacher: str | None) -> Iterator[str]:
    if continual.replay and (data.balance == "sampler" or data.mixup):
        yield "--replay does not go with --balance sampler or --mixup, which make batches in their own ways; remove one"
    if continual.replay and teacher:
        yield "--teacher and --replay conflict: the teacher does not know the replayed classes; remove one"


def _previous_task_conflicts(continual: ContinualConfig, teacher: str | None, *, random: bool) -> Iterator[str]:
    """``random``: training starts from random weights."""
    needed = [f"--{name}" for name in ("lwf", "ewc", "replay") if getattr(continual, name)]
    progressive = continual.forgetting == "progressive"
    if random and (needed or progressive):
        yield f"{' and '.join(needed + ['--forgetting progressive'] * progressive)} needs pretrained weights; remove it, or use them"
    others = needed + ["--l2sp"] * bool(continual.l2sp) + ["--wise-ft"] * continual.wise_ft + ["--teacher"] * bool(teacher)
    if progressive and others:
        yield f"--forgetting progressive keeps the previous network frozen and does not go with {' and '.join(others)}; remove one"


def _check_loggers(loggers: str | None) -> None:
    for name in logger_names(loggers):
        extra, libraries = _LOGGERS.get(name, ("", ()))
        for library in libraries:
            if find_spec(library) is None:
                raise MissingExtraError(library, extra)


def _check_splits(splits: Splits) -> None:
    folder = splits.folder
    if not splits.train or not splits.val:
        raise DataError(
            f"{folder.root} leaves {len(splits.train)} training and {len(splits.val)} validation images; add images or raise --val."
        )
    if folder.task in ("regression", "ordinal"):
        return
    classes = folder.task == "classification"
    trained = {sample.label for sample in splits.train} if classes else set()
    trained |= {index for sample in splits.train for index, value in enumerate(sample.targets) if value and not classes}
    if missing := [label for index, label in enumerate(folder.labels) if index not in trained]:
        what = "class" if classes else "column"
        raise DataError(f"{folder.root} has no training image of {', '.join(missing[:5])}; add some, or remove the {what}.")
