"""The protocol: which examples are attacked, what is a success and a record; only the cost depends on the queue."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack, State
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.intervals import wilson
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.evaluation.result import Evaluation
from epsball.models.registry import build
from epsball.problem.objective import ModelWarning, Objective, Point
from epsball.problem.task import Task
from epsball.training.fit import fit

BOX = {"lo": 0.0, "hi": 1.0}


@pytest.fixture(scope="module")
def digits() -> Examples:
    return load_data("digits", split="test", first=192)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    model = build("small-cnn", (1, 8, 8), 10)
    fit(model, load_data("digits", split="train"), epochs=12, seed=0)
    return model.eval()


class Counting(nn.Module):
    """Counts the rows of every forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows, self.sizes = model, 0, set()

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        self.sizes.add(len(x))
        return self.model(x)


def test_records_distinguish_robust_fooled_and_misclassified_examples(net, digits):
    ball = eb.Linf(eps=0.1, **BOX)
    ev = eb.evaluate(net, digits, ball, ["fgsm", "pgd:steps=10"])
    with torch.no_grad():
        clean = net(digits.x).argmax(1)
    status = np.array(ev.records["status"].to_pylist())
    assert ((status == "misclassified") == (clean != digits.y).numpy()).all()
    assert ev.clean_accuracy == pytest.approx((clean == digits.y).double().mean().item())
    assert ev.robust_accuracy == (status == "robust").mean()
    assert ev.interval == wilson(int((status == "robust").sum()), len(digits))
    assert ev.interval[0] < ev.robust_accuracy < ev.interval[1]
    assert ev.summary()["interval"] == list(ev.interval)
    assert 0 < ev.robust_accuracy < ev.clean_accuracy
    assert set(ev.records["attack"].to_pylist()) == {None, "fgsm", "pgd:steps=10"}
    ids, points = ev.points()
    assert (np.sort(ids) == ids).all()
    assert len(ids) == ev.count("fooled") > 0
    rows = torch.from_numpy(ids)
    z = torch.from_numpy(points)
    assert np.array_equal(ev.originals(), digits.x[[list(digits.ids).index(i) for i in ids]].numpy())
    where = {int(i): k for k, i in enumerate(digits.ids)}
    x, y = (part[[where[int(i)] for i in rows]] for part in (digits.x, digits.y))
    assert ball.contains(z, x).all()
    with torch.no_grad():
        logits = net(z)
    assert (logits.argmax(1) != y).all()
    fooled = ev.records.filter(ev.records["status"].to_numpy(zero_copy_only=False) == "fooled")
    assert (fooled["adversarial_prediction"].to_numpy() == logits.argmax(1).numpy()).all()
    assert np.allclose(fooled["adversarial_confidence"].to_numpy(), logits.double().softmax(1).amax(1), atol=1e-6)
    delta = (z.double() - x.double()).flatten(1)
    for name, order in (("linf", float("inf")), ("l2", 2), ("l1", 1), ("l0", 0)):
        assert np.allclose(fooled[name].to_numpy(), torch.linalg.vector_norm(delta, order, dim=1), rtol=1e-12)
    assert (fooled["distance"].to_numpy() == fooled["linf"].to_numpy()).all()


def test_every_row_that_the_model_saw_is_counted(net, digits):
    model = Counting(net)
    ev = eb.evaluate(model, digits, eb.Linf(eps=0.08, **BOX), ["fgsm", "pgd:steps=5,restarts=3"], batch_size=64)
    assert model.rows == ev.forwards == sum(ev.cost.values())
    assert ev.cost["clean"] == len(digits)
    assert ev.cost["attack"] == sum(ev.records["forwards"].to_pylist())
    assert sum(ev.records["backwards"].to_pylist()) <= ev.backwards
    assert all(size % 32 == 0 for size in model.sizes)


