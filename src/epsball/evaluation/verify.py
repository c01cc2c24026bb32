"""A run recomputed from its files alone, with a fresh model: each difference, by the id of its example.

Nothing is taken from a stored verdict. The points are decoded from the stages' files and put to the model once more,
containment and distances come from the examples kept beside them and the ball's own file, and what every record should
say follows from the stages as it did in the run. What cannot be recomputed without the data, the clean predictions of
those that did not fall, is held against the logits that were kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.ball_file import inside_box, load_ball
from epsball.balls.linf import Linf
from epsball.balls.registry import distances
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.engine.batches import forward_rows
from epsball.evaluation import run_directory
from epsball.evaluation.expected_records import (
    CLEAN,
    CONFIDENCE,
    DISTANCE,
    REAL,
    STAGE,
    Claims,
    Columns,
    Differences,
    check_columns,
    records_columns,
    values,
)
from epsball.evaluation.point_storage import Storage, checksums
from epsball.evaluation.result import Evaluation
from epsball.evaluation.run_directory import read_config
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective, Success, changes_prediction, prediction
from epsball.problem.task import AWAY, Task


@dataclass(frozen=True)
class Verification:
    """What was recomputed of a run, and every difference from what its files say.

    `n` examples, `fooled` of which the run counts as fooled; `confirmed` of these are so: the kept point is in the ball
    and the model is fooled by it. `clean_checked` clean predictions were made anew: those of the fooled, from the
    examples kept beside them, or, with the data (`with_data`), all. The accuracies are those found, at the largest
    radius. `eot` passes were averaged; where it is more than 1 the model is stochastic, and verdicts on the border need
    not repeat.

    `differences` has one row for each: `id` (null: of the run, not of one example), `what` (success, containment,
    prediction, clean prediction, confidence, clean confidence, distance, label, status, attack, eps, passes, checksum,
    x, missing, damaged, count, model, data, ball, storage, target, accuracy), and what is `stored` and `found`, as
    text.
    """

    n: int
    fooled: int
    confirmed: int
    clean_checked: int
    with_data: bool
    clean_accuracy: float
    robust_accuracy: float
    eot: int
    differences: pa.Table

    @property
    def agrees(self) -> bool:
        """Whether there is no difference at all."""
        return self.differences.num_rows == 0

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"agrees": self.agrees} | vars(self) | {"differences": self.differences.to_pylist()}


def verify(
    run_dir: str | Path,
    model: Model,
    *,
    data: Examples | tuple[Any, Any] | None = None,
    success: Success = changes_prediction,
    batch_size: int = 128,
) -> Verification:
    """Is what a run directory says true of `model`? Everything is recomputed from its files.

    `model` is the one that the run was made with, loaded anew. With `data`, Examples or (x, y) as handed to `evaluate`
    (more rows do no harm), the kept examples are held against its rows, and all clean predictions are made anew.
    `success` is what the run was given. `batch_size` rows share a pass. The model comes back as it was.

    Raises `BadInput` for a directory that holds no run, or one without the examples beside their adversarial points,
    for another `success`, and for a model that does not take the run's examples.
    """
    path = Path(run_dir)
    try:
        config = read_config(path)
        storage, n = Storage(**config["storage"]), config["data"]["n"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"`run_dir` must be the directory of a run that kept its examples (evaluate(run_dir=...), or --out), got "
            f"{path}: {type(error).__name__} {error}; runs of older versions have to be made again"
        ) from error
    if config["success"] != fingerprint.described(success):
        raise BadInput(
            f"`success` must be that of the run, {config['success']}, got {fingerprint.described(success)}; hand over "
            "the function that evaluate was given"
        )
    examples = data if data is None or isinstance(data, Examples) else from_arrays(*data)
    with Objective(model, cross_entropy, success=success, eot=config["eot"]) as objective:
        check = _Check(path, config, storage, objective, batch_size, examples)
        check.differences.add(None, "model", config["model"], fingerprint.of_model(model))
        for shard, start in enumerate(range(0, n, config["shard_size"])):
            check.shard(shard, start, min(config["shard_size"], n - start))
        return check.result()


@dataclass(eq=False)
class _Check:
    """One verification on its way through the shards; `records` and `found` are tables by shard."""

    path: Path
    config: dict[str, Any]
    storage: Storage
    objective: Objective
    batch_size: int
    data: Examples | None
    differences: Differences = field(default_factory=Differences)
    records: list[pa.Table] = field(default_factory=list)
    found: list[pa.Table] = field(default_factory=list)
    balls: dict[float | None, Ball | None] = field(default_factory=dict)
    clean_checked: int = 0

    def __post_init__(self) -> None:
        model = self.objective.model
        parts = list(model.parameters()) if isinstance(model, nn.Module) else []
        self.device = parts[0].device if parts else torch.device("cpu")
        self.dtype = getattr(torch, self.config["data"]["dtype"])
        self.shape = tuple(self.config["data"]["shape"])
        self.norms = tuple(self.config.get("norms", ()))

    def read(self, path: Path, kinds: Columns) -> pa.Table | None:
        """A table of the run; where it cannot be read, or is not what it should be, that is a difference."""
        try:
            table = run_directory.load(path)
            check_columns(table, kinds)
            run_directory.notes(table)
            return table
        except (OSError, ValueError, pa.ArrowException) as error:
            what = "damaged" if path.exists() else "missing"
            self.differences.add(None, what, path.relative_to(self.path), str(error).partition("\n")[0])
            return None

    def shard(self, number: int, start: int, size: int) -> None:
        """Everything that can be known of one shard, held against its records."""
        stages = self.path / "stages"
        records = self.read(self.path / "records" / f"{number:05d}.parquet", records_columns(self.norms))
        clean = self.read(stages / f"{number:05d}-clean.parquet", CLEAN)
        if records is None:
            for id in [] if clean is None else clean["id"].to_pylist():
                self.differences.add(id, "missing", "in the clean stage", "no record")
            return
        self.differences.add(
            None, "count", f"shard {number}: {size} examples", f"shard {number}: {len(records)} examples"
        )
        claims = Claims.of(
            records, start, *self.clean(records, clean), min_norm=self.config["min_norm"], norms=self.norms
        )
        if self.data is not None:
            self.against_data(claims, self.data)
        names = ["clean"]
        for stage in self.config["stages"]:
            radii = self.radii(stage, claims)
            standing = claims.standing(stage["minimises"] or stage["within"] is not None, radii)
            if not len(standing):
                continue
            names.append(stage["name"])
            path = stages / f"{number:05d}-{stage['name']}.parquet"
            table = self.read(path, STAGE | ({"distance": REAL} if claims.min_norm else {}))
            if table is None:
                self.without(stage, claims, standing, radii, records, path.name)
            else:
                self.stage(stage, claims, standing, radii, table, path.name)
        claims.finish()
        told = run_directory.notes(records).get("stages")
        self.differences.add(None, "count", f"shard {number}: stages {told}", f"shard {number}: stages {names}")
        claims.against(records, self.differences)
        self.records.append(records)
        self.found.append(claims.table(records))

    def clean(self, records: pa.Table, clean: pa.Table | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The clean predictions as the kept logits give them, where those are finite, and those logits, if any."""
        ids, said = records["id"].to_numpy(), records["clean_prediction"]
        at, valid = said.fill_null(0).to_numpy().copy(), said.is_valid().to_numpy().copy()
        if clean is None:
            return at, valid, None
        compare = self.differences.compare
        rows, places = self.differences.paired("the clean stage", clean["id"].to_numpy(), ids)
        kept: pa.Table = clean.take(pa.array(rows))
        ids = ids[places]
        compare(ids, "label", records["label"].to_numpy()[places], kept["label"].to_numpy())
        confidence = kept["confidence"].to_numpy()
        compare(ids, "clean confidence", values(records, "clean_confidence")[places], confidence)
        at[places], valid[places] = kept["prediction"].to_numpy(), kept["valid"].to_numpy(zero_copy_only=False)
        if "logits" in kept.column_names:
            logits = torch.from_numpy(run_directory.points(kept["logits"], (-1,)).copy())
            compare(ids, "clean prediction", at[places], prediction(logits).numpy())
            compare(ids, "clean prediction", valid[places], logits.isfinite().all(1).numpy())
            compare(ids, "clean confidence", confidence, _confidence(logits), atol=CONFIDENCE)
            whole = np.full((len(records), logits.shape[1]), np.nan)
            whole[places] = logits.numpy()
            return at, valid, whole
        return at, valid, None

    def without(
        self,
        stage: dict[str, Any],
        claims: Claims,
        standing: np.ndarray,
        radii: np.ndarray,
        records: pa.Table,
        name: str,
    ) -> None:
        """A stage whose file cannot be read: whoever is said to have fallen there is not confirmed."""
        eps = values(records, "eps")
        fell = standing[values(records, "attack")[standing] == stage["attack"]]
        if not claims.min_norm:
            fell = fell[(eps == radii)[fell] | np.isnan(radii[fell])]
        for id in claims.ids[fell]:
            self.differences.add(id, "missing", f"fooled by {stage['attack']}", f"nothing to read in {name}")
        claims.status[fell], claims.attack[fell], claims.eps[fell] = "fooled", stage["attack"], eps[fell]
        claims.known[fell], claims.confirmed[fell] = values(records, "distance")[fell], False
        for norm in claims.norms.values():
            norm[fell] = np.nan

    def stage(
        self,
        stage: dict[str, Any],
        claims: Claims,
        standing: np.ndarray,
        radii: np.ndarray,
        table: pa.Table,
        name: str,
    ) -> None:
        """One attack at one radius: what it says of its rows, and each of its points."""
        self.notes(stage, table, len(standing), name)
        rows, places = self.differences.paired(name, table["id"].to_numpy(), claims.ids[standing])
        table, places = table.take(pa.array(rows)), standing[places]
        before = claims.known.copy()
        fooled = claims.after(table, places, stage["attack"], radii)
        if claims.min_norm:
            fell = places[fooled]
            self.differences.compare(
                claims.ids[fell], "nearer", np.full(len(fell), True), claims.known[fell] < before[fell]
            )
        there = np.all([table[part].is_valid().to_numpy() for part in ("x_adv", "x", "crc32")], axis=0)
        for id in claims.ids[places[fooled & ~there]]:
            self.differences.add(id, "missing", f"fooled by {stage['attack']}", f"no point in {name}")
        for id in claims.ids[places[~fooled & there]]:
            self.differences.add(id, "success", "not fooled", f"a point in {name}")
        table = table.filter(pa.array(fooled & there))
        try:
            kept = {part: run_directory.points(table[part], self.shape) for part in ("x_adv", "x")}
        except ValueError as error:
            for id in table["id"].to_pylist():
                self.differences.add(id, "damaged", name, error)
            return
        if len(table):
            self.points(stage, claims, places[fooled & there], table, kept)

    def points(
        self,
        stage: dict[str, Any],
        claims: Claims,
        where: np.ndarray,
        table: pa.Table,
        kept: dict[str, np.ndarray],
    ) -> None:
        """Each success, containment, clean prediction and distance once more, from the points in the rows `where`."""
        ids, true, compare = claims.ids[where], np.full(len(where), True), self.differences.compare
        compare(ids, "checksum", table["crc32"].to_numpy(), checksums(*kept.values()))
        for part, points in kept.items():
            kind = "8bit" if points.dtype == np.uint8 else "float"
            self.differences.add(None, "storage", f"{part}: {getattr(self.storage, part)}", f"{part}: {kind}")
        z, x = (torch.from_numpy(self.storage.read(part).copy()).to(self.device, self.dtype) for part in kept.values())
        ball = self.ball(stage, claims.places[where])
        task = self.task(claims, where, x, ball)
        output = self.forward(task, z)
        good, inside = self.objective.succeeds(output, task).cpu().numpy(), np.full(len(where), False)
        delta = z.double() - x.double()
        norms = distances(self.norms)
        if ball is not None:
            inside = (ball.contains(z, x) & inside_box(ball, x)).cpu().numpy()
            norms["distance"] = ball
        compare(ids, "success", true, good)
        compare(ids, "containment", true, inside)
        claims.confirmed[where] = good & inside
        compare(ids, "prediction", table["adversarial_prediction"].to_numpy(), prediction(output).cpu().numpy())
        confidence = table["adversarial_confidence"].to_numpy(zero_copy_only=False)
        compare(ids, "confidence", confidence, _confidence(output), atol=CONFIDENCE)
        for name, norm in norms.items():
            claims.norms[name][where] = norm.norm(delta).cpu().numpy()
        if claims.min_norm:
            compare(ids, "distance", values(table, "distance"), claims.norms["distance"][where], rtol=DISTANCE)
        if self.data is None:
            self.clean_again(claims, where, self.forward(task, x))
        elif tuple(self.data.x.shape[1:]) == self.shape:
            held = self.data.x[torch.from_numpy(claims.data_rows[where])].to(x)
            same = (held == x).reshape(len(x), -1).all(1).cpu().numpy() & (claims.data_rows[where] >= 0)
            compare(ids, "x", true, same)

    def clean_again(self, claims: Claims, where: np.ndarray, output: Tensor) -> None:
        """Clean predictions made anew, held against those that were kept; -1 where logits are not finite."""
        finite = output.isfinite().all(1) if output.is_floating_point() else output >= 0
        found = torch.where(finite, prediction(output), -1).cpu().numpy()
        stored = np.where(claims.valid[where], claims.at[where], -1)
        self.differences.compare(claims.ids[where], "clean prediction", stored, found)
        claims.found_at[where] = found
        self.clean_checked += len(where)

    def against_data(self, claims: Claims, data: Examples) -> None:
        """Labels and clean predictions of a whole shard, with the data at hand."""
        ids = data.ids.cpu().numpy()
        order = ids.argsort(kind="stable")
        rows = order[np.searchsorted(ids[order], claims.ids).clip(max=len(ids) - 1)]
        known = ids[rows] == claims.ids
        for id in claims.ids[~known]:
            self.differences.add(id, "missing", "in the run", "not in the data")
        where, rows = np.flatnonzero(known), rows[known]
        claims.data_rows[where] = rows
        self.differences.compare(claims.ids[where], "label", claims.y[where], data.y.cpu().numpy()[rows])
        if len(where) and tuple(data.x.shape[1:]) == self.shape:
            x = data.x[torch.from_numpy(rows)].to(self.device, self.dtype)
            self.clean_again(claims, where, self.forward(self.task(claims, where, x, None), x))

    def task(self, claims: Claims, where: np.ndarray, x: Tensor, ball: Ball | None) -> Task:
        y, target, ids = (
            torch.tensor(part[where], device=self.device) for part in (claims.y, claims.target, claims.ids)
        )
        noise = Noise(self.config["seed"], ids, torch.zeros_like(ids))
        clean = None if claims.logits is None else torch.from_numpy(claims.logits[where]).to(x)
        return Task(x, y, target, target, clean, Linf(eps=0) if ball is None else ball, noise)

    def forward(self, task: Task, z: Tensor) -> Tensor:
        try:
            return forward_rows(self.objective, task, z, self.batch_size)
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"`model` must take the run's examples, {self.shape} each, but {type(error).__name__}: {error}; is it "
                "the model of this run?"
            ) from error

    def notes(self, stage: dict[str, Any], table: pa.Table, attacked: int, name: str) -> None:
        """The summary of a stage against its own table, and against the configuration."""
        told = run_directory.notes(table).get("stage", {})
        sums = {part: int(values(table, part).sum()) for part in ("fooled", "forwards", "backwards")}
        said = {part: stage[part] for part in ("name", "attack", "eps")}
        for part, value in (said | {"attacked": attacked} | sums).items():
            self.differences.add(None, "count", f"{name}, {part}: {told.get(part)}", f"{name}, {part}: {value}")

    def whole_ball(self, stage: dict[str, Any]) -> Ball | None:
        """The ball of all examples at a stage; None, and a difference, where its file does not give it."""
        radius = stage["eps"]
        if radius in self.balls:
            return self.balls[radius]
        try:
            ball = load_ball(self.config["ball"], self.path / "ball.safetensors", radius=radius)
            for part in ball.parts():
                value, told = getattr(ball, part), self.config["ball"][part]
                if isinstance(value, Tensor):
                    self.differences.add(None, "ball", f"{part}: {told}", f"{part}: {fingerprint.described(value)}")
                    if not value.ndim or len(value) not in (1, self.config["data"]["n"]):
                        ball = None
                        break
        except BadInput as error:
            self.differences.add(None, "ball", self.config["ball"], error)
            ball = None
        self.balls[radius] = ball
        return ball

    def ball(self, stage: dict[str, Any], places: np.ndarray) -> Ball | None:
        """The ball of some examples, on the model's device."""
        whole = self.whole_ball(stage)
        if whole is None:
            return None
        ball = whole.rows(torch.from_numpy(places))
        return replace(
            ball, **{part: at.to(self.device) for part in ball.parts() if isinstance(at := getattr(ball, part), Tensor)}
        )

    def radii(self, stage: dict[str, Any], claims: Claims) -> np.ndarray:
        """The radius of each row at a stage; not a number where it is one per feature."""
        if stage["within"] is not None:
            return stage["within"] * claims.known
        ball, places = self.whole_ball(stage), claims.places
        eps = np.asarray(np.nan if ball is None else torch.as_tensor(ball.eps, dtype=torch.float64).numpy())
        return eps[places] if eps.ndim == 1 else np.full(len(places), eps if eps.ndim == 0 else np.nan)

    def result(self) -> Verification:
        """The counts and accuracies of the whole run, and all differences by id."""
        if not self.records:
            raise BadInput(f"`run_dir` {self.path} holds no records that can be read; was the run finished?")
        add, config = self.differences.add, self.config
        records, found = (
            pa.concat_tables([part.replace_schema_metadata() for part in parts]) for parts in (self.records, self.found)
        )
        ids, y = (torch.tensor(records[name].to_numpy()) for name in ("id", "label"))
        target = records["target"].fill_null(AWAY).to_numpy().copy()
        add(None, "label", config["data"]["labels"], fingerprint.of_tensors(y, ids))
        goal = None if (target == AWAY).all() else fingerprint.of_tensors(torch.from_numpy(target))
        add(None, "target", config["target"], goal)
        if self.data is not None:
            order = self.data.ids.cpu().argsort(stable=True)
            order = order[torch.isin(self.data.ids.cpu()[order], ids)]
            rows = self.data.rows(order.to(self.data.x.device))
            add(None, "data", config["data"]["digest"], fingerprint.of_tensors(rows.x, rows.y, rows.ids))
        radii, ends = list(dict.fromkeys(stage["eps"] for stage in config["stages"])), None
        if config["min_norm"]:  # the nearest points are sought everywhere
            radii, ends = [radius for radius in radii if radius not in (None, math.inf)] or [math.inf], math.inf
        elif None not in radii:
            ends = radii[-1]
        add(None, "eps", f"radii {config['radii']}", f"radii {radii}")
        if ends is not None:
            add(None, "eps", f"ball {_number(config['ball']['eps'])}", f"ball {ends}")
        stored, made = (Evaluation(config, part, pa.table({}), (), 0) for part in (records, found))
        add(None, "accuracy", f"clean {stored.clean_accuracy}", f"clean {made.clean_accuracy}")
        for (eps, share), (_, again) in zip(stored.curve, made.curve, strict=True):
            add(None, "accuracy", f"robust at {eps}: {share}", f"robust at {eps}: {again}")
        return Verification(
            n=len(records),
            fooled=stored.count("fooled"),
            confirmed=made.count("fooled"),
            clean_checked=self.clean_checked,
            with_data=self.data is not None,
            clean_accuracy=made.clean_accuracy,
            robust_accuracy=made.robust_accuracy,
            eot=config["eot"],
            differences=self.differences.table(),
        )


def _number(value: Any) -> Any:
    """A number out of JSON as it is said: 1 and 1.0 are the same, infinity is text; anything else as it is."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _confidence(output: Tensor) -> np.ndarray:
    """The softmax of the predicted class; not a number for a model of labels."""
    if not output.is_floating_point():
        return np.full(len(output), np.nan)
    return output.double().softmax(1).amax(1).cpu().numpy()
