"""Every broken defence fails its own reliability check, sound networks fail none; and how protocols adapt."""

from __future__ import annotations

import math
from dataclasses import replace

import broken_defences
import nets
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.apgd import APGD
from epsball.attacks.pgd import PGD
from epsball.attacks.registry import parse
from epsball.common.errors import BadInput
from epsball.diagnosis.diagnose import probe
from epsball.diagnosis.diagnosis_record import Diagnosis
from epsball.diagnosis.indicators import INDICATORS, Indicator, indicator
from epsball.diagnosis.reaction import DRAWS, Reaction, Tempered, react
from epsball.diagnosis.trace import trace
from epsball.models.broken_defences import BROKEN_DEFENCES, broken_defence
from epsball.problem.losses import margin
from epsball.problem.objective import Objective
from epsball.problem.task import task_of

BALL = eb.Linf(eps=broken_defences.EPS, lo=0, hi=1)
N = 100


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
@pytest.mark.parametrize("name", BROKEN_DEFENCES)
def test_every_broken_defence_fails_its_check_and_sound_networks_fail_none(name: str, seed: int):
    found = eb.diagnose(broken_defences.network(name, seed), broken_defences.digits("test"), BALL, n=N, seed=seed)
    fault = BROKEN_DEFENCES[name].indicator
    assert found.correct > 0.7 * N
    if fault is None:
        assert found.failed_names == ()
    else:
        assert fault in found.failed_names


@pytest.mark.parametrize("name", BROKEN_DEFENCES)
def test_the_probes_alone_find_the_faults_that_need_no_attack(name: str):
    found = probe(broken_defences.network(name, 0), broken_defences.digits("test"), BALL)
    fault = BROKEN_DEFENCES[name].indicator
    assert found.forwards + found.backwards < 2 * 20 * 64
    if fault in {one.name for one in found.indicators}:
        assert fault in found.failed_names
    if fault is None:
        assert found.failed_names == ()


@pytest.mark.filterwarnings("ignore::epsball.problem.objective.ModelWarning")
def test_attacks_break_a_saturated_model_once_its_logits_are_divided():
    model, data = broken_defences.network("scaled", 0), broken_defences.digits("test").rows(slice(64))
    change = react(probe(model, data, BALL), BALL)
    assert change.temperature > 100
    assert "saturate" in change.text
    ((_, attack),) = change.applied([("pgd", PGD(steps=20))])
    before = PGD(steps=20)(model, data.x, data.y, BALL)
    after = attack(model, data.x, data.y, BALL)
    broken = [int((model(z).argmax(1) != data.y).sum()) for z in (data.x, before, after)]
    assert broken[1] <= broken[0] + 2  # cross-entropy itself has no gradient
    same = broken_defences.network("plain", 0)
    sound = PGD(steps=20)(same, data.x, data.y, BALL)
    assert broken[2] >= int((same(sound).argmax(1) != data.y).sum()) - 2


def test_a_reaction_adds_eot_and_square_and_changes_nothing_for_sound_models():
    data = broken_defences.digits("test")
    noisy = react(probe(broken_defences.network("noise", 0), data, BALL), BALL)
    assert (noisy.eot, noisy.search) == (DRAWS, False)
    rounded = react(probe(broken_defences.network("quantised", 0), data, BALL), BALL)
    assert rounded.search
    callable_attack = lambda model, x, y, ball: x  # noqa: E731
    applied = rounded.applied([("pgd", PGD()), ("mine", callable_attack)])
    assert [name for name, _ in applied] == ["pgd", "mine", "square:steps=5000,restarts=2"]
    assert applied[1][1] is callable_attack
    assert isinstance(applied[2][1], eb.Square)
    assert Reaction.from_json(rounded.to_json()) == rounded
    assert not react(
        probe(broken_defences.network("quantised", 0), data, BALL), eb.L0(eps=1, lo=0, hi=1)
    ).search  # Square has no L0
    for name in ("plain", "pgd", "linear"):
        assert react(probe(broken_defences.network(name, 0), data, BALL), BALL) == Reaction()


def test_only_the_cross_entropy_is_divided_by_the_temperature():
    logits = torch.tensor([[3000.0, 1000.0, -500.0]])
    task = task_of(torch.zeros(1, 1), 0, eb.Linf(eps=1.0))
    assert Tempered(margin, 1000.0)(logits, task).item() == -2
    change = Reaction(temperature=10.0)
    (_, ce), (_, dlr) = change.applied([(name, parse(name)) for name in ("apgd-ce", "apgd-dlr")])
    assert isinstance(ce.loss, Tempered)
    assert dlr == parse("apgd-dlr")


# The trace


