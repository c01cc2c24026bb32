"""Names of protocols, lists of the user's own, and aliases of attacks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from doubles import BALLS, EPS
from nets import batch, batch_of, mlp, predicted

import epsball as eb
from epsball.attacks.registry import ALIASES, ATTACKS, parse
from epsball.engine.protocols import CASCADES, by_norm, expand
from epsball.problem.losses import cross_entropy, dlr, margin

EVERY = [(name, norm, text) for name in CASCADES for norm, texts in by_norm(name).items() for text in texts]


@pytest.mark.parametrize(("name", "norm", "text"), EVERY)
def test_protocol_names_attacks_that_are_defined_for_its_norm(name: str, norm: str, text: str) -> None:
    attack = parse(text)
    attack.check_ball(BALLS[norm](eps=EPS[norm], lo=0, hi=1))
    assert expand(name, BALLS[norm]) == by_norm(name)[norm]


def test_standard_is_the_standard_version_of_autoattack() -> None:
    """Croce and Hein's `set_version("standard")`: 100 steps, 5000 queries, 9 targets; in L1 5 restarts, 5 targets."""
    for norm in ("linf", "l2"):
        ce, targeted, fab, square = map(parse, expand("standard", BALLS[norm]))
        assert (ce, targeted) == (eb.APGD(steps=100), eb.APGD(steps=100, loss=dlr, n_targets=9))
        assert (fab.steps, fab.restarts, fab.n_targets) == (100, 1, 9)
        assert (square.steps, square.restarts, square.n_targets) == (5000, 1, 0)
    ce, targeted, *rest = map(parse, expand("standard", BALLS["l1"]))
    assert (ce, targeted) == (eb.L1APGD(steps=100, restarts=5), eb.L1APGD(steps=100, loss=dlr, n_targets=5))
    assert rest == [fab, square]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pgd", ("pgd",)),
        ("pgd:steps=3,loss=margin", ("pgd:steps=3,loss=margin",)),
        ("worst-of(pgd)", ("pgd",)),
        ("worst-of(fgsm, pgd:steps=3, restarts=2 ,bim)", ("fgsm", "pgd:steps=3,restarts=2", "bim")),
        (" Worst-Of( PGD , fgsm:loss=margin )", ("PGD", "fgsm:loss=margin")),
        ("worst-of(standard, bim)", (*by_norm("standard")["l2"], "bim")),
        ("STANDARD", by_norm("standard")["l2"]),
        ("worst-of()", ()),
        ("worst-of(pgd, pgd)", ("pgd", "pgd")),
        ("worst-of (fgsm)", ("fgsm",)),
        (
            "worst-of(pgd, worst-of(fgsm, pgd:steps=3,restarts=2), bim)",
            ("pgd", "fgsm", "pgd:steps=3,restarts=2", "bim"),
        ),
        ("worst-of(worst-of(worst-of(fgsm), standard))", ("fgsm", *by_norm("standard")["l2"])),
    ],
)
def test_name_expands_to_its_attacks(text: str, parts: tuple[str, ...]) -> None:
    assert expand(text, BALLS["l2"]) == parts


@pytest.mark.parametrize("text", ["worst-of", "worst-of pgd", "worst-of(pgd", "worst-of[pgd]"])
def test_list_that_is_not_closed_is_refused(text: str) -> None:
    with pytest.raises(eb.BadInput, match=r"`attacks` must name a list as worst-of\(A, B, \.\.\.\), got"):
        expand(text, BALLS["linf"])


@pytest.mark.parametrize(
    "text", ["worst-of(steps=3, pgd)", "worst-of()", "worst-of(pgd))", "worst-of(fgsm), worst-of(bim)"]
)
def test_list_without_a_meaning_is_refused(text: str) -> None:
    with pytest.raises(eb.BadInput):
        eb.evaluate(mlp((5,), 3), batch_of(4, (5,), 3), eb.Linf(eps=0.1), text)


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("standrd", "standard"),
        ("worst_of(fgsm)", "worst-of(...)"),
        ("worst_of(fgsm, pgd:steps=100,restarts=2)", "worst-of(...)"),
        ("standard,fgsm", "standard"),
        ("apgdt", "apgd-t"),
        ("worst-of(fgsm, fst)", "fast"),
        ("pdg:steps=3", "pgd"),
    ],
)
def test_misspelled_name_is_refused_with_the_right_one(text: str, suggestion: str) -> None:
    with pytest.raises(eb.BadInput, match="`attacks` must be one of") as refused:
        expand(text, BALLS["linf"])
    assert f"did you mean {suggestion!r}?" in str(refused.value)
    listed = str(refused.value).partition(", got")[0]
    assert all(name in listed for name in (*ATTACKS, *ALIASES, *CASCADES, "worst-of(...)"))


