"""Newton's equations of a smoothed robust risk, solved in the way that is cheapest for the shape of X.

The Hessian over (w, b) is Z' M Z + diag(`diagonal`) - rank_one rank_one', where Z holds the examples and the gradient
of the attacker's gain. It is factorised where the features are few, through the examples where these are fewer
(Woodbury), and by preconditioned conjugate gradients where both are many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve, lu_factor, lu_solve
from scipy.sparse.linalg import LinearOperator, cg

Matrix = Any
"""A dense or CSC array (n, d): both have @, .T, .shape and []."""

DIRECT = 4096
"""Equations of up to this many unknowns (or examples) are factorised."""

SQUARE = 1024
"""Up to this many unknowns they are factorised also where the examples are fewer."""

BLOCK = 1 << 20
"""Entries of X that are scaled at a time."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The second-order model of a risk: X (n, d), the examples' second derivatives in s and t, and the gauge's parts.

    `ss`, `st` (n,) are weighted by the examples, `tt` is their weighted sum; `gradient`, `diagonal`, `rank_one` (d,).
    """

    X: Matrix
    ss: np.ndarray
    st: np.ndarray
    tt: float
    gradient: np.ndarray
    diagonal: np.ndarray
    rank_one: np.ndarray
    intercept: bool

    def step(self, slope_w: np.ndarray, slope_b: float) -> tuple[np.ndarray, float]:
        """The (w, b) that solve H (w, b) = -(slope_w, slope_b)."""
        d = len(slope_w)
        right = -np.append(slope_w, slope_b)[: d + self.intercept]
        match self._way():
            case "features":
                found = solve_definite(self._matrix(), right)
            case "examples":
                found = self._iterated(right, self._through_examples())
            case "neither":
                found = self._iterated(right, self._by_diagonal())
        return found[:d], float(found[d]) if self.intercept else 0.0

    def _way(self) -> Literal["features", "examples", "neither"]:
        """What is few enough to be factorised, and cheapest."""
        n, d = self.X.shape
        few = n <= DIRECT and self.diagonal.min(initial=np.inf) > 0
        if d <= DIRECT and (d <= max(2 * n, SQUARE) or not few):
            return "features"
        return "examples" if few else "neither"

    def _matrix(self) -> np.ndarray:
        """H, written out."""
        d = len(self.gradient)
        size = d + self.intercept
        H = np.zeros((size, size))
        g = np.append(self.gradient, 0.0)[:size]
        H[:d, :d] = gram(self.X, self.ss)
        u = np.append(self.X.T @ self.st, self.st.sum())[:size]
        if self.intercept:
            H[d, :d] = H[:d, d] = self.X.T @ self.ss
            H[d, d] = self.ss.sum()
        H += np.outer(u, g) + np.outer(g, u) + self.tt * np.outer(g, g)
        H[:d, :d] -= np.outer(self.rank_one, self.rank_one)
        H[np.arange(d), np.arange(d)] += self.diagonal
        return H

    def _through_examples(self) -> Callable[[np.ndarray], np.ndarray]:
        """The inverse of H by way of a matrix (n + 2, n + 2): exact, but for the rounding of nearly free weights."""
        n, d = self.X.shape
        M = np.zeros((n + 2, n + 2))
        M[np.arange(n), np.arange(n)] = self.ss
        M[:n, n] = M[n, :n] = self.st
        M[n, n], M[n + 1, n + 1] = self.tt, -1.0
        extra = np.stack([self.gradient, self.rank_one])
        inverse = 1 / self.diagonal
        K = np.empty((n + 2, n + 2))
        K[:n, :n] = gram(self.X.T, inverse)
        K[n:, :n] = (self.X @ (extra * inverse).T).T
        K[:n, n:] = K[n:, :n].T
        K[n:, n:] = (extra * inverse) @ extra.T
        factor = lu_factor(np.eye(n + 2) + M @ K, check_finite=False)
        ones = np.append(np.ones(n), [0.0, 0.0])
        per_b = lu_solve(factor, M @ ones, check_finite=False)

        def apply(right: np.ndarray) -> np.ndarray:
            w = right[:d] * inverse
            q = lu_solve(factor, M @ np.concatenate([self.X @ w, extra @ w]), check_finite=False)
            b = np.empty(0)
            if self.intercept:
                b = np.atleast_1d((right[d] - ones @ q) / (ones @ per_b))
                q = q + b * per_b
            return np.append(inverse * (right[:d] - self.X.T @ q[:n] - extra.T @ q[n:]), b)

        return apply

    def _by_diagonal(self) -> Callable[[np.ndarray], np.ndarray]:
        size = len(self.gradient) + self.intercept
        diagonal = np.append(squares(self.X, self.ss) + self.diagonal, self.ss.sum())[:size] + 1e-300
        return lambda right: right / diagonal

    def _iterated(self, right: np.ndarray, precondition: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        d = len(self.gradient)

        def apply(step: np.ndarray) -> np.ndarray:
            w, b = step[:d], step[d] if self.intercept else 0.0
            z, t = self.X @ w + b, self.gradient @ w
            q = self.ss * z + self.st * t
            along = self.X.T @ q + self.gradient * (self.st @ z + self.tt * t)
            along += self.diagonal * w - self.rank_one * (self.rank_one @ w)
            return np.append(along, q.sum())[: len(right)]

        size = len(right)
        found, _ = cg(operator(size, apply), right, rtol=1e-10, maxiter=500, M=operator(size, precondition))
        return found


def solve_definite(H: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve H step = right for a positive semidefinite H, which is overwritten, with as little damping as it takes."""
    dead = ~(H.diagonal() > 1e-250)  # no curvature: these unknowns stay at zero
    scale = np.sqrt(np.where(dead, 1.0, H.diagonal()))  # features of different units
    right = np.where(dead, 0.0, right)
    H /= np.outer(scale, scale)
    H[dead, dead] = 1.0
    damping = 1e-15
    while True:
        try:
            factor = cho_factor(H + damping * np.eye(len(H)), lower=True, check_finite=False)
            return cho_solve(factor, right / scale, check_finite=False) / scale
        except LinAlgError:
            damping *= 100


def operator(size: int, apply: Callable[[np.ndarray], np.ndarray]) -> LinearOperator:
    """A symmetric matrix (size, size) given by its product with a vector."""
    return LinearOperator((size, size), matvec=apply, dtype=float)  # pyright: ignore[reportCallIssue]


def squares(X: Matrix, h: np.ndarray) -> np.ndarray:
    """The diagonal (d,) of X' diag(h) X."""
    return X.multiply(X).T @ h if sparse.issparse(X) else np.einsum("ij,ij,i->j", X, X, h)


def gram(X: Matrix, h: np.ndarray) -> np.ndarray:
    """X' diag(h) X, dense (d, d), for h >= 0 (n,)."""
    if sparse.issparse(X):
        return (X.T @ sparse.diags_array(h) @ X).toarray()
    n, d = X.shape
    total = np.zeros((d, d))
    rows = max(1, BLOCK // max(d, 1))
    root = np.sqrt(h)[:, None]
    for start in range(0, n, rows):
        part = X[start : start + rows] * root[start : start + rows]
        total += part.T @ part
    return total
