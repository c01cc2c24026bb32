"""A run as a report reads it: the evaluation and the files beside it, put into words."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from epsball.balls.written import ball_text, radius_text
from epsball.common.errors import BadInput
from epsball.common.json_files import read_json
from epsball.data.bad_row import counted_bad_rows
from epsball.diagnosis.diagnosis_record import Diagnosis
from epsball.evaluation.result import Evaluation
from epsball.evaluation.run_tables import REPORTED, Status, check_entries
from epsball.evaluation.stage_record import Stage
from epsball.models.doors import needs_trust
from epsball.report.page import counted, percent

NOISE = ("uniform-noise", "sign-noise")
"""Attacks that are controls: random perturbations, which an attack has to beat."""
APART: dict[Status, str] = {
    "invalid": "with logits that are not finite",
    "at-target": "at the target already",
    "exhausted": "whose query budget ran out",
}
"""Statuses that are counted apart."""


@dataclass(frozen=True)
class StageRow:
    """A stage and what is left after it: `robust` examples, and `accuracy`, their share of `Run.attackable`.

    Of one that certifies they are those that are neither broken nor proved.
    """

    stage: Stage
    robust: int
    accuracy: float
    within: str
    control: bool
    certifies: bool = False

    @property
    def model_calls(self) -> str:
        """Model calls per attacked example: backward passes, or forward passes where it takes no gradient."""
        calls = self.stage.backwards or self.stage.forwards
        return f"{calls / self.stage.attacked:.1f}" if self.stage.attacked else ""


@dataclass(frozen=True)
class Run:
    """A run; `command` is the command line that started it, {} where there was none."""

    path: Path
    found: Evaluation
    command: dict[str, Any]

    most_bad: ClassVar[int] = 50
    """So many of the rows that could not be used are listed."""

    @classmethod
    def load(cls, path: str | Path, found: Evaluation | None = None) -> Run:
        """The run in a directory; `found` is its evaluation where that is loaded already. Raises `BadInput`."""
        path = Path(path)
        file = path / "command.json"
        remedy = "delete it: it only says how the run was started"
        command = read_json(file, remedy) if file.exists() else {}
        if not isinstance(command.get("subject", {}), dict) or not isinstance(command.get("command", []), list):
            raise BadInput(f"{file} is damaged (its subject or its command is none); {remedy}")
        found = found or Evaluation.load(path)
        try:
            check_entries(found.config, REPORTED)
        except ValueError as error:
            raise BadInput(f"{path / 'config.json'} must be that of a whole run: {error}; restore it") from error
        return cls(path, found, command)

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration."""
        return self.found.config

    @property
    def diagnosis(self) -> Diagnosis | None:
        """The reliability checks, where they were made."""
        return self.found.diagnosis

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name or str(self.path)

    @property
    def norm(self) -> str:
        """The norm, as on a command line."""
        return str(self.config["ball"]["norm"])

    @property
    def symbol(self) -> str:
        """The norm, as it is written in a sentence."""
        return self.norms[self.norm]

    @property
    def norms(self) -> dict[str, str]:
        """The norms that distances were measured in, by name, as they are written in a figure."""
        return self.config.get("norms") or {self.norm: self.norm}

    @property
    def counts(self) -> set[str]:
        """The norms of which the distance is a count of coordinates."""
        return {name for name in self.norms if pa.types.is_integer(self.found.records.schema.field(name).type)}

    @property
    def box(self) -> tuple[float, float] | None:
        """The box, where it is two finite numbers."""
        ends = [self.config["ball"][side] for side in ("lo", "hi")]
        try:
            lo, hi = (float(end) for end in ends)
        except (TypeError, ValueError):  # tensors are kept apart
            return None
        return (lo, hi) if math.isfinite(hi - lo) and lo < hi else None

    @property
    def radius(self) -> float | None:
        """The largest radius; None where it differs between examples, and for a minimum-norm run."""
        last = self.config["radii"][-1]
        return None if self.config["min_norm"] or last is None or math.isinf(last) else float(last)

    def spelled(self, eps: float | None) -> str:
        """A radius as text: 8/255 for multiples of 1/255 in a box from 0 to 1."""
        return radius_text(eps, *(self.box or ()))

    @property
    def ball(self) -> str:
        """The ball in words."""
        box = f", box [{self.box[0]:g}, {self.box[1]:g}]" if self.box else ""
        if self.config["min_norm"]:
            return f"{self.symbol}, minimum norm{box}"
        return ball_text(self.symbol, self.config["radii"][-1], *(self.box or ())) + box

    @property
    def model(self) -> str:
        """The model as it was named."""
        subject = self.command.get("subject", {})
        if not subject:
            return str(self.config["model"])
        default = "small-mlp" if subject.get("data") == "digits" else "small-cnn"
        weights = f" with {subject['weights']}" if subject.get("weights") else ""
        return f"{subject.get('model') or default}{weights}"

    def label(self, number: int | None) -> str:
        """A class by its name, or its number."""
        names = self.config["data"].get("class_names") or ()
        if number is None or not 0 <= number < len(names) or str(names[number]) == str(number):
            return str(number)
        return str(names[number])

    @property
    def target(self) -> str | None:
        """The target class as text; None without one."""
        if self.config["target"] is None:
            return None
        return "one per example" if self._goal is None else self.label(self._goal)

    @property
    def _goal(self) -> int | None:
        """The target class, where it is the same for all examples."""
        classes = self.found.records["target"].drop_null().unique().to_pylist()
        return classes[0] if len(classes) == 1 else None

    @property
    def attackable(self) -> int:
        """The number of examples that the accuracies are shares of."""
        apart = self.found.count("at-target") + self.found.count("misclassified") if self.config["target"] else 0
        return len(self.found) - apart

    @property
    def what(self) -> str:
        """What the final figure is called."""
        return "robust to the target" if self.config["target"] else "robust accuracy"

    @property
    def stages(self) -> list[StageRow]:
        """The attacks in order. The accuracy after one is the final one at its radius plus what later attacks broke."""
        curve = dict(self.found.curve)
        rows: list[StageRow] = []
        planned = {stage["name"]: stage for stage in self.config["stages"]}
        attacks = self.found.stages[1:]
        for at, stage in enumerate(attacks):
            plan = planned[stage.name]
            if plan.get("certifies") is not None:
                left = stage.attacked - stage.fooled - stage.certified
                share = left / self.attackable if self.attackable else math.nan
                rows.append(StageRow(stage, left, share, self.spelled(stage.eps), control=False, certifies=True))
                continue
            later = sum(other.fooled for other in attacks[at + 1 :] if other.eps == stage.eps)
            final = curve.get(stage.eps, math.nan) if not self.config["min_norm"] else math.nan
            accuracy = final + later / self.attackable if self.attackable else math.nan
            within = plan.get("within")
            where = "" if plan["minimises"] else f"{within:.0%} of the distance" if within else self.spelled(stage.eps)
            robust = 0 if math.isnan(accuracy) else round(accuracy * self.attackable)
            rows.append(StageRow(stage, robust, accuracy, where, stage.attack.split(":")[0] in NOISE))
        return rows

    @property
    def attacks(self) -> list[StageRow]:
        """Those of the stages that attack."""
        return [row for row in self.stages if not row.certifies]

    @property
    def undecided(self) -> list[tuple[int, str]]:
        """(id, reason) of the examples that are neither broken nor proved robust, at the largest radius."""
        if not self.found.certifies:
            return []
        known = self.found.records.filter(self.found.records["undecided"].is_valid())
        return list(zip(known["id"].to_pylist(), known["undecided"].to_pylist(), strict=True))

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        found, n = self.found, counted(len(self.found))
        if self.config["min_norm"]:
            ((_, median),) = found.quantiles((0.5,))
            half = f"Half of the examples are misclassified within {self.symbol}, ε = {median:.4g}"
            if not math.isfinite(median):
                half = "For fewer than half of the examples an adversarial example was found"
            return f"{half}; clean accuracy {percent(found.clean_accuracy)}, on {n} examples."
        low, high = found.interval
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        result = f"Robust accuracy {percent(found.robust_accuracy)}"
        if found.robust_accuracy_at_most > found.robust_accuracy:
            result = f"Robust accuracy {percent(found.robust_accuracy)} to {percent(found.robust_accuracy_at_most)}"
        if found.certifies:
            low, high = found.certified_interval[0], found.interval[1]
            interval = f"from both ends' 95 % intervals {100 * low:.1f} to {100 * high:.1f} %"
            result = f"Robust accuracy {percent(found.certified_accuracy)} to {percent(found.robust_accuracy)}"
            if not found.undecided:
                result = f"Robust accuracy {percent(found.robust_accuracy)}, proved"
        if self.target is not None:
            share = f"{percent(found.robust_accuracy)} of {counted(self.attackable)}"
            result = f"Robust to the target ({self.target}): {share}"
        return f"{result} ({interval}) in {self.ball}; clean accuracy {percent(found.clean_accuracy)}, on {n} examples."

    @property
    def caveats(self) -> tuple[str, ...]:
        """What limits the result, a sentence each."""
        config, found = self.config, self.found
        if config["source"] is not None:
            caveats = ["A transfer: attacks that see the model itself may find more."]
        elif config["min_norm"]:
            caveats = ["Upper bounds of the distances: a stronger attack may find nearer adversarial examples."]
        elif found.certifies and not found.undecided:
            caveats = ["Both ends meet: every example is broken or proved robust, and no attack can find more."]
        elif found.certifies:
            caveats = [
                f"The lower end is proved; {counted(found.undecided)} examples between the ends are undecided, and a "
                "stronger attack may break these."
            ]
        else:
            caveats = ["An upper bound: a stronger attack may find more."]
        if only := found.certified_in_real_arithmetic:
            caveats.append(f"{counted(only)} proofs are of real arithmetic only: rounding may yet undo them.")
        lost = sum(stage.unconfirmed for stage in found.stages)
        if config["storage"]["x_adv"] == "8bit":
            caveats.append(
                f"Adversarial examples are verified as stored, in 8 bits; {counted(lost)} did not survive the rounding."
            )
        elif lost:
            caveats.append(f"{counted(lost)} successes were not confirmed on the stored input, and do not count.")
        if found.convergence is not None and found.convergence.converged:
            caveats.append(found.convergence.sentence)
        if config["eot"] > 1:
            caveats.append(f"The evaluated model is the mean of {config['eot']} forward passes.")
        caveats += [f"The protocol reacted: {text}." for text in (config.get("reaction") or {}).get("because", ())]
        for status, text in APART.items():
            if count := found.count(status):
                caveats.append(f"{counted(count)} examples {text} are counted apart.")
        if self.bad_rows and not found.many_bad:  # then it is a doubt
            caveats.append(f"{self.bad_rows} and are not counted.")
        if self.diagnosis is None:
            caveats.append(found.reliability)
        return tuple(caveats)

    @property
    def bad_rows(self) -> str:
        """How many rows of the data could not be used, in words; empty for none."""
        return counted_bad_rows(self.found.bad)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the evaluation may be unreliable, a sentence each."""
        return self.found.doubts

    def distances(self, column: str) -> np.ndarray:
        """The distances of the adversarial examples (m,): those in the ball's norm, "distance", or in another, "l2"."""
        far = self.found.records[column].drop_null().to_numpy().astype(float)
        return far[np.isfinite(far)]

    @property
    def origin(self) -> str:
        """Where the model came from and what was done to it, as the command said it; empty where there was none."""
        origin = self.command.get("origin", "")
        return origin if isinstance(origin, str) else ""

    @property
    def command_line(self) -> str:
        """The command that started it, as a shell reads it; empty where there was none."""
        return shlex.join(map(str, self.command.get("command", ())))

    @property
    def verify(self) -> str:
        """The command that recomputes it."""
        named = (self.command.get("subject") or {}).get("model")
        code = ["--model", named] if isinstance(named, str) and needs_trust(named) else []  # asked for again
        return shlex.join(["epsball", "verify", str(self.path), *code])

    @property
    def python(self) -> str:
        """The Python call that reproduces it, from the configuration."""
        config, ball = self.config, self.config["ball"]
        ends = {"lo": "-inf", "hi": "inf"}  # what is left out
        parts = [
            f"{side}={_argument(side, ball[side])}" for side in ("eps", "lo", "hi") if ball[side] != ends.get(side)
        ]
        if ball["mask"] is not None:
            parts.append("mask=mask")
        arguments = [f"{json.dumps(config['protocol'])}"]
        radii = config["radii"]
        if len(radii) > 1:
            arguments.append(f"eps={radii}")
        flags = {"min_norm": True, "storage": config["storage"]["x_adv"], "eot": config["eot"]}
        shown = {"min_norm": config["min_norm"], "storage": flags["storage"] != "float", "eot": config["eot"] > 1}
        arguments += [f"{name}={value!r}" for name, value in flags.items() if shown[name]]
        if config["target"]:
            arguments.append(f"target={'target' if self._goal is None else self._goal}")
        if (seconds := config.get("certify")) is not None:
            arguments.append(f"certify={seconds:g}")
        arguments += ["source=source"] * (config["source"] is not None)
        arguments.append(f"seed={config['seed']}")
        ball_class = ball["class"].split()[0]
        return f"eb.evaluate(model, (x, y), eb.{ball_class}({', '.join(parts)}), {', '.join(arguments)})"


def _argument(name: str, value: Any) -> str:
    """A number as Python reads it; a tensor by its name."""
    if isinstance(value, int | float):
        return repr(value)
    return 'float("inf")' if value == "inf" else name
