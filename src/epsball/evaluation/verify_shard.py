"""One shard of a finished run, recomputed from its stages' tables and compared with its records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.ball_file import inside_box
from epsball.balls.linf import Linf
from epsball.balls.registry import distances
from epsball.common.noise import Noise
from epsball.evaluation import run_directory
from epsball.evaluation.differences import records_columns
from epsball.evaluation.plan import numbers
from epsball.evaluation.point_storage import checksums
from epsball.evaluation.records import ShardRecords, values
from epsball.evaluation.run_tables import CERTIFY, CLEAN, certifies, stage_columns
from epsball.evaluation.stage_tables import bad_rows, stage_file
from epsball.evaluation.stored_certificates import rechecked
from epsball.evaluation.stored_run import StoredRun, confidence_of
from epsball.problem.objective import prediction
from epsball.problem.task import AWAY, Task

CONFIDENCE = 1e-4
"""Confidences may differ by so much: between machines the last bits of logits do."""
DISTANCE = 1e-9
"""Distances may differ by so much of themselves: sums in double precision, in whatever order."""

MARGIN = 1e-6
"""Margins may differ by so much, of themselves or at all: sums in double precision, in whatever order."""

WHAT = {
    "status": "status",
    "attack": "attack",
    "eps": "eps",
    "overflow_eps": "eps",
    "exhausted_eps": "eps",
    "adversarial_prediction": "prediction",
    "adversarial_confidence": "confidence",
    "forwards": "model calls",
    "backwards": "model calls",
    "clean_prediction": "clean prediction",
}
PROOFS = {
    "certified": "certified",
    "certified_as_run": "certified as run",
    "certified_eps": "certified",
    "certified_margin": "margin",
    "certified_method": "certified",
    "undecided": "undecided",
}
"""What a difference in a column of the records is called; the second those that a run has that certifies."""


class VerifiedShard:
    """A shard whose `stored` records are compared with those that follow from its stages.

    `expected` are these; `confirmed` says which of its successes were reproduced, `proved` which of its certificates,
    `clean_found` are the clean predictions made anew (-1 where logits are not finite), `clean_checked` how many those
    are; `of_data` (n, *shape) the examples as the data at hand have them, not a number where they have none; `places`
    their numbers in the whole run.
    """

    def __init__(self, run: StoredRun, number: int, start: int, stored: pa.Table, clean: pa.Table | None) -> None:
        self.run, self.number, self.stored = run, number, stored
        self.differences = run.differences
        ids, bad = stored["id"].to_numpy(), () if clean is None else bad_rows(run_directory.notes(clean))
        self.left_out = len(bad)
        self.places = start + np.searchsorted(np.union1d(ids, [row.id for row in bad]).astype(np.int64), ids)
        self.clean_prediction = stored["clean_prediction"].fill_null(0).to_numpy().copy()
        self.valid = stored["clean_prediction"].is_valid().to_numpy().copy()
        self.logits: np.ndarray | None = None
        self.crc32: np.ndarray | None = None
        self.moved = np.full(len(stored), False)
        if clean is not None:
            self.check_clean(clean)
        self.expected = ShardRecords(
            stored["id"].to_numpy(),
            stored["label"].to_numpy(),
            stored["target"].fill_null(AWAY).to_numpy(),
            (self.clean_prediction, self.valid),
            run.config,
        )
        self.ids = self.expected.ids
        self.confirmed = np.zeros(len(stored), dtype=bool)
        self.proved = np.zeros(len(stored), dtype=bool)
        self.clean_found = np.where(self.valid, self.clean_prediction, -1)
        self.of_data: np.ndarray | None = None
        self.clean_checked = 0

    @property
    def certified(self) -> int:
        """How many examples the shard's records count as proved robust, at some radius."""
        return int((self.expected.proofs.at >= 0).sum())

    def verify(self) -> None:
        """Check every stage in its order, then the records."""
        if self.run.data is not None:
            self.check_data()
        names = ["clean"]
        for stage in self.run.config["stages"]:
            at, radii = self.expected.place(stage["eps"]), self.run.radii(stage, self.places, self.expected.known)
            rows = self.expected.rows(stage, radii, at)
            if not len(rows):
                continue
            names.append(stage["name"])
            proves = stage.get("certifies") is not None
            path = stage_file(self.run.path, self.number, stage["name"])
            table = self.run.read(path, CERTIFY if proves else stage_columns(self.expected.min_norm))
            if table is None and proves:
                self.accept_unproved(rows, radii, at)
            elif table is None:
                self.accept_unread(stage, rows, radii, path.name)
            else:
                if proves:
                    self.check_certificates(stage, rows, radii, table, path.name)
                self.check_stage(stage, rows, radii, table, path.name)
        self.expected.finish()
        stored = run_directory.notes(self.stored).get("stages")
        shard = f"shard {self.number}: stages"
        self.differences.add(None, "count", f"{shard} {stored}", f"{shard} {names}")
        self.check_records()

    def check_clean(self, clean: pa.Table) -> None:
        """Take the clean predictions from the clean stage, and check them by the logits stored beside them."""
        compare = self.differences.compare
        ids = self.stored["id"].to_numpy()
        rows, places = self.differences.paired("the clean stage", clean["id"].to_numpy(), ids)
        clean, ids = clean.take(pa.array(rows)), ids[places]
        confidence, found = clean["confidence"].to_numpy(), clean["prediction"].to_numpy()
        valid = clean["valid"].to_numpy(zero_copy_only=False)
        compare(ids, "label", self.stored["label"].to_numpy()[places], clean["label"].to_numpy())
        compare(ids, "clean confidence", values(self.stored, "clean_confidence")[places], confidence)
        self.clean_prediction[places], self.valid[places] = found, valid
        if "crc32" in clean.column_names and len(places) == len(self.stored):
            self.crc32 = np.zeros(len(self.stored), dtype=np.uint32)
            self.crc32[places] = clean["crc32"].to_numpy()
        if "logits" in clean.column_names:
            logits = torch.from_numpy(run_directory.points(clean["logits"], (-1,)).copy())
            compare(ids, "clean prediction", found, prediction(logits).numpy())
            compare(ids, "clean prediction", valid, logits.isfinite().all(1).numpy())
            compare(ids, "clean confidence", confidence, confidence_of(logits), atol=CONFIDENCE)
            self.logits = np.full((len(self.stored), logits.shape[1]), np.nan)
            self.logits[places] = logits.numpy()

    def check_data(self) -> None:
        """Labels and clean predictions of the whole shard, with the data at hand."""
        of_data = self.run.examples(self.ids)
        known = np.isin(self.ids, of_data.ids.cpu().numpy())
        self.differences.missing(self.ids[~known], "in the run", "not in the data")
        where = np.flatnonzero(known)  # both are in the order of the ids
        self.differences.compare(self.ids[where], "label", self.expected.labels[where], of_data.y.cpu().numpy())
        if len(where) and of_data.shape == self.run.shape:
            x = of_data.x.to(self.run.device, self.run.dtype)
            self.of_data = np.full((len(self.ids), *self.run.shape), np.nan, dtype=numbers(x[:1]).dtype)
            self.of_data[where] = numbers(x)
            if self.crc32 is not None:
                self.moved[where] = self.crc32[where] != checksums(numbers(x))
                self.differences.compare(self.ids[where], "x", np.full(len(where), False), self.moved[where])
            self.check_clean_predictions(where, self.run.forward(self.task(where, x, None), x))

    def accept_unread(self, stage: dict[str, Any], rows: np.ndarray, radii: np.ndarray, name: str) -> None:
        """A stage whose file cannot be read: whoever the records say was fooled there is taken over, unconfirmed."""
        expected, stored = self.expected, self.stored
        eps = values(stored, "eps")
        fooled = rows[values(stored, "attack")[rows] == stage["attack"]]
        if not expected.min_norm:
            fooled = fooled[(eps == radii)[fooled] | np.isnan(radii[fooled])]
        self.differences.missing(self.ids[fooled], f"fooled by {stage['attack']}", f"nothing to read in {name}")
        expected.status[fooled], expected.attack[fooled], expected.eps[fooled] = "fooled", stage["attack"], eps[fooled]
        expected.broken_at[fooled] = expected.place(stage["eps"])
        expected.known[fooled], self.confirmed[fooled] = values(stored, "distance")[fooled], False
        for distance in expected.distances.values():
            distance[fooled] = np.nan

    def check_stage(
        self, stage: dict[str, Any], rows: np.ndarray, radii: np.ndarray, table: pa.Table, name: str
    ) -> None:
        """One attack at one radius: its summary, the rows that it says are fooled, and each of its points."""
        expected, differences = self.expected, self.differences
        self.check_summary(stage, table, len(rows), name)
        paired, places = differences.paired(name, table["id"].to_numpy(), self.ids[rows])
        table, rows = table.take(pa.array(paired)), rows[places]
        before = expected.known.copy()
        fooled = expected.add_stage(table, rows, stage["attack"], radii, expected.place(stage["eps"]))
        if expected.min_norm:
            broken = rows[fooled]
            nearer = expected.known[broken] < before[broken]
            differences.compare(self.ids[broken], "nearer", np.full(len(broken), True), nearer)
        there = np.all([table[part].is_valid().to_numpy() for part in ("x_adv", "x", "crc32")], axis=0)
        differences.missing(self.ids[rows[fooled & ~there]], f"fooled by {stage['attack']}", f"no point in {name}")
        for id in self.ids[rows[~fooled & there]]:
            differences.add(id, "success", "not fooled", f"a point in {name}")
        table, rows = table.filter(pa.array(fooled & there)), rows[fooled & there]
        readable, points = self.points(table, name)
        if readable.any():
            self.check_points(stage, rows[readable], table.filter(pa.array(readable)), points)

    def accept_unproved(self, rows: np.ndarray, radii: np.ndarray, at: int) -> None:
        """Proofs whose file cannot be read: what the records say is taken over, and not confirmed."""
        proved = values(self.stored, "certified_eps") == radii
        proved |= np.isnan(radii) & (values(self.stored, "certified") == np.True_)
        self.expected.proofs.accept(rows[proved[rows]], at, radii)

    def check_certificates(
        self, stage: dict[str, Any], rows: np.ndarray, radii: np.ndarray, table: pa.Table, name: str
    ) -> None:
        """One certification at one radius: its summary, and each of its certificates, evaluated anew."""
        proofs, at, differences = self.expected.proofs, self.expected.place(stage["eps"]), self.differences
        claimed = run_directory.notes(table).get("stage", {}).get("certified")
        count = int(values(table, "verified").sum())
        differences.add(None, "count", f"{name}, certified: {claimed}", f"{name}, certified: {count}")
        _, paired, places = np.intersect1d(table["id"].to_numpy(), self.ids[rows], return_indices=True)
        table, rows = table.take(pa.array(paired)), rows[places]
        proofs.add(table, rows, at, radii)
        verified = values(table, "verified")
        ids, kept = self.ids[rows], table["certificate"].is_valid().to_numpy()
        differences.compare(ids, "certified", verified, kept)
        differences.compare(ids, "certified", verified & values(table, "fooled"), np.full(len(ids), False))
        there = kept & table["x"].is_valid().to_numpy() & table["crc32"].is_valid().to_numpy()
        differences.missing(ids[kept & ~there], "certified", f"no example in {name}")
        table, rows = table.filter(pa.array(there)), rows[there]
        readable, points = self.points(table, name, ("x",))
        if readable.any():
            self.recheck(stage, rows[readable], table.filter(pa.array(readable)), points["x"])

    def recheck(self, stage: dict[str, Any], rows: np.ndarray, table: pa.Table, points: np.ndarray) -> None:
        """Evaluate the certificates of `rows` anew, for the examples that are stored beside them."""
        run, compare, ids = self.run, self.differences.compare, self.ids[rows]
        compare(ids, "checksum", table["crc32"].to_numpy(), checksums(points))
        x, ball = run.decoded(points), run.ball(stage, self.places[rows])
        if self.crc32 is not None:
            compare(ids, "x", self.crc32[rows], checksums(numbers(x)))
        if ball is None:
            return
        compare(ids, "containment", np.full(len(rows), True), inside_box(ball, x).cpu().numpy())
        margin, as_run = rechecked(run, self.task(rows, x, ball), table["certificate"].to_pylist(), ids)
        compare(ids, "certified", values(table, "verified"), margin > 0)
        compare(ids, "margin", values(table, "margin"), margin, rtol=MARGIN, atol=MARGIN)
        compare(ids, "certified as run", values(table, "as_run"), as_run > 0)
        self.proved[rows] = margin > 0

    def points(
        self, table: pa.Table, name: str, parts: tuple[str, ...] = ("x_adv", "x")
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Which rows hold points that can be read, (m,) boolean, and these points; each other row is a difference."""
        readable, found = np.full(len(table), False), {part: [] for part in parts}
        for row, id in enumerate(table["id"].to_pylist()):
            try:
                points = {part: run_directory.points(table[part].slice(row, 1), self.run.shape) for part in parts}
            except ValueError as error:
                self.differences.add(id, "damaged", name, error)
                continue
            readable[row] = True
            for part in parts:
                found[part].append(points[part])
        return readable, {part: np.concatenate(rows) for part, rows in found.items() if rows}

    def check_summary(self, stage: dict[str, Any], table: pa.Table, attacked: int, name: str) -> None:
        """The summary of a stage against its own table, and against the configuration."""
        summary = run_directory.notes(table).get("stage", {})
        counted = ("fooled", "exhausted", "forwards", "backwards", "queries")
        sums = {part: int(values(table, part).sum()) for part in counted}
        configured = {part: stage[part] for part in ("name", "attack", "eps")}
        for part, value in (configured | {"attacked": attacked} | sums).items():
            self.differences.add(None, "count", f"{name}, {part}: {summary.get(part)}", f"{name}, {part}: {value}")

    def check_points(
        self, stage: dict[str, Any], rows: np.ndarray, table: pa.Table, points: dict[str, np.ndarray]
    ) -> None:
        """Recompute success, containment, clean prediction and distances from the points stored for `rows`."""
        run, compare = self.run, self.differences.compare
        ids, true = self.ids[rows], np.full(len(rows), True)
        compare(ids, "checksum", table["crc32"].to_numpy(), checksums(*points.values()))
        kind = "8bit" if points["x_adv"].dtype == np.uint8 else "float"  # examples off the levels are never 8-bit
        self.differences.add(None, "storage", f"x_adv: {run.storage.x_adv}", f"x_adv: {kind}")
        z, x = run.decoded(points["x_adv"]), run.decoded(points["x"])
        ball = run.ball(stage, self.places[rows])
        task = self.task(rows, x, ball)
        output = run.forward(task, z)
        success, inside = run.objective.succeeds(output, task).cpu().numpy(), np.full(len(rows), False)
        norms = distances(run.norms)
        if ball is not None:
            inside = (ball.contains(z, x) & inside_box(ball, x)).cpu().numpy()
            norms["distance"] = ball
        compare(ids, "success", true, success)
        compare(ids, "containment", true, inside)
        self.confirmed[rows] = success & inside
        compare(ids, "prediction", table["adversarial_prediction"].to_numpy(), prediction(output).cpu().numpy())
        confidence = table["adversarial_confidence"].to_numpy(zero_copy_only=False)
        compare(ids, "confidence", confidence, confidence_of(output), atol=CONFIDENCE)
        for name, norm in norms.items():
            self.expected.distances[name][rows] = norm.exact_distance(z, x).cpu().numpy()
        if self.expected.min_norm:
            found = self.expected.distances["distance"][rows]
            compare(ids, "distance", values(table, "distance"), found, rtol=DISTANCE)
        if run.data is None:
            self.check_clean_predictions(rows, run.forward(task, x))
        elif self.of_data is not None:
            same = (self.of_data[rows] == numbers(x)).reshape(len(x), -1).all(1)
            compare(ids, "x", true, same | self.moved[rows])

    def check_clean_predictions(self, rows: np.ndarray, output: Tensor) -> None:
        """Compare clean predictions made anew with those that are stored; -1 where logits are not finite."""
        finite = output.isfinite().all(1) if output.is_floating_point() else output >= 0
        found = torch.where(finite, prediction(output), -1).cpu().numpy()
        stored = np.where(self.valid[rows], self.clean_prediction[rows], -1)
        self.differences.compare(self.ids[rows], "clean prediction", stored, found)
        self.clean_found[rows] = found
        self.clean_checked += len(rows)

    def check_records(self) -> None:
        """Compare the records with those that follow from the stages."""
        found = self.expected.table(self.stored["clean_confidence"])
        for name, what in (WHAT | (PROOFS if certifies(self.run.config) else {})).items():
            self.differences.compare(self.ids, what, values(self.stored, name), values(found, name))
        for name, distance in self.expected.distances.items():
            # a point that cannot be read is a difference already
            known = (self.expected.status != "fooled") | ~np.isnan(distance)
            stored, recomputed = values(self.stored, name)[known], values(found, name)[known]
            self.differences.compare(self.ids[known], "distance", stored, recomputed, rtol=DISTANCE)

    def confirmed_records(self) -> pa.Table:
        """The records with only the confirmed successes, and the clean predictions made anew."""
        expected = self.expected
        fooled = (expected.status == "fooled") & self.confirmed
        status = np.where((expected.status == "fooled") & ~fooled, "robust", expected.status)
        status[(status == "robust") & (self.clean_found != expected.labels)] = "misclassified"
        columns = {
            "status": pa.array(status, pa.string()),
            "eps": pa.array(expected.eps, mask=~fooled | np.isnan(expected.eps)),
            "clean_prediction": pa.array(self.clean_found, mask=self.clean_found < 0),
        }
        if certifies(self.run.config):
            proved = expected.proofs.only(self.proved).columns(status)
            columns |= {name: proved[name] for name in ("certified", "certified_eps")}
        records = self.stored
        for name, column in columns.items():
            records = records.set_column(records.column_names.index(name), name, column)
        return records

    def task(self, rows: np.ndarray, x: Tensor, ball: Ball | None) -> Task:
        """The task of the examples x at `rows`; without a ball, for clean predictions."""
        parts = (self.expected.labels, self.expected.target, self.ids)
        y, target, ids = (torch.tensor(part[rows], device=x.device) for part in parts)
        clean = None if self.logits is None else torch.from_numpy(self.logits[rows]).to(x)
        noise = Noise(self.run.config["seed"], ids, torch.zeros_like(ids))
        return Task(x, y, target, target, clean, Linf(eps=0) if ball is None else ball, noise)


def verified_shard(run: StoredRun, number: int, start: int, size: int) -> VerifiedShard | None:
    """Verify a shard of so many examples; None, and differences, where its records cannot be read."""
    columns = records_columns(run.norms, proofs=certifies(run.config))
    stored = run.read(run.path / "records" / f"{number:05d}.parquet", columns)
    clean = run.read(run.path / "stages" / f"{number:05d}-clean.parquet", CLEAN)
    if stored is None:
        run.differences.missing([] if clean is None else clean["id"].to_pylist(), "in the clean stage", "no record")
        return None
    shard = f"shard {number}"
    verified = VerifiedShard(run, number, start, stored, clean)
    held = len(stored) + verified.left_out
    run.differences.add(None, "count", f"{shard}: {size} examples", f"{shard}: {held} examples")
    verified.verify()
    return verified
