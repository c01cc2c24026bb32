"""VNN-LIB: what properties say, and what is refused, with the line, before it costs anything."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

import epsball as eb
from epsball.certify.vnnlib import Property, parse_property, read_property


def declared(inputs: int, outputs: int) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{j}" for j in range(outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def boxed(inputs: int, lo: float = -1.0, hi: float = 1.0) -> str:
    return "".join(f"(assert (>= X_{i} {lo}))\n(assert (<= X_{i} {hi}))\n" for i in range(inputs))


def holds(spec: Property, x: list[float], y: list[float]) -> bool:
    return any(case.has(np.array(x), np.array(y)) for case in spec.cases)


def test_a_conjunction_of_outputs_as_acas_xu_has_it():
    spec = parse_property(
        "; Unscaled Input 0: (1500, 1800)\n" + declared(2, 3) + boxed(2, -0.25, 0.5)
        + "\n; unsafe if COC is minimal\n(assert (<= Y_0 Y_1))\n(assert (<= Y_0 Y_2))\n(assert (>= Y_0 -3.5e-1))"
    )  # fmt: skip
    assert (spec.inputs, spec.outputs, len(spec.cases)) == (2, 3, 1)
    (case,) = spec.cases
    assert case.lower.tolist() == [-0.25, -0.25]
    assert case.upper.tolist() == [0.5, 0.5]
    (unsafe,) = case.unsafe
    assert unsafe.weight.tolist() == [[1, -1, 0], [1, 0, -1], [-1, 0, 0]]
    assert unsafe.bound.tolist() == [0, 0, 0.35]
    assert holds(spec, [0.5, -0.25], [0, 0, 1])
    assert not holds(spec, [0.5, -0.25], [0, -0.1, 1])
    assert not holds(spec, [0.5, -0.250001], [0, 0, 1])


def test_a_disjunction_as_robustness_has_it():
    spec = parse_property(
        declared(1, 4) + boxed(1) + "(assert (or\n  (and (>= Y_0 Y_2))\n  (and (>= Y_1 Y_2))\n  (and (>= Y_3 Y_2))\n))"
    )
    assert len(spec.cases) == 1
    assert [one.weight.tolist() for one in spec.cases[0].unsafe] == [[[-1, 0, 1, 0]], [[0, -1, 1, 0]], [[0, 0, 1, -1]]]
    assert not holds(spec, [0], [1, 2, 3, 2.5])
    assert holds(spec, [0], [1, 3, 3, 2.5])


def test_boxes_in_a_disjunction_are_cases_of_their_own_and_equal_ones_are_one():
    inside = "(and (>= X_0 {0}) (<= X_0 {1}) (>= Y_0 {2}))"
    parts = [inside.format(*part) for part in ((0, 1, 5), (2, 3, 6), (0, 1, 7), (4, 3, 0))]
    spec = parse_property(declared(1, 1) + f"(assert (or {' '.join(parts)}))(assert (<= Y_0 9))")
    assert [(case.lower[0], case.upper[0], len(case.unsafe)) for case in spec.cases] == [(0, 1, 2), (2, 3, 1)]
    for x, y, expected in ((0.5, 5, True), (0.5, 4.9, False), (2.5, 5.5, False), (2.5, 6, True), (2.5, 9.5, False)):
        assert holds(spec, [x], [y]) == expected


def test_two_disjunctions_are_multiplied_and_nesting_does_not_matter():
    spec = parse_property(
        declared(1, 2) + boxed(1)
        + "(assert (or (<= Y_0 0) (and (or (>= Y_0 4) (and (>= Y_0 2) (<= Y_0 3))))))"
        + "(assert (or (<= Y_1 0) (>= Y_1 1)))"
    )  # fmt: skip
    assert len(spec.cases[0].unsafe) == 6
    for y0, first in ((0, True), (1, False), (2.5, True), (3.5, False), (4, True)):
        for y1, second in ((-1, True), (0.5, False), (1, True)):
            assert holds(spec, [0], [y0, y1]) == (first and second)


@pytest.mark.parametrize(
    ("text", "weight", "bound", "strict"),
    [
        ("(<= Y_0 (- 1.5))", [1, 0], -1.5, False),
        ("(>= 1e-3 Y_1)", [0, 1], 1e-3, False),
        ("(< (+ Y_0 (* 2 Y_1) 3) (- Y_1 (* Y_0 -.5)))", [0.5, 1], -3, True),
        ("(> Y_0 +2.)", [-1, 0], -2, True),
        ("(<= (- (- Y_0)) (- 4 1 Y_1))", [1, 1], 3, False),
    ],
)
def test_linear_expressions_and_spellings_of_numbers(text, weight, bound, strict):
    (unsafe,) = parse_property(declared(1, 2) + boxed(1) + f"(assert {text})").cases[0].unsafe
    assert unsafe.weight.tolist() == [weight]
    assert unsafe.bound.tolist() == [bound]
    assert unsafe.strict.tolist() == [strict]


def test_strict_inequalities_leave_the_boundary_out_and_equations_are_two():
    spec = parse_property(declared(2, 1) + boxed(1) + "(assert (= X_1 0.5))(assert (> Y_0 1))")
    assert not holds(spec, [0, 0.5], [1.0])
    assert holds(spec, [0, 0.5], [1.0000001])
    assert spec.cases[0].lower.tolist() == [-1, 0.5]
    equation = parse_property(declared(1, 1) + boxed(1) + "(assert (= Y_0 1))")
    assert holds(equation, [0], [1.0])
    assert not holds(equation, [0], [1.0000001])


def test_without_a_condition_on_outputs_all_are_unsafe_and_an_empty_box_has_no_case():
    assert holds(parse_property(declared(1, 1) + boxed(1)), [0], [7])
    assert parse_property(declared(1, 1) + boxed(1, 1, -1) + "(assert (<= Y_0 0))").cases == ()
    assert parse_property(declared(1, 1) + boxed(1) + "(assert (>= (* 0 X_0) 1))").cases == ()


def test_other_commands_of_smt_lib_and_older_declarations_are_read():
    text = "(set-logic QF_LRA)(declare-fun X_0 () Real)(declare-const Y_0 Real)" + boxed(1) + "(check-sat)(get-model)"
    assert parse_property(text).inputs == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(declare-const X_0 Int)", "line 1: a declaration must be of X_i or Y_i"),
        ("(declare-const Z Real)", "line 1: a declaration must be"),
        ("\n\n(declare-const X_0 Real)\n(declare-const X_0 Real)", "line 4: a variable must be declared once"),
        ("(declare-const X_1 Real)(declare-const Y_0 Real)", "X_0, X_1, ... must be declared without a gap"),
        (declared(1, 0), "Y_0, Y_1, ... must be declared without a gap, got 0"),
        (declared(1, 1) + "(assert (<= X_0 1))", "got no lower bound of X_0"),
        (declared(1, 1) + "(assert (<= Y_0 X_0))", "line 3: an inequality must be about one input"),
        (declared(2, 1) + "(assert (<= X_0 X_1))", "line 4: an inequality must be about one input"),
        (declared(1, 1) + "(assert (<= 0 1))", "line 3: an inequality must be about"),
        (declared(1, 1) + "(assert (<= Y_1 1))", "Y_1 must be declared first"),
        (declared(1, 1) + "(assert (<= Y_0 nan))", "'nan' must be a variable or a finite number"),
        (declared(1, 1) + "(assert (<= Y_0 1e999))", "'1e999' must be a variable or a finite number"),
        (declared(1, 1) + "(assert (<= Y_0 __import__))", "must be a variable or a finite number"),
        (declared(1, 1) + "(assert (<= (* Y_0 Y_0) 1))", "an expression must be a sum"),
        (declared(1, 1) + "(assert (/ Y_0 2))", "a condition must be and, or, or one of"),
        (declared(1, 1) + "(assert (<= Y_0))", "a comparison must have two sides"),
        (declared(1, 1) + "(assert (or Y_0))", "the parts of a condition must be conditions"),
        (declared(1, 1) + "(assert (not (<= Y_0 1)))", "a condition must be and, or, or one of"),
        (declared(1, 1) + "(assert)", "assert must have one condition"),
        ("(declare-network N)", "a list must begin with declare-const or assert"),
        ("hello", "line 1: everything must be in brackets"),
        ("(assert\n(", "line 1: a bracket is opened that is never closed"),
        (")", "line 1: a bracket is closed that was never opened"),
        ("(" * 100_000, "line 1: brackets must be at most 64 deep"),
        (declared(1, 1) + "(assert " + "(and " * 100 + ")" * 101, "brackets must be at most 64 deep"),
        (
            declared(1, 1) + boxed(1) + "(assert (or (<= Y_0 1) (>= Y_0 2)))" * 40,
            "must expand to at most 131,072 conjunctions",
        ),
        (
            declared(1, 1) + "(assert (and " + "(or (<= Y_0 1) (>= Y_0 2))" * 40 + "))",
            "line 3: it must expand to at most 131,072 conjunctions",
        ),
    ],
    ids=range(27),
)
def test_what_is_no_property_is_refused_with_its_line(text, message, tmp_path: Path):
    path = tmp_path / "bad.vnnlib"
    path.write_text(text)
    with pytest.raises(eb.BadInput) as refused:
        read_property(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 400


def test_gzip_is_read_up_to_a_size(tmp_path: Path):
    path = tmp_path / "spec.vnnlib.gz"
    path.write_bytes(gzip.compress((declared(2, 1) + boxed(2)).encode()))
    assert read_property(path).inputs == 2
    path.write_bytes(gzip.compress(b";" * (65 << 20)))
    with pytest.raises(eb.BadInput, match="must unpack to at most 64 MiB"):
        read_property(path)
    for damaged in (gzip.compress(declared(1, 1).encode())[:-12], b"no gzip", b""):
        path.write_bytes(damaged)
        with pytest.raises(eb.BadInput, match="`property` must be a VNN-LIB file"):
            read_property(path)


def test_files_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(eb.BadInput, match="`property` must be an existing file"):
        read_property(tmp_path / "nothing.vnnlib")
    for other in (tmp_path, Path("/dev/zero")):
        with pytest.raises(eb.BadInput, match="must be a regular file"):
            read_property(other)
    (tmp_path / "picture.vnnlib").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(eb.BadInput, match="it is no text"):
        read_property(tmp_path / "picture.vnnlib")
