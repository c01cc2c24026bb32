"""Near the boundary: how far the nearest fooling point is, and how far the nearest image of another class.

Were the images near to the true border between the classes, small perturbations would have to change what is seen. So
the least distance at which the model errs, by attacks that seek it, is held against that to the nearest training
example of another class. Half of that distance is what a classifier could withstand that is right about all of them:
the nearest neighbour's border is there (Yang et al., "A closer look at accuracy vs. robustness", NeurIPS 2020).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epsball.attacks.registry import attack_class
from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common import fingerprint
from epsball.common.checks import check_one_of, check_whole
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.evaluation.evaluate import evaluate
from epsball.explain.record import evenly, or_none, percent, versions
from epsball.problem.objective import Model

ATTACKS = ("fmn", "fab:minimise=true")
"""Those of them that are defined in a norm are run in it."""
BLOCK = 1 << 24
"""Numbers of differences that are held at a time."""


@dataclass(frozen=True)
class Distances:
    """One norm: what is near to each of n examples, 0 for those that are predicted wrongly.

    `boundary` (n,) is the distance of the nearest fooling point that was found, an upper bound, infinite where none
    was, or logits were not finite; `other` (n,) that to the nearest training example of another class, `same` (n,) to
    that of its own class (infinite where there is none), both true of the examples themselves, whatever the model.
    """

    norm: str
    boundary: tuple[float, ...]
    other: tuple[float, ...]
    same: tuple[float, ...]

    @property
    def right(self) -> np.ndarray:
        """(n,): where the model is right about the example itself, and a fooling point was found."""
        near = np.array(self.boundary)
        return (near > 0) & np.isfinite(near)

    @property
    def median(self) -> float:
        """The median of `boundary` over the examples that the model is right about; NaN where there is none."""
        return _median(np.array(self.boundary)[np.array(self.boundary) > 0])

    @property
    def median_other(self) -> float:
        """The median of `other`, over the same examples."""
        return _median(np.array(self.other)[np.array(self.boundary) > 0])

    @property
    def ratio(self) -> float:
        """The median, over the same examples, of `other` / `boundary`."""
        near = np.array(self.boundary)
        return _median(np.array(self.other)[near > 0] / near[near > 0])

    @property
    def within_half(self) -> float:
        """The share of the same examples whose fooling point is nearer than half the distance to another class."""
        near, other = np.array(self.boundary), np.array(self.other)
        return float((near < other / 2)[near > 0].mean()) if (near > 0).any() else math.nan


@dataclass(frozen=True)
class Boundary:
    """What `boundary` found: a `Distances` per norm, the ball's first."""

    norms: tuple[Distances, ...]
    config: dict[str, Any]

    def of(self, norm: str) -> Distances:
        """The distances in a norm."""
        return next(one for one in self.norms if one.norm == norm)

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        one = self.norms[0]
        if not math.isfinite(one.median):
            known, asked = int(one.right.sum()), int((np.array(one.boundary) > 0).sum())
            return f"A point that fools the model was found for {known:,} of {asked:,} rightly classified examples."
        far = f", {one.ratio:.1f} times as far" if math.isfinite(one.ratio) else ""
        return (
            f"The median example is {one.median:.3g} ({one.norm}) from a point that fools the model and "
            f"{one.median_other:.3g} from the nearest training example of another class{far}; "
            f"{percent(one.within_half)} are fooled nearer than half way, where a classifier could still be right."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the distances, as JSON can hold them."""
        names = ("median", "median_other", "ratio", "within_half")
        norms = [
            {"norm": one.norm, "n": len(one.boundary)} | {name: or_none(getattr(one, name)) for name in names}
            for one in self.norms
        ]
        return {"sentence": self.sentence, "norms": norms, "config": self.config}

    def to_json(self) -> str:
        """As JSON, with the distances, None where infinite; `from_json` gives an equal record."""
        found = self.summary()
        for figures, one in zip(found["norms"], self.norms, strict=True):
            figures |= {name: list(map(or_none, part)) for name, part in asdict(one).items() if name != "norm"}
        return json.dumps(found, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Boundary:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        names = ("boundary", "other", "same")
        norms = tuple(
            Distances(
                norm=one["norm"],
                **{name: tuple(math.inf if part is None else part for part in one[name]) for name in names},
            )
            for one in record["norms"]
        )
        return cls(norms=norms, config=record["config"])

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: both distances, norm by norm, and example by example in the ball's norm."""
        from epsball.explain.pictures_attacks import draw_boundary

        draw_boundary(self, path)


def boundary(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    train: Examples | None = None,
    norms: Sequence[str] | None = None,
    rows: int = 300,
    train_rows: int = 10_000,
    seed: int = 0,
    batch_size: int = 128,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Boundary:
    """Seek the nearest fooling point of each example, and the nearest example of another class.

    `model` is a torch module or a callable x -> logits. The ball gives the norm, box and mask (its radius plays no
    part), `norms` more of linf, l2, l1, l0 in the same box. At most `rows` of `data` are measured, spread evenly, and
    held against at most `train_rows` of `train` (default: the other examples of `data`). `on_progress` is called with
    the count of finished norms, that of all, and what is next. The model comes back as it was.

    Raises `BadInput` for an unknown norm, a mask, training examples of one class, and a model that is never right.

    For a linear model the distance is |w.x + b| over the dual norm of w:

    >>> from epsball.balls.l2 import L2
    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays(torch.tensor([[3.0, 4.0], [0.0, -5.0]]), [1, 0], lo=-9, hi=9)
    >>> found = boundary(lambda x: x @ torch.tensor([3.0, 4.0]), data, L2(eps=1.0, lo=-9, hi=9))
    >>> [round(distance, 3) for distance in found.of("l2").boundary]
    [5.0, 4.0]
    >>> [round(distance, 2) for distance in found.of("l2").other]
    [9.49, 9.49]
    """
    for name, value in (("rows", rows), ("train_rows", train_rows)):
        check_whole(name, value, 1)
    if ball.mask is not None:
        raise BadInput("`ball` must have no mask: distances between examples know of none; leave it out")
    names = dict.fromkeys((ball.name, *(check_one_of("norms", name, BALLS) for name in norms or ())))
    kept = evenly(data, rows)
    others = evenly(data if train is None else train, train_rows)
    if train is not None and others.shape != kept.shape:
        raise BadInput(f"`train` must hold examples of shape {kept.shape}, as the data do, got {others.shape}")
    if len(others.y.unique()) < 2:
        raise BadInput("`train` must hold at least two classes, got one; take more rows, or another split")
    found, attacks = [], {}
    for name in names:
        if on_progress is not None:
            on_progress(len(found), len(names), name)
        one = ball if name == ball.name else BALLS[name](eps=1.0, lo=ball.lo, hi=ball.hi)
        attacks[name] = [text for text in ATTACKS if name in attack_class(text.partition(":")[0]).norms()]
        ev = evaluate(
            model,
            kept,
            one,
            attacks[name],
            min_norm=True,
            seed=seed,
            batch_size=batch_size,
            diagnose=0,
            accelerate=False,
        )
        place = {int(id): row for row, id in enumerate(ev.records["id"].to_pylist())}
        near = np.nan_to_num(ev.distances, nan=math.inf, posinf=math.inf)
        near = near[[place[int(id)] for id in kept.ids.tolist()]]
        if not ev.clean_accuracy:
            raise BadInput(f"`model` must be right about some of the {len(kept)} examples, got none; look at its data")
        other, same = _nearest(kept, others, one, itself=train is None)
        found.append(Distances(norm=name, boundary=tuple(near.tolist()), other=other, same=same))
    if on_progress is not None:
        on_progress(len(found), len(names), "")
    config = {
        "model": fingerprint.of_model(model),
        "data": data.name,
        "rows": len(kept),
        "train_rows": len(others),
        "ball": fingerprint.described(ball.with_eps(math.inf)),
        "attacks": attacks,
        "seed": seed,
        "versions": versions(),
    }
    return Boundary(norms=tuple(found), config=config)


def _nearest(
    data: Examples, others: Examples, ball: Ball, *, itself: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each example the distance to the nearest one of another class, and of its own; not to `itself`, by its id."""
    other, same = [], []
    size = max(1, BLOCK // max(1, others.x[0].numel()))
    for x, y, id in zip(data.x, data.y, data.ids, strict=True):
        apart = torch.cat([ball.distance(part, x.expand_as(part)) for part in others.x.split(size)]).double()
        if itself:
            apart = apart.masked_fill(others.ids == id, math.inf)
        for rows, found in ((others.y != y, other), (others.y == y, same)):
            found.append(apart.masked_fill(~rows, math.inf).min().item())
    return tuple(other), tuple(same)


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan
