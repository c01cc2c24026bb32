"""Certified bounds beside those of auto_LiRPA, example by example, and CPU seconds an image.

    git clone https://github.com/Verified-Intelligence/auto_LiRPA
    pip install --target auto_LiRPA/needs appdirs graphviz ninja
    python benchmarks/certify.py --auto-lirpa auto_LiRPA auto_LiRPA/needs --json certify.json

auto_LiRPA is an oracle here and no dependency: it is used from a checkout, beside any torch; without it this script
says so and ends. **Bounds**: the least margin over the rivals of each example with intervals everywhere (IBP), with
intervals up to the last layer (CROWN-IBP) and with CROWN everywhere, as auto_LiRPA has it ("crown-alone") and as ours
are used, intersected with intervals ("crown"); "looser" is by how much ours is below theirs.
**Seconds**: one thread; in each round both run once on the same images, in turn first; the ratio is the median over the
rounds of theirs / ours in the same round. In alpha-CROWN both leave an example alone once it is verified, so its
bounds are compared where one of them is not.

The networks are small stand-ins, trained when they are first needed and kept beside this file, or those of
`--weights DIR`: state dicts DIR/NAME.pt, whose NAME begins with one of `ARCHITECTURES`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from nets import KEPT, Ascent, folder
from torch import Tensor, nn

from epsball.balls.linf import Linf
from epsball.certify.backward import Intervals, Shared, lower_bounds
from epsball.certify.certifier import Certifier
from epsball.certify.concretise import Regions
from epsball.certify.functionals import units
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate, bounded, crown, open_neurons
from epsball.certify.margins import margin_rows
from epsball.certify.operators import Bounds
from epsball.data.load import load_data
from epsball.models.weights import load_weights, save_weights
from epsball.problem.task import task_of
from epsball.training.fit import fit
from epsball.training.plain import Plain


class Normalize(nn.Module):
    """CIFAR-10's usual mean and a standard deviation of .25."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Block(nn.Module):
    """Two convolutions with batch normalisation and a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """One convolution, two blocks of stride 2, two linear layers, for 3 x 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.conv, self.bn = Normalize(), nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.block1, self.block2 = Block(8, 16, 2), Block(16, 16, 2)
        self.linear1, self.linear2 = nn.Linear(256, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(self.normalize(x))))
        return self.linear2(torch.relu(self.linear1(self.block2(self.block1(x)).flatten(1))))


