"""The training loop beyond a step: resumes to the bit, parts of batches, averages, held-out examples, overfitting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from epsball import Linf
from epsball.acceleration.accelerate import Accelerated, accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.problem.objective import ModelWarning
from epsball.training import loop, monitor, training_directory
from epsball.training.averaging import model_tensors
from epsball.training.config import TrainingConfig
from epsball.training.fit import fit
from epsball.training.fit_result import Diverged, FitResult
from epsball.training.plain import Plain
from epsball.training.training_objective import TrainingObjective, TrainingStep
from epsball.training.validation import Check, check, overfitted

BALL = Linf(eps=0.1, lo=0, hi=1)
fork = get_context("fork")


@pytest.fixture(scope="module")
def digits() -> Examples:
    return load_data("digits", split="train", first=300)


def net(seed: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.2), nn.BatchNorm2d(1), *build("small-mlp", (1, 8, 8), 10, seed=seed))


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = model_tensors(one), model_tensors(two)
    return all(torch.equal(first[name], second[name]) for name in first)


@dataclass(frozen=True)
class OneStep(TrainingObjective):
    """FGSM from a random start, shifted by what it remembers of the steps before."""

    def __call__(self, model, x, y, ball, step: TrainingStep):
        z = ball.sample(x, step.noise).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        step.memory["mean"] = grad.mean() + step.memory.get("mean", torch.zeros(()))
        logits = model(ball.argmax(grad, x) + 1e-3 * step.memory["mean"])
        loss = F.cross_entropy(logits, y)
        loss.backward()
        return {"loss": loss.detach(), "adversarial_accuracy": (logits.argmax(1) == y).float().mean()}


EVERYTHING = {
    "objective": OneStep(),
    "epochs": 3,
    "batch_size": 50,
    "lr": 1e-2,
    "average": "ema",
    "decay": 0.9,
    "hold_out": 60,
    "ramp": 0.5,
    "seed": 3,
}


@cache
def undisturbed(optimizer: str) -> tuple[nn.Module, FitResult]:
    """The model and the result of a training that is not interrupted."""
    model = net()
    data = load_data("digits", split="train", first=300)
    return model, fit(model, data, BALL, **EVERYTHING | {"optimizer": optimizer})


class Killed(Exception):
    """What stops a training in the middle."""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_training_that_is_stopped_twice_ends_with_the_same_bits(digits, tmp_path, monkeypatch, optimizer):
    options = EVERYTHING | {"optimizer": optimizer}
    whole, expected = undisturbed(optimizer)
    for every in (0.0, 1e9):  # a checkpoint at every opportunity, or at the ends of epochs only
        monkeypatch.setattr(training_directory, "SAVE_EVERY", every)
        out, stops = tmp_path / f"{optimizer}-{every}", [2, 11]

        def stop(mark, stops=stops):
            if stops and mark.step >= stops[0]:
                stops.pop(0)
                raise Killed

        resumes = 0
        while True:
            model, resumes = net(seed=9 if any(out.glob("checkpoint-*")) else 0), resumes + 1
            try:
                found = fit(model, digits, BALL, out=out, progress=stop, **options)
                break
            except Killed:
                continue
        assert resumes == 3
        assert same(model, whole)
        assert found.epochs == expected.epochs
        assert found.checks == expected.checks
        assert found.best == expected.best
        again = net()
        assert replace(fit(again, digits, BALL, out=out, **options), seconds=0) == replace(found, seconds=0)
        assert same(again, whole)
        assert FitResult.from_json((out / "training.json").read_text()).checks == found.checks


SCRIPT = """
import sys, torch
from pathlib import Path
from epsball import Linf
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.training import distributed, training_directory
from epsball.training.fit import fit
from test_fit_loop import EVERYTHING, net
torch.set_num_threads(1)
training_directory.SAVE_EVERY = 0.0
distributed.join_torchrun()
model = net()
def report(mark):
    if distributed.rank() == 0:
        print(mark.step, flush=True)
