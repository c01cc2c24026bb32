"""Early stopping: a job ends when its extrapolated margin cannot reach the decision boundary in the steps left.

The first steps of an attack gain most; later gains come with every doubling of the number of steps rather than with
every step. So progress is measured per doubling. After 1, 2, 4, 8, ... steps a row notes its best margin so far, and
from step `first` on its job ends there if

    best margin + early_stop * largest gain of a doubling so far * log2(max steps / steps made) < 0.

Only the row's own history counts, and no scale: the rule is the same for logits a thousand times as large. Compare the
schedules that share model calls between examples by rank, as A3 (Liu et al., CVPR 2022, arXiv:2203.05154).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.problem.task import AWAY, Task


@dataclass(frozen=True, eq=False)
class EarlyStopProgress:
    """By row: the best margin, its value at the last power of two, the largest gain between two powers of two."""

    best: Float[Tensor, " n"]
    at_power: Float[Tensor, " n"]
    largest_gain: Float[Tensor, " n"]


def no_progress(like: Float[Tensor, "n ..."], early_stop: float) -> EarlyStopProgress | None:
    """The progress of rows that have made no step, in single precision at least; None without early stopping.

    In half precision a gain below half an ulp of the margin would be none.
    """
    if early_stop == math.inf:
        return None
    zero = like.new_zeros(len(like), dtype=torch.promote_types(like.dtype, torch.float32))
    return EarlyStopProgress(zero - math.inf, zero - math.inf, zero)


def check_early_stop(name: str, early_stop: float) -> None:
    """Raise `BadInput` unless `early_stop` is a number >= 0, or infinite."""
    if not early_stop >= 0:
        raise BadInput(f"`{name}` must be >= 0, got {early_stop}; inf stops no job early, 2 is careful")


def success_margin(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """The largest logit of a wrong class minus that of the label; with a target, the target's minus the largest other.

    It is > 0 where the attack succeeds, and in single precision at least.
    """
    goal = torch.where(task.target == AWAY, task.y, task.target)[:, None]
    wide = torch.promote_types(logits.dtype, torch.float32)
    rival, own = logits.scatter(1, goal, -math.inf).amax(1), logits.gather(1, goal).squeeze(1)
    gap = rival.to(wide) - own.to(wide)
    return torch.where(task.target == AWAY, gap, -gap) if task.some_targeted else gap


def updated_progress(
    progress: EarlyStopProgress | None,
    margin: Float[Tensor, " n"],
    t: Int64[Tensor, " n"],
    steps: int,
    early_stop: float,
    *,
    first: int,
) -> tuple[EarlyStopProgress, Bool[Tensor, " n"]]:
    """The progress after step `t` (n,) of at most `steps`, and which jobs end.

    `margin` (n,) is what the step found: `success_margin`, or -inf where it found none. A job ends only where a margin
    was known at the last power of two: before that it has no progress.

    >>> best, last, gain = torch.tensor([-4.0, -8.0]), torch.tensor([-4.0, -9.0]), torch.ones(2)
    >>> progress = EarlyStopProgress(best, last, gain)  # 8 of 100 steps made: 3.6 doublings are left
    >>> updated_progress(progress, torch.tensor([-3.0, -8.0]), torch.tensor([8, 8]), 100, 1.0, first=8)[1]
    tensor([False,  True])
    """
    assert progress is not None, "with early_stop < inf there is progress"
    best, known = torch.maximum(progress.best, margin.to(progress.best)), progress.at_power > -math.inf
    power = (t & (t - 1)) == 0  # 0, 1, 2, 4, 8, ...; the first step, from anywhere, is no measure
    gained = torch.maximum(progress.largest_gain, best - progress.at_power)
    gain = torch.where(power & (t > 1) & known, gained, progress.largest_gain)
    doublings_left = torch.log2(steps / t.clamp(1, steps).to(best))
    stopped = power & (t >= first) & known & (best + early_stop * gain * doublings_left < 0)
    return EarlyStopProgress(best, torch.where(power, best, progress.at_power), gain), stopped
