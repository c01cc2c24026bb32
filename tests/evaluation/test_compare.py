"""Two runs side by side: which examples are robust in which run, whether that may be chance, and what differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import epsball as eb
from epsball.common.errors import BadInput
from epsball.common.intervals import wilson
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.evaluation.compare import compare, mcnemar, paired_interval


def model(weight: Tensor):
    """A linear model without a bias: two classes, one logit."""

    def logit(x: Tensor) -> Tensor:
        return x @ weight

    return logit


W = torch.tensor([1.0, -2.0, 0.5, 0.25])
V = torch.tensor([1.0, -1.0, 0.1, 0.8])


@pytest.fixture(scope="module")
def data() -> Examples:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 2)
    return from_arrays(x, (x @ W > 0).long(), ids=torch.arange(120) * 2 + 5, lo=-1.5, hi=2, name="table")


def run(data: Examples, weight: Tensor = W, eps: float = 0.3, attacks: Any = "fgsm", **more: Any) -> eb.Evaluation:
    return eb.evaluate(model(weight), data, eb.Linf(eps=eps, lo=-1.5, hi=2), attacks, **more)


# Published values


@pytest.mark.parametrize(
    ("table", "ends"),
    [
        # Bentur et al. (2009), in Fagerland, Lydersen and Laake (2014), "Recommended tests and confidence intervals for
        # paired binomial proportions", Newcombe's square-and-add interval.
        ((1, 1, 7, 12), (-0.507, -0.026)),
        # Altman et al. (2000), "Statistics with Confidence", table 6.2.
        ((14, 5, 0, 22), (0.011, 0.226)),
        # Newcombe (1998), table II, method 10.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
    ],
)
def test_newcombes_interval_is_the_published_one(table, ends) -> None:
    assert paired_interval(*table) == pytest.approx(ends, abs=6e-4 if len(str(ends[0])) < 7 else 6e-5)
    swapped = paired_interval(table[0], table[2], table[1], table[3])
    assert swapped == pytest.approx((-ends[1], -ends[0]), abs=6e-4)


def test_a_95_percent_interval_of_a_difference_covers_it_in_over_93_percent() -> None:
    """4,000 draws of 150 pairs: a 95 % interval holds the true difference in 93 % of them or more."""
    generator = np.random.default_rng(0)
    for shares in ([0.5, 0.1, 0.02, 0.38], [0.3, 0.05, 0.05, 0.6], [0.9, 0.03, 0.0, 0.07], [0.1, 0.4, 0.3, 0.2]):
        draws, times = np.unique(generator.multinomial(150, shares, 4000), axis=0, return_counts=True)
        ends = np.array([paired_interval(*map(int, draw)) for draw in draws])
        true = shares[1] - shares[2]
        covered = ((ends[:, 0] <= true) & (true <= ends[:, 1])) @ times / 4000
        assert covered > 0.93


def test_mcnemars_test_is_exact() -> None:
    from math import comb

    for a in range(9):
        for b in range(9):
            n, low = a + b, min(a, b)
            tail = sum(comb(n, k) for k in range(low + 1)) / 2**n
            assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail), rel=1e-12)


def test_wilsons_interval_solves_its_own_equation() -> None:
    for count, n in ((0, 10), (3, 10), (128, 360), (512, 512)):
        for end in wilson(count, n):
            spread = (end * (1 - end) / n) ** 0.5
            assert abs(count / n - end) == pytest.approx(1.959963984540054 * spread, abs=1e-9)
    assert np.isnan(wilson(0, 0)).all()


# Two runs


def test_pairs_are_counted_by_id(data: Examples) -> None:
    a, b = run(data), run(data.rows(torch.randperm(120, generator=torch.Generator().manual_seed(1))), V)
    found = compare(a, b)
    statuses = [dict(zip(ev.records["id"].to_pylist(), ev.records["status"].to_pylist(), strict=True)) for ev in (a, b)]
    robust = [{id for id, status in part.items() if status == "robust"} for part in statuses]
    assert (found.both, found.only_a, found.only_b) == (
        len(robust[0] & robust[1]),
        len(robust[0] - robust[1]),
        len(robust[1] - robust[0]),
    )
    assert found.both + found.only_a + found.only_b + found.neither == found.n == 120
    assert (set(found.ids_only_a), set(found.ids_only_b)) == (robust[0] - robust[1], robust[1] - robust[0])
    assert list(found.ids_only_a) == sorted(found.ids_only_a)
    assert (found.accuracy_a, found.accuracy_b) == (a.robust_accuracy, b.robust_accuracy)
    assert (found.interval_a, found.interval_b) == (a.interval, b.interval)
    assert found.difference == pytest.approx(b.robust_accuracy - a.robust_accuracy)
    low, high = found.difference_interval
    assert low < found.difference < high
    assert found.p_value == mcnemar(found.only_a, found.only_b)
    back = compare(b, a)
    assert (back.only_a, back.only_b, back.difference) == (found.only_b, found.only_a, -found.difference)
    assert back.difference_interval == pytest.approx((-high, -low))
    assert json.loads(json.dumps(found.summary()))["sentence"] == found.sentence


def test_a_run_equals_itself(data: Examples, tmp_path: Path) -> None:
    ev = run(data, run_dir=tmp_path / "a")
    found = compare(ev, tmp_path / "a")
    assert (found.only_a, found.only_b, found.difference, found.p_value) == (0, 0, 0, 1)
    assert found.difference_interval[0] <= 0 <= found.difference_interval[1]
    assert found.differ == ()
    assert (found.left_out_a, found.left_out_b) == (0, 0)
    assert (found.a, found.b) == ("A", str(tmp_path / "a"))
    assert found.sentence == "The same examples are robust in both runs."


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ({"weight": V}, ("model",)),
        ({"eps": 0.4}, ("radii",)),
        ({"attacks": ["fgsm", "pgd:steps=3"]}, ("attacks",)),
        ({"seed": 1}, ("seed",)),
        ({"storage": "8bit"}, ("storage",)),
        ({"target": 1}, ("target",)),
        ({"source": model(V)}, ("source model",)),
        ({"eot": 2}, ("eot",)),
        ({"weight": V, "eps": 0.4, "seed": 3}, ("model", "radii", "seed")),
        ({"batch_size": 32, "shard_size": 17}, ()),
    ],
)
def test_what_differs_is_reported(data: Examples, change: dict[str, Any], differ: tuple[str, ...]) -> None:
    assert compare(run(data), run(data, **change)).differ == differ


def test_another_ball_is_reported(data: Examples) -> None:
    a = run(data)
    assert compare(a, eb.evaluate(model(W), data, eb.L2(eps=0.3, lo=-1.5, hi=2), "fgsm")).differ == ("ball",)
    assert compare(a, eb.evaluate(model(W), data, eb.Linf(eps=0.3, lo=-2, hi=2), "fgsm")).differ == ("ball",)
    eps = torch.full((120,), 0.3)
    per_example = [eb.evaluate(model(W), data, eb.Linf(eps=e, lo=-1.5, hi=2), "fgsm") for e in (eps, eps * 2)]
    assert compare(*per_example).differ == ("radii",)
    curves = [run(data, eps=whatever) for whatever in (5.0, 0.1)]
    assert compare(*[replace(ev, config=ev.config | {"radii": [0.1, 0.2]}) for ev in curves]).differ == ()


def test_the_sentence_claims_no_more_than_the_runs_show(data: Examples) -> None:
    weak, strong = run(data, attacks="uniform-noise"), run(data)
    claim = "has the stronger attacks: they broke more examples of the same model."
    assert compare(weak, strong).sentence == f"B {claim}"
    assert compare(strong, weak).sentence == f"A {claim}"
    worse = run(data, torch.tensor([1.0, 0.3, 2.0, -1.0]))
    more = "More examples are robust in {0}: under the same attacks, {0} is the more robust model."
    assert compare(run(data), worse).sentence == more.format("A")
    assert compare(worse, run(data)).sentence == more.format("B")
    larger = compare(run(data, eps=0.1), run(data, eps=0.6))  # the same attack is not stronger in a larger ball
    cause = "so the cause may be any of these."
    assert larger.sentence == f"More examples are robust in A: the runs differ in radii, {cause}"
    both = replace(larger, differ=("model", "attacks"))
    assert both.sentence == f"More examples are robust in A: the runs differ in model, attacks, {cause}"
    seeds = replace(larger, differ=("seed",))
    assert seeds.sentence == "More examples are robust in A, with another seed: by the luck of restarts and noise."
    assert "stronger attacks" in replace(seeds, differ=("seed", "attacks")).sentence
    assert "more robust model" in replace(seeds, differ=("model", "seed")).sentence


@pytest.mark.parametrize("differ", [(), ("model",), ("attacks",), ("radii", "model"), ("seed",), ("data",)])
def test_nothing_is_claimed_of_a_difference_that_may_be_chance(differ: tuple[str, ...], data: Examples) -> None:
    found = compare(run(data, eps=0.1), run(data, eps=0.6))
    for only_a, only_b in ((3, 1), (1, 0), (5, 0), (0, 5), (30, 29)):
        chance = replace(
            found,
            only_a=only_a,
            only_b=only_b,
            difference=(only_b - only_a) / 120,
            p_value=mcnemar(only_a, only_b),
            differ=differ,
        )
        higher = "A" if only_a > only_b else "B"
        expected = f"More examples are robust in {higher}, but a difference of this size may be chance (p = "
        assert chance.sentence.startswith(expected), chance.sentence
        assert "model" not in chance.sentence
        assert "stronger" not in chance.sentence
    even = replace(found, only_a=2, only_b=2, difference=0.0, p_value=1.0, differ=differ)
    assert even.sentence == "Equal robust accuracy; 2 examples are robust in A only, and as many in B only."


def test_a_run_that_is_not_to_be_relied_on_is_named_beside_the_claim(data: Examples) -> None:
    sound, other = run(data, diagnose=20), run(data, torch.tensor([1.0, 0.3, 2.0, -1.0]), diagnose=0)
    assert sound.diagnosis is not None
    assert compare(sound, other).doubtful == ()
    failing = replace(sound.diagnosis.indicators[0], value=1.0)
    doubtful = replace(sound, diagnosis=replace(sound.diagnosis, indicators=(failing,)))
    found = compare(doubtful, other)
    assert found.doubtful == ("A",)
    assert found.sentence.endswith("The result of A is not to be relied on: its true robust accuracy may be lower.")


def test_examples_of_one_run_only_are_left_out(data: Examples) -> None:
    a, b = run(data.rows(torch.arange(100))), run(data.rows(torch.arange(30, 120)), eps=0.5)
    found = compare(a, b)
    assert found.n == 70
    assert (found.left_out_a, found.left_out_b) == (30, 20)
    status = dict(zip(a.records["id"].to_pylist(), a.records["status"].to_pylist(), strict=True))
    shared = [status[id] for id in b.records["id"].to_pylist() if id in status]
    assert found.accuracy_a == np.mean([part == "robust" for part in shared])


def test_examples_already_at_the_target_are_left_out(data: Examples) -> None:
    a, b = (run(data, eps=eps, target=1) for eps in (0.2, 0.6))
    found = compare(a, b)
    assert found.n == a.count("robust") + a.count("fooled")
    assert found.accuracy_a == a.robust_accuracy
    assert found.accuracy_b == b.robust_accuracy


def test_runs_on_other_data_are_refused_or_marked(data: Examples) -> None:
    a = run(data)
    with pytest.raises(BadInput, match="must be runs on the same data, got table"):
        compare(a, run(replace(data, x=data.x * 0.9, name="other")))
    with pytest.raises(BadInput, match="120 of 120 ids have other labels"):
        compare(a, run(replace(data, y=1 - data.y)))
    with pytest.raises(BadInput, match="an example in common"):
        compare(run(data.rows(torch.arange(50))), run(data.rows(torch.arange(50, 90))))
    assert compare(a, run(replace(data, name="renamed"))).n == 120  # the digest says that it is the same
    assert compare(a, run(replace(data, name="renamed"))).differ == ()
    moved = compare(a, run(replace(data, x=data.x * 0.9)))  # the same name, the same labels
    assert (moved.n, moved.differ) == (120, ("data",))
    assert "The data of the runs is not the same" in moved.sentence
    assert "noise" not in moved.sentence
    with pytest.raises(BadInput, match="must be a run directory"):
        compare(a, "nothing")
