"""What is proved of the examples of a shard, which follows from the tables of its certifying stages."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import pyarrow as pa

from epsball.evaluation import run_directory


class ShardProofs:
    """What is proved of `n` examples so far, at which of the run's `radii`; in a run that does not certify, nothing.

    `at` (n,) is the place among the radii of the largest one at which an example is proved robust, -1 for none, `eps`
    (n,) that radius; `margin`, `method` and `as_run` (n,) are those of the proof there. `reason` (n,) says why there is
    no proof at the largest radius, None where nobody looked for one.
    """

    def __init__(self, n: int, radii: Sequence[float | None], *, certifies: bool) -> None:
        self.certifies, self.last = certifies, len(radii) - 1
        self.at = np.full(n, -1)
        self.eps, self.margin = np.full(n, np.nan), np.full(n, np.nan)
        self.as_run = np.zeros(n, dtype=bool)
        self.method, self.reason = np.full(n, None, dtype=object), np.full(n, None, dtype=object)
        self._rivals: list[tuple[int, np.ndarray]] = []

    def add(self, table: pa.Table, rows: np.ndarray, at: int, radii: np.ndarray) -> None:
        """Enter the table of a stage at the radius of place `at`, (n,) of which are `radii`; its rows are `rows`."""
        verified = table["verified"].to_numpy(zero_copy_only=False)
        proved = rows[verified]
        self.at[proved], self.eps[proved] = at, radii[proved]
        for name in ("margin", "method", "as_run"):
            getattr(self, name)[proved] = table[name].to_numpy(zero_copy_only=False)[verified]
        if at == self.last:
            self.reason[rows] = table["reason"].to_numpy(zero_copy_only=False)
            self.reason[proved] = None

    def add_rivals(self, table: pa.Table, rows: np.ndarray, at: int) -> None:
        """Enter which classes a stage has proved to be out of reach, for the attacks after it."""
        rivals = run_directory.points(table["rivals"], (-1,)).astype(bool)
        everywhere = np.ones((len(self.at), rivals.shape[1]), dtype=bool)
        everywhere[rows] = rivals
        self._rivals.append((at, everywhere))

    def accept(self, rows: np.ndarray, at: int, radii: np.ndarray) -> None:
        """Enter that `rows` are proved at the radius of place `at`, of which no more is known."""
        self.at[rows], self.eps[rows] = at, radii[rows]

    def only(self, confirmed: np.ndarray) -> ShardProofs:
        """The proofs without those that are not `confirmed`, (n,) boolean."""
        found = copy(self)
        found.at, found.eps = np.where(confirmed, self.at, -1), np.where(confirmed, self.eps, np.nan)
        return found

    def rivals(self, at: int) -> np.ndarray | None:
        """The classes (n, classes) that are not proved out of reach at the radius of place `at`; None where all are.

        What is proved at a radius is so at the smaller ones. Where no class is left and the example is not proved, as
        rounding may have it, all are.
        """
        known = [rivals for place, rivals in self._rivals if place >= at]
        if not known:
            return None
        found = np.logical_and.reduce(known)
        found[~found.any(1)] = True
        return found

    def columns(self, status: np.ndarray) -> dict[str, pa.Array]:
        """The columns of the records; without certification they are null. `status` (n,) is what became of each."""
        proved = self.at >= 0
        certified = (self.at == self.last) & (status == "robust")
        unknown = np.full(len(proved), not self.certifies)
        decided = (status != "robust") | certified
        return {
            "certified": pa.array(certified, mask=unknown),
            "certified_as_run": pa.array(certified & self.as_run, mask=unknown),
            "certified_eps": pa.array(self.eps, mask=~proved | np.isnan(self.eps)),
            "certified_margin": pa.array(self.margin, mask=~proved),
            "certified_method": pa.array(self.method, pa.string()),
            "undecided": pa.array(self.reason, pa.string(), mask=decided),
        }
