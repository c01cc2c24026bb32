"""What FGSM training is to first order: J plus eps times the dual norm of its input gradient, by double backward.

J(x + delta) = J(x) + <grad J, delta> + ...; the greatest inner product in the ball is eps times the dual norm, in the
max norm eps |grad J|_1 (Goodfellow, Shlens and Szegedy, ICLR 2015, sections 3 and 5; Simon-Gabriel et al.,
"First-order adversarial vulnerability of neural networks and input dimension", ICML 2019, proposition 3).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch, PerExample, column, flat
from epsball.training.cross_entropy import (
    CrossEntropyTraining,
    NonNegative,
    accuracy,
    input_gradient,
    learnable,
    logits_of,
)
from epsball.training.training_objective import Labels, Logged, TrainingStep


class GradientPenalty(CrossEntropyTraining):
    """The mean of J + weight eps |grad_x J|_dual; with `box` the penalty is the gain that the box allows.

    With `box` it is <grad J, argmax - x>: exactly the first-order term of FGSM's gain. In L0, which only counts, the
    dual norm times eps is an upper bound of it. One forward and one backward pass a step that are differentiated again
    and cost about three pairs, in train mode; there is no attack. J is smoothed in the penalty too.

    Logs "loss", "clean_loss", "penalty" (before its weight) and "accuracy".
    """

    accelerates = False
    cost = "1 that is differentiated again (about 3); no attack"
    source = "Simon-Gabriel et al. 2019, proposition 3"

    weight: NonNegative = 1.0
    box: bool = False

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball, leaf = self.need(ball), x.detach().requires_grad_()
        logits = logits_of(model, leaf)
        losses = self.losses(logits, y)
        grad = input_gradient(losses.sum(), leaf, create_graph=True)
        penalty = (gain_in_box if self.box else dual_norm_gain)(ball, grad, x).mean()
        clean_loss = losses.mean()
        loss = clean_loss + self.weight * penalty
        loss.backward(inputs=learnable(model))
        logged = {"loss": loss.detach(), "clean_loss": clean_loss.detach(), "penalty": penalty.detach()}
        return logged | {"accuracy": accuracy(logits, y)}


def dual_norm_gain(ball: Ball, grad: Batch, x: Batch) -> PerExample:
    """eps times the dual norm of each row, over the features that the mask lets change."""
    if ball.mask is not None:
        grad = grad * ball.mask
    eps = ball.eps
    if isinstance(eps, Tensor):
        eps = eps if eps.ndim == x.ndim > 1 else column(eps, x.ndim)
    if not (bool(eps.isfinite().all()) if isinstance(eps, Tensor) else math.isfinite(eps)):
        raise BadInput("`eps` must be finite for a gradient penalty without the box, got inf; set box=True")
    return ball.dual(grad * eps)  # homogeneous, so it holds for one radius per feature as well


def gain_in_box(ball: Ball, grad: Batch, x: Batch) -> PerExample:
    """The ball's `max_gain`; small changes of the gradient do not move its maximiser, so that is a constant here."""
    return flat(grad * (ball.argmax(grad.detach(), x) - x)).sum(1)
