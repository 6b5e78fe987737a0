"""Conversion of ONNX files to OpenVINO IR."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import openvino as ov
from openvino._offline_transformations import apply_moc_transformations

from edgetl.errors import ExportError, first_line
from edgetl.runtime.ov import core


def to_openvino(source: Path, path: Path, *, half: bool = False) -> None:
    """Convert the ONNX file ``source`` to an IR: ``path`` (.xml) and the .bin next to it. ``half`` stores the weights in half precision.

    Raises:
        ExportError: OpenVINO cannot convert or write the file.
    """
    save(read_onnx(source), path, half=half)


def read_onnx(source: Path) -> ov.Model:
    """Convert an ONNX file to an OpenVINO model. The metadata becomes ``rt_info``.

    Raises:
        ExportError: OpenVINO cannot convert the file.
    """
    proto = onnx.load(source)
    try:
        with tempfile.TemporaryDirectory() as work:
            # Equivalent to ov.convert_model for an ONNX file (tested: same operations), without telemetry and in a third of the time.
            model = core().read_model(_without_wrong_fusion(proto, source, Path(work)))
            apply_moc_transformations(model, cf=False, smart_reshape=True)
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"OpenVINO {ov.__version__} cannot convert {source.name}: {first_line(error)}") from error
    for item in proto.metadata_props:
        model.set_rt_info(item.value, item.key.split(" ", 1))
    return model


def _without_wrong_fusion(model: onnx.ModelProto, source: Path, work: Path) -> Path:
    """Return ``source``, the file of ``model``, or a corrected copy in ``work`` that avoids a wrong fusion of OpenVINO.

    OpenVINO (2026.4, ``MultiplyConvolutionFusion``) multiplies a convolution's kernel by a constant that scales its input. It also does
    this for a constant that varies over height and width, if its size equals that of the kernel. An example is the 7 x 7 average pool
    before the 7 x 7 convolutions of timm's csatv2: the logits were off by 4 % of the largest. A clip to the range of float32 between the
    two operations prevents the fusion and changes no value.
    """
    graph = model.graph
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    into_convolutions = {node.input[0] for node in graph.node if node.op_type == "Conv"}
    scaled = [
        node
        for node in graph.node
        if node.op_type in ("Mul", "Div")
        and node.output[0] in into_convolutions
        and any(_by_place(constants.get(name)) for name in node.input)
    ]
    if not scaled:
        return source
    limits = np.finfo(np.float32)
    for name, value in (("edgetl.lowest", limits.min), ("edgetl.highest", limits.max)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    for node in scaled:
        output, inner = node.output[0], f"{node.output[0]}.unclipped"
        node.output[0] = inner
        clip = onnx.helper.make_node("Clip", [inner, "edgetl.lowest", "edgetl.highest"], [output])
        graph.node.insert(list(graph.node).index(node) + 1, clip)
    copy = work / source.name
    onnx.save(model, copy)
    return copy


def _by_place(shape: tuple[int, ...] | None) -> bool:
    """Return True if a constant of this shape varies along height or width of ``[batch, channels, height, width]``."""
    return shape is not None and any(size != 1 for size in shape[-2:])


def save(model: ov.Model, path: Path, *, half: bool = False) -> None:
    """Write ``model`` as ``path`` (.xml) and the .bin next to it. ``half`` stores the weights in half precision.

    Raises:
        ExportError: OpenVINO cannot write the files, for instance because the disk is full.
    """
    try:
        ov.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot write {path.name}: {first_line(error)}") from error
