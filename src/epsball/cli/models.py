"""`epsball models`: what can be named in --model."""

from __future__ import annotations

import json as encoder
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from epsball.cli.common import Json
from epsball.models.doors import DOORS

LIBRARIES = {"hf": ("transformers",), "timm": ("timm", "torchvision"), "onnx": ("onnx",), "http": ("httpx",)}
"""The libraries that an extra of epsball's brings."""


def models(*, json: Json = False) -> None:
    """List what --model takes: how each kind of model is written, and what it needs.

    Parameters
    ----------
    json
        Print the list as JSON.
    """
    if json:
        listed = [{"name": door.name, "spec": door.spec, "what": door.what, "extra": door.extra} for door in DOORS]
        print(encoder.dumps(listed, indent=2))
        return
    console = Console(highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="dim", leading=1)
    for title in ("--model", "what it is", "needs"):
        table.add_column(title, overflow="fold")
    for door in DOORS:
        table.add_row(door.spec, door.what, _needs(door.extra))
    console.print(table)
    console.print(
        "\nIn Python: epsball.load(SPEC), or the model itself: a torch module, a fitted scikit-learn estimator, a "
        "network of transformers, any callable (n, *shape) -> logits, or epsball.BlackBox(function).",
    )


def _needs(extra: str | None) -> str:
    if extra is None:
        return ""
    return "installed" if all(map(find_spec, LIBRARIES[extra])) else f"pip install 'epsball[{extra}]'"
