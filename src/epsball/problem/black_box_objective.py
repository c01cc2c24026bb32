"""The objective of a black box: each example has its own budget of queries, which ends its search."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.models.black_box import NOBODY, BlackBox
from epsball.problem.losses import Loss
from epsball.problem.objective import Model, Needs, Objective, Success, changes_prediction
from epsball.problem.row_limit import RowLimit, no_memory, out_of_memory
from epsball.problem.task import Task

ENOUGH = 16
"""Rows that are enough to tell a probability from a logit by the labels."""


class BlackBoxObjective(Objective):
    """An objective whose model is a black box, in which each example has its own budget."""

    @property
    def box(self) -> BlackBox:
        """The model."""
        assert isinstance(self.model, BlackBox)
        return self.model

    def _run(self, z: Tensor, task: Task | None) -> Tensor:
        ids = None if task is None else torch.where(flat(z == task.x).all(1), NOBODY, task.noise.ids)
        try:
            output = self.box.ask(z, ids)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise no_memory(error, min(self.box.batch_size or len(z), len(z))) from error  # its queries are counted
        if self.ends_in is None:
            self.ends_in = ""
            if task is not None and self.box.scores == "logits":
                _check_no_probability(output, task.y)
        return self._columns(output, z)

    @property
    def _reserve(self) -> int:
        """The queries that are kept for the final evaluations: one, whose answer is cached, or else two."""
        return 1 if self.box.memory else 2 * self.eot

    @property
    def budget(self) -> int | None:
        return self.box.budget

    def begin_search(self) -> None:
        self.box.begin_search()

    @property
    def max_steps(self) -> int | None:
        if self.box.budget is None:
            return None
        return max((self.box.budget - self._reserve) // (1 if self.box.memory else self.eot), 1)

    def exhausted(self, task: Task) -> Bool[Tensor, " n"] | None:
        """Where a further query would leave none for the final evaluations; None without a budget."""
        if self.box.budget is None:
            return None
        return self.box.exhausted(task.noise.ids, keep=self._reserve + (1 if self.box.memory else self.eot) - 1)


def _check_no_probability(output: Tensor, y: Int64[Tensor, " n"]) -> None:
    """Raise `BadInput` where the one output per example is in [0, 1] and tells the classes apart at 1/2, not at 0."""
    if len(output) < ENOUGH or output[0].numel() != 1 or not output.is_floating_point():
        return
    one = output.reshape(-1)
    right_at_half, right_at_zero = ((one > 0.5) == (y > 0)).sum(), ((one > 0) == (y > 0)).sum()
    if bool(((one >= 0) & (one <= 1)).all()) and int(right_at_half - right_at_zero) >= len(one) / 8:
        raise BadInput(
            "`scores` must be 'probabilities' where `function` returns the probability of class 1, got 'logits' and "
            f"outputs from {float(one.amin()):.3g} to {float(one.amax()):.3g}, which tell the classes apart at 0.5 and "
            "not at 0 (logits z that happen to look so: return the columns 0 and z)"
        )


def objective_for(
    model: Model,
    loss: Loss,
    *,
    needs: Needs = "grad",
    success: Success = changes_prediction,
    eot: int = 1,
    limit: RowLimit | None = None,
) -> Objective:
    """The objective that fits the model: for a black box, the one that counts its queries."""
    if not isinstance(model, BlackBox):
        return Objective(model, loss, needs=needs, success=success, eot=eot, limit=limit)
    if needs == "grad":
        raise BadInput(
            "`attacks` must do without gradients on a black box: square needs logits, hopskipjump labels; or attack a "
            "`source`, as `epsball.surrogate` trains one"
        )
    return BlackBoxObjective(model, loss, needs=needs, success=success, eot=eot)
