"""Robust linear models of tables: fitted with rows held out, or at each of several radii."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from epsball.common.errors import BadInput
from epsball.data.tables import Table
from epsball.linear.hinge import RobustLinearSVC
from epsball.linear.logistic import RobustLogisticRegression
from epsball.linear.paths import EpsPath, RobustLogisticRegressionCV, eps_path
from epsball.linear.radius import eps_max
from epsball.linear.regression import RobustRegressor
from epsball.linear.robust import ConstantModelWarning
from epsball.linear.table_config import FitConfig, PathConfig, Radius

ESTIMATORS: dict[str, type[Any]] = {
    model.loss: model for model in (RobustLogisticRegression, RobustLinearSVC, RobustRegressor)
}
FOLDS = 5
MAX_CLASSES = 100
MAX_HINGE_ENTRIES = 1 << 19
"""Entries of a table up to which the hinge's eps_max, a linear program, takes seconds."""


@dataclass(frozen=True)
class Performance:
    """Accuracy, or RMSE of a regression, on `rows` examples: clean, and under the worst perturbations of a radius."""

    rows: int
    clean: float
    worst: float


@dataclass(frozen=True, eq=False)
class TableFit:
    """A fitted model with its performance on the fitted and on the held-out rows.

    `radius` was trained for, and the performance is measured at `attack`: they differ after a cross-validation only.
    `eps_max` is None where it is not known; `scores` are the (eps, accuracy) of a cross-validation, in the same unit.
    """

    model: Any
    features: tuple[str, ...]
    radius: Radius
    attack: Radius
    fitted: Performance
    held_out: Performance | None
    eps_max: float | None
    deviation: Float[np.ndarray, " d"]
    constant: tuple[str, ...]
    scores: tuple[tuple[float, float], ...]

    @property
    def nonzero(self) -> int:
        """How many features the model uses."""
        return int((np.atleast_2d(self.model.coef_) != 0).any(0).sum())

    def largest_weights(self, count: int) -> list[tuple[str, str, float, float]]:
        """(feature, class, weight, weight per standard deviation), the greatest per deviation first, without zeros.

        The class is the one whose score the weight is part of: with two classes the second; "" in a regression.
        """
        coef = np.atleast_2d(self.model.coef_)
        classes = [str(label) for label in getattr(self.model, "classes_", [""])][-len(coef) :]
        scaled = coef * self.deviation
        place = np.abs(scaled).argmax(0)
        order = np.argsort(-np.abs(scaled).max(0), kind="stable")[:count]
        return [
            (self.features[j], classes[place[j]], float(coef[place[j], j]), float(scaled[place[j], j]))
            for j in order.tolist()
            if coef[place[j], j] != 0
        ]

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        measure = "rmse" if isinstance(self.model, RobustRegressor) else "accuracy"
        parts = {"fitted": self.fitted, "held_out": self.held_out}
        coef = np.atleast_2d(self.model.coef_)
        return {
            "loss": self.model.loss,
            "norm": self.model.norm,
            "eps": self.radius.value,
            "eps_unit": self.radius.unit_name,
            "attack": self.attack.value,
            "eps_max": self.eps_max,
            **{
                name: None if part is None else {"rows": part.rows, measure: part.clean, f"worst_{measure}": part.worst}
                for name, part in parts.items()
            },
            "objective": float(self.model.objective_),
            "gap": float(self.model.dual_gap_),
            "steps": int(self.model.n_iter_),
            "nonzero": self.nonzero,
            "constant": list(self.constant),
            "cross_validation": [{"eps": eps, "accuracy": score} for eps, score in self.scores],
            "classes": np.array(getattr(self.model, "classes_", [])).tolist(),
            "features": list(self.features),
            "coef": coef.tolist(),
            "intercept": np.atleast_1d(self.model.intercept_).tolist(),
        }


def loss_for(table: Table, loss: str | None) -> tuple[str, Table]:
    """The loss, by default the one that suits the target (fractions: squared, else logistic), and the table with a
    target for it: numbers for the squared loss, else labels.

    Raises `BadInput` where loss and target do not suit each other.
    """
    y = table.y
    if loss is None:
        loss = "squared" if y.dtype.kind == "f" else "logistic"
    if loss == "squared":
        if y.dtype.kind not in "fiu":
            raise BadInput(f"`target` must be numbers for --loss squared, but {table.target!r} holds {y[0]!s}")
        return loss, replace(table, y=y.astype(float))
    if y.dtype.kind == "f":
        if not (y == np.round(y)).all():
            odd = y[y != np.round(y)][0]
            raise BadInput(
                f"`target` must be labels for --loss {loss}, but {table.target!r} holds {odd:g}; write --loss squared"
            )
        y = y.astype(np.int64)
    classes = np.unique(y)
    if len(classes) < 2:
        raise BadInput(f"`target` must have at least two classes, but {table.target!r} is {classes[0]!s} in every row")
    if len(classes) > MAX_CLASSES:
        raise BadInput(
            f"`target` must have at most {MAX_CLASSES} classes, but {table.target!r} has {len(classes)}: is it a "
            "number to predict? write --loss squared"
        )
    return loss, replace(table, y=y)


