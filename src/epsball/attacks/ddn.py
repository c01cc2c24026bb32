"""DDN, decoupled direction and norm: the direction follows the gradient, the norm shrinks or grows by turns.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger, "Decoupling direction and norm for efficient gradient-based L2
adversarial attacks and defenses" (CVPR 2019), algorithm 1: every point is put onto the sphere of the row's radius.
Where this departs from the paper: the first radius is the distance to the linearised border, not 1, which is meant for
images in [0, 1], and so are the steps in units of the radius; what is climbed is a soft margin, whose gradient does not
fade as the cross-entropy's does; and what FMN has more than its paper, this has too.
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
    """Climbs a soft margin on spheres whose radius follows the border; L2 only.

    `steps` passes, one backward each. `step_size` > 0 is the first step in units of the radius, `gamma` in (0, 1) the
    share by which the radius first changes; both fall on a half cosine, to a hundredth and to .001.
    """

    takes = ("euclidean",)

    gamma: float = 0.1

    def ahead(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], late: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        inside = super().ahead(ball, grad, z, x, size, late)
        delta = inside - x
        length = ball.norm(delta).clamp_min(torch.finfo(x.dtype).tiny)
        stretch = (torch.as_tensor(ball.eps).to(length) / length).clamp(1, 1 / torch.finfo(x.dtype).eps)
        return ball.project(x + delta * column(stretch, x.ndim), x)