fit(model, load_data("digits", split="train", first=300), Linf(eps=0.1, lo=0, hi=1), out=sys.argv[1], progress=report,
    **EVERYTHING)
if distributed.rank() == 0:
    torch.save(model.state_dict(), Path(sys.argv[1]) / "end.pt")
"""


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def meet(folder: str | Path, rank: int, world: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)


def forked(function: Callable[..., None], world: int, *arguments: object) -> None:
    """That many processes of `function(rank, *arguments)`; forks have torch already."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=world, start_method="fork")


def train_it(out: Path, steps: Connection, rank: int, world: int) -> None:
    """One of several processes, the first of which sends its steps."""
    torch.set_num_threads(1)
    training_directory.SAVE_EVERY = 0.0
    if world > 1:
        meet(out.parent, rank, world)
    send = steps.send if rank == 0 else lambda step: None
    model = net()
    data = load_data("digits", split="train", first=300)
    fit(model, data, BALL, out=out, progress=lambda mark: send(mark.step), **EVERYTHING)
    if rank == 0:
        torch.save(model.state_dict(), out / "end.pt")
    send("the end")
    if world > 1:
        torch.distributed.destroy_process_group()


def killed_at(out: Path, step: int | None, world: int = 1) -> int:
    """Train until that step, and kill -9; the step it began with."""
    (out.parent / "meet").unlink(missing_ok=True)
    ours, theirs = fork.Pipe(duplex=False)
    processes = [fork.Process(target=train_it, args=(out, theirs, rank, world), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    theirs.close()
    first = found = ours.recv()
    while found != "the end":
        if step is not None and found >= step:
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
            break
        found = ours.recv()
    for process in processes:
        process.join()
        assert (process.exitcode == 0) is (step is None)
    return first


def same_end(*folders: Path) -> bool:
    """Whether all ended with the same weights."""
    first, *others = (torch.load(folder / "end.pt") for folder in folders)
    return all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.usefixtures("digits")  # forks have what it imports
def test_kill_9_twice_ends_with_the_same_weights(tmp_path):
    for step in (5, 11, None):
        killed_at(tmp_path / "killed", step)
    found = torch.load(tmp_path / "killed" / "end.pt")
    assert all(torch.equal(value, found[name]) for name, value in undisturbed("adam")[0].state_dict().items())


def of_rank(rank: int, folder: str, world: int) -> None:
    """One process of several that train on the digits without randomness."""
    meet(folder, rank, world)
    model = build("small-mlp", (1, 8, 8), 10, seed=rank)  # overwritten by the weights of the first rank
    data = load_data("digits", split="train", first=131)
    gradients = []

    def objective(model, x, y, ball, step):
        found = OneStep()(model, x, y, ball, step)
        step.memory.clear()
        return found

    def note(mark):
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))

    result = fit(
        model, data, BALL, objective=objective, epochs=2, batch_size=65, optimizer="sgd", hold_out=30, progress=note
    )
    torch.save((gradients, model_tensors(model), result.checks), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("digits")  # forks have what it imports
def test_the_gradients_of_two_processes_are_those_of_one_on_the_joint_batch(tmp_path):
    forked(of_rank, 2, str(tmp_path), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    (tmp_path / "meet").unlink(missing_ok=True)
    forked(of_rank, 1, str(tmp_path), 1)
    alone = torch.load(tmp_path / "0.pt", weights_only=False)
    for one, two, joint in zip(first[0], second[0], alone[0], strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, joint, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[2] == second[2]
    assert [one.examples for one in first[2]] == [30] * 4
    assert [one.clean for one in first[2]] == pytest.approx([one.clean for one in alone[2]], abs=0.04)


@pytest.mark.nightly  # torchrun itself; a kill of two processes is above, without it
@pytest.mark.usefixtures("digits")  # forks have what it imports
def test_torchrun_restarts_after_a_rank_is_killed_and_ends_with_the_same_weights(tmp_path):
    killed_at(tmp_path / "undisturbed", None, world=2)
    path = tmp_path / "train_it.py"
    path.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [*torchrun, str(path), str(tmp_path / "killed")]
    killed = False
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as process:
        for line in process.stdout:
            if int(line) >= 7 and not killed:
                killed = True
                pgrep = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
                os.kill(int(pgrep.stdout.split()[-1]), signal.SIGKILL)
    assert process.returncode == 0
    assert killed
    assert same_end(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.usefixtures("digits")  # forks have what it imports
def test_one_process_resumes_from_a_checkpoint_of_two(tmp_path):
    killed_at(tmp_path / "out", 7, world=2)
    assert killed_at(tmp_path / "out", None) > 3
    assert (tmp_path / "out" / "end.pt").exists()


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"seed": 4}, {"epochs": 4}, {"objective": Plain()}])
def test_a_resume_with_other_settings_is_refused_by_name(digits, tmp_path, change):
    fit(net(), digits, BALL, out=tmp_path, **EVERYTHING)
    with pytest.raises(BadInput, match=f"`out` must be a training with the same {next(iter(change))}"):
        fit(net(), digits, BALL, out=tmp_path, **(EVERYTHING | change))


def test_a_resume_with_another_training_is_refused_by_name(digits, tmp_path):
    def stepped(scale):
        return lambda model, x, y, ball, step: OneStep()(model, scale * x, y, ball, step)

    options = EVERYTHING | {"objective": stepped(1.0)}
    fit(net(), digits, BALL, out=tmp_path, **options)
    fit(net(), digits, BALL, out=tmp_path, **options | {"objective": stepped(1.0)})
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    others = {
        "model": (wide, digits, BALL, options),
        "data": (net(), replace(digits, x=digits.x / 2), BALL, options),
        "ball": (net(), digits, BALL.with_eps(torch.full((1, 1, 8, 8), 0.1)), options),
        "objective": (net(), digits, BALL, options | {"objective": stepped(1.01)}),
    }
    for name, (model, data, ball, changed) in others.items():
        with pytest.raises(BadInput, match=f"`out` must be a training with the same {name}"):
            fit(model, data, ball, out=tmp_path, **changed)


def test_a_damaged_checkpoint_is_named(digits, tmp_path):
    fit(net(), digits, BALL, out=tmp_path, **EVERYTHING)
    last = sorted(tmp_path.glob("checkpoint-*"))[-1]
    (last / "checkpoint.json").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=f"{last.name} is damaged.*delete it"):
        fit(net(), digits, BALL, out=tmp_path, **EVERYTHING)


