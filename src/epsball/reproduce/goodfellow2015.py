"""Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572.

The paper's conventions: pixels in [0, 1], no clipping after the step, error over all test examples, confidence
averaged over the mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.reproduce.agreement import agreement
from epsball.reproduce.along import along
from epsball.reproduce.budget import Budget as Budget
from epsball.reproduce.cifar import EPS as CIFAR_EPS
from epsball.reproduce.cifar import cifar
from epsball.reproduce.controls import controls
from epsball.reproduce.ensemble import ensemble
from epsball.reproduce.nets import Nets as Nets
from epsball.reproduce.reproduction import Reproduction
from epsball.reproduce.rubbish_inputs import rubbish_inputs
from epsball.reproduce.shallow import shallow
from epsball.reproduce.sources import Source as Source
from epsball.reproduce.sources import cifar10 as cifar10
from epsball.reproduce.sources import mnist as mnist
from epsball.reproduce.threes_sevens import ThreesSevens, threes_sevens
from epsball.reproduce.training import training
from epsball.reproduce.transfer import transfer


class Experiment(Protocol):
    """An experiment of the paper. `nets` holds the examples, and what was trained for the experiments before.

    `on_progress` is called with what is done, of how many, and what is next. Raises `Missing`.
    """

    def __call__(self, nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction: ...


def _linear(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> ThreesSevens:
    """Threes against sevens needs no network."""
    return threes_sevens(nets.source, on_progress=on_progress)


PAPER = "Goodfellow, Shlens and Szegedy (ICLR 2015), arXiv:1412.6572"
EXPERIMENTS: dict[str, Experiment] = {
    "threes-sevens": _linear,
    "shallow": shallow,
    "cifar": cifar,
    "training": training,
    "controls": controls,
    "transfer": transfer,
    "along": along,
    "agreement": agreement,
    "ensemble": ensemble,
    "rubbish": rubbish_inputs,
}


def networks(digits: Source, images: Source | None = None, budget: Budget | None = None) -> Nets:
    """The networks of one run, on MNIST, and on CIFAR-10 where it is there."""
    budget = Budget() if budget is None else budget
    for name, source in (("digits", digits), ("images", images)):
        if source is not None and (source.test.x.ndim != 4 or not math.isfinite(source.test.hi - source.test.lo)):
            raise BadInput(
                f"`{name}` must be images (c, h, w) in a finite box, got {source.test.shape} of "
                f"[{source.test.lo}, {source.test.hi}]; give lo=0, hi=1"
            )
    own = replace(budget, epochs=budget.of("cifar_epochs"), dropout=budget.of("cifar_dropout"))
    colours = None if images is None else Nets(images, own, CIFAR_EPS)
    return Nets(digits, budget, colours=colours)


def chosen(only: Sequence[str] = ()) -> tuple[str, ...]:
    """The experiments of those names, once each; without any, all there are. Raises `BadInput` for an unknown one.

    >>> chosen(["transfer", "training", "transfer"])
    ('transfer', 'training')
    """
    return tuple(dict.fromkeys(check_one_of("only", name, EXPERIMENTS) for name in only)) or tuple(EXPERIMENTS)
