"""Adversarial training as a mixed objective, for two forward and backward passes a step instead of three.

Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015), section 6:
alpha J(x) + (1 - alpha) J(x + eps sign(grad_x J(x))). The backward pass through J(x), which gives its parameter
gradients, gives grad_x as well: what is left is a forward and a backward pass on the adversarial batch.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_between
from epsball.common.config import Rule
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch
from epsball.models.frozen import frozen
from epsball.problem.gradients import finite_gradient
from epsball.training.batch_statistics import BatchNorm, adversarial_pass, clean_pass
from epsball.training.cross_entropy import CrossEntropyTraining, accuracy, existing, input_gradient, logits_of
from epsball.training.inner_attack import attack_gradient, attackable
from epsball.training.training_objective import Labels, Logged, TrainingStep

IN_UNIT_INTERVAL = Rule(check_between, 0, 1, "the paper's alpha is 0.5")


class FGSMMix(CrossEntropyTraining):
    """alpha J(x) + (1 - alpha) J(x_adv), x_adv the ball's maximiser of grad_x J(x): FGSM's point, in every norm.

    Two forward and two backward passes a step, each with parameter gradients; the first backward pass also gives
    grad_x J, whose direction no alpha, not even 0, erases. The attack is in train mode, since its pass is one that is
    trained on; J is smoothed in it too, where `label_smoothing` > 0. Derivatives do not go through x_adv.

    Parameters
    ----------
    alpha
        The share of the clean loss, in [0, 1]; at a constant 1 the adversarial batch is left out.
    alpha_end
        Where given, alpha changes to it linearly over the training.
    batch_norm
        Each pass normalises by its own batch. "both" update the running statistics, or only the "clean" or only the
        "adversarial" one. With "separate" the adversarial pass has a second set of statistics, which is kept in the
        training's checkpoints alone: the model ends as with "clean". "joint" normalises by the mixed batch: that needs
        the adversarial batch before the clean forward, so it costs a third forward and backward pass, an attack in
        train mode that leaves the statistics as they are.
    shared_dropout
        Both passes draw the same numbers from torch's generator, so that dropout makes the same zeros.

    Logs "loss", "clean_loss", "adversarial_loss", "accuracy" (clean) and "adversarial_accuracy".
    """

    cost = "2; with batch_norm=joint 3; the attack is the clean pass itself, in train mode"
    source = "Goodfellow et al. 2015, section 6"

    alpha: Annotated[float, IN_UNIT_INTERVAL] = 0.5
    alpha_end: Annotated[float | None, IN_UNIT_INTERVAL] = None
    batch_norm: BatchNorm = "both"
    shared_dropout: bool = False

    def check(self) -> None:
        if self.shared_dropout and self.batch_norm == "joint":
            raise BadInput(
                "`shared_dropout` must be False where batch_norm is 'joint', got True: one pass over both batches "
                "draws for each row; take batch_norm='both'"
            )

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball, alpha = self.need(ball), self.alpha
        if self.alpha_end is not None:
            alpha += (self.alpha_end - self.alpha) * step.fraction
        if self.batch_norm == "joint":
            return self._joint_pass(model, x, y, ball, alpha)
        only_clean = self.alpha == 1 and self.alpha_end in (None, 1)
        leaf = x.detach().requires_grad_(not only_clean)
        devices = [x.device] if x.is_cuda else []
        with clean_pass(self.batch_norm, model), torch.random.fork_rng(devices, enabled=self.shared_dropout):
            clean, clean_loss, grad = self._clean_pass(model, leaf, y, alpha)
        if grad is None:
            return {"loss": clean_loss, "clean_loss": clean_loss, "accuracy": accuracy(clean, y)}
        x_adv = ball.argmax(grad, x)
        with adversarial_pass(self.batch_norm, model, step.memory):
            adversarial = logits_of(model, x_adv)
            adversarial_loss = self.loss(adversarial, y)
            ((1 - alpha) * adversarial_loss).backward()
        logits = torch.stack([clean, adversarial.detach()])
        return _logged(logits, y, clean_loss, adversarial_loss.detach(), alpha)

    def _clean_pass(
        self, model: nn.Module, leaf: Batch, y: Labels, alpha: float
    ) -> tuple[Tensor, Tensor, Batch | None]:
        """Logits, J, and, where the leaf needs it, the direction of grad_x J; adds alpha grad J to the parameters'.

        The leaf's gradient is alpha times grad_x J too, which has the same maximiser.
        """
        if alpha == 0:  # alpha J has no direction, and parameter gradients are not needed
            with frozen(model, evaluating=False):
                logits = logits_of(model, leaf)
                loss = self.loss(logits, y)
                grad = finite_gradient(input_gradient(loss, leaf))
            return logits.detach(), loss.detach(), grad
        logits = logits_of(model, leaf)
        loss = self.loss(logits, y)
        (alpha * loss).backward()
        grad = finite_gradient(existing(leaf.grad)) if leaf.requires_grad else None
        return logits.detach(), loss.detach(), grad

    def _joint_pass(self, model: nn.Module, x: Batch, y: Labels, ball: Ball, alpha: float) -> Logged:
        """One mixed batch of 2n rows, after an attack on n rows for grad_x."""
        with attackable(model, "train"):
            grad = attack_gradient(model, x, lambda logits: self.losses(logits, y).sum())
        logits = logits_of(model, torch.cat([x, ball.argmax(grad, x)]))
        clean, adversarial = logits.tensor_split(2)
        clean_loss, adversarial_loss = self.loss(clean, y), self.loss(adversarial, y)
        loss = alpha * clean_loss + (1 - alpha) * adversarial_loss
        loss.backward()
        both = logits.detach().reshape(2, *clean.shape)
        return _logged(both, y, clean_loss.detach(), adversarial_loss.detach(), alpha)


def _logged(
    logits: Float[Tensor, "two n classes"], y: Labels, clean: Tensor, adversarial: Tensor, alpha: float
) -> Logged:
    """What is logged about both batches, in few operations: after a pass the caches are cold, and each one counts."""
    accuracies = (logits.argmax(2) == y).mean(1, dtype=torch.float32)
    return {
        "loss": torch.lerp(adversarial, clean, alpha),
        "clean_loss": clean,
        "accuracy": accuracies[0],
        "adversarial_loss": adversarial,
        "adversarial_accuracy": accuracies[1],
    }