@pytest.mark.parametrize("batch_size", [60, 50])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(digits, batch_size):
    models = [build("small-mlp", (1, 8, 8), 10).double() for _ in range(2)]
    data = replace(digits, x=digits.x.double())
    results = []
    for model, parts in zip(models, (1, 7), strict=True):

        def objective(model, x, y, ball, step):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return {"loss": loss.detach(), "rows": len(x)}

        results.append(
            fit(model, data, objective=objective, epochs=1, batch_size=batch_size, accumulate=parts, optimizer="sgd")
        )
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    assert results[0].epochs[0]["loss"] == pytest.approx(results[1].epochs[0]["loss"], abs=1e-12)
    assert results[0].epochs[0]["rows"] == batch_size > results[1].epochs[0]["rows"]


def test_the_radius_grows_with_the_training(digits):
    radii = []

    def objective(model, x, y, ball, step):
        radii.append((step.fraction, float(ball.eps)))
        return Plain()(model, x, y, ball, step)

    fit(net(), digits, BALL, objective=objective, epochs=2, batch_size=50, ramp=0.5)
    assert radii == [(over, pytest.approx(0.1 * min(1, over / 0.5))) for over, _ in radii]
    assert radii[0][1] < 0.01 < 0.1 == radii[-1][1]


def test_averages_follow_their_definition_and_are_the_models_final_weights(digits):
    steps, ends = {}, {}
    for kind in ("none", "ema", "swa"):
        model, seen = net(), []
        fit(
            model,
            digits,
            epochs=2,
            batch_size=50,
            average=kind,
            decay=0.5,
            progress=lambda mark, seen=seen, model=model: seen.append(model[-1].weight.detach().clone()),
        )
        steps[kind], ends[kind] = seen, model[-1].weight.detach()
    for one, two in zip(steps["none"], steps["ema"], strict=True):
        assert torch.equal(one, two)  # averaging does not change the training
    ema = steps["ema"][0]
    for count, weight in enumerate(steps["ema"][1:], 1):
        ema = ema.lerp(weight, 1 - min(0.5, (1 + count) / (10 + count)))
    torch.testing.assert_close(ends["ema"], ema)
    torch.testing.assert_close(ends["swa"], torch.stack(steps["swa"][9:]).mean(0))
    assert torch.equal(ends["none"], steps["none"][-1])


