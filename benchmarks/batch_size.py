"""`batch_size="auto"` beside a grid of all sizes: which one it takes, and how far that is from the best of the grid.

    python benchmarks/batch_size.py [--data PATH]

Forward and input gradient of the cross-entropy, as pgd makes them. The grid is measured in rounds, all sizes one after
the other in each; a size's throughput is the best of its rounds, which is the least disturbed one.
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
ROUNDS, CHOICES, LEAST = 5, 5, 0.15
CASES = (
    ("small-mlp", "digits"),
    ("small-cnn", "digits"),
    ("small-mlp", "mnist"),
    ("small-cnn", "mnist"),
    ("preact-resnet18:width=16", "cifar10"),
)


def throughput(objective: Objective, task: Task, size: int) -> float:
    """Rows a second of calls of so many rows."""
    rows = task.rows(torch.arange(size) % len(task.x))
    objective(rows.x, rows)
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < LEAST or not calls:
        objective(rows.x, rows)
        calls += 1
    return calls * size / (time.perf_counter() - began)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--cases", nargs="*", type=int, default=range(len(CASES)))
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, epsball {eb.__version__}")
    for model, data in (CASES[case] for case in options.parse_args().cases):
        examples = load_data(data, split="test", first=1024)
        shape = examples.shape if len(examples.shape) == 3 or model == "small-mlp" else (1, 8, 8)
        x = examples.x.reshape(-1, *shape)
        task = task_of(x, examples.y, eb.Linf(eps=0.1, lo=0, hi=1))
        with Objective(build(model, shape, 10), cross_entropy) as objective:
            rounds = [{size: throughput(objective, task, size) for size in SIZES} for _ in range(ROUNDS)]
            grid = {size: max(one[size] for one in rounds) for size in SIZES}
            best = max(grid, key=lambda size: grid[size])
            spread = {size: 1 - min(one[size] for one in rounds) / grid[size] for size in SIZES}
            print(
                model,
                data,
                {size: round(rate) for size, rate in grid.items()},
                f"spread {max(spread.values()):.0%}",
                flush=True,
            )
            for _ in range(CHOICES):
                found = found_batch_size(objective, task, 10_000)
                share = f"{grid[found.rows] / grid[best]:.1%} of the best ({best})"
                print(f"  {found.rows}: {share}, in {found.seconds:.1f} s; {found.why}", flush=True)


if __name__ == "__main__":
    main()
