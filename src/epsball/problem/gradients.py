"""The gradient of a loss at the input, as attacks follow it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.common.errors import BadInput

NOT_FINITE = (
    "the gradient is not finite everywhere: it is taken as zero there. Check for a square root or a logarithm at zero, "
    "or an overflow, in `model`"
)


def finite_gradient(grad: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """The gradient with zero in the place of each entry that is not finite (nan, inf, -inf), or itself.

    >>> finite_gradient(torch.tensor([[torch.nan, torch.inf, -torch.inf, 2.0]]))
    tensor([[0., 0., 0., 2.]])
    """
    if grad.is_cpu and math.isfinite(grad.sum().item()):
        return grad
    return grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # on a GPU this is cheaper than to wait for a sum


def loss_gradients(
    loss: Float[Tensor, "n *k"], leaf: Float[Tensor, "n *shape"], ones: Float[Tensor, " n"]
) -> Float[Tensor, "n ..."]:
    """The gradient of each row's loss at the leaf, (n, *shape); (n, k, *shape) for a loss of k columns.

    `ones` (n,) are what the rows are summed with. Raises `BadInput` where the loss does not depend on the leaf.
    """
    columns = (loss,) if loss.ndim == 1 else loss.unbind(1)
    grads = []
    for column in columns:
        more = column is not columns[-1]
        found = (
            torch.autograd.grad(column, leaf, ones, retain_graph=more, allow_unused=True)
            if loss.requires_grad
            else (None,)
        )
        if found[0] is None:
            raise BadInput(
                "`model` must be differentiable for this attack: its output does not depend on x through torch; "
                "take an attack that needs no gradient, such as square"
            )
        grads.append(found[0])
    return grads[0] if loss.ndim == 1 else torch.stack(grads, 1)
