"""Weights averaged over the steps of a training: they are often more robust than the last ones.

EMA: an exponential moving average, with a decay that begins small, min(decay, (1 + t) / (10 + t)) at step t. SWA: the
plain mean over the last quarter (Izmailov et al. 2018, arXiv:1803.05407).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from epsball.training.settings import Average

TAIL = 0.75
"""The share of the training after which SWA begins."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, also buffers that a state dict leaves out; the model's own memory."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def put(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into a model's own tensors."""
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(values[name])


class Averaged:
    """The average of a model's weights and statistics; counters are those of the last step."""

    def __init__(self, kind: Average, decay: float) -> None:
        self.kind, self.decay = kind, decay
        self.values: dict[str, Tensor] = {}
        self.count = 0

    def update(self, model: nn.Module, over: float) -> None:
        """Take in the weights after a step; `over` is the share of the training that is over."""
        if self.kind == "none" or (self.kind == "swa" and over < TAIL):
            return
        weight = 1 / (self.count + 1)
        if self.kind == "ema" and self.count:
            weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, value in tensors_of(model).items():
            mean = self.values.get(name)
            if mean is None:
                self.values[name] = value.detach().clone()
            elif mean.is_floating_point():
                mean.lerp_(value.detach(), weight)
            else:
                mean.copy_(value)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, for as long as this is open; as it is before there are any."""
        if not self.values:
            yield
            return
        own = {name: value.detach().clone() for name, value in tensors_of(model).items()}
        put(model, self.values)
        try:
            yield
        finally:
            put(model, own)
