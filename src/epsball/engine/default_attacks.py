"""The attacks of a run that names none: the strongest list that the ball has and the model can answer."""

from __future__ import annotations

import torch
from torch import Tensor

from epsball.attacks.hopskipjump import HopSkipJump
from epsball.attacks.square import Square
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.engine.protocols import CASCADES
from epsball.models.black_box import BlackBox
from epsball.models.frozen import frozen
from epsball.problem.objective import Model, Needs

WEAK = ("fgsm", "pgd")
"""For balls of a user that no protocol has a list for: these are defined in every ball."""


def default_attacks(ball: Ball | type[Ball], needs: Needs = "grad", *, min_norm: bool = False) -> tuple[str, ...]:
    """The default attacks in such balls, on a model that can answer what `needs` says.

    With gradients `fast`, or `min-norm` where `fast` has no list (L0) and in a minimum-norm run. A model of logits
    without gradients gets Square, one of labels HopSkipJump. Raises `BadInput` where these are not defined: random
    noise alone would make any model look robust.

    >>> from epsball.balls.registry import BALLS
    >>> default_attacks(BALLS["linf"]), default_attacks(BALLS["l0"]), default_attacks(BALLS["l2"], "logits")
    (('fast',), ('min-norm',), ('square',))
    """
    if needs == "logits" and not min_norm and Square.fits(ball):
        return ("square",)
    if needs != "grad" and HopSkipJump.fits(ball):
        return ("hopskipjump",)
    if needs != "grad":
        raise BadInput(
            f"`attacks` must be given for a model without gradients in {ball.name} balls, got none: neither square nor "
            "hopskipjump is the default there; name your own attack, or train a `source` with `epsball.surrogate`"
        )
    names = ("min-norm",) if min_norm else ("fast", "min-norm")
    return next(((name,) for name in names if ball.choose(CASCADES[name])), ("min-norm",) if min_norm else WEAK)


def answers(model: Model, x: Tensor) -> Needs:
    """What a model can answer: gradients, logits or labels only. One model call on the first row of x (n, *shape)."""
    if isinstance(model, BlackBox):
        return "label" if model.scores == "labels" else "logits"
    try:
        with frozen(model), torch.enable_grad():
            output = model(x[:1].detach().clone().requires_grad_())
    except Exception:  # whatever the model raises, the run itself raises it, and says what it means
        return "grad"
    if isinstance(output, Tensor) and not output.is_floating_point():
        return "label"
    return "grad" if not isinstance(output, Tensor) or output.requires_grad else "logits"
