"""What an evaluation found, as a frozen record that can be loaded again from its run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from epsball.common.errors import BadInput
from epsball.data.bad_row import BadRow, are_many, counted_bad_rows
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.diagnosis_record import Diagnosis
from epsball.diagnosis.setup_record import Setup
from epsball.evaluation import run_directory
from epsball.evaluation.convergence_record import Convergence
from epsball.evaluation.figures import Figures
from epsball.evaluation.run_tables import STATUSES, check_records, number_of_shards
from epsball.evaluation.stage_record import Stage
from epsball.evaluation.stage_tables import StageTables, bad_rows, records_file
from epsball.evaluation.stored_points import StoredPoints


@dataclass(frozen=True, repr=False)
class Evaluation(Figures):
    """The result of an evaluation: one record per example, and what each stage found and cost.

    `records` is a table with one row per example, by id: `id, label, target` (null: none), `clean_prediction,
    clean_confidence, status` (robust, fooled: an attack succeeded, misclassified: without any attack, at-target: the
    target is the label or the clean prediction, invalid: logits not finite, exhausted: not broken, but the query budget
    of a black box ran out before the attacks had ended), and for the fooled `attack` (the first
    that broke it), `eps` (the radius at which it was broken), `adversarial_prediction, adversarial_confidence`,
    `distance` in the ball's norm, `linf, l2, l1, l0`; `overflow_eps` is the first radius at which an attack met logits
    that are not finite, from which on the example does not count as robust; `exhausted_eps` the smallest radius from
    which on its queries ran out (0 in a minimum-norm run); `forwards, backwards` are the forward and
    backward passes of the attacks on it. In a run that certifies `certified` says whether the example is proved robust
    at the largest radius, and `certified_as_run` whether also for the network as it rounds; `certified_eps` is the
    largest radius of a proof, `certified_margin` (a lower bound of the smallest margin) and `certified_method` are of
    that proof; `undecided` says why an example that was not broken has none at the largest radius. The adversarial
    examples are `stored` with the stages: `points` and `originals` read them. `bad` are the rows of the data that could
    not be used, which have no record. `binarization_test` says whether the attacks are strong enough for this model, if
    it was run; `diagnosis` holds the reliability checks, None where none were made, and `setup` what was understood of
    the arguments before the attacks. `convergence` says, of a result that rests on queries alone, whether twice as many
    break more. Of a run that is not finished, `shards_missing` shards are not in it, as `unfinished` says.
    """

    stored: StoredPoints = field(compare=False)
    stages: tuple[Stage, ...]
    probes: int
    bad: tuple[BadRow, ...] = ()
    binarization_test: BinarizationTest | None = None
    diagnosis: Diagnosis | None = None
    setup: Setup | None = None
    convergence: Convergence | None = None
    shards_missing: int = 0

    def __repr__(self) -> str:
        """The result in a few lines, and what speaks against it."""
        low, high = (f"{100 * end:.1f}" for end in self.interval)
        accuracies = f"clean accuracy {self.clean_accuracy:.2%}, robust accuracy {self.robust_accuracy:.2%}"
        first = f"Evaluation of {len(self):,} examples: {accuracies} (95% interval {low}-{high}%)"
        if self.certifies:
            first += f", certified accuracy {self.certified_accuracy:.2%}, {self.undecided:,} undecided"
        missing = [] if self.unfinished is None else [f"Not finished: {self.unfinished}"]
        return "\n".join([*missing, first, self.reliability, *self.doubts])

    @property
    def unfinished(self) -> str | None:
        """What is missing of a run that is not finished, and on how many examples the result rests; else None."""
        if not self.shards_missing:
            return None
        return (
            f"{self.shards_missing:,} of {number_of_shards(self.config):,} shards are missing, and this rests on "
            f"{len(self):,} of {self.config['data']['n']:,} examples: no random sample where the data are in an order, "
            "as by class."
        )

    @property
    def cost(self) -> dict[str, int]:
        """Forward passes in rows, by purpose."""
        names = ("forwards", "speculative_forwards", "padding_forwards", "verification")
        attack, speculative, padding, verification = (sum(getattr(s, name) for s in self.stages) for name in names)
        clean = self.stages[0].forwards if self.stages else 0
        return {
            "clean": clean,
            "attack": attack - clean,
            "speculative": speculative,
            "padding": padding,
            "verification": verification,
            "probes": self.probes + (0 if self.setup is None else self.setup.forwards),
        }

    @property
    def forwards(self) -> int:
        """All forward passes, in rows."""
        return sum(self.cost.values())

    @property
    def queries(self) -> int:
        """All queries to a black box that a run without interruption makes of it; 0 for any other model."""
        return sum(stage.queries for stage in self.stages)

    @property
    def backwards(self) -> int:
        """All backward passes, in rows."""
        names = ("backwards", "speculative_backwards", "padding_backwards")
        return sum(getattr(stage, name) for stage in self.stages for name in names)

    @property
    def seconds(self) -> float:
        """Wall time of all stages, over all the processes that had a part in the run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def adversarial(self) -> pa.Table:
        """The adversarial examples `x_adv` and their examples `x` as they are stored, a row per fooled `id`.

        It is read from the run's files each time, and takes the memory that they do: `points` reads some.
        """
        return self.stored.table()

    def points(self, ids: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the fooled examples and their adversarial examples, (m,) and (m, *shape), as they were stored.

        With `ids` (m,), of fooled examples in any order, only theirs, in ascending order; the others stay on disk.
        """
        return self.stored.read("x_adv", ids)

    def originals(self, ids: Any = None) -> np.ndarray:
        """The fooled examples as they were, (m, *shape), in the order of `points`."""
        return self.stored.read("x", ids)[1]

    @property
    def reliability(self) -> str:
        """Whether the result is reliable, in one sentence: what the checks found, or why it was not checked."""
        if self.diagnosis is not None:
            return self.diagnosis.sentence
        confidence = self.records["clean_confidence"].to_numpy(zero_copy_only=False).astype(float)
        if self.shards_missing:
            why = "the run is not finished"
        elif self.config["source"] is not None:
            why = "the attacks of a transfer do not see the model"
        elif len(self) and np.isnan(confidence).all() and self.count("invalid") < len(self):
            why = "the model returns labels only"
        elif self.config["diagnose"] == 0:
            why = "diagnose=0"
        else:
            why = "the checks would cost too much of this run; diagnose=32 runs them"
        return f"Reliability: not checked ({why})."

    @property
    def many_bad(self) -> bool:
        """Whether so many rows could not be used that the result is in doubt."""
        return are_many(self.bad, len(self))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the result is not to be relied on, a sentence each; empty where nothing speaks against it."""
        doubts = []
        if self.diagnosis is not None and self.diagnosis.unreliable:
            doubts.append(f"Reliability checks failed: {', '.join(self.diagnosis.open_failures)}.")
        if self.many_bad:
            doubts.append(f"{counted_bad_rows(self.bad)}, of {len(self) + len(self.bad):,}.")
        if self.binarization_test is not None and self.binarization_test.too_weak:
            doubts.append("The attacks miss planted adversarial examples.")
        if self.setup is not None and not self.setup.sound:
            doubts.append(f"The set-up was warned about: {', '.join(self.setup.names)}.")
        if self.budget_sentence is not None:
            doubts.append(f"{self.budget_sentence}.")
        if self.convergence is not None and not self.convergence.converged:
            doubts.append(self.convergence.sentence)
        return tuple(doubts)

    def _check(self) -> None:
        """Raise `ValueError` where there is not one record for each example, and a point for each that was fooled."""
        ids = self.records["id"].to_numpy()
        if not self.shards_missing and len(ids) + len(self.bad) != self.config["data"]["n"]:
            raise ValueError(f"there are {len(ids)} records and {len(self.bad)} bad rows of {self.config['data']['n']}")
        fooled = self.records["status"].to_numpy(zero_copy_only=False) == "fooled"
        if lost := len(np.setdiff1d(ids[fooled], self.stored.ids)):
            raise ValueError(f"the adversarial examples of {lost} records are missing")

    def summary(self) -> dict[str, Any]:
        """The figures of the result, as JSON can hold them."""
        return {
            "setup": None if self.setup is None else self.setup.summary(),
            "n": len(self),
            "unfinished": self.unfinished,
            "bad": [row.to_record() for row in self.bad],
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "robust_accuracy_at_most": self.robust_accuracy_at_most,
            "interval": list(self.interval),
            "certified_accuracy": self.certified_accuracy,
            "certified_interval": list(self.certified_interval),
            "undecided": self.undecided if self.certifies else None,
            "undecided_interval": list(self.undecided_interval),
            "distances": [{"share": share, "distance": at} for share, at in self.quantiles()]
            if self.config["min_norm"]
            else None,
            "curve": [
                {"eps": eps, "robust_accuracy": accuracy, "certified_accuracy": certified}
                for (eps, accuracy), (_, certified) in zip(self.curve, self.certified_curve, strict=True)
            ],
            "status": {status: self.count(status) for status in STATUSES},
            "stages": [stage.to_record() for stage in self.stages],
            "queries": self.queries,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "cost": self.cost,
            "seconds": self.seconds,
            "binarization_test": None if self.binarization_test is None else self.binarization_test.summary(),
            "diagnosis": None if self.diagnosis is None else self.diagnosis.summary(),
            "reliability": self.reliability,
            "doubts": list(self.doubts),
            "convergence": None if self.convergence is None else self.convergence.summary(),
            "config": self.config,
        }

    @classmethod
    def load(cls, path: str | Path, *, partial: bool = False) -> Evaluation:
        """The evaluation that a run left in its directory.

        With `partial` the run may be unfinished, and another process may be writing it: the result is that of the
        finished shards, and says what is missing (`unfinished`).
        """
        path = Path(path)
        if not (path / "config.json").exists():
            raise BadInput(f"`path` must be a run directory with a config.json, got {path}; was it the --out of a run?")
        config = run_directory.read_config(path)
        tables, shards = StageTables(path), number_of_shards(config)
        missing = sum(not records_file(path, shard).exists() for shard in range(shards))
        if missing and not partial:
            raise BadInput(
                f"`path` {path} holds a run that is not finished: {missing} of {shards} shards are missing; start it "
                "again with the same arguments to resume it, or load what is finished with partial=True"
            )
        try:
            if partial:
                records = tables.finished(shards)
            else:
                records = {shard: run_directory.load(records_file(path, shard)) for shard in range(shards)}
            if shards and not records:
                raise BadInput(
                    f"`path` {path} holds a run of which no shard is finished; epsball status says how far it is"
                )
            for table in records.values():
                check_records(table, config)
            found = gathered(config, records, tables)
            found._check()
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"`path` {path} must hold whole tables, but {error}; restore them, or make the run again"
            ) from error
        return replace(
            found,
            binarization_test=BinarizationTest.kept(path),
            diagnosis=Diagnosis.kept(path),
            setup=Setup.kept(path),
            convergence=Convergence.kept(path),
        )


