"""Has a property's box an input with an unsafe output? An attack looks for one, bounds prove that there is none.

The property is in VNN-LIB and the network in ONNX, as in VNN-COMP, and the answers are those of the competition. A
counterexample counts where onnxruntime, which runs the file itself, gives an unsafe output at a point of the box as it
is printed: without the tolerances that the competition would allow. "unsat" is a proof of the kind that certificates
are, rechecked in double precision, for a box and bounds that are rounded to the safe side.
"""

from __future__ import annotations

import copy
import csv
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.attacks.apgd import APGD
from epsball.balls.linf import Linf
from epsball.certify.certifier import METHODS, Certifier
from epsball.certify.certify import prove
from epsball.certify.input_splits import proved_by_splits
from epsball.certify.property_network import PropertyNetwork
from epsball.certify.vnnlib import Case, Property, read_property
from epsball.common.checks import check_positive
from epsball.common.errors import BadInput
from epsball.common.limits import MIB, read_bytes
from epsball.common.record import Record
from epsball.common.shapes import Batch
from epsball.common.undo import without_warnings
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked
from epsball.models.onnx_file import open_onnx
from epsball.problem.losses import margin
from epsball.problem.objective import ModelWarning
from epsball.problem.task import Task, task_of

log = logging.getLogger(__name__)

FIRST, THOROUGH = (32, 20), (256, 100)
"""Restarts and steps of the attack before the first bound, and of that before branch and bound."""
ATTACK, TIMED = 0.25, 8
"""The share of the time that is left that an attack may take, judged by a forward pass of so many rows."""
QUICK = ("ibp", "crown-ibp", "crown")
"""Bounds that are tried before the thorough attack."""
FEW_INPUTS = 20
"""Boxes with at most so many sides are split along them; others along the network's ReLUs."""
MOST_INSTANCES = 100_000

Answer = Literal["sat", "unsat", "unknown", "timeout", "error"]


@dataclass(frozen=True)
class PropertyAnswer(Record):
    """The answer to an instance, with the wall `seconds` it took.

    "sat": the input `x` (flat, in the file's order) is in the box, and its output `y`, by onnxruntime, is unsafe.
    "unsat": there is none. "timeout": the time ended first. "unknown": nothing that is left could tell; `reason` says
    why. "error": the network or the property could not be read (`check_instances` only).
    """

    answer: Answer
    seconds: float
    reason: str = ""
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def text(self) -> str:
        """As VNN-COMP prints it: the answer and, for "sat", the counterexample.

        >>> print(PropertyAnswer("sat", 0.1, x=(0.5, -1.0), y=(2.0,)).text())
        sat
        ((X_0 0.5)
         (X_1 -1.0)
         (Y_0 2.0))
        """
        if self.answer != "sat":
            return self.answer
        values = [f"(X_{i} {value!r})" for i, value in enumerate(self.x)]
        values += [f"(Y_{j} {value!r})" for j, value in enumerate(self.y)]
        return "sat\n(" + "\n ".join(values) + ")"


@dataclass(frozen=True)
class Instance(Record):
    """A line of a benchmark: the files and the seconds that it may take."""

    model: str
    property: str
    timeout: float


def check_property(
    model: str | Path, property: str | Path | Property, *, timeout: float = 60.0, seed: int = 0
) -> PropertyAnswer:
    """Whether an ONNX network has an input in the property's box with an unsafe output.

    `property` is a VNN-LIB file, or what `read_property` made of one, `timeout` the wall seconds after which nothing
    new is begun. Raises `BadInput` for files that cannot be read, or that are not about the same inputs and outputs.
    """
    check_positive("timeout", timeout)
    start = time.monotonic()
    spec = property if isinstance(property, Property) else read_property(property)
    network = _Network.open(model, spec)
    found = _Check(network, spec, start + timeout, seed).answer()
    return PropertyAnswer(found.answer, time.monotonic() - start, found.reason, found.x, found.y)


def check_instances(
    path: str | Path, *, seed: int = 0, most_seconds: float | None = None
) -> Iterator[tuple[Instance, PropertyAnswer]]:
    """The answers to a benchmark's instances.csv, one after the other; at most `most_seconds` for each."""
    for instance in read_instances(path):
        timeout = instance.timeout if most_seconds is None else min(instance.timeout, most_seconds)
        start = time.monotonic()
        try:
            yield instance, check_property(instance.model, instance.property, timeout=timeout, seed=seed)
        except BadInput as error:
            yield instance, PropertyAnswer("error", time.monotonic() - start, str(error))


