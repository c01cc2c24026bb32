"""The only training loop: batches in a counter-based order, an objective that backpropagates, a step of the optimiser.

The order of an epoch is that of each example's own random number, so it does not depend on the order of the data; an
objective gets the noise of its rows with the epoch as restart index, and torch's generators are seeded anew at each
step. So a checkpoint holds only tensors and counters: same seed, data, threads and processes, same bits, however often
the training was stopped.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.undo import Undo
from epsball.common.version import __version__
from epsball.data.box import ball_for
from epsball.data.class_names import numbered_like
from epsball.data.collected import examples_of
from epsball.data.examples import Examples
from epsball.models.frozen import frozen
from epsball.models.given import as_model
from epsball.models.last_activation import REMOVED, before_activation, check_no_probability
from epsball.problem.inputs import examples_for
from epsball.problem.model_errors import explained
from epsball.problem.objective import SOFTMAX, ModelWarning, probabilities
from epsball.problem.outputs import two_columns
from epsball.training import distributed
from epsball.training.averaging import WeightAverage
from epsball.training.config import TrainingConfig
from epsball.training.cross_entropy import learnable
from epsball.training.fit_result import FitResult, Progress
from epsball.training.loop import TrainingLoop
from epsball.training.plain import Plain
from epsball.training.training_data import TrainingData, split
from epsball.training.training_directory import TrainingDirectory, description_of, identity_of
from epsball.training.training_objective import ObjectiveLike, TrainingObjective
from epsball.training.training_state import TrainingState

PLAIN = Plain()

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True),
}


def fit(
    model: nn.Module,
    data: Examples | tuple[Any, Any] | Any,
    ball: Ball | str | None = None,
    *,
    objective: ObjectiveLike = PLAIN,
    config: TrainingConfig | None = None,
    validation: Examples | tuple[Any, Any] | Any = None,
    out: str | Path | None = None,
    tensorboard: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> FitResult:
    """Train `model` in place on `data`, `Examples` or (x, y).

    `ball` is what the objective defends against, in the units of x. `options` are the fields of `TrainingConfig`, which
    may be given whole as `config`. An epoch is cut into ceil(n / batch_size) batches whose sizes differ by at most one.
    With held-out examples (`hold_out`, or `validation`), clean, FGSM and PGD-10 accuracy are measured on them, and the
    model ends with the weights of the best robust accuracy at an epoch's end. With `out`, checkpoints and
    `training.json` are written there, and a training that was stopped is resumed from there, to the same bits.
    `tensorboard` is a directory for its logs. `progress` is called after each step.

    In several processes (torchrun, after `distributed.join_torchrun()`) each takes its share of every batch. Batches
    are moved to the device of the parameters. The whole model is trained in train mode. Parameters that need no
    gradient stay; train/eval flags, `.grad` and torch's generators are restored, also after an exception.

    Raises `BadInput` for arguments that do not fit, `Diverged` where the loss is not finite.

    >>> from epsball.models.registry import build
    >>> net = build("small-mlp", (2,), 2)
    >>> result = fit(net, (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])), epochs=20, lr=0.01)
    >>> result.epochs[-1]["accuracy"]
    1.0
    """
    if config is not None and options:
        raise BadInput(f"`config` must be left out where {', '.join(options)} are given; use dataclasses.replace")
    config = config or TrainingConfig.of(options, what="fit's option")
    if isinstance(model, nn.Module):
        model = cast(nn.Module, as_model(model))
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"`model` must be a torch module, got {type(model).__name__}; a callable has no weights to train"
        )
    if not callable(objective) or isinstance(objective, type):
        given = getattr(objective, "__name__", type(objective).__name__)
        raise BadInput(f"`objective` must be an objective or a function, got {given}; as in FGSMMix(alpha=0.5)")
    if config.ramp is None:
        config = replace(config, ramp=objective.ramp if isinstance(objective, TrainingObjective) else 0.0)
    examples, ball, validation = _inputs(model, data, ball, validation)
    parts = split(examples, ball, validation, config)
    parameters = learnable(model)
    if not parameters:
        raise BadInput("`model` must have parameters that need a gradient, got none; unfreeze it first")
    description = description_of(parts, objective, config, model)
    identity = {} if out is None else identity_of(description, parts, objective, model)
    description["versions"] = {"epsball": __version__, "torch": torch.__version__, "python": platform.python_version()}
    with _training(model, parameters, config), _tensorboard(tensorboard) as log:
        ends_in = _check_outputs(model, parts)
        distributed.broadcast_model(model)
        optimizer = OPTIMIZERS[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)
        average = WeightAverage(config.average, config.decay)
        state = TrainingState(model=model, optimizer=optimizer, average=average)

        def report(now: Progress) -> None:
            log(now)
            if progress is not None:
                progress(now)

        directory = TrainingDirectory(None if out is None else Path(out), identity)
        return TrainingLoop(state, parts, objective, config, description, directory, report, bool(ends_in)).run()


def _inputs(
    model: nn.Module, data: Any, ball: Ball | str | None, validation: Any
) -> tuple[Examples, Ball | None, Examples | None]:
    """The examples, the ball in their box, and the held-out ones with labels numbered alike."""
    examples = examples_of(data)
    ball = None if ball is None else ball_for(ball, examples)
    examples = examples_for(model, examples, ball, move=False)
    if validation is not None:
        validation = examples_for(model, validation, ball, move=False)
        validation = numbered_like(validation, examples.label_names)
    return examples, ball, validation


def _check_outputs(model: nn.Module, data: TrainingData) -> str:
    """Raise `BadInput` for labels that are no class of the model, or one probability; the activation it ends in.

    Warns of probabilities, and where the activation that gives them is left out.
    """
    x = data.train.x[:8].to(next(model.parameters()).device)
    with torch.no_grad(), frozen(model):
        try:
            output, ends_in = before_activation(model, x)
        except Exception as error:
            reason = explained(model, x, error)
            if reason is None:
                raise
            raise reason from error
        if not ends_in:
            check_no_probability(model, x, output)
        logits = two_columns(output)
    classes = logits.shape[1]
    if ends_in:
        warnings.warn(REMOVED.format(ends_in), ModelWarning, stacklevel=3)
    elif probabilities(logits):
        warnings.warn(SOFTMAX, ModelWarning, stacklevel=3)
    top = max(int(part.y.max()) for part in data.parts)
    if top >= classes:
        raise BadInput(f"`data` must have labels below the {classes} classes of the model, got {top}; widen the model")
    return ends_in


def need_tensorboard() -> None:
    """Raise `BadInput` where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise BadInput("`tensorboard` must be left out, or installed: pip install tensorboard")


