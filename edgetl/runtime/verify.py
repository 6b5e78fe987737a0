"""Verification of a bundle: hashes of its files, and predictions of its golden images on this host."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.config import StrictModel
from edgetl.core.manifest import Variant
from edgetl.core.progress import Progress, silent
from edgetl.errors import AccuracyGateError
from edgetl.runtime.engine import installed
from edgetl.runtime.predictor import Predictor, load
from edgetl.runtime.trial import try_variant


class GoldenCheck(StrictModel):
    """Check of one variant on the golden images.

    ``largest_difference`` is that of a score, 0..1, or of a number relative to its spread.
    """

    variant: str
    images: int
    largest_difference: float
    tolerance: float


class VerifyReport(StrictModel):
    """Result of ``verify``.

    Attributes:
        bundle: the folder.
        files: files whose size and SHA-256 agree with the manifest.
        checked: variants whose predictions agree.
        skipped: variants whose engine is not installed here.
    """

    bundle: str
    files: int
    checked: tuple[GoldenCheck, ...]
    skipped: tuple[str, ...]


def verify(path: Path, *, progress: Progress = silent) -> VerifyReport:
    """Check the hash of every file, run each loadable variant in a trial, and compare its golden scores with those of the manifest.

    Raises:
        IntegrityError: a file was changed, added or removed.
        EngineError: an engine refuses a variant, or its trial failed (``edgetl.runtime.trial``).
        AccuracyGateError: a score is off; the text names the image and the variant.
    """
    bundle = open_bundle(path)
    files = bundle.manifest.all_files()
    for file in files:
        bundle.read(file)
    variants = [variant for variant in bundle.manifest.variants if installed(variant.format)]
    checked = []
    for done, variant in enumerate(variants, start=1):
        try_variant(bundle, variant)
        checked.append(check_golden(bundle, variant, load(bundle, variant=variant.name)))
        progress("checking golden images", done, len(variants))
    skipped = tuple(variant.name for variant in bundle.manifest.variants if variant not in variants)
    return VerifyReport(bundle=str(path), files=len(files), checked=tuple(checked), skipped=skipped)


def check_golden(bundle: Bundle, variant: Variant, predictor: Predictor) -> GoldenCheck:
    """Compare the scores that ``predictor``, which loaded ``variant``, returns for the golden images with the manifest's.

    Raises:
        IntegrityError: a golden image was changed.
        AccuracyGateError: a score is off; the text names the image and the variant.
    """
    worst, unit = 0.0, bundle.manifest.decision_rule.spread
    for golden in bundle.manifest.golden:
        found = predictor.predict(bundle.read(golden.image))
        difference = float(np.abs(np.array(found.scores) - np.array(golden.scores[variant.name])).max()) / unit
        worst = max(worst, difference)
        if not difference <= variant.golden_tolerance:
            raise AccuracyGateError(
                f"{bundle.path}: {variant.name} scores {golden.image.path} {difference:.3g} off the manifest "
                f"(tolerance {variant.golden_tolerance:g}). This machine computes differently; use another variant, or export for it."
            )
    return GoldenCheck(
        variant=variant.name, images=len(bundle.manifest.golden), largest_difference=worst, tolerance=variant.golden_tolerance
    )
