"""Networks to set beside a given one: of other seeds and shapes, and one that is trained on adversarial examples."""

from __future__ import annotations

from copy import deepcopy
from math import ceil

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.data.examples import Examples
from epsball.models.registry import build
from epsball.training.fgsm_mix import FGSMMix
from epsball.training.fit import PLAIN, fit
from epsball.training.training_objective import ObjectiveLike

BATCH = 128
ADVERSARIAL = FGSMMix()


def companions(
    train: Examples, *, network: str = "small-mlp", count: int = 2, steps: int = 400, seed: int = 0
) -> dict[str, nn.Module]:
    """`count` >= 0 networks of one shape and other seeds, and a linear one, trained on `train`, by name.

    About `steps` steps of 128 rows each. Their seeds follow `seed`, so that none is the network that was trained with
    it. For `direction`: `{"model": model} | companions(train)`.
    """
    check_whole("count", count, 0)
    found: dict[str, nn.Module] = {}
    for k in range(1, count + 1):
        found[f"{network}, seed {seed + k}"] = trained(network, train, steps=steps, seed=seed + k)
    net = nn.Sequential(nn.Flatten(), nn.Linear(train.x[0].numel(), train.classes)).to(train.x)
    with torch.no_grad():
        for part in net.parameters():
            part.zero_()  # convex: every start has the same end
    found["linear"] = fitted(net, train, steps=steps, seed=seed)
    return found


def trained(
    network: str,
    train: Examples,
    ball: Ball | None = None,
    *,
    objective: ObjectiveLike = PLAIN,
    steps: int = 400,
    seed: int = 0,
) -> nn.Module:
    """A fresh built-in network, trained on `train` for about `steps` steps of 128 rows, against `ball` if given."""
    net = build(network, train.shape, train.classes, seed=seed).to(train.x)
    return fitted(net, train, ball, objective=objective, steps=steps, seed=seed)


def trained_further(
    model: nn.Module,
    train: Examples,
    ball: Ball,
    *,
    objective: ObjectiveLike = ADVERSARIAL,
    steps: int = 400,
    seed: int = 0,
) -> nn.Module:
    """A copy of `model`, trained on with the adversarial objective: for networks that cannot be made anew."""
    return fitted(deepcopy(model), train, ball, objective=objective, steps=steps, seed=seed)


def fitted(
    model: nn.Module,
    train: Examples,
    ball: Ball | None = None,
    *,
    objective: ObjectiveLike = PLAIN,
    steps: int = 400,
    seed: int = 0,
) -> nn.Module:
    """`model`, trained in place for about `steps` steps of 128 rows: whole epochs, at least one."""
    check_whole("steps", steps, 1)
    epochs = max(1, round(steps / ceil(len(train) / BATCH)))
    fit(model, train, ball, objective=objective, epochs=epochs, batch_size=BATCH, lr=3e-3, seed=seed, accelerate=False)
    return model
