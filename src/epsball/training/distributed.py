"""Several processes that train one model: each takes its share of every batch, and gradients are summed once a step.

torch's DistributedDataParallel reduces in each backward pass, wants gradients of all parameters in each, and weights
the processes equally. A step of adversarial training makes several backward passes, some for inputs alone, on shares
that may differ by a row. So parameters have no hooks here, and one sum at the end, weighted by rows, is exact.
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


def join_torchrun() -> bool:
    """Join the processes that torchrun started, if it did, by NCCL on GPUs, else Gloo. True in the first process."""
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


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def broadcast(value: Any) -> Any:
    """The first process's `value`, a small object, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every process's `value`, a small object, in every process, by their numbers."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def broadcast_model(model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if world_size() > 1:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place; one message for each dtype and device."""
    if world_size() == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        flat = _flatten_dense_tensors(group)
        dist.all_reduce(flat)
        for tensor, part in zip(group, _unflatten_dense_tensors(flat, group), strict=True):
            tensor.copy_(part)


def average_gradients(model: nn.Module, parameters: Sequence[nn.Parameter], share: float) -> None:
    """Replace gradients and floating point buffers (running statistics) by their means over the processes, in place.

    `share` is this process's fraction of the batch's rows; the shares of all sum to 1.
    """
    if world_size() == 1:
        return
    counts = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    dist.all_reduce(counts)
    with torch.no_grad():
        tensors = []
        for parameter, count in zip(parameters, counts.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                tensors.append(parameter.grad)
        tensors += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        for tensor in tensors:
            tensor.mul_(share) if share else tensor.zero_()  # 0 times a buffer's inf is NaN
        sum_over_processes(tensors)


def average_logged(logged: Mapping[str, float], share: float) -> dict[str, float]:
    """The means over all rows of the scalars that each process logged; a process without rows logs nothing."""
    if world_size() == 1:
        return dict(logged)
    names = broadcast(sorted(logged))  # the first process has rows wherever one has
    values = torch.tensor([share * logged.get(name, 0.0) for name in names], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))