@pytest.mark.parametrize("batch_size", [32, 128, 512])
def test_records_do_not_depend_on_the_batch_size(net, digits, batch_size):
    attacks = ["fgsm", "pgd:steps=7,restarts=2", eb.PGD(steps=5, n_targets=3)]
    reference = eb.evaluate(net, digits, eb.Linf(eps=0.06, **BOX), attacks, batch_size=64, seed=3)
    ev = eb.evaluate(net, digits, eb.Linf(eps=0.06, **BOX), attacks, batch_size=batch_size, seed=3)
    assert ev.records.equals(reference.records)
    assert ev.adversarial.equals(reference.adversarial)


@pytest.mark.parametrize(
    "ball", [eb.Linf(eps=0.06, **BOX), eb.L2(eps=0.5, **BOX), eb.L1(eps=3.0, **BOX), eb.L0(eps=3, **BOX)]
)
def test_records_do_not_depend_on_the_order_of_the_data(net, digits, ball):
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(1))
    reference = eb.evaluate(net, digits, ball, "pgd:steps=6", seed=1)
    ev = eb.evaluate(net, digits.rows(order), ball, "pgd:steps=6", seed=1, batch_size=96)
    assert ev.records.equals(reference.records)
    assert ev.adversarial.equals(reference.adversarial)


def test_another_seed_gives_other_adversarial_examples(net, digits):
    first, second = (eb.evaluate(net, digits, eb.Linf(eps=0.06, **BOX), "pgd:steps=3", seed=seed) for seed in (0, 1))
    assert not first.adversarial.equals(second.adversarial)


def test_a_curve_attacks_only_what_is_robust_at_the_smaller_radii(net, digits):
    radii = [0.15, 0.03, 0.09]  # 0.09 is above its neighbour in single precision
    model = Counting(net)
    ev = eb.evaluate(model, digits, eb.Linf(eps=1.0, **BOX), "pgd:steps=10", eps=radii)
    assert [eps for eps, _ in ev.curve] == sorted(radii)
    shares = [accuracy for _, accuracy in ev.curve]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    given = [stage.attacked for stage in ev.stages[1:]]
    fooled = [stage.fooled for stage in ev.stages[1:]]
    assert given[1] == given[0] - fooled[0]
    assert given[2] == given[1] - fooled[1]
    assert model.rows == ev.forwards
    robust = given[0] - np.cumsum(fooled)
    assert shares == [count / len(digits) for count in robust]
    assert set(ev.records["eps"].drop_null().to_pylist()) <= set(radii)
    eps = ev.records["eps"].to_numpy()
    distance = ev.records["linf"].to_numpy()
    assert (distance[~np.isnan(eps)] <= eps[~np.isnan(eps)] + 1e-6).all()
    alone = eb.evaluate(net, digits, eb.Linf(eps=0.03, **BOX), "pgd:steps=10")
    assert alone.robust_accuracy == shares[0]


@pytest.mark.parametrize("bad", [[], [0.1, 0.1], [-0.1]])
def test_bad_radii_are_refused(net, digits, bad):
    with pytest.raises(BadInput, match="`eps` must"):
        eb.evaluate(net, digits, eb.Linf(eps=0.1, **BOX), "fgsm", eps=bad)


def test_a_target_must_be_reached_and_examples_already_there_are_left_out(net, digits):
    ev = eb.evaluate(net, digits, eb.Linf(eps=0.2, **BOX), "pgd:steps=20", target=3)
    records = ev.records.to_pylist()
    assert all(r["adversarial_prediction"] == 3 for r in records if r["status"] == "fooled")
    at = [r for r in records if r["label"] == 3 or r["clean_prediction"] == 3]
    assert at
    assert all(r["status"] == "at-target" for r in at)
    attacked = [r for r in records if r["status"] in ("robust", "fooled")]
    assert ev.robust_accuracy == sum(r["status"] == "robust" for r in attacked) / len(attacked)
    assert ev.interval == wilson(ev.count("robust"), len(attacked))


