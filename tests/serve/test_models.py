"""Served models: names, versions, metadata and outputs, from manifests without model files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl.core.manifest import Manifest
from edgetl.core.tasks import DecisionRule
from edgetl.errors import ConfigError, RequestError
from edgetl.serve.protocol.models import Model, Models, port_of
from edgetl.serve.protocol.open_inference import InputPort
from tests.core.bundles import write_files


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Manifest ``pets`` with the labels cat and dog, and two variants with an input of 32 x 32 pixels."""
    return write_files(tmp_path)


def _named(manifest: Manifest, name: str, release: int, variant: str = "onnx-fp32") -> Model:
    return Model(manifest.model_copy(update={"name": name, "release": release}), variant)


def test_the_port_has_name_datatype_and_shape_of_the_variant(manifest: Manifest) -> None:
    assert port_of(manifest, manifest.variants[0]) == InputPort("x", "FP32", (3, 32, 32))
    pixels = manifest.variants[0].model_copy(update={"input_form": "uint8"})
    assert port_of(manifest, pixels) == InputPort("x", "UINT8", (32, 32, 3))


def test_metadata_follow_the_protocol(manifest: Manifest) -> None:
    model = Model(manifest.model_copy(update={"release": 7}), "openvino-int8", batch=4)
    assert (model.name, model.version, model.variant) == ("pets", "7", manifest.variants[1])
    assert model.metadata(["3", "7"]) == {
        "name": "pets",
        "versions": ["3", "7"],
        "platform": "openvino_ir",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "parameters": {"labels": ["cat", "dog"], "variant": "openvino-int8", "task": "classification", "batch": 4},
    }
    onnx = Model(manifest, "onnx-fp32")
    assert onnx.metadata(["1"])["platform"] == "onnxruntime_onnx" and onnx.metadata(["1"])["parameters"]["batch"] == 1


def test_the_measured_batch_does_not_change_the_identity_of_a_model(manifest: Manifest) -> None:
    assert Model(manifest, "onnx-fp32", batch=2) == Model(manifest, "onnx-fp32", batch=3) != Model(manifest, "openvino-int8")


def test_scores_are_divided_by_the_temperature_and_logits_are_not(manifest: Manifest) -> None:
    logits = np.array([[0.0, 2 * np.log(3.0)]], np.float32)
    model = Model(manifest.model_copy(update={"decision_rule": DecisionRule(temperature=2.0, reject_below=0.9)}), "onnx-fp32")
    found = model.outputs(logits)
    assert found.scores.tolist() == [[pytest.approx(0.25), pytest.approx(0.75)]] and found.logits is logits


def test_outputs_are_the_scores_and_the_logits(manifest: Manifest) -> None:
    logits = np.array([[0.0, np.log(3.0)]], np.float32)
    found = _named(manifest, "pets", 5).outputs(logits)
    assert (found.model, found.version, found.labels) == ("pets", "5", ("cat", "dog")) and found.logits is logits
    assert found.scores.tolist() == [[pytest.approx(0.25), pytest.approx(0.75)]]


def test_the_newest_version_is_the_default_and_versions_are_sorted_as_numbers(manifest: Manifest) -> None:
    old, new, middle, other = (_named(manifest, name, release) for name, release in (("pets", 2), ("pets", 10), ("pets", 9), ("cars", 1)))
    models = Models([old, new, middle, other])
    assert models.names == ["pets", "cars"] and models.all() == [old, new, middle, other]
    assert models.versions("pets") == ["2", "9", "10"] and models.versions("cars") == ["1"]
    assert models.find("pets") is new and models.find("pets", "2") is old and models.find("cars", "1") is other
    assert [models.index(model) for model in (old, new, middle, other)] == [0, 1, 2, 3]
    models.all().clear()
    assert len(models.all()) == 4, "the list is a copy"


def test_the_index_belongs_to_the_object_and_not_to_an_equal_model(manifest: Manifest) -> None:
    first, second = _named(manifest, "pets", 1), _named(manifest, "pets", 2)
    with pytest.raises(StopIteration):
        Models([first, second]).index(_named(manifest, "pets", 2))


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("birds", None, "no model has this name. GET /models lists the models."),
        ("birds", "1", "no model has this name. GET /models lists the models."),
        ("pets", "3", "the model does not have this version. GET /models lists the versions."),
        ("pets", "", "the model does not have this version. GET /models lists the versions."),
    ],
)
def test_an_unknown_model_or_version_gets_404(manifest: Manifest, name: str, version: str | None, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Models([_named(manifest, "pets", 1)]).find(name, version)
    assert (caught.value.status, str(caught.value)) == (404, message)


def test_two_bundles_of_the_same_name_and_release_are_an_error(manifest: Manifest) -> None:
    with pytest.raises(ConfigError) as caught:
        Models([_named(manifest, "pets", 4), _named(manifest, "pets", 4)])
    assert str(caught.value) == "two bundles have the name 'pets' and release 4. Export one with another --release."
