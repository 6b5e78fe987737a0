"""Registry of export formats, with one backend for each file format."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgetl.core.manifest import Format, Precision
from edgetl.core.preprocess import PreprocessSpec
from edgetl.export.convert.pixel_input import add_normalization_onnx, add_normalization_openvino
from edgetl.export.convert.to_onnx import to_half
from edgetl.export.convert.to_openvino import to_openvino
from edgetl.export.convert.weights_only import pack_onnx, pack_openvino
from edgetl.export.quantize.attempts import Quantizer, QuantizerInput
from edgetl.export.quantize.nncf_quantizer import OpenVinoQuantizer
from edgetl.export.quantize.ort_quantizer import OnnxQuantizer

# Format of the fp32 file. All other files are converted from it.
SOURCE_FORMAT: Format = "onnx"


@dataclass(frozen=True)
class FormatBackend:
    """Writers of one file format.

    Attributes:
        files: names of a variant's files. Writers receive the path of the first.
        writers: for each precision, a function that converts the fp32 ONNX file (first argument) to this format (second argument). int8 is
            not included, because it needs a quantization search.
        quantizer: creates the quantizer for int8.
        add_normalization: rewrites a file so that its input is uint8 pixels.
    """

    files: tuple[str, ...]
    writers: Mapping[Precision, Callable[[Path, Path], object]]
    quantizer: Callable[[QuantizerInput], Quantizer]
    add_normalization: Callable[[Path, PreprocessSpec], None]

    def write(self, precision: Precision, source: Path, folder: Path) -> list[Path]:
        """Convert the fp32 ONNX file ``source``, write the result into ``folder``, and return its files.

        Raises:
            ExportError: a library cannot convert the network.
        """
        files = [folder / name for name in self.files]
        self.writers[precision](source, files[0])
        return files


FORMATS: dict[Format, FormatBackend] = {
    "onnx": FormatBackend(
        files=("model.onnx",),
        writers={"fp32": shutil.copyfile, "fp16": to_half, "int8-weights": pack_onnx},
        quantizer=OnnxQuantizer,
        add_normalization=add_normalization_onnx,
    ),
    "openvino": FormatBackend(
        files=("model.xml", "model.bin"),
        writers={"fp32": to_openvino, "fp16": partial(to_openvino, half=True), "int8-weights": pack_openvino},
        quantizer=OpenVinoQuantizer,
        add_normalization=add_normalization_openvino,
    ),
}
