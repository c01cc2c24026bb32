"""The experiments with maxout networks: figures against a computation by hand and the paper's, and noise training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import batch_of
from PIL import Image
from shared_data import shared_data
from torch import Tensor, nn
from torch.nn import functional as F

import epsball as eb
import epsball.reproduce.nets as networks
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.models.registry import build
from epsball.reproduce.budget import BATCH, Budget
from epsball.reproduce.controls import RECIPES, SIGN, UNIFORM, Controls, NoiseTraining, controls
from epsball.reproduce.goodfellow2015 import EXPERIMENTS
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, Nets
from epsball.reproduce.outcome import Outcome, mean_outcome, outcome_of
from epsball.reproduce.plots.draw import draw
from epsball.reproduce.sources import Source, mnist
from epsball.reproduce.training import Training, papers_and_ours, training
from epsball.reproduce.transfer import CLEAN, Transfer, transfer
from epsball.training.training_objective import TrainingStep

EPS = 0.1


@pytest.fixture(scope="module")
def digits() -> Source:
    return mnist("digits")


@pytest.fixture(scope="module")
def nets(digits: Source) -> Nets:
    """Small networks, two seeds, at a radius that the 64 pixels of a digit can bear."""
    return Nets(digits, Budget(units=24, dropout=0, epochs=40, seeds=2), EPS)


@pytest.fixture(scope="module")
def trained(nets: Nets) -> Training:
    return training(nets)


@pytest.fixture(scope="module")
def moved(nets: Nets) -> Transfer:
    return transfer(nets)


@pytest.fixture(scope="module")
def noisy(nets: Nets) -> Controls:
    return controls(nets)


def by_hand(made_on: nn.Module, evaluator: nn.Module, source: Source, eps: float) -> Outcome:
    """The evaluator's errors on x + eps sign(grad J) of another network, by torch alone."""
    x, y = source.test.x.clone().requires_grad_(), source.test.y
    (grad,) = torch.autograd.grad(F.cross_entropy(made_on(x), y, reduction="sum"), x)
    with torch.no_grad():
        confidences, predicted = evaluator(x + eps * grad.sign()).double().softmax(1).max(1)
    wrong = predicted != y
    return Outcome(
        error=wrong.double().mean().item(), confidence=confidences[wrong].mean().item() if wrong.any() else None
    )


def modules(nets: Nets, recipes: dict[str, Any]) -> dict[tuple[str, int], nn.Module]:
    return {(net.name, net.seed): net.module for group in nets.trained(recipes) for net in group}


def same(one: Outcome, other: Outcome) -> bool:
    return one.error == other.error and one.confidence == pytest.approx(other.confidence, rel=1e-6)


def test_errors_are_those_of_fgsm_computed_by_hand(nets: Nets, trained: Training, noisy: Controls):
    made = modules(nets, RECIPES)
    assert len(trained.networks) == 2 * len(PAIR)
    assert len(noisy.networks) == 2 * len(RECIPES)
    for net in (*trained.networks, *noisy.networks):
        module = made[net.name, net.seed]
        assert not module.training
        assert same(net.clean, by_hand(module, module, nets.source, 0.0))
        assert same(net.fgsm, by_hand(module, module, nets.source, EPS))


def test_transferred_examples_are_made_on_one_network_and_classified_by_the_other(nets: Nets, moved: Transfer):
    made, cells = modules(nets, PAIR), {(cell.maker, cell.evaluator, cell.seed): cell.outcome for cell in moved.cells}
    assert len(cells) == len(moved.cells) == 2 * 3 * 2
    for (maker, evaluator, seed), found in cells.items():
        on = evaluator if maker == CLEAN else maker
        assert same(found, by_hand(made[on, seed], made[evaluator, seed], nets.source, 0.0 if maker == CLEAN else EPS))


def test_adversarial_examples_are_not_clipped_to_the_box_of_the_pixels(nets: Nets):
    for pair in nets.trained(PAIR):
        for net in pair:
            x_adv, x = nets.fgsm(net), nets.source.test.x
            assert x_adv.min() < 0
            assert x_adv.max() > 1
            assert ((x_adv - x).abs().sub(EPS).abs() < 1e-6).float().mean() > 0.99


