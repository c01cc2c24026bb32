"""Models that end in a sigmoid or a softmax: attacked at the logits before it, or refused; never read as logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import epsball as eb
from epsball.acceleration.plan import AccelerationPlan
from epsball.models.last_activation import before_activation
from epsball.problem.objective import ModelWarning
from epsball.training import FGSMMix

BALL = eb.Linf(eps=0.1, lo=0, hi=1)


def examples(n: int = 200) -> tuple[Tensor, Tensor]:
    """Two classes, told apart by a curve."""
    x = nets.batch(n, (6,)).float()
    return x, (x[:, 0] + 0.5 * torch.sin(6 * x[:, 1]) > 0.6).long()


@cache
def logit() -> nn.Sequential:
    """One logit (n, 1), trained by binary cross-entropy."""
    torch.manual_seed(0)
    x, y = examples()
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(x)[:, 0], y.float()).backward()
        optimizer.step()
    return net.eval()


class Written(nn.Module):
    """As most people write it: the sigmoid is a function."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.net(x)).squeeze(1)


NET = logit()
SEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "last of a Sequential": nn.Sequential(NET, nn.Sigmoid()),
    "as a function": Written(NET),
    "a method": lambda x: NET(x).sigmoid().flatten(),
    "of torch.special": lambda x: torch.special.expit(NET(x))[:, 0],
    "of functional": lambda x: F.sigmoid(NET(x)),
}
UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "by hand": lambda x: 1 / (1 + torch.exp(-NET(x))),
    "by tanh": lambda x: 0.5 + 0.5 * torch.tanh(NET(x)[:, 0] / 2),
    "clipped": lambda x: torch.sigmoid(NET(x)).clamp(1e-6, 1 - 1e-6),
    "in place": lambda x: NET(x).sigmoid_(),
    "a column of a softmax": lambda x: F.pad(NET(x), (1, 0)).softmax(1)[:, 1],
}


def outcome(model: object, attacks: object = ("fgsm", "pgd"), **options: object) -> tuple[float, float]:
    found = eb.evaluate(model, examples(), BALL, attacks, diagnose=0, **options)
    return found.clean_accuracy, found.robust_accuracy


@pytest.mark.parametrize("name", SEEN)
def test_a_final_sigmoid_is_left_out_and_said_so(name: str) -> None:
    x, y = examples()
    with pytest.warns(ModelWarning, match="returns probabilities, from the sigmoid at its end"):
        found = outcome(SEEN[name])
    clean, robust = outcome(NET)
    assert found == (clean, robust)
    assert clean > 0.8 > robust + 0.1
    with pytest.warns(ModelWarning, match="probabilities"):
        points = eb.PGD()(SEEN[name], x, y, BALL)
    torch.testing.assert_close(points, eb.PGD()(NET, x, y, BALL))


@pytest.mark.parametrize("name", UNSEEN)
def test_one_probability_that_cannot_be_undone_is_refused(name: str) -> None:
    x, y = examples()
    for n in (1, 200):
        for attack in ("fgsm", "hopskipjump"):
            with pytest.raises(eb.BadInput, match=r"^`model` must return logits, got one output .* a probability"):
                eb.evaluate(UNSEEN[name], (x[:n], y[:n]), BALL, attack, diagnose=0)
        with pytest.raises(eb.BadInput, match="a probability"):
            eb.FGSM()(UNSEEN[name], x[:n], y[:n], BALL)
    with pytest.raises(eb.BadInput, match="a probability"):
        eb.diagnose(UNSEEN[name], (x, y), BALL)


@pytest.mark.parametrize("name", UNSEEN)
def test_the_remedies_of_the_refusal_work(name: str) -> None:
    assert outcome(lambda x: torch.logit(UNSEEN[name](x))) == pytest.approx(outcome(NET), abs=0.03)
    z = nets.weighted(torch.full((6,), 1e-6), 0.5).float()  # a logit that is in [0, 1] almost everywhere
    clean, _ = outcome(lambda x: torch.stack([torch.zeros(len(x)), z(x)], 1))
    assert clean == pytest.approx(examples()[1].double().mean().item())


def in_unit_interval(scale: float) -> nn.Module:
    """Sound logits, all of them in [0, 1] on the examples."""
    return nets.weighted(torch.tensor([1.0, 0.2, 0, 0, 0, -0.1]) * scale, 0.5 - 0.4 * scale).float()


@pytest.mark.parametrize("model", [
    in_unit_interval(0.5),
    in_unit_interval(0.01),
    lambda x: x[:, 0],
    lambda x: x[:, 0].clamp_min(0),
    lambda x: torch.full((len(x),), 0.3) + 0 * x[:, 0],
    lambda x: 0.5 + 0.4 * torch.sin(20 * x[:, 0]) + 0.2 * torch.cos(x.sum(1)),
], ids=["wide", "narrow", "a feature", "rectified", "constant", "bounded"])  # fmt: skip
@pytest.mark.parametrize("n", [1, 2, 200])
def test_logits_that_happen_to_be_in_the_unit_interval_are_no_probabilities(model: Callable, n: int) -> None:
    x, y = examples()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)  # zero gradients
        eb.FGSM()(model, x[:n], y[:n], BALL)
        right = ((model(x) > 0).long() == y).double().mean().item()
        assert outcome(model)[0] == pytest.approx(right)


