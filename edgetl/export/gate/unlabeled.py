"""Agreement with the trained model without labels: on validation images, random crops of them, and ``--unlabeled`` images.

Few validation images cannot resolve a loss of a point. Crops of them can: after six trainings with 10 images a class (30 to train, 10 to
validate), 72 int8 files of all kinds changed on average 5 to 12 % of the predictions on crops of held-out images and 2 to 7 % on 500 unseen
images, but 0.1 to 4 % on crops of training images, whose margins are too large to show much. Changes of brightness and contrast show less
than crops; mixtures of two images order the files wrongly. ``python -m bench.few_images`` prints what files that pass lose.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.manifest import UnlabeledAgreement
from edgetl.core.output_decoding import softmax
from edgetl.core.preprocess import PreprocessSpec
from edgetl.core.tasks import OutputDecoding
from edgetl.data.content.integrity import check_images
from edgetl.data.folder import Sample, check_folder
from edgetl.data.listing import list_images
from edgetl.data.loading import PixelSet, stratified
from edgetl.data.scan_notes import Notes, log_notes
from edgetl.data.selection import NO_SELECTION
from edgetl.errors import DataError

# Tensors that agreement is measured on, at least; one engine pass of a MobileNetV2 over them takes 2 to 5 seconds.
LEAST_TENSORS = 500
# Crops of one image. Where 50 of each validation image are too few, training images are cropped too.
MOST_CROPS = 50
MOST_UNLABELED = 2000
# Of accuracy, or --max-drop where that is more. Of those 72 files 66 kept their accuracy on 10 labeled images, and lost up to 4.4 points on
# unseen ones. The 8 above 0.0198 lost 2.9 points on average, up to 6.8; the 8 from 0.0103 to 0.0163 lost 0.4 at most; the 56 below 0.0096
# lost 0.1 on average and 1.8 at most, where the 95 % interval of 500 images is as wide.
MAX_EXPECTED_DROP = 0.01

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgreementSet:
    """Images beside the gate's own, and the trained model's outputs for them, float32 ``[n, labels]``."""

    images: tuple[PixelSet, ...]
    trained: NDArray[np.float32]


def choose_images(
    validation: Sequence[Sample], training: Sequence[Sample], unlabeled: Sequence[Sample], spec: PreprocessSpec
) -> tuple[PixelSet, ...]:
    """Unlabeled images, and crops up to ``LEAST_TENSORS`` tensors together with the validation images.

    Validation images are cropped first. The choice and the crops depend on the images' contents only.
    """
    parts = [PixelSet(unlabeled, spec)] if unlabeled else []
    wanted = LEAST_TENSORS - len(validation) - len(unlabeled)
    if wanted > 0:
        sources = [*validation, *stratified(training, max(0, math.ceil(wanted / MOST_CROPS) - len(validation)))]
        parts.append(PixelSet(sources, spec, crops=math.ceil(wanted / len(sources))))
    return tuple(parts)


def read_unlabeled(folder: Path, training: Sequence[Sample]) -> list[Sample]:
    """The readable images below ``folder``, at most ``MOST_UNLABELED``, without training images; those that are left out are logged.

    Raises:
        DataError: not a folder, or no image in it is left.
    """
    check_folder(folder, option="--unlabeled", holds="images, in any arrangement")
    notes = Notes()
    checked = check_images(list(list_images(folder, NO_SELECTION, notes).files()), folder)
    log_notes(notes.result())
    seen = {sample.content for sample in training}
    contents = {result.content: path for path, result in checked.items() if result.content is not None}
    chosen = [Sample(path, 0, content) for content, path in sorted(contents.items()) if content not in seen][:MOST_UNLABELED]
    broken = sum(result.content is None for result in checked.values())
    if left_out := len(checked) - len(chosen):
        _log.info(
            "--unlabeled: %d of %d images are used; left out: %d that cannot be decoded, %d copies or training images, or beyond %d",
            len(chosen),
            len(checked),
            broken,
            left_out - broken,
            MOST_UNLABELED,
        )
    if not chosen:
        raise DataError(f"--unlabeled {folder} holds no image that can be used: {len(checked)} found, {broken} of them cannot be decoded.")
    return chosen


def compare_unlabeled(
    trained: NDArray[np.float32], exported: NDArray[np.float32], same: NDArray[np.bool_], decoding: OutputDecoding
) -> UnlabeledAgreement:
    """Agreement of two models' outputs ``[n, labels]`` for the same images.

    Args:
        trained: of the trained model.
        exported: of the exported file.
        same: bool, where the predictions are equal: for each image, or each decision on a label.
        decoding: of the outputs; distances to the margin are measured for classes.
    """
    top1_agreement = float(same.mean())
    if decoding.task != "classification":
        return UnlabeledAgreement(n=len(trained), top1_agreement=top1_agreement)
    rows, top = np.arange(len(trained)), trained.argmax(axis=1)
    ordered = np.sort(trained, axis=1)
    margin = np.maximum(ordered[:, -1] - ordered[:, -2], 1e-12)
    difference = np.nan_to_num(exported - trained, nan=1e9, posinf=1e9, neginf=-1e9)
    # A prediction changes only where the top class loses more than the margin against another.
    error = np.abs(difference[rows, top][:, None] - difference).max(axis=1)
    scores = softmax(trained)
    return UnlabeledAgreement(
        n=len(trained),
        top1_agreement=top1_agreement,
        expected_drop=float((scores[rows, top] - scores[rows, exported.argmax(axis=1)]).mean()),
        beyond_half_margin=float((error > margin / 2).mean()),
        relative_error=float(np.median(error) / np.median(margin)),
    )


def changed_too_much(found: UnlabeledAgreement, labeled: int, max_drop: float) -> str:
    """Reason why a file fails by changed predictions; empty if it passes, or if the task has no such limit.

    ``labeled`` is the number of validation images. They decide alone if one of them is less than the limit. Crops cut through small
    centered objects: a file that keeps its accuracy on 269 digits has an expected loss of 0.027 with their crops.
    """
    limit = max(MAX_EXPECTED_DROP, max_drop)
    if labeled * limit >= 1 or found.expected_drop is None or found.expected_drop <= limit + 1e-9:
        return ""
    return (
        f"{round((1 - found.top1_agreement) * found.n)} of {found.n} predictions on unlabeled images change, an expected loss of accuracy "
        f"of {found.expected_drop:.4f} by the trained model's own scores (limit {limit:g})"
    )
