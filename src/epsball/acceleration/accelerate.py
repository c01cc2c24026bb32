"""`accelerate`: the same function with cheaper input gradients.

Every attack and every step of adversarial training is forwards and input gradients, and autograd spends more on an
input gradient than it must. `accelerate` rewrites a network (fused layers, memory layout, other kernels, compilation),
compares it with the original, times both, and keeps the faster one. What it cannot rewrite it leaves unchanged: the
result is the same function, or the network itself.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from epsball.acceleration.layers import Convolution, convolution
from epsball.acceleration.plan import WINS, AccelerationPlan, Rewriting
from epsball.acceleration.rewriting import ChannelsLast, graph, tree
from epsball.acceleration.trial import (
    Difference,
    Different,
    best_kernels,
    check_apart,
    compared,
    gradient_pass,
    runnable,
    time_ratios,
    timed,
)
from epsball.common.errors import BadInput
from epsball.models.frozen import frozen
from epsball.problem.row_limit import out_of_memory

__all__ = ["Accelerated", "AccelerationPlan", "accelerate"]

log = logging.getLogger(__name__)

ROWS, FEWEST_ROWS, MAX_SECONDS = 64, 16, 0.03
"""Networks are compared and timed with so many rows; with fewer, down to the fewest, where a pass takes longer."""


class Accelerated(nn.Module):
    """A network that computes what the original does, made by `accelerate`; `plan` says how."""

    def __init__(self, network: nn.Module, plan: AccelerationPlan) -> None:
        super().__init__()
        self.network, self.plan = network, plan
        self.training = network.training

    def forward(self, x: Float[Tensor, "n *shape"]) -> Tensor:
        return self.network(x)


def accelerate(
    model: nn.Module,
    example: Float[Tensor, "n *shape"],
    *,
    plan: AccelerationPlan | None = None,
    compile: bool = False,
    trainable: bool = False,
) -> Accelerated:
    """`model` as a network of the same function, whose input gradients are cheaper on this machine.

    `example` (n, *shape) are examples to try it on, as many as will share a pass (64 are enough uncompiled). Rewritten
    networks (BatchNorm folded, layers fused, other kernels for the backward-data of convolutions, channels last in
    memory) are compared with the original: logits within 1e-4 of the largest, gradients within 1e-3 in norm (float64:
    1e-9 and 1e-6). The fastest is taken if it beats the original by 5 % in a short trial, twice; else
    `.plan.rewriting` is "none" and the network is the model itself. With a `plan` there is no trial, so that the same
    bits come back on another day; of several processes (torch.distributed) the first makes the trial for all. With
    `compile` torch compiles the result, and the same with torch's own kernels and channels last, once for each input
    shape; if that fails there is a warning, and if neither is 5 % faster the result is not compiled.

    The model is not changed. The result shares the memory of its parameters, is frozen and in eval mode: after training
    the model, accelerate it again. With `trainable` the result is for training instead: only the backward-data of
    convolutions is replaced; parameters, statistics and layers are the model's own, and parameter gradients are
    computed, also of second order. (With channels last in memory, a dropout of single pixels draws its zeros in that
    order.)

    Raises `BadInput` for a model that is no module, no example, and a plan that does not fit the model.

    >>> from epsball.models.registry import build
    >>> net = accelerate(build("small-mlp", (4,), 3), torch.rand(8, 4), plan=AccelerationPlan("graph"))
    >>> net(torch.rand(2, 4)).shape
    torch.Size([2, 3])
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"`model` must be a torch module, got {type(model).__name__}; a callable is used as it is")
    if trainable and compile:
        raise BadInput("`compile` must be left out with `trainable`; compile the training step as a whole")
    if compile and plan is not None and not plan.compiled:
        raise BadInput("`compile` must be left out with a `plan` that does not compile; leave one of them out")
    if trainable and plan is not None and plan.rewriting not in ("trainable", "none"):
        raise BadInput(
            f"`plan` must be a trainable one with `trainable`, got {plan.rewriting!r}; leave one of them out"
        )
    if not len(example):
        raise BadInput("`example` must hold at least one example, got none; take some of the data")
    began = time.perf_counter()
    example = example.detach()
    devices = [example.device] if example.is_cuda else []
    with frozen(model), torch.enable_grad(), torch.random.fork_rng(devices):
        if plan is None:
            network, plan = _first_process_trial(model, example[:ROWS], trainable)
            plan = replace(plan, seconds=time.perf_counter() - began)
            if compile:
                network, plan = _best_compiled(model, network, example, plan)
        else:
            network = _planned(model, example[:ROWS], plan)
            if plan.compiled:
                network, plan = _compiled(network, example, plan)
    if plan.rewriting == "trainable":
        network = _built(model, plan, example)  # again, with the modes and flags that the model has outside
    return Accelerated(network, plan)


