"""Properties of every training objective in the table: shapes, one logit, dtypes, keyed noise, parts of a batch."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from itertools import count

import nets
import pytest
import torch
from doc_tables import tables
from torch import Tensor, nn

from epsball import L1, L2, Linf
from epsball.attacks.pgd import PGD
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.arrays import from_arrays
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.training import (
    FGSMRS,
    IBP,
    MTLIBP,
    NFGSM,
    SABR,
    TRADES,
    Augment,
    FGSMMix,
    Free,
    Gaussian,
    GradAlign,
    GradientPenalty,
    PGDTraining,
    Plain,
)
from epsball.training.augment import ID_STRIDE
from epsball.training.config import TrainingConfig
from epsball.training.cross_entropy import CrossEntropyTraining, NonNegative
from epsball.training.fit import fit
from epsball.training.inner_attack import attack_gradient, attackable, summed_cross_entropy
from epsball.training.registry import OBJECTIVES, objective_class, parse
from epsball.training.training_objective import TrainingObjective, TrainingStep

OPTIONS = {"pgd": {"steps": 3}, "trades": {"steps": 2, "start": 0.01}, "free": {"m": 2}, "sabr": {"steps": 2}}


def objective_of(name: str) -> TrainingObjective:
    return objective_class(name)(**OPTIONS.get(name, {}))


WITHOUT_BALL = {"plain", "gaussian"}
every_objective = pytest.mark.parametrize("objective", [objective_of(name) for name in OBJECTIVES], ids=OBJECTIVES)


def step_of(ids: Tensor, **more) -> TrainingStep:
    return TrainingStep(Noise(1, ids, torch.zeros_like(ids)), **more)


def gradient_of(objective, model: nn.Module, x: Tensor, y: Tensor, ball, step: TrainingStep) -> list[Tensor]:
    """The parameter gradients of one step, on a copy of the model."""
    model = copy.deepcopy(model)
    model.zero_grad()
    objective(model, x, y, None if ball is None else ball.bind(x), step)
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@every_objective
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 3)], ids=str)
@pytest.mark.parametrize("squeeze", [False, True], ids=["(n, 1)", "(n,)"])
def test_one_logit_is_trained_as_its_two_columns_for_any_shape_of_example(objective, shape, squeeze):
    x, y = nets.batch_of(9, shape, 1, seed=2)
    body = nets.mlp(shape, 1)
    one = nn.Sequential(body, nets.Squeeze()) if squeeze else nn.Sequential(body)

    class TwoColumns(nets.Wrapper):
        def forward(self, x):
            z = self.model(x)
            return torch.cat([torch.zeros_like(z), z], 1)

    ball, ids = Linf(eps=0.2, lo=0, hi=1), torch.arange(9)
    got = gradient_of(objective, one.train(), x, y, ball, step_of(ids))
    want = gradient_of(objective, TwoColumns(body).train(), x, y, ball, step_of(ids))
    assert any(part.abs().max() > 0 for part in want)
    torch.testing.assert_close(got, want)


@every_objective
def test_float32_float64_and_autocast_give_gradients_in_the_parameters_dtype(objective):
    x, y = nets.batch_of(9, (2, 6, 6), 4, seed=2)
    model, ball, ids = nets.conv(4).train(), Linf(eps=0.1, lo=0, hi=1), torch.arange(9)
    exact = gradient_of(objective, model, x, y, ball, step_of(ids))
    single = gradient_of(objective, copy.deepcopy(model).float(), x.float(), y, ball, step_of(ids))
    with torch.autocast("cpu", torch.bfloat16):
        half = gradient_of(objective, copy.deepcopy(model).float(), x.float(), y, ball, step_of(ids))
    for precise, other, rough in zip(exact, single, half, strict=True):
        assert (precise.dtype, other.dtype, rough.dtype) == (torch.float64, torch.float32, torch.float32)
        assert rough.isfinite().all()
    whole = torch.cat([part.flatten() for part in exact])
    for found, slack in (
        (single, 0.1),
        (half, 0.8),
    ):  # uniforms differ between dtypes in the last digits, signs may flip
        found = torch.cat([part.flatten() for part in found]).double()
        assert (found - whole).norm() < slack * whole.norm()


@every_objective
def test_parts_of_a_batch_weighted_by_their_rows_are_the_batch_and_noise_is_keyed_by_id(objective):
    x, y = nets.batch_of(10, (2, 6, 6), 4, seed=2)
    ids, order = torch.arange(10) * 7, torch.randperm(10, generator=nets.rng(4))
    model = nets.conv(4).train()
    ball = L2(eps=torch.linspace(0.1, 1, 10, dtype=torch.float64), lo=0, hi=1)
    want = gradient_of(objective, model, x, y, ball, step_of(ids))
    total, memory = None, {}
    for part in (order[:3], order[3:]):
        found = gradient_of(objective, model, x[part], y[part], ball.rows(part), step_of(ids[part], memory=memory))
        scaled = [len(part) / 10 * one for one in found]
        total = scaled if total is None else [a + b for a, b in zip(total, scaled, strict=True)]
    torch.testing.assert_close(total, want)


@every_objective
def test_nothing_is_drawn_from_torchs_generator_and_the_same_step_gives_the_same_bits(objective):
    x, y = nets.batch_of(9, (2, 6, 6), 4, seed=2)
    model, ball, ids = nets.conv(4).train(), L1(eps=1.0, lo=0, hi=1), torch.arange(9)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = gradient_of(objective, model, x, y, ball, step_of(ids))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = gradient_of(objective, model, x, y, ball, step_of(ids))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "gaussian"])
def test_in_a_ball_of_radius_zero_it_is_plain_training(name):
    x, y = nets.batch_of(9, (2, 6, 6), 4, seed=2)
    objective = objective_of(name)
    model, ids = nets.conv(4).train(), torch.arange(9)
    got = gradient_of(objective, model, x, y, Linf(eps=0.0, lo=0, hi=1), step_of(ids))
    want = gradient_of(Plain(), model, x, y, None, step_of(ids))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_gaussian_is_plain_training_at_noisy_inputs_with_new_noise_each_epoch():
    x, y = nets.batch_of(500, (2, 6, 6), 4, seed=2)
    model, ids, seen = nets.Recording(nets.conv(4)).train(), torch.arange(500), []
    for epoch in (0, 1):
        step = TrainingStep(Noise(1, ids, torch.full_like(ids, epoch)))
        got = gradient_of(Gaussian(sigma=0.3), model, x, y, Linf(eps=0.1, lo=0, hi=1), step)
        noisy = x + 0.3 * step.noise.normal((2, 6, 6), dtype=x.dtype)
        seen.append(noisy - x)
        torch.testing.assert_close(got, gradient_of(Plain(), model, noisy, y, None, step))
    assert abs(torch.cat(seen).std() / 0.3 - 1) < 0.02
    assert (seen[0] - seen[1]).std() > 0.4


@every_objective
def test_a_ball_that_is_missing_or_a_model_without_an_input_gradient_is_refused(objective):
    x, y = nets.batch_of(9, (2, 6, 6), 4, seed=2)
    if isinstance(objective, Plain | Gaussian):
        return
    if isinstance(objective, Augment):
        with pytest.raises(BadInput, match="`ball` must be given for Augment"):
            objective.epoch(nets.conv(4), from_arrays(x, y), None, 1, 0)
        return
    with pytest.raises(BadInput, match=f"`ball` must be given for {type(objective).__name__}"):
        gradient_of(objective, nets.conv(4).train(), x, y, None, step_of(torch.arange(9)))

    class Rounding(nets.Wrapper):
        def forward(self, x):
            return self.model(x.detach())

    class InPlace(nets.Wrapper):
        def forward(self, x):
            x -= 0.5
            return self.model(x)

    if isinstance(objective, IBP):  # takes no gradient at the input
        with pytest.raises(BadInput, match="must not change its input in place"):
            gradient_of(objective, InPlace(nets.conv(4)), x.clone(), y, Linf(eps=0.1), step_of(torch.arange(9)))
        return
    for wrapper, message in ((Rounding, "must be differentiable"), (InPlace, "must not change its input in place")):
        with pytest.raises(BadInput, match=message):
            gradient_of(objective, wrapper(nets.conv(4)), x, y, Linf(eps=0.1), step_of(torch.arange(9)))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (FGSMMix, {"alpha": 1.5}, r"`alpha` must be in \[0, 1\]"),
        (FGSMMix, {"alpha_end": -0.1}, r"`alpha_end` must be in \[0, 1\]"),
        (FGSMMix, {"batch_norm": "booth"}, "did you mean 'both'"),
        (FGSMMix, {"batch_norm": "joint", "shared_dropout": True}, "`shared_dropout` must be False"),
        (FGSMRS, {"step_size": -1.0}, "`step_size` must be >= 0"),
        (FGSMRS, {"attack_mode": "training"}, "did you mean 'train'"),
        (NFGSM, {"noise": float("inf")}, "`noise` must be >= 0 and finite"),
        (NFGSM, {"step_size": -1.0}, "`step_size` must be >= 0"),
        (PGDTraining, {"steps": 0}, "`steps` must be a whole number >= 1"),
        (PGDTraining, {"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\)"),
        (TRADES, {"beta": -1.0}, "`beta` must be >= 0"),
        (TRADES, {"attack_mode": "val"}, "`attack_mode` must be one of train, eval"),
        (GradAlign, {"weight": -1.0}, "`weight` must be >= 0"),
        (GradAlign, {"attack_mode": ""}, "`attack_mode` must be one of"),
        (GradientPenalty, {"weight": float("nan")}, "`weight` must be >= 0"),
        (Gaussian, {"sigma": 0.0}, "`sigma` must be > 0"),
        (Free, {"m": 0}, "`m` must be a whole number >= 1"),
        (IBP, {"kappa": 1.5}, r"`kappa` must be in \[0, 1\]"),
        (IBP, {"crown": -0.1}, r"`crown` must be in \[0, 1\]"),
        (MTLIBP, {"alpha": 2.0}, r"`alpha` must be in \[0, 1\]"),
        (SABR, {"share": -1.0}, r"`share` must be in \[0, 1\]"),
        (SABR, {"steps": 0}, "`steps` must be a whole number >= 1"),
        (Augment, {"every": 0}, "`every` must be a whole number >= 1"),
        (Augment, {"keep": 0}, "`keep` must be a whole number >= 1"),
        (Augment, {"attack": "fgsm"}, "`attack` must be an Attack"),
    ],
)
def test_options_that_break_a_rule_are_refused(cls, options, message):
    with pytest.raises(BadInput, match=message):
        cls(**options)


def test_the_table_names_every_objective_and_options_are_written_as_text():
    assert list(OBJECTIVES) == [
        "plain", "fgsm-mix", "fgsm-rs", "n-fgsm", "grad-align", "free", "pgd", "trades", "gradient-penalty", "augment",
        "gaussian",
        "ibp", "mtl-ibp", "sabr",
    ]  # fmt: skip
    for name in OBJECTIVES:
        objective = objective_of(name)
        assert objective == replace(objective)
        assert all(field.kw_only for field in fields(objective))
        assert repr(objective).startswith(type(objective).__name__)


# ---------------------------------------------------------------------------------------------------- gradient penalty


def test_a_gradient_penalty_in_the_box_is_the_first_order_gain_of_fgsm_training():
    x, y = nets.batch_of(9, (2, 6, 6), 4, seed=2)
    model = nets.mlp((2, 6, 6), 4)
    ratios = []
    for eps in (1e-2, 1e-3, 1e-4):
        ball = Linf(eps=eps, lo=0, hi=1).bind(x)
        logged = GradientPenalty(box=True)(model, x, y, ball, step_of(torch.arange(9)))
        mixed = FGSMMix(alpha=0.0)(model, x, y, ball, step_of(torch.arange(9)))
        ratios.append(float((mixed["adversarial_loss"] - mixed["clean_loss"]) / logged["penalty"]))
    assert abs(ratios[0] - 1) < 0.1
    assert abs(ratios[1] - 1) < 0.02
    assert abs(ratios[2] - 1) < 0.002


def test_a_radius_per_feature_is_in_the_penalty_and_an_infinite_one_needs_the_box():
    x, y = nets.batch_of(9, (5,), 3, seed=2)
    model, eps = nets.mlp((5,), 3), torch.tensor([[0.1, 0.0, 0.2, 0.3, 0.0]], dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    logged = GradientPenalty()(model, x, y, Linf(eps=eps).bind(x), step_of(torch.arange(9)))
    torch.testing.assert_close(logged["penalty"], (grad.abs() * eps).sum(1).mean())
    endless = Linf(eps=float("inf"), lo=0, hi=1).bind(x)
    with pytest.raises(BadInput, match="`eps` must be finite"):
        GradientPenalty()(model, x, y, endless, step_of(torch.arange(9)))
    assert GradientPenalty(box=True)(model, x, y, endless, step_of(torch.arange(9)))["penalty"] > 0


def test_a_row_without_a_gradient_counts_as_aligned():
    x, y = nets.batch_of(6, (4,), 3, seed=2)
    body = nets.mlp((4,), 3)

    class Flat(nets.Wrapper):
        def forward(self, x):
            return self.model(x) * torch.tensor([0.0, 1, 0, 1, 1, 1], dtype=x.dtype)[:, None]

    ball = Linf(eps=0.3).bind(x)
    logged = GradAlign(weight=1.0)(Flat(body), x, y, ball, step_of(torch.arange(6)))
    keep = torch.tensor([1, 3, 4, 5])
    part = GradAlign(weight=1.0)(body, x[keep], y[keep], ball.rows(keep), step_of(keep))
    torch.testing.assert_close(logged["misalignment"], part["misalignment"] * 4 / 6)
    assert all(p.grad.isfinite().all() for p in body.parameters())


# ---------------------------------------------------------------------------------------------------------------- free


def test_frees_perturbation_ascends_over_the_replays_and_carries_over_to_the_next_batch():
    (x, y), ball = nets.batch_of(14, (2, 6, 6), 4, seed=2), Linf(eps=0.1, lo=0, hi=1)
    model, memory, free = nets.conv(4).train(), {}, Free(m=3, label_smoothing=0.1)
    numbers = count()
    assert free.replays == 3
    delta = torch.zeros(0, 2, 6, 6, dtype=torch.float64)
    for rows in (torch.arange(5), torch.arange(5, 9), torch.arange(9, 14)):  # sizes differ by one
        part, labels = x[rows], y[rows]
        fitting = torch.zeros_like(part)
        fitting[: len(delta)] = delta[: len(part)]
        left = delta[len(part) :]
        delta = fitting
        for replay in range(3):
            z = (part + delta).clamp(part - 0.1, part + 0.1).clamp(0, 1).requires_grad_()
            logits = model(z)
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
            wanted = torch.autograd.grad(loss, [z, *model.parameters()])
            model.zero_grad()
            logged = free(
                model, part, labels, ball.bind(part), step_of(rows, number=next(numbers), replay=replay, memory=memory)
            )
            torch.testing.assert_close(logged["loss"], loss.detach())
            torch.testing.assert_close([p.grad for p in model.parameters()], list(wanted[1:]))
            moved = (z.detach() + 0.1 * wanted[0].sign()).clamp(part - 0.1, part + 0.1).clamp(0, 1)
            delta = moved - part
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        delta = torch.cat([left, delta])


def test_frees_perturbations_stay_with_their_rows_where_a_batch_is_split():
    (x, y), ball = nets.batch_of(8, (2, 6, 6), 4, seed=2), Linf(eps=0.1, lo=0, hi=1)
    found = []
    for parts in (1, 3):
        model, memory, numbers = nets.conv(4).train(), {}, count()
        for batch in (torch.arange(4), torch.arange(4, 8), torch.arange(4)):
            for replay in range(2):
                number = next(numbers)
                for rows in batch.tensor_split(parts):
                    step = step_of(rows, number=number, replay=replay, memory=memory)
                    Free(m=2)(model, x[rows], y[rows], ball.rows(rows).bind(x[rows]), step)
        owners = memory["perturbation of"][:, 0]
        found.append((owners.sort().values, memory["perturbation"][owners.argsort()]))
    assert torch.equal(found[0][0], torch.arange(4))
    torch.testing.assert_close(found[0], found[1])


# ------------------------------------------------------------------------------------------------------------- augment


def test_augment_adds_examples_of_the_model_as_it_is_and_drops_the_oldest():
    data, ball = load_data("digits", split="train", first=40), Linf(eps=0.1, lo=0, hi=1)
    model = build("small-mlp", data.shape, data.classes).train()
    augment, seen = Augment(keep=2), [data]
    for number in range(5):
        with torch.no_grad():
            model[-1].weight.mul_(-1)  # another model each time
        seen.append(augment.epoch(model, seen[-1], ball, number, seed=3))
        assert model.training
    assert [len(one) for one in seen] == [40, 40, 80, 120, 120, 120]
    last = seen[-1]
    assert (last.ids // ID_STRIDE).unique().tolist() == [0, 3, 4]
    assert len(last.ids.unique()) == 120
    for number in (3, 4):
        rows = (last.ids // ID_STRIDE == number).nonzero().squeeze(1)
        assert torch.equal(last.ids[rows] % ID_STRIDE, data.ids)
        assert torch.equal(last.y[rows], data.y)
        moved = (last.x[rows] - data.x).abs()
        assert 0.099 < moved.max() <= 0.1 + 1e-6
    assert torch.equal(last.x[last.ids < ID_STRIDE], data.x)
    wanted = augment.attack(model, data.x, data.y, ball)
    assert torch.equal(last.x[last.ids // ID_STRIDE == 4], wanted)


def test_augment_runs_every_kth_epoch_with_any_attack_and_refuses_a_ball_per_example():
    data, ball = load_data("digits", split="train", first=20), Linf(eps=0.1, lo=0, hi=1)
    model = build("small-mlp", data.shape, data.classes)
    augment = Augment(attack=PGD(steps=2), every=2, keep=1, objective=Free(m=4))
    assert augment.replays == 4
    sizes, now = [], data
    for number in range(5):
        now = augment.epoch(model, now, ball, number, seed=0)
        sizes.append((len(now), int((now.ids // ID_STRIDE).max())))
    assert sizes == [(20, 0), (20, 0), (40, 2), (40, 2), (40, 4)]
    with pytest.raises(BadInput, match="the same for all examples"):
        augment.epoch(model, data, Linf(eps=torch.full((20,), 0.1)), 1, 0)
    with pytest.raises(BadInput, match="the same for all examples"):
        augment.epoch(model, data, Linf(eps=0.1, mask=torch.ones(20, *data.shape, dtype=torch.bool)), 1, 0)


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in WITHOUT_BALL])
def test_every_objective_makes_digits_more_robust_than_plain_training(name):
    data, ball = load_data("digits", split="train", first=600), Linf(eps=0.1, lo=0, hi=1)

    def robust(objective) -> float:
        model = build("small-mlp", data.shape, data.classes)
        optimizer, now, memory = torch.optim.Adam(model.parameters(), 5e-3), data, {}
        cache = {}
        for epoch in range(10 if objective.replays == 1 else 5):
            now = objective.epoch(model.train(), now, ball, epoch, 0)
            for batch, rows in enumerate(torch.randperm(len(now), generator=nets.rng(epoch)).split(100)):
                for replay in range(objective.replays):
                    optimizer.zero_grad()
                    noise = Noise(0, now.ids[rows], torch.full_like(rows, epoch))
                    number, fraction = 1000 * epoch + 10 * batch + replay, (epoch + batch / 10) / 10
                    radius = TrainingConfig(ramp=objective.ramp).radius_share(fraction)
                    step = TrainingStep(noise, number, fraction, replay, radius, memory, cache)
                    grown = ball.with_eps(ball.eps * radius).bind(now.x[rows])
                    objective(model, now.x[rows], now.y[rows], grown, step)
                    optimizer.step()
        model.eval()
        x_adv = PGD(steps=10)(model, data.x, data.y, ball)
        return float((model(x_adv).argmax(1) == data.y).float().mean())

    assert robust(objective_of(name)) > robust(Plain()) + 0.15


class Halfway(CrossEntropyTraining):
    """J halfway to FGSM's point, times `weight`."""

    cost, source = "2", "this test"
    weight: NonNegative = 1.0

    def __call__(self, model, x, y, ball, step):
        with attackable(model, "eval"):
            grad = attack_gradient(model, x, summed_cross_entropy(y))
        loss = self.weight * self.loss(model((x + self.need(ball).argmax(grad, x)) / 2), y)
        loss.backward()
        return {"loss": loss.detach()}


def test_a_new_objective_is_a_class_and_a_line_of_the_registry(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "halfway", (__name__, "Halfway"))
    assert parse("halfway:weight=2") == Halfway(weight=2.0)
    with pytest.raises(BadInput, match="`weight` must be >= 0"):
        parse("halfway:weight=-1")
    assert "| `halfway` | Halfway | J halfway to FGSM's point, times `weight`. | 2 | weight=1.0 | this test |" in (
        tables.filled("training.md")
    )
    data = load_data("digits", split="train", first=60)
    ball = Linf(eps=0.1, lo=0, hi=1)
    result = fit(build("small-mlp", data.shape, 10), data, ball, objective=parse("halfway"), epochs=1)
    assert result.config["objective"] == "Halfway(label_smoothing=0.0, weight=1.0)"