@pytest.mark.parametrize("text", ["pgd:steps=7", "apgd:steps=12", "fgsm", "square:steps=15", "fab:steps=9"])
@pytest.mark.parametrize("squeeze", [False, True], ids=["(n, 1)", "(n,)"])
def test_a_trace_ends_where_the_attack_ends(text: str, squeeze: bool):
    x, y = nets.batch_of(12, (5,), 2)
    model = nets.linear((5,), 1, squeeze=squeeze)
    y = nets.predicted(model, x)
    attack, ball = parse(text), eb.Linf(eps=0.1, lo=0, hi=1)
    task = task_of(x, y, ball)
    with Objective(model, attack.loss, needs=attack.needs) as objective:
        found = trace(attack, objective, task)
    assert torch.equal(found.x_adv, attack(model, x, y, ball))
    assert torch.equal(found.broken, nets.predicted(model, found.x_adv) != y)
    assert bool(task.ball.contains(found.x_adv, x).all())


def test_a_trace_makes_no_model_call_for_rows_that_are_broken():
    x, y = nets.batch_of(16, (5,), 3)

    counted = nets.Counting(nets.mlp((5,), 3))
    attack, task = PGD(steps=9), task_of(x, y, eb.Linf(eps=0.3))
    with Objective(counted, attack.loss) as objective:
        found = trace(attack, objective, task)
    assert counted.backwards == int((~found.loss.isnan()).sum())
    assert bool(found.broken.any())


def test_backslide_is_0_for_an_ascent_and_half_for_an_oscillation():
    x = torch.zeros(2, 1)
    with Objective(nets.weighted(torch.ones(1)).float(), margin) as objective:
        found = trace(PGD(steps=2), objective, task_of(x, torch.tensor([0, 0]), eb.Linf(eps=0.1)))
    ascent, oscillation = torch.arange(9.0), torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1, 0])
    both = replace(found, loss=torch.stack([ascent, oscillation], 1))
    assert both.backslide.tolist() == [0, 0.5]


# Every ball, shape and dtype


