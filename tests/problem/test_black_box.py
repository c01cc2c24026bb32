"""Black boxes: HopSkipJump against the exact distance, queries counted and capped, answers cached, surrogates."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from doubles import BALLS, assert_inside
from nets import Counting, LabelOnly, Steady, batch, linear, mlp, predicted, rng
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.decision_based import NormalEstimate, dot, unit
from epsball.common.errors import BadInput
from epsball.data.load import load_data
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.linear.exact import minimal_eps
from epsball.models.black_box import NOBODY
from epsball.problem.black_box_objective import BlackBoxObjective, objective_for
from epsball.problem.objective import Objective
from epsball.problem.task import Task, task_of

NORMS = ("linf", "l2")
every_norm = pytest.mark.parametrize("norm", NORMS)
HSJ = eb.HopSkipJump


def weights(model: nn.Module, classes: int) -> tuple[Tensor, Tensor]:
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    return (weight[0], bias) if classes == 1 else (weight, bias)


class Labels:
    """A callable of labels that refuses a gradient and counts the rows that it is queried with."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model, self.rows = model, 0

    def __call__(self, x: Tensor) -> Tensor:
        assert not x.requires_grad
        self.rows += len(x)
        with torch.no_grad():
            return predicted(self.model, x)


# HopSkipJump


def centred(d: int, classes: int, lo: float, hi: float, seed: int = 0) -> nn.Module:
    """A linear model whose decision boundaries meet in the middle of the box, so that noise finds every class."""
    model = linear((d,), classes, seed=seed)
    middle = torch.full((d,), (lo + hi) / 2, dtype=torch.float64)
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight @ middle)
    return model


@pytest.mark.parametrize(
    ("d", "classes"), [(2, 1), (20, 3), *(pytest.param(*size, marks=pytest.mark.nightly) for size in ((1, 2), (40, 2)))]
)
@every_norm
def test_labels_alone_give_the_exact_distance_of_a_linear_model(norm: str, d: int, classes: int) -> None:
    """With and without box and mask: never nearer than the optimum, within a hundredth of it in the median."""
    for lo, hi, masked in ((0.0, 1.0, False), (-1.0, 0.5, True), (-math.inf, math.inf, True)):
        low, high = max(lo, -1.0), min(hi, 1.0)
        model = centred(d, classes, low, high, seed=d + classes)
        x = batch(9, (d,), lo=low, hi=high, seed=d)
        x[0, : d // 2] = low
        y = predicted(model, x)
        mask = torch.rand(1, d, generator=rng(d)) < 0.8 if masked else None
        ball = BALLS[norm](eps=math.inf, lo=lo, hi=hi, mask=mask)
        least = minimal_eps(*weights(model, classes), x, y, ball)
        x_adv = HSJ(steps=250 + 15 * d)(Labels(model), x, y, ball)
        assert_inside(x_adv, x, norm, math.inf, lo, hi, mask)
        exists, distance = least.isfinite(), ball.norm(x_adv - x)
        fooled = predicted(model, x_adv) != y
        assert not fooled[~exists].any()
        assert (distance[fooled] >= least[fooled] * (1 - 1e-9)).all()
        if exists.any():
            ratio = torch.where(fooled, distance / least, math.inf)[exists]
            assert ratio.median() <= 1.01, (lo, hi, ratio)


@pytest.mark.parametrize(
    "box", [(0.0, 1.0), pytest.param((-math.inf, math.inf), marks=pytest.mark.nightly)], ids=["box", "free"]
)
def test_two_thousand_labels_of_784_coordinates_end_within_a_tenth_of_the_optimum(box: tuple[float, float]) -> None:
    model = linear((784,), 2, seed=7)
    x = batch(8, (784,), seed=3)
    y = predicted(model, x)
    ball = eb.L2(eps=math.inf, lo=box[0], hi=box[1])
    x_adv = HSJ()(Labels(model), x, y, ball)
    least = minimal_eps(*weights(model, 2), x, y, ball)
    assert (predicted(model, x_adv) != y).all()
    assert (ball.norm(x_adv - x) / least).median() <= 1.1


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 333])
def test_an_example_costs_one_query_a_step(steps: int) -> None:
    model = Labels(mlp((6,), 3))
    x = batch(5, (6,))
    y = predicted(model.model, x)
    HSJ(steps=steps)(model, x, y, eb.L2(eps=math.inf, lo=0, hi=1))
    assert model.rows == 5 * steps


