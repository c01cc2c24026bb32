"""The operators of ONNX that become torch: one line each, the function (inputs, attributes) -> outputs.

An input or attribute is the argument of its name in the standard, so that an operator whose attribute later became an
input (`axes`, `pads`, `split`) is the same function at every opset. `Operator.numbers` are the inputs that are read as
Python numbers: shapes, axes, pads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from epsball.models import onnx_images as images
from epsball.models import onnx_layers as layers
from epsball.models import onnx_shapes as shapes


class Operator(NamedTuple):
    """What an operator of ONNX does; inputs at the positions `numbers` come as lists of numbers."""

    function: Callable[..., Any]
    numbers: tuple[int, ...] = ()


def _divide(a: Tensor, b: Tensor) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _mod(a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y).to(x.dtype)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of two tensors, over any number of them."""

    def over_all(*parts: Tensor) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = function(total, part)
        return total

    return over_all


def _mean(*parts: Tensor) -> Tensor:
    return SUM(*parts) / len(parts)


SUM = _folded(torch.add)


def _clip(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    for limit, bound in ((min, torch.maximum), (max, torch.minimum)):
        if limit is not None:
            x = bound(x, torch.as_tensor(limit, dtype=x.dtype, device=x.device))
    return x


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def _selu(x: Tensor, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0)


def _hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    return x * _hard_sigmoid(x, 1 / 6, 0.5)


def _shrink(x: Tensor, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0))


def _is_inf(x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def _log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def _hardmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def _dropout(x: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return x, torch.ones_like(x, dtype=torch.bool)


def _identity(x: Tensor) -> Tensor:
    return x


UNARY: dict[str, Operator] = {
    name: Operator(function)
    for name, function in {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "Identity": _identity,
        "IsNaN": torch.isnan,
        "Log": torch.log,
        "Mish": F.mish,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Reciprocal": torch.reciprocal,
        "Relu": torch.relu,
        "Round": torch.round,
        "Sigmoid": torch.sigmoid,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
    }.items()
}
OPERATORS: dict[str, Operator] = UNARY | {
    # Elementwise, of several inputs
    "Add": Operator(torch.add),
    "And": Operator(torch.logical_and),
    "Div": Operator(_divide),
    "Equal": Operator(torch.eq),
    "Greater": Operator(torch.gt),
    "GreaterOrEqual": Operator(torch.ge),
    "Less": Operator(torch.lt),
    "LessOrEqual": Operator(torch.le),
    "Max": Operator(_folded(torch.maximum)),
    "Mean": Operator(_mean),
    "Min": Operator(_folded(torch.minimum)),
    "Mod": Operator(_mod),
    "Mul": Operator(torch.mul),
    "Or": Operator(torch.logical_or),
    "Pow": Operator(_power),
    "Sub": Operator(torch.sub),
    "Sum": Operator(SUM),
    "Where": Operator(torch.where),
    "Xor": Operator(torch.logical_xor),
    # Activations with attributes
    "Celu": Operator(_celu),
    "Clip": Operator(_clip),
    "Dropout": Operator(_dropout),
    "Elu": Operator(_elu),
    "Gelu": Operator(_gelu),
    "HardSigmoid": Operator(_hard_sigmoid),
    "HardSwish": Operator(_hard_swish),
    "Hardmax": Operator(_hardmax),
    "IsInf": Operator(_is_inf),
    "LeakyRelu": Operator(_leaky_relu),
    "LogSoftmax": Operator(_log_softmax),
    "PRelu": Operator(_prelu),
    "Selu": Operator(_selu),
    "Shrink": Operator(_shrink),
    "Softmax": Operator(_softmax),
    "ThresholdedRelu": Operator(_thresholded_relu),
    # Layers
    "Attention": Operator(layers.attention),
    "BatchNormalization": Operator(layers.batch_norm),
    "Conv": Operator(layers.conv),
    "ConvTranspose": Operator(layers.conv_transpose),
    "Einsum": Operator(layers.einsum),
    "Gemm": Operator(layers.gemm),
    "GroupNormalization": Operator(layers.group_norm),
    "InstanceNormalization": Operator(layers.instance_norm),
    "LRN": Operator(layers.local_response_norm),
    "LayerNormalization": Operator(layers.layer_norm),
    "LpNormalization": Operator(layers.lp_norm),
    "MatMul": Operator(torch.matmul),
    "MeanVarianceNormalization": Operator(layers.mean_variance_norm),
    "RMSNormalization": Operator(layers.rms_norm),
    # Images
    "AveragePool": Operator(images.average_pool),
    "DepthToSpace": Operator(images.depth_to_space),
    "GlobalAveragePool": Operator(images.global_average_pool),
    "GlobalMaxPool": Operator(images.global_max_pool),
    "MaxPool": Operator(images.max_pool),
    "Pad": Operator(images.pad, (1, 2, 3)),
    "Resize": Operator(images.resize, (1, 2, 3)),
    "SpaceToDepth": Operator(images.space_to_depth),
    "Upsample": Operator(images.upsample, (1,)),
    # Reductions
    "ArgMax": Operator(shapes.arg_max),
    "ArgMin": Operator(shapes.arg_min),
    "CumSum": Operator(shapes.cumulative_sum, (1,)),
    "ReduceL1": Operator(shapes.reduce_l1, (1,)),
    "ReduceL2": Operator(shapes.reduce_l2, (1,)),
    "ReduceLogSum": Operator(shapes.reduce_log_sum, (1,)),
    "ReduceLogSumExp": Operator(shapes.reduce_log_sum_exp, (1,)),
    "ReduceMax": Operator(shapes.reduce_max, (1,)),
    "ReduceMean": Operator(shapes.reduce_mean, (1,)),
    "ReduceMin": Operator(shapes.reduce_min, (1,)),
    "ReduceProd": Operator(shapes.reduce_prod, (1,)),
    "ReduceSum": Operator(shapes.reduce_sum, (1,)),
    "ReduceSumSquare": Operator(shapes.reduce_sum_square, (1,)),
    "TopK": Operator(shapes.top_k, (1,)),
    # Shapes
    "Cast": Operator(shapes.cast),
    "CastLike": Operator(shapes.cast_like),
    "Concat": Operator(shapes.concat),
    "ConstantOfShape": Operator(shapes.constant_of_shape, (0,)),
    "Expand": Operator(shapes.expand, (1,)),
    "EyeLike": Operator(shapes.eye_like),
    "Flatten": Operator(shapes.flatten),
    "Gather": Operator(shapes.gather),
    "GatherElements": Operator(shapes.gather_elements),
    "GatherND": Operator(shapes.gather_nd),
    "OneHot": Operator(shapes.one_hot, (1,)),
    "Range": Operator(shapes.arange, (0, 1, 2)),
    "Reshape": Operator(shapes.reshape, (1,)),
    "ScatterElements": Operator(shapes.scatter_elements),
    "ScatterND": Operator(shapes.scatter_nd),
    "Shape": Operator(shapes.shape),
    "Size": Operator(shapes.size),
    "Slice": Operator(shapes.slice_, (1, 2, 3, 4)),
    "Split": Operator(shapes.split, (1,)),
    "Squeeze": Operator(shapes.squeeze, (1,)),
    "Tile": Operator(shapes.tile, (1,)),
    "Transpose": Operator(shapes.transpose),
    "Trilu": Operator(shapes.trilu, (1,)),
    "Unsqueeze": Operator(shapes.unsqueeze, (1,)),
}
