"""The distance of the adversarial examples that minimum-norm attacks find: ours and others', at equal model calls.

    python benchmarks/minimum_norm.py --net plain robust --norm linf l2 l1 l0 --steps 100 1000 --json distances.json

The first n test images that the network classifies correctly, in the box [0, 1]. Every attack is given the same
number of model calls, a forward and a backward pass of an example each. The calls are counted at the network, forwards
and backwards apart (a search with several gradients a step makes fewer steps; line searches add forwards only).
Distances are those of the returned points, measured and verified here: a point that is not adversarial, or is outside
the box, counts as the farthest corner of the box. The networks are those of `nets.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from nets import HELD
from torch import Tensor, nn

from epsball.attacks.registry import parse
from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.problem.objective import Objective
from epsball.problem.task import task_of

BATCH_SIZE = 128
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
Search = Callable[[nn.Module, Tensor, Tensor], Tensor]

OURS = {
    "linf": ["fmn:steps={k}", "fab:minimise=true,steps={ninth}", "deepfool"],
    "l2": ["fmn:steps={k}", "ddn:steps={k}", "fab:minimise=true,steps={ninth}", "deepfool", "cw:steps={k}"],
    "l1": ["fmn:steps={k}", "fab:minimise=true,steps={ninth}", "deepfool"],
    "l0": ["fmn:steps={k}", "sigma-zero:steps={k}"],
}
"""Our attacks; {k} model calls, {ninth} of them where one has a gradient for each of the nine other classes."""


class Counted(nn.Module):
    """The network, with rows forward and rows backward counted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self.came_back)
        return logits

    def came_back(self, grad: Tensor) -> None:
        """A gradient comes in; per-example Jacobians send one that is not zero in some rows only."""
        self.backwards += len(grad)


