"""What Square costs above its forwards, and how many examples are robust after it, beside torchattacks.

    python benchmarks/square.py cost --out benchmarks/results/square-cost.json
    python benchmarks/square.py strength --out benchmarks/results/square-strength.json

Cost: one thread; in each round the attack, with no success that would end a job, and as many bare forwards of the same
batch under no_grad run once, in turn first; a figure is the median over the rounds of their ratio, with the quartiles.
Strength: how many of the correctly classified examples are still robust, per seed, after so many queries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from nets import HELD
from overhead import machine
from torch import Tensor, nn

import epsball as eb
from epsball.balls.ball import Ball
from epsball.cli.allocator import keep_memory
from epsball.problem.task import Task

CELLS = [("plain", 128, 200), ("plain", 512, 60), ("resnet", 128, 40)]
EPS = {"plain": {"linf": 0.3, "l2": 2.0, "l1": 10.0}, "resnet": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}}
DUELS = [
    ("plain", "linf", 0.12),
    ("fgsm-rs", "linf", 0.3),
    ("robust", "linf", 0.3),
    ("plain", "l2", 2.0),
    ("robust", "l2", 2.0),
]


def ball_of(norm: str, eps: float) -> Ball:
    return {"linf": eb.Linf, "l2": eb.L2, "l1": eb.L1}[norm](eps=eps, lo=0, hi=1)


def never(output: Tensor, task: Task) -> Tensor:
    """A success that no point has."""
    return torch.zeros_like(task.y, dtype=torch.bool)


def cost(rounds: int) -> list[dict[str, object]]:
    rows = []
    for name, batch, steps in CELLS:
        model, images = HELD[name].load(name)
        model.requires_grad_(False)
        x, y = images.x[:batch].contiguous(), images.y[:batch]
        for norm, eps in EPS[name].items():
            attack, ball = eb.Square(steps=steps), ball_of(norm, eps)

            def forwards(model: nn.Module = model, x: Tensor = x, steps: int = steps) -> None:
                with torch.no_grad():
                    for _ in range(steps):
                        model(x)

            seconds: dict[str, list[float]] = {"attack": [], "forwards": []}
            for turn in range(rounds + 1):
                for what in sorted(seconds, reverse=bool(turn % 2)):
                    began = time.perf_counter()
                    if what == "attack":
                        attack(model, x, y, ball, seed=turn, success=never)
                    else:
                        forwards()
                    if turn:
                        seconds[what].append(time.perf_counter() - began)
            ratios = [a / b for a, b in zip(seconds["attack"], seconds["forwards"], strict=True)]
            row: dict[str, object] = {
                "net": name,
                "batch": batch,
                "norm": norm,
                "forward ms": statistics.median(seconds["forwards"]) / steps * 1e3,
                "median": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def strength(n: int, queries: int, seeds: int) -> list[dict[str, object]]:
    import torchattacks

    rows = []
    for name, norm, eps in DUELS:
        model, images = HELD[name].load(name)
        x, y, ball = images.x[:n], images.y[:n], ball_of(norm, eps)

        def stands(z: Tensor, labels: Tensor, model: nn.Module = model) -> Tensor:
            with torch.no_grad():
                return model(z).argmax(1) == labels

        right = stands(x, y)
        x, y = x[right].contiguous(), y[right]
        row: dict[str, object] = {"net": name, "norm": norm, "eps": eps, "right": len(x), "queries": queries}
        row["epsball"] = [
            int(stands(eb.Square(steps=queries)(model, x, y, ball, seed=s), y).sum()) for s in range(seeds)
        ]
        peers = [
            torchattacks.Square(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_queries=queries, seed=s)
            for s in range(seeds)
        ]
        row["torchattacks"] = [int(stands(peer(x, y), y).sum()) for peer in peers]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["cost", "strength"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps freed memory, as in the command line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.keep_memory:
        keep_memory()
    if arguments.what == "cost":
        rows = cost(arguments.rounds)
    else:
        rows = strength(arguments.n, arguments.queries, arguments.seeds)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
