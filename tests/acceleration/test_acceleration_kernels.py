"""The backward-data of a convolution is that of autograd with every kernel; and the trainable form."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_acceleration import accelerated, data, tensors
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, make

from epsball.acceleration.accelerate import Accelerated, accelerate
from epsball.acceleration.kernels import by_folding, by_phases, phases
from epsball.acceleration.layers import METHODS, Convolution, Method, convolution
from epsball.acceleration.plan import AccelerationPlan
from epsball.acceleration.trial import best_kernels
from epsball.models.frozen import frozen


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_kernels(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> None:
    for last, channels in product((False, True), (1, 3)):
        layout = torch.channels_last if last else torch.contiguous_format
        x = noise(2, channels, *size, seed=1).requires_grad_()
        weight = noise(2, channels, *kernel, seed=2)
        y = F.conv2d(x, weight, stride=stride, padding=padding)
        grad = noise(*y.shape, seed=3)
        (expected,) = torch.autograd.grad(y, x, grad)
        grad = grad.contiguous(memory_format=layout)
        for found in (
            by_phases(grad, phases(weight, stride).contiguous(memory_format=layout), stride, padding, size),
            by_folding(grad, weight, stride, padding, (1, 1), size),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kernel=pairs(1, 5), stride=pairs(1, 4), padding=pairs(0, 6), size=pairs(1, 11))
def test_backward_data_is_that_of_autograd_at_any_stride_kernel_padding_and_size(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> None:
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    assert_kernels(kernel, stride, padding, size)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((4, 4), (2, 2), (1, 1), (28, 28)),  # the small CNN's
        ((3, 3), (1, 1), (0, 0), (7, 7)),  # no phases
        ((3, 3), (1, 1), (2, 2), (8, 9)),  # as much padding as taps
        ((3, 3), (2, 2), (1, 1), (8, 8)),  # the last row touched by a part of the taps
        ((1, 1), (2, 2), (0, 0), (8, 7)),  # a kernel smaller than the stride: pixels without gradient
        ((2, 1), (4, 3), (0, 0), (9, 9)),
        ((1, 5), (3, 1), (0, 4), (7, 3)),
        ((2, 2), (1, 2), (5, 5), (3, 3)),  # more padding than kernel: outputs that see none of the input
        ((2, 7), (3, 3), (3, 5), (5, 13)),
        ((5, 5), (4, 4), (0, 2), (5, 11)),
        ((3, 3), (2, 2), (0, 0), (3, 3)),  # one place
    ],
)
def test_backward_data_is_that_of_autograd_in_edge_cases(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> None:
    assert_kernels(kernel, stride, padding, size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rectified", [False, True])
def test_a_layer_accepts_an_empty_batch_and_gives_its_gradient(method: Method, rectified: bool) -> None:
    layer = convolution(nn.Conv2d(2, 3, 3, stride=2), method=method, rectified=rectified)
    x = torch.rand(0, 2, 7, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    assert grad.shape == x.shape


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_accepts_one_image_without_a_batch_dimension(method: Method) -> None:
    layer = nn.Conv2d(2, 3, 3, stride=2)
    x = torch.rand(2, 7, 7)
    assert torch.equal(convolution(layer, method=method)(x), layer(x))


@pytest.mark.parametrize("method", ["phases", "folding"])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (1, 0)), ((2, 3), (1, 2))])
@pytest.mark.parametrize("bias", [False, True])
def test_the_trainable_form_can_be_differentiated_twice(
    method: Method, stride: tuple[int, int], padding: tuple[int, int], bias: bool
) -> None:
    layer = nn.Conv2d(2, 2, (3, 2), stride=stride, padding=padding, bias=bias).double()
    made = convolution(layer, method=method, trainable=True)
    x = noise(1, 2, 5, 4).requires_grad_()
    given_tensors = [x, *(noise(*p.shape, seed=4).requires_grad_() for p in layer.parameters())]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return made._conv_forward(x, weight, bias)

    assert torch.autograd.gradcheck(run, given_tensors)
    assert torch.autograd.gradgradcheck(run, given_tensors)


def test_a_kernel_is_chosen_for_every_convolution() -> None:
    model = make("vgg").eval()
    network = accelerate(model, data(ZOO["vgg"][1], 4), plan=AccelerationPlan("graph")).network
    chosen = best_kernels(network, data(ZOO["vgg"][1], 4), channels_last=False)
    assert set(chosen) == {part for part in network.modules() if isinstance(part, Convolution)}
    assert set(chosen.values()) <= set(METHODS)
    assert not any(part._forward_pre_hooks for part in network.modules())


# The trainable form

TRAINED = ["vgg", "preact-resnet", "post-activation-resnet", "shared-weights", "vit", "control-flow", "parametrized"]
TRAINED += ["depthwise", "hooks", "normalize", "two-rectified", "patched-forwards", "lstm", "functional"]


def trainable(model: nn.Module, x: Tensor) -> list[Accelerated]:
    """Both methods for all convolutions, in both layouts."""
    with frozen(model):
        plain = accelerate(model, x, plan=AccelerationPlan("trainable"))
    names = [part.name for part in plain.modules() if isinstance(part, Convolution)]
    layouts = (False, True) if x.ndim == 4 else (False,)
    plans = [AccelerationPlan("trainable", last, dict.fromkeys(names, way)) for last in layouts for way in METHODS]
    return accelerated(model, x, plans)


def of_everything(network: nn.Module, model: nn.Module, x: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """Logits, statistics and gradients of inputs and parameters, by a pass from `state` under seed 3."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model.load_state_dict(state)
        leaf = x.clone().requires_grad_()
        logits = network(leaf)
        loss = F.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1])
        grads = torch.autograd.grad(loss, [leaf, *model.parameters()], allow_unused=True)
    found = [logits.detach(), *(torch.zeros(1) if grad is None else grad for grad in grads)]
    return found + [buffer.clone() for buffer in model.buffers()]


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("training", [False, True])
def test_the_trainable_form_gives_the_gradients_and_statistics_of_the_model(name: str, training: bool) -> None:
    model = make(name).double().train(training)
    x, state = data(ZOO[name][1], 6).double(), tensors(model)
    expected = of_everything(model, model, x, state)
    networks = trainable(model, x)
    assert networks
    for network in networks:
        assert network.training == training
        assert [id(p) for p in network.parameters()] == [id(p) for p in model.parameters()]
        for one, two in zip(expected, of_everything(network, model, x, state), strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12, msg=f"{network.plan}")