def split(y: np.ndarray, share: float, seed: int, *, labels: bool) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to fit and to hold out: of each class its share, drawn by `seed`; a class keeps at least one."""
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(y == label) for label in np.unique(y)] if labels else [np.arange(len(y))]
    drawn = [generator.permutation(rows)[: min(round(share * len(rows)), len(rows) - 1)] for rows in groups]
    test = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(y)), test), test


def fit_table(table: Table, config: FitConfig) -> TableFit:
    """Fit the robust model of `config` to the rows that are not held out.

    With `cv` the radius of `config` is the attacker's when scoring, and the radius trained for is the one with the
    greatest accuracy under that attack over five folds. Raises `BadInput`.
    """
    loss, table = loss_for(table, config.loss)
    radius = attack = Radius.parse(config.eps)
    if config.cv and loss != "logistic":
        raise BadInput(f"`cv` must go with --loss logistic, got {loss!r}; give --eps")
    if config.cv and config.penalty is not None and radius.per_std:
        raise BadInput("`cv` with eps in std must go without a penalty, whose unit is another; write --eps without std")
    train, test = split(table.y, config.test_share, config.seed, labels=loss != "squared")
    x, y = table.x[train], table.y[train]
    unit = radius.unit(x)
    scores: tuple[tuple[float, float], ...] = ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantModelWarning)  # `nonzero` and `eps_max` show it
        if config.cv:
            rarest = int(np.unique(y, return_counts=True)[1].min())
            if rarest < 2:
                raise BadInput(
                    f"`cv` needs two fitted rows of each class of {table.target!r}, got {rarest}; give --eps"
                )
            search = RobustLogisticRegressionCV(attack=radius.value, cv=min(FOLDS, rarest), **config.estimator)
            search.fit(x / unit, y)
            scores = tuple(zip(search.radii_.tolist(), search.scores_.mean(0).tolist(), strict=True))
            radius = replace(radius, value=search.eps_)
        model = ESTIMATORS[loss](eps=radius.eps(unit), **config.estimator).fit(x, y)
    return TableFit(
        model=model,
        features=table.features,
        radius=radius,
        attack=attack,
        fitted=_performance(model, x, y, attack.eps(unit)),
        held_out=_performance(model, table.x[test], table.y[test], attack.eps(unit)) if len(test) else None,
        eps_max=_eps_max(x, y, loss, config.norm, unit),
        deviation=x.std(axis=0),
        constant=tuple(name for name, ends in zip(table.features, np.ptp(x, axis=0), strict=True) if ends == 0),
        scores=scores,
    )


def _eps_max(x: np.ndarray, y: np.ndarray, loss: Any, norm: str, unit: np.ndarray) -> float | None:
    """In units of `unit`; None where it is not known or would take long."""
    if loss == "hinge" and x.size > MAX_HINGE_ENTRIES:
        return None
    try:
        return float(eps_max(x, y, loss=loss, norm=norm, scale=unit))
    except BadInput:
        return None


def _performance(model: Any, x: np.ndarray, y: np.ndarray, eps: Any) -> Performance:
    if isinstance(model, RobustRegressor):
        return Performance(len(y), math.sqrt(model.worst_loss(x, y, 0.0)), math.sqrt(model.worst_loss(x, y, eps)))
    return Performance(len(y), model.robust_score(x, y, 0.0), model.robust_score(x, y, eps))


@dataclass(frozen=True, eq=False)
class TablePath:
    """Models of a table over radii. `scale` (d,) is a radius of one in each column."""

    table: Table
    config: PathConfig
    loss: str
    path: EpsPath
    scale: Float[np.ndarray, " d"]

    @property
    def classes(self) -> list[str]:
        """The classes that have weights of their own; one "" with two classes and for a regression."""
        return [""] if self.path.coef.shape[1] == 1 else [f"{label}:" for label in self.path.models[0].classes_]

    def columns(self) -> dict[str, np.ndarray]:
        """A row per radius: losses and accuracies, then the weights, in units of the table, under their names."""
        path, coef = self.path, self.path.coef
        accuracies = () if self.loss == "squared" else ("clean_accuracy", "worst_accuracy")
        names = ("eps", "nonzero", "clean_loss", "worst_loss", *accuracies, "gap")
        columns = {name: getattr(path, name) for name in names}
        for place, label in enumerate(self.classes):
            columns[f"intercept:{label}".rstrip(":")] = path.intercept[:, place]
            columns |= {f"weight:{label}{name}": coef[:, place, j] for j, name in enumerate(self.table.features)}
        return columns

    def summary(self) -> dict[str, Any]:
        """The configuration and a row per radius, as JSON can hold them."""
        columns = self.columns()
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return {
            "data": self.table.name,
            "target": self.table.target,
            "rows": len(self.table),
            "loss": self.loss,
            "norm": self.config.norm,
            "eps_unit": self.config.unit,
            "penalty": self.config.penalty,
            "C": self.config.C,
            "path": [dict(zip(columns, row, strict=True)) for row in rows],
        }


def fit_path(table: Table, config: PathConfig) -> TablePath:
    """Fit a model to all rows at each radius, from `eps_max` down. Raises `BadInput`."""
    loss, table = loss_for(table, config.loss)
    scale = Radius(1.0, config.unit == "std").unit(table.x)
    template = ESTIMATORS[loss](eps=scale, **config.estimator)
    path = eps_path(table.x, table.y, eps=config.radii, ratio=config.ratio, estimator=template)
    return TablePath(table, config, loss, path, scale)
