"""A page to test: two small networks trained on the digits, other exhibits, and a server in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from epsball import Linf
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.serve.app import application
from epsball.serve.exhibit import Exhibit, Shown
from epsball.serve.server import listen, server
from epsball.training.fit import fit


def pictures(shape: tuple[int, ...], *, classes: int = 10, n: int = 6, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    bytes_ = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return from_arrays(bytes_, torch.randint(0, classes, (n,), generator=generator), classes=classes)


def exhibit(*models: nn.Module, data: Examples | None = None) -> Exhibit:
    data = load_data("digits") if data is None else data
    shown = tuple(Shown(name=f"model {i}", origin="a test", model=m) for i, m in enumerate(models))
    return Exhibit(models=shown, examples=data, ball=Linf(eps=0.1, lo=0, hi=1))


@cache
def trained() -> tuple[nn.Module, nn.Module]:
    """Two small networks trained on the digits."""
    models = build("small-mlp", (1, 8, 8), 10, seed=0), build("small-mlp", (1, 8, 8), 10, seed=1)
    for model in models:
        fit(model, load_data("digits", split="train"), epochs=5, lr=3e-3)
    return models


@cache
def judged() -> Examples:
    """The digits that both models of `trained` classify correctly."""
    data = load_data("digits")
    with torch.no_grad():
        right = [model(data.x).argmax(1) == data.y for model in trained()]
    return data.rows((right[0] & right[1]).nonzero()[:, 0])


@contextmanager
def serving(shown: Exhibit) -> Iterator[str]:
    """The page on a free port, until the end of the block; its address."""
    place = listen(0)
    running = server(application(shown))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join()
        place.close()