def test_held_out_examples_are_never_trained_on_and_the_best_epochs_weights_are_returned(digits):
    seen, weights = set(), []

    def objective(model, x, y, ball, step):
        seen.update(step.noise.ids.tolist())
        return OneStep()(model, x, y, ball, step)

    def note(mark):
        if mark.check is not None and mark.check.step == mark.step:
            weights.append((mark.check, model[-1].weight.detach().clone()))

    model = net()
    result = fit(
        model,
        digits,
        BALL,
        objective=objective,
        epochs=4,
        batch_size=60,
        hold_out=100,
        checks=2,
        lr=0.05,
        progress=note,
    )
    assert len(seen) == 200
    assert len(result.checks) == 8
    ends = [(one, weight) for one, weight in weights if one.step % 4 == 0]
    best = max((one.pgd for one, _ in ends))
    first = next((one, weight) for one, weight in ends if one.pgd == best)
    assert result.best == first[0]
    assert torch.equal(model[-1].weight, first[1])
    held_out = digits.rows(torch.tensor([row for row in range(300) if int(digits.ids[row]) not in seen]))
    found = check(model, held_out, BALL, step=0, epoch=0, seed=0)
    assert (found.clean, found.fgsm, found.pgd) == (result.best.clean, result.best.fgsm, result.best.pgd)
    assert found.clean >= found.fgsm >= found.pgd


def test_patience_stops_a_training_that_does_not_improve(digits):
    result = fit(net(), digits, BALL, epochs=50, batch_size=100, hold_out=50, patience=3, lr=0.05, checks=1)
    assert "no better robust accuracy for 3 epochs" in result.checks[-1].event
    assert len(result.epochs) == result.best.epoch + 3 < 50


BROKEN = Check(step=9, epoch=2, examples=100, clean=0.9, fgsm=0.8, pgd=0.05)


@pytest.mark.parametrize(
    ("now", "best", "trained", "found"),
    [
        (BROKEN, 0.5, None, True),
        (BROKEN, 0.5, 0.99, True),
        (replace(BROKEN, fgsm=0.1), 0.5, None, False),  # FGSM accuracy collapsed too: divergence, not overfitting
        (replace(BROKEN, fgsm=0.1), 0.5, 0.9, True),  # accuracy under the training's own step is still high
        (replace(BROKEN, pgd=0.3), 0.5, None, False),
        (replace(BROKEN, pgd=0.01), 0.19, None, False),  # it never was robust
        (Check(step=1, epoch=1, examples=9, clean=0.5), 0.9, None, False),
    ],
)
def test_catastrophic_overfitting_is_a_collapse_of_accuracy_under_pgd_alone(now, best, trained, found):
    assert overfitted(now, best, trained) is found


