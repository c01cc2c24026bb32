"""Adversarial training of a logistic regression beside L1 decay: three penalties that are confused with one another.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 5. With m = y (w.x + b), y in {-1, 1}, the worst case of the loss
softplus(-m) in a max-norm ball is softplus(eps |w|_1 - m). Its first-order term is sigma(-m) eps |w|_1: the L1 norm,
weighted by how unsure the model is of each example. Plain L1 decay, lambda |w|_1, weighs all examples alike: it stays
where the attacker's penalty has faded, and must be far smaller than eps for a model to train at all.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy
import sklearn
from scipy.special import expit

from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.explain import gradient_penalty
from epsball.explain.config import L1Config, Progress, configured, silent
from epsball.explain.finding import Finding, nested, percent, versions
from epsball.linear import RobustLogisticRegression, eps_max
from epsball.linear.robust import ConstantModelWarning

MODELS = {
    "plain": "plain, weak L2",
    "adversarial": "adversarial, exact",
    "gradient": "gradient penalty",
    "l1": "L1, matched",
    "l1_hundredth": "L1, eps / 100",
    "l1_eps": "L1, eps",
}
SMALL_SHARE = 0.01
"""A weight below this share of the greatest counts as near zero."""
NOTHING = 1e-5
"""A mean loss in nats below which there is no minimum: the classes are separated and the weights grow without end."""
BINS = 60

Form = Literal["exact", "gradient", "l1"]


@dataclass(frozen=True)
class Fit(Record):
    """One fitted model. `strength` is the factor of its penalty: 1 / (C n), eps or lambda.

    `residual` is what the solver proves: for all but "gradient" the objective is at most so far above its minimum; for
    "gradient" the greatest slope left. `endless`: there is no minimum, the weights grow until the loss is nothing.
    `accuracy` and `attacked` (every example at its worst point), from 0 to 1, and the mean losses `loss` and
    `worst_loss` in nats are those of the test data. `costs` are the four objectives on the training data: "plain"
    mean softplus(-m), "exact" mean softplus(eps |w|_1 - m), "gradient" and "l1" (at the matched lambda).
    """

    derived: ClassVar = ("norm", "zeros", "near_zero")

    name: str
    strength: float
    weight: tuple[float, ...]
    bias: float
    residual: float
    endless: bool
    accuracy: float
    attacked: float
    loss: float
    worst_loss: float
    costs: dict[str, float]

    @property
    def norm(self) -> float:
        """|w|_1."""
        return float(np.abs(self.weight).sum())

    @property
    def zeros(self) -> int:
        """How many weights are zero, exactly."""
        return int((np.array(self.weight) == 0).sum())

    @property
    def near_zero(self) -> float:
        """Share of the weights below a hundredth of the greatest; 1 where all are zero."""
        size = np.abs(self.weight)
        return float((size <= 0).mean() if not size.any() else (size < SMALL_SHARE * size.max()).mean())


@dataclass(frozen=True)
class Fading(Record):
    """What the penalties cost the training examples, at the adversarially trained model.

    `edges` (bins + 1,) and `counts` (bins,) are the histogram of the margins m. `means` are the mean penalties in nats:
    "exact" softplus(eps |w|_1 - m) - softplus(-m), "gradient" sigma(-m) eps |w|_1, "l1" lambda |w|_1. `beyond` is the
    share of examples beyond the attacker's reach, m > eps |w|_1, and `carried` their share of each penalty.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    means: dict[str, float]
    beyond: float
    carried: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class L1Equivalence(Finding):
    """What `l1_equivalence` found: a `Fit` per name of `MODELS`, in that order."""

    fits: tuple[Fit, ...]
    fading: Fading

    def of(self, name: str) -> Fit:
        """The model of that name."""
        return next(fit for fit in self.fits if fit.name == name)

    def penalty(self, form: Form, margin: np.ndarray | float) -> np.ndarray:
        """What an example of that margin pays, in nats, at the adversarially trained model's |w|_1."""
        return penalty(form, margin, self.config["eps"] * self.of("adversarial").norm, self.lasso)

    @property
    def lasso(self) -> float:
        """lambda |w|_1 of the matched L1 decay at the adversarially trained model."""
        return self.of("l1").strength * self.of("adversarial").norm

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        adversarial, lasso, carried = self.of("adversarial"), self.of("l1"), self.fading.carried
        return (
            f"At eps {self.config['eps']:g} adversarial training keeps {percent(adversarial.attacked)} of the examples "
            f"right at their worst points, L1 decay of matched strength {percent(lasso.attacked)}; the "
            f"{percent(self.fading.beyond)} of the training examples that the attacker cannot reach pay "
            f"{percent(carried['exact'])} of the adversarial penalty, and of L1, which never fades, "
            f"{percent(carried['l1'])}."
        )

    def summary(self) -> dict[str, Any]:
        """All figures without the weights, as JSON can hold them."""
        found = self.to_record()
        fits = [{name: value for name, value in fit.items() if name != "weight"} for fit in found["fits"]]
        return found | {"fits": fits}


