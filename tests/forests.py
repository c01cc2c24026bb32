"""The exact robust accuracy of trees and forests: branch and bound over the boxes of their leaves.

Within one leaf of each tree the answer is constant, so the worst case in an L-infinity ball is that of the combinations
of leaves whose boxes have a point of the ball in common (Kantchelian et al., "Evasion and hardening of tree ensemble
classifiers", ICML 2016, solve the same problem as an integer programme).
"""

from __future__ import annotations

from typing import Any

import numpy as np

BEYOND = np.float32(np.inf)


def robust_rows(model: Any, x: np.ndarray, y: np.ndarray, eps: float) -> np.ndarray:
    """Which rows of x (n, d), float32, of two classes 0 and 1, keep their label y (n,) everywhere within eps."""
    trees = getattr(model, "estimators_", [model])
    robust = model.predict(x) == y
    for row in np.flatnonzero(robust):
        point = worst_point(trees, x[row], int(y[row]), eps)
        robust[row] = point is None
        if point is not None:  # the oracle's own points are put to the model
            assert np.abs(point.astype(float) - x[row]).max() <= eps
            assert model.predict(point[None]) != y[row]
    return robust


def worst_point(trees: list[Any], x: np.ndarray, y: int, eps: float) -> np.ndarray | None:
    """A point within eps of x (d,) that gets the other class than y; None where there is none."""
    lo, hi = (np.asarray(x.astype(np.float64) + side * eps) for side in (-1, 1))
    low, high = lo.astype(np.float32), hi.astype(np.float32)
    low, high = (
        np.where(low < lo, np.nextafter(low, BEYOND), low),
        np.where(high > hi, np.nextafter(high, -BEYOND), high),
    )
    boxes = [leaves(tree.tree_, y, low, high) for tree in trees]
    boxes.sort(key=lambda tree: len(tree[2]))

    def search(place: int, low: np.ndarray, high: np.ndarray, margin: float) -> np.ndarray | None:
        if place == len(boxes):
            return low if margin > 0 or (margin == 0 and y == 1) else None  # a tie is class 0
        meet = [(np.maximum(a, low) <= np.minimum(b, high)).all(1) for a, b, _ in boxes[place:]]
        best = margin + sum(
            tree[2][there].max(initial=-np.inf) for tree, there in zip(boxes[place:], meet, strict=True)
        )
        if best < 0:
            return None
        a, b, gain = boxes[place]
        for leaf in np.flatnonzero(meet[0])[np.argsort(-gain[meet[0]])]:
            found = search(place + 1, np.maximum(a[leaf], low), np.minimum(b[leaf], high), margin + gain[leaf])
            if found is not None:
                return found
        return None

    return search(0, low, high, 0.0)


def leaves(tree: Any, y: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leaves' boxes within [low, high], (m, d) each, and how much more probable the other class is there, (m,).

    scikit-learn compares features in single precision with thresholds in double.
    """
    found: list[tuple[np.ndarray, np.ndarray, float]] = []

    def walk(node: int, low: np.ndarray, high: np.ndarray) -> None:
        feature, cut = tree.feature[node], tree.threshold[node]
        if tree.children_left[node] < 0:
            share = tree.value[node, 0] / tree.value[node, 0].sum()
            found.append((low, high, share[1 - y] - share[y]))
            return
        below = np.float32(cut) if np.float32(cut) <= cut else np.nextafter(np.float32(cut), -BEYOND)
        above = np.nextafter(below, BEYOND)
        for child, end, side in ((tree.children_left[node], below, 1), (tree.children_right[node], above, -1)):
            ends = [low.copy(), high.copy()]
            ends[side > 0][feature] = min(high[feature], end) if side > 0 else max(low[feature], end)
            if ends[0][feature] <= ends[1][feature]:
                walk(int(child), *ends)

    walk(0, low, high)
    lows, highs, gains = zip(*found, strict=True)
    return np.array(lows), np.array(highs), np.array(gains)