@every_norm
def test_result_is_the_same_alone_in_a_batch_and_in_the_queue(norm: str) -> None:
    x, net = batch(40, (6,)), Steady(6, 3)
    y, ball = predicted(net, x), BALLS[norm](eps=math.inf, lo=0, hi=1)
    attack, model = HSJ(steps=120), LabelOnly(net)
    whole = attack(model, x, y, ball, seed=2)
    assert torch.equal(attack(model, x[5:9], y[5:9], ball, ids=torch.arange(5, 9), seed=2), whole[5:9])
    with Objective(model, attack.loss, needs="label") as objective:
        found = queue.run(attack, objective, task_of(x, y, ball, seed=2), QueueOptions(batch_size=32))
    assert found.fooled.sum() > 30
    assert torch.equal(found.x_adv[found.fooled], whole[found.fooled])
    assert (found.forwards <= 121).all()


@every_norm
def test_misclassified_example_is_returned_after_one_query(norm: str) -> None:
    x, net = batch(6, (5,)), mlp((5,), 3)
    model = Labels(net)
    x_adv = HSJ(steps=40)(model, x, (predicted(net, x) + 1) % 3, BALLS[norm](eps=math.inf, lo=0, hi=1))
    assert torch.equal(x_adv, x)
    assert model.rows == 6


@every_norm
def test_target_is_reached_from_references_of_its_class(norm: str) -> None:
    net = mlp((8,), 4, seed=5)
    pool = batch(400, (8,), lo=-0.5, hi=0.9, seed=9)
    seen = predicted(net, pool)
    x, y = pool[:20], seen[:20]
    target = torch.where(y == seen.mode().values, (seen[20:][seen[20:] != seen.mode().values])[0], seen.mode().values)
    ball = BALLS[norm](eps=math.inf, lo=-0.5, hi=0.9)
    references = eb.References(pool[20:], seen[20:])
    x_adv = HSJ(steps=300, references=references)(Labels(net), x, y, ball, target=target)
    assert (predicted(net, x_adv) == target).all()
    nearest = torch.stack([ball.norm(pool[20:][seen[20:] == t] - one).min() for one, t in zip(x, target, strict=True)])
    assert (ball.norm(x_adv - x) <= nearest).all()
    assert (ball.norm(x_adv - x) < 0.9 * nearest).double().mean() > 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 3)], ids=["dim 1", "dim 2", "dim 4"])
@every_norm
def test_shapes_dtypes_and_masks_per_example_are_understood(
    norm: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = linear(shape, 2).to(dtype)
    x = batch(6, shape, lo=-1, hi=2).to(dtype)
    y = predicted(model, x)
    for mask in (None, torch.rand(x.shape, generator=rng(1)) < 0.6):
        ball = BALLS[norm](eps=math.inf, lo=-1, hi=2, mask=mask)
        x_adv = HSJ(steps=40)(Labels(model), x, y, ball)
        assert_inside(x_adv, x, norm, math.inf, -1, 2, mask)


def test_radius_per_feature_is_the_unit_of_distance() -> None:
    """Twice the radius in a feature is half the distance in it."""
    model, x = linear((12,), 2, seed=4), batch(8, (12,), lo=0.2, hi=0.8)
    y = predicted(model, x)
    eps = 0.1 + batch(1, (12,), seed=6)
    x_adv = HSJ(steps=1000)(Labels(model), x, y, eb.Linf(eps=eps))
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(12, 2).double())
    with torch.no_grad():
        scaled[1].weight.copy_(model[1].weight * eps)
        scaled[1].bias.copy_(model[1].bias)
    least = minimal_eps(*weights(scaled, 2), x / eps, y, eb.Linf(eps=0))
    inside = least <= 1
    distance = ((x_adv - x) / eps).abs().amax(1)
    assert inside.any()
    assert (distance[inside] <= 1.01 * least[inside]).all()
    assert (predicted(model, x_adv) != y)[inside].all()


def test_input_is_returned_where_there_is_no_adversarial_example() -> None:
    x = batch(4, (5,))
    y = torch.zeros(4, dtype=torch.long)
    for ball in (eb.L2(eps=math.inf, lo=0, hi=1), eb.Linf(eps=math.inf)):
        x_adv = HSJ(steps=60)(lambda z: torch.zeros(len(z), dtype=torch.long), x, y, ball)
        assert torch.equal(x_adv, x)


