"""Query budgets that speak, and whether a search by queries had converged."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import run
from forests import robust_rows
from nets import LabelOnly, batch, linear, predicted
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

import epsball as eb
from epsball.evaluation import run_directory
from epsball.evaluation.compare import compare
from epsball.evaluation.convergence_record import Convergence, Look
from epsball.evaluation.records import ShardRecords
from epsball.evaluation.result import Evaluation
from epsball.evaluation.verify import verify
from epsball.problem.objective import SearchWarning
from epsball.report.html import write_report
from epsball.report.run import Run

quietly = pytest.mark.filterwarnings("ignore::epsball.problem.objective.SearchWarning")
N, D = 24, 12
BALL = eb.Linf(eps=0.08, lo=0, hi=1)
RADII = (0.02, 0.05, 0.08)


@cache
def problem() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A linear model of two classes, examples in the box, and its own predictions as labels."""
    model = linear((D,), 2, seed=3)
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight @ torch.full((D,), 0.5, dtype=torch.float64))
    x = batch(N, (D,), lo=0.2, hi=0.8, seed=5)
    return model, x, predicted(model, x)


def box_of(budget: int | None = None, **options: Any) -> eb.BlackBox:
    return eb.BlackBox(problem()[0], takes="torch", budget=budget, **options)


def evaluated(budget: int | None, attacks: Any = "square:steps=60", **options: Any) -> Evaluation:
    _, x, y = problem()
    return eb.evaluate(box_of(budget), (x, y), BALL, attacks, **({"convergence": 0, "diagnose": 0} | options))


# The budget


def test_budget_is_one_for_each_radius() -> None:
    """A shared budget would leave nothing for the larger radii, whose examples would then seem robust."""
    free, limited = (evaluated(budget, eps=RADII) for budget in (None, 60))
    assert [share for _, share in free.curve] == sorted({share for _, share in free.curve}, reverse=True)
    assert limited.curve == free.curve
    assert limited.exhausted == 0
    assert max(table.queries for table in limited.stages) > 60


@pytest.mark.parametrize("memory", [0, 1 << 17])
def test_no_example_makes_more_queries_than_its_budget_at_a_radius(memory: int) -> None:
    _, x, y = problem()
    box = box_of(40, memory=memory)
    with pytest.warns(SearchWarning, match=r"budget of 40 queries ran out for \d+ of 24 examples at some radius"):
        found = eb.evaluate(
            box, (x, y), BALL, ["square:steps=30", "square:steps=90"], eps=RADII, convergence=0, diagnose=0
        )
    stages = {}
    for stage in found.stages[1:]:
        stages.setdefault(stage.eps, []).append(stage.queries)
    assert list(stages) == list(RADII)
    assert all(sum(queries) <= 40 * N for queries in stages.values())
    assert found.queries == N + sum(map(sum, stages.values()))
    if memory:
        assert box.total <= found.queries  # what an earlier radius asked is cached


@quietly
@pytest.mark.parametrize("attack", ["square:steps=60", "hopskipjump:steps=60"])
def test_exhausted_examples_count_as_neither_robust_nor_broken(attack: str, tmp_path: Path) -> None:
    _, x, y = problem()
    found = eb.evaluate(box_of(2), (x, y), BALL, attack, run_dir=tmp_path, convergence=0, diagnose=0)
    open_rows = N - found.count("fooled")
    assert open_rows > N / 2
    assert (found.count("exhausted"), found.count("robust")) == (open_rows, 0)
    assert (found.robust_accuracy, found.robust_accuracy_at_most) == (0, open_rows / N)
    assert found.interval[0] == pytest.approx(0)
    assert found.exhausted == found.stages[-1].exhausted == open_rows
    summary = found.summary()
    assert summary["status"]["exhausted"] == open_rows
    assert summary["robust_accuracy_at_most"] == open_rows / N
    assert f"{open_rows} of {N} examples" in str(found.budget_sentence)
    assert np.isnan(found.distances[found.records["status"].to_numpy(zero_copy_only=False) == "exhausted"]).all()
    assert verify(tmp_path, box_of(2)).agrees
    loaded = Evaluation.load(tmp_path)
    assert loaded.budget_sentence == found.budget_sentence
    text = write_report(tmp_path).read_text()
    assert "whose query budget ran out" in text
    assert any("ran out" in doubt for doubt in Run.load(tmp_path).doubts)


