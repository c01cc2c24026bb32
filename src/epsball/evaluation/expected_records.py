"""What the records of a shard have to say, worked out from its stages, and a list of where they say something else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from epsball.balls.registry import distances
from epsball.problem.task import AWAY

CONFIDENCE = 1e-4
"""Confidences may differ by so much: between machines the last bits of logits do."""

DISTANCE = 1e-9
"""Distances may differ by so much of themselves: sums in double precision, in whatever order."""
WHOLE, REAL, TRUTH, TEXT = pa.int64(), pa.float64(), pa.bool_(), pa.string()
Columns = dict[str, pa.DataType | None]
CLEAN: Columns = {"id": WHOLE, "label": WHOLE, "prediction": WHOLE, "confidence": REAL, "valid": TRUTH}
STAGE: Columns = {"id": WHOLE, "fooled": TRUTH, "invalid": TRUTH, "forwards": WHOLE, "backwards": WHOLE}
STAGE |= {
    "adversarial_prediction": WHOLE,
    "adversarial_confidence": REAL,
    "crc32": pa.uint32(),
    "x_adv": None,
    "x": None,
}
RECORDS: Columns = {"id": WHOLE, "label": WHOLE, "target": WHOLE, "clean_prediction": WHOLE, "clean_confidence": REAL}
RECORDS |= {
    "status": TEXT,
    "attack": TEXT,
    "eps": REAL,
    "adversarial_prediction": WHOLE,
    "adversarial_confidence": REAL,
}
RECORDS |= {"distance": REAL, "overflow_eps": REAL, "forwards": WHOLE, "backwards": WHOLE}
ALWAYS = {"id", "label", "prediction", "valid", "fooled", "invalid", "forwards", "backwards", "status"}
"""The columns that are never null."""


def records_columns(norms: Iterable[str]) -> Columns:
    """The columns of a shard's records, with the distance in each norm."""
    return RECORDS | {name: WHOLE if "count" in norm.traits else REAL for name, norm in distances(norms).items()}


def check_columns(table: pa.Table, kinds: Columns) -> None:
    """Raise `ValueError` where a table does not have the columns that its file should; a kind of None is any."""
    for name, kind in kinds.items():
        if name not in table.column_names:
            raise ValueError(f"no column {name}")
        if kind is not None and table[name].type != kind:
            raise ValueError(f"{name} is {table[name].type} and not {kind}")
        if name in ALWAYS and table[name].null_count:
            raise ValueError(f"{name} is null in {table[name].null_count} rows")


@dataclass(eq=False)
class Differences:
    """Differences between what is stored and what was found, in the order they were met."""

    rows: list[tuple[int | None, str, str, str]] = field(default_factory=list)

    def add(self, id: int | None, what: str, stored: object, found: object) -> None:
        """A difference, if it is one; an id of None is the run's."""
        if stored != found:
            self.rows.append((None if id is None else int(id), what, str(stored), str(found)))

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
        for id in np.setdiff1d(want, have):
            self.add(id, "missing", "in the records", f"not in {name}")
        for id in np.setdiff1d(have, want):
            self.add(id, "missing", f"in {name}", "not among those that stood")
        self.add(None, "count", f"{name}: {len(have)} ids", f"{name}: {len(np.unique(have))} ids")
        _, rows, places = np.intersect1d(have, want, return_indices=True)
        order = places.argsort()
        return rows[order], places[order]

    def table(self) -> pa.Table:
        """Columns id (null: the run), what, stored, found; by id, the run's first."""
        rows = sorted(self.rows, key=lambda row: (row[0] is not None, row[0] or 0))
        columns = list(zip(*rows, strict=True)) or [()] * 4
        schema = pa.schema([("id", pa.int64()), ("what", pa.string()), ("stored", pa.string()), ("found", pa.string())])
        return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema)


