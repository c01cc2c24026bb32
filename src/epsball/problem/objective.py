"""A model and a loss as an objective: logits, loss, success and input gradient at z, with model calls counted.

While an objective is open the model is in eval mode and its parameters are frozen, so that only the input gradient is
computed; on leaving, also by an exception, every flag is restored. No `.grad` is ever written. The sign of a loss and
the meaning of success are decided here and nowhere else; attacks only ascend.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.common.undo import Undo
from epsball.models.frozen import frozen, held_modules
from epsball.models.given import logits_in
from epsball.models.last_activation import REMOVED, before_activation, check_no_probability
from epsball.problem.gradients import NOT_FINITE, finite_gradient, loss_gradients
from epsball.problem.losses import Loss
from epsball.problem.model_errors import IN_PLACE, explained, wrong_rows
from epsball.problem.outputs import masked_to_finite, two_columns
from epsball.problem.row_limit import RowLimit
from epsball.problem.task import AWAY, Task

Model = Callable[[Tensor], Tensor]
Needs = Literal["grad", "logits", "label"]
Success = Callable[[Tensor, Task], Tensor]
"""(logits or labels, task) -> (n,) boolean: does the point do what the attacker wants?"""


class ModelWarning(UserWarning):
    """The model behaves in a way that makes an evaluation doubtful; the message says what to do."""


class SearchWarning(UserWarning):
    """A search without gradients had too few queries; the message says what to do."""


NOT_SHOWN = "a Point shows what the attack's `needs` says: 'grad' all, 'logits' logits and loss, 'label' success only"


STOCHASTIC = (
    "`model` is stochastic in eval mode: two forward passes over the same examples differ; results will not repeat. "
    "Fix its noise, or attack and evaluate the mean of several forward passes with eot=20"
)


TRAIN_MODE = (
    "`model` is in train mode: it puts a network there in each call, so that dropout draws and BatchNorm uses the "
    "statistics of the batch, and two forward passes over the same examples differ. Take the train() out, or, where it "
    "is meant to draw, attack and evaluate the mean of several forward passes with eot=20"
)


SOFTMAX = (
    "`model` seems to return probabilities (rows sum to 1): the softmax makes gradients vanish and the model look "
    "robust. Return the logits before it"
)


def probabilities(logits: Float[Tensor, "n classes"]) -> bool:
    """Whether these are likely to be probabilities: no number is negative, and rows sum to 1."""
    return bool(logits.numel() and logits.amin().item() >= 0 and (logits.sum(1) - 1).abs().amax() < 1e-3)


class Point:
    """The result of one model call at z; an attack can read what its `needs` says, the rest raises an error.

    Each part is computed when it is first read: on a single example every small operation between two model calls costs
    a per cent.
    """

    __slots__ = ("_fooled", "_grad", "_loss", "_output", "_success", "_task", "z")

    def __init__(
        self, z: Tensor, output: Tensor, loss: Tensor | None, grad: Tensor | None, success: Success, task: Task
    ) -> None:
        self.z = z
        self._output, self._loss, self._grad, self._success, self._task = output, loss, grad, success, task
        self._fooled: Tensor | None = None

    @property
    def logits(self) -> Float[Tensor, "n classes"]:
        """The logits, for an attack that needs logits or gradients."""
        if self._loss is None:
            raise AttributeError(NOT_SHOWN)
        return self._output.detach()

    @property
    def loss(self) -> Float[Tensor, "n *k"]:
        """The loss, for an attack that needs logits or gradients."""
        if self._loss is None:
            raise AttributeError(NOT_SHOWN)
        return self._loss.detach()

    @property
    def grad(self) -> Float[Tensor, "n ..."]:
        """The input gradient of the loss, (n, *shape), or (n, k, *shape) for a loss of k columns."""
        if self._grad is None:
            raise AttributeError(NOT_SHOWN)
        return self._grad

    def drop_gradient(self) -> None:
        """Free the memory of the gradient; `fooled` can still be read."""
        self._grad = None

    @property
    def fooled(self) -> Bool[Tensor, " n"]:
        """Where the attack succeeded at z. Logits that are not finite are no success."""
        if self._fooled is None:
            fooled = self._success(self._output.detach(), self._task)
            self._fooled = fooled & self.valid if fooled.any() else fooled
        return self._fooled

    @property
    def valid(self) -> Bool[Tensor, " n"]:
        """Where the logits are finite (-inf, a masked class, is replaced); elsewhere a row counts as invalid."""
        return self._output.detach().isfinite().flatten(1).all(1) if self._output.ndim > 1 else self._output >= 0


def prediction(output: Tensor) -> Int64[Tensor, " n"]:
    """The predicted class: argmax of the logits, the first on ties; labels are returned as they are."""
    return output.argmax(1) if output.is_floating_point() else output


def changes_prediction(output: Tensor, task: Task) -> Bool[Tensor, " n"]:
    """The default success: the prediction differs from the label, or equals the target where there is one."""
    predicted = prediction(output)
    if not task.some_targeted:
        return predicted != task.y
    return torch.where(task.target == AWAY, predicted != task.y, predicted == task.target)


def check_labels(logits: Tensor, task: Task) -> None:
    """Raise `BadInput` where a label or a target is no class of the model."""
    classes, top = logits.shape[1], max(*task.y.tolist(), *task.goal.tolist(), 0, 0)
    if top >= classes:
        from_one = int(task.y.min()) == 1 and int(task.y.max()) == classes == top
        remedy = "of labels from 1 write y - 1" if from_one else "number the classes from 0 (one logit: 0 and 1)"
        raise BadInput(f"`y` and `target` must be below the {classes} classes of the model, got {top}; {remedy}")


class Objective:
    """The question an attack asks of a model: `objective(z, task)` is one pass. To be used in a `with` statement.

    `model` maps (n, *shape) to logits (n, classes), to one logit (n,) or (n, 1), or, for attacks that need only the
    label, to integers (n,). A logit of -inf masks a class (`masked_to_finite`); rows with nan or inf, or nothing but
    -inf, are invalid. `forwards` and `backwards` count rows; `probes` counts the rows of checks that no attack asked
    for. With `eot` = k a pass asks k times and shows the mean of logits, loss and gradient (labels: the most frequent;
    where `needs` is 'logits' the loss is that of the mean logits, not the mean of k losses): for models that draw
    random numbers, the expectation over transformation of Athalye et al. (ICML 2018), and the classifier in question is
    the one that averages k draws. Where the model `ends_in` a "sigmoid" or a "softmax" (empty: in neither; None before
    the first call), its logits are those before it. An entry of a gradient that is not finite is taken as zero
    (`finite_gradient`), and the user is warned of the first one. A call that runs out of memory is made again in parts,
    of as many rows as `limit` finds to fit; it counts once.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        *,
        needs: Needs = "grad",
        success: Success = changes_prediction,
        eot: int = 1,
        limit: RowLimit | None = None,
    ) -> None:
        if not callable(model):
            raise BadInput(f"`model` must be callable, x -> logits, got {type(model).__name__}")
        if isinstance(eot, bool) or not isinstance(eot, int) or eot < 1:
            raise BadInput(f"`eot` must be a whole number >= 1, got {eot!r}; 1 is right for all but stochastic models")
        self.model, self.loss, self.needs, self.success, self.eot = model, loss, needs, success, eot
        self.limit = limit or RowLimit()
        self.forwards = self.backwards = self.probes = 0
        self.ends_in: str | None = None
        self._fresh = True
        self._finite: bool | Tensor = True  # every gradient so far; on a GPU it is read once, at the end
        self._ones: Tensor | None = None
        self._stack = Undo()

    def __enter__(self) -> Self:
        self._fresh = self._finite = True
        if torch.is_inference_mode_enabled():
            raise BadInput(
                "`torch.inference_mode` must be off: it records no gradient at all; use torch.no_grad instead"
            )
        self._stack.__enter__()
        self._stack.enter_context(frozen(self.model))
        self._stack.enter_context(torch.enable_grad())  # also for a caller who works under no_grad
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(None, None, None)
        if isinstance(self._finite, Tensor) and not self._finite.item():
            warnings.warn(NOT_FINITE, ModelWarning, stacklevel=3)

    def forward(self, z: Float[Tensor, "n *shape"], task: Task | None = None) -> Tensor:
        """Logits (n, classes) or labels (n,) at z, without a gradient."""
        with torch.no_grad():
            output = self.limit(self._run if self.eot == 1 else self._average, z, task)
        self.forwards += len(z) * self.eot
        return output

    def _average(self, z: Tensor, task: Task | None) -> Tensor:
        outputs = torch.stack([self._run(z, task) for _ in range(self.eot)])
        return outputs.mean(0) if outputs.is_floating_point() else outputs.mode(0).values

    def evaluate_at(self, z: Float[Tensor, "n *shape"], task: Task) -> Point:
        """One forward pass at z: success and validity, without loss and gradient."""
        return Point(z, self.forward(z, task), None, None, self.success, task)

    def succeeds(self, output: Tensor, task: Task) -> Bool[Tensor, " n"]:
        """Success, from logits or labels that were computed before."""
        return Point(task.x, output, None, None, self.success, task).fooled

    def __call__(self, z: Float[Tensor, "n *shape"], task: Task) -> Point:
        """One model call at z: a forward pass and, where a gradient is needed, a backward pass for each loss column."""
        if self.needs == "label":
            return self.evaluate_at(z, task)
        if self.needs == "logits":
            logits = self._logits(self.forward(z, task))
            if self._fresh:
                self._fresh = False
                self._check_first(logits, task)
            return Point(z, logits, self.loss(logits, task), None, self.success, task)
        first = self._fresh
        logits, loss, raw = self._gradients(z, task)
        self._fresh = False
        grad = self._zeroed(raw)
        for _ in range(1, self.eot):
            more = self._gradients(z, task)
            logits, loss = logits.detach() + more[0].detach(), loss.detach() + more[1].detach()
            raw, grad = raw + more[2], grad + self._zeroed(more[2])
        if self.eot > 1:
            logits, loss, grad = logits / self.eot, loss / self.eot, grad / self.eot
        if first:
            self._check_first_gradient(raw)
        return Point(z, logits, loss, grad, self.success, task)

    def _gradients(self, z: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, loss and input gradient of one forward pass."""

        def part(z: Tensor, rows: Task) -> tuple[Tensor, Tensor, Tensor]:
            leaf = z.detach().requires_grad_()
            logits = self._logits(self._run(leaf, rows))
            if self._fresh:
                check_labels(logits, task)
            loss = self.loss(logits, rows)
            return logits, loss, self._gradient(loss, leaf)

        logits, loss, grad = self.limit(part, z, task)
        if self._fresh:
            self._check_first(logits, task)
        self.forwards += len(z)
        self.backwards += loss.numel()
        return logits, loss, grad

    @property
    def budget(self) -> int | None:
        """The queries that an example may make in a search; None for a model without a query budget."""
        return None

    @property
    def max_steps(self) -> int | None:
        """The steps, of one query each, that the budget leaves an attack; None without one."""
        return None

    def begin_search(self) -> None:
        """Fill the query budgets, of a model that has them."""

    def exhausted(self, task: Task) -> Bool[Tensor, " n"] | None:
        """Where examples have spent their query budget; None for a model without one."""
        return None

    def check_deterministic(self, z: Float[Tensor, "n *shape"]) -> bool:
        """Call the model twice at z and warn where the outputs differ. Counted in `probes`."""
        with torch.no_grad():
            first, second = self.limit(self._run, z, None), self.limit(self._run, z, None)
        self.probes += 2 * len(z)
        slack = 1e-4 * first.abs().nan_to_num(0, 0, 0).amax().item() if first.numel() else 0.0
        same = torch.allclose(first.double(), second.double(), rtol=0, atol=slack, equal_nan=True)
        if not same:
            training = any(getattr(module, "training", False) for module in held_modules(self.model))
            warnings.warn(TRAIN_MODE if training else STOCHASTIC, ModelWarning, stacklevel=3)
        return same

    def _run(self, z: Tensor, task: Task | None) -> Tensor:
        """The model at z; `task` says which rows these are, for a subclass whose model differs between rows."""
        version = z._version
        try:
            output = logits_in(self.model(z)) if self.ends_in == "" else self._before_activation(z)
        except Exception as error:
            reason = explained(self.model, z, error)
            if reason is None:
                raise
            raise reason from error
        if z._version != version:
            raise BadInput(IN_PLACE)
        table = isinstance(output, Tensor) and output.is_floating_point() and output.ndim == 2
        if table and output.shape[1] > 1 and len(output) == len(z):
            return masked_to_finite(output)
        return self._columns(output, z)

    def _before_activation(self, z: Tensor) -> Any:
        """The output, before a sigmoid or a softmax at the model's end; the first call tells whether there is one."""
        output, ends_in = before_activation(lambda x: logits_in(self.model(x)), z)
        if self.ends_in is None:
            if ends_in:
                warnings.warn(REMOVED.format(ends_in), ModelWarning, stacklevel=6)
            else:
                check_no_probability(self.model, z, output)
            self.ends_in = ends_in
        elif ends_in != self.ends_in:
            raise BadInput(
                f"`model` must end in {self.ends_in or 'its logits'} in every call, as in its first; return the logits"
            )
        return output

    def _columns(self, output: object, z: Tensor) -> Tensor:
        """Labels (n,), or logits of at least two columns, out of whatever else a model may return."""
        if isinstance(output, Tensor) and not output.is_floating_point() and output.shape == z.shape[:1]:
            return output.long()
        logits = two_columns(output)
        if len(logits) != len(z):
            raise wrong_rows(self.model, z, len(logits))
        return masked_to_finite(logits)

    def _logits(self, output: Tensor | None) -> Tensor:
        if output is None or not output.is_floating_point():
            raise BadInput(
                "`model` returns labels, but this attack needs logits; take hopskipjump, or hand over your own: a "
                "callable (model, x, y, ball) -> x_adv, or an Attack whose `needs` is 'label'"
            )
        return output

    def _gradient(self, loss: Tensor, leaf: Tensor) -> Tensor:
        column = loss if loss.ndim == 1 else loss[:, 0]
        if self._ones is None or self._ones.shape != column.shape or self._ones.dtype != column.dtype:
            self._ones = torch.ones_like(column)
        return loss_gradients(loss, leaf, self._ones)

    def _check_first(self, logits: Tensor, task: Task) -> None:
        """In the first model call after opening: are labels in range, and are these logits, not probabilities?"""
        check_labels(logits, task)
        if probabilities(logits.detach()):
            warnings.warn(SOFTMAX, ModelWarning, stacklevel=4)

    def _zeroed(self, grad: Tensor) -> Tensor:
        """The gradient, zero where it is not finite; the first time with a warning, on a GPU when it is closed."""
        clean = finite_gradient(grad)
        if clean is grad or self._finite is False:
            return clean
        finite = grad.isfinite().all()
        if not grad.is_cpu:
            self._finite = finite & self._finite
        elif not finite:
            self._finite = False
            warnings.warn(NOT_FINITE, ModelWarning, stacklevel=4)
        return clean

    def _check_first_gradient(self, grad: Tensor) -> None:
        """In the first model call after opening: is there a gradient to follow?"""
        if 0.0 not in torch.linalg.vector_norm(flat(grad), dim=1).tolist():
            return
        sizes = flat(grad).abs().amax(1).tolist()  # the squares of a norm may vanish
        count = sizes.count(0.0)
        if count:
            warnings.warn(
                f"the gradient is exactly zero for {count} of {len(sizes)} examples: the loss is saturated or "
                "the model hides its gradient. Try the margin loss, float64, or an attack that needs only logits",
                ModelWarning,
                stacklevel=4,
            )
