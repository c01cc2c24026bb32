"""A black box: a model that can only be queried, with the queries counted, limited and cached.

Queries are counted per example and search, no example makes more than its budget in one, and an input that was seen
before is answered from the cache. The outputs of a function of numpy arrays, or of an estimator's method, become logits
or labels here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.models.factory import Wrapped
from epsball.models.frozen import frozen

Answers = Literal["logits", "probabilities", "labels"]
NOBODY = -1
"""The id that queries count for when they belong to no example."""


@dataclass(eq=False, kw_only=True)
class BlackBox:
    """`function` as a model, x -> logits or labels, without gradients.

    `function` takes a batch (n, *shape), a numpy array, or a torch tensor where `takes` says so, and `answers` with
    "logits" (n, classes) or (n,), with "probabilities" of that shape (whose logarithms are the logits), or with
    "labels" (n,): whole numbers, or any values that `classes` lists in their order. What it gets is a copy, so that it
    may write into it.

    `budget` is the number of queries that an example may make in one search, or None: in a call of an attack, or, in an
    evaluation, in all attacks at one radius. Beyond it the function is not called: the answer is NaN (-1 for labels),
    no success, and the example's search ends as `exhausted`. Attacks ask about the example itself at no cost.

    The last `memory` inputs are cached (0 for a function that draws random numbers): the function is not called with
    them again. Within a search they cost nothing when they come again, from whatever example; what is known from before
    the search counts as a query. `total` counts the inputs that the function was called with, in all searches.

    >>> box = BlackBox(function=lambda x: x.sum(1) > 1, answers="labels", budget=2)
    >>> ids, one = torch.tensor([7]), torch.tensor([[0.5, 1.0]])
    >>> box.ask(one, ids), box.ask(one, ids), box.ask(one + 1, ids), box.ask(one + 2, ids)
    (tensor([1]), tensor([1]), tensor([1]), tensor([-1]))
    >>> box.spent(ids), box.total
    (tensor([2]), 2)
    """

    function: Callable[[Any], Any]
    answers: Answers = "logits"
    takes: Literal["numpy", "torch"] = "numpy"
    classes: Sequence[Any] | None = None
    budget: int | None = None
    memory: int = 1 << 17
    total: int = field(default=0, init=False)
    _known: OrderedDict[bytes, np.ndarray] = field(default_factory=OrderedDict, init=False, repr=False)
    _paid: set[bytes] = field(default_factory=set, init=False, repr=False)
    _asked: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _like: np.ndarray | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise BadInput(f"`function` must be callable, x -> answers, got {type(self.function).__name__}")
        for name, known in (("answers", ("logits", "probabilities", "labels")), ("takes", ("numpy", "torch"))):
            if getattr(self, name) not in known:
                raise BadInput(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("budget", 1), ("memory", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BadInput(f"`{name}` must be a whole number >= {least}, got {value!r}")
        if self.classes is not None and self.answers != "labels":
            raise BadInput(f"`classes` must be left out with answers={self.answers!r}: their columns are the classes")

    def __call__(self, z: Tensor) -> Tensor:
        """The outputs at z (n, *shape), counted for no example."""
        return self.ask(z, None)

    def begin_search(self, ids: Int64[Tensor, " n"] | None = None, spent: Int64[Tensor, " n"] | None = None) -> None:
        """Fill all budgets; the examples `ids` have `spent` (n,) queries of theirs in an earlier part of the search."""
        self._paid.clear()
        self._asked = {} if ids is None or spent is None else dict(zip(ids.tolist(), spent.tolist(), strict=True))

    def spent(self, ids: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """The number of queries that these examples have made in the present search."""
        return torch.tensor([self._asked.get(one, 0) for one in ids.tolist()], dtype=torch.long, device=ids.device)

    def exhausted(self, ids: Int64[Tensor, " n"], keep: int = 0) -> Bool[Tensor, " n"]:
        """Where no more than `keep` queries are left."""
        if self.budget is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        return self.spent(ids) >= self.budget - keep

    def ask(self, z: Tensor, ids: Int64[Tensor, " n"] | None) -> Tensor:
        """The outputs at z (n, *shape), queried by the examples `ids`: floats (n, classes) or (n,), or labels (n,).

        Equal rows are one query, of the first row with budget left. Where the budget is spent: NaN, or -1 for labels.
        """
        points = np.ascontiguousarray(z.detach().cpu().to(_readable(z.dtype)).numpy())
        keys = [blake2b(row.tobytes(), digest_size=16, key=str(z.dtype).encode()).digest() for row in points]
        owners = [NOBODY] * len(keys) if ids is None else ids.tolist()
        wanted: dict[bytes, int] = {}
        answered: set[bytes] = set()
        for row, (key, owner) in enumerate(zip(keys, owners, strict=True)):
            known = key in self._known
            if known:
                self._known.move_to_end(key)
            if key in answered or (known and (owner == NOBODY or key in self._paid)):
                answered.add(key)
            elif self._may(owner):
                answered.add(key)
                self._asked[owner] = self._asked.get(owner, 0) + 1
                if owner != NOBODY:
                    self._paid.add(key)
                if not known:
                    wanted[key] = row
        fresh = dict(zip(wanted, self._answer(z, points, list(wanted.values())), strict=True)) if wanted else {}
        if self._like is None:
            raise BadInput("`budget` was spent before anything was asked")
        nothing = np.full_like(self._like, NOBODY if self._like.dtype.kind == "i" else np.nan)
        found = [(fresh[key] if key in fresh else self._known[key]) if key in answered else nothing for key in keys]
        self._remember(fresh)
        out = torch.from_numpy(np.stack(found)) if found else torch.from_numpy(self._like[None][:0])
        return out.to(z.device, z.dtype if out.is_floating_point() else torch.long)

    def _may(self, owner: int) -> bool:
        return self.budget is None or owner == NOBODY or self._asked.get(owner, 0) < self.budget

    def _remember(self, fresh: dict[bytes, np.ndarray]) -> None:
        for key, answer in fresh.items():
            self._known[key] = answer
        while len(self._known) > self.memory:
            self._paid.discard(self._known.popitem(last=False)[0])

    def _answer(self, z: Tensor, points: np.ndarray, rows: list[int]) -> np.ndarray:
        """The outputs of the function at some rows, as floats (n, *k) or integers (n,)."""
        self.total += len(rows)
        with frozen(self.function):
            if self.takes == "torch":
                with torch.no_grad():
                    output = self.function(z.detach()[torch.tensor(rows, device=z.device)])
            else:
                output = self.function(points[rows])
        if isinstance(output, Tensor):
            output = output.detach().cpu().to(_readable(output.dtype)).numpy()
        answers = np.asarray(output)
        if answers.shape[:1] != (len(rows),):
            raise BadInput(
                f"`function` must answer with one row per example, got {answers.shape} for {len(rows)}; keep the first "
                "dimension as it comes"
            )
        answers = self._labels(answers) if self.answers == "labels" else self._scores(answers)
        self._like = answers[0]
        return answers

    def _labels(self, answers: np.ndarray) -> np.ndarray:
        if answers.ndim != 1:
            raise BadInput(f"`function` must answer with labels (n,), got {answers.shape}; write answers='logits'?")
        if self.classes is not None:
            places = {value: place for place, value in enumerate(self.classes)}
            unknown = [value for value in answers.tolist() if value not in places]
            if unknown:
                raise BadInput(f"`classes` must list every label, got {unknown[0]!r}, which is none of {self.classes}")
            return np.array([places[value] for value in answers.tolist()], dtype=np.int64)
        if answers.dtype.kind not in "iub" or answers.min(initial=0) < 0:
            raise BadInput(
                f"`function` must answer with whole numbers >= 0 as labels, got {answers.dtype}; name them with "
                "`classes`, as in classes=estimator.classes_"
            )
        return answers.astype(np.int64)

    def _scores(self, answers: np.ndarray) -> np.ndarray:
        if answers.ndim > 2 or answers.dtype.kind not in "f":
            raise BadInput(
                f"`function` must answer with {self.answers} (n, classes) or (n,), got {answers.shape} "
                f"{answers.dtype}; "
                "write answers='labels' where it names classes"
            )
        if self.answers == "logits":
            return answers
        if answers.min(initial=0) < 0 or answers.max(initial=0) > 1 + 1e-6:
            raise BadInput(
                f"`function` must answer with probabilities, got {answers.min()} to {answers.max()}; logits?"
            )
        least = np.finfo(answers.dtype).tiny
        logits = np.log(np.maximum(answers, least))
        if answers.ndim == 1 or answers.shape[1] == 1:  # of class 1
            return logits - np.log(np.maximum(1 - answers, least))
        return logits


def _readable(dtype: torch.dtype) -> torch.dtype:
    """A dtype that numpy has, and that holds every number of this one."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def unwrapped(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The black box that a `module:factory` made, out of the module that it was put into; any other model as it is."""
    if isinstance(model, Wrapped) and isinstance(model.function, BlackBox):
        return model.function
    return model
