"""Distances to the decision boundary: one run gives all of them, other attacks check them, the files agree."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import batch, rng
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack, State
from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.evaluation.boundary_search import boundary_search
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Objective
from epsball.problem.task import Task, task_of

SHAPE, CLASSES = (1, 8, 8), 4
FAB = "fab:minimise=true,steps=20"


def subject(n: int = 90) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model, x = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
        batch(n, SHAPE, seed=2).float(),
    )
    with torch.no_grad():
        for layer in (model[1], model[3]):
            layer.weight.normal_(generator=rng(1))
            layer.bias.zero_()
        model[3].bias.sub_(model(x).mean(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % CLASSES
    return model, (x, y)


def linear(d: int = 12) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, 2)).double()
    with torch.no_grad():
        model[1].weight.normal_(generator=rng(3))
        x = batch(40, (d,), seed=4)
        return model, (x, model(x).argmax(1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_of_a_linear_model_are_exact(norm: str) -> None:
    model, (x, y) = linear()
    ball = BALLS[norm](eps=0.1, lo=0, hi=1)
    found = eb.evaluate(model, (x, y), ball, [FAB, "apgd:steps=20"], min_norm=True)
    weight = model[1].weight[1] - model[1].weight[0]
    signed = torch.where(y == 0, 1.0, -1.0)[:, None] * weight
    out = model(x)
    gap = (out.gather(1, y[:, None]) - out.gather(1, 1 - y[:, None])).squeeze(1)
    exact = ball.min_eps(gap, signed, x).detach().numpy()
    assert np.isfinite(exact).all()
    assert (found.distances >= exact * (1 - 1e-9)).all()
    assert found.distances == pytest.approx(exact, rel=1e-2)
    assert found.quantiles((0.5,))[0][1] == pytest.approx(np.sort(exact)[19], rel=1e-2)
    for eps in np.quantile(exact, [0.1, 0.5, 0.9]) * 1.01:
        assert found.accuracy_at(eps) == pytest.approx((exact > eps).mean(), abs=0.026)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_curve_is_at_most_that_of_each_attack_alone(norm: str) -> None:
    model, data = subject()
    ball = BALLS[norm](eps=1.0, lo=0, hi=1)
    weak = eb.evaluate(model, data, ball, "fab:minimise=true,steps=2", min_norm=True)
    radii = [weak.quantiles((share,))[0][1] for share in (0.3, 0.6, 0.9)]
    fixed = eb.evaluate(model, data, ball, "apgd:steps=30", eps=radii)
    both = eb.evaluate(model, data, ball, ["apgd:steps=30", "fab:minimise=true,steps=2"], eps=radii, min_norm=True)
    assert [eps for eps, _ in both.curve] == [eps for eps, _ in fixed.curve] == radii
    assert any(mine < 1 for _, mine in fixed.curve)
    for (eps, mine), (_, theirs) in zip(both.curve, fixed.curve, strict=True):
        assert mine <= min(theirs, weak.accuracy_at(eps))
        assert mine == both.accuracy_at(eps)
    assert (both.distances <= weak.distances).all()
    assert [stage.attack for stage in both.stages[1:]] == ["fab:minimise=true,steps=2", *["apgd:steps=30"] * 3]


def test_a_stronger_attack_shortens_distances_and_a_weaker_one_does_not() -> None:
    model, data = subject()
    ball = eb.L2(eps=0, lo=0, hi=1)
    alone = eb.evaluate(model, data, ball, "fab:minimise=true,steps=1", min_norm=True)
    checked = eb.evaluate(model, data, ball, ["fab:minimise=true,steps=1", "pgd:steps=20"], min_norm=True)
    nearer = checked.distances < alone.distances
    assert nearer.any()
    assert (checked.distances[nearer] <= 0.95 * alone.distances[nearer] * (1 + 1e-6)).all()
    assert (checked.distances[~nearer] == alone.distances[~nearer]).all()
    assert checked.stages[-1].fooled == nearer.sum()
    assert checked.stages[-1].unconfirmed == 0
    noise = eb.evaluate(model, data, ball, [FAB, "uniform-noise"], min_norm=True)
    assert noise.stages[-1].fooled == 0


def test_the_run_directory_agrees_and_resumes_to_the_same_bits(tmp_path) -> None:
    model, data = subject()
    ball, attacks = eb.Linf(eps=0.1, lo=0, hi=1), ["fab:minimise=true,steps=3", "deepfool", "apgd:steps=20"]
    whole = eb.evaluate(model, data, ball, attacks, min_norm=True, run_dir=tmp_path / "a", shard_size=32)
    assert eb.verify(tmp_path / "a", model).agrees
    assert eb.verify(tmp_path / "a", model, data=data).agrees
    loaded = eb.Evaluation.load(tmp_path / "a")
    assert loaded.records.equals(whole.records)
    ids, points = loaded.points()
    assert len(set(ids.tolist())) == len(ids) == whole.count("fooled")
    x = data[0][torch.from_numpy(ids)].double()
    reached = ball.norm(torch.from_numpy(points).double() - x).numpy()
    assert (reached == whole.distances[ids]).all()

    def stop(progress: object) -> None:
        if "nearer" in progress.stage:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            eb.evaluate(
                model, data, ball, attacks, min_norm=True, run_dir=tmp_path / "b", shard_size=32, on_progress=stop
            )
    again = eb.evaluate(model, data, ball, attacks, min_norm=True, run_dir=tmp_path / "b", shard_size=32)
    assert again.records.equals(whole.records)
    assert {stage.attack for stage in whole.stages[1:]} == set(attacks)
    with pytest.raises(BadInput, match="min_norm"):
        eb.evaluate(model, data, ball.with_eps(math.inf), attacks, run_dir=tmp_path / "b", shard_size=32)


def test_edited_distances_are_noticed(tmp_path) -> None:
    from epsball.evaluation import run_directory

    model, data = subject()
    eb.evaluate(model, data, eb.L2(eps=1, lo=0, hi=1), [FAB], min_norm=True, run_dir=tmp_path)
    for name in ("records/00000.parquet", "stages/00000-00-fab.parquet"):
        path = tmp_path / name
        before = path.read_bytes()
        table = run_directory.load(path)
        place = table.column_names.index("distance")
        shorter = np.array(table["distance"].to_numpy(zero_copy_only=False)) * 0.99
        edited = table.set_column(place, "distance", [np.ascontiguousarray(shorter)])
        run_directory.save(path, edited.replace_schema_metadata(table.schema.metadata))
        found = eb.verify(tmp_path, model)
        assert "distance" in {row.what for row in found.differences}, name
        path.write_bytes(before)
    assert eb.verify(tmp_path, model).agrees


def test_in_8_bits_adversarial_examples_are_on_the_levels_and_hardly_farther() -> None:
    model, (x, y) = subject()
    x = (x * 255).round() / 255
    with torch.no_grad():
        y = model(x).argmax(1)
    ball = eb.Linf(eps=0, lo=0, hi=1)
    exact = eb.evaluate(model, (x, y), ball, [FAB], min_norm=True)
    rounded = eb.evaluate(model, (x, y), ball, [FAB], min_norm=True, storage="8bit")
    finite = np.isfinite(rounded.distances)
    assert finite.mean() > 0.9
    levels = rounded.distances[finite] * 255
    assert np.abs(levels - levels.round()).max() < 1e-3
    assert (rounded.distances[finite] < exact.distances[finite] + 3 / 255).all()


def test_of_several_jobs_the_nearest_adversarial_example_is_returned() -> None:
    model, data = subject()
    ball = eb.L2(eps=0, lo=0, hi=1)
    three = eb.evaluate(model, data, ball, [f"{FAB},n_targets=3"], min_norm=True)
    one = eb.evaluate(model, data, ball, [f"{FAB},n_targets=1"], min_norm=True)
    assert (three.distances <= one.distances * (1 + 1e-6)).all()
    assert (three.distances < 0.99 * one.distances).any()


def test_arguments_that_do_not_go_together_are_refused() -> None:
    model, data = subject(8)
    ball = eb.Linf(eps=0.1, lo=0, hi=1)
    with pytest.raises(BadInput, match=r"`attacks` must have a minimum-norm attack.*got pgd"):
        eb.evaluate(model, data, ball, "pgd", min_norm=True)
    with pytest.raises(BadInput, match="`binarization_test` must be 0 with `min_norm`"):
        eb.evaluate(model, data, ball, FAB, min_norm=True, binarization_test=4)
    with pytest.raises(BadInput, match="`ball` must have one number as `eps`"):
        eb.evaluate(model, data, eb.Linf(eps=torch.full((8,), 0.1), lo=0, hi=1), FAB, min_norm=True)


def test_every_forward_is_counted() -> None:
    model, data = subject()
    rows = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    found = eb.evaluate(model, data, eb.L1(eps=0, lo=0, hi=1), [FAB, "apgd:steps=5"], min_norm=True)
    assert found.forwards == sum(rows)
    assert found.cost["verification"] > 10 * found.count("fooled")  # the boundary search


@pytest.mark.filterwarnings("ignore:the gradient is exactly zero")
def test_without_an_adversarial_example_the_distance_is_infinite() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * 0 + torch.tensor([3.0, 0.0, 0.0])

    x = batch(6, SHAPE).float()
    y = torch.tensor([0, 0, 0, 0, 1, 2])
    found = eb.evaluate(Constant(), (x, y), eb.L2(eps=1, lo=0, hi=1), [FAB, "pgd:steps=3"], min_norm=True)
    assert found.distances.tolist() == [math.inf] * 4 + [0.0, 0.0]
    assert found.quantiles((0.2, 0.5)) == [(0.2, 0.0), (0.5, math.inf)]
    assert found.robust_accuracy == pytest.approx(4 / 6)


class Far(Attack[State]):
    """The farthest corner, at once."""

    until = "done"

    @property
    def minimises(self) -> bool:
        return True

    def init(self, task: Task) -> State:
        return State.at((task.x < 0.5).to(task.x))

    def step(self, state: State, point, task: Task) -> State:
        return replace(state, t=state.t + 1, done=state.t >= 0)


@pytest.mark.parametrize("norm", BALLS)
def test_the_boundary_search_ends_at_the_decision_boundary_and_still_fools(norm: str) -> None:
    model, (x, y) = subject()
    ball: Ball = BALLS[norm](eps=math.inf, lo=0, hi=1).bind(x)
    with Objective(model, cross_entropy) as objective:
        task = task_of(x, y, ball)
        corner = (x < 0.5).to(x)
        fools = objective.evaluate_at(corner, task).fooled & ~objective.evaluate_at(x, task).fooled
        rows = fools.nonzero().squeeze(1)
        assert len(rows) > 10
        task, corner = task.rows(rows), corner[rows]
        at_boundary = boundary_search(objective, task, corner)
        assert objective.evaluate_at(at_boundary, task).fooled.all()
        reached, began = (task.ball.distance(part, task.x) for part in (at_boundary, corner))
        assert (reached < began).all()
        inner = task.ball.with_eps(reached * (1 - 1e-3) if norm != "l0" else reached - 1).project(corner, task.x)
        assert not objective.evaluate_at(inner, task).fooled.any()
        assert torch.equal(boundary_search(objective, task, task.x), task.x)  # does not fool: returned unchanged
    if norm != "l0":  # a run does the same with what an attack returns
        found = eb.evaluate(model, (x, y), ball, [Far()], min_norm=True)
        assert found.distances[rows.numpy()] == pytest.approx(reached.double().numpy(), rel=1e-4)


def test_the_curve_at_one_radius_is_that_of_the_distances() -> None:
    model, data = subject()
    ball = eb.Linf(eps=1, lo=0, hi=1)
    for eps in (0.01, 0.03):
        found = eb.evaluate(model, data, ball, [FAB, "pgd:steps=5"], eps=[eps], min_norm=True)
        assert found.robust_accuracy == found.accuracy_at(eps) > 0


class Steps(nn.Module):
    """Units that are 0 or 1: no gradient, and plenty of adversarial examples."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model[3]((self.model[1](x.flatten(1)).sign() + 1) / 2)


