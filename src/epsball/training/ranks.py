"""Several processes that train one model: each takes its share of every batch, and gradients are summed once a step.

torch's DistributedDataParallel reduces in each backward pass, wants gradients of all parameters in each, and takes a
rank's mean for its share. A step of adversarial training makes several backwards, some for inputs alone, on shares that
may differ by one. So parameters are left without hooks, and one sum at the end, weighted by rows, is exact.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def launched() -> bool:
    """Join the processes that torchrun started, if it did: NCCL on GPUs, else Gloo. Is this the one that speaks?"""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(_leave)
    return rank() == 0


def _leave() -> None:
    """Threads of the group that still run when the process ends would abort it, after its work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agreed(value: Any) -> Any:
    """What the first process has, a small object, in all of them."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def together() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


def same_start(model: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers."""
    if world() > 1:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)


def summed(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its sum over the processes, in place; one message for each dtype."""
    if world() == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        flat = _flatten_dense_tensors(group)
        dist.all_reduce(flat)
        for tensor, part in zip(group, _unflatten_dense_tensors(flat, group), strict=True):
            tensor.copy_(part)


def averaged_step(parameters: Sequence[nn.Parameter], model: nn.Module, share: float) -> None:
    """Gradients and floating point buffers (running statistics) become their means over the processes.

    `share` is this process's part of the batch's rows; the shares of all sum to 1.
    """
    if world() == 1:
        return
    reached = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    dist.all_reduce(reached)
    parameters = [p for p, count in zip(parameters, reached.tolist(), strict=True) if count]
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        tensors = [parameter.grad for parameter in parameters if parameter.grad is not None]
        tensors += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        for tensor in tensors:
            tensor.mul_(share) if share else tensor.zero_()  # 0 times a buffer's inf is NaN
        summed(tensors)


def mean_of(logged: Mapping[str, float], share: float) -> dict[str, float]:
    """The means over all rows of what each process logged; a process without rows logs nothing."""
    if world() == 1:
        return dict(logged)
    names = agreed(sorted(logged))  # the first process has rows wherever one has
    values = torch.tensor([share * logged.get(name, 0.0) for name in names], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))
