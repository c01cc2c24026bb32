"""Properties in VNN-LIB 1.0, as VNN-COMP uses it: for which inputs of a network which outputs would be unsafe.

A file declares inputs X_0, X_1, ... and outputs Y_0, Y_1, ... and asserts what a counterexample is: bounds of the
inputs, linear inequalities of the outputs, joined by `and` and `or` (Demarchi et al., "The VNN-LIB standard", 2023; the
language is that of SMT-LIB). Here it becomes cases: a box of inputs, and conjunctions of inequalities A y <= b, one of
which a counterexample in the box fulfils. A file may come from somebody else: nothing is evaluated, and its size, its
depth and what it expands to are checked.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from epsball.common.errors import BadInput
from epsball.common.limits import FREE, MIB, RATIO, check_file, read_bytes

MOST_TEXT = 128 * MIB
"""Bytes of a property, unpacked."""
MOST_DEPTH = 64
MOST_VARIABLES = 1 << 22
MOST_TERMS = 1 << 17
"""Conjunctions that a property may expand to."""
MOST_NUMBERS = 1 << 26
"""Numbers in the boxes and inequalities that it may expand to."""

TOKEN = re.compile(r";[^\n]*|\n|[()]|[^\s();]+")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
VARIABLE = re.compile(r"([XY])_(\d{1,9})")
COMPARISONS = ("<=", ">=", "<", ">", "=")
IGNORED = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "get-value", "exit"}

Variable = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Conjunction:
    """Outputs y with weight @ y <= bound in every row, and weight @ y < bound where `strict`; no rows: all outputs."""

    weight: Float[np.ndarray, "rows outputs"]
    bound: Float[np.ndarray, " rows"]
    strict: Bool[np.ndarray, " rows"]

    def contains(self, y: Float[np.ndarray, " outputs"]) -> bool:
        """Whether y fulfils all rows, in double precision."""
        value = self.weight @ y.astype(np.float64)
        return bool(np.where(self.strict, value < self.bound, value <= self.bound).all())


@dataclass(frozen=True, eq=False)
class Case:
    """The inputs from `lower` to `upper` whose output is in one of the conjunctions are counterexamples."""

    lower: Float[np.ndarray, " inputs"]
    upper: Float[np.ndarray, " inputs"]
    unsafe: tuple[Conjunction, ...]

    def has(self, x: Float[np.ndarray, " inputs"], y: Float[np.ndarray, " outputs"]) -> bool:
        """Whether x with the output y is a counterexample; no tolerance."""
        inside = bool(((self.lower <= x) & (x <= self.upper)).all())
        return inside and any(conjunction.contains(y) for conjunction in self.unsafe)


@dataclass(frozen=True, eq=False)
class Property:
    """The cases of a property; it is safe where none of them has a counterexample (no cases: always)."""

    inputs: int
    outputs: int
    cases: tuple[Case, ...]


def read_property(path: str | Path) -> Property:
    """The property in a `.vnnlib` or `.vnnlib.gz` file.

    Strict bounds of inputs are read as bounds. Raises `BadInput`, with the line, for what is not VNN-LIB 1.0, for
    inputs without bounds, for inequalities between inputs, or inputs and outputs, and for what is too large.
    """
    path = Path(path).expanduser()
    try:
        return parse_property(_text(path))
    except FileNotFoundError:
        raise BadInput(f"`property` must be an existing file, got {str(path)!r}") from None
    except BadInput as error:
        raise BadInput(f"`property` must be a VNN-LIB file that can be read, got {str(path)!r}: {error}") from error


def parse_property(text: str) -> Property:
    """The property that a text in VNN-LIB describes; see `read_property`.

    >>> found = parse_property('''
    ... (declare-const X_0 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
    ... (assert (and (>= X_0 -1) (<= X_0 1))) (assert (<= Y_0 Y_1)) ; Y_0 is not greater
    ... ''')
    >>> found.cases[0].lower, found.cases[0].unsafe[0].weight, found.cases[0].unsafe[0].bound
    (array([-1.]), array([[ 1., -1.]]), array([0.]))
    """
    reader = _Reader()
    for form in _forms(text):
        reader.take(form)
    return reader.property()


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        data = read_bytes(path, MOST_TEXT)
    else:
        most = min(MOST_TEXT, max(FREE, RATIO * check_file(path, MOST_TEXT)))
        try:
            with gzip.open(path) as file:
                data = file.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"it is no whole gzip file ({error})") from error
        if len(data) > most:
            raise BadInput(f"it must unpack to at most {most // MIB} MiB, got more")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"it is no text ({error})") from error


@dataclass(eq=False)
class _Form:
    """A list in brackets, and the line on which it begins."""

    line: int
    items: list[_Form | str]

    @property
    def head(self) -> str:
        first = self.items[0] if self.items else ""
        return first if isinstance(first, str) else ""

    def wrong(self, rule: str) -> BadInput:
        """The error of this form."""
        return BadInput(f"line {self.line}: {rule}, got {_shown(self)}")


def _shown(item: _Form | str, most: int = 60) -> str:
    if isinstance(item, str):
        return item[:most]
    parts: list[str] = []
    for part in item.items[:8]:
        parts.append(part[:most] if isinstance(part, str) else f"({part.head[:most]} ...)")
    return f"({' '.join(parts)})"[:most]


def _forms(text: str) -> Iterator[_Form]:
    """The outermost lists of a text, one at a time."""
    stack: list[_Form] = []
    line = 1
    for found in TOKEN.finditer(text):
        token = found[0]
        if token == "\n":
            line += 1
        elif token == "(":
            if len(stack) == MOST_DEPTH:
                raise BadInput(f"line {line}: brackets must be at most {MOST_DEPTH} deep, got more")
            form = _Form(line, [])
            if stack:
                stack[-1].items.append(form)
            stack.append(form)
        elif token == ")":
            if not stack:
                raise BadInput(f"line {line}: a bracket is closed that was never opened")
            form = stack.pop()
            if not stack:
                yield form
        elif token[0] != ";":
            if not stack:
                raise BadInput(f"line {line}: everything must be in brackets, got {token[:60]!r}")
            stack[-1].items.append(token)
    if stack:
        raise BadInput(f"line {stack[0].line}: a bracket is opened that is never closed")


@dataclass(frozen=True)
class _Inequality:
    """A sum of factors times variables, all inputs or all outputs, is at most `bound`, or less where `strict`."""

    terms: tuple[tuple[Variable, float], ...]
    bound: float
    strict: bool
    line: int

    @property
    def of_input(self) -> bool:
        return self.terms[0][0][0] == "X"


Term = list[_Inequality]


class _Reader:
    """The declarations and assertions so far: single inequalities, and disjunctions of conjunctions of them."""

    def __init__(self) -> None:
        self.declared: dict[str, set[int]] = {"X": set(), "Y": set()}
        self.single: Term = []
        self.choices: list[list[Term]] = []

    def take(self, form: _Form) -> None:
        """One outermost list."""
        if form.head == "assert":
            if len(form.items) != 2 or isinstance(form.items[1], str):
                raise form.wrong("assert must have one condition")
            terms = self.terms(form.items[1])
            if len(terms) == 1:
                self.single += terms[0]
            else:
                self.choices.append(terms)
        elif form.head in ("declare-const", "declare-fun"):
            self.declare(form)
        elif form.head not in IGNORED:
            raise form.wrong("a list must begin with declare-const or assert")

    def declare(self, form: _Form) -> None:
        """A variable."""
        items = form.items[1:]
        if form.head == "declare-fun" and len(items) == 3 and isinstance(items[1], _Form) and not items[1].items:
            items = [items[0], items[2]]
        name = items[0] if items else ""
        found = VARIABLE.fullmatch(name) if isinstance(name, str) else None
        if found is None or items[1:] != ["Real"]:
            raise form.wrong("a declaration must be of X_i or Y_i, with i from 0, as Real")
        numbers = self.declared[found[1]]
        if int(found[2]) in numbers:
            raise form.wrong("a variable must be declared once")
        if len(numbers) == MOST_VARIABLES:
            raise form.wrong(f"there must be at most {MOST_VARIABLES:,} variables")
        numbers.add(int(found[2]))

    def terms(self, form: _Form) -> list[Term]:
        """The disjunction of conjunctions that a condition is."""
        if form.head in COMPARISONS:
            return [self.comparison(form)]
        if form.head not in ("and", "or"):
            raise form.wrong(f"a condition must be and, or, or one of {' '.join(COMPARISONS)}")
        parts: list[list[Term]] = []
        for item in form.items[1:]:
            if isinstance(item, str):
                raise form.wrong("the parts of a condition must be conditions")
            parts.append(self.terms(item))
        if form.head == "or":
            found = [term for part in parts for term in part]
            if len(found) > MOST_TERMS:
                raise form.wrong(f"it must expand to at most {MOST_TERMS:,} conjunctions")
            return found
        return _product(parts, form.line)

    def comparison(self, form: _Form) -> Term:
        """The inequalities of a comparison: one, or two for an equation."""
        if len(form.items) != 3:
            raise form.wrong("a comparison must have two sides")
        left, right = (self.linear(item, form) for item in form.items[1:])
        terms = dict(left)
        for variable, factor in right.items():
            terms[variable] = terms.get(variable, 0.0) - factor
        bound = 0.0 - terms.pop(CONSTANT, 0.0)
        kinds = {kind for kind, _ in terms}
        if len(kinds) != 1 or (kinds == {"X"} and len(terms) > 1):
            raise form.wrong("an inequality must be about one input and a number, or about outputs")
        signs = {"<=": (1,), "<": (1,), ">=": (-1,), ">": (-1,), "=": (1, -1)}[form.head]
        return [
            _Inequality(
                terms=tuple((variable, sign * factor) for variable, factor in terms.items()),
                bound=sign * bound, strict=form.head in ("<", ">"), line=form.line,
            )
            for sign in signs
        ]  # fmt: skip

    def linear(self, item: _Form | str, form: _Form) -> dict[Variable, float]:
        """The coefficients of a linear expression; that of `CONSTANT` is its constant."""
        if isinstance(item, str):
            if (found := VARIABLE.fullmatch(item)) is not None:
                if int(found[2]) not in self.declared[found[1]]:
                    raise form.wrong(f"{item} must be declared first")
                return {(found[1], int(found[2])): 1.0}
            if NUMBER.fullmatch(item) is None or not math.isfinite(number := float(item)):
                raise form.wrong(f"{item[:60]!r} must be a variable or a finite number")
            return {CONSTANT: number}
        parts = [self.linear(part, form) for part in item.items[1:]]
        if item.head == "*" and len(parts) == 2:
            factor, other = parts if set(parts[0]) <= {CONSTANT} else parts[::-1]
            if set(factor) <= {CONSTANT}:
                return {variable: factor.get(CONSTANT, 0.0) * value for variable, value in other.items()}
        if item.head not in ("+", "-") or not parts:
            raise form.wrong("an expression must be a sum, a difference, or a number times another one")
        total = dict(parts[0])
        if item.head == "-" and len(parts) == 1:
            return {variable: -value for variable, value in total.items()}
        sign = 1 if item.head == "+" else -1
        for part in parts[1:]:
            for variable, value in part.items():
                total[variable] = total.get(variable, 0.0) + sign * value
        return total

    def property(self) -> Property:
        """All of it, expanded."""
        counts = {kind: len(numbers) for kind, numbers in self.declared.items()}
        for kind, numbers in self.declared.items():
            if numbers != set(range(len(numbers))) or not numbers:
                raise BadInput(f"{kind}_0, {kind}_1, ... must be declared without a gap, got {len(numbers):,} of them")
        terms = _product([[[]], *self.choices], 0)
        boxes: dict[tuple[tuple[int, float, float], ...], tuple[np.ndarray, np.ndarray, list[Conjunction]]] = {}
        lower, upper = np.full(counts["X"], -np.inf), np.full(counts["X"], np.inf)
        _bound(lower, upper, self.single)
        shared = [one for one in self.single if not one.of_input]
        size = 0
        for term in terms:
            own = [one for one in term if one.of_input]
            outputs = shared + [one for one in term if not one.of_input]
            key = tuple(sorted((one.terms[0][0][1], one.terms[0][1], one.bound) for one in own))
            size += len(outputs) * counts["Y"] + (0 if key in boxes else 2 * counts["X"])
            if size > MOST_NUMBERS:
                raise BadInput(f"it must expand to at most {MOST_NUMBERS:,} numbers, got more")
            if key not in boxes:
                low, high = lower.copy(), upper.copy()
                _bound(low, high, own)
                boxes[key] = low, high, []
            boxes[key][2].append(_conjunction(outputs, counts["Y"]))
        cases = []
        for low, high, unsafe in boxes.values():
            for name, ends in (("lower", low), ("upper", high)):
                if not np.isfinite(ends).all():
                    first = int(np.flatnonzero(~np.isfinite(ends))[0])
                    raise BadInput(f"every input must have two bounds, got no {name} bound of X_{first}")
            if (low <= high).all():
                cases.append(Case(low, high, tuple(unsafe)))
        return Property(counts["X"], counts["Y"], tuple(cases))


CONSTANT: Variable = ("", 0)


def _product(parts: list[list[Term]], line: int) -> list[Term]:
    """The conjunction of disjunctions, as a disjunction of conjunctions."""
    count = math.prod(len(part) for part in parts)
    if count * max(1, sum(max(map(len, part), default=0) for part in parts)) > MOST_NUMBERS or count > MOST_TERMS:
        place = f"line {line}: " if line else ""
        raise BadInput(f"{place}it must expand to at most {MOST_TERMS:,} conjunctions, got {count:,}")
    return [[one for term in choice for one in term] for choice in product(*parts)]


def _bound(lower: np.ndarray, upper: np.ndarray, inequalities: Term) -> None:
    """Intersect a box, in place, with those of the inequalities that are about inputs."""
    for one in inequalities:
        if one.of_input:
            ((_, i), factor) = one.terms[0]
            if factor == 0:
                if one.bound < 0:
                    lower[i], upper[i] = 1.0, 0.0  # 0 <= bound is false: an empty box
            elif factor > 0:
                upper[i] = min(upper[i], one.bound / factor)
            else:
                lower[i] = max(lower[i], one.bound / factor)


def _conjunction(inequalities: Term, outputs: int) -> Conjunction:
    weight = np.zeros((len(inequalities), outputs))
    for row, one in enumerate(inequalities):
        for (_, j), factor in one.terms:
            weight[row, j] += factor
    bound = np.array([one.bound for one in inequalities], dtype=np.float64)
    return Conjunction(weight, bound, np.array([one.strict for one in inequalities], dtype=bool))