def test_adversarial_training_lowers_fgsm_error_by_more_than_noise_training(trained: Training, noisy: Controls):
    plain, adversarial = ([net.fgsm.error for net in trained.of(name)] for name in (PLAIN, ADVERSARIAL))
    assert max(adversarial) < 0.6 * min(plain)
    for name in (SIGN, UNIFORM):
        assert min(net.fgsm.error for net in noisy.of(name)) > max(adversarial) + 0.1
    clean = {name: np.mean([net.clean.error for net in trained.of(name)]) for name in (PLAIN, ADVERSARIAL)}
    assert clean[ADVERSARIAL] <= clean[PLAIN] + 0.01


def test_the_same_network_has_the_same_figures_in_all_experiments(trained: Training, moved: Transfer, noisy: Controls):
    controlled = {(net.name, net.seed): net for net in noisy.networks}
    transferred = {(cell.maker, cell.evaluator, cell.seed): cell.outcome for cell in moved.cells}
    for net in trained.networks:
        assert controlled[net.name, net.seed].fgsm == net.fgsm
        assert controlled[net.name, net.seed].seconds == net.seconds
        assert transferred[net.name, net.name, net.seed] == net.fgsm
        assert transferred[CLEAN, net.name, net.seed] == net.clean


def test_each_network_is_trained_once_and_all_with_the_same_budget(digits: Source, monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, Any]] = []
    starts: list[Tensor] = []
    real = networks.fit

    def counted(model: nn.Module, data: Any, ball: Any, **options: Any) -> Any:
        calls.append(options | {"ball": repr(ball)})
        starts.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        return real(model, data, ball, **options)

    monkeypatch.setattr(networks, "fit", counted)
    nets = Nets(digits, Budget(units=4, epochs=1, seeds=2))
    reports: list[tuple[int, int, str]] = []
    for name in ("training", "controls", "transfer"):
        EXPERIMENTS[name](nets, on_progress=lambda *parts: reports.append(parts))
    assert len(calls) == 2 * len(RECIPES)
    assert {repr(call["objective"]) for call in calls} == {repr(one.objective) for one in RECIPES.values()}
    for seed in (0, 1):
        of_seed = [place for place, call in enumerate(calls) if call["seed"] == seed]
        assert len(of_seed) == len(RECIPES)
        alike = [
            {key: value for key, value in calls[place].items() if key not in ("objective", "progress")}
            for place in of_seed
        ]
        assert all(one == alike[0] for one in alike)
        assert all(torch.equal(starts[place], starts[of_seed[0]]) for place in of_seed)
    assert not torch.equal(starts[0], starts[-1])
    steps = math.ceil(len(digits.train) / BATCH)
    assert reports[0] == (1, 4 * steps, "plain, seed 0")
    assert [parts[0] for parts in reports[: 4 * steps]] == list(range(1, 4 * steps + 1))
    assert reports[-1][:2] == (4 * steps, 4 * steps)  # controls, the second: its four networks of noise


def test_training_neither_changes_torchs_generator_nor_depends_on_it(digits: Source):
    budget = Budget(units=4, epochs=1, dropout=50)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = training(Nets(digits, budget))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    other = training(Nets(digits, budget))
    without = [[replace(net, seconds=0.0) for net in found.networks] for found in (one, other)]
    assert without[0] == without[1]
    assert one.filters == other.filters


@pytest.mark.parametrize("kind", ["sign", "uniform"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_noise_training_is_plain_training_on_noisy_inputs(kind: str, shape: tuple[int, ...]):
    x, y = batch_of(400, shape, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)).double()
    ball, ids = eb.Linf(eps=0.3).bind(x), torch.arange(400)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    logged = NoiseTraining(kind=kind)(model, x, y, ball, TrainingStep(Noise(7, ids, torch.zeros_like(ids))))
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    (noisy,) = seen
    delta = noisy - x
    if kind == "sign":
        assert torch.allclose(delta.abs(), torch.full_like(delta, 0.3), atol=1e-12)
    else:
        assert delta.abs().max() <= 0.3
        assert delta.abs().mean().item() == pytest.approx(0.15, abs=0.01)
    assert delta.mean().item() == pytest.approx(0, abs=0.03)
    assert len(delta.flatten(1).sign().unique(dim=0)) > 20  # every row has its own
    model.zero_grad()
    loss = F.cross_entropy(model(noisy), y)
    loss.backward()
    assert float(logged["loss"]) == pytest.approx(loss.item(), rel=1e-12)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=0, atol=1e-12)
    NoiseTraining(kind=kind)(model, x, y, ball, TrainingStep(Noise(7, ids, torch.ones_like(ids))))
    assert not torch.equal(seen[-1], noisy)  # the next epoch draws anew


