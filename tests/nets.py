"""Small deterministic models for the tests, and models that misbehave. Weights come from a local generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CONV_SHAPE = (2, 6, 6)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int, shape: Sequence[int], *, lo: float = 0.0, hi: float = 1.0, seed: int = 0) -> Tensor:
    """n examples, uniform in [lo, hi], float64."""
    return lo + (hi - lo) * torch.rand(n, *shape, generator=rng(seed), dtype=torch.float64)


def batch_of(n: int, shape: Sequence[int], classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n examples in [0, 1] and labels; one logit has the classes 0 and 1."""
    return batch(n, shape, seed=seed), torch.randint(max(classes, 2), (n,), generator=rng(seed + 1))


class Rows(nn.Module):
    """(n, *shape) as (n, d), also for (n,)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


class Squeeze(nn.Module):
    """One logit (n, 1) as (n,)."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1)


def seeded(build: Callable[[], nn.Module], seed: int, scale: float = 1.0) -> nn.Module:
    """What `build` makes, in float64, in eval mode, every weight drawn anew; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        model = build().double().eval()
    generator = rng(seed)
    with torch.no_grad():
        for name, part in [*model.named_parameters(), *model.named_buffers()]:
            if part.is_floating_point():
                spread = scale / math.sqrt(math.prod(part.shape[1:]) or 1)
                part.copy_(spread * torch.randn(part.shape, generator=generator, dtype=part.dtype))
                if "var" in name:
                    part.abs_().add_(0.5)
    return model


def linear(
    shape: Sequence[int], classes: int, *, seed: int = 0, scale: float = 3.0, squeeze: bool = False
) -> nn.Module:
    """Logits linear in x; `classes` = 1 is one logit, (n, 1), or (n,) with `squeeze`."""
    end = [Squeeze()] if squeeze else []
    return seeded(lambda: nn.Sequential(Rows(), nn.Linear(math.prod(shape), classes), *end), seed, scale)


def weighted(weight: Tensor, bias: float = 0.0) -> nn.Module:
    """One logit (n,) that is <weight, x> + bias."""
    model = linear(weight.shape, 1, squeeze=True)
    with torch.no_grad():
        model[1].weight.copy_(weight.reshape(1, -1))
        model[1].bias.fill_(bias)
    return model


def mlp(shape: Sequence[int], classes: int, *, seed: int = 0, noisy: bool = False) -> nn.Module:
    """One hidden layer of 16; `noisy` adds BatchNorm and Dropout."""
    extra = [nn.BatchNorm1d(16), nn.Dropout(0.5)] if noisy else []
    layers = [Rows(), nn.Linear(math.prod(shape), 16), *extra, nn.Tanh(), nn.Linear(16, classes)]
    return seeded(lambda: nn.Sequential(*layers), seed, 2.0)


def conv(classes: int = 10, *, seed: int = 0, noisy: bool = False) -> nn.Module:
    """Two convolutions and a linear layer on examples of `CONV_SHAPE`; `noisy` adds BatchNorm and Dropout."""
    extra = [nn.BatchNorm2d(4), nn.Dropout(0.5)] if noisy else []
    layers = [nn.Conv2d(2, 4, 3, padding=1), *extra, nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), Rows()]
    return seeded(lambda: nn.Sequential(*layers, nn.Linear(32, classes)), seed, 2.0)


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The class, by hand: one logit z means 1 where z > 0."""
    logits = model(x).reshape(len(x), -1)
    return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


class Steady(nn.Module):
    """A net of elementary operations only: the bits of a row are the same in every batch."""

    def __init__(self, d: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.hidden = 2 * torch.randn(d, 8, generator=rng(seed), dtype=torch.float64)
        self.out = torch.randn(8, classes, generator=rng(seed + 1), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = sum(x[:, i, None] * row for i, row in enumerate(self.hidden)) - 1
        hidden = hidden / (1 + hidden.abs())
        return sum(hidden[:, i, None] * row for i, row in enumerate(self.out))


class Wrapper(nn.Module):
    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model


class Counting(Wrapper):
    """Counts the calls and rows that go forward, and the rows that come backward, one gradient each."""

    forwards = backwards = calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.calls += 1
        output = self.model(x)
        if output.requires_grad:
            output.register_hook(self._back)
        return output

    def _back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class Recording(Wrapper):
    """Keeps a copy of every batch, and whether any of its modules was in training mode."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__(model)
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        self.modes.append(any(m.training for m in self.modules()))
        return self.model(x)


class Probabilities(Wrapper):
    """Returns probabilities: a softmax inside the model, a common mistake."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1)


class Stochastic(Wrapper):
    """Adds noise in eval mode too, from its own generator."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__(model)
        self.generator = rng(seed)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return logits + 0.1 * torch.randn(logits.shape, generator=self.generator, dtype=logits.dtype)


class Broken(Wrapper):
    """NaN logits for the examples whose first coordinate is above `threshold`."""

    def __init__(self, model: nn.Module, threshold: float) -> None:
        super().__init__(model)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        bad = x.reshape(len(x), -1)[:, :1] > self.threshold
        return self.model(x) + torch.where(bad, math.nan, 0.0)


class Staircase(Wrapper):
    """Rounds its input where the first coordinate is above `threshold`: the gradient there is exactly zero."""

    def __init__(self, model: nn.Module, threshold: float = -math.inf) -> None:
        super().__init__(model)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        rounded = x.reshape(len(x), -1)[:, :1] > self.threshold
        return torch.where(rounded, self.model((x * 8).round() / 8), self.model(x))


class InfiniteSlope(Wrapper):
    """Finite logits whose gradient is infinite where the first coordinate is exactly 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + (x.reshape(len(x), -1)[:, :1] - 0.5).abs().sqrt()


class RaisesAt(Wrapper):
    """Raises RuntimeError on its k-th call."""

    def __init__(self, model: nn.Module, k: int) -> None:
        super().__init__(model)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        self.k -= 1
        if self.k == 0:
            raise RuntimeError("out of memory, says the test")
        return self.model(x)


class LabelOnly(Wrapper):
    """Returns the predicted class."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).argmax(1)
