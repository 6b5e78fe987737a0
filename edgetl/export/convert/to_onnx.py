"""Conversion of torch to ONNX, and of ONNX to half precision."""

from __future__ import annotations

import logging
import warnings
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


def to_onnx(model: nn.Module, spec: PreprocessSpec, path: Path, metadata: dict[str, str]) -> None:
    """Write ``model`` as one ONNX file with a dynamic batch: ``input`` float32 ``[batch, 3, H, W]`` → ``logits`` ``[batch, classes]``.

    Branches that timm can merge for inference (RepVGG and the like) are merged first.

    Args:
        model: in evaluation mode, on the CPU.
        spec: gives the input size.
        path: the file to write.
        metadata: written as ``metadata_props``.

    Raises:
        ExportError: torch cannot export the network, or a weight is not finite.
    """
    broken = [name for name, value in model.state_dict().items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ExportError(f"the weights {', '.join(broken[:3])} hold numbers that are not finite; nothing could be measured. Train again.")
    merged = reparameterize_model(model).eval()
    example = torch.zeros(2, 3, *spec.input_size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter warns about its own internals; the accuracy gate checks the result.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                merged,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
                external_data=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"torch {torch.__version__} cannot export {type(model).__name__} to ONNX: {first_line(error)}") from error
    assert program is not None
    save(program.model_proto, path, metadata)


def to_half(source: Path, path: Path) -> None:
    """Write the ONNX file ``source`` with half-precision weights; inputs and outputs stay float32."""
    model = onnx.load(source)
    with warnings.catch_warnings():
        # Weights below the smallest half are rounded; the gate checks the accuracy.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(model, keep_io_types=True)
    # The converter appends its casts at the end; the standard asks for topological order, and strict loaders insist on it.
    sorted_model = onnx_ir.from_proto(half)
    sorted_model.graph.sort()
    onnx.save(onnx_ir.to_proto(sorted_model), path)


def save(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Write one file with its weights inside and ``metadata`` in ``metadata_props``."""
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
