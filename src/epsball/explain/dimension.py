"""The gain of a small step grows with the dimension: eps * m * n, measured, with the usual objection beside it.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 3: moving every coordinate of x by eps along sign(w) changes the
activation w.x by eps |w|_1 = eps * m * n, m the mean of |w|. The objection: the clean activation grows too. So both are
measured, with weights that are drawn and with weights that are trained, on the same images at several sizes.

With random signs the clean activation grows like sqrt(n) and the ratio with it; with weights that have a mean it keeps
up; trained weights of a fixed penalty shrink, so that eps * m * n grows far slower than n.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import sklearn
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from epsball.balls.linf import Linf
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.examples import Examples
from epsball.explain.record import exponent, halves, or_none, percent, versions

SIDES = (7, 14, 28, 56, 112)
PAPERS_PAIR = (3, 7)
KINDS = {
    "normal": "drawn from N(0, 1)",
    "shifted": "drawn from N(1, 1)",
    "trained": "trained, logistic regression",
}
"""The weights: of mean zero, of mean one, and those of a classifier trained at that size."""
BLOCK = 1 << 22
"""Numbers of resized images that are held at a time."""


@dataclass(frozen=True)
class Rung:
    """One size of image and one kind of weights; means over the examples and, where weights are drawn, the draws.

    `n` = channels * side^2 coordinates, `m` the mean of |w|. `predicted` = eps * m * n; `measured` = w.(x_adv - x) at
    x_adv = x + eps sign(w), `boxed` the same at the best point inside the data's box. `clean` is the mean of
    |w.x + b|, `spread` the standard deviation of w.x over the examples. For trained weights `accuracy` is that on the
    clean examples, `fgsm_accuracy` and `fgsm_boxed` that on their FGSM examples without and with the box, all from 0
    to 1; for drawn weights they are None.
    """

    weights: str
    side: int
    n: int
    m: float
    predicted: float
    measured: float
    boxed: float
    clean: float
    spread: float
    accuracy: float | None = None
    fgsm_accuracy: float | None = None
    fgsm_boxed: float | None = None

    @property
    def per_clean(self) -> float:
        """The change in units of the clean activation."""
        return self.measured / self.clean if self.clean else math.inf

    @property
    def per_spread(self) -> float:
        """The change in units of the activation's standard deviation over the data."""
        return self.measured / self.spread if self.spread else math.inf


@dataclass(frozen=True)
class Growth:
    """What `growth` measured: a rung per kind of weights and size; `config` says on what and with which versions."""

    rungs: tuple[Rung, ...]
    config: dict[str, Any]

    def of(self, weights: str) -> tuple[Rung, ...]:
        """The rungs of one kind of weights, "normal", "shifted" or "trained", by dimension."""
        return tuple(sorted((rung for rung in self.rungs if rung.weights == weights), key=lambda rung: rung.n))

    def exponent(self, weights: str, quantity: str) -> float | None:
        """The p for which `quantity`, an attribute of `Rung`, grows like n^p; None where there is no fit."""
        rungs = self.of(weights)
        return exponent([rung.n for rung in rungs], [getattr(rung, quantity) for rung in rungs])

    @property
    def sentence(self) -> str:
        """The answer, in one sentence, about the weights that were drawn from N(0, 1) and those that were trained."""
        drawn, trained = self.of("normal"), self.of("trained")
        first, last = drawn[0], drawn[-1]
        m = self.exponent("trained", "m")
        shrink = "" if m is None else f", whose mean size goes like n^{m:.2f}"
        return (
            f"From {first.n:,} to {last.n:,} dimensions a step of eps {self.config['eps']:g} changes a linear "
            f"activation by {first.per_clean:.3g} to {last.per_clean:.3g} times its clean size with weights drawn from "
            f"N(0, 1), and by {trained[0].per_clean:.3g} to {trained[-1].per_clean:.3g} times with trained "
            f"ones{shrink}; in {last.n:,} dimensions it takes their accuracy from "
            f"{percent(trained[-1].accuracy or 0)} to {percent(trained[-1].fgsm_accuracy or 0)}."
        )

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them; `exponents` are those of n, None where they cannot be fitted."""
        fitted = ("m", "measured", "boxed", "clean", "spread", "per_clean", "per_spread")
        exponents = {kind: {name: self.exponent(kind, name) for name in fitted} for kind in KINDS if self.of(kind)}
        ratios = [{"per_clean": or_none(rung.per_clean), "per_spread": or_none(rung.per_spread)} for rung in self.rungs]
        rungs = [asdict(rung) | ratio for rung, ratio in zip(self.rungs, ratios, strict=True)]
        return {"sentence": self.sentence, "rungs": rungs, "exponents": exponents, "config": self.config}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(self.summary(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Growth:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        names = Rung.__dataclass_fields__
        rungs = tuple(Rung(**{name: rung[name] for name in names}) for rung in record["rungs"])
        return cls(rungs=rungs, config=record["config"])

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: change and clean activation against n, and below them their ratios."""
        from epsball.explain.pictures_growth import draw_growth

        draw_growth(self, path)


