"""DDN, decoupled direction and norm: the direction follows the gradient, the norm shrinks or grows by turns.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger, "Decoupling direction and norm for efficient gradient-based L2
adversarial attacks and defenses" (CVPR 2019, arXiv:1811.09600), algorithm 1: every point is put onto the sphere of the
row's radius, which is multiplied by 1 - gamma where the point is adversarial and by 1 + gamma where it is not. The rest
is FMN's, a later paper of the same idea (`fmn.py`). Departures from the paper:

- The first radius is the distance to the linearised boundary, not 1, which is meant for images in [0, 1]; steps are in
  units of the radius for the same reason.
- The loss is a soft margin, whose gradient does not fade as the cross-entropy's does.
- What FMN has beyond its own paper, such as the last step, DDN has too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.fmn import FMN
from epsball.balls.ball import Ball
from epsball.common.shapes import column


@dataclass(frozen=True, kw_only=True)
class DDN(FMN):
    """Climbs a soft margin on spheres whose radius shrinks and grows around the distance to the boundary; L2 only.

    `steps` steps, one backward pass each. `step_size` > 0 is the first step in units of the radius, `gamma` in (0, 1)
    the share by which the radius first changes; both fall on a half cosine, to a hundredth and to .001.
    """

    takes = ("euclidean",)

    gamma: float = 0.1

    def next_iterate(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], progress: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        delta = super().next_iterate(ball, grad, z, x, size, progress) - x
        length = ball.norm(delta).clamp_min(torch.finfo(x.dtype).tiny)
        stretch = (torch.as_tensor(ball.eps).to(length) / length).clamp(1, 1 / torch.finfo(x.dtype).eps)
        return ball.project(x + delta * column(stretch, x.ndim), x)
