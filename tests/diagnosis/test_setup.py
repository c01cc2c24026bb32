"""Every wrong set-up of the test-bed is named, the right cause first, and no sound one is warned of."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import commands
import nets
import numpy as np
import pytest
import setups

import epsball as eb
from epsball.diagnosis.setup import ORDER
from epsball.diagnosis.setup_record import Setup, SetupWarning


def setup_of(case: setups.Case) -> tuple[Setup, list[str]]:
    """The set-up that `evaluate` states for a case, and the texts of its SetupWarnings."""
    model, data, ball, *more = case
    options: dict[str, Any] = {"attacks": "fgsm", "diagnose": 0, "accelerate": False} | dict(*more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = eb.evaluate(model, data, ball, **options)
    assert found.setup is not None
    return found.setup, [str(one.message) for one in caught if issubclass(one.category, SetupWarning)]


def test_the_test_bed_holds_forty_wrong_and_forty_sound_setups():
    assert len(setups.WRONG) >= 40
    assert len(setups.SOUND) >= 40


@pytest.mark.parametrize("name", setups.WRONG)
def test_a_wrong_setup_is_named_with_the_right_cause_first(name: str):
    expected, case = setups.WRONG[name]
    found, _ = setup_of(case())
    assert found.names[:1] == (expected,), found.text
    assert found.names == tuple(sorted(found.names, key=ORDER.index))


@pytest.mark.parametrize("name", setups.SOUND)
def test_a_sound_setup_is_not_warned_of(name: str):
    found, said = setup_of(setups.SOUND[name]())
    assert found.sound, found.text
    assert said == []


REMEDIED: dict[str, tuple[str, Any]] = {
    "divide x by 255 if the model expects that; else eps=76.5, lo=0, hi=255": (
        "pixels as floats, eps for [0, 1]",
        lambda case: (*case[:2], eb.Linf(eps=76.5, lo=0, hi=255)),
    ),
    "give the ball in the units of x: eps=0.04706, lo=0, hi=1; or x in 0..255": (
        "images of [0, 1] in the box of pixels",
        lambda case: (*case[:2], eb.Linf(eps=0.04706, lo=0, hi=1)),
    ),
    "write eps=8 / 255": ("8 for 8/255", lambda case: (*case[:2], eb.Linf(eps=8 / 255, lo=0, hi=1))),
    "give the ball lo=0, hi=1": (
        "images of [0, 1] without a box",
        lambda case: (*case[:2], eb.Linf(eps=0.1, lo=0, hi=1)),
    ),
    "number the classes as the model does: y = y - 1": (
        "labels from 1",
        lambda case: (case[0], (case[1][0], (case[1][1] - 1) % 10), case[2]),
    ),
    "write y = 1 - y": ("two classes swapped", lambda case: (case[0], (case[1][0], 1 - case[1][1]), case[2])),
    "number the classes as the model does: make an empty folder for class 3, or write y = y + (y >= 3)": (
        "class folder 3 is missing",
        lambda case: (case[0], (case[1][0], case[1][1] + (case[1][1] >= 3)), case[2]),
    ),
    "write x.flip(1)": (
        "channels in another order",
        lambda case: (case[0], (case[1][0].flip(1), case[1][1]), case[2]),
    ),
}


@pytest.mark.parametrize("remedy", REMEDIED)
def test_a_remedy_that_is_obeyed_ends_the_warning(remedy: str):
    name, obeyed = REMEDIED[remedy]
    case = setups.WRONG[name][1]()
    before, _ = setup_of(case)
    after, _ = setup_of(obeyed(case))
    assert before.warnings[0].remedy == remedy
    assert before.names[0] not in after.names


def test_targets_that_are_all_labels_are_refused_before_an_attack():
    x, y = setups.digits().data(20)
    with pytest.raises(eb.BadInput, match="`target` must differ from the label of some example"):
        eb.evaluate(setups.digits().model, (x, y), setups.DIGITS_BALL, "fgsm", target=y)


@pytest.mark.parametrize(
    ("data", "hi", "cause"),
    [
        (lambda: setups.mnist_normalised().data(20), 1, "x was normalised outside the model"),
        (lambda: setups.mnist_normalised().data(20), 255, "x was normalised outside the model"),
        (lambda: (setups.mnist().x[:20] * 255, setups.mnist().y[:20]), 1, "x is in pixels of 0 to 255"),
    ],
)
def test_images_outside_their_box_are_refused_with_the_cause(data: Any, hi: float, cause: str):
    with pytest.raises(eb.BadInput, match=cause):
        eb.evaluate(setups.mnist().model, data(), eb.Linf(eps=8 / 255, lo=0, hi=hi), "fgsm")


def test_the_setup_is_stated_before_the_attacks_and_costs_one_model_call_of_32_rows():
    counting = nets.Counting(setups.digits().model)
    stated: list[tuple[int, Setup | None]] = []
    data = setups.digits().data(100)
    found = eb.evaluate(
        counting, data, setups.DIGITS_BALL, "fgsm", diagnose=0, accelerate=False,
        on_progress=lambda at: stated.append((counting.forwards, at.setup)),
    )  # fmt: skip
    forwards, setup = stated[0]
    assert setup == found.setup
    assert setup.forwards == 5 * 32  # are rows independent?
    assert forwards == 128 + 2 * 32 + 5 * 32  # the clean pass, padded, and the look whether the model is deterministic
    assert setup.model.clean_accuracy == found.clean_accuracy
    assert (setup.model.independent, setup.model.deterministic) == (True, True)


def test_the_setup_is_kept_in_the_run_directory_and_not_made_again(tmp_path):
    world = setups.digits()
    shifted = (world.x[:60], (world.y[:60] + 1) % 10)
    found = eb.evaluate(world.model, shifted, setups.DIGITS_BALL, "fgsm", diagnose=0, run_dir=tmp_path / "a")
    assert found.setup.names[0] == "labels-shifted"
    assert eb.Evaluation.load(tmp_path / "a").setup == found.setup
    written = (tmp_path / "a" / "setup.json").read_bytes()
    again = eb.evaluate(world.model, shifted, setups.DIGITS_BALL, "fgsm", diagnose=0, run_dir=tmp_path / "a")
    assert again.setup == found.setup
    assert (tmp_path / "a" / "setup.json").read_bytes() == written
    assert Setup.from_json(found.setup.to_json()) == found.setup
    summary = found.summary()["setup"]
    assert summary["names"][0] == "labels-shifted"
    assert summary["texts"][0] == found.setup.warnings[0].text


def test_a_setup_of_sorted_data_in_several_shards_is_read_from_all_of_them():
    world = setups.sorted_by_class(setups.digits())
    found, _ = setup_of((world.model, (world.x, world.y), setups.DIGITS_BALL, {"shard_size": 64}))
    assert found.model.sampled == 256
    assert found.forwards >= 256
    assert found.model.clean_accuracy > 0.85


def test_a_model_of_labels_and_a_model_without_finite_logits_have_a_setup():
    labels, _ = setup_of(setups.SOUND["a model of labels"]())
    assert labels.model.clean_accuracy > 0.85
    case = (lambda x: setups.digits().model(x) * math.nan, setups.digits().data(20), setups.DIGITS_BALL)
    nothing, _ = setup_of(case)
    assert nothing.names[0] == "nonfinite-logits"
    assert "logits of 100 % of 20 examples" in nothing.warnings[0].figures


@pytest.mark.parametrize(
    "name", ["digits", "L0", "one radius per example", "minimum norm", "a table, standardised, no box"]
)
def test_the_lines_fit_a_terminal(name: str):
    found, _ = setup_of(setups.SOUND[name]())
    assert all(len(line) <= 73 for line in found.lines), found.lines
    assert "nan" not in found.text


def test_the_command_line_begins_with_the_setup(tmp_path):
    world = setups.digits()
    np.savez(tmp_path / "d.npz", x=world.x[:40].numpy(), y=((world.y[:40] + 1) % 10).numpy())
    (tmp_path / "its.py").write_text("import setups\n\ndef make():\n    return setups.digits().model\n")
    words = ("evaluate", "--model", "its:make", "--data", "d.npz", "--ball", "linf:0.1", "--lo", "0", "--hi", "1")
    shown = commands.run(*words, "--attacks", "fgsm", "--diagnose", "0", "--out", "run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[3].startswith("set-up x float32 in [0, 1], 17 levels; box [0, 1]")
    assert lines[4].strip() == "L∞, ε = 0.1: 10 % of the box"
    assert all(len(line) <= 80 for line in lines[:8])
    assert "labels are too high by one" in shown.stderr
    assert "Set-up doubtful" in shown.stdout
    report = (tmp_path / "run" / "report.html").read_text()
    assert "The set-up is doubtful." in report
    assert "labels-shifted" in report
    told = commands.run(*words, "--attacks", "fgsm", "--diagnose", "0", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["setup"]["names"][0] == "labels-shifted"
