"""Attacks in lower precision first: a draft, whose successes the model itself confirms; then the rest in full."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.problem.objective import Model

Precision = Literal["bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Draft:
    """The model with matrix products and convolutions in bfloat16; logits come back in the dtype of the input."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            output = self.model(x)
        return output.to(x.dtype) if output.is_floating_point() else output


def check_draft(draft: str | None, device: torch.device) -> None:
    """Raise `BadInput` for an unknown precision, and on a CPU, where lower precision is slower than single precision.

    There it also flips the sign of up to 18 % of a gradient's coordinates (measured on small CNNs).
    """
    if draft is None:
        return
    precision = cast(Precision, check_one_of("draft", draft, PRECISIONS))
    if not drafts_pay(device):
        raise BadInput(
            f"`draft` must be left out on a {device.type}, got {precision!r}: it is slower there than single "
            "precision; move model and data to a GPU, or leave it out"
        )


def drafts_pay(device: torch.device) -> bool:
    """Whether lower precision is faster there."""
    return device.type == "cuda"
