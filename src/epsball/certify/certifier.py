"""What is proved of examples: cheap bounds first, dearer ones for what is left, each proof rechecked in float64.

The search runs in the precision of the data; what it finds counts once `recheck` has proved it from the certificate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from epsball.certify.backward import Intervals, Relax, Shared
from epsball.certify.branching import Limits
from epsball.certify.certificate import Certificate, Method
from epsball.certify.concretise import Regions
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate, bounded, crown
from epsball.certify.margins import margin_rows, margins, rivals_of
from epsball.certify.recheck import Problem, Rechecked, recheck, regions_for
from epsball.certify.search import Searched, search
from epsball.certify.slopes import Slopes, Tightening, optimised
from epsball.certify.tracing import trace
from epsball.common.errors import BadInput
from epsball.problem.task import Task

log = logging.getLogger(__name__)

BATCH = 32
"""Examples whose bounds are computed together."""
FEW = 4
"""Examples whose intermediate slopes are optimised together."""
TOGETHER = 8
"""Examples whose domains share batches."""
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown", "alpha-crown")
"""Bounds, from the cheapest to the tightest."""
UNITS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
"""The relative error of one rounding."""
CHECKED = 8
"""Examples at which the graph is compared with the model."""


@dataclass(eq=False)
class Proofs:
    """What is known of n examples so far; arrays (n,), `rivals` (n, k).

    `margin` is the certified lower bound of the smallest margin z_y - z_j where `verified`, elsewhere the best bound of
    the search, in the precision of the data. `as_run` says that the certificate also covers the rounding of the network
    as it runs. `reason` is why an example is undecided. `rivals` are the classes that are still open.
    """

    verified: np.ndarray
    margin: np.ndarray
    as_run: np.ndarray
    method: np.ndarray
    seconds: np.ndarray
    reason: np.ndarray
    rivals: np.ndarray
    certificates: list[bytes | None]
    points: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def none(cls, rivals: Tensor) -> Proofs:
        """Nothing is proved yet."""
        n = len(rivals)
        return cls(
            verified=np.zeros(n, dtype=bool),
            margin=np.full(n, -np.inf),
            as_run=np.zeros(n, dtype=bool),
            method=np.full(n, "", dtype=object),
            seconds=np.zeros(n),
            reason=np.full(n, "time", dtype=object),
            rivals=rivals.cpu().numpy().copy(),
            certificates=[None] * n,
        )

    def enter(self, rows: np.ndarray, found: Rechecked, certificates: Sequence[Certificate]) -> np.ndarray:
        """Enter what `recheck` found of some examples; which of them are verified."""
        margin, as_run = found.margin.cpu().numpy(), found.margin_as_run.cpu().numpy()
        proved = margin > 0
        for row, certificate, won, value, run in zip(rows, certificates, proved, margin, as_run, strict=True):
            if won:
                self.verified[row], self.margin[row], self.as_run[row] = True, value, run > 0
                self.method[row], self.reason[row] = certificate.method, ""
                self.rivals[row] = False
                self.certificates[row] = certificate.to_bytes()
            else:
                self.reason[row] = "bound within rounding of 0"
        return proved


class Certifier:
    """Proves that no point of a ball changes the answer of `model`, a torch module or callable of logits.

    `x` (n, *shape) are examples like those to come; their precision, float32 or float64, is that of the search and of
    the network. Raises `BadInput`, which names the layer, where the model has operators that are not covered, and where
    its trace and its answers differ.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], x: Tensor) -> None:
        if x.dtype not in UNITS:
            raise BadInput(
                f"`x` must be float32 or float64 for a certificate, got {x.dtype}; certify the network in float32: "
                "model.float(), x.float()"
            )
        self.dtype = x.dtype
        self.traced = trace(model, x)
        with torch.no_grad():
            self.graph = _detached(self.traced.graph(x.dtype))
            self.exact = self.graph if x.dtype == torch.float64 else _detached(self.traced.graph(torch.float64))
        self.traced.check(self.graph, x[:CHECKED])

    @property
    def logits(self) -> int:
        """How many numbers the network answers with; 1 is one logit."""
        return self.graph.nodes[-1].shape[0]

    def problem(self, task: Task) -> Problem:
        """The examples of a task in float64, as they are rechecked."""
        rivals = rivals_of(task.y, task.target, self.logits)
        return Problem(self.exact, regions_for(task.ball, task.x), task.y, rivals)

    def recheck(self, task: Task, certificates: Sequence[bytes]) -> Rechecked:
        """The certified margins that follow from stored certificates, in float64. Raises `BadInput` for other bytes."""
        read = [Certificate.from_bytes(stored) for stored in certificates]
        with torch.no_grad():
            return recheck(self.problem(task), read, UNITS[self.dtype])

    @torch.no_grad()
    def bounds(self, task: Task, methods: Sequence[str] = METHODS, deadline: float | None = None) -> Proofs:
        """What the named bounds prove, the cheapest first, each for what the ones before left.

        `deadline` is a time of `time.monotonic` after which no further batch is begun; examples whose turn does not
        come are left with the reason "time". Examples that are misclassified without attack are left with that reason.
        """
        _check_methods(methods)
        self._check_corners(task)
        proofs = Proofs.none(rivals_of(task.y, task.target, self.logits))
        clean = torch.cat([self.graph(part) for part in task.x.split(BATCH)]) if len(task.x) else task.x.new_zeros(0, 1)
        wrong = (margins(clean, task.y, torch.from_numpy(proofs.rivals).to(task.y.device)) <= 0).cpu().numpy()
        proofs.reason[wrong] = "misclassified without attack"
        for rows in np.array_split(np.flatnonzero(~wrong), max(1, -(-int((~wrong).sum()) // BATCH))):
            if deadline is not None and time.monotonic() > deadline:
                break
            if len(rows):
                Batch(self, task, proofs, rows, deadline).run(methods)
        return proofs

    def _check_corners(self, task: Task) -> None:
        """Raise `BadInput` where graph and model differ at the edge of the regions: a choice by values may be there."""
        some = task.rows(torch.arange(min(CHECKED, len(task.x)), device=task.x.device))
        if len(some.x) and not some.ball.has_infinite_radius:
            direction = some.noise.normal(some.x.shape[1:]).to(some.x)
            self.traced.check(self.graph, some.ball.argmax(direction, some.x))

    def search(self, task: Task, proofs: Proofs, seconds: float, limits: Limits | None = None) -> Proofs:
        """Branch and bound for the examples that `proofs` left undecided, `seconds` each, the nearest to a proof first.

        `proofs` takes on what is found, and is returned. Its `points` are then, by row, the inputs (*shape) with the
        smallest margins that were met, for the model to be asked about. `limits` are others than the usual ones.
        """
        if not any(map(self.graph.rectifies, self.graph.activations)):
            return proofs  # nothing can be split
        limits = replace(Limits() if limits is None else limits, seconds=seconds)
        left = np.flatnonzero(~proofs.verified & (proofs.reason != "misclassified without attack"))
        left = left[np.argsort(-proofs.margin[left], kind="stable")]
        for rows in np.array_split(left, max(1, -(-len(left) // TOGETHER))):
            if not len(rows):
                break
            part = task.rows(torch.from_numpy(rows).to(task.x.device))
            rivals = rivals_of(part.y, part.target, self.logits)
            found = search(self.graph, self.exact, Regions(part.ball, part.x), part.y, rivals, limits)
            self._enter(task, proofs, rows, found)
            for place, (row, one) in enumerate(zip(rows.tolist(), found, strict=True)):
                if one.point is not None:
                    x, ball = part.x[place, None], part.ball.rows(torch.tensor([place], device=part.x.device))
                    proofs.points[row] = ball.project(one.point[None], x)[0]
        return proofs

    def _enter(self, task: Task, proofs: Proofs, rows: np.ndarray, found: list[Searched]) -> None:
        """Recheck and enter what a search proved, and why the others are open."""
        for row, one in zip(rows, found, strict=True):
            proofs.seconds[row] += one.seconds
            proofs.margin[row] = max(proofs.margin[row], min(known.bound for known in one.rows.values()))
            proofs.reason[row] = one.reason or proofs.reason[row]
            for rival, known in one.rows.items():
                proofs.rivals[row, rival] &= not known.verified
            if not one.reason:
                certificate = Certificate("branch-and-bound", one.arrays)
                index = torch.tensor([row], device=task.x.device)
                checked = recheck(self.problem(task.rows(index)), [certificate], UNITS[self.dtype])
                proofs.enter(np.array([row]), checked, [certificate])


def _detached(graph: Graph) -> Graph:
    """The graph with weights that need no gradient."""
    for node in graph.nodes:
        for name, part in vars(node.operator).items() if node.operator is not None else ():
            if isinstance(part, Tensor):
                setattr(node.operator, name, part.detach())
    return graph


def _check_methods(methods: Sequence[str]) -> None:
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise BadInput(f"`methods` must be among {', '.join(METHODS)}, got {unknown[0]!r}")


@dataclass(eq=False)
class Batch:
    """Some examples on their way through the bounds: `rows` (n,) are their places in the task and in the proofs."""

    certifier: Certifier
    task: Task
    proofs: Proofs
    rows: np.ndarray
    deadline: float | None = None
    found: Intermediate | None = None
    slopes: dict[tuple[int, int], Slopes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        index = torch.from_numpy(self.rows).to(self.task.x.device)
        self.y = self.task.y[index]
        self.regions = Regions(self.task.ball.rows(index), self.task.x[index])
        self.best = torch.full(self.proofs.rivals[self.rows].shape, -torch.inf, dtype=self.task.x.dtype)
        self.best[~torch.from_numpy(self.proofs.rivals[self.rows])] = torch.inf

    @property
    def open(self) -> Tensor:
        """Which examples are not verified yet."""
        return torch.from_numpy(np.flatnonzero(~self.proofs.verified[self.rows]))

    def run(self, methods: Sequence[str]) -> None:
        """The named bounds, one after the other, as long as examples are open."""
        steps: dict[str, Callable[[], None]] = {
            "ibp": self.intervals,
            "crown-ibp": self.crown_ibp,
            "crown": self.crown,
            "alpha-crown": self.alpha,
        }
        for method in METHODS:
            if method in methods and len(self.open):
                began, working = time.process_time(), self.rows[self.open.numpy()]
                steps[method]()
                self.proofs.seconds[working] += (time.process_time() - began) / len(working)
        left = self.open
        rows = self.rows[left.numpy()]
        self.proofs.margin[rows] = self.best[left].amin(1).double().numpy()
        self.proofs.rivals[rows] = (self.best[left] <= 0).numpy()
        for place, row in zip(left.tolist(), rows, strict=True):
            if self.proofs.reason[row] == "time" and not self._late():
                self.proofs.reason[row] = f"bound too loose{self._loosest(place)}"

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _loosest(self, place: int) -> str:
        """The layer before the activation with the most unstable neurons."""
        if self.found is None or not self.found.lines:
            return ""
        counts = {number: int(lines.unstable[place].sum()) for number, lines in self.found.lines.items()}
        number = max(counts, key=lambda key: counts[key])
        node = self.certifier.graph.nodes[self.certifier.graph.before(number)]
        return f": {counts[number]} unstable neurons after {node.name}" if counts[number] else ""

    def intervals(self) -> None:
        """IBP; the last layer is bounded as a margin, not class by class."""
        self.found = bounded(self.certifier.graph, self.regions)
        self._rows(lambda found: Intervals(found.bounds))
        self._settle("ibp" if self.certifier.graph.activations else "exact")

    def crown_ibp(self) -> None:
        """CROWN on the intervals of IBP."""
        if self.found is None:
            self.found = bounded(self.certifier.graph, self.regions)
        self._rows(lambda found: Shared(found.lines))
        self._settle("crown-ibp")

    def crown(self) -> None:
        """CROWN with CROWN's intermediate bounds."""
        self._tighten()
        self._rows(lambda found: Shared(found.lines))
        self._settle("crown")

    def alpha(self) -> None:
        """Slopes of the open rows, and where that is not enough, of the intermediate neurons too."""
        graph = self.certifier.graph
        if self.found is None:
            self._tighten()
        assert self.found is not None
        self._optimise(self.open, self.found)
        self._settle("alpha-crown")
        order = self.best.amin(1)[self.open].argsort(descending=True)
        for part in self.open[order].split(FEW):
            if self._late():
                return
            tightening = Tightening()
            found = bounded(graph, self.regions.rows(part), tightening)
            self._optimise(part, found)
            self._settle("alpha-crown", part, tightening)

    def _tighten(self) -> None:
        """Intermediate bounds of the open examples; the others keep intervals that nobody reads."""
        graph, left = self.certifier.graph, self.open
        tight = bounded(graph, self.regions.rows(left), crown)
        if len(left) == len(self.rows):
            self.found = tight
            return
        places = torch.zeros(len(self.rows), dtype=torch.long)
        places[left] = torch.arange(len(left))
        self.found = tight.take(places)

    def _rows(self, relax: Callable[[Intermediate], Relax]) -> None:
        """Bound the open rivals of the open examples."""
        graph, found = self.certifier.graph, self.found
        assert found is not None
        example, rival = self._open_rivals(self.open)
        rows = margin_rows(example, rival, self.y, self.certifier.logits, graph.dtype)
        bound = found.bound(graph, graph.output, rows, relax(found), self.regions)
        self.best[example, rival] = torch.maximum(self.best[example, rival], bound)

    def _open_rivals(self, examples: Tensor) -> tuple[Tensor, Tensor]:
        place, rival = (self.best[examples] <= 0).nonzero(as_tuple=True)
        return examples[place], rival

    def _optimise(self, examples: Tensor, found: Intermediate) -> None:
        """Raise the bounds of the open rivals of some examples; `found` is of those, or of the whole batch."""
        graph = self.certifier.graph
        example, rival = self._open_rivals(examples)
        if not len(example):
            return
        whole = len(found.bounds[0][0]) == len(self.rows)
        place = torch.zeros(len(self.rows), dtype=torch.long)
        place[examples] = torch.arange(len(examples))
        here = example if whole else place[example]
        regions = self.regions if whole else self.regions.rows(examples)
        y = self.y if whole else self.y[examples]
        rows = margin_rows(here, rival, y, self.certifier.logits, graph.dtype)
        done = optimised(graph, graph.output, rows, found.lines, regions)
        self.best[example, rival] = torch.maximum(self.best[example, rival], done.bound)
        for i, key in enumerate(zip(example.tolist(), rival.tolist(), strict=True)):
            self.slopes[key] = {number: part[i] for number, part in done.slopes.items()}

    def _settle(self, method: Method, examples: Tensor | None = None, tightening: Tightening | None = None) -> None:
        """Recheck the examples whose rivals are all beaten; what passes is verified."""
        examples = self.open if examples is None else examples
        proved = examples[(self.best[examples] > 0).all(1)]
        if not len(proved):
            return
        order = {int(place): i for i, place in enumerate(examples.tolist())}
        certificates = [
            Certificate(method, self._arrays(int(place), order[int(place)], tightening)) for place in proved.tolist()
        ]
        rows = self.rows[proved.numpy()]
        task = self.task.rows(torch.from_numpy(rows).to(self.task.x.device))
        found = recheck(self.certifier.problem(task), certificates, UNITS[self.certifier.dtype])
        won = torch.from_numpy(self.proofs.enter(rows, found, certificates))
        lost = proved[~won]
        self.best[lost] = torch.minimum(self.best[lost], torch.zeros(()))  # for a tighter bound to try again

    def _arrays(self, place: int, order: int, tightening: Tightening | None) -> dict[str, np.ndarray]:
        """The slopes of one example, as they are stored."""
        arrays: dict[str, np.ndarray] = {}
        for (example, rival), slopes in self.slopes.items():
            if example == place:
                for number, part in slopes.items():
                    arrays[f"final/{rival}/{number}"] = part.numpy().astype(np.float16)
        return arrays if tightening is None else arrays | tightening.arrays(order)
