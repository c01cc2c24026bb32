"""How a protocol adapts to what the probes found, before it begins: temperature, averaging, random search.

`react` is a pure function from a `Probe` to a `Reaction`, which says what to change and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack, LossAttack
from epsball.attacks.registry import parse
from epsball.attacks.square import Square
from epsball.balls.ball import Ball
from epsball.common.checks import check_at_least
from epsball.common.record import Record
from epsball.diagnosis.probes import Probe
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.task import Task

A = TypeVar("A")

MASKED = ("zero-gradients", "vanishing-gradients", "shattered-gradients")
DRAWS = 20
"""Passes that are averaged for a stochastic model."""
SEARCH = "square:steps=5000,restarts=2"
"""The search that is added for a model whose gradients are masked; it does not stop early."""


@dataclass(frozen=True)
class Tempered:
    """A loss of the logits divided by a `temperature` >= 1, in double precision: large logits do not saturate it.

    The predictions, and so the successes, are those of the logits themselves.

    >>> from epsball.balls.linf import Linf
    >>> from epsball.problem.task import task_of
    >>> task = task_of(torch.zeros(1, 1), 0, Linf(eps=1.0))
    >>> logits = torch.tensor([[2000.0, 0.0]])
    >>> cross_entropy(logits, task).abs(), Tempered(cross_entropy, 1000.0)(logits, task)
    (tensor([0.]), tensor([0.1269]))
    """

    loss: Loss
    temperature: float

    def __post_init__(self) -> None:
        check_at_least("temperature", self.temperature, 1)

    def __call__(self, logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, "n *k"]:
        return self.loss(logits.double() / self.temperature, task).to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Reaction(Record):
    """What to change in a protocol; by default nothing, and `because` is empty.

    `temperature` > 1 divides the logits in cross-entropy, `eot` forward passes are averaged, `search` adds random
    search without early stopping. `because` has a sentence for each change.
    """

    temperature: float = 1.0
    eot: int = 1
    search: bool = False
    because: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What was changed, in a line; empty where nothing was."""
        return "; ".join(self.because)

    def applied(self, attacks: Sequence[tuple[str, A]]) -> list[tuple[str, A | Attack]]:
        """The named attacks of a protocol as they are to be run; `eot` is the evaluation's own argument.

        A callable is not changed.
        """
        changed = [(name, self.tempered(attack)) for name, attack in attacks]
        return [*changed, (SEARCH, parse(SEARCH))] if self.search else [*changed]

    @property
    def mitigated(self) -> tuple[str, ...]:
        """The indicators that it adapts the attacks to, so that they no longer make the evaluation unreliable."""
        return ("saturated-logits",) * (self.temperature > 1) + ("stochastic-forward",) * (self.eot > 1)

    def tempered(self, attack: A) -> A | Attack:
        """The attack; if there is a temperature, with the cross-entropy of the logits divided by it."""
        if self.temperature == 1 or not isinstance(attack, LossAttack) or attack.loss is not cross_entropy:
            return attack
        return replace(attack, loss=Tempered(attack.loss, self.temperature))


def react(probe: Probe, ball: Ball, eot: int = 1) -> Reaction:
    """How to adapt to what the probes found, in such balls, where `eot` forward passes are averaged already.

    >>> from epsball.balls.linf import Linf
    >>> react(Probe((), 1.0, True, 0, 0), Linf(eps=0.1)) == Reaction()
    True
    """
    failed, because = probe.failed_names, []
    temperature, draws, search = 1.0, eot, False
    if "saturated-logits" in failed:
        temperature = probe.temperature
        because.append(
            f"the logits saturate: attacks maximise the cross-entropy of the logits divided by {temperature:.3g}, in "
            "double precision"
        )
    if "stochastic-forward" in failed and eot == 1:
        draws = DRAWS
        because.append(f"the model is stochastic: the mean of {DRAWS} forward passes is attacked and evaluated")
    masked = [name for name in MASKED if name in failed]
    if masked and "stochastic-forward" not in failed and Square.fits(ball):
        search = True
        because.append(f"{', '.join(masked)}: {SEARCH} is added, random search without early stopping")
    return Reaction(temperature, draws, search, tuple(because))
