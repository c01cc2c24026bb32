"""All analyses of one model on one data set; one that fails does not stop the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.explain.analyses.boundary import boundary
from epsball.explain.analyses.conditioning import conditioning
from epsball.explain.analyses.direction import direction
from epsball.explain.analyses.growth import growth
from epsball.explain.analyses.l1 import l1_equivalence
from epsball.explain.analyses.linearity import linearity
from epsball.explain.analyses.local_growth import local_growth
from epsball.explain.analyses.manifold import manifold
from epsball.explain.analyses.rubbish import rubbish
from epsball.explain.analyses.targets import targets
from epsball.explain.analyses.taylor import taylor_gap
from epsball.explain.analyses.training import training_changed
from epsball.explain.analyses.universal import universal
from epsball.explain.config import Progress, silent
from epsball.explain.finding import Finding
from epsball.explain.hypotheses import HYPOTHESES, chosen
from epsball.explain.inputs import evenly, of_pair
from epsball.explain.networks import ADVERSARIAL, companions, trained, trained_further
from epsball.explain.plots.registry import draw
from epsball.problem.objective import Model

log = logging.getLogger(__name__)

ROWS = 200
"""Examples of which the analyses measure distances and the Taylor gap."""
STEP = 0.1
"""Of the box's width: the size of a step in the max norm, for the analyses of linear models."""
L1_STEP = 0.2
TRAINING_STEPS = 720


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What is analysed: a model, the examples `data` that it is measured on, others to `train` on, and a ball.

    `network` is the built-in network that is trained where an analysis needs more than one. `fresh` says that the model
    is such a network, trained on `train` with `seed`: then an adversarially trained one is made from the same start.
    """

    model: Model
    data: Examples
    train: Examples
    ball: Ball
    network: str = "small-mlp"
    fresh: bool = False
    seed: int = 0
    batch_size: int = 128

    @property
    def span(self) -> float:
        """The width of the box; 1 where it has none."""
        lo, hi = (float(end.mean()) if isinstance(end, Tensor) else end for end in (self.ball.lo, self.ball.hi))
        return hi - lo if isfinite(hi - lo) else 1.0

    @property
    def keys(self) -> dict[str, int]:
        """The options that all analyses of a network share."""
        return {"seed": self.seed, "batch_size": self.batch_size}

    @property
    def module(self) -> nn.Module:
        """The model. Raises `BadInput` where it is no torch module."""
        if not isinstance(self.model, nn.Module):
            raise BadInput(f"`model` must be a torch module for this, got {type(self.model).__name__}: no weights")
        return self.model


@dataclass(frozen=True, eq=False)
class Answer:
    """The result of one analysis: its record, or the reason why there is none."""

    name: str
    found: Finding | None
    reason: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it."""
        hypothesis, found = HYPOTHESES[self.name], self.found
        return {
            "hypothesis": hypothesis.title,
            "claim": hypothesis.claim,
            "sentence": None if found is None else found.sentence,
            "reason": self.reason or None,
            "seconds": round(self.seconds, 3),
            "found": None if found is None else found.summary(),
        }


def answers(
    case: Case,
    names: Sequence[str] = (),
    *,
    out: Path | None = None,
    on_progress: Progress = silent,
    **options: Any,
) -> Iterator[Answer]:
    """Make the analyses of those names (default: all), one after the other, each an `Answer`.

    Each is written as OUT/NAME.json and OUT/NAME.png before the next is made. One that raises, or whose record cannot
    be written or drawn, has its reason in the answer. `on_progress` is called with the count of those that are done,
    that of all, and the name of the next; of a single analysis, with that of its parts. `options` are those of a single
    analysis's function.
    """
    names = chosen(names)
    for done, name in enumerate(names):
        on_progress(done, len(names), name)
        start, found, reason = time.perf_counter(), None, ""
        try:
            found = RUN[name](case, on_progress if len(names) == 1 else silent, **options)
            log.info("%s: %s", name, found.sentence)
            if out is None:
                found.to_json()  # what has no JSON has no answer
            else:
                found.save(out / f"{name}.json")
                draw(found, out / f"{name}.png")
        except BadInput as error:
            found, reason = None, str(error)
        except Exception as error:  # analyses need much of a model: one that fails leaves the others
            log.info("analysis %s", name, exc_info=True)
            found, reason = None, f"{type(error).__name__}: {error}"
        yield Answer(name, found, reason, time.perf_counter() - start)