def test_every_example_can_have_its_own_target(net, digits):
    target = (digits.y + 1) % 10
    ev = eb.evaluate(net, digits, eb.Linf(eps=0.25, **BOX), "pgd:steps=20", target=target)
    for record in ev.records.to_pylist():
        if record["status"] == "fooled":
            assert record["adversarial_prediction"] == record["target"] == (record["label"] + 1) % 10


@dataclass(frozen=True, kw_only=True)
class Liar(Attack[State]):
    """Returns adversarial examples outside the ball."""

    until = "done"

    @property
    def max_steps(self) -> int:
        return 1

    def init(self, task: Task) -> State:
        return State.at(task.x)

    def step(self, state: State, point: Point, task: Task) -> State:
        return State(z=state.z, best=(task.x + point.grad.sign()).clamp(0, 1), t=state.t, done=state.done)


def test_a_success_outside_the_ball_does_not_count(net, digits, caplog):
    honest = eb.evaluate(net, digits, eb.Linf(eps=0.01, **BOX), "fgsm")
    ev = eb.evaluate(net, digits, eb.Linf(eps=0.01, **BOX), [Liar(), "fgsm"])
    assert ev.stages[1].unconfirmed > 0
    assert ev.stages[1].fooled == 0
    assert ev.robust_accuracy == honest.robust_accuracy
    assert "were not reproduced" in caplog.text


def test_success_is_checked_again_on_the_stored_point(digits, net):
    """A model whose logits change sign while gradients are recorded: predictions during the attack do not count."""

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grad_passes = 0

        def forward(self, x: Tensor) -> Tensor:
            logits = net(x)
            return -logits if torch.is_grad_enabled() and x.requires_grad else logits

    ev = eb.evaluate(Forgetful(), digits, eb.Linf(eps=1e-6, **BOX), "pgd:steps=2")
    assert ev.stages[1].unconfirmed > 0
    assert ev.count("fooled") == 0


def test_double_precision_is_stored_in_double_precision(net, digits):
    from copy import deepcopy

    double = from_arrays(digits.x.double(), digits.y, lo=0, hi=1)
    ev = eb.evaluate(deepcopy(net).double(), double, eb.Linf(eps=0.1, **BOX), "fgsm")
    assert ev.points()[1].dtype == np.float64
    assert ev.count("fooled") > 0
    assert ev.stages[1].unconfirmed == 0


def test_examples_with_nonfinite_logits_are_neither_robust_nor_fooled(net, digits):
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = net(x)
            bad = (x.flatten(1).sum(1) > digits.x.flatten(1).sum(1).median())[:, None]
            return torch.where(bad, torch.nan, logits)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        ev = eb.evaluate(Overflowing(), digits, eb.Linf(eps=0.1, **BOX), "pgd:steps=5")
    assert ev.count("invalid") >= len(digits) // 2 - 1
    clean = ev.records["clean_prediction"].to_numpy()
    assert len(clean) == len(digits)
    assert ev.robust_accuracy <= 1 - ev.count("invalid") / len(digits)


def test_a_callable_that_returns_labels_accepts_only_decision_based_attacks(net, digits):
    from doubles import LabelWalk

    def labels_only(x: Tensor) -> Tensor:
        with torch.no_grad():
            return net(x).argmax(1)

    ev = eb.evaluate(labels_only, digits, eb.Linf(eps=0.4, **BOX), LabelWalk(), convergence=0)
    assert ev.count("fooled") > 0
    with pytest.raises(BadInput, match="label"):
        eb.evaluate(labels_only, digits, eb.Linf(eps=0.4, **BOX), "pgd")


