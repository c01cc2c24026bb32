"""The networks of the paper's experiments: each is trained once, and asked about test examples.

Where nothing else is said they are the maxout networks of Goodfellow et al. (ICML 2013) for MNIST, see
`epsball.models.builtin.maxout`. All of a kind are trained alike: the same first weights, order of the data, steps and
learning rates for each seed, and the last weights are kept.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.attacks.fgsm import FGSM
from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.models.registry import build
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import frozen
from epsball.reproduce.budget import BATCH, RATE, Budget
from epsball.reproduce.sources import STAND_IN, Source
from epsball.reproduce.threes_sevens import EPS, Outcome
from epsball.training.fgsm_mix import FGSMMix
from epsball.training.fit import fit
from epsball.training.fit_result import Progress
from epsball.training.plain import Plain
from epsball.training.training_objective import TrainingObjective

PIECES = 5
ROWS = 1000
"""Test examples that share a pass."""
PLAIN, ADVERSARIAL = "plain", "adversarially trained"

OnProgress = Callable[[int, int, str], None]


def softmax(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """The classes' probabilities, which sum to 1."""
    return F.softmax(logits, 1)


@dataclass(frozen=True)
class Reading:
    """What a network's outputs mean: the loss that its attacker climbs, and the probability of each class.

    `name` is that of the probabilities in `epsball.explain.analyses.rubbish.READINGS`.
    """

    name: str = "softmax"
    loss: Loss = cross_entropy
    probabilities: Callable[[Tensor], Tensor] = softmax


SOFTMAX = Reading()


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network: what it is called, its seed, the wall time of its training, in eval mode."""

    said: str
    seed: int
    module: nn.Module
    seconds: float
    reading: Reading = SOFTMAX


@dataclass(frozen=True, eq=False)
class Nets:
    """The networks of one run: `trained` trains those that are not there yet.

    `source` are the examples, `budget` says how much is spent, `eps` >= 0 is the radius of attack and training in the
    units of the pixels. `colours` are the networks on CIFAR-10, None where that is not there.
    """

    source: Source
    budget: Budget = field(default_factory=Budget)
    eps: float = EPS
    colours: Nets | None = None
    _known: dict[tuple[str, int], Net] = field(default_factory=dict)

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
        """The networks of those names, made by those recipes: for each of `seeds`, one of each, in their order.

        `on_progress` is called with the steps made, the steps of all, and what is trained. `seeds`: default those of
        the budget.
        """
        seeds = self.seeds if seeds is None else seeds
        wanted = [(said, seed) for seed in seeds for said in recipes]
        missing = [one for one in wanted if one not in self._known]
        for place, (said, seed) in enumerate(missing):
            note = said if len(seeds) == 1 else f"{said}, seed {seed}"

            def tell(now: Progress, place: int = place, note: str = note) -> None:
                if on_progress is not None:
                    on_progress(place * now.steps + now.step, len(missing) * now.steps, note)

            self._known[said, seed] = self._train(said, recipes[said], seed, tell)
        count = len(recipes)
        nets = [self._known[one] for one in wanted]
        return tuple(tuple(nets[at : at + count]) for at in range(0, len(nets), count))

    def _train(self, said: str, recipe: Recipe, seed: int, tell: Callable[[Progress], None]) -> Net:
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
            progress=tell,
        )
        seconds = round(time.perf_counter() - began, 1)
        return Net(said, seed, module.eval().requires_grad_(False), seconds, recipe.reading)

    def moved(self, net: Net, ball: Linf | None = None) -> Float[Tensor, "n *shape"]:
        """All test examples at x + eps sign(grad_x J) of that network, not clipped; `ball`: another radius."""
        test, ball, fgsm = self.source.test, self.ball if ball is None else ball, FGSM(loss=net.reading.loss)
        parts = zip(test.x.split(ROWS), test.y.split(ROWS), strict=True)
        return torch.cat([fgsm(net.module, x, y, ball) for x, y in parts])

    def outcome(self, net: Net, x: Float[Tensor, "n *shape"]) -> Outcome:
        """How a network does on all test examples, moved to `x`."""
        return outcome(shares_of(net, x), self.source.test.y)

    def config(self) -> dict[str, Any]:
        """What was done on what, as JSON can hold it."""
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
    reading: Reading = SOFTMAX


PAIR: dict[str, Recipe] = {
    PLAIN: Recipe(objective=Plain()),
    ADVERSARIAL: Recipe(objective=FGSMMix(alpha=0.5)),
}
"""The paper's two networks: J(x), and J(x) / 2 + J(x_adv) / 2."""


def logits_of(module: nn.Module, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
    """The logits of all rows, in eval mode."""
    with torch.no_grad(), frozen(module):
        return torch.cat([module(rows) for rows in x.split(ROWS)])


def shares_of(net: Net, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
    """The probabilities of the classes, in double precision."""
    return net.reading.probabilities(logits_of(net.module, x).double())


def outcome(shares: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Outcome:
    """The share predicted wrongly, and the mean probability of what is predicted there, from probabilities `shares`.

    >>> outcome(torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]).double(), torch.tensor([1, 1, 0]))
    Outcome(error=0.3333333333333333, confidence=0.5)
    """
    sure, predicted = shares.max(1)
    wrong = predicted != y
    confidence = float(sure[wrong].mean()) if wrong.any() else None
    return Outcome(error=float(wrong.double().mean()), confidence=confidence)


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean over networks; of the confidence, over those that make mistakes."""
    error = sum(one.error for one in outcomes) / len(outcomes)
    return Outcome(error=error, confidence=mean_of(one.confidence for one in outcomes))


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def percent(share: float | None) -> float | None:
    """A share in percent."""
    return None if share is None else 100 * share


def spent(config: dict[str, Any]) -> str:
    """A sentence that says what the networks are and what was spent on them."""
    seeds = len(config["seeds"])
    over = "" if seeds == 1 else f" The mean over {seeds} seeds."
    dropout = f"dropout {config['dropout']} %" if config["dropout"] else "no dropout"
    return (
        f"Our maxout networks: 2 x {config['units']:,} maxout units of {config['pieces']} pieces, {dropout}, "
        f"{seen(config)} in steps of {config['batch_size']}, "
        f"{config['optimizer']}: the same for all.{over} "
        "The paper trained with dropout 50 % until validation no longer improved: nearer with --full."
    )


def seen(config: dict[str, Any]) -> str:
    """What a network saw, as in "7 epochs of 60,000 images"."""
    return f"{config['epochs']} epoch{'s' if config['epochs'] > 1 else ''} of {config['train_rows']:,} images"


def conventions(config: dict[str, Any]) -> str:
    """A sentence on the paper's conventions."""
    return (
        f"FGSM: at x + eps sign(gradient), eps {config['eps']:g}, not clipped, as in the paper. Error over all "
        f"{config['test_rows']:,} test images; confidence: the mean over the mistakes on FGSM examples."
    )


def stand_in(config: dict[str, Any]) -> tuple[str, ...]:
    """A warning where the data are not the paper's."""
    return (f"{STAND_IN}: the paper's figures are not for them.",) if config["stands_in"] else ()
