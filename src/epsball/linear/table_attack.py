"""The exact worst input for every row of a table, for a fitted linear model whose columns are matched by name."""

from __future__ import annotations

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
from epsball.linear.case import LinearCase
from epsball.linear.classifier import RobustClassifier
from epsball.linear.exact import minimal_eps, optimum
from epsball.linear.table_config import AttackConfig, Radius
from epsball.models.folding import affine


@dataclass(frozen=True, eq=False)
class TableAttack:
    """The worst inputs `x_adv` (n, d) for a table's rows; classes are indices into `classes`.

    Predictions are those at the inputs as stored, of real numbers. `margin` is the score of the label less that of its
    strongest rival, `adversarial_margin` the least margin in the ball; with a target, those of the opponent and the
    target (see `optimum`). `minimal_eps` and `eps` are in units of `unit`: "raw", "std", or "trained", the model's own
    radii. Where that is not "raw", table and weights are brought to it, which rounds them: a margin of 1e-15 of its
    terms may have the wrong sign.
    """

    table: Table
    x_adv: Float[np.ndarray, "n d"]
    y: Int64[np.ndarray, " n"]
    rival: Int64[np.ndarray, " n"]  # the class climbed towards
    prediction: Int64[np.ndarray, " n"]
    adversarial_prediction: Int64[np.ndarray, " n"]
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
        """Rows that are misclassified only under attack; with a target, those predicted as it only under attack."""
        if self.target is None:
            return (self.prediction == self.y) & (self.adversarial_prediction != self.y)
        return (self.prediction != self.rival) & (self.adversarial_prediction == self.rival)

    def largest_changes(self, row: int, count: int = 3) -> list[tuple[str, float]]:
        """The features whose change moves the margin most, with the change, in units of the table."""
        delta = self.x_adv[row] - self.table.x[row]
        own = self.y[row] if self.y[row] != self.rival[row] else self.prediction[row]
        effect = np.abs(delta * (self.weight[self.rival[row]] - self.weight[own]))
        order = np.argsort(-effect, kind="stable")[:count]
        return [(self.table.features[j], float(delta[j])) for j in order.tolist() if effect[j] > 0]

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them; the median over the correctly predicted rows, with a target over all."""
        before, after = self.prediction, self.adversarial_prediction
        minimal_eps = self.minimal_eps[before == self.y] if self.target is None else self.minimal_eps
        median = float(np.median(minimal_eps)) if len(minimal_eps) else np.inf
        figures: dict[str, Any] = {
            "rows": len(self.table),
            "norm": self.norm,
            "eps": self.eps,
            "eps_unit": self.unit,
            "target": self.target,
            "clean_accuracy": float((before == self.y).mean()),
            "accuracy": float((after == self.y).mean()),
            "fooled": int(self.fooled.sum()),
            "median_minimal_eps": median if np.isfinite(median) else None,
        }
        if self.target is not None:
            figures["at_target"] = float((before == self.rival).mean())
            figures["at_target_after"] = float((after == self.rival).mean())
        return figures

    def save(self, path: str | Path) -> None:
        """Write a row per example: id (row number), the result, then the perturbed columns under their own names.

        Where a feature has the name of a column of the result, the latter gets a `_`.
        """
        names = np.array(self.classes)
        result = {
            "id": np.arange(len(self.table)),
            "label": names[self.y],
            "fooled": self.fooled,
            "prediction": names[self.prediction],
            "adversarial_prediction": names[self.adversarial_prediction],
            "margin": self.margin,
            "adversarial_margin": self.adversarial_margin,
            "minimal_eps": self.minimal_eps,
        }
        columns: dict[str, Any] = {}
        for name, values in result.items():
            while name in self.table.features:
                name += "_"
            columns[name] = values
        write_table(path, columns | dict(zip(self.table.features, self.x_adv.T, strict=True)))


def features_of(model: BaseEstimator) -> tuple[str, ...] | None:
    """The columns that a model was fitted to, None where it does not name them. Raises `BadInput` for a regression."""
    if not is_classifier(model):
        raise BadInput(f"`model` must be a classifier, got {type(model).__name__}; a worst label needs labels")
    names = getattr(model, "feature_names_in_", None)  # set by scikit-learn where it was fitted to a data frame
    return None if names is None else tuple(str(name) for name in names)


def attack_table(model: BaseEstimator, table: Table, config: AttackConfig) -> TableAttack:
    """The exact worst input for each row in a ball around it, in the box, the `fixed` columns unchanged.

    Raises `BadInput`.
    """
    trained = model if isinstance(model, RobustClassifier) else None
    if config.eps is None and trained is None:
        raise BadInput(f"`eps` must be given: a {type(model).__name__} was trained for no radius; as in --eps 0.1std")
    folded = affine(model)
    weight, bias, d = folded.weight, folded.bias, len(table.features)
    if weight.shape[1] != d:
        raise BadInput(
            f"`data` must have the {weight.shape[1]} columns of the model, got {d}; use --drop, or name them"
        )
    norm = check_one_of("norm", config.norm or (trained.norm if trained is not None else "linf"), BALLS)
    unit, eps, unit_name = _scale(trained, table, config, norm)
    for name in config.fixed:
        check_one_of("fixed", name, table.features)
    mask = np.array([name not in config.fixed for name in table.features]) & (unit > 0)
    unit = np.where(unit > 0, unit, 1.0)
    lo, hi = config.lo, config.hi
    _check_box(table, lo, hi)
    labels = folded.classes.tolist()
    y, texts = _indices(table, labels), [*map(str, labels)]
    target = None if config.toward is None else texts.index(check_one_of("toward", config.toward, texts))
    scale = torch.from_numpy(unit)[None]
    raw = bool((unit == 1).all())
    ball = BALLS[norm](
        eps=eps,
        lo=lo if raw or not np.isfinite(lo) else lo / scale,
        hi=hi if raw or not np.isfinite(hi) else hi / scale,
        mask=None if mask.all() else torch.from_numpy(mask)[None],
    )
    problem = (weight * scale, bias, torch.from_numpy(table.x) / scale, y, ball, target)
    best, radius = optimum(*problem), minimal_eps(*problem)
    x_adv = np.where(best.delta.numpy() != 0, np.clip(best.x_adv.numpy() * unit, lo, hi), table.x)
    if len(weight) == 1:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([bias * 0, bias])
    labels_only = LinearCase(weight, bias, torch.from_numpy(table.x), best.y, None, ball, folded.classes)
    before, after = (
        labels_only.predictions(rows, labels_only.scores(rows)).numpy()
        for rows in map(torch.from_numpy, (table.x, x_adv))
    )
    return TableAttack(
        table=table,
        x_adv=x_adv,
        y=np.array(y),
        rival=best.rival.numpy(),
        prediction=before,
        adversarial_prediction=after,
        margin=best.clean_margin.numpy(),
        adversarial_margin=best.margin.numpy(),
        minimal_eps=radius.numpy(),
        weight=weight.numpy(),
        classes=tuple(texts),
        norm=norm,
        eps=eps,
        unit=unit_name,
        target=config.toward,
    )


def _scale(
    trained: RobustClassifier | None, table: Table, config: AttackConfig, norm: str
) -> tuple[Float[np.ndarray, " d"], float, str]:
    """A radius of one in each column, the radius as a multiple of it, and the name of that unit."""
    if config.eps is not None:
        radius = Radius.parse(config.eps)
        if "count" in BALLS[norm].traits and radius.per_std:
            raise BadInput("`eps` must be a number of columns in l0, got std; as in --eps 2")
        return radius.unit(table.x), radius.value, radius.unit_name
    assert trained is not None
    eps = np.asarray(trained.trained_eps, dtype=float)
    if norm != trained.norm:
        raise BadInput(f"`eps` must be given for norm {norm!r}: the model was trained for a radius in {trained.norm!r}")
    return (eps, 1.0, "trained") if eps.ndim else (np.ones(len(table.features)), float(eps), "raw")


def _check_box(table: Table, lo: float, hi: float) -> None:
    """In the units and with the names of the table: the ball would name scaled ones."""
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
