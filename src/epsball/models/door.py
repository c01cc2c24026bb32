"""What a door of models is: what it is asked, and what it answers. The doors themselves are listed in `doors.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from epsball.common.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from epsball.models.black_box import BlackBox
    from epsball.models.preparation import Preparation


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks a door for.

    `spec` names the model, `weights` a file for it. `shape` (of one example), `classes` and `seed` build a network of
    epsball's. `trust` lets code run that files hold or name, and `black_box` asks for a model of outputs alone.
    """

    spec: str
    weights: Path | None = None
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    seed: int = 0
    trust: bool = False
    black_box: bool = False


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a door answers with: a module (n, *shape) -> logits in eval mode, or a black box, and what is known of it.

    `notes` says what was done to get there, a sentence each. `label_names` are the classes in the order of the outputs,
    `shape` is that of an example, where the model takes no other. `preparation` is what images go through before the
    ball is laid around them (resize and crop).
    """

    model: nn.Module | BlackBox
    notes: tuple[str, ...] = ()
    label_names: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    preparation: Preparation | None = None


@dataclass(frozen=True, kw_only=True)
class Door:
    """A kind of model: `spec` shows how one is written, `what` says what it is, `fits` whether a spec is one.

    `opener` is "module:function", (Asked) -> Loaded, imported when it is needed; `extra` is the optional part of
    epsball that has the library it needs.
    """

    name: str
    spec: str
    what: str
    opener: str
    fits: Callable[[str], bool]
    extra: str | None = None

    def open(self, asked: Asked) -> Loaded:
        """The model that `asked.spec` names. Raises `BadInput` where that is none of this door's."""
        module, _, function = self.opener.partition(":")
        return getattr(import_module(module), function)(asked)


def missing_library(library: str, extra: str, error: ImportError) -> BadInput:
    """The error where a door's library is not installed; `raise missing_library(...) from error`."""
    return BadInput(f"`model` needs {library}, which is not installed ({error}); write pip install 'epsball[{extra}]'")
