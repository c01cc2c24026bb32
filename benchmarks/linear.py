"""Linear models: the exact attack beside PGD-40 of other libraries, and exact robust training, each on one thread.

    python benchmarks/linear.py --mnist ../shared/data/mnist --out benchmarks/results/linear.json

Parts: attack (softmax regression, 10,000 MNIST test images, eps .1 with the box; every library attacks the same torch
module, in turns), tall (MNIST 3 against 7), wide (200 x 20,000), classes (all of MNIST). Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import epsball as eb
from epsball.data.load import load_data

EPS = 0.1


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def attack(mnist: str, rounds: int) -> dict[str, Any]:
    """Exact optimum, foolbox and ART on one softmax regression."""
    import foolbox
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    train, test = load_data(mnist, split="train"), load_data(mnist, split="test")
    fitted = LogisticRegression(C=0.01, max_iter=200).fit(train.x.flatten(1).numpy()[::6], train.y.numpy()[::6])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(fitted.coef_))
        model[1].bias.copy_(torch.from_numpy(fitted.intercept_))
    x, y = test.x, test.y
    ball = eb.Linf(eps=EPS, lo=0, hi=1)
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )

    def accuracy(z: torch.Tensor) -> float:
        with torch.no_grad():
            return (model(z).argmax(1) == y).double().mean().item()

    def foolbox_(batch: int) -> torch.Tensor:
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        pgd = foolbox.attacks.LinfPGD(steps=40, rel_stepsize=1 / 30)
        parts = zip(x.split(batch), y.split(batch), strict=True)
        return torch.cat([pgd(bounded, a, b, epsilons=EPS)[1] for a, b in parts])

    def art_(batch: int) -> torch.Tensor:
        pgd = ProjectedGradientDescentPyTorch(
            classifier, eps=EPS, eps_step=EPS / 30, max_iter=40, batch_size=batch, verbose=False
        )
        return torch.from_numpy(pgd.generate(x.numpy(), torch.nn.functional.one_hot(y, 10).numpy()))

    runs: dict[str, Callable[[], Any]] = {
        "epsball": lambda: eb.linear.optimum(weight, bias, x, y, ball),
        "foolbox, all at once": lambda: foolbox_(len(x)),
        "foolbox, batches of 500": lambda: foolbox_(500),
        "ART, its default batch of 32": lambda: art_(32),
        "ART, batches of 500": lambda: art_(500),
    }
    others = [name for name in runs if name != "epsball"]
    runs["epsball"]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, Any] = {}
    for turn in range(rounds):
        names = list(runs)
        for name in names[turn % 5 :] + names[: turn % 5]:
            seconds, found[name] = timed(runs[name])
            times[name].append(seconds)
    exact = found["epsball"]
    robust = {"epsball": exact.robust_accuracy} | {name: accuracy(found[name]) for name in others}
    ratios = {
        name: [theirs / ours for theirs, ours in zip(times[name], times["epsball"], strict=True)] for name in others
    }
    return {
        "accuracy": accuracy(x),
        "robust_accuracy": robust,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "times_slower": {name: [min(r), statistics.median(r), max(r)] for name, r in ratios.items()},
        "versions": {"foolbox": version("foolbox"), "ART": version("adversarial-robustness-toolbox")},
    }


def trained(X: np.ndarray, y: np.ndarray, eps: float, rounds: int, tol: float) -> dict[str, Any]:
    """Robust logistic regression, a few times."""
    seconds = []
    for _ in range(rounds):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spent, model = timed(lambda: eb.RobustLogisticRegression(eps, tol=tol).fit(X, y))
        seconds.append(spent)
    return {
        "shape": X.shape,
        "eps": eps,
        "seconds": [min(seconds), statistics.median(seconds), max(seconds)],
        "objective": model.objective_,
        "gap": model.dual_gap_,
        "relative_gap": model.dual_gap_ / model.objective_,
        "steps": model.n_iter_,
        "nonzero": int((model.coef_ != 0).any(0).sum()),
        "eps_max": eb.linear.eps_max(X, y),
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def tall(mnist: str, rounds: int) -> dict[str, Any]:
    """MNIST 3 against 7."""
    data = load_data(mnist, split="train")
    chosen = (data.y == 3) | (data.y == 7)
    X, y = data.x[chosen].flatten(1).double().numpy(), (data.y[chosen] == 7).numpy()
    return trained(X, y, EPS, rounds, 5e-7)


def wide(rounds: int) -> dict[str, Any]:
    """200 x 20,000, 50 features with weight and noise; eps above the margin by which the data can be separated."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 20_000))
    y = X[:, :50] @ rng.standard_normal(50) + 5 * rng.standard_normal(200) > 0
    return {str(eps): trained(X, y, eps, rounds, 5e-7) for eps in (0.27, 0.25, 0.23)}


def classes(mnist: str) -> dict[str, Any]:
    """All of MNIST."""
    data = load_data(mnist, split="train")
    return trained(data.x.flatten(1).double().numpy(), data.y.numpy(), EPS, 1, 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default="../shared/data/mnist")
    parser.add_argument("--parts", nargs="*", default=["attack", "tall", "wide", "classes"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    result: dict[str, Any] = {
        "machine": f"{cpu[0]}, {os.cpu_count()} cores, one thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    parts = {
        "attack": lambda: attack(given.mnist, given.rounds),
        "tall": lambda: tall(given.mnist, given.rounds),
        "wide": lambda: wide(given.rounds),
        "classes": lambda: classes(given.mnist),
    }
    for name in given.parts:
        result[name] = parts[name]()
        print(name, json.dumps(result[name], indent=2), flush=True)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
