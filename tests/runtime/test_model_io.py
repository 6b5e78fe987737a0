"""A network that is not the one that its manifest describes is refused when it is loaded."""

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
    *, names: tuple[str, str] = ("input", "logits"), kind: int = TensorProto.FLOAT, image: list[int | str] | None = None,
    classes: int = CLASSES, batch: int | str = "n", twice: bool = False,
) -> bytes:  # fmt: skip
    """The mean of each channel, as often as there are classes."""
    given, answer = names
    nodes = [
        helper.make_node("ReduceMean", [given, "sides"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], [answer]),
    ]
    number = np.float64 if kind == TensorProto.DOUBLE else np.float32
    constants: dict[str, Any] = {"sides": np.array([2, 3]), "weights": np.ones((3, classes), number)}
    ends = [end(given, [batch, *(image or [3, SIDE, SIDE])], kind), end(answer, [batch, classes], kind)]
    if twice:
        nodes.append(helper.make_node("Relu", [answer], ["again"]))
        ends.append(end("again", [batch, classes], kind))
    return onnx_bytes(nodes, constants, ends=ends)


def _forged(bundle: Bundle, work: Path, format_: str, model: bytes) -> Path:
    return forge(bundle, work / "forged", f"{format_}-fp32", [model] if format_ == "onnx" else as_ir(model, work))


WRONG = {
    "input's name": ({"names": ("pixels", "logits")}, "its input is called 'pixels' and not 'input'"),
    "output's name": ({"names": ("input", "scores")}, "its output is called 'scores' and not 'logits'"),
    "numbers": ({"kind": TensorProto.DOUBLE}, r"its input holds (tensor\(double\)|f64) and not float32; its output holds"),
    "image size": ({"image": [3, 32, SIDE]}, r"its input has the shape \[free, 3, 32, 48\] and not \[free, 3, 48, 48\]"),
    "classes": ({"classes": 9}, r"its output has the shape \[free, 9\] and not \[free, 10\]"),
    "fixed batch": ({"batch": 1}, r"its input has the shape \[1, 3, 48, 48\] and not \[free, 3, 48, 48\]"),
    "two outputs": ({"twice": True}, "it has 2 outputs and not one"),
}


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_the_network_that_the_manifest_describes_is_loaded(bundle: Bundle, tmp_path: Path, format_: str) -> None:
    assert edgetl.load(_forged(bundle, tmp_path, format_, _network())).variant is not None


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG.keys())
def test_another_network_is_refused_at_load_by_file_and_difference(
    bundle: Bundle, tmp_path: Path, format_: str, change: dict[str, Any], words: str
) -> None:
    forged = _forged(bundle, tmp_path, format_, _network(**change))
    with pytest.raises(EngineError, match=rf"{format_}-fp32/1/model\..*: the model is not the one that the manifest describes: .*{words}"):
        edgetl.load(forged)


def test_sides_that_are_free_are_judged_by_the_answer(bundle: Bundle, tmp_path: Path) -> None:
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
    with pytest.raises(EngineError, match=r"returns shape \[1, 9\]; 1 images and 10 labels were expected"):
        predictor.predict(np.zeros((SIDE, SIDE, 3), np.uint8))


def test_the_command_line_says_it_in_one_line(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    done = command("predict", _forged(bundle, tmp_path, "onnx", _network(classes=9)), digits / "1")
    assert done.returncode == EngineError.exit_code and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1 and "the model is not the one that the manifest describes" in done.stderr