def test_warm_start_begins_at_the_results_of_earlier_attacks() -> None:
    net, x = centred(6, 3, 0, 1), batch(30, (6,))
    y, ball = predicted(net, x), eb.L2(eps=math.inf, lo=0, hi=1)
    attack = HSJ(steps=30, warm_start=True)
    task = task_of(x, y, ball)
    earlier = HSJ(steps=600)(Labels(net), x, y, ball)
    assert attack.uses_warm_start
    state = attack.init(task)
    task = replace(task, warm_start=earlier)
    with Objective(LabelOnly(net), attack.loss, needs="label") as objective:
        for _ in range(2):
            point = objective(state.z, task)
            state = attack.step(state, point, task)
    found = predicted(net, earlier) != y
    assert found.sum() > 20
    assert torch.equal(state.best[found], earlier[found])


# The estimate of the normal


def estimate(task: Task, direction: Tensor) -> NormalEstimate:
    """An estimate at the origin, whose queries are at a distance of one."""
    n = len(direction)
    return NormalEstimate(
        centre=torch.zeros_like(direction),
        reach=torch.ones(n),
        direction=direction,
        spread=NormalEstimate.first_spread(task),
        probe=torch.zeros_like(direction),
        asked=torch.zeros(n, dtype=torch.long),
    )


def test_signs_of_the_answers_give_the_normal_within_the_expected_error() -> None:
    """Two sweeps leave .17 of the squared error at most; an average of as many signs leaves .44."""
    d, n = 200, 6
    x = torch.zeros(n, d, dtype=torch.float64)
    task = task_of(x, torch.zeros(n, dtype=torch.long), eb.L2(eps=1.0), seed=3)
    true = unit(torch.randn(n, d, generator=rng(2), dtype=torch.float64))
    normal = estimate(task, unit(true + 4 * unit(torch.randn(n, d, generator=rng(3), dtype=torch.float64))))
    for _ in range(2 * d):
        normal, z = normal.question(task)
        assert dot(normal.probe, normal.direction).abs().max() < 1e-9
        assert (dot(normal.probe, normal.probe) - 1).abs().max() < 1e-9
        normal = normal.learn(dot(z, true) > 0, task)
    error = 1 - dot(normal.direction, true).square()
    assert error.mean() <= 0.2
    # The error that it expects is its true error, within a factor of two.
    square = normal.spread.square() * d
    assert (square / (1 + square) / error).log2().abs().mean() < 1


def test_estimate_of_the_normal_follows_a_change() -> None:
    """The normal changes from one query to the next; the expected error grows until the new one is found."""
    d, n = 60, 8
    x = torch.zeros(n, d, dtype=torch.float64)
    task = task_of(x, torch.zeros(n, dtype=torch.long), eb.L2(eps=1.0), seed=3)
    first, second = (unit(torch.randn(n, d, generator=rng(k), dtype=torch.float64)) for k in (2, 3))
    second = unit(second + first)  # 45 degrees away
    normal = estimate(task, first)
    normal = replace(normal, spread=normal.spread / 40)
    for _ in range(10 * d):
        normal, z = normal.question(task)
        normal = normal.learn(dot(z, second) > 0, task)
    assert dot(normal.direction, second).median() > 0.97


# The black box


def test_answers_are_remembered_up_to_the_memory() -> None:
    shown: list[np.ndarray] = []

    def function(x: np.ndarray) -> np.ndarray:
        shown.append(x.copy())
        x[:] = 7  # it may write into what it gets
        return np.ones((len(x), 3))

    box = eb.BlackBox(function, memory=4)
    x = torch.arange(6.0).reshape(3, 2)
    ids = torch.tensor([4, 5, 4])
    twice = torch.cat([x, x])
    assert box.ask(twice, torch.cat([ids, ids])).shape == (6, 3)
    assert len(shown) == 1
    assert np.array_equal(shown[0], x.numpy())
    assert box.total == 3
    assert box.spent(torch.tensor([4, 5, 6])).tolist() == [2, 1, 0]
    box(x.flip(0))
    assert box.total == 3
    assert torch.equal(twice, torch.cat([x, x]))
    box(x + 100)  # three more: two of the first leave the cache
    box(x)
    assert box.total == 8
    box(x.double())  # the same numbers, another input
    assert box.total == 11


