"""The worst logits that bounds allow in the ball: 0 for the label, and for each class an upper bound of z_j - z_y.

Their cross-entropy is at least that of every point of the ball (Wong and Kolter 2018, theorem 2). The bounds are those
of the network in eval mode, which is the one that is certified: batch normalisation is by running statistics, which a
clean pass in train mode updates, and dropout does nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.certify.backward import Shared, lower_bounds
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.intermediate import bounded
from epsball.certify.operators import Affine, Bounds
from epsball.certify.tracing import Traced, trace
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import Logits
from epsball.training.training_objective import Labels, TrainingStep

TRACED = "traced network"
"""Where the step's cache has it."""


def worst_logits(
    model: nn.Module, x: Batch, y: Labels, ball: Ball, step: TrainingStep, *, crown: float = 0.0
) -> Logits:
    """The worst logits (n, classes) in `ball`, bound to x, differentiable in the parameters: 0 for the label y.

    They are those of intervals, or, to the share `crown`, those of CROWN-IBP: a linear bound of each difference, with
    intervals in all layers. One logit z is the two columns (0, z). Raises `BadInput` for a ball that counts
    coordinates, and for a network with layers that bounds do not cover.
    """
    if "dual norm" not in ball.traits:
        raise BadInput(f"`ball` must be of L∞, L2 or L1 to train bounds, got {ball.symbol}; train with pgd instead")
    with torch.autocast(x.device.type, enabled=False):
        graph = graph_of(model, x, step)
        regions, rows = Regions(ball, x.to(graph.dtype)), margins(graph, y)
        found = bounded(graph, regions, backward=False)
        least = by_intervals(graph, rows, found.bounds)
        if crown:
            linear = lower_bounds(graph, graph.output, rows, Shared(found.lines), regions)
            least = torch.lerp(least, linear, crown)
        return -least.reshape(len(x), -1)


def graph_of(model: nn.Module, x: Batch, step: TrainingStep) -> Graph:
    """The network with its parameters as they are, and differentiable in them; traced once in a training."""
    traced, dtype = step.cache.get(TRACED), torch.promote_types(x.dtype, torch.float32)
    try:
        if not isinstance(traced, Traced) or traced.model is not model:
            traced = trace(model, x)
            traced.check(traced.graph(dtype), x)
            step.cache[TRACED] = traced
        return traced.graph(dtype)
    except BadInput as error:
        raise BadInput(f"{str(error).partition(';')[0]}; train with pgd, which needs no bounds") from error


def margins(graph: Graph, y: Labels) -> Functional:
    """For each example the functionals z_y - z_j of all classes j at the logits, one after the other."""
    (logits,) = graph.nodes[graph.output].shape
    columns = torch.eye(logits, dtype=graph.dtype, device=y.device)
    if logits == 1:
        columns = torch.cat([torch.zeros_like(columns), columns])
    values = columns[y][:, None] - columns
    example = torch.arange(len(y), device=y.device).repeat_interleave(len(columns))
    return Functional(values.flatten(0, 1), example, (logits,))


def by_intervals(graph: Graph, rows: Functional, bounds: list[Bounds]) -> Float[Tensor, " p"]:
    """Lower bounds of rows at the logits, as many for each example, from the intervals of the graph's nodes.

    The affine operators at the end are merged into the rows (Gowal et al. 2018, section 3, elides the last layer).
    """
    number, n = graph.output, len(bounds[0][0])
    shift = rows.values.new_zeros(len(rows))
    while isinstance(operator := graph.nodes[number].operator, Affine) and len(graph.nodes[number].inputs) == 1:
        if (constant := operator.constant(rows)) is not None:
            shift = shift + constant
        (before,), (number,) = operator.transpose(rows), graph.nodes[number].inputs
        assert before is not None
        rows = before
    lower, upper = (bound.flatten(1) for bound in bounds[number])
    weights = rows.dense().values.reshape(n, -1, lower.shape[1])
    centre = torch.einsum("nkd,nd->nk", weights, (upper + lower) / 2)
    return (centre - torch.einsum("nkd,nd->nk", weights.abs(), (upper - lower) / 2)).flatten() + shift
