"""What a user may ask of fine-tuning, and the defaults."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.licences import Policy
from edgetl.core.preprocess import Interpolation, Side
from edgetl.train.embedded import DEFAULT_BACKBONE

Strategy: TypeAlias = Literal["probe", "full"]
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
        strategy: ``probe`` fits the head on the frozen trunk's features; ``full`` then tunes every layer (LP-FT).
        input_size, mean, std, crop_pct, interpolation: replace the backbone's own preprocessing.
        resize: see ``edgetl.core.preprocess``; none means ``fused``, or what the parent run had.
        views: pictures of each training image that the head is fitted on: 1 is the evaluation crop alone; each further one is a random
            crop, costs another feature pass, and makes up for few images.
        seed: chooses splits, folds, batches and augmentation.
        val, test: shares of the folder.
        epochs: of ``full``; none means at least 10 epochs and 300 steps.
        lr: of the head in ``full``; none means 1e-3 for pretrained and 3e-3 for random weights (AdamW).
        lr_ratio: learning rate of the first stage relative to the head, end to end; none means 0.1, or 1 for random weights.
        batch_size: images a step, and a feature pass.
        patience: epochs without a better validation loss before ``full`` stops.
        augment: ``light`` crops at random and varies colours; ``none`` trains on the evaluation crop.
        flip: whether ``light`` mirrors images; wrong for digits, text and signs.
        device: ``auto`` takes a GPU where there is one.
        workers: data loader processes of ``full``; none chooses by cores.
    """

    backbone: str = DEFAULT_BACKBONE
    weights: str | None = None
    weights_dir: str | None = None
    licence: str | None = None
    license_policy: Policy = "any"
    pretrained: bool = True
    strategy: Strategy = "probe"
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
    lr_ratio: float | None = Field(default=None, gt=0.0, le=1.0)
    weight_decay: float = Field(default=0.02, ge=0.0)
    label_smoothing: float = Field(default=0.05, ge=0.0, lt=1.0)
    batch_size: int = Field(default=32, ge=1, le=4096)
    patience: int = Field(default=5, ge=1)
    augment: Literal["none", "light"] = "light"
    flip: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = Field(default=None, ge=0)
