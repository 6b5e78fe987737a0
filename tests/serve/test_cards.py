"""Model cards of the server."""

from __future__ import annotations

import httpx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Rejected
from edgetl.core.tasks import DecisionRule
from edgetl.serve.model_cards import card


def test_card_contains_model_scores_and_lineage(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"rejected": (Rejected(name="onnx-int8", reason="accuracy drop of 3 points"),)})
    variant = manifest.variants[0]
    facts = card(manifest, variant, ["1", "2"])
    assert (facts["name"], facts["version"], facts["versions"]) == (manifest.name, "1", ["1", "2"])
    assert facts["labels"] == [str(digit) for digit in range(10)] and facts["input_size"] == [48, 48]
    assert facts["size_bytes"] == sum(file.size_bytes for file in variant.files) and facts["median_ms"] == variant.median_ms
    assert facts["score_name"] == "accuracy" and facts["trained"]["n"] == manifest.trained.n
    assert facts["drop"] == pytest.approx(manifest.trained.value - variant.validation.value)
    assert variant.test and facts["test"] == variant.test.model_dump()
    assert facts["rejected"] == [{"name": "onnx-int8", "reason": "accuracy drop of 3 points"}]
    assert facts["architecture"] == "test_resnet" and facts["strategy"] == "full" and facts["license"] == manifest.lineage.license


def test_card_of_an_ordinal_model_contains_its_levels(bundle: Bundle) -> None:
    variant = bundle.manifest.variants[0].model_copy(update={"test": None})
    ordinal = {"task": "ordinal", "labels": ("grade",), "decision_rule": DecisionRule(ordinal_levels=(0, 4))}
    facts = card(bundle.manifest.model_copy(update=ordinal), variant, ["1"])
    assert facts["test"] is None and facts["ordinal_levels"] == [0, 4] and facts["thresholds"] is None


def test_models_endpoint_lists_the_cards(server: str, bundle: Bundle) -> None:
    response = httpx.get(f"http://{server}/models", timeout=None).json()
    variant = next(variant for variant in bundle.manifest.variants if variant.name == "onnx-fp32")
    assert response["models"] == [card(bundle.manifest, variant, ["1"])] and response["max_body_bytes"] == 16_000_000
