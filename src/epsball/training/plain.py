"""Training on the examples as they are: the mean cross-entropy of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.ball import Ball
from epsball.errors import BadInput
from epsball.noise import Noise
from epsball.objective import prediction
from epsball.outputs import two_columns


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Mean cross-entropy; `label_smoothing` in [0, 1) is the share of each label spread evenly over all classes.

    The ball is not looked at. Logs "loss" and "accuracy", the share of right predictions.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise BadInput(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}; usual is 0.1")

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, noise: Noise
    ) -> dict[str, Tensor | float]:
        logits = two_columns(model(x))
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        loss.backward()
        return {"loss": loss.detach(), "accuracy": (prediction(logits) == y).float().mean()}
