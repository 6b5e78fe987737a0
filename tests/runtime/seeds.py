"""Small networks with many kinds of operators, for mutations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from tests.runtime.hostile import CLASSES, onnx_bytes


def convolutional() -> bytes:
    """Return a convolutional network: convolutions, quantization, pooling, resizing, padding, slices."""
    node, rng = helper.make_node, np.random.default_rng(0)

    def weights(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    nodes = [
        node("QuantizeLinear", ["input", "scale", "zero"], ["q0"]),
        node("DequantizeLinear", ["q0", "scale", "zero"], ["d0"]),
        node("DequantizeLinear", ["kernel", "scales", "zeros"], ["k0"], axis=0),
        node("Conv", ["d0", "k0", "bias"], ["c0"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1]),
        node("BatchNormalization", ["c0", "bias", "bias", "bias", "ones"], ["n0"], epsilon=1e-3),
        node("HardSwish", ["n0"], ["h0"]),
        node("Conv", ["h0", "depth"], ["c1"], kernel_shape=[3, 3], group=8, auto_pad="SAME_UPPER"),
        node("Clip", ["c1", "low", "high"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Resize", ["p1", "", "factors"], ["u1"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Pad", ["u1", "pads", "low"], ["e1"], mode="constant"),
        node("Slice", ["e1", "starts", "ends", "axes"], ["s1"]),
        node("Concat", ["s1", "r1"], ["x1"], axis=1),
        node("Split", ["x1", "sizes"], ["x2", "x3"], axis=1),
        node("Mul", ["x2", "x3"], ["x4"]),
        node("GlobalAveragePool", ["x4"], ["g1"]),
        node("Flatten", ["g1"], ["f1"], axis=1),
        node("Gemm", ["f1", "head", "offset"], ["logits"], transB=1),
    ]
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(0),
        "scales": np.full(8, 0.01, np.float32),
        "zeros": np.zeros(8, np.int8),
        "kernel": rng.integers(-99, 99, (8, 3, 3, 3)).astype(np.int8),
        "bias": weights(8),
        "ones": np.ones(8, np.float32),
        "depth": weights(8, 1, 3, 3),
        "low": np.float32(0),
        "high": np.float32(6),
        "factors": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "starts": np.array([1, 1]),
        "ends": np.array([-1, -1]),
        "axes": np.array([2, 3]),
        "sizes": np.array([8, 8]),
        "head": weights(CLASSES, 8),
        "offset": weights(CLASSES),
    }
    return onnx_bytes(nodes, constants)


def transformer() -> bytes:
    """Return a vision transformer: patches, attention, gathering, reductions."""
    node, rng = helper.make_node, np.random.default_rng(1)

    def weights(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    nodes = [
        node("Conv", ["input", "patch"], ["c0"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Reshape", ["c0", "tokens"], ["t0"], allowzero=0),
        node("Transpose", ["t0"], ["t1"], perm=[0, 2, 1]),
        node("Add", ["t1", "position"], ["t2"]),
        node("LayerNormalization", ["t2", "gain", "shift"], ["t3"], axis=-1, epsilon=1e-5),
        node("MatMul", ["t3", "qkv"], ["a0"]),
        node("Reshape", ["a0", "heads"], ["a1"]),
        node("Transpose", ["a1"], ["a2"], perm=[2, 0, 3, 1, 4]),
        node("Gather", ["a2", "first"], ["q"], axis=0),
        node("Gather", ["a2", "second"], ["k"], axis=0),
        node("Gather", ["a2", "third"], ["v"], axis=0),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s0"]),
        node("Softmax", ["s0"], ["s1"], axis=-1),
        node("MatMul", ["s1", "v"], ["s2"]),
        node("Transpose", ["s2"], ["s3"], perm=[0, 2, 1, 3]),
        node("Shape", ["t2"], ["shape"]),
        node("Reshape", ["s3", "shape"], ["s4"]),
        node("Gelu", ["s4"], ["s5"], approximate="tanh"),
        node("ReduceMean", ["s5", "one"], ["m0"], keepdims=0),
        node("Where", ["mask", "m0", "low"], ["m1"]),
        node("Einsum", ["m1", "head"], ["logits"], equation="bc,kc->bk"),
    ]
    constants = {
        "patch": weights(12, 3, 16, 16),
        "tokens": np.array([0, 12, -1]),
        "position": weights(1, 9, 12),
        "gain": weights(12),
        "shift": weights(12),
        "qkv": weights(12, 36),
        "heads": np.array([0, 9, 3, 2, 6]),
        "first": np.array(0),
        "second": np.array(1),
        "third": np.array(2),
        "one": np.array([1]),
        "mask": np.array([[True, False] * 6]),
        "low": np.float32(0),
        "head": weights(CLASSES, 12),
    }
    return onnx_bytes(nodes, constants)
