"""What an evaluation found, as a frozen record that can be loaded again from its run directory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from epsball import run_dir
from epsball.errors import BadInput

Status = Literal["robust", "fooled", "wrong", "at-target", "invalid"]
STATUSES: tuple[Status, ...] = ("robust", "fooled", "wrong", "at-target", "invalid")


@dataclass(frozen=True)
class Stage:
    """One attack at one radius over all shards: how many examples it was given, how many fell, and what it cost.

    Passes are counted in rows: `forwards` and `backwards` those that the records name, `speculative_*` those of jobs
    that another job made needless, `padding_*` those of rows that only filled a batch, `verification` the forwards
    that looked once more at what is stored; `unconfirmed` successes did not stand that look and do not count.
    """

    name: str
    attack: str
    eps: float | None
    attacked: int
    fooled: int
    unconfirmed: int
    forwards: int
    backwards: int
    speculative_forwards: int
    speculative_backwards: int
    padding_forwards: int
    padding_backwards: int
    verification: int
    seconds: float

    def plus(self, other: Stage) -> Stage:
        """The same stage over more shards."""
        same = {"name", "attack", "eps"}
        mine, theirs = vars(self), vars(other)
        return Stage(**{key: value if key in same else value + theirs[key] for key, value in mine.items()})


@dataclass(frozen=True)
class Evaluation:
    """The verdict on a model: one record per example, and what each stage caught and cost.

    `records` is a table with one row per example, by id: `id, label, target` (null: none), `clean_prediction,
    clean_confidence, status` (robust, fooled, wrong: misclassified before any attack, at-target: the target is the
    label or the clean prediction, invalid: logits not finite), and for the fooled `attack` (the first that broke it),
    `eps` (the radius it fell at), `adversarial_prediction, adversarial_confidence`, `distance` in the ball's norm,
    `linf, l2, l1, l0`; `overflow_eps` is the first radius at which an attack met logits that are not finite, from
    which on the example does not count as robust; `forwards, backwards` are the attack passes spent on it.
    `adversarial` holds the fooling points.
    """

    config: dict[str, Any]
    records: pa.Table
    adversarial: pa.Table
    stages: tuple[Stage, ...]
    probes: int

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
        """The share of examples that are correct and that no attack broke, at the largest radius.

        With a target: the share of those that could be driven to it and were not.
        """
        return self.curve[-1][1]

    @property
    def curve(self) -> list[tuple[float | None, float]]:
        """(radius, robust accuracy at it), smallest first. The radius is None where it differs between examples."""
        status = self.records["status"].to_numpy(zero_copy_only=False)
        fell = self.records["eps"].to_numpy(zero_copy_only=False)
        whole = len(self) - (self.count("at-target") + self.count("wrong") if self.config["target"] else 0)
        radii = self.config["radii"]
        if len(radii) == 1:
            held = [status == "robust"]
        else:  # comparisons with a radius that is not there are false
            lost = self.records["overflow_eps"].to_numpy(zero_copy_only=False)
            attacked = np.isin(status, ("robust", "fooled")) | ~np.isnan(lost)
            held = [attacked & ~(fell <= eps) & ~(lost <= eps) for eps in radii]
        return [(eps, float(rows.sum() / whole) if whole else math.nan) for eps, rows in zip(radii, held, strict=True)]

    @property
    def cost(self) -> dict[str, int]:
        """Forwards in rows, by what they were for. Their sum is what the model was shown."""
        names = ("forwards", "speculative_forwards", "padding_forwards", "verification")
        attack, speculative, padding, verification = (sum(getattr(s, name) for s in self.stages) for name in names)
        clean = self.stages[0].forwards if self.stages else 0
        return {
            "clean": clean,
            "attack": attack - clean,
            "speculative": speculative,
            "padding": padding,
            "verification": verification,
            "probes": self.probes,
        }

    @property
    def forwards(self) -> int:
        """All rows that the model was shown."""
        return sum(self.cost.values())

    @property
    def backwards(self) -> int:
        """All rows that a gradient was taken of."""
        names = ("backwards", "speculative_backwards", "padding_backwards")
        return sum(getattr(stage, name) for stage in self.stages for name in names)

    @property
    def seconds(self) -> float:
        """Wall time of all stages, over all the processes that had a part in the run."""
        return sum(stage.seconds for stage in self.stages)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the fooled examples and their adversarial points, (m,) and (m, *shape)."""
        shape = tuple(self.config["data"]["shape"])
        return self.adversarial["id"].to_numpy().copy(), run_dir.points(self.adversarial["x_adv"], shape).copy()

    def summary(self) -> dict[str, Any]:
        """The figures of the verdict, as JSON can hold them."""
        return {
            "n": len(self),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "curve": [{"eps": eps, "robust_accuracy": accuracy} for eps, accuracy in self.curve],
            "status": {status: self.count(status) for status in STATUSES},
            "stages": [vars(stage) for stage in self.stages],
            "forwards": self.forwards,
            "backwards": self.backwards,
            "cost": self.cost,
            "seconds": self.seconds,
            "config": self.config,
        }

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """The evaluation that a finished run left in its directory."""
        path = Path(path)
        if not (path / "config.json").exists():
            raise BadInput(f"`path` must be a run directory with a config.json, got {path}; was it the --out of a run?")
        config = json.loads((path / "config.json").read_text())
        shards = -(-config["data"]["n"] // config["shard_size"])
        kept = [path / "records" / f"{shard:05d}.parquet" for shard in range(shards)]
        missing = [file.name for file in kept if not file.exists()]
        if missing:
            raise BadInput(
                f"`path` {path} holds a run that is not finished: {len(missing)} of {shards} shards are "
                "missing; start it again with the same arguments and it goes on"
            )
        return gathered(
            config,
            [run_dir.load(file) for file in kept],
            lambda shard, name: run_dir.load(path / "stages" / f"{shard:05d}-{name}.parquet"),
        )


def gathered(config: dict[str, Any], records: list[pa.Table], stage_of) -> Evaluation:
    """The evaluation of finished shards; `stage_of(shard, name)` gives a stage's table."""
    stages: dict[str, Stage] = {}
    fallen: list[pa.Table] = []
    probes = 0
    for shard, table in enumerate(records):
        names = run_dir.notes(table)["stages"]
        for name in names:
            part = stage_of(shard, name)
            notes = run_dir.notes(part)
            stage = Stage(**notes["stage"])
            probes += notes.get("probes", 0)
            stages[name] = stages[name].plus(stage) if name in stages else stage
            if "x_adv" in part.column_names:
                fallen.append(part.filter(part["fooled"]).select(["id", "x_adv"]))
    order = ["clean", *(stage["name"] for stage in config["stages"])]
    adversarial = pa.concat_tables([table.replace_schema_metadata() for table in fallen]) if fallen else None
    if adversarial is None:
        adversarial = pa.table({"id": pa.array([], pa.int64()), "x_adv": pa.array([], pa.list_(pa.float32()))})
    return Evaluation(
        config=config,
        records=pa.concat_tables([table.replace_schema_metadata() for table in records]).combine_chunks(),
        adversarial=adversarial.sort_by("id").combine_chunks(),
        stages=tuple(stages[name] for name in order if name in stages),
        probes=probes,
    )
