"""Networks that are easily changed by whoever looks at them, and a record of all that may be changed."""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import nets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SHAPE, CLASSES = nets.CONV_SHAPE, 3


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank update that `train` merges and takes out, as in microsoft/LoRA's layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False
        self.weight.requires_grad = False

    def train(self, mode: bool = True) -> LoRALinear:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.down.T @ self.up.T


class FrozenStatistics(nn.Sequential):
    """Keeps its BatchNorm in eval mode whatever it is told."""

    def train(self, mode: bool = True) -> FrozenStatistics:
        super().train(mode)
        for part in self:
            if isinstance(part, nn.BatchNorm2d):
                part.training = False
        return self


class WithAverage(nn.Module):
    """Carries an average of its weights, which train mode updates, and counts its calls in a buffer in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = body()
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.training:
            with torch.no_grad():
                for mean, part in zip(self.average.parameters(), self.net.parameters(), strict=True):
                    mean.lerp_(part, 0.1)
        return self.net(x)


def body(*extra: nn.Module, head: nn.Module | None = None) -> nn.Sequential:
    """A small convolutional network on `SHAPE`; `extra` goes after the first layer."""
    end = nn.Linear(4, CLASSES) if head is None else head
    return nn.Sequential(nn.Conv2d(SHAPE[0], 4, 3), *extra, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), end)


def noisy() -> nn.Module:
    """Mixed modes, a frozen parameter, and gradients from before."""
    net = body(nn.BatchNorm2d(4), nn.Dropout(0.3))
    net[1].eval()
    net[0].bias.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    return net


def shared() -> nn.Module:
    """One convolution in two places, and one parameter of two modules."""
    layer, head = nn.Conv2d(4, 4, 1), nn.Linear(4, CLASSES)
    net = body(layer, nn.ReLU(), layer, head=head)
    layer.tied = nn.Module()
    layer.tied.weight = head.weight
    return net


def hooked() -> nn.Module:
    net = body()
    net.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    net[0].register_forward_hook(lambda module, inputs, output: output + 1)
    net[1].register_full_backward_hook(lambda module, before, after: None)
    net[0].weight.register_hook(lambda grad: grad)
    return net


def flattened() -> nn.Module:
    """All parameters are parts of one memory."""
    net = body()
    memory = torch.cat([part.detach().reshape(-1) for part in net.parameters()])
    start = 0
    for part in net.parameters():
        part.data = memory[start : start + part.numel()].view(part.shape)
        start += part.numel()
    return net


AWKWARD: dict[str, Callable[[], nn.Module]] = {
    "lora": lambda: body(head=LoRALinear(4, CLASSES)),
    "lora, merged": lambda: body(head=LoRALinear(4, CLASSES)).eval(),
    "frozen statistics": lambda: FrozenStatistics(*body(nn.BatchNorm2d(4))).train(),
    "average": WithAverage,
    "noisy": noisy,
    "shared": shared,
    "hooked": hooked,
    "flattened": flattened,
    "weight norm": lambda: body(head=weight_norm(nn.Linear(4, CLASSES))),
}


def made(name: str) -> nn.Module:
    """One of them, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AWKWARD[name]()


def state_of(model: nn.Module, *, values: bool = True) -> dict[str, Any]:
    """All of a model that others may change: what is identical, laid out, flagged and hooked, and the values."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[name, "module"] = id(module), module.training, sorted(vars(module)), getattr(module, "merged", None)
        state[name, "hooks"] = [
            list(getattr(module, kind).items())
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        ]
        for kind in ("_parameters", "_buffers"):
            for key, part in getattr(module, kind).items():
                if part is not None:
                    grad = None if part.grad is None else (id(part.grad), part.grad.tolist())
                    memory = part.data_ptr(), part.stride(), part.dtype
                    state[name, key] = id(part), part.requires_grad, memory, grad, list(part._backward_hooks or ())
                    if values:
                        state[name, key, "values"] = part.tolist()
    if not values:
        return {key: one[:3] if key[1] == "module" else one for key, one in state.items()}
    return state


def world() -> dict[str, Any]:
    """What else of the process a library must leave alone."""
    return {
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }
