"""What an attack costs above LIMIT, the raw loop of k forwards and k input-only gradients, beside other libraries.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json

One thread; in each round LIMIT and every library run once, in an order that rotates, on the same batch; a figure is
the median over the rounds of time / LIMIT of the same round, with the quartiles. The network is the small CNN of the
issue, trained for one epoch so that its gradients are those of a working model; labels are its own predictions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from nets import plain
from torch.nn import functional as F

import epsball as eb

EPS = 0.3
STEP = 0.025  # eps / 12; every library gets the same
Attack = Callable[[torch.Tensor, torch.Tensor], object]


def limit(model: torch.nn.Module, steps: int) -> Attack:
    """The raw loop: nothing is done with the gradient."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def attack(x: torch.Tensor, y: torch.Tensor) -> object:
        for _ in range(steps):
            z = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        return grad

    return attack


def epsball_(model: torch.nn.Module, steps: int) -> Attack:
    attack = eb.FGSM() if steps == 1 else eb.PGD(steps=steps, step_size=STEP / EPS)
    ball = eb.Linf(eps=EPS, lo=0, hi=1)
    return lambda x, y: attack(model, x, y, ball)


def torchattacks_(model: torch.nn.Module, steps: int) -> Attack:
    import torchattacks

    if steps == 1:
        return torchattacks.FGSM(model, eps=EPS)
    return torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=steps, random_start=True)


def foolbox_(model: torch.nn.Module, steps: int) -> Attack:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    if steps == 1:
        attack = foolbox.attacks.LinfFastGradientAttack()
    else:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=True)
    return lambda x, y: attack(wrapped, x, y, epsilons=EPS)


def art_(model: torch.nn.Module, steps: int) -> Attack:
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )
    if steps == 1:
        return lambda x, y: FastGradientMethod(classifier, eps=EPS, batch_size=len(x)).generate(x.numpy(), y.numpy())

    def attack(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        made = ProjectedGradientDescentPyTorch(
            classifier, eps=EPS, eps_step=STEP, max_iter=steps, num_random_init=1, batch_size=len(x), verbose=False
        )
        return made.generate(x.numpy(), y.numpy())

    return attack


LIBRARIES = {"epsball": epsball_, "torchattacks": torchattacks_, "foolbox": foolbox_, "art": art_}
PACKAGES = {"art": "adversarial-robustness-toolbox"}


def measure(attacks: dict[str, Attack], x: torch.Tensor, y: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of every attack in every round, one round for warming up left out."""
    seconds: dict[str, list[float]] = {name: [] for name in attacks}
    names = list(attacks)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            attacks[name](x, y)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 128, 512])
    parser.add_argument("--steps", nargs="*", type=int, default=[1, 10, 40])
    parser.add_argument("--seconds", type=float, default=40, help="about how long each cell may take")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, images = plain(epochs=1)
    rows = []
    for batch in arguments.batches:
        x = images.x[:batch].contiguous()
        with torch.no_grad():
            y = model(x).argmax(1)
        for steps in arguments.steps:
            attacks = {"LIMIT": limit(model, steps)}
            for name in arguments.only:
                try:
                    attacks[name] = LIBRARIES[name](model, steps)
                except ImportError as error:
                    print(f"{name} left out: {error}")
            began = time.perf_counter()
            measure(attacks, x, y, 1)
            once = (time.perf_counter() - began) / 2
            rounds = max(5, min(301, int(arguments.seconds / once)))
            seconds = measure(attacks, x, y, rounds)
            row: dict[str, object] = {
                "attack": "FGSM" if steps == 1 else f"PGD-{steps}",
                "batch": batch,
                "rounds": rounds,
                "LIMIT ms": statistics.median(seconds["LIMIT"]) * 1e3,
            }
            for name in arguments.only:
                if name in seconds:
                    ratios = [a / b for a, b in zip(seconds[name], seconds["LIMIT"], strict=True)]
                    row[name] = {
                        "median": statistics.median(ratios),
                        "quartiles": statistics.quantiles(ratios, n=4)[::2],
                    }
            rows.append(row)
            print(line(row, arguments.only), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2))
        arguments.out.with_suffix(".md").write_text(table(rows, arguments.only))


def line(row: dict, names: list[str]) -> str:
    cells = [
        f"{row[n]['median']:.2f} ({row[n]['quartiles'][0]:.2f}-{row[n]['quartiles'][1]:.2f})" if n in row else "-"
        for n in names
    ]
    return f"| {row['attack']} | {row['batch']} | {row['LIMIT ms']:.2f} | {' | '.join(cells)} |"


def table(rows: list[dict], names: list[str]) -> str:
    head = ["attack", "batch", "LIMIT, ms", *names]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(line(row, names) for row in rows)]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """Where and with what the figures were measured."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    found = {}
    for package in ("epsball", "torch", "torchattacks", "foolbox", "adversarial-robustness-toolbox"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version(), **found}


if __name__ == "__main__":
    main()
