"""Options of fine-tuning: names, types, bounds, defaults and help. The command line is generated from them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import to_jsonable_python

from edgetl.core.config import StrictModel
from edgetl.core.images.intensity import check_choice
from edgetl.core.licenses import Policy
from edgetl.core.options import flat, nested, option_field
from edgetl.core.preprocess import Interpolation, Side
from edgetl.core.tasks import Task

Strategy: TypeAlias = Literal["auto", "probe", "partial", "full", "progressive", "scratch", "compare"]
HeadKind: TypeAlias = Literal["linear", "knn", "cosine", "mlp"]
Features: TypeAlias = Literal["last", "layers"]
Augment: TypeAlias = Literal["auto", "none", "light", "medium", "strong"]
Share = Annotated[float, Field(ge=0.0, le=0.5)]
Triple = tuple[float, float, float]
LOGGERS = ("csv", "tensorboard", "mlflow")

DEFAULT_BACKBONE = "edgetl_small"


def logger_names(text: str | None) -> tuple[str, ...]:
    """``csv,mlflow`` as words."""
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def _known_loggers(text: str) -> str:
    names = logger_names(text)
    if not names or set(names) - set(LOGGERS):
        raise ValueError(f"{text!r} is not possible; it takes {', '.join(LOGGERS)}, separated by commas")
    return text


Range = Annotated[str, AfterValidator(check_choice)]
Logged = Annotated[str, AfterValidator(_known_loggers)]


_backbone = partial(option_field, panel="Backbone")
_data = partial(option_field, panel="Data")
_head = partial(option_field, panel="Head")
_optim = partial(option_field, panel="Optimization")
_continual = partial(option_field, panel="Continual learning")
_distillation = partial(option_field, panel="Distillation")
_run = partial(option_field, panel="Execution")


class BackboneConfig(StrictModel):
    """Backbone: its weights, their license, and its preprocessing."""

    name: str = _backbone(
        DEFAULT_BACKBONE, "Embedded name, run, timm name, torchvision:NAME, local-dir:PATH or hf-hub:ORG/NAME.", option="backbone"
    )
    weights: str | None = _backbone(None, "A .safetensors or .pth file (tensors only) for the architecture that --backbone names.")
    weights_dir: str | None = _backbone(None, "A local folder of weights, searched first.")
    license: str | None = _backbone(None, "Of the weights (SPDX), where they do not say it.")
    license_policy: Policy = _backbone("any", "any, or commercial: refuse weights that forbid it or do not say.")
    pretrained: bool = _backbone(True, "False starts from random weights: a control, and for architectures without weights.")
    input_size: tuple[Side, Side] | None = _backbone(None, "Height and width, such as 224,224 (default: the backbone's).")
    mean: Triple | None = _backbone(None, "Three numbers, RGB on 0..1 (default: the backbone's).")
    std: Triple | None = _backbone(None, "Three numbers, RGB on 0..1 (default: the backbone's).")
    crop_pct: float | None = _backbone(None, "Share of the resized image that the crop keeps (default: the backbone's).")
    interpolation: Interpolation | None = _backbone(None, "Resize filter: bilinear or bicubic (default: the backbone's).")
    resize: Literal["fused", "two-step"] | None = _backbone(
        None, "Resize method: fused (default), or two-step (bit-identical to timm's transform)."
    )


class DataConfig(StrictModel):
    """Images, labels, splits, augmentation and sampling."""

    labels: str | None = _data(
        None, "CSV of labels: a column `file`, and one column of class names, one of numbers, or one for each label (above 0: present)."
    )
    task: Task | None = _data(
        None, "Task: classification, multi-label, regression or ordinal (whole grades). The default follows from the columns of --labels."
    )
    columns: str | None = _data(None, "Label columns of --labels, separated by commas (default: all but `file`, `split` and `group`).")
    group: str | None = _data(
        None,
        "Group key: a column of --labels (default: `group`), or a regular expression on the path, whose first group is the key. Images "
        "of one group (object, patient, burst) stay in one split.",
    )
    include: tuple[str, ...] = _data(
        (), "Glob pattern of files to use although the scan leaves them out (masks, thumbnails, hidden files). May be repeated."
    )
    exclude: tuple[str, ...] = _data(
        (), "Glob pattern of files and folders to leave out, such as '*_mask.png' or 'train/old/*'. May be repeated."
    )
    val: Share = _data(0.15, "Share of the images for validation.")
    test: Share = _data(0.15, "Share of the images for the test.")
    augment: Augment = _data("auto", "Augmentation: auto, none, light, medium or strong.")
    flip: bool | None = _data(None, "Mirror images (default: unless the classes' names look like digits, letters or sides).")
    mixup: float | None = _data(None, "Mixup of pairs of images, in shares from Beta(A, A) (default: only above 20,000 images).", ge=0.0)
    balance: Literal["none", "loss", "sampler"] = _data(
        "none", "Class balance: loss weights rare classes more, sampler draws all classes equally often."
    )
    intensity: Range = _data(
        "auto",
        "Intensity rule for images of more than 8 bits a channel: auto (bits in use), clip (values above 255 become 255), "
        "scale (their smallest to largest value), percentile (0.5 to 99.5 % of each image), or LOW,HIGH.",
    )
    workers: int | None = _data(None, "Processes that load images (default: by cores).", ge=0)


class HeadConfig(StrictModel):
    """Head that is fitted on frozen features."""

    kind: HeadKind = _head(
        "linear", "Head of a probe: linear, knn (the nearest training images vote), cosine or mlp (one hidden layer).", option="head"
    )
    features: Features = _head("last", "Features of a probe: last, or layers (joined features of all stages).")
    augmented_views: int = _head(
        4, "Views (crops) of each image that the head is fitted on. 1, the evaluation's view alone, is the fastest.", ge=1, le=16
    )


class OptimConfig(StrictModel):
    """Strategy, optimizer and losses."""

    recipe: str | None = _optim(
        None, "Recipe: fastai, or a file NAME.toml, in place of the default figures. Options on the command line override it."
    )
    strategy: Strategy = _optim(
        "auto", "Fine-tuning strategy: auto (by the number of images), probe, partial, full, progressive, scratch or compare."
    )
    unfreeze: str | None = _optim(
        None, "Layers to fine-tune: a share of the stages from the end (0.33), stage4 (with all after it), or first."
    )
    epochs: int | None = _optim(None, "Epochs, or auto (default): steps by the number of images.", ge=1)
    batch_size: int = _optim(32, "Batch size: images of a step, and of a feature pass.", ge=1, le=4096)
    lr: float | None = _optim(None, "Learning rate of the head (default: by the number of images).", gt=0.0)
    backbone_lr: float | None = _optim(None, "Learning rate of the backbone's last stage (default: a share of --lr).", gt=0.0)
    lr_decay: float | None = _optim(None, "Learning rate of the lowest tuned stage relative to --backbone-lr.", gt=0.0, le=1.0)
    weight_decay: float | None = _optim(None, "Weight decay of kernels and matrices (AdamW).", ge=0.0)
    label_smoothing: float | None = _optim(None, "Label smoothing: share of the target that is spread over all classes.", ge=0.0, lt=1.0)
    drop_path: float | None = _optim(
        None,
        "Stochastic depth: share of dropped residual branches (default: 0.1 in transformers and ConvNeXt, from 1,000 images on).",
        ge=0.0,
        lt=1.0,
    )
    multilabel_loss: Literal["bce", "asymmetric"] = _optim(
        "bce", "Loss of multi-label tasks: bce, or asymmetric (for few of many labels an image)."
    )
    regression_loss: Literal["mse", "huber"] = _optim("mse", "Loss of regression: mse, or huber (for outliers).")
    tolerance: float | None = _optim(
        None, "Largest error of a correct prediction in regression (default: a quarter of the spread).", gt=0.0
    )
    patience: int = _optim(5, "Early stopping: validations without a lower loss before training stops, of 20 in a training.", ge=1)

    @field_validator("epochs", mode="before")
    @classmethod
    def _steps_by_images(cls, value: object) -> object:
        return None if value == "auto" else value


class ContinualConfig(StrictModel):
    """Continual learning: L2-SP, WiSE-FT, LwF, EWC, replay and progressive networks."""

    forgetting: Literal["none", "progressive"] = _continual(
        "none", "progressive: keep the old network frozen, and train a new column beside it on its features too. Doubles the size."
    )
    l2sp: float = _continual(
        0.0, "Weight of the L2-SP penalty, which pulls tuned weights towards their start. 0 is off; 0.01 is typical.", ge=0.0
    )
    wise_ft: bool = _continual(False, "Interpolate tuned and starting weights (WiSE-FT), with the weight of the lowest validation loss.")
    lwf: float = _continual(
        0.0, "Weight of the Learning-without-Forgetting (LwF) loss. Keeps the outputs for the old classes. 0 is off; 1 is typical.", ge=0.0
    )
    ewc: float = _continual(
        0.0, "Weight of the EWC penalty. Keeps weights that matter to the previous task. 0 is off; 100 to 1000 is typical.", ge=0.0
    )
    replay: str | None = _continual(None, "Replay: a run, or a folder of class folders, whose images are mixed into the batches.")
    replay_fraction: float = _continual(0.25, "Share of replayed images in each batch.", gt=0.0, lt=1.0)
    replay_per_class: int = _continual(20, "Replayed images of each class, the most typical ones.", ge=1)


class DistillationConfig(StrictModel):
    """Distillation from a teacher."""

    teacher: str | None = _distillation(
        None, "Teacher of distillation: a run on the same classes, or a backbone, whose outputs are further targets."
    )
    weight: float = _distillation(0.5, "Share of the distillation loss in the whole loss.", gt=0.0, le=1.0, option="distillation_weight")


class RunOptions(StrictModel):
    """Execution: seed, device, activation cache, loggers and checkpoints."""

    seed: int = _run(0, "Random seed of splits, folds, batches and augmentation.", ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"] = _run("auto", "Device: auto (a GPU if there is one), cpu or cuda.")
    compile: bool = _run(False, "Compile the training step (torch.compile). Takes minutes at first; for long trainings.")
    cache_views: int = _run(
        4, "Activation cache: views of each image for which the frozen layers run once. 0 runs them at each step.", ge=0, le=64
    )
    cache_gb: float = _run(8.0, "Largest size of the activation cache on the disk, GB.", ge=0.0)
    loggers: Logged | None = _run(None, "Loggers of the validation figures in the run's logs/: csv, tensorboard, mlflow, or several.")
    checkpoint_s: float = _run(60.0, "Seconds between two saved states, from which --resume continues.", gt=0.0)
    keep: Literal["all", "best"] = _run("all", "Runs of --strategy compare to keep: all (in OUT.compare), or best.")


class TrainConfig(StrictModel):
    """Configuration of one fine-tuning, in groups. None means: by the number of images, or by the backbone.

    The command line shows every leaf as an option (``edgetl.core.options``), and ``from_options`` takes these flat names. A value that was
    given overrides the recipe, even if it equals the default (``model_fields_set`` of its group).
    """

    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    head: HeadConfig = HeadConfig()
    optim: OptimConfig = OptimConfig()
    continual: ContinualConfig = ContinualConfig()
    distillation: DistillationConfig = DistillationConfig()
    run: RunOptions = RunOptions()

    @classmethod
    def from_options(cls, **values: Any) -> Self:
        """The configuration with these options, by their flat names.

        Raises:
            pydantic.ValidationError: naming every wrong value.
        """
        return cls.model_validate(nested(cls, values))

    def given(self) -> dict[str, Any]:
        """The options that were given, by their flat names, as JSON; ``from_options`` makes the same configuration of them."""
        found: dict[str, Any] = to_jsonable_python(flat(self, only_given=True))
        return found

    def with_options(self, **values: Any) -> Self:
        """A copy in which these options, by their flat names, are given too.

        Raises:
            pydantic.ValidationError: naming every wrong value.
        """
        return type(self).from_options(**{**flat(self, only_given=True), **values})