def conv(channels: int, size: int, widths: tuple[int, int, int] = (16, 32, 100)) -> nn.Sequential:
    """Two strided convolutions and two linear layers (Wong and Kolter 2018)."""
    a, b, hidden = widths
    first = [Normalize()] if channels == 3 else []
    return nn.Sequential(
        *first, nn.Conv2d(channels, a, 4, 2, 1), nn.ReLU(), nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(b * (size // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


def mlp(hidden: int) -> nn.Sequential:
    """`hidden` layers of 256."""
    inner = [part for _ in range(hidden - 1) for part in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), *inner, nn.Linear(256, 10))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mnist_conv": lambda: conv(1, 28),
    "mnist_wide": lambda: conv(1, 28, (32, 64, 256)),
    "cifar_conv": lambda: conv(3, 32),
    "cifar_resnet": ResNet,
    "mlp2": lambda: mlp(2),
    "mlp4": lambda: mlp(4),
    "mlp6": lambda: mlp(6),
}


@dataclass(frozen=True)
class Network:
    """A network, its data set, and the radius at which it is certified."""

    name: str
    eps: float
    objective: object = None
    epochs: int = 2
    limit: int = 20000

    @property
    def data(self) -> str:
        return "cifar10" if self.name.startswith("cifar") else "mnist"

    def load(self, weights: Path | None) -> nn.Module:
        """The network in eval mode, from `weights`, or from its own file, which is made now if there is none."""
        kind = max((known for known in ARCHITECTURES if self.name.startswith(known)), key=len)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = ARCHITECTURES[kind]()
        if weights is not None:
            model.load_state_dict(torch.load(weights / f"{self.name}.pt", weights_only=True))
            return model.eval()
        path = KEPT / f"certify-{self.name}.safetensors"
        if path.exists():
            load_weights(model, path)
        else:
            train = load_data(folder(self.data), split="train", first=self.limit)
            ball = Linf(eps=self.eps, lo=0, hi=1)
            fit(model, train, ball, objective=self.objective or Plain(), epochs=self.epochs, lr=1e-3, seed=0)
            save_weights(model, path)
        return model.eval()


STAND_INS = [
    Network("mnist_conv_plain", 0.03),
    Network("mnist_conv_pgd", 0.1, Ascent(7, 0.25)),
    Network("mlp2_plain", 0.03),
    Network("mlp4_plain", 0.03),
    Network("cifar_conv_pgd", 2 / 255, Ascent(7, 0.25)),
    Network("cifar_resnet_pgd", 2 / 255, Ascent(7, 0.25)),
]

METHODS = {
    "ibp": "IBP",
    "crown-ibp": "CROWN-IBP",
    "crown-alone": "CROWN",
    "crown": "CROWN",
    "alpha-crown": "CROWN-Optimized",
}
"""Our names, and auto_LiRPA's."""
STEPS = 20
Margins = Callable[[str, Tensor, Tensor, float], Tensor]
"""From a method, examples (n, *shape), labels (n,) and a radius in L-inf to the least certified margins (n,)."""


def crown_alone(graph: Graph, regions: Regions, found: Intermediate, number: int, bounds: Bounds) -> Bounds:
    """CROWN's bounds instead of intervals where these leave a neuron unstable: auto_LiRPA's intermediate policy."""
    example, neuron = open_neurons(graph, number, bounds)
    low, high, relax = bounds[0].clone(), bounds[1].clone(), Shared(found.lines)
    for part in torch.arange(len(example)).split(1 << 12):
        rows = units(example[part], neuron[part], (1, -1), graph.nodes[number].shape, graph.dtype)
        least, negated = lower_bounds(graph, number, rows, relax, regions).unflatten(0, (2, -1))
        low.flatten(1)[example[part], neuron[part]] = least
        high.flatten(1)[example[part], neuron[part]] = -negated
    return low, high


def ours(model: nn.Module, x: Tensor) -> Margins:
    """Our bounds of the network. alpha-CROWN is the certifier's, whose proofs are rechecked in float64."""
    certifier = Certifier(model, x)
    graph = certifier.graph

    @torch.no_grad()
    def margins(method: str, x: Tensor, y: Tensor, eps: float) -> Tensor:
        ball = Linf(eps=eps, lo=0, hi=1)
        if method == "alpha-crown":
            return torch.from_numpy(certifier.bounds(task_of(x, y, ball), ("crown", method)).margin)
        regions = Regions(ball.bind(x), x)
        example, rival = (torch.arange(10) != y[:, None]).nonzero(as_tuple=True)
        found = bounded(graph, regions, {"crown": crown, "crown-alone": crown_alone}.get(method))
        relax = Intervals(found.bounds) if method == "ibp" else Shared(found.lines)
        bound = lower_bounds(graph, graph.output, margin_rows(example, rival, y, 10, x.dtype), relax, regions)
        return bound.reshape(len(y), -1).amin(1)

    return margins


def theirs(model: nn.Module, x: Tensor, library: ModuleType) -> Margins:
    """auto_LiRPA's bounds of the network. alpha-CROWN optimises intermediate bounds too, as ours does."""
    options = {
        "optimize_bound_args": {
            "iteration": STEPS,
            "fix_interm_bounds": False,
            "stop_criterion_func": lambda bound: bound.min(1, keepdim=True).values > 0,
        },
    }
    modes = {
        mode: library.BoundedModule(model, torch.zeros_like(x[:1]), bound_opts={"conv_mode": mode, **options})
        for mode in ("patches", "matrix")  # its patches do not take the shift of a normalisation
    }
    mode, unit = "patches", torch.eye(10)

    def margins(method: str, x: Tensor, y: Tensor, eps: float) -> Tensor:
        region = library.PerturbationLpNorm(norm=math.inf, x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1))
        others = torch.stack([torch.arange(10)[torch.arange(10) != label] for label in y])
        rows, given = unit[y][:, None] - unit[others], (library.BoundedTensor(x, region),)
        nonlocal mode
        asked = {"x": given, "C": rows, "method": METHODS[method], "bound_upper": False}
        with redirect_stdout(io.StringIO()):
            try:
                lower, _ = modes[mode].compute_bounds(**asked)
            except RuntimeError:
                mode = "matrix"
                lower, _ = modes[mode].compute_bounds(**asked)
        return lower.detach().amin(1)

    return margins


