"""Controls of adversarial training: noise of the same size, not chosen by the gradient, does next to nothing.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6: maxout networks trained on x + eps times coin flips err on 86.2 %
of their FGSM examples at eps = .25 (mean confidence 97.3 %), trained on noise uniform in [-eps, eps] on 90.4 %
(97.8 %): the inner product of noise and gradient is zero on average.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, Nets, Recipe, conventions, mean, percent, spent, stand_in
from epsball.reproduce.record import Line
from epsball.reproduce.threes_sevens import EPS, Outcome
from epsball.training.plain import Plain
from epsball.training.training_objective import TrainingObjective, TrainingStep

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
    ) -> dict[str, Tensor | float]:
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
class Control:
    """One network, clean and at its own FGSM examples."""

    said: str
    seed: int
    seconds: float
    clean: Outcome
    fgsm: Outcome


@dataclass(frozen=True)
class Controls:
    """What `controls` found."""

    networks: tuple[Control, ...]
    config: dict[str, Any]

    def of(self, said: str) -> tuple[Control, ...]:
        """The networks of that name, one per seed."""
        return tuple(net for net in self.networks if net.said == said)

    def mean(self, said: str) -> tuple[Outcome, Outcome]:
        """Clean and at FGSM examples, the mean over the seeds."""
        nets = self.of(said)
        return mean([net.clean for net in nets]), mean([net.fgsm for net in nets])

    @property
    def title(self) -> str:
        """What was done."""
        return f"Controls: training on noise of eps {self.config['eps']:g} instead of FGSM examples: error in %"

    @property
    def heads(self) -> tuple[str, ...]:
        """What the columns of `lines` are."""
        return ("clean", "FGSM", "confidence")

    @property
    def lines(self) -> tuple[Line, ...]:
        """Our figures and the paper's, in percent."""
        found = []
        for said in RECIPES:
            clean, fgsm = self.mean(said)
            ours = tuple(map(percent, (clean.error, fgsm.error, fgsm.confidence)))
            found.append(Line(said, ours, (None, *PAPER[said]) if self.config["eps"] == EPS else None))
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know to compare."""
        return (*stand_in(self.config), conventions(self.config), spent(self.config))

    def summary(self) -> dict[str, Any]:
        """All figures, as JSON can hold them."""
        paper = {said: dict(zip(self.heads[1:], values, strict=True)) for said, values in PAPER.items()}
        return {"paper": paper, "networks": [asdict(net) for net in self.networks], "config": self.config}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(self.summary(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Controls:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        networks = tuple(
            Control(**net | {name: Outcome(**net[name]) for name in ("clean", "fgsm")}) for net in record["networks"]
        )
        return cls(networks=networks, config=record["config"])

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: bars of error and confidence, the paper's beside ours."""
        from epsball.reproduce.measured_pictures import draw_measured

        draw_measured(self, path)


def controls(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Controls:
    """Train maxout networks on noise, and count their errors on FGSM examples beside those of the plain and trained.

    The networks are those of `nets`, trained where they are not yet, with equal budgets. `on_progress` is called with
    the steps made, those of all, and what is trained. Raises `BadInput`.
    """
    found = tuple(
        Control(
            said=net.said,
            seed=net.seed,
            seconds=net.seconds,
            clean=nets.outcome(net, nets.source.test.x),
            fgsm=nets.outcome(net, nets.moved(net)),
        )
        for group in nets.trained(RECIPES, on_progress)
        for net in group
    )
    return Controls(found, nets.config())
