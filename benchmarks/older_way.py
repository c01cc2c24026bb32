"""The older way (find adversarial examples, add them to the training set, go on) beside the mixed objective.

    python benchmarks/older_way.py --out benchmarks/results/older-way.json

Both train the small CNN on MNIST, eps .1, at a constant learning rate; after each epoch the error on FGSM examples of
1,000 held-out images is looked at. What is reported is the cost of the first epoch that ends at or below each error:
rows of forward-backward passes for each training image, attacks included, checks left out, and CPU seconds with them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from nets import mnist
from overhead import machine

import epsball as eb
from epsball.models.registry import build
from epsball.training import Augment, FGSMMix
from epsball.training.fit import fit
from epsball.training.fit_result import Progress
from epsball.training.training_objective import TrainingObjective

EPS, HELD, ERRORS = 0.1, 1000, (0.2, 0.15, 0.12, 0.1, 0.08)


def course(objective: TrainingObjective, seed: int, epochs: int) -> list[dict[str, float]]:
    """After each epoch: the FGSM and PGD-10 errors of held-out images, and what has been spent."""
    data = mnist("train")
    model = build("small-cnn", data.shape, data.classes, seed=seed)
    rows, found, began = [0], [], time.process_time()
    model.register_forward_hook(lambda module, inputs, output: rows.append(len(output) if module.training else 0))

    def note(mark: Progress) -> None:
        if mark.check is not None and mark.check.step == mark.step:
            attacks = (len(data) - HELD) * (mark.epoch - 1) if isinstance(objective, Augment) else 0
            found.append(
                {
                    "epoch": mark.epoch,
                    "fgsm": 1 - (mark.check.fgsm or 0.0),
                    "pgd": 1 - (mark.check.pgd or 0.0),
                    "clean": 1 - mark.check.clean,
                    "passes": (sum(rows) + attacks) / (len(data) - HELD),
                    "seconds": time.process_time() - began,
                }
            )

    ball = eb.Linf(eps=EPS, lo=0, hi=1)
    options = {"epochs": epochs, "schedule": "constant", "hold_out": HELD, "checks": 1, "accelerate": False}
    fit(model, data, ball, objective=objective, seed=seed, on_overfit="ignore", progress=note, **options)
    return found


def main() -> None:
    """Both, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in arguments.seeds:
        for name, objective in (("FGSMMix", FGSMMix()), ("Augment", Augment())):
            steps = course(objective, seed, arguments.epochs)
            reached = {
                error: next(([s["epoch"], s["passes"], s["seconds"]] for s in steps if s["fgsm"] <= error), None)
                for error in ERRORS
            }
            rows.append({"objective": name, "seed": seed, "course": steps, "reached": reached})
            print(name, seed, json.dumps(reached), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(), "eps": EPS, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
