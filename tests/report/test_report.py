"""The report: its figures are the evaluation's, nothing that a user wrote becomes markup, it needs no torch."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import epsball as eb
from epsball.cli import main as cli
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.evaluation.result import Evaluation
from epsball.problem.objective import ModelWarning
from epsball.report.card import markdown, robustbench
from epsball.report.charts import curve, distances, together
from epsball.report.confusion import confusion
from epsball.report.gallery import BYTES, gallery
from epsball.report.html import of_run, of_runs, write_comparison, write_report
from epsball.report.run import Run

EPS = 0.12
EVIL = "<script>alert('7')</script>&\"'"


def linear(inputs: int, classes: int, seed: int = 0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, inputs, generator=draw) / inputs**0.5)
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)  # no class is preferred
    return net


def subject(*shape: int, n: int = 60, classes: int = 3, seed: int = 0) -> tuple[nn.Module, Examples]:
    """A linear model, and examples on the levels of an image; every seventh is misclassified."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed + 1)).mul(255).round().div(255)
    net = linear(x[0].numel(), classes)
    y = net(x).argmax(1)
    y[::7] = (y[::7] + 1) % classes
    return net, from_arrays(x, y, lo=0, hi=1, classes=classes, name="drawn", ids=torch.arange(n) * 3 + 1)


def made(path: Path, *shape: int, attacks: Any = ("sign-noise", "fgsm", "pgd:steps=5"), **more: Any) -> Run:
    net, data = subject(*shape)
    ball = more.pop("ball", eb.Linf(eps=EPS, lo=0, hi=1))
    eb.evaluate(net, data, ball, attacks, run_dir=path, **{"diagnose": 8, "shard_size": 32, **more})
    return Run.load(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("report") / "run", 1, 6, 6, binarization_test=4)


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("report") / "curved", 1, 6, 6, eps=[0.01, 0.03, 8 / 255])


