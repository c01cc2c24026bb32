"""The attack inside a step of training: input gradients only, and the model given back as it was.

Parameters need no gradient meanwhile, so that none is computed for them; running statistics end as they began. In
"train" mode BatchNorm normalises by the attacked batch and dropout draws, as in the pass that is trained on; in "eval"
mode the running statistics are used, and nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, get_args

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.problem.objective import frozen
from epsball.training.cross_entropy import input_gradient, logits_of
from epsball.training.statistics import kept

Mode = Literal["train", "eval"]
MODES: tuple[Mode, ...] = get_args(Mode)

Height = Callable[[Tensor], Tensor]
"""Logits (n, classes) -> what is to be raised, summed over the rows."""


@contextmanager
def climbing(model: nn.Module, mode: Mode) -> Iterator[None]:
    """The model as an attack finds it; on leaving, modes, needs of gradients and buffers are what they were."""
    with frozen(model, evaluating=mode == "eval"), kept(model) if mode == "train" else nullcontext():
        yield


def summed_cross_entropy(y: Int64[Tensor, " n"]) -> Height:
    """The height that most attacks climb."""
    return lambda logits: F.cross_entropy(logits, y, reduction="sum")


def gradient(model: nn.Module, z: Float[Tensor, "n *shape"], height: Height) -> Float[Tensor, "n *shape"]:
    """The gradient of the height at z; one pass."""
    leaf = z.detach().requires_grad_()
    return input_gradient(height(logits_of(model, leaf)), leaf)


def ascend(
    model: nn.Module,
    z: Float[Tensor, "n *shape"],
    x: Float[Tensor, "n *shape"],
    ball: Ball,
    height: Height,
    *,
    steps: int,
    step_size: float,
) -> Float[Tensor, "n *shape"]:
    """The point of the ball around x that `steps` steps of length `step_size` * eps lead to from z; a pass each."""
    for _ in range(steps):
        z = ball.step(gradient(model, z, height), z, x, step_size)
    return z
