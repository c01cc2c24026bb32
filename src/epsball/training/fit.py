"""The only training loop: batches in a counter-based order, an objective that goes backwards, a step of the optimiser.

The order of an epoch is that of each example's own random number, so it does not depend on how the data are handed
over; an objective gets the noise of its rows with the epoch as rank, and torch's generators are seeded anew at each
step. So all that a checkpoint has to hold is tensors and the number of the step: same seed, data, threads and
processes, same bits, however often the training was stopped.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.version import __version__
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.problem.objective import SOFTMAX, ModelWarning, frozen, probabilities
from epsball.problem.outputs import two_columns
from epsball.training import ranks
from epsball.training.averaging import Averaged
from epsball.training.loop import HOLD_DRAW, Loop, Subject, config_of
from epsball.training.plain import Plain
from epsball.training.record import Diverged as Diverged
from epsball.training.record import FitResult as FitResult
from epsball.training.record import Progress as Progress
from epsball.training.settings import Settings
from epsball.training.state import State
from epsball.training.step import Objective

PLAIN = Plain()

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True),
}


def fit(
    model: nn.Module,
    data: Examples | tuple[Any, Any],
    ball: Ball | None = None,
    *,
    objective: Objective = PLAIN,
    settings: Settings | None = None,
    validation: Examples | None = None,
    out: str | Path | None = None,
    tensorboard: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> FitResult:
    """Train `model` in place on `data`, `Examples` or (x, y), and say how it went.

    `ball` is what the objective defends against, in the units of x. `options` are the fields of `Settings`, which may
    be given whole instead. An epoch is cut into ceil(n / batch_size) batches whose sizes differ by at most one. With
    examples that are held out (`hold_out`, or `validation`), clean, FGSM and PGD-10 accuracy are measured on them, and
    the model ends with the weights of the best robust accuracy at an epoch's end. With `out`, checkpoints and
    `training.json` are kept there, and a training that was stopped goes on from there, to the same bits. `tensorboard`
    is a directory for its logs. `progress` is called after each step.

    In several processes (torchrun, after `ranks.launched()`) each takes its share of every batch. Batches are moved to
    the device of the parameters. The model is trained in train mode, all of it. Parameters that need no gradient stay;
    train/eval flags, `.grad` and torch's generators come back as they were, also after an exception.

    Raises `BadInput` for arguments that do not fit, `Diverged` where the loss is not finite.

    >>> from epsball.models.registry import build
    >>> net = build("small-mlp", (2,), 2)
    >>> result = fit(net, (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])), epochs=20, lr=0.01)
    >>> result.epochs[-1]["accuracy"]
    1.0
    """
    if settings is not None and options:
        raise BadInput(f"`settings` must be left out where {', '.join(options)} are given; use dataclasses.replace")
    settings = settings or Settings.of(options)
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"`model` must be a torch module, got {type(model).__name__}; a callable has no weights to train"
        )
    if not callable(objective) or isinstance(objective, type):
        named = getattr(objective, "__name__", type(objective).__name__)
        raise BadInput(f"`objective` must be an objective or a function, got {named}; as in FGSMMix(alpha=0.5)")
    data = data if isinstance(data, Examples) else from_arrays(*data)
    if len(data) == 0:
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    if settings.hold_out >= len(data) or (settings.hold_out and validation is not None):
        raise BadInput(
            f"`hold_out` must be below the {len(data)} examples, and 0 with `validation`, got {settings.hold_out}"
        )
    if settings.patience is not None and not settings.hold_out and validation is None:
        raise BadInput(f"`patience` must be left out without held-out examples, got {settings.patience}; add hold_out")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise BadInput("`model` must have parameters that need a gradient, got none; unfreeze it first")
    subject = _split(data, ball, validation, settings)
    config = config_of(subject, objective, settings, model)
    config["versions"] = {"epsball": __version__, "torch": torch.__version__, "python": platform.python_version()}
    with _training(model, parameters, settings), _board(tensorboard) as board:
        _check(model, subject)
        ranks.same_start(model)
        make = OPTIMIZERS[settings.optimizer]
        optimizer = make(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        state = State(model, optimizer, Averaged(settings.average, settings.decay))
        place = None if out is None else Path(out)
        return Loop(state, subject, objective, settings, config, place, board, progress).run()


def _split(data: Examples, ball: Ball | None, validation: Examples | None, settings: Settings) -> Subject:
    """The examples to train on, and those that are held out: chosen by their own random numbers."""
    if not settings.hold_out:
        return Subject(data, ball, validation, ball)
    noise = Noise(settings.seed, data.ids, torch.zeros_like(data.ids))
    order = noise.bits((), draw=HOLD_DRAW).argsort(stable=True)
    rows, kept = order[: settings.hold_out], order[settings.hold_out :].sort().values
    return Subject(data.rows(kept), ball and ball.rows(kept), data.rows(rows), ball and ball.rows(rows))


def _check(model: nn.Module, subject: Subject) -> None:
    """What would only come out in the middle of training: ball against data, classes against logits."""
    data = subject.data
    for ball, examples in ((subject.ball, data), (subject.held_ball, subject.held)):
        if ball is not None and examples is not None:
            ball.bind(examples.x)
    with torch.no_grad(), frozen(model):
        logits = two_columns(model(data.x[:8].to(next(model.parameters()).device)))
    classes = logits.shape[1]
    if probabilities(logits):
        warnings.warn(SOFTMAX, ModelWarning, stacklevel=3)
    top = max(int(part.y.max()) for part in (data, subject.held) if part is not None)
    if top >= classes:
        raise BadInput(f"`data` must have labels below the {classes} classes of the model, got {top}; widen the model")


def need_tensorboard() -> None:
    """Raise `BadInput` where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise BadInput("`tensorboard` must be left out, or installed: pip install tensorboard")


@contextmanager
def _board(folder: str | Path | None) -> Iterator[Any]:
    """TensorBoard's writer."""
    if folder is None or ranks.rank() > 0:
        yield None
        return
    need_tensorboard()
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        yield board


@contextmanager
def _training(model: nn.Module, parameters: list[nn.Parameter], settings: Settings) -> Iterator[None]:
    """Train mode, no gradients, own random numbers; on leaving, flags, gradients and generators as they were."""
    flags = [(module, module.training) for module in model.modules()]
    gradients = [p.grad for p in parameters]
    device = parameters[0].device
    devices = [device] if device.type == "cuda" else []
    relaid = [p for p in parameters if p.ndim == 4 and p.is_contiguous()] if settings.channels_last else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            for parameter in relaid:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            model.train()
            yield
        finally:
            for parameter in relaid:
                parameter.data = parameter.data.contiguous()
            for module, flag in flags:
                module.training = flag
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