@pytest.mark.parametrize(("how", "steps"), [("rollback", 12), ("switch", 12), ("stop", 6), ("ignore", 12)])
def test_each_remedy_for_overfitting_has_its_effect(digits, monkeypatch, caplog, how, steps):
    seen, weights, rates = [], [], []

    def scripted_check(model, data, ball, *, step, epoch, seed):
        weights.append(model[-1].weight.detach().clone())
        pgd = 0.01 if len(weights) == 3 else 0.5
        return Check(step=step, epoch=epoch, examples=len(data), clean=0.9, fgsm=0.8, pgd=pgd)

    def note(mark):
        seen.append(model[-1].weight.detach().clone())
        rates.append(mark.lr)

    monkeypatch.setattr(monitor, "check", scripted_check)
    model = net()
    result = fit(
        model,
        digits,
        BALL,
        objective=OneStep(),
        epochs=2,
        batch_size=40,
        hold_out=60,
        checks=3,
        on_overfit=how,
        schedule="constant",
        progress=note,
    )
    assert len(seen) == steps
    event = result.checks[2].event
    if how == "ignore":
        assert event == ""
        return
    assert "catastrophic overfitting: accuracy under PGD-10 fell from 50.0% to 1.0%" in event
    assert "catastrophic overfitting" in caplog.text
    assert torch.equal(seen[5], weights[1])
    if how == "rollback":
        assert rates == [1e-3] * 6 + [5e-4] * 6
    if how == "switch":
        assert "PGD training" in event


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"hold_out": 300}, "`hold_out` must be below the 300 examples"),
        ({"patience": 2}, "`patience` must be left out"),
        ({"ramp": 1.0}, r"`ramp` must be in \[0, 1\)"),
        ({"objective": OneStep}, "`objective` must be an objective or a function, got OneStep"),
        ({"objective": "fgsm-mix"}, "`objective` must be an objective or a function, got str"),
        ({"objective": lambda *arguments: None}, "`objective` must return a dict of scalars to log, got NoneType"),
        ({"average": "sma"}, "did you mean 'swa'|did you mean 'ema'"),
        ({"accumulate": True}, "`accumulate` must be a whole number"),
        ({"config": TrainingConfig(), "lr": 1.0}, "`config` must be left out"),
    ],
)
def test_settings_that_break_a_rule_are_refused(digits, options, message):
    with pytest.raises(BadInput, match=message):
        fit(net(), digits, BALL, **options)


def test_an_average_is_rolled_back_with_the_weights(digits, monkeypatch):
    checks, good = [], []

    def scripted_check(model, data, ball, *, step, epoch, seed):
        checks.append(step)
        pgd = 0.01 if len(checks) == 3 else 0.5
        return Check(step=step, epoch=epoch, examples=len(data), clean=0.9, fgsm=0.8, pgd=pgd)

    def note(mark):
        if len(checks) == 2 and mark.step == checks[-1]:
            good.append({name: value.clone() for name, value in model_tensors(model).items()})

    monkeypatch.setattr(monitor, "check", scripted_check)
    model = net()
    options = {"epochs": 2, "batch_size": 40, "hold_out": 60, "checks": 3, "on_overfit": "stop"}
    result = fit(model, digits, BALL, objective=OneStep(), average="ema", decay=0.0, progress=note, **options)
    assert "stopped" in result.checks[-1].event
    assert all(torch.equal(value, good[0][name]) for name, value in model_tensors(model).items())


def test_a_training_that_is_stopped_by_its_last_check_is_saved_as_finished(digits, tmp_path):
    options = {"epochs": 50, "batch_size": 100, "hold_out": 50, "patience": 3, "lr": 0.05, "checks": 1}
    result = fit(net(), digits, BALL, out=tmp_path, **options)
    saved = FitResult.load(tmp_path / "training.json")
    assert saved.finished
    assert saved.epochs == result.epochs
    steps = []
    fit(net(), digits, BALL, out=tmp_path, progress=lambda mark: steps.append(mark.step), **options)
    assert steps == []


