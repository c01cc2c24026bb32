"""Rubbish inputs: noise that a model is sure of, and one step that makes it any class.

Goodfellow, Shlens and Szegedy (ICLR 2015), appendix A: a good classifier should give no class p > .5 on inputs drawn
from N(0, I), where a maxout network on MNIST does on 98.35 % of them; and a step along the gradient of a class turns
noise into that class. The paper finds fewer with a sigmoid for each class than with one softmax over all, so the logits
are read in both ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.record import Record
from epsball.data.examples import Examples
from epsball.explain.config import Progress, RubbishConfig, configured, silent
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import box_of, class_names, evenly
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective

SURE = 0.5
SHOWN = 10
"""Classes in the figure."""
KINDS = {"normal": "N(0, I)", "uniform": "uniform in the box", "data": "the examples"}
READINGS = {"softmax": "softmax", "sigmoid": "a sigmoid per class"}
NORMAL_DRAW, UNIFORM_DRAW = 0, 1


@dataclass(frozen=True)
class Confidence(Record):
    """How sure the model is of inputs of one kind (of `KINDS`), its logits read in one way (of `READINGS`).

    `share` of `n` inputs have a class with p > .5, with `confidence` as the mean of that p, None where none has; `mean`
    is the mean of the greatest p over all inputs. `classes` counts the predictions of those with p > .5.
    """

    kind: str
    reading: str
    n: int
    share: float
    confidence: float | None
    mean: float
    classes: tuple[int, ...]


@dataclass(frozen=True)
class NoiseStep(Record):
    """Uniform noise, flat, before and after a step to `target`; `before` and `after` are softmax's p of the target."""

    target: int
    x: tuple[float, ...]
    x_adv: tuple[float, ...]
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Rubbish(Finding):
    """What `rubbish` found.

    `towards` (classes,) is the share of uniform noise that one step of FGSM takes to the class with a softmax p > .5,
    of the noise that has not p > .5 of it before, None where there is none such; `examples` are the first ones.
    """

    derived: ClassVar = ("stepped",)
    details: ClassVar = ("examples",)

    confidences: tuple[Confidence, ...]
    towards: tuple[float | None, ...]
    examples: tuple[NoiseStep, ...]

    def of(self, kind: str, reading: str = "softmax") -> Confidence:
        """The confidence in inputs of that kind, read that way."""
        return next(found for found in self.confidences if (found.kind, found.reading) == (kind, reading))

    @property
    def stepped(self) -> float:
        """The mean of `towards`; NaN where there is none."""
        known = [share for share in self.towards if share is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        softmax, sigmoid = self.of("normal"), self.of("normal", "sigmoid")
        sure = "" if softmax.confidence is None else f" (mean confidence {percent(softmax.confidence)})"
        step = ""
        if not math.isnan(self.stepped):
            step = (
                f"; one step of FGSM within {self.config['ball_name']} turns {percent(self.stepped)} of uniform noise "
                "into a chosen class"
            )
        trivial = ", as one of two always is" if len(softmax.classes) == 2 else ""
        return (
            f"Of {softmax.n:,} inputs drawn from N(0, I), {percent(softmax.share)} are predicted as some class with "
            f"p > .5{trivial}{sure} by softmax and {percent(sigmoid.share)} by a sigmoid per class, beside "
            f"{percent(self.of('data').share)} of the examples by softmax{step}."
        )


@configured(RubbishConfig)
def rubbish(
    model: Model, data: Examples, ball: Ball, *, config: RubbishConfig, on_progress: Progress = silent
) -> Rubbish:
    """Show the model noise, and count how often it is sure of a class.

    `model` is a torch module or a callable x -> logits; `data` say what an input looks like, and at most `draws` of
    them are measured for comparison. `draws` inputs are drawn from N(0, I), whatever the data's box, as in the paper,
    and as many uniformly from the ball's box, keyed by `seed`. The uniform ones take one step of FGSM in the ball,
    which has one radius, to each class. Where the box is not finite there is no uniform noise. `on_progress` is called
    with the count of finished parts, that of all, and what is next. The model comes back as it was.

    Raises `BadInput` where the model returns labels, or logits that are not finite.

    The logits 2x and -2x give p > .5 always by softmax, and a sigmoid of p > .5 to exactly one class:

    >>> from epsball.balls.linf import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays(torch.tensor([[0.25], [0.75]]), [0, 1], lo=0, hi=1)
    >>> found = rubbish(lambda x: torch.cat([2 * x, -2 * x], 1), data, Linf(eps=0.5, lo=0, hi=1), draws=100)
    >>> found.of("normal").share, found.of("normal", "sigmoid").share, found.of("uniform").classes
    (1.0, 1.0, (100, 0))
    """
    box, names = box_of(ball), class_names(data)
    made = made_of(model, data, ball, config, shape=data.shape, names=names, box=box)
    inputs = _inputs(data, box, config)
    targets = range(0 if box is None else data.classes)
    total, confidences, logits = len(inputs) + len(targets), [], {}

    def outputs(x: Float[Tensor, "n *shape"]) -> Tensor:
        with Objective(model, cross_entropy, needs="logits") as objective:
            return torch.cat([objective.forward(part) for part in x.split(config.batch_size)])

    for done, (kind, x) in enumerate(inputs.items()):
        on_progress(done, total, KINDS[kind])
        output = outputs(x)
        if not output.is_floating_point():
            raise BadInput("`model` must return logits, got labels; confidence is read from logits")
        if not output.isfinite().all():
            raise BadInput(f"`model` must return finite logits, but does not for {KINDS[kind]}; look at its layers")
        logits[kind] = output.double()
        confidences += [_confidence(kind, reading, logits[kind]) for reading in READINGS]
    towards, examples = [], []
    for target in targets:
        on_progress(len(inputs) + target, total, f"towards {names[target]}")
        other = (target + 1) % data.classes  # noise has no label; a step towards a class asks for one that differs
        x, before = inputs["uniform"], logits["uniform"].softmax(1)[:, target]
        x_adv = torch.cat(
            [
                FGSM()(model, part, torch.full((len(part),), other, device=part.device), ball, target=target)
                for part in x.split(config.batch_size)
            ]
        )
        after = outputs(x_adv).double().softmax(1)[:, target]
        elsewhere = before <= SURE
        towards.append(float((after > SURE)[elsewhere].double().mean()) if elsewhere.any() else None)
        if target < SHOWN:
            rows = elsewhere.nonzero().squeeze(1).tolist() or [0]
            row = rows[target % len(rows)]
            noise, stepped = (nested(part[row].double().flatten()) for part in (x, x_adv))
            examples.append(NoiseStep(target, noise, stepped, before[row].item(), after[row].item()))
    on_progress(total, total, "")
    return Rubbish(confidences=tuple(confidences), towards=tuple(towards), examples=tuple(examples), config=made)


def _inputs(data: Examples, box: tuple[float, float] | None, config: RubbishConfig) -> dict[str, Tensor]:
    """The inputs of each kind; no uniform ones without a box."""
    index = torch.arange(config.draws)
    noise = Noise(config.seed, index, torch.zeros_like(index))
    inputs = {"normal": noise.normal(data.shape, draw=NORMAL_DRAW).to(data.x)}
    if box is not None:
        lo, hi = box
        uniform = noise.uniform(data.shape, draw=UNIFORM_DRAW) * (hi - lo) + lo
        inputs["uniform"] = uniform.to(data.x).clamp(lo, hi)
    return inputs | {"data": evenly(data, config.draws).x}


def _confidence(kind: str, reading: str, logits: Float[Tensor, "n classes"]) -> Confidence:
    p = logits.softmax(1) if reading == "softmax" else logits.sigmoid()
    greatest, label = p.max(1)
    sure = greatest > SURE
    return Confidence(
        kind=kind,
        reading=reading,
        n=len(p),
        share=sure.double().mean().item(),
        confidence=greatest[sure].mean().item() if sure.any() else None,
        mean=greatest.mean().item(),
        classes=tuple(torch.bincount(label[sure], minlength=p.shape[1]).tolist()),
    )
