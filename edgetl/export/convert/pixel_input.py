"""Pixel input: add the normalization of uint8 pixels to an exported file, for C++ programs and model servers without NumPy.

The normalization is added after quantization, because quantizers expect the float input.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import openvino as ov
from openvino.preprocess import PrePostProcessor

from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import ExportError
from edgetl.export.convert.metadata import INPUT_NAME
from edgetl.export.convert.to_openvino import save
from edgetl.runtime.ov import core

_NORMALIZED = "edgetl.normalized"


def add_normalization_onnx(path: Path, spec: PreprocessSpec) -> None:
    """Rewrite an ONNX file with ``input`` float32 ``[batch, 3, H, W]`` so that ``input`` is uint8 ``[batch, H, W, 3]``.

    Raises:
        ExportError: the file has another input.
    """
    model = onnx.load(path)
    graph = model.graph
    if [value.name for value in graph.input] != [INPUT_NAME]:
        raise ExportError(
            f"{path.name} has the inputs {[value.name for value in graph.input]}. It must have one input named {INPUT_NAME!r}."
        )
    for node in graph.node:
        node.input[:] = [_NORMALIZED if name == INPUT_NAME else name for name in node.input]
    scale = np.array(spec.std, np.float64) * 255
    constants = {"edgetl.mean": np.array(spec.mean, np.float64) * 255, "edgetl.scale": 1 / scale}
    for name, values in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32).reshape(1, 3, 1, 1), name))
    make = onnx.helper.make_node
    front = [
        make("Transpose", [INPUT_NAME], ["edgetl.planes"], "edgetl.transpose", perm=[0, 3, 1, 2]),
        make("Cast", ["edgetl.planes"], ["edgetl.pixels"], "edgetl.cast", to=onnx.TensorProto.FLOAT),
        make("Sub", ["edgetl.pixels", "edgetl.mean"], ["edgetl.centered"], "edgetl.subtract"),
        make("Mul", ["edgetl.centered", "edgetl.scale"], [_NORMALIZED], "edgetl.multiply"),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *rest])
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    pixels = onnx.helper.make_tensor_value_info(
        INPUT_NAME, onnx.TensorProto.UINT8, [batch.dim_param or batch.dim_value, *spec.input_size, 3]
    )
    graph.input[0].CopyFrom(pixels)
    onnx.save(model, path)


def add_normalization_openvino(path: Path, spec: PreprocessSpec) -> None:
    """Rewrite an OpenVINO IR (``.xml`` and its ``.bin``) so that ``input`` is uint8 ``[batch, H, W, 3]``."""
    # The files are read as bytes, because OpenVINO maps a .bin file that it opens itself, and this function overwrites that file.
    model = core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    front = PrePostProcessor(model)
    front.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    front.input().model().set_layout(ov.Layout("NCHW"))
    steps = front.input().preprocess().convert_element_type(ov.Type.f32)
    steps.mean([value * 255 for value in spec.mean]).scale([value * 255 for value in spec.std])
    save(front.build(), path)
