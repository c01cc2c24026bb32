"""The ball of a run as a file: a description in its configuration, and its tensors in `ball.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.common.fingerprint import described
from epsball.common.tensor_files import read_tensors, write_tensors


def save_ball(ball: Ball, path: Path) -> None:
    """Keep the tensors of a bound ball, rows in the order of their ids; no file where it has only numbers."""
    parts = {name: value for name in ball.parts() if isinstance(value := getattr(ball, name), Tensor)}
    if parts:
        write_tensors(path, parts)


def describe_ball(ball: Ball) -> dict[str, Any]:
    """A ball as a configuration says it: its norm's name, its class and its parts, tensors by their digests."""
    parts = {name: described(getattr(ball, name)) for name in ball.parts()}
    return {"norm": ball.name, "class": described(type(ball))} | parts


def load_ball(description: dict[str, Any], path: Path, *, radius: float | None) -> Ball:
    """The ball of a run, bound to its examples; `description` is what its configuration says, `radius` that of a stage.

    A radius of None is the ball's own. Raises `BadInput` for what is no ball: an unknown norm, tensors not there.
    """
    wanted = [name for name, value in description.items() if isinstance(value, str) and value.startswith("tensor")]
    try:
        cls = BALLS[description["norm"]]
        tensors = read_tensors(path) if wanted else {}
        own: dict[str, Any] = {
            name: tensors[name] if name in wanted else _number(description[name]) for name in cls.parts()
        }
        own |= {} if radius is None else {"eps": radius}
        ball = cls(**own, _bound=True)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise BadInput(
            f"`run_dir` must hold the ball of the run, but config.json names {description} and {path} gives no more: "
            f"{error}; a run of this version writes both"
        ) from error
    return ball


def _number(value: Any) -> Any:
    """A number out of JSON, where infinity is text."""
    return float(value) if isinstance(value, str) else value


def inside_box(ball: Ball, x: Tensor) -> Tensor:
    """Where each row of x (n, *shape) is in the box of a bound ball, (n,): the box as x's dtype sees it."""
    lo, hi = (torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in (ball.lo, ball.hi))
    return ((x >= lo) & (x <= hi)).reshape(len(x), -1).all(1)
