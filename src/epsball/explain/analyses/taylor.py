"""How good the first-order approximation is: the true change of the loss beside eps times its gradient's dual norm.

FGSM trusts the first-order term (Goodfellow, Shlens and Szegedy, ICLR 2015, section 3): at the ball's maximiser z of
the gradient g the loss J should rise by <g, z - x>, without a box eps |g|_*. `taylor_gap` measures by how much it
rises: J(z) - J(x) - <g, z - x>, example by example, radius by radius.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.common.shapes import flat, shown
from epsball.explain.config import Progress, TaylorConfig, configured, silent
from epsball.explain.finding import Finding, nested, versions
from epsball.explain.inputs import radii_of
from epsball.explain.measure import QUANTILES, batches, quantiles
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model, Objective
from epsball.problem.task import task_of

HALVINGS = 7
"""By default the radii are the ball's and this many halvings of it."""
PER_EXAMPLE = ("eps", "loss", "first_order", "change")


@dataclass(frozen=True, eq=False, kw_only=True)
class TaylorGap(Finding):
    """What `taylor_gap` measured: n examples, k radii, in the units of the loss.

    `eps` (k,) rising; `loss` (n,) the loss J at the examples; `first_order` (n, k) the predicted rise <g, z - x> >= 0
    and `change` (n, k) the true one, J(z) - J(x). Values that are not finite come from logits that are not; JSON holds
    None for them, which is read as NaN.
    """

    details: ClassVar = ("examples",)

    eps: np.ndarray
    loss: np.ndarray
    first_order: np.ndarray
    change: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def gap(self) -> np.ndarray:
        """(n, k): what the first order leaves out, `change` - `first_order`; > 0 where the loss rises faster."""
        return self.change - self.first_order

    @property
    def relative(self) -> np.ndarray:
        """(n, k): gap / |change|, 0 where the first order is exact, at most 1; NaN where the loss does not change."""
        size = np.abs(self.change)
        return np.divide(self.gap, size, out=np.full_like(size, np.nan), where=size > 0)

    def quantiles(self, values: np.ndarray) -> np.ndarray:
        """(3, k): the 5 %, 50 % and 95 % quantiles over the examples of an (n, k) array, without what is not finite."""
        return quantiles(values)

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        predicted, true = (self.quantiles(part)[1] for part in (self.first_order, self.change))
        small = "" if len(self.eps) < 2 else f", at {self.eps[0]:.3g} by {_text(true[0])} for {_text(predicted[0])}"
        return (
            f"At eps {self.eps[-1]:.3g} the loss rises by {_text(true[-1])} where its gradient predicts "
            f"{_text(predicted[-1])}{small} (medians over {len(self):,} examples)."
        )

    def to_record(self) -> dict[str, Any]:
        """Per radius the three quantiles over the examples of every quantity, and the values of each example."""
        names = ("first_order", "change", "gap", "relative")
        tables = {name: self.quantiles(getattr(self, name)).T for name in names}
        radii = [{"eps": eps} | {name: table[k] for name, table in tables.items()} for k, eps in enumerate(self.eps)]
        found = {"sentence": self.sentence, "n": len(self), "quantiles": QUANTILES, "radii": radii}
        examples = {name: getattr(self, name) for name in PER_EXAMPLE}
        return nested(found | {"config": self.config, "examples": examples})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The record that `to_record` gave."""
        values = {name: np.array(record["examples"][name], dtype=np.float64) for name in PER_EXAMPLE}
        return cls(**values, config=nested(record["config"]))


@configured(TaylorConfig)
def taylor_gap(
    model: Model,
    x: Float[Tensor, "n *shape"],
    y: Tensor,
    ball: Ball,
    *,
    config: TaylorConfig,
    loss: Loss = cross_entropy,
    on_progress: Progress = silent,
) -> TaylorGap:
    """Measure how far the loss at the first-order worst point is from its first-order prediction.

    `model` is any torch module or callable x -> logits, `x` (n, *shape), `y` (n,) its labels. `ball` gives norm, box
    and mask; `eps` the radii > 0, in the units of x (default: the ball's, which is then a number, and seven halvings).
    For every radius z = `ball.argmax(g, x)`, g the gradient of `loss` at x, and <g, z - x> = `ball.max_gain(g, x)`. One
    gradient an example, then forward passes only, `batch_size` examples at a time. Losses and gains are subtracted in
    float64; below a relative 1e-7 a float32 model has no figures to give: take a float64 one for the smallest radii.
    The model comes back as it was. `on_progress` is called with the count of finished examples, that of all, and "".

    Raises `BadInput` for radii, examples or a loss that do not fit.

    The paper's linear model, at w.x = -2, with label 0: the loss is softplus(w.x), convex, so the gap is positive.

    >>> from epsball import Linf
    >>> w = torch.tensor([3.0, 2.0, -1.0, 1.0, 4.0]).double()
    >>> x = torch.tensor([[-2.0, 2.0, 1.0, -3.0, 1.0]]).double()
    >>> found = taylor_gap(lambda x: x @ w, x, torch.tensor([0]), Linf(eps=0.3))
    >>> found.first_order[0, -1].round(6), found.change[0, -1].round(6), found.gap[0, -1].round(6)
    (np.float64(0.39337), np.float64(1.41408), np.float64(1.020711))
    """
    if len(x) == 0:
        raise BadInput("`x` must hold at least one example, got none; raise the limit")
    examples, radii = task_of(x, y, ball), _radii(ball, config)
    found: dict[str, list[Tensor]] = {"loss": [], "first_order": [], "change": []}
    done = 0
    with Objective(model, loss) as objective:
        for task, point in batches(objective, examples, config.batch_size):
            if point.loss.ndim != 1:
                raise BadInput(f"`loss` must give one value per example, (n,), got {tuple(point.loss.shape)}; take one")
            grad, gain, change = point.grad.double(), [], []
            for radius in radii:
                z = task.ball.with_eps(radius).argmax(point.grad, task.x)
                with torch.no_grad():
                    change.append(loss(objective.forward(z), task).double() - point.loss.double())
                gain.append(flat(grad * (z.double() - task.x.double())).sum(1))
            found["loss"].append(point.loss.double())
            found["first_order"].append(torch.stack(gain, 1))
            found["change"].append(torch.stack(change, 1))
            done += len(task.x)
            on_progress(done, len(x), "")
    made = config.to_record() | {
        "model": fingerprint.of_model(model),
        "data": fingerprint.of_tensors(examples.x, examples.y),
        "ball": fingerprint.described(ball),
        "loss": fingerprint.described(loss),
        "dtype": str(x.dtype).removeprefix("torch."),
        "forwards": objective.forwards,
        "backwards": objective.backwards,
        "seed": None,  # nothing is random
        "versions": versions(),
    }
    values = {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}
    return TaylorGap(eps=np.array(radii), **values, config=nested(made))


def _radii(ball: Ball, config: TaylorConfig) -> list[float]:
    if config.eps is not None:
        return radii_of(config.eps)
    if isinstance(ball.eps, Tensor) and ball.eps.numel() != 1:
        raise BadInput(f"`eps` must be given where the ball's is {shown(ball.eps)}; write eps=(0.01, 0.1)")
    return radii_of([float(ball.eps) * 0.5**k for k in range(HALVINGS + 1)])


def _text(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"