def gathered(config: dict[str, Any], records: Mapping[int, pa.Table], tables: StageTables) -> Evaluation:
    """The evaluation of the finished shards, whose `records` these are by number, and whose stages are in `tables`."""
    stages: dict[str, Stage] = {}
    parts: list[tuple[int, str]] = []
    bad: list[BadRow] = []
    probes = 0
    for shard, table in records.items():
        for name in run_directory.notes(table)["stages"]:
            part = tables.stage(shard, name, ["id"])
            notes = run_directory.notes(part)
            stage = Stage.from_record(notes["stage"])
            if stage.name != name:
                raise ValueError(f"the table of the stage {name} is that of {stage.name}")
            probes += notes.get("probes", 0)
            stages[name] = stages[name].plus(stage) if name in stages else stage
            bad += bad_rows(notes)
            if stage.fooled:
                parts.append((shard, name))
    order = ["clean", *(stage["name"] for stage in config["stages"])]
    return Evaluation(
        config=config,
        records=pa.concat_tables([table.replace_schema_metadata() for table in records.values()]).combine_chunks(),
        stored=StoredPoints(config, tables, tuple(parts)),
        stages=tuple(stages[name] for name in order if name in stages),
        probes=probes,
        bad=tuple(bad),
        shards_missing=number_of_shards(config) - len(records),
    )
