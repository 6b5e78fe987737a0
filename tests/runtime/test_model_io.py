"""Comparison of a loaded network with its manifest: a network that does not match is not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import edgetl
from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError
from tests.command import edgetl as command
from tests.runtime.hostile import CLASSES, SIDE, as_ir, end, forge, onnx_bytes


def _network(
    *,
    names: tuple[str, str] = ("input", "logits"),
    kind: int = TensorProto.FLOAT,
    image: list[int | str] | None = None,
    classes: int = CLASSES,
    batch: int | str = "n",
    twice: bool = False,
) -> bytes:
    """Return a network that computes the same sum of the channel means for every class."""
    image_name, logits_name = names
    nodes = [
        helper.make_node("ReduceMean", [image_name, "sides"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], [logits_name]),
    ]
    number = np.float64 if kind == TensorProto.DOUBLE else np.float32
    constants: dict[str, Any] = {"sides": np.array([2, 3]), "weights": np.ones((3, classes), number)}
    ends = [end(image_name, [batch, *(image or [3, SIDE, SIDE])], kind), end(logits_name, [batch, classes], kind)]
    if twice:
        nodes.append(helper.make_node("Relu", [logits_name], ["again"]))
        ends.append(end("again", [batch, classes], kind))
    return onnx_bytes(nodes, constants, ends=ends)


def _forged(bundle: Bundle, work: Path, format_: str, model: bytes) -> Path:
    return forge(bundle, work / "forged", f"{format_}-fp32", [model] if format_ == "onnx" else as_ir(model, work))


WRONG = {
    "input name": ({"names": ("pixels", "logits")}, "input name 'pixels', expected 'input'"),
    "output name": ({"names": ("input", "scores")}, "output name 'scores', expected 'logits'"),
    "element type": ({"kind": TensorProto.DOUBLE}, r"input type (tensor\(double\)|f64), expected float32; output type"),
    "image size": ({"image": [3, 32, SIDE]}, r"input shape \[dynamic, 3, 32, 48\], expected \[dynamic, 3, 48, 48\]"),
    "classes": ({"classes": 9}, r"output shape \[dynamic, 9\], expected \[dynamic, 10\]"),
    "fixed batch": ({"batch": 1}, r"input shape \[1, 3, 48, 48\], expected \[dynamic, 3, 48, 48\]"),
    "two outputs": ({"twice": True}, "2 outputs, expected 1"),
}


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_network_that_matches_the_manifest_is_loaded(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    assert edgetl.load(_forged(bundle, tmp_path, format_, _network())).variant is not None


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_network_that_does_not_match_is_an_error_with_file_and_difference(
    bundle: Bundle, tmp_path: Path, format_: str, change: dict[str, Any], message: str
) -> None:
    forged = _forged(bundle, tmp_path, format_, _network(**change))
    with pytest.raises(EngineError, match=rf"{format_}-fp32/1/model\..*: the model does not match the manifest: .*{message}"):
        edgetl.load(forged)


def test_dynamic_dimensions_are_checked_after_a_run(bundle: Bundle, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["none"]),
        helper.make_node("Add", ["none", "nine"], ["real"]),
        helper.make_node("Cast", ["real"], ["sides"], to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["sides"], ["logits"]),
    ]
    ends = [end("input", ["n", "c", "h", "w"]), end("logits", ["n", "classes"])]
    model = onnx_bytes(nodes, {"zero": np.float32(0), "nine": np.array([1, 9], np.float32)}, ends=ends)
    predictor = edgetl.load(_forged(bundle, tmp_path, "onnx", model))
    with pytest.raises(EngineError, match=r"returned the shape \[1, 9\] for 1 image\(s\) and 10 outputs"):
        predictor.predict(np.zeros((SIDE, SIDE, 3), np.uint8))


def test_the_command_line_reports_the_error_in_one_line(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    done = command("predict", _forged(bundle, tmp_path, "onnx", _network(classes=9)), digits / "1")
    assert done.returncode == EngineError.exit_code and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1 and "the model does not match the manifest" in done.stderr
