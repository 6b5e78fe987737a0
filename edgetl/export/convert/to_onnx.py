"""Conversion of torch networks to ONNX, and of ONNX files to half precision."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.helper
import onnx_ir
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from timm.utils.model import reparameterize_model
from torch import nn

from edgetl.core.preprocess import PreprocessSpec
from edgetl.errors import ExportError, first_line
from edgetl.export.convert.metadata import INPUT_NAME, OUTPUT_NAME

OPSET = 20


def to_onnx(model: nn.Module, spec: PreprocessSpec, path: Path, metadata: dict[str, str], *, more: Sequence[str] = ()) -> None:
    """Export ``model`` as one ONNX file with a dynamic batch: ``input`` float32 ``[batch, 3, H, W]`` → ``logits`` ``[batch, classes]``.

    Args:
        model: network in evaluation mode, on the CPU. Branches that timm can merge for inference (RepVGG) are merged first.
        spec: preprocessing; its input size is used.
        path: file to write.
        metadata: metadata, written as ``metadata_props``.
        more: names of the outputs after the logits.

    Raises:
        ExportError: torch cannot export the network, or a weight is not finite.
    """
    broken = [name for name, value in model.state_dict().items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ExportError(
            f"the weights {', '.join(broken[:3])} contain values that are not finite (NaN or infinity). Train again with a lower --lr."
        )
    merged = reparameterize_model(model).eval()
    example = torch.zeros(2, 3, *spec.input_size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter's warnings are about its internals. The accuracy gate checks the result.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                merged,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
                external_data=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME, *more],
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"torch {torch.__version__} cannot export {type(model).__name__} to ONNX: {first_line(error)}") from error
    assert program is not None
    save(program.model_proto, path, metadata)


def to_half(source: Path, path: Path) -> None:
    """Convert the ONNX file ``source`` to half precision. Inputs and outputs stay float32."""
    model = onnx.load(source)
    with warnings.catch_warnings():
        # The converter warns about weights below the smallest float16, which it rounds. The gate checks the accuracy.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(model, keep_io_types=True)
    # The converter appends its casts at the end. The ONNX standard requires topological order, and strict loaders check it.
    sorted_model = onnx_ir.from_proto(half)
    sorted_model.graph.sort()
    onnx.save(onnx_ir.to_proto(sorted_model), path)


def save(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Write ``model`` as one file with embedded weights and ``metadata`` in ``metadata_props``."""
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
