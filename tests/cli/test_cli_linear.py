"""`epsball linear` on tables, end to end; files that were tampered with; worst inputs against brute force."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import skops.io
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import LinearSVC

from epsball.cli import main as cli
from epsball.common import atomic_files
from epsball.common.errors import BadInput
from epsball.data.tables import Table, read_table, write_table
from epsball.linear import RobustLinearSVC, RobustLogisticRegression, RobustRegressor, eps_max
from epsball.linear.storage import load, save
from epsball.linear.table_attack import attack_table
from epsball.linear.table_config import AttackConfig, FitConfig, Radius
from epsball.linear.table_fit import fit_table, split

NAMES = ("width", "petal, length", "colour=[red]")


@dataclass
class Run:
    code: int
    out: str
    err: str


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run `epsball linear` in `tmp_path`, in a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Run:
        with warnings.catch_warnings():  # the command line takes over how warnings are shown
            warnings.simplefilter("default")
            code = cli.run(["linear", *arguments])
        text = capsys.readouterr()
        return Run(code, text.out, text.err)

    return run


def made(n: int = 90, classes: int = 3, seed: int = 0) -> Table:
    """Rows around their classes' means, columns of different scales, none around zero."""
    generator = np.random.default_rng(seed)
    index = np.arange(n) % classes
    means = np.array([[0.0, 1, 2], [1, 0, -1], [-1, -2, 0]])[:classes]
    x = (means[index] + 1.1 * generator.standard_normal((n, 3))) * [1, 30, 0.2] + [5, -40, 1]
    return Table(x, np.array(["ash", "beech", "cedar"])[index], NAMES, "tree", "made")


def written(table: Table, name: str) -> str:
    """Write the table to a file; its name."""
    write_table(name, dict(zip(table.features, table.x.T, strict=True)) | {table.target: table.y})
    return name


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("classes", [2, 3])
def test_fit_then_attack_equal_the_library(linear: Any, ending: str, classes: int, tmp_path: Path):
    table = made(classes=classes)
    data = written(table, f"trees.{ending}")
    done = linear("fit", "--data", data, "--target", "tree", "--eps", "0.2std", "--out", "m.skops", "--json")
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out)
    train, test = split(table.y, 0.2, 0, labels=True)
    x, y = table.x[train], table.y[train]
    direct = RobustLogisticRegression(eps=0.2 * x.std(0)).fit(x, y)
    np.testing.assert_array_equal(printed["coef"], direct.coef_)
    assert printed["held_out"] == {
        "rows": len(test),
        "accuracy": direct.score(table.x[test], table.y[test]),
        "worst_accuracy": direct.robust_score(table.x[test], table.y[test]),
    }
    assert printed["eps_max"] == pytest.approx(eps_max(x, y, scale=x.std(0)), rel=1e-12)
    assert 0 <= printed["gap"] <= 1e-6 * np.log(classes) * 1.01
    back = load(tmp_path / "m.skops")
    assert isinstance(back, RobustLogisticRegression)
    np.testing.assert_array_equal(back.coef_, direct.coef_)
    assert tuple(back.feature_names_in_) == NAMES

    # The columns come in another order, with others between them.
    shuffled = {name: table.x[:, j] for j, name in reversed(list(enumerate(NAMES)))}
    write_table("other.csv", {"note": ["a"] * len(table), **shuffled, "tree": table.y})
    done = linear("attack", "--model", "m.skops", "--data", "other.csv", "--target", "tree", "--json")
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out)
    assert printed["clean_accuracy"] == direct.score(table.x, table.y)
    assert printed["accuracy"] == direct.robust_score(table.x, table.y)
    rows = pq.read_table("adversarial.parquet").to_pydict()
    assert rows["id"] == list(range(len(table)))
    x_adv = np.stack([rows[name] for name in NAMES], 1)
    assert (np.abs(x_adv - table.x) <= direct.eps * (1 + 1e-12) + 1e-13).all()
    assert rows["adversarial_prediction"] == direct.predict(x_adv).tolist()
    assert rows["prediction"] == direct.predict(table.x).tolist()
    assert rows["label"] == table.y.tolist()
    assert (
        sum(rows["fooled"])
        == printed["fooled"]
        == round((printed["clean_accuracy"] - printed["accuracy"]) * len(table))
    )
    right = np.array(rows["prediction"]) == np.array(rows["label"])
    assert printed["median_minimal_eps"] == np.median(np.array(rows["minimal_eps"])[right])


