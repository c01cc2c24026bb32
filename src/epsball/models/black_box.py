"""A black box: a model that can only be queried, with the queries counted, limited and cached.

Queries are counted per example and search, no example makes more than its budget in one, and an input that was seen
before is answered from the cache. The outputs of a function of numpy arrays, of JAX or Keras, or of an estimator's
method, become logits or labels here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.models.frozen import frozen

Scores = Literal["logits", "probabilities", "labels"]
ALLOWED = {
    "scores": ("logits", "probabilities", "labels"),
    "takes": ("numpy", "torch"),
    "layout": ("nchw", "nhwc"),
    "dtype": ("float32", "float64", "uint8", None),
}
"""The arguments that are one of a few words."""
NOBODY = -1
"""The id that queries count for when they belong to no example."""


@dataclass(eq=False)
class BlackBox:
    """`function` as a model, x -> logits or labels, without gradients.

    `function` takes a batch (n, *shape), a numpy array, or a torch tensor where `takes` says so, and returns what
    `scores` says: "logits" (n, classes) or (n,), "probabilities" of that shape (whose logarithms are the logits), or
    "labels" (n,): whole numbers, or any values that `classes` lists in their order, by which data have them too. It may
    return an array of numpy or JAX, a tensor of torch or Keras, or a list. What it gets is a copy, so that it may write
    into it.

    The batch is in the `dtype` "float32", "float64" or "uint8", None: that of x (bfloat16, which numpy lacks, is
    float32). "uint8" is for functions of images of 0 to 255: x in [0, 1] is multiplied by 255 and rounded, and this
    rounding counts as a part of the model; an evaluation with storage="8bit" searches among such images alone. With the
    `layout` "nhwc" images (n, C, H, W) are handed over as (n, H, W, C). A call has at most `batch_size` rows, None: all
    rows that are asked about at a time. With `pad` it has exactly as many, for a model that was exported for a fixed
    batch: the first row is repeated, and the answers to the repeats are dropped.

    `budget` is the number of queries that an example may make in one search, or None: in a call of an attack, or, in an
    evaluation, in all attacks at one radius. Beyond it the function is not called: the answer is NaN (-1 for labels),
    no success, and the example's search ends as `exhausted`. Attacks ask about the example itself at no cost.

    The last `memory` inputs are cached (0 for a function that draws random numbers): the function is not called with
    them again. Within a search they cost nothing when they come again, from whatever example; what is known from before
    the search counts as a query. `total` counts the inputs that the function has answered, in all searches, without
    repeats that pad a batch. A pickle or copy of a black box has `total`, but nothing of the cache and of the search.

    Raises `BadInput` for arguments that do not fit and, when called, for answers that are not what `scores` says.

    >>> box = BlackBox(lambda x: x.sum(1) > 1, scores="labels", budget=2)
    >>> ids, one = torch.tensor([7]), torch.tensor([[0.5, 1.0]])
    >>> box.ask(one, ids), box.ask(one, ids), box.ask(one + 1, ids), box.ask(one + 2, ids)
    (tensor([1]), tensor([1]), tensor([1]), tensor([-1]))
    >>> box.spent(ids), box.total
    (tensor([2]), 2)
    """

    function: Callable[[Any], Any]
    _: KW_ONLY
    scores: Scores = "logits"
    takes: Literal["numpy", "torch"] = "numpy"
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "float64", "uint8"] | None = None
    batch_size: int | None = None
    pad: bool = False
    classes: Sequence[Any] | None = None
    budget: int | None = None
    memory: int = 1 << 17
    total: int = field(default=0, init=False)
    label_names: tuple[str, ...] | None = field(default=None, init=False, repr=False)
    _known: OrderedDict[bytes, np.ndarray] = field(default_factory=OrderedDict, init=False, repr=False)
    _paid: set[bytes] = field(default_factory=set, init=False, repr=False)
    _asked: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _like: np.ndarray | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise BadInput(f"`function` must be callable, x -> scores, got {type(self.function).__name__}")
        for name, known in ALLOWED.items():
            if (value := getattr(self, name)) not in known:
                raise BadInput(f"`{name}` must be one of {', '.join(map(str, known))}, got {value!r}")
        for name, least in (("budget", 1), ("memory", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BadInput(f"`{name}` must be a whole number >= {least}, got {value!r}")
        if self.pad and self.batch_size is None:
            raise BadInput("`pad` must be False without a `batch_size`, got True; as in batch_size=1, pad=True")
        if self.classes is not None and self.scores != "labels":
            raise BadInput(f"`classes` must be left out with scores={self.scores!r}: their columns are the classes")
        if self.classes is not None:
            self.label_names = class_names(self.classes)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_known": OrderedDict(), "_paid": set(), "_asked": {}, "_like": None}

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
        points = z.detach().cpu().to(_readable(z.dtype)).numpy()
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
        fresh = dict(zip(wanted, self._answers(z.detach(), list(wanted.values())), strict=True)) if wanted else {}
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

    def _answers(self, z: Tensor, rows: list[int]) -> np.ndarray:
        """The outputs of the function at some rows, as floats (n, *k) or integers (n,), call by call."""
        size = self.batch_size or len(rows)
        return np.concatenate([self._answer(z, rows[start : start + size]) for start in range(0, len(rows), size)])

    def _answer(self, z: Tensor, rows: list[int]) -> np.ndarray:
        """The outputs of one call."""
        n = len(rows)
        if self.pad and self.batch_size is not None:
            rows = rows + rows[:1] * (self.batch_size - n)
        shown = self._shown(z[torch.tensor(rows, device=z.device)])
        with frozen(self.function), torch.set_grad_enabled(self.takes == "numpy" and torch.is_grad_enabled()):
            output = self.function(shown)
        answers = array_of(output)
        if answers.shape[:1] != (len(rows),):
            raise BadInput(
                f"`function` must answer with one row per example, got {answers.shape} for {len(rows)}; keep the first "
                "dimension as it comes, and where it takes only batches of that size, give `batch_size` and `pad`"
            )
        answers = self._labels(answers) if self.scores == "labels" else self._logits(answers)
        if self._like is not None and self._like.shape != answers.shape[1:]:
            raise BadInput(
                f"`function` must answer with as many columns each time, got rows of shape {answers.shape[1:]} after "
                f"{self._like.shape}; keep the classes in the last dimension"
            )
        self._like = answers[0]
        self.total += n
        return answers[:n]

    def _shown(self, x: Tensor) -> Any:
        """The batch x (n, *shape), which is a copy, as the function takes it."""
        if self.layout == "nhwc":
            if x.ndim != 4:
                raise BadInput(
                    f"`layout` must be 'nchw' for examples that are no images (C, H, W), got 'nhwc' and examples of "
                    f"shape {tuple(x.shape[1:])}; reshape the data to images"
                )
            x = x.permute(0, 2, 3, 1).contiguous()
        if self.dtype == "uint8":
            low, high = x.aminmax()
            if not (low >= 0 and high <= 1):  # nan too
                raise BadInput(
                    "`dtype` must be a float for values outside [0, 1], got 'uint8' and values from "
                    f"{low:g} to {high:g}; or give the ball the box lo=0, hi=1"
                )
            x = (x * 255).round()
        if self.dtype is not None:
            x = x.to(getattr(torch, self.dtype))
        return x if self.takes == "torch" else x.cpu().to(_readable(x.dtype)).numpy()

    def _labels(self, answers: np.ndarray) -> np.ndarray:
        if answers.shape == (len(answers), 1):
            answers = answers[:, 0]
        if answers.ndim != 1:
            raise BadInput(f"`function` must answer with labels (n,), got {answers.shape}; write scores='logits'?")
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

    def _logits(self, answers: np.ndarray) -> np.ndarray:
        if not 1 <= answers.ndim <= 2 or answers.dtype.kind != "f" or 0 in answers.shape:
            raise BadInput(
                f"`function` must answer with {self.scores} (n, classes) or (n,), got {answers.shape} {answers.dtype}; "
                "write scores='labels' where it names classes"
            )
        answers = answers.astype(np.float64 if answers.dtype.itemsize >= 8 else np.float32)  # that torch has, too
        if self.scores == "logits":
            return answers
        if answers.min() < 0 or answers.max() > 1 + 1e-6:
            raise BadInput(
                f"`function` must answer with probabilities, got {answers.min()} to {answers.max()}; logits?"
            )
        least = np.finfo(answers.dtype).tiny
        logits = np.log(np.maximum(answers, least))
        if answers.ndim == 1 or answers.shape[1] == 1:  # of class 1
            return logits - np.log(np.maximum(1 - answers, least))
        return logits


def class_names(classes: Sequence[Any]) -> tuple[str, ...]:
    """The names of classes, in their order.

    >>> class_names([1.0, 2.0]), class_names(["cat", "dog"])
    (('1', '2'), ('cat', 'dog'))
    """
    values = np.asarray(classes).tolist()
    return tuple(str(int(one)) if isinstance(one, float) and one.is_integer() else str(one) for one in values)


def array_of(output: Any) -> np.ndarray:
    """What a function returned as an array: of torch, JAX, Keras or numpy, or a list. Raises `BadInput` for the rest.

    >>> array_of([torch.tensor([1.0, 2.0])])
    array([[1., 2.]], dtype=float32)
    """
    if isinstance(output, list | tuple):
        parts = [array_of(part) if isinstance(part, Tensor) else part for part in output]
    elif isinstance(output, Tensor):
        parts = output.detach().cpu().to(_readable(output.dtype)).numpy()
    else:  # a tensor of Keras has `numpy()`
        parts = output.numpy() if callable(getattr(output, "numpy", None)) else output
    try:
        array = np.asarray(parts)
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise BadInput(f"`function` must answer with one array, got a {type(output).__name__}: {error}") from error
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array  # JAX's, unknown to numpy itself


def _readable(dtype: torch.dtype) -> torch.dtype:
    """A dtype that numpy has, and that holds every number of this one."""
    return torch.float32 if dtype == torch.bfloat16 else dtype