def ours(norm: str, steps: int) -> dict[str, Search]:
    """Our minimum-norm attacks, through the queue; those that are not there are left out."""

    def search(name: str, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack, ball = parse(name), BALLS[norm](eps=math.inf, lo=0, hi=1)
        with Objective(model, attack.loss, needs=attack.needs) as objective:
            return queue.run(attack, objective, task_of(x, y, ball), QueueOptions(batch_size=BATCH_SIZE)).x_adv

    found: dict[str, Search] = {}
    for template in OURS[norm]:
        name = template.format(k=steps, ninth=max(steps // 9, 1))
        try:
            parse(name)
        except BadInput as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        found[name] = partial(search, name)
    return found


def foolbox_(norm: str, steps: int) -> dict[str, Search]:
    """foolbox' attacks; Brendel and Bethge's where numba is installed, which it needs."""
    import foolbox
    from foolbox import attacks

    rounds = 1 if steps < 500 else 9
    a_round = steps // rounds
    built = {
        "linf": {
            "FMN": lambda: attacks.LInfFMNAttack(steps=steps),
            "DeepFool": lambda: attacks.LinfDeepFoolAttack(steps=max(steps // 10, 1)),
            "BrendelBethge": lambda: attacks.LinfinityBrendelBethgeAttack(steps=steps),
        },
        "l2": {
            "FMN": lambda: attacks.L2FMNAttack(steps=steps),
            "DDN": lambda: attacks.DDNAttack(steps=steps),
            "DeepFool": lambda: attacks.L2DeepFoolAttack(steps=max(steps // 10, 1)),
            "CW": lambda: attacks.L2CarliniWagnerAttack(binary_search_steps=rounds, steps=a_round, initial_const=1.0),
            "BrendelBethge": lambda: attacks.L2BrendelBethgeAttack(steps=steps),
        },
        "l1": {
            "FMN": lambda: attacks.L1FMNAttack(steps=steps),
            "EAD": lambda: attacks.EADAttack(
                binary_search_steps=rounds, steps=a_round, initial_const=1.0, decision_rule="L1"
            ),
            "BrendelBethge": lambda: attacks.L1BrendelBethgeAttack(steps=steps),
        },
        "l0": {
            "FMN": lambda: attacks.L0FMNAttack(steps=steps),
            "BrendelBethge": lambda: attacks.L0BrendelBethgeAttack(steps=steps),
        },
    }[norm]

    def search(make: Callable[[], object], model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return make()(wrapped, x, y, epsilons=None)[0]

    return {f"foolbox {name}": partial(search, make) for name, make in built.items()}


def torchattacks_(norm: str, steps: int) -> dict[str, Search]:
    """torchattacks' attacks. Its DeepFool takes all ten gradients of one example at a time."""
    import torchattacks

    built = {
        "l2": {
            "DeepFool": lambda model: torchattacks.DeepFool(model, steps=max(steps // 10, 1)),
            "CW": lambda model: torchattacks.CW(model, steps=steps),
        },
        "l1": {
            "EADL1": lambda model: torchattacks.EADL1(
                model, binary_search_steps=1 if steps < 500 else 9, max_iterations=steps // (1 if steps < 500 else 9),
                initial_const=1.0,
            )
        },
    }.get(norm, {})  # fmt: skip
    return {
        f"torchattacks {name}": partial(lambda make, model, x, y: make(model)(x, y), make)
        for name, make in built.items()
    }


def adversarial_library(norm: str, steps: int) -> dict[str, Search]:
    """adversarial-library's attacks. Its plotting server and torchvision, which they never use, may be missing."""
    for name in ("visdom", "torchvision", "torchvision.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    from adv_lib import attacks

    p = ORDER[norm]
    built = {
        "linf": {
            "FMN": partial(attacks.fmn, norm=p, steps=steps),
            "FMN alpha 10": partial(attacks.fmn, norm=p, steps=steps, α_init=10.0),
            "PDPGD": partial(attacks.pdpgd, norm=p, num_steps=steps),
            "FAB": partial(attacks.fab, norm=p, n_iter=max(steps // 9, 1)),
            "DeepFool": partial(attacks.df, norm=p, steps=max(steps // 9, 1)),
        },
        "l2": {
            "FMN": partial(attacks.fmn, norm=p, steps=steps),
            "DDN": partial(attacks.ddn, steps=steps, levels=None),
            "ALMA": partial(attacks.alma, num_steps=steps, distance="l2", init_lr_distance=1.0),
            "PDGD": partial(attacks.pdgd, num_steps=steps),
            "FAB": partial(attacks.fab, norm=p, n_iter=max(steps // 9, 1)),
            "DeepFool": partial(attacks.df, norm=p, steps=max(steps // 9, 1)),
            "SuperDeepFool": partial(attacks.sdf, steps=max(steps // 18, 1), df_steps=max(steps // 9, 1)),
        },
        "l1": {
            "FMN": partial(attacks.fmn, norm=p, steps=steps),
            "FMN alpha 10": partial(attacks.fmn, norm=p, steps=steps, α_init=10.0),
            "ALMA": partial(attacks.alma, num_steps=steps, distance="l1", init_lr_distance=10.0, α_rms=0.99),
            "PDPGD": partial(attacks.pdpgd, norm=p, num_steps=steps),
            "FAB": partial(attacks.fab, norm=p, n_iter=max(steps // 9, 1)),
        },
        "l0": {
            "FMN": partial(attacks.fmn, norm=p, steps=steps),
            "sigma-zero": partial(attacks.sigma_zero, num_steps=steps),
            "VFGA": partial(attacks.vfga, targeted=False, max_iter=max(steps // 11, 1)),
        },
    }[norm]
    return {
        f"adversarial-library {name}": partial(lambda call, model, x, y: call(model, x, y), call)
        for name, call in built.items()
    }


WHO: dict[str, Callable[[str, int], dict[str, Search]]] = {
    "ours": ours,
    "foolbox": foolbox_,
    "torchattacks": torchattacks_,
    "adversarial-library": adversarial_library,
}


def measured(search: Search, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, batch: int) -> dict[str, object]:
    """Distances and cost of one search over all examples."""
    counted, began = Counted(model).eval(), time.perf_counter()
    found = torch.cat([search(counted, *part) for part in zip(x.split(batch), y.split(batch), strict=True)]).detach()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        fooled = (model(found).argmax(1) != y) & ((found >= 0) & (found <= 1)).flatten(1).all(1)
    farthest = ball.norm(torch.maximum(x, 1 - x))
    distance = torch.where(fooled, ball.norm(found - x), farthest).double()
    return {
        "median": distance.median().item(),
        "mean": distance.mean().item(),
        "failed": int((~fooled).sum()),
        "forwards": counted.forwards / len(x),
        "backwards": counted.backwards / len(x),
        "seconds": seconds,
        "distances": distance.tolist(),
    }


def main() -> None:
    """Run what the options name, and print each figure as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=["plain", "robust"], choices=list(HELD))
    parser.add_argument("--norm", nargs="+", default=list(BALLS), choices=list(BALLS))
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--who", nargs="+", default=list(WHO), choices=list(WHO))
    parser.add_argument("--only", default="", help="only attacks whose name contains this")
    parser.add_argument("--leave-out", nargs="*", default=[], help="no attack whose name contains one of these")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--json", type=Path, help="where to write the figures, added to what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for net in options.net:
        model, test = HELD[net].load(net)
        with torch.no_grad():
            head = test.rows(torch.arange(2 * options.n))
            right = (model(head.x).argmax(1) == head.y).nonzero().squeeze(1)[: options.n]
        x, y = head.x[right], head.y[right]
        for norm, steps, who in [(a, b, c) for a in options.norm for b in options.steps for c in options.who]:
            ball = BALLS[norm](eps=math.inf, lo=0, hi=1)
            for name, search in WHO[who](norm, steps).items():
                if options.only not in name or any(word in name for word in options.leave_out):
                    continue
                torch.manual_seed(0)
                try:
                    found = measured(search, model, x, y, ball, options.n if who == "ours" else BATCH_SIZE)
                except Exception as error:  # another library's: it is printed, and the others go on
                    if who == "ours":
                        raise
                    print(f"{net} {norm} {steps} {name}: {type(error).__name__}: {error}"[:200], flush=True)
                    continue
                rows.append({"net": net, "norm": norm, "steps": steps, "name": name, "n": len(x), **found})
                print(
                    f"{net:7}{norm:5}{steps:5}  {name:40} median {found['median']:8.4f}  mean {found['mean']:8.4f}  "
                    f"failed {found['failed']:3}  {found['forwards']:7.1f} forwards {found['backwards']:7.1f} backwards"
                    f"  {found['seconds']:6.1f} s",
                    flush=True,
                )
                if options.json:
                    options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
