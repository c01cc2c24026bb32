"""A logit of -inf masks a class: all is as if the model did not have it. nan, inf and rows of -inf are invalid."""

from __future__ import annotations

import math

import pytest
import torch
from doubles import BALLS, EPS, PAIRS, every_logit
from nets import batch, batch_of, mlp
from torch import Tensor

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.problem.losses import LOSSES
from epsball.problem.objective import Objective
from epsball.problem.outputs import masked_to_finite
from epsball.problem.task import task_of

BASE = mlp((6,), 3, seed=1)
MIDDLE = BASE(batch(200, (6,), seed=5)).mean(0).detach()


def NET(x: Tensor) -> Tensor:
    """A network that predicts each of its classes."""
    return BASE(x) - MIDDLE


def masked(x: Tensor) -> Tensor:
    """Five classes, of which the first and the last are masked."""
    logits = NET(x)
    nothing = torch.full_like(logits[:, :1], -math.inf)
    return torch.cat([nothing, logits, nothing], 1)


LOSING = {name: pair for name, pair in PAIRS.items() if getattr(pair[0], "loss", None) is not every_logit}


@pytest.mark.parametrize(("attack", "norm"), LOSING.values(), ids=LOSING)
def test_attacks_do_as_if_masked_classes_were_not_there(attack: Attack, norm: str) -> None:
    x, y = batch_of(12, (6,), 3)
    y = NET(x).argmax(1)
    ball = BALLS[norm](eps=EPS[norm], lo=0.0, hi=1.0)
    found, without = attack(masked, x, y + 1, ball), attack(NET, x, y, ball)
    assert found.isfinite().all()
    assert torch.equal(NET(found).argmax(1) != y, NET(without).argmax(1) != y)


def test_evaluation_counts_examples_with_masked_classes() -> None:
    x, y = batch_of(40, (6,), 3)
    y = torch.where(torch.arange(40) % 8 == 0, y, NET(x).argmax(1))
    ball = eb.Linf(eps=0.05, lo=0, hi=1)
    attacks = ["fgsm", "apgd", "apgd-t:steps=10", "fab:steps=10", "square:steps=50"]
    found = eb.evaluate(masked, (x, y + 1), ball, attacks, diagnose=0)
    without = eb.evaluate(NET, (x, y), ball, attacks, diagnose=0)
    assert found.count("invalid") == 0
    assert 0 < without.robust_accuracy < without.clean_accuracy < 1
    assert (found.clean_accuracy, found.robust_accuracy) == (without.clean_accuracy, without.robust_accuracy)


@pytest.mark.filterwarnings("ignore:the gradient is exactly zero")  # where one class is left
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_and_gradients_are_those_of_the_classes_that_are_left(loss: str, dtype: torch.dtype) -> None:
    net, (x, y) = mlp((6,), 5, seed=2).to(dtype), batch_of(8, (6,), 5)
    x = x.to(dtype)

    def widened(z: Tensor) -> Tensor:
        logits = net(z)
        return torch.cat([logits, torch.full_like(logits, -math.inf)], 1)

    ball = eb.Linf(eps=0.1)
    with Objective(widened, LOSSES[loss]) as objective, Objective(net, LOSSES[loss]) as plain:
        found, wanted = objective(x, task_of(x, y, ball)), plain(x, task_of(x, y, ball))
        assert found.logits.isfinite().all()
        torch.testing.assert_close(found.loss, wanted.loss)
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)
        # of a label that is masked itself, and of a row with one class that is left
        task = task_of(x, torch.full((8,), 7), ball)
        assert objective(x, task).loss.isfinite().all()
        assert objective(x, task).fooled.all()
    with Objective(lambda z: widened(z)[:, 4:], LOSSES[loss]) as objective:
        point = objective(x, task_of(x, 0, ball))
        assert point.loss.isfinite().all()
        assert point.grad.isfinite().all()
        assert not point.fooled.any()


def test_rows_without_an_answer_stay_invalid() -> None:
    rows = [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3, [-math.inf, 0.0, 1.0], [0.0, 2.0, -math.inf]]
    logits = torch.tensor(rows)
    x, y = torch.arange(5.0)[:, None], torch.tensor([2, 2, 2, 2, 2])

    def model(z: Tensor) -> Tensor:
        return logits[z[:, 0].round().long()] + 0 * z

    found = eb.evaluate(model, (x, y), eb.Linf(eps=0.1), "sign-noise", diagnose=0)
    status = ["invalid", "invalid", "invalid", "robust", "misclassified"]
    assert found.records["status"].to_pylist() == status
    single = eb.evaluate(
        lambda z: torch.where(z[:, 0] < 1.5, -math.inf, z[:, 0]),
        (x, (x[:, 0] > 1).long()),
        eb.Linf(eps=0.1),
        "sign-noise",
        diagnose=0,
    )
    assert single.count("robust") == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_replaced_logit_is_below_all_others_and_out_of_the_softmax(dtype: torch.dtype) -> None:
    logits = torch.tensor([[40.0, -math.inf, -60.0, -math.inf], [1.0, 2.0, 3.0, 4.0]], dtype=dtype)
    found = masked_to_finite(logits)
    assert torch.equal(found[1], logits[1])
    assert found.isfinite().all()
    assert (found[0, [1, 3]] < -60).all()
    assert torch.equal(found.softmax(1), logits.softmax(1))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e10), (torch.bfloat16, 1e5), (torch.float64, 1e25)])
def test_a_masked_class_is_below_large_logits_too(dtype: torch.dtype, size: float) -> None:
    found = masked_to_finite(torch.tensor([[-math.inf, size], [-math.inf, -size]], dtype=dtype))
    assert (found[:, 0] < found[:, 1]).all()