@pytest.mark.filterwarnings("ignore:the gradient is exactly zero")
def test_a_gradient_free_attack_finds_finite_distances_where_gradients_are_masked(tmp_path) -> None:
    model, (x, _) = subject()
    model = Steps(model)
    with torch.no_grad():
        y = model(x).argmax(1)
    alone = eb.evaluate(model, (x, y), eb.Linf(eps=1, lo=0, hi=1), [FAB], min_norm=True)
    assert np.isinf(alone.distances).mean() > 0.5
    both = eb.evaluate(
        model, (x, y), eb.Linf(eps=1, lo=0, hi=1), [FAB, "square:steps=100"], min_norm=True, run_dir=tmp_path
    )
    assert np.isinf(both.distances).mean() < 0.1
    assert eb.verify(tmp_path, model).agrees


@pytest.mark.filterwarnings("ignore")
def test_examples_with_nonfinite_logits_are_robust_at_no_radius() -> None:
    model, (x, y) = subject()

    def broken(z: Tensor) -> Tensor:
        known = (z[:, None] == x[None]).flatten(2).all(2).any(1)
        return torch.where(known[:, None], model(z), torch.nan)

    found = eb.evaluate(broken, (x, y), eb.L2(eps=1, lo=0, hi=1), ["fmn:steps=5"], eps=[0.05, 0.1], min_norm=True)
    assert found.count("invalid") == 87
    assert [share for _, share in found.curve] == [0, 0]
    assert found.accuracy_at(0.05) == 0


