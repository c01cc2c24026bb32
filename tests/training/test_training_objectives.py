"""Every training objective against a naive computation by hand, in float64: gradients, buffers, logs.

The references use none of the package but a ball's geometry and its noise: each pass is a plain forward and
`torch.autograd.grad`, and a pass that must not change the model runs on a deep copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.acceleration.accelerate import accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.balls.l0 import L0
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.training import (
    FGSMRS,
    IBP,
    MTLIBP,
    NFGSM,
    SABR,
    TRADES,
    FGSMMix,
    Free,
    GradAlign,
    GradientPenalty,
    PGDTraining,
    Plain,
)
from epsball.training.training_objective import TrainingStep

N = 12
BALLS = {
    "linf": Linf(eps=0.2, lo=0, hi=1),
    "l2": L2(eps=0.7, lo=0, hi=1),
    "l1": L1(eps=2.0, lo=0, hi=1),
    "l0": L0(eps=5, lo=0, hi=1),
    "one eps per example": Linf(eps=torch.linspace(0, 0.5, N, dtype=torch.float64), lo=0, hi=1),
    "mask": L2(eps=0.7, lo=0, hi=1, mask=torch.rand(1, *nets.CONV_SHAPE, generator=nets.rng(3)) > 0.3),
    "one mask per example": Linf(
        eps=0.2, lo=0, hi=1, mask=torch.rand(N, *nets.CONV_SHAPE, generator=nets.rng(3)) > 0.3
    ),
}
every_ball = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
with_and_without_norms = pytest.mark.parametrize("noisy", [False, True], ids=["plain", "BatchNorm, dropout"])


def model_of(noisy: bool, classes: int = 4) -> nn.Module:
    return nets.conv(classes, noisy=noisy).train()


def data_of(classes: int = 4, n: int = N) -> tuple[Tensor, Tensor]:
    return nets.batch_of(n, nets.CONV_SHAPE, classes, seed=5)


def step_at(fraction: float = 0.0, n: int = N, **more) -> TrainingStep:
    return TrainingStep(Noise(7, torch.arange(n) * 3, torch.full((n,), 2)), number=4, fraction=fraction, **more)


def J(model: nn.Module, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy by hand; one logit z is the two columns (0, z)."""
    logits = model(x).reshape(len(x), -1)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    logs = logits - logits.logsumexp(1, keepdim=True)
    right = logs.gather(1, y[:, None]).squeeze(1)
    return -((1 - smoothing) * right + smoothing * logs.mean(1)).mean()


