"""The reproduced experiments: figures against numpy and scikit-learn, the paper's beside ours, the command."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import commands
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from nets import weighted
from PIL import Image
from scipy.special import expit
from shared_data import shared_data
from sklearn.linear_model import LogisticRegression

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.linear import optimum
from epsball.reproduce.goodfellow2015 import EXPERIMENTS, chosen
from epsball.reproduce.plots.draw import draw
from epsball.reproduce.sources import Source, cifar10, mnist
from epsball.reproduce.threes_sevens import LogisticModel, ThreesSevens, threes_sevens


def moved(data: Examples, lo: float, hi: float) -> Examples:
    """The same pictures in another box."""
    return replace(data, x=lo + (hi - lo) * data.x, lo=lo, hi=hi)


def pair(data: Examples) -> tuple[np.ndarray, np.ndarray]:
    rows = (data.y == 3) | (data.y == 7)
    return data.x[rows].flatten(1).double().numpy(), data.y[rows].numpy()


@pytest.fixture(scope="module")
def digits() -> Source:
    return mnist("digits")


@pytest.fixture(scope="module")
def found(digits: Source) -> ThreesSevens:
    return threes_sevens(digits)


def score(model: LogisticModel, x: np.ndarray) -> np.ndarray:
    return x @ np.array(model.weight) + model.bias


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 2.0), (0.25, 0.75)])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25])
def test_error_is_that_of_the_least_margin(digits: Source, eps: float, box: tuple[float, float]):
    source = Source(moved(digits.train, *box), moved(digits.test, *box), stands_in=True)
    result = threes_sevens(source, eps=eps, radii=(0.2,), images=1)
    x, y = pair(source.test)
    side = np.where(y == 7, 1.0, -1.0)
    for model in result.models:
        w = np.array(model.weight)
        margin = side * score(model, x)
        # How much each pixel can change in the direction that lowers the margin.
        room = np.where(-side[:, None] * w > 0, box[1] - x, x - box[0])
        least = {
            "clean": margin,
            "free": margin - eps * np.abs(w).sum(),
            "boxed": margin - (np.minimum(eps, room) * np.abs(w)).sum(1),
        }
        for name, values in least.items():
            assert np.abs(values).min() > 1e-9
            assert getattr(model, name).error == (values < 0).mean()
            confidences = expit(-values[values < 0])
            confidence = getattr(model, name).confidence
            assert confidence == (None if not len(confidences) else pytest.approx(confidences.mean(), rel=1e-9))
        assert model.clean.error <= model.boxed.error <= model.free.error
    assert result.config["box"] == list(box)


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 2.0)])
def test_shown_adversarial_examples_are_those_of_fgsm_and_the_exact_optimum(digits: Source, box: tuple[float, float]):
    source = Source(moved(digits.train, *box), moved(digits.test, *box), stands_in=True)
    result = threes_sevens(source, radii=(), images=3)
    model = result.models[0]
    assert [shown.label for shown in result.shown] == [3, 3, 3, 7, 7, 7]
    labels, weight = source.test.y.tolist(), torch.tensor(model.weight, dtype=torch.float64)
    for label in (3, 7):
        rows = [row for row, there in enumerate(labels) if there == label][:3]
        ids = [shown.id for shown in result.shown if shown.label == label]
        assert ids == source.test.ids[rows].tolist()
    for shown in result.shown:
        x = torch.tensor([shown.x], dtype=torch.float64)
        assert torch.equal(x[0], source.test.x[source.test.ids == shown.id].double().flatten())
        y = torch.tensor([int(shown.label == 7)])
        for ball in (eb.Linf(eps=0.25), eb.Linf(eps=0.25, lo=box[0], hi=box[1])):
            worst = result.worst(shown, boxed=ball.lo == box[0])
            fgsm = eb.FGSM()(weighted(weight, model.bias), x, y, ball)[0]
            best = optimum(weight, model.bias, x, y, ball).x_adv[0]
            assert np.allclose(worst, fgsm, rtol=0, atol=1e-15)
            assert np.allclose(worst, best, rtol=0, atol=1e-15)


def test_the_plain_model_is_scikit_learns_default(digits: Source, found: ThreesSevens):
    X, y = pair(digits.train)
    Xt, yt = pair(digits.test)
    theirs = LogisticRegression(tol=1e-10, max_iter=10000).fit(X, y)
    plain = found.models[0]
    assert np.abs(np.array(plain.weight) - theirs.coef_[0]).max() < 1e-3
    assert plain.clean.error == pytest.approx(1 - theirs.score(Xt, yt), abs=1e-12)
    assert "penalty='l2'" in plain.recipe
    assert "C=1.0" in plain.recipe or "C=" not in plain.recipe


def test_adversarial_training_lowers_error_under_attack_and_raises_clean_error(found: ThreesSevens):
    plain, free, *against = found.models
    assert [model.eps for model in against] == [0.25, 0.1]
    assert against[0].free.error < 0.2 < 0.9 < min(plain.free.error, free.free.error)
    assert against[0].clean.error > plain.clean.error
    assert against[0].nonzero < plain.nonzero
    assert all(model.gap < 1e-6 for model in found.models)


def test_a_radius_at_which_no_weight_is_left_is_reported(digits: Source):
    result = threes_sevens(digits, radii=(5.0,), images=1)
    blind = result.models[-1]
    _, y = pair(digits.test)
    assert blind.nonzero == 0
    assert blind.clean.error == blind.free.error == min((y == 3).mean(), (y == 7).mean())
    assert any("no weight is left" in note and f"{result.config['eps_max']:.3g}" in note for note in result.notes)
    assert not any("no weight is left" in note for note in threes_sevens(digits, radii=(), images=1).notes)


def test_models_without_a_minimum_are_named(digits: Source, found: ThreesSevens):
    (note,) = [note for note in found.notes if "grow without end" in note]
    X, y = pair(digits.train)
    side = np.where(y == 7, 1.0, -1.0)
    for model in found.models:
        w = np.array(model.weight)
        separated = bool((side * score(model, X) > model.eps * np.abs(w).sum()).all()) and "weak L2" not in model.name
        assert (model.name in note) == separated


def test_the_papers_figures_are_beside_ours(digits: Source, found: ThreesSevens):
    assert [line.label for line in found.lines] == [model.name for model in found.models]
    assert [line.paper for line in found.lines] == [(1.6, 99.0, None, None), None, None, None]
    for line, model in zip(found.lines, found.models, strict=True):
        assert line.ours is not None
        assert len(line.ours) == len(found.columns)
        assert line.ours[:3] == tuple(100 * part.error for part in (model.clean, model.free, model.boxed))
    other = threes_sevens(digits, eps=0.1, radii=(), images=1).lines[0]
    assert other.paper == (1.6, None, None, None)  # the paper has none there
    assert found.summary()["paper"] == {"clean": 0.016, "free": 0.99, "eps": 0.25}


def test_digits_are_reported_as_a_stand_in_for_mnist(found: ThreesSevens, digits: Source):
    assert found.config["stands_in"]
    assert "digits stand in for MNIST" in found.notes[0]
    real = threes_sevens(replace(digits, stands_in=False), radii=(), images=1)
    assert not any("stand in" in note for note in real.notes)


def test_the_record_survives_json(found: ThreesSevens):
    again = ThreesSevens.from_json(found.to_json())
    assert again == found
    assert found.config["versions"]["epsball"] == eb.__version__
    assert "weight" not in found.summary()["models"][0]
    assert "x" not in found.summary()["shown"][0]


@pytest.mark.parametrize("images", [1, 4])
def test_the_figure_is_a_picture(tmp_path: Path, digits: Source, images: int):
    draw(threes_sevens(digits, radii=(5.0,), images=images), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_progress_is_reported_to_the_end(digits: Source):
    reports: list[tuple[int, int, str]] = []
    threes_sevens(digits, radii=(0.25,), images=1, on_progress=lambda *parts: reports.append(parts))
    assert [parts[:2] for parts in reports] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert reports[0][2] == "plain, weak L2 (C = 1)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, "`eps` must be >= 0"),
        ({"eps": math.inf}, "`eps` must be >= 0 and finite"),
        ({"C": 0}, "`C` must be > 0"),
        ({"radii": (0.1, 0.0)}, "`radii` must be > 0"),
        ({"images": 0}, "`images` must be a whole number >= 1"),
    ],
)
def test_a_bad_argument_is_named(digits: Source, options: dict, message: str):
    with pytest.raises(BadInput, match=message):
        threes_sevens(digits, **options)


def test_bad_data_are_named(digits: Source):
    few = digits.test.rows(digits.test.y != 7)
    flat = replace(digits.test, x=digits.test.x.flatten(1))
    endless = replace(digits.test, lo=-math.inf)
    for test, message in ((few, "threes and sevens in test"), (flat, "must have images"), (endless, "finite box")):
        with pytest.raises(BadInput, match=message):
            threes_sevens(replace(digits, test=test))


def test_experiments_are_chosen_by_name_and_an_unknown_one_is_refused():
    assert chosen() == tuple(EXPERIMENTS)
    assert chosen(["threes-sevens", "threes-sevens"]) == ("threes-sevens",)
    with pytest.raises(BadInput, match="did you mean 'threes-sevens'"):
        chosen(["threes-sevens", "three-sevens"])


def small_mnist(folder: Path) -> Path:
    """A folder laid out as ../shared/data/mnist, of scikit-learn's digits in 8-bit PNG."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        data, pictures = load_data("digits", split=split), []
        for x in data.x:
            file = io.BytesIO()
            Image.fromarray((255 * x[0]).round().byte().numpy()).save(file, "PNG")
            pictures.append({"bytes": file.getvalue(), "path": None})
        columns = {"image": pa.array(pictures, kind), "label": pa.array(data.y.tolist())}
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_data_are_found_in_the_folder_of_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EPSBALL_DATA", str(tmp_path))
    assert mnist().stands_in  # the folder is not there yet
    folder = small_mnist(tmp_path / "mnist")
    source = mnist()
    assert (source.stands_in, source.test.name, len(source.test)) == (False, str(folder), 360)
    assert not mnist(folder).stands_in
    assert mnist("digits").stands_in
    monkeypatch.delenv("EPSBALL_DATA")
    assert mnist().stands_in
    assert cifar10() is None
    images = cifar10(folder)  # any folder of images
    assert images is not None
    assert len(images.test) == 360
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8)), y=[3, 7])
    with pytest.raises(BadInput, match="must have the splits"):
        mnist(tmp_path / "a.npz")


