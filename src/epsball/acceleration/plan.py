"""What was chosen to make a network cheaper: a small record that is printed, kept with a run, and used again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

from epsball.acceleration.layers import METHODS, Method
from epsball.common.errors import BadInput

Rewriting = Literal["graph", "tree", "trainable", "none"]
REWRITINGS: tuple[Rewriting, ...] = get_args(Rewriting)
WINS = 0.95
"""A network must take less than this share of the original's time, a kernel of torch's, to be worth its difference."""
OTHER = "the plan is of another version, leave it out and a new one is made"


@dataclass(frozen=True)
class AccelerationPlan:
    """How a network is rewritten, and what the trial measured.

    `rewriting` is "graph" (traced and joined), "tree" (layer by layer), "trainable" (likewise, for training) or "none"
    (left as it is, `reason` says why); `kernels` names the backward-data of each convolution; with `channels_last`
    images are laid out so, with `compiled` torch.compile makes the rest. `ratio` is the time of a pass (forward and
    input gradient) over the original's, the median of the trial's rounds, `forward_ratio` that of a forward alone;
    `logits` and `gradients` how far the two were apart, relative; `seconds` the trial's cost, `compile_seconds` the
    compiler's.
    """

    rewriting: Rewriting = "none"
    channels_last: bool = False
    kernels: dict[str, Method] = field(default_factory=dict)
    compiled: bool = False
    reason: str = ""
    ratio: float = 1.0
    forward_ratio: float = 1.0
    logits: float = 0.0
    gradients: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def forwards_too(self) -> bool:
        """Whether a forward alone is faster as well, by more than noise."""
        return self.forward_ratio < WINS

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` gives an equal plan."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The plan that `to_dict` wrote. Raises `BadInput` for what is none."""
        try:
            plan = cls(**record)
        except TypeError as error:
            raise BadInput(
                f"`plan` must be a record of an AccelerationPlan's fields, got {sorted(record)}: {error}"
            ) from error
        if plan.rewriting not in REWRITINGS:
            raise BadInput(f"`rewriting` must be of {', '.join(REWRITINGS)}, got {plan.rewriting!r}; {OTHER}")
        methods = plan.kernels.values() if isinstance(plan.kernels, dict) else [plan.kernels]
        unknown = [method for method in methods if method not in METHODS]
        if unknown:
            raise BadInput(f"`kernels` must be of {', '.join(METHODS)}, got {unknown}; {OTHER}")
        return plan

    def __str__(self) -> str:
        if self.rewriting == "none":
            return "as it is" + ", compiled" * self.compiled + f": {self.reason}" * bool(self.reason)
        parts = ["graph rewritten" if self.rewriting == "graph" else "layers replaced"]
        for method in METHODS[1:]:
            count = list(self.kernels.values()).count(method)
            if count:
                parts.append(f"{count} of {len(self.kernels)} convolutions by {method}")
        parts += ["channels last"] * self.channels_last + ["compiled"] * self.compiled
        return f"{', '.join(parts)}: {self.ratio:.2f} of a pass's time (trial {self.seconds:.1f} s)"
