"""Model cards: facts about the served models for ``GET /models`` and the web page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetl.core.manifest import Manifest, Variant
from edgetl.core.results import Proportion
from edgetl.core.tasks import SCORE_NAMES
from edgetl.serve.protocol.models import Models


def cards(models: Models) -> list[dict[str, Any]]:
    """Return the card of every served version. The newest version of each name comes first."""
    every = [models.find(name, version) for name in models.names for version in reversed(models.versions(name))]
    return [card(model.manifest, model.variant, models.versions(model.name)) for model in every]


def card(manifest: Manifest, variant: Variant, versions: Sequence[str]) -> dict[str, Any]:
    """Return the card of one served version of a model, as a JSON object.

    ``trained``, ``validation`` and ``test`` hold the task's score ``score_name`` with its 95 % confidence interval and number of images.
    ``drop`` is the accuracy drop of the variant against the trained model on the validation images. A negative drop is a gain.
    ``median_ms`` was measured on the host of the export. ``input_size`` is height and width, pixels.

    Args:
        manifest: manifest of the bundle.
        variant: the served variant.
        versions: all served releases of this model, the oldest first.
    """
    lineage, decision_rule = manifest.lineage, manifest.decision_rule
    return {
        "name": manifest.name,
        "version": str(manifest.release),
        "versions": list(versions),
        "task": manifest.task,
        "labels": list(manifest.labels),
        "thresholds": list(decision_rule.thresholds) or None,
        "tolerance": decision_rule.tolerance if manifest.task == "regression" else None,
        "ordinal_levels": list(decision_rule.ordinal_levels) if decision_rule.ordinal_levels else None,
        "variant": variant.name,
        "format": variant.format,
        "precision": variant.precision,
        "size_bytes": variant.size_bytes,
        "input_size": list(manifest.preprocess.input_size),
        "created": manifest.created,
        "score_name": SCORE_NAMES[manifest.task],
        "trained": manifest.trained.model_dump(),
        **_variant_scores(manifest.trained, variant),
        "backbone": lineage.backbone,
        "architecture": lineage.architecture,
        "strategy": lineage.strategy,
        "license": lineage.license,
        "train_images": lineage.train_images,
        "rejected": [{"name": rejected.name, "reason": rejected.reason} for rejected in manifest.rejected],
    }


def _variant_scores(trained: Proportion, variant: Variant) -> dict[str, Any]:
    return {
        "validation": variant.validation.model_dump(),
        "test": variant.test.model_dump() if variant.test else None,
        "drop": trained.value - variant.validation.value,
        "median_ms": variant.median_ms,
    }