def penalty(form: Form, margin: np.ndarray | float, reach: float, lasso: float) -> np.ndarray:
    """What an example of `margin` m pays, in nats, where `reach` = eps |w|_1 and `lasso` = lambda |w|_1.

    "exact": softplus(reach - m) - softplus(-m), from `reach` for m = -inf down to zero for m = inf;
    "gradient": sigma(-m) reach, of which the same is true; "l1": `lasso`, whatever m.

    >>> [float(penalty(form, 4.0, 2.0, 0.1).round(3)) for form in ("exact", "gradient", "l1")]
    [0.109, 0.036, 0.1]
    """
    m = np.asarray(margin, dtype=float)
    if form == "l1":
        return np.full_like(m, lasso)
    return reach * expit(-m) if form == "gradient" else np.logaddexp(0, reach - m) - np.logaddexp(0, -m)


@configured(L1Config)
def l1_equivalence(
    X: Any, y: Any, *, config: L1Config, test: tuple[Any, Any] | None = None, on_progress: Progress = silent
) -> L1Equivalence:
    """Compare six logistic regressions of two classes: what is adversarial training, what is L1?

    - "plain": mean softplus(-m) + |w|^2 / (2 C n), scikit-learn's default: a weak L2 penalty, since separable classes
      have no minimum without any.
    - "adversarial": mean softplus(eps |w|_1 - m), exactly, by `RobustLogisticRegression`.
    - "gradient": mean softplus(-m) + eps |w|_1 mean sigma(-m), its first-order term; not convex: the stationary point
      that L-BFGS-B reaches from the adversarial model.
    - "l1": mean softplus(-m) + lambda |w|_1, with lambda = eps mean sigma(-m) at the adversarial model. There it costs
      what the gradient penalty costs, and has its slope but for that of sigma.
    - "l1_hundredth" and "l1_eps": the same with lambda = eps / 100 and lambda = eps. (The paper found .0025 already too
      great for the first layer of a maxout network, where adversarial training at .25 worked.)

    `X` (n, *shape) are finite numbers, `y` (n,) labels of two classes, of which the second in order is y = 1; `eps` > 0
    is in units of X, below `epsball.linear.eps_max` and above what the classes can be separated by. `test` (X, y) are
    the examples that accuracies and losses are measured on (default: those of the fit). No box is taken into account.
    `on_progress` is called with the count of fitted models, that of all, and what is next. Raises `BadInput`.

    >>> from sklearn.datasets import load_breast_cancer
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> found = l1_equivalence(X / X.std(0), y, eps=0.3)
    >>> [(fit.name, fit.zeros, round(fit.norm, 1), round(fit.attacked, 2)) for fit in found.fits[:4]]
    [('plain', 0, 18.2, 0.66), ('adversarial', 24, 4.9, 0.85), ('gradient', 17, 12.0, 0.81), ('l1', 23, 4.3, 0.85)]
    """
    eps, shape = config.eps, np.shape(X)[1:]
    X, y, X_test, y_test = _checked(X, y, test)
    top = eps_max(X, y)
    if eps >= top:
        raise BadInput(f"`eps` must be below {top:.4g}, from where on no feature is worth its risk, got {eps:g}")
    n, classes = len(y), np.unique(y)
    train, tested = ((part, np.where(label == classes[1], 1.0, -1.0)) for part, label in ((X, y), (X_test, y_test)))
    done = 0

    def solved(name: str, strength: float, model: RobustLogisticRegression) -> _Solution:
        nonlocal done
        on_progress(done, len(MODELS), MODELS[name])
        done += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantModelWarning)  # the zeros are in the record
            model.fit(X, y)
        return _Solution(name, strength, model.coef_[0], float(model.intercept_[0]), max(model.dual_gap_, 0.0))

    plain = solved("plain", 1 / (config.C * n), RobustLogisticRegression(eps=0, penalty="l2", C=config.C))
    adversarial = solved("adversarial", eps, RobustLogisticRegression(eps=eps))
    margin, reach = train[1] * (X @ adversarial.w + adversarial.b), eps * float(np.abs(adversarial.w).sum())
    if np.logaddexp(0, reach - margin).mean() < NOTHING:
        raise BadInput(
            f"`eps` must be above what the classes can be separated by, or adversarial training has no minimum, got "
            f"{eps:g}; raise it, below {top:.4g}"
        )
    matched = eps * float(expit(-margin).mean())
    on_progress(done, len(MODELS), MODELS["gradient"])
    done += 1
    first_order = gradient_penalty.fit(X, train[1], eps, (adversarial.w, adversarial.b))
    gradient = _Solution("gradient", eps, first_order.w, first_order.b, first_order.residual)
    lassos = (
        solved(name, strength, RobustLogisticRegression(eps=0, penalty="l1", C=1 / (strength * n)))
        for name, strength in (("l1", matched), ("l1_hundredth", eps / 100), ("l1_eps", eps))
    )
    fits = tuple(_fit(found, train, tested, eps, matched) for found in (plain, adversarial, gradient, *lassos))
    on_progress(done, len(MODELS), "")
    made = config.to_record() | {
        "eps_max": top,
        "rows": n,
        "test_rows": None if test is None else len(y_test),
        "shape": shape,
        "classes": classes,
        "seed": None,  # nothing is random
        "versions": versions() | {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__},
    }
    return L1Equivalence(fits=fits, fading=_fading(margin, reach, matched * reach / eps), config=nested(made))