@pytest.mark.parametrize("norm", [eb.Linf, eb.L2, eb.L1, eb.L0], ids=lambda norm: norm.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sound_network_passes_its_checks_in_every_norm(norm: type, dtype: torch.dtype):
    model = nets.mlp((2, 3, 3), 4).to(dtype)
    x = nets.batch(40, (2, 3, 3)).to(dtype)
    eps = {"linf": 0.05, "l2": 0.2, "l1": 0.5, "l0": 2}[norm.name]
    found = eb.diagnose(model, (x, model(x).argmax(1)), norm(eps=eps, lo=0, hi=1), ("pgd", "apgd"))
    assert {"zero-gradients", "shattered-gradients", "vanishing-gradients", "saturated-logits"}.isdisjoint(
        found.failed_names
    )
    assert {"stochastic-forward", "softmax-outputs", "loss-not-monotone"}.isdisjoint(found.failed_names)


@pytest.mark.parametrize(
    "ball",
    [
        eb.Linf(eps=math.inf, lo=0, hi=1),
        eb.L2(eps=0.3),
        eb.Linf(eps=torch.linspace(0.01, 0.2, 20, dtype=torch.float64), lo=0, hi=1),
        eb.Linf(eps=0.1, mask=torch.tensor([[True, True, False, True, True]])),
    ],
    ids=["infinite", "no box", "per example", "mask"],
)
def test_any_ball_can_be_diagnosed_even_with_one_logit(ball: eb.Linf):
    model = nets.linear((5,), 1)
    x = nets.batch(20, (5,))
    found = eb.diagnose(model, (x, nets.predicted(model, x)), ball)
    assert found["shattered-gradients"].value == 0
    assert (found["unbounded-fails"].value is None) == (ball.mask is not None)
    assert found == Diagnosis.from_json(found.to_json())


def test_a_final_sigmoid_is_distinguished_from_one_logit():
    model = nets.linear((5,), 1, squeeze=True)
    x = nets.batch(20, (5,))
    y = nets.predicted(model, x)
    ball = eb.Linf(eps=0.05)
    assert "softmax-outputs" not in eb.diagnose(model, (x, y), ball).failed_names
    found = eb.diagnose(lambda z: model(z).sigmoid(), (x, y), ball)
    assert found.failed_names == ("softmax-outputs",)
    assert found.mitigated == ("softmax-outputs",)  # the attacks see the logit


def test_a_model_without_gradients_is_diagnosed_and_one_of_labels_refused():
    model = nets.mlp((4,), 3)
    x = nets.batch(30, (4,))
    y = model(x).argmax(1)

    def hidden(z: Tensor) -> Tensor:
        return model(z.detach()).detach()

    found = eb.diagnose(hidden, (x, y), eb.Linf(eps=0.2, lo=0, hi=1))
    assert "zero-gradients" in found.failed_names
    assert "black-box-stronger" in found.failed_names
    with pytest.raises(BadInput, match="must return logits"):
        eb.diagnose(lambda z: model(z).argmax(1), (x, y), eb.Linf(eps=0.1))


def test_no_check_fails_where_nothing_is_classified_correctly():
    model = nets.mlp((4,), 3)
    x = nets.batch(8, (4,))
    found = eb.diagnose(model, (x, (model(x).argmax(1) + 1) % 3), eb.Linf(eps=0.1))
    assert (found.correct, found.failed_names) == (0, ())
    assert "none of 8 sampled examples is classified correctly" in found.sentence


# The record, and side effects


def test_the_model_and_generators_are_unchanged_and_a_seed_repeats_the_result():
    model = broken_defences.network("noise", 0).train()
    first = next(model.parameters())
    first.requires_grad_(False)
    try:
        before = torch.get_rng_state()
        found = [
            eb.diagnose(model, broken_defences.digits("test"), BALL, "pgd:steps=5", n=20, seed=3) for _ in range(2)
        ]
        assert torch.equal(torch.get_rng_state(), before)
        assert all(part.training for part in model.modules())
        assert not first.requires_grad
        assert all(part.grad is None for part in model.parameters())
        assert found[0] == found[1]
    finally:
        first.requires_grad_(True)
        model.eval()


def test_a_stored_diagnosis_loads_equal_and_a_damaged_one_is_refused(tmp_path):
    found = eb.diagnose(broken_defences.network("quantised", 0), broken_defences.digits("test"), BALL, "fgsm", n=30)
    assert Diagnosis.kept(tmp_path) is None
    found.keep(tmp_path)
    assert Diagnosis.kept(tmp_path) == found
    assert "zero-gradients" in found.text
    assert "BPDA" in found.text
    (tmp_path / "diagnosis.json").write_text("{}")
    with pytest.raises(BadInput, match="damaged"):
        Diagnosis.kept(tmp_path)


def test_every_indicator_has_a_source_and_a_remedy():
    for name, known in INDICATORS.items():
        one = indicator(name, 2.0)
        assert one.failed
        assert name in one.text
        assert known.remedy in one.text
        assert any(char.isdigit() for char in known.source)
    assert not indicator("zero-gradients", None).failed
    assert isinstance(indicator("zero-gradients", 0.05), Indicator)
    assert not indicator("zero-gradients", 0.05).failed


@pytest.mark.filterwarnings("ignore::epsball.problem.objective.ModelWarning")
def test_a_diagnosis_uses_the_black_box_and_binarization_results_of_an_evaluation():
    model, data = broken_defences.network("step", 0), broken_defences.digits("test").rows(slice(48))
    ev = eb.evaluate(model, data, BALL, ("pgd:steps=5", "square:steps=150"), binarization_test=6)
    found = eb.diagnose(model, data, BALL, ("pgd:steps=5", "square:steps=150"), evaluation=ev)
    assert "black-box-stronger" in found.failed_names
    assert ev.binarization_test is not None
    if ev.binarization_test.too_weak:
        assert "binarization-test-failed" in found.failed_names


@pytest.mark.filterwarnings("ignore::epsball.problem.objective.ModelWarning")
def test_attacks_are_traced_under_their_names_and_callables_are_not():
    model, data = broken_defences.network("linear", 0), broken_defences.digits("test")
    found = eb.diagnose(model, data, BALL, (APGD(steps=5), lambda m, x, y, b: x, "square:steps=9"), n=20)
    assert found.attacks == ("apgd",)
    with pytest.raises(BadInput, match="attack"):
        eb.diagnose(model, data, BALL, "pdg")


# The networks


@pytest.mark.parametrize("name", BROKEN_DEFENCES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (7,)], ids=str)
def test_broken_defences_take_any_shape_and_are_built_by_name(name: str, shape: tuple[int, ...]):
    if name == "jpeg" and len(shape) != 3:
        with pytest.raises(BadInput, match="jpeg"):
            broken_defence(shape, 4, name)
        return
    from epsball.models.opening import load

    model = load(f"broken-defence:{name}", shape=shape, classes=4).eval()
    logits = model(torch.rand(3, *shape))
    assert logits.shape == (3, 5 if name == "detector" else 4)
    assert isinstance(model, nn.Module)


def test_an_unknown_fault_is_refused_with_the_most_similar_name():
    with pytest.raises(BadInput, match="did you mean 'kwinners'"):
        broken_defence((4,), 3, "kwiners")


def test_block_rounding_rounds_to_its_levels():
    from epsball.models.broken_defences import QUALITY, BlockRounding

    flat = torch.full((1, 1, 8, 8), 2 * QUALITY / 8)  # the mean's coefficient is 8 times it
    assert torch.allclose(BlockRounding()(flat), flat, atol=1e-6)
    noisy = flat + 1e-3 * torch.randn(1, 1, 8, 8, generator=nets.rng())
    assert torch.allclose(BlockRounding()(noisy), flat, atol=1e-6)


def test_attacks_with_other_losses_are_unchanged():
    assert Reaction(temperature=5.0).applied([("pgd", PGD(loss=margin))]) == [("pgd", PGD(loss=margin))]
    assert Reaction().applied([("pgd", PGD())]) == [("pgd", PGD())]


def test_a_class_without_examples_in_a_small_sample_is_no_rejection_class():
    model = nets.linear((5,), 3)
    x = nets.batch(40, (5,))
    y = model(x).argmax(1)
    some = y < 2  # most of what is attacked ends in class 2
    found = eb.diagnose(model, (x[some], y[some]), eb.Linf(eps=0.2, lo=0, hi=1))
    assert "rejection-class" not in found.failed_names