def growth(
    examples: Examples,
    *,
    eps: float = 0.1,
    sides: Sequence[int] = SIDES,
    train: Examples | None = None,
    pair: tuple[int, int] | None = None,
    seed: int = 0,
    draws: int = 32,
    rows: int = 500,
    fit_rows: int = 1000,
    C: float = 1.0,
    on_progress: Callable[[int, str], None] | None = None,
) -> Growth:
    """Measure the change eps * m * n of a linear activation, and what it is to be compared with, size by size.

    `examples` are images (c, h, w) or (h, w) in the box of their `lo` and `hi`, resized to side x side for each of
    `sides`: by the mean over areas (`area` of torch's `interpolate`) where no side grows, else bilinearly. `eps` > 0 is
    in their units. The measurements are made in float64 on at most `rows` of the two classes `pair` (default: 3 and
    7, the paper's, where the data have them, else the two smallest labels), half of each. Weights: `draws` vectors
    of N(0, 1) and of N(1, 1), new ones for each size, keyed by `seed`; and scikit-learn's LogisticRegression at `C`,
    trained at each size on at most `fit_rows` examples of the pair from `train` (default: every second of `examples`
    of each class, which are then not measured). `on_progress` is called with the count of finished (size, weights)
    and what is next.

    Raises `BadInput` where the examples are no images, or one of the pair is not among them.

    >>> from epsball.data.load import load_data
    >>> found = growth(load_data("digits"), eps=0.1, sides=(4, 8, 16), draws=4)
    >>> [(rung.n, round(rung.predicted - rung.measured, 9)) for rung in found.of("normal")]
    [(16, 0.0), (64, 0.0), (256, 0.0)]
    >>> round(found.exponent("shifted", "measured"), 1), round(found.exponent("shifted", "per_clean"), 1)
    (1.0, 0.0)
    """
    sides = tuple(sides)
    if not 0 < eps < math.inf:
        raise BadInput(f"`eps` must be > 0 and finite, got {eps}; write for example 0.1")
    for name, value, least in (("draws", draws, 1), ("rows", rows, 2), ("fit_rows", fit_rows, 2)):
        check_whole(name, value, least)
    if not sides:
        raise BadInput("`sides` must name at least one side length, got none; write for example (7, 14, 28)")
    for side in sides:
        check_whole("sides", side, 1)
    if not 0 < C < math.inf:
        raise BadInput(f"`C` must be > 0 and finite, got {C}; 1 is scikit-learn's default")
    if train is None:
        train, examples = halves(examples)
    for name, part in (("examples", examples), ("train", train)):
        if part.x.ndim not in (3, 4):
            raise BadInput(
                f"`{name}` must be images (c, h, w) or (h, w), got examples of shape {part.shape}; reshape x"
            )
    pair = classes_of_pair(examples, pair)
    measured, fitted = _balanced("examples", examples, pair, rows), _balanced("train", train, pair, fit_rows)
    rungs = []
    for side in sides:
        for kind in KINDS:
            if on_progress is not None:
                on_progress(len(rungs), f"{side} x {side}, {kind}")
            if kind == "trained":
                weight, bias = _trained(fitted, side, pair, C)
            else:
                d = resized(measured.x[:1], side).shape[1]
                weight, bias = _drawn(kind, draws, d, seed, side), 0.0
            rungs.append(_rung(kind, side, weight, bias, measured, pair, eps))
    if on_progress is not None:
        on_progress(len(rungs), "")
    config = {
        "eps": eps,
        "sides": list(sides),
        "data": examples.name,
        "shape": list(examples.shape),
        "box": [or_none(measured.lo), or_none(measured.hi)],
        "pair": list(pair),
        "rows": len(measured),
        "fit_rows": len(fitted),
        "resize": "area where no side grows, else bilinear",
        "draws": draws,
        "C": C,
        "seed": seed,
        "versions": versions() | {"scikit-learn": sklearn.__version__},
    }
    return Growth(rungs=tuple(rungs), config=config)