def corners(table: Table, unit: np.ndarray, eps: float, lo: float, hi: float, fixed: tuple[int, ...]) -> np.ndarray:
    """(8, n, d): the corners of ball and box around each row."""
    reach = np.where(np.isin(np.arange(3), fixed), 0, eps * unit)
    ends = [np.clip(table.x - reach, lo, hi), np.clip(table.x + reach, lo, hi)]
    return np.stack(
        [np.stack([ends[s][:, j] for j, s in enumerate(which)], 1) for which in itertools.product((0, 1), repeat=3)]
    )


def margins(model: Any, points: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The score of the label less the best other one."""
    scores = model.decision_function(points)
    scores = np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores
    own = np.searchsorted(model.classes_, y)
    rows = np.arange(len(y))
    left = scores[rows, own]
    scores[rows, own] = -np.inf
    return left - scores.max(1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("per_std", [False, True])
@pytest.mark.parametrize("box", [(-np.inf, np.inf), (-160.0, 76.0)])
@pytest.mark.parametrize("fixed", [(), (1,)])
def test_no_corner_of_ball_and_box_is_worse_than_the_worst_input(
    classes: int, per_std: bool, box: tuple[float, float], fixed: tuple[int, ...]
):
    table, radius = made(classes=classes, seed=3), Radius(0.45, per_std)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(table.x, table.y)
    names = [NAMES[j] for j in fixed]
    eps = f"{radius.value}std" if per_std else f"{radius.value}"
    found = attack_table(model, table, AttackConfig(eps=eps, lo=box[0], hi=box[1], fixed=tuple(names)))
    unit = radius.unit(table.x)

    def worst(eps: float) -> np.ndarray:
        return np.min([margins(model, part, table.y) for part in corners(table, unit, eps, *box, fixed)], axis=0)

    np.testing.assert_allclose(found.adversarial_margin, worst(radius.value), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(margins(model, found.x_adv, table.y), worst(radius.value), rtol=1e-9, atol=1e-9)
    assert (found.x_adv >= box[0]).all()
    assert (found.x_adv <= box[1]).all()
    assert (np.abs(found.x_adv - table.x) <= radius.value * unit * (1 + 1e-12) + 1e-12).all()
    assert (found.x_adv[:, list(fixed)] == table.x[:, list(fixed)]).all()
    least = found.minimal_eps
    for i in np.flatnonzero(np.isfinite(least) & (least > 0)):
        assert worst(least[i] * (1 + 1e-7))[i] < 0
        assert worst(least[i] * (1 - 1e-7))[i] > 0
    assert (margins(model, table.x, table.y)[least == 0] <= 0).all()
    assert (worst(1e6)[np.isinf(least)] >= 0).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_radius_per_feature_is_trained_for_in_other_norms(norm: str):
    table = made(classes=2)
    model = RobustLogisticRegression(eps=0.1 * table.x.std(0), norm=norm).fit(table.x, table.y)
    found = attack_table(model, table, AttackConfig())
    assert float((found.adversarial_prediction == found.y).mean()) == model.robust_score(table.x, table.y)
    scaled = (found.x_adv - table.x) / model.eps
    sizes = np.linalg.norm(scaled, ord={"l2": 2, "l1": 1}[norm], axis=1)
    np.testing.assert_allclose(sizes, 1, rtol=1e-9)
    assert (found.unit, found.eps) == ("trained", 1.0)


def test_an_attack_toward_a_label_raises_its_share_of_predictions(linear: Any):
    written(made(), "t.csv")
    assert linear("fit", "--data", "t.csv", "--target", "tree", "--out", "m.skops").code == 0
    options = ["--model", "m.skops", "--data", "t.csv", "--target", "tree", "--toward", "cedar", "--eps", "1.5std"]
    done = linear("attack", *options, "--out", "o.csv", "--limit", "40")
    assert (done.code, done.err) == (0, "")
    rows = pyarrow.csv.read_csv("o.csv").to_pydict()
    assert len(rows["id"]) == 40
    before, after = (np.array(rows[name]) == "cedar" for name in ("prediction", "adversarial_prediction"))
    assert after.mean() > before.mean() + 0.2
    assert f"predicted as cedar: {before.mean():.2%} before, {after.mean():.2%} after" in done.out
    assert rows["fooled"] == (after & ~before).tolist()


def test_output_fits_80_columns_and_json_is_alone_on_stdout(linear: Any):
    long = Table(made().x, made().y, ("a" * 70, "b [bold]c[/]", "c"), "tree", "")
    written(long, "t.csv")
    out = ["--out", "m.skops"]
    for arguments in (
        ["fit", *out],
        ["attack", "--model", "m.skops", "--eps", "0.5std"],
        ["path", "--radii", "5", "--out", "p.csv", "p.json", "p.png"],
        ["fit", "--cv", "--loss", "logistic"],
        ["fit", "--loss", "hinge", "--norm", "l2", "--test-share", "0"],
        ["fit", "--eps", "5std"],
    ):
        done = linear(*arguments, "--data", "t.csv", "--target", "tree")
        assert (done.code, done.err) == (0, "")
        # Lines with names of files may be longer; everything else fits.
        assert max(map(len, done.out.splitlines())) <= 80, done.out
    assert "weights on 0 of 3 features; all are zero from eps" in done.out
    assert "b [bold]c[/]" in linear("fit", "--data", "t.csv", "--target", "tree").out
    for arguments in (["fit"], ["attack", "--model", "m.skops"], ["path", "--radii", "3"]):
        done = linear(*arguments, "--data", "t.csv", "--target", "tree", "--json")
        assert json.loads(done.out)
        assert done.err == ""


def test_a_path_equals_the_librarys_and_its_files_agree(linear: Any):
    table = made(classes=3)
    written(table, "t.csv")
    done = linear(
        "path",
        "--data",
        "t.csv",
        "--target",
        "tree",
        "--radii",
        "4",
        "--ratio",
        "0.1",
        "--out",
        "p.csv",
        "p.json",
        "p.png",
    )
    assert (done.code, done.err) == (0, "")
    rows = pyarrow.csv.read_csv("p.csv").to_pydict()
    top = eps_max(table.x, table.y, scale=table.x.std(0))
    np.testing.assert_allclose(rows["eps"], np.geomspace(top, top / 10, 4), rtol=1e-12)
    assert rows["nonzero"][0] == 0
    for place, eps in enumerate(rows["eps"]):
        coef = np.array(
            [[rows[f"weight:{label}:{name}"][place] for name in NAMES] for label in ("ash", "beech", "cedar")]
        )
        model = RobustLogisticRegression().fit(table.x, table.y).set_params(eps=eps * table.x.std(0))
        model.coef_, model.intercept_ = coef, np.array([rows[f"intercept:{label}"][place] for label in model.classes_])
        assert rows["worst_accuracy"][place] == model.robust_score(table.x, table.y)
        assert rows["worst_loss"][place] == pytest.approx(model.worst_loss(table.x, table.y), rel=1e-12)
        assert rows["clean_loss"][place] == pytest.approx(model.worst_loss(table.x, table.y, 0.0), rel=1e-12)
    listed = json.loads(Path("p.json").read_text())["path"]
    assert {name: [row[name] for row in listed] for name in rows} == rows
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_a_target_with_fractions_is_a_regression(linear: Any):
    table = made()
    y = table.x @ [1.0, 0.1, -2.0] + np.random.default_rng(1).standard_normal(len(table))
    written(Table(table.x, y, NAMES, "height", ""), "t.parquet")
    done = linear("fit", "--data", "t.parquet", "--target", "height", "--json", "--test-share", "0", "--eps", "0.05")
    printed = json.loads(done.out)
    model = RobustRegressor(eps=0.05).fit(table.x, y)
    np.testing.assert_array_equal(printed["coef"], [model.coef_])
    assert printed["fitted"]["worst_rmse"] == pytest.approx(np.sqrt(model.worst_loss(table.x, y)), rel=1e-12)
    assert printed["held_out"] is None
    refused = linear("fit", "--data", "t.parquet", "--target", "height", "--loss", "logistic")
    assert refused.code == 2
    assert "`--target` must be labels for --loss logistic" in refused.err
    assert linear("path", "--data", "t.parquet", "--target", "height", "--radii", "3", "--out", "p.png").code == 0
    assert linear("fit", "--data", "t.parquet", "--target", "height", "--out", "r.skops").code == 0
    refused = linear("attack", "--model", "r.skops", "--data", "t.parquet", "--target", "height")
    assert refused.code == 2
    assert "must be a classifier, got RobustRegressor" in refused.err


@pytest.mark.parametrize("y", [np.arange(60) % 2, (np.arange(60) % 2).astype(bool), (np.arange(60) % 2).astype(float)])
def test_labels_that_are_not_text_are_supported(y: np.ndarray, linear: Any):
    x = made(60).x + 20 * y.astype(float)[:, None] * [1, 0, 0]
    written(Table(x, y, NAMES, "y", ""), "t.parquet")
    loss = ["--loss", "hinge"] if y.dtype.kind == "f" else []
    assert linear("fit", "--data", "t.parquet", "--target", "y", "--out", "m.skops", *loss).code == 0
    done = linear("attack", "--model", "m.skops", "--data", "t.parquet", "--target", "y", "--json")
    assert json.loads(done.out)["clean_accuracy"] == 1
    model = load("m.skops")
    assert isinstance(model, RobustLinearSVC if loss else RobustLogisticRegression)
    toward = str(model.classes_[1])
    assert linear("attack", "--model", "m.skops", "--data", "t.parquet", "--target", "y", "--toward", toward).code == 0


def test_a_constant_column_gets_no_weight(linear: Any):
    table = made()
    x = np.concatenate([table.x, np.full((len(table), 1), 0.1)], 1)
    written(Table(x, table.y, (*NAMES, "same"), "tree", ""), "t.csv")
    for eps in ("0.1std", "0.01"):
        done = linear("fit", "--data", "t.csv", "--target", "tree", "--eps", eps, "--json", "--out", "m.skops")
        assert (done.code, done.err) == (0, "")
        printed = json.loads(done.out)
        assert printed["constant"] == ["same"]
        assert np.all(np.array(printed["coef"])[:, 3] == 0)
    without = json.loads(linear("fit", "--data", "t.csv", "--target", "tree", "--drop", "same", "--json").out)
    with_it = json.loads(linear("fit", "--data", "t.csv", "--target", "tree", "--json").out)
    np.testing.assert_allclose(with_it["objective"], without["objective"], rtol=1e-5)
    done = linear("attack", "--model", "m.skops", "--data", "t.csv", "--target", "tree", "--eps", "0.1std")
    assert (done.code, done.err) == (0, "")
    assert linear("path", "--data", "t.csv", "--target", "tree", "--radii", "3").code == 0


def test_one_row_is_fitted_and_attacked_or_refused_by_name(linear: Any):
    Path("one.csv").write_text("a,b,y\n1,2,0\n")
    done = linear("fit", "--data", "one.csv", "--target", "y")
    assert done.code == 2
    assert "at least two classes, but 'y' is 0 in every row" in done.err
    assert linear("fit", "--data", "one.csv", "--target", "y", "--loss", "squared").code == 0
    written(made(), "t.csv")
    linear("fit", "--data", "t.csv", "--target", "tree", "--out", "m.skops")
    done = linear("attack", "--model", "m.skops", "--data", "t.csv", "--target", "tree", "--limit", "1")
    assert (done.code, done.err) == (0, "")
    done = linear(
        "attack", "--model", "m.skops", "--data", "t.csv", "--target", "tree", "--limit", "1", "--eps", "1std"
    )
    assert done.code == 0


def test_a_rare_class_keeps_a_fitted_row():
    y = np.array(["a"] * 50 + ["b"] * 2 + ["c"])
    for seed in range(20):
        train, test = split(y, 0.5, seed, labels=True)
        assert set(y[train]) == {"a", "b", "c"}
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(53))
        assert (y[test] == "a").sum() == 25
    assert not np.array_equal(split(y, 0.5, 0, labels=True)[1], split(y, 0.5, 1, labels=True)[1])
    np.testing.assert_array_equal(split(y, 0.3, 5, labels=True)[1], split(y, 0.3, 5, labels=True)[1])
    assert len(split(y, 0.0, 0, labels=True)[1]) == 0


def test_the_radius_chosen_by_cross_validation_is_the_best_of_those_tried():
    table = made(classes=2)
    found = fit_table(table, FitConfig(eps="0.3std", cv=True))
    best = max(score for _, score in found.scores)
    assert found.radius == Radius(max(eps for eps, score in found.scores if score == best), True)
    unit = found.radius.unit(table.x[split(table.y, 0.2, 0, labels=True)[0]])
    np.testing.assert_allclose(found.model.eps, found.radius.value * unit, rtol=1e-12)
    train, test = split(table.y, 0.2, 0, labels=True)
    assert found.fitted.worst == found.model.robust_score(table.x[train], table.y[train], 0.3 * unit)
    assert found.held_out is not None
    assert found.held_out.worst == found.model.robust_score(table.x[test], table.y[test], 0.3 * unit)
    assert found.summary()["attack"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--target", "tere"], "did you mean 'tree'"),
        (["fit", "--target", "tree", "--eps", "0.1sd"], "`--eps` must be a number or a fraction"),
        (["fit", "--target", "tree", "--eps=-1std"], "`--eps` must be >= 0 and finite"),
        (["fit", "--target", "tree", "--norm", "l0"], "`--norm` must be one of linf, l2, l1"),
        (["fit", "--target", "tree", "--loss", "hing"], "did you mean 'hinge'"),
        (["fit", "--target", "tree", "--loss", "squared"], "must be numbers for --loss squared"),
        (["fit", "--target", "tree", "--test-share", "1"], "`--test-share` must be in [0, 1)"),
        (["fit", "--target", "tree", "--out", "m.pkl"], "must end in .skops"),
        (["fit", "--target", "tree", "--cv", "--loss", "hinge"], "`--cv` must go with --loss logistic"),
        (["fit", "--target", "row", "--drop", "tree"], "at most 100 classes, but 'row' has 120"),
        (["fit", "--target", "tree", "--C", "0"], "`--C` must be a number > 0"),
        (["path", "--target", "tree", "--unit", "standard"], "`--unit` must be one of std, raw"),
        (["path", "--target", "tree", "--out", "p.pdf"], "`--out` must be one of .csv"),
        (["path", "--target", "tree", "--radii", "0"], "`--radii` must be a whole number >= 1"),
        (["attack", "--target", "tree", "--model", "none.skops"], "there is no 'none.skops'"),
        (["attack", "--target", "tree", "--model", "m.skops", "--toward", "beach"], "did you mean 'beech'"),
        (["attack", "--target", "tree", "--model", "m.skops", "--fixed", "widht"], "did you mean 'width'"),
        (["attack", "--target", "tree", "--model", "m.skops", "--norm", "l2"], "`--eps` must be given for norm 'l2'"),
        (["attack", "--target", "tree", "--model", "m.skops", "--lo", "0"], "but 'width' goes from"),
        (["attack", "--target", "row", "--model", "m.skops"], "labels of the model, 'ash', 'beech', 'cedar'"),
        (["attack", "--target", "tree", "--model", "m.skops", "--out", "o.xlsx"], "`--out` must be one of .parquet"),
        (["attack", "--target", "tree", "--model", "m.skops", "--norm", "l0", "--eps", "1"], "finite in L0"),
        (["fti"], '"fit"'),
    ],
)
def test_bad_usage_exits_with_2_and_one_line(arguments: list[str], message: str, linear: Any):
    table = made(120)
    write_table("t.csv", dict(zip(NAMES, table.x.T, strict=True)) | {"tree": table.y, "row": np.arange(120)})
    model = RobustLogisticRegression().fit(table.x, table.y)
    save(model, "m.skops", features=NAMES)
    before = sorted(os.listdir())
    done = linear(*arguments, *(["--data", "t.csv"] if len(arguments) > 1 else []))
    assert done.code == 2, done.err
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert sorted(os.listdir()) == before


def test_a_toml_file_gives_the_options_left_out(linear: Any):
    written(made(), "t.csv")
    Path("c.toml").write_text('data = "t.csv"\ntarget = "tree"\ntest-share = 0.5\nnorm = "l1"\n')
    given = json.loads(linear("fit", "--config", "c.toml", "--norm", "l2", "--json").out)
    assert (given["norm"], given["fitted"]["rows"], given["target"]) == ("l2", 45, "tree")


def test_a_missing_column_of_the_model_is_named(linear: Any):
    table = made()
    written(table, "t.csv")
    linear("fit", "--data", "t.csv", "--target", "tree", "--out", "m.skops")
    written(Table(table.x[:, :2], table.y, NAMES[:2], "tree", ""), "less.csv")
    done = linear("attack", "--model", "m.skops", "--data", "less.csv", "--target", "tree")
    assert done.code == 2
    assert "lacks 'colour=[red]'" in done.err


def test_a_feature_named_like_a_column_of_the_result_keeps_its_name(tmp_path: Path):
    table = made()
    model = RobustLogisticRegression().fit(table.x, table.y)
    renamed = Table(table.x, table.y, ("id", "label", "id_"), "tree", "")
    attack_table(model, renamed, AttackConfig()).save(tmp_path / "o.parquet")
    saved = pq.read_table(tmp_path / "o.parquet").to_pydict()
    assert list(saved)[:2] == ["id__", "label_"]
    assert list(saved)[-3:] == ["id", "label", "id_"]
    assert saved["id__"] == list(range(len(table)))
    assert saved["label_"] == table.y.tolist()


# Files of models


FOREIGN = {
    "forest": RandomForestClassifier(2, max_depth=2, random_state=0),
    "search": make_pipeline(StandardScaler(), PolynomialFeatures(), LogisticRegression()),
    "cluster": KMeans(2, n_init=1, random_state=0),
}


@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(solver="newton-cholesky"),
        LinearSVC(random_state=0),
        SGDClassifier(random_state=0),
        make_pipeline(StandardScaler(), SelectKBest(k=2), LogisticRegression()),
        RobustLinearSVC(eps=0.1, norm="l2", class_weight={"ash": 2.0, "beech": 1.0, "cedar": 1.0}),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_saved_model_is_loaded_equal(model: Any, tmp_path: Path):
    table = made()
    model.fit(table.x, table.y)
    save(model, tmp_path / "m.skops")
    back: Any = load(tmp_path / "m.skops")
    assert type(back) is type(model)
    np.testing.assert_array_equal(back.decision_function(table.x), model.decision_function(table.x))
    found = attack_table(back, table, AttackConfig(eps="0.1std"))
    assert [found.classes[k] for k in found.prediction] == model.predict(table.x).tolist()


def test_saving_leaves_the_callers_model_unchanged(tmp_path: Path):
    table = made()
    model = RobustLogisticRegression().fit(table.x, table.y)
    known = dict(vars(model))
    save(model, tmp_path / "m.skops", features=NAMES)
    assert vars(model) == known


@pytest.mark.parametrize(
    ("kind", "named"), [("forest", "RandomForestClassifier"), ("search", "PolynomialFeatures"), ("cluster", "KMeans")]
)
def test_a_type_that_is_not_trusted_is_refused(kind: str, named: str, tmp_path: Path):
    table, path = made(), tmp_path / "m.skops"
    skops.io.dump(FOREIGN[kind].fit(table.x, table.y), path)
    with pytest.raises(BadInput, match=rf"{named}.*not trusted; nothing was loaded"):
        load(path)


class Touch:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_is_refused_and_never_unpickled(tmp_path: Path):
    trace, path = tmp_path / "trace", tmp_path / "m.skops"
    path.write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(BadInput, match="it is a pickle"):
        load(path)
    path.write_text("no model at all")
    with pytest.raises(BadInput, match="it is no skops file"):
        load(path)
    path.rename(tmp_path / "m.pkl")
    with pytest.raises(BadInput, match=r"must end in \.skops"):
        load(tmp_path / "m.pkl")
    assert not trace.exists()


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Change the members of a zip file; None leaves one out."""
    with zipfile.ZipFile(path) as file:
        members = {name: change(name, file.read(name)) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            if data is not None:
                file.writestr(name, data)


def schema(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def changed(name: str, data: bytes) -> bytes:
        if name != "schema.json":
            return data
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return changed


def arrays(make: Callable[[np.ndarray], Any]) -> Callable[[str, bytes], bytes]:
    def changed(name: str, data: bytes) -> bytes:
        if not name.endswith(".npy"):
            return data
        array = np.load(io.BytesIO(data))
        buffer = io.BytesIO()
        np.save(buffer, make(array) if array.ndim == 2 else array, allow_pickle=True)
        return buffer.getvalue()

    return changed


def test_a_file_that_was_tampered_with_is_refused_and_runs_no_code(tmp_path: Path):
    table, path, trace = made(), tmp_path / "m.skops", tmp_path / "trace"

    def hidden(state: dict[str, Any]) -> None:  # a function of the system deep inside, under an innocent attribute
        state["content"]["content"]["norm"] = {
            "__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "content": "x", "__id__": 1
        }  # fmt: skip

    def method(state: dict[str, Any]) -> None:
        state["content"]["content"]["norm"] = {
            "__class__": "RobustLogisticRegression",
            "__module__": "epsball.linear.logistic",
            "__loader__": "MethodNode",
            "content": {"func": "fit", "obj": state["content"]["content"]["norm"] | {"__id__": 1}},
        }

    def payload(array: np.ndarray) -> np.ndarray:
        return np.array([Touch(trace)], dtype=object)

    cases: list[tuple[Callable[[str, bytes], bytes | None], str]] = [
        (schema(hidden), "os.system, which is not trusted"),
        (schema(method), "cannot be read"),
        (schema(lambda state: state.update(__loader__="NoNode")), "cannot be read"),
        (schema(lambda state: state.update(__class__="system", __module__="os")), "os.system"),
        (schema(lambda state: state.pop("content") and None), "must be fitted"),
        (arrays(payload), "cannot be read"),
        (arrays(lambda array: array * np.nan), "finite weights"),
        (arrays(lambda array: array[:, :2]), "columns of the model"),
        (lambda name, data: None if name == "schema.json" else data, "cannot be read"),
        (lambda name, data: None if name.endswith(".npy") else data, "cannot be read"),
        (lambda name, data: data[:-40] if name == "schema.json" else data, "cannot be read"),
    ]
    for change, message in cases:
        save(RobustLogisticRegression().fit(table.x, table.y), path, features=NAMES)
        rewritten(path, change)
        with pytest.raises(BadInput, match=message):
            attack_table(load(path), table, AttackConfig())
    save(RobustLogisticRegression().fit(table.x, table.y), path)
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput):
            load(path)
    assert not trace.exists()


@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_an_interrupt_keeps_the_old_file_whole(moment: str, linear: Any, monkeypatch: pytest.MonkeyPatch):
    written(made(), "t.csv")
    table = ["--data", "t.csv", "--target", "tree"]
    commands = {
        "m.skops": ["fit", "--out", "m.skops", *table],
        "a.parquet": ["attack", "--model", "m.skops", "--out", "a.parquet", *table],
        "p.png": ["path", "--radii", "2", "--out", "p.png", *table],
        "p.csv": ["path", "--radii", "2", "--out", "p.csv", *table],
    }
    for arguments in commands.values():
        assert linear(*arguments).code == 0
    before = {name: Path(name).read_bytes() for name in sorted(os.listdir())}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, moment, interrupt)
        for arguments in commands.values():
            done = linear(*arguments)
            assert done.code == 130
            assert done.err.startswith("interrupted.")
    assert {name: Path(name).read_bytes() for name in sorted(os.listdir())} == before


def test_the_command_line_loads_heavy_libraries_only_when_needed():
    heavy = "{'torch', 'sklearn', 'scipy', 'pyarrow', 'skops', 'matplotlib', 'numpy'}"
    for code in ("import epsball.cli.main", "from epsball.cli.main import run; run(['linear', 'fit', '--help'])"):
        probe = f"import sys; {code}; found = {heavy} & set(sys.modules); assert not found, found"
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_command_runs_in_a_process_of_its_own(tmp_path: Path):
    path = tmp_path / "t.npz"
    table = made()
    np.savez(path, x=table.x, y=table.y)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "epsball", "linear", "fit", "--data", "t.npz", "--out", "m.skops"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data   t.npz: 90 rows, 3 features, target 'y'" in done.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.skops", "t.npz"]
    assert read_table(path).features == tuple(load(tmp_path / "m.skops").feature_names_in_)  # pyright: ignore
