"""A network as certificates see it: the graph answers as the model does, and what is not covered is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import epsball as eb
from epsball.certify.certifier import Certifier
from epsball.certify.tracing import trace

X = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Everything(nn.Module):
    """One of each operator that is covered for images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Linear(4 * 3 * 3 + 8, 4)
        self.drop = nn.Dropout()
        self.register_buffer("mean", torch.rand(3, 1, 1))
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm(self.first((x - self.mean) / 0.3)), 0.1)
        h = torch.relu(self.second(h)) + self.shortcut(h)
        g = F.silu(F.gelu(F.max_pool2d(h, 2)).clamp(-0.2, 3.0))
        u = torch.tanh(self.up(g)).abs()
        parts = [F.avg_pool2d(u[:, :, :6, :6], 2).flatten(1), h.mean((2, 3))]
        return self.last(self.drop(torch.cat(parts, 1))).log_softmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_graph_answers_as_the_model_does_up_to_a_constant(dtype: torch.dtype) -> None:
    model = Everything().eval()
    graph = trace(model, X).graph(dtype)
    logits = graph(X.to(dtype)).log_softmax(1)
    assert torch.allclose(logits.float(), model(X), atol=1e-5)


def test_the_graph_follows_the_parameters_as_they_are_now_and_is_differentiable_in_them() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.rand(6, 4)
    traced = trace(model, x)
    with torch.no_grad():
        model[0].weight += 1
    assert torch.allclose(traced.graph(torch.float32)(x), model(x), atol=1e-6)
    traced.graph(torch.float32)(x).sum().backward()
    assert model[0].weight.grad is not None


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = Everything().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, X)
    assert model.training
    assert model.norm.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.first._forward_hooks


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.key(x)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Linear(4, 4), Attention()), "of layer 1 (Attention)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 2)), "`softplus` of layer 1 (Softplus)"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "layer 1 (LayerNorm)"),
    ],
)
def test_a_layer_that_is_not_covered_is_named_and_smoothing_offered(model: nn.Module, named: str) -> None:
    with pytest.raises(eb.BadInput) as refused:
        trace(model.eval(), torch.rand(2, 4)).graph(torch.float32)
    assert named in str(refused.value)
    assert "smoothing" in str(refused.value)


def test_a_network_that_chooses_by_values_is_refused() -> None:
    layer = nn.Linear(4, 2)

    def model(x: Tensor) -> Tensor:
        return layer(x) if float(x.sum()) > 100 else -layer(x)

    with pytest.raises(eb.BadInput, match="cannot be traced"):
        trace(model, torch.rand(3, 4))


def test_a_network_that_hides_a_choice_from_the_trace_is_found_out() -> None:
    layer = nn.Linear(4, 2)

    def model(x: Tensor) -> Tensor:
        return layer(x) * (1 + float(x.detach().numpy().mean()))

    x = torch.linspace(0, 1, 20).reshape(5, 4)
    with pytest.raises(eb.BadInput, match="differ by"):
        Certifier(model, x)


def test_a_batch_normalisation_that_uses_the_batch_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)).eval()
    with pytest.raises(eb.BadInput, match="batch"):
        trace(model, torch.rand(5, 4)).graph(torch.float32)


class InPlace(nn.Module):
    """Layers and sums in place, as torchvision has them, and a column of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out = self.second(self.relu(hidden))
        out += hidden  # after its ReLU
        out.mul_(0.5).clamp_(-0.1, 0.4)
        z = self.last(out)
        return torch.cat([torch.zeros_like(z), z], 1)


def test_layers_in_place_are_read_as_the_model_computes_them() -> None:
    model, x = InPlace().eval(), torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    traced = trace(model, x)
    assert torch.allclose(traced.graph(torch.float64)(x.double()).float(), model(x), atol=1e-6)
    assert eb.certify(model, (x, model(x).argmax(1)), eb.Linf(eps=1e-4)).verified == (True,) * 6


def test_a_view_of_what_is_changed_in_place_is_never_read_as_it_was() -> None:
    layer = nn.Linear(4, 4)

    def model(x: Tensor) -> Tensor:
        hidden = layer(x)
        view = hidden.view(-1, 2, 2)
        hidden.relu_()
        return view.flatten(1)  # after the ReLU

    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    assert (layer(x) < 0).any()
    with pytest.raises(eb.BadInput, match="differ by"):
        Certifier(model, x)