def test_one_logit_with_per_example_radii_and_a_mask_gives_the_exact_accuracy():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 6, generator=generator)
    w = torch.randn(6, generator=generator)
    y = (x @ w > 0).long()
    mask = torch.tensor([[True, True, True, True, False, False]])
    eps = torch.rand(100, generator=generator)
    ball = eb.Linf(eps=eps, mask=mask)
    ev = eb.evaluate(lambda z: z @ w, (x, y), ball, "fgsm")
    reach = eps * w[:4].abs().sum()
    broken = (x @ w).abs() < reach
    assert ev.clean_accuracy == 1
    assert ev.robust_accuracy == pytest.approx((~broken).double().mean().item())
    assert np.allclose(sorted(e for e in ev.records["eps"].to_pylist() if e), sorted(eps[broken].tolist()))


def test_a_user_can_define_success(net, digits):
    def confident(logits: Tensor, task: Task) -> Tensor:
        confidence, predicted = logits.softmax(1).max(1)
        return (predicted != task.y) & (confidence > 0.9)

    plain = eb.evaluate(net, digits, eb.Linf(eps=0.1, **BOX), "pgd:steps=10")
    strict = eb.evaluate(net, digits, eb.Linf(eps=0.1, **BOX), "pgd:steps=10", success=confident)
    assert strict.robust_accuracy > plain.robust_accuracy
    fooled = strict.records["adversarial_confidence"].to_numpy()
    assert (fooled[~np.isnan(fooled)] > 0.9).all()


def test_the_model_keeps_its_training_flags_and_gradients(net, digits):
    model = nn.Sequential(net, nn.Dropout(0.5)).train()
    model[0].eval()
    before = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    eb.evaluate(model, digits.rows(torch.arange(40)), eb.Linf(eps=0.1, **BOX), "fgsm")
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(BadInput):
        eb.evaluate(nn.Sequential(model, nn.Linear(3, 3)), digits, eb.Linf(eps=0.1, **BOX), "fgsm")
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == before


def test_a_stochastic_model_is_warned_about(digits):
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] + torch.randn(len(x), 10)

    torch.manual_seed(0)
    with pytest.warns(ModelWarning, match="stochastic"):
        eb.evaluate(Noisy(), digits, eb.Linf(eps=0.1, **BOX), "uniform-noise")


def test_empty_data_is_refused(net, digits):
    with pytest.raises(BadInput, match="`data` must hold"):
        eb.evaluate(net, digits.rows(torch.arange(0)), eb.Linf(eps=0.1, **BOX), "fgsm")


# The run directory


def same(first: Evaluation, second: Evaluation) -> bool:
    return first.records.equals(second.records) and first.adversarial.equals(second.adversarial)


RUN = {"attacks": ["fgsm", "pgd:steps=10"], "shard_size": 64}


def test_a_loaded_run_equals_the_one_that_was_saved(net, digits, tmp_path):
    ev = eb.evaluate(net, digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "run", **RUN)
    assert Evaluation.load(tmp_path / "run") == ev
    assert same(ev, eb.evaluate(net, digits, eb.Linf(eps=0.05, **BOX), **RUN))
    assert eb.evaluate(net, digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "run", batch_size=32, **RUN) == ev


def test_the_adversarial_set_loads_with_datasets(net, digits, tmp_path):
    import datasets

    ev = eb.evaluate(net, digits, eb.Linf(eps=0.1, **BOX), run_dir=tmp_path / "run", **RUN)
    files = [str(file) for file in sorted((tmp_path / "run" / "stages").glob("*-00-fgsm.parquet"))]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["x_adv"] == datasets.Array3D((1, 8, 8), "float32")
    fooled = loaded.filter(lambda row: row["fooled"])
    ids, points = ev.points()
    place = {int(i): k for k, i in enumerate(ids)}
    assert len(fooled)
    for row in fooled:
        assert np.array_equal(np.array(row["x_adv"], dtype=np.float32), points[place[row["id"]]])


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("seed", {"seed": 1}),
        ("attacks", {"attacks": ["fgsm", "pgd:steps=11"]}),
        ("ball", {"ball": eb.Linf(eps=0.06, **BOX)}),
        ("radii", {"eps": [0.02, 0.05]}),
        ("shard_size", {"shard_size": 32}),
        ("target", {"target": 1}),
    ],
)
def test_a_resume_with_another_argument_is_refused_by_its_name(net, digits, tmp_path, field, change):
    arguments = {"ball": eb.Linf(eps=0.05, **BOX), "run_dir": tmp_path / "run", **RUN}
    eb.evaluate(net, digits, **arguments)
    with pytest.raises(BadInput, match=f"another `({field}|ball|attacks|stages)`"):
        eb.evaluate(net, digits, **(arguments | change))


