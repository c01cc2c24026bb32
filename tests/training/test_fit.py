"""The training loop: what it computes, that it is reproducible, and that it restores the state of the model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from epsball import Linf
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.problem.outputs import two_columns
from epsball.training import Plain
from epsball.training.fit import fit
from epsball.training.fit_result import Diverged, FitResult, Progress
from epsball.training.registry import OBJECTIVES


@pytest.fixture(scope="module")
def digits() -> Examples:
    return load_data("digits", split="train", first=300)


def net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    body = build("small-mlp", (1, 8, 8), 10, seed=seed)
    return nn.Sequential(nn.Dropout(dropout), nn.BatchNorm2d(1), *body)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([part.detach().flatten().double() for part in model.state_dict().values()])


def test_plain_training_learns_the_digits():
    data, held_out = load_data("digits", split="train"), load_data("digits")
    model = build("small-mlp", data.shape, data.classes)
    result = fit(model, data, epochs=12, lr=1e-2)
    losses = [epoch["loss"] for epoch in result.epochs]
    assert losses[-1] < 0.05 < losses[0]
    assert result.epochs[-1]["accuracy"] > 0.99
    assert (model(held_out.x).argmax(1) == held_out.y).float().mean() > 0.88


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_same_seed_gives_the_same_bits_whatever_the_order_and_the_global_generator(digits, optimizer):
    runs = []
    for case in ("first", "again", "shuffled", "other seed"):
        torch.manual_seed(len(runs))
        data = digits.rows(torch.randperm(len(digits))) if case == "shuffled" else digits
        model = net(dropout=0.2)
        result = fit(
            model, data, epochs=2, batch_size=64, optimizer=optimizer, seed=-5 if case == "other seed" else 1 << 70
        )
        runs.append((weights(model), result.epochs))
    first, again, shuffled, other = runs
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert torch.equal(first[0], shuffled[0])
    assert not torch.equal(first[0], other[0])


def test_one_step_is_that_of_torch_computed_by_hand(digits):
    data, model, twin = digits.rows(slice(50)), build("small-mlp", (1, 8, 8), 10), build("small-mlp", (1, 8, 8), 10)
    fit(model, data, epochs=1, batch_size=50, optimizer="sgd", lr=0.1, schedule="constant", weight_decay=0.01)
    F.cross_entropy(twin(data.x), data.y).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        step = q.grad + 0.01 * q.detach()
        torch.testing.assert_close(p.detach(), q.detach() - 0.1 * (step + 0.9 * step))  # Nesterov's first step


class Recorder:
    """Keeps what an objective is given; trains as `Plain` does."""

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, model, x, y, ball, step):
        self.calls.append((x, y, ball, step.noise, model.training))
        return Plain()(model, x, y, ball, step)


def test_an_objective_gets_each_example_once_per_epoch_with_its_ball_and_noise(digits):
    ids = torch.arange(131) * 3 + 10
    data = replace(digits.rows(slice(131)), ids=ids)
    ball = Linf(eps=torch.linspace(0, 1, 131), lo=0, hi=1)
    seen, marks = Recorder(), []
    fit(net(), data, ball, objective=seen, epochs=2, batch_size=65, seed=4, progress=marks.append)
    assert sorted(len(x) for x, *_ in seen.calls) == [43, 43, 44, 44, 44, 44]  # no batch of one left over
    orders = []
    for epoch in range(2):
        calls = seen.calls[3 * epoch : 3 * epoch + 3]
        orders.append(torch.cat([noise.ids for *_, noise, _ in calls]).tolist())
        assert sorted(orders[-1]) == ids.tolist()
        for x, y, part, noise, training in calls:
            rows = (noise.ids - 10) // 3
            assert torch.equal(x, data.x[rows])
            assert torch.equal(y, data.y[rows])
            assert torch.equal(part.eps, ball.eps[rows])
            assert (noise.seed, noise.restart.unique().tolist(), training) == (4, [epoch], True)
    assert orders[0] != orders[1]
    assert [mark.step for mark in marks] == [1, 2, 3, 4, 5, 6]
    assert [mark.epoch for mark in marks] == [1, 1, 1, 2, 2, 2]
    assert all((mark.steps, mark.epochs) == (6, 2) for mark in marks)
    assert all(mark.loss == mark.logged["loss"] > 0 for mark in marks)
    assert math.isnan(Progress(1, 1, 1, 1, {}, 0.0).loss)


def test_epoch_means_are_over_examples_and_the_schedule_ends_near_zero(digits):
    sizes, rates = [], []

    class Count(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return x.flatten(1)[:, :10] * self.weight

    def objective(model, x, y, ball, step):
        before = model.weight.item()
        rates.append(before)
        model.weight.sum().backward()  # a gradient of one: Adam moves by the learning rate
        sizes.append(len(x))
        return {"size": len(x), "one": torch.tensor(1.0)}

    model = Count()
    result = fit(model, digits.rows(slice(100)), objective=objective, batch_size=15, epochs=2, lr=0.5)
    assert result.epochs[0] == {"size": sum(s * s for s in sizes[:7]) / 100, "one": 1.0}
    moves = -torch.tensor([*rates, model.weight.item()]).diff()
    want = [min(at / 0.3, (1 - at) / 0.7) * 0.5 for at in ((step + 0.5) / 14 for step in range(14))]
    torch.testing.assert_close(moves, torch.tensor(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_gradients_frozen_parts_and_generators_are_restored_also_after_an_exception(digits, fails):
    model = net(dropout=0.5)
    model.eval()
    model[3].train()
    model[-1].weight.requires_grad_(False)
    gradient = torch.ones_like(model[-1].bias)
    model[-1].bias.grad = gradient
    frozen_weight = model[-1].weight.clone()
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    generator = torch.get_rng_state()

    def objective(model, x, y, ball, step):
        if fails:
            raise KeyError("in the objective")
        return Plain()(model, x, y, ball, step)

    if fails:
        with pytest.raises(KeyError, match="in the objective"):
            fit(model, digits, objective=objective)
    else:
        with torch.no_grad():  # a caller's no_grad does not stop training
            fit(model, digits, objective=objective, epochs=1)
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)
    assert model[-1].bias.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert [p.grad for p in model.parameters() if p is not model[-1].bias] == [None] * 7
    assert torch.equal(model[-1].weight, frozen_weight)


def test_a_model_with_one_logit_is_trained_with_binary_cross_entropy():
    x = torch.tensor([[1.0, 0.2], [-1.0, 0.3], [2.0, 0.1], [-0.5, 0.0]])
    y = torch.tensor([1, 0, 1, 0])
    for model in (nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))):
        z = model(x).flatten()
        want = F.binary_cross_entropy_with_logits(z, y.float())
        result = fit(model, (x, y), epochs=40, lr=0.5)
        assert result.epochs[0]["loss"] == pytest.approx(want.item())
        assert result.epochs[-1]["accuracy"] == 1
    assert two_columns(torch.zeros(3, 4)).shape == (3, 4)
    for wrong in (torch.zeros(3, dtype=torch.long), torch.zeros(3, 2, 2), torch.zeros(3, 0), {"scores": z}):
        with pytest.raises(BadInput, match="`model` must return"):
            two_columns(wrong)


def test_label_smoothing_is_that_of_torch(digits):
    model = build("small-mlp", (1, 8, 8), 10)
    want = F.cross_entropy(model(digits.x), digits.y, label_smoothing=0.3).item()
    result = fit(model, digits, objective=Plain(label_smoothing=0.3), batch_size=300, epochs=1)
    assert result.epochs[0]["loss"] == pytest.approx(want)
    with pytest.raises(BadInput, match=r"`label_smoothing` must be in \[0, 1\)"):
        Plain(label_smoothing=1)


def test_a_result_records_what_was_done_and_survives_json(digits):
    result = fit(net(), digits, Linf(eps=0.1, lo=0, hi=1), epochs=2, seed=3, objective=Plain(label_smoothing=0.1))
    assert FitResult.from_json(result.to_json()) == result
    assert result.config["objective"] == "Plain(label_smoothing=0.1)"
    assert (result.config["seed"], result.config["epochs"], result.config["data"]) == (3, 2, "digits")
    assert result.config["versions"]["torch"] == torch.__version__
    assert len(result.epochs) == 2
    assert result.seconds > 0


def test_a_loss_that_is_not_finite_stops_training_with_the_step_and_keeps_finite_weights(digits):
    model = build("small-mlp", (1, 8, 8), 10)
    with pytest.raises(Diverged, match=r"nan.* in epoch \d+, step \d+, at .*smaller `lr` than 1e\+30"):
        fit(model, digits, optimizer="sgd", lr=1e30, schedule="constant")
    fine = build("small-mlp", (1, 8, 8), 10)

    def objective(model, x, y, ball, step):
        (model(x).sum() * math.nan).backward()
        return {"loss": math.nan}

    before = weights(fine)
    with pytest.raises(Diverged, match="in epoch 1, step 1, at"):
        fit(fine, digits, objective=objective)
    assert torch.equal(weights(fine), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number >= 1"),
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1"),
        ({"lr": 0.0}, "`lr` must be > 0"),
        ({"lr": math.nan}, "`lr` must be > 0"),
        ({"weight_decay": -1.0}, "`weight_decay` must be >= 0"),
        ({"schedule": "onecycle"}, "did you mean 'one-cycle'"),
        ({"optimizer": "adamw"}, "did you mean 'adam'"),
    ],
)
def test_options_that_break_a_rule_are_refused(digits, options, message):
    model = net()
    with pytest.raises(BadInput, match=message):
        fit(model, digits, **options)
    assert torch.equal(weights(model), weights(net()))


def test_data_models_and_balls_that_do_not_fit_are_refused_before_the_first_step(digits):
    with pytest.raises(BadInput, match="at least one example"):
        fit(net(), digits.rows(slice(0)))
    with pytest.raises(BadInput, match="below the 4 classes of the model, got 9"):
        fit(build("small-mlp", (1, 8, 8), 4), digits)
    with pytest.raises(BadInput, match=r"`x` must lie in the box \[0.5, 1\]"):
        fit(net(), digits, Linf(eps=0.1, lo=0.5, hi=1))
    with pytest.raises(BadInput, match="unfreeze"):
        fit(net().requires_grad_(False), digits)
    with pytest.raises(BadInput, match=r"write x\.to\(torch\.float32\)"):
        fit(net(), (torch.zeros(3, 1, 8, 8, dtype=torch.long), [0, 1, 2]))
    data = from_arrays(digits.x.tolist(), digits.y.tolist())
    assert fit(net(), (digits.x, digits.y), epochs=1).epochs == fit(net(), data, epochs=1).epochs


def test_the_table_of_objectives_names_them():
    assert OBJECTIVES["plain"] == (Plain.__module__, Plain.__name__)
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from epsball.training import Nothing  # noqa: F401
