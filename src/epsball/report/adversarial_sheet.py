"""The panda figure of an adversarial set: the first examples that were correct and are fooled."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from epsball.common.errors import BadInput
from epsball.report.sheet import Row, draw

if TYPE_CHECKING:
    from epsball.evaluation.adversarial_set import AdversarialSet


def draw_adversarial_set(found: AdversarialSet, path: str | Path, *, rows: int = 5, ball: str = "") -> None:
    """Write the sheet as a PNG; `ball` is how its last column is headed.

    Raises `BadInput` where the model gave no gradient, or the examples are no images.
    """
    examples = found.examples
    if found.direction is None:
        raise BadInput("`rows` must be 0 where the model gives no gradient to show; leave the sheet out")
    correct = (found.before == examples.y) & found.fooled
    order = ((~correct).long() * 2 + (~found.fooled).long()).argsort(stable=True)[:rows].tolist()
    names = examples.label_names or ()

    def said(label: int, confidence: float) -> str:
        return f"“{names[label] if label < len(names) else label}”, {confidence:.1%} confidence"

    shown = [
        Row(
            original=examples.x[i].cpu().float().numpy(),
            direction=found.direction[i].cpu().float().numpy(),
            adversarial=found.x_adv[i].cpu().float().numpy(),
            said_before=said(int(found.before[i]), float(found.confidence_before[i])),
            said_after=said(int(found.after[i]), float(found.confidence_after[i])),
        )
        for i in order
    ]
    lo, hi = examples.lo, examples.hi
    if not (isfinite(lo) and isfinite(hi)):
        lo, hi = examples.x.min().item(), examples.x.max().item()
    draw(shown, path, lo=lo, hi=hi, ball=ball)
