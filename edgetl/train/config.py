"""What a user may ask of fine-tuning, and the defaults."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.licences import Policy
from edgetl.core.preprocess import Interpolation, Side
from edgetl.train.embedded import DEFAULT_BACKBONE

Strategy: TypeAlias = Literal["auto", "probe", "partial", "full", "progressive", "scratch"]
Augment: TypeAlias = Literal["auto", "none", "light", "medium", "strong"]
Share = Annotated[float, Field(ge=0.0, le=0.5)]


class TrainConfig(StrictModel):
    """One fine-tuning.

    Attributes:
        backbone: an embedded name, a run's folder, a timm name, ``torchvision:NAME``, ``local-dir:PATH`` (timm form) or
            ``hf-hub:ORG/NAME``.
        weights: a file for the architecture that ``backbone`` names: ``.safetensors``, or ``.pth`` that holds nothing but tensors.
        weights_dir: a local folder of weights that is searched before the library's own places.
        licence: of the weights, SPDX, where they do not say it themselves.
        license_policy: ``commercial`` refuses weights whose licence forbids commercial use or is not known.
        pretrained: false starts from random weights: a control, and for architectures without weights.
        strategy: ``probe`` fits the head on the frozen trunk's features; ``partial`` then tunes the upper stages, ``full`` every stage but
            the stem, ``progressive`` one stage after the other, last to first; ``scratch`` trains from random weights, as a control;
            ``auto`` chooses by the number of distinct training images.
        unfreeze: what ``partial`` and ``full`` tune: a share of the stages from the end (``0.33``), ``stage4`` (that one and all after
            it), or ``first``; none leaves it to the data budget.
        input_size, mean, std, crop_pct, interpolation: replace the backbone's own preprocessing.
        resize: see ``edgetl.core.preprocess``; none means ``fused``, or what the parent run had.
        views: pictures of each training image that the head is fitted on: 1 is the evaluation crop alone; each further one is a random
            crop, costs another feature pass, and makes up for few images.
        seed: chooses splits, folds, batches and augmentation.
        val, test: shares of the folder.
        epochs: passes over the training images; none takes the data budget's steps.
        lr: of the head (AdamW); none takes the data budget's.
        trunk_lr: of the trunk's last stage; none takes the data budget's share of ``lr``.
        lr_ratio: learning rate of the lowest stage that trains relative to the trunk's last, end to end.
        weight_decay, label_smoothing: none takes the data budget's.
        batch_size: images a step, and a feature pass.
        patience: validations without a lower loss before training stops; there are 20 in a training, and at most one an epoch.
        augment: ``none`` trains on the evaluation crop; ``auto`` takes the data budget's.
        flip: whether training images are mirrored; none does, unless the classes' names look like digits, letters or sides.
        device: ``auto`` takes a GPU where there is one.
        workers: data loader processes; none chooses by cores.
        checkpoint_s: seconds between two checkpoints, from which a stopped training goes on.
    """

    backbone: str = DEFAULT_BACKBONE
    weights: str | None = None
    weights_dir: str | None = None
    licence: str | None = None
    license_policy: Policy = "any"
    pretrained: bool = True
    strategy: Strategy = "auto"
    unfreeze: str | None = None
    input_size: tuple[Side, Side] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    resize: Literal["fused", "two-step"] | None = None
    views: int = Field(default=4, ge=1, le=16)
    seed: int = Field(default=0, ge=0, lt=2**31)
    val: Share = 0.15
    test: Share = 0.15
    epochs: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0.0)
    trunk_lr: float | None = Field(default=None, gt=0.0)
    lr_ratio: float | None = Field(default=None, gt=0.0, le=1.0)
    weight_decay: float | None = Field(default=None, ge=0.0)
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=1.0)
    batch_size: int = Field(default=32, ge=1, le=4096)
    patience: int = Field(default=5, ge=1)
    augment: Augment = "auto"
    flip: bool | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = Field(default=None, ge=0)
    checkpoint_s: float = Field(default=60.0, gt=0.0)
