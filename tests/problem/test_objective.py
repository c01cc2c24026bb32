"""Objective: model calls counted, the model returned unchanged, gradients, success, warnings and errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from doubles import NEVER, every_logit
from nets import (
    CONV_SHAPE,
    Broken,
    Counting,
    InfiniteSlope,
    LabelOnly,
    Probabilities,
    RaisesAt,
    Recording,
    Staircase,
    Stochastic,
    batch,
    batch_of,
    conv,
    linear,
    mlp,
    predicted,
)
from torch import Tensor, nn

import epsball as eb
from epsball.models.frozen import frozen
from epsball.problem.losses import LOSSES, cross_entropy, margin
from epsball.problem.objective import ModelWarning, Objective, Point, changes_prediction, prediction
from epsball.problem.task import Task, task_of

BALL = eb.Linf(eps=0.2)


def point_of(model: Callable[[Tensor], Tensor], x: Tensor, y: object, **options: object) -> Point:
    target = options.pop("target", None)
    loss = options.pop("loss", cross_entropy)
    with Objective(model, loss, **options) as objective:
        return objective(x, task_of(x, y, BALL, target=target))


@pytest.mark.parametrize(
    ("needs", "loss", "columns"),
    [("grad", cross_entropy, 1), ("grad", every_logit, 3), ("logits", cross_entropy, 0), ("label", cross_entropy, 0)],
)
def test_counts_are_those_of_the_model(needs: str, loss: object, columns: int) -> None:
    model = Counting(mlp((5,), 3))
    x, y = batch_of(4, (5,), 3)
    task = task_of(x, y, BALL)
    with Objective(model, loss, needs=needs) as objective:
        objective(x, task)
        objective(x[:3], task.rows(torch.arange(3)))
        assert (objective.forwards, objective.backwards) == (7, 7 * columns)
        objective.forward(x)
        objective.evaluate_at(x, task)
        objective.succeeds(model.model(x), task)
        assert (objective.forwards, objective.backwards, objective.probes) == (15, 7 * columns, 0)
        assert model.forwards == 15
        objective.check_deterministic(x)
        assert (objective.forwards, objective.probes, model.forwards) == (15, 8, 23)
    assert objective.backwards == (model.backwards if columns < 2 else 7 * columns)


def flags(model: nn.Module) -> list[object]:
    return [*(m.training for m in model.modules()), *(p.requires_grad for p in model.parameters())]


def awkward() -> tuple[nn.Module, nn.Module]:
    """Mixed modes, a frozen parameter, and one parameter in two places."""
    inner, tied = conv(noisy=True), nn.Module()
    tied.weight = inner[0].weight
    inner[3].tied = tied
    inner.train()
    inner[1].eval()
    inner[4].bias.requires_grad_(False)
    return inner, tied


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_flags_are_restored(error: type[BaseException] | None) -> None:
    inner, tied = awkward()
    before = flags(inner)
    assert True in before
    assert False in before
    state = {name: part.clone() for name, part in inner.state_dict().items()}

    def work() -> None:
        with Objective(inner, cross_entropy) as outer:
            assert not any(flags(inner))
            with Objective(inner, margin), frozen(inner):
                assert not any(flags(inner))
            assert not any(flags(inner)), "the inner one thawed what the outer one froze"
            x, y = batch_of(4, CONV_SHAPE, 10)
            outer(x, task_of(x, y, BALL))
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert flags(inner) == before
    assert tied.weight.requires_grad
    assert all(p.grad is None for p in inner.parameters())
    assert all(torch.equal(part, state[name]) for name, part in inner.state_dict().items())


def test_flags_are_restored_after_the_model_raised() -> None:
    inner, _ = awkward()
    before = flags(inner)
    x, y = batch_of(4, CONV_SHAPE, 10)
    task = task_of(x, y, BALL)
    with Objective(RaisesAt(inner, 2), cross_entropy) as objective:
        objective(x, task)
        with pytest.raises(RuntimeError, match="out of memory"):
            objective(x, task)
        assert objective.forwards == 4
    assert flags(inner) == before


def test_grad_mode_of_the_caller_is_restored() -> None:
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            was = torch.is_grad_enabled()
            with Objective(mlp((5,), 3), cross_entropy):
                assert torch.is_grad_enabled()
            assert torch.is_grad_enabled() == was


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("shape", "classes"), [((), 3), ((5,), 1), ((5,), 3), (CONV_SHAPE, 10)])
def test_gradient_agrees_with_finite_differences(
    shape: tuple[int, ...], classes: int, name: str, targeted: bool
) -> None:
    model = conv() if len(shape) == 3 else mlp(shape, classes)
    x, y = batch_of(3, shape, classes)
    task = task_of(x, y, BALL, target=(y + 1) % max(classes, 2) if targeted else None)
    h = 1e-6
    with Objective(model, LOSSES[name]) as objective:
        grad = objective(x, task).grad
        assert grad.shape == x.shape
        for place in range(0, math.prod(shape), max(1, math.prod(shape) // 7)):
            step = torch.zeros(math.prod(shape), dtype=torch.float64)
            step[place] = h
            step = step.reshape(shape)
            slope = (objective(x + step, task).loss - objective(x - step, task).loss) / (2 * h)
            torch.testing.assert_close(grad.reshape(3, -1)[:, place], slope, rtol=1e-6, atol=1e-8)


def test_parameters_get_no_gradient() -> None:
    model = Recording(mlp((5,), 3))
    x, y = batch_of(3, (5,), 3)
    with Objective(model, cross_entropy) as objective:
        objective(x, task_of(x, y, BALL))
        assert not any(p.requires_grad for p in model.parameters())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not x.requires_grad
    assert not model.modes[0]


# Success.


@pytest.mark.parametrize("squeeze", [True, False])
def test_one_logit_becomes_two_columns(squeeze: bool) -> None:
    x, model = batch(9, (5,)), linear((5,), 1, squeeze=squeeze)
    point = point_of(model, x, 0)
    z = model(x).detach().reshape(-1)
    assert torch.equal(point.logits, torch.stack([torch.zeros_like(z), z], 1))
    assert torch.equal(point.fooled, z > 0)
    assert torch.equal(point_of(model, x, 0, target=1).fooled, z > 0)
    tie = point_of(lambda z: 0 * z.sum(1), x, 0, needs="logits")
    assert not tie.fooled.any()


def test_prediction_is_the_first_of_a_tie() -> None:
    assert prediction(torch.tensor([[1.0, 1, 0], [0, 2, 2]])).tolist() == [0, 1]
    assert prediction(torch.tensor([2, 1])).tolist() == [2, 1]


def test_success_depends_on_the_target_and_not_on_the_aim() -> None:
    task = task_of(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), BALL)
    task = Task(**{**vars(task), "target": torch.tensor([-1, 2, -1, 2]), "aim": torch.tensor([2, 1, 1, -1])})
    for predicted_class, want in ((0, [False] * 4), (1, [True, False] * 2), (2, [True] * 4)):
        assert (
            changes_prediction(nn.functional.one_hot(torch.full((4,), predicted_class), 3).float(), task).tolist()
            == want
        )
        assert changes_prediction(torch.full((4,), predicted_class), task).tolist() == want


def test_logits_that_are_not_finite_are_no_success() -> None:
    logits = torch.tensor([[math.nan, 0], [0, math.inf], [-math.inf, 0], [0, 1]])
    for needs in ("logits", "grad"):
        with pytest.warns(ModelWarning) if needs == "grad" else warnings.catch_warnings():
            point = point_of(lambda z: logits + 0 * z, torch.zeros(4, 2), 0, needs=needs)
        assert point.valid.tolist() == [False, False, True, True]  # -inf masks a class
        assert point.fooled.tolist() == [False, False, True, True]


def test_success_is_what_the_caller_defines() -> None:
    x, model = batch(9, (5,)), linear((5,), 3)
    rises = lambda output, task: output[:, 2] > task.y  # noqa: E731
    for needs in ("grad", "logits", "label"):
        assert torch.equal(point_of(model, x, 1, needs=needs, success=rises).fooled, model(x)[:, 2] > 1)
        assert not point_of(model, x, 1, needs=needs, success=NEVER).fooled.any()


def test_callable_that_is_no_module_is_accepted() -> None:
    x, y = batch_of(6, (5,), 3)
    model = mlp((5,), 3)
    for wrapped in (lambda z: model(z), model.forward):
        assert torch.equal(point_of(wrapped, x, y).grad, point_of(model, x, y).grad)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    labels = point_of(LabelOnly(model), x, y, needs="label")
    assert torch.equal(labels.fooled, predicted(model, x) != y)


# Means over several forward passes (EOT).


class Turns(nn.Module):
    """Answers with one model after the other."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.models, self.calls = nn.ModuleList(models), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.models[(self.calls - 1) % len(self.models)](x)


