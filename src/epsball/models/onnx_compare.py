"""A module compared with the file that it was made from, on random inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from epsball.models.onnx_graph import WAY_OUT, first_line
from epsball.models.onnx_runtime import Arrays, Runtime

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a module may be from its file, as a share of the largest output."""
SMALLEST = 1e-3
"""Outputs that are all smaller are taken for as large as this: they are what is left of larger numbers."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Whether a module agrees with its file, as far as that can be run, and a sentence on it."""

    agrees: bool
    note: str


def compare(model: nn.Module, runtime: Runtime, shape: tuple[int, ...], dtype: torch.dtype) -> Compared:
    """Run both on three rows or four, uniform in [0, 1] and normal: rows of which the file knows no such number."""
    generator = torch.Generator().manual_seed(SEED)
    n = 4 if runtime.rows == 3 else 3
    x = torch.cat([torch.rand(n - 1, *shape, generator=generator), torch.randn(1, *shape, generator=generator)])
    reason = ""
    for reference in (False, True):
        try:
            runtime.start(reference=reference)
            break
        except Exception as error:  # not installed, or an operator that it does not have for this dtype
            reason = reason or first_line(error)
    else:
        note = f"Its outputs were not compared with those of onnxruntime, which cannot load it: {reason}."
        return Compared(agrees=True, note=note)
    try:
        expected = runtime(x.numpy())
    except Exception as error:
        return Compared(agrees=False, note=f"{runtime.by} must be able to run it, but {first_line(error)}")
    try:
        with torch.no_grad():
            output = model(x.to(dtype))
    except Exception as error:  # as where a shape follows from the numbers of a row
        reason = f"its shapes must not follow from the examples, but {first_line(error)}"
        return Compared(agrees=False, note=f"{reason}; {WAY_OUT}")
    found = (output if dtype == torch.float64 else output.float()).numpy()
    tolerance = TOLERANCE[dtype]
    if found.shape != expected.shape:
        return Compared(agrees=False, note=f"its outputs {found.shape} are {expected.shape} in {runtime.by}")
    difference = _difference(found, expected)
    if not difference <= tolerance:
        note = f"its outputs must be within {tolerance:.0e} of {runtime.by}, and differ by {difference:.1e}"
        return Compared(agrees=False, note=note)
    measured = f"to {difference:.1e} of the largest (tolerance {tolerance:.0e})"
    return Compared(agrees=True, note=f"Its outputs equal those of {runtime.by} on {n} random inputs {measured}.")


def _difference(found: Arrays, expected: Arrays) -> float:
    """The largest difference, as a share of the largest finite output; infinite where one is finite and one is not."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)) or not np.array_equal(found[~finite], expected[~finite], True):
        return float("inf")
    if not finite.any():
        return 0.0
    size = max(SMALLEST, float(np.abs(expected[finite]).max()))
    return float(np.abs(found[finite] - expected[finite]).max()) / size
