"""How a ball is written for people: "L∞, ε = 8/255". Reports write it from a run's configuration, so no torch here."""

from __future__ import annotations

import math
from fractions import Fraction


def radius_text(eps: float | None, lo: float = -math.inf, hi: float = math.inf) -> str:
    """A radius: k/255 in a box from 0 to 1, where it is a multiple of 1/255; None means one per example.

    >>> radius_text(8 / 255, 0, 1), radius_text(0.3, 0, 1), radius_text(8 / 255), radius_text(math.inf)
    ('8/255', '0.3', '0.03137', '∞')
    """
    if eps is None:
        return "one per example"
    if math.isinf(eps):
        return "∞"
    if (lo, hi) == (0, 1) and eps > 0 and float(f"{eps:.3g}") != eps:
        levels = round(eps * 255)
        if levels and math.isclose(float(Fraction(levels, 255)), eps, rel_tol=1e-6):
            return f"{levels}/255"
    return f"{eps:.4g}"


def ball_text(symbol: str, eps: float | None, lo: float = -math.inf, hi: float = math.inf) -> str:
    """A norm and a radius.

    >>> ball_text("L∞", 8 / 255, 0, 1), ball_text("L2", None)
    ('L∞, ε = 8/255', 'L2, ε one per example')
    """
    return f"{symbol}, ε {'' if eps is None else '= '}{radius_text(eps, lo, hi)}"
