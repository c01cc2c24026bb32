"""What the queue saves on a model that falls soon, and costs on one that does not: against a full PGD-40 run.

    python benchmarks/pool.py --out benchmarks/results/pool.json

The full run is a direct call of the same attack on every example, 128 at a time, between the same clean pass and a last
look at its points. One thread; the two take turns; a figure is the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from nets import EPS, plain, robust
from overhead import machine
from torch import nn

import epsball as eb
from epsball.data.examples import Examples

BATCH_SIZE = 128


def full(model: nn.Module, data: Examples, attack: eb.PGD, ball: eb.Linf) -> float:
    """Robust accuracy by direct calls: clean pass, every example attacked for all the steps, one look at the points."""
    correct = 0
    for start in range(0, len(data), BATCH_SIZE):
        part = data.rows(slice(start, start + BATCH_SIZE))
        with torch.no_grad():
            right = model(part.x).argmax(1) == part.y
        x_adv = attack(model, part.x, part.y, ball, ids=part.ids)
        with torch.no_grad():
            correct += int((right & (model(x_adv).argmax(1) == part.y)).sum())
    return correct / len(data)


def compare(model: nn.Module, data: Examples, attack: eb.PGD, rounds: int) -> dict[str, object]:
    ball = eb.Linf(eps=EPS, lo=0, hi=1)
    ratios, seconds = [], []
    for turn in range(rounds + 1):
        began = time.perf_counter()
        slow = full(model, data, attack, ball)
        between = time.perf_counter()
        ev = eb.evaluate(model, data, ball, attack, batch_size=BATCH_SIZE)
        ended = time.perf_counter()
        if turn:
            ratios.append((ended - between) / (between - began))
            seconds.append(ended - between)
    return {
        "clean accuracy": ev.clean_accuracy,
        "robust accuracy, queue": ev.robust_accuracy,
        "robust accuracy, full run": slow,
        "passes per example": ev.backwards / len(data),
        "forwards per example": ev.forwards / len(data),
        "seconds": statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "ratio quartiles": statistics.quantiles(ratios, n=4)[::2],
        "rounds": rounds,
    }


def curve(model: nn.Module, data: Examples, attack: eb.PGD) -> dict[str, object]:
    radii = [EPS * (i + 1) / 10 for i in range(10)]
    ev = eb.evaluate(model, data, eb.Linf(eps=EPS, lo=0, hi=1), attack, eps=radii, batch_size=BATCH_SIZE)
    return {
        "examples": len(data),
        "passes per example": ev.backwards / len(data),
        "forwards per example": ev.forwards / len(data),
        "seconds": ev.seconds,
        "curve": ev.curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weak, images = plain()
    strong, _ = robust()
    data = images.rows(slice(0, 1024))
    found: dict[str, object] = {"machine": machine()}
    for name, model, step in (
        ("plain", weak, 0.25),
        ("plain, steps of eps/30", weak, 1 / 30),
        ("robust", strong, 0.25),
    ):
        found[name] = compare(model, data, eb.PGD(steps=40, step_size=step), arguments.rounds)
        print(name, json.dumps(found[name]), flush=True)
    for name, step in (("curve", 0.25), ("curve, steps of eps/30", 1 / 30)):
        found[name] = curve(weak, images, eb.PGD(steps=40, step_size=step))
        print(name, json.dumps(found[name]), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
