"""One training while it runs: epochs, batches, steps of the optimiser."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from epsball.acceleration.accelerate import accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.acceleration.rewriting import NORMS
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.examples import Examples
from epsball.models.last_activation import LogitsOf
from epsball.training import distributed
from epsball.training.config import TrainingConfig
from epsball.training.cross_entropy import learnable
from epsball.training.fit_result import Diverged, FitResult, Progress
from epsball.training.monitor import Monitor
from epsball.training.pgd import PGDTraining
from epsball.training.training_data import ORDER_DRAW, TORCH_DRAW, TrainingData
from epsball.training.training_directory import TrainingDirectory
from epsball.training.training_objective import ObjectiveLike, TrainingObjective, TrainingStep
from epsball.training.training_state import TrainingState

log = logging.getLogger(__name__)

TRIAL_STEPS = 400
"""A shorter training is over before a trial of an accelerated network pays."""
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,
    "one-cycle": lambda fraction: min(fraction / 0.3, (1 - fraction) / 0.7),
    "cosine": lambda fraction: (1 + math.cos(math.pi * fraction)) / 2,
}
"""The learning rate as a share of `lr`, by the fraction of the training that is done. One cycle: Smith (2018).

torch's schedulers count steps, whose number is not known beforehand where an objective adds examples."""


