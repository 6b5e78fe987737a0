from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from edgetl.export.convert.to_openvino import to_openvino
from edgetl.runtime.engine import load_engine


def _write_scaled_convolution(path: Path, operator: str, shape: tuple[int, ...]) -> None:
    """Write a network in which a constant scales 7 x 7 maps before a 7 x 7 convolution."""
    random = np.random.default_rng(0)
    constants = {
        "scale": 1 + random.random(shape, np.float32),
        "kernel": random.normal(size=(4, 3, 7, 7)).astype(np.float32),
        "flat": np.array([0, -1]),
    }
    nodes = [
        onnx.helper.make_node(operator, ["input", "scale"], ["scaled"]),
        onnx.helper.make_node("Conv", ["scaled", "kernel"], ["maps"], pads=[3, 3, 3, 3]),
        onnx.helper.make_node("Reshape", ["maps", "flat"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "scaled",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 7, 7])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 196])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.mark.parametrize("operator", ["Mul", "Div"])
@pytest.mark.parametrize("shape", [(7, 7), (7,), (1, 3, 7, 7), (1, 3, 1, 1)])
def test_conversion_keeps_a_scale_before_a_convolution(operator: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "model.xml"
    _write_scaled_convolution(source, operator, shape)
    before = source.read_bytes()
    to_openvino(source, target)
    images = np.random.default_rng(1).normal(size=(2, 3, 7, 7)).astype(np.float32)
    expected = load_engine("onnx", [before], threads=1).run(images)
    found = load_engine("openvino", [target.read_bytes(), target.with_suffix(".bin").read_bytes()], threads=1).run(images)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert source.read_bytes() == before
