"""Model cards: facts about the served models for ``GET /models`` and the web page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetl.core.lineage import Lineage
from edgetl.core.manifest import Manifest, Variant
from edgetl.serve.protocol.models import Model, Models
from edgetl.serve.workers.bundles import ServedBundle


def cards(models: Models, served: Sequence[ServedBundle]) -> list[dict[str, Any]]:
    """Return the card of every served version. The newest version of each name comes first. ``served`` has the order of the models."""
    every = [models.find(name, version) for name in models.names for version in reversed(models.versions(name))]
    return [card(model, models.versions(model.name), served[models.index(model)]) for model in every]


def card(model: Model, versions: Sequence[str], served: ServedBundle) -> dict[str, Any]:
    """Return the card of one served version of a model, as a JSON object.

    ``trained``, ``validation`` and ``test`` hold the score ``score_name`` with its 95 % confidence interval and number of images. The first
    two are measured on ``gate_images``. ``drop`` is the accuracy drop of the variant against the trained model on them. A negative drop is
    a gain. Without labels, the score is the agreement with the trained model, and the drop is the expected drop.
    ``median_ms`` was measured on the host of the export. ``input_size`` is height and width, pixels. ``signed`` is true if the bundle has a
    signature. ``key`` is the fingerprint of the trusted key whose signature was checked when the release was installed into a store.
    ``gallery`` describes the gallery of a k-NN model, whose new labels are also in ``labels``.

    Args:
        model: the served version.
        versions: all served releases of this model, the oldest first.
        served: the served bundle.
    """
    manifest, variant = model.manifest, model.variant
    return {
        "name": manifest.name,
        "version": str(manifest.release),
        "versions": list(versions),
        "task": manifest.task,
        "labels": list(model.labels),
        **_decision(manifest),
        "variant": variant.name,
        "format": variant.format,
        "precision": variant.precision,
        "size_bytes": variant.size_bytes,
        "input_size": list(manifest.preprocess.input_size),
        "crop": {"mode": manifest.preprocess.crop_mode, "pct": manifest.preprocess.crop_pct},
        "created": manifest.created,
        "gallery": _gallery_facts(model),
        **_signature(served),
        "score_name": manifest.score_name,
        "gate_images": manifest.gate_images,
        "trained": manifest.trained.model_dump(),
        **_variant_scores(manifest, variant),
        **_origin(manifest.lineage),
        "rejected": [{"name": rejected.name, "reason": rejected.reason} for rejected in manifest.rejected],
    }


def _signature(served: ServedBundle) -> dict[str, Any]:
    return {"signed": served.signed, "key": served.key}


def _gallery_facts(model: Model) -> dict[str, Any] | None:
    if model.gallery is None:
        return None
    new = model.labels[len(model.manifest.labels) :]
    return {"sha256": model.gallery.sha256, "images": model.gallery.images, "new_labels": list(new)}


def _decision(manifest: Manifest) -> dict[str, Any]:
    decision_rule = manifest.decision_rule
    return {
        "temperature": decision_rule.temperature,
        "reject_below": decision_rule.reject_below,
        "thresholds": list(decision_rule.thresholds) or None,
        "tolerance": decision_rule.tolerance if manifest.task == "regression" else None,
        "ordinal_levels": list(decision_rule.ordinal_levels) if decision_rule.ordinal_levels else None,
        "heat_map": list(decision_rule.heat_map) if decision_rule.heat_map else None,
    }


def _variant_scores(manifest: Manifest, variant: Variant) -> dict[str, Any]:
    return {
        "validation": variant.validation.model_dump(),
        "test": variant.test.model_dump() if variant.test else None,
        "drop": manifest.drop_of(variant),
        "median_ms": variant.median_ms,
    }


def _origin(lineage: Lineage) -> dict[str, Any]:
    return {
        "backbone": lineage.backbone,
        "architecture": lineage.architecture,
        "strategy": lineage.strategy,
        "license": lineage.license,
        "train_images": lineage.train_images,
    }
