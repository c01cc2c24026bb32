"""The exact optimum of an attack on a linear classifier, and the exact radius at which its prediction changes.

The margin of the label over one rival is linear in the input. Its minimum over ball, box and mask is the margin at x
less `max_gain` of the difference of their weights; the minimum over all rivals is the worst margin, exactly. Without a
box that gain is eps times the dual norm (Goodfellow et al. 2015, section 5: eps * |w|_1).

Margins are computed in double precision with a bound on their rounding errors. Where a margin is within its bound of
zero it is computed again in whole numbers, so that no sign depends on rounding: what is called robust is proved, and
what is not is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.shapes import blocks
from epsball.linear.arguments import checked_case


@dataclass(frozen=True, eq=False)
class Optimum:
    """The worst input of each example in a ball; tensors are on x's device, classes are indices into `classes`.

    Inputs have x's dtype, margins and losses double precision. What is exact is exact of the real-valued linear model
    with these weights, and of x, eps and box at their values (the box as x's dtype holds it): the signs of the margins,
    `robust`, and the predictions at x and at x_adv as stored, which is in the real ball. A program that evaluates the
    model in floating point rounds its scores, in float32 by about 1e-7 of the sum of |w_j x_j|: it may predict
    otherwise where the margin is smaller than that.

    Untargeted, the margin is the least difference between the scores of y and of another class. Targeted, it is the
    score of the opponent (y; where y is the target, the strongest other class at x) less that of the target.
    """

    x: Float[Tensor, "n *shape"]
    x_adv: Float[Tensor, "n *shape"]  # the worst input, in ball, box and mask
    margin: Float[Tensor, " n"]  # the worst margin; its sign is exact
    margin_error: Float[Tensor, " n"]  # the real number is at most so far from `margin`
    clean_margin: Float[Tensor, " n"]  # the margin at x; its sign is exact
    gain: Float[Tensor, " n"]  # clean_margin - margin >= 0
    y: Int64[Tensor, " n"]
    rival: Int64[Tensor, " n"]  # the class that x_adv climbs towards: the target, if there is one
    prediction_before: Int64[Tensor, " n"]
    prediction_after: Int64[Tensor, " n"]
    loss_before: Float[Tensor, " n"]  # -log softmax of y, or of the target, in nats
    loss_after: Float[Tensor, " n"]
    targeted: bool
    classes: np.ndarray

    @property
    def delta(self) -> Float[Tensor, "n *shape"]:
        """x_adv - x: the optimal perturbation."""
        return self.x_adv - self.x

    @property
    def fooled(self) -> Bool[Tensor, " n"]:
        """Whether the prediction at x_adv, as stored, is not y; targeted: is the target."""
        return self.prediction_after == self.rival if self.targeted else self.prediction_after != self.y

    @property
    def reached(self) -> Bool[Tensor, " n"]:
        """Whether the prediction at x_adv is the class that it climbs towards."""
        return self.prediction_after == self.rival

    @property
    def robust(self) -> Bool[Tensor, " n"]:
        """Whether every real input in ball, box and mask is predicted as y: a proof, both ways. Untargeted only."""
        if self.targeted:
            raise BadInput("`target` must be None to prove robustness, got a class; leave it out, or read `fooled`")
        return (self.margin > 0) | ((self.margin == 0) & (self.y < self.rival))

    @property
    def accuracy(self) -> float:
        """Share of examples whose prediction at x is y."""
        return (self.prediction_before == self.y).double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """Share of examples predicted as y at every input in ball, box and mask. Untargeted only."""
        return self.robust.double().mean().item()


def optimum(weight: Any, bias: Any, x: Any, y: Any, ball: Ball | str, target: Any = None) -> Optimum:
    """The input in ball, box and mask that minimises the margin of a linear classifier, for each example. Exact.

    See `Optimum` for what is exact. x_adv is the minimiser, rounded to x's dtype on the side of x, so that it is in the
    ball; a margin that is negative by less than this rounding may be one that x_adv does not reach.

    Untargeted: the minimum over other classes j of (w_y - w_j).x + b_y - b_j - max_gain(w_j - w_y), attained at
    x_adv = argmax(w_j - w_y). Targeted: the maximum of the score of the target less that of its opponent (y; where y is
    the target, the strongest other class at x). With two classes, target=1 maximises the score and target=0 minimises
    it, whatever y is. With more classes a third one may still have the greatest score there; `reached` says whether the
    prediction is the target.

    `weight` is (d,) or (1, d) for one logit, class 1 where w.x + b > 0, or (classes, d); with `shape` in the place of
    d too. `bias` is a number, (classes,), or None for zero. Instead, `weight` may be a fitted scikit-learn classifier
    or pipeline or an affine torch module, see `affine` (steps that are folded are rounded to double precision); then
    `bias` is None, and `y` and `target` are labels of the model (`classes_`). `x` (n, *shape) holds the examples; a
    single one may come without its first dimension, as (d,). Tensors, arrays, lists and data frames are taken, whole
    numbers as they are (uint8 images are 0..255, and eps is in their units); x's dtype, if floating point, and device
    are followed. `y` is (n,) or (n, 1), class indices, for one logit also -1 and 1, or one class for all; `target` is
    None, or as `y`. `ball` may be written as on the command line, "linf:8/255", without a box.

    Predictions are the first argmax. Beside the result, memory is some (n, classes) and a few blocks of some megabytes.
    Raises `BadInput` for shapes that do not fit or fit in two ways, numbers that are not real, dense and finite,
    columns in another order than the model's, labels that are no class, x outside the box and an unbounded ball.

    >>> from epsball import Linf
    >>> x = torch.tensor([[-2.0, 2, 1, -3, 1]], dtype=torch.float64)
    >>> best = optimum([3.0, 2, -1, 1, 4], None, x, 0, Linf(eps=0.3))  # or x[0]: Cross Validated 332997
    >>> best.delta, best.gain.item()
    (tensor([[ 0.3000,  0.3000, -0.3000,  0.3000,  0.3000]], dtype=torch.float64), 3.3)
    >>> 1 - torch.cat([best.loss_before, best.loss_after]).neg().exp()  # the probability of class 1
    tensor([0.1192, 0.7858], dtype=torch.float64)
    """
    case = checked_case(weight, bias, x, y, ball, target)
    before = case.scores(case.x)
    x_adv, rival = torch.empty_like(case.x), torch.empty_like(case.y)
    margin, margin_error, clean = (before.value.new_empty(len(rival)) for _ in range(3))
    for own, rivals, rows in case.groups(case.opponents(before)):
        gaps = case.clean_margins(before, own, rivals, rows)
        worst = case.settled(gaps - case.gains(own, rivals, rows), own, rivals, rows, attacked=True)
        margin[rows], place = worst.value.min(1)
        below, above = (worst.value - worst.error).amin(1), (worst.value + worst.error).amin(1)
        margin_error[rows] = torch.maximum(margin[rows] - below, above - margin[rows])
        clean[rows] = case.settled(gaps, own, rivals, rows, attacked=False).value.amin(1)
        rival[rows] = rivals[place]
        x_adv[rows] = case.worst(case.directions(own, rival[rows]), rows)
    after = case.scores(x_adv)
    goal = case.y if case.target is None else case.target
    return Optimum(
        x=case.x,
        x_adv=x_adv,
        margin=margin,
        margin_error=margin_error,
        clean_margin=clean,
        gain=(clean - margin).clamp_min(0),
        y=case.y,
        rival=rival,
        prediction_before=case.predictions(case.x, before),
        prediction_after=case.predictions(x_adv, after),
        loss_before=F.cross_entropy(before.value, goal, reduction="none"),
        loss_after=F.cross_entropy(after.value, goal, reduction="none"),
        targeted=case.target is not None,
        classes=case.classes,
    )


def minimal_eps(weight: Any, bias: Any, x: Any, y: Any, ball: Ball | str, target: Any = None) -> Float[Tensor, " n"]:
    """The distance to the decision boundary: the smallest radius that changes a prediction, (n,) float64 in units of x.

    An infimum: for any greater radius some input in ball, box and mask is not predicted as y (in L0, whose radius is a
    count, for this radius too). It is 0 where x is misclassified without attack, and `inf` where box and mask allow no
    change. `ball` gives norm, box and mask; its eps is not used. With a target: the smallest radius at which the score
    of the target exceeds that of its opponent (see `optimum`). With three classes or more a third one may still have
    the greatest score, so that the target is predicted from a greater radius on.

    Without a box it is clean margin / dual norm, the least over the rivals. With a box each rival's radius is found in
    closed form, on the piece between two breakpoints that contains it, in double precision whatever x's dtype. Whether
    it is 0 is exact; else it is a rounded number, its relative error a few roundings of the sum of |w_j x_j| over the
    margin. For a proof at a radius ask `optimum(...).robust`.

    The arguments are those of `optimum`. Raises `BadInput` as it does, and where `eps` is one per feature.

    >>> from epsball import L2, Linf
    >>> x = torch.tensor([[-2.0, 2, 1, -3, 1]], dtype=torch.float64)
    >>> w = [3.0, 2, -1, 1, 4]
    >>> minimal_eps(w, None, x, [0], Linf(eps=0)), minimal_eps(w, None, x, [0], Linf(eps=0, hi=2))
    (tensor([0.1818], dtype=torch.float64), tensor([0.2222], dtype=torch.float64))
    """
    if isinstance(ball, Ball) and isinstance(ball.eps, Tensor) and ball.eps.ndim > 1:
        raise BadInput(
            f"`eps` must not be one per feature where one radius is wanted, got shape {tuple(ball.eps.shape)}; "
            "divide x, lo and hi by it, multiply the weights by it, and the result is a factor of eps"
        )
    case = checked_case(weight, bias, x, y, ball, target)
    before = case.scores(case.x)
    radius = before.value.new_empty(len(before.value))
    for own, rivals, rows in case.groups(case.opponents(before)):
        part, x_part = case.ball.rows(rows), case.doubles(rows)
        gaps = case.clean_margins(before, own, rivals, rows)
        gaps = case.settled(gaps, own, rivals, rows, attacked=False).value
        few_rivals = blocks(len(rivals), case.weight.shape[1], rivals.device)
        dual = torch.cat([case.ball.dual(case.directions(own, rivals[few])) for few in few_rivals])
        # The radius without box and mask is a lower bound of each rival's: most rivals need no search.
        lower_bound = torch.where(gaps > 0, gaps / dual, 0)
        best = gaps.new_full((len(rows),), torch.inf)
        while True:
            bound, place = lower_bound.min(1)
            (open_rows,) = (bound < best).nonzero(as_tuple=True)
            if not len(open_rows):
                break
            place = place[open_rows]
            rival = rivals[place]
            direction = case.directions(own, rival)
            found = part.rows(open_rows).min_eps(
                gaps[open_rows, place], direction, x_part[open_rows], strict=own < rival
            )
            best[open_rows] = torch.minimum(best[open_rows], found)
            lower_bound[open_rows, place] = torch.inf
        radius[rows] = best
    return radius
