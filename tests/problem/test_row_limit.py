"""Out of memory: a model call is made again in parts, and nothing that counts is changed by it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from doubles import every_logit
from nets import CONV_SHAPE, Counting, Stochastic, Wrapper, batch, batch_of, conv, mlp, predicted
from torch import Tensor, nn

import epsball as eb
from epsball.acceleration.accelerate import accelerate
from epsball.acceleration.draft import Draft
from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.diagnosis.binary_heads import Featured
from epsball.engine import queue
from epsball.engine.batches import forward_rows
from epsball.engine.queue import QueueOptions
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Objective
from epsball.problem.row_limit import RowLimit, out_of_memory
from epsball.problem.task import Task, task_of

BALL = eb.Linf(eps=0.06, lo=0, hi=1)
ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64"),
    "windows": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 64"),
    "python": lambda: MemoryError("Unable to allocate 2.00 GiB for an array with shape (512, 1024)"),
}


class Narrow(Wrapper):
    """Has no memory for more than `most` rows: forward, or, with `backward`, in the backward pass."""

    def __init__(
        self,
        model: nn.Module,
        most: int,
        error: Callable[[], BaseException] = ERRORS["cpu"],
        *,
        backward: bool = False,
    ) -> None:
        super().__init__(model)
        self.most, self.error, self.backward = most, error, backward
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most and not self.backward:
            raise self.error()
        output = self.model(x)
        if self.backward and output.requires_grad:
            output.register_hook(self.refuse)
        return output

    def refuse(self, grad: Tensor) -> None:
        if len(grad) > self.most:
            raise self.error()


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_errors_of_memory_are_recognised(error: Callable[[], BaseException]) -> None:
    assert out_of_memory(error())


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    for other in (RuntimeError("shape [512] is invalid"), ValueError("not enough memory"), KeyboardInterrupt()):
        assert not out_of_memory(other)
    model = Narrow(mlp((5,), 3), 32, lambda: RuntimeError("mine"))
    x, y = batch_of(64, (5,), 3)
    with Objective(model, cross_entropy) as objective, pytest.raises(RuntimeError, match="mine"):
        objective(x, task_of(x, y, BALL))
    assert model.sizes == [64]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("error", ["cuda", "cpu", "python"])
@pytest.mark.parametrize(
    ("needs", "loss"), [("grad", cross_entropy), ("grad", every_logit), ("logits", cross_entropy), ("label", None)]
)
def test_a_call_in_parts_shows_and_counts_what_one_call_does(
    needs: str, loss: Callable[..., Tensor] | None, error: str, backward: bool
) -> None:
    inner, loss = conv(), loss or cross_entropy
    x, y = batch_of(200, CONV_SHAPE, 10)
    task = task_of(x, y, BALL, target=(y + 1) % 10)
    model = Counting(Narrow(inner, 70, ERRORS[error], backward=backward))
    options = {"needs": needs, "eot": 2}
    with Objective(inner, loss, **options) as whole, Objective(model, loss, **options) as parts:
        expected, found = whole(x, task), parts(x, task)
        for name in {"grad": ("logits", "loss", "grad"), "logits": ("logits", "loss")}.get(needs, ()):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
        assert torch.equal(found.fooled, expected.fooled)
        assert torch.equal(found.valid, expected.valid)
        assert (parts.forwards, parts.backwards) == (whole.forwards, whole.backwards)
        failed = needs == "grad" or not backward
        assert parts.limit.rows == (64 if failed else RowLimit().rows)
        calls = model.calls
        parts(x, task)
        assert model.calls - calls == 2 * (4 if failed else 1), "what fits is remembered"
        parts.evaluate_at(x, task)


def test_every_way_to_ask_the_model_is_covered() -> None:
    x, y = batch_of(96, (5,), 3)
    task, inner = task_of(x, y, BALL), mlp((5,), 3)
    narrow = partial(Narrow, inner, 32)
    for model in (narrow(), Draft(narrow())):
        with Objective(model, cross_entropy) as objective:
            assert objective.evaluate_at(x, task).fooled.shape == (96,)
            assert objective.check_deterministic(x)
            assert forward_rows(objective, task, x, 128).shape == (96, 3)
            assert objective(x, task).grad.shape == x.shape
    with Featured(narrow(), None) as objective:
        assert objective.forward(x, task).shape == (96, 3)
    model = narrow()
    layer = model.model[-1]
    with Featured(model, layer) as objective:
        assert torch.equal(objective.forward(x, task), Featured(inner, layer).__enter__().forward(x, task))
    assert eb.PGD(steps=2)(narrow(), x, y, BALL).shape == x.shape


@pytest.mark.parametrize(("backward", "error"), [(False, "python"), (True, "cuda"), (True, "cpu")])
@pytest.mark.parametrize(
    "attack", [eb.PGD(steps=6, restarts=2), eb.FAB(steps=3, n_targets=2)], ids=lambda attack: type(attack).__name__
)
def test_no_job_of_a_queue_is_lost(attack: Attack, backward: bool, error: str) -> None:
    inner = conv().float()
    x = batch(150, CONV_SHAPE).float()
    task = clean_task(inner, x, predicted(inner, x), BALL)
    runs = []
    for model, size in ((inner, 32), (Narrow(inner, 40, ERRORS[error], backward=backward), 128)):
        with Objective(model, attack.loss, needs=attack.needs) as objective:
            runs.append(queue.run(attack, objective, task, QueueOptions(batch_size=size)))
    expected, found = runs
    for name in ("x_adv", "fooled", "invalid", "restart", "forwards", "backwards"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name
    assert 0 < expected.fooled.sum() < 150


def clean_task(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Task:
    with torch.no_grad():
        return replace(task_of(x, y, ball), clean=model(x))


def run_of(model: nn.Module, out: Path, **options: object) -> tuple[eb.Evaluation, list[object]]:
    """A run of gradients, a black box's search and a user's attack; and the flags of the model after it."""
    inner = conv().float()
    x = batch(120, CONV_SHAPE).float()
    attacks = ["fgsm", half, "pgd:steps=4,restarts=2", "square:steps=8"]
    found = eb.evaluate(model, (x, predicted(inner, x)), BALL, attacks, run_dir=out, storage="8bit", **options)
    return found, [(part.training, *(p.requires_grad for p in part.parameters())) for part in model.modules()]


def half(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """A user's attack: half a step."""
    leaf = x.requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
    return (leaf + 0.03 * torch.autograd.grad(loss, leaf)[0].sign()).clamp(0, 1)