@contextmanager
def _tensorboard(folder: str | Path | None) -> Iterator[Callable[[Progress], None]]:
    """A function that logs a step to TensorBoard, where there is a folder for it."""
    if folder is None or distributed.rank() > 0:
        yield lambda now: None
        return
    need_tensorboard()
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def log(now: Progress) -> None:
            scalars = {f"train/{name}": value for name, value in (now.logged | {"learning_rate": now.lr}).items()}
            if now.check is not None and now.check.step == now.step:
                scalars |= {f"held_out/{name}": getattr(now.check, name) for name in ("clean", "fgsm", "pgd")}
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(name, value, now.step)

        yield log


@contextmanager
def _training(model: nn.Module, parameters: list[nn.Parameter], config: TrainingConfig) -> Iterator[None]:
    """Train mode, gradients, own random numbers; on leaving, flags, gradients, layouts and generators are restored.

    Here the model's own `train` is called: what it does, a training must have. So it is to go back in the same way.
    """
    device = parameters[0].device
    with Undo() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(torch.enable_grad())
        stack.callback(_leave_environment, set(os.environ))
        flags = [(module, module.training) for module in model.modules()]
        for module, flag in flags:
            stack.callback(setattr, module, "training", flag)
        stack.callback(_return_to_modes, flags)
        for parameter in parameters:
            stack.callback(setattr, parameter, "grad", parameter.grad)
            if config.channels_last and parameter.ndim == 4 and parameter.is_contiguous():
                memory = parameter.data
                stack.callback(setattr, parameter, "data", memory)  # its values are the trained ones by then
                stack.callback(_copy_data, parameter, memory)
                parameter.data = memory.contiguous(memory_format=torch.channels_last)
        model.train()
        yield


def _leave_environment(names: set[str]) -> None:
    """Take out what torch's compiler, loaded by the first step of an optimiser, writes into the environment."""
    for name in set(os.environ) - names:
        if name.startswith("TORCHINDUCTOR_"):
            del os.environ[name]


def _return_to_modes(flags: list[tuple[nn.Module, bool]]) -> None:
    """Have each module whose mode changed go back to it, the outermost first."""
    for module, flag in flags:
        if module.training != flag:
            module.train(flag)


def _copy_data(parameter: nn.Parameter, memory: Tensor) -> None:
    memory.copy_(parameter.data)