def test_an_unknown_kind_of_noise_and_a_missing_ball_are_named():
    with pytest.raises(BadInput, match="did you mean 'uniform'"):
        NoiseTraining(kind="unifrom")
    x, y = batch_of(2, (3,), 2)
    step = TrainingStep(Noise(0, torch.arange(2), torch.zeros(2, dtype=torch.long)))
    with pytest.raises(BadInput, match="`ball` must be given"):
        NoiseTraining(kind="sign")(nn.Linear(3, 2).double(), x, y, None, step)


def test_the_papers_figures_are_beside_ours(digits: Source, trained: Training, noisy: Controls, moved: Transfer):
    nets = Nets(digits, Budget(units=4, epochs=1))
    published = {
        name: {line.label: (line.source, line.paper) for line in EXPERIMENTS[name](nets).lines if line.paper}
        for name in ("training", "controls", "transfer")
    }
    # arXiv:1412.6572, section 6.
    assert published["training"] == {
        "plain, 4 units": ("the paper, 240 units", (0.94, 89.4, 97.6)),
        "plain": ("the paper, 1600 units", (1.14, None, None)),
        "adversarially trained, 4 units": ("the paper, 240 units", (0.84, 17.9, 81.4)),
        "adversarially trained": ("the paper, 1600 units", (0.782, None, None)),
    }
    assert {row: paper for row, (_, paper) in published["controls"].items()} == {
        PLAIN: (None, 89.4, 97.6),
        SIGN: (None, 86.2, 97.3),
        UNIFORM: (None, 90.4, 97.8),
        ADVERSARIAL: (None, 17.9, 81.4),
    }
    assert {row: paper for row, (_, paper) in published["transfer"].items()} == {
        "made on the plain one": (89.4, 19.6),
        "made on the trained one": (40.9, 17.9),
    }
    for found in (noisy, moved):
        assert not any(line.paper for line in found.lines)  # at another radius the paper has none
    assert [line.paper for line in trained.lines if line.paper] == [(0.94, None, None), (1.14, None, None)]
    by_name = {name: list(trained.of(name)) for name in PAIR}
    wide = papers_and_ours(by_name, trained.config | {"units": 1600, "eps": 0.25})
    assert [(line.source, line.ours is None) for line in wide] == [
        ("the paper, 1600 units", False),
        ("the paper, 240 units", True),
    ] * 2
    for found in (trained, noisy, moved):
        assert all(len(line.ours or line.paper) == len(found.columns) for line in found.lines)
        assert len(found.title) <= 80


def test_a_line_is_the_mean_over_the_seeds(trained: Training, noisy: Controls, moved: Transfer):
    ours = [line.ours for line in trained.lines if line.ours]
    for figures, name in zip(ours, PAIR, strict=True):
        nets = trained.of(name)
        assert [net.seed for net in nets] == [0, 1]
        assert figures[0] == pytest.approx(50 * sum(net.clean.error for net in nets))
        assert figures[1] == pytest.approx(50 * sum(net.fgsm.error for net in nets))
        assert figures[2] == pytest.approx(50 * sum(net.fgsm.confidence or 0 for net in nets))
    assert noisy.lines[0].ours == ours[0]
    assert noisy.lines[-1].ours == ours[1]
    on_clean, on_plain, on_trained = (line.ours for line in moved.lines)
    assert on_clean == (ours[0][0], ours[1][0])
    assert (on_plain[0], on_trained[1]) == (ours[0][1], ours[1][1])


def test_a_network_without_mistakes_has_no_confidence_in_them():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    shares = logits.double().softmax(1)
    right = outcome_of(shares, torch.tensor([0, 1]))
    assert right == Outcome(error=0.0, confidence=None)
    wrong = outcome_of(shares, torch.tensor([1, 1]))
    assert wrong.error == 0.5
    assert wrong.confidence == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-12)
    assert mean_outcome([right, wrong]) == Outcome(error=0.25, confidence=wrong.confidence)
    assert mean_outcome([right, right]).confidence is None


