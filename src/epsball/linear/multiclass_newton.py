"""Newton's equations of worst-case softmax regression: written out where small, else by conjugate gradients.

The attacker ties the weights of each two classes together, feature by feature; the examples tie the features together.
The preconditioner keeps both, with the curvature of the examples replaced by its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse.linalg import cg

from epsball.linear.gauge import SmoothedGain
from epsball.linear.newton import DIRECT, Matrix, gram, operator, solve_definite, squares

SMALL = 1 << 20
"""Newton's equations of up to this many numbers are written out."""


def pair_weights(P: np.ndarray, y: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
    """For each two classes, the probability, weighted by p, that examples of one give the other: (K, K), symmetric."""
    labels = np.zeros((P.shape[1], len(y)))
    labels[y, np.arange(len(y))] = 1 if p is None else p
    one_way = labels @ P
    return one_way + one_way.T


def spread_over_classes(moves: dict[tuple[int, int], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """sum over pairs of weights_kj times the move (d,) of the pair, added to class k, subtracted from j: (K, d)."""
    total = np.zeros((len(weights), len(next(iter(moves.values())))))
    for (k, j), move in moves.items():
        total[k] += weights[k, j] * move
        total[j] -= weights[k, j] * move
    return total


class SecondMoments:
    """X' diag(p) X: its diagonal, and blocks of it."""

    def __init__(self, X: Matrix, p: np.ndarray) -> None:
        self._X, self._p = X, p
        self._whole = gram(X, p) if X.shape[1] <= DIRECT else None
        self.diagonal = squares(X, p) if self._whole is None else self._whole.diagonal()

    def block(self, index: np.ndarray) -> np.ndarray:
        if self._whole is not None:
            return self._whole[np.ix_(index, index)]
        return gram(self._X[:, index], self._p)


@dataclass(frozen=True, eq=False)
class MulticlassQuadratic:
    """The second-order model of the smoothed objective; the examples have probabilities P.

    `gains` are the attacker's on w_k - w_j, `weights` (K, K) the `pair_weights`, `ridge` (K, d) the curvature of the
    penalties.
    """

    X: Matrix
    y: np.ndarray
    p: np.ndarray
    P: np.ndarray
    gains: dict[tuple[int, int], SmoothedGain]
    weights: np.ndarray
    ridge: np.ndarray
    intercept: bool

    def step(
        self, slope_w: np.ndarray, slope_b: np.ndarray, accuracy: float, moments: SecondMoments
    ) -> tuple[np.ndarray, np.ndarray]:
        """The (W, b) that solve H (W, b) = -(slope_w, slope_b), to a relative `accuracy` where it iterates."""
        right = -np.concatenate([slope_w.ravel(), slope_b])
        if self.X.shape[0] * len(slope_b) * len(right) <= SMALL:
            found = solve_definite(self._matrix(), right)
        else:
            size = len(right)
            precondition = operator(size, self._preconditioner(moments))
            found, _ = cg(operator(size, self._times), right, rtol=accuracy, maxiter=200, M=precondition)
        return self._parts(found)

    def change_of_probabilities(self, W: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The derivative (n, K) of P along (W, b)."""
        T = np.zeros((len(b), len(b)))
        for (k, j), gain in self.gains.items():
            T[k, j] = T[j, k] = gain.gradient @ (W[k] - W[j])
        q = self.X @ W.T + b + T[self.y]
        return self.P * (q - (self.P * q).sum(1, keepdims=True))

    def _parts(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W (K, d) and b (K,)."""
        weights = self.ridge.size
        return flat[:weights].reshape(self.ridge.shape), flat[weights:]

    def _times(self, flat: np.ndarray) -> np.ndarray:
        """H times a vector."""
        W, b = self._parts(flat)
        q = self.p[:, None] * self.change_of_probabilities(W, b)
        gradients = {pair: gain.gradient for pair, gain in self.gains.items()}
        along = (self.X.T @ q).T + self.ridge * W + spread_over_classes(gradients, pair_weights(q, self.y))
        for (k, j), gain in self.gains.items():
            apart = W[k] - W[j]
            apart = self.weights[k, j] * (gain.diagonal * apart - gain.rank_one * (gain.rank_one @ apart))
            along[k] += apart
            along[j] -= apart
        return np.concatenate([along.ravel(), q.sum(0) if self.intercept else 0 * b])

    def _matrix(self) -> np.ndarray:
        """H, written out."""
        classes, d = self.ridge.shape
        n = len(self.y)
        dense = self.X.toarray() if sparse.issparse(self.X) else self.X
        rows = np.zeros((n, classes, classes * d + classes))  # the derivative of z_ij + t(w_y - w_j)
        for k in range(classes):
            rows[:, k, k * d : (k + 1) * d] = dense
            rows[:, k, classes * d + k] = float(self.intercept)
        curved = np.zeros((classes, d, classes, d))
        curved[range(classes), :, range(classes), :] = np.eye(d) * self.ridge[:, None, :]
        for (k, j), gain in self.gains.items():
            for own, other in ((k, j), (j, k)):
                mine = self.y == own
                rows[mine, other, k * d : (k + 1) * d] += gain.gradient
                rows[mine, other, j * d : (j + 1) * d] -= gain.gradient
            block = self.weights[k, j] * (np.diag(gain.diagonal) - np.outer(gain.rank_one, gain.rank_one))
            _tie(curved.transpose(0, 2, 1, 3), k, j, block)
        root = np.sqrt(self.p[:, None] * self.P)[:, :, None] * (
            rows - np.einsum("ik,ikm->im", self.P, rows)[:, None, :]
        )
        root = root.reshape(n * classes, -1)
        H = root.T @ root
        H[: classes * d, : classes * d] += curved.reshape(classes * d, classes * d)
        return H

    def _preconditioner(self, moments: SecondMoments) -> Callable[[np.ndarray], np.ndarray]:
        """The inverse of X' diag(p) X times the mean curvature of the classes, plus the attacker's part.

        The attacker ties the classes together feature by feature, tightly where the weights of two classes are equal,
        so these blocks (K, K) are exact. The features are tied together exactly for as many as `DIRECT` allows, those
        that are tied least by the attacker.
        """
        classes, d = self.ridge.shape
        mean = np.diag(self.p @ self.P) - (self.p[:, None] * self.P).T @ self.P
        blocks = np.zeros((d, classes, classes))
        blocks[:, range(classes), range(classes)] = self.ridge.T
        for (k, j), gain in self.gains.items():
            _tie(blocks.transpose(1, 2, 0), k, j, self.weights[k, j] * gain.diagonal)
        own = moments.diagonal[:, None, None] * mean
        tightness = np.trace(blocks, axis1=1, axis2=2) / np.maximum(np.trace(own, axis1=1, axis2=2), 1e-300)
        order = np.argsort(tightness)
        many, alone = order[: DIRECT // classes], order[DIRECT // classes :]
        whole = np.trace(blocks + own, axis1=1, axis2=2)[:, None, None] * np.eye(classes)
        blocks += 1e-9 * own.mean() * np.eye(classes) + 1e-13 * whole  # the sum over the classes is free
        inverse = np.linalg.inv(blocks[alone] + own[alone])
        size = len(many) * classes
        while True:
            dense = np.einsum("ab,kl->akbl", moments.block(many), mean)
            dense[range(len(many)), :, range(len(many)), :] += blocks[many]
            try:
                factor = cho_factor(dense.reshape(size, size), lower=True, overwrite_a=True, check_finite=False)
                break
            except LinAlgError:
                blocks += 1e-12 * whole
                whole = 10 * whole
        scale = mean.diagonal() + 1e-300

        def apply(flat: np.ndarray) -> np.ndarray:
            W, b = self._parts(flat)
            solved = np.empty_like(W)
            solved[:, many] = cho_solve(factor, W[:, many].T.ravel(), check_finite=False).reshape(-1, classes).T
            solved[:, alone] = np.einsum("akl,la->ka", inverse, W[:, alone])
            return np.concatenate([solved.ravel(), b / scale])

        return apply


def _tie(blocks: np.ndarray, k: int, j: int, tie: np.ndarray) -> None:
    """Add the second derivative `tie` with respect to w_k - w_j to the blocks (K, K, ...) of the classes."""
    blocks[k, k] += tie
    blocks[j, j] += tie
    blocks[k, j] -= tie
    blocks[j, k] -= tie
