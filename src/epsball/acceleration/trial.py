"""Is it the same function, and is it cheaper? Measured on the examples at hand, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from epsball.acceleration.kernels import Size, by_folding, by_phases, phases
from epsball.acceleration.layers import METHODS, Convolution, Method
from epsball.acceleration.plan import WINS
from epsball.common.undo import Undo

ROUNDS = (3, 9)
"""The fewest rounds of timing, and the most, which are made where the first ones do not agree."""
KERNEL_ROWS = 32
"""Kernels are timed with so many rows: they are chosen by the shape of a layer, not by the size of a batch."""
TOLERANCE = {torch.float64: (1e-9, 1e-6), torch.float32: (1e-4, 1e-3)}
"""By dtype, the largest relative differences of logits (to the largest logit) and gradients (in norm)."""

Network = Callable[[Tensor], Tensor]


class Different(Exception):
    """The rewritten network is not the original's function, or cannot be run."""


@contextmanager
def runnable() -> Iterator[None]:
    """Whatever a network's forward or backward raises becomes `Different`: the network cannot be used."""
    try:
        yield
    except Different:
        raise
    except Exception as error:
        raise Different(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


@dataclass(frozen=True)
class Difference:
    """The differences of two networks, relative to the original's largest logit and its gradient's norm."""

    logits: float
    gradients: float


def gradient_pass(network: Network, x: Float[Tensor, "n *shape"]) -> tuple[Tensor, Tensor]:
    """The output at x, and the input gradient of a fixed combination of its numbers."""
    leaf = x.detach().requires_grad_()
    output = network(leaf)
    weights = torch.linspace(-1, 2, output[0].numel() or 1, dtype=output.dtype, device=output.device)
    (grad,) = torch.autograd.grad(output, leaf, weights.reshape(output[0].shape).expand_as(output))
    return output.detach(), grad


def compared(original: Network, other: Network, x: Float[Tensor, "n *shape"]) -> Difference:
    """How far `other` is from `original` on batches of several sizes: at x, around it, and a single example.

    Raises `Different` where that is more than `TOLERANCE`, or `other` cannot be run.
    """
    generator = torch.Generator(device=x.device).manual_seed(0)
    spread = 0.1 * float(x.amax() - x.amin()) or 0.1
    noisy = x + spread * torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float32).to(x)
    tolerances = TOLERANCE.get(x.dtype, (0.05, 0.1))
    worst = [0.0, 0.0]
    for batch in (x, noisy[: len(x) // 2 + 1], x.flip(0)[:1]):
        with runnable():
            expected, found = gradient_pass(original, batch), gradient_pass(other, batch)
        for one, two in zip(expected, found, strict=True):
            if one.shape != two.shape or one.dtype != two.dtype:
                raise Different(f"it returns {tuple(two.shape)}, {two.dtype} and not {tuple(one.shape)}, {one.dtype}")
        (logits, grad), (other_logits, other_grad) = ([part.double() for part in pair] for pair in (expected, found))
        apart = (
            (other_logits - logits).abs().amax() / logits.abs().amax().clamp_min(1e-30),
            (other_grad - grad).norm() / grad.norm().clamp_min(1e-30),
        )
        for place, (what, difference, tolerance) in enumerate(
            zip(("logits", "gradients"), map(float, apart), tolerances, strict=True)
        ):
            if not difference <= tolerance:
                raise Different(f"its {what} differ by {difference:.1e} of the original's")
            worst[place] = max(worst[place], difference)
    return Difference(*worst)


def check_apart(original: nn.Module, other: nn.Module, x: Float[Tensor, "n *shape"]) -> None:
    """Raise `Different` where `other` calls a layer of the original, whose mode and `requires_grad` may change.

    That happens where a forward reaches layers otherwise than as a module's children.
    """
    originals = set(original.modules())

    def refuse(layer: nn.Module, inputs: object) -> None:
        if layer in originals:
            raise Different(f"it reaches a {type(layer).__name__} in ways that cannot be followed")

    with Undo() as stack:
        stack.callback(register_module_forward_pre_hook(refuse).remove)
        with runnable(), torch.no_grad():
            other(x[:1])


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run, until the device has finished it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def time_ratios(original: Callable[[], object], others: Sequence[Callable[[], object]]) -> list[list[float]]:
    """The times of each of the others relative to the original's, round by round, interleaved.

    After the fewest rounds it stops, unless the best of the others won some rounds and lost some.
    """
    ratios: list[list[float]] = [[] for _ in others]
    for turn in range(ROUNDS[1]):
        unit = timed(original)
        for rounds, other in zip(ratios, others, strict=True):
            rounds.append(timed(other) / unit)
        best = min(ratios, key=median)
        if turn + 1 >= ROUNDS[0] and (max(best) < WINS or min(best) >= WINS):
            break
    return ratios


def _input_shapes(network: nn.Module, x: Float[Tensor, "n *shape"]) -> dict[Convolution, tuple[int, ...]]:
    """The shape of what goes into each convolution in a forward pass at x."""
    shapes: dict[Convolution, tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[cast(Convolution, layer)] = tuple(inputs[0].shape)

    with Undo() as stack, torch.no_grad():
        for part in network.modules():
            if isinstance(part, Convolution):
                stack.callback(part.register_forward_pre_hook(note).remove)
        network(x)
    return shapes


def best_kernels(network: nn.Module, x: Float[Tensor, "n *shape"], *, channels_last: bool) -> dict[Convolution, Method]:
    """For each convolution that a forward pass at x calls, the fastest backward-data method; torch's on a tie."""
    known: dict[object, Method] = {}
    chosen: dict[Convolution, Method] = {}
    for layer, shape in _input_shapes(network, x[:KERNEL_ROWS]).items():
        if len(shape) != 4:
            continue
        key = (shape, layer.weight.shape, layer.stride, layer.padding)
        if key not in known:
            known[key] = _fastest_method(layer, shape, channels_last)
        chosen[layer] = known[key]
    return chosen


def _fastest_method(layer: Convolution, shape: tuple[int, ...], channels_last: bool) -> Method:
    stride, padding, size = cast(Size, layer.stride), cast(Size, layer.padding), cast(Size, shape[2:])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weight = layer.weight.detach().contiguous(memory_format=layout)
    with torch.no_grad():
        x = weight.new_zeros(shape).contiguous(memory_format=layout)
        grad = torch.ones_like(F.conv2d(x, weight, None, stride, padding))
        kernels = phases(weight, stride).contiguous(memory_format=layout)
        runs: dict[Method, Callable[[], Tensor]] = {
            "native": lambda: torch.ops.aten.convolution_backward(
                grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, [True, False, False]
            )[0],
            "phases": lambda: by_phases(grad, kernels, stride, padding, size).contiguous(memory_format=layout),
            "folding": lambda: by_folding(grad, weight, stride, padding, (1, 1), size).contiguous(memory_format=layout),
        }
        for run in runs.values():
            run()
        others = METHODS[1:]
        ratios = [median(rounds) for rounds in time_ratios(runs["native"], [runs[method] for method in others])]
    ratio, best = min(zip(ratios, others, strict=True), key=lambda pair: pair[0])
    return best if ratio < WINS else "native"
