"""alpha-CROWN: the lower slopes of unstable rectifiers, optimised for each row (Xu et al. 2021, arXiv:2011.13824).

Any slope between the two of a rectifier is sound, so the bound of a row may be raised by gradient ascent in the slopes.
Each row has slopes of its own, at the cells that it meets, and leaves as soon as it is proved. Rows of the output come
first; rows of intermediate neurons only where that was not enough (`Tightening`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.certify.activations import Lines
from epsball.certify.backward import Relax, lower_bounds
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional, units
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate, open_neurons, rows_at_once
from epsball.certify.interval import intersected
from epsball.certify.operators import Bounds
from epsball.common.errors import BadInput

STEPS = 20
RATE, DECAY = 0.5, 0.98
"""Adam's step in a slope, and its factor from step to step."""
MOMENTS = (0.9, 0.999)

Slopes = dict[int, Tensor]
"""Lower slopes by the number of the activation: (P, ...), one per row and cell."""


@dataclass(eq=False)
class Gathering:
    """Applies lines that the rows of an example share, and keeps them as each row saw them."""

    lines: Mapping[int, Lines]
    seen: dict[int, Lines] = field(default_factory=dict)

    def __call__(self, number: int, rows: Functional) -> tuple[Functional, Tensor | None]:
        table = self.lines[number]
        here = table.at(rows)
        here = Lines(rows.gather(table.unstable.to(rows.values)) > 0, *list(vars(here).values())[1:])
        self.seen[number] = here
        return here.below(rows)


@dataclass(frozen=True, eq=False)
class Own:
    """Applies lines of each row's own, with its lower slopes where there is a choice."""

    lines: Mapping[int, Lines]
    slopes: Mapping[int, Tensor]

    def __call__(self, number: int, rows: Functional) -> tuple[Functional, Tensor | None]:
        lines = self.lines[number]
        return (lines.with_lower(self.slopes[number]) if number in self.slopes else lines).below(rows)


@dataclass(eq=False)
class Ascent:
    """Adam on slopes, row by row; rows can be dropped."""

    slopes: Slopes
    least: dict[int, float]
    first: Slopes = field(default_factory=dict)
    second: Slopes = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        self.first = {number: torch.zeros_like(part) for number, part in self.slopes.items()}
        self.second = {number: torch.zeros_like(part) for number, part in self.slopes.items()}

    def move(self, gradients: Mapping[int, Tensor]) -> None:
        """One step up, back into [least, 1]."""
        self.step += 1
        rate = RATE * DECAY ** (self.step - 1) / (1 - MOMENTS[0] ** self.step)
        for number, gradient in gradients.items():
            first = self.first[number].mul_(MOMENTS[0]).add_(gradient, alpha=1 - MOMENTS[0])
            second = self.second[number].mul_(MOMENTS[1]).addcmul_(gradient, gradient, value=1 - MOMENTS[1])
            size = (second / (1 - MOMENTS[1] ** self.step)).sqrt_().add_(1e-8)
            moved = torch.addcdiv(self.slopes[number].detach(), first, size, value=rate)
            self.slopes[number] = moved.clamp_(self.least[number], 1)

    def keep(self, rows: Tensor) -> None:
        """Drop the other rows."""
        for parts in (self.slopes, self.first, self.second):
            for number in parts:
                parts[number] = parts[number].detach()[rows]


@dataclass(frozen=True, eq=False)
class Optimised:
    """The best bound of each row (P,), and the slopes that gave it."""

    bound: Float[Tensor, " p"]
    slopes: Slopes


def optimised(
    graph: Graph, number: int, rows: Functional, lines: Mapping[int, Lines], regions: Regions, steps: int = STEPS
) -> Optimised:
    """Raise the lower bounds of rows at node `number` in at most `steps` steps; a row whose bound is above 0 is done.

    `lines` are those that the rows of an example share. The first bound is CROWN's.
    """
    gathering = Gathering(lines)
    with torch.no_grad():
        best = lower_bounds(graph, number, rows, gathering, regions)
    seen = gathering.seen
    tunable = [place for place in seen if graph.rectifies(place) and bool(seen[place].unstable.any())]
    slopes = {place: seen[place].lower_slope for place in tunable}
    found = {place: part.clone() for place, part in slopes.items()}
    if not tunable:
        return Optimised(best, found)
    ascent = Ascent(dict(slopes), {place: graph.least_slope(place) for place in tunable})
    live, now = (best <= 0).nonzero().squeeze(1), best
    if len(live) < len(rows):
        rows, seen, now = _kept(rows, seen, ascent, live, now)
    for step in range(steps + 1):
        if not len(live):
            break
        last = step == steps
        parts = [ascent.slopes[place].requires_grad_(not last) for place in tunable]
        with torch.set_grad_enabled(not last):
            bound = lower_bounds(graph, number, rows, Own(seen, ascent.slopes), regions)
        now = bound.detach()
        better = (now > best[live]).nonzero().squeeze(1)
        best[live[better]] = now[better]
        for place in tunable:
            found[place][live[better]] = ascent.slopes[place].detach()[better]
        if last:
            break
        gradients = torch.autograd.grad(bound, parts, torch.ones_like(bound))
        ascent.move(dict(zip(tunable, gradients, strict=True)))
        remaining = (now <= 0).nonzero().squeeze(1)
        if len(remaining) < len(live):
            live = live[remaining]
            rows, seen, now = _kept(rows, seen, ascent, remaining, now)
    return Optimised(best, found)