def test_a_resume_with_other_weights_or_data_is_refused(net, digits, tmp_path):
    arguments = {"ball": eb.Linf(eps=0.05, **BOX), "run_dir": tmp_path / "run", **RUN}
    eb.evaluate(net, digits, **arguments)
    with pytest.raises(BadInput, match="another `model`"):
        eb.evaluate(build("small-cnn", (1, 8, 8), 10, seed=5), digits, **arguments)
    with pytest.raises(BadInput, match="another `data`"):
        eb.evaluate(net, digits.rows(torch.arange(100)), **arguments)


def test_loading_an_unfinished_run_is_refused(net, digits, tmp_path):
    eb.evaluate(net, digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "run", **RUN)
    (tmp_path / "run" / "records" / "00001.parquet").unlink()
    with pytest.raises(BadInput, match="not finished"):
        Evaluation.load(tmp_path / "run")
    with pytest.raises(BadInput, match="must be a run directory"):
        Evaluation.load(tmp_path / "nothing")


DAMAGE = {
    "cut short": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "a flipped byte": lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:],
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(
    "file", ["stages/00000-00-fgsm.parquet", "stages/00001-clean.parquet", "records/00001.parquet"]
)
def test_a_damaged_table_is_named_and_deleting_it_repairs_the_run(net, digits, tmp_path, file, kind):
    path, arguments = tmp_path / "run" / file, (net, digits.rows(torch.arange(60)), eb.Linf(eps=0.05, **BOX), "fgsm")
    whole = eb.evaluate(*arguments, run_dir=tmp_path / "run", shard_size=30)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    for use in (Evaluation.load, lambda run: eb.evaluate(*arguments, run_dir=run, shard_size=30)):
        with pytest.raises(BadInput, match=re.escape(str(path)) + ".*delete it and start the run again"):
            use(tmp_path / "run")
    path.unlink()
    with pytest.raises(BadInput, match=path.name if "stages" in file else "not finished"):
        Evaluation.load(tmp_path / "run")
    repaired = eb.evaluate(*arguments, run_dir=tmp_path / "run", shard_size=30)
    assert repaired.records.equals(whole.records)
    assert path.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
@pytest.mark.parametrize(
    ("file", "remedy"), [("config.json", "new directory"), ("binarization_test.json", "only the binarization test")]
)
def test_a_damaged_json_file_is_named_with_a_remedy(net, digits, tmp_path, file, remedy, text):
    arguments = (net, digits.rows(torch.arange(20)), eb.Linf(eps=0.05, **BOX), "fgsm")
    eb.evaluate(*arguments, run_dir=tmp_path, binarization_test=4)
    whole = (tmp_path / file).read_text()
    for damaged in (text, '{"n": 4}'):
        (tmp_path / file).write_text(damaged)
        for use in (Evaluation.load, lambda run: eb.evaluate(*arguments, run_dir=run, binarization_test=4)):
            with pytest.raises(BadInput, match=f"(?s)(config.json|binarization_test.json).*{remedy}"):
                use(tmp_path)
    (tmp_path / file).write_text(whole)
    assert eb.evaluate(*arguments, run_dir=tmp_path, binarization_test=4) == Evaluation.load(
        tmp_path
    )  # the lock is released


