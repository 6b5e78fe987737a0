"""What a user may ask of fine-tuning, and the defaults. The command line takes its options and their help from here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator

from edgetl.core.config import LeanModel
from edgetl.core.images.intensity import check_choice
from edgetl.core.licenses import Policy
from edgetl.core.preprocess import Interpolation, Side
from edgetl.core.tasks import Task

Strategy: TypeAlias = Literal["auto", "probe", "partial", "full", "progressive", "scratch", "compare"]
HeadKind: TypeAlias = Literal["linear", "knn", "cosine", "mlp"]
Features: TypeAlias = Literal["last", "layers"]
Augment: TypeAlias = Literal["auto", "none", "light", "medium", "strong"]
Rate = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, le=0.5)]
Triple = tuple[float, float, float]
LOGGERS = ("csv", "tensorboard", "mlflow")

DEFAULT_BACKBONE = "edgetl_small"
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
    val: Share = _images(0.15, "Share of the images for validation.")
    test: Share = _images(0.15, "Share of the images for the test.")
    views: int = _images(
        4, "Views (crops) of each image that the head is fitted on. 1, the evaluation's view alone, is the fastest.", ge=1, le=16
    )
    augment: Augment = _images("auto", "Augmentation: auto, none, light, medium or strong.")
    flip: bool | None = _images(None, "Mirror images (default: unless the classes' names look like digits, letters or sides).")
    intensity: Range = _images(
        "auto",
        "Intensity rule for images of more than 8 bits a channel: auto (bits in use), clip (values above 255 become 255), "
        "scale (their smallest to largest value), percentile (0.5 to 99.5 % of each image), or LOW,HIGH.",
    )
    seed: int = _images(0, "Random seed of splits, folds, batches and augmentation.", ge=0, lt=2**31)

    recipe: str | None = _training(
        None, "Recipe: fastai, or a file NAME.toml, in place of the default figures. Options on the command line override it."
    )
    strategy: Strategy = _training(
        "auto", "Fine-tuning strategy: auto (by the number of images), probe, partial, full, progressive, scratch or compare."
    )
    keep: Literal["all", "best"] = _training("all", "Runs of --strategy compare to keep: all (in OUT.compare), or best.")
    head: HeadKind = _training(
        "linear", "Head of a probe: linear, knn (the nearest training images vote), cosine or mlp (one hidden layer)."
    )
    features: Features = _training("last", "Features of a probe: last, or layers (joined features of all stages).")
    unfreeze: str | None = _training(
        None, "Layers to fine-tune: a share of the stages from the end (0.33), stage4 (with all after it), or first."
    )
    epochs: int | None = _training(None, "Epochs, or auto (default): steps by the number of images.", ge=1)
    lr: Rate | Literal["auto"] | None = _training(
        None, "Learning rate of the head, or auto: a range test (default: by the number of images)."
    )
    trunk_lr: float | None = _training(None, "Learning rate of the backbone's last stage (default: a share of --lr).", gt=0.0)
    lr_ratio: float | None = _training(None, "Learning rate of the lowest tuned stage relative to --trunk-lr.", gt=0.0, le=1.0)
    weight_decay: float | None = _training(None, "Weight decay of kernels and matrices (AdamW).", ge=0.0)
    label_smoothing: float | None = _training(None, "Label smoothing: share of the target that is spread over all classes.", ge=0.0, lt=1.0)
    multilabel_loss: Literal["bce", "asymmetric"] = _training(
        "bce", "Loss of multi-label tasks: bce, or asymmetric (for few of many labels an image)."
    )
    regression_loss: Literal["mse", "huber"] = _training("mse", "Loss of regression: mse, or huber (for outliers).")
    tolerance: float | None = _training(
        None, "Largest error of a correct prediction in regression (default: a quarter of the spread).", gt=0.0
    )
    drop_path: float | None = _training(
        None,
        "Stochastic depth: share of dropped residual branches (default: 0.1 in transformers and ConvNeXt, from 1,000 images on).",
        ge=0.0,
        lt=1.0,
    )
    mixup: float | None = _training(
        None, "Mixup of pairs of images, in shares from Beta(A, A) (default: only above 20,000 images).", ge=0.0
    )
    balance: Literal["none", "loss", "sampler"] = _training(
        "none", "Class balance: loss weights rare classes more, sampler draws all classes equally often."
    )
    batch_size: int = _training(32, "Batch size: images of a step, and of a feature pass.", ge=1, le=4096)
    patience: int = _training(5, "Early stopping: validations without a lower loss before training stops, of 20 in a training.", ge=1)
    device: Literal["auto", "cpu", "cuda"] = _training("auto", "Device: auto (a GPU if there is one), cpu or cuda.")
    compile: bool = _training(False, "Compile the training step (torch.compile). Takes minutes at first; for long trainings.")
    workers: int | None = _training(None, "Processes that load images (default: by cores).", ge=0)
    cache_views: int = _training(
        4, "Activation cache: views of each image for which the frozen layers run once. 0 runs them at each step.", ge=0, le=64
    )
    cache_gb: float = _training(8.0, "Largest size of the activation cache on the disk, GB.", ge=0.0)
    forgetting: Literal["none", "progressive"] = _guard(
        "none", "progressive: keep the old network frozen, and train a new column beside it on its features too. Doubles the size."
    )
    l2sp: float = _guard(
        0.0, "Weight of the L2-SP penalty, which pulls tuned weights towards their start. 0 is off; 0.01 is typical.", ge=0.0
    )
    wise: bool = _guard(False, "Interpolate tuned and starting weights (WiSE-FT), with the weight of the lowest validation loss.")
    lwf: float = _guard(
        0.0, "Weight of the Learning-without-Forgetting (LwF) loss. Keeps the outputs for the old classes. 0 is off; 1 is typical.", ge=0.0
    )
    ewc: float = _guard(
        0.0, "Weight of the EWC penalty. Keeps weights that matter to the previous task. 0 is off; 100 to 1000 is typical.", ge=0.0
    )
    replay: str | None = _guard(None, "Replay: a run, or a folder of class folders, whose images are mixed into the batches.")
    replay_frac: float = _guard(0.25, "Share of replayed images in each batch.", gt=0.0, lt=1.0)
    replay_images: int = _guard(20, "Replayed images of each class, the most typical ones.", ge=1)

    teacher: str | None = _training(
        None, "Teacher of distillation: a run on the same classes, or a backbone, whose outputs are further targets."
    )
    teacher_share: float = _training(0.5, "Share of the distillation loss in the whole loss.", gt=0.0, le=1.0)
    log: Logged | None = _training(None, "Loggers of the validation figures in the run's logs/: csv, tensorboard, mlflow, or several.")
    checkpoint_s: float = _training(60.0, "Seconds between two saved states, from which --resume continues.", gt=0.0)

    @field_validator("epochs", mode="before")
    @classmethod
    def _steps_by_images(cls, value: object) -> object:
        return None if value == "auto" else value
