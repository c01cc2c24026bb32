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

from epsball.models.frozen import buffers_of, restored_buffers

BatchNorm = Literal["both", "clean", "adversarial", "separate", "joint"]

SECOND_SET = "second statistics"


def clean_pass(policy: BatchNorm, model: nn.Module) -> AbstractContextManager[None]:
    """Around forward and backward of the clean batch."""
    return restored_buffers(model.modules()) if policy == "adversarial" else nullcontext()


def adversarial_pass(policy: BatchNorm, model: nn.Module, memory: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Around forward and backward of the adversarial batch; `memory` holds the second set of statistics."""
    if policy == "separate":
        return _second_buffers(model, memory)
    return restored_buffers(model.modules()) if policy == "clean" else nullcontext()


@contextmanager
def _second_buffers(model: nn.Module, memory: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the buffers hold the second set, which begins as a copy of the first; its changes go to `memory`."""
    with restored_buffers(model.modules()):
        with torch.no_grad():
            for place, (_, _, buffer) in enumerate(buffers_of(model.modules())):
                if (second := memory.get(f"{SECOND_SET} {place}")) is not None:
                    buffer.copy_(second)
        yield
        for place, (_, _, buffer) in enumerate(buffers_of(model.modules())):
            memory[f"{SECOND_SET} {place}"] = buffer.detach().clone()
