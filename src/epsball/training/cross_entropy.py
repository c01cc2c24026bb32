"""What objectives share that train on cross-entropy: label smoothing, a model's logits, input gradients."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.checks import check_at_least, check_between, check_whole
from epsball.common.config import Config, Rule
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch
from epsball.problem.objective import IN_PLACE, prediction
from epsball.problem.outputs import two_columns
from epsball.training.training_objective import Labels, TrainingObjective

Logits = Float[Tensor, "n classes"]
Count = Annotated[int, Rule(check_whole, 1)]
NonNegative = Annotated[float, Rule(check_at_least, 0)]


class CrossEntropyTraining(Config, TrainingObjective):
    """`label_smoothing` in [0, 1) is the share of each label spread evenly over all classes, in the trained loss J.

    An attack inside the step increases the cross-entropy of the label itself, except where the objective says that one
    backward pass serves both.
    """

    label_smoothing: Annotated[float, Rule(check_between, 0, 1, "usual is 0.1", ends="[)")] = 0.0

    def losses(self, logits: Logits, y: Labels) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")

    def loss(self, logits: Logits, y: Labels) -> Float[Tensor, ""]:
        """J, the mean of `losses`."""
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)

    def backpropagate(self, model: nn.Module, x: Batch, y: Labels) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """J and the accuracy at x; the gradients of J are added to `.grad`."""
        logits = logits_of(model, x)
        loss = self.loss(logits, y)
        loss.backward()
        return loss.detach(), accuracy(logits, y)

    def need(self, ball: Ball | None) -> Ball:
        """The ball. Raises `BadInput` where there is none."""
        if ball is None:
            raise BadInput(f"`ball` must be given for {type(self).__name__}, got None; as in Linf(eps=0.3, lo=0, hi=1)")
        return ball


def logits_of(model: nn.Module, x: Batch) -> Logits:
    """Logits of at least two columns, in single precision or better also under autocast."""
    try:
        logits = two_columns(model(x))
    except RuntimeError as error:
        if "a leaf Variable that requires grad" in str(error):
            raise BadInput(IN_PLACE) from error
        raise
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def accuracy(logits: Logits, y: Labels) -> Float[Tensor, ""]:
    """The share of correct predictions."""
    return (prediction(logits.detach()) == y).mean(dtype=torch.float32)


def learnable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that need a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def input_gradient(loss: Float[Tensor, ""], leaf: Batch, *, create_graph: bool = False) -> Batch:
    """The gradient of `loss` at the leaf."""
    if not loss.requires_grad:
        return existing(None)
    return existing(torch.autograd.grad(loss, leaf, create_graph=create_graph, allow_unused=True)[0])


def existing(grad: Tensor | None) -> Tensor:
    """The gradient. Raises `BadInput` where there is none: the output does not depend on the input through torch."""
    if grad is None:
        raise BadInput(
            "`model` must be differentiable for adversarial training: its output does not depend on x through torch; "
            "look for a detach, a rounding or a numpy call in its forward"
        )
    return grad
