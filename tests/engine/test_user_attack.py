"""A user's own attack in an evaluation: its points are verified, and the model comes back unchanged."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nets import Counting, batch, mlp, predicted
from torch import Tensor, nn

import epsball as eb
from epsball.balls.ball import Ball
from epsball.engine.user_attack import UserAttack

EPS = 0.15
BALL = eb.Linf(eps=0.5, lo=0, hi=1)


def examples(n: int = 70) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = mlp((20,), 5, seed=5), batch(n, (20,))
    return model, x, predicted(model, x)


def signed(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """FGSM by hand."""
    leaf = x.requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
    return ball.argmax(torch.autograd.grad(loss, leaf)[0], x.detach())


def status(run: eb.Evaluation) -> list[str]:
    return run.records["status"].to_pylist()


def test_callable_gives_the_same_results_as_the_same_attack_by_name() -> None:
    model, x, y = examples()
    ball = eb.Linf(eps=EPS, lo=0, hi=1)
    own, ours = (eb.evaluate(model, (x, y), ball, attack) for attack in (signed, "fgsm"))
    assert status(own) == status(ours)
    assert 5 < own.count("fooled") < 65
    assert torch.allclose(torch.from_numpy(own.points()[1]), torch.from_numpy(ours.points()[1]), rtol=0, atol=1e-12)
    assert own.stages[1].attack == "signed"
    assert set(own.records["attack"].to_pylist()) == {None, "signed"}


def test_callable_gets_copies_of_the_examples_that_are_still_robust() -> None:
    model, x, y = examples()
    original, shown = x.clone(), []

    def spoils(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        shown.append((len(x), len(y), ball.rows(torch.arange(len(x))).contains(x, x).all().item()))
        x.zero_()
        y.zero_()
        return x

    first = eb.evaluate(model, (x, y), eb.Linf(eps=EPS), "fgsm")
    run = eb.evaluate(model, (x, y), eb.Linf(eps=EPS), ["fgsm", spoils, signed], batch_size=32)
    left = first.count("robust")
    assert shown == [(32, 32, True)] * (left // 32) + [(left % 32, left % 32, True)]
    assert torch.equal(x, original)
    assert status(run) == status(first)  # zero is outside the ball; the third attack repeats the first


@pytest.mark.parametrize("where", ["outside the ball", "outside the box", "not a number"])
def test_adversarial_example_outside_the_ball_does_not_count(where: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x, y = examples()
    moved = {"outside the ball": 0.51, "outside the box": 0.4, "not a number": float("nan")}[where]

    def cheats(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        leaf = x.requires_grad_()
        grad = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]
        return (x + moved * grad.sign()).detach()

    with caplog.at_level(logging.WARNING):
        run = eb.evaluate(model, (x, y), BALL, cheats)
    assert run.count("fooled") == 0
    if where != "not a number":
        assert run.stages[1].unconfirmed > 50
        assert "were not reproduced when verified" in caplog.text
        allowed = eb.evaluate(model, (x, y), eb.Linf(eps=moved), cheats)
        assert allowed.count("fooled") == run.stages[1].unconfirmed
    else:
        assert (run.count("invalid"), run.count("robust")) == (0, 70)


@pytest.mark.parametrize("inside", [True, False])
def test_overflow_makes_an_example_invalid_only_inside_the_ball(inside: bool) -> None:
    inner, x, y = examples()
    edge = (x + 0.01).amax().item()

    def model(z: Tensor) -> Tensor:
        return inner(z) / (z.amax(1, keepdim=True) <= edge)  # not finite above

    def up(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x + 0.3

    run = eb.evaluate(model, (x, y), eb.Linf(eps=0.31 if inside else 0.29), up)
    over = int(((x + 0.3).amax(1) > edge).sum())
    assert over > 5
    assert run.count("invalid") == (over if inside else 0)


@pytest.mark.parametrize("graded", [False, True])
def test_buffers_and_gradients_are_restored_after_a_callable_that_trains_the_model(graded: bool) -> None:
    model = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)).double()
    x = batch(70, (20,))
    if graded:
        model(x).sum().backward()
    y = predicted(model.eval(), x)
    copies = {name: part.clone() for name, part in model.state_dict().items()}
    objects = [id(part) for part in model.buffers()]
    grads = [None if part.grad is None else (part.grad, part.grad.clone()) for part in model.parameters()]

    def careless(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        model.train()
        model.requires_grad_(True)
        nn.functional.cross_entropy(model(x), y).backward()
        model[1].running_mean = torch.ones(16, dtype=x.dtype)
        model[1].register_buffer("more", x)
        return x

    run = eb.evaluate(model, (x, y), eb.Linf(eps=EPS), [careless, "fgsm"])
    assert status(run) == status(eb.evaluate(model, (x, y), eb.Linf(eps=EPS), "fgsm"))
    assert model.state_dict().keys() == copies.keys()
    assert all(torch.equal(part, copies[name]) for name, part in model.state_dict().items())
    assert [id(part) for part in model.buffers()] == objects
    for part, before in zip(model.parameters(), grads, strict=True):
        if before is None:
            assert part.grad is None
        else:
            assert part.grad is before[0]
            assert torch.equal(part.grad, before[1])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:1], r"must return a tensor \(32, 20\), one point per row, got \(1, 20\)"),
        (lambda x: x[:, :7], r"got \(32, 7\)"),
        (lambda x: x.flatten(), r"got \(640,\)"),
        (lambda x: x.numpy(), "got ndarray"),
        (lambda x: (x, True), "got tuple"),
        (lambda x: None, "got NoneType"),
    ],
)
def test_answer_of_another_shape_is_refused(answer: Callable[[Tensor], object], message: str) -> None:
    model, x, y = examples(32)

    def odd(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> object:
        return answer(x)

    with pytest.raises(eb.BadInput, match=rf"`attacks`: odd .*{message}"):
        eb.evaluate(model, (x, y), BALL, odd)


def test_answer_in_another_dtype_and_with_a_graph_is_accepted() -> None:
    model, x, y = examples()
    model = model.float()
    half = lambda model, x, y, ball: signed(model, x, y, ball).double().requires_grad_()  # noqa: E731
    run = eb.evaluate(model, (x.float(), y), BALL, half)
    assert status(run) == status(eb.evaluate(model, (x.float(), y), BALL, "fgsm"))


@pytest.mark.parametrize("raises", [False, True])
def test_modes_and_parameter_flags_are_restored_after_a_callable_that_changes_them(raises: bool) -> None:
    model = mlp((20,), 5, noisy=True)
    model.train()
    model[2].eval()
    model[1].bias.requires_grad_(False)
    x = batch(70, (20,))
    modes = [module.training for module in model.modules()]
    learning = [part.requires_grad for part in model.parameters()]
    buffers = {name: part.clone() for name, part in model.state_dict().items()}
    y = predicted(model.eval(), x)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode

    def careless(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        assert not any(module.training for module in model.modules())
        x_adv = signed(model, x, y, ball)
        model.train()
        for part in model.parameters():
            part.requires_grad_(True)
        if raises:
            raise RuntimeError("out of memory, says the test")
        return x_adv

    seen: list[tuple[bool, bool]] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, module[3].training)))
    if raises:
        with pytest.raises(RuntimeError, match="out of memory"):
            eb.evaluate(model, (x, y), eb.Linf(eps=EPS), careless)
    else:
        run = eb.evaluate(model, (x, y), eb.Linf(eps=EPS), [careless, "pgd:steps=2"])
        assert run.stages[1].fooled == eb.evaluate(model, (x, y), eb.Linf(eps=EPS), "fgsm").stages[1].fooled > 0
    hook.remove()
    assert set(seen) == {(False, False)}
    assert [module.training for module in model.modules()] == modes
    assert [part.requires_grad for part in model.parameters()] == learning
    assert all(torch.equal(part, buffers[name]) for name, part in model.state_dict().items())
    assert all(part.grad is None for part in model.parameters())
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(("times", "rows"), [(1, None), (3, None), (1, 5), (2, 1)])
@pytest.mark.parametrize("batch_size", [32, 50])
def test_model_calls_of_a_callable_are_counted(times: int, rows: int | None, batch_size: int) -> None:
    inner, x, y = examples()
    model = Counting(inner)

    def counted(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        for _ in range(times):
            model(x[:rows])
        return x

    run = eb.evaluate(model, (x, y), BALL, [counted, "fgsm"], batch_size=batch_size)
    assert run.forwards == model.forwards
    stage = run.stages[1]
    assert stage.forwards == 70 * ((times if rows is None else 0) + 1)
    assert run.stages[1].backwards == 0


def test_plain_callable_as_the_model_can_be_attacked() -> None:
    inner, x, y = examples()
    run = eb.evaluate(lambda z: inner(z), (x, y), eb.Linf(eps=EPS, lo=0, hi=1), signed)
    assert status(run) == status(eb.evaluate(inner, (x, y), eb.Linf(eps=EPS, lo=0, hi=1), "fgsm"))
    assert run.stages[1].forwards == 70  # calls of a plain callable cannot be counted, the evaluator's own can


class Shift:
    """An attack that is an object."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return ball.project(x + self.by, x)


