"""Option resolution: apply the recipe, choose the strategy, and report all conflicting options before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from edgetl.core.tasks import Task
from edgetl.data.split import Splits
from edgetl.errors import ConfigError, DataError, MissingExtraError
from edgetl.train.config.anomaly.options import anomaly_conflicts
from edgetl.train.config.calibration import calibration_conflicts
from edgetl.train.config.options import ContinualConfig, DataConfig, HeadConfig, OptimConfig, Strategy, TrainConfig, logger_names
from edgetl.train.config.plan import TrainingJob, planned_strategy, smooths_labels
from edgetl.train.config.recipe import with_recipe

# Largest number of training images for a k-NN head, which stores their features in the model.
MAX_BANK = 10_000
# Extra and libraries of each logger. MLflow needs the libraries of its SQLite store, because it no longer creates file stores.
_LOGGERS = {"tensorboard": ("log", ("tensorboard",)), "mlflow": ("mlflow", ("mlflow", "sqlalchemy", "alembic"))}


def resolve(config: TrainConfig, splits: Splits) -> TrainingJob:
    """Resolve a configuration for the images of ``splits``: apply the recipe, choose the strategy, and check all options.

    No weights are loaded.

    Args:
        config: Training configuration.
        splits: Training, validation and test images.

    Returns:
        The training job: options with the recipe's values, task, strategy, and the reason for the strategy.

    Raises:
        ConfigError: If options conflict. The message lists all conflicts.
        DataError: If the training or the validation split is empty, or a class or label has no training image.
        MissingExtraError: If the package of a logger is not installed.
    """
    given = config.given()
    config, recipe = with_recipe(config)
    images = splits.counts["train"] if splits.shards else len({sample.content for sample in splits.train})
    strategy, reason = planned_strategy(config.optim.strategy, images, pretrained=config.backbone.pretrained)
    if splits.cross_validated:
        reason += ". Cross-validation replaces the validation split"
    if splits.folder.task == "anomaly":
        strategy, reason = "probe", "anomaly detection: the distances to normal images are fitted on frozen features"
    _refuse([*conflicts(config, given, splits.folder.task, strategy, images)])
    _check_loggers(config.run.loggers)
    _check_splits(splits)
    if config.optim.strategy == "scratch":
        config = config.with_options(pretrained=False, weights=None)
    return TrainingJob(config, recipe, splits.folder.task, images, strategy, reason)


def check_conflicts(config: TrainConfig) -> None:
    """Check options for conflicts before images are scanned. Conflicts with the task are found only if the options determine the task.

    Raises:
        ConfigError: If options conflict. The message lists all conflicts.
    """
    given = config.given()
    config, _ = with_recipe(config)
    task: Task | None = config.data.task or (None if config.data.labels else "classification")
    strategy = config.optim.strategy
    _refuse([*_label_conflicts(config.data), *conflicts(config, given, task, None if strategy == "auto" else strategy)])


def _refuse(found: list[str]) -> None:
    if found:
        raise ConfigError(". ".join(found) + ".")


def conflicts(
    config: TrainConfig, given: Mapping[str, Any], task: Task | None, strategy: Strategy | None, images: int = 0
) -> Iterator[str]:
    """Yield a message for each conflict of options with each other, the task, the strategy or the number of images.

    Args:
        config: Options, with the recipe's values.
        given: Options without the recipe's values.
        task: Task, or None if unknown.
        strategy: Strategy, or None if unknown.
        images: Number of distinct training images, or 0 if unknown.
    """
    random = not config.backbone.pretrained or config.optim.strategy == "scratch"
    if task is not None:
        pretrained = config.backbone.pretrained
        yield from anomaly_conflicts(given, anomaly=task == "anomaly", strategy=config.optim.strategy, pretrained=pretrained)
    if task is not None and task != "anomaly":
        yield from _loss_conflicts(config.optim, config.data.balance, task)
        yield from _balance_conflicts(config.data, config.head, task)
        # A recipe's value is ignored for other losses. A value that was given is a mistake.
        if given.get("label_smoothing") and not smooths_labels(config.optim, task):
            yield "--label-smoothing is only for classification and for --multilabel-loss bce. Remove it"
        yield from calibration_conflicts(config.calibration, task)
        if task != "classification":
            yield from _class_conflicts(config.head, config.continual, config.distillation.teacher, task)
    yield from _head_conflicts(config.head, strategy, images)
    if random and config.head.kind == "text":
        yield "--head text needs the pretrained weights of a CLIP image tower. Remove --random-weights or --strategy scratch"
    yield from _replay_conflicts(config.continual, config.data, config.distillation.teacher)
    yield from _previous_task_conflicts(config.continual, config.distillation.teacher, random=random)


def _label_conflicts(data: DataConfig) -> Iterator[str]:
    if data.labels is not None and data.task == "anomaly":
        yield "--task anomaly reads folders and cannot be combined with --labels. Remove it"
    if data.labels is None and data.task not in (None, "classification", "anomaly"):
        yield f"--task {data.task} needs --labels FILE.csv"
    if data.labels is not None and data.include:
        yield "--include is for class folders and cannot be combined with --labels. Add rows to the table instead"
    if data.labels is None and data.columns is not None:
        yield "--columns needs --labels FILE.csv"


def _loss_conflicts(optim: OptimConfig, balance: str, task: Task) -> Iterator[str]:
    numbers = task in ("regression", "ordinal")
    if task != "multi-label" and optim.multilabel_loss != "bce":
        yield f"--multilabel-loss {optim.multilabel_loss} is only for multi-label tasks, not {task}. Remove it"
    if not numbers and optim.regression_loss != "mse":
        yield f"--regression-loss {optim.regression_loss} is only for regression and ordinal tasks, not {task}. Remove it"
    if task != "regression" and optim.tolerance is not None:
        yield f"--tolerance is only for regression, not {task}. Remove it"
    if numbers and balance != "none":
        yield f"--balance {balance} is only for classification and multi-label tasks, not {task}. Remove it"
    if task == "multi-label" and balance in ("sampler", "head"):
        yield f"--balance {balance} is only for classification, not {task}. Use --balance loss"
    if optim.multilabel_loss == "asymmetric" and balance == "loss":
        yield (
            "--balance loss cannot be combined with --multilabel-loss asymmetric, which already weights positive and negative labels. "
            "Remove one of them"
        )


def _balance_conflicts(data: DataConfig, head: HeadConfig, task: Task) -> Iterator[str]:
    if data.balance_by is None:
        if data.groups is not None:
            yield "--groups needs --balance-by COLUMN, the column to balance"
        return
    if data.balance not in ("sampler", "head"):
        yield f"--balance-by cannot be combined with --balance {data.balance}. Use --balance sampler or --balance head"
    if task != "classification" or head.kind != "linear":
        yield "--balance-by is only for classification with --head linear. Remove it"
    if data.groups is None and data.labels is None:
        yield f"--balance-by {data.balance_by} needs --groups FILE.csv, a table with the columns `file` and {data.balance_by}"


def _class_conflicts(head: HeadConfig, continual: ContinualConfig, teacher: str | None, task: Task) -> Iterator[str]:
    if head.kind != "linear":
        yield f"--head {head.kind} is only for classification, not {task}. Use --head linear"
    if continual.lwf or continual.ewc or continual.replay or teacher:
        yield f"--lwf, --ewc, --replay and --teacher are only for classification, not {task}. Remove them"


def _head_conflicts(head: HeadConfig, strategy: Strategy | None, images: int) -> Iterator[str]:
    options = [f"--head {head.kind}"] * (head.kind != "linear") + [f"--features {head.features}"] * (head.features == "layers")
    if options and strategy not in (None, "probe"):
        yield f"{' and '.join(options)} cannot be combined with the strategy {strategy}. Add --strategy probe"
    if (head.kind == "text") != (head.text_embeddings is not None):
        yield "--head text and --text-embeddings FILE belong together. Give both, or remove the other one"
    if head.kind == "text" and head.features == "layers":
        yield "--features layers cannot be combined with --head text, because CLIP projects the last features. Remove --features"
    if head.kind == "knn" and images > MAX_BANK:
        yield (
            f"--head knn stores the features of all training images in the model, at most {MAX_BANK:,}. There are {images:,} training "
            f"images. Use --head linear, cosine or mlp"
        )


def _replay_conflicts(continual: ContinualConfig, data: DataConfig, teacher: str | None) -> Iterator[str]:
    if continual.replay and (data.balance in ("sampler", "head") or data.mixup):
        yield (
            "--replay cannot be combined with --balance sampler, --balance head or --mixup, because each of them changes the weights of "
            "images. "
            "Remove one of them"
        )
    if continual.replay and teacher:
        yield "--teacher cannot be combined with --replay, because the teacher has no outputs for the replayed classes. Remove one of them"


def _previous_task_conflicts(continual: ContinualConfig, teacher: str | None, *, random: bool) -> Iterator[str]:
    """Yield conflicts of continual learning. ``random`` is True if training starts from random weights."""
    needed = [f"--{name}" for name in ("lwf", "ewc", "replay") if getattr(continual, name)]
    progressive = continual.forgetting == "progressive"
    if random and (needed or progressive):
        protected = " and ".join(needed + ["--forgetting progressive"] * progressive)
        yield f"{protected} cannot be combined with random weights (--random-weights or --strategy scratch). Remove one of them"
    others = needed + ["--l2sp"] * bool(continual.l2sp) + ["--wise-ft"] * continual.wise_ft + ["--teacher"] * bool(teacher)
    if progressive and others:
        yield (
            f"--forgetting progressive keeps the previous network frozen and cannot be combined with {' and '.join(others)}. "
            f"Remove one of them"
        )


def _check_loggers(loggers: str | None) -> None:
    for name in logger_names(loggers):
        extra, libraries = _LOGGERS.get(name, ("", ()))
        for library in libraries:
            if find_spec(library) is None:
                raise MissingExtraError(library, extra)


def _check_splits(splits: Splits) -> None:
    folder = splits.folder
    if not splits.train or not splits.validation:
        raise DataError(
            f"{folder.root} has {len(splits.train)} training and {len(splits.val)} validation images. Each split needs at least one. Add "
            f"images, or raise --val."
        )
    if folder.task in ("regression", "ordinal", "anomaly"):
        return
    classes = folder.task == "classification"
    trained = {sample.label for sample in splits.train} if classes else set()
    trained |= {index for sample in splits.train for index, value in enumerate(sample.targets) if value and not classes}
    if missing := [label for index, label in enumerate(folder.labels) if index not in trained]:
        kind = "class" if classes else "column"
        raise DataError(f"{folder.root} has no training image of {', '.join(missing[:5])}. Add images, or remove the {kind}.")
