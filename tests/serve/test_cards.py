"""The facts of a served model."""

from __future__ import annotations

import httpx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.core.manifest import Rejected
from edgetl.core.tasks import DecisionRule
from edgetl.serve.model_cards import card


def test_a_card_says_what_is_served_how_good_it_is_and_where_it_comes_from(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"rejected": (Rejected(name="onnx-int8", reason="it lost 3 points"),)})
    variant = manifest.variants[0]
    facts = card(manifest, variant, ["1", "2"])
    assert (facts["name"], facts["version"], facts["versions"]) == (manifest.name, "1", ["1", "2"])
    assert facts["labels"] == [str(digit) for digit in range(10)] and facts["input_size"] == [48, 48]
    assert facts["size_bytes"] == sum(file.size_bytes for file in variant.files) and facts["median_ms"] == variant.median_ms
    assert facts["score_name"] == "accuracy" and facts["trained"]["n"] == manifest.trained.n
    assert facts["drop"] == pytest.approx(manifest.trained.value - variant.validation.value)
    assert variant.test and facts["test"] == variant.test.model_dump()
    assert facts["rejected"] == [{"name": "onnx-int8", "reason": "it lost 3 points"}]
    assert facts["architecture"] == "test_resnet" and facts["strategy"] == "full" and facts["license"] == manifest.lineage.license


def test_a_card_without_test_images_says_so_and_other_tasks_bring_what_their_answers_are_read_with(bundle: Bundle) -> None:
    variant = bundle.manifest.variants[0].model_copy(update={"test": None})
    graded = {"task": "ordinal", "labels": ("grade",), "decision_rule": DecisionRule(ordinal_levels=(0, 4))}
    facts = card(bundle.manifest.model_copy(update=graded), variant, ["1"])
    assert facts["test"] is None and facts["ordinal_levels"] == [0, 4] and facts["thresholds"] is None


def test_the_server_lists_the_cards_of_its_models(server: str, bundle: Bundle) -> None:
    said = httpx.get(f"http://{server}/models").json()
    variant = next(variant for variant in bundle.manifest.variants if variant.name == "onnx-fp32")
    assert said["models"] == [card(bundle.manifest, variant, ["1"])] and said["max_body_bytes"] == 16_000_000