def imported(paths: list[Path]) -> ModuleType | None:
    """auto_LiRPA from folders that are put in front of the path; None where it is not there."""
    sys.path[:0] = [str(path) for path in paths]
    try:
        import auto_LiRPA
    except ImportError as error:
        print(f"auto_LiRPA cannot be imported ({error}): name its checkout and what it needs with --auto-lirpa")
        return None
    return auto_LiRPA


def in_batches(margins: Margins, method: str, x: Tensor, y: Tensor, eps: float, batch: int) -> tuple[Tensor, float]:
    """All margins, and the CPU seconds that they took."""
    began = time.process_time()
    found = [margins(method, *part, eps) for part in zip(x.split(batch), y.split(batch), strict=True)]
    return torch.cat(found).double(), time.process_time() - began


def compared(sides: dict[str, Margins], method: str, x: Tensor, y: Tensor, arguments: argparse.Namespace) -> dict:
    """Bounds of one method side by side, and CPU seconds an image in interleaved rounds."""
    rounds = 1 if method == "alpha-crown" else arguments.rounds
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Tensor] = {}
    for turn in range(rounds + (method != "alpha-crown")):  # the first round of the quick ones is for warming up
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            found[name], taken = in_batches(sides[name], method, x, y, arguments.eps, arguments.batch)
            seconds[name].append(taken / len(x))
    seconds = {name: taken[-rounds:] for name, taken in seconds.items()}
    mine, other = found["ours"], found["theirs"]
    open_ = (mine <= 0) | (other <= 0) if method == "alpha-crown" else torch.ones(len(x), dtype=torch.bool)
    looser = (other - mine)[open_]  # alpha-CROWN raises no margin that is positive already
    return {
        "looser": looser.max().item() if len(looser) else 0.0,
        "looser by more than 1e-4": int((looser > 1e-4).sum()),
        "tighter by": (-looser).median().item() if len(looser) else 0.0,
        "verified": {name: int((bound > 0).sum()) for name, bound in found.items()},
        "seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "ratio": statistics.median(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)),
    }


def main() -> None:
    """Compare on what the options name, and print each figure as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--auto-lirpa", nargs="+", type=Path, default=[], help="its checkout, and what it needs")
    parser.add_argument("--weights", type=Path, help="a folder of state dicts NAME.pt")
    parser.add_argument("--nets", nargs="*", help="NAME or NAME:EPS, with --weights; else all stand-ins")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--n", type=int, default=32, help="examples that the network classifies correctly")
    parser.add_argument("--alpha-n", type=int, default=8, help="of them, for alpha-CROWN")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    library = imported(arguments.auto_lirpa)
    if library is None:
        return
    known = {network.name: network for network in STAND_INS}
    asked = [name.partition(":") for name in arguments.nets or known]
    networks = [Network(name, float(eps)) if eps else known[name] for name, _, eps in asked]
    figures = {"auto_LiRPA": library.__version__, "torch": torch.__version__, "networks": {}}
    for network in networks:
        model = network.load(arguments.weights).requires_grad_(False)
        test = load_data(folder(network.data), split="test", first=4 * arguments.n)
        (right,) = (model(test.x).argmax(1) == test.y).nonzero(as_tuple=True)
        x, y = test.x[right[: arguments.n]], test.y[right[: arguments.n]]
        sides, arguments.eps = {"ours": ours(model, x), "theirs": theirs(model, x, library)}, network.eps
        figures["networks"][network.name] = found = {"eps": network.eps, "examples": len(x)}
        for method in arguments.methods:
            n = arguments.alpha_n if method == "alpha-crown" else arguments.n
            found[method] = compared(sides, method, x[:n], y[:n], arguments)
            print(network.name, method, json.dumps(found[method]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
