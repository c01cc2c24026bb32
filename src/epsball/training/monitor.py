"""Checks on held-out examples while a training runs: keep the best weights, stop early, answer overfitting."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from epsball.training.config import TrainingConfig
from epsball.training.training_data import TrainingData
from epsball.training.training_state import TrainingState
from epsball.training.validation import Check, check, overfitted

log = logging.getLogger(__name__)

QUICK_CHECK = 256
"""Examples of a check within an epoch; at its end all held-out ones are checked."""
FADING = 0.9
"""The reference accuracy is multiplied by this at each check while the radius grows: accuracy then falls by itself."""
MAX_ROLLBACKS = 3
"""After so many, the next overfitting stops the training."""
REMEDIES = {
    "rollback": "continued at half the learning rate",
    "switch": "continued with PGD training",
    "stop": "stopped",
}


@dataclass(eq=False)
class Monitor:
    """Checks the training `state` against its held-out examples and changes it as the configuration says."""

    state: TrainingState
    data: TrainingData
    config: TrainingConfig

    def save_good(self) -> None:
        """Remember the weights to roll back to, where that may happen."""
        if self.data.held_out is not None and self.config.on_overfit != "ignore":
            self.state.save_good()

    def check(self, fraction: float, *, epoch_ends: bool) -> None:
        """Measure the accuracies in the ball that is trained on now; at an epoch's end on all held-out examples.

        Weights can be the best from when the ball has grown to its radius.
        """
        state, held_out, ball = self.state, self.data.held_out, self.data.held_out_ball
        recent, state.recent = state.recent, []
        if held_out is None:
            return
        if not epoch_ends and len(held_out) > QUICK_CHECK:
            held_out, ball = held_out.rows(slice(QUICK_CHECK)), ball and ball.rows(torch.arange(QUICK_CHECK))
        at: dict[str, int] = {"step": state.step, "epoch": state.epoch + 1, "seed": self.config.seed}
        share = self.config.radius_share(fraction)
        now = replace(check(state.model, held_out, ball and ball.with_eps(ball.eps * share), **at), radius=share)
        training_accuracy = sum(recent) / len(recent) if recent else None
        watched = self.config.on_overfit != "ignore" and not state.switched
        if watched and overfitted(now, state.reference, training_accuracy):
            self._answer_overfitting(now)
            return
        state.checks.append(now)
        state.reference = max(now.robust, state.reference * (FADING if share < 1 else 1.0))
        self.save_good()
        if not epoch_ends or share < 1:
            return
        if state.average.values:
            with state.average.applied_to(state.model):
                now = replace(check(state.model, held_out, ball, **at), averaged=True)
            state.checks.append(now)
        self._compare_with_best(now)

    def _compare_with_best(self, now: Check) -> None:
        state, patience = self.state, self.config.patience
        if state.best_check is None or now.robust > state.best_check.robust:
            state.save_best(now)
        elif patience and now.epoch - state.best_check.epoch >= patience:
            state.checks[-1] = replace(now, event=f"no better robust accuracy for {patience} epochs: stopped")
            state.finished = True

    def _answer_overfitting(self, now: Check) -> None:
        """Catastrophic overfitting: roll back to the last good weights, and continue as the configuration says."""
        state, remedy = self.state, self.config.on_overfit
        if remedy == "rollback" and state.rollbacks == MAX_ROLLBACKS:
            remedy = "stop"
        state.roll_back()
        state.rollbacks += 1
        if remedy == "rollback":
            state.lr_scale /= 2
        state.switched, state.finished = remedy == "switch", remedy == "stop"
        event = (
            f"catastrophic overfitting: accuracy under PGD-10 fell from {state.reference:.1%} to {now.pgd or 0:.1%}, "
            f"that under FGSM is {now.fgsm or 0:.1%}; rolled back to the last good weights and {REMEDIES[remedy]}"
        )
        state.checks.append(replace(now, event=event))
        log.warning("epoch %d, step %d: %s", now.epoch, now.step, event)
