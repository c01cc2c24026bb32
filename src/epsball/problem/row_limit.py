"""Out of memory: a model call that does not fit is made again, of fewer rows at a time, and no job is lost.

The rows are halved until their part fits, down to 32, below which kernels may round a row differently. What was found
is kept, so that the calls that follow begin with what fits. Attacks and queue see one call of all their rows.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.problem.task import Task

log = logging.getLogger(__name__)

FEWEST = 32
"""A part has a multiple of so many rows."""
MEMORY = re.compile(
    r"(CUDA|HIP|XPU|MPS)\b.*out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE
)
"""How torch's allocators and cuBLAS say in a RuntimeError that there is no memory left."""

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])


def out_of_memory(error: BaseException | None) -> bool:
    """Whether a model raised this for lack of memory.

    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"))
    True
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and MEMORY.search(str(error)) is not None


@dataclass(eq=False)
class RowLimit:
    """The most `rows` of a model call that are taken to fit into memory; it is lowered where one does not.

    The objectives of a run share one, so that none of them finds it anew.
    """

    rows: int = sys.maxsize

    def __call__(
        self, call: Callable[[Tensor, Any], Result], z: Float[Tensor, "n *shape"], task: Task | None
    ) -> Result:
        """`call(z, task)`, whose tensors have n rows; where that does not fit, part by part, detached.

        Raises `BadInput` where not even 32 rows fit.
        """
        n = len(z)
        if n <= self.rows:
            try:
                return call(z, task)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if n <= FEWEST:
                    raise no_memory(error, n) from error
            self._lower(n)  # the error is gone, and with it all that its frames held
        parts, size = [], self.rows  # a part may lower it further
        for start in range(0, n, size):
            end = min(start + size, n)
            rows = None if task is None else task.rows(torch.arange(start, end, device=z.device))
            parts.append(self(call, z[start:end], rows))
        return _joined(parts)

    def _lower(self, n: int) -> None:
        """Take half of n rows, rounded up to a multiple of 32, and give back the memory that is free."""
        self.rows = -(-n // (2 * FEWEST)) * FEWEST
        gc.collect()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        log.warning("out of memory in a model call of %d rows: %d are taken at a time", n, self.rows)


def no_memory(error: BaseException, n: int) -> BadInput:
    """The error of a run that has not enough memory for n rows."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    fewer = "free memory, or move model and data to a device that has more"
    remedy = f"take a smaller one ({n // 2}, say), or {fewer}" if n > 1 else fewer
    return BadInput(
        f"`batch_size` must be so small that its rows fit into memory, got {n} that do not: {said}; {remedy}"
    )


def _joined(parts: list[Any]) -> Any:
    """The rows of all parts: tensors, or tuples of tensors."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part.detach() for part in parts])
    return tuple(torch.cat([part.detach() for part in column]) for column in zip(*parts, strict=True))
