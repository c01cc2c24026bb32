"""When to give a job up: its margin, at the best pace it ever had, would not reach the border with the passes left.

Attacks gain ever less: what the first passes bring is seldom brought again by as many more, but often by as many times
more. So progress is measured per doubling of the steps. After 1, 2, 4, 8, ... steps a row notes its best margin; from
the `first` such number that is large enough on it is given up where

    best margin + early_stop * greatest gain of a doubling so far * log2(most steps / steps made) < 0.

Nothing but the row's own history counts, and no scale: the rule is the same for logits a thousand times as large.
Compare the schedules that share passes between examples by restart, as A3 (Liu et al., CVPR 2022, arXiv:2203.05154).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.problem.task import AWAY, Task

EarlyStopProgress = Float[Tensor, "n 3"]
"""By row: the best margin, what it was at the last power of two, the greatest gain between two powers of two."""


def no_progress(like: Float[Tensor, "n ..."], early_stop: float) -> EarlyStopProgress:
    """The pace of rows that have not been looked at, in single precision at least; (n, 0) where none is ever given up.

    In half precision a gain below half an ulp of the margin would be none.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    start = like.new_tensor([-math.inf, -math.inf, 0] if early_stop < math.inf else [], dtype=wide)
    return start.expand(len(like), -1)


def check_early_stop(name: str, early_stop: float) -> None:
    """Raise `BadInput` unless `early_stop` is a number >= 0, or infinite."""
    if not early_stop >= 0:
        raise BadInput(f"`{name}` must be >= 0, got {early_stop}; inf gives no row up, 2 is careful")


def success_margin(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """By how much the best wrong class is ahead of the label, or the user's target of all others: > 0 is success.

    In single precision at least.
    """
    goal = torch.where(task.target == AWAY, task.y, task.target)[:, None]
    wide = torch.promote_types(logits.dtype, torch.float32)
    rival, own = logits.scatter(1, goal, -math.inf).amax(1), logits.gather(1, goal).squeeze(1)
    gap = rival.to(wide) - own.to(wide)
    return torch.where(task.target == AWAY, gap, -gap) if task.some_targeted else gap


def looked(
    progress: EarlyStopProgress,
    height: Float[Tensor, " n"],
    t: Int64[Tensor, " n"],
    steps: int,
    early_stop: float,
    *,
    first: int,
) -> tuple[EarlyStopProgress, Bool[Tensor, " n"]]:
    """The pace after a pass that came `t` (n,) steps after the start, of at most `steps`; and which rows to give up.

    `height` (n,) is the margin that the pass found: `margin`, or -inf where it found none. A row is given up only where
    the last power of two knew a margin already: before that it has no progress.

    >>> progress = torch.tensor([[-4.0, -4.0, 1.0], [-8.0, -9.0, 1.0]])  # 8 of 100 steps made: 3.6 doublings are left
    >>> looked(progress, torch.tensor([-3.0, -8.0]), torch.tensor([8, 8]), 100, 1.0, first=8)[1]
    tensor([False,  True])
    """
    best, marked, gain = progress.unbind(1)
    best, known = torch.maximum(best, height.to(best)), marked > -math.inf
    at_mark = (t & (t - 1)) == 0  # 0, 1, 2, 4, 8, ...; the first step, from anywhere, is no measure
    gain = torch.where(at_mark & (t > 1) & known, torch.maximum(gain, best - marked), gain)
    marked = torch.where(at_mark, best, marked)
    left = torch.log2(steps / t.clamp(1, steps).to(best))
    lost = at_mark & (t >= first) & known & (best + early_stop * gain * left < 0)
    return torch.stack([best, marked, gain], 1), lost
