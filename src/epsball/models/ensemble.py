"""Several models as one: the mean of their logits, or the logarithm of the mean of their probabilities.

The logarithm is taken by log-sum-exp of the log-softmax, so that gradients do not vanish where a softmax saturates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked, Loaded
from epsball.models.factory import Wrapped

Mean = Literal["logits", "probabilities"]
MEANS: tuple[Mean, ...] = ("logits", "probabilities")
NAME = "ensemble:"
OPTION = re.compile(r"\s*[\w-]+=")
"""The start of what belongs to the part before it, such as x=1 in net:width=16,x=1."""


class Ensemble(nn.Module):
    """The mean of several models, x (n, *shape) -> logits (n, classes), or one logit (n,) or (n, 1) as they have it.

    `mean` "logits" is the mean of their logits; "probabilities" the logarithm of the mean of their probabilities, whose
    softmax is that mean; for one logit z, the probability of class 1 is the sigmoid of z. `models` are modules, or
    callables x -> logits, in the order of the sum. Each is given x in the dtype of its own parameters, and the mean is
    in the dtype of x: a network in float32 and an estimator in float64 go together.

    Raises `BadInput` for no models, a black box among them, and, when called, for outputs of different shapes.

    >>> sure = Ensemble([lambda x: x, lambda x: -x], mean="probabilities")
    >>> sure(torch.tensor([[100.0, 0.0]])).softmax(1)
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, models: Sequence[Callable[[Tensor], Tensor]], mean: Mean = "logits") -> None:
        super().__init__()
        models = list(models)
        if not models:
            raise BadInput("`models` must be at least one model, got none")
        for model in models:
            if isinstance(model, BlackBox):
                raise BadInput(
                    "`models` must have gradients, got a BlackBox, whose queries are counted one by one; make one "
                    "black box "
                    "of the mean: BlackBox(lambda x: (a(x) + b(x)) / 2, takes='torch')"
                )
            if not callable(model):
                raise BadInput(f"`models` must be callable, x -> logits, got {type(model).__name__}")
        self.models = nn.ModuleList([one if isinstance(one, nn.Module) else Wrapped(one) for one in models])
        self.mean = check_one_of("mean", mean, MEANS)
        self.training = any(one.training for one in self.models)

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *classes"]:
        outputs = [_in_its_dtype(model, x) for model in self.models]
        _check_outputs(outputs)
        if self.mean == "logits":
            return torch.stack(outputs).mean(0)
        first = outputs[0]
        alone = first.ndim == 1 or first.shape[1] == 1  # the logit of class 1
        columns = [_two_columns(output) if alone else output for output in outputs]
        logs = torch.stack([output.log_softmax(1) for output in columns]).logsumexp(0) - math.log(len(columns))
        return (logs[:, 1] - logs[:, 0]).reshape(first.shape) if alone else logs

    def extra_repr(self) -> str:
        return f"mean={self.mean!r}"


def open_ensemble(asked: Asked) -> Loaded:
    """The ensemble that `asked.spec` names: ensemble:A,B, or ensemble:mean=probabilities,A,B.

    Members are specs of any door but this one. A comma starts the next member, unless KEY=VALUE follows: that is an
    option of the present one. They must have the same classes, and the same preparation of images.
    """
    from epsball.models.opening import open_model

    return ensemble_of(asked, open_model)


def ensemble_of(asked: Asked, opener: Callable[[Asked], Loaded]) -> Loaded:
    """The ensemble of the models that `opener` makes of the members of `asked.spec`."""
    mean, specs = members(asked.spec)
    if asked.weights is not None:
        raise BadInput(
            f"`weights` must be left out with an ensemble, whose members have their own, got {str(asked.weights)!r}; "
            "name "
            "folders of trained models, or factories that read their weights"
        )
    loaded = [opener(replace(asked, spec=spec, black_box=False)) for spec in specs]
    for spec, one in zip(specs, loaded, strict=True):
        if isinstance(one.model, BlackBox):
            raise BadInput(
                f"`model` must be an ensemble of models with gradients, but {spec} is a black box, whose queries are "
                "counted "
                "one by one; in Python, make one black box of the mean: "
                "epsball.BlackBox(lambda x: (a(x) + b(x)) / 2, takes='torch')"
            )
    shape = _common("shape", specs, [one.shape for one in loaded], "choose models for the same examples")
    names = _common("label names", specs, [one.label_names for one in loaded], "choose models with the same classes")
    preparations = [one.preparation for one in loaded]
    if any(one != preparations[0] for one in preparations):
        raise BadInput(
            "`model` must be an ensemble of models that see images alike, but "
            f"{_differing('preparation', specs, preparations)}; "
            "choose models with the same size and crop"
        )
    model = Ensemble([one.model for one in loaded], mean)
    shown = shape or asked.shape
    if shown is not None:
        _check_together(model, specs, shown)
    notes = tuple(f"{spec}: {note}" for spec, one in zip(specs, loaded, strict=True) for note in one.notes)
    first = f"mean of the {mean} of {len(specs)} models: {', '.join(specs)}"
    return Loaded(model=model, notes=(first, *notes), label_names=names, shape=shape, preparation=preparations[0])


