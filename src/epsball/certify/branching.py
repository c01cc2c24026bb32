"""Branch and bound over rectifier neurons: what one bound cannot prove, bounds of ever smaller domains can.

A domain is split at 0 of one neuron's input, and both children are bounded with the slopes and multipliers of their
parent to begin with (Wang et al. 2021, arXiv:2103.06624). The neuron is chosen by filtered smart branching: scores of
what a split may gain (BaBSR, Bunel et al. 2020, arXiv:1909.06588, section 5.2) filter a few, which are tried with one
cheap bound of both children (De Palma et al. 2021, arXiv:2104.06718, section 4.3). Domains of many rows and examples
share a batch; a row is proved when no domain of it is left.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.certify.boxes import BOXES, tightened
from epsball.certify.functionals import Functional
from epsball.certify.multipliers import Bounded, Network, Pieces, attained, bounds, raised
from epsball.certify.operators import Bounds
from epsball.certify.splits import Domains, Leaf, cut, domains_of

BETTER = 0.01
"""Weight of the better child's bound in the choice of a split; the worse child's has 1."""
LAST_STEPS = 400
"""Of ascent in a domain that cannot be split: its bound is exact at the best multipliers."""
LOOSE = "bound too loose"
"""Why an example ends in which a domain is open that has nothing to split."""
NONE = torch.finfo(torch.float32).min
"""The score of what cannot be split."""


@dataclass(frozen=True)
class Limits:
    """When the search of an example ends, and how it works.

    `seconds` of `clock` are those of an example; a batch's time is shared by its examples. `domains` are those that an
    example may have in all, `memory` the bytes of all that wait.
    """

    seconds: float = 60.0
    domains: int = 1 << 40
    memory: int = 2 << 30
    batch: int = 128
    root_steps: int = 50
    steps: int = 20
    candidates: int = 4
    tighten: int = 12
    """Splits after which the bounds of all neurons are computed anew; 0: never."""
    clock: Callable[[], float] = time.perf_counter


@dataclass(eq=False)
class Row:
    """What is known of a row: `bound`, that of its worst domain, the leaves that are proved, and the best point.

    `point` (*shape) is the input with the least `value` of the row that the search came across.
    """

    example: int
    bound: float = math.inf
    domains: int = 1
    open: int = 0
    leaves: list[Leaf] = field(default_factory=list)
    value: float = math.inf
    point: Tensor | None = None

    @property
    def verified(self) -> bool:
        """Whether every part of the region is proved."""
        return not self.open and bool(self.leaves)


Origin = tuple[tuple[int, ...], int, Bounds]
"""The splits of a domain, how many of them its intermediate bounds know of, and those bounds."""


@dataclass(order=True)
class Waiting:
    """An open domain, the worst first."""

    bound: float
    serial: int
    row: int = field(compare=False)
    leaf: Leaf = field(compare=False)
    intervals: Bounds = field(compare=False)
    """What its neurons read, before its splits cut it (N,)."""


@dataclass(eq=False)
class Branching:
    """The search of rows (P,) at the output, whose neurons read `intervals` (n, N), by example.

    `above` (P,) is what a bound must exceed. `reasons` is by example why it ended without a proof.
    """

    network: Network
    rows: Functional
    intervals: Bounds
    above: Float[Tensor, " p"]
    limits: Limits
    found: list[Row] = field(init=False)
    queues: dict[int, list[Waiting]] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    serial: int = 0

    def __post_init__(self) -> None:
        self.found = [Row(example) for example in self.rows.example.tolist()]

    @torch.no_grad()
    def run(self) -> list[Row]:
        """Search until every example is decided or out of its limits."""
        for part in torch.arange(len(self.rows)).split(self.limits.batch):
            self._timed(part.tolist(), lambda part=part: self._root(part))
        while batch := self._next():
            self._timed([waiting.row for waiting in batch], lambda batch=batch: self._branch(batch))
        return self.found

    def _timed(self, rows: list[int], work: Callable[[], None]) -> None:
        began = self.limits.clock()
        work()
        share = (self.limits.clock() - began) / len(rows)
        for row in rows:
            example = self.found[row].example
            self.spent[example] = self.spent.get(example, 0.0) + share

    def _root(self, part: Tensor) -> None:
        low, high = (table[self.rows.example[part]] for table in self.intervals)
        pieces = Pieces.of(self.network.neurons, low, high)
        domains = Domains(
            bound=torch.full_like(low[:, 0], -torch.inf), low=low, high=high,
            side=torch.zeros_like(low, dtype=torch.int8), slope=pieces.lower, multiplier=torch.zeros_like(low),
        )  # fmt: skip
        rows = self.rows.rows(part)
        raised(self.network, self.network.graph.output, rows, domains, self.above[part], self.limits.root_steps)
        for row in part.tolist():
            self.found[row].open = 1
        self._enter(part, domains, [((), 0, (a, b)) for a, b in zip(low, high, strict=True)])

    def _enter(self, row: Tensor, domains: Domains, origins: list[Origin]) -> None:
        """Proved domains become leaves, the others wait."""
        proved = (domains.bound > self.above[row]).tolist()
        slopes, multipliers = domains.slope.half(), domains.multiplier.half().float()
        for i, (number, bound) in enumerate(zip(row.tolist(), domains.bound.tolist(), strict=True)):
            known = self.found[number]
            splits, tight, intervals = origins[i]
            held = torch.tensor([abs(split) - 1 for split in splits], dtype=torch.long)
            leaf = Leaf(splits, slopes[i].clone(), tuple(multipliers[i, held].tolist()), tight)
            if proved[i]:
                known.leaves.append(leaf)
                known.open -= 1
                known.bound = min(known.bound, bound)
            else:
                self.serial += 1
                waiting = Waiting(bound, self.serial, number, leaf, intervals)
                heapq.heappush(self.queues.setdefault(known.example, []), waiting)

    def _next(self) -> list[Waiting]:
        """The next domains: examples with the fewest open ones first, the worst first."""
        for example, queue in list(self.queues.items()):
            if not queue:
                del self.queues[example]
            elif self.spent[example] > self.limits.seconds:
                self._end(example, "time")
            elif sum(row.domains for row in self.found if row.example == example) > self.limits.domains:
                self._end(example, "domains")
        waiting = sum(map(len, self.queues.values())) * self.network.neurons.count * 2
        if waiting > self.limits.memory:
            self._end(max(self.queues, key=lambda example: len(self.queues[example])), "memory")
        batch: list[Waiting] = []
        for example in sorted(self.queues, key=lambda example: len(self.queues[example])):
            queue = self.queues[example]
            while queue and len(batch) < self.limits.batch:
                batch.append(heapq.heappop(queue))
        return batch

    def _end(self, example: int, reason: str) -> None:
        """Give up an example; its rows keep the bounds of their worst domains."""
        for waiting in self.queues.pop(example, []):
            row = self.found[waiting.row]
            row.bound = min(waiting.bound, row.bound)
        self.reasons.setdefault(example, reason)

    def _branch(self, batch: list[Waiting]) -> None:
        """Split each of the domains in two."""
        row = torch.tensor([waiting.row for waiting in batch])
        rows = self.rows.rows(row)
        self._tighten(batch)
        low, high = (torch.stack([waiting.intervals[end] for waiting in batch]) for end in (0, 1))
        bound = torch.tensor([waiting.bound for waiting in batch], dtype=low.dtype)
        domains = domains_of([waiting.leaf for waiting in batch], bound, low, high)
        pieces = Pieces.of(self.network.neurons, domains.low, domains.high)
        found = bounds(self.network, self.network.graph.output, rows, domains, pieces)
        point, read = attained(self.network, self.network.graph.output, found)
        self._look(row, rows, point)
        score = scores(found, read, domains, pieces, self.network.neurons.least)
        neuron, can = self._chosen(rows, domains, score)
        self._finish(batch, rows, domains, (~can).nonzero().squeeze(1))
        ended = torch.tensor([self.found[waiting.row].example in self.reasons for waiting in batch])
        for waiting, over in zip(batch, ended.tolist(), strict=True):
            if over:
                known = self.found[waiting.row]
                known.bound = min(known.bound, waiting.bound)
                self._end(known.example, "")
        index = (can & ~ended).nonzero().squeeze(1)
        if not len(index):
            return
        above, below = (domains.split(index, neuron[index], side) for side in (1, -1))
        children = Domains(**{name: torch.cat([part, getattr(below, name)]) for name, part in vars(above).items()})
        both = torch.cat([index, index])
        raised(
            self.network, self.network.graph.output, rows.rows(both), children, self.above[row[both]], self.limits.steps
        )
        children.bound = torch.maximum(children.bound, bound[both])
        origins = [
            ((*batch[i].leaf.splits, side * (int(neuron[i]) + 1)), batch[i].leaf.tightened, batch[i].intervals)
            for side in (1, -1)
            for i in index.tolist()
        ]
        for i in index.tolist():
            self.found[batch[i].row].open += 1
            self.found[batch[i].row].domains += 2
        self._enter(row[both], children, origins)

    def _tighten(self, batch: list[Waiting]) -> None:
        """Compute the bounds of all neurons anew for the domains whose turn it is."""
        every = self.limits.tighten
        due = [one for one in batch if every and len(one.leaf.splits) - one.leaf.tightened >= every]
        for start in range(0, len(due), BOXES):
            part = due[start : start + BOXES]
            example = torch.tensor([self.found[waiting.row].example for waiting in part])
            low, high = cut([waiting.leaf.splits for waiting in part], *(table[example] for table in self.intervals))
            network = self.network
            found = tightened(network.graph, network.regions.rows(example), low, high)
            low, high = network.neurons.intervals(found.bounds)
            for waiting, a, b in zip(part, low, high, strict=True):
                waiting.leaf = replace(waiting.leaf, tightened=len(waiting.leaf.splits))
                waiting.intervals = a.clone(), b.clone()

    def _finish(self, batch: list[Waiting], rows: Functional, domains: Domains, index: Tensor) -> None:
        """Bound domains that cannot be split once more, with more steps; what is not proved then ends its example."""
        if not len(index):
            return
        row = torch.tensor([batch[i].row for i in index.tolist()])
        last = domains.take(index)
        raised(self.network, self.network.graph.output, rows.rows(index), last, self.above[row], LAST_STEPS)
        proved = last.bound > self.above[row]
        for i in index[~proved].tolist():
            self.reasons.setdefault(self.found[batch[i].row].example, LOOSE)
        leaves = [batch[i].leaf for i in index[proved].tolist()]
        origins = [(leaf.splits, leaf.tightened, batch[0].intervals) for leaf in leaves]
        self._enter(row[proved], last.take(proved.nonzero().squeeze(1)), origins)

    def _look(self, row: Tensor, rows: Functional, point: Tensor) -> None:
        """Keep the point with the least value of each row; one that is not positive ends its example."""
        value = (rows.values * self.network.graph(point)).sum(1)
        for i, (number, reached) in enumerate(zip(row.tolist(), value.tolist(), strict=True)):
            known = self.found[number]
            if reached < known.value:
                known.value, known.point = reached, point[i].clone()
            if reached <= 0:
                self.reasons.setdefault(known.example, "counterexample")

    def _chosen(
        self, rows: Functional, domains: Domains, score: Tensor
    ) -> tuple[Int64[Tensor, " d"], Bool[Tensor, " d"]]:
        """The neuron at which each domain is split, and whether it can be split at all."""
        few = min(self.limits.candidates, score.shape[1])
        value, neuron = score.topk(few, 1)
        index = torch.arange(len(domains)).repeat_interleave(few)
        pair = []
        for side in (1, -1):
            child = domains.split(index, neuron.flatten(), side)
            pieces = Pieces.of(self.network.neurons, child.low, child.high)
            pair.append(bounds(self.network, self.network.graph.output, rows.rows(index), child, pieces).bound)
        gain = torch.minimum(*pair) + BETTER * torch.maximum(*pair)
        gain = torch.where(value.flatten() > 0, gain, NONE).unflatten(0, (-1, few))
        return neuron.gather(1, gain.argmax(1, keepdim=True)).squeeze(1), value[:, 0] > 0


def scores(
    found: Bounded, read: Float[Tensor, "d n"], domains: Domains, pieces: Pieces, least: Float[Tensor, " n"]
) -> Float[Tensor, "d n"]:
    """What a split of each neuron may gain: the part of the bound that its lines lose."""
    above, below = found.held.coefficient.clamp_min(0), -found.held.coefficient.clamp_max(0)
    slope = found.held.lower
    under = torch.minimum((1 - slope) * domains.high, (least - slope) * domains.low)
    return (below * pieces.offset + above * under) * pieces.unstable
