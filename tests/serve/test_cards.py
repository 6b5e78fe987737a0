"""Model cards of the server."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.manifest import Rejected
from edgetl.core.system.execution import Choice
from edgetl.core.tasks import DecisionRule
from edgetl.serve.model_cards import card, cards
from edgetl.serve.protocol.models import Model, Models
from edgetl.serve.workers.bundles import ServedBundle, end_starts, find_bundles
from tests.device.bundles import add_release, write_bundle


def served_bundle(bundle: Bundle) -> ServedBundle:
    return ServedBundle(bundle.path, bundle.manifest.name, Choice(variant="onnx-fp32", threads=1))


def test_card_contains_model_scores_and_lineage(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"rejected": (Rejected(name="onnx-int8", reason="accuracy drop of 3 points"),)})
    variant = manifest.variants[0]
    facts = card(Model(manifest, variant.name), ["1", "2"], served_bundle(bundle))
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
    facts = card(Model(bundle.manifest.model_copy(update={**ordinal, "variants": (variant,)}), variant.name), ["1"], served_bundle(bundle))
    assert facts["test"] is None and facts["ordinal_levels"] == [0, 4] and facts["thresholds"] is None


def test_cards_show_the_key_that_signed_an_installed_release(tmp_path: Path) -> None:
    """The server does not check signatures. For a release of a store, the installation did."""
    fingerprint = "ab" * 32
    for name, signature in (("plain", None), ("copied", b"{}"), ("stored", b"{}")):
        folder = write_bundle(tmp_path / name, 1, name=name)
        if signature:
            (folder / "manifest.sig").write_bytes(signature)
    store = tmp_path / "store"
    add_release(store, tmp_path / "stored", key=fingerprint)
    served = find_bundles([tmp_path / "plain", store, tmp_path / "copied"], None)
    models = Models([Model(open_bundle(item.path).manifest, item.choice.variant) for item in served])
    end_starts(served)
    found = {facts["name"]: (facts["signed"], facts["key"]) for facts in cards(models, served)}
    assert found == {"plain": (False, None), "stored": (True, fingerprint), "copied": (True, None)}


def test_models_endpoint_lists_the_cards(server: str, bundle: Bundle) -> None:
    response = httpx.get(f"http://{server}/models", timeout=None).json()
    variant = next(variant for variant in bundle.manifest.variants if variant.name == "onnx-fp32")
    assert (
        response["models"] == [card(Model(bundle.manifest, variant.name), ["1"], served_bundle(bundle))]
        and response["max_body_bytes"] == 16_000_000
    )
