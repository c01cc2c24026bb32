"""A surrogate of a black box: a network trained on its answers, whose gradients then serve to attack it by transfer.

Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical black-box attacks against machine learning" (AsiaCCS
2017, algorithm 1): ask about a few examples, train, move them where the answer of the network so far is most sensitive,
ask again. Here each round asks at one point of each example's ball, by turns where FGSM on the network so far leads and
uniformly in the ball: those are the points whose answers a transfer will depend on. Where the black box shows logits or
probabilities the network learns those and not labels only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.shapes import column
from epsball.data.examples import Examples
from epsball.models.registry import build
from epsball.problem.black_box import BlackBox
from epsball.problem.objective import frozen
from epsball.problem.outputs import two_columns
from epsball.training.cross_entropy import accuracy, logits_of
from epsball.training.fit import fit
from epsball.training.step import Step, TrainingObjective


class Surrogate(nn.Module):
    """The trained `network`, (n, *shape) -> logits (n, classes), and what it cost.

    `queries` is the number of inputs that the black box was shown for it, `agreement` the share of the examples on
    which both predict the same, after the last round.
    """

    def __init__(self, network: nn.Module, queries: int, agreement: float) -> None:
        super().__init__()
        self.network, self.queries, self.agreement = network, queries, agreement

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        return self.network(x)

    def extra_repr(self) -> str:
        return f"{self.queries:,} queries, agrees on {self.agreement:.1%}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Imitation(TrainingObjective):
    """Mean cross-entropy between what the black box said of a row, `soft` (n, classes) by id, and the network."""

    accelerates = False

    soft: Float[Tensor, "n classes"]

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, step: Step
    ) -> dict[str, Tensor]:
        logits = logits_of(model, x)
        loss = F.cross_entropy(logits, self.soft[step.noise.ids].to(logits))
        loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy(logits, y)}


def surrogate(
    black_box: BlackBox,
    x: Float[Tensor, "n *shape"],
    ball: Ball,
    *,
    classes: int | None = None,
    rounds: int = 5,
    epochs: int = 20,
    model: str | None = None,
    ids: Int64[Tensor, " n"] | None = None,
    seed: int = 0,
) -> Surrogate:
    """A network trained on the answers of `black_box` at and around `x`: at most rounds + 1 queries an example.

    `x` (n, *shape) are examples of the kind that will be attacked, better others than those; `ball` is the one that
    they will be attacked in, of finite radius or in a finite box. `classes` need only be given where the answers are
    labels and x may not show them all. `model` is a built-in network's short form, by default small-cnn for images and
    small-mlp for all else; it is trained for `epochs` passes over all answers in each round. The queries are counted
    for `ids` (default: for nobody, without a cap). The random numbers depend on `seed` alone.

    Raises `BadInput` for arguments that do not fit, and where the answers are not numbers, or all the same class.
    """
    for name, value, least in (("rounds", rounds, 0), ("epochs", epochs, 1)):
        check_whole(name, value, least)
    if not isinstance(black_box, BlackBox):
        raise BadInput(
            f"`black_box` must be a BlackBox, got {type(black_box).__name__}; wrap it: BlackBox(function=...)"
        )
    if not len(x):
        raise BadInput("`x` must hold at least one example, got none; look at its split and limit")
    ball = ball.bind(x)
    before = black_box.total
    points, said = [x], [_asked(black_box, x, ids)]
    wanted = said[0].shape[1] if said[0].is_floating_point() else _classes(said[0], classes)
    network = build(model or _fitting(x), tuple(x.shape[1:]), wanted, seed=seed).to(x)
    own = _soft(said[0], wanted).argmax(1)
    for turn in range(rounds + 1):
        soft = torch.cat([_soft(part, wanted) for part in said])
        labels = soft.argmax(1)
        if bool((labels == labels[0]).all()):
            raise BadInput(f"`x` must hold examples of two classes or more, but all answers are {int(labels[0])}")
        rows = torch.arange(len(labels), device=x.device)
        data = Examples(
            torch.cat(points), labels, rows, lo=-math.inf, hi=math.inf, classes=wanted, name="answers of a black box"
        )
        fit(network, data, objective=Imitation(soft=soft), epochs=epochs, batch_size=64, lr=2e-3, seed=seed + turn)
        if turn == rounds:
            break
        z = _further(network, x, own, ball, turn, seed)
        points.append(z)
        said.append(_asked(black_box, z, ids))
    with torch.no_grad(), frozen(network):
        agreement = (two_columns(network(x)).argmax(1) == own).double().mean().item()
    return Surrogate(network, black_box.total - before, agreement).eval()


def _further(network: nn.Module, x: Tensor, y: Tensor, ball: Ball, turn: int, seed: int) -> Tensor:
    """Where to ask next: by turns where the network so far can be fooled, and anywhere in the ball, at random radii."""
    rows = torch.arange(len(x), device=x.device)
    noise = Noise(seed, rows, torch.full_like(rows, turn))
    there = FGSM()(network, x, y, ball) if turn % 2 == 0 else ball.sample(x, noise)
    share = 0.5 + 0.5 * noise.uniform((1,), draw=7, dtype=x.dtype)
    return ball.project(torch.lerp(x, there, column(share, x.ndim)), x)


def _asked(black_box: BlackBox, z: Tensor, ids: Tensor | None) -> Tensor:
    """Logits (n, classes) or labels (n,); what the budget left unasked is refused."""
    said = black_box.ask(z, ids)
    said = two_columns(said) if said.is_floating_point() else said
    if not bool((said.isfinite() if said.is_floating_point() else said >= 0).all()):
        raise BadInput(
            "`black_box` must answer with numbers, got NaN, or nothing where its `budget` is spent; ask for fewer "
            "`rounds`, or leave `ids` out"
        )
    return said


def _classes(labels: Tensor, classes: int | None) -> int:
    seen = int(labels.max()) + 1
    if classes is not None and classes < seen:
        raise BadInput(f"`classes` must be >= {seen}, the classes among the answers, got {classes}")
    return max(classes or seen, 2)


def _soft(said: Tensor, classes: int) -> Float[Tensor, "n classes"]:
    """Probabilities out of logits, or out of labels."""
    if said.is_floating_point():
        return said.double().softmax(1)
    if int(said.max()) >= classes:
        raise BadInput(f"`classes` must be given: the answers about `x` were below {classes}, later ones are not")
    return F.one_hot(said, classes).double()


def _fitting(x: Tensor) -> str:
    return "small-cnn" if x.ndim == 4 and min(x.shape[2:]) >= 4 else "small-mlp"
