"""What a step of adversarial training costs in plain training steps of the same network: ours, and other libraries.

    taskset -c 0 python benchmarks/training.py --out benchmarks/results/training.json

The small CNN on MNIST, batch 128, Adam, one thread. The unit is a plain step of the model as it is: zero the gradients,
forward, backward, step of the optimiser. Each case trains a copy of its own; in each round every case makes a step on
the same batch, in an order that rotates. A figure is the median over the rounds of CPU seconds / the unit's of the same
round, with the quartiles. "accelerated" is `accelerate(model, x, trainable=True)`, its trial not counted; the optimiser
steps the model's parameters, which it shares. "by phases" is that with a plan by hand. Of the other libraries is the
attack; the loop around it is written as their manuals have it. `--keep-memory` sets the C library as the command line
does (`cli/allocator.py`), for the unit and the rest alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from nets import mnist
from overhead import machine
from torch import Tensor, nn
from torch.nn import functional as F

import epsball as eb
from epsball.acceleration.accelerate import accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.cli.allocator import keep_memory
from epsball.common.noise import Noise
from epsball.models.registry import build
from epsball.training import FGSMRS, NFGSM, TRADES, FGSMMix, Free, GradAlign, GradientPenalty, PGDTraining, Plain
from epsball.training.training_objective import TrainingObjective, TrainingStep

EPS, BATCH, STEPS = 0.3, 128, 7
BALL = eb.Linf(eps=EPS, lo=0, hi=1)
PHASES = AccelerationPlan("trainable", kernels={"0": "phases", "2": "phases"})
GOALS = {"FGSMMix": 2.1, "FGSMRS": 2.1, "PGD-7": 8.5}
OURS: dict[str, TrainingObjective] = {
    "plain": Plain(),
    "FGSMMix": FGSMMix(),
    "FGSMRS": FGSMRS(),
    f"PGD-{STEPS}": PGDTraining(steps=STEPS),
}
OTHERS: dict[str, TrainingObjective] = {
    "FGSMMix, joint": FGSMMix(batch_norm="joint"),
    "NFGSM": NFGSM(),
    "Free, a replay": Free(),
    "TRADES-10": TRADES(),
    "GradAlign": GradAlign(),
    "GradientPenalty": GradientPenalty(),
}
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Case:
    """A model of its own, its optimiser, and what goes backwards."""

    model: nn.Module
    backward: Callable[[Tensor, Tensor, Noise], object]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.seconds: list[float] = []

    def step(self, x: Tensor, y: Tensor, noise: Noise) -> None:
        began = time.process_time()
        self.optimizer.zero_grad()
        self.backward(x, y, noise)
        self.optimizer.step()
        self.seconds.append(time.process_time() - began)


def ours(model: nn.Module, objective: TrainingObjective, network: nn.Module) -> Case:
    """One of the package's objectives, on a network that shares the model's parameters."""

    def backward(x: Tensor, y: Tensor, noise: Noise) -> object:
        return objective(network, x, y, BALL.bind(x), TrainingStep(noise))

    return Case(model, backward)


def written_by_hand(model: nn.Module) -> Case:
    """The unit."""
    return Case(model, lambda x, y, _: F.cross_entropy(model(x), y).backward())


def torchattacks_(model: nn.Module, kind: str) -> Attack:
    import torchattacks

    if kind == "FGSMMix":
        return torchattacks.FGSM(model, eps=EPS)
    if kind == "FGSMRS":
        return torchattacks.FFGSM(model, eps=EPS, alpha=1.25 * EPS)
    return torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=STEPS, random_start=True)


def foolbox_(model: nn.Module, kind: str) -> Attack:
    import foolbox

    if kind.startswith("FGSM"):
        attack = foolbox.attacks.LinfFastGradientAttack(random_start=kind == "FGSMRS")
    else:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=STEPS, random_start=True)

    def made(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        found = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=EPS)[1]
        model.train()
        return found

    return made


def art_(model: nn.Module, kind: str) -> Attack:
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )
    if kind.startswith("FGSM"):
        attack = FastGradientMethod(classifier, eps=EPS, batch_size=BATCH, num_random_init=int(kind == "FGSMRS"))
    else:
        attack = ProjectedGradientDescentPyTorch(
            classifier, eps=EPS, eps_step=EPS / 4, max_iter=STEPS, num_random_init=1, batch_size=BATCH, verbose=False
        )

    def made(x: Tensor, y: Tensor) -> Tensor:
        found = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
        model.train()
        return found

    return made


LIBRARIES = {"torchattacks": torchattacks_, "foolbox": foolbox_, "art": art_}


def of_library(model: nn.Module, kind: str, attack: Attack) -> Case:
    """The library's attack, and the loop around it."""

    def backward(x: Tensor, y: Tensor, _: Noise) -> object:
        x_adv = attack(x, y)
        model.zero_grad()
        loss = F.cross_entropy(model(x_adv), y)
        if kind == "FGSMMix":
            loss = 0.5 * F.cross_entropy(model(x), y) + 0.5 * loss
        loss.backward()

    return Case(model, backward)