def _kept(
    rows: Functional, seen: dict[int, Lines], ascent: Ascent, index: Tensor, now: Tensor
) -> tuple[Functional, dict[int, Lines], Tensor]:
    """What is left of rows, lines and bounds when only `index` stays."""
    ascent.keep(index)
    return rows.rows(index), {place: lines.rows(index) for place, lines in seen.items()}, now[index]


@dataclass(eq=False)
class Tightening:
    """Bounds of intermediate neurons with slopes of their own, and those slopes, for `intermediate.bounded`.

    `slopes` holds, for each node, the neurons (example, neuron), and the slopes of their least values and then of their
    greatest, in the same order.
    """

    steps: int = STEPS
    slopes: dict[int, tuple[Tensor, Tensor, Slopes]] = field(default_factory=dict)

    def __call__(self, graph: Graph, regions: Regions, found: Intermediate, number: int, bounds: Bounds) -> Bounds:
        example, neuron = open_neurons(graph, number, bounds)
        if not len(example):
            return bounds
        low, high = bounds[0].clone(), bounds[1].clone()
        shape, kept = graph.nodes[number].shape, []
        for part in torch.arange(len(example), device=example.device).split(rows_at_once(graph, number)):
            rows = units(example[part], neuron[part], (1, -1), shape, graph.dtype).single()
            slopes = {
                place: part.half().to(part.dtype).clamp(graph.least_slope(place), 1)  # as they are stored, and sound
                for place, part in optimised(graph, number, rows, found.lines, regions, self.steps).slopes.items()
            }
            bound = lower_bounds(graph, number, rows, relaxing(found.lines, slopes), regions)
            least, negated = bound.unflatten(0, (2, -1))
            low.flatten(1)[example[part], neuron[part]] = least
            high.flatten(1)[example[part], neuron[part]] = -negated
            found.rows += len(rows)
            kept.append({place: part.unflatten(0, (2, -1)) for place, part in slopes.items()})
        self.slopes[number] = (example, neuron, _joined(kept))
        return intersected(bounds, (low, high))

    def arrays(self, order: int) -> dict[str, np.ndarray]:
        """The neurons and slopes of one of the examples, as certificates hold them."""
        arrays: dict[str, np.ndarray] = {}
        for number, (example, neuron, slopes) in self.slopes.items():
            mine = (example == order).nonzero().squeeze(1)
            arrays[f"tight/{number}/neuron"] = neuron[mine].numpy().astype(np.int32)
            for where, part in slopes.items():
                arrays[f"tight/{number}/{where}"] = part[:, mine].numpy().astype(np.float16)
        return arrays


def _joined(parts: list[Slopes]) -> Slopes:
    """Slopes (2, p, ...) of several runs of neurons in one table (2, P, ...) each; a run without a choice has zeros."""
    shapes = {place: part.shape[2:] for slopes in parts for place, part in slopes.items()}
    counts = [max((part.shape[1] for part in slopes.values()), default=0) for slopes in parts]
    some = {place: part for slopes in parts for place, part in slopes.items()}
    return {
        place: torch.cat(
            [
                slopes[place] if place in slopes else some[place].new_zeros(2, count, *shape)
                for slopes, count in zip(parts, counts, strict=True)
            ],
            1,
        )
        for place, shape in shapes.items()
    }


def relaxing(lines: Mapping[int, Lines], slopes: Mapping[int, Tensor]) -> Relax:
    """Lines that the rows of an example share, with lower slopes of each row's own where there is a choice."""

    def relax(number: int, rows: Functional) -> tuple[Functional, Tensor | None]:
        if number not in slopes:
            return lines[number].at(rows).below(rows)
        gathering = Gathering({number: lines[number]})
        gathering(number, rows)
        own = slopes[number].to(rows.values)
        if own.shape != rows.values.shape:
            raise BadInput(
                f"`certificate` must hold slopes of shape {tuple(rows.values.shape)}, got {tuple(own.shape)}; run the "
                "evaluation again in a new directory"
            )
        return gathering.seen[number].with_lower(own).below(rows)

    return relax