def test_distances_to_a_target_leave_out_examples_that_were_not_attacked() -> None:
    model, (x, y) = subject()
    radii = [0.05, 0.2]
    found = eb.evaluate(model, (x, y), eb.L2(eps=1, lo=0, hi=1), ["fmn:steps=20"], eps=radii, min_norm=True, target=1)
    status = found.records["status"].to_numpy(zero_copy_only=False)
    assert np.isnan(found.distances[np.isin(status, ("misclassified", "at-target"))]).all()
    assert [share for _, share in found.curve] == [found.accuracy_at(eps) for eps in radii]


def test_a_decision_boundary_closer_than_one_level_is_found_a_few_levels_away() -> None:
    x = torch.full((40, 4), 100 / 255)
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])

    def model(z: Tensor) -> Tensor:
        return (z - 100 / 255) @ weight.T - torch.tensor([0.0, 1e-5])

    ball = eb.L2(eps=1, lo=0, hi=1)
    found = eb.evaluate(model, (x, torch.zeros(40).long()), ball, ["fmn:steps=10"], min_norm=True, storage="8bit")
    assert found.count("fooled") == 40
    assert (found.distances < 3 / 255).all()


def test_eot_is_refused_with_min_norm() -> None:
    model, data = subject(8)
    with pytest.raises(BadInput, match="`eot` must be 1 with `min_norm`, got 4"):
        eb.evaluate(model, data, eb.L2(eps=1, lo=0, hi=1), FAB, min_norm=True, eot=4)
