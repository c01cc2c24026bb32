"""From bounds to proofs: what is verified is rechecked, and a forged certificate proves nothing false."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball.certify.certificate import Certificate
from epsball.certify.certifier import METHODS, Certifier
from epsball.problem.task import Task, task_of

EPS = 0.05


def digits(n: int = 64) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:n] / 16, dtype=torch.float32), torch.tensor(labels[:n])


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = digits(512)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval(), x[:96], y[:96]


def task(x: Tensor, y: Tensor, eps: float) -> Task:
    return task_of(x, y, eb.Linf(eps=eps, lo=0, hi=1))


def test_each_method_proves_what_the_cheaper_ones_prove_and_no_attack_breaks_it(trained) -> None:
    model, x, y = trained
    certifier, problem = Certifier(model, x), task(x, y, EPS)
    counts = []
    for last in range(1, len(METHODS) + 1):
        proofs = certifier.bounds(problem, METHODS[:last])
        counts.append(int(proofs.verified.sum()))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    x_adv = eb.PGD(steps=50, restarts=4)(model, x, y, eb.Linf(eps=EPS, lo=0, hi=1))
    broken = (model(x_adv).argmax(1) != y).numpy()
    assert broken.any()
    assert not (broken & proofs.verified).any()
    assert set(proofs.method[proofs.verified]) >= {"crown", "alpha-crown"}
    assert all(proofs.reason[~proofs.verified])


def test_stored_certificates_prove_the_same_margins_again(trained) -> None:
    model, x, y = trained
    certifier, problem = Certifier(model, x), task(x, y, EPS)
    proofs = certifier.bounds(problem)
    rows = np.flatnonzero(proofs.verified)
    again = certifier.recheck(problem.rows(torch.from_numpy(rows)), [proofs.certificates[row] for row in rows])
    assert np.allclose(again.margin.numpy(), proofs.margin[rows], rtol=0, atol=1e-9)
    assert (again.margin.numpy() > 0).all()


def test_slopes_that_were_tampered_with_prove_less_and_never_more_than_is_true(trained) -> None:
    model, x, y = trained
    certifier, problem = Certifier(model, x), task(x, y, EPS)
    proofs = certifier.bounds(problem)
    row = int(np.flatnonzero(proofs.method == "alpha-crown")[0])
    certificate = Certificate.from_bytes(proofs.certificates[row])
    generator = np.random.default_rng(0)
    one = problem.rows(torch.tensor([row]))
    worst_logits = model(eb.PGD(steps=50, restarts=4)(model, one.x, one.y, one.ball)).detach().sort(1).values
    worst = float(worst_logits[0, -1] - worst_logits[0, -2])
    for _ in range(5):
        arrays = {
            name: generator.uniform(-5, 5, array.shape).astype(np.float16) if array.dtype.kind == "f" else array
            for name, array in certificate.arrays.items()
        }
        found = certifier.recheck(one, [Certificate(certificate.method, arrays).to_bytes()])
        assert float(found.margin[0]) <= worst


@pytest.mark.parametrize(
    "stored", [b"", b"{}", b"\xff\xfe", b'{"method":"crown","arrays":[["final/1/2","<f2",[1e9]]]}\n']
)
def test_bytes_that_are_no_certificate_are_refused(trained, stored: bytes) -> None:
    model, x, y = trained
    with pytest.raises(eb.BadInput, match="certificate"):
        Certifier(model, x).recheck(task(x[:1], y[:1], EPS), [stored])


def test_a_certificate_of_another_network_proves_nothing(trained) -> None:
    model, x, y = trained
    proofs = Certifier(model, x).bounds(task(x, y, EPS))
    other = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
    rows = np.flatnonzero(proofs.verified)
    found = Certifier(other, x).recheck(task(x[rows], y[rows], EPS), [proofs.certificates[row] for row in rows])
    wrong = (other(x[rows]).argmax(1) != y[rows]).numpy()
    assert wrong.any()
    assert (found.margin.numpy()[wrong] <= 0).all()


def test_one_logit_and_targets_are_certified_for_what_they_ask(trained) -> None:
    _, x, _ = trained
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    y = (model(x)[:, 0] > 0).long()
    proofs = Certifier(model, x).bounds(task(x, y, 0.003))
    assert proofs.verified.mean() > 0.5
    several = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    y = several(x).argmax(1)
    away = Certifier(several, x).bounds(task(x, y, 0.1))
    towards = task_of(x, y, eb.Linf(eps=0.1, lo=0, hi=1), target=(y + 1) % 3)
    aimed = Certifier(several, x).bounds(towards)
    assert (aimed.verified | ~away.verified).all()
    assert aimed.verified.sum() > away.verified.sum()


def test_the_public_call_names_what_is_wrong_and_gives_a_record_that_comes_back_equal(trained) -> None:
    model, x, y = trained
    found = eb.certify(model, (x, y), "linf:0.02")
    assert eb.Certification.from_json(found.to_json()) == found
    assert 0 < found.certified_accuracy <= 1
    with pytest.raises(eb.BadInput, match=r"`method` must be one of .* 'crwon'; did you mean 'crown'"):
        eb.certify(model, (x, y), "linf:0.02", method="crwon")
    with pytest.raises(eb.BadInput, match="`budget`"):
        eb.certify(model, (x, y), "linf:0.02", budget=0)
    with pytest.raises(eb.BadInput, match="black box"):
        eb.certify(eb.BlackBox(lambda z: y[: len(z)]), (x, y), "linf:0.02")


def test_slopes_forged_for_a_smooth_function_are_not_used() -> None:
    """Its intercept belongs to its own slope: another slope with that intercept may be above the function."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    for layer, weight, bias in ((0, 1.0, -2.0), (2, 1.0, -0.1), (4, 1.0, -0.01)):
        model[layer].weight.data.fill_(weight)
        model[layer].bias.data.fill_(bias)
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem, certifier = task_of(x, torch.tensor([1]), eb.Linf(eps=2.0)), Certifier(model, x)
    worst = float(model(x - 2).detach())
    assert worst < 0  # so nothing proves class 1
    arrays = {"tight/3/neuron": np.zeros(1, dtype=np.int32)}
    for slope in (0.0, 1.0):
        arrays["tight/3/2"] = np.full((2, 1, 1), slope, dtype=np.float16)
        found = certifier.recheck(problem, [Certificate("alpha-crown", arrays).to_bytes()])
        assert float(found.margin[0]) <= worst


@pytest.mark.parametrize("name", ["final/x/2", "final/1", "final/1/2/3", "final/99/99", "tight/2/neuron", "tight/2/x"])
def test_arrays_with_other_names_or_shapes_are_refused_or_not_used(trained, name: str) -> None:
    model, x, y = trained
    forged = Certificate("alpha-crown", {name: np.zeros((), dtype=np.int32)}).to_bytes()
    certifier, problem = Certifier(model, x), task(x[:1], y[:1], 10.0)
    with contextlib.suppress(eb.BadInput):
        assert not float(certifier.recheck(problem, [forged]).margin[0]) > 0
