"""Training under Gaussian noise, for randomised smoothing: the base classifier has to know its noise.

Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing" (ICML 2019), section 3.3: the
mean cross-entropy at x + noise is an upper bound of minus the log-probability of the smoothed classifier.
"""

from __future__ import annotations

from typing import Annotated

from torch import nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_positive
from epsball.common.config import Rule
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import CrossEntropyTraining
from epsball.training.training_objective import Labels, Logged, TrainingStep


class Gaussian(CrossEntropyTraining):
    """J at x + noise, a fresh N(0, sigma^2) in every coordinate; `sigma` is in the units of x.

    It is the `sigma` of the `Smoothing` that is to certify the network. One forward and one backward pass a step. The
    noise is not clipped to the box, and the ball is not used. Logs "loss" and "accuracy", both under noise.
    """

    accelerates = False
    cost = "1"
    source = "Cohen et al. 2019, section 3.3"

    sigma: Annotated[float, Rule(check_positive, "usual is 0.25 for images in [0, 1]")] = 0.25

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        noise = step.noise.normal(x.shape[1:], step=step.replay, dtype=x.dtype)
        loss, accuracy = self.backpropagate(model, x + self.sigma * noise, y)
        return {"loss": loss, "accuracy": accuracy}
