"""A two-class head of its own for each row, in place of the last layer of a network.

A network is features and a linear head. The binarization test replaces the head by one of two classes per example; a
pool holds rows of many examples, and each row gets the head that belongs to its id.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.common.undo import Undo
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model, Needs, Objective
from epsball.problem.outputs import two_columns
from epsball.problem.task import Task


def last_linear(model: Model, x: Float[Tensor, "n *shape"]) -> nn.Linear | None:
    """The linear layer whose output is what the model returns, None where there is none.

    It is the last one that a forward pass at `x` calls. Where the model transforms its output, the features before the
    layer would leave out a part of the model, and the logits are the features.
    """
    if not isinstance(model, nn.Module):
        return None
    last: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def remember(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        last[:] = [(module, inputs[0], output.detach().clone())]

    with Undo() as stack, torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(remember).remove)
        output = model(x)
    if not last or not isinstance(output, Tensor):
        return None
    layer, features, returned = last[0]
    same = len(features) == len(returned) == len(x) and torch.equal(returned.reshape(-1), output.reshape(-1))
    return layer if same else None


class Featured(Objective):
    """The model without its head: `forward(z)` gives the features (n, d), the input of `layer`, or else the logits.

    To be used in a `with` statement, as an Objective; on leaving, the hook on the layer is removed.
    """

    def __init__(
        self, model: Model, layer: nn.Linear | None, loss: Loss = cross_entropy, *, needs: Needs = "grad", eot: int = 1
    ) -> None:
        super().__init__(model, loss, needs=needs, eot=eot)
        self.layer = layer
        self._inputs: Tensor | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        if self.layer is not None:
            self._stack.callback(self.layer.register_forward_hook(self._remember).remove)
        return self

    def _remember(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._inputs = inputs[0]

    def features(self, z: Tensor, task: Task | None) -> Float[Tensor, "n d"]:
        """The features at z, with their graph where gradients are recorded; the model call is not counted."""
        self._inputs = None  # a call that ran out of memory may have left some
        output = super()._run(z, task)
        if self.layer is None:
            return output
        features, self._inputs = self._inputs, None
        if features is None or len(features) != len(z):
            raise BadInput("`model` must call the same last layer on every pass, got one without it; fix its branches")
        return features.flatten(1)

    def _run(self, z: Tensor, task: Task | None) -> Tensor:
        return self.features(z, task)


@dataclass(frozen=True, eq=False)
class Heads:
    """One linear score per example: <weight, features - origin> + bias, above 0 for class 1.

    `ids` (m,) ascending; `weight`, `origin` (m, d), `bias` (m,); `edge` (m, *shape) the points that are class 1.
    """

    ids: Int64[Tensor, " m"]
    weight: Float[Tensor, "m d"]
    origin: Float[Tensor, "m d"]
    bias: Float[Tensor, " m"]
    edge: Float[Tensor, "m *shape"]

    def rows(self, index: Tensor) -> Heads:
        """Some of the heads."""
        return Heads(*(getattr(self, field.name)[index] for field in fields(self)))

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """The two columns of one head per row."""
        score = (features.to(self.weight.dtype) - self.origin).mul(self.weight).sum(1) + self.bias
        return two_columns(score)


class Headed(Featured):
    """The model with the head of each row in place of its own; a row's head is found by the id of its noise."""

    def __init__(
        self,
        model: Model,
        layer: nn.Linear | None,
        heads: Heads,
        loss: Loss = cross_entropy,
        *,
        needs: Needs = "grad",
        eot: int = 1,
    ) -> None:
        super().__init__(model, layer, loss, needs=needs, eot=eot)
        self.heads = heads
        self._pool: tuple[Task, Heads] | None = None

    def _run(self, z: Tensor, task: Task | None) -> Tensor:
        assert task is not None, "a head belongs to a row"
        if self._pool is None or self._pool[0] is not task:  # a pool keeps its task for many model calls
            self._pool = task, self.heads.rows(torch.searchsorted(self.heads.ids, task.noise.ids))
        return self._pool[1].logits(self.features(z, task))


class OneHead(nn.Module):
    """A model (n, *shape) -> (n, 2) for a user's own attack: the model with one example's head on every row."""

    def __init__(self, headed: Headed, task: Task) -> None:
        super().__init__()
        self.model = headed.model  # a module is found by parameters() and modules()
        self.headed, self.task = headed, task

    def forward(self, z: Float[Tensor, "n *shape"]) -> Float[Tensor, "n 2"]:
        return self.headed._run(z, self.task.rows(torch.zeros(len(z), dtype=torch.long, device=z.device)))


@dataclass(frozen=True, eq=False)
class Backbone:
    """A model without its last linear `layer` (None: its logits are the features), and how it is evaluated.

    `eot` forward passes are averaged, `batch_size` rows share a pass.
    """

    model: Model
    layer: nn.Linear | None
    eot: int
    batch_size: int

    def featured(self) -> Featured:
        """The objective that gives the features; to be opened."""
        return Featured(self.model, self.layer, eot=self.eot)

    def headed(self, heads: Heads, loss: Loss = cross_entropy, needs: Needs = "grad") -> Headed:
        """The objective with `heads`; to be opened."""
        return Headed(self.model, self.layer, heads, loss, needs=needs, eot=self.eot)