@pytest.mark.nightly
def test_mnist_gives_the_papers_figures():
    result = threes_sevens(mnist(shared_data("mnist")), radii=(0.25,))
    plain, _, robust = result.models
    assert (result.config["train_rows"], result.config["test_rows"]) == (12396, 2038)
    # arXiv:1412.6572, section 5 and figure 2: 1.6 % and 99 %.
    assert round(100 * plain.clean.error, 1) == 1.6
    assert plain.free.error >= 0.99
    assert plain.boxed.error >= 0.99
    assert robust.free.error < 0.2


ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
ENV.pop("EPSBALL_DATA", None)


def run(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("EPSBALL_DATA", raising=False)
        for name, value in more.items():
            patched.setenv(name, value)
        return commands.run("reproduce", *arguments, cwd=cwd)


def test_the_command_prints_its_figures_within_80_columns(tmp_path: Path, found: ThreesSevens):
    done = run("goodfellow2015", "--only", "threes-sevens", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    folder = tmp_path / "goodfellow2015"
    names = ["index.html", "threes-sevens.json", "threes-sevens.png"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert ThreesSevens.from_json((folder / "threes-sevens.json").read_text()) == found
    (paper,) = [line for line in done.stdout.splitlines() if line.startswith("  the paper")]
    assert paper.split()[2:] == ["1.6", "99", "-", "-"]
    for model in found.models:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{model.name}  ")]
        assert f"{100 * model.free.error:.2f}" in line.split()
    assert "digits stand in for MNIST" in done.stdout


def test_mnist_in_a_folder_is_used_and_json_is_alone_on_stdout(tmp_path: Path):
    folder = small_mnist(tmp_path / "data" / "mnist")
    options = ["goodfellow2015", "--only", "threes-sevens", "--json"]
    for more, env in (
        (["--data", str(folder), "--out", "a"], {}),
        (["--out", "a"], {"EPSBALL_DATA": str(folder.parent)}),
    ):
        done = run(*options, *more, cwd=tmp_path, **env)
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)["experiments"]["threes-sevens"]
        assert (printed["config"]["data"], printed["config"]["stands_in"]) == (str(folder), False)
        assert (tmp_path / "a" / "threes-sevens.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["goodfellow2015", "--only", "threes-seven"], "did you mean 'threes-sevens'"),
        (["goodfellow2015", "--data", "digitz"], "did you mean 'digits'"),
        (["goodfellow2015", "--data", "table.npz"], "must have the splits train and test"),
        (["goodfelow2015"], "goodfellow2015"),
    ],
)
def test_bad_usage_exits_with_2_and_a_message(arguments: list[str], message: str, tmp_path: Path):
    np.savez(tmp_path / "table.npz", x=np.eye(4, dtype=np.float32), y=np.arange(4) % 2)
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "goodfellow2015").exists()


def test_help_is_80_columns_wide_and_imports_no_torch():
    for arguments in (["reproduce", "--help"], ["reproduce", "goodfellow2015", "--help"], ["explain", "l1", "--help"]):
        code = f"import sys; from epsball.cli.main import run; run({arguments!r}); assert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=False)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
