"""The differences that a verification finds, one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from epsball.balls.registry import distances
from epsball.common.record import Record
from epsball.evaluation.run_tables import PROVED, REAL, RECORDS, WHOLE, Columns


def records_columns(norms: Iterable[str], *, proofs: bool) -> Columns:
    """The columns of a shard's records, with the distance in each norm; with `proofs` of a run that certifies."""
    return (
        RECORDS
        | (PROVED if proofs else {})
        | {name: WHOLE if "count" in norm.traits else REAL for name, norm in distances(norms).items()}
    )


@dataclass(frozen=True)
class Difference(Record):
    """One difference: of an example, or of the whole run (`id` None), between what is `stored` and what was `found`.

    `what` is one of success, containment, prediction, clean prediction, confidence, clean confidence, distance, nearer,
    label, status, attack, eps, model calls, checksum, x, missing, damaged, count, model, data, ball, storage, target,
    accuracy; and of proofs certified, certified as run, margin, undecided.
    """

    id: int | None
    what: str
    stored: str
    found: str


@dataclass(eq=False)
class Differences:
    """Differences between what is stored and what was found, in the order they were met."""

    rows: list[Difference] = field(default_factory=list)

    def add(self, id: int | None, what: str, stored: object, found: object) -> None:
        """A difference, if it is one; an id of None is the run's."""
        if stored != found:
            self.rows.append(Difference(None if id is None else int(id), what, str(stored), str(found)))

    def missing(self, ids: Iterable[int], stored: object, found: object) -> None:
        """Something of these examples is not there."""
        for id in ids:
            self.add(id, "missing", stored, found)

    def compare(
        self, ids: np.ndarray, what: str, stored: np.ndarray, found: np.ndarray, *, rtol: float = 0, atol: float = 0
    ) -> None:
        """The differences between two columns (m,); where a value is missing (None, not a number) in both, none."""
        if stored.dtype == object or found.dtype == object:
            same = stored == found
        elif rtol or atol:
            same = np.isclose(stored, found, rtol=rtol, atol=atol, equal_nan=True)
        else:
            same = (stored == found) | ((stored != stored) & (found != found))
        for row in np.flatnonzero(~same):
            self.add(ids[row], what, f"{stored[row]}", f"{found[row]}")

    def paired(self, name: str, have: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a file and their places in `want`, by id; an id that is on one side only is a difference."""
        self.missing(np.setdiff1d(want, have), "in the records", f"not in {name}")
        self.missing(np.setdiff1d(have, want), f"in {name}", "not among those to attack")
        self.add(None, "count", f"{name}: {len(have)} ids", f"{name}: {len(np.unique(have))} ids")
        _, rows, places = np.intersect1d(have, want, return_indices=True)
        order = places.argsort()
        return rows[order], places[order]

    def sorted(self) -> tuple[Difference, ...]:
        """All differences by id, the run's first."""
        return tuple(sorted(self.rows, key=lambda row: (row.id is not None, row.id or 0)))
