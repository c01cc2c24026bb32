"""The optimum against references that share nothing with it: vertices, subsets, multipliers by bisection, cvxpy."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

from epsball.balls.ball import Ball
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.linear.exact import Optimum, minimal_eps, optimum

EXACT = 1e-9
N, D = 24, 4
NORMS = pytest.mark.parametrize("norm", BALLS)
CLASSES = pytest.mark.parametrize("classes", [1, 2, 3, 10])  # 1: a single logit
BOXES = pytest.mark.parametrize("box", ["none", "box", "row", "mask", "box and mask"])
TARGETS = pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])


@dataclass
class Scene:
    weight: torch.Tensor
    bias: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    target: torch.Tensor | None
    ball: Ball

    def optimum(self, ball: Ball | None = None) -> Optimum:
        return optimum(self.weight, self.bias, self.x, self.y, ball or self.ball, self.target)

    def minimal_eps(self) -> torch.Tensor:
        return minimal_eps(self.weight, self.bias, self.x, self.y, self.ball, self.target)

    def rows_of_scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights and biases in extended precision, a single logit as two classes."""
        weight, bias = wide(self.weight), wide(self.bias)
        if len(weight) == 1:
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        return weight, bias

    def pairs(self, row: int) -> list[tuple[int, int]]:
        """(own class, rival) of which the smallest worst margin is the margin."""
        weight, bias = self.rows_of_scores()
        y = int(self.y[row])
        if self.target is None:
            return [(y, rival) for rival in range(len(weight)) if rival != y]
        target = int(self.target[row])
        scores = weight @ wide(self.x[row]) + bias
        scores[target] = -np.inf
        return [(int(scores.argmax()) if y == target else y, target)]


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.longdouble)


def scene(norm: str, classes: int, box: str, targeted: bool, *, d: int = D, per_row: bool = False) -> Scene:
    """Offset data, some on the faces of the box; weights with zeros and ties; y mostly predicted, target at times y."""
    draw = torch.Generator().manual_seed(classes + 100 * len(box) + 1000 * targeted + 10_000 * per_row)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    lo, hi = -0.3 - rand(N if box == "row" else 1, d), 1.1 + rand(N if box == "row" else 1, d)
    x = torch.clamp(lo + (hi - lo) * (1.4 * rand(N, d) - 0.2), lo, hi)
    parts: dict = {"lo": lo, "hi": hi} if "box" in box or box == "row" else {}
    if norm == "l0" and not parts:
        parts = {"lo": -1.5, "hi": 2.5}
    if "mask" in box:
        parts["mask"] = rand(1 if box == "mask" else N, d) < 0.7
    eps = {"linf": 0.4, "l2": 0.7, "l1": 0.9, "l0": 2}[norm]
    ball = BALLS[norm](eps=2 * eps * rand(N) if per_row else eps, **parts)
    weight = torch.randn(classes, d, generator=draw, dtype=torch.float64)
    weight[:, 1] = weight[:, 1].round()
    weight[0, 2] = 0
    bias = 0.3 * torch.randn(classes, generator=draw, dtype=torch.float64)
    scores = x @ weight.T + bias
    known = max(2, classes)
    predicted = scores.argmax(1) if classes > 1 else (scores[:, 0] > 0).long()
    y = torch.where(rand(N) < 0.8, predicted, torch.randint(known, (N,), generator=draw))
    target = torch.randint(known, (N,), generator=draw) if targeted else None
    return Scene(weight, bias, x, y, target, ball)


def ends(case: Scene, row: int) -> tuple[np.ndarray, np.ndarray, np.longdouble]:
    """How much the coordinates of a row can decrease (<= 0) and increase in box and mask, and its radius."""
    ball, x = case.ball, case.x
    low, high = (torch.as_tensor(side, dtype=torch.float64).expand(x.shape)[row] for side in (ball.lo, ball.hi))
    free = np.ones(x.shape[1], bool) if ball.mask is None else ball.mask.expand(x.shape)[row].numpy()
    eps = torch.as_tensor(ball.eps, dtype=torch.float64).expand(len(x))[row]
    return np.where(free, wide(low) - wide(x[row]), 0), np.where(free, wide(high) - wide(x[row]), 0), wide(eps)[()]


