"""Networks that pass every static check and need too much memory or time, and bundles with such networks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

from edgetl.core.bundle import Bundle

SIDE = 48
CLASSES = 10


def onnx_bytes(nodes: list[onnx.NodeProto], constants: dict[str, Any], *, ends: list[onnx.ValueInfoProto] | None = None) -> bytes:
    """Return an ONNX file from ``input`` ``[n, 3, 48, 48]`` to ``logits`` ``[n, 10]``, or with other inputs and outputs ``ends``."""
    ends = ends or [end("input", ["n", 3, SIDE, SIDE]), end("logits", ["n", CLASSES])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def end(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Return an input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def as_ir(model: bytes, work: Path) -> list[bytes]:
    """Convert an ONNX file to ``.xml`` and ``.bin``."""
    xml, weights = work / "ir.xml", work / "ir.bin"
    ov.serialize(ov.Core().read_model(model), xml, weights)
    return [xml.read_bytes(), weights.read_bytes()]


def hungry(gigabytes: float, *, above: float | None = None) -> bytes:
    """Return an ONNX file that enlarges the image to ``gigabytes``. It computes the size from the image, so the file does not contain it.

    With ``above``, only images with a mean input above this value are enlarged, by ``gigabytes`` for each unit above.
    """
    nodes = [
        helper.make_node("ReduceMean", ["input", "all"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "threshold"], ["excess"]),
        helper.make_node("Relu", ["excess"], ["positive"]),
        helper.make_node("Mul", ["positive", "growth"], ["grown"]),
        helper.make_node("Add", ["grown", "size"], ["real"]),
        helper.make_node("Cast", ["real"], ["sides"], to=TensorProto.INT64),
        helper.make_node("Resize", ["input", "", "", "sides"], ["enlarged"], mode="nearest"),
        helper.make_node("ReduceMean", ["enlarged", "pixels"], ["feature"], keepdims=0),
        helper.make_node("Unsqueeze", ["feature", "one"], ["column"]),
        helper.make_node("Mul", ["column", "row"], ["logits"]),
    ]
    side = int((gigabytes * 1e9 / 12) ** 0.5)
    size = np.array([1, 3, side, side] if above is None else [1, 3, SIDE, SIDE], np.float32)
    growth = np.array([0, 0, 0, 0] if above is None else [0, 0, side, side], np.float32)
    axes = np.arange(4)
    row = np.ones((1, CLASSES), np.float32)
    limits = {"threshold": np.float32(above or 0), "growth": growth, "size": size}
    return onnx_bytes(nodes, {"all": axes, **limits, "pixels": axes[1:], "one": np.array([1]), "row": row})


def slow(products: int, *, side: int = 2048) -> bytes:
    """Return an ONNX file of a few kilobytes that computes ``products`` products of square matrices."""
    nodes = [
        helper.make_node("ReduceMean", ["input", "pixels"], ["feature"], keepdims=0),
        helper.make_node("Unsqueeze", ["feature", "one"], ["column"]),
        helper.make_node("Expand", ["unit", "square"], ["ones"]),
        helper.make_node("Mul", ["ones", "column"], ["y0"]),
    ]
    for index in range(products):
        nodes.append(helper.make_node("MatMul", [f"y{index}"] * 2, [f"z{index}"]))
        nodes.append(helper.make_node("Sigmoid", [f"z{index}"], [f"y{index + 1}"]))
    nodes += [
        helper.make_node("ReduceMean", [f"y{products}"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "column"], ["sum"]),
        helper.make_node("Mul", ["sum", "row"], ["logits"]),
    ]
    ones = np.ones((1, CLASSES), np.float32)
    constants = {"pixels": np.array([1, 2, 3]), "one": np.array([1]), "unit": ones[:, :1], "square": np.array([side, side]), "row": ones}
    return onnx_bytes(nodes, constants)


def forge(bundle: Bundle, target: Path, name: str, files: Sequence[bytes], *, scores: Sequence[float] | None = None) -> Path:
    """Copy ``bundle`` to ``target`` with ``name`` as its only variant, replace the files of the variant, and update the manifest.

    ``scores`` are the golden scores of a network that returns the same scores for every image.
    """
    shutil.copytree(bundle.path, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for variant in manifest["variants"]:
        if variant["name"] != name:
            shutil.rmtree(target / variant["name"])
    manifest["variants"] = [variant for variant in manifest["variants"] if variant["name"] == name]
    for golden in manifest["golden"]:
        golden["scores"] = {name: golden["scores"][name] if scores is None else scores}
    for entry, data in zip(manifest["variants"][0]["files"], files, strict=True):
        (target / entry["path"]).write_bytes(data)
        entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (target / "manifest.json").write_text(json.dumps(manifest) + "\n")
    return target