@pytest.mark.parametrize("text", ["standard:steps=3", "fast:", "worst-of(fgsm, Fast:early_stop=1)", "fast(3)"])
def test_protocol_with_options_is_refused(text: str) -> None:
    with pytest.raises(eb.BadInput, match="`attacks`: a protocol takes no options, got"):
        expand(text, BALLS["linf"])


def test_aliases_are_offered_for_a_misspelled_attack() -> None:
    with pytest.raises(eb.BadInput, match=r"one of fgsm, .*apgd-t.*did you mean 'apgd-t'"):
        parse("apgdt")


def test_protocol_is_refused_in_a_norm_for_which_it_is_not_defined() -> None:
    for name in CASCADES:
        lists = by_norm(name)
        if "l0" in lists:
            continue
        for text in (name, f"worst-of(fgsm, {name})"):
            with pytest.raises(eb.BadInput, match=rf"`ball` must be linf or l2 or l1 for {name}, got l0.*worst-of"):
                expand(text, BALLS["l0"])


def test_worst_of_is_the_worst_case_of_its_attacks() -> None:
    """The same results and stages as the list; an example is robust if it is robust against every attack."""
    x, model = batch(60, (20,)), mlp((20,), 5)
    y, ball = predicted(model, x), eb.L2(eps=0.6)
    listed = ["fgsm", "pgd:steps=5,restarts=2", "uniform-noise"]
    one = eb.evaluate(model, (x, y), ball, f"worst-of({', '.join(listed)})")
    other = eb.evaluate(model, (x, y), ball, listed)
    assert one.records.equals(other.records)
    assert [stage.attack for stage in one.stages] == ["clean", *listed]
    alone = [eb.evaluate(model, (x, y), ball, name).records["status"].to_pylist() for name in listed]
    for status, *each in zip(one.records["status"].to_pylist(), *alone, strict=True):
        assert (status == "robust") == all(part == "robust" for part in each)
    assert 0 < one.robust_accuracy < one.clean_accuracy


# Aliases.


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("apgd-ce", eb.APGD(loss=cross_entropy)),
        ("apgd-dlr", eb.APGD(loss=dlr)),
        ("apgd-t", eb.APGD(loss=dlr, n_targets=9)),
        ("APGD-T:n_targets=3", eb.APGD(loss=dlr, n_targets=3)),
        ("apgd-t:loss=margin,steps=7", eb.APGD(loss=margin, n_targets=9, steps=7)),
        ("apgd-ce:rho=0.5", eb.APGD(rho=0.5)),
        ("l1-apgd:loss=dlr,restarts=2", eb.L1APGD(loss=dlr, restarts=2)),
    ],
)
def test_alias_is_the_attack_it_stands_for(text: str, attack: object) -> None:
    assert parse(text) == attack


@pytest.mark.parametrize("name", ALIASES)
def test_alias_names_one_attack_and_hides_none(name: str) -> None:
    assert name not in ATTACKS
    assert ALIASES[name].partition(":")[0] in ATTACKS
    assert parse(name) == parse(ALIASES[name])


def test_record_names_the_attacks_as_the_user_did() -> None:
    x, y = batch_of(20, (6,), 3)
    run = eb.evaluate(mlp((6,), 3), (x, y), eb.Linf(eps=0.3), ["apgd-t:steps=5", "worst-of(apgd-ce:steps=3)"])
    assert [stage.attack for stage in run.stages] == ["clean", "apgd-t:steps=5", "apgd-ce:steps=3"]
    assert run.config["protocol"] == ["apgd-t:steps=5", "worst-of(apgd-ce:steps=3)"]


def test_reading_the_protocols_does_not_import_torch() -> None:
    code = "import sys; from epsball.engine.protocols import CASCADES; sys.exit(not CASCADES or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
