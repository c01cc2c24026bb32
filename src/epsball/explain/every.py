"""All analyses of one model on one data set; one that fails does not stop the others."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.explain.alignment import direction
from epsball.explain.dimension import growth
from epsball.explain.hypotheses import HYPOTHESES, chosen
from epsball.explain.l1 import l1_equivalence, of_pair
from epsball.explain.line import linearity
from epsball.explain.linearised import local_growth
from epsball.explain.nearness import boundary
from epsball.explain.networks import ADVERSARIAL, companions, trained, trained_further
from epsball.explain.noise_inputs import rubbish
from epsball.explain.one_for_all import universal
from epsball.explain.record import Finding, evenly
from epsball.explain.side_by_side import training_changed
from epsball.explain.steepness import conditioning
from epsball.explain.subspace import manifold
from epsball.explain.targeted import targets
from epsball.explain.taylor import taylor_gap
from epsball.problem.objective import Model

log = logging.getLogger(__name__)

ROWS = 200
"""Examples that the analyses of distances and of the Taylor gap look at."""
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


@dataclass(frozen=True, eq=False)
class Answer:
    """What an analysis came to: its record, or the reason why there is none."""

    name: str
    found: Finding | None
    reason: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it."""
        found = self.found and json.loads(json.dumps(self.found.summary()))
        hypothesis = HYPOTHESES[self.name]
        sentence = None if self.found is None else self.found.sentence
        asked = {"hypothesis": hypothesis.title, "claim": hypothesis.claim, "sentence": sentence}
        return asked | {"reason": self.reason or None, "seconds": round(self.seconds, 3), "found": found}


def answers(
    case: Case,
    names: Sequence[str] = (),
    *,
    out: Path | None = None,
    on_start: Callable[[int, str], None] | None = None,
) -> Iterator[Answer]:
    """Make the analyses of those names (default: all), one after the other, each an `Answer`.

    Each is written as OUT/NAME.json and OUT/NAME.png before the next is made. One that raises, or cannot be said or
    drawn, is answered with its reason. `on_start` is called with the count of those that are done and the name of the
    next.
    """
    for done, name in enumerate(chosen(names)):
        if on_start is not None:
            on_start(done, name)
        began, found, reason = time.perf_counter(), None, ""
        try:
            found = _kept(name, RUN[name](case), out)
        except BadInput as error:
            reason = str(error)
        except Exception as error:  # an analysis asks a model for much: what one cannot have says nothing of the others
            log.info("analysis %s", name, exc_info=True)
            reason = f"{type(error).__name__}: {error}"
        yield Answer(name, found, reason, time.perf_counter() - began)


def _kept(name: str, found: Finding, out: Path | None) -> Finding:
    """The finding, written to `out`, once it has shown that it can be told."""
    text, sentence = found.to_json(), found.sentence
    log.info("%s: %s", name, sentence)
    if out is not None:
        write_whole(out / f"{name}.json", partial(Path.write_text, data=text))
        found.draw(out / f"{name}.png")
    return found


def _targets(case: Case) -> Finding:
    return targets(case.model, case.data, case.ball, seed=case.seed, batch_size=case.batch_size)


def _universal(case: Case) -> Finding:
    return universal(case.model, case.data, case.ball, train=case.train, seed=case.seed)


def _boundary(case: Case) -> Finding:
    norms = tuple(BALLS) if isfinite(case.data.lo) and isfinite(case.data.hi) else ()
    asked = {"train": case.train, "norms": norms, "rows": ROWS, "seed": case.seed, "batch_size": case.batch_size}
    return boundary(case.model, case.data, case.ball, **asked)


def _growth(case: Case) -> Finding:
    return growth(case.data, train=case.train, eps=STEP * case.span, seed=case.seed)


def _taylor(case: Case) -> Finding:
    kept, model = evenly(case.data, ROWS), case.model
    if isinstance(model, nn.Module):
        model, kept_x = deepcopy(model).double(), kept.x.double()  # small rises drown in the rounding of float32
    else:
        kept_x = kept.x
    return taylor_gap(model, kept_x, kept.y, case.ball, batch_size=case.batch_size)


def _rubbish(case: Case) -> Finding:
    return rubbish(case.model, case.data, case.ball, seed=case.seed, batch_size=case.batch_size)


def _local_growth(case: Case) -> Finding:
    return local_growth("small-mlp", case.data, case.ball, train=case.train, batch_size=case.batch_size, seed=case.seed)


def _linearity(case: Case) -> Finding:
    boxed = "count" in case.ball.traits  # where a step without a box has no end
    return linearity(case.model, case.data, case.ball, boxed=boxed, batch_size=case.batch_size, seed=case.seed)


def _conditioning(case: Case) -> Finding:
    return conditioning(_module(case), case.data, case.ball, batch_size=case.batch_size, seed=case.seed)


def _manifold(case: Case) -> Finding:
    return manifold(case.model, case.data, case.ball, train=case.train, batch_size=case.batch_size, seed=case.seed)


def _direction(case: Case) -> Finding:
    models = {"model": case.model} | companions(case.train, network=case.network, seed=case.seed)
    return direction(models, case.data, case.ball, batch_size=case.batch_size, seed=case.seed)


def _training(case: Case) -> Finding:
    model = _module(case)
    if case.fresh:
        how = {"objective": ADVERSARIAL, "steps": TRAINING_STEPS, "seed": case.seed}
        models = {"plain": model, "trained": trained(case.network, case.train, case.ball, **how)}
    else:
        models = {"given": model, "trained further": trained_further(model, case.train, case.ball, seed=case.seed)}
    return training_changed(models, case.data, case.ball, batch_size=case.batch_size, seed=case.seed)


def _module(case: Case) -> nn.Module:
    if not isinstance(case.model, nn.Module):
        raise BadInput(f"`model` must be a torch module for this, got {type(case.model).__name__}: it has no weights")
    return case.model


def _l1(case: Case) -> Finding:
    held = of_pair(case.data)
    first, second = held[1].unique().tolist()
    fitted = of_pair(case.train, (first, second))
    return l1_equivalence(*fitted, eps=L1_STEP * case.span, test=held)


RUN: dict[str, Callable[[Case], Finding]] = {
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
