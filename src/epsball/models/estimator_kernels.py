"""Kernel machines as torch modules, and logits whose argmax is a vote of all pairs of classes.

A vote has no gradient. A class that beats every other one has all votes of its pairs, and no other class can: so the
logit of a class is its margin over the rival that it beats least, min over j of f_kj, which is continuous, positive for
the winner alone, and zero on the decision boundary. Where each class is beaten by some other one (a cycle), the winner
of the vote is lifted above the highest logit; the gradient takes the lift for a constant, so that it still says how the
winner can be beaten.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.svm import SVC, NuSVC
from torch import Tensor, nn

from epsball.models.estimator_rules import Translation, Untranslated, array_of, linear_layer, parameter_of

Ties = Literal["first", "confidence"]
"""Which of the classes with the most votes is predicted: the first, or that of the greatest confidence."""


class Kernel(nn.Module):
    """k(x, s) of examples (n, d) and support vectors (m, d), as libsvm has it, (n, m)."""

    def __init__(self, name: str, vectors: Any, *, gamma: float, coef0: float, degree: int) -> None:
        super().__init__()
        self.name, self.gamma, self.coef0, self.degree = name, gamma, coef0, degree
        vectors = array_of(vectors)
        # Distances are those of centred vectors: far from the origin their squares would swallow them.
        centre = vectors.mean(0) if name == "rbf" else np.zeros(vectors.shape[1])
        self.vectors, self.centre = parameter_of(vectors - centre), parameter_of(centre)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        if self.name == "rbf":
            x = x - self.centre
            squares = x.square().sum(1, keepdim=True) + self.vectors.square().sum(1)
            return (-self.gamma * (squares - 2 * x @ self.vectors.T).clamp(min=0)).exp()
        products = self.gamma * (x @ self.vectors.T) + self.coef0
        return products.tanh() if self.name == "sigmoid" else products**self.degree


class PairScores(nn.Module):
    """Scores of all pairs of classes from kernel values (n, m): positive for the first of the pair, (n, pairs).

    `dual` (classes - 1, m) are libsvm's coefficients: of a vector of class i, its part in the pairs with each other
    class, in their order. The first `counts[0]` vectors are of class 0, and so on.
    """

    def __init__(self, dual: Any, bias: Any, counts: Any) -> None:
        super().__init__()
        self.dual, self.bias = parameter_of(dual), parameter_of(bias)
        self.counts = [int(count) for count in counts]

    def forward(self, values: Float[Tensor, "n m"]) -> Float[Tensor, "n pairs"]:
        blocks = zip(values.split(self.counts, 1), self.dual.split(self.counts, 1), strict=True)
        parts = [kernel @ dual.T for kernel, dual in blocks]
        pairs = combinations(range(len(self.counts)), 2)
        return torch.stack([parts[i][:, j - 1] + parts[j][:, i] for i, j in pairs], 1) + self.bias


class Votes(nn.Module):
    """Votes of all pairs of `classes`, from scores (n, pairs) that are positive for the first of a pair.

    `confidence` (n, pairs) is how sure a pair is of its second class. The logits are those of the module's docstring.
    """

    first: Int64[Tensor, " pairs"]
    second: Int64[Tensor, " pairs"]

    def __init__(self, classes: int, ties: Ties) -> None:
        super().__init__()
        first, second = torch.triu_indices(classes, classes, 1)
        self.classes, self.ties = classes, ties
        self.register_buffer("first", first)
        self.register_buffer("second", second)

    def logits(self, score: Float[Tensor, "n pairs"], confidence: Float[Tensor, "n pairs"]) -> Float[Tensor, "n k"]:
        """The margin of each class over the rival that it beats least; the winner of the vote has the greatest."""
        margins = score.new_full((len(score), self.classes, self.classes), torch.inf)
        margins[:, self.first, self.second] = score
        margins[:, self.second, self.first] = -score
        worst = margins.amin(2)
        with torch.no_grad():
            counts = self.decision(score, confidence) if self.ties == "confidence" else self.votes(score)
            winner = counts.argmax(1, keepdim=True)
            top, own = worst.amax(1, keepdim=True), worst.gather(1, winner)
            above = top + 1e-9 * (1 + top.abs())
            lift = torch.where(worst.argmax(1, keepdim=True) == winner, 0.0, above - own)
            lifts = torch.zeros_like(worst).scatter_(1, winner, lift)
        return worst + lifts

    def votes(self, score: Float[Tensor, "n pairs"]) -> Float[Tensor, "n k"]:
        """How many pairs each class wins."""
        won = (score > 0).to(score.dtype)
        counts = score.new_zeros(len(score), self.classes)
        return counts.index_add(1, self.first, won).index_add(1, self.second, 1 - won)

    def decision(self, score: Float[Tensor, "n pairs"], confidence: Float[Tensor, "n pairs"]) -> Float[Tensor, "n k"]:
        """Votes plus a bounded sum of confidences, which decides between equal votes: scikit-learn's scores."""
        sums = score.new_zeros(len(score), self.classes)
        sums = sums.index_add(1, self.first, -confidence).index_add(1, self.second, confidence)
        return self.votes(score) + sums / (3 * (sums.abs() + 1))


class VoteLogits(nn.Module):
    """Pair scores -> `Votes.logits`, sure of what they are positive for."""

    def __init__(self, classes: int, ties: Ties) -> None:
        super().__init__()
        self.votes = Votes(classes, ties)

    def forward(self, score: Float[Tensor, "n pairs"]) -> Float[Tensor, "n k"]:
        return self.votes.logits(score, -score)


class VoteDecision(VoteLogits):
    """Pair scores -> `Votes.decision`."""

    def forward(self, score: Float[Tensor, "n pairs"]) -> Float[Tensor, "n k"]:
        return self.votes.decision(score, -score)


def _machine(machine: Any) -> Translation:
    name, k = machine.kernel, len(machine.classes_)
    if callable(name):
        raise Untranslated("its kernel is the user's own")
    vectors, dual, bias = map(array_of, (machine.support_vectors_, machine.dual_coef_, machine.intercept_))
    counts = np.asarray(machine.n_support_)
    if name not in ("linear", "poly", "rbf", "sigmoid"):
        raise ValueError(f"its kernel is called {name!r}")
    if not (
        vectors.ndim == 2 and dual.shape == (k - 1, len(vectors)) and bias.shape == (k * (k - 1) // 2,)
        and counts.shape == (k,) and counts.min() >= 0 and counts.sum() == len(vectors)
    ):  # fmt: skip
        raise ValueError("its support vectors, coefficients and counts do not fit each other")
    if k == 2 and name == "linear":
        layer = linear_layer(dual @ vectors, bias)
        return Translation(layer, machine.classes_, layer)
    if name == "linear":
        values: nn.Module = linear_layer(vectors)
    else:
        numbers = {"gamma": float(machine._gamma), "coef0": float(machine.coef0), "degree": int(machine.degree)}
        values = Kernel(name, vectors, **numbers)
    if k == 2:
        logits = nn.Sequential(values, linear_layer(dual, bias))
        return Translation(logits, machine.classes_, logits)
    scores = nn.Sequential(values, PairScores(dual, bias, counts))
    by_class = machine.decision_function_shape == "ovr"
    ties: Ties = "confidence" if machine.break_ties and by_class else "first"
    decision = nn.Sequential(scores, VoteDecision(k, ties)) if by_class else scores
    return Translation(nn.Sequential(scores, VoteLogits(k, ties)), machine.classes_, decision)


KERNEL_MACHINES: dict[type, Callable[[Any], Translation]] = {SVC: _machine, NuSVC: _machine}
