"""Bias correction for int8 files of ONNX Runtime, which has none of its own.

Rounding shifts the mean of each layer's outputs. The correction subtracts the shift of each channel from the bias, layer by layer, with all
preceding layers corrected (Nagel et al. 2019, arXiv:1906.04721, section 4.2, with measured instead of derived means).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime as ort
from numpy.typing import NDArray

from edgetl.core.system.host import available_cores
from edgetl.export.convert.metadata import INPUT_NAME

IMAGES = 32


def correct_biases(quantized: onnx.ModelProto, plain: onnx.ModelProto, calibration: Sequence[NDArray[np.float32]]) -> None:
    """Correct the biases of ``quantized``, in place, to match the mean output of each convolution of ``plain``.

    Convolutions without a bias are not changed.

    Args:
        quantized: QDQ model with the node names of ``plain``.
        plain: fp32 model.
        calibration: batches float32 ``[1, 3, H, W]``. At most ``IMAGES`` of them are used.
    """
    images = calibration[:: max(1, len(calibration) // IMAGES)][:IMAGES]
    outputs = {node.name: node.output[0] for node in plain.graph.node if node.op_type == "Conv" and len(node.input) == 3}
    if not outputs:
        return
    wanted = dict(zip(outputs, _means(plain, list(outputs.values()), images), strict=True))
    makers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    for node in quantized.graph.node:
        if node.name not in wanted or len(node.input) != 3:
            continue
        (found,) = _means(quantized, [node.output[0]], images)
        _shift(quantized.graph, makers.get(node.input[2]), node.input[2], wanted[node.name] - found)


def _means(model: onnx.ModelProto, names: list[str], images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Return the mean of each channel of the tensors ``names`` ``[batch, channels, H, W]`` over ``images``."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cores()
    session = ort.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums: list[NDArray[np.float64]] | None = None
    for image in images:
        rows = [np.asarray(value, np.float64).mean(axis=(0, 2, 3)) for value in session.run(None, {INPUT_NAME: image})]
        sums = rows if sums is None else [total + row for total, row in zip(sums, rows, strict=True)]
    assert sums is not None
    return [total / len(images) for total in sums]


def _shift(graph: onnx.GraphProto, maker: onnx.NodeProto | None, name: str, change: NDArray[np.float64]) -> None:
    """Add ``change`` to a bias: float, or 32-bit integers that the node ``maker`` dequantizes."""
    tensors = {item.name: item for item in graph.initializer}
    if maker is None:
        if name in tensors:
            _replace(tensors[name], onnx.numpy_helper.to_array(tensors[name]) + change.astype(np.float32))
        return
    packed = tensors.get(maker.input[0])
    scale = tensors.get(maker.input[1])
    if packed is None or scale is None or packed.data_type != onnx.TensorProto.INT32:
        return
    steps = np.rint(change / np.maximum(onnx.numpy_helper.to_array(scale).astype(np.float64), 1e-30))
    limits = np.iinfo(np.int32)
    value = np.clip(onnx.numpy_helper.to_array(packed).astype(np.float64) + steps, limits.min, limits.max)
    _replace(packed, value.astype(np.int32))


def _replace(tensor: onnx.TensorProto, value: NDArray[np.generic]) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
