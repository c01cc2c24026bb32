"""Comparisons between attacks: the traces of those with gradients, against control attacks that should find less.

Control attacks run only on examples that are robust so far, so that a model that is not robust costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.bim import BIM
from epsball.attacks.fgsm import FGSM
from epsball.attacks.pgd import PGD
from epsball.attacks.sign_noise import SignNoise
from epsball.attacks.square import Square
from epsball.attacks.uniform_noise import UniformNoise
from epsball.diagnosis.indicators import Indicator, indicator
from epsball.diagnosis.probes import chance_level
from epsball.diagnosis.reaction import Reaction
from epsball.diagnosis.sample import everywhere
from epsball.diagnosis.trace import Trace, trace
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.problem.losses import margin
from epsball.problem.objective import Model, Objective
from epsball.problem.task import Task

QUERIES, DRAWS = 300, 10
"""Queries of the black-box control, and random points of each kind."""
DOWN = 0.25
"""The share of the loss's total variation that may be decrease."""
SOME = 0.1
"""The share of examples that iterated attacks have to break before single steps are compared with them."""
REFERENCE = PGD()
"""Takes the place of iterated attacks where none is among the attacks."""


@dataclass(eq=False)
class Controls:
    """The attacks of one diagnosis on the rows of `task`, all classified correctly; model calls are counted here.

    `differentiable` says whether the model has gradients at all; control attacks adapt to the model as the `reaction`
    says, like the attacks themselves.
    """

    model: Model
    task: Task
    eot: int
    batch_size: int
    attacks: Sequence[tuple[str, Attack]]
    differentiable: bool
    reaction: Reaction
    forwards: int = field(default=0, init=False)
    backwards: int = field(default=0, init=False)
    traces: dict[str, Trace] = field(default_factory=dict, init=False)

    def broken_by(self, attack: Attack, rows: Bool[Tensor, " n"], task: Task | None = None) -> Bool[Tensor, " n"]:
        """Which of `rows` an attack breaks, with all its jobs; on `task`, the rows in another ball, if it is given."""
        broken, index = torch.zeros_like(rows), rows.nonzero().squeeze(1)
        attack = self.reaction.tempered(attack)
        if not len(index) or (attack.needs == "grad" and not self.differentiable):
            return broken
        with Objective(self.model, attack.loss, needs=attack.needs, eot=self.eot) as objective:
            rows_task = (task or self.task).rows(index)
            outcome = queue.run(attack, objective, rows_task, QueueOptions(batch_size=self.batch_size))
            self._count(objective)
        broken[index] = outcome.fooled.to(broken.device)
        return broken

    def traced(self, attack: Attack, rows: Bool[Tensor, " n"]) -> Trace:
        """The trace of an attack on `rows`, in the shape of all rows: the others have no loss and are not broken."""
        index, attack = rows.nonzero().squeeze(1), self.reaction.tempered(attack)
        with Objective(self.model, attack.loss, needs=attack.needs, eot=self.eot) as objective:
            part = trace(attack, objective, self.task.rows(index))
            self._count(objective)
        loss = part.loss.new_full((len(part.loss), len(rows)), torch.nan)
        x_adv, broken = self.task.x.clone(), torch.zeros_like(rows)
        loss[:, index], x_adv[index], broken[index] = part.loss, part.x_adv, part.broken
        return Trace(loss, x_adv, broken)

    def indicators(self, broken_without_gradients: Tensor, labelled: Tensor) -> tuple[Indicator, ...]:
        """All indicators that compare attacks.

        `broken_without_gradients` (n,) are rows that an evaluation broke without gradients or by a transfer, `labelled`
        (classes,) says which classes are some example's label.
        """
        n = len(self.task.x)
        everyone = torch.ones(n, dtype=torch.bool, device=self.task.x.device)
        no_one = ~everyone
        iterated, robust = no_one, everyone
        if self.differentiable:
            for name, attack in self._gradient_attacks():
                self.traces[name] = found = self.traced(attack, everyone if attack.max_steps == 1 else ~iterated)
                robust = robust & ~found.broken
                iterated = iterated if attack.max_steps == 1 else iterated | found.broken
        single = self.traced(FGSM(), everyone).broken if self.differentiable else no_one
        ascent = self.traced(BIM(steps=10, step_size=0.1, loss=margin), everyone) if self.differentiable else None
        longer = self.broken_by(PGD(steps=100, step_size=0.1, loss=margin), robust)
        restarts = self.broken_by(PGD(restarts=4), robust)
        missed = robust & ~longer & ~restarts  # by gradients, also where more steps or restarts are spent
        noise = self.broken_by(UniformNoise(restarts=DRAWS), missed)
        noise |= self.broken_by(SignNoise(restarts=DRAWS), missed & ~noise)
        square = Square(steps=QUERIES)
        by_square = self.broken_by(square, missed) if square.fits(self.task.ball) else no_one
        black_box = by_square | (broken_without_gradients & missed)
        chance = chance_level(n)
        values: dict[str, float | None] = {"noise-stronger": _share(noise), "black-box-stronger": _share(black_box)}
        values["restarts-help"] = _share(restarts)
        if ascent is not None:
            values["loss-not-monotone"] = _share(ascent.backslide > DOWN)
            values["single-step-stronger"] = _share(single & ~iterated)
            values["more-steps-help"] = _share(longer)
            values["larger-eps-weaker"] = self._robust_in_larger_ball(iterated)
            if _share(iterated) >= max(SOME, chance):
                values["masked-single-step"] = _share((~single)[iterated])
        values["unbounded-fails"] = self._robust_without_bound(robust)
        found = [indicator(name, value, least=chance) for name, value in values.items()]
        return (*found, indicator("rejection-class", self._share_of_rejection_class(labelled)))

    def of_searches(self, left_robust: Bool[Tensor, " n"]) -> tuple[Indicator, ...]:
        """The indicators for attacks without gradients on a model that has none: does random search break more?

        `left_robust` (n,) are the rows that the attacks did not break. All other comparisons take gradients.
        """
        noise = self.broken_by(UniformNoise(restarts=DRAWS), left_robust)
        noise |= self.broken_by(SignNoise(restarts=DRAWS), left_robust & ~noise)
        values = {"noise-stronger": _share(noise)}
        square = Square(steps=QUERIES)
        if square.fits(self.task.ball) and not any(isinstance(attack, Square) for _, attack in self.attacks):
            values["black-box-stronger"] = _share(self.broken_by(square, left_robust))
        return tuple(indicator(name, value, least=chance_level(len(left_robust))) for name, value in values.items())

    def _count(self, objective: Objective) -> None:
        self.forwards += objective.forwards
        self.backwards += objective.backwards

    def _gradient_attacks(self) -> list[tuple[str, Attack]]:
        """The attacks with gradients, and an iterated one where there is none among them."""
        own = [(name, attack) for name, attack in self.attacks if attack.needs == "grad"]
        if all(attack.max_steps == 1 for _, attack in own):
            own.append(("pgd (reference)", REFERENCE))
        return own

    def _robust_in_larger_ball(self, broken: Bool[Tensor, " n"]) -> float:
        """The share of rows that are broken, but by none of the same iterated attacks at twice the radius."""
        larger = replace(self.task, ball=self.task.ball.with_eps(2 * self.task.ball.eps).bind(self.task.x))
        robust = broken
        for _, attack in self._gradient_attacks():
            if attack.max_steps != 1:
                robust = robust & ~self.broken_by(replace(attack, restarts=1), robust, larger)
        return _share(robust)

    def _robust_without_bound(self, robust: Bool[Tensor, " n"]) -> float | None:
        """The share of rows that stay robust in the data's whole range; not measured where a mask may be the reason."""
        if self.task.ball.mask is not None:
            return None
        unbounded = replace(self.task, ball=everywhere(self.task.ball, self.task.x).bind(self.task.x))
        return _share(robust & ~self.broken_by(BIM(steps=40, step_size=0.05), robust, unbounded))

    def _share_of_rejection_class(self, labelled: Bool[Tensor, " classes"]) -> float:
        """Of the points where attacks ended and are misclassified, the share in the largest class without a label."""
        if bool(labelled.all()) or int(labelled.sum()) < 2:
            return 0.0
        counts = torch.zeros(len(labelled), dtype=torch.long, device=labelled.device)
        with Objective(self.model, margin, needs="logits", eot=self.eot) as objective:
            for found in self.traces.values():
                predicted = objective.forward(found.x_adv).argmax(1)
                counts += predicted[predicted != self.task.y].bincount(minlength=len(labelled))
            self.forwards += objective.forwards
        return float(counts[~labelled].max() / counts.sum()) if int(counts.sum()) > 2 else 0.0


def _share(rows: Bool[Tensor, " m"] | Float[Tensor, " m"]) -> float:
    return float(rows.double().mean())
