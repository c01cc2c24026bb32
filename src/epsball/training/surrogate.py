"""A surrogate of a black box: a network trained on its answers, whose gradients then serve to attack it by transfer.

Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical black-box attacks against machine learning" (AsiaCCS
2017, algorithm 1): query a few examples, train, move them where the network's output is most sensitive, query again.
Here each round queries one point of each example's ball, by turns FGSM's on the network so far and a uniform one: those
are the points whose answers a transfer attack depends on. Where the black box returns logits or probabilities the
network learns those and not labels only.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.common.config import Config, Rule
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, column
from epsball.data.examples import Examples
from epsball.models.black_box import BlackBox
from epsball.models.frozen import frozen
from epsball.models.registry import build
from epsball.problem.inputs import batch_for
from epsball.problem.outputs import masked_to_finite, two_columns
from epsball.training.cross_entropy import Logits, accuracy, logits_of
from epsball.training.fit import fit
from epsball.training.training_objective import Labels, Logged, TrainingObjective, TrainingStep

RADIUS_DRAW = 7


class SurrogateConfig(Config):
    """How a surrogate is trained.

    Parameters
    ----------
    classes
        The number of classes, where the answers are labels and x may not show them all.
    rounds
        Rounds of queries after the first: at most rounds + 1 queries an example.
    epochs
        Passes over all answers in each round.
    model
        A built-in network's short form. Default: small-cnn for images, small-mlp for all else.
    seed
        Keys all randomness.
    """

    classes: int | None = None
    rounds: Annotated[int, Rule(check_whole, 0)] = 5
    epochs: Annotated[int, Rule(check_whole, 1)] = 20
    model: str | None = None
    seed: int = 0


class Surrogate(nn.Module):
    """The trained `network`, (n, *shape) -> logits (n, classes), and its cost.

    `queries` is the number of inputs that the black box was asked about for it, `agreement` the share of the examples
    on which both predict the same, after the last round.
    """

    def __init__(self, network: nn.Module, queries: int, agreement: float) -> None:
        super().__init__()
        self.network, self.queries, self.agreement = network, queries, agreement

    def forward(self, x: Batch) -> Logits:
        return self.network(x)

    def extra_repr(self) -> str:
        return f"{self.queries:,} queries, agrees on {self.agreement:.1%}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Imitation(TrainingObjective):
    """Mean cross-entropy between the black box's probabilities, `soft` (n, classes) by id, and the network's."""

    accelerates = False

    soft: Logits

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        logits = logits_of(model, x)
        loss = F.cross_entropy(logits, self.soft[step.noise.ids].to(logits))
        loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy(logits, y)}


def surrogate(
    black_box: BlackBox, x: Batch, ball: Ball | str, *, ids: Labels | None = None, **options: Any
) -> Surrogate:
    """A network trained on the answers of `black_box` at and around `x`.

    `x` (n, *shape) are examples of the kind that will be attacked, better others than those; `ball` is the one that
    they will be attacked in, of finite radius or in a finite box. The queries are counted for `ids` (default: for
    nobody, without a cap). `options` are the fields of `SurrogateConfig`.

    Raises `BadInput` for arguments that do not fit, and where the answers are not numbers, or all the same class.
    """
    config = SurrogateConfig.of(options, what="surrogate's option")
    if not isinstance(black_box, BlackBox):
        raise BadInput(f"`black_box` must be a BlackBox, got {type(black_box).__name__}; wrap it: BlackBox(f)")
    _, x, ball = batch_for(black_box, x, ball)
    if not len(x):
        raise BadInput("`x` must hold at least one example, got none; look at its split and limit")
    ball, queries_before = ball.bind(x), black_box.total
    black_box.begin_search()
    points, answers = [x], [_query(black_box, x, ids)]
    classes = answers[0].shape[1] if answers[0].is_floating_point() else _number_of_classes(answers[0], config.classes)
    network = build(config.model or _default_model(x), tuple(x.shape[1:]), classes, seed=config.seed).to(x)
    y = _probabilities(answers[0], classes).argmax(1)
    for turn in range(config.rounds + 1):
        if turn:
            points.append(_next_points(network, x, y, ball, turn - 1, config.seed))
            answers.append(_query(black_box, points[-1], ids))
        soft = torch.cat([_probabilities(part, classes) for part in answers])
        labels = soft.argmax(1)
        if bool((labels == labels[0]).all()):
            raise BadInput(f"`x` must hold examples of two classes or more, but all answers are {int(labels[0])}")
        rows = torch.arange(len(labels), device=x.device)
        name = "answers of a black box"
        data = Examples(torch.cat(points), labels, rows, lo=-math.inf, hi=math.inf, classes=classes, name=name)
        options = {"epochs": config.epochs, "batch_size": 64, "lr": 2e-3, "seed": config.seed + turn}
        fit(network, data, objective=Imitation(soft=soft), **options)
    with torch.no_grad(), frozen(network):
        agreement = (two_columns(network(x)).argmax(1) == y).double().mean().item()
    return Surrogate(network, black_box.total - queries_before, agreement).eval()


def _next_points(network: nn.Module, x: Batch, y: Labels, ball: Ball, turn: int, seed: int) -> Batch:
    """The points of the next queries: by turns FGSM's on the network so far and uniform ones, at random radii."""
    rows = torch.arange(len(x), device=x.device)
    noise = Noise(seed, rows, torch.full_like(rows, turn))
    ends = FGSM()(network, x, y, ball) if turn % 2 == 0 else ball.sample(x, noise)
    share = 0.5 + 0.5 * noise.uniform((1,), draw=RADIUS_DRAW, dtype=x.dtype)
    return ball.project(torch.lerp(x, ends, column(share, x.ndim)), x)


def _query(black_box: BlackBox, z: Batch, ids: Labels | None) -> Tensor:
    """Logits (n, classes) or labels (n,). Raises `BadInput` where the budget left a query unanswered."""
    answers = black_box.ask(z, ids)
    answers = masked_to_finite(two_columns(answers)) if answers.is_floating_point() else answers
    if not bool((answers.isfinite() if answers.is_floating_point() else answers >= 0).all()):
        raise BadInput(
            "`black_box` must answer with numbers, got NaN, or nothing where its `budget` is spent; ask for fewer "
            "`rounds`, or leave `ids` out"
        )
    return answers


def _number_of_classes(labels: Labels, classes: int | None) -> int:
    seen = int(labels.max()) + 1
    if classes is not None and classes < seen:
        raise BadInput(f"`classes` must be >= {seen}, the classes among the answers, got {classes}")
    return max(classes or seen, 2)


def _probabilities(answers: Tensor, classes: int) -> Float[Tensor, "n classes"]:
    """Probabilities (n, classes) from logits, or from labels."""
    if answers.is_floating_point():
        return answers.double().softmax(1)
    if int(answers.max()) >= classes:
        raise BadInput(f"`classes` must be given: the answers about `x` were below {classes}, later ones are not")
    return F.one_hot(answers, classes).double()


def _default_model(x: Batch) -> str:
    return "small-cnn" if x.ndim == 4 and min(x.shape[2:]) >= 4 else "small-mlp"