def test_stages_carry_the_names_of_callables() -> None:
    model, x, y = examples(20)
    attacks = [signed, Shift(0.1), functools.partial(signed), lambda model, x, y, ball: x]
    run = eb.evaluate(model, (x, y), eb.Linf(eps=1e-9), attacks)
    assert [stage.attack for stage in run.stages[1:]] == ["signed", "shift", "partial", "<lambda>"]
    assert UserAttack(Shift(0.1)).name == "shift"


CALLS: list[int] = []


def once(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    CALLS.append(len(x))
    return signed(model, x, y, ball)


def test_resume_calls_nothing_twice_and_refuses_another_callable(tmp_path: Path) -> None:
    model, x, y = examples()
    CALLS.clear()
    calls = CALLS
    ball = eb.Linf(eps=EPS, lo=0, hi=1)
    first = eb.evaluate(model, (x, y), ball, ["uniform-noise", once], run_dir=tmp_path / "run", shard_size=40)
    made = len(calls)
    assert made == 2
    again = eb.evaluate(model, (x, y), ball, ["uniform-noise", once], run_dir=tmp_path / "run", shard_size=40)
    assert len(calls) == made
    assert again.records.equals(first.records)
    assert eb.Evaluation.load(tmp_path / "run").records.equals(first.records)
    (tmp_path / "run" / "records" / "00001.parquet").unlink()
    (tmp_path / "run" / "stages" / "00001-01-once.parquet").unlink()
    mended = eb.evaluate(model, (x, y), ball, ["uniform-noise", once], run_dir=tmp_path / "run", shard_size=40)
    assert len(calls) == made + 1
    assert mended.records.equals(first.records)

    def other(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x

    with pytest.raises(eb.BadInput, match="attack"):
        eb.evaluate(model, (x, y), ball, ["uniform-noise", other], run_dir=tmp_path / "run", shard_size=40)


def test_target_with_a_callable_is_refused() -> None:
    model, x, y = examples(8)
    with pytest.raises(eb.BadInput, match="`target` must be left out with signed: a callable has no parameter for it"):
        eb.evaluate(model, (x, y), BALL, ["fgsm", signed], target=1)


@pytest.mark.parametrize("attacks", [eb.PGD, 3, ["fgsm", 0.5]])
def test_what_is_no_attack_is_refused(attacks: object) -> None:
    model, x, y = examples(8)
    with pytest.raises(eb.BadInput, match="`attacks` must be names, attacks such as PGD"):
        eb.evaluate(model, (x, y), BALL, attacks)


def test_one_attack_alone_needs_no_list() -> None:
    model, x, y = examples(40)
    for one in (signed, "fgsm", eb.FGSM()):
        listed = eb.evaluate(model, (x, y), BALL, [one])
        assert status(eb.evaluate(model, (x, y), BALL, one)) == status(listed)
