"""Rubbish inputs: noise that a model is sure of, and one step that makes it any class.

Goodfellow, Shlens and Szegedy (ICLR 2015), appendix A: a good classifier should give no class p > .5 on inputs drawn
from N(0, I), where a maxout network on MNIST does on 98.35 % of them; and a step along the gradient of a class turns
noise into that class. The paper finds fewer with a sigmoid for each class than with one softmax over all, so the logits
are read in both ways.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.examples import Examples
from epsball.explain.record import box_of, class_names, evenly, or_none, percent, said, versions
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective

SURE = 0.5
SHOWN = 10
"""Classes in the figure."""
KINDS = {"normal": "N(0, I)", "uniform": "uniform in the box", "data": "the examples"}
READINGS = {"softmax": "softmax", "sigmoid": "a sigmoid per class"}
NORMAL_DRAW, UNIFORM_DRAW = 0, 1


@dataclass(frozen=True)
class UserAttack:
    """Inputs of one kind (of `KINDS`), read in one way (of `READINGS`).

    `share` of `n` inputs are called some class with p > .5, with `confidence` as the mean of that p, None where none
    is; `mean` is the mean of the greatest p over all inputs. `classes` counts what the sure ones are called.
    """

    kind: str
    reading: str
    n: int
    share: float
    confidence: float | None
    mean: float
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """Uniform noise, flat, before and after a step to `target`; `before` and `after` are softmax's p of the target."""

    target: int
    x: tuple[float, ...]
    x_adv: tuple[float, ...]
    before: float
    after: float