def texts(page: str) -> str:
    """The text of a page, without scripts, styles and tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", bare)))


# Its text


def test_robust_accuracy_its_interval_and_its_cost_are_the_evaluations(run: Run) -> None:
    text = texts(of_run(run))
    found = run.found
    low, high = found.interval
    assert (
        f"Robust accuracy {100 * found.robust_accuracy:.2f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        in text
    )
    assert f"clean accuracy {100 * found.clean_accuracy:.2f} %, on 60 examples" in text
    assert "An upper bound: a stronger attack may find more." in text
    assert f"forward passes {found.forwards:,}" in text.lower()
    assert f"{found.backwards:,} backward passes" in text
    assert found.diagnosis is not None
    assert found.diagnosis.sentence[1:] in text
    assert found.binarization_test is not None
    assert found.binarization_test.sentence[1:] in text
    for one in found.diagnosis.indicators:
        assert one.name in text
        assert one.what in text


def test_robust_accuracy_after_each_attack_follows_from_the_records(run: Run, curved: Run) -> None:
    for one in (run, curved):
        records = one.found.records.to_pylist()
        radii = one.config["radii"]
        for row in one.stages:
            before = {(r, a) for r in radii for a in ("sign-noise", "fgsm", "pgd:steps=5") if r < row.stage.eps}
            order = ["sign-noise", "fgsm", "pgd:steps=5"]
            before |= {(row.stage.eps, a) for a in order[: order.index(row.stage.attack) + 1]}
            robust = sum(
                r["status"] == "robust" or (r["status"] == "fooled" and (r["eps"], r["attack"]) not in before)
                for r in records
            )
            assert row.robust == robust
            assert row.accuracy == pytest.approx(robust / 60)
    assert [row.control for row in run.stages] == [True, False, False]


def test_each_stage_is_listed_with_its_counts_and_its_cost(run: Run) -> None:
    text = texts(of_run(run))
    for row in run.stages:
        stage = row.stage
        counts = f"{stage.attacked:,} {stage.fooled:,} {row.robust:,} {row.model_calls}"
        model_calls = f"{stage.forwards:,} {stage.backwards:,}"
        assert f"{stage.attack} {'control ' if row.control else ''}{EPS} {counts} {model_calls}" in text


def test_the_curve_ends_at_the_worst_case_and_shows_noise_separately(curved: Run) -> None:
    chart = curve(curved)
    worst, noise = chart.data[-1], chart.data[0]
    assert worst["x"] == [0, *curved.config["radii"]]
    assert worst["y"] == pytest.approx([curved.found.clean_accuracy, *(share for _, share in curved.found.curve)])
    assert "control" in noise["name"]
    broken = sum(row.stage.fooled for row in curved.stages if row.control)
    assert noise["y"][-1] == pytest.approx(curved.found.clean_accuracy - broken / 60)
    low, high = curved.found.interval
    assert worst["y"][-1] - worst["error_y"]["arrayminus"][-1] == pytest.approx(low)
    assert worst["y"][-1] + worst["error_y"]["array"][-1] == pytest.approx(high)
    assert chart.table.rows[-1][0] == "8/255"


def test_the_histogram_counts_every_broken_example_once(run: Run, curved: Run) -> None:
    for one in (run, curved):
        chart = distances(one)
        assert chart is not None
        assert sum(chart.data[0]["y"]) == one.found.count("fooled")
    assert chart.layout["shapes"][0]["x0"] == 8 / 255


def test_distances_that_all_equal_the_radius_are_shown_in_a_norm_in_which_they_differ(run: Run) -> None:
    chart = distances(run)
    assert chart is not None
    assert set(np.round(run.distances("distance"), 6)) == {EPS}
    assert chart.layout["xaxis"]["title"]["text"] == "distance, L2"
    assert "shapes" not in chart.layout  # the radius is no length in this norm
    assert sum(count > 0 for count in chart.data[0]["y"]) > 5
    assert f"(L∞, ε = {EPS}), so that L2 is drawn" in chart.notes[0]


def test_the_histogram_of_counted_coordinates_has_whole_bins(tmp_path: Path) -> None:
    one = made(tmp_path / "l0", 4, attacks="pgd:steps=20", ball=eb.L0(eps=3, lo=0, hi=1), eps=[1, 2, 3], diagnose=0)
    chart = distances(one)
    assert chart is not None
    assert chart.layout["xaxis"]["title"]["text"] == "distance, L0"
    counts = dict(zip(chart.data[0]["x"], chart.data[0]["y"], strict=True))
    measured = one.distances("distance")
    assert {at: n for at, n in counts.items() if n} == {
        v: int((measured == v).sum()) for v in np.unique(measured).tolist()
    }


def test_the_confusion_is_recounted_from_the_records(run: Run) -> None:
    found = confusion(run)
    assert found is not None
    expected = np.zeros((3, 3), int)
    for one in run.found.records.to_pylist():
        fooled = one["status"] == "fooled"
        expected[one["label"], one["adversarial_prediction"] if fooled else one["clean_prediction"]] += 1
    assert np.array_equal(found.counts, expected)
    places = {name: place for place, name in enumerate(found.names)}
    assert found.pairs
    for label, predicted, count in found.pairs:  # the sentence below the table, and its cells
        assert expected[places[label], places[predicted]] == count
    assert sum(count for *_, count in found.pairs) == expected.sum() - expected.trace()
    assert found.left_out == 0


def test_with_many_classes_the_matrix_is_reduced_to_those_in_most_mistakes(tmp_path: Path) -> None:
    net, data = subject(1, 5, 5, n=200, classes=40)
    eb.evaluate(net, data, eb.Linf(eps=0.05, lo=0, hi=1), "fgsm", run_dir=tmp_path, diagnose=0)
    found = confusion(Run.load(tmp_path))
    assert found is not None
    assert len(found.names) == 20 < found.classes <= 40
    assert f"of {found.classes} classes the 20 in most mistakes" in texts(of_run(Run.load(tmp_path)))


# The gallery


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_the_gallery_has_the_stored_adversarial_examples_smallest_distance_first(run: Run) -> None:
    shown = gallery(run)
    ids, points = run.found.points()
    originals = run.found.originals()
    measured = [float(one.distance) for one in shown.examples]
    assert measured == sorted(measured)
    assert len(shown.examples) == shown.total == len(ids)
    for one in shown.examples:
        (row,) = np.flatnonzero(ids == one.id)
        assert np.abs(decoded(one.original) / 255 - originals[row, 0]).max() <= 0.5 / 255 + 1e-6
        assert np.abs(decoded(one.adversarial) / 255 - points[row, 0]).max() <= 0.5 / 255 + 1e-6
        delta = points[row, 0].astype(float) - originals[row, 0]
        assert one.amplified == pytest.approx(0.5 / np.abs(delta).max())
        assert np.abs(decoded(one.perturbation) / 255 - (0.5 + one.amplified * delta)).max() <= 0.5 / 255 + 1e-6


def test_a_bounded_gallery_has_the_smallest_distances_of_every_class(run: Run) -> None:
    shown = gallery(run, 6)
    assert len(shown.examples) == 6
    assert [(key, count) for key, _, count in shown.labels] == [(0, 2), (1, 2), (2, 2)]
    records = [one for one in run.found.records.to_pylist() if one["status"] == "fooled"]
    for key in range(3):
        own = sorted(one["distance"] for one in records if one["label"] == key)[:2]
        assert [one.distance for one in shown.examples if one.key == key] == [f"{value:.4g}" for value in own]


def test_at_equal_distance_the_most_confident_misclassifications_come_first(run: Run) -> None:
    shown = gallery(run)
    assert {one.distance for one in shown.examples} == {str(EPS)}
    confidences = [one.after_confidence for one in shown.examples]
    assert confidences == sorted(confidences, reverse=True)
    few = gallery(run, 6).examples
    for key in range(3):
        own = [one.id for one in shown.examples if one.key == key]
        assert [one.id for one in few if one.key == key] == own[:2]


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((5, 4), (5, 4)),
        ((1, 5, 4), (5, 4)),
        ((3, 5, 4), (5, 4, 3)),
        ((2, 5, 4), (5, 8)),
        ((4, 5, 4), (10, 8)),
        ((2, 3, 5, 4), (10, 12)),
        ((1, 300, 2), (100, 1)),
    ],
)
def test_images_of_any_number_of_channels_are_drawn(
    tmp_path: Path, shape: tuple[int, ...], drawn: tuple[int, ...]
) -> None:
    shown = gallery(made(tmp_path, *shape, attacks="fgsm", diagnose=0))
    assert shown.images
    assert {decoded(one.adversarial).shape for one in shown.examples} == {drawn}


def test_rows_of_a_table_are_shown_as_the_numbers_that_changed_most(tmp_path: Path) -> None:
    one = made(tmp_path, 12, attacks="pgd", ball=eb.L2(eps=0.3, lo=0, hi=1), diagnose=0)
    shown = gallery(one)
    ids, points = one.found.points()
    assert not shown.images
    first = shown.examples[0]
    (row,) = np.flatnonzero(ids == first.id)
    delta = points[row].astype(float) - one.found.originals()[row]
    widest = int(np.abs(delta).argmax())
    assert first.features[0].name == str(widest)
    assert first.features[0].after == f"{points[row][widest]:.4g}"
    assert abs(first.features[0].size) == 1
    assert "features that changed most" in texts(of_run(one))


def test_large_images_are_reduced_and_bounded_in_bytes(tmp_path: Path) -> None:
    net, data = subject(3, 224, 224, n=20)
    eb.evaluate(net, data, eb.Linf(eps=0.02, lo=0, hi=1), "fgsm", run_dir=tmp_path, diagnose=0)
    shown = gallery(Run.load(tmp_path))
    assert shown.reduced
    assert decoded(shown.examples[0].original).shape == (112, 112, 3)
    assert sum(len(one.original + one.perturbation + one.adversarial) for one in shown.examples) <= BYTES
    assert len(shown.examples) >= 10


# Runs of every kind


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target": 2}, "Robust to the target"),
        ({"storage": "8bit"}, "Adversarial examples are verified as stored, in 8 bits"),
        ({"eot": 2}, "the mean of 2 forward passes"),
        ({"attacks": "fmn:steps=20", "min_norm": True}, "Half of the examples are misclassified within L∞"),
        ({"source": linear(36, 3, seed=5)}, "A transfer: attacks that see the model itself may find more."),
        ({"ball": eb.Linf(eps=torch.full((60,), EPS), lo=0, hi=1)}, "L∞, ε one per example"),
        ({"ball": eb.Linf(eps=0.0, lo=0, hi=1)}, "Robust accuracy"),
        ({"ball": eb.L2(eps=0.5)}, "in L2, ε = 0.5, box [0, 1];"),
    ],
)
def test_runs_of_every_kind_are_reported(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    one = made(tmp_path, 1, 6, 6, **{"attacks": "fgsm", **options})
    text = texts(of_run(one))
    assert expected in text
    assert "nan" not in text
    possible = not ({"source", "min_norm"} & set(options))
    assert ("--binarization-test 32" in text) is possible  # it is not advised where it would be refused
    assert expected.split(":")[0].lower() in (markdown(one) + text).lower()


@pytest.mark.parametrize("eps", [None, [0.01, 0.02]])
def test_a_model_that_is_always_wrong_leaves_nothing_to_attack(tmp_path: Path, eps: list[float] | None) -> None:
    net, data = subject(1, 6, 6)
    wrong = from_arrays(data.x, (net(data.x).argmax(1) + 1) % 3, lo=0, hi=1)
    eb.evaluate(net, wrong, eb.Linf(eps=0.1, lo=0, hi=1), "fgsm", eps=eps, run_dir=tmp_path, diagnose=0)
    text = texts(of_run(Run.load(tmp_path)))
    assert "Robust accuracy 0.00 %" in text
    assert "clean accuracy 0.00 %" in text
    assert markdown(Run.load(tmp_path))


def test_where_all_examples_are_broken_at_a_smaller_radius_the_curve_continues_at_zero(tmp_path: Path) -> None:
    one = made(tmp_path, 1, 6, 6, attacks="fgsm", eps=[0.9, 0.95], diagnose=0)
    chart = curve(one)
    assert one.found.robust_accuracy == 0
    assert chart.data[-1]["y"][1:] == [0, 0]
    assert "not known" not in texts(of_run(one))


def test_without_a_diagnosis_the_report_names_what_is_missing(tmp_path: Path) -> None:
    text = texts(of_run(made(tmp_path, 4, attacks="fgsm", diagnose=0)))
    assert "Reliability: not checked (diagnose=0)." in text
    assert "The binarization test was not run" in text
    assert "as this run was not started from the command line" in text


def test_the_python_call_in_the_report_reproduces_the_robust_accuracy(curved: Run) -> None:
    model, data = subject(1, 6, 6)
    x, y = data.x, data.y
    again = eval(curved.python, {"eb": eb, "model": model, "x": x, "y": y})
    assert again.robust_accuracy == curved.found.robust_accuracy


def test_an_unreliable_evaluation_is_marked_beside_its_robust_accuracy(tmp_path: Path) -> None:
    class Steps(nn.Module):
        """The same function of an image in nine levels: its gradient is zero."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner((x * 8).round() / 8 + 0 * x)

    net, data = subject(1, 6, 6)
    with pytest.warns(ModelWarning):
        eb.evaluate(Steps(net), data, eb.Linf(eps=EPS, lo=0, hi=1), "fgsm", run_dir=tmp_path, diagnose=16)
    one = Run.load(tmp_path)
    head = of_run(one).partition("</header>")[0]
    assert "zero-gradients" in one.found.diagnosis.failed_names
    assert "Not reliable yet." in texts(head)
    assert "Reliability checks failed: zero-gradients" in markdown(one)
    assert robustbench(one)["unreliable"] is True


