"""The affine layers of a network as matrices: in which order they run, and their singular values.

A convolution is the linear operator that it computes, with its stride and padding, at the size of its input. Its matrix
is read off the layer's own backward pass, so that nothing of its arithmetic is repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from epsball.common.noise import Noise
from epsball.common.record import Record
from epsball.common.undo import Undo
from epsball.explain.finding import nested
from epsball.models.builtin import Maxout, Normalize
from epsball.models.frozen import frozen

AFFINE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, Normalize,
)  # fmt: skip
"""Layers that are affine in their input in eval mode."""
POINTWISE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, Normalize)
"""Of these, those that do the same at every place."""
SHORT = (
    nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Softplus, nn.Identity, nn.Flatten, nn.Dropout,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, Maxout,
)  # fmt: skip
"""Layers that lengthen no difference in eval mode; of `Maxout`, what follows its linear part."""
DENSE = 1 << 21
"""Entries up to which an operator is written out, for all of its singular values."""
TOLERANCE = 1e-6
"""Of the square of the greatest singular value of one that is not: about the rounding of single precision."""


@dataclass(frozen=True, kw_only=True)
class Layer(Record):
    """An affine layer as a matrix, `rows` x `columns`: its `singular` values, the greatest first.

    They are all there are where the matrix is small enough to be written out (`complete`), else the greatest alone, by
    Lanczos' method. `rank` counts those above the rounding of the greatest. None stands for what is not known.
    """

    derived: ClassVar = ("norm", "rank", "condition")

    name: str
    kind: str
    rows: int
    columns: int
    singular: tuple[float, ...]
    complete: bool

    @property
    def norm(self) -> float:
        """The spectral norm."""
        return self.singular[0]

    @property
    def rank(self) -> int | None:
        """How many singular values are above the rounding of the greatest."""
        least = self.norm * max(self.rows, self.columns) * float(np.finfo(np.float32).eps)
        return sum(value > least for value in self.singular) if self.complete else None

    @property
    def condition(self) -> float | None:
        """The greatest singular value over the smallest; None where that is zero up to rounding, or not known."""
        return self.norm / self.singular[-1] if self.rank == len(self.singular) else None


def affine_layers(model: nn.Module, x: Float[Tensor, "n *shape"]) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """The affine layers that run on `x`, in that order: name, module, and the shape of input to look at it with.

    That is the shape of its first input, for layers that do the same at every place cut down to one place.
    """
    names = {module: name for name, module in model.named_modules()}
    found: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:
            found.setdefault(module, _at_one_place(module, tuple(inputs[0].shape[1:])))

    with Undo() as stack, frozen(model), torch.no_grad():
        for module in names:
            if _affine(module):
                stack.callback(module.register_forward_pre_hook(record).remove)
        model(x)
    return [(names[module] or "model", module, shape) for module, shape in found.items()]


def _at_one_place(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an input at which the layer has the same singular values, without repeating them for each place."""
    if isinstance(module, nn.Linear):
        return shape[-1:]
    return (shape[0], *[1] * (len(shape) - 1)) if isinstance(module, POINTWISE) else shape


def is_chain(model: nn.Module) -> bool:
    """Whether the product of the spectral norms bounds the network: a chain of affine layers and short ones.

    >>> relu, layer = nn.ReLU(), nn.Linear(2, 2)
    >>> is_chain(nn.Sequential(layer, relu)), is_chain(nn.Sequential(layer, relu, layer))
    (True, False)
    >>> is_chain(nn.Bilinear(1, 1, 1))
    False
    """
    links = list(_links(model))
    affine = [link for link in links if _affine(link)]
    return len(set(affine)) == len(affine) and all(_affine(link) or isinstance(link, SHORT) for link in links)


def _links(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a chain in their order, a module that is used twice twice."""
    if type(model) is nn.Sequential:  # a subclass may do something else in its forward
        for part in model:
            yield from _links(part)
    else:
        yield model


def _affine(module: nn.Module) -> bool:
    """Batch normalisation without running statistics is not affine: it normalises by the batch."""
    return isinstance(module, AFFINE) and getattr(module, "running_mean", 0) is not None


def singular_values(layer: nn.Module, shape: tuple[int, ...], *, seed: int = 0) -> tuple[int, int, np.ndarray, bool]:
    """Rows, columns and singular values of an affine layer at inputs of `shape`, and whether they are all there are.

    The matrix is read off the layer's own backward pass, in which a bias plays no part; up to `DENSE` entries it is
    written out, beyond that the greatest is found by Lanczos' method from a start that `seed` gives: more of them would
    take long where a value repeats, as it does for each place of a 1x1 convolution.

    >>> conv = nn.Conv1d(1, 1, 2, bias=False)
    >>> _ = conv.weight.data.copy_(torch.tensor([[[1.0, 1.0]]]))
    >>> singular_values(conv, (1, 3))[2].round(4)  # of [[1, 1, 0], [0, 1, 1]]
    array([1.7321, 1.    ])
    """
    some = [part for part in (*layer.parameters(), *layer.buffers()) if part.is_floating_point()]
    like = some[0] if some else torch.zeros(())
    with frozen(layer), torch.enable_grad():
        zero = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
        at_zero = layer.forward(zero)  # not the call: a user's hooks are not for these inputs
        out = tuple(at_zero.shape[1:])
        rows, columns = math.prod(out), math.prod(shape)

        def adjoint(v: Tensor) -> Tensor:
            """A^T applied to rows (n, *out)."""
            leaf = zero.expand(len(v), *shape).clone().requires_grad_()
            (found,) = torch.autograd.grad(layer.forward(leaf), leaf, v)
            return found

        if rows * columns <= DENSE:
            unit = torch.eye(rows, dtype=like.dtype, device=like.device).reshape(rows, *out)
            matrix = torch.cat([adjoint(part) for part in unit.split(256)]).reshape(rows, columns)
            return rows, columns, torch.linalg.svdvals(matrix.double()).cpu().numpy(), True

        def tensor(v: np.ndarray, to: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(v)).to(like).reshape(1, *to)

        def forth(v: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return (layer.forward(tensor(v, shape)) - at_zero).flatten().double().cpu().numpy()

        def back_and_forth(v: np.ndarray) -> np.ndarray:
            return adjoint(tensor(forth(v), out)).flatten().double().cpu().numpy()

        # Not `svds`, which squares its tolerance: below the rounding of single precision it never ends.
        make: Any = LinearOperator  # whose annotations do not know these keywords
        gram = make((columns, columns), matvec=back_and_forth, dtype=np.float64)
        row = torch.zeros(1, dtype=torch.long)
        start = Noise(seed, row, row).normal((columns,), dtype=torch.float64)[0].numpy()
        greatest: Any = eigsh(gram, k=1, v0=start, tol=cast(Any, TOLERANCE), return_eigenvectors=False)
        return rows, columns, np.sqrt(np.maximum(greatest, 0)), False


def as_matrix(name: str, layer: nn.Module, shape: tuple[int, ...], *, seed: int) -> Layer:
    """One of `affine_layers` as a matrix."""
    rows, columns, values, complete = singular_values(layer, shape, seed=seed)
    kind = type(layer).__name__
    return Layer(name=name, kind=kind, rows=rows, columns=columns, singular=nested(values), complete=complete)
