"""Shallow models under the fast gradient sign method: softmax regression, and radial basis functions.

Goodfellow, Shlens and Szegedy (ICLR 2015), sections 4 and 7, eps = .25 on MNIST: softmax regression errs on 99.9 % of
its FGSM examples, with a mean confidence of 79.3 %; a shallow RBF network on 55.4 %, with a confidence of 1.2 %, as
its probabilities fall to nothing away from the classes' centres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.problem.task import Task
from epsball.reproduce.nets import PAIR, PLAIN, Net, Nets, Readout, Recipe, probabilities_of
from epsball.reproduce.notes import about_conventions, about_stand_in, about_training
from epsball.reproduce.outcome import EPS, mean_outcome, percent
from epsball.reproduce.reproduction import Line, Reproduction, Strip
from epsball.reproduce.strips import first_of_each, predicted, tiles
from epsball.training.plain import Plain
from epsball.training.training_objective import TrainingObjective, TrainingStep

SOFTMAX, RBF = "softmax regression", "shallow RBF network"
PAPER = {SOFTMAX: (99.9, 79.3), RBF: (55.4, 1.2), PLAIN: (89.4, 97.6)}
"""Error on the model's own FGSM examples at eps .25, mean confidence in those mistakes, in percent."""
PRECISION = 0.01
"""What every pixel's squared distance is weighted with before training."""


class RadialBasis(nn.Module):
    """One Gaussian unit per class: p(class | x) = exp(-sum_i b_i (x_i - c_i)^2), b > 0; the logits of these p.

    Section 7's unit with a diagonal matrix; the paper does not say of which form its own is. `centres` (classes, d)
    are where the training starts from. An input far from all centres is of no class: each p is near 0.
    """

    def __init__(self, centres: Float[Tensor, "classes d"]) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres.clone())
        self.log_precision = nn.Parameter(torch.full_like(centres, math.log(PRECISION)))

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        flat, weight = x.flatten(1), self.log_precision.exp()
        crossed = F.linear(flat, weight * self.centres, -0.5 * (weight * self.centres.square()).sum(1))
        # At a centre itself p is 1 and its logit infinite: it is kept at 1 - 1e-6.
        log_p = (2 * crossed - F.linear(flat.square(), weight)).clamp_max(-1e-6)
        return log_p - torch.log(-torch.expm1(log_p))


def each_class(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """The sum over classes of the binary cross-entropies of "is it this class?"."""
    return task.signed(_binary(logits, task.goal))


def _binary(logits: Float[Tensor, "n classes"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    truth = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1)


@dataclass(frozen=True, kw_only=True)
class EachClass(TrainingObjective):
    """The mean of `each_class` at the examples as they are. Logs "loss"."""

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *shape"],
        y: Int64[Tensor, " n"],
        ball: Ball | None,
        step: TrainingStep,
    ) -> dict[str, Tensor | float]:
        loss = _binary(model(x), y).mean()
        loss.backward()
        return {"loss": loss.detach()}


def _regression(nets: Nets, seed: int) -> nn.Module:
    """Zero weights: the minimum is the only one, and the seed is that of the data's order."""
    train = nets.source.train
    linear = nn.Linear(math.prod(train.shape), train.classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def _radial(nets: Nets, seed: int) -> nn.Module:
    """The centres start at the classes' means."""
    train = nets.source.train
    flat = train.x.flatten(1)
    parts = [flat[train.y == label] for label in range(train.classes)]
    return RadialBasis(torch.stack([(part if len(part) else flat).mean(0) for part in parts]))


# The RBF network's rate: of .002, .01, .03 the one with the least loss on MNIST's training images after 7 epochs.
RECIPES: dict[str, Recipe] = {
    SOFTMAX: Recipe(objective=Plain(), build=_regression),
    RBF: Recipe(objective=EachClass(), lr=0.03, build=_radial, readout=Readout("sigmoid", each_class, torch.sigmoid)),
}


def shallow(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction:
    """Train softmax regressions and RBF networks, and count their errors on FGSM examples, beside plain maxout's.

    Models of `nets` that are trained already are used again; each is trained by the loss that its attacker climbs.
    `on_progress` is called with the steps done, the steps in total, and the name of the network in training.
    Raises `BadInput`.
    """
    shallow_nets, deep = nets.trained(RECIPES, on_progress), nets.trained({PLAIN: PAIR[PLAIN]}, on_progress)
    groups = [(*shallows, *plain) for shallows, plain in zip(shallow_nets, deep, strict=True)]
    test, lines, confidences = nets.source.test, [], []
    for at, key in enumerate((*RECIPES, PLAIN)):
        own = [group[at] for group in groups]
        clean = mean_outcome([nets.outcome(net, test.x) for net in own])
        fgsm = mean_outcome([nets.outcome(net, nets.fgsm(net)) for net in own])
        ours = tuple(map(percent, (clean.error, fgsm.error, fgsm.confidence)))
        name = f"maxout, {PLAIN}" if key == PLAIN else key
        lines.append(Line(name, ours, (None, *PAPER[key]) if nets.eps == EPS else None))
        confidences.append((name, sum(_confidence(nets, net) for net in own) / len(own)))
    config = nets.config()
    notes = (
        *about_stand_in(config),
        about_conventions(config),
        f"{RBF}: p(class) = exp(-sum b (x - c)^2), one unit a class, c and b > 0 per pixel, trained by the binary "
        "cross-entropies of the classes; its confidence is that p, and the p of the classes need not sum to 1. The "
        "paper does not say of which form its b is, nor how it was trained.",
        f"Mean confidence on all clean test images: {', '.join(f'{name} {share:.1%}' for name, share in confidences)}.",
        "The shallow models are trained for as many epochs as the network, in steps of as many images; the RBF network "
        f"with a learning rate up to {RECIPES[RBF].lr:g}: of .002, .01 and .03 the one with the least training loss on "
        "MNIST.",
        about_training(config),
    )
    title = f"Shallow models on their own FGSM examples, eps {nets.eps:g}: error in %"
    columns = ("clean", "FGSM", "confidence")
    strips = _strips(nets, groups[0])
    return Reproduction(title=title, columns=columns, lines=tuple(lines), notes=notes, strips=strips, config=config)


def _confidence(nets: Nets, net: Net) -> float:
    """The mean probability of the predicted class, over all test examples."""
    shares = probabilities_of(net, nets.source.test.x)
    return shares.amax(1).mean().item()


def _strips(nets: Nets, group: tuple[Net, ...]) -> tuple[Strip, ...]:
    """The weights and the centres of the classes, and for each model the first example of each class, perturbed."""
    test, shape = nets.source.test, nets.source.test.shape
    softmax, radial = group[0].module, group[1].module
    weights = next(part for part in softmax.modules() if isinstance(part, nn.Linear)).weight
    centres = next(part for part in radial.modules() if isinstance(part, RadialBasis)).centres
    most, low, high = weights.abs().max().item() or 1.0, centres.min().item(), centres.max().item()
    strips = [
        Strip(f"weights of {SOFTMAX}", shape, -most, most, tiles(weights, map(str, range(len(weights)))), signed=True),
        Strip(f"centres of the {RBF}", shape, low, high, tiles(centres, map(str, range(len(centres))))),
    ]
    rows, (low, high) = first_of_each(test), (test.lo - nets.eps, test.hi + nets.eps)
    for net in group:
        what = f"FGSM on maxout, {PLAIN}" if net.name == PLAIN else f"FGSM on the {net.name}"
        strips.append(Strip(what, shape, low, high, predicted(net, nets.fgsm(net)[rows], test.y[rows])))
    return tuple(strips)
