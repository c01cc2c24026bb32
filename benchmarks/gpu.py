"""On a GPU: attacks on `preact_resnet18` (batch_size 64) beside the raw loop in single precision, and compiled in bf16.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

LIMIT is the raw loop, k forwards and k input-only backwards in single precision with frozen parameters; the fast loop
the same under autocast, compiled, channels last. An attack's model calls are those that its records count:
`share` is the time of the fast loop for as many calls over the attack's. Medians of paired ratios; events are
synchronised. The network is trained for one epoch with FGSM and a random start, on CIFAR-10 where EPSBALL_DATA has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from nets import folder
from overhead import machine
from torch import Tensor, nn
from torch.nn import functional as F

import epsball as eb
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.models.registry import build

ATTACKS = ("pgd:steps=40", "apgd-ce", "standard")
STEPS = 10


def seconds(run) -> float:
    """Wall time to the end of the last kernel."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def loop(network, x: Tensor, y: Tensor, *, bf16: bool) -> None:
    """STEPS passes."""
    for _ in range(STEPS):
        z = x.detach().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(z), y, reduction="sum")
        torch.autograd.grad(loss, z)


def trained(data: Examples, ball: eb.Ball) -> nn.Module:
    """A network that stands some attacks, so that not all of the time is start-up."""
    model = build("preact-resnet18:width=64", data.shape, 10).cuda()
    rows = Examples(data.x.cuda(), data.y.cuda(), data.ids.cuda(), data.lo, data.hi, data.classes, data.name)
    eb.fit(model, rows, ball, objective=eb.training.FGSMRS(), epochs=1, batch_size=256, lr=1e-3, seed=0)
    return model.eval().requires_grad_(False)


def measured(model: nn.Module, data: Examples, ball: eb.Ball, batch: int, rounds: int) -> list[dict[str, object]]:
    """All attacks at one batch, each beside both loops."""
    x, y = data.x[:batch].cuda(), data.y[:batch].cuda()
    fast = torch.compile(model.to(memory_format=torch.channels_last), dynamic=False)
    for network, bf16 in ((model, False), (fast, True)):
        loop(network, x, y, bf16=bf16)  # compiles, picks algorithms
    rows = []
    for attack in ATTACKS:
        for options in ({}, {"accelerate": True}, {"accelerate": True, "draft": "bf16"}):
            over, share, found = [], [], None
            for _ in range(rounds):
                limit = seconds(lambda: loop(model, x, y, bf16=False)) / STEPS / batch
                best = seconds(lambda: loop(fast, x, y, bf16=True)) / STEPS / batch
                took = time.perf_counter()
                found = eb.evaluate(model, (x, y), ball, attack, batch_size=batch, **options)
                torch.cuda.synchronize()
                took = time.perf_counter() - took
                passes = found.backwards + (found.forwards - found.backwards) / 3  # a forward is a third of a pass
                over.append(took / (passes * limit))
                share.append(passes * best / took)
            assert found is not None
            row = {"attack": attack, "batch": batch, **options, "robust": found.robust_accuracy}
            row |= {"over_limit": statistics.median(over), "share_of_fast_loop": statistics.median(share)}
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    """All batches; nothing without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU that torch can see: these figures are not measured here")
    data, ball = load_data(folder("cifar10"), split="train", first=20_000), eb.Linf(eps=8 / 255, lo=0, hi=1)
    model, test = trained(data, ball), load_data(folder("cifar10"), split="test", first=max(arguments.batches))
    rows = [row for batch in arguments.batches for row in measured(model, test, ball, batch, arguments.rounds)]
    found = {"machine": machine(), "gpu": torch.cuda.get_device_name(), "rows": rows}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
