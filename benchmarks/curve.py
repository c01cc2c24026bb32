"""The robustness curve of one minimum-norm run beside runs at ten radii, before and after the two are reconciled.

    python benchmarks/curve.py --out benchmarks/results/curve.json

The radii are the deciles of the distances that FMN finds. "apart" is the greatest difference of the two accuracies, in
points; after `evaluate(min_norm=True)` with both, the curve is at no radius above either.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from nets import HELD
from overhead import machine

import epsball as eb
from epsball.balls.registry import BALLS

FIXED = ("pgd:steps=100,step_size=0.05", "apgd-ce")


def compared(net: str, norm: str, n: int, seeking: str) -> dict[str, object]:
    """Both curves of a network, and the reconciled one."""
    model, test = HELD[net].load(net)
    data, ball = test.rows(torch.arange(n)), BALLS[norm](eps=1.0, lo=0, hi=1)
    options = {"diagnose": 0}
    one = eb.evaluate(model, data, ball, seeking, min_norm=True, **options)
    radii = [one.quantiles((share,))[0][1] * 1.0001 for share in (0.08 + 0.09 * step for step in range(10))]
    fixed = eb.evaluate(model, data, ball, FIXED, eps=radii, **options)
    both = eb.evaluate(model, data, ball, [seeking, *FIXED], eps=radii, min_norm=True, **options)
    curves = [
        {"eps": eps, "min_norm": one.accuracy_at(eps), "fixed": share, "both": together}
        for (eps, share), (_, together) in zip(fixed.curve, both.curve, strict=True)
    ]
    assert all(row["both"] <= min(row["min_norm"], row["fixed"]) for row in curves)
    apart = [100 * (row["min_norm"] - row["fixed"]) for row in curves]
    return {
        "net": net,
        "norm": norm,
        "n": n,
        "apart": [round(min(apart), 2), round(max(apart), 2)],
        "passes": [one.backwards, fixed.backwards],
        "curves": curves,
    }


def main() -> None:
    """The plain and the robust network, in three norms."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--nets", nargs="+", default=["plain", "robust"])
    parser.add_argument("--norms", nargs="+", default=["linf", "l2", "l1"])
    parser.add_argument("--seeking", default="fmn:steps=200")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for net in arguments.nets:
        for norm in arguments.norms:
            rows.append(compared(net, norm, arguments.n, arguments.seeking))
            print({key: value for key, value in rows[-1].items() if key != "curves"}, flush=True)
    if arguments.out:
        found = {"machine": machine(), "seeking": arguments.seeking, "fixed": FIXED, "rows": rows}
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
