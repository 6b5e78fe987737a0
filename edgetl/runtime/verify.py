"""Verification of a bundle: hashes of its files, and scores of its golden images on this host."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.manifest import Variant
from edgetl.core.output_decoding import scores_of
from edgetl.core.progress import Progress, silent
from edgetl.errors import AccuracyGateError
from edgetl.runtime.engine import installed
from edgetl.runtime.predictor import Predictor, load
from edgetl.runtime.trial import try_variant


class GoldenCheck(StrictModel):
    """Check of one variant on the golden images.

    Attributes:
        variant: name of the variant.
        images: number of golden images.
        largest_difference: largest difference of a score from the manifest, 0..1. For a regression, relative to the spread of the values.
        tolerance: largest allowed difference.
    """

    variant: str
    images: int
    largest_difference: float
    tolerance: float


class VerifyReport(StrictModel):
    """Result of ``verify``.

    Attributes:
        bundle: folder of the bundle.
        files: number of files with the size and SHA-256 of the manifest.
        checked: variants with the scores of the manifest.
        skipped: variants without an installed engine.
    """

    bundle: str
    files: int
    checked: tuple[GoldenCheck, ...]
    skipped: tuple[str, ...]


def verify(path: Path | Bundle, *, progress: Progress = silent) -> VerifyReport:
    """Verify a bundle on this host: hashes of all files, a trial of each variant, and the scores of the golden images.

    Args:
        path: folder of the bundle, or an opened bundle.
        progress: called after each variant.

    Returns:
        the checked and the skipped variants.

    Raises:
        IntegrityError: a file was changed, added or removed.
        EngineError: an engine cannot load a variant, or its trial failed (``edgetl.runtime.trial``).
        AccuracyGateError: a score differs from the manifest. The message names the image and the variant.
    """
    bundle = path if isinstance(path, Bundle) else open_bundle(path)
    files = bundle.manifest.all_files()
    for file in files:
        bundle.read(file)
    variants = [variant for variant in bundle.manifest.variants if installed(variant.format)]
    checked = []
    for done, variant in enumerate(variants, start=1):
        try_variant(bundle, variant)
        checked.append(check_golden(bundle, variant, load(bundle, variant=variant.name, gallery=False)))
        progress("checking golden images", done, len(variants))
    skipped = tuple(variant.name for variant in bundle.manifest.variants if variant not in variants)
    return VerifyReport(bundle=str(bundle.path), files=len(files), checked=tuple(checked), skipped=skipped)


def check_golden(bundle: Bundle, variant: Variant, predictor: Predictor) -> GoldenCheck:
    """Compare the scores of ``predictor`` for the golden images with the manifest. ``predictor`` has loaded ``variant``.

    The tolerance depends on the execution setting of the predictor (``Variant.kept_settings``).

    Raises:
        IntegrityError: a golden image was changed.
        AccuracyGateError: a score differs from the manifest. The message names the image and the variant.
    """
    worst, unit = 0.0, bundle.manifest.decision_rule.spread
    tolerance = variant.kept_settings()[predictor.setting.measured]
    for golden in bundle.manifest.golden:
        outputs = predictor.logits(predictor.prepare(predictor.read(bundle.read(golden.image))))
        (found,) = scores_of(predictor.decoding.uncalibrated, outputs)
        difference = float(np.abs(found - np.array(golden.scores[variant.name])).max()) / unit
        worst = max(worst, difference)
        if not difference <= tolerance:
            raise AccuracyGateError(
                f"{bundle.path}: the scores of {variant.name} for {golden.image.path} differ from the manifest by {difference:.3g} "
                f"(tolerance {tolerance:g}). This host computes the variant differently. Use another variant. "
                f"For int8, export with --cpu any."
            )
    return GoldenCheck(variant=variant.name, images=len(bundle.manifest.golden), largest_difference=worst, tolerance=tolerance)
