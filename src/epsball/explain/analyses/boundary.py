"""Near the boundary: the distance to the decision boundary beside that to the nearest image of another class.

Were the images near to the true boundary between the classes, small perturbations would have to change what is seen. So
the distance of the minimum-norm adversarial example is compared with that to the nearest training example of another
class. Half of that distance is the radius at which a classifier that is right about all of them could be robust: the
nearest neighbour's boundary is there (Yang et al., "A closer look at accuracy vs. robustness", NeurIPS 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from epsball.attacks.registry import attack_class
from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common import fingerprint
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.data.examples import Examples
from epsball.evaluation.evaluate import evaluate
from epsball.explain.config import BoundaryConfig, Progress, configured, silent
from epsball.explain.finding import Finding, made_of, nested, numbers, percent
from epsball.explain.inputs import evenly
from epsball.problem.objective import Model

ATTACKS = ("fmn", "fab:minimise=true")
"""Those of them that are defined in a norm are run in it."""
BLOCK = 1 << 24
"""Numbers of differences that are in memory at a time."""


@dataclass(frozen=True)
class Distances(Record):
    """One norm: the distances of n examples.

    `boundary` (n,) is the distance of the nearest adversarial example found, an upper bound of that to the decision
    boundary: 0 for a misclassified example, None where none was found, or logits were not finite. `other` (n,) is the
    distance to the nearest training example of another class, `same` (n,) to that of its own class, None where there is
    none; both depend on the examples alone, whatever the model.
    """

    derived: ClassVar = ("n", "median", "median_other", "ratio", "within_half")

    norm: str
    boundary: tuple[float | None, ...]
    other: tuple[float | None, ...]
    same: tuple[float | None, ...]

    @property
    def n(self) -> int:
        """How many examples were measured."""
        return len(self.boundary)

    @property
    def known(self) -> np.ndarray:
        """(n,): where the example is correctly classified, and an adversarial example was found."""
        return np.array([distance is not None and distance > 0 for distance in self.boundary])

    @property
    def correct(self) -> np.ndarray:
        """(n,): where the example is correctly classified."""
        return np.array([distance is None or distance > 0 for distance in self.boundary])

    def of_correct(self, name: str) -> np.ndarray:
        """`boundary`, `other` or `same` of the correctly classified examples; infinite where there is none."""
        return numbers(getattr(self, name), missing=math.inf)[self.correct]

    @property
    def median(self) -> float:
        """The median of `boundary` over the correctly classified examples; NaN where there is none."""
        return _median(self.of_correct("boundary"))

    @property
    def median_other(self) -> float:
        """The median of `other`, over the same examples."""
        return _median(self.of_correct("other"))

    @property
    def ratio(self) -> float:
        """The median, over the same examples, of `other` / `boundary`."""
        return _median(self.of_correct("other") / self.of_correct("boundary"))

    @property
    def within_half(self) -> float:
        """The share of the same examples with an adversarial example nearer than half the distance to another class."""
        near = self.of_correct("boundary") < self.of_correct("other") / 2
        return float(near.mean()) if len(near) else math.nan


@dataclass(frozen=True, kw_only=True)
class Boundary(Finding):
    """What `boundary` found: a `Distances` per norm, the ball's first."""

    norms: tuple[Distances, ...]

    def of(self, norm: str) -> Distances:
        """The distances in a norm."""
        return next(distances for distances in self.norms if distances.norm == norm)

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        first = self.norms[0]
        if not math.isfinite(first.median):
            return (
                f"An adversarial example was found for {int(first.known.sum()):,} of {int(first.correct.sum()):,} "
                "correctly classified examples."
            )
        times = f", {first.ratio:.1f} times as far" if math.isfinite(first.ratio) else ""
        return (
            f"The median example is {first.median:.3g} ({first.norm}) from an adversarial example and "
            f"{first.median_other:.3g} from the nearest training example of another class{times}; for "
            f"{percent(first.within_half)} it is nearer than half way, where a classifier could still be right."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the distances, as JSON can hold them."""
        found = self.to_record()
        single = ("boundary", "other", "same")
        norms = [{name: value for name, value in norm.items() if name not in single} for norm in found["norms"]]
        return found | {"norms": norms}


@configured(BoundaryConfig)
def boundary(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    config: BoundaryConfig,
    train: Examples | None = None,
    on_progress: Progress = silent,
) -> Boundary:
    """Seek the nearest adversarial example of each example, and the nearest training example of another class.

    `model` is a torch module or a callable x -> logits. The ball gives the norm, box and mask (its radius plays no
    part), `norms` more of them in the same box. At most `rows` of `data` are measured, spread evenly, and
    compared with at most `train_rows` of `train` (default: the other examples of `data`). `on_progress` is called with
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
    if ball.mask is not None:
        raise BadInput("`ball` must have no mask: distances between examples know of none; leave it out")
    names = dict.fromkeys((ball.name, *(check_one_of("norms", name, BALLS) for name in config.norms or ())))
    examples = evenly(data, config.rows)
    others = evenly(data if train is None else train, config.train_rows)
    if train is not None and others.shape != examples.shape:
        raise BadInput(f"`train` must hold examples of shape {examples.shape}, as the data do, got {others.shape}")
    if len(others.y.unique()) < 2:
        raise BadInput("`train` must hold at least two classes, got one; take more rows, or another split")
    found, attacks = [], {}
    for name in names:
        on_progress(len(found), len(names), name)
        metric = ball if name == ball.name else BALLS[name](eps=1.0, lo=ball.lo, hi=ball.hi)
        attacks[name] = [text for text in ATTACKS if name in attack_class(text.partition(":")[0]).norms()]
        evaluation = evaluate(
            model,
            examples,
            metric,
            attacks[name],
            min_norm=True,
            seed=config.seed,
            batch_size=config.batch_size,
            diagnose=0,
            accelerate=False,
        )
        if not evaluation.clean_accuracy:
            raise BadInput(
                f"`model` must be right about some of the {len(examples)} examples, got none; look at its data"
            )
        place = {int(id): row for row, id in enumerate(evaluation.records["id"].to_pylist())}
        distances = evaluation.distances[[place[int(id)] for id in examples.ids.tolist()]]
        other, same = _nearest(examples, others, metric, itself=train is None)
        found.append(Distances(norm=name, boundary=nested(distances), other=other, same=same))
    on_progress(len(found), len(names), "")
    metric = fingerprint.described(ball.with_eps(math.inf))
    more = {"ball": metric, "train_rows": len(others), "attacks": attacks}
    return Boundary(norms=tuple(found), config=made_of(model, examples, None, config, **more))


def _nearest(
    data: Examples, others: Examples, metric: Ball, *, itself: bool
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Of each example the distance to the nearest one of another class, and of its own; not to `itself`, by its id."""
    other, same = [], []
    size = max(1, BLOCK // max(1, others.x[0].numel()))
    for x, y, id in zip(data.x, data.y, data.ids, strict=True):
        apart = torch.cat([metric.distance(part, x.expand_as(part)) for part in others.x.split(size)]).double()
        if itself:
            apart = apart.masked_fill(others.ids == id, math.inf)
        for rows, nearest in ((others.y != y, other), (others.y == y, same)):
            nearest.append(apart.masked_fill(~rows, math.inf).min().item())
    return nested(other), nested(same)


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan
