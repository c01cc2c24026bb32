"""Training on the examples as they are: the mean cross-entropy of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.training.cross_entropy import CrossEntropyTraining, accuracy, logits_of
from epsball.training.step import Step


@dataclass(frozen=True, kw_only=True)
class Plain(CrossEntropyTraining):
    """Mean cross-entropy; `label_smoothing` in [0, 1) is the share of each label spread evenly over all classes.

    One pass a step. The ball is not looked at. Logs "loss" and "accuracy", the share of right predictions.
    """

    accelerates = False

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, step: Step
    ) -> dict[str, Tensor | float]:
        logits = logits_of(model, x)
        loss = self.loss(logits, y)
        loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy(logits, y)}
