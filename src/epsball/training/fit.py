"""The only training loop: batches in a counter-based order, an objective that goes backwards, a step of the optimiser.

The order of an epoch is that of each example's own random number, so it does not depend on how the data are handed
over, and an objective gets the noise of its rows with the epoch as rank. Same seed, data and threads: same bits.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from epsball import __version__
from epsball.attacks.attack import at_least
from epsball.ball import Ball
from epsball.data import Examples, from_arrays
from epsball.errors import BadInput
from epsball.noise import Noise
from epsball.objective import frozen
from epsball.outputs import two_columns
from epsball.suggest import one_of
from epsball.training.plain import Plain

log = logging.getLogger(__name__)

TrainingObjective = Callable[[nn.Module, Tensor, Tensor, Ball | None, Noise], Mapping[str, Tensor | float]]
"""(model, x, y, ball, noise) -> scalars to log, the means over the rows; it has made its backward passes itself."""

PLAIN = Plain()
ORDER_DRAW = 255
"""The draw of the noise that orders an epoch; objectives count theirs from 0."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda at: 1.0,
    "one-cycle": lambda at: min(at / 0.3, (1 - at) / 0.7),
}
"""The learning rate as a share of `lr`, by the share of the training that is over. One cycle: Smith (2018)."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": lambda params, **options: torch.optim.SGD(params, momentum=0.9, nesterov=True, **options),
}


class Diverged(ArithmeticError):
    """Something that the objective logged is no longer finite; the model keeps the weights before that batch."""


@dataclass(frozen=True)
class Progress:
    """Where training is after a batch: `step` of `steps` batches, `epoch` of `epochs`, all counted from 1.

    `logged` is what the objective logged about this batch, `seconds` the time since the start.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    logged: dict[str, float]
    seconds: float

    @property
    def loss(self) -> float:
        """The logged "loss", NaN where the objective logs none."""
        return self.logged.get("loss", math.nan)


@dataclass(frozen=True)
class FitResult:
    """What a training was and what it logged.

    `config` holds the arguments, the objective, ball, data and model in words, and the versions; `epochs` the means
    over each epoch's examples of what the objective logged; `seconds` the wall time.
    """

    config: dict[str, Any]
    epochs: tuple[dict[str, float], ...]
    seconds: float

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal result."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> FitResult:
        """The result that `to_json` wrote."""
        record = json.loads(text)
        return cls(config=record["config"], epochs=tuple(record["epochs"]), seconds=record["seconds"])


def fit(
    model: nn.Module,
    data: Examples | tuple[Any, Any],
    ball: Ball | None = None,
    *,
    objective: TrainingObjective = PLAIN,
    epochs: int = 5,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: str = "adam",
    schedule: str = "one-cycle",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train `model` in place on `data`, `Examples` or (x, y), and say how it went.

    `ball` is what the objective defends against, in the units of x. An epoch is cut into ceil(n / batch_size) batches
    whose sizes differ by at most one. `lr` > 0 is the largest learning rate; `schedule` is one of `SCHEDULES`,
    `optimizer` of `OPTIMIZERS` (sgd: Nesterov momentum 0.9). `progress` is called after each batch. Batches are
    moved to the device of the parameters. Parameters that need no gradient stay; train/eval flags, `.grad` and
    torch's generators come back as they were, also after an exception.

    Raises `BadInput` for arguments that do not fit, `Diverged` where the loss is not finite.

    >>> from epsball.models import build
    >>> net = build("small-mlp", (2,), 2)
    >>> result = fit(net, (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])), epochs=20, lr=0.01)
    >>> result.epochs[-1]["accuracy"]
    1.0
    """
    data = data if isinstance(data, Examples) else from_arrays(*data)
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        at_least(name, value, 1)
    at_least("weight_decay", weight_decay, 0)
    if not 0 < lr < math.inf:
        raise BadInput(f"`lr` must be > 0 and finite, got {lr}; usual is 1e-3 for adam, 0.1 for sgd")
    if len(data) == 0:
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    share = SCHEDULES[one_of("schedule", schedule, SCHEDULES)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise BadInput("`model` must have parameters that need a gradient, got none; unfreeze it first")
    step = OPTIMIZERS[one_of("optimizer", optimizer, OPTIMIZERS)](parameters, lr=lr, weight_decay=weight_decay)
    config = {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "data": data.name,
        "examples": len(data),
        "ball": None if ball is None else repr(ball),
        "objective": repr(objective),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "schedule": schedule,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": str(parameters[0].device),
        "versions": {"epsball": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    began, batches = time.perf_counter(), math.ceil(len(data) / batch_size)
    steps, done, history = epochs * batches, 0, []
    with _training(model, parameters, seed):
        _check(model, data, ball)
        for epoch in range(epochs):
            noise = Noise(seed, data.ids, torch.full_like(data.ids, epoch))
            sums: dict[str, float] = {}
            for index in noise.bits((), draw=ORDER_DRAW).argsort(stable=True).tensor_split(batches):
                rate = lr * share((done + 0.5) / steps)
                for group in step.param_groups:
                    group["lr"] = rate
                step.zero_grad()
                logged = _backward(model, data.rows(index), ball and ball.rows(index), noise.rows(index), objective)
                done += 1
                if not all(map(math.isfinite, logged.values())):
                    raise Diverged(
                        f"training must stay finite, got {logged} in epoch {epoch + 1}, step {done} of {steps}, at "
                        f"learning rate {rate:.3g}; take a smaller `lr` than {lr}, or look for outliers in the data"
                    )
                step.step()
                for name, value in logged.items():
                    sums[name] = sums.get(name, 0.0) + value * len(index)
                if progress is not None:
                    progress(Progress(done, steps, epoch + 1, epochs, logged, time.perf_counter() - began))
            history.append({name: total / len(data) for name, total in sums.items()})
            log.info("epoch %d of %d: %s", epoch + 1, epochs, history[-1])
    return FitResult(config=config, epochs=tuple(history), seconds=time.perf_counter() - began)


def _backward(
    model: nn.Module, batch: Examples, ball: Ball | None, noise: Noise, objective: TrainingObjective
) -> dict[str, float]:
    """The gradients of one batch, on the model's device, and what the objective logged about it."""
    device = next(model.parameters()).device
    x, y = batch.x.to(device), batch.y.to(device)
    noise = replace(noise, ids=noise.ids.to(device), rank=noise.rank.to(device))
    logged = objective(model, x, y, None if ball is None else ball.bind(x), noise)
    return {name: float(value) for name, value in logged.items()}


def _check(model: nn.Module, data: Examples, ball: Ball | None) -> None:
    """What would only come out in the middle of training: ball against data, classes against logits."""
    if ball is not None:
        ball.bind(data.x)
    with torch.no_grad(), frozen(model):
        classes = two_columns(model(data.x[:1].to(next(model.parameters()).device))).shape[1]
    if (top := int(data.y.max())) >= classes:
        raise BadInput(f"`data` must have labels below the {classes} classes of the model, got {top}; widen the model")


@contextmanager
def _training(model: nn.Module, parameters: list[nn.Parameter], seed: int) -> Iterator[None]:
    """Train mode, no gradients, own random numbers; on leaving, flags, gradients and generators as they were."""
    flags = [(module, module.training) for module in model.modules()]
    gradients = [p.grad for p in parameters]
    device = parameters[0].device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        low_bits = int(seed) & (1 << 64) - 1  # the noise takes any integer
        torch.default_generator.manual_seed(low_bits)
        if devices:
            torch.cuda.default_generators[device.index].manual_seed(low_bits)
        try:
            model.train()
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
