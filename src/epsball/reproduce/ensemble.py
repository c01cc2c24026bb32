"""Do many networks together resist? An ensemble of maxout networks, attacked as a whole and through one member.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 9: twelve maxout networks, whose mean probabilities are the answer,
err on 91.1 % of FGSM examples at eps = .25 that are made on all of them, and still on 87.9 % of those made on one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.reproduce.nets import PAIR, PLAIN, Net, Nets
from epsball.reproduce.notes import about_conventions, about_stand_in, about_training
from epsball.reproduce.outcome import EPS, mean_outcome, percent
from epsball.reproduce.reproduction import Line, Reproduction, Strip
from epsball.reproduce.strips import first_of_each, predicted

WHOLE, ONE, ALONE = "made on the ensemble", "made on one member", "one member alone, on its own examples"
PAPER = {WHOLE: (None, 91.1), ONE: (None, 87.9), ALONE: (None, 89.4)}
"""Error at eps .25 in percent."""


class Ensemble(nn.Module):
    """The mean of the members' probabilities, by the softmax of logits that are the logarithms of their sums."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        logs = torch.stack([F.log_softmax(member(x), 1) for member in self.members])
        return logs.logsumexp(0)


def ensemble(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction:
    """Train as many plain maxout networks as the budget says, and attack their mean.

    The first members are the networks of the budget's seeds. `on_progress` is called with the steps done, the steps in
    total, and the name of the network in training. Raises `BadInput`.
    """
    count = nets.budget.of("members")
    members = [group[0] for group in nets.trained({PLAIN: PAIR[PLAIN]}, on_progress, seeds=range(count))]
    together = Net("ensemble", 0, Ensemble([net.module for net in members]).eval(), sum(net.seconds for net in members))
    test, on_whole, on_each = nets.source.test, nets.fgsm(together), [nets.fgsm(net) for net in members]
    clean = nets.outcome(together, test.x)
    found = {
        WHOLE: (clean, nets.outcome(together, on_whole)),
        ONE: (clean, mean_outcome([nets.outcome(together, x) for x in on_each])),
        ALONE: (
            mean_outcome([nets.outcome(net, test.x) for net in members]),
            mean_outcome([nets.outcome(net, x) for net, x in zip(members, on_each, strict=True)]),
        ),
    }
    lines = tuple(
        Line(
            label,
            (percent(unperturbed.error), percent(attacked.error), percent(attacked.confidence)),
            (*PAPER[label], None) if nets.eps == EPS else None,
        )
        for label, (unperturbed, attacked) in found.items()
    )
    config = nets.config() | {"members": count, "seeds": [0]}  # one ensemble, whose members' seeds are 0 to count - 1
    notes = (
        *about_stand_in(config),
        about_conventions(config),
        f"Ours: {count} members of other first weights and orders of the data; the paper's has 12. The answer is the "
        f"class of the largest mean probability. {ONE}: the mean over the members.",
        about_training(config),
    )
    rows, (low, high) = first_of_each(test), (test.lo - nets.eps, test.hi + nets.eps)
    strips = tuple(
        Strip(label, test.shape, low, high, predicted(together, x_adv[rows], test.y[rows]))
        for label, x_adv in ((WHOLE, on_whole), (ONE, on_each[0]))
    )
    return Reproduction(
        title=f"An ensemble of {count} maxout networks, FGSM of eps {nets.eps:g}: error in %",
        columns=("clean", "FGSM", "confidence"),
        lines=lines,
        notes=notes,
        strips=strips,
        config=config,
    )
