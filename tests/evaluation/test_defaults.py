"""What `evaluate` does when nothing is asked for: attacks that do not flatter, and reliability checks."""

from __future__ import annotations

import broken_defences
import nets
import numpy as np
import pytest
from torch import Tensor, nn

import epsball as eb
from epsball.balls.registry import BALLS
from epsball.diagnosis.diagnose import not_run_yet
from epsball.diagnosis.indicators import INDICATORS
from epsball.engine.default_attacks import answers, default_attacks
from epsball.engine.protocols import CASCADES
from epsball.evaluation.preflight import ALLOWANCE, COST, COST_BROKEN, FEWEST, MOST, affordable
from epsball.evaluation.result import Evaluation
from epsball.models.broken_defences import BROKEN_DEFENCES
from epsball.problem.objective import SearchWarning

BALL = eb.Linf(eps=0.1, lo=0, hi=1)
pytestmark = pytest.mark.filterwarnings("ignore::epsball.problem.objective.ModelWarning")


class WrongWay(nets.Wrapper):
    """The same outputs, and gradients that point the other way."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return 2 * logits.detach() - logits


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nets.linear((6,), 3).float()


@pytest.fixture(scope="module")
def data(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = nets.batch(120, (6,)).float()
    return x, nets.predicted(net, x)


@pytest.fixture(scope="module")
def found(net: nn.Module, data: tuple[Tensor, Tensor]) -> Evaluation:
    return eb.evaluate(net, data, BALL)


def test_a_sound_model_is_attacked_by_fast_and_passes_its_checks(found: Evaluation) -> None:
    assert found.config["protocol"] == ["fast"]
    assert found.diagnosis is not None
    assert found.diagnosis.failed_names == ()
    assert found.doubts == ()
    assert found.reliability == found.diagnosis.sentence == found.summary()["reliability"]
    assert found.reliability.startswith("Reliability checks: 17 of 18 passed, 1 not measured (on ")


@pytest.mark.nightly
def test_gradients_that_point_the_wrong_way_are_noticed_and_flatter_less(net, data, found) -> None:
    wrong = eb.evaluate(WrongWay(net), data, BALL)
    assert wrong.diagnosis is not None
    assert wrong.diagnosis.unreliable
    assert wrong.doubts == (f"Reliability checks failed: {', '.join(wrong.diagnosis.open_failures)}.",)
    flattered = eb.evaluate(WrongWay(net), data, BALL, ["fgsm", "pgd"], diagnose=0)
    assert found.robust_accuracy <= wrong.robust_accuracy < flattered.robust_accuracy - 0.1
    assert flattered.reliability == "Reliability: not checked (diagnose=0)."


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", BROKEN_DEFENCES)
def test_defaults_flag_every_broken_defence_and_no_sound_network(name: str, seed: int) -> None:
    test = broken_defences.digits("test").rows(slice(128))
    found = eb.evaluate(broken_defences.network(name, seed), test, BALL, seed=seed)
    assert found.diagnosis is not None, found.reliability
    fault = BROKEN_DEFENCES[name].indicator
    assert (fault is None) == (found.diagnosis.failed_names == ())
    assert fault is None or fault in found.diagnosis.failed_names


def test_the_checks_cost_a_bounded_share_of_the_run(found: Evaluation) -> None:
    assert found.diagnosis is not None
    robust = found.count("robust") / len(found)
    each = robust * COST + (1 - robust) * COST_BROKEN
    allowed = max((found.forwards + found.backwards) / 4, ALLOWANCE * len(found))
    assert affordable(found) == found.diagnosis.examples == min(MOST, len(found), int(allowed / each))
    assert found.diagnosis.examples >= FEWEST
    assert found.diagnosis.forwards + found.diagnosis.backwards <= allowed


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("small", "the checks would cost too much of this run; diagnose=32 runs them"),
        ("labels", "the model returns labels only"),
        ("transfer", "the attacks of a transfer do not see the model"),
        ("off", "diagnose=0"),
    ],
)
def test_a_result_without_checks_says_not_checked_and_why(kind, why, net, data, tmp_path) -> None:
    few = data[0][:20], data[1][:20]
    run = {
        "small": lambda: eb.evaluate(net, few, BALL, "fgsm", run_dir=tmp_path),
        "labels": lambda: eb.evaluate(
            nets.LabelOnly(net), few, BALL, "hopskipjump:steps=9", convergence=0, run_dir=tmp_path
        ),
        "transfer": lambda: eb.evaluate(net, few, BALL, "fgsm", source=net, run_dir=tmp_path),
        "off": lambda: eb.evaluate(net, data, BALL, "fgsm", diagnose=0, run_dir=tmp_path),
    }[kind]()
    assert run.diagnosis is None
    assert run.reliability == f"Reliability: not checked ({why})."
    assert run.summary()["reliability"] == run.reliability == Evaluation.load(tmp_path).reliability
    if kind == "small":
        checked = eb.evaluate(net, few, BALL, "fgsm", diagnose=32)
        assert checked.reliability.startswith("Reliability checks: ")
    from epsball.report.run import Run

    assert run.reliability in Run.load(tmp_path).caveats


# Which attacks


def test_every_norm_has_default_attacks_for_every_kind_of_run() -> None:
    for ball in BALLS.values():
        (name,) = default_attacks(ball)
        assert ball.choose(CASCADES[name])
        assert default_attacks(ball, min_norm=True) == ("min-norm",)
    assert default_attacks(eb.L0) == ("min-norm",)
    assert default_attacks(eb.L1, "logits") == ("square",)
    assert default_attacks(eb.L2, "logits", min_norm=True) == default_attacks(eb.L2, "label") == ("hopskipjump",)
    for needs, norm in (("logits", eb.L0), ("label", eb.L0), ("label", eb.L1)):
        with pytest.raises(eb.BadInput, match="`attacks` must be given for a model without gradients"):
            default_attacks(norm, needs)


@pytest.mark.parametrize(
    ("needs", "wrap"),
    [
        ("grad", lambda net: net),
        ("logits", lambda net: lambda x: net(x).detach()),
        ("label", lambda net: lambda x: net(x).argmax(1)),
        ("logits", lambda net: eb.BlackBox(lambda x: net(x), takes="torch")),
        ("label", lambda net: eb.BlackBox(lambda x: net(x).argmax(1), takes="torch", scores="labels")),
        ("grad", lambda net: lambda x: 1 / 0),  # the run itself says what is wrong
    ],
)
def test_a_model_is_attacked_by_what_it_can_answer(needs, wrap, net, data) -> None:
    model = wrap(net)
    assert answers(model, data[0]) == needs


def test_a_black_box_is_searched_and_only_checked_for_what_can_be_measured(net, data) -> None:
    found = eb.evaluate(lambda x: net(x).detach(), data, BALL, "square:steps=300", diagnose=32)
    assert found.doubts == ()
    assert found.diagnosis is not None
    measured = {one.name for one in found.diagnosis.indicators if one.value is not None}
    assert measured == {"softmax-outputs", "stochastic-forward", "dependent-rows", "noise-stronger"}
    assert "14 not measured" in found.reliability


def test_a_weak_search_of_a_black_box_fails_the_checks_against_random_search(net, data) -> None:
    def weak(model, x: Tensor, y: Tensor, ball: eb.Ball) -> Tensor:
        return x

    found = eb.evaluate(lambda x: net(x).detach(), data, eb.Linf(eps=0.3, lo=0, hi=1), [weak], diagnose=64)
    assert {"noise-stronger", "black-box-stronger"} & set(found.diagnosis.failed_names)


def test_no_query_beyond_the_budget_is_made_for_checks_that_nobody_asked_for(net, data, monkeypatch) -> None:
    monkeypatch.setattr("epsball.evaluation.preflight.affordable", lambda found: FEWEST)  # they are not too dear
    box = eb.BlackBox(lambda x: net(x), takes="torch", budget=40)
    with pytest.warns(SearchWarning, match="budget of 40 queries ran out"):
        found = eb.evaluate(box, data, BALL, "square:steps=200")
    assert found.diagnosis is None
    assert box.total <= 40 * len(data[0]) + len(data[0])


def test_a_remedy_names_nothing_that_was_run_already() -> None:
    for one in INDICATORS.values():
        assert not_run_yet(one, ["pgd"], [eb.PGD()]) == one
        after_square = not_run_yet(one, ["square"], [eb.Square()]).remedy
        assert not after_square.endswith("logits only: square")
        assert "protocol fast" not in not_run_yet(one, ["fast"], [eb.Square()]).remedy
    masked = not_run_yet(INDICATORS["zero-gradients"], ["fast"], [eb.Square()])
    assert masked.remedy.endswith("attack with logits only, longer: square:steps=20000")
    assert not_run_yet(INDICATORS["restarts-help"], ["fast"], []).remedy.endswith("or the protocol standard")


def test_numbers_of_checks_add_up(found: Evaluation) -> None:
    assert found.diagnosis is not None
    states = np.array([one.value is not None for one in found.diagnosis.indicators])
    assert f"{states.sum()} of {len(states)} passed, {(~states).sum()} not measured" in found.reliability
