"""Logistic regression with the gradient penalty: the first-order term of adversarial training, fitted.

minimise over (w, b)  mean softplus(-m_i) + eps |w|_1 mean sigma(-m_i),  m_i = y_i (w.x_i + b),  y in {-1, 1}.

The second mean is that of |dJ/dx|_1 = sigma(-m) |w|_1, what FGSM gains to first order (Goodfellow, Shlens and Szegedy,
ICLR 2015, sections 3 and 5). It is not convex: a penalty that fades as fast as the model grows sure. Where the classes
can be separated its infimum is zero, with endless weights.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning

ROUNDS = 100
"""Of L-BFGS-B on the features that carry weight, each followed by a check of all of them."""


@dataclass(frozen=True, eq=False)
class Stationary:
    """A point (w (d,), b) where no direction descends to first order, up to `residual`, and what is minimised there."""

    w: np.ndarray
    b: float
    objective: float
    residual: float


def objective(w: np.ndarray, b: float, X: np.ndarray, y: np.ndarray, eps: float) -> float:
    """mean softplus(-m) + eps |w|_1 mean sigma(-m), for X (n, d) and y (n,) in {-1, 1}.

    >>> objective(np.array([1.0, -2.0]), 0.0, np.zeros((1, 2)), np.array([1.0]), 0.1)  # log 2 + 0.1 * 3 / 2
    0.8431471805599453
    """
    m = y * (X @ w + b)
    return float(np.logaddexp(0, -m).mean() + eps * np.abs(w).sum() * expit(-m).mean())


def residual(w: np.ndarray, b: float, X: np.ndarray, y: np.ndarray, eps: float) -> tuple[np.ndarray, float]:
    """(d,) and the intercept's: how far from zero the nearest subgradient is, in loss per unit of weight."""
    grad_w, grad_b, grad_norm = _gradient(y * (X @ w + b), np.abs(w).sum(), X, y, eps)
    at_zero = np.maximum(np.abs(grad_w) - grad_norm, 0)
    return np.where(w != 0, np.abs(grad_w + grad_norm * np.sign(w)), at_zero), abs(grad_b)


def fit(X: np.ndarray, y: np.ndarray, eps: float, start: tuple[np.ndarray, float], *, tol: float = 1e-7) -> Stationary:
    """Descend from `start` (w, b) to a stationary point: one minimum, not certainly the least.

    `X` (n, d), `y` (n,) in {-1, 1}, `eps` > 0 in units of X. L-BFGS-B on w = u - v, u, v >= 0, whose bounds keep zeros
    exact; on the features that carry weight or whose `residual` is above `tol`, until none is. Where it stops short
    of that it warns, with the residual.
    """
    w, b = start[0].astype(float), float(start[1])
    active = np.flatnonzero(w)
    worst = np.inf
    for _ in range(ROUNDS):
        if len(active):
            w, b = _descend(X, y, eps, w, b, active, tol)
        off, off_b = residual(w, b, X, y, eps)
        before, worst = worst, max(off.max(), off_b)
        new = np.setdiff1d(np.flatnonzero(off > tol), active)
        if worst <= tol or (not len(new) and worst >= before):
            break
        active = np.union1d(active, new[np.argsort(-off[new], kind="stable")][: max(10, len(active))])
    if worst > tol:
        warnings.warn(
            f"the gradient penalty's fit stopped with a residual of {worst:.3g}, above the tolerance of {tol:g}; scale "
            "the features, or start elsewhere",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Stationary(w, b, objective(w, b, X, y, eps), float(worst))


def _gradient(m: np.ndarray, size: float, X: np.ndarray, y: np.ndarray, eps: float) -> tuple[np.ndarray, float, float]:
    """The objective's derivatives in w through the margins, in b, and in |w|_1, at |w|_1 = `size`."""
    unsure = expit(-m)
    per_score = -y * unsure * (1 + eps * size * expit(m)) / len(y)
    return X.T @ per_score, float(per_score.sum()), float(eps * unsure.mean())


def _descend(
    X: np.ndarray, y: np.ndarray, eps: float, w: np.ndarray, b: float, active: np.ndarray, tol: float
) -> tuple[np.ndarray, float]:
    part, k = X[:, active], len(active)

    def cost(z: np.ndarray) -> tuple[float, np.ndarray]:
        m, size = y * (part @ (z[:k] - z[k:-1]) + z[-1]), z[:-1].sum()
        grad_w, grad_b, grad_norm = _gradient(m, size, part, y, eps)
        value = np.logaddexp(0, -m).mean() + size * grad_norm
        return value, np.concatenate([grad_w + grad_norm, grad_norm - grad_w, [grad_b]])

    found = minimize(
        cost,
        np.concatenate([np.maximum(w[active], 0), np.maximum(-w[active], 0), [b]]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * (2 * k) + [(None, None)],
        options={"maxiter": 5000, "maxfun": 20000, "ftol": 0.0, "gtol": tol / 10, "maxcor": 30},
    ).x
    w = np.zeros_like(w)
    w[active] = found[:k] - found[k:-1]
    return w, float(found[-1])
