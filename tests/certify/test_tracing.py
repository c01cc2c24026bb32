"""A network as certificates see it: the graph answers as the model does, and what is not covered is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import epsball as eb
from epsball.certify.certifier import Certifier
from epsball.certify.tracing import trace
from epsball.problem.task import task_of

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
    with pytest.raises(eb.BadInput, match="in place"):
        Certifier(model, x)


class Clamped(nn.Module):
    """Writes into a part of its input's copy."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.clone()
        h[:, :2] = h[:, :2].clamp(0, 1)  # which the examples do not reach, and their balls do
        return h


class Counted(nn.Linear):
    """Keeps a number that changes with each call."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1e-4)
        return super().forward(x) + self.calls


def test_a_part_that_is_changed_in_place_and_state_that_changes_are_refused() -> None:
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    counted = Counted(4, 4)
    counted.register_buffer("calls", torch.zeros(4))
    for model, operator in ((Clamped(), "copy_"), (counted, "add_")):
        with pytest.raises(eb.BadInput, match=rf"in place.*`{operator}`"):
            Certifier(model, x)


def test_a_random_number_in_the_network_is_refused_however_small() -> None:
    layer = nn.Linear(4, 3)
    with pytest.raises(eb.BadInput, match="randn"):
        Certifier(lambda x: layer(x + 1e-6 * torch.randn(4)), torch.rand(5, 4))


def test_a_model_that_changes_its_input_leaves_the_users_data_alone() -> None:
    layer, x = nn.Linear(4, 3), torch.rand(5, 4)
    before = x.clone()
    Certifier(lambda x: layer(x.sub_(0.5)), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d])
def test_pooling_of_images_without_channels_is_refused_by_name(pool) -> None:
    with pytest.raises(eb.BadInput, match="without channels"):
        Certifier(lambda x: pool(x, 2).flatten(1), torch.rand(4, 6, 6))


def test_one_probability_is_certified_as_its_logit_and_never_as_one() -> None:
    """A probability is above 0 everywhere: as a logit it would be class 1."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.fill_(0.1)
    x, y = torch.tensor([[1.0] * 4, [1.0] * 4, [-1.0] * 4, [2.0] * 4]), [1, 0, 0, 1]
    expected = eb.certify(layer, (x, y), "linf:1.5")
    assert expected.verified == (False, False, False, True)
    shapes = (lambda z: z, lambda z: z.squeeze(1), lambda z: z[:, 0], lambda z: z.view(-1))
    for reshaped in shapes:
        found = eb.certify(lambda x, reshaped=reshaped: reshaped(torch.sigmoid(layer(x))), (x, y), "linf:1.5")
        assert (found.verified, found.margin) == (expected.verified, expected.margin)
    with pytest.raises(eb.BadInput, match="probability"):
        eb.certify(lambda x: 1 - torch.sigmoid(layer(x)), (x, y), "linf:1.5")
    with pytest.raises(eb.BadInput, match="softmax"):  # of one number: 1 everywhere
        eb.certify(lambda x: layer(x).softmax(1), (x, y), "linf:1.5")


def test_weights_that_the_model_computes_are_those_of_its_own_precision() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(40, 3))
    certifier = Certifier(layer, torch.rand(3, 40))
    assert torch.equal(certifier.exact.nodes[-1].operator.weight, layer.weight.detach().double())


def test_balls_that_give_linear_forms_no_bound_are_refused() -> None:
    """An L0 ball's eps is a number of features, and no radius."""
    with pytest.raises(eb.BadInput, match="`ball` must be an L-inf, L2 or L1 ball"):
        eb.certify(nn.Linear(4, 2), (torch.rand(3, 4), [0, 1, 0]), eb.L0(eps=1, lo=-100, hi=100))
    with pytest.raises(eb.BadInput, match="`certify` needs an L-inf, L2 or L1 ball"):
        eb.evaluate(nn.Linear(4, 2), (torch.rand(3, 4), [0, 1, 0]), eb.L0(eps=1, lo=0, hi=1), certify=True)


def test_a_choice_that_only_perturbed_examples_meet_is_found_out() -> None:
    layer = nn.Linear(4, 2)

    def model(x: Tensor) -> Tensor:
        return layer(x) * (1.0 if float(x.detach().numpy().max()) <= 0.5 else 2.0)

    x = torch.full((3, 4), 0.5)
    y = layer(x).argmax(1)
    certifier = Certifier(model, x)
    with pytest.raises(eb.BadInput, match="differ by"):
        certifier.bounds(task_of(x, y, eb.Linf(eps=0.1)))
