"""Agreement with the trained model without labels: on validation images, random crops of them, and images of ``--unlabeled``.

A few validation images cannot resolve an accuracy drop of one percentage point. Crops of these images can. Measured with 72 int8 files of
all kinds, from six runs with 10 images per class (30 training and 10 validation images):

- On crops of held-out images, 5 to 12 % of the predictions changed on average.
- On 500 unseen images, 2 to 7 % changed.
- On crops of training images, 0.1 to 4 % changed. The margins of training images are too large to reveal more.

Changes of brightness and contrast reveal less than crops. Mixtures of two images rank the files wrongly.
``python -m bench.accuracy.few_images`` prints the accuracy drop of files that pass.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.output_decoding import scores_of
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.results import UnlabeledAgreement
from edgetl.core.tasks import OutputDecoding
from edgetl.data.folder import Sample, check_folder, scan_unlabeled
from edgetl.data.loading import PixelSet, stratified
from edgetl.errors import DataError

# Smallest number of tensors for measuring agreement. A MobileNetV2 takes 2 to 5 seconds for them.
LEAST_TENSORS = 500
# Largest number of crops of one image. If 50 crops of each validation image are too few, training images are cropped too.
MOST_CROPS = 50
MOST_UNLABELED = 2000
# Limit of the expected accuracy drop; a larger --max-drop replaces it. Of the 72 files (see the module), 66 kept their accuracy on 10
# labeled images and lost up to 4.4 points on unseen ones. By expected drop, the loss on unseen images was:
# - above 0.0198 (8 files): 2.9 points on average, at most 6.8;
# - 0.0103 to 0.0163 (8 files): at most 0.4 points;
# - below 0.0096 (56 files): 0.1 points on average, at most 1.8, which is the width of the 95 % interval of 500 images.
MAX_EXPECTED_DROP = 0.01

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgreementSet:
    """Additional images for the gate.

    Attributes:
        images: unlabeled images, and random crops.
        trained: the trained model's outputs for them, float32 ``[n, labels]``, plus ``offset``.
        offset: float32 ``[n, labels]``, added to all outputs for ``images``. For the crops in a cross-validated run, the offset of the
            image (``GateSet.offset``), otherwise 0.
    """

    images: tuple[PixelSet, ...]
    trained: NDArray[np.float32]
    offset: NDArray[np.float32] | float = 0.0


def choose_images(
    validation: Sequence[Sample], training: Sequence[Sample], unlabeled: Sequence[Sample], spec: PreprocessSpec
) -> tuple[PixelSet, ...]:
    """Choose the unlabeled images, and crops that bring the total, with the validation images, to ``LEAST_TENSORS`` tensors.

    Validation images are cropped first, then training images. The choice and the crops depend only on the contents of the images.
    """
    parts = [PixelSet(unlabeled, spec)] if unlabeled else []
    wanted = LEAST_TENSORS - len(validation) - len(unlabeled)
    if wanted > 0:
        sources = [*validation, *stratified(training, max(0, math.ceil(wanted / MOST_CROPS) - len(validation)))]
        parts.append(PixelSet(sources, spec, crops=math.ceil(wanted / len(sources))))
    return tuple(parts)


def read_unlabeled(folder: Path, training: Sequence[Sample], *, option: str = "--unlabeled") -> list[Sample]:
    """Return the readable images below ``folder``, at most ``MOST_UNLABELED``, without training images and copies.

    Images that are left out are logged. ``option`` names the folder in messages.

    Raises:
        DataError: ``folder`` is not a folder, or contains no usable image.
    """
    check_folder(folder, option=option, holds="images, in any arrangement")
    found, seen = scan_unlabeled(folder), {sample.content for sample in training}
    contents = {sample.content: sample for sample in found}
    chosen = [contents[content] for content in sorted(contents) if content not in seen][:MOST_UNLABELED]
    others = f"copies, {'training images, ' if training else ''}or beyond the limit of {MOST_UNLABELED}"
    if len(chosen) < len(found):
        _log.info("%s: %d of %d readable images are used. The others are %s", option, len(chosen), len(found), others)
    if not chosen:
        reason = "all of its images are training images" if found else "no image in it can be read"
        raise DataError(f"{option} {folder} contains no usable image: {reason}. Give other images.")
    return chosen


def compare_unlabeled(
    trained: NDArray[np.float32], exported: NDArray[np.float32], same: NDArray[np.bool_], decoding: OutputDecoding
) -> UnlabeledAgreement:
    """Return the agreement of two models' outputs ``[n, labels]`` for the same images.

    Args:
        trained: outputs of the trained model.
        exported: outputs of the exported file.
        same: bool mask of equal predictions, one for each image, or for each decision on a label.
        decoding: decoding of the outputs. For classification, errors are also compared with the margin.
    """
    top1_agreement = float(same.mean())
    if decoding.task != "classification":
        return UnlabeledAgreement(n=len(trained), top1_agreement=top1_agreement)
    rows, top = np.arange(len(trained)), trained.argmax(axis=1)
    ordered = np.sort(trained, axis=1)
    margin = np.maximum(ordered[:, -1] - ordered[:, -2], 1e-12)
    difference = np.nan_to_num(exported - trained, nan=1e9, posinf=1e9, neginf=-1e9)
    # A prediction changes only if the logit of the top class drops, relative to another, by more than the margin.
    error = np.abs(difference[rows, top][:, None] - difference).max(axis=1)
    return UnlabeledAgreement(
        n=len(trained),
        top1_agreement=top1_agreement,
        expected_drop=float(expected_drops(trained, exported, decoding).mean()),
        beyond_half_margin=float((error > margin / 2).mean()),
        relative_error=float(np.median(error) / np.median(margin)),
    )


def expected_drops(trained: NDArray[np.float32], exported: NDArray[np.float32], decoding: OutputDecoding) -> NDArray[np.floating[Any]]:
    """Return the accuracy drop of each image that the trained model's scores predict, float ``[n]``, 0..1; classification only.

    It is the score of the trained model's class minus the score of the class that ``exported`` predicts. Too certain scores make it too
    large.

    Args:
        trained: outputs of the trained model, float32 ``[n, classes]``.
        exported: outputs of the exported file for the same images.
        decoding: decoding of the outputs.
    """
    rows, scores = np.arange(len(trained)), scores_of(decoding, trained)
    return scores[rows, trained.argmax(axis=1)] - scores[rows, exported.argmax(axis=1)]


def decide_alone(n: int, max_drop: float) -> bool:
    """Return true if one of ``n`` images of the gate weighs at most the limit of the expected drop, so that crops do not count."""
    return n * max(MAX_EXPECTED_DROP, max_drop) >= 1


def changed_too_much(found: UnlabeledAgreement, labeled: int, max_drop: float) -> str:
    """Return the reason for rejecting a file by changed predictions; empty if it passes, or if the task has no such limit.

    ``labeled`` is the number of images of the gate, also if they are target images without labels. If one of them weighs less than the
    limit, these images alone decide: crops cut through small centered objects. A file that keeps its accuracy on 269 digits has an expected
    drop of 0.027 with their crops.
    """
    limit = max(MAX_EXPECTED_DROP, max_drop)
    if decide_alone(labeled, max_drop) or found.expected_drop is None or found.expected_drop <= limit + 1e-9:
        return ""
    enough = math.ceil(1 / limit)
    remedy = f"Add labeled images (with {enough} or more, these decide alone), give images of the camera with --unlabeled"
    if found.target:
        remedy = f"Add labeled images (with {enough} or more, these decide alone), give more target images with --unlabeled"
    if found.target + found.crops == found.n:
        remedy = f"Give more target images with --unlabeled (with {2 * enough} or more, these decide without crops)"
    return (
        f"{round((1 - found.top1_agreement) * found.n)} of {found.n} predictions change on {found.images}. The trained model's scores "
        f"predict an accuracy drop of {found.expected_drop:.4f} (limit {limit:g}). {remedy}, or raise --max-drop"
    )
