"""Rubbish inputs: noise of no class, which a network calls a digit with confidence.

Goodfellow, Shlens and Szegedy (ICLR 2015), appendix A: of inputs drawn from N(0, I) a maxout network trained on MNIST
calls 98.35 % some class with p > .5, with a mean confidence of 92.8 %; softmax regression 59.8 % (70.8 %).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from epsball.common.noise import Noise
from epsball.explain.analyses.rubbish import NORMAL_DRAW, rubbish
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, Net, Nets
from epsball.reproduce.notes import about_stand_in, about_training
from epsball.reproduce.outcome import mean_of_known, percent
from epsball.reproduce.reproduction import Line, Reproduction, Strip
from epsball.reproduce.shallow import RBF, RECIPES, SOFTMAX
from epsball.reproduce.strips import predicted

PAPER = {PLAIN: (98.35, 92.8), SOFTMAX: (59.8, 70.8)}
"""In percent: inputs that are called some class with p > .5, the mean of that p."""
DRAWS = 10_000
SHOWN = 10


def rubbish_inputs(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction:
    """Draw inputs from N(0, I), and count how many of them the models call some class with p > .5.

    The models are those of `nets`, trained where they are not yet. `on_progress` is called with the steps done, the
    steps in total, and the name of the network in training. Raises `BadInput`.
    """
    deep, few = nets.trained(PAIR, on_progress), nets.trained(RECIPES, on_progress)
    groups = [{net.name: net for net in (*one, *other)} for one, other in zip(deep, few, strict=True)]
    lines = []
    for key, name in (
        (PLAIN, f"maxout, {PLAIN}"),
        (ADVERSARIAL, f"maxout, {ADVERSARIAL}"),
        (SOFTMAX, SOFTMAX),
        (RBF, RBF),
    ):
        found = [_called(nets, group[key]) for group in groups]
        ours = tuple(percent(mean_of_known([pair[at] for pair in found])) for at in (0, 1))
        lines.append(Line(name, ours, PAPER.get(key)))
    config = nets.config() | {"draws": DRAWS}
    notes = (
        *about_stand_in(config),
        f"{DRAWS:,} inputs drawn from N(0, I), whatever the range of the pixels; called a class: one has p > .5, by "
        f"softmax, and by its own p in the {RBF}; confidence: the mean of that p.",
        about_training(config),
    )
    index = torch.arange(SHOWN)
    shape = nets.source.test.shape
    drawn = Noise(0, index, torch.zeros_like(index)).normal(shape, draw=NORMAL_DRAW).to(nets.source.test.x)
    strips = tuple(
        Strip(f"as {name} sees it", shape, -2.0, 2.0, predicted(groups[0][key], drawn))
        for key, name in ((PLAIN, f"maxout, {PLAIN},"), (SOFTMAX, SOFTMAX), (RBF, f"the {RBF}"))
    )
    return Reproduction(
        title="Rubbish inputs: noise from N(0, I) that is called some class, in %",
        columns=("called a class", "confidence"),
        lines=tuple(lines),
        notes=notes,
        strips=strips,
        config=config,
    )


def _called(nets: Nets, net: Net) -> tuple[float, float | None]:
    found = rubbish(net.module, nets.source.test, nets.ball, draws=DRAWS, seed=net.seed)
    one = found.of("normal", net.readout.name)
    return one.share, one.confidence