@dataclass(frozen=True)
class Rubbish:
    """What `rubbish` found.

    `towards` (classes,) is the share of uniform noise that one step of FGSM takes to the class with a softmax p > .5,
    of the noise that is not called that class with p > .5 before, None where there is none such; `examples` are the
    first ones.
    """

    called: tuple[UserAttack, ...]
    towards: tuple[float | None, ...]
    examples: tuple[Example, ...]
    config: dict[str, Any]

    def of(self, kind: str, reading: str = "softmax") -> UserAttack:
        """The inputs of that kind, read that way."""
        return next(one for one in self.called if (one.kind, one.reading) == (kind, reading))

    @property
    def stepped(self) -> float:
        """The mean of `towards`; NaN where there is none."""
        known = [share for share in self.towards if share is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        one, other = self.of("normal"), self.of("normal", "sigmoid")
        sure = "" if one.confidence is None else f" (mean confidence {percent(one.confidence)})"
        reached = ""
        if not math.isnan(self.stepped):
            reached = (
                f"; one step of FGSM within {self.config['said']} turns {percent(self.stepped)} of uniform noise into "
                "a chosen class"
            )
        trivial = ", as one of two always is" if len(one.classes) == 2 else ""
        return (
            f"Of {one.n:,} inputs drawn from N(0, I), {percent(one.share)} are called some class with p > .5{trivial}"
            f"{sure} by softmax and {percent(other.share)} by a sigmoid per class, beside "
            f"{percent(self.of('data').share)} of the examples by softmax{reached}."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the images, as JSON can hold them."""
        called = [asdict(one) for one in self.called]
        figures = {"sentence": self.sentence, "called": called, "towards": self.towards}
        return figures | {"stepped": or_none(self.stepped), "config": self.config}

    def to_json(self) -> str:
        """As JSON, with the images; `from_json` gives an equal record."""
        return json.dumps(self.summary() | {"examples": [asdict(one) for one in self.examples]}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Rubbish:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        called = tuple(UserAttack(**one | {"classes": tuple(one["classes"])}) for one in record["called"])
        examples = tuple(
            Example(**one | {name: tuple(one[name]) for name in ("x", "x_adv")}) for one in record["examples"]
        )
        return cls(called, tuple(record["towards"]), examples, record["config"])

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: what noise is called, and noise before and after a step to each class."""
        from epsball.explain.pictures_attacks import draw_rubbish

        draw_rubbish(self, path)


def rubbish(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 128,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Rubbish:
    """Show the model noise, and count how often it is sure of a class.

    `model` is a torch module or a callable x -> logits; `data` say what an input looks like, and are read for
    comparison, at most `draws` of them. `draws` inputs are drawn from N(0, I), whatever the data's box, as in the
    paper, and as many uniformly from the ball's box, keyed by `seed`. The uniform ones take one step of FGSM in the
    ball, which has one radius, to each class. Where the box is not finite there is no uniform noise. `on_progress` is
    called with the count of finished parts, that of all, and what is next. The model comes back as it was.

    Raises `BadInput` where the model returns labels, or logits that are not finite.

    The logits 2x and -2x give p > .5 always by softmax, and a sigmoid of p > .5 to exactly one class:

    >>> from epsball.balls.linf import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays(torch.tensor([[0.25], [0.75]]), [0, 1], lo=0, hi=1)
    >>> found = rubbish(lambda x: torch.cat([2 * x, -2 * x], 1), data, Linf(eps=0.5, lo=0, hi=1), draws=100)
    >>> found.of("normal").share, found.of("normal", "sigmoid").share, found.of("uniform").classes
    (1.0, 1.0, (100, 0))
    """
    check_whole("draws", draws, 1)
    phrase = said(ball)
    index = torch.arange(draws)
    noise = Noise(seed, index, torch.zeros_like(index))
    inputs = {"normal": noise.normal(data.shape, draw=NORMAL_DRAW).to(data.x)}
    box = box_of(ball)
    if box is not None:
        lo, hi = box
        drawn = noise.uniform(data.shape, draw=UNIFORM_DRAW) * (hi - lo) + lo
        inputs["uniform"] = drawn.to(data.x).clamp(lo, hi)
    inputs["data"] = evenly(data, draws).x
    names, called, logits = class_names(data), [], {}
    total = len(inputs) + (0 if box is None else data.classes)

    def tell(done: int, note: str) -> None:
        if on_progress is not None:
            on_progress(done, total, note)

    with Objective(model, cross_entropy, needs="logits") as objective:
        for done, (kind, x) in enumerate(inputs.items()):
            tell(done, KINDS[kind])
            output = torch.cat([objective.forward(part) for part in x.split(batch_size)])
            if not output.is_floating_point():
                raise BadInput("`model` must return logits, got labels; confidence is read from logits")
            if not output.isfinite().all():
                raise BadInput(f"`model` must return finite logits, but does not for {KINDS[kind]}; look at its layers")
            logits[kind] = output.double()
            called += [_called(kind, reading, logits[kind]) for reading in READINGS]
    towards, examples = [], []
    for target in range(0 if box is None else data.classes):
        tell(len(inputs) + target, f"towards {names[target]}")
        before = logits["uniform"].softmax(1)[:, target]
        x = inputs["uniform"]
        parts = [
            FGSM()(model, part, torch.zeros(len(part), dtype=torch.long, device=part.device), ball, target=target)
            for part in x.split(batch_size)
        ]
        x_adv = torch.cat(parts)
        with Objective(model, cross_entropy, needs="logits") as objective:
            after = (
                torch.cat([objective.forward(part) for part in x_adv.split(batch_size)]).double().softmax(1)[:, target]
            )
        there = before <= SURE
        towards.append(float((after > SURE)[there].double().mean()) if there.any() else None)
        if target < SHOWN:
            rows = there.nonzero().squeeze(1).tolist() or [0]
            row = rows[target % len(rows)]
            shown, moved = (tuple(part[row].double().flatten().tolist()) for part in (x, x_adv))
            examples.append(Example(target, shown, moved, before[row].item(), after[row].item()))
    tell(total, "")
    config = {
        "model": fingerprint.of_model(model),
        "data": data.name,
        "shape": list(data.shape),
        "names": list(names),
        "ball": fingerprint.described(ball),
        "said": phrase,
        "box": None if box is None else list(box),
        "draws": draws,
        "seed": seed,
        "versions": versions(),
    }
    return Rubbish(tuple(called), tuple(towards), tuple(examples), config)


def _called(kind: str, reading: str, logits: Float[Tensor, "n classes"]) -> UserAttack:
    p = logits.softmax(1) if reading == "softmax" else logits.sigmoid()
    most, label = p.max(1)
    sure = most > SURE
    return UserAttack(
        kind=kind,
        reading=reading,
        n=len(p),
        share=sure.double().mean().item(),
        confidence=most[sure].mean().item() if sure.any() else None,
        mean=most.mean().item(),
        classes=tuple(torch.bincount(label[sure], minlength=p.shape[1]).tolist()),
    )
