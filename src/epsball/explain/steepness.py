"""Is a network badly conditioned? Singular values of its layers, and the steepness that is measured.

Szegedy et al., "Intriguing properties of neural networks" (ICLR 2014), section 4.3, multiply the layers' spectral norms
to bound how far an output can move; a small product would rule adversarial examples out, a large one explains nothing.
So beside the product stands the steepness found: the greatest norm of the input gradient of z_j - z_y, over the
examples and points of the balls around them, a lower bound on the Lipschitz constant there.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.explain.operators import AFFINE, Layer, affine_layers, chained, taken
from epsball.explain.passes import checked, kept, median, parts, read
from epsball.explain.record import evenly, percent, radius_of, said, versions
from epsball.problem.objective import Objective
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What `conditioning` measured: the layers, and the steepness at n examples.

    `steepness` (n,): the greatest Euclidean norm of the gradient of z_j - z_y over classes j, in units of logits per
    unit of x, at the example and at points of its ball; `at_example` (n,) at the example alone; `dual` (n,) as
    `steepness`, in the ball's dual norm, logits per unit of radius. `gap` (n,): the least z_y - z_j at the example,
    < 0 where it is misclassified. `chain` says whether `allowed` is a proven bound of `steepness`: the layers follow
    one upon the other with nothing between them that lengthens a difference.
    """

    layers: tuple[Layer, ...]
    steepness: tuple[float | None, ...]
    at_example: tuple[float | None, ...]
    dual: tuple[float | None, ...]
    gap: tuple[float | None, ...]
    chain: bool
    config: dict[str, Any]

    @property
    def product(self) -> float:
        """The product of the layers' spectral norms."""
        return math.prod(layer.norm for layer in self.layers)

    @property
    def allowed(self) -> float:
        """What the product allows a difference of two logits, per unit of Euclidean length: sqrt(2) times it.

        Of a single logit, which is a difference itself: the product.
        """
        return self.product if self.layers[-1].rows == 1 else math.sqrt(2) * self.product

    @property
    def steepest(self) -> float:
        """The greatest `steepness` found."""
        return max((value for value in self.steepness if value is not None), default=math.nan)

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        conditions = [layer.condition for layer in self.layers if layer.condition is not None]
        said = ""
        if conditions:
            said = f" (condition numbers up to {max(conditions):.3g})"
        bound = f"which lets a difference of logits grow by {self.allowed:.3g} per unit of Euclidean length"
        if not self.chain:
            bound = "which bounds nothing here, since other layers stand between or beside them"
        middle = median(self.steepness)
        if middle is None:
            return f"The spectral norms of the {len(self.layers)} layers{said} multiply to {self.product:.3g}, {bound}."
        share = ""
        if self.chain and self.allowed > 0:
            share = f", {percent(self.steepest / self.allowed)} of that"
        return (
            f"The spectral norms of the {len(self.layers)} layers{said} multiply to {self.product:.3g}, {bound}; the "
            f"steepest point found in {len(self.steepness)} balls has {self.steepest:.3g}{share} (median {middle:.3g})."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the single examples, as JSON can hold them."""
        layers = [
            asdict(layer) | {"norm": layer.norm, "rank": layer.rank, "condition": layer.condition}
            for layer in self.layers
        ]
        medians = {name: median(getattr(self, name)) for name in ("steepness", "at_example", "dual", "gap")}
        return {
            "layers": layers,
            "product": self.product,
            "allowed": self.allowed,
            "steepest": None if math.isnan(self.steepest) else self.steepest,
            "chain": self.chain,
            "medians": medians,
            "sentence": self.sentence,
            "config": self.config,
        }

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Conditioning:
        """The record that `to_json` wrote."""
        record = read(text)
        record["layers"] = tuple(Layer(**layer) for layer in record["layers"])
        return cls(**record)

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: singular values of each layer, and the steepness beside what they allow."""
        from epsball.explain.pictures_layers import draw_conditioning

        draw_conditioning(self, path)


def conditioning(
    model: nn.Module,
    data: Examples,
    ball: Ball,
    *,
    rows: int = 500,
    samples: int = 4,
    rivals: int = 9,
    batch_size: int = 128,
    seed: int = 0,
) -> Conditioning:
    """Measure the singular values of the layers, and how steep differences of logits are in the balls around examples.

    `model` is a torch module; its affine layers (`AFFINE`: linear, convolutions, batch normalisation, mean pooling) are
    taken in the order in which they run, each once, at the size of its first input. At most `rows` examples, at each
    the example and `samples` uniform points of its ball; gradients towards the `rivals` greatest other logits there.
    (1 + samples) x rivals backwards an example. `seed` keys the points. The model comes back as it was.

    Raises `BadInput` for a callable that is no module, and where no affine layer runs.
    """
    for name, value, least in (
        ("rows", rows, 1),
        ("samples", samples, 0),
        ("rivals", rivals, 1),
        ("batch_size", batch_size, 1),
    ):
        check_whole(name, value, least)
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"`model` must be a torch module, got {type(model).__name__}; a callable does not show its layers"
        )
    radius_of(ball)
    data = evenly(data, rows)
    task = checked(data, ball, seed)
    layers = tuple(taken(*part, seed) for part in affine_layers(model, data.x[:2]))
    if not layers:
        kinds = ", ".join(kind.__name__ for kind in AFFINE[:4])
        raise BadInput(f"`model` must run at least one affine layer ({kinds}, ...), got none; write it with torch.nn")
    with Objective(model, _differences(rivals), careful=True) as objective:
        points = [_steepness(objective, task, rank, batch_size) for rank in range(1 + samples)]
    steep, dual = (torch.stack([point[name] for point in points]).amax(0) for name in ("steep", "dual"))
    return Conditioning(
        layers=layers,
        steepness=kept(steep),
        at_example=kept(points[0]["steep"]),
        dual=kept(dual),
        gap=kept(points[0]["gap"]),
        chain=chained(model),
        config=kept(
            {
                "model": fingerprint.of_model(model),
                "data": data.name,
                "rows": len(data),
                "samples": samples,
                "rivals": rivals,
                "ball": fingerprint.described(ball),
                "said": said(ball),
                "forwards": objective.forwards,
                "backwards": objective.backwards,
                "seed": seed,
                "versions": versions(),
            }
        ),
    )


def _differences(rivals: int) -> Any:
    """z_j - z_y for the `rivals` greatest other logits, (n, k): k gradients on one forward."""

    def loss(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, "n k"]:
        label = task.y[:, None]
        others = logits.detach().scatter(1, label, -torch.inf).topk(min(rivals, logits.shape[1] - 1), dim=1).indices
        return logits.gather(1, others) - logits.gather(1, label)

    return loss


def _steepness(objective: Objective, task: Task, rank: int, batch_size: int) -> dict[str, Tensor]:
    if rank:
        task = task.with_jobs(torch.full_like(task.y, rank), task.aim)
        task = replace(task, x=task.ball.sample(task.x, task.noise))
    found: dict[str, list[Tensor]] = {"steep": [], "dual": [], "gap": []}
    for part, point in parts(objective, task, batch_size):
        grad = point.grad
        length = torch.linalg.vector_norm(grad.flatten(2).double(), dim=2)
        found["steep"].append(length.amax(1))
        found["dual"].append(part.ball.dual(grad.flatten(0, 1).double()).reshape(length.shape).amax(1))
        found["gap"].append(-point.loss.double().amax(1))
    return {name: torch.cat(values) for name, values in found.items()}