def test_queries_of_an_example_end_with_its_budget() -> None:
    box = eb.BlackBox(lambda x: x, budget=2)
    one, other = torch.tensor([3]), torch.tensor([8])
    for value in (0.0, 1.0):
        assert box.ask(torch.full((1, 2), value), one).isfinite().all()
    assert box.exhausted(one).item()
    assert not box.exhausted(other).item()
    assert box.exhausted(other, keep=2).item()
    assert box.ask(torch.full((1, 2), 2.0), one).isnan().all()
    assert box.ask(torch.full((1, 2), 1.0), one).tolist() == [[1.0, 1.0]]  # what is known is no query
    assert box.ask(torch.full((1, 2), 2.0), other).tolist() == [[2.0, 2.0]]
    assert box.ask(torch.full((1, 2), 2.0), one).tolist() == [[2.0, 2.0]]
    assert box.total == 3


@pytest.mark.parametrize("attack", [HSJ(steps=500), eb.Square(steps=500)], ids=["hopskipjump", "square"])
def test_queue_keeps_to_the_budget_of_an_example(attack: HSJ | eb.Square) -> None:
    net, x = centred(9, 3, 0, 1), batch(40, (9,))
    y, ball = predicted(net, x), eb.L2(eps=0.4, lo=0, hi=1)
    queries: list[Tensor] = []

    def function(z: Tensor) -> Tensor:
        assert not z.requires_grad
        queries.append(z)
        return net(z)

    labels = attack.needs == "label"
    box = eb.BlackBox(
        function=(lambda z: predicted(function, z)) if labels else function,
        scores="labels" if labels else "logits",
        takes="torch",
        budget=60,
    )
    ids = torch.arange(40) * 10
    with objective_for(box, attack.loss, needs=attack.needs) as objective:
        assert isinstance(objective, BlackBoxObjective)
        found = queue.run(attack, objective, task_of(x, y, ball, ids=ids), QueueOptions(batch_size=32))
    assert (box.spent(ids) <= 60).all()
    assert (box.spent(ids) > 50).any()
    every = torch.cat(queries)
    assert box.total == len(every) == box.spent(ids).sum() + box.spent(torch.tensor([NOBODY]))  # the examples are free
    assert len(every.unique(dim=0)) == len(every)
    hit = found.fooled
    assert hit.any()
    assert (predicted(net, found.x_adv[hit]) != y[hit]).all()
    assert found.exhausted[~hit].all()
    assert not found.invalid.any()


def test_gradient_of_a_black_box_is_refused() -> None:
    box = eb.BlackBox(lambda x: x)
    with pytest.raises(BadInput, match="square needs logits, hopskipjump labels"):
        objective_for(box, eb.PGD().loss)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "labels", "names"])
