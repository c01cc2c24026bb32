"""What a user hands over in Python as a model, as what an attack can work on: a module, a callable, or a black box;
and the logits in what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.factory import Wrapped
from epsball.models.model_record import LABEL_NAMES

FORWARDS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")


class WithLogits(nn.Module):
    """A network that returns an object with `logits`, as one that returns them; it shares all of `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        return self.model(x).logits


def as_model(model: Any, name: str = "model") -> Callable[[Any], Any]:
    """`model` itself, or what stands behind it.

    A bound `forward` stands for its module, so that modes, device and dtype are found. A network of transformers is
    shown as one that returns its logits. A fitted scikit-learn estimator becomes a module of the same function, or a
    black box (`estimators.module_of`). A callable of the user's stays as it is.

    `name` is the argument that errors name. Raises `BadInput` for a name, a class, and anything that cannot be called.
    """
    if isinstance(model, Wrapped):
        model = model.function
    if isinstance(model, MethodType) and isinstance(model.__self__, nn.Module) and model.__name__ in FORWARDS:
        model = model.__self__
    if isinstance(model, str | Path):
        raise BadInput(f"`{name}` must be a model, got the text {str(model)!r}; write epsball.load({str(model)!r})")
    if isinstance(model, type):
        raise BadInput(
            f"`{name}` must be a model, got the class {model.__name__}; make one of it: {model.__name__}(...)"
        )
    if isinstance(model, nn.Module) and _of_transformers(model):
        return _with_names(WithLogits(model), model)
    if callable(model) or not hasattr(model, "predict"):
        if not callable(model):
            raise BadInput(f"`{name}` must be callable, x -> logits, got {type(model).__name__}")
        return model
    from epsball.models.estimators import module_of

    return module_of(model)


def logits_in(output: Any) -> Any:
    """The tensor of logits in what a model returns: `.logits`, the entry "logits" of a dict, the first of a tuple.

    Of a tuple or a list the first is meant only where it is a table (n, classes) or one number a row, and no other part
    is such a table: features (n, 32) and logits (n, 10) look alike. Anything else comes back as it is.

    >>> import torch
    >>> logits_in({"features": 0, "logits": torch.ones(1, 2)}), logits_in((torch.ones(1, 2), None))
    (tensor([[1., 1.]]), tensor([[1., 1.]]))
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(held := getattr(output, "logits", None), Tensor):
        return held
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor) and output[0].ndim in (1, 2):
        return output if _tables(output[1:], len(output[0])) else output[0]
    return output


def _tables(parts: Sequence[Any], rows: int) -> list[Tensor]:
    """Those parts of an output that could be logits of several classes: floating-point tables with these rows."""
    return [
        part
        for part in parts
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim == 2
        if len(part) == rows and part.shape[1] > 1
    ]


def _of_transformers(model: nn.Module) -> bool:
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.partition(".")[0] == "transformers"
        for kind in type(model).__mro__
    )


def _with_names(wrapped: nn.Module, model: Any) -> nn.Module:
    """With the names of the classes that a network of transformers has, unless they are its placeholders."""
    found = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = tuple(str(found[index]) for index in sorted(found))
    if names and not all(name.startswith("LABEL_") for name in names):
        setattr(wrapped, LABEL_NAMES, names)
    return wrapped
