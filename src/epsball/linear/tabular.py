"""Robust linear models of tables: fitted with rows held out, radii in standard deviations of each column."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import is_classifier

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.data.tables import Table
from epsball.linear.hinge import RobustLinearSVC
from epsball.linear.logistic import RobustLogisticRegression
from epsball.linear.paths import EpsPath, Robust, RobustLogisticRegressionCV
from epsball.linear.radius import eps_max
from epsball.linear.regression import RobustRegressor
from epsball.linear.robust import ConstantModelWarning

ESTIMATORS: dict[str, type[Robust]] = {
    "logistic": RobustLogisticRegression,
    "hinge": RobustLinearSVC,
    "squared": RobustRegressor,
}
FOLDS = 5
MANY_CLASSES = 100
PROGRAMME = 1 << 19
"""Numbers in the table up to which the hinge's eps_max, a linear programme, takes seconds."""


@dataclass(frozen=True)
class Radius:
    """A radius in the units of the columns, or in standard deviations of each.

    >>> Radius.parse("0.1std"), str(Radius.parse("1/2 std"))
    (Radius(value=0.1, per_std=True), '0.5 std')
    """

    value: float
    per_std: bool = False

    @classmethod
    def parse(cls, text: str) -> Radius:
        """A radius from NUMBER or FRACTION, with `std` behind it for standard deviations. Raises `BadInput`."""
        from epsball.balls.registry import parse_radius

        short = text.strip().lower()
        value = parse_radius(short.removesuffix("std").strip())
        if not 0 <= value < math.inf:
            raise BadInput(f"`eps` must be finite and >= 0, got {text!r}; as in 0.1 or 0.1std")
        return cls(value, short.endswith("std"))

    def __str__(self) -> str:
        return f"{self.value:.4g}{' std' if self.per_std else ''}"

    def unit(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
        """What a radius of one is in each column; one in columns that are constant, as for scikit-learn's scalers."""
        if not self.per_std:
            return np.ones(x.shape[1])
        varies = np.ptp(x, axis=0) > 0
        unit = np.where(varies, x.std(axis=0), 1.0)
        if not (np.isfinite(unit) & (unit > 0)).all():
            raise BadInput("`eps` in std needs columns whose deviation float64 holds; scale the table, or write no std")
        return unit

    def eps(self, unit: Float[np.ndarray, " d"]) -> Any:
        """The radius for an estimator: a number, or (d,)."""
        return self.value * unit if self.per_std else self.value


@dataclass(frozen=True)
class Figures:
    """How a model does on `rows` examples, as they are and at their worst within a radius: accuracy, or else RMSE."""

    rows: int
    clean: float
    worst: float


@dataclass(frozen=True, eq=False)
class TableFit:
    """A fitted model, what it was fitted to, and how it does there and on the rows held out.

    `radius` is trained for; `attack`, the same but after a cross-validation, is what the figures are measured at.
    `eps_max` is None where it is not known; `scores` are the (eps, accuracy) of a cross-validation, in the same unit.
    """

    model: Robust
    features: tuple[str, ...]
    radius: Radius
    attack: Radius
    fitted: Figures
    held_out: Figures | None
    eps_max: float | None
    deviation: Float[np.ndarray, " d"]
    constant: tuple[str, ...]
    scores: tuple[tuple[float, float], ...]

    @property
    def nonzero(self) -> int:
        """How many features the model looks at."""
        return int((np.atleast_2d(self.model.coef_) != 0).any(0).sum())

    def largest(self, count: int) -> list[tuple[str, str, float, float]]:
        """(feature, class, weight, weight per standard deviation), the greatest per deviation first, without zeros.

        The class is the one whose score the weight is part of: with two classes the second; "" in a regression.
        """
        coef = np.atleast_2d(self.model.coef_)
        classes = [""] * len(coef)
        if not isinstance(self.model, RobustRegressor):
            known = [str(label) for label in self.model.classes_]
            classes = known[1:] if len(coef) == 1 else known
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
        share = "rmse" if isinstance(self.model, RobustRegressor) else "accuracy"
        parts = {"fitted": self.fitted, "held_out": self.held_out}
        coef = np.atleast_2d(self.model.coef_)
        return {
            "loss": self.model.loss,
            "norm": self.model.norm,
            "eps": self.radius.value,
            "eps_unit": "std" if self.radius.per_std else "raw",
            "attack": self.attack.value,
            "eps_max": self.eps_max,
            **{
                name: None if part is None else {"rows": part.rows, share: part.clean, f"worst_{share}": part.worst}
                for name, part in parts.items()
            },
            "objective": float(self.model.objective_),
            "gap": float(self.model.dual_gap_),
            "steps": int(self.model.n_iter_),
            "nonzero": self.nonzero,
            "constant": list(self.constant),
            "cross_validation": [{"eps": eps, "accuracy": score} for eps, score in self.scores],
            "classes": [] if isinstance(self.model, RobustRegressor) else self.model.classes_.tolist(),
            "features": list(self.features),
            "coef": coef.tolist(),
            "intercept": np.atleast_1d(self.model.intercept_).tolist(),
        }


def loss_for(table: Table, loss: str | None) -> tuple[str, Table]:
    """The loss asked for, or the one that suits the target (fractions: squared, else logistic), and the table with a
    target for it: numbers for the squared loss, else labels.

    Raises `BadInput` where the two do not go together.
    """
    y = table.y
    if loss is None:
        loss = "squared" if y.dtype.kind == "f" else "logistic"
    check_one_of("loss", loss, ESTIMATORS)
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
    if len(classes) > MANY_CLASSES:
        raise BadInput(
            f"`target` must have at most {MANY_CLASSES} classes, but {table.target!r} has {len(classes)}: is it a "
            "number to predict? write --loss squared"
        )
    return loss, replace(table, y=y)


def split(y: np.ndarray, share: float, seed: int, *, labels: bool) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to fit and to hold out: of each class its share, drawn by `seed`; a class keeps at least one."""
    if not 0 <= share < 1:
        raise BadInput(f"`test_share` must be in [0, 1), got {share:g}; write 0.2 for 20 %, 0 to fit all rows")
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(y == label) for label in np.unique(y)] if labels else [np.arange(len(y))]
    held = [generator.permutation(rows)[: min(round(share * len(rows)), len(rows) - 1)] for rows in groups]
    test = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(y)), test), test


def fit_table(
    table: Table,
    *,
    radius: Radius,
    norm: str = "linf",
    loss: str | None = None,
    penalty: str | None = None,
    C: float = 1.0,
    test_share: float = 0.2,
    seed: int = 0,
    cv: bool = False,
) -> TableFit:
    """Fit the robust model of `loss` to the rows that are not held out.

    `radius` in std is measured on the rows fitted. With `cv` it is the attacker's when scoring, and the radius trained
    for is the one with the greatest accuracy under that attack over five folds. Raises `BadInput`.
    """
    loss, table = loss_for(table, loss)
    if cv and loss != "logistic":
        raise BadInput(f"`cv` must go with --loss logistic, got {loss!r}; give --eps")
    if cv and penalty is not None and radius.per_std:
        raise BadInput("`cv` with eps in std must go without a penalty, whose unit is another; write --eps without std")
    train, test = split(table.y, test_share, seed, labels=loss != "squared")
    x, y = table.x[train], table.y[train]
    unit, attack = radius.unit(x), radius
    scores: tuple[tuple[float, float], ...] = ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantModelWarning)  # `nonzero` and `eps_max` say it
        if cv:
            rarest = int(np.unique(y, return_counts=True)[1].min())
            if rarest < 2:
                raise BadInput(
                    f"`cv` needs two fitted rows of each class of {table.target!r}, got {rarest}; give --eps"
                )
            search = RobustLogisticRegressionCV(
                attack=radius.value, norm=norm, penalty=penalty, C=C, cv=min(FOLDS, rarest)
            )
            search.fit(x / unit, y)
            scores = tuple(zip(search.radii_.tolist(), search.scores_.mean(0).tolist(), strict=True))
            radius = Radius(search.eps_, radius.per_std)
        model = ESTIMATORS[loss](eps=radius.eps(unit), norm=norm, penalty=penalty, C=C).fit(x, y)
    return TableFit(
        model=model,
        features=table.features,
        radius=radius,
        attack=attack,
        fitted=_figures(model, x, y, attack.eps(unit)),
        held_out=_figures(model, table.x[test], table.y[test], attack.eps(unit)) if len(test) else None,
        eps_max=greatest(x, y, loss, norm, unit),
        deviation=x.std(axis=0),
        constant=tuple(name for name, ends in zip(table.features, np.ptp(x, axis=0), strict=True) if ends == 0),
        scores=scores,
    )


def greatest(x: np.ndarray, y: np.ndarray, loss: Any, norm: Any, unit: np.ndarray) -> float | None:
    """`eps_max` in units of `unit`, None where it is not known or would take long."""
    if loss == "hinge" and x.size > PROGRAMME:
        return None
    try:
        return float(eps_max(x, y, loss=loss, norm=norm, scale=unit))
    except BadInput:
        return None


def path_columns(path: EpsPath, features: tuple[str, ...], unit: np.ndarray, per_std: bool) -> dict[str, np.ndarray]:
    """A path as columns, a row per radius: figures, then the weights, in units of the table, under their names."""
    columns = {
        "eps": path.eps,
        "nonzero": path.nonzero,
        **{name: getattr(path, name) for name in ("clean_loss", "worst_loss", "clean_accuracy", "worst_accuracy")},
        "gap": path.gap,
    }
    if not is_classifier(path.models[0]):
        del columns["clean_accuracy"], columns["worst_accuracy"]
    coef = path.coef
    classes = [""] if coef.shape[1] == 1 else [f"{label}:" for label in path.models[0].classes_]  # pyright: ignore
    for place, label in enumerate(classes):
        columns[f"intercept:{label}".rstrip(":")] = path.intercept[:, place]
        columns |= {f"weight:{label}{name}": coef[:, place, j] for j, name in enumerate(features)}
    return columns


def _figures(model: Robust, x: np.ndarray, y: np.ndarray, eps: Any) -> Figures:
    if isinstance(model, RobustRegressor):
        return Figures(len(y), math.sqrt(model.worst_loss(x, y, 0.0)), math.sqrt(model.worst_loss(x, y, eps)))
    return Figures(len(y), model.robust_score(x, y, 0.0), model.robust_score(x, y, eps))
