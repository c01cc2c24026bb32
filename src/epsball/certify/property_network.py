"""A network and what is unsafe about its outputs, as one classifier: class 0 is safe, class j the j-th conjunction.

An output y is in a conjunction where the least of bound - weight @ y over its rows is not negative. These least values
are the logits of classes 1, 2, ..., beside a logit 0 that is constantly 0. So class 0 is predicted by a margin
everywhere in a box if and only if no input there has an unsafe output, and whatever attacks or certifies classifiers
answers properties, too. A minimum of two numbers is a sum with a ReLU, which bounds know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.certify.vnnlib import Conjunction


class PropertyNetwork(nn.Module):
    """`model` (n, *shape) -> outputs (n, k), as (n, *shape) -> (n, 1 + conjunctions).

    Bounds that `dtype` cannot hold are rounded up, so that what is proved of this network is proved of the property.
    `is_exact` says whether it holds all weights.
    """

    weight: Tensor
    bound: Tensor

    def __init__(self, model: nn.Module, unsafe: Sequence[Conjunction], dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        outputs = unsafe[0].weight.shape[1]
        self.classes = 1 + len(unsafe)
        self.rows = 1 << (max(1, *(len(one.bound) for one in unsafe)) - 1).bit_length()
        weight, bound = np.zeros((self.rows, self.classes, outputs)), np.zeros((self.rows, self.classes))
        for j, one in enumerate(unsafe, 1):
            count = len(one.bound)
            if count:  # rows are repeated until there is a power of two of them
                again = np.arange(self.rows) % count
                weight[:, j], bound[:, j] = one.weight[again], one.bound[again]
            else:
                bound[:, j] = 1.0
        exact = torch.from_numpy(weight).flatten(0, 1)
        self.register_buffer("weight", -exact.to(dtype))
        self.register_buffer("bound", _rounded_up(torch.from_numpy(bound).flatten(), dtype))
        self.is_exact = bool((self.weight.double() == -exact).all())
        self.eval()

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        y = self.model(x)
        left = F.linear(y.reshape(len(x), -1), self.weight, self.bound)
        rows = self.rows
        while rows > 1:
            rows //= 2
            half = rows * self.classes
            left = torch.minimum(left[:, :half], left[:, half:])
        return left


def _rounded_up(values: Float[Tensor, " r"], dtype: torch.dtype) -> Float[Tensor, " r"]:
    near = values.to(dtype)
    return torch.where(near.double() < values, torch.nextafter(near, torch.full_like(near, torch.inf)), near)
