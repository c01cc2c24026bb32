"""Which modules a callable holds, and that `frozen` sets flags and puts back flags, whatever the modules do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import awkward
import nets
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball.models.frozen import frozen, held_modules
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import ModelWarning, Objective

SHAPE = (5,)
NET = nets.mlp(SHAPE, 3, noisy=True)
ZOO = SimpleNamespace(net=NET)


def by_name(x: Tensor) -> Tensor:
    return NET(x)


@torch.no_grad()
def decorated(x: Tensor) -> Tensor:
    return by_name(x)


class Object:
    def __init__(self, net: nn.Module) -> None:
        self.parts = {"nets": [net]}

    def __call__(self, x: Tensor) -> Tensor:
        return self.parts["nets"][0](x)

    def predict(self, x: Tensor) -> Tensor:
        return self(x)


class Slotted:
    __slots__ = ("net",)

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


class Global:
    def __call__(self, x: Tensor) -> Tensor:
        return decorated(x)


class OfTheClass:
    net = NET

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


class Unregistered(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.members = [net]

    def forward(self, x: Tensor) -> Tensor:
        return sum(net(x) for net in self.members)


def slotted() -> Slotted:
    made = Slotted()
    made.net = NET
    return made


def holders() -> dict[str, Callable[[Tensor], Tensor]]:
    net, thing = NET, Object(NET)

    def outer() -> Callable[[Tensor], Tensor]:
        inner = lambda x: net(x)  # noqa: E731
        return lambda x: inner(x)

    return {
        "a closure": lambda x: net(x),
        "closures": outer(),
        "a global": by_name,
        "a lambda around a global": lambda x: by_name(x),
        "an attribute of a global": lambda x: ZOO.net(x),
        "a decorated function": decorated,
        "a default": lambda x, net=net: net(x),
        "a method": net.forward,
        "a method of an object": thing.predict,
        "a lambda around an object": lambda x: thing.predict(x),
        "an object": thing,
        "a slot": slotted(),
        "an object around a global": Global(),
        "an attribute of a class": OfTheClass(),
        "a partial": functools.partial(lambda net, x: net(x), net),
        "a partial by keyword": functools.partial(lambda x, net: net(x), net=net),
        "a module with a list": Unregistered(net),
        "a comprehension": lambda x: sum([part(x) for part in (net, net)]) / 2,
    }


@pytest.mark.parametrize("name", holders())
def test_modules_that_a_callable_holds_are_attacked_in_eval_mode_and_come_back(name: str) -> None:
    model, ball = holders()[name], eb.Linf(eps=0.2)
    x, y = nets.batch_of(8, SHAPE, 3)
    NET.eval()
    wanted = eb.Square(steps=3)(NET, x, y, ball)
    NET.train()
    state = awkward.state_of(NET)
    found = eb.Square(steps=3)(model, x, y, ball)
    assert awkward.state_of(NET) == state
    torch.testing.assert_close(found, wanted)
    assert set(NET.modules()) <= set(held_modules(model))


def test_a_lambda_around_a_network_in_train_mode_is_evaluated_as_the_network() -> None:
    """Batch statistics made it look more robust, and were themselves overwritten."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)).double()
    x, _ = nets.batch_of(64, SHAPE, 3)
    net(x)
    y = net.eval()(x).argmax(1)
    ball = eb.Linf(eps=0.1, lo=0, hi=1)
    wanted = eb.evaluate(net, (x, y), ball, "pgd", diagnose=32)
    net.train()
    state = awkward.state_of(net)
    found = eb.evaluate(lambda z: net(z), (x, y), ball, "pgd", diagnose=32)
    assert (found.clean_accuracy, found.robust_accuracy) == (1.0, wanted.robust_accuracy)
    assert found.diagnosis is not None
    assert found.diagnosis.failed_names == wanted.diagnosis.failed_names
    assert awkward.state_of(net) == state


