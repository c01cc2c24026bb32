"""A finished run as a report reads it: the evaluation, what lies beside it in its directory, and both in words."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from epsball.balls.written import ball_text, radius_text
from epsball.common.json_files import read_json
from epsball.diagnosis.diagnosis_record import Diagnosis
from epsball.evaluation.result import Evaluation, Stage, Status
from epsball.report.page import counted, percent

NOISE = ("uniform-noise", "sign-noise")
"""Attacks that are controls: luck, against which a gradient has to prove itself."""
APART: dict[Status, str] = {"invalid": "with logits that are not finite", "at-target": "at the target already"}
"""Examples that are counted apart."""


@dataclass(frozen=True)
class StageRow:
    """A stage and where it left the examples: `standing` after it, `accuracy` as a share of those asked about."""

    stage: Stage
    standing: int
    accuracy: float
    within: str
    control: bool

    @property
    def passes(self) -> str:
        """Passes for each example that it was given: backwards, or forwards where it takes no gradient."""
        made = self.stage.backwards or self.stage.forwards
        return f"{made / self.stage.attacked:.1f}" if self.stage.attacked else ""


@dataclass(frozen=True)
class Run:
    """A finished run; `command` is what the command line kept of how it was started, {} where it was not."""

    path: Path
    found: Evaluation
    command: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path, found: Evaluation | None = None) -> Run:
        """The run in a directory; `found` where it has been read already. Raises `BadInput` where there is none."""
        path = Path(path)
        kept = path / "command.json"
        command = read_json(kept, "delete it: it only says how the run was started") if kept.exists() else {}
        return cls(path, found or Evaluation.load(path), command)

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration."""
        return self.found.config

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Whether the verdict is to be believed, where that was asked."""
        return self.found.diagnosis

    @property
    def name(self) -> str:
        """What it is called: its directory."""
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
        """The largest radius; None where it differs between examples, or nearest points were sought."""
        last = self.config["radii"][-1]
        return None if self.config["min_norm"] or last is None or math.isinf(last) else float(last)

    def spelled(self, eps: float | None) -> str:
        """A radius in words: 8/255 in a box from 0 to 1, where that is what was meant."""
        return radius_text(eps, *(self.box or ()))

    @property
    def ball(self) -> str:
        """The ball in words."""
        box = f", box [{self.box[0]:g}, {self.box[1]:g}]" if self.box else ""
        if self.config["min_norm"]:
            return f"{self.symbol}, nearest points{box}"
        return ball_text(self.symbol, self.config["radii"][-1], *(self.box or ())) + box

    @property
    def model(self) -> str:
        """What names the model."""
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
        """The class that examples were driven towards, in words; None without one."""
        if self.config["target"] is None:
            return None
        return "one per example" if self._goal is None else self.label(self._goal)

    @property
    def _goal(self) -> int | None:
        """The class that all examples were driven towards, if it was one."""
        classes = self.found.records["target"].drop_null().unique().to_pylist()
        return classes[0] if len(classes) == 1 else None

    @property
    def asked(self) -> int:
        """How many examples the accuracies are shares of."""
        apart = self.found.count("at-target") + self.found.count("misclassified") if self.config["target"] else 0
        return len(self.found) - apart

    @property
    def what(self) -> str:
        """What the accuracy of the worst case is called."""
        return "not driven to the target" if self.config["target"] else "robust accuracy"

    @property
    def stages(self) -> list[StageRow]:
        """The attacks in their order. What stands after one is the worst case of its radius, and what fell later."""
        curve = dict(self.found.curve)
        rows: list[StageRow] = []
        planned = {stage["name"]: stage for stage in self.config["stages"]}
        made = self.found.stages[1:]
        for at, stage in enumerate(made):
            plan = planned[stage.name]
            later = sum(other.fooled for other in made[at + 1 :] if other.eps == stage.eps)
            held = curve.get(stage.eps, math.nan) if not self.config["min_norm"] else math.nan
            accuracy = held + later / self.asked if self.asked else math.nan
            within = plan.get("within")
            said = "" if plan["minimises"] else f"{within:.0%} of the distance" if within else self.spelled(stage.eps)
            standing = 0 if math.isnan(accuracy) else round(accuracy * self.asked)
            rows.append(StageRow(stage, standing, accuracy, said, stage.attack.split(":")[0] in NOISE))
        return rows

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        found, n = self.found, counted(len(self.found))
        if self.config["min_norm"]:
            ((_, median),) = found.quantiles((0.5,))
            half = f"Half of the examples are wrong within {self.symbol}, ε = {median:.4g}"
            half = half if math.isfinite(median) else "For fewer than half of the examples a fooling point was found"
            return f"{half}; clean accuracy {percent(found.clean_accuracy)}, on {n} examples."
        low, high = found.interval
        sure = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        held = f"Robust accuracy {percent(found.robust_accuracy)}"
        if self.target is not None:
            held = (
                f"Not driven to the target ({self.target}): {percent(found.robust_accuracy)} of {counted(self.asked)}"
            )
        return f"{held} ({sure}) in {self.ball}; clean accuracy {percent(found.clean_accuracy)}, on {n} examples."

    @property
    def caveats(self) -> tuple[str, ...]:
        """What has to be said beside the verdict."""
        config, found = self.config, self.found
        if config["source"] is not None:
            said = ["A transfer: attacks that see the model itself find more."]
        elif config["min_norm"]:
            said = ["Upper bounds of the distances: a stronger attack may find nearer points."]
        else:
            said = ["An upper bound: a stronger attack may find more."]
        lost = sum(stage.unconfirmed for stage in found.stages)
        if config["storage"]["x_adv"] == "8bit":
            said.append(f"Points are judged as they are kept, in 8 bits; {counted(lost)} did not survive the rounding.")
        elif lost:
            said.append(f"{counted(lost)} successes did not stand a second look at the stored point, and do not count.")
        if config["eot"] > 1:
            said.append(f"The model judged is the mean of {config['eot']} passes.")
        said += [f"The protocol reacted: {text}." for text in (config.get("reaction") or {}).get("because", ())]
        for status, text in APART.items():
            if count := found.count(status):
                said.append(f"{counted(count)} examples {text} are counted apart.")
        return tuple(said)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the evaluation may be unreliable, a sentence each."""
        said = []
        if self.diagnosis is not None and self.diagnosis.unreliable:
            said.append("Reliability checks failed.")
        if self.found.binarization_test is not None and self.found.binarization_test.too_weak:
            said.append("The attacks miss planted adversarial examples.")
        return tuple(said)

    def distances(self, column: str) -> np.ndarray:
        """The distances of the fooled, (m,): in the ball's norm, "distance", or in another that was measured, as in "l2"."""
        far = self.found.records[column].drop_null().to_numpy().astype(float)
        return far[np.isfinite(far)]

    @property
    def command_line(self) -> str:
        """The command that made it, as a shell reads it; empty where it was no command."""
        return shlex.join(map(str, self.command.get("command", ())))

    @property
    def verify(self) -> str:
        """The command that recomputes it."""
        return shlex.join(["epsball", "verify", str(self.path)])

    @property
    def python(self) -> str:
        """The call that makes it again, from the configuration."""
        config, ball = self.config, self.config["ball"]
        ends = {"lo": "-inf", "hi": "inf"}  # what is left out
        parts = [
            f"{side}={_argument(side, ball[side])}" for side in ("eps", "lo", "hi") if ball[side] != ends.get(side)
        ]
        if ball["mask"] is not None:
            parts.append("mask=mask")
        asked = [f"{json.dumps(config['protocol'])}"]
        radii = config["radii"]
        if len(radii) > 1:
            asked.append(f"eps={radii}")
        flags = {"min_norm": True, "storage": config["storage"]["x_adv"], "eot": config["eot"]}
        shown = {"min_norm": config["min_norm"], "storage": flags["storage"] != "float", "eot": config["eot"] > 1}
        asked += [f"{name}={value!r}" for name, value in flags.items() if shown[name]]
        if config["target"]:
            asked.append(f"target={'target' if self._goal is None else self._goal}")
        asked += ["source=source"] * (config["source"] is not None)
        asked.append(f"seed={config['seed']}")
        return f"eb.evaluate(model, (x, y), eb.{ball['class'].split()[0]}({', '.join(parts)}), {', '.join(asked)})"


def _argument(name: str, value: Any) -> str:
    """A number as Python reads it; a tensor by its name."""
    if isinstance(value, int | float):
        return repr(value)
    return 'float("inf")' if value == "inf" else name