# Nothing a user wrote is markup


def test_a_script_as_a_class_name_a_path_or_a_command_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "a <b>&'run"
    made(path, 1, 6, 6, attacks="fgsm")
    config = json.loads((path / "config.json").read_text())
    del config["checksum"]
    config["data"]["class_names"] = [EVIL, "</script>", "--worst"]
    config["data"]["name"] = "<img src=x onerror=alert(1)>"
    (path / "config.json").write_text(json.dumps(config))
    command = {"command": ["epsball", "evaluate", "--model", EVIL], "directory": EVIL, "subject": {"model": EVIL}}
    (path / "command.json").write_text(json.dumps(command))
    one = Run.load(path)
    for page in (of_run(one), of_runs([one, one])):
        assert page.count("<script") == page.count("</script>") == 3
        assert "alert('7')</script>" not in page
        assert "<img src=x" not in page
        assert "<b>&'run" not in page
    assert EVIL in texts(of_run(one)).replace("&lt;", "<")
    card = markdown(one)
    assert "<img" not in card.replace(r"\<img", "")
    assert robustbench(one)["architecture"] == EVIL


def test_the_policy_names_the_two_scripts_and_nothing_else(run: Run) -> None:
    page = of_run(run)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    assert len(scripts) == 2
    assert set(rules.pop("script-src").split()) == digests
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_every_figure_is_one_that_plotly_knows(run: Run, curved: Run, tmp_path: Path) -> None:
    from plotly.graph_objects import Figure

    minimum_norm = made(tmp_path, 1, 6, 6, attacks="fmn:steps=20", min_norm=True)
    charts = [curve(run), curve(curved), curve(minimum_norm), distances(run)]
    for chart in charts:
        assert chart is not None
        known = re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps([chart.data, chart.layout]))
        data, layout = json.loads(known)
        Figure(data=data, layout=layout)  # raises for an attribute that is not one
        assert chart.description
        assert chart.table.rows


