"""The paper in one page: experiments other than training, computed by hand; the page, its numbers, the command."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commands
import numpy as np
import pytest
import torch
from browser import faint, nameless, overflows, visiting
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import epsball as eb
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.models.registry import build
from epsball.reproduce.along import Along
from epsball.reproduce.budget import Budget
from epsball.reproduce.cifar import DRAWS, NAME, UNSEEN
from epsball.reproduce.goodfellow2015 import EXPERIMENTS, PAPER, chosen, networks
from epsball.reproduce.nets import PAIR, PLAIN, Nets
from epsball.reproduce.page import side_by_side, write_page
from epsball.reproduce.plots.draw import draw
from epsball.reproduce.reproduction import Line, Missing, Reproduction, Strip, Tile
from epsball.reproduce.shallow import RBF, RECIPES, SOFTMAX, RadialBasis
from epsball.reproduce.sources import Source, mnist

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EPS = 0.25
NEW = ("shallow", "cifar", "along", "agreement", "ensemble", "rubbish")


def colourful(count: int, seed: int) -> Examples:
    """Small colour images of three classes, that differ in brightness."""
    drawn = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = 0.5 * torch.rand(count, 3, 8, 8, generator=drawn) + 0.2 * y[:, None, None, None]
    return from_arrays(x, y, lo=0, hi=1, name="drawn")


@pytest.fixture(scope="module")
def nets() -> Nets:
    """Small networks on digits, and on colour images."""
    budget = Budget(units=8, dropout=0, epochs=12, members=2, channels=2, cifar_epochs=4)
    return networks(mnist("digits"), Source(colourful(240, 0), colourful(60, 1), stands_in=False), budget)


@pytest.fixture(scope="module")
def found(nets: Nets) -> dict[str, Any]:
    """All experiments, on the same networks."""
    return {name: EXPERIMENTS[name](nets) for name in EXPERIMENTS}


def ours(found: Reproduction, wanted: str) -> tuple[float | None, ...]:
    (line,) = [line for line in found.lines if line.label == wanted]
    assert line.ours is not None
    return line.ours


def stepped(module: nn.Module, x: Tensor, y: Tensor, eps: float, loss: Any = F.cross_entropy) -> Tensor:
    """x + eps sign(grad J), by torch alone."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(module(leaf), y, reduction="sum"), leaf)
    return x + eps * grad.sign()


def binary(logits: Tensor, y: Tensor, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, logits.shape[1]).float(), reduction=reduction)