def test_estimators_of_scikit_learn_are_black_boxes(kind: str) -> None:
    digits = load_data("digits", split="train")
    x, y = digits.x.flatten(1), digits.y
    small = y < 3
    x, y = x[small].double(), y[small]
    names = np.array(["nought", "one", "two"])
    fitted = LogisticRegression(max_iter=500).fit(x.numpy(), names[y.numpy()] if kind == "names" else y.numpy())
    how: dict[str, dict[str, object]] = {
        "logits": {"function": fitted.decision_function},
        "probabilities": {"function": fitted.predict_proba, "scores": "probabilities"},
        "labels": {"function": fitted.predict, "scores": "labels"},
        "names": {"function": fitted.predict, "scores": "labels", "classes": list(names)},
    }
    box = eb.BlackBox(**how[kind])  # pyright: ignore
    x, y = x[:8], y[:8]
    ball = eb.Linf(eps=0.4, lo=0, hi=1)
    attack = HSJ(steps=300) if kind in ("labels", "names") else eb.Square(steps=60)
    x_adv = attack(box, x, y, ball)
    predictions = fitted.predict(x_adv.numpy())
    assert (predictions != (names[y] if kind == "names" else y.numpy())).mean() > 0.5
    assert ball.contains(x_adv, x).all()
    assert (fitted.predict(x.numpy()) == (names[y] if kind == "names" else y.numpy())).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"function": 3}, "`function` must be callable"),
        ({"function": len, "scores": "scores"}, "`scores` must be one of logits"),
        ({"function": len, "takes": "jax"}, "`takes` must be one of numpy"),
        ({"function": len, "budget": 0}, "`budget` must be a whole number >= 1, got 0"),
        ({"function": len, "memory": -1}, "`memory` must be a whole number >= 0, got -1"),
        ({"function": len, "classes": ["a"]}, "`classes` must be left out"),
        ({"function": len, "layout": "hwc"}, "`layout` must be one of nchw, nhwc"),
        ({"function": len, "dtype": "int8"}, "`dtype` must be one of float32"),
        ({"function": len, "batch_size": 0}, "`batch_size` must be a whole number >= 1"),
        ({"function": len, "pad": True}, "`pad` must be False without a `batch_size`"),
    ],
)
def test_wrong_arguments_are_refused(how: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        eb.BlackBox(**how)  # pyright: ignore


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"function": lambda x: x[:1]}, "one row per example, got"),
        ({"function": lambda x: np.array(["a"] * len(x))}, r"scores='labels' where it names classes"),
        ({"function": lambda x: np.array(["a"] * len(x)), "scores": "labels"}, "name them with `classes`"),
        ({"function": lambda x: x, "scores": "labels"}, r"labels \(n,\), got \(3, 2\)"),
        ({"function": lambda x: [[0.0], [0.0, 1.0], [0.0]]}, "must answer with one array, got a list"),
        ({"function": lambda x: {"logits": x}}, "must answer with one row per example"),
        ({"function": lambda x: x[:, :0]}, r"logits \(n, classes\) or \(n,\), got \(3, 0\)"),
        (
            {"function": lambda x: x[:, : len(x)], "batch_size": 2},
            r"as many columns each time, got rows of shape \(1,\)",
        ),
        ({"function": lambda x: x, "layout": "nhwc"}, "`layout` must be 'nchw' for examples that are no images"),
        ({"function": lambda x: x, "dtype": "uint8"}, "got 'uint8' and values from 0 to 5; or give the ball the box"),
        ({"function": lambda x: x - 9, "scores": "probabilities"}, "must answer with probabilities"),
        (
            {"function": lambda x: np.array(["c"] * len(x)), "scores": "labels", "classes": ["a"]},
            "must list every label, got 'c'",
        ),
    ],
)
def test_answers_that_cannot_be_understood_are_refused(how: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        eb.BlackBox(**how)(torch.arange(6.0).reshape(3, 2))  # pyright: ignore


def test_probability_of_one_class_becomes_a_logit() -> None:
    box = eb.BlackBox(lambda x: np.array([0.25, 0.5, 1.0, 0.0]), scores="probabilities")
    found = box(torch.zeros(4, 1) + torch.arange(4)[:, None])
    torch.testing.assert_close(found[:2], torch.tensor([math.log(1 / 3), 0.0]))
    assert found.isfinite().all()


def test_model_comes_back_as_it_was() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5)).double()
    net.train()
    box = eb.BlackBox(net, takes="torch")
    x = batch(5, (4,))
    with torch.no_grad():
        assert torch.equal(box(x), net[1](x))
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


# Functions of other libraries


def classifier() -> np.ndarray:
    """Weights (classes, H * W * C) of a linear classifier of images (H, W, C)."""
    return np.random.default_rng(0).normal(size=(4, 5 * 5 * 3))


class KerasTensor:
    """As a tensor of Keras: it is no array, and `numpy()` makes one."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def numpy(self) -> np.ndarray:
        return self.value


class JaxArray:
    """As an array of JAX: it is no numpy array, and becomes one by the array protocol."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.value, dtype)


