"""What distinguishes two callables, and that a resume with another one is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import batch, mlp, predicted
from torch import Tensor, nn

import epsball as eb
from epsball.balls.ball import Ball
from epsball.common.fingerprint import described, of_model


class Shift:
    def __init__(self, by: Any) -> None:
        self.by = by

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return ball.project(x + 0.1, x)

    def other(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return self(model, x, y, ball)


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by: Any) -> None:
        self.by = by

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x


@dataclass
class Data:
    _by: int

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x


def keyword(by: Any) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, k: Any = by) -> Tensor:
        return x

    return attack


def default(by: Any) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, k: Any = by) -> Tensor:
        return x

    return attack


def enclosed(by: Any) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x if by is None else x.clone()

    return attack


def nested(by: Any) -> Callable[..., Tensor]:
    """Functions that differ in the code of a function within them only."""
    scope: dict[str, Any] = {}
    exec(f"def attack(m, x, y, b):\n    def inner(z):\n        return z + {by}\n    return inner(x)", scope)
    return scope["attack"]


def bodied(by: Any) -> Any:
    """Objects whose classes differ in a method only."""
    scope: dict[str, Any] = {}
    exec(
        f"class A:\n  def step(self, x): return x + {by}\n  def __call__(self, m, x, y, b): return self.step(x)", scope
    )
    return scope["A"]()


KINDS: dict[str, Callable[[Any], Any]] = {
    "an object": Shift,
    "an object with slots": Slotted,
    "a dataclass": Data,
    "a bound method": lambda by: Shift(by).other,
    "a keyword's default": keyword,
    "a default": default,
    "an enclosed value": enclosed,
    "a function within": nested,
    "a method's code": bodied,
    "a partial": lambda by: partial(keyword(0), k=by),
    "an object in an object": lambda by: Shift({"a": [Shift(by)]}),
    "an array": lambda by: Shift(np.array([0, by])),
    "a tensor": lambda by: enclosed(torch.tensor(by)),
    "a set": lambda by: Shift({1, "a", by}),
    "a module": lambda by: enclosed(mlp((20,), 5, seed=by)),
    "a generator": lambda by: Shift(np.random.default_rng(by)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_with_another_callable_is_refused(kind: str, tmp_path: Path) -> None:
    model, x = mlp((20,), 5), batch(4, (20,))
    data, ball, make = (x, predicted(model, x)), eb.Linf(eps=0.1), KINDS[kind]
    eb.evaluate(model, data, ball, [make(7)], run_dir=tmp_path)
    eb.evaluate(model, data, ball, [make(7)], run_dir=tmp_path)
    with pytest.raises(eb.BadInput, match="another `attacks`"):
        eb.evaluate(model, data, ball, [make(8)], run_dir=tmp_path)


def test_resume_with_a_callable_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    model, x = mlp((20,), 5), batch(4, (20,))
    data, ball, attack = (x, predicted(model, x)), eb.Linf(eps=0.1), Shift([threading.Lock()])
    eb.evaluate(model, data, ball, [attack], run_dir=tmp_path)
    with pytest.raises(eb.BadInput, match=r"another `attacks`.*Shift .*holds what cannot be compared"):
        eb.evaluate(model, data, ball, [attack], run_dir=tmp_path)


def test_description_of_what_holds_itself_ends() -> None:
    def again(n: int) -> int:
        return again(n - 1) if n else 0

    ring: list[Any] = [again]
    ring.append(ring)
    shift = Shift(0)
    shift.by = shift
    assert described(ring) == described(ring)
    assert described(shift) == described(shift)


def test_nan_and_infinity_are_described_as_text() -> None:
    assert described([float("nan"), float("inf"), -float("inf"), 1.5]) == ["nan", "inf", "-inf", 1.5]


def test_model_is_known_by_its_class_and_not_by_its_state() -> None:
    assert of_model(Shift(0)) == of_model(Shift(1)) == of_model(Shift(threading.Lock()))
    assert of_model(Shift(0)) != of_model(Slotted(0))


def test_description_is_the_same_in_every_process() -> None:
    """Sets come in an order of their own in each process."""
    code = (
        "from test_fingerprint import KINDS\nfrom epsball.common.fingerprint import described\n"
        "print([described(make(7)) for make in KINDS.values()])\n"
        "print(described(lambda z: z in {'a', 'b', 'c', 'd'}))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
            env={"PYTHONHASHSEED": seed, "PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
