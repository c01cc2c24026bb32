"""Is a network badly conditioned? Singular values of its layers, and the steepness that is measured.

Szegedy et al., "Intriguing properties of neural networks" (ICLR 2014), section 4.3, multiply the layers' spectral norms
to bound how far an output can move; a small product would rule adversarial examples out, a large one explains nothing.
So beside the product is the steepness found: the greatest norm of the input gradient of z_j - z_y, over the examples
and points of the balls around them, a lower bound on the Lipschitz constant there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.explain.affine_layers import AFFINE, Layer, affine_layers, as_matrix, is_chain
from epsball.explain.config import ConditioningConfig, configured
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import evenly, radius_of, task_for
from epsball.explain.measure import batches, median
from epsball.problem.losses import Loss
from epsball.problem.objective import Objective
from epsball.problem.task import Task

PER_EXAMPLE = ("steepness", "at_example", "dual", "margin")


@dataclass(frozen=True, kw_only=True)
class Conditioning(Finding):
    """What `conditioning` measured: the layers, and the steepness at n examples.

    `steepness` (n,): the greatest Euclidean norm of the gradient of z_j - z_y over classes j, in units of logits per
    unit of x, at the example and at points of its ball; `at_example` (n,) at the example alone; `dual` (n,) as
    `steepness`, in the ball's dual norm, logits per unit of radius. `margin` (n,): the least z_y - z_j at the example,
    < 0 where it is misclassified. `chain` says whether `bound` is a proven bound of `steepness`: the layers follow one
    upon the other with nothing between them that lengthens a difference.
    """

    derived: ClassVar = ("product", "bound", "steepest", "medians")
    details: ClassVar = PER_EXAMPLE

    layers: tuple[Layer, ...]
    steepness: tuple[float | None, ...]
    at_example: tuple[float | None, ...]
    dual: tuple[float | None, ...]
    margin: tuple[float | None, ...]
    chain: bool

    @property
    def product(self) -> float:
        """The product of the layers' spectral norms."""
        return math.prod(layer.norm for layer in self.layers)

    @property
    def bound(self) -> float:
        """What the product allows a difference of two logits, per unit of Euclidean length: sqrt(2) times it.

        Of a single logit, which is a difference itself: the product.
        """
        return self.product if self.layers[-1].rows == 1 else math.sqrt(2) * self.product

    @property
    def steepest(self) -> float:
        """The greatest `steepness` found."""
        return max((value for value in self.steepness if value is not None), default=math.nan)

    @property
    def medians(self) -> dict[str, float | None]:
        """The medians over the examples."""
        return {name: median(getattr(self, name)) for name in PER_EXAMPLE}

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        conditions = [layer.condition for layer in self.layers if layer.condition is not None]
        condition = f" (condition numbers up to {max(conditions):.3g})" if conditions else ""
        bound = f"which lets a difference of logits grow by {self.bound:.3g} per unit of Euclidean length"
        if not self.chain:
            bound = "which bounds nothing here, since other layers are between or beside them"
        text = f"The spectral norms of the {len(self.layers)} layers{condition} multiply to {self.product:.3g}, {bound}"
        middle = self.medians["steepness"]
        if middle is None:
            return text + "."
        share = f", {percent(self.steepest / self.bound)} of that" if self.chain and self.bound > 0 else ""
        return (
            f"{text}; the steepest point found in {len(self.steepness)} balls has {self.steepest:.3g}{share} (median "
            f"{middle:.3g})."
        )


@configured(ConditioningConfig)
def conditioning(model: nn.Module, data: Examples, ball: Ball, *, config: ConditioningConfig) -> Conditioning:
    """Measure the singular values of the layers, and how steep differences of logits are in the balls around examples.

    `model` is a torch module; its affine layers (`AFFINE`: linear, convolutions, batch normalisation, mean pooling) are
    taken in the order in which they run, each once, at the size of its first input. At most `rows` examples, at each
    the example and `samples` uniform points of its ball; gradients towards the `rivals` greatest other logits there.
    (1 + samples) x rivals backward passes an example. `seed` keys the points. The model comes back as it was.

    Raises `BadInput` for a callable that is no module, and where no affine layer runs.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"`model` must be a torch module, got {type(model).__name__}; a callable does not show its layers"
        )
    radius_of(ball)
    data = evenly(data, config.rows)
    task = task_for(data, ball, config.seed)
    layers = tuple(as_matrix(*part, seed=config.seed) for part in affine_layers(model, data.x[:2]))
    if not layers:
        kinds = ", ".join(kind.__name__ for kind in AFFINE[:4])
        raise BadInput(f"`model` must run at least one affine layer ({kinds}, ...), got none; write it with torch.nn")
    with Objective(model, _differences(config.rivals)) as objective:
        points = [_steepness(objective, task, sample, config.batch_size) for sample in range(1 + config.samples)]
    steepness, dual = (torch.stack([point[name] for point in points]).amax(0) for name in ("steepness", "dual"))
    return Conditioning(
        layers=layers,
        steepness=nested(steepness),
        at_example=nested(points[0]["steepness"]),
        dual=nested(dual),
        margin=nested(points[0]["margin"]),
        chain=is_chain(model),
        config=made_of(model, data, ball, config, forwards=objective.forwards, backwards=objective.backwards),
    )


def _differences(rivals: int) -> Loss:
    """z_j - z_y for the `rivals` greatest other logits, (n, k): k gradients on one forward pass."""

    def loss(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, "n k"]:
        label = task.y[:, None]
        others = logits.detach().scatter(1, label, -torch.inf).topk(min(rivals, logits.shape[1] - 1), dim=1).indices
        return logits.gather(1, others) - logits.gather(1, label)

    return loss


def _steepness(objective: Objective, task: Task, sample: int, batch_size: int) -> dict[str, Tensor]:
    """At the examples (`sample` 0), or at a uniform point of each ball."""
    if sample:
        task = task.with_jobs(torch.full_like(task.y, sample), task.aim)
        task = replace(task, x=task.ball.sample(task.x, task.noise))
    found: dict[str, list[Tensor]] = {"steepness": [], "dual": [], "margin": []}
    for part, point in batches(objective, task, batch_size):
        grad = point.grad
        length = torch.linalg.vector_norm(grad.flatten(2).double(), dim=2)
        found["steepness"].append(length.amax(1))
        found["dual"].append(part.ball.dual(grad.flatten(0, 1).double()).reshape(length.shape).amax(1))
        found["margin"].append(-point.loss.double().amax(1))
    return {name: torch.cat(values) for name, values in found.items()}
