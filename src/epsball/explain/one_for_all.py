"""Universal: one perturbation for all examples, made on some of them and shown to others.

Moosavi-Dezfooli et al., "Universal adversarial perturbations" (CVPR 2017); Goodfellow, Shlens and Szegedy (ICLR 2015),
section 8, give the cause: models are near to linear, so that examples share the directions that fool them. Measured by
radius on the model; and by dimension on networks that are trained on the same images at several sizes, several at each,
since networks of one size differ by more than most sizes do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.explain.climb import Maker, Shared
from epsball.explain.dimension import at_side
from epsball.explain.networks import trained
from epsball.explain.record import box_of, class_names, evenly, halves, name_of, percent, radius_of, said, versions
from epsball.problem.objective import Model

SIDES = (7, 14, 28)
NETWORK = "small-mlp"
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""The radii, in units of the ball's."""


@dataclass(frozen=True)
class Universal:
    """What `universal` found: by radius on the model, and by size of the image on several networks trained at each.

    `perturbation` and `example` are flat, of `config["shape"]`: the one made at the ball's radius, and the first of the
    examples that it fools (else the first).
    """

    radii: tuple[Shared, ...]
    sizes: tuple[tuple[Shared, ...], ...]
    perturbation: tuple[float, ...]
    example: tuple[float, ...]
    config: dict[str, Any]

    @property
    def at_ball(self) -> Shared:
        """The perturbation at the ball's own radius."""
        return next(one for one in self.radii if one.eps == self.config["eps"])

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        one = self.at_ball
        said = (
            f"One perturbation within {self.config['said']} fools {percent(one.held)} of the {one.right:,} rightly "
            f"classified examples that it was not made on, its own values in random places {percent(one.noise)} and a "
            f"step of FGSM for each example {percent(one.each)}"
        )
        if one.held > 0:
            name = name_of(self.config["names"], one.dominant)
            said += f"; {percent(one.dominant_share)} of the fooled become {name!r}"
        if len(self.sizes) < 2:
            return said + "."
        first, last = (_spread([one.held for one in size]) for size in (self.sizes[0], self.sizes[-1]))
        return (
            f"{said}. On {self.config['networks']} networks trained at each size it is {first} in "
            f"{self.sizes[0][0].n:,} dimensions and {last} in {self.sizes[-1][0].n:,}."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the images, as JSON can hold them."""
        found = asdict(self)
        return {"sentence": self.sentence} | {name: found[name] for name in ("radii", "sizes", "config")}

    def to_json(self) -> str:
        """As JSON, with the images; `from_json` gives an equal record."""
        images = {"perturbation": self.perturbation, "example": self.example}
        return json.dumps(self.summary() | images, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Universal:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        return cls(
            radii=tuple(Shared(**one) for one in record["radii"]),
            sizes=tuple(tuple(Shared(**one) for one in size) for size in record["sizes"]),
            perturbation=tuple(record["perturbation"]),
            example=tuple(record["example"]),
            config=record["config"],
        )

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: shares against eps and against dimension, and the perturbation itself."""
        from epsball.explain.pictures_attacks import draw_universal

        draw_universal(self, path)


def universal(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    train: Examples | None = None,
    eps: Sequence[float] | None = None,
    sides: Sequence[int] | None = None,
    steps: int = 20,
    networks: int = 3,
    training_steps: int = 400,
    rows: int = 1000,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 512,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Universal:
    """Make one perturbation for many images, and count how many others it fools.

    `model` is a torch module or a callable x -> logits; `ball` has one radius, and a box and a mask that are the same
    for all examples. The perturbation is made in two climbs of `steps` passes over at most `rows` examples of `train`
    (default: every second of each class of `data`, which are then not counted), and shown to at most `rows` of `data`,
    clipped to the box. `eps` are the radii (default: the ball's times `FACTORS`), to which the ball's is added. For
    `sides` (default: `SIDES` for images in a box of numbers without a mask, none for anything else) the images are
    resized as in `growth`; at each size `networks` small-mlps, of `seed` and the seeds after it, are trained for
    `training_steps` steps on the examples that a perturbation is then made on for each. The control are `draws` random
    orders of the values of the perturbation. `on_progress` is called with the count of finished radii and sizes, that
    of all, and what is next. The model comes back as it was.

    Raises `BadInput` for a ball that differs between examples, `sides` where there are no images, fewer than two
    examples, and images of which the model is right about none.

    A linear model falls to one step for all, which its own values in random places are not:

    >>> import torch
    >>> from epsball.balls.linf import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> x = torch.rand(40, 100, generator=torch.Generator().manual_seed(0))
    >>> sides = torch.ones(100).index_fill(0, torch.arange(50), -1.0)
    >>> found = universal(lambda x: 20 + x @ sides, from_arrays(x, torch.ones(40).long()), Linf(eps=0.4))
    >>> found.at_ball.held, found.at_ball.noise
    (1.0, 0.0)
    """
    for name, value, least in (
        ("steps", steps, 1),
        ("networks", networks, 1),
        ("training_steps", training_steps, 1),
        ("rows", rows, 1),
        ("draws", draws, 1),
        ("batch_size", batch_size, 1),
    ):
        check_whole(name, value, least)
    radius, phrase = radius_of(ball), said(ball)
    radii = sorted({radius, *(float(part) for part in eps)}) if eps is not None else [f * radius for f in FACTORS]
    if not all(0 < part < math.inf for part in radii):
        raise BadInput(f"`eps` must be radii > 0 and finite, got {radii}; write for example (0.05, 0.1)")
    images = data.x.ndim in (3, 4)
    plain = not any(isinstance(part, Tensor) for part in (ball.lo, ball.hi, ball.mask))
    sides = (SIDES if images and plain else ()) if sides is None else tuple(sides)
    if sides and not (images and plain):
        raise BadInput(
            f"`sides` must be left out unless the examples are images, in a box of numbers and without a mask, got "
            f"{sides} for examples of shape {data.shape}; write sides=()"
        )
    for side in sides:
        check_whole("sides", side, 1)
    if train is None:
        if len(data) < 2:
            raise BadInput(f"`data` must hold at least two examples, got {len(data)}; or give `train`")
        train, data = halves(data)
    fitted, held = evenly(train, rows), evenly(data, rows)
    make = Maker(steps, draws, seed, batch_size)
    total, by_radius, by_size, at_ball = len(radii) + len(sides), [], [], None

    def tell(note: str) -> None:
        if on_progress is not None:
            on_progress(len(by_radius) + len(by_size), total, note)

    for each in radii:
        tell(f"eps {each:.3g}")
        one, delta, example = make(model, fitted, held, ball.with_eps(each))
        by_radius.append(one)
        if each == radius:
            at_ball = (delta, example)
    for side in sides:
        tell(f"{side} x {side}")
        small, others = at_side(fitted, side), at_side(held, side)
        models = (trained(NETWORK, small, steps=training_steps, seed=seed + k) for k in range(networks))
        by_size.append(tuple(make(net, small, others, ball)[0] for net in models))
    tell("")
    assert at_ball is not None  # the ball's radius is among them
    box = box_of(ball)
    config = {
        "model": fingerprint.of_model(model),
        "data": data.name,
        "shape": list(data.shape),
        "fitted_rows": len(fitted),
        "held_rows": len(held),
        "names": list(class_names(data)),
        "ball": fingerprint.described(ball),
        "said": phrase,
        "eps": radius,
        "box": None if box is None else list(box),
        "steps": steps,
        "draws": draws,
        "sides": list(sides),
        "network": NETWORK,
        "networks": networks,
        "training_steps": training_steps,
        "seed": seed,
        "versions": versions(),
    }
    delta, example = (tuple(part.double().flatten().tolist()) for part in at_ball)
    return Universal(tuple(by_radius), tuple(by_size), delta, example, config)


def _spread(shares: Sequence[float]) -> str:
    """The mean, and where there are several the least and the greatest.

    >>> _spread([0.25]), _spread([0.25, 0.75])
    ('25.0 %', '50.0 % (25.0 to 75.0 %)')
    """
    mean = percent(sum(shares) / len(shares))
    return mean if len(shares) == 1 else f"{mean} ({100 * min(shares):.1f} to {percent(max(shares))})"
