"""Is a network close to linear where adversarial examples are? Its logits along the fast gradient direction.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8 and figure 4: the logits at x + t d, d the fast gradient step at
x, are drawn against t, far beyond the ball on both sides, and are "conspicuously piecewise linear". Measured here: the
share of the logits' variance along the line that straight lines in t explain, and the accuracy along it, with the
same steps in a random order and with random signs as the control.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import column
from epsball.data.examples import Examples
from epsball.explain.passes import band, checked, kept, median, parts, read, right, shuffled, without_box
from epsball.explain.record import evenly, percent, radius_of, said, versions
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
class Linearity:
    """What `linearity` measured along x + t d, d a step of the ball's radius `eps`: p places, n examples.

    `t` (p,) from -span to span. `accuracy` (p,) along d and `control` (p,) along the shuffled d, shares of all
    examples. `label` and `rival` (3, p): 5 %, 50 % and 95 % of the label's logit and of the greatest other one.
    `explained` holds for each of `PIECES` the examples' R^2 (n,) of straight lines, one per logit, 1 being a line;
    `explained_control` the same along the shuffled step. `steady` is the share, of the examples fooled at t = 1, that
    have the same wrong class at every t from 1 to span. `shown` is one example: its id, its label, and its logits
    (p, classes). None stands for what is not finite.
    """

    eps: float
    t: tuple[float, ...]
    accuracy: tuple[float, ...]
    control: tuple[float, ...]
    label: tuple[tuple[float | None, ...], ...]
    rival: tuple[tuple[float | None, ...], ...]
    explained: dict[str, tuple[float | None, ...]]
    explained_control: dict[str, tuple[float | None, ...]]
    steady: float | None
    shown: dict[str, Any]
    config: dict[str, Any]

    def at(self, t: float) -> float:
        """The accuracy at the place nearest to `t`."""
        return self.accuracy[min(range(len(self.t)), key=lambda k: abs(self.t[k] - t))]

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        all_of_it, inside = (median(self.explained[piece]) for piece in ("whole", "ball"))
        shares = [percent(math.nan if share is None else share) for share in (inside, all_of_it)]
        return (
            f"Along the fast gradient direction straight lines explain {shares[0]} of the variance of the logits "
            f"within {self.config['said']} and {shares[1]} out to {self.t[-1]:g} radii on both sides (medians over "
            f"{self.config['rows']} examples), and accuracy goes from {percent(self.at(0))} to {percent(self.at(1))} "
            "at one radius."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the single examples, as JSON can hold them."""
        found = asdict(self)
        del found["shown"]
        for name in ("explained", "explained_control"):
            found[name] = {piece: median(values) for piece, values in getattr(self, name).items()}
        return found | {"sentence": self.sentence}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Linearity:
        """The record that `to_json` wrote."""
        return cls(**read(text))

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: one example's logits, the band of all, the accuracy, and the R^2."""
        from epsball.explain.pictures_lines import draw_linearity

        draw_linearity(self, path)


