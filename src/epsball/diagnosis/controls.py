"""What attacks find of each other: the traces of those with gradients, held against controls that should find less.

Only examples that stand are tried again, so that a model that falls costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.bim import BIM
from epsball.attacks.fgsm import FGSM
from epsball.attacks.pgd import PGD
from epsball.attacks.sign_noise import SignNoise
from epsball.attacks.square import Square
from epsball.attacks.uniform_noise import UniformNoise
from epsball.diagnosis.probes import everywhere, few
from epsball.diagnosis.reaction import Reaction
from epsball.diagnosis.record import Indicator, Name, indicator
from epsball.diagnosis.trace import Trace, trace
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.problem.losses import margin
from epsball.problem.objective import Model, Objective
from epsball.problem.task import Task

QUERIES, DRAWS = 300, 10
"""Queries of the black-box control, and random points of each kind."""
DOWN = 0.25
"""The share of its way that a climb may lead down."""
SOME = 0.1
"""The share of examples that has to fall before it is asked what single steps miss of them."""
REFERENCE = PGD()
"""Takes the place of iterated attacks where none is asked for."""


@dataclass(eq=False)
class Controls:
    """The attacks of one diagnosis on the rows of `task`, all classified correctly; passes are counted here."""

    model: Model
    task: Task
    classes: int
    eot: int
    batch_size: int
    attacks: Sequence[tuple[str, Attack]]
    through: bool
    """Whether the model has gradients at all."""
    reaction: Reaction = Reaction()  # noqa: RUF009 - it is frozen
    """What is done about the model's logits: controls do as the attacks do."""
    forwards: int = 0
    backwards: int = 0
    traces: dict[str, Trace] = field(default_factory=dict)

    def fallen(self, attack: Attack, rows: Bool[Tensor, " n"], *, eps: Task | None = None) -> Bool[Tensor, " n"]:
        """Which of `rows` all jobs of an attack fool, on the task `eps` where it is another one."""
        found, at = torch.zeros_like(rows), rows.nonzero().squeeze(1)
        attack = self.reaction.tempered(attack)
        if not len(at) or (attack.needs == "grad" and not self.through):
            return found
        with Objective(self.model, attack.loss, needs=attack.needs, careful=True, eot=self.eot) as objective:
            outcome = queue.run(
                attack, objective, (eps or self.task).rows(at), QueueOptions(batch_size=self.batch_size)
            )
            self.forwards += objective.forwards
            self.backwards += objective.backwards
        found[at] = outcome.fooled.to(found.device)
        return found

    def traced(self, attack: Attack, rows: Bool[Tensor, " n"]) -> Trace:
        """The trace of an attack on `rows`, widened to all: the others have no path, and end where they begin."""
        at, attack = rows.nonzero().squeeze(1), self.reaction.tempered(attack)
        with Objective(self.model, attack.loss, needs=attack.needs, careful=True, eot=self.eot) as objective:
            part = trace(attack, objective, self.task.rows(at))
            self.forwards += objective.forwards
            self.backwards += objective.backwards
        passes, n = len(part.loss), len(rows)
        wide = [part.loss.new_full((passes, n), torch.nan) for _ in range(3)]
        for whole, seen in zip(wide, (part.loss, part.size, part.distance), strict=True):
            whole[:, at] = seen
        fooled, fell = rows.new_zeros(passes, n), torch.zeros_like(rows)
        x_adv = self.task.x.clone()
        fooled[:, at], fell[at], x_adv[at] = part.fooled, part.fell, part.x_adv
        return Trace(wide[0], wide[1], wide[2], fooled, x_adv, fell)

    def measured(self, looked: Bool[Tensor, " n"], known: Bool[Tensor, " n"]) -> tuple[Indicator, ...]:
        """All indicators that compare attacks.

        `looked` are rows that the evaluation fooled without gradients or by a transfer, `known` (classes,) says which
        classes are some example's label.
        """
        n = len(self.task.x)
        everyone = torch.ones(n, dtype=torch.bool, device=self.task.x.device)
        none = ~everyone

        def share(rows: Bool[Tensor, " n"]) -> float:
            return float(rows.double().mean())

        def told(name: Name, value: float | None) -> Indicator:
            return indicator(name, value, least=few(n))

        iterated, stood = none, everyone
        if self.through:
            for name, attack in self.listed():
                self.traces[name] = found = self.traced(attack, everyone if attack.max_steps == 1 else ~iterated)
                stood = stood & ~found.fell
                iterated = iterated if attack.max_steps == 1 else iterated | found.fell
        single = self.traced(FGSM(), everyone).fell if self.through else none
        path = self.traced(BIM(steps=10, step_size=0.1, loss=margin), everyone) if self.through else None
        longer = self.fallen(PGD(steps=100, step_size=0.1, loss=margin), stood)
        restarts = self.fallen(PGD(restarts=4), stood)
        missed = stood & ~longer & ~restarts  # by all that follows gradients, stronger ones than were asked for too
        noise = self.fallen(UniformNoise(restarts=DRAWS), missed)
        noise |= self.fallen(SignNoise(restarts=DRAWS), missed & ~noise)
        square = Square(steps=QUERIES)
        has_square = square.fits(self.task.ball)
        black = (self.fallen(square, missed) if has_square else none) | (looked & missed)
        enough = share(iterated) >= max(SOME, few(n))
        return (
            told("loss-not-monotone", None if path is None else share(path.backslide > DOWN)),
            told("single-step-stronger", share(single & ~iterated) if self.through else None),
            told("masked-single-step", float((~single)[iterated].double().mean()) if enough else None),
            told("noise-stronger", share(noise)),
            told("black-box-stronger", share(black)),
            told("more-steps-help", share(longer) if self.through else None),
            told("restarts-help", share(restarts) if self.through else None),
            told("larger-eps-weaker", self.weaker(iterated) if self.through else None),
            told("unbounded-fails", self.unbounded(stood)),
            indicator("rejection-class", self.rejected(known)),
        )

    def listed(self) -> list[tuple[str, Attack]]:
        """The attacks with gradients, and an iterated one where there is none among them."""
        own = [(name, attack) for name, attack in self.attacks if attack.needs == "grad"]
        if all(attack.max_steps == 1 for _, attack in own):
            own.append(("pgd (reference)", REFERENCE))
        return own

    def weaker(self, fell: Bool[Tensor, " n"]) -> float:
        """The share of rows that fell and stand the same iterated attacks in a ball of twice the radius."""
        eps = self.task.ball.eps
        larger = replace(self.task, ball=self.task.ball.with_eps(2 * eps).bind(self.task.x))
        left = fell
        for _, attack in self.listed():
            if attack.max_steps != 1:
                left = left & ~self.fallen(replace(attack, restarts=1), left, eps=larger)
        return float(left.double().mean())

    def unbounded(self, stood: Bool[Tensor, " n"]) -> float | None:
        """The share of rows that stand where all of the data's range is allowed; with a mask it may be right to."""
        if self.task.ball.mask is not None:
            return None
        largest = replace(self.task, ball=everywhere(self.task.ball, self.task.x).bind(self.task.x))
        climb = BIM(steps=40, step_size=0.05)
        return float((stood & ~self.fallen(climb, stood, eps=largest)).double().mean())

    def rejected(self, known: Bool[Tensor, " classes"]) -> float | None:
        """The share of the points where attacks ended, wrongly classified, that one class without a label takes."""
        if not bool((~known).any()) or int(known.sum()) < 2:
            return 0.0
        ends: list[Int64[Tensor, " m"]] = []
        with ExitStack() as stack:
            objective = stack.enter_context(Objective(self.model, margin, needs="logits", eot=self.eot))
            for found in self.traces.values():
                ends.append(self._ends(objective, found.x_adv))
            self.forwards += objective.forwards
        counts = torch.cat(ends).bincount(minlength=self.classes) if ends else torch.zeros(self.classes)
        return float(counts[~known].max() / counts.sum()) if int(counts.sum()) > 2 else 0.0

    def _ends(self, objective: Objective, z: Float[Tensor, "n *shape"]) -> Int64[Tensor, " m"]:
        predicted = objective.forward(z).argmax(1)
        return predicted[predicted != self.task.y]
