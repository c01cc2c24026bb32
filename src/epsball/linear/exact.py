"""The exact optimum of an attack on a linear classifier, and the exact radius at which its prediction changes.

The margin of the label over one rival is linear in the input. Its minimum over ball, box and mask is the margin at x
less `max_gain` of the difference of their weights; the minimum over all rivals is the worst margin, exactly. Without a
box that gain is eps times the dual norm (Goodfellow et al. 2015, section 5: eps * |w|_1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.checks import check_type
from epsball.common.errors import BadInput
from epsball.common.shapes import BLOCK, blocks, flat


@dataclass(frozen=True, eq=False)
class Optimum:
    """The worst input of each example in a ball; tensors are on x's device, classes are indices into `classes`.

    Inputs have x's dtype, margins and losses too, or float32 where that is wider.

    Untargeted, the margin is the least difference between the scores of y and of another class. Targeted, it is the
    score of the opponent (y; where y is the target, the strongest other class at x) less that of the target.
    """

    x: Float[Tensor, "n *shape"]
    x_adv: Float[Tensor, "n *shape"]  # the worst input, in ball, box and mask
    margin: Float[Tensor, " n"]  # the worst margin, exact up to rounding
    clean_margin: Float[Tensor, " n"]  # the margin at x
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
        """Whether every input in ball, box and mask is predicted as y: a certificate. Untargeted only."""
        if self.targeted:
            raise BadInput("`target` must be None to prove robustness, got a class; leave it out, or read `fooled`")
        return ((self.margin > 0) | ((self.margin == 0) & (self.y < self.rival))) & ~self.fooled

    @property
    def accuracy(self) -> float:
        """Share of examples whose prediction at x is y."""
        return (self.prediction_before == self.y).double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """Share of examples predicted as y at every input in ball, box and mask. Untargeted only."""
        return self.robust.double().mean().item()


def optimum(weight: Any, bias: Any, x: Any, y: Any, ball: Ball, target: Any = None) -> Optimum:
    """The input in ball, box and mask that minimises the margin of a linear classifier, for each example. Exact.

    Untargeted: the minimum over other classes j of (w_y - w_j).x + b_y - b_j - max_gain(w_j - w_y), attained at
    x_adv = argmax(w_j - w_y). Targeted: the maximum of the score of the target less that of its opponent (y; where y is
    the target, the strongest other class at x). With two classes, target=1 maximises the score and target=0 minimises
    it, whatever y is. With more classes a third one may still have the greatest score there; `reached` says whether the
    prediction is the target.

    `weight` is (d,) or (1, d) for one logit, class 1 where w.x + b > 0, or (classes, d); with `shape` in the place of
    d too. `bias` is a number, (classes,), or None for zero. Instead, `weight` may be a fitted scikit-learn classifier
    or pipeline or an affine torch module, see `affine`; then `bias` is None, and `y` and `target` are labels of the
    model (`classes_`). `x` (n, *shape) is a tensor, an array or a DataFrame (with an estimator) of floating point
    numbers; its dtype and device are followed, and float64 is recommended. `y` (n,) are class indices; `target` is
    None, one class for all, or (n,).

    Predictions are the first argmax. Beside the result, memory is a few blocks of some megabytes. Raises `BadInput` for
    shapes that do not fit, labels that are no class, NaN, x outside the box and an unbounded ball.

    >>> from epsball import Linf
    >>> x = torch.tensor([[-2.0, 2, 1, -3, 1]], dtype=torch.float64)
    >>> best = optimum([3.0, 2, -1, 1, 4], None, x, [0], Linf(eps=0.3))
    >>> best.delta, best.gain.item()
    (tensor([[ 0.3000,  0.3000, -0.3000,  0.3000,  0.3000]], dtype=torch.float64), 3.3)
    >>> 1 - torch.cat([best.loss_before, best.loss_after]).neg().exp()  # the probability of class 1
    tensor([0.1192, 0.7858], dtype=torch.float64)
    """
    case = _checked(weight, bias, x, y, ball, target, torch.float32)
    before = case.scores(case.x)
    x_adv = torch.empty_like(case.x)
    margin, clean = before.new_empty(len(before)), before.new_empty(len(before))
    rival = torch.empty_like(case.y)
    for own, rivals, rows in case.groups(before):
        part, x_part = case.ball.rows(rows), case.x[rows]
        gaps = before[rows, own, None] - before[rows][:, rivals]
        least = gaps.clone()
        for few in blocks(len(rivals), case.weight.shape[1], rivals.device):
            directions = case.directions(own, rivals[few])
            least[:, few] -= part.max_gains(directions, x_part.to(directions.dtype))
        place = least.argmin(1)
        margin[rows], clean[rows] = least.gather(1, place[:, None])[:, 0], gaps.amin(1)
        rival[rows] = rivals[place]
        x_adv[rows] = part.argmax(case.directions(own, rival[rows]).to(x_part.dtype), x_part)
    after, goal = case.scores(x_adv), case.y if case.target is None else case.target
    return Optimum(
        x=case.x,
        x_adv=x_adv,
        margin=margin,
        clean_margin=clean,
        gain=clean - margin,
        y=case.y,
        rival=rival,
        prediction_before=before.argmax(1),
        prediction_after=after.argmax(1),
        loss_before=F.cross_entropy(before, goal, reduction="none"),
        loss_after=F.cross_entropy(after, goal, reduction="none"),
        targeted=case.target is not None,
        classes=case.classes,
    )


def minimal_eps(weight: Any, bias: Any, x: Any, y: Any, ball: Ball, target: Any = None) -> Float[Tensor, " n"]:
    """The distance to the decision boundary: the smallest radius that changes a prediction, (n,) float64 in units of x.

    An infimum: for any greater radius some input in ball, box and mask is not predicted as y (in L0, whose radius is a
    count, for this radius too). It is 0 where x is misclassified without attack, and `inf` where box and mask allow no
    change. `ball` gives norm, box and mask; its eps is not used. With a target: the smallest radius at which the score
    of the target exceeds that of its opponent (see `optimum`). With three classes or more a third one may still have
    the greatest score, so that the target is predicted from a greater radius on.

    Without a box it is clean margin / dual norm, the least over the rivals. With a box each rival's radius is found in
    closed form, on the piece between two breakpoints that contains it, in double precision whatever x's dtype. The
    arguments are those of `optimum`. Raises `BadInput` as it does, and where `eps` is one per feature.

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
    case = _checked(weight, bias, x, y, ball, target, torch.float64)
    before = case.scores(case.x)
    radius = before.new_empty(len(before))
    for own, rivals, rows in case.groups(before):
        part, x_part = case.ball.rows(rows), case.x[rows]
        gaps = before[rows, own, None] - before[rows][:, rivals]
        few_rivals = blocks(len(rivals), case.weight.shape[1], rivals.device)
        dual = torch.cat([case.ball.dual(case.directions(own, rivals[few])) for few in few_rivals])
        # The radius without box and mask is a lower bound of each rival's: most rivals need no search.
        lower_bound = torch.where(gaps > 0, gaps / dual, 0)
        best = before.new_full((len(rows),), torch.inf)
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


