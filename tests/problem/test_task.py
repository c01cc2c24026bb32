"""What a task refuses: one example without a batch dimension, a target that is the label. Every remedy works."""

from __future__ import annotations

import pytest
import torch
from nets import batch_of, mlp
from torch import nn

import epsball as eb
from epsball.evaluation.adversarial_set import make

BALL = eb.Linf(eps=0.1, lo=0, hi=1)
FLAT = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
PIXELS = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
ANY = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(-3), nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Linear(5, 3), (5,)), (nn.Linear(5, 1), (5,)), (FLAT, (3, 2, 2)), (ANY, (3, 2, 2)), (PIXELS, (1, 4, 4))],
    ids=["features", "one logit", "image", "image, unbatched model", "grey image"],
)
@pytest.mark.parametrize("y", [1, [1], torch.tensor(1), torch.tensor([1])])
def test_one_example_without_a_batch_dimension_is_refused_and_the_remedy_works(
    model: nn.Module, shape: tuple[int, ...], y: object
) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(eb.BadInput, match=r"x\[None\]"):
        eb.FGSM()(model, x, y, BALL)
    assert eb.FGSM()(model, x[None], y, BALL).shape == (1, *shape)


def test_examples_of_one_number_share_a_label_only_in_so_many_words() -> None:
    x = torch.rand(4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(eb.BadInput, match=r"y=torch.full\(\(4,\), y\)"):
        eb.FGSM()(lambda z: z - 0.5, x, 1, BALL)
    assert eb.FGSM()(lambda z: z - 0.5, x, torch.full((4,), 1), BALL).shape == (4,)


NET = mlp((5,), 3, seed=1)


@pytest.mark.parametrize("attack", [eb.FGSM(), eb.PGD(steps=5), eb.Square(steps=20)])
@pytest.mark.parametrize("one", [True, False], ids=["one for all", "one per row"])
def test_target_that_is_the_label_is_refused_by_an_attack_and_the_remedy_works(attack: eb.Attack, one: bool) -> None:
    x, y = batch_of(10, (5,), 3)
    target = 1 if one else torch.full((10,), 1)
    same = int((y == 1).sum())
    with pytest.raises(eb.BadInput, match=rf"`target` must differ .* in {same} of 10, first class 1 .* x\[keep\]"):
        attack(NET, x, y, BALL, target=target)
    keep = target != y
    attack(NET, x[keep], y[keep], BALL, target=target if one else target[keep])


def test_targets_that_are_the_labels_are_refused_by_evaluate_and_single_ones_left_out() -> None:
    x, y = batch_of(30, (5,), 3)
    with pytest.raises(eb.BadInput, match="`target` must differ from the label"):
        eb.evaluate(NET, (x, y), BALL, "fgsm", target=y, diagnose=0)
    target = y.where(torch.arange(30) == 7, (y + 1) % 3)
    keep = target != y
    found = eb.evaluate(NET, (x, y), BALL, "fgsm", target=target, diagnose=0)
    others = eb.evaluate(NET, (x[keep], y[keep]), BALL, "fgsm", target=target[keep], diagnose=0)
    assert found.records["status"][7].as_py() == "at-target"
    assert found.robust_accuracy == others.robust_accuracy


def test_one_target_for_all_leaves_out_the_examples_of_that_class() -> None:
    x, y = batch_of(60, (5,), 3)
    keep = y != 2
    found, others = (
        eb.evaluate(NET, data, BALL, "bim:steps=10", target=2, diagnose=0) for data in ((x, y), (x[keep], y[keep]))
    )
    assert 0 < int((~keep).sum()) <= found.count("at-target")
    assert found.robust_accuracy == others.robust_accuracy
    assert found.interval == others.interval
    assert (found.records["status"].to_numpy(zero_copy_only=False)[~keep.numpy()] == "at-target").all()
    with pytest.raises(eb.BadInput, match="`target` must differ from the label"):
        eb.evaluate(NET, (x[~keep], y[~keep]), BALL, "fgsm", target=2)


def test_adversarial_set_leaves_out_the_examples_of_its_target() -> None:
    x, y = batch_of(20, (5,), 3)
    data = eb.data.from_arrays(x, y)
    made = make(NET, data, eb.Linf(eps=torch.linspace(0, 0.3, 20), lo=0, hi=1), eb.FGSM(), target=1, batch_size=5)
    keep = y != 1
    assert torch.equal(made.examples.ids, data.ids[keep])
    wanted = eb.FGSM()(NET, x[keep], y[keep], eb.Linf(eps=torch.linspace(0, 0.3, 20)[keep], lo=0, hi=1), target=1)
    torch.testing.assert_close(made.x_adv, wanted)
    with pytest.raises(eb.BadInput, match="of another class than the `target` 1"):
        make(NET, data.rows(y == 1), BALL, eb.FGSM(), target=1)