# What lies beside it


def test_the_card_has_the_robust_accuracy_and_the_attacks(run: Run) -> None:
    card = markdown(run)
    assert f"| **robust accuracy** | **{100 * run.found.robust_accuracy:.2f} %** |" in card
    assert "sign-noise, fgsm, pgd:steps=5" in card
    assert card.startswith("## Adversarial robustness\n\n| what | value |\n| --- | --- |\n")


def test_only_autoattacks_own_list_is_reported_as_autoattack(curved: Run) -> None:
    other = robustbench(curved)
    assert other["autoattack_acc"] is None
    assert other["reported"] == f"{100 * curved.found.robust_accuracy:.2f}"

    def entry(**changed: Any) -> dict[str, Any]:
        config = {**curved.config, "protocol": ["standard"], **changed}
        return robustbench(Run(curved.path, replace(curved.found, config=config), {}))

    assert entry()["autoattack_acc"] == entry()["reported"] == other["reported"]
    assert (entry()["eps"], entry()["threat_model"], entry()["dataset"]) == ("8/255", "Linf", "drawn")
    assert entry(reaction={"because": ["it was masked"]})["autoattack_acc"] is None
    assert entry(eot=20)["autoattack_acc"] is None
    assert entry(source="another")["autoattack_acc"] is None
    assert set(entry()) >= {"link", "name", "authors", "additional_data", "number_forward_passes", "venue"}
    assert set(entry()) >= {"architecture", "clean_acc", "external", "footnote", "unreliable"}