def linearity(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    span: float = 10.0,
    points: int = 81,
    rows: int = 500,
    boxed: bool = False,
    loss: Loss = cross_entropy,
    batch_size: int = 128,
    seed: int = 0,
) -> Linearity:
    """Measure how straight the logits are along the fast gradient direction, and what becomes of the accuracy.

    The direction d is the ball's step along the gradient of `loss` at x, without the box (as in the paper: eps sign g
    in the max norm) or, `boxed`, within it; the line x + t d leaves the box either way. `points` places from -`span`
    to `span` radii, at least 5 and odd, so that 0 is one of them; at most `rows` examples, spread over `data`. One
    gradient and 2 `points` forwards an example, `batch_size` at a time. `seed` keys the control's order and signs. The model
    comes back as it was.

    Raises `BadInput` for a ball without a single radius, and in L0 unless `boxed`.

    >>> from epsball import Linf
    >>> from epsball.data.load import load_data
    >>> found = linearity(lambda x: x.flatten(1)[:, :10], load_data("digits"), Linf(eps=0.1), rows=20)
    >>> round(min(found.explained["whole"]), 9), round(found.at(0) - found.control[40], 9)
    (1.0, 0.0)
    """
    for name, value, least in (("rows", rows, 1), ("batch_size", batch_size, 1), ("points", points, 5)):
        check_whole(name, value, least)
    if points % 2 == 0:
        raise BadInput(f"`points` must be odd, so that t = 0 is one of them, got {points}; write {points + 1}")
    if not 1 < span < math.inf:
        raise BadInput(f"`span` must be > 1, in radii of the ball, got {span}; the ball itself is 1")
    eps, data = radius_of(ball), evenly(data, rows)
    all_rows = checked(data, ball, seed)
    t = torch.linspace(-span, span, points, dtype=torch.float64, device=data.x.device)
    t[points // 2] = 0.0
    found: list[dict[str, Tensor]] = []
    shown: dict[str, Any] = {}
    with Objective(model, loss, careful=True) as objective:
        for task, point in parts(objective, all_rows, batch_size):
            free = task.ball if boxed else without_box(task.ball)
            centre = task.x if boxed else torch.zeros_like(task.x)
            step = free.argmax(point.grad, centre) - centre
            lines = [
                torch.stack([objective.forward(task.x + column(at.to(task.x), task.x.ndim) * d) for at in t]).double()
                for d in (step, shuffled(step, task.noise, task.ball.mask))
            ]
            found.append(_measured(t, lines[0], task.y) | {f"control {k}": v for k, v in _control(t, lines[1], task.y)})
            hits = (right(point.logits, task.y) & ~found[-1]["hit"][_one(t)]).nonzero().squeeze(1)
            if not shown or (not shown["fooled"] and len(hits)):
                row = int(hits[0]) if len(hits) else 0
                one = {"id": int(task.noise.ids[row]), "label": int(task.y[row]), "fooled": bool(len(hits))}
                shown = one | {"logits": kept(lines[0][:, row])}
    across = {name: torch.cat([part[name] for part in found], -1) for name in found[0]}
    fooled = ~across["hit"][_one(t)]
    return Linearity(
        eps=eps,
        t=kept(t),
        accuracy=kept(across["hit"].double().mean(1)),
        control=kept(across["control hit"].double().mean(1)),
        label=band(across["label"].T),
        rival=band(across["rival"].T),
        explained={piece: kept(across[piece]) for piece in PIECES},
        explained_control={piece: kept(across[f"control {piece}"]) for piece in PIECES},
        steady=kept(across["steady"][fooled].double().mean().item()) if bool(fooled.any()) else None,
        shown=shown,
        config=kept(
            {
                "model": fingerprint.of_model(model),
                "data": data.name,
                "rows": len(data),
                "ball": fingerprint.described(ball),
                "said": said(ball),
                "boxed": boxed,
                "loss": fingerprint.described(loss),
                "forwards": objective.forwards,
                "backwards": objective.backwards,
                "seed": seed,
                "versions": versions(),
            }
        ),
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
    all_of_it, left = off.square().sum((0, 2)), (off - centred * slope).square().sum((0, 2))
    least = torch.finfo(values.dtype).eps * values.square().sum((0, 2)).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(all_of_it <= least, 1.0, 1 - left / all_of_it.clamp_min(torch.finfo(values.dtype).tiny))


def _one(t: Tensor) -> int:
    """Where t is nearest to 1."""
    return int((t - 1).abs().argmin())


def _pieces(t: Tensor, line: Tensor) -> dict[str, Tensor]:
    slack = 1e-9
    inside = {"whole": t == t, "before": t <= -1 + slack, "ball": t.abs() <= 1 + slack, "beyond": t >= 1 - slack}
    return {
        piece: explained(t[there], line[there]) if int(there.sum()) > 2 else line.new_full(line.shape[1:2], math.nan)
        for piece, there in inside.items()
    }


def _measured(t: Tensor, line: Float[Tensor, "p n classes"], y: Tensor) -> dict[str, Tensor]:
    label = y[None, :, None].expand(len(t), -1, 1)
    predicted = line.argmax(2)
    hit = (predicted == y) & line.isfinite().all(2)
    beyond = predicted[_one(t) :]
    return {
        "hit": hit,
        "label": line.gather(2, label).squeeze(2),
        "rival": line.scatter(2, label, -torch.inf).amax(2),
        "steady": (beyond == beyond[0]).all(0),
        **_pieces(t, line),
    }


def _control(t: Tensor, line: Float[Tensor, "p n classes"], y: Tensor) -> list[tuple[str, Tensor]]:
    return [("hit", (line.argmax(2) == y) & line.isfinite().all(2)), *_pieces(t, line).items()]