OUTPUTS: dict[str, Callable[[np.ndarray], object]] = {
    "numpy": lambda z: z,
    "jax": JaxArray,
    "keras": KerasTensor,
    "list": lambda z: z.tolist(),
    "tuple of tensors": lambda z: tuple(torch.from_numpy(z).requires_grad_()),
    "half": lambda z: z.astype(np.float16),
    "big-endian": lambda z: z.astype(">f8"),
    "long double": lambda z: z.astype(np.longdouble),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_other_libraries_are_evaluated_as_torch_tensors_are(kind: str) -> None:
    """The same records as the network's own, with images that the function takes as (n, H, W, C) in float32."""
    weight = classifier()
    shown: set[tuple[str, tuple[int, ...]]] = set()

    def function(z: np.ndarray) -> object:
        shown.add((str(z.dtype), z.shape[1:]))
        assert len(z) <= 7
        return OUTPUTS[kind]((z.reshape(len(z), -1).astype(np.float64) @ weight.T * 8).round() / 8)

    def plain(x: Tensor) -> Tensor:
        flat = x.permute(0, 2, 3, 1).flatten(1).float().double()
        return (flat @ torch.from_numpy(weight).T * 8).round() / 8  # which half precision can hold, too

    x, ball = batch(12, (3, 5, 5)), eb.Linf(eps=0.1, lo=0, hi=1)
    y = plain(x).argmax(1)
    box = eb.BlackBox(function, layout="nhwc", dtype="float32", batch_size=7)
    found, known = (
        eb.evaluate(model, (x, y), ball, "square:steps=20", diagnose=0, convergence=0)
        for model in (box, eb.BlackBox(plain, takes="torch"))
    )
    assert shown == {("float32", (5, 5, 3))}
    assert found.records.equals(known.records)
    assert 0 < found.robust_accuracy < found.clean_accuracy
    assert found.queries == known.queries


def test_padded_calls_have_the_size_of_the_batch_and_the_answers_of_the_rows() -> None:
    sizes: list[int] = []

    def function(z: np.ndarray) -> np.ndarray:
        sizes.append(len(z))
        return z * 2

    box = eb.BlackBox(function, batch_size=4, pad=True)
    x = torch.arange(14.0).reshape(7, 2)
    assert torch.equal(box(x), 2 * x)
    assert sizes == [4, 4]
    assert box.total == 7


def test_images_of_whole_numbers_are_the_nearest_levels() -> None:
    shown: list[np.ndarray] = []

    def function(z: np.ndarray) -> np.ndarray:
        shown.append(z.copy())
        return z.reshape(len(z), -1).astype(float)

    box = eb.BlackBox(function, dtype="uint8", layout="nhwc")
    x = torch.tensor([0.0, 1.0, 0.501, 7.4 / 255]).reshape(1, 4, 1, 1)
    assert box(x).tolist() == [[0.0, 255.0, 128.0, 7.0]]
    assert shown[0].dtype == np.uint8
    assert shown[0].shape == (1, 1, 1, 4)


def test_a_function_of_jax_is_a_black_box() -> None:
    jax = pytest.importorskip("jax")
    weight = classifier()
    box = eb.BlackBox(jax.jit(lambda z: z.reshape(len(z), -1) @ weight.T), layout="nhwc", dtype="float32")
    x = batch(6, (3, 5, 5))
    wanted = x.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(weight).T
    torch.testing.assert_close(box(x), wanted, rtol=1e-4, atol=1e-4)
    coarse = eb.BlackBox(jax.jit(lambda z: z.astype(jax.numpy.bfloat16)))
    assert torch.equal(coarse(torch.tensor([[0.5, 0.25]])), torch.tensor([[0.5, 0.25]]))


def test_a_pickle_of_a_black_box_holds_no_answers() -> None:
    box = eb.BlackBox(np.tanh, budget=3)
    ids = torch.tensor([1, 2])
    answers = box.ask(torch.eye(2), ids)
    copy = pickle.loads(kept := pickle.dumps(box))
    box(torch.arange(100.0).reshape(50, 2))
    assert len(pickle.dumps(box)) == len(kept)
    assert copy.spent(ids).tolist() == [0, 0]
    assert torch.equal(copy.ask(torch.eye(2), ids), answers)
    assert (box.total, copy.total) == (51, 4)  # one of the 50 was known


def test_a_call_that_fails_counts_no_answers() -> None:
    calls: list[int] = []

    def function(z: np.ndarray) -> np.ndarray:
        calls.append(len(z))
        if len(calls) == 2:
            raise ConnectionError
        return z

    box = eb.BlackBox(function, batch_size=2)
    with pytest.raises(ConnectionError):
        box(torch.arange(10.0).reshape(5, 2))
    assert box.total == 2


# Surrogates


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor, LogisticRegression]:
    """Examples for a surrogate, then those that are attacked, their labels, and an estimator that saw others."""
    train, test = load_data("digits", split="train"), load_data("digits", split="test")
    fitted = LogisticRegression(max_iter=300).fit(train.x[:1000].flatten(1).numpy(), train.y[:1000].numpy())
    return train.x[1000:1200], test.x[:200], test.y[:200], train.y[1000:1200], fitted