@pytest.mark.parametrize("target", [None, 2])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_eot_averages_logits_loss_and_gradient(loss: Callable[..., Tensor], target: int) -> None:
    x, models = batch(9, (5,)), [mlp((5,), 4, seed=seed) for seed in range(3)]
    third = torch.stack([model(x).argsort(1, descending=True)[:, 2] for model in models], 1)
    y = nn.functional.one_hot(third, 4).sum(1).argmin(1)  # for which dlr has a gradient in each of them
    each = [point_of(model, x, y, loss=loss, target=target) for model in models]
    mean = point_of(Turns(*models), x, y, loss=loss, target=target, eot=3)
    for name in ("logits", "loss", "grad"):
        want = sum(getattr(point, name) for point in each) / 3
        torch.testing.assert_close(getattr(mean, name), want, rtol=0, atol=1e-14)
        assert not getattr(mean, name).requires_grad
    success = mean.logits.argmax(1) != y if target is None else mean.logits.argmax(1) == 2
    assert torch.equal(mean.fooled, success)
    logits_only = point_of(Turns(*models), x, y, loss=loss, target=target, eot=3, needs="logits")
    torch.testing.assert_close(logits_only.logits, mean.logits, rtol=0, atol=1e-14)


def test_eot_of_labels_is_the_most_frequent() -> None:
    x = torch.zeros(4, 2)
    votes = torch.tensor([[0, 1, 2, 3], [1, 1, 2, 0], [1, 0, 2, 0], [3, 0, 1, 0], [1, 1, 0, 3]])

    class Voting:
        calls = 0

        def __call__(self, z: Tensor) -> Tensor:
            self.calls += 1
            return votes[self.calls - 1]

    with Objective(Voting(), cross_entropy, needs="label", eot=5) as objective:
        assert objective.forward(x).tolist() == [1, 1, 2, 0]
        assert (objective.forwards, objective.model.calls) == (20, 5)