@quietly
def test_exhausted_examples_are_left_out_of_a_comparison() -> None:
    few, enough = evaluated(10), evaluated(None)
    paired = compare(few, enough)
    assert paired.n == N - few.count("exhausted")
    assert paired.left_out_a == paired.left_out_b == few.count("exhausted") > 0
    assert "query budget" in paired.differ
    assert compare(enough, enough).n == N


def test_search_that_ends_at_a_radius_covers_the_smaller_ones() -> None:
    """Exhausted at one radius and searched to the end at a larger one is robust at both; from the last one on, not."""
    out, done, broken = {"exhausted": True}, {}, {"fooled": True}
    cases = [
        ((out, done, done), "robust", None),
        ((done, out, out), "exhausted", 0.2),
        ((out, out, done), "robust", None),
        ((out, done, out), "exhausted", 0.3),
        ((out, out, broken), "fooled", 0.1),
        ((done, out, broken), "fooled", 0.2),
        ((out, done, broken), "fooled", None),
        ((done, done, out | broken), "fooled", None),
    ]
    for stages, status, eps in cases:
        records = ShardRecords(
            np.array([0]),
            np.array([0]),
            np.array([-1]),
            (np.array([0]), np.array([True])),
            {"min_norm": False, "norms": ("linf",), "radii": [0.1, 0.2, 0.3]},
        )
        for radius, stage in zip((0.1, 0.2, 0.3), stages, strict=True):
            columns = {"fooled": False, "invalid": False, "exhausted": False, "forwards": 1, "backwards": 0} | stage
            answer = {"adversarial_prediction": 1 if "fooled" in stage else None, "adversarial_confidence": 1.0}
            table = pa.table({name: [value] for name, value in (columns | answer).items()})
            records.add_stage(table, np.array([0]), "square", np.array([radius]), records.place(radius))
        records.finish()
        found = records.table(pa.array([1.0]))
        assert (found["status"][0].as_py(), found["exhausted_eps"][0].as_py()) == (status, eps), stages


@quietly
def test_curve_counts_an_example_as_robust_only_where_its_search_was_ended() -> None:
    found = evaluated(25, ["square:steps=20", "square:steps=60"], eps=RADII)
    free = evaluated(None, ["square:steps=20", "square:steps=60"], eps=RADII)
    at_most = [rows.mean() for rows in found.not_broken()]
    for (_, least), most, (_, true) in zip(found.curve, at_most, free.curve, strict=True):
        assert least <= true <= most
    assert found.curve[0][1] < at_most[0]


@quietly
def test_resumed_run_counts_no_query_twice(tmp_path: Path) -> None:
    """Interrupted between two attacks that share a budget: the second one finds what is left of it, and no more."""
    _, x, y = problem()
    attacks, options = ["square:steps=30", "square:steps=90"], {"eps": RADII[1:], "convergence": 0, "diagnose": 0}
    whole = eb.evaluate(box_of(50), (x, y), BALL, attacks, run_dir=tmp_path, **options)  # pyright: ignore
    kept = {path: path.read_bytes() for path in tmp_path.glob("stages/*")}
    for last in ("01-square", "02-square", "03-square"):
        for path in (*tmp_path.glob("stages/*"), *tmp_path.glob("records/*")):
            path.unlink()
        for path, content in kept.items():
            if path.stem.partition("-")[2] < last or "clean" in path.stem:
                path.write_bytes(content)
        box = box_of(50)
        resumed = eb.evaluate(box, (x, y), BALL, attacks, run_dir=tmp_path, **options)  # pyright: ignore
        assert resumed.records.equals(whole.records)
        again = [replace(stage, seconds=0.0) for stage in resumed.stages]
        assert again == [replace(stage, seconds=0.0) for stage in whole.stages]
        ran = sum(stage.queries for stage in whole.stages if last <= stage.name < "clean")
        assert box.total <= ran + 2 * N  # the examples themselves are asked about again
    with pytest.raises(eb.BadInput, match=r"another `black_box`: black_box.budget is 50 there, 60 here"):
        eb.evaluate(box_of(60), (x, y), BALL, attacks, run_dir=tmp_path, **options)  # pyright: ignore


@quietly
def test_restarts_with_a_budget_do_not_depend_on_the_batch() -> None:
    """They run one after the other, so that none spends what an earlier one needs."""
    found = [evaluated(70, "square:steps=30,restarts=4", batch_size=size).records for size in (32, 128)]
    assert found[0].equals(found[1])


@quietly
def test_budget_of_as_many_queries_as_steps_suffices() -> None:
    for attack, less in (("square:steps=50", 49), ("square:steps=25,restarts=2", 30), ("hopskipjump:steps=50", 49)):
        assert evaluated(50, attack).exhausted == 0
        assert evaluated(less, attack).exhausted > 0