@dataclass(eq=False)
class TrainingLoop:
    """A training: what it works on, and its `state`, which changes."""

    state: TrainingState
    data: TrainingData
    objective: ObjectiveLike
    config: TrainingConfig
    description: dict[str, Any]
    directory: TrainingDirectory
    report: Callable[[Progress], None]
    ends_in_activation: bool = False
    """Whether the model returns probabilities of logits that can be had; objectives of this package train on these."""
    network: nn.Module = field(init=False)
    """What the objective calls: the model, or an accelerated form that shares its parameters."""
    logit_network: nn.Module = field(init=False)
    """The same without a final sigmoid or softmax."""
    cache: dict[str, Any] = field(default_factory=dict)
    """What the objective finds again at its next step, while this process trains."""

    def __post_init__(self) -> None:
        self._set_network(self.state.model)
        self.parameters = learnable(self.state.model)
        self.device = self.parameters[0].device
        self.monitor = Monitor(self.state, self.data, self.config)
        self.clock = time.perf_counter()

    def run(self) -> FitResult:
        """All epochs, from the last checkpoint on."""
        state = self.state
        resumed = self.directory.resume(state, self.data)
        self._accelerate()
        if not resumed:
            self.monitor.save_good()
            self._save()
        while state.epoch < self.config.epochs and not state.finished:
            if state.batch == 0:
                self._begin_epoch()
            self._run_epoch()
        if not state.finished:
            state.finished = True
            self._save()
        state.load_best()
        return self._result()

    def _set_network(self, network: nn.Module) -> None:
        self.network = network
        self.logit_network = LogitsOf(network) if self.ends_in_activation else network

    @property
    def _current_objective(self) -> ObjectiveLike:
        return PGDTraining() if self.state.switched else self.objective

    @property
    def _examples(self) -> Examples:
        return self.data.train if self.state.data is None else self.state.data

    def _begin_epoch(self) -> None:
        state, objective, ball = self.state, self._current_objective, self.data.ball
        state.epoch_sums = {}
        if isinstance(objective, TrainingObjective):
            examples = objective.epoch(state.model, self._examples, ball, state.epoch, self.config.seed)
            if examples is not self._examples:
                if ball is not None:
                    ball.bind(examples.x)
                state.data = examples

    def _run_epoch(self) -> None:
        state, config, examples = self.state, self.config, self._examples
        noise = Noise(config.seed, examples.ids, torch.full_like(examples.ids, state.epoch))
        n_batches = math.ceil(len(examples) / config.batch_size)
        batches = noise.bits((), draw=ORDER_DRAW).argsort(stable=True).tensor_split(n_batches)
        check_after = {round(n_batches * (k + 1) / config.checks) for k in range(config.checks)}
        while state.batch < n_batches and not state.finished:
            objective, index = self._current_objective, batches[state.batch]
            replays = objective.replays if isinstance(objective, TrainingObjective) else 1
            for replay in range(replays):
                fraction = (state.epoch + (state.batch + (replay + 0.5) / replays) / n_batches) / config.epochs
                lr = config.lr * state.lr_scale * SCHEDULES[config.schedule](fraction)
                radius = config.radius_share(fraction)
                step = TrainingStep(noise.rows(index), state.step, fraction, replay, radius, state.memory, self.cache)
                logged = self._step(objective, index, step, lr)
                self._add_to_epoch_sums(logged, len(index))
                if replay + 1 == replays:
                    state.batch += 1
                    if "adversarial_accuracy" in logged:
                        state.recent.append(logged["adversarial_accuracy"])
                    if state.batch in check_after:
                        self.monitor.check(fraction, epoch_ends=state.batch == n_batches)
                self._report(logged, lr, (n_batches - state.batch) * replays, n_batches * replays)
            if state.batch in check_after and state.batch < n_batches and self.directory.is_due():
                self._save()
        state.history.append({name: total / rows for name, (total, rows) in state.epoch_sums.items()})
        state.epoch, state.batch, state.epoch_sums = state.epoch + 1, 0, {}
        log.info("epoch %d of %d: %s", state.epoch, config.epochs, state.history[-1])
        if state.epoch < config.epochs or state.finished:
            self._save()

    def _add_to_epoch_sums(self, logged: dict[str, float], n: int) -> None:
        sums = self.state.epoch_sums
        for name, value in logged.items():
            total, rows = sums.get(name, (0.0, 0))
            sums[name] = (total + value * n, rows + n)

    def _step(self, objective: ObjectiveLike, index: Tensor, step: TrainingStep, lr: float) -> dict[str, float]:
        """One step of the optimiser on the examples `index` of the epoch; the logged scalars, means over them."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        self._seed_torch()
        mine = torch.arange(len(index)).tensor_split(distributed.world_size())[distributed.rank()]
        share = len(mine) / len(index)
        logged = distributed.average_logged(self._accumulate_gradients(objective, index, mine, step), share)
        distributed.average_gradients(state.model, self.parameters, share)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        gradient_norm = get_total_norm(gradients).item()
        if not all(map(math.isfinite, (*logged.values(), gradient_norm))):
            raise Diverged(
                f"training must stay finite, got {logged} and a gradient norm of {gradient_norm:.3g} in epoch "
                f"{state.epoch + 1}, step {state.step + 1}, at learning rate {lr:.3g}; take a smaller `lr` than "
                f"{self.config.lr}, or look for outliers in the data"
            )
        state.optimizer.step()
        state.step += 1
        state.average.update(state.model, step.fraction)
        return logged

    def _accumulate_gradients(
        self, objective: ObjectiveLike, index: Tensor, mine: Tensor, step: TrainingStep
    ) -> dict[str, float]:
        """Leave in `.grad` the mean over the rows `mine` of the batch, computed part by part; the logged means."""
        for parameter in self.parameters:
            parameter.grad = None
        parts = [part for part in mine.tensor_split(self.config.accumulate) if len(part)]
        logged: dict[str, float] = {}
        for part in parts:
            if len(parts) > 1:  # the gradients so far are sums over rows, what is added is a mean
                self._scale_gradients(1 / len(part))
            part_step = replace(step, noise=step.noise.rows(part))
            for name, value in self._backpropagate(objective, index[part], part_step).items():
                logged[name] = logged.get(name, 0.0) + value * len(part) / len(mine)
            if len(parts) > 1:
                self._scale_gradients(len(part))
        if len(parts) > 1:
            self._scale_gradients(1 / len(mine))
        return logged

    def _scale_gradients(self, factor: float) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _backpropagate(self, objective: ObjectiveLike, index: Tensor, step: TrainingStep) -> dict[str, float]:
        """Add the gradients of the examples `index`, on the model's device; the scalars that the objective logged."""
        batch, ball = self._examples.rows(index), self.data.ball and self.data.ball.rows(index)
        x, y = batch.x.to(self.device), batch.y.to(self.device)
        if self.config.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if ball is not None and step.radius < 1:
            ball = ball.with_eps(ball.eps * step.radius)
        noise = replace(step.noise, ids=step.noise.ids.to(self.device), restart=step.noise.restart.to(self.device))
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            network = self.logit_network if isinstance(objective, TrainingObjective) else self.network
            logged = objective(network, x, y, ball and ball.bind(x), replace(step, noise=noise))
        if not isinstance(logged, Mapping):
            raise BadInput(
                f"`objective` must return a dict of scalars to log, got {type(logged).__name__}; return {{}}"
            )
        return {name: float(value) for name, value in logged.items()}

    def _seed_torch(self) -> None:
        """Seed torch's generators, which dropout draws from, by seed, step and process."""
        noise = Noise(self.config.seed, torch.tensor([self.state.step]), torch.tensor([distributed.rank()]))
        seed = int(noise.bits((), draw=TORCH_DRAW)) & (1 << 63) - 1
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def _accelerate(self) -> None:
        """Give the objective a network whose input gradients are cheaper, where that is wanted or likely to pay."""
        state, config, examples = self.state, self.config, self.data.train
        wanted = config.accelerate
        if wanted is None:
            layers = any(isinstance(part, (nn.Conv2d, *NORMS)) for part in state.model.modules())
            long = config.epochs * len(examples) >= TRIAL_STEPS * config.batch_size
            helps = not isinstance(self.objective, TrainingObjective) or self.objective.accelerates
            wanted = layers and long and helps and self.data.ball is not None
        if not wanted:
            return
        rows = max(1, config.batch_size // (distributed.world_size() * config.accumulate))
        plan = None if state.plan is None else AccelerationPlan.from_record(state.plan)
        accelerated = accelerate(state.model, examples.x[:rows].to(self.device), plan=plan, trainable=True)
        state.plan = accelerated.plan.to_record()
        if accelerated.plan.rewriting != "none":
            self._set_network(accelerated)
        log.info("accelerated: %s", accelerated.plan)

    def _report(self, logged: dict[str, float], lr: float, steps_left: int, steps_per_epoch: int) -> None:
        self._update_seconds()
        state, epochs = self.state, self.config.epochs
        steps = state.step + steps_left + steps_per_epoch * (epochs - state.epoch - 1)
        last = state.checks[-1] if state.checks else None
        self.report(Progress(state.step, steps, state.epoch + 1, epochs, logged, state.seconds, lr, last))

    def _save(self) -> None:
        self.directory.save(self.state, self._result())

    def _result(self) -> FitResult:
        self._update_seconds()
        state, config = self.state, self.description | {"acceleration": self.state.plan}
        return FitResult(
            config, tuple(state.history), state.seconds, tuple(state.checks), state.best_check, state.finished
        )

    def _update_seconds(self) -> None:
        before, self.clock = self.clock, time.perf_counter()
        self.state.seconds += self.clock - before
