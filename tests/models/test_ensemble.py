"""Ensembles: the mean of logits or of probabilities, with gradients, in Python and by their spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import batch, linear, mlp, predicted
from torch import Tensor, nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.models import Ensemble
from epsball.models.door import Asked, Loaded
from epsball.models.ensemble import ensemble_of, members
from epsball.models.preparation import Preparation

SHAPE = (5,)


def networks(classes: int = 3) -> list[nn.Module]:
    return [linear(SHAPE, classes), mlp(SHAPE, classes), linear(SHAPE, classes, seed=7)]


class Squeezed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).squeeze(1)


def test_mean_of_logits_is_the_mean_of_logits() -> None:
    nets, x = networks(), batch(6, SHAPE)
    torch.testing.assert_close(Ensemble(nets)(x), sum(net(x) for net in nets) / 3)


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("squeezed", [True, False])
def test_softmax_of_the_mean_of_probabilities_is_that_mean(classes: int, squeezed: bool) -> None:
    nets, x = networks(classes), batch(6, SHAPE)
    if squeezed and classes == 1:
        nets = [Squeezed(net) for net in nets]
    found = Ensemble(nets, mean="probabilities")(x)
    assert found.shape == nets[0](x).shape
    if classes == 1:
        torch.testing.assert_close(found.sigmoid(), sum(net(x).sigmoid() for net in nets) / 3)
    else:
        torch.testing.assert_close(found.softmax(1), sum(net(x).softmax(1) for net in nets) / 3)


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_are_finite_differences(mean: Any, classes: int) -> None:
    ensemble = Ensemble([mlp(SHAPE, classes), mlp(SHAPE, classes, seed=3)], mean)
    assert torch.autograd.gradcheck(ensemble, batch(4, SHAPE).requires_grad_(), atol=1e-7)


def test_probabilities_that_saturate_keep_their_gradient() -> None:
    x = torch.tensor([[500.0, 0.0], [0.0, 900.0]], requires_grad=True)
    found = Ensemble([lambda x: x, lambda x: 2 * x], mean="probabilities")(x)
    assert found.isfinite().all()
    (found[:, 0] - found[:, 1]).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs() > 0.5).all()


def test_members_of_two_dtypes_go_together() -> None:
    nets = [mlp(SHAPE, 3).float(), mlp(SHAPE, 3, seed=1)]
    for dtype in (torch.float32, torch.float64):
        x = batch(4, SHAPE).to(dtype).requires_grad_()
        found = Ensemble(nets)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, (nets[0](x.float()).to(dtype) + nets[1](x.double()).to(dtype)) / 2)
        found.sum().backward()
        assert x.grad is not None
        assert x.grad.abs().min() > 0


def test_one_model_is_itself() -> None:
    net, x = mlp(SHAPE, 3), batch(6, SHAPE)
    torch.testing.assert_close(Ensemble([net])(x), net(x))
    torch.testing.assert_close(Ensemble([net], "probabilities")(x), net(x).log_softmax(1))


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_evaluation_of_an_ensemble_is_that_of_its_function(mean: Any) -> None:
    nets = [mlp(SHAPE, 3, seed=seed) for seed in range(3)]
    x = batch(24, SHAPE, lo=-3, hi=3)

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList(nets)

        def forward(self, x: Tensor) -> Tensor:
            if mean == "logits":
                return (nets[0](x) + nets[1](x) + nets[2](x)) / 3
            return ((nets[0](x).softmax(1) + nets[1](x).softmax(1) + nets[2](x).softmax(1)) / 3).log()

    y = predicted(ByHand(), x)
    ball = eb.Linf(eps=0.4)
    found, known = (
        eb.evaluate(model, (x, y), ball, ("fgsm", "pgd:steps=8"), diagnose=0)
        for model in (Ensemble(nets, mean), ByHand())
    )
    assert 0 < found.robust_accuracy < 1
    assert found.records["status"].equals(known.records["status"])
    assert all(net.training is False for net in nets)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "at least one model, got none"),
        ([3], "callable, x -> logits, got int"),
        ([eb.BlackBox(lambda x: x)], "got a BlackBox, whose queries"),
    ],
)
def test_models_that_make_no_ensemble_are_refused(models: list[Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Ensemble(models)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([linear(SHAPE, 3), linear(SHAPE, 4)], r"same shape, got \(2, 3\) and \(2, 4\)"),
        ([linear(SHAPE, 3), lambda x: x.argmax(1)], r"logits \(n, classes\).*got torch.int64"),
        ([lambda x: {"scores": x}], "got dict"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(models: list[Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Ensemble(models)(batch(2, SHAPE))


class Activated(nn.Module):
    def __init__(self, model: nn.Module, activation: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.activation = model, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.model(x))


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
@pytest.mark.parametrize("classes", [1, 3])
def test_members_that_end_in_an_activation_count_by_the_logits_before_it(mean: Any, classes: int) -> None:
    nets, x = networks(classes), batch(6, SHAPE)
    ends = [Activated(net, torch.sigmoid if classes == 1 else lambda z: z.softmax(-1)) for net in nets]
    torch.testing.assert_close(Ensemble([*ends[:2], nets[2]], mean)(x), Ensemble(nets, mean)(x))


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_from_no_activation_that_is_seen_are_refused(mean: Any, classes: int) -> None:
    net = networks(classes)[1]
    hidden = (lambda z: 1 / (1 + (-z).exp())) if classes == 1 else (lambda z: z.exp() / z.exp().sum(1, keepdim=True))
    ensemble = Ensemble([net, Activated(net, hidden)], mean)
    with pytest.raises(BadInput, match=r"`models?` must return logits, got .* in \[0, 1\]"):
        ensemble(batch(6, SHAPE))


def test_logits_that_look_like_probabilities_once_are_logits() -> None:
    ensemble = Ensemble([lambda x: x], "logits")
    x = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert ensemble(x).equal(x)


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_one_logit_goes_with_two_columns(mean: Any) -> None:
    one, two, x = linear(SHAPE, 1), linear(SHAPE, 2), batch(6, SHAPE)
    columns = Activated(one, lambda z: torch.cat([0 * z, z], 1))
    found = Ensemble([Squeezed(one), two], mean)(x)
    torch.testing.assert_close(found, Ensemble([columns, two], mean)(x))
    torch.testing.assert_close(Ensemble([Squeezed(one), one], mean)(x), one(x)[:, 0])


def test_members_are_what_any_function_takes() -> None:
    from sklearn.linear_model import LogisticRegression

    x = batch(60, SHAPE, lo=-3, hi=3)
    fitted = LogisticRegression().fit(x.numpy(), predicted(linear(SHAPE, 3), x).numpy())
    net = Activated(linear(SHAPE, 3), lambda z: {"features": None, "logits": z})
    found = Ensemble([fitted, net.forward], "probabilities")(x).softmax(1)
    known = (torch.from_numpy(fitted.predict_proba(x.numpy())) + net.model(x).softmax(1)) / 2
    torch.testing.assert_close(found, known)


def test_label_names_of_members_are_those_of_the_ensemble() -> None:
    nets = [mlp(SHAPE, 3), mlp(SHAPE, 3, seed=1)]
    vars(nets[1])["label_names"] = ("c", "a", "b")
    ensemble = Ensemble([*nets, lambda x: x[:, :3]])
    x = batch(20, SHAPE)
    texts = [("c", "a", "b")[label] for label in predicted(ensemble, x).tolist()]
    assert eb.evaluate(ensemble, (x, texts), eb.Linf(eps=0.01), ("fgsm",), diagnose=0).clean_accuracy == 1
    vars(nets[0])["label_names"] = ("a", "b", "c")
    with pytest.raises(BadInput, match=r"same label names, but that of models\[0\] is \('a', 'b', 'c'\), that of"):
        Ensemble(nets)


def test_preparation_of_members_is_that_of_the_ensemble() -> None:
    nets = [mlp(SHAPE, 3), mlp(SHAPE, 3, seed=1)]
    vars(nets[1])["preparation"] = Preparation(resize=8)
    with pytest.raises(BadInput, match=r"same preparation, but that of models\[0\] is none, that of models\[1\]"):
        Ensemble(nets)
    vars(nets[0])["preparation"] = Preparation(resize=8)
    assert Ensemble(nets).preparation == Preparation(resize=8)


def test_mode_is_that_of_the_members() -> None:
    ensemble = Ensemble([mlp(SHAPE, 3).eval(), lambda x: x[:, :3]])
    assert not any(module.training for module in ensemble.modules())
    assert Ensemble([mlp(SHAPE, 3).train(), mlp(SHAPE, 3).eval()]).training


# By the spec


def test_two_networks_by_name_are_an_ensemble() -> None:
    model = eb.load("ensemble:mean=probabilities,small-mlp,maxout:units=8,dropout=0", shape=(1, 4, 4), classes=3)
    assert isinstance(model, Ensemble)
    assert model.mean == "probabilities"
    x = torch.rand(5, 1, 4, 4)
    parts = [part(x).softmax(1) for part in model.models]
    torch.testing.assert_close(model(x).softmax(1), (parts[0] + parts[1]) / 2)


def test_folders_of_trained_models_are_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "members_of_ours.py").write_text(
        "import torch\n"
        "def first():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))\n"
        "second = first\n"
    )
    monkeypatch.chdir(tmp_path)
    model = eb.load("ensemble:members_of_ours:first,members_of_ours:second")
    assert model(torch.rand(2, 1, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("spec", "mean", "found"),
    [
        ("ensemble:a,b", "logits", ["a", "b"]),
        ("ensemble:mean=logits, a , b", "logits", ["a", "b"]),
        ("ensemble:n:width=16,x=1,b.onnx,m:k=2", "logits", ["n:width=16,x=1", "b.onnx", "m:k=2"]),
        ("ensemble:mean=probabilities,timm:r,hf:o/n", "probabilities", ["timm:r", "hf:o/n"]),
    ],
)
def test_a_comma_starts_a_member_unless_an_option_follows(spec: str, mean: str, found: list[str]) -> None:
    assert members(spec) == (mean, found)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ensemble:a", "of two models or more, got 'ensemble:a'"),
        ("ensemble:", "of two models or more"),
        ("ensemble:a,,b", "of two models or more"),
        ("ensemble:mean=probabilities", "of two models or more"),
        ("ensemble:mean=median,a,b", "must be one of logits, probabilities, got 'median'"),
        ("ensemble:a,ensemble:b", "of models that are none"),
        ("ensembles:a,b", "must be an ensemble, got 'ensembles:a,b'"),
    ],
)
def test_specs_of_no_ensemble_are_refused(spec: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        members(spec)


def opener(**found: Loaded) -> Callable[[Asked], Loaded]:
    return lambda asked: found[asked.spec]


def test_members_that_do_not_fit_each_other_are_refused() -> None:
    one = Loaded(model=linear(SHAPE, 3), shape=SHAPE, label_names=("p", "q", "r"), preparation=Preparation(resize=8))
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "classes": ({"model": linear(SHAPE, 4), "label_names": None}, r"fit each other: .*\(1, 3\) and \(1, 4\)"),
        "names": ({"label_names": ("p", "r", "q")}, r"fit each other: .* same label names, but that of models\[0\] is"),
        "shape": ({"shape": (6,)}, r"same shape, but that of models\[0\] is \(5,\), that of models\[1\] \(6,\)"),
        "preparation": (
            {"preparation": Preparation(resize=9)},
            r"same preparation, but that of models\[0\] is .*see images alike",
        ),
        "no preparation": ({"preparation": None}, "see images alike"),
        "black box": ({"model": eb.BlackBox(lambda x: x)}, "but b is a black box, whose queries"),
    }
    for name, (change, message) in cases.items():
        with pytest.raises(BadInput, match=message):
            ensemble_of(
                Asked(spec="ensemble:a,b"), opener(a=one, b=replace(one, **({"model": linear(SHAPE, 3)} | change)))
            )
        assert name
    found = ensemble_of(Asked(spec="ensemble:a,b"), opener(a=one, b=replace(one, shape=None, label_names=None)))
    assert (found.shape, found.label_names, found.preparation) == (SHAPE, ("p", "q", "r"), Preparation(resize=8))
    assert found.notes == ("mean of the logits of 2 models: a, b",)


def test_weights_are_refused() -> None:
    with pytest.raises(BadInput, match="whose members have their own"):
        ensemble_of(Asked(spec="ensemble:a,b", weights=Path("w.pt")), opener())
