"""Training on the examples as they are: the mean cross-entropy of the batch."""

from __future__ import annotations

from torch import nn

from epsball.balls.ball import Ball
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import CrossEntropyTraining
from epsball.training.training_objective import Labels, Logged, TrainingStep


class Plain(CrossEntropyTraining):
    """Mean cross-entropy; `label_smoothing` in [0, 1) is the share of each label spread evenly over all classes.

    One forward and one backward pass a step. The ball is not used. Logs "loss" and "accuracy".
    """

    accelerates = False
    cost = "1"

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        loss, accuracy = self.backpropagate(model, x, y)
        return {"loss": loss, "accuracy": accuracy}
