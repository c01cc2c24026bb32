"""What a second search with twice the queries found: had a search without gradients converged? Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from epsball.common.intervals import wilson
from epsball.common.record import Record
from epsball.diagnosis.run_record import RunRecord

NEARER = 0.95
"""In a minimum-norm run an example counts where something nearer than this share of its distance was found."""


@dataclass(frozen=True)
class Look(Record):
    """Of `n` examples that were not broken at the radius `eps` (of `robust` in all), twice the queries broke `found`.

    In a minimum-norm run `eps` is None, and `found` are those with an adversarial example nearer than 95 % of the
    distance known. `ids` name the found ones.
    """

    derived = ("share", "interval")

    eps: float | None
    robust: int
    n: int
    found: int
    ids: tuple[int, ...]

    @property
    def share(self) -> float:
        """The share of the sample that twice the queries broke."""
        return self.found / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson) of `share`."""
        return wilson(self.found, self.n)


@dataclass(frozen=True)
class Convergence(RunRecord):
    """The search again, with other random numbers and twice the queries, on a sample of examples that it did not break.

    A `Look` for each radius of the run, of up to `requested` examples in all (at least `FEWEST` at each radius). What
    it found is not entered into the run's result, and its `queries` (forward passes, of a model that counts none) are
    counted apart.
    """

    file_name = "convergence.json"
    repeats = "the search with twice the queries"
    derived = ("converged", "sentence")

    looks: tuple[Look, ...]
    min_norm: bool
    requested: int
    queries: int
    seconds: float = field(compare=False)

    @property
    def worst(self) -> Look | None:
        """The look at which the largest share was found, of equal ones that of the largest radius; None without one."""
        measured = [look for look in self.looks if look.n]
        return max(reversed(measured), key=lambda look: look.share) if measured else None

    @property
    def converged(self) -> bool:
        """Whether twice the queries broke nothing more; in a minimum-norm run, at most half came nearer by 5 %."""
        return self.worst is None or (self.worst.share <= 0.5 if self.min_norm else not self.worst.found)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        worst = self.worst
        if worst is None:
            return "Convergence: no example is left to search with twice the queries."
        low, high = worst.interval
        interval = f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"
        if self.min_norm:
            found = (
                f"twice the queries found nearer adversarial examples (by 5 % or more) for {worst.found} of {worst.n} "
                f"examples ({interval})"
            )
            return (
                f"Convergence: {found}." if self.converged else f"Not converged: {found}: the distances are too large."
            )
        at = "" if worst.eps is None or len(self.looks) == 1 else f" at radius {worst.eps:.4g}"
        if self.converged:
            return f"Convergence: twice the queries broke none of {worst.n} sampled robust examples ({interval})."
        return (
            f"Not converged: twice the queries broke {worst.found} of {worst.n} sampled robust examples{at} "
            f"({interval}): the true robust accuracy is lower. Give the attacks more steps, or more restarts."
        )


def budget_sentence(config: dict[str, Any], exhausted: int, n: int, between: tuple[float, float]) -> str:
    """What the query budget of a run left open for `exhausted` of n examples; `between` which robust accuracies."""
    low, high = between
    radius = "" if len(config["radii"]) == 1 else " at some radius"
    left = "" if low == high else f"; robust accuracy is from {low:.2%} to {high:.2%}"
    if config["min_norm"]:
        left = "; distances of those that are broken are upper bounds of an unfinished search"
    return (
        f"The budget of {config['black_box']['budget']:,} queries ran out for {exhausted:,} of {n:,} examples{radius} "
        f"before the attacks ended: they do not count as robust{left}. Raise `budget`, or give the attacks fewer steps"
    )
