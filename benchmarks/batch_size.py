"""`batch_size="auto"` beside a grid of all sizes: which one it takes, and how far that is from the best of the grid.

    python benchmarks/batch_size.py [--cases 0 1 2 3 4]

Forward and input gradient of the cross-entropy, as pgd makes them, on one thread. The grid is measured in rounds, all
sizes one after the other in each, in CPU seconds of the process, so that other processes disturb it little; a size's
throughput is that of its fastest call in all rounds. The spread is that of a size's rounds, the largest of all sizes.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch

import epsball as eb
from epsball.data.load import load_data
from epsball.engine.batch_size import found_batch_size
from epsball.models.registry import build
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Objective
from epsball.problem.task import Task, task_of

SIZES = (32, 64, 128, 256, 512, 1024)
CHOICES, LEAST, MOST = 5, 0.1, 20
"""Choices of a case; CPU seconds of a size in a round, at least; seconds after which a case begins no third round."""
CASES = (
    ("small-mlp", "digits"),
    ("small-cnn", "digits"),
    ("small-mlp", "mnist"),
    ("small-cnn", "mnist"),
    ("preact-resnet18:width=16", "cifar10"),
)


def throughput(objective: Objective, task: Task, size: int) -> float:
    """Rows a CPU second of the fastest of some calls of so many rows."""
    rows = task.rows(torch.arange(size) % len(task.x))
    objective(rows.x, rows)
    times: list[float] = []
    while not times or sum(times) < LEAST:
        began = time.process_time()
        objective(rows.x, rows)
        times.append(time.process_time() - began)
    return size / min(times)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--cases", nargs="*", type=int, default=range(len(CASES)))
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, epsball {eb.__version__}")
    for model, data in (CASES[case] for case in options.parse_args().cases):
        examples = load_data(data, split="test", first=1024)
        shape = examples.shape if len(examples.shape) == 3 or model == "small-mlp" else (1, 8, 8)
        task = task_of(examples.x.reshape(-1, *shape), examples.y, eb.Linf(eps=0.1, lo=0, hi=1))
        with Objective(build(model, shape, 10), cross_entropy) as objective:
            rounds, began = [], time.perf_counter()
            while len(rounds) < 2 or (len(rounds) < 10 and time.perf_counter() - began < MOST):
                rounds.append({size: throughput(objective, task, size) for size in SIZES})
            grid = {size: max(one[size] for one in rounds) for size in SIZES}
            best = max(grid, key=lambda size: grid[size])
            spread = max(1 - min(one[size] for one in rounds) / grid[size] for size in SIZES)
            print(model, data, {size: round(rate) for size, rate in grid.items()}, f"spread {spread:.0%}", flush=True)
            for _ in range(CHOICES):
                found = found_batch_size(objective, task, 10_000)
                share = f"{grid[found.rows] / grid[best]:.1%} of the best ({best})"
                print(f"  {found.rows}: {share}, in {found.seconds:.1f} s; {found.why}", flush=True)


if __name__ == "__main__":
    main()
