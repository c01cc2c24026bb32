"""What a model returns, as logits of at least two columns."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.models.given import logits_in


def two_columns(output: object) -> Float[Tensor, "n classes"]:
    """Logits (n, classes) as they are; a single logit z, (n,) or (n, 1), as the two columns (0, z).

    Cross-entropy of (0, z) is the binary one, and its first argmax on ties is the rule z > 0. Raises `BadInput` for
    anything else, labels among it.

    >>> two_columns(torch.tensor([1.5, -2.0]))
    tensor([[ 0.0000,  1.5000],
            [ 0.0000, -2.0000]])
    """
    output = logits_in(output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise BadInput(f"`model` must return a tensor of logits, got {_kind_of(output)}")
    logits = output[:, None] if output.ndim == 1 else output
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise BadInput(
            f"`model` must return logits (n, classes) or one logit (n,), got {tuple(output.shape)}; "
            "put the classes last and pool the rest"
        )
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def _kind_of(output: object) -> str:
    """What a model returned instead of logits, and what to do."""
    if isinstance(output, Tensor):
        return f"{output.dtype}; return the scores, not the labels"
    if isinstance(output, Mapping):
        entries = list(map(str, output))[:6]
        return f"a dict of {', '.join(entries)}; wrap it: lambda x: model(x)[{next(iter(entries), '')!r}]"
    kind = type(output).__name__
    if kind == "ndarray" or (isinstance(output, list) and not any(isinstance(one, Tensor) for one in output)):
        return f"{kind}; wrap it: epsball.BlackBox(model)"
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor) and output[0].ndim in (1, 2):
        shapes = [str(tuple(part.shape)) for part in output if isinstance(part, Tensor)][:6]
        return f"a {kind} of {', '.join(shapes)}, where any may be the logits; wrap it: lambda x: model(x)[1]"
    if isinstance(output, tuple | list):
        return f"a {kind} whose first part is not (n, classes); wrap it: lambda x: model(x)[1]"
    return f"{kind}; return the logits alone"


def masked_to_finite(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """Logits with a finite number, without a gradient, in the place of -inf, which masks a class.

    It is so far below the smallest finite logit of the row that no softmax in this precision sees the class: losses,
    ranks and predictions are those of the other classes. nan and inf stay; so does a row of -inf, as inf.

    >>> masked_to_finite(torch.tensor([[2.0, -torch.inf, 1.0]])).softmax(1)
    tensor([[0.7311, 0.0000, 0.2689]])
    """
    if logits.is_cpu and math.isfinite(logits.detach().sum().item()):
        return logits  # on a GPU the rest is cheaper than to wait for a sum
    masked = logits == -math.inf
    lowest = torch.where(masked, math.inf, logits.detach()).amin(1, keepdim=True)
    info = torch.finfo(logits.dtype)
    gap = (4 * info.eps * lowest.abs()).clamp_min(-2 * math.log(info.tiny))  # more than rounding of large logits takes
    return torch.where(masked, (lowest - gap).clamp_min(info.min), logits)