@quietly
def test_minimum_norm_search_that_ran_out_is_said_to_be_unfinished() -> None:
    _, x, y = problem()
    ball = eb.L2(eps=math.inf, lo=0, hi=1)
    for budget, out in ((400, 0), (60, N)):
        found = eb.evaluate(
            box_of(budget), (x, y), ball, "hopskipjump:steps=400", min_norm=True, eps=[0.01], convergence=0
        )
        assert found.exhausted == out
        assert found.robust_accuracy_at_most > 0.9
        assert found.robust_accuracy == (0 if out else found.robust_accuracy_at_most)
        assert ("unfinished" in str(found.budget_sentence)) == bool(out)


def test_direct_call_says_where_queries_ran_out() -> None:
    model, x, y = problem()
    attack = eb.Square(steps=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # each call has its own budget
            whole = attack(box_of(40), x, y, BALL)
    with pytest.warns(SearchWarning, match=r"budget of 7 ran out for \d+ of 24 examples.*budget=40 it ends"):
        found = attack(box_of(7), x, y, BALL)
    assert (predicted(model, found) != y).sum() < (predicted(model, whole) != y).sum()
    labels = eb.BlackBox(lambda z: predicted(model, z), scores="labels", takes="torch", budget=20)
    with pytest.warns(SearchWarning, match="ran out for 24 of 24"):
        eb.HopSkipJump(steps=40)(labels, x, y, BALL)


def test_command_shows_the_range_and_the_gate_takes_its_lower_end(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "import epsball as eb\n"
        "from sklearn.datasets import load_digits\n"
        "x, y = load_digits(return_X_y=True)\n"
        "means = (__import__('numpy').eye(10)[y].T @ x / 16 / 180).astype('float32')\n"
        "def box():\n"
        "    nearest = lambda z: 2 * z.reshape(len(z), -1) @ means.T - (means**2).sum(1)\n"
        "    return eb.BlackBox(function=nearest, budget=3)\n"
    )
    arguments = ["evaluate", "--model", "service:box", "--limit", "40", "--attacks", "square:steps=50"]
    shown = run(*arguments, "--fail-under", "0.01", "--diagnose", "0", cwd=tmp_path)
    assert shown.returncode == 1, shown.stderr
    assert "robust accuracy from 0.00% to" in shown.stdout
    assert "The budget of 3 queries ran out for" in " ".join(shown.stdout.split())
    assert "Not converged" in shown.stdout or "Convergence" in shown.stdout
    assert "of a budget of 3 per example and radius" in shown.stdout
    assert "warning" not in shown.stderr


# Convergence, on trees whose exact robust accuracy is known


@cache
def cancer() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(x).astype(np.float32), y


def fitted(kind: str) -> Any:
    x, y = cancer()
    model = (
        DecisionTreeClassifier(random_state=0)
        if kind == "tree"
        else RandomForestClassifier(n_estimators=10, random_state=0)
    )
    return model.fit(x[:400], y[:400])


@pytest.mark.parametrize("kind", ["tree", "forest"])
def test_too_few_queries_for_a_tree_are_noticed(kind: str) -> None:
    """One short search misses what is exactly there to find; the second look says so. Many short ones find it."""
    model, (x, y), eps = fitted(kind), cancer(), 0.3
    x, y = x[400:440], y[400:440]
    exact = robust_rows(model, x, y, eps)
    box = eb.BlackBox(model.predict_proba, scores="probabilities")
    with pytest.warns(SearchWarning, match="Not converged"):
        few = eb.evaluate(box, (x, y), eb.Linf(eps=eps), "square:steps=10")
    enough = eb.evaluate(box, (x, y), eb.Linf(eps=eps), "square:steps=200,restarts=10")
    for found in (few, enough):  # an attack never breaks what is exactly robust
        status = found.records["status"].to_numpy(zero_copy_only=False)
        assert (status[exact] == "robust").all()
    assert few.robust_accuracy > exact.mean() + 0.05
    assert few.convergence is not None
    assert not few.convergence.converged
    broken = {identity for look in few.convergence.looks for identity in look.ids}
    assert broken
    assert not exact[sorted(broken)].any()
    assert enough.robust_accuracy == exact.mean()
    assert enough.convergence is not None
    assert enough.convergence.converged


def test_look_is_bounded_counted_apart_and_kept(tmp_path: Path) -> None:
    _, x, y = problem()
    box = box_of(None)
    options = {"run_dir": tmp_path, "diagnose": 0, "eps": RADII[:2]}
    with pytest.warns(SearchWarning):
        found = eb.evaluate(box, (x, y), BALL, "square:steps=4", convergence=10, **options)  # pyright: ignore
    made = found.convergence
    assert made is not None
    assert [look.n for look in made.looks] == [min(8, look.robust) for look in made.looks]
    assert 0 < made.queries <= 2 * 8 * 2 * 4 * 2
    assert box.total <= found.queries + made.queries + N
    assert found.summary()["convergence"]["looks"][0]["n"] == made.looks[0].n
    assert Evaluation.load(tmp_path).convergence == made
    again = box_of(None)
    with pytest.warns(SearchWarning):
        resumed = eb.evaluate(again, (x, y), BALL, "square:steps=4", convergence=10, **options)  # pyright: ignore
    assert resumed.convergence == made
    assert again.total <= 32  # is it the same model?
    assert any("Not converged" in doubt for doubt in Run.load(tmp_path).doubts)


def test_look_has_twice_the_budget_and_leaves_it_as_it_was() -> None:
    _, x, y = problem()
    box = box_of(6)
    with pytest.warns(SearchWarning):
        found = eb.evaluate(box, (x, y), BALL, "square:steps=6", diagnose=0)
    assert box.budget == 6
    assert found.convergence is not None
    assert found.convergence.queries <= 12 * found.convergence.looks[0].n


@pytest.mark.parametrize("attacks", ["pgd:steps=3", ["square:steps=20", "pgd:steps=3"]])
def test_gradient_attacks_need_no_look(attacks: Any) -> None:
    model, x, y = problem()
    assert eb.evaluate(model, (x, y), BALL, attacks, diagnose=0).convergence is None
    assert eb.evaluate(model, (x, y), BALL, "square:steps=20", diagnose=0, convergence=0).convergence is None


def test_look_takes_labels_and_distances() -> None:
    """HopSkipJump at a radius, on labels; and in a minimum-norm run, where twice the queries come nearer."""
    model, x, y = problem()
    labels = LabelOnly(model)
    with pytest.warns(SearchWarning, match="Not converged: twice the queries broke"):
        eb.evaluate(labels, (x, y), BALL, "hopskipjump:steps=12")
    ball = eb.L2(eps=math.inf, lo=0, hi=1)
    with pytest.warns(SearchWarning, match="nearer adversarial examples"):
        few = eb.evaluate(labels, (x, y), ball, "hopskipjump:steps=30", min_norm=True)
    enough = eb.evaluate(labels, (x, y), ball, "hopskipjump:steps=500", min_norm=True)
    assert few.convergence is not None
    assert enough.convergence is not None
    assert few.convergence.looks[0].share > 0.5 >= enough.convergence.looks[0].share
    assert enough.convergence.converged


def test_sentences_of_a_look_state_share_and_interval() -> None:
    looks = (Look(0.1, 40, 16, 0, ()), Look(0.2, 30, 16, 2, (4, 9)), Look(0.3, 20, 16, 2, (3, 9)))
    found = Convergence(looks, False, 32, 900, 0.1)
    assert found.worst == looks[2]
    assert "broke 2 of 16 sampled robust examples at radius 0.3 (95 % interval 3 to 36 %)" in found.sentence
    assert Convergence.from_json(found.to_json()) == found
    good = replace(found, looks=looks[:1])
    assert good.converged
    assert good.sentence == (
        "Convergence: twice the queries broke none of 16 sampled robust examples (95 % interval 0 to 19 %)."
    )
    nothing = replace(found, looks=(Look(0.1, 0, 0, 0, ()),))
    assert nothing.converged
    assert "no example is left" in nothing.sentence


def test_damaged_look_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    _, x, y = problem()
    options = {"run_dir": tmp_path, "diagnose": 0}
    first = eb.evaluate(box_of(), (x, y), BALL, "square:steps=60", **options)  # pyright: ignore
    (tmp_path / "convergence.json").write_text("{")
    with pytest.raises(eb.BadInput, match=r"convergence.json is missing or damaged.*delete it and start the run again"):
        eb.evaluate(box_of(), (x, y), BALL, "square:steps=60", **options)  # pyright: ignore
    (tmp_path / "convergence.json").unlink()
    again = eb.evaluate(box_of(), (x, y), BALL, "square:steps=60", **options)  # pyright: ignore
    assert again.convergence == first.convergence
    assert run_directory.read_config(tmp_path)["black_box"] == {"budget": None}
