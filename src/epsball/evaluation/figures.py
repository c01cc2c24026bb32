"""The figures of an evaluation that follow from its records alone: accuracies and their intervals, curves, distances.

Robust accuracy has two ends. Attacks give the upper one: an example that none of them breaks counts as robust.
Certificates, in a run that makes them, give the lower one; what is between the ends is undecided.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from epsball.common.intervals import wilson
from epsball.evaluation.convergence_record import budget_sentence
from epsball.evaluation.run_tables import Status, certifies

COUNTED = re.compile(r": \d+ unstable neurons ")
"""The part of a reason that differs from example to example."""


@dataclass(frozen=True)
class Figures:
    """The figures of the `records` of examples, a table with one row each, of a run with the configuration `config`."""

    config: dict[str, Any]
    records: pa.Table

    def __len__(self) -> int:
        return self.records.num_rows

    def count(self, status: Status) -> int:
        """How many examples ended so."""
        return int((self.records["status"].to_numpy(zero_copy_only=False) == status).sum())

    @property
    def clean_accuracy(self) -> float:
        """The share of examples that are classified correctly before any attack."""
        labels = self.records["label"].to_numpy()
        clean = self.records["clean_prediction"].to_numpy(zero_copy_only=False)  # not a number where there was none
        return float((labels == clean).mean()) if len(self) else math.nan

    @property
    def robust_accuracy(self) -> float:
        """The share of examples that are classified correctly under every attack, at the largest radius.

        With a target: the share of those that could be driven to it and were not. Examples for which a query budget ran
        out are not among them, nor are they broken: see `robust_accuracy_at_most`.
        """
        return self.curve[-1][1]

    @property
    def robust_accuracy_at_most(self) -> float:
        """`robust_accuracy` if all examples for which a query budget ran out were robust."""
        return self._share(self.not_broken()[-1])

    @property
    def exhausted(self) -> int:
        """For how many examples the query budget ran out before the attacks had ended, at some radius."""
        status = self.records["status"].to_numpy(zero_copy_only=False)
        return int((~np.isnan(optional(self.records, "exhausted_eps")) | (status == "exhausted")).sum())

    @property
    def budget_sentence(self) -> str | None:
        """What the query budget left open; None where it sufficed."""
        between = (self.robust_accuracy, self.robust_accuracy_at_most)
        return budget_sentence(self.config, self.exhausted, len(self), between) if self.exhausted else None

    @property
    def distances(self) -> np.ndarray:
        """The least distance at which each example is known to be misclassified, (n,), by id.

        0 for those that are misclassified without attack, infinite where nothing was found, not a number where logits
        were not finite, queries ran out or, with a target, the example was not to be driven there. It is an upper bound
        of the distance to the decision boundary, tight only where the run searched minimum-norm adversarial examples
        (`min_norm`).
        """
        status = self.records["status"].to_numpy(zero_copy_only=False)
        found = self.records["distance"].to_numpy(zero_copy_only=False).astype(float)
        found[status == "misclassified"] = math.nan if self.config["target"] else 0
        found[status == "robust"] = math.inf
        return found  # of the exhausted, as of the invalid, nothing is known

    def quantiles(self, shares: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> list[tuple[float, float]]:
        """(share, distance): so large a share of the examples is misclassified within that distance."""
        known = np.sort(self.distances)
        known = known[~np.isnan(known)]
        if not len(known):
            return [(share, math.nan) for share in shares]
        whole = [int(np.ceil(share * len(known))) for share in shares]
        return [(share, float(known[at - 1]) if at else 0.0) for share, at in zip(shares, whole, strict=True)]

    def accuracy_at(self, eps: float) -> float:
        """The share of examples without a known adversarial example within `eps`: the robustness curve anywhere."""
        n = self._attacked
        return float((self.distances > eps).sum() / n) if n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson) of `robust_accuracy`, which is measured on a sample of examples."""
        return wilson(int(self._robust()[-1].sum()), self._attacked)

    @property
    def certifies(self) -> bool:
        """Whether examples were also proved robust: then there are both ends."""
        return certifies(self.config)

    @property
    def certified_accuracy(self) -> float:
        """The share of examples that are proved robust, at the largest radius: no attack can lower it.

        It is at most `robust_accuracy`, the other end; not a number where the run did not certify.
        """
        return self.certified_curve[-1][1]

    @property
    def certified_interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson) of `certified_accuracy`; not numbers where the run did not certify."""
        return wilson(int(self._certified()[-1].sum()), self._attacked) if self.certifies else (math.nan, math.nan)

    @property
    def certified_curve(self) -> list[tuple[float | None, float]]:
        """(radius, certified accuracy at it), smallest first: the lower end of `curve`."""
        shares = [self._share(rows) if self.certifies else math.nan for rows in self._certified()]
        return list(zip(self.config["radii"], shares, strict=True))

    @property
    def undecided(self) -> int:
        """How many examples are neither broken nor proved robust, at the largest radius.

        `records["undecided"]` says why. 0 where the run did not certify: there nothing was to be decided.
        """
        return int((self._robust()[-1] & ~self._certified()[-1]).sum()) if self.certifies else 0

    @property
    def undecided_reasons(self) -> list[tuple[str, int]]:
        """(reason, examples): why they are neither broken nor proved robust, the most frequent reason first.

        Reasons that differ in a count of neurons only are one.
        """
        why = self.records["undecided"].drop_null().to_pylist() if self.undecided else []
        return Counter(COUNTED.sub(": ", reason) for reason in why).most_common()

    @property
    def certified_in_real_arithmetic(self) -> int:
        """How many of the proofs at the largest radius are not of the network as it rounds, too."""
        if not self.certifies:
            return 0
        return int((self._certified()[-1] & ~self.records["certified_as_run"].to_numpy(zero_copy_only=False)).sum())

    @property
    def undecided_interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson) of the share of the undecided; not numbers where the run did not certify."""
        return wilson(self.undecided, self._attacked) if self.certifies else (math.nan, math.nan)

    @property
    def curve(self) -> list[tuple[float | None, float]]:
        """(radius, robust accuracy at it), smallest first. The radius is None where it differs between examples."""
        return list(zip(self.config["radii"], map(self._share, self._robust()), strict=True))

    def _share(self, rows: np.ndarray) -> float:
        """What share these examples, (n,) boolean, are of those that could be broken."""
        return float(rows.sum() / self._attacked) if self._attacked else math.nan

    @property
    def _attacked(self) -> int:
        """How many examples robust accuracy is a share of."""
        return len(self) - (self.count("at-target") + self.count("misclassified") if self.config["target"] else 0)

    def not_broken(self) -> list[np.ndarray]:
        """The examples that are not broken at each radius of `curve`, (n,) boolean: robust or exhausted there."""
        return robust_at_each(self.records, self.config, exhausted=True)

    def _robust(self) -> list[np.ndarray]:
        return robust_at_each(self.records, self.config)

    def _certified(self) -> list[np.ndarray]:
        return certified_at_each(self.records, self.config)


