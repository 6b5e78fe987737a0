"""Validation of the manifest: paths, sizes, hashes and consistency."""

from __future__ import annotations

import json
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgetl.core.config import parse_json
from edgetl.core.manifest import BundleFile, Manifest
from edgetl.errors import BundleError

SHA = "0" * 64


def entry(path: str) -> dict[str, Any]:
    return {"path": path, "size_bytes": 5, "sha256": SHA}


def share(value: float) -> dict[str, Any]:
    return {"value": value, "n": 10, "low": 0.0, "high": 1.0}


def variant(name: str) -> dict[str, Any]:
    format_, precision = name.split("-")
    agreement = {"n": 10, "max_relative_error": 0.0, "top1_agreement": 1.0, "confident_n": 9, "confident_agreement": 1.0}
    return {
        "name": name,
        "format": format_,
        "precision": precision,
        "files": [entry(f"{name}/model.bin")],
        "input": "x",
        "output": "y",
        "agreement": agreement,
        "validation": share(0.9),
        "test": None,
        "median_ms": 1.5,
        "golden_tolerance": 0.001,
    }


def document() -> dict[str, Any]:
    """Return the JSON of a valid manifest with two variants."""
    lineage = {
        "backbone": "none",
        "architecture": "mlp",
        "weights_sha256": None,
        "license": None,
        "strategy": "full",
        "run_sha256": SHA,
        "data_fingerprint": SHA,
        "train_images": 10,
    }
    scores = {"onnx-fp32": [0.9, 0.1], "onnx-int8": [0.8, 0.2]}
    return {
        "schema_version": 1,
        "name": "pets",
        "created": "2025-01-01T00:00:00Z",
        "labels": ["cat", "dog"],
        "preprocess": {"input_size": [32, 32]},
        "variants": [variant("onnx-fp32"), variant("onnx-int8")],
        "max_drop": 0.01,
        "trained": share(0.9),
        "golden": [{"image": entry("golden/0.png"), "label": "cat", "scores": scores}],
        "calibration": {"n": 8, "images_sha256": SHA, "preprocess_sha256": SHA},
        "lineage": lineage,
        "seen_images": entry("seen.bin"),
        "card": entry("README.md"),
        "versions": {},
        "host": {},
    }


def read(value: dict[str, Any]) -> Manifest:
    return parse_json(json.dumps(value).encode(), Manifest, BundleError, name="manifest.json")


def changed(place: str, value: object) -> Any:
    """Return the valid document with another value at a dotted path."""
    result: Any = document()
    node = result
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for part in parents:
        node = node[part]
    node[last] = value
    return result


# A9, A10
HOSTILE_PATHS = {
    "parent": "../x",
    "absolute": "/etc/x",
    "parent inside": "a/../../b",
    "parent at the end": "a/..",
    "drive": "C:\\x",
    "drive with slash": "C:/x",
    "backslash": "a\\..\\b",
    "UNC": "\\\\host\\share",
    "empty": "",
    "dot": ".",
    "dot inside": "a/./b",
    "empty part": "a//b",
    "trailing slash": "a/",
    "NUL": "a\0b",
    "newline": "a\nb",
    "5000 characters": "a" * 5000,
    "trailing dot": "model.",
    "trailing dot of a folder": "a./b",
    "trailing space": "model ",
    "leading space": " model",
    "NFD": unicodedata.normalize("NFD", "é.bin"),
    "sibling with the same prefix": "../bundle_evil/x",
    "stream": "model.bin:stream",
    "wildcard": "a*",
}
PLACES = ["variants.0.files.0.path", "golden.0.image.path", "seen_images.path", "card.path"]


def test_a_valid_manifest_is_parsed() -> None:
    manifest = read(document())
    assert [item.name for item in manifest.variants] == ["onnx-fp32", "onnx-int8"]


def test_a_manifest_is_unchanged_after_writing_and_parsing() -> None:
    manifest = read(document())
    assert parse_json(manifest.model_dump_json().encode(), Manifest, BundleError, name="manifest.json") == manifest


