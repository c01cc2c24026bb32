"""What an accelerated pass costs beside LIMIT, and an evaluation beside one that is not accelerated.

    python benchmarks/accelerate.py --out benchmarks/results/accelerate.json

LIMIT is the raw loop: a forward and an input-only backward with frozen parameters. Each round times every network once,
interleaved, on one thread; figures are medians of the paired ratios, CPU seconds. `--keep-memory` sets the C library
as the command line does (`cli/allocator.py`), for LIMIT and the rest alike. `--compile` also compiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from nets import HELD
from overhead import machine
from torch import nn

import epsball as eb
from epsball.acceleration.accelerate import accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.acceleration.trial import gradient_pass
from epsball.cli.allocator import keep_memory
from epsball.models.registry import build

PASSES = [
    ("small-cnn", (1, 28, 28), 128),
    ("small-cnn", (1, 28, 28), 512),
    ("preact-resnet18:width=16", (3, 32, 32), 64),
]


def quartiles(values: list[float]) -> list[float]:
    """Median and quartiles."""
    first, middle, third = statistics.quantiles(values, n=4)
    return [round(part, 3) for part in (middle, first, third)]


def passes(rounds: int, compile: bool) -> list[dict[str, object]]:
    """A pass of each network over LIMIT."""
    rows = []
    for name, shape, batch in PASSES:
        torch.manual_seed(0)
        model, x = build(name, shape, 10).eval().requires_grad_(False), torch.rand(batch, *shape)
        networks: dict[str, nn.Module] = {"LIMIT": model, "accelerated": accelerate(model, x)}
        if compile:
            networks["compiled"] = accelerate(model, x, compile=True)
        times: dict[str, list[float]] = {which: [] for which in networks}
        for _ in range(rounds):
            for which, network in networks.items():
                began = time.process_time()
                gradient_pass(network, x)
                times[which].append(time.process_time() - began)
        row: dict[str, object] = {"network": name, "batch": batch}
        row["limit_ms"] = round(1000 * statistics.median(times["LIMIT"]), 2)
        for which, network in list(networks.items())[1:]:
            ratios = [new / old for old, new in zip(times["LIMIT"], times[which], strict=True)]
            plan = network.plan
            assert isinstance(plan, AccelerationPlan)
            row[which] = {"over_limit": quartiles(ratios), "plan": plan.to_record()}
            print(name, batch, which, row["limit_ms"], "ms", quartiles(ratios), plan, flush=True)
        rows.append(row)
    return rows


def zoo(rounds: int) -> list[dict[str, object]]:
    """Every small architecture of the tests: what `accelerate` gives over the model itself, never much more than 1."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from zoo import ZOO, make

    rows = []
    for name in ZOO:
        model = make(name).eval().requires_grad_(False)
        x = torch.rand(32, *ZOO[name][1])
        if not model(x.requires_grad_()).requires_grad:
            continue  # there is no gradient to make cheaper
        network = accelerate(model, x)
        ratios = []
        for _ in range(rounds):
            times = []
            for one in (model, network):
                began = time.process_time()
                for _ in range(5):
                    gradient_pass(one, x)
                times.append(time.process_time() - began)
            ratios.append(times[1] / times[0])
        rows.append({"network": name, "over_model": quartiles(ratios), "plan": str(network.plan)})
        print(name, quartiles(ratios), network.plan, flush=True)
    return rows


def evaluations(rounds: int) -> list[dict[str, object]]:
    """PGD-40 on the held networks with and without acceleration, the trial included."""
    rows = []
    for name, n in (("robust", 1024), ("fgsm-rs", 1024), ("plain", 1024), ("resnet", 128)):
        model, test = HELD[name].load(name)
        examples, ball = test.rows(torch.arange(n)), eb.Linf(eps=HELD[name].eps, lo=0, hi=1)
        ratios, plan = [], None
        for _ in range(rounds):
            took, found = [], []
            for asked in (False, None):
                began = time.process_time()
                found.append(eb.evaluate(model, examples, ball, "pgd", accelerate=asked))
                took.append(time.process_time() - began)
            plan = found[1].config["acceleration"]
            assert found[0].records["status"].equals(found[1].records["status"])
            ratios.append(took[1] / took[0])
        kept = plan and AccelerationPlan.from_record(plan)
        again = [eb.evaluate(model, examples, ball, "pgd", accelerate=kept) for _ in range(2)] if kept else []
        assert all(one.records.equals(again[0].records) for one in again)
        rows.append(
            {"network": name, "n": n, "robust": found[0].count("robust"), "ratio": quartiles(ratios), "plan": plan}
        )
        print(name, n, "robust", found[0].count("robust"), "in both; ratio", quartiles(ratios), kept, flush=True)
    return rows


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.keep_memory:
        keep_memory()
    found = {"machine": machine(), "keep_memory": arguments.keep_memory}
    found |= {"passes": passes(arguments.rounds, arguments.compile), "evaluations": evaluations(arguments.runs)}
    found |= {"zoo": zoo(arguments.rounds)}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