@pytest.mark.parametrize(("needs", "columns"), [("grad", 1), ("grad", 3), ("logits", 0), ("label", 0)])
def test_eot_counts_every_model_call(needs: str, columns: int) -> None:
    model = Counting(mlp((5,), 3))
    x, y = batch_of(4, (5,), 3)
    task = task_of(x, y, BALL)
    with Objective(model, every_logit if columns == 3 else cross_entropy, needs=needs, eot=6) as objective:
        objective(x, task)
        assert (objective.forwards, objective.backwards) == (24, 24 * columns)
        objective.evaluate_at(x, task)
        assert (objective.forwards, model.forwards, model.calls) == (48, 48, 12)


@pytest.mark.parametrize("eot", [0, -3, 2.0, True, None])
def test_invalid_eot_is_refused(eot: object) -> None:
    with pytest.raises(eb.BadInput, match=r"`eot` must be a whole number >= 1, got .* stochastic models"):
        Objective(mlp((5,), 3), cross_entropy, eot=eot)


def test_eot_of_a_deterministic_model_changes_nothing() -> None:
    x, y = batch_of(6, (5,), 3)
    model, ball = mlp((5,), 3), eb.Linf(eps=0.2)
    torch.testing.assert_close(eb.PGD()(model, x, y, ball, eot=4), eb.PGD()(model, x, y, ball), rtol=0, atol=1e-12)


# Warnings and errors.

NET = mlp((5,), 3)
FAULTY = {
    "probabilities": (Probabilities(NET), "Return the logits"),
    "exactly zero for 8 of 8": (Staircase(NET), "Try the margin loss"),
    "exactly zero for 3 of 8": (Staircase(NET, 0.7), "Try the margin loss"),
    "gradient is not finite": (InfiniteSlope(NET), "taken as zero"),
    "gradient is not finite everywhere": (Broken(NET, 0.7), "overflow"),
}