def test_an_infinite_radius_is_written_as_valid_json(net, digits, tmp_path):
    def refused(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    arguments = (net, digits.rows(torch.arange(20)), eb.L2(eps=1, **BOX), "fgsm")
    first = eb.evaluate(*arguments, eps=[0.5, math.inf], run_dir=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(), parse_constant=refused)
    assert config["radii"] == [0.5, "inf"]
    loaded = Evaluation.load(tmp_path)
    assert loaded == first == eb.evaluate(*arguments, eps=[0.5, math.inf], run_dir=tmp_path)
    assert [eps for eps, _ in loaded.curve] == [0.5, math.inf]
    with pytest.raises(BadInput, match="another `"):
        eb.evaluate(*arguments, eps=[0.5, 9.0], run_dir=tmp_path)


def test_a_resumed_run_makes_only_the_missing_model_calls(net, digits, tmp_path):
    model = Counting(net)
    arguments = {"ball": eb.Linf(eps=0.05, **BOX), "run_dir": tmp_path / "run", **RUN}
    ev = eb.evaluate(model, digits, **arguments)
    (tmp_path / "run" / "records" / "00001.parquet").unlink()
    (tmp_path / "run" / "stages" / "00001-01-pgd.parquet").unlink()
    model.rows = 0
    again = eb.evaluate(model, digits, **arguments)
    assert same(again, ev)
    assert 0 < model.rows < ev.forwards / 2


def test_a_run_directory_in_use_is_refused(net, digits, tmp_path):
    from epsball.evaluation.run_directory import RunDir

    with RunDir(tmp_path / "run", {}), pytest.raises(BadInput, match="in use"):
        RunDir(tmp_path / "run", {})


SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import epsball as eb
from epsball.acceleration.plan import AccelerationPlan
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.models.weights import load_weights
torch.set_num_threads(1)
plan = AccelerationPlan("graph")  # what a trial would choose depends on the machine's moment
net = build("small-cnn", (1, 8, 8), 10)
load_weights(net, sys.argv[1])
whole, run = map(Path, sys.argv[2:4])
data = load_data("digits", split="train", first=640)
chance = random.Random(0)

def evaluate(out, batch_size):
    eb.evaluate(net, data, eb.Linf(eps=0.03, lo=0, hi=1), sys.argv[6:], storage=sys.argv[4], run_dir=out,
                shard_size=64, batch_size=batch_size, accelerate=plan)

def child(out, batch_size):
    pid = os.fork()
    if pid == 0:
        evaluate(out, batch_size)
        os._exit(0)
    return pid

def files():
    return len(list(run.rglob("*.parquet")))

assert os.waitpid(child(whole, 128), 0)[1] == 0
for batch_size in ((128, 32, 64, 512, 96) * 2)[:int(sys.argv[5])]:
    before, wait, later = files(), chance.randrange(4), chance.random() * 0.05
    pid = child(run, batch_size)
    while files() < before + wait and not (run / "records" / "00009.parquet").exists():
        time.sleep(0.005)  # poll: so many files on, and a random moment more
    time.sleep(later)
    assert os.waitpid(pid, os.WNOHANG)[0] == 0, "it had finished before it could be killed"
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
assert not (run / "records" / "00009.parquet").exists()
assert os.waitpid(child(run, 128), 0)[1] == 0
"""
SMALL_STANDARD = ["apgd-ce:steps=12", "apgd-t:steps=8,n_targets=3", "fab-t:steps=5,n_targets=2", "square:steps=40"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("storage", "attacks"), [("float", SMALL_STANDARD), ("8bit", ["fgsm", "pgd:steps=20"])])
def test_kills_at_random_moments_leave_the_records_unchanged(net, tmp_path, storage, attacks, kills):
    """The attacks of `standard` at small budgets; the killed process is a fork, which starts faster than a new one."""
    from epsball.models.weights import save_weights

    save_weights(net, tmp_path / "net.safetensors")
    paths = [str(tmp_path / name) for name in ("net.safetensors", "whole", "run")]
    command = [sys.executable, "-c", SCRIPT, *paths, storage, str(kills), *attacks]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    whole, run = (Evaluation.load(tmp_path / name) for name in ("whole", "run"))
    assert same(whole, run)
    assert whole.count("fooled") > 0
    assert all(stage.attacked for stage in whole.stages[1:])
    for name in ("whole", "run"):
        assert eb.verify(tmp_path / name, net).agrees


# Linear models: the exact answer is known


@pytest.mark.parametrize("attacks", ["fgsm", "pgd"])
def test_the_robust_accuracy_of_a_linear_model_is_exact(attacks):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(300, 20, generator=generator, dtype=torch.float64)
    w = torch.randn(20, generator=generator, dtype=torch.float64)
    score = (x - 0.5) @ w
    y = (score > 0).long()
    ball = eb.Linf(eps=0.05, lo=0, hi=1)
    worst = score.abs() - ball.max_gain(torch.where(y[:, None] == 1, -w, w), x)
    ev = eb.evaluate(lambda z: (z - 0.5) @ w, from_arrays(x, y, lo=0, hi=1), ball, attacks)
    assert ev.robust_accuracy == (worst > 0).double().mean().item()


def test_each_attack_gets_an_objective_with_its_own_needs(net, digits):
    assert Objective(net, eb.PGD().loss).needs == "grad"
    ev = eb.evaluate(net, digits, eb.Linf(eps=0.1, **BOX), ["uniform-noise", "sign-noise", "fgsm"])
    assert [stage.backwards for stage in ev.stages[:3]] == [0, 0, 0]
    assert isinstance(eb.Linf(eps=0.1), Ball)


# Found in review


def test_parts_of_a_ball_that_do_not_fit_the_data_are_refused(net, digits):
    for eps in (torch.full((2 * len(digits),), 0.1), torch.full((3,), 0.1)):
        with pytest.raises(BadInput, match="`eps` of shape"):
            eb.evaluate(net, digits, eb.Linf(eps=eps, **BOX), "fgsm")


def test_per_example_radii_follow_their_examples_through_shuffle_and_resume(net, digits, tmp_path):
    generator = torch.Generator().manual_seed(4)
    eps = torch.rand(len(digits), generator=generator) * 0.1
    order = torch.randperm(len(digits), generator=generator)
    ev = eb.evaluate(net, digits, eb.Linf(eps=eps, **BOX), run_dir=tmp_path / "run", **RUN)
    again = eb.evaluate(net, digits.rows(order), eb.Linf(eps=eps[order], **BOX), run_dir=tmp_path / "run", **RUN)
    assert same(ev, again)
    with pytest.raises(BadInput, match="another `ball`"):
        eb.evaluate(net, digits.rows(order), eb.Linf(eps=eps, **BOX), run_dir=tmp_path / "run", **RUN)


def test_nonfinite_logits_are_no_correct_prediction(digits):
    zeros = Examples(digits.x, torch.zeros_like(digits.y), digits.ids, 0.0, 1.0, 10, "zeros")
    ev = eb.evaluate(lambda z: z.flatten(1)[:, :10] * torch.nan, zeros, eb.Linf(eps=0.1, **BOX), "uniform-noise")
    assert ev.clean_accuracy == 0
    assert ev.count("invalid") == len(digits)


def test_a_larger_radius_does_not_change_the_curve_at_the_smaller_ones():
    """Fine at .02, no logits at .1, fooled at .3."""

    def band(z: Tensor) -> Tensor:
        far = z.flatten(1).abs().amax(1, keepdim=True)
        logits = torch.cat([0.2 - far, far - 0.2], 1)
        return torch.where((far > 0.05) & (far < 0.15), torch.nan, logits)

    data = (torch.zeros(40, 3), torch.zeros(40, dtype=torch.long))
    short = eb.evaluate(band, data, eb.Linf(eps=1.0), "sign-noise", eps=[0.02, 0.1])
    long = eb.evaluate(band, data, eb.Linf(eps=1.0), "sign-noise", eps=[0.02, 0.1, 0.3])
    assert [accuracy for _, accuracy in short.curve] == [1, 0]
    assert [accuracy for _, accuracy in long.curve] == [1, 0, 0]


def test_a_resume_with_a_model_of_the_same_digest_but_other_logits_is_refused(net, digits, tmp_path):
    eb.evaluate(lambda z: net(z), digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "run", **RUN)
    with pytest.raises(BadInput, match="another `model`"):
        eb.evaluate(lambda z: -net(z), digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "run", **RUN)

    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by  # no buffer

        def forward(self, x: Tensor) -> Tensor:
            return self.by * x.flatten(1)[:, :10]

    eb.evaluate(Scaled(1.0), digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "other", **RUN)
    with pytest.raises(BadInput, match="another `model`"):
        eb.evaluate(Scaled(-1.0), digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "other", **RUN)


def test_a_resume_with_another_success_or_loss_is_refused(net, digits, tmp_path):
    def above(logits: Tensor, task: Task, least: float) -> Tensor:
        return (logits.argmax(1) != task.y) & (logits.softmax(1).amax(1) > least)

    arguments = {"ball": eb.Linf(eps=0.05, **BOX), "run_dir": tmp_path / "run", **RUN}
    eb.evaluate(net, digits, **arguments, success=partial(above, least=0.5))
    with pytest.raises(BadInput, match="another `success`"):
        eb.evaluate(net, digits, **arguments, success=partial(above, least=0.9))


@pytest.mark.parametrize("attack", ["uniform-noise", "pgd:steps=2"])
def test_a_model_that_changes_its_input_is_refused(digits, attack):
    def in_place(z: Tensor) -> Tensor:
        z -= 0.5
        return z.flatten(1)[:, :10]

    with pytest.raises(BadInput, match="in place"):
        eb.evaluate(in_place, digits, eb.Linf(eps=0.1, **BOX), attack)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_evaluated(digits, dtype):
    data = from_arrays(digits.x.to(dtype), digits.y, lo=0, hi=1)
    weight = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    ev = eb.evaluate(lambda z: z.flatten(1) @ weight, data, eb.Linf(eps=0.1, **BOX), ["fgsm", "pgd:steps=3"])
    assert ev.stages[1].unconfirmed == 0
    assert len(ev) == len(digits)


@pytest.mark.parametrize("ball", [eb.L1(eps=float("inf"), **BOX), eb.L2(eps=float("inf"), **BOX)])
def test_an_infinite_radius_reaches_the_box_even_where_gradients_are_zero(ball):
    x = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([1.0, -2.0, 0.0, 0.5])
    y = (x @ w > 0.2).long()
    ev = eb.evaluate(lambda z: z @ w - 0.2, from_arrays(x, y, lo=0, hi=1), ball, "pgd:steps=3")
    assert ev.count("invalid") == 0
    assert ev.robust_accuracy == 0


def test_an_overflow_counts_with_per_feature_radii_too():
    def far_is_lost(z: Tensor) -> Tensor:
        lost = z.abs().amax(1, keepdim=True) > 0.05
        return torch.where(lost, torch.nan, torch.cat([z[:, :1] * 0 + 1, z[:, :1] * 0], 1))

    data = (torch.zeros(40, 3), torch.zeros(40, dtype=torch.long))
    ev = eb.evaluate(far_is_lost, data, eb.Linf(eps=torch.full((1, 3), 0.1)), "sign-noise")
    assert ev.count("invalid") == 40
    assert ev.robust_accuracy == 0


def test_a_resume_with_another_number_of_classes_is_refused(digits, tmp_path):
    class Wide(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.classes = classes

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : self.classes]

    eb.evaluate(Wide(10), digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "run", **RUN)
    with pytest.raises(BadInput, match="another `model`"):
        eb.evaluate(Wide(12), digits, eb.Linf(eps=0.05, **BOX), run_dir=tmp_path / "run", **RUN)
