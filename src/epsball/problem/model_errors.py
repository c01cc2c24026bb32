"""What an exception of a model says about its input: a remedy is named only where it was tried and works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.models.given import logits_in
from epsball.problem.row_limit import out_of_memory

IN_PLACE = "`model` must not change its input in place: its points would move; write x = x - mean, not x -= mean"
ABOUT_INPUT = re.compile(
    r"shape|size|dimension|\bdim\b|dtype|channel|scalar type|same device|input type|not implemented for|guard|mat1",
    re.IGNORECASE,
)
"""Words in the messages of torch about an input that does not fit."""
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def explained(model: Callable[[Tensor], object], z: Tensor, error: Exception) -> BadInput | None:
    """The error that `model` raised at z (n, *shape) as one about `x`; None where it is about something else."""
    message = str(error)
    if "a leaf Variable that requires grad" in message:
        return BadInput(IN_PLACE)
    if "ExportedProgram" in message:
        return BadInput("`model` must be callable, got an ExportedProgram; write model.module()")
    if isinstance(error, BadInput) or out_of_memory(error) or not ABOUT_INPUT.search(message):
        return None
    got = f"rows of shape {tuple(z.shape[1:])}, {str(z.dtype).removeprefix('torch.')}"
    for other, rows, rule, remedy in _candidates(z):
        if _answers(model, other, rows):
            return BadInput(f"`x` must be {rule}, got {got}; write {remedy}")
    if "Guard failed" in message or (len(z) > 1 and _answers(model, z[:1], 1)):
        return BadInput(
            f"`model` must take any number of rows, but it does not take {len(z)}; export it with a dynamic first "
            "dimension: torch.export.export(net, (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
        )
    reason = " ".join(message.split())[:300]
    return BadInput(f"`model` must take x (n, *shape), got {got}: {reason}; are these the data it was made for?")


def wrong_rows(model: Callable[[Tensor], object], z: Tensor, rows: int) -> BadInput:
    """The error of a model that returned so many rows at z (n, *shape), and not n."""
    if _answers(model, z[None], 1):
        return BadInput(f"`x` must be a batch (n, *shape), not one example, got {tuple(z.shape)}; write x[None]")
    return BadInput(
        f"`model` must return one row of logits per example, got {rows} for {len(z)}; keep the first dimension as it "
        "comes"
    )


def is_one_example(model: Callable[[Tensor], object], x: Tensor) -> bool:
    """Whether x is one example without a dimension of rows: the model takes it as one row, and no row of it."""
    return not _answers(model, x[:1], 1) and _answers(model, x[None], 1)


def _candidates(z: Tensor) -> Iterator[tuple[Tensor, int, str, str]]:
    """Inputs that may have been meant: with the rows they have, what the rule is and what to write."""
    z, n = z.detach(), len(z)
    for dtype in DTYPES:
        if dtype != z.dtype:
            name = str(dtype).removeprefix("torch.")
            yield z.to(dtype), n, f"{name} for this model", f"torch.as_tensor(x).to({dtype})"
    yield z[None], 1, "a batch (n, *shape), not one example", "x[None]"
    if z.ndim == 4:
        first = "torch.as_tensor(x).permute(0, 3, 1, 2)"
        yield z.permute(0, 3, 1, 2), n, "images with the channels first, (n, C, H, W)", first
        last = "torch.as_tensor(x).permute(0, 2, 3, 1)"
        yield z.permute(0, 2, 3, 1), n, "images with the channels last, (n, H, W, C)", last
    if z.ndim == 3:
        yield z[:, None], n, "images with a channel, (n, 1, H, W)", "x[:, None]"
    if z.ndim > 2:
        yield z.flatten(1), n, "flat rows (n, d)", "x.reshape(len(x), -1)"


def _answers(model: Callable[[Tensor], object], z: Tensor, rows: int) -> bool:
    """Whether the model answers with one row for each row of z."""
    try:
        with torch.no_grad():
            output = logits_in(model(z))
    except Exception:  # whatever it raises: this is not what it takes
        return False
    return isinstance(output, Tensor) and output.ndim in (1, 2) and len(output) == rows