def cases(example: Tensor, everything: bool, libraries: list[str]) -> tuple[dict[str, Case], str]:
    """All of them by name, "unit" first, and the plan of the accelerated network."""
    start = build("small-cnn", (1, 28, 28), 10, seed=0).train()
    made, plan = {"unit": written_by_hand(copy.deepcopy(start))}, accelerate(start, example, trainable=True).plan
    for name, objective in (OURS | OTHERS if everything else OURS).items():
        model = copy.deepcopy(start)
        made[f"{name} / as it is"] = ours(model, objective, model)
        for how, wanted in (("accelerated", plan), ("by phases", PHASES)):
            model = copy.deepcopy(start)
            network = accelerate(model, example, plan=wanted, trainable=True).train()
            made[f"{name} / {how}"] = ours(model, objective, network)
    for library in libraries:
        for kind in GOALS:
            model = copy.deepcopy(start)
            try:
                made[f"{kind} / {library}"] = of_library(model, kind, LIBRARIES[library](model, kind))
            except ImportError as error:
                print(f"{library} left out: {error}")
                break
    return made, str(plan)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--all", action="store_true", help="the other objectives too")
    parser.add_argument("--only", nargs="*", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.keep_memory:
        keep_memory()
    data = mnist("train", limit=4096)
    made, plan = cases(data.x[:BATCH], arguments.all, arguments.only)
    names = list(made)
    for turn in range(arguments.rounds + 2):
        rows = (torch.arange(BATCH) + BATCH * turn) % len(data)
        x, y = data.x[rows], data.y[rows]
        noise = Noise(0, data.ids[rows], torch.zeros_like(rows))
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            made[name].step(x, y, noise)
    unit = made["unit"].seconds[2:]
    unit_ms = 1000 * statistics.median(unit)
    print(f"unit {unit_ms:.2f} ms; accelerated: {plan}; load {os.getloadavg()[0]:.1f}")
    rows = []
    for name, case in made.items():
        if name == "unit":
            continue
        ratios = [own / one for own, one in zip(case.seconds[2:], unit, strict=True)]
        first, middle, third = statistics.quantiles(ratios, n=4)
        kind, _, how = name.partition(" / ")
        row = {
            "objective": kind,
            "how": how,
            "median": round(middle, 3),
            "quartiles": [round(first, 3), round(third, 3)],
        }
        row |= {"goal": GOALS[kind]} if kind in GOALS and how in ("accelerated", "by phases") else {}
        rows.append(row)
        print(f"{kind:<18}{how:<14}{middle:6.2f} ({first:.2f}-{third:.2f})", row.get("goal", ""), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"machine": machine(), "keep_memory": arguments.keep_memory, "load": os.getloadavg()[0], "plan": plan}
        found |= {"unit_ms": round(unit_ms, 3), "rounds": arguments.rounds, "rows": rows}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