def test_notes_state_the_budget_the_data_and_the_error_under_pgd(trained: Training, noisy: Controls, moved: Transfer):
    for found in (trained, noisy, moved):
        notes = " ".join(found.notes)
        assert "digits stand in for MNIST" in notes
        assert "2 x 24 maxout units of 5 pieces, no dropout, 40 epochs of 1,437 images" in notes
        assert "not clipped" in notes
        assert "over all 360 test images" in notes
        assert "mean over 2 seeds" in notes
    (pgd,) = [note for note in trained.notes if "PGD" in note]
    for net in trained.networks:
        assert net.pgd.error > net.fgsm.error - 0.02
    assert f"{50 * sum(net.pgd.error for net in trained.of(ADVERSARIAL)):.1f} %" in pgd


def test_records_survive_json(trained: Training, noisy: Controls, moved: Transfer):
    assert Training.from_json(trained.to_json()) == trained
    assert Controls.from_json(noisy.to_json()) == noisy
    assert Transfer.from_json(moved.to_json()) == moved
    for found in (trained, noisy, moved):
        assert found.config["versions"]["epsball"] == eb.__version__
        assert found.config["seeds"] == [0, 1]
        assert len(json.dumps(found.summary(), allow_nan=False)) < 20_000  # no pixels, no weights


def test_the_filters_are_those_of_the_network(nets: Nets, trained: Training):
    made = modules(nets, PAIR)
    for name in PAIR:
        first = next(part for part in made[name, 0].modules() if isinstance(part, nn.Linear))
        assert len(trained.filters[name]) == 24
        assert np.abs(np.array(trained.filters[name]) - first.weight[:24].numpy()).max() < 1e-4


def test_the_shown_examples_are_those_of_the_test_split(nets: Nets, moved: Transfer):
    test, made = nets.source.test, modules(nets, PAIR)
    assert [one.label for one in moved.shown] == [0, 1, 2, 3, 4, 5]
    for one in moved.shown:
        (row,) = (test.ids == one.id).nonzero()[0].tolist()
        assert int(test.y[row]) == one.label
        assert [picture.maker for picture in one.points] == [CLEAN, PLAIN, ADVERSARIAL]
        assert np.allclose(one.points[0].x, test.x[row].flatten().numpy(), atol=1e-4)
        for picture in one.points:
            x = torch.tensor(picture.x).reshape(1, *test.shape)
            for name in PAIR:
                share = made[name, 0](x).softmax(1)[0]
                assert picture.confidence[name] == pytest.approx(float(share[picture.predicted[name]]), abs=2e-3)


@pytest.mark.parametrize("name", ["training", "controls", "transfer"])
def test_the_figure_is_a_picture(tmp_path: Path, name: str, trained: Training, noisy: Controls, moved: Transfer):
    draw({"training": trained, "controls": noisy, "transfer": moved}[name], tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "`units` must be >= 1"),
        ({"epochs": 0}, "`epochs` must be >= 1"),
        ({"seeds": 0}, "`seeds` must be >= 1"),
        ({"dropout": 100}, "`dropout` must be a percentage"),
        ({"dropout": -1}, "`dropout` must be a percentage"),
    ],
)
def test_a_bad_budget_is_named(options: dict[str, int], message: str):
    with pytest.raises(BadInput, match=message):
        Budget(**options)


def test_a_negative_or_infinite_radius_is_refused(digits: Source):
    for eps in (-0.1, math.inf):
        with pytest.raises(BadInput, match="`eps` must be >= 0 and finite"):
            Nets(digits, eps=eps)


@pytest.mark.nightly
def test_adversarial_training_on_a_slice_of_mnist_weakens_fgsm():
    source = mnist(shared_data("mnist"))
    few = replace(source, train=source.train.rows(slice(0, 6000)), test=source.test.rows(slice(0, 2000)))
    found = training(Nets(few, Budget(units=48, dropout=0, epochs=8)))
    (plain,), (robust,) = found.of(PLAIN), found.of(ADVERSARIAL)
    assert plain.fgsm.error > 0.9
    assert robust.fgsm.error < 0.5
    assert not found.config["stands_in"]
    assert not any("stand in" in note for note in found.notes)


def test_the_budgets_network_is_that_of_the_registry(nets: Nets):
    (pair, _) = nets.trained(PAIR)
    again = build("maxout:units=24,pieces=5,dropout=0", nets.source.train.shape, 10)
    assert [p.shape for p in pair[0].module.parameters()] == [p.shape for p in again.parameters()]
    assert not any(isinstance(part, nn.Dropout) for part in again.modules())
