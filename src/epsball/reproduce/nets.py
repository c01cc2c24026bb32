"""The maxout networks of the paper's training experiments: each is trained once, and asked about test examples.

The networks are those of Goodfellow et al. (ICML 2013) for MNIST, see `epsball.models.builtin.maxout`. All are trained
alike: the same first weights, order of the data, steps and learning rates for each seed, and the last weights are kept.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball import __version__
from epsball.attacks.fgsm import FGSM
from epsball.balls import Linf
from epsball.errors import BadInput
from epsball.models import build
from epsball.objective import frozen
from epsball.reproduce.budget import BATCH, RATE, Budget
from epsball.reproduce.sources import Source
from epsball.reproduce.threes_sevens import EPS, Outcome
from epsball.training.fgsm_mix import FGSMMix
from epsball.training.fit import fit
from epsball.training.plain import Plain
from epsball.training.record import Progress
from epsball.training.step import TrainingObjective

PIECES = 5
ROWS = 1000
"""Test examples that share a pass."""
PLAIN, ADVERSARIAL = "plain", "adversarially trained"
PAIR: dict[str, TrainingObjective] = {PLAIN: Plain(), ADVERSARIAL: FGSMMix(alpha=0.5)}
"""The paper's two networks: J(x), and J(x) / 2 + J(x_adv) / 2."""

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network: what it is called, its seed, the wall time of its training, in eval mode."""

    said: str
    seed: int
    module: nn.Module
    seconds: float


@dataclass(frozen=True, eq=False)
class Nets:
    """The networks of one run: `trained` trains those that are not there yet.

    `source` are the examples, `budget` says how much is spent, `eps` >= 0 is the radius of attack and training in the
    units of the pixels.
    """

    source: Source
    budget: Budget = field(default_factory=Budget)
    eps: float = EPS
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

    def trained(
        self, objectives: dict[str, TrainingObjective], on_progress: OnProgress | None = None
    ) -> tuple[tuple[Net, ...], ...]:
        """The networks of those names, trained by those objectives: for each seed from 0, one of each, in their order.

        `on_progress` is called with the steps made, the steps of all, and what is trained.
        """
        wanted = [(said, seed) for seed in range(self.budget.seeds) for said in objectives]
        missing = [one for one in wanted if one not in self._known]
        for place, (said, seed) in enumerate(missing):
            note = said if self.budget.seeds == 1 else f"{said}, seed {seed}"

            def tell(now: Progress, place: int = place, note: str = note) -> None:
                if on_progress is not None:
                    on_progress(place * now.steps + now.step, len(missing) * now.steps, note)

            self._known[said, seed] = self._train(said, objectives[said], seed, tell)
        count = len(objectives)
        nets = [self._known[one] for one in wanted]
        return tuple(tuple(nets[at : at + count]) for at in range(0, len(nets), count))

    def _train(self, said: str, objective: TrainingObjective, seed: int, tell: Callable[[Progress], None]) -> Net:
        data, budget = self.source.train, self.budget
        spec = f"maxout:units={budget.units},pieces={PIECES},dropout={budget.dropout}"
        module, began = build(spec, data.shape, data.classes, seed=seed), time.perf_counter()
        fit(
            module,
            data,
            self.ball,
            objective=objective,
            epochs=self.epochs,
            batch_size=BATCH,
            lr=RATE,
            accelerate=False,  # which network is the faster one is found by a clock, and they differ in the last bits
            seed=seed,
            progress=tell,
        )
        return Net(said, seed, module.eval().requires_grad_(False), round(time.perf_counter() - began, 1))

    def moved(self, net: Net) -> Float[Tensor, "n *shape"]:
        """All test examples at x + eps sign(grad_x J) of that network, not clipped."""
        test = self.source.test
        parts = zip(test.x.split(ROWS), test.y.split(ROWS), strict=True)
        return torch.cat([FGSM()(net.module, x, y, self.ball) for x, y in parts])

    def outcome(self, net: Net, x: Float[Tensor, "n *shape"]) -> Outcome:
        """How a network does on all test examples, moved to `x`."""
        return outcome(logits_of(net.module, x), self.source.test.y)

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
            "units": self.budget.units,
            "pieces": PIECES,
            "dropout": self.budget.dropout,
            "epochs": self.epochs,
            "batch_size": BATCH,
            "optimizer": f"adam, one-cycle, learning rate up to {RATE:g}",
            "seeds": list(range(self.budget.seeds)),
            "threads": torch.get_num_threads(),
            "versions": {"epsball": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }


def logits_of(module: nn.Module, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
    """The logits of all rows, in eval mode."""
    with torch.no_grad(), frozen(module):
        return torch.cat([module(rows) for rows in x.split(ROWS)])


def outcome(logits: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Outcome:
    """The share predicted wrongly, and the mean probability of what is predicted there.

    >>> outcome(torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]]).double(), torch.tensor([1, 1, 0]))
    Outcome(error=0.3333333333333333, confidence=0.5)
    """
    sure, predicted = F.softmax(logits.double(), 1).max(1)
    wrong = predicted != y
    confidence = float(sure[wrong].mean()) if wrong.any() else None
    return Outcome(error=float(wrong.double().mean()), confidence=confidence)


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean over networks; of the confidence, over those that make mistakes."""
    sure = [one.confidence for one in outcomes if one.confidence is not None]
    error = sum(one.error for one in outcomes) / len(outcomes)
    return Outcome(error=error, confidence=sum(sure) / len(sure) if sure else None)


def percent(share: float | None) -> float | None:
    """A share in percent."""
    return None if share is None else 100 * share


def spent(config: dict[str, Any], seconds: Sequence[float]) -> str:
    """A sentence that says what the networks are and what was spent on them."""
    seeds = len(config["seeds"])
    over = "" if seeds == 1 else f" The mean over {seeds} seeds."
    dropout = f"dropout {config['dropout']} %" if config["dropout"] else "no dropout"
    return (
        f"Ours: 2 x {config['units']:,} maxout units of {config['pieces']} pieces, {dropout}, "
        f"{config['epochs']} epochs of {config['train_rows']:,} images in steps of {config['batch_size']}, "
        f"{config['optimizer']}: the same for all; {min(seconds):.0f} to {max(seconds):.0f} s each.{over} "
        "The paper trained with dropout 50 % until validation no longer improved: nearer with --dropout 50 "
        "--epochs 100 --seeds 5 --units 1600."
    )


def conventions(config: dict[str, Any], *, confidence: bool = True) -> str:
    """A sentence on the paper's conventions."""
    sure = "; confidence: the mean over the mistakes on FGSM examples" if confidence else ""
    return (
        f"FGSM: at x + eps sign(gradient), eps {config['eps']:g}, not clipped, as in the paper. Error over all "
        f"{config['test_rows']:,} test images{sure}."
    )


def stand_in(config: dict[str, Any]) -> tuple[str, ...]:
    """A warning where the data are not the paper's."""
    said = "scikit-learn's 8x8 digits stand in for MNIST: the paper's figures are not for them."
    return (said,) if config["stands_in"] else ()
