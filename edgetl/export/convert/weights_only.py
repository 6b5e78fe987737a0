"""Weight-only quantization: 8-bit weights, float32 activations; a quarter of the file, the time of fp32. Called ``int8-weights``."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

import nncf
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from edgetl.errors import ExportError, first_line
from edgetl.export.convert.to_openvino import read_onnx, save

# Smaller tensors are left: their scales would weigh as much as what is saved.
LEAST_ELEMENTS = 1024


def pack_onnx(source: Path, path: Path) -> None:
    """Write the ONNX file ``source`` with the weights of convolutions and matrix products in 8 bits, symmetric, per output channel.

    ONNX Runtime unpacks them when it loads the file.
    """
    model = onnx.load(source)
    graph = model.graph
    tensors = {item.name: item for item in graph.initializer}
    for node in list(graph.node):
        tensor = tensors.get(node.input[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < LEAST_ELEMENTS:
            continue
        value = onnx.numpy_helper.to_array(tensor)
        axis = _output_axis(node, value.ndim)
        others = tuple(index for index in range(value.ndim) if index != axis)
        scale = (np.maximum(np.abs(value).max(axis=others, keepdims=True), 1e-12) / 127).astype(np.float32)
        packed = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
        name, target = f"{tensor.name}.int8", f"{tensor.name}.unpacked"
        if name not in tensors:
            tensors[name] = onnx.numpy_helper.from_array(packed, name)
            graph.initializer.extend([tensors[name], onnx.numpy_helper.from_array(scale.reshape(-1), f"{tensor.name}.scale")])
            unpack = onnx.helper.make_node("DequantizeLinear", [name, f"{tensor.name}.scale"], [target], axis=axis)
            graph.node.insert(0, unpack)
        node.input[1] = target
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.save(model, path)


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else rank - 1


def pack_openvino(source: Path, path: Path) -> None:
    """Write the ONNX file ``source`` as an IR with its weights in 8 bits, symmetric, per output channel (NNCF).

    Raises:
        ExportError: NNCF cannot pack the network.
    """
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        # NNCF draws its progress bars on the standard output, which belongs to the caller.
        with contextlib.redirect_stdout(io.StringIO()):
            model = nncf.compress_weights(read_onnx(source), mode=nncf.CompressWeightsMode.INT8_SYM)
    except (nncf.ValidationError, nncf.UnsupportedModelError, nncf.InternalError, RuntimeError) as error:
        raise ExportError(f"NNCF {nncf.__version__} cannot pack {source.name}: {first_line(error)}") from error
    save(model, path)
