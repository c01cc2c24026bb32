"""Controls of adversarial training: noise of the same size, not chosen by the gradient, does next to nothing.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6: maxout networks trained on x + eps times coin flips err on 86.2 %
of their FGSM examples at eps = .25 (mean confidence 97.3 %), trained on noise uniform in [-eps, eps] on 90.4 %
(97.8 %): the inner product of noise and gradient is zero on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, Nets, Recipe
from epsball.reproduce.notes import about_conventions, about_stand_in, about_training
from epsball.reproduce.outcome import EPS, Outcome, mean_outcome, percent
from epsball.reproduce.reproduction import Line, Reproduction
from epsball.training.plain import Plain
from epsball.training.training_objective import Logged, TrainingObjective, TrainingStep

SIGN, UNIFORM = "trained on coin flips of ±eps", "trained on uniform noise"
PAPER = {PLAIN: (89.4, 97.6), SIGN: (86.2, 97.3), UNIFORM: (90.4, 97.8), ADVERSARIAL: (17.9, 81.4)}
"""Error on the network's own FGSM examples at eps .25, mean confidence in those mistakes, in percent."""
KINDS = ("sign", "uniform")


@dataclass(frozen=True, kw_only=True)
class NoiseTraining(TrainingObjective):
    """Mean cross-entropy at noisy points of the ball, drawn anew at each step.

    `kind` "sign" takes the ball's maximiser of random signs, which in the max norm is x + eps times coin flips;
    "uniform" takes a uniform point of the ball. Logs "loss" and "accuracy", at the noisy points.
    """

    kind: str

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, KINDS)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *shape"],
        y: Int64[Tensor, " n"],
        ball: Ball | None,
        step: TrainingStep,
    ) -> Logged:
        if ball is None:
            raise BadInput("`ball` must be given for NoiseTraining, got None; as in Linf(eps=0.25)")
        if self.kind == "sign":
            noisy = ball.argmax(step.noise.sign(x.shape[1:], dtype=x.dtype), x)
        else:
            noisy = ball.sample(x, step.noise)
        return Plain()(model, noisy, y, None, step)


RECIPES: dict[str, Recipe] = {
    PLAIN: PAIR[PLAIN],
    SIGN: Recipe(objective=NoiseTraining(kind="sign")),
    UNIFORM: Recipe(objective=NoiseTraining(kind="uniform")),
    ADVERSARIAL: PAIR[ADVERSARIAL],
}


@dataclass(frozen=True)
class ControlNetwork(Record):
    """One network, clean and on its own FGSM examples."""

    name: str
    seed: int
    seconds: float
    clean: Outcome
    fgsm: Outcome


@dataclass(frozen=True, kw_only=True)
class Controls(Reproduction):
    """What `controls` found."""

    networks: tuple[ControlNetwork, ...]

    def of(self, name: str) -> tuple[ControlNetwork, ...]:
        """The networks of that name, one per seed."""
        return tuple(net for net in self.networks if net.name == name)

    def summary(self) -> dict[str, Any]:
        """All figures, as JSON can hold them."""
        paper = {name: dict(zip(self.columns[1:], values, strict=True)) for name, values in PAPER.items()}
        return {"paper": paper, "networks": [net.to_record() for net in self.networks], "config": self.config}


def controls(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Controls:
    """Train maxout networks on noise; count their errors on FGSM examples beside the plain and the trained network's.

    Networks of `nets` that are trained already are used again; all have equal budgets. `on_progress` is called with the
    steps done, the steps in total, and the name of the network in training. Raises `BadInput`.
    """
    networks = tuple(
        ControlNetwork(
            name=net.name,
            seed=net.seed,
            seconds=net.seconds,
            clean=nets.outcome(net, nets.source.test.x),
            fgsm=nets.outcome(net, nets.fgsm(net)),
        )
        for group in nets.trained(RECIPES, on_progress)
        for net in group
    )
    config, lines = nets.config(), []
    for name in RECIPES:
        own = [net for net in networks if net.name == name]
        clean, fgsm = mean_outcome([net.clean for net in own]), mean_outcome([net.fgsm for net in own])
        ours = tuple(map(percent, (clean.error, fgsm.error, fgsm.confidence)))
        lines.append(Line(name, ours, (None, *PAPER[name]) if config["eps"] == EPS else None))
    return Controls(
        title=f"Controls: training on noise of eps {config['eps']:g} instead of FGSM examples: error in %",
        columns=("clean", "FGSM", "confidence"),
        lines=tuple(lines),
        notes=(*about_stand_in(config), about_conventions(config), about_training(config)),
        config=config,
        networks=networks,
    )
