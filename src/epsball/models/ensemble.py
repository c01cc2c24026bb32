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
from epsball.models.given import as_model, logits_in
from epsball.models.last_activation import are_probabilities, before_activation, check_no_probability, stays
from epsball.models.model_record import LABEL_NAMES
from epsball.models.preparation import PREPARATION

Mean = Literal["logits", "probabilities"]
MEANS: tuple[Mean, ...] = ("logits", "probabilities")
NAME = "ensemble:"
PROBABILITIES = (
    "`models` must return logits, got rows that always are in [0, 1] and sum to 1, probabilities, from no softmax that "
    "torch shows; return what goes into the softmax, or make one black box of the mean: "
    "BlackBox(lambda x: (a(x) + b(x)) / 2, takes='torch', scores='probabilities')"
)
OPTION = re.compile(r"\s*[\w-]+=")
"""The start of what belongs to the part before it, such as x=1 in net:width=16,x=1."""


class Ensemble(nn.Module):
    """The mean of several models, x (n, *shape) -> logits (n, classes), or one logit (n,) or (n, 1) as they have it.

    `mean` "logits" is the mean of their logits; "probabilities" the logarithm of the mean of their probabilities, whose
    softmax is that mean; for one logit z, the probability of class 1 is the sigmoid of z. Of a model that ends in a
    softmax or a sigmoid the logits before it are taken, with either mean. One logit z goes with two columns, as (0, z).

    `models` are modules, callables x -> logits, or fitted estimators, in the order of the sum. Each is given x in the
    dtype of its own parameters, and the mean is in the dtype of x: a network in float32 and an estimator in float64 go
    together. The `label_names` and the `preparation` of the models are those of the ensemble.

    Raises `BadInput` for no models, a black box among them, and others than the same label names or preparation; and,
    when called, for outputs of different shapes, and for probabilities that come from no activation that torch shows.

    >>> sure = Ensemble([lambda x: x, lambda x: -x], mean="probabilities")
    >>> sure(torch.tensor([[100.0, 0.0]])).softmax(1)
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, models: Sequence[Any], mean: Mean = "logits") -> None:
        super().__init__()
        members = [as_model(one, "models") for one in models]
        if not members:
            raise BadInput("`models` must be at least one model, got none")
        if any(isinstance(one, BlackBox) for one in members):
            raise BadInput(
                "`models` must have gradients, got a BlackBox, whose queries are counted one by one; make one black "
                "box of the mean: BlackBox(lambda x: (a(x) + b(x)) / 2, takes='torch')"
            )
        names = [getattr(one, LABEL_NAMES, None) for one in members]
        preparations = [getattr(one, PREPARATION, None) for one in members]
        _check_same("label names", names, "choose models with the same classes, in the same order")
        if any(preparations):
            _check_same("preparation", [one or "none" for one in preparations], "choose models that see images alike")
        for name, values in ((LABEL_NAMES, names), (PREPARATION, preparations)):
            known = [value for value in values if value is not None]
            if known:
                setattr(self, name, known[0])
        self.models = nn.ModuleList([one if isinstance(one, nn.Module) else Wrapped(one).eval() for one in members])
        self.mean = check_one_of("mean", mean, MEANS)
        self.training = self.models.training = any(one.training for one in self.models)
        self._looked = False

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *classes"]:
        outputs = [_logits(model, x, look=not self._looked) for model in self.models]
        self._looked = self._looked or len(x) > 0
        single = [output.ndim == 1 or output.shape[1] == 1 for output in outputs]  # the logit of class 1
        columns = [_two_columns(one) if alone else one for one, alone in zip(outputs, single, strict=True)]
        shapes = {tuple(one.shape): None for one in columns}
        if len(shapes) > 1:
            raise BadInput(
                f"`models` must return logits of the same shape, got {' and '.join(map(str, shapes))}; choose models "
                "with the same classes"
            )
        if self.mean == "logits":
            found = torch.stack(columns).mean(0)
        else:
            logs = torch.stack([one.log_softmax(1) for one in columns])
            found = logs.logsumexp(0) - math.log(len(columns))
        return (found[:, 1] - found[:, 0]).reshape(outputs[0].shape) if all(single) else found

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
            "name folders of trained models, or factories that read their weights"
        )
    loaded = [opener(replace(asked, spec=spec, black_box=False)) for spec in specs]
    for spec, one in zip(specs, loaded, strict=True):
        if isinstance(one.model, BlackBox):
            raise BadInput(
                f"`model` must be an ensemble of models with gradients, but {spec} is a black box, whose queries are "
                "counted one by one; in Python, make one black box of the mean: "
                "epsball.BlackBox(lambda x: (a(x) + b(x)) / 2, takes='torch')"
            )
        for name, value in ((LABEL_NAMES, one.label_names), (PREPARATION, one.preparation)):
            if value is not None:
                setattr(one.model, name, value)
    shapes = [one.shape for one in loaded if one.shape is not None]
    shape = shapes[0] if shapes else asked.shape
    try:
        _check_same("shape", [one.shape for one in loaded], "choose models for the same examples")
        model = Ensemble([one.model for one in loaded], mean)
        if shape is not None:
            _check_together(model, shape)
    except BadInput as error:
        raise BadInput(f"`model` {NAME}{','.join(specs)} must be of models that fit each other: {error}") from error
    notes = tuple(f"{spec}: {note}" for spec, one in zip(specs, loaded, strict=True) for note in one.notes)
    return Loaded(
        model=model,
        notes=(f"mean of the {mean} of {len(specs)} models: {', '.join(specs)}", *notes),
        label_names=getattr(model, LABEL_NAMES, None),
        shape=shapes[0] if shapes else None,
        preparation=getattr(model, PREPARATION, None),
    )


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
            "comma before KEY=VALUE belongs to the options of a model)"
        )
    if any(one.startswith("ensemble") for one in found):
        raise BadInput(f"`model` must be an ensemble of models that are none, got {spec!r}; list all members in one")
    return (MEANS[1] if mean == MEANS[1] else MEANS[0]), found


def _logits(model: nn.Module, x: Tensor, *, look: bool) -> Tensor:
    """The logits of a member, in the dtype of x; `look` whether they are probabilities after all."""
    dtypes = {part.dtype for part in (*model.parameters(), *model.buffers()) if part.is_floating_point()}
    taken = x.to(dtypes.pop()) if len(dtypes) == 1 and x.is_floating_point() else x

    def asked(z: Tensor) -> Any:
        return logits_in(model(z))

    output, ends_in = before_activation(asked, taken)
    if not isinstance(output, Tensor) or output.ndim not in (1, 2) or not output.is_floating_point():
        got = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise BadInput(f"`models` must return logits (n, classes) or one logit (n,), got {got}; return the logits")
    if look and not ends_in:
        check_no_probability(asked, taken, output)
        if stays(are_probabilities, asked, taken, output):
            raise BadInput(PROBABILITIES)
    return output.to(x.dtype) if x.is_floating_point() else output


def _two_columns(output: Tensor) -> Tensor:
    logit = output.reshape(len(output), 1)
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _check_together(model: Ensemble, shape: tuple[int, ...]) -> None:
    """Raise `BadInput` where the members do not answer alike to an example of zeros."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    try:
        with torch.no_grad():
            model(torch.zeros(1, *shape, dtype=first.dtype, device=first.device))
    except BadInput:
        raise
    except Exception:  # not of these examples: the evaluation says it
        return


def _check_same(what: str, values: Sequence[Any], remedy: str) -> None:
    """Raise `BadInput` where two of those that are known, not None, differ."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    for place, value in known:
        if value != known[0][1]:
            raise BadInput(
                f"`models` must have the same {what}, but that of models[{known[0][0]}] is {str(known[0][1])[:80]}, "
                f"that of models[{place}] {str(value)[:80]}; {remedy}"
            )
