"""Resolution of a training: recipe, task, strategy, and every conflict between options, before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from edgetl.core.tasks import Task
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, DataError, MissingExtraError
from edgetl.train.config.options import DataConfig, Strategy, TrainConfig, logger_names
from edgetl.train.config.plan import TrainingJob, planned_strategy, smooths
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
    config, recipe = with_recipe(config)
    images = len({sample.content for sample in splits.train})
    strategy, reason = planned_strategy(config, images)
    refuse([*task_conflicts(config, splits.folder.task), *_strategy_conflicts(config, strategy, images=images)])
    _check_loggers(config.run.loggers)
    _check_splits(splits)
    if strategy == "scratch":
        config = config.with_options(pretrained=False, weights=None)
    return TrainingJob(config, recipe, splits.folder.task, images, strategy, reason)


def refuse(conflicts: list[str]) -> None:
    """Report all conflicts together.

    Raises:
        ConfigError: there is one.
    """
    if conflicts:
        raise ConfigError("; ".join(conflicts) + ".")


def labels_conflicts(config: DataConfig) -> Iterator[str]:
    """Options that need a table of labels, or conflict with one."""
    if config.labels is None and config.task not in (None, "classification"):
        yield f"--task {config.task} needs --labels FILE.csv"
    if config.labels is not None and config.include:
        yield "--include adds files to class folders, and --labels names its files; add rows to the table"
    if config.labels is None and config.columns is not None:
        yield "--columns needs --labels FILE.csv"


def check_early(config: TrainConfig) -> None:
    """Refuse conflicts that need no image, before images are scanned; those of the task where the options name it.

    Raises:
        ConfigError: naming all of them.
    """
    config, _ = with_recipe(config)
    task: Task | None = config.data.task or (None if config.data.labels else "classification")
    strategy = config.optim.strategy
    by_strategy = () if strategy == "auto" else _strategy_conflicts(config, strategy, images=0)
    refuse([*labels_conflicts(config.data), *(task_conflicts(config, task) if task else ()), *by_strategy])


def task_conflicts(config: TrainConfig, task: Task) -> Iterator[str]:
    """Options that conflict with each other or with ``task``, whatever the images are."""
    optim, balance = config.optim, config.data.balance
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
    if optim.label_smoothing and "label_smoothing" in optim.model_fields_set and not smooths(config, task):
        yield "--label-smoothing is for classes and for --multilabel-loss bce"
    if task != "classification" and config.head.kind != "linear":
        yield f"--head {config.head.kind} predicts classes, and {task} has none; use --head linear"
    yield from _continual_conflicts(config, task)


def _continual_conflicts(config: TrainConfig, task: Task) -> Iterator[str]:
    continual, teacher = config.continual, config.distillation.teacher
    needs_previous = [name for name in ("lwf", "ewc", "replay") if getattr(continual, name)]
    random = not config.backbone.pretrained or config.optim.strategy == "scratch"
    if task != "classification" and (needs_previous or teacher):
        yield f"--lwf, --ewc, --replay and --teacher work for classification only; the task is {task}"
    if needs_previous and random:
        yield f"{' and '.join(f'--{name}' for name in needs_previous)} needs pretrained weights; remove it, or use pretrained weights"
    if continual.replay and (config.data.balance == "sampler" or config.data.mixup):
        yield "--replay does not go with --balance sampler or --mixup, which make batches in their own ways; remove one"
    if continual.replay and teacher:
        yield "--teacher and --replay conflict: the teacher does not know the replayed classes; remove one"
    if continual.forgetting == "progressive":
        if random:
            yield "--forgetting progressive needs pretrained weights; remove it, or use pretrained weights"
        others = [name for name in ("lwf", "ewc", "l2sp", "replay", "wise_ft") if getattr(continual, name)] + ["teacher"] * bool(teacher)
        if others:
            named = " and ".join(f"--{name.replace('_', '-')}" for name in others)
            yield f"--forgetting progressive keeps the previous network frozen and does not go with {named}; remove one"


def _strategy_conflicts(config: TrainConfig, strategy: Strategy, *, images: int) -> Iterator[str]:
    head = config.head
    options = [f"--head {head.kind}"] * (head.kind != "linear") + [f"--features {head.features}"] * (head.features != "last")
    if options and strategy != "probe":
        yield f"{' and '.join(options)} is for a probe, and the strategy is {strategy}; add --strategy probe"
    if head.kind == "knn" and images > MAX_BANK:
        yield (
            f"--head knn keeps the features of every training image in the model, and {images:,} are more than {MAX_BANK:,}; use --head "
            f"linear, cosine or mlp, which do not grow"
        )


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
