"""How a network was accelerated: a small record that is printed, kept with a run, and used again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from epsball.acceleration.layers import METHODS, Method
from epsball.common.errors import BadInput
from epsball.common.record import Record

Rewriting = Literal["graph", "tree", "trainable", "none"]
WINS = 0.95
"""A network must take less than this share of the original's time, a kernel of torch's, to be worth its difference."""


@dataclass(frozen=True)
class AccelerationPlan(Record):
    """How a network is rewritten, and what the trial measured.

    `rewriting` is "graph" (traced, and its layers fused), "tree" (layer by layer), "trainable" (likewise, for training)
    or "none" (unchanged; `reason` says why); `kernels` names the backward-data method of each convolution; with
    `channels_last` images have that memory layout, with `compiled` torch.compile compiles the result. `ratio` is the
    time of a forward with input gradient relative to the original's, the median of the trial's rounds, `forward_ratio`
    that of a forward alone; `logits` and `gradients` are the relative differences from the original; `seconds` the
    trial's time, `compile_seconds` the compiler's.
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

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The plan that `to_record` gave. Raises `BadInput` for what is none."""
        unknown = sorted(set(record) - {one.name for one in fields(cls)})
        try:
            if unknown:
                raise ValueError(f"unknown fields {', '.join(unknown)}")
            return super().from_record(record)
        except ValueError as error:
            raise BadInput(
                f"`plan` must be the record of an AccelerationPlan, got another version's ({error}); leave it out, and "
                "a new one is made"
            ) from error

    def __str__(self) -> str:
        if self.rewriting == "none":
            return "unchanged" + ", compiled" * self.compiled + f": {self.reason}" * bool(self.reason)
        parts = ["graph rewritten" if self.rewriting == "graph" else "layers replaced"]
        for method in METHODS[1:]:
            count = list(self.kernels.values()).count(method)
            if count:
                parts.append(f"{count} of {len(self.kernels)} convolutions by {method}")
        parts += ["channels last"] * self.channels_last + ["compiled"] * self.compiled
        return f"{', '.join(parts)}: {self.ratio:.2f} of the original's time (trial {self.seconds:.1f} s)"
