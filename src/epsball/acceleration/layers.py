"""Layers that compute what torch's do, with cheaper gradients; they share the parameters of those they replace."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.acceleration.kernels import Size, by_folding, by_phases, phases

Method = Literal["native", "phases", "folding"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How the backward-data of a convolution is computed: by torch, or as `kernels.py` says."""


class Convolution(nn.Conv2d):
    """A convolution whose backward-data is computed by `method`; with `rectified`, also the ReLU after it.

    Made by `convolution`, which keeps the class's attributes. Frozen, its kernels are rearranged once; trainable, at
    each backward, so that parameter gradients flow. `exclusive` says that nothing else reads the ReLU's incoming
    gradient.
    """

    name: str
    method: Method
    rectified: bool
    exclusive: bool
    trainable: bool
    kernels: Tensor | None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.method == "native" or input.ndim != 4 or torch.is_autocast_enabled(input.device.type):
            found = super()._conv_forward(input, weight, bias)
            return found.relu_() if self.rectified else found
        if self.trainable:
            return cast(Tensor, _Trainable.apply(input, weight, bias, self))
        return cast(Tensor, _Frozen.apply(input, self))


def rewritable(layer: nn.Module) -> bool:
    """Whether `convolution` may replace this layer: a plain Conv2d without groups, dilation or odd padding."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.dilation == (1, 1)
        and "forward" not in vars(layer)
    )


def convolution(
    layer: nn.Conv2d,
    name: str = "",
    method: Method = "native",
    *,
    rectified: bool = False,
    trainable: bool = False,
    channels_last: bool = False,
) -> Convolution:
    """The replacement of `layer`, which shares its parameters (channels-last: a rearranged copy)."""
    made = cast(Convolution, clone(layer, frozen=not trainable))
    made.__class__ = Convolution
    made.name, made.method, made.trainable, made.kernels = name, method, trainable, None
    made.rectified, made.exclusive = rectified, False
    if trainable:
        return made
    if channels_last:
        made.weight = nn.Parameter(made.weight.contiguous(memory_format=torch.channels_last), False)
    if method == "phases":
        kernels = phases(made.weight, cast(Size, layer.stride))
        made.kernels = kernels.contiguous(memory_format=torch.channels_last) if channels_last else kernels.contiguous()
    return made


def clone(module: nn.Module, *, frozen: bool) -> nn.Module:
    """A module of the same class with flags and dictionaries of its own; its tensors are the same memory.

    Frozen, its parameters are aliases that need no gradient, and it is in eval mode; otherwise it has the module's own
    parameters and buffers, also those that replace them later.
    """
    made = object.__new__(type(module))  # copy.copy asks __getstate__, which parametrized layers refuse
    made.__dict__.update(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module:
            made.__dict__[name] = MethodType(value.__func__, made)
        elif not frozen and name in ("_parameters", "_buffers"):
            made.__dict__[name] = value
        elif isinstance(value, dict | list):  # parameters, buffers, children, hooks; the weights of an LSTM
            made.__dict__[name] = copy.copy(value)
    if frozen:
        made.training = False
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(made, name, nn.Parameter(parameter.detach(), False))  # an LSTM keeps a list of them
    return made


def _through_relu(grad: Tensor, found: Tensor, exclusive: bool) -> Tensor:
    """The gradient before a ReLU whose output is `found`; an exclusive one is overwritten, a third less traffic."""
    if exclusive and not torch.is_grad_enabled():  # with create_graph it is needed again
        return torch.ops.aten.threshold_backward.grad_input(grad, found, 0, grad_input=grad)
    return torch.ops.aten.threshold_backward(grad, found, 0)


def _backward_data(grad: Tensor, weight: Tensor, kernels: Tensor | None, layer: Convolution, size: Size) -> Tensor:
    stride, padding = cast(Size, layer.stride), cast(Size, layer.padding)
    if layer.method == "folding":
        return by_folding(grad, weight, stride, padding, (1, 1), size)
    return by_phases(grad, phases(weight, stride) if kernels is None else kernels, stride, padding, size)


class _Frozen(torch.autograd.Function):
    """Forward and backward-data; no gradient of the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Convolution) -> Tensor:
        ctx.layer, ctx.size = layer, tuple(x.shape[2:])
        found = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
        if layer.rectified:
            found = found.relu_()
            ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), layer = grads, ctx.layer
        if layer.rectified:
            grad = _through_relu(grad, ctx.saved_tensors[0], layer.exclusive)
        return _backward_data(grad, layer.weight, layer.kernels, layer, ctx.size), None


class _Trainable(torch.autograd.Function):
    """Forward, backward-data, and torch's gradients of the parameters; all of it differentiable again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Convolution) -> Tensor:
        ctx.layer, ctx.biased = layer, bias is not None
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,), layer, (x, weight) = grads, ctx.layer, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        data = _backward_data(grad, weight, None, layer, tuple(x.shape[2:])) if of_x else None
        if not of_weight and not of_bias:
            return data, None, None, None
        _, by_weight, by_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            [layer.out_channels] if ctx.biased else None,
            layer.stride,
            layer.padding,
            [1, 1],
            False,
            [0, 0],
            1,
            [False, of_weight, of_bias],
        )
        return data, by_weight, by_bias, None


class FoldedBatchNorm(nn.Module):
    """BatchNorm in eval mode, x * scale + shift per channel; with `rectified`, also the ReLU after it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, *, rectified: bool) -> None:
        super().__init__()
        assert norm.running_mean is not None, "it has statistics"
        assert norm.running_var is not None, "it has statistics"
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale.to(norm.running_mean))
        self.register_buffer("shift", shift.to(norm.running_mean))
        self.rectified, self.exclusive = rectified, False

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        scale, shift = (part.reshape(-1, *[1] * (x.ndim - 2)) for part in (self.scale, self.shift))
        if self.rectified:
            return cast(Tensor, _FoldedBatchNormReLU.apply(x, scale, shift, self.exclusive))
        return torch.addcmul(shift, x, scale)


class _FoldedBatchNormReLU(torch.autograd.Function):
    """relu(x * scale + shift) in two passes over the memory, where torch's BatchNorm and ReLU make four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, exclusive: bool) -> Tensor:
        ctx.exclusive = exclusive
        found = torch.addcmul(shift, x, scale).relu_()
        ctx.save_for_backward(found, scale)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        found, scale = ctx.saved_tensors
        return _through_relu(grads[0], found, ctx.exclusive).mul_(scale), None, None, None
