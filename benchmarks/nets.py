"""The networks of the benchmarks, trained once each and kept beside this file.

`HELD` are the networks that the figures of issue and docs are measured on; `CALIBRATION` those that the protocol `fast`
was tuned on: other seeds, radii, architectures and training, and in `protocols.py` other test images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.balls.linf import Linf
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.models.weights import load_weights, save_weights
from epsball.training.fit import fit
from epsball.training.plain import Plain
from epsball.training.training_objective import TrainingStep

EPS = 0.3
KEPT = Path(os.environ.get("EPSBALL_NETS", Path(__file__).parent / ".cache"))


def folder(name: str) -> str:
    """A data set in the folder that EPSBALL_DATA names, or in ../shared/data beside the checkout."""
    return str(Path(os.environ.get("EPSBALL_DATA", Path(__file__).parents[2] / "shared" / "data")) / name)


def mnist(split: str, limit: int | None = None) -> Examples:
    """MNIST."""
    return load_data(folder("mnist"), split=split, first=limit)


@dataclass(frozen=True)
class Ascent:
    """Training on the points that `steps` steps of `size` (in eps) from a random start find; eps may grow at first.

    steps=1, size=1.25 is Fast's FGSM with a random start (Wong et al., ICLR 2020), seven steps are Madry et al. (2018).
    """

    steps: int
    size: float
    ramp: int = 1
    """Epochs over which the radius grows."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, step: TrainingStep) -> dict[str, Tensor]:
        epoch = int(step.noise.restart[0])
        ball = ball.with_eps(float(ball.eps) * min(1, (epoch + 1) / self.ramp)).bind(x)
        z = ball.sample(x, step.noise)
        for _ in range(self.steps):
            z.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
            z = ball.step(grad, z.detach(), x, self.size)
        loss = F.cross_entropy(model(z), y)
        loss.backward()
        return {"loss": loss.detach()}


@dataclass(frozen=True)
class Net:
    """A network and how it was trained; `eps` is also the radius it is attacked at."""

    data: str
    model: str
    objective: Callable[..., object]
    eps: float
    epochs: int
    lr: float = 2e-3
    seed: int = 0
    limit: int | None = None

    def load(self, name: str) -> tuple[nn.Module, Examples]:
        """The network in eval mode, from its file or trained now, and the test images."""
        test = load_data(folder(self.data), split="test")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = build(self.model, tuple(test.x.shape[1:]), 10)
        path = KEPT / f"{name}.safetensors"
        if path.exists():
            load_weights(model, path)
        else:
            train = load_data(folder(self.data), split="train", first=self.limit)
            ball = Linf(eps=self.eps, lo=0, hi=1)
            fit(model, train, ball, objective=self.objective, epochs=self.epochs, lr=self.lr, seed=self.seed)
            save_weights(model, path)
        return model.eval(), test


RESNET = "preact-resnet18:width=16"
HELD = {
    "plain": Net("mnist", "small-cnn", Plain(), EPS, 3),
    "fgsm-rs": Net("mnist", "small-cnn", Ascent(1, 1.25, ramp=3), EPS, 5),
    "robust": Net("mnist", "small-cnn", Ascent(7, 0.25, ramp=3), EPS, 6),
    "resnet": Net("cifar10", RESNET, Ascent(1, 1.25, ramp=2), 8 / 255, 6),
}
CALIBRATION = {
    "robust-2": Net("mnist", "small-cnn", Ascent(7, 0.25, ramp=3), 0.2, 4, seed=11),
    "fgsm-rs-2": Net("mnist", "small-cnn", Ascent(1, 1.25), 0.25, 4, lr=5e-3, seed=12),
    "mlp": Net("mnist", "small-mlp", Ascent(5, 0.3, ramp=2), 0.1, 3, seed=13),
    "cifar-cnn": Net("cifar10", "small-cnn", Ascent(5, 0.3, ramp=2), 8 / 255, 4, seed=14),
    "robust-3": Net("mnist", "small-cnn", Ascent(7, 0.25, ramp=3), EPS, 6, seed=16),
    "mnist-resnet": Net("mnist", "preact-resnet18:width=8", Ascent(1, 1.0, ramp=2), 0.25, 1, seed=15, limit=20000),
}


def plain(epochs: int = 3) -> tuple[nn.Module, Examples]:
    """The network trained on clean images, and MNIST's test images."""
    return Net("mnist", "small-cnn", Plain(), EPS, epochs).load(f"plain-{epochs}" if epochs != 3 else "plain")


def robust() -> tuple[nn.Module, Examples]:
    """The network trained on PGD examples at eps .3, and MNIST's test images."""
    return HELD["robust"].load("robust")


def main() -> None:
    """Train what is not there yet."""
    torch.set_num_threads(1)
    for name, net in {**CALIBRATION, **HELD}.items():
        model, test = net.load(name)
        part = test.rows(torch.arange(512))
        with torch.no_grad():
            clean = (model(part.x).argmax(1) == part.y).float().mean()
        print(f"{name}: clean {clean:.2%}", flush=True)


if __name__ == "__main__":
    main()
