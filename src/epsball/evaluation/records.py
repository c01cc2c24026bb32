"""The records of a shard follow from its stages: one computation, for the run and for its verification.

A stage's table says which of the attacked rows were fooled, at what cost, and what the model answered there. Taken
together in their order, the stages give each example its status, the attack that broke it, the radius and the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from epsball.balls.registry import distances
from epsball.evaluation import run_directory
from epsball.evaluation.counts import Counts
from epsball.evaluation.shard_proofs import ShardProofs
from epsball.problem.task import AWAY


class ShardRecords:
    """The records of a shard, row by row, so far.

    `ids`, `labels`, `target` (AWAY for none) and `clean_prediction` (n,) are integers, `valid` says whether the clean
    logits are finite. `known` are the distances at which examples are fooled so far in a run with `min_norm`, infinite
    before; `distances` those of the stored points, by name: in the ball's norm ("distance") and in each of its norms.
    `config` is that of the run. `proofs` are the other end: what is proved of each.
    """

    def __init__(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        target: np.ndarray,
        clean: tuple[np.ndarray, np.ndarray],
        config: Mapping[str, Any],
    ) -> None:
        n, self.run_radii = len(ids), list(config["radii"])
        self.ids, self.labels, self.target, self.min_norm = ids, labels, target, config["min_norm"]
        self.clean_prediction, self.valid = clean
        self.status = np.full(n, "robust", dtype=object)
        self.status[self.clean_prediction != labels] = "misclassified"
        at_target = (target == labels) | (target == self.clean_prediction)
        self.status[(target != AWAY) & at_target] = "at-target"
        self.status[~self.valid] = "invalid"
        self.attack = np.full(n, None, dtype=object)
        self.broken_at = np.full(n, len(self.run_radii))  # the place of the smallest such radius, beyond the last: none
        self.proofs = ShardProofs(n, self.run_radii, certifies=config.get("certify") is not None)
        self.eps, self.overflow_eps = np.full(n, np.nan), np.full(n, np.nan)
        self.overflowed = np.zeros(n, dtype=bool)
        # the last radius, whether the queries ran out there, and the smallest radius from which on they always did
        self.last_eps, self.exhausted = np.full(n, np.nan), np.zeros(n, dtype=bool)
        self.exhausted_eps = np.full(n, np.nan)
        self.forwards, self.backwards = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.prediction, self.confidence = np.full(n, np.nan), np.full(n, np.nan)
        self.known = np.full(n, np.inf)
        self.distances = {name: np.full(n, np.nan) for name in ("distance", *(config.get("norms") or ()))}

    def place(self, eps: float | None) -> int:
        """The place of a stage's radius among those of the run; 0 where it is none of them, in a minimum-norm run."""
        return self.run_radii.index(eps) if eps in self.run_radii else 0

    def counts(self, at: int) -> Counts:
        """How many examples are broken, robust and proved at the radius of place `at` so far."""
        if self.min_norm:
            return Counts(int((self.status == "robust").sum()), 0, int((self.status == "fooled").sum()))
        proved = int((self.proofs.at >= at).sum())
        return Counts(int(self.open(at).sum()) + proved, proved, int((self.broken_at <= at).sum()))

    def open(self, at: int) -> np.ndarray:
        """The examples (n,) that are neither broken nor proved robust at the radius of place `at`."""
        unknown = np.isin(self.status, ("robust", "fooled")) & (self.broken_at > at)
        return unknown & (self.proofs.at < at)

    def rows(self, stage: Mapping[str, Any], radii: np.ndarray, at: int) -> np.ndarray:
        """The rows that a stage of `config.json` works on, at its `radii` (n,), which are those of place `at`.

        They are the open ones; to be certified, those whose logits were finite in all attacks. With `min_norm` they are
        those with a known distance beyond the stage's radii, or, where it is not one of fixed radii, wherever something
        nearer may be.
        """
        if not self.min_norm:
            proving = stage.get("certifies") is not None
            return np.flatnonzero(self.open(at) & ~(self.overflowed & proving))
        everywhere = stage["minimises"] or stage["within"] is not None
        may = np.isin(self.status, ("robust", "fooled")) & (self.known > 0)
        return np.flatnonzero(may if everywhere else may & (self.known > radii))

    def add_stage(self, table: pa.Table, rows: np.ndarray, attack: str, radii: np.ndarray, at: int) -> np.ndarray:
        """Enter the table of a stage, whose rows are `rows` of the shard; which of the table's rows were fooled.

        The radii (n,) of the stage are those of place `at` in the run.
        """
        fooled, invalid = (table[name].to_numpy(zero_copy_only=False) for name in ("fooled", "invalid"))
        self.forwards[rows] += table["forwards"].to_numpy()
        self.backwards[rows] += table["backwards"].to_numpy()
        lost, broken = rows[invalid & ~fooled], rows[fooled]
        self.overflowed[lost] = True  # also where a radius per feature is no number
        self.overflow_eps[lost] = np.fmin(self.overflow_eps[lost], radii[lost])
        self.add_exhausted(rows, table["exhausted"].to_numpy(zero_copy_only=False), radii)
        if self.min_norm:
            self.known[broken] = values(table, "distance")[fooled]
            radii = np.fmin(self.known, radii)
        else:  # broken at the radius where an earlier attack had no queries left
            self.exhausted_eps[broken[self.exhausted_eps[broken] >= radii[broken]]] = np.nan
        self.status[broken], self.attack[broken], self.eps[broken] = "fooled", attack, radii[broken]
        self.broken_at[broken] = at
        self.prediction[broken] = values(table, "adversarial_prediction")[fooled]
        self.confidence[broken] = values(table, "adversarial_confidence")[fooled]
        return fooled

    def add_exhausted(self, rows: np.ndarray, exhausted: np.ndarray, radii: np.ndarray) -> None:
        """Enter which of `rows` a stage had no queries left for.

        A search that was ended at a radius covers the smaller ones. With `min_norm` it is one for all radii.
        """
        if self.min_norm:
            self.exhausted[rows] |= exhausted
            self.exhausted_eps[rows[exhausted]] = 0
            return
        begun = rows[radii[rows] > self.last_eps[rows]]
        self.exhausted_eps[begun[~self.exhausted[begun]]] = np.nan
        self.exhausted[begun] = False
        self.last_eps[rows] = radii[rows]
        out = rows[exhausted]
        self.exhausted[out] = True
        self.exhausted_eps[out] = np.fmin(self.exhausted_eps[out], radii[out])

    def finish(self) -> None:
        """After the last stage: an example counts as robust where its logits are finite and its queries sufficed."""
        robust = self.status == "robust"
        self.exhausted_eps[robust & ~self.exhausted] = np.nan
        self.status[robust & self.exhausted] = "exhausted"
        self.status[robust & self.overflowed] = "invalid"

    def table(self, clean_confidence: Any) -> pa.Table:
        """The records, one row per example; what is known of adversarial examples only is null for the others."""
        found: dict[str, pa.Array] = {}
        floats = {"eps": self.eps, "adversarial_prediction": self.prediction, "adversarial_confidence": self.confidence}
        counts = {name for name, norm in distances(list(self.distances)[1:]).items() if "count" in norm.traits}
        for name, column in (floats | self.distances).items():
            null = (self.status != "fooled") | np.isnan(column)
            whole = name in counts or name == "adversarial_prediction"
            column = np.where(null, 0, column).astype(np.int64) if whole else column
            found[name] = pa.array(column, mask=null)
        return run_directory.table(
            {
                "id": self.ids,
                "label": self.labels,
                "target": pa.array(self.target, mask=self.target == AWAY),
                "clean_prediction": pa.array(self.clean_prediction, mask=~self.valid),
                "clean_confidence": clean_confidence,
                "status": pa.array(self.status, pa.string()),
                "attack": pa.array(self.attack, pa.string()),
                **found,
                "overflow_eps": pa.array(self.overflow_eps, mask=np.isnan(self.overflow_eps)),
                "exhausted_eps": pa.array(self.exhausted_eps, mask=np.isnan(self.exhausted_eps)),
                **self.proofs.columns(self.status),
                "forwards": self.forwards,
                "backwards": self.backwards,
            }
        )


def values(table: pa.Table, name: str) -> np.ndarray:
    """A column as an array; numbers that are null are not a number, text that is null is None."""
    column = table[name]
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    return column.to_numpy(zero_copy_only=False)