def candidates(norm: str, low: np.ndarray, high: np.ndarray, eps: np.longdouble) -> np.ndarray:
    """Every vertex of the set of displacements; for L0 of each of the pieces it consists of."""
    d = len(low)
    if norm == "linf":
        return np.array(list(itertools.product(*zip(np.maximum(low, -eps), np.minimum(high, eps), strict=True))))
    if norm == "l0":
        points = np.array(list(itertools.product(*([0, a, b] for a, b in zip(low, high, strict=True)))))
        return points[(points != 0).sum(1) <= eps]
    low, high = np.maximum(low, -eps), np.minimum(high, eps)  # L1: all but at most one coordinate at 0 or at an end
    points = []
    for fixed in itertools.product(*([0, a, b] for a, b in zip(low, high, strict=True))):
        left = eps - sum(abs(v) for v in fixed)
        if left >= 0:
            points.append(np.array(fixed))
        for place in range(d):
            rest = np.array(list(fixed))
            rest[place] = 0
            left = eps - abs(rest).sum()
            for v in (-left, left):
                if left >= 0 and low[place] <= v <= high[place]:
                    points.append(rest + v * (np.arange(d) == place))
    return np.array(points)


def greatest_gain_l2(grad: np.ndarray, low: np.ndarray, high: np.ndarray, eps: np.longdouble) -> np.longdouble:
    """max <grad, v> over the displacements v, in extended precision."""

    def path(mu: np.longdouble) -> np.ndarray:
        return np.clip(mu * grad, low, high)

    few, many = np.longdouble(0), np.longdouble(1e12)
    for _ in range(200):  # the multiplier of the stationarity conditions
        middle = (few + many) / 2
        few, many = (middle, many) if (path(middle) ** 2).sum() <= eps * eps else (few, middle)
    return (grad * path(few)).sum()


def reference(case: Scene, row: int) -> float:
    """The worst margin of one example."""
    weight, bias = case.rows_of_scores()
    low, high, eps = ends(case, row)
    vertices = None if case.ball.name == "l2" else candidates(case.ball.name, low, high, eps)
    margins = []
    for own, rival in case.pairs(row):
        grad = weight[rival] - weight[own]
        margins.append(bias[own] - bias[rival] - grad @ wide(case.x[row]))
        margins[-1] -= greatest_gain_l2(grad, low, high, eps) if vertices is None else (vertices @ grad).max()
    return float(min(margins))


@NORMS
@CLASSES
@BOXES
@TARGETS
@pytest.mark.parametrize("per_row", [False, True], ids=["one eps", "eps per row"])
def test_margin_is_the_worst_of_all_vertices(norm: str, classes: int, box: str, targeted: bool, per_row: bool):
    case = scene(norm, classes, box, targeted, per_row=per_row)
    best = case.optimum()
    rows = range(N) if classes < 10 or norm != "l2" else range(0, N, 3)
    expected = [reference(case, row) for row in rows]
    np.testing.assert_allclose(best.margin[list(rows)].numpy(), expected, rtol=0, atol=EXACT)
    check_point(case, best)


def check_point(case: Scene, best: Optimum) -> None:
    """x_adv is in the ball and attains the margin; everything else in the record follows from it."""
    assert case.ball.contains(best.x_adv, case.x).all()
    assert torch.equal(best.delta, best.x_adv - case.x)
    weight, bias = (torch.from_numpy(part.astype(float)) for part in case.rows_of_scores())
    rows = torch.arange(len(case.x))
    own = torch.tensor([case.pairs(row)[0][0] for row in rows])
    before, after = case.x @ weight.T + bias, best.x_adv @ weight.T + bias
    attained = after[rows, own] - after[rows, best.rival]
    torch.testing.assert_close(attained, best.margin, rtol=0, atol=EXACT)
    assert (best.rival != own).all()
    if case.target is None:
        others = before.scatter(1, own[:, None], -torch.inf).amax(1)
        clean, goal, fooled = before[rows, own] - others, case.y, after.argmax(1) != case.y
        assert (best.fooled == ~best.robust).all(), "random margins are not within rounding of zero"
        assert best.robust_accuracy == (~fooled).double().mean().item()
    else:
        clean, goal, fooled = before[rows, own] - before[rows, case.target], case.target, after.argmax(1) == case.target
        assert torch.equal(best.rival, case.target)
        assert torch.equal(best.reached, fooled)
    torch.testing.assert_close(best.clean_margin, clean, rtol=0, atol=1e-12)
    torch.testing.assert_close(best.gain, clean - best.margin, rtol=0, atol=1e-12)
    assert (best.gain >= 0).all()
    assert torch.equal(best.fooled, fooled)
    assert torch.equal(best.prediction_before, before.argmax(1))
    assert torch.equal(best.prediction_after, after.argmax(1))
    assert best.accuracy == (before.argmax(1) == case.y).double().mean().item()
    for loss, scores in ((best.loss_before, before), (best.loss_after, after)):
        torch.testing.assert_close(loss, -scores.log_softmax(1)[rows, goal], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [1, 10])
