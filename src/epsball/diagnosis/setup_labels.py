"""The checks of a set-up that compare labels with predictions, without a model call.

Labels that are numbered otherwise than the model's outputs leave a trace in the confusion of labels and predictions:
after the right renumbering they agree. A renumbering is fitted on one half of the examples and tested on the other, so
that none is found by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from epsball.diagnosis.setup_record import Finding

GAIN, SIGNIFICANT = 0.2, 4.0
"""Something raises the accuracy where it does by this much, and by so many standard errors."""
NEAR_CHANCE = 0.25
"""Predictions are near chance where their agreement with the labels is less than this share of the way from chance to
all, and not significantly above chance."""
DOMINANT, ENOUGH = 0.6, 5
"""A label is predicted as a class where so large a share of its examples is, of at least so many."""
FEW, BINARY_FEW = 10, 20
"""So many examples (with two classes: so many) of a single class are no chance."""
EXPECTED, BALANCED = 0.01, 0.3
"""Classes are missing where chance would leave out fewer than this number, and each of the others has at least this
share of their mean."""
AGREED = 0.15
"""The least agreement beyond chance (Cohen's kappa) of labels that were renumbered."""


def chance_accuracy(y: Int64[Tensor, " n"], predicted: Int64[Tensor, " n"], classes: int) -> float:
    """The expected accuracy of predictions as frequent as these that do not depend on the example (Cohen 1960)."""
    if not len(y):
        return 0.0
    one, two = (part.bincount(minlength=classes).double() / len(y) for part in (y, predicted))
    return float((one * two[: len(one)]).sum())


def raises(before: float, after: float, n: int) -> bool:
    """Whether an accuracy that rises from `before` to `after` on n examples does so by more than chance."""
    error = math.sqrt(max(before * (1 - before) + after * (1 - after), 1 / n) / n)
    return after - before >= max(GAIN, SIGNIFICANT * error)


def near_chance(accuracy: float, chance: float, n: int) -> bool:
    """Whether n predictions are known to be hardly better than chance."""
    error = math.sqrt(max(accuracy * (1 - accuracy), chance * (1 - chance), 0.25 / n) / n)
    return accuracy <= chance + 2 * error and accuracy + 2 * error < chance + NEAR_CHANCE * (1 - chance)


def numbering_finding(
    y: Int64[Tensor, " n"], predicted: Int64[Tensor, " n"], classes: int, class_names: tuple[str, ...] | None
) -> Finding | None:
    """Labels that are numbered otherwise than the model's outputs: without a class, shifted, by name, or permuted."""
    finders = (_gap, _shift, _permutation)
    found = (find(y, predicted, classes, class_names) for find in finders)
    return next((one for one in found if one is not None), None)


def by_the_names(finding: Finding, names: tuple[str, ...] | None, models: tuple[str, ...] | None) -> Finding:
    """The finding of another numbering, with its cause where the data's `names` are none of the model's."""
    if names is None or models is None or set(names) & set(models):
        return finding
    own, other = (", ".join(part[:5]) + (", ..." if len(part) > 5 else "") for part in (names, models))
    return replace(
        finding,
        cause=f"the data's classes ({own}) are none of the model's ({other}), so that their numbers may differ",
        remedy="give the classes of the data the names that the model has for them",
    )


def _gap(y: Tensor, predicted: Tensor, classes: int, names: tuple[str, ...] | None) -> Finding | None:
    """Data that lack a class and number the later ones without a gap: each is one too low."""
    highest = int(y.max())
    if highest > classes - 2:
        return None
    moved = {gone: y + (y >= gone) for gone in range(1, highest + 1)}
    gone = max(moved, key=lambda one: int((moved[one] == predicted).sum()), default=0)
    rows = y >= gone
    if not gone or not _agrees_better(y[rows], moved[gone][rows], predicted[rows], classes):
        return None
    if (y == predicted)[~rows].double().mean() < 2 / classes:  # the classes below it have to be right
        return None
    first = y == gone
    return Finding(
        "class-missing",
        f"the data lack class {gone}{_named(gone, names)}, and number the classes after it without a gap",
        f"label {gone} is predicted as {gone + 1} in {_pc((predicted[first] == gone + 1).double().mean())} of its "
        f"examples, and lower labels are right",
        f"number the classes as the model does: make an empty folder for class {gone}, or write y = y + (y >= {gone})",
    )


def _shift(y: Tensor, predicted: Tensor, classes: int, names: tuple[str, ...] | None) -> Finding | None:
    """Labels that are one too high or too low; of two classes, swapped."""
    agreement = float((y == predicted).double().mean())
    for by, said in ((-1, "too high by one (counted from 1?)"), (1, "too low by one")):
        moved = (y + by) % classes
        after = float((moved == predicted).double().mean())
        if raises(agreement, after, len(y)) and _kappa(moved, predicted, classes) >= AGREED:
            figures = f"{_pc(after)} of {len(y):,} predictions equal y {by:+d}, and {_pc(agreement)} equal y"
            if classes == 2:
                figures = f"{_pc(agreement)} of {len(y):,} predictions equal y, {_pc(after)} equal the other class"
                return Finding(
                    "labels-swapped", "the labels of the two classes are swapped", figures, "write y = 1 - y"
                )
            remedy = f"number the classes as the model does: y = y {'+' if by > 0 else '-'} 1"
            return Finding("labels-shifted", f"labels are {said}", figures, remedy)
    return None


def _permutation(y: Tensor, predicted: Tensor, classes: int, names: tuple[str, ...] | None) -> Finding | None:
    """Labels in another order than the model's outputs."""
    if float((y == predicted).double().mean()) > 1 - 2 / max(len(y), 1) - 0.02:
        return None
    renumbered = _renumbered(y, predicted, classes)
    if not _agrees_better(y, renumbered, predicted, classes):
        return None
    pairs = {label: int(renumbered[y == label].mode().values) for label in y.unique().tolist()}
    by_name = sorted(range(classes), key=str)
    cause = "labels are numbered in another order than the model's outputs"
    if classes > 10 and sum(by_name[label] == to for label, to in pairs.items()) > 0.8 * len(pairs):
        cause = "classes are numbered in the order of their names as text, 10 before 2"
    moved = ", ".join(f"label {label} as {to}" for label, to in pairs.items() if label != to)
    before, after = ((part == predicted).double().mean() for part in (y, renumbered))
    return Finding(
        "labels-permuted",
        cause,
        f"{_pc(before)} of the predictions equal the labels, renumbered {_pc(after)}; predicted is {moved}",
        "number the classes as the model does",
    )


def _agrees_better(y: Tensor, other: Tensor, predicted: Tensor, classes: int) -> bool:
    """Whether other labels agree with the predictions, and y less: in all, or where the two differ."""
    n = len(y)
    before, after = (float((part == predicted).double().mean()) for part in (y, other))
    if raises(before, after, n) and _kappa(other, predicted, classes) >= AGREED:
        return True
    rows = y != other
    if int(rows.sum()) < ENOUGH:
        return False
    before, after = (float((part == predicted)[rows].double().mean()) for part in (y, other))
    return after >= DOMINANT and raises(before, after, int(rows.sum()))


def accuracy_finding(y: Int64[Tensor, " n"], predicted: Int64[Tensor, " n"], classes: int) -> Finding | None:
    """Predictions that are always the same, or agree with the labels by chance only."""
    n, accuracy = len(y), float((y == predicted).double().mean())
    if len(y.unique()) == 1:
        return None  # the labels say nothing
    chance = chance_accuracy(y, predicted, classes)
    figures = f"clean accuracy {_pc(accuracy)} of {n:,}, chance {_pc(chance)}"
    if n >= FEW and len(predicted.unique()) == 1:
        return Finding(
            "constant-predictions",
            f"the model predicts class {int(predicted[0])} for every example: its weights were not loaded, or x is not "
            "in the range it was trained on",
            figures,
            "look at how weights and x are read",
        )
    if near_chance(accuracy, chance, n):
        return Finding(
            "chance-accuracy",
            "the model does not know these labels: its weights were not loaded, x is scaled or normalised otherwise "
            "than in training, or labels are not in the order of x",
            figures,
            "look at how weights, x and y are read, until the clean accuracy is that of training",
        )
    return None


def _dominant(confusion: Int64[Tensor, "k k"]) -> dict[int, int]:
    """The labels that are mostly predicted as one class, and that class, where no two have the same."""
    counts = confusion.sum(1)
    most, to = confusion.max(1)
    rows = ((counts >= ENOUGH) & (most >= DOMINANT * counts)).nonzero().flatten().tolist()
    found = {label: int(to[label]) for label in rows}
    return found if len(set(found.values())) == len(found) else {}


def _renumbered(y: Int64[Tensor, " n"], predicted: Int64[Tensor, " n"], classes: int) -> Int64[Tensor, " n"]:
    """The labels, in the numbering that agrees best with the predictions on the other half of the examples."""
    from scipy.optimize import linear_sum_assignment

    found = y.clone()
    for half in (0, 1):
        fit, use = slice(half, None, 2), slice(1 - half, None, 2)
        counts = (y[fit] * classes + predicted[fit]).bincount(minlength=classes * classes)
        gain = counts.reshape(classes, classes).double() + torch.eye(classes, device=y.device) / 2  # ties stay
        _, order = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
        found[use] = torch.from_numpy(order).to(y)[y[use]]
    return found


def _kappa(y: Int64[Tensor, " n"], predicted: Int64[Tensor, " n"], classes: int) -> float:
    """Agreement beyond chance, as a share of what is possible (Cohen 1960)."""
    chance = chance_accuracy(y, predicted, classes)
    return (float((y == predicted).double().mean()) - chance) / max(1 - chance, 1e-9)


def _named(label: int, names: tuple[str, ...] | None) -> str:
    return f" ({names[label]})" if names is not None and label < len(names) else ""


def _pc(share: float | Tensor) -> str:
    return f"{100 * float(share):.0f} %"


def class_findings(
    y: Int64[Tensor, " n"], ids: Int64[Tensor, " n"], classes: int, names: tuple[str, ...] | None
) -> Iterator[Finding]:
    """A single class, or classes without an example where chance would have left out none; `ids` are row numbers."""
    n, counts = len(y), y.bincount(minlength=classes)
    present = (counts > 0).nonzero().flatten().tolist()
    ordered = bool((y.diff() >= 0).all()) if n > 1 else False
    cut = ordered and counts[len(present) :].sum() == 0  # the last classes are those without an example
    cut = cut and torch.equal(ids, torch.arange(n).to(ids))  # and no sample
    cause = "the data are sorted by class and lack the last ones (were the first rows taken?)"
    cause = cause if cut else "the data have no example of some classes"
    if classes > 1 and len(present) == 1 and n >= (BINARY_FEW if classes == 2 else FEW):
        yield Finding(
            "one-class",
            cause if present[0] == 0 else "labels were lost, or the examples of one class were taken",
            f"all {n:,} labels are {present[0]}{_named(present[0], names)}, of {classes:,} classes",
            "take a random sample of all rows",
        )
        return
    missing = classes - len(present)
    expected = classes * (1 - 1 / classes) ** n if classes > 1 else 0.0
    whole = counts[present[:-1] if ordered else present]  # the last of ordered classes may have been cut
    balanced = len(whole) > 0 and float(whole.min()) >= BALANCED * n / len(present)
    if missing and expected < EXPECTED and balanced:
        gone = [label for label in range(classes) if counts[label] == 0]
        listed = ", ".join(f"{label}{_named(label, names)}" for label in gone[:5]) + (", ..." if len(gone) > 5 else "")
        yield Finding(
            "classes-missing",
            cause,
            f"of {classes:,} classes {missing:,} have no example among {n:,}: {listed}",
            "take a random sample of all rows, or say that these classes are left out",
        )


def count_finding(
    y: Int64[Tensor, " n"], predicted: Int64[Tensor, " n"], classes: int, names: tuple[str, ...] | None
) -> Finding | None:
    """Data and model that know different numbers of classes, unless the predictions show that their numbers agree."""
    if names is None or len(names) == classes:
        return None
    confusion = (y * classes + predicted).bincount(minlength=classes * classes).reshape(classes, classes)
    dominant = _dominant(confusion)
    present = int((confusion.sum(1) > 0).sum())
    if len(dominant) >= present / 2 and all(label == to for label, to in dominant.items()):
        return None
    return Finding(
        "class-count",
        "data and model have different lists of classes, so that their numbers may mean different classes",
        f"the data know {len(names):,} classes, the model has {classes:,}",
        "number the classes as the model does",
    )
