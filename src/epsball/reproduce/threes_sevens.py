"""Logistic regression on MNIST's threes and sevens: the fast gradient sign method is exact for it.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 5 and figure 2: the gradient's sign is that of the weights, so the
worst point in the max-norm ball is x - eps y sign(w), y in {-1, 1}. The paper: 1.6 % error clean, 99 % at eps = .25.
"""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
import torch
from jaxtyping import Float
from scipy.special import expit
from torch import Tensor

from epsball.balls.linf import Linf
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.common.version import __version__
from epsball.data.examples import Examples
from epsball.linear import RobustLogisticRegression, eps_max, optimum
from epsball.linear.robust import ConstantModelWarning
from epsball.reproduce.notes import about_stand_in
from epsball.reproduce.outcome import EPS, Outcome
from epsball.reproduce.reproduction import Line, Reproduction
from epsball.reproduce.sources import Source

PAIR = (3, 7)
PAPERS_CLEAN, PAPERS_ATTACKED = 1.6, 99.0
"""Percent of error (section 5; figure 2)."""
RADII = (0.25, 0.1)
"""The radii of adversarial training: the paper's and a smaller one."""
SEPARATED = 1e-5
"""A training loss in nats below which the classes can be separated, so that the weights grow without end."""


@dataclass(frozen=True)
class LogisticModel(Record):
    """One logistic regression: how it was trained, its score `weight`.x + `bias` (> 0: a seven), and its errors.

    `eps` is the radius trained against, `objective` the training objective in nats, at most `gap` above its minimum.
    `clean` is the outcome on the examples, `free` and `boxed` at their exact worst points without a box and within the
    data's box.
    """

    name: str
    recipe: str
    eps: float
    weight: tuple[float, ...]
    bias: float
    objective: float
    gap: float
    clean: Outcome
    free: Outcome
    boxed: Outcome

    @property
    def nonzero(self) -> int:
        """The number of pixels with a weight."""
        return int(np.count_nonzero(self.weight))

    def score(self, x: Any) -> np.ndarray:
        """w.x + b for x (n, d)."""
        return np.asarray(x) @ np.array(self.weight) + self.bias


@dataclass(frozen=True)
class ShownImage(Record):
    """A test example in the figure: its id (row of the test split), its label, its pixels."""

    id: int
    label: int
    x: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ThreesSevens(Reproduction):
    """What `threes_sevens` found. The first of `models` is the one in the figure."""

    models: tuple[LogisticModel, ...]
    shown: tuple[ShownImage, ...]

    def worst(self, shown: ShownImage, *, boxed: bool) -> np.ndarray:
        """The worst point (d,) of a shown example for the first model, without or with the data's box."""
        eps, (lo, hi) = self.config["eps"], self.config["box"]
        away = 1.0 if shown.label == self.config["pair"][0] else -1.0
        x_adv = np.array(shown.x) + away * eps * np.sign(self.models[0].weight)
        return np.clip(x_adv, lo, hi) if boxed else x_adv

    def summary(self) -> dict[str, Any]:
        """All figures without weights and pixels, as JSON can hold them."""
        models = [{"nonzero": model.nonzero} | model.to_record() for model in self.models]
        for model in models:
            del model["weight"]
        shown = [{"id": example.id, "label": example.label} for example in self.shown]
        paper = {"clean": PAPERS_CLEAN / 100, "free": PAPERS_ATTACKED / 100, "eps": EPS}
        return {"paper": paper, "models": models, "shown": shown, "config": self.config}


