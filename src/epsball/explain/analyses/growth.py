"""The gain of a small step grows with the dimension: eps * m * n, measured, with the usual objection beside it.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 3: moving every coordinate of x by eps along sign(w) changes the
activation w.x by eps |w|_1 = eps * m * n, m the mean of |w|. The objection: the clean activation grows too. So both are
measured, with weights that are drawn and with weights that are trained, on the same images at several sizes.

With random signs the clean activation grows like sqrt(n) and the ratio with it; with weights that have a mean it keeps
up; trained weights of a fixed penalty shrink, so that eps * m * n grows far slower than n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import sklearn
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.record import Record
from epsball.data.examples import Examples
from epsball.explain.config import GrowthConfig, Progress, configured, silent
from epsball.explain.finding import Finding, exponent, made_of, percent
from epsball.explain.inputs import check_images, classes_of_pair, halves
from epsball.explain.resize import blocks, channels

KINDS = {
    "normal": "drawn from N(0, 1)",
    "shifted": "drawn from N(1, 1)",
    "trained": "trained, logistic regression",
}
"""The weights: of mean zero, of mean one, and those of a classifier trained at that size."""
FITTED = ("m", "measured", "boxed", "clean", "spread", "per_clean", "per_spread")
"""The quantities whose exponents of n are in the summary."""


@dataclass(frozen=True)
class GrowthAtSize(Record):
    """One size of image and one kind of weights; means over the examples and, where weights are drawn, the draws.

    `n` = channels * side^2 coordinates, `m` the mean of |w|. `predicted` = eps * m * n; `measured` = w.(x_adv - x) at
    x_adv = x + eps sign(w), `boxed` the same at the best point inside the data's box. `clean` is the mean of
    |w.x + b|, `spread` the standard deviation of w.x over the examples. For trained weights `accuracy` is that on the
    clean examples, `fgsm_accuracy` and `fgsm_boxed` that on their FGSM examples without and with the box, all from 0
    to 1; for drawn weights they are None.
    """

    derived: ClassVar = ("per_clean", "per_spread")

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


@dataclass(frozen=True, kw_only=True)
class Growth(Finding):
    """What `growth` measured, per kind of weights and size of image."""

    derived: ClassVar = ("exponents",)

    sizes: tuple[GrowthAtSize, ...]

    def of(self, weights: str) -> tuple[GrowthAtSize, ...]:
        """The sizes of one kind of weights, "normal", "shifted" or "trained", by dimension."""
        return tuple(sorted((size for size in self.sizes if size.weights == weights), key=lambda size: size.n))

    def exponent(self, weights: str, quantity: str) -> float | None:
        """The p for which `quantity`, an attribute of `GrowthAtSize`, grows like n^p; None where there is no fit."""
        sizes = self.of(weights)
        return exponent([size.n for size in sizes], [getattr(size, quantity) for size in sizes])

    @property
    def exponents(self) -> dict[str, Any]:
        """The exponents of n by kind of weights and quantity, None where they cannot be fitted."""
        return {kind: {name: self.exponent(kind, name) for name in FITTED} for kind in KINDS if self.of(kind)}

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
            f"{percent(trained[-1].accuracy)} to {percent(trained[-1].fgsm_accuracy)}."
        )


@configured(GrowthConfig)
def growth(
    examples: Examples, *, config: GrowthConfig, train: Examples | None = None, on_progress: Progress = silent
) -> Growth:
    """Measure the change eps * m * n of a linear activation, and what it is to be compared with, size by size.

    `examples` are images (c, h, w) or (h, w) in the box of their `lo` and `hi`, resized to side x side for each of
    `sides`: by the mean over areas (`area` of torch's `interpolate`) where no side grows, else bilinearly. `eps` > 0 is
    in their units. The measurements are made in float64 on at most `rows` of the two classes `pair` (default: 3 and
    7, the paper's, where the data have them, else the two smallest labels), half of each. Weights: `draws` vectors
    of N(0, 1) and of N(1, 1), new ones for each size, keyed by `seed`; and scikit-learn's LogisticRegression at `C`,
    trained at each size on at most `fit_rows` examples of the pair from `train` (default: every second of `examples`
    of each class, which are then not measured). `on_progress` is called with the count of finished (size, weights),
    that of all, and what is next.

    Raises `BadInput` where the examples are no images, or one of the pair is not among them.

    >>> from epsball.data.load import load_data
    >>> found = growth(load_data("digits"), eps=0.1, sides=(4, 8, 16), draws=4)
    >>> [(size.n, round(size.predicted - size.measured, 9)) for size in found.of("normal")]
    [(16, 0.0), (64, 0.0), (256, 0.0)]
    >>> round(found.exponent("shifted", "measured"), 1), round(found.exponent("shifted", "per_clean"), 1)
    (1.0, 0.0)
    """
    if train is None:
        train, examples = halves(examples)
    check_images(examples=examples, train=train)
    pair = classes_of_pair(examples, config.pair)
    measured = _balanced("examples", examples, pair, config.rows)
    fitted = _balanced("train", train, pair, config.fit_rows)
    total, found = len(config.sides) * len(KINDS), []
    for side in config.sides:
        for kind in KINDS:
            on_progress(len(found), total, f"{side} x {side}, {kind}")
            if kind == "trained":
                weight, bias = _trained(fitted, side, pair, config.C)
            else:
                weight, bias = _drawn(kind, channels(measured) * side**2, config, side), 0.0
            found.append(_at_size(kind, side, (weight, bias), measured, pair, config.eps))
    on_progress(total, total, "")
    more = {"shape": examples.shape, "box": (measured.lo, measured.hi), "pair": pair, "fit_rows": len(fitted)}
    made = made_of(None, measured, None, config, resize="area where no side grows, else bilinear", **more)
    made["versions"] |= {"scikit-learn": sklearn.__version__}
    return Growth(sizes=tuple(found), config=made)


def _at_size(
    kind: str,
    side: int,
    classifier: tuple[Float[Tensor, "k d"], float],
    data: Examples,
    pair: tuple[int, int],
    eps: float,
) -> GrowthAtSize:
    weight, bias = classifier
    free, box = Linf(eps=eps), Linf(eps=eps, lo=data.lo, hi=data.hi)
    scores, changes, changes_in_box, attacked, attacked_in_box = [], [], [], [], []
    for x, y in blocks(data, side):
        scores.append(x @ weight.T + bias)
        gains = [[ball.max_gain(w.expand_as(x), x) for w in weight] for ball in (free, box)]
        changes.append(torch.stack(gains[0], 1))
        changes_in_box.append(torch.stack(gains[1], 1))
        if kind == "trained":
            sign = torch.where(y == pair[1], 1.0, -1.0).double()
            for ball, correct in ((free, attacked), (box, attacked_in_box)):
                x_adv = ball.argmax(-sign[:, None] * weight, x)  # the sign of the loss's gradient, whatever its size
                correct.append((x_adv @ weight[0] + bias > 0) == (sign > 0))
    score, m = torch.cat(scores), weight.abs().mean().item()
    found = GrowthAtSize(
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
        return found
    clean = (score[:, 0] > 0) == (data.y == pair[1])
    shares = (part.double().mean().item() for part in (clean, torch.cat(attacked), torch.cat(attacked_in_box)))
    return replace(found, **dict(zip(("accuracy", "fgsm_accuracy", "fgsm_boxed"), shares, strict=True)))


def _drawn(kind: str, d: int, config: GrowthConfig, side: int) -> Float[Tensor, "k d"]:
    index = torch.arange(config.draws)
    noise = Noise(config.seed, index, torch.zeros_like(index))
    weight = noise.normal((d,), step=side, draw=list(KINDS).index(kind), dtype=torch.float64)
    return weight + 1 if kind == "shifted" else weight


def _trained(data: Examples, side: int, pair: tuple[int, int], C: float) -> tuple[Float[Tensor, "1 d"], float]:
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([x for x, _ in blocks(data, side)])
    model = LogisticRegression(C=C, max_iter=2000).fit(x.numpy(), (data.y == pair[1]).cpu().numpy())
    return torch.from_numpy(model.coef_), float(model.intercept_[0])


def _balanced(name: str, data: Examples, pair: tuple[int, int], rows: int) -> Examples:
    """The first rows / 2 examples of each of the two classes, in their order."""
    parts = [(data.y == label).nonzero().squeeze(1)[: rows // 2] for label in pair]
    if any(len(part) == 0 for part in parts):
        raise BadInput(f"`{name}` must hold both classes of the pair {pair}, got {data.y.unique().tolist()}")
    return data.rows(torch.cat(parts).sort().values)
