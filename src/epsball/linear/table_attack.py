"""The exact worst point of every row of a table, for a fitted linear model whose columns are matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from sklearn.base import BaseEstimator, is_classifier

from epsball.balls.registry import BALLS
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.data.tables import Table, write_table
from epsball.linear.exact import minimal_eps, optimum
from epsball.linear.folding import affine
from epsball.linear.logistic import RobustClassifier
from epsball.linear.tabular import Radius


@dataclass(frozen=True, eq=False)
class TableAttack:
    """The worst points `x_adv` (n, d) of a table's rows; classes as indices into `classes`.

    Predictions are those of the points as they are here. `margin` is the score of the label less that of its strongest
    rival, `adversarial_margin` the least in the ball; with a target, those of the opponent and the target (see
    `optimum`). `minimal_eps` and `eps` are in units of `unit`: "raw", "std", or "trained", the model's own radii.
    """

    table: Table
    x_adv: Float[np.ndarray, "n d"]
    y: Int64[np.ndarray, " n"]
    rival: Int64[np.ndarray, " n"]  # the class climbed towards
    before: Int64[np.ndarray, " n"]
    after: Int64[np.ndarray, " n"]
    margin: Float[np.ndarray, " n"]
    adversarial_margin: Float[np.ndarray, " n"]
    minimal_eps: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, "classes d"]
    classes: tuple[str, ...]
    norm: str
    eps: float
    unit: str
    target: str | None

    @property
    def fooled(self) -> Bool[np.ndarray, " n"]:
        """Rows predicted right before and wrong after; with a target, those that are predicted as it after only."""
        if self.target is None:
            return (self.before == self.y) & (self.after != self.y)
        return (self.before != self.rival) & (self.after == self.rival)

    def moves(self, row: int, count: int = 3) -> list[tuple[str, float]]:
        """The features whose change moves the margin most, with the change, in units of the table."""
        step = self.x_adv[row] - self.table.x[row]
        own = self.y[row] if self.y[row] != self.rival[row] else self.before[row]
        effect = np.abs(step * (self.weight[self.rival[row]] - self.weight[own]))
        order = np.argsort(-effect, kind="stable")[:count]
        return [(self.table.features[j], float(step[j])) for j in order.tolist() if effect[j] > 0]

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them; the median minimal eps is over the rows predicted right."""
        asked = self.minimal_eps[self.before == self.y] if self.target is None else self.minimal_eps
        median = float(np.median(asked)) if len(asked) else None
        figures: dict[str, Any] = {
            "rows": len(self.table),
            "norm": self.norm,
            "eps": self.eps,
            "eps_unit": self.unit,
            "target": self.target,
            "clean_accuracy": float((self.before == self.y).mean()),
            "accuracy": float((self.after == self.y).mean()),
            "fooled": int(self.fooled.sum()),
            "median_minimal_eps": median if median is not None and np.isfinite(median) else None,
        }
        if self.target is not None:
            figures["at_target"] = float((self.before == self.rival).mean())
            figures["at_target_after"] = float((self.after == self.rival).mean())
        return figures

    def save(self, path: str | Path) -> None:
        """Write a row per example: id (row number), verdict, then the moved columns under their own names.

        A feature that is called like a column of the verdict keeps its name; that of the verdict gets a `_`.
        """
        names = np.array(self.classes)
        verdict = {
            "id": np.arange(len(self.table)),
            "label": names[self.y],
            "fooled": self.fooled,
            "prediction": names[self.before],
            "adversarial_prediction": names[self.after],
            "margin": self.margin,
            "adversarial_margin": self.adversarial_margin,
            "minimal_eps": self.minimal_eps,
        }
        columns: dict[str, Any] = {}
        for name, values in verdict.items():
            while name in self.table.features:
                name += "_"
            columns[name] = values
        write_table(path, columns | dict(zip(self.table.features, self.x_adv.T, strict=True)))


def features_of(model: BaseEstimator) -> tuple[str, ...] | None:
    """The columns that a model was fitted to, None where it does not know. Raises `BadInput` for a regression."""
    if not is_classifier(model):
        raise BadInput(f"`model` must be a classifier, got {type(model).__name__}; a worst label needs labels")
    names = getattr(model, "feature_names_in_", None)  # set by scikit-learn where it was fitted to a data frame
    return None if names is None else tuple(str(name) for name in names)