@pytest.mark.parametrize("sign", FAULTY)
def test_faulty_model_is_warned_of_once_with_a_remedy(sign: str) -> None:
    model, remedy = FAULTY[sign]
    x, y = batch_of(8, (5,), 3)
    x[:, 0] = torch.tensor([0.1, 0.8, 0.5, 0.9, 0.2, 0.75, 0.3, 0.5])
    task = task_of(x, y, BALL)
    with warnings.catch_warnings(record=True) as caught, Objective(model, cross_entropy) as objective:
        warnings.simplefilter("always")
        for _ in range(3):
            assert objective(x, task).grad.isfinite().all()
    messages = [str(w.message) for w in caught if sign in str(w.message)]
    assert len(messages) == 1
    assert remedy in messages[0]
    assert all(issubclass(w.category, ModelWarning) for w in caught)


@pytest.mark.parametrize("needs", ["grad", "logits"])
def test_faulty_model_is_warned_of_once_under_eot(needs: str) -> None:
    x, y = batch_of(8, (5,), 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Objective(Probabilities(NET), cross_entropy, needs=needs, eot=5) as objective:
            for _ in range(2):
                objective(x, task_of(x, y, BALL))
    assert [str(w.message) for w in caught if "probabilities" in str(w.message)] != []
    assert len([w for w in caught if "probabilities" in str(w.message)]) == 1


def test_stochastic_model_is_warned_of_and_a_deterministic_one_is_not() -> None:
    x = batch(8, (5,))
    with Objective(Stochastic(NET), cross_entropy) as objective:
        with pytest.warns(ModelWarning, match=r"stochastic in eval mode.*Fix its noise"):
            assert not objective.check_deterministic(x)
        assert (objective.forwards, objective.probes) == (0, 16)
    for sound in (NET, Broken(NET, 0.5), mlp((5,), 3, noisy=True).train(), LabelOnly(NET), linear((5,), 1)):
        with Objective(sound, cross_entropy) as objective:
            assert objective.check_deterministic(x)


@pytest.mark.parametrize("model", [NET, mlp((5,), 1), linear((5,), 2), mlp((5,), 3, noisy=True), linear((5,), 10)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sound_model_is_not_warned_of(model: nn.Module, dtype: torch.dtype) -> None:
    """Warnings are errors in this suite."""
    x, y = batch_of(8, (5,), 2)
    state = {name: part.clone() for name, part in model.state_dict().items()}
    try:
        assert point_of(model.to(dtype), x.to(dtype), y).grad.dtype == dtype
    finally:
        model.double().load_state_dict(state)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda x: x[:, None, :],
            r"must return logits \(n, classes\) or one logit \(n,\), got \(8, 1, 5\); put the classes last",
        ),
        (lambda x: x[:4], "must return one row of logits per example, got 4 for 8; keep the first"),
        (lambda x: x.sum(), r"must return logits \(n, classes\).* got \(\)"),
        (lambda x: x[:, :0], r"must return logits \(n, classes\).* got \(8, 0\)"),
        (lambda x: (x.sum(), x), "must return a tensor of logits, got a tuple whose first part"),
        (lambda x: {"scores": x}, "must return a tensor of logits, got a dict of scores; wrap it"),
        (lambda x: x.numpy(force=True), "must return a tensor of logits, got ndarray"),
        (lambda x: x.detach(), "must be differentiable.*take an attack that needs no gradient, such as square"),
        (lambda x: torch.ones(8, 3, dtype=x.dtype), "must be differentiable"),
        (lambda x: torch.ones(8, 3, dtype=x.dtype, requires_grad=True), "must be differentiable"),
        (LabelOnly(NET), "returns labels, but this attack needs logits"),
        ("resnet18", "must be callable, x -> logits, got str"),
    ],
)
def test_unfit_model_gets_an_error_with_a_remedy(model: object, message: str) -> None:
    with pytest.raises(eb.BadInput, match=rf"`model` .*{message}"):
        point_of(model, batch(8, (5,)), 0)


@pytest.mark.parametrize("needs", ["grad", "logits"])
@pytest.mark.parametrize(("classes", "y", "target"), [(3, 3, None), (1, 2, None), (3, 0, 3), (1, 0, 2), (3, 7, 1)])
def test_label_out_of_range_gets_an_error_with_a_remedy(classes: int, y: int, target: int | None, needs: str) -> None:
    with pytest.raises(
        eb.BadInput, match=r"`y` and `target` must be below the \d classes .* number the classes from 0"
    ):
        point_of(mlp((5,), classes), batch(8, (5,)), y, target=target, needs=needs)
