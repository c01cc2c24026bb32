"""How good the first-order story is: the true change of the loss beside eps times the dual norm of its gradient.

FGSM trusts the first-order term (Goodfellow, Shlens and Szegedy, ICLR 2015, section 3): at the ball's maximiser z of
the gradient g the loss J should rise by <g, z - x>, without a box eps |g|_*. `taylor_gap` measures by how much it
rises: J(z) - J(x) - <g, z - x>, example by example, radius by radius.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import flat, shown
from epsball.explain.passes import QUANTILES, kept, quantiles
from epsball.explain.record import versions
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model, Objective, check_labels
from epsball.problem.task import task_of

HALVINGS = 7
"""By default the radii are the ball's and this many halvings of it."""


@dataclass(frozen=True, eq=False)
class TaylorGap:
    """What `taylor_gap` measured: n examples, k radii, in the units of the loss.

    `eps` (k,) rising; `loss` (n,) the loss J at the examples; `first_order` (n, k) the predicted rise <g, z - x> >= 0
    and `change` (n, k) the true one, J(z) - J(x). Values that are not finite come from logits that are not.
    """

    eps: np.ndarray
    loss: np.ndarray
    first_order: np.ndarray
    change: np.ndarray
    config: dict[str, Any]

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
        small = "" if len(self.eps) < 2 else f", at {self.eps[0]:.3g} by {_said(true[0])} for {_said(predicted[0])}"
        return (
            f"At eps {self.eps[-1]:.3g} the loss rises by {_said(true[-1])} where its gradient predicts "
            f"{_said(predicted[-1])}{small} (medians over {len(self):,} examples)."
        )

    def summary(self) -> dict[str, Any]:
        """Per radius the three quantiles over the examples of every quantity, as JSON can hold them."""
        names = ("first_order", "change", "gap", "relative")
        tables = {name: self.quantiles(getattr(self, name)).T for name in names}
        radii = [
            {"eps": float(eps)} | {name: kept(table[k]) for name, table in tables.items()}
            for k, eps in enumerate(self.eps)
        ]
        found = {"sentence": self.sentence, "n": len(self), "quantiles": list(QUANTILES)}
        return found | {"radii": radii, "config": self.config}

    def to_json(self) -> str:
        """As JSON, the summary and every example's values; `from_json` gives an equal record."""
        names = ("eps", "loss", "first_order", "change")
        values = {name: kept(getattr(self, name)) for name in names}
        return json.dumps(self.summary() | {"examples": values}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TaylorGap:
        """The record that `to_json` wrote; what was not finite is NaN."""
        record = json.loads(text)
        return cls(
            **{name: np.array(value, dtype=np.float64) for name, value in record["examples"].items()},
            config=record["config"],
        )

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: true change and first order against eps, and the gap as a share of the change."""
        from epsball.explain.pictures_lines import draw_taylor

        draw_taylor(self, path)


def taylor_gap(
    model: Model,
    x: Float[Tensor, "n *shape"],
    y: object,
    ball: Ball,
    *,
    eps: Sequence[float] | None = None,
    loss: Loss = cross_entropy,
    batch_size: int = 128,
    on_progress: Callable[[int], None] | None = None,
) -> TaylorGap:
    """Measure how far the loss at the first-order worst point is from its first-order prediction.

    `model` is any torch module or callable x -> logits, `x` (n, *shape), `y` (n,) its labels. `ball` gives norm, box
    and mask; `eps` the radii > 0, in the units of x (default: the ball's, which is then a number, and seven halvings).
    For every radius z = `ball.argmax(g, x)`, g the gradient of `loss` at x, and <g, z - x> = `ball.max_gain(g, x)`. One
    gradient an example, then forwards only, `batch_size` examples at a time. Losses and gains are subtracted in float64;
    below a relative 1e-7 a float32 model has no figures to give: take a float64 one for the smallest radii. The model
    comes back as it was. `on_progress` is called with the count of finished examples.

    Raises `BadInput` for radii, examples or a loss that do not fit.

    The paper's linear model, at w.x = -2, with label 0: the loss is softplus(w.x), convex, so the gap is positive.

    >>> from epsball import Linf
    >>> w = torch.tensor([3.0, 2.0, -1.0, 1.0, 4.0]).double()
    >>> x = torch.tensor([[-2.0, 2.0, 1.0, -3.0, 1.0]]).double()
    >>> found = taylor_gap(lambda x: x @ w, x, torch.tensor([0]), Linf(eps=0.3))
    >>> found.first_order[0, -1].round(6), found.change[0, -1].round(6), found.gap[0, -1].round(6)
    (np.float64(0.39337), np.float64(1.41408), np.float64(1.020711))
    """
    check_whole("batch_size", batch_size, 1)
    radii = _radii(ball, eps)
    if len(x) == 0:
        raise BadInput("`x` must hold at least one example, got none; raise the limit")
    whole_task = task_of(x, y, ball)
    losses, gains, changes = [], [], []
    with Objective(model, loss, careful=True) as objective:
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            task = whole_task.rows(rows)
            point = objective(task.x, task)
            if not losses:
                check_labels(point.logits, whole_task)  # the objective has looked at the first rows only
            if point.loss.ndim != 1:
                raise BadInput(f"`loss` must give one value per example, (n,), got {tuple(point.loss.shape)}; take one")
            at_x, grad = point.loss.double(), point.grad
            gain, change = [], []
            for radius in radii:
                z = task.ball.with_eps(radius).argmax(grad, task.x)
                with torch.no_grad():
                    at_z = loss(objective.forward(z), task).double()
                gain.append(flat(grad.double() * (z.double() - task.x.double())).sum(1))
                change.append(at_z - at_x)
            losses.append(at_x)
            gains.append(torch.stack(gain, 1))
            changes.append(torch.stack(change, 1))
            if on_progress is not None:
                on_progress(int(rows[-1]) + 1)
    config = {
        "model": fingerprint.of_model(model),
        "data": fingerprint.of_tensors(whole_task.x, whole_task.y),
        "ball": fingerprint.described(ball),
        "loss": fingerprint.described(loss),
        "dtype": str(x.dtype).removeprefix("torch."),
        "forwards": objective.forwards,
        "backwards": objective.backwards,
        "seed": None,  # nothing is drawn
        "versions": versions(),
    }
    parts = [torch.cat(part).cpu().numpy() for part in (losses, gains, changes)]
    return TaylorGap(np.array(radii), *parts, config=config)


def _said(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _radii(ball: Ball, eps: Sequence[float] | None) -> list[float]:
    if eps is None:
        if isinstance(ball.eps, Tensor) and ball.eps.numel() != 1:
            raise BadInput(f"`eps` must be given where the ball's is {shown(ball.eps)}; write eps=(0.01, 0.1)")
        eps = [float(ball.eps) * 0.5**k for k in range(HALVINGS + 1)]
    radii = sorted({float(radius) for radius in eps})
    if not radii or not all(0 < radius < math.inf for radius in radii):
        raise BadInput(f"`eps` must be radii > 0 and finite, got {radii}; write for example (0.01, 0.1)")
    return radii