def attack_table(
    model: BaseEstimator,
    table: Table,
    *,
    radius: Radius | None = None,
    norm: str | None = None,
    lo: float = -np.inf,
    hi: float = np.inf,
    fixed: Sequence[str] = (),
    toward: str | None = None,
) -> TableAttack:
    """The exact worst point of each row in a ball around it, within [lo, hi], the `fixed` columns unchanged.

    `radius` and `norm` default to those that the model was trained for, norm else to linf. A radius in std is measured
    on the rows of `table`. `toward` is the label to reach, as text. Raises `BadInput`.
    """
    if radius is None and not isinstance(model, RobustClassifier):
        raise BadInput(f"`eps` must be given: a {type(model).__name__} was trained for no radius; as in --eps 0.1std")
    folded = affine(model)
    weight, d = folded.weight, len(table.features)
    if weight.shape[1] != d:
        raise BadInput(
            f"`data` must have the {weight.shape[1]} columns of the model, got {d}; use --drop, or name them"
        )
    norm = check_one_of("norm", norm or (model.norm if isinstance(model, RobustClassifier) else "linf"), BALLS)
    unit, eps, said = _scale(model, table, radius, norm)
    held = [check_one_of("fixed", name, table.features) for name in fixed]
    mask = np.array([name not in held for name in table.features]) & (unit > 0)
    unit = np.where(unit > 0, unit, 1.0)
    _check_box(table, lo, hi)
    labels = folded.classes.tolist()
    y = _indices(table, labels)
    goal = None if toward is None else [*map(str, labels)].index(check_one_of("toward", toward, map(str, labels)))
    step = torch.from_numpy(unit)[None]
    plain = bool((unit == 1).all())
    ball = BALLS[norm](
        eps=eps,
        lo=lo if plain or not np.isfinite(lo) else lo / step,
        hi=hi if plain or not np.isfinite(hi) else hi / step,
        mask=None if mask.all() else torch.from_numpy(mask)[None],
    )
    near = torch.from_numpy(table.x) / step
    best = optimum(weight * step, folded.bias, near, y, ball, goal)
    least = minimal_eps(weight * step, folded.bias, near, y, ball, goal)
    moved = best.delta.numpy() != 0
    x_adv = np.where(moved, np.clip(best.x_adv.numpy() * unit, lo, hi), table.x)
    if len(weight) == 1:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([folded.bias * 0, folded.bias])
    else:
        bias = folded.bias
    before, after = (rows @ weight.numpy().T + bias.numpy() for rows in (table.x, x_adv))
    rival = best.rival.numpy()
    return TableAttack(
        table=table,
        x_adv=x_adv,
        y=np.array(y),
        rival=rival,
        before=before.argmax(1),
        after=after.argmax(1),
        margin=best.clean_margin.numpy(),
        adversarial_margin=best.margin.numpy(),
        minimal_eps=least.numpy(),
        weight=weight.numpy(),
        classes=tuple(map(str, labels)),
        norm=norm,
        eps=eps,
        unit=said,
        target=toward,
    )


def _scale(
    model: BaseEstimator, table: Table, radius: Radius | None, norm: str
) -> tuple[Float[np.ndarray, " d"], float, str]:
    """What a radius of one is in each column, the radius in that, and how it is called."""
    if radius is not None:
        if "count" in BALLS[norm].traits and radius.per_std:
            raise BadInput("`eps` must be a number of columns in l0, got std; as in --eps 2")
        return radius.unit(table.x), radius.value, "std" if radius.per_std else "raw"
    assert isinstance(model, RobustClassifier)
    trained = np.asarray(model._radius, dtype=float)
    if norm != model.norm:
        raise BadInput(f"`eps` must be given for norm {norm!r}: the model was trained for a radius in {model.norm!r}")
    if trained.ndim:
        return trained, 1.0, "trained"
    return np.ones(len(table.features)), float(trained), "raw"


def _check_box(table: Table, lo: float, hi: float) -> None:
    """In the units and with the names of the table; the ball would speak of scaled ones."""
    if not lo <= hi:
        raise BadInput(f"`lo` must be <= `hi`, got {lo:g} and {hi:g}; swap them?")
    low, high = table.x.min(0), table.x.max(0)
    outside = np.flatnonzero((low < lo) | (high > hi))
    if len(outside):
        j = int(outside[0])
        raise BadInput(
            f"`data` must lie in the box [{lo:g}, {hi:g}], but {table.features[j]!r} goes from {low[j]:g} to "
            f"{high[j]:g}; widen --lo and --hi"
        )


def _indices(table: Table, labels: list[Any]) -> list[int]:
    place = {label: index for index, label in enumerate(labels)}
    y = table.y.tolist()
    unknown = [label for label in y if label not in place]
    if unknown:
        known = ", ".join(map(repr, labels[:12])) + (", ..." if len(labels) > 12 else "")
        raise BadInput(f"`target` must hold labels of the model, {known}, but {table.target!r} holds {unknown[0]!r}")
    return [place[label] for label in y]