def read_instances(path: str | Path) -> list[Instance]:
    """The lines of an instances.csv, "network.onnx,property.vnnlib,seconds"; files are beside it."""
    path = Path(path).expanduser()
    try:
        lines = list(csv.reader(read_bytes(path, 16 * MIB).decode().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"`instances` must be a CSV file, got {path}: {error}; a line is net.onnx,spec.vnnlib,60"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line or not "".join(line).strip():
            continue
        try:
            model, spec, seconds = (part.strip() for part in line)
            check_positive("seconds", timeout := float(seconds))
        except ValueError as error:
            raise BadInput(
                f"`instances` must have lines such as net.onnx,spec.vnnlib,60, got {','.join(line)[:80]!r} in line "
                f"{number} of {path}"
            ) from error
        found.append(Instance(str(path.parent / model), str(path.parent / spec), timeout))
    if not 0 < len(found) <= MOST_INSTANCES:
        raise BadInput(f"`instances` must have 1 to {MOST_INSTANCES:,} lines, got {len(found):,} in {path}")
    return found


@dataclass(frozen=True, eq=False)
class _Network:
    """A file as a torch module, and as onnxruntime runs it."""

    model: nn.Module
    runtime: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def open(cls, path: str | Path, spec: Property) -> _Network:
        asked = Asked(spec=str(path), shape=(spec.inputs,))
        loaded, runs = open_onnx(asked), open_onnx(Asked(spec=str(path), shape=(spec.inputs,), black_box=True))
        assert isinstance(loaded.model, nn.Module)
        assert isinstance(runs.model, BlackBox)
        shape = (spec.inputs,) if loaded.shape is None else loaded.shape
        if int(np.prod(shape)) != spec.inputs:
            raise BadInput(
                f"`property` must be about the {int(np.prod(shape)):,} inputs of the network, got {spec.inputs:,}; "
                "take the property that it was written with"
            )
        dtype = next((part.dtype for part in loaded.model.parameters()), torch.float32)
        found = cls(loaded.model, runs.model.function, shape, dtype)
        outputs = len(found.outputs(torch.zeros(1, *shape, dtype=dtype))[0])
        if outputs != spec.outputs:
            raise BadInput(
                f"`property` must be about the {outputs:,} outputs of the network, got {spec.outputs:,}; take the "
                "property that it was written with"
            )
        return found

    def outputs(self, x: Batch) -> Float[np.ndarray, "n k"]:
        """The outputs by onnxruntime."""
        return np.asarray(self.runtime(x.numpy()), dtype=np.float64).reshape(len(x), -1)


class _Found(Exception):
    """A counterexample ends the search."""

    def __init__(self, x: tuple[float, ...], y: tuple[float, ...]) -> None:
        super().__init__()
        self.x, self.y = x, y


class _Check:
    """One instance: what is open of its cases, and until when."""

    def __init__(self, network: _Network, spec: Property, deadline: float, seed: int) -> None:
        self.network, self.deadline, self.seed = network, deadline, seed
        self.open = [_Side(network, case) for case in spec.cases]
        self.reason = ""

    def answer(self) -> PropertyAnswer:
        try:
            for step in (self.attack(FIRST), self.bound, self.attack(THOROUGH), self.split):
                left = []
                for place, side in enumerate(self.open):
                    now = time.monotonic()
                    if now > self.deadline:
                        return PropertyAnswer("timeout", 0.0, "time")
                    share = now + (self.deadline - now) / (len(self.open) - place)
                    if not step(side, share):
                        left.append(side)
                self.open = left
                if not left:
                    return PropertyAnswer("unsat", 0.0)
        except _Found as found:
            return PropertyAnswer("sat", 0.0, x=found.x, y=found.y)
        if time.monotonic() > self.deadline:
            return PropertyAnswer("timeout", 0.0, "time")
        return PropertyAnswer("unknown", 0.0, self.reason or "bound too loose")

    def attack(self, size: tuple[int, int]) -> Callable[[_Side, float], bool]:
        """A step that attacks; it proves nothing."""
        most, steps = size

        def attack(side: _Side, until: float) -> bool:
            restarts = affordable(most, steps, until - time.monotonic(), side.seconds_a_row)
            attack = APGD(steps=steps, loss=margin)
            x = side.centre.expand(restarts, *self.network.shape)
            y = torch.zeros(restarts, dtype=torch.long)
            with without_warnings(ModelWarning):
                x_adv = attack(side.classifier, x, y, side.inner, seed=self.seed + restarts, success=_is_unsafe)
            side.look(torch.cat([side.centre, x_adv]))
            return False

        return attack

    def bound(self, side: _Side, until: float) -> bool:
        """Bounds over the whole box."""
        try:
            side.certifier = Certifier(side.exact, side.outer_centre)
        except BadInput as error:
            self.reason = str(error)
            return False
        return bool(side.certifier.bounds(side.task, QUICK, until).verified[0])

    def split(self, side: _Side, until: float) -> bool:
        """Branch and bound."""
        if side.certifier is None:
            return False
        if side.sides <= FEW_INPUTS:
            box = (side.lower, side.upper)
            return proved_by_splits(side.certifier, side.exact, box, until, side.look)
        return bool(prove(side.certifier, side.task, METHODS, until - time.monotonic()).verified[0])


class _Side:
    """A case as a classifier, for attacks and, `exact`, for proofs: in float64 where float32 does not hold its weights.

    `inner` is the box of floating-point numbers in the case's; where a side holds none, it is the number nearest to it,
    which onnxruntime would make of any number of that side. `outer` holds all real numbers of the case.
    """

    def __init__(self, network: _Network, case: Case) -> None:
        self.network, self.case = network, case
        dtype, shape = network.dtype, network.shape
        self.classifier = PropertyNetwork(network.model, case.unsafe, dtype)
        low, high = (torch.from_numpy(part).reshape(1, *shape) for part in (case.lower, case.upper))
        nearest = ((low + high) / 2).to(dtype)
        up, down = _above(low, dtype), _below(high, dtype)
        up, down = torch.where(up > down, nearest, up), torch.where(up > down, nearest, down)
        self.centre = (up + (down - up) / 2).clamp(up, down)
        self.inner = Linf(eps=_above((down.double() - up.double()) / 2, dtype), lo=up, hi=down)
        self.exact = self.classifier
        if not self.classifier.is_exact:
            dtype = torch.float64
            self.exact = PropertyNetwork(copy.deepcopy(network.model).double(), case.unsafe, dtype)
        self.lower, self.upper = _below(low, dtype), _above(high, dtype)
        self.outer_centre = (self.lower + (self.upper - self.lower) / 2).clamp(self.lower, self.upper)
        outer = Linf(eps=torch.inf, lo=self.lower, hi=self.upper)
        self.task = task_of(self.outer_centre, torch.zeros(1, dtype=torch.long), outer)
        self.sides = int((self.lower < self.upper).sum())
        self.certifier: Certifier | None = None

    @cached_property
    def seconds_a_row(self) -> float:
        """Of a step of an attack, in a small batch: a step costs about as much as three forward passes."""
        start = time.monotonic()
        with torch.no_grad():
            self.classifier(self.centre.expand(TIMED, *self.network.shape))
        return 3 * max(time.monotonic() - start, 1e-6) / TIMED

    def look(self, x: Batch) -> None:
        """Raise `_Found` where one of these points is a counterexample."""
        x = x.to(self.network.dtype)
        with torch.no_grad():
            candidates = x[_is_unsafe(self.classifier(x), None)][:64]
        if not len(candidates):
            return
        for point, y in zip(candidates, self.network.outputs(candidates), strict=True):
            printed = point.double().flatten().numpy().clip(self.case.lower, self.case.upper)
            if self.case.has(printed, y):
                raise _Found(tuple(printed.tolist()), tuple(y.tolist()))


def affordable(most: int, steps: int, seconds: float, seconds_a_row: float) -> int:
    """The restarts of so many steps that take at most the share `ATTACK` of the time; at least one.

    >>> affordable(256, 100, 60.0, 0.0001), affordable(256, 100, 60.0, 0.01), affordable(256, 100, 60.0, 5.0)
    (256, 15, 1)
    """
    return max(1, min(most, int(ATTACK * seconds / (steps * seconds_a_row))))


def _is_unsafe(logits: Tensor, task: Task | None) -> Tensor:
    """Where the property network says that an output is unsafe: also on the boundary."""
    return logits[:, 1:].amax(1) >= 0


def _above(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The least number of that dtype that is not below."""
    near = values.to(dtype)
    return torch.where(near.double() < values, torch.nextafter(near, torch.full_like(near, torch.inf)), near)


def _below(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The greatest number of that dtype that is not above."""
    return -_above(-values, dtype)
