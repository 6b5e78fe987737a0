"""Result of a model update: comparison with the previous model, checks of the new labels, and decision of the promotion gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgetl.core.config import StrictModel
from edgetl.core.results import Forgetting

MemoryKind = Literal["images", "features"]


class Comparison(StrictModel):
    """Accuracy of the previous and of the updated model on the same images.

    Attributes:
        n: number of images.
        before: accuracy of the previous model, 0..1.
        after: accuracy of the updated model, 0..1.
        lost: number of images that only the previous model classifies correctly.
        gained: number of images that only the updated model classifies correctly.
        p: one-sided p-value of McNemar's exact test for a higher accuracy of the updated model.
    """

    n: int = Field(ge=0)
    before: float
    after: float
    lost: int = Field(ge=0)
    gained: int = Field(ge=0)
    p: float


class PreviousAccuracy(StrictModel):
    """Accuracy on previous validation images, which trained neither model.

    Attributes:
        forgetting: accuracy of both models among the previous classes.
        among_all: accuracy of the updated model among all classes, 0..1. Previous images may look like a new class.
    """

    forgetting: Forgetting
    among_all: float


class BalancedAccuracy(StrictModel):
    """Balanced accuracy of both models: mean over all classes of the accuracy on the new and the previous validation images, 0..1."""

    before: float
    after: float


class ContradictedLabels(StrictModel):
    """New labels with a probability below 2 % to heads that were fitted without the image. Many of them indicate wrong labels.

    Attributes:
        images: number of the images.
        rate: fraction of the new images, 0..1.
        files: images, the lowest probability first, at most 20.
    """

    images: int = Field(ge=0)
    rate: float
    files: tuple[str, ...] = ()


class Trigger(StrictModel):
    """Possible backdoor trigger: a small area that is nearly identical in images of one label, which a head without them contradicts.

    Attributes:
        label: label of the images.
        images: number of the images.
        contradicted: fraction of them for which a head that was fitted without them predicts another class, 0..1.
        left, top, side: area in the network's input, as fractions of its width and height.
        files: some of the images.
    """

    label: str
    images: int
    contradicted: float
    left: float
    top: float
    side: float
    files: tuple[str, ...]


class Promotion(StrictModel):
    """Decision of the promotion gate.

    Attributes:
        new: comparison on the new images. Training images are predicted by heads that were fitted without them (5 folds).
        previous: accuracy on the previous validation images.
        balanced: balanced accuracy on both.
        contradicted: new labels that look wrong.
        trigger: possible backdoor trigger. ``None`` if none was found.
        reasons: reasons of the rejection, as sentences without a final period. Empty if the updated model is promoted.
    """

    new: Comparison
    previous: PreviousAccuracy
    balanced: BalancedAccuracy
    contradicted: ContradictedLabels
    trigger: Trigger | None = None
    reasons: tuple[str, ...] = ()

    @property
    def promoted(self) -> bool:
        """True if the updated model replaces the previous one."""
        return not self.reasons


class UpdateRecord(StrictModel):
    """Record of a model update.

    Attributes:
        model: name of the model in bundles, the same for all updates of a run.
        release: default release number of bundles.
        memory: kind of the replay memory in the run folder.
        replayed: number of previous training images, or of their features, that fitted the head.
        new_images: number of new images.
        new_classes: classes that the previous model lacks.
        promotion: decision of the promotion gate.
    """

    model: str
    release: int = Field(ge=1)
    memory: MemoryKind
    replayed: int = Field(ge=0)
    new_images: int = Field(ge=1)
    new_classes: tuple[str, ...] = ()
    promotion: Promotion
