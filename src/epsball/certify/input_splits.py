"""Branch and bound over the box of inputs: complete, and quick where a network has few inputs.

A box whose bound is too loose is halved along the input that moves the logits most across it, by the gradient at its
centre ("smear": Kearfott 1996; for networks Wang et al., "Formal security analysis of neural networks using symbolic
intervals", USENIX Security 2018, section 4.3). Boxes that are open wait in a stack, so that few are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from epsball.balls.linf import Linf
from epsball.certify.certifier import Certifier
from epsball.common.shapes import Batch, flat
from epsball.problem.task import task_of

BOXES = 256
"""Boxes that are bounded together."""

Look = Callable[[Batch], None]
"""Shown the centres of open boxes; it may raise to end the search."""


def proved_by_splits(
    certifier: Certifier, network: nn.Module, box: tuple[Batch, Batch], deadline: float, look: Look
) -> bool:
    """Whether it is proved that `network` predicts class 0 everywhere in a box, its ends (1, *shape) each.

    It is not where the time ends the search, or a box that cannot be halved any more.
    """
    lower, upper = box
    while len(lower):
        if time.monotonic() > deadline:
            return False
        low, high, lower, upper = lower[-BOXES:], upper[-BOXES:], lower[:-BOXES], upper[:-BOXES]
        centre = low + (high - low) / 2
        look(centre)
        ball = Linf(eps=torch.inf, lo=low, hi=high)
        task = task_of(centre, torch.zeros(len(centre), dtype=torch.long), ball)
        proofs = certifier.bounds(task, ("ibp", "crown"), deadline)
        left = torch.from_numpy(~proofs.verified)
        if not bool(left.any()):
            continue
        low, high, centre = low[left], high[left], centre[left]
        side = _moves_most(network, centre, high - low)
        middle_up, middle_down = torch.where(side, centre, high), torch.where(side, centre, low)
        if bool(((low == middle_down) & (high == middle_up)).flatten(1).all(1).any()):
            return False
        lower = torch.cat([lower, low, middle_down])
        upper = torch.cat([upper, middle_up, high])
    return True


def _moves_most(network: nn.Module, centre: Batch, width: Batch) -> Bool[Tensor, "n *shape"]:
    """For each box the one input whose width times slope is greatest, of those that can be halved."""
    with torch.enable_grad():
        leaf = centre.detach().requires_grad_()
        (grad,) = torch.autograd.grad(network(leaf)[:, 1:].amax(1).sum(), leaf)
    movable: Float[Tensor, "n d"] = flat((centre > centre - width / 2) & (centre < centre + width / 2) & (width > 0))
    score = torch.where(movable, flat(grad.abs() * width + 1e-6 * width), -1.0)
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, score.argmax(1)[:, None], True).reshape(centre.shape)
