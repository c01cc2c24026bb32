"""The worst logits that bounds allow in the ball: 0 for the label, and for each class an upper bound of z_j - z_y.

Their cross-entropy is at least that of every point of the ball (Wong and Kolter 2018, theorem 2). The bounds are those
of the network in eval mode, which is the one that is certified: batch normalisation is by running statistics, which a
clean pass in train mode updates, and dropout does nothing.
"""

from __future__ import annotations

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.certify.backward import Intervals, Shared, lower_bounds
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.intermediate import bounded
from epsball.certify.interval import interval_bounds
from epsball.certify.margins import margin_rows
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

    They are those of intervals, the last layer merged into the differences (Gowal et al. 2018, section 3), or, to the
    share `crown`, those of CROWN-IBP: linear bounds of the differences, with intervals in all layers. One logit z is
    the two columns (0, z). Raises `BadInput` for a ball that counts coordinates, and for a network with layers that
    bounds do not cover.
    """
    if "dual norm" not in ball.traits:
        raise BadInput(f"`ball` must be of L∞, L2 or L1 to train bounds, got {ball.symbol}; train with pgd instead")
    with torch.autocast(x.device.type, enabled=False):
        graph = graph_of(model, x, step)
        regions, rows = Regions(ball, x.to(graph.dtype)), differences(graph, y)
        found = bounded(graph, regions) if crown else None
        bounds = interval_bounds(graph, *regions.box) if found is None else found.bounds
        least = lower_bounds(graph, graph.output, rows, Intervals(bounds), regions)
        if found is not None:
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


def differences(graph: Graph, y: Labels) -> Functional:
    """For each example the rows z_y - z_j at the logits, for all classes j one after the other; 0 for the label."""
    (logits,) = graph.nodes[graph.output].shape
    classes = torch.arange(max(logits, 2), device=y.device)
    example, rival = torch.arange(len(y), device=y.device).repeat_interleave(len(classes)), classes.repeat(len(y))
    rows = margin_rows(example, rival, y, logits, graph.dtype)
    return rows.with_values(rows.values * (rival != y[example])[:, None])