@TARGETS
def test_cvxpy_finds_the_same_margin(norm: str, classes: int, targeted: bool) -> None:
    case = scene(norm, classes, "box and mask", targeted, d=7)
    best = case.optimum()
    weight, bias = (part.astype(float) for part in case.rows_of_scores())
    order = {"linf": "inf", "l2": 2, "l1": 1}[norm]
    point, own, rival = cp.Variable(7), cp.Parameter(7), cp.Parameter(7)
    low, high = cp.Parameter(7), cp.Parameter(7)
    bounds = [cp.norm(point, order) <= case.ball.eps, point >= low, point <= high]
    problem = cp.Problem(cp.Minimize((own - rival) @ point), bounds)
    for row in range(0, N, 6):
        low.value, high.value = (side.astype(float) for side in ends(case, row)[:2])
        found = []
        for one, other in case.pairs(row):
            own.value, rival.value = weight[one], weight[other]
            least = problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
            found.append(least + (weight[one] - weight[other]) @ case.x[row].numpy() + bias[one] - bias[other])
        assert best.margin[row].item() == pytest.approx(min(found), abs=1e-6)  # the solver's own accuracy


@NORMS
@CLASSES
@BOXES
@TARGETS
def test_minimal_eps_changes_the_prediction_and_a_smaller_radius_does_not(
    norm: str, classes: int, box: str, targeted: bool
) -> None:
    case = scene(norm, classes, box, targeted)
    radius = case.minimal_eps()
    assert radius.dtype == torch.float64
    clean, finite = case.optimum(case.ball.with_eps(0.0)), radius.isfinite()
    assert torch.equal(radius == 0, clean.margin <= 0)
    assert (finite & (radius > 0)).any()
    more, less = (
        (radius + 0, (radius - 1).clamp_min(0)) if norm == "l0" else (radius * (1 + EXACT), radius * (1 - EXACT))
    )
    everywhere = 1e6 * torch.ones(N, dtype=torch.float64)
    above = case.optimum(case.ball.with_eps(torch.where(finite, more, everywhere)))
    below = case.optimum(case.ball.with_eps(torch.where(finite, less, everywhere)))
    assert (above.margin <= 0)[finite].all()
    assert (below.margin > 0)[radius > 0].all(), "a smaller radius must not change the prediction"
    if not targeted:
        assert above.fooled[finite].all()
        assert below.robust[radius > 0].all()
    elif classes <= 2:
        assert above.reached[finite].all()
        assert not below.reached[radius > 0].any()


def test_minimal_eps_is_infinite_where_the_box_is_narrow() -> None:
    case = scene("l2", 3, "mask", False)
    case.ball = L2(eps=9, lo=case.x - 0.05, hi=case.x + 0.05)
    radius = case.minimal_eps()
    assert radius.isinf().any()
    assert torch.equal(radius.isinf(), case.optimum().robust)


def test_a_tie_goes_to_the_first_class() -> None:
    weight, x = torch.eye(2).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    y = torch.tensor([0, 1])
    best = optimum(weight, None, x, y, Linf(eps=0.5))
    assert best.margin.tolist() == [0, 0]
    assert best.fooled.tolist() == [False, True]
    assert best.robust.tolist() == [True, False]
    ball = BALLS["l0"](eps=1, lo=0, hi=1)
    assert minimal_eps(weight, None, x, y, ball).tolist() == [2, 1], "one change makes a tie, which class 0 wins"
    assert minimal_eps(weight, None, x, y, Linf(eps=0, lo=0, hi=1)).tolist() == [0.5, 0.5]
    z = torch.zeros(2, 1).double()
    assert minimal_eps([1.0], 0.0, z, y, Linf(eps=0)).tolist() == [0, 0]
    assert optimum([1.0], 0.0, z, y, Linf(eps=0)).fooled.tolist() == [False, True]
    assert minimal_eps([1.0], 0.0, z, y, Linf(eps=0, hi=0)).tolist() == [math.inf, 0], "the score cannot increase"


