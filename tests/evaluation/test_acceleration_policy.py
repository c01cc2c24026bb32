"""An evaluation whose attacks run on the accelerated model: when that is done, and that only the time changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball.acceleration.accelerate import Accelerated, accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.evaluation.acceleration_policy import LONG, accelerated
from epsball.models.registry import build
from epsball.problem.task import task_of
from epsball.training.fit import fit

FORCED = AccelerationPlan("graph", kernels={"0": "folding", "2": "phases"})
BALL = Linf(eps=0.05, lo=0, hi=1)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network on scikit-learn's digits, images of 1 x 8 x 8."""
    from epsball.data.load import load_data

    data = load_data("digits", split="train", first=800)
    x = data.x.reshape(-1, 1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("small-cnn", (1, 8, 8), 10)
    fit(model, (x, data.y), epochs=6, lr=5e-3)
    return model.train(), x[:96], data.y[:96]


@pytest.mark.parametrize("attacks", [["fgsm", "pgd:steps=10"], ["apgd-t:steps=8,n_targets=2", "square:steps=40"]])
@pytest.mark.parametrize("storage", ["float", "8bit"])
def test_acceleration_leaves_results_unchanged(digits, attacks: list[str], storage: str) -> None:
    model, x, y = digits
    plain = eb.evaluate(model, (x, y), BALL, attacks, accelerate=False, storage=storage)
    fast = eb.evaluate(model, (x, y), BALL, attacks, accelerate=FORCED, storage=storage)
    assert 0.1 < plain.robust_accuracy < 0.9
    assert fast.records["status"].equals(plain.records["status"])
    assert plain.config["acceleration"] is None
    assert AccelerationPlan.from_record(fast.config["acceleration"]) == FORCED
    assert model.training
    again = eb.evaluate(model, (x, y), BALL, attacks, accelerate=FORCED, storage=storage, batch_size=32)
    assert again.records.equals(fast.records)
    assert again.adversarial.equals(fast.adversarial)


def test_success_is_checked_on_the_model_itself(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerated network with wrong predictions (as in low precision) must not add a success."""
    model, x, y = digits
    honest = eb.evaluate(model, (x, y), BALL, "pgd:steps=10", accelerate=False)

    class Liar(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return -model(z)  # misclassifies nearly every example without attack

    lying = Accelerated(Liar(), FORCED)
    monkeypatch.setattr("epsball.evaluation.acceleration_policy.accelerate", lambda *_, **__: lying)
    found = eb.evaluate(model, (x, y), BALL, "pgd:steps=10", accelerate=True)
    assert found.count("fooled") <= honest.count("fooled")
    for index, point in zip(*found.points(), strict=True):
        with torch.no_grad():
            assert model(torch.from_numpy(point)[None]).argmax(1) != y[index]


def test_resume_keeps_the_acceleration_plan(digits, tmp_path: Path) -> None:
    model, x, y = digits
    run = {"attacks": ["fgsm", "pgd:steps=10"], "shard_size": 32}
    whole = eb.evaluate(model, (x, y), BALL, **run, accelerate=FORCED, run_dir=tmp_path / "whole")
    part = Path(shutil.copytree(tmp_path / "whole", tmp_path / "part"))
    for gone in [*part.glob("records/00001*"), *part.glob("stages/00001-0*")]:
        gone.unlink()
    assert eb.evaluate(model, (x, y), BALL, **run, run_dir=part).records.equals(whole.records)
    assert json.loads((part / "config.json").read_text())["acceleration"]["kernels"] == FORCED.kernels
    with pytest.raises(BadInput, match="another `acceleration`"):
        eb.evaluate(model, (x, y), BALL, **run, run_dir=part, accelerate=False)
    plain = tmp_path / "plain"
    eb.evaluate(model, (x, y), BALL, **run, run_dir=plain)
    eb.evaluate(model, (x, y), BALL, **run, run_dir=plain)
    with pytest.raises(BadInput, match="another `acceleration`"):
        eb.evaluate(model, (x, y), BALL, **run, run_dir=plain, accelerate=FORCED)


def test_transfer_attacks_run_on_the_accelerated_source(digits) -> None:
    model, x, y = digits
    source = build("small-cnn", (1, 8, 8), 10)
    plain = eb.evaluate(model, (x, y), BALL, "pgd:steps=10", source=source, accelerate=False)
    fast = eb.evaluate(model, (x, y), BALL, "pgd:steps=10", source=source, accelerate=FORCED)
    assert fast.records["status"].equals(plain.records["status"])


def test_trial_is_made_only_where_it_can_pay(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = digits
    requested: list[int] = []

    def noted(module: nn.Module, example: Tensor, **options: object) -> Accelerated:
        requested.append(len(example))
        return Accelerated(module, AccelerationPlan(reason="asked"))

    monkeypatch.setattr("epsball.evaluation.acceleration_policy.accelerate", noted)
    many, few = eb.PGD(steps=3 * LONG // len(x)), eb.PGD(steps=LONG // len(x) - 1)
    some = eb.PGD(steps=LONG // len(x) + 2)  # enough if all were robust
    far = Linf(eps=1.0, lo=0, hi=1)

    def tried(network: object, attack: eb.PGD, ball: Linf) -> bool:
        requested.clear()
        task = task_of(x, y, ball.bind(x))
        options = {"requested": None, "compile": False, "before": None, "batch_size": 32}
        return accelerated(network, task, (attack,), **options) is not None and requested == [32]  # type: ignore[arg-type]

    assert tried(model, many, BALL)
    assert not tried(model, few, BALL)  # too short
    assert not tried(model, some, BALL)  # too short for the share that is robust
    assert not tried(model, many, far)  # nothing is robust
    assert not tried(build("small-mlp", (1, 8, 8), 10), many, BALL)  # nothing to accelerate
    assert not tried(lambda z: model(z), many, BALL)
    assert model.training


def test_accelerating_a_callable_is_refused_with_a_reason(digits) -> None:
    model, x, y = digits
    with pytest.raises(BadInput, match="`model` must be a torch module, got function"):
        eb.evaluate(lambda z: model(z), (x, y), BALL, "fgsm", accelerate=True)
    other = build("small-mlp", (1, 8, 8), 10)
    with pytest.raises(BadInput, match="`plan` must be one of this model"):
        accelerate(other, x, plan=FORCED)


@pytest.mark.parametrize(("forward_ratio", "used"), [(1.05, False), (0.8, True)])
def test_gradient_free_attacks_use_the_accelerated_network_only_if_its_forward_is_faster(
    digits, monkeypatch: pytest.MonkeyPatch, forward_ratio: float, used: bool
) -> None:
    model, x, y = digits
    rows: list[int] = []
    forward = Accelerated.forward
    monkeypatch.setattr(Accelerated, "forward", lambda self, x: rows.append(len(x)) or forward(self, x))
    plan = replace(FORCED, forward_ratio=forward_ratio)
    found = eb.evaluate(model, (x, y), BALL, "square:steps=40", accelerate=plan, convergence=0)
    assert (sum(rows) > 40 * found.count("robust")) is used
    rows.clear()
    eb.evaluate(model, (x, y), BALL, "pgd:steps=10", accelerate=plan)
    assert sum(rows) > 100