def test_a_report_leaves_the_run_as_it_was_and_needs_no_torch(run: Run) -> None:
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    code = (
        "import sys\nfrom epsball.report.html import write_report\n"
        f"write_report({str(run.path)!r})\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
    new = {file.name for file in run.path.rglob("*") if file.is_file()} - {file.name for file in before}
    assert new == {"report.html", "card.md", "robustbench.json"}
    assert all(file.read_bytes() == content for file, content in before.items())
    assert (run.path / "report.html").read_text() == of_run(run)
    net, data = subject(1, 6, 6)
    again = eb.evaluate(
        net, data, eb.Linf(eps=EPS, lo=0, hi=1), ("sign-noise", "fgsm", "pgd:steps=5"), run_dir=run.path, shard_size=32
    )
    assert again.records.equals(run.found.records)


# Several runs


def test_two_runs_are_compared_example_by_example(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", 1, 6, 6, attacks="fgsm"), made(tmp_path / "b", 1, 6, 6, attacks="sign-noise")
    text = texts(write_comparison([a.path, b.path], tmp_path / "c.html").read_text())
    found = eb.compare(a.path, b.path)
    assert found.sentence in text
    assert f"correct in A {found.both} {found.only_a} wrong in A {found.only_b} {found.neither}" in text
    assert f"difference of {100 * found.difference:+.2f} points" in text
    assert "They differ in: attacks" in text


def test_runs_that_cannot_be_compared_are_shown_and_the_reason_is_given(tmp_path: Path) -> None:
    a = made(tmp_path / "a", 1, 6, 6, attacks="fgsm")
    other = made(tmp_path / "other", 4, attacks="fgsm", ball=eb.L2(eps=0.2, lo=0, hi=1))
    minimum_norm = made(tmp_path / "nearest", 1, 6, 6, attacks="fmn:steps=20", min_norm=True)
    page = of_runs([a, other, minimum_norm])
    text = texts(page)
    assert text.count("Not compared") == 2
    assert "must be runs on the same data" in text
    assert "nearest searched minimum-norm adversarial examples" in text
    assert 'id="curve-linf"' in page
    assert 'id="curve-l2"' in page


def test_targeted_runs_and_more_runs_than_colours_are_distinguished(tmp_path: Path) -> None:
    a = made(tmp_path / "a", 1, 6, 6, attacks="fgsm", diagnose=0)
    goal = made(tmp_path / "goal", 1, 6, 6, attacks="fgsm", target=2, diagnose=0)
    page = of_runs([a, goal])
    assert 'id="curve-linf"' in page
    assert 'id="curve-linf-target"' in page
    assert "target=2" in goal.python
    assert "| target | 2 |" in markdown(goal)
    assert robustbench(goal)["reported"] is None  # it is no robust accuracy
    assert f"Robust to the target (2): {100 * goal.found.robust_accuracy:.2f} % of {goal.attackable} (" in texts(page)
    chart = together([(f"run {at}", a) for at in range(12)], "linf", a.what)
    assert len({(line["line"]["color"], line["line"]["dash"]) for line in chart.data}) == 12
    low, high = a.found.interval
    assert chart.data[0]["y"][1] - chart.data[0]["error_y"]["arrayminus"][1] == pytest.approx(low)
    assert chart.data[0]["y"][1] + chart.data[0]["error_y"]["array"][1] == pytest.approx(high)


def test_two_minimum_norm_evaluations_are_compared_by_distance(tmp_path: Path) -> None:
    short = made(tmp_path / "short", 1, 6, 6, attacks="fmn:steps=3", min_norm=True, diagnose=0)
    longer = made(tmp_path / "longer", 1, 6, 6, attacks="fmn:steps=40", min_norm=True, diagnose=0)
    text = texts(of_runs([short, longer]))
    one, two = short.found.distances, longer.found.distances
    assert f"A's is nearer {(one < two).sum()} times, B's {(two < one).sum()} times" in text
    ratios = two[(one > 0) & np.isfinite(one)] / one[(one > 0) & np.isfinite(one)]
    assert f"the median of B's distance over A's is {np.median(ratios):.4g}" in text


def test_a_comparison_of_one_run_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two runs or more"):
        write_comparison([run.path], tmp_path / "c.html")


# The command


def test_the_command_writes_to_the_given_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    assert cli.run(["report", str(run.path), "--out", str(out), "--examples", "3"]) == 0
    assert "r.html" in capsys.readouterr().out
    assert out.read_text().count("<article") == 3
    assert list(tmp_path.iterdir()) == [out]
    assert cli.run(["report", str(run.path), str(run.path), "--out", str(out)]) == 0
    assert "2 runs side by side" in texts(out.read_text())


def test_a_path_that_is_no_run_and_bad_options_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["report", str(tmp_path / "nothing")]) == 2
    assert "must be a run directory" in capsys.readouterr().err
    assert cli.run(["report", str(run.path), "--out", str(tmp_path)]) == 2
    assert "must be a file" in capsys.readouterr().err
    assert cli.run(["report", str(run.path), "--examples", "-1"]) == 2


def test_an_evaluation_that_is_loaded_already_gives_the_same_report(run: Run, tmp_path: Path) -> None:
    one = write_report(run.path, tmp_path / "a.html", found=Evaluation.load(run.path)).read_text()
    assert one == write_report(run.path, tmp_path / "b.html").read_text()