@dataclass(frozen=True, eq=False)
class _Checked:
    """The checked arguments: weights and bias in the precision to compute in, a single logit as two classes."""

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]
    x: Float[Tensor, "n *shape"]
    y: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"] | None
    ball: Ball
    classes: np.ndarray

    def scores(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        rows = max(1, BLOCK // max(1, self.weight.shape[1]))
        parts = [torch.addmm(self.bias, part.to(self.weight), self.weight.T) for part in flat(x).split(rows)]
        scores = torch.cat(parts)
        if not bool(scores.isfinite().all()):
            raise BadInput("`x` must give finite scores, got NaN or infinity; look for infinite or very large values")
        return scores

    def directions(self, own: int, rivals: Int64[Tensor, " m"]) -> Float[Tensor, "m *shape"]:
        """The gradients of the rivals' scores less that of the own class."""
        return (self.weight[rivals] - self.weight[own]).reshape(-1, *self.x.shape[1:])

    def groups(self, scores: Float[Tensor, "n classes"]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(own class, its rivals, row numbers) for blocks of rows that share their directions."""
        classes = torch.arange(len(self.weight), device=self.x.device)
        opponent = self.y if self.target is None else _opponent(scores, self.y, self.target)
        key = opponent if self.target is None else opponent * len(classes) + self.target
        for value in key.unique().tolist():
            own, rival = (value, None) if self.target is None else divmod(value, len(classes))
            rivals = classes[classes != own] if rival is None else classes[rival : rival + 1]
            (rows,) = (key == value).nonzero(as_tuple=True)
            for few in blocks(len(rows), self.weight.shape[1], rows.device):
                yield own, rivals, rows[few]


def _opponent(scores: Tensor, y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """y; where that is the target, the strongest other class."""
    other = scores.scatter(1, target[:, None], -torch.inf).argmax(1)
    return torch.where(y == target, other, y)


def _checked(weight: Any, bias: Any, x: Any, y: Any, ball: Ball, target: Any, precision: torch.dtype) -> _Checked:
    """The arguments, in `precision` at least."""
    check_type("ball", ball, Ball, "as in epsball.Linf(eps=0.1, lo=0, hi=1)")
    x, classes = _tensor("x", x), None
    if isinstance(weight, (Tensor, np.ndarray, list, tuple, int, float)):
        weight, bias = _tensor("weight", weight), _tensor("bias", 0.0 if bias is None else bias)
    else:
        from epsball.linear.folding import affine  # scikit-learn is loaded for its own models only

        if bias is not None:
            raise BadInput("`bias` must be None where `weight` is a model, which has its own; write None")
        x = x if x.is_floating_point() else x.double()
        model = affine(weight)
        weight, bias, classes = model.weight, model.bias, model.classes
    ball = ball.bind(x)
    dtype = torch.promote_types(x.dtype, precision)
    weight, bias = weight.to(x.device, dtype), bias.to(x.device, dtype)
    shape = tuple(x.shape[1:])
    d = x[:1].numel() if len(x) else int(np.prod(shape))
    single = tuple(weight.shape) in {shape, (d,), (1, *shape), (1, d)}
    if not single and (weight.ndim == 0 or tuple(weight.shape[1:]) not in {shape, (d,)}):
        raise BadInput(
            f"`weight` must be ({d},) or (classes, {d}) for x {tuple(x.shape)}, got {tuple(weight.shape)}; "
            "one row per class, or a single row for one logit"
        )
    weight = weight.reshape(-1, d)
    if bias.numel() != 1 and tuple(bias.shape) != (len(weight),):
        raise BadInput(f"`bias` must be a number or ({len(weight)},), got {tuple(bias.shape)}; one per row of `weight`")
    bias = bias.reshape(-1).expand(len(weight))
    if not bool(weight.isfinite().all() & bias.isfinite().all()):
        raise BadInput("`weight` and `bias` must be finite, got NaN or infinity; look where they were computed")
    if single:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    classes = np.arange(len(weight)) if classes is None else classes
    target = None if target is None else _indices("target", target, x, classes)
    return _Checked(weight, bias, x, _indices("y", y, x, classes), target, ball, classes)


def _tensor(name: str, value: Any) -> Tensor:
    """`value` as a tensor, sharing its memory where possible; numbers of Python become double precision."""
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise BadInput(
            f"`{name}` must be numbers, got {type(value).__name__} of {array.dtype}; encode text as numbers, "
            "and write `.toarray()` for a sparse matrix"
        )
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _indices(name: str, value: Any, x: Tensor, classes: np.ndarray) -> Int64[Tensor, " n"]:
    """Labels as indices into `classes`, one per row of x."""
    given = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if given.shape not in ((), (len(x),)):
        raise BadInput(f"`{name}` must be ({len(x)},), one class per row of x, got {given.shape}; one-hot: argmax(1)")
    place = {label: index for index, label in enumerate(classes.tolist())}
    labels = np.broadcast_to(given, (len(x),)).tolist()
    unknown = [label for label in labels if label not in place]
    if unknown:
        known = ", ".join(map(repr, list(place)[:12])) + (", ..." if len(place) > 12 else "")
        raise BadInput(f"`{name}` must be among the classes {known}, got {unknown[0]!r}; one logit has 0 and 1")
    return torch.tensor([place[label] for label in labels], dtype=torch.long, device=x.device)
