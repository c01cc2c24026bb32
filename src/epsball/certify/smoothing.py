"""Randomised smoothing: a certified L2 radius for any classifier, from its answers on Gaussian noise around the input.

The smoothed classifier answers the class that f most often gives to x + N(0, sigma^2 I). If it gives class A with a
probability of at least p > 1/2, no change of x shorter than sigma Phi^-1(p) changes that answer: Cohen, Rosenfeld and
Kolter, "Certified adversarial robustness via randomized smoothing" (ICML 2019), theorem 1, and `certify` and `predict`
of section 3.2.2. What is certified is the smoothed classifier, not f, and with probability 1 - alpha for each example.
How noise is drawn so that this holds in floating point is in `gaussian_noise.py`.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.certify.gaussian_noise import GridGaussian, radius_of
from epsball.common.checks import check_between, check_positive, check_whole
from epsball.common.config import Config, Rule
from epsball.common.errors import BadInput
from epsball.common.intervals import clopper_pearson_lower
from epsball.common.noise import Noise
from epsball.common.record import Record
from epsball.common.shapes import flat
from epsball.problem.black_box_objective import objective_for
from epsball.problem.inputs import inputs_for
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective, prediction

KEY = 1 << 20
"""The noise of smoothing has this restart index, which no job of an attack has."""
NO_CLASS = -1
MULTIPLE = 32
"""Model calls have a multiple of so many rows: below that, kernels round the rows of a batch differently."""


class Smoothing(Config):
    """Randomised smoothing with Gaussian noise.

    Parameters
    ----------
    sigma
        The standard deviation of the noise, in the units of x. The model must be trained with such noise.
    n0
        Draws that choose the class.
    n
        Draws that bound its probability. The radius is at most sigma * Phi^-1(alpha ** (1 / n)): 2.46 sigma for 1,000
        draws, 3.81 sigma for 100,000.
    alpha
        The probability with which the certificate of an example may be wrong.
    """

    sigma: Annotated[float, Rule(check_positive, "it is in the units of x")]
    n0: Annotated[int, Rule(check_whole, 1)] = 100
    n: Annotated[int, Rule(check_whole, 1)] = 1000
    alpha: Annotated[float, Rule(check_between, 0, 0.5, "usual is 0.001", ends="()")] = 0.001


@dataclass(frozen=True)
class SmoothCertificates(Record):
    """What smoothing certifies, example by example.

    `prediction` is the class of the smoothed classifier, `count` how many of the n draws gave it, `p_lower` the lower
    confidence bound of its probability (Clopper and Pearson 1934, level alpha, one-sided), `radius` the L2 radius
    within which the smoothed classifier answers `prediction`: of all inputs, with or without box. `abstained` says that
    no radius is certified; `prediction` is then no more than a guess (-1: all outputs were nan). `needed` is the L2
    distance to the farthest point of the ball, `verified` whether the prediction is the label and the radius is larger
    than that. `model_calls` counts rows.
    """

    derived = ("accuracy", "certified_accuracy")

    smoothing: Smoothing
    seed: int
    ids: tuple[int, ...]
    y: tuple[int, ...]
    prediction: tuple[int, ...]
    count: tuple[int, ...]
    p_lower: tuple[float, ...]
    radius: tuple[float, ...]
    abstained: tuple[bool, ...]
    needed: tuple[float, ...]
    verified: tuple[bool, ...]
    model_calls: int

    @property
    def accuracy(self) -> float:
        """The share of examples whose label the smoothed classifier answers without abstaining."""
        correct = np.equal(self.prediction, self.y) & ~np.array(self.abstained)
        return float(correct.mean())

    @property
    def certified_accuracy(self) -> float:
        """The share of examples that are verified."""
        return float(np.mean(self.verified))

    def certified_accuracy_at(self, radius: float) -> float:
        """The share of examples whose label is certified within an L2 radius: Cohen et al. (2019), figure 6."""
        return float(np.mean(np.equal(self.prediction, self.y) & (np.array(self.radius) > radius)))


def smooth_certify(
    model: Any, data: Any, ball: Ball | str, smoothing: Smoothing, *, seed: int = 0, batch_size: int = 512
) -> SmoothCertificates:
    """Certify each example with n0 + n draws of noise; see `SmoothCertificates`.

    `model` is any model, black boxes of labels included; `data` are examples as `evaluate` takes them. Of the `ball`
    the L2 distance to its farthest point counts: eps in L2 and L1, in Linf that to its farthest corner, within box and
    mask. The noise of a draw is keyed by seed, id and draw, so that results do not depend on batch size and order.

    Raises `BadInput` for balls without such a point (L0), and as `evaluate` does for what does not fit.
    """
    check_whole("batch_size", batch_size, 1)
    model, examples, ball = inputs_for(model, data, ball)
    x, needed = examples.x, _farthest(ball, examples.x).numpy()
    gaussian = GridGaussian(smoothing.sigma)
    with objective_for(model, cross_entropy, needs="label") as objective:
        votes = Votes(objective, gaussian, x, examples.ids, seed=seed, batch_size=batch_size)
        chosen = votes.tally(0, smoothing.n0)
        found = torch.where(chosen.amax(1) > 0, chosen.argmax(1), NO_CLASS)
        counts = votes.tally(smoothing.n0, smoothing.n)
        model_calls = objective.forwards
    known = (found >= 0) & (found < counts.shape[1])
    count = torch.where(known, counts.gather(1, torch.where(known, found, 0)[:, None]).squeeze(1), 0).numpy()
    p_lower = clopper_pearson_lower(count, smoothing.n, smoothing.alpha)
    radius = radius_of(p_lower, smoothing.sigma, examples.shape) - gaussian.moved(x).cpu().numpy()
    abstained = radius <= 0
    y, answer = examples.y.cpu().numpy(), found.numpy()
    return SmoothCertificates(
        smoothing=smoothing,
        seed=seed,
        ids=tuple(examples.ids.tolist()),
        y=tuple(y.tolist()),
        prediction=tuple(answer.tolist()),
        count=tuple(count.tolist()),
        p_lower=tuple(p_lower.tolist()),
        radius=tuple(radius.clip(0).tolist()),
        abstained=tuple(abstained.tolist()),
        needed=tuple(needed.tolist()),
        verified=tuple((~abstained & (answer == y) & (radius > needed)).tolist()),
        model_calls=model_calls,
    )


def smooth_predict(
    model: Model, x: Tensor, smoothing: Smoothing, ids: Int64[Tensor, " n"], *, seed: int = 0, batch_size: int = 512
) -> Int64[Tensor, " n"]:
    """The class of the smoothed classifier, or -1 where it abstains: Cohen et al. (2019), `predict`.

    It abstains where a fair coin would part the n draws between the two leading classes so unevenly with a probability
    above alpha (two-sided binomial test). What it answers is wrong with a probability of alpha at most.
    """
    from scipy.special import betainc

    with objective_for(model, cross_entropy, needs="label") as objective:
        votes = Votes(objective, GridGaussian(smoothing.sigma), x, ids, seed=seed, batch_size=batch_size)
        counts = votes.tally(0, smoothing.n)
    first, second = torch.cat([counts, torch.zeros_like(counts)], 1).topk(2, dim=1).values.double().numpy().T
    p_value = 2 * betainc(np.maximum(first, 0.5), second + 1, 0.5)  # P(at least `first` of first + second heads)
    sure = torch.from_numpy((first > second) & (p_value <= smoothing.alpha))
    return torch.where(sure, counts.argmax(1), NO_CLASS).to(x.device)


class Votes:
    """The labels that an open objective gives to examples under noise, counted by class."""

    def __init__(
        self,
        objective: Objective,
        gaussian: GridGaussian,
        x: Float[Tensor, "n *shape"],
        ids: Int64[Tensor, " n"],
        *,
        seed: int,
        batch_size: int,
    ) -> None:
        self.objective, self.gaussian, self.dtype = objective, gaussian, x.dtype
        self.grid = gaussian.to_grid(x)
        self.noise = Noise(seed, ids.to(x.device), torch.full_like(ids, KEY, device=x.device))
        self.batch_size = -(-batch_size // MULTIPLE) * MULTIPLE

    def tally(self, first: int, draws: int) -> Int64[Tensor, "n classes"]:
        """How often each class was given in the draws `first`, ..., `first` + `draws` - 1, on the CPU.

        Outputs that are not finite count for no class.
        """
        n = len(self.grid)
        counts = torch.zeros(n, 1, dtype=torch.long)
        for start in range(0, n * draws, self.batch_size):
            count = min(self.batch_size, n * draws - start)
            padded = -(-count // MULTIPLE) * MULTIPLE
            pair = torch.arange(start, start + padded, device=self.grid.device).clamp_max_(n * draws - 1)
            rows = pair // draws
            labels = self._labels(rows, first + pair % draws)[:count].cpu()
            rows = rows[:count].cpu()[labels >= 0]
            labels = labels[labels >= 0]
            most = int(labels.max()) + 1 if len(labels) else 1
            if most > counts.shape[1]:
                counts = torch.cat([counts, counts.new_zeros(n, most - counts.shape[1])], 1)
            counts.index_put_((rows, labels), torch.ones_like(rows), accumulate=True)
        return counts

    def _labels(self, rows: Int64[Tensor, " m"], draw: Int64[Tensor, " m"]) -> Int64[Tensor, " m"]:
        whole = self.gaussian.draw(self.noise.rows(rows), self.grid.shape[1:], draw).add_(self.grid[rows])
        output = self.objective.forward(self.gaussian.from_grid(whole, self.dtype))
        valid: Bool[Tensor, " m"] = output.isfinite().flatten(1).all(1) if output.ndim > 1 else output >= 0
        return torch.where(valid, prediction(output), NO_CLASS)


def _farthest(ball: Ball, x: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """The L2 distance from each example to the farthest point of its ball, or more, in double precision."""
    wide = x.double()
    ball = ball.bind(wide)

    def radius() -> Tensor:
        return torch.as_tensor(ball.eps, dtype=torch.float64).expand(len(x)).clone()

    def corner() -> Tensor:
        low, high = ball.intervals(wide)
        return torch.linalg.vector_norm(flat(torch.maximum(wide - low, high - wide)), dim=1) * (1 + 1e-12)

    how = ball.choose({"intervals": corner, "euclidean": radius, "sparse": radius})
    if how is None:
        raise BadInput(f"`ball` must be of l2, l1 or linf for smoothing, got {ball.name}: it certifies an L2 radius")
    return how().cpu()
