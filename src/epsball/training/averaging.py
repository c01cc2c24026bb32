"""Weights averaged over the steps of a training: they are often more robust than the last ones.

EMA: an exponential moving average whose decay begins small, min(decay, (1 + t) / (10 + t)) at step t. SWA: the plain
mean over the last quarter (Izmailov et al. 2018, arXiv:1803.05407). torch's AveragedModel is not used: it copies the
module, which networks with `torch.nn.utils.weight_norm` refuse, and would average BatchNorm's counters too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from epsball.training.config import Average

SWA_START = 0.75
"""The fraction of the training after which SWA begins."""


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, not copied, also buffers that a state dict leaves out."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def load_tensors(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into a model's own tensors."""
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            tensor.copy_(values[name])


class WeightAverage:
    """The average `values` of a model's weights and running statistics over `count` steps.

    Buffers of integers, BatchNorm's counters, are those of the last step.
    """

    def __init__(self, kind: Average, decay: float) -> None:
        self.kind, self.decay = kind, decay
        self.values: dict[str, Tensor] = {}
        self.count = 0

    def update(self, model: nn.Module, fraction: float) -> None:
        """Take in the weights after a step; `fraction` of the training is done."""
        if self.kind == "none" or (self.kind == "swa" and fraction < SWA_START):
            return
        weight = 1 / (self.count + 1)
        if self.kind == "ema" and self.count:
            weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, value in model_tensors(model).items():
            average = self.values.get(name)
            if average is None:
                self.values[name] = value.detach().clone()
            elif average.is_floating_point():
                average.lerp_(value.detach(), weight)
            else:
                average.copy_(value)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, for as long as this is open."""
        own = {name: value.detach().clone() for name, value in model_tensors(model).items()}
        load_tensors(model, self.values)
        try:
            yield
        finally:
            load_tensors(model, own)