def members(spec: str) -> tuple[Mean, list[str]]:
    """The mean and the members of ensemble:A,B.

    >>> members("ensemble:mean=probabilities,preact-resnet18:width=16,timm:resnet18")
    ('probabilities', ['preact-resnet18:width=16', 'timm:resnet18'])
    """
    if not spec.startswith(NAME):
        raise BadInput(f"`model` must be an ensemble, got {spec!r}; as in ensemble:small-mlp,small-cnn")
    mean, found = "logits", []
    for number, part in enumerate(spec.removeprefix(NAME).split(",")):
        if number == 0 and part.strip().startswith("mean="):
            mean = check_one_of("ensemble mean", part.strip().removeprefix("mean="), MEANS)
        elif found and OPTION.match(part):
            found[-1] += f",{part.strip()}"
        else:
            found.append(part.strip())
    if len(found) < 2 or "" in found:
        raise BadInput(
            f"`model` must be an ensemble of two models or more, got {spec!r}; as in ensemble:small-mlp,small-cnn (a "
            "comma "
            "before KEY=VALUE belongs to the options of a model)"
        )
    if any(one.startswith("ensemble") for one in found):
        raise BadInput(f"`model` must be an ensemble of models that are none, got {spec!r}; list all members in one")
    return (MEANS[1] if mean == MEANS[1] else MEANS[0]), found


def _in_its_dtype(model: nn.Module, x: Tensor) -> Any:
    """What a member returns, in the dtype of x."""
    dtypes = {part.dtype for part in (*model.parameters(), *model.buffers()) if part.is_floating_point()}
    output = model(x.to(dtypes.pop()) if len(dtypes) == 1 and x.is_floating_point() else x)
    return output.to(x.dtype) if isinstance(output, Tensor) and output.is_floating_point() else output


def _two_columns(output: Tensor) -> Tensor:
    logit = output.reshape(len(output), 1)
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _check_outputs(outputs: list[Any]) -> None:
    for output in outputs:
        if not isinstance(output, Tensor) or output.ndim not in (1, 2) or not output.is_floating_point():
            got = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise BadInput(f"`models` must return logits (n, classes) or one logit (n,), got {got}; return the logits")
    shapes = {tuple(output.shape): None for output in outputs}
    if len(shapes) > 1:
        raise BadInput(
            f"`models` must return logits of the same shape, got {' and '.join(map(str, shapes))}; choose models with "
            "the "
            "same classes"
        )


def _check_together(model: Ensemble, specs: list[str], shape: tuple[int, ...]) -> None:
    """Raise `BadInput` where the members do not answer alike to an example of zeros."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    x = torch.zeros(1, *shape, dtype=first.dtype, device=first.device)
    try:
        with torch.no_grad():
            model(x)
    except BadInput as error:
        raise BadInput(f"`model` {NAME}{','.join(specs)} must be of models that fit each other: {error}") from error
    except Exception:  # not of these examples: the evaluation says it
        return


def _common(what: str, specs: list[str], values: list[Any], remedy: str) -> Any:
    """The value that is known, None where none is. Raises `BadInput` where there are two."""
    known = [(spec, value) for spec, value in zip(specs, values, strict=True) if value is not None]
    if any(value != known[0][1] for _, value in known):
        differing = _differing(what, [spec for spec, _ in known], [value for _, value in known])
        raise BadInput(f"`model` must be an ensemble of models with the same {what}, but {differing}; {remedy}")
    return known[0][1] if known else None


def _differing(what: str, specs: list[str], values: list[Any]) -> str:
    other = next(index for index, value in enumerate(values) if value != values[0])
    first, second = (f"{str(value)[:80]}" for value in (values[0], values[other]))
    return f"the {what} of {specs[0]} is {first}, that of {specs[other]} {second}"