def test_worked_example_has_the_published_numbers() -> None:
    x, w = np.array([[-2.0, 2, 1, -3, 1]]), np.array([3.0, 2, -1, 1, 4])
    for eps, y, after in ((0.3, 0, 0.7858349830425586), (1.0, 0, 0.9998766)):
        best = optimum(w, None, x, [y], Linf(eps=eps))
        before = 1 - best.loss_before.neg().exp().item()
        assert before == pytest.approx(0.11920292202211755, rel=1e-14)
        assert 1 - best.loss_after.neg().exp().item() == pytest.approx(after, rel=1e-8)
        torch.testing.assert_close(best.delta[0], eps * torch.from_numpy(np.sign(w)), rtol=1e-14, atol=1e-15)
        assert best.gain.item() == pytest.approx(eps * 11, rel=1e-14)
        assert best.fooled.tolist() == [True]
    up, down = (optimum(w, None, x, [0], Linf(eps=0.3), target=target) for target in (1, 0))
    torch.testing.assert_close(up.delta, -down.delta, rtol=1e-14, atol=1e-15)
    assert (up.reached.item(), down.reached.item()) == (True, True)
    assert down.loss_after.item() == pytest.approx(math.log1p(math.exp(-2 - 3.3)), rel=1e-13)
    assert minimal_eps(w, None, x, [0], Linf(eps=9)).item() == pytest.approx(2 / 11, rel=1e-14)


