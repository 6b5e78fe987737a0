"""Faults in fp32 files: the accuracy gate rejects each. Correct files give the same predictions in both engines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import edgetl
from edgetl.core.bundle import Bundle
from edgetl.core.preprocess import PreprocessSpec
from edgetl.data.loading import PixelSet, batches, stratified
from edgetl.errors import AccuracyGateError, ExportError
from edgetl.export.config import ExportConfig
from edgetl.export.convert.to_onnx import to_onnx
from edgetl.export.gate.agreement import STRICT_BATCHES, GateSet, evaluate_file, trained_logits
from edgetl.export.package import export_bundle
from edgetl.runtime.engine import load_engine
from edgetl.train.artifacts.run import Run

IMAGES = 64


@pytest.fixture(scope="module")
def gate(run: Run) -> GateSet:
    samples = stratified(run.samples("val"), IMAGES)
    images = PixelSet(samples, run.record.preprocess)
    return GateSet(images, trained_logits(run.load_model(), images), run.record.decoding)


def _reason(model: onnx.ModelProto, gate: GateSet) -> str:
    engine = load_engine("onnx", [model.SerializeToString()], threads=1)
    return evaluate_file(engine.run, gate, ExportConfig(), exact=True).reason


@pytest.fixture
def exported(bundle: Bundle) -> onnx.ModelProto:
    """The fp32 ONNX file of the bundle."""
    return onnx.load(bundle.path / "onnx-fp32/1/model.onnx")


def _first(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def _scale_a_kernel(model: onnx.ModelProto) -> None:
    """Scale one of many kernels by 1.01."""
    name = _first(model, "Conv").input[1]
    tensor = next(item for item in model.graph.initializer if item.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value[0] *= np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def _replace_an_activation(model: onnx.ModelProto) -> None:
    _first(model, "Relu").op_type = "Softplus"


def _remove_an_activation(model: onnx.ModelProto) -> None:
    _first(model, "Relu").op_type = "Identity"


def _swap_two_classes(model: onnx.ModelProto) -> None:
    head = _first(model, "Gemm")
    for name in head.input[1:]:
        tensor = next(item for item in model.graph.initializer if item.name == name)
        value = numpy_helper.to_array(tensor)
        axis = value.shape.index(10)
        tensor.CopyFrom(numpy_helper.from_array(np.take(value, [1, 0, *range(2, 10)], axis), name))


def _wrong_at(batch: int) -> Callable[[onnx.ModelProto], None]:
    """Return a change that adds 1 to a logit for this batch size only."""

    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if "logits" in node.output)
        node.output[0] = "correct"
        class_ = np.eye(1, 10, dtype=np.float32)
        for name, value in (("this_batch", np.array([batch])), ("one_class", class_)):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        model.graph.node.extend(
            [
                helper.make_node("Shape", ["input"], ["images"], start=0, end=1),
                helper.make_node("Equal", ["images", "this_batch"], ["here"]),
                helper.make_node("Cast", ["here"], ["amount"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["amount", "one_class"], ["error"]),
                helper.make_node("Add", ["correct", "error"], ["logits"]),
            ]
        )

    return change


def test_the_unchanged_file_passes(exported: onnx.ModelProto, gate: GateSet) -> None:
    assert len(gate.samples) == IMAGES and STRICT_BATCHES == (1, 2, 5)
    assert _reason(exported, gate) == ""


@pytest.mark.parametrize(
    "change",
    [_scale_a_kernel, _replace_an_activation, _remove_an_activation, _swap_two_classes, *map(_wrong_at, STRICT_BATCHES)],
    ids=["kernel 1 % larger", "other activation", "no activation", "two classes swapped", "batch size 1", "batch size 2", "batch size 5"],
)
def test_the_gate_rejects_a_faulty_onnx_file_with_the_difference(
    exported: onnx.ModelProto, gate: GateSet, change: Callable[[onnx.ModelProto], None]
) -> None:
    change(exported)
    assert "of the largest (limit 0.0001)" in _reason(exported, gate)


def test_a_faulty_export_writes_no_bundle(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(model: nn.Module, spec: PreprocessSpec, path: Path, metadata: dict[str, str]) -> None:
        to_onnx(model, spec, path, metadata)
        changed = onnx.load(path)
        _scale_a_kernel(changed)
        onnx.save(changed, path)

    monkeypatch.setattr("edgetl.export.context.to_onnx", faulty)
    config = ExportConfig(formats=("onnx",), precisions=("fp32",))
    with pytest.raises(AccuracyGateError, match=r"onnx-fp32: logits differ from the trained model's by .*Nothing was written"):
        export_bundle(run.path, config, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_both_engines_give_the_same_predictions(bundle: Bundle, run: Run, precision: str) -> None:
    """Each engine has its own quantizer. The int8 files therefore agree less, and each has its own accuracy."""
    samples = run.samples("test")
    truth, predictions = np.array([sample.label for sample in samples]), []
    for format_ in ("onnx", "openvino"):
        predictor = edgetl.load(bundle, variant=f"{format_}-{precision}", threads=1)
        predictions.append(np.concatenate([predictor.logits(batch).argmax(axis=1) for batch in batches(samples, predictor.spec)]))
        recorded = bundle.variant(f"{format_}-{precision}").test
        assert recorded is not None and recorded.n == len(samples)
        assert float((predictions[-1] == truth).mean()) == pytest.approx(recorded.value, abs=0.005)
    agreement = float((predictions[0] == predictions[1]).mean())
    assert len(samples) > 300 and agreement >= (0.96 if precision == "int8" else 0.99), f"{agreement:.4f} of {len(samples)} test images"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named_before_anything_is_written(run: Run, tmp_path: Path, value: float) -> None:
    model = run.load_model()
    name, weight = next(iter(model.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = value
    with pytest.raises(ExportError, match=rf"the weights {re.escape(name)} contain values that are not finite"):
        to_onnx(model, run.record.preprocess, tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []
