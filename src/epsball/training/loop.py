"""One training while it runs: epochs, steps, looks at held-out examples, checkpoints."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from epsball.acceleration.accelerate import accelerate
from epsball.acceleration.rewriting import NORMS
from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.examples import Examples
from epsball.training import checkpoint, ranks
from epsball.training.averaging import tensors_of
from epsball.training.pgd import PGDTraining
from epsball.training.record import Diverged, FitResult, Progress
from epsball.training.settings import Settings
from epsball.training.state import State
from epsball.training.step import Objective, Step, TrainingObjective
from epsball.training.validation import FADES, GLANCE, Check, check, overfitted

log = logging.getLogger(__name__)

ORDER_DRAW, HOLD_DRAW, TORCH_DRAW = 255, 254, 253
"""The draws of the noise that order an epoch, choose what is held out, seed torch; objectives count theirs from 0."""
SAVE_EVERY = 10.0
"""Seconds that lie between two checkpoints within an epoch, at least; at an epoch's end there always is one."""
ROLLBACKS = 3
"""After so many, the next overfitting stops the training."""
TRIAL_STEPS = 400
"""A training that is shorter is over before a trial of an accelerated network pays."""
MACHINE, WORDS = ("threads", "device", "processes", "versions"), ("objective", "ball", "data")
"""What may differ between a training and its resume; and what is known by its fingerprint, the words are for people."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda at: 1.0,
    "one-cycle": lambda at: min(at / 0.3, (1 - at) / 0.7),
    "cosine": lambda at: (1 + math.cos(math.pi * at)) / 2,
}
"""The learning rate as a share of `lr`, by the share of the training that is over. One cycle: Smith (2018)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is trained on, and against what; the ball of the held-out examples is apart, for it may be per example."""

    data: Examples
    ball: Ball | None
    held: Examples | None
    held_ball: Ball | None


@dataclass(eq=False)
class Loop:
    """A training: what it works on, and its `state`, which changes."""

    state: State
    subject: Subject
    objective: Objective
    settings: Settings
    config: dict[str, Any]
    out: Path | None
    board: Any
    progress: Callable[[Progress], None] | None
    network: nn.Module = field(init=False)
    """What the objective calls: the model, or an accelerated form that shares its parameters."""

    def __post_init__(self) -> None:
        self.network = self.state.model
        self.parameters = [p for p in self.state.model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.began = self.saved = time.perf_counter()

    def run(self) -> FitResult:
        """All epochs, from where the last checkpoint left off."""
        state = self.state
        resumed = self._resume()
        self._accelerate()
        if not resumed:
            self._keep_good()
            self._save()
        while state.epoch < self.settings.epochs and not state.finished:
            if state.batch == 0:
                self._begin_epoch()
            self._run_epoch()
        if not state.finished:
            state.finished = True
            self._save()
        state.end()
        return self._result()

    def _begin_epoch(self) -> None:
        state, objective, ball = self.state, self._now(), self.subject.ball
        state.sums = {}
        if isinstance(objective, TrainingObjective):
            found = objective.epoch(state.model, self._data, ball, state.epoch, self.settings.seed)
            if found is not self._data:
                if ball is not None:
                    ball.bind(found.x)
                state.data = found

    def _now(self) -> Objective:
        """The objective, or the one that took its place."""
        return PGDTraining() if self.state.switched else self.objective

    @property
    def _data(self) -> Examples:
        return self.subject.data if self.state.data is None else self.state.data

    def _run_epoch(self) -> None:
        state, settings, data = self.state, self.settings, self._data
        noise = Noise(settings.seed, data.ids, torch.full_like(data.ids, state.epoch))
        batches = math.ceil(len(data) / settings.batch_size)
        order = noise.bits((), draw=ORDER_DRAW).argsort(stable=True).tensor_split(batches)
        marks = {round(batches * (k + 1) / settings.checks) for k in range(settings.checks)}
        while state.batch < batches and not state.finished:
            objective, index = self._now(), order[state.batch]
            replays = objective.replays if isinstance(objective, TrainingObjective) else 1
            for replay in range(replays):
                over = (state.epoch + (state.batch + (replay + 0.5) / replays) / batches) / settings.epochs
                rate = settings.lr * state.scale * SCHEDULES[settings.schedule](over)
                logged = self._step(objective, index, noise.rows(index), over, replay, rate)
                for name, value in logged.items():
                    total, rows = state.sums.get(name, (0.0, 0))
                    state.sums[name] = (total + value * len(index), rows + len(index))
                if replay + 1 == replays:
                    state.batch += 1
                    if "adversarial_accuracy" in logged:
                        state.recent.append(logged["adversarial_accuracy"])
                    if state.batch in marks:
                        self._look(over, whole=state.batch == batches)
                self._tell(logged, rate, (batches - state.batch) * replays, batches * replays)
            if state.batch in marks and state.batch < batches and self._save_is_due():
                self._save()
        state.history.append({name: total / rows for name, (total, rows) in state.sums.items()})
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        log.info("epoch %d of %d: %s", state.epoch, settings.epochs, state.history[-1])
        if state.epoch < settings.epochs or state.finished:
            self._save()

    def _step(
        self, objective: Objective, index: Tensor, noise: Noise, over: float, replay: int, rate: float
    ) -> dict[str, float]:
        """One step of the optimiser on the examples `index` of the epoch's data; what was logged, means over them."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        for parameter in self.parameters:
            parameter.grad = None
        self._seed()
        mine = torch.arange(len(index)).tensor_split(ranks.world())[ranks.rank()]
        share, sums = len(mine) / len(index), dict[str, float]()
        parts = [part for part in mine.tensor_split(self.settings.accumulate) if len(part)]
        for part in parts:
            if len(parts) > 1:  # the gradients so far are sums over rows, what is added is a mean
                self._scale_gradients(1 / len(part))
            step = Step(noise.rows(part), state.done, over, replay, state.memory)
            for name, value in self._backward(objective, index[part], step).items():
                sums[name] = sums.get(name, 0.0) + value * len(part) / len(mine)
            if len(parts) > 1:
                self._scale_gradients(len(part))
        if len(parts) > 1:
            self._scale_gradients(1 / len(mine))
        ranks.averaged_step(self.parameters, state.model, share)
        logged = ranks.mean_of(sums, share)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        steepness = get_total_norm(gradients).item()
        if not all(map(math.isfinite, (*logged.values(), steepness))):
            raise Diverged(
                f"training must stay finite, got {logged} and a gradient norm of {steepness:.3g} in epoch "
                f"{state.epoch + 1}, step {state.done + 1}, at learning rate {rate:.3g}; take a smaller `lr` than "
                f"{self.settings.lr}, or look for outliers in the data"
            )
        state.optimizer.step()
        state.done += 1
        state.average.update(state.model, over)
        return logged

    def _backward(self, objective: Objective, rows: Tensor, step: Step) -> dict[str, float]:
        """The gradients of some rows, on the model's device, and what the objective logged about them."""
        batch, ball = self._data.rows(rows), self.subject.ball and self.subject.ball.rows(rows)
        x, y = batch.x.to(self.device), batch.y.to(self.device)
        if self.settings.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if ball is not None and (share := self._radius(step.over)) < 1:
            ball = ball.with_eps(ball.eps * share)
        noise = replace(step.noise, ids=step.noise.ids.to(self.device), restart=step.noise.restart.to(self.device))
        lower = torch.autocast(self.device.type, torch.bfloat16) if self.settings.precision == "bf16" else nullcontext()
        with lower:
            logged = objective(self.network, x, y, None if ball is None else ball.bind(x), replace(step, noise=noise))
        if not isinstance(logged, Mapping):
            raise BadInput(
                f"`objective` must return a dict of scalars to log, got {type(logged).__name__}; return {{}}"
            )
        return {name: float(value) for name, value in logged.items()}

    def _radius(self, over: float) -> float:
        """The share of the ball's radius that is trained on when `over` of the training is."""
        return over / self.settings.ramp if over < self.settings.ramp else 1.0

    def _scale_gradients(self, by: float) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(by)

    def _seed(self) -> None:
        """Seed torch's generators, which dropout draws from, by seed, step and process."""
        key = Noise(self.settings.seed, torch.tensor([self.state.done]), torch.tensor([ranks.rank()]))
        seed = int(key.bits((), draw=TORCH_DRAW)) & (1 << 63) - 1
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def _accelerate(self) -> None:
        """Give the objective a network whose input gradients are cheaper, where that is asked for or likely to pay."""
        state, settings, data = self.state, self.settings, self.subject.data
        asked = settings.accelerate
        if asked is None:
            layers = any(isinstance(part, (nn.Conv2d, *NORMS)) for part in state.model.modules())
            long = settings.epochs * len(data) >= TRIAL_STEPS * settings.batch_size
            helps = not isinstance(self.objective, TrainingObjective) or self.objective.accelerates
            asked = layers and long and helps and self.subject.ball is not None
        if not asked:
            return
        rows = max(1, settings.batch_size // (ranks.world() * settings.accumulate))
        made = accelerate(state.model, data.x[:rows].to(self.device), plan=state.plan, trainable=True)
        state.plan = made.plan
        if made.plan.rewriting != "none":
            self.network = made
        log.info("accelerated: %s", made.plan)

    def _keep_good(self) -> None:
        if self.subject.held is not None and self.settings.on_overfit != "ignore":
            self.state.keep_good()

    def _look(self, over: float, *, whole: bool) -> None:
        """Measure the accuracies on held-out examples, `whole` at an epoch's end; act where training has broken.

        The ball is the one that is trained on now; weights can be the best from when it has grown to its radius.
        """
        state, held, ball = self.state, self.subject.held, self.subject.held_ball
        trained = sum(state.recent) / len(state.recent) if state.recent else None
        state.recent = []
        if held is None:
            return
        if not whole and len(held) > GLANCE:
            held, ball = held.rows(slice(GLANCE)), ball and ball.rows(torch.arange(GLANCE))
        at: dict[str, int] = {"step": state.done, "epoch": state.epoch + 1, "seed": self.settings.seed}
        share = self._radius(over)
        now = replace(check(state.model, held, ball and ball.with_eps(ball.eps * share), **at), radius=share)
        if self.settings.on_overfit != "ignore" and not state.switched and overfitted(now, state.peak, trained):
            self._remedy(now)
            return
        state.checks.append(now)
        # While the radius grows, accuracy falls of itself, and so does what it is held against.
        state.peak = max(now.robust, state.peak * (FADES if share < 1 else 1.0))
        self._keep_good()
        if not whole or share < 1:
            return
        if state.average.values:
            with state.average.inside(state.model):
                now = replace(check(state.model, held, ball, **at), averaged=True)
            state.checks.append(now)
        if state.best_check is None or now.robust > state.best_check.robust:
            state.keep_best(now)
        elif self.settings.patience and now.epoch - state.best_check.epoch >= self.settings.patience:
            state.checks[-1] = replace(
                now, event=f"no better robust accuracy for {self.settings.patience} epochs: stopped"
            )
            state.finished = True

    def _remedy(self, now: Check) -> None:
        """Catastrophic overfitting: back to the last good weights, and on as the settings say."""
        state, how = self.state, self.settings.on_overfit
        if how == "rollback" and state.rollbacks == ROLLBACKS:
            how = "stop"
        state.back_to_good()
        state.rollbacks += 1
        if how == "rollback":
            state.scale /= 2
        state.switched, state.finished = how == "switch", how == "stop"
        then = {
            "rollback": "went on at half the learning rate",
            "switch": "went on with PGD training",
            "stop": "stopped",
        }[how]
        event = (
            f"catastrophic overfitting: accuracy under PGD-10 fell from {state.peak:.1%} to {now.pgd or 0:.1%}, that "
            f"under FGSM is {now.fgsm or 0:.1%}; went back to the last good weights and {then}"
        )
        state.checks.append(replace(now, event=event))
        log.warning("epoch %d, step %d: %s", now.epoch, now.step, event)

    def _tell(self, logged: dict[str, float], rate: float, left: int, an_epoch: int) -> None:
        """The caller's progress, and TensorBoard."""
        state, epochs = self.state, self.settings.epochs
        last = state.checks[-1] if state.checks else None
        if self.board is not None:
            for name, value in (logged | {"learning_rate": rate}).items():
                self.board.add_scalar(f"train/{name}", value, state.done)
            if last is not None and last.step == state.done:
                figures = {"clean": last.clean, "fgsm": last.fgsm, "pgd": last.pgd}
                for name, value in figures.items():
                    if value is not None:
                        self.board.add_scalar(f"held_out/{name}", value, state.done)
        if self.progress is not None:
            steps = state.done + left + an_epoch * (epochs - state.epoch - 1)
            self.progress(Progress(state.done, steps, state.epoch + 1, epochs, logged, self._seconds(), rate, last))

    def _seconds(self) -> float:
        return self.state.seconds + time.perf_counter() - self.began

    def _result(self) -> FitResult:
        state = self.state
        config = self.config | {"acceleration": None if state.plan is None else state.plan.to_dict()}
        return FitResult(
            config, tuple(state.history), self._seconds(), tuple(state.checks), state.best_check, state.finished
        )

    def _save_is_due(self) -> bool:
        return self.out is not None and bool(ranks.agreed(time.perf_counter() - self.saved >= SAVE_EVERY))

    def _save(self) -> None:
        if self.out is None:
            return
        tensors, words = self.state.packed()
        words |= {"asked": self._asked, "seconds": self._seconds()}
        # Also a last step that was not one, after which the training is finished, has a number of its own.
        checkpoint.save(self.out, 2 * self.state.done + self.state.finished, tensors, words)
        if ranks.rank() == 0:
            text = self._result().to_json()
            write_whole(self.out / "training.json", lambda draft: draft.write_text(text))
        self.saved = time.perf_counter()

    @cached_property
    def _asked(self) -> dict[str, Any]:
        """What a resume must have in common with the training, as JSON gives it back."""
        subject, model = self.subject, self.state.model
        parts = [part for part in (subject.data, subject.held) if part is not None]
        prints = {
            "model": fingerprint.described([[name, list(part.shape)] for name, part in tensors_of(model).items()]),
            "objective": fingerprint.described(self.objective),
            "ball": fingerprint.described(subject.ball),
            "data": fingerprint.of_tensors(*(tensor for part in parts for tensor in (part.x, part.y, part.ids))),
        }
        told = {name: value for name, value in self.config.items() if name not in (*MACHINE, *WORDS)}
        return json.loads(json.dumps(told | prints))

    def _resume(self) -> bool:
        """Take up the last checkpoint, where there is one; raises `BadInput` where it is of another training."""
        found = None if self.out is None else checkpoint.latest(self.out)
        if found is None:
            return False
        tensors, words = found
        for name, value in self._asked.items():
            if (before := words["asked"].get(name)) != value:
                raise BadInput(
                    f"`out` must be a training with the same {name}, but {self.out} was begun with {before!r} and not "
                    f"{value!r}; choose a new directory, or the same {name}"
                )
        self.state.unpack(tensors, words, self.subject.data)
        log.info("going on from step %d, in epoch %d", self.state.done, self.state.epoch + 1)
        return True


def config_of(subject: Subject, objective: Objective, settings: Settings, model: nn.Module) -> dict[str, Any]:
    """The training in words."""
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data": subject.data.name,
        "examples": len(subject.data),
        "held_out": 0 if subject.held is None else len(subject.held),
        "ball": None if subject.ball is None else repr(subject.ball),
        "objective": re.sub(r" at 0x[0-9a-f]+", "", repr(objective)),
        **asdict(settings),
        "threads": torch.get_num_threads(),
        "device": str(next(model.parameters()).device),
        "processes": ranks.world(),
    }
