"""The driver counts the steps of an attack, stops it, and hands over only finite answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from doubles import NEVER
from nets import batch, linear, predicted
from torch import Tensor

import epsball as eb
from epsball.attacks.attack import Attack, State
from epsball.attacks.registry import ATTACKS, parse
from epsball.diagnosis.trace import trace
from epsball.engine import queue
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Objective, Point
from epsball.problem.task import Task, task_of
from epsball.serve.path import path


@dataclass(frozen=True, kw_only=True)
class NeverDone(Attack[State]):
    """Never sets `done`; with a `length` it has `max_steps`, and an answer that is not finite."""

    length: int | None = None

    @property
    def max_steps(self) -> int | None:
        return self.length

    def init(self, task: Task) -> State:
        return State.at(task.x)

    def step(self, state: State, point: Point, task: Task) -> State:
        z = task.ball.project(state.z + 0.01, task.x)
        return replace(state, z=z, best=z if self.length is None else z * math.nan)


def setting() -> tuple[torch.nn.Module, Task]:
    model, x = linear((4,), 3), batch(3, (4,))
    return model, task_of(x, predicted(model, x), eb.Linf(eps=0.1))


@dataclass(frozen=True, kw_only=True)
class NeverDoneSoon(NeverDone):
    """An error after 1,000 steps."""

    @property
    def step_limit(self) -> int:
        return 1000


WAYS = {
    "call": lambda attack, objective, task: attack._run(objective, task),
    "queue": lambda attack, objective, task: queue.run(attack, objective, task),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_attack_that_is_never_done_is_an_error_that_names_it(way: str) -> None:
    model, task = setting()
    with (
        Objective(model, cross_entropy, success=NEVER) as objective,
        pytest.raises(
            eb.BadInput, match=r"`step` of NeverDoneSoon must set `done`: .* after 1,000 steps; .*`max_steps`"
        ),
    ):
        WAYS[way](NeverDoneSoon(), objective, task)
    before = objective.forwards
    with Objective(model, cross_entropy, success=NEVER) as objective:
        WAYS["call"](replace(NeverDoneSoon(), length=3), objective, task)  # the remedy
    assert before >= 1000


def test_traces_of_an_attack_that_is_never_done_have_their_own_end() -> None:
    model, task = setting()
    with Objective(model, cross_entropy, success=NEVER) as objective:
        assert len(trace(NeverDone(), objective, task).loss) < 10_000
        assert len(path(NeverDone(), objective, task.rows(torch.tensor([0])))) < 10_000


def test_an_evaluation_of_an_attack_that_is_never_done_ends_with_an_error() -> None:
    model, task = setting()
    with pytest.raises(eb.BadInput, match="`step` of NeverDoneSoon must set `done`"):
        eb.evaluate(model, (task.x, task.y), eb.Linf(eps=0.001), NeverDoneSoon(), diagnose=0)


def test_step_limit_follows_from_the_options() -> None:
    assert NeverDone().step_limit == NeverDone(length=7).step_limit == 10_000
    assert eb.HopSkipJump(steps=100_000).step_limit == 1_000_000
    for name in ATTACKS:
        attack = parse(name)
        assert attack.max_steps is not None or attack.step_limit >= 10_000


def test_an_attack_with_max_steps_ends_there_whatever_done_says() -> None:
    model, task = setting()
    attack = NeverDone(length=7)
    with Objective(model, cross_entropy, success=NEVER) as objective:
        assert queue.run(attack, objective, task).forwards.tolist() == [7 + 1] * 3  # one at the answer
        assert len(trace(attack, objective, task).loss) == 7
        assert len(path(attack, objective, task.rows(torch.tensor([0])))) == 7 + 1
        before = objective.forwards
        attack._run(objective, task)
        assert objective.forwards - before == 7 * 3


def test_an_answer_that_is_not_finite_is_the_example() -> None:
    model, task = setting()
    assert torch.equal(NeverDone(length=2)(model, task.x, task.y, task.ball, success=NEVER), task.x)


@dataclass(frozen=True, eq=False)
class Moments:
    first: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Nested(State):
    moments: Moments
    unused: Moments | None = None


def test_a_state_is_mapped_through_its_parts() -> None:
    state = Nested.at(torch.arange(3.0), moments=Moments(torch.arange(3), torch.arange(3) + 10))
    picked = state.map(lambda part: part[[2, 0]])
    assert picked.z.tolist() == [2, 0]
    assert picked.moments.second.tolist() == [12, 10]
    assert picked.unused is None
    merged = state.map(lambda old, new: old + new, state)
    assert isinstance(merged, Nested)
    assert merged.moments.first.tolist() == [0, 2, 4]