def errs(shares: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Error, and mean confidence in the mistakes, in percent."""
    confidences, predicted = shares.double().max(1)
    wrong = predicted != y
    return 100 * wrong.double().mean().item(), 100 * confidences[wrong].mean().item() if wrong.any() else None


def close(one: tuple[float | None, ...], other: tuple[float | None, ...]) -> bool:
    return all(a == b or (a is not None and b == pytest.approx(a, rel=1e-4)) for a, b in zip(one, other, strict=True))


def plain_of(nets: Nets) -> nn.Module:
    return nets.trained({PLAIN: PAIR[PLAIN]})[0][0].module


def test_errors_of_shallow_models_are_those_computed_by_hand(nets: Nets, found: dict[str, Any]):
    x, y = nets.source.test.x, nets.source.test.y
    softmax, radial = (net.module for net in nets.trained(RECIPES)[0])
    clean, clean_radial = softmax(x).softmax(1), radial(x).sigmoid()
    moved = softmax(stepped(softmax, x, y, EPS)).softmax(1)
    moved_radial = radial(stepped(radial, x, y, EPS, binary)).sigmoid()
    assert close((errs(clean, y)[0], *errs(moved, y)), ours(found["shallow"], SOFTMAX))
    assert close((errs(clean_radial, y)[0], *errs(moved_radial, y)), ours(found["shallow"], RBF))
    assert ours(found["shallow"], "maxout, plain") == ours(found["training"], "plain, 8 units")


def test_a_radial_unit_is_a_gaussian():
    drawn = torch.Generator().manual_seed(0)
    module = RadialBasis(torch.rand(4, 6, generator=drawn))
    with torch.no_grad():
        module.log_precision.normal_(generator=drawn)
        x = torch.rand(50, 2, 3, generator=drawn)
        distance = ((x.flatten(1)[:, None] - module.centres).square() * module.log_precision.exp()).sum(2)
        assert torch.allclose(module(x).sigmoid(), torch.exp(-distance), atol=1e-5)
        at_centre = module(module.centres.reshape(4, 2, 3))
    assert at_centre.isfinite().all()
    assert at_centre.argmax(1).tolist() == [0, 1, 2, 3]


def test_an_rbf_network_learns_and_is_not_confident_far_from_its_centres(nets: Nets):
    radial = nets.trained(RECIPES)[0][1].module
    x, y = nets.source.test.x, nets.source.test.y
    assert errs(radial(x).sigmoid(), y)[0] < 25
    assert radial(x + 10).sigmoid().max() < 1e-6


def test_agreement_is_that_counted_by_hand(nets: Nets, found: dict[str, Any]):
    x, y = nets.source.test.x, nets.source.test.y
    x_adv = stepped(plain_of(nets), x, y, EPS)
    theirs = plain_of(nets)(x_adv).argmax(1)
    wrong = theirs != y
    for net in nets.trained(RECIPES)[0]:
        own = net.module(x_adv).argmax(1)
        both = wrong & (own != y)
        same = (own == theirs).double()
        assert close(
            (100 * same[wrong].mean().item(), 100 * same[both].mean().item()), ours(found["agreement"], net.name)
        )


def test_an_ensemble_is_the_mean_of_its_members_probabilities(nets: Nets, found: dict[str, Any]):
    x, y = nets.source.test.x, nets.source.test.y
    members = [group[0].module for group in nets.trained({PLAIN: PAIR[PLAIN]}, seeds=range(2))]
    assert members[0] is plain_of(nets)
    assert not torch.equal(*(next(member.parameters()) for member in members))

    def together(x: Tensor) -> Tensor:
        return torch.stack([member(x).softmax(1) for member in members]).mean(0)

    def loss(shares: Tensor, y: Tensor, reduction: str) -> Tensor:
        return F.nll_loss(shares.log(), y, reduction=reduction)

    whole = errs(together(stepped(together, x, y, EPS, loss)), y)  # pyright: ignore[reportArgumentType]
    clean = errs(together(x), y)[0]
    assert close((clean, *whole), ours(found["ensemble"], "made on the ensemble"))
    each = [errs(together(stepped(member, x, y, EPS)), y) for member in members]
    assert close(
        (clean, np.mean([one[0] for one in each]), np.mean([one[1] for one in each])),
        ours(found["ensemble"], "made on one member"),
    )
    own = [errs(member(stepped(member, x, y, EPS)).softmax(1), y)[0] for member in members]
    assert ours(found["ensemble"], "one member alone, on its own examples")[1] == pytest.approx(np.mean(own))


def test_confidence_on_rubbish_inputs_is_that_computed_by_hand(nets: Nets, found: dict[str, Any]):
    index = torch.arange(10_000)
    noise = Noise(0, index, torch.zeros_like(index)).normal(nets.source.test.shape).float()
    radial = nets.trained(RECIPES)[0][1].module
    with torch.no_grad():
        for label, shares in (("maxout, plain", plain_of(nets)(noise).softmax(1)), (RBF, radial(noise).sigmoid())):
            largest = shares.amax(1).double()
            confident = largest > 0.5
            confidence = 100 * largest[confident].mean().item() if confident.any() else None
            assert close((100 * confident.double().mean().item(), confidence), ours(found["rubbish"], label))
    assert noise.std() == pytest.approx(1, abs=0.01)


def test_colour_images_are_perturbed_by_the_radius_of_their_line(nets: Nets, found: dict[str, Any]):
    assert nets.colours is not None
    (net,) = nets.colours._trained.values()
    module, test = net.module, nets.colours.source.test
    assert net.name == NAME
    spread = nets.colours.source.train.x.std().item()
    (top, same, unseen) = found["cifar"].lines
    assert [line.paper for line in (top, same, unseen)] == [(None, 87.15, 96.6), (None, 87.15, 96.6), None]
    for line, eps in ((top, 0.1), (same, 0.2 * spread), (unseen, UNSEEN)):
        moved = stepped(module, test.x, test.y, eps)
        assert line.label.startswith(f"eps {eps:.3g}")
        clean = errs(module(test.x).softmax(1), test.y)[0]
        assert close((clean, *errs(module(moved).softmax(1), test.y)), line.ours)
    assert found["cifar"].config["epochs"] == 4
    assert any(f"Noise: {DRAWS:,} inputs" in note for note in found["cifar"].notes)
    normal = module[0](nets.colours.source.train.x)
    assert normal.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normal.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_an_experiment_without_its_data_names_what_is_missing(nets: Nets):
    with pytest.raises(Missing, match="`cifar` must be CIFAR-10"):
        EXPERIMENTS["cifar"](networks(nets.source, None, nets.budget))


def test_the_line_of_logits_is_that_of_the_linearity_analysis(nets: Nets, found: dict[str, Any]):
    assert isinstance(found["along"], Along)
    assert Along.from_json(found["along"].to_json()) == found["along"]
    again = found["along"].found
    assert (again.eps, again.t[0], again.t[-1]) == (EPS, -40, 40)
    assert again.at(0) == pytest.approx(1 - ours(found["training"], "plain, 8 units")[0] / 100, abs=1e-6)
    assert again.at(1) == pytest.approx(1 - ours(found["training"], "plain, 8 units")[1] / 100, abs=1e-6)
    straight = np.median(again.explained["ball"])
    assert ours(found["along"], "variance of logits that lines explain")[0] == pytest.approx(100 * straight)


def test_every_published_figure_has_ours_beside_it(found: dict[str, Any]):
    # arXiv:1412.6572; 1.14 and .782 are those of 1600 units.
    published = {
        "threes-sevens": {1.6, 99.0},
        "shallow": {99.9, 79.3, 55.4, 1.2, 89.4, 97.6},
        "cifar": {87.15, 96.6},
        "training": {0.94, 0.84, 89.4, 97.6, 17.9, 81.4},
        "controls": {86.2, 97.3, 90.4, 97.8},
        "transfer": {19.6, 40.9},
        "agreement": {54.6, 84.6, 16.0, 54.3},
        "ensemble": {91.1, 87.9, 89.4},
        "rubbish": {98.35, 92.8, 59.8, 70.8},
    }
    rows = side_by_side(found)
    for name, figures in published.items():
        here = {value for line in found[name].lines if line.ours for value in line.paper or () if value is not None}
        assert figures <= here
    assert {row.paper for row in rows} == set().union(*published.values())
    for row in rows:
        (line,) = [line for line in found[row.name].lines if line.label == row.label]
        column = found[row.name].columns.index(row.column)
        assert (line.paper[column], line.ours[column]) == (row.paper, row.ours)
    for row in rows:  # figures of the same networks are listed once
        assert {other.name for other in rows if (other.paper, other.ours) == (row.paper, row.ours)} == {row.name}


@pytest.mark.parametrize("name", NEW)
def test_a_record_survives_json_and_has_a_figure(name: str, found: dict[str, Any], tmp_path: Path):
    record = found[name]
    assert len(record.title) <= 80
    assert all(
        len(values) == len(record.columns) for line in record.lines for values in (line.ours, line.paper) if values
    )
    assert len(json.dumps(record.summary(), allow_nan=False)) < 20_000  # no pixels
    if isinstance(record, Reproduction):
        assert type(record).from_json(record.to_json()) == record
        for strip in record.strips:
            assert all(len(tile.pixels) == np.prod(strip.shape) for tile in strip.tiles)
    draw(record, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_strip_captions_the_prediction_and_marks_misclassified_tiles(nets: Nets, found: dict[str, Any]):
    test = nets.source.test
    strip = found["shallow"].strips[-1]
    assert strip.label == "FGSM on maxout, plain"
    module = plain_of(nets)
    for label, tile in enumerate(strip.tiles):
        x_adv = torch.tensor(tile.pixels).reshape(1, *test.shape)
        row = int((test.y == label).nonzero()[0])
        assert (x_adv - test.x[row]).abs().max() == pytest.approx(EPS, abs=1e-3)
        predicted = int(module(x_adv).argmax())
        assert tile.caption.startswith(f"{predicted}: ")
        assert tile.wrong == (predicted != label)


def test_convolutional_maxout_is_the_larger_of_two_convolutions_and_refuses_bad_options():
    module = build("conv-maxout:channels=3,dropout=0", (2, 8, 12), 5)
    x = torch.rand(4, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    assert module(x).shape == (4, 5)
    first = module[0]
    both = first.conv(x)
    assert torch.equal(first(x), torch.maximum(both[:, :3], both[:, 3:]))
    assert not any(isinstance(part, nn.Dropout) for part in module.modules())
    assert [part.p for part in build("conv-maxout:channels=2", (3, 8, 8), 3) if isinstance(part, nn.Dropout)] == [
        0.2,
        0.5,
        0.5,
    ]
    for spec, shape in (("channels=0", (3, 8, 8)), ("dropout=100", (3, 8, 8)), ("channels=2", (3, 4, 8))):
        with pytest.raises(BadInput):
            build(f"conv-maxout:{spec}", shape, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "`members` must be >= 1, got 0; the paper's is 12"),
        ({"channels": 0}, "`channels` must be >= 1"),
        ({"cifar_epochs": 0}, "`cifar_epochs` must be >= 1"),
        ({"cifar_dropout": 100}, "`cifar_dropout` must be a percentage"),
    ],
)
def test_a_bad_budget_is_named(options: dict[str, int], message: str):
    with pytest.raises(BadInput, match=re.escape(message)):
        Budget(**options)


def test_the_full_budget_is_the_papers():
    full, some = Budget(full=True), Budget(full=True, seeds=2)
    assert [full.of(name) for name in ("units", "dropout", "seeds", "members", "channels")] == [1600, 50, 5, 12, 96]
    assert (some.of("seeds"), some.of("members")) == (2, 12)
    assert (full.epochs_for(60_000), full.epochs_for(10)) == (100, 100)


@pytest.fixture(scope="module")
def page(found: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all experiments, one of them with a name that is markup, and one left out."""
    out = tmp_path_factory.mktemp("paper")
    evil = "<img src=x onerror=\"document.title='owned'\">"
    config = {
        "data": "drawn",
        "stands_in": False,
        "seeds": [0],
        "epochs": 1,
        "train_rows": 1,
        "test_rows": 1,
        "versions": {"epsball": "1"},
    }
    strip = Strip(evil, (1, 2, 2), 0.0, 1.0, (Tile((0.0, 1.0, 0.5, 0.25), evil, True),))
    lines = (Line(evil, (12.34, None), (56.7, None)), Line("bare", None, (8.9, 1.0)))
    more = Reproduction(
        title=f"{evil}: in %", columns=("a", "b"), lines=lines, notes=(evil,), strips=(strip,), config=config
    )
    every = found | {"evil": more}
    for name, record in every.items():
        draw(record, out / f"{name}.png")
    return write_page(every, out, paper=PAPER, command="epsball reproduce", seconds=1.0, left_out={"panda": evil})


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_the_page_makes_no_request_and_can_be_read(
    chromium: Browser, page: Path, found: dict[str, Any], scheme: Any, width: int
):
    with visiting(chromium, page.as_uri(), width=width, scheme=scheme) as seen:
        seen.page.goto(page.as_uri())
        assert seen.requests == [page.as_uri()]
        assert seen.complaints == []
        assert faint(seen.page) == []
        assert nameless(seen.page) == []
        assert overflows(seen.page) == 0
        assert "reproduced" in seen.page.title()
        assert seen.page.evaluate("[...document.images].filter(one => !one.naturalWidth).length") == 0
        assert seen.page.locator("section figure img").count() == len(found) + 1
        rows = seen.page.locator("#side-by-side tbody tr")
        texts = [row.split("\t") for row in rows.all_inner_texts()]
        beside = side_by_side(found)
        assert len(texts) == len(beside) + 1
        for text, row in zip(texts, beside, strict=False):
            assert (text[0], text[2]) == (row.name, row.column)
            assert float(text[3]) == row.paper
            assert float(text[4]) == pytest.approx(row.ours, abs=0.0051)
            assert float(text[5]) == pytest.approx(row.ours - row.paper, abs=0.051)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("EPSBALL_DATA", raising=False)
        return commands.run("reproduce", "goodfellow2015", *arguments, cwd=cwd)


def test_the_command_runs_all_experiments_within_80_columns(tmp_path: Path):
    done = run("--units", "4", "--epochs", "1", "--seeds", "2", "--dropout", "10", "--members", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    folder = tmp_path / "goodfellow2015"
    names = {file.stem for file in folder.glob("*.json")}
    assert names == {file.stem for file in folder.glob("*.png")} == set(chosen()) - {"cifar"}
    assert "left out: cifar" in done.stdout
    assert "EPSBALL_DATA/cifar10" in done.stdout
    assert "reproduce goodfellow2015 --units 4" in (folder / "index.html").read_text()
    for name in names - {"threes-sevens"}:
        config = json.loads((folder / f"{name}.json").read_text())["config"]
        seeds = [0] if name in ("along", "ensemble") else [0, 1]  # one network, one ensemble
        assert (config["units"], config["epochs"], config["seeds"], config["dropout"]) == (4, 1, seeds, 10)
        assert config["versions"]["epsball"] == eb.__version__
    notes = [line for line in done.stdout.splitlines() if line.startswith("Our maxout networks: 2 x 4 maxout units")]
    assert len(notes) == 2  # a note shared by experiments is printed once: for both seeds, and for one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "trainig"], "did you mean 'training'"),
        (["--only", "training", "--units", "0"], "`--units` must be >= 1"),
        (["--only", "training", "--seeds", "many"], "many"),
        (["--only", "training", "--unit", "3"], "--units"),
        (["--only", "training", "--dropout", "0.5"], "`--dropout` must be a percentage, whole"),
        (["--only", "cifar"], "`--cifar` must be CIFAR-10"),
        (["--only", "cifar", "--cifar", "cifar100.npz"], "`--cifar` must have the splits"),
    ],
)
def test_bad_usage_exits_with_2_and_a_message(arguments: list[str], message: str, tmp_path: Path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "goodfellow2015").exists()
