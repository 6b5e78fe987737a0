"""Training options: names, types, bounds, defaults and help texts. The command line is generated from these models."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import to_jsonable_python

from edgetl.core.config import StrictModel
from edgetl.core.images.intensity import check_choice
from edgetl.core.licenses import Policy
from edgetl.core.options import COMMON, flat, nested, option_field
from edgetl.core.preprocess import MAX_CROP_PCT, MIN_CROP_PCT, Interpolation, Side
from edgetl.core.tasks import Task
from edgetl.train.config.anomaly.options import AnomalyConfig
from edgetl.train.config.weights_dir import AUTO_BACKBONE, EMBEDDED_BACKBONE, LITE0, chosen_backbone

Strategy: TypeAlias = Literal["auto", "probe", "partial", "full", "progressive", "scratch", "compare"]
HeadKind: TypeAlias = Literal["linear", "knn", "cosine", "mlp", "text"]
Features: TypeAlias = Literal["last", "layers"]
Augment: TypeAlias = Literal["auto", "none", "light", "medium", "strong"]
SplitFraction = Annotated[float, Field(ge=0.0, le=0.5)]
Triple = tuple[float, float, float]
LOGGERS = ("csv", "tensorboard", "mlflow")


def logger_names(text: str | None) -> tuple[str, ...]:
    """Split a comma-separated list of loggers, such as ``csv,mlflow``. Duplicates are removed."""
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def _known_loggers(text: str) -> str:
    if not (names := logger_names(text)) or set(names) - set(LOGGERS):
        raise ValueError(f"{text!r} is not a list of loggers. Give one or more of {', '.join(LOGGERS)}, separated by commas")
    return text


Range = Annotated[str, AfterValidator(check_choice)]
Logged = Annotated[str, AfterValidator(_known_loggers)]

_common = partial(option_field, panel=COMMON)
_backbone = partial(option_field, panel="Backbone and preprocessing")
_data = partial(option_field, panel="Images and labels")
_augmentation = partial(option_field, panel="Augmentation and class balance")
_head = partial(option_field, panel="Head")
_optim = partial(option_field, panel="Optimization")
_loss = partial(option_field, panel="Loss")
_continual = partial(option_field, panel="Continual learning")
_distillation = partial(option_field, panel="Distillation")
_scores = partial(option_field, panel="Scores and unknown images")
_run = partial(option_field, panel="Execution")


class BackboneConfig(StrictModel):
    """Backbone options: architecture, weights, license and preprocessing."""

    name: Annotated[str, AfterValidator(chosen_backbone)] = _common(
        AUTO_BACKBONE,
        "Backbone: a name of `edgetl models`, any timm name, torchvision:NAME, local-dir:PATH, hf-hub:ORG/NAME, or the folder of a run. "
        f"auto is {LITE0} if the extra {LITE0} is installed, otherwise {EMBEDDED_BACKBONE}.",
        option="backbone",
        metavar="NAME",
        validate_default=True,
    )
    weights: str | None = _backbone(
        None, "File with weights for the architecture of --backbone: .safetensors, or .pth with tensors only.", metavar="PATH"
    )
    weights_dir: str | None = _backbone(None, "Local folder with weight files. It is searched before the network is used.", metavar="PATH")
    license: str | None = _backbone(None, "License of the weights (SPDX name), for weights that state none.", metavar="NAME")
    license_policy: Policy = _backbone(
        "any", "License policy for the weights. commercial rejects weights that forbid commercial use or state no license."
    )
    pretrained: bool = _backbone(True, "Pretrained weights. False starts from random weights, for comparison.")
    input_size: tuple[Side, Side] | None = _backbone(
        None, "Input size: height and width in pixels, such as 224,224. Default: the backbone's.", metavar="H,W"
    )
    mean: Triple | None = _backbone(None, "Channel means for normalization, RGB, 0..1. Default: the backbone's.", metavar="R,G,B")
    std: Triple | None = _backbone(None, "Standard deviations for normalization, RGB, 0..1. Default: the backbone's.", metavar="R,G,B")
    crop_pct: float | None = _backbone(
        None,
        "Center crop: ratio of the input side to the side of the resized image, 0.1..1.5. 1 keeps a square image whole, 0.875 cuts 6 % off "
        "each edge, above 1 pads. Default: the backbone's.",
        ge=MIN_CROP_PCT,
        le=MAX_CROP_PCT,
    )
    interpolation: Interpolation | None = _backbone(
        None, "Interpolation of the resize. bilinear and bicubic are typical. Default: the backbone's."
    )
    resize: Literal["fused", "two-step"] | None = _backbone(
        None, "Resize method. fused is faster; two-step is bit-identical to timm's transform. Default: fused, or the backbone's."
    )


class DataConfig(StrictModel):
    """Data options: images, labels, splits, augmentation and sampling."""

    labels: str | None = _common(
        None,
        "Label table (CSV) instead of class folders. It has a column `file`, and label columns: one of class names, one of numbers, or "
        "one for each label (a value above 0 means present).",
        metavar="PATH",
    )
    task: Task | None = _data(
        None, "Task. ordinal: integer grades. anomaly: trained on normal images. Default: by the label columns, or classification."
    )
    columns: str | None = _data(
        None, "Label columns of --labels, separated by commas. Default: all except `file`, `split` and `group`.", metavar="NAMES"
    )
    group: str | None = _data(
        None,
        "Group key: images of one group (object, patient, burst) stay in one split. The key is a column of --labels (default: `group`), or "
        "a regular expression on the path with one capture group.",
        metavar="KEY",
    )
    val: SplitFraction = _data(
        0.15,
        "Fraction of each class for validation, 0..0.5. The number of images is rounded (0.15 of 10: 2). At least 1 image of 2 or more. "
        "Without --val, fewer than 300 images are cross-validated instead.",
    )
    test: SplitFraction = _data(
        0.15,
        "Fraction of each class for the test, 0..0.5. The number of images is rounded (0.15 of 10: 2). At least 1 image of 3 or more.",
    )
    near_duplicates: Literal["together", "ignore"] = _data(
        "together", "Copies of an image that were re-encoded, resized, mirrored or rotated. together keeps them in one split."
    )
    allow_leakage: bool = _data(
        False,
        "Accept ready-made splits with more than 0.5 % of the test images among the copies of training images. The run, the model card and "
        "the manifest record it.",
    )
    include: tuple[str, ...] = _data(
        (), "Glob pattern of files to use that the scan leaves out (masks, thumbnails, hidden files). May be repeated.", metavar="PATTERN"
    )
    exclude: tuple[str, ...] = _data(
        (), "Glob pattern of files or folders to leave out, such as '*_mask.png' or 'train/old/*'. May be repeated.", metavar="PATTERN"
    )
    augment: Augment = _augmentation("auto", "Augmentation strength. auto depends on the number of training images.")
    flip: bool | None = _augmentation(
        None, "Random horizontal flips. Default: on, unless the class names look like digits, letters or sides (left, right)."
    )
    mixup: float | None = _augmentation(
        None, "Mixup: parameter alpha of its Beta distribution. 0 is off; 0.2 is typical. Default: 0 up to 20,000 images.", ge=0.0
    )
    balance: Literal["none", "loss", "sampler", "head"] = _augmentation(
        "none",
        "Class balance for imbalanced data. loss gives rare classes a larger weight in the loss; sampler draws all classes equally often; "
        "head fits the last layer again after the training, with equal weights of all classes (DFR). For a linear probe they are equal.",
    )
    balance_by: str | None = _augmentation(
        None,
        "Column of --groups, such as camera. --balance sampler and head then balance all combinations of a class and a value. "
        "camera:site balances the combinations of two columns.",
        metavar="COLUMN",
    )
    groups: str | None = _augmentation(
        None,
        "Table (CSV) with a column `file` and the column of --balance-by. Default: the table of --labels.",
        metavar="PATH",
    )
    intensity: Range = _data(
        "auto",
        "Intensity rule: conversion of images with more than 8 bits per channel to 8 bits. auto: range of the bits in use. clip: values "
        "above 255 become 255. scale: from the smallest to the largest training value. percentile: 0.5 to 99.5 % of each image. "
        "LOW,HIGH: a fixed range.",
        metavar="RULE",
    )
    workers: int | None = _run(None, "Processes that load images. 0 loads in the main process. Default: by the number of cores.", ge=0)


class HeadConfig(StrictModel):
    """Head options: kind, input features, and number of augmented views for the fit."""

    kind: HeadKind = _head(
        "linear", "Head of --strategy probe. knn: vote of the nearest images. mlp: one hidden layer. text: zero-shot CLIP.", option="head"
    )
    text_embeddings: str | None = _head(
        None,
        "Text embeddings for --head text: .npz or .safetensors with a vector per class name, or .npy with rows in the order of the names.",
        metavar="PATH",
    )
    features: Literal["auto", "last", "layers"] = _head(
        "auto",
        "Features of --strategy probe. last: of the last layer. layers: of all stages. auto: last; the better if cross-validated.",
    )
    augmented_views: int = _head(
        4,
        "Views (random crops) of each image for fitting the head, 1..16. 1 uses the evaluation crop only and is the fastest.",
        ge=1,
        le=16,
    )


class OptimConfig(StrictModel):
    """Optimization options: recipe, strategy, learning rates, regularization and losses."""

    recipe: str | None = _optim(
        None,
        "Recipe in place of the default settings: fastai, or a file NAME.toml. Options on the command line override it.",
        metavar="NAME",
    )
    strategy: Strategy = _common(
        "auto",
        "Fine-tuning strategy. auto: by the number of images. probe: head only. partial: head and last stages. full: all layers except the "
        "stem. progressive: unfreezes one stage after the other. scratch: all layers from random weights. compare: trains probe, partial "
        "and full, and keeps the cheapest that is as accurate as the best.",
    )
    epochs: int | None = _common(
        None, "Epochs: passes over the training images, or auto. Default: auto, by the number of images.", metavar="INT", ge=1
    )
    unfreeze: str | None = _optim(
        None,
        "Layers to fine-tune: a fraction of the stages from the end (0.33), a stage with all later ones (stage4), or first (stem and first "
        "stage). Default: by the strategy.",
        metavar="LAYERS",
    )
    batch_size: int = _optim(32, "Batch size: images per optimizer step, 1..4096.", ge=1, le=4096)
    lr: float | None = _optim(None, "Learning rate of the head. 0.001 is typical. Default: by the number of images.", gt=0.0)
    backbone_lr: float | None = _optim(
        None, "Learning rate of the last stage of the backbone. Default: a fraction of --lr, by the number of images.", gt=0.0
    )
    lr_decay: float | None = _optim(
        None, "Learning rate of the first trained stage, as a fraction of --backbone-lr. 0.1 is typical.", gt=0.0, le=1.0
    )
    weight_decay: float | None = _optim(None, "Weight decay of AdamW, for kernels and matrices. 0.01 to 0.05 is typical.", ge=0.0)
    label_smoothing: float | None = _optim(
        None, "Label smoothing: fraction of the target that is spread over all classes. 0 is off; 0.1 is typical.", ge=0.0, lt=1.0
    )
    drop_path: float | None = _optim(
        None,
        "Stochastic depth: fraction of residual branches to drop. 0 is off. Default: 0.1 for transformers and ConvNeXt with more than "
        "1,000 images, otherwise 0.",
        ge=0.0,
        lt=1.0,
    )
    multilabel_loss: Literal["bce", "asymmetric"] = _loss(
        "bce", "Loss of multi-label tasks. bce: binary cross-entropy. asymmetric: for images with few of many labels."
    )
    regression_loss: Literal["mse", "huber"] = _loss(
        "mse", "Loss of regression and ordinal tasks. mse: mean squared error. huber: less sensitive to outliers."
    )
    tolerance: float | None = _loss(
        None, "Largest error of a correct prediction in regression. Default: a quarter of the standard deviation of the labels.", gt=0.0
    )
    patience: int = _optim(
        5, "Early stopping: validations without a lower loss before training stops. A training has 20 validations.", ge=1
    )

    @field_validator("epochs", mode="before")
    @classmethod
    def _steps_by_images(cls, value: object) -> object:
        return None if value == "auto" else value


class ContinualConfig(StrictModel):
    """Continual-learning options: L2-SP, WiSE-FT, LwF, EWC, replay and progressive networks."""

    lwf: float = _continual(
        0.0,
        "Weight of the Learning-without-Forgetting (LwF) loss. Keeps the outputs for the previous classes. 0 is off; 1 is typical.",
        ge=0.0,
    )
    ewc: float = _continual(
        0.0,
        "Weight of the elastic weight consolidation (EWC) penalty. Keeps the weights that matter to the previous task. 0 is off; 100 to "
        "1000 is typical.",
        ge=0.0,
    )
    l2sp: float = _continual(
        0.0, "Weight of the L2-SP penalty. Keeps the weights close to their initial values. 0 is off; 0.01 is typical.", ge=0.0
    )
    wise_ft: bool = _continual(
        False, "WiSE-FT: interpolate between the initial and the fine-tuned weights, with the lowest validation loss."
    )
    replay: str | None = _continual(
        None, "Replay: mix images of the previous task into the batches. A run, or a folder with one folder per class.", metavar="PATH"
    )
    replay_fraction: float = _continual(0.25, "Fraction of replayed images in each batch, 0..1.", gt=0.0, lt=1.0)
    replay_per_class: int = _continual(20, "Replayed images per class. The most typical images are selected.", ge=1)
    forgetting: Literal["none", "progressive"] = _continual(
        "none",
        "Protection of the previous task by structure. progressive (progressive networks): freeze the previous network and train a new "
        "column beside it. Doubles the size.",
    )


class DistillationConfig(StrictModel):
    """Distillation options: teacher and weight of its loss."""

    teacher: str | None = _distillation(
        None, "Teacher of the distillation: a run with the same classes, or a backbone. Its outputs are additional targets.", metavar="NAME"
    )
    weight: float = _distillation(
        0.5, "Weight of the distillation loss in the total loss, 0..1.", gt=0.0, le=1.0, option="distillation_weight"
    )


class CalibrationConfig(StrictModel):
    """Calibration options: temperature of the scores, and threshold of unknown images. They are chosen on validation images."""

    calibrate: bool = _scores(
        False, "Calibration: divide the outputs by the temperature with the lowest log loss on the validation images. Labels stay the same."
    )
    target_precision: float | None = _scores(
        None,
        "Precision of the labels on validation images, 0..1. Chooses the lowest --reject-below that reaches it. 0.95 is typical.",
        gt=0.0,
        lt=1.0,
    )
    reject_below: float | None = _scores(
        None, "Threshold of unknown images, 0..1: an image whose highest score is lower gets no label. Default: none.", ge=0.0, le=1.0
    )

    @property
    def requested(self) -> bool:
        """True if an option is set."""
        return self.calibrate or self.target_precision is not None or self.reject_below is not None


class RunOptions(StrictModel):
    """Execution options: seed, device, activation cache, loggers and checkpoints."""

    seed: int = _common(0, "Random seed of splits, batches and augmentation.", ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"] = _common("auto", "Device for training. auto uses a GPU if there is one.")
    compile: bool = _run(False, "Compile the training step with torch.compile. Takes minutes at the start; for long trainings.")
    cache_views: int = _run(
        4, "Activation cache: augmented views per image for which the frozen layers run once, 0..64. 0 is off.", ge=0, le=64
    )
    cache_gb: float = _run(8.0, "Largest size of the activation cache on disk, GB.", ge=0.0)
    loggers: Logged | None = _run(
        None,
        "Loggers: csv, tensorboard, mlflow, or several, separated by commas. They write the metrics of each validation into the folder "
        "logs/ of the run. Default: none.",
        metavar="NAMES",
    )
    checkpoint_s: float = _run(60.0, "Seconds between two checkpoints. --resume continues from the last one.", gt=0.0)
    keep: Literal["all", "best"] = _run("all", "Runs of --strategy compare to keep. all keeps the others in OUT.compare.")


class TrainConfig(StrictModel):
    """Training configuration: all options of ``edgetl train``, in groups.

    ``None`` selects a default that depends on the number of training images or on the backbone (:func:`resolve`).

    Each option has a flat name, as on the command line: ``lr`` for ``optim.lr`` and ``--lr`` (:meth:`from_options`). An option that was
    given overrides the recipe, even if its value equals the default.

    Attributes:
        backbone: Architecture, weights, license and preprocessing.
        data: Images, labels, splits, augmentation and sampling.
        head: Kind of head, its input features, and views for the fit.
        optim: Recipe, strategy, learning rates, regularization and losses.
        continual: L2-SP, WiSE-FT, LwF, EWC, replay and progressive networks.
        distillation: Teacher and weight of its loss.
        calibration: Temperature of the scores, and threshold of unknown images.
        anomaly: Threshold and kind of anomalies.
        run: Seed, device, activation cache, loggers and checkpoints.

    Example:
        >>> config = TrainConfig.from_options(strategy="partial", epochs=10)
        >>> config.optim.epochs
        10
    """

    backbone: BackboneConfig = Field(default_factory=BackboneConfig)  # the default depends on the installed packages
    data: DataConfig = DataConfig()
    head: HeadConfig = HeadConfig()
    optim: OptimConfig = OptimConfig()
    continual: ContinualConfig = ContinualConfig()
    distillation: DistillationConfig = DistillationConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    anomaly: AnomalyConfig = AnomalyConfig()
    run: RunOptions = RunOptions()

    @classmethod
    def from_options(cls, **values: Any) -> Self:
        """Build a configuration from options by their flat names.

        Args:
            **values: Options, such as ``strategy="partial"`` or ``epochs=10``.

        Raises:
            pydantic.ValidationError: If a name is unknown or a value is invalid. The message lists all mistakes.
        """
        return cls.model_validate(nested(cls, values))

    def given(self) -> dict[str, Any]:
        """Return the options that were given, by flat name, as JSON values. :meth:`from_options` rebuilds the configuration from them."""
        found: dict[str, Any] = to_jsonable_python(flat(self, only_given=True))
        return found

    def with_options(self, **values: Any) -> Self:
        """Return a copy with additional or changed options ``values``, by their flat names.

        Raises:
            pydantic.ValidationError: If a name is unknown or a value is invalid. The message lists all mistakes.
        """
        return type(self).from_options(**{**flat(self, only_given=True), **values})