@pytest.mark.parametrize("scores", ["labels", "probabilities"])
def test_transfer_from_a_surrogate_is_stronger_than_noise(
    digits: tuple[Tensor, Tensor, Tensor, Tensor, LogisticRegression], scores: str
) -> None:
    own, x, y, _, fitted = digits
    method = fitted.predict if scores == "labels" else fitted.predict_proba
    box = eb.BlackBox(lambda z: method(z.reshape(len(z), -1)), scores=scores)  # pyright: ignore
    ball = eb.Linf(eps=0.15, lo=0, hi=1)
    made = eb.surrogate(box, own, ball, rounds=3, epochs=12)
    assert made.queries == box.total
    assert 200 < made.queries <= 4 * 200
    assert made.agreement > 0.85
    assert not any(part.training for part in made.modules())

    def accuracy(z: Tensor) -> float:
        return (torch.from_numpy(fitted.predict(z.flatten(1).numpy())) == y).double().mean().item()

    transferred = eb.FGSM()(made, x, y, ball)
    noise = eb.SignNoise()(lambda z: torch.zeros(len(z), 10), x, y, ball)
    assert accuracy(x) > 0.8
    assert accuracy(noise) - accuracy(transferred) > 0.2
    found = eb.evaluate(
        lambda z: torch.from_numpy(fitted.predict(z.flatten(1).numpy())), (x, y), ball, attacks=("fgsm",), source=made
    )
    assert found.robust_accuracy < 0.6


def test_surrogate_does_not_depend_on_global_randomness() -> None:
    net, x = linear((6,), 3), batch(60, (6,)).float()
    ball = eb.L2(eps=0.3, lo=0, hi=1)

    def made() -> Tensor:
        box = eb.BlackBox(net.float(), takes="torch")
        return eb.surrogate(box, x, ball, rounds=2, epochs=3, seed=4)(x).detach()

    state = torch.get_rng_state()
    first = made()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(made(), first)


def test_surrogate_of_what_cannot_be_imitated_is_refused() -> None:
    x, ball = batch(20, (4,)).float(), eb.Linf(eps=0.1, lo=0, hi=1)
    with pytest.raises(BadInput, match="wrap it: BlackBox"):
        eb.surrogate(lambda z: z, x, ball)  # pyright: ignore
    with pytest.raises(BadInput, match="all answers are 0"):
        eb.surrogate(eb.BlackBox(lambda z: np.zeros(len(z), np.int64), scores="labels"), x, ball)
    box = eb.BlackBox(lambda z: z, budget=2)
    with pytest.raises(BadInput, match="`budget` is spent"):
        eb.surrogate(box, x, ball, rounds=3, epochs=1, ids=torch.arange(20))
    assert (box.spent(torch.arange(20)) == 2).all()
    with pytest.raises(BadInput, match="`classes` must be >= 4"):
        eb.surrogate(eb.BlackBox(lambda z: z.argmax(1), scores="labels"), x, ball, classes=2, rounds=0)


@pytest.mark.parametrize(
    ("x", "y"), [(torch.zeros(0, 3), torch.zeros(0).long()), (torch.zeros(2, 3), torch.zeros(3).long())]
)
def test_references_without_labels_are_refused(x: Tensor, y: Tensor) -> None:
    with pytest.raises(BadInput, match="`references` must be points"):
        eb.References(x, y)


def test_references_of_another_shape_are_refused() -> None:
    attack = HSJ(references=eb.References(torch.zeros(2, 3), torch.tensor([0, 1])))
    with pytest.raises(BadInput, match=r"shape \(5,\), got \(3,\)"):
        attack(Counting(linear((5,), 2)), batch(2, (5,)), torch.tensor([0, 0]), eb.L2(eps=1.0))


@pytest.mark.parametrize("memory", [0, 1 << 17])
def test_spent_budget_keeps_what_an_evaluation_found(memory: int) -> None:
    net, x = centred(9, 3, 0, 1), batch(20, (9,))
    box = eb.BlackBox(lambda z: predicted(net, z), scores="labels", takes="torch", budget=120, memory=memory)
    found = eb.evaluate(box, (x, predicted(net, x)), eb.L2(eps=2, lo=0, hi=1), [HSJ(steps=1000)])
    assert found.count("fooled") > 10
    assert found.stages[-1].unconfirmed == 0
    assert (box.spent(torch.arange(20)) <= 120).all()
