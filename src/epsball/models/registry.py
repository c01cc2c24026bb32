"""The built-in models by name: a table of text, which can be read without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

MODELS: dict[str, str] = {
    "small-mlp": "epsball.models.builtin:small_mlp",
    "small-cnn": "epsball.models.builtin:small_cnn",
    "preact-resnet18": "epsball.models.builtin:preact_resnet18",
    "maxout": "epsball.models.builtin:maxout",
    "conv-maxout": "epsball.models.builtin:conv_maxout",
    "broken-defence": "epsball.models.broken_defences:broken_defence",
}


def canonical(name: str) -> str:
    """A name as it stands in `MODELS`: lower case, with dashes."""
    return name.strip().lower().replace("_", "-")


def build(name: str, shape: Sequence[int], classes: int, *, seed: int = 0) -> nn.Module:
    """A fresh built-in model, from its short form NAME, NAME:KEY=VALUE,KEY=VALUE, or broken-defence:NAME.

    `shape` is that of one example, (C, H, W) for images; `classes` >= 1 is the number of logits. The weights are
    torch's usual initialisation drawn with `seed`; torch's global generators are not changed.

    Raises `BadInput` for an unknown name or option, and where the model does not fit the shape.

    >>> sum(p.numel() for p in build("small_mlp", (1, 8, 8), 10).parameters())
    17610
    """
    import torch

    base, _, rest = name.partition(":")
    module, _, attribute = MODELS[check_one_of("model", canonical(base), MODELS)].partition(":")
    factory = getattr(import_module(module), attribute)
    known = list(signature(factory).parameters)[2:]
    options: dict[str, int | str] = {"name": rest} if known == ["name"] else {}
    for pair in filter(None, () if options else rest.split(",")):
        key, equals, value = pair.partition("=")
        if not known or not equals or not value.strip().isdecimal():
            what = f"KEY=INTEGER with a key of {', '.join(known)}" if known else "left out"
            raise BadInput(f"`model` options of {base} must be {what}, got {pair!r}; as in preact-resnet18:width=16")
        options[check_one_of(f"{base} option", key.strip().replace("-", "_"), known)] = int(value)
    sizes = (*shape, classes)
    if not shape or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise BadInput(f"`shape` and `classes` must be >= 1, got {tuple(shape)} and {classes}; as in (1, 28, 28), 10")
    with torch.random.fork_rng(devices=[]):  # a model is built on the CPU
        torch.default_generator.manual_seed(int(seed) & (1 << 64) - 1)
        return factory(tuple(shape), classes, **options)
