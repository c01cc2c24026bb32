"""Broken defences: networks that mask their gradients by construction, and three sound networks beside them.

Each is a small network as `small-mlp` or `small-cnn` with one known fault, so that the diagnosis can be tried where the
right answer is known: `BROKEN_DEFENCES` says what the fault is, and which reliability check has to fail. Nearly all of
these faults were once published as defences; Athalye, Carlini and Wagner (ICML 2018), Carlini et al. (2019) and Tramer
et al. (NeurIPS 2020) show how they were broken. Two of the faults come from the training:
`epsball.training.broken_defences`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.models.builtin import small_cnn, small_mlp

LEVELS = 8
"""Grey levels of the quantised input."""
SCALE = 1000.0
"""Factor of the logits."""
SPREAD = 0.1
"""Standard deviation of the noise in the forward, in units of a box [0, 1]."""
SHARE = 0.1
"""The share of units that win."""
QUALITY = 0.25
"""The step to which coefficients of the block transform are rounded, in units of a box [0, 1]."""
BLOCK = 8
PERIODS = 3
"""Periods of the sine features per unit of the input."""
LARGE = 16
"""Images of this height and width or more get a convolutional network."""


class BrokenDefence(nn.Module):
    """A network with a fault; (n, *shape) -> (n, classes), or one class more. `name` is its key in `BROKEN_DEFENCES`.

    `before` transforms the input, `after` the logits; in train mode `after` is left out, since nothing could be learned
    through it.
    """

    def __init__(self, name: str, net: nn.Module, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.name, self.before, self.net, self.after = name, before, net, after

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        logits = self.net(self.before(x))
        return logits if self.training else self.after(logits)

    def extra_repr(self) -> str:
        return self.name


class Quantise(nn.Module):
    """x rounded to `LEVELS` levels of [0, 1]: the gradient is zero almost everywhere.

    Input transformations as a defence: Guo et al. (ICLR 2018); thermometer codes: Buckman et al. (ICLR 2018).
    """

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        return (x * (LEVELS - 1)).round() / (LEVELS - 1)


class BlockRounding(nn.Module):
    """Coefficients of the cosine transform of 8x8 blocks, rounded as JPEG does: the gradient is zero.

    Images whose sides are no multiples of 8 are extended by their last row and column, as in JPEG.
    """

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        index = torch.arange(BLOCK, dtype=torch.float64)
        basis = torch.cos(math.pi / BLOCK * (index + 0.5) * index[:, None]) * math.sqrt(2 / BLOCK)
        basis[0] /= math.sqrt(2)
        self.register_buffer("basis", basis.float(), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
        rows, columns = padded.shape[-2] // BLOCK, padded.shape[-1] // BLOCK
        basis = self.basis.to(x.dtype)
        blocks = padded.reshape(*x.shape[:2], rows, BLOCK, columns, BLOCK).transpose(3, 4)
        coefficients = (basis @ blocks @ basis.T / QUALITY).round() * QUALITY
        image = (basis.T @ coefficients @ basis).transpose(3, 4).reshape(padded.shape)
        return image[..., :height, :width]


class InputNoise(nn.Module):
    """x + normal noise of standard deviation `SPREAD`, in eval mode too, from torch's generator.

    Xie et al. (ICLR 2018) and others drew the input's transformation anew for each forward pass.
    """

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        return x + SPREAD * torch.randn_like(x)


class KWinners(nn.Module):
    """The largest `SHARE` of a row's units pass, the others are zero: Xiao, Zhong and Zheng (ICLR 2020).

    Small changes of the input change which units win, and with them the gradient: the function jumps.
    """

    def forward(self, units: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        flat = units.flatten(1)
        winners = max(1, round(SHARE * flat.shape[1]))
        threshold = flat.topk(winners, dim=1).values[:, -1:]
        return torch.where(flat >= threshold, flat, 0).reshape(units.shape)


class SineFeatures(nn.Module):
    """x, with sine and cosine of `PERIODS` periods per unit of x as further channels.

    A perturbation of 0.1 is visible in these, so that a network learns to recognise a single attack step.
    """

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n three_c ..."]:
        angle = 2 * math.pi * PERIODS * x
        return torch.cat([x, angle.sin(), angle.cos()], 1)


class StepActivation(nn.Module):
    """1 where a unit is positive, else 0: its derivative is zero. In train mode a sigmoid's derivative replaces it."""

    def forward(self, units: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        steps = (units.sign() + 1) / 2
        if not self.training:
            return steps
        smooth = (4 * units).sigmoid()
        return smooth + (steps - smooth).detach()


class ScaledLogits(nn.Module):
    """Logits times `SCALE`: their softmax is 0 and 1 in single precision, the cross-entropy's gradient exactly 0.

    Carlini and Wagner (2016) broke defensive distillation, which did this.
    """

    def forward(self, logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        return logits * SCALE


class WideLinear(nn.Module):
    """A linear classifier in two layers without anything between them: many weights, one matrix."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.Linear(width, classes))

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        return self.layers(x)


def _small_network(shape: tuple[int, ...], classes: int) -> nn.Module:
    images = len(shape) == 3 and min(shape[1:]) >= LARGE
    return (small_cnn if images else small_mlp)(shape, classes)


def _with_steps(shape: tuple[int, ...], classes: int) -> nn.Module:
    network = _small_network(shape, classes)
    for name, layer in network.named_children():
        if isinstance(layer, nn.ReLU):
            setattr(network, name, StepActivation())
    return network


def _k_winners(shape: tuple[int, ...], classes: int, width: int = 400) -> nn.Module:
    """The more units, the closer together the jumps."""
    first = nn.Linear(math.prod(shape), width)
    return nn.Sequential(
        nn.Flatten(), first, KWinners(), nn.Linear(width, width), KWinners(), nn.Linear(width, classes)
    )


def _on_sine_features(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(SineFeatures(), _small_network((3 * shape[0], *shape[1:]), classes))


def _with_another_class(shape: tuple[int, ...], classes: int) -> nn.Module:
    return _small_network(shape, max(classes, 2) + 1)


@dataclass(frozen=True)
class Fault:
    """How a broken defence is built, and the reliability check that it has to fail; None for a sound network.

    `what` is a line for people.
    """

    what: str
    indicator: str | None = None
    net: Callable[[tuple[int, ...], int], nn.Module] = _small_network
    before: type[nn.Module] = nn.Identity
    after: Callable[[], nn.Module] = nn.Identity


BROKEN_DEFENCES: dict[str, Fault] = {
    "quantised": Fault(f"the input rounded to {LEVELS} levels", "zero-gradients", before=Quantise),
    "scaled": Fault(f"logits times {SCALE:g}", "saturated-logits", after=ScaledLogits),
    "kwinners": Fault(f"only the largest {SHARE:.0%} of units pass", "shattered-gradients", net=_k_winners),
    "step": Fault("units are 0 or 1", "zero-gradients", net=_with_steps),
    "noise": Fault("noise on the input in every forward pass", "stochastic-forward", before=InputNoise),
    "softmax": Fault("probabilities instead of logits", "softmax-outputs", after=lambda: nn.Softmax(1)),
    "jpeg": Fault("the input's 8x8 blocks rounded as by JPEG", "zero-gradients", before=BlockRounding),
    "fgsm-masked": Fault(
        "trained against single steps, and overfitted to them", "masked-single-step", net=_on_sine_features
    ),
    "detector": Fault("one more class for inputs that look attacked", "rejection-class", net=_with_another_class),
    "plain": Fault("sound: trained as usual"),
    "pgd": Fault("sound: trained against iterated attacks"),
    "linear": Fault("sound: linear, with a wide layer", net=WideLinear),
}
"""By name; the last three are sound."""


def broken_defence(shape: tuple[int, ...], classes: int, name: str) -> BrokenDefence:
    """A fresh network with the fault `name` for examples of `shape` and `classes` labels; data in [0, 1].

    Raises `BadInput` for an unknown name, and where the fault does not fit the shape.

    >>> broken_defence((1, 8, 8), 10, "detector")(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 11])
    """
    name = check_one_of("model broken-defence:", name.strip().lower().replace("_", "-"), BROKEN_DEFENCES)
    fault = BROKEN_DEFENCES[name]
    if fault.before is BlockRounding and len(shape) != 3:
        raise BadInput(f"`shape` must be (C, H, W) for broken-defence:jpeg, got {shape}; take broken-defence:quantised")
    return BrokenDefence(name, fault.net(shape, max(classes, 2)), fault.before(), fault.after())