def test_a_model_that_ends_in_other_functions_keeps_its_output() -> None:
    x, _ = examples(8)
    two = nn.Linear(6, 2)
    for model in (
        NET,
        lambda x: 0.5 * NET(x).sigmoid(),
        lambda x: NET(x).sigmoid().mul_(0.5),
        lambda x: NET(x).sigmoid()[:4],
        lambda x: two(x).softmax(0),
        lambda x: two(x).softmax(1)[:, 0],
        lambda x: two(x).softmax(1).t(),
        lambda x: two(x).log_softmax(1),
        lambda x: torch.cat([1 - NET(x).sigmoid(), NET(x).sigmoid()], 1),
        lambda x: two(x.sigmoid()),
    ):
        output, ends_in = before_activation(model, x)
        assert ends_in == ""
        assert torch.equal(output, model(x))


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Softmax(-1), nn.Sigmoid()], ids=str)
def test_probabilities_of_several_classes_are_left_out_and_said_so(end: nn.Module) -> None:
    net = nets.mlp((6,), 3).float()
    x = examples()[0]
    y = net(x).argmax(1)
    with pytest.warns(ModelWarning, match="the logits before it are used"):
        found = eb.evaluate(nn.Sequential(net, end), (x, y), BALL, "pgd", diagnose=0)
    assert found.robust_accuracy == eb.evaluate(net, (x, y), BALL, "pgd", diagnose=0).robust_accuracy


def test_an_accelerated_network_is_cut_at_the_same_place() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(net, nn.Linear(8, 1)).eval()
    x, _ = examples()
    y = (net(x)[:, 0] > net(x)[:, 0].median()).long()
    for rewriting in ("graph", "tree"):
        with pytest.warns(ModelWarning, match="returns probabilities"):
            one, other = (
                eb.evaluate(model, (x, y), BALL, "pgd", diagnose=0, accelerate=AccelerationPlan(rewriting))
                for model in (net, nn.Sequential(net, nn.Sigmoid()))
            )
        assert one.robust_accuracy == other.robust_accuracy


def test_a_black_box_of_one_probability_is_refused_and_the_remedy_works() -> None:
    x, y = examples()

    def predict(x: np.ndarray) -> np.ndarray:  # as Keras does
        with torch.no_grad():
            return torch.sigmoid(NET(torch.from_numpy(x))).numpy()

    attack = "square:steps=30"
    with pytest.raises(eb.BadInput, match=r"^`scores` must be 'probabilities'"):
        eb.evaluate(eb.BlackBox(predict), (x, y), BALL, attack, diagnose=0)
    found = outcome(eb.BlackBox(predict, scores="probabilities"), attack)
    assert found == pytest.approx(outcome(NET, attack), abs=0.02)
    narrow = in_unit_interval(0.01)
    columns = lambda x: F.pad(narrow(torch.from_numpy(x))[:, None], (1, 0)).detach().numpy()  # noqa: E731
    assert outcome(eb.BlackBox(columns), attack)[0] == pytest.approx(y.double().mean().item())


@pytest.mark.parametrize("objective", [FGSMMix(), "own"])
@pytest.mark.parametrize("written", [False, True])
def test_a_network_that_ends_in_a_sigmoid_is_trained_on_its_logits(written: bool, objective: object) -> None:
    """It was trained to chance level, as its output was read as a logit."""
    torch.manual_seed(0)
    x, y = examples()
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    net = Written(net) if written else nn.Sequential(net, nn.Sigmoid())

    def own(model: nn.Module, x: Tensor, y: Tensor, ball: object, step: object) -> dict[str, float]:
        loss = F.binary_cross_entropy(model(x).reshape(-1), y.float())  # of the probability that the model returns
        loss.backward()
        return {"loss": loss.item()}

    with pytest.warns(ModelWarning, match="returns probabilities"):
        result = eb.fit(
            net, (x, y), eb.Linf(eps=0.02, lo=0, hi=1), objective=own if objective == "own" else objective, epochs=40,
            batch_size=50, lr=2e-2, hold_out=50,
        )  # fmt: skip
    assert ((net(x).reshape(-1) > 0.5).long() == y).float().mean() > 0.8
    assert result.checks[-1].clean > 0.7


def test_a_network_of_one_probability_that_cannot_be_undone_is_not_trained() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return 1 / (1 + torch.exp(-self.net(x)))

    with pytest.raises(eb.BadInput, match="a probability"):
        eb.fit(ByHand(), examples(), BALL, epochs=1)