@dataclass(frozen=True)
class _Solution:
    """A fitted model as its solver returned it."""

    name: str
    strength: float
    w: np.ndarray
    b: float
    residual: float


def _checked(X: Any, y: Any, test: tuple[Any, Any] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test data as arrays. Raises `BadInput` unless they hold two classes and the same features."""
    X, y = _labelled("X", X, y)
    classes = np.unique(y)
    if len(classes) != 2:
        raise BadInput(f"`y` must hold two classes, got {len(classes)}; take the examples of two")
    X_test, y_test = (X, y) if test is None else _labelled("test", *test)
    if X_test.shape[1] != X.shape[1] or not set(np.unique(y_test)) <= set(classes):
        raise BadInput(f"`test` must hold the classes {classes.tolist()} and {X.shape[1]} features, as X does")
    return X, y, X_test, y_test


def _fit(
    found: _Solution,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    eps: float,
    matched: float,
) -> Fit:
    w, b, size = found.w, found.b, float(np.abs(found.w).sum())
    margin, test_margin = (sign * (X @ w + b) for X, sign in (train, test))
    plain = float(np.logaddexp(0, -margin).mean())
    costs = {
        "plain": plain,
        "exact": float(np.logaddexp(0, eps * size - margin).mean()),
        "gradient": gradient_penalty.objective(w, b, *train, eps),
        "l1": plain + matched * size,
    }
    # As the estimators predict: a score of zero is the first class.
    clean, robust = ((test_margin > reach) | ((test_margin == reach) & (test[1] < 0)) for reach in (0.0, eps * size))
    return Fit(
        name=found.name,
        strength=found.strength,
        weight=nested(w),
        bias=b,
        residual=found.residual,
        endless=found.name == "gradient" and costs["gradient"] < NOTHING,
        accuracy=float(clean.mean()),
        attacked=float(robust.mean()),
        loss=float(np.logaddexp(0, -test_margin).mean()),
        worst_loss=float(np.logaddexp(0, eps * size - test_margin).mean()),
        costs=costs,
    )


def _fading(margin: np.ndarray, reach: float, lasso: float) -> Fading:
    forms: tuple[Form, ...] = ("exact", "gradient", "l1")
    penalties = {form: penalty(form, margin, reach, lasso) for form in forms}
    beyond = margin > reach
    counts, edges = np.histogram(margin, BINS)
    return Fading(
        edges=nested(edges),
        counts=nested(counts),
        means={form: float(part.mean()) for form, part in penalties.items()},
        beyond=float(beyond.mean()),
        carried={form: float(part[beyond].sum() / part.sum()) for form, part in penalties.items()},
    )


def _labelled(name: str, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """X flat (n, d) in float64 and its labels (n,)."""
    try:
        X, label = np.asarray(X, dtype=np.float64), np.asarray(y)
    except (TypeError, ValueError) as error:
        raise BadInput(f"`{name}` must hold dense arrays of numbers, got {type(X).__name__}: {error}") from error
    if X.ndim < 2 or X.size == 0 or label.shape != X.shape[:1]:
        raise BadInput(f"`{name}` must be (n, *shape) with a label each, got {X.shape} and labels {label.shape}")
    if not np.isfinite(X).all():
        raise BadInput(f"`{name}` must hold finite numbers, got NaN or infinity; drop or impute those examples first")
    return X.reshape(len(X), -1), label