@pytest.mark.parametrize("backward", [False, True])
def test_a_run_out_of_memory_has_the_records_of_a_small_batch(
    tmp_path: Path, backward: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Narrow(conv().float().train(), 64, backward=backward)
    options = {"diagnose": 0, "shard_size": 90}
    expected, flags = run_of(conv().float().train(), tmp_path / "small", batch_size=32, **options)
    with caplog.at_level(logging.WARNING):
        found, after = run_of(model, tmp_path / "large", batch_size=512, **options)
    assert found.records.equals(expected.records)
    assert found.adversarial.equals(expected.adversarial)
    assert after[1:] == flags
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(said) == 1, "one limit, said once, for all attacks and shards"
    assert "64 are taken" in said[0]
    assert backward or [size for size in model.sizes if size > 64] == [128], "it is found once"


def test_the_remedy_for_rows_that_do_not_fit_works() -> None:
    model = Narrow(conv().float(), 16)
    x = batch(40, CONV_SHAPE).float()
    data = x, predicted(model.model, x)
    with pytest.raises(eb.BadInput, match=r"`batch_size` must be .*got 32 .*can't allocate memory.*\(16, say\)"):
        eb.evaluate(model, data, BALL, "fgsm", batch_size=128)
    assert len(eb.evaluate(model, data, BALL, "fgsm", batch_size=16, diagnose=16)) == 40
    with pytest.raises(eb.BadInput, match=r"got 1 that do not.*; free memory"):
        eb.evaluate(Narrow(model.model, 0), data, BALL, "fgsm", batch_size=1)


def test_a_black_box_is_not_asked_again() -> None:
    asked = []

    def function(x: object) -> object:
        asked.append(len(x))
        raise MemoryError("Unable to allocate")

    x, y = batch_of(96, (5,), 3)
    with pytest.raises(eb.BadInput, match=r"`batch_size` must be .*got 50"):
        eb.Square(steps=3)(eb.BlackBox(function, batch_size=50), x, y, BALL)
    assert asked == [50]


def test_a_trial_out_of_memory_leaves_the_model_as_it_is() -> None:
    x = torch.rand(64, *CONV_SHAPE)
    model = Narrow(conv().float(), 32)
    made = accelerate(model, x)
    assert made.plan.rewriting == "none"
    assert "out of memory" in made.plan.reason


def test_a_stochastic_model_keeps_drawing() -> None:
    x, y = batch_of(96, (5,), 3)
    with Objective(Narrow(Stochastic(mlp((5,), 3)), 32), cross_entropy, eot=3) as objective:
        logits = objective.forward(x[:1].expand(96, 5), task_of(x, y, BALL))
        assert len(logits.unique(dim=0)) == 96
        assert objective.forwards == 3 * 96