def threes_sevens(
    source: Source,
    *,
    eps: float = EPS,
    radii: Sequence[float] = RADII,
    C: float = 1.0,
    images: int = 4,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> ThreesSevens:
    """Train logistic regressions on threes and sevens, and move every test image to its worst point.

    `source` are images in the box [0, 1] with labels 3 and 7 among them, see `epsball.reproduce.sources.mnist`. `eps`
    >= 0 is the attacker's radius in pixel units. The models, none of them chosen by its figures:

    - plain, scikit-learn's default: mean softplus(-m) + |w|^2 / (2 C n). The paper does not say how its own was
      trained; its figures are held against this one.
    - plain without a penalty. Where the training images can be separated, it has no minimum and ends when the
      objective is below 1e-6 of that of a constant.
    - adversarially trained against each of `radii`: mean softplus(radius |w|_1 - m), exactly. No weight is left above
      `epsball.linear.eps_max`.

    The first `images` threes and sevens of the test data are kept for the figure. `on_progress` is called with the
    count of finished models, that of all, and what is next. Raises `BadInput`.

    >>> from epsball.reproduce.sources import mnist
    >>> found = threes_sevens(mnist("digits"), radii=(0.25,))
    >>> [(round(100 * model.clean.error, 1), round(100 * model.free.error, 1)) for model in found.models]
    [(5.5, 95.9), (1.4, 100.0), (8.2, 11.0)]
    """
    if not 0 <= eps < math.inf:
        raise BadInput(f"`eps` must be >= 0 and finite, got {eps}; the paper's is 0.25")
    if not 0 < C < math.inf:
        raise BadInput(f"`C` must be > 0 and finite, got {C}; 1 is scikit-learn's default")
    if not all(0 < radius < math.inf for radius in radii):
        raise BadInput(f"`radii` must be > 0 and finite, got {list(radii)}; write for example (0.25, 0.1)")
    check_whole("images", images, 1)
    (X, y, _), (Xt, yt, ids) = (_pair(name, part) for name, part in (("train", source.train), ("test", source.test)))
    box = Linf(eps=eps, lo=source.test.lo, hi=source.test.hi)
    plain = [
        (f"plain, weak L2 (C = {C:g})", RobustLogisticRegression(eps=0.0, penalty="l2", C=C)),
        ("plain, no penalty", RobustLogisticRegression(eps=0.0)),
    ]
    against = [(f"adversarially trained, {radius:g}", RobustLogisticRegression(eps=float(radius))) for radius in radii]
    models: list[LogisticModel] = []
    for name, model in (*plain, *against):
        if on_progress is not None:
            on_progress(len(models), len(plain) + len(against), name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantModelWarning)  # the record says so
            model.fit(X.numpy(), y)
        worst = [optimum(model, None, Xt, yt, ball).x_adv for ball in (Linf(eps=eps), box)]
        outcomes = [_outcome(model, x, yt) for x in (Xt, *worst)]
        models.append(
            LogisticModel(
                name=name,
                recipe=str(model),
                eps=float(model.eps),
                weight=tuple(model.coef_[0].tolist()),
                bias=float(model.intercept_[0]),
                objective=float(model.objective_),
                gap=float(model.dual_gap_),
                clean=outcomes[0],
                free=outcomes[1],
                boxed=outcomes[2],
            )
        )
    if on_progress is not None:
        on_progress(len(models), len(models), "")
    first = [np.flatnonzero(yt == label)[:images] for label in PAIR]
    shown = tuple(ShownImage(int(ids[row]), int(yt[row]), tuple(Xt[row].tolist())) for row in np.concatenate(first))
    config = {
        "eps": eps,
        "eps_max": eps_max(X.numpy(), y),
        "pair": list(PAIR),
        "box": [source.test.lo, source.test.hi],
        "data": source.test.name,
        "stands_in": source.stands_in,
        "shape": list(source.test.shape),
        "train_rows": len(y),
        "test_rows": len(yt),
        "C": C,
        "seed": None,  # nothing is drawn
        "versions": {
            "epsball": __version__,
            "scikit-learn": sklearn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    lo, hi = config["box"]
    columns = ("clean", "attacked", f"in [{lo:g}, {hi:g}]", "confidence")
    paper = (PAPERS_CLEAN, PAPERS_ATTACKED if eps == EPS else None, None, None)
    return ThreesSevens(
        title=f"Logistic regression, 3 against 7, max-norm attacker of eps {eps:g}: error in %",
        columns=columns,
        lines=tuple(Line(model.name, _percent(model), None if k else paper) for k, model in enumerate(models)),
        notes=_notes(models, columns[2], config),
        config=config,
        models=tuple(models),
        shown=shown,
    )


def _notes(models: Sequence[LogisticModel], within: str, config: dict[str, Any]) -> tuple[str, ...]:
    notes = [
        *about_stand_in(config),
        "attacked: at x + eps sign(gradient), not clipped, as in the paper; for a linear model this is the exact worst "
        f"point. {within}: the exact worst point within the pixels' box. Error over all {config['test_rows']:,} test "
        "images; confidence: the mean over the mistakes at the attacked.",
    ]
    if constant := [model.name for model in models if not model.nonzero]:
        notes.append(f"{'; '.join(constant)}: no weight is left, from eps_max = {config['eps_max']:.3g} on.")
    if separated := [model.name for model in models if model.objective < SEPARATED]:
        notes.append(
            f"{'; '.join(separated)}: the training images can be separated, so the weights grow without end; training "
            "was stopped where the loss is next to nothing, and the figures depend on where that was."
        )
    return tuple(notes)


def _pair(name: str, data: Examples) -> tuple[Float[Tensor, "n d"], np.ndarray, np.ndarray]:
    """The threes and sevens, flat in float64; their labels and ids."""
    if not math.isfinite(data.lo) or not math.isfinite(data.hi):
        raise BadInput(f"`source` must have images in a finite box, got [{data.lo}, {data.hi}]; give lo=0, hi=1")
    if data.x.ndim not in (3, 4):
        raise BadInput(f"`source` must have images (h, w) or (c, h, w), got examples of shape {data.shape}")
    rows = (data.y == PAIR[0]) | (data.y == PAIR[1])
    x, y, ids = data.x[rows].cpu().flatten(1).double(), data.y[rows].cpu().numpy(), data.ids[rows].cpu().numpy()
    if set(y.tolist()) != set(PAIR):
        raise BadInput(f"`source` must hold threes and sevens in {name}, got the labels {data.y.unique().tolist()}")
    return x, y, ids


def _outcome(model: RobustLogisticRegression, x: Float[Tensor, "n d"], y: np.ndarray) -> Outcome:
    wrong = np.not_equal(model.predict(x.numpy()), y)
    confidence = expit(np.abs(model.decision_function(x.numpy())))[wrong]
    return Outcome(error=float(wrong.mean()), confidence=float(confidence.mean()) if len(confidence) else None)


def _percent(model: LogisticModel) -> tuple[float | None, ...]:
    shares = (model.clean.error, model.free.error, model.boxed.error, model.free.confidence)
    return tuple(None if share is None else 100 * share for share in shares)
