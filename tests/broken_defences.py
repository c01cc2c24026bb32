"""The broken defences, trained for seconds on the digits; those that change only the logits share weights."""

from __future__ import annotations

from functools import cache

from torch import nn

from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.training.broken_defences import recipe
from epsball.training.fit import fit

EPS = 0.1
SAME_WEIGHTS = {"scaled": "plain", "softmax": "plain"}


@cache
def digits(split: str) -> Examples:
    return load_data("digits", split=split)


@cache
def network(name: str, seed: int) -> nn.Module:
    """broken-defence:NAME, trained with that seed; in eval mode, not to be changed."""
    train = digits("train")
    model = build(f"broken-defence:{name}", train.shape, train.classes, seed=seed)
    if name in SAME_WEIGHTS:
        model.load_state_dict(network(SAME_WEIGHTS[name], seed).state_dict())
    else:
        how = recipe(model, train)
        fit(model, train, how.ball, objective=how.objective, epochs=15, lr=3e-3, seed=seed)
    return model.eval()