def robust_at_each(records: pa.Table, config: dict[str, Any], *, exhausted: bool = False) -> list[np.ndarray]:
    """The examples that are robust at each radius of a run, (n,) boolean; also those that are `exhausted` there."""
    status = records["status"].to_numpy(zero_copy_only=False)
    radii = config["radii"]
    if len(radii) == 1 and not config["min_norm"]:
        return [np.isin(status, ("robust", "exhausted") if exhausted else ("robust",))]
    # comparisons with a radius that is not there are false
    broken, overflow = (records[name].to_numpy(zero_copy_only=False) for name in ("eps", "overflow_eps"))
    out = optional(records, "exhausted_eps")
    attacked = np.isin(status, ("robust", "fooled", "exhausted"))
    if not config["min_norm"]:  # there the radius is infinite
        attacked |= ~np.isnan(overflow)
    open_at = [attacked & ~(broken <= eps) & ~(overflow <= eps) for eps in radii]
    return open_at if exhausted else [rows & ~(out <= eps) for rows, eps in zip(open_at, radii, strict=True)]


def certified_at_each(records: pa.Table, config: dict[str, Any]) -> list[np.ndarray]:
    """The examples that are proved robust at each radius of a run, (n,) boolean: some of those that are not broken.

    None is where the run does not certify.
    """
    robust, radii = robust_at_each(records, config), config["radii"]
    if "certified" not in records.column_names:  # a run of 0.2.0
        return [np.zeros_like(rows) for rows in robust]
    if len(radii) == 1:  # which may be one for each feature
        proved = [records["certified"].fill_null(False).to_numpy(zero_copy_only=False)]
    else:
        largest = optional(records, "certified_eps")
        proved = [largest >= eps for eps in radii]
    return [rows & there for rows, there in zip(robust, proved, strict=True)]


def optional(records: pa.Table, name: str) -> np.ndarray:
    """A column of numbers (n,), not a number where it is null or, in a run of an older version, not there."""
    if name not in records.column_names:
        return np.full(len(records), np.nan)
    return records[name].to_numpy(zero_copy_only=False).astype(float)
