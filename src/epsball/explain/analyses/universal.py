"""Universal: one perturbation for all examples, made on some of them and tested on others.

Moosavi-Dezfooli et al., "Universal adversarial perturbations" (CVPR 2017); Goodfellow, Shlens and Szegedy (ICLR 2015),
section 8, give the cause: models are near to linear, so that examples share the directions that fool them. Measured by
radius on the model; and by dimension on networks that are trained on the same images at several sizes, several at each,
since networks of one size differ by more than most sizes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.explain.config import Progress, UniversalConfig, configured, silent
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import box_of, class_names, evenly, halves, name_of, radii_of, radius_of
from epsball.explain.networks import trained
from epsball.explain.resize import at_side
from epsball.explain.shared_perturbation import PerturbationMaker, SharedPerturbation
from epsball.problem.objective import Model

SIDES = (7, 14, 28)
NETWORK = "small-mlp"
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""The radii, in units of the ball's."""


@dataclass(frozen=True, kw_only=True)
class Universal(Finding):
    """What `universal` found: by radius on the model, and by size of the image on several networks trained at each.

    `perturbation` and `example` are flat, of `config["shape"]`: the one made at the ball's radius, and the first of the
    examples that it fools (else the first).
    """

    details: ClassVar = ("perturbation", "example")

    radii: tuple[SharedPerturbation, ...]
    sizes: tuple[tuple[SharedPerturbation, ...], ...]
    perturbation: tuple[float, ...]
    example: tuple[float, ...]

    @property
    def at_ball(self) -> SharedPerturbation:
        """The perturbation at the ball's own radius."""
        return next(shared for shared in self.radii if shared.eps == self.config["eps"])

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        shared = self.at_ball
        text = (
            f"One perturbation within {self.config['ball_name']} fools {percent(shared.held_out)} of the "
            f"{shared.correct:,} correctly classified examples that it was not made on, its own values in random "
            f"places {percent(shared.noise)} and a step of FGSM for each example {percent(shared.per_example)}"
        )
        if shared.held_out > 0:
            name = name_of(self.config["names"], shared.dominant)
            text += f"; {percent(shared.dominant_share)} of the fooled become {name!r}"
        if len(self.sizes) < 2:
            return text + "."
        first, last = (_spread([shared.held_out for shared in size]) for size in (self.sizes[0], self.sizes[-1]))
        return (
            f"{text}. On {self.config['networks']} networks trained at each size it is {first} in "
            f"{self.sizes[0][0].n:,} dimensions and {last} in {self.sizes[-1][0].n:,}."
        )


@configured(UniversalConfig)
def universal(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    config: UniversalConfig,
    train: Examples | None = None,
    on_progress: Progress = silent,
) -> Universal:
    """Make one perturbation for many images, and count how many others it fools.

    `model` is a torch module or a callable x -> logits; `ball` has one radius, and a box and a mask that are the same
    for all examples. The perturbation is made by two gradient ascents of `steps` steps over at most `rows` examples of
    `train` (default: every second of each class of `data`, which are then not counted), and tested on at most `rows` of
    `data`, clipped to the box. `eps` are the radii (default: the ball's times `FACTORS`), to which the ball's is added.
    For `sides` (default: `SIDES` for images in a box of numbers without a mask, none for anything else) the images are
    resized as in `growth`; at each size `networks` small-mlps, of `seed` and the seeds after it, are trained for
    `training_steps` steps on the examples that a perturbation is then made on for each. The control are `draws` random
    orders of the values of the perturbation. `on_progress` is called with the count of finished radii and sizes, that
    of all, and what is next. The model comes back as it was.

    Raises `BadInput` for a ball that differs between examples, `sides` where there are no images, fewer than two
    examples, and images of which the model is right about none.

    One step for all fools a linear model on every example; the same values in random places fool it on none:

    >>> import torch
    >>> from epsball.balls.linf import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> x = torch.rand(40, 100, generator=torch.Generator().manual_seed(0))
    >>> sides = torch.ones(100).index_fill(0, torch.arange(50), -1.0)
    >>> found = universal(lambda x: 20 + x @ sides, from_arrays(x, torch.ones(40).long()), Linf(eps=0.4))
    >>> found.at_ball.held_out, found.at_ball.noise
    (1.0, 0.0)
    """
    radius = radius_of(ball)
    factors = (factor * radius for factor in FACTORS)
    radii = radii_of((radius, *(factors if config.eps is None else config.eps)))
    sides = _sides(config, data, ball)
    if train is None:
        if len(data) < 2:
            raise BadInput(f"`data` must hold at least two examples, got {len(data)}; or give `train`")
        train, data = halves(data)
    fitted, others = evenly(train, config.rows), evenly(data, config.rows)
    make = PerturbationMaker(config.steps, config.draws, config.seed, config.batch_size)
    total, by_radius, by_size = len(radii) + len(sides), {}, []
    for eps in radii:
        on_progress(len(by_radius), total, f"eps {eps:.3g}")
        by_radius[eps] = make(model, fitted, others, ball.with_eps(eps))
    for side in sides:
        on_progress(len(radii) + len(by_size), total, f"{side} x {side}")
        small, small_others = at_side(fitted, side), at_side(others, side)
        seeds = range(config.seed, config.seed + config.networks)
        models = (trained(NETWORK, small, steps=config.training_steps, seed=seed) for seed in seeds)
        by_size.append(tuple(make(net, small, small_others, ball)[0] for net in models))
    on_progress(total, total, "")
    more = {
        "fitted_rows": len(fitted),
        "held_out_rows": len(others),
        "names": class_names(data),
        "shape": data.shape,
        "box": box_of(ball),
    }
    return Universal(
        radii=tuple(shared for shared, _, _ in by_radius.values()),
        sizes=tuple(by_size),
        perturbation=nested(by_radius[radius][1].double().flatten()),
        example=nested(by_radius[radius][2].double().flatten()),
        config=made_of(model, others, ball, config, eps=radius, sides=sides, network=NETWORK, **more),
    )


def _sides(config: UniversalConfig, data: Examples, ball: Ball) -> tuple[int, ...]:
    """The side lengths to resize to. Raises `BadInput` where some are given and the data cannot be resized."""
    images = data.x.ndim in (3, 4) and not any(isinstance(part, Tensor) for part in (ball.lo, ball.hi, ball.mask))
    if config.sides is None:
        return SIDES if images else ()
    if config.sides and not images:
        raise BadInput(
            f"`sides` must be left out unless the examples are images, in a box of numbers and without a mask, got "
            f"{config.sides} for examples of shape {data.shape}; write sides=()"
        )
    return tuple(config.sides)


def _spread(shares: Sequence[float]) -> str:
    """The mean, and where there are several the least and the greatest.

    >>> _spread([0.25]), _spread([0.25, 0.75])
    ('25.0 %', '50.0 % (25.0 to 75.0 %)')
    """
    mean = percent(sum(shares) / len(shares))
    return mean if len(shares) == 1 else f"{mean} ({100 * min(shares):.1f} to {percent(max(shares))})"
