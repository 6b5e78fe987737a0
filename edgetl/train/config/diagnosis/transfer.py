"""Transfer diagnosis (``edgetl diagnose``): its options and its result."""

from __future__ import annotations

from functools import partial
from typing import Literal, Self, TypeAlias

from pydantic import model_validator

from edgetl.core.config import StrictModel
from edgetl.core.options import COMMON, option_field
from edgetl.core.results import Forgetting, Proportion
from edgetl.data.scan_notes import ScanNote

Transfer: TypeAlias = Literal["positive", "negative", "undecided"]
# Repetitions by default: of probes, which take seconds, and of trainings.
PROBE_REPEATS, TRAINING_REPEATS = 2, 1
# Training options that only --fine-tune uses.
TRAINING = ("strategy", "epochs", "lr", "backbone_lr", "augment", "flip", "workers")

_common = partial(option_field, panel=COMMON)


class TransferConfig(StrictModel):
    """Options of ``diagnose`` that are not training options."""

    fine_tune: bool = _common(
        False,
        "Compare trained networks in place of probes on frozen features: fine-tuning against training from random weights, with equal "
        "steps. Takes at least twice as long as a training.",
    )
    images: int = _common(
        1000, "Largest number of training images for the probes, 20..20000. --fine-tune uses all images.", ge=20, le=20000
    )
    repeats: int | None = _common(None, "Repetitions with other random weights, 1..20. Default: 2, and 1 with --fine-tune.", ge=1, le=20)
    source: str | None = _common(
        None,
        "Folder of labeled images of the source task, with one folder per class. Measures with --fine-tune how much the network forgets.",
        metavar="PATH",
    )

    @model_validator(mode="after")
    def _forgetting_needs_training(self) -> Self:
        if self.source is not None and not self.fine_tune:
            raise ValueError("--source needs --fine-tune, because a probe on frozen features forgets nothing")
        return self


class Arm(StrictModel):
    """Model of the comparison: a trained network or a linear probe.

    Attributes:
        name: ``probe`` (linear probe on the pretrained features), ``fine-tuned``, ``random weights`` (the same network and the same
            steps without pretraining) or ``pixels`` (linear probe on the pixels of small images, without a network).
        pretrained: true if it uses the pretrained weights.
        steps: optimizer steps. 0 for a probe.
        repeats: number of repetitions with other random weights or other batches.
        accuracy: mean accuracy over the repetitions. The interval covers images and repetitions.
    """

    name: str
    pretrained: bool
    steps: int
    repeats: int
    accuracy: Proportion


class Comparison(StrictModel):
    """Difference of the accuracies of two arms on the same images (paired bootstrap over images and repetitions).

    Attributes:
        first, second: names of the arms.
        difference: accuracy of ``first`` less accuracy of ``second``, -1..1.
        low, high: limits of the 95 % interval.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float

    def describe(self) -> str:
        """Return the difference with its interval as text."""
        return f"{self.first} less {self.second}: {self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


class TransferReport(StrictModel):
    """Result of ``diagnose``.

    Attributes:
        data: folder of the images.
        backbone: name of the backbone.
        transfer: ``positive`` if the pretrained network is better than every control without pretraining, ``negative`` if it is worse than
            one of them, otherwise ``undecided``. A difference counts if its interval does not contain 0.
        reason: comparison that decides, as a sentence.
        train_images: number of training images.
        held_out: number of images that measure the accuracies.
        arms: accuracy of each way to predict the images.
        comparisons: differences from the pretrained network.
        forgetting: accuracy drop on the source task; none if it was not measured.
        forgetting_note: reason why forgetting was not measured; empty if it was.
        seconds: duration, s.
        notes: notes of the scan of the image folder.
    """

    schema_version: Literal[1] = 1
    data: str
    backbone: str
    transfer: Transfer
    reason: str
    train_images: int
    held_out: int
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    forgetting: Forgetting | None = None
    forgetting_note: str = ""
    seconds: float
    notes: tuple[ScanNote, ...] = ()
