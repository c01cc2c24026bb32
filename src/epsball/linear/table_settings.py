"""What `epsball linear fit`, `attack` and `path` can be asked for, checked.

The fields are the keywords in Python and the flags of the command line, and their descriptions are its help. Nothing
here imports a numeric library before a value is checked, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from epsball.common.checks import check_at_least, check_between, check_one_of, check_whole
from epsball.common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

LOSSES = ("logistic", "hinge", "squared")
NORMS = ("linf", "l2", "l1")
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")]


@dataclass(frozen=True)
class Radius:
    """A radius in the units of the columns, or in standard deviations of each.

    >>> Radius.parse("0.1std"), str(Radius.parse("1/2 std"))
    (Radius(value=0.1, per_std=True), '0.5 std')
    """

    value: float
    per_std: bool = False

    @classmethod
    def parse(cls, text: str) -> Radius:
        """A radius from NUMBER or FRACTION, with `std` behind it for standard deviations. Raises `BadInput`."""
        from epsball.balls.registry import parse_radius

        short = text.strip().lower()
        value = parse_radius(short.removesuffix("std").strip())
        check_at_least("eps", value, 0, "as in 0.1 or 0.1std")
        return cls(value, short.endswith("std"))

    def __str__(self) -> str:
        return f"{self.value:.4g}{' std' if self.per_std else ''}"

    @property
    def unit_name(self) -> str:
        """As it is written in records and flags."""
        return "std" if self.per_std else "raw"

    def unit(self, x: np.ndarray) -> np.ndarray:
        """A radius of one in each column of x (n, d): (d,). One in constant columns, as for scikit-learn's scalers."""
        import numpy as np

        if not self.per_std:
            return np.ones(x.shape[1])
        unit = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)
        if not (np.isfinite(unit) & (unit > 0)).all():
            raise BadInput("`eps` in std needs columns whose deviation float64 holds; scale the table, or write no std")
        return unit

    def eps(self, unit: np.ndarray) -> Any:
        """The radius for an estimator: a number, or (d,)."""
        return self.value * unit if self.per_std else self.value


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which robust linear model is fitted to a table.

    Parameters
    ----------
    norm
        The attacker's norm: linf, l2 or l1.
    loss
        logistic, hinge (a support vector machine), or squared (regression). Default: squared where the target has
        fractions, else logistic.
    penalty
        l1 or l2, on top of what the attacker costs.
    C
        Inverse strength of the penalty.
    """

    norm: str = "linf"
    loss: str | None = None
    penalty: str | None = None
    C: Annotated[float, Parameter(name=("--C", "--c"))] = 1.0

    def __post_init__(self) -> None:
        check_one_of("norm", self.norm, NORMS)
        if self.loss is not None:
            check_one_of("loss", self.loss, LOSSES)

    @property
    def estimator(self) -> dict[str, Any]:
        """Those that every estimator takes."""
        return {"norm": self.norm, "penalty": self.penalty, "C": self.C}


@dataclass(frozen=True, kw_only=True)
class FitSettings(ModelSettings):
    """How a model is fitted to a table.

    Parameters
    ----------
    eps
        The attacker's radius: in units of the columns (0.1, 8/255), or in standard deviations of each (0.1std),
        measured on the rows fitted.
    test_share
        The share of rows held out, of each class; 0 fits all.
    seed
        Draws the rows held out.
    cv
        Choose the radius to train for by cross-validation: the one with the greatest accuracy under an attack of --eps.
    """

    eps: str = "0.1std"
    test_share: float = 0.2
    seed: int = 0
    cv: Annotated[bool, Parameter(negative="")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between("test_share", self.test_share, 0, 1, "write 0.2 for 20 %, 0 to fit all rows", ends="[)")
        _ = self.radius

    @property
    def radius(self) -> Radius:
        """`eps`, parsed."""
        return Radius.parse(self.eps)


@dataclass(frozen=True, kw_only=True)
class PathSettings(ModelSettings):
    """Over which radii models are fitted to a table.

    Parameters
    ----------
    radii
        How many.
    ratio
        The least radius as a share of the greatest.
    unit
        What radii are measured in: std (standard deviations of each column) or raw (units of the columns).
    """

    radii: int = 20
    ratio: float = 0.01
    unit: str = "std"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("unit", self.unit, ("std", "raw"))
        check_whole("radii", self.radii, 1, "20 make a smooth figure")


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How the rows of a table are attacked.

    Parameters
    ----------
    eps
        The attacker's radius: in units of the columns (0.1, 8/255), or in standard deviations of each in this table
        (0.1std). Default: the radius that the model was trained for.
    norm
        The attacker's norm: linf, l2, l1, or l0 (so many columns change; needs --lo and --hi). Default: the model's.
    lo
        The least value that the attacker may write; all values must be above it already.
    hi
        The greatest value that the attacker may write; all values must be below it already.
    fixed
        Columns that the attacker cannot change.
    toward
        The label to drive every row towards, instead of away from its own.
    """

    eps: str | None = None
    norm: str | None = None
    lo: float = -math.inf
    hi: float = math.inf
    fixed: Names = ()
    toward: str | None = None

    def __post_init__(self) -> None:
        if not self.lo <= self.hi:
            raise BadInput(f"`lo` must be <= `hi`, got {self.lo:g} and {self.hi:g}; swap them?")
        _ = self.radius

    @property
    def radius(self) -> Radius | None:
        """`eps`, parsed."""
        return None if self.eps is None else Radius.parse(self.eps)