def resized(x: Float[Tensor, "n *shape"], side: int) -> Float[Tensor, "n d"]:
    """Images (n, c, h, w) or (n, h, w) as side x side, flat, in float64; no value leaves the range of its image.

    >>> resized(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), 1)
    tensor([[0.7500]], dtype=torch.float64)
    """
    images = (x if x.ndim == 4 else x[:, None]).double()
    if side <= min(images.shape[-2:]):
        small = F.interpolate(images, size=(side, side), mode="area")
    else:
        small = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    low, high = images.flatten(1).aminmax(dim=1, keepdim=True)
    return small.flatten(1).clamp(low, high)


def at_side(data: Examples, side: int) -> Examples:
    """The images at another size, (c, side, side), in their own precision and in the data's box."""
    channels = data.x.shape[1] if data.x.ndim == 4 else 1
    return replace(data, x=resized(data.x, side).reshape(len(data), channels, side, side).to(data.x))


def _rung(
    kind: str, side: int, weight: Float[Tensor, "k d"], bias: float, data: Examples, pair: tuple[int, int], eps: float
) -> Rung:
    free, box = Linf(eps=eps), Linf(eps=eps, lo=data.lo, hi=data.hi)
    scores, changes, changes_in_box, attacked, in_box = [], [], [], [], []
    for x, y in _blocks(data, side):
        scores.append(x @ weight.T + bias)
        gains = [[ball.max_gain(w.expand_as(x), x) for w in weight] for ball in (free, box)]
        changes.append(torch.stack(gains[0], 1))
        changes_in_box.append(torch.stack(gains[1], 1))
        if kind == "trained":
            up = torch.where(y == pair[1], 1.0, -1.0).double()
            for ball, found in ((free, attacked), (box, in_box)):
                x_adv = ball.argmax(-up[:, None] * weight, x)  # the sign of the loss's gradient, whatever its size
                found.append((x_adv @ weight[0] + bias > 0) == (up > 0))
    score, m = torch.cat(scores), weight.abs().mean().item()
    drawn = Rung(
        weights=kind,
        side=side,
        n=weight.shape[1],
        m=m,
        predicted=eps * m * weight.shape[1],
        measured=torch.cat(changes).mean().item(),
        boxed=torch.cat(changes_in_box).mean().item(),
        clean=score.abs().mean().item(),
        spread=score.std(0, correction=0).mean().item(),
    )
    if kind != "trained":
        return drawn
    right = (score[:, 0] > 0) == (data.y == pair[1])
    accuracy, fgsm, boxed = (part.double().mean().item() for part in (right, torch.cat(attacked), torch.cat(in_box)))
    return replace(drawn, accuracy=accuracy, fgsm_accuracy=fgsm, fgsm_boxed=boxed)


def _drawn(kind: str, draws: int, d: int, seed: int, side: int) -> Float[Tensor, "k d"]:
    index = torch.arange(draws)
    noise = Noise(seed, index, torch.zeros_like(index))
    weight = noise.normal((d,), step=side, draw=list(KINDS).index(kind), dtype=torch.float64)
    return weight + 1 if kind == "shifted" else weight


def _trained(data: Examples, side: int, pair: tuple[int, int], C: float) -> tuple[Float[Tensor, "1 d"], float]:
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([x for x, _ in _blocks(data, side)])
    model = LogisticRegression(C=C, max_iter=2000).fit(x.numpy(), (data.y == pair[1]).cpu().numpy())
    return torch.from_numpy(model.coef_), float(model.intercept_[0])


def _blocks(data: Examples, side: int) -> Iterator[tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]]:
    channels = data.x.shape[1] if data.x.ndim == 4 else 1
    size = max(1, BLOCK // (channels * side * side))
    for x, y in zip(data.x.split(size), data.y.split(size), strict=True):
        yield resized(x.cpu(), side), y.cpu()


def classes_of_pair(data: Examples, pair: tuple[int, int] | None) -> tuple[int, int]:
    there = data.y.unique().tolist()
    if len(there) < 2:
        raise BadInput(f"`examples` must hold at least two classes, got {there}; raise the limit")
    if pair is None:
        return PAPERS_PAIR if set(PAPERS_PAIR) <= set(there) else (there[0], there[1])
    if len(set(pair)) != 2 or not set(pair) <= set(there):
        raise BadInput(f"`pair` must be two different labels among {there}, got {pair}")
    return pair


def _balanced(name: str, data: Examples, pair: tuple[int, int], rows: int) -> Examples:
    """The first rows / 2 examples of each of the two classes, in their order."""
    parts = [(data.y == label).nonzero().squeeze(1)[: rows // 2] for label in pair]
    if any(len(part) == 0 for part in parts):
        raise BadInput(f"`{name}` must hold both classes of the pair {pair}, got {data.y.unique().tolist()}")
    return data.rows(torch.cat(parts).sort().values)