def test_a_multi_label_manifest_needs_one_threshold_per_label() -> None:
    value = changed("labels", ["rust"])
    value |= {"task": "multi-label", "decision_rule": {"thresholds": [0.4]}}
    value["golden"][0] |= {"label": "none", "scores": {"onnx-fp32": [0.1], "onnx-int8": [0.2]}}
    manifest = read(value)
    assert manifest.decoding.decision_rule.thresholds == (0.4,)
    assert read(json.loads(manifest.model_dump_json())) == manifest
    for thresholds in ([], [0.4, 0.5], [1.5]):
        with pytest.raises(BundleError, match=r"thresholds"):
            read(value | {"decision_rule": {"thresholds": thresholds}})


def test_all_files_lists_models_golden_images_seen_images_and_card() -> None:
    paths = [file.path for file in read(document()).all_files()]
    assert paths == ["onnx-fp32/model.bin", "onnx-int8/model.bin", "golden/0.png", "seen.bin", "README.md"]


def test_size_bytes_is_the_sum_of_the_files() -> None:
    manifest = read(changed("variants.0.files", [entry("a.xml"), entry("a.bin")]))
    assert manifest.variants[0].size_bytes == 10


@pytest.mark.parametrize("path", HOSTILE_PATHS.values(), ids=HOSTILE_PATHS.keys())
def test_the_error_for_a_hostile_path_shows_its_field(path: str) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json does not fit its schema: card\.path: .*the path"):
        read(changed("card.path", path))


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_path_is_an_error_in_every_field(place: str) -> None:
    with pytest.raises(BundleError, match=place.replace(".", r"\.")):
        read(changed(place, "../bundle_evil/x"))


@pytest.mark.parametrize("path", ["model.onnx", "a/b/c.bin", "é/漢.bin", ".hidden", "a b.png", "..a", "a..b", "x" * 255])
def test_an_ordinary_path_is_accepted(path: str) -> None:
    assert BundleFile(path=path, size_bytes=0, sha256=SHA).path == path


@pytest.mark.parametrize("twin", ["ONNX-FP32/MODEL.BIN", "onnx-fp32/model.bin", "onnx-fp32/Model.bin"])
def test_paths_that_differ_only_in_case_are_an_error(twin: str) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json .*two paths are equal, or differ only in upper and lower case"):
        read(changed("card.path", twin))


def accepted(path: str) -> bool:
    try:
        BundleFile(path=path, size_bytes=0, sha256=SHA)
    except ValidationError:
        return False
    return True


@given(st.lists(st.sampled_from(["a", "..", ".", "/", "\\", "C:", " ", "\0", "e\u0301", "é", "\n", "b.bin"]), max_size=6).map("".join))
@settings(deadline=None, max_examples=60)
def test_accepted_paths_stay_in_the_bundle_on_posix_and_windows(path: str) -> None:
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    inside = not posix.is_absolute() and not windows.anchor and ".." not in (*posix.parts, *windows.parts)
    unambiguous = str(posix) == path and posix.parts == windows.parts and unicodedata.is_normalized("NFC", path)
    assert not accepted(path) or (inside and unambiguous)


@given(st.lists(st.from_regex(r"[a-z0-9_-]{1,8}(\.[a-z]{1,4})?", fullmatch=True), min_size=1, max_size=5).map("/".join))
@settings(deadline=None, max_examples=60)
def test_plain_lower_case_paths_are_accepted(path: str) -> None:
    assert accepted(path)


# A20
@pytest.mark.parametrize("size", [2**31, 2**32 + 1, 2**63, 2**64, -1, 1.5, 1.0, "12", True, None], ids=str)
def test_an_invalid_size_is_an_error(size: object) -> None:
    with pytest.raises(BundleError, match=r"does not fit its schema: card\.size_bytes"):
        read(changed("card.size_bytes", size))


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "g" * 64, "0x" + "0" * 62])
def test_an_invalid_hash_is_an_error(digest: str) -> None:
    with pytest.raises(BundleError, match=r"does not fit its schema: card\.sha256"):
        read(changed("card.sha256", digest))


def test_two_variants_with_the_same_name_are_an_error() -> None:
    twin = {**variant("onnx-fp32"), "files": [entry("other.bin")]}
    with pytest.raises(BundleError, match="two variants have the same name"):
        read(changed("variants", [variant("onnx-fp32"), twin]))


