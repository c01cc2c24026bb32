"""beta-CROWN: lower bounds in domains, raised in the lower slopes and the multipliers (Wang et al. 2021, 2103.06624).

In a domain where a neuron's input z is held on the side s of 0, the term -beta * s * z with beta >= 0 is nowhere above
0, so adding it keeps a bound sound. Both slopes and multipliers ascend. Their derivatives need no second pass back: the
bound is a minimum over the input, so by the envelope theorem they are read off the point at which it is attained,
carried forward along the lines that were used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.certify.activations import Activation, Lines
from epsball.certify.backward import carried_back
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.splits import Domains, Neurons

RATE_SLOPE, RATE_MULTIPLIER, DECAY = 0.3, 0.1, 0.97
MOMENTS = (0.9, 0.999)


@dataclass(frozen=True, eq=False)
class Network:
    """What all domains share: the graph, the regions, the neurons, and the lines of activations that do not rectify."""

    graph: Graph
    regions: Regions
    neurons: Neurons
    others: Mapping[int, Lines]


@dataclass(frozen=True, eq=False)
class Pieces:
    """The lines of the neurons of D domains, (D, N) each; the lower slope is free where a neuron is unstable."""

    unstable: Bool[Tensor, "d n"]
    lower: Float[Tensor, "d n"]
    upper: Float[Tensor, "d n"]
    offset: Float[Tensor, "d n"]
    """The intercept of the upper line; the lower goes through 0."""

    @classmethod
    def of(cls, neurons: Neurons, low: Float[Tensor, "d n"], high: Float[Tensor, "d n"]) -> Pieces:
        """The lines on these intervals."""
        parts = []
        for number in neurons.starts:
            operator = neurons.graph.nodes[number].operator
            assert isinstance(operator, Activation)
            lines = operator.lines(neurons.part(low, number), neurons.part(high, number))
            parts.append((lines.unstable, lines.lower_slope, lines.upper_slope, lines.upper_offset))
        return cls(*(neurons.joined(part) for part in zip(*parts, strict=True)))

    def take(self, index: Tensor) -> Pieces:
        """Those of some domains."""
        return Pieces(**{name: part[index] for name, part in vars(self).items()})


@dataclass(eq=False)
class Held:
    """Replaces activations by the lines of each row's own domain, and takes the price of held sides off.

    It remembers the coefficients that it met, `coefficient` (D, N), and by activation the slope and the intercept of
    the lines that it used.
    """

    network: Network
    domains: Domains
    pieces: Pieces
    coefficient: Float[Tensor, "d n"] = field(init=False)
    used: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coefficient = torch.zeros_like(self.domains.low)
        least = self.network.neurons.least.to(self.domains.slope)
        slope = torch.maximum(stored(self.domains.slope), least)  # float16 may have brought it below
        self.lower = torch.where(self.pieces.unstable, slope, self.pieces.lower)
        self.price = stored(self.domains.multiplier) * self.domains.side

    def __call__(self, number: int, rows: Functional) -> tuple[Functional, Tensor]:
        neurons, values = self.network.neurons, rows.values
        positive = values > 0
        if number not in neurons.starts:
            lines = self.network.others[number].at(rows)
            assert lines.lower_offset is not None
            assert lines.upper_offset is not None
            slope = torch.where(positive, lines.lower_slope, lines.upper_slope)
            offset = torch.where(positive, lines.lower_offset, lines.upper_offset)
            before = values * slope
        else:
            slope = torch.where(positive, neurons.part(self.lower, number), neurons.part(self.pieces.upper, number))
            offset = torch.where(positive, 0, neurons.part(self.pieces.offset, number))
            before = torch.addcmul(neurons.part(self.price, number).neg(), values, slope)
            start = neurons.starts[number]
            self.coefficient[:, start : start + neurons.size(number)] = values.flatten(1)
        self.used[number] = slope, offset
        return rows.with_values(before), rows.dot(offset)


def stored(values: Tensor) -> Tensor:
    """Slopes and multipliers as certificates hold them, in float16, so that what is proved is what is stored."""
    return values.half().to(values.dtype)


@dataclass(eq=False)
class Bounded:
    """Lower bounds of D rows in their domains, (D,), and how they came about."""

    bound: Float[Tensor, " d"]
    held: Held
    input: Functional
    """The rows as functionals of the input."""


def bounds(network: Network, number: int, rows: Functional, domains: Domains, pieces: Pieces) -> Bounded:
    """Lower bounds of `rows`, dense functionals of node `number`, each in its domain."""
    held = Held(network, domains, pieces)
    at, constant = carried_back(network.graph, number, rows, held)
    assert at is not None
    at = at.dense()
    bound = network.regions.least(at)
    return Bounded(bound if constant is None else bound + constant, held, at)


def attained(network: Network, number: int, found: Bounded) -> tuple[Tensor, Float[Tensor, "d n"]]:
    """Where the bounds are attained, (D, *shape), and what the neurons before `number` read there along the lines."""
    graph, neurons = network.graph, network.neurons
    point = network.regions.minimiser(found.input)
    values, read = [point], torch.zeros_like(found.held.coefficient)
    for place in range(1, number):
        node = graph.nodes[place]
        inputs = [values[i] for i in node.inputs]
        assert node.operator is not None
        if place in found.held.used:
            slope, offset = found.held.used[place]
            values.append(torch.addcmul(offset, inputs[0], slope))
            if place in neurons.starts:
                start = neurons.starts[place]
                read[:, start : start + neurons.size(place)] = inputs[0].flatten(1)
        else:
            values.append(node.operator.forward(*inputs))
    return point, read


@dataclass(eq=False)
class Ascent:
    """Adam on the slopes and multipliers of domains, row by row."""

    state: list[Tensor] = field(default_factory=list)
    step: int = 0

    def move(self, domains: Domains, slope: Tensor, multiplier: Tensor, least: Tensor) -> None:
        """One step up along the derivatives; slopes stay in [least, 1], multipliers at 0 or above."""
        if not self.state:
            self.state = [torch.zeros_like(slope) for _ in range(4)]
        self.step += 1
        rate = DECAY ** (self.step - 1) / (1 - MOMENTS[0] ** self.step)
        parts = (domains.slope, slope, RATE_SLOPE), (domains.multiplier, multiplier, RATE_MULTIPLIER)
        for (value, derivative, own), first, second in zip(parts, self.state[:2], self.state[2:], strict=True):
            first.mul_(MOMENTS[0]).add_(derivative, alpha=1 - MOMENTS[0])
            second.mul_(MOMENTS[1]).addcmul_(derivative, derivative, value=1 - MOMENTS[1])
            size = (second / (1 - MOMENTS[1] ** self.step)).sqrt_().add_(1e-8)
            value.addcdiv_(first, size, value=own * rate)
        domains.slope.clamp_(max=1)
        torch.maximum(domains.slope, least, out=domains.slope)
        domains.multiplier.clamp_min_(0).mul_(domains.side != 0)

    def keep(self, index: Tensor) -> None:
        """Drop the other domains."""
        self.state = [part[index] for part in self.state]


def raised(
    network: Network, number: int, rows: Functional, domains: Domains, above: Float[Tensor, " d"], steps: int
) -> None:
    """Raise the bounds of domains in at most `steps` steps; a domain whose bound exceeds its `above` is done.

    `bound`, `slope` and `multiplier` become the best that were found; where none is better, they stay.
    """
    least = network.neurons.least.to(domains.slope)
    pieces = Pieces.of(network.neurons, domains.low, domains.high)
    live = torch.arange(len(domains), device=domains.low.device)
    now, ascent = domains.take(live), Ascent()
    for step in range(steps + 1):
        found = bounds(network, number, rows, now, pieces)
        better = (found.bound > domains.bound[live]).nonzero().squeeze(1)
        place = live[better]
        domains.bound[place] = found.bound[better]
        domains.slope[place], domains.multiplier[place] = now.slope[better], now.multiplier[better]
        if step == steps:
            break
        remaining = (found.bound <= above[live]).nonzero().squeeze(1)
        if not len(remaining):
            break
        _, read = attained(network, number, found)
        ascent.move(now, found.held.coefficient.clamp_min(0) * read * pieces.unstable, -read * now.side, least)
        if len(remaining) < len(live):
            live, rows = live[remaining], rows.rows(remaining)
            now, pieces = now.take(remaining), pieces.take(remaining)
            ascent.keep(remaining)
