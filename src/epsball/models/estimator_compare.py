"""The module of an estimator compared with the estimator itself: what both decide about some random rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from epsball.models.estimator_rules import Untranslated

ROWS, SEED = 64, 0
TIE = 1e-6
"""Two scores are equal where they differ by this share of the larger one, or of 1: rounding may decide then."""
PLACES = (("mean_", "var_"), ("center_", "scale_"), ("theta_", "var_"), ("means_", ""), ("support_vectors_", ""))
"""Attributes that hold where the rows of the training lay, (d,) or (m, d), and how far they were apart."""


def rows_like(step: Any, count: int) -> np.ndarray:
    """Random rows (n, `count`), around those that the first step was fitted to as far as it knows them, else normal."""
    generator = np.random.default_rng(SEED)
    rows = generator.standard_normal((ROWS, count))
    for place, spread in PLACES:
        try:
            points = np.atleast_2d(np.asarray(getattr(step, place, None), dtype=np.float64))
            apart = getattr(step, spread, None) if spread else points.std(0)
            apart = np.asarray(1.0 if apart is None else apart, dtype=np.float64)
        except (TypeError, ValueError):  # sparse, or not numbers
            continue
        if points.shape[1:] != (count,) or not np.isfinite(points).all() or not np.isfinite(apart).all():
            continue
        chosen = generator.integers(len(points), size=ROWS)
        apart = np.broadcast_to(np.sqrt(apart) if spread == "var_" else apart, points.shape)
        return points[chosen] + rows * apart[chosen]
    return rows


def check_decisions(
    module: nn.Module, predict: Callable[[np.ndarray], np.ndarray], classes: Sequence[Any], rows: np.ndarray
) -> int:
    """On how many of `rows` the module (n, d) -> logits and `predict` (n, d) -> labels were compared, and decide alike.

    Rows of equal scores say nothing, and neither do any that the estimator refuses. Raises `Untranslated` where one
    decision differs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predicted = predict(rows).tolist()
    except Exception:  # a step that takes no numbers below 0, say: its own rule, of whatever kind
        return 0
    with torch.no_grad():
        logits = module(torch.from_numpy(rows))
    logits = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    top = logits.topk(2, 1).values
    decided = top.isfinite().all(1) & (top[:, 0] - top[:, 1] > TIE * top.abs().amax(1).clamp(min=1.0))
    found = logits.argmax(1).tolist()
    asked = [place for place, sure in enumerate(decided.tolist()) if sure]
    other = sum(classes[found[row]] != predicted[row] for row in asked)
    if other:
        raise Untranslated(f"its `predict` decides otherwise on {other} of {len(asked)} random rows")
    return len(asked)
