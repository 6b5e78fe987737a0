"""What a user may ask of fine-tuning, and the defaults. The command line takes its options and their help from here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator

from edgetl.core.config import LeanModel
from edgetl.core.intensity import check_choice
from edgetl.core.licences import Policy
from edgetl.core.preprocess import Interpolation, Side
from edgetl.core.tasks import Task
from edgetl.train.embedded import DEFAULT_BACKBONE

Strategy: TypeAlias = Literal["auto", "probe", "partial", "full", "progressive", "scratch", "compare"]
HeadKind: TypeAlias = Literal["linear", "knn", "cosine", "mlp"]
Features: TypeAlias = Literal["last", "layers"]
Augment: TypeAlias = Literal["auto", "none", "light", "medium", "strong"]
Rate = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, le=0.5)]
Triple = tuple[float, float, float]
LOGGERS = ("csv", "tensorboard", "mlflow")

PANEL = "panel"


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


def _field(panel: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={PANEL: panel}, **bounds)


def _backbone(default: Any, description: str, **bounds: Any) -> Any:
    return _field("Backbone", default, description, **bounds)


def _images(default: Any, description: str, **bounds: Any) -> Any:
    return _field("Images", default, description, **bounds)


def _guard(default: Any, description: str, **bounds: Any) -> Any:
    return _field("Guards for what the weights know", default, description, **bounds)


def _training(default: Any, description: str, **bounds: Any) -> Any:
    return _field("Training", default, description, **bounds)


class TrainConfig(LeanModel):
    """One fine-tuning. Each field's description says what it is; none means that the data budget or the backbone decides."""

    lean: ClassVar[frozenset[str]] = frozenset({"head", "features", "intensity", "group", "include", "exclude", "keep"})

    backbone: str = _backbone(DEFAULT_BACKBONE, "Embedded name, run, timm name, torchvision:NAME, local-dir:PATH or hf-hub:ORG/NAME.")
    weights: str | None = _backbone(None, "A .safetensors or .pth file (tensors only) for the architecture that --backbone names.")
    weights_dir: str | None = _backbone(None, "A local folder of weights, searched first.")
    licence: str | None = _backbone(None, "Of the weights (SPDX), where they do not say it.")
    license_policy: Policy = _backbone("any", "any, or commercial: refuse weights that forbid it or do not say.")
    pretrained: bool = _backbone(True, "False starts from random weights: a control, and for architectures without weights.")
    input_size: tuple[Side, Side] | None = _backbone(None, "Height and width, such as 224,224 (default: the backbone's).")
    mean: Triple | None = _backbone(None, "Three numbers, RGB on 0..1 (default: the backbone's).")
    std: Triple | None = _backbone(None, "Three numbers, RGB on 0..1 (default: the backbone's).")
    crop_pct: float | None = _backbone(None, "Share of the resized image that the crop keeps (default: the backbone's).")
    interpolation: Interpolation | None = _backbone(None, "bilinear or bicubic (default: the backbone's).")
    resize: Literal["fused", "two-step"] | None = _backbone(None, "fused (default), or two-step (bit-identical to timm's transform).")

    labels: str | None = _images(
        None, "CSV of labels: a column `file`, and one column of class names, one of numbers, or one for each label (above 0: present)."
    )
    task: Task | None = _images(
        None, "Task: classification, multi-label, regression or ordinal (whole grades). The default follows from the columns of --labels."
    )
    column: str | None = _images(None, "Label columns of --labels, separated by commas (default: all but `file`, `split` and `group`).")
    group: str | None = _images(
        None,
        "Group key: a column of --labels (default: `group`), or a regular expression on the path, whose first group is the key. Images "
        "of one group (object, patient, burst) stay in one split.",
    )
    include: tuple[str, ...] = _images(
        (), "Glob pattern of files to use although the scan leaves them out (masks, thumbnails, hidden files). May be repeated."
    )
    exclude: tuple[str, ...] = _images(
        (), "Glob pattern of files and folders to leave out, such as '*_mask.png' or 'train/old/*'. May be repeated."
    )
    val: Share = _images(0.15, "Share for validation.")
    test: Share = _images(0.15, "Share for the test.")
    views: int = _images(4, "Pictures of each image that the head is fitted on; 1, the evaluation's alone, is the quickest.", ge=1, le=16)
    augment: Augment = _images("auto", "auto, none, light, medium or strong.")
    flip: bool | None = _images(None, "Mirror images (default: unless the classes' names look like digits, letters or sides).")
    intensity: Range = _images(
        "auto",
        "Intensity rule for images of more than 8 bits a channel: auto (bits in use), clip (values above 255 become 255), "
        "scale (their smallest to largest value), percentile (0.5 to 99.5 % of each image), or LOW,HIGH.",
    )
    seed: int = _images(0, "Chooses splits, folds, batches and augmentation.", ge=0, lt=2**31)

    recipe: str | None = _training(None, "fastai, or a file NAME.toml: figures instead of the table's; options that are given win.")
    strategy: Strategy = _training("auto", "auto (by the number of images), probe, partial, full, progressive, scratch or compare.")
    keep: Literal["all", "best"] = _training("all", "Runs of --strategy compare to keep: all (in OUT.compare), or best.")
    head: HeadKind = _training("linear", "Of a probe: linear, knn (the nearest training images vote), cosine or mlp (one hidden layer).")
    features: Features = _training("last", "Of a probe: last, or layers (those of every stage joined).")
    unfreeze: str | None = _training(None, "What tunes: a share of the stages from the end (0.33), stage4 and all after it, or first.")
    epochs: int | None = _training(None, "Passes over the images, or auto (default): steps by the number of images.", ge=1)
    lr: Rate | Literal["auto"] | None = _training(
        None, "The head's learning rate, or auto: a range test (default: by the number of images)."
    )
    trunk_lr: float | None = _training(None, "The learning rate of the trunk's last stage (default: a share of --lr).", gt=0.0)
    lr_ratio: float | None = _training(None, "The lowest tuned stage's learning rate relative to --trunk-lr.", gt=0.0, le=1.0)
    weight_decay: float | None = _training(None, "Of kernels and matrices (AdamW).", ge=0.0)
    label_smoothing: float | None = _training(None, "Share of the target that is spread over all classes.", ge=0.0, lt=1.0)
    multilabel_loss: Literal["bce", "asymmetric"] = _training("bce", "bce, or asymmetric (few of many labels hold for an image).")
    regression_loss: Literal["mse", "huber"] = _training("mse", "mse, or huber (single numbers are far off).")
    tolerance: float | None = _training(None, "Of regression: an answer this near is right (default: a quarter of the spread).", gt=0.0)
    drop_path: float | None = _training(
        None,
        "Share of residual branches that a step leaves out (default: 0.1 in transformers and ConvNeXt, from 1,000 images on).",
        ge=0.0,
        lt=1.0,
    )
    mixup: float | None = _training(None, "Mix pairs of images, in shares from Beta(A, A) (default: only above 20,000 images).", ge=0.0)
    balance: Literal["none", "loss", "sampler"] = _training(
        "none", "A class counts as much as any other, however few images it has: by its weight in the loss, or by drawing it as often."
    )
    batch_size: int = _training(32, "Images a step, and a feature pass.", ge=1, le=4096)
    patience: int = _training(5, "Validations without a lower loss before training stops; there are 20 in a training.", ge=1)
    device: Literal["auto", "cpu", "cuda"] = _training("auto", "auto (a GPU where there is one), cpu or cuda.")
    compile: bool = _training(False, "Compile the training step: minutes at first, quicker steps then; for long trainings.")
    workers: int | None = _training(None, "Processes that load images (default: by cores).", ge=0)
    cache_views: int = _training(4, "Views of each image for which the frozen layers run once, ahead; 0 runs them each step.", ge=0, le=64)
    cache_gb: float = _training(8.0, "Most that those may take on the disk, GB.", ge=0.0)
    forgetting: Literal["none", "progressive"] = _guard(
        "none", "progressive: the old network stays whole, and a new one learns beside it and listens to it (columns; twice the size)."
    )
    l2sp: float = _guard(0.0, "Pull tuned weights towards where they started (0.01 is usual; 0 does not).", ge=0.0)
    wise: bool = _guard(False, "Mix tuned and starting weights in the share that has the lowest validation loss.")
    lwf: float = _guard(0.0, "Answer new images for the old classes as before (1 is usual; 0 does not ask).", ge=0.0)
    ewc: float = _guard(0.0, "Hold weights that mattered to the old task (100 to 1000 is usual; 0 does not).", ge=0.0)
    replay: str | None = _guard(None, "Mix in images of this run, or of this folder of class folders.")
    replay_frac: float = _guard(0.25, "Their share of each batch.", gt=0.0, lt=1.0)
    replay_images: int = _guard(20, "Images of each of their classes that are kept, the most typical ones.", ge=1)

    teacher: str | None = _training(None, "A run on the same classes, or a backbone, whose answers are learned too (distillation).")
    teacher_share: float = _training(0.5, "Of the loss that is the teacher's.", gt=0.0, le=1.0)
    log: Logged | None = _training(None, "csv, tensorboard, mlflow, or several: each validation's figures, written into the run's logs/.")
    checkpoint_s: float = _training(60.0, "Seconds between two saved states, from which --resume goes on.", gt=0.0)

    @field_validator("epochs", mode="before")
    @classmethod
    def _steps_by_images(cls, value: object) -> object:
        return None if value == "auto" else value
