"""Post-training int8 for OpenVINO, by NNCF on the IR."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import OverflowFix
from numpy.typing import NDArray

from edgetl.errors import ExportError
from edgetl.export.steps import FloatHead, Step
from edgetl.export.to_openvino import annotate, save
from edgetl.runtime.ov import core


class OpenVinoQuantizer:
    """Quantizes an IR; see ``steps.Quantizer``."""

    def __init__(
        self, source: Path, calibration: Sequence[NDArray[np.float32]], infos: tuple[dict[str, str], dict[str, str]], *,
        float_end: bool = False,
    ) -> None:  # fmt: skip
        """``calibration`` holds batches float32 ``[1, 3, H, W]``; ``infos`` are the blocks of ``annotate``; ``float_end`` leaves all that
        compares features with kept images in fp32."""
        self._float_end = float_end
        self._source = source
        self._calibration = calibration
        self._infos = infos
        self._model: ov.Model | None = None

    def quantize(self, step: Step, folder: Path) -> list[Path]:
        """Write ``model.xml`` and ``model.bin`` quantized as ``step`` says.

        Raises:
            ExportError: NNCF cannot quantize the network.
        """
        model = core().read_model(self._source)
        if any(op.get_type_name() == "FakeQuantize" for op in model.get_ops()):
            raise ExportError(f"{self._source.name} is quantized already; quantize the fp32 export of the same run.")
        spared = [op.get_friendly_name() for op in _convolutions(model)[: step.spared]]
        if step.refit:
            spared.append(_head(model).get_friendly_name())
        if self._float_end:
            spared += [name for name in _end(model) if name not in spared]
        logging.getLogger("nncf").setLevel(logging.ERROR)
        try:
            # NNCF draws its own progress bars on the standard output, which belongs to the caller.
            with contextlib.redirect_stdout(io.StringIO()):
                self._model = nncf.quantize(
                    model,
                    nncf.Dataset(self._calibration),
                    subset_size=len(self._calibration),
                    ignored_scope=nncf.IgnoredScope(names=spared) if spared else None,
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        overflow_fix=OverflowFix.ENABLE if step.seven_bit else OverflowFix.FIRST_LAYER,
                    ),
                )
        except (nncf.ValidationError, nncf.UnsupportedModelError, nncf.InternalError, RuntimeError) as error:
            raise ExportError(f"NNCF {nncf.__version__} cannot quantize {self._source.name}: {str(error).splitlines()[0]}") from error
        return self._save(self._model, folder)

    def write_trunk(self, folder: Path) -> list[Path]:
        """Write the quantized trunk: features ``[batch, width]`` are its output."""
        model = self._quantized().clone()
        trunk = ov.Model([_head(model).input_value(0)], model.get_parameters())
        return self._save(trunk, folder)

    def replace_head(self, head: FloatHead, folder: Path) -> list[Path]:
        """Write the quantized model with ``head``, which ``quantize`` left in fp32."""
        model = self._quantized()
        matmul = _head(model)
        transposed = bool(matmul.get_attributes()["transpose_b"])
        _replace_constant(matmul, 1, head.weight if transposed else head.weight.T)
        add = next(
            (target.get_node() for target in matmul.output(0).get_target_inputs() if target.get_node().get_type_name() == "Add"), None
        )
        if add is None:
            raise ExportError("the head has no bias to replace; the network does not end in one linear layer.")
        _replace_constant(add, 1, head.bias.reshape(1, -1))
        model.validate_nodes_and_infer_types()
        return self._save(model, folder)

    def _quantized(self) -> ov.Model:
        assert self._model is not None, "quantize comes first"
        return self._model

    def _save(self, model: ov.Model, folder: Path) -> list[Path]:
        annotate(model, *self._infos)
        save(model, folder / "model.xml")
        return [folder / "model.xml", folder / "model.bin"]


def _convolutions(model: ov.Model) -> list[Any]:
    return [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")]


def _end(model: ov.Model) -> list[str]:
    """The names of the operations from the one that takes the features' mean off, before their length is measured, to the output."""
    ops = model.get_ordered_ops()
    measured = [op for op in ops if op.get_type_name() == "ReduceL2"][-1]
    inside = {measured.input_value(0).get_node().get_friendly_name()}
    for op in ops:
        if any(op.input_value(port).get_node().get_friendly_name() in inside for port in range(op.get_input_size())):
            inside.add(op.get_friendly_name())
    return [op.get_friendly_name() for op in ops if op.get_friendly_name() in inside and op.get_type_name() != "Result"]


def _head(model: ov.Model) -> Any:
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]
    if not found:
        raise ExportError("the network holds no matrix product; it does not end in one linear layer.")
    return found[-1]


def _replace_constant(node: Any, port: int, value: NDArray[np.float32]) -> None:
    constant = ov.opset13.constant(np.ascontiguousarray(value), dtype=np.float32)
    node.input(port).replace_source_output(constant.output(0))