def _built(model: nn.Module, plan: AccelerationPlan, x: Tensor) -> nn.Module:
    """The network that a plan describes, uncompiled."""
    trainable, last = plan.rewriting == "trainable", plan.channels_last

    def choose(name: str, layer: nn.Conv2d, rectified: bool) -> Convolution:
        method = plan.kernels.get(name, "native")
        return convolution(layer, name, method, rectified=rectified, trainable=trainable, channels_last=last)

    if plan.rewriting == "none":
        return model
    if any(_is_compiled(part) for part in model.modules()):
        raise Different("it is compiled already; accelerate the model that was compiled, with `compile`")
    with runnable():
        if plan.rewriting == "graph":
            return graph(model, choose, x, channels_last=last)
        network = tree(model, choose, frozen=not trainable)
        if not last:
            return network
        laid_out = nn.Sequential(ChannelsLast(), network)
        laid_out.training = laid_out[0].training = network.training
        return laid_out


def _is_compiled(part: nn.Module) -> bool:
    """Whether a copy would run the original's code: torch.jit's scripts, `torch.compile(part)`, `part.compile()`."""
    compiled = isinstance(part, torch.jit.ScriptModule) or "_orig_mod" in part._modules
    return compiled or part._compiled_call_impl is not None


def _check(model: nn.Module, network: nn.Module, plan: AccelerationPlan, x: Tensor) -> Difference:
    """How far the network is from the model; raises `Different` where it is another function, or shares layers."""
    if plan.rewriting != "trainable":
        check_apart(model, network, x)
    return compared(model, network, x)


def _first_process_trial(model: nn.Module, x: Tensor, trainable: bool) -> tuple[nn.Module, AccelerationPlan]:
    """The result of a trial; of several processes the first makes it, and the others take its plan."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return _trial(model, x, trainable)
    made = _trial(model, x, trainable) if dist.get_rank() == 0 else None
    record = [None if made is None else made[1].to_record()]
    dist.broadcast_object_list(record, src=0)
    assert record[0] is not None, "it is the first process's"
    plan = AccelerationPlan.from_record(record[0])
    return made or (_planned(model, x, plan), plan)


def _trial(model: nn.Module, x: Tensor, trainable: bool) -> tuple[nn.Module, AccelerationPlan]:
    """The fastest of the networks that compute what `model` does, itself among them, or where memory is short."""
    try:
        return _fastest_network(model, x, trainable)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return model, AccelerationPlan(reason=f"a trial with {len(x)} rows ran out of memory")


def _fastest_network(model: nn.Module, x: Tensor, trainable: bool) -> tuple[nn.Module, AccelerationPlan]:
    try:
        compared(model, model, x[:FEWEST_ROWS])  # it is deterministic, and has a gradient
    except Different as error:
        return model, AccelerationPlan(reason=str(error))
    original = partial(gradient_pass, model)
    x = x[: max(FEWEST_ROWS, int(len(x) * MAX_SECONDS / timed(partial(original, x))))]
    candidates: list[tuple[nn.Module, AccelerationPlan]] = []
    reason = ""
    rewritings: tuple[Rewriting, ...] = ("trainable",) if trainable else ("graph", "tree")
    for rewriting in rewritings:
        for channels_last in (False, True) if x.ndim == 4 else (False,):
            try:
                candidates.append(_candidate(model, AccelerationPlan(rewriting, channels_last), x))
            except Different as error:
                reason = str(error)
        if candidates:  # a graph contains all that a tree does
            break
    if not candidates:
        return model, AccelerationPlan(reason=reason)
    best, ratio = _fastest(original, [network for network, _ in candidates], x)
    network, plan = candidates[best]
    if ratio < WINS:  # the best of several may have been lucky: it has to win again
        _, ratio = _fastest(original, [network], x)
    if ratio >= WINS:
        return model, AccelerationPlan(reason=f"rewritten it takes {ratio:.2f} of the original's time")
    with torch.no_grad():
        (forwards,) = time_ratios(partial(model, x), [partial(network, x)])
    return network, replace(plan, ratio=ratio, forward_ratio=median(forwards))


def _candidate(model: nn.Module, plan: AccelerationPlan, x: Tensor) -> tuple[nn.Module, AccelerationPlan]:
    """The network of a plan with the fastest kernels, and that plan; `Different` where it is another function."""
    network = _built(model, plan, x)
    with runnable():
        chosen = best_kernels(network, x, channels_last=plan.channels_last)
    if any(method != "native" for method in chosen.values()):
        plan = replace(plan, kernels={layer.name: method for layer, method in chosen.items()})
        network = _built(model, plan, x)
    difference = _check(model, network, plan, x)
    return network, replace(plan, logits=difference.logits, gradients=difference.gradients)


def _fastest(original: partial, networks: Sequence[nn.Module], x: Tensor) -> tuple[int, float]:
    """The index of the network whose gradient pass is fastest, and its time relative to the original's."""
    ratios = [
        median(rounds)
        for rounds in time_ratios(partial(original, x), [partial(gradient_pass, network, x) for network in networks])
    ]
    best = min(range(len(ratios)), key=ratios.__getitem__)
    return best, ratios[best]


