"""The networks of the paper's experiments: each is trained once, and evaluated on the test examples.

By default they are the maxout networks of Goodfellow et al. (ICML 2013) for MNIST, see `epsball.models.builtin.maxout`.
All networks of a kind are trained alike: the same initial weights, order of the data, steps and learning rates for
each seed, and the last weights.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.attacks.fgsm import FGSM
from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.models.frozen import frozen
from epsball.models.registry import build
from epsball.problem.losses import Loss, cross_entropy
from epsball.reproduce.budget import BATCH, RATE, Budget
from epsball.reproduce.outcome import EPS, Outcome, outcome_of
from epsball.reproduce.sources import Source
from epsball.training.fgsm_mix import FGSMMix
from epsball.training.fit import fit
from epsball.training.fit_result import Progress
from epsball.training.plain import Plain
from epsball.training.training_objective import TrainingObjective

PIECES = 5
ROWS = 1000
"""Test examples in a batch."""
PLAIN, ADVERSARIAL = "plain", "adversarially trained"

OnProgress = Callable[[int, int, str], None]


def softmax(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """The classes' probabilities, which sum to 1."""
    return F.softmax(logits, 1)


@dataclass(frozen=True)
class Readout:
    """What a network's outputs mean: the loss that its attacker climbs, and the probability of each class.

    `name` is that of the probabilities in `epsball.explain.analyses.rubbish.READINGS`.
    """

    name: str = "softmax"
    loss: Loss = cross_entropy
    probabilities: Callable[[Tensor], Tensor] = softmax


SOFTMAX = Readout()


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network in eval mode: its name, its seed, the wall time of its training."""

    name: str
    seed: int
    module: nn.Module
    seconds: float
    readout: Readout = SOFTMAX


@dataclass(frozen=True, eq=False)
class Nets:
    """The networks of one run: `trained` trains those that are not trained yet.

    `source` holds the examples, `budget` says how much is spent, `eps` >= 0 is the radius of attack and training in the
    units of the pixels. `colours` are the networks on CIFAR-10, None where that is not available.
    """

    source: Source
    budget: Budget = field(default_factory=Budget)
    eps: float = EPS
    colours: Nets | None = None
    _trained: dict[tuple[str, int], Net] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.eps < float("inf"):
            raise BadInput(f"`eps` must be >= 0 and finite, got {self.eps}; the paper's is 0.25")

    @property
    def ball(self) -> Linf:
        """The paper's ball: the pixels' box does not bound it."""
        return Linf(eps=self.eps)

    @property
    def epochs(self) -> int:
        """Epochs of each training."""
        return self.budget.epochs_for(len(self.source.train))

    @property
    def seeds(self) -> range:
        """The seeds of the networks of each kind."""
        return range(self.budget.of("seeds"))

    def trained(
        self, recipes: dict[str, Recipe], on_progress: OnProgress | None = None, *, seeds: range | None = None
    ) -> tuple[tuple[Net, ...], ...]:
        """For each of `seeds` (default: the budget's) one network of each recipe, in the order of the recipes.

        `on_progress` is called with the steps done, the steps in total, and the name of the network in training.
        """
        seeds = self.seeds if seeds is None else seeds
        wanted = [(name, seed) for seed in seeds for name in recipes]
        missing = [key for key in wanted if key not in self._trained]
        for done, (name, seed) in enumerate(missing):
            note = name if len(seeds) == 1 else f"{name}, seed {seed}"

            def report(now: Progress, done: int = done, note: str = note) -> None:
                if on_progress is not None:
                    on_progress(done * now.steps + now.step, len(missing) * now.steps, note)

            self._trained[name, seed] = self._train(name, recipes[name], seed, report)
        count = len(recipes)
        nets = [self._trained[key] for key in wanted]
        return tuple(tuple(nets[at : at + count]) for at in range(0, len(nets), count))

    def _train(self, name: str, recipe: Recipe, seed: int, report: Callable[[Progress], None]) -> Net:
        module, began = recipe.build(self, seed), time.perf_counter()
        fit(
            module,
            self.source.train,
            self.ball,
            objective=recipe.objective,
            epochs=self.epochs,
            batch_size=BATCH,
            lr=recipe.lr,
            accelerate=False,  # which network is the faster one is found by a clock, and they differ in the last bits
            seed=seed,
            progress=report,
        )
        seconds = round(time.perf_counter() - began, 1)
        return Net(name, seed, module.eval().requires_grad_(False), seconds, recipe.readout)

    def fgsm(self, net: Net, ball: Linf | None = None) -> Float[Tensor, "n *shape"]:
        """All test examples at x + eps sign(grad_x J) of that network, not clipped; `ball` gives another radius."""
        test, ball, attack = self.source.test, self.ball if ball is None else ball, FGSM(loss=net.readout.loss)
        parts = zip(test.x.split(ROWS), test.y.split(ROWS), strict=True)
        return torch.cat([attack(net.module, x, y, ball) for x, y in parts])

    def outcome(self, net: Net, x: Float[Tensor, "n *shape"]) -> Outcome:
        """How a network does on all test examples, perturbed to `x`."""
        return outcome_of(probabilities_of(net, x), self.source.test.y)

    def config(self) -> dict[str, Any]:
        """Data, budget and versions, as JSON can hold them."""
        train, test = self.source.train, self.source.test
        return {
            "eps": self.eps,
            "box": [test.lo, test.hi],
            "data": test.name,
            "stands_in": self.source.stands_in,
            "shape": list(test.shape),
            "train_rows": len(train),
            "test_rows": len(test),
            "units": self.budget.of("units"),
            "pieces": PIECES,
            "dropout": self.budget.of("dropout"),
            "epochs": self.epochs,
            "batch_size": BATCH,
            "optimizer": f"adam, one-cycle, learning rate up to {RATE:g}",
            "seeds": list(self.seeds),
            "threads": torch.get_num_threads(),
            "versions": {"epsball": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }


def maxout(nets: Nets, seed: int) -> nn.Module:
    """A fresh maxout network of the budget's size for the examples."""
    train, budget = nets.source.train, nets.budget
    spec = f"maxout:units={budget.of('units')},pieces={PIECES},dropout={budget.of('dropout')}"
    return build(spec, train.shape, train.classes, seed=seed)


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """How a network is made: built for the examples from a seed, and trained by an objective.

    `lr` is the largest learning rate of Adam.
    """

    objective: TrainingObjective
    lr: float = RATE
    build: Callable[[Nets, int], nn.Module] = maxout
    readout: Readout = SOFTMAX


PAIR: dict[str, Recipe] = {
    PLAIN: Recipe(objective=Plain()),
    ADVERSARIAL: Recipe(objective=FGSMMix(alpha=0.5)),
}
"""The paper's two networks: J(x), and J(x) / 2 + J(x_adv) / 2."""


def logits_of(module: nn.Module, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
    """The logits of all rows, in eval mode."""
    with torch.no_grad(), frozen(module):
        return torch.cat([module(rows) for rows in x.split(ROWS)])


def probabilities_of(net: Net, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
    """The probabilities of the classes, in double precision."""
    return net.readout.probabilities(logits_of(net.module, x).double())
