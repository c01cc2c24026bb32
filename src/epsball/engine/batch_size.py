"""The batch size of a run, found by measurement: the smallest one that is about as fast as any.

Batches of 32 rows, 64, 128 and so on go through the model call that the attack makes, as long as that gains
throughput, fits into memory, and the time that this may take is not spent. The batch size changes no record, so the
choice may differ between machines and between the parts of a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from epsball.common.memory import free_memory, peak_memory
from epsball.common.record import Record
from epsball.engine.batches import MIN_BATCH
from epsball.models.black_box import BlackBox
from epsball.problem.objective import Objective
from epsball.problem.row_limit import out_of_memory
from epsball.problem.task import Task

log = logging.getLogger(__name__)

USUAL = 128
"""The batch size where none is measured."""
MOST, MOST_ON_GPU = 1024, 4096
CALLS, ENOUGH = (3, 25), 0.1
"""The fewest and the most timed calls of a size; there are no more of them after so many seconds."""
AGAIN = 2
"""So many times all sizes are timed again, as far as the time allows: another process may have disturbed the first."""
BUDGET = 5.0
"""Seconds after which no further size is begun that would not end in time."""
GAIN, FLAT = 1.05, 2
"""The search ends when, so many times running, twice the rows have not made it so much faster than all before."""
NEAR = 0.97
"""The smallest size is taken whose throughput is this share of the best."""
STATE = 16
"""An attack holds about so many tensors of its rows beside the model call (apgd: 12)."""
SPARE = 0.8
"""A size is not tried where it would take more than this share of the memory that is free."""


@dataclass(frozen=True)
class BatchSize(Record):
    """The `rows` of a model call, and what was measured.

    `rows_per_second` by batch size, `out_of_memory` the size that did not fit, None where all fitted, `seconds` that it
    took, `forwards` and `backwards` the model calls in rows, `why` a sentence.
    """

    rows: int
    rows_per_second: dict[int, float]
    out_of_memory: int | None
    seconds: float
    forwards: int
    backwards: int
    why: str


def found_batch_size(objective: Objective, task: Task, n: int) -> BatchSize:
    """The batch size for the model calls of `objective`, which is open; n rows at most are there to be called at.

    Rows of `task` are repeated to fill a batch. Sizes are powers of two from 32, at most 1,024 (4,096 on a GPU) and no
    more than it takes to hold n. A black box is not queried for it.
    """
    if isinstance(objective.model, BlackBox):
        return BatchSize(USUAL, {}, None, 0.0, 0, 0, f"{USUAL} rows; a black box is not queried to find a number")
    search = _Search(objective, task, n)
    forwards, backwards = objective.forwards, objective.backwards
    ended = search.run()
    search.run_again()
    rates, seconds = search.rates, time.perf_counter() - search.began
    best = max(rates.values(), default=0.0)
    rows = next((size for size, rate in rates.items() if rate >= NEAR * best), MIN_BATCH)
    why = f"{rows:,} rows"
    if len(rates) > 1:
        near = "the most" if rates[rows] == best else f"within {1 - NEAR:.0%} of the most"
        why += f", {rates[rows]:,.0f} a second: {near} of {min(rates):,} to {max(rates):,} rows"
    found = BatchSize(
        rows=rows,
        rows_per_second=rates,
        out_of_memory=search.too_large,
        seconds=seconds,
        forwards=objective.forwards - forwards,
        backwards=objective.backwards - backwards,
        why=f"{why}; {ended}",
    )
    log.info("batch size, %s", found.why)
    return found


class _Search:
    """The sizes that were measured so far: rows per second by size, and the size that ran out of memory."""

    def __init__(self, objective: Objective, task: Task, n: int) -> None:
        self.objective, self.task, self.began = objective, task, time.perf_counter()
        self.most = MOST_ON_GPU if task.x.is_cuda else MOST
        self.needed = 1 << (max(n, MIN_BATCH) - 1).bit_length()
        self.rates: dict[int, float] = {}
        self.too_large: int | None = None

    def run(self) -> str:
        """Measure one size after the other; why it ended."""
        size, flat = MIN_BATCH, 0
        while True:
            best = max(self.rates.values(), default=0.0)
            seconds, memory = self.measure(size)
            if self.too_large is not None:
                return f"{size:,} ran out of memory"
            self.rates[size] = size / seconds
            flat = 0 if self.rates[size] > GAIN * best else flat + 1
            size *= 2
            if flat == FLAT:
                return "more rows gained nothing"
            if size > self.most:
                return "more are not tried"
            if size > self.needed:
                return "there is no work for more"
            if self.elapsed() + 2 * seconds * (1 + CALLS[0]) > BUDGET:
                return f"more would have taken longer than {BUDGET:.0f} s to measure"
            free = free_memory() if self.task.x.is_cpu else None
            if free is not None and 2 * (memory or 0) + self.state(size) > SPARE * free:
                return f"{size:,} might not fit into memory"

    def run_again(self) -> None:
        """Time the sizes again, and keep the better rate of each."""
        for size in AGAIN * list(self.rates):
            if self.elapsed() + (1 + CALLS[0]) * size / self.rates[size] > BUDGET:
                return
            seconds, _ = self.measure(size)
            if self.too_large != size:
                self.rates[size] = max(self.rates[size], size / seconds)

    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def state(self, size: int) -> int:
        """The bytes that an attack holds of so many rows."""
        return STATE * size * self.task.x[:1].nbytes

    def measure(self, size: int) -> tuple[float, int | None]:
        """The seconds of the fastest call of so many rows, and the memory of the first; or `too_large` is set."""
        times: list[float] = []
        memory = None
        try:
            rows = self.task.rows(torch.arange(size, device=self.task.x.device) % len(self.task.x))
            held = rows.x.new_empty((STATE, *rows.x.shape))
            call = partial(self.objective, rows.x, rows)
            memory = peak_memory(call)  # the first call of a size also chooses kernels
            while len(times) < CALLS[0] or (len(times) < CALLS[1] and sum(times) < ENOUGH):
                if times and self.elapsed() > BUDGET:
                    break
                times.append(_seconds(call, on_gpu=rows.x.is_cuda))
            del held
        except (RuntimeError, MemoryError) as error:  # outside the model call, which catches its own
            if not out_of_memory(error):
                raise
            self.too_large = size
        if self.objective.limit.rows < size:
            self.too_large = size
        return min(times, default=0.0), memory


def _seconds(call: Callable[[], object], *, on_gpu: bool) -> float:
    """The seconds of a call, until the device has finished it."""
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began
