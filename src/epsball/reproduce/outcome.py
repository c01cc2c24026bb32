"""How a classifier does on the test examples, as the paper counts it: error, and confidence in the mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from epsball.common.record import Record

EPS = 0.25
"""The paper's radius for MNIST, in pixels from 0 to 1."""


@dataclass(frozen=True)
class Outcome(Record):
    """`error`: the share of all test examples that is misclassified; `confidence`: the mean probability of the
    predicted class over those mistakes, None where there are none. Both from 0 to 1.
    """

    error: float
    confidence: float | None


def outcome_of(probabilities: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Outcome:
    """The outcome from the predicted probabilities.

    >>> import torch
    >>> outcome_of(torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]).double(), torch.tensor([1, 1, 0]))
    Outcome(error=0.3333333333333333, confidence=0.5)
    """
    confidence, predicted = probabilities.max(1)
    wrong = predicted != y
    mean_confidence = float(confidence[wrong].mean()) if wrong.any() else None
    return Outcome(error=float(wrong.double().mean()), confidence=mean_confidence)


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean over networks; of the confidence, over those that make mistakes."""
    error = sum(one.error for one in outcomes) / len(outcomes)
    return Outcome(error=error, confidence=mean_of_known(one.confidence for one in outcomes))


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def percent(share: float | None) -> float | None:
    """A share in percent."""
    return None if share is None else 100 * share