def slope(model: nn.Module, z: Tensor, y: Tensor, mode: str, loss: Callable[..., Tensor] = J) -> Tensor:
    """The input gradient, on a copy of the model."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(loss(copy.deepcopy(model).train(mode == "train"), z, y), z)[0]


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def on_points(attack: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """The reference of an objective that trains on adversarial examples alone."""

    def reference(model, x, y, ball, step, objective):
        z = attack(model, x, y, ball, step, objective)
        return gradients(model, J(model, z, y, objective.label_smoothing))

    return reference


def fgsm_rs(model, x, y, ball, step, objective):
    z = ball.sample(x, step.noise, in_box=False)
    return ball.step(slope(model, z, y, objective.attack_mode), z, x, objective.step_size)


def n_fgsm(model, x, y, ball, step, objective):
    z = ball.with_eps(objective.noise * ball.eps).sample(x, step.noise)
    reach = ball.with_eps((objective.noise + objective.step_size) * ball.eps)
    size = objective.step_size / (objective.noise + objective.step_size)
    return reach.step(slope(model, z, y, objective.attack_mode), z, x, size)


def pgd(model, x, y, ball, step, objective):
    z = ball.sample(x, step.noise)
    for _ in range(objective.steps):
        z = ball.step(slope(model, z, y, objective.attack_mode), z, x, objective.step_size)
    return z


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)


def trades(model, x, y, ball, step, objective):
    noise = step.noise.normal(x.shape[1:], draw=3, dtype=x.dtype)
    z, mode = ball.project(x + objective.start * noise, x), objective.attack_mode
    with torch.no_grad():
        reference = copy.deepcopy(model).train(mode == "train")(x)
    for _ in range(objective.steps):
        grad = slope(model, z, y, mode, lambda net, at, y: kl(reference, net(at)).sum())
        z = ball.step(grad, z, x, objective.step_size)
    clean, adversarial = model(x), model(z)
    loss = F.cross_entropy(clean, y, label_smoothing=objective.label_smoothing)
    return gradients(model, loss + objective.beta * kl(clean, adversarial).mean())


def grad_align(model, x, y, ball, step, objective):
    at_x = slope(model, x, y, objective.attack_mode)
    x_adv = ball.argmax(at_x, x)
    found = gradients(model, J(model, x_adv, y, objective.label_smoothing))
    other, z = copy.deepcopy(model), ball.sample(x, step.noise).requires_grad_()
    (at_z,) = torch.autograd.grad(J(other, z, y), z, create_graph=True)
    apart = (1 - F.cosine_similarity(at_x.flatten(1), at_z.flatten(1), dim=1)).mean()
    return [a + b for a, b in zip(found, gradients(other, objective.weight * apart), strict=True)]


def gradient_penalty(model, x, y, ball, step, objective):
    z = x.clone().requires_grad_()
    losses = F.cross_entropy(model(z), y, reduction="none", label_smoothing=objective.label_smoothing)
    (grad,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
    if objective.box:
        gain = (grad * (ball.argmax(grad.detach(), x) - x)).flatten(1).sum(1)
    else:
        grad = (grad if ball.mask is None else grad * ball.mask).flatten(1)
        dual = {"linf": grad.abs().sum(1), "l2": grad.square().sum(1).sqrt()}
        gain = ball.eps * dual.get(ball.name, grad.abs().amax(1))
    return gradients(model, (losses + objective.weight * gain).mean())


def free(model, x, y, ball, step, objective):
    return gradients(model, J(model, ball.project(x, x), y, objective.label_smoothing))


def worst_loss(model: nn.Module, x: Tensor, y: Tensor, ball, smoothing: float) -> Tensor:
    """J of the worst logits by intervals (lower, upper) through the layers of `model_of`, in eval mode."""
    eps = torch.as_tensor(ball.eps, dtype=x.dtype).reshape(-1, 1, 1, 1)
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    if ball.mask is not None:
        lower, upper = torch.where(ball.mask, lower, x), torch.where(ball.mask, upper, x)
    *body, last = model
    for layer in body:
        if isinstance(layer, nn.Conv2d):
            positive, negative = layer.weight.clamp_min(0), layer.weight.clamp_max(0)
            how = {"stride": layer.stride, "padding": layer.padding}
            lower, upper = (
                F.conv2d(lower, positive, layer.bias, **how) + F.conv2d(upper, negative, None, **how),
                F.conv2d(upper, positive, layer.bias, **how) + F.conv2d(lower, negative, None, **how),
            )
        elif isinstance(layer, nn.BatchNorm2d):
            ends = [
                F.batch_norm(end, layer.running_mean, layer.running_var, layer.weight, layer.bias)
                for end in (lower, upper)
            ]
            lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        elif not isinstance(layer, nn.Dropout):
            lower, upper = layer(lower), layer(upper)
    weight = last.weight[None] - last.weight[y][:, None]  # of z_j - z_y
    worst = (weight.clamp_min(0) * upper[:, None] + weight.clamp_max(0) * lower[:, None]).sum(2)
    worst = worst + last.bias[None] - last.bias[y][:, None]
    return F.cross_entropy(worst, y, label_smoothing=smoothing)


def ibp(model, x, y, ball, step, objective):
    smoothing, kappa = objective.label_smoothing, 1 - (1 - objective.kappa) * step.radius
    clean = J(model, x, y, smoothing)
    return gradients(model, kappa * clean + (1 - kappa) * worst_loss(model, x, y, ball, smoothing))


def mtl_ibp(model, x, y, ball, step, objective):
    adversarial = J(model, pgd(model, x, y, ball, step, objective), y)
    return gradients(model, objective.alpha * worst_loss(model, x, y, ball, 0) + (1 - objective.alpha) * adversarial)


def sabr(model, x, y, ball, step, objective):
    z = pgd(model, x, y, ball.with_eps((1 - objective.share) * ball.eps).bind(x), step, objective)
    J(model, x, y)  # whose statistics count
    return gradients(model, worst_loss(model, z, y, ball.with_eps(objective.share * ball.eps).bind(x), 0))


BOUNDS = {
    "ibp": (IBP(label_smoothing=0.1), ibp),
    "ibp of bounds alone": (IBP(kappa=0.0), ibp),
    "mtl-ibp": (MTLIBP(alpha=0.3, steps=2, step_size=0.5), mtl_ibp),
    "mtl-ibp in train mode": (MTLIBP(attack_mode="train"), mtl_ibp),
    "sabr": (SABR(steps=3), sabr),
}
REFERENCES = {
    "plain": (Plain(label_smoothing=0.1), lambda model, x, y, *_: gradients(model, J(model, x, y, 0.1))),
    "fgsm-rs": (FGSMRS(), on_points(fgsm_rs)),
    "fgsm-rs in eval mode": (FGSMRS(attack_mode="eval", step_size=0.5, label_smoothing=0.2), on_points(fgsm_rs)),
    "n-fgsm": (NFGSM(), on_points(n_fgsm)),
    "n-fgsm without noise": (NFGSM(noise=0.0, label_smoothing=0.1), on_points(n_fgsm)),
    "pgd": (PGDTraining(steps=3), on_points(pgd)),
    "pgd in train mode": (PGDTraining(steps=2, attack_mode="train", label_smoothing=0.1), on_points(pgd)),
    "trades": (TRADES(steps=3, start=0.01), trades),
    "trades in train mode": (TRADES(steps=2, beta=1.0, attack_mode="train", label_smoothing=0.1), trades),
    "grad-align": (GradAlign(weight=0.7), grad_align),
    "grad-align in eval mode": (GradAlign(attack_mode="eval", label_smoothing=0.1), grad_align),
    "gradient-penalty": (GradientPenalty(label_smoothing=0.1), gradient_penalty),
    "gradient-penalty in the box": (GradientPenalty(weight=0.5, box=True), gradient_penalty),
    "free": (Free(m=3), free),
    **BOUNDS,
}


def assert_same(model: nn.Module, twin: nn.Module, wanted: list[Tensor], tolerance: float = 1e-9) -> None:
    """Parameter gradients, and buffers."""
    for (name, p), want in zip(model.named_parameters(), wanted, strict=True):
        got = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(got, want, rtol=1e-6, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for (name, b), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(b, other, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@with_and_without_norms
@every_ball
@pytest.mark.parametrize(("objective", "reference"), REFERENCES.values(), ids=REFERENCES)
def test_gradients_and_statistics_are_those_of_the_definition_computed_by_hand(objective, reference, ball, noisy):
    model, (x, y) = model_of(noisy), data_of()
    twin = copy.deepcopy(model)
    bound = ball.bind(x)
    if reference in (ibp, mtl_ibp, sabr) and "dual norm" not in ball.traits:
        with pytest.raises(BadInput, match="`ball` must be of L∞, L2 or L1 to train bounds, got L0; train with pgd"):
            objective(model, x, y, bound, step_at())
        return
    torch.manual_seed(3)
    wanted = reference(twin, x, y, bound, step_at(), objective)
    torch.manual_seed(3)
    logged = objective(model, x, y, bound, step_at())
    assert sum(float(part.abs().sum()) for part in wanted) > 0
    assert_same(model, twin, wanted)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in logged.values())


# ------------------------------------------------------------------------------------------------ the mixed objective


@dataclass
class NaiveMix:
    """Three passes: one for grad_x J alone, one for J(x), one for J(x_adv); `second` are the second statistics."""

    objective: FGSMMix
    second: dict[str, Tensor] | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball, over: float) -> list[Tensor]:
        mix, smoothing = self.objective, self.objective.label_smoothing
        alpha = mix.alpha if mix.alpha_end is None else (1 - over) * mix.alpha + over * mix.alpha_end
        generator = torch.get_rng_state()
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(J(copy.deepcopy(model), leaf, y, smoothing), leaf)
        x_adv = ball.argmax(grad, x)
        if mix.batch_norm == "joint":
            logits = model(torch.cat([x, x_adv]))
            parts = [
                F.cross_entropy(half, y, label_smoothing=smoothing) for half in (logits[: len(x)], logits[len(x) :])
            ]
            return gradients(model, alpha * parts[0] + (1 - alpha) * parts[1])
        torch.set_rng_state(generator)  # the clean pass uses the random draws of its gradient
        clean = copy.deepcopy(model) if mix.batch_norm == "adversarial" else model
        on_clean = gradients(clean, J(clean, x, y, smoothing))
        if mix.shared_dropout:
            torch.set_rng_state(generator)
        adversarial = copy.deepcopy(model) if mix.batch_norm in ("clean", "separate") else model
        if mix.batch_norm == "separate" and self.second is not None:
            adversarial.load_state_dict(self.second, strict=False)
        on_adversarial = gradients(adversarial, J(adversarial, x_adv, y, smoothing))
        self.second = {name: buffer.clone() for name, buffer in adversarial.named_buffers()}
        return [alpha * a + (1 - alpha) * b for a, b in zip(on_clean, on_adversarial, strict=True)]


POLICIES = ["both", "clean", "adversarial", "separate", "joint"]
every_policy = pytest.mark.parametrize("policy", POLICIES)


@with_and_without_norms
@every_policy
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.3, 1.0])
def test_two_passes_give_the_gradients_of_the_naive_three_over_two_steps_of_training(policy, alpha, noisy):
    end = 0.5 if alpha == 1 else alpha  # at a constant 1 there is no adversarial pass, see below
    two_steps(FGSMMix(alpha=alpha, alpha_end=end, batch_norm=policy, label_smoothing=0.1), BALLS["linf"], noisy)


@every_ball
@every_policy
@pytest.mark.parametrize("alpha", [1e-6, 0.5])
def test_two_passes_give_the_gradients_of_the_naive_three_in_every_norm(ball, policy, alpha):
    two_steps(FGSMMix(batch_norm=policy, alpha=alpha), ball, noisy=True)


@pytest.mark.parametrize("policy", POLICIES[:-1])
def test_shared_dropout_draws_the_same_zeros_in_both_passes(policy):
    two_steps(FGSMMix(batch_norm=policy, shared_dropout=True), BALLS["linf"], noisy=True)


def two_steps(mix: FGSMMix, ball, noisy: bool) -> None:
    model, (x, y) = model_of(noisy), data_of()
    twin, naive, memory = copy.deepcopy(model), NaiveMix(mix), {}
    ball = ball.bind(x)
    for turn, over in enumerate((0.0, 0.6)):
        torch.manual_seed(turn)
        wanted = naive(twin, x, y, ball, over)
        after = torch.get_rng_state()
        torch.manual_seed(turn)
        model.zero_grad()
        logged = mix(model, x, y, ball, step_at(over, memory=memory))
        assert torch.equal(torch.get_rng_state(), after)
        assert_same(model, twin, wanted)
        if mix.batch_norm == "separate":
            torch.testing.assert_close(list(memory.values()), list(naive.second.values()))
        alpha = mix.alpha if mix.alpha_end is None else mix.alpha + over * (mix.alpha_end - mix.alpha)
        expected = alpha * logged["clean_loss"] + (1 - alpha) * logged["adversarial_loss"]
        torch.testing.assert_close(logged["loss"], expected)
        with torch.no_grad():
            for p, q, g in zip(model.parameters(), twin.parameters(), wanted, strict=True):
                p -= 0.1 * g
                q -= 0.1 * g


def test_the_second_statistics_are_stored_apart_and_the_models_own_are_the_clean_ones():
    model, (x, y), memory = model_of(noisy=True), data_of(), {}
    ball, only_clean = BALLS["linf"].bind(x), copy.deepcopy(model)
    mix = FGSMMix(batch_norm="separate", shared_dropout=True)
    for _ in range(3):
        torch.manual_seed(0)
        mix(model, x, y, ball, step_at(memory=memory))
        torch.manual_seed(0)
        only_clean(x)
    for buffer, other, second in zip(model.buffers(), only_clean.buffers(), memory.values(), strict=True):
        assert torch.equal(buffer, other)
        assert buffer.shape == second.shape
    assert not torch.allclose(memory["second statistics 0"], next(model.buffers()))


def test_alpha_changes_linearly_to_its_end():
    model, (x, y) = model_of(noisy=False), data_of()
    logged = FGSMMix(alpha=0.8, alpha_end=0.2)(model, x, y, BALLS["linf"].bind(x), step_at(0.5))
    torch.testing.assert_close(logged["loss"], (logged["clean_loss"] + logged["adversarial_loss"]) / 2)


def test_a_constant_alpha_of_one_leaves_out_the_adversarial_pass_and_is_plain_training():
    model, (x, y) = model_of(noisy=True), data_of()
    twin, counting = copy.deepcopy(model), nets.Counting(model).train()
    torch.manual_seed(0)
    logged = FGSMMix(alpha=1.0)(counting, x, y, BALLS["linf"].bind(x), step_at())
    torch.manual_seed(0)
    Plain()(twin, x, y, None, step_at())
    assert_same(model, twin, [p.grad for p in twin.parameters()])
    assert (counting.forwards, counting.backwards) == (N, N)
    assert set(logged) == {"loss", "clean_loss", "accuracy"}


# -------------------------------------------------------------------------------------------------------- model calls

SHORT = {
    "plain": (Plain(), 1, 1),
    "fgsm-mix": (FGSMMix(), 2, 2),
    "fgsm-mix without clean loss": (FGSMMix(alpha=0.0), 2, 2),
    "fgsm-mix jointly": (FGSMMix(batch_norm="joint"), 3, 3),
    "fgsm-mix separately": (FGSMMix(batch_norm="separate"), 2, 2),
    "fgsm-rs": (FGSMRS(), 2, 2),
    "n-fgsm": (NFGSM(), 2, 2),
    "pgd": (PGDTraining(steps=4), 5, 5),
    "free": (Free(m=2), 1, 1),
    "trades": (TRADES(steps=3), 6, 5),
    "grad-align": (GradAlign(), 3, None),
    "gradient-penalty": (GradientPenalty(), 1, None),
    "ibp": (IBP(), 1, 1),
    "mtl-ibp": (MTLIBP(), 2, 2),
    "sabr": (SABR(steps=3), 4, 3),
}
FORWARDS = {objective: forwards for objective, forwards, _ in SHORT.values()}
every_objective = pytest.mark.parametrize("objective", [part[0] for part in SHORT.values()], ids=SHORT)


@pytest.mark.parametrize(("objective", "forwards", "backwards"), SHORT.values(), ids=SHORT)
def test_a_step_costs_the_model_calls_that_the_docs_promise(objective, forwards, backwards):
    (x, y), counting, cache = data_of(), nets.Counting(model_of(noisy=True)), {}
    objective(counting, x, y, BALLS["linf"].bind(x), step_at(cache=cache))  # bounds are of a trace, made once
    counting.forwards = counting.backwards = 0
    objective(counting, x, y, BALLS["linf"].bind(x), step_at(cache=cache))
    assert counting.forwards == forwards * N
    if backwards is not None:
        assert counting.backwards == backwards * N


class WeightGradients(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the convolutions' backwards that compute a weight's gradient."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default and args[-1][1]:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernels", ["native", "phases"])
@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        (FGSMMix(), 2),
        (FGSMMix(alpha=0.0), 1),
        (FGSMMix(batch_norm="joint"), 1),
        (FGSMRS(), 1),
        (PGDTraining(steps=3), 1),
        (PGDTraining(steps=3, attack_mode="train"), 1),
        (TRADES(steps=2), 2),
    ],
    ids=repr,
)
def test_attacks_compute_no_weight_gradients_also_in_the_accelerated_trainable_form(objective, passes, kernels):
    model, (x, y) = model_of(noisy=False), data_of()
    names = {"0": kernels, "2": kernels}
    network = accelerate(model, x, trainable=True, plan=AccelerationPlan("trainable", kernels=names)).train()
    with WeightGradients() as seen:
        objective(network, x, y, BALLS["linf"].bind(x), step_at())
    assert seen.count == 2 * passes  # two convolutions


@with_and_without_norms
@every_objective
def test_the_accelerated_trainable_form_gives_the_same_gradients_and_statistics(objective, noisy):
    model, (x, y) = model_of(noisy), data_of()
    twin, ball = copy.deepcopy(model), BALLS["linf"].bind(x)
    names = {name: "phases" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    network = accelerate(model, x, trainable=True, plan=AccelerationPlan("trainable", kernels=names)).train()
    torch.manual_seed(0)
    objective(network, x, y, ball, step_at())
    torch.manual_seed(0)
    objective(twin, x, y, ball, step_at())
    assert_same(model, twin, [p.grad for p in twin.parameters()], tolerance=1e-9)


# ---------------------------------------------------------------------------------------------------- what it restores


@every_objective
def test_modes_and_requires_grad_are_unchanged_and_gradients_are_added_to_earlier_ones(objective):
    model, (x, y) = model_of(noisy=True), data_of()
    model[-1].bias.requires_grad_(False)
    twin, ball = copy.deepcopy(model), BALLS["linf"].bind(x)
    for net in (model, twin):
        torch.manual_seed(0)
        if net is model:
            for p in net.parameters():
                p.grad = torch.full_like(p, 2.0) if p.requires_grad else None
        objective(net, x.clone(), y, ball, step_at())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.requires_grad == q.requires_grad == (p is not model[-1].bias)
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad + 2)
        else:
            assert p.grad is None
    assert all(part.training for part in model.modules())
    assert torch.equal(x, data_of()[0])


@every_objective
@pytest.mark.parametrize("k", [1, 2])
def test_after_an_exception_modes_requires_grad_and_statistics_of_attacks_are_restored(objective, k):
    model, (x, y) = model_of(noisy=True), data_of()
    broken = nets.RaisesAt(model, k).train()
    before = copy.deepcopy(model)
    calls = FORWARDS[objective] + 2 * isinstance(
        objective, IBP | MTLIBP | SABR
    )  # which trace the model, and check that
    with pytest.raises((RuntimeError, BadInput), match="says the test") if calls >= k else nullcontext():
        objective(broken, x, y, BALLS["linf"].bind(x), step_at())
    assert all(p.requires_grad for p in model.parameters())
    assert all(part.training for part in broken.modules())
    if k == 1:
        for buffer, other in zip(model.buffers(), before.buffers(), strict=True):
            assert torch.equal(buffer, other)


def test_a_buffer_that_the_forward_pass_replaces_is_restored():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(2, 6, 6, dtype=torch.float64))
            self.net = nets.conv(4)

        def forward(self, x):
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return self.net(x - self.mean)

    (x, y), model = data_of(), Mean().train()
    start = model.mean
    FGSMRS()(model, x, y, BALLS["linf"].bind(x), step_at())
    once = copy.deepcopy(model.mean)
    model.mean = start.zero_()
    FGSMMix(batch_norm="adversarial", alpha=1.0)(model, x, y, BALLS["linf"].bind(x), step_at())
    assert torch.equal(model.mean, start)
    assert once.abs().sum() > 0  # the pass that is trained on did update it, once
    assert once.abs().max() <= 0.1
