"""Losses against independent implementations of their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from nets import batch, batch_of, linear, mlp, rng
from torch import Tensor, nn

import epsball as eb
from epsball.problem.losses import LOSSES, Loss, UserLoss, cross_entropy, dlr, margin, resolve_loss
from epsball.problem.objective import Objective
from epsball.problem.task import Task, task_of

AIMS = {"untargeted": [-1] * 6, "targeted": [1, 0, 0, 1, 0, 1], "mixed": [-1, 0, -1, 1, 0, -1]}
LABELS = [0, 1, 1, 0, 1, 0]


def task_for(classes: int, aims: str) -> tuple[Tensor, Task]:
    """Logits and a task whose labels and aims use all classes."""
    logits = 3 * torch.randn(6, classes, generator=rng(classes), dtype=torch.float64)
    high = max(classes - 2, 0)
    y = torch.tensor([high if label and i % 2 else label for i, label in enumerate(LABELS)])
    task = task_of(torch.zeros(6, 1).double(), y, eb.Linf(eps=1.0))
    aim = torch.tensor(AIMS[aims])
    return logits, task.with_jobs(task.noise.restart, torch.where((aim == y) & (aim >= 0), (aim + 1) % classes, aim))


def chance(logits: list[float], of: int) -> float:
    return math.exp(logits[of]) / sum(math.exp(z) for z in logits)


def by_hand(name: str, logits: list[float], y: int, aim: int, demanded: bool = False) -> float:
    if name == "cross_entropy":
        return -math.log(chance(logits, y)) if aim < 0 else math.log(chance(logits, aim))
    best = [max(z for j, z in enumerate(logits) if j != of) for of in (y, aim)]
    gap = best[0] - logits[y] if aim < 0 else logits[aim] - best[1]
    if name == "margin" or len(logits) < 4:
        return gap
    first, _, third, fourth = sorted(logits, reverse=True)[:4]
    if aim < 0:
        return gap / (first - third)
    return (gap if demanded else logits[aim] - logits[y]) / (first - (third + fourth) / 2)


@pytest.mark.parametrize("aims", AIMS)
@pytest.mark.parametrize("demanded", [False, True], ids=["aim", "the user's target"])
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_that_of_its_formula(name: str, classes: int, demanded: bool, aims: str) -> None:
    logits, task = task_for(classes, aims)
    task = replace(task, target=task.aim) if demanded else task
    loss = resolve_loss(name)(logits, task)
    rows = zip(logits.tolist(), task.y.tolist(), task.aim.tolist(), strict=True)
    want = [by_hand(name, z, y, aim, demanded) for z, y, aim in rows]
    torch.testing.assert_close(loss, torch.tensor(want, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    for i in range(6):  # also alone: no row depends on the targets of the others
        row = torch.tensor([i])
        assert resolve_loss(name)(logits[row], task.rows(row)).item() == pytest.approx(want[i], rel=1e-13)


@pytest.mark.parametrize("aims", AIMS)
@pytest.mark.parametrize("scale", [1e-9, 1e3, 1e9])
def test_dlr_does_not_depend_on_the_scale_of_the_logits(scale: float, aims: str) -> None:
    """Cross-entropy saturates at large logits; dlr and the direction of its gradient do not change."""
    logits, task = task_for(10, aims)
    grads = []
    for size in (1.0, scale):
        leaf = (logits * size).requires_grad_()
        loss = dlr(leaf, task)
        torch.testing.assert_close(loss.detach(), dlr(logits, task), rtol=1e-12, atol=1e-12)
        grads.append(torch.autograd.grad(loss.sum(), leaf)[0] * size)
        third = logits.argsort(1, descending=True)[:, 2] == task.y  # there the ratio is 1 by its formula
        assert torch.equal(grads[-1].abs().sum(1) == 0, third & ~task.aimed)
        torch.testing.assert_close(grads[-1].sum(1), torch.zeros(6).double(), rtol=0, atol=1e-9)  # shifts cancel
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_dlr_below_four_classes_is_the_margin_and_has_a_gradient(classes: int) -> None:
    """With three classes z_1 - z_y over z_1 - z_3 is 1 wherever the label comes last, and its gradient is zero."""
    x, y = batch(12, (5,)), torch.arange(12) % max(classes, 2)
    for target in (None, (y + 1) % max(classes, 2)):
        task = task_of(x, y, eb.Linf(eps=1.0), target=target)
        points = []
        for loss in (dlr, margin):
            with Objective(mlp((5,), classes), loss) as objective:
                points.append(objective(x, task))
        assert torch.equal(points[0].loss, points[1].loss)
        assert torch.equal(points[0].grad, points[1].grad)
        assert (points[0].grad.abs().sum(1) > 0).all()


TIES = [
    [2.0, 2, 2, 2, 2],
    [0.0, 0, 0, 0, 0],
    [3.0, 3, 3, -1, -2],
    [-1.0, 3, 3, 3, -2],
    [1.0, 5, 1, 1, 1],
    [-4.0, -4, -4, -4, -9],
]


@pytest.mark.parametrize("aims", AIMS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dlr_is_finite_at_ties(dtype: torch.dtype, size: float, aims: str) -> None:
    _, task = task_for(5, aims)
    logits = (torch.tensor(TIES, dtype=torch.float64) * size).to(dtype).requires_grad_()
    loss = dlr(logits, task)
    assert loss.dtype == dtype
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.double().clamp(-1e6, 1e6).sum(), logits)[0].isfinite().all()
    if aims == "untargeted" and size == 1:
        assert loss[1] == 0  # all tied: the margin is zero, whatever it is divided by
        assert loss[2] == 0  # the label is among three that are tied
        assert loss[3] > 1e1  # and where it is below them, the ratio is as large as it gets


@pytest.mark.parametrize("aims", AIMS)
def test_margin_is_positive_exactly_where_the_attack_succeeds(aims: str) -> None:
    logits, task = task_for(5, aims)
    predicted = logits.argmax(1)
    success = torch.where(task.aim < 0, predicted != task.y, predicted == task.aim)
    assert torch.equal(margin(logits, task) > 0, success)


@pytest.mark.parametrize("loss", [*LOSSES.values(), UserLoss(lambda z, y: z.square().sum(1) + y)])
def test_gradient_of_a_row_does_not_depend_on_the_rest_of_the_batch(loss: Loss) -> None:
    """A mean, or anything else that couples rows, scales the gradient with the batch."""
    x, model = batch(6, (4,)), linear((4,), 3)
    task = task_of(x, torch.tensor(LABELS), eb.Linf(eps=1.0))
    with Objective(model, loss) as objective:
        whole = objective(x, task)
        for i in range(6):
            row = torch.tensor([i])
            alone = objective(x[row], task.rows(row))
            torch.testing.assert_close(alone.grad, whole.grad[row], rtol=0, atol=1e-13)
            torch.testing.assert_close(alone.loss, whole.loss[row], rtol=0, atol=1e-13)
            changed = objective(x.index_copy(0, row, 1 - x[row]), task)
            others = torch.arange(6) != i
            torch.testing.assert_close(changed.grad[others], whole.grad[others], rtol=0, atol=1e-13)


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("target", [None, [1, 0, 0, 1, 0, 1]])
def test_cross_entropy_of_one_logit_is_binary_cross_entropy(target: list[int] | None, squeeze: bool) -> None:
    x, model = batch(6, (4,)), linear((4,), 1, squeeze=squeeze)
    goal, sign = (torch.tensor(LABELS), 1) if target is None else (torch.tensor(target), -1)
    with Objective(model, cross_entropy) as objective:
        point = objective(x, task_of(x, LABELS, eb.Linf(eps=1.0), target=target))
    leaf = x.clone().requires_grad_()
    z = model(leaf).reshape(6)
    binary = sign * nn.functional.binary_cross_entropy_with_logits(z, goal.double(), reduction="none")
    torch.testing.assert_close(point.loss, binary.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(point.grad, torch.autograd.grad(binary.sum(), leaf)[0], rtol=1e-13, atol=1e-13)
    assert torch.equal(point.logits, torch.stack([torch.zeros_like(z), z], 1).detach())


@pytest.mark.parametrize("aims", AIMS)
def test_user_loss_is_negated_towards_a_target(aims: str) -> None:
    logits, task = task_for(4, aims)
    own = UserLoss(lambda z, y: 10.0 * y + z[:, 0])
    want = torch.where(task.aim < 0, 10.0 * task.y + logits[:, 0], -(10.0 * task.aim + logits[:, 0]))
    torch.testing.assert_close(own(logits, task), want, rtol=0, atol=0)


def test_reduced_user_loss_is_refused() -> None:
    logits, task = task_for(3, "untargeted")
    for reduced in (nn.functional.cross_entropy, lambda z, y: z):
        with pytest.raises(eb.BadInput, match=r"`loss` must return .* \(6,\), got .*; use reduction='none'"):
            UserLoss(reduced)(logits, task)


def test_loss_is_finite_in_bfloat16_and_at_large_logits() -> None:
    for dtype, size in ((torch.bfloat16, 1e30), (torch.float32, 1e30), (torch.float64, 1e300)):
        _, task = task_for(3, "mixed")
        logits = torch.tensor([[size, 0.0, -size]] * 6, dtype=dtype)
        for name, loss in LOSSES.items():
            assert loss(logits, task).isfinite().all(), name
            assert loss(logits, task).dtype == dtype


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_gradient_of_a_confident_model_includes_its_label(gap: float) -> None:
    """From a margin of 16 on p_y - 1, the label's part of softmax's gradient, is rounded to 0 in float32."""
    logits = torch.rand(6, 4, generator=rng(3), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    logits[torch.arange(6), y] += gap
    task = task_of(torch.zeros(6, 1), y, eb.Linf(eps=1.0))
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype).requires_grad_()
        grads.append(torch.autograd.grad(cross_entropy(leaf, task).sum(), leaf)[0].double())
    torch.testing.assert_close(grads[0], grads[1], rtol=2e-5, atol=0)
    assert (grads[0].sum(1).abs() <= 1e-5 * grads[0].abs().amax(1)).all()  # a shift of all logits changes nothing


def test_misspelled_loss_is_refused_with_a_suggestion() -> None:
    assert {resolve_loss(name) for name in ("cross_entropy", "margin", "dlr")} == {cross_entropy, margin, dlr}
    with pytest.raises(eb.BadInput, match="did you mean 'margin'"):
        resolve_loss("margn")


def test_user_loss_is_maximised_like_a_built_in_one() -> None:
    x, y = batch_of(6, (5,), 3)
    model, ball = mlp((5,), 3), eb.Linf(eps=0.2)
    own = UserLoss(lambda logits, label: nn.functional.cross_entropy(logits, label, reduction="none"))
    for target in (None, (y + 1) % 3):
        ours = eb.PGD()(model, x, y, ball, target=target)
        assert torch.equal(eb.PGD(loss=own)(model, x, y, ball, target=target), ours)
    with pytest.raises(eb.BadInput, match="reduction='none'"):
        eb.PGD(loss=UserLoss(nn.functional.cross_entropy))(model, x, y, ball)