def test_objects_that_hold_no_module_have_none() -> None:
    for thing in (len, torch.sin, lambda x: x, functools.partial(max, 1), 3, None, [1, "a"], {}, object()):
        assert held_modules(thing) == []


def test_a_callable_that_holds_itself_ends() -> None:
    thing = Object(NET)
    thing.parts["self"] = [thing, thing.parts]
    assert set(held_modules(thing)) == set(NET.modules())


def test_a_network_that_is_put_into_train_mode_in_each_call_is_named_as_that() -> None:
    """Not as a stochastic model, whose remedy is averaging."""
    x = nets.batch(8, SHAPE)
    model = lambda z: NET.train()(z)  # noqa: E731
    NET.eval()
    state = awkward.state_of(NET)
    with Objective(model, cross_entropy) as objective, pytest.warns(ModelWarning, match="^`model` is in train mode"):
        assert not objective.check_deterministic(x)
    assert awkward.state_of(NET) == state


def test_batch_statistics_are_named_by_the_diagnosis_and_not_taken_for_randomness() -> None:
    net = nets.mlp(SHAPE, 3)
    x = nets.batch(40, SHAPE)
    y = (net(x) - net(x).mean(0)).argmax(1)
    y[::4] = (y[::4] + 1) % 3  # so that not all rows are in the second batch
    found = eb.diagnose(lambda z: net(z) - net(z).mean(0), (x, y), eb.Linf(eps=0.05), "pgd")
    assert found.failed_names[0] == "dependent-rows"
    assert "stochastic-forward" not in found.failed_names
    assert "train mode" in found["dependent-rows"].text


def test_neither_train_nor_eval_is_called() -> None:
    class Refuses(nn.Linear):
        def train(self, mode: bool = True) -> Refuses:
            raise AssertionError("train() or eval() was called")

    net = nn.Sequential(Refuses(5, 3)).double()
    x, y = nets.batch_of(4, SHAPE, 3)
    with frozen(net):
        assert not net[0].training
    assert net[0].training
    eb.evaluate(net, (x, y), eb.Linf(eps=0.1), "fgsm", diagnose=0)
    assert net[0].training


def test_an_exported_network_is_attacked() -> None:
    """Its train() and eval() raise."""
    net = nets.mlp(SHAPE, 3).eval()
    x, y = nets.batch_of(4, SHAPE, 3)
    exported = torch.export.export(net, (x,)).module()
    assert torch.equal(eb.FGSM()(exported, x, y, eb.Linf(eps=0.1)), eb.FGSM()(net, x, y, eb.Linf(eps=0.1)))


def test_a_buffer_that_nothing_wrote_to_stays_in_the_callers_graph() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().eval()
    x, y = nets.batch_of(4, SHAPE, 3)
    loss = net(x).sum()
    eb.FGSM()(net, x, y, eb.Linf(eps=0.1))
    loss.backward()
    assert net[0].weight.grad is not None


def test_a_parameter_that_is_computed_is_left_alone() -> None:
    net = nets.mlp(SHAPE, 3)
    weight = net[1].weight
    del net[1]._parameters["weight"]
    net[1]._parameters["weight"] = weight * 2  # not a leaf, as parametrisations and functional calls put there
    x, y = nets.batch_of(4, SHAPE, 3)
    assert torch.isfinite(eb.FGSM()(net, x, y, eb.Linf(eps=0.1))).all()
    assert net[1].weight.requires_grad


def test_a_black_box_around_a_network_in_train_mode_leaves_it() -> None:
    x, y = nets.batch_of(6, SHAPE, 3)
    box = eb.BlackBox(lambda z: NET(torch.from_numpy(z)).detach().numpy())
    NET.train()
    state = awkward.state_of(NET)
    eb.Square(steps=3)(box, x, y, eb.Linf(eps=0.1))
    box(x)
    assert awkward.state_of(NET) == state
