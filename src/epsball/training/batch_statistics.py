"""Running statistics: which passes of a step of adversarial training update them, and which set they update.

BatchNorm normalises each pass in train mode by the pass's own batch, and keeps running means for eval mode. Clean and
adversarial batches have different ones (Xie and Yuille, "Intriguing properties of adversarial training at scale", ICLR
2020), so which of them count is a choice. All buffers of the model are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

BatchNorm = Literal["both", "clean", "adversarial", "separate", "joint"]

SECOND_SET = "second statistics"


def clean_pass(policy: BatchNorm, model: nn.Module) -> AbstractContextManager[None]:
    """Around forward and backward of the clean batch."""
    return restored_buffers(model) if policy == "adversarial" else nullcontext()


def adversarial_pass(policy: BatchNorm, model: nn.Module, memory: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Around forward and backward of the adversarial batch; `memory` holds the second set of statistics."""
    if policy == "separate":
        return _second_buffers(model, memory)
    return restored_buffers(model) if policy == "clean" else nullcontext()


@contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """On leaving, the buffers hold what they held. Backward passes must be over by then: they may read them."""
    before = [(owner, name, buffer, buffer.clone()) for owner, name, buffer in _buffers(model)]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in before:
                owner._buffers[name] = buffer.copy_(value)  # a forward may have put another tensor in its place


@contextmanager
def _second_buffers(model: nn.Module, memory: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the buffers hold the second set, which begins as a copy of the first; its changes go to `memory`."""
    with restored_buffers(model):
        with torch.no_grad():
            for place, (_, _, buffer) in enumerate(_buffers(model)):
                if (second := memory.get(f"{SECOND_SET} {place}")) is not None:
                    buffer.copy_(second)
        yield
        for place, (_, _, buffer) in enumerate(_buffers(model)):
            memory[f"{SECOND_SET} {place}"] = buffer.detach().clone()


def _buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """(module, name, buffer) of each buffer, once."""
    found: dict[int, tuple[nn.Module, str, Tensor]] = {}
    for owner in model.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                found.setdefault(id(buffer), (owner, name, buffer))
    return list(found.values())
