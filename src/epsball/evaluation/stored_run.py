"""A finished run on disk beside a fresh model: what its verification reads, decodes and asks the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.ball_file import load_ball
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.lazy_examples import LazyExamples
from epsball.engine.batch_size import found_batch_size
from epsball.engine.batches import forward_rows
from epsball.evaluation import run_directory
from epsball.evaluation.differences import Differences
from epsball.evaluation.point_storage import Storage
from epsball.evaluation.run_tables import Columns, check_columns
from epsball.problem.inputs import examples_for
from epsball.problem.objective import Objective
from epsball.problem.row_limit import out_of_memory
from epsball.problem.task import Task


@dataclass(eq=False)
class StoredRun:
    """A run's directory, the open objective of the model that it is verified with, and the differences so far."""

    path: Path
    config: dict[str, Any]
    storage: Storage
    objective: Objective
    batch_size: int | Literal["auto"]
    data: Examples | LazyExamples | None
    differences: Differences = field(default_factory=Differences)
    balls: dict[float | None, Ball | None] = field(default_factory=dict)
    _order: Tensor | None = None

    def __post_init__(self) -> None:
        model = self.objective.model
        parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
        self.device = parameters[0].device if parameters else torch.device("cpu")
        self.dtype = getattr(torch, self.config["data"]["dtype"])
        self.shape = tuple(self.config["data"]["shape"])
        self.norms = tuple(self.config.get("norms", ()))

    def read(self, path: Path, columns: Columns) -> pa.Table | None:
        """A table of the run; where it cannot be read, or is not what it should be, that is a difference."""
        try:
            table = run_directory.load(path)
            check_columns(table, columns)
            run_directory.notes(table)
            return table
        except (OSError, ValueError, pa.ArrowException) as error:
            what = "damaged" if path.exists() else "missing"
            self.differences.add(None, what, path.relative_to(self.path), str(error).partition("\n")[0])
            return None

    def examples(self, ids: np.ndarray) -> Examples:
        """Those of the examples with these ids that the data at hand have, in the order of the ids."""
        data = self.data
        assert data is not None, "there are data"
        if self._order is None:
            self._order = data.ids.cpu().argsort(stable=True)
        known = data.ids.cpu()[self._order]
        rows = self._order[torch.isin(known, torch.from_numpy(ids.copy()))]
        if isinstance(data, Examples):
            return data.rows(rows.to(data.x.device))
        found = data.read(rows)[0]
        return examples_for(self.objective.model, found, None) if len(found) else found

    def decoded(self, stored: np.ndarray) -> Tensor:
        """The points that stored numbers stand for, on the model's device."""
        return torch.from_numpy(self.storage.read(stored).copy()).to(self.device, self.dtype)

    def forward(self, task: Task, z: Tensor) -> Tensor:
        """What the model answers at z."""
        try:
            if self.batch_size == "auto":
                self.batch_size = found_batch_size(self.objective, task, self.config["data"]["n"]).rows
            return forward_rows(self.objective, task, z, self.batch_size)
        except (RuntimeError, ValueError) as error:
            if out_of_memory(error.__cause__):
                raise
            raise BadInput(
                f"`model` must take the run's examples, {self.shape} each, but {type(error).__name__}: {error}; is it "
                "the model of this run?"
            ) from error

    def whole_ball(self, stage: dict[str, Any]) -> Ball | None:
        """The ball of all examples at a stage; None, and a difference, where its file does not give it."""
        radius = stage["eps"]
        if radius not in self.balls:
            try:
                ball = load_ball(self.config["ball"], self.path / "ball.safetensors", radius=radius)
                self.balls[radius] = ball if self.is_the_runs(ball) else None
            except BadInput as error:
                self.differences.add(None, "ball", self.config["ball"], error)
                self.balls[radius] = None
        return self.balls[radius]

    def is_the_runs(self, ball: Ball) -> bool:
        """Whether each tensor of a ball has a row per example; one with another fingerprint is a difference."""
        for part in ball.parts():
            value, stored = getattr(ball, part), self.config["ball"][part]
            if isinstance(value, Tensor):
                found = fingerprint.described(value)
                self.differences.add(None, "ball", f"{part}: {stored}", f"{part}: {found}")
                if not value.ndim or len(value) not in (1, self.config["data"]["n"]):
                    return False
        return True

    def ball(self, stage: dict[str, Any], places: np.ndarray) -> Ball | None:
        """The ball of the examples at these places of the run, on the model's device."""
        whole = self.whole_ball(stage)
        if whole is None:
            return None
        ball = whole.rows(torch.from_numpy(places))
        tensors = {part: getattr(ball, part) for part in ball.parts()}
        return replace(ball, **{part: at.to(self.device) for part, at in tensors.items() if isinstance(at, Tensor)})

    def radii(self, stage: dict[str, Any], places: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The radius of each example at a stage; not a number where it is one per feature."""
        if stage["within"] is not None:
            return stage["within"] * known
        ball = self.whole_ball(stage)
        eps = np.asarray(np.nan if ball is None else torch.as_tensor(ball.eps, dtype=torch.float64).numpy())
        return eps[places] if eps.ndim == 1 else np.full(len(places), eps if eps.ndim == 0 else np.nan)


def confidence_of(output: Tensor) -> np.ndarray:
    """The softmax of the predicted class; not a number for a model of labels."""
    if not output.is_floating_point():
        return np.full(len(output), np.nan)
    return output.double().softmax(1).amax(1).cpu().numpy()
