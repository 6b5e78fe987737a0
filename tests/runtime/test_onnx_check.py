"""Files that no export of ours could have written are refused before an engine reads them (cases A22, A24 to A27)."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.core.bundle import Bundle
from edgetl.errors import EngineError
from edgetl.runtime.engine import load_engine
from edgetl.runtime.onnx_check import MAX_NODES, check_onnx


def _model() -> onnx.ModelProto:
    """A linear layer."""
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")
    node = helper.make_node("MatMul", ["input", "weight"], ["logits"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("input", 3), ("logits", 2))]
    return helper.make_model(
        helper.make_graph([node], "graph", ends[:1], ends[1:], [weight]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )


def _refused(model: onnx.ModelProto | bytes, words: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(EngineError, match=words):
        load_engine("onnx", [data], threads=1)


def test_a_plain_file_is_let_through_and_runs() -> None:
    check_onnx(_model().SerializeToString())
    engine = load_engine("onnx", [_model().SerializeToString()], threads=1)
    assert engine.run(np.ones((2, 3), np.float32)).tolist() == [[3, 3], [3, 3]]


def test_every_onnx_file_of_a_bundle_is_let_through(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        if variant.format == "onnx":
            check_onnx(bundle.read(variant.files[0]))


@pytest.mark.parametrize(
    "key", [{"location": "../secret"}, {"location": "/etc/passwd"}, {"location": "side.bin", "offset": "-1"}, {"__class__": "x"}, {}]
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "sparse", "subgraph"])
def test_a_tensor_in_another_file_is_refused_wherever_it_stands(key: dict[str, str], place: str) -> None:
    model = _model()
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for name, value in key.items():
        outside.external_data.add(key=name, value=value)
    node = model.graph.node[0]
    if place == "initializer":
        model.graph.initializer.append(outside)
    elif place == "attribute":
        node.attribute.append(helper.make_attribute("value", outside))
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(outside)
    else:
        inner = onnx.GraphProto(node=[helper.make_node("Relu", ["a"], ["b"])], initializer=[outside])
        node.attribute.append(helper.make_attribute("body", inner))
    _refused(model, "'outside' lies in another file")


def _change(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = _model()
    change(model)
    return model


def _resize(*dims: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type, model.graph.node[0].domain = "MatMulNBits", "com.microsoft"


def _deep(model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    for _ in range(6):
        inner = onnx.GraphProto(node=[helper.make_node("Relu", ["a"], ["b"])])
        node.attribute.append(helper.make_attribute("body", inner))
        node = node.attribute[-1].g.node[0]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("needs 24000000000000 bytes and holds 24 bytes", _resize(2, 3 * 10**12)),
        ("negative side", _resize(-3, 2)),
        (r"shape \[4611686018427387904\]", _resize(2**62)),
        ("needs 28 bytes and holds 24", _resize(7)),
        ("operator 'Loop'", lambda model: setattr(model.graph.node[0], "op_type", "Loop")),
        ("operator com.microsoft.'MatMulNBits'", _foreign),
        ("functions or training", lambda model: model.functions.add(name="f")),
        ("more than 4 deep", _deep),
        ("of 0 nodes", lambda model: model.graph.ClearField("node")),
        ("more than a megabyte", lambda model: model.metadata_props.add(key="k", value="x" * 2_000_000)),
        ("operator set 99", lambda model: setattr(model.opset_import[0], "version", 99)),
        ("IR version 99", lambda model: setattr(model, "ir_version", 99)),
        ("unknown type 77", lambda model: setattr(model.graph.initializer[0], "data_type", 77)),
    ],
)  # fmt: skip
def test_what_no_export_writes_is_refused_by_name(words: str, change: Callable[[onnx.ModelProto], object]) -> None:
    _refused(_change(change), words)


def test_too_many_nodes_are_refused() -> None:
    _refused(_change(lambda model: model.graph.node.extend([model.graph.node[0]] * MAX_NODES)), f"{MAX_NODES + 1} nodes")


def _zipped() -> bytes:
    with zipfile.ZipFile(target := BytesIO(), "w") as file:
        file.writestr("a", "b")
    return target.getvalue()


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\x80\x04}.", _zipped(), b"<?xml version='1.0'?><net/>", bytes(1000)])
def test_files_of_other_kinds_are_refused(data: bytes) -> None:
    _refused(data, "damaged or hostile|refuses")


def test_truncated_and_random_files_are_refused_and_nothing_else_happens(bundle: Bundle) -> None:
    whole = bundle.read(next(item for item in bundle.manifest.variants if item.name == "onnx-int8").files[0])
    for tenth in range(1, 10):
        _refused(whole[: len(whole) * tenth // 10], "damaged or hostile")
    rng = random.Random(0)
    for _ in range(300):
        noise = bytearray(whole[:3000])
        for _ in range(5):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        with pytest.raises(EngineError):
            check_onnx(bytes(noise))
        with pytest.raises(EngineError):
            check_onnx(rng.randbytes(1000))


def test_graphs_that_do_not_hang_together_are_the_engines_to_refuse(tmp_path: Path) -> None:
    cyclic = _change(lambda model: model.graph.node.append(helper.make_node("Relu", ["b"], ["b"])))
    dangling = _change(lambda model: model.graph.ClearField("initializer"))
    for model in (cyclic, dangling):
        _refused(model, "ONNX Runtime .* refuses the model")