def _targets(case: Case, progress: Progress) -> Finding:
    return targets(case.model, case.data, case.ball, on_progress=progress, **case.keys)


def _universal(case: Case, progress: Progress) -> Finding:
    return universal(case.model, case.data, case.ball, train=case.train, seed=case.seed, on_progress=progress)


def _boundary(case: Case, progress: Progress) -> Finding:
    norms = tuple(BALLS) if isfinite(case.data.lo) and isfinite(case.data.hi) else ()
    options = {"train": case.train, "norms": norms, "rows": ROWS, "on_progress": progress}
    return boundary(case.model, case.data, case.ball, **options, **case.keys)


def _growth(case: Case, progress: Progress, **options: Any) -> Finding:
    defaults = {"eps": STEP * case.span, "seed": case.seed}
    return growth(case.data, train=case.train, on_progress=progress, **defaults | options)


def _local_growth(case: Case, progress: Progress) -> Finding:
    return local_growth("small-mlp", case.data, case.ball, train=case.train, on_progress=progress, **case.keys)


def _linearity(case: Case, progress: Progress) -> Finding:
    boxed = "count" in case.ball.traits  # where a step without a box has no end
    return linearity(case.model, case.data, case.ball, boxed=boxed, **case.keys)


def _taylor(case: Case, progress: Progress, *, rows: int | None = ROWS, double: bool = True, **options: Any) -> Finding:
    data, model = evenly(case.data, rows or len(case.data)), case.model
    x = data.x
    if double and isinstance(model, nn.Module):
        model, x = deepcopy(model).double(), x.double()  # the rounding of float32 hides small rises
    return taylor_gap(model, x, data.y, case.ball, batch_size=case.batch_size, on_progress=progress, **options)


def _conditioning(case: Case, progress: Progress) -> Finding:
    return conditioning(case.module, case.data, case.ball, **case.keys)


def _manifold(case: Case, progress: Progress) -> Finding:
    return manifold(case.model, case.data, case.ball, train=case.train, **case.keys)


def _direction(case: Case, progress: Progress) -> Finding:
    models = {"model": case.model} | companions(case.train, network=case.network, seed=case.seed)
    return direction(models, case.data, case.ball, **case.keys)


def _rubbish(case: Case, progress: Progress) -> Finding:
    return rubbish(case.model, case.data, case.ball, on_progress=progress, **case.keys)


def _l1(case: Case, progress: Progress, *, pair: tuple[int, int] | None = None, **options: Any) -> Finding:
    test = of_pair(case.data, pair)
    first, second = test[1].unique().tolist()
    train = of_pair(case.train, (first, second))
    return l1_equivalence(*train, test=test, on_progress=progress, **{"eps": L1_STEP * case.span} | options)


def _training(case: Case, progress: Progress) -> Finding:
    if case.fresh:
        how = {"objective": ADVERSARIAL, "steps": TRAINING_STEPS, "seed": case.seed}
        models = {"plain": case.module, "trained": trained(case.network, case.train, case.ball, **how)}
    else:
        further = trained_further(case.module, case.train, case.ball, seed=case.seed)
        models = {"given": case.module, "trained further": further}
    return training_changed(models, case.data, case.ball, **case.keys)


RUN: dict[str, Callable[..., Finding]] = {
    "targets": _targets,
    "universal": _universal,
    "boundary": _boundary,
    "growth": _growth,
    "local-growth": _local_growth,
    "linearity": _linearity,
    "taylor": _taylor,
    "conditioning": _conditioning,
    "manifold": _manifold,
    "direction": _direction,
    "rubbish": _rubbish,
    "l1": _l1,
    "training": _training,
}