def test_batch_statistics_are_the_models_and_are_updated_once_a_pass() -> None:
    model = make("vgg").train()
    x = data(ZOO["vgg"][1], 6)
    count = int(model[1].num_batches_tracked)
    network = accelerate(model, x, plan=AccelerationPlan("trainable"))
    assert int(model[1].num_batches_tracked) == count
    network(x)
    assert int(model[1].num_batches_tracked) == count + 1


def test_the_modes_follow_the_accelerated_network() -> None:
    model = make("vgg").train()
    x = data(ZOO["vgg"][1], 6)
    network = accelerate(model, x, plan=AccelerationPlan("trainable"))
    for training in (False, True, False):
        network.train(training)
        assert {part.training for part in network.modules()} == {training}
        for _ in range(2):
            assert torch.equal(network(x), network(x)) != training


@pytest.mark.parametrize("method", ["phases", "folding"])
def test_training_the_accelerated_network_gives_the_weights_of_training_the_model(method: Method) -> None:
    x, y = data(ZOO["vgg"][1], 16).double(), torch.arange(16) % 5
    ends = []
    for rewritten in (False, True):
        model = make("vgg").double().train()
        network: nn.Module = model
        if rewritten:
            network = accelerate(model, x, plan=AccelerationPlan("trainable", kernels={"0": method, "5": method}))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            for _ in range(5):
                optimiser.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimiser.step()
        ends.append(tensors(model))
    moved = make("vgg").double().state_dict()
    assert (ends[0]["0.weight"] - moved["0.weight"]).norm() > 1e-3
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-8, atol=1e-10)


def test_a_penalty_on_the_input_gradient_has_the_gradients_of_the_model() -> None:
    model = make("post-activation-resnet").double().train()
    x = data(ZOO["vgg"][1], 4).double()

    def penalised(network: nn.Module) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
        return [*torch.autograd.grad(grad.square().sum(), list(model.parameters()), allow_unused=True)]

    expected = penalised(model)
    for network in trainable(model, x):
        for one, two in zip(expected, penalised(network), strict=True):
            torch.testing.assert_close(two, one)


class Centre(nn.Module):
    """Keeps a running mean that is another tensor after each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))[:, None, None]
        return self.body(x - self.mean)


def test_a_replaced_buffer_is_shared_with_the_model() -> None:
    model, x = Centre().train(), data((3, 8, 8), 4)
    network = accelerate(model, x, plan=AccelerationPlan("trainable", kernels={"body.0": "phases"}))
    network(x)
    assert model.mean.abs().sum() > 0.05
    model.mean = torch.ones(3, 1, 1)
    torch.testing.assert_close(network.eval()(x), model.eval()(x))


def test_the_trial_for_training_returns_the_model_or_shares_its_parameters() -> None:
    model, x = make("vgg").train(), data(ZOO["vgg"][1], 8)
    network = accelerate(model, x, trainable=True)
    assert network.plan.rewriting in ("none", "trainable")
    assert [id(p) for p in network.parameters()] == [id(p) for p in model.parameters()]
    assert all(p.requires_grad for p in network.parameters())
