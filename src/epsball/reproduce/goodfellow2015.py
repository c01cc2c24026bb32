"""Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572.

The paper's conventions: pixels in [0, 1], no clipping after the step, error over all test examples, confidence
averaged over the mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence

from epsball.reproduce.record import Experiment
from epsball.reproduce.sources import Source as Source
from epsball.reproduce.sources import mnist as mnist
from epsball.reproduce.threes_sevens import ThreesSevens as ThreesSevens
from epsball.reproduce.threes_sevens import threes_sevens as threes_sevens
from epsball.suggest import one_of

PAPER = "Goodfellow, Shlens and Szegedy (ICLR 2015), arXiv:1412.6572"
EXPERIMENTS: dict[str, Experiment] = {
    "threes-sevens": threes_sevens,
}


def chosen(only: Sequence[str] = ()) -> tuple[str, ...]:
    """The experiments of those names, once each; without any, all there are. Raises `BadInput` for an unknown one.

    >>> chosen(["threes-seven"])
    Traceback (most recent call last):
    epsball.errors.BadInput: `only` must be one of threes-sevens, got 'threes-seven'; did you mean 'threes-sevens'?
    """
    return tuple(dict.fromkeys(one_of("only", name, EXPERIMENTS) for name in only)) or tuple(EXPERIMENTS)
