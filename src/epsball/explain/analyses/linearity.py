"""Is a network close to linear where adversarial examples are? Its logits along the fast gradient direction.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8 and figure 4: the logits at x + t d, d the fast gradient step at
x, are drawn against t, far beyond the ball on both sides, and are "conspicuously piecewise linear". Measured here: the
share of the logits' variance along the line that straight lines in t explain, and the accuracy along it, with the
same steps in a random order and with random signs as the control.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.shapes import column
from epsball.data.examples import Examples
from epsball.explain.config import LinearityConfig, configured
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import evenly, radius_of, task_for
from epsball.explain.measure import band, batches, correct, median, shuffled, without_box
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model, Objective

PIECES = {
    "whole": "all of the line",
    "before": "away from it, t < -1",
    "ball": "in the ball, -1 to 1",
    "beyond": "beyond it, t > 1",
}
"""The parts of the line, t in radii of the ball."""


@dataclass(frozen=True, kw_only=True)
class Linearity(Finding):
    """What `linearity` measured along x + t d, d a step of the ball's radius `eps`: p places, n examples.

    `t` (p,) from -span to span. `accuracy` (p,) along d and `control` (p,) along the shuffled d, shares of all
    examples. `label` and `rival` (3, p): 5 %, 50 % and 95 % of the label's logit and of the greatest other one.
    `explained` holds for each of `PIECES` the examples' R^2 (n,) of straight lines, one per logit, 1 being a line;
    `explained_control` the same along the shuffled step. `steady` is the share, of the examples misclassified at t = 1,
    that have the same wrong class at every t from 1 to span. `example` is one example: its id, its label, and its
    logits (p, classes).
    """

    details: ClassVar = ("example",)

    eps: float
    t: tuple[float, ...]
    accuracy: tuple[float, ...]
    control: tuple[float, ...]
    label: tuple[tuple[float | None, ...], ...]
    rival: tuple[tuple[float | None, ...], ...]
    explained: dict[str, tuple[float | None, ...]]
    explained_control: dict[str, tuple[float | None, ...]]
    steady: float | None
    example: dict[str, Any]

    def at(self, t: float) -> float:
        """The accuracy at the place nearest to `t`."""
        return self.accuracy[min(range(len(self.t)), key=lambda k: abs(self.t[k] - t))]

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        inside, everywhere = (percent(median(self.explained[piece])) for piece in ("ball", "whole"))
        return (
            f"Along the fast gradient direction straight lines explain {inside} of the variance of the logits "
            f"within {self.config['ball_name']} and {everywhere} out to {self.t[-1]:g} radii on both sides (medians "
            f"over {self.config['rows']} examples), and accuracy goes from {percent(self.at(0))} to "
            f"{percent(self.at(1))} at one radius."
        )

    def summary(self) -> dict[str, Any]:
        """The figures with the median R^2, without the single examples, as JSON can hold them."""
        names = ("explained", "explained_control")
        medians = {name: {piece: median(r2) for piece, r2 in getattr(self, name).items()} for name in names}
        return super().summary() | medians


@configured(LinearityConfig)
def linearity(
    model: Model, data: Examples, ball: Ball, *, config: LinearityConfig, loss: Loss = cross_entropy
) -> Linearity:
    """Measure how straight the logits are along the fast gradient direction, and what becomes of the accuracy.

    The direction d is the ball's step along the gradient of `loss` at x, without the box (as in the paper: eps sign g
    in the max norm) or, `boxed`, within it; the line x + t d leaves the box either way. `points` places from -`span`
    to `span` radii, at least 5 and odd, so that 0 is one of them; at most `rows` examples, spread over `data`. One
    gradient and 2 `points` forward passes an example, `batch_size` at a time. `seed` keys the control's order and
    signs. The model comes back as it was.

    Raises `BadInput` for a ball without a single radius, and in L0 unless `boxed`.

    >>> from epsball import Linf
    >>> from epsball.data.load import load_data
    >>> found = linearity(lambda x: x.flatten(1)[:, :10], load_data("digits"), Linf(eps=0.1), rows=20)
    >>> round(min(found.explained["whole"]), 9), round(found.at(0) - found.control[40], 9)
    (1.0, 0.0)
    """
    eps, data = radius_of(ball), evenly(data, config.rows)
    examples = task_for(data, ball, config.seed)
    t = torch.linspace(-config.span, config.span, config.points, dtype=torch.float64, device=data.x.device)
    t[config.points // 2] = 0.0
    found: list[dict[str, Tensor]] = []
    example: dict[str, Any] = {}
    with Objective(model, loss) as objective:
        for task, point in batches(objective, examples, config.batch_size):
            free = task.ball if config.boxed else without_box(task.ball)
            centre = task.x if config.boxed else torch.zeros_like(task.x)
            step = free.argmax(point.grad, centre) - centre
            line, control = (
                torch.stack([objective.forward(task.x + column(at.to(task.x), task.x.ndim) * d) for at in t]).double()
                for d in (step, shuffled(step, task.noise, task.ball.mask))
            )
            along_control = {f"control {name}": value for name, value in _along(t, control, task.y).items()}
            found.append(_along(t, line, task.y) | _logits(t, line, task.y) | along_control)
            fooled = (correct(point.logits, task.y) & ~found[-1]["hit"][_one(t)]).nonzero().squeeze(1)
            if not example or (not example["fooled"] and len(fooled)):
                row = int(fooled[0]) if len(fooled) else 0
                example = {"id": int(task.noise.ids[row]), "label": int(task.y[row]), "fooled": bool(len(fooled))}
                example["logits"] = nested(line[:, row])
    spent = {"forwards": objective.forwards, "backwards": objective.backwards}
    across = {name: torch.cat([part[name] for part in found], -1) for name in found[0]}
    wrong = ~across["hit"][_one(t)]
    return Linearity(
        eps=eps,
        t=nested(t),
        accuracy=nested(across["hit"].double().mean(1)),
        control=nested(across["control hit"].double().mean(1)),
        label=band(across["label"].T),
        rival=band(across["rival"].T),
        explained={piece: nested(across[piece]) for piece in PIECES},
        explained_control={piece: nested(across[f"control {piece}"]) for piece in PIECES},
        steady=across["steady"][wrong].double().mean().item() if bool(wrong.any()) else None,
        example=example,
        config=made_of(model, data, ball, config, loss=fingerprint.described(loss), **spent),
    )


def explained(t: Float[Tensor, " p"], values: Float[Tensor, "p n classes"]) -> Float[Tensor, " n"]:
    """R^2 of straight lines in `t`, one per class: 1 - squared residuals / squared deviations, summed over classes.

    1 where nothing varies: a constant is a line.

    >>> t = torch.linspace(-1, 1, 101, dtype=torch.float64)
    >>> explained(t, torch.stack([3 * t, t * t], 1)[:, :, None]).round(decimals=6)
    tensor([1., 0.], dtype=torch.float64)
    """
    off = values - values.mean(0)
    centred = (t - t.mean())[:, None, None]
    slope = (centred * off).sum(0) / centred.square().sum()
    total, residual = off.square().sum((0, 2)), (off - centred * slope).square().sum((0, 2))
    tiny = torch.finfo(values.dtype).tiny
    least = torch.finfo(values.dtype).eps * values.square().sum((0, 2)).clamp_min(tiny)
    return torch.where(total <= least, 1.0, 1 - residual / total.clamp_min(tiny))


def _one(t: Tensor) -> int:
    """Where t is nearest to 1."""
    return int((t - 1).abs().argmin())


def _along(t: Tensor, line: Float[Tensor, "p n classes"], y: Tensor) -> dict[str, Tensor]:
    """Where the label is predicted ("hit"), and R^2 on each piece of the line."""
    slack = 1e-9
    inside = {"whole": t == t, "before": t <= -1 + slack, "ball": t.abs() <= 1 + slack, "beyond": t >= 1 - slack}
    return {"hit": (line.argmax(2) == y) & line.isfinite().all(2)} | {
        piece: explained(t[there], line[there]) if int(there.sum()) > 2 else line.new_full(line.shape[1:2], math.nan)
        for piece, there in inside.items()
    }


def _logits(t: Tensor, line: Float[Tensor, "p n classes"], y: Tensor) -> dict[str, Tensor]:
    """The label's logit, the greatest other, and whether one class is predicted from t = 1 on."""
    label = y[None, :, None].expand(len(t), -1, 1)
    beyond = line.argmax(2)[_one(t) :]
    return {
        "label": line.gather(2, label).squeeze(2),
        "rival": line.scatter(2, label, -torch.inf).amax(2),
        "steady": (beyond == beyond[0]).all(0),
    }
