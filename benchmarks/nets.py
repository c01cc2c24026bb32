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

EPS = 0.3
KEPT = Path(__file__).parent / ".cache"


def mnist(split: str, limit: int | None = None) -> Examples:
    """MNIST from the folder that EPSBALL_DATA names, or from ../shared/data beside the checkout."""
    folder = Path(os.environ.get("EPSBALL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return load_data(str(folder / "mnist"), split=split, limit=limit)


def pgd_training(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, noise: Noise) -> dict[str, Tensor]:
    """Adversarial training with seven steps (Madry et al., ICLR 2018); the radius grows over the first three epochs."""
    epoch = int(noise.rank[0])
    ball = ball.with_eps(EPS * min(1, (epoch + 1) / 3)).bind(x)
    z = ball.sample(x, noise)
    for _ in range(7):
        z.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        z = ball.step(grad, z.detach(), x, 0.25)
    loss = F.cross_entropy(model(z), y)
    loss.backward()
    return {"loss": loss.detach()}


def plain(epochs: int = 3) -> tuple[nn.Module, Examples]:
    """The network trained on clean images, and MNIST's test images."""
    return _trained(f"plain-{epochs}", Plain(), epochs)


def robust(epochs: int = 6) -> tuple[nn.Module, Examples]:
    """The network trained on PGD examples at eps .3, and MNIST's test images."""
    return _trained(f"robust-{epochs}", pgd_training, epochs)


def _trained(name: str, objective: object, epochs: int) -> tuple[nn.Module, Examples]:
    test = mnist("test")
    model = build("small-cnn", tuple(test.x.shape[1:]), 10)
    path = KEPT / f"{name}.safetensors"
    if path.exists():
        load_weights(model, path)
    else:
        ball = eb.Linf(eps=EPS, lo=0, hi=1)
        fit(model, mnist("train"), ball, objective=objective, epochs=epochs, lr=2e-3, seed=0)
        save_weights(model, path)
    return model.eval(), test
