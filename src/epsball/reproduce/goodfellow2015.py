"""Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572.

The paper's conventions: pixels in [0, 1], no clipping after the step, error over all test examples, confidence
averaged over the mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from epsball.reproduce.budget import Budget as Budget
from epsball.reproduce.controls import Controls as Controls
from epsball.reproduce.controls import controls as controls
from epsball.reproduce.nets import Nets as Nets
from epsball.reproduce.record import Experiment
from epsball.reproduce.sources import Source as Source
from epsball.reproduce.sources import mnist as mnist
from epsball.reproduce.threes_sevens import ThreesSevens as ThreesSevens
from epsball.reproduce.threes_sevens import threes_sevens as threes_sevens
from epsball.reproduce.training import Training as Training
from epsball.reproduce.training import training as training
from epsball.reproduce.transfer import Transfer as Transfer
from epsball.reproduce.transfer import transfer as transfer
from epsball.suggest import one_of


def _linear(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> ThreesSevens:
    """Threes against sevens needs no network."""
    return threes_sevens(nets.source, on_progress=on_progress)


PAPER = "Goodfellow, Shlens and Szegedy (ICLR 2015), arXiv:1412.6572"
EXPERIMENTS: dict[str, Experiment] = {
    "threes-sevens": _linear,
    "training": training,
    "controls": controls,
    "transfer": transfer,
}


def chosen(only: Sequence[str] = ()) -> tuple[str, ...]:
    """The experiments of those names, once each; without any, all there are. Raises `BadInput` for an unknown one.

    >>> chosen(["transfer", "training", "transfer"])
    ('transfer', 'training')
    """
    return tuple(dict.fromkeys(one_of("only", name, EXPERIMENTS) for name in only)) or tuple(EXPERIMENTS)