def test_a_gradient_that_is_not_finite_stops_training_and_leaves_finite_weights(digits):
    def objective(model, x, y, ball, step):
        (model(x).sum() * (torch.inf if step.number == 3 else 1)).backward()
        return {"loss": 1.0}

    model = net()
    with pytest.raises(Diverged, match="a gradient norm of"):
        fit(model, digits, objective=objective, epochs=1, batch_size=50)
    assert all(bool(value.isfinite().all()) for value in model_tensors(model).values())


def test_a_scalar_that_is_logged_in_some_steps_is_a_mean_over_those(digits):
    def objective(model, x, y, ball, step):
        model(x).sum().backward()
        return {"always": 1.0} | ({"sometimes": 1.0} if step.number > 2 else {})

    assert fit(net(), digits, objective=objective, epochs=1, batch_size=50).epochs == (
        {"always": 1.0, "sometimes": 1.0},
    )


def test_a_model_that_returns_probabilities_gives_a_warning(digits):
    with pytest.warns(ModelWarning, match="returns probabilities, from the softmax at its end"):
        fit(nn.Sequential(net(), nn.Softmax(1)), digits, epochs=1)


def of_uneven(rank: int, folder: str) -> None:
    """Two processes, one of them without rows; a parameter that nothing reaches, and a buffer with an infinity."""
    meet(folder, rank, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.unused = nn.Parameter(torch.ones(()))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    fit(model, load_data("digits", split="train", first=3), epochs=1, batch_size=1, weight_decay=0.1)
    assert model.mask.tolist() == [0.0, -torch.inf]
    assert model.unused.item() == 1.0
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("digits")  # forks have what it imports
def test_processes_without_rows_or_gradients_change_nothing_else(tmp_path):
    forked(of_uneven, 2, str(tmp_path))


def test_lower_precision_and_channels_last_train_too_and_leave_the_layout_as_it_was():
    x, y = torch.rand(64, 3, 8, 8), torch.arange(64) % 4
    model = build("small-cnn", (3, 8, 8), 4)
    result = fit(model, (x, y), epochs=20, batch_size=32, lr=1e-2, precision="bf16", channels_last=True)
    assert result.epochs[-1]["loss"] < 0.5 * result.epochs[0]["loss"]
    assert all(p.is_contiguous() for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_an_accelerated_training_resumes_with_its_plan(digits, tmp_path, monkeypatch):
    options = {"objective": OneStep(), "epochs": 2, "batch_size": 50, "accelerate": True, "seed": 1}
    plan, plans = AccelerationPlan("trainable", kernels={"0": "folding"}), []

    def accelerated(
        model: nn.Module, example: torch.Tensor, *, plan: AccelerationPlan | None, trainable: bool
    ) -> Accelerated:
        plans.append(plan)
        return accelerate(model, example, plan=plan or chosen, trainable=trainable)

    chosen = plan
    monkeypatch.setattr(loop, "accelerate", accelerated)
    whole = build("small-cnn", (1, 8, 8), 10)
    fit(whole, digits, BALL, **options)

    def killed(progress):
        if progress.step == 7:
            raise Killed

    monkeypatch.setattr(training_directory, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        fit(build("small-cnn", (1, 8, 8), 10), digits, BALL, out=tmp_path, progress=killed, **options)
    chosen = AccelerationPlan("trainable", kernels={"0": "phases"})  # what another run of the trial could choose
    again = build("small-cnn", (1, 8, 8), 10)
    result = fit(again, digits, BALL, out=tmp_path, **options)
    assert plans == [None, None, plan]
    assert result.config["acceleration"] == plan.to_record()
    assert same(again, whole)


def test_tensorboard_gets_the_figures(digits, tmp_path):
    pytest.importorskip("tensorboard")
    fit(net(), digits, BALL, epochs=1, batch_size=100, hold_out=50, tensorboard=tmp_path)
    (log,) = tmp_path.iterdir()
    text = log.read_bytes()
    assert all(name in text for name in (b"train/loss", b"train/learning_rate", b"held_out/pgd"))
