"""The networks of the benchmarks: the small CNN on MNIST, plain and robust, trained once and kept beside this file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import epsball as eb
from epsball.ball import Ball
from epsball.data import Examples, load_data
from epsball.models import build
from epsball.models.load import load_weights, save_weights
from epsball.noise import Noise
from epsball.training.fit import fit
from epsball.training.plain import Plain

KEPT = Path(__file__).parent / ".cache"


def mnist(split: str, limit: int | None = None) -> Examples:
    """MNIST from the folder that EPSBALL_DATA names, or from ../shared/data beside the checkout."""
    folder = Path(os.environ.get("EPSBALL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return load_data(str(folder / "mnist"), split=split, limit=limit)


def fgsm_random_start(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, noise: Noise) -> dict[str, Tensor]:
    """Fast adversarial training: one step of 1.25 eps from a random start (Wong, Rice and Kolter, ICLR 2020)."""
    z = ball.sample(x, noise).requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
    loss = F.cross_entropy(model(ball.step(grad, z.detach(), x, 1.25)), y)
    loss.backward()
    return {"loss": loss.detach()}


def plain(epochs: int = 3) -> tuple[nn.Module, Examples]:
    """The network trained on clean images, and MNIST's test images."""
    return _trained(f"plain-{epochs}", Plain(), epochs)


def robust(epochs: int = 6) -> tuple[nn.Module, Examples]:
    """The network trained on FGSM examples with random starts at eps .3, and MNIST's test images."""
    return _trained(f"robust-{epochs}", fgsm_random_start, epochs)


def _trained(name: str, objective: object, epochs: int) -> tuple[nn.Module, Examples]:
    test = mnist("test")
    model = build("small-cnn", tuple(test.x.shape[1:]), 10)
    path = KEPT / f"{name}.safetensors"
    if path.exists():
        load_weights(model, path)
    else:
        ball = eb.Linf(eps=0.3, lo=0, hi=1)
        fit(model, mnist("train"), ball, objective=objective, epochs=epochs, lr=5e-3 if "robust" in name else 1e-3, seed=0)
        save_weights(model, path)
    return model.eval(), test
