"""Allowed operators and integers of exported image networks. A file with others is rejected before an engine reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Values that exporters write for "to the end" of an axis, in both directions.
_TO_THE_END = (2**63 - 1, -(2**63), -(2**63) + 1)


def has_index_out_of_range(values: NDArray[np.int64]) -> bool:
    """Return True if a number is not a valid size, index or padding: beyond 2^31 in either direction, except "to the end" of an axis."""
    return bool((((values >= 2**31) | (values < -(2**31))) & ~np.isin(values, _TO_THE_END)).any())


# Operators of ai.onnx, without control flow, sequences, strings, randomness and detection.
ONNX_OPERATORS = frozenset(
    (
        "Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitCast "
        "BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike CausalConvWithState Ceil Celu CenterCropPad Clip Col2Im "
        "Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT DeformConv DepthToSpace "
        "DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather "
        "GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample "
        "GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization "
        "LeakyRelu Less LessOrEqual LinearAttention Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean "
        "MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear "
        "RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign "
        "Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum SwiGLU Swish Tan Tanh TensorScatter "
        "ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor"
    ).split()
)

# Layer types of an OpenVINO IR that the conversion of these operators produces, without control flow, memory, sequences, randomness,
# detection and extensions. The spelling must be that of OpenVINO, which also accepts other spellings and treats some of them differently.
OPENVINO_OPERATIONS = frozenset(
    (
        "Abs Acos Acosh AdaptiveAvgPool AdaptiveMaxPool Add Asin Asinh Atan Atanh AvgPool BatchNormInference BatchToSpace Broadcast "
        "Ceiling Clamp Concat Const Convert ConvertLike Convolution ConvolutionBackpropData Cos Cosh CumSum DeformableConvolution "
        "DepthToSpace Divide Einsum Elu Equal Erf Exp FakeQuantize Floor FloorMod Gather GatherElements GatherND Gelu Greater "
        "GreaterEqual GridSample GroupConvolution GroupConvolutionBackpropData GroupNormalization HSigmoid HSwish HardSigmoid Identity "
        "Interpolate IsFinite IsInf IsNaN LRN Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr LogicalXor MVN MatMul "
        "MaxPool Maximum Minimum Mish Mod Multiply Negative NormalizeL2 NotEqual OneHot PRelu Pad Parameter Power Range ReLU ReduceL1 "
        "ReduceL2 ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Result Reverse Roll "
        "Round ScaledDotProductAttention ScatterElementsUpdate ScatterNDUpdate ScatterUpdate Select Selu ShapeOf ShuffleChannels "
        "Sigmoid Sign Sin Sinh Slice SoftMax SoftPlus SoftSign Softmax SpaceToBatch SpaceToDepth Split Sqrt SquaredDifference Squeeze "
        "StridedSlice Subtract Swish Tan Tanh Tile TopK Transpose Unsqueeze VariadicSplit"
    ).split()
)
