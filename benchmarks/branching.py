"""Branch and bound on MLPs and convolutional networks: how many instances are decided, one thread, CPU seconds.

    python benchmarks/branching.py NETWORK.pt --shape mlp:4 --eps 0.03 --first 30 --seconds 60

NETWORK.pt holds the state of a network of the benchmarks on MNIST: `--shape mlp:D` has D hidden layers of 256, `conv`
two strided convolutions. An instance is one of the first correctly classified test images. It is decided where PGD
(100 steps, 30 restarts) breaks it, or a certificate passes its recheck in float64. Certificates come after PGD, and
their time includes the recheck; no instance may be both.
"""

from __future__ import annotations

import argparse
import json
import time

import nets
import numpy as np
import torch
from torch import nn

import epsball as eb
from epsball.certify.branching import Limits
from epsball.certify.certifier import Certifier
from epsball.problem.task import task_of


def network(shape: str) -> nn.Module:
    kind, _, depth = shape.partition(":")
    if kind == "conv":
        return nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU()]
    for _ in range(int(depth) - 1):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--eps", type=float, required=True)
    parser.add_argument("--first", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = network(options.shape)
    model.load_state_dict(torch.load(options.network))
    model.eval()
    examples = nets.mnist("test", 4 * options.first)
    x, y = examples.x, examples.y
    with torch.no_grad():
        correct = (model(x).argmax(1) == y).nonzero().squeeze(1)[: options.first]
    x, y, ball = x[correct], y[correct], eb.Linf(eps=options.eps, lo=0, hi=1)

    began = time.process_time()
    attacked = eb.evaluate(model, (x, y), ball, eb.PGD(steps=100, restarts=30), diagnose=0)
    broken = np.array(attacked.records["status"].to_pylist()) == "fooled"
    attacking = time.process_time() - began
    task = task_of(x, y, ball)
    began = time.process_time()
    certifier = Certifier(model, x)
    rows = torch.from_numpy(np.flatnonzero(~broken))
    proofs = certifier.bounds(task.rows(rows))
    bounding, bounded = time.process_time() - began, int(proofs.verified.sum())
    print(f"{options.network} eps {options.eps}: {int(broken.sum())} of {len(x)} broken in {attacking:.1f} s, "
          f"{bounded} proved by bounds in {bounding:.1f} s", flush=True)  # fmt: skip
    for place in np.flatnonzero(~proofs.verified):
        one = task.rows(rows[[place]])
        began = time.process_time()
        found = certifier.search(
            one, certifier.bounds(one, ("crown",)), options.seconds, Limits(clock=time.process_time)
        )
        taken = time.process_time() - began
        proofs.verified[place] = found.verified[0]
        point = found.points.get(0)
        if point is not None and int(model(point[None]).argmax()) != int(one.y[0]):
            broken[rows[place]] = True
        print(f"  image {int(correct[rows[place]])}: {found.method[0] or found.reason[0]}, margin "
              f"{found.margin[0]:.3f}, {taken:.1f} s", flush=True)  # fmt: skip
    decided = int(broken.sum()) + int(proofs.verified.sum())
    row = {
        "network": options.shape, "eps": options.eps, "instances": len(x), "broken": int(broken.sum()),
        "verified": int(proofs.verified.sum()), "decided": round(decided / len(x), 3),
    }  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