def _planned(model: nn.Module, x: Tensor, plan: AccelerationPlan) -> nn.Module:
    """The network of a plan that was made before, compared with the original again."""
    if plan.rewriting == "none":
        return model
    try:
        network = _built(model, plan, x)
        missing = sorted(set(plan.kernels) - {part.name for part in network.modules() if isinstance(part, Convolution)})
        if missing:
            raise Different(f"it has no convolutions {', '.join(missing)}")
        _check(model, network, plan, x)
    except Different as error:
        raise BadInput(
            f"`plan` must be one of this model, got another's: {error}; leave it out, and a new one is made"
        ) from error
    return network


def _best_compiled(
    model: nn.Module, network: nn.Module, x: Tensor, plan: AccelerationPlan
) -> tuple[nn.Module, AccelerationPlan]:
    """The network compiled, or the one with torch's kernels and channels last; uncompiled where that is faster."""
    plans = [plan]
    if plan.rewriting in ("graph", "tree") and x.ndim == 4 and (plan.kernels or not plan.channels_last):
        plans.append(replace(plan, kernels={}, channels_last=True))
    made = [_compiled(network if one is plan else _built(model, one, x), x, one, stacklevel=5) for one in plans]
    made = [(compiled, one) for compiled, one in made if one.compiled]
    if not made:
        return network, plan
    seconds = sum(one.compile_seconds for _, one in made)
    best, ratio = _fastest(partial(gradient_pass, network), [compiled for compiled, _ in made], x)
    if ratio >= WINS:
        log.info("compiled it takes %.2f of the time, and is not used", ratio)
        return network, replace(plan, compile_seconds=seconds)
    return made[best][0], replace(made[best][1], compile_seconds=seconds, ratio=plan.ratio * ratio)


def _compiled(
    network: nn.Module, x: Tensor, plan: AccelerationPlan, stacklevel: int = 3
) -> tuple[nn.Module, AccelerationPlan]:
    """The network compiled; if that fails, the network itself, with a warning."""
    began = time.perf_counter()
    try:
        made = cast(nn.Module, torch.compile(network, dynamic=False))
        compared(network, made, x)
    except Exception as error:  # the compiler's own, of which there are many, and Different
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"`compile` failed, and the network is not compiled: {reason}", stacklevel=stacklevel)
        return network, replace(plan, compiled=False)
    return made, replace(plan, compiled=True, compile_seconds=time.perf_counter() - began)
