"""The model, and the process, come back as they were: after a run, and after an exception at any line of it."""

from __future__ import annotations

import dis
import gc
import random
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import awkward
import nets
import pytest
import torch
from torch import nn

import epsball as eb
from epsball.training import NFGSM, FGSMMix, Plain

SOURCE = str(Path(eb.__file__).parent)
X, Y = nets.batch(12, awkward.SHAPE).float(), torch.arange(12) % awkward.CLASSES
BALL = eb.Linf(eps=0.1, lo=0, hi=1)


def calls_eval(model: nn.Module, x: torch.Tensor, y: torch.Tensor, ball: eb.Linf) -> torch.Tensor:
    """An attack of somebody else's, which sets modes and gradients as it likes."""
    model.eval()
    leaf = x.requires_grad_()
    model(leaf).logsumexp(1).sum().backward()
    model.train()
    return ball.argmax(leaf.grad, x.detach()).detach()


def fit(model: nn.Module, **options: Any) -> object:
    objective = options.pop("objective", FGSMMix())
    return eb.fit(model, (X, Y), BALL, objective=objective, epochs=1, batch_size=6, lr=1e-3, **options)


def evaluated(model: nn.Module, *attacks: Any) -> object:
    return eb.evaluate(model, (X, Y), BALL, attacks, diagnose=0, accelerate=False)


JOBS: dict[str, Callable[[nn.Module], object]] = {
    "fgsm": lambda model: eb.FGSM()(model, X, Y, BALL),
    "callable": lambda model: eb.PGD(steps=2)(lambda z: model(z), X, Y, BALL),
    "square": lambda model: eb.Square(steps=3)(model, X, Y, BALL),
    "evaluate": partial(evaluated),
    "own attack": lambda model: evaluated(model, calls_eval),
    "diagnose": lambda model: eb.diagnose(model, (X[:6], Y[:6]), BALL, "fgsm"),
    "accelerated": lambda model: eb.evaluate(model, (X, Y), BALL, "fgsm", diagnose=0, accelerate=True),
    "fit": fit,
    "fit n-fgsm": lambda model: fit(model, objective=NFGSM(), channels_last=True),
    "fit plain": lambda model: fit(model, objective=Plain(), hold_out=4, average="ema"),
}
JOBS["evaluate"] = lambda model: evaluated(model, "fgsm", "square:steps=2")
TRAINS = {name for name in JOBS if name.startswith("fit")}
SLOW = ("diagnose", "accelerated")
PAIRS = [
    pytest.param(job, name, marks=pytest.mark.nightly if job in SLOW and name not in ("lora", "average") else ())
    for job in JOBS
    for name in awkward.AWKWARD
]


IN_FINALIZERS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def assert_same(now: dict[str, Any], before: dict[str, Any], *where: object) -> None:
    for key, value in before.items():
        if key == "environment":
            assert now[key].items() ^ value.items() == set(), where
        assert now[key] == value, (key, *where)


class Thrown(BaseException):
    """What no code catches."""


@cache
def exits_of(code: CodeType) -> frozenset[int]:
    """The instructions between a `with` block and the call of its exit: a tracer stops there, an interrupt cannot."""
    steps = list(dis.get_instructions(code))
    nothing = [(step.opname, step.argval) for step in steps]
    starts = (place for place in range(len(steps)) if nothing[place : place + 3] == [("LOAD_CONST", None)] * 3)
    return frozenset(steps[place].offset for place in starts)


def lines_until(limit: int, run: Callable[[], object]) -> int:
    """Run with `Thrown` raised at the line number `limit` of this package's that is executed; the lines executed."""
    count = 0

    def at_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line" and frame.f_lasti not in exits_of(frame.f_code):
            count += 1
            if count == limit:
                raise Thrown
        return at_line

    def at_call(frame: FrameType, event: str, argument: object) -> Any:
        return at_line if frame.f_code.co_filename.startswith(SOURCE) else None

    sys.settrace(at_call)
    try:
        run()
    except Thrown:
        pass
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize(("job", "name"), PAIRS)
def test_the_model_comes_back_as_it_was(job: str, name: str) -> None:
    model, untouched = awkward.made(name), awkward.made(name)
    before, around = awkward.state_of(model, values=job not in TRAINS), awkward.world()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        JOBS[job](model)
    assert_same(awkward.world(), around)
    assert awkward.state_of(model, values=job not in TRAINS) == before
    if job not in TRAINS:
        model.train()
        assert torch.equal(model.eval()(X), untouched.train().eval()(X))


def test_training_goes_through_the_models_own_train_and_back() -> None:
    """Merged weights would leave the low-rank update without a gradient."""
    model = awkward.made("lora, merged")
    head = model[-1]
    before = {name: part.detach().clone() for name, part in head.named_parameters()}
    outside = before["weight"] - before["up"] @ before["down"]
    fit(model, objective=Plain())
    assert (head.merged, head.training) == (True, False)
    assert not torch.equal(head.up, before["up"])
    assert not torch.equal(head.down, before["down"])
    torch.testing.assert_close(head.weight - head.up @ head.down, outside)


def test_statistics_that_a_network_keeps_frozen_stay_in_training() -> None:
    model = awkward.made("frozen statistics")
    before = model[1].running_mean.clone()
    fit(model)
    assert torch.equal(model[1].running_mean, before)
    assert not torch.equal(model[0].weight, awkward.made("frozen statistics")[0].weight)


def thrown_somewhere(jobs: list[str], throws: int, seed: int) -> None:
    """Exceptions at random lines of random jobs on random models."""
    draw = random.Random(seed)
    for job in jobs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lines = lines_until(0, lambda job=job: JOBS[job](awkward.made("noisy")))  # what is loaded once is, too
            for _ in range(throws):
                name, at = draw.choice(list(awkward.AWKWARD)), draw.randint(1, lines)
                model = awkward.made(name)
                before, around = awkward.state_of(model, values=job not in TRAINS), awkward.world()
                lines_until(at, lambda job=job, model=model: JOBS[job](model))
                after = awkward.state_of(model, values=job not in TRAINS)
                if after != before:
                    gc.collect()
                    after = awkward.state_of(model, values=job not in TRAINS)
                assert_same(awkward.world(), around, job, name, at)
                changed = [(key, before[key], after.get(key)) for key in before if before[key] != after.get(key)]
                assert not changed, (job, name, at)


@IN_FINALIZERS
@pytest.mark.parametrize("job", JOBS)
def test_an_exception_anywhere_changes_nothing(job: str) -> None:
    thrown_somewhere([job], 3 if job in SLOW else 40, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@IN_FINALIZERS
@pytest.mark.parametrize("job", JOBS)
def test_ten_thousand_exceptions_anywhere_change_nothing(job: str) -> None:
    thrown_somewhere([job], 100 if job in SLOW else 1230, seed=2)