@NORMS
def test_blocks_and_shapes_leave_the_result_unchanged(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for targeted in (False, True):
        case = scene(norm, 3, "box and mask", targeted, d=6, per_row=True)
        whole, radius = case.optimum(), case.minimal_eps()
        with monkeypatch.context() as patch:
            patch.setattr("epsball.balls.ball.BLOCK", 13)
            patch.setattr("epsball.linear.case.BLOCK", 13)
            parts = case.optimum()
            torch.testing.assert_close(case.minimal_eps(), radius, rtol=1e-13, atol=0)
        for field in fields(Optimum)[:-2]:
            torch.testing.assert_close(getattr(parts, field.name), getattr(whole, field.name), rtol=1e-12, atol=1e-12)
        image = {name: getattr(case.ball, name).reshape(-1, 2, 3) for name in ("lo", "hi", "mask")}
        ball = BALLS[norm](eps=case.ball.eps, **image)
        x = case.x.reshape(-1, 2, 3)
        for weight in (case.weight, case.weight.reshape(-1, 2, 3), case.weight.numpy()):
            same = optimum(weight, case.bias.numpy(), x.numpy(), case.y.numpy(), ball, case.target)
            assert torch.equal(same.x_adv, whole.x_adv.reshape(-1, 2, 3))
            assert torch.equal(same.margin, whole.margin)
            assert torch.equal(minimal_eps(weight, case.bias, x, case.y, ball, case.target), radius)
        one = optimum(case.weight[0].reshape(2, 3), 0.25, x, case.y > 0, ball)
        other = optimum(case.weight[:1], torch.tensor([0.25]), case.x, (case.y > 0).int(), case.ball)
        assert torch.equal(one.margin, other.margin)


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predictions_are_those_at_the_stored_input(norm: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(4)
    x = (0.2 + torch.rand(200, 50, generator=draw)).to(dtype)
    weight, bias = 0.1 * torch.randn(10, 50, generator=draw), torch.randn(10, generator=draw) / 10
    y = (x.float() @ weight.T + bias).argmax(1)
    ball = BALLS[norm](eps={"linf": 0.02, "l2": 0.2, "l1": 0.5, "l0": 1}[norm], lo=0.0, hi=1.5)
    best = optimum(weight, bias, x, y, ball)
    assert (best.x_adv.dtype, best.margin.dtype) == (dtype, torch.float64)
    assert ball.contains(best.x_adv, x).all()
    scores = best.x_adv.double() @ weight.double().T + bias.double()
    top = scores.topk(2).values
    clear = top[:, 0] - top[:, 1] > 1e-5
    assert torch.equal(best.fooled[clear], (scores.argmax(1) != y)[clear])
    assert 0 < best.robust_accuracy < 1
    torch.testing.assert_close(best.margin, exact_margin(weight, bias, x, y, ball), rtol=0, atol=1e-12)


def exact_margin(
    weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, y: torch.Tensor, ball: Ball
) -> torch.Tensor:
    return optimum(weight.double(), bias.double(), x.double(), y, ball).margin


def test_arguments_are_unchanged_and_no_gradient_is_stored() -> None:
    case = scene("l1", 3, "box", False)
    case.weight.requires_grad_(True)
    case.x.requires_grad_(True)
    copies = [part.detach().clone() for part in (case.weight, case.bias, case.x, case.y)]
    best = case.optimum()
    case.minimal_eps()
    assert not best.x_adv.requires_grad
    assert not best.margin.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(copies, (case.weight, case.bias, case.x, case.y), strict=True))
    read_only = case.x.detach().numpy().copy()
    read_only.flags.writeable = False
    assert torch.equal(optimum(copies[0], copies[1], read_only, case.y, case.ball).margin, best.margin)


def test_no_examples_give_empty_results() -> None:
    for target in (None, 1):
        best = optimum(torch.ones(3, 4), None, torch.zeros(0, 4), torch.zeros(0).long(), Linf(eps=1), target)
        assert best.x_adv.shape == (0, 4)
        assert math.isnan(best.accuracy)
        assert minimal_eps(torch.ones(3, 4), None, torch.zeros(0, 4), [], Linf(eps=1), target).shape == (0,)


IRIS = load_iris(as_frame=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[IRIS.target]
MODELS = {
    "logistic": LogisticRegression(max_iter=1000),
    "svc": LinearSVC(random_state=1, dual=False),
    "sgd": make_pipeline(StandardScaler(), SGDClassifier(random_state=1)),
    "ridge": make_pipeline(MinMaxScaler(), RidgeClassifier()),
    "perceptron": make_pipeline(StandardScaler(), Perceptron(random_state=1)),
    "lda": make_pipeline(StandardScaler(), SelectKBest(k=3), LinearDiscriminantAnalysis()),
    "pca": make_pipeline(StandardScaler(), PCA(3, whiten=True), LogisticRegression()),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_estimator_predicts_the_same_at_the_optimum(name: str, classes: int) -> None:
    rows = np.flatnonzero(np.isin(NAMES, np.unique(NAMES)[-classes:]))
    frame, y = IRIS.data.iloc[rows], NAMES[rows]
    model = MODELS[name].fit(frame, y)
    x = frame.to_numpy()
    radius = minimal_eps(model, None, frame, y, Linf(eps=0, lo=0, hi=8))
    assert torch.equal(radius == 0, torch.from_numpy(model.predict(frame) != y))
    for factor, flips in ((1 + 1e-6, True), (1 - 1e-6, False)):
        best = optimum(model, None, frame, y, Linf(eps=radius.nan_to_num(posinf=9) * factor, lo=0, hi=8))
        predicted = model.predict(pd.DataFrame(best.x_adv.numpy(), columns=frame.columns))
        np.testing.assert_array_equal(best.classes[best.prediction_after.numpy()], predicted)
        np.testing.assert_array_equal(best.fooled.numpy(), predicted != y)
        moved = (radius > 0) & radius.isfinite()
        assert (best.fooled[moved] == flips).all()
        assert abs(best.x_adv.numpy() - x).max() <= radius[radius.isfinite()].max() * factor + 1e-12 or not flips
    target = best.classes[0]
    ball = L2(eps=0.5, lo=0, hi=8)
    best = optimum(model, None, frame, y, ball, target=target)
    predicted = model.predict(pd.DataFrame(best.x_adv.numpy(), columns=frame.columns))
    np.testing.assert_array_equal(best.reached.numpy(), predicted == target)
    assert best.accuracy == model.score(frame, y)


def test_torch_module_equals_its_weights() -> None:
    case = scene("linf", 3, "box", True)
    layer = nn.Linear(D, 3).double()
    layer.load_state_dict({"weight": case.weight, "bias": case.bias})
    ball = case.ball
    for model in (layer, nn.Sequential(nn.Flatten(), nn.Dropout(), layer)):
        best = optimum(model, None, case.x, case.y, ball, case.target)
        assert torch.equal(best.margin, case.optimum().margin)
        assert torch.equal(minimal_eps(model, None, case.x, case.y, ball, case.target), case.minimal_eps())


def test_whole_numbers_become_floats_with_an_estimator() -> None:
    model = RidgeClassifier().fit(IRIS.data, IRIS.target)
    whole = (IRIS.data * 10).round().astype(int)
    best = optimum(model, None, whole, IRIS.target, Linf(eps=1))
    assert best.x_adv.dtype == torch.float64
    assert torch.equal(best.margin, optimum(model, None, whole.astype(float), IRIS.target, Linf(eps=1)).margin)


W, X, Y = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 0.0]]), torch.tensor([[0.25, 0.5], [0.75, 1.0]]), [0, 2]
FITTED = RidgeClassifier().fit(X.numpy(), ["no", "yes"])
GIVEN = {"weight": W, "bias": None, "x": X, "y": Y, "ball": Linf(eps=0.1, lo=0, hi=1), "target": None}
WRONG = {
    "weight of three features": (
        {"weight": torch.ones(3, 3)},
        r"`weight` must be \(2,\) or \(classes, 2\).*got \(3, 3\)",
    ),
    "weight a number": ({"weight": 2.0}, r"`weight` must be .* got \(\); one row per class"),
    "weight is NaN": ({"weight": W * math.nan}, r"`weight` and `bias` must be finite"),
    "bias of two": ({"bias": [1.0, 2.0]}, r"`bias` must be a number or \(3,\), got \(2,\)"),
    "bias is infinite": ({"bias": math.inf}, r"`weight` and `bias` must be finite"),
    "bias of a model": ({"weight": FITTED, "bias": 1.0}, r"`bias` must be None where `weight` is a model"),
    "weight is text": ({"weight": "w"}, r"`model` must be a fitted scikit-learn classifier.*got str"),
    "x is text": ({"x": np.array([["a", "b"]])}, r"`x` must be numbers that doubles hold, got ndarray of <U1"),
    "x is NaN": ({"x": X * math.nan}, r"`x` must not hold NaN"),
    "x is infinite": ({"x": X / 0, "ball": Linf(eps=1)}, r"`x` must be finite, got infinite values; drop or clip"),
    "x outside": ({"x": X + 1}, r"`x` must lie in the box"),
    "y of three": ({"y": [0, 1, 2]}, r"`y` must be \(2,\), one class per row of x, got \(3,\)"),
    "y is no class": ({"y": [0, 3]}, r"`y` must be among the classes 0, 1, 2, got 3"),
    "y is -1": ({"y": [-1, 0]}, r"`y` must be among .* got -1"),
    "y is NaN": ({"y": [0.0, math.nan]}, r"`y` must be among .* got nan"),
    "y is None": ({"y": [0, None]}, r"`y` must be among .* got None"),
    "y of one logit": ({"weight": W[0]}, r"`y` must be among the classes 0, 1, got 2; one logit has 0 and 1"),
    "y is no label": (
        {"weight": FITTED, "y": ["no", "maybe"]},
        r"`y` must be among the classes 'no', 'yes', got 'maybe'",
    ),
    "target is no class": ({"target": 3}, r"`target` must be among the classes 0, 1, 2, got 3"),
    "target of three": ({"target": [0, 1, 2]}, r"`target` must be \(2,\)"),
    "no ball": ({"ball": 0.1}, r"`ball` must be of type Ball, got float"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_by_name(name: str) -> None:
    given, words = WRONG[name]
    for function in (optimum, minimal_eps):
        with np.errstate(all="ignore"), pytest.raises(BadInput, match=words):
            function(*(GIVEN | given).values())


def test_unbounded_radius_and_radius_per_feature_are_refused() -> None:
    with pytest.raises(BadInput, match="`eps` must be finite where the box is not"):
        optimum(W, None, X, Y, Linf(eps=math.inf, lo=0))
    ball = Linf(eps=torch.tensor([[0.1, 0.2]]))
    with pytest.raises(BadInput, match="`eps` must not be one per feature where one radius is wanted"):
        minimal_eps(W, None, X, Y, ball)
    best = optimum(W, None, X, Y, ball)
    torch.testing.assert_close(best.delta.abs(), torch.tensor([[0.1, 0.2]] * 2), rtol=0, atol=1e-7)
    with pytest.raises(BadInput, match="`target` must be None to prove robustness"):
        _ = optimum(W, None, X, Y, ball, target=1).robust_accuracy
