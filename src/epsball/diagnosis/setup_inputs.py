"""Would the model do better on another form of the same inputs? Asked only of a model that does badly.

A model that was trained on images in other units, in another order of channels, or turned, still predicts what it
learnt once they are put right. Each form costs one forward pass of a few examples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.common.shapes import flat
from epsball.diagnosis.setup_labels import raises
from epsball.diagnosis.setup_record import DataFacts, Finding

BAD = 0.6
"""Of a model whose clean accuracy is below this one the forms are asked."""
TRIED = 64
"""On so many examples."""


def input_finding(
    predict: Callable[[Tensor], Int64[Tensor, " n"]],
    x: Float[Tensor, "n *shape"],
    y: Int64[Tensor, " n"],
    data: DataFacts,
) -> Finding | None:
    """The form of x that raises the accuracy most, if any does; `predict` gives the predicted classes of a batch."""
    before = float((predict(x) == y).double().mean())
    best, found = before, None
    for cause, remedy, form in _forms(x, data):
        try:
            after = float((predict(form) == y).double().mean())
        except Exception:  # a model may refuse any input but its own; then it was not meant for this one
            continue
        if after > best and raises(before, after, len(x)):
            best = after
            figures = f"so changed, {100 * after:.0f} % of {len(x)} examples are classified correctly, as they are "
            found = Finding("input-form", cause, f"{figures}{100 * before:.0f} %", remedy)
    return found


def _forms(x: Float[Tensor, "n *shape"], data: DataFacts) -> list[tuple[str, str, Tensor]]:
    """What may have been done to x, what undoes it, and x with that undone."""
    rows = flat(x)
    forms = []
    if data.high > 16:
        forms.append(("the model expects inputs in [0, 1]", "divide x and the ball by 255", x / 255))
    if data.low >= 0 and data.high <= 1:
        forms.append(("the model expects pixels in 0 to 255", "multiply x and the ball by 255", x * 255))
        forms.append(("the model expects inputs in [-1, 1]", "put Normalize([.5], [.5]) in front of it", 2 * x - 1))
    else:
        low, high = (end.item() for end in rows.aminmax())
        forms.append(
            (
                "x was normalised, and the model normalises it once more or not at all",
                "evaluate inputs in [0, 1]",
                (x - low) / max(high - low, 1e-12),
            )
        )
    axes = (0, *range(2, x.ndim)) if x.ndim > 2 else (0,)
    mean, std = x.mean(axes, keepdim=True), x.std(axes, keepdim=True)
    forms.append(
        (
            "the model expects normalised inputs",
            "put epsball.models.builtin.Normalize(mean, std) with the numbers of training in front of it",
            (x - mean) / torch.where(std > 0, std, 1),
        )
    )
    if data.image and x.ndim == 4:
        forms.append(("images are inverted (white on black for black on white)", "invert x", data.low + data.high - x))
        if x.shape[1] == 3:
            forms.append(("the channels are in another order (BGR for RGB)", "write x.flip(1)", x.flip(1)))
        if x.shape[2] == x.shape[3]:
            forms.append(("images are transposed", "write x.transpose(2, 3)", x.transpose(2, 3)))
            forms.append(("images are upside down", "write x.flip(2)", x.flip(2)))
    return forms
