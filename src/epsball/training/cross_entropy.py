"""What objectives share that train on cross-entropy: its label smoothing, a model's logits, and the plain pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.problem.objective import IN_PLACE, prediction
from epsball.problem.outputs import two_columns
from epsball.training.step import TrainingObjective


@dataclass(frozen=True, kw_only=True)
class CrossEntropyTraining(TrainingObjective):
    """`label_smoothing` in [0, 1) is the share of each label spread evenly over all classes, in what is trained on.

    An attack inside the step climbs the cross-entropy of the label itself, except where the objective says that one
    backward pass serves both.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise BadInput(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}; usual is 0.1")

    def losses(self, logits: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")

    def loss(self, logits: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """The mean of `losses`."""
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)

    def need(self, ball: Ball | None) -> Ball:
        """The ball, which this objective cannot do without."""
        if ball is None:
            raise BadInput(f"`ball` must be given for {type(self).__name__}, got None; as in Linf(eps=0.3, lo=0, hi=1)")
        return ball


def logits_of(model: nn.Module, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
    """Logits of at least two columns, in single precision or better also under autocast."""
    try:
        logits = two_columns(model(x))
    except RuntimeError as error:
        if "a leaf Variable that requires grad" in str(error):
            raise BadInput(IN_PLACE) from error
        raise
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def accuracy(logits: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
    """The share of right predictions."""
    return (prediction(logits.detach()) == y).mean(dtype=torch.float32)


def input_gradient(
    height: Float[Tensor, ""], leaf: Float[Tensor, "n *shape"], *, create_graph: bool = False
) -> Float[Tensor, "n *shape"]:
    """The gradient of `height` at the leaf."""
    if not height.requires_grad:
        return reached(None)
    return reached(torch.autograd.grad(height, leaf, create_graph=create_graph, allow_unused=True)[0])


def reached(grad: Tensor | None) -> Tensor:
    """The gradient, where there is one: an input that the output does not depend on through torch has none."""
    if grad is None:
        raise BadInput(
            "`model` must be differentiable for adversarial training: its output does not depend on x through torch; "
            "look for a detach, a rounding or a numpy call in its forward"
        )
    return grad
