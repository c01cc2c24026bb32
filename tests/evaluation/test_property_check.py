"""Properties of ONNX networks: sat with a counterexample of the file itself, unsat as a proof, and neither wrongly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from epsball.certify.property_network import PropertyNetwork
from epsball.certify.vnnlib import Case, Conjunction, parse_property
from epsball.evaluation.property_check import PropertyAnswer, check_instances, check_property, read_instances

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from commands import run  # noqa: E402
from onnx_nets import export  # noqa: E402

LO, HI = -0.5, 1.0


@dataclass(frozen=True)
class Net:
    """A network, its file, and its outputs over a fine grid of its first two inputs, the others being at LO."""

    model: nn.Module
    path: Path
    x: np.ndarray
    y: np.ndarray

    def spec(self, conditions: str, lo: float | list[float] = LO, hi: float | list[float] | None = None) -> str:
        """A property with a box: the first two inputs from LO to HI, and the others at LO, unless given."""
        d = self.x.shape[1]
        low = lo if isinstance(lo, list) else [lo] * d
        high = hi if isinstance(hi, list) else [HI, HI] + [LO] * (d - 2)
        return (
            "".join(f"(declare-const X_{i} Real)\n" for i in range(d))
            + "".join(f"(declare-const Y_{j} Real)\n" for j in range(self.y.shape[1]))
            + "".join(f"(assert (>= X_{i} {low[i]!r}))\n(assert (<= X_{i} {high[i]!r}))\n" for i in range(d))
            + conditions
        )


def written(text: str, path: Path) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    """The shape of an ACAS Xu network: (1, 1, 5) to 5 outputs."""
    widths = (5, 12, 12, 5)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nets.seeded(lambda: nn.Sequential(*layers[:-1]), 3, 2.0).float()
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    export(model, path, rows=1, shape=(1, 1, 5))
    side = np.linspace(LO, HI, 301)
    x = np.full((301 * 301, 5), LO)
    x[:, 0], x[:, 1] = (part.ravel() for part in np.meshgrid(side, side))
    with torch.no_grad():
        y = model(torch.from_numpy(x).float().reshape(-1, 1, 1, 5)).double().numpy()
    return Net(model, path, x, y)


def outputs(path: Path, x: tuple[float, ...]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return session.run(None, {name: np.array(x, dtype=np.float32).reshape(1, 1, 1, -1)})[0].ravel()


def test_every_answer_agrees_with_a_fine_grid(net, tmp_path):
    """Half-spaces that cut a corner off the outputs, and that just miss them; one row, several rows, several parts."""
    least, greatest = net.y.min(0).tolist(), net.y.max(0).tolist()
    gap = float((net.y[:, 0] - net.y[:, 1]).min())
    both = float(np.maximum(net.y[:, 2], -net.y[:, 3]).min())  # of Y_2 <= t and Y_3 >= -t together
    share = [0.02 * (b - a) for a, b in zip(least, greatest, strict=True)]
    cases: list[tuple[str, bool]] = []
    for sign in (1, -1):
        cases += [
            (f"(assert (<= Y_0 {least[0] + sign * share[0]!r}))", sign > 0),
            (f"(assert (>= Y_4 {greatest[4] - sign * share[4]!r}))", sign > 0),
            (f"(assert (<= (- Y_0 Y_1) {gap + sign * share[0]!r}))", sign > 0),
            (f"(assert (<= Y_2 {both + sign * share[2]!r}))(assert (>= Y_3 {-both - sign * share[2]!r}))", sign > 0),
            (
                f"(assert (or (and (<= Y_0 {least[0] - share[0]!r})) (and (>= Y_4 {greatest[4] - sign * share[4]!r})"
                f" (>= Y_1 {least[1] - 1!r})) (and (<= Y_2 {least[2] - share[2]!r}) (<= Y_0 9))))",
                sign > 0,
            ),
        ]
    for number, (conditions, unsafe) in enumerate(cases):
        path = written(net.spec(conditions), tmp_path / f"{number}.vnnlib")
        spec = parse_property(path.read_text())
        on_grid = any(case.has(x, y) for case in spec.cases for x, y in zip(net.x[::17], net.y[::17], strict=True))
        assert unsafe or not on_grid
        found = check_property(net.path, path, timeout=60)
        assert found.answer == ("sat" if unsafe else "unsat"), conditions
        if unsafe:
            assert any(case.has(np.array(found.x), outputs(net.path, found.x)) for case in spec.cases)


def test_boxes_of_their_own_are_all_looked_at(net, tmp_path):
    """The unsafe output is in the second of three boxes only."""
    best = net.x[net.y[:, 0].argmin()]
    bound = float(net.y[:, 0].min()) + 1e-3
    boxes = ([0.9, 0.9], best[:2], [-0.4, 0.9])
    part = "(and (>= X_0 {}) (<= X_0 {}) (>= X_1 {}) (<= X_1 {}) (<= Y_0 {}))"
    width = 1e-3
    parts = [part.format(a - width, a + width, b - width, b + width, bound) for a, b in boxes]
    wide = ([-9.0, -9.0, LO, LO, LO], [9.0, 9.0, LO, LO, LO])
    path = written(net.spec(f"(assert (or {' '.join(parts)}))", *wide), tmp_path / "boxes.vnnlib")
    assert len(parse_property(path.read_text()).cases) == 3
    found = check_property(net.path, path)
    assert found.answer == "sat"
    assert np.abs(np.array(found.x[:2]) - best[:2]).max() <= width
    without = written(net.spec(f"(assert (or {parts[0]} {parts[2]}))", *wide), tmp_path / "without.vnnlib")
    assert check_property(net.path, without).answer == "unsat"


def test_a_box_that_is_one_point_or_between_two_floats_is_answered_in_the_box(net, tmp_path):
    y = outputs(net.path, (0.1,) * 5)
    for offset, answer in ((1e-4, "sat"), (-1e-4, "unsat")):
        point = [0.1] * 5  # no float32
        path = written(net.spec(f"(assert (<= Y_0 {float(y[0]) + offset!r}))", point, point), tmp_path / "point.vnnlib")
        found = check_property(net.path, path)
        assert found.answer == answer
        assert found.x == ((0.1,) * 5 if answer == "sat" else ())


def test_strict_inequalities_are_not_fulfilled_on_the_boundary(net, tmp_path):
    point = [0.25] * 5
    y = float(outputs(net.path, (0.25,) * 5)[0])
    closed = written(net.spec(f"(assert (<= Y_0 {y!r}))", point, point), tmp_path / "closed.vnnlib")
    strict = written(net.spec(f"(assert (< Y_0 {y!r}))", point, point), tmp_path / "strict.vnnlib")
    assert check_property(net.path, closed).answer == "sat"
    assert check_property(net.path, strict).answer in ("unknown", "unsat")


def test_a_property_of_all_outputs_is_sat_and_one_of_no_input_is_unsat(net, tmp_path):
    assert check_property(net.path, written(net.spec(""), tmp_path / "all.vnnlib")).answer == "sat"
    empty = net.spec("(assert (<= X_0 -1.0))")
    assert check_property(net.path, written(empty, tmp_path / "none.vnnlib")).answer == "unsat"


def test_the_time_ends_a_search_and_says_so(net, tmp_path):
    bound = float(net.y[:, 0].min()) - 1e-6
    path = written(net.spec(f"(assert (<= Y_0 {bound!r}))"), tmp_path / "hard.vnnlib")
    assert check_property(net.path, path, timeout=1e-6).answer == "timeout"


def test_a_network_that_ends_in_a_softmax_is_never_proved_from_its_logits(tmp_path):
    """Its outputs are at most 1, its logits are not: a proof about those would be one about another network."""
    body = nets.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), 1, 4.0).float()
    model = nn.Sequential(body, nn.Softmax(1)).eval()
    path = tmp_path / "softmax.onnx"
    export(model, path, rows=1, shape=(1, 1, 2))
    declared = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
    box = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1)))"
    never = written(f"{declared}{box}(assert (>= Y_0 2))", tmp_path / "never.vnnlib")
    found = check_property(path, never, timeout=5)
    assert found.answer == "unknown"
    assert "softmax" in found.reason
    always = written(f"{declared}{box}(assert (<= Y_0 2))", tmp_path / "always.vnnlib")
    assert check_property(path, always).answer == "sat"


def test_files_that_do_not_fit_each_other_are_refused(net, tmp_path):
    declared = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (and (>= X_0 0) (<= X_0 1)))"
    with pytest.raises(eb.BadInput, match="`property` must be about the 5 inputs of the network, got 1"):
        check_property(net.path, written(declared, tmp_path / "one.vnnlib"))
    text = net.spec("").replace("(declare-const Y_4 Real)\n", "")
    with pytest.raises(eb.BadInput, match="`property` must be about the 5 outputs of the network, got 4"):
        check_property(net.path, written(text, tmp_path / "four.vnnlib"))
    with pytest.raises(eb.BadInput, match="`model` must be an existing file"):
        check_property(tmp_path / "nothing.onnx", written(net.spec(""), tmp_path / "all.vnnlib"))


# The property as a classifier


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_classifier_answers_0_exactly_where_no_conjunction_holds(dtype):
    rng = np.random.default_rng(0)
    for rows in ((1, 1), (1, 3, 2), (5,), (0, 2)):
        unsafe = [
            Conjunction(rng.integers(-3, 4, (r, 4)).astype(float), rng.normal(size=r), np.zeros(r, dtype=bool))
            for r in rows
        ]
        network = PropertyNetwork(nn.Identity(), unsafe, dtype)
        y = torch.from_numpy(rng.normal(size=(500, 4))).to(dtype)
        logits = network(y)
        assert network.is_exact
        assert logits.shape == (500, 1 + len(rows))
        assert (logits[:, 0] == 0).all()
        expected = np.array([[one.contains(row) for one in unsafe] for row in y.double().numpy()])
        assert np.array_equal((logits[:, 1:] >= 0).numpy(), expected)


def test_bounds_that_float32_cannot_hold_are_rounded_so_that_more_is_unsafe():
    bound = 0.1 - 1e-9
    one = Conjunction(np.array([[1.0]]), np.array([bound]), np.zeros(1, dtype=bool))
    network = PropertyNetwork(nn.Identity(), [one], torch.float32)
    assert float(network.bound[-1]) >= bound
    tenth = Conjunction(np.array([[0.1]]), np.zeros(1), one.strict)
    assert not PropertyNetwork(nn.Identity(), [tenth], torch.float32).is_exact


def test_a_factor_that_float32_cannot_hold_is_proved_in_double_precision(net, tmp_path):
    conditions = f"(assert (<= (* 0.1 Y_0) {0.1 * (float(net.y[:, 0].min()) - 0.05)!r}))"
    assert check_property(net.path, written(net.spec(conditions), tmp_path / "factor.vnnlib")).answer == "unsat"


def test_a_case_has_points_of_its_box_only():
    case = Case(np.zeros(1), np.ones(1), (Conjunction(np.zeros((0, 1)), np.zeros(0), np.zeros(0, dtype=bool)),))
    assert case.has(np.array([1.0]), np.zeros(1))
    assert not case.has(np.array([1 + 1e-9]), np.zeros(1))


# The command


def test_the_command_prints_a_counterexample_as_the_competition_reads_it(net, tmp_path):
    bound = float(net.y[:, 0].min()) + 1e-3
    path = written(net.spec(f"(assert (<= Y_0 {bound!r}))"), tmp_path / "sat.vnnlib")
    done = run("certify", "--model", str(net.path), "--property", str(path))
    assert done.returncode == 0
    first, rest = done.stdout.split("\n", 1)
    assert first == "sat"
    assert rest.startswith("((X_0 ")
    assert rest.endswith("))\n")
    values = {name: float(value) for name, value in re.findall(r"\(([XY]_\d) ([^()\s]+)\)", rest)}
    assert list(values) == [f"X_{i}" for i in range(5)] + [f"Y_{j}" for j in range(5)]
    x, y = (np.array([value for name, value in values.items() if name[0] == kind]) for kind in "XY")
    assert (np.array([LO] * 5) <= x).all()
    assert (x <= np.array([HI, HI, LO, LO, LO])).all()
    assert y[0] <= bound
    np.testing.assert_allclose(outputs(net.path, tuple(x)), y, rtol=1e-5, atol=1e-6)


def test_a_benchmark_is_answered_line_by_line_and_a_bad_line_does_not_end_it(net, tmp_path):
    low, high = float(net.y[:, 0].min()), float(net.y[:, 0].max())
    written(net.spec(f"(assert (<= Y_0 {high!r}))"), tmp_path / "sat.vnnlib")
    written(net.spec(f"(assert (<= Y_0 {low - 10!r}))"), tmp_path / "unsat.vnnlib")
    written("(declare-const", tmp_path / "broken.vnnlib")
    (tmp_path / "net.onnx").write_bytes(net.path.read_bytes())
    lines = ["net.onnx,sat.vnnlib,60", "net.onnx,broken.vnnlib,60", "", "net.onnx,unsat.vnnlib,60.5"]
    table = written("\n".join(lines) + "\n", tmp_path / "instances.csv")
    assert [one.timeout for one in read_instances(table)] == [60, 60, 60.5]
    out = tmp_path / "results.csv"
    done = run("certify", "--instances", str(table), "--out", str(out), "--timeout", "30")
    assert done.returncode == 0
    answers = [line.split(",")[2] for line in done.stdout.splitlines()]
    assert answers == ["sat", "error", "unsat"]
    assert out.read_text() == done.stdout
    assert "never closed" in done.stderr
    found = [answer for _, answer in check_instances(table)]
    assert [answer.answer for answer in found] == answers
    assert PropertyAnswer.from_json(found[0].to_json()) == found[0]


@pytest.mark.parametrize("text", ["net.onnx,p.vnnlib\n", "net.onnx,p.vnnlib,soon\n", "net.onnx,p.vnnlib,0\n", "\n"])
def test_a_benchmark_with_a_bad_line_is_refused_before_it_begins(text, tmp_path):
    with pytest.raises(eb.BadInput, match=r"`instances` must have|`seconds` must be"):
        read_instances(written(text, tmp_path / "instances.csv"))


def test_the_command_certifies_a_model_on_data(tmp_path):
    out = tmp_path / "certificates.json"
    done = run(
        *("certify", "--model", "small-mlp", "--first", "20", "--epochs", "3", "--ball", "linf:0.01"),
        *("--method", "crown", "--out", str(out), "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = eb.Certification.load(out)
    assert len(found) == 20
    assert found.certified_accuracy > 0.5
    assert f'"certified_accuracy": {found.certified_accuracy}' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--timeout", "5"), "`--timeout` must be given with"),
        (("--property", "p.vnnlib", "--instances", "i.csv"), "`--property` must be left out with"),
        (("--property", "p.vnnlib"), "`--model` must be an ONNX file with"),
        (("--method", "smoothing"), "`--method` must give sigma for smoothing"),
        (("--method", "smoothing:sigma=x"), "`--method` must have options such as sigma=0.25"),
        (("--method", "smoothing:sigma=1,m=3"), "must be one of sigma, n0, n, alpha"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    done = run("certify", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
