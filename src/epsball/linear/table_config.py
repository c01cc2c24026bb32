"""What `epsball linear fit`, `attack` and `path` can be asked for: keywords in Python, flags on the command line.

Nothing here imports a numeric library before it is needed, so that `--help` answers at once.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from epsball.balls.radius import parse_radius
from epsball.common.checks import check_at_least, check_between, check_one_of, check_whole
from epsball.common.config import Config, Rule
from epsball.common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

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
    def parse(cls, text: str) -> "Radius":
        """A radius from NUMBER or FRACTION, with `std` behind it for standard deviations. Raises `BadInput`."""
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

    def unit(self, x: "np.ndarray") -> "np.ndarray":
        """A radius of one in each column of x (n, d): (d,). One in constant columns, as for scikit-learn's scalers."""
        import numpy as np

        if not self.per_std:
            return np.ones(x.shape[1])
        unit = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)
        if not (np.isfinite(unit) & (unit > 0)).all():
            raise BadInput("`eps` in std needs columns whose deviation float64 holds; scale the table, or write no std")
        return unit

    def eps(self, unit: "np.ndarray") -> Any:
        """The radius for an estimator: a number, or (d,)."""
        return self.value * unit if self.per_std else self.value


def _check_radius(name: str, text: str) -> None:
    """A rule for `eps`, written with or without std."""
    Radius.parse(text)


class ModelConfig(Config):
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
    loss: Annotated[str | None, Rule(check_one_of, ("logistic", "hinge", "squared"))] = None
    penalty: str | None = None
    C: Annotated[float, Parameter(name=("--C", "--c"))] = 1.0

    @property
    def estimator(self) -> dict[str, Any]:
        """The parameters of every estimator."""
        return {"norm": self.norm, "penalty": self.penalty, "C": self.C}


class FitConfig(ModelConfig):
    """How a model is fitted to a table.

    Parameters
    ----------
    eps
        The attacker's radius: in units of the columns (0.1, 8/255), or in standard deviations of each (0.1std).
    test_share
        The share of rows held out, of each class; 0 fits all.
    seed
        Draws the rows held out.
    cv
        Choose the radius to train for by cross-validation: the one with the greatest accuracy under an attack of --eps.
    """

    eps: Annotated[str, Rule(_check_radius)] = "0.1std"
    test_share: Annotated[float, Rule(check_between, 0, 1, "write 0.2 for 20 %, 0 to fit all rows", ends="[)")] = 0.2
    seed: int = 0
    cv: Annotated[bool, Parameter(negative="")] = False


class PathConfig(ModelConfig):
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

    radii: Annotated[int, Rule(check_whole, 1, "20 make a smooth figure")] = 20
    ratio: float = 0.01
    unit: Annotated[str, Rule(check_one_of, ("std", "raw"))] = "std"


class AttackConfig(Config):
    """How the rows of a table are attacked.

    Parameters
    ----------
    eps
        The attacker's radius: in units of the columns (0.1, 8/255), or in standard deviations of each in this table
        (0.1std). Default: the radius that the model was trained for.
    norm
        The attacker's norm: linf, l2, l1, or l0 (so many columns change; needs --lo and --hi). Default: the model's.
    lo
        The least value that the attacker may write; none in the table is below it.
    hi
        The greatest value that the attacker may write; none in the table is above it.
    fixed
        Columns that the attacker cannot change.
    toward
        The label to drive every row towards, instead of away from its own.
    """

    eps: Annotated[str | None, Rule(_check_radius)] = None
    norm: str | None = None
    lo: float = -math.inf
    hi: float = math.inf
    fixed: Names = ()
    toward: str | None = None

    def check(self) -> None:
        if not self.lo <= self.hi:
            raise BadInput(f"`lo` must be <= `hi`, got {self.lo:g} and {self.hi:g}; swap them?")
