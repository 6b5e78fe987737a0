"""ONNX → OpenVINO IR."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from edgetl.errors import ExportError


def read_onnx(source: Path, model_info: dict[str, str], own: dict[str, str]) -> ov.Model:
    """Convert an ONNX file and attach ``rt_info``.

    Raises:
        ExportError: OpenVINO cannot convert the file.
    """
    try:
        model = ov.convert_model(source)
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"OpenVINO {ov.__version__} cannot convert {source.name}: {str(error).splitlines()[0]}") from error
    annotate(model, model_info, own)
    return model


def annotate(model: ov.Model, model_info: dict[str, str], own: dict[str, str]) -> None:
    """Write ``rt_info``: the keys that Intel Model API reads, and our own."""
    for block, values in (("model_info", model_info), ("edgetl", own)):
        for key, value in values.items():
            model.set_rt_info(value, [block, key])


def save(model: ov.Model, path: Path, *, half: bool = False) -> None:
    """Write ``path`` (.xml) and the .bin beside it; ``half`` stores the weights in half precision.

    Raises:
        ExportError: OpenVINO cannot write, for instance on a full disk.
    """
    try:
        ov.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot write {path.name}: {str(error).splitlines()[0]}") from error
