"""Is every fault found under its own name, and none where there is none? And what is done about it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

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
from epsball.diagnosis.reaction import DRAWS, Reaction, Tempered, react
from epsball.diagnosis.record import INDICATORS, Diagnosis, Indicator, indicator
from epsball.diagnosis.trace import trace
from epsball.diagnosis.whole import probe
from epsball.models.broken_defences import BROKEN_DEFENCES, broken_defence
from epsball.problem.losses import margin
from epsball.problem.objective import Objective
from epsball.problem.task import task_of

BALL = eb.Linf(eps=broken_defences.EPS, lo=0, hi=1)
N = 100


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", BROKEN_DEFENCES)
def test_every_fault_is_named_and_sound_networks_raise_no_alarm(name: str, seed: int):
    found = eb.diagnose(broken_defences.network(name, seed), broken_defences.digits("test"), BALL, n=N, seed=seed)
    fault = BROKEN_DEFENCES[name].indicator
    assert found.correct > 0.7 * N
    if fault is None:
        assert found.names == ()
    else:
        assert fault in found.names


@pytest.mark.parametrize("name", BROKEN_DEFENCES)
def test_a_dozen_passes_name_the_faults_that_need_no_attack(name: str):
    found = probe(broken_defences.network(name, 0), broken_defences.digits("test"), BALL)
    fault = BROKEN_DEFENCES[name].indicator
    assert found.forwards + found.backwards < 2 * 20 * 64
    if fault in {one.name for one in found.indicators}:
        assert fault in found.raised
    if fault is None:
        assert found.raised == ()


@pytest.mark.filterwarnings("ignore::epsball.problem.objective.ModelWarning")
def test_a_saturated_model_falls_once_its_logits_are_tempered():
    model, data = broken_defences.network("scaled", 0), broken_defences.digits("test").rows(slice(64))
    change = react(probe(model, data, BALL), BALL)
    assert change.temperature > 100
    assert "saturate" in change.text
    ((_, attack),) = change.applied([("pgd", PGD(steps=20))])
    before = PGD(steps=20)(model, data.x, data.y, BALL)
    after = attack(model, data.x, data.y, BALL)
    fell = [int((model(z).argmax(1) != data.y).sum()) for z in (data.x, before, after)]
    assert fell[1] <= fell[0] + 2  # cross-entropy itself has no slope
    same = broken_defences.network("plain", 0)
    sound = PGD(steps=20)(same, data.x, data.y, BALL)
    assert fell[2] >= int((same(sound).argmax(1) != data.y).sum()) - 2


def test_a_reaction_names_eot_and_search_and_leaves_sound_models_alone():
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
    assert Reaction.from_dict(json.loads(json.dumps(asdict(rounded)))) == rounded
    assert not react(
        probe(broken_defences.network("quantised", 0), data, BALL), eb.L0(eps=1, lo=0, hi=1)
    ).search  # Square has no L0
    for name in ("plain", "pgd", "linear"):
        assert react(probe(broken_defences.network(name, 0), data, BALL), BALL) == Reaction()


def test_tempered_keeps_margins_and_other_losses_are_left_as_they_are():
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
def test_a_trace_ends_where_the_attack_itself_ends(text: str, squeeze: bool):
    x, y = nets.batch_of(12, (5,), 2)
    model = nets.linear((5,), 1, squeeze=squeeze)
    y = nets.predicted(model, x)
    attack, ball = parse(text), eb.Linf(eps=0.1, lo=0, hi=1)
    task = task_of(x, y, ball)
    with Objective(model, attack.loss, needs=attack.needs) as objective:
        found = trace(attack, objective, task)
    assert torch.equal(found.x_adv, attack(model, x, y, ball))
    assert torch.equal(found.fell, nets.predicted(model, found.x_adv) != y)
    assert bool(task.ball.contains(found.x_adv, x).all())


def test_a_trace_costs_no_pass_for_rows_that_have_fallen():
    x, y = nets.batch_of(16, (5,), 3)

    counted = nets.Counting(nets.mlp((5,), 3))
    attack, task = PGD(steps=9), task_of(x, y, eb.Linf(eps=0.3))
    with Objective(counted, attack.loss) as objective:
        found = trace(attack, objective, task)
    assert counted.backwards == int((~found.loss.isnan()).sum())
    assert bool(found.fell.any())
    assert torch.equal(found.fooled.any(0) | found.fell, found.fell)


def test_backslide_is_nothing_for_a_climb_and_half_for_a_saw():
    x = torch.zeros(2, 1)
    with Objective(nets.weighted(torch.ones(1)).float(), margin) as objective:
        found = trace(PGD(steps=2), objective, task_of(x, torch.tensor([0, 0]), eb.Linf(eps=0.1)))
    climb, saw = torch.arange(9.0), torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1, 0])
    both = replace(found, loss=torch.stack([climb, saw], 1))
    assert both.backslide.tolist() == [0, 0.5]


# Every ball, shape and dtype


@pytest.mark.parametrize("norm", [eb.Linf, eb.L2, eb.L1, eb.L0], ids=lambda norm: norm.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sound_network_raises_no_alarm_in_any_norm(norm: type, dtype: torch.dtype):
    model = nets.mlp((2, 3, 3), 4).to(dtype)
    x = nets.batch(40, (2, 3, 3)).to(dtype)
    eps = {"linf": 0.05, "l2": 0.2, "l1": 0.5, "l0": 2}[norm.name]
    found = eb.diagnose(model, (x, model(x).argmax(1)), norm(eps=eps, lo=0, hi=1), ("pgd", "apgd"))
    assert {"zero-gradients", "shattered-gradients", "vanishing-gradients", "saturated-logits"}.isdisjoint(found.names)
    assert {"stochastic-forward", "softmax-outputs", "loss-not-monotone"}.isdisjoint(found.names)


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
def test_any_ball_can_be_diagnosed_also_with_one_logit(ball: eb.Linf):
    model = nets.linear((5,), 1)
    x = nets.batch(20, (5,))
    found = eb.diagnose(model, (x, nets.predicted(model, x)), ball)
    assert found["shattered-gradients"].value == 0
    assert (found["unbounded-fails"].value is None) == (ball.mask is not None)
    assert found == Diagnosis.from_json(found.to_json())


def test_a_sigmoid_at_the_end_is_told_from_one_logit():
    model = nets.linear((5,), 1, squeeze=True)
    x = nets.batch(20, (5,))
    y = nets.predicted(model, x)
    ball = eb.Linf(eps=0.05)
    assert "softmax-outputs" not in eb.diagnose(model, (x, y), ball).names
    assert "softmax-outputs" in eb.diagnose(lambda z: model(z).sigmoid(), (x, torch.ones_like(y)), ball).names


def test_a_model_without_gradients_is_diagnosed_and_one_of_labels_refused():
    model = nets.mlp((4,), 3)
    x = nets.batch(30, (4,))
    y = model(x).argmax(1)

    def hidden(z: Tensor) -> Tensor:
        return model(z.detach()).detach()

    found = eb.diagnose(hidden, (x, y), eb.Linf(eps=0.2, lo=0, hi=1))
    assert "zero-gradients" in found.names
    assert "black-box-stronger" in found.names
    with pytest.raises(BadInput, match="must return logits"):
        eb.diagnose(lambda z: model(z).argmax(1), (x, y), eb.Linf(eps=0.1))


def test_nothing_that_is_classified_correctly_leaves_nothing_to_say():
    model = nets.mlp((4,), 3)
    x = nets.batch(8, (4,))
    found = eb.diagnose(model, (x, (model(x).argmax(1) + 1) % 3), eb.Linf(eps=0.1))
    assert (found.correct, found.names) == (0, ())
    assert "says little" in found.sentence


# The record, and what is left behind


def test_the_model_and_the_generators_come_back_as_they_were_and_a_seed_repeats():
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


def test_what_a_run_keeps_loads_equal_and_what_is_damaged_is_refused(tmp_path):
    found = eb.diagnose(broken_defences.network("quantised", 0), broken_defences.digits("test"), BALL, "fgsm", n=30)
    assert Diagnosis.load(tmp_path) is None
    found.save(tmp_path)
    assert Diagnosis.load(tmp_path) == found
    assert "zero-gradients" in found.text
    assert "BPDA" in found.text
    (tmp_path / "diagnosis.json").write_text("{}")
    with pytest.raises(BadInput, match="damaged"):
        Diagnosis.load(tmp_path)


def test_every_indicator_says_whence_it_comes_and_what_to_do():
    for name, known in INDICATORS.items():
        one = indicator(name, 2.0)
        assert one.raised
        assert name in one.text
        assert known.remedy in one.text
        assert any(char.isdigit() for char in known.source)
    assert not indicator("zero-gradients", None).raised
    assert isinstance(indicator("zero-gradients", 0.05), Indicator)
    assert not indicator("zero-gradients", 0.05).raised


@pytest.mark.filterwarnings("ignore::epsball.problem.objective.ModelWarning")
def test_what_an_evaluation_found_without_gradients_and_its_active_test_are_looked_at():
    model, data = broken_defences.network("step", 0), broken_defences.digits("test").rows(slice(48))
    ev = eb.evaluate(model, data, BALL, ("pgd:steps=5", "square:steps=150"), binarization_test=6)
    found = eb.diagnose(model, data, BALL, ("pgd:steps=5", "square:steps=150"), evaluation=ev)
    assert "black-box-stronger" in found.names
    assert ev.binarization_test is not None
    if ev.binarization_test.too_weak:
        assert "binarization-test-failed" in found.names


@pytest.mark.filterwarnings("ignore::epsball.problem.objective.ModelWarning")
def test_attacks_are_traced_as_the_protocol_names_them_and_callables_left_out():
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
    from epsball.models.load import load_model

    model = load_model(f"broken-defence:{name}", shape=shape, classes=4).eval()
    logits = model(torch.rand(3, *shape))
    assert logits.shape == (3, 5 if name == "detector" else 4)
    assert isinstance(model, nn.Module)


def test_an_unknown_fault_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'kwinners'"):
        broken_defence((4,), 3, "kwiners")


def test_block_rounding_keeps_what_it_does_not_round():
    from epsball.models.broken_defences import QUALITY, BlockRounding

    flat = torch.full((1, 1, 8, 8), 2 * QUALITY / 8)  # the mean's coefficient is 8 times it
    assert torch.allclose(BlockRounding()(flat), flat, atol=1e-6)
    near = flat + 1e-3 * torch.randn(1, 1, 8, 8, generator=nets.rng())
    assert torch.allclose(BlockRounding()(near), flat, atol=1e-6)


def test_cross_entropy_alone_is_tempered():
    assert Reaction(temperature=5.0).applied([("pgd", PGD(loss=margin))]) == [("pgd", PGD(loss=margin))]
    assert Reaction().applied([("pgd", PGD())]) == [("pgd", PGD())]


def test_a_class_that_few_examples_happen_not_to_show_is_no_rejection():
    model = nets.linear((5,), 3)
    x = nets.batch(40, (5,))
    y = model(x).argmax(1)
    some = y < 2  # most of what is attacked ends in class 2
    found = eb.diagnose(model, (x[some], y[some]), eb.Linf(eps=0.2, lo=0, hi=1))
    assert "rejection-class" not in found.names
