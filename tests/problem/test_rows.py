"""`rows_independent` names models whose rows change each other's outputs, and no sound one."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from epsball.models.registry import build
from epsball.problem.rows import rows_independent

NET = nets.mlp((5,), 3).float()
NOISY = nets.mlp((5,), 3, noisy=True).float()
X = nets.batch(40, (5,)).float()
SIDE = nets.batch(40, (3,), seed=9).float() - 0.5


def attention() -> nn.Module:
    """Attends to the other rows: the batch is taken for the sequence."""
    layer = nn.MultiheadAttention(5, 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(x, x, x)[0]

    return Model()


DEPENDENT: dict[str, Callable[[Tensor], Tensor]] = {
    "train mode": lambda x: NOISY.train()(x),
    "batch statistics": nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)),
    "mean over rows": lambda x: NET(x) - NET(x).mean(0),
    "softmax over rows": lambda x: NET(x).softmax(0),
    "side inputs by position": lambda x: NET(x) + 0.01 * SIDE[: len(x)],
    "attention over rows": attention(),
    "the row before": lambda x: NET(x.roll(1, 0)),
    "scale of the batch": lambda x: NET(x / x.std()),
    "by the first row": lambda x: NET(x - x[:1]),
    "NaN if any": lambda x: NET(x) + (0 * x.sum() if x[0, 0] == X[0, 0] else torch.nan),
}


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("n", [3, 32, 40])
def test_rows_that_depend_on_each_other_are_named(name: str, n: int) -> None:
    state = {key: part.clone() for key, part in NOISY.state_dict().items()}
    drawn = torch.get_rng_state()
    assert not rows_independent(DEPENDENT[name], X[:n])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(part, NOISY.state_dict()[key]) for key, part in NOISY.state_dict().items())
    assert all(torch.equal(part, state[key]) for key, part in NOISY.state_dict().items())


def deep() -> nn.Module:
    """Sixty layers without normalisation."""
    torch.manual_seed(0)
    layers = [part for _ in range(60) for part in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(nn.Linear(5, 64), *layers, nn.Linear(64, 3))


def autocast(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    return run


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.Sequential(nn.Linear(1, 16), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(80, 3))


SOUND: dict[str, Callable[[Tensor], Tensor]] = {
    "mlp": NET,
    "in eval mode by itself": lambda x: NOISY(x),
    "deep": deep(),
    "deep in bfloat16": autocast(deep()),
    "bfloat16": lambda x: (x.bfloat16() @ SIDE[:5].bfloat16()).float(),
    "labels": lambda x: NET(x).argmax(1),
    "one logit": lambda x: NET(x)[:, 0],
    "dropout": lambda x: NET(nn.functional.dropout(x, 0.5)),
    "noise": lambda x: NET(x) + torch.randn(3),
    "a generator of its own": nets.Stochastic(nets.mlp((5,), 3)),
    "instance norm": nn.Sequential(nn.Unflatten(1, (1, 5)), nn.InstanceNorm1d(1), nn.Flatten(), nn.Linear(5, 3)),
    "encoder": nn.Sequential(nn.Unflatten(1, (5, 1)), encoder()),
    "infinite": lambda x: NET(x) / (x[:, :1] > 0.5),
    "constant": lambda x: torch.ones(len(x), 2),
    "no tensor": lambda x: [len(x)],
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_models_are_not_named(name: str) -> None:
    x = X.double() if name == "a generator of its own" else X
    for n in (0, 1, 2, 31, 40):
        assert rows_independent(SOUND[name], x[:n])


@pytest.mark.parametrize("name", ["small-cnn", pytest.param("preact-resnet18", marks=pytest.mark.nightly)])
def test_sound_image_networks_are_not_named(name: str) -> None:
    shape = (3, 16, 16) if name == "preact-resnet18" else (1, 28, 28)
    net = build(name, shape, 10).train()
    x = torch.rand(32, *shape, generator=nets.rng(0))
    assert rows_independent(net, x)
    assert rows_independent(autocast(net), x)
    if name == "preact-resnet18":
        assert not rows_independent(lambda z: net.train()(z), x)
