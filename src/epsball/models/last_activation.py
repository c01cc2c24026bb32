"""A model that ends in a sigmoid or a softmax, and the logits before it.

A binary network often returns one probability (every network for BCELoss, every one of Keras): read as a logit, it
would mean class 1 everywhere. A softmax flattens the loss that an attack climbs. Where the model's output is what one
of torch's own functions returned last, the input of that function is the logits, exactly; a pass with the model notes
it. Everywhere else one output that never leaves [0, 1], not even at inputs far away, is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from epsball.common.errors import BadInput

KINDS: dict[Any, str] = {
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit), "sigmoid"),
    **dict.fromkeys((torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax), "softmax"),
}
REMOVED = (
    "`model` returns probabilities, from the {} at its end: the logits before it are used in their place, by attacks, "
    "`success` and records. Return the logits, and this warning goes"
)
PROBABILITY = (
    "`model` must return logits, got one output per example that is always in [0, 1], a probability: as a logit it "
    "would mean class 1 everywhere. Return what goes into the last sigmoid; or torch.logit(model(x)), whose gradient "
    "vanishes where the probability rounds to 0 or 1 (a logit z that happens to look so: return the columns 0 and z)"
)
PROBED, SCALES = 16, (1.0, 10.0, 100.0, 1000.0)
"""Inputs far away: so many rows of normal noise, at these multiples of the largest number in the batch."""


class _Noted(TorchFunctionMode):
    """Notes the last sigmoid or softmax: its kind, input and output."""

    last: tuple[str, Tensor, Tensor, tuple[int, int]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        kind = KINDS.get(func)
        if kind is not None and isinstance(output, Tensor):
            source = args[0] if args else kwargs["input"]
            self.last = kind, source, output, (source._version, output._version)
        return output


def before_activation(model: Callable[..., Any], x: Float[Tensor, "n *shape"]) -> tuple[Any, str]:
    """The model's output at x, or, where that is what a sigmoid or a softmax over classes returned, its input.

    The second part is "sigmoid", "softmax", or empty.

    >>> x = torch.tensor([[1.0, 3.0]])
    >>> before_activation(lambda x: x.softmax(1), x), before_activation(lambda x: x.sin(), x)[1]
    ((tensor([[1., 3.]]), 'softmax'), '')
    """
    with _Noted() as noted:
        output = model(x)
    if noted.last is None or not isinstance(output, Tensor) or output.ndim not in (1, 2):
        return output, ""
    kind, source, returned, versions = noted.last
    columns = 1 if output.ndim == 1 else output.shape[1]
    untouched = (source._version, returned._version) == versions
    fits = output.is_contiguous() and (returned.shape == output.shape if columns > 1 else kind == "sigmoid")
    if not untouched or not fits or not _same_numbers(output, returned):
        return output, ""
    if kind == "softmax" and not _over_columns(returned):
        return output, ""
    return source.reshape(output.shape), kind


def _same_numbers(output: Tensor, returned: Tensor) -> bool:
    """Whether the output is what was returned, or all of it in another shape."""
    base = output._base
    shared = output is returned or (base is not None and (base is returned or base is returned._base))
    return shared and output.numel() == returned.numel()


def _over_columns(probabilities: Tensor) -> bool:
    """Whether a softmax was over the last dimension."""
    return not bool(((probabilities.detach().sum(-1) - 1).abs() > 1e-2).any())


def check_no_probability(model: Callable[..., Any], x: Float[Tensor, "n *shape"], output: object) -> None:
    """Raise `BadInput` where the one output per example at x is a probability: in [0, 1] there, and everywhere."""
    if stays(_in_unit_interval, model, x, output):
        raise BadInput(PROBABILITY)


def stays(
    inside: Callable[[object], bool], model: Callable[..., Any], x: Float[Tensor, "n *shape"], output: object
) -> bool:
    """Whether the output at x is `inside`, and stays there everywhere.

    A logit may be in [0, 1] on the rows at hand; it is not on noise that is a thousand times as large as they are. What
    does not change at all is no probability either.
    """
    if not inside(output) or not len(x):
        return False
    noise = torch.randn(PROBED, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    size = x.detach().abs().amax()
    seen = [output]
    try:
        with torch.no_grad():
            seen += [model(scale * (size if size > 0 else 1) * noise) for scale in SCALES]
    except Exception:  # a model may refuse inputs outside its domain, with whatever error it likes
        return False
    if not all(map(inside, seen)):
        return False
    values = torch.cat([part.detach().reshape(-1) for part in seen if isinstance(part, Tensor)])
    values = values[values.isfinite()]
    return len(values) > 0 and float(values.amax() - values.amin()) > 1e-3


def _in_unit_interval(output: object) -> bool:
    """Whether this is one number in [0, 1] per row, and not the same for all."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim not in (1, 2):
        return False
    if output.ndim == 2 and output.shape[1] != 1:
        return False
    return bool(((output >= 0) & (output <= 1)).all())


def are_probabilities(output: object) -> bool:
    """Whether this is a table of several columns, each row in [0, 1] and with the sum 1, or nan from an overflow."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim != 2 or output.shape[1] < 2:
        return False
    rows = output.detach()[~output.isnan().any(1)]
    return bool(((rows >= 0) & (rows <= 1)).all() & ((rows.sum(1) - 1).abs() < 1e-2).all())


class LogitsOf(nn.Module):
    """A network that ends in a sigmoid or a softmax, without it; it shares all of `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Float[Tensor, "n *shape"]) -> Tensor:
        return before_activation(self.model, x)[0]
