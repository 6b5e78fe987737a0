"""What is served, in facts: for people, and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetl.core.manifest import Manifest, Variant
from edgetl.core.results import Proportion
from edgetl.core.tasks import SCORE_NAMES
from edgetl.serve.protocol.models import Models


def cards(models: Models) -> list[dict[str, Any]]:
    """The card of every version, the newest of each name first."""
    every = [models.find(name, version) for name in models.names for version in reversed(models.versions(name))]
    return [card(model.manifest, model.variant, models.versions(model.name)) for model in every]


def card(manifest: Manifest, variant: Variant, versions: Sequence[str]) -> dict[str, Any]:
    """The facts of one served version of a model, as JSON shows them.

    ``trained``, ``validation`` and ``test`` are the task's figure ``score_name`` with its 95 % interval and its number of images;
    ``drop`` is what the served file loses against the trained model on the validation images, negative where it gains; ``median_ms`` is
    of the machine that exported; ``input_size`` is height and width, pixels.

    Args:
        manifest: the bundle's.
        variant: the file of it that is served.
        versions: every release of this name that the server has, the oldest first.
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
        **_measured(manifest.trained, variant),
        "backbone": lineage.backbone,
        "architecture": lineage.architecture,
        "strategy": lineage.strategy,
        "license": lineage.license,
        "train_images": lineage.train_images,
        "rejected": [{"name": rejected.name, "reason": rejected.reason} for rejected in manifest.rejected],
    }


def _measured(trained: Proportion, variant: Variant) -> dict[str, Any]:
    return {
        "validation": variant.validation.model_dump(),
        "test": variant.test.model_dump() if variant.test else None,
        "drop": trained.value - variant.validation.value,
        "median_ms": variant.median_ms,
    }
