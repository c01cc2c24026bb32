"""Shared by the tests of `explain`: examples, and checks of figures, records and side effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import RaisesAt, batch_of, mlp, predicted
from torch import nn

from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.explain import draw


def examples(
    n: int, shape: Sequence[int], classes: int, *, seed: int = 0, lo: float = 0.0, hi: float = 1.0
) -> Examples:
    """n examples in the box [lo, hi] with labels at random, float64."""
    x, y = batch_of(n, shape, classes, seed=seed)
    return from_arrays(lo + (hi - lo) * x, y, lo=lo, hi=hi, classes=max(classes, 2), name="made up")


def known(model: nn.Module, data: Examples) -> Examples:
    """The examples with the labels that the model gives them."""
    with torch.no_grad():
        return from_arrays(data.x, predicted(model, data.x), lo=data.lo, hi=data.hi, classes=data.classes, name="known")


def assert_drawn(found, path: Path) -> None:
    """The figure is a picture: wide enough, and of many colours."""
    from PIL import Image

    draw(found, path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def assert_survives_json(found) -> None:
    """The record loads from JSON unchanged, with the same sentence."""
    again = type(found).from_json(found.to_json())
    assert again == found
    assert again.sentence == found.sentence == found.summary()["sentence"]


def assert_untouched(analysis: Callable[[nn.Module], object], shape: Sequence[int], *, raises_at: int) -> None:
    """Modes, gradients and state of a module are as they were, after a result and after an exception."""
    model = mlp(shape, 3, noisy=True).train()
    model[2].eval()
    next(model.parameters()).requires_grad_(False)
    flags = [m.training for m in model.modules()]
    wants_grad = [p.requires_grad for p in model.parameters()]
    state = {name: part.clone() for name, part in model.state_dict().items()}
    analysis(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        analysis(RaisesAt(model, raises_at))
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == wants_grad
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(part, state[name]) for name, part in model.state_dict().items())