@dataclass(eq=False)
class Claims:
    """The records of a shard as they follow from its stages, row by row; `confirmed` where a success was seen again.

    `places` are the rows' numbers in the whole run, `logits` (n, classes) the clean ones, None where none were kept.
    `found_at` are the clean predictions as they were made anew, -1 where logits are not finite; `data_rows` the rows in
    the data at hand, -1 for none. `known` are the distances at which examples are fooled so far in a run that seeks the
    nearest points (`min_norm`), `norms` those of the points that were looked at, by name.
    """

    ids: np.ndarray
    y: np.ndarray
    target: np.ndarray
    places: np.ndarray
    at: np.ndarray
    valid: np.ndarray
    logits: np.ndarray | None
    min_norm: bool
    norm_names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.ids)
        self.status = np.full(n, "robust", dtype=object)
        self.status[self.at != self.y] = "wrong"
        there = (self.target == self.y) | (self.target == self.at)
        self.status[(self.target != AWAY) & there] = "at-target"
        self.status[~self.valid] = "invalid"
        self.attack = np.full(n, None, dtype=object)
        self.eps, self.overflow = np.full(n, np.nan), np.full(n, np.nan)
        self.overflowed, self.confirmed = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self.forwards, self.backwards = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.prediction, self.confidence = np.full(n, np.nan), np.full(n, np.nan)
        self.known = np.full(n, np.inf)
        self.norms = {name: np.full(n, np.nan) for name in ("distance", *self.norm_names)}
        self.found_at = np.where(self.valid, self.at, -1)
        self.data_rows = np.full(n, -1)

    @classmethod
    def of(
        cls,
        records: pa.Table,
        start: int,
        at: np.ndarray,
        valid: np.ndarray,
        logits: np.ndarray | None,
        *,
        min_norm: bool,
        norms: Iterable[str],
    ) -> Self:
        """Before any stage: who was right, and may be attacked."""
        ids, y = (records[name].to_numpy() for name in ("id", "label"))
        target = records["target"].fill_null(AWAY).to_numpy()
        return cls(ids, y, target, start + np.arange(len(ids)), at, valid, logits, min_norm, tuple(norms))

    def standing(self, everywhere: bool, radii: np.ndarray) -> np.ndarray:
        """The rows that the next attack is run on, at these radii (n,) or wherever there may be a nearer point."""
        if not self.min_norm:
            return np.flatnonzero(self.status == "robust")
        may = np.isin(self.status, ("robust", "fooled")) & (self.known > 0)
        return np.flatnonzero(may if everywhere else may & (self.known > radii))

    def after(self, table: pa.Table, rows: np.ndarray, attack: str, radii: np.ndarray) -> np.ndarray:
        """Enter the outcome of an attack on `rows`; which of the table's rows fell."""
        fooled, invalid = (table[name].to_numpy(zero_copy_only=False) for name in ("fooled", "invalid"))
        self.forwards[rows] += table["forwards"].to_numpy()
        self.backwards[rows] += table["backwards"].to_numpy()
        lost, fell = rows[invalid & ~fooled], rows[fooled]
        self.overflowed[lost] = True
        self.overflow[lost] = np.fmin(self.overflow[lost], radii[lost])
        if self.min_norm:
            self.known[fell] = values(table, "distance")[fooled]
            radii = np.fmin(self.known, radii)
        self.status[fell], self.attack[fell], self.eps[fell] = "fooled", attack, radii[fell]
        self.prediction[fell] = values(table, "adversarial_prediction")[fooled]
        self.confidence[fell] = values(table, "adversarial_confidence")[fooled]
        return fooled

    def finish(self) -> None:
        """After the last stage: who met logits that are not finite does not count as robust."""
        self.status[self.overflowed & (self.status == "robust")] = "invalid"

    def against(self, records: pa.Table, differences: Differences) -> None:
        """Where the records say something else."""
        columns = {
            "status": ("status", self.status),
            "attack": ("attack", self.attack),
            "eps": ("eps", self.eps),
            "overflow_eps": ("eps", self.overflow),
            "adversarial_prediction": ("prediction", self.prediction),
            "adversarial_confidence": ("confidence", self.confidence),
            "forwards": ("passes", self.forwards),
            "backwards": ("passes", self.backwards),
            "clean_prediction": ("clean prediction", np.where(self.valid, self.at, np.nan)),
        }
        for name, (what, found) in columns.items():
            differences.compare(self.ids, what, values(records, name), found)
        for name, found in self.norms.items():
            said = (self.status != "fooled") | ~np.isnan(found)  # of points that cannot be read all is said already
            differences.compare(self.ids[said], "distance", values(records, name)[said], found[said], rtol=DISTANCE)

    def table(self, records: pa.Table) -> pa.Table:
        """The records with only those fooled that were confirmed, and the clean predictions made anew."""
        fooled = (self.status == "fooled") & self.confirmed
        status = np.where((self.status == "fooled") & ~fooled, "robust", self.status)
        status[(status == "robust") & (self.found_at != self.y)] = "wrong"
        replaced: dict[str, Any] = {
            "status": pa.array(status, pa.string()),
            "eps": pa.array(self.eps, mask=~fooled | np.isnan(self.eps)),
            "clean_prediction": pa.array(self.found_at, mask=self.found_at < 0),
        }
        for name, column in replaced.items():
            records = records.set_column(records.column_names.index(name), name, column)
        return records


def values(table: pa.Table, name: str) -> np.ndarray:
    """A column as an array; numbers that are null are not a number, text that is null is None."""
    column = table[name]
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    return column.to_numpy(zero_copy_only=False)
