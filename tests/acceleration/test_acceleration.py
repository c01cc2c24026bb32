"""A rewritten network is the original's function, or it is refused; the original is not changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, make

from epsball.acceleration import accelerate as module
from epsball.acceleration.accelerate import Accelerated, _built, accelerate
from epsball.acceleration.layers import METHODS, Convolution
from epsball.acceleration.plan import AccelerationPlan
from epsball.acceleration.rewriting import graph
from epsball.acceleration.trial import TOLERANCE, Different, gradient_pass
from epsball.common.errors import BadInput
from epsball.models.frozen import frozen
from epsball.models.registry import build

every_network = pytest.mark.parametrize("name", ZOO)


def data(shape: tuple[int, ...], n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.5


def everything(model: nn.Module) -> list[Any]:
    """Everything observable of a model, except its tensors."""
    parts = list(model.modules())
    found: list[Any] = [(id(part), type(part), part.training, sorted(vars(part))) for part in parts]
    for part in parts:
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_parameters", "_buffers", "_modules"):
            found.append([(key, id(value)) for key, value in getattr(part, name).items()])
        found += [[id(entry) for entry in value] for value in vars(part).values() if isinstance(value, list)]
    found += [(id(parameter), parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    return found


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def plans_of(model: nn.Module, x: Tensor) -> list[AccelerationPlan]:
    """Every plan of a rewriting, a layout and one method for all convolutions."""
    plans = []
    for rewriting, last in product(("graph", "tree"), (False, True) if x.ndim == 4 else (False,)):
        plan = AccelerationPlan(rewriting, last)
        try:
            with frozen(model):
                network = _built(model, plan, x)
        except Different:
            continue
        names = [part.name for part in network.modules() if isinstance(part, Convolution)]
        methods = METHODS if names else METHODS[:1]
        plans += [replace(plan, kernels=dict.fromkeys(names, method)) for method in methods]
    return plans


def accelerated(model: nn.Module, x: Tensor, plans: list[AccelerationPlan]) -> list[Accelerated]:
    found = []
    for plan in plans:
        try:
            found.append(accelerate(model, x, plan=plan))
        except BadInput:  # which one is tested below
            continue
    return found


def assert_same(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], what: object) -> None:
    assert [(part.shape, part.dtype) for part in expected] == [(part.shape, part.dtype) for part in found], what
    logits, gradients = TOLERANCE[expected[1].dtype]
    assert (expected[0] - found[0]).abs().max() <= logits * expected[0].abs().max(), what
    assert (expected[1] - found[1]).norm() <= gradients * expected[1].norm(), what


@every_network
def test_a_rewritten_network_agrees_with_the_original_on_other_data_or_is_refused(name: str) -> None:
    model, shape, rewritings = make(name), *ZOO[name][1:]
    plans = plans_of(model, data(shape, 12))
    networks = accelerated(model, data(shape, 12), plans)
    if name != "autocast":  # whose gradients are of another dtype
        taken = {(network.plan.rewriting, network.plan.channels_last) for network in networks}
        assert len(networks) == sum((plan.rewriting, plan.channels_last) in taken for plan in plans), "by every method"
    assert {network.plan.rewriting for network in networks} == rewritings
    if not networks:
        return
    batches = [data(shape, n, seed=n) for n in (1, 7, 33)]
    if len(shape) == 3 and name != "view":
        batches.append(data(shape, 5, seed=2).contiguous(memory_format=torch.channels_last))
    for batch in batches:
        with frozen(model):
            expected = gradient_pass(model, batch)
        for network in networks:  # the model is in train mode again
            assert_same(expected, gradient_pass(network, batch), (name, network.plan, len(batch)))
            with torch.no_grad():
                assert_same(expected, (network(batch), expected[1]), (name, network.plan, "no_grad"))


@every_network
def test_the_original_is_unchanged_by_every_plan(name: str) -> None:
    model, shape = make(name), ZOO[name][1]
    leaves = [part for part in model.modules() if not any(part.children())]
    leaves[0].eval()
    next(model.parameters()).requires_grad_(False)
    x = data(shape, 12)
    plans = plans_of(model, x)
    before, state, copy, noise = everything(model), tensors(model), x.clone(), torch.random.get_rng_state()
    accelerate(model, x)
    accelerate(model, x, trainable=True)
    for network in accelerated(model, x, plans):
        gradient_pass(network, x)
        network.train()
        network.eval()
        assert everything(model) == before  # it has no layer of the model's
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(part.training for part in network.modules())
    assert everything(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(x, copy)
    assert not x.requires_grad
    assert torch.equal(torch.random.get_rng_state(), noise)


@pytest.mark.parametrize("name", [name for name, (_, _, rewritings) in ZOO.items() if not rewritings])
def test_what_cannot_be_rewritten_is_unchanged_with_a_reason(name: str) -> None:
    model = make(name)
    network = accelerate(model, data(ZOO[name][1], 8))
    assert network.plan.rewriting == "none"
    assert network.network is model
    assert len(network.plan.reason) > 10
    assert network.plan.reason in str(network.plan)


@pytest.mark.parametrize("name", ["vgg", "shared-weights", "control-flow-inside"])
def test_float64_networks_agree_within_the_tolerance_of_float64(name: str) -> None:
    model, x = make(name).double(), data(ZOO[name][1], 8).double()
    networks = accelerated(model, x, plans_of(model, x))
    assert len(networks) == 12
    with frozen(model):
        expected = gradient_pass(model, x)
    for network in networks:
        assert_same(expected, gradient_pass(network, x), network.plan)


def test_the_graph_of_a_vgg_has_no_norm_no_dropout_and_no_relu_left() -> None:
    network = accelerate(make("vgg"), data(ZOO["vgg"][1], 8), plan=AccelerationPlan("graph"))
    kinds = {type(part).__name__ for part in network.network.children()}
    assert kinds == {"Convolution", "MaxPool2d", "AvgPool2d", "Flatten", "Linear"}


def test_second_derivatives_of_a_frozen_network_are_those_of_the_original() -> None:
    torch.manual_seed(0)  # with other weights all rectifiers may be dead
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU()),
        *(nn.Conv2d(4, 3, 2), nn.Softplus(), nn.Flatten(), nn.Linear(3, 3), nn.Tanh()),
    )
    model, x = model.double().eval().requires_grad_(False), data((2, 8, 8), 3).double()

    def second(network: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), leaf)[0]

    expected = second(model)
    assert expected.norm() > 0
    for network in accelerated(model, x, plans_of(model, x)):
        torch.testing.assert_close(second(network), expected)


def test_two_backwards_through_one_forward_give_the_same_gradient() -> None:
    model = make("post-activation-resnet")
    for network in accelerated(model, data(ZOO["vgg"][1], 4), plans_of(model, data(ZOO["vgg"][1], 4))):
        leaf = data(ZOO["vgg"][1], 4).requires_grad_()
        total = network(leaf).square().sum()
        one, two = (torch.autograd.grad(total, leaf, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("way", ["torch.compile", "compile", "a part"])
def test_a_compiled_model_is_unchanged(way: str) -> None:
    model, x = make("vgg"), data(ZOO["vgg"][1], 8)
    if way == "compile":
        model.compile(backend="eager")
    elif way == "torch.compile":
        model = torch.compile(model, backend="eager")
    else:
        model = nn.Sequential(model[:4], torch.compile(model[4:], backend="eager"))
    before = everything(model)
    plan = accelerate(model, x).plan
    assert (plan.rewriting, plan.reason[:27]) == ("none", "it is compiled already; acc")
    assert everything(model) == before


# Plans


def test_a_plan_survives_json_and_gives_the_same_bits_twice() -> None:
    model, x = make("vgg"), data(ZOO["vgg"][1], 8)
    for plan in plans_of(model, x):
        again = AccelerationPlan.from_record(json.loads(json.dumps(plan.to_record())))
        assert again == plan
        one, two = (gradient_pass(accelerate(model, x, plan=p), data(ZOO["vgg"][1], 33)) for p in (plan, again))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_plan_of_a_trial_can_be_used_again() -> None:
    model, x = build("small-cnn", (1, 28, 28), 10), data((1, 28, 28), 64)
    network = accelerate(model, x)
    assert network.plan.seconds > 0
    again = accelerate(model, x, plan=AccelerationPlan.from_record(json.loads(json.dumps(network.plan.to_record()))))
    assert again.plan == network.plan
    for one, two in zip(gradient_pass(network, x), gradient_pass(again, x), strict=True):
        assert torch.equal(one, two)


def test_a_plan_is_printed_in_words() -> None:
    kernels = {"0": "phases", "3": "phases", "6": "folding", "9": "native"}
    plan = AccelerationPlan("graph", True, kernels, compiled=True, ratio=0.617, seconds=1.26)
    assert str(plan) == (
        "graph rewritten, 2 of 4 convolutions by phases, 1 of 4 convolutions by folding, channels last, compiled: "
        "0.62 of the original's time (trial 1.3 s)"
    )
    assert str(AccelerationPlan("tree")).startswith("layers replaced: ")
    assert str(AccelerationPlan(reason="it is what it is")) == "unchanged: it is what it is"
    assert str(AccelerationPlan()) == "unchanged"
    assert str(AccelerationPlan(compiled=True)) == "unchanged, compiled"


@pytest.mark.parametrize(
    "record",
    [{"rewriting": "graph", "speed": 1}, {"rewriting": "grph"}, {"kernels": {"0": "winograd"}}, {"kernels": [0]}],
)
def test_a_record_that_is_no_plan_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="must be"):
        AccelerationPlan.from_record(record)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("vgg", AccelerationPlan("graph", kernels={"stem.0": "phases"})),
        ("vgg", AccelerationPlan("tree", kernels={"99": "folding"})),
        ("hooks", AccelerationPlan("graph")),
        ("noise", AccelerationPlan("tree")),
        ("labels-only", AccelerationPlan("tree")),
        ("listed-untraceable", AccelerationPlan("tree")),
    ],
)
def test_a_plan_of_another_model_is_refused(name: str, plan: AccelerationPlan) -> None:
    with pytest.raises(BadInput, match=r"`plan` must be one of this model.*leave it out"):
        accelerate(make(name), data(ZOO[name][1], 8), plan=plan)


def test_bad_arguments_of_accelerate_are_refused() -> None:
    model, x = build("small-mlp", (4,), 3), torch.rand(4, 4)
    with pytest.raises(BadInput, match="`model` must be a torch module"):
        accelerate(lambda z: z, x)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="`example` must hold at least one"):
        accelerate(model, x[:0])
    with pytest.raises(BadInput, match="`compile` must be left out"):
        accelerate(model, x, compile=True, trainable=True)
    with pytest.raises(BadInput, match="`compile` must be left out with a `plan` that does not"):
        accelerate(model, x, plan=AccelerationPlan("graph"), compile=True)
    with pytest.raises(BadInput, match="`plan` must be a trainable one"):
        accelerate(model, x, plan=AccelerationPlan("graph"), trainable=True)


def test_flags_are_restored_where_a_plan_is_refused() -> None:
    model = make("noise")
    before, state = everything(model), tensors(model)
    with pytest.raises(BadInput):
        accelerate(model, data(ZOO["noise"][1], 8), plan=AccelerationPlan("tree"))
    assert everything(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_no_grad_and_an_example_that_requires_grad_give_the_same_network() -> None:
    model, x = make("vgg"), data(ZOO["vgg"][1], 8)
    with torch.no_grad():
        network = accelerate(model, x.clone().requires_grad_(), plan=AccelerationPlan("graph"))
    expected = gradient_pass(accelerate(model, x, plan=AccelerationPlan("graph")), x)
    assert all(torch.equal(a, b) for a, b in zip(gradient_pass(network, x), expected, strict=True))


def test_a_wrong_rewriting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **options: Any) -> nn.Module:
        traced = graph(*args, **options)
        linear = [part for part in traced.modules() if isinstance(part, nn.Linear)][-1]  # a copy, its columns sorted
        linear.weight.mul_(1.01)
        return traced

    monkeypatch.setattr(module, "graph", wrong)
    model, x = make("vgg"), data(ZOO["vgg"][1], 8)
    with pytest.raises(BadInput, match=r"`plan` .*logits differ"):
        accelerate(model, x, plan=AccelerationPlan("graph", True))
    assert accelerate(model, x).plan.rewriting != "graph"


# Compilation


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs C++")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_network_agrees_with_the_original() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), data((1, 4, 4), 1)
    network = accelerate(model, x, plan=AccelerationPlan("graph", kernels={"0": "phases"}, compiled=True))
    assert network.plan.compiled
    assert network.plan.compile_seconds > 0
    with frozen(model):
        assert_same(gradient_pass(model, x), gradient_pass(network, x), "compiled")


def test_a_failing_compiler_gives_a_warning_and_an_uncompiled_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **options: object) -> nn.Module:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", fails)
    model, x = make("vgg"), data(ZOO["vgg"][1], 8)
    for plan in (AccelerationPlan("graph", compiled=True), None):
        with pytest.warns(UserWarning, match=r"`compile` failed.*no compiler here") as caught:
            network = accelerate(model, x, plan=plan, compile=True)
        assert caught[0].filename == __file__
        assert not network.plan.compiled
        with frozen(model):
            assert_same(gradient_pass(model, x), gradient_pass(network, x), "uncompiled")


def test_a_rewritten_network_is_used_only_if_faster_in_two_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("mlp"), data(ZOO["mlp"][1], 8)  # no convolutions, whose kernels are timed too
    rounds = [0.5, 0.7, 0.6]  # the trial, the second measurement, a forward

    def time_ratios(_, runs):
        ratio = rounds.pop(0)
        return [[ratio] for _ in runs]

    monkeypatch.setattr(module, "time_ratios", time_ratios)
    assert (accelerate(model, x).plan.ratio, rounds) == (0.7, [])
    rounds.extend((0.5, 0.96))
    plan = accelerate(model, x).plan
    assert plan == AccelerationPlan(reason="rewritten it takes 0.96 of the original's time", seconds=plan.seconds)


@pytest.mark.parametrize(("ratio", "used"), [(0.8, True), (1.2, False)])
def test_a_compiled_network_is_used_only_if_it_is_faster(
    ratio: float, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: nn.Sequential(network))
    ratios = iter([0.5, 0.5, 0.9, ratio])  # of the rewritten, twice, of its forward, of the compiled

    def time_ratios(_, runs):
        ratio = next(ratios)
        return [[ratio] for _ in runs]

    monkeypatch.setattr(module, "time_ratios", time_ratios)
    model, x = make("vgg"), data(ZOO["vgg"][1], 8)
    network = accelerate(model, x, compile=True)
    assert network.plan.compiled is used
    assert network.plan.ratio == pytest.approx(0.5 * ratio if used else 0.5)
    assert network.plan.forward_ratio == 0.9
    assert network.plan.forwards_too
    assert isinstance(network.network, nn.Sequential) is used
    assert network.plan.compile_seconds > 0


def of_one_process(rank: int, folder: str) -> None:
    """What a process of two does: accelerate, and keep the plan and the logits."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if rank == 1:  # its own trial would find that nothing wins
        module.WINS = 0.0
    torch.manual_seed(0)
    x, model = torch.rand(16, 1, 28, 28), build("small-cnn", (1, 28, 28), 10)
    module.time_ratios = lambda _, runs: [[0.5] for _ in runs]
    fast = accelerate(model, x)
    torch.save({"plan": fast.plan.to_record(), "logits": fast(x)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_use_the_same_plan(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(of_one_process, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["plan"]["rewriting"] == "graph"
    assert first["plan"] | {"seconds": 0} == second["plan"] | {"seconds": 0}
    assert torch.equal(first["logits"], second["logits"])