@pytest.mark.parametrize("name", ["onnx", "onnx-fp64", "tflite-fp32", "onnx-fp32/../x", "ONNX-fp32", ""])
def test_an_unknown_variant_name_is_an_error(name: str) -> None:
    with pytest.raises(BundleError, match=r"variants\.0\.name"):
        read(changed("variants.0.name", name))


def test_equal_labels_are_an_error() -> None:
    with pytest.raises(BundleError, match="two labels are equal"):
        read(changed("labels", ["cat", "cat"]))


def test_classification_with_one_label_is_an_error() -> None:
    with pytest.raises(BundleError, match="labels"):
        read(changed("labels", ["cat"]))


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"onnx-fp32": [0.9, 0.1]},
        {"onnx-fp32": [0.9, 0.1], "onnx-int8": [0.8, 0.2], "onnx-fp16": [0.8, 0.2]},
        {"onnx-fp32": [0.9, 0.1], "onnx-int8": [1.0]},
        {"onnx-fp32": [0.9, 0.1], "onnx-int8": [0.5, 0.3, 0.2]},
    ],
    ids=["none", "one variant missing", "one variant too many", "a score missing", "a score too many"],
)
def test_a_golden_image_needs_one_score_per_label_and_variant(scores: dict[str, list[float]]) -> None:
    with pytest.raises(BundleError, match=r"golden image golden/0\.png has an unknown label, or not one score per label for each variant"):
        read(changed("golden.0.scores", scores))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("name", ""),
        ("name", "../x"),
        ("name", "a\nb"),
        ("name", "a" * 101),
        ("release", 0),
        ("release", 2**53),
        ("task", "segmentation"),
        ("variants", []),
        ("variants.0.files", []),
        ("variants.0.files", [entry("a"), entry("b"), entry("c")]),
        ("variants.0.median_ms", -1.0),
        ("variants.0.golden_tolerance", 0.0),
        ("golden", []),
        ("preprocess.input_size", [32]),
        ("lineage.run_sha256", "abc"),
        ("calibration.images_sha256", None),
    ],
)
def test_the_error_for_an_invalid_value_shows_its_field(place: str, value: object) -> None:
    with pytest.raises(BundleError, match=rf"manifest\.json does not fit its schema: {place.replace('.', '[.]')}"):
        read(changed(place, value))


@pytest.mark.parametrize("tolerance", [0.0011, 0.05, 1.0])
def test_a_golden_tolerance_above_the_limit_is_an_error(tolerance: float) -> None:
    """A tolerance of 1 would let any network pass its golden images."""
    with pytest.raises(BundleError, match=rf"onnx-fp32 has the golden tolerance {tolerance:g}, but the largest for fp32 is 0\.001"):
        read(changed("variants.0.golden_tolerance", tolerance))


def test_classification_with_a_spread_is_an_error() -> None:
    with pytest.raises(BundleError, match=r"a classification model has the spread 1e\+09, but only numbers have one"):
        read({**document(), "decision_rule": {"spread": 1e9}})


def test_folders_that_differ_only_in_case_are_an_error() -> None:
    changed_path = changed("golden.0.image.path", "Golden/other.png")
    changed_path["card"]["path"] = "golden/card.md"
    with pytest.raises(BundleError, match="two paths are equal, or differ only in upper and lower case"):
        read(changed_path)


@pytest.mark.parametrize("field", [name for name, info in Manifest.model_fields.items() if info.is_required()])
def test_the_error_for_a_missing_field_shows_its_name(field: str) -> None:
    value = document()
    del value[field]
    with pytest.raises(BundleError, match=f"{field}: Field required"):
        read(value)


@pytest.mark.parametrize("place", ["extra", "lineage.extra", "variants.0.extra", "card.extra", "preprocess.extra"])
def test_the_error_for_an_extra_field_shows_its_path(place: str) -> None:
    with pytest.raises(BundleError, match=place.replace(".", r"\.")):
        read(changed(place, 1))


def test_the_error_for_a_newer_schema_version_is_to_upgrade() -> None:
    with pytest.raises(BundleError, match=r"manifest\.json has schema version 2\. .*Upgrade edgetl"):
        read(changed("schema_version", 2))
