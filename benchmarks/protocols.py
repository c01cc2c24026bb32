"""`standard` and `fast` beside AutoAttack's way of running `standard`, and beside other libraries' verdicts.

    python benchmarks/protocols.py --nets robust --seeds 0 1 2 --out benchmarks/results/protocols-robust.json

AutoAttack's way is our own `standard` with no exit inside a stage: every job of every example that entered the stage
is run to its end, broken examples are removed between stages. `standard` and `fast` run as `evaluate` runs them, which
accelerates the model where that is worth while, and again with the model as it is. One thread; in each round (one per
seed) they take turns in an order that rotates, on the same test images; seconds are CPU seconds. Peers look at the same
images once per seed, and their successes are judged by our own test of ball and prediction. The networks are those of
`nets.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from nets import CALIBRATION, HELD
from overhead import machine
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.attacks.registry import parse
from epsball.balls.ball import Ball
from epsball.data.examples import Examples
from epsball.engine.protocols import expand
from epsball.problem.objective import Objective
from epsball.problem.task import Task, task_of

Result = dict[str, object]


def to_the_end(attack: Attack, objective: Objective, task: Task) -> Tensor:
    """Which rows fall where every job is run to its end, a batch at a time."""
    broken = torch.zeros(len(task.y), dtype=torch.bool)
    for rank in range(attack.jobs):
        job, exists = attack.job(task, torch.full_like(task.y, rank))
        state = attack.init(job)
        for _ in range(attack.steps):  # type: ignore[attr-defined]
            point = objective(state.z, job)
            if attack.until == "fooled":
                broken |= point.fooled & exists
            state = attack.step(state, point, job)
        last = objective.evaluate_at(state.best, job)
        broken |= last.fooled & exists & job.ball.contains(state.best, job.x)
    return broken


def autoattacks_way(model: nn.Module, examples: Examples, ball: Ball, seed: int, batch_size: int = 128) -> Result:
    """`standard` without an exit inside a stage."""
    task = task_of(examples.x, examples.y, ball, ids=examples.ids, seed=seed)
    with torch.no_grad():
        task = replace(task, clean=torch.cat([model(part) for part in task.x.split(batch_size)]))
    assert task.clean is not None
    robust = (task.clean.argmax(1) == task.y).nonzero().squeeze(1)
    forwards, backwards = len(task.y), 0
    for name in expand("standard", ball):
        attack = parse(name)
        with Objective(model, attack.loss, needs=attack.needs) as objective:
            broken = [to_the_end(attack, objective, task.rows(rows)) for rows in robust.split(batch_size)]
        forwards, backwards = forwards + objective.forwards, backwards + objective.backwards
        robust = robust[~torch.cat(broken)] if broken else robust
        if not len(robust):
            break
    return {"robust": len(robust), "forwards": forwards, "backwards": backwards}


def protocol(name: str, accelerate: bool | None) -> Callable[..., Result]:
    """One of our protocols; `accelerate` as in `evaluate`."""

    def run(model: nn.Module, examples: Examples, ball: Ball, seed: int) -> Result:
        found = eb.evaluate(model, examples, ball, name, seed=seed, accelerate=accelerate)
        caught = {
            s.attack: [s.fooled, round((s.backwards or s.forwards) / s.attacked, 1), s.seconds]
            for s in found.stages[1:]
        }
        return {
            "robust": found.count("robust"),
            "forwards": found.forwards,
            "backwards": found.backwards,
            "stages": caught,
        }

    return run


def left(model: nn.Module, examples: Examples, ball: Ball, attack: Callable[[Tensor, Tensor], Tensor]) -> int:
    """How many examples are still robust after a peer's attack, by our own test."""
    with torch.no_grad():
        right = (model(examples.x).argmax(1) == examples.y).nonzero().squeeze(1)
        part = examples.rows(right)
    found = torch.cat([attack(x, y) for x, y in zip(part.x.split(128), part.y.split(128), strict=True)]).detach()
    with torch.no_grad():
        fooled = (model(found).argmax(1) != part.y) & ball.rows(right).contains(found, part.x)
    return len(right) - int(fooled.sum())


def torchattacks_(model: nn.Module, examples: Examples, ball: Ball, seed: int) -> int:
    """torchattacks' AutoAttack, its steps raised to 100."""
    import torchattacks

    whole = torchattacks.AutoAttack(
        model, norm="Linf", eps=float(ball.eps), version="standard", n_classes=10, seed=seed
    )
    for attack in whole._autoattack.attacks[:3]:
        attack.steps = 100
    return left(model, examples, ball, whole)


def foolbox_(model: nn.Module, examples: Examples, ball: Ball, seed: int) -> int:
    """foolbox' PGD with 100 steps of eps / 4 from a random start."""
    import foolbox

    torch.manual_seed(seed)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=100, random_start=True)
    return left(model, examples, ball, lambda x, y: attack(wrapped, x, y, epsilons=float(ball.eps))[1])


OURS: dict[str, Callable[..., Result]] = {
    "autoattack's way": autoattacks_way,
    "standard": protocol("standard", accelerate=None),
    "fast": protocol("fast", accelerate=None),
    "standard, model as it is": protocol("standard", accelerate=False),
    "fast, model as it is": protocol("fast", accelerate=False),
}
PEERS = {"torchattacks": torchattacks_, "foolbox": foolbox_}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="*", default=list(HELD), choices=[*HELD, *CALIBRATION])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--first", type=int, default=0, help="the first test image")
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--ours", nargs="*", default=list(OURS), choices=list(OURS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[Result] = []
    for name in arguments.nets:
        net = {**HELD, **CALIBRATION}[name]
        model, test = net.load(name)
        examples = test.rows(torch.arange(arguments.first, arguments.first + arguments.limit))
        ball = eb.Linf(eps=net.eps, lo=0, hi=1).bind(examples.x)
        with torch.no_grad():
            clean = int((model(examples.x).argmax(1) == examples.y).sum())
        for turn, seed in enumerate(arguments.seeds):
            row: Result = {"net": name, "eps": net.eps, "n": arguments.limit, "clean": clean, "seed": seed}
            at = turn % len(arguments.ours)
            names = arguments.ours[at:] + arguments.ours[:at]
            for ours in names:
                began = time.process_time()
                row[ours] = OURS[ours](model, examples, ball, seed) | {"seconds": 0.0}
                row[ours]["seconds"] = round(time.process_time() - began, 2)  # type: ignore[index]
            for peer in arguments.peers:
                began = time.process_time()
                robust = PEERS[peer](model, examples, ball, seed)
                row[peer] = {"robust": robust, "seconds": round(time.process_time() - began, 2)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
        print(summary([row for row in rows if row["net"] == name]), flush=True)


def summary(rows: list[Result]) -> str:
    """One network in a line: what stands, and how much sooner, medians over the seeds."""

    def seconds(row: Result, name: str) -> float:
        return row[name]["seconds"]  # type: ignore[index]

    parts = [str(rows[0]["net"])]
    for name in (*OURS, *PEERS):
        if name in rows[0]:
            parts.append(f"{name} {[row[name]['robust'] for row in rows]}")  # type: ignore[index]
    for name in OURS:
        if name != "autoattack's way" and {"autoattack's way", name} <= set(rows[0]):
            ratios = [seconds(row, "autoattack's way") / seconds(row, name) for row in rows]
            parts.append(f"{name} {statistics.median(ratios):.1f} times sooner ({min(ratios):.1f}-{max(ratios):.1f})")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
