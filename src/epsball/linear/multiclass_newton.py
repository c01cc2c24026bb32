"""Newton's equations of worst-case softmax regression: written out where small, else by conjugate gradients.

The attacker ties the weights of each two classes together, feature by feature; the examples tie the features together.
The preconditioner keeps both, with the curvature of the examples replaced by its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse.linalg import cg

from epsball.linear.newton import DIRECT, gram, operator, solve_definite, squares

if TYPE_CHECKING:
    from epsball.linear.multiclass import Point, Problem

SMALL = 1 << 20
"""Up to so many numbers Newton's equations are written out."""


def spread_out(moves: dict[tuple[int, int], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """sum over pairs of weights_kj times the move (d,) of the pair, onto k and off j: (K, d)."""
    total = np.zeros((len(weights), len(next(iter(moves.values())))))
    for (k, j), move in moves.items():
        total[k] += weights[k, j] * move
        total[j] -= weights[k, j] * move
    return total


def newton_step(
    problem: Problem, point: Point, slope_W: np.ndarray, slope_b: np.ndarray, second: Second, accuracy: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton's step by conjugate gradients, and the probabilities that it looks forward to."""
    classes, d = point.W.shape
    X, y, p, P = problem.X, problem.y, problem.p, point.P
    burdens = burdens_of(P, y, p)
    ridge = problem.ridge + problem.lasso * point.size.curvature
    gradients = {pair: gain.gradient for pair, gain in point.pairs.items()}

    def curved(W: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The change of P along (W, b)."""
        T = np.zeros((classes, classes))
        for (k, j), gain in point.pairs.items():
            T[k, j] = T[j, k] = gain.gradient @ (W[k] - W[j])
        q = X @ W.T + b + T[y]
        return P * (q - (P * q).sum(1, keepdims=True))

    def apply(flat: np.ndarray) -> np.ndarray:
        W, b = flat[: classes * d].reshape(classes, d), flat[classes * d :]
        q = p[:, None] * curved(W, b)
        along = (X.T @ q).T + ridge * W + spread_out(gradients, burdens_of(q, y))
        for (k, j), gain in point.pairs.items():
            apart = W[k] - W[j]
            apart = burdens[k, j] * (gain.diagonal * apart - gain.rank * (gain.rank @ apart))
            along[k] += apart
            along[j] -= apart
        return np.concatenate([along.ravel(), q.sum(0) if problem.intercept else 0 * b])

    right = -np.concatenate([slope_W.ravel(), slope_b])
    if X.shape[0] * classes * len(right) <= SMALL:
        found = _factorised(problem, point, burdens, ridge, right)
    else:
        precondition = operator(len(right), _preconditioner(problem, point, burdens, ridge, second))
        found, _ = cg(operator(len(right), apply), right, rtol=accuracy, maxiter=200, M=precondition)
    W, b = found[: classes * d].reshape(classes, d), found[classes * d :]
    b = b - b.mean()  # a shift of all classes changes no loss
    W = W if problem.ridge or problem.lasso else W - W.mean(0)
    dual = np.maximum(P + curved(W, b), 0)
    return W, b, dual / dual.sum(1, keepdims=True)


def _factorised(
    problem: Problem, point: Point, burdens: np.ndarray, ridge: np.ndarray | float, right: np.ndarray
) -> np.ndarray:
    """Newton's equations written out, for small problems."""
    classes, d = point.W.shape
    n = len(problem.y)
    dense = problem.X.toarray() if sparse.issparse(problem.X) else problem.X
    rows = np.zeros((n, classes, classes * d + classes))  # what moves z_ij + t(w_y - w_j)
    for k in range(classes):
        rows[:, k, k * d : (k + 1) * d] = dense
        rows[:, k, classes * d + k] = float(problem.intercept)
    curved = np.zeros((classes, d, classes, d))
    curved[range(classes), :, range(classes), :] = np.eye(d) * (np.zeros((classes, d)) + ridge)[:, None, :]
    for (k, j), gain in point.pairs.items():
        for own, other in ((k, j), (j, k)):
            mine = problem.y == own
            rows[mine, other, k * d : (k + 1) * d] += gain.gradient
            rows[mine, other, j * d : (j + 1) * d] -= gain.gradient
        block = burdens[k, j] * (np.diag(gain.diagonal) - np.outer(gain.rank, gain.rank))
        curved[k, :, k] += block
        curved[j, :, j] += block
        curved[k, :, j] -= block
        curved[j, :, k] -= block
    root = np.sqrt(problem.p[:, None] * point.P)[:, :, None] * (
        rows - np.einsum("ik,ikm->im", point.P, rows)[:, None, :]
    )
    root = root.reshape(n * classes, -1)
    H = root.T @ root
    H[: classes * d, : classes * d] += curved.reshape(classes * d, classes * d)
    return solve_definite(H, right)


class Second:
    """X' diag(p) X: its diagonal, and blocks of it."""

    def __init__(self, problem: Problem) -> None:
        self._X, self._p = problem.X, problem.p
        self._whole = gram(problem.X, problem.p) if problem.X.shape[1] <= DIRECT else None
        self.diagonal = squares(problem.X, problem.p) if self._whole is None else self._whole.diagonal()

    def block(self, index: np.ndarray) -> np.ndarray:
        if self._whole is not None:
            return self._whole[np.ix_(index, index)]
        return gram(self._X[:, index], self._p)


def _preconditioner(
    problem: Problem, point: Point, burdens: np.ndarray, ridge: np.ndarray | float, second: Second
) -> Callable[[np.ndarray], np.ndarray]:
    """The inverse of X' diag(p) X times the mean curvature of the classes, plus the attacker's part.

    The attacker ties the classes together feature by feature, tightly where the weights of two classes are equal. So
    these blocks (K, K) are exact; the features are tied together exactly for as many as `DIRECT` allows, those that
    are tied least by the attacker.
    """
    classes, d = point.W.shape
    mean = np.diag(problem.p @ point.P) - (problem.p[:, None] * point.P).T @ point.P
    blocks = np.zeros((d, classes, classes))
    blocks[:, range(classes), range(classes)] = (np.zeros((classes, d)) + ridge).T
    for (k, j), gain in point.pairs.items():
        tie = burdens[k, j] * gain.diagonal
        blocks[:, k, k] += tie
        blocks[:, j, j] += tie
        blocks[:, k, j] -= tie
        blocks[:, j, k] -= tie
    own = second.diagonal[:, None, None] * mean
    tightness = np.trace(blocks, axis1=1, axis2=2) / np.maximum(np.trace(own, axis1=1, axis2=2), 1e-300)
    order = np.argsort(tightness)
    many = order[: DIRECT // classes]
    alone = order[DIRECT // classes :]
    whole = np.trace(blocks + own, axis1=1, axis2=2)[:, None, None] * np.eye(classes)
    blocks += 1e-9 * own.mean() * np.eye(classes) + 1e-13 * whole  # the sum over the classes is free
    inverse = np.linalg.inv(blocks[alone] + own[alone])
    size = len(many) * classes
    while True:
        dense = np.einsum("ab,kl->akbl", second.block(many), mean)
        dense[range(len(many)), :, range(len(many)), :] += blocks[many]
        try:
            factor = cho_factor(dense.reshape(size, size), lower=True, overwrite_a=True, check_finite=False)
            break
        except LinAlgError:
            blocks += 1e-12 * whole
            whole = 10 * whole
    scale = mean.diagonal() + 1e-300

    def apply(flat: np.ndarray) -> np.ndarray:
        W, b = flat[: classes * d].reshape(classes, d), flat[classes * d :]
        solved = np.empty_like(W)
        solved[:, many] = cho_solve(factor, W[:, many].T.ravel(), check_finite=False).reshape(-1, classes).T
        solved[:, alone] = np.einsum("akl,la->ka", inverse, W[:, alone])
        return np.concatenate([solved.ravel(), b / scale])

    return apply


def burdens_of(P: np.ndarray, y: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
    """Per pair of classes, the weight of the examples of one that goes to the other, (K, K), symmetric."""
    classes = P.shape[1]
    labels = np.zeros((classes, len(y)))
    labels[y, np.arange(len(y))] = 1 if p is None else p
    one_way = labels @ P
    return one_way + one_way.T
